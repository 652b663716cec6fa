//! What flies the short way on one connection: a ring of places that are written where they lie and used again.

use super::super::plan::CHAIN_MAX;
use super::super::ring::Span;
use super::{Brings, Short};
use kv_proto::hash::KeyHash;

/// Values in flight, the oldest first.
pub(in super::super) struct Shorts {
    /// A power of two of them, or none.
    places: Vec<Short>,
    /// Place of the oldest, counted on without end, and how many fly.
    first: usize,
    count: usize,
}

impl Short {
    const fn none() -> Self {
        Self {
            last: 0,
            user: 0,
            span: Span::EMPTY,
            slot: None,
            brings: Brings::Buckets(KeyHash { slot: 0, high: 0 }),
        }
    }
}

impl Shorts {
    pub(in super::super) const fn new() -> Self {
        Self {
            places: Vec::new(),
            first: 0,
            count: 0,
        }
    }

    pub(in super::super) fn len(&self) -> usize {
        self.count
    }

    pub(in super::super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    #[inline]
    fn place(&self, index: usize) -> usize {
        (self.first + index) & (self.places.len() - 1)
    }

    /// The place of one more, which is in flight from now on; what it was before is to be overwritten.
    #[inline]
    pub(in super::super) fn push(&mut self) -> &mut Short {
        if self.count == self.places.len() {
            self.grow();
        }
        let place = self.place(self.count);
        self.count += 1;
        &mut self.places[place]
    }

    #[cold]
    fn grow(&mut self) {
        if !self.places.is_empty() {
            let first = self.place(0);
            self.places.rotate_left(first);
        }
        self.first = 0;
        let more = self.places.len().max(CHAIN_MAX.next_power_of_two());
        let len = self.places.len() + more;
        self.places.resize_with(len, Short::none);
    }

    /// The one that `older` are older than.
    #[inline]
    pub(super) fn get(&mut self, older: usize) -> Option<&mut Short> {
        if older >= self.count {
            return None;
        }
        let place = self.place(older);
        self.places.get_mut(place)
    }

    /// So many of the oldest do not fly any more. They hold no slots.
    #[inline]
    pub(super) fn pop(&mut self, count: usize) {
        self.first = self.first.wrapping_add(count);
        self.count -= count;
    }

    pub(in super::super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Short> {
        // Places where none flies hold no slot.
        self.places.iter_mut()
    }

    pub(in super::super) fn iter(&self) -> impl Iterator<Item = &Short> {
        (0..self.count).map(|index| &self.places[self.place(index)])
    }

    /// None fly any more, and no slot is held.
    pub(in super::super) fn clear(&mut self) {
        self.places.iter_mut().for_each(|short| short.slot = None);
        self.count = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_go_in_the_order_in_which_they_came_however_many_there_are() {
        let mut shorts = Shorts::new();
        let (mut pushed, mut popped, mut seed) = (0, 0, 5_u64);
        while pushed < 20_000 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            for _ in 0..(seed >> 40) % 90 {
                shorts.push().user = pushed;
                pushed += 1;
            }
            let users: Vec<_> = shorts.iter().map(|short| short.user).collect();
            assert_eq!(users, (popped..pushed).collect::<Vec<_>>());
            let mut landed = 0;
            while landed < (seed >> 50) as usize % 90
                && let Some(short) = shorts.get(landed)
            {
                assert_eq!(short.user, popped + landed);
                landed += 1;
            }
            shorts.pop(landed);
            popped += landed;
            assert_eq!(
                (shorts.len(), shorts.is_empty()),
                (pushed - popped, pushed == popped)
            );
        }
        shorts.clear();
        assert!(shorts.is_empty() && shorts.get(0).is_none());
    }
}
