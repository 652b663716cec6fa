//! Waiting between attempts: longer each time, and never in step with others.

use std::time::Duration;

use crate::clock::Deadline;

/// Waits that double from `first` to `longest`, each cut to a random half to whole of itself.
pub(crate) struct Backoff {
    next: Duration,
    longest: Duration,
}

impl Backoff {
    pub(crate) fn new(first: Duration, longest: Duration) -> Self {
        Self { next: first, longest }
    }

    /// The next wait.
    pub(crate) fn next(&mut self) -> Duration {
        let span = self.next;
        self.next = (span * 2).min(self.longest);
        let half = span / 2;
        half + Duration::from_nanos(random_below(u64::try_from(half.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// Sleeps for the next wait, or to the deadline; whether that is still ahead.
    pub(crate) fn sleep(&mut self, deadline: Deadline) -> bool {
        let wait = self.next().min(deadline.left());
        std::thread::sleep(wait);
        !deadline.is_over()
    }
}

/// A number below `end`, different in every process.
fn random_below(end: u64) -> u64 {
    // Jitter needs no better source than the address that each process hashes with.
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(crate::clock::boot_ns()) % end.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest_and_vary() {
        let mut backoff = Backoff::new(Duration::from_millis(8), Duration::from_millis(100));
        for (index, top) in [8_u64, 16, 32, 64, 100, 100].into_iter().enumerate() {
            let wait = backoff.next();
            let top = Duration::from_millis(top);
            assert!(wait >= top / 2 && wait <= top, "wait {index} is {wait:?}");
        }
    }
}
