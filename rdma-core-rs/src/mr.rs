//! Memory regions: what a device may read and write, and under which keys.
//!
//! # Safety
//! A region owns the value whose memory it registered and deregisters before that value is dropped. If deregistration
//! fails the value is leaked, for the device may still write there.
#![allow(unsafe_code)]

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use rdma_sys as sys;

use crate::access::Access;
use crate::buf::{RawRange, Registrable};
use crate::error::{Error, Result, os_result};
use crate::pd::ProtectionDomain;
use crate::qp::Sge;

/// Key for this machine's own use of a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Lkey(pub u32);

/// Key that a peer names to use a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Rkey(pub u32);

/// A dmabuf that was registered; keeps its descriptor.
#[derive(Debug)]
pub struct DmaBuf {
    fd: OwnedFd,
}

impl DmaBuf {
    /// The descriptor.
    pub fn fd(&self) -> &OwnedFd {
        &self.fd
    }
}

/// A registered range (`ibv_reg_mr(3)`) and the memory behind it.
///
/// Dropping it deregisters: a peer's operation that comes later is answered with a remote access error. Work that *this*
/// process has posted and that names the region must be complete before (see [`QueuePair::post_send`](crate::QueuePair::post_send)).
#[derive(Debug)]
pub struct MemoryRegion<M> {
    raw: NonNull<sys::ibv_mr>,
    /// Dropped by hand, after deregistration, and not at all if that failed.
    memory: ManuallyDrop<M>,
    addr: u64,
    len_bytes: usize,
    access: Access,
    pd: Arc<ProtectionDomain>,
}

// SAFETY: verbs calls on a region may be made from any thread; keys and addresses never change; `M` says for itself.
unsafe impl<M: Send> Send for MemoryRegion<M> {}
// SAFETY: as above; all methods but the consuming one take `&self` and only read.
unsafe impl<M: Sync> Sync for MemoryRegion<M> {}

impl ProtectionDomain {
    /// Registers the memory of `memory` and keeps the value until the region is gone.
    ///
    /// `access` is what is granted, nothing is implied: memory that serves a peer's READs is `REMOTE_READ` alone.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for an empty range or rights that do not go together; [`Error::Unsupported`] for
    /// `ON_DEMAND` on a device without it; [`Error::Register`] otherwise, with a hint (memlock, permissions of the mapping).
    pub fn register<M: Registrable>(self: &Arc<Self>, memory: M, access: Access) -> Result<MemoryRegion<M>> {
        let (ptr, len_bytes) = (memory.ptr(), memory.len_bytes());
        let raw = self.reg_mr(ptr, len_bytes, access)?;
        Ok(MemoryRegion {
            raw,
            memory: ManuallyDrop::new(memory),
            addr: ptr.addr() as u64,
            len_bytes,
            access,
            pd: self.clone(),
        })
    }

    /// Registers a range that the caller keeps.
    ///
    /// # Errors
    /// As [`ProtectionDomain::register`].
    ///
    /// # Safety
    /// - `ptr..ptr + len_bytes` stays mapped at this address until the region is dropped.
    /// - While the region exists, Rust references to bytes that `access` lets a device write do not exist; everything
    ///   else may be read only as memory that can change at any moment.
    pub unsafe fn register_raw(
        self: &Arc<Self>,
        ptr: *mut u8,
        len_bytes: usize,
        access: Access,
    ) -> Result<MemoryRegion<RawRange>> {
        self.register(RawRange::new(ptr, len_bytes), access)
    }

    /// Registers `len_bytes` of a dmabuf (device memory); peers address it from `iova`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the device, kernel or library cannot (the software devices cannot),
    /// [`Error::Register`] otherwise.
    pub fn register_dmabuf(
        self: &Arc<Self>,
        fd: OwnedFd,
        offset_bytes: u64,
        len_bytes: usize,
        iova: u64,
        access: Access,
    ) -> Result<MemoryRegion<DmaBuf>> {
        access.check_for_region()?;
        let (raw_fd, rights) = (fd.as_raw_fd(), access.bits() as i32);
        // SAFETY: the domain and the descriptor are alive; the kernel checks that it is a dmabuf of at least this size.
        let raw =
            unsafe { sys::ibv_reg_dmabuf_mr(self.as_ptr(), offset_bytes, len_bytes, iova, raw_fd, rights) };
        match NonNull::new(raw) {
            Some(raw) => Ok(MemoryRegion {
                raw,
                memory: ManuallyDrop::new(DmaBuf { fd }),
                addr: iova,
                len_bytes,
                access,
                pd: self.clone(),
            }),
            None => {
                let source = io::Error::last_os_error();
                if matches!(source.raw_os_error(), Some(libc::EOPNOTSUPP) | Some(libc::ENOSYS)) {
                    let what = format!("{len_bytes} bytes of dmabuf on {}", self.context().name());
                    return Err(Error::Unsupported {
                        call: "ibv_reg_dmabuf_mr",
                        what,
                        source,
                    });
                }
                Err(Error::Register {
                    addr: iova,
                    len_bytes,
                    access,
                    hint: String::new(),
                    source,
                })
            }
        }
    }

    fn reg_mr(&self, ptr: *mut u8, len_bytes: usize, access: Access) -> Result<NonNull<sys::ibv_mr>> {
        access.check_for_region()?;
        if len_bytes == 0 {
            return Err(Error::invalid("a range of 0 bytes cannot be registered"));
        }
        let addr = ptr.addr() as u64;
        // SAFETY: the domain is alive; the kernel checks that the range is mapped with the permissions that `access`
        // needs, and `Registrable` (or the caller of `register_raw`) promises that it stays so.
        let raw = unsafe { sys::ibv_reg_mr_iova2(self.as_ptr(), ptr.cast(), len_bytes, addr, access.bits()) };
        NonNull::new(raw)
            .ok_or_else(|| self.register_error(addr, len_bytes, access, io::Error::last_os_error()))
    }

    /// Tells a missing feature from a refusal, and says what to do about the latter.
    fn register_error(&self, addr: u64, len_bytes: usize, access: Access, source: io::Error) -> Error {
        let on_demand = access.contains(Access::ON_DEMAND);
        // A device without on-demand paging says EINVAL on some kernels and EOPNOTSUPP on others.
        let lacks_odp = on_demand && !self.context().query_device().is_ok_and(|attr| attr.odp.supported);
        if lacks_odp || source.raw_os_error() == Some(libc::EOPNOTSUPP) {
            let what = format!("{len_bytes} bytes with {access} on {}", self.context().name());
            return Error::Unsupported {
                call: "ibv_reg_mr",
                what,
                source,
            };
        }
        let hint = match source.raw_os_error() {
            Some(libc::ENOMEM) => memlock_hint(),
            Some(libc::EFAULT) => "; the range is not all mapped, or the mapping lacks a permission: kernels before \
                                   6.12 want it writable even for REMOTE_READ, newer ones refuse LOCAL_WRITE and \
                                   REMOTE_WRITE on a file's mapping"
                .into(),
            _ => String::new(),
        };
        Error::Register {
            addr,
            len_bytes,
            access,
            hint,
            source,
        }
    }
}

fn memlock_hint() -> String {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock);
    match limit.current {
        Some(bytes) => format!(
            "; the limit of locked memory is {} KiB: raise it (ulimit -l unlimited, or LimitMEMLOCK=infinity)",
            bytes / 1024
        ),
        None => "; locked memory is not limited, so the machine or its control group is out of memory".into(),
    }
}

impl<M> MemoryRegion<M> {
    /// The memory it was made from.
    pub fn memory(&self) -> &M {
        &self.memory
    }

    /// The domain it belongs to.
    pub fn pd(&self) -> &Arc<ProtectionDomain> {
        &self.pd
    }

    /// First address, as a peer names it.
    pub fn addr(&self) -> u64 {
        self.addr
    }

    /// Length in bytes.
    pub fn len_bytes(&self) -> usize {
        self.len_bytes
    }

    /// What was granted.
    pub fn access(&self) -> Access {
        self.access
    }

    /// The key for scatter lists of this process.
    pub fn lkey(&self) -> Lkey {
        // SAFETY: `raw` is a live region until `Drop`; the key never changes.
        Lkey(unsafe { self.raw.as_ref() }.lkey)
    }

    /// The key for peers.
    pub fn rkey(&self) -> Rkey {
        // SAFETY: `raw` is a live region until `Drop`; the key never changes.
        Rkey(unsafe { self.raw.as_ref() }.rkey)
    }

    /// A scatter list entry of `len_bytes` at `offset_bytes` of the region.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if it does not lie in the region.
    pub fn sge(&self, offset_bytes: usize, len_bytes: usize) -> Result<Sge> {
        let inside = offset_bytes
            .checked_add(len_bytes)
            .is_some_and(|end| end <= self.len_bytes);
        match u32::try_from(len_bytes) {
            Ok(len) if inside => Ok(Sge::new(self.addr + offset_bytes as u64, len, self.lkey())),
            _ => Err(Error::invalid(format!(
                "{len_bytes} bytes at offset {offset_bytes} do not lie in a region of {}, or are more than 4 GiB",
                self.len_bytes
            ))),
        }
    }

    /// Deregisters and gives the memory back.
    ///
    /// # Errors
    /// [`Error::Verb`] if the kernel refuses; region and memory are leaked then, for a device may still use them.
    pub fn deregister(self) -> Result<M> {
        let mut this = ManuallyDrop::new(self);
        // SAFETY: `this` is never used again: `Drop` is switched off by `ManuallyDrop`, and the fields are taken below.
        let pd = unsafe { std::ptr::read(&this.pd) };
        // SAFETY: the region is live and deregistered once: `Drop` does not run for `this`.
        let rc = unsafe { sys::ibv_dereg_mr(this.raw.as_ptr()) };
        match os_result(rc) {
            // SAFETY: taken once, and the region that used the memory is gone.
            Ok(()) => Ok(unsafe { ManuallyDrop::take(&mut this.memory) }),
            Err(source) => {
                let what = format!("{} bytes at {:#x}", this.len_bytes, this.addr);
                // The kernel still has the region, which needs its domain.
                std::mem::forget(pd);
                Err(Error::verb("ibv_dereg_mr", what, source))
            }
        }
    }
}

impl<M> Drop for MemoryRegion<M> {
    fn drop(&mut self) {
        // SAFETY: the region is live and deregistered once, here; `deregister` switches this off.
        let rc = unsafe { sys::ibv_dereg_mr(self.raw.as_ptr()) };
        if rc != 0 {
            tracing::error!(
                rc,
                addr = self.addr,
                len_bytes = self.len_bytes,
                "ibv_dereg_mr failed; memory is leaked"
            );
            return;
        }
        // SAFETY: dropped once, and no device uses the memory any more.
        unsafe { ManuallyDrop::drop(&mut self.memory) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memlock_hint_names_the_limit_or_says_there_is_none() {
        let hint = memlock_hint();
        assert!(hint.contains("KiB") || hint.contains("not limited"), "{hint}");
    }
}
