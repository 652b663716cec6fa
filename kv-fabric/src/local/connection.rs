//! One connection of an endpoint: what it waits for, what it is sent, what it says.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;

use super::domain::Shared;
use super::endpoint::{Endpoint, gone};
use super::message::{Message, UNMAP_MAX};
use super::peer;
use super::socket::{Arrival, NotSent, Outbox, receive};
use crate::{ConnectionId, EndpointEvent, FabricError, RequestId};

/// Messages taken from one connection before the next has its turn.
const TURN_MAX: usize = 32;
/// Messages that wait for one peer to read, beyond what its socket holds, before it loses its connection.
const QUEUE_MAX: usize = 64;
pub(super) enum Role {
    /// Has connected.
    Greeting,
    /// Has said what it wants; nothing more is read until it is answered.
    Requested,
    Control {
        frame_bytes: usize,
        staged: bool,
    },
    Data {
        domain: Arc<Shared>,
        /// What it was given.
        told: HashSet<u32>,
        /// What it was given, is gone, and has not been told of. Never longer than `told` was.
        gone: Vec<u32>,
    },
}

pub(super) struct Connection {
    /// `None` once the connection is over.
    pub(super) socket: Option<OwnedFd>,
    pub(super) role: Role,
    pub(super) outbox: Outbox,
    pub(super) interest: EventFlags,
}

impl Endpoint {
    /// Has epoll watch for what the connection waits for now.
    pub(super) fn watch(&mut self, id: u64) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        let Some(socket) = &connection.socket else {
            return;
        };
        let mut interest = match connection.role {
            Role::Requested => EventFlags::empty(),
            Role::Greeting | Role::Control { .. } | Role::Data { .. } => EventFlags::IN,
        };
        let unsaid = matches!(&connection.role, Role::Data { gone, .. } if !gone.is_empty());
        if !connection.outbox.is_empty() || unsaid {
            interest |= EventFlags::OUT;
        }
        if interest != connection.interest {
            connection.interest = interest;
            if let Err(error) = epoll::modify(&self.epoll, socket, EventData::new_u64(id), interest) {
                self.over(id, format!("epoll_ctl: {}", io::Error::from(error)));
            }
        }
    }

    /// Sends a message to a connection or queues it; ends the connection if neither can be.
    pub(super) fn say(
        &mut self,
        id: u64,
        message: Message<'_>,
        pass: Option<OwnedFd>,
    ) -> Result<(), FabricError> {
        let connection = self.connections.get_mut(&id).ok_or_else(gone)?;
        let socket = connection.socket.as_ref().ok_or_else(gone)?;
        let was_empty = connection.outbox.is_empty();
        match connection.outbox.send(socket, message, pass, QUEUE_MAX) {
            Ok(()) => {
                if was_empty != connection.outbox.is_empty() {
                    self.watch(id);
                }
                Ok(())
            }
            // What the peer sent before it left is still to be read: its end comes after that.
            Err(NotSent::Failed(Errno::PIPE | Errno::CONNRESET)) => Err(gone()),
            Err(error) => {
                self.over(id, error.to_string());
                Err(FabricError::Closed(error.to_string()))
            }
        }
    }

    /// Sends what waits for a connection, as far as its socket takes it.
    pub(super) fn flush(&mut self, id: u64) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        let Some(socket) = &connection.socket else {
            return;
        };
        let mut sent = connection.outbox.flush(socket);
        if let Role::Data { gone, .. } = &mut connection.role {
            while sent.is_ok() && connection.outbox.is_empty() && !gone.is_empty() {
                let part = gone.split_off(gone.len().saturating_sub(UNMAP_MAX));
                let rkeys: Vec<u8> = part.iter().flat_map(|rkey| rkey.to_le_bytes()).collect();
                let message = Message::Unmap { rkeys: &rkeys };
                sent = connection.outbox.send(socket, message, None, QUEUE_MAX);
            }
        }
        match sent {
            Ok(()) => self.watch(id),
            // Its end comes after what it sent.
            Err(NotSent::Failed(Errno::PIPE | Errno::CONNRESET)) => {
                connection.outbox = Outbox::default();
                if let Role::Data { gone, .. } = &mut connection.role {
                    gone.clear();
                }
                self.watch(id);
            }
            Err(error) => self.over(id, error.to_string()),
        }
    }

    /// Tells data connections of registrations that ended.
    pub(super) fn forget_gone(&mut self) {
        let ended = self.watcher.take();
        if ended.is_empty() {
            return;
        }
        let mut affected = Vec::new();
        for (&id, connection) in &mut self.connections {
            if let Role::Data { domain, told, gone } = &mut connection.role {
                let before = gone.len();
                let here = ended
                    .iter()
                    .filter(|(domain_id, rkey)| *domain_id == domain.id && told.remove(rkey));
                gone.extend(here.map(|(_, rkey)| rkey));
                if gone.len() > before {
                    affected.push(id);
                }
            }
        }
        for id in affected {
            self.flush(id);
        }
    }

    /// Takes messages of one connection.
    pub(super) fn serve(&mut self, id: u64) {
        for _ in 0..TURN_MAX {
            let mut buffer = std::mem::take(&mut self.buffer);
            let go_on = self.serve_one(id, &mut buffer);
            self.buffer = buffer;
            if !go_on {
                return;
            }
        }
    }

    /// Takes one message; whether there may be another.
    pub(super) fn serve_one(&mut self, id: u64, buffer: &mut [u8]) -> bool {
        let Some(Connection {
            socket: Some(socket),
            role,
            ..
        }) = self.connections.get_mut(&id)
        else {
            return false;
        };
        if matches!(role, Role::Requested) {
            // Nothing is read in this state, so it can only be over.
            self.over(id, String::new());
            return false;
        }
        let len = match receive(socket, buffer) {
            Arrival::Message(received) => received.len,
            Arrival::Nothing => return false,
            Arrival::End(reason) => {
                self.over(id, reason);
                return false;
            }
        };
        let message = Message::decode(&buffer[..len]);
        match (role, message) {
            (role @ Role::Greeting, Some(Message::Connect { private })) => {
                *role = Role::Requested;
                let (peer, origin) = peer::describe(socket.as_fd());
                let request = RequestId(id);
                self.greetings.retain(|&greeting| greeting != id);
                self.watch(id);
                let private = private.to_vec();
                self.ready.push_back(EndpointEvent::Request {
                    request,
                    private,
                    peer,
                    origin,
                });
                false
            }
            (Role::Control { frame_bytes, .. }, Some(Message::Frame(frame))) => {
                if frame.len() > *frame_bytes {
                    let reason = format!("a frame of {} bytes where {frame_bytes} may come", frame.len());
                    self.over(id, reason);
                    return false;
                }
                let frame = EndpointEvent::Frame(ConnectionId(id), frame.to_vec());
                self.ready.push_back(frame);
                true
            }
            (Role::Data { domain, told, .. }, Some(Message::Map { rkey })) => {
                // A peer that asks twice could fill this process with descriptors on their way to it.
                if !told.insert(rkey) {
                    self.over(id, "it asked twice for the same memory".to_owned());
                    return false;
                }
                let shared = domain.share(rkey);
                self.answer_map(id, rkey, shared)
            }
            _ => {
                self.over(id, "it sent what this connection does not take".to_owned());
                false
            }
        }
    }

    pub(super) fn answer_map(
        &mut self,
        id: u64,
        rkey: u32,
        shared: io::Result<Option<(OwnedFd, u64)>>,
    ) -> bool {
        match shared {
            Ok(Some((fd, len))) => self.say(id, Message::Mapped { rkey, len }, Some(fd)).is_ok(),
            Ok(None) => {
                let _ = self.say(id, Message::Unknown { rkey }, None);
                self.over(id, format!("it may not read memory {rkey:#x}"));
                false
            }
            Err(error) => {
                self.over(id, format!("memory could not be handed out: {error}"));
                false
            }
        }
    }
}
