//! What the connection manager tells: plain values, copied out of an event that is already acknowledged.

use std::fmt;

use crate::cm::id::{CmId, CmKey};
use crate::cm::listener::ConnectRequest;

/// Kind of a connection event (`rdma_get_cm_event(3)`). Kinds added later print as a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CmEventKind(pub u32);

#[allow(missing_docs, reason = "the names are those of enum rdma_cm_event_type")]
impl CmEventKind {
    pub const ADDR_RESOLVED: CmEventKind = CmEventKind(0);
    pub const ADDR_ERROR: CmEventKind = CmEventKind(1);
    pub const ROUTE_RESOLVED: CmEventKind = CmEventKind(2);
    pub const ROUTE_ERROR: CmEventKind = CmEventKind(3);
    pub const CONNECT_REQUEST: CmEventKind = CmEventKind(4);
    pub const CONNECT_RESPONSE: CmEventKind = CmEventKind(5);
    pub const CONNECT_ERROR: CmEventKind = CmEventKind(6);
    pub const UNREACHABLE: CmEventKind = CmEventKind(7);
    pub const REJECTED: CmEventKind = CmEventKind(8);
    pub const ESTABLISHED: CmEventKind = CmEventKind(9);
    pub const DISCONNECTED: CmEventKind = CmEventKind(10);
    pub const DEVICE_REMOVAL: CmEventKind = CmEventKind(11);
    pub const MULTICAST_JOIN: CmEventKind = CmEventKind(12);
    pub const MULTICAST_ERROR: CmEventKind = CmEventKind(13);
    pub const ADDR_CHANGE: CmEventKind = CmEventKind(14);
    pub const TIMEWAIT_EXIT: CmEventKind = CmEventKind(15);

    /// True for the kinds that carry connection parameters and private data.
    pub(crate) fn has_connection_param(self) -> bool {
        matches!(
            self,
            CmEventKind::CONNECT_REQUEST
                | CmEventKind::CONNECT_RESPONSE
                | CmEventKind::REJECTED
                | CmEventKind::ESTABLISHED
                | CmEventKind::DISCONNECTED
        )
    }

    /// True for the kinds after which a connection that was being made, or stood, is no more.
    pub fn ends_connection(self) -> bool {
        matches!(
            self,
            CmEventKind::ADDR_ERROR
                | CmEventKind::ROUTE_ERROR
                | CmEventKind::CONNECT_ERROR
                | CmEventKind::UNREACHABLE
                | CmEventKind::REJECTED
                | CmEventKind::DISCONNECTED
                | CmEventKind::DEVICE_REMOVAL
                | CmEventKind::TIMEWAIT_EXIT
        )
    }
}

const NAMES: [&str; 16] = [
    "address resolved",
    "address cannot be resolved",
    "route resolved",
    "no route",
    "connection requested",
    "connection answered",
    "connection error",
    "peer unreachable",
    "rejected",
    "established",
    "disconnected",
    "device removed",
    "multicast joined",
    "multicast error",
    "address changed",
    "time wait over",
];

impl fmt::Display for CmEventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match NAMES.get(self.0 as usize) {
            Some(name) => f.write_str(name),
            None => write!(f, "event {}", self.0),
        }
    }
}

/// Why a connection was rejected, as the InfiniBand connection manager numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RejectReason(pub i32);

impl RejectReason {
    /// Nobody listens on that port.
    pub const INVALID_SERVICE_ID: RejectReason = RejectReason(8);
    /// The peer remembers an older connection of the same queue pair number: try again with a new queue pair.
    pub const STALE_CONNECTION: RejectReason = RejectReason(10);
    /// The program at the other end refused; its private data says why.
    pub const CONSUMER_DEFINED: RejectReason = RejectReason(28);
}

impl fmt::Display for RejectReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            RejectReason::INVALID_SERVICE_ID => f.write_str("nothing listens on that port"),
            RejectReason::STALE_CONNECTION => {
                f.write_str("the peer still holds an older connection; try again")
            }
            RejectReason::CONSUMER_DEFINED => f.write_str("the peer's program refused"),
            RejectReason(other) => write!(f, "reason {other}"),
        }
    }
}

/// What the peer said about itself while connecting.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RemoteParam {
    /// The peer's queue pair.
    pub qp_num: u32,
    /// READs that this side may be asked at a time: the peer's own initiator depth.
    pub responder_resources: u8,
    /// READs that this side may ask at a time: the peer's own responder resources.
    pub initiator_depth: u8,
}

/// One connection event.
#[derive(Debug)]
pub struct CmEvent {
    pub(crate) id: CmKey,
    pub(crate) kind: CmEventKind,
    pub(crate) status: i32,
    pub(crate) private_data: Vec<u8>,
    pub(crate) remote: RemoteParam,
    pub(crate) request: Option<CmId>,
}

impl CmEvent {
    /// Whom it is about; for a connection request, the listener.
    pub fn id(&self) -> CmKey {
        self.id
    }

    /// What happened.
    pub fn kind(&self) -> CmEventKind {
        self.kind
    }

    /// Zero, a negative errno, or for [`CmEventKind::REJECTED`] the reason.
    pub fn status(&self) -> i32 {
        self.status
    }

    /// What the peer sent along. Its length is the transport's, not the sender's: it is padded with zeros.
    pub fn private_data(&self) -> &[u8] {
        &self.private_data
    }

    /// What the peer said about itself, for the kinds that carry it; else zeros.
    pub fn remote(&self) -> RemoteParam {
        self.remote
    }

    /// The request that a CONNECT_REQUEST brought. Dropping it rejects the peer.
    pub fn into_request(self) -> Option<ConnectRequest> {
        let CmEvent {
            request,
            private_data,
            remote,
            ..
        } = self;
        request.map(|id| ConnectRequest::new(id, private_data, remote))
    }

    /// The status in words, for error messages; empty or starting with a colon.
    pub(crate) fn detail(&self) -> String {
        match self.status {
            0 => String::new(),
            status if status < 0 => {
                format!(": {}", std::io::Error::from_raw_os_error(status.saturating_neg()))
            }
            status => format!(": status {status}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_kinds_print() {
        assert_eq!(CmEventKind::TIMEWAIT_EXIT.to_string(), "time wait over");
        assert_eq!(CmEventKind(200).to_string(), "event 200");
        assert_eq!(RejectReason(99).to_string(), "reason 99");
        assert!(CmEventKind::REJECTED.ends_connection() && !CmEventKind::ESTABLISHED.ends_connection());
    }
}
