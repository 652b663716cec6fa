//! Findings that no flipped bit makes: bytes that are whole and say what cannot be.

use std::mem::offset_of;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use kv_proto::crc::{block_crcs, crc32c};
use kv_proto::layout::{
    DatasetDescription, FooterEntry, HeadValue, OperationEntry, RecordHeader, record_kind,
};
use kv_proto::record::{RecordMeta, encode_prefix};
use zerocopy::FromZeros;

use super::check::{Seen, checked, flip};
use super::datasets::make_twin;
use super::restart::{crashed_in_chunks, segments};
use super::support::{MIB, Rig, bytes, faulty, scratch, segment_files};
use crate::store::BeginPut;
use crate::store::check::{Finding, Level, check_with};
use crate::store::description::{Description, parse_directory_name};
use crate::store::files::{Call, Files};
use crate::store::recover::SegmentFile;
use crate::store::recover::scan::Scanned;
use crate::store::segment::HEADER_BYTES;
use crate::store::{parse_segment_name, segment_list};

/// One dataset with a value of one block, one of several, a large one and a tombstone, in one sealed segment.
fn filled(root: &Path) -> PathBuf {
    let rig = Rig::with(super::check::with_blocks(root), Files::default()).unwrap();
    rig.store.create("set").unwrap();
    for (key, len) in [
        ("one", 1000),
        ("blocks", 150_000),
        ("large", 450_000),
        ("gone", 10),
    ] {
        rig.put("set", key.as_bytes(), &bytes(len as u64, len)).unwrap();
    }
    rig.delete("set", b"gone").unwrap();
    let file = segment_files(&rig.dataset("set"))[0].clone();
    drop(rig);
    let (summary, findings) = checked(root, false);
    assert_eq!((summary.damage, summary.notes), (0, 0), "{findings:#?}");
    file
}

/// The only finding of this level.
fn only(root: &Path, level: Level) -> Finding {
    let (_, findings) = checked(root, false);
    let of_level: Vec<_> = findings.iter().filter(|it| it.level == level).collect();
    assert_eq!(of_level.len(), 1, "{findings:#?}");
    of_level[0].clone()
}

fn says(found: &Finding, path: &Path, what: &str) {
    assert_eq!(found.path, path, "{found}");
    assert!(found.what.contains(what), "{what:?} is not what is said: {found}");
}

fn open(path: &Path) -> (SegmentFile, [u8; 16], [u8; 16]) {
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    let number = parse_segment_name(&name(path)).unwrap();
    let directory = path.parent().unwrap();
    let id = parse_directory_name(&name(directory)).unwrap();
    let description = Description::read(&Files::default(), directory, id).unwrap();
    let file = SegmentFile::open(&Files::default(), path, number, id).unwrap();
    (file, id, description.hash_key)
}

/// Writes the first record of this kind and key anew: whole, with another value or another CRC of all of it.
fn rewrite(path: &Path, kind: u8, key: &[u8], edit: impl FnOnce(&mut Vec<u8>) -> Option<u32>) {
    let (file, ..) = open(path);
    let files = Files::default();
    let mut found: Option<(u64, RecordHeader, Vec<u8>)> = None;
    let opened = files.open(path).unwrap();
    file.walk(&files, &opened, HEADER_BYTES, |record| {
        if record.header.kind == kind && record.key == key && found.is_none() {
            found = Some((record.offset, record.header, record.value.to_vec()));
        }
    })
    .unwrap();
    let (offset, header, mut value) = found.unwrap();
    let value_crc = edit(&mut value).unwrap_or_else(|| crc32c(&value));
    let meta = RecordMeta {
        kind,
        part: header.part,
        sequence: header.sequence,
        segment_identity: header.segment_identity,
        client_id: header.client_id,
        operation: header.operation,
        durable_units: header.durable_units,
    };
    let mut record = Vec::new();
    encode_prefix(
        &meta,
        key,
        value.len() as u32,
        value_crc,
        &block_crcs(&value),
        &mut record,
    );
    record.extend_from_slice(&value);
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(&record, offset).unwrap();
}

type Lists = (Vec<FooterEntry>, Vec<OperationEntry>, Scanned);

/// Seals a segment anew with lists that were changed.
fn reseal(path: &Path, edit: impl FnOnce(&mut Lists)) {
    let (mut file, _, hash_key) = open(path);
    let files = Files::default();
    let opened = files.open(path).unwrap();
    let mut entries = Vec::new();
    let scanned = file
        .walk(&files, &opened, HEADER_BYTES, |found| {
            entries.push(found.entry(&hash_key))
        })
        .unwrap();
    let mut lists = (entries, Vec::new(), scanned);
    edit(&mut lists);
    let (entries, operations, scanned) = lists;
    file.seal(
        &files,
        scanned.end,
        &scanned,
        (&entries[..], &operations[..]),
        || false,
    )
    .unwrap();
}

/// What is found where only the lists are wrong is written anew by a repair.
fn repaired(root: &Path) {
    let (summary, findings) = checked(root, true);
    assert!(summary.repaired > 0, "{findings:#?}");
    let (summary, findings) = checked(root, false);
    assert_eq!((summary.damage, summary.notes), (0, 0), "{findings:#?}");
}

#[test]
fn a_list_that_says_otherwise_than_the_records_is_told() {
    type Edit = fn(&mut Lists);
    let edits: [(Edit, &str, bool); 5] = [
        (
            |lists| {
                lists.0.remove(1);
            },
            "is whole, and is not listed",
            true,
        ),
        (|lists| lists.0[1].sequence += 100, "is listed otherwise", true),
        (
            |lists| {
                // Two where there is one.
                lists.0[1].value_len_bytes = 100;
                let inside = FooterEntry {
                    offset_units: lists.0[1].end_units() as u32,
                    ..lists.0[1]
                };
                lists.0.insert(2, inside);
            },
            "is listed here and there is none",
            false,
        ),
        (
            |lists| lists.2.sequences = Some((1, u64::MAX)),
            "the trailer says sequences",
            true,
        ),
        (
            |lists| {
                let mut cannot_be = OperationEntry::new_zeroed();
                cannot_be.sequence = 1;
                lists.1.push(cannot_be);
            },
            "an operation is listed that cannot be",
            false,
        ),
    ];
    for (edit, what, in_repair) in edits {
        let directory = scratch();
        let file = filled(directory.path());
        reseal(&file, edit);
        let (_, findings) = checked(directory.path(), false);
        let told = findings.iter().find(|it| it.what.contains(what));
        says(told.unwrap_or(&findings[0]), &file, what);
        if in_repair {
            repaired(directory.path());
        }
    }
}

#[test]
fn a_value_that_is_whole_and_is_not_what_was_put_is_told() {
    type Edit = fn(&mut Vec<u8>) -> Option<u32>;
    let total_crc = |value: &mut Vec<u8>| {
        value[offset_of!(HeadValue, total_crc)] ^= 1;
        None
    };
    let part_count = |value: &mut Vec<u8>| {
        value[offset_of!(HeadValue, part_count)] ^= 1;
        None
    };
    let edits: [(u8, &str, Edit, &str); 3] = [
        (
            record_kind::VALUE,
            "blocks",
            |value| Some(crc32c(value) ^ 1),
            "is not that of its blocks",
        ),
        (
            record_kind::HEAD,
            "large",
            total_crc,
            "together they do not have its CRC",
        ),
        (record_kind::HEAD, "large", part_count, "says what cannot be: "),
    ];
    for (kind, key, edit, what) in edits {
        let directory = scratch();
        let file = filled(directory.path());
        rewrite(&file, kind, key.as_bytes(), edit);
        let found = only(directory.path(), Level::Damage);
        says(&found, &file, what);
        assert_eq!(found.key.as_deref(), Some(key.as_bytes()));
    }
}

/// A segment that a large value names is gone.
#[test]
fn a_part_whose_segment_is_gone_is_told_by_its_value() {
    let directory = scratch();
    let rig = Rig::open(directory.path());
    rig.store.create("set").unwrap();
    rig.put("set", b"large", &bytes(1, 5 * MIB as usize / 2)).unwrap();
    let files = segment_files(&rig.dataset("set"));
    assert_eq!(files.len(), 3);
    drop(rig);
    std::fs::remove_file(&files[1]).unwrap();
    let (_, findings) = checked(directory.path(), false);
    assert!(findings.len() > 10, "{findings:#?}");
    says(&findings[0], &files[1], "segment lost: its file");
    for found in &findings[1..] {
        says(found, &files[2], "is not there");
        assert_eq!(found.key.as_deref(), Some(&b"large"[..]));
    }
}

/// A superblock or a description that was put back from an older copy, or from another dataset.
#[test]
fn files_that_do_not_go_together_are_told() {
    let directory = scratch();
    let root = directory.path();
    drop(Rig::open(root));
    let superblock = root.join("superblock");
    let older = std::fs::read(&superblock).unwrap();
    let file = filled(root);
    let newer = std::fs::read(&superblock).unwrap();
    std::fs::write(&superblock, older).unwrap();
    says(
        &only(root, Level::Damage),
        &file,
        "the superblock says numbers below",
    );
    std::fs::write(&superblock, newer).unwrap();
    let path = file.with_file_name("dataset");
    let mut description = std::fs::read(&path).unwrap();
    description[offset_of!(DatasetDescription, segment_bytes) + 2] ^= 1;
    let crc = crc32c(&description[..offset_of!(DatasetDescription, crc)]);
    description[offset_of!(DatasetDescription, crc)..].copy_from_slice(&crc.to_le_bytes());
    std::fs::write(&path, description).unwrap();
    says(&only(root, Level::Damage), &file, ", in a dataset of ");
}

#[test]
fn two_datasets_of_one_name_are_told() {
    let directory = scratch();
    let file = filled(directory.path());
    let rig = Rig::open(directory.path());
    let twin = make_twin(&rig, "set", [0xff; 16]);
    drop(rig);
    // Of another dataset, so it is lost too.
    let lost = twin.join(file.file_name().unwrap());
    std::fs::copy(&file, &lost).unwrap();
    let (_, findings) = checked(directory.path(), false);
    let damage: Vec<_> = findings.iter().filter(|it| it.level == Level::Damage).collect();
    assert_eq!(damage.len(), 2, "{findings:#?}");
    says(damage[0], &lost, "segment lost");
    says(damage[1], &twin, "are both the dataset \"set\"");
    // The same where its segment is gone.
    std::fs::remove_file(&lost).unwrap();
    segment_list::write(&Files::default(), &twin, [0xff; 16], &[1].into()).unwrap();
    let (_, findings) = checked(directory.path(), false);
    let damage: Vec<_> = findings.iter().filter(|it| it.level == Level::Damage).collect();
    assert_eq!(damage.len(), 2, "{findings:#?}");
    says(damage[1], &twin, "are both the dataset \"set\"");
}

#[test]
fn what_is_of_no_dataset_is_noted_and_left_alone() {
    let directory = scratch();
    let root = directory.path();
    let file = filled(root);
    let stranger = root.join("datasets").join("photos");
    std::fs::create_dir(&stranger).unwrap();
    says(&only(root, Level::Note), &stranger, "is no dataset");
    std::fs::remove_dir(&stranger).unwrap();
    let note = file.with_file_name("notes.txt");
    std::fs::write(&note, b"text").unwrap();
    says(&only(root, Level::Note), &note, "is no file of a dataset");
}

/// What a checkpoint covers was durable: a file that ends before that was cut short.
#[test]
fn a_file_that_ends_below_its_checkpoint_is_told() {
    let (crashed, _, covered) = crashed_in_chunks();
    let file = segments(crashed.path())[0].clone();
    let opened = std::fs::OpenOptions::new().write(true).open(&file).unwrap();
    opened.set_len(covered[1].1).unwrap();
    let (_, findings) = checked(crashed.path(), false);
    let damage = findings.iter().find(|it| it.level == Level::Damage).unwrap();
    says(damage, &file, "the file was cut short: ");
}

#[test]
fn a_checkpoint_that_cannot_be_read_is_told() {
    let (crashed, path, _) = crashed_in_chunks();
    let faults = |call: Call, path: &Path| {
        let hit = call == Call::Read && path.extension().is_some_and(|it| it == "checkpoint");
        hit.then(|| (0, std::io::Error::from_raw_os_error(5)))
    };
    let mut seen = Seen::default();
    let summary = check_with(&faulty(Box::new(faults)), crashed.path(), false, &mut seen).unwrap();
    assert_eq!((summary.damage, summary.keys), (1, 250), "{:#?}", seen.0);
    let damage = seen.0.iter().find(|it| it.level == Level::Damage).unwrap();
    says(damage, &path, "the checkpoint cannot be read");
}

/// A repair of lists knows every operation that they told of.
#[test]
fn a_repair_forgets_no_operation() {
    let directory = scratch();
    let file = filled(directory.path());
    flip(&file, open(&file).0.len + 20, 0);
    repaired(directory.path());
    let rig = Rig::open(directory.path());
    // As [`Rig::put`] and [`Rig::delete`] number them.
    for operation in (1..=9).step_by(2) {
        let begun = rig.dataset("set").begin_put(7 + (1 << 8), operation, b"any", 1);
        assert!(matches!(begun, Ok(BeginPut::Done(_))), "{operation}: {begun:?}");
    }
}

/// No list is made over records that are not whole, whatever is wrong with the one that is there.
#[test]
fn a_repair_seals_no_damaged_record() {
    let directory = scratch();
    let file = filled(directory.path());
    flip(&file, HEADER_BYTES + 64 + 3 + 500, 0);
    flip(&file, open(&file).0.len + 20, 0);
    let before = std::fs::read(&file).unwrap();
    let (summary, findings) = checked(directory.path(), true);
    assert_eq!((summary.damage, summary.repaired), (2, 0), "{findings:#?}");
    assert!(std::fs::read(&file).unwrap() == before);
}
