//! Judging what landed (**I4**), and handing it over.

use kv_fabric::{Fabric, Region};
use kv_proto::bucket::{IndexRefusal, candidates, judge_bucket};
use kv_proto::hash::{KeyHash, candidate_buckets, directory_index};
use kv_proto::layout::{Bucket, record_kind};
use kv_proto::record::{Expected, Refusal, judge_prefix, judge_value};
use zerocopy::FromBytes;

use super::super::Trouble;
use super::super::arrive::bucket_trouble;
use super::super::calls::{Got, Wish};
use super::super::counters::add;
use super::super::engine::Engine;
use super::super::fill::BUCKET_BYTES;
use super::super::item::{Found, Want};
use super::super::lane::Lane;
use super::super::slots::Value;
use super::{Brings, Call, Record, Short};
use crate::ReadError;
use crate::memory::landed;

/// Why what landed is not what was wanted.
enum Why {
    Bucket(IndexRefusal),
    /// The bucket names another place than the one that was remembered.
    WrongGuess,
    Record(Refusal),
    /// The head of a large value.
    Large,
    /// Several records can be the key's.
    Unclear,
}

impl<F: Fabric> Engine<F> {
    /// Hands over what landed, or leaves it to the engine.
    #[inline]
    pub(super) fn short_landed<'k, W, T>(
        &mut self,
        lane: usize,
        mut short: Short,
        call: &mut Call<'_, F, W, T>,
    ) where
        W: Fn(usize) -> Wish<'k>,
        T: FnMut(usize, Result<Got, ReadError>),
    {
        self.flying -= 1;
        let key = (call.wish)(short.user).ok().and_then(|(key, _)| key);
        let judged = self.short_judge(lane, &mut short, key, call);
        self.lanes[lane].ring.give_back(short.span);
        match judged {
            Ok(result) => {
                self.lanes[lane].got_on = true;
                (call.take)(short.user, result);
            }
            Err(why) => {
                let trouble = self.short_refused(&short, &why);
                call.left.push((short.user, trouble));
            }
        }
    }

    #[inline]
    fn short_judge<'k, W, T>(
        &self,
        lane: usize,
        short: &mut Short,
        key: Option<&[u8]>,
        call: &Call<'_, F, W, T>,
    ) -> Result<Result<Got, ReadError>, Why>
    where
        W: Fn(usize) -> Wish<'k>,
        T: FnMut(usize, Result<Got, ReadError>),
    {
        let lane = &self.lanes[lane];
        let mut at = short.span.offset;
        let record = match short.brings {
            Brings::Record(record) => record,
            Brings::Guess { hash, bucket, record } => {
                let named = self.bucket_names(lane, at, hash, bucket)?;
                let key_len = usize::from(record.locator.key_len_bytes);
                if !candidates(named, hash, key_len).any(|named| named == record.locator) {
                    return Err(Why::WrongGuess);
                }
                add(&self.counters.cached, 1);
                at += BUCKET_BYTES;
                record
            }
            Brings::Buckets(hash) => return self.short_look_up(lane, at, hash, key),
        };
        let value = self.short_record(lane, at, short, &record, key, call)?;
        add(&self.counters.gets, 1);
        let found = Found {
            value_len_bytes: u64::from(record.locator.value_len_bytes),
            locator: record.locator,
        };
        Ok(Ok(Got { found, value }))
    }

    /// The bucket that landed at `at` of the ring, if it is bucket `number` of the key's group.
    #[inline]
    fn bucket_names<'l>(
        &self,
        lane: &'l Lane<F>,
        at: usize,
        hash: KeyHash,
        number: u32,
    ) -> Result<&'l Bucket, Why> {
        const TORN: Why = Why::Bucket(IndexRefusal::Torn);
        let ring = lane.memory().ok_or(TORN)?;
        // Its READ has completed, and the span is its own until it is given back.
        let bytes = landed(ring.memory(), at, BUCKET_BYTES);
        let bucket = Bucket::ref_from_bytes(bytes).map_err(|_| TORN)?;
        let view = &self.footing.view;
        let index = directory_index(hash.slot, view.directory.depth);
        let entry = view.directory.entry(index).ok_or(TORN)?;
        judge_bucket(&view.scope, entry, number, bucket, hash).map_err(Why::Bucket)?;
        Ok(bucket)
    }

    /// What both buckets of a key say of it.
    #[inline]
    fn short_look_up(
        &self,
        lane: &Lane<F>,
        at: usize,
        hash: KeyHash,
        key: Option<&[u8]>,
    ) -> Result<Result<Got, ReadError>, Why> {
        let key_len = key.map_or(0, <[u8]>::len);
        let [first, second] = candidate_buckets(hash.slot);
        let first = self.bucket_names(lane, at, hash, first)?;
        let second = self.bucket_names(lane, at + BUCKET_BYTES, hash, second)?;
        let mut named = candidates(first, hash, key_len).chain(candidates(second, hash, key_len));
        let locator = named.next();
        if named.next().is_some() {
            return Err(Why::Unclear);
        }
        Ok(locator.ok_or(ReadError::NotFound).map(|locator| Got {
            found: Found {
                value_len_bytes: u64::from(locator.value_len_bytes),
                locator,
            },
            value: Value::on_heap(Vec::new()),
        }))
    }

    /// The value of the record whose prefix landed at `at` of the ring.
    #[inline]
    fn short_record<'k, W, T>(
        &self,
        lane: &Lane<F>,
        at: usize,
        short: &mut Short,
        record: &Record,
        key: Option<&[u8]>,
        call: &Call<'_, F, W, T>,
    ) -> Result<Value, Why>
    where
        W: Fn(usize) -> Wish<'k>,
        T: FnMut(usize, Result<Got, ReadError>),
    {
        const TORN: Why = Why::Record(Refusal::Torn);
        let ring = lane.memory().ok_or(TORN)?;
        let prefix_len = record.locator.prefix_len_bytes() as usize;
        let prefix = landed(ring.memory(), at, prefix_len);
        let expected = Expected {
            segment_identity: record.identity,
            locator: record.locator,
            hash_key: &self.footing.view.hash_key,
            key,
        };
        let header = judge_prefix(prefix, &expected).map_err(Why::Record)?;
        if header.kind != record_kind::VALUE {
            return Err(Why::Large);
        }
        let value_len = record.locator.value_len_bytes as usize;
        let (region, at) = match (call.want, &short.slot) {
            (Want::Place { offset, .. }, _) => (call.region.ok_or(TORN)?, offset),
            (_, Some(slot)) => (self.slots.region().ok_or(TORN)?, slot.offset()),
            _ => (ring, at + prefix_len),
        };
        // As the bucket's READ; and the memory is this request's until it is done.
        let value = || landed(region.memory(), at, value_len);
        if self.options.verify {
            judge_value(prefix, &header, value()).map_err(Why::Record)?;
        }
        Ok(match short.slot.take() {
            Some(slot) => Value::in_slot(slot, value_len),
            None if call.want == Want::Whole => Value::on_heap(value().to_vec()),
            None => Value::on_heap(Vec::new()),
        })
    }

    /// The trouble that the engine begins with; forgets a place that was remembered wrongly.
    #[cold]
    fn short_refused(&mut self, short: &Short, why: &Why) -> Option<Trouble> {
        let guess = match short.brings {
            Brings::Guess { hash, .. } => Some(hash),
            Brings::Record(_) | Brings::Buckets(_) => None,
        };
        match (why, guess) {
            (Why::Bucket(refusal), _) => {
                let (Brings::Guess { hash, .. } | Brings::Buckets(hash)) = short.brings else {
                    return None;
                };
                let index = directory_index(hash.slot, self.footing.view.directory.depth);
                Some(bucket_trouble(*refusal, index))
            }
            (Why::WrongGuess | Why::Record(Refusal::OtherKey), Some(hash)) => {
                add(&self.counters.cached_wrong, 1);
                self.locators.forget(hash);
                None
            }
            (Why::Record(Refusal::OtherKey), None) => Some(Trouble::StaleRecord),
            (Why::Record(refusal), _) => Some(Trouble::from(*refusal)),
            // It is read once more: that is what its being cut into parts costs.
            (Why::Large, _) => {
                add(&self.counters.split_reads, 1 + u64::from(guess.is_some()));
                None
            }
            (Why::WrongGuess | Why::Unclear, _) => None,
        }
    }

    /// Counts what landed when the lease was over: all of it is discarded.
    #[cold]
    pub(super) fn short_expired(&self) {
        for lane in &self.lanes {
            for short in lane.landed_shorts() {
                let at = short.span.offset;
                let is_other = |hash: KeyHash, number: u32, at: usize| {
                    let directory = &self.footing.view.directory;
                    let entry = directory.entry(directory_index(hash.slot, directory.depth));
                    entry.is_some_and(|entry| self.is_other_bucket(lane, entry, number, at))
                };
                let is_no_record = |record: Record, at: usize| {
                    let mut prefix = vec![0; record.locator.prefix_len_bytes() as usize];
                    lane.read(at, &mut prefix);
                    kv_proto::record::check_prefix(&prefix).is_err()
                };
                let reused = match short.brings {
                    Brings::Record(record) => is_no_record(record, at),
                    Brings::Guess { hash, bucket, record } => {
                        is_other(hash, bucket, at) || is_no_record(record, at + BUCKET_BYTES)
                    }
                    Brings::Buckets(hash) => {
                        let [first, second] = candidate_buckets(hash.slot);
                        is_other(hash, first, at) || is_other(hash, second, at + BUCKET_BYTES)
                    }
                };
                add(&self.counters.expired, 1);
                add(&self.counters.expired_reused, u64::from(reused));
            }
        }
    }
}
