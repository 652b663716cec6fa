//! What both ends of verbs-kv ask of a network, and its three answers.
//!
//! - `verbs`: the product; RC queue pairs over libibverbs and librdmacm.
//! - `local`: the same host, through shared read-only mappings passed over a Unix socket.
//! - `sim`: one process; moves real bytes and, from a seed, delays, tears, reorders, errors and disconnects.
//!
//! [`Fabric`] is the seam, and its traits are used as `dyn`: a post and a poll are one call each for many READs, and
//! client and server are compiled once, not once for each answer and each program.
//!
//! # What every fabric promises
//! - **Order.** Frames of one control connection arrive in the order sent; a [`ControlConnection::write`] is in the
//!   server's staging memory before a frame sent after it arrives. READs of one data connection may overlap in time.
//! - **Rights.** A peer can READ what was registered with the domain that its data connection was accepted into, and
//!   nothing else; it can WRITE its own staging memory, and nothing else (**I3**).
//! - **Ownership.** Memory handed to a post is held by the fabric at least as long as it may be written, and at most until its
//!   batch is done or the connection was destroyed. Its owner may touch it again once the completion was returned by `poll`,
//!   or the connection was destroyed (**I5**).
//! - **Errors.** The first failed operation closes a connection; what was posted after it completes as
//!   [`ReadStatus::Flushed`] or is gone with the connection. Nothing succeeds after an error.
//! - **Fencing.** After [`Endpoint::destroy`] succeeded, the peer's operations have no effect any more, on `verbs` and
//!   `sim`. On `local` mappings outlive it: [`Fabric::fences`] says which.

use std::any::Any;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::{Duration, Instant};

mod bell;
mod check;
mod error;
mod held;
pub mod local;
mod memory;
mod region;
pub mod sim;
pub mod stop;
pub mod verbs;

pub use error::{FabricError, NotDestroyed, Stage};
pub use memory::{Memory, MemoryKind};
pub use region::Region;

/// An address that a peer may READ or WRITE, and the key that lets it.
///
/// On `local` the rkey is a number for the memory and the address an offset in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct RemoteRef {
    /// Address.
    pub address: u64,
    /// Rkey.
    pub rkey: u32,
}

impl RemoteRef {
    /// The same memory, `bytes` further on.
    #[must_use]
    pub const fn offset(self, bytes: u64) -> Self {
        Self {
            address: self.address.wrapping_add(bytes),
            rkey: self.rkey,
        }
    }
}

/// Most pieces that one READ is scattered to: the prefix of a record, and its value.
pub const SCATTER_MAX: usize = 2;

/// Longest private data of a connection request, bytes: what the connection manager of `verbs` carries.
pub const PRIVATE_MAX_BYTES: usize = 56;

/// Longest reason of [`Endpoint::reject`], bytes; the rest is cut.
pub const REASON_MAX_BYTES: usize = 148;

/// A network, as one process sees it.
pub trait Fabric: Send + Sync + 'static {
    /// `verbs`, `local` or `sim`.
    fn name(&self) -> &'static str;

    /// For how long a client's READs may succeed after the server has gone, its process included. A server that takes
    /// its place answers nobody before that.
    fn outlives(&self) -> Duration {
        Duration::ZERO
    }

    /// Whether [`Endpoint::destroy`] ends a peer's reads: see *Fencing* above.
    fn fences(&self) -> bool;

    /// What was chosen, for people: device, port, GID and why, MTU.
    fn describe(&self) -> String;

    /// Longest READ, bytes.
    fn read_max_bytes(&self) -> usize;

    /// READs that one data connection has under way at once at most, as far as this end knows:
    /// [`DataConnection::reads_at_once`] says what was agreed.
    fn reads_at_once(&self) -> usize {
        usize::MAX
    }

    /// A new, empty protection domain.
    ///
    /// # Errors
    /// [`FabricError`] if the device refuses.
    fn domain(&self) -> Result<Arc<dyn Domain>, FabricError>;

    /// Listens on `address` (`host:port`, or the path of a socket).
    ///
    /// # Errors
    /// [`FabricError`] with the address and what to do: taken, not this machine's, no permission.
    fn listen(&self, address: &str) -> Result<Box<dyn Endpoint>, FabricError>;

    /// Client memory of `len` bytes, zeroed, registered once.
    ///
    /// # Errors
    /// [`FabricError::Memory`] if it cannot be mapped or registered.
    fn allocate(&self, len: usize) -> Result<Region, FabricError>;

    /// Registers the caller's memory.
    ///
    /// # Errors
    /// [`FabricError::Memory`] if it cannot be registered.
    ///
    /// # Safety
    /// - `start..start + len` is mapped readable and writable until all that the caller has of the region is dropped, and every
    ///   READ to it has completed or its connection was destroyed. What a fabric still holds of it then touches nothing.
    /// - While a READ to it is posted nothing else accesses it.
    #[allow(
        unsafe_code,
        reason = "declares an obligation of the caller; the answers discharge it"
    )]
    unsafe fn register(&self, start: NonNull<u8>, len: usize) -> Result<Region, FabricError>;

    /// Opens a control connection; `request` is the private data of the connection request.
    ///
    /// # Errors
    /// [`FabricError`] with the stage that failed; [`FabricError::Timeout`] at `deadline`.
    fn connect_control(
        &self,
        address: &str,
        request: &[u8],
        options: ControlOptions,
        deadline: Instant,
    ) -> Result<Box<dyn ControlConnection>, FabricError>;

    /// Opens a data connection that holds up to `reads_max` READs; `request` is the private data.
    ///
    /// # Errors
    /// As [`Fabric::connect_control`]; [`FabricError::Rejected`] if the server refuses the token.
    fn connect_data(
        &self,
        address: &str,
        request: &[u8],
        reads_max: u32,
        deadline: Instant,
    ) -> Result<Box<dyn DataConnection>, FabricError>;
}

/// Sizes of a control connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ControlOptions {
    /// Receives kept posted.
    pub receives: u16,
    /// Length of each, bytes: the longest frame.
    pub frame_bytes: usize,
}

/// Frames that may be under way to a peer for each receive: answers and requests both stay below it.
pub(crate) const SENDS_PER_RECEIVE: usize = 2;

impl ControlOptions {
    /// Most memory that frames of one such connection take at one end, bytes: those received, and those under way.
    #[must_use]
    pub const fn memory_bytes(&self) -> u64 {
        (self.receives as usize * (1 + SENDS_PER_RECEIVE) * self.frame_bytes) as u64
    }
}

/// A protection domain: what the data connections accepted into it may READ.
pub trait Domain: Any + Send + Sync {
    /// Lets the domain's connections READ `memory`, and do nothing else to it, until what is returned is dropped.
    ///
    /// # Errors
    /// [`FabricError::Memory`] with the length and the limit that was met.
    fn register(&self, memory: Arc<Memory>) -> Result<Box<dyn Registration>, FabricError>;
}

/// Registered memory of a server. It holds the memory, and ends the peers' access when dropped.
pub trait Registration: Send + Sync + 'static {
    /// Where a peer finds its first byte.
    fn remote(&self) -> RemoteRef;

    /// Says that nobody can READ these bytes any more as what they were, and that they become something else. No
    /// network need care; `sim` counts the READs that reach them all the same.
    fn reused(&self, offset: usize, len: usize) {
        let _ = (offset, len);
    }
}

/// A domain as one of a fabric's own.
///
/// # Panics
/// If it is another fabric's.
pub(crate) fn own<D: Domain>(domain: &dyn Domain) -> &D {
    (domain as &dyn Any)
        .downcast_ref()
        .expect("a domain of the same kind of fabric")
}

/// Names a connection of an endpoint; never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

/// Names a connection request of an endpoint; never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RequestId(pub u64);

/// What happened at an endpoint.
#[derive(Debug)]
pub enum EndpointEvent {
    /// Somebody wants to connect: answer with accept or reject.
    Request {
        /// The request.
        request: RequestId,
        /// Its private data; may be padded with zeroes.
        private: Vec<u8>,
        /// Who, for people.
        peer: String,
        /// Where it comes from: what one peer has few of, so that each may be given a share. The address of its host on
        /// `verbs`, its user on `local`; empty where that is not known.
        origin: String,
    },
    /// An accepted connection stands.
    Established(ConnectionId),
    /// A frame arrived on a control connection.
    Frame(ConnectionId, Vec<u8>),
    /// The connection is over: the peer left, vanished, or broke a rule. Only [`Endpoint::destroy`] may follow.
    Closed(ConnectionId, String),
}

/// A server's end: one listener and all the connections that came from it, driven by one thread.
pub trait Endpoint: Send + 'static {
    /// Readable when [`Endpoint::poll`] may have something; stays quiet while nothing happens.
    fn fd(&self) -> BorrowedFd<'_>;

    /// Address that it listens on, the port filled in.
    fn address(&self) -> String;

    /// Appends what happened to `events`; returns without waiting. [`Endpoint::fd`] is readable while there is more, but
    /// for what comes of a request that was answered since: after a [`EndpointEvent::Request`] poll once again.
    ///
    /// # Errors
    /// [`FabricError`] if the endpoint itself failed (the device is gone): nothing works any more.
    fn poll(&mut self, events: &mut Vec<EndpointEvent>) -> Result<(), FabricError>;

    /// Accepts a control connection, alone in a protection domain of its own. One that cannot be accepted, and that the
    /// device refuses to destroy either, counts as accepted: [`EndpointEvent::Closed`] follows.
    ///
    /// # Errors
    /// [`FabricError`] if it cannot be made; the request is rejected then.
    fn accept_control(
        &mut self,
        request: RequestId,
        options: ControlOptions,
    ) -> Result<ConnectionId, FabricError>;

    /// Accepts a data connection into `domain`, with the right to READ and no other.
    ///
    /// # Errors
    /// As [`Endpoint::accept_control`].
    ///
    /// # Panics
    /// If `domain` is one of another kind of fabric.
    fn accept_data(&mut self, request: RequestId, domain: &dyn Domain) -> Result<ConnectionId, FabricError>;

    /// Refuses a connection request, with a text for the peer (cut to what fits).
    fn reject(&mut self, request: RequestId, reason: &str);

    /// Gives a control connection `len` bytes of memory that its peer, and nobody else, may WRITE. Once a connection.
    ///
    /// # Errors
    /// [`FabricError::Memory`] if it cannot be mapped or registered.
    fn grant_staging(
        &mut self,
        connection: ConnectionId,
        len: usize,
    ) -> Result<(RemoteRef, Arc<dyn Staging>), FabricError>;

    /// Queues a frame to a control connection's peer. Never waits: a peer that takes no frames loses its connection.
    ///
    /// # Errors
    /// [`FabricError::Closed`] if the connection is over or its peer has let too many frames lie.
    fn send(&mut self, connection: ConnectionId, frame: &[u8]) -> Result<(), FabricError>;

    /// Ends a connection and destroys what it had: see *Fencing*. Frames queued before are sent if that takes no wait.
    /// One that does not exist (any more) is destroyed.
    ///
    /// # Errors
    /// [`FabricError`] if the device refuses: its peer may go on reading and writing what its rights give, until a later call
    /// succeeds. What is still heard of the connection means nothing.
    fn destroy(&mut self, connection: ConnectionId) -> Result<(), FabricError>;
}

/// Staging memory of one control connection, as the server reads it: its peer may be writing it.
pub trait Staging: Send + Sync {
    /// Copies out of it.
    ///
    /// # Panics
    /// If the range is not inside it.
    fn read(&self, offset: usize, out: &mut [u8]);
}

impl Staging for Memory {
    fn read(&self, offset: usize, out: &mut [u8]) {
        Self::read(self, offset, out);
    }
}

/// What happened on a client's control connection.
#[derive(Debug, PartialEq, Eq)]
pub enum ControlEvent {
    /// A frame arrived.
    Frame(Vec<u8>),
    /// The WRITE with this number is done with its source.
    Written(u64),
}

/// A client's control connection.
pub trait ControlConnection: Send + 'static {
    /// Readable when [`ControlConnection::poll`] may have something.
    fn fd(&self) -> BorrowedFd<'_>;

    /// Queues a frame.
    ///
    /// # Errors
    /// [`FabricError::Closed`] if the connection is over, [`FabricError::Busy`] if its queue is full.
    fn send(&mut self, frame: &[u8]) -> Result<(), FabricError>;

    /// Queues a WRITE of `source[offset..offset + len]` to staging memory. It completes as
    /// [`ControlEvent::Written`] with `number`; until then the source must not change.
    ///
    /// # Errors
    /// As [`ControlConnection::send`]; [`FabricError::Unsupported`] if the source is of another kind of fabric.
    fn write(
        &mut self,
        number: u64,
        source: &Region,
        offset: usize,
        len: usize,
        to: RemoteRef,
    ) -> Result<(), FabricError>;

    /// Appends what happened to `events`; returns without waiting. After it returned with nothing appended, the fd
    /// becomes readable at the next event.
    ///
    /// # Errors
    /// [`FabricError::Closed`] once the connection is over and everything that arrived before was returned.
    fn poll(&mut self, events: &mut Vec<ControlEvent>) -> Result<(), FabricError>;
}

/// One piece of where a READ goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Scatter {
    /// First byte in the region.
    pub offset: usize,
    /// Bytes.
    pub len: u32,
    /// Which of the regions of the post it lies in.
    pub region: u32,
}

impl Scatter {
    /// `len` bytes from `offset` on of region number `region`; a length that no READ has stays one.
    #[must_use]
    #[inline]
    pub fn new(region: u32, offset: usize, len: usize) -> Self {
        Self {
            offset,
            len: u32::try_from(len).unwrap_or(u32::MAX),
            region,
        }
    }
}

/// One READ: plain data, which borrows nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Read {
    /// Number that its completion repeats.
    pub number: u64,
    /// Where the bytes are.
    pub from: RemoteRef,
    /// Where they go, in order. The first piece is not empty; those behind the last may be.
    pub to: [Scatter; SCATTER_MAX],
    /// Whether its success gives a completion. The last of a batch should; a failure always gives one.
    pub signaled: bool,
}

impl Read {
    /// Its pieces.
    #[must_use]
    #[inline]
    pub fn pieces(&self) -> &[Scatter] {
        &self.to[..1 + usize::from(self.to[1].len > 0)]
    }

    /// Bytes that it asks for.
    #[must_use]
    #[inline]
    pub fn len_bytes(&self) -> usize {
        self.to[0].len as usize + self.to[1].len as usize
    }
}

/// How a READ ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ReadStatus {
    /// Its bytes, and those of every READ posted before it, are there.
    Success,
    /// The peer refused the address, the length or the rkey.
    RemoteAccess,
    /// The peer did not answer.
    PeerGone,
    /// Given up because an earlier READ failed or the connection was closed.
    Flushed,
    /// Anything else, with the number that the fabric has for it.
    Other(u32),
}

/// One READ that ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadCompletion {
    /// Its number.
    pub number: u64,
    /// How.
    pub status: ReadStatus,
}

/// What a data connection has done so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DataCounters {
    /// READs posted.
    pub reads: u64,
    /// Batches posted: doorbells rung.
    pub doorbells: u64,
    /// Bytes asked for.
    pub bytes: u64,
}

/// A client's data connection: READs and nothing else.
pub trait DataConnection: Send + 'static {
    /// READs that can still be posted before one must complete.
    fn room(&self) -> usize;

    /// READs that it has under way at once, as both ends agreed; more wait for their turn in its queue.
    fn reads_at_once(&self) -> usize {
        usize::MAX
    }

    /// Posts `reads` as one chain behind one doorbell; `regions` are what their pieces lie in. Allocates nothing after warm-up.
    ///
    /// # Errors
    /// [`FabricError::Busy`] if there is less [`DataConnection::room`], [`FabricError::Closed`] after an error,
    /// [`FabricError::Unsupported`] if a region is of another kind of fabric: nothing was posted. [`FabricError::Post`] if the device took some and refused the rest.
    fn post(&mut self, reads: &[Read], regions: &[&Region]) -> Result<(), FabricError>;

    /// Appends READs that ended to `completions`; returns without waiting.
    ///
    /// # Errors
    /// [`FabricError`] if the completion queue itself failed.
    fn poll(&mut self, completions: &mut Vec<ReadCompletion>) -> Result<(), FabricError>;

    /// Prepares for a sleep: whether [`DataConnection::poll`] has something already. If not,
    /// [`DataConnection::fd`] becomes readable when it may.
    ///
    /// # Errors
    /// [`FabricError`] if the completion channel itself failed.
    fn arm(&mut self) -> Result<bool, FabricError>;

    /// What to sleep on after [`DataConnection::arm`]; `None` if nothing will come any more.
    fn fd(&self) -> Option<BorrowedFd<'_>>;

    /// Sleeps until [`DataConnection::poll`] has something or `deadline` has passed; whether it has.
    ///
    /// # Errors
    /// As [`DataConnection::arm`].
    fn wait(&mut self, deadline: Instant) -> Result<bool, FabricError> {
        loop {
            if self.arm()? {
                return Ok(true);
            }
            let readable = match self.fd() {
                Some(fd) => bell::sleep(fd, deadline)?,
                None => {
                    std::thread::sleep(deadline.saturating_duration_since(Instant::now()));
                    false
                }
            };
            if !readable {
                return Ok(false);
            }
        }
    }

    /// What it has done so far.
    fn counters(&self) -> DataCounters;

    /// Has the READs of the next batch carried out late, by up to `longest` each: for tests. Only `sim` can.
    fn delay_next(&mut self, longest: Duration) {
        let _ = longest;
    }

    /// Ends it: from here on nothing that was posted reaches memory. Who hands that memory on must end a connection by
    /// this; one that is merely dropped may live on, and then keeps what it writes to from being freed.
    ///
    /// # Errors
    /// [`NotDestroyed`], with the connection, if the device refuses: its READs may go on until a later call succeeds.
    fn destroy(self: Box<Self>) -> Result<(), NotDestroyed> {
        drop(self);
        Ok(())
    }
}
