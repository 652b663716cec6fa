//! Bringing a dataset back from its files.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use kv_fabric::Domain;
use kv_proto::bucket::IndexScope;
use kv_proto::hash::KeyHash;
use kv_proto::layout::{
    FooterEntry, Locator, OperationEntry, SegmentTrailer, record_kind, segment_state, units,
};
use kv_proto::record::parse_head;

use super::compact::footprint::Footprint;
use super::dataset::{Contents, Figures};
use super::description::Description;
use super::files::Call;
use super::footer;
use super::index::{Index, Place};
use super::operations::{Operations, outcome};
use super::segment::{HEADER_BYTES, Segment, widen};
use super::{Committed, Shared, parse_segment_name};
use crate::error::StorageError;

mod load;
pub(crate) mod scan;
mod source;

pub(crate) use load::SegmentFile;
use scan::{Found, Scanned};

/// An epoch's sequences begin at its number, shifted left by this.
const EPOCH_SEQUENCE_BITS: u32 = 32;

/// The newest record of a key: it holds by (sequence, segment, offset).
#[derive(Debug, Clone, Copy)]
struct Newest {
    sequence: u64,
    locator: Locator,
    kind: u8,
}

/// Segment files of a dataset, judged; what cannot be read is lost.
pub(crate) struct Opened {
    files: BTreeMap<u32, Result<SegmentFile, StorageError>>,
}

impl Opened {
    /// Judges every segment of the dataset in `directory`, one at a time.
    ///
    /// # Errors
    /// Why a segment could not be judged that may be whole: nothing is served without it.
    pub(crate) fn new(shared: &Shared, directory: &Path, dataset: [u8; 16]) -> Result<Self, StorageError> {
        let mut files = BTreeMap::new();
        for name in shared.files.names(directory)? {
            let path = directory.join(&name);
            if name.ends_with(".new") {
                shared.files.remove(&path)?;
            } else if let Some(number) = parse_segment_name(&name) {
                shared.home.skip_segment_numbers(number);
                let file = SegmentFile::open(&shared.files, &path, number, dataset);
                match file {
                    Err(error) if !says_lost(&error) => return Err(error),
                    file => files.insert(number, file),
                };
            } else if name != "dataset" {
                tracing::warn!(path = %path.display(), "is no file of a dataset; it is left alone");
            }
        }
        Ok(Self { files })
    }

    /// Whether the dataset has no segment, not even a lost one.
    pub(crate) fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Memory that all its images take, bytes.
    pub(crate) fn image_bytes(&self) -> u64 {
        self.files.values().flatten().map(SegmentFile::image_bytes).sum()
    }
}

/// What all segments together say.
#[derive(Default)]
struct Gathered {
    newest: HashMap<(u64, u64), Newest>,
    operations: Operations,
    /// Operations that the FOOTERs of the newest segment list which has some.
    listed: Option<(u32, Vec<OperationEntry>)>,
    figures: Figures,
    sequence_max: u64,
}

impl Gathered {
    fn take(&mut self, segment: u32, entry: &FooterEntry) {
        self.sequence_max = self.sequence_max.max(entry.sequence);
        if entry.kind == record_kind::PART {
            return;
        }
        let newest = Newest {
            sequence: entry.sequence,
            locator: locator(segment, entry),
            kind: entry.kind,
        };
        let place = |newest: &Newest| {
            (
                newest.sequence,
                newest.locator.segment,
                newest.locator.offset_units,
            )
        };
        self.newest
            .entry((entry.hash, entry.hash_high))
            .and_modify(|known| {
                if place(&newest) > place(known) {
                    *known = newest;
                }
            })
            .or_insert(newest);
    }

    /// Takes a record that was walked over, and the operation that it tells of.
    fn take_found(&mut self, segment: u32, found: &Found<'_>, entry: &FooterEntry) {
        self.take(segment, entry);
        let header = &found.header;
        if header.client_id == 0 || header.kind == record_kind::PART {
            return;
        }
        let deleted = header.kind == record_kind::TOMBSTONE;
        let outcome = Committed {
            sequence: header.sequence,
            locator: if deleted {
                Locator::default()
            } else {
                locator(segment, entry)
            },
            existed: header.part != 0,
        };
        self.operations
            .recovered(header.client_id, header.operation, outcome);
    }

    fn take_listed(&mut self, entries: &[OperationEntry]) {
        for entry in entries {
            self.sequence_max = self.sequence_max.max(entry.sequence);
            self.operations
                .recovered(entry.client_id, entry.operation, outcome(entry));
        }
    }

    fn report_damage(&self, segment: u32, damaged: &[(u64, u64)]) {
        for (first, end) in damaged {
            tracing::error!(
                segment,
                first,
                end,
                "durable bytes are damaged; they are kept and skipped"
            );
            self.figures.damaged_records.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn locator(segment: u32, entry: &FooterEntry) -> Locator {
    let hash = KeyHash {
        slot: entry.hash,
        high: entry.hash_high,
    };
    Locator {
        segment,
        offset_units: entry.offset_units,
        value_len_bytes: entry.value_len_bytes,
        key_len_bytes: entry.key_len_bytes,
        tag: hash.tag(),
    }
}

/// A segment that was not sealed, walked, with what its FOOTERs are to list.
struct Unsealed {
    file: SegmentFile,
    /// All before this was known to be durable.
    from: u64,
    scanned: Scanned,
    entries: Vec<FooterEntry>,
}

/// Brings a dataset back: loads its images, seals what was active, builds its index. Also the next sequence.
pub(crate) fn recover<D: Domain>(
    shared: &Shared,
    description: &Description,
    directory: &Path,
    opened: Opened,
    domain: &D,
) -> Result<(Contents<D>, u64), StorageError> {
    let place = Place {
        domain,
        budget: &shared.budget,
    };
    let mut gathered = Gathered::default();
    let mut segments = BTreeMap::new();
    let mut unsealed = Vec::new();
    let last = opened.files.keys().next_back().copied();
    for (number, file) in opened.files {
        let recovered = file.and_then(|file| {
            recover_segment(
                shared,
                &place,
                file,
                Some(number) == last,
                &description.hash_key,
                &mut gathered,
            )
        });
        let segment = match recovered {
            Ok((segment, open)) => {
                unsealed.extend(open);
                segment
            }
            Err(error) if !says_lost(&error) => return Err(error),
            Err(error) => {
                tracing::error!(%error, dataset = %description.name, segment = number, "segment lost: what lies in it cannot be served");
                lost(number, &gathered.figures)
            }
        };
        segments.insert(number, segment);
    }
    if let Some((_, listed)) = gathered.listed.take() {
        gathered.take_listed(&listed);
    }
    gathered.operations.all_recovered();
    // Only now all operations are known that their FOOTERs are to list.
    let operations = gathered.operations.entries();
    for mut open in unsealed {
        open.file.seal(
            &shared.files,
            open.from,
            &open.scanned,
            &open.entries,
            &operations,
        )?;
        if let Some(segment) = segments.get(&open.file.header.segment) {
            segment.standing.set_tells_operations();
        }
    }
    let mut live: Vec<((u64, u64), Newest)> = gathered.newest.drain().collect();
    live.retain(|(_, newest)| {
        let deleted = newest.kind == record_kind::TOMBSTONE;
        if let Some(segment) = segments.get(&newest.locator.segment).filter(|_| deleted) {
            segment
                .tally
                .add_tombstone(units(newest.locator.wire_len_bytes()) * 64);
        }
        !deleted
    });
    name_lost_parts(&live, &mut segments, &gathered.figures, directory);
    let scope = IndexScope {
        dataset: description.id,
        epoch: shared.home.epoch(),
    };
    let index = build_index(scope, &live, &segments, &place, &gathered.figures)?;
    let contents = Contents {
        index,
        segments,
        operations: gathered.operations,
        figures: gathered.figures,
    };
    // A lost segment may be back at a later start, with sequences that nothing else tells of: each epoch has its own.
    let sequence_next = gathered
        .sequence_max
        .saturating_add(1)
        .max(shared.home.epoch() << EPOCH_SEQUENCE_BITS);
    Ok((contents, sequence_next))
}

/// Whether an error says that the bytes of a file are gone. Any other is of the whole server, or may be over at the
/// next start: served without this file, older values and removed keys would come back.
pub(crate) fn says_lost(error: &StorageError) -> bool {
    match error {
        StorageError::Damaged { .. } => true,
        StorageError::Io { call, source, .. } => {
            *call == Call::Read.text()
                && (source.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error())
                    || matches!(
                        source.kind(),
                        io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof
                    ))
        }
        _ => false,
    }
}

fn lost<D: Domain>(number: u32, figures: &Figures) -> Arc<Segment<D>> {
    figures.lost_segments.fetch_add(1, Ordering::Relaxed);
    Arc::new(Segment::new(number, 0, segment_state::LOST))
}

/// Brings one segment back. What is not sealed is given back to be sealed.
fn recover_segment<D: Domain>(
    shared: &Shared,
    place: &Place<'_, D>,
    file: SegmentFile,
    is_last: bool,
    hash_key: &[u8; 16],
    gathered: &mut Gathered,
) -> Result<(Arc<Segment<D>>, Option<Unsealed>), StorageError> {
    let files = &shared.files;
    let number = file.header.segment;
    let from = HEADER_BYTES;
    let listed = file.trailer.is_some() && read_footers(shared, &file, gathered)?;
    if let Some(trailer) = &file.trailer {
        gathered.sequence_max = gathered.sequence_max.max(trailer.sequence_max);
    }
    let segment = file.load(files, place)?;
    if listed {
        gathered.report_damage(number, &file.verify(&segment, file.len)?);
        segment.set_sequences(file.trailer.as_ref().and_then(sequences));
        segment.publish(segment_state::SEALED, file.len);
        segment.standing.set_tells_operations();
        return Ok((segment, None));
    }
    let mut entries = Vec::new();
    let opened = files.open(&file.path)?;
    let mut scanned = file.walk(files, &opened, from, |found| {
        if found.damaged {
            tracing::error!(
                segment = number,
                offset = found.offset,
                "a record's value is damaged"
            );
        }
        let entry = found.entry(hash_key);
        gathered.take_found(number, &found, &entry);
        if file.trailer.is_none() {
            entries.push(entry);
        }
    })?;
    for entry in &entries {
        widen(&mut scanned.sequences, entry.sequence);
    }
    gathered.report_damage(number, &scanned.damaged);
    segment.set_sequences(scanned.sequences);
    segment.publish(segment_state::SEALED, scanned.end);
    if file.trailer.is_some() {
        return Ok((segment, None));
    }
    if !is_last {
        tracing::warn!(
            segment = number,
            end = scanned.end,
            "not sealed though a later segment exists: its file was cut short, or a write to it had failed"
        );
    }
    let unsealed = Unsealed {
        file,
        from,
        scanned,
        entries,
    };
    Ok((segment, Some(unsealed)))
}

/// Lowest and highest sequence that a trailer tells of.
fn sequences(trailer: &SegmentTrailer) -> Option<(u64, u64)> {
    (trailer.sequence_max != 0).then_some((trailer.sequence_min, trailer.sequence_max))
}

/// Reads the FOOTERs of a sealed segment; whether it has some and all validate.
fn read_footers(shared: &Shared, file: &SegmentFile, gathered: &mut Gathered) -> Result<bool, StorageError> {
    let Some(trailer) = file.trailer.as_ref().filter(|trailer| trailer.footer_count > 0) else {
        return Ok(false);
    };
    let number = file.header.segment;
    let opened = shared.files.open(&file.path)?;
    let mut operations = Vec::new();
    let read = footer::read(&shared.files, &opened, trailer, |entries, listed| {
        entries.iter().for_each(|entry| gathered.take(number, entry));
        operations.extend_from_slice(listed);
    });
    match read {
        Ok(()) => {
            if gathered
                .listed
                .as_ref()
                .is_none_or(|(newest, _)| *newest < number)
            {
                gathered.listed = Some((number, operations));
            }
            Ok(true)
        }
        Err(error) if says_lost(&error) => {
            tracing::error!(%error, segment = number, "its FOOTERs cannot be read; its records are");
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// Segments that heads name and that are not there.
fn name_lost_parts<D: Domain>(
    live: &[((u64, u64), Newest)],
    segments: &mut BTreeMap<u32, Arc<Segment<D>>>,
    figures: &Figures,
    directory: &Path,
) {
    let mut missing = BTreeSet::new();
    for (_, newest) in live.iter().filter(|(_, newest)| newest.kind == record_kind::HEAD) {
        let locator = &newest.locator;
        let mut value = vec![0; locator.value_len_bytes as usize];
        let there = segments.get(&locator.segment).is_some_and(|segment| {
            segment.read(locator.offset_bytes() + locator.prefix_len_bytes(), &mut value)
        });
        if let (true, Ok((_, parts))) = (there, parse_head(&value)) {
            missing.extend(
                parts
                    .iter()
                    .map(|part| part.segment)
                    .filter(|part| !segments.contains_key(part)),
            );
        }
    }
    for number in missing {
        tracing::error!(directory = %directory.display(), segment = number, "segment lost: its file is gone, and large values have parts in it");
        segments.insert(number, lost(number, figures));
    }
}

fn build_index<D: Domain>(
    scope: IndexScope,
    live: &[((u64, u64), Newest)],
    segments: &BTreeMap<u32, Arc<Segment<D>>>,
    place: &Place<'_, D>,
    figures: &Figures,
) -> Result<Index<D>, StorageError> {
    let mut entries = Vec::with_capacity(live.len());
    for ((slot, high), newest) in live {
        let hash = KeyHash {
            slot: *slot,
            high: *high,
        };
        entries.push((hash, newest.locator));
        let value = Footprint::of(&newest.locator, |number| segments.get(&number).cloned());
        for (number, bytes) in value.pieces() {
            if let Some(segment) = segments.get(&number) {
                segment.tally.add_live(bytes);
            }
        }
        figures
            .value_bytes
            .fetch_add(value.value_len_bytes, Ordering::Relaxed);
    }
    entries.sort_unstable_by_key(|(hash, _)| hash.slot);
    Index::build(scope, &entries, place)
}
