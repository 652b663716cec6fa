//! Who waits sleeps, and who does nothing is not woken.

use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::harness::{World, options, value};
use kv_client::ClientOptions;
use kv_fabric::local::Local;
use kv_fabric::sim::{ReplayHint, Sim, SimFaults, SimOptions, seed_from_env};

const ALONE: &str = "VKV_TEST_ALONE";

/// How often a thread went to sleep: its context switches of its own accord.
fn sleeps(status: &str) -> u64 {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    line.unwrap().trim().parse().unwrap()
}

/// A reader polls for as long as it was told, then sleeps until something arrives, or its lease and deadlines are to be
/// looked at.
#[test]
fn a_reader_sleeps_once_it_has_spun() {
    let seed = seed_from_env(41).unwrap();
    let _hint = ReplayHint(seed);
    let fabric = Sim::new(SimOptions {
        seed,
        ..SimOptions::default()
    });
    let world = World::over(|_| Arc::new(fabric), |_, _| {});
    world.dataset("d").put(b"k", &value(1, 700)).unwrap();
    for spin in [Duration::ZERO, Duration::from_millis(5)] {
        let settings = ClientOptions {
            spin,
            ..options("reader")
        };
        let dataset = world.session(settings).open("d").unwrap();
        let mut reader = dataset.reader().unwrap();
        let at = dataset.locate(b"k").unwrap();
        assert!(reader.get_at(&at, None).is_ok());
        world.fabric.set_faults(SimFaults {
            read_delay: 1.0,
            read_delay_max: Duration::from_secs(4),
            ..SimFaults::default()
        });
        let own = || sleeps(&std::fs::read_to_string("/proc/thread-self/status").unwrap());
        // The latest of them is late.
        let (before, begun) = (own(), Instant::now());
        for _ in 0..8 {
            reader.submit_at(&at, None).unwrap();
        }
        while let Some(done) = reader.wait() {
            assert!(done.result.is_ok());
        }
        let (slept, waited) = (own() - before, begun.elapsed());
        world.fabric.set_faults(SimFaults::default());
        // It looks every 50 ms; where it is kept waiting for a processor, less often.
        let most = waited.as_millis() as u64 / 25 + 40;
        assert!(
            waited > Duration::from_millis(500),
            "{waited:?}: it shows nothing"
        );
        assert!((2..most).contains(&slept), "{slept} sleeps in {waited:?}");
    }
}

/// How often the threads of a client, by their names, went to sleep.
fn of_client() -> u64 {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let of_thread = |task: std::fs::DirEntry| {
        let name = std::fs::read_to_string(task.path().join("comm")).ok()?;
        let is_clients = ["kv-session", "kv-reader"].contains(&name.trim());
        let status = std::fs::read_to_string(task.path().join("status")).ok()?;
        is_clients.then(|| sleeps(&status))
    };
    let counts: Vec<_> = tasks.filter_map(|task| of_thread(task.ok()?)).collect();
    assert_eq!(
        counts.len(),
        2,
        "its control thread, and the driver of its futures"
    );
    counts.iter().sum()
}

/// A client with connections, a reader and futures, none of them asked for anything.
#[test]
fn an_idle_client_is_woken_for_renewals_alone() {
    // Alone in a process: other tests have clients too.
    if std::env::var_os(ALONE).is_none() {
        let alone = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "idle::an_idle_client_is_woken_for_renewals_alone"])
            .env(ALONE, "1")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&alone.stdout);
        assert!(alone.status.success() && said.contains("1 passed"), "{said}");
        return;
    }
    let world = World::<Local>::with(|_, options| options.lease_ms = 3000);
    let writer = world.dataset("d");
    writer.put(b"k", &value(1, 700)).unwrap();
    let dataset = writer.clone();
    let mut reader = dataset.reader().unwrap();
    let futures = dataset.async_reader().unwrap();
    assert!(dataset.get(b"k").is_ok() && reader.get(b"k").is_ok());
    let mut future = std::pin::pin!(futures.get(b"k"));
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    while std::future::Future::poll(future.as_mut(), &mut context).is_pending() {
        std::thread::sleep(Duration::from_millis(5));
    }
    std::thread::sleep(Duration::from_millis(500));
    let (before, renewals) = (of_client(), dataset.counters().renewals);
    std::thread::sleep(Duration::from_secs(2));
    let (woken, renewals) = (of_client() - before, dataset.counters().renewals - renewals);
    assert!(
        woken <= 4 * (renewals + 1),
        "woken {woken} times for {renewals} renewals"
    );
}
