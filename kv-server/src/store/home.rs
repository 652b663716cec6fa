//! The data directory itself: who has it, its superblock, and the numbers that are durable in it.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use kv_proto::DecodeError;
use kv_proto::crc::crc32c;
use kv_proto::layout::{MEDIA_FORMAT, SUPERBLOCK_MAGIC, Superblock};
use rustix::fs::FlockOperation;
use zerocopy::{FromZeros, IntoBytes};

use super::files::Files;
use super::limits::SEGMENT_NUMBERS_BATCH;
use super::lock;
use crate::error::StorageError;

/// Names that a directory may hold before it is a data directory.
const IGNORED_NAMES: [&str; 4] = ["lock", "lost+found", "superblock.new", "datasets"];

/// A data directory that this process has.
pub(crate) struct Home {
    root: PathBuf,
    /// Held for their flocks, until [`Home::leave`].
    held: Mutex<Vec<File>>,
    epoch: u64,
    numbers: Mutex<Numbers>,
}

struct Numbers {
    superblock: Superblock,
    /// Next number to give; below `superblock.segment_next`.
    next: u32,
}

impl Home {
    /// Takes the directory, checks or makes its superblock, and raises the epoch durably.
    pub(crate) fn open(files: &Files, root: &Path) -> Result<Self, StorageError> {
        let unwritable = |source: io::Error| match StorageError::io("write to", root, source) {
            StorageError::Io { path, source, .. } | StorageError::Forbidden { path, source, .. } => {
                StorageError::Unwritable { path, source }
            }
            full => full,
        };
        make_root(files, root, unwritable)?;
        let foreign = foreign_name(files, root)?;
        if let Some(found) = foreign {
            return Err(StorageError::NotADataDirectory {
                path: root.to_owned(),
                found,
            });
        }
        let held = take_lock(root, unwritable)?;
        let path = root.join("superblock");
        let is_new = !exists(&path)?;
        let mut superblock = if is_new {
            fresh_superblock()?
        } else {
            read_superblock(files, &path)?
        };
        superblock.epoch += 1;
        seal_superblock(&mut superblock);
        let replaced = match files.replace(&path, superblock.as_bytes()) {
            // What is kept for this is in the way.
            Err(error) if error.is_full() && root.join("reserve").exists() => {
                files.remove(&root.join("reserve"))?;
                files.replace(&path, superblock.as_bytes())
            }
            replaced => replaced,
        };
        let replaced = match replaced {
            // What is there is served; its bytes have their place on the device, in one sector.
            Err(error) if error.is_full() && !is_new => files.overwrite(&path, superblock.as_bytes()),
            replaced => replaced.map(drop),
        };
        replaced.map_err(|error| match error {
            StorageError::Forbidden { source, .. } => StorageError::Unwritable {
                path: root.to_owned(),
                source,
            },
            StorageError::Io { call, path, source } => match source.kind() {
                // Nothing was answered yet: that a sync failed leaves nothing in doubt.
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                    StorageError::NoSpace { call, path, source }
                }
                _ => StorageError::Io { call, path, source },
            },
            error => error,
        })?;
        let datasets = root.join("datasets");
        if !exists(&datasets)? {
            files.create_directory(&datasets)?;
            files.sync_directory(root)?;
        }
        Ok(Self {
            root: root.to_owned(),
            held: Mutex::new(held),
            epoch: superblock.epoch,
            numbers: Mutex::new(Numbers {
                superblock,
                next: superblock.segment_next,
            }),
        })
    }

    /// Lets another server have the directory: nothing is written any more, whoever still holds a dataset.
    pub(crate) fn leave(&self) {
        for held in lock(&self.held).drain(..) {
            // Closing it is not enough while a child that this process forks has it open too.
            let _ = rustix::fs::flock(&held, FlockOperation::Unlock);
        }
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    pub(crate) fn datasets(&self) -> PathBuf {
        self.root.join("datasets")
    }

    /// A segment number that was never given before.
    pub(crate) fn segment_number(&self, files: &Files) -> Result<u32, StorageError> {
        let mut numbers = lock(&self.numbers);
        if numbers.next == numbers.superblock.segment_next {
            let end = numbers
                .next
                .checked_add(SEGMENT_NUMBERS_BATCH)
                .ok_or(StorageError::Limit {
                    what: "segment numbers of this data directory are used up",
                    limit: u64::from(u32::MAX),
                })?;
            let mut superblock = numbers.superblock;
            superblock.segment_next = end;
            seal_superblock(&mut superblock);
            files.replace(&self.root.join("superblock"), superblock.as_bytes())?;
            numbers.superblock = superblock;
        }
        numbers.next += 1;
        Ok(numbers.next - 1)
    }

    /// Has every number up to `segment` count as given: a file of that number was met.
    pub(crate) fn skip_segment_numbers(&self, segment: u32) {
        let mut numbers = lock(&self.numbers);
        if segment >= numbers.next {
            // Reserved anew before the next one is given.
            let next = segment.saturating_add(1);
            numbers.next = next;
            numbers.superblock.segment_next = next;
        }
    }
}

/// Whether there is a file: one that cannot be asked for is not taken for missing, and made anew.
fn exists(path: &Path) -> Result<bool, StorageError> {
    path.try_exists()
        .map_err(|error| StorageError::io("look for", path, error))
}

/// Makes the data directory, and those above it that are missing, durably.
fn make_root(
    files: &Files,
    root: &Path,
    unwritable: impl Fn(io::Error) -> StorageError,
) -> Result<(), StorageError> {
    let missing: Vec<&Path> = root
        .ancestors()
        .take_while(|path| !path.as_os_str().is_empty() && path.try_exists().is_ok_and(|there| !there))
        .collect();
    if missing.is_empty() && !root.is_dir() {
        return Err(unwritable(io::Error::other("it is no directory")));
    }
    if let Some(above) = root.parent() {
        std::fs::create_dir_all(above).map_err(&unwritable)?;
    }
    // Others could read values in it, and take its lock.
    match DirBuilder::new().mode(0o700).create(root) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && root.is_dir() => {}
        made => made.map_err(unwritable)?,
    }
    for made in missing {
        let above = made.parent().filter(|above| !above.as_os_str().is_empty());
        files.sync_directory(above.unwrap_or(Path::new(".")))?;
    }
    Ok(())
}

/// A name that has no place in a directory without superblock.
fn foreign_name(files: &Files, root: &Path) -> Result<Option<String>, StorageError> {
    let names = files.names(root)?;
    if names.iter().any(|name| name == "superblock") {
        return Ok(None);
    }
    let datasets_used =
        names.iter().any(|name| name == "datasets") && !files.names(&root.join("datasets"))?.is_empty();
    Ok(names
        .into_iter()
        .find(|name| !IGNORED_NAMES.contains(&name.as_str()) || (name == "datasets" && datasets_used)))
}

fn take_lock(root: &Path, unwritable: impl Fn(io::Error) -> StorageError) -> Result<Vec<File>, StorageError> {
    let path = root.join("lock");
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(&unwritable)?;
    // One that was made before may be for others to read, and then they can take it. Not ours: whose it is knows best.
    let _ = file.set_permissions(Permissions::from_mode(0o600));
    flock(root, &path, &mut file)?;
    let mut held = Vec::from_iter(lock_directory(root)?);
    // For people only, and a full disk may have no room for it: the flock is what counts.
    let _ = file
        .set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| file.write_all(format!("{}\n", std::process::id()).as_bytes()));
    held.push(file);
    Ok(held)
}

/// Takes the lock of a directory without changing a byte of it; nothing where no server ever ran there, and its file system
/// locks no directories.
pub(crate) fn take_lock_quietly(root: &Path) -> Result<Vec<File>, StorageError> {
    let path = root.join("lock");
    let mut held = Vec::new();
    match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        opened => {
            let mut file = opened.map_err(|error| StorageError::io("open", &path, error))?;
            flock(root, &path, &mut file)?;
            held.push(file);
        }
    }
    held.extend(lock_directory(root)?);
    Ok(held)
}

/// Locks the directory itself: the file `lock` can be removed while a server runs, and then another one be made. `None`
/// where its file system locks no directories.
fn lock_directory(root: &Path) -> Result<Option<File>, StorageError> {
    let directory = File::open(root).map_err(|error| StorageError::io("open", root, error))?;
    match rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(directory)),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(StorageError::InUse {
            path: root.to_owned(),
            pid: None,
        }),
        Err(error) => {
            tracing::debug!(%error, path = %root.display(), "the directory itself cannot be locked");
            Ok(None)
        }
    }
}

fn flock(root: &Path, path: &Path, file: &mut File) -> Result<(), StorageError> {
    match rustix::fs::flock(&*file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut text = String::new();
            let pid = file
                .read_to_string(&mut text)
                .ok()
                .and_then(|_| text.trim().parse().ok());
            Err(StorageError::InUse {
                path: root.to_owned(),
                pid,
            })
        }
        Err(error) => Err(StorageError::io("flock", path, error.into())),
    }
}

fn fresh_superblock() -> Result<Superblock, StorageError> {
    Ok(Superblock {
        magic: SUPERBLOCK_MAGIC,
        format: MEDIA_FORMAT,
        flags: 0,
        server: super::random()?,
        epoch: 0,
        segment_next: 1,
        reserved: [0; 24],
        crc: 0,
    })
}

fn seal_superblock(superblock: &mut Superblock) {
    superblock.crc = crc32c(&superblock.as_bytes()[..size_of::<Superblock>() - 4]);
}

pub(crate) fn read_superblock(files: &Files, path: &Path) -> Result<Superblock, StorageError> {
    const WHAT: &str = "superblock";
    let file = files.open(path)?;
    let have = files.len(&file)?;
    let damaged = |source| StorageError::Damaged {
        path: path.to_owned(),
        source,
    };
    let mut superblock = Superblock::new_zeroed();
    let there = have.min(size_of::<Superblock>() as u64) as usize;
    files.read_at(&file, &mut superblock.as_mut_bytes()[..there], 0)?;
    // Before anything else of it is believed: another format may have another length and another CRC.
    if superblock.magic == SUPERBLOCK_MAGIC && superblock.format != MEDIA_FORMAT {
        return Err(StorageError::FormatVersion {
            path: path.to_owned(),
            found: superblock.format,
        });
    }
    if have != size_of::<Superblock>() as u64 {
        return Err(damaged(DecodeError::Short {
            what: WHAT,
            need: size_of::<Superblock>(),
            have: have as usize,
        }));
    }
    check_crc(WHAT, superblock.as_bytes(), superblock.crc).map_err(damaged)?;
    let range = |field, value| {
        damaged(DecodeError::Range {
            what: WHAT,
            field,
            value,
        })
    };
    if superblock.magic != SUPERBLOCK_MAGIC {
        return Err(range("magic", u64::from(superblock.magic)));
    }
    if superblock.flags != 0 {
        return Err(range("flags", u64::from(superblock.flags)));
    }
    if superblock.reserved != [0; 24] {
        return Err(range("reserved", 1));
    }
    if superblock.segment_next == 0 {
        return Err(range("segment_next", 0));
    }
    Ok(superblock)
}

/// Checks a struct whose last 4 bytes are the CRC of those before.
pub(crate) fn check_crc(what: &'static str, bytes: &[u8], found: u32) -> Result<(), DecodeError> {
    let computed = crc32c(&bytes[..bytes.len() - 4]);
    if computed == found {
        return Ok(());
    }
    Err(DecodeError::Checksum {
        what,
        found: u64::from(found),
        computed: u64::from(computed),
    })
}
