//! A server's memory, mapped by a client.
//!
//! # Safety
//! A [`Mapping`] hands out no references to its bytes: they are copied through raw pointers, inside bounds checked by
//! the callers named below, while it owns the mapping. The file behind it is sealed against shrinking (checked before
//! it is mapped), so no access can fault, whatever the server does or however it dies. Bytes may change under a copy,
//! written by the server's process: that is outside the Rust memory model, and no copied byte is trusted before its
//! checksum was checked.
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use rustix::fs::SealFlags;
use rustix::mm::{MapFlags, ProtFlags};

use crate::Memory;

/// Most bytes of a READ that are loaded before they are copied: a processor's own prefetching does the rest.
const TOUCH_BYTES: usize = 256;
/// Bytes of a line of the processor's cache.
const LINE_BYTES: usize = 64;

/// What a client may do to a mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Write,
}

/// `len` bytes of a server, mapped.
#[derive(Debug)]
pub(super) struct Mapping {
    start: NonNull<u8>,
    len: usize,
    access: Access,
}

// SAFETY: `start..start + len` stays mapped for the life of the value whichever thread holds it, and every access is a
// copy through raw pointers as the file header says.
unsafe impl Send for Mapping {}
// SAFETY: as for Send: no reference to the bytes is ever made, so sharing the handle shares no reference.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the first `len` bytes of a memfd.
    ///
    /// # Errors
    /// If it has fewer, may shrink, or the kernel refuses.
    pub(super) fn new(fd: &OwnedFd, len: u64, access: Access) -> io::Result<Self> {
        let seals = rustix::fs::fcntl_get_seals(fd)?;
        let size = rustix::fs::fstat(fd)?.st_size;
        let enough = u64::try_from(size).is_ok_and(|size| len <= size);
        if !seals.contains(SealFlags::SHRINK) || !enough || len == 0 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("the server passed {size} bytes, not sealed or not the {len} that it announced"),
            ));
        }
        let len = usize::try_from(len).map_err(|_| io::ErrorKind::OutOfMemory)?;
        let prot = match access {
            Access::Read => ProtFlags::READ,
            Access::Write => ProtFlags::READ | ProtFlags::WRITE,
        };
        // SAFETY: a fresh shared mapping at an address of the kernel's choice overlaps nothing; the file has `len`
        // bytes for ever (checked above).
        let start =
            unsafe { rustix::mm::mmap(std::ptr::null_mut(), len, prot, MapFlags::SHARED, fd.as_fd(), 0) }?;
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, len, access })
    }

    /// Whether `len` bytes at `address` are inside it.
    pub(super) fn contains(&self, address: u64, len: usize) -> bool {
        address
            .checked_add(len as u64)
            .is_some_and(|end| end <= self.len as u64)
    }

    /// Loads the lines of the first bytes at `address`, which are copied soon. Loads that nothing waits for overlap;
    /// copies, one after the other, would each wait for memory.
    pub(super) fn touch(&self, address: u64, len: usize) {
        if !self.contains(address, len) {
            return;
        }
        for at in (0..len.min(TOUCH_BYTES)).step_by(LINE_BYTES) {
            // SAFETY: `address + len` is inside the mapping (checked above), and `at < len`.
            let byte = unsafe { self.start.add(address as usize + at) };
            // SAFETY: `byte` is mapped readable; that others may write it is what the file header says, and what is
            // loaded is not looked at.
            let _ = unsafe { byte.read_volatile() };
        }
    }

    /// Copies `len` bytes at `address` to `to`.
    ///
    /// # Panics
    /// If either range is not inside its memory.
    pub(super) fn copy_to(&self, address: u64, to: &Memory, offset: usize, len: usize) {
        assert!(self.contains(address, len), "READ past a mapping");
        // SAFETY: `address <= self.len` (checked above), so the result is inside the mapping or one past its end.
        let from = unsafe { self.start.add(address as usize) };
        // SAFETY: `from` has `len` readable bytes (checked above) as long as `self` lives. They are no part of `to`:
        // `self` is this process's only name for its mapping and hands out no pointer.
        unsafe { to.copy_in(offset, from, len) };
    }

    /// Copies `len` bytes at `offset` of `from` to `address`.
    ///
    /// # Panics
    /// If either range is not inside its memory, or the mapping is for reading only.
    pub(super) fn copy_from(&self, address: u64, from: &Memory, offset: usize, len: usize) {
        assert!(self.contains(address, len), "WRITE past a mapping");
        assert!(
            self.access == Access::Write,
            "WRITE to a mapping for reading only"
        );
        // SAFETY: as in `copy_to`.
        let to = unsafe { self.start.add(address as usize) };
        // SAFETY: `to` has `len` writable bytes (both checked above) as long as `self` lives; they are no part of
        // `from`, as in `copy_to`.
        unsafe { from.copy_out(offset, to, len) };
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: `start..start + len` was mapped by `new`, is unmapped nowhere else, and nothing points into it.
        let unmapped = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.len) };
        if let Err(error) = unmapped {
            tracing::error!(%error, len = self.len, "munmap failed; the mapping stays");
        }
    }
}

/// Names a registration's memory beyond one connection: file system, inode, rkey, length.
type MappingKey = (u64, u64, u32, u64);

/// Mappings that the data connections of one [`super::Local`] share. A connection gets one only for a descriptor that
/// the server passed to that very connection, so sharing saves page tables and faults and gives nobody a right.
#[derive(Debug, Default)]
pub(super) struct Mappings(Mutex<HashMap<MappingKey, Weak<Mapping>>>);

impl Mappings {
    /// The mapping of this descriptor, for reading.
    pub(super) fn get(&self, fd: &OwnedFd, rkey: u32, len: u64) -> io::Result<Arc<Mapping>> {
        let stat = rustix::fs::fstat(fd)?;
        let key = (stat.st_dev, stat.st_ino, rkey, len);
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mapping) = known.get(&key).and_then(Weak::upgrade) {
            return Ok(mapping);
        }
        known.retain(|_, mapping| mapping.strong_count() > 0);
        let mapping = Arc::new(Mapping::new(fd, len, Access::Read)?);
        known.insert(key, Arc::downgrade(&mapping));
        Ok(mapping)
    }
}
