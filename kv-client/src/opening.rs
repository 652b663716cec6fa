//! What the clients of one dataset share: its state, and how it is opened.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use kv_proto::control::{Answer, Bytes, Request, Status};

use crate::backoff::Backoff;
use crate::clock::Deadline;
use crate::control::{Command, Shared, Up, refused};
use crate::mailbox::Reply;
use crate::read::NotReady;
use crate::read::counters::Tally;
use crate::server::{ASK_WAITS, Server, SessionInner, is_passing};
use crate::tables::{DatasetState, View};
use crate::{ClientError, DatasetId, ReadError};

/// A dataset of a session, with all that is known of it, however many clients it has.
pub(crate) struct Opened {
    session: Arc<SessionInner>,
    /// Its name now, as far as this session changed it.
    name: Mutex<String>,
    state: Arc<DatasetState>,
    /// Held by the one that opens.
    opening: Mutex<()>,
    /// Set by the first opening.
    id: OnceLock<DatasetId>,
}

/// A dataset as one client and its clones have it: with their settings and their counters.
pub(crate) struct Core {
    session: Server,
    opened: Arc<Opened>,
    tally: Arc<Tally>,
}

impl Opened {
    pub(crate) fn new(session: Arc<SessionInner>, name: &str) -> Self {
        Self {
            session,
            name: Mutex::new(name.to_owned()),
            state: Arc::new(DatasetState::new()),
            opening: Mutex::new(()),
            id: OnceLock::new(),
        }
    }

    pub(crate) fn name(&self) -> String {
        self.name.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether it is the dataset `id`.
    pub(crate) fn is(&self, id: DatasetId) -> bool {
        self.id.get() == Some(&id)
    }

    /// The dataset has another name now.
    pub(crate) fn rename(&self, name: &str) {
        name.clone_into(&mut self.name.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// Why a dataset is not open.
enum NotOpen {
    Again,
    Refused(kv_proto::control::Refused),
    /// The name is another dataset's now.
    Replaced,
}

impl Core {
    pub(crate) fn new(session: Server, opened: Arc<Opened>) -> Self {
        Self {
            session,
            opened,
            tally: Arc::default(),
        }
    }

    pub(crate) fn opened(&self) -> &Arc<Opened> {
        &self.opened
    }

    /// Whether it is of this dataset.
    pub(crate) fn is_of(&self, opened: &Arc<Opened>) -> bool {
        Arc::ptr_eq(&self.opened, opened)
    }

    pub(crate) fn name(&self) -> String {
        self.opened.name()
    }

    pub(crate) fn tally(&self) -> &Arc<Tally> {
        &self.tally
    }

    /// Longest time that a call goes without getting on.
    pub(crate) fn budget(&self) -> Duration {
        self.session.options().deadline
    }

    pub(crate) fn strange<T>(&self, answer: &Answer) -> Result<T, ClientError> {
        self.session.strange(answer)
    }

    /// The error of a dataset that cannot be opened for `what`.
    pub(crate) fn unopened(&self, what: String, why: NotReady) -> Option<ClientError> {
        match why {
            NotReady::Again | NotReady::Later(_) => None,
            NotReady::Never(source) => Some(ClientError::Read { what, source }),
        }
    }

    /// The error of a request that was refused; the server's words do not name a dataset that is not there.
    pub(crate) fn refused(&self, what: String, refusal: kv_proto::control::Refused) -> ClientError {
        let dataset = format!("dataset `{}`", self.name());
        if refusal.status == Status::NoDataset && !what.contains(&dataset) {
            return refused(format!("{what} in {dataset}"), refusal);
        }
        refused(what, refusal)
    }

    pub(crate) fn session(&self) -> &Server {
        &self.session
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        self.session.shared()
    }

    pub(crate) fn state_shared(&self) -> Arc<DatasetState> {
        Arc::clone(&self.opened.state)
    }

    pub(crate) fn id(&self) -> DatasetId {
        self.opened.id.get().copied().unwrap_or_default()
    }

    pub(crate) fn open_first(&self) -> Result<(), ClientError> {
        let shared = self.shared();
        let deadline = Deadline::after(self.budget());
        let what = || format!("open dataset `{}`", self.name());
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
                    after: self.budget(),
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
        let _opening = self.opened.opening.lock().unwrap_or_else(PoisonError::into_inner);
        let ask = |request| {
            let state = Some(self.state_shared());
            match self.shared().ask(up.generation, request, state, deadline) {
                Some(Reply::Answer(answer)) => Ok(answer),
                Some(Reply::Refused(refusal)) if !is_passing(refusal.status) => {
                    Err(NotOpen::Refused(refusal))
                }
                _ => Err(NotOpen::Again),
            }
        };
        if self.opened.state.view().1.generation != up.generation {
            let name = Bytes::from(self.name().as_bytes());
            if let Answer::Open { dataset, .. } = ask(Request::Open { name })? {
                self.opened.id.get_or_init(|| dataset);
            }
        }
        loop {
            let (_, view) = self.opened.state.view();
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

    /// Asks something of the dataset until there is an answer. What `changes` the dataset and may have been done is
    /// unknown where no answer comes.
    pub(crate) fn ask(
        &self,
        what: impl Fn() -> String,
        request: impl Fn(DatasetId) -> Request,
        changes: bool,
    ) -> Result<Answer, ClientError> {
        let mut unsure = false;
        self.ask_noting(&what, request, &mut unsure).map_err(|error| {
            if changes && unsure {
                ClientError::Unknown { what: what() }
            } else {
                error
            }
        })
    }

    /// As [`Self::ask`]; sets `unsure` when the request may have been done without an answer.
    fn ask_noting(
        &self,
        what: &impl Fn() -> String,
        request: impl Fn(DatasetId) -> Request,
        unsure: &mut bool,
    ) -> Result<Answer, ClientError> {
        let shared = self.shared();
        let deadline = Deadline::after(self.budget());
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
                    Some(Reply::Refused(refusal)) => {
                        *unsure |= refusal.status == Status::Io;
                        return Err(self.refused(what(), refusal));
                    }
                    _ => {
                        *unsure = true;
                        "the session ended before the answer".to_owned()
                    }
                },
                Err(NotOpen::Refused(refusal)) => return Err(refused(what(), refusal)),
                Err(NotOpen::Replaced) => return Err(ClientError::Closed),
                Err(NotOpen::Again) => "the dataset could not be opened".to_owned(),
            };
            if !backoff.sleep(deadline) {
                return Err(ClientError::Timeout {
                    what: what(),
                    after: self.budget(),
                    last,
                });
            }
        }
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        let (_, view) = self.state.view();
        if view.generation != 0 {
            self.session.handle.shared.submit(Command::Request {
                generation: view.generation,
                request: Request::Close {
                    dataset: view.dataset,
                },
                reply: None,
                write: None,
                // Others may have it open under another name: the control thread knows.
                dataset: Some(Arc::clone(&self.state)),
            });
        }
    }
}
