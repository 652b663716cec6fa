//! What a session takes of the server: memory out of the budget before it is given, and no more places than its share.

use std::sync::Arc;

use crate::common::{Raw, Running, Setup, eventually};
use kv_fabric::FabricError;
use kv_fabric::sim::Sim;
use kv_proto::control::{Bytes, Request, Status};

/// Strangers that were let in, until one was told why it was not.
fn crowd(server: &Running<Sim>, fabric: &Arc<Sim>, most: usize) -> (Vec<Raw>, String) {
    let mut held = Vec::new();
    while held.len() <= most {
        match Raw::connect(fabric.clone(), &server.address) {
            Ok(raw) => held.push(raw),
            Err(FabricError::Rejected { reason, .. }) => return (held, reason),
            Err(error) => panic!("{error}"),
        }
    }
    panic!("{most} connections were let in");
}

/// Staging memory and frames were outside the budget: a thousand sessions took 8 GiB that nobody had allowed.
#[test]
fn sessions_past_the_memory_budget_are_refused_and_the_others_go_on() {
    let mut setup = Setup::new();
    setup.store.memory_budget_bytes = 64 << 20;
    setup.options.unauthenticated_max = 1000;
    setup.options.handshake_timeout_ms = 600_000;
    let server = setup.start::<Sim>();
    let (mut first, opened) = server.with_dataset("cats");
    first.put(opened.dataset, b"early", b"value").unwrap();
    assert!(first.figure([0; 16], "staging_bytes") == 8 << 20);
    let before = first.figure([0; 16], "memory_used_bytes");

    let mut writers = Vec::new();
    let mut late = loop {
        let raw = server.session(&server.setup.writer);
        if raw.staging_len_bytes == 0 {
            break raw;
        }
        writers.push(raw);
        assert!(writers.len() < 8, "more staging memory than the budget has");
    };
    let taken = first.figure([0; 16], "memory_used_bytes") - before;
    assert!(
        !writers.is_empty() && taken >= (writers.len() as u64) << 23,
        "{taken}"
    );
    // It cannot write values, and may do all else.
    let dataset = late.open("cats").dataset;
    let refused = late
        .ask(&Request::Alloc {
            dataset,
            operation: 1,
            value_len_bytes: 5,
            key: Bytes::from(&b"late"[..]),
        })
        .unwrap_err();
    assert_eq!(refused.status, Status::NoMemory);
    assert!(refused.text.contains("--memory-budget"), "{}", refused.text);
    late.ask(&Request::Delete {
        dataset,
        operation: 2,
        key: Bytes::from(&b"early"[..]),
    })
    .unwrap();
    // An empty value takes none of that memory.
    late.put_as(dataset, 3, b"empty", b"").unwrap();

    // Connections take memory too, and what data leaves none of was set aside.
    let (strangers, reason) = crowd(&server, &server.fabric, 200);
    assert!(reason.contains("memory budget"), "{reason}");
    assert!(strangers.len() >= 16, "{}", strangers.len());
    let used = first.figure([0; 16], "memory_used_bytes");
    assert!(used <= 64 << 20, "{used}");
    first.put(opened.dataset, b"k", b"value").unwrap();
    writers[0].open("cats");
    writers[0].put(opened.dataset, b"l", b"value").unwrap();

    // What ends gives back what it took.
    drop(strangers);
    writers.pop().unwrap().ask(&Request::Bye {}).unwrap();
    eventually("a session is given staging memory again", || {
        let mut raw = server.session(&server.setup.writer);
        let len = raw.staging_len_bytes;
        raw.ask(&Request::Bye {}).unwrap();
        (len == 8 << 20).then_some(())
    });
}

/// One host could take all places of connections that have not proven a key, and nobody else came in.
#[test]
fn one_origin_takes_no_more_than_its_share_of_unproven_connections() {
    let mut setup = Setup::new();
    setup.options.unauthenticated_max = 9;
    setup.options.unauthenticated_per_origin_max = 4;
    setup.options.handshake_timeout_ms = 600_000;
    let server = setup.start::<Sim>();
    let host = |name| Arc::new(server.fabric.from_host(name));
    let (mut greedy, reason) = crowd(&server, &host("greedy"), 4);
    assert!(greedy.len() == 4 && reason.contains("from there"), "{reason}");
    let (modest, reason) = crowd(&server, &host("modest"), 4);
    assert!(modest.len() == 4 && reason.contains("from there"), "{reason}");
    let (third, reason) = crowd(&server, &host("third"), 4);
    assert!(third.len() == 1 && !reason.contains("from there"), "{reason}");
    // Who proves a key takes no such place any more.
    greedy[0].begin(&server.setup.reader, 1).unwrap();
    let (more, _) = crowd(&server, &host("greedy"), 4);
    assert_eq!(more.len(), 1);
}
