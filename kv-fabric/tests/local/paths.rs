//! Sockets as files.

use std::os::unix::fs::{FileTypeExt, PermissionsExt};

use kv_fabric::Fabric;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};

use crate::common::*;

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
