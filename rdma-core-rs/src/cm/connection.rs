//! A queue pair and the id that connects it, and the steps between them.
//!
//! # Safety
//! Passes librdmacm a parameter structure on the stack whose private data lives as long as the call.
#![allow(unsafe_code)]

use std::mem::zeroed;
use std::net::SocketAddr;

use rdma_sys as sys;
use sys::ibv_qp_attr_mask as mask;

use crate::access::Access;
use crate::cm::event::RemoteParam;
use crate::cm::id::{CmId, CmKey};
use crate::device::DeviceAttr;
use crate::error::{Error, Result};
use crate::qp::{NotDestroyed, QpState, QueuePair, Reliability};

/// Most private data bytes of a connection request (the rest of its 92 is the address header).
pub const PRIVATE_DATA_CONNECT_MAX: usize = 56;
/// Most private data bytes of an acceptance.
pub const PRIVATE_DATA_ACCEPT_MAX: usize = 196;
/// Most private data bytes of a rejection.
pub const PRIVATE_DATA_REJECT_MAX: usize = 148;

/// How a connection is to be.
#[derive(Clone, Debug)]
pub struct ConnectParam {
    /// Bytes for the peer, who sees them padded with zeros.
    pub private_data: Vec<u8>,
    /// READs this side answers at a time.
    pub responder_resources: u8,
    /// READs this side asks at a time.
    pub initiator_depth: u8,
    /// Retries of this side's queue pair.
    pub reliability: Reliability,
}

impl ConnectParam {
    /// As many READs both ways as the device can, default retries, no private data.
    pub fn for_device(attr: &DeviceAttr) -> ConnectParam {
        ConnectParam {
            private_data: Vec::new(),
            responder_resources: attr.responder_resources_max(),
            initiator_depth: attr.initiator_depth_max(),
            reliability: Reliability::default(),
        }
    }

    /// Brings the depths down to what the peer offered. Its depths are already seen from this side.
    pub(crate) fn limited_by(&self, remote: &RemoteParam) -> ConnectParam {
        ConnectParam {
            responder_resources: self.responder_resources.min(remote.responder_resources),
            initiator_depth: self.initiator_depth.min(remote.initiator_depth),
            ..self.clone()
        }
    }

    pub(crate) fn check(&self, private_data_max: usize) -> Result<()> {
        check_private_data(&self.private_data, private_data_max)?;
        self.reliability.check()
    }

    /// The C structure, pointing into `self`.
    pub(crate) fn raw(&self, qp_num: u32) -> sys::rdma_conn_param {
        // SAFETY: `rdma_conn_param` is integers and a pointer; all zero is a value.
        let mut raw: sys::rdma_conn_param = unsafe { zeroed() };
        raw.private_data = self.private_data.as_ptr().cast();
        raw.private_data_len = u8::try_from(self.private_data.len()).unwrap_or(u8::MAX);
        raw.responder_resources = self.responder_resources;
        raw.initiator_depth = self.initiator_depth;
        raw.retry_count = self.reliability.retry_cnt;
        raw.rnr_retry_count = self.reliability.rnr_retry;
        raw.qp_num = qp_num;
        raw
    }
}

pub(crate) fn check_private_data(data: &[u8], max: usize) -> Result<()> {
    if data.len() <= max {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "private data of {} bytes: the connection manager carries {max} here",
        data.len()
    )))
}

/// To INIT, with the rights the caller named and no others.
pub(crate) fn to_init(id: &CmId, qp: &QueuePair, access: Access) -> Result<()> {
    access.check_for_qp()?;
    let device = id.device_name()?;
    if qp.context().name() != device {
        return Err(Error::invalid(format!(
            "the queue pair is on {} and the connection on {device}",
            qp.context().name()
        )));
    }
    let (mut attr, bits) = id.qp_attr(QpState::INIT)?;
    attr.qp_access_flags = access.bits();
    qp.modify(&mut attr, bits | mask::IBV_QP_ACCESS_FLAGS.0)
}

/// To RTR and RTS, with the caller's depths and retries instead of the connection manager's.
pub(crate) fn to_rts(id: &CmId, qp: &QueuePair, param: &ConnectParam) -> Result<()> {
    let (mut attr, bits) = id.qp_attr(QpState::RTR)?;
    attr.max_dest_rd_atomic = param.responder_resources;
    attr.min_rnr_timer = param.reliability.min_rnr_timer;
    // Never the rights: those of INIT stand.
    qp.modify(&mut attr, bits & !mask::IBV_QP_ACCESS_FLAGS.0)?;
    let (mut attr, bits) = id.qp_attr(QpState::RTS)?;
    attr.max_rd_atomic = param.initiator_depth;
    attr.timeout = param.reliability.timeout;
    attr.retry_cnt = param.reliability.retry_cnt;
    attr.rnr_retry = param.reliability.rnr_retry;
    qp.modify(&mut attr, bits & !mask::IBV_QP_ACCESS_FLAGS.0)
}

/// A connected queue pair. Dropping it destroys the queue pair first (nothing touches memory from then on), then the id;
/// the peer gets DISCONNECTED.
#[derive(Debug)]
pub struct Connection {
    // The order matters: fields are dropped from top to bottom.
    qp: QueuePair,
    id: CmId,
    remote: RemoteParam,
    initiator_depth: u8,
}

impl Connection {
    pub(crate) fn new(qp: QueuePair, id: CmId, remote: RemoteParam, initiator_depth: u8) -> Connection {
        Connection {
            qp,
            id,
            remote,
            initiator_depth,
        }
    }

    /// The queue pair.
    pub fn qp(&self) -> &QueuePair {
        &self.qp
    }

    /// What events call it.
    pub fn key(&self) -> CmKey {
        self.id.key()
    }

    /// The id, for addresses and for [`CmId::channel`].
    pub fn id(&self) -> &CmId {
        &self.id
    }

    /// The id, to [`CmId::migrate`] it.
    pub fn id_mut(&mut self) -> &mut CmId {
        &mut self.id
    }

    /// The other end.
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        self.id.peer_addr()
    }

    /// What the peer said about itself.
    pub fn remote(&self) -> RemoteParam {
        self.remote
    }

    /// READs that this side may have outstanding; more wait in the queue pair.
    pub fn initiator_depth(&self) -> u8 {
        self.initiator_depth
    }

    /// Stops the queue pair (outstanding work completes as `WR_FLUSH_ERR`) and tells the peer.
    ///
    /// # Errors
    /// The first that occurred; the queue pair is stopped even if the peer could not be told.
    pub fn disconnect(&self) -> Result<()> {
        let stopped = self.qp.to_error();
        let told = self.id.disconnect();
        stopped.and(told)
    }

    /// Destroys the queue pair, then the id; the peer gets DISCONNECTED.
    ///
    /// # Errors
    /// As [`QueuePair::destroy`], with all of the connection; the peer is told of the end if that can be.
    pub fn destroy(self) -> std::result::Result<(), Box<NotDestroyed<Self>>> {
        let Self {
            qp,
            id,
            remote,
            initiator_depth,
        } = self;
        qp.destroy().map_err(|refused| {
            let NotDestroyed { live, error } = *refused;
            if let Err(error) = id.disconnect() {
                tracing::debug!(%error, "the peer could not be told of the end");
            }
            Box::new(NotDestroyed {
                live: Self::new(live, id, remote, initiator_depth),
                error,
            })
        })
    }
}
