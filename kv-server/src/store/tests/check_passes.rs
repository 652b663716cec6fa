//! A check of a dataset with more records than are held at a time.

use std::collections::BTreeSet;

use super::check::{checked, flip};
use super::support::{Rig, bytes, options, scratch};
use crate::store::StoreOptions;
use crate::store::files::Files;
use crate::store::limits::REBUILD_BYTES_MAX;
use crate::store::recover::rebuild::RECORD_BYTES_MAX;

const KEYS: u64 = 30_000;
const AT_ONCE: u64 = 500;

/// Puts that are under way together.
fn fill(rig: &Rig) {
    let dataset = rig.dataset("set");
    for first in (0..KEYS).step_by(AT_ONCE as usize) {
        let put = |key: u64| rig.start_put(&dataset, (1, key + 1), &key.to_le_bytes(), &bytes(key, 40));
        let tokens: Vec<u64> = (first..first + AT_ONCE).map(|key| put(key).unwrap()).collect();
        for token in tokens {
            rig.answer(token).unwrap();
        }
    }
}

#[test]
fn what_each_key_has_is_said_in_several_passes_too() {
    assert!(KEYS as usize > 3 * REBUILD_BYTES_MAX / RECORD_BYTES_MAX);
    let directory = scratch();
    let rig = Rig::with(
        StoreOptions {
            segment_bytes: 2 << 20,
            ..options(directory.path())
        },
        Files::default(),
    )
    .unwrap();
    rig.store.create("set").unwrap();
    fill(&rig);
    let dataset = rig.dataset("set");
    // Of keys all over the hashes: what is damaged is what they have.
    let damaged: BTreeSet<u64> = (0..KEYS).step_by(997).collect();
    let places: Vec<_> = damaged
        .iter()
        .map(|key| {
            let at = dataset.lookup(&key.to_le_bytes()).unwrap().unwrap();
            (
                dataset.segment_path(at.segment),
                at.offset_bytes() + at.prefix_len_bytes(),
            )
        })
        .collect();
    drop((dataset, rig));
    let (summary, findings) = checked(directory.path(), false);
    assert_eq!(
        (summary.keys, summary.records, summary.damage),
        (KEYS, KEYS, 0),
        "{findings:#?}"
    );
    for (path, value_at) in &places {
        flip(path, *value_at, 3);
    }
    let (summary, findings) = checked(directory.path(), false);
    assert_eq!((summary.keys, summary.records), (KEYS, KEYS));
    assert_eq!(summary.damage, damaged.len() as u64);
    let told: BTreeSet<u64> = findings
        .iter()
        .filter(|finding| finding.remedy.contains("this is what the key has"))
        .map(|finding| u64::from_le_bytes(finding.key.as_deref().unwrap().try_into().unwrap()))
        .collect();
    assert_eq!(told, damaged);
}
