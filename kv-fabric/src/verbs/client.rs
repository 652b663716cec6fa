//! The client's connections.
//!
//! # Safety
//! A data connection holds a handle of every region that a posted READ goes to until the last READ of its batch has
//! completed; what is still outstanding when it is dropped is held until the queue pair is destroyed, which is the first
//! field dropped.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use rdma_core_rs as rdma;
use rustix::event::epoll;

use super::link::{Link, Parts, Sends};
use super::memory::{self, NOT_REGISTERED};
use super::{READ_MAX_BYTES, call, connect_error};
use crate::bell::Bell;
use crate::held::HeldRegions;
use crate::{
    ControlConnection, ControlEvent, ControlOptions, DataConnection, DataCounters, FabricError, NotDestroyed,
    Read, ReadCompletion, ReadStatus, Region, RemoteRef, SCATTER_MAX, Stage,
};

/// Completions taken at a time.
const POLL_BATCH: usize = 64;

/// One descriptor that is readable while any of `fds` is; its events carry their places in `fds`.
pub(super) fn epoll_of(fds: &[BorrowedFd<'_>]) -> Result<OwnedFd, FabricError> {
    let failed = |error| FabricError::call("epoll", error);
    let all = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(failed)?;
    for (place, fd) in (0..).zip(fds) {
        epoll::add(&all, fd, epoll::EventData::new_u64(place), epoll::EventFlags::IN).map_err(failed)?;
    }
    Ok(all)
}

/// Whether the connection manager has said that the connection is over.
fn is_over(connection: &rdma::cm::Connection) -> Result<Option<String>, FabricError> {
    while let Some(event) = connection
        .id()
        .channel()
        .poll_event()
        .map_err(|error| call("take an event", error))?
    {
        if event.id() == connection.key() && event.kind().ends_connection() {
            return Ok(Some(event.kind().to_string()));
        }
    }
    Ok(None)
}

/// A client's control connection.
pub(super) struct VerbsControl {
    link: Link,
    channel: Arc<rdma::CompletionChannel>,
    /// Rung for good once the connection is over, so that a sleeper wakes up to it.
    over: Bell,
    told: bool,
    fd: OwnedFd,
}

impl VerbsControl {
    pub(super) fn connect(
        connector: rdma::cm::Connector,
        pd: &Arc<rdma::ProtectionDomain>,
        param: &rdma::cm::ConnectParam,
        options: ControlOptions,
        address: &str,
        deadline: Instant,
    ) -> Result<Self, FabricError> {
        let failed = |error| connect_error(error, Stage::Connect, address);
        let channel = rdma::CompletionChannel::new(pd.context())
            .map_err(|error| call("make a completion channel", error))?;
        let (parts, qp) = Parts::new(pd, &channel, options, Sends::Wake)?;
        // Bound after the memory: dropped before it, and with it the queue pair that has receives posted there.
        let mut connector = connector;
        parts.post_receives(connector.attach(qp, rdma::Access::NONE).map_err(failed)?)?;
        let (connection, _) = connector.connect_blocking(param, deadline).map_err(failed)?;
        let over = Bell::new()?;
        let fd = epoll_of(&[channel.as_fd(), connection.id().channel().as_fd(), over.as_fd()])?;
        Ok(Self {
            link: parts.link(connection),
            channel,
            over,
            told: false,
            fd,
        })
    }
}

impl VerbsControl {
    /// Once it is over: wakes a sleeper, and tells the peer where it does not know yet.
    fn tell_of_end(&mut self) {
        if self.link.end().is_some() && !self.told {
            self.told = true;
            self.over.ring();
            if let Err(error) = self.link.connection().disconnect() {
                tracing::debug!(%error, "the peer could not be told of the end");
            }
        }
    }
}

impl ControlConnection for VerbsControl {
    fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn send(&mut self, frame: &[u8]) -> Result<(), FabricError> {
        let sent = self.link.send(frame);
        self.tell_of_end();
        sent
    }

    fn write(
        &mut self,
        number: u64,
        source: &Region,
        offset: usize,
        len: usize,
        to: RemoteRef,
    ) -> Result<(), FabricError> {
        let written = self.link.write(number, source, offset, len, to);
        self.tell_of_end();
        written
    }

    fn poll(&mut self, events: &mut Vec<ControlEvent>) -> Result<(), FabricError> {
        self.channel
            .drain()
            .map_err(|error| call("take completion events", error))?;
        let ended = is_over(self.link.connection())?;
        // What arrived before is returned first, then the end.
        let before = events.len();
        let mut polled = self.link.poll(events);
        if let Some(why) = ended {
            self.link.close(&why);
            polled = polled.and(Err(FabricError::Closed(why)));
        }
        self.tell_of_end();
        if events.len() > before { Ok(()) } else { polled }
    }
}

/// A client's data connection.
pub(super) struct VerbsData {
    // Dropped first: with the queue pair, so nothing reaches the memory below any more.
    connection: rdma::cm::Connection,
    cq: Arc<rdma::CompletionQueue>,
    channel: Arc<rdma::CompletionChannel>,
    fd: OwnedFd,
    batch: rdma::WorkBatch,
    /// Numbers of the READs outstanding, in the order posted; the front one has sequence number `completed`.
    posted: VecDeque<u64>,
    /// What they go to.
    held: HeldRegions,
    completed: u64,
    /// Where the queue is polled into: kept, since a waiting reader polls without end.
    arrived: Vec<rdma::WorkCompletion>,
    /// Completions that `wait` took, for the next `poll`.
    ready: Vec<ReadCompletion>,
    reads_max: usize,
    closed: Option<String>,
    counters: DataCounters,
}

impl VerbsData {
    pub(super) fn connect(
        mut connector: rdma::cm::Connector,
        pd: &Arc<rdma::ProtectionDomain>,
        param: &rdma::cm::ConnectParam,
        reads_max: u32,
        address: &str,
        deadline: Instant,
    ) -> Result<Self, FabricError> {
        let failed = |error| connect_error(error, Stage::Connect, address);
        let reads_max = reads_max.max(1);
        let channel = rdma::CompletionChannel::new(pd.context())
            .map_err(|error| call("make a completion channel", error))?;
        let cq = rdma::CompletionQueue::new(pd.context(), reads_max + 1, Some(&channel))
            .map_err(|error| call("make a completion queue", error))?;
        let qp = rdma::QueuePair::builder(pd, &cq, &cq)
            .max_send_wr(reads_max)
            .max_recv_wr(1)
            .max_send_sge(SCATTER_MAX as u32)
            .build()
            .map_err(|error| call("make a queue pair", error))?;
        connector.attach(qp, rdma::Access::NONE).map_err(failed)?;
        let (connection, _) = connector.connect_blocking(param, deadline).map_err(failed)?;
        let fd = epoll_of(&[channel.as_fd(), connection.id().channel().as_fd()])?;
        let reads_max = reads_max as usize;
        Ok(Self {
            connection,
            cq,
            channel,
            fd,
            batch: rdma::WorkBatch::with_capacity(reads_max, reads_max * SCATTER_MAX),
            posted: VecDeque::with_capacity(reads_max),
            held: HeldRegions::default(),
            completed: 0,
            arrived: vec![rdma::WorkCompletion::default(); POLL_BATCH],
            ready: Vec::with_capacity(reads_max),
            reads_max,
            closed: None,
            counters: DataCounters::default(),
        })
    }

    fn take(&mut self, completions: &mut Vec<ReadCompletion>) -> Result<(), FabricError> {
        loop {
            let arrived = self.cq.poll(&mut self.arrived);
            let count = arrived
                .map_err(|error| call("poll the completion queue", error))?
                .len();
            for index in 0..count {
                let completion = self.arrived[index];
                self.on_completion(&completion, completions);
            }
            if count < self.arrived.len() {
                return Ok(());
            }
        }
    }

    fn on_completion(&mut self, completion: &rdma::WorkCompletion, completions: &mut Vec<ReadCompletion>) {
        // All up to this one are done: completions of one queue pair come in order.
        let status = read_status(completion.status());
        if status != ReadStatus::Success && self.closed.is_none() {
            self.closed = Some(format!("a READ ended with {}", completion.status()));
            // The peer learns nothing from a refused READ by itself.
            if let Err(error) = self.connection.disconnect() {
                tracing::debug!(%error, "the peer could not be told of the end");
            }
        }
        while self.completed <= completion.wr_id() {
            let Some(number) = self.posted.pop_front() else {
                break;
            };
            if self.completed == completion.wr_id() {
                completions.push(ReadCompletion { number, status });
            }
            self.completed += 1;
        }
        self.held.release(self.completed);
    }
}

fn read_status(status: rdma::WcStatus) -> ReadStatus {
    match status {
        rdma::WcStatus::SUCCESS => ReadStatus::Success,
        rdma::WcStatus::REM_ACCESS_ERR | rdma::WcStatus::REM_INV_REQ_ERR => ReadStatus::RemoteAccess,
        rdma::WcStatus::RETRY_EXC_ERR | rdma::WcStatus::RNR_RETRY_EXC_ERR | rdma::WcStatus::REM_ABORT_ERR => {
            ReadStatus::PeerGone
        }
        rdma::WcStatus::WR_FLUSH_ERR => ReadStatus::Flushed,
        other => ReadStatus::Other(other.0),
    }
}

impl DataConnection for VerbsData {
    fn room(&self) -> usize {
        self.reads_max - self.posted.len()
    }

    fn reads_at_once(&self) -> usize {
        usize::from(self.connection.initiator_depth()).max(1)
    }

    fn post(&mut self, reads: &[Read], regions: &[&Region]) -> Result<(), FabricError> {
        if let Some(reason) = &self.closed {
            return Err(FabricError::Closed(reason.clone()));
        }
        if reads.is_empty() {
            return Ok(());
        }
        if reads.len() > self.room() {
            return Err(FabricError::Busy("READs"));
        }
        let bytes = crate::check::batch_bytes(reads, regions, READ_MAX_BYTES)?;
        let first = self.completed + self.posted.len() as u64;
        for (read, id) in reads.iter().zip(first..) {
            let mut sges = [rdma::Sge::new(0, 0, rdma::Lkey(0)); SCATTER_MAX];
            for (piece, sge) in read.pieces().iter().zip(&mut sges) {
                let Some(registered) = regions[piece.region as usize].registration() else {
                    self.batch.clear();
                    return Err(FabricError::Unsupported(NOT_REGISTERED));
                };
                *sge = memory::sge(registered, piece.offset, piece.len as usize);
            }
            let remote = rdma::RemoteAddr {
                addr: read.from.address,
                rkey: rdma::Rkey(read.from.rkey),
            };
            let flags = if read.signaled {
                rdma::SendFlags::SIGNALED
            } else {
                rdma::SendFlags::NONE
            };
            self.batch.read(id, remote, &sges[..read.pieces().len()], flags);
        }
        self.posted.extend(reads.iter().map(|read| read.number));
        self.held.hold(regions, first + reads.len() as u64);
        // SAFETY: `held` holds every region named until the last READ of the batch has completed, or the queue pair is
        // destroyed; `check` found that the pieces lie inside; regions hand out no references
        // while READs to them are posted.
        let posted = unsafe { self.connection.qp().post_send(&mut self.batch) };
        self.counters.doorbells += 1;
        match posted {
            Ok(()) => {
                self.counters.reads += reads.len() as u64;
                self.counters.bytes += bytes;
                Ok(())
            }
            Err(error) => {
                self.batch.clear();
                let taken = if let rdma::Error::PostSend { posted, .. } = &error {
                    *posted
                } else {
                    0
                };
                self.posted.truncate(self.posted.len() - (reads.len() - taken));
                self.counters.reads += taken as u64;
                self.closed = Some(error.to_string());
                Err(FabricError::Post {
                    posted: taken,
                    source: super::io_error(error),
                })
            }
        }
    }

    fn poll(&mut self, completions: &mut Vec<ReadCompletion>) -> Result<(), FabricError> {
        completions.append(&mut self.ready);
        self.take(completions)
    }

    fn arm(&mut self) -> Result<bool, FabricError> {
        if let Some(why) = is_over(&self.connection)? {
            // Outstanding READs would be sent again until the retries end: flush them now.
            self.closed.get_or_insert(why);
            self.connection
                .qp()
                .to_error()
                .map_err(|error| call("stop the queue pair", error))?;
        }
        self.channel
            .drain()
            .map_err(|error| call("take completion events", error))?;
        self.cq
            .arm(false)
            .map_err(|error| call("arm the completion queue", error))?;
        // What came before arming causes no event.
        let mut ready = std::mem::take(&mut self.ready);
        let taken = self.take(&mut ready);
        self.ready = ready;
        taken?;
        Ok(!self.ready.is_empty())
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.fd.as_fd())
    }

    fn counters(&self) -> DataCounters {
        self.counters
    }

    fn destroy(mut self: Box<Self>) -> Result<(), NotDestroyed> {
        match self.connection.destroy() {
            Ok(()) => Ok(()),
            Err(refused) => {
                self.connection = refused.live;
                let error = call("destroy a data connection", refused.error);
                Err(NotDestroyed { live: self, error })
            }
        }
    }
}
