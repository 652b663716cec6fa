//! READs: bytes, order, limits, rights and ends.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kv_fabric::local::Local;
use kv_fabric::{DataCounters, Domain, Fabric, FabricError, Read, ReadStatus, RemoteRef, Scatter};

use crate::rig::{
    PATIENCE, QUIET, Rig, bytes_of, completions, patience, pattern, piece, post_one, read_one,
    read_until_failure, register, served,
};

const MEMORY: usize = 1 << 20;

pub(crate) fn reads_scatter_the_right_bytes(rig: &Rig) {
    let mut host = rig.host();
    let domain = rig.domain();
    let memory = served(1, MEMORY);
    let (_registration, remote) = register(&domain, &memory);
    let (mut data, _) = rig.data(&mut host, &domain, 16);
    let expected = pattern(1, MEMORY);
    let a = rig.region(1 << 16);
    let b = rig.region(1 << 16);
    for (case, lens) in [[1, 0], [64, 4096], [3, 5000], [71, 30_001]]
        .into_iter()
        .enumerate()
    {
        for from in [0, 1, 4095, MEMORY - lens.iter().sum::<usize>()] {
            for region in [&a, &b] {
                region.memory().write(0, &[0xAA; 1 << 16]);
            }
            let at = 5 + case;
            let to = [
                Scatter::new(0, at, lens[0]),
                Scatter::new(1, at + lens[0] + 3, lens[1]),
            ];
            let read = Read {
                number: 1,
                from: remote.offset(from as u64),
                to,
                signaled: true,
            };
            data.post(&[read], &[&a, &b]).expect("post");
            assert_eq!(
                completions(&mut host, &mut data, 1)[0].status,
                ReadStatus::Success
            );
            let mut want = from;
            let (mut expect_a, mut expect_b) = (vec![0xAA; 1 << 16], vec![0xAA; 1 << 16]);
            for (i, piece) in to.iter().enumerate() {
                let expect = if i % 2 == 0 { &mut expect_a } else { &mut expect_b };
                let len = piece.len as usize;
                expect[piece.offset..][..len].copy_from_slice(&expected[want..][..len]);
                want += len;
            }
            assert_eq!(bytes_of(&a, 0, 1 << 16), expect_a, "{lens:?} from {from}");
            assert_eq!(bytes_of(&b, 0, 1 << 16), expect_b, "{lens:?} from {from}");
        }
    }
}

pub(crate) fn sparse_signals_cover_what_came_before(rig: &Rig) {
    const COUNT: usize = 32;
    const LEN: usize = 1500;
    let mut host = rig.host();
    let domain = rig.domain();
    let memory = served(2, MEMORY);
    let (_registration, remote) = register(&domain, &memory);
    let (mut data, _) = rig.data(&mut host, &domain, COUNT as u32);
    let region = rig.region(COUNT * LEN);
    for every in [1, 5, COUNT] {
        region.memory().write(0, &vec![0; COUNT * LEN]);
        let signaled = |i: usize| (i + 1).is_multiple_of(every) || i + 1 == COUNT;
        let reads: Vec<_> = (0..COUNT)
            .map(|i| Read {
                number: 100 + i as u64,
                from: remote.offset((i * 7 * LEN) as u64),
                to: piece(i * LEN, LEN),
                signaled: signaled(i),
            })
            .collect();
        data.post(&reads, &[&region]).expect("post");
        let expected: Vec<_> = (0..COUNT).filter(|&i| signaled(i)).collect();
        let got = completions(&mut host, &mut data, expected.len());
        for (completion, &i) in got.iter().zip(&expected) {
            assert_eq!(completion.number, 100 + i as u64, "in the order posted");
            assert_eq!(completion.status, ReadStatus::Success);
        }
        let bytes = pattern(2, MEMORY);
        for i in 0..COUNT {
            assert_eq!(
                bytes_of(&region, i * LEN, LEN),
                bytes[i * 7 * LEN..][..LEN],
                "READ {i}"
            );
        }
    }
}

/// A completion says that its bytes and all before it are there, not that they will be.
pub(crate) fn completions_come_after_their_bytes(rig: &Rig) {
    const COUNT: usize = 16;
    const LEN: usize = 20_000;
    let mut host = rig.host();
    let domain = rig.domain();
    let memory = served(3, MEMORY);
    let (_registration, remote) = register(&domain, &memory);
    let (mut data, _) = rig.data(&mut host, &domain, COUNT as u32);
    let region = rig.region(COUNT * LEN);
    let bytes = pattern(3, MEMORY);
    for _ in 0..8 {
        region.memory().write(0, &vec![0; COUNT * LEN]);
        let reads: Vec<_> = (0..COUNT)
            .map(|i| Read {
                number: i as u64,
                from: remote.offset((i * LEN) as u64),
                to: piece(i * LEN, LEN),
                signaled: true,
            })
            .collect();
        data.post(&reads, &[&region]).expect("post");
        let mut done = Vec::new();
        let deadline = patience();
        while done.len() < COUNT {
            assert!(Instant::now() < deadline);
            host.pump();
            let before = done.len();
            data.wait(Instant::now() + Duration::from_millis(2))
                .expect("wait");
            data.poll(&mut done).expect("poll");
            if let Some(last) = done.last().filter(|_| done.len() > before) {
                let there = (last.number as usize + 1) * LEN;
                assert_eq!(bytes_of(&region, 0, there), bytes[..there]);
            }
        }
    }
}

pub(crate) fn room_is_kept(rig: &Rig) {
    let mut host = rig.host();
    let domain = rig.domain();
    let memory = served(4, 4096);
    let (_registration, remote) = register(&domain, &memory);
    let (mut data, _) = rig.data(&mut host, &domain, 8);
    assert_eq!(data.room(), 8);
    let region = rig.region(4096);
    let to = piece(0, 64);
    let read = |number, signaled| Read {
        number,
        from: remote,
        to,
        signaled,
    };
    let batch: Vec<_> = (0..8).map(|i| read(i, i == 5)).collect();
    data.post(&batch, &[&region]).expect("post");
    assert_eq!(data.room(), 0);
    let before = data.counters();
    assert!(matches!(
        data.post(&[read(9, true)], &[&region]),
        Err(FabricError::Busy(_))
    ));
    assert_eq!(data.counters(), before, "nothing was posted");
    assert_eq!(completions(&mut host, &mut data, 1)[0].number, 5);
    // What was posted unsignaled after the completion is not known to have ended.
    assert_eq!(data.room(), 6);
    assert!(matches!(
        data.post(
            &(10..17).map(|i| read(i, i == 16)).collect::<Vec<_>>(),
            &[&region]
        ),
        Err(FabricError::Busy(_))
    ));
    data.post(&[read(17, true)], &[&region]).expect("post");
    assert_eq!(completions(&mut host, &mut data, 1)[0].number, 17);
    assert_eq!(data.room(), 8);
    assert!(matches!(
        data.post(&(0..9).map(|i| read(i, true)).collect::<Vec<_>>(), &[&region]),
        Err(FabricError::Busy(_))
    ));
    assert_eq!(data.room(), 8);
}

pub(crate) fn counters_are_exact(rig: &Rig) {
    let mut host = rig.host();
    let domain = rig.domain();
    let memory = served(5, 4096);
    let (_registration, remote) = register(&domain, &memory);
    let (mut data, _) = rig.data(&mut host, &domain, 8);
    assert_eq!(data.counters(), DataCounters::default());
    let region = rig.region(4096);
    let (short, long) = (
        piece(0, 64),
        [Scatter::new(0, 0, 1000), Scatter::new(0, 1000, 24)],
    );
    let read = |to, signaled| Read {
        number: 0,
        from: remote,
        to,
        signaled,
    };
    data.post(
        &[read(short, false), read(long, false), read(short, true)],
        &[&region],
    )
    .expect("post");
    completions(&mut host, &mut data, 1);
    data.post(&[read(long, true)], &[&region]).expect("post");
    completions(&mut host, &mut data, 1);
    let expected = DataCounters {
        reads: 4,
        doorbells: 2,
        bytes: 64 + 1024 + 64 + 1024,
    };
    assert_eq!(data.counters(), expected);
}

pub(crate) fn malformed_posts_are_refused(rig: &Rig) {
    let mut host = rig.host();
    let domain = rig.domain();
    let memory = served(6, 4096);
    let (_registration, remote) = register(&domain, &memory);
    let (mut data, _) = rig.data(&mut host, &domain, 8);
    let region = rig.region(4096);
    let good = piece(0, 64);
    let bad = [
        piece(0, 0),
        piece(4090, 7),
        piece(usize::MAX, 2),
        [Scatter::new(0, 0, 0), Scatter::new(0, 0, 8)],
        [Scatter::new(0, 0, 8), Scatter::new(0, 4090, 7)],
        // There is no such region.
        [Scatter::new(1, 0, 8), Scatter::default()],
        [Scatter::new(0, 0, 8), Scatter::new(u32::MAX, 0, 8)],
    ];
    for to in bad {
        let reads = [(1, good), (2, to)].map(|(number, to)| Read {
            number,
            from: remote,
            to,
            signaled: true,
        });
        match data.post(&reads, &[&region]) {
            Err(FabricError::Post { posted: 0, .. }) => {}
            other => panic!("{other:?} for {to:?}"),
        }
    }
    assert_eq!(data.counters(), DataCounters::default(), "nothing was posted");
    assert_eq!(
        read_one(&mut host, &mut data, remote, good, &region),
        ReadStatus::Success
    );
}

pub(crate) fn longest_read_passes(rig: &Rig) {
    let len = rig.client.read_max_bytes();
    assert!(len >= 1 << 20, "an extent is read in few pieces");
    let mut host = rig.host();
    let domain = rig.domain();
    let memory = served(7, len);
    let (_registration, remote) = register(&domain, &memory);
    let (mut data, _) = rig.data(&mut host, &domain, 4);
    let region = rig.region(len + 1);
    let half = len / 2 + 1;
    let to = [Scatter::new(0, 0, half), Scatter::new(0, half, len - half)];
    assert_eq!(
        read_one(&mut host, &mut data, remote, to, &region),
        ReadStatus::Success
    );
    assert!(bytes_of(&region, 0, len) == pattern(7, len), "the bytes differ");
    let longer = piece(0, len + 1);
    let refused = post_one(&mut data, 1, remote, longer, &region);
    assert!(
        matches!(refused, Err(FabricError::Post { posted: 0, .. })),
        "{refused:?}"
    );
}

pub(crate) fn changes_are_seen(rig: &Rig) {
    let mut host = rig.host();
    let domain = rig.domain();
    let memory = served(8, 8192);
    let (_registration, remote) = register(&domain, &memory);
    let (mut data, _) = rig.data(&mut host, &domain, 4);
    let region = rig.region(8192);
    let to = piece(0, 8192);
    for seed in 0..10 {
        memory.write(0, &pattern(seed, 8192));
        assert_eq!(
            read_one(&mut host, &mut data, remote, to, &region),
            ReadStatus::Success
        );
        assert_eq!(bytes_of(&region, 0, 8192), pattern(seed, 8192));
    }
}

/// The server has no part in a READ once its memory is known.
pub(crate) fn reads_need_no_server(rig: &Rig) {
    let mut host = rig.host();
    let domain = rig.domain();
    let memory = served(9, MEMORY);
    let (_registration, remote) = register(&domain, &memory);
    let (mut data, _) = rig.data(&mut host, &domain, 4);
    let region = rig.region(4096);
    let to = piece(0, 4096);
    assert_eq!(
        read_one(&mut host, &mut data, remote, to, &region),
        ReadStatus::Success
    );
    host.pump();
    let bytes = pattern(9, MEMORY);
    for i in 0..200_usize {
        post_one(&mut data, i as u64, remote.offset(i as u64 * 4096), to, &region).expect("post");
        let mut done = Vec::new();
        while done.is_empty() {
            assert!(
                data.wait(patience()).expect("wait"),
                "a READ waits for the server"
            );
            data.poll(&mut done).expect("poll");
        }
        assert_eq!(done[0].status, ReadStatus::Success);
        assert_eq!(bytes_of(&region, 0, 4096), bytes[i * 4096..][..4096]);
    }
    host.pump();
    assert!(host.events.is_empty(), "{:?}", host.events);
}

pub(crate) fn many_registrations_and_connections(rig: &Rig) {
    let mut host = rig.host();
    let domain = rig.domain();
    let memories: Vec<_> = (0..12).map(|i| served(20 + i, 8192)).collect();
    let registered: Vec<_> = memories.iter().map(|memory| register(&domain, memory)).collect();
    let mut keys: Vec<_> = registered.iter().map(|(_, remote)| remote.rkey).collect();
    keys.sort_unstable();
    keys.dedup();
    assert_eq!(
        keys.len(),
        registered.len(),
        "every registration has an rkey of its own"
    );
    let mut connections: Vec<_> = (0..10).map(|_| rig.data(&mut host, &domain, 16).0).collect();
    let region = rig.region(12 * 1024);
    for data in &mut connections {
        region.memory().write(0, &vec![0; 12 * 1024]);
        let reads: Vec<_> = (0..12)
            .map(|i| Read {
                number: i as u64,
                from: registered[i].1.offset(512 * i as u64),
                to: piece(i * 1024, 1024),
                signaled: i == 11,
            })
            .collect();
        data.post(&reads, &[&region]).expect("post");
        assert_eq!(completions(&mut host, data, 1)[0].status, ReadStatus::Success);
        for i in 0..12 {
            let expected = &pattern(20 + i as u64, 8192)[512 * i..][..1024];
            assert_eq!(bytes_of(&region, i * 1024, 1024), expected, "READ {i}");
        }
    }
}

/// A READ that must be refused as a matter of rights, between two that are in order.
fn refused_read(rig: &Rig, good: RemoteRef, domain: &Arc<dyn Domain>, bad: RemoteRef) {
    let mut host = rig.host();
    let (mut data, id) = rig.data(&mut host, domain, 8);
    let region = rig.region(3 * 256);
    region.memory().write(0, &[0xAA; 3 * 256]);
    let reads: Vec<_> = [good, bad, good]
        .into_iter()
        .enumerate()
        .map(|(i, from)| Read {
            number: i as u64,
            from,
            to: piece(i * 256, 256),
            signaled: i == 0,
        })
        .collect();
    data.post(&reads, &[&region]).expect("post");
    let got: Vec<_> = completions(&mut host, &mut data, 3)
        .into_iter()
        .map(|completion| (completion.number, completion.status))
        .collect();
    let expected = [
        (0, ReadStatus::Success),
        (1, ReadStatus::RemoteAccess),
        (2, ReadStatus::Flushed),
    ];
    assert_eq!(got, expected, "for {bad:?}");
    assert_eq!(bytes_of(&region, 256, 256), [0xAA; 256], "no byte came");
    let after = post_one(&mut data, 9, good, piece(0, 256), &region);
    assert!(matches!(after, Err(FabricError::Closed(_))), "{after:?}");
    host.closed(id);
    host.endpoint.destroy(id).expect("destroy");
}

pub(crate) fn unknown_rkey_is_refused(rig: &Rig) {
    let domain = rig.domain();
    let memory = served(10, 8192);
    let (_registration, good) = register(&domain, &memory);
    for flip in [1, 0x100, 0x8000_0000] {
        let bad = RemoteRef {
            rkey: good.rkey ^ flip,
            ..good
        };
        refused_read(rig, good, &domain, bad);
    }
}

pub(crate) fn another_domains_rkey_is_refused(rig: &Rig) {
    let (domain, other) = (rig.domain(), rig.domain());
    let (memory, secret) = (served(11, 8192), served(12, 8192));
    let (_registration, good) = register(&domain, &memory);
    let (_other_registration, bad) = register(&other, &secret);
    refused_read(rig, good, &domain, bad);
    // The other way round it is the other that is refused.
    refused_read(rig, bad, &other, good);
}

pub(crate) fn read_past_the_end_is_refused(rig: &Rig) {
    let domain = rig.domain();
    let memory = served(13, 8192);
    let (_registration, good) = register(&domain, &memory);
    for offset in [8192 - 255, 8192, 1 << 40, u64::MAX - 100] {
        refused_read(rig, good, &domain, good.offset(offset));
    }
}

pub(crate) fn dropped_registration_is_refused(rig: &Rig) {
    let mut host = rig.host();
    let domain = rig.domain();
    let (memory, lasting) = (served(14, 8192), served(15, 8192));
    let (registration, remote) = register(&domain, &memory);
    let (_lasting_registration, lasting_remote) = register(&domain, &lasting);
    let (mut data, id) = rig.data(&mut host, &domain, 8);
    let region = rig.region(8192);
    let to = piece(0, 8192);
    assert_eq!(
        read_one(&mut host, &mut data, remote, to, &region),
        ReadStatus::Success
    );
    assert_eq!(
        read_one(&mut host, &mut data, lasting_remote, to, &region),
        ReadStatus::Success
    );
    drop(registration);
    region.memory().write(0, &[0xAA; 8192]);
    if rig.server.fences() {
        assert_eq!(
            read_one(&mut host, &mut data, remote, to, &region),
            ReadStatus::RemoteAccess
        );
        assert_eq!(bytes_of(&region, 0, 8192), vec![0xAA; 8192], "no byte came");
    } else {
        // What comes until then is what was there: memory that is gone is not reused under a reader.
        assert_eq!(
            read_until_failure(&mut host, &mut data, remote, to, &region),
            Some(ReadStatus::RemoteAccess)
        );
    }
    host.closed(id);
    // What else the domain has can still be read.
    let (mut data, _) = rig.data(&mut host, &domain, 8);
    assert_eq!(
        read_one(&mut host, &mut data, lasting_remote, to, &region),
        ReadStatus::Success
    );
    assert_eq!(bytes_of(&region, 0, 8192), pattern(15, 8192));
    assert_eq!(
        read_one(&mut host, &mut data, remote, to, &region),
        ReadStatus::RemoteAccess
    );
}

/// The device holds registered memory, whoever else lets go of it.
pub(crate) fn registration_holds_its_memory(rig: &Rig) {
    let mut host = rig.host();
    let domain = rig.domain();
    let memory = served(16, 8192);
    let (registration, remote) = register(&domain, &memory);
    drop(memory);
    let _elsewhere = served(99, 8192);
    let (mut data, _) = rig.data(&mut host, &domain, 8);
    drop(domain);
    let region = rig.region(8192);
    let to = piece(0, 8192);
    assert_eq!(
        read_one(&mut host, &mut data, remote, to, &region),
        ReadStatus::Success
    );
    assert_eq!(bytes_of(&region, 0, 8192), pattern(16, 8192));
    drop(registration);
}

pub(crate) fn destroyed_connection_reads_no_more(rig: &Rig) {
    let mut host = rig.host();
    let domain = rig.domain();
    let memory = served(17, 8192);
    let (_registration, remote) = register(&domain, &memory);
    let (mut data, id) = rig.data(&mut host, &domain, 8);
    let (mut other, _) = rig.data(&mut host, &domain, 8);
    let region = rig.region(8192);
    let to = piece(0, 8192);
    for data in [&mut data, &mut other] {
        assert_eq!(
            read_one(&mut host, data, remote, to, &region),
            ReadStatus::Success
        );
    }
    host.endpoint.destroy(id).expect("destroy");
    if rig.server.fences() {
        // Its memory may be reused now.
        memory.write(0, &[0xEE; 8192]);
        region.memory().write(0, &[0xAA; 8192]);
        let status = match post_one(&mut data, 1, remote, to, &region) {
            Ok(()) => Some(completions(&mut host, &mut data, 1)[0].status),
            Err(FabricError::Closed(_)) => None,
            Err(error) => panic!("{error}"),
        };
        assert!(
            matches!(status, None | Some(ReadStatus::PeerGone | ReadStatus::Flushed)),
            "{status:?}"
        );
        assert_eq!(bytes_of(&region, 0, 8192), vec![0xAA; 8192], "no byte came");
    } else {
        let status = read_until_failure(&mut host, &mut data, remote, to, &region);
        assert!(
            matches!(status, None | Some(ReadStatus::PeerGone | ReadStatus::Flushed)),
            "{status:?}"
        );
    }
    assert_eq!(
        read_one(&mut host, &mut other, remote, to, &region),
        ReadStatus::Success
    );
}

pub(crate) fn vanished_endpoint_ends_reads(rig: &Rig) {
    let mut host = rig.host();
    let domain = rig.domain();
    let memory = served(18, 8192);
    let (_registration, remote) = register(&domain, &memory);
    let (mut data, _) = rig.data(&mut host, &domain, 8);
    let region = rig.region(8192);
    let to = piece(0, 8192);
    assert_eq!(
        read_one(&mut host, &mut data, remote, to, &region),
        ReadStatus::Success
    );
    drop(host);
    let deadline = patience();
    let mut done = Vec::new();
    loop {
        assert!(Instant::now() < deadline, "READs go on without a server");
        done.clear();
        match post_one(&mut data, 1, remote, to, &region) {
            Ok(()) => {}
            Err(FabricError::Closed(reason)) => {
                assert!(!reason.is_empty());
                return;
            }
            Err(error) => panic!("{error}"),
        }
        while done.is_empty() {
            assert!(
                data.wait(deadline).expect("wait"),
                "a READ without a server never ends"
            );
            data.poll(&mut done).expect("poll");
        }
        match done[0].status {
            ReadStatus::Success | ReadStatus::PeerGone | ReadStatus::Flushed => {}
            other => panic!("{other:?}"),
        }
    }
}

pub(crate) fn leaving_reader_is_noticed(rig: &Rig) {
    let mut host = rig.host();
    let domain = rig.domain();
    let memory = served(19, MEMORY);
    let (_registration, remote) = register(&domain, &memory);
    let (mut data, id) = rig.data(&mut host, &domain, 8);
    let region = rig.region(MEMORY);
    let to = piece(0, MEMORY);
    // In flight while it leaves: its memory is safe to free once it is dropped.
    post_one(&mut data, 1, remote, to, &region).expect("post");
    drop(data);
    drop(region);
    assert!(!host.closed(id).is_empty());
    host.endpoint.destroy(id).expect("destroy");
}

/// Memory that a READ goes to stays pinned until the READ ended, whoever lets go of it (I5).
pub(crate) fn read_holds_its_memory(rig: &Rig) {
    const LEN: usize = 256 * 1024;
    let mut host = rig.host();
    let domain = rig.domain();
    let memory = served(21, LEN);
    let (_registration, remote) = register(&domain, &memory);
    let (mut data, _) = rig.data(&mut host, &domain, 8);
    for round in 0..6 {
        let region = rig.region(LEN);
        let to = piece(0, LEN);
        post_one(&mut data, round, remote, to, &region).expect("post");
        drop(region);
        // Likely at the same place, if the first had been freed.
        let other = rig.region(LEN);
        other.memory().write(0, &vec![0xAA; LEN]);
        let done = completions(&mut host, &mut data, 1);
        assert_eq!(done[0].status, ReadStatus::Success);
        assert!(
            bytes_of(&other, 0, LEN) == vec![0xAA; LEN],
            "a READ went to memory that was freed"
        );
    }
}

pub(crate) fn wait_keeps_its_deadline(rig: &Rig) {
    let mut host = rig.host();
    let domain = rig.domain();
    let memory = served(22, 4096);
    let (_registration, remote) = register(&domain, &memory);
    let (mut data, _) = rig.data(&mut host, &domain, 8);
    let start = Instant::now();
    assert!(!data.wait(start + QUIET).expect("wait"), "nothing was posted");
    assert!(start.elapsed() >= QUIET, "gave up after {:?}", start.elapsed());
    assert!(start.elapsed() < PATIENCE);
    // A deadline in the past only looks.
    let start = Instant::now();
    assert!(!data.wait(start).expect("wait"));
    assert!(start.elapsed() < PATIENCE);
    let region = rig.region(4096);
    let to = piece(0, 4096);
    assert_eq!(
        read_one(&mut host, &mut data, remote, to, &region),
        ReadStatus::Success
    );
    // Once more with nothing left, so that no old wake-up is told.
    let mut none = Vec::new();
    data.poll(&mut none).expect("poll");
    assert!(none.is_empty());
    assert!(
        !data.wait(Instant::now() + QUIET).expect("wait"),
        "a stale wake-up"
    );
}

/// READs to memory of the caller's.
#[allow(unsafe_code, reason = "registers a buffer of the test's")]
pub(crate) fn callers_memory_can_be_registered(rig: &Rig) {
    let mut host = rig.host();
    let domain = rig.domain();
    let memory = served(23, 8192);
    let (_registration, remote) = register(&domain, &memory);
    let (mut data, _) = rig.data(&mut host, &domain, 8);
    let mut buffer = vec![0xAA_u8; 3 * 4096];
    let start = std::ptr::NonNull::new(buffer.as_mut_ptr()).expect("a vector has an address");
    // SAFETY: `buffer` outlives the region (dropped below), and is not touched between the post and its completion.
    let region = unsafe { rig.client.register(start, buffer.len()) }.expect("register");
    assert_eq!(region.memory().len(), 3 * 4096);
    let to = piece(100, 8192);
    assert_eq!(
        read_one(&mut host, &mut data, remote, to, &region),
        ReadStatus::Success
    );
    drop(region);
    assert_eq!(buffer[100..][..8192], pattern(23, 8192));
    assert!(
        buffer[..100]
            .iter()
            .chain(&buffer[100 + 8192..])
            .all(|&byte| byte == 0xAA)
    );
}

pub(crate) fn odd_memory_is_refused(rig: &Rig) {
    assert!(matches!(rig.client.allocate(0), Err(FabricError::Memory { .. })));
    assert!(matches!(
        rig.client.allocate(usize::MAX),
        Err(FabricError::Memory { .. })
    ));
}

/// Memory that another kind of fabric allocated serves where a READ is a copy, and is refused where a device has to know it.
pub(crate) fn memory_of_another_fabric_serves_or_is_refused(rig: &Rig) {
    let mut host = rig.host();
    let domain = rig.domain();
    let memory = served(24, 4096);
    let (_registration, remote) = register(&domain, &memory);
    let (mut data, _) = rig.data(&mut host, &domain, 8);
    let other = Local::new().expect("local").allocate(4096).expect("allocate");
    let own = rig.region(4096);
    let room = data.room();
    // The first of the chain is good: it must not be posted either.
    let reads = [1, 2].map(|number| Read {
        number,
        from: remote,
        to: [Scatter::new(number as u32 - 1, 0, 4096), Scatter::default()],
        signaled: number == 2,
    });
    match data.post(&reads, &[&own, &other]) {
        Ok(()) => {
            assert_eq!(
                completions(&mut host, &mut data, 1)[0].status,
                ReadStatus::Success
            );
            assert_eq!(bytes_of(&other, 0, 4096), pattern(24, 4096));
        }
        Err(FabricError::Unsupported(_)) => assert_eq!((data.room(), data.counters().reads), (room, 0)),
        Err(error) => panic!("{error}"),
    }
    // Whatever came of it, the connection goes on.
    let to = piece(0, 4096);
    assert_eq!(
        read_one(&mut host, &mut data, remote, to, &own),
        ReadStatus::Success
    );
    assert_eq!(bytes_of(&own, 0, 4096), pattern(24, 4096));
}
