//! The engine against a dataset in memory: every kind of difference, and how many reads it took.

use super::*;
use crate::source::scan::{Tars, scan};
use crate::store::fake::Fake;
use std::fs;

const PLAIN: Mode = Mode {
    seed: 1,
    known: false,
    exact: false,
};

fn tree(files: &[(&str, &[u8])]) -> (tempfile::TempDir, Sources, Fake) {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        fs::write(dir.path().join(name), bytes).unwrap();
    }
    let sources = scan(&[dir.path().into()], b"", Tars::Named);
    let values: Vec<(&[u8], &[u8])> = files
        .iter()
        .map(|(name, bytes)| (name.as_bytes(), *bytes))
        .collect();
    (dir, sources, Fake::of(&values))
}

fn check(store: &Fake, sources: &Sources, mode: Mode) -> (Found, Stop) {
    let stop = Stop::default();
    let found = verify(
        store,
        sources,
        mode,
        &Progress::new("verifying", 0, 0, true),
        &stop,
    );
    (found, stop)
}

#[test]
fn the_order_is_random_whole_and_fixed_by_its_seed() {
    let order = shuffled(1000, 7);
    assert_eq!(order, shuffled(1000, 7));
    assert_ne!(order, shuffled(1000, 8));
    let in_place = order.iter().zip(0..).filter(|(one, two)| *one == two).count();
    assert!(in_place < 20, "{in_place}");
    let mut sorted = order;
    sorted.sort_unstable();
    assert!(sorted.iter().zip(0..).all(|(one, two)| *one == two));
    assert!(shuffled(0, 1).is_empty());
}

#[test]
fn equal_bytes_are_verified_and_reads_are_counted() {
    let long = vec![3; BATCH_BYTES_MAX as usize + 1];
    let (_dir, sources, store) = tree(&[("a", b"1"), ("b", b""), ("c", &long), ("d", b"4")]);
    let (found, _) = check(&store, &sources, PLAIN);
    assert_eq!((found.verified, found.verified_bytes), (4, long.len() as u64 + 2));
    assert_eq!((found.gets, found.reads_posted, found.fetched), (4, 12, 4));
    let (found, _) = check(&store, &sources, Mode { known: true, ..PLAIN });
    assert_eq!((found.verified, found.gets, found.reads_posted), (4, 4, 4));
}

#[test]
fn every_kind_of_difference_is_found_and_named() {
    let mut value = vec![5; 3 * PIECE_BYTES];
    let (_dir, sources, store) = tree(&[
        ("byte", &value),
        ("gone", b"x"),
        ("good", b"g"),
        ("length", b"123"),
        ("torn", b"t"),
    ]);
    value[2 * PIECE_BYTES + 17] = 6;
    {
        let mut state = store.state();
        state.values.insert(b"byte".into(), value);
        state.values.insert(b"length".into(), b"12".into());
        state.values.insert(b"more\n".into(), b"x".into());
        state.values.remove(&b"gone"[..]);
        state
            .get_errors
            .insert(b"torn".into(), StoreError::Item("torn 3 times".into()));
    }
    for known in [false, true] {
        let (found, stop) = check(
            &store,
            &sources,
            Mode {
                known,
                exact: true,
                seed: 3,
            },
        );
        let counts = (
            found.verified,
            found.mismatched,
            found.missing,
            found.failed,
            found.extra,
        );
        assert_eq!(counts, (1, 2, 1, 1, 1), "{:?}", found.problems);
        assert!(stop.failure().is_none());
        let said = found.problems.join("\n");
        for part in [
            "byte 2097169",
            "2 bytes are stored, its source has 3",
            "missing",
            "torn 3",
            "$'more\\n'",
        ] {
            assert!(said.contains(part), "{part}: {said}");
        }
    }
    let (found, _) = check(&store, &sources, PLAIN);
    assert_eq!(found.extra, 0);
}

#[test]
fn a_source_that_changed_is_a_failure_and_not_a_mismatch() {
    let (dir, sources, store) = tree(&[("a", b"123"), ("b", b"456")]);
    fs::write(dir.path().join("a"), b"1234").unwrap();
    let (found, _) = check(&store, &sources, PLAIN);
    assert_eq!((found.verified, found.mismatched, found.failed), (1, 0, 1));
    assert!(found.problems[0].contains("from 3 to 4"), "{:?}", found.problems);
}

#[test]
fn a_dataset_that_failed_stops_it() {
    let (_dir, sources, store) = tree(&[("a", b"1")]);
    store
        .state()
        .get_errors
        .insert(b"a".into(), StoreError::Fatal("server gone".into()));
    let (found, stop) = check(&store, &sources, PLAIN);
    assert_eq!(found.verified, 0);
    assert_eq!(stop.failure().unwrap(), "server gone");
}

/// Verifies the one item of `sources` in ranges of 1000 bytes.
fn check_in_ranges(store: &Fake, sources: &Sources, stop: &Stop) -> Found {
    let mut run = Run {
        store,
        sources,
        progress: &Progress::new("verifying", 0, 0, true),
        stop,
        whole_bytes_max: 1000,
        places: HashMap::new(),
        found: Found::default(),
    };
    run.batch(&[0], &mut Opener::new(sources), false);
    run.found
}

#[test]
fn a_value_in_ranges_is_compared_to_its_end_and_past_it() {
    let value: Vec<u8> = (0..2500_u32).map(|number| (number % 251) as u8).collect();
    let (_dir, sources, store) = tree(&[("a", &value)]);
    let found = check_in_ranges(&store, &sources, &Stop::default());
    assert_eq!((found.verified, found.fetched, found.fetched_bytes), (1, 1, 2500));
    let mut differs = value.clone();
    differs[2400] ^= 1;
    let cases = [
        (
            [&value[..], b"x"].concat(),
            "more bytes are stored, its source has 2500",
        ),
        (
            value[..2400].to_vec(),
            "2400 bytes are stored, its source has 2500",
        ),
        (differs, "at byte 2400"),
    ];
    for (stored, want) in cases {
        store.state().values.insert(b"a".into(), stored);
        let found = check_in_ranges(&store, &sources, &Stop::default());
        assert_eq!((found.verified, found.mismatched), (0, 1), "{want}");
        assert!(found.problems[0].contains(want), "{:?}", found.problems);
    }
}

#[test]
fn a_value_in_ranges_that_was_stopped_in_between_is_not_judged() {
    let (_dir, sources, store) = tree(&[("a", &[7; 2500])]);
    let stop = Stop::default();
    let at_once = stop.clone();
    store.state().at_get = Some(Box::new(move || at_once.interrupt()));
    let found = check_in_ranges(&store, &sources, &stop);
    assert_eq!(found.fetched_bytes, 1000, "stopped after the first range");
    let judged = found.verified + found.mismatched + found.missing + found.failed;
    assert_eq!((judged, found.fetched), (0, 0));
}
