//! Readers beside writers: what is read was current between call and return, whatever moves.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::harness::{TestFabric, World, options, tell, told};
use kv_client::ReadError;
use kv_fabric::local::Local;
use kv_fabric::sim::Sim;
use kv_fabric::verbs::Verbs;

const KEYS: u64 = 16;

fn key(index: u64) -> Vec<u8> {
    format!("hot {index}").into_bytes()
}

/// One writer overwrites each key in turn and says what is answered; readers see nothing older than was answered
/// before they asked, and nothing newer than was begun when they had it.
fn overwrites<F: TestFabric>(span: Duration) {
    let world = World::<F>::new();
    let writer = world.dataset("d");
    for index in 0..KEYS {
        writer.put(&key(index), &told(index, 900)).unwrap();
    }
    let (begun, answered) = (AtomicU64::new(0), AtomicU64::new(0));
    let stop = AtomicBool::new(false);
    let session = world.session(options("reader"));
    let total = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for reader in 0..2 {
            let dataset = session.open("d").unwrap();
            let (begun, answered, stop, total) = (&begun, &answered, &stop, &total);
            scope.spawn(move || {
                let mut index = reader;
                while !stop.load(Ordering::SeqCst) {
                    index = (index + 1) % KEYS;
                    let oldest = answered.load(Ordering::SeqCst);
                    let round = tell(&dataset.get(&key(index)).unwrap()) / KEYS;
                    let newest = begun.load(Ordering::SeqCst);
                    assert!(
                        round >= oldest && round <= newest,
                        "{oldest} <= {round} <= {newest}"
                    );
                    total.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let until = Instant::now() + span;
        let mut round = 0;
        while Instant::now() < until {
            round += 1;
            begun.store(round, Ordering::SeqCst);
            let items: Vec<_> = (0..KEYS)
                .map(|index| (key(index), told(round * KEYS + index, 900)))
                .collect();
            for outcome in writer.put_many(&items) {
                outcome.unwrap();
            }
            answered.store(round, Ordering::SeqCst);
        }
        stop.store(true, Ordering::SeqCst);
    });
    assert!(total.load(Ordering::Relaxed) > 100);
}

#[test]
fn overwritten_values_are_current_over_local() {
    overwrites::<Local>(Duration::from_secs(2));
}

#[test]
fn overwritten_values_are_current_over_sim() {
    overwrites::<Sim>(Duration::from_secs(2));
}

/// While the index grows by splits, a key that was answered is always found, and one that was deleted never.
fn growth<F: TestFabric>(count: u64) {
    let world = World::<F>::new();
    let writer = world.dataset("d");
    let answered = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    let session = world.session(options("reader"));
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..2_u64)
            .map(|reader| {
                let dataset = session.open("d").unwrap();
                let (answered, stop) = (&answered, &stop);
                scope.spawn(move || {
                    let mut state = reader + 1;
                    let mut rounds = 0_u64;
                    while !stop.load(Ordering::SeqCst) {
                        let known = answered.load(Ordering::SeqCst);
                        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                        if known == 0 {
                            continue;
                        }
                        let index = (state >> 33) % known;
                        let got = dataset.get(format!("grow {index}").as_bytes());
                        assert_eq!(tell(&got.unwrap()), index);
                        let absent = dataset.get(format!("gone {index}").as_bytes());
                        assert_eq!(absent, Err(ReadError::NotFound));
                        rounds += 1;
                    }
                    (rounds, dataset.counters())
                })
            })
            .collect();
        for first in (0..count).step_by(64) {
            let items: Vec<_> = (first..first + 64)
                .map(|index| (format!("grow {index}"), told(index, 40)))
                .collect();
            for outcome in writer.put_many(&items) {
                outcome.unwrap();
            }
            answered.store(first + 64, Ordering::SeqCst);
        }
        stop.store(true, Ordering::SeqCst);
        for reader in readers {
            let (rounds, counters) = reader.join().unwrap();
            assert!(rounds > 0);
            assert!(counters.stale > 0, "no split was met: {counters:?}");
        }
    });
    // And all of it lists.
    let mut listed: Vec<_> = writer.list().map(|entry| entry.unwrap().key).collect();
    listed.sort();
    listed.dedup();
    assert_eq!(listed.len() as u64, count.next_multiple_of(64));
}

#[test]
fn keys_are_found_while_the_index_splits_over_local() {
    growth::<Local>(6000);
}

#[test]
fn keys_are_found_while_the_index_splits_over_sim() {
    growth::<Sim>(3000);
}

/// While most keys are deleted and groups of the index are joined, a key that stays is always found; one that was
/// deleted is not, once that was answered.
fn shrinking<F: TestFabric>(count: u64) {
    const WRITERS: u64 = 4;
    let world = World::<F>::new();
    let writer = world.dataset("d");
    let name = |index: u64| format!("key {index}");
    let stays = |index: u64| index.is_multiple_of(10);
    let items: Vec<_> = (0..count).map(|index| (name(index), told(index, 40))).collect();
    for outcome in writer.put_many(&items) {
        outcome.unwrap();
    }
    // Each writer has its share, in order: what is done of it.
    let done: Vec<AtomicU64> = (0..WRITERS).map(|_| AtomicU64::new(0)).collect();
    let stop = AtomicBool::new(false);
    let session = world.session(options("reader"));
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..2_u64)
            .map(|reader| {
                let dataset = session.open("d").unwrap();
                let (done, stop) = (&done, &stop);
                scope.spawn(move || {
                    // All of the directory is known before a group is joined.
                    for found in dataset.locate_many(&(0..count).map(name).collect::<Vec<_>>()) {
                        assert!(found.is_ok() || found == Err(ReadError::NotFound));
                    }
                    let before = dataset.counters().stale;
                    let (mut state, mut rounds) = (reader + 1, 0_u64);
                    while !stop.load(Ordering::SeqCst) {
                        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                        let index = (state >> 33) % count;
                        let gone = done[(index % WRITERS) as usize].load(Ordering::SeqCst) > index;
                        match dataset.get(name(index).as_bytes()) {
                            Ok(value) => {
                                assert_eq!(tell(&value), index);
                                assert!(stays(index) || !gone, "key {index} was deleted");
                            }
                            Err(error) => {
                                assert_eq!(error, ReadError::NotFound);
                                assert!(!stays(index), "key {index} was there");
                            }
                        }
                        rounds += 1;
                    }
                    (rounds, dataset.counters().stale - before)
                })
            })
            .collect();
        let writers: Vec<_> = (0..WRITERS)
            .map(|number| {
                let (writer, done) = (&writer, &done);
                scope.spawn(move || {
                    for index in (number..count).step_by(WRITERS as usize) {
                        if !stays(index) {
                            assert!(writer.delete(name(index).as_bytes()).unwrap());
                        }
                        done[number as usize].store(index + 1, Ordering::SeqCst);
                    }
                })
            })
            .collect();
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        stop.store(true, Ordering::SeqCst);
        for reader in readers {
            let (rounds, stale) = reader.join().unwrap();
            assert!(
                rounds > 0 && stale > 0,
                "{rounds} rounds, {stale} that met a joined group"
            );
        }
    });
    let mut listed = 0;
    for entry in writer.list() {
        entry.unwrap();
        listed += 1;
    }
    assert_eq!(listed, count.div_ceil(10));
}

#[test]
fn keys_are_found_while_groups_of_the_index_are_joined_over_local() {
    shrinking::<Local>(6000);
}

#[test]
fn keys_are_found_while_groups_of_the_index_are_joined_over_sim() {
    shrinking::<Sim>(3000);
}

#[test]
#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]
fn overwritten_values_are_current_over_verbs() {
    overwrites::<Verbs>(Duration::from_secs(4));
}

#[test]
#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]
fn keys_are_found_while_the_index_splits_over_verbs() {
    growth::<Verbs>(2000);
}
