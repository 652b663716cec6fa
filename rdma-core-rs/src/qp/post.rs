//! Posting work: one doorbell for a chain.
//!
//! # Safety
//! The library gets pointers into the two vectors of a batch, which nothing changes during the call; it has copied
//! everything when the call returns. What the work itself reads and writes later is the caller's promise.
#![allow(unsafe_code)]

use rdma_sys as sys;

use crate::error::{Error, Result};
use crate::qp::{QueuePair, RecvBatch, WorkBatch};

impl QueuePair {
    /// Posts the whole chain behind one doorbell (`ibv_post_send(3)`) and empties the batch.
    ///
    /// No allocation. Requests start in order; READs may finish out of order with what follows unless fenced.
    ///
    /// # Errors
    /// [`Error::PostSend`] says how many, from the front, were taken: those will complete, the rest stays in the batch.
    ///
    /// # Safety
    /// Until the completion of each request (of a later one on this queue pair, if it is not signaled), or until this
    /// queue pair is destroyed:
    /// - the memory that its scatter list names stays registered under the keys given and stays mapped;
    /// - nobody writes it, and for READs nobody reads it and no Rust reference to it exists.
    ///
    /// With [`SendFlags::INLINE`](crate::SendFlags::INLINE) this ends when the call returns, but the memory must be readable by this process.
    pub unsafe fn post_send(&self, batch: &mut WorkBatch) -> Result<()> {
        let posted = batch.post(|first, bad| {
            // SAFETY: the queue pair is live. `first` heads a chain in the batch, each request with its list inside the
            // batch too; nothing of it changes before the call returns. The memory named is the caller's promise.
            unsafe { sys::ibv_post_send(self.as_ptr(), first, bad) }
        });
        posted.map_err(|failed| Error::PostSend {
            posted: failed.posted,
            requested: failed.requested,
            source: failed.source,
        })
    }

    /// Posts the receives behind one doorbell (`ibv_post_recv(3)`) and empties the batch; allowed from state INIT on.
    ///
    /// # Errors
    /// [`Error::PostRecv`] says how many, from the front, were taken; the rest stays in the batch.
    ///
    /// # Safety
    /// Until the completion of each receive, or until this queue pair is destroyed, the memory that its scatter list names
    /// stays registered with `LOCAL_WRITE` under the keys given, stays mapped, and nobody reads or writes it and no
    /// Rust reference to it exists.
    pub unsafe fn post_recv(&self, batch: &mut RecvBatch) -> Result<()> {
        // SAFETY: as in `post_send`.
        let posted = batch.post(|first, bad| unsafe { sys::ibv_post_recv(self.as_ptr(), first, bad) });
        posted.map_err(|failed| Error::PostRecv {
            posted: failed.posted,
            requested: failed.requested,
            source: failed.source,
        })
    }
}
