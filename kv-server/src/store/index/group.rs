//! A group of buckets as its writer knows it, and how keys are spread over its buckets.

use kv_proto::hash::{KeyHash, candidate_buckets};
use kv_proto::layout::{BUCKET_SLOTS, GROUP_BUCKETS, Locator, STAMP_MOVED, Slot, depth_prefix};

use super::super::limits::SPREAD_ROUNDS_MAX;
use super::BlockRef;

const BUCKETS: usize = GROUP_BUCKETS as usize;
/// Slots of a group.
pub(super) const GROUP_SLOTS: usize = BUCKETS * BUCKET_SLOTS;

/// Slots in use, by bucket, in the low half of each byte, and in the high half those promised to records that are not
/// durable yet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Counts([u8; BUCKETS]);

const _: () = assert!(BUCKET_SLOTS < 16);

impl Counts {
    pub(super) const fn new() -> Self {
        Self([0; BUCKETS])
    }

    pub(super) fn room(&self, bucket: u32) -> usize {
        let both = self.0[bucket as usize];
        BUCKET_SLOTS - usize::from(both & 15) - usize::from(both >> 4)
    }

    pub(super) fn used(&self, bucket: u32) -> usize {
        usize::from(self.0[bucket as usize] & 15)
    }

    pub(super) fn add_used(&mut self, bucket: u32) {
        self.0[bucket as usize] += 1;
    }

    pub(super) fn add_promised(&mut self, bucket: u32) {
        self.0[bucket as usize] += 1 << 4;
    }
}

/// A group of buckets.
pub(super) struct Group {
    pub(super) number: u32,
    pub(super) prefix: u32,
    pub(super) block: BlockRef,
    /// Slots in use and promised.
    pub(super) taken: u16,
    pub(super) depth: u8,
    pub(super) counts: Counts,
}

impl Group {
    pub(super) const fn stamp(&self) -> u32 {
        self.number & !STAMP_MOVED
    }

    pub(super) const fn depth_prefix(&self) -> u32 {
        depth_prefix(self.depth, self.prefix)
    }

    /// The candidate bucket with more room, if there is any.
    pub(super) fn roomiest(&self, hash: KeyHash) -> Option<u32> {
        let [first, second] = candidate_buckets(hash.slot);
        let best = if self.counts.room(second) > self.counts.room(first) {
            second
        } else {
            first
        };
        (self.counts.room(best) > 0).then_some(best)
    }

    pub(super) fn promise(&mut self, bucket: u32) {
        self.counts.add_promised(bucket);
        self.taken += 1;
    }

    pub(super) fn forget_promise(&mut self, bucket: u32) {
        self.counts.0[bucket as usize] -= 1 << 4;
        self.taken -= 1;
    }

    pub(super) fn keep_promise(&mut self, bucket: u32) {
        self.counts.0[bucket as usize] -= (1 << 4) - 1;
    }

    pub(super) fn empty(&mut self, bucket: u32) {
        self.counts.0[bucket as usize] -= 1;
        self.taken -= 1;
    }
}

/// Slots of a group that nobody can read yet.
pub(super) struct Filled {
    pub(super) buckets: [[Slot; BUCKET_SLOTS]; BUCKETS],
    pub(super) counts: Counts,
    pub(super) taken: u16,
}

impl Filled {
    pub(super) const fn new() -> Self {
        let empty = Slot {
            hash: 0,
            locator: Locator {
                segment: 0,
                offset_units: 0,
                value_len_bytes: 0,
                key_len_bytes: 0,
                tag: 0,
            },
        };
        Self {
            buckets: [[empty; BUCKET_SLOTS]; BUCKETS],
            counts: Counts::new(),
            taken: 0,
        }
    }

    /// Puts a slot into a bucket that has room.
    pub(super) fn put(&mut self, bucket: u32, slot: Slot) {
        self.buckets[bucket as usize][self.counts.used(bucket)] = slot;
        self.counts.add_used(bucket);
        self.taken += 1;
    }

    /// Keeps a slot of a bucket that has room free.
    pub(super) fn promise(&mut self, bucket: u32) {
        self.counts.add_promised(bucket);
        self.taken += 1;
    }
}

/// For each of `items` one of its two candidate buckets, evenly: in the end no item could move to a bucket with two
/// fewer. `None` where some bucket has more than its slots even so.
pub(super) fn spread<T>(items: &[T], slot_hash: impl Fn(&T) -> u64) -> Option<[u8; GROUP_SLOTS]> {
    let mut chosen = [0_u8; GROUP_SLOTS];
    let mut loads = [0_u16; BUCKETS];
    if items.len() > GROUP_SLOTS {
        return None;
    }
    for (item, chosen) in items.iter().zip(&mut chosen) {
        let [first, second] = candidate_buckets(slot_hash(item));
        let best = if loads[second as usize] < loads[first as usize] {
            second
        } else {
            first
        };
        *chosen = best as u8;
        loads[best as usize] += 1;
    }
    for _ in 0..SPREAD_ROUNDS_MAX {
        let mut moved = false;
        for (item, chosen) in items.iter().zip(&mut chosen) {
            let [first, second] = candidate_buckets(slot_hash(item)).map(|bucket| bucket as u8);
            let other = if *chosen == first { second } else { first };
            if loads[usize::from(other)] + 1 < loads[usize::from(*chosen)] {
                loads[usize::from(*chosen)] -= 1;
                loads[usize::from(other)] += 1;
                *chosen = other;
                moved = true;
            }
        }
        if !moved {
            break;
        }
    }
    loads
        .iter()
        .all(|load| usize::from(*load) <= BUCKET_SLOTS)
        .then_some(chosen)
}
