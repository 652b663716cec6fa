//! The index where its memory changed though nobody wrote there: naming that, and filling a group anew from the records.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::time::Instant;

use kv_proto::hash::KeyHash;
use kv_proto::layout::{Locator, record_kind, segment_state};

use super::super::check::key_text;
use super::super::compact::Walk;
use super::super::index::{Covered, Fault, Part};
use super::super::limits::MEND_REST;
use super::super::lock;
use super::super::log::{Op, Task};
use super::Dataset;
use crate::error::StorageError;

/// The newest record of a key that was met: its place among all, and where it lies, if it is no tombstone.
type Newest = ((u64, u32, u32), Option<Locator>);

impl Dataset {
    /// Asks the log to put the index right where it is known not to be.
    pub(crate) fn ask_to_mend(&self) {
        if !self.mending.swap(true, Ordering::AcqRel) {
            // Closed: nobody asks any more.
            let _ = self.queue.push(Op::Task(Task::Mend));
        }
    }

    /// Names in the log what was found wrong in the memory of the index, and has it put right.
    pub(crate) fn tell_index_faults(&self) {
        let faults = self.read_index().take_faults();
        for fault in &faults {
            self.tell_index_fault(fault);
        }
        if faults.iter().any(|fault| !fault.mended) {
            self.ask_to_mend();
        }
    }

    fn tell_index_fault(&self, fault: &Fault) {
        let (what, number) = match fault.part {
            Part::Bucket(bucket) => ("bucket", bucket),
            Part::Entry(entry) => ("directory entry", entry),
        };
        let segment = fault.locator.and_then(|locator| self.segment(locator.segment));
        let key = fault
            .locator
            .zip(segment)
            .and_then(|(locator, segment)| segment.key_at(&locator));
        tracing::error!(
            dataset = %self.name(),
            group = fault.group,
            what,
            number,
            segment = fault.locator.map(|locator| locator.segment),
            offset = fault.locator.map(|locator| locator.offset_bytes()),
            key = key.map(|key| key_text(&key)),
            mended = fault.mended,
            "the index in memory is not what was written there: clients refuse it until it is put right; test this machine's memory"
        );
    }

    /// Puts the index right wherever it is known not to be. For the log thread, as [`Dataset::refill_group`].
    ///
    /// # Errors
    /// As [`Dataset::refill_group`].
    pub(crate) fn mend_all(&self) -> Result<(), StorageError> {
        // Who finds more from now on asks again.
        self.mending.store(false, Ordering::Release);
        loop {
            let Some(hash) = self.read_index().unsound() else {
                return Ok(());
            };
            self.refill_group(hash)?;
        }
    }

    /// Puts the index right where this key belongs, if it is not. For the log thread, as [`Dataset::refill_group`].
    ///
    /// # Errors
    /// As [`Dataset::refill_group`].
    pub(crate) fn mend(&self, hash: KeyHash) -> Result<(), StorageError> {
        if self.read_index().is_sound(hash) {
            return Ok(());
        }
        self.tell_index_faults();
        self.refill_group(hash)
    }

    /// Fills the group that `hash` belongs to anew with what the records say. For the log thread, with nothing durable
    /// that the index does not name yet: what else there is of its keys is not known to be live.
    ///
    /// # Errors
    /// Why not all records can be read, or there is no memory; or why not a moment ago.
    pub(crate) fn refill_group(&self, hash: KeyHash) -> Result<(), StorageError> {
        let begun = Instant::now();
        let mut unmended = lock(&self.unmended);
        if let Some((error, until)) = &*unmended
            && begun < *until
        {
            return Err(error.clone());
        }
        let refilled = self.try_refill(hash);
        *unmended = refilled.as_ref().err().map(|error| {
            tracing::error!(%error, dataset = %self.name(), "a group of the index cannot be filled anew now: keys of it are refused");
            (error.clone(), Instant::now() + begun.elapsed() * MEND_REST)
        });
        refilled
    }

    fn try_refill(&self, hash: KeyHash) -> Result<(), StorageError> {
        let covered = self.read_index().covered(hash);
        let keys = self.keys_of(covered)?;
        tracing::warn!(dataset = %self.name(), keys = keys.len(), "a group of the index is filled anew from the records");
        let mut index = self.write_index();
        if index.covered(hash) != covered {
            return Err(StorageError::Mending);
        }
        let replaced = index.refill(hash, &keys, &self.place())?;
        self.note_replaced(vec![replaced]);
        Ok(())
    }

    /// What the records say of the keys of a group.
    fn keys_of(&self, covered: Covered) -> Result<Vec<(KeyHash, Locator)>, StorageError> {
        let mut newest: HashMap<(u64, u64), Newest> = HashMap::new();
        for segment in self.all_segments() {
            let number = segment.number;
            if segment.state() == segment_state::LOST {
                // Without what lies there older values would be served, and keys that were deleted.
                let source = std::io::Error::other("the segment is lost");
                return Err(StorageError::io("walk", &self.segment_path(number), source));
            }
            let mut walk = Walk::new(&self.shared.files, segment, self.segment_path(number));
            while let Some(found) = walk.next()? {
                let hash = self.hash(found.key());
                if !covered.covers(hash) || found.header.kind == record_kind::PART {
                    continue;
                }
                let locator = found.locator(number, hash);
                let place = (found.header.sequence, number, locator.offset_units);
                let there = (found.header.kind != record_kind::TOMBSTONE).then_some(locator);
                let known = newest.entry((hash.slot, hash.high)).or_insert((place, there));
                if known.0 < place {
                    *known = (place, there);
                }
            }
        }
        let there = newest
            .into_iter()
            .filter_map(|((slot, high), (_, locator))| Some((KeyHash { slot, high }, locator?)));
        Ok(there.collect())
    }
}
