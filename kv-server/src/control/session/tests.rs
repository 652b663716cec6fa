//! The state machine alone: what it answers, refuses and ends, in every phase.

use kv_proto::control::encode_request;
use proptest::prelude::*;

use kv_proto::auth::{Role, Side, Transcript, bound_client_id};
use kv_proto::control::Bytes;
use kv_proto::layout::PROTOCOL_VERSION;

use super::rights::dataset;
use super::*;
use crate::control::keys::{Keys, generate};
use crate::control::leases::DatasetId;

const NOW: BootMs = BootMs(1_000);
const DATASET: DatasetId = [7; 16];
const CLIENT_ID: u64 = 42;
const CLIENT_NONCE: [u8; 32] = [1; 32];
const SERVER_NONCE: [u8; 32] = [2; 32];

struct Bench {
    keys: Keys,
    decoy: Decoy,
    options: Options,
    session: Session,
    next: u64,
}

impl Bench {
    fn new(role: Role, datasets: &[&str]) -> Self {
        let datasets = datasets.iter().map(|name| (*name).to_owned()).collect();
        let key = generate("key", role, datasets).unwrap();
        Self {
            keys: Keys::new(vec![key]).unwrap(),
            decoy: Decoy::new(),
            options: Options::default(),
            session: Session::new(),
            next: 1,
        }
    }

    /// A session that is past AUTH and has a dataset open.
    fn ready(role: Role) -> Self {
        let mut bench = Self::new(role, &["cats"]);
        bench.ask(&hello("key"));
        let proof = bench.proof(b"key");
        assert!(matches!(bench.ask(&Request::Auth { proof }), Step::Ready { .. }));
        bench.session.ready(NOW, 1 << 20, &bench.options);
        bench.session.holds.opened(DATASET, 5);
        bench
    }

    fn proof(&self, name: &[u8]) -> [u8; 32] {
        let key = self.keys.get(name).unwrap();
        transcript(key.role).proof(Side::Client, &key.secret)
    }

    fn raw(&mut self, frame: &[u8]) -> Step {
        let world = World {
            keys: &self.keys,
            decoy: &self.decoy,
            options: &self.options,
            epoch: 9,
            nonce: SERVER_NONCE,
        };
        self.session.receive(frame, NOW, &world).step
    }

    fn ask_as(&mut self, number: u64, request: &Request) -> Step {
        let mut frame = Vec::new();
        encode_request(number, request, &mut frame).unwrap();
        self.raw(&frame)
    }

    fn ask(&mut self, request: &Request) -> Step {
        self.next += 1;
        self.ask_as(self.next, request)
    }

    fn ended(&mut self) -> bool {
        // Whatever comes after the end is ignored, and answered with nothing.
        self.ask(&Request::Bye {}) == Step::End(None) && self.session.identity().is_none()
    }
}

fn transcript(role: Role) -> Transcript {
    Transcript {
        version: PROTOCOL_VERSION,
        role,
        client_id: CLIENT_ID,
        epoch: 9,
        client_nonce: CLIENT_NONCE,
        server_nonce: SERVER_NONCE,
    }
}

fn hello(key: &str) -> Request {
    Request::Hello {
        version_min: 1,
        version_max: 3,
        receives: 16,
        client_id: CLIENT_ID,
        nonce: CLIENT_NONCE,
        key_name: Bytes::from(key.as_bytes()),
    }
}

fn status(step: &Step) -> Option<Status> {
    match step {
        Step::Refuse(refusal) | Step::End(Some(refusal)) => Some(refusal.status),
        _ => None,
    }
}

fn ends_with(step: &Step, expected: Status) -> bool {
    matches!(step, Step::End(Some(refusal)) if refusal.status == expected)
}

/// Every request there is, none of which would be malformed.
fn all_requests() -> Vec<Request> {
    let dataset = DATASET;
    let key = Bytes::from(&b"k"[..]);
    let name = Bytes::from(&b"cats"[..]);
    let locator = kv_proto::layout::Locator::default();
    vec![
        Request::Open { name: name.clone() },
        Request::Table { dataset, first: 0 },
        Request::Tokens { dataset, count: 1 },
        Request::Lookup {
            dataset,
            key: key.clone(),
        },
        Request::Alloc {
            dataset,
            operation: 1,
            value_len_bytes: 1,
            key: key.clone(),
        },
        Request::Append {
            operation: 1,
            len_bytes: 1,
        },
        Request::Commit {
            operation: 1,
            len_bytes: 1,
            value_crc: 0,
        },
        Request::Abort { operation: 1 },
        Request::Delete {
            dataset,
            operation: 1,
            key,
        },
        Request::List {
            dataset,
            cursor: 0,
            limit: 1,
        },
        Request::Stat { dataset: [0; 16] },
        Request::Renew { retired: 5 },
        Request::Load { dataset, segment: 1 },
        Request::Stage {
            dataset,
            locator,
            first_block: 0,
            block_count: 1,
        },
        Request::Release { grant: 1 },
        Request::Create { name: name.clone() },
        Request::Rename {
            from: name.clone(),
            to: name.clone(),
        },
        Request::Datasets {
            after: Bytes::default(),
        },
        Request::SnapshotCreate {
            dataset,
            name: name.clone(),
        },
        Request::SnapshotDrop {
            dataset,
            name: name.clone(),
        },
        Request::Snapshots {
            dataset,
            after: Bytes::default(),
        },
        Request::SnapshotOpen {
            dataset,
            name: name.clone(),
        },
        Request::Drop { name },
        Request::Close { dataset },
        Request::Bye {},
    ]
}

#[test]
fn a_key_that_is_proven_makes_a_session() {
    let mut bench = Bench::new(Role::Write, &["*"]);
    let step = bench.ask(&hello("key"));
    let Step::Answer(Answer::Hello {
        version,
        role,
        epoch,
        nonce,
        ..
    }) = step
    else {
        panic!("{step:?}");
    };
    assert_eq!(
        (version, role, epoch, nonce),
        (1, Role::Write as u8, 9, SERVER_NONCE)
    );
    let proof = bench.proof(b"key");
    let Step::Ready { proof } = bench.ask(&Request::Auth { proof }) else {
        panic!("the right proof was refused");
    };
    let secret = bench.keys.get(b"key").unwrap().secret;
    assert!(transcript(Role::Write).verify(Side::Server, &secret, &proof));
    assert_eq!(
        bench.session.identity().unwrap().client,
        bound_client_id(b"key", CLIENT_ID)
    );
}

#[test]
fn before_auth_everything_else_ends_without_an_answer() {
    for request in all_requests() {
        let mut first = Bench::new(Role::Admin, &["*"]);
        assert_eq!(first.ask(&request), Step::End(None), "{}", request.name());
        let mut challenged = Bench::new(Role::Admin, &["*"]);
        challenged.ask(&hello("key"));
        assert_eq!(challenged.ask(&request), Step::End(None), "{}", request.name());
        let proof = challenged.proof(b"key");
        assert_eq!(challenged.ask(&Request::Auth { proof }), Step::End(None));
    }
    let mut auth_first = Bench::new(Role::Admin, &["*"]);
    assert_eq!(auth_first.ask(&Request::Auth { proof: [0; 32] }), Step::End(None));
    let mut hello_twice = Bench::new(Role::Admin, &["*"]);
    hello_twice.ask(&hello("key"));
    assert_eq!(hello_twice.ask(&hello("key")), Step::End(None));
}

#[test]
fn an_unknown_key_is_challenged_and_then_refused_like_a_wrong_proof() {
    let mut wrong = Bench::new(Role::Read, &["*"]);
    let known = wrong.ask(&hello("key"));
    let refused = wrong.ask(&Request::Auth { proof: [3; 32] });
    assert!(ends_with(&refused, Status::AuthFailed) && wrong.ended());
    let mut unknown = Bench::new(Role::Read, &["*"]);
    assert_eq!(unknown.ask(&hello("nobody")), known);
    let secret = unknown.decoy.key(b"nobody").secret;
    let proof = transcript(Role::Read).proof(Side::Client, &secret);
    assert_eq!(
        unknown.ask(&Request::Auth { proof }),
        refused,
        "not even the decoy's proof is good"
    );
    assert_ne!(
        unknown.decoy.key(b"nobody").secret,
        unknown.decoy.key(b"other").secret
    );
}

#[test]
fn a_proof_is_good_for_its_own_nonces_only() {
    let mut bench = Bench::new(Role::Read, &["*"]);
    bench.ask(&hello("key"));
    let secret = bench.keys.get(b"key").unwrap().secret;
    let earlier = Transcript {
        server_nonce: [8; 32],
        ..transcript(Role::Read)
    };
    let proof = earlier.proof(Side::Client, &secret);
    assert!(ends_with(
        &bench.ask(&Request::Auth { proof }),
        Status::AuthFailed
    ));
    let mut reflected = Bench::new(Role::Read, &["*"]);
    reflected.ask(&hello("key"));
    let secret = reflected.keys.get(b"key").unwrap().secret;
    let proof = transcript(Role::Read).proof(Side::Server, &secret);
    assert!(ends_with(
        &reflected.ask(&Request::Auth { proof }),
        Status::AuthFailed
    ));
}

#[test]
fn hello_must_be_complete_and_share_a_version() {
    let change = |change: &dyn Fn(&mut Request)| {
        let mut request = hello("key");
        change(&mut request);
        status(&Bench::new(Role::Read, &["*"]).ask(&request))
    };
    assert_eq!(change(&|_| {}), None);
    let versions = |min: u16, max: u16| {
        change(&move |request| {
            if let Request::Hello {
                version_min,
                version_max,
                ..
            } = request
            {
                (*version_min, *version_max) = (min, max);
            }
        })
    };
    assert_eq!(versions(2, 9), Some(Status::Version));
    assert_eq!(versions(0, 0), Some(Status::Version));
    assert_eq!(versions(3, 1), Some(Status::BadFrame));
    assert_eq!(versions(0, 1), None);
    let zero = |which: u8| {
        change(&move |request| {
            if let Request::Hello {
                receives,
                client_id,
                key_name,
                ..
            } = request
            {
                match which {
                    0 => *receives = 0,
                    1 => *client_id = 0,
                    2 => key_name.0.clear(),
                    _ => key_name.0 = vec![b'x'; 65],
                }
            }
        })
    };
    for which in 0..4 {
        assert_eq!(zero(which), Some(Status::BadFrame), "{which}");
    }
}

#[test]
fn replayed_and_out_of_order_requests_end_the_session() {
    for number in [1, 2, 3] {
        let mut bench = Bench::ready(Role::Read);
        assert!(matches!(
            bench.ask_as(4, &Request::Renew { retired: 5 }),
            Step::Do(_)
        ));
        let step = bench.ask_as(number.min(4), &Request::Renew { retired: 5 });
        assert!(ends_with(&step, Status::Order) && bench.ended());
    }
    let mut same = Bench::ready(Role::Read);
    assert!(matches!(
        same.ask_as(4, &Request::Renew { retired: 5 }),
        Step::Do(_)
    ));
    assert!(ends_with(
        &same.ask_as(4, &Request::Renew { retired: 5 }),
        Status::Order
    ));
    for again in [hello("key"), Request::Auth { proof: [0; 32] }] {
        let mut bench = Bench::ready(Role::Read);
        assert!(ends_with(&bench.ask(&again), Status::Order) && bench.ended());
    }
}

#[test]
fn requests_past_the_credits_end_the_session() {
    let mut bench = Bench::ready(Role::Write);
    let delete = Request::Delete {
        dataset: DATASET,
        operation: 1,
        key: Bytes::from(&b"k"[..]),
    };
    for _ in 0..16 {
        assert!(matches!(bench.ask(&delete), Step::Do(_)));
        bench.session.defer();
    }
    bench.session.answered();
    assert!(matches!(bench.ask(&delete), Step::Do(_)));
    bench.session.defer();
    assert!(ends_with(&bench.ask(&delete), Status::Order) && bench.ended());
}

#[test]
fn malformed_frames_end_the_session_with_the_reason() {
    let mut good = Vec::new();
    encode_request(100, &Request::Renew { retired: 5 }, &mut good).unwrap();
    let with = |at: usize, byte: u8| {
        let mut frame = good.clone();
        frame[at] = byte;
        frame
    };
    let oversized = {
        let mut frame = vec![0; kv_proto::control::FRAME_MAX_BYTES + 1];
        frame[..good.len()].copy_from_slice(&good);
        frame
    };
    for (frame, expected) in [
        (good[..good.len() - 1].to_vec(), Status::BadFrame),
        ([&good[..], &[0]].concat(), Status::BadFrame),
        (good[..8].to_vec(), Status::BadFrame),
        (Vec::new(), Status::BadFrame),
        (oversized, Status::BadFrame),
        (with(0, 99), Status::BadFrame),
        (with(0, 0x80 | 15), Status::BadFrame),
        (with(1, 2), Status::Version),
        (with(2, 1), Status::BadFrame),
    ] {
        let mut bench = Bench::ready(Role::Read);
        let step = bench.raw(&frame);
        assert!(ends_with(&step, expected), "{step:?} for {frame:?}");
        assert!(bench.ended());
        let mut stranger = Bench::new(Role::Read, &["*"]);
        assert_eq!(stranger.raw(&frame), Step::End(None));
    }
}

#[test]
fn roles_bound_what_is_done() {
    let reserved = |request: &Request| {
        matches!(
            request,
            Request::Stage { .. }
                | Request::Release { .. }
                | Request::SnapshotCreate { .. }
                | Request::SnapshotDrop { .. }
                | Request::Snapshots { .. }
                | Request::SnapshotOpen { .. }
        )
    };
    for role in [Role::Read, Role::Write, Role::Admin] {
        for request in all_requests() {
            let step = Bench::ready(role).ask(&request);
            let expected = if role < needed(&request) {
                Some(Status::Forbidden)
            } else if reserved(&request) {
                Some(Status::Unsupported)
            } else {
                None
            };
            assert_eq!(status(&step), expected, "{role:?} {}", request.name());
            if expected.is_none() {
                assert_eq!(step, Step::Do(request));
            }
        }
    }
    let writes = all_requests()
        .iter()
        .filter(|request| needed(request) == Role::Write)
        .count();
    let admin = all_requests()
        .iter()
        .filter(|request| needed(request) == Role::Admin)
        .count();
    assert_eq!((writes, admin), (7, 3));
}

#[test]
fn a_key_names_only_its_own_datasets() {
    let mut bench = Bench::ready(Role::Admin);
    let name = |name: &str| Bytes::from(name.as_bytes());
    for request in [
        Request::Open { name: name("dogs") },
        Request::Create { name: name("dogs") },
        Request::Drop { name: name("dogs") },
        Request::Rename {
            from: name("cats"),
            to: name("dogs"),
        },
        Request::Rename {
            from: name("dogs"),
            to: name("cats"),
        },
    ] {
        assert_eq!(
            status(&bench.ask(&request)),
            Some(Status::Forbidden),
            "{request:?}"
        );
    }
    for bad in ["", "CATS", "a/b", &"x".repeat(65)] {
        assert_eq!(
            status(&bench.ask(&Request::Open { name: name(bad) })),
            Some(Status::BadName)
        );
    }
}

#[test]
fn what_is_not_open_cannot_be_used() {
    let mut bench = Bench::ready(Role::Admin);
    bench.session.holds.closed(&DATASET);
    for request in all_requests() {
        if dataset(&request).is_some() {
            assert_eq!(
                status(&bench.ask(&request)),
                Some(Status::NoDataset),
                "{}",
                request.name()
            );
        }
    }
}

#[test]
fn fields_out_of_range_are_refused() {
    let key = |len: usize| Bytes(vec![b'k'; len]);
    let lookup = |len| Request::Lookup {
        dataset: DATASET,
        key: key(len),
    };
    let mut bench = Bench::ready(Role::Write);
    assert_eq!(status(&bench.ask(&lookup(0))), Some(Status::BadKey));
    assert_eq!(status(&bench.ask(&lookup(1025))), Some(Status::BadKey));
    assert_eq!(status(&bench.ask(&lookup(1024))), None);
    let unnumbered = Request::Delete {
        dataset: DATASET,
        operation: 0,
        key: key(1),
    };
    assert!(ends_with(&bench.ask(&unnumbered), Status::BadFrame));
    let nothing = Request::List {
        dataset: DATASET,
        cursor: 0,
        limit: 0,
    };
    assert!(ends_with(
        &Bench::ready(Role::Read).ask(&nothing),
        Status::BadFrame
    ));
}

#[test]
fn renewals_acknowledge_what_was_told_and_never_less() {
    let mut bench = Bench::ready(Role::Read);
    assert_eq!(
        bench.ask(&Request::Renew { retired: 5 }),
        Step::Do(Request::Renew { retired: 5 })
    );
    assert!(ends_with(&bench.ask(&Request::Renew { retired: 4 }), Status::Order) && bench.ended());
    let mut ahead = Bench::ready(Role::Read);
    assert!(ends_with(
        &ahead.ask(&Request::Renew { retired: 6 }),
        Status::Order
    ));
    let mut told = Bench::ready(Role::Read);
    told.session.holds.told(6);
    assert_eq!(status(&told.ask(&Request::Renew { retired: 6 })), None);
    assert_eq!(told.session.holds.get(&DATASET).unwrap().acked, 6);
}

#[test]
fn too_many_puts_are_refused_but_a_retry_is_not() {
    let mut bench = Bench::ready(Role::Write);
    bench.options.puts_per_session_max = 1;
    let alloc = |operation| Request::Alloc {
        dataset: DATASET,
        operation,
        value_len_bytes: 1,
        key: Bytes::from(&b"k"[..]),
    };
    bench
        .session
        .puts
        .begin(1, DATASET, 1, crate::store::Kind::Small, 1..=1, NOW)
        .unwrap();
    assert_eq!(status(&bench.ask(&alloc(2))), Some(Status::Busy));
    assert_eq!(bench.ask(&alloc(1)), Step::Do(alloc(1)));
}

proptest! {
    /// Any bytes, in any phase, end the session or are answered; nothing panics, and a stranger becomes nobody.
    #[test]
    fn any_bytes_are_survived(frames in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 1..8)) {
        let mut stranger = Bench::new(Role::Admin, &["*"]);
        let mut ready = Bench::ready(Role::Admin);
        for frame in frames {
            stranger.raw(&frame);
            prop_assert!(stranger.session.identity().is_none());
            let step = ready.raw(&frame);
            let proven = matches!(step, Step::Ready { .. });
            prop_assert!(!proven);
        }
    }

    /// A frame of the right shape with one byte changed never does anything but what some request may do.
    #[test]
    fn one_wrong_byte_is_survived(which in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let requests = all_requests();
        let mut frame = Vec::new();
        encode_request(100, &requests[which.index(requests.len())], &mut frame).unwrap();
        let at = at.index(frame.len());
        frame[at] = byte;
        let mut reader = Bench::ready(Role::Read);
        if let Step::Do(request) = reader.raw(&frame) {
            prop_assert_eq!(needed(&request), Role::Read);
        }
    }
}
