//! Data connections: READs that are late, torn, out of order, refused or not answered, but end in order.
//!
//! Where nothing is fenced, the server's end of a connection is not the end of its READs: the memory is mapped, and
//! nobody tells the client.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::READ_MAX_BYTES;
use super::clock::Clock;
use super::domain::{Copied, Shared};
use super::fault::{Faults, Random};
use super::inbox::Inbox;
use crate::bell::Bell;
use crate::{
    ConnectionId, DataCounters, EndpointEvent, FabricError, NotDestroyed, Read, ReadCompletion, ReadStatus,
    Region, RemoteRef, SCATTER_MAX, check,
};

/// Most READs of one connection.
const READS_MAX: u32 = 1 << 16;
/// Most moments that a torn READ is copied at.
const PARTS_MAX: usize = 6;

#[derive(Debug)]
struct Piece {
    region: Region,
    offset: usize,
    len: usize,
}

/// Bytes of a READ, counted from its first.
type Part = std::ops::Range<usize>;

/// A READ that was posted. It holds its regions until it is taken as a completion, or the connection is dropped.
#[derive(Debug)]
struct Op {
    number: u64,
    from: RemoteRef,
    len: usize,
    to: [Option<Piece>; SCATTER_MAX],
    signaled: bool,
    /// What is to be copied: first this, then the last of these. Nothing is allocated for what is not torn.
    part: Option<Part>,
    parts: Vec<Part>,
    pause: Duration,
    error: bool,
    /// How much later than its bytes its end is told.
    told_late: Duration,
    /// Reuses of memory when it was posted.
    reuses: u64,
    /// Whether it got bytes of reused memory.
    reused: bool,
    ended: Option<ReadStatus>,
}

impl Op {
    /// Copies bytes of it, as they are now; whether the domain has them.
    fn copy(&mut self, domain: &Shared, part: Part) -> bool {
        let mut start = 0;
        for piece in self.to.iter().flatten() {
            let here = part.start.max(start)..part.end.min(start + piece.len);
            if !here.is_empty() {
                let from = self.from.offset(here.start as u64);
                let offset = piece.offset + here.start - start;
                match domain.copy(from, self.reuses, &piece.region, offset, here.len()) {
                    Copied::Good => {}
                    Copied::Reused => self.reused = true,
                    Copied::Refused => return false,
                }
            }
            start += piece.len;
        }
        true
    }
}

#[derive(Debug)]
struct State {
    over: Option<String>,
    /// The server has ended it.
    ended_by_server: bool,
    /// How late the READs of the next batch are carried out at most.
    next_late: Duration,
    ops: VecDeque<Op>,
    /// Those of a batch and how late each is, while it is posted.
    order: Vec<(u64, Duration)>,
    /// Number of the first of `ops`, counted from the connection's first.
    first: u64,
    random: Random,
    /// A stream of its own: when it is drawn from depends on the clock.
    pauses: Random,
}

/// A data connection, as both its ends share it. Bytes are copied under its lock: after it was ended none are.
#[derive(Debug)]
pub(super) struct DataLink {
    id: ConnectionId,
    pub(super) reads_max: usize,
    domain: Arc<Shared>,
    inbox: Arc<Inbox>,
    faults: Arc<Faults>,
    clock: Clock,
    bell: Bell,
    state: Mutex<State>,
}

impl DataLink {
    pub(super) fn new(
        id: ConnectionId,
        stream: u64,
        reads_max: u32,
        domain: Arc<Shared>,
        inbox: Arc<Inbox>,
        faults: Arc<Faults>,
        clock: Clock,
    ) -> Result<Self, FabricError> {
        let random = Random::new(faults.seed, 2 * stream);
        let pauses = Random::new(faults.seed, 2 * stream + 1);
        Ok(Self {
            id,
            reads_max: reads_max.min(READS_MAX) as usize,
            domain,
            inbox,
            faults,
            clock,
            bell: Bell::new()?,
            state: Mutex::new(State {
                over: None,
                ended_by_server: false,
                next_late: Duration::ZERO,
                ops: VecDeque::new(),
                order: Vec::new(),
                first: 0,
                random,
                pauses,
            }),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes no more READs, and tells the server.
    fn close(&self, state: &mut State, reason: &str) {
        if state.over.is_none() {
            state.over = Some(reason.to_owned());
            if !state.ended_by_server {
                self.inbox.push(EndpointEvent::Closed(self.id, reason.to_owned()));
            }
        }
        self.bell.ring();
    }

    fn count(counter: &AtomicU64, count: usize) {
        counter.fetch_add(count as u64, Ordering::Relaxed);
    }

    /// Ends what has not ended: the first as [`ReadStatus::PeerGone`], and nothing after it has succeeded.
    fn end(&self, state: &mut State, reason: &str) {
        self.close(state, reason);
        let mut status = ReadStatus::PeerGone;
        for op in state.ops.iter_mut().skip_while(|op| op.ended.is_some()) {
            op.ended = Some(status);
            status = ReadStatus::Flushed;
        }
    }

    /// Ends a READ that failed, and gives up what was posted after it. What was posted before it goes on.
    fn fail(&self, state: &mut State, index: usize, status: ReadStatus, reason: &str) {
        for op in state.ops.iter_mut().skip(index) {
            op.ended = Some(ReadStatus::Flushed);
        }
        if let Some(op) = state.ops.get_mut(index) {
            op.ended = Some(status);
        }
        self.close(state, reason);
    }

    /// The server ended it, and wants to hear no more of it.
    pub(super) fn destroy(&self, reason: &str) {
        let mut state = self.state();
        state.ended_by_server = true;
        if self.domain.fences() {
            let left = state.ops.iter().filter(|op| op.ended.is_none()).count();
            Self::count(&self.faults.counters.reads_fenced, left);
            self.end(&mut state, reason);
        }
        self.inbox.forget(self.id);
    }

    fn refuse(&self, state: &mut State, index: usize) {
        Self::count(&self.faults.counters.reads_refused, 1);
        self.fail(
            state,
            index,
            ReadStatus::RemoteAccess,
            "it may not read that memory",
        );
    }

    /// Carries out a READ's next part, and plans what comes after that.
    fn step(self: &Arc<Self>, state: &mut State, sequence: u64) {
        let Some(index) = sequence.checked_sub(state.first).map(|index| index as usize) else {
            return;
        };
        let unfenced = state.ended_by_server;
        let Some(op) = state.ops.get_mut(index).filter(|op| op.ended.is_none()) else {
            return;
        };
        if op.error {
            return self.fail(state, index, ReadStatus::PeerGone, "a simulated READ error");
        }
        let Some(part) = op.part.take().or_else(|| op.parts.pop()) else {
            // All bytes are there, and now it is told.
            op.ended = Some(ReadStatus::Success);
            return self.bell.ring();
        };
        if !self.domain.has(op.from, op.len) || !op.copy(&self.domain, part) {
            return self.refuse(state, index);
        }
        if !op.parts.is_empty() {
            let pause = state.pauses.up_to(op.pause);
            return self.plan(sequence, pause);
        }
        let counters = &self.faults.counters;
        Self::count(&counters.reads_of_reused, usize::from(op.reused));
        Self::count(&counters.reads_unfenced, usize::from(unfenced));
        if op.told_late.is_zero() {
            op.ended = Some(ReadStatus::Success);
            self.bell.ring();
        } else {
            let told_late = op.told_late;
            self.plan(sequence, told_late);
        }
    }

    fn plan(self: &Arc<Self>, sequence: u64, wait: Duration) {
        let link = Arc::clone(self);
        self.clock.plan(Instant::now() + wait, move || {
            link.step(&mut link.state(), sequence);
        });
    }

    fn post(self: &Arc<Self>, reads: &[Read], regions: &[&Region]) -> Result<(), FabricError> {
        let mut state = self.state();
        if let Some(reason) = &state.over {
            if state.ended_by_server {
                Self::count(&self.faults.counters.reads_fenced, reads.len());
            }
            return Err(FabricError::Closed(reason.clone()));
        }
        let late = std::mem::take(&mut state.next_late);
        let reuses = self.domain.reuses();
        if self.faults.disconnects(&mut state.random) {
            self.end(&mut state, "a simulated disconnect");
            return Err(FabricError::Closed("a simulated disconnect".to_owned()));
        }
        let mut order = std::mem::take(&mut state.order);
        for read in reads {
            let plan = self.faults.read(&mut state.random);
            let delay = match late.is_zero() {
                true => plan.delay,
                false => state.pauses.up_to(late),
            };
            order.push((state.first + state.ops.len() as u64, delay));
            let mut to = [const { None }; SCATTER_MAX];
            for (place, piece) in to.iter_mut().zip(read.pieces()) {
                *place = Some(Piece {
                    region: regions[piece.region as usize].clone(),
                    offset: piece.offset,
                    len: piece.len as usize,
                });
            }
            let len = read.len_bytes();
            let parts = match plan.torn {
                Some(_) => tear(len, &mut state.random),
                None => Vec::new(),
            };
            state.ops.push_back(Op {
                number: read.number,
                from: read.from,
                len,
                to,
                signaled: read.signaled,
                part: parts.is_empty().then_some(0..len),
                parts,
                pause: plan.torn.unwrap_or_default(),
                error: plan.error,
                told_late: plan.told_late,
                reuses,
                reused: false,
                ended: None,
            });
        }
        if self.faults.reorders(&mut state.random) {
            state.random.shuffle(&mut order);
        }
        for (sequence, delay) in order.drain(..) {
            if delay.is_zero() {
                self.step(&mut state, sequence);
            } else {
                self.plan(sequence, delay);
            }
        }
        state.order = order;
        Ok(())
    }
}

/// Cuts a READ of `len` bytes into parts, in any order.
fn tear(len: usize, random: &mut Random) -> Vec<Part> {
    let mut cuts: Vec<_> = (0..=random.below(PARTS_MAX - 1))
        .map(|_| random.below(len))
        .collect();
    cuts.extend([0, len]);
    cuts.sort_unstable();
    cuts.dedup();
    let mut parts: Vec<_> = cuts.windows(2).map(|pair| pair[0]..pair[1]).collect();
    random.shuffle(&mut parts);
    parts
}

/// A client's data connection over `sim`.
#[derive(Debug)]
pub(super) struct Data {
    link: Arc<DataLink>,
    /// Ends not polled, each with the READs that it frees the room of.
    ended: VecDeque<(ReadCompletion, usize)>,
    /// Succeeded unsignaled since the last end.
    silent: usize,
    outstanding: usize,
    counters: DataCounters,
}

impl Data {
    pub(super) fn new(link: Arc<DataLink>) -> Self {
        Self {
            link,
            ended: VecDeque::new(),
            silent: 0,
            outstanding: 0,
            counters: DataCounters::default(),
        }
    }

    /// Takes what ended, in the order posted.
    fn harvest(&mut self) {
        let mut state = self.link.state();
        while let Some(status) = state.ops.front().and_then(|op| op.ended) {
            let Some(op) = state.ops.pop_front() else { return };
            state.first += 1;
            if op.signaled || status != ReadStatus::Success {
                let frees = std::mem::take(&mut self.silent) + 1;
                let completion = ReadCompletion {
                    number: op.number,
                    status,
                };
                self.ended.push_back((completion, frees));
            } else {
                self.silent += 1;
            }
        }
    }
}

impl crate::DataConnection for Data {
    fn room(&self) -> usize {
        self.link.reads_max - self.outstanding
    }

    fn reads_at_once(&self) -> usize {
        match self.link.faults.get().server_reads_at_once {
            0 => super::READS_AT_ONCE,
            some => some.min(super::READS_AT_ONCE),
        }
    }

    fn post(&mut self, reads: &[Read], regions: &[&Region]) -> Result<(), FabricError> {
        let bytes = check::batch_bytes(reads, regions, READ_MAX_BYTES)?;
        if reads.len() > self.room() {
            return Err(FabricError::Busy("READs outstanding"));
        }
        if reads.is_empty() {
            return Ok(());
        }
        self.link.post(reads, regions)?;
        self.outstanding += reads.len();
        self.counters.reads += reads.len() as u64;
        self.counters.doorbells += 1;
        self.counters.bytes += bytes;
        Ok(())
    }

    fn poll(&mut self, completions: &mut Vec<ReadCompletion>) -> Result<(), FabricError> {
        self.harvest();
        for (completion, frees) in self.ended.drain(..) {
            self.outstanding -= frees;
            completions.push(completion);
        }
        Ok(())
    }

    fn arm(&mut self) -> Result<bool, FabricError> {
        self.link.bell.clear();
        self.harvest();
        Ok(!self.ended.is_empty())
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.link.bell.as_fd())
    }

    fn counters(&self) -> DataCounters {
        self.counters
    }

    fn delay_next(&mut self, longest: Duration) {
        self.link.state().next_late = longest;
    }

    fn destroy(self: Box<Self>) -> Result<(), NotDestroyed> {
        let refused = {
            let mut state = self.link.state();
            self.link.faults.refuses_client_destroy(&mut state.random)
        };
        if refused {
            let busy = std::io::Error::from(std::io::ErrorKind::ResourceBusy);
            let error = FabricError::call("destroy a data connection", busy);
            return Err(NotDestroyed { live: self, error });
        }
        Ok(())
    }
}

impl Drop for Data {
    fn drop(&mut self) {
        // READs that are not carried out yet let go of their regions, and nothing touches those any more.
        let mut state = self.link.state();
        self.link.end(&mut state, "the peer left");
        let ops = std::mem::take(&mut state.ops);
        state.first += ops.len() as u64;
        drop(state);
        drop(ops);
    }
}
