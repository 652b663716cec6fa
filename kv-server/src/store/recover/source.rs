//! Where the bytes of a segment come from while its records are walked.

use std::sync::Arc;

use super::super::files::{Files, OpenFile};
use super::super::index::Readable;
use super::super::limits::READ_PIECE_BYTES;
use super::super::segment::read_extents;
use crate::error::StorageError;

/// Bytes of a segment.
pub(crate) trait Source {
    /// Copies the bytes from `offset` on out; the walk asks for none past the end that it was told.
    fn read(&mut self, offset: u64, out: &mut [u8]) -> Result<(), StorageError>;
}

/// A segment's file, read in pieces.
pub(crate) struct FileSource<'a> {
    files: &'a Files,
    file: &'a OpenFile,
    /// Length of the file, bytes.
    len: u64,
    piece: Vec<u8>,
    piece_at: u64,
}

impl<'a> FileSource<'a> {
    /// Of a file that has `len` bytes.
    pub(crate) fn new(files: &'a Files, file: &'a OpenFile, len: u64) -> Self {
        Self {
            files,
            file,
            len,
            piece: Vec::new(),
            piece_at: 0,
        }
    }
}

impl Source for FileSource<'_> {
    fn read(&mut self, offset: u64, out: &mut [u8]) -> Result<(), StorageError> {
        let end = offset + out.len() as u64;
        if offset < self.piece_at || end > self.piece_at + self.piece.len() as u64 {
            let some = (out.len() as u64).max((READ_PIECE_BYTES as u64).min(self.len.saturating_sub(offset)));
            self.piece.resize(some as usize, 0);
            let read = self.files.read_at(self.file, &mut self.piece, offset);
            self.piece_at = offset;
            read.inspect_err(|_| self.piece.clear())?;
        }
        let at = (offset - self.piece_at) as usize;
        out.copy_from_slice(&self.piece[at..at + out.len()]);
        Ok(())
    }
}

/// A segment's image that nobody reads yet.
pub(crate) struct ImageSource<'a>(pub(crate) &'a [Arc<Readable>]);

impl Source for ImageSource<'_> {
    fn read(&mut self, offset: u64, out: &mut [u8]) -> Result<(), StorageError> {
        if read_extents(self.0, offset, out) {
            return Ok(());
        }
        let missing = std::io::Error::other(format!("it has no byte {}", offset + out.len() as u64));
        Err(StorageError::io(
            "verify",
            std::path::Path::new("the image of a segment"),
            missing,
        ))
    }
}
