//! Clients that break the rules: their session ends, the others never notice.

use std::time::{Duration, Instant};

use crate::common::{PATIENCE, Raw, Running, Setup, TestFabric, connect_request, eventually, hello};
use kv_fabric::{DataConnection, FabricError, ReadStatus, RemoteRef};
use kv_proto::auth::{Role, Side, Transcript};
use kv_proto::control::{ANSWER, Answer, Bytes, FRAME_MAX_BYTES, Request, Status, encode_request};
use kv_proto::layout::connect_kind;
use zerocopy::IntoBytes;

/// A session that should notice nothing of what happens to others.
struct Bystander {
    raw: Raw,
    dataset: [u8; 16],
    puts: u32,
}

impl Bystander {
    fn new<F: TestFabric>(server: &Running<F>) -> Self {
        let (raw, opened) = server.with_dataset("bystander");
        Self {
            raw,
            dataset: opened.dataset,
            puts: 0,
        }
    }

    fn still_served(&mut self) {
        self.puts += 1;
        let key = format!("{}", self.puts);
        let (_, locator) = self.raw.put(self.dataset, key.as_bytes(), b"value").unwrap();
        let token = self.raw.tokens(self.dataset, 1)[0];
        let mut data = self.raw.data(token).unwrap();
        assert_eq!(
            self.raw.get(&mut *data, self.dataset, &locator).unwrap(),
            b"value"
        );
    }
}

fn renewal(number: u64) -> Vec<u8> {
    let mut frame = Vec::new();
    encode_request(number, &Request::Renew { retired: 0 }, &mut frame).unwrap();
    frame
}

pub(crate) fn malformed_and_oversized_frames_end_their_session_alone<F: TestFabric>() {
    let mut setup = Setup::new();
    setup.options.linger_ms = 50;
    let server = setup.start::<F>();
    let mut bystander = Bystander::new(&server);
    let good = renewal(1000);
    let with = |at: usize, byte: u8| {
        let mut frame = good.clone();
        frame[at] = byte;
        frame
    };
    let frames = [
        good[..good.len() - 1].to_vec(),
        [&good[..], &[0; 3]].concat(),
        good[..5].to_vec(),
        with(0, 200),
        with(0, 15 | ANSWER),
        with(1, 77),
        with(2, 1),
        with(4, 200),
        vec![0xff; FRAME_MAX_BYTES],
    ];
    let count = frames.len() as u64;
    for frame in frames {
        let mut raw = server.session(&server.setup.reader);
        raw.send_raw(&frame);
        raw.wait_end();
        bystander.still_served();
    }
    // Longer than a frame may be: whether the client's own end or the server's stops it, the session is over.
    let mut raw = server.session(&server.setup.reader);
    let _ = raw.control.send(&[0; FRAME_MAX_BYTES + 1]);
    raw.send_raw(&[]);
    bystander.still_served();
    assert!(bystander.raw.figure([0; 16], "violations_count") >= count);
}

pub(crate) fn the_reason_is_told_where_it_can_be<F: TestFabric>() {
    let server = Setup::new().start::<F>();
    let mut raw = server.session(&server.setup.reader);
    let number = raw.next;
    let frame = renewal(number);
    raw.send_raw(&frame[..frame.len() - 1]);
    let refused = raw.answer(number).expect("an answer").unwrap_err();
    assert_eq!(refused.status, Status::BadFrame);
    raw.wait_end();
}

pub(crate) fn replayed_and_repeated_requests_end_the_session<F: TestFabric>() {
    let server = Setup::new().start::<F>();
    let mut bystander = Bystander::new(&server);
    let mut raw = server.session(&server.setup.reader);
    raw.renew(0);
    raw.send_raw(&renewal(raw.next - 1));
    let refused = raw.answer(raw.next - 1).expect("an answer").unwrap_err();
    assert_eq!(refused.status, Status::Order);
    raw.wait_end();
    for again in [hello("reader", 1, 32, [0; 32]), Request::Auth { proof: [0; 32] }] {
        let mut raw = server.session(&server.setup.reader);
        assert_eq!(raw.refused(&again), Status::Order);
        raw.wait_end();
    }
    bystander.still_served();
}

pub(crate) fn before_auth_nothing_is_answered<F: TestFabric>() {
    let server = Setup::new().start::<F>();
    for request in [
        Request::Auth { proof: [0; 32] },
        Request::Stat { dataset: [0; 16] },
        Request::Datasets {
            after: Bytes::default(),
        },
        Request::Renew { retired: 0 },
        Request::Bye {},
    ] {
        let mut raw = server.stranger();
        raw.send(&request);
        raw.wait_end();
        assert!(raw.nothing_arrived(), "{request:?}");
        let mut challenged = server.stranger();
        challenged.ask(&hello("admin", 1, 32, [0; 32])).unwrap();
        if !matches!(request, Request::Auth { .. }) {
            challenged.send(&request);
            challenged.wait_end();
            assert!(challenged.nothing_arrived(), "{request:?}");
        }
    }
    let mut bystander = Bystander::new(&server);
    bystander.still_served();
}

pub(crate) fn a_wrong_proof_and_an_unknown_key_look_alike<F: TestFabric>() {
    let server = Setup::new().start::<F>();
    let mut seen = Vec::new();
    for name in ["reader", "nobody"] {
        let mut raw = server.stranger();
        let answer = raw.ask(&hello(name, 1, 32, [0; 32])).unwrap();
        let Answer::Hello {
            version,
            receives,
            role,
            epoch,
            ..
        } = answer
        else {
            panic!("{answer:?}");
        };
        let refused = raw.ask(&Request::Auth { proof: [1; 32] }).unwrap_err();
        raw.wait_end();
        seen.push((version, receives, role, epoch, refused));
    }
    assert_eq!(seen[0], seen[1]);
    assert_eq!(seen[0].4.status, Status::AuthFailed);
    assert_eq!(server.figure("auth_failed_count"), 2);
}

pub(crate) fn a_proof_that_was_overheard_is_worth_nothing<F: TestFabric>() {
    let server = Setup::new().start::<F>();
    let key = &server.setup.admin;
    let nonce = [3; 32];
    let challenge = |raw: &mut Raw| match raw.ask(&hello(&key.name, 1, 32, nonce)).unwrap() {
        Answer::Hello { nonce, epoch, .. } => (nonce, epoch),
        other => panic!("{other:?}"),
    };
    let mut honest = server.stranger();
    let (server_nonce, epoch) = challenge(&mut honest);
    let transcript = Transcript {
        version: 1,
        role: Role::Admin,
        client_id: 1,
        epoch,
        client_nonce: nonce,
        server_nonce,
    };
    let proof = transcript.proof(Side::Client, &key.secret);
    let mut thief = server.stranger();
    assert_ne!(
        challenge(&mut thief).0,
        server_nonce,
        "a nonce is drawn for each connection"
    );
    assert_eq!(thief.refused(&Request::Auth { proof }), Status::AuthFailed);
    // The very proof is good where it belongs.
    assert!(honest.ask(&Request::Auth { proof }).is_ok());
}

pub(crate) fn a_token_is_good_once_for_its_own_session_and_not_for_ever<F: TestFabric>() {
    let mut setup = Setup::new();
    setup.options.max_lag_ms = 400 * F::SLOWER as u32;
    let server = setup.start::<F>();
    let (mut raw, opened) = server.with_dataset("cats");
    let token = raw.tokens(opened.dataset, 1)[0];
    let _data = raw.data(token).unwrap();
    let refused = |result: Result<Box<dyn DataConnection>, FabricError>| match result {
        Err(FabricError::Rejected { reason, .. }) => assert!(reason.contains("token"), "{reason}"),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("a token was accepted that is not good"),
    };
    refused(raw.data(token));
    // With the number of another session.
    let token = raw.tokens(opened.dataset, 1)[0];
    let mut other = server.session(&server.setup.reader);
    refused(other.data(token));
    refused(raw.data([0; 16]));
    raw.data(token).unwrap();
    let late = raw.tokens(opened.dataset, 1)[0];
    let until = Instant::now() + Duration::from_millis(450 * F::SLOWER);
    let mut retired = opened.retired;
    while Instant::now() < until {
        retired = raw.renew(retired).0;
        std::thread::sleep(Duration::from_millis(20));
    }
    refused(raw.data(late));
}

pub(crate) fn a_connection_reads_its_own_dataset_and_no_other<F: TestFabric>() {
    let server = Setup::new().start::<F>();
    let (mut raw, cats) = server.with_dataset("cats");
    raw.create("dogs");
    let dogs = raw.open("dogs");
    raw.put(cats.dataset, b"k", b"meow").unwrap();
    let (_, locator) = raw.put(dogs.dataset, b"k", b"woof").unwrap();
    let token = raw.tokens(cats.dataset, 1)[0];
    let mut data = raw.data(token).unwrap();
    assert_eq!(
        raw.get(&mut *data, dogs.dataset, &locator),
        Err(ReadStatus::RemoteAccess)
    );
    // And no staging memory, its own session's included.
    let token = raw.tokens(cats.dataset, 1)[0];
    let mut data = raw.data(token).unwrap();
    let staging: RemoteRef = raw.staging;
    assert_eq!(raw.read(&mut *data, staging, 8), Err(ReadStatus::RemoteAccess));
}

pub(crate) fn who_takes_no_answers_loses_its_session_and_holds_up_nobody<F: TestFabric>() {
    let server = Setup::new().start::<F>();
    let mut bystander = Bystander::new(&server);
    let mut deaf = server.session(&server.setup.reader);
    let before = bystander.raw.figure([0; 16], "sessions_count");
    let deadline = Instant::now() + PATIENCE;
    let mut frame = Vec::new();
    let mut number = 1000;
    while bystander.raw.figure([0; 16], "sessions_count") == before {
        assert!(Instant::now() < deadline, "it kept its session");
        for _ in 0..100 {
            number += 1;
            encode_request(number, &Request::Stat { dataset: [0; 16] }, &mut frame).unwrap();
            if deaf.control.send(&frame).is_err() {
                break;
            }
        }
        bystander.still_served();
    }
}

pub(crate) fn more_requests_than_credits_end_the_session<F: TestFabric>() {
    let server = Setup::new().start::<F>();
    let mut bystander = Bystander::new(&server);
    let (_admin, opened) = server.with_dataset("cats");
    let key = &server.setup.writer;
    let mut raw = server.stranger();
    // One receive, so one credit.
    let answer = raw.ask(&hello(&key.name, 1, 1, [0; 32])).unwrap();
    let Answer::Hello { nonce, epoch, .. } = answer else {
        panic!("{answer:?}");
    };
    let transcript = Transcript {
        version: 1,
        role: Role::Write,
        client_id: 1,
        epoch,
        client_nonce: [0; 32],
        server_nonce: nonce,
    };
    let proof = transcript.proof(Side::Client, &key.secret);
    raw.ask(&Request::Auth { proof }).unwrap();
    raw.open("cats");
    for operation in 1..=200 {
        let key = Bytes::from(&b"k"[..]);
        raw.send(&Request::Delete {
            dataset: opened.dataset,
            operation,
            key,
        });
    }
    raw.wait_end();
    bystander.still_served();
}

pub(crate) fn half_open_connections_are_bounded_and_end_by_themselves<F: TestFabric>() {
    // A crowd that each fabric can gather within the time that half-open connections are kept.
    let (crowd, most) = if F::SLOWER > 1 { (150, 20) } else { (2_000, 100) };
    let mut setup = Setup::new();
    setup.options.unauthenticated_max = most;
    setup.options.handshake_timeout_ms = 1_500 * F::SLOWER;
    let server = setup.start::<F>();
    let mut bystander = Bystander::new(&server);
    let mut held = Vec::new();
    let mut refused = 0;
    for number in 0..crowd {
        match Raw::connect(server.fabric.clone(), &server.address) {
            Ok(raw) if held.len() < 200 => held.push(raw),
            Ok(_) => {}
            Err(FabricError::Rejected { reason, .. }) => {
                assert!(reason.contains("too many"), "{reason}");
                refused += 1;
            }
            Err(other) => {
                // Whether it is the server that is gone.
                bystander.still_served();
                panic!("connection {number}, {refused} refused before: {other}");
            }
        }
    }
    assert!(refused > 0, "no limit was met");
    assert!(bystander.raw.figure([0; 16], "unauthenticated_count") <= most as u64);
    bystander.still_served();
    for mut raw in held {
        raw.wait_end();
    }
    eventually("half-open connections end", || {
        (bystander.raw.figure([0; 16], "unauthenticated_count") == 0).then_some(())
    });
    bystander.still_served();
    server.session(&server.setup.reader);
}

pub(crate) fn connection_requests_for_sessions_that_are_over_are_refused<F: TestFabric>() {
    let server = Setup::new().start::<F>();
    let (mut raw, opened) = server.with_dataset("cats");
    let token = raw.tokens(opened.dataset, 1)[0];
    let session = raw.session;
    raw.ask(&Request::Bye {}).unwrap();
    let request = connect_request(connect_kind::DATA, session, token);
    let deadline = Instant::now() + PATIENCE;
    let result = server
        .fabric
        .connect_data(&server.address, request.as_bytes(), 1, deadline);
    assert!(matches!(result, Err(FabricError::Rejected { .. })));
}
