//! Opening a data directory: taking it, and bringing every dataset in it back.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};

use kv_fabric::{Domain, FabricError};
use kv_proto::layout::EXTENT_BYTES;

use super::arriving::Arriving;
use super::budget::Budget;
use super::catalogue::Catalogue;
use super::compact::{self, Signal};
use super::dataset::Contents;
use super::description::{Description, parse_directory_name};
use super::files::Files;
use super::home::Home;
use super::loader::{self, Load, Loads};
use super::recover::{Opened, Recovered, recover, says_lost};
use super::reserve::Reserve;
use super::{Completions, Dataset, Datasets, Shared, Store, StoreOptions, lock, log, scrub};
use crate::error::StorageError;

/// Memory is kept for compaction where there is room for so many extents.
const EXTENTS_TO_KEEP_ONE: u64 = 4;

/// A dataset's segments, description and directory.
type FoundDataset = (Opened, Description, PathBuf);

impl Store {
    /// Opens a data directory, or makes one: takes it for this process, raises the epoch, and brings every dataset
    /// back. What was active in a segment is sealed at the end of its longest valid prefix.
    ///
    /// # Errors
    /// - [`StorageError::InUse`], [`StorageError::NotADataDirectory`], [`StorageError::FormatVersion`],
    ///   [`StorageError::Unwritable`], [`StorageError::Damaged`]: why the directory is not opened; nothing in it was
    ///   changed.
    /// - [`StorageError::Memory`] if the images do not fit the budget.
    /// - [`StorageError::Io`], [`StorageError::NoSpace`] where a file cannot be opened now, or a segment without trailer
    ///   cannot be made durable: values would be missing, or be served that a power cut takes back.
    /// - [`StorageError::Option`] for an option that cannot be.
    pub fn open(
        options: StoreOptions,
        make_domain: impl Fn() -> Result<Arc<dyn Domain>, FabricError> + Send + Sync + 'static,
    ) -> Result<Self, StorageError> {
        Self::open_with(options, Files::default(), u64::MAX, make_domain)
    }

    /// [`Store::open`] that loads so many images before [`LoadGate::allow`]: for tests of what is served until then.
    ///
    /// # Errors
    /// As [`Store::open`].
    #[doc(hidden)]
    pub fn open_loading(
        options: StoreOptions,
        loads_allowed: u64,
        make_domain: impl Fn() -> Result<Arc<dyn Domain>, FabricError> + Send + Sync + 'static,
    ) -> Result<Self, StorageError> {
        Self::open_with(options, Files::default(), loads_allowed, make_domain)
    }

    /// [`Store::open`] with chosen files: tests have calls on them fail.
    pub(crate) fn open_with(
        options: StoreOptions,
        files: Files,
        loads_allowed: u64,
        make_domain: impl Fn() -> Result<Arc<dyn Domain>, FabricError> + Send + Sync + 'static,
    ) -> Result<Self, StorageError> {
        options.check()?;
        options.check_gather(options.part_bytes.min(options.segment_bytes / 4))?;
        let home = Home::open(&files, &options.data)?;
        let catalogue = Catalogue::open(&files, &options.data)?;
        let reserve = Reserve::open(&files, &options.data, options.compaction.disk_reserve_bytes)?;
        if files.free_bytes(&options.data)? < reserve.held_bytes() / 2 {
            // Segments are sealed at the start.
            reserve.give_up(&files);
        }
        let shared = Arc::new(Shared {
            files,
            home,
            catalogue,
            budget: Budget::new(options.memory_budget_bytes),
            arriving: Arc::new(Arriving::new(options.gather_budget_bytes)),
            retired: AtomicU64::new(0),
            operations: Arc::default(),
            completions: Completions::new()?,
            reserve,
            scrub: Signal::new(1.0),
            compaction: Signal::new(options.compaction.dead_share),
            loads: Loads::new(loads_allowed),
        });
        let store = Self {
            shared,
            options,
            make_domain: Box::new(make_domain),
            datasets: Arc::new(Mutex::new(Datasets {
                by_id: HashMap::new(),
                names: BTreeMap::new(),
            })),
            compacting: Mutex::default(),
            scrubbing: Mutex::default(),
            changing: Mutex::new(()),
            loading: Mutex::default(),
            removing: Mutex::default(),
        };
        store.recover_all()?;
        store.keep_room();
        store.shared.reserve.take(&store.shared.files);
        store.keep_memory();
        let compacting = compact::start(&store.shared, &store.datasets, store.options.compaction)?;
        *lock(&store.compacting) = Some(compacting);
        *lock(&store.scrubbing) = scrub::start(&store.shared, &store.datasets, store.options.scrub_share)?;
        Ok(store)
    }

    /// Keeps memory for one extent, where that is a small part of all: copies need it when nothing else is left.
    fn keep_memory(&self) {
        let extent = self.options.segment_bytes.min(EXTENT_BYTES);
        if self.options.memory_budget_bytes >= EXTENTS_TO_KEEP_ONE * extent {
            self.shared.budget.set_reserve(extent);
        }
    }

    /// Has the room that is kept on the disk be enough to compact any segment.
    fn keep_room(&self) {
        let of_datasets = self.list().iter().map(|dataset| dataset.segment_bytes).max();
        let longest = of_datasets.unwrap_or(0).max(self.options.segment_bytes);
        self.shared.reserve.allow_for(longest);
    }

    fn recover_all(&self) -> Result<(), StorageError> {
        let shared = &self.shared;
        let root = shared.home.datasets();
        let mut found = Vec::new();
        let (mut there, mut dropped) = (BTreeMap::new(), BTreeMap::new());
        for name in shared.files.names(&root)? {
            let path = root.join(&name);
            if name.ends_with(".new") {
                shared.files.remove_directory(&path)?;
                continue;
            }
            if let Some(name) = name.strip_suffix(".dropped") {
                shared.files.empty_directory(&path)?;
                dropped.insert(path, parse_directory_name(name));
                continue;
            }
            let Some(id) = parse_directory_name(&name) else {
                tracing::warn!(path = %path.display(), "is no dataset; it is left alone");
                continue;
            };
            match Description::read(&shared.files, &path, id) {
                Ok(description) => {
                    there.insert(id, Some(description.clone()));
                    found.push((Opened::new(shared, &path, id)?, description, path));
                }
                Err(error) if !says_lost(&error) => return Err(error),
                Err(error) => {
                    tracing::error!(%error, "a dataset is lost: its description cannot be read; its files are kept");
                    there.insert(id, None);
                    // Its numbers are used all the same.
                    drop(Opened::new(shared, &path, id)?);
                }
            }
        }
        let mut ids: BTreeSet<[u8; 16]> = dropped.values().flatten().copied().collect();
        let found = self.without_twins(found, &mut there, &mut ids)?;
        shared.catalogue.settle(&shared.files, there, &ids);
        for (path, id) in &dropped {
            // Until the list is without it the name tells that it is not missing.
            if id.is_none_or(|id| shared.catalogue.remove(&shared.files, &id)) {
                shared.files.remove_directory(path)?;
            }
        }
        let needed_bytes = found.iter().map(|(opened, ..)| opened.image_bytes()).sum();
        if needed_bytes > shared.budget.allowed_bytes() {
            return Err(StorageError::Memory {
                needed_bytes,
                used_bytes: 0,
                allowed_bytes: shared.budget.allowed_bytes(),
            });
        }
        let mut images = Vec::new();
        for (opened, description, path) in found {
            self.options.check_gather(description.part_bytes)?;
            let domain = (self.make_domain)()?;
            let recovered = recover(shared, &description, &path, opened, &*domain)?;
            let Recovered {
                contents,
                sequence_next,
                images: of_this,
            } = recovered;
            let dataset = self.add(description, path, domain, contents, sequence_next)?;
            // The newest first: it is wanted most.
            images.extend(of_this.into_iter().rev().map(|image| Load::new(&dataset, image)));
        }
        *lock(&self.loading) = loader::start(shared, images)?;
        Ok(())
    }

    /// Of datasets that have one name, the one with segments: a CREATE that failed may have left another, which is
    /// empty and goes.
    fn without_twins(
        &self,
        found: Vec<FoundDataset>,
        there: &mut BTreeMap<[u8; 16], Option<Description>>,
        dropped: &mut BTreeSet<[u8; 16]>,
    ) -> Result<Vec<FoundDataset>, StorageError> {
        let mut by_name: BTreeMap<String, FoundDataset> = BTreeMap::new();
        for this in found {
            let name = this.1.name.clone();
            let Some(other) = by_name.remove(&name) else {
                by_name.insert(name, this);
                continue;
            };
            let (kept, empty) = if this.0.is_empty() {
                (other, this)
            } else if other.0.is_empty() {
                (this, other)
            } else {
                let text = format!(
                    "this and {} are both the dataset {name:?} and hold values: move one of them elsewhere",
                    other.2.display()
                );
                return Err(StorageError::io("serve", &this.2, std::io::Error::other(text)));
            };
            tracing::warn!(%name, path = %empty.2.display(), "an empty dataset of the same name is removed");
            self.shared.files.remove_directory(&empty.2)?;
            there.remove(&empty.1.id);
            // It may be the one that is listed, and is not missed.
            dropped.insert(empty.1.id);
            by_name.insert(name, kept);
        }
        Ok(by_name.into_values().collect())
    }

    pub(super) fn add(
        &self,
        description: Description,
        directory: PathBuf,
        domain: Arc<dyn Domain>,
        contents: Contents,
        sequence_next: u64,
    ) -> Result<Arc<Dataset>, StorageError> {
        let (id, name) = (description.id, description.name.clone());
        let dataset = Arc::new(Dataset::new(
            Arc::clone(&self.shared),
            description,
            directory,
            domain,
            contents,
        ));
        let mut datasets = lock(&self.datasets);
        if datasets.names.contains_key(&name) {
            return Err(StorageError::Exists(name));
        }
        log::start(&dataset, sequence_next)?;
        datasets.names.insert(name, id);
        datasets.by_id.insert(id, Arc::clone(&dataset));
        Ok(dataset)
    }
}
