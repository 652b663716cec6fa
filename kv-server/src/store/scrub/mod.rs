//! Reading what is stored once more, slowly, so that a device or a memory that loses bits is noticed while there is
//! something to restore from.
//!
//! One thread for the whole server goes over one segment after the other: its file, by `pread` and past the page cache,
//! and then its image; of the active one what is durable. Then over the index, group by group. No record is changed: what
//! is damaged is named in the log and counted. The index is put right ([`super::index`]).

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::check::{Finding, Level};
use super::compact::{Pacer, Signal};
use super::limits::SCRUB_FINDINGS_MAX;
use super::{Dataset, Datasets, Shared, lock};
use crate::error::StorageError;

mod segment;

use segment::Scrub;

/// Busy time after which the scrubber rests.
const BUSY_AT_ONCE: Duration = Duration::from_millis(5);

/// When passes begin.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rests {
    /// From a start to the first pass.
    pub(crate) first: Duration,
    /// From the end of a pass to the next.
    pub(crate) again: Duration,
}

const RESTS: Rests = Rests {
    first: Duration::from_secs(600),
    again: Duration::from_secs(6 * 3600),
};

/// Who says how fast it goes.
pub(crate) trait Pace {
    /// Rests where it is time to, after something was read; whether to go on.
    fn go_on(&mut self) -> bool;
}

/// A share of the time, by the clock.
struct ByClock<'a> {
    pacer: Pacer,
    since: Instant,
    signal: &'a Signal,
}

impl Pace for ByClock<'_> {
    fn go_on(&mut self) -> bool {
        let busy = self.since.elapsed();
        if busy >= BUSY_AT_ONCE {
            self.signal.rest(self.pacer.rest_after(busy));
            self.since = Instant::now();
        }
        !self.signal.is_stopping()
    }
}

/// What the scrubber did and found in a dataset.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    read_bytes: AtomicU64,
    passes: AtomicU64,
    on_disk: AtomicU64,
    in_memory: AtomicU64,
    /// Segment, offset, and whether in memory: what was told of.
    known: Mutex<HashSet<(u32, u64, bool)>>,
}

impl Ledger {
    /// Its figures; the last word of each name is the unit.
    pub(crate) fn figures(&self) -> [(&'static str, u64); 4] {
        let read = |figure: &AtomicU64| figure.load(Ordering::Relaxed);
        [
            ("scrub_read_bytes", read(&self.read_bytes)),
            ("scrub_passes_count", read(&self.passes)),
            ("scrub_file_damage_count", read(&self.on_disk)),
            ("scrub_image_damage_count", read(&self.in_memory)),
        ]
    }

    /// Counts a finding, once; whether it is new.
    fn note(&self, finding: &Finding, in_memory: bool) -> bool {
        let mut known = lock(&self.known);
        let place = (
            finding.segment.unwrap_or_default(),
            finding.offset.unwrap_or_default(),
            in_memory,
        );
        if known.len() == SCRUB_FINDINGS_MAX || !known.insert(place) {
            return false;
        }
        let count = if in_memory { &self.in_memory } else { &self.on_disk };
        count.fetch_add(1, Ordering::Relaxed);
        true
    }
}

/// Goes over all that is durable in a dataset, and over its index; whether `pace` let it come to the end.
pub(crate) fn pass(dataset: &Dataset, pace: &mut dyn Pace) -> bool {
    for segment in dataset.all_segments() {
        let scrub = Scrub::new(dataset, &segment);
        match scrub.run(pace) {
            Ok(bytes) => {
                dataset.scrub.read_bytes.fetch_add(bytes, Ordering::Relaxed);
            }
            Err(StorageError::ShuttingDown) => return false,
            Err(error) => {
                tracing::warn!(%error, dataset = %dataset.name(), segment = segment.number, "a segment cannot be scrubbed now");
            }
        }
    }
    if !index(dataset, pace) {
        return false;
    }
    dataset.scrub.passes.fetch_add(1, Ordering::Relaxed);
    true
}

/// Goes over the index of a dataset.
fn index(dataset: &Dataset, pace: &mut dyn Pace) -> bool {
    let mut from = Some(0);
    while let Some(hash) = from {
        let (_, next) = dataset.read_index().look_over(hash);
        dataset.tell_index_faults();
        if !pace.go_on() || dataset.is_dropped() {
            return false;
        }
        from = next;
    }
    true
}

/// Names a finding in the log and counts it, once.
fn tell(dataset: &Dataset, finding: &Finding, in_memory: bool, also: &str) {
    if finding.level == Level::Damage && dataset.scrub.note(finding, in_memory) {
        tracing::error!("scrubber: {finding}{also}");
    }
}

/// Starts the scrubber of a server, which may keep the disk busy `share` of the time; none where that is 0.
pub(super) fn start(
    shared: &Arc<Shared>,
    datasets: &Arc<Mutex<Datasets>>,
    share: f64,
) -> Result<Option<JoinHandle<()>>, StorageError> {
    if share == 0.0 {
        return Ok(None);
    }
    let home = shared.home.datasets();
    let (shared, datasets) = (Arc::clone(shared), Arc::clone(datasets));
    let thread = std::thread::Builder::new()
        .name("kv-scrub".to_owned())
        .spawn(move || run(&shared.scrub, &datasets, share, RESTS))
        .map_err(|error| StorageError::io("spawn a scrubber for", &home, error))?;
    Ok(Some(thread))
}

/// Passes over all datasets until `signal` stops it.
pub(crate) fn run(signal: &Signal, datasets: &Mutex<Datasets>, share: f64, rests: Rests) {
    let mut rest = rests.first;
    loop {
        signal.rest(rest);
        if signal.is_stopping() {
            return;
        }
        let all: Vec<_> = lock(datasets).by_id.values().cloned().collect();
        let mut pace = ByClock {
            pacer: Pacer::new(share),
            since: Instant::now(),
            signal,
        };
        for dataset in all.iter().filter(|dataset| !dataset.is_dropped()) {
            pass(dataset, &mut pace);
            if signal.is_stopping() {
                return;
            }
        }
        rest = rests.again;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paced(signal: &Signal, share: f64, busy: Duration) -> (ByClock<'_>, Instant) {
        let now = Instant::now();
        let pace = ByClock {
            pacer: Pacer::new(share),
            since: now - busy,
            signal,
        };
        (pace, now)
    }

    #[test]
    fn it_rests_as_its_share_says_after_it_was_busy() {
        let signal = Signal::new(1.0);
        let busy = 4 * BUSY_AT_ONCE;
        let (mut pace, before) = paced(&signal, 0.5, busy);
        assert!(pace.go_on());
        // As long as it was busy, and then it counts anew.
        assert!(pace.since >= before + busy);
    }

    #[test]
    fn it_ends_where_it_is_told_to_however_long_it_would_rest() {
        let signal = Signal::new(1.0);
        signal.stop();
        let (mut pace, _) = paced(&signal, 0.0, Duration::from_secs(3600));
        assert!(!pace.go_on());
    }
}
