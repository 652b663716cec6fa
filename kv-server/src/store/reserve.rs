//! Room on the disk that is kept for what frees room: deletes and compaction.
//!
//! A file of that length is given up when the disk is full, and taken again when there is room for it and some besides.
//! Until then nothing is stored but tombstones and copies. What is wanted of a segment is copied before its file goes: so
//! the room is that of a whole segment, else a full disk of segments with little dead in each could never free any.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use super::files::Files;
use super::lock;
use crate::error::StorageError;

/// The file, in the data directory.
const NAME: &str = "reserve";
/// What is asked for takes at most one part in so many of a file system,
const DISK_FRACTION: u64 = 16;
/// and what a segment needs at most one in so many.
const SEGMENT_DISK_FRACTION: u64 = 4;
/// Copies of a segment take up to one part in so many more than the segment: FOOTERs list them.
const LISTS_FRACTION: u64 = 4;
/// There is one part in so many besides when the room is taken: it is not given up again at once.
const BESIDES_FRACTION: u64 = 8;

#[derive(Debug)]
struct Room {
    wanted_bytes: u64,
    held_bytes: u64,
}

/// Room on the disk that is kept.
#[derive(Debug)]
pub(crate) struct Reserve {
    root: PathBuf,
    /// Length of the file system, bytes.
    disk_bytes: u64,
    room: Mutex<Room>,
}

impl Reserve {
    /// A reserve of `bytes`, or of what is sane for the file system; nothing is taken yet, but one that was left is
    /// held.
    ///
    /// # Errors
    /// Why the file system cannot be asked.
    pub(crate) fn open(files: &Files, root: &Path, bytes: u64) -> Result<Self, StorageError> {
        let disk_bytes = files.size_bytes(root)?;
        let wanted_bytes = bytes.min(disk_bytes / DISK_FRACTION);
        let left = std::fs::metadata(root.join(NAME)).map_or(0, |left| left.len());
        Ok(Self {
            root: root.to_owned(),
            disk_bytes,
            room: Mutex::new(Room {
                wanted_bytes,
                held_bytes: if wanted_bytes == 0 { 0 } else { left },
            }),
        })
    }

    /// Has it be enough for the copies of a segment of this length, unless none is wanted.
    pub(crate) fn allow_for(&self, segment_bytes: u64) {
        let copies_bytes = segment_bytes + segment_bytes / LISTS_FRACTION;
        let copies_bytes = copies_bytes.min(self.disk_bytes / SEGMENT_DISK_FRACTION);
        let mut room = lock(&self.room);
        if room.wanted_bytes > 0 {
            room.wanted_bytes = room.wanted_bytes.max(copies_bytes);
        }
    }

    fn path(&self) -> PathBuf {
        self.root.join(NAME)
    }

    /// Bytes that giving it up would free.
    pub(crate) fn held_bytes(&self) -> u64 {
        lock(&self.room).held_bytes
    }

    /// Gives the room up; whether there was any.
    pub(crate) fn give_up(&self, files: &Files) -> bool {
        let mut room = lock(&self.room);
        if room.held_bytes == 0 {
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
            bytes = room.held_bytes,
            "the disk is full: nothing is stored until values are deleted, or space is freed otherwise"
        );
        room.held_bytes = 0;
        true
    }

    /// Takes the room again where there is some besides; whether it is held, or none is wanted.
    pub(crate) fn take(&self, files: &Files) -> bool {
        let mut room = lock(&self.room);
        let wanted_bytes = room.wanted_bytes;
        if room.held_bytes >= wanted_bytes {
            return true;
        }
        let free_bytes = files.free_bytes(&self.root).unwrap_or(0) + room.held_bytes;
        if free_bytes < wanted_bytes + wanted_bytes / BESIDES_FRACTION {
            return false;
        }
        let path = self.path();
        match files.allocate(&path, wanted_bytes) {
            Ok(()) => {
                tracing::info!(
                    bytes = wanted_bytes,
                    "room on the disk is kept for deletes and compaction"
                );
                room.held_bytes = wanted_bytes;
            }
            Err(error) => {
                tracing::debug!(%error, "no room can be kept on the disk yet");
                // It may be there in part.
                let _ = files.remove(&path);
                room.held_bytes = 0;
            }
        }
        room.held_bytes > 0
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
        let needed = (BYTES + BYTES / BESIDES_FRACTION) as usize;
        free.store(needed - 1, Ordering::Relaxed);
        assert!(!reserve.take(&files) && !reserve.give_up(&files));
        assert!(matches!(reserve.check(&files), Err(StorageError::NoSpace { .. })));
        assert_eq!(reserve.held_bytes(), 0);
        free.store(needed, Ordering::Relaxed);
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
        // What is held is part of what a longer segment needs.
        let reserve = open();
        free.store(needed, Ordering::Relaxed);
        assert!(reserve.take(&files));
        reserve.allow_for(2 * BYTES);
        assert!(!reserve.take(&files));
        assert_eq!(reserve.held_bytes(), BYTES, "it is kept until there is more");
        free.store(2 * BYTES as usize, Ordering::Relaxed);
        assert!(reserve.take(&files));
        assert_eq!(reserve.held_bytes(), 2 * BYTES + 2 * BYTES / LISTS_FRACTION);
        assert!(reserve.give_up(&files));
        // None is wanted.
        let none = Reserve::open(&files, directory.path(), 0).unwrap();
        assert!(none.take(&files) && none.held_bytes() == 0 && !none.path().exists());
    }
}
