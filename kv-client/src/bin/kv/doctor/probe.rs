//! What a mapping of a file in a directory may register with a device.
//!
//! # Safety
//! A mapping made here belongs to one [`Mapping`] value, is never touched by this process, and is unmapped when that
//! value is dropped; the region that registers it owns it. The file behind it was written whole before, is unlinked,
//! and no other process has it, so it is never cut short under the mapping.
#![allow(unsafe_code)]

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::ptr::NonNull;

use rdma_core_rs::{Access, Context, ProtectionDomain, Registrable};
use rustix::fs::{fstatfs, fstatvfs};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::keys::shown_path;

/// Length of the file that is mapped, bytes.
const PROBE_BYTES: usize = 1 << 20;

/// What a data directory is.
#[derive(Clone, Debug)]
pub(crate) struct DirectoryFacts {
    pub(crate) shown: String,
    pub(crate) writable: Result<(), String>,
    /// Its name, or its number where it has no name here.
    pub(crate) file_system: String,
    pub(crate) free_bytes: u64,
}

/// KiB that registering 1024 KiB made dirty, for each form of mapping, or why it does not register.
#[derive(Clone, Debug)]
pub(crate) struct MappingFacts {
    pub(crate) read_only: Result<u64, String>,
    pub(crate) writable: Result<u64, String>,
}

/// Looks at a directory, and writes a file there for a moment.
pub(crate) fn directory(path: &Path) -> DirectoryFacts {
    let mut facts = DirectoryFacts {
        shown: shown_path(path).into_owned(),
        writable: Ok(()),
        file_system: "unknown file system".into(),
        free_bytes: 0,
    };
    match temporary(path, 4096) {
        Ok(file) => {
            if let Ok(answer) = fstatfs(&file) {
                facts.file_system = file_system_name(answer.f_type as u64);
            }
            if let Ok(answer) = fstatvfs(&file) {
                facts.free_bytes = answer.f_bavail.saturating_mul(answer.f_frsize);
            }
        }
        Err(error) => facts.writable = Err(error.to_string()),
    }
    facts
}

fn file_system_name(magic: u64) -> String {
    // statfs(2) lists these numbers.
    let name = match magic as u32 {
        0xef53 => "ext4",
        0x5846_5342 => "xfs",
        0x9123_683e => "btrfs",
        0x2fc1_2fc1 => "zfs",
        0x0102_1994 => "tmpfs",
        0x794c_7630 => "overlay",
        0x0102_1997 => "9p",
        0x6969 => "nfs",
        0x6573_5546 => "fuse",
        other => return format!("file system {other:#x}"),
    };
    name.into()
}

/// A synced file of so many bytes in `directory` that is gone when it is closed.
fn temporary(directory: &Path, len_bytes: usize) -> io::Result<File> {
    let path = directory.join(format!(".kv-doctor-{}", std::process::id()));
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)?;
    let unlinked = fs::remove_file(&path);
    file.write_all(&vec![0x5a; len_bytes])?;
    file.sync_all()?;
    unlinked.map(|()| file)
}

/// Registers mappings of a file in `data` with `device`, for READs by peers alone.
pub(crate) fn mappings(device: &str, data: &Path) -> MappingFacts {
    let probe = |protection| probe(device, data, protection);
    MappingFacts {
        read_only: probe(ProtFlags::READ),
        writable: probe(ProtFlags::READ | ProtFlags::WRITE),
    }
}

fn probe(device: &str, data: &Path, protection: ProtFlags) -> Result<u64, String> {
    let file = temporary(data, PROBE_BYTES).map_err(|error| format!("writing the file: {error}"))?;
    let context = Context::open(device).map_err(|error| error.to_string())?;
    let domain = ProtectionDomain::new(&context).map_err(|error| error.to_string())?;
    let mapping = Mapping::new(&file, protection).map_err(|error| format!("mapping the file: {error}"))?;
    let address = mapping.0.addr().get();
    let region = domain
        .register(mapping, Access::REMOTE_READ)
        .map_err(|error| error.to_string())?;
    let smaps =
        fs::read_to_string("/proc/self/smaps").map_err(|error| format!("/proc/self/smaps: {error}"))?;
    drop(region);
    dirty_kib(&smaps, address).ok_or_else(|| "/proc/self/smaps does not list the mapping".into())
}

/// KiB of the mapping at `address` that are dirty.
fn dirty_kib(smaps: &str, address: usize) -> Option<u64> {
    let start = format!("{address:x}-");
    let lines = smaps
        .lines()
        .skip_while(|line| !line.trim_start_matches('0').starts_with(&start))
        .skip(1);
    let dirty = lines
        .take_while(|line| {
            line.split_whitespace()
                .next()
                .is_some_and(|name| name.ends_with(':'))
        })
        .filter(|line| line.starts_with("Private_Dirty:") || line.starts_with("Shared_Dirty:"))
        .map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    let found: Vec<u64> = dirty.collect::<Option<_>>()?;
    (!found.is_empty()).then(|| found.iter().sum())
}

/// A shared mapping of the first [`PROBE_BYTES`] of a file.
struct Mapping(NonNull<u8>);

// SAFETY: the mapping belongs to this value alone, and its bytes are touched by nobody in this process.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}
// SAFETY: the mapping is made in `new`, stays where it is, and is unmapped in `Drop`; no reference to its bytes exists.
unsafe impl Registrable for Mapping {
    fn ptr(&self) -> *mut u8 {
        self.0.as_ptr()
    }
    fn len_bytes(&self) -> usize {
        PROBE_BYTES
    }
}

impl Mapping {
    fn new(file: &File, protection: ProtFlags) -> io::Result<Self> {
        // SAFETY: a fresh mapping at an address of the kernel's choice touches nothing that exists.
        let address = unsafe {
            mmap(
                std::ptr::null_mut(),
                PROBE_BYTES,
                protection,
                MapFlags::SHARED,
                file,
                0,
            )
        }?;
        NonNull::new(address.cast())
            .map(Self)
            .ok_or_else(|| io::Error::other("mmap gave the null address"))
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped in `new` with this length, unmapped once, and no region uses it any more: a region owns it.
        if let Err(error) = unsafe { munmap(self.0.as_ptr().cast(), PROBE_BYTES) } {
            tracing::error!(%error, "munmap of the probe's mapping");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_tells_its_file_system_and_keeps_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let facts = directory(dir.path());
        assert!(facts.writable.is_ok() && facts.free_bytes > 0, "{facts:?}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(
            directory(&dir.path().join("missing"))
                .writable
                .unwrap_err()
                .contains("No such file")
        );
    }

    #[test]
    fn dirty_pages_of_the_right_mapping_are_summed() {
        let smaps = "00400000-00500000 r--s 0 08:01 1 /a\nSize: 1024 kB\nShared_Dirty: 9 kB\nPrivate_Dirty: 9 kB\n\
                     7f00-8f00 r--s 0 08:01 2 /b: c\nSize: 1024 kB\nShared_Dirty: 4 kB\nPrivate_Dirty: 8 kB\n\
                     9f00-af00 rw-p 0 00:00 0\nPrivate_Dirty: 100 kB\n";
        assert_eq!(dirty_kib(smaps, 0x7f00), Some(12));
        assert_eq!(dirty_kib(smaps, 0x40_0000), Some(18));
        assert_eq!(dirty_kib(smaps, 0x1234), None);
    }

    #[test]
    fn this_kernels_smaps_lists_a_mapping_that_was_written_to_as_dirty() {
        let dir = tempfile::tempdir().unwrap();
        let file = temporary(dir.path(), PROBE_BYTES).unwrap();
        let mapping = Mapping::new(&file, ProtFlags::READ | ProtFlags::WRITE).unwrap();
        let dirty = || {
            let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
            dirty_kib(&smaps, mapping.0.addr().get()).unwrap()
        };
        assert_eq!(dirty(), 0);
        // SAFETY: the first byte is mapped and writable, and nobody else uses the mapping.
        unsafe { mapping.0.as_ptr().write_volatile(1) };
        // One page, or the folio that it is part of.
        assert!((4..=1024).contains(&dirty()), "{} KiB", dirty());
    }
}
