//! rdma-core-rs
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
    InitAttr, QpAttr, QpCaps, QpState, QueuePair, QueuePairBuilder, RecvBatch, Reliability, RemoteAddr,
    RtrAttr, RtsAttr, SendFlags, Sge, WorkBatch,
};
pub use wc::{WcOpcode, WcStatus, WorkCompletion};
