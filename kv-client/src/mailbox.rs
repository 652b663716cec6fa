//! Where answers wait for the thread that asked.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use kv_proto::control::{Answer, Refused};
use rustix::event::{EventfdFlags, eventfd};

use crate::ClientError;
use crate::clock::Deadline;

/// What became of a request.
#[derive(Debug)]
pub(crate) enum Reply {
    /// The server answered.
    Answer(Answer),
    /// The server refused.
    Refused(Refused),
    /// The lease was renewed, and what changed is known.
    Renewed,
    /// The session ended first: whether the request had an effect is not known.
    Lost,
}

/// What wakes a thread that sleeps on descriptors: readable from [`Bell::ring`] until [`Bell::clear`].
#[derive(Debug)]
pub(crate) struct Bell(OwnedFd);

impl Bell {
    pub(crate) fn new() -> Result<Self, ClientError> {
        let made = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        made.map(Self).map_err(|error| ClientError::System {
            call: "eventfd",
            source: Arc::new(error.into()),
        })
    }

    pub(crate) fn ring(&self) {
        // A full counter is readable as well, so the result does not matter.
        let _ = rustix::io::write(&self.0, &1_u64.to_le_bytes());
    }

    /// Clear it before looking at what it announces, never after.
    pub(crate) fn clear(&self) {
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Replies to the requests of one caller, each with the tag that it gave.
#[derive(Debug, Default)]
pub(crate) struct Mailbox {
    replies: Mutex<VecDeque<(u64, Reply)>>,
    arrived: Condvar,
    /// Rung at each reply, for a caller that sleeps on more than this.
    bell: Option<Arc<Bell>>,
}

impl Mailbox {
    pub(crate) fn with_bell(bell: Arc<Bell>) -> Self {
        Self {
            bell: Some(bell),
            ..Self::default()
        }
    }

    pub(crate) fn deliver(&self, tag: u64, reply: Reply) {
        let mut replies = self.replies.lock().unwrap_or_else(PoisonError::into_inner);
        replies.push_back((tag, reply));
        self.arrived.notify_one();
        drop(replies);
        if let Some(bell) = &self.bell {
            bell.ring();
        }
    }

    /// The next reply, if there is one.
    pub(crate) fn take(&self) -> Option<(u64, Reply)> {
        let mut replies = self.replies.lock().unwrap_or_else(PoisonError::into_inner);
        replies.pop_front()
    }

    /// The next reply; `None` at the deadline.
    pub(crate) fn wait(&self, deadline: Deadline) -> Option<(u64, Reply)> {
        let mut replies = self.replies.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(reply) = replies.pop_front() {
                return Some(reply);
            }
            let left = deadline.left();
            if left.is_zero() {
                return None;
            }
            let (woken, _) = self
                .arrived
                .wait_timeout(replies, left)
                .unwrap_or_else(PoisonError::into_inner);
            replies = woken;
        }
    }
}
