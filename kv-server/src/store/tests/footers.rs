//! FOOTERs: what a sealed segment lists, and what counts where they do not validate.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use kv_proto::layout::{FooterEntry, OPERATIONS_REMEMBERED, record_kind};

use super::support::{
    Rig, bytes, copy_directory, faulty, options, scratch, sealed_end, segment_files, segment_files_in,
};
use crate::store::files::{Call, Files};
use crate::store::recover::SegmentFile;
use crate::store::{BeginDelete, BeginPut, footer};

const EIO: i32 = 5;

fn segments(root: &Path) -> Vec<PathBuf> {
    let mut datasets = std::fs::read_dir(root.join("datasets")).unwrap();
    segment_files_in(&datasets.next().unwrap().unwrap().path())
}

/// Puts, overwrites and deletes in one segment; what is there after it.
fn filled(rig: &Rig) -> Vec<(Vec<u8>, Option<Vec<u8>>)> {
    rig.store.create("set").unwrap();
    for key in 0..120_u64 {
        rig.put("set", &key.to_le_bytes(), &bytes(key, key as usize * 7 % 900))
            .unwrap();
    }
    for key in (0..120_u64).step_by(3) {
        rig.put("set", &key.to_le_bytes(), &bytes(key + 1000, 50))
            .unwrap();
    }
    for key in (0..120_u64).step_by(5) {
        rig.delete("set", &key.to_le_bytes()).unwrap();
    }
    rig.put("set", b"large", &bytes(9, 200_000)).unwrap();
    (0..120_u64)
        .map(|key| {
            let value = match key {
                key if key % 5 == 0 => None,
                key if key % 3 == 0 => Some(bytes(key + 1000, 50)),
                key => Some(bytes(key, key as usize * 7 % 900)),
            };
            (key.to_le_bytes().to_vec(), value)
        })
        .chain([(b"large".to_vec(), Some(bytes(9, 200_000)))])
        .collect()
}

fn check(rig: &Rig, expected: &[(Vec<u8>, Option<Vec<u8>>)], what: &str) {
    for (key, value) in expected {
        assert_eq!(rig.get("set", key), *value, "{what}: key {key:?}");
    }
    let values: u64 = expected
        .iter()
        .flat_map(|(_, value)| value)
        .map(|value| value.len() as u64)
        .sum();
    let keys = expected.iter().filter(|(_, value)| value.is_some()).count() as u64;
    assert_eq!(rig.figure("set", "keys_count"), keys, "{what}");
    assert_eq!(rig.figure("set", "value_bytes"), values, "{what}");
}

/// The FOOTERs list what a walk over the records finds, in order, whoever wrote them.
#[test]
fn footers_list_every_record_once_and_in_order() {
    let running = scratch();
    let rig = Rig::open(running.path());
    filled(&rig);
    let crashed = scratch();
    copy_directory(running.path(), crashed.path());
    let dataset = rig.dataset("set");
    drop(rig);
    drop(Rig::open(crashed.path()));
    for root in [running.path(), crashed.path()] {
        let files = Files::default();
        let path = segments(root)[0].clone();
        let number = u32::from_str_radix(path.file_stem().unwrap().to_str().unwrap(), 16).unwrap();
        let segment = SegmentFile::open(&files, &path, number, dataset.id()).unwrap();
        let trailer = segment.trailer.unwrap();
        assert!(trailer.footer_count > 2, "{}", trailer.footer_count);
        let file = files.open(&path).unwrap();
        let mut listed: Vec<FooterEntry> = Vec::new();
        let mut operations = 0;
        footer::read(&files, &file, &trailer, |entries, more| {
            listed.extend_from_slice(entries);
            operations += more.len();
        })
        .unwrap();
        let mut walked = Vec::new();
        let scanned = segment
            .walk(&files, &file, 64, |found| {
                walked.push(found.entry(&dataset.hash_key()))
            })
            .unwrap();
        assert_eq!(listed, walked);
        assert_eq!(scanned.end, segment.len);
        assert!(listed.iter().any(|entry| entry.kind == record_kind::TOMBSTONE));
        assert!(listed.iter().any(|entry| entry.kind == record_kind::PART));
        assert_eq!(operations, 120 + 40 + 24 + 1);
    }
}

/// A bit that flipped anywhere in FOOTERs or trailer costs time, and nothing else.
#[test]
fn records_are_walked_where_footers_do_not_validate() {
    let directory = scratch();
    let rig = Rig::open(directory.path());
    let expected = filled(&rig);
    drop(rig);
    let file = segments(directory.path())[0].clone();
    let whole = std::fs::read(&file).unwrap();
    let end = sealed_end(&whole);
    assert!(whole.len() - end > 4000);
    for at in (end..whole.len())
        .step_by(97)
        .chain([whole.len() - 1, whole.len() - 40])
    {
        let mut broken = whole.clone();
        broken[at] ^= 4;
        std::fs::write(&file, &broken).unwrap();
        let rig = Rig::open(directory.path());
        check(&rig, &expected, &format!("byte {at}"));
        let trailer = at >= whole.len() - 64;
        assert_eq!(
            rig.figure("set", "damaged_records_count"),
            u64::from(trailer),
            "byte {at}"
        );
        assert_eq!(rig.figure("set", "cut_segments_count"), 0, "byte {at}");
        assert!(matches!(
            rig.dataset("set").begin_put(7 + (1 << 8), 1, b"any", 1).unwrap(),
            BeginPut::Done(_)
        ));
    }
}

/// Whatever step of sealing is the last one, at run time or at a start, the next start has everything.
#[test]
fn sealing_can_end_at_any_step() {
    for at_start in [false, true] {
        for (call, nth) in [
            (Call::Write, 0),
            (Call::Write, 1),
            (Call::Write, 2),
            (Call::Sync, 0),
            (Call::Sync, 1),
            (Call::Sync, 2),
        ] {
            let what = format!("{call:?} {nth}, at a start: {at_start}");
            let running = scratch();
            // Counts what comes from the moment on that it is armed.
            let armed = Arc::new(AtomicU64::new(0));
            let met = AtomicUsize::new(0);
            let hook = {
                let armed = Arc::clone(&armed);
                move |at: Call, path: &Path| {
                    let segment = path.extension().is_some_and(|it| it == "segment");
                    if armed.load(Ordering::Relaxed) == 0 || at != call || !segment {
                        return None;
                    }
                    // From there on nothing works, as after a crash; some of the bytes are written.
                    (met.fetch_add(1, Ordering::Relaxed) >= nth)
                        .then(|| (100, io::Error::from_raw_os_error(EIO)))
                }
            };
            let rig = Rig::with(options(running.path()), faulty(Box::new(hook))).unwrap();
            let expected = filled(&rig);
            let target = scratch();
            if at_start {
                copy_directory(running.path(), target.path());
                drop(rig);
                let met = AtomicUsize::new(0);
                let hook = move |at: Call, path: &Path| {
                    let segment = path.extension().is_some_and(|it| it == "segment");
                    (at == call && segment && met.fetch_add(1, Ordering::Relaxed) >= nth)
                        .then(|| (100, io::Error::from_raw_os_error(EIO)))
                };
                assert!(
                    Rig::with(options(target.path()), faulty(Box::new(hook))).is_err(),
                    "{what}"
                );
            } else {
                armed.store(1, Ordering::Relaxed);
                drop(rig);
                copy_directory(running.path(), target.path());
            }
            let rig = Rig::open(target.path());
            check(&rig, &expected, &what);
            assert_eq!(rig.figure("set", "damaged_records_count"), 0, "{what}");
            let file = std::fs::read(&segment_files(&rig.dataset("set"))[0]).unwrap();
            sealed_end(&file);
        }
    }
}

/// Operations outlive their segments' files: a retry is answered, and what was forgotten stays unknown.
#[test]
fn operations_of_sealed_segments_are_remembered() {
    let directory = scratch();
    let rig = Rig::open(directory.path());
    rig.store.create("set").unwrap();
    let busy = OPERATIONS_REMEMBERED as u64 + 50;
    for operation in 1..=busy {
        rig.put_as("set", (1, operation), &operation.to_le_bytes(), &[1; 1000])
            .unwrap();
    }
    let put = rig.put_as("set", (2, 5), b"key", b"value").unwrap();
    let dataset = rig.dataset("set");
    let token = rig.token();
    assert!(matches!(
        dataset.delete(3, 9, b"key", token).unwrap(),
        BeginDelete::Queued
    ));
    let deleted = rig.answer(token).unwrap();
    assert!(deleted.existed);
    drop((dataset, rig));
    let files = segments(directory.path());
    assert!(files.len() > 1);
    // What compaction will do: the older ones are gone, and the newest tells of their operations.
    for file in &files[..files.len() - 1] {
        std::fs::remove_file(file).unwrap();
    }
    for _ in 0..3 {
        let rig = Rig::open(directory.path());
        let dataset = rig.dataset("set");
        assert_eq!(
            rig.figure("set", "operations_remembered_count"),
            OPERATIONS_REMEMBERED as u64 + 2
        );
        let Ok(BeginPut::Done(again)) = dataset.begin_put(2, 5, b"key", 5) else {
            panic!("not remembered");
        };
        assert_eq!((again.sequence, again.locator), (put.sequence, put.locator));
        let Ok(BeginDelete::Done(again)) = dataset.delete(3, 9, b"key", 0) else {
            panic!("not remembered");
        };
        assert_eq!((again.sequence, again.existed), (deleted.sequence, true));
        for operation in 1..=50 {
            let begun = dataset.begin_put(1, operation, b"key", 5).unwrap();
            assert!(matches!(begun, BeginPut::Unknown), "{operation}: {begun:?}");
        }
        for operation in [51, 500, busy] {
            let begun = dataset.begin_put(1, operation, b"key", 5).unwrap();
            assert!(matches!(begun, BeginPut::Done(_)), "{operation}: {begun:?}");
        }
        assert!(matches!(
            dataset.begin_put(1, busy + 1, b"key", 5).unwrap(),
            BeginPut::New(_)
        ));
    }
}
