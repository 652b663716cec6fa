//! One process, and a network that goes wrong from a seed.
//!
//! A [`Sim`] is a network; its clones are the processes on it. Bytes really move: a READ is a copy out of the
//! server's [`Memory`] at the moment, or the several moments, at which it is carried out, so that a writer really
//! tears it. What goes wrong, and how often, [`SimFaults`] says. Each connection draws from a stream of its own, named
//! by the seed and by the order of connecting, so a seed gives the same faults to the same operations; how the
//! threads of a program interleave is not in its hands.
//!
//! What never goes wrong is what the seam promises: order, rights, ownership, and fencing where the device does not
//! say that it failed. [`Sim::unfenced`] does not fence, as `local` does not: READs go on after the server has ended
//! their connection, and memory that was given up stays readable, overwritten.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::{
    ControlConnection, ControlOptions, DataConnection, Fabric, FabricError, Memory, MemoryKind,
    PRIVATE_MAX_BYTES, Region, Stage, check,
};

mod clock;
mod control;
mod data;
mod domain;
mod endpoint;
mod fault;
mod inbox;

pub use fault::{ReplayHint, SEED_VARIABLE, SimFaults, SimInjected, seed_from_env};

use clock::RunningClock;
use control::Control;
use data::Data;
use domain::{Domain, Names, Shared};
use endpoint::Endpoint;
use fault::{Faults, Random};
use inbox::{Answer, Inbox, Request, Wanted};

/// Longest READ, bytes.
const READ_MAX_BYTES: usize = 8 * 1024 * 1024;
/// READs that a connection is said to have under way at once, as on usual devices.
const READS_AT_ONCE: usize = 16;

/// How a network behaves.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct SimOptions {
    /// What the faults are drawn from.
    pub seed: u64,
    /// What goes wrong.
    pub faults: SimFaults,
}

#[derive(Debug)]
struct Net {
    faults: Arc<Faults>,
    clock: RunningClock,
    names: Arc<Names>,
    listeners: Mutex<HashMap<String, Arc<Inbox>>>,
    connections: AtomicU64,
    ports: AtomicU64,
}

impl Net {
    fn listeners(&self) -> MutexGuard<'_, HashMap<String, Arc<Inbox>>> {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unlisten(&self, address: &str) {
        self.listeners().remove(address);
    }
}

/// A simulated network, which fences or not, as one host on it sees it.
#[derive(Debug, Clone)]
pub struct Sim {
    net: Arc<Net>,
    fences: bool,
    /// Name of the host; empty where servers are not to know it.
    host: String,
}

impl Sim {
    /// A new network, with nobody on it.
    ///
    /// # Panics
    /// If the process can start no thread.
    #[must_use]
    pub fn new(options: SimOptions) -> Self {
        Self::of(options, true)
    }

    /// One that cannot fence.
    ///
    /// # Panics
    /// As [`Sim::new`].
    #[must_use]
    pub fn unfenced(options: SimOptions) -> Self {
        Self::of(options, false)
    }

    fn of(options: SimOptions, fences: bool) -> Self {
        let net = Net {
            faults: Arc::new(Faults::new(options.seed, options.faults)),
            clock: RunningClock::start().expect("the process can start a thread"),
            names: Arc::new(Names::new(options.seed)),
            listeners: Mutex::default(),
            connections: AtomicU64::new(0),
            ports: AtomicU64::new(1),
        };
        Self {
            net: Arc::new(net),
            fences,
            host: String::new(),
        }
    }

    /// The same network, seen from a host that servers know by name.
    #[must_use]
    pub fn from_host(&self, host: &str) -> Self {
        Self {
            net: Arc::clone(&self.net),
            fences: self.fences,
            host: host.to_owned(),
        }
    }

    /// How often each thing went wrong so far.
    #[must_use]
    pub fn injected(&self) -> SimInjected {
        SimInjected {
            reuses: self.net.names.reuses(),
            ..self.net.faults.injected()
        }
    }

    /// Most bytes of WRITEs that were under way when a client sent a frame after them.
    #[must_use]
    pub fn write_ahead_max_bytes(&self) -> u64 {
        self.net.faults.write_ahead_max_bytes()
    }

    /// Changes what goes wrong from now on.
    pub fn set_faults(&self, faults: SimFaults) {
        self.net.faults.set(faults);
    }

    /// Asks for a connection and waits for the answer.
    fn connect(
        &self,
        address: &str,
        private: &[u8],
        wanted: Wanted,
        deadline: Instant,
    ) -> Result<Answer, FabricError> {
        if private.len() > PRIVATE_MAX_BYTES {
            return Err(FabricError::Unsupported("private data of more than 56 bytes"));
        }
        let refused = |why: &str| FabricError::Connect {
            stage: Stage::Connect,
            address: address.to_owned(),
            source: io::Error::new(io::ErrorKind::ConnectionRefused, why),
        };
        let timeout = || FabricError::Timeout {
            stage: Stage::Connect,
            address: address.to_owned(),
        };
        let stream = self.net.connections.fetch_add(1, Ordering::Relaxed);
        let faults = &self.net.faults;
        if faults.loses_request(&mut Random::new(faults.seed, u64::MAX - stream)) {
            std::thread::sleep(deadline.saturating_duration_since(Instant::now()));
            return Err(timeout());
        }
        let inbox = self.net.listeners().get(address).cloned();
        let request = Arc::new(Request::new(wanted, stream));
        let heard = inbox.is_some_and(|inbox| inbox.request(Arc::clone(&request), private, &self.host));
        if !heard {
            return Err(refused("nobody listens: is the server running?"));
        }
        match request.wait(deadline) {
            Answer::Waiting | Answer::Abandoned => Err(timeout()),
            Answer::Rejected(reason) => Err(FabricError::Rejected {
                address: address.to_owned(),
                reason,
            }),
            Answer::EndpointGone => Err(refused("the server left")),
            answer => Ok(answer),
        }
    }
}

impl Fabric for Sim {
    fn name(&self) -> &'static str {
        "sim"
    }

    fn fences(&self) -> bool {
        self.fences
    }

    fn describe(&self) -> String {
        format!("sim: one process, seed {:#x}", self.net.faults.seed)
    }

    fn read_max_bytes(&self) -> usize {
        READ_MAX_BYTES
    }

    fn reads_at_once(&self) -> usize {
        READS_AT_ONCE
    }

    fn domain(&self) -> Result<Arc<dyn crate::Domain>, FabricError> {
        let shared = Shared::new(Arc::clone(&self.net.names), self.fences);
        Ok(Arc::new(Domain {
            shared: Arc::new(shared),
        }))
    }

    fn listen(&self, address: &str) -> Result<Box<dyn crate::Endpoint>, FabricError> {
        let address = match address.strip_suffix(":0") {
            Some(host) => format!("{host}:{}", self.net.ports.fetch_add(1, Ordering::Relaxed)),
            None => address.to_owned(),
        };
        let inbox = Arc::new(Inbox::new()?);
        match self.net.listeners().entry(address.clone()) {
            Entry::Occupied(_) => Err(FabricError::Connect {
                stage: Stage::Listen,
                address,
                source: io::Error::new(
                    io::ErrorKind::AddrInUse,
                    "address in use: another server listens there; stop it or choose another",
                ),
            }),
            Entry::Vacant(free) => {
                free.insert(Arc::clone(&inbox));
                Ok(Box::new(Endpoint::new(Arc::clone(&self.net), address, inbox)))
            }
        }
    }

    fn allocate(&self, len: usize) -> Result<Region, FabricError> {
        Ok(Region::unregistered(Memory::new(len, MemoryKind::Private)?))
    }

    #[allow(
        unsafe_code,
        reason = "the caller's obligations are those of `Memory::borrowed`"
    )]
    unsafe fn register(&self, start: NonNull<u8>, len: usize) -> Result<Region, FabricError> {
        check::registered_len(len)?;
        // SAFETY: the memory is mapped as long as the region is used or a READ to it is under way, and nothing else accesses
        // it meanwhile: the caller vouches for both.
        let memory = unsafe { Memory::borrowed(start, len) };
        Ok(Region::unregistered(memory))
    }

    fn connect_control(
        &self,
        address: &str,
        request: &[u8],
        options: ControlOptions,
        deadline: Instant,
    ) -> Result<Box<dyn ControlConnection>, FabricError> {
        match self.connect(address, request, Wanted::Control(options), deadline)? {
            Answer::Control(link) => Ok(Box::new(Control(link))),
            _ => Err(FabricError::Unsupported(
                "a control request answered with a data connection",
            )),
        }
    }

    fn connect_data(
        &self,
        address: &str,
        request: &[u8],
        reads_max: u32,
        deadline: Instant,
    ) -> Result<Box<dyn DataConnection>, FabricError> {
        match self.connect(address, request, Wanted::Data { reads_max }, deadline)? {
            Answer::Data(link) => Ok(Box::new(Data::new(link))),
            _ => Err(FabricError::Unsupported(
                "a data request answered with a control connection",
            )),
        }
    }
}
