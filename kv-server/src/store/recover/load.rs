//! Bringing a segment's file back: its header, its end, its records, its image.

use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kv_fabric::Domain;
use kv_proto::DecodeError;
use kv_proto::layout::{
    EXTENT_BYTES, FooterEntry, OperationEntry, RecordHeader, SEGMENT_MAX_BYTES, SegmentHeader,
    SegmentTrailer, segment_flag, trailer_flag,
};
use kv_proto::record::parse_header;
use zerocopy::{FromZeros, IntoBytes};

use super::super::budget::Charge;
use super::super::checkpoint;
use super::super::files::{Files, OpenFile};
use super::super::footer::{self, Ending};
use super::super::index::Readable;
use super::super::limits::{FOOTER_ENTRIES_MAX, READ_PIECE_BYTES};
use super::super::owed::Owed;
use super::super::segment::{self, HEADER_BYTES, extent_lens};
use super::super::sync_kind::SyncKind;
use super::scan::{Found, Scanned, Span, scan};
use super::source::{FileSource, ImageSource};
use crate::error::StorageError;

/// An image, extent by extent.
pub(crate) type Image = Vec<Arc<Readable>>;

/// A segment file whose header is valid. It is open only while it is read or sealed: a server may have more of them
/// than a process may have open.
pub(crate) struct SegmentFile {
    pub(crate) header: SegmentHeader,
    /// What seals it, if it is sealed.
    pub(crate) trailer: Option<SegmentTrailer>,
    /// Bytes that may be of records: without FOOTERs and trailer, and within the segment's limit. Where nothing seals it
    /// that takes in the extent in which its data ends.
    pub(crate) len: u64,
    /// Where its data ends, bytes: no record begins in the hole behind, but zeroes that the last one ends with may be in it.
    pub(crate) data_end: u64,
    /// Whether its file was cut short, as far as it tells by itself, and nobody accepted that.
    pub(crate) cut: bool,
    pub(crate) path: PathBuf,
    /// Why its header does not validate, where its trailer says what it did.
    pub(crate) header_damage: Option<DecodeError>,
}

fn is_full_length(header: &SegmentHeader) -> bool {
    header.flags & segment_flag::FULL_LENGTH != 0
}

impl SegmentFile {
    /// Opens a file and judges its header and its end.
    pub(crate) fn open(
        files: &Files,
        path: &Path,
        number: u32,
        dataset: [u8; 16],
    ) -> Result<Self, StorageError> {
        let file = files.open(path)?;
        let file_len = files.len(&file)?;
        let damaged = |source| StorageError::Damaged {
            path: path.to_owned(),
            source,
        };
        if file_len < HEADER_BYTES {
            return Err(damaged(DecodeError::Short {
                what: "segment header",
                need: HEADER_BYTES as usize,
                have: file_len as usize,
            }));
        }
        let mut header = SegmentHeader::new_zeroed();
        files.read_at(&file, header.as_mut_bytes(), 0)?;
        let mut trailer = SegmentTrailer::new_zeroed();
        if file_len >= 2 * HEADER_BYTES {
            files.read_at(&file, trailer.as_mut_bytes(), file_len - HEADER_BYTES)?;
        }
        let header_damage = match segment::check_header(&header, number, dataset) {
            Ok(()) => None,
            Err(error @ DecodeError::Checksum { .. }) => {
                // Without this segment older values of its keys would be served.
                header = segment::header(number, trailer.identity, dataset, 0, SEGMENT_MAX_BYTES);
                header.flags = 0;
                if header.identity == 0 || !segment::trailer_is_valid(&trailer, &header, file_len) {
                    return Err(damaged(error));
                }
                Some(error)
            }
            Err(error) => return Err(damaged(error)),
        };
        let trailer = segment::trailer_is_valid(&trailer, &header, file_len).then_some(trailer);
        let full_length = is_full_length(&header);
        let (data_end, cut) = match trailer {
            Some(trailer) => (file_len, trailer.flags & trailer_flag::CUT != 0),
            None if full_length => {
                let data_end = files.data_end(&file, file_len)?;
                (data_end.max(HEADER_BYTES), file_len < header.limit_bytes)
            }
            None => (file_len, false),
        };
        Ok(Self {
            header_damage,
            header,
            trailer,
            len: match trailer {
                Some(trailer) => u64::from(trailer.sealed_units) * 64,
                // A record lies in one extent.
                None => data_end
                    .next_multiple_of(EXTENT_BYTES)
                    .min(file_len)
                    .min(header.limit_bytes),
            },
            data_end,
            cut,
            path: path.to_owned(),
        })
    }

    /// Whether a crash leaves it no shorter than its limit until it is sealed.
    pub(crate) fn is_full_length(&self) -> bool {
        is_full_length(&self.header)
    }

    /// Whether FOOTERs lie at `end` that a trailer followed, at the very end of the file: then that alone is damaged.
    pub(crate) fn lost_its_trailer(
        &self,
        files: &Files,
        file: &OpenFile,
        end: u64,
    ) -> Result<bool, StorageError> {
        let file_len = files.len(file)?;
        let header_at = |at: u64| {
            let mut header = [0; size_of::<RecordHeader>()];
            let fits = at + header.len() as u64 <= file_len;
            (fits && files.read_at(file, &mut header, at).is_ok())
                .then(|| parse_header(&header).ok())
                .flatten()
        };
        let end = footer::chain_end(self.header.identity, end, header_at);
        Ok(end.is_some_and(|end| end + HEADER_BYTES == file_len))
    }

    /// Memory that its image takes, bytes.
    pub(crate) fn image_bytes(&self) -> u64 {
        let whole = self.len / EXTENT_BYTES * EXTENT_BYTES;
        whole + (self.len - whole).next_multiple_of(super::super::limits::PAGE_BYTES)
    }

    /// Its records from byte `from` on.
    pub(crate) fn span(&self, from: u64) -> Span {
        Span {
            identity: self.header.identity,
            from,
            begin_end: self.data_end,
            end: self.len,
            sealed: self.trailer.is_some(),
        }
    }

    /// Walks its records from byte `from` on, by reads of the open `file`.
    pub(crate) fn walk(
        &self,
        files: &Files,
        file: &OpenFile,
        from: u64,
        visit: impl FnMut(Found<'_>),
    ) -> Result<Scanned, StorageError> {
        scan(
            &mut FileSource::new(files, file, self.len.min(self.data_end)),
            &self.span(from),
            visit,
        )
    }

    /// Reads its image into memory of exactly its length, charged with `charges`, registered extent by extent.
    ///
    /// # Errors
    /// Why not, with the charges that were not used; `stop` says that it is not wanted any more.
    pub(crate) fn load(
        &self,
        files: &Files,
        domain: &dyn Domain,
        charges: Vec<Charge>,
        stop: impl Fn() -> bool,
    ) -> Result<Option<Image>, StorageError> {
        let mut piece = vec![0; READ_PIECE_BYTES.min(self.len as usize)];
        let file = files.open(&self.path)?;
        let mut image = Vec::new();
        let mut start = 0;
        for (charge, len) in charges.into_iter().zip(extent_lens(self.len)) {
            if stop() {
                return Ok(None);
            }
            let extent = Readable::charged(domain, charge, len as usize)?;
            let mut at = 0;
            while at < len {
                let some = (len - at).min(piece.len() as u64) as usize;
                files.read_at(&file, &mut piece[..some], start + at)?;
                extent.memory().write(at as usize, &piece[..some]);
                at += some as u64;
            }
            image.push(Arc::new(extent));
            start += len;
        }
        Ok(Some(image))
    }

    /// What is damaged in its image before byte `end`: first and end of each run.
    pub(crate) fn verify(&self, image: &[Arc<Readable>], end: u64) -> Result<Vec<(u64, u64)>, StorageError> {
        let span = Span {
            end: end.min(self.len),
            sealed: true,
            ..self.span(HEADER_BYTES)
        };
        Ok(scan(&mut ImageSource(image), &span, |_| {})?.damaged)
    }

    /// Seals it durably where the scan says that it ends: makes what counts durable, and only then writes FOOTERs and
    /// trailer, over the torn tail.
    ///
    /// What counts past byte `from` is written anew: where a sync had failed, the kernel holds pages for clean that
    /// never reached the device, and another sync alone would not write them.
    ///
    /// Where the disk is full `make_room` says whether it freed any. A trailer that does not fit at all is owed.
    ///
    /// # Errors
    /// Why what counts may not be durable, or the segment cannot be sealed.
    pub(crate) fn seal(
        &mut self,
        files: &Files,
        from: u64,
        scanned: &Scanned,
        (entries, operations): (&[FooterEntry], &[OperationEntry]),
        make_room: impl FnMut() -> bool,
    ) -> Result<Option<Owed>, StorageError> {
        let file = files.open(&self.path)?;
        let whole_len = match self.is_full_length() && !self.cut {
            true => self.header.limit_bytes,
            false => 0,
        };
        if files.len(&file)? < whole_len {
            // A repair: without its trailer it is not to look like one that was cut.
            files.truncate(&file, whole_len)?;
        }
        let end = scanned.end.min(self.len);
        let mut piece = vec![0; READ_PIECE_BYTES.min(end as usize)];
        let mut at = from;
        while at < end {
            let some = (end - at).min(piece.len() as u64) as usize;
            files.read_at(&file, &mut piece[..some], at)?;
            files.write_at(&file, &mut [IoSlice::new(&piece[..some])], at)?;
            at += some as u64;
        }
        files.sync(&file, SyncKind::Recovered)?;
        let ending = Ending {
            files,
            file: &file,
            number: self.header.segment,
            identity: self.header.identity,
            cut: self.cut,
            whole_len,
            end: scanned.end,
            sequences: scanned.sequences,
            footer_entries: FOOTER_ENTRIES_MAX,
        };
        let (number, identity, cut) = (ending.number, ending.identity, ending.cut);
        self.len = scanned.end;
        let trailer = match ending.seal(|footers| footers.push(entries), operations, make_room) {
            Err(error) if error.is_full() => {
                tracing::warn!(%error, segment = number, "a segment cannot be sealed yet");
                // Nothing that was known of it is given up before.
                let names = (number, identity);
                self.trailer = Some(segment::trailer(names, scanned.end, 0, scanned.sequences, 0));
                return Ok(Some(Owed {
                    path: self.path.clone(),
                    number,
                    identity,
                    cut,
                    end: scanned.end,
                    sequences: scanned.sequences,
                }));
            }
            sealed => sealed?,
        };
        self.trailer = Some(trailer);
        let checkpoint = checkpoint::path_of(&self.path);
        if checkpoint.exists()
            && let Err(error) = files.remove(&checkpoint)
        {
            tracing::warn!(%error, "the checkpoint of a sealed segment stays until the next start");
        }
        Ok(None)
    }
}
