//! One dataset.

use kv_fabric::Domain;
use kv_proto::control::{DatasetChange, DirectoryRef, ListEntry, SegmentRow};
use kv_proto::layout::Locator;

use super::{Committed, Put};
use crate::error::StorageError;

/// What came of beginning a put.
#[allow(missing_docs)]
pub enum BeginPut {
    Done(Committed),
    InProgress,
    Unknown,
    New(Put),
}

/// What came of a delete.
#[allow(missing_docs)]
pub enum BeginDelete {
    Done(Committed),
    InProgress,
    Unknown,
    Queued,
}

/// One dataset.
pub struct Dataset<D: Domain> {
    domain: D,
}

#[allow(missing_docs, clippy::missing_errors_doc)]
impl<D: Domain> Dataset<D> {
    pub fn id(&self) -> [u8; 16] {
        todo!()
    }
    pub fn name(&self) -> String {
        todo!()
    }
    pub fn hash_key(&self) -> [u8; 16] {
        todo!()
    }
    pub fn part_bytes(&self) -> u64 {
        todo!()
    }
    pub fn domain(&self) -> &D {
        &self.domain
    }
    pub fn is_dropped(&self) -> bool {
        todo!()
    }
    pub fn directory(&self) -> DirectoryRef {
        todo!()
    }
    pub fn rows(&self, _first: u32, _frame_room_bytes: usize) -> (Vec<SegmentRow>, u32) {
        todo!()
    }
    pub fn row(&self, _segment: u32) -> Option<SegmentRow> {
        todo!()
    }
    pub fn changes(&self, _since: u64, _room_bytes: usize) -> Option<DatasetChange> {
        todo!()
    }
    pub fn lookup(&self, _key: &[u8]) -> Option<Locator> {
        todo!()
    }
    pub fn list(&self, _cursor: u64, _limit: usize, _room_bytes: usize) -> (Vec<ListEntry>, u64, bool) {
        todo!()
    }
    pub fn keys(&self) -> u64 {
        todo!()
    }
    pub fn value_bytes(&self) -> u64 {
        todo!()
    }
    pub fn stat(&self) -> Vec<(String, u64)> {
        todo!()
    }
    pub fn begin_put(
        &self,
        _client_id: u64,
        _operation: u64,
        _key: &[u8],
        _value_len: u64,
    ) -> Result<BeginPut, StorageError> {
        todo!()
    }
    pub fn commit(&self, _put: Put, _value_crc: u32, _token: u64) {
        todo!()
    }
    pub fn delete(
        &self,
        _client_id: u64,
        _operation: u64,
        _key: &[u8],
        _token: u64,
    ) -> Result<BeginDelete, StorageError> {
        todo!()
    }
}
