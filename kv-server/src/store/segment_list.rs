//! The file `segments` of a dataset: which segments there should be, so that one whose file is gone is missed.
//!
//! - A segment is listed, durably, once its file stands and before anything in it is answered; it leaves the list,
//!   durably, before its file is removed. So no crash makes a segment that is listed and has no file.
//! - A file that is not listed is a segment all the same: a crash came between the two.
//! - Where there is no list, or none that can be believed, nothing is missed.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use kv_proto::segment_list::{encode_segments, parse_segments};

use super::files::Files;
use super::limits::SEGMENT_LIST_MAX_BYTES;
use super::list_file::ListFile;
use super::lock;
use super::recover::says_lost;
use crate::error::StorageError;

/// Its name in the directory of its dataset.
pub(crate) const NAME: &str = "segments";

/// What a list that could not be believed is called from then on.
pub(crate) const DAMAGED_NAME: &str = "segments.damaged";

/// The list of a dataset that is served.
pub(crate) struct SegmentList {
    directory: PathBuf,
    dataset: [u8; 16],
    /// Whether what was found at the start could not be believed.
    was_damaged: bool,
    /// Whether a segment was listed at the start whose file was not there.
    has_gone: bool,
    state: Mutex<State>,
}

struct State {
    listed: BTreeSet<u32>,
    file: ListFile,
    /// Whether a file was met that is not listed: its name may not be durable.
    unsynced: bool,
}

fn file(directory: &Path) -> ListFile {
    ListFile::new(directory, NAME, DAMAGED_NAME)
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
    file(directory).read(files, "list of segments", SEGMENT_LIST_MAX_BYTES, |bytes| {
        let segments = parse_segments(bytes, dataset)?;
        Ok(segments.into_iter().collect())
    })
}

fn encode(dataset: [u8; 16], segments: &BTreeSet<u32>) -> Vec<u8> {
    let segments: Vec<u32> = segments.iter().copied().collect();
    encode_segments(dataset, &segments)
}

/// Makes a list durable in `directory`.
pub(crate) fn write(
    files: &Files,
    directory: &Path,
    dataset: [u8; 16],
    segments: &BTreeSet<u32>,
) -> Result<(), StorageError> {
    file(directory).replace(files, &encode(dataset, segments))
}

/// Gives a list that cannot be believed another name: somebody may want to look at it.
pub(crate) fn set_aside(files: &Files, directory: &Path) -> Result<(), StorageError> {
    file(directory).set_aside(files)
}

impl SegmentList {
    /// Of a new dataset, whose list has no segment.
    pub(crate) fn new(directory: &Path, dataset: [u8; 16]) -> Self {
        let mut file = file(directory);
        file.written = true;
        Self {
            directory: directory.to_owned(),
            dataset,
            was_damaged: false,
            has_gone: false,
            state: Mutex::new(State {
                listed: BTreeSet::new(),
                file,
                unsynced: false,
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
        let there_is_one = read.is_some();
        let read = read.unwrap_or_default();
        let unsynced = !found.is_subset(&read);
        let listed = &found | &read;
        let mut file = file(directory);
        file.written = there_is_one && !unsynced;
        file.in_the_way = was_damaged;
        let state = State {
            listed: listed.clone(),
            file,
            unsynced,
        };
        let this = Self {
            was_damaged,
            has_gone: !read.is_subset(&found),
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
    /// # Errors
    /// Why they may still be listed.
    pub(crate) fn remove(
        &self,
        files: &Files,
        segments: impl Iterator<Item = u32>,
    ) -> Result<(), StorageError> {
        let mut state = lock(&self.state);
        let mut changed = false;
        for segment in segments {
            changed |= state.listed.remove(&segment);
        }
        if state.file.written && !changed {
            return Ok(());
        }
        self.write(files, &mut state)
    }

    /// Removes the list itself, durably, on a disk so full that no shorter one can be written before something is
    /// removed. Until [`SegmentList::bring_up_to_date`] a start finds none.
    ///
    /// # Errors
    /// `full`, why none can be written, where the list alone knows of segments that are gone; or why it is still there.
    pub(crate) fn discard(&self, files: &Files, full: StorageError) -> Result<(), StorageError> {
        if self.has_gone {
            return Err(full);
        }
        let mut state = lock(&self.state);
        tracing::debug!(error = %full, "the list of segments is removed: nothing else fits the disk");
        state.file.written = false;
        match files.remove(state.file.path()) {
            Err(error) if error.is_not_found() => {}
            removed => removed?,
        }
        files.sync_directory(&self.directory)
    }

    /// Writes the list where its file may say something else.
    ///
    /// # Errors
    /// Why its file may still say something else.
    pub(crate) fn bring_up_to_date(&self, files: &Files) -> Result<(), StorageError> {
        let mut state = lock(&self.state);
        if state.file.written {
            return Ok(());
        }
        self.write(files, &mut state)
    }

    fn write(&self, files: &Files, state: &mut State) -> Result<(), StorageError> {
        state.file.written = false;
        if state.unsynced {
            // Listed, and not there after a power cut, it would be missed.
            files.sync_directory(&self.directory)?;
            state.unsynced = false;
        }
        state.file.replace(files, &encode(self.dataset, &state.listed))
    }
}
