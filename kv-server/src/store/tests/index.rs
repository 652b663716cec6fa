//! The index under splits and overwrites, as a reader sees it who only knows kv-proto's rules.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::support::{Miss, Rig, bytes, copy_directory, options, scratch, sealed_end, segment_files_in};
use crate::store::StoreOptions;
use crate::store::files::Files;
use crate::store::limits::{LIST_GROUPS_MAX, REBUILD_BYTES_MAX};
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
    fill_with(rig, from, to, 0);
}

/// The same with another version of the values.
fn fill_with(rig: &Rig, from: u64, to: u64, version: u64) {
    let dataset = rig.dataset("set");
    let mut waiting = std::collections::VecDeque::new();
    for key in from..to {
        if waiting.len() == 2000 {
            rig.answer(waiting.pop_front().unwrap()).unwrap();
        }
        let identity = (1 + version + (rig.store.epoch() << 32), key + 1);
        let value = value_of(key, version);
        let put = rig.start_put(&dataset, identity, &key.to_le_bytes(), &value);
        waiting.push_back(put.unwrap());
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
        let (entries, next, done) = dataset.list(cursor, usize::MAX, usize::MAX).unwrap();
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
    // Where much came back, groups are moved out of arenas that are nearly empty, and theirs is retired in turn.
    let mut releases = 0;
    while rig.figure("set", "retired_waiting_count") > 0 {
        rig.store.release(&id, rig.store.retired());
        releases += 1;
        assert!(releases < 20, "what is released goes on retiring more");
    }
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

/// A start whose records are more than it may hold at a time goes over them several times, and counts the same.
#[test]
fn an_index_is_rebuilt_in_several_passes() {
    const KEYS: u64 = 14_000;
    const FIGURES: [&str; 4] = [
        "keys_count",
        "value_bytes",
        "live_record_bytes",
        "tombstone_record_bytes",
    ];
    let open = |root: &std::path::Path| {
        let mut options = options(root);
        // Nothing moves: it counts what the log had counted.
        options.compaction.dead_share = 1.0;
        Rig::with(options, Files::default()).unwrap()
    };
    let directory = scratch();
    let rig = open(directory.path());
    rig.store.create("set").unwrap();
    fill(&rig, 0, KEYS);
    fill_with(&rig, 0, 4000, 1);
    for key in (0..KEYS).step_by(50) {
        rig.delete("set", &key.to_le_bytes()).unwrap();
    }
    let large = |number: u64| (format!("large {number}").into_bytes(), bytes(number, 150_000));
    for (key, value) in (0..5).map(large) {
        rig.put("set", &key, &value).unwrap();
    }
    let figures = FIGURES.map(|figure| rig.figure("set", figure));
    assert!(KEYS as usize > REBUILD_BYTES_MAX / 100, "it fits one pass");
    for damages in [false, true] {
        let copy = scratch();
        copy_directory(directory.path(), copy.path());
        if damages {
            // A segment whose FOOTERs do not validate is walked, each time.
            let mut datasets = std::fs::read_dir(copy.path().join("datasets")).unwrap();
            let path = segment_files_in(&datasets.next().unwrap().unwrap().path())[1].clone();
            let mut file = std::fs::read(&path).unwrap();
            let end = sealed_end(&file);
            file[end + 70] ^= 1;
            std::fs::write(&path, file).unwrap();
        }
        let again = open(copy.path());
        assert_eq!(FIGURES.map(|figure| again.figure("set", figure)), figures);
        assert_eq!(again.figure("set", "damaged_records_count"), 0);
        let reader = again.reader("set");
        for key in 0..KEYS {
            let found = reader.lookup(&key.to_le_bytes()).map(|(_, value)| value);
            let expected = match key {
                key if key % 50 == 0 => Err(Miss::NotFound),
                key if key < 4000 => Ok(value_of(key, 1)),
                key => Ok(value_of(key, 0)),
            };
            assert_eq!(found, expected, "key {key}");
        }
        for (key, value) in (0..5).map(large) {
            assert!(again.get("set", &key) == Some(value));
        }
    }
}

/// Readers that know the directory of before miss no key while most others are deleted, and the index shrinks.
#[test]
fn an_index_shrinks_as_keys_are_deleted() {
    const KEYS: u64 = 20_000;
    let directory = scratch();
    let rig = roomy(directory.path());
    let id = rig.store.create("set").unwrap();
    fill(&rig, 0, KEYS);
    rig.store.release(&id, rig.store.retired());
    let before = rig.figure("set", "index_bytes");
    let dataset = rig.dataset("set");
    let mut reader = rig.reader("set");
    let mut late = 0;
    let deleted: Vec<u64> = (0..KEYS).filter(|key| key % 10 != 0).collect();
    for some in deleted.chunks(500) {
        let begin = |key: &u64| {
            let token = rig.token();
            dataset.delete(7, key + 1, &key.to_le_bytes(), token).unwrap();
            token
        };
        let tokens: Vec<u64> = some.iter().map(begin).collect();
        for token in tokens {
            rig.answer(token).unwrap();
        }
        for kept in (0..KEYS).step_by(10) {
            let mut found = reader.lookup(&kept.to_le_bytes());
            if found.as_ref().err() == Some(&Miss::Stale) {
                late += 1;
                reader.refresh(&dataset);
                found = reader.lookup(&kept.to_le_bytes());
            }
            assert_eq!(found.map(|(_, value)| value), Ok(value_of(kept, 0)), "key {kept}");
        }
        reader.refresh(&dataset);
        rig.store.release(&id, rig.store.retired());
    }
    while rig.figure("set", "retired_waiting_count") > 0 {
        rig.store.release(&id, rig.store.retired());
    }
    let after = rig.figure("set", "index_bytes");
    assert!(late > 0, "no group was joined");
    assert!(after < before / 3, "{before} bytes, {after} after");
    reader.refresh(&dataset);
    for key in 0..KEYS {
        let found = reader.lookup(&key.to_le_bytes()).map(|(_, value)| value);
        let expected = if key % 10 == 0 {
            Ok(value_of(key, 0))
        } else {
            Err(Miss::NotFound)
        };
        assert_eq!(found, expected, "key {key}");
    }
}
