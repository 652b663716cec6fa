//! Writers: they fill a dataset, overwrite and delete in it without rest, until it has had its share and is dropped.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use fastrand::Rng;
use kv_client::{Client, ClientError, Server};
use kv_proto::control::Status;

use super::field::Field;
use super::reader::{HOT_KEYS, pick};
use super::shared::Shared;
use super::values::{Version, mix};

/// Writers of one dataset; key `k` is writer `k % WRITERS`'s.
pub(super) const WRITERS: u32 = 2;
/// Operations begun at once.
const BATCH_OPS: usize = 64;
/// Operations begun at once on the keys that are wanted most.
const HAMMER_OPS: usize = 4;
/// Keys that a dataset begins with; the rest come as it grows.
const KEYS_FIRST: u32 = 96;
/// How often one version is tried.
const TRIES_MAX: u32 = 20;
/// How long stops have to begin before a dataset is dropped.
const STOPS_BEGIN: Duration = Duration::from_millis(15);

/// What one place for a dataset has: a session that administers and one for each writer.
pub(super) struct Place {
    pub(super) admin: Server,
    pub(super) writers: Vec<Server>,
    pub(super) seed: u64,
    /// Whether its dataset is kept, so that compaction alone frees what it has.
    pub(super) standing: bool,
}

/// Makes datasets, has them written, and drops them, until it is told to stop; the last one is dropped too.
pub(super) fn run(shared: &Shared, place: &Place) -> Result<(), String> {
    while !shared.is_over() {
        let generation = shared.next_generation();
        let field = Arc::new(Field::new(generation, shared.plan.keys));
        let create = || place.admin.create(&field.name).map(|_| ());
        surely("creating", &field, Status::Exists, create)?;
        shared.add_field(&field);
        std::thread::scope(|scope| {
            let writers: Vec<_> = (0_u32..)
                .zip(&place.writers)
                .map(|(number, session)| {
                    let field = &field;
                    scope.spawn(move || {
                        let seed = mix(place.seed ^ generation << 8 ^ u64::from(number));
                        let dataset = session
                            .open(&field.name)
                            .map_err(|error| format!("opening {}: {error}", field.name))?;
                        let rng = Rng::with_seed(seed);
                        write(shared, field, &dataset, (number, place.standing), rng)
                    })
                })
                .collect();
            writers.into_iter().try_for_each(|writer| {
                writer
                    .join()
                    .unwrap_or_else(|_| Err("a writer panicked".to_owned()))
            })
        })?;
        // READs of readers that stop now are late, and find the dataset gone.
        shared.stop_readers();
        std::thread::sleep(STOPS_BEGIN);
        shared.note_retired(&place.admin, &field)?;
        field.set_dropping();
        let remove = || place.admin.drop_dataset(&field.name);
        surely("dropping", &field, Status::NoDataset, remove)?;
        shared.remove_field(&field);
    }
    Ok(())
}

/// Does what must not be done twice until it is done; `done` is the refusal that says that it was.
fn surely(
    what: &str,
    field: &Field,
    done: Status,
    ask: impl Fn() -> Result<(), ClientError>,
) -> Result<(), String> {
    for tried in 0..TRIES_MAX {
        match ask() {
            Ok(()) => return Ok(()),
            Err(ClientError::Refused { status, .. }) if status == done && tried > 0 => return Ok(()),
            Err(error) if may_pass(&error) => {}
            Err(error) => return Err(format!("{what} {}: {error}", field.name)),
        }
    }
    Err(format!("{what} {}: tried {TRIES_MAX} times", field.name))
}

/// Writes one writer's share.
fn write(
    shared: &Shared,
    field: &Field,
    dataset: &Client,
    (number, standing): (u32, bool),
    mut rng: Rng,
) -> Result<(), String> {
    let share = shared.plan.operations / WRITERS;
    let mut done = 0;
    let mut stops = number == 0;
    while (standing || done < share) && !shared.is_over() {
        // READs of readers that stop while the index is small find that its groups were split, and their memory reused.
        if done > share / 8 && std::mem::take(&mut stops) {
            shared.stop_readers();
        }
        // All keys are there after two thirds.
        let grown = u64::from(field.keys()) * u64::from(done) * 3 / 2 / u64::from(share.max(1));
        let active = (grown as u32).clamp(KEYS_FIRST.min(field.keys()), field.keys());
        // Half of the batches are few keys that are wanted most: so often that READs of their buckets are torn.
        let (count, most) = if rng.bool() {
            (HAMMER_OPS, HOT_KEYS[0])
        } else {
            (BATCH_OPS, active)
        };
        let mut picked: Vec<u32> = (0..count)
            .map(|_| pick(&mut rng, most.min(active)) / WRITERS * WRITERS + number)
            .filter(|&key| key < active)
            .collect();
        picked.sort_unstable();
        picked.dedup();
        let begun: Vec<Version> = picked.iter().map(|&key| field.begin(key)).collect();
        done = done.saturating_add(begun.len() as u32);
        put(shared, field, dataset, &begun)?;
        for version in begun.into_iter().filter(|version| version.is_delete()) {
            delete(shared, field, dataset, version)?;
        }
    }
    Ok(())
}

/// Stores those versions that are values.
fn put(shared: &Shared, field: &Field, dataset: &Client, versions: &[Version]) -> Result<(), String> {
    let mut left: Vec<Version> = versions
        .iter()
        .copied()
        .filter(|version| !version.is_delete())
        .collect();
    for _ in 0..TRIES_MAX {
        let items: Vec<(&[u8], Vec<u8>)> = left
            .iter()
            .map(|version| (shared.key(version.key), version.value()))
            .collect();
        let mut last = None;
        let mut again = Vec::new();
        for (version, outcome) in left.iter().zip(dataset.put_many(&items)) {
            match outcome {
                Ok(_) => field.answered(*version),
                Err(error) => {
                    again.push(*version);
                    last = Some(error);
                }
            }
        }
        shared
            .written
            .fetch_add((left.len() - again.len()) as u64, Ordering::Relaxed);
        match last {
            None => return Ok(()),
            Some(error) if !may_pass(&error) => return Err(format!("storing in {}: {error}", field.name)),
            Some(_) => left = again,
        }
    }
    Err(format!("storing in {}: tried {TRIES_MAX} times", field.name))
}

fn delete(shared: &Shared, field: &Field, dataset: &Client, version: Version) -> Result<(), String> {
    for _ in 0..TRIES_MAX {
        match dataset.delete(shared.key(version.key)) {
            Ok(_) => {
                field.answered(version);
                shared.deleted.fetch_add(1, Ordering::Relaxed);
                return Ok(());
            }
            Err(error) if may_pass(&error) => {}
            Err(error) => return Err(format!("deleting in {}: {error}", field.name)),
        }
    }
    Err(format!("deleting in {}: tried {TRIES_MAX} times", field.name))
}

/// Whether the same version may be tried again: its outcome is not known.
fn may_pass(error: &ClientError) -> bool {
    matches!(
        error,
        ClientError::Unknown { .. } | ClientError::Timeout { .. } | ClientError::Busy { .. }
    )
}
