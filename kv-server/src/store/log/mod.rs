//! The log of one dataset: one thread that gives every record its sequence and place, makes groups of them durable
//! with one sync, and only then publishes and answers (**I1**).
//!
//! - A group lies in one segment. What would not fit it is the first of the next group.
//! - Everything that can be refused is refused before a record has a place: CRC, memory for the image, a slot.
//! - Image bytes past the published length are named by nothing, so a failed group is written over.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use kv_proto::crc::block_crcs;
use kv_proto::layout::{Locator, SegmentHeader, record_kind, units, wire_len};

use super::compact::footprint::Footprint;
use super::files::OpenFile;
use super::put::PutState;
use super::{Committed, Completion, Dataset, lock};
use crate::error::StorageError;

mod active;
mod copy;
mod group;
mod place;
mod queue;
mod spare;

use active::Active;
pub(crate) use copy::{Relocation, Task};
pub(crate) use group::Record;
use group::{Entry, Group, Then};
use queue::Taken;
pub(crate) use queue::{Close, Op, Queue};
use spare::Spare;

/// The log thread's own state.
pub(crate) struct Log {
    dataset: Arc<Dataset>,
    active: Option<Active>,
    spare: Spare,
    /// A segment number that was taken and whose file could not be made.
    number_kept: Option<u32>,
    /// A segment's file that was made and may not be listed.
    unlisted: Option<(SegmentHeader, OpenFile)>,
    sequence_next: u64,
    /// Whether what is being placed frees space, so that it may take what is kept for that.
    urgent: bool,
    group: Group,
    /// Whether a key is there after the records of the group, where they change that.
    overlay: HashMap<Vec<u8>, bool>,
    done: Vec<Completion>,
}

/// Starts the log thread of a dataset; sequences begin at `sequence_next`.
pub(crate) fn start(dataset: &Arc<Dataset>, sequence_next: u64) -> Result<(), StorageError> {
    let log = Log {
        dataset: Arc::clone(dataset),
        active: None,
        spare: Spare::default(),
        number_kept: None,
        unlisted: None,
        sequence_next,
        urgent: false,
        group: Group::default(),
        overlay: HashMap::new(),
        done: Vec::new(),
    };
    let thread = std::thread::Builder::new()
        .name("kv-log".to_owned())
        .spawn(move || log.run())
        .map_err(|error| StorageError::io("spawn a log thread for", &dataset.directory, error))?;
    *lock(&dataset.thread) = Some(thread);
    Ok(())
}

impl Log {
    fn run(mut self) {
        let mut answers = Answers {
            dataset: Arc::clone(&self.dataset),
            taken: Vec::new(),
        };
        loop {
            match self.dataset.queue.take() {
                Taken::Ops(ops) => {
                    answers.taken.extend(ops.iter().map(Owing::of));
                    ops.into_iter().for_each(|op| self.place(op));
                    self.flush();
                    answers.taken.clear();
                    self.answer();
                    self.dataset.tell_index_faults();
                    self.checkpoint();
                    self.prepare_spare();
                }
                Taken::Closed(Close::Finish, _) => {
                    self.seal();
                    if let Err(error) = self.dataset.pay_trailers() {
                        tracing::warn!(%error, "a full disk leaves a segment to be sealed by the next start");
                    }
                    return;
                }
                Taken::Closed(Close::Broken | Close::Dropped, ops) => {
                    let error = StorageError::NoDataset(self.dataset.name());
                    ops.into_iter().for_each(|op| self.refuse(op, &error));
                    self.answer();
                    return;
                }
            }
        }
    }

    fn answer(&mut self) {
        if self.done.is_empty() {
            // Parts alone: somebody may wait for their memory.
            self.dataset.shared.completions.wake();
        } else {
            self.dataset.shared.completions.push(&mut self.done);
        }
    }

    /// Ends an operation without a record.
    fn refuse(&mut self, op: Op, error: &StorageError) {
        match op {
            Op::Part { put, bytes } => {
                put.fail(error);
                put.queued_bytes.fetch_sub(bytes.len() as u64, Ordering::AcqRel);
            }
            Op::Value { put, token, .. } | Op::Head { put, token, .. } => {
                self.fail(put.client, put.operation, token, error.clone());
            }
            Op::Delete {
                client,
                operation,
                token,
                ..
            } => self.fail(client, operation, token, error.clone()),
            // Its channel is closed.
            Op::Task(_) => {}
        }
    }

    /// Has compaction make haste where memory or disk are short; and says so where it helps to wait.
    fn shortage(&self, error: StorageError) -> StorageError {
        let memory = matches!(error, StorageError::Memory { .. });
        if !memory && !matches!(error, StorageError::NoSpace { .. }) {
            return error;
        }
        let coming_back = self.dataset.is_coming_back(memory);
        self.dataset.shared.compaction.press();
        if coming_back { StorageError::Freeing } else { error }
    }

    fn fail(&mut self, client: u64, operation: u64, token: u64, error: StorageError) {
        let error = self.shortage(error);
        self.dataset.operations.finish(client, operation, None);
        self.dataset.figures.failed.fetch_add(1, Ordering::Relaxed);
        self.done.push(Completion {
            token,
            result: Err(error),
        });
    }

    /// Finds a place for a record: ends group and segment where it does not fit, and has memory for it.
    fn make_room(&mut self, key: &[u8], value_len: usize) -> Result<Place, StorageError> {
        let len = units(wire_len(key.len() as u64, value_len as u64)) * 64;
        let shared = Arc::clone(&self.dataset.shared);
        if !self.urgent {
            shared.reserve.check(&shared.files)?;
        }
        loop {
            let Some(active) = self.active.as_mut() else {
                match self.open_segment() {
                    Err(error) if error.is_full() && self.urgent && self.dataset.give_reserve_up() => {}
                    opened => opened?,
                }
                continue;
            };
            let Some(offset) = active.fit(len) else {
                if active.is_empty() {
                    return Err(StorageError::TooLarge {
                        len_bytes: value_len as u64,
                        max_bytes: self.dataset.part_bytes(),
                    });
                }
                self.flush();
                // A flush that failed may have closed it.
                if self.active.is_some() {
                    self.seal();
                }
                continue;
            };
            if !active.checkpoint.allows(active.tail, offset + len) {
                self.catch_up();
                continue;
            }
            if !active.segment.covers(offset + len) {
                self.add_extent()?;
                continue;
            }
            return Ok(Place {
                segment: active.segment.number,
                offset,
                len,
            });
        }
    }

    /// Puts a record at a place that [`Log::make_room`] gave just before.
    fn append(&mut self, at: Place, record: Record, then: Then) {
        let Some(active) = self.active.as_mut() else {
            return;
        };
        let sequence = record.sequence.unwrap_or(self.sequence_next);
        if record.sequence.is_none() {
            self.sequence_next += 1;
        }
        if active.tail < at.offset {
            self.group.push_filler(active, at.offset);
        }
        let locator = Locator {
            segment: at.segment,
            offset_units: (at.offset / 64) as u32,
            value_len_bytes: record.value.len() as u32,
            key_len_bytes: record.key.len() as u16,
            tag: record.hash.tag(),
        };
        let crcs = block_crcs(&record.value);
        let prefix = record.encode_prefix(active, sequence, &crcs);
        active.tail = at.offset + at.len;
        super::segment::widen(&mut active.sequences, sequence);
        self.group.push(Entry {
            offset: at.offset,
            prefix,
            record,
            committed: Committed {
                sequence,
                locator,
                existed: false,
            },
            then,
        });
    }

    /// Makes the group durable, publishes it and answers; or fails all of it.
    fn flush(&mut self) {
        self.overlay.clear();
        let group = std::mem::take(&mut self.group);
        let Some(active) = self.active.as_mut().filter(|_| !group.is_empty()) else {
            return;
        };
        for entry in &group.entries {
            // Afterwards the records say of these keys what the index is only about to.
            // Where that fails it is said there, and again by what is to be changed.
            let _ = self.dataset.mend(entry.record.hash);
        }
        match active.make_durable(&self.dataset.shared.files, &group) {
            Ok(()) => {
                self.dataset.figures.groups_synced.fetch_add(1, Ordering::Relaxed);
                self.dataset
                    .figures
                    .record_bytes
                    .fetch_add(group.bytes(), Ordering::Relaxed);
                self.publish(group);
            }
            Err(failed) => {
                tracing::error!(error = %failed.error, segment = active.segment.number, "a group of writes failed");
                if failed.closed {
                    // The next start may believe its heads: their parts stay as long as they do.
                    active.segment.hold(group.pin_parts(&self.dataset));
                    self.close_active();
                }
                self.dataset.write_index().forget_promises();
                let full = matches!(failed.error, StorageError::NoSpace { .. });
                let (deletes, group) = if full && group.has_deletes() && self.dataset.give_reserve_up() {
                    group.split_deletes()
                } else {
                    (Vec::new(), group)
                };
                self.fail_group(group, &failed.error);
                self.place_again(deletes);
            }
        }
    }

    /// Places deletes that found the disk full: there is room that was kept for them.
    fn place_again(&mut self, deletes: Vec<Op>) {
        if deletes.is_empty() {
            return;
        }
        let urgent = self.urgent;
        deletes.into_iter().for_each(|op| self.place(op));
        self.flush();
        self.urgent = urgent;
    }

    fn fail_group(&mut self, group: Group, error: &StorageError) {
        for entry in group.entries {
            match entry.then {
                Then::Filler => {}
                Then::Part(put) => {
                    put.fail(&self.shortage(error.clone()));
                    put.queued_bytes
                        .fetch_sub(entry.record.value.len() as u64, Ordering::AcqRel);
                }
                Then::Copy(landing) => landing.answer(Err(error.clone())),
                Then::Put { token, .. } | Then::Delete { token, .. } => {
                    self.fail(entry.record.client, entry.record.operation, token, error.clone());
                }
            }
        }
    }

    /// Answers a write that is durable and that the index cannot name now: what comes of it is not known. The record
    /// counts once the group of its key is filled anew.
    fn fail_unnamed(&mut self, record: &Record, token: u64, error: StorageError) {
        let source = std::io::Error::other(error);
        let error = StorageError::io("name a record in the index of", &self.dataset.directory, source);
        self.fail(record.client, record.operation, token, error);
    }

    /// What an entry replaces as the index is now, and where all of that lies.
    fn replaces(&self, entry: &Entry) -> Option<(Locator, Footprint)> {
        let dataset = &self.dataset;
        let record = &entry.record;
        let replaced = match &entry.then {
            Then::Put { .. } | Then::Delete { .. } => {
                // Where the index cannot tell it is said when it is to be changed.
                let found = dataset.lookup_hashed(record.hash, &record.key);
                found.ok().flatten()?
            }
            Then::Copy(landing) if record.kind != record_kind::TOMBSTONE => landing.from(),
            _ => return None,
        };
        Some((replaced, dataset.footprint(&replaced)))
    }

    /// Has the index name what is durable, in the order of the log.
    fn publish(&mut self, group: Group) {
        let dataset = Arc::clone(&self.dataset);
        let figures = &dataset.figures;
        // What lies in files is read before: who reads the index does not wait for a disk.
        let before: Vec<_> = group.entries.iter().map(|entry| self.replaces(entry)).collect();
        let mut index = dataset.write_index();
        let mut replaced = Vec::new();
        for (entry, before) in group.entries.into_iter().zip(before) {
            let Entry {
                record,
                mut committed,
                then,
                ..
            } = entry;
            // What else has its hash by now was written in this group: it is in memory.
            let is_key = |locator: &Locator| {
                before.as_ref().is_some_and(|(known, _)| known == locator)
                    || dataset.is_in_memory(locator) && dataset.key_is(locator, &record.key)
            };
            let (token, old) = match then {
                Then::Filler => continue,
                Then::Part(put) => {
                    put.queued_bytes
                        .fetch_sub(record.value.len() as u64, Ordering::AcqRel);
                    continue;
                }
                Then::Copy(landing) => {
                    let from = before.map(|(_, footprint)| footprint);
                    self.land(&mut index, &record, committed.locator, &landing, from);
                    continue;
                }
                Then::Put { token, pins: _pins } => {
                    let old = match index.put(record.hash, committed.locator, is_key) {
                        Ok(old) => old,
                        Err(error) => {
                            self.fail_unnamed(&record, token, error);
                            continue;
                        }
                    };
                    committed.existed = old.is_some();
                    let value = dataset.footprint(&committed.locator);
                    dataset.count_live(&value);
                    figures
                        .value_bytes
                        .fetch_add(value.value_len_bytes, Ordering::Relaxed);
                    figures.puts.fetch_add(1, Ordering::Relaxed);
                    (token, old)
                }
                Then::Delete { token, existed } => {
                    let old = match index.remove(record.hash, is_key) {
                        Ok(old) => old,
                        Err(error) => {
                            self.fail_unnamed(&record, token, error);
                            continue;
                        }
                    };
                    index.join_around(record.hash, &dataset.place(), &mut replaced);
                    committed.existed = existed;
                    if let Some(segment) = dataset.segment(committed.locator.segment) {
                        segment
                            .tally
                            .add_tombstone(units(committed.locator.wire_len_bytes()) * 64);
                    }
                    committed.locator = Locator::default();
                    figures.deletes.fetch_add(1, Ordering::Relaxed);
                    (token, old)
                }
            };
            if let Some(old) = old {
                let old = match before {
                    Some((known, footprint)) if known == old => footprint,
                    _ => dataset.footprint(&old),
                };
                dataset.count_dead(&old);
                // A record that was named when its group was filled anew was never counted.
                let less = |bytes: u64| Some(bytes.saturating_sub(old.value_len_bytes));
                let _ = figures
                    .value_bytes
                    .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
            }
            dataset
                .operations
                .finish(record.client, record.operation, Some(committed));
            self.done.push(Completion {
                token,
                result: Ok(committed),
            });
        }
        index.forget_promises();
        dataset.note_replaced(replaced);
    }
}

/// Who waits for what became of an operation that the log took.
enum Owing {
    Part(Weak<PutState>),
    Write {
        client: u64,
        operation: u64,
        token: u64,
    },
    /// Compaction: its channel is closed.
    Nobody,
}

impl Owing {
    fn of(op: &Op) -> Self {
        match op {
            Op::Task(_) => Self::Nobody,
            Op::Part { put, .. } => Self::Part(Arc::downgrade(put)),
            Op::Value { put, token, .. } | Op::Head { put, token, .. } => Self::Write {
                client: put.client,
                operation: put.operation,
                token: *token,
            },
            Op::Delete {
                client,
                operation,
                token,
                ..
            } => Self::Write {
                client: *client,
                operation: *operation,
                token: *token,
            },
        }
    }
}

/// What is answered where the log thread is lost to a bug: refused is better than never answered.
struct Answers {
    dataset: Arc<Dataset>,
    taken: Vec<Owing>,
}

impl Drop for Answers {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let dataset = &self.dataset;
        let queued = dataset.queue.break_off();
        self.taken.extend(queued.iter().map(Owing::of));
        // Their memory is free when somebody who waits for some is woken.
        drop(queued);
        let error = queue::broken();
        let mut done = Vec::new();
        for owing in self.taken.drain(..) {
            match owing {
                Owing::Nobody => {}
                Owing::Part(put) => {
                    if let Some(put) = put.upgrade() {
                        put.fail(&error);
                    }
                }
                Owing::Write {
                    client,
                    operation,
                    token,
                } => {
                    dataset.operations.finish(client, operation, None);
                    dataset.figures.failed.fetch_add(1, Ordering::Relaxed);
                    let result = Err(error.clone());
                    done.push(Completion { token, result });
                }
            }
        }
        // Also where nothing is answered: somebody may wait for the memory of parts.
        dataset.shared.completions.push(&mut done);
    }
}

/// Where the next record goes.
#[derive(Debug, Clone, Copy)]
struct Place {
    segment: u32,
    offset: u64,
    /// Its length, rounded up to whole units.
    len: u64,
}
