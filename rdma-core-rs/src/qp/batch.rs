//! Chains of work requests, kept and reused by the caller.
//!
//! # Safety
//! A batch keeps its work requests and their scatter lists in two vectors. Between posts `sg_list` holds an *index* into
//! the second one and `next` is meaningless; both become pointers only inside `post_send`/`post_recv`, where neither
//! vector can grow, and the library has copied everything when that call returns.
#![allow(unsafe_code)]

use std::io;
use std::mem::zeroed;
use std::ptr::{null_mut, without_provenance_mut};

use rdma_sys as sys;

use crate::mr::{Lkey, Rkey};

/// One piece of local memory (`struct ibv_sge`).
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Sge(sys::ibv_sge);

impl Sge {
    /// `len_bytes` at `addr`, under the region's own key. [`MemoryRegion::sge`](crate::MemoryRegion::sge) checks bounds.
    pub const fn new(addr: u64, len_bytes: u32, lkey: Lkey) -> Sge {
        Sge(sys::ibv_sge {
            addr,
            length: len_bytes,
            lkey: lkey.0,
        })
    }

    /// First address.
    pub const fn addr(&self) -> u64 {
        self.0.addr
    }

    /// Length in bytes.
    pub const fn len_bytes(&self) -> u32 {
        self.0.length
    }
}

impl std::fmt::Debug for Sge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Sge({} bytes at {:#x}, lkey {:#x})",
            self.0.length, self.0.addr, self.0.lkey
        )
    }
}

/// Where at the peer a READ or WRITE goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RemoteAddr {
    /// First address, as the peer's region has it.
    pub addr: u64,
    /// The key of the peer's region.
    pub rkey: Rkey,
}

/// How one work request is to be treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SendFlags(u32);

impl SendFlags {
    /// Completes silently unless it fails.
    pub const NONE: SendFlags = SendFlags(0);
    /// Waits for earlier READs to finish before it starts.
    pub const FENCE: SendFlags = SendFlags(sys::ibv_send_flags::IBV_SEND_FENCE.0);
    /// Reports its completion. Post at least one such request per filled queue, or the queue never drains.
    pub const SIGNALED: SendFlags = SendFlags(sys::ibv_send_flags::IBV_SEND_SIGNALED.0);
    /// Wakes a peer that armed its queue for solicited events only.
    pub const SOLICITED: SendFlags = SendFlags(sys::ibv_send_flags::IBV_SEND_SOLICITED.0);
    /// The bytes are copied when posting: the memory is free at once and needs no region. SEND and WRITE only.
    pub const INLINE: SendFlags = SendFlags(sys::ibv_send_flags::IBV_SEND_INLINE.0);
}

impl std::ops::BitOr for SendFlags {
    type Output = SendFlags;
    fn bitor(self, other: SendFlags) -> SendFlags {
        SendFlags(self.0 | other.0)
    }
}

/// A work request that names a scatter list and the request after it.
pub(super) trait Request: Sized {
    /// Where it keeps the two.
    fn links(&mut self) -> (&mut *mut Self, &mut *mut sys::ibv_sge);
}

impl Request for sys::ibv_send_wr {
    fn links(&mut self) -> (&mut *mut Self, &mut *mut sys::ibv_sge) {
        (&mut self.next, &mut self.sg_list)
    }
}

impl Request for sys::ibv_recv_wr {
    fn links(&mut self) -> (&mut *mut Self, &mut *mut sys::ibv_sge) {
        (&mut self.next, &mut self.sg_list)
    }
}

/// Work requests of one kind and their scatter lists.
struct Chain<R> {
    requests: Vec<R>,
    sges: Vec<Sge>,
}

// SAFETY: between posts the pointer fields hold no addresses, see the head of this file.
unsafe impl<R> Send for Chain<R> {}
// SAFETY: as above; shared references give lengths only.
unsafe impl<R> Sync for Chain<R> {}

impl<R: Request> Chain<R> {
    fn with_capacity(requests: usize, sges: usize) -> Self {
        Self {
            requests: Vec::with_capacity(requests),
            sges: Vec::with_capacity(sges),
        }
    }

    fn clear(&mut self) {
        self.requests.clear();
        self.sges.clear();
    }

    fn push(&mut self, mut request: R, sges: &[Sge]) {
        *request.links().1 = without_provenance_mut(self.sges.len());
        self.sges.extend_from_slice(sges);
        self.requests.push(request);
    }

    /// Has `call` take the chain: the first request, and where it names the first that it did not take. Empties the
    /// chain; on an error what was not taken stays, and the number of those that were, from the front, is returned.
    fn post(&mut self, call: impl FnOnce(*mut R, &mut *mut R) -> i32) -> Result<(), NotPosted> {
        let requested = self.requests.len();
        if requested == 0 {
            return Ok(());
        }
        let first = self.requests.as_mut_ptr();
        let sges = self.sges.as_mut_ptr();
        for (index, request) in self.requests.iter_mut().enumerate() {
            let (next, list) = request.links();
            *list = sges.wrapping_add(list.addr()).cast();
            *next = if index + 1 < requested {
                first.wrapping_add(index + 1)
            } else {
                null_mut()
            };
        }
        let mut bad = null_mut();
        let rc = call(first, &mut bad);
        if rc == 0 {
            self.clear();
            return Ok(());
        }
        for request in &mut self.requests {
            // Both lie in `self.sges`; the index is what stays.
            let list = request.links().1;
            *list = without_provenance_mut((list.addr() - sges.addr()) / size_of::<Sge>());
        }
        let posted = (bad.addr().wrapping_sub(first.addr()) / size_of::<R>()).min(requested);
        self.forget_first(posted);
        Err(NotPosted {
            posted,
            requested,
            source: io::Error::from_raw_os_error(if rc > 0 { rc } else { libc::EIO }),
        })
    }

    /// Forgets the first `count` requests. The scatter lists of the others stay where their indices say.
    fn forget_first(&mut self, count: usize) {
        self.requests.drain(..count.min(self.requests.len()));
        if self.requests.is_empty() {
            self.sges.clear();
        }
    }
}

/// A chain that was taken in part.
pub(super) struct NotPosted {
    pub(super) posted: usize,
    pub(super) requested: usize,
    pub(super) source: io::Error,
}

/// A chain of send work requests, to be reused: it allocates only while it grows.
///
/// What a failed post did not take stays in the batch.
#[must_use = "a batch does nothing until it is posted"]
pub struct WorkBatch(Chain<sys::ibv_send_wr>);

impl WorkBatch {
    /// An empty batch with room for this many requests and scatter list entries.
    pub fn with_capacity(request_count: usize, sge_count: usize) -> WorkBatch {
        WorkBatch(Chain::with_capacity(request_count, sge_count))
    }

    /// Requests in the batch.
    pub fn len(&self) -> usize {
        self.0.requests.len()
    }

    /// True if there is none.
    pub fn is_empty(&self) -> bool {
        self.0.requests.is_empty()
    }

    /// Forgets what is in it; keeps its room.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    pub(super) fn post(
        &mut self,
        call: impl FnOnce(*mut sys::ibv_send_wr, &mut *mut sys::ibv_send_wr) -> i32,
    ) -> Result<(), NotPosted> {
        self.0.post(call)
    }

    /// Adds an RDMA READ of `remote` into `sges`, filled in order.
    pub fn read(&mut self, wr_id: u64, remote: RemoteAddr, sges: &[Sge], flags: SendFlags) {
        self.push(
            wr_id,
            sys::ibv_wr_opcode::IBV_WR_RDMA_READ,
            Some(remote),
            sges,
            flags,
            0,
        );
    }

    /// Adds an RDMA WRITE of `sges`, in order, to `remote`.
    pub fn write(&mut self, wr_id: u64, remote: RemoteAddr, sges: &[Sge], flags: SendFlags) {
        self.push(
            wr_id,
            sys::ibv_wr_opcode::IBV_WR_RDMA_WRITE,
            Some(remote),
            sges,
            flags,
            0,
        );
    }

    /// Adds a SEND of `sges` into the peer's next receive.
    pub fn send(&mut self, wr_id: u64, sges: &[Sge], flags: SendFlags) {
        self.push(wr_id, sys::ibv_wr_opcode::IBV_WR_SEND, None, sges, flags, 0);
    }

    /// Adds a SEND that brings 32 bits along, which the receive's completion carries.
    pub fn send_with_imm(&mut self, wr_id: u64, imm: u32, sges: &[Sge], flags: SendFlags) {
        self.push(
            wr_id,
            sys::ibv_wr_opcode::IBV_WR_SEND_WITH_IMM,
            None,
            sges,
            flags,
            imm,
        );
    }

    /// Makes the last request report its completion.
    pub fn signal_last(&mut self) {
        if let Some(last) = self.0.requests.last_mut() {
            last.send_flags |= SendFlags::SIGNALED.0;
        }
    }

    fn push(
        &mut self,
        wr_id: u64,
        opcode: sys::ibv_wr_opcode::Type,
        remote: Option<RemoteAddr>,
        sges: &[Sge],
        flags: SendFlags,
        imm: u32,
    ) {
        // SAFETY: `ibv_send_wr` is integers, pointers and unions of them; all zero is a value.
        let mut request: sys::ibv_send_wr = unsafe { zeroed() };
        request.wr_id = wr_id;
        request.opcode = opcode;
        request.send_flags = flags.0;
        request.num_sge = i32::try_from(sges.len()).unwrap_or(i32::MAX);
        request.imm_data_invalidated_rkey_union.imm_data = imm.to_be();
        if let Some(remote) = remote {
            request.wr.rdma = sys::rdma_t {
                remote_addr: remote.addr,
                rkey: remote.rkey.0,
            };
        }
        self.0.push(request, sges);
    }
}

impl std::fmt::Debug for WorkBatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "WorkBatch({} requests, {} sges)",
            self.0.requests.len(),
            self.0.sges.len()
        )
    }
}

/// A chain of receives, to be reused: it allocates only while it grows.
#[must_use = "a batch does nothing until it is posted"]
pub struct RecvBatch(Chain<sys::ibv_recv_wr>);

impl RecvBatch {
    /// An empty batch with room for this many receives of one scatter list entry each.
    pub fn with_capacity(count: usize) -> RecvBatch {
        RecvBatch(Chain::with_capacity(count, count))
    }

    /// Receives in the batch.
    pub fn len(&self) -> usize {
        self.0.requests.len()
    }

    /// True if there is none.
    pub fn is_empty(&self) -> bool {
        self.0.requests.is_empty()
    }

    /// Forgets what is in it; keeps its room.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    pub(super) fn post(
        &mut self,
        call: impl FnOnce(*mut sys::ibv_recv_wr, &mut *mut sys::ibv_recv_wr) -> i32,
    ) -> Result<(), NotPosted> {
        self.0.post(call)
    }

    /// Adds a receive into `sges`, filled in order.
    pub fn recv(&mut self, wr_id: u64, sges: &[Sge]) {
        let request = sys::ibv_recv_wr {
            wr_id,
            next: null_mut(),
            sg_list: null_mut(),
            num_sge: i32::try_from(sges.len()).unwrap_or(i32::MAX),
        };
        self.0.push(request, sges);
    }
}

impl std::fmt::Debug for RecvBatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "RecvBatch({} requests, {} sges)",
            self.0.requests.len(),
            self.0.sges.len()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sge(n: u64) -> Sge {
        Sge::new(n, 1, Lkey(0))
    }

    #[test]
    fn what_was_not_taken_keeps_its_scatter_list() {
        let mut batch = WorkBatch::with_capacity(3, 4);
        let remote = RemoteAddr {
            addr: 0,
            rkey: Rkey(0),
        };
        batch.read(1, remote, &[sge(10), sge(11)], SendFlags::NONE);
        batch.read(2, remote, &[sge(20)], SendFlags::NONE);
        batch.read(3, remote, &[sge(30)], SendFlags::NONE);
        batch.signal_last();
        batch.0.forget_first(1);
        assert_eq!(batch.len(), 2);
        let indices: Vec<usize> = batch
            .0
            .requests
            .iter()
            .map(|request| request.sg_list.addr())
            .collect();
        assert_eq!(indices, [2, 3]);
        assert_eq!(batch.0.sges[indices[0]].addr(), 20);
        assert_eq!(batch.0.requests[1].send_flags, SendFlags::SIGNALED.0);
        batch.0.forget_first(9);
        assert!(batch.is_empty() && batch.0.sges.is_empty());
    }
}
