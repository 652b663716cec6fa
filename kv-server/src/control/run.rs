//! The control thread: it sleeps until a descriptor is readable or the next lease ends, and never otherwise wakes.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use kv_fabric::{ConnectionId, Endpoint, EndpointEvent, FabricError};
use kv_proto::control::{Answer, Request, encode_answer, encode_refusal};
use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};

use super::changes::Changes;
use super::clock::BootMs;
use super::connections::{DataConnection, Ended, Peer};
use super::counters::Counters;
use super::keys::Keys;
use super::leases::{DatasetId, Ghosts, Holds, Releases, Retirements};
use super::line::Lines;
use super::options::{CONNECTIONS_RESERVED, Options};
use super::server::{Shared, StartError};
use super::session::{Decoy, Refusal, Step, World};
use super::undestroyed::Undestroyed;
use super::writes::{Parked, Write};
use crate::error::StorageError;
use crate::store::{Charge, Completion, Store};

/// Times that the endpoint is polled before other work has its turn.
const POLLS_MAX: usize = 64;

fn timespec(ms: u64) -> Timespec {
    Timespec {
        tv_sec: (ms / 1000) as i64,
        tv_nsec: (ms % 1000) as i64 * 1_000_000,
    }
}

/// What wakes the control thread, as its epoll numbers them; the third is a word from another thread.
const WAKE_ENDPOINT: u64 = 0;
const WAKE_COMPLETIONS: u64 = 1;
const WAKES: usize = 3;

/// What a sleep ended for.
#[derive(Debug, Clone, Copy, Default)]
struct Woken {
    /// The endpoint may have something.
    endpoint: bool,
    /// Writes have finished.
    finished: bool,
}

/// Everything that the control thread owns.
pub(super) struct Control {
    pub(super) store: Arc<Store>,
    pub(super) changes: Changes,
    pub(super) endpoint: Box<dyn Endpoint>,
    /// Whether the fabric does.
    pub(super) fences: bool,
    pub(super) options: Options,
    keys: Keys,
    decoy: Decoy,
    shared: Arc<Shared>,
    /// The descriptors that wake it, kept in the kernel: naming them anew for each sleep costs more than the sleep.
    wakes: OwnedFd,
    /// Control connections, whose sessions are not over.
    pub(super) peers: BTreeMap<ConnectionId, Peer>,
    /// Control connection of each session whose key was proven.
    pub(super) sessions: HashMap<u64, ConnectionId>,
    pub(super) next_session: u64,
    /// Data connections.
    pub(super) data: BTreeMap<ConnectionId, DataConnection>,
    /// Control connections whose session is over, kept so that the last frame arrives: until when, and their memory.
    pub(super) lingering: BTreeMap<ConnectionId, (BootMs, Charge)>,
    /// Memory of control connections that are to come.
    reserve: Vec<Charge>,
    /// Connections that the device refused to destroy.
    pub(super) undestroyed: BTreeMap<ConnectionId, Undestroyed>,
    /// What sessions that ended still hold until their leases end, on a fabric that cannot fence.
    pub(super) ghosts: Ghosts,
    /// Datasets that were dropped, and the number of that retirement.
    pub(super) dropped: BTreeMap<DatasetId, u64>,
    /// Writes that were queued to the store, by their tokens.
    pub(super) writes: HashMap<u64, Write>,
    pub(super) next_write: u64,
    /// Writes that wait until earlier parts of their values are written.
    pub(super) parked: VecDeque<Parked>,
    /// Small values that wait until others are written, first come first.
    pub(super) parked_small: VecDeque<Parked>,
    /// Who waits for memory for values.
    pub(super) lines: Lines,
    pub(super) retirements: Retirements,
    pub(super) releases: Releases,
    pub(super) counters: Counters,
    completions: Vec<Completion>,
    frame: Vec<u8>,
}

/// What came of a request.
pub(super) enum Outcome {
    /// Answer so.
    Answer(Answer),
    /// It is answered later.
    Deferred,
    /// Answer, and the session is over.
    Bye,
}

impl Control {
    pub(super) fn new(
        store: Store,
        endpoint: Box<dyn Endpoint>,
        fences: bool,
        keys: Keys,
        options: Options,
        shared: Arc<Shared>,
    ) -> Result<Self, StartError> {
        let failed = |error| FabricError::call("epoll", error);
        let wakes = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(failed)?;
        let fds = [endpoint.fd(), store.completions().fd(), shared.fd().as_fd()];
        for (number, fd) in (0..).zip(fds) {
            epoll::add(
                &wakes,
                fd,
                epoll::EventData::new_u64(number),
                epoll::EventFlags::IN,
            )
            .map_err(failed)?;
        }
        let store = Arc::new(store);
        let changes = Changes::start(Arc::clone(&store)).map_err(|source| StartError::Call {
            call: "starting the thread that changes datasets",
            source,
        })?;
        let mut control = Self {
            wakes,
            retirements: Retirements::new(store.retired()),
            store,
            changes,
            endpoint,
            fences,
            options,
            keys,
            decoy: Decoy::new(),
            shared,
            peers: BTreeMap::new(),
            sessions: HashMap::new(),
            next_session: 1,
            data: BTreeMap::new(),
            lingering: BTreeMap::new(),
            reserve: Vec::new(),
            undestroyed: BTreeMap::new(),
            ghosts: Ghosts::default(),
            dropped: BTreeMap::new(),
            writes: HashMap::new(),
            next_write: 1,
            parked: VecDeque::new(),
            parked_small: VecDeque::new(),
            lines: Lines::default(),
            releases: Releases::default(),
            counters: Counters::default(),
            completions: Vec::new(),
            frame: Vec::new(),
        };
        control.fill_reserve();
        Ok(control)
    }

    /// Serves until it is told to stop.
    ///
    /// # Errors
    /// [`FabricError`] if the endpoint failed.
    pub(super) fn run(&mut self) -> Result<(), FabricError> {
        let mut events = Vec::new();
        let mut quiet = false;
        let mut next = None;
        while !self.shared.stopping() {
            let polled = self.sleep(quiet, next).and_then(|woken| {
                quiet = (quiet && !woken.endpoint) || self.events(&mut events)?;
                Ok(woken.finished)
            });
            let finished = match polled {
                Ok(finished) => finished,
                Err(error) => {
                    self.store.shutdown();
                    return Err(error);
                }
            };
            if let Some(keys) = self.shared.take_keys() {
                self.replace_keys(keys);
            }
            if finished {
                self.completed();
            }
            self.retry_parked();
            next = self.expire();
            self.release();
        }
        self.stop(&mut events)
    }

    /// Sleeps until there is something to do, or until `next`; only looks whether there is where the endpoint is not
    /// `quiet`.
    fn sleep(&mut self, quiet: bool, next: Option<BootMs>) -> Result<Woken, FabricError> {
        let timeout = if quiet {
            next.map(|at| timespec(at - BootMs::now()))
        } else {
            Some(timespec(0))
        };
        let mut ready = [epoll::Event {
            flags: epoll::EventFlags::empty(),
            data: epoll::EventData::new_u64(0),
        }; WAKES];
        let count = match epoll::wait(&self.wakes, &mut ready, timeout.as_ref()) {
            Ok(count) => count,
            Err(rustix::io::Errno::INTR) => 0,
            Err(source) => return Err(FabricError::call("epoll", source)),
        };
        let mut woken = Woken::default();
        for event in &ready[..count] {
            match event.data.u64() {
                WAKE_ENDPOINT => woken.endpoint = true,
                WAKE_COMPLETIONS => woken.finished = true,
                _ => self.shared.quiet(),
            }
        }
        Ok(woken)
    }

    /// Takes what happened at the endpoint; whether that was all. Peers that never stop asking hold up neither
    /// finished writes nor leases.
    fn events(&mut self, events: &mut Vec<EndpointEvent>) -> Result<bool, FabricError> {
        for _ in 0..POLLS_MAX {
            events.clear();
            self.endpoint.poll(events)?;
            let accepts = events
                .iter()
                .any(|event| matches!(event, EndpointEvent::Request { .. }));
            for event in events.drain(..) {
                match event {
                    EndpointEvent::Request {
                        request,
                        private,
                        peer,
                        origin,
                    } => self.connect(request, &private, peer, origin),
                    EndpointEvent::Established(id) => self.established(id),
                    EndpointEvent::Frame(id, frame) => self.frame(id, &frame),
                    EndpointEvent::Closed(id, why) => self.closed(id, &why),
                }
            }
            // Should there be more, the next sleep is none: asking here would cost a system call each time.
            if !accepts {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Answers one frame.
    fn frame(&mut self, id: ConnectionId, frame: &[u8]) {
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        self.counters.frames += 1;
        let mut nonce = [0; 32];
        if peer.session.identity().is_none() && getrandom::fill(&mut nonce).is_err() {
            tracing::error!("getrandom failed: a session cannot begin");
            return self.end(id, Ended::Closed("the server has no random numbers"));
        }
        let world = World {
            keys: &self.keys,
            decoy: &self.decoy,
            options: &self.options,
            epoch: self.store.epoch(),
            nonce,
        };
        // Read after the frame arrived: the lease must not end before the client's.
        let now = BootMs::now();
        let received = peer.session.receive(frame, now, &world);
        let (number, kind) = (received.request, received.kind);
        match received.step {
            Step::Answer(answer) => self.answer(id, number, &answer),
            Step::Refuse(refusal) => self.refuse(id, number, kind, &refusal),
            Step::End(refusal) => self.violated(id, number, kind, refusal.as_ref()),
            Step::Ready { proof } => self.ready(id, number, proof, now),
            Step::Do(request) if self.shared.stopping() && !matches!(request, Request::Bye {}) => {
                let refusal = kv_proto::control::Status::ShuttingDown.into();
                self.refuse(id, number, kind, &refusal);
            }
            Step::Do(request) => match self.execute(id, number, request, now) {
                Ok(Outcome::Answer(answer)) => self.answer(id, number, &answer),
                Ok(Outcome::Deferred) => {}
                Ok(Outcome::Bye) => {
                    self.answer(id, number, &Answer::Bye {});
                    self.end(id, Ended::Bye);
                }
                Err(refusal) => self.refuse(id, number, kind, &refusal),
            },
        }
    }

    /// Sends an answer; a peer that takes none loses its session.
    pub(super) fn answer(&mut self, id: ConnectionId, number: u64, answer: &Answer) {
        if let Err(error) = encode_answer(number, answer, &mut self.frame) {
            tracing::error!(%error, answer = answer.name(), "an answer does not fit a frame");
            let refusal = Refusal::new(
                kv_proto::control::Status::Limit,
                "the answer does not fit a frame",
            );
            return self.refuse(id, number, answer.kind(), &refusal);
        }
        self.send(id);
    }

    /// Sends a refusal.
    pub(super) fn refuse(&mut self, id: ConnectionId, number: u64, kind: u8, refusal: &Refusal) {
        self.counters.requests_refused += 1;
        encode_refusal(number, kind, refusal.status, &refusal.text, &mut self.frame);
        self.send(id);
    }

    fn send(&mut self, id: ConnectionId) {
        if let Err(error) = self.endpoint.send(id, &self.frame) {
            tracing::debug!(connection = id.0, %error, "cannot send");
            self.end(id, Ended::Closed("it takes no frames"));
        }
    }

    /// The earliest moment at which something is to be done though nothing happens.
    fn next_deadline(&self) -> Option<BootMs> {
        let max_lag_ms = u64::from(self.options.max_lag_ms);
        let peers = self.peers.values().map(|peer| peer.deadline(self));
        let puts = self
            .peers
            .values()
            .filter_map(|peer| peer.session.puts.stalest())
            .map(|(_, heard)| heard + max_lag_ms);
        let ghosts = self.ghosts.iter().map(Holds::lease_ends);
        let lingering = self.lingering.values().map(|(until, _)| *until);
        let undestroyed = self.undestroyed.values().filter_map(Undestroyed::deadline);
        peers
            .chain(puts)
            .chain(ghosts)
            .chain(lingering)
            .chain(undestroyed)
            .min()
    }

    /// Does what time alone brings about; when there is next something of that to do.
    fn expire(&mut self) -> Option<BootMs> {
        let now = BootMs::now();
        let retired = self.store.retired();
        let max_lag_ms = u64::from(self.options.max_lag_ms);
        if self.retirements.note(retired, now, max_lag_ms) {
            self.releases.touch();
        }
        let mut next = self.next_deadline();
        if next.is_some_and(|at| at <= now) {
            self.expire_due(now);
            next = self.next_deadline();
        }
        self.fill_reserve();
        next
    }

    /// Ends all that is due: what [`next_deadline`](Self::next_deadline) looks at.
    fn expire_due(&mut self, now: BootMs) {
        self.fence_due(now);
        self.drop_silent_puts(now);
        if self.ghosts.expire(now) {
            self.releases.touch();
        }
        let over = |(_, (until, _)): &(&ConnectionId, &(BootMs, Charge))| *until <= now;
        while let Some(id) = self.lingering.iter().find(over).map(|(id, _)| *id) {
            self.end_lingering(id);
        }
        self.retry_destroy(now);
    }

    /// Sets memory aside for control connections to come, as far as there is some.
    fn fill_reserve(&mut self) {
        while self.reserve.len() < CONNECTIONS_RESERVED
            && let Ok(charge) = self.store.charge(self.options.connection().memory_bytes())
        {
            self.reserve.push(charge);
        }
    }

    /// Memory for one more control connection.
    ///
    /// # Errors
    /// [`StorageError::Memory`] if neither the budget nor what was set aside has any.
    pub(super) fn connection_memory(&mut self) -> Result<Charge, StorageError> {
        let taken = self.store.charge(self.options.connection().memory_bytes());
        taken.or_else(|error| self.reserve.pop().ok_or(error))
    }

    /// Tells the store what nobody can read any more.
    fn release(&mut self) {
        if !self.releases.take_touched() {
            return;
        }
        // A dataset that was dropped is in the list of neither side for ever: see `dropped`.
        let datasets = self.store.list();
        let ids = datasets
            .iter()
            .map(|dataset| dataset.id())
            .chain(self.dropped.keys().copied());
        let holds = self
            .peers
            .values()
            .map(|peer| &peer.session.holds)
            .chain(self.undestroyed.values().map(|connection| &connection.holds))
            .chain(self.ghosts.iter());
        let due = self.releases.due(ids, holds, self.retirements.latest());
        for (dataset, up_to) in due {
            self.store.release(&dataset, up_to);
            if self.dropped.get(&dataset).is_some_and(|number| *number <= up_to) {
                self.dropped.remove(&dataset);
            }
        }
    }

    fn replace_keys(&mut self, keys: Keys) {
        self.keys = keys;
        let gone: Vec<ConnectionId> = self
            .peers
            .iter()
            .filter(|(_, peer)| {
                peer.session
                    .key()
                    .is_some_and(|key| self.keys.get(key.name.as_bytes()) != Some(key))
            })
            .map(|(id, _)| *id)
            .collect();
        tracing::info!(sessions_ended = gone.len(), "keys reloaded");
        for id in gone {
            self.end(id, Ended::Fenced("its key was revoked"));
        }
    }

    /// Finishes what is queued, answers it, and takes leave.
    fn stop(&mut self, events: &mut Vec<EndpointEvent>) -> Result<(), FabricError> {
        tracing::info!(
            sessions = self.sessions.len(),
            writes = self.writes.len(),
            "stopping"
        );
        self.refuse_parked();
        self.changes.finish();
        self.store.shutdown();
        self.completed();
        // Frames that are under way are refused, and answers have time to leave.
        let until = BootMs::now() + self.options.goodbye_ms;
        let mut result = Ok(());
        while result.is_ok() && !(self.peers.is_empty() && self.lingering.is_empty()) {
            let left_ms = until - BootMs::now();
            if left_ms == 0 {
                break;
            }
            let timeout = timespec(left_ms);
            let endpoint = self.endpoint.fd();
            let mut fds = [PollFd::from_borrowed_fd(endpoint, PollFlags::IN)];
            // An interrupted or failed wait only makes the leave shorter; the loop is bounded by its deadline.
            let _ = poll(&mut fds, Some(&timeout));
            result = self.events(events).map(|_| ());
        }
        let peers: Vec<ConnectionId> = self.peers.keys().copied().collect();
        for id in peers {
            self.end(id, Ended::Closed("the server is shutting down"));
        }
        let lingering: Vec<ConnectionId> = self.lingering.keys().copied().collect();
        for id in lingering {
            self.end_lingering(id);
        }
        tracing::info!("stopped");
        result
    }

    /// Takes finished writes, and changes of datasets, from the store.
    fn completed(&mut self) {
        let mut completions = std::mem::take(&mut self.completions);
        self.store.completions().drain(&mut completions);
        for completion in completions.drain(..) {
            self.write_done(completion);
        }
        for done in self.changes.take() {
            self.changed(done);
        }
        self.completions = completions;
    }
}
