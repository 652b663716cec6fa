//! The listening side.
//!
//! # Safety
//! Calls librdmacm on an id that is live and locked, with parameters on the stack.
#![allow(unsafe_code)]

use std::net::SocketAddr;
use std::sync::Arc;

use rdma_sys as sys;

use crate::access::Access;
use crate::cm::channel::EventChannel;
use crate::cm::connection::{
    ConnectParam, Connection, PRIVATE_DATA_ACCEPT_MAX, PRIVATE_DATA_REJECT_MAX, check_private_data, to_init,
    to_rts,
};
use crate::cm::event::RemoteParam;
use crate::cm::id::{CmId, CmKey};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::qp::QueuePair;

/// A port that takes connections. Requests come as events of its channel.
#[derive(Debug)]
pub struct Listener {
    id: CmId,
}

impl Listener {
    /// Binds and listens; port 0 lets the kernel choose. At most `backlog` requests wait to be taken.
    ///
    /// # Errors
    /// [`Error::Verb`](crate::Error::Verb): EADDRINUSE if the port is taken, EADDRNOTAVAIL or ENODEV if no RDMA device has the address.
    pub fn bind(channel: &Arc<EventChannel>, address: SocketAddr, backlog: u32) -> Result<Listener> {
        let id = CmId::new(channel)?;
        id.bind(address)?;
        id.listen(backlog)?;
        Ok(Listener { id })
    }

    /// What events call it.
    pub fn key(&self) -> CmKey {
        self.id.key()
    }

    /// Where it listens, with the port that was chosen.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.id.local_addr()
    }

    /// The device behind its address, to register memory on before anyone connects.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) if it listens on all addresses: then a request's own [`ConnectRequest::context`] tells,
    /// or [`Context::shared`] by name.
    pub fn context(&self) -> Result<Arc<Context>> {
        self.id.context()
    }
}

/// Somebody wants to connect. Dropping it rejects them without a word.
///
/// The peer may give up at any moment; attaching, accepting or rejecting is refused then (EINVAL), which concerns this
/// request alone.
#[derive(Debug)]
pub struct ConnectRequest {
    id: CmId,
    private_data: Vec<u8>,
    remote: RemoteParam,
}

impl ConnectRequest {
    pub(crate) fn new(id: CmId, private_data: Vec<u8>, remote: RemoteParam) -> ConnectRequest {
        ConnectRequest {
            id,
            private_data,
            remote,
        }
    }

    /// What events will call the connection.
    pub fn key(&self) -> CmKey {
        self.id.key()
    }

    /// What the peer sent along, padded with zeros to [`PRIVATE_DATA_CONNECT_MAX`](crate::cm::PRIVATE_DATA_CONNECT_MAX).
    pub fn private_data(&self) -> &[u8] {
        &self.private_data
    }

    /// What the peer offers.
    pub fn remote(&self) -> RemoteParam {
        self.remote
    }

    /// Who asks.
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        self.id.peer_addr()
    }

    /// The id, to [`CmId::migrate`] it to another thread's channel.
    pub fn id_mut(&mut self) -> &mut CmId {
        &mut self.id
    }

    /// The device the request came in on: domain, memory and queue pair must be of it.
    ///
    /// # Errors
    /// As [`CmId::context`].
    pub fn context(&self) -> Result<Arc<Context>> {
        self.id.context()
    }

    /// Gives the connection its queue pair, which goes to INIT and lets the peer do what `access` says and nothing else.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) if the queue pair is of another device, [`Error::ModifyQp`](crate::Error::ModifyQp) if refused. The peer is
    /// rejected then.
    pub fn attach(self, qp: QueuePair, access: Access) -> Result<PendingAccept> {
        to_init(&self.id, &qp, access)?;
        Ok(PendingAccept {
            qp,
            id: self.id,
            remote: self.remote,
        })
    }

    /// Refuses, with a reason of the program's own.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) for more than [`PRIVATE_DATA_REJECT_MAX`] bytes (the peer is rejected without them),
    /// [`Error::Verb`](crate::Error::Verb) if the peer is already gone.
    pub fn reject(self, private_data: &[u8]) -> Result<()> {
        check_private_data(private_data, PRIVATE_DATA_REJECT_MAX)?;
        let len = u8::try_from(private_data.len()).unwrap_or(u8::MAX);
        self.id.call(
            "rdma_reject",
            || format!("id {}", self.id.key().0),
            |id| {
                // SAFETY: the id is live and locked; the private data lives during the call.
                unsafe { sys::rdma_reject(id, private_data.as_ptr().cast(), len) }
            },
        )
    }
}

/// An acceptance that failed.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct NotAccepted {
    /// Why.
    #[source]
    pub error: Error,
    /// What is left where the device refuses to destroy the queue pair: its peer may still have what its rights give, so it
    /// is to be destroyed later.
    pub live: Option<Connection>,
}

/// A request with its queue pair, ready to be answered. Dropping it rejects the peer.
#[derive(Debug)]
pub struct PendingAccept {
    // Dropped before the id.
    qp: QueuePair,
    id: CmId,
    remote: RemoteParam,
}

impl PendingAccept {
    /// The queue pair: receives are posted here before accepting.
    pub fn qp(&self) -> &QueuePair {
        &self.qp
    }

    /// Accepts. The queue pair takes messages from now on; it may send once ESTABLISHED or a message has come.
    ///
    /// Depths are brought down to what the peer offers.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) for private data over [`PRIVATE_DATA_ACCEPT_MAX`] bytes or retries that never end;
    /// [`Error::ModifyQp`](crate::Error::ModifyQp) or [`Error::Verb`](crate::Error::Verb) if refused. The peer is rejected then.
    pub fn accept(self, param: &ConnectParam) -> Result<Connection> {
        self.try_accept(param).map_err(|failed| failed.error)
    }

    /// As [`PendingAccept::accept`], for who must know that nothing is left of what failed.
    ///
    /// # Errors
    /// [`NotAccepted`]: why, and what the device refused to destroy.
    pub fn try_accept(self, param: &ConnectParam) -> std::result::Result<Connection, Box<NotAccepted>> {
        let answered = self.answer(param);
        let depth = answered.as_ref().map_or(0, |param| param.initiator_depth);
        let connection = Connection::new(self.qp, self.id, self.remote, depth);
        match answered {
            Ok(_) => Ok(connection),
            Err(error) => {
                let live = connection.destroy().err().map(|refused| refused.live);
                Err(Box::new(NotAccepted { error, live }))
            }
        }
    }

    /// The depths that were agreed on.
    fn answer(&self, param: &ConnectParam) -> Result<ConnectParam> {
        param.check(PRIVATE_DATA_ACCEPT_MAX)?;
        let param = param.limited_by(&self.remote);
        to_rts(&self.id, &self.qp, &param)?;
        let mut raw = param.raw(self.qp.qp_num());
        self.id.call(
            "rdma_accept",
            || format!("id {}", self.id.key().0),
            |id| {
                // SAFETY: the id is live and locked; `raw` and the private data it points to live during the call.
                unsafe { sys::rdma_accept(id, &mut raw) }
            },
        )?;
        Ok(param)
    }
}
