//! Trailers that a disk was too full for. The segments have ended all the same; their trailers are written before another
//! segment is begun, so that only the last segment of a dataset is ever without.

use std::path::PathBuf;

use super::files::Files;
use super::footer::Ending;
use super::limits::FOOTER_ENTRIES_MAX;
use super::{Dataset, lock};
use crate::error::StorageError;

/// A segment without trailer that has ended, and whose records are durable.
#[derive(Debug)]
pub(crate) struct Owed {
    pub(crate) path: PathBuf,
    pub(crate) number: u32,
    pub(crate) identity: u64,
    /// Whether its file was found cut short.
    pub(crate) cut: bool,
    /// End of its records, bytes.
    pub(crate) end: u64,
    /// Lowest and highest sequence of its records.
    pub(crate) sequences: Option<(u64, u64)>,
}

impl Owed {
    fn pay(&self, files: &Files) -> Result<(), StorageError> {
        let file = match files.open(&self.path) {
            // It was compacted away.
            Err(error) if error.is_not_found() => return Ok(()),
            opened => opened?,
        };
        let ending = Ending {
            files,
            file: &file,
            number: self.number,
            identity: self.identity,
            cut: self.cut,
            whole_len: 0,
            end: self.end,
            sequences: self.sequences,
            footer_entries: FOOTER_ENTRIES_MAX,
        };
        ending.without_footers().map(drop)
    }
}

impl Dataset {
    /// Notes a segment that a full disk kept from being sealed.
    pub(crate) fn owe_trailer(&self, owed: Owed) {
        lock(&self.owed).push(owed);
    }

    /// Seals what a full disk kept from being sealed. What meets another error now is left to the next start, as where a
    /// segment meets that when it ends.
    ///
    /// # Errors
    /// The disk is still too full.
    pub(crate) fn pay_trailers(&self) -> Result<(), StorageError> {
        let mut owed = lock(&self.owed);
        while let Some(last) = owed.last() {
            match last.pay(&self.shared.files) {
                Err(error) if error.is_full() => return Err(error),
                Err(error) => {
                    tracing::warn!(%error, segment = last.number, "a segment is left to be sealed by the next start");
                }
                Ok(()) => {}
            }
            owed.pop();
        }
        Ok(())
    }
}
