//! Putting, finding, deleting, listing, and all of it again after a restart.

use super::support::{Rig, bytes, scratch};
use crate::error::StorageError;
use crate::store::{BeginDelete, BeginPut};

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
        let (entries, next, done) = dataset.list(cursor, 37, 1500).unwrap();
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
    assert!(!dataset.list(0, 10, 5).unwrap().2);
}
