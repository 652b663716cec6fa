//! What must be there before anything can be posted: session, dataset, a connection, the epoch pinned.

use std::time::Duration;

use kv_fabric::ReadStatus;

use super::counters::add;
use super::engine::Engine;
use super::lane::Lane;
use super::plan::CHAIN_MAX;
use super::waits::LANES_MAX;
use super::{NotReady, Trouble, never};
use crate::backoff::Backoff;
use crate::clock::{Deadline, boot_ns};
use crate::{ClientOptions, ReadError};

/// Connections of one engine at most where none are asked for.
const LANES_CHOSEN_MAX: usize = 8;
/// Shortest wait before a server that has all the connections it takes is asked again.
const LIMIT_WAIT: Duration = Duration::from_millis(100);
/// Longest wait for a further connection: READs are under way on the others.
const FURTHER_WAIT: Duration = Duration::from_secs(1);

/// Connections of an engine, where each has `at_once` READs under way at once.
pub(super) fn lanes_max(options: &ClientOptions, at_once: usize) -> usize {
    match usize::from(options.data_connections) {
        0 => (options.depth as usize)
            .div_ceil(at_once)
            .clamp(1, LANES_CHOSEN_MAX),
        asked => asked.min(LANES_MAX),
    }
}

/// READs of one chain: where there are several connections, no more than one has under way, so that all get some.
pub(super) fn chain_max(at_once: usize, lanes_max: usize) -> usize {
    if lanes_max > 1 {
        at_once.clamp(1, CHAIN_MAX)
    } else {
        CHAIN_MAX
    }
}

impl Engine {
    /// Whether all connections have as many short READs under way as they can, and there may be another one.
    pub(super) fn wants_lane(&self) -> bool {
        let busy = |lane: &Lane| !lane.is_connected() || lane.outstanding() >= self.at_once as u64;
        self.lanes_max > 1
            && self.short_reads
            && self.lanes.iter().all(busy)
            && self.connected() < self.lanes_max
    }

    fn connected(&self) -> usize {
        self.lanes.iter().filter(|lane| lane.is_connected()).count()
    }

    /// Makes a further connection, or one that was lost again.
    pub(super) fn add_lane(&mut self) {
        let now = boot_ns();
        let lost = self.lanes.iter().position(|lane| !lane.is_connected());
        if lost.is_some_and(|index| self.lanes[index].retry_at_ns > now) {
            return;
        }
        let index = lost.unwrap_or_else(|| {
            self.lanes.push(Lane::new(&self.options));
            self.lanes.len() - 1
        });
        let deadline = Deadline::at(now, FURTHER_WAIT);
        let Ok(up) = self.shared().ensure(deadline, false) else {
            return;
        };
        if up.generation != self.footing.generation {
            return;
        }
        let dataset = self.footing.view.dataset;
        match self.connect(index, &up, dataset, deadline) {
            Ok(()) => {}
            Err(why) => {
                tracing::debug!(?why, "no further data connection");
                let lane = &mut self.lanes[index];
                // The wait for it was one for the other connections too.
                lane.retry_at_ns = after(boot_ns(), lane.backoff.next().max(FURTHER_WAIT));
                if matches!(why, NotReady::Never(_) | NotReady::Later(_)) {
                    // Those that there are do. What flies names its lane by place: only the last ones may go.
                    self.lanes_max = self.connected().max(1);
                    while self.lanes.len() > 1 && self.lanes.last().is_some_and(|lane| !lane.is_connected()) {
                        self.lanes.pop();
                    }
                }
            }
        }
    }

    /// Pins the epoch and takes the latest view; whether READs may be posted under it at `now_ns`.
    #[inline]
    pub(super) fn enter(&mut self, now_ns: u64) -> bool {
        let tenure = &self.core.shared().tenure;
        self.footing.pin(tenure);
        let generation = self.footing.generation;
        self.entered = self.footing.look(tenure, &self.state, now_ns)
            && !self.footing.view.dropped
            && self.footing.view.table_next.is_none()
            && self
                .lanes
                .iter()
                .any(|lane| lane.is_connected() && lane.generation == generation);
        if !self.entered {
            self.footing.leave();
        }
        self.entered
    }

    /// Lets the epoch go. Nothing is in flight.
    pub(super) fn leave(&mut self) {
        if std::mem::take(&mut self.entered) {
            self.footing.leave();
        }
    }

    /// Makes session, dataset and a connection ready, which may take until the first deadline; whether READs may be
    /// posted now. Nothing is in flight.
    pub(super) fn ready(&mut self, now_ns: u64) -> bool {
        if now_ns < self.ready_at_ns {
            return false;
        }
        self.leave();
        match self.make_ready() {
            Ok(()) => {
                self.ready_backoff = Backoff::new(super::PASS_WAITS.0, super::PASS_WAITS.1);
                self.not_ready = None;
                return true;
            }
            Err(NotReady::Never(ReadError::Timeout)) => {
                self.no_session = true;
                self.look(boot_ns());
                self.no_session = false;
            }
            Err(NotReady::Never(error)) => self.finish_all(error),
            Err(why @ (NotReady::Again | NotReady::Later(_))) => {
                let mut wait = self.ready_backoff.next();
                if let NotReady::Later(error) = why {
                    self.not_ready = Some(error);
                    wait = wait.max(LIMIT_WAIT);
                }
                let now = boot_ns();
                self.ready_at_ns = self.ready_at_ns.max(after(now, wait));
                self.look(now);
            }
        }
        false
    }

    fn make_ready(&mut self) -> Result<(), NotReady> {
        let deadline = self.deadline();
        let up = self.shared().ensure(deadline, false).map_err(never)?;
        let view = self.core.open(&up, deadline)?;
        if view.dropped {
            return Err(NotReady::Never(ReadError::Closed));
        }
        for index in 0..self.lanes.len() {
            if self.lanes[index].generation != up.generation {
                self.lose(index, Trouble::Lost);
                self.lanes[index].clear();
            }
        }
        if self.footing.generation != up.generation {
            // A server that began anew may take more at once than the one before.
            self.allow(self.shared().fabric.reads_at_once());
            self.footing.generation = up.generation;
        }
        if !self.lanes.iter().any(Lane::is_connected) {
            let now = boot_ns();
            let Some(index) = (0..self.lanes.len()).min_by_key(|&index| self.lanes[index].retry_at_ns) else {
                return Err(NotReady::Never(ReadError::Closed));
            };
            let retry_at_ns = self.lanes[index].retry_at_ns;
            if retry_at_ns > now {
                self.ready_at_ns = retry_at_ns;
                return Err(NotReady::Again);
            }
            self.connect(index, &up, view.dataset, deadline)?;
        }
        if self.enter(boot_ns()) {
            Ok(())
        } else {
            Err(NotReady::Again)
        }
    }

    fn connect(
        &mut self,
        index: usize,
        up: &crate::control::Up,
        dataset: [u8; 16],
        deadline: Deadline,
    ) -> Result<(), NotReady> {
        let lane = &mut self.lanes[index];
        lane.connect(self.core.shared(), &self.options, up, dataset, deadline)?;
        // The server's end may take fewer at once than this one's device.
        let agreed = lane.reads_at_once();
        if agreed < self.at_once {
            self.allow(agreed);
        }
        let lane = &self.lanes[index];
        add(&self.counters.connections, 1);
        add(&self.counters.reconnects, u64::from(lane.connections > 1));
        Ok(())
    }

    /// READs that a connection has under way at once, and what follows from that.
    fn allow(&mut self, at_once: usize) {
        self.at_once = at_once.min(self.options.depth.max(1) as usize);
        self.lanes_max = lanes_max(&self.options, self.at_once);
        self.chain_max = chain_max(self.at_once, self.lanes_max);
    }

    /// Ends a connection that failed with `status`.
    pub(super) fn failed(&mut self, lane: usize, status: ReadStatus) {
        self.lose(lane, Trouble::Fabric(status));
    }

    /// The lease is over: nothing that is in flight may be used any more.
    pub(super) fn lose_lease(&mut self) {
        for lane in 0..self.lanes.len() {
            self.lose(lane, Trouble::Lost);
        }
        self.leave();
    }
}

pub(super) fn after(now_ns: u64, wait: Duration) -> u64 {
    now_ns.saturating_add(u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX))
}
