//! Where answers wait for the thread that asked.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, PoisonError};

use kv_proto::control::{Answer, Refused};

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

/// Replies to the requests of one call, each with the tag that the call gave it.
#[derive(Debug, Default)]
pub(crate) struct Mailbox {
    replies: Mutex<VecDeque<(u64, Reply)>>,
    arrived: Condvar,
}

impl Mailbox {
    pub(crate) fn deliver(&self, tag: u64, reply: Reply) {
        let mut replies = self.replies.lock().unwrap_or_else(PoisonError::into_inner);
        replies.push_back((tag, reply));
        self.arrived.notify_one();
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
