//! Memory that a device or another process may touch while this process does.
//!
//! # Safety
//! A [`Memory`] hands out no references to its bytes: it is only copied into and out of, through raw pointers, inside
//! its bounds, while its mapping is alive (it owns the mapping, or whoever made it vouched for it). Bytes may change
//! under such a copy, written by a device or another process; that is outside the Rust memory model, as
//! `crossbeam`'s sequence locks are, and no copied byte is trusted before its checksum was checked. Writers of this
//! process that may overlap in time use disjoint ranges.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{Advice, MapFlags, ProtFlags};

use crate::FabricError;

/// Length of a huge page: shorter memory has none.
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Who may map the memory besides this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemoryKind {
    /// Nobody: anonymous memory.
    Private,
    /// Other processes, for reading only: a memfd sealed against future writable mappings, shrinking and growing.
    SharedReadOnly,
    /// Other processes, for reading and writing: a memfd sealed against shrinking and growing.
    SharedWritable,
}

enum Backing {
    Anonymous,
    Memfd(OwnedFd),
    /// The caller's memory: not unmapped here.
    Borrowed,
}

/// A mapping of fixed length, zeroed when made.
pub struct Memory {
    start: NonNull<u8>,
    len: usize,
    backing: Backing,
}

// SAFETY: `start..start + len` stays mapped for the life of the value whichever thread holds it, and every access is a
// copy through raw pointers as the file header says.
unsafe impl Send for Memory {}
// SAFETY: as for Send: no reference to the bytes is ever made, so sharing the handle shares no reference.
unsafe impl Sync for Memory {}

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = match self.backing {
            Backing::Anonymous => "anonymous",
            Backing::Memfd(_) => "memfd",
            Backing::Borrowed => "borrowed",
        };
        write!(f, "Memory({kind}, {} bytes)", self.len)
    }
}

impl Memory {
    /// Maps `len` zeroed bytes; `len` is rounded up to whole pages by the kernel but accessed only so far.
    ///
    /// # Errors
    /// [`FabricError::Memory`] if `len` is 0 or the kernel refuses.
    pub fn new(len: usize, kind: MemoryKind) -> Result<Self, FabricError> {
        Self::map(len, kind).map_err(|source| FabricError::Memory {
            action: "map",
            len_bytes: len,
            source,
            remedy: "free memory or raise the limit of this process".to_owned(),
        })
    }

    fn map(len: usize, kind: MemoryKind) -> io::Result<Self> {
        if len == 0 || isize::try_from(len).is_err() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        let seals = match kind {
            MemoryKind::Private => {
                // SAFETY: a fresh anonymous mapping at an address of the kernel's choice overlaps nothing.
                let start = unsafe {
                    rustix::mm::mmap_anonymous(std::ptr::null_mut(), len, prot, MapFlags::PRIVATE)
                }?;
                let memory = Self::checked(start, len, Backing::Anonymous)?;
                memory.ask_for_huge_pages();
                return Ok(memory);
            }
            MemoryKind::SharedReadOnly => {
                SealFlags::FUTURE_WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL
            }
            MemoryKind::SharedWritable => SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL,
        };
        let fd = rustix::fs::memfd_create("verbs-kv", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        rustix::fs::ftruncate(&fd, len as u64)?;
        // SAFETY: a fresh shared mapping at an address of the kernel's choice overlaps nothing; the file has `len`
        // bytes and is sealed against shrinking right below, so no access can fault.
        let start = unsafe { rustix::mm::mmap(std::ptr::null_mut(), len, prot, MapFlags::SHARED, &fd, 0) }?;
        let memory = Self::checked(start, len, Backing::Memfd(fd))?;
        if let Backing::Memfd(fd) = &memory.backing {
            rustix::fs::fcntl_add_seals(fd, seals)?;
        }
        Ok(memory)
    }

    /// Has the kernel use huge pages where it can: a device that translates each page misses its cache less.
    fn ask_for_huge_pages(&self) {
        if self.len < HUGE_PAGE_BYTES {
            return;
        }
        // SAFETY: the advice changes nothing that the mapping holds, and all of it is this value's own.
        let advised =
            unsafe { rustix::mm::madvise(self.start.as_ptr().cast(), self.len, Advice::LinuxHugepage) };
        // A kernel without them serves as well.
        tracing::trace!(?advised, len = self.len, "huge pages asked for");
    }

    fn checked(start: *mut core::ffi::c_void, len: usize, backing: Backing) -> io::Result<Self> {
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, len, backing })
    }

    /// Wraps memory that somebody else owns.
    ///
    /// # Safety
    /// - `start..start + len` is mapped readable and writable as long as anything is done with the value but dropping it, or a
    ///   READ to it is under way.
    /// - While a copy into it or a READ to it runs, nothing else accesses it.
    #[must_use]
    pub unsafe fn borrowed(start: NonNull<u8>, len: usize) -> Self {
        Self {
            start,
            len,
            backing: Backing::Borrowed,
        }
    }

    /// First byte. For registering it and for building owned views with their own proof of exclusive access.
    #[must_use]
    pub fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// Length, bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes: never.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The memfd behind shared memory.
    #[must_use]
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.backing {
            Backing::Memfd(fd) => Some(fd.as_fd()),
            Backing::Anonymous | Backing::Borrowed => None,
        }
    }

    #[inline]
    fn range(&self, offset: usize, len: usize) -> NonNull<u8> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len => {}
            _ => outside(offset, len, self.len),
        }
        // SAFETY: `offset <= self.len`, for it is no more than `end`, so the result is inside the mapping or one past its end.
        unsafe { self.start.add(offset) }
    }

    /// Copies `bytes` to `offset`.
    ///
    /// # Panics
    /// If the range is not inside the memory.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        let to = self.range(offset, bytes.len());
        // SAFETY: `to` has `bytes.len()` mapped bytes (checked above); `bytes` cannot overlap them, since no
        // reference to the mapping exists.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to.as_ptr(), bytes.len()) };
    }

    /// Copies `out.len()` bytes from `offset`.
    ///
    /// # Panics
    /// If the range is not inside the memory.
    pub fn read(&self, offset: usize, out: &mut [u8]) {
        let from = self.range(offset, out.len());
        // SAFETY: as in `write`, the other way round.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), out.as_mut_ptr(), out.len()) };
    }

    /// Copies `len` bytes from `from` to `offset`.
    ///
    /// # Panics
    /// If the range is not inside the memory.
    ///
    /// # Safety
    /// - `from` has `len` readable bytes, none of them in this memory.
    pub(crate) unsafe fn copy_in(&self, offset: usize, from: NonNull<u8>, len: usize) {
        let to = self.range(offset, len);
        // SAFETY: `to` has `len` mapped bytes (checked above); the caller vouches for `from`.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to.as_ptr(), len) };
    }

    /// Copies `len` bytes from `offset` to `to`.
    ///
    /// # Panics
    /// If the range is not inside the memory.
    ///
    /// # Safety
    /// - `to` has `len` writable bytes, none of them in this memory.
    pub(crate) unsafe fn copy_out(&self, offset: usize, to: NonNull<u8>, len: usize) {
        let from = self.range(offset, len);
        // SAFETY: `from` has `len` mapped bytes (checked above); the caller vouches for `to`.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to.as_ptr(), len) };
    }

    /// Copies `len` bytes at `from_offset` of `from` to `offset`.
    ///
    /// # Panics
    /// If a range is not inside its memory.
    pub(crate) fn copy_between(&self, offset: usize, from: &Self, from_offset: usize, len: usize) {
        let to = self.range(offset, len);
        let from = from.range(from_offset, len);
        // SAFETY: both ranges have `len` mapped bytes (checked above); they may overlap, if both wrap memory of one
        // caller's.
        unsafe { std::ptr::copy(from.as_ptr(), to.as_ptr(), len) };
    }

    /// Stores one aligned word, with release order: what was written before is seen before it by readers that copy in
    /// address order. Readers rely on checksums, not on this.
    ///
    /// # Panics
    /// If the word is not inside the memory or not aligned to 8 bytes.
    pub fn store_u64(&self, offset: usize, value: u64) {
        let at = self.range(offset, 8);
        assert!(
            at.cast::<u64>().is_aligned(),
            "offset {offset} is not aligned to 8 bytes"
        );
        // SAFETY: `at` is inside the mapping and aligned (both checked above); all other accesses are copies that
        // the file header accounts for.
        let word = unsafe { AtomicU64::from_ptr(at.as_ptr().cast()) };
        word.store(value, Ordering::Release);
    }

    /// A view of bytes that nobody else accesses now.
    ///
    /// # Panics
    /// If the range is not inside the memory.
    ///
    /// # Safety
    /// - No READ to the range is posted and no other process or thread writes it while the view lives.
    #[inline]
    #[must_use]
    pub unsafe fn view(&self, offset: usize, len: usize) -> &[u8] {
        let at = self.range(offset, len);
        // SAFETY: the range is mapped (checked above) for as long as `self` lives; the caller vouches that nobody
        // writes it.
        unsafe { std::slice::from_raw_parts(at.as_ptr(), len) }
    }

    /// An exclusive view of bytes that nobody else accesses now.
    ///
    /// # Panics
    /// If the range is not inside the memory.
    ///
    /// # Safety
    /// - No READ to or WRITE from the range is posted, and nothing else accesses it while the view lives.
    #[must_use]
    #[allow(
        clippy::mut_from_ref,
        reason = "exclusive access is the caller's obligation, as with UnsafeCell"
    )]
    pub unsafe fn view_mut(&self, offset: usize, len: usize) -> &mut [u8] {
        let at = self.range(offset, len);
        // SAFETY: as in `view`, and the caller vouches for exclusive access.
        unsafe { std::slice::from_raw_parts_mut(at.as_ptr(), len) }
    }
}

/// Apart, so that those that are inside put nothing into memory for it.
#[cold]
fn outside(offset: usize, len: usize, all: usize) -> ! {
    panic!("{len} bytes at {offset} are not inside memory of {all} bytes");
}

impl Drop for Memory {
    fn drop(&mut self) {
        if matches!(self.backing, Backing::Borrowed) {
            return;
        }
        // SAFETY: `start..start + len` was mapped by `map` and is unmapped nowhere else; registrations hold the
        // `Memory`, so nothing reaches it through a device any more.
        let unmapped = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.len) };
        if let Err(error) = unmapped {
            tracing::error!(%error, len = self.len, "munmap failed; the mapping stays");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use rustix::fs::{FallocateFlags, Mode, OFlags};
    use rustix::io::Errno;

    use super::*;

    fn reopen(memory: &Memory, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let fd = memory.fd().expect("shared memory has a descriptor");
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        rustix::fs::open(path, flags, Mode::empty())
    }

    fn map(fd: &OwnedFd, prot: ProtFlags) -> rustix::io::Result<*mut core::ffi::c_void> {
        // SAFETY: a fresh shared mapping at an address of the kernel's choice overlaps nothing, and is never accessed
        // but through `mprotect`.
        unsafe { rustix::mm::mmap(std::ptr::null_mut(), 4096, prot, MapFlags::SHARED, fd, 0) }
    }

    /// Neither another process's descriptor nor this one's own can be made to write, shrink or grow it.
    #[test]
    fn read_only_memory_takes_no_writer_but_its_own() {
        let memory = Memory::new(8192, MemoryKind::SharedReadOnly).expect("memory");
        let reader = reopen(&memory, OFlags::RDONLY).expect("open for reading");
        assert!(map(&reader, ProtFlags::READ | ProtFlags::WRITE).is_err());
        let reading = map(&reader, ProtFlags::READ).expect("map for reading");
        // SAFETY: only the rights of a mapping that this test made and never accesses are asked to change.
        let raised = unsafe {
            rustix::mm::mprotect(
                reading,
                4096,
                rustix::mm::MprotectFlags::READ | rustix::mm::MprotectFlags::WRITE,
            )
        };
        assert_eq!(raised, Err(Errno::ACCESS));
        let writer = reopen(&memory, OFlags::RDWR).expect("memfds have mode 0777");
        assert_eq!(
            map(&writer, ProtFlags::READ | ProtFlags::WRITE).err(),
            Some(Errno::PERM)
        );
        assert_eq!(rustix::io::pwrite(&writer, b"x", 0), Err(Errno::PERM));
        assert_eq!(rustix::fs::ftruncate(&writer, 4096), Err(Errno::PERM));
        assert_eq!(rustix::fs::ftruncate(&writer, 16384), Err(Errno::PERM));
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        assert_eq!(rustix::fs::fallocate(&writer, hole, 0, 4096), Err(Errno::PERM));
        assert_eq!(
            rustix::fs::fcntl_add_seals(&writer, SealFlags::WRITE),
            Err(Errno::PERM)
        );
        // The mapping that was there before the seals goes on writing, and readers see it.
        memory.write(4090, b"across a page");
        let mut seen = [0; 13];
        rustix::io::pread(&reader, &mut seen[..], 4090).expect("pread");
        assert_eq!(&seen, b"across a page");
    }

    #[test]
    fn writable_memory_keeps_its_length() {
        let memory = Memory::new(8192, MemoryKind::SharedWritable).expect("memory");
        let writer = reopen(&memory, OFlags::RDWR).expect("open");
        assert_eq!(rustix::fs::ftruncate(&writer, 0), Err(Errno::PERM));
        assert_eq!(rustix::fs::ftruncate(&writer, 16384), Err(Errno::PERM));
        rustix::io::pwrite(&writer, b"peer", 100).expect("a peer writes");
        let mut seen = [0; 4];
        memory.read(100, &mut seen);
        assert_eq!(&seen, b"peer");
    }

    #[test]
    fn private_memory_has_no_descriptor_and_begins_zeroed() {
        let memory = Memory::new(5000, MemoryKind::Private).expect("memory");
        assert!(memory.fd().is_none());
        assert_eq!(memory.len(), 5000);
        let mut seen = [1; 5000];
        memory.read(0, &mut seen);
        assert_eq!(seen, [0; 5000]);
    }

    #[test]
    fn lengths_that_cannot_be_are_refused() {
        for kind in [MemoryKind::Private, MemoryKind::SharedReadOnly] {
            for len in [0, usize::MAX, 1 << 60] {
                let refused = Memory::new(len, kind);
                assert!(matches!(refused, Err(FabricError::Memory { len_bytes, .. }) if len_bytes == len));
            }
        }
    }

    #[test]
    fn copies_stay_inside() {
        let memory = Memory::new(100, MemoryKind::Private).expect("memory");
        let other = Memory::new(100, MemoryKind::Private).expect("memory");
        let panics = |call: &dyn Fn()| std::panic::catch_unwind(std::panic::AssertUnwindSafe(call)).is_err();
        memory.write(0, &[1; 100]);
        memory.write(100, &[]);
        assert!(panics(&|| memory.write(1, &[1; 100])));
        assert!(panics(&|| memory.write(101, &[])));
        assert!(panics(&|| memory.write(usize::MAX, &[1; 2])));
        assert!(panics(&|| memory.read(1, &mut [0; 100])));
        assert!(panics(&|| memory.copy_between(0, &other, 1, 100)));
        assert!(panics(&|| memory.copy_between(1, &other, 0, 100)));
        memory.copy_between(10, &other, 0, 90);
        let mut seen = [9; 100];
        memory.read(0, &mut seen);
        assert_eq!((&seen[..10], &seen[10..]), (&[1; 10][..], &[0; 90][..]));
    }

    #[test]
    fn words_are_stored_aligned_and_inside() {
        let memory = Memory::new(64, MemoryKind::Private).expect("memory");
        let panics = |call: &dyn Fn()| std::panic::catch_unwind(std::panic::AssertUnwindSafe(call)).is_err();
        memory.store_u64(56, 0x0102_0304_0506_0708);
        let mut seen = [0; 8];
        memory.read(56, &mut seen);
        assert_eq!(u64::from_le_bytes(seen), 0x0102_0304_0506_0708);
        assert!(panics(&|| memory.store_u64(60, 1)));
        assert!(panics(&|| memory.store_u64(64, 1)));
        assert!(panics(&|| memory.store_u64(4, 1)));
    }

    #[test]
    fn borrowed_memory_is_left_to_its_owner() {
        let mut owned = vec![0_u8; 64];
        let start = NonNull::new(owned.as_mut_ptr()).expect("a vector has an address");
        // SAFETY: `owned` outlives the memory, and is not accessed while that lives.
        let memory = unsafe { Memory::borrowed(start, owned.len()) };
        memory.write(3, b"here");
        drop(memory);
        assert_eq!(&owned[3..7], b"here");
    }
}
