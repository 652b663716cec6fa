//! A value that is arriving.
//!
//! What it may hold in memory is reserved when it begins, two parts at most: so no value waits for memory that another
//! unfinished value holds. A small one that comes with one request holds memory only from then on.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use kv_proto::crc::Crc32c;
use kv_proto::hash::KeyHash;
use kv_proto::layout::PartRef;

use super::arriving::{Arriving, Kind, gather_bytes};
use super::budget::Charge;
use super::lock;
use super::log::{Op, Queue};
use super::operations::Operations;
use super::segment::Pin;
use crate::error::StorageError;

/// What the control thread and the log share of one put.
pub(crate) struct PutState {
    pub(crate) key: Vec<u8>,
    pub(crate) hash: KeyHash,
    pub(crate) client: u64,
    pub(crate) operation: u64,
    pub(crate) value_len: u64,
    pub(crate) part_bytes: u64,
    /// Bytes of parts that wait for the log.
    pub(crate) queued_bytes: AtomicU64,
    pub(crate) progress: Mutex<Progress>,
    /// What it may hold, once that is set aside; given back when the log and the control thread are both done with it.
    charge: OnceLock<Charge>,
}

/// What the log has done for a put so far.
#[derive(Default)]
pub(crate) struct Progress {
    /// CRC of the parts so far, in order.
    pub(crate) crc: Crc32c,
    pub(crate) parts: Vec<PartRef>,
    /// Of the segments that they lie in: no head names them yet.
    pub(crate) pins: Vec<Pin>,
    pub(crate) failed: Option<StorageError>,
}

impl PutState {
    pub(crate) fn new(
        key: &[u8],
        hash: KeyHash,
        identity: (u64, u64),
        value_len: u64,
        part_bytes: u64,
    ) -> Arc<Self> {
        Arc::new(Self {
            key: key.to_vec(),
            hash,
            client: identity.0,
            operation: identity.1,
            value_len,
            part_bytes,
            queued_bytes: AtomicU64::new(0),
            progress: Mutex::default(),
            charge: OnceLock::new(),
        })
    }

    /// Sets memory aside for what it may hold, as a value of this kind does.
    pub(crate) fn reserve(&self, arriving: &Arriving, kind: Kind) -> Result<(), StorageError> {
        if self.charge.get().is_none() {
            let charge = arriving.take(kind, self.gather_bytes())?;
            self.charge.get_or_init(|| charge);
        }
        Ok(())
    }

    /// Memory that it may hold.
    fn gather_bytes(&self) -> u64 {
        gather_bytes(self.value_len, self.part_bytes)
    }

    /// Has everything that follows of this put fail.
    pub(crate) fn fail(&self, error: &StorageError) {
        lock(&self.progress).failed.get_or_insert_with(|| error.clone());
    }

    fn is_large(&self) -> bool {
        self.value_len > self.part_bytes
    }
}

/// A value that is arriving; dropping it gives it up.
pub struct Put {
    state: Arc<PutState>,
    attempt: u64,
    /// The part that is being filled.
    buffer: Vec<u8>,
    received: u64,
    arriving: Arc<Arriving>,
    queue: Arc<Queue>,
    operations: Arc<Operations>,
    /// Whether the attempt was handed to the log, or is over.
    closed: bool,
}

impl std::fmt::Debug for Put {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Put(client {:#x}, operation {}, {} of {} bytes)",
            self.state.client, self.state.operation, self.received, self.state.value_len
        )
    }
}

impl Put {
    pub(crate) fn new(
        state: Arc<PutState>,
        attempt: u64,
        arriving: Arc<Arriving>,
        queue: Arc<Queue>,
        operations: Arc<Operations>,
    ) -> Self {
        Self {
            state,
            attempt,
            buffer: Vec::new(),
            received: 0,
            arriving,
            queue,
            operations,
            closed: false,
        }
    }

    /// Bytes still to come.
    #[must_use]
    pub fn remaining(&self) -> u64 {
        self.state.value_len - self.received
    }

    /// Most bytes that one [`Put::append`] may take: give windows no longer than this.
    #[must_use]
    pub fn append_max(&self) -> usize {
        let held_bytes = self.state.gather_bytes();
        let most = if held_bytes >= self.state.value_len {
            self.state.value_len
        } else {
            // What is left beside a part that is not full yet.
            held_bytes - self.state.part_bytes
        };
        most as usize
    }

    /// Sets memory aside for a small value that comes by more than one [`Put::append`], or is not committed right after it: it
    /// is held as long as its client takes. Longer ones hold theirs from their beginning.
    ///
    /// # Errors
    /// [`StorageError::Arriving`] where others hold the memory for such.
    pub fn hold(&self) -> Result<(), StorageError> {
        self.state.reserve(&self.arriving, Kind::Medium)
    }

    /// Takes the next `len` bytes, which `fill` copies into the server's own memory.
    ///
    /// # Errors
    /// - [`StorageError::Busy`] while the log has not written earlier parts, or other values that are whole: `fill` was
    ///   not called, nothing changed; the completions' descriptor becomes readable when it is worth to try again.
    /// - [`StorageError::Arriving`] as [`Put::hold`], for a small value that did not and of which this is only a piece.
    /// - [`StorageError::Length`] for more bytes than remain, or than [`Put::append_max`].
    /// - [`StorageError::Superseded`] if the operation was begun anew.
    /// - Any other: why an earlier part could not be stored. The put is over.
    pub fn append(&mut self, len: usize, fill: impl FnOnce(&mut [u8])) -> Result<(), StorageError> {
        let state = &self.state;
        if len as u64 > self.remaining() || len > self.append_max() {
            return Err(StorageError::Length {
                announced_bytes: self.remaining().min(self.append_max() as u64),
                got_bytes: len as u64,
            });
        }
        if !self
            .operations
            .is_current(state.client, state.operation, self.attempt)
        {
            return Err(StorageError::Superseded);
        }
        if let Some(error) = lock(&state.progress).failed.clone() {
            return Err(error);
        }
        if state.is_large() && !self.queue.takes_parts() {
            return Err(StorageError::Busy("too many parts of values wait to be written"));
        }
        if len as u64 == state.value_len {
            let written = |_| StorageError::Busy("other values are being written");
            state.reserve(&self.arriving, Kind::Small).map_err(written)?;
        } else {
            self.hold()?;
        }
        let held = state.queued_bytes.load(Ordering::Acquire) + self.buffer.len() as u64;
        if held + len as u64 > state.gather_bytes() {
            return Err(StorageError::Busy(
                "earlier parts of this value are being written",
            ));
        }
        let start = self.buffer.len();
        self.buffer.reserve_exact(len);
        self.buffer.resize(start + len, 0);
        fill(&mut self.buffer[start..]);
        self.received += len as u64;
        if self.state.is_large() {
            self.queue_parts(false)?;
        }
        Ok(())
    }

    /// Queues every whole part of the buffer; the last, shorter one too where all has come.
    fn queue_parts(&mut self, all: bool) -> Result<(), StorageError> {
        let part_bytes = self.state.part_bytes as usize;
        while self.buffer.len() >= part_bytes || (all && !self.buffer.is_empty()) {
            let rest = self.buffer.split_off(part_bytes.min(self.buffer.len()));
            let bytes = std::mem::replace(&mut self.buffer, rest);
            let len = bytes.len() as u64;
            self.state.queued_bytes.fetch_add(len, Ordering::AcqRel);
            let op = Op::Part {
                put: Arc::clone(&self.state),
                bytes,
            };
            if let Err(error) = self.queue.push(op) {
                // Its bytes are gone with it: nothing of this put can be stored any more.
                self.state.queued_bytes.fetch_sub(len, Ordering::AcqRel);
                self.state.fail(&error);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Hands the put to the log: its answer comes as a completion with `token`.
    ///
    /// # Errors
    /// Why not; nothing of it stays then.
    pub(crate) fn commit(mut self, value_crc: u32, token: u64) -> Result<(), StorageError> {
        if self.remaining() != 0 {
            return Err(StorageError::Length {
                announced_bytes: self.state.value_len,
                got_bytes: self.received,
            });
        }
        if self.state.is_large() {
            self.queue_parts(true)?;
        }
        if !self
            .operations
            .commit(self.state.client, self.state.operation, self.attempt)
        {
            return Err(StorageError::Superseded);
        }
        self.closed = true;
        let put = Arc::clone(&self.state);
        let op = if self.state.is_large() {
            Op::Head {
                put,
                value_crc,
                token,
            }
        } else {
            Op::Value {
                put,
                bytes: std::mem::take(&mut self.buffer),
                value_crc,
                token,
            }
        };
        self.queue.push(op).inspect_err(|_| {
            self.operations
                .finish(self.state.client, self.state.operation, None);
        })
    }
}

impl Drop for Put {
    fn drop(&mut self) {
        if !self.closed {
            self.operations
                .abort(self.state.client, self.state.operation, self.attempt);
            // Parts that are queued still need not be written.
            self.state.fail(&StorageError::Superseded);
        }
    }
}
