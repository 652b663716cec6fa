//! Registered memory that values are WRITTEN from: a fixed number of slots, allocated at the first put.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use kv_fabric::{Fabric, FabricError, Region};

use crate::clock::Deadline;

/// Length of one slot, bytes: the most that one WRITE carries.
pub(crate) const SLOT_BYTES: usize = 128 << 10;
/// Slots of one session.
pub(crate) const SLOTS: usize = 32;

/// The slots of a session.
pub(crate) struct Pool {
    inner: Mutex<Inner>,
    returned: Condvar,
    /// Times that a put of the session got on.
    moved: AtomicU64,
}

struct Inner {
    region: Option<Region>,
    free: Vec<usize>,
}

/// One slot, back in its pool when dropped.
pub(crate) struct Slot {
    pool: Arc<Pool>,
    region: Region,
    index: usize,
}

impl Pool {
    pub(crate) fn new() -> Self {
        let inner = Inner {
            region: None,
            free: (0..SLOTS).collect(),
        };
        Self {
            inner: Mutex::new(inner),
            returned: Condvar::new(),
            moved: AtomicU64::new(0),
        }
    }

    /// Notes that a put got on.
    pub(crate) fn note_move(&self) {
        self.moved.fetch_add(1, Ordering::Relaxed);
    }

    /// How often any did.
    pub(crate) fn moves(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }

    /// A free slot; `None` if there is none until the deadline.
    pub(crate) fn take(
        self: &Arc<Self>,
        fabric: &dyn Fabric,
        deadline: Deadline,
    ) -> Result<Option<Slot>, FabricError> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if inner.region.is_none() {
                inner.region = Some(fabric.allocate(SLOT_BYTES * SLOTS)?);
            }
            if let (Some(index), Some(region)) = (inner.free.pop(), inner.region.clone()) {
                let pool = Arc::clone(self);
                return Ok(Some(Slot { pool, region, index }));
            }
            let left = deadline.left();
            if left.is_zero() {
                return Ok(None);
            }
            let (woken, _) = self
                .returned
                .wait_timeout(inner, left)
                .unwrap_or_else(PoisonError::into_inner);
            inner = woken;
        }
    }
}

impl Slot {
    pub(crate) fn region(&self) -> &Region {
        &self.region
    }

    /// Where the slot begins in its region, bytes.
    pub(crate) fn start(&self) -> usize {
        self.index * SLOT_BYTES
    }

    /// Fills it from `at` on. Only while no WRITE from it is queued: a slot that is shared with a command is not filled.
    pub(crate) fn fill(&mut self, at: usize, bytes: &[u8]) {
        debug_assert!(at + bytes.len() <= SLOT_BYTES);
        self.region.memory().write(self.start() + at, bytes);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut inner = self.pool.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.free.push(self.index);
        self.pool.returned.notify_one();
    }
}
