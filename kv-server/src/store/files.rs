//! Every call on a file that the store makes, in one place: so that errors name call and path, and so that a test can
//! make any of them fail.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::StorageError;
use crate::store::limits::WRITE_VECTORS_MAX;
use crate::store::sync_kind::SyncKind;

/// A call on a file, as faults and counters tell them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    Create,
    Write,
    Sync,
    SyncDirectory,
    Truncate,
    Punch,
    Rename,
    Read,
    Remove,
    /// How much is free: a fault's number of bytes is the answer.
    Space,
}

impl Call {
    pub(crate) const fn text(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Write => "write",
            Self::Sync => "sync",
            Self::SyncDirectory => "sync directory",
            Self::Truncate => "truncate",
            Self::Punch => "punch",
            Self::Rename => "rename",
            Self::Read => "read",
            Self::Remove => "remove",
            Self::Space => "statvfs",
        }
    }
}

/// What a test has a call do: fail after so many bytes were written.
#[cfg(test)]
pub(crate) type Fault = (usize, io::Error);
/// Decides which calls fail.
#[cfg(test)]
pub(crate) type FaultHook = Box<dyn Fn(Call, &Path) -> Option<Fault> + Send + Sync>;

/// The file system, and what it was asked for so far.
#[derive(Default)]
pub(crate) struct Files {
    #[cfg(test)]
    pub(crate) faults: Option<FaultHook>,
    read_bytes: AtomicU64,
    written_bytes: AtomicU64,
    syncs: AtomicU64,
}

/// An open file and its name.
#[derive(Debug)]
pub(crate) struct OpenFile {
    file: File,
    path: PathBuf,
}

impl OpenFile {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Files {
    pub(crate) fn read_bytes(&self) -> u64 {
        self.read_bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn written_bytes(&self) -> u64 {
        self.written_bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn syncs(&self) -> u64 {
        self.syncs.load(Ordering::Relaxed)
    }

    #[cfg(test)]
    fn fault(&self, call: Call, path: &Path) -> Option<Fault> {
        self.faults.as_ref().and_then(|faults| faults(call, path))
    }

    fn run<T>(
        &self,
        call: Call,
        path: &Path,
        what: impl FnOnce() -> io::Result<T>,
    ) -> Result<T, StorageError> {
        #[cfg(test)]
        if let Some((_, error)) = self.fault(call, path) {
            return Err(StorageError::io(call.text(), path, error));
        }
        what().map_err(|error| StorageError::io(call.text(), path, error))
    }

    /// Makes a file, or empties the one that is there.
    pub(crate) fn create(&self, path: &Path) -> Result<OpenFile, StorageError> {
        let mut options = OpenOptions::new();
        options
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600);
        let file = self.run(Call::Create, path, || options.open(path))?;
        Ok(OpenFile {
            file,
            path: path.to_owned(),
        })
    }

    /// Opens a file that is there, for writing too where that is allowed.
    pub(crate) fn open(&self, path: &Path) -> Result<OpenFile, StorageError> {
        let file = self.run(Call::Read, path, || {
            OpenOptions::new()
                .read(true)
                .write(true)
                .open(path)
                .or_else(|_| File::open(path))
        })?;
        Ok(OpenFile {
            file,
            path: path.to_owned(),
        })
    }

    pub(crate) fn len(&self, file: &OpenFile) -> Result<u64, StorageError> {
        self.run(Call::Read, &file.path, || Ok(file.file.metadata()?.len()))
    }

    /// Reads exactly `out.len()` bytes.
    pub(crate) fn read_at(&self, file: &OpenFile, out: &mut [u8], offset: u64) -> Result<(), StorageError> {
        self.run(Call::Read, &file.path, || file.file.read_exact_at(out, offset))?;
        self.read_bytes.fetch_add(out.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Writes all of `slices`, one behind the other.
    pub(crate) fn write_at(
        &self,
        file: &OpenFile,
        slices: &mut [IoSlice<'_>],
        offset: u64,
    ) -> Result<(), StorageError> {
        let whole: usize = slices.iter().map(|slice| slice.len()).sum();
        #[cfg(test)]
        if let Some((written, error)) = self.fault(Call::Write, &file.path) {
            let bytes: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).collect();
            let part = &bytes[..written.min(bytes.len())];
            file.file
                .write_all_at(part, offset)
                .expect("the test's own disk holds it");
            return Err(StorageError::io(Call::Write.text(), &file.path, error));
        }
        write_all(&file.file, slices, offset)
            .map_err(|error| StorageError::io(Call::Write.text(), &file.path, error))?;
        self.written_bytes.fetch_add(whole as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Makes what was written durable.
    pub(crate) fn sync(&self, file: &OpenFile, kind: SyncKind) -> Result<(), StorageError> {
        self.syncs.fetch_add(1, Ordering::Relaxed);
        if kind.is_left_out() {
            return Ok(());
        }
        // Whatever the reason, what of it is durable is not known.
        self.run(Call::Sync, &file.path, || file.file.sync_data())
            .map_err(StorageError::into_unknown)
    }

    /// Has the next reads of a file that is durable ask the device. That it cannot be asked for is no error.
    pub(crate) fn forget(&self, file: &OpenFile) {
        let _ = rustix::fs::fadvise(&file.file, 0, None, rustix::fs::Advice::DontNeed);
    }

    pub(crate) fn truncate(&self, file: &OpenFile, len: u64) -> Result<(), StorageError> {
        self.run(Call::Truncate, &file.path, || file.file.set_len(len))
    }

    /// Gives what lies from byte `from` on back to the disk: it reads as zeroes, and the length stays.
    pub(crate) fn punch(&self, file: &OpenFile, from: u64) -> Result<(), StorageError> {
        let len = self.len(file)?;
        if from >= len {
            return Ok(());
        }
        self.run(Call::Punch, &file.path, || {
            let flags = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
            match rustix::fs::fallocate(&file.file, flags, from, len - from) {
                // Some file systems have no other way. A crash in between looks like a file that was cut.
                Err(rustix::io::Errno::OPNOTSUPP) => {
                    file.file.set_len(from)?;
                    file.file.set_len(len)
                }
                punched => Ok(punched?),
            }
        })
    }

    /// Where the last data of a file of `len` bytes ends: behind that is a hole.
    pub(crate) fn data_end(&self, file: &OpenFile, len: u64) -> Result<u64, StorageError> {
        use rustix::fs::SeekFrom;
        self.run(Call::Read, &file.path, || {
            let mut end = 0;
            loop {
                let data = match rustix::fs::seek(&file.file, SeekFrom::Data(end)) {
                    Ok(data) => data,
                    Err(rustix::io::Errno::NXIO) => return Ok(end),
                    // Nothing says where holes are.
                    Err(rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP) => return Ok(len),
                    Err(error) => return Err(error.into()),
                };
                end = rustix::fs::seek(&file.file, SeekFrom::Hole(data))?;
            }
        })
    }

    /// Length of the file system of `path`, bytes.
    pub(crate) fn size_bytes(&self, path: &Path) -> Result<u64, StorageError> {
        let space = rustix::fs::statvfs(path)
            .map_err(|error| StorageError::io(Call::Space.text(), path, error.into()))?;
        Ok(space.f_blocks.saturating_mul(space.f_frsize))
    }

    /// Makes a file that takes `len` bytes of the disk.
    pub(crate) fn allocate(&self, path: &Path, len: u64) -> Result<(), StorageError> {
        let file = self.create(path)?;
        self.run(Call::Write, path, || {
            let flags = rustix::fs::FallocateFlags::empty();
            Ok(rustix::fs::fallocate(&file.file, flags, 0, len)?)
        })?;
        self.sync(&file, SyncKind::Reserve)
    }

    /// Bytes that may still be written to the file system of `path`.
    pub(crate) fn free_bytes(&self, path: &Path) -> Result<u64, StorageError> {
        #[cfg(test)]
        if let Some((free, _)) = self.fault(Call::Space, path) {
            return Ok(free as u64);
        }
        let space = rustix::fs::statvfs(path)
            .map_err(|error| StorageError::io(Call::Space.text(), path, error.into()))?;
        Ok(space.f_bavail.saturating_mul(space.f_frsize))
    }

    pub(crate) fn sync_directory(&self, path: &Path) -> Result<(), StorageError> {
        if SyncKind::of_directory(path).is_left_out() {
            return Ok(());
        }
        self.run(Call::SyncDirectory, path, || File::open(path)?.sync_all())
    }

    pub(crate) fn rename(&self, from: &Path, to: &Path) -> Result<(), StorageError> {
        self.run(Call::Rename, from, || std::fs::rename(from, to))
    }

    pub(crate) fn create_directory(&self, path: &Path) -> Result<(), StorageError> {
        self.run(Call::Create, path, || std::fs::create_dir(path))
    }

    pub(crate) fn remove(&self, path: &Path) -> Result<(), StorageError> {
        self.run(Call::Remove, path, || std::fs::remove_file(path))
    }

    /// Removes what is in a directory.
    pub(crate) fn empty_directory(&self, path: &Path) -> Result<(), StorageError> {
        for name in self.names(path)? {
            let entry = path.join(name);
            if entry.is_dir() {
                self.remove_directory(&entry)?;
            } else {
                self.remove(&entry)?;
            }
        }
        Ok(())
    }

    pub(crate) fn remove_directory(&self, path: &Path) -> Result<(), StorageError> {
        self.run(Call::Remove, path, || std::fs::remove_dir_all(path))
    }

    /// Names in a directory, in order.
    pub(crate) fn names(&self, path: &Path) -> Result<Vec<String>, StorageError> {
        self.run(Call::Read, path, || {
            let mut names = Vec::new();
            for entry in std::fs::read_dir(path)? {
                names.push(entry?.file_name().to_string_lossy().into_owned());
            }
            names.sort();
            Ok(names)
        })
    }

    /// Writes a file over in its place, durably: for what a disk without any room must hold.
    pub(crate) fn overwrite(&self, path: &Path, bytes: &[u8]) -> Result<(), StorageError> {
        let file = self.open(path)?;
        self.write_at(&file, &mut [IoSlice::new(bytes)], 0)?;
        self.sync(&file, SyncKind::of_whole(path))
    }

    /// Makes a whole file of a name durable: `<path>.new`, fsync, rename, fsync of the directory.
    pub(crate) fn replace(&self, path: &Path, bytes: &[u8]) -> Result<OpenFile, StorageError> {
        self.replace_sparse(path, bytes, bytes.len() as u64)
    }

    /// [`Files::replace`] by a file of `len` bytes, of which those behind `bytes` are a hole.
    pub(crate) fn replace_sparse(
        &self,
        path: &Path,
        bytes: &[u8],
        len: u64,
    ) -> Result<OpenFile, StorageError> {
        let new = path.with_added_extension_new();
        let made = self.create(&new).and_then(|file| {
            self.write_at(&file, &mut [IoSlice::new(bytes)], 0)?;
            if len > bytes.len() as u64 {
                self.truncate(&file, len)?;
            }
            self.sync(&file, SyncKind::of_whole(path))?;
            self.rename(&new, path)?;
            Ok(file)
        });
        let mut file = made.inspect_err(|_| {
            // What stays is removed at the next start.
            let _ = std::fs::remove_file(&new);
        })?;
        if let Some(directory) = path.parent() {
            self.sync_directory(directory)?;
        }
        path.clone_into(&mut file.path);
        Ok(file)
    }
}

/// `<path>.new`: what is removed at start where it is met.
trait NewName {
    fn with_added_extension_new(&self) -> PathBuf;
}

impl NewName for Path {
    fn with_added_extension_new(&self) -> PathBuf {
        let mut name = self.as_os_str().to_owned();
        name.push(".new");
        name.into()
    }
}

fn write_all(file: &File, mut slices: &mut [IoSlice<'_>], mut offset: u64) -> io::Result<()> {
    IoSlice::advance_slices(&mut slices, 0);
    while !slices.is_empty() {
        let some = slices.len().min(WRITE_VECTORS_MAX);
        match rustix::io::pwritev(file, &slices[..some], offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                offset += written as u64;
                IoSlice::advance_slices(&mut slices, written);
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
