//! Reliable connected queue pairs.
//!
//! # Safety
//! `raw` comes from `ibv_create_qp` and is destroyed once, in `Drop`; the domain and both completion queues are held by
//! `Arc` and so outlive it.
#![allow(unsafe_code)]

mod batch;
mod builder;
mod diagnose;
mod post;
mod state;

use std::mem::zeroed;
use std::ptr::NonNull;
use std::sync::Arc;

use rdma_sys as sys;

pub use batch::{RecvBatch, RemoteAddr, SendFlags, Sge, WorkBatch};
pub use builder::{QpCaps, QueuePairBuilder};

pub(crate) use state::empty_attr;
pub use state::{InitAttr, QpState, Reliability, RtrAttr, RtsAttr};

use crate::access::Access;
use crate::context::Context;
use crate::cq::CompletionQueue;
use crate::device::Mtu;
use crate::error::{Error, Result, os_result};
use crate::pd::ProtectionDomain;

/// A reliable connected queue pair (`ibv_create_qp(3)`).
///
/// All methods take `&self`: verbs locks a queue pair itself, so several threads may post and modify. Dropping it destroys
/// it: work that was still outstanding gets no completion, and from then on the device touches none of its memory.
#[derive(Debug)]
pub struct QueuePair {
    raw: NonNull<sys::ibv_qp>,
    caps: QpCaps,
    send_cq: Arc<CompletionQueue>,
    recv_cq: Arc<CompletionQueue>,
    pd: Arc<ProtectionDomain>,
}

// SAFETY: posting, modifying and querying one queue pair from several threads is allowed by verbs, which locks it; the
// type's own fields never change.
unsafe impl Send for QueuePair {}
// SAFETY: as above.
unsafe impl Sync for QueuePair {}

/// What a queue pair is now (`ibv_query_qp(3)`).
#[derive(Clone, Debug)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the names are those of struct ibv_qp_attr")]
pub struct QpAttr {
    pub state: QpState,
    /// What its peer may do.
    pub access: Access,
    pub path_mtu: Mtu,
    pub dest_qp_num: u32,
    pub timeout: u8,
    pub retry_cnt: u8,
    pub rnr_retry: u8,
    pub min_rnr_timer: u8,
    pub max_rd_atomic: u8,
    pub max_dest_rd_atomic: u8,
    pub port_num: u8,
    pub sgid_index: u8,
}

impl QueuePair {
    /// Starts making a queue pair whose send and receive completions go to the two queues (which may be one).
    pub fn builder<'a>(
        pd: &'a Arc<ProtectionDomain>,
        send_cq: &'a Arc<CompletionQueue>,
        recv_cq: &'a Arc<CompletionQueue>,
    ) -> QueuePairBuilder<'a> {
        QueuePairBuilder::new(pd, send_cq, recv_cq)
    }

    /// Its number, which completions and peers name it by.
    pub fn qp_num(&self) -> u32 {
        // SAFETY: `raw` is live until `Drop`; the number never changes.
        unsafe { (*self.raw.as_ptr()).qp_num }
    }

    /// What the device gave it, which may be more than was asked.
    pub fn caps(&self) -> &QpCaps {
        &self.caps
    }

    /// Its protection domain.
    pub fn pd(&self) -> &Arc<ProtectionDomain> {
        &self.pd
    }

    /// The device it belongs to.
    pub fn context(&self) -> &Arc<Context> {
        self.pd.context()
    }

    /// Where its send completions arrive.
    pub fn send_cq(&self) -> &Arc<CompletionQueue> {
        &self.send_cq
    }

    /// Where its receive completions arrive.
    pub fn recv_cq(&self) -> &Arc<CompletionQueue> {
        &self.recv_cq
    }

    pub(crate) fn as_ptr(&self) -> *mut sys::ibv_qp {
        self.raw.as_ptr()
    }

    /// Asks the device for its state and attributes.
    ///
    /// # Errors
    /// [`Error::Verb`] if the device is gone.
    pub fn query(&self) -> Result<QpAttr> {
        // SAFETY: `ibv_qp_attr` is integers and a union of them; all zero is a value.
        let mut attr: sys::ibv_qp_attr = unsafe { zeroed() };
        // SAFETY: `ibv_qp_init_attr` is integers and pointers; all zero is a value.
        let mut init: sys::ibv_qp_init_attr = unsafe { zeroed() };
        let mask = sys::ibv_qp_attr_mask::IBV_QP_STATE.0
            | sys::ibv_qp_attr_mask::IBV_QP_ACCESS_FLAGS.0
            | sys::ibv_qp_attr_mask::IBV_QP_AV.0;
        // SAFETY: the queue pair is live and both out-parameters are.
        let rc = unsafe { sys::ibv_query_qp(self.as_ptr(), &mut attr, mask as i32, &mut init) };
        os_result(rc)
            .map_err(|source| Error::verb("ibv_query_qp", format!("qp {:#x}", self.qp_num()), source))?;
        Ok(QpAttr {
            state: QpState(attr.qp_state),
            access: Access::from_bits(attr.qp_access_flags),
            path_mtu: Mtu(attr.path_mtu),
            dest_qp_num: attr.dest_qp_num,
            timeout: attr.timeout,
            retry_cnt: attr.retry_cnt,
            rnr_retry: attr.rnr_retry,
            min_rnr_timer: attr.min_rnr_timer,
            max_rd_atomic: attr.max_rd_atomic,
            max_dest_rd_atomic: attr.max_dest_rd_atomic,
            port_num: attr.port_num,
            sgid_index: attr.ah_attr.grh.sgid_index,
        })
    }
}

impl Drop for QueuePair {
    fn drop(&mut self) {
        // SAFETY: made by the builder, destroyed once; asynchronous events are acknowledged when they are taken, so this
        // does not wait for the caller.
        let rc = unsafe { sys::ibv_destroy_qp(self.as_ptr()) };
        if rc != 0 {
            tracing::error!(
                rc,
                qp_num = self.qp_num(),
                "ibv_destroy_qp failed; the queue pair is leaked"
            );
        }
    }
}
