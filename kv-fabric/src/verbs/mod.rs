//! The `verbs` answer: RC queue pairs over libibverbs and librdmacm, one device a process end.
//!
//! - `memory`: registered memory of both ends, and domains.
//! - `link`: frames over one queue pair, as both ends of a control connection use them.
//! - `client`: the client's connections.
//! - `endpoint`: the server's listener and its connections.
//!
//! Rights: a queue pair gets those of its purpose before it can receive anything, and never more (the connection
//! manager's own path would add REMOTE_WRITE): data connections of a server REMOTE_READ, its control connections
//! REMOTE_WRITE in a domain of their own, a client's queue pairs none.

mod client;
mod endpoint;
mod link;
mod memory;

use std::net::{SocketAddr, ToSocketAddrs};
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdma_core_rs as rdma;

use client::{VerbsControl, VerbsData};
use endpoint::VerbsEndpoint;
pub(crate) use memory::Held;
use memory::VerbsDomain;

use crate::{
    ControlConnection, ControlOptions, DataConnection, Domain, Endpoint, Fabric, FabricError, MemoryKind,
    Region, Stage,
};

/// Longest READ that is asked for, whatever the device allows: a longer one would hold its queue pair for long.
const READ_MAX_BYTES: usize = 1 << 20;
/// Longest that finding the device behind an address may take.
const RESOLVE_PATIENCE: Duration = Duration::from_secs(5);

/// RDMA verbs on one device.
#[derive(Clone, Debug)]
pub struct Verbs {
    context: Arc<rdma::Context>,
    pd: Arc<rdma::ProtectionDomain>,
    chosen: String,
    /// The device's `max_rd_atomic`.
    reads_at_once: usize,
}

impl Verbs {
    /// For a server that will listen on `address` (`host:port`): the device that has the address, or the only one
    /// where it is unspecified (`0.0.0.0`).
    ///
    /// # Errors
    /// [`FabricError::Unavailable`] if there is no device, no rdma-core, no permission, or several to choose from;
    /// [`FabricError::Connect`] if the address is not of this machine.
    pub fn for_listener(address: &str) -> Result<Self, FabricError> {
        let at = parse(address, Stage::Listen)?;
        if at.ip().is_unspecified() {
            let devices = rdma::devices().map_err(|error| unavailable(&error))?;
            return match devices.as_slice() {
                [] => Err(no_device()),
                [only] => Self::on(
                    &rdma::Context::shared(&only.name).map_err(|error| unavailable(&error))?,
                    None,
                ),
                several => Err(FabricError::Unavailable {
                    what: format!(
                        "{} leaves open which of the devices {} to use",
                        at.ip(),
                        several
                            .iter()
                            .map(|device| device.name.as_str())
                            .collect::<Vec<_>>()
                            .join(", ")
                    ),
                    remedy: "listen on the address of one of them".to_owned(),
                }),
            };
        }
        let channel = rdma::cm::EventChannel::new().map_err(|error| unavailable(&error))?;
        let bound = rdma::cm::CmId::new(&channel).and_then(|id| {
            id.bind(SocketAddr::new(at.ip(), 0))?;
            id.context()
        });
        let context = bound.map_err(|error| connect_error(error, Stage::Listen, address))?;
        Self::on(&context, Some(at.ip()))
    }

    /// For a client of the server at `address` (`host:port`): the device that leads there.
    ///
    /// # Errors
    /// As [`Verbs::for_listener`].
    pub fn for_peer(address: &str) -> Result<Self, FabricError> {
        Self::for_peer_until(address, Instant::now() + RESOLVE_PATIENCE)
    }

    /// As [`Verbs::for_peer`], which may take until `deadline`.
    ///
    /// # Errors
    /// As there.
    pub fn for_peer_until(address: &str, deadline: Instant) -> Result<Self, FabricError> {
        let at = parse(address, Stage::Resolve)?;
        // Asked first, so that a machine without a device says so and not that a route is missing.
        if rdma::devices().map_err(|error| unavailable(&error))?.is_empty() {
            return Err(no_device());
        }
        let connector = rdma::cm::resolve(at, None, deadline)
            .map_err(|error| connect_error(error, Stage::Resolve, address))?;
        let context = connector.context().map_err(|error| unavailable(&error))?;
        let local = connector.id().local_addr().map(|local| local.ip());
        Self::on(&context, local)
    }

    fn on(context: &Arc<rdma::Context>, address: Option<std::net::IpAddr>) -> Result<Self, FabricError> {
        let pd =
            rdma::ProtectionDomain::new(context).map_err(|error| call("make a protection domain", error))?;
        let port_num = 1;
        let port = context
            .query_port(port_num)
            .map_err(|error| call("query the port", error))?;
        let gid = context
            .choose_gid(port_num, address)
            .map_or_else(|error| error.to_string(), |gid| gid.to_string());
        let chosen = format!(
            "device {} port {port_num} mtu {} gid {gid}",
            context.name(),
            port.active_mtu
        );
        let attr = context
            .query_device()
            .map_err(|error| call("query the device", error))?;
        Ok(Self {
            context: context.clone(),
            pd,
            chosen,
            reads_at_once: usize::from(attr.initiator_depth_max().min(attr.responder_resources_max())).max(1),
        })
    }

    fn resolve(&self, address: &str, deadline: Instant) -> Result<rdma::cm::Connector, FabricError> {
        let at = parse(address, Stage::Resolve)?;
        let connector = rdma::cm::resolve(at, None, deadline)
            .map_err(|error| connect_error(error, Stage::Resolve, address))?;
        let name = connector
            .id()
            .device_name()
            .map_err(|error| call("find the device", error))?;
        if name == self.context.name() {
            return Ok(connector);
        }
        Err(FabricError::Unavailable {
            what: format!(
                "{address} is now behind device {name}, and this session is on {}",
                self.context.name()
            ),
            remedy: "connect anew".to_owned(),
        })
    }

    fn connect_param(&self, request: &[u8], asks_reads: bool) -> Result<rdma::cm::ConnectParam, FabricError> {
        if request.len() > rdma::cm::PRIVATE_DATA_CONNECT_MAX {
            return Err(FabricError::Unsupported("private data of more than 56 bytes"));
        }
        let attr = self
            .context
            .query_device()
            .map_err(|error| call("query the device", error))?;
        let mut param = rdma::cm::ConnectParam::for_device(&attr);
        param.private_data = request.to_vec();
        param.reliability = RELIABILITY;
        // A client answers no READs; only its data connections ask any.
        param.responder_resources = 0;
        if !asks_reads {
            param.initiator_depth = 0;
        }
        Ok(param)
    }
}

/// 268 ms, 6 times: an emulated device on a busy machine answers late, and a dead peer is told by other means first.
const RELIABILITY: rdma::Reliability = rdma::Reliability {
    timeout: 16,
    retry_cnt: rdma::Reliability::RETRY_MAX,
    rnr_retry: rdma::Reliability::RETRY_MAX,
    min_rnr_timer: 14,
};

impl Fabric for Verbs {
    fn name(&self) -> &'static str {
        "verbs"
    }

    fn fences(&self) -> bool {
        true
    }

    fn describe(&self) -> String {
        self.chosen.clone()
    }

    fn read_max_bytes(&self) -> usize {
        READ_MAX_BYTES
    }

    fn reads_at_once(&self) -> usize {
        self.reads_at_once
    }

    fn domain(&self) -> Result<Arc<dyn Domain>, FabricError> {
        Ok(Arc::new(VerbsDomain::new(&self.context)?))
    }

    fn listen(&self, address: &str) -> Result<Box<dyn Endpoint>, FabricError> {
        let parsed = parse(address, Stage::Listen)?;
        Ok(Box::new(VerbsEndpoint::listen(&self.context, parsed, address)?))
    }

    fn allocate(&self, len: usize) -> Result<Region, FabricError> {
        let memory = crate::Memory::new(len, MemoryKind::Private)?;
        Ok(Region::registered(memory::register(&self.pd, memory)?))
    }

    #[allow(unsafe_code, reason = "passes the caller's obligation on")]
    unsafe fn register(&self, start: NonNull<u8>, len: usize) -> Result<Region, FabricError> {
        crate::check::registered_len(len)?;
        // SAFETY: the obligations are the same, and the region holds the value for as long as it is registered.
        let memory = unsafe { crate::Memory::borrowed(start, len) };
        Ok(Region::registered(memory::register(&self.pd, memory)?))
    }

    fn connect_control(
        &self,
        address: &str,
        request: &[u8],
        options: ControlOptions,
        deadline: Instant,
    ) -> Result<Box<dyn ControlConnection>, FabricError> {
        let param = self.connect_param(request, false)?;
        let resolved = self.resolve(address, deadline)?;
        let control = VerbsControl::connect(resolved, &self.pd, &param, options, address, deadline)?;
        Ok(Box::new(control))
    }

    fn connect_data(
        &self,
        address: &str,
        request: &[u8],
        reads_max: u32,
        deadline: Instant,
    ) -> Result<Box<dyn DataConnection>, FabricError> {
        let param = self.connect_param(request, true)?;
        let resolved = self.resolve(address, deadline)?;
        let data = VerbsData::connect(resolved, &self.pd, &param, reads_max, address, deadline)?;
        Ok(Box::new(data))
    }
}

fn parse(address: &str, stage: Stage) -> Result<SocketAddr, FabricError> {
    let failed = |source| FabricError::Connect {
        stage,
        address: address.to_owned(),
        source,
    };
    let unknown = |error: std::io::Error| {
        let text = format!("{error}: give HOST:PORT, HOST a name that this machine knows or an address");
        failed(std::io::Error::new(error.kind(), text))
    };
    let mut found = address.to_socket_addrs().map_err(unknown)?;
    found
        .next()
        .ok_or_else(|| failed(std::io::Error::other("the name has no address")))
}

fn no_device() -> FabricError {
    FabricError::Unavailable {
        what: "this machine has no RDMA device".to_owned(),
        remedy: "use local: between processes of this machine, load Soft-RoCE (soft-roce-ci/run), or see kv doctor"
            .to_owned(),
    }
}

fn unavailable(error: &rdma::Error) -> FabricError {
    match error {
        rdma::Error::NoDevice { .. } => no_device(),
        other => FabricError::Unavailable {
            what: other.to_string(),
            remedy: match other.errno() {
                Some(libc::EACCES | libc::EPERM) => {
                    "let this user open it: a udev rule, or the group `rdma`; see kv doctor".to_owned()
                }
                _ => "see kv doctor".to_owned(),
            },
        },
    }
}

/// An error of `rdma-core-rs` as an operating system's, its words kept.
fn io_error(error: rdma::Error) -> std::io::Error {
    let kind = error.errno().map_or(std::io::ErrorKind::Other, |errno| {
        std::io::Error::from_raw_os_error(errno).kind()
    });
    std::io::Error::new(kind, error)
}

fn call(call: &'static str, error: rdma::Error) -> FabricError {
    FabricError::call(call, io_error(error))
}

fn connect_error(error: rdma::Error, stage: Stage, address: &str) -> FabricError {
    use rdma::cm::RejectReason;
    let address = address.to_owned();
    match error {
        rdma::Error::NoDevice { .. } | rdma::Error::LibraryMissing { .. } => unavailable(&error),
        rdma::Error::Timeout { .. } => FabricError::Timeout { stage, address },
        rdma::Error::Rejected {
            reason: RejectReason::CONSUMER_DEFINED,
            private_data,
            ..
        } => {
            let text = private_data.split(|&byte| byte == 0).next().unwrap_or_default();
            FabricError::Rejected {
                address,
                reason: String::from_utf8_lossy(text).into_owned(),
            }
        }
        rdma::Error::Rejected {
            reason: RejectReason::INVALID_SERVICE_ID,
            ..
        } => FabricError::Connect {
            stage: Stage::Connect,
            address,
            source: std::io::Error::new(
                std::io::ErrorKind::ConnectionRefused,
                "nothing listens on that port",
            ),
        },
        other => {
            let remedy = remedy(other.errno(), stage);
            let source = io_error(other);
            let source = match remedy {
                Some(remedy) => std::io::Error::new(source.kind(), format!("{source}: {remedy}")),
                None => source,
            };
            FabricError::Connect {
                stage,
                address,
                source,
            }
        }
    }
}

/// What to do about an address that cannot be had.
fn remedy(errno: Option<i32>, stage: Stage) -> Option<&'static str> {
    match (errno?, stage) {
        (libc::EADDRINUSE, Stage::Listen) => {
            Some("the port is taken: stop the other server, or listen on another port")
        }
        (libc::EADDRNOTAVAIL | libc::ENODEV, Stage::Listen) => {
            Some("no RDMA device of this machine has the address: see kv doctor")
        }
        (libc::EADDRNOTAVAIL | libc::ENODEV, _) => {
            Some("no RDMA device of this machine leads there: see kv doctor")
        }
        _ => None,
    }
}

fn memory_error(action: &'static str, len_bytes: usize, error: rdma::Error) -> FabricError {
    FabricError::Memory {
        action,
        len_bytes,
        // It says which limit of locked memory to raise.
        source: io_error(error),
        remedy: "see kv doctor".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(errno: i32, stage: Stage) -> String {
        let error = rdma::Error::Verb {
            call: "rdma_bind_addr",
            what: "id 1".to_owned(),
            source: std::io::Error::from_raw_os_error(errno),
        };
        connect_error(error, stage, "10.0.0.1:7471").to_string()
    }

    #[test]
    fn an_address_that_cannot_be_had_comes_with_a_remedy() {
        for (errno, stage, remedy) in [
            (libc::EADDRINUSE, Stage::Listen, "another port"),
            (
                libc::EADDRNOTAVAIL,
                Stage::Listen,
                "has the address: see kv doctor",
            ),
            (libc::ENODEV, Stage::Listen, "has the address: see kv doctor"),
            (libc::ENODEV, Stage::Resolve, "leads there: see kv doctor"),
        ] {
            let text = text(errno, stage);
            assert!(text.contains("10.0.0.1:7471") && text.contains(remedy), "{text}");
        }
        assert!(!text(libc::EIO, Stage::Listen).contains("doctor"));
        let unknown = parse("no-port", Stage::Resolve).unwrap_err().to_string();
        assert!(unknown.contains("HOST:PORT"), "{unknown}");
    }

    /// What `kv` and `kv-server` print, for a device node that the user may not open and for a limit that is too low.
    #[test]
    fn what_this_user_may_not_do_is_said_with_a_remedy() {
        let denied = rdma::Error::Verb {
            call: "ibv_open_device",
            what: "rxe0; it takes reading and writing /dev/infiniband/uverbs0".to_owned(),
            source: std::io::Error::from_raw_os_error(libc::EACCES),
        };
        assert_eq!(
            unavailable(&denied).to_string(),
            "ibv_open_device (rxe0; it takes reading and writing /dev/infiniband/uverbs0): Permission denied (os error 13) \
             (let this user open it: a udev rule, or the group `rdma`; see kv doctor)"
        );
        let limited = rdma::Error::Register {
            addr: 0x1000,
            len_bytes: 8192,
            access: rdma::Access::REMOTE_READ,
            hint: "; the limit of locked memory is 64 KiB: raise it (ulimit -l unlimited, or LimitMEMLOCK=infinity)".to_owned(),
            source: std::io::Error::from_raw_os_error(libc::ENOMEM),
        };
        let line = memory_error("register", 8192, limited).to_string();
        assert!(
            line.starts_with("cannot register 8192 bytes: registering 8192 bytes at 0x1000 with "),
            "{line}"
        );
        assert!(line.ends_with(
            ": Cannot allocate memory (os error 12); the limit of locked memory is 64 KiB: raise it (ulimit -l unlimited, or \
             LimitMEMLOCK=infinity) (see kv doctor)"
        ), "{line}");
    }
}
