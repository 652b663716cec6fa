//! Stopping between two operations: on a signal, or because going on is of no use.

use std::io;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level;

/// A signal that comes again so soon is the same one: who ends a process and its group, as `timeout` does, sends it twice.
const REPEATED_WITHIN: Duration = Duration::from_secs(1);

/// Asked between operations whether to go on.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stop(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// Number of the signal that came, or 0.
    signal: AtomicI32,
    failed: AtomicBool,
    failure: Mutex<Option<String>>,
}

impl Stop {
    /// Listens to SIGINT and SIGTERM: the first asks to stop, a second ends the process at once.
    ///
    /// # Errors
    /// If a handler cannot be installed.
    pub(crate) fn on_signals() -> io::Result<Self> {
        let stop = Self::default();
        let mut signals = Signals::new([SIGINT, SIGTERM])?;
        let listener = stop.clone();
        let listen = move || {
            let mut first = None;
            for signal in signals.forever() {
                if listener.takes(signal, &mut first, Instant::now()) {
                    low_level::exit(128 + signal);
                }
            }
        };
        thread::Builder::new().name("signals".into()).spawn(listen)?;
        Ok(stop)
    }

    /// Takes a signal that came at `now`; whether to end at once. `first` is when the first one came.
    fn takes(&self, signal: i32, first: &mut Option<Instant>, now: Instant) -> bool {
        match first {
            Some(first) => now.duration_since(*first) >= REPEATED_WITHIN,
            None => {
                *first = Some(now);
                self.0.signal.store(signal, Ordering::Release);
                false
            }
        }
    }

    /// Going on is of no use, for this reason. The first reason stays.
    pub(crate) fn fail(&self, why: &str) {
        let mut failure = self.0.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.get_or_insert_with(|| why.to_owned());
        self.0.failed.store(true, Ordering::Release);
    }

    /// Whether to stop.
    pub(crate) fn asked(&self) -> bool {
        self.signal().is_some() || self.0.failed.load(Ordering::Acquire)
    }

    /// For loops that call back: whether to go on.
    pub(crate) fn going_on(&self) -> ControlFlow<()> {
        match self.asked() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }

    /// The signal that came.
    pub(crate) fn signal(&self) -> Option<u8> {
        u8::try_from(self.0.signal.load(Ordering::Acquire))
            .ok()
            .filter(|signal| *signal != 0)
    }

    /// Why going on is of no use.
    pub(crate) fn failure(&self) -> Option<String> {
        self.0
            .failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// As if the signal had come.
    #[cfg(test)]
    pub(crate) fn interrupt(&self) {
        self.0.signal.store(SIGINT, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_that_comes_twice_at_once_is_one() {
        let (stop, mut first, start) = (Stop::default(), None, Instant::now());
        let mut takes =
            |signal, after_ms| stop.takes(signal, &mut first, start + Duration::from_millis(after_ms));
        assert!(!takes(SIGTERM, 0) && !takes(SIGTERM, 0) && !takes(SIGINT, 999));
        assert!(takes(SIGTERM, 1000));
        assert_eq!(stop.signal(), Some(SIGTERM as u8));
    }
}
