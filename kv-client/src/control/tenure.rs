//! For how long, and of what, readers may read: the lease, the session that it is of, and the epochs in between.
//!
//! - Readers pin the *epoch* that they read under. A retirement is acknowledged only when no pin is older than the
//!   epoch that began after the tables had forgotten what was retired.
//! - A lease is of one session: what was posted in another one is discarded, whatever it brings.
//!
//! No I/O and no clock; `lease_model` tries these rules in every order.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::session::Session;
use crate::tables::{DatasetState, View};

/// A pin that pins nothing.
const UNPINNED: u64 = u64::MAX;

/// What the control thread tells the readers.
#[derive(Debug)]
pub(crate) struct Tenure {
    generation: AtomicU64,
    lease_end_ns: AtomicU64,
    epoch: AtomicU64,
    pins: Mutex<Vec<Weak<Pin>>>,
}

impl Tenure {
    /// No session yet.
    pub(crate) fn new() -> Self {
        Self {
            generation: AtomicU64::new(0),
            lease_end_ns: AtomicU64::new(0),
            epoch: AtomicU64::new(1),
            pins: Mutex::default(),
        }
    }

    fn pins(&self) -> MutexGuard<'_, Vec<Weak<Pin>>> {
        // Pins are pushed whole, so a panic elsewhere leaves the list usable.
        self.pins.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Session `generation` stands, with a lease that ends then.
    pub(crate) fn begin(&self, generation: u64, lease_end_ns: u64) {
        // In this order: see `leased`.
        self.generation.store(generation, Ordering::SeqCst);
        self.lease_end_ns.store(lease_end_ns, Ordering::SeqCst);
    }

    /// The lease of the session ends then.
    pub(crate) fn renewed(&self, lease_end_ns: u64) {
        self.lease_end_ns.store(lease_end_ns, Ordering::SeqCst);
    }

    /// The session is over.
    pub(crate) fn end(&self) {
        self.lease_end_ns.store(0, Ordering::SeqCst);
    }

    /// Whether the lease of session `generation` still runs at `now_ns`.
    #[inline]
    pub(crate) fn leased(&self, generation: u64, now_ns: u64) -> bool {
        // In this order: a new session stores its generation before its lease.
        now_ns < self.lease_end_ns.load(Ordering::SeqCst)
            && self.generation.load(Ordering::SeqCst) == generation
    }

    /// Registers a reader; it stores the epoch that it reads under.
    fn add_pin(&self) -> Arc<Pin> {
        let pin = Arc::new(Pin {
            epoch: AtomicU64::new(UNPINNED),
            generation: AtomicU64::new(0),
        });
        let mut pins = self.pins();
        pins.retain(|pin| pin.strong_count() > 0);
        pins.push(Arc::downgrade(&pin));
        pin
    }

    /// The present epoch.
    #[inline]
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::SeqCst)
    }

    /// Begins an epoch: the tables have forgotten what was retired.
    fn next_epoch(&self) -> u64 {
        self.epoch.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// Whether no READ of an older epoch is in flight. Those of a session that is over do not count: their lease has
    /// ended, so nothing of them is accepted, and the server holds what they could read on its own account.
    fn quiesced(&self, epoch: u64) -> bool {
        let generation = self.generation.load(Ordering::SeqCst);
        let pins = self.pins();
        pins.iter().filter_map(Weak::upgrade).all(|pin| {
            pin.epoch.load(Ordering::SeqCst) >= epoch || pin.generation.load(Ordering::SeqCst) != generation
        })
    }
}

/// A number that was told and is to be acknowledged once nothing that it retired can be read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(crate) struct Debt(Option<(u64, u64)>);

impl Debt {
    /// RENEW's answer told `retired`, and the tables have forgotten what it retired.
    pub(crate) fn told(&mut self, retired: u64, session: &Session, tenure: &Tenure) {
        // The same number again: the epoch that began when it was first told is the one to wait for.
        let known = self.0.is_some_and(|(number, _)| number == retired);
        if session.lags() && !known {
            self.0 = Some((retired, tenure.next_epoch()));
        }
    }

    /// Has `session` acknowledge what is owed, if no READ of an older epoch is in flight.
    pub(crate) fn settle(&mut self, session: &mut Session, tenure: &Tenure) {
        if let Some((number, epoch)) = self.0
            && tenure.quiesced(epoch)
        {
            session.acknowledge(number);
            self.0 = None;
        }
    }
}

/// What a reader says of its READs in flight, in a line of the processor's cache (or two that are fetched together) that no
/// other reader's shares.
#[derive(Debug)]
#[repr(align(128))]
struct Pin {
    /// The oldest epoch that they were posted in.
    epoch: AtomicU64,
    /// The session that they are of.
    generation: AtomicU64,
}

/// Under what one lane reads: its pin, the view of its dataset, the session that its connection is of.
#[derive(Debug)]
pub(crate) struct Footing {
    pin: Arc<Pin>,
    pinned: u64,
    /// What is known of the dataset.
    pub(crate) view: Arc<View>,
    view_version: u64,
    /// The session that the lane's connection is of.
    pub(crate) generation: u64,
}

impl Footing {
    /// One that reads nothing yet.
    pub(crate) fn new(tenure: &Tenure, state: &DatasetState) -> Self {
        let (view_version, view) = state.view();
        Self {
            pin: tenure.add_pin(),
            pinned: UNPINNED,
            view,
            view_version,
            generation: 0,
        }
    }

    /// Says that READs posted from now on belong to the present epoch. The tables must be looked at after this.
    #[inline]
    pub(crate) fn pin(&mut self, tenure: &Tenure) {
        self.pinned = tenure.epoch();
        // Pairs with `Tenure::quiesced`: either it sees this pin, or the reader sees the tables that the epoch began
        // with.
        self.pin.generation.store(self.generation, Ordering::SeqCst);
        self.pin.epoch.store(self.pinned, Ordering::SeqCst);
    }

    /// Takes the latest view; whether READs may be posted under it at `now_ns`.
    #[inline]
    pub(crate) fn look(&mut self, tenure: &Tenure, state: &DatasetState, now_ns: u64) -> bool {
        if state.version() != self.view_version {
            (self.view_version, self.view) = state.view();
        }
        self.view.generation == self.generation && self.leased(tenure, now_ns)
    }

    /// Whether there is a newer view, or a newer epoch, than the one that is read under: what flies must land before
    /// more is posted, or the session's retirements would wait for the end of the batch.
    #[inline]
    pub(crate) fn is_behind(&self, tenure: &Tenure, state: &DatasetState) -> bool {
        state.version() != self.view_version || tenure.epoch() != self.pinned
    }

    /// Whether the lease that the connection was made under still runs.
    #[inline]
    pub(crate) fn leased(&self, tenure: &Tenure, now_ns: u64) -> bool {
        tenure.leased(self.generation, now_ns)
    }

    /// Lets the epoch go: nothing is in flight.
    #[inline]
    pub(crate) fn leave(&self) {
        self.pin.epoch.store(UNPINNED, Ordering::SeqCst);
    }
}

/// What a checker needs: copies that go on their own, and what makes two states differ.
#[cfg(test)]
mod forks {
    use super::*;
    use std::hash::{Hash, Hasher};

    impl Tenure {
        pub(crate) fn fork(&self) -> Self {
            let copy = |value: &AtomicU64| AtomicU64::new(value.load(Ordering::SeqCst));
            Self {
                generation: copy(&self.generation),
                lease_end_ns: copy(&self.lease_end_ns),
                epoch: copy(&self.epoch),
                pins: Mutex::default(),
            }
        }

        pub(crate) fn generation(&self) -> u64 {
            self.generation.load(Ordering::SeqCst)
        }

        pub(crate) fn digest(&self, hasher: &mut impl Hasher) {
            (self.generation(), self.lease_end_ns.load(Ordering::SeqCst)).hash(hasher);
        }
    }

    impl Debt {
        pub(crate) fn digest(&self, tenure: &Tenure, hasher: &mut impl Hasher) {
            self.0
                .map(|(number, epoch)| (number, tenure.epoch() - epoch))
                .hash(hasher);
        }
    }

    impl Footing {
        /// A copy that reads for `tenure`.
        pub(crate) fn fork(&self, tenure: &Tenure) -> Self {
            let pin = tenure.add_pin();
            let copy = |from: &AtomicU64, to: &AtomicU64| {
                to.store(from.load(Ordering::SeqCst), Ordering::SeqCst);
            };
            copy(&self.pin.generation, &pin.generation);
            copy(&self.pin.epoch, &pin.epoch);
            Self {
                pin,
                pinned: self.pinned,
                view: Arc::clone(&self.view),
                view_version: self.view_version,
                generation: self.generation,
            }
        }

        pub(crate) fn digest(&self, tenure: &Tenure, state: &DatasetState, hasher: &mut impl Hasher) {
            let pin = self.pin.epoch.load(Ordering::SeqCst);
            let behind =
                (pin != UNPINNED).then(|| (tenure.epoch() - pin, self.pin.generation.load(Ordering::SeqCst)));
            (behind, self.generation, state.version() == self.view_version).hash(hasher);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_quiesces_when_every_reader_has_left_the_older_ones() {
        let (tenure, state) = (Tenure::new(), DatasetState::new());
        let mut first = Footing::new(&tenure, &state);
        let mut second = Footing::new(&tenure, &state);
        first.pin(&tenure);
        let epoch = tenure.next_epoch();
        assert!(first.pinned < epoch && !tenure.quiesced(epoch));
        assert!(first.is_behind(&tenure, &state));
        second.pin(&tenure);
        assert!(!tenure.quiesced(epoch) && !second.is_behind(&tenure, &state));
        first.leave();
        assert!(tenure.quiesced(epoch));
        let later = tenure.next_epoch();
        assert!(!tenure.quiesced(later));
        // A reader that is gone holds nothing up.
        drop(second);
        assert!(tenure.quiesced(later));
    }

    /// A reader that nobody turned any more, with READs of a session long over, had every later session fenced: none
    /// could acknowledge a retirement.
    #[test]
    fn a_reader_of_a_session_that_is_over_holds_up_no_other() {
        let (tenure, state) = (Tenure::new(), DatasetState::new());
        tenure.begin(1, 100);
        let mut forgotten = Footing::new(&tenure, &state);
        forgotten.generation = 1;
        forgotten.pin(&tenure);
        let epoch = tenure.next_epoch();
        assert!(!tenure.quiesced(epoch));
        tenure.begin(2, 200);
        assert!(tenure.quiesced(epoch));
        forgotten.generation = 2;
        forgotten.pin(&tenure);
        assert!(!tenure.quiesced(tenure.next_epoch()));
    }

    #[test]
    fn a_lease_counts_only_for_its_own_session() {
        let tenure = Tenure::new();
        tenure.begin(3, 100);
        assert!(tenure.leased(3, 99));
        assert!(!tenure.leased(3, 100));
        assert!(!tenure.leased(2, 99));
        tenure.renewed(200);
        assert!(tenure.leased(3, 199));
        tenure.end();
        assert!(!tenure.leased(3, 0));
    }
}
