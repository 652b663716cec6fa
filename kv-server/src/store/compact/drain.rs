//! Copying out of a segment what is wanted of it.
//!
//! - The index says what is live: a record that no slot names, and a part that no head names which a slot names, is
//!   dead, and stays so.
//! - The log writes each copy and has the index name it, if its source is still what the slot names.
//! - One batch is on its way at a time.

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Instant;

use kv_proto::crc::crc32c;
use kv_proto::hash::KeyHash;
use kv_proto::layout::{HeadValue, Locator, PartRef, record_kind};
use kv_proto::parts::part_locator;
use kv_proto::record::{encode_head, parse_head};

use super::super::Dataset;
use super::super::limits::{COPY_BATCH_BYTES, COPY_BATCH_RECORDS, TOMBSTONES_JUDGED_MAX};
use super::super::log::{Op, Record, Relocation, Task};
use super::super::segment::Segment;
use super::tombstones::{Judged, Tombstones};
use super::walk::{Found, Walk};
use super::{Compactor, Ended};
use crate::error::StorageError;

/// A segment that is being copied out of.
pub(super) struct Drain<'a> {
    compactor: &'a Compactor,
    dataset: &'a Dataset,
    walk: Walk<'a>,
    number: u32,
    batch: Vec<Relocation>,
    batch_bytes: usize,
    /// When the disk was last begun to be kept busy.
    since: Instant,
    /// The large value met last: its other parts come next.
    large: Option<Large>,
}

impl<'a> Drain<'a> {
    pub(super) fn new(compactor: &'a Compactor, dataset: &'a Dataset, segment: &Arc<Segment>) -> Self {
        let path = dataset.segment_path(segment.number);
        Self {
            compactor,
            dataset,
            number: segment.number,
            walk: Walk::new(&dataset.shared.files, Arc::clone(segment), path),
            batch: Vec::new(),
            batch_bytes: 0,
            since: Instant::now(),
            large: None,
        }
    }

    /// Copies all that is wanted; afterwards nothing in the segment is.
    pub(super) fn run(mut self) -> Result<(), Ended> {
        let mut tombstones = Tombstones::default();
        while let Some(found) = self.walk.next()? {
            let hash = self.dataset.hash(found.key());
            match found.header.kind {
                record_kind::VALUE => {
                    if self.is_named(&found, hash)? {
                        self.add(&found, hash)?;
                    }
                }
                record_kind::HEAD | record_kind::PART => self.large(&found, hash)?,
                _ => {
                    self.tombstone(&mut tombstones, &found, hash)?;
                    if tombstones.len() == TOMBSTONES_JUDGED_MAX {
                        self.copy_tombstones(std::mem::take(&mut tombstones))?;
                    }
                }
            }
            self.stop_or_rest()?;
        }
        self.copy_tombstones(tombstones)?;
        self.flush()
    }

    /// Bytes of tombstones that are not wanted.
    pub(super) fn judge(mut self) -> Result<u64, Ended> {
        let mut tombstones = Tombstones::default();
        let mut unwanted_bytes = 0;
        while let Some(found) = self.walk.next()? {
            if found.header.kind != record_kind::TOMBSTONE {
                continue;
            }
            let hash = self.dataset.hash(found.key());
            if !self.tombstone(&mut tombstones, &found, hash)? {
                unwanted_bytes += found.stored_bytes();
            }
            if tombstones.len() == TOMBSTONES_JUDGED_MAX {
                let judged = self.judged(std::mem::take(&mut tombstones))?;
                unwanted_bytes += judged.unwanted_bytes;
            }
            self.stop_or_rest()?;
        }
        Ok(unwanted_bytes + self.judged(tombstones)?.unwanted_bytes)
    }

    /// Looks through the other segments at the same pace.
    fn judged(&mut self, tombstones: Tombstones) -> Result<Judged, Ended> {
        let (dataset, number) = (self.dataset, self.number);
        tombstones.judge(dataset, number, &mut || self.stop_or_rest())
    }

    /// Takes a tombstone in, unless its key has a value again; whether it did.
    fn tombstone(
        &self,
        tombstones: &mut Tombstones,
        found: &Found,
        hash: KeyHash,
    ) -> Result<bool, StorageError> {
        let there = self.dataset.lookup_hashed(hash, found.key())?.is_some();
        if !there {
            tombstones.add(hash, found);
        }
        Ok(!there)
    }

    fn copy_tombstones(&mut self, tombstones: Tombstones) -> Result<(), Ended> {
        if tombstones.len() == 0 {
            return Ok(());
        }
        let Judged { wanted, .. } = self.judged(tombstones)?;
        for offset in wanted {
            let found = self.walk.at(offset)?;
            let hash = self.dataset.hash(found.key());
            self.add(&found, hash)?;
        }
        Ok(())
    }

    fn is_named(&self, found: &Found, hash: KeyHash) -> Result<bool, StorageError> {
        let here = found.locator(self.number, hash);
        Ok(self.dataset.find(hash, |locator| *locator == here)?.is_some())
    }

    /// Puts a record into the batch.
    fn add(&mut self, found: &Found, hash: KeyHash) -> Result<(), Ended> {
        let value = self.walk.value(found)?;
        self.push(record_of(found, hash, value), found.locator(self.number, hash))
    }

    fn push(&mut self, record: Record, from: Locator) -> Result<(), Ended> {
        self.batch_bytes += record.value.len();
        self.batch.push(Relocation { record, from });
        if self.batch_bytes >= COPY_BATCH_BYTES || self.batch.len() >= COPY_BATCH_RECORDS {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Ended> {
        self.flush_to(|_, _| ())
    }

    /// Has the log write the batch, and tells where each record of it went.
    fn flush_to(&mut self, mut landed: impl FnMut(usize, Locator)) -> Result<(), Ended> {
        let copies = std::mem::take(&mut self.batch);
        self.batch_bytes = 0;
        let count = copies.len();
        if count == 0 {
            return Ok(());
        }
        let (done, answers) = channel();
        self.dataset.queue.push(Op::Task(Task::Copy { copies, done }))?;
        let mut failed = None;
        for _ in 0..count {
            // Closed: the log has ended.
            let (number, result) = answers.recv().map_err(|_| Ended::Gone)?;
            match result {
                Ok(Some(to)) => landed(number, to),
                Ok(None) => {}
                Err(error) => failed = Some(error),
            }
        }
        match failed {
            Some(error) => Err(Ended::Later(error)),
            None => self.stop_or_rest(),
        }
    }

    /// Rests as long as the share asks; ends where compaction is to stop.
    fn stop_or_rest(&mut self) -> Result<(), Ended> {
        if self.compactor.is_stopping() || self.dataset.is_dropped() {
            return Err(Ended::Gone);
        }
        let busy = self.since.elapsed();
        if busy >= super::BUSY_AT_ONCE {
            self.compactor.rest_after(busy);
            self.since = Instant::now();
        }
        Ok(())
    }

    /// Moves a large value's parts that lie in this segment, and its head, where `found` is the one or the other of a
    /// value that is there.
    fn large(&mut self, found: &Found, hash: KeyHash) -> Result<(), Ended> {
        let Some(at) = self.dataset.lookup_hashed(hash, found.key())? else {
            return Ok(());
        };
        let here = found.locator(self.number, hash);
        if found.header.kind == record_kind::HEAD && at != here {
            return Ok(());
        }
        if self.large.as_ref().is_none_or(|large| large.at != at) {
            self.large = self.large_at(at)?;
        }
        let Some(large) = self.large.take() else {
            return Ok(());
        };
        let named = |part: &PartRef| part.segment == here.segment && part.offset_units == here.offset_units;
        let part = large.parts.get(found.header.part as usize);
        if found.header.kind == record_kind::HEAD || part.is_some_and(named) {
            return self.move_large(large, hash);
        }
        self.large = Some(large);
        Ok(())
    }

    /// The large value whose HEAD lies there; `None` for a value that is not large.
    fn large_at(&self, at: Locator) -> Result<Option<Large>, Ended> {
        // It was compacted, or overwritten, since it was looked up: by nobody else.
        let segment = self.dataset.segment(at.segment).ok_or(Ended::Gone)?;
        let path = self.dataset.segment_path(at.segment);
        let mut walk = Walk::new(&self.dataset.shared.files, segment, path.clone());
        let found = walk.at(at.offset_bytes())?;
        if found.header.kind != record_kind::HEAD {
            return Ok(None);
        }
        let value = walk.value(&found)?;
        let (head, parts) = parse_head(&value).map_err(|source| StorageError::Damaged { path, source })?;
        Ok(Some(Large {
            at,
            found,
            head,
            parts,
        }))
    }

    fn move_large(&mut self, mut large: Large, hash: KeyHash) -> Result<(), Ended> {
        self.flush()?;
        // Which of its parts each record of the batch is.
        let mut moving = Vec::new();
        for index in 0..large.head.part_count {
            let part = part_locator(&large.at, &large.head, &large.parts, index);
            let Some(part) = part.filter(|part| part.segment == self.number) else {
                continue;
            };
            let found = self.walk.at(part.offset_bytes())?;
            let value = self.walk.value(&found)?;
            moving.push(index as usize);
            self.batch_bytes += value.len();
            self.batch.push(Relocation {
                record: record_of(&found, hash, value),
                from: part,
            });
            if self.batch_bytes >= COPY_BATCH_BYTES || self.batch.len() >= COPY_BATCH_RECORDS {
                self.land_parts(&mut large, &mut moving)?;
            }
        }
        self.land_parts(&mut large, &mut moving)?;
        let mut value = Vec::new();
        encode_head(&large.head, &large.parts, &mut value);
        let mut record = record_of(&large.found, hash, Vec::new());
        record.value_crc = crc32c(&value);
        record.value = value;
        self.batch.push(Relocation {
            record,
            from: large.at,
        });
        self.flush()
    }

    fn land_parts(&mut self, large: &mut Large, moving: &mut Vec<usize>) -> Result<(), Ended> {
        self.flush_to(|number, to| {
            large.parts[moving[number]] = PartRef {
                segment: to.segment,
                offset_units: to.offset_units,
            };
        })?;
        moving.clear();
        Ok(())
    }
}

/// A large value that is there.
struct Large {
    /// Where its HEAD lies.
    at: Locator,
    found: Found,
    head: HeadValue,
    parts: Vec<PartRef>,
}

/// The record anew, as it is.
fn record_of(found: &Found, hash: KeyHash, value: Vec<u8>) -> Record {
    let header = &found.header;
    Record {
        sequence: Some(header.sequence),
        kind: header.kind,
        part: header.part,
        client: header.client_id,
        operation: header.operation,
        key: found.key().to_vec(),
        hash,
        value,
        value_crc: header.value_crc,
    }
}
