//! What data connections may READ.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use super::Region;
use crate::{FabricError, Memory, RemoteRef};

/// Distance between the addresses of two registrations beyond their lengths.
const ADDRESS_GAP: u64 = 1 << 20;

/// Hands out rkeys and addresses of one network; neither is used again.
#[derive(Debug)]
pub(super) struct Names {
    rkeys: AtomicU64,
    rkey_first: u32,
    addresses: AtomicU64,
}

impl Names {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            rkeys: AtomicU64::new(0),
            rkey_first: (seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) as u32,
            // Not 0, so that an offset taken for an address shows.
            addresses: AtomicU64::new(1 << 40),
        }
    }

    pub(super) fn new_ref(&self, len: usize) -> Result<RemoteRef, FabricError> {
        let count = self.rkeys.fetch_add(1, Ordering::Relaxed);
        let count = u32::try_from(count).map_err(|_| FabricError::Unsupported("more than 2^32 rkeys"))?;
        Ok(RemoteRef {
            address: self
                .addresses
                .fetch_add(len as u64 + ADDRESS_GAP, Ordering::Relaxed),
            rkey: self.rkey_first.wrapping_add(count),
        })
    }
}

/// Where `len` bytes at `address` are in memory that begins at `start`; `None` if not inside.
pub(super) fn offset_in(memory: &Memory, start: u64, address: u64, len: usize) -> Option<usize> {
    let offset = usize::try_from(address.checked_sub(start)?).ok()?;
    let end = offset.checked_add(len)?;
    (end <= memory.len()).then_some(offset)
}

/// A domain, as connections and registrations share it. Copying holds the lock for reading, so a registration that was
/// dropped is read no more.
#[derive(Debug, Default)]
pub(super) struct Shared(RwLock<HashMap<u32, (u64, Arc<Memory>)>>);

impl Shared {
    /// Copies bytes at `from` to `to`; whether the domain has them.
    pub(super) fn copy(&self, from: RemoteRef, to: &Region, offset: usize, len: usize) -> bool {
        let registered = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let Some((start, memory)) = registered.get(&from.rkey) else {
            return false;
        };
        let Some(from_offset) = offset_in(memory, *start, from.address, len) else {
            return false;
        };
        to.0.copy_between(offset, memory, from_offset, len);
        true
    }

    /// Whether the domain has these bytes.
    pub(super) fn has(&self, from: RemoteRef, len: usize) -> bool {
        let registered = self.0.read().unwrap_or_else(PoisonError::into_inner);
        registered
            .get(&from.rkey)
            .is_some_and(|(start, memory)| offset_in(memory, *start, from.address, len).is_some())
    }
}

/// A protection domain. Any memory can be registered with it.
#[derive(Debug)]
pub struct Domain {
    pub(super) names: Arc<Names>,
    pub(super) shared: Arc<Shared>,
}

impl crate::Domain for Domain {
    type Registration = Registration;

    fn register(&self, memory: Arc<Memory>) -> Result<Registration, FabricError> {
        let remote = self.names.new_ref(memory.len())?;
        let mut registered = self.shared.0.write().unwrap_or_else(PoisonError::into_inner);
        registered.insert(remote.rkey, (remote.address, memory));
        Ok(Registration {
            shared: Arc::clone(&self.shared),
            remote,
        })
    }
}

/// Memory that the domain's data connections may READ.
#[derive(Debug)]
pub struct Registration {
    shared: Arc<Shared>,
    remote: RemoteRef,
}

impl crate::Registration for Registration {
    fn remote(&self) -> RemoteRef {
        self.remote
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut registered = self.shared.0.write().unwrap_or_else(PoisonError::into_inner);
        let memory = registered.remove(&self.remote.rkey);
        drop(registered);
        drop(memory);
    }
}
