//! The server's listener and its connections.
//!
//! One event channel of the connection manager and one completion channel serve all of them, behind one descriptor.
//! Data connections never post anything, so their completion queue stays empty; they are told over by the connection
//! manager, or found out by their session's end.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdma_core_rs as rdma;
use rdma_core_rs::cm::{CmEventKind, CmKey};

use rustix::event::{Timespec, epoll};

use super::client::epoll_of;
use super::link::{Link, Parts, Sends};
use super::memory::{Held, VerbsDomain};
use super::{RELIABILITY, call, connect_error, memory_error};
use crate::{
    ConnectionId, ControlEvent, ControlOptions, Domain, Endpoint, EndpointEvent, FabricError, Memory,
    MemoryKind, RemoteRef, RequestId, Stage, Staging,
};

/// Connection requests that may wait in the kernel.
const BACKLOG: u32 = 256;
/// Connection requests that may wait for an answer here; more are refused.
const REQUESTS_MAX: usize = 1024;
/// Events of one kind taken in one call of `poll`.
const EVENTS_PER_POLL: usize = 256;
/// Calls of `poll` that look at frames alone, one after the other.
const HASTY_MAX: u32 = 8;
/// Longest that the last frames of connections may take to leave before these are destroyed: of all of them together,
/// from one call of `poll` to the next.
const FAREWELL: Duration = Duration::from_millis(2);

/// What [`epoll_of`] numbers the endpoint's descriptors.
const SOURCE_EVENTS: u64 = 0;
const SOURCE_COMPLETIONS: u64 = 1;
/// The third are asynchronous events of the device.
const SOURCES: usize = 3;

enum Purpose {
    Control {
        link: Box<Link>,
        pd: Arc<rdma::ProtectionDomain>,
        staged: bool,
    },
    /// It answers READs by itself.
    Data(rdma::cm::Connection),
}

impl Purpose {
    /// Destroys the queue pair and all that belongs to it; what the device refuses to destroy comes back.
    fn destroy(self) -> Result<(), Box<(Self, rdma::Error)>> {
        let refused = match self {
            Self::Control { link, pd, staged } => link
                .destroy()
                .map_err(|(link, error)| (Self::Control { link, pd, staged }, error)),
            Self::Data(connection) => connection
                .destroy()
                .map_err(|refused| (Self::Data(refused.live), refused.error)),
        };
        refused.map_err(Box::new)
    }
}

struct Conn {
    purpose: Purpose,
    key: CmKey,
    cq_key: Option<u64>,
    established: bool,
    over: bool,
}

/// A server's listener and its connections.
pub(super) struct VerbsEndpoint {
    listener: rdma::cm::Listener,
    events: Arc<rdma::cm::EventChannel>,
    completions: Arc<rdma::CompletionChannel>,
    data_cq: Arc<rdma::CompletionQueue>,
    context: Arc<rdma::Context>,
    fd: OwnedFd,
    requests: HashMap<RequestId, rdma::cm::ConnectRequest>,
    connections: BTreeMap<ConnectionId, Conn>,
    by_key: HashMap<CmKey, ConnectionId>,
    by_cq: BTreeMap<u64, ConnectionId>,
    /// Connections that were over when they were accepted, and are not told as such yet.
    stillborn: Vec<(ConnectionId, String)>,
    /// Connections that may have frames although no event announced them.
    fresh: VecDeque<ConnectionId>,
    /// Frames of one connection, on their way to who asked.
    frames: Vec<ControlEvent>,
    /// Until when last frames are waited for, once some were since `poll`.
    farewell_ends: Option<Instant>,
    /// Calls of `poll` since all sources were looked at.
    hasty: u32,
    next: u64,
}

impl VerbsEndpoint {
    pub(super) fn listen(
        context: &Arc<rdma::Context>,
        at: SocketAddr,
        address: &str,
    ) -> Result<Self, FabricError> {
        let failed = |error| connect_error(error, Stage::Listen, address);
        let events = rdma::cm::EventChannel::new().map_err(failed)?;
        let listener = rdma::cm::Listener::bind(&events, at, BACKLOG).map_err(failed)?;
        let completions = rdma::CompletionChannel::new(context)
            .map_err(|error| call("make a completion channel", error))?;
        let data_cq = rdma::CompletionQueue::new(context, 1, None)
            .map_err(|error| call("make a completion queue", error))?;
        let fd = epoll_of(&[events.as_fd(), completions.as_fd(), context.async_fd()])?;
        Ok(Self {
            listener,
            events,
            completions,
            data_cq,
            context: context.clone(),
            fd,
            requests: HashMap::new(),
            connections: BTreeMap::new(),
            by_key: HashMap::new(),
            by_cq: BTreeMap::new(),
            stillborn: Vec::new(),
            fresh: VecDeque::new(),
            frames: Vec::new(),
            farewell_ends: None,
            hasty: 0,
            next: 1,
        })
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }

    fn device_gone(&self, how: &str) -> FabricError {
        FabricError::Unavailable {
            what: format!("device {} {how}", self.context.name()),
            remedy: "see the kernel's log; start again when the device is back".to_owned(),
        }
    }

    fn take_async_events(&self) -> Result<(), FabricError> {
        for _ in 0..EVENTS_PER_POLL {
            let Some(event) = self
                .context
                .poll_async_event()
                .map_err(|error| call("take an asynchronous event", error))?
            else {
                return Ok(());
            };
            if event.kind == rdma::AsyncEventKind::DEVICE_FATAL {
                return Err(self.device_gone("failed"));
            }
            tracing::debug!(event = ?event, "asynchronous event");
        }
        Ok(())
    }

    fn take_cm_events(&mut self, out: &mut Vec<EndpointEvent>) -> Result<(), FabricError> {
        for _ in 0..EVENTS_PER_POLL {
            let Some(event) = self
                .events
                .poll_event()
                .map_err(|error| call("take a connection event", error))?
            else {
                return Ok(());
            };
            if event.kind() == CmEventKind::CONNECT_REQUEST {
                if let Some(request) = event.into_request() {
                    self.on_request(request, out);
                }
                continue;
            }
            if event.kind() == CmEventKind::DEVICE_REMOVAL && event.id() == self.listener.key() {
                return Err(self.device_gone("was removed"));
            }
            let Some(&id) = self.by_key.get(&event.id()) else {
                continue;
            };
            let Some(conn) = self.connections.get_mut(&id) else {
                continue;
            };
            if event.kind() == CmEventKind::ESTABLISHED {
                establish(id, conn, out);
            } else if event.kind().ends_connection() && !conn.over {
                conn.over = true;
                // Frames that came before the end are delivered before it.
                if let Purpose::Control { link, .. } = &mut conn.purpose {
                    let _ = link.poll(&mut self.frames);
                    deliver(id, &mut self.frames, out);
                    link.close(&event.kind().to_string());
                }
                out.push(EndpointEvent::Closed(id, event.kind().to_string()));
            }
        }
        Ok(())
    }

    fn on_request(&mut self, request: rdma::cm::ConnectRequest, out: &mut Vec<EndpointEvent>) {
        if self.requests.len() >= REQUESTS_MAX {
            let _ = request.reject(b"too many connection requests at once: try again later");
            return;
        }
        let id = RequestId(self.number());
        let address = request.peer_addr();
        let peer = address.map_or_else(|| "an unknown address".to_owned(), |peer| peer.to_string());
        let origin = address.map_or_else(String::new, |peer| peer.ip().to_string());
        out.push(EndpointEvent::Request {
            request: id,
            private: request.private_data().to_vec(),
            peer,
            origin,
        });
        self.requests.insert(id, request);
    }

    /// Takes at most one event for each connection; more of them make the descriptor readable again. Whether there was one.
    fn take_completion_events(&mut self) -> Result<bool, FabricError> {
        let mut any = false;
        for _ in 0..self.by_cq.len().clamp(1, EVENTS_PER_POLL) {
            let Some(key) = self
                .completions
                .poll_event()
                .map_err(|error| call("take a completion event", error))?
            else {
                break;
            };
            any = true;
            if let Some(&id) = self.by_cq.get(&key) {
                self.fresh.push_back(id);
            }
        }
        Ok(any)
    }

    /// Looks which sources have something, and takes it.
    fn take_all(&mut self, events: &mut Vec<EndpointEvent>) -> Result<(), FabricError> {
        let mut ready = [epoll::Event {
            flags: epoll::EventFlags::empty(),
            data: epoll::EventData::new_u64(0),
        }; SOURCES];
        let count = match epoll::wait(&self.fd, &mut ready, Some(&Timespec::default())) {
            Ok(count) => count,
            Err(rustix::io::Errno::INTR) => 0,
            Err(error) => return Err(FabricError::call("epoll", error)),
        };
        for event in &ready[..count] {
            match event.data.u64() {
                SOURCE_EVENTS => self.take_cm_events(events)?,
                SOURCE_COMPLETIONS => _ = self.take_completion_events()?,
                _ => self.take_async_events()?,
            }
        }
        Ok(())
    }

    fn take_frames(&mut self, out: &mut Vec<EndpointEvent>) {
        while let Some(id) = self.fresh.pop_front() {
            self.poll_link(id, out);
        }
    }

    /// Takes all frames of a connection and leaves its queue armed.
    fn poll_link(&mut self, id: ConnectionId, out: &mut Vec<EndpointEvent>) {
        let Some(conn) = self.connections.get_mut(&id) else {
            return;
        };
        let Purpose::Control { link, .. } = &mut conn.purpose else {
            return;
        };
        let polled = link.poll(&mut self.frames);
        let closed = link.end().map(str::to_owned);
        if !self.frames.is_empty() {
            // A frame says that the connection stands, should its event come later.
            establish(id, conn, out);
        }
        deliver(id, &mut self.frames, out);
        let failed = polled.err().map(|error| error.to_string());
        if let Some(why) = closed.or(failed)
            && !conn.over
        {
            conn.over = true;
            out.push(EndpointEvent::Closed(id, why));
        }
    }

    fn param(&self) -> Result<rdma::cm::ConnectParam, FabricError> {
        let attr = self
            .context
            .query_device()
            .map_err(|error| call("query the device", error))?;
        let mut param = rdma::cm::ConnectParam::for_device(&attr);
        param.reliability = RELIABILITY;
        // A server asks no READs.
        param.initiator_depth = 0;
        Ok(param)
    }

    fn take_request(&mut self, request: RequestId) -> Result<rdma::cm::ConnectRequest, FabricError> {
        let gone = || FabricError::Closed("the connection request is no longer there".to_owned());
        let request = self.requests.remove(&request).ok_or_else(gone)?;
        let device = request.context().map_err(|error| call("find the device", error));
        let (request, device) = made_for(request, device)?;
        if device.is_same(&self.context) {
            return Ok(request);
        }
        let _ = request.reject(b"this server serves another device");
        Err(FabricError::Closed(format!(
            "a request came in on {}, not on {}",
            device.name(),
            self.context.name()
        )))
    }

    fn insert(
        &mut self,
        key: CmKey,
        cq_key: Option<u64>,
        purpose: Purpose,
        why_over: Option<String>,
    ) -> ConnectionId {
        let id = ConnectionId(self.number());
        self.by_key.insert(key, id);
        if let Some(cq_key) = cq_key {
            self.by_cq.insert(cq_key, id);
            self.fresh.push_back(id);
        }
        self.connections.insert(
            id,
            Conn {
                purpose,
                key,
                cq_key,
                established: false,
                over: why_over.is_some(),
            },
        );
        self.stillborn.extend(why_over.map(|why| (id, why)));
        id
    }
}

fn reject(request: rdma::cm::ConnectRequest, reason: &str) {
    let reason = crate::check::cut(reason, rdma::cm::PRIVATE_DATA_REJECT_MAX);
    if let Err(error) = request.reject(reason.as_bytes()) {
        tracing::debug!(%error, "the peer of a rejected request is gone");
    }
}

/// A request with what was made for it; where that failed, its peer is told why.
fn made_for<T>(
    request: rdma::cm::ConnectRequest,
    made: Result<T, FabricError>,
) -> Result<(rdma::cm::ConnectRequest, T), FabricError> {
    match made {
        Ok(made) => Ok((request, made)),
        Err(error) => {
            reject(request, &format!("the server cannot take a connection: {error}"));
            Err(error)
        }
    }
}

/// A connection that was accepted, or what is left of one that could not be and that the device refuses to destroy: its
/// peer may have its rights all the same, so it counts as accepted, and is over for this reason.
fn accepted(
    pending: rdma::cm::PendingAccept,
    param: &rdma::cm::ConnectParam,
) -> Result<(rdma::cm::Connection, Option<String>), rdma::Error> {
    match pending.try_accept(param) {
        Ok(connection) => Ok((connection, None)),
        Err(failed) => {
            let rdma::cm::NotAccepted { error, live } = *failed;
            match live {
                Some(live) => Ok((live, Some(format!("it could not be accepted: {error}")))),
                None => Err(error),
            }
        }
    }
}

fn establish(id: ConnectionId, conn: &mut Conn, out: &mut Vec<EndpointEvent>) {
    if !conn.established {
        conn.established = true;
        out.push(EndpointEvent::Established(id));
    }
}

fn deliver(id: ConnectionId, events: &mut Vec<ControlEvent>, out: &mut Vec<EndpointEvent>) {
    out.extend(events.drain(..).filter_map(|event| match event {
        ControlEvent::Frame(frame) => Some(EndpointEvent::Frame(id, frame)),
        ControlEvent::Written(_) => None,
    }));
}

/// Staging memory of one control connection, registered `REMOTE_WRITE` in that connection's own domain.
#[derive(Debug)]
struct VerbsStaging(rdma::MemoryRegion<Held>);

impl Staging for VerbsStaging {
    fn read(&self, offset: usize, out: &mut [u8]) {
        self.0.memory().0.read(offset, out);
    }
}

impl Endpoint for VerbsEndpoint {
    fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn address(&self) -> String {
        self.listener
            .local_addr()
            .map_or_else(String::new, |address| address.to_string())
    }

    fn poll(&mut self, events: &mut Vec<EndpointEvent>) -> Result<(), FabricError> {
        self.farewell_ends = None;
        let stillborn = self.stillborn.drain(..);
        events.extend(stillborn.map(|(id, why)| EndpointEvent::Closed(id, why)));
        // A frame is what comes most, and each system call is dear: the other sources are asked when there is none, and
        // every few times, so that frames without end hide nothing.
        if self.hasty < HASTY_MAX && self.take_completion_events()? {
            self.hasty += 1;
        } else {
            self.hasty = 0;
            self.take_all(events)?;
        }
        self.take_frames(events);
        Ok(())
    }

    fn accept_control(
        &mut self,
        request: RequestId,
        options: ControlOptions,
    ) -> Result<ConnectionId, FabricError> {
        let failed = |error| call("accept a control connection", error);
        let request = self.take_request(request)?;
        let made = self.param().and_then(|param| {
            // A domain of its own: nothing but this connection's staging memory will ever be in it.
            let pd = rdma::ProtectionDomain::new(&self.context).map_err(failed)?;
            let (parts, qp) = Parts::new(&pd, &self.completions, options, Sends::Quiet)?;
            Ok((param, pd, parts, qp))
        });
        let (request, (param, pd, parts, qp)) = made_for(request, made)?;
        let pending = request.attach(qp, rdma::Access::REMOTE_WRITE).map_err(failed)?;
        parts.post_receives(pending.qp())?;
        let (connection, why_over) = accepted(pending, &param).map_err(failed)?;
        let (key, cq_key) = (connection.key(), parts.cq_key());
        let link = Box::new(parts.link(connection));
        let purpose = Purpose::Control {
            link,
            pd,
            staged: false,
        };
        Ok(self.insert(key, Some(cq_key), purpose, why_over))
    }

    fn accept_data(&mut self, request: RequestId, domain: &dyn Domain) -> Result<ConnectionId, FabricError> {
        let domain: &VerbsDomain = crate::own(domain);
        let failed = |error| call("accept a data connection", error);
        let request = self.take_request(request)?;
        let made = self.param().and_then(|param| {
            let qp = rdma::QueuePair::builder(&domain.0, &self.data_cq, &self.data_cq)
                .max_send_wr(1)
                .max_recv_wr(1)
                .build()
                .map_err(failed)?;
            Ok((param, qp))
        });
        let (request, (param, qp)) = made_for(request, made)?;
        let pending = request.attach(qp, rdma::Access::REMOTE_READ).map_err(failed)?;
        let (connection, why_over) = accepted(pending, &param).map_err(failed)?;
        let key = connection.key();
        Ok(self.insert(key, None, Purpose::Data(connection), why_over))
    }

    fn reject(&mut self, request: RequestId, reason: &str) {
        let Some(request) = self.requests.remove(&request) else {
            return;
        };
        reject(request, reason);
    }

    fn grant_staging(
        &mut self,
        connection: ConnectionId,
        len: usize,
    ) -> Result<(RemoteRef, Arc<dyn Staging>), FabricError> {
        let not_open =
            || FabricError::Closed("no such control connection, or it has staging memory".to_owned());
        let conn = self.connections.get_mut(&connection).ok_or_else(not_open)?;
        let Purpose::Control { pd, staged, .. } = &mut conn.purpose else {
            return Err(not_open());
        };
        if std::mem::replace(staged, true) {
            return Err(not_open());
        }
        let memory = Arc::new(Memory::new(len, MemoryKind::Private)?);
        let rights = rdma::Access::LOCAL_WRITE | rdma::Access::REMOTE_WRITE;
        let region = pd
            .register(Held(memory), rights)
            .map_err(|error| memory_error("register", len, error))?;
        let at = RemoteRef {
            address: region.addr(),
            rkey: region.rkey().0,
        };
        Ok((at, Arc::new(VerbsStaging(region))))
    }

    fn send(&mut self, connection: ConnectionId, frame: &[u8]) -> Result<(), FabricError> {
        let conn = self.connections.get_mut(&connection);
        let Some(Conn {
            purpose: Purpose::Control { link, .. },
            ..
        }) = conn
        else {
            return Err(FabricError::Closed("no such control connection".to_owned()));
        };
        match link.send(frame) {
            Err(FabricError::Busy(_)) => {
                let why = "its peer lets too many frames lie";
                link.close(why);
                Err(FabricError::Closed(why.to_owned()))
            }
            sent => sent,
        }
    }

    fn destroy(&mut self, connection: ConnectionId) -> Result<(), FabricError> {
        let Some(mut conn) = self.connections.remove(&connection) else {
            return Ok(());
        };
        self.by_key.remove(&conn.key);
        if let Some(cq_key) = conn.cq_key {
            self.by_cq.remove(&cq_key);
        }
        if let Purpose::Control { link, .. } = &mut conn.purpose
            && !conn.over
        {
            link.take_sent();
            let mut ignored = Vec::new();
            while link.sends_outstanding() > 0 {
                let ends = self
                    .farewell_ends
                    .get_or_insert_with(|| Instant::now() + FAREWELL);
                if Instant::now() >= *ends || link.poll(&mut ignored).is_err() {
                    break;
                }
                link.take_sent();
                std::thread::yield_now();
            }
        }
        // From here on none of its peer's operations has an effect, unless the device refuses.
        match conn.purpose.destroy() {
            Ok(()) => Ok(()),
            Err(refused) => {
                let (purpose, error) = *refused;
                conn.purpose = purpose;
                conn.over = true;
                self.connections.insert(connection, conn);
                Err(call("destroy a connection", error))
            }
        }
    }
}
