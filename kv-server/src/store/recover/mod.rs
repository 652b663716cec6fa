//! Bringing a dataset back from its files: what their FOOTERs, checkpoints and tails say. Images come later.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use kv_fabric::Domain;
use kv_proto::bucket::IndexScope;
use kv_proto::layout::{
    FooterEntry, Locator, OperationEntry, SegmentTrailer, record_kind, segment_state, units,
};

use super::checkpoint;
use super::compact::footprint::Footprint;
use super::dataset::{Contents, Figures};
use super::description::Description;
use super::files::Call;
use super::footer;
use super::index::{Index, Place};
use super::limits::START_THREADS_MAX;
use super::operations::{self, Operations, outcome};
use super::segment::{HEADER_BYTES, Segment, widen};
use super::{Committed, Shared, lock, parse_segment_name};
use crate::error::StorageError;

mod load;
pub(crate) mod rebuild;
pub(crate) mod scan;
pub(crate) mod source;

pub(crate) use load::SegmentFile;
use rebuild::{Newest, Spread};
use scan::{Found, Scanned};

/// An epoch's sequences begin at its number, shifted left by this.
pub(crate) const EPOCH_SEQUENCE_BITS: u32 = 32;

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
        let mut checkpoints = Vec::new();
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
            } else if let Some(number) = checkpoint::parse_name(&name) {
                checkpoints.push((number, path));
            } else if name != "dataset" {
                tracing::warn!(path = %path.display(), "is no file of a dataset; it is left alone");
            }
        }
        for (number, path) in checkpoints {
            // A crash between sealing and removing leaves it behind.
            let wanted = files
                .get(&number)
                .is_some_and(|file| file.as_ref().map_or(true, |file| file.trailer.is_none()));
            if !wanted {
                shared.files.remove(&path)?;
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

/// An image that is to be loaded.
pub(crate) struct ToLoad<D: Domain> {
    pub(crate) file: SegmentFile,
    pub(crate) segment: Arc<Segment<D>>,
    /// Records before this were not looked at when the segment was brought back: damage in them is not known.
    pub(crate) unseen_end: u64,
}

/// A dataset that was brought back.
pub(crate) struct Recovered<D: Domain> {
    pub(crate) contents: Contents<D>,
    pub(crate) sequence_next: u64,
    pub(crate) images: Vec<ToLoad<D>>,
}

/// What is known of a segment that is there.
struct Known {
    file: SegmentFile,
    unseen_end: u64,
    /// Lowest and highest sequence.
    sequences: Option<(u64, u64)>,
    /// Whether its FOOTERs tell of operations.
    listed: bool,
    unsealed: Option<Unsealed>,
}

/// A segment that was not sealed, walked, with what its FOOTERs are to list.
struct Unsealed {
    /// All before this was known to be durable.
    from: u64,
    scanned: Scanned,
    entries: Vec<FooterEntry>,
}

/// Reads segments, several at a time.
struct Reading<'a> {
    shared: &'a Shared,
    hash_key: &'a [u8; 16],
    operations: Operations,
    /// Operations that the FOOTERs of the newest segment list which has some.
    listed: Mutex<Option<(u32, Vec<OperationEntry>)>>,
    figures: Figures,
    sequence_max: AtomicU64,
}

type Judged = (u32, Result<Known, StorageError>);

impl Reading<'_> {
    /// Reads what all files say, with at most `threads` threads.
    fn all(&self, files: Vec<SegmentFile>, threads: usize) -> (Vec<Judged>, Vec<Spread>) {
        let jobs: Vec<_> = files.into_iter().map(|file| Mutex::new(Some(file))).collect();
        let next = AtomicUsize::new(0);
        let work = || {
            let (mut judged, mut spread) = (Vec::new(), Spread::new());
            while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                if let Some(file) = lock(job).take() {
                    judged.push((file.header.segment, self.segment(file, &mut spread)));
                }
            }
            (judged, spread)
        };
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..threads.clamp(1, jobs.len().max(1)))
                .map(|_| scope.spawn(work))
                .collect();
            let (mut judged, mut spreads) = (Vec::new(), Vec::new());
            for worker in workers {
                match worker.join() {
                    Ok((some, spread)) => {
                        judged.extend(some);
                        spreads.push(spread);
                    }
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
            (judged, spreads)
        })
    }

    /// Reads what one segment says.
    fn segment(&self, file: SegmentFile, spread: &mut Spread) -> Result<Known, StorageError> {
        if let Some(error) = &file.header_damage {
            let number = file.header.segment;
            tracing::error!(%error, segment = number, "its header is damaged; its trailer says the same");
            self.figures.damaged_records.fetch_add(1, Ordering::Relaxed);
        }
        if let Some(trailer) = &file.trailer {
            self.met(trailer.sequence_max);
            if self.footers(&file, spread)? {
                return Ok(Known {
                    unseen_end: file.len,
                    sequences: sequences(trailer),
                    listed: true,
                    unsealed: None,
                    file,
                });
            }
        }
        let unsealed = self.walk(&file, spread)?;
        Ok(Known {
            unseen_end: unsealed.from.min(file.len),
            sequences: unsealed.scanned.sequences,
            listed: file.trailer.is_none(),
            unsealed: file.trailer.is_none().then_some(unsealed),
            file,
        })
    }

    /// Reads the FOOTERs of a sealed segment; whether it has some and all validate.
    fn footers(&self, file: &SegmentFile, spread: &mut Spread) -> Result<bool, StorageError> {
        let Some(trailer) = file.trailer.as_ref().filter(|trailer| trailer.footer_count > 0) else {
            return Ok(false);
        };
        let number = file.header.segment;
        let opened = self.shared.files.open(&file.path)?;
        let mut operations = Vec::new();
        let read = footer::read(&self.shared.files, &opened, trailer, |entries, listed| {
            entries.iter().for_each(|entry| spread.push(number, entry));
            operations.extend_from_slice(listed);
        });
        match read {
            Ok(()) => {
                let mut listed = lock(&self.listed);
                if listed.as_ref().is_none_or(|(newest, _)| *newest < number) {
                    *listed = Some((number, operations));
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

    /// Walks the records of a segment that no checkpoint covers.
    fn walk(&self, file: &SegmentFile, spread: &mut Spread) -> Result<Unsealed, StorageError> {
        let files = &self.shared.files;
        let (number, identity) = (file.header.segment, file.header.identity);
        let mut entries: Vec<FooterEntry> = Vec::new();
        let mut from = HEADER_BYTES;
        let is_sealed = file.trailer.is_some();
        if !is_sealed {
            let path = checkpoint::path_of(&file.path);
            let known = checkpoint::read(files, &path, number, identity, |records, operations| {
                entries.extend_from_slice(records);
                self.take_listed(operations);
            })?;
            self.met(known.sequence_max);
            from = known.covered;
        }
        entries.iter().for_each(|entry| spread.push(number, entry));
        let opened = files.open(&file.path)?;
        let mut scanned = file.walk(files, &opened, from, |found| {
            if found.damaged {
                tracing::error!(
                    segment = number,
                    offset = found.offset,
                    "a record's value is damaged"
                );
            }
            let entry = found.entry(self.hash_key);
            self.take_found(number, &found, &entry);
            spread.push(number, &entry);
            if !is_sealed {
                entries.push(entry);
            }
        })?;
        if from > file.len {
            // Its file was cut short below what was durable.
            scanned.damaged.push((file.len, from));
        }
        report_damage(&self.figures, number, &scanned.damaged);
        for entry in &entries {
            widen(&mut scanned.sequences, entry.sequence);
        }
        Ok(Unsealed {
            from,
            scanned,
            entries,
        })
    }

    /// Takes a record that was walked over, and the operation that it tells of.
    fn take_found(&self, segment: u32, found: &Found<'_>, entry: &FooterEntry) {
        self.met(found.header.sequence);
        take_operation(&self.operations, segment, found, entry);
    }

    fn take_listed(&self, entries: &[OperationEntry]) {
        for entry in entries {
            self.met(entry.sequence);
            self.operations
                .recovered(entry.client_id, entry.operation, outcome(entry));
        }
    }

    fn met(&self, sequence: u64) {
        self.sequence_max.fetch_max(sequence, Ordering::Relaxed);
    }
}

/// Takes the operation that a record tells of.
pub(crate) fn take_operation(operations: &Operations, segment: u32, found: &Found<'_>, entry: &FooterEntry) {
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
            operations::locator(segment, entry)
        },
        existed: header.part != 0,
    };
    operations.recovered(header.client_id, header.operation, outcome);
}

/// Lowest and highest sequence that a trailer tells of.
fn sequences(trailer: &SegmentTrailer) -> Option<(u64, u64)> {
    (trailer.sequence_max != 0).then_some((trailer.sequence_min, trailer.sequence_max))
}

/// Counts and names runs of bytes that are damaged.
pub(crate) fn report_damage(figures: &Figures, segment: u32, damaged: &[(u64, u64)]) {
    for (first, end) in damaged {
        tracing::error!(
            segment,
            first,
            end,
            "durable bytes are damaged; they are kept and skipped"
        );
        figures.damaged_records.fetch_add(1, Ordering::Relaxed);
    }
}

/// Brings a dataset back: learns what its segments hold, seals what was active, builds its index.
pub(crate) fn recover<D: Domain>(
    shared: &Arc<Shared>,
    description: &Description,
    directory: &Path,
    opened: Opened,
    domain: &D,
) -> Result<Recovered<D>, StorageError> {
    let place = Place {
        domain,
        budget: &shared.budget,
    };
    let reading = Reading {
        shared,
        hash_key: &description.hash_key,
        operations: Operations::default(),
        listed: Mutex::default(),
        figures: Figures::default(),
        sequence_max: AtomicU64::new(0),
    };
    let last = opened.files.keys().next_back().copied();
    let mut files = Vec::new();
    let mut judged: Vec<Judged> = Vec::new();
    for (number, file) in opened.files {
        match file {
            Ok(file) => files.push(file),
            Err(error) => judged.push((number, Err(error))),
        }
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = cores.min(START_THREADS_MAX);
    let (read, spreads) = reading.all(files, threads);
    judged.extend(read);
    judged.sort_unstable_by_key(|(number, _)| *number);
    if let Some((_, listed)) = lock(&reading.listed).take() {
        reading.take_listed(&listed);
    }
    reading.operations.all_recovered();
    let newest = rebuild::resolve(spreads, threads);
    // Only now all operations are known that the FOOTERs are to list.
    let (mut segments, images) = seal_all(shared, description, judged, last, &reading)?;
    count(&newest, &mut segments, &reading.figures, directory);
    let scope = IndexScope {
        dataset: description.id,
        epoch: shared.home.epoch(),
    };
    // A lost segment may be back at a later start, with sequences that nothing else tells of: each epoch has its own.
    let sequence_next = (reading.sequence_max.into_inner())
        .saturating_add(1)
        .max(shared.home.epoch() << EPOCH_SEQUENCE_BITS);
    let contents = Contents {
        index: Index::build(scope, &newest.live, &place)?,
        segments,
        operations: reading.operations,
        figures: reading.figures,
    };
    Ok(Recovered {
        contents,
        sequence_next,
        images,
    })
}

type Table<D> = BTreeMap<u32, Arc<Segment<D>>>;

/// Seals what is not sealed, durably, and makes the segment table.
fn seal_all<D: Domain>(
    shared: &Arc<Shared>,
    description: &Description,
    judged: Vec<Judged>,
    last: Option<u32>,
    reading: &Reading<'_>,
) -> Result<(Table<D>, Vec<ToLoad<D>>), StorageError> {
    let operations = reading.operations.entries();
    let (mut segments, mut images) = (BTreeMap::new(), Vec::new());
    for (number, known) in judged {
        let Known {
            mut file,
            unseen_end,
            sequences,
            listed,
            unsealed,
        } = match known {
            Ok(known) => known,
            Err(error) if !says_lost(&error) => return Err(error),
            Err(error) => {
                tracing::error!(%error, dataset = %description.name, segment = number, "segment lost: what lies in it cannot be served");
                segments.insert(number, lost(number, &reading.figures));
                continue;
            }
        };
        if let Some(Unsealed {
            from,
            scanned,
            entries,
        }) = unsealed
        {
            if Some(number) != last {
                tracing::warn!(
                    segment = number,
                    end = scanned.end,
                    "not sealed though a later segment exists: its file was cut short, or a write to it had failed"
                );
            }
            file.seal(&shared.files, from, &scanned, &entries, &operations)?;
        }
        let names = (number, file.header.identity);
        let segment = Arc::new(Segment::unloaded(names, file.len, shared, file.path.clone())?);
        segment.set_sequences(sequences);
        if listed {
            segment.standing.set_tells_operations();
        }
        segments.insert(number, Arc::clone(&segment));
        images.push(ToLoad {
            file,
            segment,
            unseen_end,
        });
    }
    Ok((segments, images))
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

/// Counts what is live, by segment; segments that heads name and that are not there are lost.
fn count<D: Domain>(newest: &Newest, segments: &mut Table<D>, figures: &Figures, directory: &Path) {
    let bytes = |locator: &Locator| units(locator.wire_len_bytes()) * 64;
    let mut value_bytes = 0;
    for (_, locator) in &newest.live {
        if let Some(segment) = segments.get(&locator.segment) {
            segment.tally.add_live(bytes(locator));
        }
        value_bytes += u64::from(locator.value_len_bytes);
    }
    for locator in &newest.tombstones {
        if let Some(segment) = segments.get(&locator.segment) {
            segment.tally.add_tombstone(bytes(locator));
        }
    }
    let mut missing = BTreeSet::new();
    for locator in &newest.heads {
        let value = Footprint::of(locator, |number| segments.get(&number).cloned());
        // Its own record was counted above.
        value_bytes += value.value_len_bytes;
        value_bytes -= u64::from(locator.value_len_bytes);
        for (number, bytes) in value.pieces().skip(1) {
            match segments.get(&number) {
                Some(segment) => segment.tally.add_live(bytes),
                None => {
                    missing.insert(number);
                }
            }
        }
    }
    figures.value_bytes.store(value_bytes, Ordering::Relaxed);
    for number in missing {
        tracing::error!(directory = %directory.display(), segment = number, "segment lost: its file is gone, and large values have parts in it");
        segments.insert(number, lost(number, figures));
    }
}
