//! A scripted server against the session's state machine.

use kv_proto::control::{RemoteAddress, Status, decode_request, encode_answer, encode_refusal};

use super::*;
use crate::control::tenure::{Debt, Footing, Tenure};
use crate::tables::DatasetState;

const MS: u64 = 1_000_000;
const SECRET: [u8; 32] = [3; 32];

struct Script {
    session: Session,
    answers: u64,
}

fn begin() -> (Session, u64, Request) {
    let greeting = Greeting {
        key: AccessKey::new("k", SECRET),
        client_id: 5,
        nonce: [1; 32],
        receives: 32,
    };
    let (session, frame) = Session::begin(greeting, 0).unwrap();
    let (header, request) = decode_request(&frame).unwrap();
    (session, header.request, request)
}

fn hello(receives: u16) -> Answer {
    Answer::Hello {
        version: PROTOCOL_VERSION,
        receives,
        role: Role::Write as u8,
        epoch: 9,
        nonce: [2; 32],
    }
}

fn frame(request: u64, answer: &Answer) -> Vec<u8> {
    let mut out = Vec::new();
    encode_answer(request, answer, &mut out).unwrap();
    out
}

fn auth(proof: [u8; 32], lease_ms: u32) -> Answer {
    Answer::Auth {
        proof,
        session: 77,
        lease_ms,
        max_lag_ms: 4000,
        data_connections: 4,
        staging: RemoteAddress { address: 64, rkey: 8 },
        staging_len_bytes: 4096,
    }
}

fn server_proof() -> [u8; 32] {
    let transcript = Transcript {
        version: PROTOCOL_VERSION,
        role: Role::Write,
        client_id: 5,
        epoch: 9,
        client_nonce: [1; 32],
        server_nonce: [2; 32],
    };
    transcript.proof(Side::Server, &SECRET)
}

/// A session that was greeted at 10 ms, sent AUTH then, and heard of its lease of 900 ms at 50 ms.
fn up(receives: u16) -> Script {
    let (mut session, number, _) = begin();
    let Event::Send(proof) = session
        .receive(&frame(number, &hello(receives)), 10 * MS)
        .unwrap()
    else {
        panic!("no AUTH");
    };
    let (header, Request::Auth { .. }) = decode_request(&proof).unwrap() else {
        panic!("no AUTH");
    };
    let event = session.receive(&frame(header.request, &auth(server_proof(), 900)), 50 * MS);
    assert!(matches!(event.unwrap(), Event::Up(_)));
    Script {
        session,
        answers: header.request,
    }
}

impl Script {
    fn ask(&mut self, ticket: u64, now: u64) -> u64 {
        let frame = self
            .session
            .request(ticket, &Request::Stat { dataset: [0; 16] }, now);
        decode_request(&frame.unwrap()).unwrap().0.request
    }

    fn renew(&mut self, now: u64) -> (u64, u64) {
        let frame = self.session.renew(now).unwrap();
        let (header, Request::Renew { retired }) = decode_request(&frame).unwrap() else {
            panic!("no RENEW");
        };
        (header.request, retired)
    }

    fn renewed(&mut self, request: u64, retired: u64, lease_ms: u32, now: u64) -> Event {
        let answer = Answer::Renew {
            retired,
            lease_ms,
            changes: Vec::new(),
        };
        self.session.receive(&frame(request, &answer), now).unwrap()
    }
}

fn opened(retired: u64) -> Answer {
    Answer::Open {
        dataset: [1; 16],
        hash_key: [0; 16],
        retired,
        directory: kv_proto::control::DirectoryRef {
            at: RemoteAddress { address: 0, rkey: 0 },
            version: 1,
            depth: 0,
        },
        part_bytes: 1,
    }
}

#[test]
fn the_handshake_proves_both_sides() {
    let (mut session, number, request) = begin();
    let Request::Hello {
        client_id, key_name, ..
    } = request
    else {
        panic!("no HELLO");
    };
    assert_eq!((client_id, &key_name.0[..]), (5, &b"k"[..]));
    assert!(!session.has_credit() && !session.is_up());
    let Event::Send(sent) = session.receive(&frame(number, &hello(32)), 0).unwrap() else {
        panic!("no AUTH");
    };
    let (header, Request::Auth { proof }) = decode_request(&sent).unwrap() else {
        panic!("no AUTH");
    };
    assert_ne!(
        proof,
        server_proof(),
        "a server must not be able to echo the client's proof"
    );
    let wrong = frame(header.request, &auth([0; 32], 900));
    assert_eq!(session.receive(&wrong, 0).unwrap_err(), SessionError::Impostor);
}

#[test]
fn a_refusal_and_nonsense_end_the_handshake() {
    let (mut session, number, _) = begin();
    let mut refusal = Vec::new();
    encode_refusal(number, 1, Status::AuthFailed, "no such key", &mut refusal);
    let error = session.receive(&refusal, 0).unwrap_err();
    assert!(matches!(error, SessionError::Refused(refused) if refused.status == Status::AuthFailed));

    for answer in [
        auth(server_proof(), 1),
        hello(1),
        Answer::Hello {
            version: 2,
            receives: 32,
            role: 1,
            epoch: 0,
            nonce: [0; 32],
        },
        Answer::Hello {
            version: 1,
            receives: 32,
            role: 9,
            epoch: 0,
            nonce: [0; 32],
        },
    ] {
        let (mut session, number, _) = begin();
        assert!(session.receive(&frame(number, &answer), 0).is_err(), "{answer:?}");
    }
    let (mut session, number, _) = begin();
    assert!(session.receive(&frame(number + 1, &hello(32)), 0).is_err());
    assert!(session.receive(&[0; 7], 0).is_err());
}

#[test]
fn the_lease_counts_from_the_send_of_what_renewed_it() {
    let mut script = up(32);
    // AUTH was sent at 10 ms.
    assert_eq!(script.session.lease_end_ns(), 901 * MS);
    assert_eq!(script.session.renew_at_ns(), 310 * MS);
    let (number, _) = script.renew(400 * MS);
    assert_eq!(script.session.renew_at_ns(), u64::MAX, "one at a time");
    // Answered much later: that does not count.
    script.renewed(number, 0, 900, 1200 * MS);
    assert_eq!(script.session.lease_end_ns(), 1291 * MS);
    assert_eq!(script.session.renew_at_ns(), 700 * MS);
    // A shorter lease never takes back what was granted.
    let (number, _) = script.renew(1250 * MS);
    script.renewed(number, 0, 10, 1260 * MS);
    assert_eq!(script.session.lease_end_ns(), 1291 * MS);
    script.session.hurry(5);
    assert_eq!(script.session.renew_at_ns(), 5);
}

#[test]
fn credits_are_never_exceeded_and_renew_has_its_own() {
    let mut script = up(4);
    let asked: Vec<_> = (0..3).map(|ticket| script.ask(ticket, 60 * MS)).collect();
    assert!(!script.session.has_credit());
    assert!(script.session.request(9, &Request::Bye {}, 0).is_err());
    assert!(script.session.bye(0).is_none());
    let (renewal, _) = script.renew(70 * MS);
    assert!(!script.session.has_credit());
    // Answers come in another order; each frees one place.
    let answer = Answer::Stat { items: Vec::new() };
    for (index, &number) in asked.iter().enumerate().rev() {
        let event = script.session.receive(&frame(number, &answer), 80 * MS).unwrap();
        assert!(matches!(event, Event::Answer { ticket, .. } if ticket == index as u64));
        assert!(script.session.has_credit());
    }
    script.renewed(renewal, 0, 900, 90 * MS);
    // Answered twice, or by another kind, ends it.
    let number = script.ask(7, 100 * MS);
    assert!(script.session.receive(&frame(asked[0], &answer), 0).is_err());
    assert!(
        script
            .session
            .receive(&frame(number, &Answer::Append {}), 0)
            .is_err()
    );
    assert!(script.answers < number);
}

#[test]
fn what_was_said_to_be_dropped_is_acknowledged_and_nothing_more() {
    let mut script = up(32);
    let request = Request::Open {
        name: Bytes::default(),
    };
    let ask = |script: &mut Script| {
        let frame = script.session.request(0, &request, 0).unwrap();
        decode_request(&frame).unwrap().0.request
    };
    // What was retired before the first dataset was opened was never cached.
    let number = ask(&mut script);
    script.session.receive(&frame(number, &opened(40)), 0).unwrap();
    let (number, retired) = script.renew(100 * MS);
    assert_eq!(retired, 40);
    script.renewed(number, 50, 900, 110 * MS);
    assert!(script.session.lags());
    // Sooner than usual, since the server waits for it.
    assert_eq!(script.session.renew_at_ns(), (100 + 75) * MS);
    // A second one does not speak for the first.
    let number = ask(&mut script);
    script.session.receive(&frame(number, &opened(60)), 0).unwrap();
    let (number, retired) = script.renew(200 * MS);
    assert_eq!(retired, 40);
    script.session.acknowledge(50);
    script.session.acknowledge(45);
    script.renewed(number, 50, 900, 210 * MS);
    assert_eq!(script.renew(300 * MS).1, 50);
}

/// A retirement is acknowledged once no READ that was posted before it was told is in flight, and not before.
#[test]
fn what_is_owed_waits_for_the_reads_that_were_posted_before() {
    let mut script = up(32);
    let request = Request::Open {
        name: Bytes::default(),
    };
    let asked = script.session.request(0, &request, 0).unwrap();
    let number = decode_request(&asked).unwrap().0.request;
    script.session.receive(&frame(number, &opened(40)), 0).unwrap();
    let (tenure, state) = (Tenure::new(), DatasetState::new());
    let mut reader = Footing::new(&tenure, &state);
    let mut debt = Debt::default();
    reader.pin(&tenure);
    for step in 1..4 {
        debt.settle(&mut script.session, &tenure);
        let (number, retired) = script.renew(step * 100 * MS);
        assert_eq!(retired, 40, "acknowledged under a READ");
        script.renewed(number, 50, 900, (step * 100 + 10) * MS);
        debt.told(50, &script.session, &tenure);
    }
    // READs posted from now on know of it, however often it is told again.
    reader.pin(&tenure);
    debt.told(50, &script.session, &tenure);
    debt.settle(&mut script.session, &tenure);
    assert_eq!(script.renew(400 * MS).1, 50);
}

#[test]
fn bye_ends_it() {
    let mut script = up(32);
    let frame_out = script.session.bye(0).unwrap();
    let (header, request) = decode_request(&frame_out).unwrap();
    assert_eq!(request, Request::Bye {});
    let event = script.session.receive(&frame(header.request, &Answer::Bye {}), 0);
    assert_eq!(event.unwrap(), Event::Over);
    assert!(!script.session.is_up());
}
