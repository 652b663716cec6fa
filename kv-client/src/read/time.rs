//! The time that items have: one that waits for its turn has it while others get on, one that was begun must get on itself.

use super::Trouble;
use super::engine::Engine;
use super::item::State;
use crate::ReadError;
use crate::clock::{Deadline, boot_ns};

impl Engine {
    /// Ends items that did not get on for too long.
    pub(super) fn look(&mut self, now_ns: u64) {
        if now_ns < self.ends_ns {
            return;
        }
        // What is begun again meanwhile tells of its own end.
        self.ends_ns = u64::MAX;
        let mut ends = u64::MAX;
        for index in 0..self.items.len() as u32 {
            match self.end_of(index) {
                Some(end) if end <= now_ns => self.expire(index),
                Some(end) => ends = ends.min(end),
                None => {}
            }
        }
        self.ends_ns = self.ends_ns.min(ends);
    }

    fn budget_ns(&self) -> u64 {
        u64::try_from(self.options.deadline.as_nanos()).unwrap_or(u64::MAX)
    }

    /// An item has had its time no sooner than this long after `since_ns`. To be told wherever its end may come nearer.
    pub(super) fn has_until(&mut self, since_ns: u64) {
        self.ends_ns = self.ends_ns.min(since_ns.saturating_add(self.budget_ns()));
    }

    /// Something is in flight for an item from now on: it must get on itself. The first time its time begins where that of
    /// the others that it waited behind does.
    pub(super) fn takes_off(&mut self, index: u32) {
        let advanced_ns = self.advanced_ns;
        let item = &mut self.items[index as usize];
        item.flying += 1;
        if item.flying > 1 {
            return;
        }
        if !std::mem::replace(&mut item.flown, true) {
            item.since_ns = item.since_ns.max(advanced_ns);
        }
        let since_ns = item.since_ns;
        self.has_until(since_ns);
    }

    /// When an item without a result has had its time. One that waits for its turn has it while others get on.
    fn end_of(&self, index: u32) -> Option<u64> {
        let item = &self.items[index as usize];
        let since = match item.state {
            State::Free | State::Done => return None,
            State::Active if item.flying == 0 => item.since_ns.max(self.advanced_ns),
            State::Active | State::Waiting => item.since_ns,
        };
        let end = since.saturating_add(self.budget_ns());
        item.result.is_none().then_some(end)
    }

    /// Until when the engine may wait for what all items need.
    pub(super) fn deadline(&self) -> Deadline {
        let ends = (0..self.items.len() as u32).filter_map(|index| self.end_of(index));
        Deadline::at(ends.min().unwrap_or_else(boot_ns), std::time::Duration::ZERO)
    }

    /// Ends an item whose time is over. What is in flight for it is ended with its connection.
    fn expire(&mut self, index: u32) {
        let item = &mut self.items[index as usize];
        let error = if item.flying > 0 || self.no_session {
            ReadError::Timeout
        } else {
            self.not_ready.unwrap_or(item.last)
        };
        item.result = Some(Err(error));
        if item.flying > 0 {
            for lane in 0..self.lanes.len() {
                if self.flies_on(lane, index) {
                    self.lose(lane, Trouble::Lost);
                }
            }
        }
        self.after(index);
    }

    /// Gives every item without a result this one. Nothing is in flight.
    pub(super) fn finish_all(&mut self, error: ReadError) {
        for index in 0..self.items.len() as u32 {
            if self.end_of(index).is_some() {
                self.items[index as usize].result = Some(Err(error));
                self.after(index);
            }
        }
    }
}
