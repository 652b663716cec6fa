//! Replacing a group: by one with its slots spread evenly, or by two; and doubling the directory where that takes
//! another bit. (Replacing two by one: `join.rs`.)
//!
//! All memory is taken before anything changes. What replaces a group is filled first, then the old buckets are
//! stamped, then the directory names the new ones. The work is bounded: it is of one group, or, where the directory
//! doubles, of its entries.

use kv_proto::hash::{KeyHash, directory_index};
use kv_proto::layout::{
    BUCKET_SLOTS, Bucket, DIRECTORY_DEPTH_MAX, GROUP_BUCKETS, STAMP_MOVED, Slot, depth_prefix,
};

use super::super::limits::DIRECTORY_ENTRIES_PER_GROUP_MAX;
use super::group::{Filled, GROUP_SLOTS, Group, spread};
use super::{BlockRef, Directory, Index, Place, Promise, Replaced, Retired};
use crate::error::StorageError;

/// A group as it is replaced.
pub(super) struct Old {
    number: u32,
    pub(super) depth: u8,
    pub(super) prefix: u32,
    pub(super) block: BlockRef,
}

/// Slots and promises of groups that become one.
pub(super) struct Gathered {
    slots: Vec<(u32, Slot)>,
    /// Bucket of each slot, then of each promise.
    chosen: [u8; GROUP_SLOTS],
}

impl Index {
    /// Replaces a group by one with its slots spread evenly, and promises one to `hash`; `None` where that cannot be.
    pub(super) fn rewrite(
        &mut self,
        at: usize,
        hash: KeyHash,
        place: &Place<'_>,
    ) -> Result<Option<Replaced>, StorageError> {
        let Some(gathered) = self.gather(&[at], Some(hash))? else {
            return Ok(None);
        };
        let number = self.number()?;
        let block = self.blocks.take(place)?;
        self.promises.push_back(Promise {
            hash,
            group: at as u32,
            bucket: 0,
        });
        Ok(Some(self.replace_by_one(at, &gathered, number, block)))
    }

    /// Replaces a group by one of what was gathered of it.
    pub(super) fn replace_by_one(
        &mut self,
        at: usize,
        gathered: &Gathered,
        number: u32,
        block: BlockRef,
    ) -> Replaced {
        let old = self.old(at);
        let filled = self.fill(&[at], at, gathered);
        self.groups[at] = self.filled_group(number, old.depth, old.prefix, block, &filled);
        self.stamp_moved(&old);
        let range = self.range_of(at);
        self.point_at(at);
        Replaced {
            range: Some(range),
            retired: vec![Retired::Block(old.block)],
        }
    }

    /// Spreads the slots and promises of groups over the buckets of one, and one more; `None` where that cannot be.
    pub(super) fn gather(
        &self,
        of: &[usize],
        more: Option<KeyHash>,
    ) -> Result<Option<Gathered>, StorageError> {
        let mut slots = Vec::new();
        for at in of {
            slots.append(&mut self.slots_of(*at)?);
        }
        Ok(self.gather_slots(slots, of, more))
    }

    /// As [`Index::gather`], where the slots are those given.
    pub(super) fn gather_slots(
        &self,
        slots: Vec<(u32, Slot)>,
        of: &[usize],
        more: Option<KeyHash>,
    ) -> Option<Gathered> {
        let promised = self
            .promises
            .iter()
            .filter(|promise| of.contains(&(promise.group as usize)))
            .map(|promise| promise.hash);
        let hashes: Vec<u64> = slots
            .iter()
            .map(|(_, slot)| slot.hash)
            .chain(promised.chain(more).map(|hash| hash.slot))
            .collect();
        let chosen = spread(&hashes, |hash| *hash)?;
        Some(Gathered { slots, chosen })
    }

    /// What was gathered of groups, which becomes group `to`; the promises are its own from here on.
    pub(super) fn fill(&mut self, of: &[usize], to: usize, gathered: &Gathered) -> Filled {
        let mut filled = Filled::new();
        let (slots, promised) = gathered.chosen.split_at(gathered.slots.len());
        for ((_, slot), bucket) in gathered.slots.iter().zip(slots) {
            filled.put(u32::from(*bucket), *slot);
        }
        let promises = self.promises.iter_mut();
        let promises = promises.filter(|promise| of.contains(&(promise.group as usize)));
        for (promise, bucket) in promises.zip(promised) {
            promise.group = to as u32;
            promise.bucket = *bucket;
            filled.promise(u32::from(*bucket));
        }
        filled
    }

    /// Replaces a group by two, each with one more bit of the position; slots and promises keep their buckets.
    pub(super) fn split(&mut self, at: usize, place: &Place<'_>) -> Result<Replaced, StorageError> {
        let old = self.old(at);
        let slots = self.slots_of(at)?;
        let doubled = self.doubled(old.depth, place)?;
        let numbers = [self.number()?, self.number()?];
        let low = self.blocks.take(place)?;
        let high = match self.blocks.take(place) {
            Ok(block) => block,
            Err(error) => {
                self.blocks.give_back(low);
                return Err(error);
            }
        };
        let range = self.range_of(at);
        let depth = old.depth + 1;
        let bit_of = |hash: u64| (directory_index(hash, depth) & 1) as usize;
        let mut halves = [Filled::new(), Filled::new()];
        for (bucket, slot) in slots {
            halves[bit_of(slot.hash)].put(bucket, slot);
        }
        let places = [at, self.groups.len()];
        for promise in self
            .promises
            .iter_mut()
            .filter(|promise| promise.group as usize == at)
        {
            let bit = bit_of(promise.hash.slot);
            halves[bit].promise(u32::from(promise.bucket));
            promise.group = places[bit] as u32;
        }
        let [low, high] = [(0, low), (1, high)].map(|(bit, block)| {
            let prefix = old.prefix << 1 | bit as u32;
            self.filled_group(numbers[bit], depth, prefix, block, &halves[bit])
        });
        self.of_depth[usize::from(old.depth)] -= 1;
        self.of_depth[usize::from(depth)] += 1;
        self.groups[at] = low;
        self.add_group(high);
        self.stamp_moved(&old);
        let mut retired = vec![Retired::Block(old.block)];
        let Some(directory) = doubled else {
            places.into_iter().for_each(|place| self.point_at(place));
            return Ok(Replaced {
                range: Some(range),
                retired,
            });
        };
        retired.push(self.turn_to(directory));
        Ok(Replaced { range: None, retired })
    }

    /// Has another directory name all groups.
    pub(super) fn turn_to(&mut self, directory: Directory) -> Retired {
        let old = std::mem::replace(&mut self.directory, directory);
        self.entries = vec![0; 1 << self.directory.depth];
        (0..self.groups.len()).for_each(|place| self.point_at(place));
        Retired::Directory(Box::new(old))
    }

    /// The directory that a group of `depth` needs when it is split, where that is another one.
    fn doubled(&self, depth: u8, place: &Place<'_>) -> Result<Option<Directory>, StorageError> {
        if depth < self.directory.depth {
            return Ok(None);
        }
        if depth == DIRECTORY_DEPTH_MAX {
            return Err(StorageError::Limit {
                what: "depth of the index",
                limit: u64::from(DIRECTORY_DEPTH_MAX),
            });
        }
        // Hashes of keys that were not chosen never come near this; memory for one who chooses would be everyone's.
        if self.entries.len() >= DIRECTORY_ENTRIES_PER_GROUP_MAX * self.groups.len() {
            return Err(StorageError::Limit {
                what: "entries of the directory for each group (keys with the same hash bits)",
                limit: DIRECTORY_ENTRIES_PER_GROUP_MAX as u64,
            });
        }
        Directory::new(place, depth + 1, self.directory.version + 1).map(Some)
    }

    pub(super) fn old(&self, at: usize) -> Old {
        let group = &self.groups[at];
        Old {
            number: group.number,
            depth: group.depth,
            prefix: group.prefix,
            block: group.block,
        }
    }

    /// Slots in use of a group, with their buckets.
    pub(super) fn slots_of(&self, at: usize) -> Result<Vec<(u32, Slot)>, StorageError> {
        let group = &self.groups[at];
        let mut slots = Vec::with_capacity(usize::from(group.taken));
        for bucket in 0..GROUP_BUCKETS {
            let read = self.bucket(group, bucket)?.slots;
            slots.extend(
                read.into_iter()
                    .filter(|slot| slot.locator.segment != 0)
                    .map(|slot| (bucket, slot)),
            );
        }
        Ok(slots)
    }

    /// A group of what is in `filled`, written where no client can know of it yet.
    pub(super) fn filled_group(
        &self,
        number: u32,
        depth: u8,
        prefix: u32,
        block: BlockRef,
        filled: &Filled,
    ) -> Group {
        let group = Group {
            number,
            prefix,
            block,
            taken: filled.taken,
            depth,
            counts: filled.counts,
        };
        self.write_group(&group, &filled.buckets);
        group
    }

    /// Has the buckets of a group say that it was replaced. They say nothing else any more: nobody takes a slot out of
    /// such a bucket, and nothing of what lies there may count again.
    pub(super) fn stamp_moved(&self, old: &Old) {
        for index in 0..GROUP_BUCKETS {
            let mut bucket = Bucket {
                checksum: 0,
                stamp: old.number | STAMP_MOVED,
                depth_prefix: depth_prefix(old.depth, old.prefix),
                slots: [Slot::default(); BUCKET_SLOTS],
            };
            self.blocks
                .write(&self.scope, old.block, old.number, index, &mut bucket);
        }
    }
}
