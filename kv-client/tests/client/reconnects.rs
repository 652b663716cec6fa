//! Connections that break again and again, with READs in flight, leave nothing behind.

use std::collections::HashSet;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kv_client::Server;
use kv_fabric::local::Local;
use kv_fabric::stop::Stoppable;
use kv_fabric::verbs::Verbs;

use crate::harness::{TestFabric, World, options, tell, told};

const ALONE: &str = "VKV_TEST_ALONE";
/// Set where a thousand times take too long.
const SHORT: &str = "VKV_TEST_SHORT";
const KEYS: u64 = 24;
const PATIENCE: Duration = Duration::from_secs(60);

/// The descriptors of this process.
fn descriptors() -> String {
    std::fs::read_dir("/proc/self/fd").unwrap().count().to_string()
}

/// What the kernel counts of each RDMA device: protection domains, queues, queue pairs, memory regions.
fn rdma_resources() -> String {
    let paths = ["rdma", "/bin/rdma", "/sbin/rdma", "/usr/sbin/rdma"];
    let output = paths
        .iter()
        .find_map(|path| Command::new(path).args(["resource", "show"]).output().ok());
    let output = output.expect("iproute2 has `rdma`");
    assert!(output.status.success(), "rdma resource show: {output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains(" qp "), "{text}");
    text
}

/// Values are in flight each time that the connection breaks; all of them come all the same, and what `count` counts is
/// in the end what it was.
fn broken<F: TestFabric>(times: u64, count: impl Fn() -> String) {
    let world = World::<F>::new();
    let writer = world.dataset("d");
    let key = |index: u64| format!("key {index}").into_bytes();
    for index in 0..KEYS {
        writer
            .put(&key(index), &told(index, 3000 + index as usize * 400))
            .unwrap();
    }
    let fabric = Arc::new(Stoppable::new(F::client(&world.fabric, &world.address)));
    let stops = fabric.stops();
    let session = Server::connect_over(fabric, &world.address, options("reader")).unwrap();
    let dataset = session.open("d").unwrap();
    let mut reader = dataset.reader().unwrap();
    let mut buffer = dataset.allocate(1 << 16).unwrap();
    let mut round = |number: u64| {
        let before = dataset.counters().connections;
        let mut asked = HashSet::new();
        for index in 0..KEYS / 2 {
            asked.insert(reader.submit(&key((number + index) % KEYS)).unwrap());
        }
        // Posted, and then nothing of it is taken.
        assert!(reader.poll().is_none());
        stops.break_next();
        let len = reader.get_into(&key(number % KEYS), &mut buffer, 0).unwrap();
        assert_eq!(tell(&buffer[..len]), number % KEYS);
        while let Some(done) = reader.wait() {
            asked.remove(&done.ticket);
            assert!(tell(&done.value) < KEYS, "{:?}", done.result);
        }
        assert!(asked.is_empty(), "all came");
        assert!(dataset.counters().connections > before, "it did not break");
    };
    (0..5).for_each(&mut round);
    let before = count();
    (5..5 + times).for_each(&mut round);
    let counters = dataset.counters();
    assert!(counters.reconnects >= times, "{counters:?}");
    assert_eq!(counters.sessions, 1);
    // The server hears of the last end a little later.
    let until = Instant::now() + PATIENCE;
    while count() != before {
        assert!(Instant::now() < until, "{before} became {}", count());
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_hundred_broken_connections_leave_no_descriptor_behind() {
    // Alone in a process: other tests open descriptors too.
    if std::env::var_os(ALONE).is_some() {
        return broken::<Local>(100, descriptors);
    }
    let alone = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "reconnects::a_hundred_broken_connections_leave_no_descriptor_behind",
        ])
        .env(ALONE, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&alone.stdout);
    assert!(alone.status.success() && said.contains("1 passed"), "{said}");
}

#[test]
#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]
fn broken_connections_leave_nothing_behind_over_verbs() {
    let short = std::env::var_os(SHORT).is_some();
    let times = if short { 100 } else { 1000 };
    broken::<Verbs>(times, rdma_resources);
}
