//! The file of a list that says what there should be: read, written anew, or set aside where it cannot be believed.

use std::path::{Path, PathBuf};

use kv_proto::DecodeError;

use super::files::Files;
use crate::error::StorageError;

/// One such file.
pub(crate) struct ListFile {
    path: PathBuf,
    /// What one that could not be believed is called from then on.
    damaged: PathBuf,
    /// Whether it says what is listed, durably.
    pub(crate) written: bool,
    /// Whether one that cannot be believed has the name still.
    pub(crate) in_the_way: bool,
}

impl ListFile {
    /// Of `directory`; nothing is known yet of what is there.
    pub(crate) fn new(directory: &Path, name: &str, damaged_name: &str) -> Self {
        Self {
            path: directory.join(name),
            damaged: directory.join(damaged_name),
            written: false,
            in_the_way: false,
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What is listed, as `parse` makes it of the bytes; `None` where there is no list. `what` it is is said in errors, as it
    /// is where it is longer than `max_bytes`.
    ///
    /// # Errors
    /// [`StorageError::Damaged`] for a list that cannot be believed, or why it cannot be read.
    pub(crate) fn read<T>(
        &self,
        files: &Files,
        what: &'static str,
        max_bytes: u64,
        parse: impl FnOnce(&[u8]) -> Result<T, DecodeError>,
    ) -> Result<Option<T>, StorageError> {
        let file = match files.open(&self.path) {
            Err(error) if error.is_not_found() => return Ok(None),
            opened => opened?,
        };
        let len = files.len(&file)?;
        let parsed = if len > max_bytes {
            Err(DecodeError::Range {
                what,
                field: "length",
                value: len,
            })
        } else {
            let mut bytes = vec![0; len as usize];
            files.read_at(&file, &mut bytes, 0)?;
            parse(&bytes)
        };
        parsed.map(Some).map_err(|source| StorageError::Damaged {
            path: self.path.clone(),
            source,
        })
    }

    /// Makes a list durable.
    pub(crate) fn replace(&mut self, files: &Files, list: &[u8]) -> Result<(), StorageError> {
        self.written = false;
        if self.in_the_way {
            self.set_aside(files)?;
        }
        files.replace(&self.path, list)?;
        self.written = true;
        Ok(())
    }

    /// Gives a list that cannot be believed another name: somebody may want to look at it.
    pub(crate) fn set_aside(&mut self, files: &Files) -> Result<(), StorageError> {
        match files.rename(&self.path, &self.damaged) {
            Err(error) if error.is_not_found() => {}
            renamed => renamed?,
        }
        self.in_the_way = false;
        Ok(())
    }
}
