//! Building an index whole, of entries that come in the order of their hashes: each group is filled in ordinary memory
//! and written once.

use std::ops::Range;

use kv_proto::bucket::IndexScope;
use kv_proto::hash::{KeyHash, directory_index};
use kv_proto::layout::{DIRECTORY_DEPTH_MAX, Locator, Slot};

use super::super::limits::{DIRECTORY_DEPTH_MIN, GROUP_KEYS_MAX};
use super::group::{Filled, spread};
use super::{Directory, Index, Place};
use crate::error::StorageError;

type Entry = (KeyHash, Locator);

/// A depth and a prefix of it.
type Node = (u8, u32);

/// An index that is being built. Beside it, it holds the entries of one group at most.
pub(crate) struct Builder {
    index: Index,
    /// Prefixes that are still to be gone through, the next one last.
    left: Vec<Node>,
    /// Entries of the next prefix, which may have more.
    waiting: Vec<Entry>,
}

/// Entries that lie in two places, as one run.
struct Run<'a>([&'a [Entry]; 2]);

impl Run<'_> {
    fn len(&self) -> usize {
        self.0[0].len() + self.0[1].len()
    }

    fn slot(&self, at: usize) -> u64 {
        let [first, second] = self.0;
        let entry = first.get(at).unwrap_or_else(|| &second[at - first.len()]);
        entry.0.slot
    }

    fn copy(&self, range: Range<usize>, to: &mut Vec<Entry>) {
        let [first, second] = self.0;
        let split = |at: usize| (at.min(first.len()), at.saturating_sub(first.len()));
        let ((from, from2), (end, end2)) = (split(range.start), split(range.end));
        to.extend_from_slice(&first[from..end]);
        to.extend_from_slice(&second[from2..end2]);
    }

    /// How many entries from `at` on belong to `node`, of which they are the first; not counted past what a group holds.
    fn of_node(&self, at: usize, (depth, prefix): Node) -> usize {
        let (mut low, mut high) = (at, self.len().min(at + GROUP_KEYS_MAX + 1));
        while low < high {
            let middle = low.midpoint(high);
            if directory_index(self.slot(middle), depth) <= prefix {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low - at
    }
}

impl Builder {
    /// An index with nothing in it yet.
    ///
    /// # Errors
    /// [`StorageError::Memory`] or [`StorageError::Fabric`] if there is no memory for it.
    pub(crate) fn new(scope: IndexScope, place: &Place<'_>) -> Result<Self, StorageError> {
        Ok(Self {
            index: Index::without_groups(scope, place)?,
            left: vec![(0, 0)],
            waiting: Vec::new(),
        })
    }

    /// Adds entries: one for each key, in the order of their slot hashes, which go on where those before ended.
    ///
    /// # Errors
    /// As [`Builder::new`]; [`StorageError::Limit`] past the greatest depth.
    pub(crate) fn push(&mut self, entries: &[Entry], place: &Place<'_>) -> Result<(), StorageError> {
        debug_assert!(entries.is_sorted_by_key(|(hash, _)| hash.slot));
        self.add(entries, false, place)
    }

    /// The index of all that was added. It has as many groups as if it had grown to these keys.
    ///
    /// # Errors
    /// As [`Builder::push`].
    pub(crate) fn finish(mut self, place: &Place<'_>) -> Result<Index, StorageError> {
        self.add(&[], true, place)?;
        let mut index = self.index;
        let deepest = index.deepest();
        if deepest > DIRECTORY_DEPTH_MIN {
            index.directory = Directory::new(place, deepest, index.directory.version)?;
            index.entries = vec![0; 1 << deepest];
        }
        (0..index.groups.len()).for_each(|at| index.point_at(at));
        Ok(index)
    }

    fn add(&mut self, entries: &[Entry], all: bool, place: &Place<'_>) -> Result<(), StorageError> {
        self.index.keys += entries.len() as u64;
        let waiting = std::mem::take(&mut self.waiting);
        let run = Run([&waiting, entries]);
        let mut parts: Vec<(Node, Range<usize>)> = Vec::new();
        let mut at = 0;
        while let Some(node) = self.left.pop() {
            let count = run.of_node(at, node);
            if count > GROUP_KEYS_MAX {
                let [low, high] = halves(node)?;
                self.left.extend([high, low]);
            } else if at + count == run.len() && !all {
                self.left.push(node);
                break;
            } else {
                parts.push((node, at..at + count));
                at += count;
            }
        }
        run.copy(at..run.len(), &mut self.waiting);
        self.index.blocks.reserve(parts.len(), place)?;
        self.index.groups.reserve_exact(parts.len());
        let mut group = Vec::with_capacity(GROUP_KEYS_MAX);
        for (node, range) in parts {
            group.clear();
            run.copy(range, &mut group);
            self.fill(node, &group, place)?;
        }
        Ok(())
    }

    /// Adds the group of these entries; more than one where they cannot be spread.
    fn fill(&mut self, node: Node, entries: &[Entry], place: &Place<'_>) -> Result<(), StorageError> {
        let Some(chosen) = spread(entries, |(hash, _)| hash.slot) else {
            let [low, high] = halves(node)?;
            let of_low = entries.partition_point(|(hash, _)| directory_index(hash.slot, low.0) <= low.1);
            self.fill(low, &entries[..of_low], place)?;
            return self.fill(high, &entries[of_low..], place);
        };
        let mut filled = Filled::new();
        for ((hash, locator), bucket) in entries.iter().zip(chosen) {
            let slot = Slot {
                hash: hash.slot,
                locator: *locator,
            };
            filled.put(u32::from(bucket), slot);
        }
        let index = &mut self.index;
        let block = index.blocks.take(place)?;
        let number = index.number()?;
        let group = index.filled_group(number, node.0, node.1, block, &filled);
        index.add_group(group);
        Ok(())
    }
}

impl Index {
    /// An index of `entries`: one for each key, in the order of their slot hashes.
    ///
    /// # Errors
    /// As [`Builder::push`].
    pub(crate) fn build(
        scope: IndexScope,
        entries: &[Entry],
        place: &Place<'_>,
    ) -> Result<Self, StorageError> {
        let mut builder = Builder::new(scope, place)?;
        builder.push(entries, place)?;
        builder.finish(place)
    }
}

/// What a prefix becomes with one more bit of the position.
fn halves((depth, prefix): Node) -> Result<[Node; 2], StorageError> {
    if depth == DIRECTORY_DEPTH_MAX {
        return Err(StorageError::Limit {
            what: "depth of the index",
            limit: u64::from(DIRECTORY_DEPTH_MAX),
        });
    }
    Ok([0, 1].map(|bit| (depth + 1, prefix << 1 | bit)))
}
