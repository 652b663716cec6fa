//! A domain whose memory a test reads as a client would: by rkey, knowing nothing but what kv-proto says.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};

use kv_fabric::{Domain, FabricError, Memory, Registration, RemoteRef};
use kv_proto::bucket::{IndexRefusal, IndexScope, candidates, judge_bucket, judge_directory_entry};
use kv_proto::control::{DirectoryRef, RemoteAddress, SegmentRow};
use kv_proto::crc::crc32c;
use kv_proto::hash::{KeyHash, candidate_buckets, directory_index};
use kv_proto::layout::{Bucket, DirectoryEntry, EXTENT_BYTES, Locator, RecordHeader, record_kind};
use kv_proto::parts::{judge_part, part_locator};
use kv_proto::record::{Expected, Refusal, judge_prefix, judge_value, parse_head};
use zerocopy::{FromZeros, IntoBytes};

use super::super::files::{FaultHook, Files};
use super::super::{BeginDelete, BeginPut, Committed, Completion, Dataset, Store, StoreOptions, lock};
use crate::error::StorageError;

pub(crate) const MIB: u64 = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(60);

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
    type Registration = TestRegistration;

    fn register(&self, memory: Arc<Memory>) -> Result<TestRegistration, FabricError> {
        let rkey = self.0.next.fetch_add(1, Ordering::Relaxed) + 1;
        self.0.registered.write().unwrap().insert(rkey, memory);
        Ok(TestRegistration {
            network: self.0.clone(),
            rkey,
        })
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
    pub(crate) fn registrations(&self) -> usize {
        self.registered.read().unwrap().len()
    }

    /// A READ; whether the rkey and the range are good.
    fn read(&self, at: RemoteRef, out: &mut [u8]) -> bool {
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

fn remote(address: &RemoteAddress) -> RemoteRef {
    RemoteRef {
        address: address.address,
        rkey: address.rkey,
    }
}

/// Why a raw reader got no value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Miss {
    /// Both buckets say that the key is not there.
    NotFound,
    /// What was read does not agree with itself: read again.
    Torn,
    /// What was known is old: ask the server again.
    Stale,
}

impl From<IndexRefusal> for Miss {
    fn from(refusal: IndexRefusal) -> Self {
        match refusal {
            IndexRefusal::Torn => Self::Torn,
            IndexRefusal::Stale => Self::Stale,
        }
    }
}

/// A client that knows the directory and the rows that it was told, and READs the rest.
pub(crate) struct RawReader {
    network: Network,
    scope: IndexScope,
    hash_key: [u8; 16],
    directory: DirectoryRef,
    /// The directory as it was when it was last asked for.
    entries: Vec<DirectoryEntry>,
    rows: HashMap<u32, SegmentRow>,
}

impl RawReader {
    pub(crate) fn open(network: &Network, epoch: u64, dataset: &Dataset<TestDomain>) -> Self {
        let mut reader = Self {
            network: network.clone(),
            scope: IndexScope {
                dataset: dataset.id(),
                epoch,
            },
            hash_key: dataset.hash_key(),
            directory: dataset.directory(),
            entries: Vec::new(),
            rows: HashMap::new(),
        };
        reader.refresh(dataset);
        reader
    }

    /// Asks the server for everything again.
    pub(crate) fn refresh(&mut self, dataset: &Dataset<TestDomain>) {
        self.directory = dataset.directory();
        self.entries = vec![DirectoryEntry::new_zeroed(); 1 << self.directory.depth];
        // Gone already: then its entries are no entries, and it is asked for again.
        self.network
            .read(remote(&self.directory.at), self.entries.as_mut_bytes());
        self.rows.clear();
        let mut first = 1;
        while first != 0 {
            let (rows, next) = dataset.rows(first, 3000);
            self.rows.extend(rows.into_iter().map(|row| (row.segment, row)));
            first = next;
        }
    }

    pub(crate) fn lookup(&self, key: &[u8]) -> Result<(Locator, Vec<u8>), Miss> {
        let hash = KeyHash::of(&self.hash_key, key);
        let index = directory_index(hash.slot, self.directory.depth);
        let entry = self.entries[index as usize];
        let DirectoryRef { version, depth, .. } = self.directory;
        if judge_directory_entry(&self.scope, version, depth, index, &entry).is_err() {
            return Err(Miss::Stale);
        }
        let group = RemoteRef {
            address: entry.address,
            rkey: entry.rkey,
        };
        let mut found = None;
        for index in candidate_buckets(hash.slot) {
            let mut bucket = Bucket::new_zeroed();
            let at = group.offset(u64::from(index) * size_of::<Bucket>() as u64);
            if !self.network.read(at, bucket.as_mut_bytes()) {
                return Err(Miss::Stale);
            }
            judge_bucket(&self.scope, &entry, index, &bucket, hash)?;
            for locator in candidates(&bucket, hash, key.len()) {
                match self.value(&locator, Some(key)) {
                    Ok(value) => found = Some((locator, value)),
                    Err(Some(miss)) => return Err(miss),
                    Err(None) => {}
                }
            }
        }
        found.ok_or(Miss::NotFound)
    }

    /// The value that a locator names; `Err(None)` if it is another key's.
    pub(crate) fn value(&self, locator: &Locator, key: Option<&[u8]>) -> Result<Vec<u8>, Option<Miss>> {
        let (prefix, value, identity) = self.record(locator)?;
        let expected = Expected {
            segment_identity: identity,
            locator: *locator,
            hash_key: &self.hash_key,
            key,
        };
        let header = judge_prefix(&prefix, &expected).map_err(miss)?;
        judge_value(&prefix, &header, &value).map_err(miss)?;
        if header.kind == record_kind::VALUE {
            return Ok(value);
        }
        self.parts(locator, &header, &value)
    }

    fn parts(&self, locator: &Locator, header: &RecordHeader, value: &[u8]) -> Result<Vec<u8>, Option<Miss>> {
        let (head, parts) = parse_head(value).expect("a head with valid CRCs is well formed");
        let mut whole = Vec::new();
        for index in 0..head.part_count {
            let locator = part_locator(locator, &head, &parts, index).expect("inside part_count");
            let (prefix, part, identity) = self.record(&locator)?;
            let expected = Expected {
                segment_identity: identity,
                locator,
                hash_key: &self.hash_key,
                key: None,
            };
            let part_header = judge_part(&prefix, &expected, header, index).map_err(miss)?;
            judge_value(&prefix, &part_header, &part).map_err(miss)?;
            whole.extend_from_slice(&part);
        }
        assert_eq!(crc32c(&whole), head.total_crc);
        Ok(whole)
    }

    fn record(&self, locator: &Locator) -> Result<(Vec<u8>, Vec<u8>, u64), Miss> {
        let row = self.rows.get(&locator.segment).ok_or(Miss::Stale)?;
        let offset = locator.offset_bytes();
        let extent = row
            .extents
            .get((offset / EXTENT_BYTES) as usize)
            .ok_or(Miss::Stale)?;
        let mut bytes = vec![0; locator.wire_len_bytes() as usize];
        if !self
            .network
            .read(remote(extent).offset(offset % EXTENT_BYTES), &mut bytes)
        {
            return Err(Miss::Stale);
        }
        let value = bytes.split_off(locator.prefix_len_bytes() as usize);
        Ok((bytes, value, row.identity))
    }
}

fn miss(refusal: Refusal) -> Option<Miss> {
    match refusal {
        Refusal::Torn => Some(Miss::Torn),
        Refusal::Stale => Some(Miss::Stale),
        Refusal::OtherKey => None,
    }
}

/// A store over a directory, and what its control thread would do.
pub(crate) struct Rig {
    pub(crate) store: Store<TestDomain>,
    pub(crate) network: Network,
    token: std::sync::atomic::AtomicU64,
    answers: Mutex<HashMap<u64, Result<Committed, StorageError>>>,
}

pub(crate) fn options(data: &Path) -> StoreOptions {
    StoreOptions {
        data: data.to_owned(),
        memory_budget_bytes: 256 * MIB,
        segment_bytes: MIB,
        part_bytes: 32 << 10,
        gather_budget_bytes: 8 * MIB,
    }
}

impl Rig {
    pub(crate) fn open(data: &Path) -> Self {
        Self::with(options(data), Files::default()).unwrap()
    }

    pub(crate) fn with(options: StoreOptions, files: Files) -> Result<Self, StorageError> {
        let network = Network::default();
        let domains = network.clone();
        Ok(Self {
            store: Store::open_with(options, files, move || Ok(TestDomain(domains.clone())))?,
            network,
            token: 1.into(),
            answers: Mutex::default(),
        })
    }

    pub(crate) fn dataset(&self, name: &str) -> Arc<Dataset<TestDomain>> {
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
        dataset: &Dataset<TestDomain>,
        (client, operation): (u64, u64),
        key: &[u8],
        value: &[u8],
    ) -> Result<u64, StorageError> {
        let deadline = Instant::now() + PATIENCE;
        let begun = loop {
            match dataset.begin_put(client, operation, key, value.len() as u64) {
                Err(StorageError::Busy(_)) if Instant::now() < deadline => std::thread::yield_now(),
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
                Err(StorageError::Busy(_)) if Instant::now() < deadline => std::thread::yield_now(),
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
        match self.reader(name).lookup(key) {
            Ok((locator, value)) => {
                assert_eq!(self.dataset(name).lookup(key), Some(locator));
                Some(value)
            }
            Err(Miss::NotFound) => {
                assert_eq!(self.dataset(name).lookup(key), None);
                None
            }
            Err(miss) => panic!("{miss:?} with nobody writing"),
        }
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
pub(crate) fn copy_directory(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_directory(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Segment files of a dataset, in order.
pub(crate) fn segment_files(dataset: &Dataset<TestDomain>) -> Vec<std::path::PathBuf> {
    segment_files_in(&dataset.directory)
}

pub(crate) fn segment_files_in(directory: &Path) -> Vec<std::path::PathBuf> {
    let mut files: Vec<_> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "segment"))
        .collect();
    files.sort();
    files
}

pub(crate) fn faulty(faults: FaultHook) -> Files {
    let mut files = Files::default();
    files.faults = Some(faults);
    files
}
