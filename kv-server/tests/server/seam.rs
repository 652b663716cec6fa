//! What a network may do to a server at the seam, and hardly ever does: events without end, connections that cannot be
//! accepted, a device that is gone. A simulated network that does so when it is told to.
//!
//! # Safety
//! Declares what the seam declares; registers nothing of a caller's.

use std::os::fd::BorrowedFd;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use crate::common::{Raw, Setup, TestFabric, eventually};
use kv_fabric::sim::{Sim, SimOptions};
use kv_fabric::{
    ConnectionId, ControlConnection, ControlOptions, DataConnection, Domain, Endpoint, EndpointEvent, Fabric,
    FabricError, Region, RemoteRef, RequestId, Staging,
};
use kv_proto::control::{Bytes, Request};

/// What the network does.
#[derive(Default)]
struct Switches {
    /// Every poll brings a connection request.
    floods: AtomicBool,
    polls: AtomicUsize,
    refuses: AtomicBool,
    gone: AtomicBool,
}

struct Odd {
    sim: Sim,
    switches: Arc<Switches>,
}

struct OddEndpoint {
    inner: Box<dyn Endpoint>,
    switches: Arc<Switches>,
}

impl OddEndpoint {
    fn accepts(&self) -> Result<(), FabricError> {
        if self.switches.refuses.load(Ordering::SeqCst) {
            let full = std::io::Error::from(std::io::ErrorKind::OutOfMemory);
            return Err(FabricError::call("accept a connection", full));
        }
        Ok(())
    }
}

impl Endpoint for OddEndpoint {
    fn fd(&self) -> BorrowedFd<'_> {
        self.inner.fd()
    }

    fn address(&self) -> String {
        self.inner.address()
    }

    fn poll(&mut self, events: &mut Vec<EndpointEvent>) -> Result<(), FabricError> {
        self.switches.polls.fetch_add(1, Ordering::SeqCst);
        if self.switches.gone.load(Ordering::SeqCst) {
            return Err(FabricError::Unavailable {
                what: "device odd0 was removed".to_owned(),
                remedy: "start again when the device is back".to_owned(),
            });
        }
        if self.switches.floods.load(Ordering::SeqCst) {
            events.push(EndpointEvent::Request {
                request: RequestId(u64::MAX),
                private: Vec::new(),
                peer: "a flood".to_owned(),
                origin: String::new(),
            });
        }
        self.inner.poll(events)
    }

    fn accept_control(
        &mut self,
        request: RequestId,
        options: ControlOptions,
    ) -> Result<ConnectionId, FabricError> {
        self.accepts()
            .inspect_err(|error| self.inner.reject(request, &error.to_string()))?;
        self.inner.accept_control(request, options)
    }

    fn accept_data(&mut self, request: RequestId, domain: &dyn Domain) -> Result<ConnectionId, FabricError> {
        self.accepts()
            .inspect_err(|error| self.inner.reject(request, &error.to_string()))?;
        self.inner.accept_data(request, domain)
    }

    fn reject(&mut self, request: RequestId, reason: &str) {
        self.inner.reject(request, reason);
    }

    fn grant_staging(
        &mut self,
        connection: ConnectionId,
        len: usize,
    ) -> Result<(RemoteRef, Arc<dyn Staging>), FabricError> {
        self.inner.grant_staging(connection, len)
    }

    fn send(&mut self, connection: ConnectionId, frame: &[u8]) -> Result<(), FabricError> {
        self.inner.send(connection, frame)
    }

    fn destroy(&mut self, connection: ConnectionId) -> Result<(), FabricError> {
        self.inner.destroy(connection)
    }
}

impl Fabric for Odd {
    fn name(&self) -> &'static str {
        "odd"
    }

    fn fences(&self) -> bool {
        true
    }

    fn describe(&self) -> String {
        self.sim.describe()
    }

    fn read_max_bytes(&self) -> usize {
        self.sim.read_max_bytes()
    }

    fn domain(&self) -> Result<Arc<dyn Domain>, FabricError> {
        self.sim.domain()
    }

    fn listen(&self, address: &str) -> Result<Box<dyn Endpoint>, FabricError> {
        Ok(Box::new(OddEndpoint {
            inner: self.sim.listen(address)?,
            switches: Arc::clone(&self.switches),
        }))
    }

    fn allocate(&self, len: usize) -> Result<Region, FabricError> {
        self.sim.allocate(len)
    }

    #[allow(
        unsafe_code,
        reason = "the seam declares it so; nothing here registers a caller's memory"
    )]
    unsafe fn register(&self, _start: NonNull<u8>, _len: usize) -> Result<Region, FabricError> {
        Err(FabricError::Unsupported("memory of the caller"))
    }

    fn connect_control(
        &self,
        address: &str,
        request: &[u8],
        options: ControlOptions,
        deadline: Instant,
    ) -> Result<Box<dyn ControlConnection>, FabricError> {
        self.sim.connect_control(address, request, options, deadline)
    }

    fn connect_data(
        &self,
        address: &str,
        request: &[u8],
        reads_max: u32,
        deadline: Instant,
    ) -> Result<Box<dyn DataConnection>, FabricError> {
        self.sim.connect_data(address, request, reads_max, deadline)
    }
}

impl TestFabric for Odd {
    fn address(folder: &Path) -> String {
        <Sim as TestFabric>::address(folder)
    }

    fn server(_address: &str) -> Arc<Self> {
        Arc::new(Self {
            sim: Sim::new(SimOptions::default()),
            switches: Arc::default(),
        })
    }

    fn client(server: &Arc<Self>, _address: &str) -> Arc<Self> {
        Arc::clone(server)
    }
}

#[test]
fn events_without_end_hold_up_neither_leases_nor_finished_writes() {
    let mut setup = Setup::new();
    // Long enough for what is made durable before it ends, on a busy disk too.
    setup.options.lease_ms = 1000;
    let server = setup.start::<Odd>();
    let (mut silent, opened) = server.with_dataset("cats");
    let switches = &server.fabric.switches;
    switches.floods.store(true, Ordering::SeqCst);
    // Committed into the flood; its answer is owed to the log thread.
    silent.put(opened.dataset, b"k", b"value").unwrap();
    let flooded = switches.polls.load(Ordering::SeqCst);
    eventually("the lease ends", || silent.is_over().then_some(()));
    assert!(switches.polls.load(Ordering::SeqCst) > flooded);
    switches.floods.store(false, Ordering::SeqCst);
    assert_eq!(server.figure("fenced_count"), 1);
}

#[test]
fn a_connection_that_cannot_be_accepted_concerns_nobody_else() {
    let server = Setup::new().start::<Odd>();
    let (mut raw, opened) = server.with_dataset("cats");
    let (_, locator) = raw.put(opened.dataset, b"k", b"value").unwrap();
    let token = raw.tokens(opened.dataset, 1)[0];
    let refused = raw.figure([0; 16], "connections_refused_count");
    let switches = &server.fabric.switches;
    switches.refuses.store(true, Ordering::SeqCst);
    for error in [
        Raw::connect(server.fabric.clone(), &server.address).err(),
        raw.data(token).err(),
    ] {
        assert!(matches!(error, Some(FabricError::Rejected { .. })), "{error:?}");
    }
    assert_eq!(raw.figure([0; 16], "connections_refused_count"), refused + 2);
    assert_eq!(raw.figure([0; 16], "unauthenticated_count"), 0);
    assert_eq!(raw.figure([0; 16], "data_connections_count"), 0);
    switches.refuses.store(false, Ordering::SeqCst);
    // A token is good once, whatever came of it; and no place is lost.
    assert!(raw.data(token).is_err());
    for _ in 0..server.setup.options.data_connections_per_session_max {
        let token = raw.tokens(opened.dataset, 1)[0];
        let mut data = raw.data(token).unwrap();
        raw.get(&mut *data, opened.dataset, &locator).unwrap();
        drop(data);
        eventually("its end is noticed", || {
            (raw.figure([0; 16], "data_connections_count") == 0).then_some(())
        });
    }
}

#[test]
fn a_device_that_is_gone_ends_the_server_with_the_reason_and_loses_nothing() {
    let mut server = Setup::new().start::<Odd>();
    let (mut raw, opened) = server.with_dataset("cats");
    raw.put(opened.dataset, b"k", b"value").unwrap();
    server.fabric.switches.gone.store(true, Ordering::SeqCst);
    // Whatever wakes it shows it that the device is gone.
    raw.send(&Request::Stat { dataset: [0; 16] });
    let error = server.handle.take().unwrap().join().unwrap_err().to_string();
    assert!(
        error.contains("odd0 was removed") && error.contains("start again"),
        "{error}"
    );
    assert!(raw.is_over());
    drop(raw);
    let again = server.setup.start::<Odd>();
    let mut raw = again.session(&again.setup.reader);
    let dataset = raw.open("cats").dataset;
    raw.ask(&Request::Lookup {
        dataset,
        key: Bytes::from(&b"k"[..]),
    })
    .unwrap();
}
