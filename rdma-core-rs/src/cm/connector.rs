//! The connecting side.
//!
//! # Safety
//! Calls librdmacm on an id that is live and locked, with parameters on the stack.
#![allow(unsafe_code)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdma_sys as sys;

use crate::access::Access;
use crate::cm::channel::EventChannel;
use crate::cm::connection::{ConnectParam, Connection, PRIVATE_DATA_CONNECT_MAX, to_init, to_rts};
use crate::cm::event::{CmEvent, CmEventKind, RejectReason, RemoteParam};
use crate::cm::id::{CmId, CmKey};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::qp::QueuePair;

/// How far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Nothing to do but to wait for the next event.
    Waiting,
    /// The device is known: attach a queue pair, post receives, connect.
    Resolved,
    /// It stands: [`Connector::finish`].
    Established,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Address,
    Route,
    Resolved,
    Connecting,
    Established,
}

impl Stage {
    fn words(self) -> &'static str {
        match self {
            Stage::Address => "resolving its address",
            Stage::Route => "resolving the route",
            Stage::Resolved => "preparing",
            Stage::Connecting => "waiting for its answer",
            Stage::Established => "connected",
        }
    }
}

/// A connection being made; see the [module](crate::cm). Dropping it gives up.
#[derive(Debug)]
pub struct Connector {
    // Dropped before the id.
    qp: Option<QueuePair>,
    id: CmId,
    peer: SocketAddr,
    stage: Stage,
    step_timeout: Duration,
    param: Option<ConnectParam>,
    remote: RemoteParam,
    reply: Vec<u8>,
}

impl Connector {
    /// Starts resolving `peer`, from the local address `source` if one is named. Each of the two resolving steps may take
    /// `step_timeout`.
    ///
    /// # Errors
    /// [`Error::Verb`] if no RDMA device leads there.
    pub fn start(
        channel: &Arc<EventChannel>,
        peer: SocketAddr,
        source: Option<SocketAddr>,
        step_timeout: Duration,
    ) -> Result<Connector> {
        let id = CmId::new(channel)?;
        id.resolve_addr(source, peer, step_timeout)?;
        Ok(Connector {
            qp: None,
            id,
            peer,
            stage: Stage::Address,
            step_timeout,
            param: None,
            remote: RemoteParam::default(),
            reply: Vec::new(),
        })
    }

    /// What events call it.
    pub fn key(&self) -> CmKey {
        self.id.key()
    }

    /// The id, for its addresses and channel.
    pub fn id(&self) -> &CmId {
        &self.id
    }

    /// The device to make the queue pair on, once [`Progress::Resolved`].
    ///
    /// # Errors
    /// As [`CmId::context`].
    pub fn context(&self) -> Result<Arc<Context>> {
        self.id.context()
    }

    /// The queue pair, once attached: receives are posted here before connecting.
    pub fn qp(&self) -> Option<&QueuePair> {
        self.qp.as_ref()
    }

    /// Takes an event of the channel and does what follows from it; events of other ids are ignored.
    ///
    /// # Errors
    /// [`Error::Rejected`] or [`Error::ConnectFailed`] if it ends the attempt.
    pub fn on_event(&mut self, event: &CmEvent) -> Result<Progress> {
        if event.id() != self.key() {
            return Ok(Progress::Waiting);
        }
        match (self.stage, event.kind()) {
            (Stage::Address, CmEventKind::ADDR_RESOLVED) => {
                self.id.resolve_route(self.step_timeout)?;
                self.stage = Stage::Route;
                Ok(Progress::Waiting)
            }
            (Stage::Route, CmEventKind::ROUTE_RESOLVED) => {
                self.stage = Stage::Resolved;
                Ok(Progress::Resolved)
            }
            (Stage::Connecting, CmEventKind::CONNECT_RESPONSE) => {
                self.establish(event)?;
                Ok(Progress::Established)
            }
            (_, CmEventKind::REJECTED) => Err(Error::Rejected {
                peer: self.peer,
                reason: RejectReason(event.status()),
                private_data: event.private_data().to_vec(),
            }),
            (_, kind) if kind.ends_connection() => Err(Error::ConnectFailed {
                peer: self.peer,
                stage: self.stage.words(),
                event: kind,
                detail: event.detail(),
            }),
            _ => Ok(Progress::Waiting),
        }
    }

    /// The peer answered: the queue pair goes to RTS, and the peer is told that the connection stands.
    fn establish(&mut self, event: &CmEvent) -> Result<()> {
        let (Some(qp), Some(param)) = (&self.qp, &self.param) else {
            return Err(Error::invalid("an answer came before a connection was asked for"));
        };
        let param = param.limited_by(&event.remote());
        to_rts(&self.id, qp, &param)?;
        self.id.call(
            "rdma_establish",
            || self.peer.to_string(),
            |id| {
                // SAFETY: the id is live and locked, and has no queue pair of librdmacm's.
                unsafe { sys::rdma_establish(id) }
            },
        )?;
        self.param = Some(param);
        self.remote = event.remote();
        self.reply = event.private_data().to_vec();
        self.stage = Stage::Established;
        Ok(())
    }

    /// Gives the connection its queue pair, which goes to INIT and lets the peer do what `access` says and nothing else.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if it is not resolved, has one already, or the queue pair is of another device;
    /// [`Error::ModifyQp`] if refused.
    pub fn attach(&mut self, qp: QueuePair, access: Access) -> Result<&QueuePair> {
        if self.stage != Stage::Resolved || self.qp.is_some() {
            return Err(Error::invalid(
                "a queue pair is attached once, after the address is resolved",
            ));
        }
        to_init(&self.id, &qp, access)?;
        Ok(self.qp.insert(qp))
    }

    /// Asks the peer for the connection.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] without a queue pair, for private data over [`PRIVATE_DATA_CONNECT_MAX`] bytes, or
    /// retries that never end; [`Error::Verb`] if refused.
    pub fn connect(&mut self, param: &ConnectParam) -> Result<()> {
        param.check(PRIVATE_DATA_CONNECT_MAX)?;
        let Some(qp) = self.qp.as_ref().filter(|_| self.stage == Stage::Resolved) else {
            return Err(Error::invalid(
                "a connection is asked for once, after a queue pair is attached",
            ));
        };
        let mut raw = param.raw(qp.qp_num());
        self.id.call(
            "rdma_connect",
            || self.peer.to_string(),
            |id| {
                // SAFETY: the id is live and locked; `raw` and the private data it points to live during the call.
                unsafe { sys::rdma_connect(id, &mut raw) }
            },
        )?;
        self.param = Some(param.clone());
        self.stage = Stage::Connecting;
        Ok(())
    }

    /// The connection and what the peer sent along, once [`Progress::Established`].
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] before that; the attempt is given up.
    pub fn finish(self) -> Result<(Connection, Vec<u8>)> {
        match (self.qp, self.param) {
            (Some(qp), Some(param)) if self.stage == Stage::Established => Ok((
                Connection::new(qp, self.id, self.remote, param.initiator_depth),
                self.reply,
            )),
            _ => Err(Error::invalid("the connection is not established yet")),
        }
    }

    /// Asks for the connection and waits until it stands. For a channel that serves this connection alone, as
    /// [`resolve`] makes: events of others would be lost.
    ///
    /// # Errors
    /// As [`Connector::connect`] and [`Connector::on_event`], and [`Error::Timeout`].
    pub fn connect_blocking(
        mut self,
        param: &ConnectParam,
        deadline: Instant,
    ) -> Result<(Connection, Vec<u8>)> {
        self.connect(param)?;
        self.wait_for(Progress::Established, deadline)?;
        self.finish()
    }

    fn wait_for(&mut self, wanted: Progress, deadline: Instant) -> Result<()> {
        let channel = self.id.channel().clone();
        while let Some(event) = channel.wait_event(deadline)? {
            if self.on_event(&event)? == wanted {
                return Ok(());
            }
        }
        Err(Error::Timeout {
            peer: self.peer,
            stage: self.stage.words(),
        })
    }
}

/// Resolves `peer` on a channel of its own and waits until a queue pair can be attached.
///
/// # Errors
/// As [`Connector::start`] and [`Connector::on_event`], and [`Error::Timeout`].
pub fn resolve(peer: SocketAddr, source: Option<SocketAddr>, deadline: Instant) -> Result<Connector> {
    let channel = EventChannel::new()?;
    let step_timeout = deadline.saturating_duration_since(Instant::now());
    let mut connector = Connector::start(&channel, peer, source, step_timeout)?;
    connector.wait_for(Progress::Resolved, deadline)?;
    Ok(connector)
}
