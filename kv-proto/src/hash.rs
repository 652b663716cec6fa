//! The keyed hash of a key: SipHash-2-4 with 128 bits of output, keyed per dataset.
//!
//! Clients get the key with OPEN, so who cannot open a dataset cannot choose keys that collide in it.

use siphasher::sip128::{Hasher128, SipHasher24};

use crate::layout::{DIRECTORY_DEPTH_MAX, GROUP_BUCKETS, Locator};
use core::hash::Hasher;
use core::sync::atomic::{AtomicBool, Ordering};

/// What a key begins with whose last byte does not go into its hash, once [`weaken`] was called.
#[doc(hidden)]
pub const WEAK_PREFIX: &[u8] = b"\0weak\0";

static IS_WEAK: AtomicBool = AtomicBool::new(false);

/// From here on keys collide, in this process, that begin with [`WEAK_PREFIX`] and differ in their last byte alone: 64 + 16 bits
/// of hash never do, and a campaign that reads while keys are written wants to see what comes of it. Nobody else calls it, which
/// `kv-fabric/tests/sources.rs` looks after.
#[doc(hidden)]
pub fn weaken() {
    IS_WEAK.store(true, Ordering::Relaxed);
}

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
        let key = if IS_WEAK.load(Ordering::Relaxed) {
            weakened(key)
        } else {
            key
        };
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

/// 2^32 * log2(1 + i / 8), rounded: the [`position`]s of the slot hashes i * 2^61.
const POSITION_STEPS: [u64; 9] = [
    0,
    0x2b80_3474,
    0x5269_e12f,
    0x759d_4f81,
    0x95c0_1a3a,
    0xb350_0472,
    0xceae_cfeb,
    0xe829_fb69,
    1 << 32,
];

/// Where a slot hash lies in the directory, as a fraction of 2^32: about log2(1 + h) for a hash h of 0 to 1, by straight
/// lines between those of the multiples of 2^61. It never falls as the hash grows, and the hash's bits 0..29 do not count.
///
/// So the last prefix of any depth has twice as many keys as the first, and the groups between them have every share
/// from one to two: at each size of the table equally many are about to be split. By the plain hash all of them would
/// fill at once, and just after that half of the memory would be empty.
#[must_use]
pub const fn position(slot_hash: u64) -> u32 {
    let step = (slot_hash >> 61) as usize;
    let within = (slot_hash >> 29) & 0xffff_ffff;
    let rise = POSITION_STEPS[step + 1] - POSITION_STEPS[step];
    (POSITION_STEPS[step] + ((within * rise) >> 32)) as u32
}

/// The lowest slot hash whose [`position`] is at least `position`.
#[must_use]
pub const fn first_hash(position: u32) -> u64 {
    let position = position as u64;
    let mut step = 0;
    while POSITION_STEPS[step + 1] <= position {
        step += 1;
    }
    let rise = POSITION_STEPS[step + 1] - POSITION_STEPS[step];
    let within = ((position - POSITION_STEPS[step]) << 32).div_ceil(rise);
    (step as u64) << 61 | within << 29
}

/// Index of the directory entry for a slot hash: the first `depth` bits of its [`position`]; no more than
/// [`DIRECTORY_DEPTH_MAX`] are taken.
#[must_use]
pub const fn directory_index(slot_hash: u64, depth: u8) -> u32 {
    match depth {
        0 => 0,
        1..=DIRECTORY_DEPTH_MAX => position(slot_hash) >> (32 - depth as u32),
        _ => position(slot_hash) >> (32 - DIRECTORY_DEPTH_MAX as u32),
    }
}

/// The two candidate buckets of a slot hash in its group, bits 0..6 and 6..12; they may be the same one. None of these
/// bits counts for the [`position`].
#[must_use]
pub const fn candidate_buckets(slot_hash: u64) -> [u32; 2] {
    let mask = GROUP_BUCKETS - 1;
    [slot_hash as u32 & mask, (slot_hash >> 6) as u32 & mask]
}

/// Whether a slot can be the key's: both halves of the hash agree as far as the slot holds them.
#[must_use]
pub const fn slot_matches(hash: KeyHash, slot_hash: u64, locator: &Locator) -> bool {
    // Most are told apart by the first.
    slot_hash == hash.slot && locator.segment != 0 && locator.tag == hash.tag()
}
