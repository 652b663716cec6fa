//! What a simulated network does wrong, decided from a seed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use crate::FabricError;

/// Names the environment variable that repeats a run.
pub const SEED_VARIABLE: &str = "VKV_SIM_SEED";

/// Probabilities, 0 to 1, of what goes wrong; all 0 by default.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct SimFaults {
    /// A READ is carried out late.
    pub read_delay: f64,
    /// By this much at most; longer than a lease is allowed.
    pub read_delay_max: Duration,
    /// A READ is copied in pieces, in any order, at different moments.
    pub torn_read: f64,
    /// Longest pause between two pieces.
    pub torn_pause_max: Duration,
    /// The READs of a batch are carried out in any order.
    pub reorder: f64,
    /// A READ is not answered: it ends as [`crate::ReadStatus::PeerGone`].
    pub read_error: f64,
    /// A connection breaks when a frame is sent or a batch posted.
    pub disconnect: f64,
    /// A connection request never arrives.
    pub lost_request: f64,
    /// A frame, or a WRITE before it, arrives late, and so do those after it.
    pub frame_delay: f64,
    /// By this much at most.
    pub frame_delay_max: Duration,
    /// The end of a READ is told late: its bytes have been there for a while.
    pub late_completion: f64,
    /// By this much at most; longer than a lease is allowed.
    pub late_completion_max: Duration,
    /// The server's device refuses to destroy a connection, whose peer goes on.
    pub refused_destroy: f64,
    /// The client's device refuses to destroy a data connection, whose READs go on.
    pub refused_client_destroy: f64,
    /// The server's device takes no more READs of a connection at once, where that is less than the client's; 0: as many.
    pub server_reads_at_once: usize,
}

/// How often each thing went wrong, and what came of READs that were late.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs, reason = "each of the first counts what SimFaults names")]
pub struct SimInjected {
    pub read_delays: u64,
    pub torn_reads: u64,
    pub reorders: u64,
    pub read_errors: u64,
    pub disconnects: u64,
    pub lost_requests: u64,
    pub frame_delays: u64,
    pub late_completions: u64,
    /// READs that the end of their connection by the server kept from being carried out, those posted after it
    /// included.
    pub reads_fenced: u64,
    /// READs that were refused because the domain does not have the memory, or not any more.
    pub reads_refused: u64,
    /// READs carried out after the server had ended their connection: only where nothing is fenced.
    pub reads_unfenced: u64,
    /// READs that got bytes of memory that had been given up or reused since, or was not in use.
    pub reads_of_reused: u64,
    /// Pieces of registered memory that were reused, and registrations given up.
    pub reuses: u64,
    pub refused_destroys: u64,
    pub refused_client_destroys: u64,
}

/// The seed of [`SEED_VARIABLE`], or `default` where it is not set.
///
/// # Errors
/// [`FabricError::Unavailable`] if it is set to something else than a number.
pub fn seed_from_env(default: u64) -> Result<u64, FabricError> {
    let Ok(text) = std::env::var(SEED_VARIABLE) else {
        return Ok(default);
    };
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| FabricError::Unavailable {
        what: format!("{SEED_VARIABLE} is {text:?}, not a number"),
        remedy: "set it to what the failed test printed".to_owned(),
    })
}

/// Prints how to repeat a run if it is dropped by a panic.
#[derive(Debug)]
pub struct ReplayHint(pub u64);

impl Drop for ReplayHint {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("to repeat this run: {SEED_VARIABLE}={:#x}", self.0);
        }
    }
}

/// SplitMix64: small, seeded, the same everywhere.
#[derive(Debug, Clone)]
pub(super) struct Random(u64);

impl Random {
    /// The stream with this number of this seed.
    pub(super) fn new(seed: u64, stream: u64) -> Self {
        let mut random = Self(seed ^ stream.wrapping_mul(0xD134_2543_DE82_EF95));
        random.next();
        random
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// 0 to `bound - 1`; 0 if `bound` is 0.
    pub(super) fn below(&mut self, bound: usize) -> usize {
        (self.next() % (bound.max(1) as u64)) as usize
    }

    fn happens(&mut self, probability: f64) -> bool {
        // Drawn in any case, so that changing one probability does not move the others' draws.
        let drawn = (self.next() >> 11) as f64 / (1_u64 << 53) as f64;
        drawn < probability
    }

    pub(super) fn up_to(&mut self, longest: Duration) -> Duration {
        let nanoseconds = u64::try_from(longest.as_nanos()).unwrap_or(u64::MAX - 1);
        Duration::from_nanos(self.next() % (nanoseconds + 1))
    }

    pub(super) fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let other = self.below(last + 1);
            items.swap(last, other);
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    read_delays: AtomicU64,
    torn_reads: AtomicU64,
    reorders: AtomicU64,
    read_errors: AtomicU64,
    disconnects: AtomicU64,
    lost_requests: AtomicU64,
    frame_delays: AtomicU64,
    late_completions: AtomicU64,
    pub(super) reads_fenced: AtomicU64,
    pub(super) reads_refused: AtomicU64,
    pub(super) reads_unfenced: AtomicU64,
    pub(super) reads_of_reused: AtomicU64,
    refused_destroys: AtomicU64,
    refused_client_destroys: AtomicU64,
}

/// How one READ is carried out.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ReadPlan {
    pub(super) delay: Duration,
    pub(super) error: bool,
    /// Longest pause between pieces, if it is torn.
    pub(super) torn: Option<Duration>,
    /// How much later than its bytes its end is told.
    pub(super) told_late: Duration,
}

/// The faults of one network.
#[derive(Debug)]
pub(super) struct Faults {
    pub(super) seed: u64,
    set: RwLock<SimFaults>,
    pub(super) counters: Counters,
    write_ahead_max_bytes: AtomicU64,
}

impl Faults {
    pub(super) fn new(seed: u64, faults: SimFaults) -> Self {
        Self {
            seed,
            set: RwLock::new(faults),
            counters: Counters::default(),
            write_ahead_max_bytes: AtomicU64::new(0),
        }
    }

    pub(super) fn get(&self) -> SimFaults {
        *self.set.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set(&self, faults: SimFaults) {
        *self.set.write().unwrap_or_else(PoisonError::into_inner) = faults;
    }

    /// A frame is sent after so many bytes of WRITEs that have not arrived.
    pub(super) fn write_ahead(&self, bytes: usize) {
        self.write_ahead_max_bytes
            .fetch_max(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn write_ahead_max_bytes(&self) -> u64 {
        self.write_ahead_max_bytes.load(Ordering::Relaxed)
    }

    pub(super) fn injected(&self) -> SimInjected {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &self.counters;
        SimInjected {
            read_delays: get(&counters.read_delays),
            torn_reads: get(&counters.torn_reads),
            reorders: get(&counters.reorders),
            read_errors: get(&counters.read_errors),
            disconnects: get(&counters.disconnects),
            lost_requests: get(&counters.lost_requests),
            frame_delays: get(&counters.frame_delays),
            late_completions: get(&counters.late_completions),
            reads_fenced: get(&counters.reads_fenced),
            reads_refused: get(&counters.reads_refused),
            reads_unfenced: get(&counters.reads_unfenced),
            reads_of_reused: get(&counters.reads_of_reused),
            reuses: 0,
            refused_destroys: get(&counters.refused_destroys),
            refused_client_destroys: get(&counters.refused_client_destroys),
        }
    }

    fn draw(random: &mut Random, probability: f64, counter: &AtomicU64) -> bool {
        let happens = random.happens(probability);
        if happens {
            counter.fetch_add(1, Ordering::Relaxed);
        }
        happens
    }

    pub(super) fn disconnects(&self, random: &mut Random) -> bool {
        Self::draw(random, self.get().disconnect, &self.counters.disconnects)
    }

    pub(super) fn loses_request(&self, random: &mut Random) -> bool {
        Self::draw(random, self.get().lost_request, &self.counters.lost_requests)
    }

    pub(super) fn refuses_destroy(&self, random: &mut Random) -> bool {
        Self::draw(
            random,
            self.get().refused_destroy,
            &self.counters.refused_destroys,
        )
    }

    pub(super) fn refuses_client_destroy(&self, random: &mut Random) -> bool {
        Self::draw(
            random,
            self.get().refused_client_destroy,
            &self.counters.refused_client_destroys,
        )
    }

    pub(super) fn reorders(&self, random: &mut Random) -> bool {
        Self::draw(random, self.get().reorder, &self.counters.reorders)
    }

    pub(super) fn frame_delay(&self, random: &mut Random) -> Duration {
        let faults = self.get();
        let longest = if Self::draw(random, faults.frame_delay, &self.counters.frame_delays) {
            faults.frame_delay_max
        } else {
            Duration::ZERO
        };
        random.up_to(longest)
    }

    pub(super) fn read(&self, random: &mut Random) -> ReadPlan {
        let faults = self.get();
        let delayed = Self::draw(random, faults.read_delay, &self.counters.read_delays);
        let error = Self::draw(random, faults.read_error, &self.counters.read_errors);
        let torn = Self::draw(random, faults.torn_read, &self.counters.torn_reads);
        let longest = if delayed {
            faults.read_delay_max
        } else {
            Duration::ZERO
        };
        let delay = random.up_to(longest);
        let late = Self::draw(random, faults.late_completion, &self.counters.late_completions);
        let latest = if late {
            faults.late_completion_max
        } else {
            Duration::ZERO
        };
        ReadPlan {
            delay,
            error,
            torn: torn.then_some(faults.torn_pause_max),
            told_late: random.up_to(latest),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_faults_again() {
        let faults = SimFaults {
            read_delay: 0.5,
            read_delay_max: Duration::from_secs(1),
            torn_read: 0.3,
            read_error: 0.1,
            ..SimFaults::default()
        };
        let run = |seed| {
            let faults = Faults::new(seed, faults);
            let mut random = Random::new(seed, 3);
            let plans: Vec<_> = (0..200).map(|_| faults.read(&mut random)).collect();
            (plans, faults.injected())
        };
        assert_eq!(run(7), run(7));
        assert_ne!(run(7).0, run(8).0);
        let injected = run(7).1;
        assert!((60..140).contains(&injected.read_delays), "{injected:?}");
        assert!((30..90).contains(&injected.torn_reads), "{injected:?}");
        assert!((5..40).contains(&injected.read_errors), "{injected:?}");
    }

    #[test]
    fn nothing_goes_wrong_by_default() {
        let faults = Faults::new(1, SimFaults::default());
        let mut random = Random::new(1, 1);
        for _ in 0..1000 {
            assert!(!faults.disconnects(&mut random) && !faults.loses_request(&mut random));
            assert_eq!(faults.frame_delay(&mut random), Duration::ZERO);
            let plan = faults.read(&mut random);
            assert!(plan.delay.is_zero() && !plan.error && plan.torn.is_none() && plan.told_late.is_zero());
        }
        assert_eq!(faults.injected(), SimInjected::default());
    }
}
