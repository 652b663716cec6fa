//! Stopping between two operations: on a signal, or because going on is of no use.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

/// Asked between operations whether to go on.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stop(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// Number of the signal that came, or 0.
    signal: Arc<AtomicUsize>,
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
        let again = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            // In this order, so that the first signal finds `again` still unset.
            flag::register_conditional_shutdown(signal, 128 + signal, again.clone())?;
            flag::register(signal, again.clone())?;
            flag::register_usize(signal, stop.0.signal.clone(), signal as usize)?;
        }
        Ok(stop)
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
        self.0.signal.store(SIGINT as usize, Ordering::Release);
    }
}
