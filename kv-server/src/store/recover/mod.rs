//! Bringing a dataset back from its files: what their FOOTERs, checkpoints and tails say. Images come later.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use kv_fabric::Domain;
use kv_proto::bucket::IndexScope;
use kv_proto::layout::{Locator, segment_state, units};

use super::checkpoint;
use super::compact::footprint::Footprint;
use super::dataset::{Contents, Figures};
use super::description::Description;
use super::files::Call;
use super::index::{Builder, Place};
use super::limits::{REBUILD_BYTES_MAX, START_THREADS_MAX};
use super::operations::Operations;
use super::owed::Owed;
use super::segment::Segment;
use super::segment_list::SegmentList;
use super::{Shared, is_own_file, lock, parse_segment_name, segment_path};
use crate::error::StorageError;

pub(crate) mod gather;
mod load;
mod reading;
pub(crate) mod rebuild;
pub(crate) mod scan;
pub(crate) mod source;

use gather::Gather;
pub(crate) use load::SegmentFile;
use reading::{Judged, Known, Reading, Unsealed};
pub(crate) use reading::{report_damage, take_operation};
use rebuild::{Newest, RECORD_BYTES_MAX};

/// An epoch's sequences begin at its number, shifted left by this.
pub(crate) const EPOCH_SEQUENCE_BITS: u32 = 32;

/// Segments of a dataset, judged by their files; what cannot be read, or is gone, is lost.
pub(crate) struct Opened {
    files: BTreeMap<u32, Result<SegmentFile, StorageError>>,
    list: SegmentList,
}

impl Opened {
    /// Judges every segment of the dataset in `directory`, one at a time.
    ///
    /// # Errors
    /// Why a segment could not be judged that may be whole: nothing is served without it.
    pub(crate) fn new(shared: &Shared, directory: &Path, dataset: [u8; 16]) -> Result<Self, StorageError> {
        let mut found = BTreeSet::new();
        let mut checkpoints = Vec::new();
        for name in shared.files.names(directory)? {
            let path = directory.join(&name);
            if name.ends_with(".new") {
                shared.files.remove(&path)?;
            } else if let Some(number) = parse_segment_name(&name) {
                found.insert(number);
            } else if let Some(number) = checkpoint::parse_name(&name) {
                checkpoints.push((number, path));
            } else if !is_own_file(&name) {
                tracing::warn!(path = %path.display(), "is no file of a dataset; it is left alone");
            }
        }
        let (list, segments) = SegmentList::open(&shared.files, directory, dataset, found)?;
        let mut files = BTreeMap::new();
        for number in segments {
            shared.home.skip_segment_numbers(number);
            let path = segment_path(directory, number);
            match SegmentFile::open(&shared.files, &path, number, dataset) {
                Err(error) if !says_lost(&error) => return Err(error),
                file => files.insert(number, file),
            };
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
        Ok(Self { files, list })
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
pub(crate) struct ToLoad {
    pub(crate) file: SegmentFile,
    pub(crate) segment: Arc<Segment>,
    /// Records before this were not looked at when the segment was brought back: damage in them is not known.
    pub(crate) unseen_end: u64,
}

/// A dataset that was brought back.
pub(crate) struct Recovered {
    pub(crate) contents: Contents,
    pub(crate) sequence_next: u64,
    pub(crate) images: Vec<ToLoad>,
}

/// Brings a dataset back: learns what its segments hold, seals what was active, builds its index.
pub(crate) fn recover(
    shared: &Arc<Shared>,
    description: &Description,
    directory: &Path,
    opened: Opened,
    domain: &dyn Domain,
) -> Result<Recovered, StorageError> {
    let place = Place {
        domain,
        budget: &shared.budget,
    };
    let reading = Reading {
        shared,
        hash_key: &description.hash_key,
        operations: Operations::of(&shared.operations),
        all_read: AtomicBool::new(true),
        listed: Mutex::default(),
        figures: Figures::default(),
        sequence_max: AtomicU64::new(0),
    };
    if let Err(error) = opened.list.bring_up_to_date(&shared.files) {
        tracing::warn!(%error, dataset = %description.name, "segments that are lost from now on may not be missed: their list cannot be written");
    }
    let last = opened.files.keys().next_back().copied();
    let mut files = Vec::new();
    let mut judged: Vec<Judged> = Vec::new();
    for (segment, file) in opened.files {
        match file {
            Ok(file) => files.push(file),
            Err(error) => judged.push(Judged {
                segment,
                file: None,
                known: Err(error),
            }),
        }
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = cores.min(START_THREADS_MAX);
    let records_max = REBUILD_BYTES_MAX / RECORD_BYTES_MAX;
    let mut gather = Gather::new(0, records_max, threads);
    judged.extend(reading.all(files, &gather));
    judged.sort_unstable_by_key(|judged| judged.segment);
    if let Some((_, listed)) = lock(&reading.listed).take() {
        reading.take_listed(&listed);
    }
    let all_read = reading.all_read.load(Ordering::Relaxed) && judged.iter().all(|it| it.known.is_ok());
    reading.operations.all_recovered(all_read);
    // Only now all operations are known that the FOOTERs are to list.
    let Sealed {
        mut segments,
        images,
        lost,
        owed,
    } = seal_all(shared, description, judged, last, &reading)?;
    let scope = IndexScope {
        dataset: description.id,
        epoch: shared.home.epoch(),
    };
    let mut builder = Builder::new(scope, &place)?;
    let mut missing = BTreeSet::new();
    loop {
        let (spreads, next, _) = gather.finish();
        let newest = rebuild::resolve(spreads, threads);
        missing.extend(count(&newest, &segments, &reading.figures));
        builder.push(&newest.live, &place)?;
        let Some(first) = next else {
            break;
        };
        drop(newest);
        tracing::info!(directory = %directory.display(), first, "its segments are read again for the keys that are left");
        gather = Gather::new(first, records_max, threads);
        reading.again(images.iter().map(|image: &ToLoad| &image.file), &lost, &gather)?;
    }
    for number in missing {
        tracing::error!(directory = %directory.display(), segment = number, "segment lost: its file is gone, and large values have parts in it");
        segments.insert(number, lost_segment(number, &reading.figures));
    }
    // A lost segment may be back at a later start, with sequences that nothing else tells of: each epoch has its own.
    let sequence_next = (reading.sequence_max.into_inner())
        .saturating_add(1)
        .max(shared.home.epoch() << EPOCH_SEQUENCE_BITS);
    let contents = Contents {
        index: builder.finish(&place)?,
        segments,
        list: opened.list,
        owed,
        operations: reading.operations,
        figures: reading.figures,
    };
    Ok(Recovered {
        contents,
        sequence_next,
        images,
    })
}

type Table = BTreeMap<u32, Arc<Segment>>;

/// Segments, all of them sealed.
struct Sealed {
    segments: Table,
    images: Vec<ToLoad>,
    /// Files of lost segments, of which a part could be read.
    lost: Vec<SegmentFile>,
    /// What a full disk kept from being sealed.
    owed: Vec<Owed>,
}

/// Seals what is not sealed, durably, and makes the segment table.
fn seal_all(
    shared: &Arc<Shared>,
    description: &Description,
    judged: Vec<Judged>,
    last: Option<u32>,
    reading: &Reading<'_>,
) -> Result<Sealed, StorageError> {
    let operations = reading.operations.entries();
    let mut sealed = Sealed {
        segments: BTreeMap::new(),
        images: Vec::new(),
        lost: Vec::new(),
        owed: Vec::new(),
    };
    for Judged {
        segment: number,
        file,
        known,
    } in judged
    {
        let (known, mut file) = match (known, file) {
            (Ok(known), Some(file)) => (known, file),
            (Err(error), _) if !says_lost(&error) => return Err(error),
            (Ok(_), None) => continue,
            (Err(error), file) => {
                tracing::error!(%error, dataset = %description.name, segment = number, "segment lost: what lies in it cannot be served, and older values and deleted keys may be back among what is");
                sealed
                    .segments
                    .insert(number, lost_segment(number, &reading.figures));
                sealed.lost.extend(file);
                continue;
            }
        };
        let Known {
            unseen_end,
            sequences,
            listed,
            unsealed,
        } = known;
        if let Some(Unsealed {
            from,
            scanned,
            entries,
            lost_its_trailer,
        }) = unsealed
        {
            if lost_its_trailer {
                tracing::error!(dataset = %description.name, segment = number, path = %file.path.display(), "its trailer is damaged; nothing else of it is");
                reading.figures.damaged_records.fetch_add(1, Ordering::Relaxed);
                file.cut = false;
            } else if Some(number) != last && !file.is_full_length() {
                // Of an older day: nothing but a trailer says that it is whole.
                file.cut = true;
            } else if Some(number) != last && !file.cut {
                tracing::warn!(dataset = %description.name, segment = number, "not sealed though a later segment exists: a write to it had failed, or the disk was full; what was answered is there");
            }
            let lists = (&entries[..], &operations[..]);
            let make_room = || shared.reserve.give_up(&shared.files);
            sealed
                .owed
                .extend(file.seal(&shared.files, from, &scanned, lists, make_room)?);
        }
        if file.cut {
            tracing::error!(
                dataset = %description.name,
                segment = number,
                path = %file.path.display(),
                end = file.len,
                "its file was cut short: what lay behind its end is lost, and older values and deleted keys may be back; this is said at each start until `kv-server check --repair` accepts it"
            );
            reading.figures.cut_segments.fetch_add(1, Ordering::Relaxed);
        }
        let names = (number, file.header.identity);
        let segment = Arc::new(Segment::unloaded(names, file.len, shared, file.path.clone())?);
        segment.set_sequences(sequences);
        if listed && file.trailer.is_some_and(|trailer| trailer.footer_count > 0) {
            segment.standing.set_tells_operations();
        }
        if file.cut {
            segment.standing.set_cut();
        }
        sealed.segments.insert(number, Arc::clone(&segment));
        sealed.images.push(ToLoad {
            file,
            segment,
            unseen_end,
        });
    }
    Ok(sealed)
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

fn lost_segment(number: u32, figures: &Figures) -> Arc<Segment> {
    figures.lost_segments.fetch_add(1, Ordering::Relaxed);
    Arc::new(Segment::new(number, 0, segment_state::LOST))
}

/// Counts what is live, by segment; the segments that heads name and that are not there.
fn count(newest: &Newest, segments: &Table, figures: &Figures) -> BTreeSet<u32> {
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
    figures.value_bytes.fetch_add(value_bytes, Ordering::Relaxed);
    missing
}
