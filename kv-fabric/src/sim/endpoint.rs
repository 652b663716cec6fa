//! The server's end of a simulated network.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use super::Net;
use super::control::ControlLink;
use super::data::DataLink;
use super::domain::Domain;
use super::fault::Random;
use super::inbox::{Answer, Inbox, Request, Wanted};
use crate::{
    ConnectionId, ControlOptions, EndpointEvent, FabricError, Memory, MemoryKind, REASON_MAX_BYTES,
    RemoteRef, RequestId, check,
};

/// Number of the stream that refused destructions are drawn from; no connection has it.
const DESTROY_STREAM: u64 = u64::MAX / 2;

#[derive(Debug)]
enum Link {
    Control(Arc<ControlLink>),
    Data(Arc<DataLink>),
}

impl Link {
    fn destroy(&self, reason: &str) {
        match self {
            Self::Control(link) => link.destroy(reason),
            Self::Data(link) => link.destroy(reason),
        }
    }
}

/// The server's end of `sim`.
#[derive(Debug)]
pub(super) struct Endpoint {
    net: Arc<Net>,
    address: String,
    inbox: Arc<Inbox>,
    links: HashMap<u64, Link>,
    random: Random,
}

fn gone() -> FabricError {
    FabricError::Closed("the peer has left".to_owned())
}

impl Endpoint {
    pub(super) fn new(net: Arc<Net>, address: String, inbox: Arc<Inbox>) -> Self {
        let random = Random::new(net.faults.seed, DESTROY_STREAM);
        Self {
            net,
            address,
            inbox,
            links: HashMap::new(),
            random,
        }
    }

    /// Answers a request with a connection.
    fn accept(
        &mut self,
        id: ConnectionId,
        request: &Request,
        answer: Answer,
        link: Link,
    ) -> Result<ConnectionId, FabricError> {
        // Told first: what the client does next is told after it.
        self.inbox.push(EndpointEvent::Established(id));
        if !request.answer(answer) {
            self.inbox.forget(id);
            return Err(gone());
        }
        self.links.insert(id.0, link);
        Ok(id)
    }

    fn control(&self, connection: ConnectionId) -> Result<&Arc<ControlLink>, FabricError> {
        match self.links.get(&connection.0) {
            Some(Link::Control(link)) => Ok(link),
            Some(Link::Data(_)) => Err(FabricError::Unsupported(
                "frames and staging on a data connection",
            )),
            None => Err(gone()),
        }
    }
}

impl crate::Endpoint for Endpoint {
    fn fd(&self) -> BorrowedFd<'_> {
        self.inbox.bell.as_fd()
    }

    fn address(&self) -> String {
        self.address.clone()
    }

    fn poll(&mut self, events: &mut Vec<EndpointEvent>) -> Result<(), FabricError> {
        let new = self.inbox.take();
        for event in &new {
            if let EndpointEvent::Frame(id, _) = event
                && let Some(Link::Control(link)) = self.links.get(&id.0)
            {
                link.polled_by_server();
            }
        }
        events.extend(new);
        Ok(())
    }

    fn accept_control(
        &mut self,
        request: RequestId,
        options: ControlOptions,
    ) -> Result<ConnectionId, FabricError> {
        let id = ConnectionId(request.0);
        let request = self.inbox.take_request(request).ok_or_else(gone)?;
        let Wanted::Control(client) = request.wanted else {
            request.answer(Answer::Rejected("not a control connection".to_owned()));
            return Err(FabricError::Unsupported("a control connection of a data request"));
        };
        let link = Arc::new(ControlLink::new(
            id,
            request.stream,
            (client, options),
            Arc::clone(&self.inbox),
            Arc::clone(&self.net.faults),
            self.net.clock.0.clone(),
        )?);
        let answer = Answer::Control(Arc::clone(&link));
        self.accept(id, &request, answer, Link::Control(link))
    }

    fn accept_data(
        &mut self,
        request: RequestId,
        domain: &dyn crate::Domain,
    ) -> Result<ConnectionId, FabricError> {
        let domain: &Domain = crate::own(domain);
        let id = ConnectionId(request.0);
        let request = self.inbox.take_request(request).ok_or_else(gone)?;
        let Wanted::Data { reads_max } = request.wanted else {
            request.answer(Answer::Rejected("not a data connection".to_owned()));
            return Err(FabricError::Unsupported("a data connection of a control request"));
        };
        let link = Arc::new(DataLink::new(
            id,
            request.stream,
            reads_max,
            Arc::clone(&domain.shared),
            Arc::clone(&self.inbox),
            Arc::clone(&self.net.faults),
            self.net.clock.0.clone(),
        )?);
        let answer = Answer::Data(Arc::clone(&link));
        self.accept(id, &request, answer, Link::Data(link))
    }

    fn reject(&mut self, request: RequestId, reason: &str) {
        if let Some(request) = self.inbox.take_request(request) {
            let reason = check::cut(reason, REASON_MAX_BYTES).to_owned();
            request.answer(Answer::Rejected(reason));
        }
    }

    fn grant_staging(
        &mut self,
        connection: ConnectionId,
        len: usize,
    ) -> Result<(RemoteRef, Arc<dyn crate::Staging>), FabricError> {
        let link = self.control(connection)?;
        let memory = Arc::new(Memory::new(len, MemoryKind::Private)?);
        let remote = self.net.names.new_ref(len)?;
        link.grant(remote, &memory)?;
        Ok((remote, memory))
    }

    fn send(&mut self, connection: ConnectionId, frame: &[u8]) -> Result<(), FabricError> {
        self.control(connection)?.server_send(frame)
    }

    fn destroy(&mut self, connection: ConnectionId) -> Result<(), FabricError> {
        let Some(link) = self.links.get(&connection.0) else {
            return Ok(());
        };
        if self.net.faults.refuses_destroy(&mut self.random) {
            let source = io::Error::other("a simulated device that refuses");
            return Err(FabricError::call("destroy a connection", source));
        }
        link.destroy("the server ended the connection");
        self.links.remove(&connection.0);
        Ok(())
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.net.unlisten(&self.address);
        self.inbox.close();
        for link in self.links.values() {
            link.destroy("the server left");
        }
    }
}
