//! Judging what landed (**I4**), and handing it over.

use kv_fabric::Memory;
use kv_proto::bucket::{IndexRefusal, candidates, judge_bucket};
use kv_proto::hash::{KeyHash, candidate_buckets, directory_index};
use kv_proto::layout::{Bucket, Locator, record_kind};
use kv_proto::record::{Expected, Refusal, judge_whole};
use zerocopy::FromBytes;

use super::super::Trouble;
use super::super::arrive::bucket_trouble;
use super::super::calls::{Got, Wishes};
use super::super::counters::{LaneCounters, add};
use super::super::engine::Engine;
use super::super::fill::BUCKET_BYTES;
use super::super::item::{Found, Want};
use super::super::lane::Lane;
use super::super::locators::Locators;
use super::super::ring::Span;
use super::super::slots::{Slot, Value};
use super::{Brings, Call, Record, Short};
use crate::ReadError;
use crate::memory::landed;
use crate::tables::View;

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

/// What is judged by.
struct Judging<'e> {
    view: &'e View,
    /// Where buckets and prefixes lie, and where values do.
    ring: &'e Memory,
    values: &'e Memory,
    want: Want,
    verify: bool,
}

impl Engine {
    /// Hands over what has landed on a connection, or leaves it to the engine.
    #[inline(never)]
    pub(super) fn short_take<W, T>(&mut self, lane: usize, call: &mut Call<'_, W, T>)
    where
        W: Wishes,
        T: FnMut(usize, Result<Got, ReadError>),
    {
        let Lane {
            memory: Some(ring),
            shorts,
            ring: given,
            completed,
            got_on,
            ..
        } = &mut self.lanes[lane]
        else {
            return;
        };
        let values = match call.want {
            Want::Place { .. } => call.region,
            Want::Slot => self.slots.region(),
            _ => None,
        };
        let judging = Judging {
            view: &self.footing.view,
            ring: ring.memory(),
            values: values.unwrap_or(ring).memory(),
            want: call.want,
            verify: self.options.verify,
        };
        // Those that brought a value are counted by the others: nearly all do.
        let (mut landed, mut others, mut guesses) = (0, 0, 0);
        let mut spans = Span::EMPTY;
        while let Some(short) = shorts.get(landed)
            && short.last <= *completed
        {
            let (user, span) = (short.user, short.span);
            spans = spans.with(span);
            landed += 1;
            let key = call.wishes.key(user);
            let (record, judged) = match &short.brings {
                Brings::Record(record) => {
                    let judged = judging.record(span.offset, record, key, short.slot.as_ref());
                    (record, judged)
                }
                Brings::Guess { hash, bucket, record } => {
                    let judged = judging.guess(span.offset, *hash, *bucket, record, key, short.slot.as_ref());
                    guesses += u64::from(judged.is_ok());
                    (record, judged)
                }
                Brings::Buckets(hash) => {
                    match judging.look_up(span.offset, *hash, key) {
                        Ok(found) => {
                            *got_on = true;
                            (call.take)(user, found);
                        }
                        Err(why) => {
                            let depth = judging.view.directory.depth;
                            let trouble =
                                refused(&short.brings, &why, depth, &mut self.locators, &self.counters);
                            call.left.push((user, trouble));
                        }
                    }
                    others += 1;
                    continue;
                }
            };
            match judged {
                Ok(()) => {
                    let locator = record.locator;
                    let value = judging.value(span.offset, &locator, short);
                    let found = Found {
                        value_len_bytes: u64::from(locator.value_len_bytes),
                        locator,
                    };
                    (call.take)(user, Ok(Got { found, value }));
                }
                Err(why) => {
                    short.slot = None;
                    let depth = judging.view.directory.depth;
                    let trouble = refused(&short.brings, &why, depth, &mut self.locators, &self.counters);
                    call.left.push((user, trouble));
                    others += 1;
                }
            }
        }
        given.give_back(spans);
        shorts.pop(landed);
        self.flying -= landed;
        let gets = landed - others;
        *got_on |= gets > 0;
        add(&self.counters.gets, gets as u64);
        if guesses > 0 {
            add(&self.counters.cached, guesses);
        }
    }
}

impl Judging<'_> {
    /// Judges the record whose prefix landed at `at` of the ring, and its value.
    #[inline(always)]
    fn record(&self, at: usize, record: &Record, key: Option<&[u8]>, slot: Option<&Slot>) -> Result<(), Why> {
        let prefix_len = record.locator.prefix_len_bytes() as usize;
        let prefix = landed(self.ring, at, prefix_len);
        let expected = Expected {
            segment_identity: record.identity,
            locator: record.locator,
            hash_key: &self.view.hash_key,
            key,
        };
        // As the bucket's READ; and the memory is this request's until it is done.
        let value = self.verify.then(|| {
            let at = match (self.want, slot) {
                (Want::Place { offset, .. }, _) => offset,
                (_, Some(slot)) => slot.offset(),
                _ => at + prefix_len,
            };
            landed(self.values, at, record.locator.value_len_bytes as usize)
        });
        match judge_whole(prefix, value, &expected) {
            Ok(record_kind::VALUE) => Ok(()),
            Ok(_) => Err(Why::Large),
            Err(refusal) => Err(Why::Record(refusal)),
        }
    }

    /// Judges the bucket that landed at `at` of the ring, which is to name the record, and the record behind it.
    #[inline(never)]
    fn guess(
        &self,
        at: usize,
        hash: KeyHash,
        bucket: u32,
        record: &Record,
        key: Option<&[u8]>,
        slot: Option<&Slot>,
    ) -> Result<(), Why> {
        let named = self.bucket(at, hash, bucket)?;
        let key_len = usize::from(record.locator.key_len_bytes);
        if !candidates(named, hash, key_len).any(|named| named == record.locator) {
            return Err(Why::WrongGuess);
        }
        self.record(at + BUCKET_BYTES, record, key, slot)
    }

    /// The bucket that landed at `at` of the ring, if it is bucket `number` of the key's group.
    #[inline]
    fn bucket(&self, at: usize, hash: KeyHash, number: u32) -> Result<&Bucket, Why> {
        const TORN: Why = Why::Bucket(IndexRefusal::Torn);
        // Its READ has completed, and the span is its own until it is given back.
        let bytes = landed(self.ring, at, BUCKET_BYTES);
        let bucket = Bucket::ref_from_bytes(bytes).map_err(|_| TORN)?;
        let index = directory_index(hash.slot, self.view.directory.depth);
        let entry = self.view.directory.entry(index).ok_or(TORN)?;
        judge_bucket(&self.view.scope, entry, number, bucket, hash).map_err(Why::Bucket)?;
        Ok(bucket)
    }

    /// What both buckets of a key say of it.
    fn look_up(&self, at: usize, hash: KeyHash, key: Option<&[u8]>) -> Result<Result<Got, ReadError>, Why> {
        let key_len = key.map_or(0, <[u8]>::len);
        let [first, second] = candidate_buckets(hash.slot);
        let first = self.bucket(at, hash, first)?;
        let second = self.bucket(at + BUCKET_BYTES, hash, second)?;
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

    /// The value of a record that was accepted, to be handed over.
    #[inline]
    fn value(&self, at: usize, locator: &Locator, short: &mut Short) -> Value {
        let value_len = locator.value_len_bytes as usize;
        match short.slot.take() {
            Some(slot) => Value::in_slot(slot, value_len),
            None if self.want == Want::Whole => {
                let head = match short.brings {
                    Brings::Guess { .. } => BUCKET_BYTES,
                    Brings::Record(_) | Brings::Buckets(_) => 0,
                };
                let at = at + head + locator.prefix_len_bytes() as usize;
                Value::on_heap(landed(self.ring, at, value_len).to_vec())
            }
            None => Value::on_heap(Vec::new()),
        }
    }
}

/// The trouble that the engine begins with; forgets a place that was remembered wrongly.
#[cold]
fn refused(
    brings: &Brings,
    why: &Why,
    depth: u8,
    locators: &mut Locators,
    counters: &LaneCounters,
) -> Option<Trouble> {
    let guess = match *brings {
        Brings::Guess { hash, .. } => Some(hash),
        Brings::Record(_) | Brings::Buckets(_) => None,
    };
    match (why, guess) {
        (Why::Bucket(refusal), _) => {
            let (Brings::Guess { hash, .. } | Brings::Buckets(hash)) = *brings else {
                return None;
            };
            Some(bucket_trouble(*refusal, directory_index(hash.slot, depth)))
        }
        (Why::WrongGuess | Why::Record(Refusal::OtherKey), Some(hash)) => {
            add(&counters.cached_wrong, 1);
            locators.forget(hash);
            None
        }
        (Why::Record(Refusal::OtherKey), None) => Some(Trouble::StaleRecord),
        (Why::Record(refusal), _) => Some(Trouble::from(*refusal)),
        // It is read once more: that is what its being cut into parts costs.
        (Why::Large, _) => {
            add(&counters.split_reads, 1 + u64::from(guess.is_some()));
            None
        }
        (Why::WrongGuess | Why::Unclear, _) => None,
    }
}

impl Engine {
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
