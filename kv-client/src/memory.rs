//! Registered memory that callers hold, seen as bytes.
//!
//! # Safety
//! A [`BufferOn`] gives references to memory that a device may write. It may, because a READ into it is posted only
//! by calls that borrow the buffer mutably, and those return only after every such READ has completed or its
//! connection was destroyed (**I5**; a guard destroys it when a call unwinds). A server never writes a client's
//! memory: nothing of a client is registered for remote access. So while safe code can look at the bytes, nothing
//! writes them, and the `&mut` of the call excludes every other look. A buffer that was moved into a reader comes back
//! only after the same.
//!
//! [`landed`] gives references to memory of the read engine, which keeps this rule: bytes are looked at by the request
//! that they were given to, or by the value that it became, after every READ to them has completed or its connection
//! was destroyed, and are given to another only when that is gone.
#![allow(unsafe_code)]

use std::ptr::NonNull;

use kv_fabric::{Fabric, FabricError, Region};

use crate::ClientError;
use crate::api::{Client, Inner, Memory, RegisteredMemory};
use crate::dataset::DatasetOn;

/// Bytes that READs have brought, by the rule in the file header.
pub(crate) fn landed(memory: &kv_fabric::Memory, offset: usize, len: usize) -> &[u8] {
    // SAFETY: no READ to the range is posted, and nobody writes it while the reference lives (file header).
    unsafe { memory.view(offset, len) }
}

/// Memory that values are read into without a copy, on fabric `F`.
pub struct BufferOn<F: Fabric> {
    region: F::Region,
}

impl<F: Fabric> BufferOn<F> {
    pub(crate) fn allocate(fabric: &F, len: usize) -> Result<Self, FabricError> {
        let region = fabric.allocate(len)?;
        Ok(Self { region })
    }

    /// Registers the caller's memory.
    ///
    /// # Safety
    /// - `start..start + len` is mapped readable and writable until the value is dropped.
    /// - While a call reads into it, or one of its methods runs, nothing else accesses it.
    pub(crate) unsafe fn register(fabric: &F, start: NonNull<u8>, len: usize) -> Result<Self, FabricError> {
        // SAFETY: the caller vouches for what `register` asks; READs are posted only within calls.
        let region = unsafe { fabric.register(start, len) }?;
        Ok(Self { region })
    }

    pub(crate) fn region(&self) -> &F::Region {
        &self.region
    }

    /// Its length, bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.region.memory().len()
    }

    /// Whether it has no bytes: never.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        let memory = self.region.memory();
        // SAFETY: no READ into the region is posted while it is not mutably borrowed by a call (file header).
        unsafe { memory.view(0, memory.len()) }
    }

    /// The bytes, to be changed.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        let memory = self.region.memory();
        // SAFETY: as in `bytes`, and `&mut self` excludes every other look; the region is cloned only into posts.
        unsafe { memory.view_mut(0, memory.len()) }
    }
}

impl<F: Fabric> std::fmt::Debug for BufferOn<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BufferOn<{}>({} bytes)", F::NAME, self.len())
    }
}

impl<F: Fabric> DatasetOn<F> {
    /// As [`Client::register`].
    ///
    /// # Errors
    /// As there.
    ///
    /// # Safety
    /// As there.
    pub unsafe fn register(&self, start: NonNull<u8>, len: usize) -> Result<BufferOn<F>, ClientError> {
        // SAFETY: the obligations are the same.
        Ok(unsafe { BufferOn::register(&*self.core.shared().fabric, start, len) }?)
    }
}

impl Client {
    /// Registers `len` bytes of the caller's memory, so that values can be read into it without a copy.
    ///
    /// # Errors
    /// [`ClientError::Fabric`] if it cannot be registered: the text says which limit was met.
    ///
    /// # Safety
    /// - `start..start + len` is mapped readable and writable until the result is dropped.
    /// - While a call reads into the result, nothing else accesses that memory.
    pub unsafe fn register(&self, start: NonNull<u8>, len: usize) -> Result<RegisteredMemory, ClientError> {
        let memory = match &self.inner {
            // SAFETY: the obligations are the same.
            Inner::Verbs(dataset) => Memory::Verbs(unsafe { dataset.register(start, len) }?),
            // SAFETY: the obligations are the same.
            Inner::Local(dataset) => Memory::Local(unsafe { dataset.register(start, len) }?),
        };
        Ok(RegisteredMemory { memory })
    }
}
