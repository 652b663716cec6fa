//! What a start reads, what checkpoints say, and what is served before images are loaded.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use kv_proto::layout::{CheckpointHeader, FooterEntry, SEGMENT_MAX_BYTES, record_kind, segment_state};
use zerocopy::{FromBytes, IntoBytes};

use super::support::{
    Rig, bytes, copy_directory, faulty, figure_in, options, read_written, scratch, sealed_end, segment_files,
    segment_files_in,
};
use crate::store::files::{Call, Files};
use crate::store::footer::Ending;
use crate::store::limits::{CHECKPOINT_EVERY_BYTES, TAIL_BYTES_MAX};
use crate::store::{BeginPut, StoreOptions, segment};

const EIO: i32 = 5;
const ENFILE: i32 = 23;
const ENOSPC: i32 = 28;

pub(super) fn value(key: u64) -> Vec<u8> {
    bytes(key, 3000)
}

fn put_all(rig: &Rig, keys: std::ops::Range<u64>) {
    for key in keys {
        rig.put("set", &key.to_le_bytes(), &value(key)).unwrap();
    }
}

fn check_all(rig: &Rig, keys: std::ops::Range<u64>, what: &str) {
    for key in keys {
        assert_eq!(
            rig.get("set", &key.to_le_bytes()),
            Some(value(key)),
            "{what}: key {key}"
        );
    }
    assert_eq!(rig.figure("set", "damaged_records_count"), 0, "{what}");
    assert_eq!(rig.figure("set", "lost_segments_count"), 0, "{what}");
}

fn stat(rig: &Rig, name: &str) -> u64 {
    figure_in(&rig.store.stat(), name)
}

fn dataset_directory(root: &Path) -> PathBuf {
    let mut datasets = std::fs::read_dir(root.join("datasets")).unwrap();
    datasets.next().unwrap().unwrap().path()
}

pub(super) fn segments(root: &Path) -> Vec<PathBuf> {
    segment_files_in(&dataset_directory(root))
}

/// Checkpoints that are there.
pub(super) fn checkpoints(root: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dataset_directory(root)).unwrap();
    entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|it| it == "checkpoint"))
        .collect()
}

/// Where the chunks of a checkpoint begin and what they cover, and its end.
pub(super) fn chunks(file: &[u8]) -> Vec<(usize, u64)> {
    let (mut at, mut chunks) = (0, Vec::new());
    while at < file.len() {
        let header = CheckpointHeader::read_from_prefix(&file[at..]).unwrap().0;
        chunks.push((at, u64::from(header.covered_units) * 64));
        at += (64 + header.body_len_bytes as usize).next_multiple_of(64);
    }
    chunks
}

/// A store as a crash leaves it: some sealed segments, and an active one with a checkpoint of several chunks.
fn crashed(keys: u64) -> tempfile::TempDir {
    let running = scratch();
    let rig = Rig::open(running.path());
    rig.store.create("set").unwrap();
    put_all(&rig, 0..keys);
    let crashed = scratch();
    copy_directory(running.path(), crashed.path());
    crashed
}

/// The only checkpoint of what a crash left, and its chunks: three at least.
///
/// A thread of its own writes them, so on a machine that has no time for it there are fewer, and longer ones.
pub(super) fn crashed_in_chunks() -> (tempfile::TempDir, PathBuf, Vec<(usize, u64)>) {
    for _ in 0..100 {
        let crashed = crashed(250);
        if let Some(path) = checkpoints(crashed.path()).pop() {
            let chunks = chunks(&std::fs::read(&path).unwrap());
            if chunks.len() >= 3 {
                return (crashed, path, chunks);
            }
        }
    }
    panic!("checkpoints of three chunks are never written");
}

#[test]
fn a_start_reads_footers_checkpoint_and_tail_and_nothing_else() {
    let crashed = crashed(300 * 8 + 280);
    let files = segments(crashed.path());
    let (active, sealed) = files.split_last().unwrap();
    assert!(sealed.len() >= 7);
    let checkpoint = checkpoints(crashed.path());
    assert_eq!(checkpoint.len(), 1);
    let checkpoint = std::fs::read(&checkpoint[0]).unwrap();
    let covered = chunks(&checkpoint).last().unwrap().1;
    let active_len = read_written(active).len() as u64;
    let tail = active_len - covered;
    assert!(tail <= TAIL_BYTES_MAX + 4096, "{tail}");
    assert!(
        active_len > TAIL_BYTES_MAX + CHECKPOINT_EVERY_BYTES,
        "{active_len}"
    );
    let footers = footers_len(sealed);
    let all: u64 = files.iter().map(|file| read_written(file).len() as u64).sum();
    let rig = Rig::unloaded(options(crashed.path()), Files::default(), 0).unwrap();
    let read = stat(&rig, "file_read_bytes");
    // Superblock, list of datasets, description and list of segments; a header and what may be a trailer of each file; prefixes of
    // FOOTERs, which are read twice; what is written anew of the tail is read once more, and the rest of the page in which it ends.
    let small = 64 + 16 + 128 + 128 + 32 + files.len() as u64 * (4 + 128) + 4096;
    let footers_twice = |footers: u64| footers + footers / 1000 * 128;
    let most = small + footers_twice(footers) + checkpoint.len() as u64 + 2 * tail;
    assert!(read <= most, "{read} bytes were read, {most} are allowed");
    assert!(read < all / 4, "{read} of {all} bytes");
    assert_eq!(stat(&rig, "segments_loading_count"), files.len() as u64);
    assert_eq!(rig.figure("set", "keys_count"), 300 * 8 + 280);
    assert_eq!(rig.figure("set", "value_bytes"), (300 * 8 + 280) * 3000);
    rig.store.load_gate().allow(u64::MAX);
    rig.wait_loaded();
    check_all(&rig, 0..300 * 8 + 280, "loaded");
    assert!(checkpoints(crashed.path()).is_empty(), "it is sealed");
    // Sealed at that start, so the next reads no tail: one footer more instead, which may be longer than a short tail.
    drop(rig);
    let footers = footers_len(&segments(crashed.path()));
    let rig = Rig::unloaded(options(crashed.path()), Files::default(), 0).unwrap();
    let (read, most) = (stat(&rig, "file_read_bytes"), small + footers_twice(footers));
    assert!(read <= most, "{read} bytes were read, {most} are allowed");
}

/// Bytes of the footers of sealed segments.
fn footers_len(sealed: &[PathBuf]) -> u64 {
    let footer = |file: &PathBuf| {
        let file = std::fs::read(file).unwrap();
        file.len() - sealed_end(&file)
    };
    sealed.iter().map(footer).sum::<usize>() as u64
}

#[test]
fn a_checkpoint_torn_anywhere_costs_nothing_but_time() {
    let (crashed, path, _) = crashed_in_chunks();
    let whole = std::fs::read(&path).unwrap();
    let copy = scratch();
    copy_directory(crashed.path(), copy.path());
    let target = copy.path().join(path.strip_prefix(crashed.path()).unwrap());
    let segment = segments(copy.path())[0].clone();
    let records = std::fs::read(&segment).unwrap();
    let mut reads = Vec::new();
    for cut in (0..=whole.len()).step_by(64) {
        // Cut there; and whole, but for a byte there.
        for flipped in [false, true] {
            let mut torn = whole.clone();
            match torn.get_mut(cut) {
                Some(byte) if flipped => *byte ^= 1,
                _ => torn.truncate(cut),
            }
            std::fs::write(&target, torn).unwrap();
            std::fs::write(&segment, &records).unwrap();
            let rig = Rig::unloaded(options(copy.path()), Files::default(), 0).unwrap();
            assert_eq!(rig.figure("set", "keys_count"), 250, "cut at {cut}");
            assert_eq!(rig.figure("set", "damaged_records_count"), 0, "cut at {cut}");
            let client = 7 + (1 << 8);
            // As [`Rig::put`] numbers them.
            for operation in (1..500).step_by(2) {
                let begun = rig
                    .dataset("set")
                    .begin_put(client, operation, b"any", 1)
                    .unwrap();
                assert!(
                    matches!(begun, BeginPut::Done(_)),
                    "cut at {cut}: {operation} {begun:?}"
                );
            }
            reads.push(stat(&rig, "file_read_bytes"));
            if cut % 4096 == 0 {
                rig.store.load_gate().allow(u64::MAX);
                rig.wait_loaded();
                check_all(&rig, 0..250, &format!("cut at {cut}"));
            }
        }
    }
    // The more of it validates, the less is walked.
    assert!(reads.last() < reads.first(), "{reads:?}");
}

#[test]
fn a_checkpoint_that_outlived_its_sealing_is_removed() {
    let (crashed, path, _) = crashed_in_chunks();
    let whole = std::fs::read(&path).unwrap();
    drop(Rig::open(crashed.path()));
    assert!(!path.exists());
    let sealed = std::fs::read(&segments(crashed.path())[0]).unwrap();
    std::fs::write(&path, &whole).unwrap();
    // And one whose segment is not there at all.
    let orphan = path.with_file_name("0000ffff.checkpoint");
    std::fs::write(&orphan, &whole).unwrap();
    let rig = Rig::open(crashed.path());
    assert!(!path.exists() && !orphan.exists());
    check_all(&rig, 0..250, "sealed");
    assert_eq!(std::fs::read(&segments(crashed.path())[0]).unwrap(), sealed);
}

/// What a checkpoint covers is not walked: a file that ends before that has lost durable bytes.
#[test]
fn a_file_that_ends_below_its_checkpoint_is_damaged() {
    let (crashed, _, covered) = crashed_in_chunks();
    let segment = segments(crashed.path())[0].clone();
    let whole = std::fs::read(&segment).unwrap();
    let cut = covered[0].1 as usize;
    assert!(cut < covered.last().unwrap().1 as usize);
    std::fs::write(&segment, &whole[..cut]).unwrap();
    let rig = Rig::open(crashed.path());
    assert_eq!(rig.figure("set", "damaged_records_count"), 1);
    assert_eq!(rig.get("set", &0_u64.to_le_bytes()), Some(value(0)));
    // Named, and not served.
    let last = covered.last().unwrap().1 / 3072 - 2;
    assert!(rig.dataset("set").lookup(&last.to_le_bytes()).unwrap().is_some());
    assert!(rig.reader("set").lookup(&last.to_le_bytes()).is_err());
}

/// Where no checkpoint can be written the tail stays short all the same: the segment ends early.
#[test]
fn without_checkpoints_segments_end_early() {
    let directory = scratch();
    let faults = |call: Call, path: &Path| {
        let hit = call == Call::Write && path.extension().is_some_and(|it| it == "checkpoint");
        hit.then(|| (1000, io::Error::from_raw_os_error(ENOSPC)))
    };
    let rig = Rig::with(options(directory.path()), faulty(Box::new(faults))).unwrap();
    rig.store.create("set").unwrap();
    put_all(&rig, 0..600);
    let files = segment_files(&rig.dataset("set"));
    assert!(files.len() >= 3, "{}", files.len());
    for file in &files[..files.len() - 1] {
        let end = sealed_end(&std::fs::read(file).unwrap()) as u64;
        assert!(end <= TAIL_BYTES_MAX + 8192, "{end}");
    }
    check_all(&rig, 0..600, "running");
    let crashed = scratch();
    copy_directory(directory.path(), crashed.path());
    check_all(&Rig::open(crashed.path()), 0..600, "after a crash");
}

fn states(rig: &Rig) -> Vec<(u32, u8, u32)> {
    let (rows, next) = rig.dataset("set").rows(1, 4000);
    assert_eq!(next, 0);
    rows.iter()
        .map(|row| (row.segment, row.state, row.generation))
        .collect()
}

#[test]
fn a_dataset_is_served_while_its_images_are_loaded() {
    let crashed = crashed(1000);
    let rig = Rig::unloaded(options(crashed.path()), Files::default(), 0).unwrap();
    let dataset = rig.dataset("set");
    let before = states(&rig);
    assert!(before.len() >= 3);
    for (segment, state, _) in &before {
        assert_eq!(*state, segment_state::LOADING, "{segment}");
        assert!(dataset.row(*segment).unwrap().extents.is_empty());
    }
    // Looked up, listed, overwritten and deleted, by the keys in the files.
    for key in 0..1000_u64 {
        assert!(dataset.lookup(&key.to_le_bytes()).unwrap().is_some());
    }
    assert_eq!(dataset.lookup(b"not there").unwrap(), None);
    let mut listed = 0;
    let (mut cursor, mut last) = (0, false);
    while !last {
        let page;
        (page, cursor, last) = dataset.list(cursor, 100, 4000).unwrap();
        assert!(page.iter().all(|entry| entry.value_len_bytes == 3000));
        listed += page.len();
    }
    assert_eq!(listed, 1000);
    assert!(rig.put("set", &1_u64.to_le_bytes(), b"newer").unwrap().existed);
    assert!(rig.delete("set", &2_u64.to_le_bytes()).unwrap().existed);
    assert!(!rig.delete("set", b"not there").unwrap().existed);
    assert_eq!(rig.figure("set", "keys_count"), 999);
    assert_eq!(rig.figure("set", "value_bytes"), 998 * 3000 + 5);
    assert_eq!(
        rig.get("set", &1_u64.to_le_bytes()),
        Some(b"newer".to_vec()),
        "in the active segment"
    );

    // The newest comes first, unless another is asked for.
    let oldest = before[0].0;
    dataset.load(1, oldest);
    let changes = rig.store.retired();
    rig.store.load_gate().allow(1);
    wait(|| stat(&rig, "segments_loading_count") == before.len() as u64 - 1);
    let row = dataset.row(oldest).unwrap();
    assert_eq!((row.state, row.generation), (segment_state::SEALED, 2));
    assert_eq!(rig.get("set", &0_u64.to_le_bytes()), Some(value(0)));
    let change = dataset.changes(changes, 4000).unwrap();
    assert_eq!(change.rows, [row]);
    rig.store.load_gate().allow(1);
    wait(|| stat(&rig, "segments_loading_count") == before.len() as u64 - 2);
    assert_eq!(
        dataset.row(before.last().unwrap().0).unwrap().state,
        segment_state::SEALED
    );
    assert_eq!(dataset.row(before[1].0).unwrap().state, segment_state::LOADING);

    // A crash in the middle of it changes nothing.
    let contents: Vec<_> = segments(crashed.path())
        .iter()
        .map(|it| std::fs::read(it).unwrap())
        .collect();
    drop((dataset, rig));
    for (file, contents) in segments(crashed.path()).iter().zip(&contents[..before.len()]) {
        assert!(
            std::fs::read(file).unwrap() == *contents,
            "a sealed file never changes"
        );
    }
    let rig = Rig::open(crashed.path());
    check_all(&rig, 3..1000, "after all");
    assert_eq!(rig.get("set", &1_u64.to_le_bytes()), Some(b"newer".to_vec()));
    assert_eq!(rig.get("set", &2_u64.to_le_bytes()), None);
}

/// Who asked for all of them had the segments of everybody else loaded last.
#[test]
fn sessions_that_ask_for_segments_take_turns() {
    let crashed = crashed(2000);
    let rig = Rig::unloaded(options(crashed.path()), Files::default(), 0).unwrap();
    let dataset = rig.dataset("set");
    let all: Vec<u32> = states(&rig).iter().map(|(segment, ..)| *segment).collect();
    let count = all.len();
    assert!(count >= 6);
    for segment in &all {
        dataset.load(1, *segment);
    }
    let [modest, other] = [all[count - 2], all[count - 3]];
    dataset.load(2, modest);
    dataset.load(3, other);
    let loaded = |segments: &[u32]| {
        let is_loaded = |segment: &u32| dataset.row(*segment).unwrap().state == segment_state::SEALED;
        segments.iter().all(is_loaded)
    };
    for (allowed, segment) in [all[0], modest, other, all[1], all[2]].into_iter().enumerate() {
        rig.store.load_gate().allow(1);
        wait(|| stat(&rig, "segments_loading_count") == (count - allowed - 1) as u64);
        assert!(loaded(&[segment]), "{allowed}: {segment} of {:?}", states(&rig));
    }
}

fn wait(until: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !until() {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A server that is told to stop does not wait for images, and one that is killed while it loads starts again.
#[test]
fn a_store_that_is_loading_can_be_closed() {
    let crashed = crashed(1000);
    for loads in [0, 1, 2, u64::MAX] {
        let rig = Rig::unloaded(options(crashed.path()), Files::default(), loads).unwrap();
        let copy = scratch();
        copy_directory(crashed.path(), copy.path());
        drop(rig);
        check_all(&Rig::open(copy.path()), 0..1000, "killed while loading");
    }
    check_all(&Rig::open(crashed.path()), 0..1000, "closed while loading");
}

#[test]
fn a_file_that_is_lost_while_it_is_loaded_is_named_and_the_rest_is_served() {
    let crashed = crashed(700);
    let victim = segments(crashed.path())[0].clone();
    let armed = Arc::new(AtomicBool::new(false));
    let faults = {
        let (armed, victim) = (Arc::clone(&armed), victim.clone());
        move |call: Call, path: &Path| {
            let hit = armed.load(Ordering::Relaxed) && call == Call::Read && path == victim;
            hit.then(|| (0, io::Error::from_raw_os_error(EIO)))
        }
    };
    let rig = Rig::unloaded(options(crashed.path()), faulty(Box::new(faults)), 0).unwrap();
    let dataset = rig.dataset("set");
    let located: Vec<_> = (0..700_u64)
        .map(|key| dataset.lookup(&key.to_le_bytes()).unwrap().unwrap())
        .collect();
    armed.store(true, Ordering::Relaxed);
    rig.store.load_gate().allow(u64::MAX);
    rig.wait_loaded();
    let gone = states(&rig)[0];
    assert_eq!(gone.1, segment_state::LOST);
    assert_eq!(rig.figure("set", "lost_segments_count"), 1);
    for (key, at) in (0_u64..).zip(&located) {
        let read = rig.reader("set").lookup(&key.to_le_bytes());
        assert_eq!(read.is_ok(), at.segment != gone.0, "key {key}: {read:?}");
    }
    // What was lost can be replaced.
    assert_eq!(located[0].segment, gone.0);
    assert!(rig.put("set", &0_u64.to_le_bytes(), b"new").unwrap().existed);
    assert_eq!(rig.get("set", &0_u64.to_le_bytes()), Some(b"new".to_vec()));
    assert_eq!(rig.figure("set", "keys_count"), 700);
}

#[test]
fn an_image_that_cannot_be_loaded_now_is_tried_again() {
    let crashed = crashed(700);
    let victim = segments(crashed.path())[0].clone();
    let (armed, met) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let faults = {
        let (armed, met) = (Arc::clone(&armed), Arc::clone(&met));
        move |call: Call, path: &Path| {
            let hit = armed.load(Ordering::Relaxed)
                && call == Call::Read
                && path == victim
                && met.fetch_add(1, Ordering::Relaxed) < 5;
            hit.then(|| (0, io::Error::from_raw_os_error(ENFILE)))
        }
    };
    let rig = Rig::unloaded(options(crashed.path()), faulty(Box::new(faults)), 0).unwrap();
    armed.store(true, Ordering::Relaxed);
    rig.store.load_gate().allow(u64::MAX);
    rig.wait_loaded();
    assert!(met.load(Ordering::Relaxed) > 5);
    check_all(&rig, 0..700, "loaded at last");
}

/// The memory of images is taken at the start, also of those that come later.
#[test]
fn images_that_do_not_fit_are_refused_before_any_is_loaded() {
    let crashed = crashed(1000);
    let rig = Rig::unloaded(options(crashed.path()), Files::default(), 0).unwrap();
    let unloaded = (rig.figure("set", "images_bytes"), stat(&rig, "memory_used_bytes"));
    assert!(unloaded.0 >= 3_000_000, "{}", unloaded.0);
    rig.store.load_gate().allow(u64::MAX);
    rig.wait_loaded();
    let loaded = (rig.figure("set", "images_bytes"), stat(&rig, "memory_used_bytes"));
    assert_eq!(unloaded, loaded);
    drop(rig);
    let small = StoreOptions {
        memory_budget_bytes: 2_000_000,
        ..options(crashed.path())
    };
    let error = Rig::unloaded(small, Files::default(), 0).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("memory"), "{error}");
}

/// What a start costs with 10 million records of 256 bytes: their places are not there, for nothing reads them.
#[test]
#[ignore = "measures: run it alone, with --nocapture"]
fn by_hand_ten_million_records() {
    const COUNT: u64 = 10_000_000;
    const EACH: u64 = 4_000_000;
    let directory = tempfile::tempdir().unwrap();
    let rig = Rig::open(directory.path());
    let id = rig.store.create("set").unwrap();
    let home = rig.dataset("set").directory.clone();
    drop(rig);
    let mut state = 1_u64;
    let mut random = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state ^ (state >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9)
    };
    let files = Files::default();
    let mut paths = Vec::new();
    for (number, first) in (100..).zip((0..COUNT).step_by(EACH as usize)) {
        let path = crate::store::segment_path(&home, number);
        let header = segment::header(number, 9, id, 1, SEGMENT_MAX_BYTES);
        let file = files.replace(&path, header.as_bytes()).unwrap();
        let count = EACH.min(COUNT - first);
        let end = 64 + count * 256;
        files.truncate(&file, end).unwrap();
        let entries: Vec<_> = (0..count)
            .map(|index| FooterEntry {
                hash: random(),
                hash_high: random(),
                sequence: first + index + 1,
                offset_units: (1 + index * 4) as u32,
                value_len_bytes: 128,
                part: 0,
                key_len_bytes: 16,
                kind: record_kind::VALUE,
                reserved: 0,
            })
            .collect();
        let ending = Ending {
            files: &files,
            file: &file,
            number,
            identity: 9,
            cut: false,
            whole_len: 0,
            end,
            sequences: Some((first + 1, first + count)),
            footer_entries: 64 << 10,
        };
        ending
            .seal(|footers| footers.push(&entries), &[], || false)
            .unwrap();
        paths.push((path, end));
    }
    for round in 0..3 {
        let began = Instant::now();
        let mut map = std::collections::HashMap::new();
        let mut buffer = vec![0; 1 << 20];
        for (path, end) in &paths {
            let file = files.open(path).unwrap();
            let len = files.len(&file).unwrap();
            for at in (*end..len).step_by(buffer.len()) {
                let some = (len - at).min(buffer.len() as u64) as usize;
                files.read_at(&file, &mut buffer[..some], at).unwrap();
                // As many keys as come.
                for entry in buffer[..some / 40 * 40].chunks_exact(40) {
                    map.insert(u64::from_le_bytes(entry[..8].try_into().unwrap()), at);
                }
            }
        }
        let reference = began.elapsed();
        let keys = map.len();
        drop(map);
        let options = StoreOptions {
            memory_budget_bytes: 16 << 30,
            ..options(directory.path())
        };
        let began = Instant::now();
        let rig = Rig::unloaded(options, Files::default(), 0).unwrap();
        let start = began.elapsed();
        assert_eq!(rig.figure("set", "keys_count"), COUNT);
        println!("round {round}: start {start:?}, reading and a map of {keys} keys {reference:?}");
    }
}

/// Records in segments that are not loaded are read from files: who asks the index meanwhile does not wait for that.
#[test]
fn no_file_is_read_while_the_index_cannot_be_asked() {
    let directory = scratch();
    {
        let rig = Rig::open(directory.path());
        rig.store.create("set").unwrap();
        for key in 0..60_u64 {
            let len = if key % 5 == 0 { 100_000 } else { 3000 };
            rig.put("set", &key.to_le_bytes(), &bytes(key, len)).unwrap();
        }
    }
    type Set = Arc<crate::store::Dataset>;
    let dataset: Arc<OnceLock<Set>> = Arc::default();
    let (reads, locked) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let faults = {
        let (dataset, reads, locked) = (Arc::clone(&dataset), Arc::clone(&reads), Arc::clone(&locked));
        move |call: Call, path: &Path| {
            let own = std::thread::current().name() == Some("kv-log");
            let segment = path.extension().is_some_and(|extension| extension == "segment");
            if let Some(dataset) = dataset.get()
                && own
                && segment
                && call == Call::Read
            {
                reads.fetch_add(1, Ordering::Relaxed);
                locked.fetch_add(usize::from(dataset.index.try_read().is_err()), Ordering::Relaxed);
            }
            None
        }
    };
    // What is left of the segments is copied too.
    let options = super::compacting::eager(directory.path());
    let rig = Rig::unloaded(options, faulty(Box::new(faults)), 0).unwrap();
    assert!(dataset.set(rig.dataset("set")).is_ok());
    for key in 0..50_u64 {
        if key % 3 == 0 {
            rig.delete("set", &key.to_le_bytes()).unwrap();
        } else {
            rig.put("set", &key.to_le_bytes(), &bytes(key, 200)).unwrap();
        }
    }
    super::compacting::until(&rig, "what lives is copied", || {
        rig.figure("set", "compaction_copied_bytes") > 0
    });
    drop(rig);
    assert!(reads.load(Ordering::Relaxed) > 50);
    assert_eq!(
        locked.load(Ordering::Relaxed),
        0,
        "of {}",
        reads.load(Ordering::Relaxed)
    );
}
