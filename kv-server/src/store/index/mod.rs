//! The index: an extendible hash table in memory that clients READ, with one writer.
//!
//! - **I2**: a block or a directory that was replaced comes out as [`Retired`]; only [`Index::give_back`] has it
//!   reused, and its caller says when.
//! - A live bucket changes only under its checksum. The buckets of a group that was split carry `STAMP_MOVED` before
//!   anything is changed in its children.
//! - Memory is taken in [`Index::reserve`], before the record is written; [`Index::put`] cannot fail.

use std::collections::VecDeque;

use kv_fabric::Domain;
use kv_proto::bucket::IndexScope;
use kv_proto::hash::{KeyHash, candidate_buckets, directory_index, slot_matches};
use kv_proto::layout::{
    BUCKET_SLOTS, Bucket, DirectoryEntry, GROUP_BUCKETS, Locator, STAMP_MOVED, Slot, depth_prefix,
};

use super::limits::DIRECTORY_DEPTH_MIN;
use crate::error::StorageError;

mod block;
mod build;
mod split;
#[cfg(test)]
mod tests;

use block::Blocks;
pub(crate) use block::{BlockRef, Directory, Place, Readable};

/// A group of buckets.
struct Group {
    number: u32,
    depth: u8,
    prefix: u32,
    block: BlockRef,
    /// Slots in use, by bucket.
    used: [u8; GROUP_BUCKETS as usize],
    /// Slots promised to records that are not durable yet, by bucket.
    promised: [u8; GROUP_BUCKETS as usize],
}

impl Group {
    const fn stamp(&self) -> u32 {
        self.number & !STAMP_MOVED
    }

    const fn room(&self, bucket: u32) -> usize {
        let bucket = bucket as usize;
        BUCKET_SLOTS.saturating_sub(self.used[bucket] as usize + self.promised[bucket] as usize)
    }

    /// The candidate bucket with more room, if there is any.
    fn roomiest(&self, hash: KeyHash) -> Option<u32> {
        let [first, second] = candidate_buckets(hash.slot);
        let best = if self.room(second) > self.room(first) {
            second
        } else {
            first
        };
        (self.room(best) > 0).then_some(best)
    }
}

/// A slot promised to a record that is not durable yet.
struct Promise {
    hash: KeyHash,
    group: usize,
    bucket: u32,
}

/// Memory that was replaced, and that readers may still read.
pub(crate) enum Retired<D: Domain> {
    Block(BlockRef),
    Directory(Directory<D>),
}

/// What a split did.
pub(crate) struct Split<D: Domain> {
    /// Directory entries that were changed in place; none where there is a new directory.
    pub(crate) range: Option<(u32, u32)>,
    /// What it replaced.
    pub(crate) retired: Vec<Retired<D>>,
}

/// Where a key was found.
struct Found {
    group: usize,
    bucket: u32,
    slot: usize,
    locator: Locator,
}

/// The index of one dataset.
pub(crate) struct Index<D: Domain> {
    scope: IndexScope,
    blocks: Blocks<D>,
    directory: Directory<D>,
    /// For each entry of the directory, the group's place in `groups`.
    entries: Vec<usize>,
    groups: Vec<Option<Group>>,
    groups_free: Vec<usize>,
    group_next: u32,
    promises: VecDeque<Promise>,
    keys: u64,
}

impl<D: Domain> Index<D> {
    /// An index with a directory and nothing in it yet.
    fn without_groups(scope: IndexScope, place: &Place<'_, D>) -> Result<Self, StorageError> {
        Ok(Self {
            scope,
            blocks: Blocks::new(),
            directory: Directory::new(place, DIRECTORY_DEPTH_MIN, 1)?,
            entries: vec![0; 1 << DIRECTORY_DEPTH_MIN],
            groups: Vec::new(),
            groups_free: Vec::new(),
            group_next: 1,
            promises: VecDeque::new(),
            keys: 0,
        })
    }

    pub(crate) fn keys(&self) -> u64 {
        self.keys
    }

    pub(crate) fn directory(&self) -> &Directory<D> {
        &self.directory
    }

    pub(crate) fn charged_bytes(&self) -> u64 {
        self.blocks.charged_bytes() + self.directory.charged_bytes()
    }

    /// Where the record of a key lies; `is_key` tells it from others with the same hash.
    pub(crate) fn find(&self, hash: KeyHash, is_key: impl Fn(&Locator) -> bool) -> Option<Locator> {
        self.find_slot(hash, is_key).map(|found| found.locator)
    }

    fn find_slot(&self, hash: KeyHash, is_key: impl Fn(&Locator) -> bool) -> Option<Found> {
        let at = self.group_of(hash);
        let group = self.group(at);
        let [first, second] = candidate_buckets(hash.slot);
        let buckets = if first == second {
            &[first][..]
        } else {
            &[first, second][..]
        };
        for &bucket in buckets {
            let slots = self.blocks.read(group.block, bucket).slots;
            let slot = slots
                .iter()
                .position(|slot| slot_matches(hash, slot.hash, &slot.locator) && is_key(&slot.locator));
            if let Some(slot) = slot {
                return Some(Found {
                    group: at,
                    bucket,
                    slot,
                    locator: slots[slot].locator,
                });
            }
        }
        None
    }

    /// Promises a slot to a key that is not there, splitting groups until there is one. What was split goes to
    /// `splits`, also where an error follows.
    ///
    /// # Errors
    /// [`StorageError::Memory`] or [`StorageError::Fabric`] if there is no memory for more groups,
    /// [`StorageError::Limit`] past the greatest depth. Nothing was promised then.
    pub(crate) fn reserve(
        &mut self,
        hash: KeyHash,
        place: &Place<'_, D>,
        splits: &mut Vec<Split<D>>,
    ) -> Result<(), StorageError> {
        loop {
            let at = self.group_of(hash);
            if let Some(bucket) = self.group(at).roomiest(hash) {
                self.group_mut(at).promised[bucket as usize] += 1;
                self.promises.push_back(Promise {
                    hash,
                    group: at,
                    bucket,
                });
                return Ok(());
            }
            splits.push(self.split(at, place)?);
        }
    }

    /// Takes back every promise that was not used.
    pub(crate) fn forget_promises(&mut self) {
        while let Some(promise) = self.promises.pop_front() {
            self.group_mut(promise.group).promised[promise.bucket as usize] -= 1;
        }
    }

    /// Has a key's slot name `locator`; what it named before. A key that is not there was promised a slot.
    ///
    /// # Panics
    /// If the key is not there and [`Index::reserve`] was not called for it: a bug of the log.
    pub(crate) fn put(
        &mut self,
        hash: KeyHash,
        locator: Locator,
        is_key: impl Fn(&Locator) -> bool,
    ) -> Option<Locator> {
        let slot = Slot {
            hash: hash.slot,
            locator,
        };
        if let Some(found) = self.find_slot(hash, is_key) {
            self.write_slot(found.group, found.bucket, found.slot, slot);
            return Some(found.locator);
        }
        let at = self
            .promises
            .iter()
            .position(|promise| promise.hash == hash)
            .expect("a slot was promised before the record was written");
        let promise = self.promises.remove(at).expect("position is inside");
        let group = self.group_mut(promise.group);
        group.promised[promise.bucket as usize] -= 1;
        group.used[promise.bucket as usize] += 1;
        let block = group.block;
        let free = self
            .blocks
            .read(block, promise.bucket)
            .slots
            .iter()
            .position(|slot| slot.locator.segment == 0)
            .expect("a promised slot is free");
        self.write_slot(promise.group, promise.bucket, free, slot);
        self.keys += 1;
        None
    }

    /// Empties a key's slot; what it named.
    pub(crate) fn remove(&mut self, hash: KeyHash, is_key: impl Fn(&Locator) -> bool) -> Option<Locator> {
        let found = self.find_slot(hash, is_key)?;
        self.group_mut(found.group).used[found.bucket as usize] -= 1;
        self.write_slot(found.group, found.bucket, found.slot, Slot::default());
        self.keys -= 1;
        Some(found.locator)
    }

    /// Slots of the group that covers slot hash `from`, from there on, by hash; and the hash after the group.
    pub(crate) fn slots_from(&self, from: u64) -> (Vec<Slot>, Option<u64>) {
        let at = self.entries[directory_index(from, self.directory.depth) as usize];
        let group = self.group(at);
        let mut slots: Vec<Slot> = (0..GROUP_BUCKETS)
            .flat_map(|bucket| self.blocks.read(group.block, bucket).slots)
            .filter(|slot| slot.locator.segment != 0 && slot.hash >= from)
            .collect();
        slots.sort_by_key(|slot| slot.hash);
        let next = u64::from(group.prefix) + 1;
        let next = match group.depth {
            0 => None,
            depth if next >> depth != 0 => None,
            depth => Some(next << (64 - u32::from(depth))),
        };
        (slots, next)
    }

    /// Takes memory back that no session can read any more.
    pub(crate) fn give_back(&mut self, retired: Retired<D>) {
        match retired {
            Retired::Block(block) => self.blocks.give_back(block),
            Retired::Directory(directory) => drop(directory),
        }
    }

    fn number(&mut self) -> Result<u32, StorageError> {
        let number = self.group_next;
        if number == STAMP_MOVED {
            return Err(StorageError::Limit {
                what: "group numbers of this epoch are used up (restart the server)",
                limit: u64::from(STAMP_MOVED),
            });
        }
        self.group_next += 1;
        Ok(number)
    }

    fn group_of(&self, hash: KeyHash) -> usize {
        self.entries[directory_index(hash.slot, self.directory.depth) as usize]
    }

    fn group(&self, at: usize) -> &Group {
        self.groups[at].as_ref().expect("entries name live groups")
    }

    fn group_mut(&mut self, at: usize) -> &mut Group {
        self.groups[at].as_mut().expect("entries name live groups")
    }

    fn add_group(&mut self, group: Group) -> usize {
        if let Some(at) = self.groups_free.pop() {
            self.groups[at] = Some(group);
            return at;
        }
        self.groups.push(Some(group));
        self.groups.len() - 1
    }

    /// Writes every bucket of a group that no client can know of yet.
    fn fill_group(&self, at: usize, buckets: &[[Slot; BUCKET_SLOTS]; GROUP_BUCKETS as usize]) {
        let group = self.group(at);
        for (index, slots) in (0_u32..).zip(buckets) {
            let mut bucket = Bucket {
                checksum: 0,
                stamp: group.stamp(),
                depth_prefix: depth_prefix(group.depth, group.prefix),
                slots: *slots,
            };
            self.blocks
                .write(&self.scope, group.block, group.number, index, &mut bucket);
        }
    }

    fn write_slot(&self, at: usize, bucket: u32, slot: usize, value: Slot) {
        let group = self.group(at);
        let mut changed = self.blocks.read(group.block, bucket);
        changed.slots[slot] = value;
        self.blocks
            .write(&self.scope, group.block, group.number, bucket, &mut changed);
    }

    /// First directory entry that a group has, and how many.
    fn range_of(&self, at: usize) -> (u32, u32) {
        let group = self.group(at);
        let spread = self.directory.depth - group.depth;
        (group.prefix << spread, 1 << spread)
    }

    /// Has the group's directory entries name it.
    fn point_at(&mut self, at: usize) {
        let (first, count) = self.range_of(at);
        let group = self.group(at);
        let remote = self.blocks.remote(group.block);
        let entry = DirectoryEntry {
            checksum: 0,
            address: remote.address,
            rkey: remote.rkey,
            group: group.number,
            stamp: group.stamp(),
            depth_prefix: depth_prefix(group.depth, group.prefix),
        };
        for index in first..first + count {
            self.directory.write(&self.scope, index, entry);
            self.entries[index as usize] = at;
        }
    }
}
