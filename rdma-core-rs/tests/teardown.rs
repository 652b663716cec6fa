//! Ends in every order, with work outstanding: nothing hangs, nothing is used after it is gone.
#![allow(unsafe_code)]

mod common;

use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use common::*;
use rdma_core_rs::{
    Access, AsyncElement, AsyncEventKind, Buffer, CompletionChannel, CompletionQueue, Context,
    ProtectionDomain, QpState, SendFlags, WcStatus, WorkBatch,
};

/// Longest that a destruction may take when nobody waits for anything.
const SWIFT: Duration = Duration::from_secs(5);

#[test]
#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]
fn a_queue_pair_with_reads_in_flight_goes_at_once_and_its_memory_after_it() {
    let (reader, owner) = pair(Access::REMOTE_READ);
    let source = owner.region(1 << 20, Access::REMOTE_READ);
    let sink = reader.region(1 << 20, Access::LOCAL_WRITE);
    for wr_id in 0..16 {
        post_read(&reader, wr_id, remote(&source), &[sink.sge(0, 1 << 20).unwrap()]);
    }
    let start = Instant::now();
    let End { qp, cq, pd } = reader;
    drop(qp);
    assert!(start.elapsed() < SWIFT, "{:?}", start.elapsed());
    // From here on the device writes nothing there, so the memory is the caller's.
    let memory = sink.deregister().unwrap();
    memory.fill(0);
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(memory.to_vec(0, 1 << 20).unwrap(), vec![0; 1 << 20]);
    drop((cq, pd));
}

#[test]
#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]
fn children_keep_their_parents() {
    let context = open();
    let weak = std::sync::Arc::downgrade(&context);
    let pd = ProtectionDomain::new(&context).unwrap();
    let channel = CompletionChannel::new(&context).unwrap();
    let cq = CompletionQueue::new(&context, 4, Some(&channel)).unwrap();
    let qp = rdma_core_rs::QueuePair::builder(&pd, &cq, &cq).build().unwrap();
    let region = pd
        .register(Buffer::new(4096).unwrap(), Access::REMOTE_READ)
        .unwrap();
    drop((context, pd, channel, cq));
    assert_eq!(qp.query().unwrap().state, QpState::RESET);
    drop(qp);
    assert!(weak.upgrade().is_some());
    assert_ne!(region.rkey().0, 0);
    drop(region);
    assert!(
        weak.upgrade().is_none(),
        "the device is closed when its last child is gone"
    );
}

#[test]
#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]
fn a_shared_context_is_closed_when_nobody_holds_it_and_opens_again() {
    let name = device_name();
    let first = Context::shared(&name).unwrap();
    let weak = std::sync::Arc::downgrade(&first);
    drop(first);
    assert!(weak.upgrade().is_none());
    assert!(Context::shared(&name).unwrap().query_device().is_ok());
}

#[test]
#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]
fn an_error_state_flushes_everything_in_order() {
    let (reader, owner) = pair(Access::NONE);
    let inbox = reader.region(64, Access::LOCAL_WRITE);
    for wr_id in 0..4 {
        post_recv(&reader.qp, wr_id, &[inbox.sge(0, 64).unwrap()]);
    }
    reader.qp.to_error().unwrap();
    for wr_id in 0..4 {
        assert_eq!(reader.completion(), (wr_id, WcStatus::WR_FLUSH_ERR));
    }
    drop(owner);
}

/// Overflows a queue that holds `capacity` completions.
fn overflow(reader: &End, owner: &End) {
    let source = owner.region(64, Access::REMOTE_READ);
    let sink = reader.region(64, Access::LOCAL_WRITE);
    let mut batch = WorkBatch::with_capacity(1, 1);
    for wr_id in 0..u64::from(reader.cq.capacity()) + 8 {
        batch.read(
            wr_id,
            remote(&source),
            &[sink.sge(0, 64).unwrap()],
            SendFlags::SIGNALED,
        );
        // SAFETY: the regions live until the queue pair is past these READs, see the wait below.
        unsafe { reader.qp.post_send(&mut batch) }.unwrap();
    }
    // No completion will tell: wait for the event, which comes after the last that fits.
    assert!(
        rdma_core_rs::wait_readable(reader.qp.context().async_fd(), deadline()).unwrap(),
        "an overflowing queue reports an event"
    );
    reader.qp.to_error().unwrap();
}

fn tiny() -> (End, End) {
    let context = open();
    let pd = ProtectionDomain::new(&context).unwrap();
    let cq = CompletionQueue::new(&context, 4, None).unwrap();
    let (reader, owner) = (End::with(&pd, &cq), End::new(&context));
    join(&reader, &owner, Access::REMOTE_READ, retries());
    (reader, owner)
}

#[test]
#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]
fn an_overflowing_queue_reports_itself_and_goes_without_waiting() {
    let (reader, owner) = tiny();
    let context = reader.qp.context().clone();
    assert_eq!(context.poll_async_event().unwrap(), None);
    overflow(&reader, &owner);
    let event = context.wait_async_event(deadline()).unwrap().expect("an event");
    assert_eq!(event.kind, AsyncEventKind::CQ_ERR, "{event}");
    assert_eq!(
        event.element,
        AsyncElement::CompletionQueue(reader.cq.key()),
        "{event}"
    );
    let start = Instant::now();
    drop((reader, owner));
    assert!(
        start.elapsed() < SWIFT,
        "the event was acknowledged, so nothing waits for it"
    );
}

#[test]
#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]
fn a_queue_with_an_event_that_nobody_took_goes_without_waiting() {
    let (reader, owner) = tiny();
    overflow(&reader, &owner);
    let start = Instant::now();
    drop((reader, owner));
    assert!(start.elapsed() < SWIFT);
}

#[test]
#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]
fn a_new_address_is_an_event_of_the_port() {
    let netdev = std::fs::read_to_string(format!("/sys/class/infiniband/{}/parent", device_name()))
        .expect("a Soft-RoCE device names its interface");
    let context = open();
    while context.poll_async_event().unwrap().is_some() {}
    let ip = |verb: &str| {
        let mut command = std::process::Command::new("ip");
        command.args(["addr", verb, "198.51.100.7/32", "dev", netdev.trim()]);
        assert!(command.status().unwrap().success(), "ip addr {verb} needs root");
    };
    ip("add");
    let event = context.wait_async_event(deadline()).unwrap().expect("an event");
    assert_eq!(
        (event.kind, event.element),
        (AsyncEventKind::GID_CHANGE, AsyncElement::Port(PORT)),
        "{event}"
    );
    let table = context.gid_table().unwrap();
    assert!(
        table
            .iter()
            .any(|entry| entry.gid.ip().to_string() == "198.51.100.7"),
        "{table:?}"
    );
    ip("del");
    let event = context.wait_async_event(deadline()).unwrap().expect("an event");
    assert_eq!(event.kind, AsyncEventKind::GID_CHANGE, "{event}");
}

#[test]
#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]
fn completion_events_taken_and_not_taken_hold_up_nobody() {
    let context = open();
    let channel = CompletionChannel::new(&context).unwrap();
    for take in [true, false] {
        let pd = ProtectionDomain::new(&context).unwrap();
        let cq = CompletionQueue::new(&context, 16, Some(&channel)).unwrap();
        let (reader, owner) = (End::with(&pd, &cq), End::new(&context));
        join(&reader, &owner, Access::REMOTE_READ, retries());
        let source = owner.region(64, Access::REMOTE_READ);
        let sink = reader.region(64, Access::LOCAL_WRITE);
        cq.arm(false).unwrap();
        post_read(&reader, 1, remote(&source), &[sink.sge(0, 64).unwrap()]);
        assert_eq!(reader.completion(), (1, WcStatus::SUCCESS));
        if take {
            assert_eq!(channel.wait_event(deadline()).unwrap(), Some(cq.key()));
        }
        let start = Instant::now();
        drop((reader, owner, cq));
        assert!(start.elapsed() < SWIFT, "take {take}");
        assert_eq!(
            channel.poll_event().unwrap(),
            None,
            "events of a queue go with it"
        );
    }
}

#[test]
#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]
fn events_taken_by_one_thread_never_stop_another_that_destroys() {
    use rdma_core_rs::cm::{CmEventKind, ConnectParam, EventChannel, Listener, resolve};
    use std::sync::atomic::{AtomicBool, Ordering};

    let context = Context::shared(&device_name()).unwrap();
    let param = ConnectParam::for_device(&context.query_device().unwrap());
    let channel = EventChannel::new().unwrap();
    let listener = Listener::bind(&channel, any_port(), 64).unwrap();
    let address = listener.local_addr().unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Takes every event there is, connection and asynchronous, as fast as it can.
        let server = scope.spawn(|| {
            let mut connections = Vec::new();
            let mut accepted = 0;
            while !done.load(Ordering::Relaxed) {
                let _ = context.poll_async_event().unwrap();
                let soon = Instant::now() + Duration::from_millis(1);
                let Some(event) = channel.wait_event(soon).unwrap() else {
                    continue;
                };
                let (kind, id) = (event.kind(), event.id());
                if let Some(request) = event.into_request() {
                    let end = End::new(&context);
                    // The client may have given up already; then either step is refused.
                    let answer = request
                        .attach(end.qp, Access::REMOTE_READ)
                        .and_then(|pending| pending.accept(&param));
                    connections.extend(answer.ok());
                    accepted += 1;
                } else if kind == CmEventKind::DISCONNECTED {
                    connections.retain(|connection: &rdma_core_rs::cm::Connection| connection.key() != id);
                }
            }
            accepted
        });
        let clients: Vec<_> = (0..3)
            .map(|client| {
                let (context, param) = (&context, &param);
                scope.spawn(move || {
                    for round in 0..10 {
                        let mut connector = resolve(address, None, deadline()).unwrap();
                        connector.attach(End::new(context).qp, Access::NONE).unwrap();
                        if (client + round) % 3 == 0 {
                            connector.connect(param).unwrap();
                            drop(connector);
                            continue;
                        }
                        let (connection, _) = connector.connect_blocking(param, deadline()).unwrap();
                        drop(connection);
                    }
                })
            })
            .collect();
        for client in clients {
            client.join().unwrap();
        }
        done.store(true, Ordering::Relaxed);
        assert!(server.join().unwrap() >= 20);
    });
}

/// Descriptors of this process through which devices are given orders.
fn order_fds() -> Vec<i32> {
    let fds = std::fs::read_dir("/proc/self/fd").unwrap();
    let mut found: Vec<i32> = fds
        .filter_map(|entry| {
            let path = entry.unwrap().path();
            let target = std::fs::read_link(&path).ok()?;
            let orders = target.to_str()?.starts_with("/dev/infiniband/uverbs");
            orders.then(|| path.file_name()?.to_str()?.parse().ok())?
        })
        .collect();
    found.sort_unstable();
    found
}

/// While it lives orders through these descriptors go nowhere.
struct Refusing(Vec<(i32, i32)>);

impl Refusing {
    fn begin(fds: &[i32]) -> Self {
        let nowhere = std::fs::File::open("/dev/null").unwrap();
        let cut = fds.iter().map(|&fd| {
            // SAFETY: duplicates a descriptor that a context keeps open.
            let kept = unsafe { libc::dup(fd) };
            // SAFETY: the number goes on naming an open file; only orders go through it, no mapping of it is touched.
            assert_eq!(unsafe { libc::dup2(nowhere.as_raw_fd(), fd) }, fd);
            (fd, kept)
        });
        Self(cut.collect())
    }
}

impl Drop for Refusing {
    fn drop(&mut self) {
        for &(fd, kept) in &self.0 {
            // SAFETY: puts back what the number named before.
            assert_eq!(unsafe { libc::dup2(kept, fd) }, fd);
            // SAFETY: opened in `begin`, closed once.
            unsafe { libc::close(kept) };
        }
    }
}

/// A destruction that failed was a line in the log: whoever relied on it freed memory that the peer read on.
#[test]
#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]
fn a_refused_destruction_is_told_and_can_be_repeated() {
    let reader = End::new(&open());
    let before = order_fds();
    let owner = End::new(&open());
    let fd = *order_fds().iter().find(|fd| !before.contains(fd)).unwrap();
    join(&reader, &owner, Access::REMOTE_READ, retries());
    let source = owner.region(64, Access::REMOTE_READ);
    let sink = reader.region(64, Access::LOCAL_WRITE);
    let read = |wr_id| {
        post_read(&reader, wr_id, remote(&source), &[sink.sge(0, 64).unwrap()]);
        reader.completion()
    };
    assert_eq!(read(1), (1, WcStatus::SUCCESS));

    let refusing = Refusing::begin(&[fd]);
    let End { qp, cq, pd } = owner;
    let refused = qp.destroy().unwrap_err();
    let text = refused.to_string();
    assert!(
        text.contains("ibv_destroy_qp") && text.contains("3 tries"),
        "{text}"
    );
    assert_eq!(read(2), (2, WcStatus::SUCCESS), "its peer reads on");

    drop(refusing);
    refused.live.destroy().unwrap();
    assert_eq!(read(3), (3, WcStatus::RETRY_EXC_ERR));
    drop((source, cq, pd));
}

/// An acceptance that fails where the device does not destroy the queue pair either: what is left comes back.
#[test]
#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]
fn what_is_left_of_a_failed_acceptance_is_told() {
    let channel = rdma_core_rs::cm::EventChannel::new().unwrap();
    let listener = rdma_core_rs::cm::Listener::bind(&channel, any_port(), 4).unwrap();
    let address = std::net::SocketAddr::new(device_ip(), listener.local_addr().unwrap().port());
    let mut connector = rdma_core_rs::cm::resolve(address, None, deadline()).unwrap();
    let make = |context: &std::sync::Arc<Context>| {
        let pd = ProtectionDomain::new(context).unwrap();
        let cq = CompletionQueue::new(context, 4, None).unwrap();
        rdma_core_rs::QueuePair::builder(&pd, &cq, &cq).build().unwrap()
    };
    let context = connector.context().unwrap();
    let param = rdma_core_rs::cm::ConnectParam::for_device(&context.query_device().unwrap());
    connector.attach(make(&context), Access::NONE).unwrap();
    connector.connect(&param).unwrap();
    let event = channel.wait_event(deadline()).unwrap().unwrap();
    let request = event.into_request().unwrap();
    let qp = make(&request.context().unwrap());
    let pending = request.attach(qp, Access::REMOTE_READ).unwrap();
    let refusing = Refusing::begin(&order_fds());
    let failed = pending
        .try_accept(&param)
        .expect_err("the device takes no orders");
    assert!(failed.error.to_string().contains("ibv_modify_qp"), "{failed}");
    let live = failed.live.expect("it is not destroyed");
    let live = live.destroy().expect_err("still none").live;
    drop(refusing);
    live.destroy().unwrap();
}
