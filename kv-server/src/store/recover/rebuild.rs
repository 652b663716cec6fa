//! Finding the newest record of every key among all that segments list: spread by hash, sorted part by part, on every
//! core; in one pass over what they list, or in as many as memory asks for ([`super::gather`]).

use kv_proto::hash::KeyHash;
use kv_proto::layout::{FooterEntry, Locator, record_kind};

/// Top bits of a slot hash that say which part a record belongs to: a part of a large dataset fits a cache.
const PART_BITS: u32 = 8;
const PARTS: usize = 1 << PART_BITS;

/// Most memory that one record takes while keys are resolved, bytes: a [`Candidate`] in a vector that may have grown to
/// twice its length, and what [`Newest`] says of it, in a vector that is copied once.
pub(crate) const RECORD_BYTES_MAX: usize = 2 * size_of::<Candidate>() + 2 * size_of::<(KeyHash, Locator)>();

/// A record that may be the newest of its key.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    hash: u64,
    hash_high: u64,
    sequence: u64,
    segment: u32,
    offset_units: u32,
    value_len_bytes: u32,
    key_len_bytes: u16,
    kind: u8,
}

impl Candidate {
    /// Of two records of one key the one with the higher place holds.
    const fn place(&self) -> (u64, u32, u32) {
        (self.sequence, self.segment, self.offset_units)
    }

    fn locator(&self) -> Locator {
        Locator {
            segment: self.segment,
            offset_units: self.offset_units,
            value_len_bytes: self.value_len_bytes,
            key_len_bytes: self.key_len_bytes,
            tag: self.key_hash().tag(),
        }
    }

    const fn key_hash(&self) -> KeyHash {
        KeyHash {
            slot: self.hash,
            high: self.hash_high,
        }
    }
}

/// Records of some segments, spread by the top bits of their slot hashes.
#[derive(Debug)]
pub(crate) struct Spread(Vec<Vec<Candidate>>);

impl Spread {
    pub(crate) fn new() -> Self {
        Self(std::iter::repeat_with(Vec::new).take(PARTS).collect())
    }

    /// Adds a record of `segment`, if it can be the newest of a key: PARTs are named by their heads alone.
    pub(crate) fn push(&mut self, segment: u32, entry: &FooterEntry) -> bool {
        if entry.kind == record_kind::PART {
            return false;
        }
        self.0[(entry.hash >> (u64::BITS - PART_BITS)) as usize].push(Candidate {
            hash: entry.hash,
            hash_high: entry.hash_high,
            sequence: entry.sequence,
            segment,
            offset_units: entry.offset_units,
            value_len_bytes: entry.value_len_bytes,
            key_len_bytes: entry.key_len_bytes,
            kind: entry.kind,
        });
        true
    }

    /// Records in it.
    pub(super) fn len(&self) -> usize {
        self.0.iter().map(Vec::len).sum()
    }

    /// Keeps the newest record of each key.
    pub(super) fn keep_newest(&mut self) {
        for part in &mut self.0 {
            part.sort_unstable_by_key(|it| (it.hash, it.hash_high, std::cmp::Reverse(it.place())));
            part.dedup_by_key(|it| (it.hash, it.hash_high));
        }
    }

    /// Keeps the records whose slot hash is at most `last`.
    pub(super) fn keep_up_to(&mut self, last: u64) {
        let whole = (last >> (u64::BITS - PART_BITS)) as usize;
        self.0[whole].retain(|it| it.hash <= last);
        self.0[whole + 1..].iter_mut().for_each(|part| *part = Vec::new());
    }
}

/// The newest record of every key.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Newest {
    /// Keys that are there, in the order of their slot hashes.
    pub(crate) live: Vec<(KeyHash, Locator)>,
    /// Those of them that are HEADs.
    pub(crate) heads: Vec<Locator>,
    /// What deleted the others.
    pub(crate) tombstones: Vec<Locator>,
}

impl Newest {
    pub(super) fn append(&mut self, mut other: Self) {
        if self.live.is_empty() {
            std::mem::swap(self, &mut other);
        }
        self.live.append(&mut other.live);
        self.heads.append(&mut other.heads);
        self.tombstones.append(&mut other.tombstones);
    }

    /// Where the VALUE or HEAD of a key lies.
    pub(crate) fn of(&self, hash: KeyHash) -> Option<Locator> {
        let from = self.live.partition_point(|(it, _)| it.slot < hash.slot);
        let run = self.live[from..]
            .iter()
            .take_while(|(it, _)| it.slot == hash.slot);
        run.into_iter()
            .find(|(it, _)| *it == hash)
            .map(|(_, locator)| *locator)
    }

    fn take(&mut self, newest: &Candidate) {
        let locator = newest.locator();
        match newest.kind {
            record_kind::TOMBSTONE => self.tombstones.push(locator),
            record_kind::HEAD => {
                self.heads.push(locator);
                self.live.push((newest.key_hash(), locator));
            }
            _ => self.live.push((newest.key_hash(), locator)),
        }
    }
}

/// Resolves what was spread, with at most `threads` threads.
pub(crate) fn resolve(mut spreads: Vec<Spread>, threads: usize) -> Newest {
    let mut parts: Vec<Vec<Vec<Candidate>>> = (0..PARTS)
        .map(|part| {
            spreads
                .iter_mut()
                .map(|spread| std::mem::take(&mut spread.0[part]))
                .collect()
        })
        .collect();
    // Of a range of the hashes most parts have nothing.
    parts.retain(|part| part.iter().any(|some| !some.is_empty()));
    let share = parts.len().div_ceil(threads.max(1)).max(1);
    std::thread::scope(|scope| {
        let workers: Vec<_> = parts
            .chunks_mut(share)
            .map(|parts| scope.spawn(|| resolve_parts(parts)))
            .collect();
        let mut newest = Newest::default();
        for worker in workers {
            match worker.join() {
                Ok(found) => newest.append(found),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        newest
    })
}

fn resolve_parts(parts: &mut [Vec<Vec<Candidate>>]) -> Newest {
    let mut newest = Newest::default();
    let count = parts.iter().flatten().map(Vec::len).sum();
    newest.live.reserve_exact(count);
    for part in parts {
        let mut part = std::mem::take(part);
        let mut candidates = part.pop().unwrap_or_default();
        part.iter().for_each(|other| candidates.extend_from_slice(other));
        drop(part);
        candidates.sort_unstable_by_key(|candidate| candidate.hash);
        for run in candidates.chunk_by_mut(|one, next| one.hash == next.hash) {
            if run.len() > 1 {
                run.sort_unstable_by_key(|candidate| {
                    (candidate.hash_high, std::cmp::Reverse(candidate.place()))
                });
            }
            for key in run.chunk_by(|one, next| one.hash_high == next.hash_high) {
                newest.take(&key[0]);
            }
        }
    }
    newest
}
