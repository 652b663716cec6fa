//! What is shared, and that it comes back.

use std::sync::Arc;
use std::time::Instant;

use kv_fabric::{Fabric, Memory, MemoryKind, Read, ReadStatus, Scatter};

use crate::common::*;

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
    let read = || Read {
        number: 1,
        from: remote,
        to: [Scatter::new(0, 0, 8192), Scatter::default()],
        signaled: true,
    };
    let deadline = patience();
    let mut done = Vec::new();
    while reader.post(&[read()], &[&region]).is_ok() {
        assert!(Instant::now() < deadline, "the server's end is not noticed");
        reader.poll(&mut done).expect("poll");
    }
    let failures = done
        .iter()
        .filter(|done| done.status != ReadStatus::Success)
        .count();
    assert!(failures <= 1, "{done:?}");
}

/// The memory of a server that has gone is still mapped, and another server may answer overwrites by now.
#[test]
fn no_read_succeeds_once_the_server_has_been_gone_for_long() {
    let place = Place::new();
    let mut endpoint = place.listen();
    let domain = place.local.domain().expect("domain");
    let registration = domain.register(shared(4096)).expect("register");
    let (mut reader, _) = data(&place, &mut endpoint, &domain);
    let region = place.local.allocate(4096).expect("allocate");
    let status = read(&mut endpoint, &mut reader, registration.remote(), &region, 4096);
    assert_eq!(status, ReadStatus::Success);
    drop(endpoint);
    std::thread::sleep(place.local.outlives());
    let reads = [1, 2].map(|number| Read {
        number,
        from: registration.remote(),
        to: [Scatter::new(0, 0, 4096), Scatter::default()],
        signaled: true,
    });
    reader.post(&reads, &[&region]).expect("post");
    let mut done = Vec::new();
    reader.poll(&mut done).expect("poll");
    let statuses: Vec<_> = done.iter().map(|end| end.status).collect();
    assert_eq!(statuses, [ReadStatus::PeerGone, ReadStatus::Flushed]);
}
