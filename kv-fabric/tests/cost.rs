//! What a READ of `local` costs besides its copy: no allocation once warm.
//!
//! # Safety
//! The allocator hands every call on to the system's, unchanged, and only counts; so its obligations are the system's.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kv_fabric::local::Local;
use kv_fabric::{
    DataConnection, Domain, Endpoint, EndpointEvent, Fabric, Memory, MemoryKind, Read, ReadStatus, Region,
    RemoteRef, Scatter,
};

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

const DEPTH: usize = 16;
const LEN: usize = 4096;

/// Posts a batch and takes its end.
fn round(
    data: &mut Box<dyn DataConnection>,
    remote: RemoteRef,
    region: &Region,
    done: &mut Vec<kv_fabric::ReadCompletion>,
) {
    let reads: [Read; DEPTH] = std::array::from_fn(|i| Read {
        number: i as u64,
        from: remote.offset((i * LEN) as u64),
        to: [
            Scatter::new(0, i * LEN, 96),
            Scatter::new(0, i * LEN + 96, LEN - 96),
        ],
        signaled: i % 4 == 3,
    });
    data.post(&reads, &[region]).expect("post");
    done.clear();
    while done.len() < DEPTH / 4 {
        data.poll(done).expect("poll");
    }
    assert!(done.iter().all(|done| done.status == ReadStatus::Success));
}

fn connect(
    local: &Local,
    address: &str,
    domain: &Arc<dyn Domain>,
) -> (Box<dyn Endpoint>, Box<dyn DataConnection>) {
    let mut endpoint = local.listen(address).expect("listen");
    let deadline = Instant::now() + Duration::from_secs(20);
    std::thread::scope(|scope| {
        let client = scope.spawn(|| local.connect_data(address, b"", DEPTH as u32, deadline));
        let request = loop {
            assert!(Instant::now() < deadline, "no request comes");
            let mut events = Vec::new();
            endpoint.poll(&mut events).expect("poll");
            if let Some(EndpointEvent::Request { request, .. }) = events.pop() {
                break request;
            }
        };
        endpoint.accept_data(request, &**domain).expect("accept");
        let data = client.join().expect("no panic").expect("connect");
        (endpoint, data)
    })
}

#[test]
fn warm_reads_allocate_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let address = folder.path().join("socket");
    let local = Local::new().expect("local");
    let domain = local.domain().expect("domain");
    let memory = Memory::new(DEPTH * LEN, MemoryKind::SharedReadOnly).expect("memory");
    let registration = domain.register(memory.into()).expect("register");
    let (mut endpoint, mut data) = connect(&local, address.to_str().expect("text"), &domain);
    let region = local.allocate(DEPTH * LEN).expect("allocate");
    let mut done = Vec::with_capacity(DEPTH);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            for _ in 0..4 {
                round(&mut data, registration.remote(), &region, &mut done);
            }
            let before = ALLOCATIONS.get();
            let start = Instant::now();
            const ROUNDS: u32 = 1000;
            for _ in 0..ROUNDS {
                round(&mut data, registration.remote(), &region, &mut done);
            }
            let each = start.elapsed() / (ROUNDS * DEPTH as u32);
            (ALLOCATIONS.get() - before, each)
        });
        while !reader.is_finished() {
            endpoint.poll(&mut Vec::new()).expect("poll");
            std::thread::sleep(Duration::from_millis(1));
        }
        let (allocations, each) = reader.join().expect("no panic");
        println!("a READ of {LEN} bytes took {each:?}");
        assert_eq!(allocations, 0);
    });
}
