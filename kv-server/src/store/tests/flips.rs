//! Bits that flip in the memory of the index: found by whoever looks there next, put right, and never taken for "there
//! is no such key".

use super::compacting::{Model, check, only_dead, until};
use super::scrub::Turns;
use super::support::{Miss, Rig, bytes, figure_in, scratch};
use crate::error::StorageError;
use crate::store::files::Files;
use crate::store::scrub::pass;

/// What a store of so many keys holds.
fn fill(rig: &Rig, keys: std::ops::Range<u64>, model: &mut Model) {
    for key in keys {
        let value = bytes(key, 100);
        rig.put("set", &key.to_le_bytes(), &value).unwrap();
        model.insert(key, value);
    }
}

fn filled(rig: &Rig, keys: u64) -> Model {
    rig.store.create("set").unwrap();
    let mut model = Model::new();
    fill(rig, 0..keys, &mut model);
    model
}

fn spoil(rig: &Rig, key: u64, byte: usize, mask: u8) {
    let dataset = rig.dataset("set");
    let hash = dataset.hash(&key.to_le_bytes());
    dataset.read_index().spoil(hash, byte, mask);
}

/// Changes so much of the slot of a key that nothing says what it was.
fn smash(rig: &Rig, key: u64) {
    let dataset = rig.dataset("set");
    let hash = dataset.hash(&key.to_le_bytes());
    let index = dataset.read_index();
    if !index.is_sound(hash) {
        // It may lie in a bucket of a key that was smashed before: hashes are others in each run.
        return;
    }
    let at = index.slot_at(hash);
    index.spoil_all(hash, at..at + 20, 0x5a);
}

fn faults(rig: &Rig) -> u64 {
    rig.figure("set", "damaged_index_parts_count")
}

/// Written again with a checksum that agrees, the bit would be what the bucket says for ever.
#[test]
fn a_bit_that_flips_in_a_bucket_is_not_written_again_as_if_it_were_right() {
    let directory = scratch();
    let rig = Rig::open(directory.path());
    let mut model = filled(&rig, 300);
    let dataset = rig.dataset("set");
    let hash = dataset.hash(&7_u64.to_le_bytes());
    let slot = dataset.read_index().slot_at(hash);
    spoil(&rig, 7, slot + 3, 1);
    assert_eq!(
        rig.reader("set").lookup(&7_u64.to_le_bytes()).unwrap_err(),
        Miss::Torn
    );
    // So many that each bucket is written.
    fill(&rig, 300..700, &mut model);
    check(&rig, &model, 700);
    assert_eq!(faults(&rig), 1);
}

#[test]
fn whichever_bit_of_a_bucket_flips_it_is_put_right() {
    let directory = scratch();
    let rig = Rig::open(directory.path());
    let mut model = filled(&rig, 300);
    for byte in 0..256 {
        let key = byte as u64;
        spoil(&rig, key, byte, 1 << (byte % 8));
        match byte % 3 {
            0 => fill(&rig, key..key + 1, &mut model),
            1 => {
                assert!(rig.delete("set", &key.to_le_bytes()).unwrap().existed);
                model.remove(&key);
            }
            _ => assert!(rig.dataset("set").lookup(&key.to_le_bytes()).unwrap().is_some()),
        }
        assert_eq!(faults(&rig), key + 1, "byte {byte}");
    }
    check(&rig, &model, 300);
}

#[test]
fn a_bit_that_flipped_is_right_again_where_its_group_is_replaced() {
    let directory = scratch();
    let rig = Rig::open(directory.path());
    let mut model = filled(&rig, 500);
    for key in 0..40 {
        spoil(&rig, key * 11, 16 + key as usize * 6, 4);
    }
    fill(&rig, 500..5000, &mut model);
    check(&rig, &model, 5000);
    let found = faults(&rig);
    assert!(
        (20..=40).contains(&found),
        "{found}: some buckets were spoiled twice"
    );
}

/// A dataset in which all kinds of records are.
fn of_all_kinds(rig: &Rig) -> Model {
    let mut model = filled(rig, 900);
    for key in (0..900_u64).step_by(3) {
        rig.delete("set", &key.to_le_bytes()).unwrap();
        model.remove(&key);
    }
    for key in (0..900_u64).step_by(5) {
        let value = bytes(key + 1000, if key % 2 == 0 { 80_000 } else { 300 });
        rig.put("set", &key.to_le_bytes(), &value).unwrap();
        model.insert(key, value);
    }
    model
}

#[test]
fn where_nothing_tells_what_was_there_the_group_is_filled_from_the_records() {
    let directory = scratch();
    let rig = Rig::open(directory.path());
    let mut model = of_all_kinds(&rig);
    let live = |rig: &Rig| {
        (
            rig.figure("set", "live_record_bytes"),
            rig.figure("set", "value_bytes"),
        )
    };
    let before = live(&rig);
    // A delete, an overwrite of another key of the group, and a new key find it.
    for (round, key) in [10, 20, 40, 50].into_iter().enumerate() {
        smash(&rig, key);
        match round {
            0 => {
                assert!(rig.delete("set", &key.to_le_bytes()).unwrap().existed);
                rig.put("set", &key.to_le_bytes(), &model[&key]).unwrap();
            }
            1 => {
                rig.put("set", &key.to_le_bytes(), &model[&key]).unwrap();
            }
            2 => fill(&rig, 900..1500, &mut model),
            _ => {
                // Who only reads is told to ask again, and the log puts it right.
                let lookup = || rig.dataset("set").lookup(&key.to_le_bytes());
                assert!(matches!(lookup(), Err(StorageError::Mending)));
                until(&rig, "it is put right", || lookup().is_ok());
            }
        }
        assert_eq!(faults(&rig), round as u64 + 1);
        if round < 2 {
            assert_eq!(live(&rig), before);
        }
        check(&rig, &model, 1500);
    }
    drop(rig);
    check(&Rig::open(directory.path()), &model, 1500);
}

/// A record that no slot names is dead, and its segment goes: of a bucket that is not right nothing follows.
#[test]
fn compaction_takes_no_record_for_dead_because_of_a_bucket_that_is_not_right() {
    let directory = scratch();
    let rig = Rig::with(only_dead(directory.path()), Files::default()).unwrap();
    rig.store.create("set").unwrap();
    let mut model = Model::new();
    for key in 0..100_u64 {
        let value = bytes(key, 20_000);
        rig.put("set", &key.to_le_bytes(), &value).unwrap();
        model.insert(key, value);
    }
    for key in (0..100_u64).filter(|key| key % 10 != 3) {
        rig.put("set", &key.to_le_bytes(), b"small").unwrap();
        model.insert(key, b"small".to_vec());
    }
    let files = super::support::segment_files(&rig.dataset("set"));
    assert!(files[0].exists() && files[1].exists());
    // Nobody looks there before compaction does.
    for key in [3, 33, 63, 93] {
        smash(&rig, key);
    }
    until(&rig, "the first segments go", || {
        rig.store.shared.compaction.press();
        !files[0].exists() && !files[1].exists()
    });
    assert!(faults(&rig) > 0);
    check(&rig, &model, 100);
    drop(rig);
    check(&Rig::open(directory.path()), &model, 100);
}

/// Nobody need touch what flipped.
#[test]
fn the_scrubber_looks_at_every_bucket_and_at_the_directory() {
    let directory = scratch();
    let rig = Rig::open(directory.path());
    let model = filled(&rig, 3000);
    let dataset = rig.dataset("set");
    assert!(pass(&dataset, &mut Turns::of(u64::MAX)));
    assert_eq!(faults(&rig), 0);
    // Of different groups: who looks for one of them looks at no bucket of another, and puts nothing right there.
    let mut groups = Vec::new();
    let keys: Vec<u64> = (0..3000_u64)
        .filter(|key| {
            let group = dataset.read_index().covered(dataset.hash(&key.to_le_bytes()));
            let is_new = !groups.contains(&group);
            if is_new {
                groups.push(group);
            }
            is_new
        })
        .take(4)
        .collect();
    assert_eq!(keys.len(), 4);
    spoil(&rig, keys[0], 30, 2);
    spoil(&rig, keys[1], 3, 128);
    smash(&rig, keys[2]);
    dataset
        .read_index()
        .spoil_entry(dataset.hash(&keys[3].to_le_bytes()), 9, 1);
    let reader = rig.reader("set");
    for key in &keys {
        let refused = reader.lookup(&key.to_le_bytes()).unwrap_err();
        assert!(matches!(refused, Miss::Torn | Miss::Stale), "{key}: {refused:?}");
    }
    assert!(pass(&dataset, &mut Turns::of(u64::MAX)));
    assert_eq!(faults(&rig), 4);
    until(&rig, "all is right again", || {
        let reader = rig.reader("set");
        keys.iter().all(|key| reader.lookup(&key.to_le_bytes()).is_ok())
    });
    check(&rig, &model, 3000);
    assert!(pass(&dataset, &mut Turns::of(u64::MAX)));
    assert_eq!(faults(&rig), 4);
}

/// A store of a hundred keys in one segment, and what came later in another. Nothing is loaded.
fn in_two_segments(directory: &std::path::Path) -> Rig {
    let open = || Rig::with(only_dead(directory), Files::default()).unwrap();
    filled(&open(), 100);
    // In a segment of their own.
    let rig = open();
    fill(&rig, 0..50, &mut Model::new());
    rig.delete("set", &60_u64.to_le_bytes()).unwrap();
    drop(rig);
    Rig::unloaded(only_dead(directory), Files::default(), 0).unwrap()
}

/// What lies in a segment that is lost is not known: put together without it, the group would give older values back, and
/// keys that were deleted.
#[test]
fn a_group_is_not_filled_anew_without_what_a_lost_segment_says() {
    let directory = scratch();
    let rig = in_two_segments(directory.path());
    let dataset = rig.dataset("set");
    let lookup = |key: u64| dataset.lookup(&key.to_le_bytes());
    let before: Vec<_> = (0..100).map(|key| lookup(key).unwrap()).collect();
    dataset.all_segments().last().unwrap().lose();
    smash(&rig, 10);
    for _ in 0..2 {
        rig.put("set", &10_u64.to_le_bytes(), b"newer").unwrap_err();
    }
    let mut told = 0;
    for (key, before) in (0..).zip(before) {
        match lookup(key) {
            Ok(found) => {
                assert_eq!(found, before, "key {key}");
                told += 1;
            }
            Err(error) => assert!(matches!(error, StorageError::Mending), "{error}"),
        }
    }
    assert!((50..100).contains(&told), "{told}");
}

/// Each attempt walks over all segments, on the thread that writes: whoever may look a key up could have it do nothing else.
#[test]
fn what_cannot_be_filled_anew_is_not_tried_at_every_request() {
    let directory = scratch();
    let rig = in_two_segments(directory.path());
    let dataset = rig.dataset("set");
    dataset.all_segments().last().unwrap().lose();
    let hash = dataset.hash(&10_u64.to_le_bytes());
    let read_by = |requests: u32| {
        let read = || figure_in(&rig.store.stat(), "file_read_bytes");
        let before = read();
        for _ in 0..requests {
            dataset.refill_group(hash).unwrap_err();
        }
        read() - before
    };
    let one = read_by(1);
    assert!(one > 0, "it walks over files");
    let walks = read_by(2000) / one;
    assert!(walks < 200, "{walks} walks for 2000 requests");
}
