//! The bytes of a file that is checked: read in pieces, and where that fails page by page, so that what can be read is.

use std::cell::{Cell, RefCell};

use super::super::files::{Files, OpenFile};
use super::super::limits::PAGE_BYTES;
use super::super::recover::source::{FileSource, Source};
use crate::error::StorageError;

/// Runs of bytes that could not be read, told at most.
const UNREADABLE_MAX: usize = 64;

struct Inner<'a> {
    source: FileSource<'a>,
    unreadable: Vec<(u64, StorageError)>,
}

/// A file that is walked and looked into at a time.
pub(super) struct Bytes<'a> {
    files: &'a Files,
    file: &'a OpenFile,
    inner: RefCell<Inner<'a>>,
    stopped: Cell<bool>,
}

impl<'a> Bytes<'a> {
    /// Of a file that has `len` bytes.
    pub(super) fn new(files: &'a Files, file: &'a OpenFile, len: u64) -> Self {
        Self {
            files,
            file,
            inner: RefCell::new(Inner {
                source: FileSource::new(files, file, len),
                unreadable: Vec::new(),
            }),
            stopped: Cell::new(false),
        }
    }

    /// Copies out what is there, zeroes for what cannot be read.
    fn copy(&self, offset: u64, out: &mut [u8]) {
        let inner = &mut *self.inner.borrow_mut();
        if inner.source.read(offset, out).is_ok() {
            return;
        }
        let mut at = offset;
        let end = offset + out.len() as u64;
        while at < end {
            let next = (at / PAGE_BYTES * PAGE_BYTES + PAGE_BYTES).min(end);
            let piece = &mut out[(at - offset) as usize..(next - offset) as usize];
            if let Err(error) = self.files.read_at(self.file, piece, at) {
                piece.fill(0);
                let page = at / PAGE_BYTES * PAGE_BYTES;
                let told = inner.unreadable.iter().any(|(known, _)| *known == page);
                if !told && inner.unreadable.len() < UNREADABLE_MAX {
                    inner.unreadable.push((page, error));
                }
            }
            at = next;
        }
    }

    /// First byte from `from` to `end` that is not zero.
    pub(super) fn not_zero(&self, from: u64, end: u64) -> Option<u64> {
        let mut piece = [0; PAGE_BYTES as usize];
        let mut at = from;
        while at < end {
            let some = (end - at).min(PAGE_BYTES) as usize;
            self.copy(at, &mut piece[..some]);
            if let Some(index) = piece[..some].iter().position(|byte| *byte != 0) {
                return Some(at + index as u64);
            }
            at += some as u64;
        }
        None
    }

    /// Ends the walk.
    pub(super) fn stop(&self) {
        self.stopped.set(true);
    }

    /// The bytes from `offset` on.
    pub(super) fn get(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        self.copy(offset, &mut out);
        out
    }

    /// Pages that could not be read so far.
    pub(super) fn take_unreadable(&self) -> Vec<(u64, StorageError)> {
        std::mem::take(&mut self.inner.borrow_mut().unreadable)
    }
}

impl Source for &Bytes<'_> {
    fn read(&mut self, offset: u64, out: &mut [u8]) -> Result<(), StorageError> {
        if self.stopped.get() {
            return Err(StorageError::ShuttingDown);
        }
        self.copy(offset, out);
        Ok(())
    }
}
