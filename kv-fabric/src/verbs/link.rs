//! Frames over one queue pair, as both ends of a control connection send and take them.
//!
//! # Safety
//! Frames are sent from and received into two regions that the link owns, a slot of fixed length each. A send slot is
//! written only while no SEND from it is outstanding, a receive slot is read only between its completion and its
//! being posted again. The queue pair is destroyed before the regions: it is dropped first.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::sync::Arc;

use rdma_core_rs as rdma;

use super::call;
use super::memory::{self, Held, NOT_REGISTERED};
use crate::{
    ControlEvent, ControlOptions, FabricError, Memory, MemoryKind, Region, RemoteRef, SENDS_PER_RECEIVE,
};

/// WRITEs that may be outstanding beside frames.
const WRITES_MAX: usize = 64;
/// Completions taken at a time.
const POLL_BATCH: usize = 32;

/// Which end of the work a completion is of, in the top bits of its `wr_id`; a slot's number below.
const RECEIVE: u64 = 1 << 63;

/// What one outstanding send request holds until it completes.
enum Sent {
    /// A slot of the send region.
    Slot(usize),
    /// The source of a WRITE, and its number.
    Write(
        u64,
        #[allow(dead_code, reason = "held, not used: the device reads it")] Region,
    ),
}

/// The frame machinery of one control connection.
pub(super) struct Link {
    connection: rdma::cm::Connection,
    cq: Arc<rdma::CompletionQueue>,
    sends_cq: Arc<rdma::CompletionQueue>,
    frame_bytes: usize,
    sends: rdma::MemoryRegion<Held>,
    receives: rdma::MemoryRegion<Held>,
    free_slots: Vec<usize>,
    outstanding: VecDeque<Sent>,
    writes_outstanding: usize,
    batch: rdma::WorkBatch,
    posts: rdma::RecvBatch,
    /// Where completions are taken to; kept, for making it anew costs more than most polls.
    completions: Vec<rdma::WorkCompletion>,
    closed: Option<String>,
}

/// Whether what was sent wakes its sender once it has arrived.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Sends {
    /// It does: the sender waits for the source of its WRITEs to be free.
    Wake,
    /// It does not: a server that answers sleeps on. A failure wakes it all the same, by way of its receives.
    Quiet,
}

/// The parts of a link that exist before its connection does.
pub(super) struct Parts {
    cq: Arc<rdma::CompletionQueue>,
    sends_cq: Arc<rdma::CompletionQueue>,
    options: ControlOptions,
    sends: rdma::MemoryRegion<Held>,
    receives: rdma::MemoryRegion<Held>,
    slots: usize,
}

impl Parts {
    /// Makes queue, memory and queue pair of a link in `pd`, reporting to `channel`.
    pub(super) fn new(
        pd: &Arc<rdma::ProtectionDomain>,
        channel: &Arc<rdma::CompletionChannel>,
        options: ControlOptions,
        sends: Sends,
    ) -> Result<(Self, rdma::QueuePair), FabricError> {
        let receives = usize::from(options.receives);
        let slots = receives * SENDS_PER_RECEIVE;
        let sends_max = slots + WRITES_MAX;
        let cq = rdma::CompletionQueue::new(pd.context(), (receives + sends_max) as u32, Some(channel))
            .map_err(|error| call("make a completion queue", error))?;
        let sends_cq = match sends {
            Sends::Wake => cq.clone(),
            Sends::Quiet => rdma::CompletionQueue::new(pd.context(), sends_max as u32, None)
                .map_err(|error| call("make a completion queue", error))?,
        };
        let qp = rdma::QueuePair::builder(pd, &sends_cq, &cq)
            .max_send_wr(sends_max as u32)
            .max_recv_wr(receives as u32)
            .build()
            .map_err(|error| call("make a queue pair", error))?;
        let region = |count: usize| {
            memory::register(pd, Memory::new(count * options.frame_bytes, MemoryKind::Private)?)
        };
        let parts = Self {
            cq,
            sends_cq,
            options,
            sends: region(slots)?,
            receives: region(receives)?,
            slots,
        };
        Ok((parts, qp))
    }

    /// Posts all receives and arms the queue; before connecting, so that no frame finds none, and nothing can fail after.
    pub(super) fn post_receives(&self, qp: &rdma::QueuePair) -> Result<(), FabricError> {
        let count = usize::from(self.options.receives);
        let mut batch = rdma::RecvBatch::with_capacity(count);
        let len = self.options.frame_bytes;
        for slot in 0..count {
            batch.recv(
                RECEIVE | slot as u64,
                &[memory::sge(&self.receives, slot * len, len)],
            );
        }
        // SAFETY: each slot is posted once; nothing reads it before its completion; the caller keeps `self`, and with
        // it the region, beside the queue pair, which the link destroys first.
        let posted = unsafe { qp.post_recv(&mut batch) };
        posted.map_err(|error| call("post receives", error))?;
        self.cq
            .arm(false)
            .map_err(|error| call("arm the completion queue", error))
    }

    /// The key that events of its completion queue carry.
    pub(super) fn cq_key(&self) -> u64 {
        self.cq.key()
    }

    /// The link, once connected.
    pub(super) fn link(self, connection: rdma::cm::Connection) -> Link {
        Link {
            connection,
            cq: self.cq,
            sends_cq: self.sends_cq,
            frame_bytes: self.options.frame_bytes,
            sends: self.sends,
            receives: self.receives,
            free_slots: (0..self.slots).collect(),
            outstanding: VecDeque::with_capacity(self.slots + WRITES_MAX),
            writes_outstanding: 0,
            batch: rdma::WorkBatch::with_capacity(1, 1),
            posts: rdma::RecvBatch::with_capacity(POLL_BATCH),
            completions: vec![rdma::WorkCompletion::default(); POLL_BATCH],
            closed: None,
        }
    }
}

impl Link {
    pub(super) fn connection(&self) -> &rdma::cm::Connection {
        &self.connection
    }

    /// Destroys the connection, then the memory; the link lives on where the device refuses.
    pub(super) fn destroy(mut self: Box<Self>) -> Result<(), (Box<Self>, rdma::Error)> {
        match self.connection.destroy() {
            Ok(()) => Ok(()),
            Err(refused) => {
                self.connection = refused.live;
                Err((self, refused.error))
            }
        }
    }

    /// Ends it from this side; later calls say `reason`.
    pub(super) fn close(&mut self, reason: &str) {
        if self.closed.is_none() {
            self.closed = Some(reason.to_owned());
        }
    }

    /// Frames queued and not known to have arrived.
    pub(super) fn sends_outstanding(&self) -> usize {
        self.outstanding.len() - self.writes_outstanding
    }

    fn usable(&self) -> Result<(), FabricError> {
        self.closed
            .as_ref()
            .map_or(Ok(()), |reason| Err(FabricError::Closed(reason.clone())))
    }

    /// Queues a frame; [`FabricError::Busy`] if no slot is free.
    pub(super) fn send(&mut self, frame: &[u8]) -> Result<(), FabricError> {
        self.usable()?;
        if frame.is_empty() || frame.len() > self.frame_bytes {
            // The peer would not take it: the same end as if it had been sent.
            let why = format!(
                "a frame of {} bytes, where 1 to {} are allowed",
                frame.len(),
                self.frame_bytes
            );
            self.close(&why);
            return Err(FabricError::Closed(why));
        }
        if self.free_slots.is_empty() {
            // Quiet sends complete without waking anybody: which have left is asked when slots run out.
            self.take_sent();
            self.usable()?;
        }
        let slot = self.free_slots.pop().ok_or(FabricError::Busy("frames to send"))?;
        let offset = slot * self.frame_bytes;
        self.sends.memory().0.write(offset, frame);
        let sge = memory::sge(&self.sends, offset, frame.len());
        self.batch.send(slot as u64, &[sge], rdma::SendFlags::SIGNALED);
        self.post(Sent::Slot(slot))
    }

    /// Queues a WRITE; the source is held until it completes.
    pub(super) fn write(
        &mut self,
        number: u64,
        source: &Region,
        offset: usize,
        len: usize,
        to: RemoteRef,
    ) -> Result<(), FabricError> {
        self.usable()?;
        let inside = offset
            .checked_add(len)
            .is_some_and(|end| end <= source.memory().len());
        if len == 0 || !inside || u32::try_from(len).is_err() {
            let text = format!(
                "{len} bytes at {offset} of a region of {} bytes",
                source.memory().len()
            );
            return Err(FabricError::call(
                "write",
                std::io::Error::new(std::io::ErrorKind::InvalidInput, text),
            ));
        }
        let Some(registered) = source.registration() else {
            return Err(FabricError::Unsupported(NOT_REGISTERED));
        };
        if self.writes_outstanding == WRITES_MAX {
            return Err(FabricError::Busy("writes"));
        }
        let remote = rdma::RemoteAddr {
            addr: to.address,
            rkey: rdma::Rkey(to.rkey),
        };
        self.batch.write(
            number,
            remote,
            &[memory::sge(registered, offset, len)],
            rdma::SendFlags::SIGNALED,
        );
        self.writes_outstanding += 1;
        self.post(Sent::Write(number, source.clone()))
    }

    fn post(&mut self, sent: Sent) -> Result<(), FabricError> {
        // SAFETY: the one request names either a send slot, which is not free until its completion, or a source that
        // `outstanding` holds until its completion; on an error the queue pair is given up and both are held until
        // it is destroyed.
        let posted = unsafe { self.connection.qp().post_send(&mut self.batch) };
        self.outstanding.push_back(sent);
        posted.map_err(|error| {
            self.batch.clear();
            self.close(&error.to_string());
            FabricError::Closed(error.to_string())
        })
    }

    /// Why it is over, once it is.
    pub(super) fn end(&self) -> Option<&str> {
        self.closed.as_deref()
    }

    /// Appends what arrived or finished, and leaves the queue armed for what comes next. Quiet sends are not looked at.
    ///
    /// # Errors
    /// [`FabricError::Closed`] if it is over and nothing was appended.
    pub(super) fn poll(&mut self, events: &mut Vec<ControlEvent>) -> Result<(), FabricError> {
        let before = events.len();
        self.take(events);
        if self.closed.is_none() {
            self.cq
                .arm(false)
                .map_err(|error| call("arm the completion queue", error))?;
            // What came before arming causes no event.
            self.take(events);
        }
        if events.len() == before {
            self.usable()
        } else {
            Ok(())
        }
    }

    /// Looks which frames have left, where sends are quiet.
    pub(super) fn take_sent(&mut self) {
        if Arc::ptr_eq(&self.cq, &self.sends_cq) {
            return;
        }
        let mut none = Vec::new();
        self.take_from(&self.sends_cq.clone(), &mut none);
        debug_assert!(
            none.is_empty(),
            "quiet sends are frames, and frames that left are no event"
        );
    }

    fn take(&mut self, events: &mut Vec<ControlEvent>) {
        self.take_from(&self.cq.clone(), events);
    }

    fn take_from(&mut self, cq: &rdma::CompletionQueue, events: &mut Vec<ControlEvent>) {
        let mut completions = std::mem::take(&mut self.completions);
        loop {
            let arrived = match cq.poll(&mut completions) {
                Ok(arrived) => arrived,
                Err(error) => {
                    self.close(&error.to_string());
                    break;
                }
            };
            for completion in arrived {
                self.on_completion(completion, events);
            }
            let more = arrived.len() == POLL_BATCH;
            self.repost();
            if !more {
                break;
            }
        }
        self.completions = completions;
    }

    fn on_completion(&mut self, completion: &rdma::WorkCompletion, events: &mut Vec<ControlEvent>) {
        let id = completion.wr_id();
        if !completion.status().is_success() {
            // What was outstanding stays held until the queue pair is destroyed.
            return self.close(&format!(
                "the peer is gone or broke the rules ({})",
                completion.status()
            ));
        }
        if id & RECEIVE != 0 {
            let slot = (id & !RECEIVE) as usize;
            let offset = slot * self.frame_bytes;
            let mut frame = vec![0; (completion.byte_len() as usize).min(self.frame_bytes)];
            self.receives.memory().0.read(offset, &mut frame);
            events.push(ControlEvent::Frame(frame));
            self.posts
                .recv(id, &[memory::sge(&self.receives, offset, self.frame_bytes)]);
            return;
        }
        // Every send request is signaled, and they complete in order.
        match self.outstanding.pop_front() {
            Some(Sent::Slot(slot)) => self.free_slots.push(slot),
            Some(Sent::Write(number, _)) => {
                self.writes_outstanding -= 1;
                events.push(ControlEvent::Written(number));
            }
            None => self.close("a completion came for nothing that was posted"),
        }
    }

    fn repost(&mut self) {
        if self.posts.is_empty() {
            return;
        }
        // SAFETY: each slot in the batch has completed, its frame was copied out, and nothing reads it until it
        // completes again; the region outlives the queue pair.
        let posted = unsafe { self.connection.qp().post_recv(&mut self.posts) };
        if let Err(error) = posted {
            self.posts.clear();
            self.close(&error.to_string());
        }
    }
}
