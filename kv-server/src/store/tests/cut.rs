//! Segment files that somebody cut: named at every start until that is accepted, whatever was cut off, and never where
//! nobody cut any.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use kv_proto::crc::crc32c;
use zerocopy::IntoBytes;

use super::check::{checked, contents};
use super::compacting::{eager, only_dead, until};
use super::support::{MIB, Rig, bytes, copy_directory, faulty, scratch, sealed_end, segment_files_in};
use crate::store::check::Level;
use crate::store::checkpoint;
use crate::store::files::{Call, Files};
use crate::store::recover::SegmentFile;
use crate::store::segment::HEADER_BYTES;

const KEYS: u64 = 80;

fn value(key: u64) -> Vec<u8> {
    bytes(key, 30_000)
}

fn segments(root: &Path) -> Vec<PathBuf> {
    let directory = std::fs::read_dir(root.join("datasets")).unwrap().next();
    segment_files_in(&directory.unwrap().unwrap().path())
}

/// Three segments of the dataset `set`; the segment of each key. The last segment is sealed, or as a kill leaves it.
fn filled(root: &Path, sealed: bool) -> Vec<u32> {
    let running = scratch();
    let rig = Rig::with(only_dead(running.path()), Files::default()).unwrap();
    rig.store.create("set").unwrap();
    let put = |key: u64| rig.put("set", &key.to_le_bytes(), &value(key)).unwrap();
    let places = (0..KEYS).map(|key| put(key).locator.segment).collect();
    if sealed {
        rig.store.shutdown();
    }
    std::fs::remove_dir(root).unwrap();
    copy_directory(running.path(), root);
    assert_eq!(segments(root).len(), 3);
    places
}

fn cut(path: &Path, len: u64) {
    let file = std::fs::File::options().write(true).open(path).unwrap();
    assert!(file.metadata().unwrap().len() > len);
    file.set_len(len).unwrap();
}

/// Keys that are there, each with its value.
fn there(rig: &Rig) -> Vec<u64> {
    let has = |key: &u64| {
        let got = rig.get("set", &key.to_le_bytes());
        assert!(got.as_ref().is_none_or(|got| *got == value(*key)), "key {key}");
        got.is_some()
    };
    (0..KEYS).filter(has).collect()
}

fn figure(root: &Path, figure: &str) -> u64 {
    Rig::with(only_dead(root), Files::default())
        .unwrap()
        .figure("set", figure)
}

/// What is lost is named by a check, and by each start, until it is accepted; after that by none.
fn is_named_until_accepted(root: &Path, victim: &Path, checks_first: bool) {
    let before = contents(root);
    let (summary, findings) = checked(root, false);
    let damage: Vec<_> = findings.iter().filter(|it| it.level == Level::Damage).collect();
    assert_eq!(summary.damage, 1, "{findings:#?}");
    assert!(
        damage[0].path == victim && damage[0].what.contains("was cut short"),
        "{findings:#?}"
    );
    assert!(contents(root) == before, "a check changes nothing");
    if !checks_first {
        for start in 0..3 {
            assert_eq!(figure(root, "cut_segments_count"), 1, "start {start}");
            let (summary, findings) = checked(root, false);
            assert_eq!(summary.damage, 1, "{findings:#?}");
        }
    }
    let (summary, findings) = checked(root, true);
    assert!(summary.repaired > 0, "{findings:#?}");
    assert_eq!(checked(root, false).0.damage, 0);
    for _ in 0..2 {
        assert_eq!(figure(root, "cut_segments_count"), 0);
    }
    assert_eq!(checked(root, false).1, []);
}

/// Of every segment, the newest included, after a shutdown as after a kill; and anywhere.
#[test]
fn a_file_that_was_cut_is_named_until_that_is_accepted() {
    for sealed in [true, false] {
        let whole = scratch();
        let places = filled(whole.path(), sealed);
        for (index, victim) in segments(whole.path()).iter().enumerate() {
            let number = index as u32 + 1;
            let file = SegmentFile::open(&Files::default(), victim, number, dataset_of(victim)).unwrap();
            let end = file.len.min(file.data_end);
            // In FOOTERs, behind the last record, within one, between two, behind the header.
            let cuts = [file.data_end - 64, end, end - 10, 64 + 30_080, 64];
            for at in cuts.into_iter().filter(|at| *at <= end || sealed || index < 2) {
                for checks_first in [false, true] {
                    let root = scratch();
                    copy_directory(whole.path(), root.path());
                    let victim = root.path().join(victim.strip_prefix(whole.path()).unwrap());
                    cut(&victim, at);
                    // What it lists and what is gone would be named too.
                    let _ = std::fs::remove_file(checkpoint::path_of(&victim));
                    is_named_until_accepted(root.path(), &victim, checks_first);
                    let rig = Rig::with(only_dead(root.path()), Files::default()).unwrap();
                    let others = there(&rig);
                    let kept = (0_u64..)
                        .zip(&places)
                        .filter(|(_, place)| **place != number)
                        .map(|it| it.0);
                    assert!(
                        kept.into_iter().all(|key| others.contains(&key)),
                        "{number} at {at}"
                    );
                }
            }
        }
    }
}

/// A copy that keeps no zeroes (`cp --sparse=always`, a file system that compresses) of what a kill left: the zeroes that the
/// last value ends with are a hole then, as what was never written is. The value was taken for torn, and written over.
#[test]
fn a_last_value_that_ends_in_zeroes_is_there_where_they_became_a_hole() {
    let running = scratch();
    let rig = Rig::with(only_dead(running.path()), Files::default()).unwrap();
    rig.store.create("set").unwrap();
    // Not in parts: their HEAD, which is no zeroes, would be the last.
    let mut last = value(1)[..1000].to_vec();
    last.resize(30_000, 0);
    rig.put("set", b"before", &value(0)).unwrap();
    rig.put("set", b"last", &last).unwrap();
    let root = scratch();
    copy_directory(running.path(), root.path());
    let [segment] = &segments(root.path())[..] else {
        panic!("more than one segment")
    };
    let bytes = std::fs::read(segment).unwrap();
    let sparse = std::fs::File::create(segment).unwrap();
    sparse.set_len(bytes.len() as u64).unwrap();
    for (page, at) in bytes.chunks(4096).zip((0..).step_by(4096)) {
        if page.iter().any(|byte| *byte != 0) {
            std::os::unix::fs::FileExt::write_all_at(&sparse, page, at).unwrap();
        }
    }
    drop(sparse);
    assert_eq!(checked(root.path(), false).0.damage, 0);
    for _ in 0..2 {
        let rig = Rig::with(only_dead(root.path()), Files::default()).unwrap();
        assert!(rig.get("set", b"last").as_ref() == Some(&last));
        assert!(rig.get("set", b"before") == Some(value(0)));
    }
}

fn dataset_of(path: &Path) -> [u8; 16] {
    let name = path.parent().unwrap().file_name().unwrap().to_str().unwrap();
    crate::store::description::parse_directory_name(name).unwrap()
}

/// Nobody cut what a crash left, a failed write, or a trailer that does not validate.
#[test]
fn a_file_that_nobody_cut_is_not_named() {
    let whole = scratch();
    filled(whole.path(), true);
    for victim in segments(whole.path()) {
        let root = scratch();
        copy_directory(whole.path(), root.path());
        let victim = root.path().join(victim.strip_prefix(whole.path()).unwrap());
        let mut file = std::fs::read(&victim).unwrap();
        *file.last_mut().unwrap() ^= 1;
        std::fs::write(&victim, file).unwrap();
        let rig = Rig::with(only_dead(root.path()), Files::default()).unwrap();
        assert_eq!(rig.figure("set", "cut_segments_count"), 0);
        assert_eq!(rig.figure("set", "damaged_records_count"), 1, "its trailer");
        assert_eq!(there(&rig).len() as u64, KEYS);
        drop(rig);
        assert_eq!(checked(root.path(), false).1, []);
    }
}

/// A file keeps its whole length until its trailer is durable behind its FOOTERs, whatever call is the last before a crash.
#[test]
fn a_file_is_as_long_as_its_segment_until_it_is_sealed() {
    let root = scratch();
    filled(root.path(), false);
    let files = segments(root.path());
    for (index, path) in files.iter().enumerate() {
        let len = std::fs::metadata(path).unwrap().len();
        if index < 2 {
            let file = std::fs::read(path).unwrap();
            assert!(sealed_end(&file) < file.len());
        } else {
            assert_eq!(len, MIB);
        }
    }
    // It takes no more of the disk than was written.
    use std::os::unix::fs::MetadataExt;
    let last = std::fs::metadata(&files[2]).unwrap();
    assert!(
        last.blocks() * 512 < MIB / 2 && last.len() == MIB,
        "{}",
        last.blocks()
    );
}

/// Compaction leaves a segment alone that says that it was cut, so that it goes on saying so.
#[test]
fn a_segment_that_was_cut_is_not_compacted_away() {
    let root = scratch();
    filled(root.path(), true);
    let victim = segments(root.path())[0].clone();
    cut(&victim, 300_000);
    let overwrite = |rig: &Rig, seed: u64| {
        for key in 0..KEYS {
            rig.put("set", &key.to_le_bytes(), &bytes(seed + key, 30_000))
                .unwrap();
        }
    };
    let rig = Rig::with(eager(root.path()), Files::default()).unwrap();
    overwrite(&rig, 1000);
    overwrite(&rig, 2000);
    until(&rig, "what is dead is removed", || {
        rig.figure("set", "compaction_removed_segments_count") > 2
    });
    drop(rig);
    assert!(victim.exists());
    assert_eq!(figure(root.path(), "cut_segments_count"), 1);
    checked(root.path(), true);
    let rig = Rig::with(eager(root.path()), Files::default()).unwrap();
    overwrite(&rig, 3000);
    until(&rig, "it is removed", || {
        rig.put("set", b"fills", &bytes(1, 30_000)).unwrap();
        !victim.exists()
    });
}

/// The files of an older day grew as they were written: they are read as ever, and one that was cut is named where a later
/// one says that it had been sealed.
#[test]
fn files_of_an_older_day_are_read() {
    for sealed in [true, false] {
        let root = scratch();
        let places = filled(root.path(), sealed);
        for path in segments(root.path()) {
            let mut file = std::fs::read(&path).unwrap();
            // Without the flag, and without the hole.
            file[6] = 0;
            let crc = crc32c(&file[..60]);
            file[60..64].copy_from_slice(crc.as_bytes());
            let data = file.iter().rposition(|byte| *byte != 0).unwrap() + 1;
            file.truncate(data.next_multiple_of(64));
            std::fs::write(&path, file).unwrap();
        }
        let older = scratch();
        copy_directory(root.path(), older.path());
        assert_eq!(checked(root.path(), false).0.damage, 0);
        for _ in 0..2 {
            let rig = Rig::with(only_dead(root.path()), Files::default()).unwrap();
            assert_eq!(there(&rig).len() as u64, KEYS);
            assert_eq!(rig.figure("set", "cut_segments_count"), 0);
        }
        assert_eq!(checked(root.path(), false).1, []);
        for checks_first in [true, false] {
            let root = scratch();
            copy_directory(older.path(), root.path());
            let victim = segments(root.path())[1].clone();
            cut(&victim, HEADER_BYTES + 5 * 30_080);
            let (summary, findings) = checked(root.path(), false);
            assert_eq!(summary.damage, 1, "{findings:#?}");
            assert!(
                findings[0]
                    .what
                    .contains("not sealed though a later segment exists"),
                "{findings:#?}"
            );
            if !checks_first {
                for _ in 0..2 {
                    assert_eq!(figure(root.path(), "cut_segments_count"), 1);
                    assert_eq!(checked(root.path(), false).0.damage, 1);
                }
            }
            assert!(checked(root.path(), true).0.repaired > 0);
            assert_eq!(checked(root.path(), false).0.damage, 0);
            let rig = Rig::with(only_dead(root.path()), Files::default()).unwrap();
            assert_eq!(rig.figure("set", "cut_segments_count"), 0);
            let kept = places.iter().filter(|place| **place != 2).count() + 5;
            assert_eq!(there(&rig).len(), kept);
        }
    }
}

/// What a start that ends early writes does not make a file that was cut look like a whole one.
#[test]
fn a_start_that_fails_does_not_forget_that_a_file_was_cut() {
    let root = scratch();
    let rig = Rig::with(only_dead(root.path()), Files::default()).unwrap();
    rig.store.create("set").unwrap();
    // Small ones, so many that FOOTERs of what is left of them reach behind the limit.
    for key in 0..8000_u64 {
        rig.put("set", &key.to_le_bytes(), &bytes(key, 30)).unwrap();
    }
    drop(rig);
    let victim = segments(root.path())[0].clone();
    cut(&victim, 900_000);
    for call in [Call::Write, Call::Sync, Call::Truncate] {
        for nth in 0..4 {
            let copy = scratch();
            copy_directory(root.path(), copy.path());
            let failing = copy.path().join(victim.strip_prefix(root.path()).unwrap());
            let met = AtomicUsize::new(0);
            let faults = move |at: Call, path: &Path| {
                let hit = at == call && path == failing && met.fetch_add(1, Ordering::Relaxed) == nth;
                hit.then(|| (100, io::Error::from_raw_os_error(5)))
            };
            // Whether it starts or not.
            drop(Rig::with(only_dead(copy.path()), faulty(Box::new(faults))));
            assert_eq!(figure(copy.path(), "cut_segments_count"), 1, "{call:?} {nth}");
        }
    }
}
