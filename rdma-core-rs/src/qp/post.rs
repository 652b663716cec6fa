//! Posting work: one doorbell for a chain.
//!
//! # Safety
//! The library gets pointers into the two vectors of a batch, which nothing changes during the call; it has copied
//! everything when the call returns. What the work itself reads and writes later is the caller's promise.
#![allow(unsafe_code)]

use std::io;
use std::ptr::{null_mut, without_provenance_mut};

use rdma_sys as sys;

use crate::error::{Error, Result};
use crate::qp::{QueuePair, RecvBatch, Sge, WorkBatch};

/// How many of `total` requests were taken, from the one the library named as the first it did not take.
fn taken<T>(first: *const T, bad: *const T, total: usize) -> usize {
    let distance_bytes = bad.addr().wrapping_sub(first.addr());
    (distance_bytes / size_of::<T>()).min(total)
}

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
        let total = batch.requests.len();
        let first = batch.requests.as_mut_ptr();
        let sges = batch.sges.as_mut_ptr();
        for (index, request) in batch.requests.iter_mut().enumerate() {
            request.sg_list = sges.wrapping_add(request.sg_list.addr()).cast();
            request.next = if index + 1 < total {
                first.wrapping_add(index + 1)
            } else {
                null_mut()
            };
        }
        if total == 0 {
            return Ok(());
        }
        let mut bad = null_mut();
        // SAFETY: the queue pair is live. `first` heads a chain of `total` requests in `batch.requests`, each with its
        // list inside `batch.sges`; neither vector changes before the call returns. The memory named is the caller's
        // promise.
        let rc = unsafe { sys::ibv_post_send(self.as_ptr(), first, &mut bad) };
        if rc == 0 {
            batch.clear();
            return Ok(());
        }
        let posted = taken(first, bad, total);
        for request in &mut batch.requests {
            // Both lie in `batch.sges`; the index is what stays.
            let offset_bytes = request.sg_list.addr() - sges.addr();
            request.sg_list = without_provenance_mut(offset_bytes / size_of::<Sge>());
        }
        batch.forget_first(posted);
        let source = io::Error::from_raw_os_error(if rc > 0 { rc } else { libc::EIO });
        Err(Error::PostSend {
            posted,
            requested: total,
            source,
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
        let total = batch.requests.len();
        let first = batch.requests.as_mut_ptr();
        let sges = batch.sges.as_mut_ptr();
        for (index, request) in batch.requests.iter_mut().enumerate() {
            request.sg_list = sges.wrapping_add(request.sg_list.addr()).cast();
            request.next = if index + 1 < total {
                first.wrapping_add(index + 1)
            } else {
                null_mut()
            };
        }
        if total == 0 {
            return Ok(());
        }
        let mut bad = null_mut();
        // SAFETY: as in `post_send`.
        let rc = unsafe { sys::ibv_post_recv(self.as_ptr(), first, &mut bad) };
        if rc == 0 {
            batch.clear();
            return Ok(());
        }
        let posted = taken(first, bad, total);
        for request in &mut batch.requests {
            let offset_bytes = request.sg_list.addr() - sges.addr();
            request.sg_list = without_provenance_mut(offset_bytes / size_of::<Sge>());
        }
        batch.forget_first(posted);
        let source = io::Error::from_raw_os_error(if rc > 0 { rc } else { libc::EIO });
        Err(Error::PostRecv {
            posted,
            requested: total,
            source,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_request_says_how_many_were_taken() {
        let requests = [0u64; 5];
        let first = requests.as_ptr();
        assert_eq!(taken(first, first, 5), 0);
        assert_eq!(taken(first, first.wrapping_add(3), 5), 3);
        assert_eq!(taken(first, std::ptr::null(), 5), 5);
    }
}
