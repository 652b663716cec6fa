//! Those who change and read while a server is killed: writers with keys of their own, one who creates, renames and
//! drops datasets, and a reader.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use fastrand::Rng;
use kv_client::{Client, ClientError, ReadError, Server as Session};

use super::model::{Churned, MAIN, Model, Name, Value, Wrong, shown};
use super::place::Place;

/// Name of the dataset that is always there.
pub(crate) const DATASET: &str = "main";
/// How names of the dataset begin that comes and goes.
pub(crate) const CHURNED: &str = "churned-";
/// Names that it may have.
const CHURNED_NAMES: u64 = 3;
/// Values that are stored in one call at most.
const BATCH_MAX: usize = 6;
/// Operations of a writer that are kept to be sent once more; fewer than the server remembers.
const DONE_KEPT: usize = 300;
/// Between two attempts at a session while no server runs.
const AGAIN: Duration = Duration::from_millis(20);
/// The figure of segments that compaction removed since the start.
const REMOVED: &str = "compaction_removed_segments_count";
/// Reads between two looks at what compaction has done.
const READS_PER_LOOK: u64 = 50;

/// Told of each change that was answered; an error ends the campaign.
pub(crate) type Mark<'a> = &'a (dyn Fn(u64) -> Result<(), Wrong> + Sync);

/// How much is going on.
#[derive(Debug, Clone)]
pub(crate) struct Load {
    pub(crate) writers: usize,
    /// Keys of each writer.
    pub(crate) keys: u64,
    /// Answers before a kill, at most.
    pub(crate) answers_max: u64,
    /// Length of common values at most, bytes.
    pub(crate) value_max: usize,
    /// Length of a few, bytes.
    pub(crate) large_max: usize,
    /// Longest that a call goes on after its server was killed.
    pub(crate) deadline: Duration,
    /// Longest pause of the one who churns datasets, ms.
    pub(crate) churn_pause_ms: u64,
    /// Whether in the first round of a life nobody writes or reads but the one who churns: under others each of its
    /// changes is soon made durable by one of theirs.
    pub(crate) quiet_first: bool,
}

impl Load {
    fn len(&self, rng: &mut Rng) -> usize {
        match rng.u8(..100) {
            0..10 => rng.usize(..64),
            10..50 => rng.usize(..8 << 10),
            50..85 => rng.usize(..64 << 10).min(self.value_max),
            85..97 => rng.usize(..self.value_max),
            _ => rng.usize(self.value_max..self.large_max),
        }
    }
}

/// One round, as all its threads see it.
pub(crate) struct Round<'a> {
    pub(crate) place: &'a Place,
    pub(crate) model: &'a Model,
    pub(crate) load: &'a Load,
    pub(crate) mark: Mark<'a>,
    /// Clients live on across the kill: each of their calls ends well.
    pub(crate) survives: bool,
    pub(crate) deadline: Duration,
    pub(crate) killed: AtomicBool,
    pub(crate) stopped: AtomicBool,
    pub(crate) answered: AtomicU64,
    pub(crate) reads: AtomicU64,
    /// Segments that compaction had removed when somebody looked last.
    pub(crate) removed: AtomicU64,
}

impl Round<'_> {
    fn over(&self) -> bool {
        self.stopped.load(Ordering::SeqCst) || (self.killed.load(Ordering::SeqCst) && !self.survives)
    }

    /// Whether an error is what a kill brings, or a machine that is too busy for the deadline.
    fn excuse(&self, what: &str, error: &ClientError) -> Result<(), Wrong> {
        let late = matches!(
            error,
            ClientError::Timeout { .. } | ClientError::Busy { .. } | ClientError::Unknown { .. }
        );
        let killed = self.killed.load(Ordering::SeqCst) && !matches!(error, ClientError::Refused { .. });
        if !self.survives && (late || killed) {
            return Ok(());
        }
        Err(format!("{what}: {error}"))
    }

    /// Begins a session for `who`; `None` where the kill came first and ends the round.
    fn session(&self, who: &str, pinned: Option<(u64, u64)>) -> Result<Option<Session>, Wrong> {
        loop {
            match self.place.session(self.place.options(self.deadline, pinned)) {
                Ok(session) => return Ok(Some(session)),
                // A session that stands outlives a restart; one that is only begun is told of it.
                Err(_) if self.survives && self.killed.load(Ordering::SeqCst) && !self.over() => {
                    std::thread::sleep(AGAIN);
                }
                Err(error) => return self.excuse(&format!("a session of {who}"), &error).map(|()| None),
            }
        }
    }

    /// Begins a session for `who` and opens the dataset that is always there.
    fn open(&self, who: &str, pinned: Option<(u64, u64)>) -> Result<Option<Client>, Wrong> {
        let Some(session) = self.session(who, pinned)? else {
            return Ok(None);
        };
        match session.open(DATASET) {
            Ok(client) => Ok(Some(client)),
            Err(error) => self.excuse(who, &error).map(|()| None),
        }
    }

    fn note(&self, name: &Name, id: u64) -> Result<(), Wrong> {
        (self.mark)(id)?;
        self.model.answered(name, id);
        self.answered.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

/// A change that was asked for.
#[derive(Debug, Clone)]
pub(crate) struct Operation {
    pub(crate) name: Name,
    pub(crate) id: u64,
    pub(crate) held: Option<Value>,
    /// Its number with the server; `None` where it was one of many.
    pub(crate) number: Option<u64>,
    /// What the server answered.
    pub(crate) outcome: Option<Outcome>,
}

/// What the server answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Sequence number of a PUT.
    Put(u64),
    /// Whether what was deleted was there.
    Deleted(bool),
}

impl Operation {
    /// Has it done.
    pub(crate) fn perform(&self, client: &Client, seed: u64) -> Result<Outcome, ClientError> {
        match self.held {
            Some(value) => client
                .put(&self.name.key, &value.bytes(seed))
                .map(|outcome| Outcome::Put(outcome.sequence)),
            None => client.delete(&self.name.key).map(Outcome::Deleted),
        }
    }
}

/// Changes keys that are its own, one after the other.
pub(crate) struct Writer {
    index: usize,
    pub(crate) client_id: u64,
    rng: Rng,
    next_number: u64,
    /// Asked for and not answered.
    pub(crate) pending: Vec<Operation>,
    /// The latest that were answered.
    pub(crate) done: VecDeque<Operation>,
}

impl Writer {
    pub(crate) fn new(index: usize, rng: &mut Rng) -> Self {
        Self {
            index,
            client_id: rng.u64(1..),
            rng: rng.fork(),
            next_number: 1,
            pending: Vec::new(),
            done: VecDeque::new(),
        }
    }

    /// Writes until the round is over or a call fails.
    pub(crate) fn write(&mut self, round: &Round<'_>) -> Result<(), Wrong> {
        let pinned = Some((self.client_id, self.next_number));
        let Some(client) = round.open("a writer", pinned)? else {
            return Ok(());
        };

        while !round.over() {
            let count = if self.rng.u8(..100) < 12 {
                self.rng.usize(2..=BATCH_MAX)
            } else {
                1
            };
            let went_on = if count == 1 {
                self.one(round, &client)?
            } else {
                self.many(round, &client, count)?
            };
            if !went_on {
                return Ok(());
            }
        }
        Ok(())
    }

    fn key(&self, number: u64) -> Name {
        Name {
            dataset: MAIN,
            key: format!("writer {} key {number}", self.index).into_bytes(),
        }
    }

    fn ask(&mut self, round: &Round<'_>, name: Name, held: impl FnOnce(u64) -> Option<Value>) -> Operation {
        let id = round.model.next_id();
        let held = held(id);
        round.model.ask(&name, id, held);
        Operation {
            name,
            id,
            held,
            number: None,
            outcome: None,
        }
    }

    /// One change; whether to go on.
    fn one(&mut self, round: &Round<'_>, client: &Client) -> Result<bool, Wrong> {
        let number = self.rng.u64(..round.load.keys);
        let name = self.key(number);
        let len = (self.rng.u8(..100) >= 20).then(|| round.load.len(&mut self.rng));
        let mut operation = self.ask(round, name, |id| len.map(|len| Value { id, len }));
        operation.number = Some(self.next_number);
        self.next_number += 1;
        match operation.perform(client, round.model.seed()) {
            Ok(outcome) => {
                operation.outcome = Some(outcome);
                round.note(&operation.name, operation.id)?;
                self.remember(operation);
                Ok(true)
            }
            Err(error) => {
                let what = shown(&operation.name);
                self.pending.push(operation);
                round.excuse(&what, &error).map(|()| false)
            }
        }
    }

    /// Several values in one call; whether to go on.
    fn many(&mut self, round: &Round<'_>, client: &Client, count: usize) -> Result<bool, Wrong> {
        let first = self.rng.u64(..round.load.keys);
        let operations: Vec<Operation> = (0..count as u64)
            .map(|more| {
                let name = self.key((first + more) % round.load.keys);
                let len = round.load.len(&mut self.rng).min(64 << 10);
                self.ask(round, name, |id| Some(Value { id, len }))
            })
            .collect();
        self.next_number += count as u64;
        let seed = round.model.seed();
        let items: Vec<(Vec<u8>, Vec<u8>)> = operations
            .iter()
            .filter_map(|operation| Some((operation.name.key.clone(), operation.held?.bytes(seed))))
            .collect();
        let mut all = true;
        for (operation, result) in operations.into_iter().zip(client.put_many(&items)) {
            match result {
                Ok(_) => round.note(&operation.name, operation.id)?,
                Err(error) => {
                    all = false;
                    let what = shown(&operation.name);
                    self.pending.push(operation);
                    round.excuse(&what, &error)?;
                }
            }
        }
        Ok(all)
    }

    /// Keeps an operation, to send it once more some day.
    pub(crate) fn remember(&mut self, operation: Operation) {
        self.done.push_back(operation);
        if self.done.len() > DONE_KEPT {
            self.done.pop_front();
        }
    }
}

/// Creates, fills, renames and drops a dataset until the round is over or a call fails.
pub(crate) fn churn(round: &Round<'_>, rng: &mut Rng) -> Result<(), Wrong> {
    let Some(session) = round.session("the admin", None)? else {
        return Ok(());
    };

    while !round.over() {
        std::thread::sleep(Duration::from_millis(rng.u64(..=round.load.churn_pause_ms)));
        let id = round.model.next_id();
        let fresh = format!("{CHURNED}{}", id % CHURNED_NAMES);
        let now = round.model.churned();
        if let Some(now) = now.as_ref().filter(|_| rng.bool()) {
            if !fill(round, rng, &session, now, id)? {
                return Ok(());
            }
            continue;
        }
        let result = match &now {
            None => {
                let created = Churned {
                    name: fresh.clone(),
                    dataset: id,
                };
                round.model.ask_churned(id, Some(created));
                session.create(&fresh).map(drop)
            }
            Some(now) if rng.bool() || fresh == now.name => {
                round.model.ask_churned(id, None);
                session.drop_dataset(&now.name)
            }
            Some(now) => {
                let renamed = Churned {
                    name: fresh.clone(),
                    dataset: now.dataset,
                };
                round.model.ask_churned(id, Some(renamed));
                session.rename(&now.name, &fresh)
            }
        };
        match result {
            Ok(()) => {
                (round.mark)(id)?;
                round.model.answered_churned(id);
                round.answered.fetch_add(1, Ordering::SeqCst);
            }
            // These have no number and cannot be sent again, so a kill ends them in any case.
            Err(ClientError::Unknown { .. }) => return Ok(()),
            Err(error) => return round.excuse("a change of datasets", &error),
        }
    }
    Ok(())
}

/// The one key of the churned dataset.
pub(crate) fn churned_key(dataset: u64) -> Name {
    Name {
        dataset,
        key: b"key".to_vec(),
    }
}

fn fill(round: &Round<'_>, rng: &mut Rng, session: &Session, now: &Churned, id: u64) -> Result<bool, Wrong> {
    let client = match session.open(&now.name) {
        Ok(client) => client,
        Err(error) => return round.excuse("opening a dataset", &error).map(|()| false),
    };
    let len = rng.usize(..4096);
    let operation = Operation {
        name: churned_key(now.dataset),
        id,
        held: Some(Value { id, len }),
        number: None,
        outcome: None,
    };
    round.model.ask(&operation.name, id, operation.held);
    match operation.perform(&client, round.model.seed()) {
        Ok(_) => round.note(&operation.name, id).map(|()| true),
        Err(error) => round.excuse("filling a dataset", &error).map(|()| false),
    }
}

/// Reads keys of all writers until the round is over: never older than what was answered before, never torn.
pub(crate) fn read(round: &Round<'_>, rng: &mut Rng) -> Result<(), Wrong> {
    let Some(client) = round.open("the reader", None)? else {
        return Ok(());
    };

    while !round.over() {
        let name = Name {
            dataset: MAIN,
            key: format!(
                "writer {} key {}",
                rng.usize(..round.load.writers),
                rng.u64(..round.load.keys)
            )
            .into_bytes(),
        };
        let floor = round.model.begin_read(&name);
        let found = match client.get(&name.key) {
            Ok(found) => Some(found),
            Err(ReadError::NotFound) => None,
            Err(ReadError::Timeout) if !round.survives => continue,
            Err(ReadError::Fabric(_) | ReadError::Closed) if round.over() => continue,
            Err(error) => return Err(format!("reading {}: {error}", shown(&name))),
        };
        round.model.judge_read(&name, floor, found.as_deref())?;
        let reads = round.reads.fetch_add(1, Ordering::Relaxed);
        if reads.is_multiple_of(READS_PER_LOOK) {
            look(round, &client);
        }
    }
    Ok(())
}

/// Looks what compaction has done; a server that does not answer has done nothing more.
fn look(round: &Round<'_>, client: &Client) {
    let figures = client.stat().unwrap_or_default();
    let removed = figures.iter().find(|(name, _)| name == REMOVED);
    if let Some((_, removed)) = removed {
        round.removed.fetch_max(*removed, Ordering::Relaxed);
    }
}
