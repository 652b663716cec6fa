//! The server's end: a listener and its connections behind one epoll descriptor.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::SocketFlags;

use super::domain::{Domain, Shared, Watcher, new_rkey};
use super::message::{self, BODY_MAX_BYTES, Message, UNMAP_MAX};
use super::path::Listener;
use super::peer;
use super::socket::{Arrival, BUFFER_BYTES, NotSent, Outbox, receive};
use crate::{
    ConnectionId, ControlOptions, EndpointEvent, FabricError, Memory, MemoryKind, REASON_MAX_BYTES,
    RemoteRef, RequestId, check,
};

/// Messages that wait for one peer to read, beyond what its socket holds, before it loses its connection.
const QUEUE_MAX: usize = 64;
/// Peers that have connected and not yet said what they want; the oldest goes when another comes.
const GREETINGS_MAX: usize = 128;
/// Messages taken from one connection before the next has its turn.
const TURN_MAX: usize = 32;
/// Connections looked at in one poll.
const READY_MAX: usize = 64;
/// Peers accepted in one poll.
const ACCEPT_MAX: usize = 32;

const LISTENER: u64 = 0;
const WATCHER: u64 = 1;
const FIRST_CONNECTION: u64 = 2;

enum Role {
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

struct Connection {
    /// `None` once the connection is over.
    socket: Option<OwnedFd>,
    role: Role,
    outbox: Outbox,
    interest: EventFlags,
}

/// The server's end of `local`.
pub struct Endpoint {
    epoll: OwnedFd,
    listener: Listener,
    address: String,
    watcher: Arc<Watcher>,
    connections: HashMap<u64, Connection>,
    greetings: VecDeque<u64>,
    next: u64,
    ready: VecDeque<EndpointEvent>,
    buffer: Vec<u8>,
    /// Given up for a moment where the process has no descriptor left, so that a peer can be turned away: a
    /// listener that cannot accept is readable for ever.
    spare: Option<File>,
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Endpoint({}, {} connections)",
            self.address,
            self.connections.len()
        )
    }
}

fn gone() -> FabricError {
    FabricError::Closed("the peer has left".to_owned())
}

impl Endpoint {
    pub(super) fn new(address: &str) -> Result<Self, FabricError> {
        let call = |error| FabricError::call("epoll", error);
        let listener = Listener::new(address)?;
        let watcher = Arc::new(Watcher::new()?);
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(call)?;
        epoll::add(&epoll, &listener, EventData::new_u64(LISTENER), EventFlags::IN).map_err(call)?;
        epoll::add(&epoll, &watcher.bell, EventData::new_u64(WATCHER), EventFlags::IN).map_err(call)?;
        Ok(Self {
            epoll,
            listener,
            address: address.to_owned(),
            watcher,
            connections: HashMap::new(),
            greetings: VecDeque::new(),
            next: FIRST_CONNECTION,
            ready: VecDeque::new(),
            buffer: vec![0; BUFFER_BYTES],
            spare: File::open("/dev/null").ok(),
        })
    }

    /// Keeps an event for the next poll.
    fn tell(&mut self, event: EndpointEvent) {
        self.ready.push_back(event);
        self.watcher.bell.ring();
    }

    /// Ends a connection and says so; one that is not accepted yet just goes.
    fn over(&mut self, id: u64, reason: String) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        match connection.role {
            Role::Greeting | Role::Requested => drop(self.connections.remove(&id)),
            Role::Control { .. } | Role::Data { .. } => {
                if connection.socket.take().is_some() {
                    self.tell(EndpointEvent::Closed(ConnectionId(id), reason));
                }
            }
        }
    }

    fn accept_all(&mut self) -> Result<(), FabricError> {
        for _ in 0..ACCEPT_MAX {
            match rustix::net::accept_with(&self.listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok(socket) => self.greet(socket)?,
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(Errno::MFILE | Errno::NFILE) => self.turn_away(),
                Err(error) => return Err(FabricError::call("accept4", error)),
            }
        }
        Ok(())
    }

    fn turn_away(&mut self) {
        tracing::warn!("no descriptor left for a connection: raise the limit of open files");
        self.spare = None;
        drop(rustix::net::accept_with(&self.listener, SocketFlags::CLOEXEC));
        self.spare = File::open("/dev/null").ok();
    }

    fn greet(&mut self, socket: OwnedFd) -> Result<(), FabricError> {
        let id = self.next;
        self.next += 1;
        epoll::add(&self.epoll, &socket, EventData::new_u64(id), EventFlags::IN)
            .map_err(|error| FabricError::call("epoll_ctl", error))?;
        let connection = Connection {
            socket: Some(socket),
            role: Role::Greeting,
            outbox: Outbox::default(),
            interest: EventFlags::IN,
        };
        self.connections.insert(id, connection);
        self.greetings.push_back(id);
        if self.greetings.len() > GREETINGS_MAX
            && let Some(oldest) = self.greetings.pop_front()
        {
            self.over(oldest, "it said nothing".to_owned());
        }
        Ok(())
    }

    /// Has epoll watch for what the connection waits for now.
    fn watch(&mut self, id: u64) {
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
    fn say(&mut self, id: u64, message: Message<'_>, pass: Option<OwnedFd>) -> Result<(), FabricError> {
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
    fn flush(&mut self, id: u64) {
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
    fn forget_gone(&mut self) {
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
    fn serve(&mut self, id: u64) {
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
    fn serve_one(&mut self, id: u64, buffer: &mut [u8]) -> bool {
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
                let peer = peer::describe(socket.as_fd());
                let request = RequestId(id);
                self.greetings.retain(|&greeting| greeting != id);
                self.watch(id);
                let private = private.to_vec();
                self.ready.push_back(EndpointEvent::Request {
                    request,
                    private,
                    peer,
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

    fn answer_map(&mut self, id: u64, rkey: u32, shared: io::Result<Option<(OwnedFd, u64)>>) -> bool {
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

    /// Turns a request into a connection of this role.
    fn accept(
        &mut self,
        request: RequestId,
        message: Message<'_>,
        role: Role,
    ) -> Result<ConnectionId, FabricError> {
        let id = request.0;
        match self.connections.get_mut(&id) {
            Some(connection) if matches!(connection.role, Role::Requested) => connection.role = role,
            _ => return Err(gone()),
        }
        self.watch(id);
        if let Err(error) = self.say(id, message, None) {
            self.connections.remove(&id);
            return Err(error);
        }
        self.tell(EndpointEvent::Established(ConnectionId(id)));
        Ok(ConnectionId(id))
    }
}

impl crate::Endpoint for Endpoint {
    type Domain = Domain;
    type Staging = Staging;

    fn fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    fn address(&self) -> String {
        self.address.clone()
    }

    fn poll(&mut self, events: &mut Vec<EndpointEvent>) -> Result<(), FabricError> {
        self.watcher.bell.clear();
        let mut found = [epoll::Event {
            flags: EventFlags::empty(),
            data: EventData::new_u64(0),
        }; READY_MAX];
        let now = rustix::event::Timespec::default();
        let count = match epoll::wait(&self.epoll, &mut found[..], Some(&now)) {
            Ok(count) => count,
            Err(Errno::INTR) => 0,
            Err(error) => return Err(FabricError::call("epoll_wait", error)),
        };
        self.forget_gone();
        for event in &found[..count] {
            match event.data.u64() {
                LISTENER => self.accept_all()?,
                WATCHER => {}
                id => {
                    let flags = event.flags;
                    if flags.contains(EventFlags::OUT) {
                        self.flush(id);
                    }
                    if flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) {
                        self.serve(id);
                    }
                }
            }
        }
        events.extend(self.ready.drain(..));
        Ok(())
    }

    fn accept_control(
        &mut self,
        request: RequestId,
        options: ControlOptions,
    ) -> Result<ConnectionId, FabricError> {
        if options.frame_bytes > BODY_MAX_BYTES {
            crate::Endpoint::reject(self, request, "the server is misconfigured");
            return Err(FabricError::Unsupported("a frame of more than 64 KiB"));
        }
        let role = Role::Control {
            frame_bytes: options.frame_bytes,
            staged: false,
        };
        self.accept(request, Message::AcceptControl, role)
    }

    fn accept_data(&mut self, request: RequestId, domain: &Domain) -> Result<ConnectionId, FabricError> {
        domain.0.watch(&self.watcher);
        let role = Role::Data {
            domain: Arc::clone(&domain.0),
            told: HashSet::new(),
            gone: Vec::new(),
        };
        self.accept(request, Message::AcceptData, role)
    }

    fn reject(&mut self, request: RequestId, reason: &str) {
        let reason = check::cut(reason, REASON_MAX_BYTES);
        if let Some(connection) = self.connections.get(&request.0)
            && matches!(connection.role, Role::Requested)
        {
            let reason = reason.as_bytes();
            let _ = self.say(request.0, Message::Reject { reason }, None);
            self.connections.remove(&request.0);
        }
    }

    fn grant_staging(
        &mut self,
        connection: ConnectionId,
        len: usize,
    ) -> Result<(RemoteRef, Staging), FabricError> {
        let id = connection.0;
        match self
            .connections
            .get_mut(&id)
            .map(|connection| &mut connection.role)
        {
            Some(Role::Control { staged: true, .. }) => {
                return Err(FabricError::Unsupported("more staging memory for one connection"));
            }
            Some(Role::Control { staged, .. }) => *staged = true,
            Some(_) => return Err(FabricError::Unsupported("staging memory for a data connection")),
            None => return Err(gone()),
        }
        let fail = |source: io::Error| FabricError::Memory {
            action: "share",
            len_bytes: len,
            source,
            remedy: "raise the limit of open files".to_owned(),
        };
        let memory = Arc::new(Memory::new(len, MemoryKind::SharedWritable)?);
        let fd = memory
            .fd()
            .ok_or_else(|| io::ErrorKind::InvalidInput.into())
            .and_then(|fd| fd.try_clone_to_owned())
            .map_err(fail)?;
        let rkey = new_rkey().map_err(fail)?;
        let len = memory.len() as u64;
        self.say(id, message::Message::Staging { rkey, len }, Some(fd))?;
        Ok((RemoteRef { address: 0, rkey }, Staging(memory)))
    }

    fn send(&mut self, connection: ConnectionId, frame: &[u8]) -> Result<(), FabricError> {
        match self.connections.get(&connection.0).map(|found| &found.role) {
            Some(Role::Control { .. }) if frame.len() <= BODY_MAX_BYTES => {}
            Some(Role::Control { .. }) => {
                return Err(FabricError::Unsupported("a frame of more than 64 KiB"));
            }
            Some(_) => return Err(FabricError::Unsupported("a frame on a data connection")),
            None => return Err(gone()),
        }
        self.say(connection.0, Message::Frame(frame), None)
    }

    fn destroy(&mut self, connection: ConnectionId) {
        let id = connection.0;
        if let Some(Connection {
            socket: Some(socket),
            outbox,
            ..
        }) = self.connections.get_mut(&id)
        {
            let _ = outbox.flush(socket);
        }
        self.connections.remove(&id);
        self.ready.retain(|event| match event {
            EndpointEvent::Established(of) | EndpointEvent::Frame(of, _) | EndpointEvent::Closed(of, _) => {
                *of != connection
            }
            EndpointEvent::Request { .. } => true,
        });
    }
}

/// Staging memory of one control connection.
#[derive(Debug, Clone)]
pub struct Staging(Arc<Memory>);

impl crate::Staging for Staging {
    fn read(&self, offset: usize, out: &mut [u8]) {
        self.0.read(offset, out);
    }
}
