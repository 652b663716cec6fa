//! What a crash leaves behind: a copy of the directory at any moment, a torn tail cut at any byte, bytes that flipped.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::support::{
    MIB, Rig, bytes, copy_directory, options, read_written, scratch, sealed_end, segment_files,
    segment_files_in, write_torn,
};
use crate::store::StoreOptions;
use crate::store::files::Files;
use kv_proto::layout::{RecordHeader, record_kind};
use zerocopy::{FromBytes, IntoBytes};

/// What is done to a file.
type Harm<'a> = &'a dyn Fn(&Path);

/// A directory with a dataset whose log was not sealed, as a crash leaves it, and the keys in the order of the log.
fn crashed(values: &[usize]) -> (tempfile::TempDir, PathBuf) {
    let running = scratch();
    // Parts so long that every value is one record.
    let options = StoreOptions {
        part_bytes: 256 << 10,
        ..options(running.path())
    };
    let rig = Rig::with(options, Files::default()).unwrap();
    rig.store.create("set").unwrap();
    for (key, len) in (0_u64..).zip(values) {
        rig.put("set", &key.to_le_bytes(), &bytes(key, *len)).unwrap();
    }
    let crashed = scratch();
    copy_directory(running.path(), crashed.path());
    let file = only_segment(crashed.path());
    (crashed, file)
}

fn only_segment(root: &Path) -> PathBuf {
    let dataset = std::fs::read_dir(root.join("datasets"))
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let files = segment_files_in(&dataset);
    assert_eq!(files.len(), 1);
    files[0].clone()
}

fn with_file(root: &Path, file: &Path, contents: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let copy = scratch();
    copy_directory(root, copy.path());
    let target = copy.path().join(file.strip_prefix(root).unwrap());
    let len = std::fs::metadata(&target).unwrap().len();
    write_torn(&target, contents, len as usize);
    (copy, target)
}

/// Places where records begin, from their headers, and where the last one ends.
fn places(file: &[u8]) -> Vec<usize> {
    let mut places = Vec::new();
    let mut at = 64;
    while let Ok(header) = kv_proto::record::parse_header(&file[at..]) {
        places.push(at);
        let len = kv_proto::record::header_prefix_len(&header) as usize + header.value_len_bytes as usize;
        at += len.next_multiple_of(64);
        if at >= file.len() {
            break;
        }
    }
    places.push(at);
    places
}

#[test]
fn a_tail_torn_at_any_byte_leaves_the_longest_valid_prefix() {
    let values = [100, 200, 70_000, 5, 0, 130];
    let (crashed, file) = crashed(&values);
    let whole = read_written(&file);
    let places = places(&whole);
    assert_eq!(places.len(), values.len() + 1);
    assert_eq!(*places.last().unwrap(), whole.len());
    // Every byte of the last three records, and every 997th before.
    let cuts = (64..places[3]).step_by(997).chain(places[3]..=whole.len());
    for cut in cuts {
        let (copy, target) = with_file(crashed.path(), &file, &whole[..cut]);
        let rig = Rig::open(copy.path());
        for (key, len) in (0_usize..).zip(values) {
            let header = 64 + 8 + if len > 65_536 { 8 } else { 0 };
            let end = places[key] + header + len;
            // What was not written reads as zeroes.
            let complete = end <= cut || whole[cut..end].iter().all(|byte| *byte == 0);
            let expected = complete.then(|| bytes(key as u64, len));
            assert_eq!(
                rig.get("set", &(key as u64).to_le_bytes()),
                expected,
                "key {key} cut at {cut}"
            );
        }
        assert_eq!(rig.figure("set", "damaged_records_count"), 0, "cut at {cut}");
        // It is sealed there, and stays so.
        let sealed = std::fs::read(&target).unwrap();
        assert_eq!(sealed[sealed.len() - 64..][..4], *b"VKT1");
        drop(rig);
        assert_eq!(
            std::fs::read(&target).unwrap(),
            sealed,
            "a sealed file never changes"
        );
    }
}

#[test]
fn a_torn_tail_full_of_other_bytes_is_cut_too() {
    let (crashed, file) = crashed(&[100, 200, 300]);
    let whole = read_written(&file);
    let places = places(&whole);
    for fill in [0_u8, 0xff, 0x56] {
        let mut torn = whole.clone();
        torn[places[2]..].fill(fill);
        torn.extend_from_slice(&vec![fill; 5000]);
        let (copy, target) = with_file(crashed.path(), &file, &torn);
        let rig = Rig::open(copy.path());
        assert_eq!(rig.get("set", &1_u64.to_le_bytes()), Some(bytes(1, 200)));
        assert_eq!(rig.get("set", &2_u64.to_le_bytes()), None);
        assert_eq!(rig.figure("set", "damaged_records_count"), 0);
        assert_eq!(sealed_end(&std::fs::read(&target).unwrap()), places[2]);
    }
}

/// Writes several records with one sync, so that none of them says that another was durable.
#[test]
fn a_whole_record_behind_a_torn_one_of_its_group_is_not_served() {
    let running = scratch();
    let rig = Rig::open(running.path());
    rig.store.create("set").unwrap();
    rig.put("set", b"first", b"durable").unwrap();
    let dataset = rig.dataset("set");
    // Parts and head of one value come in one group only by chance: look for three records with equal durable_units.
    let file = loop {
        let tokens: Vec<u64> = (0..50)
            .map(|key| {
                rig.start_put(&dataset, (1, rig.token()), &[key; 9], &[key; 50])
                    .unwrap()
            })
            .collect();
        for token in tokens {
            rig.answer(token).unwrap();
        }
        let file = read_written(&segment_files(&dataset)[0]);
        let places = places(&file);
        let durable = |at: usize| kv_proto::record::parse_header(&file[at..]).unwrap().durable_units;
        let same = places[..places.len() - 1]
            .windows(3)
            .rposition(|three| durable(three[0]) == durable(three[2]));
        if let Some(at) = same {
            break file[..places[at + 3]].to_vec();
        }
    };
    let places = places(&file);
    let torn_at = places[places.len() - 3];
    let mut torn = file;
    torn[torn_at + 64] ^= 1;
    let crashed = scratch();
    copy_directory(running.path(), crashed.path());
    let target = only_segment(crashed.path());
    write_torn(&target, &torn, MIB as usize);
    let rig = Rig::open(crashed.path());
    assert_eq!(sealed_end(&std::fs::read(&target).unwrap()), torn_at);
    assert_eq!(rig.figure("set", "damaged_records_count"), 0);
    assert_eq!(rig.get("set", b"first"), Some(b"durable".to_vec()));
}

#[test]
fn a_flipped_bit_in_durable_bytes_is_reported_kept_and_skipped() {
    let values = [100, 70_000, 300, 400];
    for sealed in [false, true] {
        let (crashed, file) = crashed(&values);
        if sealed {
            drop(Rig::open(crashed.path()));
        }
        let whole = read_written(&file);
        let places = places(if sealed {
            &whole[..sealed_end(&whole)]
        } else {
            &whole
        });
        // In a header, in a key, in block CRCs, in a value; not in padding, which nothing covers.
        for (key, offset) in [
            (0, 3),
            (0, 40),
            (0, 66),
            (0, 100),
            (1, 75),
            (1, 66_000),
            (2, 50),
            (2, 80),
        ] {
            let mut broken = whole.clone();
            broken[places[key] + offset] ^= 0x10;
            let (copy, target) = with_file(crashed.path(), &file, &broken);
            for start in 0..2 {
                let rig = Rig::open(copy.path());
                let at = format!("sealed {sealed} key {key} offset {offset} start {start}");
                for (other, len) in (0_usize..).zip(values).filter(|(other, _)| *other != key) {
                    assert_eq!(
                        rig.get("set", &(other as u64).to_le_bytes()),
                        Some(bytes(other as u64, len)),
                        "{at} other {other}"
                    );
                }
                let value_at = 64 + 8 + if values[key] > 65_536 { 8 } else { 0 };
                let looked = rig.reader("set").lookup(&(key as u64).to_le_bytes());
                if offset < value_at && !sealed {
                    assert_eq!(looked, Err(super::support::Miss::NotFound), "{at}");
                } else {
                    // Whose value it was is known, from its prefix or from a FOOTER: an error, not "not found", and
                    // never an older value.
                    assert_eq!(looked, Err(super::support::Miss::Torn), "{at}");
                }
                assert_eq!(rig.figure("set", "damaged_records_count"), 1, "{at}");
                let kept = std::fs::read(&target).unwrap();
                assert_eq!(kept[..places[4]], broken[..places[4]], "{at}");
            }
        }
    }
}

/// Also where the record before it is damaged, from whose end on records are looked for unit by unit.
#[test]
fn an_older_value_does_not_come_back_in_place_of_a_damaged_one() {
    let running = scratch();
    let rig = Rig::open(running.path());
    rig.store.create("set").unwrap();
    rig.put("set", b"key", b"old").unwrap();
    let before = rig.put("set", b"before", b"it").unwrap().locator.offset_bytes();
    let new = rig.put("set", b"key", b"new").unwrap().locator.offset_bytes();
    rig.put("set", b"after", b"says what is durable").unwrap();
    let file = segment_files(&rig.dataset("set"))[0].clone();
    let in_value = new + 64 + 3;
    for flips in [&[in_value][..], &[in_value, before + 20]] {
        let crashed = scratch();
        copy_directory(running.path(), crashed.path());
        let target = crashed.path().join(file.strip_prefix(running.path()).unwrap());
        let mut contents = std::fs::read(&target).unwrap();
        for at in flips {
            contents[*at as usize] ^= 1;
        }
        std::fs::write(&target, contents).unwrap();
        let rig = Rig::open(crashed.path());
        let found = rig.reader("set").lookup(b"key");
        assert_eq!(found, Err(super::support::Miss::Torn), "{flips:?}");
    }
}

#[test]
fn segments_cut_short_deleted_or_unreadable_are_named_and_the_rest_is_served() {
    let running = scratch();
    let rig = Rig::open(running.path());
    rig.store.create("set").unwrap();
    let mut segment_of = HashMap::new();
    for key in 0..100_u64 {
        let put = rig.put("set", &key.to_le_bytes(), &bytes(key, 30_000)).unwrap();
        segment_of.insert(key, put.locator);
    }
    // Six parts, and a head in a later segment than the first part.
    rig.put("set", b"large", &bytes(9, 700_000)).unwrap();
    let files = segment_files(&rig.dataset("set"));
    assert!(files.len() >= 4);
    drop(rig);
    let number = |file: &Path| u32::from_str_radix(file.file_stem().unwrap().to_str().unwrap(), 16).unwrap();

    let cases: [(&str, Harm<'_>); 5] = [
        ("cut short", &|file| {
            let contents = std::fs::read(file).unwrap();
            std::fs::write(file, &contents[..contents.len() / 2]).unwrap();
        }),
        ("header and trailer flipped", &|file| {
            let mut contents = std::fs::read(file).unwrap();
            contents[20] ^= 1;
            *contents.last_mut().unwrap() ^= 1;
            std::fs::write(file, contents).unwrap();
        }),
        ("emptied", &|file| std::fs::write(file, []).unwrap()),
        ("deleted", &|file| std::fs::remove_file(file).unwrap()),
        ("deleted, and the list too", &|file| {
            std::fs::remove_file(file).unwrap();
            std::fs::remove_file(file.with_file_name("segments")).unwrap();
        }),
    ];
    for (what, harm) in cases {
        for victim in [&files[0], &files[files.len() - 2]] {
            let copy = scratch();
            copy_directory(running.path(), copy.path());
            harm(&copy.path().join(victim.strip_prefix(running.path()).unwrap()));
            let rig = Rig::open(copy.path());
            let gone = number(victim);
            let half = 64 + (std::fs::metadata(victim).unwrap().len() - 64) / 2;
            for (key, locator) in &segment_of {
                let lost = locator.segment == gone
                    && (what != "cut short" || locator.offset_bytes() + locator.wire_len_bytes() > half - 32);
                let expected = (!lost).then(|| bytes(*key, 30_000));
                let got = rig.get("set", &key.to_le_bytes());
                assert_eq!(got.is_some(), expected.is_some(), "{what} {gone}: key {key}");
                assert_eq!(got, expected);
            }
            let row = rig.dataset("set").row(gone);
            match what {
                "cut short" => assert!(row.is_some()),
                "deleted, and the list too" if victim == &files[0] => {
                    assert!(row.is_none(), "nothing names it");
                }
                _ => {
                    assert_eq!(
                        row.unwrap().state,
                        kv_proto::layout::segment_state::LOST,
                        "{what} {gone}"
                    );
                    assert_eq!(rig.figure("set", "lost_segments_count"), 1, "{what} {gone}");
                }
            }
            // New writes go to a segment of a number that was never used.
            let put = rig.put("set", b"more", b"more").unwrap();
            assert!(put.locator.segment > number(files.last().unwrap()));
        }
    }
}

/// Copies the directory again and again while values are put: each copy holds at least what was answered before it was
/// begun, and nothing that was never put.
#[test]
fn a_copy_at_any_moment_holds_every_answered_put() {
    let running = scratch();
    let rig = Rig::open(running.path());
    rig.store.create("set").unwrap();
    let value_of = |key: u64| bytes(key, (key * 131 % 9000) as usize);
    let answered = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut key = 0_u64;
            while !stop.load(Ordering::Relaxed) && key < 3000 {
                rig.put("set", &key.to_le_bytes(), &value_of(key)).unwrap();
                key += 1;
                answered.store(key, Ordering::Release);
            }
        });
        for _ in 0..12 {
            let before = answered.load(Ordering::Acquire);
            let copy = scratch();
            copy_directory(running.path(), copy.path());
            let after = answered.load(Ordering::Acquire) + 1;
            let crashed = Rig::open(copy.path());
            for key in 0..before {
                assert_eq!(
                    crashed.get("set", &key.to_le_bytes()),
                    Some(value_of(key)),
                    "key {key} of {before}"
                );
            }
            assert!(crashed.figure("set", "keys_count") <= after);
            assert_eq!(crashed.figure("set", "damaged_records_count"), 0);
            assert_eq!(crashed.figure("set", "lost_segments_count"), 0);
        }
        stop.store(true, Ordering::Relaxed);
    });
}

/// A value that holds the bytes of records, of this very segment, is not taken apart.
#[test]
fn records_inside_a_value_are_not_records() {
    let running = scratch();
    let rig = Rig::open(running.path());
    rig.store.create("set").unwrap();
    rig.put("set", b"key", b"inner").unwrap();
    rig.put("set", b"key", b"newer").unwrap();
    let copied = read_written(&segment_files(&rig.dataset("set"))[0]);
    rig.put("set", b"copy", &copied).unwrap();
    let crashed = scratch();
    copy_directory(running.path(), crashed.path());
    let rig = Rig::open(crashed.path());
    assert_eq!(rig.get("set", b"key"), Some(b"newer".to_vec()));
    assert_eq!(rig.get("set", b"copy"), Some(copied));
    assert_eq!(rig.figure("set", "keys_count"), 2);
}

/// A FILLER that ends inside its extent is none: what lies in its gap is read.
#[test]
fn a_filler_that_ends_no_extent_is_damage() {
    let (crashed, file) = crashed(&[100, 200, 300]);
    let mut contents = std::fs::read(&file).unwrap();
    let places = places(&contents);
    let at = places[0];
    let mut header = RecordHeader::read_from_bytes(&contents[at..at + 64]).unwrap();
    let gap = (places[2] - at) as u32;
    header.kind = record_kind::FILLER;
    header.key_len_bytes = 0;
    header.value_len_bytes = gap - 64;
    (header.sequence, header.client_id, header.operation) = (0, 0, 0);
    (header.value_crc, header.part) = (0, 0);
    header.header_crc = kv_proto::crc::crc32c(&header.as_bytes()[..60]);
    contents[at..at + 64].copy_from_slice(header.as_bytes());
    assert!(kv_proto::record::parse_header(&contents[at..]).is_ok());
    let (copy, _) = with_file(crashed.path(), &file, &contents);
    let rig = Rig::open(copy.path());
    assert_eq!(rig.get("set", &1_u64.to_le_bytes()), Some(bytes(1, 200)));
    assert_eq!(rig.get("set", &2_u64.to_le_bytes()), Some(bytes(2, 300)));
    assert_eq!(rig.figure("set", "damaged_records_count"), 1);
}
