//! The scrubber: what flipped on the device or in memory is named and counted, once, and never served.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex};

use kv_proto::layout::{Locator, RecordHeader};

use super::compacting::{eager, until};
use super::support::{Miss, Rig, bytes, faulty, options, scratch};
use crate::store::StoreOptions;
use crate::store::files::{Call, Files};
use crate::store::scrub::{Pace, pass};

/// Goes on as often as it is told to, and needs no clock.
pub(super) struct Turns {
    left: u64,
    taken: u64,
}

impl Turns {
    pub(super) const fn of(left: u64) -> Self {
        Self { left, taken: 0 }
    }
}

impl Pace for Turns {
    fn go_on(&mut self) -> bool {
        self.taken += 1;
        self.left = self.left.saturating_sub(1);
        self.left > 0
    }
}

/// A store whose first segment is sealed and loaded.
fn filled(root: &Path) -> Rig {
    let rig = Rig::open(root);
    rig.store.create("set").unwrap();
    for key in 0..40_u64 {
        rig.put("set", &key.to_le_bytes(), &bytes(key, 3000)).unwrap();
    }
    rig.put("set", b"large", &bytes(99, 200_000)).unwrap();
    drop(rig);
    Rig::open(root)
}

pub(super) fn figures(rig: &Rig) -> (u64, u64, u64) {
    (
        rig.figure("set", "scrub_passes_count"),
        rig.figure("set", "scrub_file_damage_count"),
        rig.figure("set", "scrub_image_damage_count"),
    )
}

pub(super) fn flip_in_file(rig: &Rig, at: &Locator, byte: u64) {
    let path = rig.dataset("set").segment_path(at.segment);
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let offset = at.offset_bytes() + byte;
    let mut was = [0];
    file.read_exact_at(&mut was, offset).unwrap();
    file.write_all_at(&[was[0] ^ 0x10], offset).unwrap();
}

pub(super) fn flip_in_image(rig: &Rig, at: &Locator, byte: u64) {
    let segment = rig.dataset("set").segment(at.segment).unwrap();
    let mut was = [0];
    assert!(segment.read(at.offset_bytes() + byte, &mut was));
    segment.write(at.offset_bytes() + byte, &[was[0] ^ 0x10]);
}

pub(super) fn place(rig: &Rig, key: u64) -> Locator {
    rig.dataset("set").lookup(&key.to_le_bytes()).unwrap().unwrap()
}

#[test]
fn what_flips_in_a_file_is_counted_once_and_served_from_memory() {
    let directory = scratch();
    let rig = filled(directory.path());
    let dataset = rig.dataset("set");
    assert!(pass(&dataset, &mut Turns::of(u64::MAX)));
    assert_eq!(figures(&rig), (1, 0, 0));
    let once = rig.figure("set", "scrub_read_bytes");
    assert!(once > 320_000, "{once}");
    // A header, a key, a value, and a byte that pads.
    for (key, byte) in [(1, 20), (2, 66), (3, 1000)] {
        flip_in_file(&rig, &place(&rig, key), byte);
    }
    let padded = place(&rig, 4);
    flip_in_file(&rig, &padded, padded.wire_len_bytes());
    for round in 2..4 {
        assert!(pass(&dataset, &mut Turns::of(u64::MAX)));
        assert_eq!(figures(&rig), (round, 4, 0));
    }
    for key in 0..40_u64 {
        assert_eq!(rig.get("set", &key.to_le_bytes()), Some(bytes(key, 3000)));
    }
}

#[test]
fn what_flips_in_memory_is_counted_and_refused() {
    let directory = scratch();
    let rig = filled(directory.path());
    let dataset = rig.dataset("set");
    flip_in_image(&rig, &place(&rig, 5), 500);
    flip_in_image(&rig, &place(&rig, 6), 40);
    for round in 1..3 {
        assert!(pass(&dataset, &mut Turns::of(u64::MAX)));
        assert_eq!(figures(&rig), (round, 0, 2));
    }
    let reader = rig.reader("set");
    for key in 0..40_u64 {
        let found = reader.lookup(&key.to_le_bytes());
        match key {
            5 | 6 => assert_eq!(found.unwrap_err(), Miss::Torn),
            _ => assert_eq!(found.unwrap().1, bytes(key, 3000)),
        }
    }
}

/// A list tells keys from their records: one of which a bit flipped would be that of nothing, or of another value.
#[test]
fn a_key_that_its_record_does_not_tell_any_more_is_not_listed() {
    let directory = scratch();
    let rig = filled(directory.path());
    flip_in_image(&rig, &place(&rig, 7), size_of::<RecordHeader>() as u64 + 3);
    let (entries, _, done) = rig.dataset("set").list(0, 100, 1 << 20).unwrap();
    let mut listed: Vec<Vec<u8>> = entries.into_iter().map(|entry| entry.key.0).collect();
    listed.sort();
    let others = (0..40_u64).filter(|key| *key != 7);
    let mut expected: Vec<Vec<u8>> = others.map(|key| key.to_le_bytes().to_vec()).collect();
    expected.push(b"large".to_vec());
    expected.sort();
    assert_eq!(listed, expected);
    assert!(done);
    // It is there, and whoever asks for it is told of the damage.
    assert_eq!(
        rig.reader("set").lookup(&7_u64.to_le_bytes()).unwrap_err(),
        Miss::Torn
    );
}

#[test]
fn a_pass_ends_where_its_pace_says_so() {
    let directory = scratch();
    let rig = filled(directory.path());
    let dataset = rig.dataset("set");
    for turns in [1, 2, 20, 48, 60] {
        let mut pace = Turns::of(turns);
        assert!(!pass(&dataset, &mut pace), "{turns}");
        assert!(pace.taken <= turns + 1, "{} of {turns}", pace.taken);
        assert_eq!(figures(&rig), (0, 0, 0));
    }
    let mut pace = Turns::of(u64::MAX);
    assert!(pass(&dataset, &mut pace));
    // Each record of the file, and each of the image: 40 values, 7 parts and a head.
    assert!(pace.taken >= 2 * 48, "{}", pace.taken);
}

/// A store of three sealed segments, of which no more than so many have images.
fn of_three(root: &Path, files: Files, loads: u64) -> Rig {
    for round in 0..3_u64 {
        let rig = Rig::open(root);
        if round == 0 {
            rig.store.create("set").unwrap();
        }
        for key in 0..10_u64 {
            let key = round * 10 + key;
            rig.put("set", &key.to_le_bytes(), &bytes(key, 3000)).unwrap();
        }
    }
    Rig::unloaded(options(root), files, loads).unwrap()
}

#[test]
fn every_sealed_segment_is_looked_at_with_an_image_or_without() {
    for loads in [0, u64::MAX] {
        let directory = scratch();
        let rig = of_three(directory.path(), Files::default(), loads);
        if loads > 0 {
            // From the files as they were.
            rig.wait_loaded();
        }
        for key in [1, 11, 21] {
            flip_in_file(&rig, &place(&rig, key), 1000);
        }
        assert!(pass(&rig.dataset("set"), &mut Turns::of(u64::MAX)));
        assert_eq!(figures(&rig), (1, 3, 0), "{loads}");
    }
}

#[test]
fn a_segment_that_is_lost_is_damage() {
    let directory = scratch();
    let rig = of_three(directory.path(), Files::default(), u64::MAX);
    let lost = rig.dataset("set").segment_path(place(&rig, 11).segment);
    drop(rig);
    std::fs::write(lost, b"nothing").unwrap();
    let rig = Rig::open(directory.path());
    assert_eq!(rig.figure("set", "lost_segments_count"), 1);
    for round in 1..3 {
        assert!(pass(&rig.dataset("set"), &mut Turns::of(u64::MAX)));
        assert_eq!(figures(&rig), (round, 1, 0));
    }
}

/// That there are too many open files says nothing of a file, and ends no pass.
#[test]
fn a_file_that_cannot_be_opened_now_is_no_damage() {
    let directory = scratch();
    let failing = Arc::new(Mutex::new(None));
    let path = Arc::clone(&failing);
    let faults = move |call: Call, at: &Path| {
        let hit = call == Call::Read && path.lock().unwrap().as_deref() == Some(at);
        hit.then(|| (0, std::io::Error::from_raw_os_error(24)))
    };
    let rig = of_three(directory.path(), faulty(Box::new(faults)), u64::MAX);
    rig.wait_loaded();
    flip_in_file(&rig, &place(&rig, 21), 1000);
    *failing.lock().unwrap() = Some(rig.dataset("set").segment_path(place(&rig, 1).segment));
    assert!(pass(&rig.dataset("set"), &mut Turns::of(u64::MAX)));
    assert_eq!(figures(&rig), (1, 1, 0));
}

/// Has a segment leave the table as soon as the scrubber looks at something.
struct Retiring<'a> {
    rig: &'a Rig,
    segment: u32,
}

impl Pace for Retiring<'_> {
    fn go_on(&mut self) -> bool {
        let dataset = self.rig.dataset("set");
        dataset.segments.write().unwrap().remove(&self.segment);
        true
    }
}

#[test]
fn what_was_compacted_away_meanwhile_is_no_damage() {
    let directory = scratch();
    let rig = of_three(directory.path(), Files::default(), u64::MAX);
    let at = place(&rig, 1);
    flip_in_file(&rig, &at, 1000);
    let mut pace = Retiring {
        rig: &rig,
        segment: at.segment,
    };
    assert!(pass(&rig.dataset("set"), &mut pace));
    assert_eq!(figures(&rig), (1, 0, 0));
}

/// A store closes at once, though its scrubber rests for hours.
#[test]
fn the_scrubber_ends_with_its_store() {
    let directory = scratch();
    for share in [0.0, 0.02, 1.0] {
        let options = StoreOptions {
            scrub_share: share,
            ..options(directory.path())
        };
        drop(Rig::with(options, Files::default()).unwrap());
    }
    let wrong = StoreOptions {
        scrub_share: 1.5,
        ..options(directory.path())
    };
    assert!(
        Rig::with(wrong, Files::default())
            .err()
            .unwrap()
            .to_string()
            .contains("scrubber")
    );
}

/// Has all of the first segment but one key die, and waits until compaction did as much as it can.
fn outlived_by(rig: &Rig, key: u64, figure: &str) {
    for other in (0..40_u64).filter(|other| *other != key) {
        rig.put("set", &other.to_le_bytes(), &bytes(other + 1000, 3000))
            .unwrap();
    }
    rig.put("set", b"large", b"small").unwrap();
    until(rig, figure, || rig.figure("set", figure) > 0);
}

fn others(rig: &Rig, key: u64) {
    for other in (0..40_u64).filter(|other| *other != key) {
        assert_eq!(
            rig.get("set", &other.to_le_bytes()),
            Some(bytes(other + 1000, 3000))
        );
    }
}

/// Compaction copies no record whose bytes are not those that were written: its segment is left alone, and its key gives
/// an error, also after a restart.
#[test]
fn compaction_copies_no_damaged_record() {
    let directory = scratch();
    let rig = filled(directory.path());
    let victim = place(&rig, 7);
    flip_in_file(&rig, &victim, 700);
    drop(rig);
    let rig = Rig::with(eager(directory.path()), Files::default()).unwrap();
    outlived_by(&rig, 7, "compaction_suspect_segments_count");
    let refused = |rig: &Rig| {
        assert_eq!(place(rig, 7).segment, victim.segment, "it is not copied");
        assert_eq!(
            rig.reader("set").lookup(&7_u64.to_le_bytes()).unwrap_err(),
            Miss::Torn
        );
        others(rig, 7);
    };
    refused(&rig);
    drop(rig);
    refused(&Rig::open(directory.path()));
}

/// A record that is damaged on the device, and sound in memory, is copied from there.
#[test]
fn compaction_saves_what_is_sound_in_memory() {
    let directory = scratch();
    drop(filled(directory.path()));
    let rig = Rig::with(eager(directory.path()), Files::default()).unwrap();
    let victim = place(&rig, 7);
    flip_in_file(&rig, &victim, 700);
    outlived_by(&rig, 7, "compaction_copied_bytes");
    assert_ne!(place(&rig, 7).segment, victim.segment);
    drop(rig);
    let rig = Rig::open(directory.path());
    assert_eq!(rig.get("set", &7_u64.to_le_bytes()), Some(bytes(7, 3000)));
    others(&rig, 7);
}
