//! What a device reports on its own account: ports going up and down, queues breaking.

use std::fmt;

/// Kind of an asynchronous event (`ibv_get_async_event(3)`). Kinds added later print as a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AsyncEventKind(pub u32);

#[allow(missing_docs, reason = "the names are those of enum ibv_event_type")]
impl AsyncEventKind {
    pub const CQ_ERR: AsyncEventKind = AsyncEventKind(0);
    pub const QP_FATAL: AsyncEventKind = AsyncEventKind(1);
    pub const QP_REQ_ERR: AsyncEventKind = AsyncEventKind(2);
    pub const QP_ACCESS_ERR: AsyncEventKind = AsyncEventKind(3);
    pub const COMM_EST: AsyncEventKind = AsyncEventKind(4);
    pub const SQ_DRAINED: AsyncEventKind = AsyncEventKind(5);
    pub const PATH_MIG: AsyncEventKind = AsyncEventKind(6);
    pub const PATH_MIG_ERR: AsyncEventKind = AsyncEventKind(7);
    pub const DEVICE_FATAL: AsyncEventKind = AsyncEventKind(8);
    pub const PORT_ACTIVE: AsyncEventKind = AsyncEventKind(9);
    pub const PORT_ERR: AsyncEventKind = AsyncEventKind(10);
    pub const LID_CHANGE: AsyncEventKind = AsyncEventKind(11);
    pub const PKEY_CHANGE: AsyncEventKind = AsyncEventKind(12);
    pub const SM_CHANGE: AsyncEventKind = AsyncEventKind(13);
    pub const SRQ_ERR: AsyncEventKind = AsyncEventKind(14);
    pub const SRQ_LIMIT_REACHED: AsyncEventKind = AsyncEventKind(15);
    pub const QP_LAST_WQE_REACHED: AsyncEventKind = AsyncEventKind(16);
    pub const CLIENT_REREGISTER: AsyncEventKind = AsyncEventKind(17);
    pub const GID_CHANGE: AsyncEventKind = AsyncEventKind(18);
    pub const WQ_FATAL: AsyncEventKind = AsyncEventKind(19);
}

const NAMES: [&str; 20] = [
    "cq error",
    "qp fatal error",
    "qp request error",
    "qp access error",
    "communication established",
    "send queue drained",
    "path migrated",
    "path migration error",
    "device fatal error",
    "port active",
    "port error",
    "lid change",
    "pkey change",
    "sm change",
    "srq error",
    "srq limit reached",
    "last wqe reached",
    "client reregister",
    "gid table change",
    "wq fatal error",
];

impl fmt::Display for AsyncEventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match NAMES.get(self.0 as usize) {
            Some(name) => f.write_str(name),
            None => write!(f, "event {}", self.0),
        }
    }
}

/// What an event is about. Plain values: the object may be gone by the time this is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AsyncElement {
    /// The whole device.
    Device,
    /// A port of it.
    Port(u8),
    /// A completion queue, by its [`key`](crate::CompletionQueue::key).
    CompletionQueue(u64),
    /// A queue pair, by its number.
    QueuePair(u32),
    /// Something this crate does not make.
    Other,
}

/// An asynchronous event, already acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AsyncEvent {
    /// What happened.
    pub kind: AsyncEventKind,
    /// To what.
    pub element: AsyncElement,
}

impl fmt::Display for AsyncEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.kind)?;
        match self.element {
            AsyncElement::Device | AsyncElement::Other => Ok(()),
            AsyncElement::Port(port) => write!(f, " on port {port}"),
            AsyncElement::CompletionQueue(key) => write!(f, " on completion queue {key}"),
            AsyncElement::QueuePair(number) => write!(f, " on qp {number:#x}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_print() {
        let event = AsyncEvent {
            kind: AsyncEventKind::PORT_ERR,
            element: AsyncElement::Port(1),
        };
        assert_eq!(event.to_string(), "port error on port 1");
        assert_eq!(AsyncEventKind(99).to_string(), "event 99");
        assert_eq!(AsyncEventKind::WQ_FATAL.to_string(), "wq fatal error");
    }
}
