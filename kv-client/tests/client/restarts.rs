//! The server goes away in the middle of things and comes back: calls wait, go on, and lose nothing.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::harness::{TestFabric, World, options, tell, told};
use kv_client::{ClientError, ClientOptions, ReadError};
use kv_fabric::local::Local;
use kv_fabric::sim::Sim;
use kv_fabric::verbs::Verbs;

const COUNT: u64 = 400;
/// Longest wait for a reader to go on.
const PATIENCE: Duration = Duration::from_secs(60);

fn key(index: u64) -> Vec<u8> {
    format!("key {index}").into_bytes()
}

fn fetch_across_restarts<F: TestFabric>() {
    let mut world = World::<F>::new();
    let writer = world.dataset("d");
    let items: Vec<_> = (0..COUNT).map(|index| (key(index), told(index, 5000))).collect();
    assert!(writer.put_many(&items).iter().all(Result::is_ok));
    let reader = world.session(options("reader")).open("d").unwrap();
    let keys: Vec<_> = (0..COUNT).map(key).collect();
    let located: Vec<_> = reader
        .locate_many(&keys)
        .into_iter()
        .map(Result::unwrap)
        .collect();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let rounds = scope.spawn(|| {
            let mut rounds = 0;
            while !stop.load(Ordering::Relaxed) {
                for (index, got) in reader.get_many(&keys).into_iter().enumerate() {
                    assert_eq!(tell(&got.unwrap()), index as u64);
                }
                for (index, got) in reader.get_many_at(&located, Some(&keys)).into_iter().enumerate() {
                    assert_eq!(tell(&got.unwrap()), index as u64);
                }
                rounds += 1;
            }
            rounds
        });
        let puts = scope.spawn(|| {
            let mut count = 0;
            while !stop.load(Ordering::Relaxed) {
                writer.put(b"another", &told(count, 100)).unwrap();
                count += 1;
            }
            count
        });
        for restarts in 1..=3 {
            std::thread::sleep(Duration::from_millis(300));
            world.stop();
            std::thread::sleep(Duration::from_millis(200));
            world.start();
            let start = Instant::now();
            while reader.counters().reconnects < restarts {
                assert!(start.elapsed() < PATIENCE, "no reader after restart {restarts}");
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        stop.store(true, Ordering::Relaxed);
        assert!(rounds.join().unwrap() > 0);
        let count = puts.join().unwrap();
        assert_eq!(tell(&reader.get(b"another").unwrap()), count - 1);
    });
    assert_eq!(reader.counters().sessions, 4);
}

#[test]
fn fetches_go_on_across_restarts_over_local() {
    fetch_across_restarts::<Local>();
}

#[test]
fn fetches_go_on_across_restarts_over_sim() {
    fetch_across_restarts::<Sim>();
}

#[test]
fn a_server_that_stays_away_is_reported_at_the_deadline() {
    let mut world = World::<Local>::new();
    world.dataset("d").put(b"k", b"v").unwrap();
    let deadline = Duration::from_millis(700);
    let impatient = ClientOptions {
        deadline,
        ..options("writer")
    };
    let dataset = world.session(impatient).open("d").unwrap();
    let at = dataset.locate(b"k").unwrap();
    world.stop();
    for read in [dataset.get(b"k"), dataset.get_at(&at, None)] {
        assert_eq!(read, Err(ReadError::Timeout));
    }
    let started = Instant::now();
    let error = dataset.put(b"k", b"w").unwrap_err();
    assert!(matches!(error, ClientError::Timeout { .. }), "{error}");
    assert!(error.to_string().contains(&world.address), "{error}");
    assert!(started.elapsed() >= deadline && started.elapsed() < PATIENCE);
    // And when it is back, all is well with the same client.
    world.start();
    assert_eq!(dataset.get_at(&at, Some(b"k")).unwrap(), b"v");
    dataset.put(b"k", b"w").unwrap();
    assert_eq!(dataset.get(b"k").unwrap(), b"w");
}

#[test]
#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]
fn fetches_go_on_across_restarts_over_verbs() {
    fetch_across_restarts::<Verbs>();
}
