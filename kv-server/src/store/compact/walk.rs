//! The records of a sealed or active segment, one after the other, from its image or, where there is none, its file.

use std::path::PathBuf;
use std::sync::Arc;

use kv_proto::DecodeError;
use kv_proto::hash::KeyHash;
use kv_proto::layout::{Locator, RecordHeader, record_kind, units};
use kv_proto::record::{check_prefix, header_prefix_len, judge_value, key_in, parse_header};

use super::super::files::{Files, OpenFile};
use super::super::segment::{HEADER_BYTES, Segment};
use crate::error::StorageError;

/// Bytes that are fetched to see a record's header and, mostly, its key.
const LOOK_BYTES: usize = 256;

/// A record of a segment.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub(crate) header: RecordHeader,
    /// Offset in the segment, bytes.
    offset: u64,
    /// Header, key and block CRCs, which agree with each other.
    prefix: Vec<u8>,
}

impl Found {
    /// Where it lies in its segment, bytes.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    pub(crate) fn key(&self) -> &[u8] {
        key_in(&self.prefix, &self.header)
    }

    /// The locator of a record with this hash of its key.
    pub(crate) fn locator(&self, segment: u32, hash: KeyHash) -> Locator {
        Locator {
            segment,
            offset_units: (self.offset / 64) as u32,
            value_len_bytes: self.header.value_len_bytes,
            key_len_bytes: self.header.key_len_bytes,
            tag: hash.tag(),
        }
    }

    /// Length of the record in its segment, bytes.
    pub(crate) fn stored_bytes(&self) -> u64 {
        units(self.prefix.len() as u64 + u64::from(self.header.value_len_bytes)) * 64
    }
}

/// Reads a segment from its beginning to where it was published when the walk began.
pub(crate) struct Walk<'a> {
    files: &'a Files,
    segment: Arc<Segment>,
    path: PathBuf,
    /// Opened where there is no image.
    file: Option<OpenFile>,
    at: u64,
    end: u64,
}

impl<'a> Walk<'a> {
    pub(crate) fn new(files: &'a Files, segment: Arc<Segment>, path: PathBuf) -> Self {
        Self {
            files,
            end: segment.length_bytes(),
            segment,
            path,
            file: None,
            at: HEADER_BYTES,
        }
    }

    fn damaged(&self, source: DecodeError) -> StorageError {
        StorageError::Damaged {
            path: self.path.clone(),
            source,
        }
    }

    fn read(&mut self, offset: u64, out: &mut [u8]) -> Result<(), StorageError> {
        if self.segment.read(offset, out) {
            return Ok(());
        }
        if self.file.is_none() {
            self.file = Some(self.files.open(&self.path)?);
        }
        let file = self.file.as_ref().expect("it was opened above");
        self.files.read_at(file, out, offset)
    }

    /// The next record, FILLERs left out.
    ///
    /// # Errors
    /// Why what lies there cannot be read, or is no record: nothing can be said of what lies behind it.
    pub(crate) fn next(&mut self) -> Result<Option<Found>, StorageError> {
        while self.at + HEADER_BYTES <= self.end {
            let found = self.at(self.at)?;
            let next = self.at + found.stored_bytes();
            if next > self.end {
                return Err(self.damaged(DecodeError::Short {
                    what: "segment",
                    need: next as usize,
                    have: self.end as usize,
                }));
            }
            self.at = next;
            if found.header.kind != record_kind::FILLER {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// The record at `offset`.
    ///
    /// # Errors
    /// As [`Walk::next`].
    pub(crate) fn at(&mut self, offset: u64) -> Result<Found, StorageError> {
        let left = self.end.saturating_sub(offset);
        let mut prefix = vec![0; LOOK_BYTES.min(left as usize)];
        self.read(offset, &mut prefix)?;
        let header = parse_header(&prefix).map_err(|source| self.damaged(source))?;
        let need = header_prefix_len(&header) as usize;
        if need as u64 > left {
            return Err(self.damaged(DecodeError::Short {
                what: "segment",
                need,
                have: left as usize,
            }));
        }
        let have = prefix.len().min(need);
        prefix.resize(need, 0);
        if have < need {
            let (at, rest) = (offset + have as u64, have..need);
            self.read(at, &mut prefix[rest])?;
        }
        let header = check_prefix(&prefix).map_err(|source| self.damaged(source))?;
        if header.segment_identity != self.segment.identity {
            return Err(self.damaged(DecodeError::Range {
                what: "record header",
                field: "segment_identity",
                value: header.segment_identity,
            }));
        }
        Ok(Found {
            header,
            offset,
            prefix,
        })
    }

    /// The record's value, if it has its CRCs.
    ///
    /// # Errors
    /// Why it cannot be read, or is not what was written.
    pub(crate) fn value(&mut self, found: &Found) -> Result<Vec<u8>, StorageError> {
        let mut value = vec![0; found.header.value_len_bytes as usize];
        self.read(found.offset + found.prefix.len() as u64, &mut value)?;
        judge_value(&found.prefix, &found.header, &value).map_err(|_| {
            self.damaged(DecodeError::Checksum {
                what: "record value",
                found: u64::from(found.header.value_crc),
                computed: u64::from(kv_proto::crc::crc32c(&value)),
            })
        })?;
        Ok(value)
    }
}
