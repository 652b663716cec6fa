//! Compaction as a client sees it: nothing is lost, nothing comes back, and space does.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::compacting::{Model, check, eager, only_dead, until};
use super::support::{MIB, Rig, bytes, copy_directory, faulty, scratch, segment_files};
use crate::store::files::{Call, Files};
use crate::store::{BeginPut, Compaction, StoreOptions};

fn open(data: &Path) -> Rig {
    Rig::with(eager(data), Files::default()).unwrap()
}

#[test]
fn overwritten_values_leave_the_disk_and_the_memory() {
    let directory = scratch();
    let rig = open(directory.path());
    rig.store.create("set").unwrap();
    let mut model = Model::new();
    for round in 0..60_u64 {
        for key in 0..20 {
            let value = bytes(round * 100 + key, 20_000 + key as usize * 3000);
            rig.put("set", &key.to_le_bytes(), &value).unwrap();
            model.insert(key, value);
        }
    }
    let written = rig.figure("set", "record_written_bytes");
    assert!(written > 40 * MIB, "{written}");
    until(&rig, "space comes back", || {
        rig.figure("set", "segments_count") <= 5
    });
    until(&rig, "memory comes back", || {
        rig.figure("set", "images_bytes") <= 6 * MIB
    });
    assert!(segment_files(&rig.dataset("set")).len() <= 5);
    assert!(rig.figure("set", "compaction_removed_segments_count") > 30);
    check(&rig, &model, 20);
    let crashed = scratch();
    copy_directory(directory.path(), crashed.path());
    check(&open(crashed.path()), &model, 20);
    drop(rig);
    check(&open(directory.path()), &model, 20);
}

/// Most values stay and are moved, large ones too, more than once.
#[test]
fn what_lives_is_moved_whole() {
    let directory = scratch();
    let rig = open(directory.path());
    rig.store.create("set").unwrap();
    let mut model = Model::new();
    for round in 0..12_u64 {
        for key in 0..60_u64 {
            // A third is never written again.
            if round > 0 && key % 3 == 0 {
                continue;
            }
            let len = if key % 5 == 0 {
                150_000
            } else {
                3000 + key as usize
            };
            let value = bytes(round * 100 + key, len);
            rig.put("set", &key.to_le_bytes(), &value).unwrap();
            model.insert(key, value);
        }
        check(&rig, &model, 60);
    }
    until(&rig, "space comes back", || {
        rig.figure("set", "dead_share_percent") < 40
    });
    assert!(rig.figure("set", "compaction_copied_bytes") > MIB);
    check(&rig, &model, 60);
    let live = rig.figure("set", "live_record_bytes");
    let values = rig.figure("set", "value_bytes");
    drop(rig);
    let rig = open(directory.path());
    check(&rig, &model, 60);
    assert_eq!(rig.figure("set", "live_record_bytes"), live);
    assert_eq!(rig.figure("set", "value_bytes"), values);
}

#[test]
fn when_everything_is_deleted_everything_is_freed_and_nothing_comes_back() {
    let directory = scratch();
    let rig = Rig::with(only_dead(directory.path()), Files::default()).unwrap();
    rig.store.create("set").unwrap();
    for key in 0..400_u64 {
        rig.put("set", &key.to_le_bytes(), &bytes(key, 30_000)).unwrap();
    }
    for key in 0..400_u64 {
        rig.delete("set", &key.to_le_bytes()).unwrap();
    }
    until(&rig, "segments go", || rig.figure("set", "segments_count") <= 2);
    assert_eq!(
        rig.figure("set", "compaction_copied_bytes"),
        0,
        "freed without copying"
    );
    let copy = scratch();
    copy_directory(directory.path(), copy.path());
    check(&open(copy.path()), &Model::new(), 400);
    drop(rig);
    check(&open(directory.path()), &Model::new(), 400);
}

/// Tombstones stay while a file holds a value that they hide, and go when none does.
#[test]
fn tombstones_live_as_long_as_what_they_hide() {
    let directory = scratch();
    let rig = open(directory.path());
    rig.store.create("set").unwrap();
    // A segment that is not compacted: most of it lives, and it holds values whose tombstones lie in the next.
    let mut model = Model::new();
    for key in 0..36_u64 {
        let value = bytes(key, 30_000);
        rig.put("set", &key.to_le_bytes(), &value).unwrap();
        model.insert(key, value);
    }
    for key in 0..3_u64 {
        rig.delete("set", &key.to_le_bytes()).unwrap();
        model.remove(&key);
    }
    let values = rig.dataset("set").segment(1).unwrap();
    assert_eq!(values.tally.tombstone_bytes(), 0);
    // Fill the tombstones' segment with what is overwritten, many times.
    for round in 0..200_u64 {
        rig.put("set", b"again", &bytes(round, 30_000)).unwrap();
    }
    until(&rig, "the tombstones' segment is compacted", || {
        rig.figure("set", "compaction_removed_segments_count") >= 3
    });
    rig.delete("set", b"again").unwrap();
    for _ in 0..2 {
        let copy = scratch();
        copy_directory(directory.path(), copy.path());
        let crashed = open(copy.path());
        check(&crashed, &model, 36);
        assert!(crashed.figure("set", "tombstone_record_bytes") >= 3 * 128);
    }
    // Once what they hide is gone they go too.
    for key in 3..36_u64 {
        rig.delete("set", &key.to_le_bytes()).unwrap();
    }
    for round in 0..100_u64 {
        rig.put("set", b"other", &bytes(round, 30_000)).unwrap();
    }
    until(&rig, "values and tombstones go", || {
        rig.figure("set", "segments_count") <= 3 && rig.figure("set", "tombstone_record_bytes") <= 8 * 128
    });
    drop(rig);
    let rig = open(directory.path());
    assert_eq!(rig.figure("set", "keys_count"), 1);
}

/// A retry is answered as its first attempt was, wherever that lies and whoever wrote the key since.
#[test]
fn retries_are_answered_once_across_compaction_and_restarts() {
    let directory = scratch();
    let rig = open(directory.path());
    rig.store.create("set").unwrap();
    let done = |rig: &Rig, operation: u64, key: &[u8]| match rig
        .dataset("set")
        .begin_put(99, operation, key, 5000)
    {
        Ok(BeginPut::Done(committed)) => committed,
        other => panic!("operation {operation}: {other:?}"),
    };
    let kept = rig.put_as("set", (99, 1), b"kept", &bytes(1, 5000)).unwrap();
    let lost = rig
        .put_as("set", (99, 2), b"overwritten", &bytes(2, 5000))
        .unwrap();
    rig.put("set", b"overwritten", b"newer").unwrap();
    let gone = rig.put_as("set", (99, 3), b"deleted", &bytes(3, 5000)).unwrap();
    rig.delete("set", b"deleted").unwrap();
    let segment = kept.locator.segment;
    for round in 0..200_u64 {
        rig.put("set", b"again", &bytes(round, 30_000)).unwrap();
    }
    until(&rig, "its segment is gone", || {
        let files = segment_files(&rig.dataset("set"));
        !files
            .iter()
            .any(|file| file.ends_with(format!("{segment:08x}.segment")))
    });
    let copy = scratch();
    copy_directory(directory.path(), copy.path());
    let crashed = open(copy.path());
    drop(rig);
    for rig in [crashed, open(directory.path())] {
        let again = done(&rig, 1, b"kept");
        assert_eq!(again.sequence, kept.sequence);
        assert_eq!(
            rig.dataset("set").lookup(b"kept").unwrap(),
            Some(again.locator),
            "where it lies now"
        );
        assert_eq!(done(&rig, 2, b"overwritten").sequence, lost.sequence);
        assert_eq!(done(&rig, 3, b"deleted").sequence, gone.sequence);
        assert_eq!(rig.get("set", b"overwritten"), Some(b"newer".to_vec()));
        assert_eq!(rig.get("set", b"deleted"), None);
    }
}

/// Compaction rests after what it did, by its share: so many syncs of its copies, each of which took so long, and nine
/// times as long for resting after them.
#[test]
fn compaction_rests_as_its_share_says() {
    const TAKES: Duration = Duration::from_millis(6);
    let directory = scratch();
    let rig = Rig::with(only_dead(directory.path()), Files::default()).unwrap();
    rig.store.create("set").unwrap();
    for key in 0..60_u64 {
        rig.put("set", &key.to_le_bytes(), &bytes(key, 30_000)).unwrap();
    }
    for key in (0..60_u64).step_by(2) {
        rig.put("set", &key.to_le_bytes(), b"small").unwrap();
    }
    drop(rig);
    let syncs = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&syncs);
    let faults = move |call: Call, _: &Path| {
        if call == Call::Sync && std::thread::current().name() == Some("kv-log") {
            std::thread::sleep(TAKES);
            count.fetch_add(1, Ordering::Relaxed);
        }
        None
    };
    let options = StoreOptions {
        compaction: Compaction {
            disk_share: 0.1,
            ..eager(directory.path()).compaction
        },
        ..eager(directory.path())
    };
    let since = Instant::now();
    let rig = Rig::with(options, faulty(Box::new(faults))).unwrap();
    until(&rig, "what lives is copied", || {
        rig.figure("set", "compaction_copied_bytes") > 900_000
    });
    // The first opens a segment; after the last there may be none.
    let rested = syncs.load(Ordering::Relaxed).saturating_sub(2);
    assert!(rested > 0, "nothing was copied");
    assert!(
        since.elapsed() >= rested * 9 * TAKES,
        "{rested} in {:?}",
        since.elapsed()
    );
}
