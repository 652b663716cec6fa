//! Segment files that somebody deleted are missed; those that the server removed, or had not made yet, are not.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use kv_proto::control::Status;
use kv_proto::layout::segment_state;

use super::check::{checked, contents, flip};
use super::compacting::{self, eager, only_dead, until};
use super::support::{Rig, bytes, copy_directory, faulty, options, scratch, segment_files, segment_files_in};
use crate::store::check::{Finding, Level};
use crate::store::description::parse_directory_name;
use crate::store::files::{Call, Files};
use crate::store::segment_list::SegmentList;
use crate::store::{Compaction, StoreOptions, checkpoint, parse_segment_name, segment_list};

const EIO: i32 = 5;
const ENOSPC: i32 = 28;
/// Keys, so many that they fill some segments.
const KEYS: u64 = 120;

fn number(file: &Path) -> u32 {
    parse_segment_name(file.file_name().unwrap().to_str().unwrap()).unwrap()
}

fn value_of(key: u64) -> Vec<u8> {
    bytes(key, 30_000)
}

/// The directory of the only dataset.
fn directory_in(root: &Path) -> PathBuf {
    let mut directories = std::fs::read_dir(root.join("datasets")).unwrap();
    directories.next().unwrap().unwrap().path()
}

fn listed(directory: &Path) -> Option<BTreeSet<u32>> {
    segment_list::read(&Files::default(), directory, id_of(directory)).unwrap()
}

/// Whether this is a list that is being written.
fn is_list(path: &Path) -> bool {
    path.ends_with("segments.new")
}

fn id_of(directory: &Path) -> [u8; 16] {
    parse_directory_name(directory.file_name().unwrap().to_str().unwrap()).unwrap()
}

fn numbers_in(directory: &Path) -> BTreeSet<u32> {
    segment_files_in(directory)
        .iter()
        .map(|file| number(file))
        .collect()
}

/// A dataset of `keys`, whose last segment was not sealed, as a crash leaves it; the segment of each key.
fn crashed(keys: u64) -> (tempfile::TempDir, Vec<u32>) {
    let running = scratch();
    let rig = Rig::with(only_dead(running.path()), Files::default()).unwrap();
    rig.store.create("set").unwrap();
    let segments = (0..keys).map(|key| {
        let put = rig.put("set", &key.to_le_bytes(), &value_of(key)).unwrap();
        put.locator.segment
    });
    let segments = segments.collect();
    let crashed = scratch();
    copy_directory(running.path(), crashed.path());
    (crashed, segments)
}

/// Every key is there but those of `gone`, which is named and counted once.
fn check_without(rig: &Rig, segments: &[u32], gone: Option<u32>) {
    for (key, segment) in (0_u64..).zip(segments) {
        let expected = (Some(*segment) != gone).then(|| value_of(key));
        assert!(
            rig.get("set", &key.to_le_bytes()) == expected,
            "key {key}, {gone:?} gone"
        );
    }
    assert_eq!(
        rig.figure("set", "lost_segments_count"),
        u64::from(gone.is_some())
    );
    if let Some(gone) = gone {
        let row = rig.dataset("set").row(gone).unwrap();
        assert_eq!(row.state, segment_state::LOST);
    }
}

/// The newest, one in the middle and the only one, right after what is in it was answered.
#[test]
fn a_segment_that_is_gone_is_missed_until_the_loss_is_accepted() {
    for (keys, victim) in [(KEYS, 1), (KEYS, 2), (KEYS, usize::MAX), (3, 0)] {
        let (root, segments) = crashed(keys);
        let directory = directory_in(root.path());
        let files = segment_files_in(&directory);
        assert!(keys < KEYS || files.len() >= 4);
        let victim = &files[victim.min(files.len() - 1)];
        let gone = number(victim);
        std::fs::remove_file(victim).unwrap();
        let before = contents(root.path());
        let (summary, findings) = checked(root.path(), false);
        assert_eq!(summary.damage, 1, "{findings:#?}");
        let found = findings.iter().find(|it| it.level == Level::Damage).unwrap();
        assert_eq!((found.segment, &found.path), (Some(gone), victim));
        assert_eq!(found.dataset.as_deref(), Some("set"));
        assert!(found.what.contains(victim.to_str().unwrap()), "{found}");
        assert!(contents(root.path()) == before, "a check changes nothing");
        for start in 0..3 {
            let rig = Rig::with(only_dead(root.path()), Files::default()).unwrap();
            check_without(&rig, &segments, Some(gone));
            let key = format!("of start {start}");
            let put = rig.put("set", key.as_bytes(), b"more").unwrap();
            assert!(put.locator.segment > *segments.last().unwrap());
        }
        let (summary, findings) = checked(root.path(), true);
        assert_eq!((summary.damage, summary.repaired), (1, 1), "{findings:#?}");
        assert_eq!(checked(root.path(), false).0.damage, 0);
        let rig = Rig::with(only_dead(root.path()), Files::default()).unwrap();
        assert_eq!(rig.figure("set", "lost_segments_count"), 0);
        assert!(rig.dataset("set").row(gone).is_none());
        // Its number is not given again.
        assert!(rig.put("set", b"more", b"more").unwrap().locator.segment > gone);
    }
}

/// A file that comes back is served again, with its checkpoint if it has one: what was stored meanwhile is newer.
#[test]
fn a_segment_that_comes_back_is_served() {
    for newest in [false, true] {
        let (root, segments) = crashed(KEYS);
        let files = segment_files_in(&directory_in(root.path()));
        let file = &files[if newest { files.len() - 1 } else { 1 }];
        let checkpoint = checkpoint::path_of(file);
        assert_eq!(checkpoint.exists(), newest);
        let aside = root.path().join("aside");
        std::fs::rename(file, &aside).unwrap();
        let rig = Rig::with(only_dead(root.path()), Files::default()).unwrap();
        check_without(&rig, &segments, Some(number(file)));
        assert_eq!(checkpoint.exists(), newest);
        let key = segments.iter().position(|it| *it == number(file)).unwrap() as u64;
        rig.put("set", &key.to_le_bytes(), b"newer").unwrap();
        drop(rig);
        std::fs::rename(&aside, file).unwrap();
        let rig = Rig::with(only_dead(root.path()), Files::default()).unwrap();
        assert_eq!(rig.get("set", &key.to_le_bytes()), Some(b"newer".to_vec()));
        rig.put("set", &key.to_le_bytes(), &value_of(key)).unwrap();
        check_without(&rig, &segments, None);
    }
}

/// The list is that of the files whenever nothing is changed, also after compaction removed some.
#[test]
fn what_compaction_removed_is_not_missed() {
    let (root, segments) = crashed(KEYS);
    let rig = Rig::with(eager(root.path()), Files::default()).unwrap();
    for key in (0..KEYS).filter(|key| key % 10 != 0) {
        rig.put("set", &key.to_le_bytes(), &value_of(key)).unwrap();
    }
    until(&rig, "segments are removed", || {
        rig.figure("set", "compaction_removed_segments_count") > 2
    });
    drop(rig);
    let directory = directory_in(root.path());
    assert_eq!(listed(&directory), Some(numbers_in(&directory)));
    assert_eq!(checked(root.path(), false).1, []);
    check_without(&Rig::open(root.path()), &segments, None);
}

/// What lies on the disk at every call that makes a segment holds what was answered, and nothing is missed.
#[test]
fn a_crash_at_any_call_that_makes_a_segment_loses_nothing() {
    let running = scratch();
    let snapshots = scratch();
    let answered = Arc::new(AtomicUsize::new(0));
    let taken = Arc::new(Mutex::new(Vec::new()));
    let faults = {
        let (root, to) = (running.path().to_owned(), snapshots.path().to_owned());
        let (taken, answered) = (Arc::clone(&taken), Arc::clone(&answered));
        move |call: Call, path: &Path| {
            let own = std::thread::current().name() == Some("kv-log");
            let name = path.to_string_lossy();
            // Those that make it, and those on the directory that tell of them.
            let makes = name.ends_with(".new") || call == Call::SyncDirectory;
            if own && makes && call != Call::Read {
                let mut taken = taken.lock().unwrap();
                let to = to.join(taken.len().to_string());
                taken.push((call, answered.load(Ordering::Acquire) as u64));
                copy_directory(&root, &to);
            }
            None
        }
    };
    let rig = Rig::with(only_dead(running.path()), faulty(Box::new(faults))).unwrap();
    rig.store.create("set").unwrap();
    for key in 0..KEYS {
        rig.put("set", &key.to_le_bytes(), &value_of(key)).unwrap();
        answered.store(key as usize + 1, Ordering::Release);
    }
    let made = segment_files(&rig.dataset("set")).len();
    drop(rig);
    let taken = std::mem::take(&mut *taken.lock().unwrap());
    let count = |call| taken.iter().filter(|(it, _)| *it == call).count();
    // A file and a list each, and the numbers once.
    assert_eq!(count(Call::Rename), 2 * made + 1, "{taken:?}");
    assert!(count(Call::SyncDirectory) >= 2 * made, "{taken:?}");
    for (index, (call, answered)) in taken.into_iter().enumerate() {
        let root = snapshots.path().join(index.to_string());
        assert_eq!(checked(&root, false).0.damage, 0, "{index}: {call:?}");
        for start in 0..2 {
            let rig = Rig::with(only_dead(&root), Files::default()).unwrap();
            for key in 0..answered {
                assert!(
                    rig.get("set", &key.to_le_bytes()) == Some(value_of(key)),
                    "{index}, {key}"
                );
            }
            assert_eq!(rig.figure("set", "lost_segments_count"), 0, "{index}: {call:?}");
            assert_eq!(
                rig.figure("set", "damaged_segment_lists_count"),
                0,
                "{index}: {call:?}"
            );
            let dataset = rig.dataset("set");
            let numbers = segment_files(&dataset).iter().map(|file| number(file)).collect();
            // Those of a crash are listed by now.
            let list = listed(&dataset.directory).unwrap_or_default();
            assert_eq!(list, numbers, "{index}: {call:?}, start {start}");
        }
    }
}

/// A segment that cannot be listed takes nothing. It stays for the next attempt, of whatever of the list is on the disk.
#[test]
fn a_segment_that_cannot_be_listed_is_listed_later() {
    for (call, errno) in [
        (Call::Create, ENOSPC),
        (Call::Write, ENOSPC),
        (Call::Write, EIO),
        (Call::Sync, EIO),
        (Call::Rename, EIO),
        (Call::SyncDirectory, EIO),
    ] {
        let root = scratch();
        let armed = Arc::new(AtomicBool::new(false));
        let faults = {
            let armed = Arc::clone(&armed);
            let listing = AtomicBool::new(false);
            move |at: Call, path: &Path| {
                if armed.load(Ordering::Acquire) && is_list(path) {
                    listing.store(true, Ordering::Release);
                }
                let here = listing.load(Ordering::Acquire) && !path.to_string_lossy().contains(".segment");
                let hit = armed.load(Ordering::Acquire) && here && at == call;
                hit.then(|| (10, io::Error::from_raw_os_error(errno)))
            }
        };
        let rig = Rig::with(only_dead(root.path()), faulty(Box::new(faults))).unwrap();
        rig.store.create("set").unwrap();
        armed.store(true, Ordering::Release);
        let expected = if errno == ENOSPC {
            Status::NoSpace
        } else {
            Status::Io
        };
        for key in 0..3_u64 {
            let error = rig.put("set", &key.to_le_bytes(), &value_of(key)).unwrap_err();
            assert_eq!(error.status(), expected, "{call:?}: {error}");
        }
        let directory = rig.dataset("set").directory.clone();
        let first = 1;
        assert_eq!(numbers_in(&directory), [first].into(), "one file, however often");
        let copy = scratch();
        copy_directory(root.path(), copy.path());
        for _ in 0..2 {
            check_without(&Rig::open(copy.path()), &[], None);
        }
        armed.store(false, Ordering::Release);
        let put = rig.put("set", &0_u64.to_le_bytes(), &value_of(0)).unwrap();
        assert_eq!(put.locator.segment, first, "{call:?}: no number was wasted");
        assert_eq!(listed(&directory), Some([first].into()));
        drop(rig);
        check_without(&Rig::open(root.path()), &[first], None);
    }
}

/// Where not even a shorter list fits the disk, what is dead is removed all the same; and a crash at any call on the way
/// has nothing missed.
#[test]
fn segments_are_removed_where_no_list_fits_the_disk() {
    for for_good in [false, true] {
        let (root, _) = crashed(KEYS);
        let snapshots = scratch();
        let taken = Arc::new(AtomicUsize::new(0));
        let removed = AtomicBool::new(false);
        let deleted = Arc::new(AtomicBool::new(false));
        let faults = {
            let (from, to) = (root.path().to_owned(), snapshots.path().to_owned());
            let (taken, deleted) = (Arc::clone(&taken), Arc::clone(&deleted));
            move |call: Call, path: &Path| {
                let here = std::thread::current();
                if matches!(call, Call::Read | Call::Space) {
                    return None;
                }
                if here.name() == Some("kv-compact") {
                    while !deleted.load(Ordering::Acquire) {
                        std::thread::yield_now();
                    }
                    copy_directory(&from, &to.join(taken.fetch_add(1, Ordering::AcqRel).to_string()));
                    if call == Call::SyncDirectory && !directory_in(&from).join("segments").exists() {
                        removed.store(true, Ordering::Release);
                    }
                } else if here.name() == Some("kv-log") || !deleted.load(Ordering::Acquire) {
                    return None;
                }
                let full = for_good || !removed.load(Ordering::Acquire);
                (full && is_list(path) && call == Call::Write)
                    .then(|| (10, io::Error::from_raw_os_error(ENOSPC)))
            }
        };
        let rig = Rig::with(only_dead(root.path()), faulty(Box::new(faults))).unwrap();
        let dataset = rig.dataset("set");
        for key in 0..KEYS / 2 {
            rig.delete("set", &key.to_le_bytes()).unwrap();
        }
        deleted.store(true, Ordering::Release);
        let model: compacting::Model = (KEYS / 2..KEYS).map(|key| (key, value_of(key))).collect();
        until(&rig, "what is dead is removed", || {
            rig.figure("set", "compaction_removed_segments_count") > 0
        });
        assert_eq!(rig.figure("set", "compaction_failures_count"), 0);
        let directory = dataset.directory.clone();
        drop(dataset);
        drop(rig);
        let list = listed(&directory);
        assert_eq!(list.is_none(), for_good, "{list:?}");
        let taken = taken.load(Ordering::Acquire);
        assert!(taken >= 5, "{taken}");
        for snapshot in 0..taken {
            let at = snapshots.path().join(snapshot.to_string());
            for _ in 0..2 {
                let rig = Rig::with(only_dead(&at), Files::default()).unwrap();
                compacting::check(&rig, &model, KEYS);
            }
        }
        compacting::check(
            &Rig::with(only_dead(root.path()), Files::default()).unwrap(),
            &model,
            KEYS,
        );
        assert_eq!(listed(&directory), Some(numbers_in(&directory)));
    }
}

/// A list that is damaged, gone or of an older day: all that is there is served, and listed from then on.
#[test]
fn a_list_that_cannot_be_believed_is_made_anew() {
    type Harm<'a> = &'a dyn Fn(&Path);
    let cases: [(&str, u64, Harm<'_>); 6] = [
        ("flipped", 1, &|list| flip(list, 33, 0)),
        ("of another format", 1, &|list| flip(list, 4, 1)),
        ("emptied", 1, &|list| std::fs::write(list, []).unwrap()),
        ("cut", 1, &|list| {
            let bytes = std::fs::read(list).unwrap();
            std::fs::write(list, &bytes[..bytes.len() - 4]).unwrap();
        }),
        ("longer than any", 1, &|list| {
            std::fs::File::create(list).unwrap().set_len(1 << 40).unwrap();
        }),
        ("gone", 0, &|list| std::fs::remove_file(list).unwrap()),
    ];
    let (whole, segments) = crashed(KEYS);
    let unsealed = checked(whole.path(), false).0.notes;
    for (what, damaged, harm) in cases {
        for repaired in [false, true] {
            let root = scratch();
            copy_directory(whole.path(), root.path());
            let directory = directory_in(root.path());
            let list = directory.join("segments");
            harm(&list);
            let harmed = std::fs::metadata(&list).ok().map(|harmed| harmed.len());
            let (summary, findings) = checked(root.path(), false);
            assert_eq!(
                (summary.damage, summary.notes),
                (damaged, unsealed + 1 - damaged),
                "{what}"
            );
            assert!(findings.iter().any(|it| it.path == list), "{what}: {findings:#?}");
            if repaired {
                let (summary, findings) = checked(root.path(), true);
                assert!(summary.repaired > 0, "{what}: {findings:#?}");
                let (summary, _) = checked(root.path(), false);
                assert_eq!((summary.damage, summary.notes), (0, unsealed), "{what}");
            }
            let rig = Rig::with(only_dead(root.path()), Files::default()).unwrap();
            check_without(&rig, &segments, None);
            let figure = rig.figure("set", "damaged_segment_lists_count");
            assert_eq!(figure, if repaired { 0 } else { damaged }, "{what}");
            drop(rig);
            assert_eq!(listed(&directory), Some(numbers_in(&directory)), "{what}");
            let kept = std::fs::metadata(directory.join("segments.damaged")).ok();
            assert_eq!(kept.map(|kept| kept.len()), harmed, "{what}: it is kept");
            assert_eq!(checked(root.path(), false).1, [], "{what}");
            let rig = Rig::with(only_dead(root.path()), Files::default()).unwrap();
            assert_eq!(rig.figure("set", "damaged_segment_lists_count"), 0, "{what}");
        }
    }
}

/// A crash between a file and its place in the list: the next start lists it, so that it is missed from then on.
#[test]
fn a_file_that_is_not_listed_is_listed_at_the_next_start() {
    let (root, segments) = crashed(KEYS);
    let directory = directory_in(root.path());
    let mut older = numbers_in(&directory);
    let newest = older.pop_last().unwrap();
    let unlist = || segment_list::write(&Files::default(), &directory, id_of(&directory), &older).unwrap();
    unlist();
    let (summary, findings) = checked(root.path(), false);
    assert_eq!(summary.damage, 0, "{findings:#?}");
    let note = |it: &Finding| it.level == Level::Note && it.what.contains("not in the list of the segments");
    assert_eq!(findings.iter().find(|it| note(it)).unwrap().segment, Some(newest));
    checked(root.path(), true);
    assert_eq!(listed(&directory), Some(numbers_in(&directory)));
    unlist();
    let rig = Rig::with(only_dead(root.path()), Files::default()).unwrap();
    check_without(&rig, &segments, None);
    drop(rig);
    std::fs::remove_file(directory.join(format!("{newest:08x}.segment"))).unwrap();
    let rig = Rig::with(only_dead(root.path()), Files::default()).unwrap();
    check_without(&rig, &segments, Some(newest));
}

#[test]
fn an_empty_dataset_has_an_empty_list_and_misses_none() {
    let root = scratch();
    let rig = Rig::open(root.path());
    rig.store.create("set").unwrap();
    let directory = directory_in(root.path());
    assert_eq!(listed(&directory), Some(BTreeSet::new()));
    drop(rig);
    assert_eq!(checked(root.path(), false).1, []);
    // One of an older day has none.
    std::fs::remove_file(directory.join("segments")).unwrap();
    assert_eq!(checked(root.path(), false).0.notes, 1);
    for _ in 0..2 {
        let rig = Rig::open(root.path());
        assert_eq!(rig.figure("set", "lost_segments_count"), 0);
        assert_eq!(rig.figure("set", "segments_count"), 0);
    }
    assert_eq!(listed(&directory), Some(BTreeSet::new()));
    // A list that cannot be read now ends the start: what it would say is not known.
    let rig = Rig::open(root.path());
    rig.put("set", b"key", b"value").unwrap();
    drop(rig);
    let faults = |call: Call, path: &Path| {
        let hit = call == Call::Read && path.ends_with("segments");
        hit.then(|| (0, io::Error::from_raw_os_error(24)))
    };
    let error = Rig::with(options(root.path()), faulty(Box::new(faults)))
        .map(|_| ())
        .unwrap_err();
    assert_eq!(error.status(), Status::Io, "{error}");
}

/// A crash between a file and its place in the list may leave its name without a sync of the directory: that comes first.
#[test]
fn the_name_of_a_file_that_is_not_listed_is_durable_before_it_is() {
    let (root, _) = crashed(3);
    let directory = directory_in(root.path());
    segment_list::write(&Files::default(), &directory, id_of(&directory), &BTreeSet::new()).unwrap();
    let calls = Arc::new(Mutex::new(Vec::new()));
    let faults = {
        let (calls, directory) = (Arc::clone(&calls), directory.clone());
        move |call: Call, path: &Path| {
            if path == directory && call == Call::SyncDirectory || is_list(path) && call == Call::Create {
                calls.lock().unwrap().push(call);
            }
            None
        }
    };
    drop(Rig::with(only_dead(root.path()), faulty(Box::new(faults))).unwrap());
    let calls = calls.lock().unwrap();
    assert_eq!(calls[..2], [Call::SyncDirectory, Call::Create], "{calls:?}");
}

/// Has all lists fail to be written while it is `armed`, for want of room while there is a reserve, or always.
fn unlistable(root: &Path, reserve_bytes: u64) -> (Rig, Arc<AtomicBool>) {
    let armed = Arc::new(AtomicBool::new(false));
    let faults = {
        let (armed, reserve) = (Arc::clone(&armed), root.join("reserve"));
        move |call: Call, path: &Path| {
            let full = armed.load(Ordering::Acquire) && (reserve_bytes == 0 || reserve.exists());
            (full && is_list(path) && call == Call::Write).then(|| (10, io::Error::from_raw_os_error(ENOSPC)))
        }
    };
    let options = StoreOptions {
        compaction: Compaction {
            disk_reserve_bytes: reserve_bytes,
            ..only_dead(root).compaction
        },
        ..only_dead(root)
    };
    (Rig::with(options, faulty(Box::new(faults))).unwrap(), armed)
}

/// The list alone knows of what is gone: a full disk gives the reserve up for a shorter one, or keeps what is dead.
#[test]
fn a_full_disk_forgets_no_segment_that_is_gone() {
    for reserve_bytes in [0, 1 << 20] {
        let (root, segments) = crashed(KEYS);
        let directory = directory_in(root.path());
        let victim = &segment_files_in(&directory)[1];
        let gone = number(victim);
        std::fs::remove_file(victim).unwrap();
        let (rig, armed) = unlistable(root.path(), reserve_bytes);
        assert_eq!(root.path().join("reserve").exists(), reserve_bytes > 0);
        rig.put("set", b"more", b"more").unwrap();
        armed.store(true, Ordering::Release);
        let dead = segments[0];
        for (key, _) in (0_u64..).zip(&segments).filter(|(_, segment)| **segment == dead) {
            rig.delete("set", &key.to_le_bytes()).unwrap();
        }
        let removed = || rig.figure("set", "compaction_removed_segments_count");
        let failed = || rig.figure("set", "compaction_failures_count");
        if reserve_bytes == 0 {
            until(&rig, "a list does not fit", || failed() > 0);
            assert_eq!(removed(), 0);
            assert!(listed(&directory).unwrap().is_superset(&[gone, dead].into()));
            armed.store(false, Ordering::Release);
        }
        until(&rig, "what is dead is removed", || removed() > 0);
        if reserve_bytes > 0 {
            assert_eq!(failed(), 0);
        }
        let list = listed(&directory).unwrap();
        assert!(list.contains(&gone) && !list.contains(&dead), "{list:?}");
        drop(rig);
        let rig = Rig::with(only_dead(root.path()), Files::default()).unwrap();
        assert_eq!(rig.figure("set", "lost_segments_count"), 1);
        assert_eq!(rig.dataset("set").row(gone).unwrap().state, segment_state::LOST);
    }
}

/// A removal that failed behind the list is tried again: the list says it already.
#[test]
fn what_left_the_list_leaves_it_once() {
    let directory = scratch();
    let (id, numbers) = ([7; 16], BTreeSet::from([1, 2, 3]));
    segment_list::write(&Files::default(), directory.path(), id, &numbers).unwrap();
    let (list, _) = SegmentList::open(&Files::default(), directory.path(), id, numbers).unwrap();
    list.remove(&Files::default(), [2].into_iter()).unwrap();
    let none = |_: Call, _: &Path| Some((0, io::Error::from_raw_os_error(ENOSPC)));
    list.remove(&faulty(Box::new(none)), [2].into_iter()).unwrap();
    assert!(list.remove(&faulty(Box::new(none)), [3].into_iter()).is_err());
    // What is on the disk is not known after that.
    assert!(list.remove(&faulty(Box::new(none)), [3].into_iter()).is_err());
    list.remove(&Files::default(), [3].into_iter()).unwrap();
    let read = segment_list::read(&Files::default(), directory.path(), id);
    assert_eq!(read.unwrap(), Some([1].into()));
}

/// Whether a shorter list stands is not known then: no file goes until it does.
#[test]
fn no_file_is_removed_before_the_shorter_list_is_durable() {
    let (root, segments) = crashed(KEYS);
    let directory = directory_in(root.path());
    let (armed, hits) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let faults = {
        let (armed, hits, directory) = (Arc::clone(&armed), Arc::clone(&hits), directory.clone());
        move |call: Call, path: &Path| {
            let hit = armed.load(Ordering::Acquire)
                && std::thread::current().name() == Some("kv-compact")
                && (path, call) == (&directory, Call::SyncDirectory);
            hit.then(|| {
                hits.fetch_add(1, Ordering::AcqRel);
                (0, io::Error::from_raw_os_error(EIO))
            })
        }
    };
    let rig = Rig::with(only_dead(root.path()), faulty(Box::new(faults))).unwrap();
    rig.put("set", b"more", b"more").unwrap();
    armed.store(true, Ordering::Release);
    let before = numbers_in(&directory);
    let dead = segments[0];
    for (key, _) in (0_u64..).zip(&segments).filter(|(_, segment)| **segment == dead) {
        rig.delete("set", &key.to_le_bytes()).unwrap();
    }
    until(&rig, "it fails", || {
        rig.figure("set", "compaction_failures_count") > 0
    });
    assert!(hits.load(Ordering::Acquire) > 0);
    assert_eq!(numbers_in(&directory), before);
    // Either list is on the disk after a power cut: neither misses any.
    let crashed = scratch();
    copy_directory(root.path(), crashed.path());
    for _ in 0..2 {
        let rig = Rig::with(only_dead(crashed.path()), Files::default()).unwrap();
        assert_eq!(rig.figure("set", "lost_segments_count"), 0);
    }
    armed.store(false, Ordering::Release);
    until(&rig, "it is removed", || !numbers_in(&directory).contains(&dead));
    drop(rig);
    assert_eq!(listed(&directory), Some(numbers_in(&directory)));
}

/// It is served without, and the list is written by compaction later, or else at the end.
#[test]
fn a_list_that_cannot_be_written_at_the_start_is_written_later() {
    for compacts in [false, true] {
        let (root, segments) = crashed(KEYS);
        let directory = directory_in(root.path());
        std::fs::remove_file(directory.join("segments")).unwrap();
        let armed = Arc::new(AtomicBool::new(true));
        let faults = {
            let armed = Arc::clone(&armed);
            move |call: Call, path: &Path| {
                let own = std::thread::current().name() == Some("kv-compact");
                let fails = armed.load(Ordering::Acquire) || own && !compacts;
                (fails && is_list(path) && call == Call::Sync).then(|| (0, io::Error::from_raw_os_error(EIO)))
            }
        };
        let rig = Rig::with(only_dead(root.path()), faulty(Box::new(faults))).unwrap();
        check_without(&rig, &segments, None);
        assert_eq!(listed(&directory), None);
        armed.store(false, Ordering::Release);
        if compacts {
            until(&rig, "the list is written", || listed(&directory).is_some());
            assert_eq!(rig.figure("set", "compaction_failures_count"), 0);
        } else {
            assert_eq!(listed(&directory), None);
        }
        drop(rig);
        assert_eq!(listed(&directory), Some(numbers_in(&directory)), "{compacts}");
    }
}
