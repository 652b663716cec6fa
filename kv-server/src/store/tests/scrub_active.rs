//! The segment that is written is gone over too, and the scrubber's own loop is what does all of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::compacting::until;
use super::scrub::{Turns, figures, flip_in_file, flip_in_image, place};
use super::support::{Rig, bytes, faulty, options, scratch};
use crate::store::files::Call;
use crate::store::scrub::{self, Rests, pass};

/// A store that was filled once: its last segment is never sealed while it runs.
fn filled_once(root: &std::path::Path) -> Rig {
    let rig = Rig::open(root);
    rig.store.create("set").unwrap();
    for key in 0..40_u64 {
        rig.put("set", &key.to_le_bytes(), &bytes(key, 3000)).unwrap();
    }
    rig
}

#[test]
fn what_flips_in_the_active_segment_is_found_and_named_once() {
    let directory = scratch();
    let rig = filled_once(directory.path());
    let dataset = rig.dataset("set");
    assert!(pass(&dataset, &mut Turns::of(u64::MAX)));
    assert_eq!(figures(&rig), (1, 0, 0));
    let read = rig.figure("set", "scrub_read_bytes");
    assert!(read >= 40 * 3000, "{read}");
    // A header, a key and a value on the device, and a value in memory.
    for (key, byte) in [(1, 20), (2, 66), (3, 1000)] {
        flip_in_file(&rig, &place(&rig, key), byte);
    }
    flip_in_image(&rig, &place(&rig, 5), 500);
    for round in 2..4 {
        assert!(pass(&dataset, &mut Turns::of(u64::MAX)));
        assert_eq!(figures(&rig), (round, 3, 1));
    }
    // It goes on, and what is behind it is gone over too.
    for key in 40..50_u64 {
        rig.put("set", &key.to_le_bytes(), &bytes(key, 3000)).unwrap();
    }
    flip_in_file(&rig, &place(&rig, 45), 1000);
    assert!(pass(&dataset, &mut Turns::of(u64::MAX)));
    assert_eq!(figures(&rig), (4, 4, 1));
}

/// What is written while it is gone over is no damage.
#[test]
fn an_active_segment_that_grows_is_no_damage() {
    let directory = scratch();
    let rig = filled_once(directory.path());
    let dataset = rig.dataset("set");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for key in 0..2000_u64 {
                rig.put("set", &(key % 50).to_le_bytes(), &bytes(key, 3000))
                    .unwrap();
            }
            stop.store(true, Ordering::Release);
        });
        while !stop.load(Ordering::Acquire) {
            assert!(pass(&dataset, &mut Turns::of(u64::MAX)));
        }
    });
    let (passes, on_disk, in_memory) = figures(&rig);
    assert!(
        passes > 1 && (on_disk, in_memory) == (0, 0),
        "{:?}",
        dataset.stat()
    );
}

#[test]
fn a_page_of_the_active_segment_that_cannot_be_read_is_damage() {
    let directory = scratch();
    drop(filled_once(directory.path()));
    let failing = Arc::new(AtomicBool::new(false));
    let fails = Arc::clone(&failing);
    let faults = move |call: Call, path: &std::path::Path| {
        let segment = path.extension().is_some_and(|extension| extension == "segment");
        let hit = call == Call::Read && segment && fails.load(Ordering::Acquire);
        hit.then(|| (0, std::io::Error::from_raw_os_error(5)))
    };
    let rig = Rig::with(options(directory.path()), faulty(Box::new(faults))).unwrap();
    rig.put("set", b"active", b"value").unwrap();
    failing.store(true, Ordering::Release);
    for round in 1..3 {
        assert!(pass(&rig.dataset("set"), &mut Turns::of(u64::MAX)));
        // Of the sealed one too.
        assert_eq!(figures(&rig), (round, 2, 0));
    }
}

struct Stop<'a>(&'a crate::store::compact::Signal);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.stop();
    }
}

#[test]
fn the_scrubbers_own_loop_passes_again_and_again_and_ends() {
    let directory = scratch();
    let rig = filled_once(directory.path());
    rig.store.create("other").unwrap();
    flip_in_file(&rig, &place(&rig, 3), 1000);
    let rests = Rests {
        first: Duration::ZERO,
        again: Duration::ZERO,
    };
    std::thread::scope(|scope| {
        let shared = &rig.store.shared;
        // Also where the test fails: the scope waits for it.
        let _stop = Stop(&shared.scrub);
        let scrubber = scope.spawn(|| scrub::run(&shared.scrub, &rig.store.datasets, 1.0, rests));
        until(&rig, "it passes again and again", || {
            rig.figure("set", "scrub_passes_count") >= 3 && rig.figure("other", "scrub_passes_count") >= 3
        });
        shared.scrub.stop();
        scrubber.join().unwrap();
    });
    let (_, on_disk, in_memory) = figures(&rig);
    assert_eq!((on_disk, in_memory), (1, 0));
    // A rest of hours ends when it is told to stop, and no pass follows.
    let passes = rig.figure("set", "scrub_passes_count");
    let rests = Rests {
        first: Duration::from_secs(3600),
        again: Duration::from_secs(3600),
    };
    scrub::run(&rig.store.shared.scrub, &rig.store.datasets, 1.0, rests);
    assert_eq!(rig.figure("set", "scrub_passes_count"), passes);
}
