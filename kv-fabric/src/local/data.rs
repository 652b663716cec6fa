//! A client's data connection: READs are copies out of mapped memory.
//!
//! A READ is carried out when the connection is polled, in the order posted, a few at a time, so that what was copied
//! is still in the processor's cache when it is checked. It costs no system call; the socket is looked at when there
//! is nothing to copy, when memory is not mapped yet, once every [`LOOK_EVERY`] READs, and before a copy counts that was
//! made in another tick of the kernel's clock than the look before it. So memory that the server has dropped is noticed
//! with a delay, and only by a connection that is polled; but no READ succeeds on the memory of a server that has been
//! gone for [`OUTLIVES`].

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::time::{ClockId, Timespec, clock_gettime};

use super::READ_MAX_BYTES;
use super::mapping::{Mapping, Mappings};
use super::message::{self, Message};
use super::socket::{Arrival, BUFFER_BYTES, NotSent, Received, receive, send};
use crate::held::HeldRegions;
use crate::{DataCounters, FabricError, Read, ReadCompletion, ReadStatus, Region, check};

/// Most READs of one connection.
pub(super) const READS_MAX: u32 = 1 << 16;
/// READs between two looks at the socket.
const LOOK_EVERY: u32 = 64;
/// For how long READs may succeed after the server has gone: two of the longest ticks that Linux knows.
pub(super) const OUTLIVES: Duration = Duration::from_millis(20);
/// Copied in one poll, unless no READ has completed by then: about what a core's own cache holds.
const POLL_BYTES: usize = 256 * 1024;

/// A READ not carried out.
#[derive(Debug)]
struct Posted {
    read: Read,
    /// Where the regions of its batch are held.
    regions: u64,
}

#[derive(Debug)]
enum Slot {
    Asked,
    Mapped(Arc<Mapping>),
    Refused,
}

/// Spreads rkeys, which the server counts up: each READ is looked up by one, and nobody else chooses them.
#[derive(Default)]
struct RkeyHasher(u64);

impl Hasher for RkeyHasher {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u32(u32::from(*byte));
        }
    }

    fn write_u32(&mut self, rkey: u32) {
        self.0 = (self.0 ^ u64::from(rkey)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// A client's data connection over `local`.
#[derive(Debug)]
pub(super) struct Data {
    /// `None` once the connection is over.
    socket: Option<OwnedFd>,
    over: String,
    peer_gone: bool,
    mappings: Arc<Mappings>,
    slots: HashMap<u32, Slot, BuildHasherDefault<RkeyHasher>>,
    posted: VecDeque<Posted>,
    held: HeldRegions,
    /// Ends not polled, each with the READs that it frees the room of.
    ended: VecDeque<(ReadCompletion, usize)>,
    /// Succeeded unsignaled since the last end.
    silent: usize,
    outstanding: usize,
    reads_max: usize,
    since_look: u32,
    /// Tick in which the socket was looked at last.
    look_tick: Timespec,
    counters: DataCounters,
    buffer: Vec<u8>,
}

/// The kernel's clock as of its last tick: read without a system call, and without asking the device that keeps time.
fn tick() -> Timespec {
    clock_gettime(ClockId::MonotonicCoarse)
}

impl Data {
    pub(super) fn new(socket: OwnedFd, mappings: Arc<Mappings>, reads_max: u32) -> Self {
        let reads_max = reads_max.min(READS_MAX) as usize;
        Self {
            socket: Some(socket),
            over: String::new(),
            peer_gone: false,
            mappings,
            slots: HashMap::default(),
            posted: VecDeque::with_capacity(reads_max),
            held: HeldRegions::default(),
            ended: VecDeque::with_capacity(reads_max),
            silent: 0,
            outstanding: 0,
            reads_max,
            since_look: 0,
            look_tick: tick(),
            counters: DataCounters::default(),
            buffer: vec![0; BUFFER_BYTES],
        }
    }

    /// Ends the connection: the oldest READ ended as `status`, what came after it is given up.
    fn fail(&mut self, mut status: ReadStatus, reason: String) {
        if self.socket.take().is_some() {
            self.over = reason;
        }
        self.slots.clear();
        while let Some(posted) = self.posted.pop_front() {
            self.end(posted.read.number, status);
            status = ReadStatus::Flushed;
        }
        self.let_go();
    }

    /// Nothing is copied any more to what the READs that were carried out went to.
    fn let_go(&mut self) {
        self.held.release(self.counters.reads - self.posted.len() as u64);
    }

    fn end(&mut self, number: u64, status: ReadStatus) {
        let frees = std::mem::take(&mut self.silent) + 1;
        self.ended.push_back((ReadCompletion { number, status }, frees));
    }

    /// Carries out READs as far as memory is mapped and one poll goes.
    fn copy(&mut self) {
        self.copy_some();
        self.let_go();
    }

    fn copy_some(&mut self) {
        let mut copied = 0;
        while let Some(Posted { read: next, regions }) = self.posted.front() {
            if copied >= POLL_BYTES && !self.ended.is_empty() {
                return;
            }
            if self.since_look >= LOOK_EVERY {
                self.look();
                continue;
            }
            match self.slots.get(&next.from.rkey) {
                Some(Slot::Mapped(mapping)) if mapping.contains(next.from.address, next.len_bytes()) => {
                    let mut address = next.from.address;
                    for piece in next.pieces() {
                        let (memory, len) =
                            (self.held.get(*regions, piece.region).memory(), piece.len as usize);
                        mapping.copy_to(address, memory, piece.offset, len);
                        address += len as u64;
                    }
                }
                Some(Slot::Mapped(_)) => {
                    let reason = format!("a READ past the end of memory {:#x}", next.from.rkey);
                    return self.fail(ReadStatus::RemoteAccess, reason);
                }
                Some(Slot::Refused) => {
                    let reason = format!("the server refused memory {:#x}", next.from.rkey);
                    return self.fail(ReadStatus::RemoteAccess, reason);
                }
                Some(Slot::Asked) => return,
                None => {
                    if !self.ask() {
                        return;
                    }
                    continue;
                }
            }
            copied += next.len_bytes();
            self.since_look += 1;
            let (number, signaled) = (next.number, next.signaled);
            self.posted.pop_front();
            if signaled {
                self.end(number, ReadStatus::Success);
            } else {
                self.silent += 1;
            }
        }
    }

    /// Asks for all memory that posted READs need and nobody asked for; whether the first was asked for.
    fn ask(&mut self) -> bool {
        let Some(socket) = &self.socket else {
            self.fail(ReadStatus::PeerGone, String::new());
            return false;
        };
        for (index, posted) in self.posted.iter().enumerate() {
            let rkey = posted.read.from.rkey;
            if self.slots.contains_key(&rkey) {
                continue;
            }
            match send(socket, Message::Map { rkey }, None) {
                Ok(()) => drop(self.slots.insert(rkey, Slot::Asked)),
                // The server takes nothing now: the next poll asks again.
                Err(Errno::AGAIN) => return index > 0,
                Err(error) => {
                    self.fail(ReadStatus::PeerGone, NotSent::Failed(error).to_string());
                    return false;
                }
            }
        }
        true
    }

    /// Takes what the server said.
    fn look(&mut self) {
        self.since_look = 0;
        // Read before the socket is: what is copied in this tick is copied at most one tick after the look.
        self.look_tick = tick();
        while let Some(socket) = &self.socket {
            match receive(socket, &mut self.buffer) {
                Arrival::Message(received) => self.take(received),
                Arrival::Nothing => return,
                Arrival::End(reason) => {
                    self.peer_gone = true;
                    self.fail(ReadStatus::PeerGone, reason);
                }
            }
        }
    }

    fn take(&mut self, received: Received) {
        match (Message::decode(&self.buffer[..received.len]), received.passed) {
            (Some(Message::Mapped { rkey, len }), Some(fd))
                if matches!(self.slots.get(&rkey), Some(Slot::Asked)) =>
            {
                match self.mappings.get(&fd, rkey, len) {
                    Ok(mapping) => drop(self.slots.insert(rkey, Slot::Mapped(mapping))),
                    Err(error) => {
                        let number = error.raw_os_error().unwrap_or(0).unsigned_abs();
                        let reason = format!("memory {rkey:#x} cannot be mapped: {error}");
                        self.fail(ReadStatus::Other(number), reason);
                    }
                }
            }
            // What was posted before the READ that needs it still goes on: the server answers in the order it was
            // asked, so all that those need is mapped.
            (Some(Message::Unknown { rkey }), None) => {
                self.slots.insert(rkey, Slot::Refused);
                self.socket = None;
                self.over = format!("the server refused memory {rkey:#x}");
            }
            (Some(Message::Unmap { rkeys }), None) => {
                for rkey in message::rkeys(rkeys) {
                    self.slots.remove(&rkey);
                }
            }
            _ => self.fail(
                ReadStatus::PeerGone,
                "the server sent what this connection does not take".to_owned(),
            ),
        }
    }

    /// Gives up what was copied if the server may have been gone by then: its memory outlives it, and another server
    /// may have answered overwrites since.
    fn vouch(&mut self) {
        if self.ended.is_empty() {
            return;
        }
        if !self.peer_gone && tick() != self.look_tick {
            self.look();
        }
        if !self.peer_gone {
            return;
        }
        let mut status = ReadStatus::PeerGone;
        for (completion, _) in &mut self.ended {
            if completion.status == ReadStatus::Success {
                completion.status = std::mem::replace(&mut status, ReadStatus::Flushed);
            } else {
                status = ReadStatus::Flushed;
            }
        }
    }

    /// Whether something can be polled, after doing what can be done now.
    fn progress(&mut self) -> bool {
        self.copy();
        self.vouch();
        if self.ended.is_empty() {
            self.look();
            self.copy();
            self.vouch();
        }
        !self.ended.is_empty()
    }
}

impl crate::DataConnection for Data {
    fn room(&self) -> usize {
        self.reads_max - self.outstanding
    }

    fn post(&mut self, reads: &[Read], regions: &[&Region]) -> Result<(), FabricError> {
        if self.socket.is_none() {
            return Err(FabricError::Closed(self.over.clone()));
        }
        let bytes = check::batch_bytes(reads, regions, READ_MAX_BYTES)?;
        if reads.len() > self.room() {
            return Err(FabricError::Busy("READs outstanding"));
        }
        if reads.is_empty() {
            return Ok(());
        }
        // Before anything else: counting a region's owners would wait for the loads before it.
        for read in reads {
            if let Some(Slot::Mapped(mapping)) = self.slots.get(&read.from.rkey) {
                mapping.touch(read.from.address, read.len_bytes());
            }
        }
        self.outstanding += reads.len();
        self.counters.reads += reads.len() as u64;
        self.counters.doorbells += 1;
        self.counters.bytes += bytes;
        let regions = self.held.hold(regions, self.counters.reads);
        self.posted
            .extend(reads.iter().map(|&read| Posted { read, regions }));
        Ok(())
    }

    fn poll(&mut self, completions: &mut Vec<ReadCompletion>) -> Result<(), FabricError> {
        self.progress();
        for (completion, frees) in self.ended.drain(..) {
            self.outstanding -= frees;
            completions.push(completion);
        }
        Ok(())
    }

    fn arm(&mut self) -> Result<bool, FabricError> {
        Ok(self.progress())
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.socket.as_ref().map(OwnedFd::as_fd)
    }

    fn counters(&self) -> DataCounters {
        self.counters
    }
}
