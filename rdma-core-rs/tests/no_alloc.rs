//! Posting and polling allocate nothing once their buffers have grown.
#![allow(unsafe_code)]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};

use common::*;
use rdma_core_rs::{Access, RecvBatch, SendFlags, WorkBatch, WorkCompletion};

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: hands everything to the system's allocator and counts beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]
fn a_warm_batch_is_posted_and_polled_without_allocating() {
    let (reader, owner) = pair(Access::REMOTE_READ);
    let source = owner.region(8 * 1024, Access::REMOTE_READ);
    let sink = reader.region(8 * 1024, Access::LOCAL_WRITE);
    let inbox = owner.region(64, Access::LOCAL_WRITE);
    let (from, sges) = (
        remote(&source),
        [sink.sge(0, 64).unwrap(), sink.sge(64, 960).unwrap()],
    );
    let into = inbox.sge(0, 64).unwrap();
    let mut batch = WorkBatch::with_capacity(9, 17);
    let mut receives = RecvBatch::with_capacity(1);
    let mut slots = [WorkCompletion::default(); 16];
    let mut before = 0;
    for round in 0..20 {
        if round == 2 {
            before = ALLOCATIONS.load(Ordering::Relaxed);
        }
        receives.recv(100, &[into]);
        // SAFETY: `inbox` lives until its completion below.
        unsafe { owner.qp.post_recv(&mut receives) }.unwrap();
        for wr_id in 0..8 {
            batch.read(wr_id, from, &sges, SendFlags::SIGNALED);
        }
        batch.send(8, &[sges[0]], SendFlags::SIGNALED);
        // SAFETY: the regions live until the completions below.
        unsafe { reader.qp.post_send(&mut batch) }.unwrap();
        let (mut sent, mut received) = (0, 0);
        let until = deadline();
        while sent < 9 || received < 1 {
            for completion in reader.cq.poll(&mut slots).unwrap() {
                assert!(completion.status().is_success());
                sent += 1;
            }
            received += owner.cq.poll(&mut slots).unwrap().len();
            assert!(std::time::Instant::now() < until);
        }
    }
    assert_eq!(ALLOCATIONS.load(Ordering::Relaxed) - before, 0);
}
