//! Windows of a range of one session's staging memory: first fit, freed neighbours joined.

use std::collections::BTreeMap;

/// Windows start and end at multiples of this, bytes.
pub const WINDOW_ALIGN_BYTES: u32 = 4096;

/// A range of staging memory that belongs to one PUT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// First byte.
    pub offset: u32,
    /// Bytes that may be written: what was asked for, or less where memory is scarce.
    pub len_bytes: u32,
}

/// Which ranges of staging memory are free.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Windows {
    len_bytes: u32,
    /// Start and length of each free range; no two touch.
    free: BTreeMap<u32, u32>,
}

fn rounded(len_bytes: u32) -> u32 {
    len_bytes.div_ceil(WINDOW_ALIGN_BYTES) * WINDOW_ALIGN_BYTES
}

impl Windows {
    /// All of `len_bytes` from `start` on, free; what is left over after the last whole unit is not used.
    #[must_use]
    pub fn new(start: u32, len_bytes: u32) -> Self {
        let len_bytes = len_bytes - len_bytes % WINDOW_ALIGN_BYTES;
        let free = (len_bytes > 0)
            .then_some((start, len_bytes))
            .into_iter()
            .collect();
        Self { len_bytes, free }
    }

    /// How long the range is, bytes.
    #[must_use]
    pub fn len_bytes(&self) -> u32 {
        self.len_bytes
    }

    /// A window of `wanted` bytes; of less, but at least `least`, where that is all there is. `None` if there is not
    /// even that. `wanted` must not be 0.
    pub fn take(&mut self, wanted: u32, least: u32) -> Option<Window> {
        let mut len_bytes = wanted;
        loop {
            if let Some(offset) = self.take_exactly(rounded(len_bytes)) {
                return Some(Window { offset, len_bytes });
            }
            len_bytes = len_bytes.div_ceil(2);
            if len_bytes < least.min(wanted) || len_bytes < WINDOW_ALIGN_BYTES {
                return None;
            }
        }
    }

    fn take_exactly(&mut self, need: u32) -> Option<u32> {
        let (offset, have) = self
            .free
            .iter()
            .find(|(_, have)| **have >= need)
            .map(|(offset, have)| (*offset, *have))?;
        self.free.remove(&offset);
        if have > need {
            self.free.insert(offset + need, have - need);
        }
        Some(offset)
    }

    /// Takes a window back.
    pub fn give(&mut self, window: Window) {
        let (mut start, mut len) = (window.offset, rounded(window.len_bytes));
        if let Some((before, before_len)) = self.free.range(..start).next_back() {
            debug_assert!(before + before_len <= start, "window freed twice");
            if before + before_len == start {
                (start, len) = (*before, before_len + len);
            }
        }
        if let Some(after_len) = self.free.remove(&(window.offset + rounded(window.len_bytes))) {
            len += after_len;
        }
        self.free.insert(start, len);
    }

    /// Bytes that are free.
    #[must_use]
    pub fn free_bytes(&self) -> u32 {
        self.free.values().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn scarce_memory_gives_smaller_windows_down_to_the_least() {
        let mut windows = Windows::new(0, 96 << 10);
        let first = windows.take(64 << 10, 16 << 10);
        assert_eq!(
            first,
            Some(Window {
                offset: 0,
                len_bytes: 64 << 10
            })
        );
        let second = windows.take(64 << 10, 16 << 10);
        assert_eq!(
            second,
            Some(Window {
                offset: 64 << 10,
                len_bytes: 32 << 10
            })
        );
        assert_eq!(windows.take(64 << 10, 16 << 10), None);
        assert_eq!(windows.take(1, 16 << 10), None);
    }

    #[test]
    fn windows_of_nothing_are_never_there() {
        assert_eq!(Windows::new(0, 0).take(1, 1), None);
        assert_eq!(Windows::new(0, WINDOW_ALIGN_BYTES - 1).take(1, 1), None);
    }

    proptest! {
        /// Windows never overlap, stay inside, and all comes back as one range.
        #[test]
        fn no_window_overlaps_another(
            steps in proptest::collection::vec((any::<bool>(), 1_u32..300_000, any::<prop::sample::Index>()), 1..200),
        ) {
            let total = 1 << 20;
            let mut windows = Windows::new(0, total);
            let mut taken: Vec<Window> = Vec::new();
            for (take, wanted, which) in steps {
                if take || taken.is_empty() {
                    if let Some(window) = windows.take(wanted, 64 << 10) {
                        prop_assert!(window.len_bytes <= wanted && window.len_bytes > 0);
                        prop_assert!(window.offset + window.len_bytes <= total);
                        for other in &taken {
                            prop_assert!(
                                window.offset + window.len_bytes <= other.offset
                                    || other.offset + other.len_bytes <= window.offset
                            );
                        }
                        taken.push(window);
                    }
                } else {
                    windows.give(taken.swap_remove(which.index(taken.len())));
                }
            }
            for window in taken {
                windows.give(window);
            }
            prop_assert_eq!(windows, Windows::new(0, total));
        }
    }
}
