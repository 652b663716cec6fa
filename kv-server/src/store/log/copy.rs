//! What compaction has the log do: write records anew that are live, and let go of a segment.

use std::sync::mpsc::Sender;

use kv_proto::hash::KeyHash;
use kv_proto::layout::{Locator, record_kind, units};

use super::super::compact::footprint::Footprint;
use super::Log;
use super::group::{Record, Then};
use crate::error::StorageError;

/// A record as it lies somewhere, to be written anew with everything but its place.
#[derive(Debug)]
pub(crate) struct Relocation {
    pub(crate) record: Record,
    pub(crate) from: Locator,
}

/// What became of the copy of this number: where it lies, or nothing where its source was not live any more.
pub(crate) type Copied = (usize, Result<Option<Locator>, StorageError>);

/// A piece of work that compaction asks for. Who is not answered finds its channel closed.
pub(crate) enum Task {
    /// Copies records; each is answered.
    Copy {
        copies: Vec<Relocation>,
        done: Sender<Copied>,
    },
    /// Has a sealed segment of which nothing is live leave the table.
    Retire {
        segment: u32,
        done: Sender<Result<(), StorageError>>,
    },
    /// Seals the active segment, so that what it tells of operations is durable.
    Seal { done: Sender<()> },
    /// Puts the index right where its memory changed though nobody wrote there.
    Mend,
}

impl Task {
    pub(super) fn bytes(&self) -> u64 {
        match self {
            Self::Copy { copies, .. } => copies.iter().map(|copy| copy.record.value.len() as u64).sum(),
            Self::Retire { .. } | Self::Seal { .. } | Self::Mend => 0,
        }
    }
}

/// What is done with a copy once it is durable.
pub(crate) struct Landing {
    from: Locator,
    number: usize,
    done: Sender<Copied>,
}

impl Landing {
    /// Where the source lies.
    pub(super) fn from(&self) -> Locator {
        self.from
    }

    /// Nobody waits for it any more where the channel is closed: then compaction was stopped.
    pub(super) fn answer(&self, result: Result<Option<Locator>, StorageError>) {
        let _ = self.done.send((self.number, result));
    }
}

impl Log {
    pub(super) fn task(&mut self, task: Task) {
        match task {
            Task::Copy { copies, done } => {
                for (number, copy) in copies.into_iter().enumerate() {
                    let landing = Landing {
                        from: copy.from,
                        number,
                        done: done.clone(),
                    };
                    self.place_copy(copy.record, landing);
                }
            }
            Task::Retire { segment, done } => {
                // What is in the group may name it.
                self.flush();
                let _ = done.send(self.dataset.retire(segment));
            }
            Task::Seal { done } => {
                self.flush();
                if self.active.as_ref().is_some_and(|active| !active.is_empty()) {
                    self.seal();
                }
                let _ = done.send(());
            }
            Task::Mend => {
                // Where that fails it is said there.
                let _ = self.dataset.mend_all();
            }
        }
    }

    fn place_copy(&mut self, record: Record, landing: Landing) {
        match self.is_live(&record, &landing.from) {
            Ok(true) => {}
            Ok(false) => return landing.answer(Ok(None)),
            Err(error) => return landing.answer(Err(error)),
        }
        match self.make_room(&record.key, record.value.len()) {
            Ok(at) => self.append(at, record, Then::Copy(landing)),
            Err(error) => landing.answer(Err(error)),
        }
    }

    /// Whether the index names the record there. Of parts and tombstones compaction itself says that they are wanted.
    fn is_live(&self, record: &Record, from: &Locator) -> Result<bool, StorageError> {
        let named = matches!(record.kind, record_kind::VALUE | record_kind::HEAD);
        Ok(!named || self.find(record.hash, |locator| locator == from)?.is_some())
    }

    /// Where the record lies which `is_key` takes for the key's; the index is put right where that is needed for it.
    pub(super) fn find(
        &self,
        hash: KeyHash,
        is_key: impl Fn(&Locator) -> bool,
    ) -> Result<Option<Locator>, StorageError> {
        let found = self.dataset.read_index().find(hash, &is_key);
        match found {
            Err(StorageError::Mending) => {
                self.dataset.mend(hash)?;
                self.dataset.read_index().find(hash, is_key)
            }
            found => found,
        }
    }

    /// Has the index name a durable copy of what lies as `from_footprint` says, unless its key has another value by now.
    pub(super) fn land(
        &self,
        index: &mut super::super::Index,
        record: &Record,
        to: Locator,
        landing: &Landing,
        from_footprint: Option<Footprint>,
    ) {
        let dataset = &self.dataset;
        let bytes = units(to.wire_len_bytes()) * 64;
        match record.kind {
            record_kind::VALUE | record_kind::HEAD => {
                let from = landing.from;
                let is_source = |locator: &Locator| *locator == from;
                match index.find(record.hash, is_source) {
                    Ok(Some(_)) => {}
                    Ok(None) => return landing.answer(Ok(None)),
                    Err(error) => return landing.answer(Err(error)),
                }
                let old = from_footprint.unwrap_or_else(|| dataset.footprint(&from));
                let new = dataset.footprint(&to);
                if let Err(error) = index.put(record.hash, to, is_source) {
                    return landing.answer(Err(error));
                }
                dataset.count_live(&new);
                dataset.count_dead(&old);
                dataset
                    .operations
                    .moved(record.client, record.operation, from, to);
            }
            record_kind::TOMBSTONE => {
                if let Some(segment) = dataset.segment(to.segment) {
                    segment.tally.add_tombstone(bytes);
                }
            }
            _ => {}
        }
        dataset.compaction.copied(bytes);
        landing.answer(Ok(Some(to)));
    }
}
