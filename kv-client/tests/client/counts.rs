//! How many READs and doorbells a value costs, exactly.

use std::time::Duration;

use crate::harness::{TestFabric, World, options, value};
use kv_client::{ClientOptions, ConnectionLimit, Counters, GlobalLocator, ReadError};
use kv_fabric::local::Local;
use kv_fabric::sim::{Sim, SimFaults};
use kv_fabric::verbs::Verbs;

fn since(before: Counters, after: Counters) -> Counters {
    let mut spent = after;
    spent.gets -= before.gets;
    spent.reads_posted -= before.reads_posted;
    spent.split_reads -= before.split_reads;
    spent.bucket_reads -= before.bucket_reads;
    spent.directory_reads -= before.directory_reads;
    spent.doorbells -= before.doorbells;
    spent.retries -= before.retries;
    spent.coalesced -= before.coalesced;
    spent.cached -= before.cached;
    spent.cached_wrong -= before.cached_wrong;
    spent.stale -= before.stale;
    spent
}

#[test]
fn a_known_value_costs_one_read_and_an_unknown_one_three() {
    exact_counts::<Local>();
}

#[test]
#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]
fn a_known_value_costs_one_read_and_an_unknown_one_three_over_verbs() {
    exact_counts::<Verbs>();
}

fn exact_counts<F: TestFabric>() {
    const COUNT: usize = 3000;
    let world = World::<F>::new();
    let writer = world.dataset("d");
    let items: Vec<_> = (0..COUNT)
        .map(|index| (format!("key {index}"), value(index as u64, index % 3000)))
        .collect();
    for (index, outcome) in writer.put_many(&items).into_iter().enumerate() {
        outcome.unwrap_or_else(|error| panic!("{index}: {error}"));
    }
    let keys: Vec<_> = items.iter().map(|(key, _)| key.as_bytes()).collect();

    // A session of its own, which knows nothing yet.
    let reader = world.session(options("reader")).open("d").unwrap();
    let before = reader.counters();
    for (got, (key, value)) in reader.get_many(&keys).into_iter().zip(&items) {
        assert!(got.as_ref() == Ok(value), "{key}");
    }
    let cold = since(before, reader.counters());
    assert_eq!(cold.gets, COUNT as u64);
    assert_eq!(
        (cold.split_reads, cold.retries, cold.torn, cold.stale),
        (0, 0, 0, 0)
    );
    assert_eq!(
        cold.reads_posted + cold.coalesced,
        cold.bucket_reads + cold.directory_reads + COUNT as u64
    );
    assert!(cold.bucket_reads <= 2 * COUNT as u64);
    assert!(cold.directory_reads < 4, "{cold:?}");
    // One in 64 keys has its two candidate buckets in one; 3.00 is not exceeded, directory included.
    assert!(cold.reads_posted + cold.coalesced <= 3 * COUNT as u64, "{cold:?}");
    assert!(cold.doorbells < COUNT as u64 / 4, "batched: {cold:?}");

    let before = reader.counters();
    let located: Vec<GlobalLocator> = reader
        .locate_many(&keys)
        .into_iter()
        .map(Result::unwrap)
        .collect();
    let locating = since(before, reader.counters());
    assert_eq!(locating.reads_posted, locating.bucket_reads);

    let before = reader.counters();
    for (got, (key, value)) in reader.get_many_at(&located, Some(&keys)).into_iter().zip(&items) {
        assert!(got.as_ref() == Ok(value), "{key}");
    }
    let known = since(before, reader.counters());
    assert_eq!(
        (known.gets, known.reads_posted + known.coalesced),
        (COUNT as u64, COUNT as u64)
    );

    let mut buffer = reader.allocate(4096).unwrap();
    let before = reader.counters();
    for (at, (key, value)) in located.iter().zip(&items).take(100) {
        assert_eq!(
            reader.get_at_into(at, Some(key.as_bytes()), &mut buffer, 0),
            Ok(value.len())
        );
        assert_eq!(buffer[..value.len()], value[..]);
    }
    let one = since(before, reader.counters());
    assert_eq!((one.gets, one.reads_posted, one.doorbells), (100, 100, 100));
    assert_eq!(one.retries, 0);
}

#[test]
fn splits_and_parts_are_counted_apart() {
    let world = World::<Local>::with(|store, _| store.part_bytes = 2 << 20);
    let dataset = world.dataset("d");
    dataset.put(b"split", &value(1, 2 << 20)).unwrap();
    dataset.put(b"parts", &value(2, 5 << 20)).unwrap();
    // Pieces of 256 KiB, so that what has arrived is checked while the rest flies: eight, seven of them beyond the first.
    // Head, head again once it is known for one, eight, eight and four: 21 beyond the first.
    for (key, splits) in [(b"split", 7), (b"parts", 21)] {
        let at = dataset.locate(key).unwrap();
        // The segments that the put made are known after this.
        dataset.get_at(&at, None).unwrap();
        let before = dataset.counters();
        dataset.get_at(&at, None).unwrap();
        let spent = since(before, dataset.counters());
        assert_eq!(
            (spent.gets, spent.reads_posted - spent.split_reads),
            (1, 1),
            "{spent:?}"
        );
        assert_eq!(spent.split_reads, splits);
    }
    // A range of 10 bytes: two buckets, the prefix and one block of 2 MiB.
    let before = dataset.counters();
    assert_eq!(
        dataset.get_range(b"split", 1 << 20, 10).unwrap(),
        value(1, 2 << 20)[1 << 20..][..10]
    );
    let spent = since(before, dataset.counters());
    assert_eq!(spent.reads_posted - spent.bucket_reads, 2);
}

/// A value that was read before costs one round trip of two READs while it lies where it did, and is looked up when it
/// does not.
fn read_again<F: TestFabric>() {
    const COUNT: u64 = 200;
    let world = World::<F>::with(|_, options| {
        options.lease_ms = 600_000;
        options.max_lag_ms = 600_000;
    });
    let writer = world.dataset("d");
    let key = |index: u64| format!("key {index}").into_bytes();
    let put = |index: u64, round: u64| {
        let value = value(index * 1000 + round, 100 + index as usize * 40);
        writer.put(&key(index), &value).unwrap();
        value
    };
    let mut values: Vec<_> = (0..COUNT).map(|index| put(index, 0)).collect();
    // So much room that three keys of one pair of places are not to be met.
    let mut roomy = options("reader");
    roomy.locator_cache_bytes = 256 << 20;
    let dataset = world.session(roomy).open("d").unwrap();
    let mut reader = dataset.reader().unwrap();
    let mut read_all = |values: &[Vec<u8>]| {
        let before = dataset.counters();
        for (index, value) in values.iter().enumerate() {
            assert!(reader.get(&key(index as u64)).unwrap() == **value, "{index}");
        }
        since(before, dataset.counters())
    };
    let first = read_all(&values);
    assert_eq!((first.cached, first.gets), (0, COUNT));
    let again = read_all(&values);
    assert_eq!((again.cached, again.cached_wrong), (COUNT, 0), "{again:?}");
    assert_eq!(
        (again.bucket_reads, again.reads_posted, again.doorbells),
        (COUNT, 2 * COUNT, COUNT)
    );
    for index in (0..COUNT).step_by(4) {
        values[index as usize] = put(index, 1);
    }
    let moved = read_all(&values);
    assert_eq!(
        (moved.cached, moved.cached_wrong),
        (COUNT * 3 / 4, COUNT / 4),
        "{moved:?}"
    );
    assert_eq!((moved.torn, moved.stale), (0, 0));
    writer.delete(&key(3)).unwrap();
    assert_eq!(reader.get(&key(3)).unwrap_err(), ReadError::NotFound);
    // All in one batch: the buckets and records of many behind one doorbell.
    let keys: Vec<_> = (4..COUNT).map(key).collect();
    let before = dataset.counters();
    for (got, value) in reader.get_many(&keys).into_iter().zip(&values[4..]) {
        assert!(got.unwrap() == **value);
    }
    let batch = since(before, dataset.counters());
    assert_eq!(batch.reads_posted + batch.coalesced, 2 * (COUNT - 4), "{batch:?}");
    assert!(batch.doorbells <= (COUNT - 4) / 3, "{batch:?}");
    // Without room for locators everything is looked up.
    let mut forgetful = options("reader");
    forgetful.locator_cache_bytes = 0;
    let dataset = world.session(forgetful).open("d").unwrap();
    for _ in 0..2 {
        assert!(dataset.get(&key(5)).unwrap() == values[5]);
    }
    assert_eq!(dataset.counters().cached, 0);
}

#[test]
fn a_value_read_again_costs_one_round_trip_over_local() {
    read_again::<Local>();
}

#[test]
fn a_value_read_again_costs_one_round_trip_over_sim() {
    read_again::<Sim>();
}

#[test]
#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]
fn a_value_read_again_costs_one_round_trip_over_verbs() {
    read_again::<Verbs>();
}

/// `read(2)` and `write(2)` that this thread has called, and their like: see proc(5), `/proc/pid/io`.
fn system_calls() -> (u64, u64) {
    let text = std::fs::read_to_string("/proc/thread-self/io").unwrap();
    let figure = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap().trim().parse::<u64>().unwrap()
    };
    (figure("syscr:"), figure("syscw:"))
}

/// A chain is handed to a device that the kernel emulates by one `write(2)`, and to others by none; looking for what has
/// completed calls nobody.
#[test]
#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]
fn one_system_call_for_each_chain_over_verbs() {
    let world = World::<Verbs>::with(|_, options| {
        options.lease_ms = 600_000;
        options.max_lag_ms = 600_000;
    });
    // One that sleeps has to be woken, by calls of the system.
    let awake = ClientOptions {
        spin: Duration::from_secs(60),
        ..options("writer")
    };
    world.dataset("d");
    let dataset = world.session(awake).open("d").unwrap();
    let keys: Vec<_> = (0..64).map(|index| format!("key {index}")).collect();
    for key in &keys {
        dataset.put(key.as_bytes(), &value(7, 5000)).unwrap();
    }
    let places: Vec<_> = dataset
        .locate_many(&keys)
        .into_iter()
        .map(Result::unwrap)
        .collect();
    let mut reader = dataset.reader().unwrap();
    let mut all = |rounds: usize| {
        for _ in 0..rounds {
            assert!(reader.get_many_at(&places, Some(&keys)).iter().all(Result::is_ok));
            assert!(reader.get_many(&keys).iter().all(Result::is_ok));
            assert!(reader.get_at(&places[5], None).is_ok());
        }
    };
    all(3);
    let (counters, calls) = (dataset.counters(), system_calls());
    all(20);
    let (spent, now) = (since(counters, dataset.counters()), system_calls());
    assert!(spent.doorbells >= 60 && spent.gets == 20 * 129, "{spent:?}");
    // Reading the figures is a few of them.
    assert!(now.0 - calls.0 <= 4, "{calls:?} {now:?}");
    assert!(now.1 - calls.1 <= spent.doorbells, "{calls:?} {now:?} {spent:?}");
}

/// Short records that lie one behind the other come by one READ, to wherever they are wanted; longer ones do not.
fn neighbours<F: TestFabric>() {
    // A put takes its time on an emulated device.
    let count = if F::SLOWER > 1 { 48 } else { 120 };
    let world = World::<F>::new();
    let dataset = world.dataset("d");
    let mut reader = dataset.reader().unwrap();
    for (len, together) in [(0, true), (10, true), (900, true), (4096, true), (4097, false)] {
        let (mut places, mut values, mut keys) = (Vec::new(), Vec::new(), Vec::new());
        for index in 0..count {
            keys.push(format!("{len} {index}"));
            values.push(value((len * 1000 + index) as u64, len));
            places.push(
                dataset
                    .put(keys[index].as_bytes(), &values[index])
                    .unwrap()
                    .locator,
            );
        }
        // The segments that the puts made are known after this.
        assert!(
            dataset
                .get_many_at(&places, Some(&keys))
                .iter()
                .all(Result::is_ok)
        );
        for key in [None, Some(&keys[..])] {
            let before = dataset.counters();
            for (got, value) in dataset.get_many_at(&places, key).into_iter().zip(&values) {
                assert!(got.unwrap() == *value);
            }
            for (got, value) in reader.get_many_at(&places, key).into_iter().zip(&values) {
                assert!(got.unwrap() == **value);
            }
            let spent = since(before, dataset.counters());
            assert_eq!(
                spent.reads_posted + spent.coalesced,
                2 * count as u64,
                "{spent:?}"
            );
            if together {
                // Sixteen at most, and no more than 32 KiB.
                assert!(spent.coalesced >= count as u64, "{len}: {spent:?}");
                assert!(spent.reads_posted >= 2 * count as u64 / 16, "{len}: {spent:?}");
            } else {
                assert_eq!(spent.coalesced, 0);
            }
        }
        // The other way round none follows the one before it.
        let backwards: Vec<_> = places.iter().rev().copied().collect();
        let before = dataset.counters();
        for (got, value) in reader
            .get_many_at::<&str>(&backwards, None)
            .into_iter()
            .zip(values.iter().rev())
        {
            assert!(got.unwrap() == **value);
        }
        assert_eq!(since(before, dataset.counters()).coalesced, 0);
    }
}

#[test]
fn neighbours_come_by_one_read_over_local() {
    neighbours::<Local>();
}

#[test]
fn neighbours_come_by_one_read_over_sim() {
    neighbours::<Sim>();
}

#[test]
#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]
fn neighbours_come_by_one_read_over_verbs() {
    neighbours::<Verbs>();
}

/// As many connections as the device needs for what is to be under way, as the caller says, or as the server takes.
#[test]
fn connections_are_made_as_they_are_needed_and_allowed() {
    const COUNT: u64 = 1500;
    let over =
        |faults: SimFaults, edit: &dyn Fn(&mut kv_client::ClientOptions), server_limit: u16, len: usize| {
            let world =
                World::<Sim>::with(|_, options| options.data_connections_per_session_max = server_limit);
            world.fabric.set_faults(faults);
            let writer = world.dataset("d");
            let items: Vec<_> = (0..COUNT.min(60_000_000 / len as u64))
                .map(|index| (format!("key {index}"), value(index, len)))
                .collect();
            assert!(writer.put_many(&items).iter().all(Result::is_ok));
            let mut options = options("reader");
            edit(&mut options);
            let dataset = world.session(options).open("d").unwrap();
            let mut reader = dataset.reader().unwrap();
            let keys: Vec<_> = items.iter().map(|(key, _)| key.as_bytes()).collect();
            assert_eq!(reader.get(keys[0]).unwrap(), items[0].1);
            assert_eq!(dataset.counters().connections, 1, "one value needs one");
            for (got, (_, value)) in reader.get_many(&keys).into_iter().zip(&items) {
                assert!(got.unwrap() == **value);
            }
            let counters = dataset.counters();
            assert_eq!(counters.reconnects, 0, "{counters:?}");
            counters.connections
        };
    let made = |edit: &dyn Fn(&mut kv_client::ClientOptions), server_limit: u16, len: usize| {
        over(SimFaults::default(), edit, server_limit, len)
    };
    // 64 under way, 16 at once on one; and where the server's end takes but 12, so many.
    let fewer = SimFaults {
        server_reads_at_once: 12,
        ..SimFaults::default()
    };
    assert_eq!(over(fewer, &|_| {}, 64, 5000), 6);
    assert_eq!(made(&|_| {}, 64, 5000), 4);
    assert_eq!(made(&|options| options.depth = 16, 64, 5000), 1);
    assert_eq!(made(&|options| options.data_connections = 1, 64, 5000), 1);
    assert_eq!(made(&|options| options.data_connections = 3, 64, 5000), 3);
    assert_eq!(made(&|_| {}, 2, 5000), 2);
    assert_eq!(made(&|options| options.session_connections = 3, 64, 5000), 3);
}

/// Past the limit of a session a reader is refused, until another one goes.
#[test]
fn a_reader_past_the_limit_is_refused_politely() {
    let world = World::<Local>::new();
    world.dataset("d").put(b"k", b"v").unwrap();
    let mut few = options("reader");
    few.session_connections = 2;
    let dataset = world.session(few).open("d").unwrap();
    let [mut first, mut second, mut third] = std::array::from_fn(|_| dataset.reader().unwrap());
    assert_eq!(first.get(b"k").unwrap(), b"v");
    assert_eq!(second.get(b"k").unwrap(), b"v");
    let limit = ReadError::ConnectionLimit(ConnectionLimit::Session);
    assert_eq!(third.get(b"k").unwrap_err(), limit);
    assert_eq!(second.get(b"k").unwrap(), b"v");
    drop(first);
    assert_eq!(third.get(b"k").unwrap(), b"v");
    assert_eq!(dataset.counters().sessions, 1);
}

/// The server's limits: told as what they are, at once where only the session itself can help, else at the deadline. Who has
/// a connection reads by it, and asks no more.
#[test]
fn past_the_servers_limits_a_client_is_told_which() {
    let made = |own: u16, all: usize| {
        let world = World::<Sim>::with(|_, options| {
            options.data_connections_per_session_max = own;
            options.data_connections_max = all;
        });
        let writer = world.dataset("d");
        let items: Vec<_> = (0..600)
            .map(|index| (format!("key {index}"), value(index, 5000)))
            .collect();
        assert!(writer.put_many(&items).iter().all(Result::is_ok));
        (world, items)
    };
    let reader = |world: &World<Sim>| {
        let mut hasty = options("reader");
        hasty.deadline = Duration::from_secs(1);
        world.session(hasty).open("d").unwrap()
    };
    let all_come = |dataset: &kv_client::Client, items: &[(String, Vec<u8>)]| {
        let keys: Vec<_> = items.iter().map(|(key, _)| key).collect();
        for (got, (_, value)) in dataset.get_many(&keys).into_iter().zip(items) {
            assert!(got.unwrap() == *value);
        }
    };
    let (world, items) = made(2, 100);
    let [first, second] = [reader(&world), reader(&world)];
    // Of one session: the limit is its own.
    let clone = first.clone();
    all_come(&first, &items);
    let limit = ReadError::ConnectionLimit(ConnectionLimit::ServerSession);
    assert_eq!(clone.get(b"key 0"), Err(limit));
    all_come(&first, &items);
    all_come(&second, &items);
    assert_eq!(
        (first.counters().connections, second.counters().connections),
        (2, 2)
    );

    let (world, items) = made(100, 3);
    let [first, second, third] = std::array::from_fn(|_| reader(&world));
    assert!(second.get(b"key 0").is_ok());
    all_come(&first, &items);
    assert_eq!(first.counters().connections, 2);
    all_come(&second, &items);
    assert_eq!(second.counters().connections, 1);
    let limit = ReadError::ConnectionLimit(ConnectionLimit::Server);
    assert_eq!(third.get(b"key 0"), Err(limit));
    let text = limit.to_string();
    assert!(text.contains("--all-data-connections"), "{text}");
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| third.get(b"key 0"));
        drop(first);
        assert!(waits.join().unwrap().unwrap() == items[0].1);
    });
    all_come(&third, &items);
    all_come(&second, &items);
    assert_eq!(third.counters().sessions, 1);
}

#[test]
fn clones_have_connections_of_their_own_and_count_together() {
    let world = World::<Local>::new();
    let dataset = world.dataset("d");
    dataset.put(b"k", b"v").unwrap();
    let at = dataset.locate(b"k").unwrap();
    let before = dataset.counters();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let clone = dataset.clone();
            scope.spawn(move || {
                for _ in 0..50 {
                    assert_eq!(clone.get_at(&at, None).unwrap(), b"v");
                }
            });
        }
    });
    let spent = since(before, dataset.counters());
    assert_eq!(spent.gets, 200);
    // The first of each clone finds no connection and goes the long way.
    assert_eq!(spent.reads_posted, 200);
    assert_eq!(dataset.counters().sessions, 1);
}

#[test]
fn absent_keys_cost_their_buckets_only() {
    let world = World::<Local>::new();
    let dataset = world.dataset("d");
    dataset.put(b"k", b"v").unwrap();
    dataset.get(b"k").unwrap();
    let before = dataset.counters();
    let keys: Vec<_> = (0..500).map(|index| format!("absent {index}")).collect();
    for got in dataset.get_many(&keys) {
        assert_eq!(got, Err(ReadError::NotFound));
    }
    let spent = since(before, dataset.counters());
    assert_eq!((spent.gets, spent.reads_posted), (0, spent.bucket_reads));
    assert_eq!(spent.retries, 0);
}

/// Looks keys up one by one, none of them absent; READs and doorbells of those that found their directory fresh are
/// checked. How many did not.
fn lookups_in_one_round_trip(reader: &kv_client::Client, keys: impl Iterator<Item = usize>) -> u64 {
    let mut late = 0;
    for index in keys {
        let before = reader.counters();
        reader.locate(format!("key {index}").as_bytes()).unwrap();
        let spent = since(before, reader.counters());
        // What a renewal took away meanwhile is read before, without a retry.
        let rounds = 1 + spent.retries;
        late += u64::from(rounds > 1 || spent.directory_reads > 0);
        assert!((rounds..=2 * rounds).contains(&spent.bucket_reads), "{spent:?}");
        assert!(spent.directory_reads <= rounds, "{spent:?}");
        assert_eq!(spent.reads_posted, spent.bucket_reads + spent.directory_reads);
        assert_eq!(spent.doorbells, rounds + spent.directory_reads, "{spent:?}");
        assert!(rounds <= 3, "{spent:?}");
    }
    late
}

/// A reader that knew a table of a hundred keys meets one of seventy thousand: it notices, learns the new directory,
/// and its lookups cost what they did.
fn a_table_that_grew<F: TestFabric>() {
    const FEW: usize = 100;
    const MANY: usize = 70_000;
    let world = World::<F>::with(|_, options| {
        options.lease_ms = 600_000;
        options.max_lag_ms = 600_000;
    });
    let writer = world.dataset("d");
    let put = |range: std::ops::Range<usize>| {
        let items: Vec<_> = range
            .map(|index| (format!("key {index}"), index.to_le_bytes().to_vec()))
            .collect();
        for outcome in writer.put_many(&items) {
            outcome.unwrap();
        }
    };
    put(0..FEW);
    let session = world.session(options("reader"));
    let reader = session.open("d").unwrap();
    lookups_in_one_round_trip(&reader, 0..FEW);
    assert_eq!(lookups_in_one_round_trip(&reader, 0..FEW), 0);
    let before = reader.counters();
    for start in (FEW..MANY).step_by(10_000) {
        put(start..MANY.min(start + 10_000));
    }
    let late = lookups_in_one_round_trip(&reader, (0..MANY).step_by(7));
    let spent = since(before, reader.counters());
    assert!(
        spent.stale > 0 && late > 0,
        "its directory was never stale: {spent:?}"
    );
    // All that changed is told at once, so few lookups find out.
    assert!(late <= 5, "{late}: {spent:?}");
    assert_eq!(lookups_in_one_round_trip(&reader, (0..MANY).step_by(13)), 0);
    let before = reader.counters();
    for index in (0..MANY).step_by(97) {
        assert_eq!(
            reader.get(format!("key {index}").as_bytes()).unwrap(),
            index.to_le_bytes()
        );
    }
    let spent = since(before, reader.counters());
    assert_eq!(spent.reads_posted, spent.bucket_reads + spent.gets);
    assert_eq!(spent.doorbells, 2 * spent.gets);
}

#[test]
fn a_stale_directory_is_noticed_and_refreshed_over_local() {
    a_table_that_grew::<Local>();
}

#[test]
fn a_stale_directory_is_noticed_and_refreshed_over_sim() {
    a_table_that_grew::<Sim>();
}

/// A batch is one doorbell for each connection, as far as its queue holds it: by a call, and by tickets. In one that holds a
/// quarter, the next chain takes what has come free until then: on a `prompt` fabric all of it, elsewhere perhaps some.
fn doorbells_of_a_batch<F: TestFabric>(prompt: bool) {
    const BATCH: usize = 256;
    let world = World::<F>::with(|_, options| {
        options.lease_ms = 600_000;
        options.max_lag_ms = 600_000;
    });
    let writer = world.dataset("d");
    let items: Vec<_> = (0..BATCH as u64)
        .map(|index| (format!("key {index}"), value(index, 5000)))
        .collect();
    assert!(writer.put_many(&items).iter().all(Result::is_ok));
    let keys: Vec<_> = items.iter().map(|(key, _)| key).collect();
    let places: Vec<_> = writer
        .locate_many(&keys)
        .into_iter()
        .map(Result::unwrap)
        .collect();
    for (depth, doorbells) in [(256, 1), (64, if prompt { 4 } else { BATCH as u64 })] {
        let one = ClientOptions {
            depth,
            data_connections: 1,
            ..options("reader")
        };
        let dataset = world.session(one).open("d").unwrap();
        let mut reader = dataset.reader().unwrap();
        let spent = |work: &mut dyn FnMut()| {
            work();
            let before = dataset.counters();
            work();
            since(before, dataset.counters())
        };
        let call = spent(&mut || {
            for (got, (_, value)) in reader.get_many_at(&places, Some(&keys)).iter().zip(&items) {
                assert!(got.as_ref().unwrap() == value);
            }
        });
        // More may have come free before the second chain.
        assert!((1..=doorbells).contains(&call.doorbells), "{depth}: {call:?}");
        assert_eq!(call.reads_posted, BATCH as u64);
        let tickets = spent(&mut || {
            for at in &places {
                reader.submit_at(at, None).unwrap();
            }
            while let Some(done) = reader.wait() {
                assert!(done.result.is_ok());
            }
        });
        assert!(
            (1..=doorbells).contains(&tickets.doorbells),
            "{depth}: {tickets:?}"
        );
        assert_eq!(tickets.reads_posted, BATCH as u64);
        println!(
            "depth {depth}: {} doorbells by a call, {} by tickets",
            call.doorbells, tickets.doorbells
        );
    }
}

#[test]
fn a_batch_is_one_doorbell_over_sim() {
    doorbells_of_a_batch::<Sim>(true);
}

#[test]
#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]
fn a_batch_is_one_doorbell_over_verbs() {
    doorbells_of_a_batch::<Verbs>(false);
}
