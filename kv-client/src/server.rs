//! A session with a server, and what is asked of the server through it.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use kv_fabric::Fabric;
use kv_fabric::local::Local;
use kv_fabric::verbs::Verbs;
use kv_proto::control::{Answer, Bytes, Request, Status};

use crate::backoff::Backoff;
use crate::client::Client;
use crate::clock::Deadline;
use crate::control::{Handle, Shared, refused, unexpected};
use crate::mailbox::Reply;
use crate::memory::Registrations;
use crate::opening::{Core, Opened};
use crate::put::pool::Pool;
use crate::sessions;
use crate::{ClientError, ClientOptions, DatasetId, DatasetInfo, Target};

/// First and longest wait between attempts at a request.
pub(crate) const ASK_WAITS: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(200));

type Registry = Mutex<Vec<Weak<Opened>>>;

/// A session, however many handles it has: one of each process, server and key.
pub(crate) struct SessionInner {
    pub(crate) handle: Handle,
    pool: Arc<Pool>,
    datasets: Registry,
    registrations: Registrations,
}

/// What a handle and its clones have for themselves.
struct Own {
    options: Arc<ClientOptions>,
    cores: Mutex<Vec<Weak<Core>>>,
}

/// Whether asking again later can help: nothing was done.
pub(crate) fn is_passing(status: Status) -> bool {
    matches!(status, Status::Busy | Status::ShuttingDown)
}

/// A session with a server. Clones share it; it ends when the last clone and the last [`Client`] of it are dropped.
#[derive(Clone)]
pub struct Server {
    inner: Arc<SessionInner>,
    own: Arc<Own>,
}

fn text(bytes: &Bytes) -> String {
    String::from_utf8_lossy(&bytes.0).into_owned()
}

pub(crate) fn figures(answer: Answer) -> Result<Vec<(String, u64)>, Answer> {
    match answer {
        Answer::Stat { items } => Ok(items.iter().map(|item| (text(&item.name), item.value)).collect()),
        other => Err(other),
    }
}

impl SessionInner {
    fn begin(
        fabric: Arc<dyn Fabric>,
        address: &str,
        options: ClientOptions,
        deadline: Deadline,
    ) -> Result<Self, ClientError> {
        Ok(Self {
            handle: Handle::start(fabric, address.to_owned(), options, deadline)?,
            pool: Arc::new(Pool::new()),
            datasets: Registry::default(),
            registrations: Registrations::new(),
        })
    }
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
        let begin = |deadline: Deadline| {
            let fabric: Arc<dyn Fabric> = match target {
                Target::Rdma { .. } => Arc::new(Verbs::for_peer_until(&address, deadline.instant())?),
                Target::Local { .. } => Arc::new(Local::new()?),
            };
            SessionInner::begin(fabric, &address, options.clone(), deadline)
        };
        let inner = sessions::shared(target.scheme(), &address, &options, begin)?;
        Ok(Self::over(inner, options))
    }

    /// A session of its own with the server at `address`, over a fabric of the caller's choice, `kv_fabric::sim` included.
    ///
    /// # Errors
    /// As [`Server::connect`].
    pub fn connect_over(
        fabric: Arc<dyn Fabric>,
        address: &str,
        options: ClientOptions,
    ) -> Result<Self, ClientError> {
        let deadline = Deadline::after(options.connect_timeout);
        let inner = SessionInner::begin(fabric, address, options.clone(), deadline)?;
        Ok(Self::over(Arc::new(inner), options))
    }

    fn over(inner: Arc<SessionInner>, options: ClientOptions) -> Self {
        let own = Own {
            options: Arc::new(options),
            cores: Mutex::default(),
        };
        Self {
            inner,
            own: Arc::new(own),
        }
    }

    pub(crate) fn options(&self) -> &Arc<ClientOptions> {
        &self.own.options
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.inner.handle.shared
    }

    pub(crate) fn pool(&self) -> &Arc<Pool> {
        &self.inner.pool
    }

    /// The callers' memory that is registered.
    pub(crate) fn registrations(&self) -> &Registrations {
        &self.inner.registrations
    }

    /// The fabric and what it chose, for people: device, port, GID and why, MTU.
    #[must_use]
    pub fn describe(&self) -> String {
        self.shared().fabric.describe()
    }

    /// Asks until there is an answer. A request that is not `idempotent` is not asked again once it may have arrived.
    fn ask(&self, what: &str, request: &Request, idempotent: bool) -> Result<Answer, ClientError> {
        let deadline = Deadline::after(self.options().deadline);
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
                    after: self.options().deadline,
                    last,
                });
            }
        }
    }

    pub(crate) fn strange<T>(&self, answer: &Answer) -> Result<T, ClientError> {
        Err(unexpected(&self.shared().address, answer))
    }

    /// Creates a dataset; it is durable when this returns. Needs the role `admin`.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with why; [`ClientError::Unknown`] if the connection was lost meanwhile.
    pub fn create(&self, name: &str) -> Result<DatasetId, ClientError> {
        let request = Request::Create {
            name: Bytes::from(name.as_bytes()),
        };
        match self.ask(&format!("create dataset `{name}`"), &request, false)? {
            Answer::Create { dataset } => Ok(dataset),
            other => self.strange(&other),
        }
    }

    /// Drops a dataset and all in it. Needs the role `admin`.
    ///
    /// # Errors
    /// As [`Server::create`].
    pub fn drop_dataset(&self, name: &str) -> Result<(), ClientError> {
        let request = Request::Drop {
            name: Bytes::from(name.as_bytes()),
        };
        self.ask(&format!("drop dataset `{name}`"), &request, false)?;
        Ok(())
    }

    /// Renames a dataset. Needs the role `admin`.
    ///
    /// # Errors
    /// As [`Server::create`].
    pub fn rename(&self, from: &str, to: &str) -> Result<(), ClientError> {
        let request = Request::Rename {
            from: Bytes::from(from.as_bytes()),
            to: Bytes::from(to.as_bytes()),
        };
        self.ask(&format!("rename dataset `{from}` to `{to}`"), &request, false)?;
        // Upgraded inside the lock and dropped outside.
        let renamed = {
            let datasets = self.inner.datasets.lock().unwrap_or_else(PoisonError::into_inner);
            let renamed: Vec<_> = datasets
                .iter()
                .filter_map(Weak::upgrade)
                .filter(|opened| opened.name() == from)
                .collect();
            renamed.iter().for_each(|opened| opened.rename(to));
            renamed
        };
        drop(renamed);
        Ok(())
    }

    /// The datasets that the key may open, by name.
    ///
    /// # Errors
    /// [`ClientError`].
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

    /// Figures of the server: name (the unit is its last word) and value.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn stat(&self) -> Result<Vec<(String, u64)>, ClientError> {
        let answer = self.ask("stat the server", &Request::Stat { dataset: [0; 16] }, true)?;
        figures(answer).or_else(|other| self.strange(&other))
    }

    /// Opens a dataset.
    ///
    /// # Errors
    /// [`ClientError::Refused`] if there is none of this name or the key may not open it.
    pub fn open(&self, name: &str) -> Result<Client, ClientError> {
        // Asked anew each time: the name may be another dataset's by now.
        let asked = Core::new(self.clone(), Arc::new(Opened::new(Arc::clone(&self.inner), name)));
        asked.open_first()?;
        let opened = {
            let mut datasets = self.inner.datasets.lock().unwrap_or_else(PoisonError::into_inner);
            datasets.retain(|opened| opened.strong_count() > 0);
            let same = |opened: &Arc<Opened>| opened.is(asked.id());
            let known = datasets.iter().filter_map(Weak::upgrade).find(same);
            known.unwrap_or_else(|| {
                datasets.push(Arc::downgrade(asked.opened()));
                Arc::clone(asked.opened())
            })
        };
        let core = {
            let mut cores = self.own.cores.lock().unwrap_or_else(PoisonError::into_inner);
            cores.retain(|core| core.strong_count() > 0);
            let known = cores
                .iter()
                .filter_map(Weak::upgrade)
                .find(|core| core.is_of(&opened));
            known.unwrap_or_else(|| {
                let core = Arc::new(Core::new(self.clone(), opened));
                cores.push(Arc::downgrade(&core));
                core
            })
        };
        core.open_first()?;
        Ok(Client::over(core, Arc::clone(self.options())))
    }
}
