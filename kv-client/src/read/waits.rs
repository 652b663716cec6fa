//! What items wait for while others are read on, and how the engine waits when there is nothing to do.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;
use std::time::Duration;

use kv_proto::control::Request;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::Trouble;
use super::engine::{Engine, Turn};
use super::item::State;
use crate::ClientError;
use crate::clock::boot_ns;
use crate::control::Command;
use crate::mailbox::{Bell, Mailbox};

/// Polls between two looks at the clock.
const POLLS_PER_LOOK: u32 = 64;
/// Longest sleep while something is in flight or under way, ns: so often the lease and the deadlines are looked at.
pub(super) const SLEEP_MAX_NS: u64 = 50_000_000;
/// Connections of one engine at most.
pub(crate) const LANES_MAX: usize = 16;
/// Tag of a renewal; the tag of a LOAD is its segment, which is never 0.
const RENEWAL: u64 = 0;

/// What was asked of the control thread, and who waits for what.
pub(crate) struct Waits {
    mailbox: Arc<Mailbox>,
    pub(super) bell: Arc<Bell>,
    /// Requests whose reply is owed.
    asked: usize,
    timers: BinaryHeap<Reverse<(u64, Turn)>>,
    /// Waiters for a RENEW that is not sent yet, and for the one that is.
    renew_next: Vec<Turn>,
    renew_sent: Vec<Turn>,
    renewing: bool,
    /// All that is known of the dataset is to be fetched again after the next renewal.
    refresh: bool,
    /// Directory entries to forget after it.
    suspects: Vec<u32>,
    /// Items that wait for the image of a segment, and for a page of the directory.
    loads: BTreeMap<u32, Vec<Turn>>,
    pub(super) pages: BTreeMap<u32, Vec<Turn>>,
}

/// For how long the engine has had nothing to do.
#[derive(Debug, Default)]
pub(crate) struct Idle {
    polls: u32,
    spin_end_ns: Option<u64>,
}

impl Idle {
    /// The time, once every few polls.
    pub(super) fn look_at_clock(&mut self) -> Option<u64> {
        self.polls = self.polls.wrapping_add(1);
        if self.polls.is_multiple_of(POLLS_PER_LOOK) {
            Some(boot_ns())
        } else {
            std::hint::spin_loop();
            None
        }
    }

    /// Whether polling has gone on for long enough, so that it sleeps.
    pub(super) fn has_spun(&mut self, now_ns: u64, spin: Duration) -> bool {
        let spin_ns = u64::try_from(spin.as_nanos()).unwrap_or(u64::MAX);
        now_ns >= *self.spin_end_ns.get_or_insert(now_ns.saturating_add(spin_ns))
    }
}

impl Waits {
    pub(super) fn new() -> Result<Self, ClientError> {
        let bell = Arc::new(Bell::new()?);
        Ok(Self {
            mailbox: Arc::new(Mailbox::with_bell(Arc::clone(&bell))),
            bell,
            asked: 0,
            timers: BinaryHeap::new(),
            renew_next: Vec::new(),
            renew_sent: Vec::new(),
            renewing: false,
            refresh: false,
            suspects: Vec::new(),
            loads: BTreeMap::new(),
            pages: BTreeMap::new(),
        })
    }

    pub(super) fn is_asking(&self) -> bool {
        self.asked > 0
    }

    pub(super) fn has_timers(&self) -> bool {
        !self.timers.is_empty()
    }

    /// Forgets who waits; replies still come.
    pub(super) fn forget(&mut self) {
        self.timers.clear();
        self.renew_next.clear();
        self.renew_sent.clear();
        self.loads.clear();
        self.pages.clear();
    }
}

impl Engine {
    fn waiting(&mut self, index: u32) -> Turn {
        let item = &mut self.items[index as usize];
        item.state = State::Waiting;
        let (attempt, since_ns) = (item.attempt, item.since_ns);
        // Others that get on are of no use to it any more.
        self.has_until(since_ns);
        Turn { item: index, attempt }
    }

    /// Begins the item again a little later.
    pub(super) fn wait_a_little(&mut self, index: u32) {
        let turn = self.waiting(index);
        let wait = self.items[index as usize].backoff.next();
        let at = boot_ns().saturating_add(u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX));
        self.waits.timers.push(Reverse((at, turn)));
    }

    /// Begins the item again after a renewal that is asked for from now on.
    pub(super) fn wait_for_renewal(&mut self, index: u32, suspect: Option<u32>) {
        let turn = self.waiting(index);
        self.waits.renew_next.push(turn);
        self.waits.suspects.extend(suspect);
        self.ask_renewal();
    }

    /// Has all that is known of the dataset fetched again: a peer refused what it led to.
    pub(super) fn refresh(&mut self) {
        self.waits.refresh = true;
    }

    fn ask_renewal(&mut self) {
        if self.waits.renewing {
            return;
        }
        self.waits.renewing = true;
        std::mem::swap(&mut self.waits.renew_next, &mut self.waits.renew_sent);
        self.waits.asked += 1;
        let command = Command::Renew {
            generation: self.footing.view.generation,
            mailbox: Arc::clone(&self.waits.mailbox),
            tag: RENEWAL,
        };
        self.shared().submit(command);
    }

    /// Has the server load a segment's image; the item looks again after the answer, whatever it is.
    pub(super) fn wait_for_load(&mut self, index: u32, segment: u32) {
        let turn = self.waiting(index);
        let waiters = self.waits.loads.entry(segment).or_default();
        waiters.push(turn);
        if waiters.len() > 1 {
            return;
        }
        self.waits.asked += 1;
        let view = &self.footing.view;
        let request = Request::Load {
            dataset: view.dataset,
            segment,
        };
        self.shared().submit(Command::Request {
            generation: view.generation,
            request,
            reply: Some((Arc::clone(&self.waits.mailbox), u64::from(segment))),
            write: None,
            dataset: Some(Arc::clone(&self.state)),
        });
    }

    /// Takes what the control thread replied; whether it has.
    pub(super) fn take_replies(&mut self) -> bool {
        let mut any = false;
        while let Some((tag, _)) = self.waits.mailbox.take() {
            any = true;
            self.waits.asked -= 1;
            match u32::try_from(tag) {
                Ok(segment) if tag != RENEWAL => self.loaded(segment),
                _ => self.renewed(),
            }
        }
        any
    }

    fn loaded(&mut self, segment: u32) {
        for turn in self.waits.loads.remove(&segment).unwrap_or_default() {
            if self.at_turn(turn).is_some() {
                self.wait_a_little(turn.item);
            }
        }
    }

    /// The tables know what changed, or the session is over.
    fn renewed(&mut self) {
        self.waits.renewing = false;
        if std::mem::take(&mut self.waits.refresh) {
            self.state.refresh();
        }
        let changes = self.state.view().1.changes;
        while let Some(suspect) = self.waits.suspects.pop() {
            self.state.forget_entry(changes, suspect);
        }
        while let Some(turn) = self.waits.renew_sent.pop() {
            let Some(item) = self.at_turn(turn) else { continue };
            if item.stale > 1 || item.torn > 0 {
                self.wait_a_little(turn.item);
            } else {
                self.begin(turn.item);
                self.after(turn.item);
            }
        }
        if !self.waits.renew_next.is_empty() {
            self.ask_renewal();
        }
    }

    /// Begins what waited for a moment that has come; whether any did.
    pub(super) fn take_timers(&mut self, now_ns: u64) -> bool {
        let mut any = false;
        while let Some(&Reverse((at, turn))) = self.waits.timers.peek() {
            if at > now_ns {
                break;
            }
            self.waits.timers.pop();
            if self.at_turn(turn).is_some() {
                any = true;
                self.begin(turn.item);
                self.after(turn.item);
            }
        }
        any
    }

    /// Begins the items that waited for a page of the directory.
    pub(super) fn page_came(&mut self, page: u32) {
        for turn in self.waits.pages.remove(&page).unwrap_or_default() {
            if self.at_turn(turn).is_some() {
                self.begin(turn.item);
                self.after(turn.item);
            }
        }
    }

    /// A page of the directory is not what the view says: a renewal tells what changed.
    pub(super) fn page_torn(&mut self, page: u32) {
        for turn in self.waits.pages.remove(&page).unwrap_or_default() {
            if self.at_turn(turn).is_some() {
                self.recover(turn.item, Trouble::TornDirectory);
            }
        }
    }

    /// Has the item wait for a page of the directory, which is READ.
    pub(super) fn wait_for_page(&mut self, index: u32, page: u32) {
        let turn = self.waiting(index);
        let waiters = self.waits.pages.entry(page).or_default();
        waiters.push(turn);
        if waiters.len() == 1 {
            self.pages.push_back(page);
        }
    }

    /// Nothing could be done: looks again soon, or sleeps once polling has not helped for a while.
    pub(crate) fn idle(&mut self, idle: &mut Idle) {
        let now = if self.flying > 0 {
            let Some(now) = idle.look_at_clock() else { return };
            now
        } else {
            boot_ns()
        };
        self.look(now);
        if self.active() == 0 {
            return;
        }
        if self.flying > 0 {
            if !self.footing.leased(&self.core.shared().tenure, now) {
                return self.lose_lease();
            }
            if !idle.has_spun(now, self.options.spin) {
                return;
            }
        }
        self.sleep(now, SLEEP_MAX_NS);
    }

    /// Sleeps until something may have arrived or is due, for `longest_ns` at most.
    pub(crate) fn sleep(&mut self, now_ns: u64, longest_ns: u64) {
        let timer = self.waits.timers.peek().map_or(u64::MAX, |Reverse((at, _))| *at);
        // While something flies, what is queued waits for that.
        let ready = if self.flying == 0 && self.has_work() {
            self.ready_at_ns
        } else {
            u64::MAX
        };
        let mut left = timer.min(ready).saturating_sub(now_ns).min(longest_ns);
        for lane in self.lanes.iter_mut().filter(|lane| lane.outstanding() > 0) {
            if lane.arm() {
                left = 0;
            }
        }
        if left == 0 {
            return;
        }
        let bell = &*self.waits.bell;
        let mut fds: [PollFd<'_>; LANES_MAX + 1] = std::array::from_fn(|_| PollFd::new(bell, PollFlags::IN));
        let mut count = 1;
        for fd in self
            .lanes
            .iter()
            .filter_map(|lane| lane.fd().filter(|_| lane.outstanding() > 0))
        {
            if let Some(place) = fds.get_mut(count) {
                *place = PollFd::from_borrowed_fd(fd, PollFlags::IN);
                count += 1;
            }
        }
        let timeout = Timespec {
            tv_sec: (left / 1_000_000_000) as i64,
            tv_nsec: (left % 1_000_000_000) as _,
        };
        // An error (EINTR) is as good as waking: the caller looks and sleeps again.
        let _ = poll(&mut fds[..count], Some(&timeout));
        bell.clear();
    }
}
