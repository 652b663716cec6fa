//! How long compaction rests after it kept the disk busy. No clock: time is passed in.

use std::time::Duration;

/// Least share that is taken for more than none.
const SHARE_MIN: f64 = 0.001;

/// Keeps compaction to its share of the disk's time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pacer {
    share: f64,
}

impl Pacer {
    /// `share`, from 0 to 1, is the part of the time in which compaction may keep the disk busy.
    pub(crate) fn new(share: f64) -> Self {
        Self {
            share: share.clamp(SHARE_MIN, 1.0),
        }
    }

    /// How long to rest after `busy`, so that of both together no more than the share was busy.
    pub(crate) fn rest_after(&self, busy: Duration) -> Duration {
        busy.mul_f64((1.0 - self.share) / self.share)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_busy_time_is_the_share_of_all_time() {
        for share in [0.05, 0.2, 0.5, 0.9, 1.0] {
            let pacer = Pacer::new(share);
            let (mut busy, mut all) = (Duration::ZERO, Duration::ZERO);
            for step in 1..1000_u64 {
                let took = Duration::from_micros(step * 7919 % 5000);
                busy += took;
                all += took + pacer.rest_after(took);
            }
            let had = busy.as_secs_f64() / all.as_secs_f64();
            assert!((had - share).abs() < 0.001, "{had} of {share}");
        }
        assert_eq!(Pacer::new(1.0).rest_after(Duration::from_secs(1)), Duration::ZERO);
        assert!(Pacer::new(0.0).rest_after(Duration::from_secs(1)) < Duration::from_secs(1001));
    }
}
