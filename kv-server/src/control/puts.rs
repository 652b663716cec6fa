//! PUTs of one session, as far as they need no store: windows, lengths, order. No I/O.
//!
//! Staging memory is divided by kinds of values: one whose client takes its time keeps no window from those of another.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use kv_proto::control::Status;

use super::clock::BootMs;
use super::leases::DatasetId;
use super::options::Options;
use super::session::Refusal;
use super::windows::{WINDOW_ALIGN_BYTES, Window, Windows};
use crate::store::Kind;

/// One PUT that was begun and not committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Its dataset.
    pub dataset: DatasetId,
    /// How it was to arrive when it began: whose window it has.
    pub kind: Kind,
    /// Its window; `None` for an empty value.
    pub window: Option<Window>,
    /// Bytes of the value that have not been taken yet.
    pub left_bytes: u64,
    /// When it was last heard of.
    pub heard: BootMs,
}

/// All of a session, by operation.
#[derive(Debug, Clone)]
pub struct Puts {
    /// Of each kind.
    windows: [Windows; 3],
    open: BTreeMap<u64, Progress>,
}

impl Puts {
    /// None, over this much staging memory.
    #[must_use]
    pub fn new(staging_bytes: u32) -> Self {
        let quarter = staging_bytes / 4 / WINDOW_ALIGN_BYTES * WINDOW_ALIGN_BYTES;
        let [half, rest] = [2 * quarter, 3 * quarter];
        Self {
            windows: [
                Windows::new(0, half),
                Windows::new(half, quarter),
                Windows::new(rest, staging_bytes - rest),
            ],
            open: BTreeMap::new(),
        }
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// The PUT of this operation.
    ///
    /// # Errors
    /// A refusal if there is none: never begun, given up, or committed.
    pub fn get(&self, operation: u64) -> Result<Progress, Refusal> {
        self.open.get(&operation).copied().ok_or_else(|| {
            Refusal::new(
                Status::Stale,
                format!("operation {operation} has no window in this session"),
            )
        })
    }

    /// Whether another may begin.
    ///
    /// # Errors
    /// [`Status::Busy`] if as many as may be are open.
    pub fn may_begin(&self, options: &Options) -> Result<(), Refusal> {
        if self.open.len() >= options.puts_per_session_max {
            let text = format!("{} values are being written in this session", self.open.len());
            return Err(Refusal::new(Status::Busy, text));
        }
        Ok(())
    }

    /// How a value arrives that would as `kind`: a small one that is longer than any window for such comes in pieces, as a
    /// longer one.
    #[must_use]
    pub fn kind(&self, kind: Kind, value_len_bytes: u64, window_max_bytes: u32) -> Kind {
        if kind == Kind::Small && value_len_bytes > u64::from(self.longest(kind, window_max_bytes)) {
            Kind::Medium
        } else {
            kind
        }
    }

    /// The longest window that a value of a kind may have, of at most so many bytes.
    fn longest(&self, kind: Kind, most_bytes: u32) -> u32 {
        self.windows[kind as usize].len_bytes().min(most_bytes)
    }

    /// Begins one, with a window of a length in `lengths`. A small value's is as long as itself; a longer one's at most half
    /// of what is free for its kind: it is kept for long.
    ///
    /// # Errors
    /// [`Status::Busy`] if staging memory is used up.
    pub fn begin(
        &mut self,
        operation: u64,
        dataset: DatasetId,
        value_len_bytes: u64,
        kind: Kind,
        lengths: RangeInclusive<u32>,
        now: BootMs,
    ) -> Result<Option<Window>, Refusal> {
        let longest = self.longest(kind, *lengths.end());
        let windows = &mut self.windows[kind as usize];
        let wanted = value_len_bytes.min(u64::from(longest)) as u32;
        let window = if value_len_bytes == 0 {
            None
        } else {
            let window = if kind == Kind::Small {
                windows.take(wanted, wanted)
            } else {
                let least = wanted.min(*lengths.start());
                let half = (windows.free_bytes() / 2).max(least);
                windows.take(wanted.min(half), least)
            };
            Some(window.ok_or_else(|| Refusal::new(Status::Busy, "the session's staging memory is in use"))?)
        };
        let progress = Progress {
            dataset,
            kind,
            window,
            left_bytes: value_len_bytes,
            heard: now,
        };
        self.open.insert(operation, progress);
        Ok(window)
    }

    /// Judges that `len_bytes` of the window were written, by APPEND or, where `last`, by COMMIT. Returns the offset
    /// in staging memory where they begin.
    ///
    /// # Errors
    /// A refusal if they are more than the window or the value has left, or not all of what is left where `last`.
    pub fn written(
        &mut self,
        operation: u64,
        len_bytes: u32,
        last: bool,
        now: BootMs,
    ) -> Result<u32, Refusal> {
        let progress = self.get(operation)?;
        let window = progress.window.unwrap_or(Window {
            offset: 0,
            len_bytes: 0,
        });
        let fits = len_bytes <= window.len_bytes && u64::from(len_bytes) <= progress.left_bytes;
        let left_bytes = progress.left_bytes.wrapping_sub(u64::from(len_bytes));
        let whole = if last { left_bytes == 0 } else { len_bytes > 0 };
        if !fits || !whole {
            let text = format!(
                "operation {operation}: {len_bytes} bytes of a window of {} where the value has {} left",
                window.len_bytes, progress.left_bytes
            );
            return Err(Refusal::new(Status::Order, text));
        }
        if let Some(progress) = self.open.get_mut(&operation) {
            progress.left_bytes = left_bytes;
            progress.heard = now;
        }
        Ok(window.offset)
    }

    /// Notes that one is not silent.
    pub fn heard(&mut self, operation: u64, now: BootMs) {
        if let Some(progress) = self.open.get_mut(&operation) {
            progress.heard = now;
        }
    }

    /// Forgets one and frees its window; whether it was there.
    pub fn end(&mut self, operation: u64) -> bool {
        let Some(progress) = self.open.remove(&operation) else {
            return false;
        };
        if let Some(window) = progress.window {
            self.windows[progress.kind as usize].give(window);
        }
        true
    }

    /// Forgets those of one dataset and says which they were.
    pub fn end_dataset(&mut self, dataset: &DatasetId) -> Vec<u64> {
        let of_it: Vec<u64> = self
            .open
            .iter()
            .filter(|(_, progress)| progress.dataset == *dataset)
            .map(|(operation, _)| *operation)
            .collect();
        for operation in &of_it {
            self.end(*operation);
        }
        of_it
    }

    /// The one that was heard of longest ago, and when.
    #[must_use]
    pub fn stalest(&self) -> Option<(u64, BootMs)> {
        self.open
            .iter()
            .map(|(operation, progress)| (*operation, progress.heard))
            .min_by_key(|(_, heard)| *heard)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: BootMs = BootMs(5);

    const A: DatasetId = [1; 16];
    const MIB: u64 = 1 << 20;
    const LENGTHS: RangeInclusive<u32> = 64 << 10..=1 << 20;

    fn status<T>(result: Result<T, Refusal>) -> Option<Status> {
        result.err().map(|refusal| refusal.status)
    }

    #[test]
    fn a_long_value_goes_window_by_window() {
        let mut puts = Puts::new(8 << 20);
        let window = puts
            .begin(7, A, 2 * MIB + 5, Kind::Large, LENGTHS, NOW)
            .unwrap()
            .unwrap();
        assert_eq!(u64::from(window.len_bytes), MIB);
        assert_eq!(
            puts.written(7, window.len_bytes, false, NOW).unwrap(),
            window.offset
        );
        assert_eq!(
            status(puts.written(7, window.len_bytes + 1, false, NOW)),
            Some(Status::Order)
        );
        assert_eq!(
            status(puts.written(7, window.len_bytes, true, NOW)),
            Some(Status::Order)
        );
        puts.written(7, window.len_bytes, false, NOW).unwrap();
        for last in [false, true] {
            assert_eq!(status(puts.written(7, 6, last, NOW)), Some(Status::Order));
        }
        assert_eq!(status(puts.written(7, 4, true, NOW)), Some(Status::Order));
        puts.written(7, 5, true, NOW).unwrap();
        assert!(puts.end(7) && !puts.end(7));
        assert_eq!(status(puts.written(7, 5, true, NOW)), Some(Status::Stale));
        assert_eq!(puts.windows, Puts::new(8 << 20).windows);
    }

    #[test]
    fn the_stalest_is_the_one_not_heard_of() {
        let mut puts = Puts::new(1 << 20);
        for operation in [1, 2] {
            puts.begin(operation, A, 1, Kind::Small, LENGTHS, NOW).unwrap();
        }
        puts.heard(1, BootMs(9));
        puts.heard(3, BootMs(9));
        assert_eq!(puts.stalest(), Some((2, NOW)));
        puts.end(2);
        assert_eq!(puts.stalest(), Some((1, BootMs(9))));
    }

    #[test]
    fn an_empty_value_needs_no_window() {
        let mut puts = Puts::new(0);
        assert_eq!(puts.begin(1, A, 0, Kind::Small, LENGTHS, NOW).unwrap(), None);
        assert_eq!(status(puts.written(1, 0, false, NOW)), Some(Status::Order));
        assert_eq!(status(puts.written(1, 1, true, NOW)), Some(Status::Order));
        puts.written(1, 0, true, NOW).unwrap();
    }

    #[test]
    fn limits_are_kept_and_a_dataset_ends_as_a_whole() {
        let options = Options {
            puts_per_session_max: 2,
            ..Options::default()
        };
        let mut puts = Puts::new(1 << 20);
        puts.begin(1, A, 10, Kind::Small, LENGTHS, NOW).unwrap();
        puts.may_begin(&options).unwrap();
        puts.begin(2, [2; 16], MIB, Kind::Medium, LENGTHS, NOW).unwrap();
        assert_eq!(status(puts.may_begin(&options)), Some(Status::Busy));
        assert_eq!(puts.end_dataset(&A), [1]);
        assert_eq!(puts.len(), 1);
    }

    #[test]
    fn a_short_value_that_no_window_holds_is_one_of_the_longer() {
        let puts = Puts::new(64 << 10);
        for (len, window_max, kind) in [
            (0, 1, Kind::Small),
            (32 << 10, 1 << 20, Kind::Small),
            ((32 << 10) + 1, 1 << 20, Kind::Medium),
            (5000, 4999, Kind::Medium),
        ] {
            assert_eq!(puts.kind(Kind::Small, len, window_max), kind, "{len}");
        }
        for kind in [Kind::Medium, Kind::Large] {
            assert_eq!(puts.kind(kind, 9 * MIB, 1 << 20), kind);
        }
    }

    /// The windows of as many values of a kind as begin, of `len` bytes each.
    fn windows_of(puts: &mut Puts, kind: Kind, len: u64) -> Vec<Window> {
        let first = puts.len() as u64;
        (first..first + 100)
            .map_while(|operation| {
                let begun = puts.begin(operation, A, len, kind, LENGTHS, NOW);
                assert!(matches!(status(begin_of(&begun)), None | Some(Status::Busy)));
                begun.ok().flatten()
            })
            .collect()
    }

    fn begin_of(begun: &Result<Option<Window>, Refusal>) -> Result<(), Refusal> {
        begun.as_ref().map(|_| ()).map_err(Clone::clone)
    }

    /// Long values once took all windows, and a session's small ones waited for their ends.
    #[test]
    fn no_kind_takes_the_windows_of_another_and_long_ones_shrink() {
        for staging_bytes in [64 << 10, 1 << 20, 8 << 20_u32] {
            let mut puts = Puts::new(staging_bytes);
            let mut all = Vec::new();
            for (kind, len) in [
                (Kind::Large, 9 * MIB),
                (Kind::Medium, MIB),
                (Kind::Small, 100_000),
            ] {
                let windows = windows_of(&mut puts, kind, len);
                let lens: Vec<u32> = windows.iter().map(|window| window.len_bytes).collect();
                assert!(!lens.is_empty(), "{kind:?} of {staging_bytes}");
                assert!(lens.is_sorted_by(|a, b| a >= b), "{lens:?}");
                if staging_bytes == 8 << 20 && kind != Kind::Small {
                    assert_eq!(lens, [1024, 512, 256, 128, 64, 64].map(|kib| kib << 10));
                }
                all.extend(windows);
            }
            all.sort_by_key(|window| window.offset);
            let apart = |pair: &[Window]| pair[0].offset + pair[0].len_bytes <= pair[1].offset;
            assert!(all.windows(2).all(apart), "{all:?}");
            let end = all.last().map_or(0, |last| last.offset + last.len_bytes);
            assert!(end <= staging_bytes, "{end} of {staging_bytes}");
        }
    }
}
