//! Compaction that is cut off, fails, or meets a full disk.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use super::compacting::{Model, check, eager, only_dead, until};
use super::support::{MIB, Rig, bytes, copy_directory, faulty, scratch};
use crate::store::files::{Call, Files};
use crate::store::{Compaction, Shared, StoreOptions};

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
        let at = rig.dataset("set").lookup(&2_u64.to_le_bytes()).unwrap().unwrap();
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
    for (name, call, errno) in [
        (".segment", Call::Write, EIO),
        (".segment", Call::Sync, EIO),
        (".segment", Call::Remove, EIO),
        (".segment", Call::Write, ENOSPC),
        ("segments.new", Call::Sync, EIO),
        ("segments.new", Call::Rename, EIO),
    ] {
        let directory = scratch();
        let model = half_dead(directory.path());
        let failing = Arc::new(AtomicUsize::new(0));
        let faults = {
            let failing = Arc::clone(&failing);
            move |at: Call, path: &Path| {
                let own = matches!(std::thread::current().name(), Some("kv-log" | "kv-compact"));
                let hit = own && at == call && path.to_str().is_some_and(|path| path.ends_with(name));
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

/// To judge tombstones all other segments are looked through: that ends in the middle of one when the server stops.
#[test]
fn judging_tombstones_ends_when_the_server_stops() {
    let directory = scratch();
    // Values that live, in some segments; then tombstones of a few of them, in one that is dead but for these.
    let rig = Rig::with(only_dead(directory.path()), Files::default()).unwrap();
    rig.store.create("set").unwrap();
    for key in 0..1200_u64 {
        rig.put("set", &key.to_le_bytes(), &bytes(key, 3000)).unwrap();
    }
    drop(rig);
    let rig = Rig::with(only_dead(directory.path()), Files::default()).unwrap();
    for key in 0..20_u64 {
        rig.delete("set", &(key * 50).to_le_bytes()).unwrap();
    }
    drop(rig);
    let shared: Arc<OnceLock<Arc<Shared>>> = Arc::default();
    let reads = Arc::new(Mutex::new((Vec::<std::path::PathBuf>::new(), 0)));
    let faults = {
        let (shared, reads) = (Arc::clone(&shared), Arc::clone(&reads));
        move |call: Call, path: &Path| {
            let own = std::thread::current().name() == Some("kv-compact");
            let segment = path.extension().is_some_and(|extension| extension == "segment");
            if !own || !segment || call != Call::Read {
                return None;
            }
            let shared = shared.wait();
            let (paths, after) = &mut *reads.lock().unwrap();
            if !paths.iter().any(|known| known == path) {
                paths.push(path.to_owned());
            }
            // The first is that with the tombstones.
            if paths.len() > 1 {
                shared.compaction.stop();
                *after += 1;
            }
            None
        }
    };
    // Without images, so that each look at a record is a read.
    let rig = Rig::unloaded(eager(directory.path()), faulty(Box::new(faults)), 0).unwrap();
    assert!(shared.set(Arc::clone(&rig.store.shared)).is_ok());
    until(&rig, "another segment is looked through", || {
        reads.lock().unwrap().1 > 0
    });
    drop(rig);
    let (_, after) = &*reads.lock().unwrap();
    assert!(*after <= 8, "{after} reads after it was to stop");
}

/// That too many files are open says nothing of a segment: it is compacted once there are fewer.
#[test]
fn a_segment_that_cannot_be_opened_for_a_while_is_compacted_later() {
    let directory = scratch();
    let model = half_dead(directory.path());
    let left = Arc::new(AtomicUsize::new(2));
    let faults = {
        let left = Arc::clone(&left);
        move |call: Call, path: &Path| {
            let own = std::thread::current().name() == Some("kv-compact");
            let hit = own
                && call == Call::Read
                && path.extension().is_some_and(|extension| extension == "segment")
                && left
                    .fetch_update(Ordering::AcqRel, Ordering::Acquire, |left| left.checked_sub(1))
                    .is_ok();
            // EMFILE
            hit.then(|| (0, io::Error::from_raw_os_error(24)))
        }
    };
    let rig = Rig::unloaded(eager(directory.path()), faulty(Box::new(faults)), 0).unwrap();
    until(&rig, "what is dead goes", || {
        rig.figure("set", "compaction_removed_segments_count") > 0
    });
    assert_eq!(left.load(Ordering::Acquire), 0);
    assert_eq!(rig.figure("set", "compaction_suspect_segments_count"), 0);
    drop(rig);
    check(&Rig::open(directory.path()), &model, 60);
}
