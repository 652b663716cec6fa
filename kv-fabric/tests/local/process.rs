//! Two values, two processes.

use std::time::{Duration, Instant};

use kv_fabric::local::Local;
use kv_fabric::{
    ControlConnection, DataConnection, EndpointEvent, Fabric, FabricError, Read, ReadStatus, Region,
    RemoteRef, Scatter,
};

use crate::common::*;

/// Nothing is shared between two values but the socket.
#[test]
fn control_and_data_of_two_values_work_together() {
    let place = Place::new();
    let other = Local::new().expect("local");
    let mut endpoint = place.listen();
    std::thread::scope(|scope| {
        let client = scope.spawn(|| other.connect_control(&place.address(), b"x", OPTIONS, patience()));
        let (request, peer) = find(&mut endpoint, |event| match event {
            EndpointEvent::Request { request, peer, .. } => Some((request, peer)),
            _ => None,
        });
        assert!(
            peer.contains(&format!("process {}", std::process::id())),
            "{peer}"
        );
        let id = endpoint.accept_control(request, OPTIONS).expect("accept");
        let mut control = client.join().expect("no panic").expect("connect");
        control.send(b"frame").expect("send");
        let frame = find(&mut endpoint, |event| match event {
            EndpointEvent::Frame(of, frame) if of == id => Some(frame),
            _ => None,
        });
        assert_eq!(frame, b"frame");
    });
}

/// Names the socket at which a process serves that a test of this file started.
const SERVE_AT: &str = "VKV_TEST_LOCAL_SERVE_AT";

/// The server's process of the test below.
fn serve(address: &str) {
    let local = Local::new().expect("local");
    let mut endpoint = local.listen(address).expect("listen");
    let domain = local.domain().expect("domain");
    let memory = shared(8192);
    memory.write(0, &[7; 8192]);
    let registration = domain.register(memory).expect("register");
    let end = patience();
    while Instant::now() < end {
        let mut events = Vec::new();
        endpoint.poll(&mut events).expect("poll");
        for event in events {
            let EndpointEvent::Request { request, private, .. } = event else {
                continue;
            };
            if private == b"data" {
                endpoint.accept_data(request, &*domain).expect("accept");
            } else {
                let id = endpoint.accept_control(request, OPTIONS).expect("accept");
                let rkey = registration.remote().rkey.to_le_bytes();
                endpoint.send(id, &rkey).expect("send");
            }
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Kills its process when dropped.
struct Child(std::process::Child);

impl Child {
    fn serve(address: &str) -> Self {
        let child = std::process::Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", "process::a_killed_server_is_noticed_and_replaced"])
            .env(SERVE_AT, address)
            .stdout(std::process::Stdio::null())
            .spawn()
            .expect("spawn");
        Self(child)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.0.kill().expect("SIGKILL");
        self.0.wait().expect("wait");
    }
}

/// Connects to a server process that may not listen yet, and reads its memory.
fn read_of(
    place: &Place,
) -> (
    Box<dyn ControlConnection>,
    Box<dyn DataConnection>,
    RemoteRef,
    Region,
) {
    let deadline = patience();
    let mut control = loop {
        match place
            .local
            .connect_control(&place.address(), b"control", OPTIONS, deadline)
        {
            Ok(control) => break control,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let mut events = Vec::new();
    while events.is_empty() {
        assert!(Instant::now() < deadline, "no frame comes");
        control.poll(&mut events).expect("poll");
    }
    let [kv_fabric::ControlEvent::Frame(frame)] = &events[..] else {
        panic!("{events:?}");
    };
    let remote = RemoteRef {
        address: 0,
        rkey: u32::from_le_bytes(frame[..].try_into().expect("an rkey")),
    };
    let mut data = place
        .local
        .connect_data(&place.address(), b"data", 8, deadline)
        .expect("connect");
    let region = place.local.allocate(8192).expect("allocate");
    post_all(&mut data, remote, &region).expect("post");
    let mut done = Vec::new();
    while done.is_empty() {
        assert!(data.wait(deadline).expect("wait"), "a READ never ends");
        data.poll(&mut done).expect("poll");
    }
    assert_eq!(done[0].status, ReadStatus::Success);
    let mut seen = [0; 8192];
    region.memory().read(0, &mut seen);
    assert_eq!(seen, [7; 8192]);
    (control, data, remote, region)
}

fn post_all(data: &mut Box<dyn DataConnection>, from: RemoteRef, region: &Region) -> Result<(), FabricError> {
    let read = Read {
        number: 1,
        from,
        to: [Scatter::new(0, 0, 8192), Scatter::default()],
        signaled: true,
    };
    data.post(&[read], &[region])
}

#[test]
fn a_killed_server_is_noticed_and_replaced() {
    if let Ok(address) = std::env::var(SERVE_AT) {
        return serve(&address);
    }
    let place = Place::new();
    let server = Child::serve(&place.address());
    let (mut control, mut data, remote, region) = read_of(&place);
    drop(server);
    assert!(place.path().exists(), "a killed server leaves its file");
    let deadline = patience();
    while control.poll(&mut Vec::new()).is_ok() {
        assert!(Instant::now() < deadline, "the control connection stands");
    }
    // What is mapped stays readable until the end is noticed, and READs fail from then on.
    let mut done = Vec::new();
    while post_all(&mut data, remote, &region).is_ok() {
        assert!(Instant::now() < deadline, "the data connection stands");
        data.wait(deadline).expect("wait");
        data.poll(&mut done).expect("poll");
    }
    let _server = Child::serve(&place.address());
    let (_control, _data, next, _region) = read_of(&place);
    assert_ne!(
        next.rkey, remote.rkey,
        "an rkey of the old server means nothing to the new one"
    );
}
