//! Compaction that is cut off, fails, or meets a full disk.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kv_proto::control::Status;

use super::compacting::{Model, check, eager, only_dead, until};
use super::support::{MIB, PATIENCE, Rig, bytes, copy_directory, faulty, options, scratch, segment_files};
use crate::error::StorageError;
use crate::store::files::{Call, Files};
use crate::store::{Compaction, StoreOptions};

const ENOSPC: i32 = 28;
const EIO: i32 = 5;
/// States of the directory that a crash test looks at, at most.
const SNAPSHOTS_MAX: usize = 150;

/// A directory in which half of everything is dead: values, large values, tombstones and what they hide.
fn half_dead(root: &Path) -> Model {
    let rig = Rig::with(only_dead(root), Files::default()).unwrap();
    rig.store.create("set").unwrap();
    let mut model = Model::new();
    for round in 0..3_u64 {
        for key in 0..60_u64 {
            if round > 0 && key % 2 == 0 {
                continue;
            }
            let len = if key % 7 == 0 { 100_000 } else { 20_000 };
            let value = bytes(round * 100 + key, len);
            rig.put("set", &key.to_le_bytes(), &value).unwrap();
            model.insert(key, value);
            if key % 11 == 3 {
                rig.delete("set", &key.to_le_bytes()).unwrap();
                model.remove(&key);
            }
        }
    }
    model
}

/// What lies on the disk at every call that compaction makes is resolved at the next start.
#[test]
fn a_crash_at_any_call_of_compaction_loses_nothing_and_brings_nothing_back() {
    let directory = scratch();
    let model = half_dead(directory.path());
    let snapshots = scratch();
    let taken = Arc::new(AtomicUsize::new(0));
    let calls = Arc::new(Mutex::new(BTreeMap::<&'static str, usize>::new()));
    let armed = Arc::new(AtomicBool::new(true));
    let faults = {
        let (root, to) = (directory.path().to_owned(), snapshots.path().to_owned());
        let (taken, calls, armed) = (Arc::clone(&taken), Arc::clone(&calls), Arc::clone(&armed));
        let busy = Mutex::new(());
        move |call: Call, path: &Path| {
            let _one = busy.lock().unwrap();
            let thread = std::thread::current();
            let own = matches!(thread.name(), Some("kv-log" | "kv-compact"));
            let reads = matches!(call, Call::Read | Call::Space);
            if own && !reads && armed.load(Ordering::Acquire) {
                let number = taken.fetch_add(1, Ordering::AcqRel);
                if number < SNAPSHOTS_MAX {
                    *calls.lock().unwrap().entry(call.text()).or_default() += 1;
                    copy_directory(&root, &to.join(number.to_string()));
                }
            }
            let _ = path;
            None
        }
    };
    let rig = Rig::with(eager(directory.path()), faulty(Box::new(faults))).unwrap();
    until(&rig, "it is compacted", || {
        rig.figure("set", "dead_share_percent") < 30
    });
    check(&rig, &model, 60);
    armed.store(false, Ordering::Release);
    drop(rig);
    let taken = taken.load(Ordering::Acquire).min(SNAPSHOTS_MAX);
    let calls = calls.lock().unwrap().clone();
    for call in ["write", "sync", "rename", "remove", "sync directory"] {
        assert!(calls.contains_key(call), "{call} of {calls:?}");
    }
    assert!(taken > 30, "{taken} of {calls:?}");
    for number in 0..taken {
        let at = snapshots.path().join(number.to_string());
        for compaction in [only_dead(&at), eager(&at)] {
            check(&Rig::with(compaction, Files::default()).unwrap(), &model, 60);
        }
    }
}

#[test]
fn dropping_and_shutting_down_end_compaction() {
    let directory = scratch();
    half_dead(directory.path());
    // A rest that lasts for hours: it must not hold up the end.
    let slow = |data: &Path| StoreOptions {
        compaction: Compaction {
            disk_share: 0.001,
            ..eager(data).compaction
        },
        ..eager(data)
    };
    for round in 0..3 {
        let copy = scratch();
        copy_directory(directory.path(), copy.path());
        let rig = Rig::with(slow(copy.path()), Files::default()).unwrap();
        std::thread::sleep(Duration::from_millis(7 * round));
        drop(rig);
        let rig = Rig::with(eager(copy.path()), Files::default()).unwrap();
        std::thread::sleep(Duration::from_millis(5 * round));
        let dropped = rig.store.drop_dataset("set").unwrap();
        dropped.synced.unwrap();
        rig.store.release(&dropped.dataset, rig.store.retired());
        rig.store.create("set").unwrap();
        rig.put("set", b"key", b"value").unwrap();
        assert_eq!(rig.get("set", b"key"), Some(b"value".to_vec()));
        let used = super::support::figure_in(&rig.store.stat(), "memory_used_bytes");
        assert!(used < 3 * MIB, "{used}: the memory of what was dropped is free");
    }
}

/// A live record that is damaged keeps its segment: it is named, counted once, and the rest is served.
#[test]
fn a_segment_that_cannot_be_read_is_left_alone() {
    let directory = scratch();
    let mut model = half_dead(directory.path());
    let victim = {
        let rig = Rig::with(only_dead(directory.path()), Files::default()).unwrap();
        let at = rig.dataset("set").lookup(&2_u64.to_le_bytes()).unwrap();
        let path = rig.dataset("set").segment_path(at.segment);
        drop(rig);
        let mut whole = std::fs::read(&path).unwrap();
        whole[at.offset_bytes() as usize + 5000] ^= 1;
        std::fs::write(&path, whole).unwrap();
        path
    };
    let rig = Rig::with(eager(directory.path()), Files::default()).unwrap();
    until(&rig, "it is met", || {
        rig.figure("set", "compaction_suspect_segments_count") == 1
    });
    until(&rig, "the others are compacted", || {
        rig.figure("set", "compaction_removed_segments_count") > 0
    });
    assert!(victim.exists());
    model.remove(&2);
    for (key, value) in &model {
        assert_eq!(
            rig.get("set", &key.to_le_bytes()).as_ref(),
            Some(value),
            "key {key}"
        );
    }
    // More dies, and it is not tried again.
    for key in (0..60_u64).filter(|key| key % 3 == 0) {
        rig.put("set", &key.to_le_bytes(), b"new").unwrap();
    }
    rig.put("set", b"last", b"value").unwrap();
    assert_eq!(rig.figure("set", "compaction_suspect_segments_count"), 1);
    assert_eq!(rig.figure("set", "compaction_failures_count"), 0);
    assert!(victim.exists());
}

/// What fails to be written is tried again, after a while, and harms nobody.
#[test]
fn compaction_that_fails_to_write_goes_on_when_it_can() {
    for (call, errno) in [
        (Call::Write, EIO),
        (Call::Sync, EIO),
        (Call::Remove, EIO),
        (Call::Write, ENOSPC),
    ] {
        let directory = scratch();
        let model = half_dead(directory.path());
        let failing = Arc::new(AtomicUsize::new(0));
        let faults = {
            let failing = Arc::clone(&failing);
            move |at: Call, path: &Path| {
                let own = matches!(std::thread::current().name(), Some("kv-log" | "kv-compact"));
                let hit =
                    own && at == call && path.extension().is_some_and(|extension| extension == "segment");
                // The first few fail.
                (hit && failing.fetch_add(1, Ordering::AcqRel) < 2)
                    .then(|| (1000, io::Error::from_raw_os_error(errno)))
            }
        };
        let rig = Rig::with(eager(directory.path()), faulty(Box::new(faults))).unwrap();
        until(&rig, "it fails", || {
            rig.figure("set", "compaction_failures_count") > 0
        });
        check(&rig, &model, 60);
        until(&rig, "it is compacted", || {
            rig.figure("set", "dead_share_percent") < 30
        });
        let failures = rig.figure("set", "compaction_failures_count");
        assert!(failures <= 2, "{call:?}: {failures}: in a loop");
        check(&rig, &model, 60);
        drop(rig);
        check(&Rig::open(directory.path()), &model, 60);
    }
}

/// A disk that is full but for the room that is kept.
#[derive(Clone)]
struct Full {
    full: Arc<AtomicBool>,
    /// Whether giving the room up helps.
    root: PathBuf,
}

impl Full {
    fn of(root: &Path, full: bool) -> Self {
        Self {
            root: root.to_owned(),
            full: Arc::new(AtomicBool::new(full)),
        }
    }

    fn rig(&self, reserve_bytes: u64) -> Rig {
        let this = self.clone();
        let faults = move |call: Call, path: &Path| {
            let full = this.full.load(Ordering::Acquire);
            let kept = this.root.join("reserve").exists();
            if call == Call::Space {
                let free = match (full, kept) {
                    (false, _) => 1 << 40,
                    (true, true) => 0,
                    (true, false) => reserve_bytes as usize,
                };
                return Some((free, io::Error::from_raw_os_error(ENOSPC)));
            }
            let segment = path.to_string_lossy().contains(".segment");
            (full && kept && segment && matches!(call, Call::Write | Call::Create))
                .then(|| (100, io::Error::from_raw_os_error(ENOSPC)))
        };
        let options = StoreOptions {
            compaction: Compaction {
                disk_reserve_bytes: reserve_bytes,
                ..eager(&self.root).compaction
            },
            ..eager(&self.root)
        };
        Rig::with(options, faulty(Box::new(faults))).unwrap()
    }
}

#[test]
fn on_a_full_disk_deletes_and_compaction_work_and_puts_resume() {
    let directory = scratch();
    let full = Full::of(directory.path(), false);
    let rig = full.rig(4 * MIB);
    rig.store.create("set").unwrap();
    assert!(directory.path().join("reserve").exists());
    let mut model = Model::new();
    for key in 0..100_u64 {
        let value = bytes(key, 20_000);
        rig.put("set", &key.to_le_bytes(), &value).unwrap();
        model.insert(key, value);
    }
    full.full.store(true, Ordering::Release);
    let refused = rig.put("set", b"more", &bytes(1, 20_000)).unwrap_err();
    assert_eq!(refused.status(), Status::NoSpace, "{refused}");
    assert!(
        directory.path().join("reserve").exists(),
        "kept for what frees space"
    );
    check(&rig, &model, 100);
    let removed = rig.figure("set", "compaction_removed_segments_count");
    for key in 0..60_u64 {
        assert!(rig.delete("set", &key.to_le_bytes()).unwrap().existed);
        model.remove(&key);
    }
    assert!(!directory.path().join("reserve").exists(), "given up");
    // Nothing is stored in the room that deletes need.
    let refused = rig.put("set", b"more", &bytes(1, 20_000)).unwrap_err();
    assert!(
        matches!(refused, StorageError::NoSpace { .. } | StorageError::Freeing),
        "{refused}"
    );
    until(&rig, "space is freed on a full disk", || {
        rig.figure("set", "compaction_removed_segments_count") > removed
    });
    check(&rig, &model, 100);
    full.full.store(false, Ordering::Release);
    rig.put("set", &200_u64.to_le_bytes(), &bytes(1, 20_000)).unwrap();
    assert!(directory.path().join("reserve").exists(), "taken again");
    model.insert(200, bytes(1, 20_000));
    check(&rig, &model, 201);
    drop(rig);
    check(&Rig::open(directory.path()), &model, 201);
}

/// The server starts on a full disk: it gives up the room that it kept.
#[test]
fn a_server_starts_on_a_full_disk() {
    let directory = scratch();
    let full = Full::of(directory.path(), false);
    let rig = full.rig(4 * MIB);
    rig.store.create("set").unwrap();
    rig.put("set", b"key", b"value").unwrap();
    let crashed = scratch();
    copy_directory(directory.path(), crashed.path());
    let full = Full::of(crashed.path(), true);
    let rig = full.rig(4 * MIB);
    assert_eq!(rig.get("set", b"key"), Some(b"value".to_vec()));
    assert!(rig.delete("set", b"key").unwrap().existed);
}

/// A small dataset that is overwritten for long in little memory: writers wait, and are never refused.
#[test]
fn a_small_budget_never_runs_out() {
    let directory = scratch();
    let small = StoreOptions {
        memory_budget_bytes: 8 * MIB,
        compaction: Compaction {
            dead_share: 0.5,
            disk_share: 0.2,
            disk_reserve_bytes: 0,
        },
        ..options(directory.path())
    };
    let rig = Rig::with(small, Files::default()).unwrap();
    rig.store.create("set").unwrap();
    let mut model = Model::new();
    let deadline = Instant::now() + PATIENCE;
    let mut waited = 0;
    for round in 0..80_u64 {
        for key in 0..50_u64 {
            let len = if key == 0 { 300_000 } else { 30_000 };
            let value = bytes(round * 100 + key, len);
            loop {
                match rig.put("set", &key.to_le_bytes(), &value) {
                    Ok(_) => break,
                    Err(StorageError::Freeing) => {
                        waited += 1;
                        // As the control thread would, when all have acknowledged.
                        let id = rig.dataset("set").id();
                        rig.store.release(&id, rig.store.retired());
                        assert!(Instant::now() < deadline, "{:?}", rig.dataset("set").stat());
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    Err(error) => panic!(
                        "round {round}, key {key}: {error}: {:?}",
                        rig.dataset("set").stat()
                    ),
                }
            }
            model.insert(key, value);
        }
    }
    assert!(waited > 0, "memory was never short");
    check(&rig, &model, 50);
    assert!(segment_files(&rig.dataset("set")).len() <= 8);
}
