//! Registered memory that callers hold, seen as bytes.
//!
//! # Safety
//! A [`Buffer`] gives references to memory that a device may write. It may, because a READ into it is posted only
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

use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use kv_fabric::{Fabric, FabricError, Region};

use crate::{Client, ClientError, RegisteredMemory};

/// Bytes that READs have brought, by the rule in the file header.
#[inline]
pub(crate) fn landed(memory: &kv_fabric::Memory, offset: usize, len: usize) -> &[u8] {
    // SAFETY: no READ to the range is posted, and nobody writes it while the reference lives (file header).
    unsafe { memory.view(offset, len) }
}

/// Memory that values are read into without a copy.
pub(crate) struct Buffer {
    /// Shared by what holds the memory: requests in flight, which clone the region alone, are not found by [`Registrations`].
    region: Arc<Region>,
    /// Where it begins in the region, and its length.
    base: usize,
    len: usize,
    /// With which it is registered: no other can READ into it.
    fabric: Arc<dyn Fabric>,
    /// Whether the memory is the caller's.
    callers: bool,
}

/// The callers' memory that is registered, by its start: what lies inside is not registered again.
pub(crate) struct Registrations {
    known: Mutex<BTreeMap<usize, Weak<Region>>>,
    /// Registrations made.
    pub(crate) made: AtomicU64,
}

impl Registrations {
    pub(crate) fn new() -> Self {
        Self {
            known: Mutex::default(),
            made: AtomicU64::new(0),
        }
    }

    /// What is registered of `start..start + len`, if all of it is: its region and where it begins there. A region is
    /// found while somebody holds it, and so is mapped.
    fn covering(&self, start: usize, len: usize) -> Option<(Arc<Region>, usize)> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.range(..=start).rev().find_map(|(&first, region)| {
            let region = region.upgrade()?;
            let base = start - first;
            let fits = base.checked_add(len)? <= region.memory().len();
            fits.then_some((region, base))
        })
    }

    fn remember(&self, region: &Arc<Region>) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, region| region.strong_count() > 0);
        let start = region.memory().start().as_ptr() as usize;
        let longer = |other: &Weak<Region>| {
            let other = other.upgrade();
            other.is_some_and(|other| other.memory().len() >= region.memory().len())
        };
        if !known.get(&start).is_some_and(longer) {
            known.insert(start, Arc::downgrade(region));
        }
        self.made.fetch_add(1, Ordering::Relaxed);
    }
}

impl Buffer {
    pub(crate) fn allocate(fabric: &Arc<dyn Fabric>, len: usize) -> Result<Self, FabricError> {
        Ok(Self {
            region: Arc::new(fabric.allocate(len)?),
            base: 0,
            len,
            fabric: Arc::clone(fabric),
            callers: false,
        })
    }

    /// Registers the caller's memory, unless it lies in what is registered.
    ///
    /// # Safety
    /// - `start..start + len` is mapped readable and writable until the value is dropped.
    /// - While a call reads into it, it is moved into a reader, or one of its methods runs, nothing else accesses it.
    pub(crate) unsafe fn register(
        fabric: &Arc<dyn Fabric>,
        registrations: &Registrations,
        start: NonNull<u8>,
        len: usize,
    ) -> Result<Self, FabricError> {
        if len > 0
            && let Some((region, base)) = registrations.covering(start.as_ptr() as usize, len)
        {
            let fabric = Arc::clone(fabric);
            return Ok(Self {
                region,
                base,
                len,
                fabric,
                callers: true,
            });
        }
        // SAFETY: the caller vouches for what `register` asks; READs are posted only within calls, or for what was moved in.
        let region = Arc::new(unsafe { fabric.register(start, len) }?);
        registrations.remember(&region);
        Ok(Self {
            region,
            base: 0,
            len,
            fabric: Arc::clone(fabric),
            callers: true,
        })
    }

    /// Cuts it in two at `at`: what lies behind that comes back, `None` if it is not that long.
    pub(crate) fn split_off(&mut self, at: usize) -> Option<Self> {
        let len = self.len.checked_sub(at)?;
        self.len = at;
        Some(Self {
            region: Arc::clone(&self.region),
            base: self.base + at,
            len,
            fabric: Arc::clone(&self.fabric),
            callers: self.callers,
        })
    }

    /// Whether the memory is the caller's.
    pub(crate) fn is_callers(&self) -> bool {
        self.callers
    }

    /// Whether the sessions on `fabric` can READ into it.
    pub(crate) fn is_of(&self, fabric: &Arc<dyn Fabric>) -> bool {
        Arc::ptr_eq(&self.fabric, fabric)
    }

    pub(crate) fn region(&self) -> &Region {
        &self.region
    }

    /// Where it begins in its region.
    pub(crate) fn base(&self) -> usize {
        self.base
    }

    /// Its length, bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        let memory = self.region.memory();
        // SAFETY: no READ into the region is posted while it is not mutably borrowed by a call (file header).
        unsafe { memory.view(self.base, self.len) }
    }

    /// The bytes, to be changed.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        let memory = self.region.memory();
        // SAFETY: as in `bytes`, and `&mut self` excludes every other look; the region is cloned only into posts.
        unsafe { memory.view_mut(self.base, self.len) }
    }
}

impl Client {
    /// Registers `len` bytes of the caller's memory, so that values can be read into it without a copy. What lies inside
    /// memory that this session has registered, and that somebody still holds, is not registered again: register a pool once, and
    /// then each piece of it costs a lookup.
    ///
    /// # Errors
    /// [`ClientError::Fabric`] if it cannot be registered: the text says which limit was met.
    ///
    /// # Safety
    /// - `start..start + len` is mapped readable and writable until the result is dropped, and with it every other one
    ///   that lies inside.
    /// - While a call reads into the result or a piece of it, or one is moved into a reader, nothing else accesses that memory.
    pub unsafe fn register(&self, start: NonNull<u8>, len: usize) -> Result<RegisteredMemory, ClientError> {
        // SAFETY: the obligations are the same.
        let memory = unsafe {
            Buffer::register(
                &self.core.shared().fabric,
                self.core.session().registrations(),
                start,
                len,
            )
        }?;
        Ok(RegisteredMemory { memory })
    }
}
