//! CREATE, DROP and RENAME, done by a thread of their own: each waits for the medium, and nobody's RENEW waits for that.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use kv_fabric::ConnectionId;
use kv_proto::control::{Answer, Request, Status};

use super::leases::DatasetId;
use super::requests::text;
use super::run::{Control, Outcome};
use super::session::Refusal;
use crate::error::StorageError;
use crate::store::{Dropped, Store, lock};

/// Changes that wait for the one that is being done; more are answered BUSY.
pub(super) const CHANGES_MAX: usize = 64;

/// What is to become of the datasets.
enum Change {
    Create { name: String },
    Drop { name: String },
    Rename { from: String, to: String },
}

/// What became of them.
pub(super) enum Changed {
    Created(DatasetId),
    Dropped { name: String, dropped: Dropped },
    Renamed,
}

/// A change that was done or could not be, by its token.
type Done = (u64, Result<Changed, StorageError>);

/// The thread that changes datasets, and what it has done.
pub(super) struct Changes {
    queue: Option<SyncSender<(u64, Change)>>,
    done: Arc<Mutex<Vec<Done>>>,
    thread: Option<JoinHandle<()>>,
}

impl Changes {
    pub(super) fn start(store: Arc<Store>) -> std::io::Result<Self> {
        let (queue, changes) = sync_channel(CHANGES_MAX);
        let done: Arc<Mutex<Vec<Done>>> = Arc::default();
        let results = Arc::clone(&done);
        let thread = std::thread::Builder::new()
            .name("kv-datasets".to_owned())
            .spawn(move || work(&store, &changes, &results))?;
        Ok(Self {
            queue: Some(queue),
            done,
            thread: Some(thread),
        })
    }

    fn queue(&self, token: u64, change: Change) -> Result<(), Refusal> {
        let queued = self.queue.as_ref().map(|queue| queue.try_send((token, change)));
        if let Some(Ok(())) = queued {
            return Ok(());
        }
        let text = format!("{CHANGES_MAX} changes of datasets wait for the disk: ask again");
        Err(Refusal::new(Status::Busy, text))
    }

    /// What was done since this was last called. The store's completions are awake when there is some.
    pub(super) fn take(&self) -> Vec<Done> {
        std::mem::take(&mut *lock(&self.done))
    }

    /// Does what is queued; nothing is taken any more.
    pub(super) fn finish(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that changes datasets had panicked");
        }
    }
}

impl Drop for Changes {
    fn drop(&mut self) {
        self.finish();
    }
}

fn work(store: &Store, changes: &Receiver<(u64, Change)>, done: &Mutex<Vec<Done>>) {
    for (token, change) in changes {
        let result = match change {
            Change::Create { name } => store.create(&name).map(Changed::Created),
            Change::Drop { name } => store
                .drop_dataset(&name)
                .map(|dropped| Changed::Dropped { name, dropped }),
            Change::Rename { from, to } => store.rename(&from, &to).map(|()| Changed::Renamed),
        };
        lock(done).push((token, result));
        store.completions().wake();
    }
}

impl Control {
    /// Has the thread do what a request about the set of datasets asks.
    ///
    /// # Errors
    /// Why it was refused; the session goes on.
    pub(super) fn change(
        &mut self,
        id: ConnectionId,
        number: u64,
        request: &Request,
    ) -> Result<Outcome, Refusal> {
        let change = match request {
            Request::Create { name } => Change::Create {
                name: text(name)?.to_owned(),
            },
            Request::Drop { name } => Change::Drop {
                name: text(name)?.to_owned(),
            },
            Request::Rename { from, to } => Change::Rename {
                from: text(from)?.to_owned(),
                to: text(to)?.to_owned(),
            },
            _ => return Err(Status::Unsupported.into()),
        };
        let token = self.queue(id, number, request.kind());
        if let Err(refusal) = self.changes.queue(token, change) {
            self.writes.remove(&token);
            return Err(refusal);
        }
        self.peer(id)?.session.defer();
        Ok(Outcome::Deferred)
    }

    /// Answers a change that was done or could not be; its session may be over.
    pub(super) fn changed(&mut self, (token, result): Done) {
        let result = match result {
            Ok(Changed::Created(dataset)) => Ok(Answer::Create { dataset }),
            Ok(Changed::Renamed) => Ok(Answer::Rename {}),
            Ok(Changed::Dropped { name, dropped }) => {
                self.dropped(dropped.dataset, dropped.number);
                // Gone all the same, and released; but not yet for good.
                dropped.synced.map(|()| Answer::Drop {}).map_err(|error| {
                    tracing::error!(%error, dataset = %name, "a dataset may be back after a power cut");
                    let error = error.for_client();
                    let text = format!(
                        "dataset {name:?} is dropped, but after a power cut it may be back, maybe empty, and is then to be dropped \
                         again: {error}"
                    );
                    Refusal::new(Status::Io, text)
                })
            }
            Err(error) => Err(error.into()),
        };
        let Some(asked) = self.writes.remove(&token) else {
            return;
        };
        let Some(peer) = self.peers.get_mut(&asked.connection) else {
            return;
        };
        peer.session.answered();
        match result {
            Ok(answer) => self.answer(asked.connection, asked.request, &answer),
            Err(refusal) => self.refuse(asked.connection, asked.request, asked.kind, &refusal),
        }
    }

    /// A dataset is gone since retirement `number`.
    fn dropped(&mut self, dataset: DatasetId, number: u64) {
        self.dropped.insert(dataset, number);
        self.releases.touch();
        // Values that were arriving for it are given up; what was queued is answered by the store.
        for peer in self.peers.values_mut() {
            for operation in peer.session.puts.end_dataset(&dataset) {
                peer.puts.remove(&operation);
            }
        }
        // Who has acknowledged it by now is told nothing of it any more.
        let acknowledged =
            |holds: &super::leases::Holds| holds.get(&dataset).is_some_and(|hold| hold.acked >= number);
        let over: Vec<ConnectionId> = self
            .peers
            .iter()
            .filter(|(_, peer)| acknowledged(&peer.session.holds))
            .map(|(id, _)| *id)
            .collect();
        for id in over {
            self.close_dataset(id, &dataset);
        }
    }
}
