//! One data connection with the memory that its READs arrive in.
//!
//! - Whoever holds a lane posts to it and takes what arrives; nobody else does. READs complete in the order posted.
//! - The first failure of a READ, a lease that ended, a deadline that passed: the connection is destroyed, and with it
//!   whatever was in flight, so no memory is written after that (**I5**).
//! - While READs may be in flight the lane pins the epoch that it reads under.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use kv_fabric::{
    DataConnection, Fabric, FabricError, Read, ReadCompletion, ReadStatus, Region, RemoteRef, Scatter,
};
use kv_proto::control::{Answer, Request, Status};
use kv_proto::layout::{CONNECT_MAGIC, ConnectRequest, PROTOCOL_VERSION, connect_kind};
use zerocopy::IntoBytes;

use super::counters::{LaneCounters, Tally, add};
use super::plan::Chain;
use crate::ReadError;
use crate::backoff::Backoff;
use crate::clock::{Deadline, boot_ns};
use crate::control::tenure::Footing;
use crate::control::{Shared, Up};
use crate::mailbox::Reply;
use crate::tables::DatasetState;

/// Shortest arena, bytes: a prefix and a few pieces must fit.
const ARENA_MIN_BYTES: usize = 1 << 20;
/// Longest arena, bytes.
const ARENA_MAX_BYTES: usize = 1 << 30;
/// Polls between two looks at the clock.
const POLLS_PER_LOOK: u32 = 64;
/// First and longest wait between two looks for a lane that is free.
const LANE_WAITS: (Duration, Duration) = (Duration::from_micros(20), Duration::from_millis(1));
/// Longest sleep between two looks at the lease.
const SLEEP_MAX: Duration = Duration::from_millis(50);

/// What kept a value from being read this time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// Checksums of a record do not agree.
    TornRecord,
    /// Something else than the record that was wanted lies there.
    StaleRecord,
    /// Checksums of a bucket do not agree; the directory entry that led to it.
    TornBucket(u32),
    /// A bucket is not the one that the directory entry means.
    StaleBucket(u32),
    /// The segment table does not have the place.
    NoPlace,
    /// The segment's image is not loaded.
    Loading(u32),
    /// No image is kept.
    NoImage,
    /// A page of the directory is not there.
    NoDirectory,
    /// A READ failed.
    Fabric(ReadStatus),
    /// The lease ended, or the session is another one.
    Lease,
    /// There is no connection.
    NoConnection,
    /// The deadline passed.
    Deadline,
    /// What is wanted does not fit what the connection or the arena holds.
    NoRoom,
}

/// Why a lane cannot be made ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotReady {
    /// It may be the next time.
    Again,
    /// It will not be.
    Never(ReadError),
}

pub(crate) struct Lane<F: Fabric> {
    shared: Arc<Shared<F>>,
    state: Arc<DatasetState>,
    tally: Arc<Tally>,
    pub(crate) counters: Arc<LaneCounters>,
    connection: Option<F::Data>,
    connections: u64,
    arena: Option<F::Region>,
    pub(crate) footing: Footing,
    next_number: u64,
    /// READs up to this number have completed.
    pub(crate) completed: u64,
    completions: Vec<ReadCompletion>,
    /// For prefixes and blocks that are judged.
    pub(crate) scratch: Vec<u8>,
}

impl<F: Fabric> Lane<F> {
    pub(crate) fn new(shared: &Arc<Shared<F>>, state: &Arc<DatasetState>, tally: &Arc<Tally>) -> Self {
        Self {
            shared: Arc::clone(shared),
            state: Arc::clone(state),
            tally: Arc::clone(tally),
            counters: tally.add_lane(),
            connection: None,
            connections: 0,
            arena: None,
            footing: Footing::new(&shared.tenure, state),
            next_number: 1,
            completed: 0,
            completions: Vec::with_capacity(super::plan::CHAIN_MAX),
            scratch: Vec::new(),
        }
    }

    /// Length of the arena, bytes.
    pub(crate) fn arena_bytes(&self) -> usize {
        let wanted = self.shared.options.read_buffer_bytes;
        wanted.clamp(ARENA_MIN_BYTES, ARENA_MAX_BYTES)
    }

    /// Copies out of the arena. Nothing that is in flight goes there: the ring's rule.
    pub(crate) fn arena_read(&self, offset: usize, out: &mut [u8]) {
        if let Some(arena) = &self.arena {
            arena.memory().read(offset, out);
        }
    }

    pub(crate) fn read_max_bytes(&self) -> usize {
        self.shared.fabric.read_max_bytes()
    }

    /// Number that the next READ gets.
    pub(crate) fn next_number(&self) -> u64 {
        self.next_number
    }

    /// READs that can be posted now.
    pub(crate) fn room(&self) -> usize {
        self.connection.as_ref().map_or(0, DataConnection::room)
    }

    fn in_flight(&self) -> bool {
        self.completed + 1 < self.next_number
    }

    /// Destroys the connection; after this nothing is in flight.
    pub(crate) fn disconnect(&mut self) {
        self.connection = None;
        self.completed = self.next_number - 1;
    }

    /// Pins the epoch and takes the latest view; whether READs may be posted under it at `now_ns`.
    #[inline]
    pub(crate) fn enter(&mut self, now_ns: u64) -> bool {
        self.footing.pin(&self.shared.tenure);
        self.footing.look(&self.shared.tenure, &self.state, now_ns) && self.connection.is_some()
    }

    /// Lets the epoch go. Nothing is in flight between passes.
    pub(crate) fn leave(&mut self) {
        if self.in_flight() {
            self.disconnect();
        }
        self.footing.leave();
    }

    /// Posts one READ, of a value known where, at `now_ns` by the clock.
    #[inline]
    pub(crate) fn post_one(
        &mut self,
        from: RemoteRef,
        prefix_len: usize,
        value_len: usize,
        place: Option<(&F::Region, usize)>,
        now_ns: u64,
    ) -> Result<(), Trouble> {
        if !self.leased(now_ns) {
            return Err(Trouble::Lease);
        }
        let (Some(connection), Some(arena)) = (&mut self.connection, &self.arena) else {
            return Err(Trouble::NoConnection);
        };
        let number = self.next_number;
        self.next_number += 1;
        add(&self.counters.reads_posted, 1);
        add(&self.counters.doorbells, 1);
        let apart = place.is_some() && value_len > 0;
        let to = [
            Scatter {
                region: arena,
                offset: 0,
                len: if place.is_some() {
                    prefix_len
                } else {
                    prefix_len + value_len
                },
            },
            Scatter {
                region: place.map_or(arena, |(region, _)| region),
                offset: place.map_or(0, |(_, offset)| offset),
                len: value_len,
            },
        ];
        let read = Read {
            number,
            from,
            to: if apart { &to } else { &to[..1] },
            signaled: true,
        };
        connection.post(&[read]).map_err(|error| {
            tracing::debug!(%error, "post failed");
            Trouble::Fabric(ReadStatus::Flushed)
        })
    }

    /// Whether there is a newer view, or a newer epoch, than the one that is read under: what flies must land before
    /// more is posted, or the session's retirements would wait for the end of the batch.
    #[inline]
    pub(crate) fn is_behind(&self) -> bool {
        self.footing.is_behind(&self.shared.tenure, &self.state)
    }

    /// Whether the lease still runs.
    #[inline]
    pub(crate) fn leased(&self, now_ns: u64) -> bool {
        self.footing.leased(&self.shared.tenure, now_ns)
    }

    /// Makes the arena and the connection of session `up`, unless they are there.
    pub(crate) fn connect(&mut self, up: &Up, dataset: [u8; 16], deadline: Deadline) -> Result<(), NotReady> {
        if self.connection.is_some() && self.footing.generation == up.generation {
            return Ok(());
        }
        self.disconnect();
        if self.arena.is_none() {
            let arena = self.shared.fabric.allocate(self.arena_bytes());
            self.arena = Some(arena.map_err(|error| {
                tracing::error!(%error, "no memory to read into");
                NotReady::Never(ReadError::NoResources)
            })?);
        }
        let token = self.token(up, dataset, deadline)?;
        let request = ConnectRequest {
            magic: CONNECT_MAGIC,
            version: PROTOCOL_VERSION,
            kind: connect_kind::DATA,
            reserved: 0,
            session: up.info.session,
            token,
        };
        let wait = Deadline::after(self.shared.options.connect_timeout.min(deadline.left()));
        let connected = self.shared.fabric.connect_data(
            &self.shared.address,
            request.as_bytes(),
            self.shared.options.depth.max(super::plan::CHAIN_MAX as u32),
            wait.instant(),
        );
        match connected {
            Ok(connection) => {
                self.connection = Some(connection);
                self.footing.generation = up.generation;
                add(&self.counters.reconnects, u64::from(self.connections > 0));
                self.connections += 1;
                Ok(())
            }
            Err(error @ (FabricError::Unavailable { .. } | FabricError::Memory { .. })) => {
                tracing::error!(%error, "no data connection");
                Err(NotReady::Never(ReadError::NoResources))
            }
            Err(error) => {
                tracing::debug!(%error, "no data connection yet");
                Err(NotReady::Again)
            }
        }
    }

    fn token(&self, up: &Up, dataset: [u8; 16], deadline: Deadline) -> Result<[u8; 16], NotReady> {
        let request = Request::Tokens { dataset, count: 1 };
        match self.shared.ask(up.generation, request, None, deadline) {
            Some(Reply::Answer(Answer::Tokens { tokens })) => tokens.first().copied().ok_or(NotReady::Again),
            Some(Reply::Refused(refused)) if refused.status == Status::Limit => {
                tracing::error!(
                    limit = up.info.data_connections,
                    text = refused.text,
                    "the session has no data connection left: share a client between threads, or drop clones"
                );
                Err(NotReady::Never(ReadError::NoResources))
            }
            Some(Reply::Refused(refused)) if refused.status == Status::Forbidden => {
                Err(NotReady::Never(ReadError::Refused(refused.status)))
            }
            _ => Err(NotReady::Again),
        }
    }

    /// Posts a chain, at `now_ns` by the clock.
    #[inline]
    pub(crate) fn post(
        &mut self,
        chain: &mut Chain,
        place: Option<&F::Region>,
        now_ns: u64,
    ) -> Result<(), Trouble> {
        if !self.leased(now_ns) {
            return Err(Trouble::Lease);
        }
        let (Some(connection), Some(arena)) = (&mut self.connection, &self.arena) else {
            return Err(Trouble::NoConnection);
        };
        let first = self.next_number;
        // Counted before: what a failed post left in flight is gone only with the connection.
        self.next_number += chain.len() as u64;
        add(&self.counters.reads_posted, chain.len() as u64);
        add(&self.counters.doorbells, 1);
        chain
            .post::<F, _>(first, arena, place, |reads| connection.post(reads))
            .map_err(|error| {
                tracing::debug!(%error, "post failed");
                Trouble::Fabric(ReadStatus::Flushed)
            })
    }

    /// Waits until at least one more READ has completed. The lease is the caller's to check, at the returned time.
    #[inline]
    pub(crate) fn progress(&mut self, deadline: Deadline) -> Result<u64, Trouble> {
        let spin_ns = u64::try_from(self.shared.options.spin.as_nanos()).unwrap_or(u64::MAX);
        let mut spin_end_ns = None;
        let mut polls = 0_u32;
        loop {
            if self.poll()? {
                return Ok(boot_ns());
            }
            polls = polls.wrapping_add(1);
            if !polls.is_multiple_of(POLLS_PER_LOOK) {
                std::hint::spin_loop();
                continue;
            }
            let now = boot_ns();
            if deadline.is_over_at(now) {
                return Err(Trouble::Deadline);
            }
            if !self.leased(now) {
                return Err(Trouble::Lease);
            }
            if now >= *spin_end_ns.get_or_insert(now.saturating_add(spin_ns)) {
                self.sleep(deadline)?;
            }
        }
    }

    fn poll(&mut self) -> Result<bool, Trouble> {
        let Some(connection) = &mut self.connection else {
            return Err(Trouble::NoConnection);
        };
        let polled = connection.poll(&mut self.completions);
        let arrived = !self.completions.is_empty();
        let mut failed = None;
        for completion in self.completions.drain(..) {
            match completion.status {
                ReadStatus::Success => self.completed = self.completed.max(completion.number),
                status => failed = failed.or(Some(status)),
            }
        }
        if let Some(status) = failed {
            return Err(Trouble::Fabric(status));
        }
        polled.map_err(|error| {
            tracing::debug!(%error, "poll failed");
            Trouble::Fabric(ReadStatus::Flushed)
        })?;
        Ok(arrived)
    }

    fn sleep(&mut self, deadline: Deadline) -> Result<(), Trouble> {
        let until = Deadline::after(SLEEP_MAX.min(deadline.left()));
        if let Some(connection) = &mut self.connection {
            connection.wait(until.instant()).map_err(|error| {
                tracing::debug!(%error, "wait failed");
                Trouble::Fabric(ReadStatus::Flushed)
            })?;
        }
        Ok(())
    }
}

impl<F: Fabric> Drop for Lane<F> {
    fn drop(&mut self) {
        self.tally.remove_lane(&self.counters);
    }
}

/// A lane in use. However the use ends, by unwinding too, nothing is in flight and no epoch pinned after it.
pub(crate) struct Held<'a, F: Fabric>(MutexGuard<'a, Lane<F>>);

impl<'a, F: Fabric> Held<'a, F> {
    /// A lane that nobody uses, as soon as there is one.
    pub(crate) fn any(lanes: &'a [Mutex<Lane<F>>], deadline: Deadline) -> Result<Self, ReadError> {
        if lanes.is_empty() {
            return Err(ReadError::Closed);
        }
        let free = || {
            lanes.iter().find_map(|lane| match lane.try_lock() {
                Ok(guard) => Some(guard),
                // A panic left it as `drop` below did: with nothing in flight.
                Err(std::sync::TryLockError::Poisoned(error)) => Some(error.into_inner()),
                Err(std::sync::TryLockError::WouldBlock) => None,
            })
        };
        let mut backoff = Backoff::new(LANE_WAITS.0, LANE_WAITS.1);
        loop {
            if let Some(lane) = free() {
                return Ok(Self(lane));
            }
            if !backoff.sleep(deadline) {
                return Err(ReadError::Timeout);
            }
        }
    }
}

impl<F: Fabric> std::ops::Deref for Held<'_, F> {
    type Target = Lane<F>;
    fn deref(&self) -> &Lane<F> {
        &self.0
    }
}

impl<F: Fabric> std::ops::DerefMut for Held<'_, F> {
    fn deref_mut(&mut self) -> &mut Lane<F> {
        &mut self.0
    }
}

impl<F: Fabric> Drop for Held<'_, F> {
    fn drop(&mut self) {
        if self.0.in_flight() {
            self.0.disconnect();
        }
        self.0.footing.leave();
    }
}
