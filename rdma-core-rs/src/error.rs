//! What can go wrong, one variant for each thing a caller may want to tell apart.
//!
//! Every message names the call and the value it was given; the operating system's error is the source.

use std::io;
use std::net::SocketAddr;

use crate::access::Access;
use crate::cm::{CmEventKind, RejectReason};
use crate::qp::QpState;

/// The result of every fallible call of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a verbs or connection manager call did not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The shared library is not on this machine, so nothing of RDMA can work here.
    #[error("{library} cannot be opened ({reason}); install the package that ships it (Debian: {package})")]
    LibraryMissing {
        /// File name that was tried.
        library: &'static str,
        /// Debian package that ships it.
        package: &'static str,
        /// What the dynamic loader said.
        reason: String,
    },
    /// The library works but knows no device.
    #[error("no rdma device: {detail}")]
    NoDevice {
        /// What was found instead, and the remedy.
        detail: String,
    },
    /// There are devices, but none of this name.
    #[error("no rdma device named {name:?}; present: {present}")]
    DeviceNotFound {
        /// Name that was asked for.
        name: String,
        /// Names that exist, comma separated.
        present: String,
    },
    /// A port has no GID that can be used.
    #[error("no usable gid on port {port_num}: {detail}")]
    NoGid {
        /// Port that was searched.
        port_num: u8,
        /// What was found instead.
        detail: String,
    },
    /// A call was refused by the library, the kernel or the device.
    #[error("{call} ({what}): {source}")]
    Verb {
        /// Name of the C function.
        call: &'static str,
        /// The values it was given.
        what: String,
        /// The operating system's error.
        source: io::Error,
    },
    /// The library, kernel or device does not have this feature at all; trying again is useless.
    #[error("{call} ({what}): not supported here: {source}")]
    Unsupported {
        /// Name of the C function.
        call: &'static str,
        /// The values it was given.
        what: String,
        /// The operating system's error.
        source: io::Error,
    },
    /// Memory could not be registered.
    #[error("registering {len_bytes} bytes at {addr:#x} with {access}: {source}{hint}")]
    Register {
        /// First address of the range.
        addr: u64,
        /// Its length.
        len_bytes: usize,
        /// The rights that were asked for.
        access: Access,
        /// What to do about it; empty or starting with a semicolon.
        hint: String,
        /// The operating system's error.
        source: io::Error,
    },
    /// A queue pair refused a change of state or attributes.
    #[error("ibv_modify_qp of qp {qp_num:#x} from {from} to {to}: {source}{diagnosis}")]
    ModifyQp {
        /// Number of the queue pair.
        qp_num: u32,
        /// State it was in.
        from: QpState,
        /// State that was asked for.
        to: QpState,
        /// Which attribute bits are missing or not allowed, if any; empty or starting with a semicolon.
        diagnosis: String,
        /// The operating system's error.
        source: io::Error,
    },
    /// A chain of send work requests was not taken whole.
    #[error("ibv_post_send took {posted} of {requested} work requests: {source}")]
    PostSend {
        /// How many, from the front, are now owned by the queue pair.
        posted: usize,
        /// How many were in the batch.
        requested: usize,
        /// The operating system's error; ENOMEM means that the queue is full.
        source: io::Error,
    },
    /// A chain of receive work requests was not taken whole.
    #[error("ibv_post_recv took {posted} of {requested} work requests: {source}")]
    PostRecv {
        /// How many, from the front, are now owned by the queue pair.
        posted: usize,
        /// How many were in the batch.
        requested: usize,
        /// The operating system's error; ENOMEM means that the queue is full.
        source: io::Error,
    },
    /// A value was refused before any call was made.
    #[error("{what}")]
    InvalidArgument {
        /// The value and the rule it breaks.
        what: String,
    },
    /// The peer, or the kernel of its machine, refused the connection.
    #[error("connection to {peer} rejected: {reason}")]
    Rejected {
        /// Who refused.
        peer: SocketAddr,
        /// The connection manager's reason.
        reason: RejectReason,
        /// What the peer sent along, padded with zeros to the size the transport carries.
        private_data: Vec<u8>,
    },
    /// A connection could not be made.
    #[error("connecting to {peer}, while {stage}: {event}{detail}")]
    ConnectFailed {
        /// Who was called.
        peer: SocketAddr,
        /// How far it got.
        stage: &'static str,
        /// The event that ended it.
        event: CmEventKind,
        /// The event's status; empty or starting with a colon.
        detail: String,
    },
    /// A deadline passed.
    #[error("connecting to {peer}, while {stage}: no answer before the deadline")]
    Timeout {
        /// Who was called.
        peer: SocketAddr,
        /// How far it got.
        stage: &'static str,
    },
}

impl Error {
    /// Names the call that failed; a missing feature becomes [`Error::Unsupported`].
    pub(crate) fn verb(call: &'static str, what: impl Into<String>, source: io::Error) -> Error {
        let what = what.into();
        match source.raw_os_error() {
            Some(libc::EOPNOTSUPP) | Some(libc::ENOSYS) => Error::Unsupported { call, what, source },
            _ => Error::Verb { call, what, source },
        }
    }

    /// Refuses a value before any call is made.
    pub(crate) fn invalid(what: impl Into<String>) -> Error {
        Error::InvalidArgument { what: what.into() }
    }

    /// The operating system's error number behind this, if there is one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Error::Verb { source, .. }
            | Error::Unsupported { source, .. }
            | Error::Register { source, .. }
            | Error::ModifyQp { source, .. }
            | Error::PostSend { source, .. }
            | Error::PostRecv { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }
}

/// Turns a verbs return code (0, a positive errno, or -1 with errno set) into a result.
pub(crate) fn os_result(rc: i32) -> io::Result<()> {
    match rc {
        0 => Ok(()),
        errno if errno > 0 => Err(io::Error::from_raw_os_error(errno)),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn return_codes_become_errnos() {
        assert!(os_result(0).is_ok());
        assert_eq!(
            os_result(libc::EINVAL).unwrap_err().raw_os_error(),
            Some(libc::EINVAL)
        );
    }

    #[test]
    fn missing_features_are_told_apart() {
        let error = Error::verb("ibv_x", "port 1", io::Error::from_raw_os_error(libc::EOPNOTSUPP));
        assert!(matches!(error, Error::Unsupported { .. }));
        let error = Error::verb("ibv_x", "port 1", io::Error::from_raw_os_error(libc::EINVAL));
        assert!(matches!(error, Error::Verb { .. }));
        assert_eq!(error.errno(), Some(libc::EINVAL));
        assert_eq!(
            error.to_string(),
            "ibv_x (port 1): Invalid argument (os error 22)"
        );
    }
}
