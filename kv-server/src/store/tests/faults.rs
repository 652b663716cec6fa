//! Disks that fill up, fail to write and fail to sync: what was answered stays, what was not is answered so.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::support::{Rig, bytes, copy_directory, faulty, options, scratch};
use crate::error::StorageError;
use crate::store::files::Call;
use kv_proto::control::Status;
use kv_proto::layout::segment_state;

/// A fault that a test turns on and off.
#[derive(Clone, Default)]
struct Switch {
    what: Arc<Mutex<Option<(Call, i32, usize)>>>,
    hits: Arc<AtomicUsize>,
}

const ENOSPC: i32 = 28;
const EIO: i32 = 5;

impl Switch {
    fn fail(&self, call: Call, errno: i32, after_bytes: usize) {
        *self.what.lock().unwrap() = Some((call, errno, after_bytes));
    }

    fn heal(&self) {
        *self.what.lock().unwrap() = None;
    }

    fn rig(&self, root: &Path) -> Rig {
        let switch = self.clone();
        let faults = move |call: Call, path: &Path| {
            let (failing, errno, after) = (*switch.what.lock().unwrap())?;
            if call != failing || !path.to_string_lossy().contains(".segment") {
                return None;
            }
            switch.hits.fetch_add(1, Ordering::Relaxed);
            Some((after, io::Error::from_raw_os_error(errno)))
        };
        Rig::with(options(root), faulty(Box::new(faults))).unwrap()
    }
}

fn check(rig: &Rig, keys: impl IntoIterator<Item = u64>) {
    for key in keys {
        assert_eq!(
            rig.get("set", &key.to_le_bytes()),
            Some(bytes(key, 5000)),
            "key {key}"
        );
    }
}

fn put(rig: &Rig, key: u64) -> Result<(), StorageError> {
    rig.put("set", &key.to_le_bytes(), &bytes(key, 5000)).map(|_| ())
}

/// The directory as a crash right now would leave it, opened without faults.
fn crash(root: &Path) -> (tempfile::TempDir, Rig) {
    let copy = scratch();
    copy_directory(root, copy.path());
    let rig = Rig::open(copy.path());
    (copy, rig)
}

#[test]
fn a_full_disk_refuses_and_works_again_once_there_is_room() {
    for after in [0, 100, 4096, 5100] {
        let directory = scratch();
        let switch = Switch::default();
        let rig = switch.rig(directory.path());
        rig.store.create("set").unwrap();
        put(&rig, 0).unwrap();
        switch.fail(Call::Write, ENOSPC, after);
        for key in 1..4 {
            let error = put(&rig, key).unwrap_err();
            assert_eq!(error.status(), Status::NoSpace, "{error}");
            assert_eq!(rig.get("set", &key.to_le_bytes()), None);
        }
        // Refused is refused: also a crash now brings none of them back.
        let (_copy, crashed) = crash(directory.path());
        check(&crashed, [0]);
        assert_eq!(crashed.figure("set", "keys_count"), 1);
        assert_eq!(crashed.figure("set", "damaged_records_count"), 0);
        switch.heal();
        for key in 2..9 {
            put(&rig, key).unwrap();
        }
        let segments = rig.figure("set", "segments_count");
        assert_eq!(segments, 1, "the same segment goes on");
        check(&rig, [0].into_iter().chain(2..9));
        let (_copy, crashed) = crash(directory.path());
        check(&crashed, [0].into_iter().chain(2..9));
        assert_eq!(crashed.figure("set", "keys_count"), 8);
    }
}

#[test]
fn a_full_disk_in_a_large_value_refuses_all_of_it() {
    let directory = scratch();
    let switch = Switch::default();
    let rig = switch.rig(directory.path());
    rig.store.create("set").unwrap();
    put(&rig, 0).unwrap();
    switch.fail(Call::Write, ENOSPC, 40_000);
    let dataset = rig.dataset("set");
    let result = rig
        .start_put(&dataset, (1, 1), b"large", &bytes(1, 400_000))
        .and_then(|token| rig.answer(token));
    assert_eq!(result.unwrap_err().status(), Status::NoSpace);
    switch.heal();
    rig.put_as("set", (1, 1), b"large", &bytes(1, 400_000)).unwrap();
    assert_eq!(rig.get("set", b"large"), Some(bytes(1, 400_000)));
    let (_copy, crashed) = crash(directory.path());
    assert_eq!(crashed.get("set", b"large"), Some(bytes(1, 400_000)));
}

#[test]
fn no_room_for_the_next_segment_refuses_until_there_is() {
    for call in [Call::Create, Call::Write, Call::Rename] {
        let directory = scratch();
        let switch = Switch::default();
        let rig = switch.rig(directory.path());
        rig.store.create("set").unwrap();
        switch.fail(call, ENOSPC, 10);
        for key in 0..3 {
            assert_eq!(put(&rig, key).unwrap_err().status(), Status::NoSpace, "{call:?}");
        }
        switch.heal();
        put(&rig, 5).unwrap();
        assert_eq!(
            rig.dataset("set")
                .lookup(&5_u64.to_le_bytes())
                .unwrap()
                .unwrap()
                .segment,
            1,
            "no number was wasted"
        );
        check(&rig, [5]);
    }
}

#[test]
fn after_a_failed_sync_or_write_a_segment_takes_no_more_writes() {
    for (call, errno) in [(Call::Sync, EIO), (Call::Sync, ENOSPC), (Call::Write, EIO)] {
        let directory = scratch();
        let switch = Switch::default();
        let rig = switch.rig(directory.path());
        rig.store.create("set").unwrap();
        put(&rig, 0).unwrap();
        let first = rig
            .dataset("set")
            .lookup(&0_u64.to_le_bytes())
            .unwrap()
            .unwrap()
            .segment;
        let durable = rig.dataset("set").row(first).unwrap().length_units;
        switch.fail(call, errno, 3000);
        let error = put(&rig, 1).unwrap_err();
        assert_eq!(error.status(), Status::Io, "{call:?}: {error}");
        assert_eq!(rig.get("set", &1_u64.to_le_bytes()), None);
        switch.heal();
        let row = rig.dataset("set").row(first).unwrap();
        assert_eq!((row.state, row.length_units), (segment_state::SEALED, durable));
        let len = std::fs::metadata(&super::support::segment_files(&rig.dataset("set"))[0])
            .unwrap()
            .len();
        put(&rig, 2).unwrap();
        put(&rig, 1).unwrap();
        let second = rig
            .dataset("set")
            .lookup(&2_u64.to_le_bytes())
            .unwrap()
            .unwrap()
            .segment;
        assert_ne!(first, second);
        check(&rig, 0..3);
        let now = std::fs::metadata(&super::support::segment_files(&rig.dataset("set"))[0])
            .unwrap()
            .len();
        assert_eq!(len, now, "not a byte more");
        let (_copy, crashed) = crash(directory.path());
        check(&crashed, 0..3);
        assert_eq!(crashed.figure("set", "keys_count"), 3);
    }
}

/// The retry of a put whose outcome was unknown is done once, whatever of the first attempt is on the disk.
#[test]
fn a_retry_after_a_failed_sync_is_done_once() {
    let directory = scratch();
    let switch = Switch::default();
    let rig = switch.rig(directory.path());
    rig.store.create("set").unwrap();
    switch.fail(Call::Sync, EIO, 0);
    // The header of the segment is synced too: let that pass.
    switch.heal();
    put(&rig, 0).unwrap();
    switch.fail(Call::Sync, EIO, 0);
    let error = rig.put_as("set", (1, 1), b"key", b"value").unwrap_err();
    assert_eq!(error.status(), Status::Io);
    switch.heal();
    rig.put_as("set", (1, 1), b"key", b"value").unwrap();
    rig.put_as("set", (1, 2), b"key", b"newer").unwrap();
    let (_copy, crashed) = crash(directory.path());
    assert_eq!(crashed.get("set", b"key"), Some(b"newer".to_vec()));
    let begun = crashed.dataset("set").begin_put(1, 1, b"key", 5).unwrap();
    assert!(matches!(begun, crate::store::BeginPut::Done(_)));
}

/// Sealing may fail at its very end, when the file has its own length already: it is not taken for one that was cut.
#[test]
fn a_segment_whose_sealing_fails_anywhere_is_not_taken_for_cut() {
    for (call, errno) in [
        (Call::Write, EIO),
        (Call::Sync, EIO),
        (Call::Sync, ENOSPC),
        (Call::Truncate, EIO),
    ] {
        for nth in 0..6 {
            let directory = scratch();
            let (armed, met) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
            let faults = {
                let (armed, met) = (Arc::clone(&armed), Arc::clone(&met));
                move |at: Call, path: &Path| {
                    let segment = path.extension().is_some_and(|it| it == "segment");
                    let hit = armed.load(Ordering::Acquire)
                        && segment
                        && at == call
                        && met.fetch_add(1, Ordering::AcqRel) >= nth;
                    hit.then(|| (10, io::Error::from_raw_os_error(errno)))
                }
            };
            let rig = Rig::with(options(directory.path()), faulty(Box::new(faults))).unwrap();
            rig.store.create("set").unwrap();
            for key in 0..40 {
                put(&rig, key).unwrap();
            }
            armed.store(true, Ordering::Release);
            drop(rig);
            for _ in 0..2 {
                let rig = Rig::open(directory.path());
                check(&rig, 0..40);
                for figure in ["cut_segments_count", "damaged_records_count"] {
                    assert_eq!(rig.figure("set", figure), 0, "{call:?} {nth}");
                }
            }
        }
    }
}

#[test]
fn a_trailer_that_cannot_be_written_loses_nothing() {
    let directory = scratch();
    let switch = Switch::default();
    let rig = switch.rig(directory.path());
    rig.store.create("set").unwrap();
    put(&rig, 0).unwrap();
    switch.fail(Call::Write, ENOSPC, 0);
    drop(rig);
    assert!(switch.hits.load(Ordering::Relaxed) > 0);
    switch.heal();
    for _ in 0..2 {
        check(&Rig::open(directory.path()), [0]);
    }
}

#[test]
fn creating_renaming_and_dropping_fail_whole() {
    let failing = Arc::new(Mutex::new(None::<Call>));
    let directory = scratch();
    let root: PathBuf = directory.path().to_owned();
    let rig = {
        let failing = Arc::clone(&failing);
        let faults = move |call: Call, _: &Path| {
            (Some(call) == *failing.lock().unwrap()).then(|| (0, io::Error::from_raw_os_error(ENOSPC)))
        };
        Rig::with(options(&root), faulty(Box::new(faults))).unwrap()
    };
    rig.store.create("old").unwrap();
    rig.put("old", b"key", b"value").unwrap();
    for call in [Call::Create, Call::Write, Call::Rename, Call::SyncDirectory] {
        *failing.lock().unwrap() = Some(call);
        assert!(rig.store.create("new").is_err(), "{call:?}");
        assert!(rig.store.by_name("new").is_none());
        assert!(rig.store.rename("old", "new").is_err(), "{call:?}");
        assert!(rig.store.by_name("old").is_some());
        *failing.lock().unwrap() = None;
    }
    *failing.lock().unwrap() = Some(Call::Rename);
    assert!(rig.store.drop_dataset("old").is_err());
    *failing.lock().unwrap() = None;
    rig.put("old", b"key", b"newer").unwrap();
    rig.store.create("new").unwrap();
    drop(rig);
    let rig = Rig::open(&root);
    assert_eq!(rig.store.list().len(), 2);
    assert_eq!(rig.get("old", b"key"), Some(b"newer".to_vec()));
}

#[test]
fn a_segment_that_cannot_be_read_is_lost_and_the_rest_served() {
    let directory = scratch();
    let rig = Rig::open(directory.path());
    rig.store.create("one").unwrap();
    rig.store.create("set").unwrap();
    rig.put("one", b"key", b"value").unwrap();
    put(&rig, 0).unwrap();
    let victim = super::support::segment_files(&rig.dataset("one"))[0].clone();
    drop(rig);
    let armed = AtomicBool::new(true);
    let faults = move |call: Call, path: &Path| {
        (call == Call::Read && path == victim && armed.load(Ordering::Relaxed))
            .then(|| (0, io::Error::from_raw_os_error(EIO)))
    };
    let rig = Rig::with(options(directory.path()), faulty(Box::new(faults))).unwrap();
    check(&rig, [0]);
    assert_eq!(rig.get("one", b"key"), None);
    assert_eq!(rig.figure("one", "lost_segments_count"), 1);
}

/// A head that begins the next segment, while the group that held its parts fails on the way there, once named parts
/// that were never written.
#[test]
fn a_head_does_not_outlive_its_parts() {
    let directory = scratch();
    let hold = Arc::new(AtomicBool::new(false));
    let (syncs, failing) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let rig = {
        let (hold, syncs, failing) = (Arc::clone(&hold), Arc::clone(&syncs), Arc::clone(&failing));
        let faults = move |call: Call, path: &Path| {
            if path.extension().is_none_or(|extension| extension != "segment") {
                return None;
            }
            if call == Call::Sync {
                syncs.fetch_add(1, Ordering::AcqRel);
                while hold.load(Ordering::Acquire) {
                    std::thread::yield_now();
                }
            }
            let fails = call == Call::Write && failing.swap(false, Ordering::AcqRel);
            fails.then(|| (0, io::Error::from_raw_os_error(ENOSPC)))
        };
        Rig::with(options(directory.path()), faulty(Box::new(faults))).unwrap()
    };
    rig.store.create("set").unwrap();
    let dataset = rig.dataset("set");
    let record = |len: u64| (64 + 5 + len).next_multiple_of(64);
    let parts = 3 * record(dataset.part_bytes());
    // Room for the parts and one unit: the head needs more.
    let end = dataset.segment_bytes - parts - 64;
    let mut tail = 64;
    while end - tail > record(dataset.part_bytes()) {
        rig.put("set", b"fills", &[1; 20_000]).unwrap();
        tail += record(20_000);
    }
    let before = syncs.load(Ordering::Acquire);
    hold.store(true, Ordering::Release);
    let last = vec![2; (end - tail - 64 - 5) as usize];
    let first = rig.start_put(&dataset, (1, 1), b"holds", &last).unwrap();
    while syncs.load(Ordering::Acquire) == before {
        std::thread::yield_now();
    }
    let large = bytes(3, 3 * dataset.part_bytes() as usize);
    let second = rig.start_put(&dataset, (1, 2), b"large", &large).unwrap();
    failing.store(true, Ordering::Release);
    hold.store(false, Ordering::Release);
    rig.answer(first).unwrap();
    assert_eq!(rig.answer(second).unwrap_err().status(), Status::NoSpace);
    assert!(
        !failing.load(Ordering::Acquire),
        "the write of the parts did fail"
    );
    assert_eq!(rig.get("set", b"large"), None);
    rig.put_as("set", (1, 2), b"large", &large).unwrap();
    assert_eq!(rig.get("set", b"large"), Some(large));
}

/// What a failed sync left behind is served after a restart only once it is durable: written anew, synced, and only
/// then sealed, in every segment that has no trailer.
#[test]
fn every_segment_without_trailer_is_made_durable_before_it_is_served() {
    let directory = scratch();
    let switch = Switch::default();
    let rig = switch.rig(directory.path());
    rig.store.create("set").unwrap();
    put(&rig, 0).unwrap();
    switch.fail(Call::Sync, EIO, 0);
    put(&rig, 1).unwrap_err();
    switch.heal();
    put(&rig, 2).unwrap();
    let files = super::support::segment_files(&rig.dataset("set"));
    assert_eq!(files.len(), 2);
    let copy = scratch();
    copy_directory(directory.path(), copy.path());
    for file in files {
        let target = copy.path().join(file.strip_prefix(directory.path()).unwrap());
        // Each of the calls on the way fails once: the start ends, and nothing is served.
        for (call, nth) in [
            (Call::Write, 0),
            (Call::Sync, 0),
            (Call::Write, 1),
            (Call::Sync, 1),
            (Call::Write, 2),
            (Call::Sync, 2),
            (Call::Truncate, 0),
            (Call::Sync, 3),
        ] {
            let again = scratch();
            copy_directory(copy.path(), again.path());
            let victim = again.path().join(target.strip_prefix(copy.path()).unwrap());
            let met = AtomicUsize::new(0);
            let faults = move |at: Call, path: &Path| {
                let hit = at == call && path == victim && met.fetch_add(1, Ordering::Relaxed) == nth;
                hit.then(|| (0, io::Error::from_raw_os_error(EIO)))
            };
            let error = Rig::with(options(again.path()), faulty(Box::new(faults)))
                .map(|_| ())
                .unwrap_err();
            assert_eq!(error.status(), Status::Io, "{call:?} {nth}: {error}");
            let rig = Rig::open(again.path());
            check(&rig, 0..3);
            assert_eq!(rig.figure("set", "cut_segments_count"), 0, "{call:?} {nth}");
        }
        let calls = Arc::new(Mutex::new(Vec::new()));
        let again = scratch();
        copy_directory(copy.path(), again.path());
        let victim = again.path().join(target.strip_prefix(copy.path()).unwrap());
        let faults = {
            let (calls, victim) = (Arc::clone(&calls), victim.clone());
            move |call: Call, path: &Path| {
                if path == victim && call != Call::Read {
                    calls.lock().unwrap().push(call);
                }
                None
            }
        };
        let rig = Rig::with(options(again.path()), faulty(Box::new(faults))).unwrap();
        check(&rig, 0..3);
        assert_eq!(
            *calls.lock().unwrap(),
            // The records, the FOOTERs, the trailer, the end behind it.
            [
                Call::Write,
                Call::Sync,
                Call::Write,
                Call::Sync,
                Call::Write,
                Call::Sync,
                Call::Truncate,
                Call::Sync
            ]
        );
        let sealed = std::fs::read(&victim).unwrap();
        assert_eq!(sealed[sealed.len() - 64..][..4], *b"VKT1");
    }
}
