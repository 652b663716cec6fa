//! What RENEW tells: every change once its number is passed, cut to the frame.

use super::support::{Rig, bytes, scratch};
use crate::store::changes::collect;
use crate::store::journal::{Change, Journal, Since};
use crate::store::limits::JOURNAL_CHANGES_MAX;
use kv_proto::control::change_flag;

#[test]
fn new_segments_and_extents_are_told_once() {
    let directory = scratch();
    let rig = Rig::open(directory.path());
    rig.store.create("set").unwrap();
    let dataset = rig.dataset("set");
    let opened = rig.store.retired();
    assert!(dataset.changes(opened, 4000).is_none());
    let first = rig.put("set", b"key", b"value").unwrap();
    let now = rig.store.retired();
    let change = dataset.changes(opened, 4000).unwrap();
    assert_eq!(
        change.rows.iter().map(|row| row.segment).collect::<Vec<_>>(),
        [first.locator.segment]
    );
    assert_eq!((change.flags, change.directory), (0, dataset.directory()));
    assert!(dataset.changes(now, 4000).is_none());
    // Growth of length alone is no change.
    rig.put("set", b"other", b"value").unwrap();
    assert!(dataset.changes(now, 4000).is_none());
    for key in 0..60_u64 {
        rig.put("set", &key.to_le_bytes(), &bytes(key, 30_000)).unwrap();
    }
    let rows = dataset.changes(now, 4000).unwrap().rows;
    assert!(rows.len() >= 2, "the first was sealed, others are new");
    assert_eq!(rows[0].state, kv_proto::layout::segment_state::SEALED);
    // Without room: ask for all of it.
    let cut = dataset.changes(now, 50).unwrap();
    assert_eq!((cut.flags, cut.rows.len()), (change_flag::TABLE, 0));
    let (page, next) = dataset.rows(0, 60);
    assert_eq!((page.len(), next), (1, rows[1].segment));
}

#[test]
fn ranges_are_joined_and_a_new_directory_hides_them() {
    let ranges = |changes: Vec<Change>, room| {
        let collected = collect(Since::Changes(changes), room, |_| None).unwrap();
        let ranges: Vec<_> = collected
            .ranges
            .iter()
            .map(|range| (range.first, range.count))
            .collect();
        (collected.flags, ranges)
    };
    let touched = vec![
        Change::Range(64, 64),
        Change::Range(0, 64),
        Change::Range(70, 2),
        Change::Range(200, 1),
    ];
    assert_eq!(ranges(touched.clone(), 4000), (0, vec![(0, 128), (200, 1)]));
    assert_eq!(ranges(touched.clone(), 50), (change_flag::DIRECTORY, vec![]));
    let doubled = [touched, vec![Change::Directory]].concat();
    assert_eq!(ranges(doubled, 4000), (change_flag::DIRECTORY, vec![]));
}

#[test]
fn who_is_too_far_behind_drops_all() {
    let counter = std::sync::atomic::AtomicU64::new(100);
    let mut journal = Journal::<()>::new();
    for _ in 0..JOURNAL_CHANGES_MAX + 10 {
        journal.push(&counter, Change::Row(1), Vec::new());
    }
    assert!(matches!(journal.since(109), Since::Everything));
    assert!(matches!(journal.since(110), Since::Changes(changes) if changes.len() == JOURNAL_CHANGES_MAX));
    assert!(matches!(journal.since(u64::MAX), Since::Nothing));
    let all = collect(Since::Everything, 4000, |_| None).unwrap();
    assert_eq!(all.flags, change_flag::TABLE | change_flag::DIRECTORY);
}
