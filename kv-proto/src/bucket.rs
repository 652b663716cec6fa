//! Checksums of buckets and directory entries, and the rules by which a reader looks a key up.
//!
//! A checksum is XXH3-64 over the bytes behind it, seeded with where they belong, so a torn bucket, an old one and one
//! that belongs elsewhere all show.

use twox_hash::XxHash3_64;
use zerocopy::IntoBytes;

use crate::hash::{KeyHash, directory_index, slot_matches};
use crate::layout::{Bucket, DIRECTORY_DEPTH_MAX, DirectoryEntry, Locator, STAMP_MOVED, depth_prefix};

/// The life of one index: addresses and checksums of another do not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndexScope {
    /// Id of the dataset.
    pub dataset: [u8; 16],
    /// Epoch of the server.
    pub epoch: u64,
}

impl IndexScope {
    fn seed(&self, what: u32, first: u64, second: u32) -> u64 {
        let mut bytes = [0_u8; 40];
        bytes[..16].copy_from_slice(&self.dataset);
        bytes[16..24].copy_from_slice(&self.epoch.to_le_bytes());
        bytes[24..32].copy_from_slice(&first.to_le_bytes());
        bytes[32..36].copy_from_slice(&second.to_le_bytes());
        bytes[36..].copy_from_slice(&what.to_le_bytes());
        XxHash3_64::oneshot(&bytes)
    }

    /// Checksum that `bucket` carries as number `index` of group `group`.
    #[must_use]
    pub fn bucket_checksum(&self, group: u32, index: u32, bucket: &Bucket) -> u64 {
        XxHash3_64::oneshot_with_seed(self.seed(1, u64::from(group), index), &bucket.as_bytes()[8..])
    }

    /// Checksum that `entry` carries as number `index` of the directory of this `version`.
    #[must_use]
    pub fn directory_checksum(&self, version: u64, index: u32, entry: &DirectoryEntry) -> u64 {
        XxHash3_64::oneshot_with_seed(self.seed(2, version, index), &entry.as_bytes()[8..])
    }
}

/// Why a bucket or a directory entry that was read says nothing about the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IndexRefusal {
    /// Written while it was read, or no longer what the directory says. Read it again; then treat it as stale.
    #[error("checksum does not agree: torn, old or foreign")]
    Torn,
    /// A group that was replaced: refresh the directory.
    #[error("the group was replaced: the directory is stale")]
    Stale,
}

/// Judges directory entry `index` as it was read from the directory of `version` and `depth`.
///
/// # Errors
/// [`IndexRefusal::Torn`] if its checksum does not agree, [`IndexRefusal::Stale`] if it does not cover `index`.
pub fn judge_directory_entry(
    scope: &IndexScope,
    version: u64,
    depth: u8,
    index: u32,
    entry: &DirectoryEntry,
) -> Result<(), IndexRefusal> {
    if scope.directory_checksum(version, index, entry) != entry.checksum {
        return Err(IndexRefusal::Torn);
    }
    let local = (entry.depth_prefix >> 24) as u8;
    // Bounded before it shifts: `depth` came over the wire.
    if depth > DIRECTORY_DEPTH_MAX
        || local > depth
        || depth_prefix(local, index >> (depth - local)) != entry.depth_prefix
    {
        return Err(IndexRefusal::Stale);
    }
    Ok(())
}

/// Judges bucket `index` of the group that `entry` names, as it was read, for a key with `hash`.
///
/// # Errors
/// [`IndexRefusal::Torn`] if its checksum does not agree; [`IndexRefusal::Stale`] if its stamp is not the entry's or
/// depth and prefix are not the hash's.
pub fn judge_bucket(
    scope: &IndexScope,
    entry: &DirectoryEntry,
    index: u32,
    bucket: &Bucket,
    hash: KeyHash,
) -> Result<(), IndexRefusal> {
    if scope.bucket_checksum(entry.group, index, bucket) != bucket.checksum {
        return Err(IndexRefusal::Torn);
    }
    let depth = (bucket.depth_prefix >> 24) as u8;
    let covers = depth <= DIRECTORY_DEPTH_MAX
        && bucket.depth_prefix == depth_prefix(depth, directory_index(hash.slot, depth));
    if bucket.stamp & STAMP_MOVED != 0 || bucket.stamp != entry.stamp || !covers {
        return Err(IndexRefusal::Stale);
    }
    Ok(())
}

/// Locators in an accepted bucket that can be the key's; nearly always none or one.
pub fn candidates(
    bucket: &Bucket,
    hash: KeyHash,
    key_len_bytes: usize,
) -> impl Iterator<Item = Locator> + '_ {
    bucket
        .slots
        .iter()
        .filter(move |slot| {
            slot_matches(hash, slot.hash, &slot.locator)
                && usize::from(slot.locator.key_len_bytes) == key_len_bytes
        })
        .map(|slot| slot.locator)
}
