//! One data connection, the ring of memory that its READs arrive in, and what is in flight on it.
//!
//! - READs complete in the order posted, so what arrived is the front of [`Lane::flights`].
//! - The first failure of a READ, a lease that ended, a deadline that passed: the connection is destroyed, and with it
//!   whatever was in flight, so no memory is written after that (**I5**).

use std::collections::VecDeque;
use std::sync::Arc;

use kv_fabric::{DataConnection, FabricError, ReadCompletion, ReadStatus, Region};
use kv_proto::control::{Answer, Request, Status};
use kv_proto::layout::{CONNECT_MAGIC, ConnectRequest, PROTOCOL_VERSION, connect_kind};
use rustix::fd::BorrowedFd;
use zerocopy::IntoBytes;

use super::flight::Flight;
use super::plan::{CHAIN_MAX, Chain, PIECE_READS_MAX};
use super::quarantine::{Refused, Undestroyed};
use super::ring::Ring;
use super::short::{Short, Shorts};
use super::{NotReady, PASS_WAITS};
use crate::backoff::Backoff;
use crate::clock::Deadline;
use crate::control::{Permit, Shared, Up};
use crate::mailbox::Reply;
use crate::{ClientOptions, ConnectionLimit, ReadError};

/// Shortest ring, bytes: a prefix and a few pieces must fit.
const RING_MIN_BYTES: usize = 1 << 20;
/// Longest ring, bytes.
const RING_MAX_BYTES: usize = 1 << 30;

/// Length of the ring of one lane, bytes.
pub(crate) fn ring_bytes(options: &ClientOptions) -> usize {
    options.read_buffer_bytes.clamp(RING_MIN_BYTES, RING_MAX_BYTES)
}

pub(crate) struct Lane {
    connection: Option<Box<dyn DataConnection>>,
    permit: Option<Permit>,
    /// Session that the connection is of.
    pub(crate) generation: u64,
    /// Connections that it had.
    pub(crate) connections: u64,
    pub(super) memory: Option<Region>,
    pub(crate) ring: Ring,
    pub(crate) flights: VecDeque<Flight>,
    /// What flies the short way; then nothing else does.
    pub(super) shorts: Shorts,
    next_number: u64,
    /// READs up to this number have completed.
    pub(super) completed: u64,
    completions: Vec<ReadCompletion>,
    /// Whether anything that it brought was accepted since it was connected.
    pub(crate) got_on: bool,
    /// Not to be connected again before that.
    pub(crate) retry_at_ns: u64,
    pub(crate) backoff: Backoff,
}

impl Lane {
    pub(crate) fn new(options: &ClientOptions) -> Self {
        Self {
            connection: None,
            permit: None,
            generation: 0,
            connections: 0,
            memory: None,
            ring: Ring::new(ring_bytes(options)),
            flights: VecDeque::with_capacity(2 * PIECE_READS_MAX),
            shorts: Shorts::new(),
            next_number: 1,
            completed: 0,
            completions: Vec::with_capacity(2 * PIECE_READS_MAX),
            got_on: false,
            retry_at_ns: 0,
            backoff: Backoff::new(PASS_WAITS.0, PASS_WAITS.1),
        }
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.connection.is_some()
    }

    /// Copies out of the ring. Nothing that is in flight goes there: the ring's rule.
    pub(crate) fn read(&self, offset: usize, out: &mut [u8]) {
        if let Some(memory) = &self.memory {
            memory.memory().read(offset, out);
        }
    }

    /// READs that can be posted now.
    pub(crate) fn room(&self) -> usize {
        self.connection.as_ref().map_or(0, |connection| connection.room())
    }

    /// READs that its connection has under way at once.
    pub(super) fn reads_at_once(&self) -> usize {
        self.connection
            .as_ref()
            .map_or(usize::MAX, |connection| connection.reads_at_once())
    }

    /// READs in flight.
    pub(crate) fn outstanding(&self) -> u64 {
        self.next_number - 1 - self.completed
    }

    /// Destroys the connection; after this nothing is in flight. What was has to be taken from `flights`. Where the device
    /// refuses, the connection comes back with the memory of the ring: both have to be held, and all that its READs go to.
    #[must_use]
    pub(super) fn disconnect(&mut self) -> Option<Refused> {
        self.permit = None;
        self.completed = self.next_number - 1;
        let refused = self.connection.take()?.destroy().err()?;
        tracing::error!(error = %refused.error, "a data connection cannot be destroyed: what it may write to is held");
        Some(Refused {
            connection: refused.live,
            ring: self.memory.take(),
        })
    }

    /// Forgets what was in flight.
    pub(super) fn clear(&mut self) {
        self.flights.clear();
        self.shorts.clear();
        self.ring.clear();
    }

    /// Notes what the READs planned last are for: `reads` of them are planned for this post so far.
    pub(crate) fn fly(&mut self, reads: usize, mut flight: Flight) {
        flight.last = self.next_number + reads as u64 - 1;
        self.flights.push_back(flight);
    }

    /// As [`Self::fly`], the short way: the rest of it is to be written where it lies.
    #[inline]
    pub(super) fn fly_short(&mut self, reads: usize) -> &mut Short {
        let short = self.shorts.push();
        short.last = self.next_number + reads as u64 - 1;
        short
    }

    /// Number of the READ that is posted next.
    pub(super) fn next_number(&self) -> u64 {
        self.next_number
    }

    /// Posts a chain that was begun with [`Self::next_number`]: values go to `values`, and those of items that have memory of
    /// their own to what `of_item` tells. The lease is the caller's to check before.
    #[inline]
    pub(crate) fn post<'a>(
        &'a mut self,
        chain: &mut Chain,
        values: Option<&'a Region>,
        of_item: impl Fn(u32) -> Option<&'a Region>,
    ) -> Result<(), ReadStatus> {
        let (Some(connection), Some(ring)) = (&mut self.connection, &self.memory) else {
            return Err(ReadStatus::Flushed);
        };
        // Counted before: what a failed post left in flight is gone only with the connection.
        self.next_number += chain.len() as u64;
        // Pieces go only where there is memory.
        let values = values.unwrap_or(ring);
        let posted = match chain.items().len() {
            0 => connection.post(chain.reads(), &[ring, values]),
            items => {
                let mut regions = [values; 2 + CHAIN_MAX];
                regions[0] = ring;
                for (region, &item) in regions[2..].iter_mut().zip(chain.items()) {
                    *region = of_item(item).unwrap_or(values);
                }
                connection.post(chain.reads(), &regions[..regions.len().min(2 + items)])
            }
        };
        posted.map_err(|error| {
            tracing::debug!(%error, "post failed");
            ReadStatus::Flushed
        })
    }

    /// Takes what has completed; whether anything has.
    #[inline]
    pub(crate) fn poll(&mut self) -> Result<bool, ReadStatus> {
        let Some(connection) = &mut self.connection else {
            return Err(ReadStatus::Flushed);
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
            return Err(status);
        }
        polled.map_err(|error| {
            tracing::debug!(%error, "poll failed");
            ReadStatus::Flushed
        })?;
        Ok(arrived)
    }

    /// All that has landed and was not taken yet.
    pub(crate) fn landed(&self) -> impl Iterator<Item = &Flight> {
        self.flights
            .iter()
            .take_while(|flight| flight.last <= self.completed)
    }

    /// What has landed and was not taken yet, the oldest first.
    pub(crate) fn next_landed(&mut self) -> Option<Flight> {
        let landed = self
            .flights
            .front()
            .is_some_and(|flight| flight.last <= self.completed);
        if landed { self.flights.pop_front() } else { None }
    }

    /// All that has landed the short way and was not taken yet.
    pub(super) fn landed_shorts(&self) -> impl Iterator<Item = &Short> {
        self.shorts
            .iter()
            .take_while(|short| short.last <= self.completed)
    }

    /// Prepares for a sleep: whether something can be polled already.
    pub(crate) fn arm(&mut self) -> bool {
        let armed = self.connection.as_mut().map(|connection| connection.arm());
        // A failure shows when it is polled.
        !matches!(armed, Some(Ok(false)))
    }

    pub(crate) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.connection.as_ref().and_then(|connection| connection.fd())
    }

    /// Makes the memory and the connection of session `up`, unless they are there. Nothing is in flight.
    pub(crate) fn connect(
        &mut self,
        shared: &Arc<Shared>,
        options: &ClientOptions,
        up: &Up,
        dataset: [u8; 16],
        deadline: Deadline,
    ) -> Result<(), NotReady> {
        if self.connection.is_some() && self.generation == up.generation {
            return Ok(());
        }
        if let Some(refused) = self.disconnect() {
            let nothing = Arc::default();
            shared.quarantine.hold(Undestroyed::new(refused, nothing));
        }
        if self.memory.is_none() {
            let memory = shared.fabric.allocate(ring_bytes(options));
            self.memory = Some(memory.map_err(|error| {
                tracing::error!(%error, "no memory to read into");
                NotReady::Never(ReadError::NoResources)
            })?);
        }
        let permit = shared.permit().map_err(at_limit)?;
        let request = ConnectRequest {
            magic: CONNECT_MAGIC,
            version: PROTOCOL_VERSION,
            kind: connect_kind::DATA,
            reserved: 0,
            session: up.info.session,
            token: token(shared, up, dataset, deadline)?,
        };
        let wait = Deadline::after(options.connect_timeout.min(deadline.left()));
        let connected = shared.fabric.connect_data(
            &shared.address,
            request.as_bytes(),
            options.depth.max(PIECE_READS_MAX as u32),
            wait.instant(),
        );
        match connected {
            Ok(connection) => {
                self.connection = Some(connection);
                self.permit = Some(permit);
                self.generation = up.generation;
                self.connections += 1;
                self.got_on = false;
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
}

/// What a limit means for a read: no more connections are had. Where there are some, that is no trouble.
fn at_limit(limit: ConnectionLimit) -> NotReady {
    tracing::debug!(%limit, "no further data connection");
    let error = ReadError::ConnectionLimit(limit);
    match limit {
        // Other clients' come and go.
        ConnectionLimit::Server => NotReady::Later(error),
        _ => NotReady::Never(error),
    }
}

/// What the server takes a data connection for.
fn token(shared: &Shared, up: &Up, dataset: [u8; 16], deadline: Deadline) -> Result<[u8; 16], NotReady> {
    let request = Request::Tokens { dataset, count: 1 };
    match shared.ask(up.generation, request, None, deadline) {
        Some(Reply::Answer(Answer::Tokens { tokens })) => tokens.first().copied().ok_or(NotReady::Again),
        Some(Reply::Refused(refused)) if refused.status == Status::Limit => {
            Err(at_limit(ConnectionLimit::ServerSession))
        }
        Some(Reply::Refused(refused)) if refused.status == Status::Busy => {
            Err(at_limit(ConnectionLimit::Server))
        }
        Some(Reply::Refused(refused)) if refused.status == Status::Forbidden => {
            Err(NotReady::Never(ReadError::Refused(refused.status)))
        }
        _ => Err(NotReady::Again),
    }
}
