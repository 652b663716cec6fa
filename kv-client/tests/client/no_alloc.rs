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

/// Far more is submitted than there is memory for: slots are given when READs are planned, and come free as values are taken
/// and dropped. They were given when values were queued, so that the first took all and the rest went to the heap.
fn more_than_there_are_slots<F: TestFabric>(counted: bool) {
    let world = World::<F>::with(|_, options| {
        options.lease_ms = 600_000;
        options.max_lag_ms = 600_000;
    });
    let writer = world.dataset("d");
    let items: Vec<_> = [(1 << 20, 40), (4096, 400)]
        .into_iter()
        .flat_map(|(len, count)| (0..count).map(move |index| (format!("{len} {index}"), value(index, len))))
        .collect();
    assert!(writer.put_many(&items).iter().all(Result::is_ok));
    let dataset = world.session(options("reader")).open("d").unwrap();
    let mut reader = dataset.reader().unwrap();
    let mut tickets = Vec::with_capacity(8000);
    for (range, count, doorbells) in [(0..40, 300, 0.5), (40..440, 8000, 0.2)] {
        let before = dataset.counters();
        let mut all = || {
            // No two of them are neighbours.
            let order = (0..count).map(|index| index * 7 % range.len() + range.start);
            tickets.clear();
            tickets.extend(order.map(|index| (reader.submit(items[index].0.as_bytes()).unwrap(), index)));
            for _ in 0..count {
                let done = reader.wait().unwrap();
                let index = tickets
                    .binary_search_by_key(&done.ticket, |(ticket, _)| *ticket)
                    .unwrap();
                assert!(done.value.is_registered() && done.value == items[tickets[index].1].1);
            }
        };
        (0..3).for_each(|_| all());
        let allocated = ALLOCATIONS.get();
        (0..3).for_each(|_| all());
        let allocated = ALLOCATIONS.get() - allocated;
        assert!(allocated == 0 || !counted, "{count}: {allocated}");
        let after = dataset.counters();
        let spent = (after.doorbells - before.doorbells) as f64 / (after.gets - before.gets) as f64;
        println!("{count}: {spent} doorbells a GET");
        assert!(spent <= doorbells, "{count}: {spent}");
    }
}

#[test]
fn values_that_are_dropped_as_they_come_need_no_heap() {
    more_than_there_are_slots::<Local>(true);
}

#[test]
fn values_that_are_dropped_as_they_come_need_no_heap_over_sim() {
    // The simulated network itself allocates.
    more_than_there_are_slots::<kv_fabric::sim::Sim>(false);
}

/// Wakes a thread.
struct Unpark(std::thread::Thread);

impl std::task::Wake for Unpark {
    fn wake(self: std::sync::Arc<Self>) {
        self.0.unpark();
    }
}

/// What futures are kept in is used again.
#[test]
fn futures_of_a_warm_reader_allocate_nothing_where_they_are_asked_for() {
    use std::future::Future;
    let world = World::<Local>::new();
    let dataset = world.dataset("d");
    dataset.put(b"key", &value(1, 5000)).unwrap();
    let reader = dataset.async_reader().unwrap();
    let waker = std::sync::Arc::new(Unpark(std::thread::current())).into();
    let mut context = std::task::Context::from_waker(&waker);
    let mut futures = Vec::with_capacity(50);
    let count = allocations(|| {
        futures.extend((0..50).map(|_| reader.get(b"key")));
        for future in futures.drain(..) {
            let mut future = std::pin::pin!(future);
            while future
                .as_mut()
                .poll(&mut context)
                .map(|value| assert_eq!(value.unwrap().len(), 5000))
                .is_pending()
            {
                std::thread::park();
            }
        }
    });
    // One that is taken before its driver has let go of it is not used again.
    assert!(count <= 50 * ROUNDS / 10, "{count}");
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
