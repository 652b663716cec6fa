//! Reliable connected queue pairs.
//!
//! # Safety
//! `raw` comes from `ibv_create_qp` and is destroyed once, in `Drop` or before it in `destroy`; the domain and both
//! completion queues are held by `Arc` and so outlive it.
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
/// it: work that was still outstanding gets no completion, and from then on the device touches none of its memory. Who
/// must know that it is gone calls [`QueuePair::destroy`]: a drop that the device refuses only logs it.
#[derive(Debug)]
pub struct QueuePair {
    raw: NonNull<sys::ibv_qp>,
    destroyed: bool,
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

/// Times that the device is asked to destroy a queue pair before that counts as refused.
const DESTROY_TRIES: u32 = 3;

/// The device refused to destroy it: it lives on, and its peer may still have what its rights give.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct NotDestroyed<T> {
    /// What lives on, to be destroyed later.
    pub live: T,
    /// Why the last try failed.
    #[source]
    pub error: Error,
}

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

impl QueuePair {
    /// Destroys it. From then on nothing of its peer's has an effect, nor does the device touch memory for it.
    ///
    /// Where the device refuses, it is put into the error state and asked again, `DESTROY_TRIES` times in all.
    ///
    /// # Errors
    /// [`NotDestroyed`], with the queue pair, if the device refuses: its peer may go on.
    pub fn destroy(mut self) -> std::result::Result<(), Box<NotDestroyed<Self>>> {
        match self.try_destroy() {
            Ok(()) => Ok(()),
            Err(error) => Err(Box::new(NotDestroyed { live: self, error })),
        }
    }

    fn try_destroy(&mut self) -> Result<()> {
        if self.destroyed {
            return Ok(());
        }
        let mut last = 0;
        for _ in 0..DESTROY_TRIES {
            // SAFETY: made by the builder and not destroyed yet; asynchronous events are acknowledged when they are
            // taken, so this does not wait for the caller.
            last = unsafe { sys::ibv_destroy_qp(self.as_ptr()) };
            if last == 0 {
                self.destroyed = true;
                return Ok(());
            }
            // A queue pair in the error state takes nothing from its peer, should the device grant at least that.
            if let Err(error) = self.to_error() {
                tracing::debug!(%error, "a queue pair that is not destroyed cannot be stopped either");
            }
        }
        os_result(last).map_err(|source| {
            Error::verb(
                "ibv_destroy_qp",
                format!("qp {:#x}, {DESTROY_TRIES} tries", self.qp_num()),
                source,
            )
        })
    }
}

impl Drop for QueuePair {
    fn drop(&mut self) {
        if let Err(error) = self.try_destroy() {
            tracing::error!(%error, "a queue pair is leaked");
        }
    }
}
