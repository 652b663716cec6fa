//! What only `local` has: paths, descriptors that only read, memory that comes back, wild packets.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kv_fabric::local::{Data, Endpoint as LocalEndpoint, Local, Region};
use kv_fabric::{
    ConnectionId, ControlConnection, ControlOptions, DataConnection, Domain, Endpoint, EndpointEvent, Fabric,
    FabricError, Memory, MemoryKind, Read, ReadStatus, Registration, RemoteRef, Scatter,
};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType};

const PATIENCE: Duration = Duration::from_secs(20);
const OPTIONS: ControlOptions = ControlOptions {
    receives: 8,
    frame_bytes: 256,
};

struct Place {
    folder: tempfile::TempDir,
    local: Local,
}

impl Place {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().expect("a folder"),
            local: Local::new().expect("local"),
        }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    fn address(&self) -> String {
        self.path().to_str().expect("text").to_owned()
    }

    fn listen(&self) -> LocalEndpoint {
        self.local.listen(&self.address()).expect("listen")
    }
}

fn patience() -> Instant {
    Instant::now() + PATIENCE
}

fn error_of<T>(result: Result<T, FabricError>) -> String {
    result.err().expect("an error").to_string()
}

/// Polls until `pick` takes an event.
fn find<T>(endpoint: &mut LocalEndpoint, pick: impl Fn(EndpointEvent) -> Option<T>) -> T {
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

fn data(
    place: &Place,
    endpoint: &mut LocalEndpoint,
    domain: &kv_fabric::local::Domain,
) -> (Data, ConnectionId) {
    std::thread::scope(|scope| {
        let address = place.address();
        let client = scope.spawn(move || place.local.connect_data(&address, b"", 64, patience()));
        let request = find(endpoint, |event| match event {
            EndpointEvent::Request { request, .. } => Some(request),
            _ => None,
        });
        let id = endpoint.accept_data(request, domain).expect("accept");
        (client.join().expect("no panic").expect("connect"), id)
    })
}

fn read(
    endpoint: &mut LocalEndpoint,
    data: &mut Data,
    from: RemoteRef,
    to: &Region,
    len: usize,
) -> ReadStatus {
    let to = [Scatter {
        region: to,
        offset: 0,
        len,
    }];
    let read = Read {
        number: 1,
        from,
        to: &to,
        signaled: true,
    };
    data.post(&[read]).expect("post");
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

fn shared(len: usize) -> Arc<Memory> {
    Arc::new(Memory::new(len, MemoryKind::SharedReadOnly).expect("memory"))
}

#[test]
fn socket_file_has_its_mode_and_is_removed() {
    let place = Place::new();
    let endpoint = place.listen();
    let metadata = std::fs::symlink_metadata(place.path()).expect("a file");
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o777, 0o660);
    assert_eq!(endpoint.address(), place.address());
    drop(endpoint);
    assert!(!place.path().exists());
}

#[test]
fn dead_servers_socket_is_replaced_and_a_live_ones_is_not() {
    let place = Place::new();
    // A server that was killed leaves its file.
    let dead = rustix::net::socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).expect("socket");
    rustix::net::bind(&dead, &SocketAddrUnix::new(place.path()).expect("address")).expect("bind");
    rustix::net::listen(&dead, 1).expect("listen");
    drop(dead);
    assert!(place.path().exists());
    let live = place.listen();
    let text = error_of(place.local.listen(&place.address()));
    assert!(
        text.contains("address in use") && text.contains(&place.address()),
        "{text}"
    );
    drop(live);
    // A file of another server, put there since, is not removed by the first.
    let first = place.listen();
    std::fs::remove_file(place.path()).expect("remove");
    let second = place.listen();
    drop(first);
    assert!(place.path().exists());
    drop(second);
    assert!(!place.path().exists());
}

#[test]
fn one_of_many_that_start_at_once_listens() {
    for _ in 0..30 {
        let place = Place::new();
        let dead = rustix::net::socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).expect("socket");
        rustix::net::bind(&dead, &SocketAddrUnix::new(place.path()).expect("address")).expect("bind");
        drop(dead);
        let endpoints: Vec<_> = std::thread::scope(|scope| {
            let starting: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| place.local.listen(&place.address()).ok()))
                .collect();
            starting
                .into_iter()
                .filter_map(|thread| thread.join().expect("no panic"))
                .collect()
        });
        assert_eq!(endpoints.len(), 1);
        assert!(place.path().exists());
    }
}

#[test]
fn odd_addresses_are_refused_in_words() {
    let place = Place::new();
    let long = place.folder.path().join("x".repeat(120));
    let long = long.to_str().expect("text");
    for result in [
        error_of(place.local.listen(long)),
        error_of(place.local.connect_control(long, b"", OPTIONS, patience())),
    ] {
        assert!(
            result.contains("at most 107 bytes") && result.contains("shorter"),
            "{result}"
        );
    }
    std::fs::write(place.path(), b"precious").expect("write");
    let text = error_of(place.local.listen(&place.address()));
    assert!(text.contains("no socket"), "{text}");
    assert_eq!(std::fs::read(place.path()).expect("read"), b"precious");
    let missing = place.folder.path().join("none").join("socket");
    let text = error_of(place.local.listen(missing.to_str().expect("text")));
    assert!(text.contains("No such file"), "{text}");
    assert!(place.local.listen("").is_err());
    assert!(place.local.listen("a\0b").is_err());
    let text = error_of(place.local.connect_control(
        missing.to_str().expect("text"),
        b"",
        OPTIONS,
        patience(),
    ));
    assert!(text.contains("is the server running?"), "{text}");
}

#[test]
fn only_sealed_memory_is_registered() {
    let place = Place::new();
    let domain = place.local.domain().expect("domain");
    for kind in [MemoryKind::Private, MemoryKind::SharedWritable] {
        let memory = Arc::new(Memory::new(4096, kind).expect("memory"));
        let text = error_of(domain.register(memory));
        assert!(text.contains("SharedReadOnly"), "{text}");
    }
    domain.register(shared(4096)).expect("register");
}

/// A registration's memory is free once its readers have polled: nobody holds it, nobody maps it.
#[test]
fn memory_of_a_dropped_registration_comes_back() {
    // Of a size that no other test maps, so that it can be told apart in this process's mappings.
    const LEN: usize = 37 * 4096;
    let mapped = || {
        let maps = std::fs::read_to_string("/proc/self/maps").expect("maps");
        maps.lines()
            .filter(|line| line.contains("memfd:verbs-kv"))
            .filter(|line| {
                let (start, end) = line
                    .split(' ')
                    .next()
                    .and_then(|range| range.split_once('-'))
                    .expect("a range");
                let number = |text| usize::from_str_radix(text, 16).expect("an address");
                number(end) - number(start) == LEN
            })
            .count()
    };
    let place = Place::new();
    let mut endpoint = place.listen();
    let domain = place.local.domain().expect("domain");
    let memory = shared(LEN);
    let watch = Arc::downgrade(&memory);
    let registration = domain.register(memory).expect("register");
    let mut readers: Vec<_> = (0..3).map(|_| data(&place, &mut endpoint, &domain).0).collect();
    let region = place.local.allocate(LEN).expect("allocate");
    for reader in &mut readers {
        let status = read(&mut endpoint, reader, registration.remote(), &region, LEN);
        assert_eq!(status, ReadStatus::Success);
    }
    assert_eq!(
        mapped(),
        2,
        "the server's mapping, and one that the readers share"
    );
    drop(registration);
    assert!(watch.upgrade().is_none(), "the server lets go at once");
    let deadline = patience();
    while mapped() > 0 {
        assert!(Instant::now() < deadline, "the readers keep it");
        endpoint.poll(&mut Vec::new()).expect("poll");
        for reader in &mut readers {
            let mut done = Vec::new();
            reader.poll(&mut done).expect("poll");
            assert!(done.is_empty());
        }
    }
    // They go on reading what else there is.
    let next = domain.register(shared(4096)).expect("register");
    for reader in &mut readers {
        let status = read(&mut endpoint, reader, next.remote(), &region, 4096);
        assert_eq!(status, ReadStatus::Success);
    }
}

/// Memory that was retired, and a server that is gone, do not fault under a reader.
#[test]
fn retired_memory_can_be_read_until_it_is_unmapped() {
    let place = Place::new();
    let mut endpoint = place.listen();
    let domain = place.local.domain().expect("domain");
    let memory = shared(8192);
    memory.write(0, &[7; 8192]);
    let registration = domain.register(memory).expect("register");
    let (mut reader, _) = data(&place, &mut endpoint, &domain);
    let region = place.local.allocate(8192).expect("allocate");
    let remote = registration.remote();
    assert_eq!(
        read(&mut endpoint, &mut reader, remote, &region, 8192),
        ReadStatus::Success
    );
    drop(registration);
    drop(domain);
    drop(endpoint);
    let to = [Scatter {
        region: &region,
        offset: 0,
        len: 8192,
    }];
    let read = || Read {
        number: 1,
        from: remote,
        to: &to,
        signaled: true,
    };
    let deadline = patience();
    let mut done = Vec::new();
    while reader.post(&[read()]).is_ok() {
        assert!(Instant::now() < deadline, "the server's end is not noticed");
        reader.poll(&mut done).expect("poll");
    }
    let failures = done
        .iter()
        .filter(|done| done.status != ReadStatus::Success)
        .count();
    assert!(failures <= 1, "{done:?}");
}

/// A socket of somebody who does not keep to the messages.
fn stranger(path: &Path) -> OwnedFd {
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .expect("socket");
    rustix::net::connect(&socket, &SocketAddrUnix::new(path).expect("address")).expect("connect");
    socket
}

fn say(socket: &OwnedFd, bytes: &[u8]) {
    rustix::net::send(socket, bytes, SendFlags::NOSIGNAL).expect("send");
}

/// Whether the server has hung up on a stranger.
fn hung_up(endpoint: &mut LocalEndpoint, socket: &OwnedFd) -> bool {
    let deadline = patience();
    let mut buffer = [0; 512];
    while Instant::now() < deadline {
        endpoint.poll(&mut Vec::new()).expect("poll");
        match rustix::net::recv(socket, &mut buffer[..], RecvFlags::DONTWAIT) {
            Ok((0, _)) => return true,
            Err(rustix::io::Errno::AGAIN) => std::thread::sleep(Duration::from_millis(1)),
            Ok(_) | Err(rustix::io::Errno::CONNRESET) => {}
            Err(error) => panic!("{}", io::Error::from(error)),
        }
    }
    false
}

#[test]
fn wild_packets_end_only_their_connection() {
    let place = Place::new();
    let mut endpoint = place.listen();
    let domain = place.local.domain().expect("domain");
    let registration = domain.register(shared(4096)).expect("register");
    let (mut good, _) = data(&place, &mut endpoint, &domain);
    let connect: &[u8] = &[1, 1];
    // Before it is a connection: no message, another version, a frame, more than a message may have.
    for bytes in [&[0xFF; 9][..], &[1, 9, 9], &[5, 1, 2], &[5; 100_000]] {
        let socket = stranger(&place.path());
        say(&socket, bytes);
        assert!(hung_up(&mut endpoint, &socket), "{} bytes", bytes.len());
    }
    // As a data connection: a frame, half a message, a server's message, the same memory twice.
    let rkey = registration.remote().rkey.to_le_bytes();
    let map = [&[7], &rkey[..]].concat();
    for packets in [
        &[&[5, 1, 2][..]][..],
        &[&[7, 1]],
        &[&[8, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]],
        &[&map, &map],
    ] {
        let socket = stranger(&place.path());
        say(&socket, connect);
        let request = find(&mut endpoint, |event| match event {
            EndpointEvent::Request { request, .. } => Some(request),
            _ => None,
        });
        let id = endpoint.accept_data(request, &domain).expect("accept");
        for packet in packets {
            say(&socket, packet);
        }
        find(&mut endpoint, |event| {
            matches!(event, EndpointEvent::Closed(of, _) if of == id).then_some(())
        });
        endpoint.destroy(id);
        assert!(hung_up(&mut endpoint, &socket));
    }
    let region = place.local.allocate(4096).expect("allocate");
    let status = read(&mut endpoint, &mut good, registration.remote(), &region, 4096);
    assert_eq!(status, ReadStatus::Success);
}

/// What a request says before it is answered is not read, and its end is not missed.
#[test]
fn unanswered_request_neither_spins_nor_stays() {
    let place = Place::new();
    let mut endpoint = place.listen();
    let socket = stranger(&place.path());
    say(&socket, &[1, 1]);
    let request = find(&mut endpoint, |event| match event {
        EndpointEvent::Request { request, .. } => Some(request),
        _ => None,
    });
    say(&socket, &[5, 1, 2, 3]);
    assert!(!readable(&endpoint, Duration::from_millis(50)), "it spins");
    drop(socket);
    assert!(readable(&endpoint, PATIENCE));
    endpoint.poll(&mut Vec::new()).expect("poll");
    assert!(!readable(&endpoint, Duration::from_millis(50)), "it spins");
    assert!(matches!(
        endpoint.accept_control(request, OPTIONS),
        Err(FabricError::Closed(_))
    ));
}

#[test]
fn crowd_that_says_nothing_is_bounded() {
    let place = Place::new();
    let mut endpoint = place.listen();
    let mut crowd = Vec::new();
    for _ in 0..200 {
        crowd.push(stranger(&place.path()));
        endpoint.poll(&mut Vec::new()).expect("poll");
    }
    assert!(hung_up(&mut endpoint, &crowd[0]), "the oldest goes");
    let mut buffer = [0; 8];
    let newest = rustix::net::recv(&crowd[199], &mut buffer[..], RecvFlags::DONTWAIT);
    assert!(matches!(newest, Err(rustix::io::Errno::AGAIN)), "{newest:?}");
    say(&crowd[199], &[1, 1]);
    find(&mut endpoint, |event| {
        matches!(event, EndpointEvent::Request { .. }).then_some(())
    });
}

fn readable(endpoint: &LocalEndpoint, wait: Duration) -> bool {
    let timeout = rustix::event::Timespec {
        tv_sec: wait.as_secs().cast_signed(),
        tv_nsec: wait.subsec_nanos().into(),
    };
    let fd = endpoint.fd();
    let mut fds = [rustix::event::PollFd::new(&fd, rustix::event::PollFlags::IN)];
    rustix::event::poll(&mut fds, Some(&timeout)).expect("poll") > 0
}

/// The descriptor that a reader is handed cannot be mapped, reopened or written for changing the memory (I3).
#[test]
fn handed_out_descriptor_only_reads() {
    use rustix::fs::{Mode, OFlags};
    use std::os::fd::AsRawFd;

    let place = Place::new();
    let mut endpoint = place.listen();
    let domain = place.local.domain().expect("domain");
    let memory = shared(4096);
    let registration = domain.register(Arc::clone(&memory)).expect("register");
    let socket = stranger(&place.path());
    say(&socket, &[1, 1]);
    let request = find(&mut endpoint, |event| match event {
        EndpointEvent::Request { request, .. } => Some(request),
        _ => None,
    });
    endpoint.accept_data(request, &domain).expect("accept");
    let rkey = registration.remote().rkey.to_le_bytes();
    say(&socket, &[&[7], &rkey[..]].concat());
    let passed = passed_descriptor(&mut endpoint, &socket);
    let flags = rustix::fs::fcntl_getfl(&passed).expect("fcntl");
    assert_eq!(flags & OFlags::RWMODE, OFlags::RDONLY);
    assert!(rustix::io::pwrite(&passed, b"x", 0).is_err());
    let path = format!("/proc/self/fd/{}", passed.as_raw_fd());
    if let Ok(writable) = rustix::fs::open(path, OFlags::RDWR, Mode::empty()) {
        assert!(rustix::io::pwrite(&writable, b"x", 0).is_err());
        assert!(rustix::fs::ftruncate(&writable, 0).is_err());
        let mode = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
        assert!(rustix::fs::fallocate(&writable, mode, 0, 4096).is_err());
    }
    memory.write(0, b"still ours");
    let mut seen = [0; 10];
    rustix::io::pread(&passed, &mut seen[..], 0).expect("pread");
    assert_eq!(&seen, b"still ours");
}

fn passed_descriptor(endpoint: &mut LocalEndpoint, socket: &OwnedFd) -> OwnedFd {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage};

    let deadline = patience();
    loop {
        assert!(Instant::now() < deadline, "no descriptor comes");
        endpoint.poll(&mut Vec::new()).expect("poll");
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut bytes = [0; 64];
        let mut parts = [io::IoSliceMut::new(&mut bytes)];
        let received = rustix::net::recvmsg(socket.as_fd(), &mut parts, &mut control, RecvFlags::DONTWAIT);
        if received.is_err() {
            std::thread::sleep(Duration::from_millis(1));
            continue;
        }
        let found = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        if let Some(fd) = found {
            return fd;
        }
    }
}

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
                endpoint.accept_data(request, &domain).expect("accept");
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
            .args(["--exact", "a_killed_server_is_noticed_and_replaced"])
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
fn read_of(place: &Place) -> (kv_fabric::local::Control, Data, RemoteRef, Region) {
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
    kv_fabric::Region::memory(&region).read(0, &mut seen);
    assert_eq!(seen, [7; 8192]);
    (control, data, remote, region)
}

fn post_all(data: &mut Data, from: RemoteRef, region: &Region) -> Result<(), FabricError> {
    data.post(&[Read {
        number: 1,
        from,
        to: &[Scatter {
            region,
            offset: 0,
            len: 8192,
        }],
        signaled: true,
    }])
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
