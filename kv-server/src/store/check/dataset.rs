//! One dataset: its segments, then what they say together.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::Path;

use kv_proto::crc::combine;
use kv_proto::hash::KeyHash;
use kv_proto::layout::{FooterEntry, HeadValue, Locator, PartRef, RecordHeader, record_kind};
use kv_proto::parts::part_len_bytes;

use super::super::files::Files;
use super::super::footer;
use super::super::limits::{CHECK_FINDINGS_MAX, REBUILD_BYTES_MAX, START_THREADS_MAX};
use super::super::recover::SegmentFile;
use super::super::recover::gather::Gather;
use super::super::recover::rebuild::{Newest, RECORD_BYTES_MAX, resolve};
use super::report::{Finding, Level, Reporter};
use super::segment::Judged;
use crate::error::StorageError;

/// Segment and offset in units.
type Place = (u32, u32);

/// A PART that is whole, and what its head must say of it.
pub(super) struct Part {
    writer: Writer,
    part: u32,
    len_bytes: u32,
    value_crc: u32,
}

/// Who wrote a piece of a large value.
struct Writer {
    client: u64,
    operation: u64,
    sequence: u64,
    hash: (u64, u64),
}

impl Writer {
    fn of(header: &RecordHeader, entry: &FooterEntry) -> Self {
        Self {
            client: header.client_id,
            operation: header.operation,
            sequence: header.sequence,
            hash: (entry.hash, entry.hash_high),
        }
    }

    fn wrote(&self, part: &Self) -> bool {
        (self.client, self.operation, self.hash) == (part.client, part.operation, part.hash)
            && part.sequence <= self.sequence
    }
}

impl Part {
    pub(super) fn of(header: &RecordHeader, entry: &FooterEntry) -> Self {
        Self {
            writer: Writer::of(header, entry),
            part: header.part,
            len_bytes: header.value_len_bytes,
            value_crc: header.value_crc,
        }
    }
}

/// A HEAD that is whole.
pub(super) struct Value {
    writer: Writer,
    head: HeadValue,
    parts: Vec<PartRef>,
    key: Vec<u8>,
}

impl Value {
    pub(super) fn new(
        header: &RecordHeader,
        entry: &FooterEntry,
        head: HeadValue,
        parts: Vec<PartRef>,
        key: Vec<u8>,
    ) -> Self {
        Self {
            writer: Writer::of(header, entry),
            head,
            parts,
            key,
        }
    }
}

/// A record that is not whole, until it is known whether it is what its key has.
struct Lost {
    finding: Finding,
    place: Place,
    hash: KeyHash,
    kind: u8,
}

/// A dataset that is checked.
pub(crate) struct Checking<'a, 'w> {
    pub(super) files: &'a Files,
    pub(super) reporter: &'a mut Reporter<'w>,
    /// Its name; its id where that is not known.
    pub(crate) name: String,
    pub(super) id: [u8; 16],
    /// Not known where its description is damaged.
    pub(crate) hash_key: Option<[u8; 16]>,
    /// Every number below may have been used, and every epoch up to this; not known where the superblock is damaged.
    pub(super) numbers: Option<(u32, u64)>,
    pub(super) segment_bytes: Option<u64>,
    /// Records of a range of the hashes; none where what the keys have is not asked.
    pub(super) gather: Option<Gather>,
    pub(super) heads: HashMap<Place, Value>,
    pub(super) parts: HashMap<Place, Part>,
    pub(super) lost_segments: BTreeSet<u32>,
    pub(super) judged: Vec<Judged>,
    lost: Vec<Lost>,
    lost_places: HashSet<Place>,
}

impl<'a, 'w> Checking<'a, 'w> {
    pub(crate) fn new(
        files: &'a Files,
        reporter: &'a mut Reporter<'w>,
        id: [u8; 16],
        numbers: Option<(u32, u64)>,
    ) -> Self {
        Self {
            files,
            reporter,
            name: super::super::directory_name(&id),
            id,
            hash_key: None,
            numbers,
            segment_bytes: None,
            gather: None,
            heads: HashMap::new(),
            parts: HashMap::new(),
            lost_segments: BTreeSet::new(),
            judged: Vec::new(),
            lost: Vec::new(),
            lost_places: HashSet::new(),
        }
    }

    pub(super) fn progress(&mut self) -> bool {
        self.reporter.progress(self.files.read_bytes())
    }

    fn finding(&self, level: Level, path: &Path, what: String, remedy: &str) -> Finding {
        Finding {
            level,
            dataset: Some(self.name.clone()),
            segment: None,
            offset: None,
            key: None,
            path: path.to_owned(),
            what,
            remedy: remedy.to_owned(),
        }
    }

    #[expect(clippy::too_many_arguments, reason = "a finding has as many fields")]
    pub(super) fn tell(
        &mut self,
        level: Level,
        segment: Option<u32>,
        path: &Path,
        offset: Option<u64>,
        key: Option<&[u8]>,
        what: String,
        remedy: &str,
    ) {
        let finding = Finding {
            segment,
            offset,
            key: key.map(<[u8]>::to_vec),
            ..self.finding(level, path, what, remedy)
        };
        self.reporter.found(&finding);
    }

    pub(super) fn damage(
        &mut self,
        segment: Option<u32>,
        path: &Path,
        offset: Option<u64>,
        key: Option<&[u8]>,
        what: String,
        remedy: &str,
    ) {
        self.tell(Level::Damage, segment, path, offset, key, what, remedy);
    }

    /// Notes a record that is not whole: told of when it is known what its key has.
    pub(super) fn lost_record(
        &mut self,
        segment: u32,
        path: &Path,
        entry: &FooterEntry,
        key: &[u8],
        what: String,
    ) {
        let place = (segment, entry.offset_units);
        if self.lost.len() == CHECK_FINDINGS_MAX {
            self.reporter.summary.damage += 1;
            self.reporter.summary.untold += 1;
            return;
        }
        self.lost_places.insert(place);
        self.lost.push(Lost {
            finding: Finding {
                segment: Some(segment),
                offset: Some(u64::from(entry.offset_units) * 64),
                key: Some(key.to_vec()),
                ..self.finding(Level::Damage, path, what, "")
            },
            place,
            hash: KeyHash {
                slot: entry.hash,
                high: entry.hash_high,
            },
            kind: entry.kind,
        });
    }

    /// Whether the record at this offset is noted as not whole.
    pub(super) fn is_lost(&self, segment: u32, offset: u64) -> bool {
        self.lost_places.contains(&(segment, (offset / 64) as u32))
    }

    /// Whether the checkpoint of this segment counts.
    pub(super) fn wants_checkpoint(&self, number: u32) -> bool {
        let is_unsealed = |it: &Judged| it.file.header.segment == number && it.file.trailer.is_none();
        self.lost_segments.contains(&number) || self.judged.iter().any(is_unsealed)
    }

    /// Whether the numbers in a segment's header can be.
    pub(super) fn check_numbers(&mut self, file: &SegmentFile) {
        let header = &file.header;
        let number = header.segment;
        let remedy = "the superblock or the description is older than this file: were they restored?";
        if let Some((next, epoch)) = self.numbers
            && (number >= next || header.epoch > epoch)
        {
            let what = format!(
                "segment {number} of epoch {}, and the superblock says numbers below {next} and epoch {epoch}",
                header.epoch
            );
            self.damage(Some(number), &file.path, Some(0), None, what, remedy);
        }
        if let Some(bytes) = self.segment_bytes
            && header.limit_bytes != bytes
        {
            let what = format!("segment of {} bytes, in a dataset of {bytes}", header.limit_bytes);
            self.damage(Some(number), &file.path, Some(0), None, what, remedy);
        }
    }

    /// Has what the segments say of their keys gathered.
    pub(super) fn begin(&mut self) {
        self.gather = Some(gather_from(0));
    }

    /// Notes a record for what its key has.
    pub(super) fn gather(&self, segment: u32, entry: &FooterEntry) {
        if let Some(gather) = &self.gather {
            gather.take(0, segment, std::slice::from_ref(entry));
        }
    }

    /// Says what the segments say together: what each key has, and whether that is whole. Where the records are too many
    /// for one pass, what the segments list is read again for each range of the hashes, as at a start.
    pub(super) fn resolve(&mut self) -> Result<(), StorageError> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let mut named = HashSet::new();
        let mut has = HashMap::new();
        while let Some(gather) = self.gather.take() {
            let (spreads, next, _) = gather.finish();
            let newest = resolve(spreads, threads.min(START_THREADS_MAX));
            self.reporter.summary.keys += newest.live.len() as u64;
            named.extend(self.check_heads(&newest));
            let lost = self.lost.iter().map(|lost| lost.hash);
            has.extend(lost.filter_map(|hash| Some(((hash.slot, hash.high), newest.of(hash)?))));
            drop(newest);
            if let Some(first) = next {
                self.gather = Some(gather_from(first));
                self.again()?;
            }
        }
        self.tell_lost(Some(&named), |hash| has.get(&(hash.slot, hash.high)).copied());
        Ok(())
    }

    /// Gathers the records of all segments again, and says nothing: what there is to say of them was said.
    fn again(&mut self) -> Result<(), StorageError> {
        let judged = std::mem::take(&mut self.judged);
        let (lost, places) = (std::mem::take(&mut self.lost), self.lost_places.clone());
        let summary = self.reporter.summary;
        self.reporter.silent = true;
        let read = judged.iter().try_for_each(|it| self.entries_again(it));
        self.reporter.silent = false;
        self.reporter.summary = summary;
        (self.judged, self.lost, self.lost_places) = (judged, lost, places);
        read
    }

    fn entries_again(&mut self, judged: &Judged) -> Result<(), StorageError> {
        let number = judged.file.header.segment;
        if let (true, Some(trailer)) = (judged.agrees, &judged.file.trailer) {
            let opened = self.files.open(&judged.file.path)?;
            let gather = &self.gather;
            return footer::read(self.files, &opened, trailer, |entries, _| {
                if let Some(gather) = gather {
                    gather.take(0, number, entries);
                }
            });
        }
        self.segment(number, &judged.file.path, false)
    }

    /// Tells of the records that are not whole, and what follows, where `newest` says where the VALUE or HEAD of a key
    /// lies. `named` are the PARTs of all that; without, any of a key that has a value may be.
    pub(crate) fn tell_lost(
        &mut self,
        named: Option<&HashSet<Place>>,
        newest: impl Fn(KeyHash) -> Option<Locator>,
    ) {
        for mut lost in std::mem::take(&mut self.lost) {
            let has = newest(lost.hash);
            let is_newest = has.is_some_and(|it| (it.segment, it.offset_units) == lost.place);
            let is_named = named.map_or(has.is_some(), |named| named.contains(&lost.place));
            lost.finding.remedy = match lost.kind {
                _ if is_newest => STORE_AGAIN,
                record_kind::PART if is_named => STORE_AGAIN,
                record_kind::TOMBSTONE if has.is_none() => "the key is deleted all the same",
                _ => "its key has another value, or none: nothing that is read",
            }
            .to_owned();
            self.reporter.found(&lost.finding);
        }
    }

    /// Holds every large value that is there to its parts; places of all those parts.
    fn check_heads(&mut self, newest: &Newest) -> HashSet<Place> {
        let mut named = HashSet::new();
        for at in &newest.heads {
            let place = (at.segment, at.offset_units);
            // Not whole: it is told of anyway.
            let Some(value) = self.heads.get(&place) else {
                continue;
            };
            let (mut crc, mut whole, mut wrong) = (0, true, Vec::new());
            for (index, part) in (0..).zip(&value.parts) {
                let place = (part.segment, part.offset_units);
                named.insert(place);
                let len_bytes = part_len_bytes(&value.head, index);
                let found = self.parts.get(&place).filter(|found| {
                    found.part == index
                        && Some(found.len_bytes) == len_bytes
                        && value.writer.wrote(&found.writer)
                });
                if let Some(found) = found {
                    crc = combine(crc, found.value_crc, u64::from(found.len_bytes));
                } else {
                    whole = false;
                    // Where it is damaged it is told of as that.
                    if !self.lost_places.contains(&place) {
                        let (segment, offset) = (part.segment, part.offset_units * 64);
                        wrong.push(format!(
                            "part {index}, in segment {segment} at {offset}, is not there"
                        ));
                    }
                }
            }
            if whole && crc != value.head.total_crc {
                wrong.push("its parts are whole, and together they do not have its CRC".to_owned());
            }
            let key = value.key.clone();
            for what in wrong {
                let file = self.judged.iter().find(|it| it.file.header.segment == at.segment);
                let path = file.map(|it| it.file.path.clone()).unwrap_or_default();
                let offset = Some(at.offset_bytes());
                self.damage(Some(at.segment), &path, offset, Some(&key), what, STORE_AGAIN);
            }
        }
        named
    }
}

/// Room for the records from a hash on.
fn gather_from(first: u64) -> Gather {
    Gather::new(first, REBUILD_BYTES_MAX / RECORD_BYTES_MAX, 1)
}

const STORE_AGAIN: &str =
    "this is what the key has: it is served as an error; store it again from its source";
