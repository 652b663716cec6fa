//! Rows, directories and their changes.

use kv_proto::control::DirectoryRange;
use kv_proto::layout::depth_prefix;

use super::*;

fn address(address: u64) -> RemoteAddress {
    RemoteAddress { address, rkey: 1 }
}

fn directory(version: u64, depth: u8) -> DirectoryRef {
    DirectoryRef {
        at: address(4096 * version),
        version,
        depth,
    }
}

fn row(segment: u32, state: u8, extents: usize) -> SegmentRow {
    SegmentRow {
        segment,
        identity: u64::from(segment) * 10,
        generation: 1,
        state,
        length_units: 100,
        extents: vec![address(1 << 30); extents],
    }
}

fn opened(depth: u8) -> DatasetState {
    let state = DatasetState::new();
    let answer = Answer::Open {
        dataset: [1; 16],
        hash_key: [2; 16],
        retired: 7,
        directory: directory(1, depth),
        part_bytes: 1 << 20,
    };
    state.answered(3, 9, None, &answer);
    state
}

fn page(count: u32) -> Arc<[DirectoryEntry]> {
    let entry = |index| DirectoryEntry {
        checksum: 0,
        address: u64::from(index),
        rkey: 0,
        group: index,
        stamp: 0,
        depth_prefix: depth_prefix(0, 0),
    };
    (0..count).map(entry).collect()
}

fn change(version: u64, depth: u8) -> DatasetChange {
    DatasetChange {
        dataset: [1; 16],
        flags: 0,
        directory: directory(version, depth),
        ranges: Vec::new(),
        rows: Vec::new(),
    }
}

#[test]
fn rows_come_page_by_page_and_change_one_by_one() {
    let state = opened(0);
    assert_eq!(state.view().1.table_next, Some(0));
    let first = Answer::Table {
        rows: vec![row(2, segment_state::SEALED, 1), row(5, segment_state::ACTIVE, 1)],
        next: 6,
    };
    state.answered(3, 9, Some(0), &first);
    assert_eq!(state.view().1.table_next, Some(6));
    let last = Answer::Table {
        rows: vec![row(9, segment_state::LOADING, 0)],
        next: 0,
    };
    state.answered(3, 9, Some(6), &last);
    let (_, before) = state.view();
    assert_eq!(before.table_next, None);
    assert_eq!(before.row(5).unwrap().identity, 50);

    let version = state.version();
    state.renewed(&DatasetChange {
        rows: vec![
            row(5, segment_state::RETIRED, 0),
            row(7, segment_state::ACTIVE, 2),
        ],
        ..change(1, 0)
    });
    let (_, after) = state.view();
    assert!(state.version() > version);
    assert!(after.row(5).is_none() && after.row(7).is_some() && after.row(2).is_some());
    // Who holds the older view still sees what it saw.
    assert!(before.row(5).is_some());
    state.renewed(&DatasetChange {
        flags: change_flag::TABLE,
        ..change(1, 0)
    });
    assert_eq!(state.view().1.table_next, Some(0));
    assert!(state.view().1.row(2).is_none());
}

#[test]
fn a_table_that_does_not_go_forward_ends() {
    let state = opened(0);
    let page = |next| Answer::Table {
        rows: Vec::new(),
        next,
    };
    state.answered(3, 9, Some(0), &page(5));
    state.answered(3, 9, Some(5), &page(5));
    assert_eq!(state.view().1.table_next, None);
}

#[test]
fn places_are_only_where_the_row_says() {
    let locator = |units, len| Locator {
        segment: 2,
        offset_units: units,
        value_len_bytes: len,
        key_len_bytes: 1,
        tag: 0,
    };
    let place = |state, extents, at: Locator| {
        let dataset = opened(0);
        let rows = vec![row(2, state, extents)];
        dataset.answered(3, 9, Some(0), &Answer::Table { rows, next: 0 });
        dataset.view().1.row_for(&at).map(|row| row.segment)
    };
    // A sealed one ends at 6400 bytes: 65 bytes of prefix, so 6335 of value.
    assert_eq!(place(segment_state::SEALED, 1, locator(0, 6335)), Ok(2));
    assert_eq!(
        place(segment_state::SEALED, 1, locator(0, 6336)),
        Err(NoPlace::Unknown)
    );
    // An active one grows up to the end of what is mapped.
    assert_eq!(place(segment_state::ACTIVE, 1, locator(200, 1000)), Ok(2));
    let extent_units = (EXTENT_BYTES / 64) as u32;
    assert_eq!(
        place(segment_state::ACTIVE, 1, locator(extent_units - 2, 63)),
        Ok(2)
    );
    assert_eq!(
        place(segment_state::ACTIVE, 1, locator(extent_units - 2, 64)),
        Err(NoPlace::Unknown)
    );
    assert_eq!(
        place(segment_state::ACTIVE, 2, locator(extent_units - 2, 64)),
        Ok(2)
    );
    assert_eq!(
        place(segment_state::ACTIVE, 2, locator(u32::MAX, u32::MAX)),
        Err(NoPlace::Unknown)
    );
    assert_eq!(
        place(segment_state::LOADING, 0, locator(0, 1)),
        Err(NoPlace::Loading)
    );
    assert_eq!(place(segment_state::STAGED, 0, locator(0, 1)), Err(NoPlace::None));
    assert_eq!(place(segment_state::LOST, 0, locator(0, 1)), Err(NoPlace::None));
    assert_eq!(place(200, 1, locator(0, 1)), Err(NoPlace::None));
}

#[test]
fn an_extent_is_left_at_its_end() {
    let dataset = opened(0);
    let mut long = row(2, segment_state::ACTIVE, 0);
    long.extents = vec![address(1000), address(5000)];
    let rows = vec![long];
    dataset.answered(3, 9, Some(0), &Answer::Table { rows, next: 0 });
    let (_, view) = dataset.view();
    let row = view.row(2).unwrap();
    let at = |address| RemoteRef { address, rkey: 1 };
    assert_eq!(row.place(10), Some((at(1010), EXTENT_BYTES - 10)));
    assert_eq!(row.place(EXTENT_BYTES + 3), Some((at(5003), EXTENT_BYTES - 3)));
    assert_eq!(row.place(2 * EXTENT_BYTES), None);
}

#[test]
fn pages_of_an_older_state_are_not_installed() {
    let state = opened(12);
    let (_, view) = state.view();
    assert_eq!(view.directory.missing().collect::<Vec<_>>(), [0, 1, 2, 3]);
    let pages = (0..4).map(|index| (index, page(PAGE_ENTRIES))).collect();
    assert!(state.install(view.changes, pages));
    let (_, full) = state.view();
    assert_eq!(full.directory.missing().count(), 0);
    assert_eq!(full.directory.entry(1025).unwrap().group, 1);
    assert!(full.directory.entry(4096).is_none());

    state.renewed(&DatasetChange {
        ranges: vec![DirectoryRange {
            first: 1023,
            count: 2,
        }],
        ..change(1, 12)
    });
    let (_, some) = state.view();
    assert_eq!(some.directory.missing().collect::<Vec<_>>(), [0, 1]);
    // Read before that change came: what it brought may be what the change took away.
    assert!(!state.install(view.changes, vec![(0, page(PAGE_ENTRIES))]));
    assert_eq!(state.view().1.directory.missing().count(), 2);
    state.forget_entry(view.changes, 4095);
    assert_eq!(state.view().1.directory.missing().count(), 2);
    state.forget_entry(some.changes, 4095);
    assert_eq!(state.view().1.directory.missing().collect::<Vec<_>>(), [0, 1, 3]);
}

#[test]
fn another_directory_forgets_all_pages_and_foreign_ranges_do_no_harm() {
    for next in [change(2, 3), change(1, 4)] {
        let state = opened(3);
        let (_, view) = state.view();
        assert!(state.install(view.changes, vec![(0, page(8))]));
        state.renewed(&DatasetChange {
            ranges: vec![DirectoryRange {
                first: u32::MAX,
                count: u32::MAX,
            }],
            ..change(1, 3)
        });
        assert_eq!(state.view().1.directory.missing().count(), 0);
        state.renewed(&next);
        let (_, view) = state.view();
        assert_eq!(view.directory.missing().count(), 1);
        assert_eq!(
            (view.directory.version, view.directory.depth),
            (next.directory.version, next.directory.depth)
        );
    }
}

#[test]
fn a_closed_dataset_is_of_no_session() {
    let state = opened(0);
    assert_eq!(state.view().1.generation, 3);
    assert!(!state.view().1.dropped);
    state.renewed(&DatasetChange {
        flags: change_flag::DROPPED,
        ..change(1, 0)
    });
    assert!(state.view().1.dropped);
    state.close();
    assert_eq!(state.view().1.generation, 0);
}

#[test]
fn a_page_of_a_table_that_was_begun_again_is_not_taken() {
    let state = opened(0);
    let page = |segment, next| Answer::Table {
        rows: vec![row(segment, segment_state::SEALED, 1)],
        next,
    };
    state.answered(3, 9, Some(0), &page(2, 6));
    // Between the request for the second page and its answer.
    state.refresh();
    state.answered(3, 9, Some(6), &page(9, 0));
    let (_, view) = state.view();
    assert_eq!(view.table_next, Some(0));
    assert!(view.row(9).is_none());
    state.answered(3, 9, Some(0), &page(2, 6));
    state.answered(3, 9, Some(6), &page(9, 0));
    let (_, view) = state.view();
    assert_eq!(view.table_next, None);
    assert!(view.row(2).is_some() && view.row(9).is_some());
}
