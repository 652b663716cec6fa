//! What can go wrong for a caller, small enough to come back once a key.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kv_fabric::{FabricError, ReadStatus};
use kv_proto::control::Status;

/// Why a value was not read: one for each key of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The dataset holds no such key.
    #[error("there is no such key")]
    NotFound,
    /// What was read never had agreeing checksums.
    #[error(
        "read {attempts} times and torn every time: run `kv verify`, the server may hold a damaged record"
    )]
    Torn {
        /// How often it was read.
        attempts: u32,
    },
    /// The locator names nothing any more: the record was replaced or removed, or the dataset is another one.
    #[error("the locator names nothing any more: look the key up again")]
    Stale,
    /// The caller's buffer is too small.
    #[error("the buffer is too small: the value has {needed_bytes} bytes")]
    TooLarge {
        /// Length of the value, bytes.
        needed_bytes: u64,
    },
    /// Too many values are submitted and not taken.
    #[error("too many values are submitted: take some that are done first")]
    Busy,
    /// The deadline passed.
    #[error("the deadline passed before the value was read: is the server running?")]
    Timeout,
    /// The network kept failing, until the deadline or too often without getting on.
    #[error("the network kept failing: {0:?}")]
    Fabric(ReadStatus),
    /// The memory to read into is registered with another session.
    #[error("the buffer is of another session: allocate or register it with a client of this one")]
    OtherSession,
    /// Places of a call that are not one behind the other in the memory that they are in.
    #[error("the places to read to do not ascend, or are not as many as the keys")]
    BadPlaces,
    /// The client, or the dataset, is closed or dropped.
    #[error("the dataset is closed or was dropped")]
    Closed,
    /// A key that cannot be: it has no bytes or too many.
    #[error("a key of {len_bytes} bytes: keys have 1 to 1024")]
    BadKey {
        /// Its length, bytes.
        len_bytes: usize,
    },
    /// The segment's image is lost or is not kept in memory.
    #[error("the server keeps no image of the record's segment")]
    NoImage,
    /// The server refused the session or the dataset.
    #[error("the server refused: {}", .0.text())]
    Refused(Status),
    /// A limit of connections is reached, and there is none to read by.
    #[error("there is no data connection to read by: {0}")]
    ConnectionLimit(ConnectionLimit),
    /// This machine or the server cannot do what the call needs.
    #[error("memory or a connection for reading could not be had: see the client's log")]
    NoResources,
}

/// A limit of data connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectionLimit {
    /// The session's own.
    #[error(
        "the session has as many as ClientOptions::session_connections says; drop clones and readers, or raise it"
    )]
    Session,
    /// The server's for each session.
    #[error(
        "the session has as many as the server gives one; drop clones and readers, or raise --data-connections there"
    )]
    ServerSession,
    /// The server's for all sessions.
    #[error(
        "the server has as many as it takes; close some of other clients, or raise --all-data-connections there"
    )]
    Server,
    /// Those that the device of this machine does not destroy are held, and no more are made beside them.
    #[error("the device of this machine does not destroy those that failed; see the kernel's log")]
    Undestroyed,
}

/// Why a call failed: what, which value, and what to do. Clones share their source: what keeps one value of many from
/// being stored keeps the others.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// A URI that names no server, or no dataset that can be.
    #[error("`{value}`: {why} (rdma://host[:port]/dataset or local:/path/to/socket?dataset=name)")]
    Target {
        /// The URI.
        value: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A key file that cannot be used.
    #[error("key file {path}: {why}")]
    KeyFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The network failed.
    #[error(transparent)]
    Fabric(Arc<FabricError>),
    /// The server refused.
    #[error("{what}: {}", refusal(text, *status))]
    Refused {
        /// What was asked.
        what: String,
        /// The server's words.
        text: String,
        /// The server's reason.
        status: Status,
    },
    /// The peer does not speak this protocol, or broke it.
    #[error("{peer} broke the protocol: {why} (is it a kv-server of this version?)")]
    Protocol {
        /// Who.
        peer: String,
        /// How.
        why: String,
    },
    /// The deadline passed.
    #[error("{what}: not done within {after:?}: {last}")]
    Timeout {
        /// What was asked.
        what: String,
        /// The deadline.
        after: Duration,
        /// What went wrong last.
        last: String,
    },
    /// The server was busy with other values until the deadline passed: nothing was stored, and it may be later.
    #[error("{what}: the server was busy for {after:?}: {last}")]
    Busy {
        /// What was asked.
        what: String,
        /// The deadline.
        after: Duration,
        /// The server's words.
        last: String,
    },
    /// A read failed.
    #[error("{what}: {source}")]
    Read {
        /// What was read.
        what: String,
        /// Why.
        source: ReadError,
    },
    /// A key that cannot be.
    #[error("the key {key} has {len_bytes} bytes: keys have 1 to 1024")]
    BadKey {
        /// The key, escaped and cut.
        key: String,
        /// Its length, bytes.
        len_bytes: usize,
    },
    /// A source of bytes failed.
    #[error("cannot read the value: {0}")]
    Source(#[source] Arc<io::Error>),
    /// A source gave another number of bytes than was announced.
    #[error("the value was announced with {announced_bytes} bytes but has {}: nothing was stored", if *.longer { "more".to_owned() } else { format!("only {given_bytes}") })]
    SourceLength {
        /// Bytes announced.
        announced_bytes: u64,
        /// Bytes given.
        given_bytes: u64,
        /// Whether more bytes were there.
        longer: bool,
    },
    /// The connection was lost, or the server gave the value up, while it was streamed: what the source gave cannot be
    /// asked for again.
    #[error("the connection was lost while the value was sent: nothing was stored; put it again")]
    StreamLost,
    /// Whether the operation was done is not known.
    #[error("{what}: whether it was done is not known; look, and do it again if not")]
    Unknown {
        /// What was asked.
        what: String,
    },
    /// The client is closed.
    #[error("the client is closed")]
    Closed,
    /// This machine lacks something.
    #[error("{call}: {source}")]
    System {
        /// The call.
        call: &'static str,
        /// Why.
        source: Arc<io::Error>,
    },
}

impl From<FabricError> for ClientError {
    fn from(error: FabricError) -> Self {
        Self::Fabric(Arc::new(error))
    }
}

/// A refusal for a person: the server's words, its reason where they do not say it, and what to do.
fn refusal(text: &str, status: Status) -> String {
    let (says_it, remedy) = match status {
        Status::NoDataset => (
            true,
            " (`kv dataset ls` lists those that the key may open; `kv dataset create` makes one)",
        ),
        Status::Forbidden => (
            true,
            " (use a key whose role and datasets allow it; whoever runs the server has its key file)",
        ),
        Status::AuthFailed => (
            true,
            " (give the key file of this server; it reads its own anew on SIGHUP)",
        ),
        Status::Exists
        | Status::BadName
        | Status::BadKey
        | Status::TooLarge
        | Status::NoSpace
        | Status::NoMemory
        | Status::ShuttingDown
        | Status::NotFound => (true, ""),
        _ => (text.contains(status.text()), ""),
    };
    match says_it && !text.is_empty() {
        true => format!("{text}{remedy}"),
        false if text.is_empty() => format!("{}{remedy}", status.text()),
        false => format!("{text} ({}){remedy}", status.text()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_once_why_and_what_to_do() {
        let said = |text: &str, status| {
            let (what, text) = ("opening".to_owned(), text.to_owned());
            ClientError::Refused { what, text, status }.to_string()
        };
        let text = Status::Forbidden.text();
        let forbidden = said(text, Status::Forbidden);
        assert_eq!(forbidden.matches(text).count(), 1, "{forbidden}");
        assert!(forbidden.contains("use a key"), "{forbidden}");
        let unknown = said("there is no dataset \"x\"", Status::NoDataset);
        assert!(
            !unknown.contains("no such") && unknown.contains("kv dataset ls"),
            "{unknown}"
        );
        assert_eq!(
            said("the log's queue is full", Status::Limit),
            "opening: the log's queue is full (a limit of the server is reached)"
        );
        assert_eq!(said("", Status::Busy), "opening: the server is busy: ask again");
    }
}
