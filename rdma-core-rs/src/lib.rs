//! Safe Rust over libibverbs and librdmacm: devices, memory, reliable connections, one-sided READs and WRITEs.
//!
//! Both libraries are opened when the program runs. Where they are missing every entry point answers
//! [`Error::LibraryMissing`], so a program that links this crate starts on any machine.
//!
//! # Quick start
//!
//! A server that lets its peers read one buffer and tells them where it is:
//!
//! ```no_run
//! use std::time::{Duration, Instant};
//! use rdma_core_rs::cm::{CmEventKind, ConnectParam, EventChannel, Listener};
//! use rdma_core_rs::{Access, Buffer, CompletionQueue, ProtectionDomain, QueuePair, Result};
//!
//! fn serve() -> Result<()> {
//!     let channel = EventChannel::new()?;
//!     let listener = Listener::bind(&channel, "10.0.2.15:7471".parse().unwrap(), 16)?;
//!     let context = listener.context()?; // known before anyone connects
//!     let pd = ProtectionDomain::new(&context)?;
//!     let cq = CompletionQueue::new(&context, 64, None)?;
//!     let memory = pd.register(Buffer::new(4096)?, Access::REMOTE_READ)?; // what is granted is spelled out
//!     let param = ConnectParam {
//!         private_data: [memory.addr().to_le_bytes().as_slice(), &memory.rkey().0.to_le_bytes()].concat(),
//!         ..ConnectParam::for_device(&context.query_device()?)
//!     };
//!     let mut connections = Vec::new();
//!     while let Some(event) = channel.wait_event(Instant::now() + Duration::from_secs(60))? {
//!         let (kind, id) = (event.kind(), event.id());
//!         if let Some(request) = event.into_request() {
//!             let qp = QueuePair::builder(&pd, &cq, &cq).build()?;
//!             connections.push(request.attach(qp, Access::REMOTE_READ)?.accept(&param)?);
//!         } else if kind == CmEventKind::DISCONNECTED {
//!             connections.retain(|connection| connection.key() != id);
//!         }
//!     }
//!     Ok(())
//! }
//! ```
//!
//! A client that reads it:
//!
//! ```no_run
//! use std::time::{Duration, Instant};
//! use rdma_core_rs::cm::{ConnectParam, resolve};
//! use rdma_core_rs::{
//!     Access, Buffer, CompletionQueue, ProtectionDomain, QueuePair, RemoteAddr, Result, Rkey, SendFlags, WorkBatch,
//!     WorkCompletion,
//! };
//!
//! fn fetch() -> Result<Vec<u8>> {
//!     let deadline = Instant::now() + Duration::from_secs(5);
//!     let mut connector = resolve("10.0.2.15:7471".parse().unwrap(), None, deadline)?;
//!     let context = connector.context()?;
//!     let pd = ProtectionDomain::new(&context)?;
//!     let cq = CompletionQueue::new(&context, 64, None)?;
//!     let sink = pd.register(Buffer::new(4096)?, Access::LOCAL_WRITE)?;
//!     connector.attach(QueuePair::builder(&pd, &cq, &cq).build()?, Access::NONE)?;
//!     let param = ConnectParam::for_device(&context.query_device()?);
//!     let (connection, reply) = connector.connect_blocking(&param, deadline)?;
//!     let from = RemoteAddr {
//!         addr: u64::from_le_bytes(reply[..8].try_into().unwrap()),
//!         rkey: Rkey(u32::from_le_bytes(reply[8..12].try_into().unwrap())),
//!     };
//!     let mut batch = WorkBatch::with_capacity(1, 1);
//!     batch.read(1, from, &[sink.sge(0, 4096)?], SendFlags::SIGNALED);
//!     // SAFETY: `sink` is kept, and not looked at, until the completion below.
//!     unsafe { connection.qp().post_send(&mut batch)? };
//!     let mut slots = [WorkCompletion::default(); 4];
//!     loop {
//!         if let [completion, ..] = cq.poll(&mut slots)? {
//!             assert!(completion.status().is_success(), "read failed: {}", completion.status());
//!             return sink.memory().to_vec(0, 4096);
//!         }
//!     }
//! }
//! ```
//!
//! # What is here
//!
//! | For | Use |
//! | --- | --- |
//! | which devices there are, what they and their ports can do | [`devices`], [`Context::query_device`], [`Context::query_port`] |
//! | the GID that will be used, and why | [`Context::choose_gid`], [`select_gid`]: a [`GidChoice`] prints as one line |
//! | ports going down, queues breaking | [`Context::async_fd`], [`Context::poll_async_event`] |
//! | memory | [`ProtectionDomain::register`] with an [`Access`]; [`Buffer`] or your own [`Registrable`]; [`ProtectionDomain::register_dmabuf`] |
//! | completions | [`CompletionQueue::poll`] into your own array; [`CompletionQueue::arm`] and a [`CompletionChannel`] to sleep |
//! | work | [`WorkBatch`] and [`RecvBatch`], [`QueuePair::post_send`], [`QueuePair::post_recv`] |
//! | connections by address | [`cm`] |
//! | connections by hand | [`QueuePair::to_init`], [`QueuePair::to_rtr`], [`QueuePair::to_rts`] |
//!
//! # Safety model
//!
//! - A device writes memory that Rust does not see. Memory that may be registered is therefore [`Registrable`], an unsafe
//!   trait, and nothing here hands out `&[u8]` over it: [`Buffer`] copies in and out.
//! - Registering is safe: the region owns what keeps the memory mapped, and deregisters first. The keys of a region that
//!   is gone are refused by the device: a peer gets [`WcStatus::REM_ACCESS_ERR`].
//! - Posting is unsafe, because the work outlives the call. The caller keeps the memory registered, mapped and unaliased
//!   until the completion, or until the queue pair is destroyed, after which the device touches nothing.
//! - A queue pair gives its peer the rights named when it was attached and no others. A connection made by librdmacm's
//!   own path would have REMOTE_WRITE as well; here the steps are made by hand.
//! - Values that come from a device or a peer are newtypes over integers ([`WcStatus`], [`cm::CmEventKind`], ...): one that
//!   is not known prints as a number.
//!
//! # Thread safety
//!
//! Every type here is `Send` and `Sync`. Verbs objects lock themselves, so posting, polling, modifying and registering
//! may happen from any thread; which thread gets a completion is then open. librdmacm writes an id's fields while events
//! are taken, so all uses of the ids of one [`cm::EventChannel`] take that channel's lock; none of them waits inside it.
//!
//! # Resource cleanup
//!
//! Children hold their parents: a queue pair its domain and queues, a region its domain, a queue its channel, all of them
//! the open device. So drop in any order; nothing is destroyed while something needs it. Events of every kind (asynchronous,
//! completion, connection) are copied and acknowledged when they are taken, so no destruction waits for one. `Drop` logs
//! and leaks if the kernel refuses; [`MemoryRegion::deregister`] tells, and gives the memory back.
//!
//! # Limits
//!
//! Retries always end: [`Reliability`] refuses counts that some device takes for endless, and timeouts below 67 ms. Private data is
//! at most 56 bytes with a request, 196 with an acceptance, 148 with a rejection, and arrives padded with zeros. Only
//! reliable connections over InfiniBand and RoCE are here (not iWARP); no shared receive queues, no atomics, no memory windows, no multicast.

mod access;
mod async_event;
mod buf;
pub mod cm;
mod context;
mod cq;
mod device;
mod error;
mod gid;
mod library;
mod mr;
mod pd;
mod poll;
mod qp;
mod wc;

pub use access::Access;
pub use async_event::{AsyncElement, AsyncEvent, AsyncEventKind};
pub use buf::{Buffer, RawRange, Registrable};
pub use context::Context;
pub use cq::{CompletionChannel, CompletionQueue};
pub use device::{DeviceAttr, DeviceInfo, LinkLayer, Mtu, OdpCaps, PortAttr, PortState, devices};
pub use error::{Error, Result};
pub use gid::{Gid, GidChoice, GidEntry, GidReason, GidType, select_gid};
pub use library::{Library, require};
pub use mr::{DmaBuf, Lkey, MemoryRegion, Rkey};
pub use pd::ProtectionDomain;
pub use poll::wait_readable;
pub use qp::{
    InitAttr, NotDestroyed, QpAttr, QpCaps, QpState, QueuePair, QueuePairBuilder, RecvBatch, Reliability,
    RemoteAddr, RtrAttr, RtsAttr, SendFlags, Sge, WorkBatch,
};
pub use wc::{WcOpcode, WcStatus, WorkCompletion};
