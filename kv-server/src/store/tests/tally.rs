//! Live bytes of each segment: counted as values come and go, and again at a restart.

use std::collections::BTreeMap;

use kv_proto::layout::{units, wire_len};

use super::compacting::only_dead;
use super::support::{Rig, bytes, scratch};
use crate::store::files::Files;

fn open(data: &std::path::Path) -> Rig {
    Rig::with(only_dead(data), Files::default()).unwrap()
}

/// Bytes of the records that a value of this length takes.
fn record_bytes(rig: &Rig, key: &[u8], len: u64) -> u64 {
    let part = rig.dataset("set").part_bytes();
    let one = |len| units(wire_len(key.len() as u64, len)) * 64;
    if len <= part {
        return one(len);
    }
    let parts = len.div_ceil(part);
    let last = len - (parts - 1) * part;
    (parts - 1) * one(part) + one(last) + one(24 + 8 * parts)
}

#[test]
fn live_bytes_are_those_of_the_records_that_the_index_names() {
    let directory = scratch();
    let mut rig = open(directory.path());
    rig.store.create("set").unwrap();
    let mut values: BTreeMap<u64, u64> = BTreeMap::new();
    let mut deletes = 0;
    for (step, random) in (0..).zip(bytes(11, 400)) {
        let key = u64::from(random % 23);
        match random % 5 {
            0 => {
                rig.delete("set", &key.to_le_bytes()).unwrap();
                values.remove(&key);
                deletes += 1;
            }
            1 => {
                let len = 40_000 + 1000 * u64::from(random);
                rig.put("set", &key.to_le_bytes(), &bytes(step, len as usize))
                    .unwrap();
                values.insert(key, len);
            }
            _ => {
                let len = u64::from(random) * 40;
                rig.put("set", &key.to_le_bytes(), &bytes(step, len as usize))
                    .unwrap();
                values.insert(key, len);
            }
        }
        if step == 300 {
            drop(rig);
            rig = open(directory.path());
        }
        if step % 50 == 0 || step == 300 {
            let live: u64 = values
                .iter()
                .map(|(key, len)| record_bytes(&rig, &key.to_le_bytes(), *len))
                .sum();
            assert_eq!(rig.figure("set", "live_record_bytes"), live, "step {step}");
        }
    }
    assert!(
        rig.figure("set", "segments_count") > 2,
        "values lie in many segments"
    );
    assert!(deletes > 10 && rig.figure("set", "tombstone_record_bytes") >= 128);
    let live: u64 = values
        .iter()
        .map(|(key, len)| record_bytes(&rig, &key.to_le_bytes(), *len))
        .sum();
    assert!(live > 0);
    for key in values.keys() {
        rig.delete("set", &key.to_le_bytes()).unwrap();
    }
    assert_eq!(rig.figure("set", "live_record_bytes"), 0);
    assert!(rig.figure("set", "dead_share_percent") > 95);
    drop(rig);
    let rig = open(directory.path());
    assert_eq!(rig.figure("set", "live_record_bytes"), 0);
    assert!(rig.figure("set", "dead_share_percent") > 95);
}
