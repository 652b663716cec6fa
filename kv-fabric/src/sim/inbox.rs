//! Where an endpoint hears of connection requests and of what its connections do.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::control::ControlLink;
use super::data::DataLink;
use crate::bell::Bell;
use crate::{ConnectionId, ControlOptions, EndpointEvent, FabricError, RequestId};

/// What a connection request asks for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Wanted {
    Control(ControlOptions),
    Data { reads_max: u32 },
}

/// What came of a connection request.
#[derive(Debug)]
pub(super) enum Answer {
    Waiting,
    /// Nobody waits for it any more.
    Abandoned,
    Control(Arc<ControlLink>),
    Data(Arc<DataLink>),
    Rejected(String),
    EndpointGone,
}

/// A connection request on its way.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) wanted: Wanted,
    /// Number of the connection in its network: names its stream of random numbers.
    pub(super) stream: u64,
    answer: Mutex<Answer>,
    answered: Condvar,
}

impl Request {
    pub(super) fn new(wanted: Wanted, stream: u64) -> Self {
        Self {
            wanted,
            stream,
            answer: Mutex::new(Answer::Waiting),
            answered: Condvar::new(),
        }
    }

    /// Answers; whether anybody still waits.
    pub(super) fn answer(&self, with: Answer) -> bool {
        let mut answer = self.answer.lock().unwrap_or_else(PoisonError::into_inner);
        let waits = matches!(*answer, Answer::Waiting);
        if waits {
            *answer = with;
            self.answered.notify_all();
        }
        waits
    }

    /// Waits for the answer; [`Answer::Waiting`] if the deadline came first.
    pub(super) fn wait(&self, deadline: Instant) -> Answer {
        let mut answer = self.answer.lock().unwrap_or_else(PoisonError::into_inner);
        while matches!(*answer, Answer::Waiting) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                *answer = Answer::Abandoned;
                return Answer::Waiting;
            }
            answer = self
                .answered
                .wait_timeout(answer, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        std::mem::replace(&mut answer, Answer::Abandoned)
    }
}

#[derive(Debug)]
struct State {
    open: bool,
    events: VecDeque<EndpointEvent>,
    requests: HashMap<u64, Arc<Request>>,
    /// Names of requests and, once accepted, of their connections.
    next: u64,
}

/// What an endpoint shares with its connections. Locked after a connection's own state, never before.
#[derive(Debug)]
pub(super) struct Inbox {
    pub(super) bell: Bell,
    state: Mutex<State>,
}

impl Inbox {
    pub(super) fn new() -> Result<Self, FabricError> {
        Ok(Self {
            bell: Bell::new()?,
            state: Mutex::new(State {
                open: true,
                events: VecDeque::new(),
                requests: HashMap::new(),
                next: 0,
            }),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Brings a request in; whether anybody listens.
    pub(super) fn request(&self, request: Arc<Request>, private: &[u8], host: &str) -> bool {
        let mut state = self.state();
        if !state.open {
            return false;
        }
        let id = state.next;
        state.next += 1;
        let peer = format!("simulated peer {}", request.stream);
        state.requests.insert(id, request);
        let event = EndpointEvent::Request {
            request: RequestId(id),
            private: private.to_vec(),
            peer,
            origin: host.to_owned(),
        };
        state.events.push_back(event);
        self.bell.ring();
        true
    }

    pub(super) fn take_request(&self, request: RequestId) -> Option<Arc<Request>> {
        self.state().requests.remove(&request.0)
    }

    pub(super) fn push(&self, event: EndpointEvent) {
        self.state().events.push_back(event);
        self.bell.ring();
    }

    pub(super) fn take(&self) -> VecDeque<EndpointEvent> {
        self.bell.clear();
        std::mem::take(&mut self.state().events)
    }

    /// Takes back what was not told of a connection yet.
    pub(super) fn forget(&self, connection: ConnectionId) {
        self.state().events.retain(|event| match event {
            EndpointEvent::Established(of) | EndpointEvent::Frame(of, _) | EndpointEvent::Closed(of, _) => {
                *of != connection
            }
            EndpointEvent::Request { .. } => true,
        });
    }

    /// Nobody listens any more.
    pub(super) fn close(&self) {
        let mut state = self.state();
        state.open = false;
        let requests = std::mem::take(&mut state.requests);
        drop(state);
        for request in requests.into_values() {
            request.answer(Answer::EndpointGone);
        }
    }
}
