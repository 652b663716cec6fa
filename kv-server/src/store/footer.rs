//! FOOTERs: what a sealed segment holds, listed behind its records, so that a start need not read those.
//!
//! A segment is sealed in this order, so that it can end at any step: FOOTERs, sync, trailer, sync; then the file is cut
//! behind the trailer, and synced. Until then it has its whole length: a shorter one without trailer was cut by somebody
//! else. Without a valid trailer at its end its checkpoint and its records count; FOOTERs that are there all the same are written over. Where the disk is
//! too full for them there are none: its records say the same.

use std::io::IoSlice;

use kv_proto::DecodeError;
use kv_proto::crc::{block_crcs, crc32c};
use kv_proto::footer::{encode_list, list_len, parse_list};
use kv_proto::layout::{
    FooterEntry, OperationEntry, PART_MAX_BYTES, RecordHeader, SegmentTrailer, prefix_len, record_kind,
    trailer_flag, units, wire_len,
};
use kv_proto::record::{
    RecordMeta, check_prefix, encode_prefix, header_prefix_len, judge_value, parse_header,
};
use zerocopy::IntoBytes;

use super::files::{Files, OpenFile};
use super::limits::FOOTER_ENTRIES_MAX;
use super::segment::{self, HEADER_BYTES};
use super::sync_kind::SyncKind;
use crate::error::StorageError;

const _: () = assert!(list_len(FOOTER_ENTRIES_MAX, FOOTER_ENTRIES_MAX) as u64 <= PART_MAX_BYTES);

/// A segment that ends.
pub(crate) struct Ending<'a> {
    pub(crate) files: &'a Files,
    pub(crate) file: &'a OpenFile,
    pub(crate) number: u32,
    pub(crate) identity: u64,
    /// Whether its file was cut short: then nothing is said of what it held, and its trailer says that.
    pub(crate) cut: bool,
    /// Length of the file until it is sealed, bytes; 0 of one that was cut, or grew as it was written.
    pub(crate) whole_len: u64,
    /// End of what counts, bytes; the file has nothing behind it that is to stay.
    pub(crate) end: u64,
    /// Lowest and highest sequence of its records.
    pub(crate) sequences: Option<(u64, u64)>,
    /// Most records, and most operations, that one FOOTER lists: [`FOOTER_ENTRIES_MAX`], but in a test.
    pub(crate) footer_entries: usize,
}

impl Ending<'_> {
    /// Seals the segment durably: `list` gives every record of it, in order, to the writer of its FOOTERs. Its trailer.
    ///
    /// Where the disk is full `make_room` says whether it freed any; after that the segment gets no FOOTERs.
    ///
    /// # Errors
    /// Why it is not sealed; a full disk where not even its trailer fits.
    pub(crate) fn seal(
        &self,
        mut list: impl FnMut(&mut Writer<'_>) -> Result<(), StorageError>,
        operations: &[OperationEntry],
        mut make_room: impl FnMut() -> bool,
    ) -> Result<SegmentTrailer, StorageError> {
        if self.cut {
            // FOOTERs might make it as long as a whole one, and nothing would say that it is not.
            return self.without_footers();
        }
        loop {
            match self.with_footers(&mut list, operations) {
                Err(error) if error.is_full() => {
                    // It has better use for what is there of them.
                    self.clear()?;
                    if !make_room() {
                        tracing::warn!(%error, segment = self.number, "no room to list the records of a segment: each start reads them until they are compacted, or listed by `kv-server check --repair`");
                        return self.without_footers();
                    }
                }
                sealed => return sealed,
            }
        }
    }

    /// Seals the segment with its trailer alone.
    ///
    /// # Errors
    /// Why it is not sealed.
    pub(crate) fn without_footers(&self) -> Result<SegmentTrailer, StorageError> {
        self.finish(self.end, 0)
    }

    /// Takes out what lies behind the records, where sealing failed.
    ///
    /// # Errors
    /// Why it is still there, in part.
    pub(crate) fn clear(&self) -> Result<(), StorageError> {
        if self.files.len(self.file)? < self.whole_len {
            // It failed at its very end: without trailer it is not to look like a file that was cut.
            self.files.truncate(self.file, self.whole_len)?;
        }
        self.files.punch(self.file, self.end)
    }

    fn with_footers(
        &self,
        list: &mut impl FnMut(&mut Writer<'_>) -> Result<(), StorageError>,
        operations: &[OperationEntry],
    ) -> Result<SegmentTrailer, StorageError> {
        let mut writer = Writer {
            ending: self,
            at: self.end,
            count: 0,
            entries: Vec::new(),
            value: Vec::new(),
        };
        list(&mut writer)?;
        writer.finish(operations)?;
        self.files.sync(self.file, SyncKind::Footers)?;
        self.finish(writer.at, writer.count)
    }

    fn finish(&self, at: u64, footers: u32) -> Result<SegmentTrailer, StorageError> {
        let flags = if self.cut { trailer_flag::CUT } else { 0 };
        let names = (self.number, self.identity);
        let trailer = segment::trailer(names, self.end, footers, self.sequences, flags);
        self.files
            .write_at(self.file, &mut [IoSlice::new(trailer.as_bytes())], at)?;
        self.files.sync(self.file, SyncKind::Trailer)?;
        let end = at + HEADER_BYTES;
        if self.files.len(self.file)? > end {
            self.files.truncate(self.file, end)?;
            self.files.sync(self.file, SyncKind::Trailer)?;
        }
        Ok(trailer)
    }
}

/// Writes FOOTERs one behind the other.
pub(crate) struct Writer<'a> {
    ending: &'a Ending<'a>,
    at: u64,
    count: u32,
    entries: Vec<FooterEntry>,
    value: Vec<u8>,
}

impl Writer<'_> {
    /// Lists the next records.
    pub(crate) fn push(&mut self, mut entries: &[FooterEntry]) -> Result<(), StorageError> {
        while !entries.is_empty() {
            let some = entries.len().min(self.ending.footer_entries - self.entries.len());
            self.entries.extend_from_slice(&entries[..some]);
            entries = &entries[some..];
            if self.entries.len() == self.ending.footer_entries {
                self.write(&[])?;
            }
        }
        Ok(())
    }

    fn finish(&mut self, operations: &[OperationEntry]) -> Result<(), StorageError> {
        let most = self.ending.footer_entries;
        let (first, rest) = operations.split_at(operations.len().min(most));
        self.write(first)?;
        rest.chunks(most)
            .try_for_each(|operations| self.write(operations))
    }

    /// Writes a FOOTER of the entries gathered.
    fn write(&mut self, operations: &[OperationEntry]) -> Result<(), StorageError> {
        self.value.clear();
        encode_list(&self.entries, operations, &mut self.value);
        self.entries.clear();
        let meta = RecordMeta {
            kind: record_kind::FOOTER,
            part: self.count,
            sequence: 0,
            segment_identity: self.ending.identity,
            client_id: 0,
            operation: 0,
            durable_units: (self.ending.end / 64) as u32,
        };
        let mut prefix = Vec::new();
        let len = self.value.len() as u32;
        encode_prefix(
            &meta,
            &[],
            len,
            crc32c(&self.value),
            &block_crcs(&self.value),
            &mut prefix,
        );
        let stored = units((prefix.len() + self.value.len()) as u64) * 64;
        self.value.resize(stored as usize - prefix.len(), 0);
        let mut slices = [IoSlice::new(&prefix), IoSlice::new(&self.value)];
        self.ending
            .files
            .write_at(self.ending.file, &mut slices, self.at)?;
        self.at += stored;
        self.count += 1;
        Ok(())
    }
}

/// Gives every record and every operation that the FOOTERs of a sealed segment list to `sink`, FOOTER by FOOTER.
///
/// # Errors
/// [`StorageError::Damaged`] where the FOOTERs do not validate or there are none; [`StorageError::Io`]. What `sink`
/// was given until then is true all the same.
pub(crate) fn read(
    files: &Files,
    file: &OpenFile,
    trailer: &SegmentTrailer,
    mut sink: impl FnMut(&[FooterEntry], &[OperationEntry]),
) -> Result<(), StorageError> {
    let damaged = |source| StorageError::Damaged {
        path: file.path().to_owned(),
        source,
    };
    if trailer.footer_count == 0 {
        return Err(damaged(range("footer_count", 0)));
    }
    let file_len = files.len(file)?;
    let mut reader = Reader {
        files,
        file,
        trailer,
        at: u64::from(trailer.footer_units) * 64,
        // The trailer comes behind the last one.
        end: file_len.saturating_sub(HEADER_BYTES),
        value: Vec::new(),
    };
    let mut listed = 1;
    for part in 0..trailer.footer_count {
        let len = reader.next(part)?.map_err(damaged)?;
        let (entries, operations) = parse_list(&reader.value.as_bytes()[..len]).map_err(damaged)?;
        let first = entries
            .first()
            .map_or(listed, |first| u64::from(first.offset_units));
        let end = entries.last().map_or(listed, FooterEntry::end_units);
        if first < listed || end > u64::from(trailer.sealed_units) {
            return Err(damaged(range("offset_units", first)));
        }
        listed = end;
        sink(entries, operations);
    }
    if reader.at != reader.end {
        return Err(damaged(range("footer_count", u64::from(trailer.footer_count))));
    }
    Ok(())
}

/// End of the FOOTERs of a segment that begin at `from`, by their headers alone, which `header_at` gives; `None` where
/// there are none.
pub(crate) fn chain_end(
    identity: u64,
    from: u64,
    mut header_at: impl FnMut(u64) -> Option<RecordHeader>,
) -> Option<u64> {
    let (mut at, mut count) = (from, 0);
    while let Some(header) = header_at(at)
        && header.kind == record_kind::FOOTER
        && header.segment_identity == identity
        && header.part == count
    {
        at += units(wire_len(0, u64::from(header.value_len_bytes))) * 64;
        count += 1;
    }
    (count > 0).then_some(at)
}

fn range(field: &'static str, value: u64) -> DecodeError {
    DecodeError::Range {
        what: "footer",
        field,
        value,
    }
}

struct Reader<'a> {
    files: &'a Files,
    file: &'a OpenFile,
    trailer: &'a SegmentTrailer,
    at: u64,
    end: u64,
    /// Of `u64`, for what it holds is to be aligned.
    value: Vec<u64>,
}

impl Reader<'_> {
    /// Reads FOOTER `part` and judges it: the length of its value, which is in `self.value` then.
    fn next(&mut self, part: u32) -> Result<Result<usize, DecodeError>, StorageError> {
        let mut header = [0; size_of::<RecordHeader>()];
        if self.at + header.len() as u64 > self.end {
            return Ok(Err(range("footer_units", self.at / 64)));
        }
        self.files.read_at(self.file, &mut header, self.at)?;
        let header = match parse_header(&header) {
            Ok(header) => header,
            Err(error) => return Ok(Err(error)),
        };
        let value_len = u64::from(header.value_len_bytes);
        let next = self.at + units(prefix_len(0, value_len) + value_len) * 64;
        if header.kind != record_kind::FOOTER || header.part != part {
            return Ok(Err(range("kind", u64::from(header.kind))));
        }
        if header.segment_identity != self.trailer.identity
            || header.durable_units != self.trailer.sealed_units
        {
            return Ok(Err(range("segment_identity", header.segment_identity)));
        }
        if value_len > PART_MAX_BYTES || next > self.end {
            return Ok(Err(range("value_len_bytes", value_len)));
        }
        let mut prefix = vec![0; header_prefix_len(&header) as usize];
        self.files.read_at(self.file, &mut prefix, self.at)?;
        if let Err(error) = check_prefix(&prefix) {
            return Ok(Err(error));
        }
        let len = value_len as usize;
        self.value.resize(len.div_ceil(size_of::<u64>()), 0);
        let value = &mut self.value.as_mut_bytes()[..len];
        self.files
            .read_at(self.file, value, self.at + prefix.len() as u64)?;
        if judge_value(&prefix, &header, value).is_err() {
            return Ok(Err(range("value_crc", u64::from(header.value_crc))));
        }
        self.at = next;
        Ok(Ok(len))
    }
}
