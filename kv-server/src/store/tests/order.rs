//! **I1**: nothing names a record, and nobody is answered, before its sync has returned; and one sync covers a group.

use std::ops::Deref;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};

use super::support::{Rig, bytes, faulty, options, scratch};
use crate::error::StorageError;
use crate::store::files::Call;
use crate::store::limits::{GROUP_OPS_MAX, LOG_QUEUE_OPS_MAX};
use crate::store::{BeginDelete, BeginPut, Dataset};
use kv_proto::crc::crc32c;

#[test]
fn nothing_is_named_before_its_sync() {
    let directory = scratch();
    let seen: Arc<OnceLock<Weak<Dataset>>> = Arc::default();
    let calls: Arc<Mutex<Vec<Call>>> = Arc::default();
    let armed = Arc::new(AtomicBool::new(false));
    let rig = {
        let (seen, calls, armed) = (Arc::clone(&seen), Arc::clone(&calls), Arc::clone(&armed));
        let faults = move |call: Call, path: &Path| {
            if armed.load(Ordering::Acquire)
                && path.extension().is_some_and(|extension| extension == "segment")
                && let Some(dataset) = seen.get().and_then(Weak::upgrade)
            {
                calls.lock().unwrap().push(call);
                assert_eq!(
                    dataset.lookup(b"key").unwrap(),
                    None,
                    "named before {call:?} returned"
                );
                let mut drained = Vec::new();
                dataset.shared.completions.drain(&mut drained);
                assert!(drained.is_empty(), "answered before {call:?} returned");
            }
            None
        };
        Rig::with(options(directory.path()), faulty(Box::new(faults))).unwrap()
    };
    rig.store.create("set").unwrap();
    rig.put("set", b"other", b"opens the segment").unwrap();
    seen.set(Arc::downgrade(&rig.dataset("set"))).unwrap();
    armed.store(true, Ordering::Release);
    let put = rig.put("set", b"key", &bytes(1, 10_000)).unwrap();
    armed.store(false, Ordering::Release);
    assert_eq!(*calls.lock().unwrap(), [Call::Write, Call::Sync]);
    assert_eq!(rig.dataset("set").lookup(b"key").unwrap(), Some(put.locator));
}

#[test]
fn what_waits_during_a_sync_shares_the_next_one() {
    const WAITING: u64 = 500;
    let directory = scratch();
    let (hold, holding) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let rig = {
        let (hold, holding) = (Arc::clone(&hold), Arc::clone(&holding));
        let faults = move |call: Call, _: &Path| {
            if call == Call::Sync && hold.load(Ordering::Acquire) {
                holding.fetch_add(1, Ordering::AcqRel);
                while hold.load(Ordering::Acquire) {
                    std::thread::yield_now();
                }
            }
            None
        };
        Rig::with(options(directory.path()), faulty(Box::new(faults))).unwrap()
    };
    rig.store.create("set").unwrap();
    rig.put("set", b"first", b"opens the segment").unwrap();
    let groups = rig.figure("set", "groups_synced_count");
    let dataset = rig.dataset("set");
    hold.store(true, Ordering::Release);
    let mut tokens = vec![rig.start_put(&dataset, (1, 1), b"holds", b"the log").unwrap()];
    while holding.load(Ordering::Acquire) == 0 {
        std::thread::yield_now();
    }
    tokens.extend((2..WAITING + 2).map(|operation| {
        rig.start_put(&dataset, (1, operation), &operation.to_le_bytes(), b"value")
            .unwrap()
    }));
    hold.store(false, Ordering::Release);
    let mut sequence = 0;
    for token in tokens {
        let put = rig.answer(token).unwrap();
        assert!(put.sequence > sequence, "in the order of the log");
        sequence = put.sequence;
    }
    assert_eq!(rig.figure("set", "groups_synced_count") - groups, 2);
}

/// Has syncs wait while it is set; not when a test is over, however it ended: a store waits for its syncs.
struct Hold(Arc<AtomicBool>);

impl Deref for Hold {
    type Target = AtomicBool;

    fn deref(&self) -> &AtomicBool {
        &self.0
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.store(false, Ordering::Release);
    }
}

/// A rig whose syncs wait while the switch is on, and how many wait.
fn holding(root: &Path) -> (Rig, Hold, Arc<AtomicUsize>) {
    let (hold, waiting) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let (on, count) = (Arc::clone(&hold), Arc::clone(&waiting));
    let faults = move |call: Call, path: &Path| {
        if call == Call::Sync && path.extension().is_some_and(|extension| extension == "segment") {
            count.fetch_add(1, Ordering::AcqRel);
            while on.load(Ordering::Acquire) {
                std::thread::yield_now();
            }
        }
        None
    };
    let rig = Rig::with(options(root), faulty(Box::new(faults))).unwrap();
    rig.store.create("set").unwrap();
    rig.put("set", b"first", b"opens the segment").unwrap();
    (rig, Hold(hold), waiting)
}

/// Queues one put that waits in its sync, and more behind it; their tokens.
fn queue_behind_a_sync(rig: &Rig, hold: &AtomicBool, waiting: &AtomicUsize, more: u64) -> Vec<u64> {
    let dataset = rig.dataset("set");
    let before = waiting.load(Ordering::Acquire);
    hold.store(true, Ordering::Release);
    let mut tokens = vec![rig.start_put(&dataset, (1, 1), b"holds", b"the log").unwrap()];
    while waiting.load(Ordering::Acquire) == before {
        std::thread::yield_now();
    }
    tokens.extend((2..more + 2).map(|operation| {
        rig.start_put(&dataset, (1, operation), &operation.to_le_bytes(), b"value")
            .unwrap()
    }));
    tokens
}

#[test]
fn dropping_fails_what_waits_and_answers_all() {
    let directory = scratch();
    let (rig, hold, waiting) = holding(directory.path());
    let tokens = queue_behind_a_sync(&rig, &hold, &waiting, 200);
    std::thread::scope(|scope| {
        let dropping = scope.spawn(|| rig.store.drop_dataset("set").unwrap().synced.unwrap());
        while rig.store.by_name("set").is_some() {
            std::thread::yield_now();
        }
        hold.store(false, Ordering::Release);
        dropping.join().unwrap();
    });
    let answers: Vec<_> = tokens.into_iter().map(|token| rig.answer(token)).collect();
    assert!(answers[0].is_ok(), "it was in its sync already");
    assert!(
        answers[1..]
            .iter()
            .all(|answer| matches!(answer, Err(StorageError::NoDataset(_))))
    );
}

#[test]
fn shutting_down_finishes_what_waits_and_takes_nothing_more() {
    let directory = scratch();
    let (rig, hold, waiting) = holding(directory.path());
    let dataset = rig.dataset("set");
    let tokens = queue_behind_a_sync(&rig, &hold, &waiting, 200);
    std::thread::scope(|scope| {
        let down = scope.spawn(|| rig.store.shutdown());
        while !matches!(
            dataset.begin_put(2, 1, b"late", 1),
            Err(StorageError::ShuttingDown)
        ) {
            std::thread::yield_now();
        }
        hold.store(false, Ordering::Release);
        down.join().unwrap();
    });
    for token in tokens {
        rig.answer(token).unwrap();
    }
    drop((rig, dataset));
    let rig = Rig::open(directory.path());
    assert_eq!(rig.figure("set", "keys_count"), 202);
}

#[test]
fn a_full_queue_is_busy_and_loses_nothing() {
    let directory = scratch();
    let (rig, hold, waiting) = holding(directory.path());
    let dataset = rig.dataset("set");
    let part = dataset.part_bytes() as usize;
    let BeginPut::New(mut put) = dataset.begin_put(4, 1, b"large", 2 * part as u64).unwrap() else {
        panic!("begun before");
    };
    let mut tokens = queue_behind_a_sync(&rig, &hold, &waiting, 0);
    let groups = rig.figure("set", "groups_synced_count");
    let refused = loop {
        let token = rig.token();
        match dataset.delete(3, token, b"nothing", token) {
            Ok(BeginDelete::Queued) => tokens.push(token),
            Ok(other) => panic!("{other:?}"),
            Err(error) => break (token, error),
        }
        assert!(tokens.len() <= LOG_QUEUE_OPS_MAX + 1);
    };
    assert!(matches!(refused.1, StorageError::Busy(_)), "{}", refused.1);
    let begun = dataset.begin_put(4, 2, b"key", 1);
    assert!(matches!(begun, Err(StorageError::Busy(_))), "{begun:?}");
    // What was taken from a client has its place, whatever is queued.
    put.append(part, |out| out.fill(1)).unwrap();
    hold.store(false, Ordering::Release);
    for token in tokens {
        rig.answer(token).unwrap();
    }
    put.append(part, |out| out.fill(2)).unwrap();
    dataset.commit(put, crc32c(&[vec![1; part], vec![2; part]].concat()), 0);
    rig.answer(0).unwrap();
    let synced = (rig.figure("set", "groups_synced_count") - groups) as usize;
    assert!(synced > LOG_QUEUE_OPS_MAX / GROUP_OPS_MAX, "{synced}");
    // Not begun: the same number is new.
    let again = dataset.delete(3, refused.0, b"nothing", refused.0).unwrap();
    assert!(matches!(again, BeginDelete::Queued));
}
