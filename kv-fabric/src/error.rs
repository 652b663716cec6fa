//! What can go wrong on a fabric, said so that a person can act on it.

use std::io;

use crate::DataConnection;

/// Step of making a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Finding a device.
    Device,
    /// Finding the address.
    Resolve,
    /// Finding a route to it.
    Route,
    /// Binding and listening.
    Listen,
    /// Connecting.
    Connect,
    /// Moving data.
    Transfer,
}

impl std::fmt::Display for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Device => "open the device",
            Self::Resolve => "resolve the address",
            Self::Route => "resolve a route",
            Self::Listen => "listen",
            Self::Connect => "connect",
            Self::Transfer => "transfer",
        })
    }
}

/// An operation of a fabric that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FabricError {
    /// There is no device, library or socket to work with.
    #[error("{what} ({remedy})")]
    Unavailable {
        /// What is missing.
        what: String,
        /// What to do.
        remedy: String,
    },
    /// A step of connecting or listening failed.
    #[error("cannot {stage} for {address}: {source}")]
    Connect {
        /// The step.
        stage: Stage,
        /// The address.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// The peer refused the connection.
    #[error("{address} refused the connection: {reason}")]
    Rejected {
        /// The address.
        address: String,
        /// In the peer's words.
        reason: String,
    },
    /// The deadline passed.
    #[error("timed out: {stage} for {address}")]
    Timeout {
        /// The step.
        stage: Stage,
        /// The address.
        address: String,
    },
    /// Memory could not be mapped or registered.
    #[error("cannot {action} {len_bytes} bytes: {source} ({remedy})")]
    Memory {
        /// What was tried.
        action: &'static str,
        /// Length.
        len_bytes: usize,
        /// Why.
        source: io::Error,
        /// What to do.
        remedy: String,
    },
    /// The connection is over.
    #[error("connection closed: {0}")]
    Closed(String),
    /// A queue is full: wait for completions.
    #[error("queue full: {0}")]
    Busy(&'static str),
    /// The device took only some of a batch.
    #[error("posted {posted} of a batch: {source}")]
    Post {
        /// How many it took.
        posted: usize,
        /// Why it refused the next.
        source: io::Error,
    },
    /// This fabric does not do that.
    #[error("{0} is not supported here")]
    Unsupported(&'static str),
    /// Any other call that failed.
    #[error("{call}: {source}")]
    Call {
        /// The call.
        call: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// The device refused to destroy a connection: it lives on, and what was posted may still reach memory.
#[derive(thiserror::Error)]
#[error("{error}")]
pub struct NotDestroyed {
    /// What lives on, to be destroyed later.
    pub live: Box<dyn DataConnection>,
    /// Why.
    #[source]
    pub error: FabricError,
}

impl std::fmt::Debug for NotDestroyed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NotDestroyed")
            .field("error", &self.error)
            .finish_non_exhaustive()
    }
}

impl FabricError {
    /// A call that failed.
    pub fn call(call: &'static str, source: impl Into<io::Error>) -> Self {
        Self::Call {
            call,
            source: source.into(),
        }
    }
}
