//! Readers: values by tickets, in slots, in buffers that are moved in, and as futures.

use std::collections::HashMap;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

use crate::harness::{TestFabric, World, options, tell, told};
use kv_client::{Client, ClientOptions, ReadError, Value};
use kv_fabric::local::Local;
use kv_fabric::sim::{ReplayHint, Sim, SimFaults, SimOptions, seed_from_env};
use kv_fabric::verbs::Verbs;

const KEYS: u64 = 300;

fn key(index: u64) -> Vec<u8> {
    format!("key {index}").into_bytes()
}

/// Small ones, ones of several blocks, and a few of several pieces.
fn len(index: u64) -> usize {
    match index % 50 {
        0 => 3_000_000,
        1..=5 => 200_000,
        other => (other * 97) as usize,
    }
}

fn filled<F: TestFabric>(world: &World<F>) -> Client {
    let dataset = world.dataset("d");
    let items: Vec<_> = (0..KEYS)
        .map(|index| (key(index), told(index, len(index))))
        .collect();
    assert!(dataset.put_many(&items).iter().all(Result::is_ok));
    dataset
}

fn tickets<F: TestFabric>() {
    let world = World::<F>::new();
    let dataset = filled(&world);
    let mut reader = world
        .session(options("reader"))
        .open("d")
        .unwrap()
        .reader()
        .unwrap();
    assert!(reader.poll().is_none() && reader.wait().is_none());
    let mut asked = HashMap::new();
    for index in 0..KEYS {
        asked.insert(reader.submit(&key(index)).unwrap(), Some(index));
        if index % 10 == 0 {
            let at = dataset.locate(&key(index)).unwrap();
            asked.insert(reader.submit_at(&at, Some(&key(index))).unwrap(), Some(index));
            asked.insert(reader.submit(format!("absent {index}").as_bytes()).unwrap(), None);
        }
        // A call beside the tickets leaves them alone.
        if index % 100 == 50 {
            assert_eq!(tell(&reader.get(&key(7)).unwrap()), 7);
        }
    }
    assert_eq!(reader.outstanding(), asked.len());
    let mut held = Vec::new();
    while let Some(done) = reader.wait() {
        match asked.remove(&done.ticket).expect("each ticket comes once") {
            Some(index) => {
                assert_eq!(done.result, Ok(done.value.len()));
                assert_eq!(tell(&done.value), index);
                held.push((index, done.value));
            }
            None => assert_eq!(done.result, Err(ReadError::NotFound)),
        }
    }
    assert!(asked.is_empty() && reader.outstanding() == 0);
    // Those that found no slot are on the heap; all are still what they were.
    let (slots, heap): (Vec<_>, Vec<_>) = held.iter().partition(|(_, value)| value.is_registered());
    assert!(slots.len() > 100, "{} of {}", slots.len(), held.len());
    println!("{} in slots, {} on the heap", slots.len(), heap.len());
    for (index, value) in &held {
        assert_eq!(tell(value), *index);
    }
    drop(reader);
    for (index, value) in held {
        assert_eq!(tell(&bytes::Bytes::from(value)), index);
    }
}

#[test]
fn tickets_come_as_they_are_done_over_local() {
    tickets::<Local>();
}

#[test]
fn tickets_come_as_they_are_done_over_sim() {
    tickets::<Sim>();
}

#[test]
#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]
fn tickets_come_as_they_are_done_over_verbs() {
    tickets::<Verbs>();
}

/// The order asked, whatever was done first; values that are dropped give their memory back, whoever drops them.
#[test]
fn many_values_come_in_the_order_asked_and_their_memory_comes_back() {
    let world = World::<Local>::new();
    let dataset = filled(&world);
    let mut reader = dataset.reader().unwrap();
    let keys: Vec<_> = (0..KEYS).rev().map(key).collect();
    let small: Vec<_> = (0..KEYS).filter(|index| len(*index) < 100_000).map(key).collect();
    for _ in 0..20 {
        let got = reader.get_many(&keys);
        for (got, index) in got.iter().zip((0..KEYS).rev()) {
            assert_eq!(tell(got.as_ref().unwrap()), index);
        }
        std::thread::scope(|scope| {
            scope.spawn(move || drop(got));
        });
        // All the memory is free again, so these find some.
        assert!(
            reader
                .get_many(&small)
                .into_iter()
                .all(|value| value.unwrap().is_registered())
        );
    }
}

#[test]
fn buffers_that_are_moved_in_come_back_with_the_value() {
    let world = World::<Local>::new();
    let dataset = filled(&world);
    let mut reader = dataset.reader().unwrap();
    for index in [3, 7, 50] {
        let at = dataset.locate(&key(index)).unwrap();
        let buffers = [4 << 20, 4 << 20, 10].map(|len| dataset.allocate(len).unwrap());
        let [first, second, short] = buffers;
        let first = reader.submit_into(&key(index), first, 5).unwrap();
        let second = reader.submit_at_into(&at, None, second, 0).unwrap();
        let short = reader.submit_into(&key(index), short, 0).unwrap();
        let len = len(index) + 8;
        for _ in 0..3 {
            let done = reader.wait().unwrap();
            let buffer = done.buffer.expect("it comes back");
            if done.ticket == short {
                let needed_bytes = len as u64;
                assert_eq!(done.result, Err(ReadError::TooLarge { needed_bytes }));
                continue;
            }
            assert_eq!(done.result, Ok(len));
            let start = if done.ticket == first { 5 } else { 0 };
            assert!(done.ticket == first || done.ticket == second);
            let buffer = buffer.buffer().expect("it was one of the library");
            assert_eq!(tell(&buffer[start..start + len]), index);
        }
    }
}

/// One value that waits for the server holds up none of the others.
#[test]
fn a_value_that_waits_holds_up_nobody() {
    let seed = seed_from_env(21).unwrap();
    let _hint = ReplayHint(seed);
    let fabric = Sim::new(SimOptions {
        seed,
        ..SimOptions::default()
    });
    let world = World::over(|_| Arc::new(fabric), |_, options| options.lease_ms = 600_000);
    let dataset = filled(&world);
    let mut reader = world
        .session(options("reader"))
        .open("d")
        .unwrap()
        .reader()
        .unwrap();
    let keys: Vec<_> = (10..200).map(key).collect();
    assert!(reader.get_many(&keys).iter().all(Result::is_ok));
    let mut gone = dataset.locate(&key(9)).unwrap();
    gone.locator.tag ^= 1;
    // It is stale, and whether a renewal helps is not known before the server answers: much later.
    world.fabric.set_faults(SimFaults {
        frame_delay: 1.0,
        frame_delay_max: Duration::from_secs(3),
        ..SimFaults::default()
    });
    let stuck = reader.submit_at(&gone, None).unwrap();
    for round in 0..50 {
        let others: Vec<_> = (10..30)
            .map(|index| reader.submit(&key(index)).unwrap())
            .collect();
        for _ in &others {
            let done = reader.wait().unwrap();
            assert!(
                done.result.is_ok() && done.ticket != stuck,
                "round {round}: {done:?}"
            );
        }
    }
    world.fabric.set_faults(SimFaults::default());
    let done = reader.wait().unwrap();
    assert_eq!((done.ticket, done.result), (stuck, Err(ReadError::Stale)));
}

/// Tickets whose reader goes leave nothing behind, and reads on a network that fails are repeated. One in a hundred runs on a busy
/// machine had a value refused for lack of room: a connection failed as it was posted to, and another one had passed that
/// value over.
#[test]
fn tickets_on_a_rough_network_all_come() {
    let seed = seed_from_env(22).unwrap();
    let _hint = ReplayHint(seed);
    let fabric = Sim::new(SimOptions {
        seed,
        ..SimOptions::default()
    });
    let world = World::over(|_| Arc::new(fabric), |_, _| {});
    filled(&world);
    let patient = ClientOptions {
        deadline: Duration::from_secs(60),
        ..options("reader")
    };
    let dataset = world.session(patient).open("d").unwrap();
    let mut reader = dataset.reader().unwrap();
    world.fabric.set_faults(SimFaults {
        read_delay: 0.05,
        read_delay_max: Duration::from_millis(2),
        torn_read: 0.02,
        torn_pause_max: Duration::from_millis(1),
        reorder: 0.2,
        read_error: 0.003,
        disconnect: 0.03,
        ..SimFaults::default()
    });
    for _ in 0..4 {
        let asked: HashMap<_, _> = (0..KEYS)
            .map(|index| (reader.submit(&key(index)).unwrap(), index))
            .collect();
        for _ in 0..KEYS {
            let done = reader.wait().unwrap();
            done.result.unwrap();
            assert_eq!(tell(&done.value), asked[&done.ticket]);
        }
        // These are given up, in flight.
        let mut given_up = dataset.reader().unwrap();
        for index in 0..KEYS {
            given_up.submit(&key(index)).unwrap();
        }
        given_up.poll();
        drop(given_up);
    }
    world.fabric.set_faults(SimFaults::default());
    let injected = world.fabric.injected();
    assert!(
        injected.read_errors > 0 && injected.disconnects > 0,
        "{injected:?}"
    );
    assert!(dataset.counters().reconnects > 0);
}

/// Connections that fail where the server takes no more than there are, and another reader wants them: what is in flight
/// on the others goes on.
#[test]
fn connections_that_fail_at_the_limit_lose_nothing() {
    let seed = seed_from_env(23).unwrap();
    let _hint = ReplayHint(seed);
    let fabric = Sim::new(SimOptions {
        seed,
        ..SimOptions::default()
    });
    let limit = |options: &mut kv_server::control::Options| options.data_connections_per_session_max = 4;
    let world = World::over(|_| Arc::new(fabric), |_, options| limit(options));
    filled(&world);
    let patient = ClientOptions {
        deadline: Duration::from_secs(15),
        ..options("reader")
    };
    let dataset = world.session(patient).open("d").unwrap();
    let mut reader = dataset.reader().unwrap();
    let keys: Vec<_> = (0..KEYS).filter(|index| len(*index) < 100_000).map(key).collect();
    assert!(reader.get_many(&keys).iter().all(Result::is_ok));
    assert_eq!(dataset.counters().connections, 4);
    world.fabric.set_faults(SimFaults {
        read_delay: 0.3,
        read_delay_max: Duration::from_millis(3),
        read_error: 0.01,
        ..SimFaults::default()
    });
    // Another one takes a place that comes free, so that a lost connection cannot be had again.
    let mut other = dataset.reader().unwrap();
    let rounds = |reader: &mut kv_client::Reader| {
        for _ in 0..8 {
            for (got, key) in reader.get_many(&keys).into_iter().zip(&keys) {
                match got {
                    Ok(value) => assert_eq!(self::key(tell(&value)), *key),
                    Err(error) => assert!(matches!(error, ReadError::ConnectionLimit(_)), "{error}"),
                }
            }
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| rounds(&mut other));
        rounds(&mut reader);
    });
    drop(other);
    world.fabric.set_faults(SimFaults::default());
    assert!(dataset.counters().reconnects > 0);
    assert!(reader.get_many(&keys).iter().all(Result::is_ok));
}

/// Threads that share a client take turns. A call that reads on for longer than another one's deadline had that one end with
/// a timeout.
#[test]
fn a_long_call_lets_those_of_other_threads_have_their_turn() {
    const DEADLINE: Duration = Duration::from_secs(1);
    let world = World::<Sim>::new();
    filled(&world);
    let settings = ClientOptions {
        deadline: DEADLINE,
        ..options("reader")
    };
    let dataset = world.session(settings).open("d").unwrap();
    let short: Vec<_> = (0..KEYS).filter(|index| len(*index) < 5000).map(key).collect();
    let long: Vec<_> = short.iter().cycle().take(50_000).collect();
    assert!(dataset.get_many(&short).iter().all(Result::is_ok));
    world.fabric.set_faults(SimFaults {
        read_delay: 1.0,
        read_delay_max: Duration::from_millis(6),
        ..SimFaults::default()
    });
    let (began, mut turns) = (Instant::now(), 0);
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| {
            assert!(dataset.get_many(&long).iter().all(Result::is_ok));
        });
        while !reading.is_finished() {
            assert!(dataset.get(&short[0]).is_ok());
            turns += 1;
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    // Else it shows nothing.
    assert!(
        began.elapsed() > DEADLINE && turns > 1,
        "{:?} {turns}",
        began.elapsed()
    );
}

struct Unpark(Thread, AtomicU64);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.1.fetch_add(1, Ordering::SeqCst);
        self.0.unpark();
    }
}

/// The smallest runtime there is.
/// Who polled alone never met a deadline: only waiting looked at the clock.
#[test]
fn who_only_polls_meets_the_deadline_too_and_gets_no_bytes() {
    let world = World::<Sim>::new();
    filled(&world);
    let hasty = ClientOptions {
        deadline: Duration::from_millis(500),
        ..options("reader")
    };
    let dataset = world.session(hasty).open("d").unwrap();
    let mut reader = dataset.reader().unwrap();
    assert_eq!(tell(&reader.get(&key(1)).unwrap()), 1);
    // READs that as good as never end: what flies tells nothing by itself.
    world.client.set_faults(SimFaults {
        read_delay: 1.0,
        read_delay_max: Duration::from_secs(10_000),
        ..SimFaults::default()
    });
    let ticket = reader.submit(&key(2)).unwrap();
    let start = Instant::now();
    let done = loop {
        if let Some(done) = reader.poll() {
            break done;
        }
        assert!(start.elapsed() < Duration::from_secs(30), "no deadline");
    };
    assert_eq!(done.ticket, ticket);
    assert!(done.result.is_err() && done.value.is_empty());
    assert!(reader.poll().is_none());
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let woken = Arc::new(Unpark(std::thread::current(), AtomicU64::new(0)));
    let waker = Waker::from(Arc::clone(&woken));
    let mut future = pin!(future);
    loop {
        let before = woken.1.load(Ordering::SeqCst);
        if let Poll::Ready(done) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return done;
        }
        while woken.1.load(Ordering::SeqCst) == before {
            std::thread::park();
        }
    }
}

fn futures<F: TestFabric>() {
    let world = World::<F>::new();
    let dataset = filled(&world);
    let reader = dataset.async_reader().unwrap();
    std::thread::scope(|scope| {
        for first in 0..4 {
            let reader = reader.clone();
            scope.spawn(move || {
                let asked: Vec<_> = (first..KEYS)
                    .step_by(4)
                    .map(|index| (index, reader.get(&key(index))))
                    .collect();
                for (index, value) in asked {
                    if index % 3 == 0 {
                        // Given up: its value goes back by itself.
                        continue;
                    }
                    let value: Result<Value, ReadError> = block_on(value);
                    assert_eq!(tell(&value.unwrap()), index);
                }
            });
        }
    });
    let at = dataset.locate(&key(8)).unwrap();
    assert_eq!(tell(&block_on(reader.get_at(&at, Some(&key(8)))).unwrap()), 8);
    assert_eq!(block_on(reader.get(b"absent")).unwrap_err(), ReadError::NotFound);
    assert_eq!(
        block_on(reader.get(b"")).unwrap_err(),
        ReadError::BadKey { len_bytes: 0 }
    );
    let left = reader.get(&key(1));
    drop(reader);
    // The driver is gone: what it had not begun ends.
    assert!(matches!(block_on(left), Ok(_) | Err(ReadError::Closed)));
}

#[test]
fn futures_need_no_runtime_over_local() {
    futures::<Local>();
}

#[test]
fn futures_need_no_runtime_over_sim() {
    futures::<Sim>();
}

#[test]
#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]
fn futures_need_no_runtime_over_verbs() {
    futures::<Verbs>();
}

/// How often the threads of this process named `kv-reader` have slept and woken.
fn wakes_of_drivers() -> Vec<String> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let status = tasks.map(|task| std::fs::read_to_string(task.unwrap().path().join("status")).unwrap());
    let drivers = status.filter(|status| status.starts_with("Name:\tkv-reader\n"));
    let wakes = |status: String| {
        let lines = status.lines().filter(|line| line.contains("ctxt_switches"));
        lines.collect::<Vec<_>>().join(" ")
    };
    drivers.map(wakes).collect()
}

/// A driver that nobody asks anything sleeps, and does not wake to look.
#[test]
fn an_idle_async_reader_uses_no_processor() {
    const ALONE: &str = "VKV_TEST_ALONE";
    // Alone in a process: other tests have drivers too.
    if std::env::var_os(ALONE).is_none() {
        let alone = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "reader::an_idle_async_reader_uses_no_processor"])
            .env(ALONE, "1")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&alone.stdout);
        assert!(alone.status.success() && said.contains("1 passed"), "{said}");
        return;
    }
    let world = World::<Local>::new();
    let dataset = world.dataset("d");
    dataset.put(b"k", &told(1, 700)).unwrap();
    let reader = dataset.async_reader().unwrap();
    assert_eq!(tell(&block_on(reader.get(b"k")).unwrap()), 1);
    // It may still be on its way to sleep.
    let mut before = wakes_of_drivers();
    loop {
        std::thread::sleep(Duration::from_millis(300));
        let now = wakes_of_drivers();
        assert_eq!(now.len(), 1);
        if now == before {
            break;
        }
        before = now;
    }
    std::thread::sleep(Duration::from_millis(600));
    assert_eq!(wakes_of_drivers(), before);
    assert_eq!(tell(&block_on(reader.get(b"k")).unwrap()), 1);
    assert_ne!(wakes_of_drivers(), before);
}

/// Values live longer than all that they came by.
#[test]
fn values_outlive_their_session() {
    let mut world = World::<Local>::new();
    let values: Vec<_> = {
        let dataset = filled(&world);
        let mut reader = dataset.reader().unwrap();
        (10..40)
            .map(|index| (index, reader.get(&key(index)).unwrap()))
            .collect()
    };
    world.stop();
    for (index, value) in values {
        assert_eq!(tell(&value), index);
    }
}

/// A value that waited behind others had used its time up when its turn came, and took its connection along.
#[test]
fn tickets_that_wait_behind_others_have_the_time_that_those_take() {
    let seed = seed_from_env(24).unwrap();
    let _hint = ReplayHint(seed);
    let fabric = Sim::new(SimOptions {
        seed,
        ..SimOptions::default()
    });
    let world = World::over(|_| Arc::new(fabric), |_, _| {});
    filled(&world);
    let settings = ClientOptions {
        deadline: Duration::from_secs(2),
        data_connections: 1,
        depth: 32,
        ..options("reader")
    };
    let dataset = world.session(settings).open("d").unwrap();
    let mut reader = dataset.reader().unwrap();
    let small: Vec<_> = (0..KEYS).filter(|index| len(*index) < 100_000).collect();
    let places: Vec<_> = small
        .iter()
        .map(|index| dataset.locate(&key(*index)).unwrap())
        .collect();
    world.fabric.set_faults(SimFaults {
        read_delay: 1.0,
        read_delay_max: Duration::from_millis(600),
        ..SimFaults::default()
    });
    // One after the other: neighbours would come together. All of it takes longer than the deadline of one.
    let asked: HashMap<_, _> = (0..small.len())
        .map(|index| index * 7 % small.len())
        .map(|index| (reader.submit_at(&places[index], None).unwrap(), small[index]))
        .collect();
    let begun = Instant::now();
    for _ in 0..asked.len() {
        let done = reader.wait().unwrap();
        assert!(
            done.result.is_ok(),
            "after {:?}: {:?}",
            begun.elapsed(),
            done.result
        );
        assert_eq!(tell(&done.value), asked[&done.ticket]);
    }
    assert!(begun.elapsed() > Duration::from_secs(2), "it shows nothing");
    assert_eq!(dataset.counters().reconnects, 0);
}

#[test]
fn tickets_have_a_limit_that_is_told() {
    let world = World::<Local>::new();
    let dataset = filled(&world);
    let mut reader = dataset.reader().unwrap();
    let mut submitted = 0;
    while reader.submit(b"absent").is_ok() {
        submitted += 1;
    }
    assert_eq!(
        (submitted, reader.submit(b"absent")),
        (1 << 16, Err(ReadError::Busy))
    );
    for _ in 0..submitted {
        assert_eq!(reader.wait().unwrap().result, Err(ReadError::NotFound));
    }
    assert!(reader.submit(b"absent").is_ok());
}

/// A key of the caller's whose bytes cannot be had.
struct Panics;

impl AsRef<[u8]> for Panics {
    fn as_ref(&self) -> &[u8] {
        panic!("the caller's own")
    }
}

/// The tickets of a reader were forgotten when a call beside them unwound: `wait` told that there were none.
#[test]
fn a_call_that_panics_leaves_the_tickets() {
    let world = World::<Local>::new();
    let dataset = filled(&world);
    let mut reader = dataset.reader().unwrap();
    assert_eq!(tell(&reader.get(&key(7)).unwrap()), 7);
    let buffer = dataset.allocate(4096).unwrap();
    let first = reader.submit(&key(7)).unwrap();
    let second = reader.submit_into(&key(8), buffer, 0).unwrap();
    let unwound = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        reader.get_many(&[Panics]);
    }));
    assert!(unwound.is_err() && reader.outstanding() == 2);
    let done = [reader.wait().unwrap(), reader.wait().unwrap()];
    assert!(done.iter().any(|done| done.ticket == first) && reader.wait().is_none());
    for done in done {
        assert!(
            matches!(done.result, Ok(_) | Err(ReadError::Fabric(_))),
            "{:?}",
            done.result
        );
        assert_eq!(done.buffer.is_some(), done.ticket == second);
    }
    assert_eq!(tell(&reader.get(&key(7)).unwrap()), 7);
}

/// The batch of a tensor: each value at its own place, and nothing beside them.
fn batches<F: TestFabric>() {
    const STRIDE: usize = 16_384;
    let world = World::<F>::new();
    let dataset = filled(&world);
    let mut reader = dataset.reader().unwrap();
    let small: Vec<_> = (0..KEYS).filter(|index| len(*index) < 16_000).take(150).collect();
    let mut keys: Vec<_> = small.iter().map(|index| key(*index)).collect();
    keys[3] = b"absent".to_vec();
    let count = keys.len();
    let mut offsets: Vec<_> = (0..count).map(|place| 100 + place * STRIDE).collect();
    // There is no room for the sixth.
    offsets[6] = offsets[5] + 10;
    let mut buffer = dataset.allocate(100 + count * STRIDE).unwrap();
    for round in 0..3 {
        buffer.fill(0xAA);
        let lens = match round {
            0 => dataset.get_many_into(&keys, &mut buffer, &offsets),
            _ => reader.get_many_into(&keys, &mut buffer, &offsets),
        };
        let mut end = 0;
        for (place, got) in lens.iter().enumerate() {
            let value_len = len(small[place]) + 8;
            match place {
                3 => assert_eq!(*got, Err(ReadError::NotFound)),
                5 => {
                    let needed_bytes = value_len as u64;
                    assert_eq!(*got, Err(ReadError::TooLarge { needed_bytes }));
                    end = offsets[6];
                    continue;
                }
                _ => {
                    assert_eq!(*got, Ok(value_len), "{place}");
                    let value = &buffer[offsets[place]..offsets[place] + value_len];
                    assert_eq!(tell(value), small[place]);
                }
            }
            assert!(buffer[end..offsets[place]].iter().all(|byte| *byte == 0xAA));
            end = offsets[place] + got.unwrap_or(0);
        }
        assert!(buffer[end..].iter().all(|byte| *byte == 0xAA));
    }
    let [mut fewer, mut beyond, mut down] = [offsets.clone(), offsets.clone(), offsets.clone()];
    fewer.pop();
    *beyond.last_mut().unwrap() = buffer.len() + 1;
    down.swap(7, 8);
    for wrong in [fewer, beyond, down] {
        let lens = reader.get_many_into(&keys, &mut buffer, &wrong);
        assert_eq!(lens, vec![Err(ReadError::BadPlaces); count]);
    }
    assert!(reader.get_many_into::<&str>(&[], &mut buffer, &[]).is_empty());
}

#[test]
fn a_batch_goes_to_its_places_by_one_call_over_local() {
    batches::<Local>();
}

#[test]
fn a_batch_goes_to_its_places_by_one_call_over_sim() {
    batches::<Sim>();
}

#[test]
#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]
fn a_batch_goes_to_its_places_by_one_call_over_verbs() {
    batches::<Verbs>();
}

/// Memory that is registered with another session was posted all the same: the device refused it, again and again, and with each
/// try the connection was lost for all.
fn other_sessions<F: TestFabric>() {
    let world = World::<F>::new();
    let dataset = filled(&world);
    let mut reader = dataset.reader().unwrap();
    assert_eq!(tell(&reader.get(&key(7)).unwrap()), 7);
    let fabric = F::client(&world.fabric, &world.address);
    let other = kv_client::Server::connect_over(fabric, &world.address, options("reader")).unwrap();
    let other = other.open("d").unwrap();
    let mut buffer = other.allocate(4096).unwrap();
    let at = dataset.locate(&key(7)).unwrap();
    let before = dataset.counters();
    let refused = Err(ReadError::OtherSession);
    assert_eq!(dataset.get_into(&key(7), &mut buffer, 0), refused);
    assert_eq!(reader.get_into(&key(7), &mut buffer, 0), refused);
    assert_eq!(reader.get_at_into(&at, None, &mut buffer, 0), refused);
    assert_eq!(reader.get_many_into(&[key(7)], &mut buffer, &[0]), vec![refused]);
    assert_eq!(dataset.get_many_into(&[key(7)], &mut buffer, &[0]), vec![refused]);
    let (error, buffer) = reader.submit_into(&key(7), buffer, 0).unwrap_err();
    assert_eq!(error, ReadError::OtherSession);
    let (error, mut buffer) = reader.submit_at_into(&at, None, buffer, 0).unwrap_err();
    assert_eq!(error, ReadError::OtherSession);
    assert!(reader.wait().is_none());
    let after = dataset.counters();
    assert_eq!(
        (after.reconnects, after.reads_posted),
        (0, before.reads_posted),
        "{after:?}"
    );
    let len = other.get_into(&key(7), &mut buffer, 0).unwrap();
    assert_eq!(tell(&buffer[..len]), 7);
}

#[test]
fn buffers_of_another_session_are_refused_over_local() {
    other_sessions::<Local>();
}

#[test]
#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]
fn buffers_of_another_session_are_refused_over_verbs() {
    other_sessions::<Verbs>();
}
