//! What was forgotten of operations is answered so, and nothing that was done is done again.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use kv_proto::layout::{Locator, OPERATIONS_REMEMBERED, OperationEntry};

use super::check::flip;
use super::support::{Rig, copy_directory, scratch, sealed_end, segment_files_in};
use crate::store::limits::{FLOORS_MAX, OPERATIONS_SERVER_MAX, OPERATIONS_SHARE, OPERATIONS_TOTAL_MAX};
use crate::store::operations::{Begin, Operations};
use crate::store::{BeginPut, Committed};

fn done(sequence: u64) -> Committed {
    let locator = Locator {
        segment: 1,
        offset_units: sequence as u32,
        key_len_bytes: 1,
        ..Locator::default()
    };
    Committed {
        sequence,
        locator,
        existed: false,
    }
}

fn run(operations: &Operations, client: u64, operation: u64) {
    let Begin::New(attempt) = operations.begin(client, operation) else {
        panic!("operation {operation} of client {client} is not new");
    };
    assert!(operations.commit(client, operation, attempt));
    operations.finish(client, operation, Some(done(client * 10_000 + operation)));
}

fn is_unknown(operations: &Operations, client: u64, operation: u64) -> bool {
    matches!(operations.begin(client, operation), Begin::Unknown)
}

/// So many others that client 1, which did 10 operations, is forgotten whole.
fn with_one_forgotten() -> Operations {
    let operations = Operations::default();
    (1..=10).for_each(|operation| run(&operations, 1, operation));
    (2..=OPERATIONS_TOTAL_MAX as u64).for_each(|client| run(&operations, client, 1));
    operations
}

fn again(entries: &[OperationEntry]) -> Operations {
    let operations = Operations::default();
    entries.iter().for_each(|entry| operations.take_entry(entry));
    operations.all_recovered(true);
    operations
}

#[test]
fn a_client_that_was_forgotten_whole_begins_nothing_anew() {
    let first = with_one_forgotten();
    let second = again(&first.entries());
    let third = again(&second.entries());
    for operations in [first, second, third] {
        assert!(operations.total() <= OPERATIONS_TOTAL_MAX);
        for operation in 1..=10 {
            assert!(is_unknown(&operations, 1, operation), "{operation}");
        }
        assert!(matches!(operations.begin(1, 11), Begin::New(_)));
        assert!(matches!(
            operations.begin(OPERATIONS_TOTAL_MAX as u64, 1),
            Begin::Done(_)
        ));
    }
}

#[test]
fn an_attempt_that_was_given_up_leaves_the_floor() {
    let operations = with_one_forgotten();
    let Begin::New(attempt) = operations.begin(1, 11) else {
        panic!("it is new");
    };
    operations.abort(1, 11, attempt);
    assert!(is_unknown(&operations, 1, 10));
    assert!(is_unknown(&again(&operations.entries()), 1, 10));
}

/// A chunk of a checkpoint lists no operation that was forgotten before it is written, but that it was.
#[test]
fn a_checkpoint_tells_what_was_forgotten_of_its_records() {
    let operations = with_one_forgotten();
    let mut chunk: Vec<OperationEntry> = (1..=10)
        .map(|operation| crate::store::operations::entry(1, operation, &done(operation)))
        .collect();
    chunk.push(crate::store::operations::entry(
        OPERATIONS_TOTAL_MAX as u64,
        1,
        &done(5),
    ));
    operations.retain_remembered(&mut chunk);
    assert_eq!(chunk.len(), 2);
    let known = again(&chunk);
    assert!(is_unknown(&known, 1, 10));
    assert!(matches!(
        known.begin(OPERATIONS_TOTAL_MAX as u64, 1),
        Begin::Done(_)
    ));
}

#[test]
fn what_is_kept_of_clients_that_were_forgotten_has_a_limit() {
    let operations = Operations::default();
    for client in 1..=(OPERATIONS_TOTAL_MAX + FLOORS_MAX + 100) as u64 {
        run(&operations, client, 3);
    }
    let floors = operations.entries().len() - operations.total();
    assert_eq!(floors, FLOORS_MAX);
    assert!(is_unknown(&operations, 200, 3), "one of the newest");
    assert!(matches!(operations.begin(1, 3), Begin::New(_)), "the oldest");
}

/// FOOTERs of a server that wrote no floors, and FOOTERs of which some could not be read.
#[test]
fn without_floors_what_is_known_tells() {
    let entry = |operation: u64| crate::store::operations::entry(1, operation, &done(operation));
    let old: Vec<_> = (51..51 + OPERATIONS_REMEMBERED as u64).map(entry).collect();
    assert!(is_unknown(&again(&old), 1, 50));
    let few: Vec<_> = (51..60).map(entry).collect();
    assert!(matches!(again(&few).begin(1, 50), Begin::New(_)));
    let operations = Operations::default();
    few.iter().for_each(|entry| operations.take_entry(entry));
    operations.all_recovered(false);
    assert!(is_unknown(&operations, 1, 50));
}

fn newest_segment(root: &Path) -> PathBuf {
    let set = std::fs::read_dir(root.join("datasets"))
        .unwrap()
        .next()
        .unwrap()
        .unwrap();
    segment_files_in(&set.path()).pop().unwrap()
}

/// The retry of a client that was away while others did much is refused, whatever became of the server meanwhile.
#[test]
fn a_retry_after_a_client_was_forgotten_whole_changes_nothing() {
    let directory = scratch();
    let rig = Rig::open(directory.path());
    rig.store.create("set").unwrap();
    for operation in 1..=5 {
        rig.put_as("set", (1, operation), b"key", b"old").unwrap();
    }
    rig.put_as("set", (2, 1), b"key", b"new").unwrap();
    let mut others = 3..;
    let mut left = OPERATIONS_TOTAL_MAX;
    while left > 0 {
        let client = others.next().unwrap();
        for operation in 1..=OPERATIONS_REMEMBERED.min(left) as u64 {
            rig.put_as("set", (client, operation), b"other", b"value")
                .unwrap();
        }
        left = left.saturating_sub(OPERATIONS_REMEMBERED);
    }
    let refused = |rig: &Rig, what: &str| {
        for operation in 1..=5 {
            let begun = rig.dataset("set").begin_put(1, operation, b"key", 3).unwrap();
            assert!(
                matches!(begun, BeginPut::Unknown),
                "{what}: {operation}: {begun:?}"
            );
        }
        assert_eq!(rig.get("set", b"key"), Some(b"new".to_vec()));
    };
    refused(&rig, "running");
    let crashed = scratch();
    copy_directory(directory.path(), crashed.path());
    drop(rig);
    let rig = Rig::open(directory.path());
    refused(&rig, "sealed");
    // Another segment, whose FOOTERs are damaged then: older ones tell.
    rig.put("set", b"more", b"value").unwrap();
    drop(rig);
    let newest = newest_segment(directory.path());
    let footers = sealed_end(&std::fs::read(&newest).unwrap());
    flip(&newest, footers as u64 + 70, 1);
    refused(&Rig::open(directory.path()), "FOOTERs damaged");
    drop(Rig::open(crashed.path()));
    // Its FOOTERs list what was remembered when it was sealed at the start.
    refused(&Rig::open(crashed.path()), "crashed");
}

/// A dataset with more than its share makes room for the others, which have theirs whatever it has.
#[test]
fn all_datasets_together_have_a_limit() {
    let server = Arc::default();
    let fill = |clients: usize| {
        let operations = Operations::of(&server);
        (1..=clients as u64).for_each(|client| run(&operations, client, 1));
        operations
    };
    let first = fill(OPERATIONS_TOTAL_MAX);
    let second = fill(OPERATIONS_TOTAL_MAX);
    assert_eq!(first.total(), OPERATIONS_TOTAL_MAX);
    assert_eq!(second.total(), OPERATIONS_SHARE);
    assert_eq!(server.load(Ordering::Relaxed), OPERATIONS_SERVER_MAX);
    let third = fill(OPERATIONS_SHARE);
    assert_eq!(third.total(), OPERATIONS_SHARE);
    // The next of the first makes room for what the third has.
    run(&first, 1 << 30, 1);
    assert_eq!(first.total(), OPERATIONS_SHARE);
    assert!(is_unknown(&first, 2000, 1));
    drop((second, third));
    assert_eq!(server.load(Ordering::Relaxed), OPERATIONS_SHARE);
}
