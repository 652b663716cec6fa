//! The engine: values that are wanted, what is in flight for them, and results that wait to be taken.
//!
//! - Everything is used again: items and fetches live in slabs, queues keep their room, so that a warm engine allocates
//!   nothing.
//! - While READs are in flight the engine pins the epoch that it reads under ([`crate::control::tenure`]). It posts
//!   nothing under a newer view before what flies under the older one has landed.
//! - An item is finished, or begun again, only when nothing is in flight for it: so nobody else ever gets memory that
//!   a READ goes to (**I5**).

use std::collections::VecDeque;
use std::sync::Arc;

use kv_fabric::ReadStatus;
use kv_proto::layout::Locator;

use super::condemned::Condemned;
use super::counters::{LaneCounters, Tally};
use super::item::{Fetch, Found, Item, Memory, State, Want};
use super::lane::Lane;
use super::locators::Locators;
use super::plan::Chain;
use super::slots::{Slots, Value};
use super::waits::Waits;
use super::{Trouble, check_key};
use crate::backoff::Backoff;
use crate::clock::boot_ns;
use crate::control::Shared;
use crate::control::tenure::Footing;
use crate::memory::Buffer;
use crate::opening::Core;
use crate::tables::DatasetState;
use crate::{ClientError, ClientOptions, ReadError};

/// One value that is asked for.
pub(crate) struct Ask<'k> {
    /// What the caller knows it by.
    pub(crate) user: u64,
    pub(crate) ticket: bool,
    pub(crate) key: Option<&'k [u8]>,
    pub(crate) at: Option<Locator>,
    pub(crate) want: Want,
    pub(crate) memory: Memory,
    /// What it has met already.
    pub(crate) trouble: Option<Trouble>,
}

/// A result, taken.
pub(crate) struct Done {
    pub(crate) user: u64,
    pub(crate) result: Result<Found, ReadError>,
    pub(crate) value: Value,
    /// What was moved in with the request.
    pub(crate) buffer: Option<Buffer>,
}

/// An item at one of its beginnings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Turn {
    pub(super) item: u32,
    pub(super) attempt: u32,
}

pub(crate) struct Engine {
    // In this order: connections go before the memory that they write to, and the dataset is closed last.
    pub(super) lanes: Vec<Lane>,
    pub(super) items: Vec<Item>,
    free_items: Vec<u32>,
    pub(super) slots: Slots,
    /// Slots of items whose results were not taken; and how few of them there are to be before a value that found no slot
    /// goes to the heap.
    pub(super) slots_out: usize,
    pub(super) slots_low: Option<usize>,
    pub(super) locators: Locators,
    pub(super) fetches: Vec<Fetch>,
    pub(super) free_fetches: Vec<u32>,
    /// What is to be planned: pages of the directory, fetches, items with parts, items to look up.
    pub(super) pages: VecDeque<u32>,
    pub(super) records: VecDeque<u32>,
    pub(super) larges: VecDeque<Turn>,
    pub(super) lookups: VecDeque<Turn>,
    /// Which of a call's values the short way leaves.
    pub(super) left: Vec<(usize, Option<Trouble>)>,
    pub(super) waits: Waits,
    /// Items whose result waits, those of calls and those that are polled for.
    done: VecDeque<u32>,
    tickets: VecDeque<u32>,
    /// Items without a result.
    active: usize,
    /// Groups of READs in flight, but for those of connections that are not destroyed.
    pub(super) flying: usize,
    pub(super) condemned: Vec<Condemned>,
    pub(super) chain: Chain,
    /// READs of one chain at most: where there are several connections, about what one has under way at once.
    pub(super) chain_max: usize,
    /// READs that one connection has under way at once, as far as `depth` goes.
    pub(super) at_once: usize,
    /// Connections that it may have, fewer once the server takes no more.
    pub(super) lanes_max: usize,
    /// Whether the READs posted last were short: more connections carry more of those.
    pub(super) short_reads: bool,
    pub(super) footing: Footing,
    /// Whether the epoch is pinned and the view was found good.
    pub(super) entered: bool,
    /// Set by whatever counts as getting on, and when that was last.
    pub(super) advanced: bool,
    pub(super) advanced_ns: u64,
    /// When something arrived last.
    pub(super) now_ns: u64,
    /// No item has had its time before that.
    pub(super) ends_ns: u64,
    /// Whether time ran out while a session was waited for.
    pub(super) no_session: bool,
    /// Why there was no connection the last time that one was wanted.
    pub(super) not_ready: Option<ReadError>,
    /// Session and connection are not tried before that.
    pub(super) ready_at_ns: u64,
    pub(super) ready_backoff: Backoff,
    /// For blocks that are judged.
    pub(super) scratch: Vec<u8>,
    pub(super) piece_bytes: u64,
    /// Longest record that goes the short way, bytes on the wire.
    pub(super) short_max: u64,
    pub(super) counters: Arc<LaneCounters>,
    tally: Arc<Tally>,
    pub(super) options: Arc<ClientOptions>,
    pub(super) state: Arc<DatasetState>,
    pub(super) core: Arc<Core>,
}

impl Engine {
    pub(crate) fn new(core: Arc<Core>, options: Arc<ClientOptions>) -> Result<Self, ClientError> {
        let state = core.state_shared();
        let tally = Arc::clone(core.tally());
        let at_once = core
            .shared()
            .fabric
            .reads_at_once()
            .min(options.depth.max(1) as usize);
        let lanes_max = super::ready::lanes_max(&options, at_once);
        let piece_bytes = super::fill::piece_bytes(&*core.shared().fabric, &options);
        Ok(Self {
            lanes: vec![Lane::new(&options)],
            items: Vec::new(),
            free_items: Vec::new(),
            slots: Slots::new(options.value_buffer_bytes),
            slots_out: 0,
            slots_low: None,
            locators: Locators::new(options.locator_cache_bytes),
            fetches: Vec::new(),
            free_fetches: Vec::new(),
            pages: VecDeque::new(),
            records: VecDeque::new(),
            larges: VecDeque::new(),
            lookups: VecDeque::new(),
            left: Vec::new(),
            waits: Waits::new()?,
            done: VecDeque::new(),
            tickets: VecDeque::new(),
            active: 0,
            flying: 0,
            condemned: Vec::new(),
            chain: Chain::new(),
            chain_max: super::ready::chain_max(at_once, lanes_max),
            at_once,
            lanes_max,
            short_reads: false,
            footing: Footing::new(&core.shared().tenure, &state),
            entered: false,
            advanced: false,
            advanced_ns: 0,
            now_ns: 0,
            ends_ns: u64::MAX,
            no_session: false,
            not_ready: None,
            ready_at_ns: 0,
            ready_backoff: Backoff::new(super::PASS_WAITS.0, super::PASS_WAITS.1),
            scratch: Vec::new(),
            short_max: piece_bytes.min(core.shared().fabric.read_max_bytes() as u64),
            piece_bytes,
            counters: tally.add_lane(),
            tally,
            options,
            state,
            core,
        })
    }

    pub(super) fn shared(&self) -> &Shared {
        self.core.shared()
    }

    /// What wakes it while it sleeps.
    pub(crate) fn bell(&self) -> Arc<crate::mailbox::Bell> {
        Arc::clone(&self.waits.bell)
    }

    pub(crate) fn dataset_id(&self) -> crate::DatasetId {
        self.core.id()
    }

    /// Asks for a value. Nothing is posted before the next [`Engine::turn`].
    pub(crate) fn submit(&mut self, ask: Ask<'_>, now_ns: u64) {
        self.submit_or_refuse(ask, None, now_ns);
    }

    /// As [`Engine::submit`]; what is `refused` has this result.
    pub(crate) fn submit_or_refuse(&mut self, ask: Ask<'_>, refused: Option<ReadError>, now_ns: u64) {
        let index = self.free_items.pop().unwrap_or_else(|| {
            self.items.push(Item::new());
            // Room for all where they may wait together: how many do is chance, and a later GET is not to pay for it.
            let count = self.items.len();
            self.free_items.reserve(count);
            for queue in [&mut self.done, &mut self.tickets] {
                queue.reserve(count.saturating_sub(queue.len()));
            }
            self.lookups.reserve(count.saturating_sub(self.lookups.len()));
            count as u32 - 1
        });
        self.has_until(now_ns);
        let item = &mut self.items[index as usize];
        item.reset(now_ns);
        (item.user, item.ticket, item.at) = (ask.user, ask.ticket, ask.at);
        (item.want, item.memory) = (ask.want, ask.memory);
        item.has_key = ask.key.is_some();
        item.key.clear();
        self.active += 1;
        let possible = refused.map_or(Ok(()), Err);
        match possible.and_then(|()| ask.key.map_or(Ok(()), check_key)) {
            Ok(()) => {
                item.key.extend_from_slice(ask.key.unwrap_or_default());
                self.begin(index);
                self.items[index as usize].trouble = ask.trouble;
            }
            Err(error) => self.settle(index, Err(error)),
        }
        self.after(index);
    }

    /// Whether nothing is asked for, in flight or waiting to be taken.
    pub(crate) fn is_at_rest(&self) -> bool {
        self.active == 0
            && self.flying == 0
            && !self.entered
            && self.done.is_empty()
            && self.tickets.is_empty()
    }

    /// Items without a result.
    pub(crate) fn active(&self) -> usize {
        self.active
    }

    /// The next result of a call.
    pub(crate) fn take_done(&mut self) -> Option<Done> {
        let index = self.done.pop_front()?;
        Some(self.take(index))
    }

    /// The next result that is polled for.
    pub(crate) fn take_ticket(&mut self) -> Option<Done> {
        let index = self.tickets.pop_front()?;
        Some(self.take(index))
    }

    fn take(&mut self, index: u32) -> Done {
        let slot = self.drop_slot(index);
        let item = &mut self.items[index as usize];
        let result = item.result.take().unwrap_or(Err(ReadError::Closed));
        let out = std::mem::take(&mut item.out);
        let value = match (slot, &result) {
            (Some(slot), Ok(found)) => Value::in_slot(slot, found.value_len_bytes as usize),
            (None, Ok(_)) => Value::on_heap(out),
            // What came before the error was not judged, or not all of it.
            (_, Err(_)) => Value::on_heap(Vec::new()),
        };
        let buffer = match std::mem::replace(&mut item.memory, Memory::None) {
            Memory::Owned(buffer) => Some(buffer),
            Memory::None | Memory::Borrowed(_) => None,
        };
        item.state = State::Free;
        let user = item.user;
        self.free_items.push(index);
        Done {
            user,
            result,
            value,
            buffer,
        }
    }

    /// Begins an item, the first time or again. Nothing is in flight for it.
    pub(super) fn begin(&mut self, index: u32) {
        let item = &mut self.items[index as usize];
        item.begin();
        let attempt = item.attempt;
        match item.at {
            Some(at) => self.want_record(index, at),
            None => self.lookups.push_back(Turn { item: index, attempt }),
        }
    }

    /// The item of a turn, if it still is at that beginning.
    pub(super) fn at_turn(&self, turn: Turn) -> Option<&Item> {
        let item = self.items.get(turn.item as usize)?;
        (item.attempt == turn.attempt).then_some(item)
    }

    /// Gives an item its result.
    pub(super) fn settle(&mut self, index: u32, result: Result<Found, ReadError>) {
        let item = &mut self.items[index as usize];
        if item.result.is_none() {
            self.advanced = true;
            item.result = Some(result);
            let value = result.is_ok() && item.want != Want::Locator;
            super::counters::add(&self.counters.gets, u64::from(value));
        }
    }

    /// Sees to an item that was settled or met trouble, once nothing is in flight for it.
    pub(super) fn after(&mut self, index: u32) {
        let item = &mut self.items[index as usize];
        if item.flying > 0 || matches!(item.state, State::Free | State::Done) {
            return;
        }
        if item.result.is_some() {
            item.state = State::Done;
            item.attempt = item.attempt.wrapping_add(1);
            self.active -= 1;
            if item.ticket {
                self.tickets.push_back(index);
            } else {
                self.done.push_back(index);
            }
        } else if let (State::Active, Some(trouble)) = (item.state, item.trouble) {
            self.recover(index, trouble);
        }
    }

    /// Takes what has arrived, sees to what is due, posts what can be; whether there was anything to do.
    pub(crate) fn turn(&mut self) -> bool {
        if self.active == 0 && self.flying == 0 && self.has_work() {
            self.forget_queues();
        }
        let mut now_ns = None;
        let mut did = self.flying > 0 && self.harvest(&mut now_ns);
        did |= !self.condemned.is_empty() && self.take_condemned();
        did |= self.waits.is_asking() && self.take_replies();
        did |= self.waits.has_timers() && self.take_timers(boot_ns());
        did |= self.has_work() && self.fill(now_ns);
        if let Some(now) = now_ns {
            self.look(now);
        }
        if self.flying == 0 {
            self.leave();
        }
        did
    }

    /// Works until a call's result is there, or nothing is left to wait for.
    pub(crate) fn run(&mut self) {
        self.run_while(|engine| engine.done.is_empty());
    }

    /// Works until a result that is polled for is there, or nothing is left to wait for.
    pub(crate) fn run_tickets(&mut self) {
        self.run_while(|engine| engine.tickets.is_empty());
    }

    fn run_while(&mut self, wanting: impl Fn(&Self) -> bool) {
        let mut idle = super::waits::Idle::default();
        while wanting(self) && self.active > 0 {
            if self.turn() {
                idle = super::waits::Idle::default();
            } else {
                self.idle(&mut idle);
            }
        }
        // What ended by its deadline may have taken along the last that flew.
        if self.flying == 0 {
            self.leave();
        }
    }

    /// As [`Self::turn`], for who never waits: deadlines and the lease are looked at too.
    pub(crate) fn turn_or_look(&mut self) {
        if self.turn() {
            return;
        }
        let now = boot_ns();
        self.look(now);
        if self.flying > 0 && !self.footing.leased(&self.core.shared().tenure, now) {
            self.lose_lease();
        }
        if self.flying == 0 {
            self.leave();
        }
    }

    /// Gives up everything: what is in flight is ended with its connection, and no result of a call is kept. Tickets come all
    /// the same, those that were not done as flushed.
    pub(crate) fn abort(&mut self) {
        self.end_lanes();
        self.leave();
        self.free_items.clear();
        for (index, item) in (0..).zip(&mut self.items) {
            if item.ticket && item.state == State::Done {
                continue;
            }
            let attempt = item.attempt.wrapping_add(1);
            let gone = std::mem::replace(item, Item::new());
            item.attempt = attempt;
            if gone.ticket && gone.state != State::Free {
                item.state = State::Done;
                (item.user, item.ticket, item.memory) = (gone.user, true, gone.memory);
                item.result = Some(Err(ReadError::Fabric(ReadStatus::Flushed)));
                self.tickets.push_back(index);
            } else {
                self.free_items.push(index);
            }
        }
        self.slots_out = self.items.iter().filter(|item| item.slot.is_some()).count();
        self.slots_low = None;
        self.fetches.clear();
        self.free_fetches.clear();
        (self.active, self.advanced) = (0, false);
        self.pages.clear();
        self.records.clear();
        self.larges.clear();
        self.lookups.clear();
        self.done.clear();
        self.waits.forget();
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.end_lanes();
        self.footing.leave();
        self.tally.remove_lane(&self.counters);
    }
}
