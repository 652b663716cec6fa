//! A dataset over one fabric: the generic core under [`crate::Client`]. Its puts are in [`crate::put`].

use std::ops::Range;
use std::sync::Arc;

use kv_fabric::Fabric;
use kv_proto::control::{Answer, Bytes, Request};
use parking_lot::{Mutex, MutexGuard};

use crate::future::AsyncReader;
use crate::list::ListOn;
use crate::memory::BufferOn;
use crate::opening::Core;
use crate::read::arrive::global;
use crate::read::calls::{ByKey, ByPlace, Got, Wishes, by_key, by_place};
use crate::read::check_key;
use crate::read::engine::Engine;
use crate::read::item::Want;
use crate::read::placed::Places;
use crate::reader::ReaderOn;
use crate::server::{SessionOn, figures};
use crate::{ClientError, ClientOptions, Counters, DatasetId, GlobalLocator, ReadError};

/// Values of one call that are read before another thread's call has its turn: the lock is a fair one.
const TURN: usize = 4096;

/// A dataset on fabric `F`. A clone has an engine, and so data connections, of its own.
pub struct DatasetOn<F: Fabric> {
    // In this order: connections go before the dataset is closed.
    engine: Mutex<Option<Box<Engine<F>>>>,
    pub(crate) options: Arc<ClientOptions>,
    pub(crate) core: Arc<Core<F>>,
}

impl<F: Fabric> Clone for DatasetOn<F> {
    fn clone(&self) -> Self {
        Self::over(Arc::clone(&self.core), Arc::clone(&self.options))
    }
}

/// The engine, in use by a call. However the use ends, by unwinding too, nothing of it is in flight after it.
struct Held<'a, F: Fabric>(MutexGuard<'a, Option<Box<Engine<F>>>>);

impl<F: Fabric> Drop for Held<'_, F> {
    fn drop(&mut self) {
        if let Some(engine) = self.0.as_mut().filter(|engine| !engine.is_at_rest()) {
            engine.abort();
        }
    }
}

impl<F: Fabric> DatasetOn<F> {
    pub(crate) fn over(core: Arc<Core<F>>, options: Arc<ClientOptions>) -> Self {
        Self {
            engine: Mutex::new(None),
            options,
            core,
        }
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> DatasetId {
        self.core.id()
    }

    /// The session that it is of.
    #[must_use]
    pub fn session(&self) -> SessionOn<F> {
        self.core.session().clone()
    }

    /// What it and its clones have done so far.
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
    fn hold(&self) -> Result<Held<'_, F>, ReadError> {
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

    fn with<T>(&self, work: impl FnOnce(&mut Engine<F>) -> Result<T, ReadError>) -> Result<T, ReadError> {
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

    /// A reader of its own for one thread.
    ///
    /// # Errors
    /// [`ClientError::System`] if this process has no descriptor left.
    pub fn reader(&self) -> Result<ReaderOn<F>, ClientError> {
        ReaderOn::new(Arc::clone(&self.core), Arc::clone(&self.options))
    }

    /// A reader of futures, with a thread of its own.
    ///
    /// # Errors
    /// [`ClientError::System`] if this process can have no further descriptor or thread.
    pub fn async_reader(&self) -> Result<AsyncReader, ClientError> {
        AsyncReader::start(Arc::clone(&self.core), Arc::clone(&self.options))
    }

    /// As [`crate::Client::get`].
    ///
    /// # Errors
    /// As there.
    pub fn get(&self, key: &[u8]) -> Result<Vec<u8>, ReadError> {
        let got = self.with(|engine| engine.read_one(by_key(key), Want::Whole))?;
        Ok(got.value.into())
    }

    /// As [`crate::Client::get_range`].
    ///
    /// # Errors
    /// As there.
    pub fn get_range(&self, key: &[u8], offset: u64, len: u64) -> Result<Vec<u8>, ReadError> {
        let want = Want::Range { offset, len };
        let got = self.with(|engine| engine.read_one(by_key(key), want))?;
        Ok(got.value.into())
    }

    /// As [`crate::Client::get_many`].
    pub fn get_many<K: AsRef<[u8]>>(&self, keys: &[K]) -> Vec<Result<Vec<u8>, ReadError>> {
        let wishes = |range| ByKey(&keys[range]);
        self.read_many(keys.len(), Want::Whole, wishes, |got| got.value.into())
    }

    /// As [`crate::Client::locate`].
    ///
    /// # Errors
    /// As there.
    pub fn locate(&self, key: &[u8]) -> Result<GlobalLocator, ReadError> {
        let got = self.with(|engine| engine.read_one(by_key(key), Want::Locator))?;
        Ok(global(self.id(), got.found.locator))
    }

    /// As [`crate::Client::locate_many`].
    pub fn locate_many<K: AsRef<[u8]>>(&self, keys: &[K]) -> Vec<Result<GlobalLocator, ReadError>> {
        let id = self.id();
        let wishes = |range| ByKey(&keys[range]);
        self.read_many(keys.len(), Want::Locator, wishes, |got| {
            global(id, got.found.locator)
        })
    }

    /// As [`crate::Client::get_at`].
    ///
    /// # Errors
    /// As there.
    pub fn get_at(&self, at: &GlobalLocator, key: Option<&[u8]>) -> Result<Vec<u8>, ReadError> {
        let wish = by_place(self.id(), at, key);
        Ok(self
            .with(|engine| engine.read_one(wish, Want::Whole))?
            .value
            .into())
    }

    /// As [`crate::Client::get_many_at`].
    pub fn get_many_at<K: AsRef<[u8]>>(
        &self,
        at: &[GlobalLocator],
        keys: Option<&[K]>,
    ) -> Vec<Result<Vec<u8>, ReadError>> {
        let id = self.id();
        let wishes = |range: Range<usize>| ByPlace {
            id,
            at: &at[range.clone()],
            keys: keys.map(|keys| &keys[range.start.min(keys.len())..range.end.min(keys.len())]),
        };
        self.read_many(at.len(), Want::Whole, wishes, |got| got.value.into())
    }

    /// As [`crate::Client::get_into`].
    ///
    /// # Errors
    /// As there.
    pub fn get_into(&self, key: &[u8], buffer: &mut BufferOn<F>, offset: usize) -> Result<usize, ReadError> {
        self.with(|engine| engine.read_into(by_key(key), buffer, offset))
    }

    /// As [`crate::Client::get_at_into`].
    ///
    /// # Errors
    /// As there.
    pub fn get_at_into(
        &self,
        at: &GlobalLocator,
        key: Option<&[u8]>,
        buffer: &mut BufferOn<F>,
        offset: usize,
    ) -> Result<usize, ReadError> {
        let wish = by_place(self.id(), at, key);
        self.with(|engine| engine.read_into(wish, buffer, offset))
    }

    /// As [`crate::Client::get_many_into`].
    pub fn get_many_into<K: AsRef<[u8]>>(
        &self,
        keys: &[K],
        buffer: &mut BufferOn<F>,
        offsets: &[usize],
    ) -> Vec<Result<usize, ReadError>> {
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

    /// As [`crate::Client::allocate`].
    ///
    /// # Errors
    /// As there.
    pub fn allocate(&self, len: usize) -> Result<BufferOn<F>, ClientError> {
        Ok(BufferOn::allocate(&self.core.shared().fabric, len)?)
    }

    /// As [`crate::Client::delete`].
    ///
    /// # Errors
    /// As there.
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

    /// As [`crate::Client::stat`].
    ///
    /// # Errors
    /// As there.
    pub fn stat(&self) -> Result<Vec<(String, u64)>, ClientError> {
        let what = || format!("stat dataset `{}`", self.core.name());
        let answer = self.core.ask(what, |dataset| Request::Stat { dataset }, false)?;
        figures(answer).or_else(|other| self.core.strange(&other))
    }

    /// As [`crate::Client::list`].
    #[must_use]
    pub fn list(&self) -> ListOn<F> {
        ListOn::new(Arc::clone(&self.core))
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
