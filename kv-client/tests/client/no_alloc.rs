//! What a GET allocates once its reader is warm: nothing.
//!
//! # Safety
//! The allocator hands every call on to the system's, unchanged, and only counts; so its obligations are the system's.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use crate::harness::{TestFabric, World, options, value};
use kv_fabric::local::Local;
use kv_fabric::verbs::Verbs;

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call is the system allocator's with the caller's own arguments.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's obligations are the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        // SAFETY: `start` came from the system allocator, with this layout.
        unsafe { System.dealloc(start, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const ROUNDS: u64 = 20;

/// Allocations of this thread while `work` runs, once it has run a few times.
fn allocations(mut work: impl FnMut()) -> u64 {
    for _ in 0..8 {
        work();
    }
    let before = ALLOCATIONS.get();
    for _ in 0..ROUNDS {
        work();
    }
    ALLOCATIONS.get() - before
}

fn warm<F: TestFabric>(keys: usize) {
    let world = World::<F>::with(|_, options| {
        // Nothing changes, and so nothing is told.
        options.lease_ms = 600_000;
        options.max_lag_ms = 600_000;
    });
    let writer = world.dataset("d");
    let items: Vec<_> = (0..keys)
        .map(|index| (format!("key {index}"), value(index as u64, 10 + index * 2000)))
        .collect();
    assert!(writer.put_many(&items).iter().all(Result::is_ok));
    let dataset = world.session(options("reader")).open("d").unwrap();
    let mut reader = dataset.reader().unwrap();
    let places: Vec<_> = items
        .iter()
        .map(|(key, _)| dataset.locate(key.as_bytes()).unwrap())
        .collect();
    let mut buffer = dataset.allocate(keys * 2000 + 10).unwrap();
    let single = allocations(|| {
        for ((key, value), at) in items.iter().zip(&places) {
            assert_eq!(reader.get_into(key.as_bytes(), &mut buffer, 0), Ok(value.len()));
            assert_eq!(reader.get_at_into(at, None, &mut buffer, 0), Ok(value.len()));
            assert!(reader.get(key.as_bytes()).unwrap() == **value);
        }
    });
    assert_eq!(single, 0, "one by one");
    let mut sum = 0;
    let batched = allocations(|| {
        for ((key, _), at) in items.iter().zip(&places) {
            reader.submit(key.as_bytes()).unwrap();
            reader.submit_at(at, None).unwrap();
        }
        while let Some(done) = reader.wait() {
            sum += done.result.unwrap();
        }
    });
    assert_eq!(batched, 0, "by tickets");
    assert_eq!(
        sum,
        (ROUNDS as usize + 8) * 2 * items.iter().map(|(_, value)| value.len()).sum::<usize>()
    );
    // A shared client pays for the vectors that it returns, and nothing else.
    let vectors = allocations(|| {
        let client = dataset.get_many(&["key 1", "key 2", "key 3"]);
        assert!(client.iter().all(Result::is_ok));
    });
    assert_eq!(vectors, ROUNDS * 4, "three values and their list");
}

#[test]
fn a_warm_reader_allocates_nothing() {
    warm::<Local>(60);
}

#[test]
#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]
fn a_warm_reader_allocates_nothing_over_verbs() {
    warm::<Verbs>(20);
}
