//! **I1**: nothing names a record, and nobody is answered, before its sync has returned; and one sync covers a group.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};

use super::support::{Rig, TestDomain, bytes, faulty, options, scratch};
use crate::store::Dataset;
use crate::store::files::Call;

#[test]
fn nothing_is_named_before_its_sync() {
    let directory = scratch();
    let seen: Arc<OnceLock<Weak<Dataset<TestDomain>>>> = Arc::default();
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
                assert_eq!(dataset.lookup(b"key"), None, "named before {call:?} returned");
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
    assert_eq!(rig.dataset("set").lookup(b"key"), Some(put.locator));
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
