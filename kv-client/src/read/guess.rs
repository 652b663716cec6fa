//! A value whose place is remembered: the bucket that named it and the record there, behind one doorbell. The record
//! counts only if the bucket, with the stamps expected, still names it; else the key is looked up.

use kv_fabric::{RemoteRef, Scatter};
use kv_proto::bucket::{candidates, judge_bucket};
use kv_proto::layout::{Bucket, DirectoryEntry, Locator};
use zerocopy::FromBytes;

use super::counters::add;
use super::engine::Engine;
use super::fill::{BUCKET_BYTES, Step};
use super::flight::{Flight, Flying};
use super::item::{Found, Want};
use super::plan::{PIECE_READS_MAX, to_ring};
use super::{Trouble, arrive};

/// How it stands with the place that an item was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Guess {
    /// It was looked up, or the caller's.
    None,
    /// The bucket has not said yet whether it still names it; what was found there, once it was.
    Open(Option<Found>),
    /// It does.
    Right,
}

impl Engine {
    /// Plans bucket and record of an item whose place is remembered; `None` if it is not.
    pub(super) fn plan_guess(
        &mut self,
        lane: usize,
        index: u32,
        directory_index: u32,
        entry: &DirectoryEntry,
    ) -> Option<Step> {
        let item = &self.items[index as usize];
        if item.want == Want::Locator || item.no_guess {
            return None;
        }
        let (locator, bucket) = self.locators.find(item.hash)?;
        let other_key = usize::from(locator.key_len_bytes) != item.key.len();
        if other_key || self.footing.view.row_for(&locator).is_err() {
            self.locators.forget(item.hash);
            return None;
        }
        let piece = locator
            .wire_len_bytes()
            .min(self.piece_bytes + locator.prefix_len_bytes()) as usize;
        let reads_max = 1 + piece / self.shared().fabric.read_max_bytes() + 4;
        if self.chain_room(lane) < reads_max.min(PIECE_READS_MAX) {
            return Some(Step::Full);
        }
        let Some(span) = self.lanes[lane].ring.take(BUCKET_BYTES) else {
            return Some(Step::Full);
        };
        let group = RemoteRef {
            address: entry.address,
            rkey: entry.rkey,
        };
        let from = group.offset(u64::from(bucket) * BUCKET_BYTES as u64);
        let to = to_ring(span.offset, BUCKET_BYTES);
        self.chain.push(from, [to, Scatter::default()]);
        add(&self.counters.bucket_reads, 1);
        self.takes_off(index);
        let item = &mut self.items[index as usize];
        item.guess = Guess::Open(None);
        item.bucket = bucket;
        let flying = Flying::Guess {
            item: index,
            directory_index,
            entry: *entry,
            bucket,
            locator,
        };
        self.fly(lane, Flight::new(span, flying));
        self.want_record(index, locator);
        // Behind the same doorbell: it is the next to be planned.
        if let Some(fetch) = self.records.pop_back() {
            self.records.push_front(fetch);
            self.plan_record(lane, fetch);
        }
        Some(Step::Planned)
    }

    /// The bucket has come that a guess is held to.
    pub(super) fn guess_landed(
        &mut self,
        lane: usize,
        index: u32,
        directory_index: u32,
        entry: &DirectoryEntry,
        named: (u32, Locator),
        at: usize,
    ) {
        let item = &mut self.items[index as usize];
        let (number, locator) = named;
        let mut bytes = [0; BUCKET_BYTES];
        self.lanes[lane].read(at, &mut bytes);
        let Ok(bucket) = Bucket::read_from_bytes(&bytes) else {
            return;
        };
        let scope = &self.footing.view.scope;
        if let Err(refusal) = judge_bucket(scope, entry, number, &bucket, item.hash) {
            item.trouble = Some(arrive::bucket_trouble(refusal, directory_index));
            return;
        }
        let mut named = candidates(&bucket, item.hash, item.key.len());
        if !named.any(|named| named == locator) {
            item.trouble = Some(Trouble::WrongGuess);
            return;
        }
        let before = std::mem::replace(&mut item.guess, Guess::Right);
        add(&self.counters.cached, 1);
        if let Guess::Open(Some(found)) = before {
            self.settle(index, Ok(found));
        }
    }

    /// What was remembered of an item is no longer so: it is looked up.
    pub(super) fn guessed_wrong(&mut self, index: u32) {
        add(&self.counters.cached_wrong, 1);
        let item = &mut self.items[index as usize];
        item.no_guess = true;
        let hash = item.hash;
        self.locators.forget(hash);
        self.begin(index);
        self.after(index);
    }
}
