//! What waits for the log of one dataset.

use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use super::super::limits::{GROUP_BYTES_MAX, GROUP_OPS_MAX, LOG_QUEUE_OPS_MAX, LOG_QUEUE_PARTS_MAX};
use super::super::lock;
use super::super::put::PutState;
use super::copy::Task;
use crate::error::StorageError;

/// A piece of work for the log.
pub(crate) enum Op {
    /// A part of a large value; its number is its place among the parts.
    Part { put: Arc<PutState>, bytes: Vec<u8> },
    /// A value that fits one record.
    Value {
        put: Arc<PutState>,
        bytes: Vec<u8>,
        value_crc: u32,
        token: u64,
    },
    /// The head of a large value whose parts are all queued.
    Head {
        put: Arc<PutState>,
        value_crc: u32,
        token: u64,
    },
    /// A key to delete.
    Delete {
        client: u64,
        operation: u64,
        key: Vec<u8>,
        token: u64,
    },
    /// Something that compaction asks for.
    Task(Task),
}

impl Op {
    fn bytes(&self) -> u64 {
        match self {
            Self::Part { bytes, .. } | Self::Value { bytes, .. } => bytes.len() as u64,
            Self::Task(task) => task.bytes(),
            Self::Head { .. } | Self::Delete { .. } => 0,
        }
    }
}

/// Why a queue takes nothing more; the later of two counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Close {
    /// The server shuts down: what is queued is finished.
    Finish,
    /// The log thread is lost to a bug: nobody does what is queued.
    Broken,
    /// The dataset was dropped: what is queued fails.
    Dropped,
}

#[derive(Default)]
struct State {
    ops: VecDeque<Op>,
    closed: Option<Close>,
}

/// Operations that wait for the log.
#[derive(Default)]
pub(crate) struct Queue {
    state: Mutex<State>,
    ready: Condvar,
}

/// What [`Queue::take`] gives.
pub(crate) enum Taken {
    Ops(Vec<Op>),
    /// Nothing more comes; what was left where the dataset was dropped.
    Closed(Close, Vec<Op>),
}

impl Queue {
    /// Adds an operation.
    ///
    /// # Errors
    /// [`StorageError::Busy`] at the limit, or why the queue was closed.
    pub(crate) fn push(&self, op: Op) -> Result<(), StorageError> {
        let mut state = lock(&self.state);
        // One that was taken from its client must not be lost here: no more are taken past `LOG_QUEUE_PARTS_MAX`.
        // Compaction asks for one thing at a time, and so does who finds the index damaged.
        let limit = if matches!(op, Op::Part { .. } | Op::Task(_)) {
            usize::MAX
        } else {
            LOG_QUEUE_OPS_MAX
        };
        refusal(&state, limit)?;
        state.ops.push_back(op);
        drop(state);
        self.ready.notify_one();
        Ok(())
    }

    /// Whether [`Queue::push`] would take an operation now.
    pub(crate) fn check(&self) -> Result<(), StorageError> {
        refusal(&lock(&self.state), LOG_QUEUE_OPS_MAX)
    }

    /// Whether parts may be taken from a client: what one append queues fits.
    pub(crate) fn takes_parts(&self) -> bool {
        self.len() < LOG_QUEUE_PARTS_MAX
    }

    /// Sleeps until there is something to do, and takes what one sync may cover.
    pub(crate) fn take(&self) -> Taken {
        let mut state = lock(&self.state);
        loop {
            match state.closed {
                Some(Close::Dropped) => return Taken::Closed(Close::Dropped, state.ops.drain(..).collect()),
                Some(Close::Finish) if state.ops.is_empty() => {
                    return Taken::Closed(Close::Finish, Vec::new());
                }
                _ if !state.ops.is_empty() => break,
                _ => state = self.ready.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        }
        let mut bytes = 0;
        let mut count = 0;
        for op in state.ops.iter().take(GROUP_OPS_MAX) {
            bytes += op.bytes();
            if count > 0 && bytes > GROUP_BYTES_MAX {
                break;
            }
            count += 1;
        }
        Taken::Ops(state.ops.drain(..count).collect())
    }

    pub(crate) fn close(&self, close: Close) {
        let mut state = lock(&self.state);
        state.closed = state.closed.max(Some(close));
        drop(state);
        self.ready.notify_all();
    }

    /// Closes it for want of a log thread; what was queued.
    pub(crate) fn break_off(&self) -> Vec<Op> {
        self.close(Close::Broken);
        lock(&self.state).ops.drain(..).collect()
    }

    pub(crate) fn len(&self) -> usize {
        lock(&self.state).ops.len()
    }
}

fn refusal(state: &State, limit: usize) -> Result<(), StorageError> {
    match state.closed {
        Some(Close::Finish) => Err(StorageError::ShuttingDown),
        Some(Close::Broken) => Err(broken()),
        Some(Close::Dropped) => Err(StorageError::Dropped),
        None if state.ops.len() >= limit => Err(StorageError::Busy("the log's queue is full")),
        None => Ok(()),
    }
}

/// What is said where the log thread is lost to a bug.
pub(crate) fn broken() -> StorageError {
    let source = io::Error::other("its thread ended by a bug (restart the server)");
    StorageError::io("write to", Path::new("the log of this dataset"), source)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::arriving::Arriving;
    use crate::store::operations::{Begin, Operations};
    use crate::store::put::Put;

    #[test]
    fn what_comes_after_a_drop_is_told_of_it() {
        let queue = Queue::default();
        queue.close(Close::Dropped);
        let refused = queue.check().unwrap_err().to_string();
        assert_eq!(refused, "the dataset was dropped");
    }

    #[test]
    fn one_sync_covers_so_many_bytes_unless_one_is_longer() {
        const MIB: usize = 1 << 20;
        let queue = Queue::default();
        let hash = kv_proto::hash::KeyHash { slot: 0, high: 0 };
        let put = PutState::new(b"key", hash, (1, 1), 1, 1);
        // Zeroes that nobody touches take no memory.
        for len in [30, 30, 30, 70, 70, 1] {
            let put = Arc::clone(&put);
            let bytes = vec![0; len * MIB];
            queue.push(Op::Part { put, bytes }).unwrap();
        }
        queue.close(Close::Finish);
        let mut taken = Vec::new();
        while let Taken::Ops(ops) = queue.take() {
            taken.push(ops.len());
        }
        assert_eq!(taken, [2, 1, 1, 1, 1]);
    }

    #[test]
    fn parts_have_a_limit_too() {
        let queue = Arc::new(Queue::default());
        let operations = Arc::new(Operations::default());
        let Begin::New(attempt) = operations.begin(1, 1) else {
            panic!("it is new");
        };
        let hash = kv_proto::hash::KeyHash { slot: 0, high: 0 };
        let state = PutState::new(b"key", hash, (1, 1), 1 << 19, 1);
        let arriving = Arc::new(Arriving::new(8 << 20));
        let mut put = Put::new(state, attempt, arriving, Arc::clone(&queue), operations);
        while queue.len() < LOG_QUEUE_PARTS_MAX {
            put.append(1 << 12, |_| ()).unwrap();
        }
        let refused = put.append(1, |_| panic!("nothing is taken")).unwrap_err();
        assert!(matches!(refused, StorageError::Busy(_)), "{refused}");
        let Taken::Ops(_) = queue.take() else {
            panic!("there is much to do");
        };
        put.append(1, |_| ()).unwrap();
    }
}
