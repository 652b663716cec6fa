//! How a store is held, and what cannot be.

use std::path::PathBuf;

use kv_proto::layout::{PART_MAX_BYTES, SEGMENT_MAX_BYTES, SEGMENT_MIN_BYTES};

use super::arriving::least_bytes;
use super::compact::Compaction;
pub use super::limits::PART_MIN_BYTES;
use crate::error::StorageError;

/// How a store is held.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// Data directory; made where it is not there.
    pub data: PathBuf,
    /// Most memory for images, indexes, and what connections take, bytes.
    pub memory_budget_bytes: u64,
    /// Length of the segments of datasets created from now on, bytes.
    pub segment_bytes: u64,
    /// Longest part of a large value in datasets created from now on, bytes; at most a quarter of a segment counts.
    pub part_bytes: u64,
    /// Most memory for values that are arriving, bytes.
    pub gather_budget_bytes: u64,
    /// When and how fast dead space is freed.
    pub compaction: Compaction,
    /// Most of the disk's time that the scrubber takes, up to 1; 0 for none.
    pub scrub_share: f64,
}

/// Share of the disk's time that the scrubber takes unless told otherwise.
pub const SCRUB_SHARE_DEFAULT: f64 = 0.02;

impl StoreOptions {
    pub(crate) fn check(&self) -> Result<(), StorageError> {
        let refuse = |option, value, remedy: String| {
            Err(StorageError::Option {
                option,
                value,
                remedy,
            })
        };
        if !(SEGMENT_MIN_BYTES..=SEGMENT_MAX_BYTES).contains(&self.segment_bytes) {
            let remedy = format!("a segment has {SEGMENT_MIN_BYTES} to {SEGMENT_MAX_BYTES} bytes");
            return refuse("segment length", self.segment_bytes, remedy);
        }
        if !(PART_MIN_BYTES..=PART_MAX_BYTES).contains(&self.part_bytes) {
            let remedy = format!("a part has {PART_MIN_BYTES} to {PART_MAX_BYTES} bytes");
            return refuse("part length", self.part_bytes, remedy);
        }
        if !(0.0..=1.0).contains(&self.scrub_share) {
            let remedy = "percent: give a share from 0 to 1".to_owned();
            return refuse(
                "the scrubber's share of the disk",
                (self.scrub_share * 100.0) as u64,
                remedy,
            );
        }
        self.compaction.check()
    }

    /// Refuses a budget in which no large value of a dataset with these parts could ever arrive.
    pub(crate) fn check_gather(&self, part_bytes: u64) -> Result<(), StorageError> {
        let least = least_bytes(part_bytes);
        if self.gather_budget_bytes >= least {
            return Ok(());
        }
        Err(StorageError::Option {
            option: "memory for arriving values",
            value: self.gather_budget_bytes,
            remedy: format!("give at least {least} bytes where values are stored in parts of {part_bytes}"),
        })
    }
}
