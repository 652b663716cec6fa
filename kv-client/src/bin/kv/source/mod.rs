//! The files and tar members that `kv ingest` stores and `kv verify` compares with.
//!
//! - [`scan`]: which there are, under which keys; nothing is read of them yet.
//! - [`tar_index`]: the members of a tar, from its headers, with what [`tar_extended`] makes of the longer ones.
//! - [`read`]: their bytes, with a check that nothing changed meanwhile.

pub(crate) mod read;
pub(crate) mod scan;
mod tar_extended;
pub(crate) mod tar_index;

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use crate::keys::{shown, shown_path};

/// Length and time of change of a file: what shows that it changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) len_bytes: u64,
    pub(crate) mtime: (i64, i64),
}

impl Stamp {
    pub(crate) fn of(metadata: &std::fs::Metadata) -> Self {
        Self {
            len_bytes: metadata.len(),
            mtime: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }
}

/// What a path stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum InputKind {
    /// A directory; items are the regular files below it.
    Tree,
    /// One regular file.
    File,
    /// A tar; items are its members. The stamp is that of the file whose headers were read.
    Shard(Stamp),
}

/// One path that items come from.
#[derive(Clone, Debug)]
pub(crate) struct Input {
    pub(crate) path: PathBuf,
    pub(crate) kind: InputKind,
}

/// One value to be: a file or a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Item {
    /// Its key, prefix included.
    pub(crate) key: Vec<u8>,
    /// Which of [`Sources::inputs`] it comes from.
    pub(crate) input: u32,
    /// Where its bytes start in the shard; 0 for a file.
    pub(crate) offset: u64,
    /// Its length when it was scanned, bytes.
    pub(crate) len_bytes: u64,
}

/// Something that is not stored, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    /// Path or member, in the form that is safe to print.
    pub(crate) origin: String,
    pub(crate) why: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.origin, self.why)
    }
}

/// What a scan found.
#[derive(Debug, Default)]
pub(crate) struct Sources {
    pub(crate) inputs: Vec<Input>,
    pub(crate) items: Vec<Item>,
    /// Symbolic links and special files.
    pub(crate) skipped: Vec<Problem>,
    /// What should have been stored and cannot be.
    pub(crate) failed: Vec<Problem>,
    /// Tars below directories that are stored as files.
    pub(crate) nested_tars: u64,
    /// Tars whose members cannot be read where they lie.
    pub(crate) compressed_tars: u64,
    pub(crate) prefix_len_bytes: usize,
}

impl Sources {
    /// Total length of the items, bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.items.iter().map(|item| item.len_bytes).sum()
    }

    pub(crate) fn input(&self, item: &Item) -> &Input {
        &self.inputs[item.input as usize]
    }

    /// The file that holds the item's bytes.
    pub(crate) fn path(&self, item: &Item) -> PathBuf {
        let input = self.input(item);
        match input.kind {
            InputKind::Tree => input
                .path
                .join(OsStr::from_bytes(&item.key[self.prefix_len_bytes..])),
            InputKind::File | InputKind::Shard(_) => input.path.clone(),
        }
    }

    /// Where the item comes from, for a person.
    pub(crate) fn origin(&self, item: &Item) -> String {
        let path = self.path(item);
        match self.input(item).kind {
            InputKind::Shard(_) => format!(
                "{}, member {} at offset {}",
                shown_path(&path),
                shown(&item.key[self.prefix_len_bytes..]),
                item.offset
            ),
            InputKind::Tree | InputKind::File => shown_path(&path).into_owned(),
        }
    }
}
