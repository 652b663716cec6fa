//! Values whose clients take their time, and what others find meanwhile.

use std::io::{self, Read};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use crate::harness::{World, options, value};
use kv_client::{ClientError, ClientOptions};
use kv_fabric::local::Local;
use kv_fabric::sim::Sim;
use kv_proto::layout::OPERATIONS_REMEMBERED;

const MIB: usize = 1 << 20;
/// Length of the streams.
const LONG: usize = 9 * MIB;

/// What streams stand before.
#[derive(Default)]
struct Gate {
    /// Whether it is open, and how many have come to it.
    state: Mutex<(bool, usize)>,
    changed: Condvar,
}

impl Gate {
    fn pass(&self) {
        let mut state = self.state.lock().unwrap();
        state.1 += 1;
        self.changed.notify_all();
        drop(self.changed.wait_while(state, |state| !state.0).unwrap());
    }

    fn open(&self) {
        self.state.lock().unwrap().0 = true;
        self.changed.notify_all();
    }

    /// Waits until so many have come.
    fn until(&self, count: usize) {
        let state = self.state.lock().unwrap();
        drop(self.changed.wait_while(state, |state| state.1 < count).unwrap());
    }
}

/// Gives a value whose second half waits at a gate.
struct Halting {
    bytes: Vec<u8>,
    at: usize,
    gate: Option<Arc<Gate>>,
}

impl Halting {
    fn new(seed: u64, gate: &Arc<Gate>) -> Self {
        Self {
            bytes: value(seed, LONG),
            at: 0,
            gate: Some(Arc::clone(gate)),
        }
    }
}

impl Read for Halting {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.at >= LONG / 2
            && let Some(gate) = self.gate.take()
        {
            gate.pass();
        }
        let len = out.len().min(self.bytes.len() - self.at);
        out[..len].copy_from_slice(&self.bytes[self.at..self.at + len]);
        self.at += len;
        Ok(len)
    }
}

/// Room for two values of more than one part, one of a session.
fn narrow() -> World<Local> {
    World::with(|store, _| store.gather_budget_bytes = 16 << 20)
}

/// Two streams held all that one session was given for arriving values, and a put of one byte failed after its
/// deadline: what ended an ingest of large files with small ones between them.
#[test]
fn short_values_do_not_wait_for_streams_nor_streams_for_ever() {
    let world = narrow();
    let session = world.session(ClientOptions {
        deadline: Duration::from_secs(3),
        ..options("admin")
    });
    session.create("d").unwrap();
    let dataset = session.open("d").unwrap();
    let gate = Arc::new(Gate::default());
    std::thread::scope(|scope| {
        let streams: Vec<_> = (0..3_u64)
            .map(|seed| {
                let (dataset, gate) = (dataset.clone(), &gate);
                scope.spawn(move || {
                    dataset.put_from(&seed.to_le_bytes(), LONG as u64, &mut Halting::new(seed, gate))
                })
            })
            .collect();
        gate.until(1);
        let mut failed = None;
        let begun = Instant::now();
        let mut count = 0_usize;
        // The streams that wait for the first do so past their deadline, and past the memory of their numbers.
        while failed.is_none()
            && (count < OPERATIONS_REMEMBERED + 100 || begun.elapsed() < Duration::from_secs(7))
        {
            let key = format!("short {count}");
            let bytes = value(
                count as u64,
                [1, 0, 100_000, 200_000, MIB][count % 5] >> (count / 20).min(8),
            );
            failed = dataset.put(key.as_bytes(), &bytes).err();
            count += 1;
        }
        gate.open();
        let streams: Vec<_> = streams.into_iter().map(|stream| stream.join().unwrap()).collect();
        assert!(failed.is_none(), "short value {count}: {failed:?}");
        for (seed, stored) in streams.into_iter().enumerate() {
            stored.unwrap_or_else(|error| panic!("stream {seed}: {error}"));
            assert!(dataset.get(&seed.to_le_bytes()).unwrap() == value(seed as u64, LONG));
        }
    });
}

/// More values of more than one part than there is room for, begun by many at once, and short ones among them.
#[test]
fn values_that_have_no_room_together_are_all_stored() {
    let world = narrow();
    let session = world.session(options("admin"));
    session.create("d").unwrap();
    let dataset = session.open("d").unwrap();
    let others: Vec<_> = ["writer", "admin"]
        .map(|key| world.session(options(key)).open("d").unwrap())
        .into();
    std::thread::scope(|scope| {
        for (thread, dataset) in others
            .into_iter()
            .chain([dataset.clone(), dataset.clone()])
            .enumerate()
        {
            scope.spawn(move || {
                let items: Vec<_> = (0..40_usize)
                    .map(|index| {
                        let seed = (thread * 1000 + index) as u64;
                        let len = if index % 8 == 0 {
                            5 * MIB + index
                        } else {
                            index * 5000
                        };
                        (seed.to_le_bytes(), value(seed, len))
                    })
                    .collect();
                for ((key, value), stored) in items.iter().zip(dataset.put_many(&items)) {
                    stored.unwrap();
                    assert!(dataset.get(key).unwrap() == *value);
                }
            });
        }
    });
}

/// The server was busy for the whole deadline: that is said as what it is, since it may pass.
#[test]
fn a_busy_server_is_told_from_one_that_does_not_answer() {
    let world = narrow();
    let dataset = world.dataset("d");
    let others = world.session(ClientOptions {
        deadline: Duration::from_secs(2),
        ..options("writer")
    });
    let other = others.open("d").unwrap();
    let gate = Arc::new(Gate::default());
    std::thread::scope(|scope| {
        let long = Halting::new(1, &gate);
        let holds = scope.spawn(|| {
            let mut long = long;
            dataset.put_from(b"long", LONG as u64, &mut long)
        });
        let second = scope.spawn(|| other.put_from(b"second", LONG as u64, &mut Halting::new(2, &gate)));
        gate.until(2);
        let refused = other.put_from(b"third", LONG as u64, &mut Halting::new(3, &gate));
        gate.open();
        holds.join().unwrap().unwrap();
        second.join().unwrap().unwrap();
        let error = refused.unwrap_err();
        assert!(matches!(error, ClientError::Busy { .. }), "{error}");
        assert!(
            error.to_string().contains("the server was busy for 2s"),
            "{error}"
        );
    });
}

/// Only the first value was told why none was stored; the others were said to have had no answer in time.
#[test]
fn what_keeps_all_values_from_being_stored_is_told_of_each() {
    let mut world = World::<Sim>::new();
    world.dataset("d");
    let impatient = ClientOptions {
        deadline: Duration::from_millis(700),
        ..options("writer")
    };
    let dataset = world.session(impatient).open("d").unwrap();
    world.stop();
    let items: Vec<_> = (0..5_u8).map(|index| ([index], [index])).collect();
    for stored in dataset.put_many(&items) {
        let error = stored.unwrap_err();
        assert!(error.to_string().contains(&world.address), "{error}");
    }
}
