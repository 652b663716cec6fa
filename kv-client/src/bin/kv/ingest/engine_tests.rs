//! The engine against a dataset in memory: what is stored, what is not, and what a second run does.

use std::fs;
use std::path::PathBuf;

use super::*;
use crate::ingest::plan::{Rules, plan};
use crate::source::scan::{Tars, scan};
use crate::source::tar_index::tests::tar_of;
use crate::store::fake::Fake;

const DEFAULT: Rules = Rules {
    trust_length: false,
    overwrite: true,
};

struct Bench {
    dir: tempfile::TempDir,
    store: Fake,
    stop: Stop,
}

impl Bench {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            store: Fake::default(),
            stop: Stop::default(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        fs::write(self.path(name), bytes).unwrap();
    }

    fn sources(&self) -> Sources {
        scan(&[self.dir.path().into()], b"", Tars::Named)
    }

    fn ingest_from(&self, sources: &Sources, rules: Rules, jobs: usize) -> Tally {
        let steps = plan(&self.store, sources, rules, &Stop::default()).unwrap();
        let progress = Progress::new("storing", 0, 0, true);
        carry_out(
            &self.store,
            sources,
            &steps,
            rules.overwrite,
            jobs,
            &progress,
            &self.stop,
        )
    }

    fn ingest(&self, rules: Rules) -> Tally {
        self.ingest_from(&self.sources(), rules, 3)
    }
}

/// Bytes that differ from place to place, so that a shifted or mixed value shows.
fn bytes_of(seed: u8, len: usize) -> Vec<u8> {
    (0..len)
        .map(|index| (index as u32).wrapping_mul(2_654_435_761).to_le_bytes()[3] ^ seed)
        .collect()
}

#[test]
fn every_file_is_stored_once_and_a_second_run_stores_nothing() {
    let bench = Bench::new();
    for number in 0..300_u32 {
        bench.write(
            &format!("d{}/f{number}", number % 7),
            &bytes_of(number as u8, number as usize * 11),
        );
    }
    let large = bytes_of(9, BATCH_BYTES_MAX as usize + 12_345);
    bench.write("large", &large);
    bench.write("empty", b"");
    let first = bench.ingest(DEFAULT);
    assert_eq!(
        (first.stored, first.unchanged, first.failed, first.replaced),
        (302, 0, 0, 0)
    );
    assert_eq!(first.stored_bytes, bench.sources().bytes());
    assert_eq!(bench.store.value(b"large").unwrap(), large);
    assert_eq!(bench.store.value(b"empty").unwrap(), b"");
    assert_eq!(bench.store.value(b"d5/f12").unwrap(), bytes_of(12, 132));
    let second = bench.ingest(DEFAULT);
    assert_eq!((second.stored, second.unchanged), (0, 302));
    assert_eq!(bench.store.total_puts(), 302);
}

#[test]
fn members_of_shards_are_stored_under_their_paths() {
    let bench = Bench::new();
    let large = bytes_of(1, BATCH_BYTES_MAX as usize + 1);
    bench.write(
        "s.tar",
        &tar_of(&[(b"0.jpg", b"picture"), (b"0.cls", b""), (b"1.bin", &large)]),
    );
    let sources = scan(&[bench.path("s.tar")], b"train/", Tars::Named);
    assert_eq!(bench.ingest_from(&sources, DEFAULT, 1).stored, 3);
    assert_eq!(bench.store.value(b"train/0.jpg").unwrap(), b"picture");
    assert_eq!(bench.store.value(b"train/1.bin").unwrap(), large);
}

#[test]
fn a_value_of_the_same_length_that_differs_is_replaced() {
    let bench = Bench::new();
    let large = bytes_of(1, BATCH_BYTES_MAX as usize + 5);
    let mut stale = large.clone();
    *stale.last_mut().unwrap() ^= 1;
    bench.write("small", b"right");
    bench.write("large", &large);
    bench.write("same", b"same");
    bench.store.state().values = [
        ("small", b"wrong".to_vec()),
        ("large", stale),
        ("same", b"same".to_vec()),
    ]
    .map(|(key, value)| (key.into(), value))
    .into();
    let tally = bench.ingest(DEFAULT);
    assert_eq!((tally.stored, tally.replaced, tally.unchanged), (2, 2, 1));
    assert_eq!(bench.store.value(b"small").unwrap(), b"right");
    assert_eq!(bench.store.value(b"large").unwrap(), large);
}

#[test]
fn lengths_are_trusted_only_when_asked() {
    let bench = Bench::new();
    bench.write("a", b"right");
    bench.write("b", b"longer");
    bench.store.state().values = [("a", "wrong"), ("b", "short")]
        .map(|(key, value)| (key.into(), value.into()))
        .into();
    let tally = bench.ingest(Rules {
        trust_length: true,
        overwrite: true,
    });
    assert_eq!((tally.stored, tally.unchanged), (1, 1));
    assert_eq!(bench.store.value(b"a").unwrap(), b"wrong");
    assert_eq!(bench.store.value(b"b").unwrap(), b"longer");
    assert_eq!(bench.store.state().gets, 0);
}

#[test]
fn nothing_is_replaced_when_that_is_forbidden() {
    let bench = Bench::new();
    let large = bytes_of(1, BATCH_BYTES_MAX as usize + 5);
    bench.write("a", b"right");
    bench.write("b", b"longer");
    bench.write("c", b"equal");
    bench.write("d", &large);
    let other = bytes_of(2, large.len());
    bench.store.state().values = [
        ("a", b"wrong".to_vec()),
        ("b", b"short".to_vec()),
        ("c", b"equal".to_vec()),
        ("d", other.clone()),
    ]
    .map(|(key, value)| (key.into(), value))
    .into();
    let tally = bench.ingest(Rules {
        trust_length: false,
        overwrite: false,
    });
    assert_eq!((tally.stored, tally.unchanged, tally.failed), (0, 1, 3));
    assert!(
        tally
            .problems
            .iter()
            .all(|problem| problem.why.contains("--no-overwrite")),
        "{:?}",
        tally.problems
    );
    assert_eq!(bench.store.value(b"a").unwrap(), b"wrong");
    assert_eq!(bench.store.value(b"d").unwrap(), other);
}

#[test]
fn a_file_that_vanished_grew_or_cannot_be_read_fails_alone() {
    let bench = Bench::new();
    for name in ["gone", "good", "grew", "large"] {
        bench.write(name, b"12345");
    }
    let sources = bench.sources();
    fs::remove_file(bench.path("gone")).unwrap();
    bench.write("grew", b"123456");
    let tally = bench.ingest_from(&sources, DEFAULT, 1);
    assert_eq!((tally.stored, tally.failed), (2, 2));
    let of = |name: &str| {
        tally
            .problems
            .iter()
            .find(|problem| problem.origin.ends_with(name))
            .unwrap()
            .why
            .clone()
    };
    assert!(of("gone").contains("No such file"));
    assert!(of("grew").contains("from 5 to 6"));
    assert!(bench.store.value(b"grew").is_none());
}

#[test]
fn a_full_disk_stops_the_rest_and_a_later_run_stores_only_that() {
    let bench = Bench::new();
    for number in 0..500 {
        bench.write(&format!("f{number:03}"), &bytes_of(number as u8, 100));
    }
    bench.store.state().puts_left = Some(130);
    let first = bench.ingest(DEFAULT);
    assert!(bench.stop.failure().unwrap().contains("disk is full"));
    assert_eq!((first.stored, first.failed), (130, 0));
    bench.store.state().puts_left = None;
    let again = Bench {
        stop: Stop::default(),
        ..bench
    };
    let second = again.ingest(DEFAULT);
    assert_eq!((second.stored, second.unchanged), (370, 130));
    assert!(again.store.state().puts.values().all(|count| *count == 1));
    assert_eq!(again.store.total_puts(), 500);
}

#[test]
fn an_interruption_stops_after_what_is_in_flight_and_nothing_is_stored_twice() {
    let bench = Bench::new();
    for number in 0..1000 {
        bench.write(&format!("f{number:04}"), b"x");
    }
    let stop = bench.stop.clone();
    bench.store.state().after_put = Some(Box::new(move |count| {
        if count == 200 {
            stop.interrupt()
        }
    }));
    let first = bench.ingest(DEFAULT);
    assert_eq!(bench.stop.signal(), Some(2));
    // What each of the three threads had in flight is finished, and not one batch more.
    let most = 200 + 3 * BATCH_ITEMS_MAX as u64;
    assert!((200..=most).contains(&first.stored), "{}", first.stored);
    bench.store.state().after_put = None;
    let again = Bench {
        stop: Stop::default(),
        ..bench
    };
    let second = again.ingest(DEFAULT);
    assert_eq!(
        (second.stored, second.unchanged),
        (1000 - first.stored, first.stored)
    );
    assert_eq!(again.store.total_puts(), 1000);
}

#[test]
fn what_was_not_stored_is_tried_again_and_no_more_often_than_said() {
    let bench = Bench::new();
    bench.write("small", b"1");
    bench.write("large", &bytes_of(3, BATCH_BYTES_MAX as usize + 1));
    bench.write("never", b"2");
    let again = || StoreError::Again("the connection was lost".into());
    for (key, count) in [("small", 2), ("large", 2), ("never", 3)] {
        bench
            .store
            .state()
            .put_errors
            .insert(key.into(), (0..count).map(|_| again()).collect());
    }
    let tally = bench.ingest(DEFAULT);
    assert_eq!((tally.stored, tally.failed), (2, 1));
    assert!(tally.problems[0].origin.ends_with("never") && tally.problems[0].why.contains("lost"));
    assert_eq!(
        bench.store.value(b"large").unwrap().len(),
        BATCH_BYTES_MAX as usize + 1
    );
}

#[test]
fn an_unknown_outcome_is_looked_at_and_never_sent_anew() {
    let bench = Bench::new();
    let large = bytes_of(3, BATCH_BYTES_MAX as usize + 1);
    let longer = [&large[..], b"x"].concat();
    // What the key has afterwards, and whether the item counts as stored.
    let cases = [
        ("absent", &b"1"[..], None, false),
        ("large-absent", &large, None, false),
        ("large-longer", &large, Some(&longer[..]), false),
        ("large-stored", &large, Some(&large), true),
        ("newer", b"2", Some(b"another's"), false),
        ("stored", b"3", Some(b"3"), true),
    ];
    for (name, source, left, _) in cases {
        bench.write(name, source);
        let mut state = bench.store.state();
        let unknown = StoreError::Unknown("not known".into());
        state.put_errors.insert(name.into(), vec![unknown]);
        if let Some(left) = left {
            state.left_by_unknown.insert(name.into(), left.into());
        }
    }
    let tally = bench.ingest(DEFAULT);
    assert_eq!((tally.stored, tally.failed), (2, 4), "{:?}", tally.problems);
    assert_eq!(bench.store.total_puts(), 0, "no second put of any");
    assert!(bench.stop.failure().is_none());
    for (name, _, left, stored) in cases {
        assert_eq!(bench.store.value(name.as_bytes()).as_deref(), left, "{name}");
        let mut problems = tally.problems.iter();
        let problem = problems.find(|problem| problem.origin.ends_with(&format!("/{name}")));
        assert_eq!(problem.is_none(), stored, "{name}");
        let said = |problem: &Problem| {
            ["outcome unknown", "not known", "again"].map(|text| problem.why.contains(text))
        };
        assert!(
            problem.is_none_or(|problem| said(problem) == [true; 3]),
            "{problem:?}"
        );
    }
}

#[test]
fn a_stream_that_broke_before_its_last_bytes_were_read_is_sent_again() {
    let bench = Bench::new();
    let large = bytes_of(3, BATCH_BYTES_MAX as usize + 1);
    bench.write("large", &large);
    bench.store.state().broken_streams = 1;
    let tally = bench.ingest(DEFAULT);
    assert_eq!((tally.stored, tally.failed), (1, 0), "{:?}", tally.problems);
    assert_eq!(
        (bench.store.value(b"large"), bench.store.total_puts()),
        (Some(large), 1)
    );
}

#[test]
fn a_value_that_cannot_be_fetched_for_comparison_fails_alone() {
    let bench = Bench::new();
    bench.write("a", b"1");
    bench.write("b", b"2");
    bench.store.state().values = [("a", "1"), ("b", "2")]
        .map(|(key, value)| (key.into(), value.into()))
        .into();
    bench
        .store
        .state()
        .get_errors
        .insert(b"a".into(), StoreError::Item("torn".into()));
    let tally = bench.ingest(DEFAULT);
    assert_eq!((tally.unchanged, tally.failed), (1, 1));
    assert!(tally.problems[0].why.contains("torn"));
    bench
        .store
        .state()
        .get_errors
        .insert(b"a".into(), StoreError::Fatal("server gone".into()));
    bench.ingest(DEFAULT);
    assert_eq!(bench.stop.failure().unwrap(), "server gone");
}

#[test]
fn batches_hold_no_more_than_they_may() {
    let item = |len_bytes| Item {
        key: b"k".into(),
        input: 0,
        offset: 0,
        len_bytes,
    };
    let mut items: Vec<Item> = (0..100).map(|_| item(10)).collect();
    items.push(item(BATCH_BYTES_MAX + 1));
    items.push(item(BATCH_BYTES_MAX));
    items.push(item(1));
    let sources = Sources {
        items,
        ..Sources::default()
    };
    let progress = Progress::new("storing", 0, 0, true);
    let (tally, stop) = (Mutex::default(), Stop::default());
    let steps = &[][..];
    let work = Work {
        sources: &sources,
        steps,
        overwrite: true,
        queue: Mutex::default(),
        large_max: 1,
        tally,
        progress: &progress,
        stop: &stop,
    };
    let taken: Vec<Range<usize>> = std::iter::from_fn(|| work.take()).collect();
    assert_eq!(taken, [0..64, 64..100, 100..101, 101..102, 102..103]);
}

/// Four large files took all threads, and no short one was stored before they were.
#[test]
fn large_values_leave_a_thread_to_short_ones() {
    for (jobs, most) in [(4, 2), (3, 2), (2, 1)] {
        let bench = Bench::new();
        for number in 0..4 {
            bench.write(&format!("a{number}"), b"");
            let file = fs::File::options()
                .write(true)
                .open(bench.path(&format!("a{number}")));
            file.unwrap().set_len(PART_MAX_BYTES + 1 + number).unwrap();
        }
        for number in 0..200 {
            bench.write(&format!("z{number}"), &bytes_of(number, 10));
        }
        bench.store.state().streams_wait_for = 200;
        let tally = bench.ingest_from(&bench.sources(), DEFAULT, jobs);
        assert_eq!((tally.stored, bench.stop.failure()), (204, None));
        assert_eq!(bench.store.state().streams, (0, most), "{jobs} threads");
    }
}

/// A server that was busy for one deadline ended the whole run.
#[test]
fn a_busy_server_is_asked_again_and_not_for_ever() {
    let busy = |times: usize| vec![StoreError::Busy("the server was busy".into()); times];
    let large = bytes_of(1, BATCH_BYTES_MAX as usize + 1);
    for (key, value) in [("short", &b"short"[..]), ("large", &large)] {
        for (times, stored) in [(10, true), (BUSY_ATTEMPTS_MAX as usize, false)] {
            let bench = Bench::new();
            bench.write(key, value);
            bench.store.state().put_errors.insert(key.into(), busy(times));
            let tally = bench.ingest(DEFAULT);
            assert_eq!(tally.stored, u64::from(stored), "{key} {times}");
            assert_eq!(bench.store.value(key.as_bytes()).is_some(), stored);
            // What one value waits for the next would too.
            assert_eq!(bench.stop.failure().is_some(), !stored);
        }
    }
}

#[test]
fn a_busy_server_is_asked_as_long_as_the_run_gets_on() {
    let progress = Progress::new("storing", 0, 0, true);
    let mut tries = Tries::default();
    for _ in 0..3 * BUSY_ATTEMPTS_MAX {
        progress.bytes(1);
        assert!(tries.busy(&progress));
    }
    let more = (0..).take_while(|_| tries.busy(&progress)).count();
    assert_eq!(more, BUSY_ATTEMPTS_MAX as usize - 2);
}
