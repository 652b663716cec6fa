//! The file `catalogue`: which datasets there should be, so that one whose directory is gone is missed.
//!
//! - A dataset is listed once its directory stands, and leaves the list while its directory is called `.dropped`. So no
//!   crash makes a dataset that is listed and has neither.
//! - One that is not listed is a dataset all the same. Where there is no list, or none that can be believed, none is missed.
//! - Nothing fails because the list cannot be written: it is tried again at the next change, at the end and at the next start.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use kv_proto::catalogue::{encode_catalogue, parse_catalogue};

use super::description::Description;
use super::files::Files;
use super::limits::DATASETS_MAX;
use super::list_file::ListFile;
use super::lock;
use super::recover::says_lost;
use crate::error::StorageError;

/// Its name in the data directory.
pub(crate) const NAME: &str = "catalogue";
/// What one that could not be believed is called from then on.
pub(crate) const DAMAGED_NAME: &str = "catalogue.damaged";
/// Longest catalogue that is read, bytes.
const MAX_BYTES: u64 = (2 * DATASETS_MAX * size_of::<kv_proto::layout::DatasetDescription>()) as u64;

/// Datasets by their ids.
pub(crate) type Listed = BTreeMap<[u8; 16], Description>;

/// The catalogue of a data directory that is served.
pub(crate) struct Catalogue {
    root: PathBuf,
    /// Whether what was found at the start could not be believed.
    was_damaged: bool,
    /// Datasets without a directory: asked for by threads that may not wait until a list is durable.
    gone: AtomicU64,
    state: Mutex<State>,
}

struct State {
    listed: Listed,
    file: ListFile,
}

fn file(root: &Path) -> ListFile {
    ListFile::new(root, NAME, DAMAGED_NAME)
}

/// What is listed in the data directory `root`; `None` where there is no list.
///
/// # Errors
/// [`StorageError::Damaged`] for a list that cannot be believed, or why it cannot be read.
pub(crate) fn read(files: &Files, root: &Path) -> Result<Option<Listed>, StorageError> {
    file(root).read(files, "list of datasets", MAX_BYTES, |bytes| {
        let datasets = parse_catalogue(bytes)?;
        let each = datasets
            .iter()
            .map(|it| Ok((it.dataset, Description::decode(it, it.dataset)?)));
        each.collect()
    })
}

fn encode(listed: &Listed) -> Vec<u8> {
    let datasets: Vec<_> = listed.values().map(Description::encode).collect();
    encode_catalogue(&datasets)
}

/// Makes a list durable in the data directory `root`.
pub(crate) fn write(files: &Files, root: &Path, listed: &Listed) -> Result<(), StorageError> {
    file(root).replace(files, &encode(listed))
}

/// Gives a list that cannot be believed another name: somebody may want to look at it.
pub(crate) fn set_aside(files: &Files, root: &Path) -> Result<(), StorageError> {
    file(root).set_aside(files)
}

impl Catalogue {
    /// Of the data directory `root`.
    ///
    /// # Errors
    /// Why a list cannot be read now that may be whole.
    pub(crate) fn open(files: &Files, root: &Path) -> Result<Self, StorageError> {
        let mut was_damaged = false;
        let read = match read(files, root) {
            Err(error) if says_lost(&error) => {
                tracing::error!(%error, "nothing tells of datasets that are gone; their list is made anew of those that are there");
                was_damaged = true;
                None
            }
            read => read?,
        };
        let mut file = file(root);
        file.written = read.is_some();
        file.in_the_way = was_damaged;
        let listed = read.unwrap_or_default();
        Ok(Self {
            root: root.to_owned(),
            was_damaged,
            gone: AtomicU64::new(0),
            state: Mutex::new(State { listed, file }),
        })
    }

    /// Holds the list to what the start found: datasets, whose description may not be readable, and those that were
    /// dropped. Names every one that is missing.
    pub(crate) fn settle(
        &self,
        files: &Files,
        found: BTreeMap<[u8; 16], Option<Description>>,
        dropped: &BTreeSet<[u8; 16]>,
    ) {
        let mut state = lock(&self.state);
        let before = state.listed.len();
        state.listed.retain(|id, _| !dropped.contains(id));
        let mut changed = state.listed.len() != before;
        for (id, description) in state.listed.iter().filter(|(id, _)| !found.contains_key(*id)) {
            self.gone.fetch_add(1, Ordering::Relaxed);
            let name = &description.name;
            let path = self.root.join("datasets").join(super::directory_name(id));
            tracing::error!(dataset = %name, path = %path.display(), "a dataset is lost: its directory is gone; this is said at each start until it is back, or `kv-server check --repair` accepts the loss");
        }
        for (id, description) in found {
            let Some(description) = description else {
                continue;
            };
            changed |= state.listed.get(&id) != Some(&description);
            state.listed.insert(id, description);
        }
        state.file.written &= !changed;
        try_to_write(files, &mut state);
    }

    /// Lists a dataset whose directory stands, or has another description.
    pub(crate) fn put(&self, files: &Files, description: Description) {
        let mut state = lock(&self.state);
        state.listed.insert(description.id, description);
        state.file.written = false;
        try_to_write(files, &mut state);
    }

    /// Has a dataset leave the list that was dropped; whether it has, durably: what is left of its directory may go then.
    pub(crate) fn remove(&self, files: &Files, id: &[u8; 16]) -> bool {
        let mut state = lock(&self.state);
        let was_listed = state.listed.remove(id).is_some();
        state.file.written &= !was_listed;
        try_to_write(files, &mut state)
    }

    /// Writes the list where its file may say something else; whether it says this then.
    pub(crate) fn bring_up_to_date(&self, files: &Files) -> bool {
        try_to_write(files, &mut lock(&self.state))
    }

    /// Its figures; the last word of each name is the unit.
    pub(crate) fn figures(&self) -> [(&'static str, u64); 2] {
        [
            ("lost_datasets_count", self.gone.load(Ordering::Relaxed)),
            ("damaged_catalogues_count", u64::from(self.was_damaged)),
        ]
    }
}

fn try_to_write(files: &Files, state: &mut State) -> bool {
    if state.file.written {
        return true;
    }
    if let Err(error) = state.file.replace(files, &encode(&state.listed)) {
        tracing::warn!(%error, "datasets that are lost from now on may not be missed: their list cannot be written");
        return false;
    }
    true
}
