//! Operations that are remembered, so that a retry is answered once and never overwrites a newer value.
//!
//! Of what is forgotten the highest number stays, the client's *floor*: at and below it nothing begins anew. A client that
//! is forgotten whole has nothing but that.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use kv_proto::hash::KeyHash;
use kv_proto::layout::{FooterEntry, Locator, OPERATIONS_REMEMBERED, OperationEntry};

use super::limits::{FLOORS_MAX, OPERATIONS_SERVER_MAX, OPERATIONS_SHARE, OPERATIONS_TOTAL_MAX};
use super::{Committed, lock};

/// How far an operation is.
#[derive(Debug, Clone, Copy)]
enum State {
    /// Begun, by the attempt with this number.
    Begun(u64),
    /// In the log, not durable yet.
    Committing,
    Done(Committed),
}

/// What is known of an operation that somebody wants to begin.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Begin {
    Done(Committed),
    InProgress,
    Unknown,
    /// It is begun now, as this attempt.
    New(u64),
}

#[derive(Default)]
struct Client {
    operations: BTreeMap<u64, State>,
    /// How many of them are done.
    done: usize,
    /// Highest number that was forgotten; 0 while none was.
    forgotten: u64,
    /// When it was last heard of: its key in `by_use`.
    used: u64,
}

/// A client of which nothing else is remembered.
struct Floor {
    /// Highest number that was forgotten.
    number: u64,
    /// When that was: its key in `floors_by_age`.
    since: u64,
}

#[derive(Default)]
struct Inner {
    clients: HashMap<u64, Client>,
    by_use: BTreeMap<u64, u64>,
    /// Clients that were forgotten whole.
    floors: HashMap<u64, Floor>,
    floors_by_age: BTreeMap<u64, u64>,
    total: usize,
    /// Of all datasets of the server.
    server: Arc<AtomicUsize>,
    tick: u64,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.server.fetch_sub(self.total, Ordering::Relaxed);
    }
}

/// Operations of all clients of one dataset.
#[derive(Default)]
pub(crate) struct Operations(Mutex<Inner>);

impl Operations {
    /// None yet, of a server that remembers so many of all its datasets.
    pub(crate) fn of(server: &Arc<AtomicUsize>) -> Self {
        let operations = Self::default();
        lock(&operations.0).server = Arc::clone(server);
        operations
    }

    /// Begins an operation; one of this number that was begun and not committed is begun anew.
    pub(crate) fn begin(&self, client: u64, operation: u64) -> Begin {
        let inner = &mut *lock(&self.0);
        inner.touch(client);
        let attempt = inner.tick;
        let Some(known) = inner.clients.get_mut(&client) else {
            return Begin::Unknown;
        };
        match known.operations.get_mut(&operation) {
            Some(State::Done(outcome)) => return Begin::Done(*outcome),
            Some(State::Committing) => return Begin::InProgress,
            Some(State::Begun(old)) => {
                *old = attempt;
                return Begin::New(attempt);
            }
            None if operation <= known.forgotten => return Begin::Unknown,
            None => {}
        }
        inner.insert(client, operation, State::Begun(attempt));
        Begin::New(attempt)
    }

    /// Notes that an attempt goes to the log; whether it is still the one that counts.
    pub(crate) fn commit(&self, client: u64, operation: u64, attempt: u64) -> bool {
        let inner = &mut *lock(&self.0);
        let state = inner
            .clients
            .get_mut(&client)
            .and_then(|known| known.operations.get_mut(&operation));
        let Some(state) = state.filter(|state| matches!(state, State::Begun(at) if *at == attempt)) else {
            return false;
        };
        *state = State::Committing;
        true
    }

    /// Whether this attempt is the one that counts.
    pub(crate) fn is_current(&self, client: u64, operation: u64, attempt: u64) -> bool {
        let inner = lock(&self.0);
        let state = inner
            .clients
            .get(&client)
            .and_then(|known| known.operations.get(&operation));
        matches!(state, Some(State::Begun(at)) if *at == attempt)
    }

    /// Gives an attempt up that was not committed.
    pub(crate) fn abort(&self, client: u64, operation: u64, attempt: u64) {
        let inner = &mut *lock(&self.0);
        let Some(known) = inner.clients.get_mut(&client) else {
            return;
        };
        if matches!(known.operations.get(&operation), Some(State::Begun(at)) if *at == attempt) {
            known.operations.remove(&operation);
            inner.count_less(1);
            inner.drop_if_empty(client);
        }
    }

    /// Notes how a committed operation ended; one that failed is as if it had never been.
    pub(crate) fn finish(&self, client: u64, operation: u64, outcome: Option<Committed>) {
        let inner = &mut *lock(&self.0);
        let Some(known) = inner.clients.get_mut(&client) else {
            return;
        };
        match outcome {
            Some(outcome) => {
                if let Some(state) = known.operations.get_mut(&operation) {
                    known.done += usize::from(!matches!(state, State::Done(_)));
                    *state = State::Done(outcome);
                }
                inner.trim(client);
            }
            None => {
                if known.operations.remove(&operation).is_some() {
                    inner.count_less(1);
                }
                inner.drop_if_empty(client);
            }
        }
    }

    /// Notes an operation that a record tells of, at restart. The record with the highest sequence counts.
    pub(crate) fn recovered(&self, client: u64, operation: u64, outcome: Committed) {
        let inner = &mut *lock(&self.0);
        inner.touch(client);
        match inner
            .clients
            .get_mut(&client)
            .map(|known| (known.forgotten, known.operations.get_mut(&operation)))
        {
            Some((_, Some(State::Done(old)))) if place(old) >= place(&outcome) => {}
            Some((_, Some(state @ State::Done(_)))) => *state = State::Done(outcome),
            Some((forgotten, None)) if operation <= forgotten => {}
            _ => {
                inner.insert(client, operation, State::Done(outcome));
                if let Some(known) = inner.clients.get_mut(&client) {
                    known.done += 1;
                }
                inner.trim(client);
            }
        }
    }

    /// Notes an operation, or a client's floor, that a FOOTER or a checkpoint lists.
    pub(crate) fn take_entry(&self, listed: &OperationEntry) {
        if is_floor(listed) {
            self.forgot(listed.client_id, listed.operation);
        } else {
            self.recovered(listed.client_id, listed.operation, outcome(listed));
        }
    }

    /// Notes that of a client all that is not known up to `number` was forgotten.
    fn forgot(&self, client: u64, number: u64) {
        let inner = &mut *lock(&self.0);
        match inner.clients.get_mut(&client) {
            Some(known) => known.forgotten = known.forgotten.max(number),
            None => inner.keep_floor(client, number),
        }
    }

    /// Every operation that is done and every floor, clients that were idle longest first.
    pub(crate) fn entries(&self) -> Vec<OperationEntry> {
        let inner = lock(&self.0);
        let mut entries = Vec::with_capacity(inner.total + inner.floors.len() + inner.clients.len());
        for client in inner.floors_by_age.values() {
            entries.push(floor_entry(*client, inner.floors[client].number));
        }
        for client in inner.by_use.values() {
            let known = &inner.clients[client];
            if known.forgotten > 0 {
                entries.push(floor_entry(*client, known.forgotten));
            }
            entries.extend(
                known
                    .operations
                    .iter()
                    .filter_map(|(operation, state)| match state {
                        State::Done(outcome) => Some(entry(*client, *operation, outcome)),
                        _ => None,
                    }),
            );
        }
        entries
    }

    /// Keeps of `entries` what is remembered, and of the others what tells that they were forgotten.
    pub(crate) fn retain_remembered(&self, entries: &mut Vec<OperationEntry>) {
        let inner = lock(&self.0);
        let mut forgotten = BTreeSet::new();
        entries.retain(|entry| {
            let known = inner.clients.get(&entry.client_id);
            let remembered = known.is_some_and(|known| known.operations.contains_key(&entry.operation));
            if !remembered {
                forgotten.insert(entry.client_id);
            }
            remembered
        });
        let floors = forgotten
            .into_iter()
            .map(|client| (client, inner.floor(client)))
            .filter(|(_, floor)| *floor > 0);
        entries.extend(floors.map(|(client, floor)| floor_entry(client, floor)));
    }

    /// Notes that all which are to be known at restart are: a client of which as many are known as are remembered has
    /// had lower ones forgotten. Where some of what tells could not be read, so may any other have.
    pub(crate) fn all_recovered(&self, all_read: bool) {
        for client in lock(&self.0).clients.values_mut() {
            if (client.operations.len() >= OPERATIONS_REMEMBERED || !all_read)
                && let Some(lowest) = client.operations.keys().next()
            {
                client.forgotten = client.forgotten.max(lowest.saturating_sub(1));
            }
        }
    }

    /// Notes that what an operation put lies elsewhere now.
    pub(crate) fn moved(&self, client: u64, operation: u64, from: Locator, to: Locator) {
        let inner = &mut *lock(&self.0);
        let state = inner
            .clients
            .get_mut(&client)
            .and_then(|known| known.operations.get_mut(&operation));
        if let Some(State::Done(outcome)) = state
            && outcome.locator == from
        {
            outcome.locator = to;
        }
    }

    /// Operations remembered now.
    pub(crate) fn total(&self) -> usize {
        lock(&self.0).total
    }
}

/// As FOOTERs and checkpoints list a client's floor.
const fn floor_entry(client_id: u64, number: u64) -> OperationEntry {
    OperationEntry {
        client_id,
        operation: number,
        sequence: 0,
        locator: Locator {
            segment: 0,
            offset_units: 0,
            value_len_bytes: 0,
            key_len_bytes: 0,
            tag: 0,
        },
    }
}

/// Whether an entry lists a client's floor; no operation has sequence 0.
pub(crate) const fn is_floor(entry: &OperationEntry) -> bool {
    entry.sequence == 0
}

/// Where a record lies that is listed of `segment`.
pub(crate) fn locator(segment: u32, entry: &FooterEntry) -> Locator {
    let hash = KeyHash {
        slot: entry.hash,
        high: entry.hash_high,
    };
    Locator {
        segment,
        offset_units: entry.offset_units,
        value_len_bytes: entry.value_len_bytes,
        key_len_bytes: entry.key_len_bytes,
        tag: hash.tag(),
    }
}

/// As FOOTERs and checkpoints list it.
pub(crate) fn entry(client_id: u64, operation: u64, outcome: &Committed) -> OperationEntry {
    let deleted = Locator {
        offset_units: u32::from(outcome.existed),
        ..Locator::default()
    };
    OperationEntry {
        client_id,
        operation,
        sequence: outcome.sequence,
        locator: if outcome.locator.segment == 0 {
            deleted
        } else {
            outcome.locator
        },
    }
}

/// What such an entry says.
pub(crate) fn outcome(entry: &OperationEntry) -> Committed {
    let deleted = entry.locator.segment == 0;
    Committed {
        sequence: entry.sequence,
        locator: if deleted {
            Locator::default()
        } else {
            entry.locator
        },
        existed: deleted && entry.locator.offset_units != 0,
    }
}

/// Of two records of one operation the later one holds: a copy has the sequence of its source.
fn place(outcome: &Committed) -> (u64, u32, u32) {
    let locator = &outcome.locator;
    (outcome.sequence, locator.segment, locator.offset_units)
}

impl Inner {
    fn touch(&mut self, client: u64) {
        self.tick += 1;
        let floor = self.floors.remove(&client);
        if let Some(floor) = &floor {
            self.floors_by_age.remove(&floor.since);
        }
        let known = self.clients.entry(client).or_insert_with(|| Client {
            forgotten: floor.map_or(0, |floor| floor.number),
            ..Client::default()
        });
        self.by_use.remove(&known.used);
        known.used = self.tick;
        self.by_use.insert(self.tick, client);
    }

    /// Highest number of a client that was forgotten; 0 while none was.
    fn floor(&self, client: u64) -> u64 {
        let known = self.clients.get(&client).map(|known| known.forgotten);
        known
            .or_else(|| self.floors.get(&client).map(|floor| floor.number))
            .unwrap_or(0)
    }

    /// Keeps the floor of a client of which nothing else is known, and past the limit lets go of the oldest.
    fn keep_floor(&mut self, client: u64, number: u64) {
        if number == 0 {
            return;
        }
        self.tick += 1;
        let floor = self.floors.entry(client).or_insert(Floor { number: 0, since: 0 });
        self.floors_by_age.remove(&floor.since);
        floor.number = floor.number.max(number);
        floor.since = self.tick;
        self.floors_by_age.insert(self.tick, client);
        if self.floors.len() > FLOORS_MAX
            && let Some((_, oldest)) = self.floors_by_age.pop_first()
        {
            self.floors.remove(&oldest);
        }
    }

    fn insert(&mut self, client: u64, operation: u64, state: State) {
        if let Some(known) = self.clients.get_mut(&client)
            && known.operations.insert(operation, state).is_none()
        {
            self.total += 1;
            self.server.fetch_add(1, Ordering::Relaxed);
        }
        self.trim(client);
    }

    fn count_less(&mut self, operations: usize) {
        self.total -= operations;
        self.server.fetch_sub(operations, Ordering::Relaxed);
    }

    /// Whether there are more than may be: of this dataset, or of all where this one has more than a share.
    fn is_over(&self) -> bool {
        self.total > OPERATIONS_TOTAL_MAX
            || self.total > OPERATIONS_SHARE && self.server.load(Ordering::Relaxed) > OPERATIONS_SERVER_MAX
    }

    /// Forgets what is past the limits: the client's lowest numbers that are done, then the client idle longest.
    fn trim(&mut self, client: u64) {
        let Some(known) = self.clients.get_mut(&client) else {
            return;
        };
        // Those in progress do not count: once one was forgotten, never fewer are known than are remembered.
        let mut less = 0;
        while known.done > OPERATIONS_REMEMBERED {
            let lowest = known
                .operations
                .iter()
                .find(|(_, state)| matches!(state, State::Done(_)))
                .map(|(operation, _)| *operation);
            let Some(lowest) = lowest else { break };
            known.operations.remove(&lowest);
            known.done -= 1;
            known.forgotten = known.forgotten.max(lowest);
            less += 1;
        }
        self.count_less(less);
        while self.is_over() {
            let idle = self
                .by_use
                .iter()
                .map(|(used, client)| (*used, *client))
                .find(|(_, idle)| {
                    *idle != client
                        && self.clients[idle]
                            .operations
                            .values()
                            .all(|state| matches!(state, State::Done(_)))
                });
            let Some((used, idle)) = idle else { break };
            self.by_use.remove(&used);
            if let Some(gone) = self.clients.remove(&idle) {
                self.count_less(gone.operations.len());
                let highest = gone.operations.keys().next_back().copied().unwrap_or(0);
                self.keep_floor(idle, gone.forgotten.max(highest));
            }
        }
    }

    fn drop_if_empty(&mut self, client: u64) {
        if let Some(known) = self.clients.get(&client)
            && known.operations.is_empty()
        {
            let forgotten = known.forgotten;
            self.by_use.remove(&known.used);
            self.clients.remove(&client);
            self.keep_floor(client, forgotten);
        }
    }
}
