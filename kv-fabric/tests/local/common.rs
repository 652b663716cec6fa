//! A place to listen at, and its two ends.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kv_fabric::local::Local;
use kv_fabric::{
    ConnectionId, ControlOptions, DataConnection, Domain, Endpoint, EndpointEvent, Fabric, FabricError,
    Memory, MemoryKind, Read, ReadStatus, Region, RemoteRef, Scatter,
};

pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
pub(crate) const OPTIONS: ControlOptions = ControlOptions {
    receives: 8,
    frame_bytes: 256,
};

pub(crate) struct Place {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) local: Local,
}

impl Place {
    pub(crate) fn new() -> Self {
        Self {
            folder: tempfile::tempdir().expect("a folder"),
            local: Local::new().expect("local"),
        }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    pub(crate) fn address(&self) -> String {
        self.path().to_str().expect("text").to_owned()
    }

    pub(crate) fn listen(&self) -> Box<dyn Endpoint> {
        self.local.listen(&self.address()).expect("listen")
    }
}

pub(crate) fn patience() -> Instant {
    Instant::now() + PATIENCE
}

pub(crate) fn error_of<T>(result: Result<T, FabricError>) -> String {
    result.err().expect("an error").to_string()
}

/// Polls until `pick` takes an event.
pub(crate) fn find<T>(endpoint: &mut Box<dyn Endpoint>, pick: impl Fn(EndpointEvent) -> Option<T>) -> T {
    let deadline = patience();
    loop {
        let mut events = Vec::new();
        endpoint.poll(&mut events).expect("poll");
        if let Some(found) = events.into_iter().find_map(&pick) {
            return found;
        }
        assert!(Instant::now() < deadline, "it does not happen");
        std::thread::sleep(Duration::from_millis(1));
    }
}

pub(crate) fn data(
    place: &Place,
    endpoint: &mut Box<dyn Endpoint>,
    domain: &Arc<dyn Domain>,
) -> (Box<dyn DataConnection>, ConnectionId) {
    std::thread::scope(|scope| {
        let address = place.address();
        let client = scope.spawn(move || place.local.connect_data(&address, b"", 64, patience()));
        let request = find(endpoint, |event| match event {
            EndpointEvent::Request { request, .. } => Some(request),
            _ => None,
        });
        let id = endpoint.accept_data(request, &**domain).expect("accept");
        (client.join().expect("no panic").expect("connect"), id)
    })
}

pub(crate) fn read(
    endpoint: &mut Box<dyn Endpoint>,
    data: &mut Box<dyn DataConnection>,
    from: RemoteRef,
    to: &Region,
    len: usize,
) -> ReadStatus {
    let read = Read {
        number: 1,
        from,
        to: [Scatter::new(0, 0, len), Scatter::default()],
        signaled: true,
    };
    data.post(&[read], &[to]).expect("post");
    let deadline = patience();
    let mut done = Vec::new();
    while done.is_empty() {
        assert!(Instant::now() < deadline, "a READ never ends");
        endpoint.poll(&mut Vec::new()).expect("poll");
        data.wait(Instant::now() + Duration::from_millis(2))
            .expect("wait");
        data.poll(&mut done).expect("poll");
    }
    done[0].status
}

pub(crate) fn shared(len: usize) -> Arc<Memory> {
    Arc::new(Memory::new(len, MemoryKind::SharedReadOnly).expect("memory"))
}

pub(crate) fn readable(endpoint: &dyn Endpoint, wait: Duration) -> bool {
    let timeout = rustix::event::Timespec {
        tv_sec: wait.as_secs().cast_signed(),
        tv_nsec: wait.subsec_nanos().into(),
    };
    let fd = endpoint.fd();
    let mut fds = [rustix::event::PollFd::new(&fd, rustix::event::PollFlags::IN)];
    rustix::event::poll(&mut fds, Some(&timeout)).expect("poll") > 0
}
