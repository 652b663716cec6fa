//! Everything that is on NVMe or is READ: datasets with their segments, log and index, and bringing them back.
//!
//! - [`Store`]: the data directory and its datasets; what exists by which name.
//! - [`Dataset`]: what the control thread asks of one, and how values get in: [`Put`], [`Dataset::delete`].
//! - [`Completions`]: what became durable, on its way to be answered.
//!
//! One thread for each dataset, its log, writes files, images and index. Nothing here waits for a client.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use kv_fabric::{Domain, FabricError};
use kv_proto::bucket::IndexScope;
use kv_proto::layout::dataset_name_is_valid;

use crate::error::StorageError;

mod arriving;
mod budget;
mod catalogue;
#[doc(hidden)]
pub mod changes;
pub mod check;
mod checkpoint;
mod compact;
mod completions;
mod dataset;
mod description;
mod files;
mod footer;
mod home;
mod index;
#[doc(hidden)]
pub mod journal;

mod limits;
mod list_file;
mod loader;
mod log;
mod open;
mod operations;
mod options;
mod owed;
mod put;
mod recover;
mod reserve;
mod scrub;
mod segment;
mod segment_list;
#[doc(hidden)]
pub mod sync_kind;

#[cfg(test)]
mod tests;

use arriving::Arriving;
pub use arriving::Kind;
use budget::Budget;
pub(crate) use budget::Charge;
use catalogue::Catalogue;
pub use compact::Compaction;
use compact::Signal;
pub use completions::{Committed, Completion, Completions};
pub use dataset::{BeginDelete, BeginPut, Dataset};
use dataset::{Contents, Figures};
use description::{Description, directory_name};
#[cfg(test)]
pub(crate) use files::Call;
pub(crate) use files::Files;
use home::Home;
use index::{Index, Place};
use journal::Change;
use limits::DATASETS_MAX;
use loader::Loads;
use log::Close;
use operations::Operations;
pub use options::{PART_MIN_BYTES, SCRUB_SHARE_DEFAULT, StoreOptions};
pub use put::Put;
use reserve::Reserve;
use segment_list::SegmentList;

/// Takes a lock, also one whose holder panicked: every critical section leaves its data whole.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Random bytes from the kernel.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], StorageError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| {
        StorageError::io(
            "getrandom",
            Path::new("the kernel"),
            std::io::Error::other(error.to_string()),
        )
    })?;
    Ok(bytes)
}

/// File of a segment in its dataset's directory.
pub(crate) fn segment_path(directory: &Path, number: u32) -> PathBuf {
    directory.join(format!("{number:08x}.segment"))
}

/// The number that a segment's file name says.
pub(crate) fn parse_segment_name(name: &str) -> Option<u32> {
    let digits = name.strip_suffix(".segment")?;
    if digits.len() != 8 || !digits.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f')) {
        return None;
    }
    u32::from_str_radix(digits, 16).ok()
}

/// Whether a file of this name is a dataset's own, besides those of its segments.
pub(crate) fn is_own_file(name: &str) -> bool {
    [description::NAME, segment_list::NAME, segment_list::DAMAGED_NAME].contains(&name)
}

/// What all datasets share.
pub(crate) struct Shared {
    pub(crate) files: Files,
    pub(crate) home: Home,
    /// Which datasets there should be at the next start.
    pub(crate) catalogue: Catalogue,
    pub(crate) budget: Arc<Budget>,
    pub(crate) arriving: Arc<Arriving>,
    /// Number of the latest change of any dataset.
    pub(crate) retired: AtomicU64,
    /// Operations that are remembered of all datasets.
    pub(crate) operations: Arc<AtomicUsize>,
    pub(crate) completions: Completions,
    /// Room on the disk for what frees room.
    pub(crate) reserve: Reserve,
    /// Ends the scrubber.
    pub(crate) scrub: Signal,
    /// Wakes compaction.
    pub(crate) compaction: Signal,
    /// Images that are to be loaded.
    pub(crate) loads: Loads,
}

/// Holds images back, for tests of what is served until they are loaded.
#[doc(hidden)]
#[derive(Clone)]
pub struct LoadGate(Arc<Shared>);

impl LoadGate {
    /// Lets so many more be loaded.
    pub fn allow(&self, images: u64) {
        self.0.loads.allow(images);
    }
}

struct Datasets {
    by_id: HashMap<[u8; 16], Arc<Dataset>>,
    /// Those that were not dropped.
    names: BTreeMap<String, [u8; 16]>,
}

/// A dataset that is gone.
#[derive(Debug)]
#[must_use = "its memory is to be released, whatever came of the sync"]
pub struct Dropped {
    /// Its id.
    pub dataset: [u8; 16],
    /// Number of that retirement.
    pub number: u64,
    /// Whether it stays gone: where the directory's sync failed it may be back after a power cut.
    pub synced: Result<(), StorageError>,
}

type MakeDomain = Box<dyn Fn() -> Result<Arc<dyn Domain>, FabricError> + Send + Sync>;

/// Everything that a server stores.
pub struct Store {
    shared: Arc<Shared>,
    options: StoreOptions,
    make_domain: MakeDomain,
    datasets: Arc<Mutex<Datasets>>,
    compacting: Mutex<Option<JoinHandle<()>>>,
    scrubbing: Mutex<Option<JoinHandle<()>>>,
    /// Held by whoever changes what exists.
    changing: Mutex<()>,
    loading: Mutex<Option<JoinHandle<()>>>,
    /// Threads that remove files; they end by themselves.
    removing: Mutex<Vec<JoinHandle<()>>>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Store({}, epoch {})",
            self.options.data.display(),
            self.epoch()
        )
    }
}

impl Store {
    /// Epoch: one more at every start.
    pub fn epoch(&self) -> u64 {
        self.shared.home.epoch()
    }

    /// Creates a dataset; it is durable when this returns.
    ///
    /// # Errors
    /// [`StorageError::BadName`], [`StorageError::Exists`], [`StorageError::Limit`] at the most datasets, or why it
    /// could not be made.
    pub fn create(&self, name: &str) -> Result<[u8; 16], StorageError> {
        check_name(name)?;
        let _changing = lock(&self.changing);
        {
            let datasets = lock(&self.datasets);
            if datasets.names.contains_key(name) {
                return Err(StorageError::Exists(name.to_owned()));
            }
            if datasets.by_id.len() >= DATASETS_MAX {
                return Err(StorageError::Limit {
                    what: "datasets, and dropped ones that a session still has open",
                    limit: DATASETS_MAX as u64,
                });
            }
        }
        let segment_bytes = self.options.segment_bytes / 64 * 64;
        let description = Description {
            id: random()?,
            hash_key: random()?,
            name: name.to_owned(),
            segment_bytes,
            part_bytes: self.options.part_bytes.min(segment_bytes / 4),
        };
        let id = description.id;
        let domain = (self.make_domain)()?;
        let place = Place {
            domain: &*domain,
            budget: &self.shared.budget,
        };
        let scope = IndexScope {
            dataset: id,
            epoch: self.epoch(),
        };
        let index = Index::build(scope, &[], &place)?;
        let directory = self.make_directory(&description)?;
        let contents = Contents {
            index,
            segments: BTreeMap::new(),
            list: SegmentList::new(&directory, id),
            operations: Operations::of(&self.shared.operations),
            owed: Vec::new(),
            figures: Figures::default(),
        };
        self.add(description.clone(), directory.clone(), domain, contents, 1)
            .inspect_err(|_| self.unmake_directory(&directory))?;
        self.shared.catalogue.put(&self.shared.files, description);
        Ok(id)
    }

    /// Makes a dataset's directory with its description and an empty list of segments: whole, or not at all.
    fn make_directory(&self, description: &Description) -> Result<PathBuf, StorageError> {
        let files = &self.shared.files;
        let root = self.shared.home.datasets();
        let directory = root.join(directory_name(&description.id));
        let new = root.join(format!("{}.new", directory_name(&description.id)));
        let made = files
            .create_directory(&new)
            .and_then(|()| description.write(files, &new))
            .and_then(|()| segment_list::write(files, &new, description.id, &BTreeSet::new()))
            .and_then(|()| files.rename(&new, &directory))
            .and_then(|()| files.sync_directory(&root));
        match made {
            Ok(()) => Ok(directory),
            Err(error) => {
                for made in [&new, &directory] {
                    self.unmake_directory(made);
                }
                Err(error)
            }
        }
    }

    /// Removes a directory that [`Store::create`] made and nobody was told of, durably: back after a power cut it would
    /// be the twin of the dataset that a retry makes. Where that fails too, the next start takes the one with segments.
    fn unmake_directory(&self, made: &Path) {
        if !made.try_exists().unwrap_or(true) {
            return;
        }
        let files = &self.shared.files;
        let removed = files
            .remove_directory(made)
            .and_then(|()| files.sync_directory(&self.shared.home.datasets()));
        if let Err(error) = removed {
            tracing::warn!(%error, "a dataset that could not be created left an empty directory");
        }
    }

    /// Drops a dataset durably. Writes that wait fail with [`StorageError::NoDataset`]; its memory is freed by
    /// [`Store::release`] of the number that [`Store::retired`] gives after this.
    ///
    /// # Errors
    /// [`StorageError::NoDataset`], or why it could not be dropped: it is there as before then.
    pub fn drop_dataset(&self, name: &str) -> Result<Dropped, StorageError> {
        let _changing = lock(&self.changing);
        let dataset = self
            .by_name(name)
            .ok_or_else(|| StorageError::NoDataset(name.to_owned()))?;
        let files = &self.shared.files;
        let root = self.shared.home.datasets();
        let gone = root.join(format!("{}.dropped", directory_name(&dataset.id)));
        dataset.set_dropped(true);
        if let Err(error) = files.rename(&dataset.directory, &gone) {
            dataset.set_dropped(false);
            return Err(error);
        }
        let synced = files.sync_directory(&root);
        lock(&self.datasets).names.remove(name);
        dataset.queue.close(Close::Dropped);
        join(&dataset);
        let number = dataset.note(Change::Dropped);
        dataset.dropped_at.store(number, Ordering::Release);
        self.remove(dataset.id, gone);
        Ok(Dropped {
            dataset: dataset.id,
            number,
            synced,
        })
    }

    /// Removes the files of a dropped dataset. It may take long, and who drops has sessions to serve.
    fn remove(&self, id: [u8; 16], gone: PathBuf) {
        let shared = Arc::clone(&self.shared);
        let thread = std::thread::Builder::new()
            .name("kv-remove".to_owned())
            .spawn(move || {
                let files = &shared.files;
                // Its files first: the disk may be too full for a list without it. Its name last: it tells that it is not
                // missing.
                let removed = files.empty_directory(&gone).and_then(|()| {
                    if shared.catalogue.remove(files, &id) {
                        files.remove_directory(&gone)?;
                    }
                    Ok(())
                });
                if let Err(error) = removed {
                    tracing::warn!(%error, "files of a dropped dataset stay until the next start");
                }
            });
        match thread {
            Ok(thread) => {
                let mut removing = lock(&self.removing);
                removing.retain(|thread| !thread.is_finished());
                removing.push(thread);
            }
            Err(error) => tracing::warn!(%error, "files of a dropped dataset stay until the next start"),
        }
    }

    /// Renames a dataset durably.
    ///
    /// # Errors
    /// [`StorageError::BadName`], [`StorageError::NoDataset`], [`StorageError::Exists`], or why it could not be.
    pub fn rename(&self, from: &str, to: &str) -> Result<(), StorageError> {
        check_name(to)?;
        let _changing = lock(&self.changing);
        let dataset = self
            .by_name(from)
            .ok_or_else(|| StorageError::NoDataset(from.to_owned()))?;
        if lock(&self.datasets).names.contains_key(to) {
            return Err(StorageError::Exists(to.to_owned()));
        }
        let renamed = dataset.rename(to)?;
        self.shared.catalogue.put(&self.shared.files, renamed);
        let mut datasets = lock(&self.datasets);
        datasets.names.remove(from);
        datasets.names.insert(to.to_owned(), dataset.id);
        Ok(())
    }

    /// The dataset of this name.
    pub fn by_name(&self, name: &str) -> Option<Arc<Dataset>> {
        let datasets = lock(&self.datasets);
        datasets
            .names
            .get(name)
            .and_then(|id| datasets.by_id.get(id))
            .cloned()
    }

    /// The dataset of this id; also one that was dropped and is not released yet.
    pub fn by_id(&self, id: &[u8; 16]) -> Option<Arc<Dataset>> {
        lock(&self.datasets).by_id.get(id).cloned()
    }

    /// All datasets, by name.
    pub fn list(&self) -> Vec<Arc<Dataset>> {
        let datasets = lock(&self.datasets);
        datasets
            .names
            .values()
            .filter_map(|id| datasets.by_id.get(id))
            .cloned()
            .collect()
    }

    /// Number of the latest change of any dataset. Read it before what goes into the same answer.
    pub fn retired(&self) -> u64 {
        self.shared.retired.load(Ordering::Acquire)
    }

    /// Frees what a dataset retired up to number `up_to`: every session that had it open acknowledged that number,
    /// closed it, or was fenced.
    pub fn release(&self, dataset: &[u8; 16], up_to: u64) {
        let Some(found) = self.by_id(dataset) else {
            return;
        };
        found.release(up_to);
        let dropped_at = found.dropped_at.load(Ordering::Acquire);
        if dropped_at != 0 && dropped_at <= up_to {
            found.free();
            lock(&self.datasets).by_id.remove(dataset);
        }
    }

    /// Takes memory for something else than data out of the memory budget.
    ///
    /// # Errors
    /// [`StorageError::Memory`] if less is left.
    pub(crate) fn charge(&self, bytes: u64) -> Result<Charge, StorageError> {
        self.shared.budget.take(bytes)
    }

    /// What holds images back that were not allowed to be loaded.
    #[doc(hidden)]
    pub fn load_gate(&self) -> LoadGate {
        LoadGate(Arc::clone(&self.shared))
    }

    /// Finished writes.
    pub fn completions(&self) -> &Completions {
        &self.shared.completions
    }

    /// Forgets which images a session asked for, by the number that it gave [`Dataset::load`].
    pub fn forget_loads(&self, session: u64) {
        self.shared.loads.forget(session);
    }

    /// Figures of the server; `unit` is each name's last word.
    pub fn stat(&self) -> Vec<(String, u64)> {
        let shared = &self.shared;
        let datasets = lock(&self.datasets).names.len() as u64;
        [
            ("epoch_number", self.epoch()),
            ("datasets_count", datasets),
            ("memory_used_bytes", shared.budget.used_bytes()),
            ("memory_budget_bytes", shared.budget.allowed_bytes()),
            ("gather_used_bytes", shared.arriving.used_bytes()),
            ("gather_budget_bytes", shared.arriving.allowed_bytes()),
            ("segments_loading_count", shared.loads.waiting() as u64),
            ("segments_asked_for_count", shared.loads.asked()),
            ("retired_number", self.retired()),
            ("file_read_bytes", shared.files.read_bytes()),
            ("file_written_bytes", shared.files.written_bytes()),
            ("fdatasyncs_count", shared.files.syncs()),
        ]
        .into_iter()
        .chain(shared.catalogue.figures())
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
    }

    /// Finishes what is queued, seals what is active, and ends the log threads. Nothing is taken any more.
    pub fn shutdown(&self) {
        let datasets: Vec<_> = lock(&self.datasets).by_id.values().cloned().collect();
        self.shared.compaction.stop();
        self.shared.scrub.stop();
        self.shared.loads.stop();
        for dataset in &datasets {
            dataset.queue.close(Close::Finish);
        }
        for (what, thread) in [
            ("compaction", &self.compacting),
            ("loader", &self.loading),
            ("scrubber", &self.scrubbing),
        ] {
            if let Some(thread) = lock(thread).take()
                && thread.join().is_err()
            {
                tracing::error!("the {what} thread had panicked");
            }
        }
        datasets.iter().for_each(|dataset| join(dataset));
        for dataset in datasets {
            dataset.bring_list_up_to_date();
        }
        for thread in lock(&self.removing).drain(..) {
            // A panic there was reported where it happened, and leaves only files.
            let _ = thread.join();
        }
        self.shared.catalogue.bring_up_to_date(&self.shared.files);
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.shutdown();
        self.shared.home.leave();
    }
}

/// Waits for a dataset's log thread to end; it was told to.
fn join(dataset: &Dataset) {
    let thread = lock(&dataset.thread).take();
    if let Some(thread) = thread
        && thread.join().is_err()
    {
        tracing::error!(dataset = %dataset.name(), "the log thread had panicked");
    }
}

fn check_name(name: &str) -> Result<(), StorageError> {
    if dataset_name_is_valid(name.as_bytes()) {
        return Ok(());
    }
    Err(StorageError::BadName(name.to_owned()))
}
