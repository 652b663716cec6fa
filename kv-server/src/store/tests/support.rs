//! A domain whose memory is read by rkey, and a store with the part of its control thread.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};

use kv_fabric::{Domain, FabricError, Memory, Registration, RemoteRef};
use kv_proto::crc::crc32c;
use kv_proto::layout::{SegmentTrailer, TRAILER_MAGIC};
use zerocopy::FromBytes;

use super::super::files::{FaultHook, Files};
use super::super::{BeginDelete, BeginPut, Committed, Completion, Dataset, Store, StoreOptions, lock};
pub(crate) use super::reader::{Miss, RawReader};
use crate::error::StorageError;

pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// How often a value may move while it is looked up.
const STALE_MAX: usize = 8;

type Registered = Arc<RwLock<HashMap<u32, Arc<Memory>>>>;

/// All memory that is registered, in any domain of one test.
#[derive(Clone, Default)]
pub(crate) struct Network {
    registered: Registered,
    next: Arc<AtomicU32>,
}

pub(crate) struct TestDomain(Network);

pub(crate) struct TestRegistration {
    network: Network,
    rkey: u32,
}

impl Domain for TestDomain {
    fn register(&self, memory: Arc<Memory>) -> Result<Box<dyn Registration>, FabricError> {
        let rkey = self.0.next.fetch_add(1, Ordering::Relaxed) + 1;
        self.0.registered.write().unwrap().insert(rkey, memory);
        Ok(Box::new(TestRegistration {
            network: self.0.clone(),
            rkey,
        }))
    }
}

impl Registration for TestRegistration {
    fn remote(&self) -> RemoteRef {
        RemoteRef {
            address: 0,
            rkey: self.rkey,
        }
    }
}

impl Drop for TestRegistration {
    fn drop(&mut self) {
        self.network.registered.write().unwrap().remove(&self.rkey);
    }
}

impl Network {
    pub(crate) fn domain(&self) -> TestDomain {
        TestDomain(self.clone())
    }

    pub(crate) fn registrations(&self) -> usize {
        self.registered.read().unwrap().len()
    }

    /// A READ; whether the rkey and the range are good.
    pub(crate) fn read(&self, at: RemoteRef, out: &mut [u8]) -> bool {
        let memory = self.registered.read().unwrap().get(&at.rkey).cloned();
        match memory {
            Some(memory) if at.address as usize + out.len() <= memory.len() => {
                memory.read(at.address as usize, out);
                true
            }
            _ => false,
        }
    }
}

/// A store over a directory, and what its control thread would do.
pub(crate) struct Rig {
    pub(crate) store: Store,
    pub(crate) network: Network,
    token: std::sync::atomic::AtomicU64,
    answers: Mutex<HashMap<u64, Result<Committed, StorageError>>>,
}

pub(crate) fn options(data: &Path) -> StoreOptions {
    StoreOptions {
        scrub_share: 0.0,
        data: data.to_owned(),
        memory_budget_bytes: 256 * MIB,
        segment_bytes: MIB,
        part_bytes: 32 << 10,
        gather_budget_bytes: 8 * MIB,
        compaction: crate::store::Compaction {
            disk_reserve_bytes: 0,
            ..crate::store::Compaction::default()
        },
    }
}

impl Rig {
    pub(crate) fn open(data: &Path) -> Self {
        Self::with(options(data), Files::default()).unwrap()
    }

    pub(crate) fn with(options: StoreOptions, files: Files) -> Result<Self, StorageError> {
        let rig = Self::unloaded(options, files, u64::MAX)?;
        rig.wait_loaded();
        Ok(rig)
    }

    /// Whose images are not loaded but so many.
    pub(crate) fn unloaded(options: StoreOptions, files: Files, loads: u64) -> Result<Self, StorageError> {
        let network = Network::default();
        let domains = network.clone();
        Ok(Self {
            store: Store::open_with(options, files, loads, move || {
                Ok(Arc::new(TestDomain(domains.clone())))
            })?,
            network,
            token: 1.into(),
            answers: Mutex::default(),
        })
    }

    /// Waits until no image is to be loaded.
    pub(crate) fn wait_loaded(&self) {
        let deadline = Instant::now() + PATIENCE;
        while figure_in(&self.store.stat(), "segments_loading_count") > 0 {
            assert!(Instant::now() < deadline, "images are not loaded");
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    pub(crate) fn dataset(&self, name: &str) -> Arc<Dataset> {
        self.store.by_name(name).unwrap()
    }

    pub(crate) fn reader(&self, name: &str) -> RawReader {
        RawReader::open(&self.network, self.store.epoch(), &self.dataset(name))
    }

    pub(crate) fn token(&self) -> u64 {
        self.token.fetch_add(1, Ordering::Relaxed)
    }

    /// Waits for the answer with this token.
    pub(crate) fn answer(&self, token: u64) -> Result<Committed, StorageError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut answers = lock(&self.answers);
            let mut drained = Vec::new();
            self.store.completions().drain(&mut drained);
            for Completion { token, result } in drained {
                assert!(answers.insert(token, result).is_none(), "one answer a token");
            }
            if let Some(answer) = answers.remove(&token) {
                return answer;
            }
            drop(answers);
            assert!(Instant::now() < deadline, "no answer to {token}");
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    /// Begins, fills in windows and commits; the token of the answer.
    pub(crate) fn start_put(
        &self,
        dataset: &Dataset,
        (client, operation): (u64, u64),
        key: &[u8],
        value: &[u8],
    ) -> Result<u64, StorageError> {
        let deadline = Instant::now() + PATIENCE;
        let begun = loop {
            match dataset.begin_put(client, operation, key, value.len() as u64) {
                Err(StorageError::Busy(_) | StorageError::Arriving) if Instant::now() < deadline => {
                    std::thread::yield_now()
                }
                begun => break begun?,
            }
        };
        let BeginPut::New(mut put) = begun else {
            panic!("{begun:?} of a new operation");
        };
        let mut sent = 0;
        while sent < value.len() {
            let len = put.append_max().min(value.len() - sent);
            match put.append(len, |out| out.copy_from_slice(&value[sent..sent + len])) {
                Ok(()) => sent += len,
                Err(StorageError::Busy(_) | StorageError::Arriving) if Instant::now() < deadline => {
                    std::thread::yield_now()
                }
                Err(error) => return Err(error),
            }
        }
        let token = self.token();
        dataset.commit(put, crc32c(value), token);
        Ok(token)
    }

    pub(crate) fn put_as(
        &self,
        name: &str,
        identity: (u64, u64),
        key: &[u8],
        value: &[u8],
    ) -> Result<Committed, StorageError> {
        let token = self.start_put(&self.dataset(name), identity, key, value)?;
        self.answer(token)
    }

    /// Puts as client 7, with an operation number of its own.
    pub(crate) fn put(&self, name: &str, key: &[u8], value: &[u8]) -> Result<Committed, StorageError> {
        let operation = self.token();
        self.put_as(name, (7 + (self.store.epoch() << 8), operation), key, value)
    }

    pub(crate) fn delete(&self, name: &str, key: &[u8]) -> Result<Committed, StorageError> {
        let operation = self.token();
        let client = 7 + (self.store.epoch() << 8);
        let token = self.token();
        match self.dataset(name).delete(client, operation, key, token)? {
            BeginDelete::Queued => self.answer(token),
            other => panic!("{other:?} of a new operation"),
        }
    }

    /// What a client with fresh knowledge reads.
    pub(crate) fn get(&self, name: &str, key: &[u8]) -> Option<Vec<u8>> {
        let dataset = self.dataset(name);
        for _ in 0..STALE_MAX {
            let reader = self.reader(name);
            // Compaction may have the index name a copy at any time, and what is being changed reads as torn: here
            // nobody changes it.
            let index = dataset.read_index();
            let found = reader.lookup(key);
            drop(index);
            match found {
                Ok((_, value)) => {
                    assert!(dataset.lookup(key).unwrap().is_some());
                    return Some(value);
                }
                Err(Miss::NotFound) => {
                    assert_eq!(dataset.lookup(key).unwrap(), None);
                    return None;
                }
                // It was moved since the reader asked where everything lies.
                Err(Miss::Stale) => {}
                Err(Miss::Torn) => panic!("torn with nobody writing"),
            }
        }
        panic!("stale again and again with nobody writing");
    }

    pub(crate) fn figure(&self, name: &str, figure: &str) -> u64 {
        figure_in(&self.dataset(name).stat(), figure)
    }
}

pub(crate) fn figure_in(stat: &[(String, u64)], figure: &str) -> u64 {
    stat.iter()
        .find(|(name, _)| name == figure)
        .unwrap_or_else(|| panic!("no figure {figure}"))
        .1
}

/// A directory that is gone with its value; in memory where there is a place for that: what a disk keeps when its
/// power is cut is not seen here, so waiting for one adds nothing.
pub(crate) fn scratch() -> tempfile::TempDir {
    let memory = rustix::fs::statvfs("/dev/shm").is_ok_and(|it| it.f_bavail * it.f_frsize > 2048 * MIB);
    let made = if memory {
        tempfile::tempdir_in("/dev/shm")
    } else {
        tempfile::tempdir()
    };
    made.unwrap()
}

/// `VKV_SEED`, or a seed of its own; printed, so that a failure shows it.
pub(crate) fn seed() -> u64 {
    let from_env = std::env::var("VKV_SEED").ok().map(|text| text.parse().unwrap());
    let seed = from_env.unwrap_or_else(|| RandomState::new().hash_one(0));
    println!("VKV_SEED={seed}");
    seed
}

/// Bytes that follow from a seed.
pub(crate) fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    })
    .take(len)
    .collect()
}

/// Copies a data directory as a crash would leave it: what was written so far, and no lock.
///
/// Files only grow, so a copy of them one by one is a state that the disk was in, or could have been, as long as no name
/// came or went meanwhile. Where one did, by compaction say, it is copied again.
pub(crate) fn copy_directory(from: &Path, to: &Path) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let before = files_below(from);
        if copy_files(&before, from, to) && files_below(from) == before {
            return;
        }
        assert!(Instant::now() < deadline, "{} is never still", from.display());
        std::fs::remove_dir_all(to).unwrap();
    }
}

/// Every directory and file below `root`, in order: a checkpoint before its segment, so that a copy of it covers no more
/// than is copied of that.
fn files_below(root: &Path) -> Vec<(PathBuf, bool)> {
    let mut found = Vec::new();
    let entries = match std::fs::read_dir(root) {
        // A dataset that was dropped meanwhile.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return found,
        entries => entries.unwrap(),
    };
    for entry in entries.map(Result::unwrap) {
        let is_directory = entry.file_type().is_ok_and(|it| it.is_dir());
        found.push((entry.path(), is_directory));
        if is_directory {
            found.extend(files_below(&entry.path()));
        }
    }
    found.sort();
    found
}

/// Whether all were there to be copied.
fn copy_files(files: &[(PathBuf, bool)], from: &Path, to: &Path) -> bool {
    std::fs::create_dir_all(to).unwrap();
    files.iter().all(|(path, is_directory)| {
        let target = to.join(path.strip_prefix(from).unwrap());
        let copied = if *is_directory {
            std::fs::create_dir(target)
        } else {
            copy_file(path, &target)
        };
        match copied {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => false,
            copied => copied.map(|()| true).unwrap(),
        }
    })
}

/// Copies a file of which the end may be a hole.
///
/// What is written while it is read may come without what was written before it, in front of it: no crash leaves that, and
/// it is read again.
fn copy_file(from: &Path, to: &Path) -> std::io::Result<()> {
    let mut bytes = std::fs::read(from)?;
    let data = loop {
        let data = bytes
            .iter()
            .rposition(|byte| *byte != 0)
            .map_or(0, |last| last + 1);
        let again = std::fs::read(from)?;
        if again.get(..data) == Some(&bytes[..data]) {
            break data;
        }
        bytes = again;
    };
    std::fs::write(to, &bytes[..data])?;
    std::fs::File::options()
        .write(true)
        .open(to)?
        .set_len(bytes.len() as u64)
}

/// Writes the bytes that a crash leaves of a file of so many, which does not get shorter.
pub(crate) fn write_torn(path: &Path, bytes: &[u8], len: usize) {
    std::fs::write(path, bytes).unwrap();
    let file = std::fs::File::options().write(true).open(path).unwrap();
    file.set_len(len.max(bytes.len()) as u64).unwrap();
}

/// The bytes of a file without the zeroes at its end, in whole units.
pub(crate) fn read_written(path: &Path) -> Vec<u8> {
    let mut bytes = std::fs::read(path).unwrap();
    let data = bytes
        .iter()
        .rposition(|byte| *byte != 0)
        .map_or(0, |last| last + 1);
    bytes.truncate(data.next_multiple_of(64));
    bytes
}

/// Segment files of a dataset, in order.
pub(crate) fn segment_files(dataset: &Dataset) -> Vec<PathBuf> {
    segment_files_in(&dataset.directory)
}

pub(crate) fn segment_files_in(directory: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "segment"))
        .collect();
    files.sort();
    files
}

/// Where the records of a sealed segment's file end, bytes.
pub(crate) fn sealed_end(file: &[u8]) -> usize {
    let trailer = SegmentTrailer::read_from_bytes(&file[file.len() - 64..]).unwrap();
    assert_eq!(trailer.magic, TRAILER_MAGIC);
    trailer.sealed_units as usize * 64
}

pub(crate) fn faulty(faults: FaultHook) -> Files {
    let mut files = Files::default();
    files.faults = Some(faults);
    files
}
