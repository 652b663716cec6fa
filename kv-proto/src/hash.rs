//! The keyed hash of a key: SipHash-2-4 with 128 bits of output, keyed per dataset.
//!
//! Clients get the key with OPEN, so who cannot open a dataset cannot choose keys that collide in it.

use siphasher::sip128::{Hasher128, SipHasher24};

use crate::layout::{DIRECTORY_DEPTH_MAX, GROUP_BUCKETS, Locator};
use core::hash::Hasher;

/// What a key begins with whose last byte does not go into its hash: only in builds for campaigns.
#[cfg(feature = "weak-hash")]
pub const WEAK_PREFIX: &[u8] = b"\0weak\0";

#[cfg(feature = "weak-hash")]
fn weakened(key: &[u8]) -> &[u8] {
    match key.split_last() {
        Some((_, rest)) if rest.starts_with(WEAK_PREFIX) => rest,
        _ => key,
    }
}

/// 128 bits of hash: all that the index knows of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyHash {
    /// Bits that choose directory entry and buckets, and that a slot holds.
    pub slot: u64,
    /// The other bits; their top 16 are the tag.
    pub high: u64,
}

impl KeyHash {
    /// Hash of `key` in the dataset whose hash key is `hash_key`.
    #[must_use]
    pub fn of(hash_key: &[u8; 16], key: &[u8]) -> Self {
        #[cfg(feature = "weak-hash")]
        let key = weakened(key);
        let mut hasher = SipHasher24::new_with_key(hash_key);
        hasher.write(key);
        let hash = hasher.finish128();
        Self {
            slot: hash.h1,
            high: hash.h2,
        }
    }

    /// The 16 bits that a locator holds.
    #[must_use]
    pub const fn tag(self) -> u16 {
        (self.high >> 48) as u16
    }
}

/// Index of the directory entry for a slot hash: its first `depth` bits; no more than
/// [`DIRECTORY_DEPTH_MAX`] are taken.
#[must_use]
pub const fn directory_index(slot_hash: u64, depth: u8) -> u32 {
    match depth {
        0 => 0,
        1..=DIRECTORY_DEPTH_MAX => (slot_hash >> (64 - depth as u32)) as u32,
        _ => (slot_hash >> (64 - DIRECTORY_DEPTH_MAX as u32)) as u32,
    }
}

/// The two candidate buckets of a slot hash in its group; they may be the same one.
#[must_use]
pub const fn candidate_buckets(slot_hash: u64) -> [u32; 2] {
    let mask = GROUP_BUCKETS - 1;
    [slot_hash as u32 & mask, (slot_hash >> 6) as u32 & mask]
}

/// Whether a slot can be the key's: both halves of the hash agree as far as the slot holds them.
#[must_use]
pub const fn slot_matches(hash: KeyHash, slot_hash: u64, locator: &Locator) -> bool {
    locator.segment != 0 && slot_hash == hash.slot && locator.tag == hash.tag()
}
