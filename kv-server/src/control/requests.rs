//! What is done for each request that a session may make, apart from writing values.

use std::sync::Arc;

use kv_fabric::ConnectionId;
use kv_proto::control::{
    Answer, Bytes, DatasetItem, FRAME_HEADER_BYTES, FRAME_MAX_BYTES, Request, StatItem, Status,
};

use super::clock::BootMs;
use super::connections::Peer;
use super::leases::DatasetId;
use super::run::{Control, Outcome};
use super::session::Refusal;
use super::telling::told;
use super::tokens::TOKENS_PER_ANSWER_MAX;
use crate::error::StorageError;
use crate::store::Dataset;

/// Payload of one frame, bytes.
pub(super) const PAYLOAD_BYTES: usize = FRAME_MAX_BYTES - FRAME_HEADER_BYTES;

impl From<StorageError> for Refusal {
    fn from(error: StorageError) -> Self {
        if error.status() == Status::Io {
            tracing::error!(%error, "a request failed");
        }
        Self::new(error.status(), error.for_client())
    }
}

/// A name that the session was checked to be allowed; names are ASCII.
pub(super) fn text(name: &Bytes) -> Result<&str, Refusal> {
    std::str::from_utf8(&name.0).map_err(|_| Status::BadName.into())
}

impl Control {
    /// Does what a request asks.
    ///
    /// # Errors
    /// Why it was refused; the session goes on.
    pub(super) fn execute(
        &mut self,
        id: ConnectionId,
        number: u64,
        request: Request,
        now: BootMs,
    ) -> Result<Outcome, Refusal> {
        let answer = match request {
            Request::Open { name } => self.open(id, text(&name)?)?,
            Request::Close { dataset } => {
                self.close_dataset(id, &dataset);
                Answer::Close {}
            }
            Request::Table { dataset, first } => {
                let (rows, next) = self.dataset(id, &dataset)?.rows(first, PAYLOAD_BYTES - 2 - 4);
                Answer::Table { rows, next }
            }
            Request::Tokens { dataset, count } => self.tokens(id, &dataset, count, now)?,
            Request::Lookup { dataset, key } => {
                let locator = self.dataset(id, &dataset)?.lookup(&key.0)?;
                Answer::Lookup {
                    locator: locator.ok_or(Status::NotFound)?,
                }
            }
            Request::List {
                dataset,
                cursor,
                limit,
            } => self.list(id, &dataset, cursor, limit)?,
            Request::Stat { dataset } => self.stat(id, &dataset)?,
            Request::Renew { retired: _ } => self.renew(id)?,
            Request::Load { dataset, segment } => {
                let dataset = self.dataset(id, &dataset)?;
                dataset.load(id.0, segment);
                let row = dataset.row(segment);
                let stale = || Refusal::new(Status::Stale, format!("there is no segment {segment}"));
                Answer::Load {
                    row: row.ok_or_else(stale)?,
                }
            }
            Request::Create { .. } | Request::Drop { .. } | Request::Rename { .. } => {
                return self.change(id, number, &request);
            }
            Request::Datasets { after } => self.datasets(id, &after.0)?,
            Request::Bye {} => return Ok(Outcome::Bye),
            write => return self.write(id, number, write, now),
        };
        Ok(Outcome::Answer(answer))
    }

    pub(super) fn peer(&mut self, id: ConnectionId) -> Result<&mut Peer, Refusal> {
        self.peers.get_mut(&id).ok_or_else(|| Status::Stale.into())
    }

    /// A dataset that the session has open and that was not dropped.
    pub(super) fn dataset(&self, id: ConnectionId, dataset: &DatasetId) -> Result<Arc<Dataset>, Refusal> {
        let open = self.peers.get(&id).and_then(|peer| peer.open.get(dataset));
        match open {
            Some(dataset) if !dataset.is_dropped() => Ok(Arc::clone(dataset)),
            _ => Err(Status::NoDataset.into()),
        }
    }

    fn open(&mut self, id: ConnectionId, name: &str) -> Result<Answer, Refusal> {
        // Read before what is told: whatever is retired afterwards has a higher number, and is told by RENEW.
        let retired = self.store.retired();
        let dataset = self.store.by_name(name).ok_or(Status::NoDataset)?;
        let most = self.options.datasets_per_session_max;
        let peer = self.peer(id)?;
        if !peer.open.contains_key(&dataset.id()) && peer.open.len() >= most {
            let text = format!("the session has {most} datasets open, as many as it may");
            return Err(Refusal::new(Status::Limit, text));
        }
        peer.session.holds.opened(dataset.id(), retired);
        peer.open.insert(dataset.id(), Arc::clone(&dataset));
        Ok(Answer::Open {
            dataset: dataset.id(),
            hash_key: dataset.hash_key(),
            retired,
            directory: dataset.directory(),
            part_bytes: dataset.part_bytes(),
        })
    }

    fn tokens(
        &mut self,
        id: ConnectionId,
        dataset: &DatasetId,
        count: u16,
        now: BootMs,
    ) -> Result<Answer, Refusal> {
        self.dataset(id, dataset)?;
        let most = self.options.data_connections_per_session_max;
        let (all, all_most) = (self.data_connections_kept(), self.options.data_connections_max);
        let expires = now + u64::from(self.options.max_lag_ms);
        let peer = self.peer(id)?;
        let taken = peer.session.tokens.len(now) + peer.data_count;
        if taken + usize::from(count) > usize::from(most) || count > TOKENS_PER_ANSWER_MAX {
            let text = format!(
                "{count} tokens, where the session may have {most} data connections (--data-connections) and has {taken} or \
                 tokens for them"
            );
            return Err(Refusal::new(Status::Limit, text));
        }
        // Those of others come and go: asking again later may help.
        if all + peer.session.tokens.len(now) + usize::from(count) > all_most {
            let text = format!(
                "the server has {all} data connections, and takes {all_most}: others have to close some, or its \
                 --all-data-connections has to be raised"
            );
            return Err(Refusal::new(Status::Busy, text));
        }
        let mut tokens = vec![[0; 16]; usize::from(count)];
        for token in &mut tokens {
            getrandom::fill(token)
                .map_err(|error| Refusal::new(Status::Io, format!("getrandom: {error}")))?;
            peer.session.tokens.add(*token, *dataset, expires);
        }
        Ok(Answer::Tokens { tokens })
    }

    fn list(
        &self,
        id: ConnectionId,
        dataset: &DatasetId,
        cursor: u64,
        limit: u16,
    ) -> Result<Answer, Refusal> {
        let room_bytes = PAYLOAD_BYTES - 2 - 8 - 1;
        let dataset = self.dataset(id, dataset)?;
        let (entries, next, done) = dataset.list(cursor, usize::from(limit), room_bytes)?;
        // A page without keys goes on where the next may find some.
        if entries.is_empty() && !done && next == cursor {
            let text = "the keys of one slot hash do not fit the page";
            return Err(Refusal::new(Status::Limit, text));
        }
        Ok(Answer::List {
            entries,
            cursor: next,
            done: u8::from(done),
        })
    }

    fn renew(&mut self, id: ConnectionId) -> Result<Answer, Refusal> {
        self.counters.renewals += 1;
        if self.peer(id)?.session.holds.take_moved() {
            self.releases.touch();
        }
        if !self.dropped.is_empty() {
            self.close_dropped(id)?;
        }
        // Read before the changes: see `open`.
        let retired = self.store.retired();
        let lease_ms = self.options.lease_ms;
        let peer = self.peer(id)?;
        let open = &peer.open;
        Ok(told(
            &mut peer.session.holds,
            retired,
            lease_ms,
            |hold, room_bytes| open.get(&hold.dataset)?.changes(hold.acked, room_bytes),
        ))
    }

    /// Closes for a session the datasets that were dropped, and whose end it acknowledged.
    fn close_dropped(&mut self, id: ConnectionId) -> Result<(), Refusal> {
        let peer = self.peers.get(&id).ok_or(Status::Stale)?;
        let over: Vec<DatasetId> = peer
            .session
            .holds
            .open()
            .iter()
            .filter(|hold| {
                self.dropped
                    .get(&hold.dataset)
                    .is_some_and(|number| *number <= hold.acked)
            })
            .map(|hold| hold.dataset)
            .collect();
        for dataset in over {
            self.close_dataset(id, &dataset);
        }
        Ok(())
    }

    fn datasets(&self, id: ConnectionId, after: &[u8]) -> Result<Answer, Refusal> {
        let peer = self.peers.get(&id).ok_or(Status::Stale)?;
        let identity = peer.session.identity().ok_or(Status::Stale)?;
        let mut room_bytes = PAYLOAD_BYTES - 2 - 1;
        let mut items = Vec::new();
        for dataset in self.store.list() {
            let name = dataset.name();
            if name.as_bytes() <= after || !identity.key.allows(name.as_bytes()) {
                continue;
            }
            let item_bytes = 2 + name.len() + 16 + 8 + 8;
            if item_bytes > room_bytes {
                return Ok(Answer::Datasets { items, done: 0 });
            }
            room_bytes -= item_bytes;
            items.push(DatasetItem {
                name: Bytes::from(name.as_bytes()),
                dataset: dataset.id(),
                keys: dataset.keys(),
                value_bytes: dataset.value_bytes(),
            });
        }
        Ok(Answer::Datasets { items, done: 1 })
    }

    fn stat(&self, id: ConnectionId, dataset: &DatasetId) -> Result<Answer, Refusal> {
        let figures = if *dataset == [0; 16] {
            let mut figures = self.figures();
            figures.extend(self.store.stat());
            figures
        } else {
            self.dataset(id, dataset)?.stat()
        };
        let mut room_bytes = PAYLOAD_BYTES - 2;
        let mut items = Vec::with_capacity(figures.len());
        for (name, value) in figures {
            let item_bytes = 2 + name.len() + 8;
            if item_bytes > room_bytes {
                tracing::warn!(name, "a figure does not fit the answer to STAT");
                break;
            }
            room_bytes -= item_bytes;
            items.push(StatItem {
                name: Bytes::from(name.as_bytes()),
                value,
            });
        }
        Ok(Answer::Stat { items })
    }

    /// What the control side can tell.
    fn figures(&self) -> Vec<(String, u64)> {
        let puts = self.peers.values().map(|peer| peer.puts.len()).sum::<usize>();
        let staging = self.peers.values().filter_map(|peer| peer.staging.as_ref());
        let held: u64 = staging.map(|(_, charge)| charge.bytes()).sum();
        let counts = self
            .counters
            .items()
            .map(|(name, value)| (name.to_owned(), value));
        let mut figures = counts.to_vec();
        for (name, value) in [
            ("sessions_count", self.sessions.len()),
            ("unauthenticated_count", self.peers.len() - self.sessions.len()),
            ("data_connections_count", self.data.len()),
            ("connections_undestroyed_count", self.undestroyed.len()),
            ("puts_in_progress_count", puts),
            ("writes_queued_count", self.writes.len()),
            (
                "writes_waiting_count",
                self.parked.len() + self.parked_small.len(),
            ),
        ] {
            figures.push((name.to_owned(), value as u64));
        }
        figures.push(("staging_bytes".to_owned(), held));
        figures
    }
}
