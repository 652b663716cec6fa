//! What programs call: a session and its datasets, over whichever fabric the target names.
//!
//! The fabric is chosen once a call, here; everything below is compiled for each.

/// Calls the same on whichever fabric it is.
macro_rules! on {
    ($kind:ident, $inner:expr, $it:ident => $call:expr) => {
        match $inner {
            $kind::Verbs($it) => $call,
            $kind::Local($it) => $call,
        }
    };
}

mod buffers;
mod reader;

use std::io::Read;

use kv_fabric::local::Local;
use kv_fabric::verbs::Verbs;

pub use buffers::{Destination, Moved, RegisteredBuffer, RegisteredMemory};
pub use reader::Reader;

use crate::clock::Deadline;
use crate::dataset::DatasetOn;
use crate::list::ListOn;
use crate::memory::BufferOn;
use crate::server::SessionOn;
use crate::{
    ClientError, ClientOptions, Counters, DatasetId, DatasetInfo, Entry, GlobalLocator, PutOutcome,
    ReadError, Target,
};

#[derive(Clone)]
enum Session {
    Verbs(SessionOn<Verbs>),
    Local(SessionOn<Local>),
}

#[derive(Clone)]
pub(crate) enum Inner {
    Verbs(DatasetOn<Verbs>),
    Local(DatasetOn<Local>),
}

pub(crate) enum Memory {
    Verbs(BufferOn<Verbs>),
    Local(BufferOn<Local>),
}

/// A session with a server. Clones share it; it ends when the last clone and the last [`Client`] of it are dropped.
#[derive(Clone)]
pub struct Server {
    session: Session,
}

impl Server {
    /// The session of this process with the server that `target` names, begun if it has none under this key: all that
    /// connect share it, its tables and its lease. Settings of clients and readers are those given here; those of the
    /// session itself (`client_id`, `session_connections`) are the ones that it was begun with. A `client_id` of its own
    /// or a `first_operation` has a session of its own.
    ///
    /// # Errors
    /// [`ClientError::Fabric`] if it cannot be reached, [`ClientError::Refused`] if it does not take the key,
    /// [`ClientError::Timeout`] if it does not answer within `options.connect_timeout`.
    pub fn connect(target: &Target, options: ClientOptions) -> Result<Self, ClientError> {
        let address = target.address()?;
        let session = match target {
            Target::Rdma { .. } => {
                let fabric = |deadline: Deadline| Ok(Verbs::for_peer_until(&address, deadline.instant())?);
                Session::Verbs(SessionOn::shared_by_process(fabric, &address, options)?)
            }
            Target::Local { .. } => {
                let fabric = |_| Ok(Local::new()?);
                Session::Local(SessionOn::shared_by_process(fabric, &address, options)?)
            }
        };
        Ok(Self { session })
    }

    /// Creates a dataset; it is durable when this returns. Needs the role `admin`.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with why; [`ClientError::Unknown`] if the connection was lost meanwhile.
    pub fn create(&self, name: &str) -> Result<DatasetId, ClientError> {
        on!(Session, &self.session, session => session.create(name))
    }

    /// Drops a dataset and all in it. Needs the role `admin`.
    ///
    /// # Errors
    /// As [`Server::create`].
    pub fn drop_dataset(&self, name: &str) -> Result<(), ClientError> {
        on!(Session, &self.session, session => session.drop_dataset(name))
    }

    /// Renames a dataset. Needs the role `admin`.
    ///
    /// # Errors
    /// As [`Server::create`].
    pub fn rename(&self, from: &str, to: &str) -> Result<(), ClientError> {
        on!(Session, &self.session, session => session.rename(from, to))
    }

    /// The datasets that the key may open, by name.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn datasets(&self) -> Result<Vec<DatasetInfo>, ClientError> {
        on!(Session, &self.session, session => session.datasets())
    }

    /// Figures of the server: name (the unit is its last word) and value.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn stat(&self) -> Result<Vec<(String, u64)>, ClientError> {
        on!(Session, &self.session, session => session.stat())
    }

    /// Opens a dataset.
    ///
    /// # Errors
    /// [`ClientError::Refused`] if there is none of this name or the key may not open it.
    pub fn open(&self, dataset: &str) -> Result<Client, ClientError> {
        let inner = match &self.session {
            Session::Verbs(session) => Inner::Verbs(session.open(dataset)?),
            Session::Local(session) => Inner::Local(session.open(dataset)?),
        };
        Ok(Client { inner })
    }

    /// Lets go of the session, which ends with its last client.
    ///
    /// # Errors
    /// None today.
    pub fn close(self) -> Result<(), ClientError> {
        drop(self);
        Ok(())
    }

    /// The fabric and what it chose, for people: device, port, GID and why, MTU.
    #[must_use]
    pub fn describe(&self) -> String {
        on!(Session, &self.session, session => session.describe())
    }
}

/// One dataset of a session.
///
/// Its methods can be called from several threads at once; threads that read much do better each with a clone, which
/// has data connections of its own. Calls return when they are done, or when they have not got on for
/// [`ClientOptions::deadline`].
#[derive(Clone)]
pub struct Client {
    pub(crate) inner: Inner,
}

impl Client {
    /// Begins a session and opens the dataset that `uri` names.
    ///
    /// # Errors
    /// As [`Server::connect`] and [`Server::open`]; [`ClientError::Target`] if `uri` names no dataset.
    pub fn connect(uri: &str, options: ClientOptions) -> Result<Self, ClientError> {
        let target: Target = uri.parse()?;
        let dataset = target.dataset().ok_or_else(|| ClientError::Target {
            value: uri.to_owned(),
            why: "it names no dataset",
        })?;
        Server::connect(&target, options)?.open(dataset)
    }

    /// The value of `key`.
    ///
    /// # Errors
    /// [`ReadError::NotFound`] if there is none; else why it could not be read.
    pub fn get(&self, key: &[u8]) -> Result<Vec<u8>, ReadError> {
        on!(Inner, &self.inner, dataset => dataset.get(key))
    }

    /// Bytes `offset..offset + len` of a value, as far as it has them. Only the blocks that hold them are read.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub fn get_range(&self, key: &[u8], offset: u64, len: u64) -> Result<Vec<u8>, ReadError> {
        on!(Inner, &self.inner, dataset => dataset.get_range(key, offset, len))
    }

    /// The values of many keys, in their order.
    pub fn get_many<K: AsRef<[u8]>>(&self, keys: &[K]) -> Vec<Result<Vec<u8>, ReadError>> {
        on!(Inner, &self.inner, dataset => dataset.get_many(keys))
    }

    /// Where the value of `key` lies now. The locator stays good until the key is stored again or deleted and the
    /// server has tidied up, restarts included.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub fn locate(&self, key: &[u8]) -> Result<GlobalLocator, ReadError> {
        on!(Inner, &self.inner, dataset => dataset.locate(key))
    }

    /// Where the values of many keys lie, in their order.
    pub fn locate_many<K: AsRef<[u8]>>(&self, keys: &[K]) -> Vec<Result<GlobalLocator, ReadError>> {
        on!(Inner, &self.inner, dataset => dataset.locate_many(keys))
    }

    /// The value at a locator: one READ. Where `key` is given, what lies there must be that key's.
    ///
    /// # Errors
    /// [`ReadError::Stale`] if the locator names nothing any more; else as [`Client::get`].
    pub fn get_at(&self, at: &GlobalLocator, key: Option<&[u8]>) -> Result<Vec<u8>, ReadError> {
        on!(Inner, &self.inner, dataset => dataset.get_at(at, key))
    }

    /// The values at many locators, in their order; `keys`, where given, belong to them one by one.
    pub fn get_many_at<K: AsRef<[u8]>>(
        &self,
        at: &[GlobalLocator],
        keys: Option<&[K]>,
    ) -> Vec<Result<Vec<u8>, ReadError>> {
        on!(Inner, &self.inner, dataset => dataset.get_many_at(at, keys))
    }

    /// Registered memory of `len` bytes, zeroed, for [`Client::get_into`].
    ///
    /// # Errors
    /// [`ClientError::Fabric`] if it cannot be had: the text says which limit was met.
    pub fn allocate(&self, len: usize) -> Result<RegisteredBuffer, ClientError> {
        let memory = match &self.inner {
            Inner::Verbs(dataset) => Memory::Verbs(dataset.allocate(len)?),
            Inner::Local(dataset) => Memory::Local(dataset.allocate(len)?),
        };
        Ok(RegisteredBuffer { memory })
    }

    /// Reads the value of `key` straight into `buffer` at `offset`; its length. What the buffer holds after an error
    /// is not told.
    ///
    /// # Errors
    /// [`ReadError::TooLarge`] if it does not fit; else as [`Client::get`].
    pub fn get_into(
        &self,
        key: &[u8],
        buffer: &mut impl Destination,
        offset: usize,
    ) -> Result<usize, ReadError> {
        match (&self.inner, buffer.memory()) {
            (Inner::Verbs(dataset), Memory::Verbs(buffer)) => dataset.get_into(key, buffer, offset),
            (Inner::Local(dataset), Memory::Local(buffer)) => dataset.get_into(key, buffer, offset),
            _ => Err(ReadError::OtherSession),
        }
    }

    /// Reads the value at a locator straight into `buffer` at `offset`, with one READ; its length.
    ///
    /// # Errors
    /// [`ReadError::TooLarge`] if it does not fit; else as [`Client::get_at`].
    pub fn get_at_into(
        &self,
        at: &GlobalLocator,
        key: Option<&[u8]>,
        buffer: &mut impl Destination,
        offset: usize,
    ) -> Result<usize, ReadError> {
        match (&self.inner, buffer.memory()) {
            (Inner::Verbs(dataset), Memory::Verbs(buffer)) => dataset.get_at_into(at, key, buffer, offset),
            (Inner::Local(dataset), Memory::Local(buffer)) => dataset.get_at_into(at, key, buffer, offset),
            _ => Err(ReadError::OtherSession),
        }
    }

    /// Reads the values of many keys straight into `buffer`, as the batch of a tensor: that of each key begins at its offset, and
    /// has room up to the next one's, the last up to the end. Their lengths, in the order of the keys. The call returns when
    /// nothing more can come to the memory; what the place of a value holds after its error is not told.
    ///
    /// Each may fail with [`ReadError::TooLarge`] if it does not fit, and as [`Client::get`]; all with [`ReadError::BadPlaces`] if the
    /// offsets are not one for each key, in ascending order, inside the buffer.
    pub fn get_many_into<K: AsRef<[u8]>>(
        &self,
        keys: &[K],
        buffer: &mut impl Destination,
        offsets: &[usize],
    ) -> Vec<Result<usize, ReadError>> {
        match (&self.inner, buffer.memory()) {
            (Inner::Verbs(dataset), Memory::Verbs(buffer)) => dataset.get_many_into(keys, buffer, offsets),
            (Inner::Local(dataset), Memory::Local(buffer)) => dataset.get_many_into(keys, buffer, offsets),
            _ => vec![Err(ReadError::OtherSession); keys.len()],
        }
    }

    /// Stores a value; it is durable and visible when this returns.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with why; [`ClientError::Unknown`] if whether it was stored is not known.
    pub fn put(&self, key: &[u8], value: &[u8]) -> Result<PutOutcome, ClientError> {
        on!(Inner, &self.inner, dataset => dataset.put(key, value))
    }

    /// Stores a value of `len` bytes that `source` gives, without holding all of it.
    ///
    /// # Errors
    /// As [`Client::put`]; [`ClientError::Source`] and [`ClientError::SourceLength`] if the source fails or gives
    /// another number of bytes; [`ClientError::StreamLost`] if the connection was lost and the source, which cannot be
    /// asked twice, had been read. Nothing is stored then.
    pub fn put_from(&self, key: &[u8], len: u64, source: &mut dyn Read) -> Result<PutOutcome, ClientError> {
        on!(Inner, &self.inner, dataset => dataset.put_from(key, len, source))
    }

    /// Stores many values, several at once; outcomes in their order. Of two with one key either may come last.
    pub fn put_many<K: AsRef<[u8]>, V: AsRef<[u8]>>(
        &self,
        items: &[(K, V)],
    ) -> Vec<Result<PutOutcome, ClientError>> {
        on!(Inner, &self.inner, dataset => dataset.put_many(items))
    }

    /// Deletes a key; whether it was there. Durable when this returns.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub fn delete(&self, key: &[u8]) -> Result<bool, ClientError> {
        on!(Inner, &self.inner, dataset => dataset.delete(key))
    }

    /// The keys of the dataset, in no order that means anything; the iterator ends after an error.
    #[must_use]
    pub fn list(&self) -> List {
        let pages = match &self.inner {
            Inner::Verbs(dataset) => Pages::Verbs(dataset.list()),
            Inner::Local(dataset) => Pages::Local(dataset.list()),
        };
        List { pages }
    }

    /// Figures of the dataset: name (the unit is its last word) and value.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn stat(&self) -> Result<Vec<(String, u64)>, ClientError> {
        on!(Inner, &self.inner, dataset => dataset.stat())
    }

    /// What this client and its clones have done so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        on!(Inner, &self.inner, dataset => dataset.counters())
    }

    /// Id of the dataset.
    #[must_use]
    pub fn dataset_id(&self) -> DatasetId {
        on!(Inner, &self.inner, dataset => dataset.id())
    }

    /// The session that it is of.
    #[must_use]
    pub fn server(&self) -> Server {
        let session = match &self.inner {
            Inner::Verbs(dataset) => Session::Verbs(dataset.session()),
            Inner::Local(dataset) => Session::Local(dataset.session()),
        };
        Server { session }
    }

    /// As [`Server::describe`].
    #[must_use]
    pub fn describe(&self) -> String {
        self.server().describe()
    }
}

/// The keys of a dataset: see [`Client::list`].
pub struct List {
    pages: Pages,
}

enum Pages {
    Verbs(ListOn<Verbs>),
    Local(ListOn<Local>),
}

impl Iterator for List {
    type Item = Result<Entry, ClientError>;

    fn next(&mut self) -> Option<Self::Item> {
        on!(Pages, &mut self.pages, pages => pages.next())
    }
}
