//! How values get into a dataset, and keys out of it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use kv_proto::layout::{KEY_MAX_BYTES, PARTS_MAX};

use super::super::arriving::{Kind, gather_bytes};
use super::super::log::Op;
use super::super::operations::Begin;
use super::super::put::{Put, PutState};
use super::super::{Committed, Completion};
use super::Dataset;
use crate::error::StorageError;

/// What came of beginning a put.
#[derive(Debug)]
pub enum BeginPut {
    /// It was applied before, and this is its outcome.
    Done(Committed),
    /// It was committed and is not durable yet: ask again.
    InProgress,
    /// Older than what is remembered.
    Unknown,
    /// It is begun.
    New(Put),
}

/// What came of a delete.
#[derive(Debug)]
pub enum BeginDelete {
    /// It was applied before, and this is its outcome.
    Done(Committed),
    /// It is queued already and not durable yet: ask again.
    InProgress,
    /// Older than what is remembered.
    Unknown,
    /// It is queued; its answer comes as a completion.
    Queued,
}

impl Dataset {
    fn check_writable(&self, key: &[u8]) -> Result<(), StorageError> {
        if self.is_dropped() {
            return Err(StorageError::NoDataset(self.name()));
        }
        if key.is_empty() || key.len() > KEY_MAX_BYTES {
            return Err(StorageError::BadKey { len_bytes: key.len() });
        }
        self.queue.check()
    }

    /// Memory that a value of this length may hold while it arrives, bytes.
    #[must_use]
    pub fn gather_bytes(&self, value_len: u64) -> u64 {
        gather_bytes(value_len, self.part_bytes)
    }

    /// How a value of this length arrives.
    #[must_use]
    pub fn kind(&self, value_len: u64) -> Kind {
        Kind::of(value_len, self.part_bytes)
    }

    /// Memory for all values of a kind that are arriving at this server, bytes; and what of it is free.
    #[must_use]
    pub fn gather_room(&self, kind: Kind) -> (u64, u64) {
        let arriving = &self.shared.arriving;
        (arriving.kind_bytes(kind), arriving.free_bytes(kind))
    }

    /// Begins a put of `value_len` bytes under `key`, as operation `operation` of `client_id`.
    ///
    /// # Errors
    /// Why it was not begun: [`StorageError::BadKey`], [`StorageError::TooLarge`], [`StorageError::NoDataset`],
    /// [`StorageError::Arriving`] or [`StorageError::Busy`] where too much is arriving or queued.
    pub fn begin_put(
        &self,
        client_id: u64,
        operation: u64,
        key: &[u8],
        value_len: u64,
    ) -> Result<BeginPut, StorageError> {
        self.check_writable(key)?;
        let max_bytes = self.part_bytes * u64::from(PARTS_MAX);
        if value_len > max_bytes {
            return Err(StorageError::TooLarge {
                len_bytes: value_len,
                max_bytes,
            });
        }
        if self.shared.budget.open_bytes() < value_len && self.is_coming_back(true) {
            // Refused at its end it would have come for nothing.
            return Err(StorageError::Freeing);
        }
        let attempt = match self.operations.begin(client_id, operation) {
            Begin::Done(outcome) => return Ok(BeginPut::Done(outcome)),
            Begin::InProgress => return Ok(BeginPut::InProgress),
            Begin::Unknown => return Ok(BeginPut::Unknown),
            Begin::New(attempt) => attempt,
        };
        let state = PutState::new(
            key,
            self.hash(key),
            (client_id, operation),
            value_len,
            self.part_bytes,
        );
        let arriving = &self.shared.arriving;
        let kind = self.kind(value_len);
        if kind != Kind::Small
            && let Err(error) = state.reserve(arriving, kind)
        {
            self.operations.abort(client_id, operation, attempt);
            return Err(error);
        }
        Ok(BeginPut::New(Put::new(
            state,
            attempt,
            Arc::clone(arriving),
            Arc::clone(&self.queue),
            Arc::clone(&self.operations),
        )))
    }

    /// Commits a put whose bytes have all come. The answer is a completion with `token`, also where it is refused.
    pub fn commit(&self, put: Put, value_crc: u32, token: u64) {
        if let Err(error) = put.commit(value_crc, token) {
            self.figures.failed.fetch_add(1, Ordering::Relaxed);
            let result = Err(error);
            self.shared
                .completions
                .push(&mut vec![Completion { token, result }]);
        }
    }

    /// Deletes `key`, as operation `operation` of `client_id`.
    ///
    /// # Errors
    /// Why it was not queued, as [`Dataset::begin_put`].
    pub fn delete(
        &self,
        client_id: u64,
        operation: u64,
        key: &[u8],
        token: u64,
    ) -> Result<BeginDelete, StorageError> {
        self.check_writable(key)?;
        let attempt = match self.operations.begin(client_id, operation) {
            Begin::Done(outcome) => return Ok(BeginDelete::Done(outcome)),
            Begin::InProgress => return Ok(BeginDelete::InProgress),
            Begin::Unknown => return Ok(BeginDelete::Unknown),
            Begin::New(attempt) => attempt,
        };
        self.operations.commit(client_id, operation, attempt);
        let op = Op::Delete {
            client: client_id,
            operation,
            key: key.to_vec(),
            token,
        };
        self.queue
            .push(op)
            .inspect_err(|_| self.operations.finish(client_id, operation, None))?;
        Ok(BeginDelete::Queued)
    }
}
