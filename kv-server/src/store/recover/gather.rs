//! What one pass over the segments gathers, in no more than so many records at a time.
//!
//! A pass begins with all slot hashes that are left. When there is room for no more records, older ones of the same keys
//! go; where that is not enough, so do those of the higher hashes, which are for the next pass. So memory has a limit
//! whatever a dataset holds, and what fits is read once.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard};

use kv_proto::layout::FooterEntry;

use super::super::lock;
use super::rebuild::Spread;

/// Records that are taken at a time.
const CHUNK: usize = 1024;

/// Records of a range of the slot hashes.
#[derive(Debug)]
pub(crate) struct Gather {
    /// For each thread that reads.
    spreads: Vec<Mutex<Spread>>,
    /// First and last slot hash that counts. The last one falls only while every spread is locked.
    first: u64,
    last: AtomicU64,
    /// Records that are held, and most of them at a time.
    held: AtomicUsize,
    most: AtomicUsize,
    max: usize,
}

impl Gather {
    /// Takes at most `max` records, from hash `first` on, that `threads` threads read. So many keys as half of that never
    /// have one and the same slot hash.
    pub(crate) fn new(first: u64, max: usize, threads: usize) -> Self {
        Self {
            spreads: (0..threads).map(|_| Mutex::new(Spread::new())).collect(),
            first,
            last: AtomicU64::new(u64::MAX),
            held: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
            max,
        }
    }

    pub(super) fn threads(&self) -> usize {
        self.spreads.len()
    }

    /// Takes those records of `segment` that count, for the thread with this number.
    pub(crate) fn take(&self, thread: usize, segment: u32, entries: &[FooterEntry]) {
        for chunk in entries.chunks(CHUNK.min(self.max / 4).max(1)) {
            let mut spread = self.room(thread, chunk.len());
            let range = self.first..=self.last.load(Ordering::Relaxed);
            let counting = chunk.iter().filter(|entry| range.contains(&entry.hash));
            let taken = counting.filter(|entry| spread.push(segment, entry)).count();
            self.held.fetch_sub(chunk.len() - taken, Ordering::Relaxed);
        }
    }

    /// The thread's records, when there is room for `more`, which are counted as held.
    fn room(&self, thread: usize, more: usize) -> MutexGuard<'_, Spread> {
        loop {
            let spread = lock(&self.spreads[thread]);
            let grown = |held| Some(held + more).filter(|held| *held <= self.max);
            if let Ok(held) = (self.held).fetch_update(Ordering::Relaxed, Ordering::Relaxed, grown) {
                self.most.fetch_max(held + more, Ordering::Relaxed);
                return spread;
            }
            drop(spread);
            self.make_room(more);
        }
    }

    /// Makes room for a quarter of all records, if there is not room for `more`.
    fn make_room(&self, more: usize) {
        let mut spreads: Vec<_> = self.spreads.iter().map(lock).collect();
        // Whoever counts something as held has its own locked: it is what is there.
        if self.held.load(Ordering::Relaxed) + more <= self.max {
            return;
        }
        spreads.iter_mut().for_each(|spread| spread.keep_newest());
        let held = |spreads: &[MutexGuard<'_, Spread>]| spreads.iter().map(|spread| spread.len()).sum();
        let mut left: usize = held(&spreads);
        let mut last = self.last.load(Ordering::Relaxed);
        while left > self.max / 4 * 3 && last > self.first {
            last = self.first + (last - self.first) / 4 * 3;
            spreads.iter_mut().for_each(|spread| spread.keep_up_to(last));
            left = held(&spreads);
        }
        self.last.store(last, Ordering::Relaxed);
        self.held.store(left, Ordering::Relaxed);
    }

    /// What was gathered; the hash at which the next pass begins, where there is one; and the most records held.
    pub(crate) fn finish(self) -> (Vec<Spread>, Option<u64>, usize) {
        let spreads = self.spreads.into_iter().map(|spread| {
            spread
                .into_inner()
                .unwrap_or_else(std::sync::PoisonError::into_inner)
        });
        let next = self.last.into_inner().checked_add(1);
        (spreads.collect(), next, self.most.into_inner())
    }
}

#[cfg(test)]
#[path = "gather_tests.rs"]
mod tests;
