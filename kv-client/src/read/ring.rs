//! The memory of a lane as a ring: what was given out first is given back first.

/// Start of what is given out: a cache line, so that two READs never write one.
const ALIGN: usize = 64;

/// Gives out contiguous spans of `capacity` bytes.
#[derive(Debug)]
pub(crate) struct Ring {
    capacity: usize,
    /// First byte in use, and how many bytes from it on, wrapping.
    tail: usize,
    used: usize,
    /// First byte behind those, and how many are free from it on without a break, or fewer: what is given back may add to
    /// them.
    head: usize,
    ahead: usize,
}

/// A span that was given out, and all that was passed over to keep it whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) offset: usize,
    taken: usize,
}

impl Span {
    /// Of no ring.
    pub(crate) const EMPTY: Self = Self { offset: 0, taken: 0 };

    /// Nothing of it.
    pub(crate) fn none(self) -> Self {
        Self { taken: 0, ..self }
    }

    /// It and the one that was given out next, to be given back at once.
    #[inline]
    pub(super) fn with(self, next: Self) -> Self {
        Self {
            taken: self.taken + next.taken,
            ..self
        }
    }
}

impl Ring {
    pub(crate) fn new(capacity: usize) -> Self {
        let capacity = capacity / ALIGN * ALIGN;
        Self {
            capacity,
            tail: 0,
            used: 0,
            head: 0,
            ahead: capacity,
        }
    }

    #[inline]
    pub(crate) fn take(&mut self, len: usize) -> Option<Span> {
        let need = len.checked_add(ALIGN - 1)? & !(ALIGN - 1);
        if need > self.ahead {
            return self.look_for(need);
        }
        let offset = self.head;
        self.head += need;
        self.ahead -= need;
        self.used += need;
        Some(Span { offset, taken: need })
    }

    /// The same where what is known to be free is not enough.
    #[inline(never)]
    fn look_for(&mut self, need: usize) -> Option<Span> {
        let head = self.tail + self.used;
        // Behind what is in use up to the end, or else from the start up to what is in use.
        let (offset, taken) = if head + need <= self.capacity {
            (head, need)
        } else if head < self.capacity {
            (0, self.capacity - head + need)
        } else {
            (head - self.capacity, need)
        };
        if self.used + taken > self.capacity {
            return None;
        }
        self.used += taken;
        self.head = offset + need;
        let end = if self.tail >= self.head {
            self.tail
        } else {
            self.capacity
        };
        self.ahead = end - self.head;
        Some(Span { offset, taken })
    }

    /// Takes back all that was given out.
    pub(crate) fn clear(&mut self) {
        *self = Self::new(self.capacity);
    }

    /// Takes back the span that was given out longest ago. With nothing given out it begins at the start again, so that few
    /// bytes are used as long as few are needed.
    #[inline]
    pub(crate) fn give_back(&mut self, span: Span) {
        // No span is longer than the ring.
        self.tail += span.taken;
        if self.tail >= self.capacity {
            self.tail -= self.capacity;
        }
        self.used -= span.taken;
        if self.used == 0 {
            self.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    #[test]
    fn spans_are_whole_and_never_overlap() {
        let mut ring = Ring::new(4096);
        let mut given = VecDeque::new();
        let mut seed = 7_u64;
        for _ in 0..100_000 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let len = (seed >> 40) as usize % 1500 + 1;
            match ring.take(len) {
                Some(span) => {
                    assert!(span.offset + len <= 4096);
                    for &(other, other_len) in &given {
                        let other: Span = other;
                        assert!(
                            span.offset >= other.offset + other_len || other.offset >= span.offset + len,
                            "{span:?} of {len} overlaps {other:?} of {other_len}"
                        );
                    }
                    given.push_back((span, len));
                }
                None => {
                    let (span, _) = given
                        .pop_front()
                        .expect("an empty ring holds any span up to its capacity");
                    ring.give_back(span);
                }
            }
        }
        assert_eq!(Ring::new(4096).take(4097), None);
        assert!(Ring::new(4096).take(4096).is_some());
    }
}
