//! Values on their way to the store: ALLOC, APPEND, COMMIT, ABORT, DELETE.
//!
//! Bytes are copied out of staging memory before anything is made of them: their sender may write it at any time.
//! A write that finds no memory is parked until the store says that some was freed, where it waits for the store alone.
//! Memory that clients hold is not waited for so: who finds none is told BUSY, and asks again in its turn.

use std::sync::Arc;

use kv_fabric::ConnectionId;
use kv_proto::control::{Answer, Request, Status};
use kv_proto::layout::Locator;

use super::clock::BootMs;
use super::connections::Peer;
use super::leases::DatasetId;
use super::options::SESSION_GATHER_FRACTION;
use super::run::{Control, Outcome};
use super::session::Refusal;
use crate::error::StorageError;
use crate::store::{BeginDelete, BeginPut, Committed, Completion, Dataset, Kind, Put};

const APPEND_KIND: u8 = 9;
const COMMIT_KIND: u8 = 10;
const DELETE_KIND: u8 = 12;

/// A value that is arriving.
pub(super) struct OpenPut {
    put: Put,
    dataset: Arc<Dataset>,
    /// Tells it from others of the same operation.
    begun: u64,
    kind: Kind,
    /// Memory that it may hold, bytes.
    gather_bytes: u64,
    /// Whether one of its requests waits for memory.
    parked: bool,
}

/// A write, or a change of datasets, that the store has, and who waits for it.
pub(super) struct Write {
    pub(super) connection: ConnectionId,
    pub(super) request: u64,
    pub(super) kind: u8,
}

/// An APPEND or COMMIT that waits for memory.
pub(super) struct Parked {
    connection: ConnectionId,
    request: u64,
    operation: u64,
    begun: u64,
    taking: Taking,
}

/// Memory that a value is to hold while it arrives, and what there is for such before it does.
struct Need {
    kind: Kind,
    bytes: u64,
    kind_bytes: u64,
    free_bytes: u64,
}

impl Need {
    fn new(dataset: &Dataset, kind: Kind, bytes: u64) -> Self {
        let (kind_bytes, free_bytes) = dataset.gather_room(kind);
        Self {
            kind,
            bytes,
            kind_bytes,
            free_bytes,
        }
    }
}

/// Bytes to be taken out of a window.
#[derive(Debug, Clone, Copy)]
struct Taking {
    offset: usize,
    len: usize,
    /// CRC of the value, where they are the last.
    commit: Option<u32>,
}

impl Taking {
    fn kind(self) -> u8 {
        if self.commit.is_some() {
            COMMIT_KIND
        } else {
            APPEND_KIND
        }
    }
}

fn done(committed: &Committed) -> Answer {
    Answer::Alloc {
        done: 1,
        window_offset: 0,
        window_len_bytes: 0,
        sequence: committed.sequence,
        locator: committed.locator,
    }
}

impl Peer {
    /// Whether another value leaves the session within its share of the memory for such. One is in any case.
    fn within_share(&self, need: &Need) -> Result<(), Refusal> {
        let most_bytes = need.kind_bytes / SESSION_GATHER_FRACTION;
        let same_kind = self.puts.values().filter(|open| open.kind == need.kind);
        let held_bytes: u64 = same_kind.map(|open| open.gather_bytes).sum();
        if held_bytes == 0 || held_bytes + need.bytes <= most_bytes {
            return Ok(());
        }
        let text = format!(
            "values of this session that are arriving hold {held_bytes} of {most_bytes} bytes that they may"
        );
        Err(Refusal::new(Status::Busy, text))
    }
}

fn in_progress(operation: u64) -> Refusal {
    Refusal::new(
        Status::Busy,
        format!("operation {operation} is in progress: ask again"),
    )
}

impl Control {
    /// Does what a request about a value asks.
    ///
    /// # Errors
    /// Why it was refused; the session goes on.
    pub(super) fn write(
        &mut self,
        id: ConnectionId,
        number: u64,
        request: Request,
        now: BootMs,
    ) -> Result<Outcome, Refusal> {
        match request {
            Request::Alloc {
                dataset,
                operation,
                value_len_bytes,
                key,
            } => {
                let answer = self.alloc(id, &dataset, operation, value_len_bytes, &key.0, now)?;
                Ok(Outcome::Answer(answer))
            }
            Request::Append { operation, len_bytes } => {
                self.take(id, number, operation, len_bytes, None, now)
            }
            Request::Commit {
                operation,
                len_bytes,
                value_crc,
            } => self.take(id, number, operation, len_bytes, Some(value_crc), now),
            Request::Abort { operation } => {
                self.peer(id)?.end_put(operation);
                Ok(Outcome::Answer(Answer::Abort {}))
            }
            Request::Delete {
                dataset,
                operation,
                key,
            } => self.delete(id, number, &dataset, operation, &key.0),
            _ => Err(Status::Unsupported.into()),
        }
    }

    fn client(&self, id: ConnectionId) -> Result<u64, Refusal> {
        let peer = self.peers.get(&id);
        let identity = peer.and_then(|peer| peer.session.identity());
        Ok(identity.ok_or(Status::Stale)?.client)
    }

    fn alloc(
        &mut self,
        id: ConnectionId,
        dataset: &DatasetId,
        operation: u64,
        value_len_bytes: u64,
        key: &[u8],
        now: BootMs,
    ) -> Result<Answer, Refusal> {
        let dataset = self.dataset(id, dataset)?;
        let client = self.client(id)?;
        let begun = self.next_write;
        self.next_write += 1;
        let window_max_bytes = self.options.window_max_bytes;
        let peer = self.peer(id)?;
        // What was begun under this number is begun anew; what still waits of it finds another `begun`.
        peer.end_put(operation);
        let kind = peer
            .session
            .puts
            .kind(dataset.kind(value_len_bytes), value_len_bytes, window_max_bytes);
        let gather_bytes = dataset.gather_bytes(value_len_bytes);
        let need = Need::new(&dataset, kind, gather_bytes);
        let put = match dataset.begin_put(client, operation, key, value_len_bytes) {
            Ok(BeginPut::New(put)) => put,
            Ok(BeginPut::Done(committed)) => return Ok(done(&committed)),
            Ok(BeginPut::InProgress) => return Err(in_progress(operation)),
            Ok(BeginPut::Unknown) => return Err(Status::Unknown.into()),
            Err(error) => {
                if matches!(error, StorageError::Arriving) {
                    self.turn(id, &need, now)?;
                }
                return Err(error.into());
            }
        };
        let peer = self.peers.get_mut(&id).ok_or(Status::Stale)?;
        if peer.staging.is_none() && value_len_bytes > 0 {
            let text = "the memory budget was reached when the session began, so it was given no staging memory: \
                        raise --memory-budget at the server, and connect anew";
            return Err(Refusal::new(Status::NoMemory, text));
        }
        if kind != Kind::Small {
            self.turn(id, &need, now)?;
            put.hold()?;
        }
        let most = put.append_max().min(window_max_bytes as usize) as u32;
        let least = self.options.window_min_bytes;
        let peer = self.peer(id)?;
        let window =
            peer.session
                .puts
                .begin(operation, dataset.id(), value_len_bytes, kind, least..=most, now)?;
        let open = OpenPut {
            put,
            dataset,
            begun,
            kind,
            gather_bytes,
            parked: false,
        };
        peer.puts.insert(operation, open);
        self.lines.leave(kind, id);
        Ok(Answer::Alloc {
            done: 0,
            window_offset: window.map_or(0, |window| window.offset),
            window_len_bytes: window.map_or(0, |window| window.len_bytes),
            sequence: 0,
            locator: Locator::default(),
        })
    }

    /// Whether a session may hold memory for a value: within its share, and in its turn. Where others come before, or there
    /// is none, it waits in the line of those who ask again.
    fn turn(&mut self, id: ConnectionId, need: &Need, now: BootMs) -> Result<(), Refusal> {
        // Who has its share waits for itself, and nobody waits behind it.
        self.peer(id)?.within_share(need)?;
        let since = BootMs(now.0.saturating_sub(self.options.turn_kept_ms));
        let (needed, free) = (need.bytes, need.free_bytes);
        if self.lines.may_take(need.kind, id, needed, free, [since, now]) {
            Ok(())
        } else {
            Err(StorageError::Arriving.into())
        }
    }

    /// Has a small value of which only a piece came hold memory as a longer one does: it is its client that it waits for now.
    fn hold_small(&mut self, id: ConnectionId, operation: u64, now: BootMs) -> Result<(), Refusal> {
        let open = self.peer(id)?.puts.get(&operation).ok_or(Status::Stale)?;
        if open.kind != Kind::Small {
            return Ok(());
        }
        let need = Need::new(&open.dataset, Kind::Medium, open.gather_bytes);
        self.turn(id, &need, now)?;
        let open = self.peer(id)?.puts.get_mut(&operation).ok_or(Status::Stale)?;
        open.put.hold()?;
        open.kind = need.kind;
        self.lines.leave(need.kind, id);
        Ok(())
    }

    /// Takes bytes out of a window, for APPEND or COMMIT. Any refusal gives the operation up.
    fn take(
        &mut self,
        id: ConnectionId,
        number: u64,
        operation: u64,
        len_bytes: u32,
        commit: Option<u32>,
        now: BootMs,
    ) -> Result<Outcome, Refusal> {
        let peer = self.peer(id)?;
        let written = peer
            .session
            .puts
            .written(operation, len_bytes, commit.is_some(), now);
        let parked = peer.puts.get(&operation).is_some_and(|open| open.parked);
        let offset = match written {
            Ok(_) if parked => {
                peer.end_put(operation);
                let text = format!("operation {operation}: the request before is not answered yet");
                return Err(Refusal::new(Status::Order, text));
            }
            Ok(offset) => offset as usize,
            Err(refusal) => {
                peer.end_put(operation);
                return Err(refusal);
            }
        };
        // All of a small value may be appended too: as long as it is not committed it waits for its client.
        if commit.is_none()
            && let Err(refusal) = self.hold_small(id, operation, now)
        {
            self.peer(id)?.end_put(operation);
            return Err(refusal);
        }
        let taking = Taking {
            offset,
            len: len_bytes as usize,
            commit,
        };
        let outcome = self.copy(id, number, operation, taking)?;
        if outcome.is_none() {
            let peer = self.peer(id)?;
            peer.session.defer();
            let open = peer.puts.get(&operation);
            let (begun, is_small) = open.map_or((0, false), |open| (open.begun, open.kind == Kind::Small));
            self.counters.writes_waited += 1;
            let parked = Parked {
                connection: id,
                request: number,
                operation,
                begun,
                taking,
            };
            if is_small {
                self.parked_small.push_back(parked);
            } else {
                self.parked.push_back(parked);
            }
        }
        Ok(outcome.unwrap_or(Outcome::Deferred))
    }

    /// Copies bytes into the server's own memory and, if they are the last, queues the value to the log. `None` where
    /// there is no memory for them now: the operation is marked as parked.
    fn copy(
        &mut self,
        id: ConnectionId,
        number: u64,
        operation: u64,
        taking: Taking,
    ) -> Result<Option<Outcome>, Refusal> {
        let peer = self.peer(id)?;
        let open = peer.puts.get_mut(&operation).ok_or(Status::Stale)?;
        // An empty value is put also where there was no memory to write values to.
        if taking.len > 0 {
            let (staging, _) = peer.staging.as_ref().ok_or(Status::Stale)?;
            let fill = |out: &mut [u8]| staging.read(taking.offset, out);
            match open.put.append(taking.len, fill) {
                Ok(()) => open.parked = false,
                Err(StorageError::Busy(_)) => {
                    open.parked = true;
                    return Ok(None);
                }
                Err(error) => {
                    peer.end_put(operation);
                    return Err(error.into());
                }
            }
        }
        let Some(value_crc) = taking.commit else {
            return Ok(Some(Outcome::Answer(Answer::Append {})));
        };
        let Some(open) = peer.puts.remove(&operation) else {
            return Err(Status::Stale.into());
        };
        peer.session.puts.end(operation);
        peer.session.defer();
        let token = self.queue(id, number, COMMIT_KIND);
        open.dataset.commit(open.put, value_crc, token);
        Ok(Some(Outcome::Deferred))
    }

    pub(super) fn queue(&mut self, connection: ConnectionId, request: u64, kind: u8) -> u64 {
        let token = self.next_write;
        self.next_write += 1;
        let write = Write {
            connection,
            request,
            kind,
        };
        self.writes.insert(token, write);
        token
    }

    fn delete(
        &mut self,
        id: ConnectionId,
        number: u64,
        dataset: &DatasetId,
        operation: u64,
        key: &[u8],
    ) -> Result<Outcome, Refusal> {
        let dataset = self.dataset(id, dataset)?;
        let client = self.client(id)?;
        let token = self.queue(id, number, DELETE_KIND);
        let begun = dataset.delete(client, operation, key, token);
        if matches!(begun, Ok(BeginDelete::Queued)) {
            self.peer(id)?.session.defer();
            return Ok(Outcome::Deferred);
        }
        self.writes.remove(&token);
        match begun? {
            BeginDelete::Done(committed) => Ok(Outcome::Answer(Answer::Delete {
                existed: u8::from(committed.existed),
                sequence: committed.sequence,
            })),
            BeginDelete::Unknown => Err(Status::Unknown.into()),
            BeginDelete::InProgress | BeginDelete::Queued => Err(in_progress(operation)),
        }
    }

    /// Answers a write that the store has finished; its session may be over.
    pub(super) fn write_done(&mut self, completion: Completion) {
        let Some(write) = self.writes.remove(&completion.token) else {
            return;
        };
        let Some(peer) = self.peers.get_mut(&write.connection) else {
            return;
        };
        peer.session.answered();
        match completion.result {
            Ok(committed) if write.kind == DELETE_KIND => {
                let answer = Answer::Delete {
                    existed: u8::from(committed.existed),
                    sequence: committed.sequence,
                };
                self.answer(write.connection, write.request, &answer);
            }
            Ok(committed) => {
                let answer = Answer::Commit {
                    sequence: committed.sequence,
                    locator: committed.locator,
                };
                self.answer(write.connection, write.request, &answer);
            }
            Err(error) => self.refuse(write.connection, write.request, write.kind, &error.into()),
        }
    }

    /// Tries what waits for memory again. What a part of a value waits for says nothing of others; small values wait
    /// for the same, so those behind one that waits on do too.
    pub(super) fn retry_parked(&mut self) {
        for _ in 0..self.parked.len() {
            if let Some(parked) = self.parked.pop_front()
                && !self.retry(&parked)
            {
                self.parked.push_back(parked);
            }
        }
        while let Some(parked) = self.parked_small.pop_front() {
            if !self.retry(&parked) {
                self.parked_small.push_front(parked);
                return;
            }
        }
    }

    /// Tries one that waits for memory; whether it waits no more.
    fn retry(&mut self, parked: &Parked) -> bool {
        let Some(peer) = self.peers.get_mut(&parked.connection) else {
            return true;
        };
        let same = |open: &OpenPut| open.begun == parked.begun;
        let result = if peer.puts.get(&parked.operation).is_some_and(same) {
            peer.session.puts.heard(parked.operation, BootMs::now());
            self.copy(parked.connection, parked.request, parked.operation, parked.taking)
        } else {
            Err(Status::Stale.into())
        };
        let outcome = match result {
            Ok(None) => return false,
            Ok(Some(outcome)) => Ok(outcome),
            Err(refusal) => Err(refusal),
        };
        if let Some(peer) = self.peers.get_mut(&parked.connection) {
            peer.session.answered();
        }
        match outcome {
            Ok(Outcome::Answer(answer)) => self.answer(parked.connection, parked.request, &answer),
            Ok(_) => {}
            Err(refusal) => {
                self.refuse(parked.connection, parked.request, parked.taking.kind(), &refusal);
            }
        }
        true
    }

    /// Refuses what waits for memory: the server is shutting down.
    pub(super) fn refuse_parked(&mut self) {
        let small = std::mem::take(&mut self.parked_small);
        for parked in std::mem::take(&mut self.parked).into_iter().chain(small) {
            let kind = parked.taking.kind();
            self.refuse(
                parked.connection,
                parked.request,
                kind,
                &Status::ShuttingDown.into(),
            );
        }
    }

    /// Gives up PUTs whose client was silent for too long.
    pub(super) fn drop_silent_puts(&mut self, now: BootMs) {
        let max_lag_ms = u64::from(self.options.max_lag_ms);
        for peer in self.peers.values_mut() {
            while let Some((operation, heard)) = peer.session.puts.stalest()
                && heard + max_lag_ms <= now
            {
                if peer.puts.get(&operation).is_some_and(|open| open.parked) {
                    // It is the server that lets it wait: its client is not silent.
                    peer.session.puts.heard(operation, now);
                } else {
                    peer.end_put(operation);
                }
            }
        }
    }
}
