//! Starts on a disk that is full: everything that is there is served, and nothing is lost once there is room again.

use std::collections::BTreeSet;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use kv_proto::control::Status;

use super::check::checked;
use super::compacting::only_dead;
use super::support::{Rig, bytes, copy_directory, faulty, scratch, sealed_end, segment_files_in};
use crate::store::check::Level;
use crate::store::files::{Call, Files};
use crate::store::recover::SegmentFile;
use crate::store::{BeginPut, Compaction, StoreOptions};

const ENOSPC: i32 = 28;
/// Small records, whose FOOTERs take a third of what they do.
const KEYS: u64 = 2000;
const RESERVE_BYTES: u64 = 1 << 19;

fn value(key: u64) -> Vec<u8> {
    bytes(key, 30)
}

/// What the files below take of the disk.
fn used_bytes(root: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(root) else {
        return 0;
    };
    let each = entries.flatten().map(|entry| match entry.metadata() {
        Ok(it) if it.is_dir() => used_bytes(&entry.path()),
        Ok(it) => it.blocks() * 512,
        Err(_) => 0,
    });
    each.sum()
}

/// A disk with so many bytes: what needs more of them fails. Rewriting what is there does not.
#[derive(Clone)]
struct Disk {
    root: PathBuf,
    bytes: Arc<AtomicU64>,
}

impl Disk {
    /// One with so much free.
    fn with_free(root: &Path, free_bytes: u64) -> Self {
        Self {
            root: root.to_owned(),
            bytes: Arc::new((used_bytes(root) + free_bytes).into()),
        }
    }

    fn grow(&self) {
        self.bytes.store(1 << 40, Ordering::Release);
    }

    fn files(&self) -> Files {
        let this = self.clone();
        // Segments that were synced: what is written there before is what was found there.
        let synced = Mutex::new(BTreeSet::new());
        faulty(Box::new(move |call: Call, path: &Path| {
            let free = this
                .bytes
                .load(Ordering::Acquire)
                .saturating_sub(used_bytes(&this.root));
            let full = || (0, io::Error::from_raw_os_error(ENOSPC));
            let mut synced = synced.lock().unwrap();
            match call {
                Call::Space => Some((free as usize, io::Error::from_raw_os_error(ENOSPC))),
                Call::Sync => {
                    synced.insert(path.to_owned());
                    None
                }
                Call::Create if free == 0 => Some(full()),
                Call::Write if free == 0 && !path.ends_with("superblock") => {
                    let found = path.extension().is_some_and(|it| it == "segment") && !synced.contains(path);
                    (!found).then(full)
                }
                _ => None,
            }
        }))
    }

    fn rig(&self) -> Rig {
        Rig::with(with_reserve(&self.root), self.files()).unwrap()
    }
}

fn with_reserve(root: &Path) -> StoreOptions {
    StoreOptions {
        compaction: Compaction {
            disk_reserve_bytes: RESERVE_BYTES,
            ..only_dead(root).compaction
        },
        ..only_dead(root)
    }
}

/// A killed server's directory, without reserve, and its only segment.
fn killed() -> (tempfile::TempDir, PathBuf) {
    let running = scratch();
    let rig = Rig::with(only_dead(running.path()), Files::default()).unwrap();
    rig.store.create("set").unwrap();
    for key in 0..KEYS {
        rig.put_as("set", (1, key + 1), &key.to_le_bytes(), &value(key))
            .unwrap();
    }
    let killed = scratch();
    copy_directory(running.path(), killed.path());
    let directory = std::fs::read_dir(killed.path().join("datasets")).unwrap().next();
    let files = segment_files_in(&directory.unwrap().unwrap().path());
    assert_eq!(files.len(), 1);
    (killed, files[0].clone())
}

fn check(rig: &Rig) {
    for key in 0..KEYS {
        assert_eq!(rig.get("set", &key.to_le_bytes()), Some(value(key)), "key {key}");
    }
    for figure in [
        "lost_segments_count",
        "cut_segments_count",
        "damaged_records_count",
    ] {
        assert_eq!(rig.figure("set", figure), 0, "{figure}");
    }
    // Each was done, and is known.
    for operation in KEYS - 1000..=KEYS {
        let begun = rig.dataset("set").begin_put(1, operation, b"any", 1).unwrap();
        assert!(matches!(begun, BeginPut::Done(_)), "{operation}: {begun:?}");
    }
}

fn footers(path: &Path, rig: &Rig) -> Option<u32> {
    let segment = SegmentFile::open(&Files::default(), path, 1, rig.dataset("set").id()).unwrap();
    segment.trailer.map(|trailer| trailer.footer_count)
}

/// FOOTERs that fit only what is kept.
#[test]
fn a_start_seals_in_the_room_that_is_kept() {
    let (root, segment) = killed();
    // So much is free that the reserve is not given up beforehand.
    std::fs::write(root.path().join("reserve"), vec![1; 100 << 10]).unwrap();
    let rig = Disk::with_free(root.path(), 60 << 10).rig();
    check(&rig);
    assert!(!root.path().join("reserve").exists(), "given up");
    assert!(footers(&segment, &rig).unwrap() > 0);
}

/// FOOTERs that fit nowhere: the segment does without, and starts read its records.
#[test]
fn a_start_does_without_footers_that_do_not_fit() {
    let (root, segment) = killed();
    let disk = Disk::with_free(root.path(), 20 << 10);
    let before = used_bytes(root.path());
    let rig = disk.rig();
    check(&rig);
    assert_eq!(footers(&segment, &rig), Some(0));
    assert_eq!(
        sealed_end(&std::fs::read(&segment).unwrap()) + 64,
        std::fs::metadata(&segment).unwrap().len() as usize
    );
    assert!(
        used_bytes(root.path()) <= before + 8192,
        "nothing is left of FOOTERs"
    );
    drop(rig);
    let (summary, findings) = checked(root.path(), false);
    assert_eq!((summary.damage, summary.notes), (0, 1), "{findings:#?}");
    assert!(findings[0].what.contains("no FOOTERs"), "{findings:#?}");
    for _ in 0..2 {
        check(&Rig::with(only_dead(root.path()), Files::default()).unwrap());
    }
    let (summary, findings) = checked(root.path(), true);
    assert_eq!((summary.damage, summary.repaired), (0, 1), "{findings:#?}");
    assert_eq!(checked(root.path(), false).1, []);
    let rig = Rig::with(only_dead(root.path()), Files::default()).unwrap();
    assert!(footers(&segment, &rig).unwrap() > 0);
    check(&rig);
}

/// Not a byte is free, and nothing is kept: everything is served, and stored again once there is room.
#[test]
fn a_start_without_any_room_serves_what_is_there() {
    let (root, segment) = killed();
    let disk = Disk::with_free(root.path(), 0);
    for _ in 0..2 {
        let rig = disk.rig();
        check(&rig);
        let error = rig.put("set", b"more", b"more").unwrap_err();
        assert_eq!(error.status(), Status::NoSpace, "{error}");
        assert_eq!(footers(&segment, &rig), None);
        assert_eq!(checked_while_held(root.path()), 0);
    }
    let rig = disk.rig();
    disk.grow();
    rig.put("set", b"more", b"more").unwrap();
    assert_eq!(
        footers(&segment, &rig),
        Some(0),
        "before another segment is begun"
    );
    let crashed = scratch();
    copy_directory(root.path(), crashed.path());
    drop(rig);
    for root in [root.path(), crashed.path()] {
        let rig = Rig::with(only_dead(root), Files::default()).unwrap();
        check(&rig);
        assert_eq!(rig.get("set", b"more"), Some(b"more".to_vec()));
    }
}

/// What a check finds in a copy: the directory itself is held.
fn checked_while_held(root: &Path) -> u64 {
    let copy = scratch();
    copy_directory(root, copy.path());
    let (summary, findings) = checked(copy.path(), false);
    assert!(findings.iter().all(|it| it.level == Level::Note), "{findings:#?}");
    summary.damage
}

/// The disk fills up while the server runs: the segment that ends there is sealed before the next one is begun.
#[test]
fn a_segment_that_cannot_be_sealed_is_sealed_before_the_next_is_begun() {
    let root = scratch();
    let disk = Disk::with_free(root.path(), 1 << 40);
    let rig = Rig::with(only_dead(root.path()), disk.files()).unwrap();
    rig.store.create("set").unwrap();
    let mut key = 0_u64;
    // As many as fit a segment.
    while key < 34 {
        rig.put("set", &key.to_le_bytes(), &bytes(key, 30_000)).unwrap();
        key += 1;
    }
    disk.bytes.store(used_bytes(root.path()), Ordering::Release);
    let refused = rig.put("set", b"refused", &bytes(key, 30_000)).unwrap_err();
    assert_eq!(refused.status(), Status::NoSpace, "{refused}");
    disk.grow();
    for more in 0..30 {
        rig.put("set", &(key + more).to_le_bytes(), &bytes(key + more, 30_000))
            .unwrap();
    }
    let crashed = scratch();
    copy_directory(root.path(), crashed.path());
    let (summary, findings) = checked(crashed.path(), false);
    assert_eq!(summary.damage, 0, "{findings:#?}");
    let rig = Rig::with(only_dead(crashed.path()), Files::default()).unwrap();
    assert_eq!(rig.figure("set", "cut_segments_count"), 0);
    assert_eq!(rig.figure("set", "keys_count"), key + 30);
}
