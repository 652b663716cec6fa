//! A reader: a process of its own, as far as leases go, that reads without rest and judges all it gets.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use fastrand::Rng;
use kv_client::{Client, ClientError, GlobalLocator, ReadError, Server};
use kv_proto::control::Status;

use super::field::Field;
use super::hazards::Seen;
use super::shared::{Shared, lock};
use super::values::Version;

/// Keys of one batch.
const BATCH_KEYS: usize = 96;
/// Keys that a quarter of all reads and writes go to, each; the fewer are in nearly every batch of every writer.
pub(super) const HOT_KEYS: [u32; 2] = [8, 64];
/// Locators kept of each dataset.
const LOCATORS_MAX: usize = 4096;
/// Batches between two looks for datasets that have gone.
const BATCHES_PER_LOOK: u32 = 16;

/// A record whose place is known.
struct Known {
    key: u32,
    at: GlobalLocator,
    /// The oldest version that it can be; once it was read, the version that it is.
    oldest: u32,
    read: bool,
}

/// A dataset as a reader has it open.
struct Open {
    field: Arc<Field>,
    dataset: Client,
    known: Vec<Known>,
}

impl Open {
    /// What its client counted, once it is done with it.
    fn close(self, seen: &mut Seen) {
        seen.add(&self.dataset.counters());
    }
}

/// A key: half of the time one that everybody wants.
pub(super) fn pick(rng: &mut Rng, count: u32) -> u32 {
    let of = match rng.u8(..4) {
        0 => HOT_KEYS[0],
        1 => HOT_KEYS[1],
        _ => count,
    };
    rng.u32(..of.min(count))
}

/// Whether an error can come of the dataset having been dropped.
fn is_gone(error: ReadError) -> bool {
    matches!(error, ReadError::Closed | ReadError::Refused(Status::NoDataset))
}

/// Reads until it is told to stop, and says in `told` what its clients count.
pub(super) fn run(shared: &Shared, session: &Server, mut rng: Rng, told: &Mutex<Seen>) -> Result<(), String> {
    let mut seen = Seen::default();
    let mut open: BTreeMap<u64, Open> = BTreeMap::new();
    let mut batches = 0_u32;
    while !shared.is_over() {
        let fields = shared.fields();
        if batches.is_multiple_of(BATCHES_PER_LOOK) {
            let gone: Vec<u64> = open
                .keys()
                .copied()
                .filter(|generation| !fields.iter().any(|field| field.generation == *generation))
                .collect();
            for generation in gone {
                if let Some(open) = open.remove(&generation) {
                    open.close(&mut seen);
                }
            }
            let mut now = seen;
            open.values().for_each(|open| now.add(&open.dataset.counters()));
            *lock(told) = now;
        }
        batches += 1;
        let Some(field) = rng.choice(&fields) else {
            std::thread::yield_now();
            continue;
        };
        if !open.contains_key(&field.generation) {
            let Some(dataset) = open_field(session, field)? else {
                continue;
            };
            let (field, known) = (Arc::clone(field), Vec::new());
            let opened = Open {
                field,
                dataset,
                known,
            };
            open.insert(opened.field.generation, opened);
        }
        let Some(now) = open.get_mut(&field.generation) else {
            continue;
        };
        let checked = match rng.u8(..16) {
            0 => locate(shared, now, &mut rng)?,
            1..=3 => by_locators(shared, now, &mut rng)?,
            4 => singles(shared, now, &mut rng)?,
            _ => by_keys(shared, now, &mut rng)?,
        };
        shared.checked.fetch_add(checked, Ordering::Relaxed);
    }
    open.into_values().for_each(|open| open.close(&mut seen));
    *lock(told) = seen;
    Ok(())
}

/// Opens a dataset; `None` if it is being dropped.
fn open_field(session: &Server, field: &Field) -> Result<Option<Client>, String> {
    match session.open(&field.name) {
        Ok(dataset) => Ok(Some(dataset)),
        Err(
            ClientError::Refused {
                status: Status::NoDataset,
                ..
            }
            | ClientError::Closed,
        ) if field.is_dropping() => Ok(None),
        Err(error) => Err(format!("opening {}: {error}", field.name)),
    }
}

/// Judges one result; whether it counts. One that a drop explains does not.
fn judge(field: &Field, key: u32, oldest: u32, got: &Result<Vec<u8>, ReadError>) -> Result<bool, String> {
    match got {
        Err(error) if is_gone(*error) && field.is_dropping() => Ok(false),
        got => field.judge(key, oldest, got).map(|()| true),
    }
}

fn by_keys(shared: &Shared, open: &Open, rng: &mut Rng) -> Result<u64, String> {
    let field = &open.field;
    let picked: Vec<u32> = (0..BATCH_KEYS).map(|_| pick(rng, field.keys())).collect();
    let oldest: Vec<u32> = picked.iter().map(|&key| field.oldest(key)).collect();
    let keys: Vec<&[u8]> = picked.iter().map(|&key| shared.key(key)).collect();
    let values = open.dataset.get_many(&keys);
    let mut checked = 0;
    for ((&key, &oldest), got) in picked.iter().zip(&oldest).zip(&values) {
        checked += u64::from(judge(field, key, oldest, got)?);
    }
    Ok(checked)
}

fn singles(shared: &Shared, open: &Open, rng: &mut Rng) -> Result<u64, String> {
    let field = &open.field;
    let mut checked = 0;
    for _ in 0..8 {
        let key = pick(rng, field.keys());
        let oldest = field.oldest(key);
        let got = open.dataset.get(shared.key(key));
        checked += u64::from(judge(field, key, oldest, &got)?);
    }
    Ok(checked)
}

/// Learns where records lie.
fn locate(shared: &Shared, open: &mut Open, rng: &mut Rng) -> Result<u64, String> {
    let field = Arc::clone(&open.field);
    let picked: Vec<u32> = (0..BATCH_KEYS).map(|_| pick(rng, field.keys())).collect();
    let oldest: Vec<u32> = picked.iter().map(|&key| field.oldest(key)).collect();
    let keys: Vec<&[u8]> = picked.iter().map(|&key| shared.key(key)).collect();
    for ((&key, &oldest), at) in picked.iter().zip(&oldest).zip(open.dataset.locate_many(&keys)) {
        match at {
            Ok(at) => {
                let known = Known {
                    key,
                    at,
                    oldest,
                    read: false,
                };
                if open.known.len() < LOCATORS_MAX {
                    open.known.push(known);
                } else {
                    open.known[rng.usize(..LOCATORS_MAX)] = known;
                }
            }
            Err(error) => {
                judge(&field, key, oldest, &Err(error))?;
            }
        }
    }
    Ok(0)
}

/// Reads records by their places. Those of versions that were replaced are there until their segment is retired.
fn by_locators(shared: &Shared, open: &mut Open, rng: &mut Rng) -> Result<u64, String> {
    if open.known.is_empty() {
        return Ok(0);
    }
    let field = &open.field;
    let picked: Vec<usize> = (0..BATCH_KEYS).map(|_| rng.usize(..open.known.len())).collect();
    let places: Vec<GlobalLocator> = picked.iter().map(|&index| open.known[index].at).collect();
    let keys: Vec<&[u8]> = picked
        .iter()
        .map(|&index| shared.key(open.known[index].key))
        .collect();
    let values = if rng.u8(..4) == 0 {
        // One READ each, by the short way.
        let one = |(at, key): (&GlobalLocator, &&[u8])| open.dataset.get_at(at, Some(key));
        places.iter().zip(&keys).take(8).map(one).collect()
    } else {
        open.dataset.get_many_at(&places, Some(&keys))
    };
    let mut checked = 0;
    let mut stale = Vec::new();
    for (&index, got) in picked.iter().zip(&values) {
        let known = &mut open.known[index];
        match got {
            Ok(value) => {
                let version = field.judge_value(known.key, value)?;
                judge_known(field, known, version)?;
                checked += 1;
            }
            Err(ReadError::Stale) => stale.push(index),
            Err(error) if is_gone(*error) && field.is_dropping() => {}
            Err(error) => {
                return Err(format!(
                    "a locator of key {} of {}: {error}",
                    known.key, field.name
                ));
            }
        }
    }
    shared
        .stale_locators
        .fetch_add(stale.len() as u64, Ordering::Relaxed);
    stale.sort_unstable();
    stale.dedup();
    stale.into_iter().rev().for_each(|index| {
        open.known.swap_remove(index);
    });
    Ok(checked)
}

/// A place holds one version for ever, and none that was old when the key was looked up.
fn judge_known(field: &Field, known: &mut Known, version: Version) -> Result<(), String> {
    let newest = field.newest(known.key);
    let same = version.number == known.oldest;
    if version.number < known.oldest || version.number > newest || (known.read && !same) {
        return Err(format!(
            "a locator of {} gave {version:?}: {} to {newest} are possible, read before: {}",
            field.name, known.oldest, known.read
        ));
    }
    (known.oldest, known.read) = (version.number, true);
    Ok(())
}
