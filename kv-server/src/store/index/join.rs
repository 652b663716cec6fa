//! Replacing two groups by one where few keys are left in both, and the directory by a shallower one where all groups
//! are.
//!
//! The rules are those of a split. No memory is taken for it but a block that is free: some are kept, and each joining
//! frees one more than it takes. What finds none is done when blocks come back. Then groups are moved too, so that
//! arenas are left that have no block in use: their memory is freed.

use kv_proto::hash::KeyHash;

use super::super::limits::{DIRECTORY_DEPTH_MIN, GROUP_KEYS_JOINED, GROUPS_GROWTH_MIN, TIDIED_MAX};
use super::{Directory, Index, Place, Replaced, Retired};

impl Index {
    /// Joins the group that `hash` belongs to and its buddy, where they hold few enough keys; what was replaced goes to
    /// `replaced`. To be called when a key was removed.
    pub(crate) fn join_around(&mut self, hash: KeyHash, place: &Place<'_>, replaced: &mut Vec<Replaced>) {
        let at = self.group_of(hash);
        if self.join(at, replaced) {
            replaced.extend(self.shrink_directory(place));
        }
    }

    /// Joins groups for which there was no free block, and empties an arena where many are free, some groups at a time.
    /// To be called when blocks were given back.
    pub(crate) fn tidy(&mut self, place: &Place<'_>, replaced: &mut Vec<Replaced>) {
        if std::mem::take(&mut self.joins_missed) {
            self.join_missed(place, replaced);
        } else if let Some(arena) = self.blocks.to_be_emptied() {
            self.move_out_of(arena, replaced);
        }
    }

    fn join_missed(&mut self, place: &Place<'_>, replaced: &mut Vec<Replaced>) {
        let (mut entry, mut joined) = (0, 0);
        while entry < self.entries.len() && !self.joins_missed {
            let at = self.entries[entry] as usize;
            if self.join(at, replaced) {
                // What came of it may have a buddy to be joined with too.
                joined += 1;
                self.joins_missed = joined == TIDIED_MAX;
            } else {
                let (first, count) = self.range_of(at);
                entry = (first + count) as usize;
            }
        }
        if joined > 0 {
            replaced.extend(self.shrink_directory(place));
        }
    }

    /// Replaces groups whose blocks lie in an arena by ones in those before it.
    fn move_out_of(&mut self, arena: u16, replaced: &mut Vec<Replaced>) {
        let lies_there = |at: &usize| self.groups[*at].block.arena == arena;
        let groups: Vec<usize> = (0..self.groups.len())
            .filter(lies_there)
            .take(TIDIED_MAX)
            .collect();
        for at in groups {
            let Ok(Some(gathered)) = self.gather(&[at], None) else {
                continue;
            };
            let Ok(number) = self.number() else {
                return;
            };
            let Some(block) = self.blocks.take_kept() else {
                return;
            };
            replaced.push(self.replace_by_one(at, &gathered, number, block));
        }
    }

    /// The group whose prefix differs from that of group `at` in the last bit alone, where both are to be one.
    fn buddy_to_join(&self, at: usize) -> Option<usize> {
        let group = &self.groups[at];
        if group.depth == 0 || usize::from(group.taken) > GROUP_KEYS_JOINED {
            return None;
        }
        let entry = (group.prefix ^ 1) << (self.directory.depth - group.depth);
        let buddy = self.entries[entry as usize] as usize;
        let other = &self.groups[buddy];
        let keys = usize::from(group.taken) + usize::from(other.taken);
        (other.depth == group.depth && keys <= GROUP_KEYS_JOINED).then_some(buddy)
    }

    /// Joins group `at` with its buddy, if that is to be and can be; whether it was.
    fn join(&mut self, at: usize, replaced: &mut Vec<Replaced>) -> bool {
        let Some(buddy) = self.buddy_to_join(at) else {
            return false;
        };
        if self.blocks.free() == 0 {
            self.joins_missed = true;
            return false;
        }
        let (low, high) = if self.groups[at].prefix & 1 == 0 {
            (at, buddy)
        } else {
            (buddy, at)
        };
        let Ok(Some(gathered)) = self.gather(&[low, high], None) else {
            return false;
        };
        let Ok(number) = self.number() else {
            return false;
        };
        let Some(block) = self.blocks.take_kept() else {
            return false;
        };
        let olds = [self.old(low), self.old(high)];
        let filled = self.fill(&[low, high], low, &gathered);
        let (depth, prefix) = (olds[0].depth - 1, olds[0].prefix >> 1);
        self.groups[low] = self.filled_group(number, depth, prefix, block, &filled);
        self.of_depth[usize::from(depth) + 1] -= 1;
        self.of_depth[usize::from(depth)] += 1;
        olds.iter().for_each(|old| self.stamp_moved(old));
        let range = self.range_of(low);
        self.point_at(low);
        self.remove_group(high);
        replaced.push(Replaced {
            range: Some(range),
            retired: olds.map(|old| Retired::Block(old.block)).into(),
        });
        true
    }

    /// Takes a group out of the table that nothing names any more: the last one gets its place.
    fn remove_group(&mut self, at: usize) {
        let removed = self.groups.swap_remove(at);
        self.of_depth[usize::from(removed.depth)] -= 1;
        let last = self.groups.len();
        if at < last {
            let (first, count) = self.range_of(at);
            self.entries[first as usize..(first + count) as usize].fill(at as u32);
            let promises = self.promises.iter_mut();
            promises
                .filter(|promise| promise.group as usize == last)
                .for_each(|promise| promise.group = at as u32);
        }
        if self.groups.capacity() > last + last / 4 + GROUPS_GROWTH_MIN {
            self.groups.shrink_to(last + last / 8);
        }
    }

    /// Replaces the directory where all groups are shallower by two: one level is left to grow into. Not done where
    /// there is no memory for it.
    fn shrink_directory(&mut self, place: &Place<'_>) -> Option<Replaced> {
        let depth = DIRECTORY_DEPTH_MIN.max(self.deepest() + 1);
        if depth >= self.directory.depth {
            return None;
        }
        let directory = Directory::new(place, depth, self.directory.version + 1).ok()?;
        Some(Replaced {
            range: None,
            retired: vec![self.turn_to(directory)],
        })
    }
}
