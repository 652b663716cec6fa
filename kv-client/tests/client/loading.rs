//! A server that was restarted answers before its images are loaded: calls ask for the segments that they need.

use std::time::{Duration, Instant};

use crate::harness::{TestFabric, World, options, told};
use kv_client::{Client, ClientOptions, ReadError};
use kv_fabric::local::Local;
use kv_fabric::sim::Sim;
use kv_fabric::verbs::Verbs;

/// Five values fill a segment.
const COUNT: u64 = 40;

fn key(index: u64) -> Vec<u8> {
    format!("key {index}").into_bytes()
}

fn value(index: u64) -> Vec<u8> {
    told(index, 200_000)
}

/// A server with values in several segments, restarted, and no image there.
fn unloaded<F: TestFabric>() -> World<F> {
    let mut world = World::<F>::with(|store, _| {
        store.segment_bytes = 1 << 20;
        store.part_bytes = 256 << 10;
    });
    let writer = world.dataset("d");
    for index in 0..COUNT {
        writer.put(&key(index), &value(index)).unwrap();
    }
    drop(writer);
    world.stop();
    world.start_unloaded();
    world
}

fn figure<F: TestFabric>(world: &World<F>, name: &str) -> u64 {
    let stat = world.session(options("reader")).stat().unwrap();
    stat.iter().find(|(it, _)| it == name).expect("a figure").1
}

fn wait(until: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !until() {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn open<F: TestFabric>(world: &World<F>, deadline: Duration) -> Client {
    let options = ClientOptions {
        deadline,
        ..options("writer")
    };
    world.session(options).open("d").unwrap()
}

fn what_is_asked_for_comes_first<F: TestFabric>() {
    let world = unloaded::<F>();
    let server = world.server.as_ref().unwrap();
    let all = figure(&world, "segments_loading_count");
    assert!(all >= 7, "{all}");
    let patient = open(&world, Duration::from_secs(60));
    std::thread::scope(|scope| {
        // In the oldest segment, which would come last.
        let get = scope.spawn(|| patient.get(&key(0)));
        wait(|| figure(&world, "segments_asked_for_count") >= 1);
        assert!(!get.is_finished(), "there is no image to READ");
        // Meanwhile the rest of the server is there.
        let writer = open(&world, Duration::from_secs(20));
        writer.put(&key(1), b"newer").unwrap();
        assert_eq!(writer.get(&key(1)).unwrap(), b"newer");
        assert!(writer.delete(&key(2)).unwrap());
        assert_eq!(writer.get(&key(2)), Err(ReadError::NotFound));
        assert_eq!(writer.get(b"not there"), Err(ReadError::NotFound));
        assert!(!get.is_finished());
        assert_eq!(figure(&world, "segments_loading_count"), all);
        server.allow_loads(1);
        assert_eq!(get.join().unwrap().unwrap(), value(0));
    });
    // With one image, and that was the one.
    assert_eq!(figure(&world, "segments_loading_count"), all - 1);
    assert!(patient.counters().retries > 0);

    // A call that ends before its segment came says so, and another finds it.
    let hasty = open(&world, Duration::from_millis(300));
    let began = Instant::now();
    assert_eq!(hasty.get(&key(17)), Err(ReadError::Timeout));
    assert!(began.elapsed() >= Duration::from_millis(300));
    server.allow_loads(u64::MAX);
    let keys: Vec<_> = (3..COUNT).map(key).collect();
    for (index, got) in (3..).zip(patient.get_many(&keys)) {
        assert_eq!(got.unwrap(), value(index));
    }
    wait(|| figure(&world, "segments_loading_count") == 0);
}

#[test]
fn what_is_asked_for_comes_first_over_local() {
    what_is_asked_for_comes_first::<Local>();
}

#[test]
fn what_is_asked_for_comes_first_over_sim() {
    what_is_asked_for_comes_first::<Sim>();
}

#[test]
#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]
fn what_is_asked_for_comes_first_over_verbs() {
    what_is_asked_for_comes_first::<Verbs>();
}
