//! Connections that the device refused to destroy. Their peers may go on reading, so what they could read is held until
//! the device lets go of them, for ever if it never does (**I2**).

use std::sync::Arc;

use kv_fabric::ConnectionId;

use super::clock::BootMs;
use super::leases::Holds;
use super::run::Control;
use crate::store::{Charge, Dataset};

/// Time between two tries, ms.
const RETRY_MS: u64 = 1_000;
/// Tries; after the last nothing but a restart of the server helps.
pub(super) const TRIES_MAX: u32 = 64;

/// What goes with a connection, and stays for as long as it does.
pub(super) enum Kept {
    /// The dataset whose domain it is in, and up to where its session acknowledged what was retired of that.
    Data(Arc<Dataset>, u64),
    /// The memory of its frames.
    Control(#[allow(dead_code, reason = "held, not used")] Charge),
}

/// A connection that lives on though its session is over, or has closed its dataset.
pub(super) struct Undestroyed {
    /// What its peer may still read: a data connection's dataset, as it was acknowledged last.
    pub(super) holds: Holds,
    _kept: Kept,
    tries: u32,
    next: BootMs,
}

impl Undestroyed {
    /// When it is tried again, if ever.
    pub(super) fn deadline(&self) -> Option<BootMs> {
        (self.tries < TRIES_MAX).then_some(self.next)
    }
}

impl Control {
    /// Destroys a connection; where the device refuses, what goes with it, and all that its peer could read, stays.
    pub(super) fn destroy(&mut self, id: ConnectionId, kept: Kept) {
        let Err(error) = self.endpoint.destroy(id) else {
            return;
        };
        tracing::error!(
            connection = id.0, %error,
            "a connection cannot be destroyed: memory that its peer could read is neither freed nor reused until it is"
        );
        let mut holds = Holds::new(BootMs(0));
        if let Kept::Data(dataset, acked) = &kept {
            holds.opened(dataset.id(), *acked);
        }
        let undestroyed = Undestroyed {
            holds,
            _kept: kept,
            tries: 1,
            next: BootMs::now() + RETRY_MS,
        };
        self.undestroyed.insert(id, undestroyed);
    }

    /// Tries again to destroy what the device refused to.
    pub(super) fn retry_destroy(&mut self, now: BootMs) {
        let due: Vec<ConnectionId> = self
            .undestroyed
            .iter()
            .filter(|(_, undestroyed)| undestroyed.deadline().is_some_and(|at| at <= now))
            .map(|(id, _)| *id)
            .collect();
        for id in due {
            match self.endpoint.destroy(id) {
                Ok(()) => {
                    tracing::warn!(connection = id.0, "a connection is destroyed at last");
                    self.undestroyed.remove(&id);
                    self.releases.touch();
                }
                Err(error) => {
                    let Some(undestroyed) = self.undestroyed.get_mut(&id) else {
                        continue;
                    };
                    undestroyed.tries += 1;
                    undestroyed.next = now + RETRY_MS;
                    if undestroyed.tries == TRIES_MAX {
                        tracing::error!(
                            connection = id.0, %error,
                            "a connection could not be destroyed {TRIES_MAX} times: what its peer could read is held \
                             until the server is restarted"
                        );
                    }
                }
            }
        }
    }
}
