//! Storing: streams, batches, and what is refused on the way.

use std::io::{self, Read};
use std::time::Duration;

use crate::harness::{World, options, value};
use kv_client::{ClientError, ReadError};
use kv_fabric::local::Local;
use kv_fabric::sim::{Sim, SimFaults};
use kv_proto::control::Status;

/// Gives its bytes a few at a time, then fails if it is told to.
struct Dribble {
    bytes: Vec<u8>,
    at: usize,
    fails: bool,
}

impl Dribble {
    fn new(len: usize) -> Self {
        Self {
            bytes: value(3, len),
            at: 0,
            fails: false,
        }
    }
}

impl Read for Dribble {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let left = &self.bytes[self.at..];
        if left.is_empty() && self.fails {
            return Err(io::Error::other("the disk is gone"));
        }
        let len = left.len().min(out.len()).min(70_001);
        out[..len].copy_from_slice(&left[..len]);
        self.at += len;
        Ok(len)
    }
}

#[test]
fn streams_of_the_announced_length_are_stored() {
    let world = World::<Local>::new();
    let dataset = world.dataset("d");
    for len in [0, 1, 70_000, 1 << 20, (1 << 20) + 1, 9_000_000] {
        let mut source = Dribble::new(len);
        dataset.put_from(b"k", len as u64, &mut source).unwrap();
        assert!(dataset.get(b"k").unwrap() == source.bytes, "{len}");
    }
}

#[test]
fn streams_of_another_length_and_failing_ones_store_nothing() {
    let world = World::<Local>::new();
    let dataset = world.dataset("d");
    dataset.put(b"k", b"before").unwrap();
    for len in [1000_usize, 3_000_000] {
        for (announced, longer) in [(len as u64 + 5, false), (len as u64 - 5, true)] {
            let error = dataset
                .put_from(b"k", announced, &mut Dribble::new(len))
                .unwrap_err();
            let ClientError::SourceLength {
                announced_bytes,
                longer: said,
                ..
            } = error
            else {
                panic!("{error}");
            };
            assert_eq!((announced_bytes, said), (announced, longer));
        }
        let mut failing = Dribble::new(len);
        failing.fails = true;
        let error = dataset.put_from(b"k", len as u64 + 5, &mut failing).unwrap_err();
        assert!(error.to_string().contains("the disk is gone"), "{error}");
    }
    assert_eq!(dataset.get(b"k").unwrap(), b"before");
    // And the windows of those are free again.
    for _ in 0..40 {
        let _ = dataset
            .put_from(b"k", 3_000_001, &mut Dribble::new(3_000_000))
            .unwrap_err();
    }
    dataset.put(b"k", &value(1, 3_000_000)).unwrap();
}

#[test]
fn many_puts_fly_at_once_and_each_has_its_outcome() {
    let world = World::<Local>::new();
    let dataset = world.dataset("d");
    let mut items: Vec<_> = (0..500_usize)
        .map(|index| {
            let len = [10, 5000, 70_000, 400_000][index % 4] / (index / 100 + 1);
            (format!("key {index}").into_bytes(), value(index as u64, len))
        })
        .collect();
    items[77].0 = vec![b'x'; 2000];
    items[400].0.clear();
    let outcomes = dataset.put_many(&items);
    let mut sequences = Vec::new();
    for (index, (outcome, (key, value))) in outcomes.into_iter().zip(&items).enumerate() {
        if [77, 400].contains(&index) {
            assert!(matches!(outcome, Err(ClientError::BadKey { .. })));
            continue;
        }
        let outcome = outcome.unwrap_or_else(|error| panic!("{index}: {error}"));
        sequences.push(outcome.sequence);
        assert!(
            dataset.get_at(&outcome.locator, Some(key)).as_ref() == Ok(value),
            "{index}"
        );
    }
    sequences.sort_unstable();
    assert_eq!(sequences, (1..=498).collect::<Vec<_>>());
}

#[test]
fn several_threads_put_through_one_session() {
    let world = World::<Local>::new();
    let dataset = world.dataset("d");
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let dataset = dataset.clone();
            scope.spawn(move || {
                for index in 0..30 {
                    let key = format!("{thread} {index}");
                    let bytes = value(thread * 1000 + index, 300_000);
                    dataset.put(key.as_bytes(), &bytes).unwrap();
                    assert!(dataset.get(key.as_bytes()).unwrap() == bytes);
                }
            });
        }
    });
    assert_eq!(dataset.list().count(), 120);
}

#[test]
fn a_full_memory_budget_is_said_and_what_was_answered_stays() {
    let world = World::<Local>::with(|store, _| {
        store.memory_budget_bytes = 48 << 20;
    });
    let dataset = world.dataset("d");
    let mut stored = Vec::new();
    let error = loop {
        let index = stored.len() as u64;
        assert!(index < 200, "the budget was never reached");
        let bytes = value(index, 1 << 20);
        match dataset.put(&index.to_le_bytes(), &bytes) {
            Ok(_) => stored.push(bytes),
            Err(error) => break error,
        }
    };
    assert!(
        matches!(
            &error,
            ClientError::Refused {
                status: Status::NoMemory,
                ..
            }
        ),
        "{error}"
    );
    let reader = world.session(options("reader")).open("d").unwrap();
    for (index, bytes) in stored.iter().enumerate() {
        assert!(reader.get(&(index as u64).to_le_bytes()).unwrap() == *bytes);
    }
}

#[test]
fn deleting_says_whether_the_key_was_there() {
    let world = World::<Local>::new();
    let dataset = world.dataset("d");
    assert!(!dataset.delete(b"k").unwrap());
    dataset.put(b"k", &value(1, 5 << 20)).unwrap();
    assert!(dataset.delete(b"k").unwrap());
    assert!(!dataset.delete(b"k").unwrap());
    assert_eq!(dataset.get(b"k"), Err(ReadError::NotFound));
    assert_eq!(dataset.list().count(), 0);
    dataset.put(b"k", b"again").unwrap();
    assert_eq!(dataset.get(b"k").unwrap(), b"again");
}

/// Up to 1 MiB of WRITEs could be ahead of a RENEW that was hurried, and a slow link made it late.
#[test]
fn no_frame_waits_behind_more_than_one_window_of_writes() {
    const WINDOW_BYTES: u64 = 128 << 10;
    let world = World::<Sim>::new();
    let dataset = world.dataset("d");
    world.fabric.set_faults(SimFaults {
        frame_delay: 1.0,
        frame_delay_max: Duration::from_millis(2),
        ..SimFaults::default()
    });
    let items: Vec<(String, Vec<u8>)> = (0..60)
        .map(|number| {
            (
                format!("{number}"),
                value(number, 50_000 + 10_000 * number as usize),
            )
        })
        .collect();
    for result in dataset.put_many(&items) {
        result.unwrap();
    }
    let most = world.fabric.write_ahead_max_bytes();
    // Full windows were under way, and never more than one's worth.
    assert!((100_000..=WINDOW_BYTES).contains(&most), "{most}");
}
