//! A reader: an engine that one thread owns, by calls or by tickets.

use std::fmt;
use std::sync::Arc;

use crate::clock::boot_ns;
use crate::opening::Core;
use crate::read::calls::{ByKey, ByPlace, Wish, by_key, by_place, place_in};
use crate::read::engine::{Ask, Done, Engine};
use crate::read::item::{Memory, Want};
use crate::read::placed::Places;
use crate::read::slots::Value;
use crate::{ClientError, ClientOptions, Destination, GlobalLocator, Moved, ReadError};

/// Tickets of one reader that are not taken, at most.
const TICKETS_MAX: usize = 1 << 16;

/// Names a value that was submitted; never used again by its reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub(crate) u64);

/// A value that was submitted, done.
#[derive(Debug)]
pub struct Completion {
    /// What `submit` gave.
    pub ticket: Ticket,
    /// Length of the value, bytes, or why there is none.
    pub result: Result<usize, ReadError>,
    /// The value; empty where it went to a buffer.
    pub value: Value,
    /// The buffer that was moved in, whatever the result.
    pub buffer: Option<Moved>,
}

/// Reads of one thread, kept in flight: values are submitted and taken when they are done, or read by calls.
///
/// - Nothing that it does takes a lock that another thread takes, and once warm it allocates nothing for a value.
/// - What is submitted is posted by the next [`Reader::poll`] or [`Reader::wait`], all of it behind one doorbell for each
///   connection. Neither waits for one value before it goes on with another; both may wait for the session or a
///   connection where those must be made anew.
/// - While tickets are in flight, poll every few seconds: what the server retires meanwhile waits for it, and a session
///   that lags too long is begun again.
pub struct Reader {
    engine: Engine,
    next_ticket: u64,
    /// Submitted and not taken.
    outstanding: usize,
}

impl Reader {
    pub(crate) fn new(core: Arc<Core>, options: Arc<ClientOptions>) -> Result<Self, ClientError> {
        Ok(Self {
            engine: Engine::new(core, options)?,
            next_ticket: 1,
            outstanding: 0,
        })
    }

    fn submit_wish(&mut self, wish: Wish<'_>, want: Want, memory: Memory) -> Ticket {
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        self.outstanding += 1;
        let (key, at, refused) = match wish {
            Ok((key, at)) => (key, at.copied(), None),
            Err(error) => (None, None, Some(error)),
        };
        let ask = Ask {
            user: ticket.0,
            ticket: true,
            key,
            at,
            want,
            memory,
            trouble: None,
        };
        self.engine.submit_or_refuse(ask, refused, boot_ns());
        ticket
    }

    fn admit(&self) -> Result<(), ReadError> {
        if self.outstanding < TICKETS_MAX {
            Ok(())
        } else {
            Err(ReadError::Busy)
        }
    }

    /// Asks for the value of `key`.
    ///
    /// # Errors
    /// [`ReadError::Busy`] if too many values are submitted and not taken.
    pub fn submit(&mut self, key: &[u8]) -> Result<Ticket, ReadError> {
        self.admit()?;
        Ok(self.submit_wish(by_key(key), Want::Slot, Memory::None))
    }

    /// Asks for the value at a locator. Where `key` is given, what lies there must be that key's.
    ///
    /// # Errors
    /// As [`Reader::submit`].
    pub fn submit_at(&mut self, at: &GlobalLocator, key: Option<&[u8]>) -> Result<Ticket, ReadError> {
        self.admit()?;
        let wish = by_place(self.engine.dataset_id(), at, key);
        Ok(self.submit_wish(wish, Want::Slot, Memory::None))
    }

    /// Asks for the value of `key`, straight into `buffer` at `offset`; the buffer comes back with the completion. Pieces of
    /// memory that was registered once are [`crate::RegisteredMemory::split_off`] it.
    ///
    /// # Errors
    /// As [`Reader::submit`]; [`ReadError::OtherSession`] if the buffer is another session's. The buffer comes back.
    pub fn submit_into<D: Destination>(
        &mut self,
        key: &[u8],
        buffer: D,
        offset: usize,
    ) -> Result<Ticket, (ReadError, D)> {
        self.submit_to(by_key(key), buffer, offset)
    }

    /// Asks for the value at a locator, straight into `buffer` at `offset`; the buffer comes back with the completion.
    ///
    /// # Errors
    /// As [`Reader::submit_into`].
    pub fn submit_at_into<D: Destination>(
        &mut self,
        at: &GlobalLocator,
        key: Option<&[u8]>,
        buffer: D,
        offset: usize,
    ) -> Result<Ticket, (ReadError, D)> {
        let wish = by_place(self.engine.dataset_id(), at, key);
        self.submit_to(wish, buffer, offset)
    }

    fn submit_to<D: Destination>(
        &mut self,
        wish: Wish<'_>,
        mut buffer: D,
        offset: usize,
    ) -> Result<Ticket, (ReadError, D)> {
        if let Err(error) = self.admit() {
            return Err((error, buffer));
        }
        if !self.engine.takes(buffer.memory()) {
            return Err((ReadError::OtherSession, buffer));
        }
        let want = place_in(buffer.memory(), offset);
        Ok(self.submit_wish(wish, want, Memory::Owned(buffer.into_memory())))
    }

    /// Values that were submitted and not taken.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        self.outstanding
    }

    /// Posts what was submitted, and takes a value that is done, in order of completion; `None` if none is yet.
    pub fn poll(&mut self) -> Option<Completion> {
        let done = self.engine.using(|engine| {
            engine.take_ticket().or_else(|| {
                engine.turn_or_look();
                engine.take_ticket()
            })
        });
        done.map(|done| self.complete(done))
    }

    /// As [`Reader::poll`], but waits until a value is done; `None` if none is outstanding.
    pub fn wait(&mut self) -> Option<Completion> {
        let done = self.engine.using(|engine| {
            engine.run_tickets();
            engine.take_ticket()
        });
        done.map(|done| self.complete(done))
    }

    fn complete(&mut self, done: Done) -> Completion {
        self.outstanding -= 1;
        Completion {
            ticket: Ticket(done.user),
            result: done.result.map(|found| found.value_len_bytes as usize),
            value: done.value,
            buffer: done.buffer.map(Moved::of),
        }
    }

    /// The value of `key`. What was submitted goes on beside it.
    ///
    /// # Errors
    /// As [`crate::Client::get`].
    pub fn get(&mut self, key: &[u8]) -> Result<Value, ReadError> {
        Ok(self.engine.read_one(by_key(key), Want::Slot)?.value)
    }

    /// The value at a locator: one READ.
    ///
    /// # Errors
    /// As [`crate::Client::get_at`].
    pub fn get_at(&mut self, at: &GlobalLocator, key: Option<&[u8]>) -> Result<Value, ReadError> {
        let wish = by_place(self.engine.dataset_id(), at, key);
        Ok(self.engine.read_one(wish, Want::Slot)?.value)
    }

    /// The values of many keys, in their order.
    pub fn get_many<K: AsRef<[u8]>>(&mut self, keys: &[K]) -> Vec<Result<Value, ReadError>> {
        self.engine
            .read_many(keys.len(), Want::Slot, ByKey(keys), |got| got.value)
    }

    /// The values at many locators, in their order; `keys`, where given, belong to them one by one.
    pub fn get_many_at<K: AsRef<[u8]>>(
        &mut self,
        at: &[GlobalLocator],
        keys: Option<&[K]>,
    ) -> Vec<Result<Value, ReadError>> {
        let id = self.engine.dataset_id();
        let keys = keys.unwrap_or_default();
        let wishes = ByPlace { id, at, keys };
        self.engine
            .read_many(at.len(), Want::Slot, wishes, |got| got.value)
    }

    /// Reads the values of many keys straight into `buffer`, each at its offset: as [`crate::Client::get_many_into`].
    pub fn get_many_into<K: AsRef<[u8]>>(
        &mut self,
        keys: &[K],
        buffer: &mut impl Destination,
        offsets: &[usize],
    ) -> Vec<Result<usize, ReadError>> {
        let buffer = buffer.memory();
        let mut lens = vec![Err(ReadError::Closed); keys.len()];
        match Places::new(buffer, keys.len(), offsets) {
            Ok(places) => self
                .engine
                .read_placed(keys, buffer, places, 0..keys.len(), &mut lens),
            Err(error) => lens.fill(Err(error)),
        }
        lens
    }

    /// Reads the value of `key` straight into `buffer` at `offset`; its length.
    ///
    /// # Errors
    /// As [`crate::Client::get_into`].
    pub fn get_into(
        &mut self,
        key: &[u8],
        buffer: &mut impl Destination,
        offset: usize,
    ) -> Result<usize, ReadError> {
        self.engine.read_into(by_key(key), buffer.memory(), offset)
    }

    /// Reads the value at a locator straight into `buffer` at `offset`, with one READ; its length.
    ///
    /// # Errors
    /// As [`crate::Client::get_at_into`].
    pub fn get_at_into(
        &mut self,
        at: &GlobalLocator,
        key: Option<&[u8]>,
        buffer: &mut impl Destination,
        offset: usize,
    ) -> Result<usize, ReadError> {
        let wish = by_place(self.engine.dataset_id(), at, key);
        self.engine.read_into(wish, buffer.memory(), offset)
    }
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Reader({} outstanding)", self.outstanding())
    }
}
