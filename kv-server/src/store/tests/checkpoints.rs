//! Checkpoints that list what is not so, or not all: nothing is believed that was not durable, nothing is lost.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use kv_proto::crc::crc32c;
use kv_proto::footer::{encode_list, parse_list};
use kv_proto::layout::{CheckpointHeader, FooterEntry, TRAILER_MAGIC};
use zerocopy::{FromBytes, IntoBytes};

use super::check::checked;
use super::compacting::only_dead;
use super::restart::{checkpoints, chunks, crashed_in_chunks, segments, value};
use super::support::{Rig, bytes, copy_directory, faulty, scratch};
use crate::store::files::{Call, Files};

const EIO: i32 = 5;
const ENOSPC: i32 = 28;

fn put(rig: &Rig, keys: std::ops::Range<u64>) {
    for key in keys {
        rig.put("set", &key.to_le_bytes(), &value(key)).unwrap();
    }
}

/// A disk that is full for segments while the switch is on, after so many bytes of a write.
fn filling_up(after_bytes: usize) -> (Arc<AtomicBool>, Files) {
    let full = Arc::new(AtomicBool::new(false));
    let switch = Arc::clone(&full);
    let faults = move |call: Call, path: &Path| {
        let hit = call == Call::Write
            && switch.load(Ordering::Relaxed)
            && path.extension().is_some_and(|it| it == "segment");
        hit.then(|| (after_bytes, io::Error::from_raw_os_error(ENOSPC)))
    };
    (full, faulty(Box::new(faults)))
}

/// Whether a store has all of these keys, at this start and at the next.
fn has_all(root: &Path, keys: u64) {
    for _ in 0..2 {
        let rig = Rig::open(root);
        assert_eq!(rig.figure("set", "keys_count"), keys);
        assert_eq!(rig.figure("set", "damaged_records_count"), 0);
        for key in 0..keys {
            assert_eq!(rig.get("set", &key.to_le_bytes()), Some(value(key)), "key {key}");
        }
    }
}

/// A record that found no room is written over, and the list has what is there now.
#[test]
fn what_was_not_durable_is_not_listed() {
    let directory = scratch();
    let (full, files) = filling_up(1000);
    let rig = Rig::with(only_dead(directory.path()), files).unwrap();
    rig.store.create("set").unwrap();
    put(&rig, 0..10);
    full.store(true, Ordering::Relaxed);
    assert!(rig.put("set", b"refused", &bytes(7, 5000)).is_err());
    full.store(false, Ordering::Relaxed);
    put(&rig, 10..200);
    let crashed = scratch();
    copy_directory(directory.path(), crashed.path());
    assert!(!checkpoints(crashed.path()).is_empty());
    let (summary, findings) = checked(crashed.path(), false);
    assert_eq!(summary.damage, 0, "{findings:#?}");
    assert_eq!(summary.keys, 200);
    has_all(crashed.path(), 200);
}

/// Without its first chunk the others say nothing of what lies before them.
#[test]
fn a_chunk_that_follows_on_nothing_is_not_believed() {
    let (crashed, path, chunks) = crashed_in_chunks();
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(path, &whole[chunks[1].0..]).unwrap();
    has_all(crashed.path(), 250);
}

/// Writes a chunk anew that lists something else, and validates.
fn edit_chunk(whole: &mut [u8], at: usize, edit: impl FnOnce(&mut CheckpointHeader, &mut [FooterEntry])) {
    const HEADER_LEN: usize = size_of::<CheckpointHeader>();
    let mut header = CheckpointHeader::read_from_prefix(&whole[at..]).unwrap().0;
    let len = header.body_len_bytes as usize;
    let mut body = vec![0_u64; len.div_ceil(8)];
    body.as_mut_bytes()[..len].copy_from_slice(&whole[at + HEADER_LEN..][..len]);
    let (entries, operations) = parse_list(&body.as_bytes()[..len]).unwrap();
    let mut entries = entries.to_vec();
    edit(&mut header, &mut entries);
    let mut list = vec![0; HEADER_LEN];
    encode_list(&entries, operations, &mut list);
    header.body_crc = crc32c(&list[HEADER_LEN..]);
    header.crc = crc32c(&header.as_bytes()[..HEADER_LEN - 4]);
    list[..HEADER_LEN].copy_from_slice(header.as_bytes());
    whole[at..at + list.len()].copy_from_slice(&list);
}

/// A chunk that lists a record before its begin, or says to end inside one: the tail would be walked from there.
#[test]
fn a_chunk_whose_records_lie_outside_of_it_is_not_believed() {
    type Edit = fn(&mut CheckpointHeader, &mut [FooterEntry]);
    let edits: [Edit; 2] = [
        |_, entries| entries[0].offset_units = 1,
        |header, _| header.covered_units -= 1,
    ];
    for edit in edits {
        let (crashed, path, chunks) = crashed_in_chunks();
        let mut whole = std::fs::read(&path).unwrap();
        edit_chunk(&mut whole, chunks.last().unwrap().0, edit);
        std::fs::write(path, whole).unwrap();
        has_all(crashed.path(), 250);
    }
}

/// A store whose active segment has a checkpoint, with faults.
fn with_checkpoint(root: &Path, files: Files) -> Rig {
    let rig = Rig::with(only_dead(root), files).unwrap();
    rig.store.create("set").unwrap();
    put(&rig, 0..200);
    rig
}

fn is_sealed(path: &Path) -> bool {
    let file = std::fs::read(path).unwrap();
    file[file.len() - 64..].starts_with(TRAILER_MAGIC.as_bytes())
}

/// A segment is not sealed with a list that lost some of its records.
#[test]
fn a_checkpoint_that_is_damaged_seals_nothing() {
    let directory = scratch();
    let rig = with_checkpoint(directory.path(), Files::default());
    let crashed = scratch();
    copy_directory(directory.path(), crashed.path());
    let path = checkpoints(directory.path())[0].clone();
    let mut whole = std::fs::read(&path).unwrap();
    let last = chunks(&whole).last().unwrap().0;
    whole[last + 80] ^= 1;
    std::fs::write(&path, whole).unwrap();
    drop(rig);
    assert!(!is_sealed(&segments(directory.path())[0]));
    has_all(directory.path(), 200);
    assert!(is_sealed(&segments(directory.path())[0]));
}

/// A segment that could not be sealed keeps its checkpoint: its tail is not longer than before.
#[test]
fn a_segment_that_could_not_be_sealed_keeps_its_checkpoint() {
    let directory = scratch();
    let (full, files) = filling_up(10);
    let rig = with_checkpoint(directory.path(), files);
    let kept = checkpoints(directory.path());
    assert!(!kept.is_empty());
    full.store(true, Ordering::Relaxed);
    drop(rig);
    assert!(!is_sealed(&segments(directory.path())[0]));
    assert_eq!(checkpoints(directory.path()), kept);
    has_all(directory.path(), 200);
}

/// Whatever failed at first, the name of a checkpoint is durable before it counts.
#[test]
fn a_checkpoint_that_failed_at_first_gets_a_durable_name() {
    for failing in [Call::Create, Call::Write, Call::Sync, Call::SyncDirectory] {
        let directory = scratch();
        let calls = Arc::new(Mutex::new(Vec::new()));
        let faults = {
            let calls = Arc::clone(&calls);
            move |call: Call, _: &Path| {
                if std::thread::current().name() != Some("kv-checkpoint") {
                    return None;
                }
                let mut calls = calls.lock().unwrap();
                let first = !calls.contains(&failing);
                calls.push(call);
                (first && call == failing).then(|| (10, io::Error::from_raw_os_error(EIO)))
            }
        };
        let rig = Rig::with(only_dead(directory.path()), faulty(Box::new(faults))).unwrap();
        rig.store.create("set").unwrap();
        put(&rig, 0..250);
        drop(rig);
        let calls = calls.lock().unwrap();
        let at = calls.iter().position(|call| *call == failing).unwrap();
        let again = [Call::Create, Call::Write, Call::Sync, Call::SyncDirectory];
        assert!(calls[at + 1..].starts_with(&again), "{failing:?}: {calls:?}");
        has_all(directory.path(), 250);
    }
}
