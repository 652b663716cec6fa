//! A disk that is full, a memory budget that is used up: what frees room works on, and the rest resumes.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kv_proto::control::Status;

use super::compacting::{Model, check, eager, only_dead, until};
use super::support::{
    MIB, PATIENCE, Rig, bytes, copy_directory, faulty, figure_in, options, scratch, sealed_end, segment_files,
};
use crate::error::StorageError;
use crate::store::files::{Call, Files};
use crate::store::{BeginPut, Compaction, StoreOptions};

const ENOSPC: i32 = 28;

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

/// Some file systems find out at the sync that they are full.
#[test]
fn a_delete_gets_a_segment_where_a_sync_finds_the_disk_full() {
    for name in [".segment.new", "segments.new"] {
        let root = scratch();
        let rig = Rig::open(root.path());
        rig.store.create("set").unwrap();
        rig.put("set", b"key", b"value").unwrap();
        drop(rig);
        let reserve = root.path().join("reserve");
        let faults = {
            let reserve = reserve.clone();
            move |call: Call, path: &Path| {
                let hit = call == Call::Sync && path.to_string_lossy().ends_with(name) && reserve.exists();
                hit.then(|| (0, io::Error::from_raw_os_error(ENOSPC)))
            }
        };
        let options = StoreOptions {
            compaction: Compaction {
                disk_reserve_bytes: MIB,
                ..eager(root.path()).compaction
            },
            ..eager(root.path())
        };
        let rig = Rig::with(options, faulty(Box::new(faults))).unwrap();
        assert!(reserve.exists());
        assert!(rig.delete("set", b"key").unwrap().existed, "{name}");
        drop(rig);
        assert_eq!(Rig::open(root.path()).get("set", b"key"), None, "{name}");
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

/// Segments that are not dead enough to be compacted are, where the disk is full, in the room that is kept.
#[test]
fn a_full_disk_is_compacted_in_the_room_that_is_kept() {
    let directory = scratch();
    let full = Full::of(directory.path(), false);
    let rig = full.rig(4 * MIB);
    rig.store.create("set").unwrap();
    let mut model = Model::new();
    for key in 0..200_u64 {
        rig.put("set", &key.to_le_bytes(), &bytes(key, 20_000)).unwrap();
        model.insert(key, bytes(key, 20_000));
    }
    // A fifth of each.
    for key in (0..200_u64).step_by(5) {
        rig.put("set", &key.to_le_bytes(), b"small").unwrap();
        model.insert(key, b"small".to_vec());
    }
    full.full.store(true, Ordering::Release);
    let refused = rig.put("set", b"more", &bytes(1, 20_000)).unwrap_err();
    assert!(
        matches!(refused, StorageError::NoSpace { .. } | StorageError::Freeing),
        "{refused}"
    );
    until(&rig, "a full disk is compacted", || {
        rig.figure("set", "compaction_removed_segments_count") > 0
    });
    assert!(!directory.path().join("reserve").exists(), "given up");
    check(&rig, &model, 200);
}

/// The first delete after a start needs a segment of its own; and what is written is sealed at the end.
#[test]
fn a_segment_is_opened_and_sealed_in_the_room_that_is_kept() {
    let directory = scratch();
    let full = Full::of(directory.path(), false);
    let rig = full.rig(4 * MIB);
    rig.store.create("set").unwrap();
    // So much that one key less is no reason to compact, and to seal for that.
    for key in 0..40_u64 {
        rig.put("set", &key.to_le_bytes(), &bytes(key, 10_000)).unwrap();
    }
    drop(rig);
    let rig = full.rig(4 * MIB);
    full.full.store(true, Ordering::Release);
    assert!(rig.delete("set", &0_u64.to_le_bytes()).unwrap().existed);
    assert!(!directory.path().join("reserve").exists(), "given up");
    full.full.store(false, Ordering::Release);
    rig.put("set", b"newest", b"value").unwrap();
    assert!(directory.path().join("reserve").exists(), "taken again");
    let files = segment_files(&rig.dataset("set"));
    full.full.store(true, Ordering::Release);
    drop(rig);
    assert!(!directory.path().join("reserve").exists(), "given up");
    sealed_end(&std::fs::read(files.last().unwrap()).unwrap());
}

/// A start writes the superblock, on a disk without room for 64 bytes too.
#[test]
fn a_superblock_is_written_in_the_room_that_is_kept() {
    let directory = scratch();
    drop(Rig::open(directory.path()));
    let reserve = directory.path().join("reserve");
    std::fs::write(&reserve, [0; 4096]).unwrap();
    let kept = reserve.clone();
    let faults = move |call: Call, path: &Path| {
        let full = call == Call::Write && path.to_string_lossy().contains("superblock") && kept.exists();
        full.then(|| (0, io::Error::from_raw_os_error(ENOSPC)))
    };
    Rig::with(options(directory.path()), faulty(Box::new(faults))).unwrap();
    assert!(!reserve.exists());
}

/// Memory for one extent is kept for deletes, which need a segment of their own when there is none for values.
#[test]
fn deletes_find_the_memory_that_is_kept_for_them() {
    let directory = scratch();
    let small = StoreOptions {
        memory_budget_bytes: 4 * MIB,
        ..only_dead(directory.path())
    };
    let rig = Rig::with(small, Files::default()).unwrap();
    rig.store.create("set").unwrap();
    let mut stored = 0_u64;
    while rig
        .put("set", &stored.to_le_bytes(), &bytes(stored, 30_000))
        .is_ok()
    {
        stored += 1;
        assert!(stored < 200, "more than the budget");
    }
    let (used, of) = (
        figure_in(&rig.store.stat(), "memory_used_bytes"),
        figure_in(&rig.store.stat(), "memory_budget_bytes"),
    );
    assert!(used + MIB <= of, "{used} of {of}: none is kept");
    // Compaction, which is pressed by now, may have it for a moment.
    for key in 0..stored {
        until(&rig, "it is deleted", || {
            match rig.delete("set", &key.to_le_bytes()) {
                Ok(deleted) => deleted.existed,
                Err(StorageError::Freeing) => false,
                Err(error) => panic!("{key}: {error}"),
            }
        });
    }
    // Everything is dead: it goes, and there is room for values again.
    until(&rig, "values are stored again", || {
        rig.put("set", b"key", &bytes(1, 30_000)).is_ok()
    });
}

/// A value for which there is no memory until readers let go of what was retired is refused before it comes.
#[test]
fn a_value_does_not_begin_before_the_memory_for_it_is_back() {
    let directory = scratch();
    let rig = Rig::with(only_dead(directory.path()), Files::default()).unwrap();
    rig.store.create("set").unwrap();
    let dataset = rig.dataset("set");
    // Until a segment is all dead, and gone but for its image.
    let mut round = 0;
    let deadline = Instant::now() + PATIENCE;
    while rig.figure("set", "compaction_removed_segments_count") == 0 {
        rig.put("set", b"key", &bytes(round, 30_000)).unwrap();
        round += 1;
        assert!(Instant::now() < deadline, "{:?}", dataset.stat());
    }
    let more = dataset.shared.budget.open_bytes() + MIB / 2;
    let refused = dataset.begin_put(1, 1, b"large", more).unwrap_err();
    assert!(matches!(refused, StorageError::Freeing), "{refused}");
    rig.store.release(&dataset.id(), rig.store.retired());
    let begun = dataset.begin_put(1, 1, b"large", more).unwrap();
    assert!(matches!(begun, BeginPut::New(_)), "{begun:?}");
}

/// Bytes that the files below a directory have.
fn used_bytes(root: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(root) else {
        return 0;
    };
    let bytes = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => used_bytes(&entry.path()),
        Ok(meta) => meta.len(),
        Err(_) => 0,
    };
    entries.flatten().map(bytes).sum()
}

/// A disk that is filled by what is stored, and whose segments all have a little that is dead: what frees room first
/// needs the room of a whole segment's copies.
#[test]
fn values_are_stored_again_when_a_seventh_of_a_full_disk_was_deleted() {
    const DISK_BYTES: u64 = 12 * MIB;
    let directory = scratch();
    let root = directory.path().to_owned();
    let faults = move |call: Call, path: &Path| {
        let used = || used_bytes(&root);
        let full = || io::Error::from_raw_os_error(ENOSPC);
        match call {
            Call::Space => Some((DISK_BYTES.saturating_sub(used()) as usize, full())),
            Call::Write if !path.ends_with("reserve") => (used() >= DISK_BYTES).then(|| (0, full())),
            _ => None,
        }
    };
    let options = StoreOptions {
        compaction: Compaction {
            disk_reserve_bytes: 64 << 10,
            ..Compaction::default()
        },
        ..options(directory.path())
    };
    let rig = Rig::with(options, faulty(Box::new(faults))).unwrap();
    rig.store.create("set").unwrap();
    let mut model = Model::new();
    let mut stored = 0_u64;
    let refused = loop {
        let value = bytes(stored, 20_000);
        match rig.put("set", &stored.to_le_bytes(), &value) {
            Ok(_) => model.insert(stored, value),
            Err(error) => break error,
        };
        stored += 1;
        assert!(stored < 1000, "more than the disk has");
    };
    assert_eq!(refused.status(), Status::NoSpace, "{refused}");
    for key in (0..stored).step_by(7) {
        assert!(rig.delete("set", &key.to_le_bytes()).unwrap().existed);
        model.remove(&key);
    }
    let mut more = stored;
    until(&rig, "values are stored again", || {
        rig.put("set", b"more", b"value").is_ok()
    });
    rig.delete("set", b"more").unwrap();
    // And not for one value alone: half of what was deleted, at least.
    while more < stored + stored / 14 {
        let value = bytes(more, 20_000);
        until(&rig, "more values are stored", || {
            rig.put("set", &more.to_le_bytes(), &value).is_ok()
        });
        model.insert(more, value);
        more += 1;
    }
    check(&rig, &model, more);
    assert!(rig.figure("set", "compaction_copied_bytes") > 0);
    drop(rig);
    check(&Rig::open(directory.path()), &model, more);
}
