//! Room on the disk that is kept for what frees room: deletes and compaction.
//!
//! A file of that length is given up when the disk is full, and taken again when there is room for it and as much
//! besides. Until then nothing is stored but tombstones and copies.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use super::files::Files;
use super::lock;
use crate::error::StorageError;

/// The file, in the data directory.
const NAME: &str = "reserve";
/// The reserve takes at most one part in so many of a file system.
const DISK_FRACTION: u64 = 16;

/// Room on the disk that is kept.
#[derive(Debug)]
pub(crate) struct Reserve {
    root: PathBuf,
    bytes: u64,
    held: Mutex<bool>,
}

impl Reserve {
    /// A reserve of `bytes`, or of what is sane for the file system; nothing is taken yet, but one that was left is
    /// held.
    ///
    /// # Errors
    /// Why the file system cannot be asked.
    pub(crate) fn open(files: &Files, root: &Path, bytes: u64) -> Result<Self, StorageError> {
        let bytes = bytes.min(files.size_bytes(root)? / DISK_FRACTION);
        let left = std::fs::metadata(root.join(NAME)).is_ok_and(|left| left.len() >= bytes && bytes > 0);
        Ok(Self {
            root: root.to_owned(),
            bytes,
            held: Mutex::new(left),
        })
    }

    fn path(&self) -> PathBuf {
        self.root.join(NAME)
    }

    /// Bytes that giving it up would free.
    pub(crate) fn held_bytes(&self) -> u64 {
        if *lock(&self.held) { self.bytes } else { 0 }
    }

    /// Gives the room up; whether there was any.
    pub(crate) fn give_up(&self, files: &Files) -> bool {
        let mut held = lock(&self.held);
        if !*held {
            return false;
        }
        let removed = files
            .remove(&self.path())
            .and_then(|()| files.sync_directory(&self.root));
        if let Err(error) = removed {
            tracing::error!(%error, "the disk is full, and the room that was kept cannot be given up");
            return false;
        }
        tracing::warn!(
            bytes = self.bytes,
            "the disk is full: nothing is stored until values are deleted, or space is freed otherwise"
        );
        *held = false;
        true
    }

    /// Takes the room again where there is as much besides; whether it is held, or none is wanted.
    pub(crate) fn take(&self, files: &Files) -> bool {
        let mut held = lock(&self.held);
        if *held || self.bytes == 0 {
            return true;
        }
        let free = files.free_bytes(&self.root).unwrap_or(0);
        if free < 2 * self.bytes {
            return false;
        }
        let path = self.path();
        match files.allocate(&path, self.bytes) {
            Ok(()) => {
                tracing::info!(
                    bytes = self.bytes,
                    "room on the disk is kept for deletes and compaction"
                );
                *held = true;
            }
            Err(error) => {
                tracing::debug!(%error, "no room can be kept on the disk yet");
                // It may be there in part.
                let _ = files.remove(&path);
            }
        }
        *held
    }

    /// Refuses what would take the room that deletes and compaction need.
    ///
    /// # Errors
    /// [`StorageError::NoSpace`] while the room is given up and cannot be taken again.
    pub(crate) fn check(&self, files: &Files) -> Result<(), StorageError> {
        if self.take(files) {
            return Ok(());
        }
        let full = io::Error::from_raw_os_error(rustix::io::Errno::NOSPC.raw_os_error());
        Err(StorageError::io("store in", &self.root, full))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::super::files::Call;
    use super::*;
    use crate::store::tests::support::{faulty, scratch};

    #[test]
    fn it_is_taken_where_there_is_as_much_besides_and_known_again() {
        const BYTES: u64 = 1 << 16;
        let directory = scratch();
        let free = Arc::new(AtomicUsize::new(0));
        let asked = Arc::clone(&free);
        let files = faulty(Box::new(move |call: Call, _: &Path| {
            let free = asked.load(Ordering::Relaxed);
            (call == Call::Space).then(|| (free, io::Error::other("not used")))
        }));
        let open = || Reserve::open(&files, directory.path(), BYTES).unwrap();
        let reserve = open();
        free.store(2 * BYTES as usize - 1, Ordering::Relaxed);
        assert!(!reserve.take(&files) && !reserve.give_up(&files));
        assert!(matches!(reserve.check(&files), Err(StorageError::NoSpace { .. })));
        assert_eq!(reserve.held_bytes(), 0);
        free.store(2 * BYTES as usize, Ordering::Relaxed);
        reserve.check(&files).unwrap();
        assert_eq!(reserve.held_bytes(), BYTES);
        assert_eq!(std::fs::metadata(reserve.path()).unwrap().len(), BYTES);
        drop(reserve);
        free.store(0, Ordering::Relaxed);
        let left = open();
        assert_eq!(left.held_bytes(), BYTES);
        assert!(left.give_up(&files) && !left.give_up(&files));
        assert!(!left.path().exists());
        assert_eq!(open().held_bytes(), 0);
        // None is wanted.
        let none = Reserve::open(&files, directory.path(), 0).unwrap();
        assert!(none.take(&files) && none.held_bytes() == 0 && !none.path().exists());
    }
}
