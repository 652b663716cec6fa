//! Ending connections, with what is in flight on them (**I5**).
//!
//! A device may refuse to destroy one ([`super::quarantine`]). Then its ring, and the slots that its READs go to, are held with
//! it, and their items begin again elsewhere. Memory of the caller's is his again only when it is destroyed: its items stay, past
//! their deadlines too.

use std::sync::Arc;
use std::time::Duration;

use super::Trouble;
use super::engine::Engine;
use super::flight::{Flight, Flying};
use super::lane::Lane;
use super::quarantine::{Gone, RETRY_NS, Refused, Undestroyed};
use super::slots::Slot;
use crate::backoff::Backoff;
use crate::clock::boot_ns;

/// What was in flight to memory of the caller's on a connection that is not destroyed.
pub(super) struct Condemned {
    gone: Gone,
    flights: Vec<Flight>,
    trouble: Trouble,
    got_on: bool,
}

impl Engine {
    /// Ends a connection; what was in flight on it meets `trouble`.
    pub(super) fn lose(&mut self, index: usize, trouble: Trouble) {
        let lane = &mut self.lanes[index];
        if !lane.is_connected() && lane.flights.is_empty() {
            return;
        }
        let refused = lane.disconnect();
        lane.ring.clear();
        let got_on = std::mem::take(&mut lane.got_on);
        if got_on {
            lane.backoff = Backoff::new(super::PASS_WAITS.0, super::PASS_WAITS.1);
        }
        if matches!(trouble, Trouble::Fabric(_)) {
            lane.retry_at_ns = super::ready::after(boot_ns(), lane.backoff.next());
        }
        if let Some(refused) = refused {
            self.condemn(index, refused, trouble, got_on);
        }
        while let Some(flight) = self.lanes[index].flights.pop_front() {
            self.flying -= 1;
            self.lost(flight, trouble, got_on);
        }
        // What was half asked for is begun again: its rest must not come by another connection.
        for fetch in 0..self.fetches.len() as u32 {
            let it = &self.fetches[fetch as usize];
            let item = it.item;
            let current = self.items[item as usize].attempt == it.attempt;
            if it.lane == Some(index as u32) && it.queued && !it.over && current {
                self.meet(item, trouble, got_on);
                self.after(item);
            }
        }
    }

    /// Sets aside what the READs of a connection that is not destroyed go to: slots with it, flights to the caller's memory
    /// until it is. The others are left to be begun again.
    fn condemn(&mut self, index: usize, refused: Refused, trouble: Trouble, got_on: bool) {
        let all = std::mem::take(&mut self.lanes[index].flights);
        let (flights, rest): (Vec<_>, Vec<_>) = all.into_iter().partition(|flight| {
            let item = self.item_of(flight);
            item.is_some_and(|item| self.items[item as usize].memory.region().is_some())
        });
        self.flying -= flights.len();
        // All READs to a slot go by one connection; that of an item whose bucket is in flight here may be filled by another.
        let pieces = rest
            .iter()
            .filter(|flight| matches!(flight.flying, Flying::Piece { .. }));
        let items: Vec<_> = pieces.filter_map(|flight| self.item_of(flight)).collect();
        let of_items = items.into_iter().filter_map(|item| self.drop_slot(item));
        let mut slots: Vec<Slot> = of_items.collect();
        let lane = &mut self.lanes[index];
        slots.extend(lane.shorts.iter_mut().filter_map(|short| short.slot.take()));
        let callers = !flights.is_empty() || !lane.shorts.is_empty();
        lane.flights.extend(rest);
        let undestroyed = Undestroyed::new(refused, Arc::new(slots));
        let gone = self.shared().quarantine.hold(undestroyed);
        if callers {
            self.condemned.push(Condemned {
                gone,
                flights,
                trouble,
                got_on,
            });
        }
    }

    /// Goes on with what connections held that are destroyed at last; whether there were any.
    pub(super) fn take_condemned(&mut self) -> bool {
        self.shared().quarantine.retry(boot_ns());
        let mut any = false;
        let mut index = 0;
        while let Some(condemned) = self.condemned.get(index) {
            if !condemned.gone.is() {
                index += 1;
                continue;
            }
            any = true;
            let Condemned {
                flights,
                trouble,
                got_on,
                ..
            } = self.condemned.swap_remove(index);
            for flight in flights {
                self.lost(flight, trouble, got_on);
            }
        }
        any
    }

    /// Waits until no connection is left that may write to the caller's memory, for as long as that takes: a call that
    /// borrows does not return before.
    pub(super) fn await_destroyed(&mut self) {
        while self.condemned.iter().any(|condemned| !condemned.gone.is()) {
            std::thread::sleep(Duration::from_nanos(RETRY_NS));
            self.shared().quarantine.retry(boot_ns());
        }
    }

    /// Ends all connections and forgets what was in flight; no memory of the caller's is written after this.
    pub(super) fn end_lanes(&mut self) {
        let mut refused = Vec::new();
        let (mut slots, mut callers) = (Vec::new(), false);
        for lane in &mut self.lanes {
            let Some(one) = lane.disconnect() else {
                continue;
            };
            refused.push(one);
            // Whether these go to the caller's memory only the call knows.
            callers |= !lane.shorts.is_empty();
            slots.extend(lane.shorts.iter_mut().filter_map(|short| short.slot.take()));
        }
        if !refused.is_empty() {
            // Which of them write where is not asked: each holds all.
            let items = &mut self.items;
            callers |= items
                .iter()
                .any(|item| item.flying > 0 && item.memory.region().is_some());
            let flying = items.iter_mut().filter(|item| item.flying > 0);
            slots.extend(flying.filter_map(|item| item.slot.take()));
            let slots = Arc::new(slots);
            for one in refused {
                let undestroyed = Undestroyed::new(one, Arc::clone(&slots));
                let gone = self.shared().quarantine.hold(undestroyed);
                if callers {
                    self.condemned.push(Condemned {
                        gone,
                        flights: Vec::new(),
                        trouble: Trouble::Lost,
                        got_on: false,
                    });
                }
            }
        }
        self.await_destroyed();
        self.condemned.clear();
        self.lanes.iter_mut().for_each(Lane::clear);
        self.flying = 0;
    }

    /// Sees to what a flight was for, which is lost.
    fn lost(&mut self, flight: Flight, trouble: Trouble, got_on: bool) {
        let item = match flight.flying {
            Flying::Page { page, .. } => return self.pages.push_back(page),
            Flying::Buckets { item, .. } | Flying::Guess { item, .. } => item,
            Flying::Piece { fetch, .. } => {
                self.fetches[fetch as usize].pieces -= 1;
                let item = self.fetches[fetch as usize].item;
                self.release_fetch(fetch);
                item
            }
        };
        self.items[item as usize].flying -= 1;
        self.meet(item, trouble, got_on);
        self.after(item);
    }

    /// An item meets trouble with its connection.
    fn meet(&mut self, index: u32, trouble: Trouble, got_on: bool) {
        let item = &mut self.items[index as usize];
        if item.is_settled() {
            return;
        }
        item.trouble = Some(trouble);
        item.failed += u32::from(!got_on && matches!(trouble, Trouble::Fabric(_)));
    }

    /// The item that a flight is for.
    fn item_of(&self, flight: &Flight) -> Option<u32> {
        match flight.flying {
            Flying::Page { .. } => None,
            Flying::Buckets { item, .. } | Flying::Guess { item, .. } => Some(item),
            Flying::Piece { fetch, .. } => Some(self.fetches[fetch as usize].item),
        }
    }

    /// Whether something is in flight on `lane` for the item.
    pub(super) fn flies_on(&self, lane: usize, index: u32) -> bool {
        let flights = &self.lanes[lane].flights;
        flights.iter().any(|flight| self.item_of(flight) == Some(index))
    }
}
