//! The file `segments` of a dataset: which segments there should be, so that one whose file is gone is missed.
//!
//! - A segment is listed, durably, once its file stands and before anything in it is answered; it leaves the list,
//!   durably, before its file is removed. So no crash makes a segment that is listed and has no file.
//! - A file that is not listed is a segment all the same: a crash came between the two.
//! - Where there is no list, or none that can be believed, nothing is missed.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use kv_proto::DecodeError;
use kv_proto::segment_list::{encode_segments, parse_segments};

use super::files::Files;
use super::limits::SEGMENT_LIST_MAX_BYTES;
use super::lock;
use super::recover::says_lost;
use crate::error::StorageError;

/// Its name in the directory of its dataset.
pub(crate) const NAME: &str = "segments";

/// The list of a dataset that is served.
pub(crate) struct SegmentList {
    directory: PathBuf,
    dataset: [u8; 16],
    /// Whether what was found at the start could not be believed.
    was_damaged: bool,
    state: Mutex<State>,
}

struct State {
    listed: BTreeSet<u32>,
    /// Whether the file says this, durably.
    written: bool,
}

/// What is listed in `directory`; `None` where there is no list.
///
/// # Errors
/// [`StorageError::Damaged`] for a list that cannot be believed, or why it cannot be read.
pub(crate) fn read(
    files: &Files,
    directory: &Path,
    dataset: [u8; 16],
) -> Result<Option<BTreeSet<u32>>, StorageError> {
    let path = directory.join(NAME);
    let file = match files.open(&path) {
        Err(error) if error.is_not_found() => return Ok(None),
        opened => opened?,
    };
    let len = files.len(&file)?;
    let parsed = if len > SEGMENT_LIST_MAX_BYTES {
        Err(DecodeError::Range {
            what: "list of segments",
            field: "length",
            value: len,
        })
    } else {
        let mut bytes = vec![0; len as usize];
        files.read_at(&file, &mut bytes, 0)?;
        parse_segments(&bytes, dataset)
    };
    match parsed {
        Ok(segments) => Ok(Some(segments.into_iter().collect())),
        Err(source) => Err(StorageError::Damaged { path, source }),
    }
}

/// Makes a list durable in `directory`.
pub(crate) fn write(
    files: &Files,
    directory: &Path,
    dataset: [u8; 16],
    segments: &BTreeSet<u32>,
) -> Result<(), StorageError> {
    let segments: Vec<u32> = segments.iter().copied().collect();
    files.replace(&directory.join(NAME), &encode_segments(dataset, &segments))?;
    Ok(())
}

impl SegmentList {
    /// Of a new dataset, which has no segment.
    pub(crate) fn new(directory: &Path, dataset: [u8; 16]) -> Self {
        Self {
            directory: directory.to_owned(),
            dataset,
            was_damaged: false,
            state: Mutex::new(State {
                listed: BTreeSet::new(),
                written: true,
            }),
        }
    }

    /// Of the dataset in `directory`, where segments of the numbers `found` have files. Every segment that it has,
    /// those included that are listed and have no file.
    ///
    /// # Errors
    /// Why a list cannot be read now that may be whole: older values and removed keys might be served without it.
    pub(crate) fn open(
        files: &Files,
        directory: &Path,
        dataset: [u8; 16],
        found: BTreeSet<u32>,
    ) -> Result<(Self, BTreeSet<u32>), StorageError> {
        let mut was_damaged = false;
        let read = match read(files, directory, dataset) {
            Ok(None) => {
                if !found.is_empty() {
                    tracing::warn!(directory = %directory.display(), "no list tells of segments that are gone; one is made of those that are there");
                }
                None
            }
            Err(error) if says_lost(&error) => {
                tracing::error!(%error, "nothing tells of segments that are gone; the list is made anew of those that are there");
                was_damaged = true;
                None
            }
            read => read?,
        };
        let written = match &read {
            Some(listed) => found.is_subset(listed),
            None => found.is_empty() && !was_damaged,
        };
        let listed = &found | &read.unwrap_or_default();
        let state = State {
            listed: listed.clone(),
            written,
        };
        let this = Self {
            was_damaged,
            state: Mutex::new(state),
            ..Self::new(directory, dataset)
        };
        Ok((this, listed))
    }

    /// Lists that could not be believed at the start: 1 or 0.
    pub(crate) fn damaged(&self) -> u64 {
        u64::from(self.was_damaged)
    }

    /// Lists a segment durably, whose file stands durably under its name.
    ///
    /// # Errors
    /// Why it may not be listed, and may be: its file must stay.
    pub(crate) fn add(&self, files: &Files, segment: u32) -> Result<(), StorageError> {
        let mut state = lock(&self.state);
        state.listed.insert(segment);
        self.write(files, &mut state)
    }

    /// Has segments leave the list durably: their files may be removed then.
    ///
    /// On a full disk, where no other list can be written before something is removed, the list goes. Until
    /// [`SegmentList::bring_up_to_date`] a start finds none then.
    ///
    /// # Errors
    /// Why they may still be listed.
    pub(crate) fn remove(
        &self,
        files: &Files,
        segments: impl Iterator<Item = u32>,
    ) -> Result<(), StorageError> {
        let mut state = lock(&self.state);
        for segment in segments {
            state.listed.remove(&segment);
        }
        match self.write(files, &mut state) {
            Err(error) if error.is_full() => {
                tracing::debug!(%error, "the list of segments is removed: nothing else fits the disk");
                match files.remove(&self.directory.join(NAME)) {
                    Err(error) if error.is_not_found() => {}
                    removed => removed?,
                }
                files.sync_directory(&self.directory)
            }
            written => written,
        }
    }

    /// Writes the list where its file may say something else. Where that fails it is written when the next segment
    /// comes or goes.
    pub(crate) fn bring_up_to_date(&self, files: &Files) {
        let mut state = lock(&self.state);
        if !state.written
            && let Err(error) = self.write(files, &mut state)
        {
            tracing::warn!(%error, "segments that are lost from now on may not be missed: their list cannot be written");
        }
    }

    fn write(&self, files: &Files, state: &mut State) -> Result<(), StorageError> {
        state.written = false;
        write(files, &self.directory, self.dataset, &state.listed)?;
        state.written = true;
        Ok(())
    }
}
