//! The clock that leases are counted on: CLOCK_BOOTTIME, which goes on while a machine sleeps.

use std::ops::{Add, Sub};

use rustix::time::{ClockId, clock_gettime};

/// A moment on CLOCK_BOOTTIME, milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct BootMs(pub u64);

impl BootMs {
    /// Now.
    #[must_use]
    pub fn now() -> Self {
        let time = clock_gettime(ClockId::Boottime);
        Self(time.tv_sec as u64 * 1000 + time.tv_nsec as u64 / 1_000_000)
    }
}

impl Add<u64> for BootMs {
    type Output = Self;

    fn add(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }
}

impl Sub for BootMs {
    type Output = u64;

    /// Milliseconds since `earlier`; 0 if it is later.
    fn sub(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}
