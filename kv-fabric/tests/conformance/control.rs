//! Connecting, frames, staging memory, and their ends.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kv_fabric::{
    ConnectionId, ControlConnection, ControlEvent, ControlOptions, EndpointEvent, FabricError,
    PRIVATE_MAX_BYTES, REASON_MAX_BYTES, RemoteRef, Staging,
};

use crate::rig::{
    Host, OPTIONS, PATIENCE, QUIET, Rig, bytes_of, control_end, control_event, frames, patience, pattern,
    readable, register, served,
};

/// Most frames of the longest kind that a peer which reads none may be sent before its connection is over.
const UNREAD_MAX: usize = 4096;

pub(crate) fn frames_arrive_in_order(rig: &Rig) {
    let mut host = rig.host();
    let (mut control, id) = rig.control(&mut host);
    for round in 0..20_u64 {
        let sent: Vec<_> = (0..16)
            .map(|i| pattern(round * 16 + i, 1 + (i as usize) * 37))
            .collect();
        for frame in &sent {
            control.send(frame).expect("send");
        }
        for frame in &sent {
            assert_eq!(&host.frame(id), frame);
        }
        for frame in &sent {
            host.endpoint.send(id, frame).expect("send");
        }
        assert_eq!(frames(&mut host, &mut control, sent.len()), sent);
    }
}

pub(crate) fn longest_frame_passes(rig: &Rig) {
    let mut host = rig.host();
    let (mut control, id) = rig.control(&mut host);
    let longest = pattern(1, OPTIONS.frame_bytes);
    control.send(&longest).expect("send");
    assert_eq!(host.frame(id), longest);
    host.endpoint.send(id, &longest).expect("send");
    assert_eq!(frames(&mut host, &mut control, 1), [longest]);
}

pub(crate) fn longer_frame_ends_the_connection(rig: &Rig) {
    let mut host = rig.host();
    let (mut wild, wild_id) = rig.control(&mut host);
    let (mut tame, tame_id) = rig.control(&mut host);
    // Refused at once, or sent and fatal; never received.
    let _ = wild.send(&pattern(1, OPTIONS.frame_bytes + 1));
    let _ = wild.send(b"after");
    control_end(&mut host, &mut wild);
    host.closed(wild_id);
    let got = |event: &EndpointEvent| matches!(event, EndpointEvent::Frame(id, _) if *id == wild_id);
    assert!(!host.events.iter().any(got), "{:?}", host.events);
    tame.send(b"still here").expect("send");
    assert_eq!(host.frame(tame_id), b"still here");
}

pub(crate) fn private_data_arrives(rig: &Rig) {
    let mut host = rig.host();
    let address = host.endpoint.address();
    for len in [0, 1, PRIVATE_MAX_BYTES] {
        let sent = pattern(9, len);
        std::thread::scope(|scope| {
            let client = scope.spawn(|| rig.client.connect_control(&address, &sent, OPTIONS, patience()));
            let (request, got) = host.request();
            assert_eq!(got[..len], sent[..]);
            assert!(got[len..].iter().all(|&byte| byte == 0), "padding is zero");
            let id = host.endpoint.accept_control(request, OPTIONS).expect("accept");
            host.established(id);
            client.join().expect("no panic").expect("connect");
        });
    }
    let long = pattern(9, PRIVATE_MAX_BYTES + 1);
    let result = rig.client.connect_control(&address, &long, OPTIONS, patience());
    assert!(matches!(result, Err(FabricError::Unsupported(_))));
}

pub(crate) fn reject_tells_why(rig: &Rig) {
    let mut host = rig.host();
    let address = host.endpoint.address();
    let long = "x".repeat(2 * REASON_MAX_BYTES);
    for reason in ["the token was used before", &long] {
        std::thread::scope(|scope| {
            let client = scope.spawn(|| rig.client.connect_data(&address, b"", 4, patience()));
            let (request, _) = host.request();
            host.endpoint.reject(request, reason);
            let deadline = patience();
            while !client.is_finished() {
                assert!(Instant::now() < deadline, "a rejected client waits");
                host.pump();
                std::thread::sleep(Duration::from_millis(1));
            }
            match client.join().expect("no panic") {
                Err(FabricError::Rejected { reason: got, .. }) => {
                    assert!(!got.is_empty() && reason.starts_with(&got), "{got:?}");
                    assert!(got.len() >= reason.len().min(REASON_MAX_BYTES), "{got:?}");
                }
                Err(error) => panic!("{error} instead of a rejection"),
                Ok(_) => panic!("connected after a rejection"),
            }
        });
    }
    host.pump();
    assert!(host.events.is_empty(), "{:?}", host.events);
}

pub(crate) fn connect_to_nothing_fails(rig: &Rig) {
    let address = {
        let host = rig.host();
        host.endpoint.address()
    };
    let start = Instant::now();
    let result = rig.client.connect_control(&address, b"", OPTIONS, patience());
    let error = result.err().expect("nobody listens");
    assert!(error.to_string().contains(&address), "{error}");
    assert!(
        start.elapsed() < PATIENCE,
        "a refusal does not wait for the deadline"
    );
}

pub(crate) fn connect_keeps_its_deadline(rig: &Rig) {
    let host = rig.host();
    let address = host.endpoint.address();
    let wait = Duration::from_millis(200);
    let start = Instant::now();
    // Nobody polls the endpoint, so nobody answers.
    let result = rig.client.connect_control(&address, b"", OPTIONS, start + wait);
    let took = start.elapsed();
    assert!(
        matches!(result, Err(FabricError::Timeout { .. })),
        "{:?}",
        result.err()
    );
    assert!(took >= wait, "gave up after {took:?}");
    assert!(took < PATIENCE, "gave up after {took:?}");
}

pub(crate) fn accept_after_the_client_left_is_harmless(rig: &Rig) {
    let mut host = rig.host();
    let address = host.endpoint.address();
    let soon = Instant::now() + Duration::from_millis(100);
    assert!(rig.client.connect_control(&address, b"", OPTIONS, soon).is_err());
    settle(&mut host);
    // It may be forgotten already, refused now, or accepted and over.
    let late = host.events.drain(..).find_map(|event| match event {
        EndpointEvent::Request { request, .. } => Some(request),
        _ => None,
    });
    if let Some(request) = late
        && let Ok(id) = host.endpoint.accept_control(request, OPTIONS)
    {
        host.closed(id);
        host.endpoint.destroy(id).expect("destroy");
    }
    let (mut control, id) = rig.control(&mut host);
    control.send(b"next").expect("send");
    assert_eq!(host.frame(id), b"next");
}

pub(crate) fn address_in_use_is_told(rig: &Rig) {
    let host = rig.host();
    let address = host.endpoint.address();
    let error = rig.server.listen(&address).err().expect("the address is taken");
    let text = error.to_string();
    assert!(text.contains(&address) && text.contains("in use"), "{text}");
    drop(host);
    // Free again, and the endpoint works.
    let mut host = rig.host();
    let (mut control, id) = rig.control(&mut host);
    control.send(b"x").expect("send");
    assert_eq!(host.frame(id), b"x");
}

/// A control connection with staging memory.
fn staged(
    rig: &Rig,
    host: &mut Host,
    len: usize,
) -> (
    Box<dyn ControlConnection>,
    ConnectionId,
    RemoteRef,
    Arc<dyn Staging>,
) {
    let (mut control, id) = rig.control(host);
    let (remote, staging) = host.endpoint.grant_staging(id, len).expect("grant_staging");
    // A client learns of its staging memory by a frame.
    host.endpoint.send(id, b"granted").expect("send");
    assert_eq!(frames(host, &mut control, 1), [b"granted"]);
    (control, id, remote, staging)
}

pub(crate) fn writes_arrive_before_later_frames(rig: &Rig) {
    const COUNT: usize = 24;
    const LEN: usize = 5000;
    let mut host = rig.host();
    let (mut control, id, remote, staging) = staged(rig, &mut host, COUNT * LEN);
    let source = rig.region(COUNT * LEN);
    let bytes = pattern(3, COUNT * LEN);
    source.memory().write(0, &bytes);
    for i in 0..COUNT {
        let to = remote.offset((i * LEN) as u64);
        control.write(i as u64, &source, i * LEN, LEN, to).expect("write");
        control.send(&[i as u8]).expect("send");
    }
    for i in 0..COUNT {
        assert_eq!(host.frame(id), [i as u8]);
        let mut got = vec![0; LEN];
        staging.read(i * LEN, &mut got);
        assert_eq!(got, bytes[i * LEN..][..LEN], "window {i}");
    }
    let mut pending = VecDeque::new();
    for i in 0..COUNT {
        let event = control_event(&mut host, &mut control, &mut pending).expect("event");
        assert_eq!(event, ControlEvent::Written(i as u64));
    }
}

/// A WRITE that must end its connection and change nothing.
fn refused_write(
    rig: &Rig,
    host: &mut Host,
    mut control: Box<dyn ControlConnection>,
    id: ConnectionId,
    to: RemoteRef,
) {
    let source = rig.region(4096);
    source.memory().write(0, &[0xEE; 4096]);
    // Refused at once, or posted and fatal.
    let _ = control.write(1, &source, 0, 4096, to);
    let _ = control.send(b"after");
    host.closed(id);
    control_end(host, &mut control);
    let got = |event: &EndpointEvent| matches!(event, EndpointEvent::Frame(of, _) if *of == id);
    assert!(!host.events.iter().any(got), "{:?}", host.events);
    host.endpoint.destroy(id).expect("destroy");
}

pub(crate) fn staging_is_its_own_connections(rig: &Rig) {
    let mut host = rig.host();
    let (mut mine, mine_id, remote, staging) = staged(rig, &mut host, 4096);
    let (thief, thief_id, _, _) = staged(rig, &mut host, 4096);
    refused_write(rig, &mut host, thief, thief_id, remote);
    let (bare, bare_id) = rig.control(&mut host);
    refused_write(rig, &mut host, bare, bare_id, remote);
    let mut got = vec![0xFF; 4096];
    staging.read(0, &mut got);
    assert_eq!(
        got,
        vec![0; 4096],
        "staging begins zeroed and nobody else wrote it"
    );
    mine.send(b"unharmed").expect("send");
    assert_eq!(host.frame(mine_id), b"unharmed");
}

pub(crate) fn write_past_staging_is_refused(rig: &Rig) {
    let mut host = rig.host();
    for (address, len) in [(8192_u64 - 4095, 8192), (8192, 8192), (u64::MAX - 100, 8192)] {
        let (control, id, remote, staging) = staged(rig, &mut host, len);
        refused_write(rig, &mut host, control, id, remote.offset(address));
        let mut got = vec![0xFF; len];
        staging.read(0, &mut got);
        assert!(
            got.iter().all(|&byte| byte == 0),
            "nothing was written at {address}"
        );
    }
}

/// What serves reads takes no WRITE (I3).
pub(crate) fn write_to_readable_memory_is_refused(rig: &Rig) {
    let mut host = rig.host();
    let domain = rig.domain();
    let memory = served(5, 8192);
    let (_registration, remote) = register(&domain, &memory);
    let (control, id, _, _) = staged(rig, &mut host, 4096);
    refused_write(rig, &mut host, control, id, remote);
    let mut got = vec![0; 8192];
    memory.read(0, &mut got);
    assert_eq!(got, pattern(5, 8192));
}

pub(crate) fn staging_is_granted_once(rig: &Rig) {
    let mut host = rig.host();
    let (mut control, id, _, _) = staged(rig, &mut host, 4096);
    assert!(host.endpoint.grant_staging(id, 4096).is_err());
    control.send(b"goes on").expect("send");
    assert_eq!(host.frame(id), b"goes on");
}

pub(crate) fn staging_outlives_its_connection(rig: &Rig) {
    let mut host = rig.host();
    let (mut control, id, remote, staging) = staged(rig, &mut host, 4096);
    let source = rig.region(4096);
    source.memory().write(0, &pattern(8, 4096));
    control.write(1, &source, 0, 4096, remote).expect("write");
    control.send(b"done").expect("send");
    assert_eq!(host.frame(id), b"done");
    drop(control);
    host.closed(id);
    host.endpoint.destroy(id).expect("destroy");
    let mut got = vec![0; 4096];
    staging.read(0, &mut got);
    assert_eq!(got, pattern(8, 4096));
}

pub(crate) fn leaving_client_is_noticed(rig: &Rig) {
    let mut host = rig.host();
    let (mut control, id) = rig.control(&mut host);
    let (mut other, other_id) = rig.control(&mut host);
    control.send(b"last words").expect("send");
    assert_eq!(host.frame(id), b"last words");
    drop(control);
    assert!(!host.closed(id).is_empty(), "a reason is told");
    assert!(matches!(
        host.endpoint.send(id, b"anyone?"),
        Err(FabricError::Closed(_))
    ));
    host.endpoint.destroy(id).expect("destroy");
    assert!(matches!(
        host.endpoint.send(id, b"anyone?"),
        Err(FabricError::Closed(_))
    ));
    other.send(b"here").expect("send");
    assert_eq!(host.frame(other_id), b"here");
}

pub(crate) fn destroyed_connection_ends_at_the_client(rig: &Rig) {
    let mut host = rig.host();
    let (mut control, id) = rig.control(&mut host);
    host.endpoint.send(id, b"polled").expect("send");
    assert_eq!(frames(&mut host, &mut control, 1), [b"polled"]);
    host.endpoint.destroy(id).expect("destroy");
    control_end(&mut host, &mut control);
    // Still over, and still readable: a sleeper wakes up to it.
    assert!(readable(control.fd(), PATIENCE));
    let mut events = Vec::new();
    assert!(matches!(control.poll(&mut events), Err(FabricError::Closed(_))));
    assert!(matches!(control.send(b"x"), Err(FabricError::Closed(_))));
    // Nothing is told of it any more.
    let of_it = |event: &EndpointEvent| matches!(event, EndpointEvent::Frame(of, _) | EndpointEvent::Closed(of, _) if *of == id);
    std::thread::sleep(QUIET);
    host.pump();
    assert!(!host.events.iter().any(of_it), "{:?}", host.events);
}

pub(crate) fn frames_before_an_end_are_returned(rig: &Rig) {
    let mut host = rig.host();
    let (mut control, id) = rig.control(&mut host);
    // The server ends it with this unread, which must not cost what it sent itself.
    control.send(b"never read").expect("send");
    for i in 0..5_u8 {
        host.endpoint.send(id, &[i]).expect("send");
    }
    // On the way or there, but not polled; a network with acknowledgements has had time for them.
    std::thread::sleep(QUIET);
    host.endpoint.destroy(id).expect("destroy");
    let got = control_end(&mut host, &mut control);
    let sent: Vec<_> = (0..5_u8).map(|i| ControlEvent::Frame(vec![i])).collect();
    assert_eq!(got, sent);
}

pub(crate) fn vanished_endpoint_is_noticed(rig: &Rig) {
    let mut host = rig.host();
    let (mut control, _) = rig.control(&mut host);
    drop(host);
    let deadline = patience();
    let mut events = Vec::new();
    loop {
        assert!(Instant::now() < deadline, "the end is not noticed");
        if readable(control.fd(), QUIET) {
            match control.poll(&mut events) {
                Ok(()) => {}
                Err(FabricError::Closed(reason)) => {
                    assert!(!reason.is_empty());
                    break;
                }
                Err(error) => panic!("{error}"),
            }
        }
    }
    assert!(events.is_empty(), "{events:?}");
}

pub(crate) fn silent_client_loses_only_its_connection(rig: &Rig) {
    let mut host = rig.host();
    let (deaf, deaf_id) = rig.control(&mut host);
    let (mut other, other_id) = rig.control(&mut host);
    let frame = pattern(2, OPTIONS.frame_bytes);
    let start = Instant::now();
    let refused = (0..UNREAD_MAX).find_map(|_| host.endpoint.send(deaf_id, &frame).err());
    assert!(matches!(refused, Some(FabricError::Closed(_))), "{refused:?}");
    assert!(start.elapsed() < PATIENCE, "a send waits");
    other.send(b"ping").expect("send");
    assert_eq!(host.frame(other_id), b"ping");
    host.endpoint.send(other_id, b"pong").expect("send");
    assert_eq!(frames(&mut host, &mut other, 1), [b"pong"]);
    host.closed(deaf_id);
    host.endpoint.destroy(deaf_id).expect("destroy");
    drop(deaf);
}

pub(crate) fn frames_to_a_silent_server_are_bounded(rig: &Rig) {
    let mut host = rig.host();
    let (mut control, id) = rig.control(&mut host);
    let frame = pattern(2, OPTIONS.frame_bytes);
    let mut sent = 0;
    let start = Instant::now();
    let refused = (0..UNREAD_MAX).find_map(|_| match control.send(&frame) {
        Ok(()) => {
            sent += 1;
            None
        }
        Err(error) => Some(error),
    });
    assert!(start.elapsed() < PATIENCE, "a send waits");
    assert!(
        matches!(refused, Some(FabricError::Busy(_) | FabricError::Closed(_))),
        "{refused:?} after {sent}"
    );
    // Where it is only busy, all that was taken arrives, and there is room again.
    if matches!(refused, Some(FabricError::Busy(_))) {
        for _ in 0..sent {
            assert_eq!(host.frame(id), frame);
        }
        let deadline = patience();
        while let Err(error) = control.send(b"room") {
            assert!(Instant::now() < deadline, "{error}");
            let _ = control.poll(&mut Vec::new());
        }
        assert_eq!(host.frame(id), b"room");
    }
}

pub(crate) fn descriptors_are_quiet_when_idle(rig: &Rig) {
    let mut host = rig.host();
    let mut clients: Vec<_> = (0..4).map(|_| rig.control(&mut host)).collect();
    std::thread::sleep(QUIET);
    settle(&mut host);
    assert!(
        !readable(host.endpoint.fd(), QUIET),
        "an idle endpoint is readable"
    );
    for (control, _) in &mut clients {
        let mut events = Vec::new();
        control.poll(&mut events).expect("poll");
        assert!(events.is_empty(), "{events:?}");
        assert!(
            !readable(control.fd(), QUIET),
            "an idle control connection is readable"
        );
    }
    let (control, id) = &mut clients[2];
    control.send(b"wake up").expect("send");
    assert!(
        readable(host.endpoint.fd(), PATIENCE),
        "a frame does not wake the endpoint"
    );
    assert_eq!(host.frame(*id), b"wake up");
    host.endpoint.send(*id, b"you too").expect("send");
    assert!(
        readable(control.fd(), PATIENCE),
        "a frame does not wake the client"
    );
    assert_eq!(frames(&mut host, control, 1), [b"you too"]);
    settle(&mut host);
    assert!(
        !readable(host.endpoint.fd(), QUIET),
        "an endpoint is readable for ever"
    );
}

/// Polls until nothing is left to say.
fn settle(host: &mut Host) {
    let deadline = patience();
    while readable(host.endpoint.fd(), Duration::ZERO) {
        assert!(Instant::now() < deadline, "the endpoint is never quiet");
        host.pump();
    }
}

/// Whoever sleeps on the descriptor whenever a poll gave nothing gets everything.
pub(crate) fn no_wakeup_is_lost(rig: &Rig) {
    const COUNT: usize = 300;
    let mut host = rig.host();
    let (mut control, id) = rig.control(&mut host);
    std::thread::scope(|scope| {
        let client = scope.spawn(move || {
            let mut answers = 0;
            for i in 0..COUNT {
                control.send(&(i as u64).to_le_bytes()).expect("send");
                // A few at a time, within the receives of both sides.
                while i + 1 - answers >= 8 || (i + 1 == COUNT && answers < COUNT) {
                    let mut events = Vec::new();
                    control.poll(&mut events).expect("poll");
                    if events.is_empty() {
                        assert!(readable(control.fd(), PATIENCE), "a lost wake-up at {answers}");
                    }
                    answers += events.len();
                }
            }
            control
        });
        let mut next = 0_u64;
        while next < COUNT as u64 {
            let mut events = Vec::new();
            host.endpoint.poll(&mut events).expect("poll");
            if events.is_empty() {
                assert!(readable(host.endpoint.fd(), PATIENCE), "a lost wake-up at {next}");
            }
            for event in events {
                match event {
                    EndpointEvent::Frame(of, frame) if of == id => {
                        assert_eq!(frame, next.to_le_bytes());
                        host.endpoint.send(id, &frame).expect("send");
                        next += 1;
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
        let deadline = patience();
        while !client.is_finished() {
            assert!(Instant::now() < deadline, "the client waits for ever");
            host.pump();
            std::thread::sleep(Duration::from_millis(1));
        }
        client.join().expect("no panic");
    });
}

/// What an endpoint does itself wakes whoever sleeps on it, too.
pub(crate) fn accepting_wakes_the_endpoint(rig: &Rig) {
    let mut host = rig.host();
    let address = host.endpoint.address();
    std::thread::scope(|scope| {
        let client = scope.spawn(|| rig.client.connect_control(&address, b"", OPTIONS, patience()));
        let (request, _) = host.request();
        settle(&mut host);
        let id = host.endpoint.accept_control(request, OPTIONS).expect("accept");
        assert!(
            readable(host.endpoint.fd(), PATIENCE),
            "an accepted connection does not wake it"
        );
        host.established(id);
        client.join().expect("no panic").expect("connect");
    });
}

pub(crate) fn many_connections_stay_apart(rig: &Rig) {
    const COUNT: usize = 40;
    let mut host = rig.host();
    let options = ControlOptions {
        receives: 4,
        frame_bytes: 256,
    };
    let mut clients: Vec<_> = (0..COUNT).map(|_| rig.control_of(&mut host, options)).collect();
    let mut ids: Vec<_> = clients.iter().map(|(_, id)| *id).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), COUNT, "every connection has a name of its own");
    for (i, (control, _)) in clients.iter_mut().enumerate() {
        control.send(format!("from {i}").as_bytes()).expect("send");
    }
    for (i, (_, id)) in clients.iter().enumerate() {
        assert_eq!(host.frame(*id), format!("from {i}").as_bytes());
        host.endpoint
            .send(*id, format!("to {i}").as_bytes())
            .expect("send");
    }
    for (i, (control, _)) in clients.iter_mut().enumerate() {
        assert_eq!(frames(&mut host, control, 1), [format!("to {i}").as_bytes()]);
    }
}

/// The source of a WRITE may be dropped by its owner before the WRITE is done (I5).
pub(crate) fn write_holds_its_source(rig: &Rig) {
    let mut host = rig.host();
    let (mut control, id, remote, staging) = staged(rig, &mut host, 1 << 16);
    let bytes = pattern(6, 1 << 16);
    let source = rig.region(1 << 16);
    source.memory().write(0, &bytes);
    control.write(1, &source, 0, 1 << 16, remote).expect("write");
    drop(source);
    // Likely at the same place, if the first had been freed.
    let other = rig.region(1 << 16);
    other.memory().write(0, &[0xAA; 1 << 16]);
    control.send(b"done").expect("send");
    assert_eq!(host.frame(id), b"done");
    let mut got = vec![0; 1 << 16];
    staging.read(0, &mut got);
    assert_eq!(got, bytes);
    assert_eq!(bytes_of(&other, 0, 1 << 16), vec![0xAA; 1 << 16]);
}
