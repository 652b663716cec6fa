//! Datasets as a whole, the directory that they are in, and the memory that they take.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use super::check::Seen;
use super::support::{MIB, Miss, Rig, bytes, faulty, options, scratch};
use crate::error::StorageError;
use crate::store::check::check;
use crate::store::description::{Description, directory_name};
use crate::store::files::{Call, Files};
use crate::store::limits::DATASETS_MAX;
use crate::store::{BeginPut, StoreOptions};

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
    assert_eq!(rig.store.drop_dataset("two").unwrap().dataset, id);
    assert!(rig.store.by_name("two").is_none());
    let token = rig.token();
    two.commit(put, 0, token);
    assert!(matches!(rig.answer(token), Err(StorageError::Dropped)));
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
    rig.store.drop_dataset("set").unwrap().synced.unwrap();
    rig.store.release(&id, rig.store.retired() - 1);
    // Not acknowledged yet: a client reads on.
    assert_eq!(reader.lookup(b"key").unwrap().1, b"value");
    rig.store.release(&id, rig.store.retired());
    assert_eq!(reader.lookup(b"key"), Err(Miss::Stale));
    assert!(rig.store.by_id(&id).is_none());
    drop(dataset);
    assert_eq!((used(), rig.network.registrations()), (before, registered));
}

/// Whoever removes the lock file does not let another server in.
#[test]
fn a_directory_is_in_use_without_its_lock_file_too() {
    let directory = scratch();
    let rig = Rig::open(directory.path());
    for _ in 0..2 {
        std::fs::remove_file(directory.path().join("lock")).unwrap();
        let checked = check(directory.path(), false, &mut Seen::default()).map(|_| ());
        assert!(matches!(checked, Err(StorageError::InUse { .. })), "{checked:?}");
        let opened = Rig::with(options(directory.path()), Files::default()).map(|_| ());
        assert!(matches!(opened, Err(StorageError::InUse { .. })), "{opened:?}");
    }
    drop(rig);
    drop(Rig::open(directory.path()));
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
        assert!(stored < 200, "more than the budget");
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

/// A directory of the same name, as a CREATE that failed may leave it.
pub(super) fn make_twin(rig: &Rig, name: &str, id: [u8; 16]) -> std::path::PathBuf {
    let dataset = rig.dataset(name);
    let description = Description {
        id,
        hash_key: dataset.hash_key(),
        name: name.to_owned(),
        segment_bytes: dataset.segment_bytes,
        part_bytes: dataset.part_bytes(),
    };
    let path = dataset.directory.with_file_name(directory_name(&id));
    std::fs::create_dir(&path).unwrap();
    description.write(&Files::default(), &path).unwrap();
    path
}

#[test]
fn of_two_datasets_with_one_name_the_one_with_values_is_served() {
    for twin in [[0; 16], [0xff; 16]] {
        let directory = scratch();
        let rig = Rig::open(directory.path());
        rig.store.create("set").unwrap();
        rig.put("set", b"key", b"value").unwrap();
        let path = make_twin(&rig, "set", twin);
        let file = super::support::segment_files(&rig.dataset("set"))[0].clone();
        drop(rig);
        let rig = Rig::open(directory.path());
        assert_eq!(rig.get("set", b"key"), Some(b"value".to_vec()));
        assert!(
            !path.exists(),
            "the empty one would come up when the name is free"
        );
        // Both hold values: neither is served in place of the other.
        let path = make_twin(&rig, "set", twin);
        std::fs::copy(&file, path.join(file.file_name().unwrap())).unwrap();
        let names = [rig.dataset("set").directory.clone(), path];
        drop(rig);
        let error = Rig::with(options(directory.path()), Files::default())
            .map(|_| ())
            .unwrap_err();
        for name in names {
            let name = name.file_name().unwrap().to_str().unwrap();
            assert!(error.to_string().contains(name), "{error}");
        }
    }
}

/// The directory's sync fails after the rename: the removal is synced too, or a power cut brings it back.
#[test]
fn a_create_that_fails_late_is_undone_durably() {
    let calls = Arc::new(Mutex::new(None::<Vec<Call>>));
    let directory = scratch();
    let faults = {
        let calls = Arc::clone(&calls);
        move |call: Call, path: &Path| {
            let mut calls = calls.lock().unwrap();
            let calls = calls.as_mut().filter(|_| call != Call::Write)?;
            calls.push(call);
            let fails =
                call == Call::SyncDirectory && path.ends_with("datasets") && !calls.contains(&Call::Remove);
            fails.then(|| (0, std::io::Error::from_raw_os_error(5)))
        }
    };
    let rig = Rig::with(options(directory.path()), faulty(Box::new(faults))).unwrap();
    *calls.lock().unwrap() = Some(Vec::new());
    rig.store.create("set").unwrap_err();
    let done = calls.lock().unwrap().take().unwrap();
    assert_eq!(
        done[done.len() - 3..],
        [Call::SyncDirectory, Call::Remove, Call::SyncDirectory]
    );
    assert_eq!(
        std::fs::read_dir(directory.path().join("datasets"))
            .unwrap()
            .count(),
        0
    );
    rig.store.create("set").unwrap();
}

/// Its rename is done and the directory's sync fails: it is gone, its memory is released, and the error is told.
#[test]
fn a_drop_whose_sync_fails_leaks_nothing() {
    let failing = Arc::new(AtomicBool::new(false));
    let directory = scratch();
    let faults = {
        let failing = Arc::clone(&failing);
        move |call: Call, _: &Path| {
            let fails = call == Call::SyncDirectory && failing.load(Ordering::Relaxed);
            fails.then(|| (0, std::io::Error::from_raw_os_error(5)))
        }
    };
    let rig = Rig::with(options(directory.path()), faulty(Box::new(faults))).unwrap();
    let used = || super::support::figure_in(&rig.store.stat(), "memory_used_bytes");
    let (before, registered) = (used(), rig.network.registrations());
    let id = rig.store.create("set").unwrap();
    rig.put("set", b"key", b"value").unwrap();
    failing.store(true, Ordering::Relaxed);
    let dropped = rig.store.drop_dataset("set").unwrap();
    assert_eq!(dropped.dataset, id);
    assert!(matches!(dropped.synced, Err(StorageError::Io { .. })));
    assert!(rig.store.by_name("set").is_none());
    rig.store.release(&id, rig.store.retired());
    assert!(rig.store.by_id(&id).is_none());
    assert_eq!((used(), rig.network.registrations()), (before, registered));
}

#[test]
fn a_new_data_directory_is_durable_under_its_name() {
    let directory = scratch();
    let root = directory.path().join("not/there/yet");
    let synced = Arc::new(Mutex::new(Vec::new()));
    let faults = {
        let synced = Arc::clone(&synced);
        move |call: Call, path: &Path| {
            if call == Call::SyncDirectory {
                synced.lock().unwrap().push(path.to_owned());
            }
            None
        }
    };
    drop(Rig::with(options(&root), faulty(Box::new(faults))).unwrap());
    let synced = synced.lock().unwrap();
    for made in root.ancestors().take(3) {
        assert!(synced.contains(&made.parent().unwrap().to_owned()), "{synced:?}");
    }
}

#[test]
fn a_superblock_that_cannot_be_looked_at_is_not_made_anew() {
    let directory = scratch();
    drop(Rig::open(directory.path()));
    let superblock = directory.path().join("superblock");
    std::fs::remove_file(&superblock).unwrap();
    std::os::unix::fs::symlink("superblock", &superblock).unwrap();
    let error = Rig::with(options(directory.path()), Files::default())
        .map(|_| ())
        .unwrap_err();
    assert!(matches!(error, StorageError::Io { .. }), "{error}");
    assert!(superblock.is_symlink());
}

#[test]
fn a_full_disk_at_start_is_called_that() {
    const ENOSPC: i32 = 28;
    for call in [Call::Create, Call::Write, Call::Sync] {
        let directory = scratch();
        let faults = move |at: Call, path: &Path| {
            let fails = at == call && path.ends_with("superblock.new");
            fails.then(|| (0, std::io::Error::from_raw_os_error(ENOSPC)))
        };
        let error = Rig::with(options(directory.path()), faulty(Box::new(faults)))
            .map(|_| ())
            .unwrap_err();
        assert!(matches!(error, StorageError::NoSpace { .. }), "{call:?}: {error}");
        assert!(error.to_string().contains("free space"), "{error}");
    }
}

#[test]
fn datasets_past_the_limit_are_refused_until_one_is_released() {
    let directory = scratch();
    let rig = Rig::open(directory.path());
    for number in 0..DATASETS_MAX {
        rig.store.create(&format!("set-{number}")).unwrap();
    }
    let error = rig.store.create("more").unwrap_err();
    assert!(matches!(error, StorageError::Limit { .. }), "{error}");
    let dropped = rig.store.drop_dataset("set-1").unwrap();
    dropped.synced.unwrap();
    rig.store.create("more").unwrap_err();
    rig.store.release(&dropped.dataset, rig.store.retired());
    rig.store.create("more").unwrap();
}
