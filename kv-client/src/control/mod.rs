//! The control channel of a session: one background thread that owns the control connection, and what threads that
//! call share with it.
//!
//! - Calls hand requests in and wait for the reply in their [`Mailbox`]; the thread alone talks to the server. It
//!   sleeps while there is nothing to do and wakes to renew the lease.
//! - A session that ends (the connection is lost, the lease is over) is begun again when somebody waits for it. Each
//!   has a *generation*; a request is bound to the one that it was made for.
//! - What is retired is acknowledged when no reader can still be reading it: see [`tenure`].

mod serving;
pub(crate) mod tenure;
mod thread;

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use kv_fabric::{Fabric, RemoteRef};
use kv_proto::control::{Answer, Request};
use rustix::event::{EventfdFlags, eventfd};

use crate::clock::{Deadline, boot_ns};
use crate::mailbox::{Mailbox, Reply};
use crate::put::pool::Slot;
use crate::read::quarantine::Quarantine;
use crate::session::Established;
use crate::tables::DatasetState;
use crate::{ClientError, ClientOptions, ConnectionLimit};
use tenure::Tenure;

/// How long an attempt may take, past its deadline, to say that it failed.
const ATTEMPT_ENDS: Duration = Duration::from_secs(1);
/// Commands that wait for the control thread at most.
const COMMANDS_MAX: usize = 4096;

/// Bytes to WRITE before a frame is sent. The slot is held until the WRITE is done with it.
pub(crate) struct Write {
    pub(crate) source: Arc<Slot>,
    pub(crate) offset: usize,
    pub(crate) len: usize,
    pub(crate) to: RemoteRef,
}

pub(crate) enum Command {
    Request {
        generation: u64,
        request: Request,
        reply: Option<(Arc<Mailbox>, u64)>,
        write: Option<Write>,
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
    error: ClientError,
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
pub(crate) struct Shared {
    pub(crate) fabric: Arc<dyn Fabric>,
    pub(crate) address: String,
    pub(crate) options: ClientOptions,
    pub(crate) client_id: u64,
    state: Mutex<State>,
    changed: Condvar,
    inbox: Mutex<Vec<Command>>,
    wake: OwnedFd,
    pub(crate) tenure: Tenure,
    operation: AtomicU64,
    pub(crate) renewals: AtomicU64,
    pub(crate) sessions: AtomicU64,
    /// Data connections that there are, of all clients and readers.
    data_connections: AtomicUsize,
    /// Those of them that the device did not destroy.
    pub(crate) quarantine: Quarantine,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Everything behind these locks is replaced or pushed whole, so a panic elsewhere leaves it usable.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn new(fabric: Arc<dyn Fabric>, address: String, options: ClientOptions) -> Result<Self, ClientError> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(|error| {
            ClientError::System {
                call: "eventfd",
                source: Arc::new(error.into()),
            }
        })?;
        let client_id = match options.client_id {
            Some(id) => id,
            None => random_u64()?,
        };
        // Operations of a client id that outlives the process must go on above those of earlier processes.
        let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let first_operation = options
            .first_operation
            .unwrap_or_else(|| since_epoch.map_or(1, |span| span.as_micros() as u64));
        Ok(Self {
            fabric,
            address,
            options,
            client_id,
            state: Mutex::default(),
            changed: Condvar::new(),
            inbox: Mutex::default(),
            wake,
            tenure: Tenure::new(),
            operation: AtomicU64::new(first_operation),
            renewals: AtomicU64::new(0),
            sessions: AtomicU64::new(0),
            data_connections: AtomicUsize::new(0),
            quarantine: Quarantine::new(),
        })
    }

    /// Leave for one more data connection, or which limit is reached. It ends when it is dropped.
    pub(crate) fn permit(self: &Arc<Self>) -> Result<Permit, ConnectionLimit> {
        self.quarantine.retry(boot_ns());
        if self.quarantine.is_full() {
            return Err(ConnectionLimit::Undestroyed);
        }
        let limit = usize::from(self.options.session_connections);
        let before = self.data_connections.fetch_add(1, Ordering::Relaxed);
        let permit = Permit(Arc::clone(self));
        if before < limit {
            Ok(permit)
        } else {
            Err(ConnectionLimit::Session)
        }
    }

    fn ring(&self) {
        // The counter is drained at every wake, so it cannot overflow; other errors cannot happen to an eventfd.
        let rung = rustix::io::write(&self.wake, &1_u64.to_le_bytes());
        debug_assert!(rung.is_ok() || rung == Err(rustix::io::Errno::AGAIN));
    }

    /// A number for an operation, never given twice.
    pub(crate) fn next_operation(&self) -> u64 {
        self.operation.fetch_add(1, Ordering::Relaxed)
    }

    /// The session, begun again if it has to be. With `first`, the first failure is final.
    pub(crate) fn ensure(&self, deadline: Deadline, first: bool) -> Result<Arc<Up>, ClientError> {
        let failures = lock(&self.state).failures;
        self.ensure_after(failures, deadline, first)
    }

    /// As [`ensure`](Self::ensure); attempts up to this many failures are of no interest.
    fn ensure_after(&self, failures: u64, deadline: Deadline, first: bool) -> Result<Arc<Up>, ClientError> {
        let mut state = lock(&self.state);
        let mut waiting = false;
        let result = loop {
            if state.closing {
                break Err(ClientError::Closed);
            }
            let leased = state
                .up
                .as_ref()
                .filter(|up| self.tenure.leased(up.generation, boot_ns()));
            if let Some(up) = leased {
                break Ok(Arc::clone(up));
            }
            if state.failures > failures {
                let failure = state.failure.as_ref().filter(|failure| first || failure.definite);
                if let Some(failure) = failure {
                    break Err(failure.error.clone());
                }
            }
            let left = deadline.left();
            if left.is_zero() {
                let last = state.failure.as_ref().map(|failure| failure.error.to_string());
                break Err(ClientError::Timeout {
                    what: format!("session with {}", self.address),
                    after: if first {
                        self.options.connect_timeout
                    } else {
                        self.options.deadline
                    },
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

    /// Hands a command to the control thread. Its reply comes in any case, [`Reply::Lost`] where nothing can be done.
    pub(crate) fn submit(&self, command: Command) {
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
}

/// Leave for one data connection.
pub(crate) struct Permit(Arc<Shared>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.data_connections.fetch_sub(1, Ordering::Relaxed);
    }
}

fn reply_lost(command: Command) {
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
        source: Arc::new(std::io::Error::other(error.to_string())),
    })
}

/// A running session: the thread ends, with a BYE, when the last handle is dropped.
pub(crate) struct Handle {
    pub(crate) shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Handle {
    /// Begins a session and waits for it.
    pub(crate) fn start(
        fabric: Arc<dyn Fabric>,
        address: String,
        options: ClientOptions,
        deadline: Deadline,
    ) -> Result<Self, ClientError> {
        let shared = Arc::new(Shared::new(fabric, address, options)?);
        let thread = thread::spawn(Arc::clone(&shared), deadline)?;
        let handle = Self {
            shared,
            thread: Some(thread),
        };
        // The attempt ends by itself at the deadline, and says best why.
        let patience = Deadline::after(deadline.left() + ATTEMPT_ENDS);
        handle.shared.ensure_after(0, patience, true)?;
        Ok(handle)
    }
}

impl Drop for Handle {
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
