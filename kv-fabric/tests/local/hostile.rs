//! Peers that do not keep to the messages.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kv_fabric::{Endpoint, EndpointEvent, Fabric, FabricError, ReadStatus};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType};

use crate::common::*;

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
fn hung_up(endpoint: &mut Box<dyn Endpoint>, socket: &OwnedFd) -> bool {
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
        let id = endpoint.accept_data(request, &*domain).expect("accept");
        for packet in packets {
            say(&socket, packet);
        }
        find(&mut endpoint, |event| {
            matches!(event, EndpointEvent::Closed(of, _) if of == id).then_some(())
        });
        endpoint.destroy(id).expect("destroy");
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
    assert!(!readable(&*endpoint, Duration::from_millis(50)), "it spins");
    drop(socket);
    assert!(readable(&*endpoint, PATIENCE));
    endpoint.poll(&mut Vec::new()).expect("poll");
    assert!(!readable(&*endpoint, Duration::from_millis(50)), "it spins");
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
    endpoint.accept_data(request, &*domain).expect("accept");
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

fn passed_descriptor(endpoint: &mut Box<dyn Endpoint>, socket: &OwnedFd) -> OwnedFd {
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
