//! What changed in a dataset, by number, and what was retired and waits for its readers.
//!
//! A number is taken after its change is done and under the journal's lock. So who reads the latest number first and
//! the journal then misses nothing up to that number.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};

use super::limits::JOURNAL_CHANGES_MAX;

/// Something that a client must learn of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Change {
    /// The row of a segment.
    Row(u32),
    /// Entries of the directory: first and count.
    Range(u32, u32),
    /// Another directory.
    Directory,
    /// The dataset was dropped.
    Dropped,
}

/// Changes of one dataset, and `T`s that were retired by them.
#[derive(Debug, Clone)]
pub struct Journal<T> {
    changes: VecDeque<(u64, Change)>,
    /// Highest number whose change is not in `changes` any more.
    forgotten: u64,
    retired: VecDeque<(u64, T)>,
}

/// What [`Journal::since`] says.
#[derive(Debug)]
pub enum Since {
    /// Nothing changed.
    Nothing,
    /// Too far back: everything may have changed.
    Everything,
    /// This, in order.
    Changes(Vec<Change>),
}

impl<T> Default for Journal<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Journal<T> {
    /// Nothing changed yet.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            changes: VecDeque::new(),
            forgotten: 0,
            retired: VecDeque::new(),
        }
    }

    /// Notes a change that is done, and what it retired; its number.
    pub fn push(&mut self, counter: &AtomicU64, change: Change, retired: Vec<T>) -> u64 {
        // Pairs with the acquire of who answers OPEN and RENEW: that number seen, this change is seen.
        let number = counter.fetch_add(1, Ordering::AcqRel) + 1;
        if self.changes.len() == JOURNAL_CHANGES_MAX
            && let Some((number, _)) = self.changes.pop_front()
        {
            self.forgotten = number;
        }
        self.changes.push_back((number, change));
        self.retired
            .extend(retired.into_iter().map(|retired| (number, retired)));
        number
    }

    /// What changed after `number`.
    #[must_use]
    pub fn since(&self, number: u64) -> Since {
        if number < self.forgotten {
            return Since::Everything;
        }
        let from = self.changes.partition_point(|(at, _)| *at <= number);
        if from == self.changes.len() {
            return Since::Nothing;
        }
        Since::Changes(self.changes.range(from..).map(|(_, change)| *change).collect())
    }

    /// What was retired up to `number`: nobody reads it any more.
    pub fn release(&mut self, number: u64) -> Vec<T> {
        let end = self.retired.partition_point(|(at, _)| *at <= number);
        let released = self.retired.drain(..end).map(|(_, retired)| retired).collect();
        self.retired.shrink_to(2 * self.retired.len());
        released
    }

    /// Memory of this list, and of what waits in it as `of` counts it, bytes.
    pub(crate) fn bytes(&self, of: impl Fn(&T) -> u64) -> u64 {
        let waiting: u64 = self.retired().map(of).sum();
        waiting + (self.retired.capacity() * size_of::<(u64, T)>()) as u64
    }

    /// What was retired and not released yet.
    pub fn retired(&self) -> impl Iterator<Item = &T> {
        self.retired.iter().map(|(_, retired)| retired)
    }

    /// Things that were retired and not released yet.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.retired.len()
    }
}
