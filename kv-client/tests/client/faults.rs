//! A network that delays, tears, reorders, errors and disconnects: never a wrong byte, and nothing done twice.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::harness::{World, options, tell, told};
use kv_client::{ClientError, ClientOptions, ReadError};
use kv_fabric::sim::{ReplayHint, Sim, SimFaults, SimOptions, seed_from_env};

const ROUGH: SimFaults = SimFaults {
    read_delay: 0.05,
    read_delay_max: Duration::from_millis(5),
    torn_read: 0.05,
    torn_pause_max: Duration::from_millis(2),
    reorder: 0.2,
    read_error: 0.03,
    disconnect: 0.01,
    lost_request: 0.05,
    frame_delay: 0.05,
    frame_delay_max: Duration::from_millis(10),
    late_completion: 0.01,
    late_completion_max: Duration::from_millis(5),
    refused_destroy: 0.0,
    refused_client_destroy: 0.02,
    server_reads_at_once: 0,
};

fn patient(key: &str) -> ClientOptions {
    ClientOptions {
        deadline: Duration::from_secs(60),
        connect_timeout: Duration::from_secs(1),
        ..options(key)
    }
}

fn world(seed: u64) -> World<Sim> {
    let fabric = Sim::new(SimOptions {
        seed,
        ..SimOptions::default()
    });
    World::over(|_| Arc::new(fabric), |_, options| options.lease_ms = 800)
}

/// SplitMix64.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// What is stored, deleted and read agrees with a map, and every operation took exactly one sequence number.
fn agrees_with_a_map(seed: u64) {
    let _hint = ReplayHint(seed);
    let world = world(seed);
    let session = world.session(patient("admin"));
    session.create("d").unwrap();
    let dataset = session.open("d").unwrap();
    // Parts may take sequence numbers too, so large values are stored where those are not counted.
    session.create("large").unwrap();
    let large = session.open("large").unwrap();
    world.fabric.set_faults(ROUGH);
    let mut map: HashMap<Vec<u8>, Vec<u8>> = HashMap::new();
    let mut state = seed;
    let mut operations = 0;
    // Which draws are made is up to the clock too: a run goes on until each of these was drawn.
    let hit = || {
        let injected = world.fabric.injected();
        injected.disconnects > 0 && injected.read_errors > 0
    };
    for round in (0..).take_while(|round| *round < 40 || !hit()) {
        assert!(round < 4000, "{:?}", world.fabric.injected());
        let keys: Vec<_> = (0..8)
            .map(|_| format!("key {}", next(&mut state) % 40).into_bytes())
            .collect();
        match next(&mut state) % 4 {
            0 => {
                // Of two with one key either may come last, so each key once.
                let mut items: Vec<_> = keys
                    .iter()
                    .map(|key| {
                        (
                            key.clone(),
                            told(next(&mut state), (next(&mut state) % 300_000) as usize),
                        )
                    })
                    .collect();
                items.sort();
                items.dedup_by(|a, b| a.0 == b.0);
                for (outcome, (key, value)) in dataset.put_many(&items).into_iter().zip(items) {
                    outcome.unwrap_or_else(|error| panic!("round {round}: {error}"));
                    operations += 1;
                    map.insert(key, value);
                }
            }
            1 => {
                let value = told(next(&mut state), 3_000_000);
                large.put(&keys[0], &value).unwrap();
                assert!(large.get(&keys[0]).unwrap() == value);
            }
            2 => {
                let existed = dataset.delete(&keys[0]).unwrap();
                operations += 1;
                assert_eq!(existed, map.remove(&keys[0]).is_some(), "round {round}");
            }
            _ => {
                for (got, key) in dataset.get_many(&keys).into_iter().zip(&keys) {
                    let expected = map.get(key).ok_or(&ReadError::NotFound);
                    assert!(got.as_ref() == expected, "round {round}");
                }
            }
        }
    }
    world.fabric.set_faults(SimFaults::default());
    for (key, value) in &map {
        assert!(dataset.get(key).as_ref() == Ok(value));
    }
    let last = dataset.put(b"last", b"one").unwrap();
    assert_eq!(
        last.sequence,
        operations + 1,
        "an operation was applied twice, or not at all"
    );
    assert_eq!(dataset.list().count(), map.len() + 1);
}

#[test]
fn a_rough_network_agrees_with_a_map() {
    let first = seed_from_env(0).unwrap();
    let seeds = if first == 0 { 1..4 } else { first..first + 1 };
    seeds.for_each(agrees_with_a_map);
}

/// Reads torn while writers overwrite: noticed, and read again.
#[test]
fn torn_reads_are_noticed() {
    let seed = seed_from_env(11).unwrap();
    let _hint = ReplayHint(seed);
    let world = world(seed);
    let writer = world.dataset("d");
    let dataset = world.session(patient("reader")).open("d").unwrap();
    writer.put(b"k", &told(0, 700)).unwrap();
    dataset.get(b"k").unwrap();
    world.fabric.set_faults(SimFaults {
        torn_read: 0.7,
        torn_pause_max: Duration::from_millis(3),
        ..SimFaults::default()
    });
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut seed = 0;
            while !stop.load(Ordering::Relaxed) {
                seed += 1;
                writer.put(b"k", &told(seed, 700)).unwrap();
            }
        });
        let mut latest = 0;
        let until = std::time::Instant::now() + Duration::from_secs(20);
        while dataset.counters().torn < 5 {
            let seed = tell(&dataset.get(b"k").unwrap());
            assert!(seed >= latest, "{seed} after {latest}");
            latest = seed;
            assert!(std::time::Instant::now() < until, "{:?}", dataset.counters());
        }
        stop.store(true, Ordering::Relaxed);
    });
}

/// READs that take longer than the lease: discarded, and the session begun anew.
#[test]
fn reads_that_outlive_the_lease_are_discarded() {
    let seed = seed_from_env(5).unwrap();
    let _hint = ReplayHint(seed);
    let world = world(seed);
    let dataset = world.dataset("d");
    dataset.put(b"k", &told(1, 700)).unwrap();
    dataset.get(b"k").unwrap();
    // Renewals take longer than the lease too, so it ends under the READ.
    world.fabric.set_faults(SimFaults {
        read_delay: 1.0,
        read_delay_max: Duration::from_millis(1200),
        frame_delay: 1.0,
        frame_delay_max: Duration::from_millis(2500),
        ..SimFaults::default()
    });
    std::thread::sleep(Duration::from_millis(600));
    let calm = world.fabric.clone();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            std::thread::sleep(Duration::from_secs(3));
            calm.set_faults(SimFaults::default());
        });
        assert_eq!(tell(&dataset.get(b"k").unwrap()), 1);
    });
    assert!(dataset.counters().sessions > 1, "{:?}", dataset.counters());
}

/// A DELETE that was sent and not answered may have been done; what only reads was not.
#[test]
fn a_delete_without_an_answer_is_unknown() {
    let seed = seed_from_env(7).unwrap();
    let _hint = ReplayHint(seed);
    let world = world(seed);
    world.dataset("d").put(b"k", b"v").unwrap();
    let hasty = ClientOptions {
        deadline: Duration::from_millis(200),
        ..options("admin")
    };
    let dataset = world.session(hasty).open("d").unwrap();
    world.fabric.set_faults(SimFaults {
        frame_delay: 1.0,
        frame_delay_max: Duration::from_secs(30),
        ..SimFaults::default()
    });
    let error = dataset.delete(b"k").unwrap_err();
    assert!(matches!(error, ClientError::Unknown { .. }), "{error}");
    assert!(error.to_string().contains("delete `k`"), "{error}");
    let error = dataset.stat().unwrap_err();
    assert!(matches!(error, ClientError::Timeout { .. }), "{error}");
    world.fabric.set_faults(SimFaults::default());
}

/// A network on which every READ fails is given up before a deadline that is far.
#[test]
fn a_network_that_only_fails_is_given_up() {
    let seed = seed_from_env(8).unwrap();
    let _hint = ReplayHint(seed);
    let world = world(seed);
    let dataset = world.dataset("d");
    dataset.put(b"k", &told(1, 3_000_000)).unwrap();
    let dataset = world.session(patient("reader")).open("d").unwrap();
    assert_eq!(tell(&dataset.get(b"k").unwrap()), 1);
    world.fabric.set_faults(SimFaults {
        read_error: 1.0,
        ..SimFaults::default()
    });
    let started = std::time::Instant::now();
    for _ in 0..2 {
        let error = dataset.get(b"k").unwrap_err();
        assert!(matches!(error, ReadError::Fabric(_)), "{error}");
    }
    assert!(
        started.elapsed() < Duration::from_secs(50),
        "{:?}",
        started.elapsed()
    );
    world.fabric.set_faults(SimFaults::default());
    assert_eq!(tell(&dataset.get(b"k").unwrap()), 1);
}

/// Calls that find the one data connection in use wait for it, but no longer than they may: they do not queue up.
#[test]
fn calls_that_wait_for_a_connection_give_up_at_their_deadlines() {
    const CALLS: u32 = 200;
    let seed = seed_from_env(9).unwrap();
    let _hint = ReplayHint(seed);
    let world = world(seed);
    world.dataset("d").put(b"k", &told(1, 700)).unwrap();
    let deadline = Duration::from_millis(400);
    let one = ClientOptions {
        data_connections: 1,
        deadline,
        ..options("reader")
    };
    let dataset = world.session(one).open("d").unwrap();
    dataset.get(b"k").unwrap();
    world.fabric.set_faults(SimFaults {
        read_delay: 1.0,
        read_delay_max: Duration::from_secs(600),
        ..SimFaults::default()
    });
    let started = std::time::Instant::now();
    std::thread::scope(|scope| {
        let calls: Vec<_> = (0..CALLS).map(|_| scope.spawn(|| dataset.get(b"k"))).collect();
        for call in calls {
            assert_eq!(call.join().unwrap(), Err(ReadError::Timeout));
        }
    });
    // One after the other they would take 80 seconds; each waits for its turn and then for its READ, which is less than one.
    let took = started.elapsed();
    assert!(took < deadline * CALLS / 2, "{took:?}");
    world.fabric.set_faults(SimFaults::default());
    assert_eq!(tell(&dataset.get(b"k").unwrap()), 1);
}

/// A stream cannot be sent again: it was stored once, or it was not stored, and what the caller is told agrees.
#[test]
fn streams_on_a_rough_network_are_stored_once_or_not_at_all() {
    let seed = seed_from_env(6).unwrap();
    let _hint = ReplayHint(seed);
    let world = world(seed);
    let dataset = {
        let session = world.session(patient("admin"));
        session.create("d").unwrap();
        session.open("d").unwrap()
    };
    dataset.put(b"k", &told(0, 100)).unwrap();
    let reader = world.session(patient("reader")).open("d").unwrap();
    let (mut stored, mut lost, mut sequence) = (0, 0, 1);
    for seed in 1..=15 {
        let bytes = told(seed, 1_100_000);
        // Frames that take longer than the lease end the session wherever it is.
        world.fabric.set_faults(SimFaults {
            frame_delay: 0.05,
            frame_delay_max: Duration::from_millis(1000),
            lost_request: 0.2,
            ..SimFaults::default()
        });
        let outcome = dataset.put_from(b"k", bytes.len() as u64, &mut &bytes[..]);
        world.fabric.set_faults(SimFaults::default());
        match outcome {
            Ok(outcome) => {
                assert_eq!(
                    outcome.sequence,
                    sequence + 1,
                    "stored twice, or counted for another"
                );
                sequence = outcome.sequence;
                stored = seed;
            }
            Err(ClientError::StreamLost) => lost += 1,
            Err(error) => panic!("{seed}: {error}"),
        }
        assert_eq!(tell(&reader.get(b"k").unwrap()), stored, "after {seed}");
    }
    println!("{lost} of 15 were lost");
    assert!(stored > 0);
}
