//! Memory is taken from a budget before it is mapped, and given back when it is dropped.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crate::error::StorageError;
use crate::store::lock;

/// A number of bytes of which parts are handed out.
#[derive(Debug)]
pub(crate) struct Budget {
    allowed_bytes: u64,
    used_bytes: Mutex<u64>,
    /// Part of what is allowed that only compaction and deletes may take.
    reserve_bytes: AtomicU64,
}

/// Bytes taken from a budget; dropping it gives them back.
#[derive(Debug)]
pub(crate) struct Charge {
    budget: Arc<Budget>,
    bytes: u64,
}

impl Budget {
    pub(crate) fn new(allowed_bytes: u64) -> Arc<Self> {
        Arc::new(Self {
            allowed_bytes,
            used_bytes: Mutex::new(0),
            reserve_bytes: AtomicU64::new(0),
        })
    }

    pub(crate) fn allowed_bytes(&self) -> u64 {
        self.allowed_bytes
    }

    /// Bytes that are not taken.
    pub(crate) fn free_bytes(&self) -> u64 {
        self.allowed_bytes.saturating_sub(self.used_bytes())
    }

    pub(crate) fn used_bytes(&self) -> u64 {
        *lock(&self.used_bytes)
    }

    /// Keeps `bytes` for [`Budget::take_reserved`].
    pub(crate) fn set_reserve(&self, bytes: u64) {
        self.reserve_bytes.store(bytes, Ordering::Release);
    }

    /// Bytes that [`Budget::take`] may still take.
    pub(crate) fn open_bytes(&self) -> u64 {
        self.free_bytes()
            .saturating_sub(self.reserve_bytes.load(Ordering::Acquire))
    }

    /// Takes `bytes`, and leaves what is kept for compaction.
    ///
    /// # Errors
    /// [`StorageError::Memory`] with the figures if less is left.
    pub(crate) fn take(self: &Arc<Self>, bytes: u64) -> Result<Charge, StorageError> {
        let reserve_bytes = self.reserve_bytes.load(Ordering::Acquire);
        self.take_leaving(bytes, reserve_bytes)
    }

    /// Takes `bytes`, for what frees memory.
    ///
    /// # Errors
    /// As [`Budget::take`].
    pub(crate) fn take_reserved(self: &Arc<Self>, bytes: u64) -> Result<Charge, StorageError> {
        self.take_leaving(bytes, 0)
    }

    fn take_leaving(self: &Arc<Self>, bytes: u64, leave_bytes: u64) -> Result<Charge, StorageError> {
        let mut used = lock(&self.used_bytes);
        let after = used.saturating_add(bytes);
        if after.saturating_add(leave_bytes) > self.allowed_bytes {
            return Err(StorageError::Memory {
                needed_bytes: bytes,
                used_bytes: *used,
                allowed_bytes: self.allowed_bytes,
            });
        }
        *used = after;
        Ok(Charge {
            budget: Arc::clone(self),
            bytes,
        })
    }
}

impl Charge {
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        *lock(&self.budget.used_bytes) -= self.bytes;
    }
}
