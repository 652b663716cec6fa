//! Every limit of the control side, by name.

use kv_proto::control::{FRAME_MAX_BYTES, RECEIVES_DEFAULT};
use kv_proto::layout::DATASETS_PER_SESSION_MAX;

/// The values of a kind that one session has arriving take one part in so many of the memory for such, unless there is
/// but one.
pub(super) const SESSION_GATHER_FRACTION: u64 = 2;

/// Control connections for which memory is set aside at the start: data that fills the memory budget does not keep out
/// who would delete some.
pub(super) const CONNECTIONS_RESERVED: usize = 16;

/// Limits and times of sessions. [`Options::default`] is what the binary uses unless told otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Lease of a session, ms.
    pub lease_ms: u32,
    /// Longest lag of an acknowledgement, life of a token, and silence of a PUT that was begun, ms.
    pub max_lag_ms: u32,
    /// Receives posted for each session, and so requests that it may have outstanding.
    pub receives: u16,
    /// Sessions that were authenticated.
    pub sessions_max: usize,
    /// Control connections that were not authenticated yet.
    pub unauthenticated_max: usize,
    /// Of these, those of one origin: a host, or a user on the same host.
    pub unauthenticated_per_origin_max: usize,
    /// Time that a control connection has to authenticate, ms.
    pub handshake_timeout_ms: u64,
    /// Ended control connections that are kept so that their last frame arrives.
    pub lingering_max: usize,
    /// How long each is kept, ms.
    pub linger_ms: u64,
    /// Datasets that one session may have open; at most [`DATASETS_PER_SESSION_MAX`].
    pub datasets_per_session_max: usize,
    /// Data connections of one session, tokens for more included.
    pub data_connections_per_session_max: u16,
    /// Data connections of all sessions.
    pub data_connections_max: usize,
    /// PUTs that one session may have begun and not committed.
    pub puts_per_session_max: usize,
    /// Staging memory of each session that may write, bytes.
    pub staging_bytes: u32,
    /// Longest window of a PUT, bytes.
    pub window_max_bytes: u32,
    /// Shortest window that a longer value is given when staging memory is scarce, bytes; less where there is less in all.
    pub window_min_bytes: u32,
    /// How long a session that was refused memory for a value keeps its turn without asking again, ms.
    pub turn_kept_ms: u64,
    /// How long the last answers have to leave at shutdown, ms.
    pub goodbye_ms: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            lease_ms: 10_000,
            max_lag_ms: 30_000,
            receives: RECEIVES_DEFAULT,
            sessions_max: 1024,
            unauthenticated_max: 256,
            unauthenticated_per_origin_max: 128,
            handshake_timeout_ms: 5_000,
            lingering_max: 64,
            linger_ms: 1_000,
            datasets_per_session_max: DATASETS_PER_SESSION_MAX,
            data_connections_per_session_max: 64,
            data_connections_max: 16_384,
            puts_per_session_max: 256,
            staging_bytes: 8 << 20,
            window_max_bytes: 1 << 20,
            window_min_bytes: 64 << 10,
            turn_kept_ms: 1_000,
            goodbye_ms: 200,
        }
    }
}

impl Options {
    /// Sizes of a session's control connection.
    #[must_use]
    pub fn connection(&self) -> kv_fabric::ControlOptions {
        kv_fabric::ControlOptions {
            receives: self.receives,
            frame_bytes: FRAME_MAX_BYTES,
        }
    }
}
