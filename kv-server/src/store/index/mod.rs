//! The index: an extendible hash table in memory that clients READ, with one writer.
//!
//! - **I2**: a block or a directory that was replaced comes out as [`Retired`]; only [`Index::give_back`] has it
//!   reused, and its caller says when.
//! - A live bucket changes only under its checksum, and is held to it before: what flipped in it is put right, or named
//!   ([`mend`]). The buckets of a group that was replaced carry `STAMP_MOVED` before
//!   anything is changed in what replaced it.
//! - Memory is taken in [`Index::reserve`], before the record is written; [`Index::put`] fails only where it finds damage.
//! - A group has at most [`GROUP_KEYS_MAX`] keys, and is split for no other reason than that it would have more, so the
//!   groups of an index that grew follow from its keys, in whatever order they came. Two are joined where keys that were
//!   removed leave at most [`limits::GROUP_KEYS_JOINED`](super::limits::GROUP_KEYS_JOINED) in both.

use std::collections::VecDeque;

use kv_proto::bucket::IndexScope;
use kv_proto::hash::{KeyHash, candidate_buckets, directory_index, first_hash, slot_matches};
use kv_proto::layout::{
    BUCKET_SLOTS, Bucket, DIRECTORY_DEPTH_MAX, DirectoryEntry, GROUP_BUCKETS, Locator, STAMP_MOVED, Slot,
};

use super::limits::{DIRECTORY_DEPTH_MIN, GROUP_KEYS_MAX, GROUPS_GROWTH_MIN};
use crate::error::StorageError;

mod block;
mod build;
mod group;
mod join;
mod mend;
mod replace;
#[cfg(test)]
mod tests;

use block::Blocks;
pub(crate) use block::{BlockRef, Directory, Place, Readable};
pub(crate) use build::Builder;
use group::Group;
use mend::Faults;
pub(crate) use mend::{Covered, Fault, Part};

/// A slot promised to a record that is not durable yet.
struct Promise {
    hash: KeyHash,
    group: u32,
    bucket: u8,
}

/// Memory that was replaced, and that readers may still read.
pub(crate) enum Retired {
    Block(BlockRef),
    Directory(Box<Directory>),
}

impl Retired {
    /// Its memory, bytes, where the index does not count it any more: blocks stay in their arenas.
    pub(crate) fn bytes(&self) -> u64 {
        match self {
            Self::Block(_) => 0,
            Self::Directory(directory) => directory.bytes(),
        }
    }
}

/// What replacing a group did.
pub(crate) struct Replaced {
    /// Directory entries that were changed in place; none where there is a new directory.
    pub(crate) range: Option<(u32, u32)>,
    /// What is not used any more.
    pub(crate) retired: Vec<Retired>,
}

/// Where a key was found.
struct Found {
    group: usize,
    bucket: u32,
    contents: Bucket,
    slot: usize,
}

impl Found {
    fn locator(&self) -> Locator {
        self.contents.slots[self.slot].locator
    }
}

/// The index of one dataset.
pub(crate) struct Index {
    scope: IndexScope,
    blocks: Blocks,
    directory: Directory,
    /// For each entry of the directory, the group's place in `groups`.
    entries: Vec<u32>,
    groups: Vec<Group>,
    /// Groups of each depth.
    of_depth: [u32; DIRECTORY_DEPTH_MAX as usize + 1],
    /// Whether groups may be left that were not joined for want of a free block.
    joins_missed: bool,
    group_next: u32,
    promises: VecDeque<Promise>,
    keys: u64,
    faults: Faults,
}

impl Index {
    /// An index with a directory and nothing in it yet.
    fn without_groups(scope: IndexScope, place: &Place<'_>) -> Result<Self, StorageError> {
        Ok(Self {
            scope,
            blocks: Blocks::new(),
            directory: Directory::new(place, DIRECTORY_DEPTH_MIN, 1)?,
            entries: vec![0; 1 << DIRECTORY_DEPTH_MIN],
            groups: Vec::new(),
            of_depth: [0; DIRECTORY_DEPTH_MAX as usize + 1],
            joins_missed: false,
            group_next: 1,
            promises: VecDeque::new(),
            keys: 0,
            faults: Faults::default(),
        })
    }

    pub(crate) fn keys(&self) -> u64 {
        self.keys
    }

    pub(crate) fn directory(&self) -> &Directory {
        &self.directory
    }

    /// All its memory, bytes: what clients READ, blocks that were retired included, and the writer's own tables.
    pub(crate) fn bytes(&self) -> u64 {
        let tables = self.groups.capacity() * size_of::<Group>()
            + self.entries.capacity() * size_of::<u32>()
            + self.promises.capacity() * size_of::<Promise>();
        self.blocks.bytes() + self.directory.bytes() + tables as u64
    }

    /// Where the record of a key lies; `is_key` tells it from others with the same hash.
    ///
    /// # Errors
    /// [`StorageError::Mending`] where a bucket is not what was written: nothing can be said of the key.
    pub(crate) fn find(
        &self,
        hash: KeyHash,
        is_key: impl Fn(&Locator) -> bool,
    ) -> Result<Option<Locator>, StorageError> {
        Ok(self.find_slot(hash, is_key)?.map(|found| found.locator()))
    }

    fn find_slot(
        &self,
        hash: KeyHash,
        is_key: impl Fn(&Locator) -> bool,
    ) -> Result<Option<Found>, StorageError> {
        let at = self.group_of(hash);
        let [first, second] = candidate_buckets(hash.slot);
        let buckets = if first == second {
            &[first][..]
        } else {
            &[first, second][..]
        };
        for &bucket in buckets {
            let contents = self.bucket(&self.groups[at], bucket)?;
            let slot = contents
                .slots
                .iter()
                .position(|slot| slot_matches(hash, slot.hash, &slot.locator) && is_key(&slot.locator));
            if let Some(slot) = slot {
                return Ok(Some(Found {
                    group: at,
                    bucket,
                    contents,
                    slot,
                }));
            }
        }
        Ok(None)
    }

    /// Promises a slot to a key that is not there, replacing groups until there is one. What was replaced goes to
    /// `replaced`, also where an error follows.
    ///
    /// # Errors
    /// [`StorageError::Memory`] or [`StorageError::Fabric`] if there is no memory for more groups,
    /// [`StorageError::Limit`] past the greatest depth, [`StorageError::Mending`] as [`Index::find`]. Nothing was
    /// promised then.
    pub(crate) fn reserve(
        &mut self,
        hash: KeyHash,
        place: &Place<'_>,
        replaced: &mut Vec<Replaced>,
    ) -> Result<(), StorageError> {
        loop {
            let at = self.group_of(hash);
            let group = &mut self.groups[at];
            if usize::from(group.taken) < GROUP_KEYS_MAX {
                if let Some(bucket) = group.roomiest(hash) {
                    group.promise(bucket);
                    self.promises.push_back(Promise {
                        hash,
                        group: at as u32,
                        bucket: bucket as u8,
                    });
                    return Ok(());
                }
                if let Some(rewritten) = self.rewrite(at, hash, place)? {
                    replaced.push(rewritten);
                    return Ok(());
                }
            }
            replaced.push(self.split(at, place)?);
        }
    }

    /// Takes back every promise that was not used.
    pub(crate) fn forget_promises(&mut self) {
        while let Some(promise) = self.promises.pop_front() {
            self.groups[promise.group as usize].forget_promise(u32::from(promise.bucket));
        }
    }

    /// Has a key's slot name `locator`; what it named before. A key that is not there was promised a slot.
    ///
    /// # Errors
    /// As [`Index::find`], and [`StorageError::Mending`] where a key is not there that was promised no slot: its group was
    /// filled anew since. Nothing was changed.
    pub(crate) fn put(
        &mut self,
        hash: KeyHash,
        locator: Locator,
        is_key: impl Fn(&Locator) -> bool,
    ) -> Result<Option<Locator>, StorageError> {
        let slot = Slot {
            hash: hash.slot,
            locator,
        };
        if let Some(found) = self.find_slot(hash, is_key)? {
            let old = found.locator();
            self.write_slot(found, slot);
            return Ok(Some(old));
        }
        let promised = self
            .promises
            .iter()
            .position(|promise| promise.hash == hash)
            .ok_or(StorageError::Mending)?;
        let promise = &self.promises[promised];
        let (at, bucket) = (promise.group as usize, u32::from(promise.bucket));
        let contents = self.bucket(&self.groups[at], bucket)?;
        self.promises.remove(promised);
        self.groups[at].keep_promise(bucket);
        let free = contents
            .slots
            .iter()
            .position(|slot| slot.locator.segment == 0)
            .expect("a promised slot is free");
        let found = Found {
            group: at,
            bucket,
            contents,
            slot: free,
        };
        self.write_slot(found, slot);
        self.keys += 1;
        Ok(None)
    }

    /// Empties a key's slot; what it named.
    ///
    /// # Errors
    /// As [`Index::find`]: nothing was changed.
    pub(crate) fn remove(
        &mut self,
        hash: KeyHash,
        is_key: impl Fn(&Locator) -> bool,
    ) -> Result<Option<Locator>, StorageError> {
        let Some(found) = self.find_slot(hash, is_key)? else {
            return Ok(None);
        };
        let old = found.locator();
        self.groups[found.group].empty(found.bucket);
        self.write_slot(found, Slot::default());
        self.keys -= 1;
        Ok(Some(old))
    }

    /// Slots of the group that covers slot hash `from`, from there on, by hash; and the first hash after the group.
    ///
    /// # Errors
    /// As [`Index::find`].
    pub(crate) fn slots_from(&self, from: u64) -> Result<(Vec<Slot>, Option<u64>), StorageError> {
        let at = self.group_at(from);
        let slots = self.slots_of(at)?.into_iter().map(|(_, slot)| slot);
        let mut slots: Vec<Slot> = slots.filter(|slot| slot.hash >= from).collect();
        slots.sort_by_key(|slot| slot.hash);
        Ok((slots, self.first_after(at)))
    }

    /// The first slot hash after those of a group.
    fn first_after(&self, at: usize) -> Option<u64> {
        let group = &self.groups[at];
        let end = (u64::from(group.prefix) + 1) << (32 - u32::from(group.depth));
        u32::try_from(end).ok().map(first_hash)
    }

    /// Takes memory back that no session can read any more.
    pub(crate) fn give_back(&mut self, retired: Retired) {
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
        self.group_at(hash.slot)
    }

    fn group_at(&self, slot_hash: u64) -> usize {
        self.entries[directory_index(slot_hash, self.directory.depth) as usize] as usize
    }

    /// Adds a group to the table, which grows by little: it is memory that every key pays for.
    fn add_group(&mut self, group: Group) {
        if self.groups.len() == self.groups.capacity() {
            let more = (self.groups.len() / 8).max(GROUPS_GROWTH_MIN);
            self.groups.reserve_exact(more);
        }
        self.of_depth[usize::from(group.depth)] += 1;
        self.groups.push(group);
    }

    /// Writes every bucket of a group that no client can know of yet.
    fn write_group(&self, group: &Group, buckets: &[[Slot; BUCKET_SLOTS]; GROUP_BUCKETS as usize]) {
        for (index, slots) in (0_u32..).zip(buckets) {
            let mut bucket = Bucket {
                checksum: 0,
                stamp: group.stamp(),
                depth_prefix: group.depth_prefix(),
                slots: *slots,
            };
            self.blocks
                .write(&self.scope, group.block, group.number, index, &mut bucket);
        }
    }

    /// Writes a slot of a bucket that was just found to be as it was written.
    fn write_slot(&self, found: Found, value: Slot) {
        let group = &self.groups[found.group];
        let mut changed = found.contents;
        changed.slots[found.slot] = value;
        self.blocks
            .write(&self.scope, group.block, group.number, found.bucket, &mut changed);
    }

    /// Depth of the deepest group.
    fn deepest(&self) -> u8 {
        let deepest = self.of_depth.iter().rposition(|groups| *groups > 0);
        deepest.unwrap_or(0) as u8
    }

    /// First directory entry that a group has, and how many.
    fn range_of(&self, at: usize) -> (u32, u32) {
        let group = &self.groups[at];
        let spread = self.directory.depth - group.depth;
        (group.prefix << spread, 1 << spread)
    }

    /// Has the group's directory entries name it.
    fn point_at(&mut self, at: usize) {
        let (first, count) = self.range_of(at);
        let entry = self.entry_of(at);
        for index in first..first + count {
            self.directory.write(&self.scope, index, entry);
            self.entries[index as usize] = at as u32;
        }
    }

    /// What the directory's entries say of a group, less their checksums.
    fn entry_of(&self, at: usize) -> DirectoryEntry {
        let group = &self.groups[at];
        let remote = self.blocks.remote(group.block);
        DirectoryEntry {
            checksum: 0,
            address: remote.address,
            rkey: remote.rkey,
            group: group.number,
            stamp: group.stamp(),
            depth_prefix: group.depth_prefix(),
        }
    }
}
