//! A client that was stopped past its lease notices, discards, and goes on.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::harness::{TestFabric, World, options, tell, told};
use kv_client::{ReadError, Server};
use kv_fabric::local::Local;
use kv_fabric::verbs::Verbs;
use rustix::process::{Pid, Signal, kill_process};

const CHILD: &str = "VKV_TEST_CHILD";
const KEYS: u64 = 40;
const LEASE: Duration = Duration::from_millis(400);
const PATIENCE: Duration = Duration::from_secs(30);

fn key(index: u64) -> Vec<u8> {
    format!("key {index}").into_bytes()
}

/// Reads all keys again and again, by lookup and by locator, until it has had two sessions and then read all once more.
fn child<F: TestFabric>(address: &str) {
    let fabric = F::client(&F::server(address), address);
    let session = Server::connect_over(fabric, address, options("reader")).unwrap();
    let dataset = session.open("d").unwrap();
    let until = Instant::now() + PATIENCE;
    let mut rounds_left = None;
    while rounds_left != Some(0) {
        assert!(Instant::now() < until, "{:?}", dataset.counters());
        for index in 0..KEYS {
            assert_eq!(tell(&dataset.get(&key(index)).unwrap()) % KEYS, index);
            let at = dataset.locate(&key(index)).unwrap();
            assert_eq!(tell(&dataset.get_at(&at, None).unwrap()) % KEYS, index);
        }
        if rounds_left.is_none() {
            println!("\nready");
        }
        if dataset.counters().sessions > 1 {
            rounds_left = Some(rounds_left.map_or(1, |left: u32| left - 1));
        }
    }
    let counters = dataset.counters();
    assert_eq!(counters.sessions, 2, "{counters:?}");
}

#[test]
fn a_stopped_client_discards_what_it_had_and_goes_on() {
    stopped::<Local>("leases::a_stopped_client_discards_what_it_had_and_goes_on");
}

#[test]
#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]
fn a_stopped_client_discards_what_it_had_and_goes_on_over_verbs() {
    stopped::<Verbs>("leases::a_stopped_client_discards_what_it_had_and_goes_on_over_verbs");
}

fn stopped<F: TestFabric>(test: &str) {
    if let Ok(address) = std::env::var(CHILD) {
        return child::<F>(&address);
    }
    let lease = LEASE * F::SLOWER as u32;
    let world = World::<F>::with(|_, options| {
        options.lease_ms = lease.as_millis() as u32;
    });
    let dataset = world.dataset("d");
    for index in 0..KEYS {
        dataset.put(&key(index), &told(index, 3000)).unwrap();
    }
    let mut reader = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--include-ignored"])
        .env(CHILD, &world.address)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(reader.stdout.take().unwrap()).lines();
    assert!(
        lines.any(|line| line.unwrap() == "ready"),
        "the reader never began"
    );
    let pid = Pid::from_child(&reader);
    kill_process(pid, Signal::STOP).unwrap();
    // Meanwhile everything moves: what the reader has cached is wrong when it goes on.
    let until = Instant::now() + lease * 4;
    let mut seed = KEYS;
    while Instant::now() < until {
        for index in 0..KEYS {
            dataset.put(&key(index), &told(seed + index, 3000)).unwrap();
        }
        for extra in 0..200 {
            dataset
                .put(&key(seed + extra + KEYS), b"makes the index split")
                .unwrap();
        }
        seed += KEYS;
    }
    kill_process(pid, Signal::CONT).unwrap();
    for line in lines {
        println!("{}", line.unwrap());
    }
    assert!(reader.wait().unwrap().success());
}

#[test]
fn an_idle_session_keeps_its_lease() {
    let world = World::<Local>::with(|_, options| {
        options.lease_ms = LEASE.as_millis() as u32;
    });
    let dataset = world.dataset("d");
    dataset.put(b"k", b"v").unwrap();
    dataset.get(b"k").unwrap();
    let before = dataset.counters();
    std::thread::sleep(LEASE * 4);
    let counters = dataset.counters();
    assert_eq!(counters.sessions, 1);
    // Every third of the lease, and not more often.
    assert!(
        (8..=20).contains(&(counters.renewals - before.renewals)),
        "{counters:?}"
    );
    dataset.get(b"k").unwrap();
    assert_eq!(dataset.counters().retries, before.retries);
}

/// Handles of one dataset in one session that were opened under different names all learn what changes.
#[test]
fn a_dataset_that_was_renamed_tells_all_its_handles_what_changes() {
    let world = World::<Local>::with(|_, options| {
        options.lease_ms = LEASE.as_millis() as u32;
    });
    let admin = world.session(options("admin"));
    let session = world.session(options("writer"));
    admin.create("first").unwrap();
    let first = session.open("first").unwrap();
    first.put(b"k", b"v").unwrap();
    admin.rename("first", "second").unwrap();
    let second = session.open("second").unwrap();
    assert_eq!(first.dataset_id(), second.dataset_id());
    // The end of one handle does not close the dataset for the other.
    drop(session.open("second").unwrap());
    drop(second.clone());
    drop(second);
    std::thread::sleep(LEASE);
    assert_eq!(first.get(b"k").unwrap(), b"v");
    let second = session.open("second").unwrap();
    admin.drop_dataset("second").unwrap();
    let until = Instant::now() + PATIENCE;
    for dataset in [&first, &second] {
        while dataset.get(b"k").is_ok() {
            assert!(
                Instant::now() < until,
                "it was never told that the dataset is gone"
            );
        }
        assert_eq!(dataset.get(b"k"), Err(ReadError::Closed));
    }
    assert_eq!(first.counters().sessions, 1);
}

/// Who renames goes on under the new name, in later sessions too.
#[test]
fn a_dataset_that_this_session_renamed_is_opened_again_by_its_new_name() {
    let mut world = World::<Local>::new();
    let first = world.dataset("first");
    first.put(b"k", b"v").unwrap();
    first.server().rename("first", "second").unwrap();
    let second = first.server().open("second").unwrap();
    world.stop();
    world.start();
    for dataset in [&first, &second] {
        assert_eq!(dataset.get(b"k").unwrap(), b"v");
        dataset.put(b"k", b"v").unwrap();
    }
}
