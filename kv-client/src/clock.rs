//! The clock that leases and deadlines are counted on.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds on CLOCK_BOOTTIME, which goes on while the machine is suspended, as the server's lease does.
#[inline]
pub(crate) fn boot_ns() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    (now.tv_sec as u64)
        .wrapping_mul(1_000_000_000)
        .wrapping_add(now.tv_nsec as u64)
}

/// A moment until which a call may go on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline {
    end_ns: u64,
}

impl Deadline {
    pub(crate) fn after(span: Duration) -> Self {
        Self::at(boot_ns(), span)
    }

    pub(crate) fn at(now_ns: u64, span: Duration) -> Self {
        let span_ns = u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
        Self {
            end_ns: now_ns.saturating_add(span_ns),
        }
    }

    pub(crate) fn is_over_at(self, now_ns: u64) -> bool {
        now_ns >= self.end_ns
    }

    pub(crate) fn left(self) -> Duration {
        Duration::from_nanos(self.end_ns.saturating_sub(boot_ns()))
    }

    pub(crate) fn is_over(self) -> bool {
        self.is_over_at(boot_ns())
    }

    /// The same moment on the clock that waits take; none is longer than a day.
    pub(crate) fn instant(self) -> Instant {
        Instant::now() + self.left().min(Duration::from_secs(86_400))
    }
}
