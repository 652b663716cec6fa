//! What lies behind the records of a segment that is not sealed: what a crash leaves, or damage.

use std::mem::offset_of;

use kv_proto::footer::list_len;
use kv_proto::layout::{CheckpointHeader, RecordHeader};
use kv_proto::record::header_prefix_len;

use super::super::recover::{SegmentFile, says_lost};
use super::super::segment::HEADER_BYTES;
use super::super::{checkpoint, footer};
use super::dataset::Checking;
use super::report::Level;
use super::segment::{Listed, UNNAMED, header_at};
use super::source::Bytes;
use crate::error::StorageError;

const CHUNK_HEADER_LEN: u64 = size_of::<CheckpointHeader>() as u64;

/// What lies behind the last record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tail {
    /// Nothing, or zeroes.
    Nothing { end: u64 },
    /// Less than a record: what a crash leaves.
    Torn { end: u64 },
    /// As much as a record, and none that is whole.
    Doubtful { end: u64 },
    /// FOOTERs without a trailer: what a crash in between leaves.
    Listing { end: u64 },
    /// FOOTERs, and a trailer that does not validate.
    Trailer { at: u64 },
}

impl Tail {
    /// Whether the segment was sealed.
    pub(super) fn is_sealed(&self) -> bool {
        matches!(self, Self::Trailer { .. })
    }
}

/// Judges what lies behind `end`, where the records of an unsealed segment end.
pub(super) fn judge(bytes: &Bytes<'_>, file: &SegmentFile, end: u64, file_len: u64) -> Tail {
    let footers = footer::chain_end(file.header.identity, end, |at| header_at(bytes, at, file_len));
    if let Some(at) = footers {
        return match at + HEADER_BYTES == file_len {
            true => Tail::Trailer { at },
            false => Tail::Listing { end },
        };
    }
    // Behind that is a hole.
    let file_len = file.data_end;
    let Some(first) = bytes.not_zero(end, file_len) else {
        return Tail::Nothing { end };
    };
    let whole = |header: RecordHeader, at: u64| {
        at + header_prefix_len(&header) + u64::from(header.value_len_bytes) <= file_len
    };
    let mut at = first / 64 * 64;
    while at < file_len {
        if header_at(bytes, at, file_len)
            .is_some_and(|header| header.segment_identity == file.header.identity && whole(header, at))
        {
            return Tail::Doubtful { end };
        }
        at += 64;
    }
    Tail::Torn { end }
}

impl Checking<'_, '_> {
    /// Tells how an unsealed segment ends.
    pub(super) fn tail(&mut self, file: &SegmentFile, tail: &Tail, is_last: bool) {
        let number = Some(file.header.segment);
        if file.cut && !tail.is_sealed() {
            return self.cut(file, file.data_end);
        }
        let seals = "the next start of the server seals it there";
        let (level, at, what, remedy) = match *tail {
            Tail::Trailer { at } => (
                Level::Damage,
                at,
                "the trailer does not validate, though FOOTERs lie before it",
                "the next start of the server, or --repair, seals it anew; nothing of it is lost",
            ),
            Tail::Doubtful { end } => (
                Level::Damage,
                end,
                "behind the last record that is whole lies one that is not, in its full length",
                "torn by a power cut, or damaged: nothing tells; the next start of the server cuts it off",
            ),
            _ if !is_last && !file.is_full_length() => (
                Level::Damage,
                file.len,
                "not sealed though a later segment exists: its file was cut short, or a write to it had failed",
                "what was cut off cannot be known; compare the dataset with its source",
            ),
            _ if !is_last => (
                Level::Note,
                file.len,
                "not sealed: a write to it had failed, or the disk was full",
                seals,
            ),
            Tail::Torn { end } => (
                Level::Note,
                end,
                "not sealed, and ends within a record that was never whole",
                seals,
            ),
            Tail::Listing { end } | Tail::Nothing { end } => (
                Level::Note,
                end,
                "not sealed: the server was not shut down",
                seals,
            ),
        };
        self.tell(level, number, &file.path, Some(at), None, what.to_owned(), remedy);
    }

    /// Tells of a file that was cut short, of which there is what lies before `at`.
    pub(super) fn cut(&mut self, file: &SegmentFile, at: u64) {
        let what = "its file was cut short: what lay behind this is lost".to_owned();
        let remedy = format!("{UNNAMED}; --repair accepts the loss");
        let number = Some(file.header.segment);
        self.tell(Level::Damage, number, &file.path, Some(at), None, what, &remedy);
    }

    /// What the checkpoint of an unsealed segment lists; every byte of it is judged.
    pub(super) fn checkpoint(&mut self, file: &SegmentFile) -> Result<Listed, StorageError> {
        let path = checkpoint::path_of(&file.path);
        let (number, identity) = (file.header.segment, file.header.identity);
        let mut listed = Listed::default();
        // End of the chunks that validate, and what pads them.
        let (mut end, mut padding) = (0, Vec::new());
        let known = checkpoint::read(self.files, &path, number, identity, |entries, operations| {
            let filled = end + CHUNK_HEADER_LEN + list_len(entries.len(), operations.len()) as u64;
            end = filled.next_multiple_of(64);
            padding.push((filled, end));
            listed.entries.extend_from_slice(entries);
            listed.operations.extend_from_slice(operations);
        })?;
        listed.end = known.covered;
        let opened = match self.files.open(&path) {
            Ok(opened) => opened,
            Err(StorageError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                return Ok(listed);
            }
            Err(error) if says_lost(&error) => {
                let what = format!("the checkpoint cannot be read: {error}");
                self.damage(Some(number), &path, None, None, what, WALKED);
                return Ok(listed);
            }
            Err(error) => return Err(error),
        };
        let len = self.files.len(&opened)?;
        let bytes = Bytes::new(self.files, &opened, len);
        for (from, end) in padding {
            if let Some(at) = bytes.not_zero(from, end.min(len)) {
                let what = format!("byte {at} of the checkpoint, which pads a chunk, is not zero");
                let remedy = "it counts for nothing; the device changes bytes";
                self.damage(Some(number), &path, Some(at), None, what, remedy);
            }
        }
        if bytes.not_zero(end.min(len), len).is_some() {
            // A crash while a chunk is appended leaves a part of it.
            let room = (len - end).checked_sub(CHUNK_HEADER_LEN);
            let short = room.is_none_or(|room| {
                let body_len = bytes.get(end + offset_of!(CheckpointHeader, body_len_bytes) as u64, 8);
                u64::from_le_bytes(body_len.try_into().unwrap_or_default()) > room
            });
            let level = if short { Level::Note } else { Level::Damage };
            let what = "a chunk of the checkpoint does not validate".to_owned();
            self.tell(level, Some(number), &path, Some(end), None, what, WALKED);
        }
        for (page, error) in bytes.take_unreadable() {
            let what = format!("the checkpoint cannot be read: {error}");
            self.damage(Some(number), &path, Some(page), None, what, WALKED);
        }
        self.operations(file, &path, &listed.operations, 0);
        Ok(listed)
    }
}

const WALKED: &str = "the records that it would list are walked instead, at the next start";
