//! Two ends of a fabric, driven by one test.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kv_fabric::{
    ConnectionId, ControlConnection, ControlEvent, ControlOptions, DataConnection, Domain, Endpoint,
    EndpointEvent, Fabric, FabricError, Memory, MemoryKind, Read, ReadCompletion, ReadStatus, Region,
    Registration, RemoteRef, RequestId, SCATTER_MAX, Scatter,
};
use rustix::event::{PollFd, PollFlags, Timespec};

/// How long anything may take that must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// How long nothing must happen for to be taken for quiet.
pub(crate) const QUIET: Duration = Duration::from_millis(60);

pub(crate) const OPTIONS: ControlOptions = ControlOptions {
    receives: 32,
    frame_bytes: 4096,
};

/// A fabric as a server and as a client see it, and where the server listens.
pub(crate) struct Rig {
    pub(crate) server: Arc<dyn Fabric>,
    pub(crate) client: Arc<dyn Fabric>,
    pub(crate) address: String,
    /// Dropped last; may hold a folder, or print how to repeat a failure.
    pub(crate) _keep: Box<dyn std::any::Any + Send + Sync>,
}

pub(crate) fn patience() -> Instant {
    Instant::now() + PATIENCE
}

/// Sleeps on a descriptor; whether it is readable.
pub(crate) fn readable(fd: BorrowedFd<'_>, wait: Duration) -> bool {
    let timeout = Timespec {
        tv_sec: wait.as_secs().cast_signed(),
        tv_nsec: wait.subsec_nanos().into(),
    };
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    rustix::event::poll(&mut fds, Some(&timeout)).expect("poll") > 0
}

/// An endpoint, and what it said that nobody asked for yet.
pub(crate) struct Host {
    pub(crate) endpoint: Box<dyn Endpoint>,
    pub(crate) events: VecDeque<EndpointEvent>,
}

impl Host {
    /// Polls once.
    pub(crate) fn pump(&mut self) {
        let mut events = Vec::new();
        self.endpoint.poll(&mut events).expect("the endpoint works");
        self.events.extend(events);
    }

    /// The first event that `pick` takes; the others stay.
    pub(crate) fn find<T>(&mut self, what: &str, pick: impl Fn(&EndpointEvent) -> Option<T>) -> T {
        let deadline = patience();
        loop {
            self.pump();
            if let Some((index, found)) = self
                .events
                .iter()
                .enumerate()
                .find_map(|(index, event)| Some((index, pick(event)?)))
            {
                self.events.remove(index);
                return found;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "no {what}; there is {:?}", self.events);
            readable(self.endpoint.fd(), left);
        }
    }

    pub(crate) fn request(&mut self) -> (RequestId, Vec<u8>) {
        self.find("request", |event| match event {
            EndpointEvent::Request { request, private, .. } => Some((*request, private.clone())),
            _ => None,
        })
    }

    pub(crate) fn established(&mut self, of: ConnectionId) {
        self.find("established connection", |event| {
            matches!(event, EndpointEvent::Established(id) if *id == of).then_some(())
        });
    }

    pub(crate) fn frame(&mut self, of: ConnectionId) -> Vec<u8> {
        self.find("frame", |event| match event {
            EndpointEvent::Frame(id, frame) if *id == of => Some(frame.clone()),
            _ => None,
        })
    }

    pub(crate) fn closed(&mut self, of: ConnectionId) -> String {
        self.find("closed connection", |event| match event {
            EndpointEvent::Closed(id, reason) if *id == of => Some(reason.clone()),
            _ => None,
        })
    }
}

impl Rig {
    pub(crate) fn host(&self) -> Host {
        // The address of a test before this one may take a moment to be free.
        let deadline = patience();
        loop {
            match self.server.listen(&self.address) {
                Ok(endpoint) => {
                    return Host {
                        endpoint,
                        events: VecDeque::new(),
                    };
                }
                Err(error) if Instant::now() >= deadline => panic!("cannot listen: {error}"),
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    /// A control connection and its name at the host.
    pub(crate) fn control(&self, host: &mut Host) -> (Box<dyn ControlConnection>, ConnectionId) {
        self.control_of(host, OPTIONS)
    }

    pub(crate) fn control_of(
        &self,
        host: &mut Host,
        options: ControlOptions,
    ) -> (Box<dyn ControlConnection>, ConnectionId) {
        let address = host.endpoint.address();
        std::thread::scope(|scope| {
            let client = scope.spawn(|| {
                self.client
                    .connect_control(&address, b"control", options, patience())
            });
            let (request, private) = host.request();
            assert!(private.starts_with(b"control"));
            let id = host
                .endpoint
                .accept_control(request, options)
                .expect("accept_control");
            // Some networks need the host to go on until the client stands.
            host.established(id);
            (client.join().expect("no panic").expect("connect_control"), id)
        })
    }

    /// A data connection and its name at the host.
    pub(crate) fn data(
        &self,
        host: &mut Host,
        domain: &Arc<dyn Domain>,
        reads_max: u32,
    ) -> (Box<dyn DataConnection>, ConnectionId) {
        let address = host.endpoint.address();
        std::thread::scope(|scope| {
            let client = scope.spawn(|| self.client.connect_data(&address, b"data", reads_max, patience()));
            let (request, _) = host.request();
            let id = host
                .endpoint
                .accept_data(request, &**domain)
                .expect("accept_data");
            host.established(id);
            (client.join().expect("no panic").expect("connect_data"), id)
        })
    }

    pub(crate) fn region(&self, len: usize) -> Region {
        self.client.allocate(len).expect("allocate")
    }

    pub(crate) fn domain(&self) -> Arc<dyn Domain> {
        self.server.domain().expect("domain")
    }
}

/// Bytes that differ from place to place and from seed to seed.
pub(crate) fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
        .collect()
}

/// Memory that a server can register, filled with a pattern.
pub(crate) fn served(seed: u64, len: usize) -> Arc<Memory> {
    let memory = Memory::new(len, MemoryKind::SharedReadOnly).expect("memory");
    memory.write(0, &pattern(seed, len));
    Arc::new(memory)
}

pub(crate) fn register(domain: &Arc<dyn Domain>, memory: &Arc<Memory>) -> (Box<dyn Registration>, RemoteRef) {
    let registration = domain.register(Arc::clone(memory)).expect("register");
    let remote = registration.remote();
    (registration, remote)
}

pub(crate) fn bytes_of(region: &Region, offset: usize, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    region.memory().read(offset, &mut out);
    out
}

/// One piece, of the only region of a post.
pub(crate) fn piece(offset: usize, len: usize) -> [Scatter; SCATTER_MAX] {
    [Scatter::new(0, offset, len), Scatter::default()]
}

pub(crate) fn post_one(
    data: &mut Box<dyn DataConnection>,
    number: u64,
    from: RemoteRef,
    to: [Scatter; SCATTER_MAX],
    region: &Region,
) -> Result<(), FabricError> {
    let read = Read {
        number,
        from,
        to,
        signaled: true,
    };
    data.post(&[read], &[region])
}

/// Takes `count` completions, the host going on meanwhile.
pub(crate) fn completions(
    host: &mut Host,
    data: &mut Box<dyn DataConnection>,
    count: usize,
) -> Vec<ReadCompletion> {
    let deadline = patience();
    let mut got = Vec::new();
    while got.len() < count {
        assert!(Instant::now() < deadline, "only {got:?} of {count} completions");
        host.pump();
        if data
            .wait(Instant::now() + Duration::from_millis(2))
            .expect("wait")
        {
            data.poll(&mut got).expect("poll");
        }
    }
    assert_eq!(got.len(), count, "more completions than asked for: {got:?}");
    got
}

/// Carries out one READ.
pub(crate) fn read_one(
    host: &mut Host,
    data: &mut Box<dyn DataConnection>,
    from: RemoteRef,
    to: [Scatter; SCATTER_MAX],
    region: &Region,
) -> ReadStatus {
    post_one(data, 77, from, to, region).expect("post");
    let done = completions(host, data, 1);
    assert_eq!(done[0].number, 77);
    done[0].status
}

/// Carries out READs until one fails, as it must within some time; its status, or `None` if a post failed.
pub(crate) fn read_until_failure(
    host: &mut Host,
    data: &mut Box<dyn DataConnection>,
    from: RemoteRef,
    to: [Scatter; SCATTER_MAX],
    region: &Region,
) -> Option<ReadStatus> {
    let deadline = patience();
    while Instant::now() < deadline {
        match post_one(data, 78, from, to, region) {
            Ok(()) => {}
            Err(FabricError::Closed(_)) => return None,
            Err(error) => panic!("post: {error}"),
        }
        match completions(host, data, 1)[0].status {
            ReadStatus::Success => {}
            failure => return Some(failure),
        }
    }
    panic!("READs went on for {PATIENCE:?}");
}

/// The next thing that happens on a control connection, the host going on meanwhile.
pub(crate) fn control_event(
    host: &mut Host,
    control: &mut Box<dyn ControlConnection>,
    pending: &mut VecDeque<ControlEvent>,
) -> Result<ControlEvent, FabricError> {
    let deadline = patience();
    loop {
        if let Some(event) = pending.pop_front() {
            return Ok(event);
        }
        assert!(
            Instant::now() < deadline,
            "nothing happens on the control connection"
        );
        host.pump();
        let mut events = Vec::new();
        if readable(control.fd(), Duration::from_millis(2)) {
            control.poll(&mut events)?;
        }
        pending.extend(events);
    }
}

/// `count` frames that arrive on a control connection, and nothing else.
pub(crate) fn frames(
    host: &mut Host,
    control: &mut Box<dyn ControlConnection>,
    count: usize,
) -> Vec<Vec<u8>> {
    let mut pending = VecDeque::new();
    let got = (0..count)
        .map(|_| match control_event(host, control, &mut pending) {
            Ok(ControlEvent::Frame(frame)) => frame,
            other => panic!("{other:?} instead of a frame"),
        })
        .collect();
    assert!(pending.is_empty(), "more than {count} frames");
    got
}

/// Waits for the end of a control connection; frames before it are returned.
pub(crate) fn control_end(host: &mut Host, control: &mut Box<dyn ControlConnection>) -> Vec<ControlEvent> {
    let mut events = Vec::new();
    let mut pending = VecDeque::new();
    loop {
        match control_event(host, control, &mut pending) {
            Ok(event) => events.push(event),
            Err(FabricError::Closed(_)) => return events,
            Err(error) => panic!("{error} instead of an end"),
        }
    }
}
