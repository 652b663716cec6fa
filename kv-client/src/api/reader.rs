//! A reader over whichever fabric its client is on.

use std::fmt;

use kv_fabric::local::Local;
use kv_fabric::verbs::Verbs;

use super::{Client, Destination, Inner, Memory, Moved};
use crate::reader::ReaderOn;
use crate::{AsyncReader, ClientError, Completion, GlobalLocator, ReadError, Ticket, Value};

/// Reads of one thread, kept in flight: values are submitted and taken when they are done, or read by calls.
///
/// - Nothing that it does takes a lock that another thread takes, and once warm it allocates nothing for a value.
/// - What is submitted is posted by the next [`Reader::poll`] or [`Reader::wait`], all of it behind one doorbell for each
///   connection. Neither waits for one value before it goes on with another; both may wait for the session or a
///   connection where those must be made anew.
/// - While tickets are in flight, poll every few seconds: what the server retires meanwhile waits for it, and a session
///   that lags too long is begun again.
pub struct Reader {
    inner: Readers,
}

enum Readers {
    Verbs(ReaderOn<Verbs>),
    Local(ReaderOn<Local>),
}

/// Calls the same on whichever fabric it is.
macro_rules! on {
    ($self:expr, $it:ident => $call:expr) => {
        match &mut $self.inner {
            Readers::Verbs($it) => $call,
            Readers::Local($it) => $call,
        }
    };
}

impl Client {
    /// A reader for one thread, with data connections of its own.
    ///
    /// # Errors
    /// [`ClientError::System`] if this process can have no further descriptor.
    pub fn reader(&self) -> Result<Reader, ClientError> {
        let inner = match &self.inner {
            Inner::Verbs(dataset) => Readers::Verbs(dataset.reader()?),
            Inner::Local(dataset) => Readers::Local(dataset.reader()?),
        };
        Ok(Reader { inner })
    }

    /// A reader of futures, with data connections and a thread of its own.
    ///
    /// # Errors
    /// [`ClientError::System`] if this process can have no further descriptor or thread.
    pub fn async_reader(&self) -> Result<AsyncReader, ClientError> {
        match &self.inner {
            Inner::Verbs(dataset) => dataset.async_reader(),
            Inner::Local(dataset) => dataset.async_reader(),
        }
    }
}

fn verbs(done: Completion<crate::memory::BufferOn<Verbs>>) -> Completion<Moved> {
    done.map(|buffer| Moved::of(Memory::Verbs(buffer)))
}

fn local(done: Completion<crate::memory::BufferOn<Local>>) -> Completion<Moved> {
    done.map(|buffer| Moved::of(Memory::Local(buffer)))
}

impl Reader {
    /// Asks for the value of `key`.
    ///
    /// # Errors
    /// [`ReadError::Busy`] if too many values are submitted and not taken.
    pub fn submit(&mut self, key: &[u8]) -> Result<Ticket, ReadError> {
        on!(self, reader => reader.submit(key))
    }

    /// Asks for the value at a locator. Where `key` is given, what lies there must be that key's.
    ///
    /// # Errors
    /// As [`Reader::submit`].
    pub fn submit_at(&mut self, at: &GlobalLocator, key: Option<&[u8]>) -> Result<Ticket, ReadError> {
        on!(self, reader => reader.submit_at(at, key))
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
        self.submit_to(buffer, |inner, memory| match (inner, memory) {
            (Readers::Verbs(reader), Memory::Verbs(buffer)) => reader
                .submit_into(key, buffer, offset)
                .map_err(|(error, buffer)| (error, Memory::Verbs(buffer))),
            (Readers::Local(reader), Memory::Local(buffer)) => reader
                .submit_into(key, buffer, offset)
                .map_err(|(error, buffer)| (error, Memory::Local(buffer))),
            (_, memory) => Err((ReadError::OtherSession, memory)),
        })
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
        self.submit_to(buffer, |inner, memory| match (inner, memory) {
            (Readers::Verbs(reader), Memory::Verbs(buffer)) => reader
                .submit_at_into(at, key, buffer, offset)
                .map_err(|(error, buffer)| (error, Memory::Verbs(buffer))),
            (Readers::Local(reader), Memory::Local(buffer)) => reader
                .submit_at_into(at, key, buffer, offset)
                .map_err(|(error, buffer)| (error, Memory::Local(buffer))),
            (_, memory) => Err((ReadError::OtherSession, memory)),
        })
    }

    fn submit_to<D: Destination>(
        &mut self,
        buffer: D,
        submit: impl FnOnce(&mut Readers, Memory) -> Result<Ticket, (ReadError, Memory)>,
    ) -> Result<Ticket, (ReadError, D)> {
        submit(&mut self.inner, buffer.into_memory()).map_err(|(error, memory)| (error, D::of(memory)))
    }

    /// Values that were submitted and not taken.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        match &self.inner {
            Readers::Verbs(reader) => reader.outstanding(),
            Readers::Local(reader) => reader.outstanding(),
        }
    }

    /// Posts what was submitted, and takes a value that is done, in order of completion; `None` if none is yet.
    pub fn poll(&mut self) -> Option<Completion<Moved>> {
        match &mut self.inner {
            Readers::Verbs(reader) => reader.poll().map(verbs),
            Readers::Local(reader) => reader.poll().map(local),
        }
    }

    /// As [`Reader::poll`], but waits until a value is done; `None` if none is outstanding.
    pub fn wait(&mut self) -> Option<Completion<Moved>> {
        match &mut self.inner {
            Readers::Verbs(reader) => reader.wait().map(verbs),
            Readers::Local(reader) => reader.wait().map(local),
        }
    }

    /// The value of `key`. What was submitted goes on beside it.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub fn get(&mut self, key: &[u8]) -> Result<Value, ReadError> {
        on!(self, reader => reader.get(key))
    }

    /// The value at a locator: one READ.
    ///
    /// # Errors
    /// As [`Client::get_at`].
    pub fn get_at(&mut self, at: &GlobalLocator, key: Option<&[u8]>) -> Result<Value, ReadError> {
        on!(self, reader => reader.get_at(at, key))
    }

    /// The values of many keys, in their order.
    pub fn get_many<K: AsRef<[u8]>>(&mut self, keys: &[K]) -> Vec<Result<Value, ReadError>> {
        on!(self, reader => reader.get_many(keys))
    }

    /// The values at many locators, in their order; `keys`, where given, belong to them one by one.
    pub fn get_many_at<K: AsRef<[u8]>>(
        &mut self,
        at: &[GlobalLocator],
        keys: Option<&[K]>,
    ) -> Vec<Result<Value, ReadError>> {
        on!(self, reader => reader.get_many_at(at, keys))
    }

    /// Reads the value of `key` straight into `buffer` at `offset`; its length.
    ///
    /// # Errors
    /// As [`Client::get_into`].
    pub fn get_into(
        &mut self,
        key: &[u8],
        buffer: &mut impl Destination,
        offset: usize,
    ) -> Result<usize, ReadError> {
        match (&mut self.inner, buffer.memory()) {
            (Readers::Verbs(reader), Memory::Verbs(buffer)) => reader.get_into(key, buffer, offset),
            (Readers::Local(reader), Memory::Local(buffer)) => reader.get_into(key, buffer, offset),
            _ => Err(ReadError::OtherSession),
        }
    }

    /// Reads the value at a locator straight into `buffer` at `offset`, with one READ; its length.
    ///
    /// # Errors
    /// As [`Client::get_at_into`].
    pub fn get_at_into(
        &mut self,
        at: &GlobalLocator,
        key: Option<&[u8]>,
        buffer: &mut impl Destination,
        offset: usize,
    ) -> Result<usize, ReadError> {
        match (&mut self.inner, buffer.memory()) {
            (Readers::Verbs(reader), Memory::Verbs(buffer)) => reader.get_at_into(at, key, buffer, offset),
            (Readers::Local(reader), Memory::Local(buffer)) => reader.get_at_into(at, key, buffer, offset),
            _ => Err(ReadError::OtherSession),
        }
    }

    /// Reads the values of many keys straight into `buffer`, each at its offset: as [`Client::get_many_into`].
    pub fn get_many_into<K: AsRef<[u8]>>(
        &mut self,
        keys: &[K],
        buffer: &mut impl Destination,
        offsets: &[usize],
    ) -> Vec<Result<usize, ReadError>> {
        match (&mut self.inner, buffer.memory()) {
            (Readers::Verbs(reader), Memory::Verbs(buffer)) => reader.get_many_into(keys, buffer, offsets),
            (Readers::Local(reader), Memory::Local(buffer)) => reader.get_many_into(keys, buffer, offsets),
            _ => vec![Err(ReadError::OtherSession); keys.len()],
        }
    }
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Reader({} outstanding)", self.outstanding())
    }
}
