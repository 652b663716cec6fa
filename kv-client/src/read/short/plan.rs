//! Planning the READs of one value.

use kv_fabric::{Fabric, RemoteRef};
use kv_proto::hash::{KeyHash, candidate_buckets, directory_index};
use kv_proto::layout::Locator;

use super::super::calls::{Got, Wish};
use super::super::check_key;
use super::super::counters::add;
use super::super::engine::Engine;
use super::super::fill::BUCKET_BYTES;
use super::super::item::Want;
use super::super::plan::{Dest, Piece, Planned};
use super::super::ring::Span;
use super::super::slots::Slot;
use super::{Brings, Call, Record, Short};
use crate::ReadError;

/// What came of planning one value.
pub(super) enum Step {
    Planned,
    /// It waits for room.
    Full,
    /// It is the engine's.
    Left,
}

impl<F: Fabric> Engine<F> {
    /// Plans the READs of the next value, if the chain has no more than `room` with them.
    #[inline]
    pub(super) fn short_plan<'k, W, T>(
        &mut self,
        lane: usize,
        room: usize,
        call: &mut Call<'_, F, W, T>,
    ) -> Step
    where
        W: Fn(usize) -> Wish<'k>,
        T: FnMut(usize, Result<Got, ReadError>),
    {
        let Ok((key, at)) = (call.wish)(call.next) else {
            return Step::Left;
        };
        if key.is_some_and(|key| check_key(key).is_err()) {
            return Step::Left;
        }
        match (key, at) {
            (_, Some(_)) if call.want == Want::Locator => Step::Left,
            (_, Some(at)) => self.short_plan_record(lane, room, call, &at, None),
            (Some(key), None) => {
                let hash = KeyHash::of(&self.footing.view.hash_key, key);
                if call.want == Want::Locator {
                    return self.short_plan_buckets(lane, room, call.next, hash);
                }
                match self.locators.find(hash) {
                    Some((at, bucket)) if usize::from(at.key_len_bytes) == key.len() => {
                        self.short_plan_record(lane, room, call, &at, Some((hash, bucket)))
                    }
                    _ => Step::Left,
                }
            }
            (None, None) => Step::Left,
        }
    }

    /// Plans a record, behind the bucket that is to name it where there is one.
    #[inline]
    fn short_plan_record<'k, W, T>(
        &mut self,
        lane: usize,
        room: usize,
        call: &mut Call<'_, F, W, T>,
        locator: &Locator,
        named: Option<(KeyHash, u32)>,
    ) -> Step
    where
        W: Fn(usize) -> Wish<'k>,
        T: FnMut(usize, Result<Got, ReadError>),
    {
        let reads = 1 + usize::from(named.is_some());
        if room < self.chain.len() + reads {
            return Step::Full;
        }
        let (prefix_len, value_len) = (locator.prefix_len_bytes(), u64::from(locator.value_len_bytes));
        let (start, wire_len) = (locator.offset_bytes(), prefix_len + value_len);
        let row = self.footing.view.row(locator.segment);
        let row = row.filter(|row| row.check(start + wire_len).is_ok());
        let Some((identity, (from, follow))) = row.and_then(|row| Some((row.identity, row.place(start)?)))
        else {
            return Step::Left;
        };
        if wire_len > self.short_max.min(follow) || (named.is_none() && call.skip_neighbours(locator)) {
            return Step::Left;
        }
        let bucket_at = match named {
            None => None,
            Some((hash, bucket)) => match self.bucket_at(hash, bucket) {
                None => return Step::Left,
                at => at,
            },
        };
        let (prefix_len, value_len) = (prefix_len as usize, value_len as usize);
        let (dest, offset, slot, in_ring) = match call.want {
            Want::Slot => match self.slots.take(&*self.core.shared().fabric, value_len) {
                Ok(Some(slot)) => (Dest::Slots, slot.offset(), Some(slot), 0),
                Ok(None) | Err(_) => return Step::Left,
            },
            Want::Place { offset, room } if value_len <= room => (Dest::Item(0), offset, None, 0),
            Want::Whole => (Dest::Ring, 0, None, value_len),
            _ => return Step::Left,
        };
        let head = if bucket_at.is_some() { BUCKET_BYTES } else { 0 };
        let Some(span) = self.lanes[lane].ring.take(head + prefix_len + in_ring) else {
            return self.no_span();
        };
        if let Some(from) = bucket_at {
            let to = Piece::ring(span.offset, BUCKET_BYTES);
            self.chain.push(Planned::new(from, [to, Piece::default()]));
            add(&self.counters.bucket_reads, 1);
        }
        let prefix = Piece::ring(span.offset + head, prefix_len + in_ring);
        let value = Piece {
            dest,
            offset,
            len: value_len - in_ring,
        };
        self.chain.push(Planned::new(from, [prefix, value]));
        let record = Record {
            locator: *locator,
            identity,
        };
        let brings = match named {
            None => Brings::Record(record),
            Some((hash, bucket)) => Brings::Guess { hash, bucket, record },
        };
        self.short_fly(lane, call.next, span, slot, brings);
        Step::Planned
    }

    /// Plans the buckets of a key.
    #[inline]
    fn short_plan_buckets(&mut self, lane: usize, room: usize, user: usize, hash: KeyHash) -> Step {
        let [first, second] = candidate_buckets(hash.slot);
        if room < self.chain.len() + 2 {
            return Step::Full;
        }
        // Two that are one are rare.
        let (Some(from), false) = (self.bucket_at(hash, first), first == second) else {
            return Step::Left;
        };
        let Some(span) = self.lanes[lane].ring.take(2 * BUCKET_BYTES) else {
            return self.no_span();
        };
        let other = i64::from(second) - i64::from(first);
        let other = from.offset((other * BUCKET_BYTES as i64) as u64);
        for (place, from) in [from, other].into_iter().enumerate() {
            let to = Piece::ring(span.offset + place * BUCKET_BYTES, BUCKET_BYTES);
            self.chain.push(Planned::new(from, [to, Piece::default()]));
        }
        add(&self.counters.bucket_reads, 2);
        self.short_fly(lane, user, span, None, Brings::Buckets(hash));
        Step::Planned
    }

    /// Where a bucket of a key's group lies, as far as the directory is there.
    #[inline]
    fn bucket_at(&self, hash: KeyHash, bucket: u32) -> Option<RemoteRef> {
        let directory = &self.footing.view.directory;
        let entry = directory.entry(directory_index(hash.slot, directory.depth))?;
        let group = RemoteRef {
            address: entry.address,
            rkey: entry.rkey,
        };
        Some(group.offset(u64::from(bucket) * BUCKET_BYTES as u64))
    }

    /// The ring has no room: it comes when something has landed, if anything is to.
    #[cold]
    fn no_span(&self) -> Step {
        if self.flying == 0 && self.chain.len() == 0 {
            Step::Left
        } else {
            Step::Full
        }
    }

    #[inline]
    fn short_fly(&mut self, lane: usize, user: usize, span: Span, slot: Option<Slot>, brings: Brings) {
        self.flying += 1;
        let short = Short {
            last: 0,
            user,
            span,
            slot,
            brings,
        };
        self.lanes[lane].fly_short(self.chain.len(), short);
    }
}
