//! One dataset: its segments, index, operations and log, and what the control thread asks of them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::thread::JoinHandle;
use std::time::Instant;

use kv_fabric::Domain;
use kv_proto::control::{DatasetChange, DirectoryRef, RemoteAddress, SegmentRow};
use kv_proto::hash::KeyHash;
use kv_proto::layout::{Locator, segment_state};

use super::changes::collect;
use super::compact::footprint::Footprint;
use super::compact::{Gone, Ledger};
use super::description::Description;
use super::index::{Index, Place, Replaced};
use super::journal::{Change, Journal};
use super::log::Queue;
use super::operations::Operations;
use super::owed::Owed;
use super::segment::{ROW_BYTES, ROW_EXTENT_BYTES, Segment};
use super::segment_list::SegmentList;
use super::{Shared, lock, scrub};
use crate::error::StorageError;

mod list;
mod mend;
mod write;

pub use write::{BeginDelete, BeginPut};

/// What a dataset has done and holds, for `stat`.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    pub(crate) value_bytes: AtomicU64,
    pub(crate) puts: AtomicU64,
    pub(crate) deletes: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) damaged_records: AtomicU64,
    pub(crate) lost_segments: AtomicU64,
    /// Whose file was found cut short, at this start or at an earlier one, and nobody accepted that.
    pub(crate) cut_segments: AtomicU64,
    pub(crate) groups_synced: AtomicU64,
    pub(crate) record_bytes: AtomicU64,
}

/// One dataset.
pub struct Dataset {
    pub(crate) id: [u8; 16],
    pub(crate) hash_key: [u8; 16],
    pub(crate) segment_bytes: u64,
    part_bytes: u64,
    pub(crate) directory: PathBuf,
    description: Mutex<Description>,
    pub(crate) index: RwLock<Index>,
    pub(crate) segments: RwLock<BTreeMap<u32, Arc<Segment>>>,
    /// Which segments there should be at the next start.
    pub(crate) list: SegmentList,
    /// What a full disk kept from being sealed.
    pub(crate) owed: Mutex<Vec<Owed>>,
    pub(crate) journal: Mutex<Journal<Gone>>,
    pub(crate) operations: Arc<Operations>,
    pub(crate) queue: Arc<Queue>,
    pub(crate) figures: Figures,
    pub(crate) compaction: Ledger,
    pub(crate) scrub: scrub::Ledger,
    /// Whether the log was asked to put the index right, and has not begun to.
    mending: AtomicBool,
    /// Why the index could not be put right, and until when that is not tried again.
    unmended: Mutex<Option<(StorageError, Instant)>>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) thread: Mutex<Option<JoinHandle<()>>>,
    dropped: AtomicBool,
    /// Number of its drop; 0 while it lives.
    pub(crate) dropped_at: AtomicU64,
    /// Last: what is registered with it goes before it.
    domain: Arc<dyn Domain>,
}

/// What recovery found of a dataset, or the nothing that a new one begins with.
pub(crate) struct Contents {
    pub(crate) index: Index,
    pub(crate) segments: BTreeMap<u32, Arc<Segment>>,
    pub(crate) list: SegmentList,
    pub(crate) owed: Vec<Owed>,
    pub(crate) operations: Operations,
    pub(crate) figures: Figures,
}

impl Dataset {
    pub(crate) fn new(
        shared: Arc<Shared>,
        description: Description,
        directory: PathBuf,
        domain: Arc<dyn Domain>,
        contents: Contents,
    ) -> Self {
        Self {
            id: description.id,
            hash_key: description.hash_key,
            segment_bytes: description.segment_bytes,
            part_bytes: description.part_bytes,
            directory,
            description: Mutex::new(description),
            index: RwLock::new(contents.index),
            segments: RwLock::new(contents.segments),
            list: contents.list,
            owed: Mutex::new(contents.owed),
            journal: Mutex::new(Journal::new()),
            operations: Arc::new(contents.operations),
            queue: Arc::default(),
            figures: contents.figures,
            compaction: Ledger::default(),
            scrub: scrub::Ledger::default(),
            mending: AtomicBool::new(false),
            unmended: Mutex::new(None),
            shared,
            thread: Mutex::new(None),
            dropped: AtomicBool::new(false),
            dropped_at: AtomicU64::new(0),
            domain,
        }
    }

    /// Its id.
    pub fn id(&self) -> [u8; 16] {
        self.id
    }

    /// Its name now.
    pub fn name(&self) -> String {
        lock(&self.description).name.clone()
    }

    /// Key of its key hash.
    pub fn hash_key(&self) -> [u8; 16] {
        self.hash_key
    }

    /// Longest part of a large value, bytes.
    pub fn part_bytes(&self) -> u64 {
        self.part_bytes
    }

    /// Domain that its data connections are accepted into.
    pub fn domain(&self) -> &dyn Domain {
        &*self.domain
    }

    pub(crate) fn place(&self) -> Place<'_> {
        Place {
            domain: &*self.domain,
            budget: &self.shared.budget,
        }
    }

    /// Whether it was dropped; what is open of it is to be closed.
    pub fn is_dropped(&self) -> bool {
        self.dropped.load(Ordering::Acquire)
    }

    pub(crate) fn set_dropped(&self, dropped: bool) {
        self.dropped.store(dropped, Ordering::Release);
    }

    /// Renames it durably. Callers take turns; who asks for the name does not wait for the disk.
    pub(crate) fn rename(&self, to: &str) -> Result<Description, StorageError> {
        let description = lock(&self.description).clone();
        let renamed = Description {
            name: to.to_owned(),
            ..description.clone()
        };
        if let Err(error) = renamed.write(&self.shared.files, &self.directory) {
            // It may have the new name already, and that is not what is told.
            if let Err(error) = description.write(&self.shared.files, &self.directory) {
                tracing::warn!(%error, "the old name of a dataset could not be written back");
            }
            return Err(error);
        }
        *lock(&self.description) = renamed.clone();
        Ok(renamed)
    }

    pub(crate) fn read_index(&self) -> RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn write_index(&self) -> RwLockWriteGuard<'_, Index> {
        self.index.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_segments(&self) -> RwLockReadGuard<'_, BTreeMap<u32, Arc<Segment>>> {
        self.segments.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn all_segments(&self) -> Vec<Arc<Segment>> {
        self.read_segments().values().cloned().collect()
    }

    pub(crate) fn segment(&self, number: u32) -> Option<Arc<Segment>> {
        self.read_segments().get(&number).cloned()
    }

    /// Notes a change that is done; its number.
    pub(crate) fn note(&self, change: Change) -> u64 {
        lock(&self.journal).push(&self.shared.retired, change, Vec::new())
    }

    /// Notes groups of the index that were replaced. The index's lock is held by the caller.
    pub(crate) fn note_replaced(&self, replaced: Vec<Replaced>) {
        let mut journal = lock(&self.journal);
        for replaced in replaced {
            let change = match replaced.range {
                Some((first, count)) => Change::Range(first, count),
                None => Change::Directory,
            };
            let retired = replaced.retired.into_iter().map(Gone::Index).collect();
            journal.push(&self.shared.retired, change, retired);
        }
    }

    /// Has memory that was retired up to `number` reused.
    pub(crate) fn release(&self, number: u64) {
        let released = lock(&self.journal).release(number);
        if released.is_empty() {
            return;
        }
        let mut images = false;
        let mut index = self.write_index();
        for gone in released {
            match gone {
                Gone::Index(retired) => index.give_back(retired),
                Gone::Image(segment) => {
                    segment.free();
                    images = true;
                }
            }
        }
        if !self.is_dropped() {
            let mut replaced = Vec::new();
            index.tidy(&self.place(), &mut replaced);
            self.note_replaced(replaced);
        }
        drop(index);
        if images {
            // Its memory may be what compaction, or a value, waits for.
            self.shared.compaction.poke();
        }
    }

    /// Whether the record that `locator` names is of `key`.
    pub(crate) fn key_is(&self, locator: &Locator, key: &[u8]) -> bool {
        usize::from(locator.key_len_bytes) == key.len()
            && self
                .segment(locator.segment)
                .is_some_and(|segment| segment.key_is(locator, key))
    }

    /// Whether the record that `locator` names can be looked at without a file.
    pub(crate) fn is_in_memory(&self, locator: &Locator) -> bool {
        self.segment(locator.segment)
            .is_some_and(|segment| segment.extent_count() > 0)
    }

    pub(crate) fn hash(&self, key: &[u8]) -> KeyHash {
        KeyHash::of(&self.hash_key, key)
    }

    /// Length of the whole value whose VALUE or HEAD `locator` names.
    pub(crate) fn value_len(&self, locator: &Locator) -> u64 {
        self.footprint(locator).value_len_bytes
    }

    /// Where the whole value lies whose VALUE or HEAD `locator` names.
    pub(crate) fn footprint(&self, locator: &Locator) -> Footprint {
        Footprint::of(locator, |number| self.segment(number))
    }

    /// Counts a value as live, where the index names it.
    pub(crate) fn count_live(&self, value: &Footprint) {
        let segments = self.read_segments();
        for (number, bytes) in value.pieces() {
            if let Some(segment) = segments.get(&number) {
                segment.tally.add_live(bytes);
            }
        }
    }

    /// Counts a value as dead that was live.
    pub(crate) fn count_dead(&self, value: &Footprint) {
        let segments = self.read_segments();
        for (number, bytes) in value.pieces() {
            let Some(segment) = segments.get(&number) else {
                continue;
            };
            let before = segment.dead_share();
            segment.tally.bury(bytes);
            let limit = self.shared.compaction.dead_share();
            if segment.may_be_compacted() && before < limit && segment.dead_share() >= limit {
                self.compaction.set_stuck(false);
                self.shared.compaction.poke();
            }
        }
    }

    /// Where its directory lies.
    pub fn directory(&self) -> DirectoryRef {
        directory_ref(&self.read_index())
    }

    /// Rows of the segment table from segment `first` on, as many as fit; and the first that did not, or 0.
    pub fn rows(&self, first: u32, frame_room_bytes: usize) -> (Vec<SegmentRow>, u32) {
        let mut room = frame_room_bytes;
        let mut rows = Vec::new();
        for segment in self.read_segments().range(first..).map(|(_, segment)| segment) {
            let row = segment.row();
            let need = ROW_BYTES + ROW_EXTENT_BYTES * row.extents.len();
            if need > room {
                return (rows, row.segment);
            }
            room -= need;
            rows.push(row);
        }
        (rows, 0)
    }

    /// The row of a segment that changed: where it left the table, one that says so.
    fn changed_row(&self, number: u32) -> SegmentRow {
        self.row(number).unwrap_or(SegmentRow {
            segment: number,
            identity: 0,
            generation: 0,
            state: segment_state::RETIRED,
            length_units: 0,
            extents: Vec::new(),
        })
    }

    /// The row of a segment.
    pub fn row(&self, segment: u32) -> Option<SegmentRow> {
        self.segment(segment).map(|segment| segment.row())
    }

    /// Has the image of a segment loaded next, for a session, if it is not there yet.
    pub fn load(&self, session: u64, segment: u32) {
        let is_loading = |segment: Arc<Segment>| segment.state() == segment_state::LOADING;
        if self.segment(segment).is_some_and(is_loading) {
            self.shared.loads.ask(session, self.id, segment);
        }
    }

    /// Notes that a segment was found to be lost.
    pub(crate) fn note_lost(&self, segment: u32) {
        self.figures.lost_segments.fetch_add(1, Ordering::Relaxed);
        self.note(Change::Row(segment));
    }

    /// What changed after number `since`, within about `room_bytes` of a frame; `None` if nothing.
    ///
    /// Read [`super::Store::retired`] first: all up to that number is in the answer.
    pub fn changes(&self, since: u64, room_bytes: usize) -> Option<DatasetChange> {
        let index = self.read_index();
        let since = lock(&self.journal).since(since);
        let change = collect(since, room_bytes, |segment| Some(self.changed_row(segment)))?;
        let dropped = if self.is_dropped() {
            kv_proto::control::change_flag::DROPPED
        } else {
            0
        };
        Some(DatasetChange {
            dataset: self.id,
            flags: change.flags | dropped,
            directory: directory_ref(&index),
            ranges: change.ranges,
            rows: change.rows,
        })
    }

    /// Where the record of `key` lies.
    ///
    /// # Errors
    /// [`StorageError::Mending`] where the index cannot tell at the moment.
    pub fn lookup(&self, key: &[u8]) -> Result<Option<Locator>, StorageError> {
        self.lookup_hashed(self.hash(key), key)
    }

    /// [`Dataset::lookup`] of a key whose hash is known.
    pub(crate) fn lookup_hashed(&self, hash: KeyHash, key: &[u8]) -> Result<Option<Locator>, StorageError> {
        self.find(hash, |locator| self.key_is(locator, key))
    }

    /// Where the record lies which `is_key` takes for that of the key with this hash.
    ///
    /// # Errors
    /// As [`Dataset::lookup`]; the log was asked to put the index right.
    pub(crate) fn find(
        &self,
        hash: KeyHash,
        is_key: impl Fn(&Locator) -> bool,
    ) -> Result<Option<Locator>, StorageError> {
        let found = self.read_index().find(hash, is_key);
        if found.is_err() {
            self.ask_to_mend();
        }
        found
    }

    /// Keys in it.
    pub fn keys(&self) -> u64 {
        self.read_index().keys()
    }

    /// Bytes of all values in it.
    pub fn value_bytes(&self) -> u64 {
        self.figures.value_bytes.load(Ordering::Relaxed)
    }

    /// Its figures; `unit` is each name's last word.
    pub fn stat(&self) -> Vec<(String, u64)> {
        let segments = self.all_segments();
        let sum = |bytes: fn(&Segment) -> u64| segments.iter().map(|segment| bytes(segment)).sum::<u64>();
        let live_bytes = sum(|segment| segment.tally.live_bytes());
        let tombstone_bytes = sum(|segment| segment.tally.tombstone_bytes());
        let dead_bytes = sum(Segment::dead_bytes);
        let all_bytes = sum(Segment::length_bytes);
        let read = |figure: &AtomicU64| figure.load(Ordering::Relaxed);
        let (keys, index_faults, index_bytes) = {
            let index = self.read_index();
            (
                index.keys(),
                index.faults(),
                index.bytes() + lock(&self.journal).bytes(Gone::index_bytes),
            )
        };
        let figures = &self.figures;
        [
            ("keys_count", keys),
            ("value_bytes", self.value_bytes()),
            ("segments_count", segments.len() as u64),
            ("live_record_bytes", live_bytes),
            ("tombstone_record_bytes", tombstone_bytes),
            ("dead_record_bytes", dead_bytes),
            ("dead_share_percent", dead_bytes * 100 / all_bytes.max(1)),
            ("lost_segments_count", read(&figures.lost_segments)),
            ("cut_segments_count", read(&figures.cut_segments)),
            ("damaged_records_count", read(&figures.damaged_records)),
            ("damaged_index_parts_count", index_faults),
            ("damaged_segment_lists_count", self.list.damaged()),
            ("images_bytes", sum(Segment::charged_bytes)),
            ("index_bytes", index_bytes),
            ("index_per_key_bytes", index_bytes.div_ceil(keys.max(1))),
            ("record_written_bytes", read(&figures.record_bytes)),
            ("puts_count", read(&figures.puts)),
            ("deletes_count", read(&figures.deletes)),
            ("failed_operations_count", read(&figures.failed)),
            ("operations_remembered_count", self.operations.total() as u64),
            ("groups_synced_count", read(&figures.groups_synced)),
            ("queued_operations_count", self.queue.len() as u64),
            ("retired_waiting_count", lock(&self.journal).waiting() as u64),
        ]
        .into_iter()
        .chain(self.compaction.figures())
        .chain(self.scrub.figures())
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
    }

    /// Gives up all its memory: it was dropped, and nobody reads it any more.
    pub(crate) fn free(&self) {
        self.read_segments().values().for_each(|segment| segment.free());
        self.release(u64::MAX);
    }
}

fn directory_ref(index: &Index) -> DirectoryRef {
    let directory = index.directory();
    let remote = directory.remote();
    DirectoryRef {
        at: RemoteAddress {
            address: remote.address,
            rkey: remote.rkey,
        },
        version: directory.version,
        depth: directory.depth,
    }
}
