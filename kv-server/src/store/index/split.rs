//! Splitting a group in two, and doubling the directory where that takes another bit.

use kv_fabric::Domain;
use kv_proto::hash::directory_index;
use kv_proto::layout::{BUCKET_SLOTS, DIRECTORY_DEPTH_MAX, GROUP_BUCKETS, STAMP_MOVED, Slot};

use super::{BlockRef, Directory, Group, Index, Place, Retired, Split};
use crate::error::StorageError;

impl<D: Domain> Index<D> {
    /// Replaces a group by two, each with one more bit of the hash. All memory is taken before anything changes.
    pub(super) fn split(&mut self, at: usize, place: &Place<'_, D>) -> Result<Split<D>, StorageError> {
        let depth = self.group(at).depth;
        if depth == DIRECTORY_DEPTH_MAX {
            return Err(StorageError::Limit {
                what: "depth of the index",
                limit: u64::from(DIRECTORY_DEPTH_MAX),
            });
        }
        let doubled = (depth == self.directory.depth)
            .then(|| Directory::new(place, depth + 1, self.directory.version + 1))
            .transpose()?;
        let numbers = [self.number()?, self.number()?];
        let low = self.blocks.take(place)?;
        let high = match self.blocks.take(place) {
            Ok(block) => block,
            Err(error) => {
                self.blocks.give_back(low);
                return Err(error);
            }
        };
        let children = self.make_children(at, numbers, [low, high]);
        self.stamp_moved(at);
        Ok(self.replace_group(at, children, doubled))
    }

    /// The two halves of a group, filled, and unknown to everyone.
    fn make_children(&mut self, at: usize, numbers: [u32; 2], blocks: [BlockRef; 2]) -> [usize; 2] {
        let old = self.group(at);
        let (depth, prefix, old_block) = (old.depth + 1, old.prefix, old.block);
        let bit_of = |hash: u64| (directory_index(hash, depth) & 1) as usize;
        let mut halves = [[[Slot::default(); BUCKET_SLOTS]; GROUP_BUCKETS as usize]; 2];
        let mut used = [[0_u8; GROUP_BUCKETS as usize]; 2];
        for bucket in 0..GROUP_BUCKETS as usize {
            let slots = self.blocks.read(old_block, bucket as u32).slots;
            for slot in slots.into_iter().filter(|slot| slot.locator.segment != 0) {
                let bit = bit_of(slot.hash);
                halves[bit][bucket][usize::from(used[bit][bucket])] = slot;
                used[bit][bucket] += 1;
            }
        }
        let children = [0, 1].map(|bit: usize| {
            let child = self.add_group(Group {
                number: numbers[bit],
                depth,
                prefix: prefix << 1 | bit as u32,
                block: blocks[bit],
                used: used[bit],
                promised: [0; GROUP_BUCKETS as usize],
            });
            self.fill_group(child, &halves[bit]);
            child
        });
        // A child's bucket holds no more than its parent's did, so each promise keeps its bucket.
        let mut promises = std::mem::take(&mut self.promises);
        for promise in promises.iter_mut().filter(|promise| promise.group == at) {
            promise.group = children[bit_of(promise.hash.slot)];
            self.group_mut(promise.group).promised[promise.bucket as usize] += 1;
        }
        self.promises = promises;
        children
    }

    fn stamp_moved(&self, at: usize) {
        let group = self.group(at);
        for index in 0..GROUP_BUCKETS {
            let mut bucket = self.blocks.read(group.block, index);
            bucket.stamp |= STAMP_MOVED;
            self.blocks
                .write(&self.scope, group.block, group.number, index, &mut bucket);
        }
    }

    /// Has the directory name the children in place of the group.
    fn replace_group(&mut self, at: usize, children: [usize; 2], doubled: Option<Directory<D>>) -> Split<D> {
        let range = self.range_of(at);
        let old = self.groups[at].take().expect("entries name live groups");
        self.groups_free.push(at);
        let mut retired = vec![Retired::Block(old.block)];
        let Some(directory) = doubled else {
            children.into_iter().for_each(|child| self.point_at(child));
            return Split {
                range: Some(range),
                retired,
            };
        };
        retired.push(Retired::Directory(std::mem::replace(
            &mut self.directory,
            directory,
        )));
        self.entries = self.entries.iter().flat_map(|entry| [*entry; 2]).collect();
        let mut all: Vec<usize> = self
            .entries
            .iter()
            .copied()
            .filter(|entry| *entry != at)
            .collect();
        all.dedup();
        all.extend(children);
        all.into_iter().for_each(|group| self.point_at(group));
        Split { range: None, retired }
    }
}
