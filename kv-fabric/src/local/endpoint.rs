//! The server's end: a listener and its connections behind one epoll descriptor.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::SocketFlags;

use super::connection::{Connection, Role};
use super::domain::{Domain, Watcher, new_rkey};
use super::message::{BODY_MAX_BYTES, Message};
use super::path::Listener;
use super::socket::{BUFFER_BYTES, Outbox};
use crate::{
    ConnectionId, ControlOptions, EndpointEvent, FabricError, Memory, MemoryKind, REASON_MAX_BYTES,
    RemoteRef, RequestId, check,
};

/// Peers that have connected and not yet said what they want; the oldest goes when another comes.
const GREETINGS_MAX: usize = 128;
/// Connections looked at in one poll.
const READY_MAX: usize = 64;
/// Peers accepted in one poll.
const ACCEPT_MAX: usize = 32;

const LISTENER: u64 = 0;
const WATCHER: u64 = 1;
const FIRST_CONNECTION: u64 = 2;

/// The server's end of `local`.
pub(super) struct Endpoint {
    pub(super) epoll: OwnedFd,
    listener: Listener,
    address: String,
    pub(super) watcher: Arc<Watcher>,
    pub(super) connections: HashMap<u64, Connection>,
    pub(super) greetings: VecDeque<u64>,
    next: u64,
    pub(super) ready: VecDeque<EndpointEvent>,
    pub(super) buffer: Vec<u8>,
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

pub(super) fn gone() -> FabricError {
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
    pub(super) fn over(&mut self, id: u64, reason: String) {
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

    fn accept_data(
        &mut self,
        request: RequestId,
        domain: &dyn crate::Domain,
    ) -> Result<ConnectionId, FabricError> {
        let domain: &Domain = crate::own(domain);
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
    ) -> Result<(RemoteRef, Arc<dyn crate::Staging>), FabricError> {
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
        self.say(id, Message::Staging { rkey, len }, Some(fd))?;
        Ok((RemoteRef { address: 0, rkey }, memory))
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

    fn destroy(&mut self, connection: ConnectionId) -> Result<(), FabricError> {
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
        Ok(())
    }
}
