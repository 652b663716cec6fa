//! Space that nobody wants any more: counted as it dies, and freed.
//!
//! One thread for the whole server takes the segment with the greatest dead share past a threshold, has the log copy
//! what is live of it, and retires it: its file goes at once, its image when no session can read it any more. It may be
//! stopped at any instruction: what was copied lies in two places then, of which the later counts.

use std::collections::HashMap;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::log::{Op, Task};
use super::recover::says_lost;
use super::segment::Segment;
use super::{Dataset, Datasets, Shared, lock};
use crate::error::StorageError;

mod choose;
mod drain;
pub(crate) mod footprint;
mod ledger;
mod pacer;
mod signal;
mod tombstones;
mod walk;

use choose::{Choice, Rules, choose};
use drain::Drain;
use ledger::OnDisk;
pub(crate) use ledger::{Gone, Ledger, Standing};
pub(crate) use pacer::Pacer;
pub(crate) use signal::Signal;
use signal::Woken;
pub(crate) use walk::Walk;

/// Busy time after which compaction rests.
const BUSY_AT_ONCE: Duration = Duration::from_millis(5);
/// First and longest wait after something failed.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_LONGEST: Duration = Duration::from_secs(60);

/// How compaction is done.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Compaction {
    /// Share of dead bytes from which a segment is compacted, above 0 up to 1.
    pub dead_share: f64,
    /// Most of the disk's time that compaction takes, above 0 up to 1; more where memory or disk are short.
    pub disk_share: f64,
    /// Room that is kept on the disk for deletes and compaction, bytes: at most a sixteenth of the file system, but no less
    /// than the copies of a segment may take, up to a quarter of it; 0 for none.
    pub disk_reserve_bytes: u64,
}

impl Default for Compaction {
    fn default() -> Self {
        Self {
            dead_share: 0.5,
            disk_share: 0.2,
            disk_reserve_bytes: 64 << 20,
        }
    }
}

impl Compaction {
    pub(crate) fn check(&self) -> Result<(), StorageError> {
        for (option, share) in [
            ("dead share that compaction begins at", self.dead_share),
            ("compaction's share of the disk", self.disk_share),
        ] {
            if !(share > 0.0 && share <= 1.0) {
                return Err(StorageError::Option {
                    option,
                    value: (share * 100.0) as u64,
                    remedy: "percent: give a share above 0, up to 1".to_owned(),
                });
            }
        }
        Ok(())
    }
}

/// Why a piece of compaction ended before it was done.
pub(crate) enum Ended {
    /// The server stops, or the dataset is gone.
    Gone,
    /// A segment cannot be read.
    Unreadable(StorageError),
    /// What may work later.
    Later(StorageError),
}

impl From<StorageError> for Ended {
    fn from(error: StorageError) -> Self {
        match error {
            StorageError::ShuttingDown | StorageError::NoDataset(_) | StorageError::Dropped => Self::Gone,
            // Any other, as that too many files are open, says nothing of the file.
            error if says_lost(&error) => Self::Unreadable(error),
            error => Self::Later(error),
        }
    }
}

/// The compaction thread's own state.
pub(crate) struct Compactor {
    shared: Arc<Shared>,
    datasets: Arc<Mutex<Datasets>>,
    rules: Compaction,
    pacer: Pacer,
}

/// When a dataset in which something failed is looked at again.
struct Retry {
    at: Instant,
    wait: Duration,
    /// Whether nothing is done for it before.
    holds: bool,
}

/// Has a dataset looked at again later than the last time.
fn back_off(retries: &mut HashMap<[u8; 16], Retry>, dataset: [u8; 16]) -> &mut Retry {
    let retry = retries.entry(dataset).or_insert(Retry {
        at: Instant::now(),
        wait: RETRY_FIRST / 2,
        holds: false,
    });
    retry.wait = (retry.wait * 2).min(RETRY_LONGEST);
    retry.at = Instant::now() + retry.wait;
    retry
}

/// Starts the compaction thread; [`Signal::stop`] ends it.
pub(super) fn start(
    shared: &Arc<Shared>,
    datasets: &Arc<Mutex<Datasets>>,
    rules: Compaction,
) -> Result<JoinHandle<()>, StorageError> {
    let compactor = Compactor {
        shared: Arc::clone(shared),
        datasets: Arc::clone(datasets),
        rules,
        pacer: Pacer::new(rules.disk_share),
    };
    // What a start finds may be worth compacting.
    shared.compaction.poke();
    std::thread::Builder::new()
        .name("kv-compact".to_owned())
        .spawn(move || compactor.run())
        .map_err(|error| StorageError::io("spawn a compaction thread for", &shared.home.datasets(), error))
}

impl Compactor {
    fn run(&self) {
        let mut retries: HashMap<[u8; 16], Retry> = HashMap::new();
        loop {
            let next = retries.values().map(|retry| retry.at).min();
            let timeout = next.map(|at| at.saturating_duration_since(Instant::now()));
            let Woken::Look { pressed } = self.shared.compaction.wait(timeout) else {
                return;
            };
            while self.round(pressed, &mut retries) {}
        }
    }

    /// Does one thing for each dataset; whether anything was done.
    fn round(&self, pressed: bool, retries: &mut HashMap<[u8; 16], Retry>) -> bool {
        let datasets: Vec<_> = lock(&self.datasets).by_id.values().cloned().collect();
        retries.retain(|id, _| {
            datasets
                .iter()
                .any(|dataset| dataset.id == *id && !dataset.is_dropped())
        });
        let mut did_something = false;
        for dataset in datasets {
            if self.is_stopping() {
                return false;
            }
            let waits = retries
                .get(&dataset.id)
                .is_some_and(|retry| retry.holds && Instant::now() < retry.at);
            if dataset.is_dropped() || waits {
                continue;
            }
            match self.step(&dataset, pressed) {
                Ok(did) => {
                    if dataset.bring_list_up_to_date() {
                        retries.remove(&dataset.id);
                    } else {
                        // What may free room for it goes on.
                        back_off(retries, dataset.id).holds = false;
                    }
                    did_something |= did;
                    if pressed || did {
                        dataset.compaction.set_stuck(!did);
                    }
                }
                Err(Ended::Gone) => {}
                Err(Ended::Unreadable(error) | Ended::Later(error)) => {
                    tracing::warn!(%error, dataset = %dataset.name(), "compaction failed; it is tried again later");
                    dataset.compaction.failed();
                    dataset.compaction.set_stuck(true);
                    back_off(retries, dataset.id).holds = true;
                }
            }
        }
        did_something
    }

    /// Does the next thing that there is to do; whether there was any.
    fn step(&self, dataset: &Arc<Dataset>, pressed: bool) -> Result<bool, Ended> {
        dataset.retry_leftovers()?;
        let rules = Rules {
            threshold: self.rules.dead_share,
            room_bytes: self.room_bytes(dataset, pressed)?,
            pressed,
            segment_bytes: dataset.segment_bytes,
        };
        let candidates = dataset.candidates();
        let Some(choice) = choose(&candidates, &rules) else {
            return Ok(false);
        };
        let (Choice::Retire(number)
        | Choice::Judge(number)
        | Choice::Drain(number)
        | Choice::SealAndRetire(number)) = choice;
        let Some(segment) = dataset.segment(number) else {
            return Ok(false);
        };
        let result = match choice {
            Choice::Drain(_) if !self.has_disk_for(dataset, &segment)? => return Ok(false),
            Choice::Drain(_) => Drain::new(self, dataset, &segment).run().map(|()| {
                segment.standing.set_drained();
            }),
            Choice::Judge(_) => {
                let removals = dataset.compaction.removals();
                let judged = Drain::new(self, dataset, &segment).judge();
                judged.map(|unwanted_bytes| {
                    segment.tally.bury_tombstones(unwanted_bytes);
                    segment.standing.set_judged(removals);
                })
            }
            Choice::SealAndRetire(_) => {
                let (done, sealed) = channel();
                dataset.queue.push(Op::Task(Task::Seal { done }))?;
                sealed.recv().map_err(|_| Ended::Gone)?;
                let followed = dataset
                    .candidates()
                    .iter()
                    .any(|it| it.number == number && it.followed);
                if !followed {
                    return Ok(false);
                }
                self.retire(dataset, number)
            }
            Choice::Retire(_) => self.retire(dataset, number),
        };
        match result {
            Ok(()) => Ok(true),
            Err(Ended::Unreadable(error)) => {
                dataset.suspect(&segment, &error);
                Ok(true)
            }
            Err(ended) => Err(ended),
        }
    }

    /// Bytes that copies may take before anything is freed.
    fn room_bytes(&self, dataset: &Dataset, pressed: bool) -> Result<u64, Ended> {
        let kept = if pressed {
            self.shared.reserve.held_bytes()
        } else {
            0
        };
        let disk = self.shared.files.free_bytes(&dataset.directory)? + kept;
        Ok(disk.min(dataset.room_bytes()))
    }

    /// Whether what is wanted of the segment fits the disk, without the room that is kept or, failing that, with it.
    fn has_disk_for(&self, dataset: &Dataset, segment: &Segment) -> Result<bool, Ended> {
        let need = segment.tally.live_bytes() + segment.tally.tombstone_bytes();
        let fits = || -> Result<bool, StorageError> {
            Ok(need == 0 || need <= self.shared.files.free_bytes(&dataset.directory)?)
        };
        Ok(fits()? || (dataset.give_reserve_up() && fits()?))
    }

    fn retire(&self, dataset: &Dataset, number: u32) -> Result<(), Ended> {
        let Some(segment) = dataset.segment(number) else {
            return Ok(());
        };
        let (done, retired) = channel();
        dataset.queue.push(Op::Task(Task::Retire {
            segment: number,
            done,
        }))?;
        retired.recv().map_err(|_| Ended::Gone)??;
        tracing::debug!(dataset = %dataset.name(), segment = number, "segment retired");
        match dataset.remove_file(&segment) {
            Err(_) if dataset.is_dropped() => Err(Ended::Gone),
            removed => Ok(removed?),
        }
    }

    fn is_stopping(&self) -> bool {
        self.shared.compaction.is_stopping()
    }

    fn rest_after(&self, busy: Duration) {
        let rest = self.pacer.rest_after(busy);
        if !rest.is_zero() {
            self.shared.compaction.rest(rest);
        }
    }
}
