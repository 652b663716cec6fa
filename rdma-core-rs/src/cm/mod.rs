//! Connections by address: rdma_cm, with queue pairs that this crate makes and moves itself.
//!
//! A connection takes these steps. Every one returns at once; what comes next is told by an event of the channel.
//!
//! | connecting side | listening side |
//! | --- | --- |
//! | [`Connector::start`], then [`Connector::on_event`] until [`Progress::Resolved`] | [`Listener::bind`] |
//! | make a queue pair on [`Connector::context`], [`Connector::attach`] it, post receives | |
//! | [`Connector::connect`] | event with a [`ConnectRequest`]: its private data, its [`context`](ConnectRequest::context) |
//! | | make a queue pair, [`ConnectRequest::attach`] it, post receives, [`PendingAccept::accept`] |
//! | [`Connector::on_event`] until [`Progress::Established`], [`Connector::finish`] | event ESTABLISHED: it may send |
//!
//! [`resolve`] and [`Connector::connect_blocking`] do the left side with a deadline. A queue pair gives its peer exactly
//! the rights named in `attach`: librdmacm's own path would add REMOTE_WRITE.
//!
//! Events are copied and acknowledged when they are taken from the channel, so destroying an id never waits for one.

mod addr;
mod channel;
mod connection;
mod connector;
mod event;
mod id;
mod listener;

pub use channel::EventChannel;
pub use connection::{
    ConnectParam, Connection, PRIVATE_DATA_ACCEPT_MAX, PRIVATE_DATA_CONNECT_MAX, PRIVATE_DATA_REJECT_MAX,
};
pub use connector::{Connector, Progress, resolve};
pub use event::{CmEvent, CmEventKind, RejectReason, RemoteParam};
pub use id::{CmId, CmKey};
pub use listener::{ConnectRequest, Listener, NotAccepted, PendingAccept};
