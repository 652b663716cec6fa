//! Memory of a client.

use std::sync::Arc;

use rdma_core_rs as rdma;

use crate::Memory;
use crate::verbs::Held;

/// Memory of a client that READs may go to and WRITEs come from, until the last clone is dropped.
#[derive(Debug, Clone)]
pub struct Region(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// What a device knows it by; it holds the memory too. `None` where no device is.
    registered: Option<rdma::MemoryRegion<Held>>,
    memory: Arc<Memory>,
}

impl Region {
    /// Memory that this process alone copies to and from.
    pub(crate) fn unregistered(memory: Memory) -> Self {
        Self(Arc::new(Inner {
            registered: None,
            memory: Arc::new(memory),
        }))
    }

    /// Memory that a device knows.
    pub(crate) fn registered(region: rdma::MemoryRegion<Held>) -> Self {
        Self(Arc::new(Inner {
            memory: Arc::clone(&region.memory().0),
            registered: Some(region),
        }))
    }

    /// The memory.
    #[must_use]
    pub fn memory(&self) -> &Memory {
        &self.0.memory
    }

    /// What a device knows it by; `None` if none does.
    pub(crate) fn registration(&self) -> Option<&rdma::MemoryRegion<Held>> {
        self.0.registered.as_ref()
    }
}
