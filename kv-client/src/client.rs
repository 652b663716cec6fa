//! A dataset, as programs read and change it. Its puts are in [`crate::put`].

use std::ops::Range;
use std::sync::Arc;

use kv_proto::control::{Answer, Bytes, Request};
use parking_lot::{Mutex, MutexGuard};

use crate::future::AsyncReader;
use crate::list::List;
use crate::memory::Buffer;
use crate::opening::Core;
use crate::read::arrive::global;
use crate::read::calls::{ByKey, ByPlace, Got, Wishes, by_key, by_place};
use crate::read::check_key;
use crate::read::engine::Engine;
use crate::read::item::Want;
use crate::read::placed::Places;
use crate::reader::Reader;
use crate::server::{Server, figures};
use crate::{
    ClientError, ClientOptions, Counters, DatasetId, Destination, GlobalLocator, ReadError, RegisteredBuffer,
    Target,
};

/// Values of one call that are read before another thread's call has its turn: the lock is a fair one.
const TURN: usize = 4096;

/// One dataset of a session.
///
/// Its methods can be called from several threads at once; threads that read much do better each with a clone, which
/// has data connections of its own. Calls return when they are done, or when they have not got on for
/// [`ClientOptions::deadline`].
pub struct Client {
    // In this order: connections go before the dataset is closed.
    engine: Mutex<Option<Box<Engine>>>,
    pub(crate) options: Arc<ClientOptions>,
    pub(crate) core: Arc<Core>,
}

impl Clone for Client {
    fn clone(&self) -> Self {
        Self::over(Arc::clone(&self.core), Arc::clone(&self.options))
    }
}

/// The engine, in use by a call. However the use ends, by unwinding too, nothing of it is in flight after it.
struct Held<'a>(MutexGuard<'a, Option<Box<Engine>>>);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if let Some(engine) = self.0.as_mut().filter(|engine| !engine.is_at_rest()) {
            engine.abort();
        }
    }
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

    pub(crate) fn over(core: Arc<Core>, options: Arc<ClientOptions>) -> Self {
        Self {
            engine: Mutex::new(None),
            options,
            core,
        }
    }

    /// Id of the dataset.
    #[must_use]
    pub fn dataset_id(&self) -> DatasetId {
        self.core.id()
    }

    /// The session that it is of.
    #[must_use]
    pub fn server(&self) -> Server {
        self.core.session().clone()
    }

    /// What this client and its clones have done so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let mut sum = self.core.tally().sum();
        sum.renewals = self
            .core
            .shared()
            .renewals
            .load(std::sync::atomic::Ordering::Relaxed);
        sum.sessions = self
            .core
            .shared()
            .sessions
            .load(std::sync::atomic::Ordering::Relaxed);
        let registrations = self.core.session().registrations();
        sum.registrations = registrations.made.load(std::sync::atomic::Ordering::Relaxed);
        sum
    }

    /// The engine, as soon as it is this call's turn.
    fn hold(&self) -> Result<Held<'_>, ReadError> {
        let engine = self.engine.try_lock_for(self.options.deadline);
        let mut held = Held(engine.ok_or(ReadError::Timeout)?);
        if held.0.is_none() {
            let engine = Engine::new(Arc::clone(&self.core), Arc::clone(&self.options));
            *held.0 = Some(Box::new(engine.map_err(|error| {
                tracing::error!(%error, "no read engine");
                ReadError::NoResources
            })?));
        }
        Ok(held)
    }

    fn with<T>(&self, work: impl FnOnce(&mut Engine) -> Result<T, ReadError>) -> Result<T, ReadError> {
        let mut held = self.hold()?;
        held.0
            .as_mut()
            .map_or(Err(ReadError::Closed), |engine| work(engine))
    }

    /// Reads many values; `wishes` are those of a range of them.
    fn read_many<W: Wishes, T>(
        &self,
        count: usize,
        want: Want,
        wishes: impl Fn(Range<usize>) -> W,
        what: impl Fn(Got) -> T,
    ) -> Vec<Result<T, ReadError>> {
        let read = |range: Range<usize>| {
            let count = range.len();
            let read = self.with(|engine| Ok(engine.read_many(count, want, wishes(range), &what)));
            read.unwrap_or_else(|error| (0..count).map(|_| Err(error)).collect())
        };
        if count <= TURN {
            return read(0..count);
        }
        let mut results = Vec::with_capacity(count);
        while results.len() < count {
            results.extend(read(results.len()..count.min(results.len() + TURN)));
        }
        results
    }

    /// A reader for one thread, with data connections of its own.
    ///
    /// # Errors
    /// [`ClientError::System`] if this process can have no further descriptor.
    pub fn reader(&self) -> Result<Reader, ClientError> {
        Reader::new(Arc::clone(&self.core), Arc::clone(&self.options))
    }

    /// A reader of futures, with data connections and a thread of its own.
    ///
    /// # Errors
    /// [`ClientError::System`] if this process can have no further descriptor or thread.
    pub fn async_reader(&self) -> Result<AsyncReader, ClientError> {
        AsyncReader::start(Arc::clone(&self.core), Arc::clone(&self.options))
    }

    /// The value of `key`.
    ///
    /// # Errors
    /// [`ReadError::NotFound`] if there is none; else why it could not be read.
    pub fn get(&self, key: &[u8]) -> Result<Vec<u8>, ReadError> {
        let got = self.with(|engine| engine.read_one(by_key(key), Want::Whole))?;
        Ok(got.value.into())
    }

    /// Bytes `offset..offset + len` of a value, as far as it has them. Only the blocks that hold them are read.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub fn get_range(&self, key: &[u8], offset: u64, len: u64) -> Result<Vec<u8>, ReadError> {
        let want = Want::Range { offset, len };
        let got = self.with(|engine| engine.read_one(by_key(key), want))?;
        Ok(got.value.into())
    }

    /// The values of many keys, in their order.
    pub fn get_many<K: AsRef<[u8]>>(&self, keys: &[K]) -> Vec<Result<Vec<u8>, ReadError>> {
        let wishes = |range| ByKey(&keys[range]);
        self.read_many(keys.len(), Want::Whole, wishes, |got| got.value.into())
    }

    /// Where the value of `key` lies now. The locator stays good until the key is stored again or deleted and the
    /// server has tidied up, restarts included.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub fn locate(&self, key: &[u8]) -> Result<GlobalLocator, ReadError> {
        let got = self.with(|engine| engine.read_one(by_key(key), Want::Locator))?;
        Ok(global(self.dataset_id(), got.found.locator))
    }

    /// Where the values of many keys lie, in their order.
    pub fn locate_many<K: AsRef<[u8]>>(&self, keys: &[K]) -> Vec<Result<GlobalLocator, ReadError>> {
        let id = self.dataset_id();
        let wishes = |range| ByKey(&keys[range]);
        self.read_many(keys.len(), Want::Locator, wishes, |got| {
            global(id, got.found.locator)
        })
    }

    /// The value at a locator: one READ. Where `key` is given, what lies there must be that key's.
    ///
    /// # Errors
    /// [`ReadError::Stale`] if the locator names nothing any more; else as [`Client::get`].
    pub fn get_at(&self, at: &GlobalLocator, key: Option<&[u8]>) -> Result<Vec<u8>, ReadError> {
        let wish = by_place(self.dataset_id(), at, key);
        Ok(self
            .with(|engine| engine.read_one(wish, Want::Whole))?
            .value
            .into())
    }

    /// The values at many locators, in their order; `keys`, where given, belong to them one by one.
    pub fn get_many_at<K: AsRef<[u8]>>(
        &self,
        at: &[GlobalLocator],
        keys: Option<&[K]>,
    ) -> Vec<Result<Vec<u8>, ReadError>> {
        let id = self.dataset_id();
        let wishes = |range: Range<usize>| ByPlace {
            id,
            at: &at[range.clone()],
            keys: keys.map_or(&[][..], |keys| {
                &keys[range.start.min(keys.len())..range.end.min(keys.len())]
            }),
        };
        self.read_many(at.len(), Want::Whole, wishes, |got| got.value.into())
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
        self.with(|engine| engine.read_into(by_key(key), buffer.memory(), offset))
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
        let wish = by_place(self.dataset_id(), at, key);
        self.with(|engine| engine.read_into(wish, buffer.memory(), offset))
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
        let buffer = buffer.memory();
        let places = match Places::new(buffer, keys.len(), offsets) {
            Ok(places) => places,
            Err(error) => return vec![Err(error); keys.len()],
        };
        let mut lens = vec![Err(ReadError::Closed); keys.len()];
        for first in (0..keys.len()).step_by(TURN) {
            let range = first..keys.len().min(first + TURN);
            let lens = &mut lens[range.clone()];
            let read = self.with(|engine| {
                engine.read_placed(keys, buffer, places, range, lens);
                Ok(())
            });
            if let Err(error) = read {
                lens.fill(Err(error));
            }
        }
        lens
    }

    /// Registered memory of `len` bytes, zeroed, for [`Client::get_into`].
    ///
    /// # Errors
    /// [`ClientError::Fabric`] if it cannot be had: the text says which limit was met.
    pub fn allocate(&self, len: usize) -> Result<RegisteredBuffer, ClientError> {
        let memory = Buffer::allocate(&self.core.shared().fabric, len)?;
        Ok(RegisteredBuffer { memory })
    }

    /// Deletes a key; whether it was there. Durable when this returns.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub fn delete(&self, key: &[u8]) -> Result<bool, ClientError> {
        if check_key(key).is_err() {
            return Err(bad_key(key));
        }
        let operation = self.core.shared().next_operation();
        let request = |dataset| Request::Delete {
            dataset,
            operation,
            key: Bytes::from(key),
        };
        match self
            .core
            .ask(|| format!("delete {}", shown(key)), request, true)?
        {
            Answer::Delete { existed, .. } => Ok(existed != 0),
            other => self.core.strange(&other),
        }
    }

    /// Figures of the dataset: name (the unit is its last word) and value.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn stat(&self) -> Result<Vec<(String, u64)>, ClientError> {
        let what = || format!("stat dataset `{}`", self.core.name());
        let answer = self.core.ask(what, |dataset| Request::Stat { dataset }, false)?;
        figures(answer).or_else(|other| self.core.strange(&other))
    }

    /// The keys of the dataset, in no order that means anything; the iterator ends after an error.
    #[must_use]
    pub fn list(&self) -> List {
        List::new(Arc::clone(&self.core))
    }

    /// As [`Server::describe`].
    #[must_use]
    pub fn describe(&self) -> String {
        self.core.session().describe()
    }
}

/// The error of a key that cannot be.
pub(crate) fn bad_key(key: &[u8]) -> ClientError {
    ClientError::BadKey {
        key: shown(key),
        len_bytes: key.len(),
    }
}

/// A key for people: its bytes, escaped and cut.
pub(crate) fn shown(key: &[u8]) -> String {
    const SHOWN_MAX: usize = 80;
    let cut = key.get(..SHOWN_MAX).unwrap_or(key);
    let dots = if cut.len() < key.len() { "..." } else { "" };
    format!("`{}{dots}`", cut.escape_ascii())
}
