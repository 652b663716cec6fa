//! Building an index whole: each group is filled in ordinary memory and written once.

use kv_fabric::Domain;
use kv_proto::bucket::IndexScope;
use kv_proto::hash::{KeyHash, candidate_buckets, directory_index};
use kv_proto::layout::{BUCKET_SLOTS, DIRECTORY_DEPTH_MAX, GROUP_BUCKETS, Locator, Slot};

use super::super::limits::DIRECTORY_DEPTH_MIN;
use super::{Directory, Group, Index, Place};
use crate::error::StorageError;

/// Slots of a group that nobody can read yet.
struct Filled {
    buckets: [[Slot; BUCKET_SLOTS]; GROUP_BUCKETS as usize],
    used: [u8; GROUP_BUCKETS as usize],
}

impl Filled {
    /// Each key in the candidate bucket with more room; `None` where one has none.
    fn of(entries: &[(KeyHash, Locator)]) -> Option<Self> {
        if entries.len() > GROUP_BUCKETS as usize * BUCKET_SLOTS {
            return None;
        }
        let mut filled = Self {
            buckets: [[Slot::default(); BUCKET_SLOTS]; GROUP_BUCKETS as usize],
            used: [0; GROUP_BUCKETS as usize],
        };
        for (hash, locator) in entries {
            let [first, second] = candidate_buckets(hash.slot).map(|bucket| bucket as usize);
            let bucket = if filled.used[second] < filled.used[first] {
                second
            } else {
                first
            };
            let slot = filled.buckets[bucket].get_mut(usize::from(filled.used[bucket]))?;
            *slot = Slot {
                hash: hash.slot,
                locator: *locator,
            };
            filled.used[bucket] += 1;
        }
        Some(filled)
    }
}

impl<D: Domain> Index<D> {
    /// An index of `entries`: one for each key, in the order of their slot hashes.
    ///
    /// # Errors
    /// [`StorageError::Memory`] or [`StorageError::Fabric`] if there is no memory for it, [`StorageError::Limit`]
    /// past the greatest depth.
    pub(crate) fn build(
        scope: IndexScope,
        entries: &[(KeyHash, Locator)],
        place: &Place<'_, D>,
    ) -> Result<Self, StorageError> {
        debug_assert!(entries.is_sorted_by_key(|(hash, _)| hash.slot));
        let mut index = Self::without_groups(scope, place)?;
        let mut depth_max = 0;
        // What is left, in order: the next group is of the last.
        let mut left = vec![(0_u8, 0_u32, entries)];
        while let Some((depth, prefix, part)) = left.pop() {
            if let Some(filled) = Filled::of(part) {
                index.add_filled(depth, prefix, &filled, place)?;
                depth_max = depth_max.max(depth);
                continue;
            }
            if depth == DIRECTORY_DEPTH_MAX {
                return Err(StorageError::Limit {
                    what: "depth of the index",
                    limit: u64::from(DIRECTORY_DEPTH_MAX),
                });
            }
            let depth = depth + 1;
            let low = part.partition_point(|(hash, _)| directory_index(hash.slot, depth) & 1 == 0);
            left.push((depth, prefix << 1 | 1, &part[low..]));
            left.push((depth, prefix << 1, &part[..low]));
        }
        if depth_max > DIRECTORY_DEPTH_MIN {
            index.directory = Directory::new(place, depth_max, index.directory.version)?;
            index.entries = vec![0; 1 << depth_max];
        }
        (0..index.groups.len()).for_each(|at| index.point_at(at));
        index.keys = entries.len() as u64;
        Ok(index)
    }

    fn add_filled(
        &mut self,
        depth: u8,
        prefix: u32,
        filled: &Filled,
        place: &Place<'_, D>,
    ) -> Result<(), StorageError> {
        let block = self.blocks.take(place)?;
        let number = self.number()?;
        let at = self.add_group(Group {
            number,
            depth,
            prefix,
            block,
            used: filled.used,
            promised: [0; GROUP_BUCKETS as usize],
        });
        self.fill_group(at, &filled.buckets);
        Ok(())
    }
}
