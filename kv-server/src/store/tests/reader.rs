//! A client that finds and judges values by what kv-proto says, and by nothing else.

use std::collections::HashMap;

use kv_fabric::RemoteRef;
use kv_proto::bucket::{IndexRefusal, IndexScope, candidates, judge_bucket, judge_directory_entry};
use kv_proto::control::{DirectoryRef, RemoteAddress, SegmentRow};
use kv_proto::crc::crc32c;
use kv_proto::hash::{KeyHash, candidate_buckets, directory_index};
use kv_proto::layout::{Bucket, DirectoryEntry, EXTENT_BYTES, Locator, RecordHeader, record_kind};
use kv_proto::parts::{judge_part, part_locator};
use kv_proto::record::{Expected, Refusal, judge_prefix, judge_value, parse_head};
use zerocopy::{FromZeros, IntoBytes};

use super::super::Dataset;
use super::support::Network;

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
    pub(crate) fn open(network: &Network, epoch: u64, dataset: &Dataset) -> Self {
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
    pub(crate) fn refresh(&mut self, dataset: &Dataset) {
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
