//! Connections that the device refused to destroy, of all engines of a session. Their READs may still reach memory, so what they
//! write to is held here until the device lets go of them (**I5**).
//!
//! They are tried again by whoever waits for one, at each renewal of the session, and before a further connection is made.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use kv_fabric::{DataConnection, Region};

use super::slots::Slot;

/// Time between two tries, ns.
pub(super) const RETRY_NS: u64 = 50_000_000;
/// Connections of one session that are held before it makes no further one.
const HELD_MAX: usize = 16;

/// A connection that lives on, and the memory of the engine's own that its READs go to.
pub(crate) struct Undestroyed {
    // In this order: the connection goes before the memory.
    connection: Box<dyn DataConnection>,
    _ring: Option<Region>,
    _slots: Arc<Vec<Slot>>,
}

impl Undestroyed {
    /// `slots` are those that its READs go to, and maybe others.
    pub(super) fn new(refused: Refused, slots: Arc<Vec<Slot>>) -> Self {
        Self {
            connection: refused.connection,
            _ring: refused.ring,
            _slots: slots,
        }
    }
}

/// What a lane gives up when its connection is not destroyed.
pub(super) struct Refused {
    pub(super) connection: Box<dyn DataConnection>,
    pub(super) ring: Option<Region>,
}

/// Tells once a connection is destroyed: nothing that was in flight on it reaches memory any more.
#[derive(Debug, Clone, Default)]
pub(crate) struct Gone(Arc<AtomicBool>);

impl Gone {
    pub(super) fn is(&self) -> bool {
        // Pairs with `Quarantine::retry`: memory that the device no longer writes is looked at after this.
        self.0.load(Ordering::Acquire)
    }
}

struct Entry {
    undestroyed: Undestroyed,
    gone: Gone,
    tries: u64,
}

struct Held {
    entries: Vec<Entry>,
    next_try_ns: u64,
}

/// The connections of one session that are held.
pub(crate) struct Quarantine {
    /// So that the usual case takes no lock.
    count: AtomicUsize,
    held: Mutex<Held>,
}

impl Quarantine {
    pub(crate) fn new() -> Self {
        Self {
            count: AtomicUsize::new(0),
            held: Mutex::new(Held {
                entries: Vec::new(),
                next_try_ns: 0,
            }),
        }
    }

    /// Whether so many are held that no further connection is made.
    pub(crate) fn is_full(&self) -> bool {
        self.count.load(Ordering::Relaxed) >= HELD_MAX
    }

    /// Holds a connection until it is destroyed.
    pub(crate) fn hold(&self, undestroyed: Undestroyed) -> Gone {
        let gone = Gone::default();
        let entry = Entry {
            undestroyed,
            gone: gone.clone(),
            tries: 1,
        };
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.entries.push(entry);
        self.count.store(held.entries.len(), Ordering::Relaxed);
        gone
    }

    /// Tries again to destroy what is held, unless that was tried just now.
    pub(crate) fn retry(&self, now_ns: u64) {
        if self.count.load(Ordering::Relaxed) == 0 {
            return;
        }
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if now_ns < held.next_try_ns {
            return;
        }
        held.next_try_ns = now_ns.saturating_add(RETRY_NS);
        let entries = std::mem::take(&mut held.entries);
        held.entries = entries.into_iter().filter_map(try_again).collect();
        self.count.store(held.entries.len(), Ordering::Relaxed);
    }
}

/// Destroys what an entry holds; the entry again where the device refuses.
fn try_again(entry: Entry) -> Option<Entry> {
    let Entry {
        undestroyed: Undestroyed {
            connection,
            _ring,
            _slots,
        },
        gone,
        tries,
    } = entry;
    let Err(refused) = connection.destroy() else {
        tracing::warn!(tries, "a data connection is destroyed at last");
        gone.0.store(true, Ordering::Release);
        return None;
    };
    let tries = tries + 1;
    if tries.is_power_of_two() {
        tracing::error!(tries, error = %refused.error, "a data connection cannot be destroyed: what it may write to is held");
    }
    let undestroyed = Undestroyed {
        connection: refused.live,
        _ring,
        _slots,
    };
    Some(Entry {
        undestroyed,
        gone,
        tries,
    })
}
