//! Fetches in a seeded random order and compares with the sources.

use std::collections::HashMap;
use std::io::{self, Read};
use std::time::{Duration, Instant};

use crate::keys::shown;
use crate::output::PROBLEMS_KEPT_MAX;
use crate::progress::Progress;
use crate::source::read::Opener;
use crate::source::{Item, Sources};
use crate::stop::Stop;
use crate::store::{Store, StoreError};

/// Most values that one call fetches.
const BATCH_ITEMS_MAX: usize = 256;
/// Most bytes that one call fetches; a longer value goes alone.
const BATCH_BYTES_MAX: u64 = 16 << 20;
/// A value longer than this is fetched in ranges of this length, bytes.
const WHOLE_BYTES_MAX: u64 = 1 << 30;
/// Bytes of a source that are held at a time.
const PIECE_BYTES: usize = 1 << 20;

/// How to verify.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mode {
    pub(crate) seed: u64,
    pub(crate) known: bool,
    pub(crate) exact: bool,
}

/// What was found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) verified: u64,
    pub(crate) verified_bytes: u64,
    pub(crate) mismatched: u64,
    pub(crate) missing: u64,
    pub(crate) failed: u64,
    pub(crate) extra: u64,
    /// Values that arrived, and their bytes.
    pub(crate) fetched: u64,
    pub(crate) fetched_bytes: u64,
    pub(crate) fetch_time: Duration,
    pub(crate) gets: u64,
    pub(crate) reads_posted: u64,
    pub(crate) split_reads: u64,
    pub(crate) coalesced: u64,
    pub(crate) directory_reads: u64,
    pub(crate) problems: Vec<String>,
}

/// Numbers below `len` in an order that `seed` fixes.
fn shuffled(len: usize, seed: u64) -> Vec<u32> {
    let mut order: Vec<u32> = (0..len as u32).collect();
    let mut state = seed;
    for last in (1..len).rev() {
        // splitmix64: the order needs to look random, not to be unpredictable.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        order.swap(last, (mixed % (last as u64 + 1)) as usize);
    }
    order
}

/// Fetches every item of `sources` from `store` and compares it.
pub(crate) fn verify<S: Store>(
    store: &S,
    sources: &Sources,
    mode: Mode,
    progress: &Progress,
    stop: &Stop,
) -> Found {
    let mut run = Run {
        store,
        sources,
        progress,
        stop,
        whole_bytes_max: WHOLE_BYTES_MAX,
        places: HashMap::new(),
        found: Found::default(),
    };
    if (mode.known || mode.exact)
        && let Err(error) = run.list(mode)
    {
        stop.fail(&format!("listing: {}", error.text()));
    }
    let before = store.counters();
    let order = shuffled(sources.items.len(), mode.seed);
    let mut opener = Opener::new(sources);
    let mut rest = &order[..];
    while !rest.is_empty() && !stop.asked() {
        let (batch, others) = rest.split_at(run.batch_len(rest));
        run.batch(batch, &mut opener, mode.known);
        rest = others;
    }
    let after = store.counters();
    run.found.gets = after.gets - before.gets;
    run.found.reads_posted = after.reads_posted - before.reads_posted;
    run.found.split_reads = after.split_reads - before.split_reads;
    run.found.coalesced = after.coalesced - before.coalesced;
    run.found.directory_reads = after.directory_reads - before.directory_reads;
    run.found
}

struct Run<'a, S: Store> {
    store: &'a S,
    sources: &'a Sources,
    progress: &'a Progress,
    stop: &'a Stop,
    /// [`WHOLE_BYTES_MAX`], or less in tests.
    whole_bytes_max: u64,
    /// Where the listing found each item.
    places: HashMap<u32, S::Place>,
    found: Found,
}

impl<S: Store> Run<'_, S> {
    fn list(&mut self, mode: Mode) -> Result<(), StoreError> {
        let items = &self.sources.items;
        let by_key: HashMap<&[u8], u32> = items
            .iter()
            .zip(0..)
            .map(|(item, index)| (item.key.as_slice(), index))
            .collect();
        let (places, found, progress) = (&mut self.places, &mut self.found, self.progress);
        self.store.list(&mut |key, len_bytes, place| {
            match by_key.get(key) {
                Some(index) if mode.known => {
                    places.insert(*index, place);
                }
                None if mode.exact => {
                    found.extra += 1;
                    note(
                        found,
                        progress,
                        format!("key {}: {len_bytes} bytes that no source has", shown(key)),
                    );
                }
                _ => {}
            }
            self.stop.going_on()
        })
    }

    /// How many from the front of `rest` one call may fetch.
    fn batch_len(&self, rest: &[u32]) -> usize {
        let mut bytes = 0_u64;
        let fits = rest.iter().take(BATCH_ITEMS_MAX).take_while(|index| {
            bytes = bytes.saturating_add(self.sources.items[**index as usize].len_bytes);
            bytes <= BATCH_BYTES_MAX
        });
        fits.count().max(1)
    }

    fn batch(&mut self, batch: &[u32], opener: &mut Opener<'_>, known: bool) {
        let item = |index: &u32| &self.sources.items[*index as usize];
        if let [index] = batch
            && item(index).len_bytes > self.whole_bytes_max
        {
            let item = item(index);
            // One that was stopped in between is not judged.
            if let Some(outcome) = self.in_ranges(item, opener).transpose() {
                self.judged(item, outcome);
            }
            return;
        }
        let (mut asked, mut unlisted) = (batch.to_vec(), Vec::new());
        if known {
            (asked, unlisted) = batch.iter().partition(|index| self.places.contains_key(index));
        }
        let keys: Vec<&[u8]> = asked.iter().map(|index| &item(index).key[..]).collect();
        let started = Instant::now();
        let values = if known {
            let places: Vec<S::Place> = asked
                .iter()
                .filter_map(|index| self.places.get(index).copied())
                .collect();
            self.store.get_many_at(&places, &keys)
        } else {
            self.store.get_many(&keys)
        };
        self.found.fetch_time += started.elapsed();
        for (index, value) in asked.iter().zip(values) {
            let item = item(index);
            let outcome = value.and_then(|value| {
                self.found.fetched += 1;
                self.found.fetched_bytes += value.len() as u64;
                compare(item, &value, opener)
            });
            self.judged(item, outcome);
        }
        for index in unlisted {
            self.judged(&self.sources.items[index as usize], Err(StoreError::NotFound));
        }
    }

    /// Compares a value that is too long to be held; `None` if asked to stop meanwhile.
    fn in_ranges(
        &mut self,
        item: &Item,
        opener: &mut Opener<'_>,
    ) -> Result<Option<Option<String>>, StoreError> {
        let unreadable = |error: io::Error| StoreError::Item(error.to_string());
        let mut source = opener.open(item).map_err(unreadable)?;
        let stored = |stored: &str| {
            let len_bytes = item.len_bytes;
            Ok(Some(Some(format!(
                "{stored} bytes are stored, its source has {len_bytes}"
            ))))
        };
        let mut at = 0;
        while at < item.len_bytes {
            if self.stop.asked() {
                return Ok(None);
            }
            let len = self.whole_bytes_max.min(item.len_bytes - at);
            let value = self.range(item, at, len)?;
            if value.len() as u64 != len {
                return stored(&(at + value.len() as u64).to_string());
            }
            if let Some(offset) = first_difference(&value, &mut source).map_err(unreadable)? {
                return Ok(Some(Some(format!(
                    "differs from its source at byte {}",
                    at + offset
                ))));
            }
            at += len;
        }
        if !self.range(item, at, 1)?.is_empty() {
            return stored("more");
        }
        self.found.fetched += 1;
        Ok(Some(None))
    }

    fn range(&mut self, item: &Item, at: u64, len: u64) -> Result<Vec<u8>, StoreError> {
        let started = Instant::now();
        let value = self.store.get_range(&item.key, at, len)?;
        self.found.fetch_time += started.elapsed();
        self.found.fetched_bytes += value.len() as u64;
        Ok(value)
    }

    fn judged(&mut self, item: &Item, outcome: Result<Option<String>, StoreError>) {
        let found = &mut self.found;
        let problem = match outcome {
            Ok(None) => {
                found.verified += 1;
                found.verified_bytes += item.len_bytes;
                None
            }
            Ok(Some(difference)) => {
                found.mismatched += 1;
                Some(difference)
            }
            Err(StoreError::NotFound) => {
                found.missing += 1;
                Some("missing".to_owned())
            }
            Err(StoreError::Fatal(why)) => return self.stop.fail(&why),
            Err(error) => {
                found.failed += 1;
                Some(error.text().to_owned())
            }
        };
        if let Some(problem) = problem {
            let origin = self.sources.origin(item);
            note(
                found,
                self.progress,
                format!("key {} (from {origin}): {problem}", shown(&item.key)),
            );
        }
        self.progress.bytes(item.len_bytes);
        self.progress.item();
    }
}

fn note(found: &mut Found, progress: &Progress, problem: String) {
    progress.problem(&format!("kv: {problem}"));
    if found.problems.len() < PROBLEMS_KEPT_MAX {
        found.problems.push(problem);
    }
}

/// What differs between the value and its source, if anything.
fn compare(item: &Item, value: &[u8], opener: &mut Opener<'_>) -> Result<Option<String>, StoreError> {
    if value.len() as u64 != item.len_bytes {
        return Ok(Some(format!(
            "{} bytes are stored, its source has {}",
            value.len(),
            item.len_bytes
        )));
    }
    let unreadable = |error: io::Error| StoreError::Item(error.to_string());
    let mut source = opener.open(item).map_err(unreadable)?;
    let difference = first_difference(value, &mut source).map_err(unreadable)?;
    Ok(difference.map(|offset| format!("differs from its source at byte {offset}")))
}

/// Offset of the first byte of `value` that is not the source's next.
fn first_difference(value: &[u8], source: &mut impl Read) -> io::Result<Option<u64>> {
    let mut want = vec![0; PIECE_BYTES.min(value.len())];
    for (piece, at) in value.chunks(PIECE_BYTES).zip((0_u64..).step_by(PIECE_BYTES)) {
        let want = &mut want[..piece.len()];
        source.read_exact(want)?;
        if piece != want {
            let offset = piece
                .iter()
                .zip(&*want)
                .position(|(one, two)| one != two)
                .unwrap_or(0);
            return Ok(Some(at + offset as u64));
        }
    }
    Ok(None)
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;
