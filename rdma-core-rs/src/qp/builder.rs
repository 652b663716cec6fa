//! Making a queue pair.
//!
//! # Safety
//! Hands `ibv_create_qp` pointers of live objects that all belong to one open device, which is checked first: the
//! kernel looks objects up by number within one device file, so a foreign one would name something else.
#![allow(unsafe_code)]

use std::io;
use std::mem::zeroed;
use std::ptr::NonNull;
use std::sync::Arc;

use rdma_sys as sys;

use crate::cq::CompletionQueue;
use crate::error::{Error, Result};
use crate::pd::ProtectionDomain;
use crate::qp::QueuePair;

/// Sizes of a queue pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QpCaps {
    /// Send work requests that may be outstanding.
    pub max_send_wr: u32,
    /// Receives that may be outstanding.
    pub max_recv_wr: u32,
    /// Scatter list entries of one send work request.
    pub max_send_sge: u32,
    /// Scatter list entries of one receive.
    pub max_recv_sge: u32,
    /// Bytes that may be copied into a work request (see [`SendFlags::INLINE`](crate::SendFlags::INLINE)).
    pub max_inline_bytes: u32,
}

/// Collects the sizes of a queue pair; see [`QueuePair::builder`].
#[derive(Debug)]
#[must_use = "a builder makes nothing until `build` is called"]
pub struct QueuePairBuilder<'a> {
    pd: &'a Arc<ProtectionDomain>,
    send_cq: &'a Arc<CompletionQueue>,
    recv_cq: &'a Arc<CompletionQueue>,
    caps: QpCaps,
}

impl<'a> QueuePairBuilder<'a> {
    pub(crate) fn new(
        pd: &'a Arc<ProtectionDomain>,
        send_cq: &'a Arc<CompletionQueue>,
        recv_cq: &'a Arc<CompletionQueue>,
    ) -> QueuePairBuilder<'a> {
        let caps = QpCaps {
            max_send_wr: 16,
            max_recv_wr: 16,
            max_send_sge: 1,
            max_recv_sge: 1,
            max_inline_bytes: 0,
        };
        QueuePairBuilder {
            pd,
            send_cq,
            recv_cq,
            caps,
        }
    }

    /// Send work requests that may be outstanding (16 unless said).
    pub fn max_send_wr(mut self, count: u32) -> Self {
        self.caps.max_send_wr = count;
        self
    }

    /// Receives that may be outstanding (16 unless said).
    pub fn max_recv_wr(mut self, count: u32) -> Self {
        self.caps.max_recv_wr = count;
        self
    }

    /// Scatter list entries of one send work request (1 unless said).
    pub fn max_send_sge(mut self, count: u32) -> Self {
        self.caps.max_send_sge = count;
        self
    }

    /// Scatter list entries of one receive (1 unless said).
    pub fn max_recv_sge(mut self, count: u32) -> Self {
        self.caps.max_recv_sge = count;
        self
    }

    /// Bytes that may be copied into a work request (0 unless said).
    pub fn max_inline_bytes(mut self, bytes: u32) -> Self {
        self.caps.max_inline_bytes = bytes;
        self
    }

    /// Makes the queue pair, in state RESET. A work request completes only if it is posted as signaled, or fails.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if domain and queues are of different open devices; [`Error::Verb`], with the sizes and
    /// the device's limits, if it cannot make one.
    pub fn build(self) -> Result<QueuePair> {
        let context = self.pd.context();
        if !context.is_same(self.send_cq.context()) || !context.is_same(self.recv_cq.context()) {
            return Err(Error::invalid(
                "protection domain and completion queues belong to different open devices",
            ));
        }
        // SAFETY: `ibv_qp_init_attr` is integers and pointers; all zero (no shared receive queue) is a value.
        let mut init: sys::ibv_qp_init_attr = unsafe { zeroed() };
        init.send_cq = self.send_cq.as_ptr();
        init.recv_cq = self.recv_cq.as_ptr();
        init.qp_type = sys::ibv_qp_type::IBV_QPT_RC;
        init.cap = sys::ibv_qp_cap {
            max_send_wr: self.caps.max_send_wr,
            max_recv_wr: self.caps.max_recv_wr,
            max_send_sge: self.caps.max_send_sge,
            max_recv_sge: self.caps.max_recv_sge,
            max_inline_data: self.caps.max_inline_bytes,
        };
        // SAFETY: the domain and both queues are live, held by the `Arc`s below, and of one open device (checked above).
        let raw = unsafe { sys::ibv_create_qp(self.pd.as_ptr(), &mut init) };
        let Some(raw) = NonNull::new(raw) else {
            return Err(self.refused(io::Error::last_os_error()));
        };
        Ok(QueuePair {
            raw,
            destroyed: false,
            caps: QpCaps {
                max_send_wr: init.cap.max_send_wr,
                max_recv_wr: init.cap.max_recv_wr,
                max_send_sge: init.cap.max_send_sge,
                max_recv_sge: init.cap.max_recv_sge,
                max_inline_bytes: init.cap.max_inline_data,
            },
            send_cq: self.send_cq.clone(),
            recv_cq: self.recv_cq.clone(),
            pd: self.pd.clone(),
        })
    }

    fn refused(&self, source: io::Error) -> Error {
        let mut what = format!("on {}: {:?}", self.pd.context().name(), self.caps);
        if let Ok(attr) = self.pd.context().query_device() {
            what.push_str(&format!(
                "; the device allows max_qp_wr {}, max_sge {}",
                attr.max_qp_wr, attr.max_sge
            ));
        }
        Error::verb("ibv_create_qp", what, source)
    }
}
