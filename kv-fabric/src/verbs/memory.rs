//! Registered memory of both ends, and domains.
//!
//! # Safety
//! A [`Memory`] keeps its mapping at one address until it is dropped (one of a client's caller, to which no peer has a right,
//! until that has done with it and no READ to it is under way) and hands out no references to its bytes that a
//! device may be writing (its own file says so); the region holds it until it is deregistered.
#![allow(unsafe_code)]

use std::sync::Arc;

use rdma_core_rs as rdma;

use super::{call, memory_error};
use crate::{Domain, FabricError, Memory, Registration, RemoteRef};

/// Memory that a registration holds.
#[derive(Debug)]
pub(crate) struct Held(pub(crate) Arc<Memory>);

// SAFETY: the `Arc` keeps the mapping alive and where it is; `Memory` is copied in and out through raw pointers only.
unsafe impl rdma::Registrable for Held {
    fn ptr(&self) -> *mut u8 {
        self.0.start().as_ptr()
    }
    fn len_bytes(&self) -> usize {
        self.0.len()
    }
}

/// What is said of a [`crate::Region`] that is not registered: one of another kind of fabric.
pub(super) const NOT_REGISTERED: &str = "memory that no device knows";

/// Registers memory for this side's own use alone.
pub(super) fn register(
    pd: &Arc<rdma::ProtectionDomain>,
    memory: Memory,
) -> Result<rdma::MemoryRegion<Held>, FabricError> {
    let len = memory.len();
    pd.register(Held(Arc::new(memory)), rdma::Access::LOCAL_WRITE)
        .map_err(|error| memory_error("register", len, error))
}

/// A scatter list entry; the range was checked to lie inside.
pub(super) fn sge(region: &rdma::MemoryRegion<Held>, offset: usize, len: usize) -> rdma::Sge {
    rdma::Sge::new(region.addr() + offset as u64, len as u32, region.lkey())
}

/// A protection domain that data connections are accepted into.
#[derive(Debug)]
pub(super) struct VerbsDomain(pub(super) Arc<rdma::ProtectionDomain>);

impl VerbsDomain {
    pub(super) fn new(context: &Arc<rdma::Context>) -> Result<Self, FabricError> {
        rdma::ProtectionDomain::new(context)
            .map(Self)
            .map_err(|error| call("make a protection domain", error))
    }
}

/// Memory that the connections of a domain may READ.
#[derive(Debug)]
struct VerbsRegistration(rdma::MemoryRegion<Held>);

impl Registration for VerbsRegistration {
    fn remote(&self) -> RemoteRef {
        RemoteRef {
            address: self.0.addr(),
            rkey: self.0.rkey().0,
        }
    }
}

impl Domain for VerbsDomain {
    fn register(&self, memory: Arc<Memory>) -> Result<Box<dyn Registration>, FabricError> {
        let len = memory.len();
        // REMOTE_READ and nothing else: no peer can write what readers read.
        self.0
            .register(Held(memory), rdma::Access::REMOTE_READ)
            .map(|region| Box::new(VerbsRegistration(region)) as Box<dyn Registration>)
            .map_err(|error| memory_error("register", len, error))
    }
}
