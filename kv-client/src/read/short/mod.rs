//! The short way: calls that find nothing else under way, and values whose places are known or only looked up. Each costs
//! one round trip, and none of the bookkeeping of what is cut into pieces, waits, or is begun again.
//!
//! - A value at a place that the caller gave is one READ; where the place is remembered, the bucket of its key has to say
//!   whether it is still right, by another READ of the same chain; where a key is looked up, its two buckets are read.
//! - Whatever is unusual (a large value, neighbours that one READ brings, a moved segment, bytes that are not accepted, a
//!   lost connection) is left to the engine, which begins it from the start.

mod flying;
mod judge;
mod plan;

pub(super) use flying::Shorts;

use kv_fabric::Region;
use kv_proto::hash::KeyHash;
use kv_proto::layout::Locator;

use super::Trouble;
use super::calls::{Got, Wishes};
use super::engine::Engine;
use super::item::Want;
use super::ring::Span;
use super::slots::Slot;
use super::waits::Idle;
use crate::ReadError;
use crate::clock::{Deadline, boot_ns};

/// One value in flight.
pub(super) struct Short {
    /// Number of its last READ.
    pub(super) last: u64,
    /// Which of the call's values it is.
    user: usize,
    /// Where buckets, prefix, and a value for the heap arrive.
    span: Span,
    /// Where its value goes, where that is a slot.
    pub(super) slot: Option<Slot>,
    brings: Brings,
}

/// What the READs of one value bring.
#[derive(Clone, Copy)]
enum Brings {
    /// A record, at a place that the caller gave.
    Record(Record),
    /// A bucket, and the record that it named when it was read last.
    Guess {
        hash: KeyHash,
        bucket: u32,
        record: Record,
    },
    /// Both buckets of a key.
    Buckets(KeyHash),
}

/// A record that is expected.
#[derive(Clone, Copy)]
struct Record {
    locator: Locator,
    /// Identity of its segment.
    identity: u64,
}

/// A call, as far as it goes the short way.
pub(super) struct Call<'c, W, T> {
    pub(super) count: usize,
    pub(super) want: Want,
    /// The caller's memory, where values go there.
    pub(super) region: Option<&'c Region>,
    pub(super) wishes: W,
    pub(super) take: T,
    /// The value that is asked for next, and the last one found to lie right behind the one before it.
    pub(super) next: usize,
    pub(super) run_to: usize,
    /// Those that are left to the engine, and what they met.
    pub(super) left: Vec<(usize, Option<Trouble>)>,
}

impl Engine {
    /// Reads what goes the short way; the rest of the call is in `left`. Tells when it last got on. Nothing is in flight
    /// when it returns.
    pub(super) fn short<W, T>(&mut self, call: &mut Call<'_, W, T>, begun_ns: u64) -> u64
    where
        W: Wishes,
        T: FnMut(usize, Result<Got, ReadError>),
    {
        let mut now = begun_ns;
        let possible = match call.want {
            Want::Whole | Want::Slot | Want::Locator => true,
            Want::Place { .. } => call.region.is_some(),
            Want::Range { .. } => false,
        };
        if possible && self.is_at_rest() && !self.has_work() {
            while call.next < call.count && self.enter(now) {
                let on = self.short_view(call, &mut now);
                self.leave();
                if !on {
                    break;
                }
            }
        }
        call.left
            .extend((call.next..call.count).map(|index| (index, None)));
        now
    }

    /// The same under one view and epoch; whether to go on under the next. `now_ns` is when it last got on.
    fn short_view<W, T>(&mut self, call: &mut Call<'_, W, T>, now_ns: &mut u64) -> bool
    where
        W: Wishes,
        T: FnMut(usize, Result<Got, ReadError>),
    {
        let mut idle = Idle::default();
        // The lease was looked at just now. While nothing arrives there is no more room either.
        let (mut on, mut fresh) = (true, true);
        loop {
            let behind = self.footing.is_behind(&self.core.shared().tenure, &self.state);
            if std::mem::take(&mut fresh) && on && !behind {
                self.short_fill(call);
            }
            if self.flying == 0 {
                return on && behind;
            }
            match self.short_poll(call, now_ns) {
                Some(true) => (idle, fresh) = (Idle::default(), true),
                Some(false) if self.short_idle(call, &mut idle, *now_ns) => {}
                // What still flies is taken, nothing more is posted.
                Some(false) | None => on = false,
            }
        }
    }

    /// Posts as many as there is room for.
    fn short_fill<W, T>(&mut self, call: &mut Call<'_, W, T>)
    where
        W: Wishes,
        T: FnMut(usize, Result<Got, ReadError>),
    {
        let mut full = 0_u32;
        while call.next < call.count
            && let Some(lane) = self.pick(full)
        {
            self.chain.begin(self.lanes[lane].next_number());
            let room = self.lanes[lane].room().min(self.chain_max);
            self.short_plan(lane, room, call);
            if self.chain.len() == 0 {
                full |= 1 << lane;
            } else {
                self.post(lane, call.region);
                if !self.lanes[lane].is_connected() {
                    self.short_lost(lane, call);
                }
            }
        }
        if call.next < call.count && self.wants_lane() {
            self.add_lane();
        }
    }

    /// Takes what has arrived: whether anything had, `None` if a connection or the lease was lost.
    fn short_poll<W, T>(&mut self, call: &mut Call<'_, W, T>, now_ns: &mut u64) -> Option<bool>
    where
        W: Wishes,
        T: FnMut(usize, Result<Got, ReadError>),
    {
        let (mut arrived, mut lost) = (false, false);
        for lane in 0..self.lanes.len() {
            if self.lanes[lane].shorts.is_empty() {
                continue;
            }
            match self.lanes[lane].poll() {
                Ok(some) => arrived |= some,
                Err(status) => {
                    lost = true;
                    self.failed(lane, status);
                    self.short_lost(lane, call);
                }
            }
        }
        if arrived {
            *now_ns = boot_ns();
            if self.footing.leased(&self.core.shared().tenure, *now_ns) {
                for lane in 0..self.lanes.len() {
                    self.short_take(lane, call);
                }
            } else {
                lost = true;
                self.short_expired();
                self.short_lose_all(call);
            }
        }
        (!lost).then_some(arrived)
    }

    /// Waits a little; `false` if nothing may be waited for any more: then nothing flies either.
    fn short_idle<W, T>(&mut self, call: &mut Call<'_, W, T>, idle: &mut Idle, since_ns: u64) -> bool
    where
        W: Wishes,
        T: FnMut(usize, Result<Got, ReadError>),
    {
        let Some(now) = idle.look_at_clock() else {
            return true;
        };
        let end = Deadline::at(since_ns, self.options.deadline);
        if end.is_over_at(now) || !self.footing.leased(&self.core.shared().tenure, now) {
            self.short_lose_all(call);
            return false;
        }
        if idle.has_spun(now, self.options.spin) {
            self.sleep(now, super::waits::SLEEP_MAX_NS);
        }
        true
    }

    /// Ends all connections: what flew on them is the engine's.
    fn short_lose_all<W, T>(&mut self, call: &mut Call<'_, W, T>)
    where
        W: Wishes,
        T: FnMut(usize, Result<Got, ReadError>),
    {
        for lane in 0..self.lanes.len() {
            self.lose(lane, Trouble::Lost);
            self.short_lost(lane, call);
        }
    }

    /// What was in flight on a connection that is destroyed is the engine's.
    fn short_lost<W, T>(&mut self, lane: usize, call: &mut Call<'_, W, T>)
    where
        W: Wishes,
        T: FnMut(usize, Result<Got, ReadError>),
    {
        // Their places are asked for again only when nothing more can come there.
        if matches!(call.want, Want::Place { .. }) {
            self.await_destroyed();
        }
        self.condemned.clear();
        let shorts = &mut self.lanes[lane].shorts;
        self.flying -= shorts.len();
        call.left.extend(shorts.iter().map(|short| (short.user, None)));
        shorts.clear();
    }
}
