//! Completion queues, and the channels that wake who waits for them.
//!
//! # Safety
//! Both raw objects are destroyed once, the queue before its channel (it holds an `Arc` of it). An event names its queue
//! by a number that was put into `cq_context`, never by a pointer that is followed.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::{NonNull, without_provenance_mut};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use rdma_sys as sys;

use crate::context::Context;
use crate::error::{Error, Result, os_result};
use crate::poll::{set_nonblocking, wait_readable};
use crate::wc::WorkCompletion;

/// Most events that [`CompletionChannel::drain`] takes in one call.
const DRAIN_MAX: usize = 1024;

/// Wakes who waits for completions (`ibv_create_comp_channel(3)`); one may serve many queues.
#[derive(Debug)]
pub struct CompletionChannel {
    raw: NonNull<sys::ibv_comp_channel>,
    context: Arc<Context>,
}

// SAFETY: the library reads events from the descriptor, which any thread may do; the type holds no other state.
unsafe impl Send for CompletionChannel {}
// SAFETY: as above; all methods take `&self`.
unsafe impl Sync for CompletionChannel {}

impl CompletionChannel {
    /// Makes a channel whose descriptor does not block.
    ///
    /// # Errors
    /// [`Error::Verb`] if the process has no descriptors left.
    pub fn new(context: &Arc<Context>) -> Result<Arc<CompletionChannel>> {
        // SAFETY: the context is open while the `Arc` lives.
        let raw = unsafe { sys::ibv_create_comp_channel(context.as_ptr()) };
        let Some(raw) = NonNull::new(raw) else {
            return Err(Error::verb(
                "ibv_create_comp_channel",
                context.name(),
                io::Error::last_os_error(),
            ));
        };
        let channel = CompletionChannel {
            raw,
            context: context.clone(),
        };
        set_nonblocking(channel.as_fd())
            .map_err(|source| Error::verb("fcntl", "completion channel", source))?;
        Ok(Arc::new(channel))
    }

    /// Takes the next event and says which queue it is of ([`CompletionQueue::key`]); never blocks.
    ///
    /// It is acknowledged before this returns: `ibv_destroy_cq` waits for every event that was handed out, and another
    /// thread may be destroying that very queue.
    ///
    /// # Errors
    /// [`Error::Verb`] if the device is gone.
    pub fn poll_event(&self) -> Result<Option<u64>> {
        let (mut cq, mut key) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: the channel is live, both out-parameters are; the descriptor does not block.
        let rc = unsafe { sys::ibv_get_cq_event(self.raw.as_ptr(), &mut cq, &mut key) };
        if rc != 0 {
            let source = io::Error::last_os_error();
            if source.kind() == io::ErrorKind::WouldBlock {
                return Ok(None);
            }
            return Err(Error::verb("ibv_get_cq_event", self.context.name(), source));
        }
        // SAFETY: `cq` was named by the event just taken; until it is acknowledged, here, its destruction waits.
        unsafe { sys::ibv_ack_cq_events(cq, 1) };
        Ok(Some(key.addr() as u64))
    }

    /// Takes the events that wait now (a bounded number) and returns how many; for a channel with one queue.
    ///
    /// # Errors
    /// As [`CompletionChannel::poll_event`].
    pub fn drain(&self) -> Result<usize> {
        for count in 0..DRAIN_MAX {
            if self.poll_event()?.is_none() {
                return Ok(count);
            }
        }
        Ok(DRAIN_MAX)
    }

    /// Waits for an event until `deadline`.
    ///
    /// # Errors
    /// As [`CompletionChannel::poll_event`].
    pub fn wait_event(&self, deadline: Instant) -> Result<Option<u64>> {
        loop {
            if let Some(key) = self.poll_event()? {
                return Ok(Some(key));
            }
            let ready = wait_readable(self.as_fd(), deadline)
                .map_err(|source| Error::verb("poll", "completion channel", source))?;
            if !ready {
                return Ok(None);
            }
        }
    }
}

impl AsFd for CompletionChannel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the channel is live; its descriptor never changes.
        let fd = unsafe { (*self.raw.as_ptr()).fd };
        // SAFETY: the descriptor is open for as long as the channel, which `self` keeps.
        unsafe { BorrowedFd::borrow_raw(fd) }
    }
}

impl Drop for CompletionChannel {
    fn drop(&mut self) {
        // SAFETY: made by `new`, destroyed once; queues hold an `Arc` of this, so none is left.
        let rc = unsafe { sys::ibv_destroy_comp_channel(self.raw.as_ptr()) };
        if rc != 0 {
            tracing::error!(rc, "ibv_destroy_comp_channel failed; the channel is leaked");
        }
    }
}

/// Where completions arrive (`ibv_create_cq(3)`).
#[derive(Debug)]
pub struct CompletionQueue {
    raw: NonNull<sys::ibv_cq>,
    key: u64,
    capacity: u32,
    channel: Option<Arc<CompletionChannel>>,
    context: Arc<Context>,
}

// SAFETY: `ibv_poll_cq` and `ibv_req_notify_cq` lock the queue themselves; the type's own fields never change.
unsafe impl Send for CompletionQueue {}
// SAFETY: as above; all methods take `&self`.
unsafe impl Sync for CompletionQueue {}

impl CompletionQueue {
    /// Makes a queue of at least `capacity` completions, reporting to `channel` if one is given.
    ///
    /// A queue that overflows breaks (async event [`CQ_ERR`](crate::AsyncEventKind::CQ_ERR)): `capacity` must hold a
    /// completion for every signaled work request and every receive outstanding on all its queue pairs.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a channel of another context; [`Error::Verb`] if the device cannot make one so large.
    pub fn new(
        context: &Arc<Context>,
        capacity: u32,
        channel: Option<&Arc<CompletionChannel>>,
    ) -> Result<Arc<CompletionQueue>> {
        static NEXT_KEY: AtomicU64 = AtomicU64::new(1);
        if channel.is_some_and(|channel| !channel.context.is_same(context)) {
            return Err(Error::invalid(
                "the completion channel belongs to another open device than the queue",
            ));
        }
        let key = NEXT_KEY.fetch_add(1, Ordering::Relaxed);
        let what = || format!("{capacity} entries on {}", context.name());
        let size = i32::try_from(capacity).map_err(|_| Error::invalid(what()))?;
        let raw_channel = channel.map_or(std::ptr::null_mut(), |channel| channel.raw.as_ptr());
        let cookie = without_provenance_mut(key as usize);
        // SAFETY: context and channel are live and belong together; the cookie is a number that nobody follows.
        let raw = unsafe { sys::ibv_create_cq(context.as_ptr(), size, cookie, raw_channel, 0) };
        let Some(raw) = NonNull::new(raw) else {
            return Err(Error::verb("ibv_create_cq", what(), io::Error::last_os_error()));
        };
        // SAFETY: the queue was just made; `cqe` is the size that the device gave it.
        let given = unsafe { (*raw.as_ptr()).cqe };
        let capacity = u32::try_from(given).unwrap_or(capacity);
        Ok(Arc::new(CompletionQueue {
            raw,
            key,
            capacity,
            channel: channel.cloned(),
            context: context.clone(),
        }))
    }

    /// A number that names this queue in events; never used twice in a process.
    pub fn key(&self) -> u64 {
        self.key
    }

    /// How many completions it holds.
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// The channel it reports to.
    pub fn channel(&self) -> Option<&Arc<CompletionChannel>> {
        self.channel.as_ref()
    }

    /// The device it belongs to.
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    pub(crate) fn as_ptr(&self) -> *mut sys::ibv_cq {
        self.raw.as_ptr()
    }

    /// Moves completions that have arrived into `into` and returns how many; no system call, no allocation.
    ///
    /// # Errors
    /// [`Error::Verb`] if the queue is broken.
    pub fn poll<'a>(&self, into: &'a mut [WorkCompletion]) -> Result<&'a [WorkCompletion]> {
        let room = i32::try_from(into.len()).unwrap_or(i32::MAX);
        // SAFETY: the queue is live; `into` has room for that many `ibv_wc`, which `WorkCompletion` is transparently.
        let count = unsafe { sys::ibv_poll_cq(self.as_ptr(), room, into.as_mut_ptr().cast()) };
        match usize::try_from(count) {
            Ok(count) => Ok(into.get(..count).unwrap_or(&[])),
            Err(_) => {
                let source = io::Error::from_raw_os_error(if count < -1 { -count } else { libc::EIO });
                Err(Error::verb("ibv_poll_cq", format!("queue {}", self.key), source))
            }
        }
    }

    /// Asks for one event at the next completion (`ibv_req_notify_cq(3)`), or at the next solicited one.
    ///
    /// Completions that arrived before do not cause it: arm, poll until empty, and only then wait.
    ///
    /// # Errors
    /// [`Error::Verb`] if the device refuses, [`Error::InvalidArgument`] if the queue has no channel.
    pub fn arm(&self, solicited_only: bool) -> Result<()> {
        if self.channel.is_none() {
            return Err(Error::invalid(
                "a completion queue without a channel cannot be armed",
            ));
        }
        // SAFETY: the queue is live.
        let rc = unsafe { sys::ibv_req_notify_cq(self.as_ptr(), i32::from(solicited_only)) };
        os_result(rc)
            .map_err(|source| Error::verb("ibv_req_notify_cq", format!("queue {}", self.key), source))
    }
}

impl Drop for CompletionQueue {
    fn drop(&mut self) {
        // SAFETY: made by `new`, destroyed once; queue pairs hold an `Arc` of this, so none is left, and every event
        // was acknowledged when it was taken, so this does not wait.
        let rc = unsafe { sys::ibv_destroy_cq(self.as_ptr()) };
        if rc != 0 {
            tracing::error!(rc, key = self.key, "ibv_destroy_cq failed; the queue is leaked");
        }
    }
}
