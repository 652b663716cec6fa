//! Putting, finding, deleting, listing, and all of it again after a restart.

use super::support::{MIB, Miss, Rig, bytes, options, scratch};
use crate::error::StorageError;
use crate::store::files::Files;
use crate::store::{BeginDelete, BeginPut, StoreOptions};

#[test]
fn a_value_is_read_by_the_rules_alone() {
    let directory = scratch();
    let rig = Rig::open(directory.path());
    rig.store.create("set").unwrap();
    assert_eq!(rig.get("set", b"key"), None);
    for len in [0, 1, 63, 64, 4096, 65_536, 65_537, 300_000] {
        let key = format!("key {len}");
        let value = bytes(len, len as usize);
        rig.put("set", key.as_bytes(), &value).unwrap();
        assert_eq!(
            rig.get("set", key.as_bytes()).as_ref(),
            Some(&value),
            "{len} bytes"
        );
    }
    assert_eq!(rig.figure("set", "keys_count"), 8);
    assert_eq!(
        rig.figure("set", "value_bytes"),
        1 + 63 + 64 + 4096 + 65_536 + 65_537 + 300_000
    );
}

#[test]
fn values_survive_a_restart() {
    let directory = scratch();
    let mut epochs = Vec::new();
    for round in 0..4_u64 {
        let rig = Rig::open(directory.path());
        epochs.push(rig.store.epoch());
        if round == 0 {
            rig.store.create("set").unwrap();
        }
        for old in 0..round {
            assert_eq!(rig.get("set", &old.to_le_bytes()), Some(bytes(old, 100_000)));
            assert_eq!(rig.get("set", b"same"), Some(bytes(round - 1, 5000)));
        }
        assert_eq!(rig.get("set", b"gone"), None);
        rig.put("set", &round.to_le_bytes(), &bytes(round, 100_000))
            .unwrap();
        rig.put("set", b"same", &bytes(round, 5000)).unwrap();
        rig.put("set", b"gone", b"soon").unwrap();
        let deleted = rig.delete("set", b"gone").unwrap();
        assert!(deleted.existed);
        assert!(!rig.delete("set", b"gone").unwrap().existed);
        assert_eq!(rig.figure("set", "value_bytes"), (round + 1) * 100_000 + 5000);
    }
    assert_eq!(epochs, [1, 2, 3, 4]);
}

#[test]
fn an_overwrite_keeps_one_slot_and_a_refused_crc_changes_nothing() {
    let directory = scratch();
    let rig = Rig::open(directory.path());
    rig.store.create("set").unwrap();
    let first = rig.put("set", b"key", b"first").unwrap();
    let second = rig.put("set", b"key", b"second").unwrap();
    assert!(second.sequence > first.sequence);
    assert!(second.existed && !first.existed);
    assert_eq!(rig.figure("set", "keys_count"), 1);
    let dataset = rig.dataset("set");
    for len in [5, 200_000] {
        let BeginPut::New(mut put) = dataset.begin_put(9, len, b"key", len).unwrap() else {
            panic!("begun before");
        };
        while put.remaining() > 0 {
            let len = put.append_max().min(put.remaining() as usize);
            match put.append(len, |out| out.fill(1)) {
                Ok(()) | Err(StorageError::Busy(_)) => {}
                Err(error) => panic!("{error}"),
            }
        }
        let token = rig.token();
        dataset.commit(put, 0xdead_beef, token);
        let error = rig.answer(token).unwrap_err();
        assert!(
            matches!(
                error,
                StorageError::Crc {
                    announced: 0xdead_beef,
                    ..
                }
            ),
            "{error}"
        );
        assert_eq!(rig.get("set", b"key"), Some(b"second".to_vec()));
        // As if it had never been.
        assert!(matches!(
            dataset.begin_put(9, len, b"key", len).unwrap(),
            BeginPut::New(_)
        ));
    }
}

#[test]
fn wrong_keys_lengths_and_names_are_refused() {
    let directory = scratch();
    let rig = Rig::open(directory.path());
    rig.store.create("set").unwrap();
    let dataset = rig.dataset("set");
    for key in [&[][..], &[0; 1025][..]] {
        let error = dataset.begin_put(1, 1, key, 1).unwrap_err();
        assert!(matches!(error, StorageError::BadKey { .. }), "{error}");
        assert!(matches!(
            dataset.delete(1, 1, key, 1),
            Err(StorageError::BadKey { .. })
        ));
    }
    rig.put("set", &[9; 1024], b"longest").unwrap();
    assert_eq!(rig.get("set", &[9; 1024]), Some(b"longest".to_vec()));
    let error = dataset.begin_put(1, 1, b"key", u64::MAX).unwrap_err();
    assert!(matches!(error, StorageError::TooLarge { .. }), "{error}");
    for name in ["", "A", "a/b", "..\0", &"x".repeat(65)] {
        assert!(
            matches!(rig.store.create(name), Err(StorageError::BadName(_))),
            "{name}"
        );
    }
    assert!(matches!(rig.store.create("set"), Err(StorageError::Exists(_))));
    let BeginPut::New(mut put) = dataset.begin_put(1, 1, b"key", 10).unwrap() else {
        panic!("begun before");
    };
    assert!(matches!(put.append(11, |_| ()), Err(StorageError::Length { .. })));
    put.append(9, |out| out.fill(0)).unwrap();
    let token = rig.token();
    dataset.commit(put, 0, token);
    assert!(matches!(
        rig.answer(token),
        Err(StorageError::Length { got_bytes: 9, .. })
    ));
}

#[test]
fn a_retry_is_answered_once_also_after_a_restart() {
    let directory = scratch();
    let rig = Rig::open(directory.path());
    rig.store.create("set").unwrap();
    let put = rig.put_as("set", (5, 10), b"key", b"value").unwrap();
    rig.put_as("set", (5, 11), b"key", b"newer").unwrap();
    let token = rig.token();
    assert!(matches!(
        rig.dataset("set").delete(5, 12, b"other", token).unwrap(),
        BeginDelete::Queued
    ));
    let deleted = rig.answer(token).unwrap();
    let check = |rig: &Rig| {
        let dataset = rig.dataset("set");
        match dataset.begin_put(5, 10, b"key", 5).unwrap() {
            BeginPut::Done(outcome) => {
                assert_eq!((outcome.sequence, outcome.locator), (put.sequence, put.locator))
            }
            other => panic!("{other:?}"),
        }
        match dataset.delete(5, 12, b"other", 1).unwrap() {
            BeginDelete::Done(outcome) => assert_eq!(outcome, deleted),
            other => panic!("{other:?}"),
        }
        assert_eq!(rig.get("set", b"key"), Some(b"newer".to_vec()));
    };
    check(&rig);
    drop(rig);
    check(&Rig::open(directory.path()));
}

#[test]
fn operations_past_the_limit_are_unknown() {
    let directory = scratch();
    for round in 0..2 {
        let rig = Rig::open(directory.path());
        if round == 0 {
            rig.store.create("set").unwrap();
            let dataset = rig.dataset("set");
            let tokens: Vec<u64> = (1..=1030)
                .map(|operation| rig.start_put(&dataset, (3, operation), b"key", b"v").unwrap())
                .collect();
            for token in tokens {
                rig.answer(token).unwrap();
            }
        }
        let dataset = rig.dataset("set");
        let begin = |operation| dataset.begin_put(3, operation, b"key", 1).unwrap();
        assert!(matches!(begin(6), BeginPut::Unknown), "round {round}");
        assert!(matches!(begin(7), BeginPut::Done(_)), "round {round}");
        assert!(matches!(begin(1030), BeginPut::Done(_)));
        assert!(matches!(begin(1031), BeginPut::New(_)));
        // Another client's numbers are its own.
        assert!(matches!(
            dataset.begin_put(4, 1, b"key", 1).unwrap(),
            BeginPut::New(_)
        ));
    }
}

#[test]
fn an_operation_begun_anew_supersedes_the_old_attempt() {
    let directory = scratch();
    let rig = Rig::open(directory.path());
    rig.store.create("set").unwrap();
    let dataset = rig.dataset("set");
    let begin = || match dataset.begin_put(1, 1, b"key", 4).unwrap() {
        BeginPut::New(put) => put,
        other => panic!("{other:?}"),
    };
    let (mut old, mut new) = (begin(), begin());
    assert!(matches!(
        old.append(4, |out| out.fill(1)),
        Err(StorageError::Superseded)
    ));
    new.append(4, |out| out.fill(2)).unwrap();
    drop(old);
    let token = rig.token();
    dataset.commit(new, kv_proto::crc::crc32c(&[2; 4]), token);
    rig.answer(token).unwrap();
    assert_eq!(rig.get("set", b"key"), Some(vec![2; 4]));
}

#[test]
fn listing_gives_every_key_once_with_whole_lengths() {
    let directory = scratch();
    let rig = Rig::open(directory.path());
    rig.store.create("set").unwrap();
    let dataset = rig.dataset("set");
    let tokens: Vec<u64> = (0..3000_u64)
        .map(|key| {
            rig.start_put(
                &dataset,
                (1, key + 1),
                &key.to_le_bytes(),
                &bytes(key, (key % 7) as usize),
            )
            .unwrap()
        })
        .collect();
    for token in tokens {
        rig.answer(token).unwrap();
    }
    rig.put("set", b"large", &bytes(1, 500_000)).unwrap();
    let mut seen = std::collections::HashMap::new();
    let mut cursor = 0;
    loop {
        let (entries, next, done) = dataset.list(cursor, 37, 1500);
        assert!(entries.len() <= 37);
        for entry in entries {
            assert!(seen.insert(entry.key.0, entry.value_len_bytes).is_none());
        }
        if done {
            break;
        }
        assert!(next > cursor);
        cursor = next;
    }
    assert_eq!(seen.len(), 3001);
    assert_eq!(seen[&b"large"[..]], 500_000);
    assert!((0..3000_u64).all(|key| seen[&key.to_le_bytes()[..]] == key % 7));
    // A room in which not one key fits says so.
    assert!(!dataset.list(0, 10, 5).2);
}

#[test]
fn datasets_are_created_renamed_and_dropped_durably() {
    let directory = scratch();
    let rig = Rig::open(directory.path());
    rig.store.create("one").unwrap();
    let id = rig.store.create("two").unwrap();
    rig.put("one", b"key", b"of one").unwrap();
    rig.put("two", b"key", b"of two").unwrap();
    rig.store.rename("one", "three").unwrap();
    assert!(matches!(
        rig.store.rename("three", "two"),
        Err(StorageError::Exists(_))
    ));
    assert!(matches!(
        rig.store.rename("one", "four"),
        Err(StorageError::NoDataset(_))
    ));
    let two = rig.dataset("two");
    let BeginPut::New(put) = two.begin_put(1, 1, b"late", 0).unwrap() else {
        panic!("begun before");
    };
    let before = rig.store.retired();
    assert_eq!(rig.store.drop_dataset("two").unwrap(), id);
    assert!(rig.store.by_name("two").is_none());
    let token = rig.token();
    two.commit(put, 0, token);
    assert!(matches!(rig.answer(token), Err(StorageError::NoDataset(_))));
    assert!(matches!(
        two.begin_put(1, 2, b"late", 0),
        Err(StorageError::NoDataset(_))
    ));
    assert_ne!(
        two.changes(before, 4000).unwrap().flags & kv_proto::control::change_flag::DROPPED,
        0
    );
    assert_eq!(
        rig.store.list().iter().map(|set| set.name()).collect::<Vec<_>>(),
        ["three"]
    );
    drop(rig);
    let rig = Rig::open(directory.path());
    assert_eq!(
        rig.store.list().iter().map(|set| set.name()).collect::<Vec<_>>(),
        ["three"]
    );
    assert_eq!(rig.get("three", b"key"), Some(b"of one".to_vec()));
    assert_eq!(
        std::fs::read_dir(directory.path().join("datasets"))
            .unwrap()
            .count(),
        1
    );
}

#[test]
fn memory_of_a_dropped_dataset_stays_until_it_is_released() {
    let directory = scratch();
    let rig = Rig::open(directory.path());
    rig.store.create("other").unwrap();
    let used = || super::support::figure_in(&rig.store.stat(), "memory_used_bytes");
    let (before, registered) = (used(), rig.network.registrations());
    let id = rig.store.create("set").unwrap();
    rig.put("set", b"key", b"value").unwrap();
    let reader = rig.reader("set");
    let dataset = rig.dataset("set");
    rig.store.drop_dataset("set").unwrap();
    rig.store.release(&id, rig.store.retired() - 1);
    // Not acknowledged yet: a client reads on.
    assert_eq!(reader.lookup(b"key").unwrap().1, b"value");
    rig.store.release(&id, rig.store.retired());
    assert_eq!(reader.lookup(b"key"), Err(Miss::Stale));
    assert!(rig.store.by_id(&id).is_none());
    drop(dataset);
    assert_eq!((used(), rig.network.registrations()), (before, registered));
}

#[test]
fn a_directory_is_refused_that_is_not_this_servers() {
    let directory = scratch();
    let open = |options: StoreOptions| Rig::with(options, Files::default()).map(|_| ());
    let rig = Rig::open(directory.path());
    let error = open(options(directory.path())).unwrap_err();
    assert!(
        matches!(error, StorageError::InUse { pid: Some(pid), .. } if pid == std::process::id()),
        "{error}"
    );
    drop(rig);

    let foreign = scratch();
    std::fs::write(foreign.path().join("photo.png"), b"png").unwrap();
    let error = open(options(foreign.path())).unwrap_err();
    assert!(error.to_string().contains("photo.png"), "{error}");
    assert_eq!(
        std::fs::read_dir(foreign.path()).unwrap().count(),
        1,
        "nothing was written there"
    );

    let superblock = directory.path().join("superblock");
    let good = std::fs::read(&superblock).unwrap();
    let mut other = good.clone();
    other[4] = 9;
    std::fs::write(&superblock, &other).unwrap();
    let error = open(options(directory.path())).unwrap_err();
    assert!(
        matches!(error, StorageError::FormatVersion { found: 9, .. }),
        "{error}"
    );
    for at in [0, 20, 30, 40, 63] {
        let mut broken = good.clone();
        broken[at] ^= 1;
        std::fs::write(&superblock, &broken).unwrap();
        let error = open(options(directory.path())).unwrap_err();
        assert!(
            matches!(error, StorageError::Damaged { .. }),
            "byte {at}: {error}"
        );
        assert_eq!(std::fs::read(&superblock).unwrap(), broken, "left as it was");
    }
    std::fs::write(&superblock, good).unwrap();
    open(options(directory.path())).unwrap();

    let error = open(options(std::path::Path::new("/proc/nowhere"))).unwrap_err();
    assert!(matches!(error, StorageError::Unwritable { .. }), "{error}");
}

#[test]
fn options_that_cannot_be_are_refused_with_a_remedy() {
    let directory = scratch();
    let base = options(directory.path());
    for wrong in [
        StoreOptions {
            segment_bytes: MIB - 1,
            ..base.clone()
        },
        StoreOptions {
            segment_bytes: (8 << 30) + 1,
            ..base.clone()
        },
        StoreOptions {
            part_bytes: 0,
            ..base.clone()
        },
        StoreOptions {
            part_bytes: (32 << 20) + 1,
            ..base.clone()
        },
        StoreOptions {
            gather_budget_bytes: 1000,
            ..base.clone()
        },
    ] {
        let error = Rig::with(wrong, Files::default()).map(|_| ()).unwrap_err();
        assert!(matches!(error, StorageError::Option { .. }), "{error}");
    }
}

#[test]
fn the_memory_budget_is_kept_and_named() {
    let directory = scratch();
    let small = StoreOptions {
        memory_budget_bytes: 3 * MIB,
        ..options(directory.path())
    };
    let rig = Rig::with(small.clone(), Files::default()).unwrap();
    rig.store.create("set").unwrap();
    let mut stored = 0_u64;
    let error = loop {
        match rig.put("set", &stored.to_le_bytes(), &bytes(stored, 30_000)) {
            Ok(_) => stored += 1,
            Err(error) => break error,
        }
    };
    assert!(
        matches!(error, StorageError::Memory { allowed_bytes, .. } if allowed_bytes == 3 * MIB),
        "{error}"
    );
    assert!(error.to_string().contains("--memory-budget"), "{error}");
    assert!(stored >= 60, "{stored} of about 2 MiB");
    for key in 0..stored {
        assert_eq!(rig.get("set", &key.to_le_bytes()), Some(bytes(key, 30_000)));
    }
    drop(rig);
    let error = Rig::with(
        StoreOptions {
            memory_budget_bytes: MIB,
            ..small.clone()
        },
        Files::default(),
    )
    .map(|_| ())
    .unwrap_err();
    assert!(
        matches!(error, StorageError::Memory { needed_bytes, .. } if needed_bytes > MIB),
        "{error}"
    );
    let rig = Rig::with(small, Files::default()).unwrap();
    assert_eq!(rig.get("set", &0_u64.to_le_bytes()), Some(bytes(0, 30_000)));
}

#[test]
fn many_restarts_leak_nothing() {
    let directory = scratch();
    let rig = Rig::open(directory.path());
    rig.store.create("set").unwrap();
    rig.put("set", b"key", &bytes(1, 200_000)).unwrap();
    drop(rig);
    let mut used = Vec::new();
    for _ in 0..20 {
        let rig = Rig::open(directory.path());
        assert_eq!(rig.get("set", b"key"), Some(bytes(1, 200_000)));
        used.push((
            super::support::figure_in(&rig.store.stat(), "memory_used_bytes"),
            rig.network.registrations(),
            rig.figure("set", "segments_count"),
        ));
        let network = rig.network.clone();
        drop(rig);
        assert_eq!(network.registrations(), 0);
    }
    used.dedup();
    assert_eq!(used.len(), 1, "{used:?}");
}
