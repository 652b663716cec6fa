//! An open device.
//!
//! # Safety
//! `raw` comes from `ibv_open_device` and is closed once, when the last owner is gone; every object made from a context
//! holds an `Arc` of it, so none outlives it.
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::io;
use std::mem::{MaybeUninit, zeroed};
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Instant;

use rdma_sys as sys;

use crate::async_event::{AsyncElement, AsyncEvent, AsyncEventKind};
use crate::device::{DeviceAttr, DeviceInfo, DeviceList, PortAttr, info, interface_name};
use crate::error::{Error, Result, os_result};
use crate::gid::{Gid, GidChoice, GidEntry, GidType, select_gid};
use crate::poll::{set_nonblocking, wait_readable};

/// Most used lines of a GID table that are read: the kernel's interface describes its answer's size in 16 bits.
const GID_TABLE_MAX: usize = u16::MAX as usize / size_of::<sys::ibv_gid_entry>();

/// An open device (`ibv_open_device(3)`), closed when the last object made from it is gone.
#[derive(Debug)]
pub struct Context {
    raw: NonNull<sys::ibv_context>,
    info: DeviceInfo,
}

// SAFETY: verbs calls on a context may be made from any thread (ibv verbs are thread safe, see the "MULTI-THREADING"
// part of the rdma-core documentation); this type adds no unsynchronised state.
unsafe impl Send for Context {}
// SAFETY: as above; all methods take `&self` and leave locking to the library.
unsafe impl Sync for Context {}

/// `struct ibv_async_event` with its kind as a plain number: the bindings' enum would be undefined for a kind they do not know.
#[repr(C)]
struct RawAsyncEvent {
    element: sys::ibv_async_event_element_t,
    event_type: u32,
}

const _: () = {
    assert!(size_of::<RawAsyncEvent>() == size_of::<sys::ibv_async_event>());
    assert!(align_of::<RawAsyncEvent>() == align_of::<sys::ibv_async_event>());
};

impl Context {
    /// Opens the device of this name anew.
    ///
    /// # Errors
    /// [`Error::LibraryMissing`], [`Error::NoDevice`], [`Error::DeviceNotFound`], or [`Error::Verb`] if it refuses
    /// (EACCES: no permission on `/dev/infiniband/uverbs*`).
    pub fn open(name: &str) -> Result<Arc<Context>> {
        let list = DeviceList::new()?;
        let device = list.find(name)?;
        // SAFETY: `device` is in `list`, which is alive; the context keeps what it needs of it.
        let raw = unsafe { sys::ibv_open_device(device.as_ptr()) };
        let Some(raw) = NonNull::new(raw) else {
            let what = format!(
                "{name}; it takes reading and writing /dev/infiniband/{}",
                info(device).uverbs_name
            );
            return Err(Error::verb("ibv_open_device", what, io::Error::last_os_error()));
        };
        let context = Context {
            raw,
            info: info(device),
        };
        set_nonblocking(context.async_fd()).map_err(|source| Error::verb("fcntl", "async_fd", source))?;
        Ok(Arc::new(context))
    }

    /// The process-wide context of this device: opened by the first caller, the same for all while anyone holds it.
    ///
    /// Connections use this one ([`CmId::context`](crate::cm::CmId::context)), so memory registered on it before any
    /// connection exists serves them all. A cached context whose device has been unplugged is not handed out again.
    ///
    /// # Errors
    /// As [`Context::open`].
    pub fn shared(name: &str) -> Result<Arc<Context>> {
        static OPEN: Mutex<Option<HashMap<String, Weak<Context>>>> = Mutex::new(None);
        let mut guard = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        let open = guard.get_or_insert_default();
        open.retain(|_, context| context.strong_count() > 0);
        if let Some(context) = open.get(name).and_then(Weak::upgrade)
            && context.query_device().is_ok()
        {
            return Ok(context);
        }
        let context = Context::open(name)?;
        open.insert(name.to_owned(), Arc::downgrade(&context));
        Ok(context)
    }

    /// Name of the device.
    pub fn name(&self) -> &str {
        &self.info.name
    }

    /// What identifies the device.
    pub fn info(&self) -> &DeviceInfo {
        &self.info
    }

    pub(crate) fn as_ptr(&self) -> *mut sys::ibv_context {
        self.raw.as_ptr()
    }

    /// True if both are the very same open device: objects of one cannot be used with those of another.
    pub fn is_same(self: &Arc<Self>, other: &Arc<Context>) -> bool {
        Arc::ptr_eq(self, other)
    }

    /// Asks what the device can do (`ibv_query_device_ex(3)`).
    ///
    /// # Errors
    /// [`Error::Verb`] if the device is gone.
    pub fn query_device(&self) -> Result<DeviceAttr> {
        // SAFETY: `ibv_device_attr_ex` is integers and arrays of them; all zero is a value, and what an old library does
        // not fill stays zero.
        let mut attr: sys::ibv_device_attr_ex = unsafe { zeroed() };
        // SAFETY: the context is open while `self` lives; `attr` is a live out-parameter; a null input is allowed.
        let rc = unsafe { sys::ibv_query_device_ex(self.as_ptr(), std::ptr::null(), &mut attr) };
        os_result(rc).map_err(|source| Error::verb("ibv_query_device_ex", self.name(), source))?;
        Ok(DeviceAttr::from_raw(&attr))
    }

    /// Asks how a port (counted from 1) is (`ibv_query_port(3)`).
    ///
    /// # Errors
    /// [`Error::Verb`] if there is no such port.
    pub fn query_port(&self, port_num: u8) -> Result<PortAttr> {
        // SAFETY: `ibv_port_attr` is integers only; all zero is a value.
        let mut attr: sys::ibv_port_attr = unsafe { zeroed() };
        // SAFETY: the context is open while `self` lives; `attr` is a live out-parameter.
        let rc = unsafe { sys::ibv_query_port(self.as_ptr(), port_num, &mut attr) };
        os_result(rc).map_err(|source| {
            Error::verb(
                "ibv_query_port",
                format!("{} port {port_num}", self.name()),
                source,
            )
        })?;
        Ok(PortAttr::from_raw(&attr))
    }

    /// Every used line of the device's GID table, all ports (`ibv_query_gid_table(3)`).
    ///
    /// # Errors
    /// [`Error::Verb`] if the table cannot be read.
    pub fn gid_table(&self) -> Result<Vec<GidEntry>> {
        let mut raw: Vec<MaybeUninit<sys::ibv_gid_entry>> = Vec::new();
        raw.resize_with(GID_TABLE_MAX, MaybeUninit::zeroed);
        let entry_size = size_of::<sys::ibv_gid_entry>();
        // SAFETY: `raw` has room for GID_TABLE_MAX entries of `entry_size` bytes; the context is open.
        let found = unsafe {
            sys::_ibv_query_gid_table(
                self.as_ptr(),
                raw.as_mut_ptr().cast(),
                GID_TABLE_MAX,
                0,
                entry_size,
            )
        };
        if found < 0 {
            let source = io::Error::from_raw_os_error(i32::try_from(-found).unwrap_or(libc::EIO));
            return Err(Error::verb("ibv_query_gid_table", self.name(), source));
        }
        raw.truncate(usize::try_from(found).unwrap_or(0));
        Ok(raw.iter().filter_map(gid_entry).collect())
    }

    /// Reads the GID table and picks the line to use; see [`select_gid`].
    ///
    /// # Errors
    /// As [`Context::gid_table`], and [`Error::NoGid`].
    pub fn choose_gid(&self, port_num: u8, address: Option<std::net::IpAddr>) -> Result<GidChoice> {
        select_gid(&self.gid_table()?, port_num, address)
    }

    /// The descriptor that becomes readable when an asynchronous event waits.
    pub fn async_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: `raw` is an open context; `async_fd` is set when it is opened and never changes.
        let fd = unsafe { (*self.raw.as_ptr()).async_fd };
        // SAFETY: the descriptor is open for as long as the context, which `self` keeps.
        unsafe { BorrowedFd::borrow_raw(fd) }
    }

    /// Takes the next asynchronous event, if one waits; never blocks.
    ///
    /// The event is acknowledged before this returns, so the destruction of what it names never waits for the caller
    /// (`ibv_destroy_qp` and `ibv_destroy_cq` wait for every event that was handed out).
    ///
    /// # Errors
    /// [`Error::Verb`] if the device is gone.
    pub fn poll_async_event(&self) -> Result<Option<AsyncEvent>> {
        let mut raw = RawAsyncEvent {
            element: sys::ibv_async_event_element_t { port_num: 0 },
            event_type: 0,
        };
        let event: *mut sys::ibv_async_event = (&raw mut raw).cast();
        // SAFETY: `event` points to a live struct of the C type's size and layout (asserted above); the descriptor does
        // not block, so the call returns at once.
        let rc = unsafe { sys::ibv_get_async_event(self.as_ptr(), event) };
        if rc != 0 {
            let source = io::Error::last_os_error();
            if source.kind() == io::ErrorKind::WouldBlock {
                return Ok(None);
            }
            return Err(Error::verb("ibv_get_async_event", self.name(), source));
        }
        let answer = AsyncEvent {
            kind: AsyncEventKind(raw.event_type),
            element: element(&raw),
        };
        // SAFETY: `event` was filled by a successful `ibv_get_async_event` and is acknowledged once, here.
        unsafe { sys::ibv_ack_async_event(event) };
        Ok(Some(answer))
    }

    /// Waits for an asynchronous event until `deadline`.
    ///
    /// # Errors
    /// As [`Context::poll_async_event`].
    pub fn wait_async_event(&self, deadline: Instant) -> Result<Option<AsyncEvent>> {
        loop {
            if let Some(event) = self.poll_async_event()? {
                return Ok(Some(event));
            }
            let ready = wait_readable(self.async_fd(), deadline)
                .map_err(|source| Error::verb("poll", "async_fd", source))?;
            if !ready {
                return Ok(None);
            }
        }
    }
}

/// Reads whom an event is about, before it is acknowledged: until then the object's memory stays.
fn element(raw: &RawAsyncEvent) -> AsyncElement {
    match AsyncEventKind(raw.event_type) {
        AsyncEventKind::CQ_ERR => {
            // SAFETY: for this kind the library filled the `cq` member.
            let cq = unsafe { raw.element.cq };
            // SAFETY: an event that is not acknowledged keeps its object from being freed; `cq_context` is the key that
            // `CompletionQueue` put there and nothing changes it.
            let key = unsafe { (*cq).cq_context };
            AsyncElement::CompletionQueue(key.addr() as u64)
        }
        AsyncEventKind::QP_FATAL
        | AsyncEventKind::QP_REQ_ERR
        | AsyncEventKind::QP_ACCESS_ERR
        | AsyncEventKind::COMM_EST
        | AsyncEventKind::SQ_DRAINED
        | AsyncEventKind::PATH_MIG
        | AsyncEventKind::PATH_MIG_ERR
        | AsyncEventKind::QP_LAST_WQE_REACHED => {
            // SAFETY: for these kinds the library filled the `qp` member.
            let qp = unsafe { raw.element.qp };
            // SAFETY: an event that is not acknowledged keeps its object from being freed; the number never changes.
            AsyncElement::QueuePair(unsafe { (*qp).qp_num })
        }
        AsyncEventKind::PORT_ACTIVE
        | AsyncEventKind::PORT_ERR
        | AsyncEventKind::LID_CHANGE
        | AsyncEventKind::PKEY_CHANGE
        | AsyncEventKind::SM_CHANGE
        | AsyncEventKind::CLIENT_REREGISTER
        | AsyncEventKind::GID_CHANGE => {
            // SAFETY: for these kinds the library filled the `port_num` member.
            let port = unsafe { raw.element.port_num };
            AsyncElement::Port(u8::try_from(port).unwrap_or(0))
        }
        AsyncEventKind::DEVICE_FATAL => AsyncElement::Device,
        _ => AsyncElement::Other,
    }
}

fn gid_entry(raw: &MaybeUninit<sys::ibv_gid_entry>) -> Option<GidEntry> {
    // SAFETY: every entry started as zeros and the library writes whole entries; all fields take any bit pattern.
    let raw = unsafe { raw.assume_init_ref() };
    // SAFETY: `raw` is the byte view of the union, valid for any contents.
    let bytes = unsafe { raw.gid.raw };
    Some(GidEntry {
        gid: Gid(bytes),
        index: u8::try_from(raw.gid_index).ok()?,
        port_num: u8::try_from(raw.port_num).ok()?,
        kind: GidType(raw.gid_type),
        netdev: (raw.ndev_ifindex != 0)
            .then(|| interface_name(raw.ndev_ifindex))
            .flatten(),
    })
}

impl AsFd for Context {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.async_fd()
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: opened by `Context::open`, closed once, and every child holds an `Arc` of this, so none is left.
        let rc = unsafe { sys::ibv_close_device(self.as_ptr()) };
        if rc != 0 {
            tracing::error!(
                device = self.name(),
                rc,
                "ibv_close_device failed; the context is leaked"
            );
        }
    }
}
