//! What a group that failed leaves in its file is believed by the next start: until then nothing that hides it, and
//! nothing that it names, goes.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kv_proto::control::Status;
use kv_proto::crc::crc32c;

use super::check::checked;
use super::compacting::{eager, only_dead, until};
use super::support::{Rig, bytes, copy_directory, faulty, scratch};
use crate::store::files::{Call, Files};
use crate::store::segment_path;
use crate::store::{BeginPut, StoreOptions};

const EIO: i32 = 5;
const ENOSPC: i32 = 28;

/// Calls on segment files that fail from now on, with the bytes that are written first.
type Failing = Arc<Mutex<Vec<(Call, i32, usize)>>>;

fn failing_rig(options: StoreOptions) -> (Rig, Failing) {
    let failing = Failing::default();
    let faults = {
        let failing = Arc::clone(&failing);
        move |call: Call, path: &Path| {
            let segment = path.extension().is_some_and(|it| it == "segment");
            let failing = failing.lock().unwrap();
            let (_, errno, after) = failing.iter().find(|it| segment && it.0 == call)?;
            Some((*after, io::Error::from_raw_os_error(*errno)))
        }
    };
    (Rig::with(options, faulty(Box::new(faults))).unwrap(), failing)
}

fn file_exists(rig: &Rig, segment: u32) -> bool {
    segment_path(&rig.dataset("set").directory, segment).exists()
}

/// Overwrites one key until the file of `segment` is gone.
fn until_gone(rig: &Rig, segment: u32) {
    let round = std::cell::Cell::new(0);
    until(rig, "the segment is compacted away", || {
        round.set(round.get() + 1);
        rig.put("set", b"fills", &bytes(round.get(), 30_000)).unwrap();
        !file_exists(rig, segment)
    });
}

/// What a kill right now leaves, opened.
fn killed(root: &Path) -> (tempfile::TempDir, Rig) {
    let copy = scratch();
    copy_directory(root, copy.path());
    let rig = Rig::with(only_dead(copy.path()), Files::default()).unwrap();
    (copy, rig)
}

/// Whatever kept the group from being durable, its put may be in the file: the tombstone outlives it.
#[test]
fn a_key_stays_deleted_whose_put_had_failed_before() {
    let faults: [&[(Call, i32, usize)]; 3] = [
        &[(Call::Sync, EIO, 0)],
        &[(Call::Write, EIO, 1 << 20)],
        &[(Call::Write, ENOSPC, 1 << 20), (Call::Punch, EIO, 0)],
    ];
    for faults in faults {
        let root = scratch();
        let (rig, failing) = failing_rig(eager(root.path()));
        rig.store.create("set").unwrap();
        let live = rig.put("set", b"live", &bytes(1, 5000)).unwrap().locator.segment;
        *failing.lock().unwrap() = faults.to_vec();
        let error = rig.put_as("set", (1, 1), b"key", b"value").unwrap_err();
        assert_eq!(error.status(), Status::Io, "{error}");
        failing.lock().unwrap().clear();
        let again = rig.put_as("set", (1, 1), b"key", b"value").unwrap();
        let segment = again.locator.segment;
        assert_ne!(segment, live);
        rig.delete("set", b"key").unwrap();
        until_gone(&rig, segment);
        assert!(file_exists(&rig, live), "what lives there keeps it");
        let (_copy, rig) = killed(root.path());
        assert_eq!(rig.get("set", b"key"), None, "{faults:?}");
        assert_eq!(rig.get("set", b"live"), Some(bytes(1, 5000)));
    }
}

/// What was refused has no part in what the trailer says.
#[test]
fn a_trailer_says_the_sequences_of_what_is_there() {
    for first in [true, false] {
        let root = scratch();
        let (rig, failing) = failing_rig(only_dead(root.path()));
        rig.store.create("set").unwrap();
        let put = || rig.put("set", b"key", b"value");
        if !first {
            put().unwrap();
        }
        *failing.lock().unwrap() = vec![(Call::Write, ENOSPC, 50)];
        assert_eq!(put().unwrap_err().status(), Status::NoSpace);
        failing.lock().unwrap().clear();
        if first {
            put().unwrap();
        }
        drop(rig);
        assert_eq!(checked(root.path(), false).1, []);
    }
}

/// A copy has the sequence of its source, which may be far below all others of its group.
#[test]
fn a_key_stays_deleted_whose_copy_had_failed_before() {
    let root = scratch();
    let rig = Rig::with(only_dead(root.path()), Files::default()).unwrap();
    rig.store.create("set").unwrap();
    let source = rig.put("set", b"key", b"value").unwrap().locator.segment;
    for round in 0..20 {
        rig.put("set", b"fills", &bytes(round, 30_000)).unwrap();
    }
    drop(rig);
    let (armed, held) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(true)));
    let faults = {
        let (armed, held) = (Arc::clone(&armed), Arc::clone(&held));
        move |call: Call, path: &Path| {
            if call == Call::Space && std::thread::current().name() == Some("kv-compact") {
                while held.load(Ordering::Acquire) {
                    std::thread::sleep(Duration::from_micros(50));
                }
            }
            let segment = path.extension().is_some_and(|it| it == "segment");
            let hit = segment && call == Call::Sync && armed.swap(false, Ordering::AcqRel);
            hit.then(|| (0, io::Error::from_raw_os_error(EIO)))
        }
    };
    let rig = Rig::with(eager(root.path()), faulty(Box::new(faults))).unwrap();
    let live = rig.put("set", b"live", b"live").unwrap().locator.segment;
    armed.store(true, Ordering::Release);
    held.store(false, Ordering::Release);
    until(&rig, "a copy fails", || {
        rig.figure("set", "compaction_failures_count") > 0
    });
    assert!(!armed.load(Ordering::Acquire));
    until_gone(&rig, source);
    let copy = rig.dataset("set").lookup(b"key").unwrap().unwrap().segment;
    assert_ne!(copy, live);
    rig.delete("set", b"key").unwrap();
    until_gone(&rig, copy);
    assert!(file_exists(&rig, live));
    let (_copy, rig) = killed(root.path());
    assert_eq!(rig.get("set", b"key"), None);
}

/// Parts that only a head names which may be in a file: with it, or not at all.
#[test]
fn a_head_that_had_failed_keeps_its_parts() {
    let root = scratch();
    let (rig, failing) = failing_rig(only_dead(root.path()));
    rig.store.create("set").unwrap();
    let dataset = rig.dataset("set");
    // So many that the last one, and the head, lie in a segment of their own.
    let large = bytes(1, 32 * dataset.part_bytes() as usize);
    let BeginPut::New(mut put) = dataset.begin_put(1, 1, b"large", large.len() as u64).unwrap() else {
        panic!("it is new");
    };
    for part in large.chunks(dataset.part_bytes() as usize) {
        until(&rig, "there is room", || dataset.queue.len() == 0);
        put.append(part.len(), |out| out.copy_from_slice(part)).unwrap();
    }
    until(&rig, "all parts are durable", || {
        rig.figure("set", "record_written_bytes") > large.len() as u64
    });
    // What lives beside the head keeps its segment.
    rig.put("set", b"live", b"live").unwrap();
    *failing.lock().unwrap() = vec![(Call::Sync, EIO, 0)];
    let token = rig.token();
    dataset.commit(put, crc32c(&large), token);
    assert_eq!(rig.answer(token).unwrap_err().status(), Status::Io);
    failing.lock().unwrap().clear();
    let first = dataset.all_segments()[0].number;
    assert_eq!(dataset.all_segments().len(), 2);
    let next = rig
        .put("set", b"fills", &bytes(0, 30_000))
        .unwrap()
        .locator
        .segment;
    until_gone(&rig, next);
    assert!(file_exists(&rig, first), "its parts may be named");
    let (_copy, killed) = killed(root.path());
    assert_eq!(killed.get("set", b"large"), Some(large));
    assert_eq!(killed.figure("set", "lost_segments_count"), 0);
}

/// As where a segment meets that when it ends: nothing was to be stored any more until a restart.
#[test]
fn a_trailer_that_a_full_disk_put_off_and_that_then_fails_holds_up_no_write() {
    let root = scratch();
    let (rig, failing) = failing_rig(only_dead(root.path()));
    rig.store.create("set").unwrap();
    // As many as fit a segment.
    for key in 0..34_u64 {
        rig.put("set", &key.to_le_bytes(), &bytes(key, 30_000)).unwrap();
    }
    *failing.lock().unwrap() = vec![(Call::Write, ENOSPC, 0)];
    let refused = rig.put("set", b"more", &bytes(34, 30_000)).unwrap_err();
    assert_eq!(refused.status(), Status::NoSpace, "{refused}");
    *failing.lock().unwrap() = vec![(Call::Read, EIO, 0)];
    rig.put("set", b"more", &bytes(34, 30_000)).unwrap();
    failing.lock().unwrap().clear();
    let (_copy, rig) = killed(root.path());
    for key in 0..34_u64 {
        assert!(rig.get("set", &key.to_le_bytes()) == Some(bytes(key, 30_000)));
    }
    assert!(rig.get("set", b"more") == Some(bytes(34, 30_000)));
    assert_eq!(rig.figure("set", "cut_segments_count"), 0);
}
