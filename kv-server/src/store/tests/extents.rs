//! Segments of several extents: fillers, spare memory, and a tail torn around a filler.

use kv_proto::layout::{EXTENT_BYTES, record_kind, segment_state};

use super::support::{MIB, Rig, copy_directory, options, scratch, sealed_end, segment_files};
use crate::store::StoreOptions;
use crate::store::files::Files;

const VALUE_BYTES: usize = 14 << 20;

fn wide(root: &std::path::Path) -> StoreOptions {
    StoreOptions {
        memory_budget_bytes: 512 * MIB,
        segment_bytes: 150 * MIB,
        part_bytes: 32 * MIB,
        gather_budget_bytes: 128 * MIB,
        compaction: crate::store::Compaction::default(),
        ..options(root)
    }
}

fn value(key: u8) -> Vec<u8> {
    let mut value = vec![key; VALUE_BYTES];
    value[usize::from(key)] = 0xff;
    value
}

fn check(rig: &Rig, keys: std::ops::Range<u8>) {
    let reader = rig.reader("set");
    for key in keys {
        assert!(reader.lookup(&[key]).unwrap().1 == value(key), "key {key}");
    }
}

#[test]
fn records_never_cross_an_extent_and_fillers_cover_the_gaps() {
    let directory = scratch();
    let rig = Rig::with(wide(directory.path()), Files::default()).unwrap();
    rig.store.create("set").unwrap();
    for key in 0..9_u8 {
        let put = rig.put("set", &[key], &value(key)).unwrap();
        let start = put.locator.offset_bytes();
        let end = start + put.locator.wire_len_bytes();
        assert_eq!(start / EXTENT_BYTES, (end - 1) / EXTENT_BYTES, "key {key}");
        // Four to an extent: the fifth begins the next one.
        assert_eq!(
            start.is_multiple_of(EXTENT_BYTES),
            key > 0 && key % 4 == 0,
            "key {key} at {start}"
        );
    }
    check(&rig, 0..9);
    let dataset = rig.dataset("set");
    let row = dataset.row(1).unwrap();
    assert_eq!((row.state, row.extents.len()), (segment_state::ACTIVE, 3));
    let crashed = scratch();
    copy_directory(directory.path(), crashed.path());
    // The tenth does not fit what is left.
    rig.put("set", &[9], &value(9)).unwrap();
    assert_eq!(dataset.row(1).unwrap().state, segment_state::SEALED);
    assert_eq!(rig.figure("set", "segments_count"), 2);
    check(&rig, 0..10);
    drop((dataset, rig));

    let rig = Rig::with(wide(crashed.path()), Files::default()).unwrap();
    check(&rig, 0..9);
    let row = rig.dataset("set").row(1).unwrap();
    assert_eq!((row.state, row.extents.len()), (segment_state::SEALED, 3));
    // The image of a sealed segment takes what it holds, in whole pages.
    let image = rig.figure("set", "images_bytes");
    assert_eq!(image, (u64::from(row.length_units) * 64).next_multiple_of(4096));
    let file = segment_files(&rig.dataset("set"))[0].clone();
    drop(rig);

    // Torn inside the record behind the first filler, right behind the filler's header, and inside that.
    let whole = std::fs::read(&file).unwrap();
    let filler_at = (64..EXTENT_BYTES as usize)
        .step_by(64)
        .find(|at| {
            kv_proto::record::parse_header(&whole[*at..]).is_ok_and(|it| it.kind == record_kind::FILLER)
        })
        .unwrap();
    for cut in [
        EXTENT_BYTES as usize + 5000,
        filler_at + 64,
        filler_at + 30,
        filler_at,
    ] {
        std::fs::write(&file, &whole[..cut]).unwrap();
        let rig = Rig::with(wide(crashed.path()), Files::default()).unwrap();
        check(&rig, 0..4);
        assert_eq!(rig.figure("set", "keys_count"), 4, "cut at {cut}");
        assert_eq!(rig.figure("set", "damaged_records_count"), 0);
        assert_eq!(
            sealed_end(&std::fs::read(&file).unwrap()),
            filler_at,
            "ends with its last record"
        );
    }
}

#[test]
fn a_filler_that_is_damaged_hides_nothing_behind_it() {
    let directory = scratch();
    let rig = Rig::with(wide(directory.path()), Files::default()).unwrap();
    rig.store.create("set").unwrap();
    for key in 0..6_u8 {
        rig.put("set", &[key], &value(key)).unwrap();
    }
    let after = rig.dataset("set").lookup(&[3]).unwrap().unwrap();
    let filler_at = (after.offset_bytes() + after.wire_len_bytes()).next_multiple_of(64) as usize;
    let file = segment_files(&rig.dataset("set"))[0].clone();
    drop(rig);
    let mut contents = std::fs::read(&file).unwrap();
    contents[filler_at + 20] ^= 1;
    std::fs::write(&file, contents).unwrap();
    let rig = Rig::with(wide(directory.path()), Files::default()).unwrap();
    check(&rig, 0..6);
    assert_eq!(rig.figure("set", "damaged_records_count"), 1);
}
