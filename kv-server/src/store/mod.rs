//! Segments, log, index and recovery: everything that is on NVMe or is READ.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kv_fabric::{Domain, FabricError};

use crate::error::StorageError;

mod completions;
mod dataset;
mod put;

pub use completions::{Committed, Completion, Completions};
pub use dataset::{BeginDelete, BeginPut, Dataset};
pub use put::Put;

/// Takes a lock, also one whose holder panicked: every critical section leaves its data whole.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How a store is held.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// Data directory; made where it is not there.
    pub data: PathBuf,
    /// Most memory for images and indexes, bytes.
    pub memory_budget_bytes: u64,
    /// Length of the segments of datasets created from now on, bytes.
    pub segment_bytes: u64,
    /// Longest part of a large value in datasets created from now on, bytes; at most a quarter of a segment counts.
    pub part_bytes: u64,
    /// Most memory for values that are arriving, bytes.
    pub gather_budget_bytes: u64,
}

/// Everything that a server stores.
pub struct Store<D: Domain> {
    completions: Completions,
    marker: std::marker::PhantomData<D>,
}

impl<D: Domain> Store<D> {
    /// Opens a data directory.
    ///
    /// # Errors
    /// [`StorageError`].
    pub fn open(
        _options: StoreOptions,
        _make_domain: impl Fn() -> Result<D, FabricError> + Send + Sync + 'static,
    ) -> Result<Self, StorageError> {
        todo!()
    }

    /// Epoch.
    pub fn epoch(&self) -> u64 {
        todo!()
    }

    /// Creates a dataset.
    ///
    /// # Errors
    /// [`StorageError`].
    pub fn create(&self, _name: &str) -> Result<[u8; 16], StorageError> {
        todo!()
    }

    /// Drops a dataset.
    ///
    /// # Errors
    /// [`StorageError`].
    pub fn drop_dataset(&self, _name: &str) -> Result<[u8; 16], StorageError> {
        todo!()
    }

    /// Renames a dataset.
    ///
    /// # Errors
    /// [`StorageError`].
    pub fn rename(&self, _from: &str, _to: &str) -> Result<(), StorageError> {
        todo!()
    }

    /// The dataset of this name.
    pub fn by_name(&self, _name: &str) -> Option<Arc<Dataset<D>>> {
        todo!()
    }

    /// The dataset of this id; also one that was dropped and is not released yet.
    pub fn by_id(&self, _id: &[u8; 16]) -> Option<Arc<Dataset<D>>> {
        todo!()
    }

    /// All datasets, by name.
    pub fn list(&self) -> Vec<Arc<Dataset<D>>> {
        todo!()
    }

    /// Number of the latest retirement.
    pub fn retired(&self) -> u64 {
        todo!()
    }

    /// Frees what was retired.
    pub fn release(&self, _dataset: &[u8; 16], _up_to: u64) {
        todo!()
    }

    /// Finished writes.
    pub fn completions(&self) -> &Completions {
        &self.completions
    }

    /// Figures.
    pub fn stat(&self) -> Vec<(String, u64)> {
        todo!()
    }

    /// Finishes queued writes.
    pub fn shutdown(&self) {
        todo!()
    }
}
