//! Copies beside what clients write meanwhile.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::time::Instant;

use super::compacting::{eager, only_dead};
use super::support::{PATIENCE, Rig, bytes, copy_directory, faulty, scratch};
use crate::store::BeginPut;
use crate::store::files::{Call, Files};
use crate::store::log::{Op, Record, Relocation, Task};

/// A value and a deletion that the log took before the copy of what they replace, and publishes with it.
#[test]
fn a_copy_never_replaces_what_is_newer() {
    let directory = scratch();
    let (hold, syncs) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let faults = {
        let (hold, syncs) = (Arc::clone(&hold), Arc::clone(&syncs));
        move |call: Call, path: &Path| {
            if call == Call::Sync && path.extension().is_some_and(|extension| extension == "segment") {
                syncs.fetch_add(1, Ordering::AcqRel);
                while hold.load(Ordering::Acquire) {
                    std::thread::yield_now();
                }
            }
            None
        }
    };
    let rig = Rig::with(only_dead(directory.path()), faulty(Box::new(faults))).unwrap();
    rig.store.create("set").unwrap();
    let dataset = rig.dataset("set");
    let mut copies = Vec::new();
    for key in [b"over".as_slice(), b"gone", b"kept"] {
        let value = bytes(key.len() as u64, 500);
        let put = rig
            .put_as("set", (5, copies.len() as u64 + 1), key, &value)
            .unwrap();
        copies.push(Relocation {
            record: Record {
                sequence: Some(put.sequence),
                kind: kv_proto::layout::record_kind::VALUE,
                part: 0,
                client: 5,
                operation: copies.len() as u64 + 1,
                key: key.to_vec(),
                hash: dataset.hash(key),
                value_crc: kv_proto::crc::crc32c(&value),
                value,
            },
            from: put.locator,
        });
    }
    let before = syncs.load(Ordering::Acquire);
    hold.store(true, Ordering::Release);
    let holding = rig.start_put(&dataset, (6, 1), b"holds", b"the log").unwrap();
    while syncs.load(Ordering::Acquire) == before {
        std::thread::yield_now();
    }
    let newer = rig.start_put(&dataset, (6, 2), b"over", b"newer").unwrap();
    let deleted = rig.token();
    dataset.delete(6, 3, b"gone", deleted).unwrap();
    let (done, answers) = channel();
    dataset.queue.push(Op::Task(Task::Copy { copies, done })).unwrap();
    hold.store(false, Ordering::Release);
    for token in [holding, newer, deleted] {
        rig.answer(token).unwrap();
    }
    let mut landed: Vec<_> = answers
        .iter()
        .map(|(number, result)| (number, result.unwrap().is_some()))
        .collect();
    landed.sort_unstable();
    assert_eq!(landed, [(0, false), (1, false), (2, true)]);
    let crashed = scratch();
    copy_directory(directory.path(), crashed.path());
    let live = rig.figure("set", "live_record_bytes");
    for rig in [
        rig,
        Rig::with(only_dead(crashed.path()), Files::default()).unwrap(),
    ] {
        assert_eq!(rig.get("set", b"over"), Some(b"newer".to_vec()));
        assert_eq!(rig.get("set", b"gone"), None);
        assert_eq!(rig.get("set", b"kept"), Some(bytes(4, 500)));
        assert_eq!(rig.figure("set", "live_record_bytes"), live);
    }
}

/// Parts of a value that is still arriving keep their segment, however dead it looks; an operation in progress is so
/// whatever is compacted meanwhile.
#[test]
fn a_value_that_is_arriving_keeps_its_parts() {
    let directory = scratch();
    let rig = Rig::with(eager(directory.path()), Files::default()).unwrap();
    rig.store.create("set").unwrap();
    let dataset = rig.dataset("set");
    let value = bytes(9, 300_000);
    let BeginPut::New(mut put) = dataset.begin_put(1, 1, b"large", value.len() as u64).unwrap() else {
        panic!("begun before");
    };
    let mut sent = 0;
    while sent < 250_000 {
        let len = 25_000;
        if put
            .append(len, |out| out.copy_from_slice(&value[sent..sent + len]))
            .is_ok()
        {
            sent += len;
        }
    }
    // Its segment is sealed, and all that is counted in it dies.
    let deadline = Instant::now() + PATIENCE;
    let mut round = 0;
    while round < 150 || rig.figure("set", "compaction_removed_segments_count") < 3 {
        rig.put("set", b"again", &bytes(round, 30_000)).unwrap();
        rig.store.release(&dataset.id(), rig.store.retired());
        round += 1;
        assert!(Instant::now() < deadline, "{:?}", dataset.stat());
    }
    while sent < value.len() {
        let len = 25_000.min(value.len() - sent);
        if put
            .append(len, |out| out.copy_from_slice(&value[sent..sent + len]))
            .is_ok()
        {
            sent += len;
        }
    }
    let token = rig.token();
    dataset.commit(put, kv_proto::crc::crc32c(&value), token);
    rig.answer(token).unwrap();
    assert_eq!(rig.get("set", b"large"), Some(value.clone()));
    // Now they are a value's like others, and move.
    let first = |rig: &Rig| rig.dataset("set").segment(1).is_some();
    while first(&rig) {
        rig.put("set", b"again", &bytes(round, 30_000)).unwrap();
        rig.store.release(&dataset.id(), rig.store.retired());
        round += 1;
        assert!(Instant::now() < deadline, "{:?}", dataset.stat());
    }
    assert_eq!(rig.get("set", b"large"), Some(value.clone()));
    drop((dataset, rig));
    assert_eq!(Rig::open(directory.path()).get("set", b"large"), Some(value));
}
