//! Giving each operation its place in the log, or refusing it before it has one.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use kv_proto::crc::crc32c;
use kv_proto::hash::KeyHash;
use kv_proto::layout::{HeadValue, PartRef, record_kind};
use kv_proto::record::encode_head;
use zerocopy::IntoBytes;

use super::super::limits::GROUP_BYTES_MAX;
use super::super::lock;
use super::super::put::PutState;
use super::group::{Record, Then};
use super::{Log, Op};
use crate::error::StorageError;

impl Log {
    /// Gives an operation its place in the group, or ends it.
    pub(super) fn place(&mut self, op: Op) {
        self.urgent = matches!(op, Op::Delete { .. } | Op::Task(_));
        match op {
            Op::Task(task) => self.task(task),
            Op::Part { put, bytes } => {
                let len = bytes.len() as u64;
                if let Err(error) = self.place_part(&put, bytes) {
                    put.fail(&self.shortage(error));
                    put.queued_bytes.fetch_sub(len, Ordering::AcqRel);
                }
            }
            Op::Value {
                put,
                bytes,
                value_crc,
                token,
            } => {
                let computed = crc32c(&bytes);
                let placed = if computed == value_crc {
                    self.place_put(&put, record_kind::VALUE, bytes, value_crc, token)
                } else {
                    Err(StorageError::Crc {
                        announced: value_crc,
                        computed,
                    })
                };
                if let Err(error) = placed {
                    self.fail(put.client, put.operation, token, error);
                }
            }
            Op::Head {
                put,
                value_crc,
                token,
            } => {
                let placed = head_value(&put, value_crc).and_then(|value| {
                    let crc = crc32c(&value);
                    self.place_put(&put, record_kind::HEAD, value, crc, token)
                });
                if let Err(error) = placed {
                    self.fail(put.client, put.operation, token, error);
                }
            }
            Op::Delete {
                client,
                operation,
                key,
                token,
            } => {
                if let Err(error) = self.place_delete(client, operation, key, token) {
                    self.fail(client, operation, token, error);
                }
            }
        }
        self.urgent = false;
        if self.group.bytes() >= GROUP_BYTES_MAX {
            self.flush();
        }
    }

    fn place_part(&mut self, put: &Arc<PutState>, bytes: Vec<u8>) -> Result<(), StorageError> {
        if let Some(error) = lock(&put.progress).failed.clone() {
            return Err(error);
        }
        let at = self.make_room(&put.key, bytes.len())?;
        let part = {
            let mut progress = lock(&put.progress);
            progress.crc.update(&bytes);
            let part = progress.parts.len() as u32;
            if let Some(active) = &self.active
                && progress
                    .parts
                    .last()
                    .is_none_or(|last| last.segment != at.segment)
            {
                progress.pins.push(active.segment.pin());
            }
            progress.parts.push(PartRef {
                segment: at.segment,
                offset_units: (at.offset / 64) as u32,
            });
            part
        };
        let value_crc = crc32c(&bytes);
        let record = Record {
            sequence: None,
            kind: record_kind::PART,
            part,
            client: put.client,
            operation: put.operation,
            key: put.key.clone(),
            hash: put.hash,
            value: bytes,
            value_crc,
        };
        self.append(at, record, Then::Part(Arc::clone(put)));
        Ok(())
    }

    fn place_put(
        &mut self,
        put: &Arc<PutState>,
        kind: u8,
        value: Vec<u8>,
        value_crc: u32,
        token: u64,
    ) -> Result<(), StorageError> {
        let at = self.make_room(&put.key, value.len())?;
        // Making room may have failed the group that held its parts.
        if let Some(error) = lock(&put.progress).failed.clone() {
            return Err(error);
        }
        self.reserve_slot(&put.key, put.hash)?;
        self.overlay.insert(put.key.clone(), true);
        let record = Record {
            sequence: None,
            kind,
            part: 0,
            client: put.client,
            operation: put.operation,
            key: put.key.clone(),
            hash: put.hash,
            value,
            value_crc,
        };
        let pins = lock(&put.progress).pins.clone();
        self.append(at, record, Then::Put { token, pins });
        Ok(())
    }

    fn place_delete(
        &mut self,
        client: u64,
        operation: u64,
        key: Vec<u8>,
        token: u64,
    ) -> Result<(), StorageError> {
        let at = self.make_room(&key, 0)?;
        let hash = self.dataset.hash(&key);
        let existed = self.is_there(&key, hash)?;
        self.overlay.insert(key.clone(), false);
        let record = Record {
            sequence: None,
            kind: record_kind::TOMBSTONE,
            part: u32::from(existed),
            client,
            operation,
            key,
            hash,
            value: Vec::new(),
            value_crc: crc32c(&[]),
        };
        self.append(at, record, Then::Delete { token, existed });
        Ok(())
    }

    /// Whether a key is there once the group is published.
    fn is_there(&self, key: &[u8], hash: KeyHash) -> Result<bool, StorageError> {
        match self.overlay.get(key) {
            Some(there) => Ok(*there),
            None => {
                let found = self.find(hash, |locator| self.dataset.key_is(locator, key))?;
                Ok(found.is_some())
            }
        }
    }

    /// Has the index promise a slot where publishing the key will need one.
    fn reserve_slot(&self, key: &[u8], hash: KeyHash) -> Result<(), StorageError> {
        if self.is_there(key, hash)? {
            return Ok(());
        }
        let reserve = || {
            let mut index = self.dataset.write_index();
            let mut replaced = Vec::new();
            let reserved = index.reserve(hash, &self.dataset.place(), &mut replaced);
            self.dataset.note_replaced(replaced);
            reserved
        };
        match reserve() {
            // Its own buckets are right; another of the group, which is to be split, is not.
            Err(StorageError::Mending) => {
                self.dataset.tell_index_faults();
                self.dataset.refill_group(hash)?;
                reserve()
            }
            reserved => reserved,
        }
    }
}

/// The head of a put whose parts are all placed, if they are those announced.
fn head_value(put: &PutState, value_crc: u32) -> Result<Vec<u8>, StorageError> {
    let progress = lock(&put.progress);
    if let Some(error) = progress.failed.clone() {
        return Err(error);
    }
    let computed = progress.crc.finish();
    if computed != value_crc {
        return Err(StorageError::Crc {
            announced: value_crc,
            computed,
        });
    }
    let head = HeadValue {
        total_len_bytes: put.value_len,
        part_len_bytes: put.part_bytes as u32,
        part_count: progress.parts.len() as u32,
        total_crc: value_crc,
        reserved: 0,
    };
    let mut value = Vec::with_capacity(head.as_bytes().len() + progress.parts.as_bytes().len());
    encode_head(&head, &progress.parts, &mut value);
    Ok(value)
}
