//! Starts that go wrong for a while: nothing is served in place of what is only out of reach, and nothing is given twice.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::support::{Rig, copy_directory, faulty, options, scratch, segment_files};
use crate::error::StorageError;
use crate::store::BeginPut;
use crate::store::files::{Call, Files};
use crate::store::limits::START_THREADS_MAX;
use kv_proto::control::Status;
use kv_proto::layout::segment_state;

const EACCES: i32 = 13;
const ENFILE: i32 = 23;
const EMFILE: i32 = 24;
const ENOMEM: i32 = 12;

/// An older value in one segment, the newer one in the next.
fn overwritten(root: &Path) -> Vec<std::path::PathBuf> {
    for value in [b"older", b"newer"] {
        let rig = Rig::open(root);
        if rig.store.list().is_empty() {
            rig.store.create("set").unwrap();
        }
        rig.put("set", b"key", value).unwrap();
        // Neither is worth compacting.
        rig.put("set", value, &[1; 1000]).unwrap();
    }
    let files = segment_files(&Rig::open(root).dataset("set"));
    assert_eq!(files.len(), 2);
    files
}

#[test]
fn a_file_that_cannot_be_opened_now_ends_the_start() {
    let directory = scratch();
    let files = overwritten(directory.path());
    let description = files[0].with_file_name("dataset");
    for victim in [&files[0], &files[1], &description] {
        for errno in [EMFILE, ENFILE, EACCES, ENOMEM] {
            // At the first call on it, and at a later one.
            for nth in 0..3 {
                let (victim, met) = (victim.clone(), AtomicUsize::new(0));
                let faults = move |call: Call, path: &Path| {
                    let hit =
                        call == Call::Read && path == victim && met.fetch_add(1, Ordering::Relaxed) == nth;
                    hit.then(|| (0, io::Error::from_raw_os_error(errno)))
                };
                let opened = Rig::with(options(directory.path()), faulty(Box::new(faults)));
                let error = opened.map(|_| ()).unwrap_err();
                assert!(
                    matches!(
                        &error,
                        StorageError::Io { source, .. } | StorageError::Forbidden { source, .. }
                            if source.raw_os_error() == Some(errno)
                    ),
                    "{error}"
                );
            }
        }
    }
    let rig = Rig::open(directory.path());
    assert_eq!(rig.get("set", b"key"), Some(b"newer".to_vec()));
    assert_eq!(rig.figure("set", "lost_segments_count"), 0);
}

#[test]
fn few_segment_files_are_open_at_a_time() {
    let directory = scratch();
    overwritten(directory.path());
    let root = directory.path().to_owned();
    let open_now = move || {
        std::fs::read_dir("/proc/self/fd")
            .unwrap()
            .filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok())
            .filter(|target| {
                target.starts_with(&root)
                    && target.extension().is_some_and(|extension| extension == "segment")
            })
            .count()
    };
    let most = Arc::new(AtomicUsize::new(0));
    let faults = {
        let most = Arc::clone(&most);
        move |_: Call, _: &Path| {
            most.fetch_max(open_now(), Ordering::Relaxed);
            None
        }
    };
    let rig = Rig::open(directory.path());
    for round in 0..40_u64 {
        rig.put("set", &round.to_le_bytes(), &vec![1; 500_000]).unwrap();
    }
    drop(rig);
    drop(Rig::with(options(directory.path()), faulty(Box::new(faults))).unwrap());
    let most = most.load(Ordering::Relaxed);
    // One for each thread that reads, and one for the loader.
    assert!((1..=START_THREADS_MAX + 1).contains(&most), "{most}");
}

/// What a lost segment gave is not given again: back at a later start, its records are older than all that came after.
#[test]
fn sequences_of_a_lost_segment_are_not_given_again() {
    let directory = scratch();
    let rig = Rig::open(directory.path());
    rig.store.create("set").unwrap();
    // Not worth compacting.
    rig.put("set", b"other", &[1; 20_000]).unwrap();
    let mut highest = 0;
    for count in 0..50_u64 {
        highest = rig.put("set", b"key", &count.to_le_bytes()).unwrap().sequence;
    }
    let file = segment_files(&rig.dataset("set"))[0].clone();
    drop(rig);
    let whole = std::fs::read(&file).unwrap();
    let mut broken = whole.clone();
    broken[20] ^= 1;
    // Its trailer would say the same.
    *broken.last_mut().unwrap() ^= 1;
    std::fs::write(&file, broken).unwrap();
    let rig = Rig::open(directory.path());
    assert_eq!(rig.figure("set", "lost_segments_count"), 1);
    let newer = rig.put("set", b"key", b"newer").unwrap();
    assert!(newer.sequence > highest, "{} after {highest}", newer.sequence);
    drop(rig);
    std::fs::write(&file, whole).unwrap();
    let copy = scratch();
    copy_directory(directory.path(), copy.path());
    let rig = Rig::with(options(copy.path()), Files::default()).unwrap();
    assert_eq!(rig.get("set", b"key"), Some(b"newer".to_vec()));
    let row = rig.dataset("set").row(1).unwrap();
    assert_eq!(row.state, segment_state::SEALED);
}

/// A bug ends a log thread: whoever waited for it is answered, and so is whoever comes later.
#[test]
fn a_lost_log_thread_leaves_nobody_waiting() {
    let directory = scratch();
    let armed = Arc::new(AtomicBool::new(false));
    let faults = {
        let armed = Arc::clone(&armed);
        move |call: Call, path: &Path| {
            let segment = path.extension().is_some_and(|extension| extension == "segment");
            assert!(
                !(armed.load(Ordering::Relaxed) && call == Call::Write && segment),
                "as a bug in the log would do (this message is part of the test)"
            );
            None
        }
    };
    let rig = Rig::with(options(directory.path()), faulty(Box::new(faults))).unwrap();
    rig.store.create("set").unwrap();
    rig.put("set", b"key", b"value").unwrap();
    let dataset = rig.dataset("set");
    let BeginPut::New(mut large) = dataset.begin_put(3, 1, b"large", 200_000).unwrap() else {
        panic!("begun before");
    };
    armed.store(true, Ordering::Relaxed);
    let tokens: Vec<_> = (1..20)
        .filter_map(|operation| rig.start_put(&dataset, (2, operation), b"key", b"newer").ok())
        .collect();
    assert!(!tokens.is_empty());
    for token in tokens {
        assert_eq!(rig.answer(token).unwrap_err().status(), Status::Io);
    }
    for operation in [1, 50] {
        let error = dataset.begin_put(2, operation, b"key", 5).unwrap_err();
        assert_eq!(error.status(), Status::Io, "{error}");
    }
    let error = large.append(100_000, |out| out.fill(1)).unwrap_err();
    assert_eq!(error.status(), Status::Io, "{error}");
    // What was durable is served on, and all is well after a restart.
    assert_eq!(rig.get("set", b"key"), Some(b"value".to_vec()));
    drop(rig);
    let rig = Rig::open(directory.path());
    assert_eq!(rig.get("set", b"key"), Some(b"value".to_vec()));
    rig.put("set", b"key", b"newest").unwrap();
}
