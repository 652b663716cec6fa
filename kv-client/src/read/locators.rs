//! Where values lay when they were read last: a table of fixed size, in which pairs of places push each other out.

use kv_proto::hash::KeyHash;
use kv_proto::layout::Locator;

/// Longest table, bytes.
const LOCATORS_MAX_BYTES: usize = 1 << 36;

/// A key by its hash, where its value lay, and the bucket that named it.
#[derive(Debug, Clone, Copy)]
struct Entry {
    hash: KeyHash,
    locator: Locator,
    bucket: u32,
}

const EMPTY: Entry = Entry {
    hash: KeyHash { slot: 0, high: 0 },
    locator: Locator {
        segment: 0,
        offset_units: 0,
        value_len_bytes: 0,
        key_len_bytes: 0,
        tag: 0,
    },
    bucket: 0,
};

/// The locators that one engine remembers.
#[derive(Debug)]
pub struct Locators {
    /// Entries that the table may have: a power of two, or 0.
    count: usize,
    /// Empty until the first is remembered.
    entries: Vec<Entry>,
}

impl Locators {
    /// A table of `len_bytes` at most.
    #[must_use]
    pub fn new(len_bytes: usize) -> Self {
        let most = len_bytes.min(LOCATORS_MAX_BYTES) / size_of::<Entry>();
        let count = if most < 2 { 0 } else { 1 << most.ilog2() };
        Self {
            count,
            entries: Vec::new(),
        }
    }

    /// First place of the pair that a key goes to; the one read last lies there.
    fn place(&self, hash: KeyHash) -> usize {
        hash.high as usize & (self.count - 1) & !1
    }

    /// Where the value of a key lay, and the bucket that named it.
    #[must_use]
    pub fn find(&self, hash: KeyHash) -> Option<(Locator, u32)> {
        if self.entries.is_empty() {
            return None;
        }
        let first = self.place(hash);
        let known = |place: usize| {
            let entry = self.entries[place];
            (entry.hash == hash && entry.locator.segment != 0).then_some((entry.locator, entry.bucket))
        };
        known(first).or_else(|| known(first + 1))
    }

    /// Remembers a value that was read.
    pub fn remember(&mut self, hash: KeyHash, locator: Locator, bucket: u32) {
        if self.count == 0 {
            return;
        }
        if self.entries.is_empty() {
            self.entries = vec![EMPTY; self.count];
        }
        let first = self.place(hash);
        // A place that was forgotten pushes nothing out.
        if self.entries[first].hash != hash && self.entries[first].locator.segment != 0 {
            self.entries[first + 1] = self.entries[first];
        }
        self.entries[first] = Entry {
            hash,
            locator,
            bucket,
        };
    }

    /// What was remembered of a key is wrong.
    pub fn forget(&mut self, hash: KeyHash) {
        if self.entries.is_empty() {
            return;
        }
        let first = self.place(hash);
        for place in [first, first + 1] {
            if self.entries[place].hash == hash {
                self.entries[place] = EMPTY;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(number: u64) -> KeyHash {
        KeyHash {
            slot: number,
            high: number.wrapping_mul(0x9e37_79b9_7f4a_7c15),
        }
    }

    fn locator(number: u64) -> Locator {
        Locator {
            segment: 1 + number as u32,
            ..EMPTY.locator
        }
    }

    #[test]
    fn what_is_remembered_is_found_or_pushed_out_within_the_limit() {
        let mut known = Locators::new(100_000);
        assert_eq!(known.find(hash(1)), None);
        for number in 0..10_000 {
            known.remember(hash(number), locator(number), number as u32);
            assert_eq!(known.find(hash(number)), Some((locator(number), number as u32)));
        }
        assert!(known.entries.len() * size_of::<Entry>() <= 100_000);
        let found = (0..10_000)
            .filter(|number| known.find(hash(*number)).is_some())
            .count();
        assert!(
            found > known.entries.len() / 2 && found <= known.entries.len(),
            "{found}"
        );
        for number in 0..10_000 {
            known.forget(hash(number));
            assert_eq!(known.find(hash(number)), None);
        }
        known.remember(hash(1), locator(1), 1);
        known.remember(hash(1), locator(2), 2);
        assert_eq!(known.find(hash(1)), Some((locator(2), 2)));
        known.forget(hash(1));
        assert_eq!(known.find(hash(1)), None);
    }

    /// Two keys of a pair: the one read last was overwritten, forgotten and read anew, which lost the other one.
    #[test]
    fn what_was_forgotten_and_read_anew_pushes_nothing_out() {
        let mut known = Locators::new(100_000);
        let other = KeyHash { slot: 2, ..hash(1) };
        known.remember(other, locator(2), 2);
        known.remember(hash(1), locator(1), 1);
        known.forget(hash(1));
        known.remember(hash(1), locator(3), 1);
        assert_eq!(known.find(other), Some((locator(2), 2)));
        assert_eq!(known.find(hash(1)), Some((locator(3), 1)));
    }

    #[test]
    fn without_room_nothing_is_remembered() {
        let mut known = Locators::new(size_of::<Entry>());
        known.remember(hash(1), locator(1), 1);
        assert_eq!(known.find(hash(1)), None);
    }
}
