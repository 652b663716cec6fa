//! Sessions and their datasets over one fabric: the generic core under [`crate::Server`] and [`crate::Client`].

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

use kv_fabric::Fabric;
use kv_proto::control::{Answer, Bytes, Request, Status};

use crate::backoff::Backoff;
use crate::clock::Deadline;
use crate::control::{Command, Handle, Shared, Up, refused, unexpected};
use crate::list::ListOn;
use crate::mailbox::Reply;
use crate::memory::BufferOn;
use crate::put::pool::Pool;
use crate::read::arrive::global;
use crate::read::counters::Tally;
use crate::read::fast::Fast;
use crate::read::item::{Found, Item, Want};
use crate::read::lane::{Lane, NotReady};
use crate::read::{Call, check_key};
use crate::tables::{DatasetState, View};
use crate::{ClientError, ClientOptions, Counters, DatasetId, DatasetInfo, GlobalLocator, ReadError};

/// First and longest wait between attempts at a request.
const ASK_WAITS: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(200));
/// Data connections of one client at most.
const LANES_MAX: u16 = 64;

type Registry<F> = Mutex<HashMap<String, Weak<Core<F>>>>;

struct SessionInner<F: Fabric> {
    handle: Handle<F>,
    pool: Arc<Pool<F>>,
    datasets: Registry<F>,
}

/// Whether asking again later can help: nothing was done.
pub(crate) fn is_passing(status: Status) -> bool {
    matches!(status, Status::Busy | Status::ShuttingDown)
}

/// A session on fabric `F`. Clones share it.
pub struct SessionOn<F: Fabric> {
    inner: Arc<SessionInner<F>>,
}

impl<F: Fabric> Clone for SessionOn<F> {
    fn clone(&self) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
        }
    }
}

fn text(bytes: &Bytes) -> String {
    String::from_utf8_lossy(&bytes.0).into_owned()
}

fn figures(answer: Answer) -> Result<Vec<(String, u64)>, Answer> {
    match answer {
        Answer::Stat { items } => Ok(items.iter().map(|item| (text(&item.name), item.value)).collect()),
        other => Err(other),
    }
}

impl<F: Fabric> SessionOn<F> {
    /// Begins a session with the server at `address`.
    ///
    /// # Errors
    /// [`ClientError`]: the first thing that went wrong.
    pub fn connect(
        fabric: impl Into<Arc<F>>,
        address: &str,
        options: ClientOptions,
    ) -> Result<Self, ClientError> {
        let handle = Handle::start(fabric.into(), address.to_owned(), options)?;
        let inner = SessionInner {
            handle,
            pool: Arc::new(Pool::new()),
            datasets: Registry::default(),
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    pub(crate) fn shared(&self) -> &Shared<F> {
        &self.inner.handle.shared
    }

    pub(crate) fn pool(&self) -> &Arc<Pool<F>> {
        &self.inner.pool
    }

    /// The fabric and what it chose.
    #[must_use]
    pub fn describe(&self) -> String {
        self.shared().fabric.describe()
    }

    /// Asks until there is an answer. A request that is not `idempotent` is not asked again once it may have arrived.
    fn ask(&self, what: &str, request: &Request, idempotent: bool) -> Result<Answer, ClientError> {
        let deadline = Deadline::after(self.shared().options.deadline);
        let mut backoff = Backoff::new(ASK_WAITS.0, ASK_WAITS.1);
        loop {
            let up = self.shared().ensure(deadline, false)?;
            let reply = self.shared().ask(up.generation, request.clone(), None, deadline);
            let last = match reply {
                Some(Reply::Answer(answer)) => return Ok(answer),
                Some(Reply::Refused(refusal)) if is_passing(refusal.status) => refusal.text,
                Some(Reply::Refused(refusal)) => return Err(refused(what, refusal)),
                _ if idempotent => "the session ended before the answer".to_owned(),
                _ => {
                    return Err(ClientError::Unknown {
                        what: what.to_owned(),
                    });
                }
            };
            if !backoff.sleep(deadline) {
                return Err(ClientError::Timeout {
                    what: what.to_owned(),
                    after: self.shared().options.deadline,
                    last,
                });
            }
        }
    }

    fn strange<T>(&self, answer: &Answer) -> Result<T, ClientError> {
        Err(unexpected(&self.shared().address, answer))
    }

    /// As [`crate::Server::create`].
    ///
    /// # Errors
    /// As there.
    pub fn create(&self, name: &str) -> Result<DatasetId, ClientError> {
        let request = Request::Create {
            name: Bytes::from(name.as_bytes()),
        };
        match self.ask(&format!("create dataset `{name}`"), &request, false)? {
            Answer::Create { dataset } => Ok(dataset),
            other => self.strange(&other),
        }
    }

    /// As [`crate::Server::drop_dataset`].
    ///
    /// # Errors
    /// As there.
    pub fn drop_dataset(&self, name: &str) -> Result<(), ClientError> {
        let request = Request::Drop {
            name: Bytes::from(name.as_bytes()),
        };
        self.ask(&format!("drop dataset `{name}`"), &request, false)?;
        self.forget(name);
        Ok(())
    }

    /// As [`crate::Server::rename`].
    ///
    /// # Errors
    /// As there.
    pub fn rename(&self, from: &str, to: &str) -> Result<(), ClientError> {
        let request = Request::Rename {
            from: Bytes::from(from.as_bytes()),
            to: Bytes::from(to.as_bytes()),
        };
        self.ask(&format!("rename dataset `{from}` to `{to}`"), &request, false)?;
        self.forget(from);
        Ok(())
    }

    /// The name is no longer that dataset's: who opens it from now on gets another one.
    fn forget(&self, name: &str) {
        let mut datasets = self.inner.datasets.lock().unwrap_or_else(PoisonError::into_inner);
        datasets.remove(name);
    }

    /// As [`crate::Server::datasets`].
    ///
    /// # Errors
    /// As there.
    pub fn datasets(&self) -> Result<Vec<DatasetInfo>, ClientError> {
        let mut all = Vec::new();
        let mut after = Bytes::default();
        loop {
            match self.ask("list datasets", &Request::Datasets { after: after.clone() }, true)? {
                Answer::Datasets { items, done } => {
                    let last = items.last().map(|item| item.name.clone());
                    all.extend(items.iter().map(|item| DatasetInfo {
                        name: text(&item.name),
                        id: item.dataset,
                        keys: item.keys,
                        value_bytes: item.value_bytes,
                    }));
                    match last {
                        // Names that do not go forward would be asked for without end.
                        Some(last) if done == 0 && last.0 > after.0 => after = last,
                        _ => return Ok(all),
                    }
                }
                other => return self.strange(&other),
            }
        }
    }

    /// As [`crate::Server::stat`].
    ///
    /// # Errors
    /// As there.
    pub fn stat(&self) -> Result<Vec<(String, u64)>, ClientError> {
        let answer = self.ask("stat the server", &Request::Stat { dataset: [0; 16] }, true)?;
        figures(answer).or_else(|other| self.strange(&other))
    }

    /// As [`crate::Server::open`].
    ///
    /// # Errors
    /// As there.
    pub fn open(&self, name: &str) -> Result<DatasetOn<F>, ClientError> {
        let core = {
            let mut datasets = self.inner.datasets.lock().unwrap_or_else(PoisonError::into_inner);
            datasets.retain(|_, core| core.strong_count() > 0);
            let known = datasets.get(name).and_then(Weak::upgrade);
            known.unwrap_or_else(|| {
                let core = Arc::new(Core {
                    session: self.clone(),
                    name: name.to_owned(),
                    state: Arc::new(DatasetState::new()),
                    tally: Arc::default(),
                    opening: Mutex::new(()),
                    id: OnceLock::new(),
                });
                datasets.insert(name.to_owned(), Arc::downgrade(&core));
                core
            })
        };
        core.open_first()?;
        Ok(DatasetOn::over(core))
    }
}

/// What the clients of one dataset share.
pub(crate) struct Core<F: Fabric> {
    session: SessionOn<F>,
    name: String,
    state: Arc<DatasetState>,
    tally: Arc<Tally>,
    /// Held by the one that opens.
    opening: Mutex<()>,
    /// Set by the first opening.
    id: OnceLock<DatasetId>,
}

/// Why a dataset is not open.
enum NotOpen {
    Again,
    Refused(kv_proto::control::Refused),
    /// The name is another dataset's now.
    Replaced,
}

impl<F: Fabric> Core<F> {
    pub(crate) fn session(&self) -> &SessionOn<F> {
        &self.session
    }

    pub(crate) fn shared(&self) -> &Shared<F> {
        self.session.shared()
    }

    pub(crate) fn state(&self) -> &DatasetState {
        &self.state
    }

    pub(crate) fn state_shared(&self) -> Arc<DatasetState> {
        Arc::clone(&self.state)
    }

    pub(crate) fn id(&self) -> DatasetId {
        self.id.get().copied().unwrap_or_default()
    }

    fn open_first(&self) -> Result<(), ClientError> {
        let shared = self.shared();
        let deadline = Deadline::after(shared.options.deadline);
        let what = || format!("open dataset `{}`", self.name);
        let mut backoff = Backoff::new(ASK_WAITS.0, ASK_WAITS.1);
        loop {
            let up = shared.ensure(deadline, false)?;
            match self.try_open(&up, deadline) {
                Ok(_) => return Ok(()),
                Err(NotOpen::Refused(refusal)) => return Err(refused(what(), refusal)),
                Err(NotOpen::Replaced) => return Err(ClientError::Closed),
                Err(NotOpen::Again) => {}
            }
            if !backoff.sleep(deadline) {
                return Err(ClientError::Timeout {
                    what: what(),
                    after: shared.options.deadline,
                    last: "the session ended again and again".to_owned(),
                });
            }
        }
    }

    /// Opens the dataset in session `up`, its segment table included, unless it is.
    pub(crate) fn open(&self, up: &Up, deadline: Deadline) -> Result<Arc<View>, NotReady> {
        self.try_open(up, deadline).map_err(|why| match why {
            NotOpen::Again => NotReady::Again,
            NotOpen::Refused(refusal) if refusal.status == Status::NoDataset => {
                NotReady::Never(ReadError::Closed)
            }
            NotOpen::Refused(refusal) => NotReady::Never(ReadError::Refused(refusal.status)),
            NotOpen::Replaced => NotReady::Never(ReadError::Closed),
        })
    }

    fn try_open(&self, up: &Up, deadline: Deadline) -> Result<Arc<View>, NotOpen> {
        let _opening = self.opening.lock().unwrap_or_else(PoisonError::into_inner);
        let ask = |request| {
            let state = Some(Arc::clone(&self.state));
            match self.shared().ask(up.generation, request, state, deadline) {
                Some(Reply::Answer(answer)) => Ok(answer),
                Some(Reply::Refused(refusal)) if !is_passing(refusal.status) => {
                    Err(NotOpen::Refused(refusal))
                }
                _ => Err(NotOpen::Again),
            }
        };
        if self.state.view().1.generation != up.generation {
            let name = Bytes::from(self.name.as_bytes());
            if let Answer::Open { dataset, .. } = ask(Request::Open { name })? {
                self.id.get_or_init(|| dataset);
            }
        }
        loop {
            let (_, view) = self.state.view();
            if view.generation != up.generation {
                return Err(NotOpen::Again);
            }
            // A client of the dataset that had the name must not slip into the one that has it now.
            if view.dataset != self.id() {
                return Err(NotOpen::Replaced);
            }
            let Some(first) = view.table_next else {
                return Ok(view);
            };
            let dataset = view.dataset;
            ask(Request::Table { dataset, first })?;
        }
    }

    /// Asks something of the dataset until there is an answer.
    pub(crate) fn ask(
        &self,
        what: impl Fn() -> String,
        request: impl Fn(DatasetId) -> Request,
    ) -> Result<Answer, ClientError> {
        let shared = self.shared();
        let deadline = Deadline::after(shared.options.deadline);
        let mut backoff = Backoff::new(ASK_WAITS.0, ASK_WAITS.1);
        loop {
            let up = shared.ensure(deadline, false)?;
            let last = match self.try_open(&up, deadline) {
                Ok(view) => match shared.ask(up.generation, request(view.dataset), None, deadline) {
                    Some(Reply::Answer(answer)) => return Ok(answer),
                    Some(Reply::Refused(refusal)) if is_passing(refusal.status) => refusal.text,
                    Some(Reply::Refused(refusal)) if refusal.status == Status::Unknown => {
                        return Err(ClientError::Unknown { what: what() });
                    }
                    Some(Reply::Refused(refusal)) => return Err(refused(what(), refusal)),
                    _ => "the session ended before the answer".to_owned(),
                },
                Err(NotOpen::Refused(refusal)) => return Err(refused(what(), refusal)),
                Err(NotOpen::Replaced) => return Err(ClientError::Closed),
                Err(NotOpen::Again) => "the dataset could not be opened".to_owned(),
            };
            if !backoff.sleep(deadline) {
                return Err(ClientError::Timeout {
                    what: what(),
                    after: shared.options.deadline,
                    last,
                });
            }
        }
    }
}

impl<F: Fabric> Drop for Core<F> {
    fn drop(&mut self) {
        let (_, view) = self.state.view();
        let registry = &self.session.inner.datasets;
        let datasets = registry.lock().unwrap_or_else(PoisonError::into_inner);
        // While the lock is held nobody can open the name anew; one who did already needs it open.
        let replaced = datasets
            .get(&self.name)
            .is_some_and(|core| core.strong_count() > 0);
        if view.generation != 0 && !replaced {
            self.shared().submit(Command::Request {
                generation: view.generation,
                request: Request::Close {
                    dataset: view.dataset,
                },
                reply: None,
                write: None,
                dataset: None,
            });
        }
    }
}

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
    fn over(core: Arc<Core<F>>) -> Self {
        let shared = &core.session.inner.handle.shared;
        let count = shared.options.data_connections.clamp(1, LANES_MAX);
        let lane = |_| Mutex::new(Lane::new(shared, &core.state, &core.tally));
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
        self.core.session.clone()
    }

    /// What it and its clones have done so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let mut sum = self.core.tally.sum();
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
        Call::new(&self.core, &self.lanes).ok_or(ReadError::Closed)
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
            return Err(ClientError::BadKey { len_bytes: key.len() });
        }
        let operation = self.core.shared().next_operation();
        let request = |dataset| Request::Delete {
            dataset,
            operation,
            key: Bytes::from(key),
        };
        match self.core.ask(|| format!("delete {}", shown(key)), request)? {
            Answer::Delete { existed, .. } => Ok(existed != 0),
            other => self.core.session.strange(&other),
        }
    }

    /// As [`crate::Client::stat`].
    ///
    /// # Errors
    /// As there.
    pub fn stat(&self) -> Result<Vec<(String, u64)>, ClientError> {
        let what = || format!("stat dataset `{}`", self.core.name);
        let answer = self.core.ask(what, |dataset| Request::Stat { dataset })?;
        figures(answer).or_else(|other| self.core.session.strange(&other))
    }

    /// As [`crate::Client::list`].
    #[must_use]
    pub fn list(&self) -> ListOn<F> {
        ListOn::new(Arc::clone(&self.core))
    }
}

impl<F: Fabric> Core<F> {
    pub(crate) fn strange<T>(&self, answer: &Answer) -> Result<T, ClientError> {
        self.session.strange(answer)
    }

    /// The error of a dataset that cannot be opened for `what`.
    pub(crate) fn unopened(&self, what: String, why: NotReady) -> Option<ClientError> {
        match why {
            NotReady::Again => None,
            NotReady::Never(source) => Some(ClientError::Read { what, source }),
        }
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

/// A key for people: its bytes, escaped and cut.
pub(crate) fn shown(key: &[u8]) -> String {
    const SHOWN_MAX: usize = 80;
    let cut = key.get(..SHOWN_MAX).unwrap_or(key);
    let dots = if cut.len() < key.len() { "..." } else { "" };
    format!("`{}{dots}`", cut.escape_ascii())
}
