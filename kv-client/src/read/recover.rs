//! What kept an item from being read, seen to: begun again at once, a little later, after a renewal, or given up.

use kv_fabric::ReadStatus;

use super::counters::add;
use super::engine::Engine;
use super::{FAILED_MAX, STALE_LOCATOR_MAX, STALE_MAX, TORN_BEFORE_STALE, TORN_MAX, Trouble};
use crate::ReadError;

impl Engine {
    /// Sees to the trouble of an item that nothing is in flight for.
    pub(super) fn recover(&mut self, index: u32, trouble: Trouble) {
        if trouble == Trouble::OtherKey {
            self.items[index as usize].trouble = None;
            self.next_candidate(index);
            return self.after(index);
        }
        if trouble == Trouble::WrongGuess {
            return self.guessed_wrong(index);
        }
        add(&self.counters.retries, 1);
        match trouble {
            Trouble::TornRecord => self.torn(index, None),
            Trouble::TornBucket(entry) => self.torn(index, Some(entry)),
            Trouble::StaleRecord | Trouble::NoPlace => self.stale(index, None),
            Trouble::StaleBucket(entry) => self.stale(index, Some(entry)),
            Trouble::TornDirectory => {
                self.items[index as usize].last = ReadError::Stale;
                // Counts as torn, so that it is not tried again without a pause.
                self.items[index as usize].torn += 1;
                self.wait_for_renewal(index, None);
            }
            Trouble::Loading(segment) => self.wait_for_load(index, segment),
            Trouble::NoImage => self.give_up(index, ReadError::NoImage),
            Trouble::NoRoom => self.give_up(index, ReadError::NoResources),
            Trouble::Fabric(status) => {
                let item = &mut self.items[index as usize];
                item.last = ReadError::Fabric(status);
                if item.failed >= FAILED_MAX {
                    self.give_up(index, ReadError::Fabric(status));
                } else if status == ReadStatus::RemoteAccess {
                    self.refresh();
                    self.wait_for_renewal(index, None);
                } else {
                    self.begin(index);
                    self.after(index);
                }
            }
            Trouble::Lost | Trouble::OtherKey | Trouble::WrongGuess => {
                self.begin(index);
                self.after(index);
            }
        }
    }

    fn torn(&mut self, index: u32, bucket: Option<u32>) {
        add(&self.counters.torn, 1);
        add(&self.counters.torn_buckets, u64::from(bucket.is_some()));
        let item = &mut self.items[index as usize];
        item.torn += 1;
        item.last = ReadError::Torn { attempts: item.torn };
        if item.torn >= TORN_MAX {
            let last = item.last;
            self.give_up(index, last);
        } else if item.torn >= TORN_BEFORE_STALE {
            self.wait_for_renewal(index, bucket);
        } else {
            self.wait_a_little(index);
        }
    }

    fn stale(&mut self, index: u32, bucket: Option<u32>) {
        add(&self.counters.stale, 1);
        add(&self.counters.stale_directory, u64::from(bucket.is_some()));
        let item = &mut self.items[index as usize];
        item.stale += 1;
        item.last = ReadError::Stale;
        let most = if item.at.is_some() {
            STALE_LOCATOR_MAX
        } else {
            STALE_MAX
        };
        if item.stale >= most {
            self.give_up(index, ReadError::Stale);
        } else {
            self.wait_for_renewal(index, bucket);
        }
    }

    fn give_up(&mut self, index: u32, error: ReadError) {
        self.settle(index, Err(error));
        self.after(index);
    }
}
