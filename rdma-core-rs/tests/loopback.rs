//! What two connected queue pairs of one device can do for each other. Needs a device; loses nothing on the network.
#![allow(unsafe_code)]

mod common;

use common::*;
use rdma_core_rs::{
    Access, CompletionChannel, CompletionQueue, Error, Mtu, PortState, QpState, RecvBatch, RemoteAddr,
    SendFlags, WcOpcode, WcStatus, WorkBatch, WorkCompletion, devices,
};

#[test]
#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]
fn the_device_describes_itself() {
    let name = device_name();
    assert!(devices().unwrap().iter().any(|device| device.name == name));
    let context = open();
    assert_eq!(context.name(), name);
    let attr = context.query_device().unwrap();
    assert!(
        attr.max_qp > 0 && attr.max_sge >= 4 && attr.max_qp_rd_atom >= 16,
        "{attr:?}"
    );
    let port = context.query_port(PORT).unwrap();
    assert_eq!(port.state, PortState::ACTIVE);
    assert_eq!(port.active_mtu, Mtu(5), "active_mtu {}", port.active_mtu);
    assert!(matches!(
        context.query_port(200),
        Err(Error::Verb {
            call: "ibv_query_port",
            ..
        })
    ));
}

#[test]
#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]
fn an_unknown_device_is_named_with_those_that_exist() {
    let error = rdma_core_rs::Context::open("no_such_device0").unwrap_err();
    assert!(matches!(error, Error::DeviceNotFound { .. }), "{error}");
    assert!(error.to_string().contains(&device_name()), "{error}");
}

#[test]
#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]
fn the_chosen_gid_is_the_address_and_says_why() {
    let context = open();
    let choice = context.choose_gid(PORT, None).unwrap();
    assert!(choice.entry.gid.is_ipv4_mapped(), "{choice}");
    assert!(choice.to_string().contains("RoCE v2"), "{choice}");
    let asked = context.choose_gid(PORT, Some(device_ip())).unwrap();
    assert_eq!(asked.entry.gid.ip(), device_ip());
    let error = context
        .choose_gid(PORT, Some("192.0.2.1".parse().unwrap()))
        .unwrap_err();
    assert!(matches!(error, Error::NoGid { .. }), "{error}");
}

#[test]
#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]
fn a_read_brings_the_bytes() {
    let (reader, owner) = pair(Access::REMOTE_READ);
    let source = owner.region(1 << 20, Access::REMOTE_READ);
    let bytes = pattern(1 << 20, 1);
    source.memory().copy_in(0, &bytes).unwrap();
    let sink = reader.region(1 << 20, Access::LOCAL_WRITE);
    post_read(&reader, 7, remote(&source), &[sink.sge(0, 1 << 20).unwrap()]);
    let completion = reader.completions(1)[0];
    assert_eq!((completion.wr_id(), completion.status()), (7, WcStatus::SUCCESS));
    assert_eq!(completion.opcode(), WcOpcode::RDMA_READ);
    assert_eq!(completion.qp_num(), reader.qp.qp_num());
    assert_eq!(sink.memory().to_vec(0, 1 << 20).unwrap(), bytes);
}

#[test]
#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]
fn a_chain_of_scattered_reads_needs_one_doorbell_and_one_completion() {
    let (reader, owner) = pair(Access::REMOTE_READ);
    let source = owner.region(16 * 1024, Access::REMOTE_READ);
    let bytes = pattern(16 * 1024, 2);
    source.memory().copy_in(0, &bytes).unwrap();
    let headers = reader.region(16 * 64, Access::LOCAL_WRITE);
    let values = reader.region(16 * 960, Access::LOCAL_WRITE);
    let mut batch = WorkBatch::with_capacity(16, 32);
    for round in 0..3 {
        headers.memory().fill(0);
        values.memory().fill(0);
        for i in 0..16 {
            let from = RemoteAddr {
                addr: source.addr() + i as u64 * 1024,
                rkey: source.rkey(),
            };
            let into = [
                headers.sge(i * 64, 64).unwrap(),
                values.sge(i * 960, 960).unwrap(),
            ];
            batch.read(i as u64, from, &into, SendFlags::NONE);
        }
        batch.signal_last();
        // SAFETY: the regions live until the last completion below, which comes after all.
        unsafe { reader.qp.post_send(&mut batch) }.unwrap();
        assert!(batch.is_empty());
        assert_eq!(reader.completion(), (15, WcStatus::SUCCESS), "round {round}");
        for i in 0..16 {
            assert_eq!(
                headers.memory().to_vec(i * 64, 64).unwrap(),
                bytes[i * 1024..i * 1024 + 64]
            );
            assert_eq!(
                values.memory().to_vec(i * 960, 960).unwrap(),
                bytes[i * 1024 + 64..(i + 1) * 1024]
            );
        }
        let mut slots = [WorkCompletion::default(); 4];
        assert!(
            reader.cq.poll(&mut slots).unwrap().is_empty(),
            "unsignaled reads complete silently"
        );
    }
}

#[test]
#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]
fn a_write_arrives_and_inline_bytes_need_no_region() {
    let (writer, owner) = pair(Access::REMOTE_WRITE);
    let target = owner.region(8192, Access::LOCAL_WRITE | Access::REMOTE_WRITE);
    let source = writer.region(8192, Access::NONE);
    let bytes = pattern(8192, 3);
    source.memory().copy_in(0, &bytes).unwrap();
    let to = remote(&target);
    post_write(
        &writer,
        1,
        to,
        &[source.sge(0, 4096).unwrap(), source.sge(4096, 4096).unwrap()],
    );
    assert_eq!(writer.completion(), (1, WcStatus::SUCCESS));
    assert_eq!(target.memory().to_vec(0, 8192).unwrap(), bytes);

    let mut batch = WorkBatch::with_capacity(1, 1);
    {
        let word = [9u8; 32];
        let sge = rdma_core_rs::Sge::new(word.as_ptr().addr() as u64, 32, rdma_core_rs::Lkey(0));
        batch.write(2, to, &[sge], SendFlags::SIGNALED | SendFlags::INLINE);
        // SAFETY: inline: the bytes are copied during the call, and `word` lives that long.
        unsafe { writer.qp.post_send(&mut batch) }.unwrap();
    }
    assert_eq!(writer.completion(), (2, WcStatus::SUCCESS));
    assert_eq!(target.memory().to_vec(0, 33).unwrap()[30..], [9, 9, bytes[32]]);
}

#[test]
#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]
fn a_message_lands_in_the_posted_receive() {
    let (sender, receiver) = pair(Access::NONE);
    let inbox = receiver.region(256, Access::LOCAL_WRITE);
    let outbox = sender.region(256, Access::NONE);
    outbox.memory().copy_in(0, b"hello from the other end").unwrap();
    let mut receives = RecvBatch::with_capacity(2);
    receives.recv(50, &[inbox.sge(0, 8).unwrap(), inbox.sge(100, 100).unwrap()]);
    receives.recv(51, &[inbox.sge(200, 56).unwrap()]);
    // SAFETY: `inbox` lives until both completions below.
    unsafe { receiver.qp.post_recv(&mut receives) }.unwrap();
    post_send(&sender, 1, &[outbox.sge(0, 24).unwrap()]);
    assert_eq!(sender.completion(), (1, WcStatus::SUCCESS));
    let completion = receiver.completions(1)[0];
    assert_eq!(
        (completion.wr_id(), completion.status(), completion.byte_len()),
        (50, WcStatus::SUCCESS, 24)
    );
    assert_eq!(completion.opcode(), WcOpcode::RECV);
    assert_eq!(completion.imm(), None);
    assert_eq!(inbox.memory().to_vec(0, 8).unwrap(), b"hello fr");
    assert_eq!(inbox.memory().to_vec(100, 16).unwrap(), b"om the other end");

    let mut batch = WorkBatch::with_capacity(1, 1);
    batch.send_with_imm(2, 0xdead_beef, &[outbox.sge(0, 5).unwrap()], SendFlags::SIGNALED);
    // SAFETY: `outbox` lives until the completion below.
    unsafe { sender.qp.post_send(&mut batch) }.unwrap();
    assert_eq!(sender.completion(), (2, WcStatus::SUCCESS));
    let completion = receiver.completions(1)[0];
    assert_eq!((completion.wr_id(), completion.imm()), (51, Some(0xdead_beef)));
}

#[test]
#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]
fn an_armed_queue_wakes_its_channel_once() {
    let context = open();
    let channel = CompletionChannel::new(&context).unwrap();
    let pd = rdma_core_rs::ProtectionDomain::new(&context).unwrap();
    let cq = CompletionQueue::new(&context, 64, Some(&channel)).unwrap();
    let (reader, owner) = (End::with(&pd, &cq), End::new(&context));
    join(&reader, &owner, Access::REMOTE_READ, retries());
    let source = owner.region(64, Access::REMOTE_READ);
    let sink = reader.region(64, Access::LOCAL_WRITE);
    assert_eq!(channel.poll_event().unwrap(), None);
    for round in 0..10 {
        cq.arm(false).unwrap();
        post_read(&reader, round, remote(&source), &[sink.sge(0, 64).unwrap()]);
        assert_eq!(channel.wait_event(deadline()).unwrap(), Some(cq.key()));
        assert_eq!(reader.completion(), (round, WcStatus::SUCCESS));
    }
    assert_eq!(channel.drain().unwrap(), 0);
    let silent = CompletionQueue::new(&context, 4, None).unwrap();
    assert!(matches!(silent.arm(false), Err(Error::InvalidArgument { .. })));
}

#[test]
#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]
fn a_full_queue_says_how_many_it_took_and_the_rest_can_be_posted_later() {
    let (reader, owner) = pair(Access::REMOTE_READ);
    let room = reader.qp.caps().max_send_wr as usize;
    let source = owner.region(64, Access::REMOTE_READ);
    let sink = reader.region(64, Access::LOCAL_WRITE);
    let wanted = room + 300;
    let mut batch = WorkBatch::with_capacity(wanted, wanted);
    for i in 0..wanted {
        batch.read(
            i as u64,
            remote(&source),
            &[sink.sge(0, 64).unwrap()],
            SendFlags::SIGNALED,
        );
    }
    let mut taken = 0;
    let mut done = 0;
    let mut refusals = 0;
    while done < wanted {
        if !batch.is_empty() {
            let before = batch.len();
            // SAFETY: the regions live until all completions are seen.
            match unsafe { reader.qp.post_send(&mut batch) } {
                Ok(()) => taken += before,
                Err(Error::PostSend {
                    posted,
                    requested,
                    source,
                }) => {
                    assert_eq!(requested, before);
                    assert_eq!(batch.len(), before - posted);
                    assert_eq!(source.raw_os_error(), Some(libc::ENOMEM));
                    taken += posted;
                    refusals += 1;
                }
                Err(other) => panic!("{other}"),
            }
        }
        for completion in reader.completions((taken - done).min(16)) {
            assert_eq!(
                (completion.wr_id(), completion.status()),
                (done as u64, WcStatus::SUCCESS)
            );
            done += 1;
        }
    }
    assert!(refusals > 0, "a queue of {room} took {wanted} at once");
}

#[test]
#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]
fn states_are_what_was_asked_and_refusals_are_explained() {
    let context = open();
    let end = End::new(&context);
    assert_eq!(end.qp.query().unwrap().state, QpState::RESET);
    let rts = rdma_core_rs::RtsAttr {
        sq_psn: 0,
        max_rd_atomic: 1,
        reliability: retries(),
    };
    let error = end.qp.to_rts(&rts).unwrap_err();
    let Error::ModifyQp { from, to, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!((*from, *to), (QpState::RESET, QpState::RTS));
    assert!(
        error.to_string().contains("cannot go from RESET to RTS"),
        "{error}"
    );

    let (first, second) = pair(Access::REMOTE_READ);
    let attr = second.qp.query().unwrap();
    assert_eq!((attr.state, attr.access), (QpState::RTS, Access::REMOTE_READ));
    assert_eq!((attr.timeout, attr.retry_cnt, attr.rnr_retry), (16, 6, 1));
    assert_eq!(attr.dest_qp_num, first.qp.qp_num());
    second.qp.set_access(Access::NONE).unwrap();
    assert_eq!(second.qp.query().unwrap().access, Access::NONE);
    second.qp.to_error().unwrap();
    assert_eq!(second.qp.query().unwrap().state, QpState::ERR);
}

#[test]
#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]
fn objects_of_two_opens_do_not_mix() {
    let (one, other) = (open(), open());
    let pd = rdma_core_rs::ProtectionDomain::new(&one).unwrap();
    let cq = CompletionQueue::new(&other, 4, None).unwrap();
    let error = rdma_core_rs::QueuePair::builder(&pd, &cq, &cq)
        .build()
        .unwrap_err();
    assert!(matches!(error, Error::InvalidArgument { .. }), "{error}");
    let channel = CompletionChannel::new(&one).unwrap();
    assert!(CompletionQueue::new(&other, 4, Some(&channel)).is_err());
    let shared = rdma_core_rs::Context::shared(&device_name()).unwrap();
    assert!(shared.is_same(&rdma_core_rs::Context::shared(&device_name()).unwrap()));
    assert!(!shared.is_same(&one));
}

#[test]
#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]
fn several_threads_share_a_queue_pair() {
    let (reader, owner) = pair(Access::REMOTE_READ);
    let source = owner.region(4096, Access::REMOTE_READ);
    source.memory().fill(5);
    let sink = reader.region(4 * 4096, Access::LOCAL_WRITE);
    std::thread::scope(|scope| {
        for thread in 0..4usize {
            let (qp, from, into) = (
                &reader.qp,
                remote(&source),
                sink.sge(thread * 4096, 4096).unwrap(),
            );
            scope.spawn(move || {
                let mut batch = WorkBatch::with_capacity(1, 1);
                for _ in 0..10 {
                    batch.read(thread as u64, from, &[into], SendFlags::SIGNALED);
                    // SAFETY: the regions live until all forty completions are seen below.
                    unsafe { qp.post_send(&mut batch) }.unwrap();
                }
            });
        }
    });
    let found = reader.completions(40);
    assert!(
        found.iter().all(|completion| completion.status().is_success()),
        "{found:?}"
    );
    assert_eq!(sink.memory().to_vec(0, 4 * 4096).unwrap(), vec![5; 4 * 4096]);
}
