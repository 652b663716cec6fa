//! What lanes have done, counted without contention: each lane has its own.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::Counters;

macro_rules! lane_counters {
    ($($name:ident),*) => {
        /// Counters of one lane: written by its holder alone, read by anyone.
        /// In lines of the processor's cache that no other holder's share.
        #[derive(Debug, Default)]
        #[repr(align(128))]
        pub(crate) struct LaneCounters { $(pub(crate) $name: AtomicU64),* }

        impl LaneCounters {
            fn add_to(&self, sum: &mut Counters) {
                $(sum.$name += self.$name.load(Ordering::Relaxed);)*
            }
        }
    };
}
lane_counters!(
    gets,
    reads_posted,
    split_reads,
    coalesced,
    connections,
    bucket_reads,
    directory_reads,
    doorbells,
    retries,
    cached,
    cached_wrong,
    torn,
    stale,
    torn_buckets,
    stale_directory,
    other_keys,
    expired,
    expired_reused,
    reconnects
);

/// Adds to a counter that this thread alone writes.
#[inline]
pub(crate) fn add(counter: &AtomicU64, count: u64) {
    counter.store(counter.load(Ordering::Relaxed) + count, Ordering::Relaxed);
}

/// The counters of a client and its clones.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    inner: Mutex<(Counters, Vec<Arc<LaneCounters>>)>,
}

impl Tally {
    pub(crate) fn add_lane(&self) -> Arc<LaneCounters> {
        let counters = Arc::<LaneCounters>::default();
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.1.push(Arc::clone(&counters));
        counters
    }

    /// Keeps what the lane counted, and forgets the lane.
    pub(crate) fn remove_lane(&self, counters: &Arc<LaneCounters>) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let (sum, lanes) = &mut *inner;
        lanes.retain(|lane| !Arc::ptr_eq(lane, counters));
        counters.add_to(sum);
    }

    pub(crate) fn sum(&self) -> Counters {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let mut sum = inner.0;
        inner.1.iter().for_each(|lane| lane.add_to(&mut sum));
        sum
    }
}
