//! Taking what arrived: pages of the directory and buckets; records in [`super::deliver`].

use std::sync::Arc;

use kv_proto::bucket::{IndexRefusal, candidates, judge_bucket, judge_directory_entry};
use kv_proto::layout::{Bucket, DirectoryEntry, Locator};
use zerocopy::FromBytes;

use super::Trouble;
use super::counters::add;
use super::engine::Engine;
use super::fill::{BUCKET_BYTES, ENTRY_BYTES};
use super::flight::{Flight, Flying};
use super::item::{Found, Want};
use super::lane::Lane;
use crate::ReadError;
use crate::clock::boot_ns;
use crate::tables::PAGE_ENTRIES;

impl Engine {
    /// Takes what has completed; whether anything had. Tells the time that the lease was looked at, after it completed.
    pub(super) fn harvest(&mut self, now_ns: &mut Option<u64>) -> bool {
        let (mut arrived, mut failed) = (false, false);
        for lane in 0..self.lanes.len() {
            if self.lanes[lane].flights.is_empty() {
                continue;
            }
            match self.lanes[lane].poll() {
                Ok(some) => arrived |= some,
                Err(status) => {
                    failed = true;
                    self.failed(lane, status);
                }
            }
        }
        if !arrived {
            return failed;
        }
        let now = boot_ns();
        *now_ns = Some(now);
        self.now_ns = now;
        if !self.footing.leased(&self.core.shared().tenure, now) {
            for lane in &self.lanes {
                lane.landed().for_each(|flight| self.expired(lane, flight));
            }
            self.lose_lease();
            return true;
        }
        for lane in 0..self.lanes.len() {
            while let Some(flight) = self.lanes[lane].next_landed() {
                self.landed(lane, &flight);
            }
            self.lanes[lane].got_on |= self.advanced;
        }
        if std::mem::take(&mut self.advanced) {
            self.advanced_ns = now;
        }
        true
    }

    /// Takes what a group of READs brought, and sees to the item that it was for.
    fn landed(&mut self, lane: usize, flight: &Flight) {
        self.flying -= 1;
        let item = match flight.flying {
            Flying::Page { page, changes } => {
                self.page_landed(lane, page, changes, flight.at);
                None
            }
            Flying::Buckets {
                item,
                directory_index,
                entry,
                buckets,
                count,
            } => {
                self.items[item as usize].flying -= 1;
                if !self.items[item as usize].is_settled() {
                    self.buckets_landed(lane, item, directory_index, &entry, &buckets[..count], flight.at);
                }
                Some(item)
            }
            Flying::Guess {
                item,
                directory_index,
                entry,
                bucket,
                locator,
            } => {
                self.items[item as usize].flying -= 1;
                if !self.items[item as usize].is_settled() {
                    let named = (bucket, locator);
                    self.guess_landed(lane, item, directory_index, &entry, named, flight.at);
                }
                Some(item)
            }
            Flying::Piece {
                fetch,
                with_prefix,
                start,
                end,
            } => Some(self.piece_landed(lane, fetch, with_prefix, start..end, flight.at)),
        };
        self.lanes[lane].ring.give_back(flight.span);
        if let Some(item) = item {
            self.after(item);
        }
    }

    /// Counts what a group of READs brought when the lease was over: it is discarded, whatever it is.
    fn expired(&self, lane: &Lane, flight: &Flight) {
        add(&self.counters.expired, 1);
        let at = flight.at;
        let reused = match flight.flying {
            Flying::Buckets {
                entry,
                buckets,
                count,
                ..
            } => (buckets[..count].iter().enumerate())
                .any(|(place, &index)| self.is_other_bucket(lane, &entry, index, at + place * BUCKET_BYTES)),
            Flying::Guess { entry, bucket, .. } => self.is_other_bucket(lane, &entry, bucket, at),
            Flying::Piece {
                fetch,
                with_prefix: true,
                ..
            } => {
                let mut prefix = vec![0; self.fetches[fetch as usize].locator.prefix_len_bytes() as usize];
                lane.read(at, &mut prefix);
                kv_proto::record::check_prefix(&prefix).is_err()
            }
            Flying::Piece { .. } | Flying::Page { .. } => false,
        };
        add(&self.counters.expired_reused, u64::from(reused));
    }

    /// Whether what lies at `at` of the ring is not bucket `index` of that group.
    pub(super) fn is_other_bucket(&self, lane: &Lane, entry: &DirectoryEntry, index: u32, at: usize) -> bool {
        let mut bytes = [0; BUCKET_BYTES];
        lane.read(at, &mut bytes);
        let scope = &self.footing.view.scope;
        Bucket::read_from_bytes(&bytes)
            .is_ok_and(|bucket| scope.bucket_checksum(entry.group, index, &bucket) != bucket.checksum)
    }

    fn page_landed(&mut self, lane: usize, page: u32, changes: u64, at: usize) {
        let view = Arc::clone(&self.footing.view);
        let directory = &view.directory;
        let first = page * PAGE_ENTRIES;
        let count = directory.entries().saturating_sub(first).min(PAGE_ENTRIES);
        let mut entries = Vec::with_capacity(count as usize);
        for index in 0..count {
            let mut bytes = [0; ENTRY_BYTES];
            self.lanes[lane].read(at + index as usize * ENTRY_BYTES, &mut bytes);
            let Ok(entry) = DirectoryEntry::read_from_bytes(&bytes) else {
                return;
            };
            let (version, depth) = (directory.version, directory.depth);
            if judge_directory_entry(&view.scope, version, depth, first + index, &entry).is_err() {
                add(&self.counters.torn, 1);
                return self.page_torn(page);
            }
            entries.push(entry);
        }
        self.advanced = true;
        // A view that changed while the page flew is a change that it may not have: then it is asked for again.
        self.state.install(changes, vec![(page, entries.into())]);
        self.page_came(page);
    }

    fn buckets_landed(
        &mut self,
        lane: usize,
        index: u32,
        directory_index: u32,
        entry: &DirectoryEntry,
        buckets: &[u32],
        at: usize,
    ) {
        let item = &mut self.items[index as usize];
        for (place, &bucket_index) in buckets.iter().enumerate() {
            let mut bytes = [0; BUCKET_BYTES];
            self.lanes[lane].read(at + place * BUCKET_BYTES, &mut bytes);
            let Ok(bucket) = Bucket::read_from_bytes(&bytes) else {
                return;
            };
            let scope = &self.footing.view.scope;
            match judge_bucket(scope, entry, bucket_index, &bucket, item.hash) {
                Ok(()) => {
                    let named = candidates(&bucket, item.hash, item.key.len());
                    item.candidates
                        .extend(named.map(|locator| (locator, bucket_index)));
                }
                // Stale says more than torn: reading again cannot help.
                Err(IndexRefusal::Torn) if item.otherwise.is_some() => {}
                Err(refusal) => item.otherwise = Some(bucket_trouble(refusal, directory_index)),
            }
        }
        item.candidates.reverse();
        self.next_candidate(index);
    }

    /// Goes on with the next record that can be the key's; without any the buckets decide.
    pub(super) fn next_candidate(&mut self, index: u32) {
        let item = &mut self.items[index as usize];
        let Some((locator, bucket)) = item.candidates.pop() else {
            match item.otherwise {
                Some(trouble) => item.trouble = Some(trouble),
                None => self.settle(index, Err(ReadError::NotFound)),
            }
            return;
        };
        let alone = item.candidates.is_empty() && item.otherwise.is_none();
        if item.want == Want::Locator && alone {
            let found = Found {
                value_len_bytes: u64::from(locator.value_len_bytes),
                locator,
            };
            self.settle(index, Ok(found));
        } else {
            item.bucket = bucket;
            self.want_record(index, locator);
        }
    }
}

/// What keeps a bucket from saying anything, found by the directory entry `index`.
pub(super) fn bucket_trouble(refusal: IndexRefusal, index: u32) -> Trouble {
    match refusal {
        IndexRefusal::Torn => Trouble::TornBucket(index),
        IndexRefusal::Stale => Trouble::StaleBucket(index),
    }
}

/// The locator with its dataset.
pub(crate) fn global(dataset: [u8; 16], locator: Locator) -> crate::GlobalLocator {
    crate::GlobalLocator { dataset, locator }
}
