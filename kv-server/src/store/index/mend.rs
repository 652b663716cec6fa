//! Memory of the index that changed though nobody wrote there.
//!
//! - A bucket is held to its checksum before anything that it says is used: written again it would get a checksum that
//!   agrees with what flipped, and a key would be gone that is there.
//! - Of one bit that flipped the checksum says which it was: with that bit as it was, it agrees. Stamp, depth, prefix and
//!   all of the directory this index knows besides.
//! - Where more of a bucket changed, its group is filled anew from the records: [`Index::refill`].

use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use kv_proto::hash::{KeyHash, directory_index, first_hash};
use kv_proto::layout::{BUCKET_SLOTS, Bucket, GROUP_BUCKETS, Locator, Slot};
use zerocopy::IntoBytes;

use super::super::limits::{FAULTS_KNOWN_MAX, FAULTS_UNTOLD_MAX};
use super::super::lock;
use super::{Group, Index, Place, Replaced};
use crate::error::StorageError;

/// First byte of a bucket's slots.
const SLOTS_AT: usize = std::mem::offset_of!(Bucket, slots);

/// Which part of the index it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// A bucket of the group.
    Bucket(u32),
    /// An entry of the directory, which names the group.
    Entry(u32),
}

/// Memory that was found to have changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) group: u32,
    pub(crate) part: Part,
    /// What the slot names in which a bit flipped, where it was one that names something.
    pub(crate) locator: Option<Locator>,
    /// Whether it is as it was again.
    pub(crate) mended: bool,
}

/// What was found.
#[derive(Default)]
pub(super) struct Faults {
    count: AtomicU64,
    untold: Mutex<Vec<Fault>>,
    /// Group and bucket of what could not be put right: it is met again and again.
    known: Mutex<HashSet<(u32, u32)>>,
}

impl Faults {
    fn note(&self, fault: Fault) {
        if let (Part::Bucket(bucket), false) = (fault.part, fault.mended) {
            let mut known = lock(&self.known);
            if known.len() == FAULTS_KNOWN_MAX || !known.insert((fault.group, bucket)) {
                return;
            }
        }
        self.count.fetch_add(1, Ordering::Release);
        let mut untold = lock(&self.untold);
        if untold.len() < FAULTS_UNTOLD_MAX {
            untold.push(fault);
        }
    }
}

/// The group of a key's hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Covered {
    depth: u8,
    prefix: u32,
}

impl Covered {
    /// Whether a key of this hash belongs there.
    pub(crate) fn covers(self, hash: KeyHash) -> bool {
        directory_index(hash.slot, self.depth) == self.prefix
    }
}

impl Index {
    /// What was found wrong so far.
    pub(crate) fn faults(&self) -> u64 {
        self.faults.count.load(Ordering::Acquire)
    }

    /// What was found wrong and is not told of yet.
    pub(crate) fn take_faults(&self) -> Vec<Fault> {
        std::mem::take(&mut *lock(&self.faults.untold))
    }

    /// A bucket of a group as it was written.
    ///
    /// # Errors
    /// [`StorageError::Mending`] where that cannot be told any more.
    pub(super) fn bucket(&self, group: &Group, index: u32) -> Result<Bucket, StorageError> {
        let read = self.blocks.read(group.block, index);
        if self.scope.bucket_checksum(group.number, index, &read) == read.checksum
            && read.stamp == group.stamp()
            && read.depth_prefix == group.depth_prefix()
        {
            return Ok(read);
        }
        let fault = |locator, mended| Fault {
            group: group.number,
            part: Part::Bucket(index),
            locator,
            mended,
        };
        let Some((mut bucket, slot)) = self.as_written(group, index, &read) else {
            self.faults.note(fault(None, false));
            return Err(StorageError::Mending);
        };
        // Also where others only read: whoever else finds this writes the same.
        self.blocks
            .write(&self.scope, group.block, group.number, index, &mut bucket);
        let locator = slot.map(|slot| bucket.slots[slot].locator);
        let locator = locator.filter(|locator| locator.segment != 0);
        self.faults.note(fault(locator, true));
        Ok(bucket)
    }

    /// A bucket as it was, and the slot in which a bit flipped, if it was in one.
    fn as_written(&self, group: &Group, index: u32, read: &Bucket) -> Option<(Bucket, Option<usize>)> {
        let mut bucket = *read;
        bucket.stamp = group.stamp();
        bucket.depth_prefix = group.depth_prefix();
        let checksum = |bucket: &Bucket| self.scope.bucket_checksum(group.number, index, bucket);
        // The checksum itself may be what flipped.
        if (checksum(&bucket) ^ read.checksum).count_ones() <= 1 {
            return Some((bucket, None));
        }
        for byte in SLOTS_AT..size_of::<Bucket>() {
            for bit in 0..u8::BITS {
                bucket.as_mut_bytes()[byte] ^= 1 << bit;
                if checksum(&bucket) == read.checksum {
                    return Some((bucket, Some((byte - SLOTS_AT) / size_of::<Slot>())));
                }
                bucket.as_mut_bytes()[byte] ^= 1 << bit;
            }
        }
        None
    }

    /// Whether both buckets of a key are as they were written, or are again.
    pub(crate) fn is_sound(&self, hash: KeyHash) -> bool {
        self.find_slot(hash, |_| false).is_ok()
    }

    /// A hash of a group of which a bucket is known not to be what was written.
    pub(crate) fn unsound(&self) -> Option<KeyHash> {
        let known = lock(&self.faults.known);
        if known.is_empty() {
            return None;
        }
        let is_known = |group: &&Group| known.iter().any(|(number, _)| *number == group.number);
        let group = self.groups.iter().find(is_known)?;
        let position = u64::from(group.prefix) << (32 - u32::from(group.depth));
        Some(KeyHash {
            slot: first_hash(position as u32),
            high: 0,
        })
    }

    /// Looks at every byte of the group that covers slot hash `from`, and of the directory's entries for it, and puts
    /// right what can be; whether all is as it was written then, and the first hash after the group.
    pub(crate) fn look_over(&self, from: u64) -> (bool, Option<u64>) {
        let at = self.group_at(from);
        let group = &self.groups[at];
        let bad = (0..GROUP_BUCKETS).filter(|bucket| self.bucket(group, *bucket).is_err());
        let sound = bad.count() == 0;
        let (first, count) = self.range_of(at);
        let expected = self.entry_of(at);
        for index in first..first + count {
            if self.directory.read(index) != self.directory.checked(&self.scope, index, expected) {
                self.directory.write(&self.scope, index, expected);
                self.faults.note(Fault {
                    group: group.number,
                    part: Part::Entry(index),
                    locator: None,
                    mended: true,
                });
            }
        }
        (sound, self.first_after(at))
    }

    /// The group that a key belongs to.
    pub(crate) fn covered(&self, hash: KeyHash) -> Covered {
        let group = &self.groups[self.group_of(hash)];
        Covered {
            depth: group.depth,
            prefix: group.prefix,
        }
    }

    /// Replaces the group that `hash` belongs to by one with these keys, which are all that it has.
    ///
    /// # Errors
    /// Those of [`Index::reserve`].
    pub(crate) fn refill(
        &mut self,
        hash: KeyHash,
        keys: &[(KeyHash, Locator)],
        place: &Place<'_>,
    ) -> Result<Replaced, StorageError> {
        let at = self.group_of(hash);
        let slots = keys.iter().map(|(hash, locator)| {
            let slot = Slot {
                hash: hash.slot,
                locator: *locator,
            };
            (0, slot)
        });
        let full = StorageError::Limit {
            what: "keys of a group of the index",
            limit: (GROUP_BUCKETS as usize * BUCKET_SLOTS) as u64,
        };
        let gathered = self.gather_slots(slots.collect(), &[at], None).ok_or(full)?;
        let number = self.number()?;
        let block = self.blocks.take(place)?;
        let counts = &self.groups[at].counts;
        let had: usize = (0..GROUP_BUCKETS).map(|bucket| counts.used(bucket)).sum();
        self.keys = self.keys - had as u64 + keys.len() as u64;
        let old = self.groups[at].number;
        lock(&self.faults.known).retain(|(group, _)| *group != old);
        Ok(self.replace_by_one(at, &gathered, number, block))
    }
}

#[cfg(test)]
impl Index {
    /// Changes a byte of the bucket in which a key's slot lies, as failing memory would.
    pub(crate) fn spoil(&self, hash: KeyHash, byte: usize, mask: u8) {
        self.spoil_all(hash, std::iter::once(byte), mask);
    }

    /// As [`Index::spoil`], of several bytes at once.
    pub(crate) fn spoil_all(&self, hash: KeyHash, bytes: impl Iterator<Item = usize>, mask: u8) {
        let found = self.find_slot(hash, |_| true).unwrap().expect("the key is there");
        let block = self.groups[found.group].block;
        bytes.for_each(|byte| self.blocks.spoil(block, found.bucket, byte, mask));
    }

    /// First byte, in its bucket, of the slot of a key.
    pub(crate) fn slot_at(&self, hash: KeyHash) -> usize {
        let found = self.find_slot(hash, |_| true).unwrap().expect("the key is there");
        SLOTS_AT + found.slot * size_of::<Slot>()
    }

    /// Changes a byte of the directory's entry for a key.
    pub(crate) fn spoil_entry(&self, hash: KeyHash, byte: usize, mask: u8) {
        let entry = directory_index(hash.slot, self.directory.depth);
        self.directory.spoil(entry, byte, mask);
    }
}
