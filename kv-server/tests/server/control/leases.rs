//! Leases end, laggards are fenced, and memory is released only then.

use std::time::{Duration, Instant};

use crate::common::{Raw, Setup, TestFabric, eventually};
use kv_proto::control::{Bytes, Request, Status};

fn pause(ms: u64) {
    std::thread::sleep(Duration::from_millis(ms));
}

/// Renews, acknowledging all that is told, for so long.
fn live(raw: &mut Raw, mut retired: u64, ms: u64) -> u64 {
    let until = Instant::now() + Duration::from_millis(ms);
    while Instant::now() < until {
        retired = raw.renew(retired).0;
        pause(20);
    }
    retired
}

pub(crate) fn a_session_that_is_silent_past_its_lease_is_fenced<F: TestFabric>() {
    let mut setup = Setup::new();
    setup.options.lease_ms = 400 * F::SLOWER as u32;
    let server = setup.start::<F>();
    let (mut silent, opened) = server.with_dataset("cats");
    let (_, locator) = silent.put(opened.dataset, b"k", b"value").unwrap();
    let token = silent.tokens(opened.dataset, 1)[0];
    let mut data = silent.data(token).unwrap();
    silent.get(&mut *data, opened.dataset, &locator).unwrap();
    let unused = silent.tokens(opened.dataset, 1)[0];
    let mut other = server.session(&server.setup.reader);
    live(&mut other, 0, 700 * F::SLOWER);
    assert_eq!(other.figure([0; 16], "fenced_count"), 1);
    assert_eq!(other.figure([0; 16], "sessions_count"), 1);
    assert_eq!(other.figure([0; 16], "data_connections_count"), 0);
    assert!(silent.is_over());
    assert!(silent.data(unused).is_err());
}

pub(crate) fn only_renewals_renew<F: TestFabric>() {
    let mut setup = Setup::new();
    setup.options.lease_ms = 400 * F::SLOWER as u32;
    let server = setup.start::<F>();
    let mut raw = server.session(&server.setup.reader);
    let begun = Instant::now();
    // Talking is not renewing.
    while !raw.is_over() {
        assert!(
            begun.elapsed() < Duration::from_secs(10 * F::SLOWER),
            "it outlived its lease"
        );
        let number = raw.send(&Request::Stat { dataset: [0; 16] });
        let _ = raw.answer(number);
        pause(10);
    }
    assert!(begun.elapsed() >= Duration::from_millis(350 * F::SLOWER));
    let mut renewing = server.session(&server.setup.reader);
    live(&mut renewing, 0, 1_500 * F::SLOWER);
    assert!(!renewing.is_over());
}

pub(crate) fn who_acknowledges_nothing_is_fenced_however_often_it_renews<F: TestFabric>() {
    let mut setup = Setup::new();
    setup.options.lease_ms = 2_000 * F::SLOWER as u32;
    setup.options.max_lag_ms = 500 * F::SLOWER as u32;
    let server = setup.start::<F>();
    let (mut admin, opened) = server.with_dataset("cats");
    let mut lagging = server.session(&server.setup.reader);
    let held = lagging.open("cats");
    let mut good = server.session(&server.setup.writer);
    let mut acknowledged = good.open("cats").retired;
    admin.put(opened.dataset, b"k", b"value").unwrap();
    let told = lagging.renew(held.retired).0;
    assert!(told > held.retired, "a first segment is news");
    let begun = Instant::now();
    while !lagging.is_over() {
        assert!(
            begun.elapsed() < Duration::from_secs(10 * F::SLOWER),
            "it was not fenced"
        );
        let number = lagging.send(&Request::Renew {
            retired: held.retired,
        });
        let _ = lagging.answer(number);
        acknowledged = good.renew(acknowledged).0;
        pause(20);
    }
    assert!(
        begun.elapsed() >= Duration::from_millis(400),
        "{:?}",
        begun.elapsed()
    );
    good.renew(acknowledged);
    assert!(good.figure([0; 16], "fenced_count") >= 1);
}

pub(crate) fn a_put_that_is_silent_too_long_is_dropped<F: TestFabric>() {
    let mut setup = Setup::new();
    setup.options.max_lag_ms = 300 * F::SLOWER as u32;
    let server = setup.start::<F>();
    let (mut raw, opened) = server.with_dataset("cats");
    raw.alloc(opened.dataset, 1, b"k", 100).unwrap();
    live(&mut raw, opened.retired, 600 * F::SLOWER);
    let append = Request::Append {
        operation: 1,
        len_bytes: 1,
    };
    assert_eq!(raw.refused(&append), Status::Stale);
    assert_eq!(raw.figure([0; 16], "puts_in_progress_count"), 0);
}

/// Drops the dataset "cats" and returns how long its memory was kept.
fn kept_for(admin: &mut Raw) -> Duration {
    let used = admin.figure([0; 16], "memory_used_bytes");
    admin
        .ask(&Request::Drop {
            name: Bytes::from(&b"cats"[..]),
        })
        .unwrap();
    let begun = Instant::now();
    let mut retired = 0;
    eventually("the memory is freed", || {
        retired = admin.renew(retired).0;
        (admin.figure([0; 16], "memory_used_bytes") < used).then_some(())
    });
    begun.elapsed()
}

pub(crate) fn memory_waits_for_the_lease_of_who_vanished_and_not_for_who_took_leave<F: TestFabric>() {
    let ms = |ms: u64| Duration::from_millis(ms * F::SLOWER);
    for bye in [false, true] {
        let mut setup = Setup::new();
        setup.options.lease_ms = 1_500 * F::SLOWER as u32;
        let server = setup.start::<F>();
        let mut admin = server.session(&server.setup.admin);
        admin.create("cats");
        let mut writer = server.session(&server.setup.writer);
        let dataset = writer.open("cats").dataset;
        writer.put(dataset, b"k", &[7; 200_000]).unwrap();
        if bye {
            writer.ask(&Request::Bye {}).unwrap();
        }
        drop(writer);
        eventually("the session is over", || {
            (admin.figure([0; 16], "sessions_count") == 1).then_some(())
        });
        let kept = kept_for(&mut admin);
        // Shared memory cannot be taken away: a reader that vanished may go on until its lease ends. A queue pair can
        // be destroyed.
        if bye || server.fabric.fences() {
            assert!(kept < ms(600), "bye {bye}: freed after {kept:?}");
        } else {
            assert!(kept >= ms(600) && kept < ms(5_000), "freed after {kept:?}");
        }
    }
}

/// A connection that was made before its session was fenced reads nothing after.
pub(crate) fn a_fenced_reader_reads_nothing<F: TestFabric>() {
    let mut setup = Setup::new();
    setup.options.lease_ms = 400 * F::SLOWER as u32;
    let server = setup.start::<F>();
    let (mut silent, opened) = server.with_dataset("cats");
    let (_, locator) = silent.put(opened.dataset, b"k", b"value").unwrap();
    let token = silent.tokens(opened.dataset, 1)[0];
    let mut data = silent.data(token).unwrap();
    let from = silent.place(opened.dataset, &locator);
    let len = locator.wire_len_bytes() as usize;
    assert!(silent.read(&mut *data, from, len).is_ok());
    silent.wait_end();
    if server.fabric.fences() {
        assert!(silent.read(&mut *data, from, len).is_err());
    } else {
        eventually("the connection's end is noticed", || {
            silent.read(&mut *data, from, len).err()
        });
    }
}

pub(crate) fn renewals_tell_every_change_once_acknowledged_never_again<F: TestFabric>() {
    let server = Setup::new().start::<F>();
    let (mut admin, opened) = server.with_dataset("cats");
    let mut reader = server.session(&server.setup.reader);
    let held = reader.open("cats");
    assert_eq!(reader.renew(held.retired).1, []);
    let (_, locator) = admin.put(opened.dataset, b"k", b"value").unwrap();
    let (told, changes) = reader.renew(held.retired);
    let row = changes
        .iter()
        .flat_map(|change| &change.rows)
        .find(|row| row.segment == locator.segment);
    let all = changes
        .iter()
        .any(|change| change.flags & kv_proto::control::change_flag::TABLE != 0);
    assert!(row.is_some() || all, "{changes:?}");
    // Not acknowledged yet: told again.
    assert_eq!(reader.renew(held.retired).1, changes);
    assert_eq!(reader.renew(told).1, []);
}

pub(crate) fn sixty_four_datasets_fit_one_renewal<F: TestFabric>() {
    let mut setup = Setup::new();
    setup.store.segment_bytes = 1 << 20;
    let server = setup.start::<F>();
    let mut admin = server.session(&server.setup.admin);
    let mut writer = server.session(&server.setup.writer);
    let mut first = None;
    for index in 0..64 {
        let name = format!("d{index}");
        admin.create(&name);
        let opened = writer.open(&name);
        first.get_or_insert(opened.retired);
        admin.open(&name);
    }
    let datasets: Vec<[u8; 16]> = (0..64)
        .map(|index| writer.open(&format!("d{index}")).dataset)
        .collect();
    for dataset in &datasets {
        writer.put(*dataset, b"k", b"v").unwrap();
    }
    let (_, changes) = admin.renew(first.unwrap());
    let mut told: Vec<[u8; 16]> = changes.iter().map(|change| change.dataset).collect();
    told.sort_unstable();
    let mut expected = datasets;
    expected.sort_unstable();
    assert_eq!(told, expected);
}
