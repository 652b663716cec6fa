//! The control channel of a session: one background thread that owns the control connection, and what threads that
//! call share with it.
//!
//! - Calls hand requests in and wait for the reply in their [`Mailbox`]; the thread alone talks to the server. It
//!   sleeps while there is nothing to do and wakes to renew the lease.
//! - A session that ends (the connection is lost, the lease is over) is begun again when somebody waits for it. Each
//!   has a *generation*; a request is bound to the one that it was made for.
//! - Retirements: readers pin the *epoch* that they read under. A number is acknowledged only when no pin is older than
//!   the epoch that began after the tables had forgotten what was retired.

mod serving;
mod thread;

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;

use kv_fabric::{Fabric, RemoteRef};
use kv_proto::control::{Answer, Request, Status};
use rustix::event::{EventfdFlags, eventfd};

use crate::clock::{Deadline, boot_ns};
use crate::mailbox::{Mailbox, Reply};
use crate::put::pool::Slot;
use crate::session::Established;
use crate::tables::DatasetState;
use crate::{ClientError, ClientOptions};

/// Commands that wait for the control thread at most.
const COMMANDS_MAX: usize = 4096;
/// A pin that pins nothing.
pub(crate) const UNPINNED: u64 = u64::MAX;

/// Bytes to WRITE before a frame is sent. The slot is held until the WRITE is done with it.
pub(crate) struct Write<F: Fabric> {
    pub(crate) source: Arc<Slot<F>>,
    pub(crate) offset: usize,
    pub(crate) len: usize,
    pub(crate) to: RemoteRef,
}

pub(crate) enum Command<F: Fabric> {
    Request {
        generation: u64,
        request: Request,
        reply: Option<(Arc<Mailbox>, u64)>,
        write: Option<Write<F>>,
        dataset: Option<Arc<DatasetState>>,
    },
    Renew {
        generation: u64,
        mailbox: Arc<Mailbox>,
        tag: u64,
    },
}

/// A session that stands.
#[derive(Debug)]
pub(crate) struct Up {
    pub(crate) generation: u64,
    pub(crate) info: Established,
}

/// Why the latest attempt at a session failed.
struct Failure {
    error: Option<ClientError>,
    text: String,
    status: Option<Status>,
    /// Trying again cannot help.
    definite: bool,
}

#[derive(Default)]
struct State {
    up: Option<Arc<Up>>,
    waiters: usize,
    failures: u64,
    failure: Option<Failure>,
    closing: bool,
}

/// What the control thread and the callers share.
pub(crate) struct Shared<F: Fabric> {
    pub(crate) fabric: Arc<F>,
    pub(crate) address: String,
    pub(crate) options: ClientOptions,
    pub(crate) client_id: u64,
    state: Mutex<State>,
    changed: Condvar,
    inbox: Mutex<Vec<Command<F>>>,
    wake: OwnedFd,
    generation: AtomicU64,
    lease_end_ns: AtomicU64,
    epoch: AtomicU64,
    pins: Mutex<Vec<Weak<AtomicU64>>>,
    operation: AtomicU64,
    pub(crate) renewals: AtomicU64,
    pub(crate) sessions: AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Everything behind these locks is replaced or pushed whole, so a panic elsewhere leaves it usable.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<F: Fabric> Shared<F> {
    fn new(fabric: Arc<F>, address: String, options: ClientOptions) -> Result<Self, ClientError> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(|error| {
            ClientError::System {
                call: "eventfd",
                source: error.into(),
            }
        })?;
        let client_id = match options.client_id {
            Some(id) => id,
            None => random_u64()?,
        };
        // Operations of a client id that outlives the process must go on above those of earlier processes.
        let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let first_operation = since_epoch.map_or(1, |span| span.as_micros() as u64);
        Ok(Self {
            fabric,
            address,
            options,
            client_id,
            state: Mutex::default(),
            changed: Condvar::new(),
            inbox: Mutex::default(),
            wake,
            generation: AtomicU64::new(0),
            lease_end_ns: AtomicU64::new(0),
            epoch: AtomicU64::new(1),
            pins: Mutex::default(),
            operation: AtomicU64::new(first_operation),
            renewals: AtomicU64::new(0),
            sessions: AtomicU64::new(0),
        })
    }

    fn ring(&self) {
        // The counter is drained at every wake, so it cannot overflow; other errors cannot happen to an eventfd.
        let rung = rustix::io::write(&self.wake, &1_u64.to_le_bytes());
        debug_assert!(rung.is_ok() || rung == Err(rustix::io::Errno::AGAIN));
    }

    /// Whether the lease of session `generation` still runs at `now_ns`.
    #[inline]
    pub(crate) fn leased(&self, generation: u64, now_ns: u64) -> bool {
        // In this order: a new session stores its generation before its lease.
        now_ns < self.lease_end_ns.load(Ordering::SeqCst)
            && self.generation.load(Ordering::SeqCst) == generation
    }

    /// A number for an operation, never given twice.
    pub(crate) fn next_operation(&self) -> u64 {
        self.operation.fetch_add(1, Ordering::Relaxed)
    }

    /// Registers a reader; it stores the epoch that it reads under, or [`UNPINNED`].
    pub(crate) fn add_pin(&self) -> Arc<AtomicU64> {
        let pin = Arc::new(AtomicU64::new(UNPINNED));
        let mut pins = lock(&self.pins);
        pins.retain(|pin| pin.strong_count() > 0);
        pins.push(Arc::downgrade(&pin));
        pin
    }

    /// Says that READs posted from now on belong to the present epoch. The tables must be looked at after this.
    #[inline]
    pub(crate) fn pin(&self, pin: &AtomicU64) -> u64 {
        let epoch = self.epoch();
        // Pairs with `quiesced`: either it sees this pin, or the reader sees the tables that the epoch began with.
        pin.store(epoch, Ordering::SeqCst);
        epoch
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

    /// Whether no READ of an older epoch is in flight.
    fn quiesced(&self, epoch: u64) -> bool {
        let pins = lock(&self.pins);
        pins.iter()
            .filter_map(Weak::upgrade)
            .all(|pin| pin.load(Ordering::SeqCst) >= epoch)
    }

    /// The session, begun again if it has to be. With `first`, the first failure is final.
    pub(crate) fn ensure(&self, deadline: Deadline, first: bool) -> Result<Arc<Up>, ClientError> {
        let mut state = lock(&self.state);
        let failures = state.failures;
        let mut waiting = false;
        let result = loop {
            if state.closing {
                break Err(ClientError::Closed);
            }
            let leased = state
                .up
                .as_ref()
                .filter(|up| self.leased(up.generation, boot_ns()));
            if let Some(up) = leased {
                break Ok(Arc::clone(up));
            }
            if state.failures > failures {
                let failure = state.failure.as_mut().filter(|failure| first || failure.definite);
                if let Some(failure) = failure {
                    break Err(failure.error.take().unwrap_or_else(|| self.refusal(failure)));
                }
            }
            let left = deadline.left();
            if left.is_zero() {
                let last = state.failure.as_ref().map(|failure| failure.text.clone());
                break Err(ClientError::Timeout {
                    what: format!("session with {}", self.address),
                    after: self.options.deadline,
                    last: last.unwrap_or_else(|| "no answer".to_owned()),
                });
            }
            if !waiting {
                waiting = true;
                state.waiters += 1;
                self.ring();
            }
            let (woken, _) = self
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner);
            state = woken;
        };
        state.waiters -= usize::from(waiting);
        result
    }

    fn refusal(&self, failure: &Failure) -> ClientError {
        match failure.status {
            Some(status) => ClientError::Refused {
                what: format!("session with {}", self.address),
                text: failure.text.clone(),
                status,
            },
            None => ClientError::Timeout {
                what: format!("session with {}", self.address),
                after: self.options.connect_timeout,
                last: failure.text.clone(),
            },
        }
    }

    /// Hands a command to the control thread. Its reply comes in any case, [`Reply::Lost`] where nothing can be done.
    pub(crate) fn submit(&self, command: Command<F>) {
        let refused = {
            let mut inbox = lock(&self.inbox);
            if inbox.len() >= COMMANDS_MAX {
                Some(command)
            } else {
                inbox.push(command);
                None
            }
        };
        match refused {
            Some(command) => reply_lost(command),
            None => self.ring(),
        }
    }

    /// Asks and waits.
    pub(crate) fn ask(
        &self,
        generation: u64,
        request: Request,
        dataset: Option<Arc<DatasetState>>,
        deadline: Deadline,
    ) -> Option<Reply> {
        let mailbox = Arc::new(Mailbox::default());
        self.submit(Command::Request {
            generation,
            request,
            reply: Some((Arc::clone(&mailbox), 0)),
            write: None,
            dataset,
        });
        mailbox.wait(deadline).map(|(_, reply)| reply)
    }

    /// Renews, and waits until the tables know what changed; whether they do.
    pub(crate) fn renew_now(&self, generation: u64, deadline: Deadline) -> bool {
        let mailbox = Arc::new(Mailbox::default());
        self.submit(Command::Renew {
            generation,
            mailbox: Arc::clone(&mailbox),
            tag: 0,
        });
        matches!(mailbox.wait(deadline), Some((_, Reply::Renewed)))
    }
}

fn reply_lost<F: Fabric>(command: Command<F>) {
    match command {
        Command::Request { reply, write, .. } => {
            drop(write);
            if let Some((mailbox, tag)) = reply {
                mailbox.deliver(tag, Reply::Lost);
            }
        }
        Command::Renew { mailbox, tag, .. } => mailbox.deliver(tag, Reply::Lost),
    }
}

pub(crate) fn random_u64() -> Result<u64, ClientError> {
    let mut bytes = [0; 8];
    random(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

fn random(bytes: &mut [u8]) -> Result<(), ClientError> {
    getrandom::fill(bytes).map_err(|error| ClientError::System {
        call: "getrandom",
        source: std::io::Error::other(error.to_string()),
    })
}

/// A running session: the thread ends, with a BYE, when the last handle is dropped.
pub(crate) struct Handle<F: Fabric> {
    pub(crate) shared: Arc<Shared<F>>,
    thread: Option<JoinHandle<()>>,
}

impl<F: Fabric> Handle<F> {
    /// Begins a session and waits for it.
    pub(crate) fn start(
        fabric: Arc<F>,
        address: String,
        options: ClientOptions,
    ) -> Result<Self, ClientError> {
        let wait = options.connect_timeout;
        let shared = Arc::new(Shared::new(fabric, address, options)?);
        let thread = thread::spawn(Arc::clone(&shared))?;
        let handle = Self {
            shared,
            thread: Some(thread),
        };
        handle.shared.ensure(Deadline::after(wait), true)?;
        Ok(handle)
    }
}

impl<F: Fabric> Drop for Handle<F> {
    fn drop(&mut self) {
        lock(&self.shared.state).closing = true;
        self.shared.ring();
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the control thread panicked");
        }
    }
}

/// The error of a request that was refused or came to nothing.
pub(crate) fn refused(what: impl Into<String>, refused: kv_proto::control::Refused) -> ClientError {
    ClientError::Refused {
        what: what.into(),
        text: refused.text,
        status: refused.status,
    }
}

/// The error of an answer of the wrong kind: the session checks kinds, so this is not seen.
pub(crate) fn unexpected(peer: &str, answer: &Answer) -> ClientError {
    ClientError::Protocol {
        peer: peer.to_owned(),
        why: format!("it answered with {answer:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::AccessKey;
    use kv_fabric::local::Local;

    #[test]
    fn an_epoch_quiesces_when_every_reader_has_left_the_older_ones() {
        let options = ClientOptions::new(AccessKey::new("k", [0; 32]));
        let fabric = Arc::new(Local::new().unwrap());
        let shared = Shared::new(fabric, "nowhere".to_owned(), options).unwrap();
        let (first, second) = (shared.add_pin(), shared.add_pin());
        let before = shared.pin(&first);
        let epoch = shared.next_epoch();
        assert!(before < epoch && !shared.quiesced(epoch));
        shared.pin(&second);
        assert!(!shared.quiesced(epoch));
        first.store(UNPINNED, Ordering::SeqCst);
        assert!(shared.quiesced(epoch));
        let later = shared.next_epoch();
        assert!(!shared.quiesced(later));
        // A reader that is gone holds nothing up.
        drop(second);
        assert!(shared.quiesced(later));
    }

    #[test]
    fn a_lease_counts_only_for_its_own_session() {
        let options = ClientOptions::new(AccessKey::new("k", [0; 32]));
        let fabric = Arc::new(Local::new().unwrap());
        let shared = Shared::new(fabric, "nowhere".to_owned(), options).unwrap();
        shared.generation.store(3, Ordering::SeqCst);
        shared.lease_end_ns.store(100, Ordering::SeqCst);
        assert!(shared.leased(3, 99));
        assert!(!shared.leased(3, 100));
        assert!(!shared.leased(2, 99));
    }
}
