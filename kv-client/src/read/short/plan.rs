//! Planning READs, value by value, into one chain.

use kv_fabric::{Fabric, RemoteRef, Scatter};
use kv_proto::hash::{KeyHash, candidate_buckets, directory_index};
use kv_proto::layout::Locator;

use super::super::calls::{Got, Wishes};
use super::super::check_key;
use super::super::counters::add;
use super::super::engine::Engine;
use super::super::fill::BUCKET_BYTES;
use super::super::item::Want;
use super::super::lane::Lane;
use super::super::locators::Locators;
use super::super::plan::{Chain, RING, VALUES, to_ring};
use super::super::slots::Slots;
use super::{Brings, Call, Record};
use crate::ReadError;
use crate::tables::{Row, View};

/// What came of planning one value.
enum Step {
    Planned,
    /// It waits for room.
    Full,
    /// It is the engine's.
    Left,
}

/// What a chain is planned with.
struct Planning<'e> {
    fabric: &'e dyn Fabric,
    view: &'e View,
    locators: &'e Locators,
    lane: &'e mut Lane,
    chain: &'e mut Chain,
    slots: &'e mut Slots,
    want: Want,
    /// READs that the chain may have, and bytes of a record.
    reads_max: usize,
    record_max: u64,
    /// The row that was looked up last: most values of a call lie in few segments.
    row: Option<&'e Row>,
    /// Values that were planned, and buckets.
    planned: usize,
    buckets: u64,
}

impl Engine {
    /// Plans the READs of the next values, as many as the chain may have.
    #[inline(never)]
    pub(super) fn short_plan<W, T>(&mut self, lane: usize, reads_max: usize, call: &mut Call<'_, W, T>)
    where
        W: Wishes,
        T: FnMut(usize, Result<Got, ReadError>),
    {
        let mut planning = Planning {
            fabric: &*self.core.shared().fabric,
            view: &self.footing.view,
            locators: &self.locators,
            lane: &mut self.lanes[lane],
            chain: &mut self.chain,
            slots: &mut self.slots,
            want: call.want,
            reads_max,
            record_max: self.short_max,
            row: None,
            planned: 0,
            buckets: 0,
        };
        while call.next < call.count {
            let step = match call.wishes.wish(call.next) {
                Ok((Some(key), None)) if check_key(key).is_err() => Step::Left,
                Ok((_, Some(at))) => {
                    let leads = call.wishes.leads(call.next, at);
                    // Neighbours are left, so that one READ brings them.
                    let in_run = call.next == call.run_to;
                    if leads {
                        call.run_to = call.next + 1;
                    }
                    if leads || in_run || call.want == Want::Locator {
                        Step::Left
                    } else {
                        planning.record(call.next, at, None)
                    }
                }
                Ok((Some(key), None)) => planning.key(call.next, key),
                _ => Step::Left,
            };
            match step {
                Step::Planned => {}
                // With nothing in flight nothing makes room.
                Step::Full if self.flying > 0 || planning.planned > 0 => break,
                Step::Left | Step::Full => call.left.push((call.next, None)),
            }
            call.next += 1;
        }
        let Planning { planned, buckets, .. } = planning;
        self.flying += planned;
        if buckets > 0 {
            add(&self.counters.bucket_reads, buckets);
        }
    }
}

impl<'e> Planning<'e> {
    /// Plans what is known of a key: the place that is remembered, or the buckets where only its place is wanted.
    #[inline(never)]
    fn key(&mut self, user: usize, key: &[u8]) -> Step {
        let hash = KeyHash::of(&self.view.hash_key, key);
        if self.want == Want::Locator {
            return self.both_buckets(user, hash);
        }
        match self.locators.find(hash) {
            Some((at, bucket)) if usize::from(at.key_len_bytes) == key.len() => {
                let Some(from) = self.bucket_at(hash, bucket) else {
                    return Step::Left;
                };
                self.record(user, &at, Some((hash, bucket, from)))
            }
            _ => Step::Left,
        }
    }

    /// Plans a record, behind the bucket that is to name it where there is one.
    #[inline(always)]
    fn record(&mut self, user: usize, locator: &Locator, named: Option<(KeyHash, u32, RemoteRef)>) -> Step {
        if self.chain.len() + usize::from(named.is_some()) >= self.reads_max {
            return Step::Full;
        }
        let (prefix_len, value_len) = (locator.prefix_len_bytes(), u64::from(locator.value_len_bytes));
        let (start, wire_len) = (locator.offset_bytes(), prefix_len + value_len);
        let Some(row) = self.row(locator.segment) else {
            return Step::Left;
        };
        if row.check(start + wire_len).is_err() {
            return Step::Left;
        }
        let Some((from, follow)) = row.place(start) else {
            return Step::Left;
        };
        if wire_len > self.record_max || wire_len > follow {
            return Step::Left;
        }
        let identity = row.identity;
        let (prefix_len, value_len) = (prefix_len as u32, locator.value_len_bytes);
        let (region, offset, slot, in_ring) = match self.want {
            Want::Slot => match self.slots.take(self.fabric, value_len as usize) {
                Ok(Some(slot)) => (VALUES, slot.offset(), Some(slot), 0),
                Ok(None) | Err(_) => return Step::Left,
            },
            Want::Place { offset, room } if value_len as usize <= room => (VALUES, offset, None, 0),
            Want::Whole => (RING, 0, None, value_len),
            _ => return Step::Left,
        };
        let head = if named.is_some() { BUCKET_BYTES } else { 0 };
        let Some(span) = self.lane.ring.take(head + (prefix_len + in_ring) as usize) else {
            return Step::Full;
        };
        if let Some((_, _, from)) = named {
            let to = to_ring(span.offset, BUCKET_BYTES);
            self.chain.push(from, [to, Scatter::default()]);
            self.buckets += 1;
        }
        let prefix = Scatter {
            offset: span.offset + head,
            len: prefix_len + in_ring,
            region: RING,
        };
        let value = Scatter {
            offset,
            len: value_len - in_ring,
            region,
        };
        self.chain.push(from, [prefix, value]);
        self.planned += 1;
        let short = self.lane.fly_short(self.chain.len());
        (short.user, short.span, short.slot) = (user, span, slot);
        let record = Record {
            locator: *locator,
            identity,
        };
        short.brings = match named {
            None => Brings::Record(record),
            Some((hash, bucket, _)) => Brings::Guess { hash, bucket, record },
        };
        Step::Planned
    }

    /// Plans both buckets of a key.
    fn both_buckets(&mut self, user: usize, hash: KeyHash) -> Step {
        let [first, second] = candidate_buckets(hash.slot);
        if self.chain.len() + 1 >= self.reads_max {
            return Step::Full;
        }
        // Two that are one are rare.
        let (Some(from), false) = (self.bucket_at(hash, first), first == second) else {
            return Step::Left;
        };
        let Some(span) = self.lane.ring.take(2 * BUCKET_BYTES) else {
            return Step::Full;
        };
        let other = i64::from(second) - i64::from(first);
        let other = from.offset((other * BUCKET_BYTES as i64) as u64);
        for (place, from) in [from, other].into_iter().enumerate() {
            let to = to_ring(span.offset + place * BUCKET_BYTES, BUCKET_BYTES);
            self.chain.push(from, [to, Scatter::default()]);
        }
        (self.planned, self.buckets) = (self.planned + 1, self.buckets + 2);
        let short = self.lane.fly_short(self.chain.len());
        (short.user, short.span, short.slot) = (user, span, None);
        short.brings = Brings::Buckets(hash);
        Step::Planned
    }

    #[inline]
    fn row(&mut self, segment: u32) -> Option<&'e Row> {
        match self.row {
            Some(row) if row.segment == segment => Some(row),
            _ => {
                self.row = self.view.row(segment);
                self.row
            }
        }
    }

    /// Where a bucket of a key's group lies, as far as the directory is there.
    #[inline]
    fn bucket_at(&self, hash: KeyHash, bucket: u32) -> Option<RemoteRef> {
        let directory = &self.view.directory;
        let entry = directory.entry(directory_index(hash.slot, directory.depth))?;
        let group = RemoteRef {
            address: entry.address,
            rkey: entry.rkey,
        };
        Some(group.offset(u64::from(bucket) * BUCKET_BYTES as u64))
    }
}
