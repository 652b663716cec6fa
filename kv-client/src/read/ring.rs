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
}

impl Ring {
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            capacity: capacity / ALIGN * ALIGN,
            tail: 0,
            used: 0,
        }
    }

    #[inline]
    pub(crate) fn take(&mut self, len: usize) -> Option<Span> {
        let need = len.checked_add(ALIGN - 1)? & !(ALIGN - 1);
        if self.used == 0 {
            self.tail = 0;
        }
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
        Some(Span { offset, taken })
    }

    /// Takes back all that was given out.
    pub(crate) fn clear(&mut self) {
        self.used = 0;
    }

    /// Takes back the span that was given out longest ago.
    #[inline]
    pub(crate) fn give_back(&mut self, span: Span) {
        // No span is longer than the ring.
        self.tail += span.taken;
        if self.tail >= self.capacity {
            self.tail -= self.capacity;
        }
        self.used -= span.taken;
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
