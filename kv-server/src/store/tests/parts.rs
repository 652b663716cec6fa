//! Large values: parts, heads, and what stays of those that never became whole.

use super::support::{MIB, Miss, Rig, bytes, copy_directory, options, scratch};
use crate::error::StorageError;
use crate::store::files::Files;
use crate::store::{BeginPut, StoreOptions};

#[test]
fn large_values_are_whole_or_not_there() {
    let directory = scratch();
    let rig = Rig::open(directory.path());
    rig.store.create("set").unwrap();
    let part = rig.dataset("set").part_bytes() as usize;
    let lengths = [part, part + 1, 2 * part, 2 * part + 1, 40 * part - 1, 100 * part];
    for len in lengths {
        rig.put("set", &len.to_le_bytes(), &bytes(len as u64, len))
            .unwrap();
        assert_eq!(
            rig.get("set", &len.to_le_bytes()),
            Some(bytes(len as u64, len)),
            "{len}"
        );
    }
    // Overwritten by a small one and deleted, as one value.
    rig.put("set", &(part + 1).to_le_bytes(), b"small").unwrap();
    rig.delete("set", &(2 * part).to_le_bytes()).unwrap();
    let total = (part + 5 + 2 * part + 1 + 40 * part - 1 + 100 * part) as u64;
    assert_eq!(rig.figure("set", "value_bytes"), total);
    let crashed = scratch();
    copy_directory(directory.path(), crashed.path());
    drop(rig);
    for root in [directory.path(), crashed.path()] {
        let rig = Rig::open(root);
        assert_eq!(rig.figure("set", "value_bytes"), total);
        assert_eq!(rig.figure("set", "keys_count"), 5);
        assert_eq!(
            rig.get("set", &(40 * part - 1).to_le_bytes()),
            Some(bytes((40 * part - 1) as u64, 40 * part - 1))
        );
        assert_eq!(rig.get("set", &(part + 1).to_le_bytes()), Some(b"small".to_vec()));
        assert_eq!(rig.get("set", &(2 * part).to_le_bytes()), None);
    }
}

#[test]
fn a_large_value_given_up_leaves_nothing_to_see() {
    let directory = scratch();
    let rig = Rig::open(directory.path());
    rig.store.create("set").unwrap();
    let dataset = rig.dataset("set");
    let BeginPut::New(mut put) = dataset.begin_put(1, 1, b"key", 500_000).unwrap() else {
        panic!("begun before");
    };
    for _ in 0..3 {
        while matches!(put.append(33_000, |out| out.fill(3)), Err(StorageError::Busy(_))) {}
    }
    drop(put);
    rig.put("set", b"other", b"value").unwrap();
    assert_eq!(rig.get("set", b"key"), None);
    assert_eq!(
        super::support::figure_in(&rig.store.stat(), "gather_used_bytes"),
        0
    );
    drop((dataset, rig));
    let rig = Rig::open(directory.path());
    assert_eq!(rig.reader("set").lookup(b"key"), Err(Miss::NotFound));
    assert_eq!(rig.figure("set", "keys_count"), 1);
    // The same number again, whole this time.
    rig.put_as("set", (1, 1), b"key", &bytes(1, 500_000)).unwrap();
    assert_eq!(rig.get("set", b"key"), Some(bytes(1, 500_000)));
}

/// Values that together want more memory than there is all get in: none waits for what another holds.
#[test]
fn many_large_values_at_once_share_a_small_budget() {
    let directory = scratch();
    let small = StoreOptions {
        gather_budget_bytes: 3 * MIB,
        ..options(directory.path())
    };
    let rig = Rig::with(small, Files::default()).unwrap();
    rig.store.create("set").unwrap();
    std::thread::scope(|scope| {
        for writer in 0..6_u64 {
            let rig = &rig;
            scope.spawn(move || {
                for round in 0..4_u64 {
                    let key = [writer, round].map(u64::to_le_bytes).concat();
                    rig.put_as(
                        "set",
                        (writer + 1, round + 1),
                        &key,
                        &bytes(writer * 100 + round, 3_000_000),
                    )
                    .unwrap();
                }
            });
        }
    });
    for (writer, round) in (0..6).flat_map(|writer| (0..4).map(move |round| (writer, round))) {
        let key = [writer, round].map(u64::to_le_bytes).concat();
        assert_eq!(rig.get("set", &key), Some(bytes(writer * 100 + round, 3_000_000)));
    }
    assert_eq!(
        super::support::figure_in(&rig.store.stat(), "gather_used_bytes"),
        0
    );
}

#[test]
fn too_much_arriving_is_busy_and_nothing_was_begun() {
    let directory = scratch();
    let rig = Rig::open(directory.path());
    rig.store.create("set").unwrap();
    let dataset = rig.dataset("set");
    let mut held = Vec::new();
    let refused = loop {
        let operation = held.len() as u64 + 1;
        match dataset.begin_put(1, operation, b"key", 10 * MIB) {
            Ok(BeginPut::New(put)) => held.push(put),
            Ok(other) => panic!("{other:?}"),
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, StorageError::Arriving), "{refused}");
    let operation = held.len() as u64 + 1;
    held.pop();
    assert!(matches!(
        dataset.begin_put(1, operation, b"key", 10 * MIB),
        Ok(BeginPut::New(_))
    ));
}

/// A value a byte longer than a part once had windows of one byte.
#[test]
fn windows_are_not_small_for_any_length() {
    let directory = scratch();
    let rig = Rig::open(directory.path());
    rig.store.create("set").unwrap();
    let dataset = rig.dataset("set");
    let part = dataset.part_bytes();
    for (operation, len) in (1..).zip([
        1,
        part - 1,
        part,
        part + 1,
        2 * part,
        MIB,
        MIB + part + 1,
        50 * MIB,
    ]) {
        let BeginPut::New(put) = dataset.begin_put(1, operation, b"key", len).unwrap() else {
            panic!("begun before");
        };
        assert!(
            put.append_max() as u64 >= len.min(MIB),
            "{len}: {}",
            put.append_max()
        );
    }
}
