//! A device that refuses to destroy the client's data connections. The refusal was a line in the log: what the connection's READs
//! went to (the ring, slots, buffers of the caller's) was given back and used again while the device could still write there.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::harness::{World, options, tell, told};
use kv_client::{Client, ClientOptions, Moved, ReadError};
use kv_fabric::sim::{ReplayHint, Sim, SimFaults, SimOptions, seed_from_env};

const LEN: usize = 1_900_000;
const DEADLINE: Duration = Duration::from_secs(1);
/// READs are as late as this at most: long after the deadline.
const LATE: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(30);

fn refusing(late: bool) -> SimFaults {
    SimFaults {
        read_delay: f64::from(u8::from(late)),
        read_delay_max: LATE,
        refused_client_destroy: 1.0,
        ..SimFaults::default()
    }
}

fn world(seed: u64) -> (World<Sim>, Client) {
    let fabric = Sim::new(SimOptions {
        seed,
        ..SimOptions::default()
    });
    let world = World::over(|_| Arc::new(fabric), |_, options| options.lease_ms = 1000);
    let writer = world.dataset("d");
    for index in 0..8 {
        writer.put(&key(index), &told(index, LEN)).unwrap();
    }
    let hasty = ClientOptions {
        deadline: DEADLINE,
        value_buffer_bytes: 8 << 20,
        data_connections: 1,
        ..options("reader")
    };
    let dataset = world.session(hasty).open("d").unwrap();
    (world, dataset)
}

fn key(index: u64) -> Vec<u8> {
    format!("key {index}").into_bytes()
}

/// Waits until the device has refused `more` times from now on.
fn refused(world: &World<Sim>, more: u64) {
    let count = || world.fabric.injected().refused_client_destroys;
    let (before, until) = (count(), Instant::now() + PATIENCE);
    while count() < before + more {
        assert!(Instant::now() < until, "the device is not asked any more");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_borrowed_buffer_is_not_given_back_before_its_connection_is_destroyed() {
    let seed = seed_from_env(31).unwrap();
    let _hint = ReplayHint(seed);
    let (world, dataset) = world(seed);
    let mut buffer = dataset.allocate(2 << 20).unwrap();
    assert_eq!(dataset.get_into(&key(1), &mut buffer, 0), Ok(LEN + 8));
    let at = dataset.locate(&key(2)).unwrap();
    for by_place in [false, true] {
        world.fabric.set_faults(refusing(true));
        std::thread::scope(|scope| {
            let call = scope.spawn(|| match by_place {
                true => dataset.get_at_into(&at, None, &mut buffer, 0),
                false => dataset.get_into(&key(2), &mut buffer, 0),
            });
            refused(&world, 8);
            assert!(!call.is_finished(), "the buffer came back: {:?}", call.join());
            world.fabric.set_faults(SimFaults::default());
            assert_eq!(call.join().unwrap(), Err(ReadError::Timeout));
        });
        buffer.fill(0xAA);
        std::thread::sleep(LATE);
        assert!(buffer.iter().all(|byte| *byte == 0xAA), "bytes came after that");
        assert_eq!(dataset.get_into(&key(2), &mut buffer, 0), Ok(LEN + 8));
        assert_eq!(tell(&buffer[..LEN + 8]), 2);
    }
}

#[test]
fn memory_of_the_readers_own_is_not_used_again_before() {
    let seed = seed_from_env(32).unwrap();
    let _hint = ReplayHint(seed);
    let (world, dataset) = world(seed);
    let mut reader = dataset.reader().unwrap();
    assert_eq!(tell(&reader.get(&key(1)).unwrap()), 1);
    let connections = || {
        let stat = dataset.server().stat().unwrap();
        let figure = stat.iter().find(|(name, _)| name == "data_connections_count");
        figure.unwrap().1
    };
    assert_eq!(connections(), 1);
    let at = dataset.locate(&key(2)).unwrap();
    let before = connections();
    world.fabric.set_faults(refusing(true));
    // Nobody waits for what is not the caller's.
    assert_eq!(reader.get_at(&at, None).unwrap_err(), ReadError::Timeout);
    refused(&world, 1);
    world.fabric.set_faults(refusing(false));
    let held: Vec<_> = (3..6)
        .map(|index| (index, reader.get(&key(index)).unwrap()))
        .collect();
    assert!(held.iter().all(|(_, value)| value.is_registered()));
    assert!(
        !reader.get(&key(6)).unwrap().is_registered(),
        "there is room for three beside it"
    );
    std::thread::sleep(LATE);
    for (index, value) in &held {
        assert_eq!(tell(value), *index);
    }
    assert_eq!(connections(), before + 1);
    // Nobody reads, and it goes all the same.
    world.fabric.set_faults(SimFaults::default());
    let until = Instant::now() + PATIENCE;
    while connections() > before {
        assert!(Instant::now() < until, "it is not destroyed");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(reader.get(&key(6)).unwrap().is_registered());
}

#[test]
fn a_buffer_that_was_moved_in_holds_up_nobody_and_comes_back_last() {
    let seed = seed_from_env(33).unwrap();
    let _hint = ReplayHint(seed);
    let (world, dataset) = world(seed);
    let mut reader = dataset.reader().unwrap();
    assert_eq!(tell(&reader.get(&key(1)).unwrap()), 1);
    let buffer = dataset.allocate(2 << 20).unwrap();
    world.fabric.set_faults(refusing(true));
    let stuck = reader.submit_into(&key(2), buffer, 0).unwrap();
    let until = Instant::now() + PATIENCE;
    while world.fabric.injected().refused_client_destroys == 0 {
        assert!(reader.poll().is_none() && Instant::now() < until);
    }
    world.fabric.set_faults(refusing(false));
    for index in (3..8).cycle().take(50) {
        let ticket = reader.submit(&key(index)).unwrap();
        let done = reader.wait().unwrap();
        assert_eq!(done.ticket, ticket, "{:?}", done.result);
        assert_eq!(tell(&done.value), index);
    }
    std::thread::scope(|scope| {
        let last = scope.spawn(|| reader.wait().unwrap());
        refused(&world, 4);
        assert!(!last.is_finished());
        world.fabric.set_faults(SimFaults::default());
        let done = last.join().unwrap();
        assert_eq!((done.ticket, done.result), (stuck, Err(ReadError::Timeout)));
        let mut buffer = done.buffer.and_then(Moved::buffer).unwrap();
        buffer.fill(0xAA);
        std::thread::sleep(LATE);
        assert!(buffer.iter().all(|byte| *byte == 0xAA));
    });
}

#[test]
fn a_reader_that_goes_waits_for_buffers_of_the_callers_alone() {
    let seed = seed_from_env(34).unwrap();
    let _hint = ReplayHint(seed);
    let (world, dataset) = world(seed);
    for callers in [false, true] {
        let mut reader = dataset.reader().unwrap();
        assert_eq!(tell(&reader.get(&key(1)).unwrap()), 1);
        world.fabric.set_faults(refusing(true));
        if callers {
            let buffer = dataset.allocate(2 << 20).unwrap();
            reader.submit_into(&key(2), buffer, 0).unwrap();
        } else {
            reader.submit(&key(2)).unwrap();
        }
        assert!(reader.poll().is_none());
        std::thread::scope(|scope| {
            let gone = scope.spawn(move || drop(reader));
            refused(&world, if callers { 6 } else { 1 });
            assert!(!callers || !gone.is_finished());
            if !callers {
                gone.join().unwrap();
            }
            world.fabric.set_faults(SimFaults::default());
        });
    }
}
