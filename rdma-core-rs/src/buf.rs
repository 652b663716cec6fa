//! Memory that a device can see.
//!
//! # Safety
//! [`Buffer`] owns an anonymous mapping that stays at one address until it is dropped. No Rust reference to its bytes is
//! ever handed out by safe code: it is read and written byte by byte through relaxed atomics, because a device (which is
//! outside the Rust memory model) may change it at any moment while it is registered.
#![allow(unsafe_code)]

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use crate::error::{Error, Result};

/// Memory that may be registered: the region keeps the value, and with it the memory, for as long as it exists.
///
/// # Safety
/// - From the moment of registration until the value is dropped, `ptr()..ptr() + len_bytes()` is mapped at that same
///   address, also while the value is moved; both answers never change. Where no peer has a right to it, the mapping may go
///   once every work request that names it is done and no further one will.
/// - No `&[u8]` or `&mut [u8]` over the range exists while a device may write it: access goes through raw pointers or
///   atomics.
pub unsafe trait Registrable: Send + Sync + 'static {
    /// First byte of the range.
    fn ptr(&self) -> *mut u8;
    /// Length of the range in bytes.
    fn len_bytes(&self) -> usize;
}

// SAFETY: an `Arc` keeps its value where it is and alive; the rest is what `T` promises.
unsafe impl<T: Registrable + ?Sized> Registrable for Arc<T> {
    fn ptr(&self) -> *mut u8 {
        (**self).ptr()
    }
    fn len_bytes(&self) -> usize {
        (**self).len_bytes()
    }
}

// SAFETY: a `Box` keeps its value where it is and alive; the rest is what `T` promises.
unsafe impl<T: Registrable + ?Sized> Registrable for Box<T> {
    fn ptr(&self) -> *mut u8 {
        (**self).ptr()
    }
    fn len_bytes(&self) -> usize {
        (**self).len_bytes()
    }
}

/// A range somebody else keeps alive; made by [`ProtectionDomain::register_raw`](crate::ProtectionDomain::register_raw).
#[derive(Debug)]
pub struct RawRange {
    ptr: *mut u8,
    len_bytes: usize,
}

impl RawRange {
    pub(crate) fn new(ptr: *mut u8, len_bytes: usize) -> RawRange {
        RawRange { ptr, len_bytes }
    }
}

// SAFETY: the pointer is only handed to the device, never followed here; who made it promised that it stays valid.
unsafe impl Send for RawRange {}
// SAFETY: as above.
unsafe impl Sync for RawRange {}
// SAFETY: `register_raw` is unsafe and asks its caller for exactly these promises.
unsafe impl Registrable for RawRange {
    fn ptr(&self) -> *mut u8 {
        self.ptr
    }
    fn len_bytes(&self) -> usize {
        self.len_bytes
    }
}

/// Page-aligned, zeroed memory of this process, for frames, scratch and tests.
#[derive(Debug)]
pub struct Buffer {
    ptr: NonNull<u8>,
    len_bytes: usize,
}

// SAFETY: the mapping belongs to this value alone, and its bytes are only touched through atomics.
unsafe impl Send for Buffer {}
// SAFETY: as above.
unsafe impl Sync for Buffer {}
// SAFETY: the mapping is made in `new`, never moved, and unmapped in `Drop`; no reference to its bytes is given out.
unsafe impl Registrable for Buffer {
    fn ptr(&self) -> *mut u8 {
        self.ptr.as_ptr()
    }
    fn len_bytes(&self) -> usize {
        self.len_bytes
    }
}

impl Buffer {
    /// Maps `len_bytes` of zeros, at least one byte.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for none, [`Error::Verb`] if there is no memory.
    pub fn new(len_bytes: usize) -> Result<Buffer> {
        if len_bytes == 0 {
            return Err(Error::invalid("a buffer of 0 bytes cannot be mapped"));
        }
        // SAFETY: a fresh private anonymous mapping at an address of the kernel's choice touches nothing that exists.
        let mapped = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                len_bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
        };
        let mapped =
            mapped.map_err(|errno| Error::verb("mmap", format!("{len_bytes} bytes"), errno.into()))?;
        match NonNull::new(mapped.cast()) {
            Some(ptr) => Ok(Buffer { ptr, len_bytes }),
            None => Err(Error::invalid("mmap returned the null address")),
        }
    }

    fn bytes(&self) -> &[AtomicU8] {
        // SAFETY: the range is mapped readable and writable for as long as `self` lives, `AtomicU8` has the layout of a
        // byte, and everybody in this process touches it through atomics.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr().cast::<AtomicU8>(), self.len_bytes) }
    }

    fn range(&self, offset_bytes: usize, len_bytes: usize) -> Result<&[AtomicU8]> {
        offset_bytes
            .checked_add(len_bytes)
            .and_then(|end| self.bytes().get(offset_bytes..end))
            .ok_or_else(|| {
                Error::invalid(format!(
                    "{len_bytes} bytes at offset {offset_bytes} do not lie in a buffer of {}",
                    self.len_bytes
                ))
            })
    }

    /// Copies `from` to `offset_bytes`. Relaxed: ordering against a peer comes from posting and completing.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if it does not fit; nothing is copied.
    pub fn copy_in(&self, offset_bytes: usize, from: &[u8]) -> Result<()> {
        for (to, byte) in self.range(offset_bytes, from.len())?.iter().zip(from) {
            to.store(*byte, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Copies from `offset_bytes` into `to`; see [`Buffer::copy_in`].
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if it does not lie in the buffer; nothing is copied.
    pub fn copy_out(&self, offset_bytes: usize, to: &mut [u8]) -> Result<()> {
        for (from, byte) in self.range(offset_bytes, to.len())?.iter().zip(to) {
            *byte = from.load(Ordering::Relaxed);
        }
        Ok(())
    }

    /// Sets every byte.
    pub fn fill(&self, byte: u8) {
        for to in self.bytes() {
            to.store(byte, Ordering::Relaxed);
        }
    }

    /// Copies `len_bytes` from `offset_bytes` into a fresh vector.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if they do not lie in the buffer.
    pub fn to_vec(&self, offset_bytes: usize, len_bytes: usize) -> Result<Vec<u8>> {
        Ok(self
            .range(offset_bytes, len_bytes)?
            .iter()
            .map(|byte| byte.load(Ordering::Relaxed))
            .collect())
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new` with this length and is unmapped once; a region that registered it owns
        // this value and is deregistered before it drops it.
        let unmapped = unsafe { munmap(self.ptr.as_ptr().cast(), self.len_bytes) };
        if let Err(errno) = unmapped {
            tracing::error!(%errno, len_bytes = self.len_bytes, "munmap failed; the buffer is leaked");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back_and_bounds_hold() {
        let buffer = Buffer::new(100).unwrap();
        buffer.copy_in(90, &[1; 10]).unwrap();
        assert_eq!(buffer.to_vec(89, 3).unwrap(), [0, 1, 1]);
        assert!(buffer.copy_in(91, &[1; 10]).is_err());
        assert!(buffer.copy_in(usize::MAX, &[1; 10]).is_err());
        let mut out = [0; 2];
        assert!(buffer.copy_out(99, &mut out).is_err());
        buffer.fill(7);
        buffer.copy_out(98, &mut out).unwrap();
        assert_eq!(out, [7, 7]);
        assert!(Buffer::new(0).is_err());
    }

    #[test]
    fn erased_memory_is_registrable() {
        let shared: Arc<dyn Registrable> = Arc::new(Buffer::new(4096).unwrap());
        assert_eq!(Registrable::len_bytes(&shared), 4096);
        assert_eq!(shared.ptr().addr() % 4096, 0);
    }
}
