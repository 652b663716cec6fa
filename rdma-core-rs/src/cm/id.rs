//! One end of a connection, or a listener: the connection manager's own object.
//!
//! # Safety
//! `raw` comes from `rdma_create_id` or from a connection request and is destroyed once, in `Drop`. Every read or call on
//! it happens under the lock of its channel, because librdmacm writes its fields while events are taken. Its `context`
//! field holds a number, never a pointer.
#![allow(unsafe_code)]

use std::io;
use std::net::SocketAddr;
use std::ptr::{NonNull, null_mut, without_provenance_mut};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rdma_sys as sys;

use crate::cm::addr::{SockAddr, from_storage};
use crate::cm::channel::EventChannel;
use crate::context::Context;
use crate::device::info;
use crate::error::{Error, Result};
use crate::qp::QpState;

/// Names an id in events; never used twice in a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CmKey(pub u64);

impl CmKey {
    fn fresh() -> CmKey {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        CmKey(NEXT.fetch_add(1, Ordering::Relaxed))
    }

    fn cookie(self) -> *mut std::ffi::c_void {
        without_provenance_mut(self.0 as usize)
    }

    /// # Safety
    /// `id` is alive, and the lock of its channel is held.
    pub(crate) unsafe fn of(id: *const sys::rdma_cm_id) -> CmKey {
        // SAFETY: alive by the caller's promise.
        CmKey(unsafe { (*id).context }.addr() as u64)
    }
}

/// A connection manager id (`rdma_create_id(3)`) of the TCP port space. [`Connector`](crate::cm::Connector) and
/// [`Listener`](crate::cm::Listener) are made of it.
#[derive(Debug)]
pub struct CmId {
    raw: NonNull<sys::rdma_cm_id>,
    key: CmKey,
    channel: Arc<EventChannel>,
}

// SAFETY: every access to the raw id is under the lock of its channel.
unsafe impl Send for CmId {}
// SAFETY: as above.
unsafe impl Sync for CmId {}

impl CmId {
    /// Makes an id whose events go to `channel`.
    ///
    /// # Errors
    /// [`Error::Verb`] if the kernel refuses.
    pub fn new(channel: &Arc<EventChannel>) -> Result<CmId> {
        let key = CmKey::fresh();
        let mut raw = null_mut();
        let guard = channel.guard();
        let space = sys::rdma_port_space::RDMA_PS_TCP;
        // SAFETY: the channel is live; `raw` is a live out-parameter; the cookie is a number that nobody follows.
        let rc = unsafe { sys::rdma_create_id(channel.as_ptr(), &mut raw, key.cookie(), space) };
        drop(guard);
        match NonNull::new(raw) {
            Some(raw) if rc == 0 => Ok(CmId {
                raw,
                key,
                channel: channel.clone(),
            }),
            _ => Err(Error::verb(
                "rdma_create_id",
                "tcp port space",
                io::Error::last_os_error(),
            )),
        }
    }

    /// Takes over the id that a connection request brought.
    ///
    /// # Safety
    /// `raw` is a live id of `channel` that nobody else owns or will destroy, and the lock of `channel` is held.
    pub(crate) unsafe fn adopt(channel: &Arc<EventChannel>, raw: *mut sys::rdma_cm_id) -> CmId {
        let key = CmKey::fresh();
        // SAFETY: alive and ours by the caller's promise; `context` is for the user of the library.
        unsafe { (*raw).context = key.cookie() };
        // SAFETY: a live id is not null.
        let raw = unsafe { NonNull::new_unchecked(raw) };
        CmId {
            raw,
            key,
            channel: channel.clone(),
        }
    }

    /// What events call it.
    pub fn key(&self) -> CmKey {
        self.key
    }

    /// Where its events arrive.
    pub fn channel(&self) -> &Arc<EventChannel> {
        &self.channel
    }

    /// Runs a librdmacm call on the id, under the channel's lock, and names it if it fails.
    pub(crate) fn call(
        &self,
        name: &'static str,
        what: impl FnOnce() -> String,
        call: impl FnOnce(*mut sys::rdma_cm_id) -> i32,
    ) -> Result<()> {
        let guard = self.channel.guard();
        let rc = call(self.raw.as_ptr());
        let source = io::Error::last_os_error();
        drop(guard);
        if rc == 0 {
            Ok(())
        } else {
            Err(Error::verb(name, what(), source))
        }
    }

    /// Moves its events, also those not taken yet, to another channel.
    ///
    /// # Errors
    /// [`Error::Verb`] if the kernel refuses.
    pub fn migrate(&mut self, channel: &Arc<EventChannel>) -> Result<()> {
        if Arc::ptr_eq(&self.channel, channel) {
            return Ok(());
        }
        // Always in the order of addresses, so that two opposite moves cannot wait for each other.
        let (first, second) = if Arc::as_ptr(&self.channel) < Arc::as_ptr(channel) {
            (&self.channel, channel)
        } else {
            (channel, &self.channel)
        };
        let guards = (first.guard(), second.guard());
        // SAFETY: id and channel are live, both locks are held, and no event of the id is unacknowledged.
        let rc = unsafe { sys::rdma_migrate_id(self.raw.as_ptr(), channel.as_ptr()) };
        let source = io::Error::last_os_error();
        drop(guards);
        if rc != 0 {
            return Err(Error::verb("rdma_migrate_id", "event channel", source));
        }
        self.channel = channel.clone();
        Ok(())
    }

    /// Binds to a local address; port 0 lets the kernel choose one.
    ///
    /// # Errors
    /// [`Error::Verb`]: EADDRINUSE if the port is taken, EADDRNOTAVAIL or ENODEV if no RDMA device has the address.
    pub fn bind(&self, address: SocketAddr) -> Result<()> {
        let mut raw_address = SockAddr::new(&address);
        self.call(
            "rdma_bind_addr",
            || address.to_string(),
            |id| {
                // SAFETY: the id is live and locked; the address lives on the stack during the call.
                unsafe { sys::rdma_bind_addr(id, raw_address.as_mut_ptr()) }
            },
        )
    }

    /// Starts listening; requests that nobody took are refused beyond `backlog`.
    ///
    /// # Errors
    /// [`Error::Verb`]: EADDRINUSE if somebody else listens there.
    pub fn listen(&self, backlog: u32) -> Result<()> {
        let backlog = i32::try_from(backlog).unwrap_or(i32::MAX);
        self.call(
            "rdma_listen",
            || format!("backlog {backlog}"),
            |id| {
                // SAFETY: the id is live and locked.
                unsafe { sys::rdma_listen(id, backlog) }
            },
        )
    }

    /// Starts finding the device and address that lead to `peer`; ends with ADDR_RESOLVED or ADDR_ERROR.
    ///
    /// # Errors
    /// [`Error::Verb`] if there is no route at all or no RDMA device behind it.
    pub fn resolve_addr(
        &self,
        source: Option<SocketAddr>,
        peer: SocketAddr,
        timeout: Duration,
    ) -> Result<()> {
        let mut raw_source = source.as_ref().map(SockAddr::new);
        let mut raw_peer = SockAddr::new(&peer);
        let source_ptr = raw_source.as_mut().map_or(null_mut(), SockAddr::as_mut_ptr);
        self.call(
            "rdma_resolve_addr",
            || peer.to_string(),
            |id| {
                // SAFETY: the id is live and locked; the addresses live on the stack during the call; a null source is allowed.
                unsafe {
                    sys::rdma_resolve_addr(id, source_ptr, raw_peer.as_mut_ptr(), milliseconds(timeout))
                }
            },
        )
    }

    /// Starts finding the path; ends with ROUTE_RESOLVED or ROUTE_ERROR.
    ///
    /// # Errors
    /// [`Error::Verb`] if the address is not resolved.
    pub fn resolve_route(&self, timeout: Duration) -> Result<()> {
        self.call(
            "rdma_resolve_route",
            || format!("timeout {timeout:?}"),
            |id| {
                // SAFETY: the id is live and locked.
                unsafe { sys::rdma_resolve_route(id, milliseconds(timeout)) }
            },
        )
    }

    /// Ends the connection; the peer gets DISCONNECTED. The queue pair is the caller's to stop.
    ///
    /// # Errors
    /// [`Error::Verb`] if there is no connection.
    pub fn disconnect(&self) -> Result<()> {
        self.call(
            "rdma_disconnect",
            || format!("id {}", self.key.0),
            |id| {
                // SAFETY: the id is live and locked; it has no queue pair of librdmacm's.
                unsafe { sys::rdma_disconnect(id) }
            },
        )
    }

    /// This side's address, once bound or resolved.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        let _guard = self.channel.guard();
        // SAFETY: the id is live and locked.
        let route = unsafe { &(*self.raw.as_ptr()).route };
        // SAFETY: every member of the union is an address; the storage is the largest and valid for any bytes.
        from_storage(unsafe { &route.addr.src_addr_union.src_storage })
    }

    /// The other side's address, once known.
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        let _guard = self.channel.guard();
        // SAFETY: the id is live and locked.
        let route = unsafe { &(*self.raw.as_ptr()).route };
        // SAFETY: every member of the union is an address; the storage is the largest and valid for any bytes.
        from_storage(unsafe { &route.addr.dst_addr_union.dst_storage })
    }

    /// The device port it uses, from 1; 0 while it has none.
    pub fn port_num(&self) -> u8 {
        let _guard = self.channel.guard();
        // SAFETY: the id is live and locked.
        unsafe { (*self.raw.as_ptr()).port_num }
    }

    /// The open device to make domains, memory and queue pairs on: [`Context::shared`] of the id's device.
    ///
    /// librdmacm opens devices too, but closes them when it sees fit; a queue pair may be made through any open of the
    /// same device, so this crate uses its own.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] while no device is chosen (a listener on all addresses never has one), and as
    /// [`Context::shared`].
    pub fn context(&self) -> Result<Arc<Context>> {
        Context::shared(&self.device_name()?)
    }

    /// Name of the device it uses.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] while no device is chosen.
    pub fn device_name(&self) -> Result<String> {
        let _guard = self.channel.guard();
        // SAFETY: the id is live and locked.
        let verbs = unsafe { (*self.raw.as_ptr()).verbs };
        let unbound = || {
            Error::invalid(
                "the id is not bound to a device yet (resolve it, or bind it to the address of one)",
            )
        };
        let verbs = NonNull::new(verbs).ok_or_else(unbound)?;
        // SAFETY: an id bound to a device keeps librdmacm's context of it open.
        let device = unsafe { verbs.as_ref() }.device;
        NonNull::new(device)
            .map(|device| info(device).name)
            .ok_or_else(unbound)
    }

    /// Asks which attributes a queue pair needs for the step to `state` (`rdma_init_qp_attr(3)`).
    pub(crate) fn qp_attr(&self, state: QpState) -> Result<(sys::ibv_qp_attr, u32)> {
        let mut attr = crate::qp::empty_attr();
        attr.qp_state = state.0;
        let mut bits = 0;
        self.call(
            "rdma_init_qp_attr",
            || format!("state {state}"),
            |id| {
                // SAFETY: the id is live and locked; both out-parameters are live.
                unsafe { sys::rdma_init_qp_attr(id, &mut attr, &mut bits) }
            },
        )?;
        Ok((attr, bits as u32))
    }
}

fn milliseconds(timeout: Duration) -> i32 {
    i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX).max(1)
}

impl Drop for CmId {
    fn drop(&mut self) {
        let guard = self.channel.guard();
        // SAFETY: destroyed once; all its events that were taken are acknowledged, so this does not wait for them.
        let rc = unsafe { sys::rdma_destroy_id(self.raw.as_ptr()) };
        drop(guard);
        if rc != 0 {
            tracing::error!(rc, id = self.key.0, "rdma_destroy_id failed; the id is leaked");
        }
    }
}
