//! How a client is set up, and the limits that nobody sets.

use std::time::Duration;

use crate::AccessKey;

/// Settings of a session and its clients.
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// The key that opens the session.
    pub key: AccessKey,
    /// Id of the client, for retries across processes; random unless given. Two live sessions must not share one.
    pub client_id: Option<u64>,
    /// Number of the first PUT or DELETE, each further one having the next; microseconds since 1970 unless given. Who
    /// gives the client id and the number of an operation that was never answered begins that very operation again:
    /// the server does it once, however often it is asked, as long as it remembers it.
    pub first_operation: Option<u64>,
    /// Longest wait for a connection.
    pub connect_timeout: Duration,
    /// Longest time that a call goes without getting on, retries and reconnections included. One that reads into memory of the
    /// caller's, on a device that refuses to destroy a connection, waits until it does; a put that a busy server keeps waiting
    /// goes on for as long as others of its session succeed.
    pub deadline: Duration,
    /// Data connections of one [`crate::Client`] or [`crate::Reader`] at most; 0 chooses: as many as `depth` short READs
    /// under way need on this device, 8 at most. They are made when there is that much to read, and no more of
    /// them than the server takes.
    pub data_connections: u16,
    /// Data connections of all clients and readers of one session at most. Past it a first one is refused with
    /// [`crate::ReadError::ConnectionLimit`], and a further one is done without.
    pub session_connections: u16,
    /// READs that one data connection holds, and so the longest batch that is one doorbell.
    pub depth: u32,
    /// Whether the CRC of values is checked. Everything else is checked in any case.
    pub verify: bool,
    /// Memory of one data connection that values arrive in, bytes.
    pub read_buffer_bytes: usize,
    /// Memory of one reader that its [`crate::Value`]s lie in, bytes; mapped when the first is read. Values that are kept while
    /// it is full go to the heap.
    pub value_buffer_bytes: usize,
    /// Memory of one reader that remembers where values lie, bytes: a value that is read again costs one round trip.
    pub locator_cache_bytes: usize,
    /// How long a READ is waited for by polling before the thread sleeps.
    pub spin: Duration,
}

impl ClientOptions {
    /// What suits most: ten seconds a call, values checked.
    #[must_use]
    pub fn new(key: AccessKey) -> Self {
        Self {
            key,
            client_id: None,
            first_operation: None,
            connect_timeout: Duration::from_secs(5),
            deadline: Duration::from_secs(10),
            data_connections: 0,
            session_connections: 256,
            depth: 64,
            verify: true,
            read_buffer_bytes: 4 << 20,
            value_buffer_bytes: 32 << 20,
            locator_cache_bytes: 4 << 20,
            spin: Duration::from_micros(300),
        }
    }
}
