//! Building an index whole: each group is filled in ordinary memory and written once.

use std::ops::Range;

use kv_fabric::Domain;
use kv_proto::bucket::IndexScope;
use kv_proto::hash::{KeyHash, directory_index};
use kv_proto::layout::{DIRECTORY_DEPTH_MAX, Locator, Slot};

use super::super::limits::{DIRECTORY_DEPTH_MIN, GROUP_KEYS_MAX};
use super::group::{Filled, spread};
use super::{Directory, Index, Place};
use crate::error::StorageError;

/// Entries of one group.
struct Part {
    depth: u8,
    prefix: u32,
    range: Range<usize>,
}

type Entry = (KeyHash, Locator);

impl<D: Domain> Index<D> {
    /// An index of `entries`: one for each key, in the order of their slot hashes. It has as many groups as if it had
    /// grown to these keys.
    ///
    /// # Errors
    /// [`StorageError::Memory`] or [`StorageError::Fabric`] if there is no memory for it, [`StorageError::Limit`]
    /// past the greatest depth.
    pub(crate) fn build(
        scope: IndexScope,
        entries: &[Entry],
        place: &Place<'_, D>,
    ) -> Result<Self, StorageError> {
        debug_assert!(entries.is_sorted_by_key(|(hash, _)| hash.slot));
        let mut parts = parts_of(entries)?;
        let mut index = Self::without_groups(scope, place)?;
        index.blocks.reserve(parts.len(), place)?;
        index.groups.reserve_exact(parts.len());
        let mut depth_max = 0;
        // From the end; a part that cannot be spread is put back as two.
        while let Some(part) = parts.pop() {
            let entries = &entries[part.range.clone()];
            let Some(chosen) = spread(entries, |(hash, _)| hash.slot) else {
                let [low, high] = halves(&part, entries)?;
                parts.extend([low, high]);
                continue;
            };
            let mut filled = Filled::new();
            for ((hash, locator), bucket) in entries.iter().zip(chosen) {
                let slot = Slot {
                    hash: hash.slot,
                    locator: *locator,
                };
                filled.put(u32::from(bucket), slot);
            }
            let block = index.blocks.take(place)?;
            let number = index.number()?;
            let group = index.filled_group(number, part.depth, part.prefix, block, &filled);
            index.add_group(group);
            depth_max = depth_max.max(part.depth);
        }
        if depth_max > DIRECTORY_DEPTH_MIN {
            index.directory = Directory::new(place, depth_max, index.directory.version)?;
            index.entries = vec![0; 1 << depth_max];
        }
        (0..index.groups.len()).for_each(|at| index.point_at(at));
        index.keys = entries.len() as u64;
        Ok(index)
    }
}

/// Entries by group, in their order: none has too many for one.
fn parts_of(entries: &[Entry]) -> Result<Vec<Part>, StorageError> {
    let mut parts = Vec::new();
    let mut left = vec![Part {
        depth: 0,
        prefix: 0,
        range: 0..entries.len(),
    }];
    while let Some(part) = left.pop() {
        if part.range.len() <= GROUP_KEYS_MAX {
            parts.push(part);
        } else {
            let [low, high] = halves(&part, &entries[part.range.clone()])?;
            left.extend([high, low]);
        }
    }
    Ok(parts)
}

/// A part by the next bit of the position.
fn halves(part: &Part, entries: &[Entry]) -> Result<[Part; 2], StorageError> {
    if part.depth == DIRECTORY_DEPTH_MAX {
        return Err(StorageError::Limit {
            what: "depth of the index",
            limit: u64::from(DIRECTORY_DEPTH_MAX),
        });
    }
    let depth = part.depth + 1;
    let Range { start, end } = part.range;
    let middle = start + entries.partition_point(|(hash, _)| directory_index(hash.slot, depth) & 1 == 0);
    let half = |bit, range| Part {
        depth,
        prefix: part.prefix << 1 | bit,
        range,
    };
    Ok([half(0, start..middle), half(1, middle..end)])
}
