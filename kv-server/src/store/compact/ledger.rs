//! What compaction knows of a segment and of a dataset, besides what is counted of their records.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use kv_proto::layout::{EXTENT_BYTES, segment_state};

use super::super::index::Retired;
use super::super::journal::Change;
use super::super::recover::EPOCH_SEQUENCE_BITS;
use super::super::segment::{Pin, Segment};
use super::super::{Dataset, lock, segment_path};
use super::choose::{Candidate, PRESSED_SHARE};
use crate::error::StorageError;

/// What compaction knows of a segment.
#[derive(Debug, Default)]
pub(crate) struct Standing {
    /// Nothing in it is wanted any more.
    drained: AtomicBool,
    /// It could not be read: it is left alone until the next start.
    suspect: AtomicBool,
    /// Its file was cut short: it is left alone, for with it would go what says so.
    cut: AtomicBool,
    /// One more than the files that were gone when its tombstones were judged; 0 while they were not.
    judged: AtomicU64,
    /// A trailer or FOOTER of it tells, durably, of all operations that were remembered when it was sealed.
    tells_operations: AtomicBool,
}

impl Standing {
    pub(crate) fn set_drained(&self) {
        self.drained.store(true, Ordering::Release);
    }

    pub(crate) fn set_suspect(&self) {
        self.suspect.store(true, Ordering::Release);
    }

    pub(crate) fn set_cut(&self) {
        self.cut.store(true, Ordering::Release);
    }

    /// Notes that, now that it is sealed, it tells of all operations that are remembered.
    pub(crate) fn set_tells_operations(&self) {
        self.tells_operations.store(true, Ordering::Release);
    }

    pub(crate) fn set_judged(&self, removals: u64) {
        self.judged.store(removals + 1, Ordering::Release);
    }
}

/// A segment file that left the table and could not be removed.
#[derive(Debug)]
struct Leftover {
    segment: u32,
    /// Lowest sequence in it.
    lowest: u64,
    /// Of segments that records in it name.
    _holds: Vec<Pin>,
}

/// What compaction did and knows of a dataset.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    /// Files that were removed.
    removals: AtomicU64,
    leftovers: Mutex<Vec<Leftover>>,
    copied_bytes: AtomicU64,
    freed_bytes: AtomicU64,
    failures: AtomicU64,
    suspects: AtomicU64,
    /// Nothing could be done for it when memory or disk were short.
    stuck: AtomicBool,
}

impl Ledger {
    pub(crate) fn removals(&self) -> u64 {
        self.removals.load(Ordering::Acquire)
    }

    pub(crate) fn copied(&self, bytes: u64) {
        self.copied_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn failed(&self) {
        self.failures.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn set_stuck(&self, stuck: bool) {
        self.stuck.store(stuck, Ordering::Release);
    }

    /// Its figures; the last word of each name is the unit.
    pub(crate) fn figures(&self) -> [(&'static str, u64); 5] {
        let read = |figure: &AtomicU64| figure.load(Ordering::Relaxed);
        [
            ("compaction_copied_bytes", read(&self.copied_bytes)),
            ("compaction_freed_bytes", read(&self.freed_bytes)),
            ("compaction_removed_segments_count", read(&self.removals)),
            ("compaction_failures_count", read(&self.failures)),
            ("compaction_suspect_segments_count", read(&self.suspects)),
        ]
    }
}

/// Memory that was retired.
pub(crate) enum Gone {
    /// Of the index.
    Index(Retired),
    /// The image of a segment.
    Image(Arc<Segment>),
}

impl Gone {
    /// Memory of the index that waits and that the index does not count any more, bytes.
    pub(crate) fn index_bytes(&self) -> u64 {
        match self {
            Self::Index(retired) => retired.bytes(),
            Self::Image(_) => 0,
        }
    }
}

/// A segment file, as far as its records can be known.
pub(crate) enum OnDisk {
    Readable(Arc<Segment>),
    /// It may hold any record of a sequence from `lowest` on.
    Unreadable {
        lowest: u64,
    },
}

impl Dataset {
    pub(crate) fn segment_path(&self, number: u32) -> PathBuf {
        segment_path(&self.directory, number)
    }

    /// All segment files that there are, or may be.
    pub(crate) fn files_on_disk(&self) -> Vec<OnDisk> {
        let leftovers = lock(&self.compaction.leftovers);
        let leftovers = leftovers
            .iter()
            .map(|left| OnDisk::Unreadable { lowest: left.lowest });
        let segments = self.all_segments();
        // What was published of such a file is read all the same: it says which tombstones a newer one hides.
        let unpublished = segments
            .iter()
            .filter_map(|segment| segment.unpublished())
            .map(|lowest| OnDisk::Unreadable { lowest });
        let unpublished: Vec<_> = unpublished.collect();
        segments
            .into_iter()
            .map(|segment| match segment.state() {
                segment_state::LOST => OnDisk::Unreadable { lowest: 0 },
                _ => OnDisk::Readable(segment),
            })
            .chain(unpublished)
            .chain(leftovers)
            .collect()
    }

    /// Sealed segments that may be compacted.
    pub(crate) fn candidates(&self) -> Vec<Candidate> {
        let segments = self.all_segments();
        let last_telling = segments
            .iter()
            .filter(|segment| segment.standing.tells_operations.load(Ordering::Acquire))
            .map(|segment| segment.number)
            .max()
            .unwrap_or(0);
        let removals = self.compaction.removals();
        segments
            .iter()
            .filter(|segment| segment.may_be_compacted())
            .map(|segment| Candidate {
                number: segment.number,
                record_bytes: segment.record_bytes(),
                live_bytes: segment.tally.live_bytes(),
                tombstone_bytes: segment.tally.tombstone_bytes(),
                unjudged: segment.standing.judged.load(Ordering::Acquire) <= removals,
                drained: segment.standing.drained.load(Ordering::Acquire),
                followed: segment.number < last_telling,
            })
            .collect()
    }

    /// Bytes that copies may take of memory: what the active segment has, and whole extents of what is not taken.
    pub(crate) fn room_bytes(&self) -> u64 {
        let active = |segment: &Arc<Segment>| segment.state() == segment_state::ACTIVE;
        let own = self
            .all_segments()
            .into_iter()
            .find(active)
            .map_or(0, |segment| segment.room_bytes());
        let extent = self.segment_bytes.min(EXTENT_BYTES);
        own + self.shared.budget.free_bytes() / extent * extent
    }

    /// Gives the room on the disk up that is kept for deletes and compaction; whether there was any.
    pub(crate) fn give_reserve_up(&self) -> bool {
        self.shared.compaction.press();
        self.shared.reserve.give_up(&self.shared.files)
    }

    /// Whether what is used up now is coming back: something can be compacted or, of memory, waits for its readers.
    pub(crate) fn is_coming_back(&self, memory: bool) -> bool {
        let is_image = |gone: &Gone| matches!(gone, Gone::Image(_));
        if memory && lock(&self.journal).retired().any(is_image) {
            return true;
        }
        !self.compaction.stuck.load(Ordering::Acquire)
            && self
                .all_segments()
                .iter()
                .any(|segment| segment.may_be_compacted() && segment.dead_share() >= PRESSED_SHARE)
    }

    /// Leaves a segment alone that cannot be read.
    pub(crate) fn suspect(&self, segment: &Segment, error: &StorageError) {
        tracing::error!(%error, dataset = %self.name(), segment = segment.number, "a segment cannot be compacted: it is left alone");
        segment.standing.set_suspect();
        self.compaction.suspects.fetch_add(1, Ordering::Relaxed);
    }

    /// Has a drained segment leave the table; its image goes once nobody reads it. For the log thread.
    ///
    /// # Errors
    /// [`StorageError::Busy`] if it is not drained, or not sealed.
    pub(crate) fn retire(&self, number: u32) -> Result<(), StorageError> {
        let segment = self
            .segment(number)
            .filter(|segment| segment.may_be_compacted() && segment.standing.drained.load(Ordering::Acquire));
        let Some(segment) = segment else {
            return Err(StorageError::Busy("the segment is in use"));
        };
        if !self.sequences_are_named_without(&segment) {
            return Err(StorageError::Busy("no other file names the highest sequence"));
        }
        self.segments
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .remove(&number);
        lock(&self.journal).push(
            &self.shared.retired,
            Change::Row(number),
            vec![Gone::Image(segment)],
        );
        Ok(())
    }

    /// Whether the next start gives no sequence again that this segment alone names.
    fn sequences_are_named_without(&self, segment: &Segment) -> bool {
        let Some((_, highest)) = segment.sequences() else {
            return true;
        };
        let next_start = (self.shared.home.epoch() + 1) << EPOCH_SEQUENCE_BITS;
        let named = |other: &Arc<Segment>| {
            other.number != segment.number && other.sequences().is_some_and(|(_, other)| other >= highest)
        };
        highest < next_start || self.all_segments().iter().any(named)
    }

    /// Removes the file of a segment that left the table, durably, and any that could not be removed before.
    ///
    /// # Errors
    /// Why one is still there, or may be again after a power cut.
    pub(crate) fn remove_file(&self, segment: &Segment) -> Result<(), StorageError> {
        let files = &self.shared.files;
        let mut leftovers = lock(&self.compaction.leftovers);
        leftovers.push(Leftover {
            segment: segment.number,
            lowest: segment.lowest_on_disk(),
            _holds: segment.take_holds(),
        });
        self.compaction
            .freed_bytes
            .fetch_add(segment.length_bytes(), Ordering::Relaxed);
        self.remove_leftovers(files, &mut leftovers)
    }

    fn remove_leftovers(
        &self,
        files: &super::super::files::Files,
        leftovers: &mut Vec<Leftover>,
    ) -> Result<(), StorageError> {
        let unlist = || self.list.remove(files, leftovers.iter().map(|left| left.segment));
        let unlisted = match unlist() {
            Err(error) if error.is_full() && self.give_reserve_up() => unlist(),
            unlisted => unlisted,
        };
        match unlisted {
            Err(error) if error.is_full() => self.list.discard(files, error)?,
            unlisted => unlisted?,
        }
        for left in leftovers.iter() {
            match files.remove(&self.segment_path(left.segment)) {
                Err(error) if error.is_not_found() => {}
                removed => removed?,
            }
        }
        files.sync_directory(&self.directory)?;
        self.bring_list_up_to_date();
        self.compaction
            .removals
            .fetch_add(leftovers.len() as u64, Ordering::AcqRel);
        leftovers.clear();
        self.shared.reserve.take(files);
        Ok(())
    }

    /// Writes the list of segments where its file may say something else; whether nothing of that is left to do. Where
    /// that fails it is written when the next segment comes or goes, when it is tried again, or by the next start.
    pub(crate) fn bring_list_up_to_date(&self) -> bool {
        match self.list.bring_up_to_date(&self.shared.files) {
            Err(error) if !self.is_dropped() => {
                tracing::warn!(%error, dataset = %self.name(), "segments that are lost from now on may not be missed: their list cannot be written");
                false
            }
            _ => true,
        }
    }

    /// Tries again to remove what could not be removed; whether anything is left.
    pub(crate) fn retry_leftovers(&self) -> Result<(), StorageError> {
        let mut leftovers = lock(&self.compaction.leftovers);
        if leftovers.is_empty() {
            return Ok(());
        }
        self.remove_leftovers(&self.shared.files, &mut leftovers)
    }
}

impl Segment {
    /// Bytes of its records, live or not.
    pub(crate) fn record_bytes(&self) -> u64 {
        self.length_bytes() - super::super::segment::HEADER_BYTES.min(self.length_bytes())
    }

    /// Room that its image has beyond what is published, bytes.
    pub(crate) fn room_bytes(&self) -> u64 {
        self.charged_bytes().saturating_sub(self.length_bytes())
    }

    /// Whether it is sealed, whole, and holds no part of a value that is still arriving.
    pub(crate) fn may_be_compacted(&self) -> bool {
        matches!(self.state(), segment_state::SEALED | segment_state::LOADING)
            && !self.is_pinned()
            && !self.standing.suspect.load(Ordering::Acquire)
            && !self.standing.cut.load(Ordering::Acquire)
    }
}
