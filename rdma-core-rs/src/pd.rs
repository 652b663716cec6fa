//! Protection domains: which queue pairs may use which memory.
//!
//! # Safety
//! `raw` comes from `ibv_alloc_pd` and is freed once, when the last region and queue pair of it are gone.
#![allow(unsafe_code)]

use std::io;
use std::ptr::NonNull;
use std::sync::Arc;

use rdma_sys as sys;

use crate::context::Context;
use crate::error::{Error, Result};

/// A protection domain (`ibv_alloc_pd(3)`): a key works only on queue pairs of the domain it was made in.
#[derive(Debug)]
pub struct ProtectionDomain {
    raw: NonNull<sys::ibv_pd>,
    context: Arc<Context>,
}

// SAFETY: verbs calls on one protection domain may be made from any thread; the type holds no other state.
unsafe impl Send for ProtectionDomain {}
// SAFETY: as above; all methods take `&self`.
unsafe impl Sync for ProtectionDomain {}

impl ProtectionDomain {
    /// Makes an empty domain on `context`.
    ///
    /// # Errors
    /// [`Error::Verb`] if the device has no more of them.
    pub fn new(context: &Arc<Context>) -> Result<Arc<ProtectionDomain>> {
        // SAFETY: the context is open while the `Arc` lives.
        let raw = unsafe { sys::ibv_alloc_pd(context.as_ptr()) };
        match NonNull::new(raw) {
            Some(raw) => Ok(Arc::new(ProtectionDomain {
                raw,
                context: context.clone(),
            })),
            None => Err(Error::verb(
                "ibv_alloc_pd",
                context.name(),
                io::Error::last_os_error(),
            )),
        }
    }

    /// The device it belongs to.
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    pub(crate) fn as_ptr(&self) -> *mut sys::ibv_pd {
        self.raw.as_ptr()
    }
}

impl Drop for ProtectionDomain {
    fn drop(&mut self) {
        // SAFETY: allocated by `new`, freed once; regions and queue pairs hold an `Arc` of this, so none is left.
        let rc = unsafe { sys::ibv_dealloc_pd(self.as_ptr()) };
        if rc != 0 {
            tracing::error!(
                device = self.context.name(),
                rc,
                "ibv_dealloc_pd failed; the domain is leaked"
            );
        }
    }
}
