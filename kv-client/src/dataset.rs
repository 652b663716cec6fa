//! A dataset over one fabric: the generic core under [`crate::Client`]. Its puts are in [`crate::put`].

use std::sync::{Arc, Mutex};

use kv_fabric::Fabric;
use kv_proto::control::{Answer, Bytes, Request};

use crate::list::ListOn;
use crate::memory::BufferOn;
use crate::opening::Core;
use crate::read::arrive::global;
use crate::read::fast::Fast;
use crate::read::item::{Found, Item, Want};
use crate::read::lane::Lane;
use crate::read::{Call, check_key};
use crate::server::{SessionOn, figures};
use crate::{ClientError, Counters, DatasetId, GlobalLocator, ReadError};

/// Data connections of one client at most.
const LANES_MAX: u16 = 64;

/// A dataset on fabric `F`. A clone has data connections of its own.
pub struct DatasetOn<F: Fabric> {
    // In this order: connections go before the dataset is closed.
    lanes: Box<[Mutex<Lane<F>>]>,
    pub(crate) core: Arc<Core<F>>,
}

impl<F: Fabric> Clone for DatasetOn<F> {
    fn clone(&self) -> Self {
        Self::over(Arc::clone(&self.core))
    }
}

impl<F: Fabric> DatasetOn<F> {
    pub(crate) fn over(core: Arc<Core<F>>) -> Self {
        let shared = &core.session().inner.handle.shared;
        let count = shared.options.data_connections.clamp(1, LANES_MAX);
        let lane = |_| Mutex::new(Lane::new(shared, &core.state_shared(), core.tally()));
        let lanes = (0..count).map(lane).collect();
        Self { lanes, core }
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
        sum
    }

    fn call(&self) -> Result<Call<'_, F>, ReadError> {
        Call::new(&self.core, &self.lanes)
    }

    fn read(&self, items: &mut [Item<'_>], place: Option<&BufferOn<F>>) {
        match self.call() {
            Ok(mut call) => call.read(items, place),
            Err(error) => items.iter_mut().for_each(|item| item.result = Some(Err(error))),
        }
    }

    fn read_one(
        &self,
        mut item: Item<'_>,
        place: Option<&BufferOn<F>>,
    ) -> Result<(Vec<u8>, Found), ReadError> {
        self.read(std::slice::from_mut(&mut item), place);
        let found = item.result.unwrap_or(Err(ReadError::Closed))?;
        Ok((item.out, found))
    }

    fn values(&self, mut items: Vec<Item<'_>>) -> Vec<Result<Vec<u8>, ReadError>> {
        self.read(&mut items, None);
        let value = |item: Item<'_>| item.result.unwrap_or(Err(ReadError::Closed)).map(|_| item.out);
        items.into_iter().map(value).collect()
    }

    /// An item for a locator; one that cannot be right has its result already.
    fn item_at<'k>(&self, id: DatasetId, at: &GlobalLocator, key: Option<&'k [u8]>, want: Want) -> Item<'k> {
        let mut item = Item::new(key, Some(at.locator), want);
        if let Err(error) = check_at(id, at, key) {
            item.result = Some(Err(error));
        }
        item
    }

    /// As [`crate::Client::get`].
    ///
    /// # Errors
    /// As there.
    pub fn get(&self, key: &[u8]) -> Result<Vec<u8>, ReadError> {
        let (value, _) = self.read_one(Item::new(Some(key), None, Want::Whole), None)?;
        Ok(value)
    }

    /// As [`crate::Client::get_range`].
    ///
    /// # Errors
    /// As there.
    pub fn get_range(&self, key: &[u8], offset: u64, len: u64) -> Result<Vec<u8>, ReadError> {
        let want = Want::Range { offset, len };
        let (value, _) = self.read_one(Item::new(Some(key), None, want), None)?;
        Ok(value)
    }

    /// As [`crate::Client::get_many`].
    pub fn get_many<K: AsRef<[u8]>>(&self, keys: &[K]) -> Vec<Result<Vec<u8>, ReadError>> {
        self.values(lookups(keys, Want::Whole))
    }

    /// As [`crate::Client::locate`].
    ///
    /// # Errors
    /// As there.
    pub fn locate(&self, key: &[u8]) -> Result<GlobalLocator, ReadError> {
        let (_, found) = self.read_one(Item::new(Some(key), None, Want::Locator), None)?;
        Ok(global(self.id(), found.locator))
    }

    /// As [`crate::Client::locate_many`].
    pub fn locate_many<K: AsRef<[u8]>>(&self, keys: &[K]) -> Vec<Result<GlobalLocator, ReadError>> {
        let mut items = lookups(keys, Want::Locator);
        self.read(&mut items, None);
        let id = self.id();
        let located = |item: Item<'_>| {
            let found = item.result.unwrap_or(Err(ReadError::Closed))?;
            Ok(global(id, found.locator))
        };
        items.into_iter().map(located).collect()
    }

    /// As [`crate::Client::get_at`].
    ///
    /// # Errors
    /// As there.
    pub fn get_at(&self, at: &GlobalLocator, key: Option<&[u8]>) -> Result<Vec<u8>, ReadError> {
        check_at(self.id(), at, key)?;
        let mut call = self.call()?;
        let head = match call.fast_get(&at.locator, key) {
            Fast::Done(value) => return Ok(value),
            Fast::LongWay(head) => head,
        };
        let mut item = Item::new(key, Some(at.locator), Want::Whole);
        item.head = head;
        call.read(std::slice::from_mut(&mut item), None);
        item.result.unwrap_or(Err(ReadError::Closed))?;
        Ok(item.out)
    }

    /// As [`crate::Client::get_many_at`].
    pub fn get_many_at<K: AsRef<[u8]>>(
        &self,
        at: &[GlobalLocator],
        keys: Option<&[K]>,
    ) -> Vec<Result<Vec<u8>, ReadError>> {
        let id = self.id();
        let key = |index: usize| keys.and_then(|keys| keys.get(index)).map(AsRef::as_ref);
        let item = |(index, at)| self.item_at(id, at, key(index), Want::Whole);
        self.values(at.iter().enumerate().map(item).collect())
    }

    /// As [`crate::Client::get_into`].
    ///
    /// # Errors
    /// As there.
    pub fn get_into(&self, key: &[u8], buffer: &mut BufferOn<F>, offset: usize) -> Result<usize, ReadError> {
        let room = buffer.len().saturating_sub(offset);
        let want = Want::Place { offset, room };
        let (_, found) = self.read_one(Item::new(Some(key), None, want), Some(buffer))?;
        Ok(found.value_len_bytes as usize)
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
        let mut call = self.call()?;
        check_at(self.id(), at, key)?;
        let head = match call.fast_into(&at.locator, key, buffer, offset) {
            Fast::Done(()) => return Ok(at.locator.value_len_bytes as usize),
            Fast::LongWay(head) => head,
        };
        let room = buffer.len().saturating_sub(offset);
        let mut item = Item::new(key, Some(at.locator), Want::Place { offset, room });
        item.head = head;
        call.read(std::slice::from_mut(&mut item), Some(buffer));
        let found = item.result.unwrap_or(Err(ReadError::Closed))?;
        Ok(found.value_len_bytes as usize)
    }

    /// As [`crate::Client::allocate`].
    ///
    /// # Errors
    /// As there.
    pub fn allocate(&self, len: usize) -> Result<BufferOn<F>, ClientError> {
        Ok(BufferOn::allocate(&*self.core.shared().fabric, len)?)
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

fn lookups<K: AsRef<[u8]>>(keys: &[K], want: Want) -> Vec<Item<'_>> {
    let item = |key| Item::new(Some(key), None, want);
    keys.iter().map(AsRef::as_ref).map(item).collect()
}

/// Whether a locator can be of this dataset and, where one is given, of this key.
fn check_at(id: DatasetId, at: &GlobalLocator, key: Option<&[u8]>) -> Result<(), ReadError> {
    let other_key = |key: &[u8]| key.len() != usize::from(at.locator.key_len_bytes);
    if at.dataset != id || at.locator.segment == 0 || key.is_some_and(other_key) {
        return Err(ReadError::Stale);
    }
    Ok(())
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
