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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_left_for_those_that_may_take_it() {
        let budget = Budget::new(100);
        budget.set_reserve(30);
        let first = budget.take(60).unwrap();
        assert_eq!((budget.free_bytes(), budget.open_bytes()), (40, 10));
        let refused = budget.take(11).unwrap_err();
        assert!(
            matches!(
                refused,
                StorageError::Memory {
                    needed_bytes: 11,
                    used_bytes: 60,
                    allowed_bytes: 100
                }
            ),
            "{refused}"
        );
        let kept = budget.take_reserved(40).unwrap();
        assert!(budget.take_reserved(1).is_err());
        assert_eq!((budget.free_bytes(), budget.open_bytes()), (0, 0));
        drop(first);
        assert!(budget.take(31).is_err());
        drop(budget.take(30).unwrap());
        drop(kept);
        assert_eq!(budget.used_bytes(), 0);
        assert!(budget.take(u64::MAX).is_err());
    }
}
