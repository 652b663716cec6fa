//! Each way it goes wrong, on two queue pairs, with the exact status of the completion.
#![allow(unsafe_code)]

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use common::*;
use rdma_core_rs::{
    Access, CompletionQueue, ProtectionDomain, QpState, RemoteAddr, Rkey, SendFlags, WcStatus, WorkBatch,
};

/// A completion with an error may be seen a moment before the state is.
fn assert_error_state(end: &End) {
    let until = deadline();
    while end.qp.query().unwrap().state != QpState::ERR {
        assert!(
            Instant::now() < until,
            "the queue pair never left {}",
            end.qp.query().unwrap().state
        );
    }
}

/// After an error the queue pair takes no more work: the next request is flushed.
fn assert_broken(end: &End, source: RemoteAddr, into: rdma_core_rs::Sge) {
    assert_error_state(end);
    post_read(end, 99, source, &[into]);
    assert_eq!(end.completion(), (99, WcStatus::WR_FLUSH_ERR));
}

#[test]
#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]
fn a_wrong_rkey_is_a_remote_access_error() {
    let (reader, owner) = pair(Access::REMOTE_READ);
    let source = owner.region(4096, Access::REMOTE_READ);
    let sink = reader.region(4096, Access::LOCAL_WRITE);
    let into = sink.sge(0, 64).unwrap();
    let wrong = RemoteAddr {
        addr: source.addr(),
        rkey: Rkey(source.rkey().0 ^ 0x5a00),
    };
    post_read(&reader, 1, wrong, &[into]);
    assert_eq!(reader.completion(), (1, WcStatus::REM_ACCESS_ERR));
    assert_eq!(sink.memory().to_vec(0, 64).unwrap(), [0; 64]);
    assert_broken(&reader, remote(&source), into);
}

#[test]
#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]
fn one_byte_past_the_end_is_a_remote_access_error() {
    let (reader, owner) = pair(Access::REMOTE_READ);
    let source = owner.region(4096, Access::REMOTE_READ);
    let sink = reader.region(8192, Access::LOCAL_WRITE);
    post_read(&reader, 1, remote(&source), &[sink.sge(0, 4096).unwrap()]);
    assert_eq!(reader.completion(), (1, WcStatus::SUCCESS));
    post_read(&reader, 2, remote(&source), &[sink.sge(0, 4097).unwrap()]);
    assert_eq!(reader.completion(), (2, WcStatus::REM_ACCESS_ERR));
}

#[test]
#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]
fn an_address_before_the_region_is_a_remote_access_error() {
    let (reader, owner) = pair(Access::REMOTE_READ);
    let source = owner.region(4096, Access::REMOTE_READ);
    let sink = reader.region(64, Access::LOCAL_WRITE);
    let before = RemoteAddr {
        addr: source.addr() - 1,
        rkey: source.rkey(),
    };
    post_read(&reader, 1, before, &[sink.sge(0, 64).unwrap()]);
    assert_eq!(reader.completion(), (1, WcStatus::REM_ACCESS_ERR));
}

#[test]
#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]
fn a_key_of_another_domain_is_a_remote_access_error() {
    let (reader, owner) = pair(Access::REMOTE_READ);
    let other = ProtectionDomain::new(owner.qp.context()).unwrap();
    let source = other
        .register(rdma_core_rs::Buffer::new(4096).unwrap(), Access::REMOTE_READ)
        .unwrap();
    let sink = reader.region(64, Access::LOCAL_WRITE);
    post_read(&reader, 1, remote(&source), &[sink.sge(0, 64).unwrap()]);
    assert_eq!(reader.completion(), (1, WcStatus::REM_ACCESS_ERR));
}

#[test]
#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]
fn no_receive_posted_ends_in_a_receiver_not_ready_error() {
    let (sender, _receiver) = pair(Access::NONE);
    let outbox = sender.region(64, Access::NONE);
    post_send(&sender, 1, &[outbox.sge(0, 64).unwrap()]);
    assert_eq!(sender.completion(), (1, WcStatus::RNR_RETRY_EXC_ERR));
    assert_error_state(&sender);
}

#[test]
#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]
fn a_receive_that_is_too_short_fails_at_both_ends() {
    let (sender, receiver) = pair(Access::NONE);
    let outbox = sender.region(64, Access::NONE);
    let inbox = receiver.region(64, Access::LOCAL_WRITE);
    post_recv(&receiver.qp, 5, &[inbox.sge(0, 63).unwrap()]);
    post_send(&sender, 1, &[outbox.sge(0, 64).unwrap()]);
    // The InfiniBand specification names the second pair; Soft-RoCE reports the first.
    let (at_sender, at_receiver) = if is_soft_roce() {
        (WcStatus::REM_OP_ERR, WcStatus::LOC_QP_OP_ERR)
    } else {
        (WcStatus::REM_INV_REQ_ERR, WcStatus::LOC_LEN_ERR)
    };
    assert_eq!(sender.completion(), (1, at_sender));
    assert_eq!(receiver.completion(), (5, at_receiver));
}

#[test]
#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]
fn a_peer_that_is_gone_ends_in_a_retry_error() {
    let (reader, owner) = pair(Access::REMOTE_READ);
    let source = owner.region(64, Access::REMOTE_READ);
    let sink = reader.region(64, Access::LOCAL_WRITE);
    let (from, into) = (remote(&source), sink.sge(0, 64).unwrap());
    post_read(&reader, 1, from, &[into]);
    assert_eq!(reader.completion(), (1, WcStatus::SUCCESS));
    drop(owner.qp);
    post_read(&reader, 2, from, &[into]);
    assert_eq!(reader.completion(), (2, WcStatus::RETRY_EXC_ERR));
    assert_broken(&reader, from, into);
}

/// Deregisters the source under a reader that keeps READs of `len_bytes` under way; gives the first failure.
fn deregister_under_a_reader(len_bytes: usize) -> WcStatus {
    const DEPTH: usize = 4;
    let (reader, owner) = pair(Access::REMOTE_READ);
    let source = owner.region(len_bytes, Access::REMOTE_READ);
    source.memory().fill(3);
    let sink = reader.region(len_bytes, Access::LOCAL_WRITE);
    let (from, into) = (remote(&source), sink.sge(0, len_bytes).unwrap());
    let served = AtomicUsize::new(0);
    let (first_failure, memory) = std::thread::scope(|scope| {
        let reading = scope.spawn(|| {
            let until = deadline();
            (0..DEPTH as u64).for_each(|wr_id| post_read(&reader, wr_id, from, &[into]));
            loop {
                assert!(Instant::now() < until, "the reader never noticed");
                let status = reader.completion().1;
                if !status.is_success() {
                    return status;
                }
                served.fetch_add(1, Ordering::Relaxed);
                post_read(&reader, DEPTH as u64, from, &[into]);
            }
        });
        while served.load(Ordering::Relaxed) < 20 && !reading.is_finished() {
            std::thread::yield_now();
        }
        let memory = source.deregister().unwrap();
        // The memory is the caller's again: what happens to it now cannot reach the reader.
        memory.fill(4);
        (reading.join().unwrap(), memory)
    });
    let served = served.into_inner();
    assert!(served >= 20, "{first_failure} after {served} reads");
    for completion in reader.completions(DEPTH - 1) {
        assert_eq!(completion.status(), WcStatus::WR_FLUSH_ERR);
    }
    assert_eq!(sink.memory().to_vec(0, len_bytes).unwrap(), vec![3; len_bytes]);
    drop(memory);
    first_failure
}

#[test]
#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]
fn a_region_deregistered_under_a_reader_ends_in_a_remote_access_error() {
    for _ in 0..10 {
        assert_eq!(deregister_under_a_reader(4096), WcStatus::REM_ACCESS_ERR);
    }
}

#[test]
#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]
fn a_long_read_cut_short_by_deregistration_fails_and_brings_no_other_bytes() {
    // Between the packets of one READ, Soft-RoCE of old kernels answers under a packet number that its requester drops,
    // which then runs into its retries.
    let allowed = [WcStatus::REM_ACCESS_ERR, WcStatus::RETRY_EXC_ERR];
    for _ in 0..5 {
        let status = deregister_under_a_reader(64 * 1024);
        assert!(allowed.contains(&status), "{status}");
    }
}

#[test]
#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]
fn a_write_on_a_queue_pair_that_may_only_read_is_an_invalid_request() {
    let (writer, owner) = pair(Access::REMOTE_READ);
    let target = owner.region(64, Access::LOCAL_WRITE | Access::REMOTE_WRITE);
    let source = writer.region(64, Access::NONE);
    source.memory().fill(1);
    post_write(&writer, 1, remote(&target), &[source.sge(0, 64).unwrap()]);
    assert_eq!(writer.completion(), (1, WcStatus::REM_INV_REQ_ERR));
    assert_eq!(target.memory().to_vec(0, 64).unwrap(), [0; 64]);
}

#[test]
#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]
fn a_read_on_a_queue_pair_without_that_right_is_an_invalid_request() {
    for access in [Access::NONE, Access::REMOTE_WRITE] {
        let (reader, owner) = pair(access);
        let source = owner.region(64, Access::REMOTE_READ);
        source.memory().fill(1);
        let sink = reader.region(64, Access::LOCAL_WRITE);
        post_read(&reader, 1, remote(&source), &[sink.sge(0, 64).unwrap()]);
        assert_eq!(reader.completion(), (1, WcStatus::REM_INV_REQ_ERR), "{access}");
        assert_eq!(sink.memory().to_vec(0, 64).unwrap(), [0; 64]);
    }
}

#[test]
#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]
fn a_right_that_is_taken_back_is_gone() {
    let (reader, owner) = pair(Access::REMOTE_READ | Access::REMOTE_WRITE);
    let target = owner.region(
        64,
        Access::LOCAL_WRITE | Access::REMOTE_WRITE | Access::REMOTE_READ,
    );
    let source = reader.region(64, Access::NONE);
    post_write(&reader, 1, remote(&target), &[source.sge(0, 64).unwrap()]);
    assert_eq!(reader.completion(), (1, WcStatus::SUCCESS));
    owner.qp.set_access(Access::REMOTE_READ).unwrap();
    post_write(&reader, 2, remote(&target), &[source.sge(0, 64).unwrap()]);
    assert_eq!(reader.completion(), (2, WcStatus::REM_INV_REQ_ERR));
}

#[test]
#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]
fn a_write_to_a_region_that_may_only_be_read_is_a_remote_access_error() {
    let (writer, owner) = pair(Access::REMOTE_READ | Access::REMOTE_WRITE);
    let target = owner.region(64, Access::REMOTE_READ);
    let source = writer.region(64, Access::NONE);
    source.memory().fill(1);
    post_write(&writer, 1, remote(&target), &[source.sge(0, 64).unwrap()]);
    assert_eq!(writer.completion(), (1, WcStatus::REM_ACCESS_ERR));
    assert_eq!(target.memory().to_vec(0, 64).unwrap(), [0; 64]);
}

#[test]
#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]
fn a_read_into_a_region_without_local_write_is_a_local_protection_error() {
    let (reader, owner) = pair(Access::REMOTE_READ);
    let source = owner.region(64, Access::REMOTE_READ);
    let sink = reader.region(64, Access::NONE);
    post_read(&reader, 1, remote(&source), &[sink.sge(0, 64).unwrap()]);
    assert_eq!(reader.completion(), (1, WcStatus::LOC_PROT_ERR));
}

#[test]
#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]
fn an_error_in_a_chain_keeps_what_came_before_and_flushes_what_follows() {
    let (reader, owner) = pair(Access::REMOTE_READ);
    let source = owner.region(64, Access::REMOTE_READ);
    let sink = reader.region(64, Access::LOCAL_WRITE);
    let (from, into) = (remote(&source), sink.sge(0, 64).unwrap());
    let wrong = RemoteAddr {
        addr: from.addr,
        rkey: Rkey(from.rkey.0 ^ 0x5a00),
    };
    let mut batch = WorkBatch::with_capacity(4, 4);
    batch.read(1, from, &[into], SendFlags::SIGNALED);
    batch.read(2, wrong, &[into], SendFlags::NONE);
    batch.read(3, from, &[into], SendFlags::NONE);
    batch.read(4, from, &[into], SendFlags::SIGNALED);
    // SAFETY: the regions live until all completions below.
    unsafe { reader.qp.post_send(&mut batch) }.unwrap();
    let found: Vec<(u64, WcStatus)> = reader
        .completions(4)
        .iter()
        .map(|completion| (completion.wr_id(), completion.status()))
        .collect();
    assert_eq!(
        found,
        [
            (1, WcStatus::SUCCESS),
            (2, WcStatus::REM_ACCESS_ERR),
            (3, WcStatus::WR_FLUSH_ERR),
            (4, WcStatus::WR_FLUSH_ERR)
        ],
        "requests that were not signaled report their failure"
    );
}

#[test]
#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]
fn one_broken_queue_pair_leaves_others_on_its_queue_alone() {
    let context = open();
    let pd = ProtectionDomain::new(&context).unwrap();
    let cq = CompletionQueue::new(&context, 64, None).unwrap();
    let (one, two) = (End::with(&pd, &cq), End::with(&pd, &cq));
    let (first, second) = (End::new(&context), End::new(&context));
    join(&one, &first, Access::REMOTE_READ, retries());
    join(&two, &second, Access::REMOTE_READ, retries());
    let (source_one, source_two) = (
        first.region(64, Access::REMOTE_READ),
        second.region(64, Access::REMOTE_READ),
    );
    let sink = one.region(128, Access::LOCAL_WRITE);
    post_read(&one, 1, remote(&source_two), &[sink.sge(0, 64).unwrap()]);
    let completion = completions(&cq, 1)[0];
    assert_eq!(
        (completion.status(), completion.qp_num()),
        (WcStatus::REM_ACCESS_ERR, one.qp.qp_num())
    );
    post_read(&two, 2, remote(&source_two), &[sink.sge(64, 64).unwrap()]);
    let completion = completions(&cq, 1)[0];
    assert_eq!(
        (completion.status(), completion.qp_num()),
        (WcStatus::SUCCESS, two.qp.qp_num())
    );
    drop(source_one);
}
