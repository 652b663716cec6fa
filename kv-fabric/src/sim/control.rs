//! Control connections: frames and WRITEs, in order, perhaps late.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::clock::Clock;
use super::domain::offset_in;
use super::fault::{Faults, Random};
use super::inbox::Inbox;
use crate::bell::Bell;
use crate::{
    ConnectionId, ControlEvent, ControlOptions, EndpointEvent, FabricError, Memory, Region, RemoteRef,
};

/// Frames that may be under way to a peer, beyond the receives that it posted.
const QUEUE_MAX: usize = 64;
/// WRITEs not polled.
const WRITES_MAX: usize = 1024;

/// What is under way in one direction: nothing overtakes what was sent before it.
#[derive(Debug)]
struct Pipe<T> {
    waiting: VecDeque<(Instant, T)>,
    random: Random,
}

impl<T> Pipe<T> {
    fn new(random: Random) -> Self {
        Self {
            waiting: VecDeque::new(),
            random,
        }
    }

    /// Sends something on its way; when it may arrive, if what is before it has.
    fn push(&mut self, item: T, faults: &Faults) -> Instant {
        let due = Instant::now() + faults.frame_delay(&mut self.random);
        self.waiting.push_back((due, item));
        due
    }

    fn arrived(&mut self) -> Option<T> {
        let (due, _) = self.waiting.front()?;
        if *due > Instant::now() {
            return None;
        }
        self.waiting.pop_front().map(|(_, item)| item)
    }
}

#[derive(Debug)]
enum ToServer {
    Frame(Vec<u8>),
    Write {
        number: u64,
        source: Region,
        offset: usize,
        len: usize,
        to: RemoteRef,
    },
}

#[derive(Debug)]
struct State {
    over: Option<String>,
    to_client: Pipe<Vec<u8>>,
    to_server: Pipe<ToServer>,
    /// What arrived at the client and was not polled.
    at_client: VecDeque<ControlEvent>,
    /// Frames sent to the client that it has not polled.
    unread_by_client: usize,
    /// Frames sent to the server that it has not polled.
    unread_by_server: usize,
    /// WRITEs whose end the client has not polled.
    writes: usize,
    staging: Option<(RemoteRef, Arc<Memory>)>,
}

/// A control connection, as both its ends share it.
#[derive(Debug)]
pub(super) struct ControlLink {
    id: ConnectionId,
    client: ControlOptions,
    server: ControlOptions,
    inbox: Arc<Inbox>,
    faults: Arc<Faults>,
    clock: Clock,
    bell: Bell,
    state: Mutex<State>,
}

impl ControlLink {
    pub(super) fn new(
        id: ConnectionId,
        stream: u64,
        (client, server): (ControlOptions, ControlOptions),
        inbox: Arc<Inbox>,
        faults: Arc<Faults>,
        clock: Clock,
    ) -> Result<Self, FabricError> {
        let random = |direction| Random::new(faults.seed, 2 * stream + direction);
        let state = State {
            over: None,
            to_client: Pipe::new(random(0)),
            to_server: Pipe::new(random(1)),
            at_client: VecDeque::new(),
            unread_by_client: 0,
            unread_by_server: 0,
            writes: 0,
            staging: None,
        };
        Ok(Self {
            id,
            client,
            server,
            inbox,
            faults,
            clock,
            bell: Bell::new()?,
            state: Mutex::new(state),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state of a connection that stands.
    fn open(&self) -> Result<MutexGuard<'_, State>, FabricError> {
        let state = self.state();
        match &state.over {
            None => Ok(state),
            Some(reason) => Err(FabricError::Closed(reason.clone())),
        }
    }

    fn end(&self, state: &mut State, reason: &str) {
        if state.over.is_none() {
            state.over = Some(reason.to_owned());
            state.to_client.waiting.clear();
            state.to_server.waiting.clear();
            self.inbox.push(EndpointEvent::Closed(self.id, reason.to_owned()));
            self.bell.ring();
        }
    }

    /// The client left.
    fn leave(&self) {
        self.end(&mut self.state(), "the peer left");
    }

    /// The server ended it, and wants to hear no more of it.
    pub(super) fn destroy(&self, reason: &str) {
        self.end(&mut self.state(), reason);
        self.inbox.forget(self.id);
    }

    /// Makes what is due arrive, now and then again when more is.
    fn deliver(self: &Arc<Self>, state: &mut State, due: Instant) {
        self.arrive(state);
        if due > Instant::now() {
            let link = Arc::clone(self);
            self.clock.plan(due, move || link.arrive(&mut link.state()));
        }
    }

    fn arrive(&self, state: &mut State) {
        while let Some(frame) = state.to_client.arrived() {
            if frame.len() > self.client.frame_bytes {
                return self.end(state, "a frame longer than the client's receives");
            }
            state.at_client.push_back(ControlEvent::Frame(frame));
            self.bell.ring();
        }
        while let Some(item) = state.to_server.arrived() {
            match item {
                ToServer::Frame(frame) if frame.len() > self.server.frame_bytes => {
                    return self.end(state, "a frame longer than the server's receives");
                }
                ToServer::Frame(frame) => self.inbox.push(EndpointEvent::Frame(self.id, frame)),
                ToServer::Write {
                    number,
                    source,
                    offset,
                    len,
                    to,
                } => {
                    let target = state.staging.as_ref().and_then(|(staging, memory)| {
                        let same = staging.rkey == to.rkey;
                        let at = same.then(|| offset_in(memory, staging.address, to.address, len));
                        Some((at.flatten()?, memory))
                    });
                    let Some((at, memory)) = target else {
                        return self.end(state, "a WRITE outside the connection's staging memory");
                    };
                    memory.copy_between(at, source.memory(), offset, len);
                    state.at_client.push_back(ControlEvent::Written(number));
                    self.bell.ring();
                }
            }
        }
    }

    /// Breaks the connection if the seed says so.
    fn maybe_disconnect(&self, state: &mut State, by_client: bool) -> Result<(), FabricError> {
        let random = if by_client {
            &mut state.to_server.random
        } else {
            &mut state.to_client.random
        };
        if self.faults.disconnects(random) {
            self.end(state, "a simulated disconnect");
            return Err(FabricError::Closed("a simulated disconnect".to_owned()));
        }
        Ok(())
    }

    pub(super) fn server_send(self: &Arc<Self>, frame: &[u8]) -> Result<(), FabricError> {
        let mut state = self.open()?;
        self.maybe_disconnect(&mut state, false)?;
        if state.unread_by_client >= usize::from(self.client.receives) + QUEUE_MAX {
            let reason = "the peer does not take what is sent to it";
            self.end(&mut state, reason);
            return Err(FabricError::Closed(reason.to_owned()));
        }
        state.unread_by_client += 1;
        let due = state.to_client.push(frame.to_vec(), &self.faults);
        self.deliver(&mut state, due);
        Ok(())
    }

    /// The server has polled a frame.
    pub(super) fn polled_by_server(&self) {
        let mut state = self.state();
        state.unread_by_server = state.unread_by_server.saturating_sub(1);
    }

    pub(super) fn grant(&self, remote: RemoteRef, memory: &Arc<Memory>) -> Result<(), FabricError> {
        let mut state = self.open()?;
        if state.staging.is_some() {
            return Err(FabricError::Unsupported("more staging memory for one connection"));
        }
        state.staging = Some((remote, Arc::clone(memory)));
        Ok(())
    }
}

/// A client's control connection over `sim`.
#[derive(Debug)]
pub(super) struct Control(pub(super) Arc<ControlLink>);

impl crate::ControlConnection for Control {
    fn fd(&self) -> BorrowedFd<'_> {
        self.0.bell.as_fd()
    }

    fn send(&mut self, frame: &[u8]) -> Result<(), FabricError> {
        let link = &self.0;
        let mut state = link.open()?;
        link.maybe_disconnect(&mut state, true)?;
        if state.unread_by_server >= usize::from(link.server.receives) + QUEUE_MAX {
            return Err(FabricError::Busy("the server takes no frames now"));
        }
        state.unread_by_server += 1;
        let ahead = state.to_server.waiting.iter().map(|(_, item)| match item {
            ToServer::Write { len, .. } => *len,
            ToServer::Frame(_) => 0,
        });
        link.faults.write_ahead(ahead.sum());
        let due = state
            .to_server
            .push(ToServer::Frame(frame.to_vec()), &link.faults);
        link.deliver(&mut state, due);
        Ok(())
    }

    fn write(
        &mut self,
        number: u64,
        source: &Region,
        offset: usize,
        len: usize,
        to: RemoteRef,
    ) -> Result<(), FabricError> {
        let link = &self.0;
        let mut state = link.open()?;
        if offset
            .checked_add(len)
            .is_none_or(|end| end > source.memory().len())
        {
            return Err(FabricError::Post {
                posted: 0,
                source: io::Error::new(io::ErrorKind::InvalidInput, "the source is not inside its region"),
            });
        }
        if state.writes >= WRITES_MAX {
            return Err(FabricError::Busy("WRITEs not polled"));
        }
        state.writes += 1;
        let item = ToServer::Write {
            number,
            source: source.clone(),
            offset,
            len,
            to,
        };
        let due = state.to_server.push(item, &link.faults);
        link.deliver(&mut state, due);
        Ok(())
    }

    fn poll(&mut self, events: &mut Vec<ControlEvent>) -> Result<(), FabricError> {
        let link = &self.0;
        link.bell.clear();
        let mut state = link.state();
        let arrived = std::mem::take(&mut state.at_client);
        for event in &arrived {
            match event {
                ControlEvent::Frame(_) => state.unread_by_client -= 1,
                ControlEvent::Written(_) => state.writes -= 1,
            }
        }
        let nothing = arrived.is_empty();
        events.extend(arrived);
        match &state.over {
            None => Ok(()),
            Some(reason) => {
                // An end stays readable.
                link.bell.ring();
                if nothing {
                    Err(FabricError::Closed(reason.clone()))
                } else {
                    Ok(())
                }
            }
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.0.leave();
    }
}
