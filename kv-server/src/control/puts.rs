//! PUTs of one session, as far as they need no store: windows, lengths, order. No I/O.

use std::collections::BTreeMap;

use kv_proto::control::Status;

use super::clock::BootMs;
use super::leases::DatasetId;
use super::options::Options;
use super::session::Refusal;
use super::windows::{Window, Windows};

/// One PUT that was begun and not committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Its dataset.
    pub dataset: DatasetId,
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
    windows: Windows,
    open: BTreeMap<u64, Progress>,
}

impl Puts {
    /// None, over this much staging memory.
    #[must_use]
    pub fn new(staging_bytes: u32) -> Self {
        Self {
            windows: Windows::new(staging_bytes),
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

    /// Begins one; its window is as long as the value, `window_max_bytes` or what staging memory allows.
    ///
    /// # Errors
    /// [`Status::Busy`] if staging memory is used up.
    pub fn begin(
        &mut self,
        operation: u64,
        dataset: DatasetId,
        value_len_bytes: u64,
        window_max_bytes: u32,
        now: BootMs,
        options: &Options,
    ) -> Result<Option<Window>, Refusal> {
        let wanted = value_len_bytes.min(u64::from(window_max_bytes)) as u32;
        let window = if wanted == 0 {
            None
        } else {
            let window = self.windows.take(wanted, options.window_min_bytes);
            Some(window.ok_or_else(|| Refusal::new(Status::Busy, "the session's staging memory is in use"))?)
        };
        let progress = Progress {
            dataset,
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
            self.windows.give(window);
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

    fn status<T>(result: Result<T, Refusal>) -> Option<Status> {
        result.err().map(|refusal| refusal.status)
    }

    #[test]
    fn a_long_value_goes_window_by_window() {
        let options = Options::default();
        let mut puts = Puts::new(4 << 20);
        let window = puts
            .begin(7, A, 2 * MIB + 5, 1 << 20, NOW, &options)
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
        assert_eq!(puts.windows, Windows::new(4 << 20));
    }

    #[test]
    fn the_stalest_is_the_one_not_heard_of() {
        let options = Options::default();
        let mut puts = Puts::new(1 << 20);
        for operation in [1, 2] {
            puts.begin(operation, A, 1, 1 << 20, NOW, &options).unwrap();
        }
        puts.heard(1, BootMs(9));
        puts.heard(3, BootMs(9));
        assert_eq!(puts.stalest(), Some((2, NOW)));
        puts.end(2);
        assert_eq!(puts.stalest(), Some((1, BootMs(9))));
    }

    #[test]
    fn an_empty_value_needs_no_window() {
        let options = Options::default();
        let mut puts = Puts::new(0);
        assert_eq!(puts.begin(1, A, 0, 1 << 20, NOW, &options).unwrap(), None);
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
        puts.begin(1, A, 10, 1 << 20, NOW, &options).unwrap();
        puts.may_begin(&options).unwrap();
        puts.begin(2, [2; 16], MIB, 1 << 20, NOW, &options).unwrap();
        assert_eq!(status(puts.may_begin(&options)), Some(Status::Busy));
        assert_eq!(puts.end_dataset(&A), [1]);
        assert_eq!(puts.len(), 1);
        // Windows shrink as memory does, but not below the least.
        let mut granted = Vec::new();
        let refused =
            (4..).find_map(
                |operation| match puts.begin(operation, A, MIB, 1 << 20, NOW, &options) {
                    Ok(window) => {
                        granted.push(window.unwrap().len_bytes);
                        None
                    }
                    Err(refusal) => Some(refusal.status),
                },
            );
        assert_eq!(refused, Some(Status::Busy));
        assert_eq!(granted, [256 << 10, 128 << 10, 64 << 10]);
    }
}
