//! How the compaction thread is woken, and what it is told.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use super::super::lock;

#[derive(Debug, Default)]
struct State {
    /// There may be something to do.
    poked: bool,
    /// Memory or disk are short.
    pressed: bool,
    stopping: bool,
}

/// What the compaction thread sleeps on.
#[derive(Debug)]
pub(crate) struct Signal {
    state: Mutex<State>,
    changed: Condvar,
    dead_share: f64,
}

/// Why the compaction thread woke.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Woken {
    /// Look what there is to do.
    Look {
        /// Memory or disk are short.
        pressed: bool,
    },
    Stop,
}

impl Signal {
    /// `dead_share` is that from which a segment is compacted.
    pub(crate) fn new(dead_share: f64) -> Self {
        Self {
            state: Mutex::default(),
            changed: Condvar::new(),
            dead_share,
        }
    }

    /// Share from which a segment that dies is worth a [`Signal::poke`].
    pub(crate) fn dead_share(&self) -> f64 {
        self.dead_share
    }

    /// Something died, was sealed or was freed.
    pub(crate) fn poke(&self) {
        self.tell(|state| state.poked = true);
    }

    /// Memory or disk are short.
    pub(crate) fn press(&self) {
        self.tell(|state| {
            state.poked = true;
            state.pressed = true;
        });
    }

    pub(crate) fn stop(&self) {
        self.tell(|state| state.stopping = true);
    }

    fn tell(&self, what: impl FnOnce(&mut State)) {
        what(&mut lock(&self.state));
        self.changed.notify_all();
    }

    pub(crate) fn is_stopping(&self) -> bool {
        lock(&self.state).stopping
    }

    /// Sleeps until it is told something, or for so long.
    pub(crate) fn wait(&self, timeout: Option<Duration>) -> Woken {
        let quiet = |state: &mut State| !state.poked && !state.stopping;
        let state = lock(&self.state);
        let mut state = match timeout {
            Some(timeout) => {
                let waited = self.changed.wait_timeout_while(state, timeout, quiet);
                waited.unwrap_or_else(PoisonError::into_inner).0
            }
            None => self
                .changed
                .wait_while(state, quiet)
                .unwrap_or_else(PoisonError::into_inner),
        };
        if state.stopping {
            return Woken::Stop;
        }
        state.poked = false;
        let pressed = std::mem::take(&mut state.pressed);
        Woken::Look { pressed }
    }

    /// Rests so long, or until memory or disk are short, or it is told to stop.
    pub(crate) fn rest(&self, time: Duration) {
        let state = lock(&self.state);
        let resting = |state: &mut State| !state.pressed && !state.stopping;
        let rested = self.changed.wait_timeout_while(state, time, resting);
        drop(rested.unwrap_or_else(PoisonError::into_inner));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    /// Longer than a test may take.
    const LONG: Duration = Duration::from_secs(3600);

    #[test]
    fn a_rest_ends_when_it_is_pressed_or_to_stop_and_for_nothing_else() {
        for end in [Signal::press, Signal::stop] {
            let signal = Signal::new(0.5);
            // Not a reason: what died waits for its turn.
            signal.poke();
            let (told, rested) = channel();
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    signal.rest(LONG);
                    told.send(()).unwrap();
                });
                assert!(rested.recv_timeout(Duration::from_millis(30)).is_err());
                end(&signal);
                let ended = rested.recv_timeout(Duration::from_secs(30));
                // So that what is not told to go on ends with the test.
                signal.press();
                signal.stop();
                ended.unwrap();
            });
        }
    }

    #[test]
    fn what_it_is_told_is_told_once_and_a_stop_for_good() {
        let signal = Signal::new(0.5);
        assert_eq!(signal.wait(Some(Duration::ZERO)), Woken::Look { pressed: false });
        signal.press();
        assert_eq!(signal.wait(Some(LONG)), Woken::Look { pressed: true });
        signal.poke();
        assert_eq!(signal.wait(Some(LONG)), Woken::Look { pressed: false });
        signal.stop();
        for _ in 0..2 {
            assert_eq!(signal.wait(Some(LONG)), Woken::Stop);
            assert!(signal.is_stopping());
        }
    }
}
