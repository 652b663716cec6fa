//! One segment: its records against their CRCs and against what FOOTERs and checkpoint list, and every byte between.

use std::mem::offset_of;
use std::path::Path;

use kv_proto::crc::crc32c;
use kv_proto::footer::list_len;
use kv_proto::hash::KeyHash;
use kv_proto::layout::{
    BLOCK_BYTES, FooterEntry, KEY_MAX_BYTES, Locator, OperationEntry, RecordHeader, record_kind, units,
    wire_len,
};
use kv_proto::record::{parse_head, parse_header};

use super::super::files::OpenFile;
use super::super::footer;
use super::super::operations;
use super::super::recover::scan::{Found, Span, scan};
use super::super::recover::{SegmentFile, says_lost};
use super::super::segment::{HEADER_BYTES, widen};
use super::dataset::{Checking, Part, Value};
use super::report::Level;
use super::source::Bytes;
use super::tail;
use crate::error::StorageError;

const HEADER_LEN: u64 = size_of::<RecordHeader>() as u64;

/// What was found of a segment.
pub(super) struct Judged {
    pub(super) file: SegmentFile,
    /// Whether its records are whole and its header is not.
    pub(super) headless: bool,
    /// Whether its FOOTERs and its trailer are to be made anew.
    pub(super) unsealed: bool,
    /// Whether its FOOTERs list just the records that it has.
    pub(super) agrees: bool,
    /// Whether its file was cut short.
    pub(super) cut: bool,
    /// Operations that its FOOTERs list, where all of those validate; of all but the newest of these none are kept.
    pub(super) operations: Option<Vec<OperationEntry>>,
}

/// What FOOTERs or a checkpoint list.
#[derive(Default)]
pub(super) struct Listed {
    pub(super) entries: Vec<FooterEntry>,
    pub(super) operations: Vec<OperationEntry>,
    /// Every record below is listed.
    pub(super) end: u64,
}

/// The records of a segment as they are met.
struct Records<'a, 'b, 'c, 'w> {
    checking: &'a mut Checking<'c, 'w>,
    number: u32,
    path: &'a Path,
    bytes: &'a Bytes<'b>,
    listed: &'a Listed,
    /// First listed entry that was not met.
    next: usize,
    /// End of the last record.
    end: u64,
    /// Between records: first and end.
    gaps: Vec<(u64, u64)>,
    missing: Vec<FooterEntry>,
    sequences: Option<(u64, u64)>,
    /// Whether records and list say the same.
    agree: bool,
    sound: bool,
}

impl Records<'_, '_, '_, '_> {
    fn damage(&mut self, offset: u64, key: Option<&[u8]>, what: String, remedy: &str) {
        self.checking
            .damage(Some(self.number), self.path, Some(offset), key, what, remedy);
    }

    fn record(&mut self, found: &Found<'_>) {
        let header = &found.header;
        let (offset, key) = (found.offset, Some(found.key));
        let wire = offset + wire_len(found.key.len() as u64, u64::from(header.value_len_bytes));
        if offset > self.end {
            self.gaps.push((self.end, offset));
        }
        self.end = wire.next_multiple_of(64);
        self.checking.reporter.summary.records += 1;
        if !self.checking.progress() {
            self.bytes.stop();
        }
        widen(&mut self.sequences, header.sequence);
        let mut entry = found.entry(&self.checking.hash_key.unwrap_or_default());
        self.compare(&mut entry, found);
        self.checking.gather(self.number, &entry);
        if found.damaged {
            self.sound = false;
            self.checking.lost_record(
                self.number,
                self.path,
                &entry,
                found.key,
                "its value does not have its CRC".to_owned(),
            );
            return;
        }
        if let Some(at) = self.bytes.not_zero(wire, self.end) {
            let what = format!("byte {at}, which pads the record, is not zero");
            self.damage(
                offset,
                key,
                what,
                "it counts for nothing; the record is whole; the device changes bytes",
            );
        }
        // Blocks were judged one by one.
        if found.value.len() > BLOCK_BYTES && crc32c(found.value) != header.value_crc {
            self.damage(
                offset,
                key,
                "the CRC of the whole value is not that of its blocks".to_owned(),
                "the value is as its blocks were written",
            );
        }
        self.remember(found, &entry);
    }

    /// Compares a record with what is listed of it.
    fn compare(&mut self, entry: &mut FooterEntry, found: &Found<'_>) {
        let entries = &self.listed.entries;
        while let Some(listed) = entries.get(self.next) {
            if listed.offset_units >= entry.offset_units {
                break;
            }
            self.missing.push(*listed);
            self.next += 1;
        }
        let listed = entries.get(self.next);
        let Some(listed) = listed.filter(|listed| listed.offset_units == entry.offset_units) else {
            if found.offset < self.listed.end {
                self.agree = false;
                let what = "the record is whole, and is not listed".to_owned();
                self.damage(found.offset, Some(found.key), what, REBUILT);
            }
            return;
        };
        self.next += 1;
        if self.checking.hash_key.is_none() {
            (entry.hash, entry.hash_high) = (listed.hash, listed.hash_high);
        }
        if entry != listed {
            self.agree = false;
            let what = format!("the record is listed otherwise: {listed:?} instead of {entry:?}");
            self.damage(found.offset, Some(found.key), what, REBUILT);
        }
    }

    /// Keeps what large values are held to.
    fn remember(&mut self, found: &Found<'_>, entry: &FooterEntry) {
        let header = &found.header;
        let place = (self.number, entry.offset_units);
        match header.kind {
            record_kind::PART => {
                self.checking.parts.insert(place, Part::of(header, entry));
            }
            record_kind::HEAD => match parse_head(found.value) {
                Ok((head, parts)) => {
                    let key = found.key.to_vec();
                    let value = Value::new(header, entry, head, parts, key);
                    self.checking.heads.insert(place, value);
                }
                Err(error) => {
                    self.sound = false;
                    let what = format!("the head of a large value says what cannot be: {error}");
                    self.checking
                        .lost_record(self.number, self.path, entry, found.key, what);
                }
            },
            _ => {}
        }
    }

    /// Judges what lies between the records; `damaged` are the runs in which there is none.
    fn between(&mut self, damaged: &[(u64, u64)]) {
        let rest = &self.listed.entries[self.next..];
        self.missing.extend_from_slice(rest);
        for gap in std::mem::take(&mut self.gaps) {
            let mut at = gap.0;
            for run in damaged.iter().filter(|run| run.0 >= gap.0 && run.1 <= gap.1) {
                self.filler(at, run.0);
                at = run.1;
            }
            self.filler(at, gap.1);
        }
        let mut missing = std::mem::take(&mut self.missing).into_iter().peekable();
        for run in damaged {
            let mut named = false;
            while let Some(entry) = missing.next_if(|entry| u64::from(entry.offset_units) * 64 < run.1) {
                named = true;
                self.lost(&entry, "the record's header, key or block CRCs are damaged");
            }
            // Where a record's value alone is damaged it was met.
            let met = self.checking.is_lost(self.number, run.0);
            self.sound = false;
            if !named && !met {
                let what = format!("bytes {} to {} hold no record that is whole", run.0, run.1);
                let key = self.key_that_may_be(*run);
                self.damage(run.0, key.as_deref(), what, UNNAMED);
            }
        }
        for entry in missing {
            self.agree = false;
            self.lost(&entry, "a record is listed here and there is none");
        }
    }

    /// The key that a record would have whose header is damaged, and not where it says the key's length.
    fn key_that_may_be(&self, run: (u64, u64)) -> Option<Vec<u8>> {
        let len = self
            .bytes
            .get(run.0 + offset_of!(RecordHeader, key_len_bytes) as u64, 2);
        let len = u16::from_le_bytes(len.try_into().ok()?);
        let fits = (1..=KEY_MAX_BYTES as u64).contains(&u64::from(len))
            && run.0 + HEADER_LEN + u64::from(len) <= run.1;
        fits.then(|| self.bytes.get(run.0 + HEADER_LEN, usize::from(len)))
    }

    /// A record that is listed and not there.
    fn lost(&mut self, entry: &FooterEntry, what: &str) {
        self.sound = false;
        let offset = u64::from(entry.offset_units) * 64;
        let key = self
            .bytes
            .get(offset + HEADER_LEN, usize::from(entry.key_len_bytes));
        let hash = KeyHash {
            slot: entry.hash,
            high: entry.hash_high,
        };
        let known = self
            .checking
            .hash_key
            .is_some_and(|hash_key| KeyHash::of(&hash_key, &key) == hash);
        let what = match known {
            true => what.to_owned(),
            false => format!("{what}; the key as it reads is damaged too"),
        };
        self.checking.gather(self.number, entry);
        self.checking
            .lost_record(self.number, self.path, entry, &key, what);
    }

    /// A gap that a FILLER covers.
    fn filler(&mut self, from: u64, end: u64) {
        if let Some(at) = self.bytes.not_zero((from + HEADER_LEN).min(end), end) {
            let what = format!("byte {at}, in a gap, is not zero");
            self.damage(
                from,
                None,
                what,
                "it counts for nothing; the device changes bytes",
            );
        }
    }
}

const REBUILT: &str = "--repair lists the records anew";
pub(super) const UNNAMED: &str = "which keys they were of is not known for certain: what was stored there last is lost, or an older value \
                       of its key is back; restore the dataset from its source";

impl Checking<'_, '_> {
    /// Checks one segment; nothing where its header does not validate.
    pub(crate) fn segment(&mut self, number: u32, path: &Path, is_last: bool) -> Result<(), StorageError> {
        self.reporter.summary.segments += 1;
        let file = match SegmentFile::open(self.files, path, number, self.id) {
            Ok(file) => file,
            // Its bytes may all be there.
            Err(error) if !says_lost(&error) => return Err(error),
            Err(error) => {
                self.lost_segments.insert(number);
                let what = format!("segment lost: {error}");
                let remedy = "none of its records can be served; restore this file, or the keys in it from their source";
                self.damage(Some(number), path, Some(0), None, what, remedy);
                return Ok(());
            }
        };
        match &file.header_damage {
            None => self.check_numbers(&file),
            Some(error) => {
                let what = format!("{error}; its trailer says the same");
                self.damage(Some(number), path, Some(0), None, what, "--repair writes it anew");
            }
        }
        let opened = self.files.open(path)?;
        let file_len = self.files.len(&opened)?;
        // The device is to be asked, not the page cache; and that has better uses than this.
        self.files.forget(&opened);
        let bytes = Bytes::new(self.files, &opened, file.data_end);
        let judged = match file.trailer.is_some() {
            true => self.sealed(file, &opened, &bytes, file_len)?,
            false => self.unsealed(file, &bytes, file_len, is_last)?,
        };
        self.files.forget(&opened);
        for (page, error) in bytes.take_unreadable() {
            let what = format!("cannot be read: {error}");
            let remedy = "the device loses data: copy what can be read to another";
            self.damage(Some(number), path, Some(page), None, what, remedy);
        }
        if judged.operations.is_some() {
            // They come in the order of their numbers.
            let older = self.judged.iter_mut().filter_map(|it| it.operations.as_mut());
            older.for_each(|operations| *operations = Vec::new());
        }
        self.judged.push(judged);
        Ok(())
    }

    fn sealed(
        &mut self,
        file: SegmentFile,
        opened: &OpenFile,
        bytes: &Bytes<'_>,
        file_len: u64,
    ) -> Result<Judged, StorageError> {
        let number = file.header.segment;
        let Some(trailer) = file.trailer else {
            return Err(StorageError::Busy("the segment is not sealed"));
        };
        let mut listed = Listed::default();
        let mut at = file.len;
        let mut padding = Vec::new();
        let is_bare = trailer.footer_count == 0;
        let footers = trailer;
        let read = footer::read(self.files, opened, &footers, |entries, operations| {
            let value = list_len(entries.len(), operations.len()) as u64;
            let end = at + wire_len(0, value);
            at += units(wire_len(0, value)) * 64;
            padding.push((end, at));
            listed.entries.extend_from_slice(entries);
            listed.operations.extend_from_slice(operations);
        });
        let valid = read.is_ok();
        if file.cut {
            self.cut(&file, file.len);
        }
        if is_bare && file.cut {
            // Nothing is said of what it held.
        } else if is_bare {
            let what = "no FOOTERs list its records: the disk was full when it was sealed".to_owned();
            let remedy = "the records are read instead, at each start; --repair lists them";
            self.tell(
                Level::Note,
                Some(number),
                &file.path,
                Some(at),
                None,
                what,
                remedy,
            );
        } else if let Err(error) = read {
            listed = Listed::default();
            let what = format!("a FOOTER does not validate: {error}");
            let remedy = "the records are read instead, at each start; --repair lists them anew";
            self.damage(Some(number), &file.path, Some(at), None, what, remedy);
        } else {
            listed.end = file.len;
        }
        for (from, end) in padding {
            if let Some(at) = bytes.not_zero(from, end) {
                let what = format!("byte {at}, which pads a FOOTER, is not zero");
                let remedy = "it counts for nothing; the device changes bytes";
                self.damage(Some(number), &file.path, Some(at), None, what, remedy);
            }
        }
        self.operations(&file, &file.path, &listed.operations, file.len);
        let span = file.span(HEADER_BYTES);
        let seen = self.records(&file, bytes, &listed, &[span])?;
        let known = (trailer.sequence_max != 0).then_some((trailer.sequence_min, trailer.sequence_max));
        let mut agree = seen.agree;
        if seen.sound && seen.sequences != known {
            agree = false;
            let what = format!(
                "the trailer says sequences {known:?}, the records have {:?}",
                seen.sequences
            );
            let at = Some(file_len - HEADER_BYTES);
            self.damage(
                Some(number),
                &file.path,
                at,
                None,
                what,
                "--repair writes it anew",
            );
        }
        Ok(Judged {
            headless: seen.sound && file.header_damage.is_some(),
            unsealed: seen.sound && !(valid && agree),
            agrees: seen.sound && valid && agree,
            cut: file.cut,
            operations: valid.then_some(listed.operations),
            file,
        })
    }

    fn unsealed(
        &mut self,
        mut file: SegmentFile,
        bytes: &Bytes<'_>,
        file_len: u64,
        is_last: bool,
    ) -> Result<Judged, StorageError> {
        let listed = self.checkpoint(&file)?;
        let number = file.header.segment;
        let known = listed.end.clamp(HEADER_BYTES, file.len.max(HEADER_BYTES));
        // As a start does it: all that is listed is durable, and behind it the longest valid prefix counts.
        let before = Span {
            end: known,
            sealed: true,
            ..file.span(HEADER_BYTES)
        };
        let spans = [before, file.span(known)];
        let seen = self.records(&file, bytes, &listed, &spans)?;
        let mut sound = seen.sound;
        if listed.end > file.len {
            sound = false;
            let what = format!("the file was cut short: {} bytes of it were durable", listed.end);
            let remedy = "what is listed behind its end is lost";
            self.damage(Some(number), &file.path, Some(file.len), None, what, remedy);
        }
        let ends = tail::judge(bytes, &file, seen.end, file_len);
        self.tail(&file, &ends, is_last);
        let older = !is_last && !file.is_full_length();
        // Of an older file that is not sealed nothing else says that it is whole.
        file.cut = !ends.is_sealed() && (file.cut || older && sound);
        Ok(Judged {
            unsealed: sound && (ends.is_sealed() || file.cut),
            cut: file.cut,
            headless: false,
            agrees: false,
            operations: None,
            file,
        })
    }

    /// Walks the records of a segment.
    fn records(
        &mut self,
        file: &SegmentFile,
        bytes: &Bytes<'_>,
        listed: &Listed,
        spans: &[Span],
    ) -> Result<Seen, StorageError> {
        let mut records = Records {
            checking: self,
            number: file.header.segment,
            path: &file.path,
            bytes,
            listed,
            next: 0,
            end: HEADER_BYTES,
            gaps: Vec::new(),
            missing: Vec::new(),
            sequences: None,
            agree: true,
            sound: true,
        };
        let mut damaged = Vec::new();
        let mut end = HEADER_BYTES;
        for span in spans {
            let mut source = bytes;
            let scanned = scan(&mut source, span, |found| records.record(&found))?;
            end = scanned.end;
            damaged.extend(scanned.damaged);
        }
        if records.end < end {
            let gap = (records.end, end);
            records.gaps.push(gap);
        }
        records.between(&damaged);
        Ok(Seen {
            end,
            sequences: records.sequences,
            agree: records.agree,
            sound: records.sound,
        })
    }

    /// Whether what a list says of operations can be.
    pub(super) fn operations(
        &mut self,
        file: &SegmentFile,
        path: &Path,
        operations: &[OperationEntry],
        at: u64,
    ) {
        for entry in operations {
            let locator = &entry.locator;
            let is_delete = locator.segment == 0
                && locator.offset_units <= 1
                && locator.value_len_bytes == 0
                && locator.key_len_bytes == 0
                && locator.tag == 0;
            let floor = operations::is_floor(entry);
            let is_put = locator.segment != 0 && locator.offset_units != 0 && locator.key_len_bytes != 0;
            let can_be = match floor {
                true => *locator == Locator::default() && entry.operation != 0,
                false => is_delete || is_put,
            };
            if entry.client_id == 0 || !can_be {
                let what = format!("an operation is listed that cannot be: {entry:?}");
                let remedy = "a retry of it may not be known again";
                self.damage(Some(file.header.segment), path, Some(at), None, what, remedy);
            }
        }
    }
}

/// What the records of a segment are.
struct Seen {
    end: u64,
    sequences: Option<(u64, u64)>,
    agree: bool,
    sound: bool,
}

/// Whether a record header could begin there.
pub(super) fn header_at(bytes: &Bytes<'_>, offset: u64, file_len: u64) -> Option<RecordHeader> {
    if offset + HEADER_LEN > file_len {
        return None;
    }
    parse_header(&bytes.get(offset, HEADER_LEN as usize)).ok()
}
