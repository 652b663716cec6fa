//! Where connection events arrive.
//!
//! # Safety
//! The channel is destroyed after the last id on it (each holds an `Arc`). librdmacm writes an id's fields while it takes
//! an event, so taking events and every use of an id of this channel happen under `lock`; an event is acknowledged before
//! the lock is released, so `rdma_destroy_id` never waits inside it.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use rdma_sys as sys;

use crate::cm::event::{CmEvent, CmEventKind, RemoteParam};
use crate::cm::id::{CmId, CmKey};
use crate::error::{Error, Result};
use crate::library::{Library, require};
use crate::poll::{set_nonblocking, wait_readable};

/// A queue of connection events (`rdma_create_event_channel(3)`); one may serve any number of ids.
#[derive(Debug)]
pub struct EventChannel {
    raw: NonNull<sys::rdma_event_channel>,
    lock: Mutex<()>,
}

// SAFETY: every use of the raw channel that touches an id is under `lock`.
unsafe impl Send for EventChannel {}
// SAFETY: as above; the descriptor itself may be polled by anyone.
unsafe impl Sync for EventChannel {}

impl EventChannel {
    /// Makes a channel whose descriptor does not block.
    ///
    /// # Errors
    /// [`Error::LibraryMissing`] without librdmacm; [`Error::NoDevice`] if the kernel has no rdma_cm for programs;
    /// [`Error::Verb`] otherwise.
    pub fn new() -> Result<Arc<EventChannel>> {
        require(Library::Verbs)?;
        require(Library::RdmaCm)?;
        // SAFETY: takes no argument; returns null on failure.
        let raw = unsafe { sys::rdma_create_event_channel() };
        let Some(raw) = NonNull::new(raw) else {
            let source = io::Error::last_os_error();
            if matches!(source.raw_os_error(), Some(libc::ENOENT) | Some(libc::ENODEV)) {
                let detail = format!("/dev/infiniband/rdma_cm cannot be opened ({source}): load rdma_ucm");
                return Err(Error::NoDevice { detail });
            }
            return Err(Error::verb(
                "rdma_create_event_channel",
                "/dev/infiniband/rdma_cm",
                source,
            ));
        };
        let channel = EventChannel {
            raw,
            lock: Mutex::new(()),
        };
        set_nonblocking(channel.as_fd()).map_err(|source| Error::verb("fcntl", "event channel", source))?;
        Ok(Arc::new(channel))
    }

    pub(crate) fn as_ptr(&self) -> *mut sys::rdma_event_channel {
        self.raw.as_ptr()
    }

    /// Held around every call that touches an id of this channel.
    pub(crate) fn guard(&self) -> MutexGuard<'_, ()> {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the next event, if one waits; never blocks. It is acknowledged before this returns.
    ///
    /// # Errors
    /// [`Error::Verb`] if the channel is broken.
    pub fn poll_event(self: &Arc<Self>) -> Result<Option<CmEvent>> {
        let guard = self.guard();
        let mut event = std::ptr::null_mut();
        // SAFETY: the channel is live, `event` is a live out-parameter, and `lock` is held as librdmacm may write ids.
        let rc = unsafe { sys::rdma_get_cm_event(self.as_ptr(), &mut event) };
        if rc != 0 {
            let source = io::Error::last_os_error();
            return match source.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(None),
                _ => Err(Error::verb("rdma_get_cm_event", "event channel", source)),
            };
        }
        let answer = self.copy_event(event);
        // SAFETY: `event` came from a successful `rdma_get_cm_event` and is acknowledged once, here.
        let rc = unsafe { sys::rdma_ack_cm_event(event) };
        drop(guard);
        if rc != 0 {
            return Err(Error::verb(
                "rdma_ack_cm_event",
                "event channel",
                io::Error::last_os_error(),
            ));
        }
        Ok(Some(answer))
    }

    /// Copies what an event says; called under `lock`, before it is acknowledged.
    fn copy_event(self: &Arc<Self>, event: *const sys::rdma_cm_event) -> CmEvent {
        // SAFETY: `event` was returned by librdmacm and stays until it is acknowledged.
        let event = unsafe { &*event };
        let kind = CmEventKind(event.event);
        let (remote, private_data) = if kind.has_connection_param() {
            // SAFETY: for these kinds librdmacm filled the `conn` member (ids here are of the TCP port space).
            let conn = unsafe { &event.param.conn };
            let remote = RemoteParam {
                qp_num: conn.qp_num,
                responder_resources: conn.responder_resources,
                initiator_depth: conn.initiator_depth,
            };
            (remote, copy_private_data(conn))
        } else {
            (RemoteParam::default(), Vec::new())
        };
        if kind == CmEventKind::CONNECT_REQUEST {
            // SAFETY: for a request librdmacm made `id` anew and nobody else knows it; the listener's id is alive until
            // the event is acknowledged.
            let request = unsafe { CmId::adopt(self, event.id) };
            // SAFETY: as above.
            let listener = unsafe { CmKey::of(event.listen_id) };
            return CmEvent {
                id: listener,
                kind,
                status: event.status,
                private_data,
                remote,
                request: Some(request),
            };
        }
        // SAFETY: an id is alive until its events are acknowledged, and `lock` is held.
        let id = unsafe { CmKey::of(event.id) };
        CmEvent {
            id,
            kind,
            status: event.status,
            private_data,
            remote,
            request: None,
        }
    }

    /// Waits for an event until `deadline`.
    ///
    /// # Errors
    /// As [`EventChannel::poll_event`].
    pub fn wait_event(self: &Arc<Self>, deadline: Instant) -> Result<Option<CmEvent>> {
        loop {
            if let Some(event) = self.poll_event()? {
                return Ok(Some(event));
            }
            let ready = wait_readable(self.as_fd(), deadline)
                .map_err(|source| Error::verb("poll", "event channel", source))?;
            if !ready {
                return Ok(None);
            }
        }
    }
}

fn copy_private_data(conn: &sys::rdma_conn_param) -> Vec<u8> {
    if conn.private_data.is_null() || conn.private_data_len == 0 {
        return Vec::new();
    }
    // SAFETY: librdmacm points to a buffer of its own of at least this length, alive until the event is acknowledged.
    let bytes = unsafe {
        std::slice::from_raw_parts(conn.private_data.cast::<u8>(), usize::from(conn.private_data_len))
    };
    bytes.to_vec()
}

impl AsFd for EventChannel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the channel is live; its descriptor never changes.
        let fd = unsafe { self.raw.as_ref() }.fd;
        // SAFETY: the descriptor is open for as long as the channel, which `self` keeps.
        unsafe { BorrowedFd::borrow_raw(fd) }
    }
}

impl Drop for EventChannel {
    fn drop(&mut self) {
        // SAFETY: made by `new`, destroyed once; ids hold an `Arc` of this, so none is left.
        unsafe { sys::rdma_destroy_event_channel(self.as_ptr()) };
    }
}
