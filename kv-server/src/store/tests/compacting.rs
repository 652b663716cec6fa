//! What tests of compaction share.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use super::support::{PATIENCE, Rig, options};
use crate::store::{Compaction, StoreOptions};

/// What every key has.
pub(crate) type Model = BTreeMap<u64, Vec<u8>>;

fn compacted_from(dead_share: f64, data: &Path) -> StoreOptions {
    StoreOptions {
        compaction: Compaction {
            dead_share,
            disk_share: 1.0,
            disk_reserve_bytes: 0,
        },
        ..options(data)
    }
}

/// Has compaction free what is all dead, and copy nothing.
pub(crate) fn only_dead(data: &Path) -> StoreOptions {
    compacted_from(1.0, data)
}

/// Has compaction copy often and without a rest.
pub(crate) fn eager(data: &Path) -> StoreOptions {
    compacted_from(0.3, data)
}

/// Does what the control thread does while nobody has the dataset open, until `done`.
pub(crate) fn until(rig: &Rig, what: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        let id = rig.dataset("set").id();
        rig.store.release(&id, rig.store.retired());
        assert!(
            Instant::now() < deadline,
            "{what}: {:?}",
            rig.dataset("set").stat()
        );
        std::thread::sleep(Duration::from_millis(1));
    }
}

pub(crate) fn check(rig: &Rig, model: &Model, keys: u64) {
    for key in 0..keys {
        let got = rig.get("set", &key.to_le_bytes());
        assert!(
            got.as_ref() == model.get(&key),
            "key {key} of epoch {}",
            rig.store.epoch()
        );
    }
    assert_eq!(rig.figure("set", "keys_count"), model.len() as u64);
    assert_eq!(rig.figure("set", "lost_segments_count"), 0);
    assert_eq!(rig.figure("set", "cut_segments_count"), 0);
}
