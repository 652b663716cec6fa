//! A reader: an engine that one thread owns, by calls or by tickets.

use std::sync::Arc;

use kv_fabric::Fabric;

use crate::clock::boot_ns;
use crate::memory::BufferOn;
use crate::opening::Core;
use crate::read::calls::{ByKey, ByPlace, Wish, by_key, by_place, place_in};
use crate::read::engine::{Ask, Done, Engine};
use crate::read::item::{Memory, Want};
use crate::read::placed::Places;
use crate::read::slots::Value;
use crate::{ClientError, ClientOptions, GlobalLocator, ReadError};

/// Tickets of one reader that are not taken, at most.
const TICKETS_MAX: usize = 1 << 16;

/// Names a value that was submitted; never used again by its reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub(crate) u64);

/// A value that was submitted, done.
#[derive(Debug)]
pub struct Completion<B> {
    /// What `submit` gave.
    pub ticket: Ticket,
    /// Length of the value, bytes, or why there is none.
    pub result: Result<usize, ReadError>,
    /// The value; empty where it went to a buffer.
    pub value: Value,
    /// The buffer that was moved in, whatever the result.
    pub buffer: Option<B>,
}

impl<B> Completion<B> {
    pub(crate) fn map<C>(self, buffer: impl FnOnce(B) -> C) -> Completion<C> {
        Completion {
            ticket: self.ticket,
            result: self.result,
            value: self.value,
            buffer: self.buffer.map(buffer),
        }
    }
}

/// A reader on fabric `F`: as [`crate::Reader`].
pub struct ReaderOn<F: Fabric> {
    engine: Engine<F>,
    next_ticket: u64,
    /// Submitted and not taken.
    outstanding: usize,
}

impl<F: Fabric> ReaderOn<F> {
    pub(crate) fn new(core: Arc<Core<F>>, options: Arc<ClientOptions>) -> Result<Self, ClientError> {
        Ok(Self {
            engine: Engine::new(core, options)?,
            next_ticket: 1,
            outstanding: 0,
        })
    }

    fn submit_wish(&mut self, wish: Wish<'_>, want: Want, memory: Memory<F>) -> Ticket {
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

    /// As [`crate::Reader::submit`].
    ///
    /// # Errors
    /// As there.
    pub fn submit(&mut self, key: &[u8]) -> Result<Ticket, ReadError> {
        self.admit()?;
        Ok(self.submit_wish(by_key(key), Want::Slot, Memory::None))
    }

    /// As [`crate::Reader::submit_at`].
    ///
    /// # Errors
    /// As there.
    pub fn submit_at(&mut self, at: &GlobalLocator, key: Option<&[u8]>) -> Result<Ticket, ReadError> {
        self.admit()?;
        let wish = by_place(self.engine.dataset_id(), at, key);
        Ok(self.submit_wish(wish, Want::Slot, Memory::None))
    }

    /// As [`crate::Reader::submit_into`].
    ///
    /// # Errors
    /// As there.
    pub fn submit_into(
        &mut self,
        key: &[u8],
        buffer: BufferOn<F>,
        offset: usize,
    ) -> Result<Ticket, (ReadError, BufferOn<F>)> {
        self.submit_to(by_key(key), buffer, offset)
    }

    /// As [`crate::Reader::submit_at_into`].
    ///
    /// # Errors
    /// As there.
    pub fn submit_at_into(
        &mut self,
        at: &GlobalLocator,
        key: Option<&[u8]>,
        buffer: BufferOn<F>,
        offset: usize,
    ) -> Result<Ticket, (ReadError, BufferOn<F>)> {
        let wish = by_place(self.engine.dataset_id(), at, key);
        self.submit_to(wish, buffer, offset)
    }

    fn submit_to(
        &mut self,
        wish: Wish<'_>,
        buffer: BufferOn<F>,
        offset: usize,
    ) -> Result<Ticket, (ReadError, BufferOn<F>)> {
        if let Err(error) = self.admit() {
            return Err((error, buffer));
        }
        if !self.engine.takes(&buffer) {
            return Err((ReadError::OtherSession, buffer));
        }
        let want = place_in(&buffer, offset);
        Ok(self.submit_wish(wish, want, Memory::Owned(buffer)))
    }

    /// Values that were submitted and not taken.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        self.outstanding
    }

    /// As [`crate::Reader::poll`].
    pub fn poll(&mut self) -> Option<Completion<BufferOn<F>>> {
        let done = self.engine.using(|engine| {
            engine.take_ticket().or_else(|| {
                engine.turn_or_look();
                engine.take_ticket()
            })
        });
        done.map(|done| self.complete(done))
    }

    /// As [`crate::Reader::wait`].
    pub fn wait(&mut self) -> Option<Completion<BufferOn<F>>> {
        let done = self.engine.using(|engine| {
            engine.run_tickets();
            engine.take_ticket()
        });
        done.map(|done| self.complete(done))
    }

    fn complete(&mut self, done: Done<F>) -> Completion<BufferOn<F>> {
        self.outstanding -= 1;
        Completion {
            ticket: Ticket(done.user),
            result: done.result.map(|found| found.value_len_bytes as usize),
            value: done.value,
            buffer: done.buffer,
        }
    }

    /// As [`crate::Reader::get`].
    ///
    /// # Errors
    /// As there.
    pub fn get(&mut self, key: &[u8]) -> Result<Value, ReadError> {
        Ok(self.engine.read_one(by_key(key), Want::Slot)?.value)
    }

    /// As [`crate::Reader::get_at`].
    ///
    /// # Errors
    /// As there.
    pub fn get_at(&mut self, at: &GlobalLocator, key: Option<&[u8]>) -> Result<Value, ReadError> {
        let wish = by_place(self.engine.dataset_id(), at, key);
        Ok(self.engine.read_one(wish, Want::Slot)?.value)
    }

    /// As [`crate::Reader::get_many`].
    pub fn get_many<K: AsRef<[u8]>>(&mut self, keys: &[K]) -> Vec<Result<Value, ReadError>> {
        self.engine
            .read_many(keys.len(), Want::Slot, ByKey(keys), |got| got.value)
    }

    /// As [`crate::Reader::get_many_at`].
    pub fn get_many_at<K: AsRef<[u8]>>(
        &mut self,
        at: &[GlobalLocator],
        keys: Option<&[K]>,
    ) -> Vec<Result<Value, ReadError>> {
        let id = self.engine.dataset_id();
        let wishes = ByPlace { id, at, keys };
        self.engine
            .read_many(at.len(), Want::Slot, wishes, |got| got.value)
    }

    /// As [`crate::Reader::get_many_into`].
    pub fn get_many_into<K: AsRef<[u8]>>(
        &mut self,
        keys: &[K],
        buffer: &mut BufferOn<F>,
        offsets: &[usize],
    ) -> Vec<Result<usize, ReadError>> {
        let mut lens = vec![Err(ReadError::Closed); keys.len()];
        match Places::new(buffer, keys.len(), offsets) {
            Ok(places) => self
                .engine
                .read_placed(keys, buffer, places, 0..keys.len(), &mut lens),
            Err(error) => lens.fill(Err(error)),
        }
        lens
    }

    /// As [`crate::Reader::get_into`].
    ///
    /// # Errors
    /// As there.
    pub fn get_into(
        &mut self,
        key: &[u8],
        buffer: &mut BufferOn<F>,
        offset: usize,
    ) -> Result<usize, ReadError> {
        self.engine.read_into(by_key(key), buffer, offset)
    }

    /// As [`crate::Reader::get_at_into`].
    ///
    /// # Errors
    /// As there.
    pub fn get_at_into(
        &mut self,
        at: &GlobalLocator,
        key: Option<&[u8]>,
        buffer: &mut BufferOn<F>,
        offset: usize,
    ) -> Result<usize, ReadError> {
        let wish = by_place(self.engine.dataset_id(), at, key);
        self.engine.read_into(wish, buffer, offset)
    }
}
