//! The index under splits and overwrites, as a reader sees it who only knows kv-proto's rules.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::support::{Miss, Rig, bytes, options, scratch};
use crate::store::StoreOptions;
use crate::store::files::Files;
use crate::store::limits::LIST_GROUPS_MAX;
use kv_proto::layout::{BUCKET_SLOTS, GROUP_BUCKETS, GROUP_BYTES};

const MIB: u64 = super::support::MIB;

fn roomy(root: &std::path::Path) -> Rig {
    let options = StoreOptions {
        segment_bytes: 16 * MIB,
        ..options(root)
    };
    Rig::with(options, Files::default()).unwrap()
}

/// Puts keys `from..to` with short values, many at a time.
fn fill(rig: &Rig, from: u64, to: u64) {
    let dataset = rig.dataset("set");
    let mut waiting = std::collections::VecDeque::new();
    for key in from..to {
        if waiting.len() == 2000 {
            rig.answer(waiting.pop_front().unwrap()).unwrap();
        }
        let identity = (1 + (rig.store.epoch() << 32), key + 1);
        waiting.push_back(
            rig.start_put(&dataset, identity, &key.to_le_bytes(), &value_of(key, 0))
                .unwrap(),
        );
    }
    for token in waiting {
        rig.answer(token).unwrap();
    }
}

fn value_of(key: u64, version: u64) -> Vec<u8> {
    [key, version].map(u64::to_le_bytes).concat()
}

#[test]
fn a_hundred_thousand_keys_are_found_before_and_after_a_restart() {
    const KEYS: u64 = 100_000;
    let directory = scratch();
    for start in 0..2 {
        let rig = roomy(directory.path());
        if start == 0 {
            rig.store.create("set").unwrap();
            fill(&rig, 0, KEYS);
        }
        let reader = rig.reader("set");
        for key in 0..KEYS {
            let found = reader.lookup(&key.to_le_bytes());
            assert_eq!(
                found.map(|(_, value)| value),
                Ok(value_of(key, 0)),
                "key {key} start {start}"
            );
        }
        for key in KEYS..KEYS + 5000 {
            assert_eq!(reader.lookup(&key.to_le_bytes()), Err(Miss::NotFound));
        }
        assert_eq!(rig.figure("set", "keys_count"), KEYS);
        pages_are_bounded(&rig, KEYS);
        if start == 0 {
            assert!(
                rig.dataset("set").directory().depth > 7,
                "the directory was doubled"
            );
        } else {
            let per_key = rig.figure("set", "index_bytes") as f64 / KEYS as f64;
            assert!(per_key < 80.0, "{per_key} bytes of index a key");
        }
    }
}

/// However much a page may hold, it comes of so many groups at most, and the cursor goes on.
fn pages_are_bounded(rig: &Rig, keys: u64) {
    const GROUP_SLOTS: u64 = GROUP_BUCKETS as u64 * BUCKET_SLOTS as u64;
    let dataset = rig.dataset("set");
    let (mut listed, mut cursor, mut pages) = (0, 0, 0);
    loop {
        let (entries, next, done) = dataset.list(cursor, usize::MAX, usize::MAX);
        assert!(entries.len() as u64 <= LIST_GROUPS_MAX as u64 * GROUP_SLOTS);
        listed += entries.len() as u64;
        pages += 1;
        if done {
            break;
        }
        assert!(next > cursor, "{next} after {cursor}");
        cursor = next;
    }
    assert_eq!(listed, keys);
    assert!(pages > 1);
}

/// Readers that never ask the server see, at every moment, a value that was current, or that they must ask.
#[test]
fn readers_see_old_or_new_values_or_that_they_are_late() {
    const KEYS: u64 = 15_000;
    const HOT: u64 = 50;
    let directory = scratch();
    let rig = roomy(directory.path());
    rig.store.create("set").unwrap();
    fill(&rig, 0, HOT);
    let written: Vec<AtomicU64> = (0..HOT).map(|_| AtomicU64::new(0)).collect();
    let stop = AtomicBool::new(false);
    let (hits, lates) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let dataset = rig.dataset("set");
            let mut reader = rig.reader("set");
            let mut round = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                round += 1;
                let key = round % HOT;
                let before = written[key as usize].load(Ordering::Acquire);
                match reader.lookup(&key.to_le_bytes()) {
                    Ok((_, value)) => {
                        let version = u64::from_le_bytes(value[8..].try_into().unwrap());
                        assert_eq!(value, value_of(key, version), "another key's value");
                        assert!(version >= before, "version {version} after {before} was answered");
                        hits.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(Miss::NotFound) => panic!("key {key} was there all the time"),
                    Err(Miss::Torn) => {}
                    Err(Miss::Stale) => {
                        lates.fetch_add(1, Ordering::Relaxed);
                        reader.refresh(&dataset);
                    }
                }
            }
        });
        let overwriter = scope.spawn(|| {
            let mut version = 0;
            while !stop.load(Ordering::Relaxed) {
                version += 1;
                for key in 0..HOT {
                    rig.put_as(
                        "set",
                        (99, version * HOT + key),
                        &key.to_le_bytes(),
                        &value_of(key, version),
                    )
                    .unwrap();
                    written[key as usize].store(version, Ordering::Release);
                }
            }
        });
        fill(&rig, HOT, KEYS);
        stop.store(true, Ordering::Relaxed);
        reader.join().unwrap();
        overwriter.join().unwrap();
    });
    let (hits, lates) = (hits.into_inner(), lates.into_inner());
    assert!(hits > 1000 && lates > 0, "{hits} hits, {lates} late");
}

/// What was retired is not reused before it is released: a reader that knows an old directory finds stamped buckets,
/// never another group's.
#[test]
fn retired_blocks_say_so_until_they_are_released() {
    let directory = scratch();
    let rig = roomy(directory.path());
    let id = rig.store.create("set").unwrap();
    fill(&rig, 0, 100);
    let old = rig.reader("set");
    let since = rig.store.retired();
    fill(&rig, 100, 20_000);
    let waiting = rig.figure("set", "retired_waiting_count");
    assert!(waiting > 20);
    // What was acknowledged before frees nothing of it.
    rig.store.release(&id, since);
    assert_eq!(rig.figure("set", "retired_waiting_count"), waiting);
    let mut late = 0;
    for key in 0..20_000_u64 {
        match old.lookup(&key.to_le_bytes()) {
            Ok((_, value)) => assert_eq!(value, value_of(key, 0)),
            Err(Miss::Stale) => late += 1,
            Err(other) => panic!("{other:?}"),
        }
    }
    assert!(late > 0);
    assert!(rig.dataset("set").changes(since, 4000).is_some());
    let before = rig.figure("set", "index_bytes");
    rig.store.release(&id, rig.store.retired());
    assert_eq!(rig.figure("set", "retired_waiting_count"), 0);
    fill(&rig, 20_000, 24_000);
    assert!(
        rig.figure("set", "index_bytes") < before + GROUP_BYTES as u64,
        "released blocks are used first"
    );
    let reader = rig.reader("set");
    for key in 0..24_000_u64 {
        assert_eq!(reader.lookup(&key.to_le_bytes()).unwrap().1, value_of(key, 0));
    }
}

#[test]
fn no_memory_for_the_index_refuses_before_anything_is_written() {
    let directory = scratch();
    let options = StoreOptions {
        memory_budget_bytes: 4 * MIB + 600_000,
        segment_bytes: 4 * MIB,
        ..options(directory.path())
    };
    let rig = Rig::with(options, Files::default()).unwrap();
    rig.store.create("set").unwrap();
    let mut stored = 0_u64;
    let error = loop {
        match rig.put("set", &stored.to_le_bytes(), &bytes(stored, 10)) {
            Ok(_) => stored += 1,
            Err(error) => break error,
        }
    };
    assert!(
        matches!(error, crate::error::StorageError::Memory { .. }),
        "{error}"
    );
    assert!(stored > 1000, "{stored}");
    let written = rig.figure("set", "record_written_bytes");
    // Keys that are there can still be overwritten.
    rig.put("set", &0_u64.to_le_bytes(), b"again").unwrap();
    assert!(rig.put("set", &stored.to_le_bytes(), b"new").is_err());
    assert!(rig.figure("set", "record_written_bytes") - written < 200);
    assert_eq!(rig.get("set", &stored.to_le_bytes()), None);
    // And one that was deleted gives its slot to another.
    assert_eq!(rig.figure("set", "keys_count"), stored);
}

/// An index that grew up to the budget fits it again after a restart, however many keys that is.
#[test]
fn an_index_takes_no_more_memory_after_a_restart() {
    let directory = scratch();
    let rig = roomy(directory.path());
    rig.store.create("set").unwrap();
    let mut keys = 0;
    // Just past the numbers for which a plan of three in four slots doubles.
    for next in [500, 1000, 2000, 4000, 7700, 15_400] {
        fill(&rig, keys, next);
        keys = next;
        let id = rig.dataset("set").id();
        rig.store.release(&id, rig.store.retired());
        let grown = rig.figure("set", "index_bytes");
        let copy = scratch();
        super::support::copy_directory(directory.path(), copy.path());
        let again = roomy(copy.path());
        assert_eq!(again.figure("set", "keys_count"), keys);
        let recovered = again.figure("set", "index_bytes");
        assert!(
            recovered <= grown,
            "{keys} keys: {recovered} bytes, {grown} before"
        );
    }
}
