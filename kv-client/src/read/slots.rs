//! Registered memory that values arrive in and are handed out from: each is the caller's until it is dropped.
//!
//! - One thread takes slots, any thread gives them back: a bit for each unit of memory, set while it is free. The one
//!   that takes only clears bits that it saw set, and nobody else clears any.
//! - A slot is held by the request until its READs have completed or their connection was destroyed (**I5**), then by
//!   the [`Value`].

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use kv_fabric::{Fabric, FabricError, Region};

use crate::memory::landed;

/// Bytes that one bit stands for.
const UNIT: usize = 1024;
/// Longest memory for slots, bytes.
const SLOTS_MAX_BYTES: usize = 1 << 36;

/// The memory, and which of it is free.
struct Arena {
    region: Region,
    free: Box<[AtomicU64]>,
}

/// The slots of one reader.
pub(crate) struct Slots {
    len_bytes: usize,
    arena: Option<Arc<Arena>>,
    /// Unit to look at next, in a word that has been begun: at its end the lowest free place is looked for, so that what is
    /// read and dropped again and again stays in the same memory, and in the processor's cache.
    cursor: usize,
    /// Units from there on that are marked as taken already, all in one word: the next slots are cut from them.
    ahead: usize,
}

/// A piece of the memory, given back when dropped.
pub(crate) struct Slot {
    arena: Arc<Arena>,
    first: u32,
    units: u32,
}

impl Slots {
    /// Up to `len_bytes`, mapped when the first is taken.
    pub(crate) fn new(len_bytes: usize) -> Self {
        Self {
            len_bytes: len_bytes.min(SLOTS_MAX_BYTES) / (64 * UNIT) * (64 * UNIT),
            arena: None,
            cursor: 0,
            ahead: 0,
        }
    }

    /// The memory that the offsets of slots are in.
    pub(crate) fn region(&self) -> Option<&Region> {
        self.arena.as_ref().map(|arena| &arena.region)
    }

    /// A slot of `len` bytes; `None` if none is free. No slot has more than a quarter of the memory.
    #[inline]
    pub(crate) fn take(&mut self, fabric: &dyn Fabric, len: usize) -> Result<Option<Slot>, FabricError> {
        let units = len.div_ceil(UNIT);
        if units.wrapping_sub(1) < self.ahead
            && let Some(arena) = &self.arena
        {
            let first = self.cursor;
            (self.cursor, self.ahead) = (first + units, self.ahead - units);
            return Ok(Some(Slot::new(arena, first, units)));
        }
        self.search(fabric, len)
    }

    /// Longest slot, bytes.
    pub(super) fn longest(&self) -> usize {
        self.len_bytes / 4
    }

    /// The same, at the lowest place where there is one.
    fn search(&mut self, fabric: &dyn Fabric, len: usize) -> Result<Option<Slot>, FabricError> {
        if len == 0 || len > self.len_bytes / 4 {
            return Ok(None);
        }
        let arena = match &self.arena {
            Some(arena) => arena,
            None => {
                let region = fabric.allocate(self.len_bytes)?;
                let words = self.len_bytes / UNIT / 64;
                self.arena.insert(Arc::new(Arena {
                    region,
                    free: (0..words).map(|_| AtomicU64::new(u64::MAX)).collect(),
                }))
            }
        };
        // What was kept for the next is as free as the rest.
        let ahead = std::mem::take(&mut self.ahead);
        arena.mark(self.cursor, ahead, |word, mask| {
            word.fetch_or(mask, Ordering::Release);
        });
        let units = len.div_ceil(UNIT);
        let all = self.len_bytes / UNIT;
        Ok(arena.find(all, units).map(|first| {
            let take = |word: &AtomicU64, mask: u64| {
                word.fetch_and(!mask, Ordering::Acquire);
            };
            arena.mark(first, units, take);
            self.cursor = first + units;
            if self.len_bytes / 4 > 64 * UNIT && !self.cursor.is_multiple_of(64) {
                let at = self.cursor % 64;
                let word = arena.free[self.cursor / 64].load(Ordering::Acquire) >> at;
                self.ahead = (word.trailing_ones() as usize).min(64 - at);
                arena.mark(self.cursor, self.ahead, take);
            }
            Slot::new(arena, first, units)
        }))
    }
}

impl Arena {
    /// First of `units` free units in a row before `end`.
    fn find(&self, end: usize, units: usize) -> Option<usize> {
        let (mut at, mut run) = (0, 0);
        while at < end {
            let word = self.free[at / 64].load(Ordering::Acquire);
            let left = (64 - at % 64).min(end - at);
            let ahead = word >> (at % 64);
            let free = (ahead.trailing_ones() as usize).min(left);
            run += free;
            if run >= units {
                return Some(at + free - run);
            }
            if free == left {
                at += left;
                continue;
            }
            run = 0;
            let taken = (ahead >> free).trailing_zeros() as usize;
            at += free + taken.min(left - free);
        }
        None
    }

    #[inline]
    fn mark(&self, first: usize, units: usize, change: impl Fn(&AtomicU64, u64)) {
        let (mut at, end) = (first, first + units);
        while at < end {
            let count = (64 - at % 64).min(end - at);
            let mask = (u64::MAX >> (64 - count)) << (at % 64);
            change(&self.free[at / 64], mask);
            at += count;
        }
    }
}

impl Slot {
    /// The units are fewer than 2^32: the memory has no more than [`SLOTS_MAX_BYTES`].
    fn new(arena: &Arc<Arena>, first: usize, units: usize) -> Self {
        Self {
            arena: Arc::clone(arena),
            first: first as u32,
            units: units as u32,
        }
    }

    /// Its first byte in the region.
    #[inline]
    pub(crate) fn offset(&self) -> usize {
        self.first as usize * UNIT
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // What was done with the bytes happens before they are taken again.
        let (first, units) = (self.first as usize, self.units as usize);
        let at = first % 64;
        if at + units < 64 {
            // Short ones seldom lie in two words.
            let mask = ((1 << units) - 1) << at;
            self.arena.free[first / 64].fetch_or(mask, Ordering::Release);
            return;
        }
        self.arena.mark(first, units, |word, mask| {
            word.fetch_or(mask, Ordering::Release);
        });
    }
}

/// A value that was read. It lies where the device wrote it, in registered memory of its reader, and gives that back
/// when it is dropped, on any thread; one that found no room there lies on the heap.
pub struct Value(Kind);

enum Kind {
    Slot { slot: Slot, len: usize },
    Heap(Vec<u8>),
}

impl Value {
    pub(crate) fn in_slot(slot: Slot, len: usize) -> Self {
        Self(Kind::Slot { slot, len })
    }

    pub(crate) fn on_heap(bytes: Vec<u8>) -> Self {
        Self(Kind::Heap(bytes))
    }

    /// Whether it lies in registered memory.
    #[must_use]
    pub fn is_registered(&self) -> bool {
        matches!(self.0, Kind::Slot { .. })
    }
}

impl Deref for Value {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            // The slot is this value's alone, and all READs to it have completed.
            Kind::Slot { slot, len } => landed(slot.arena.region.memory(), slot.offset(), *len),
            Kind::Heap(bytes) => bytes,
        }
    }
}

impl AsRef<[u8]> for Value {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl std::fmt::Debug for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Value({} bytes)", self.len())
    }
}

impl<T: AsRef<[u8]> + ?Sized> PartialEq<T> for Value {
    fn eq(&self, other: &T) -> bool {
        **self == *other.as_ref()
    }
}

/// Without a copy: the memory goes back when the last clone of the result is dropped. `bytes` allocates its handle.
impl From<Value> for Bytes {
    fn from(value: Value) -> Self {
        match value.0 {
            Kind::Heap(bytes) => bytes.into(),
            Kind::Slot { .. } => Self::from_owner(value),
        }
    }
}

impl From<Value> for Vec<u8> {
    fn from(value: Value) -> Self {
        match value.0 {
            Kind::Heap(bytes) => bytes,
            Kind::Slot { .. } => value.to_vec(),
        }
    }
}

#[cfg(test)]
mod tests {
    use kv_fabric::sim::{Sim, SimOptions};

    use super::*;

    #[test]
    fn slots_never_overlap_and_come_back_from_any_thread() {
        let fabric = Sim::new(SimOptions::default());
        let mut slots = Slots::new(1 << 20);
        let mut held: Vec<Slot> = Vec::new();
        let (mut seed, mut refused) = (11_u64, 0);
        for _ in 0..20_000 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let len = (seed >> 33) as usize % 70_000 + 1;
            match slots.take(&fabric, len).unwrap() {
                Some(slot) => {
                    let (start, end) = (slot.offset(), slot.offset() + len);
                    assert!(end <= 1 << 20);
                    for other in &held {
                        assert!(
                            end <= other.offset() || start >= other.offset() + other.units as usize * UNIT,
                            "{start}..{end} overlaps one at {}",
                            other.offset()
                        );
                    }
                    held.push(slot);
                }
                None => {
                    refused += 1;
                    let given_back = held.swap_remove((seed >> 20) as usize % held.len());
                    std::thread::scope(|scope| {
                        scope.spawn(move || drop(given_back));
                    });
                }
            }
        }
        assert!(refused > 1000);
        held.clear();
        // All of it is free again.
        for _ in 0..4 {
            held.push(slots.take(&fabric, 1 << 18).unwrap().unwrap());
        }
        assert!(slots.take(&fabric, 1).unwrap().is_none());
        assert!(slots.take(&fabric, (1 << 18) + 1).unwrap().is_none());
    }

    /// They went round all of the memory, so that even a few values that were dropped at once were written to memory that
    /// no cache had.
    #[test]
    fn what_is_dropped_soon_is_given_again_soon() {
        let fabric = Sim::new(SimOptions::default());
        let mut slots = Slots::new(32 << 20);
        for len in [64, 4096, 5000, 65_536, 1 << 20] {
            let mut held = std::collections::VecDeque::new();
            let mut end = 0;
            for _ in 0..10_000 {
                let slot = slots.take(&fabric, len).unwrap().unwrap();
                end = end.max(slot.offset() + len);
                held.push_back(slot);
                if held.len() > 8 {
                    held.pop_front();
                }
            }
            // Nine values, and two words that are begun.
            assert!(
                end <= 9 * len.next_multiple_of(UNIT) + 3 * 64 * UNIT,
                "{len}: {end}"
            );
        }
    }

    #[test]
    fn bytes_of_a_value_give_the_slot_back_when_the_last_clone_goes() {
        let fabric = Sim::new(SimOptions::default());
        let mut slots = Slots::new(1 << 18);
        let slot = slots.take(&fabric, 5).unwrap().unwrap();
        slots.region().unwrap().memory().write(slot.offset(), b"hello");
        let all = slots.arena.clone().unwrap();
        let taken = || {
            all.free
                .iter()
                .map(|word| word.load(Ordering::SeqCst).count_zeros())
                .sum::<u32>()
        };
        let bytes = Bytes::from(Value::in_slot(slot, 5));
        let part = bytes.slice(1..3);
        assert_eq!((&*bytes, &*part, taken()), (&b"hello"[..], &b"el"[..], 1));
        drop(bytes);
        // The reader may be gone.
        drop(slots);
        assert_eq!((&*part, taken()), (&b"el"[..], 1));
        drop(part);
        assert_eq!(taken(), 0);
    }
}
