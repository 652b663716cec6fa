//! The log of one dataset: one thread that gives every record its sequence and place, makes groups of them durable
//! with one sync, and only then publishes and answers (**I1**).
//!
//! - A group lies in one segment. What would not fit it is the first of the next group.
//! - Everything that can be refused is refused before a record has a place: CRC, memory for the image, a slot.
//! - Image bytes past the published length are named by nothing, so a failed group is written over.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use kv_fabric::Domain;
use kv_proto::crc::{block_crcs, crc32c};
use kv_proto::hash::KeyHash;
use kv_proto::layout::{HeadValue, Locator, PartRef, record_kind, units, wire_len};
use kv_proto::record::encode_head;
use zerocopy::IntoBytes;

use super::limits::GROUP_BYTES_MAX;
use super::put::PutState;
use super::{Committed, Completion, Dataset, lock};
use crate::error::StorageError;

mod active;
mod group;
mod queue;
mod spare;

use active::Active;
use group::{Entry, Group, Record, Then};
use queue::Taken;
pub(crate) use queue::{Close, Op, Queue};
use spare::Spare;

/// The log thread's own state.
pub(crate) struct Log<D: Domain> {
    dataset: Arc<Dataset<D>>,
    active: Option<Active<D>>,
    spare: Spare<D>,
    /// A segment number that was taken and whose file could not be made.
    number_kept: Option<u32>,
    sequence_next: u64,
    group: Group,
    /// Whether a key is there after the records of the group, where they change that.
    overlay: HashMap<Vec<u8>, bool>,
    done: Vec<Completion>,
}

/// Starts the log thread of a dataset; sequences begin at `sequence_next`.
pub(crate) fn start<D: Domain>(dataset: &Arc<Dataset<D>>, sequence_next: u64) -> Result<(), StorageError> {
    let log = Log {
        dataset: Arc::clone(dataset),
        active: None,
        spare: Spare::default(),
        number_kept: None,
        sequence_next,
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

impl<D: Domain> Log<D> {
    fn run(mut self) {
        loop {
            match self.dataset.queue.take() {
                Taken::Ops(ops) => {
                    ops.into_iter().for_each(|op| self.place(op));
                    self.flush();
                    self.answer();
                    self.prepare_spare();
                }
                Taken::Closed(Close::Finish, _) => {
                    self.seal();
                    return;
                }
                Taken::Closed(Close::Dropped, ops) => {
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
        }
    }

    fn fail(&mut self, client: u64, operation: u64, token: u64, error: StorageError) {
        self.dataset.operations.finish(client, operation, None);
        self.dataset.figures.failed.fetch_add(1, Ordering::Relaxed);
        self.done.push(Completion {
            token,
            result: Err(error),
        });
    }

    /// Gives an operation its place in the group, or ends it.
    fn place(&mut self, op: Op) {
        match op {
            Op::Part { put, bytes } => {
                let len = bytes.len() as u64;
                if let Err(error) = self.place_part(&put, bytes) {
                    put.fail(&error);
                    put.queued_bytes.fetch_sub(len, Ordering::AcqRel);
                }
            }
            Op::Value {
                put,
                bytes,
                value_crc,
                token,
            } => {
                let computed = crc32c(&bytes);
                let placed = if computed == value_crc {
                    self.place_put(&put, record_kind::VALUE, bytes, value_crc, token)
                } else {
                    Err(StorageError::Crc {
                        announced: value_crc,
                        computed,
                    })
                };
                if let Err(error) = placed {
                    self.fail(put.client, put.operation, token, error);
                }
            }
            Op::Head {
                put,
                value_crc,
                token,
            } => {
                let placed = head_value(&put, value_crc).and_then(|value| {
                    let crc = crc32c(&value);
                    self.place_put(&put, record_kind::HEAD, value, crc, token)
                });
                if let Err(error) = placed {
                    self.fail(put.client, put.operation, token, error);
                }
            }
            Op::Delete {
                client,
                operation,
                key,
                token,
            } => {
                if let Err(error) = self.place_delete(client, operation, key, token) {
                    self.fail(client, operation, token, error);
                }
            }
        }
        if self.group.bytes() >= GROUP_BYTES_MAX {
            self.flush();
        }
    }

    fn place_part(&mut self, put: &Arc<PutState>, bytes: Vec<u8>) -> Result<(), StorageError> {
        if let Some(error) = lock(&put.progress).failed.clone() {
            return Err(error);
        }
        let at = self.make_room(&put.key, bytes.len())?;
        let part = {
            let mut progress = lock(&put.progress);
            progress.crc.update(&bytes);
            let part = progress.parts.len() as u32;
            progress.parts.push(PartRef {
                segment: at.segment,
                offset_units: (at.offset / 64) as u32,
            });
            part
        };
        let value_crc = crc32c(&bytes);
        let record = Record {
            kind: record_kind::PART,
            part,
            client: put.client,
            operation: put.operation,
            key: put.key.clone(),
            hash: put.hash,
            value: bytes,
            value_crc,
        };
        self.append(at, record, Then::Part(Arc::clone(put)));
        Ok(())
    }

    fn place_put(
        &mut self,
        put: &Arc<PutState>,
        kind: u8,
        value: Vec<u8>,
        value_crc: u32,
        token: u64,
    ) -> Result<(), StorageError> {
        let at = self.make_room(&put.key, value.len())?;
        // Making room may have failed the group that held its parts.
        if let Some(error) = lock(&put.progress).failed.clone() {
            return Err(error);
        }
        self.reserve_slot(&put.key, put.hash)?;
        self.overlay.insert(put.key.clone(), true);
        let record = Record {
            kind,
            part: 0,
            client: put.client,
            operation: put.operation,
            key: put.key.clone(),
            hash: put.hash,
            value,
            value_crc,
        };
        self.append(
            at,
            record,
            Then::Put {
                token,
                value_len: put.value_len,
            },
        );
        Ok(())
    }

    fn place_delete(
        &mut self,
        client: u64,
        operation: u64,
        key: Vec<u8>,
        token: u64,
    ) -> Result<(), StorageError> {
        let at = self.make_room(&key, 0)?;
        let hash = self.dataset.hash(&key);
        let existed = self.is_there(&key, hash);
        self.overlay.insert(key.clone(), false);
        let record = Record {
            kind: record_kind::TOMBSTONE,
            part: u32::from(existed),
            client,
            operation,
            key,
            hash,
            value: Vec::new(),
            value_crc: crc32c(&[]),
        };
        self.append(at, record, Then::Delete { token, existed });
        Ok(())
    }

    /// Whether a key is there once the group is published.
    fn is_there(&self, key: &[u8], hash: KeyHash) -> bool {
        self.overlay.get(key).copied().unwrap_or_else(|| {
            let index = self.dataset.read_index();
            index
                .find(hash, |locator| self.dataset.key_is(locator, key))
                .is_some()
        })
    }

    /// Has the index promise a slot where publishing the key will need one.
    fn reserve_slot(&self, key: &[u8], hash: KeyHash) -> Result<(), StorageError> {
        if self.is_there(key, hash) {
            return Ok(());
        }
        let mut index = self.dataset.write_index();
        let mut splits = Vec::new();
        let reserved = index.reserve(hash, &self.dataset.place(), &mut splits);
        self.dataset.note_splits(splits);
        reserved
    }

    /// Finds a place for a record: ends group and segment where it does not fit, and has memory for it.
    fn make_room(&mut self, key: &[u8], value_len: usize) -> Result<Place, StorageError> {
        let len = units(wire_len(key.len() as u64, value_len as u64)) * 64;
        loop {
            let Some(active) = self.active.as_mut() else {
                self.open_segment()?;
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
        let sequence = self.sequence_next;
        self.sequence_next += 1;
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
                    self.close_active();
                }
                self.dataset.write_index().forget_promises();
                self.fail_group(group, &failed.error);
            }
        }
    }

    fn fail_group(&mut self, group: Group, error: &StorageError) {
        for entry in group.entries {
            match entry.then {
                Then::Filler => {}
                Then::Part(put) => {
                    put.fail(error);
                    put.queued_bytes
                        .fetch_sub(entry.record.value.len() as u64, Ordering::AcqRel);
                }
                Then::Put { token, .. } | Then::Delete { token, .. } => {
                    self.fail(entry.record.client, entry.record.operation, token, error.clone());
                }
            }
        }
    }

    /// Has the index name what is durable, in the order of the log.
    fn publish(&mut self, group: Group) {
        let dataset = Arc::clone(&self.dataset);
        let figures = &dataset.figures;
        let mut index = dataset.write_index();
        for entry in group.entries {
            let Entry {
                record,
                mut committed,
                then,
                ..
            } = entry;
            let is_key = |locator: &Locator| dataset.key_is(locator, &record.key);
            let (token, old, new_len) = match then {
                Then::Filler => continue,
                Then::Part(put) => {
                    put.queued_bytes
                        .fetch_sub(record.value.len() as u64, Ordering::AcqRel);
                    continue;
                }
                Then::Put { token, value_len } => {
                    let old = index.put(record.hash, committed.locator, is_key);
                    committed.existed = old.is_some();
                    figures.puts.fetch_add(1, Ordering::Relaxed);
                    (token, old, value_len)
                }
                Then::Delete { token, existed } => {
                    let old = index.remove(record.hash, is_key);
                    committed.existed = existed;
                    committed.locator = Locator::default();
                    figures.deletes.fetch_add(1, Ordering::Relaxed);
                    (token, old, 0)
                }
            };
            let old_len = old.map_or(0, |old| dataset.value_len(&old));
            figures.value_bytes.fetch_add(new_len, Ordering::Relaxed);
            figures.value_bytes.fetch_sub(old_len, Ordering::Relaxed);
            dataset
                .operations
                .finish(record.client, record.operation, Some(committed));
            self.done.push(Completion {
                token,
                result: Ok(committed),
            });
        }
        index.forget_promises();
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

/// The head of a put whose parts are all placed, if they are those announced.
fn head_value(put: &PutState, value_crc: u32) -> Result<Vec<u8>, StorageError> {
    let progress = lock(&put.progress);
    if let Some(error) = progress.failed.clone() {
        return Err(error);
    }
    let computed = progress.crc.finish();
    if computed != value_crc {
        return Err(StorageError::Crc {
            announced: value_crc,
            computed,
        });
    }
    let head = HeadValue {
        total_len_bytes: put.value_len,
        part_len_bytes: put.part_bytes as u32,
        part_count: progress.parts.len() as u32,
        total_crc: value_crc,
        reserved: 0,
    };
    let mut value = Vec::with_capacity(head.as_bytes().len() + progress.parts.as_bytes().len());
    encode_head(&head, &progress.parts, &mut value);
    Ok(value)
}
