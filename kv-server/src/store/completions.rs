//! Finished writes on their way back to the control thread.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Mutex;

use kv_fabric::FabricError;
use kv_proto::layout::Locator;
use rustix::event::EventfdFlags;

use crate::error::StorageError;
use crate::store::lock;

/// A write that is durable and visible.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Committed {
    /// Sequence that it got.
    pub sequence: u64,
    /// Where its record lies; for a delete all zero.
    pub locator: Locator,
    /// Whether the key was there before; known for deletes, and for puts that this server run did.
    pub existed: bool,
}

/// How a queued write ended.
#[derive(Debug, Clone)]
pub struct Completion {
    /// As it was queued.
    pub token: u64,
    /// What came of it.
    pub result: Result<Committed, StorageError>,
}

/// Finished writes, in the order of the log of each dataset.
#[derive(Debug)]
pub struct Completions {
    fd: OwnedFd,
    done: Mutex<Vec<Completion>>,
}

impl Completions {
    pub(crate) fn new() -> Result<Self, FabricError> {
        let fd = rustix::event::eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)
            .map_err(|source| FabricError::call("eventfd", source))?;
        Ok(Self {
            fd,
            done: Mutex::default(),
        })
    }

    /// Readable when [`Completions::drain`] has something, or when a write that was refused as busy may be tried again.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Appends what finished since the last call.
    pub fn drain(&self, out: &mut Vec<Completion>) {
        let mut count = [0_u8; 8];
        // The count says nothing that the list does not; an empty counter is no error.
        let _ = rustix::io::read(&self.fd, &mut count);
        out.append(&mut lock(&self.done));
    }

    /// Hands finished writes over and wakes the control thread.
    pub(crate) fn push(&self, done: &mut Vec<Completion>) {
        lock(&self.done).append(done);
        self.wake();
    }

    pub(crate) fn wake(&self) {
        // Fails only when the counter is full, and then the descriptor is readable already.
        let _ = rustix::io::write(&self.fd, &1_u64.to_le_bytes());
    }
}
