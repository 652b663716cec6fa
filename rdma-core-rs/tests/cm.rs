//! Connections by address, both ends on one device in one process: private data, rights, refusals, ends.
#![allow(unsafe_code)]

mod common;

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::*;
use rdma_core_rs::cm::{
    CmEvent, CmEventKind, ConnectParam, ConnectRequest, Connection, Connector, EventChannel, Listener,
    PRIVATE_DATA_ACCEPT_MAX, PRIVATE_DATA_CONNECT_MAX, PRIVATE_DATA_REJECT_MAX, Progress, RejectReason,
    resolve,
};
use rdma_core_rs::{
    Access, CompletionQueue, Context, Error, ProtectionDomain, QpState, QueuePair, Reliability, WcStatus,
    wait_readable,
};

/// A listener with a thread's worth of event handling, driven by hand.
struct Server {
    channel: Arc<EventChannel>,
    listener: Listener,
    address: SocketAddr,
}

impl Server {
    fn start() -> Server {
        let channel = EventChannel::new().unwrap();
        let listener = Listener::bind(&channel, any_port(), 16).unwrap();
        let address = listener.local_addr().unwrap();
        assert_ne!(address.port(), 0);
        assert_eq!(address.ip(), device_ip());
        Server {
            channel,
            listener,
            address,
        }
    }

    fn event(&self, kind: CmEventKind) -> CmEvent {
        let event = self
            .channel
            .wait_event(deadline())
            .unwrap()
            .expect("an event before the deadline");
        assert_eq!(event.kind(), kind, "{event:?}");
        event
    }

    fn request(&self) -> ConnectRequest {
        let event = self.event(CmEventKind::CONNECT_REQUEST);
        assert_eq!(event.id(), self.listener.key());
        event.into_request().expect("a connect request brings a request")
    }
}

fn param(context: &Context, private_data: &[u8]) -> ConnectParam {
    let mut param = ConnectParam::for_device(&context.query_device().unwrap());
    param.private_data = private_data.to_vec();
    param
}

fn make_qp(context: &Arc<Context>) -> (QueuePair, Arc<CompletionQueue>, Arc<ProtectionDomain>) {
    let end = End::new(context);
    (end.qp, end.cq, end.pd)
}

struct Side {
    connection: Connection,
    cq: Arc<CompletionQueue>,
    pd: Arc<ProtectionDomain>,
    greeting: Vec<u8>,
}

/// Connects with `access` granted by the listening side; the connecting side grants nothing.
fn connect(server: &Server, access: Access) -> (Side, Side) {
    let mut connector = resolve(server.address, None, deadline()).unwrap();
    let context = connector.context().unwrap();
    let (qp, cq, pd) = make_qp(&context);
    connector.attach(qp, Access::NONE).unwrap();
    std::thread::scope(|scope| {
        let client = scope.spawn(|| {
            let (connection, greeting) = connector
                .connect_blocking(&param(&context, b"from the client"), deadline())
                .unwrap();
            Side {
                connection,
                cq,
                pd,
                greeting,
            }
        });
        let request = server.request();
        let greeting = request.private_data().to_vec();
        let context = request.context().unwrap();
        let (qp, cq, pd) = make_qp(&context);
        let pending = request.attach(qp, access).unwrap();
        let connection = pending.accept(&param(&context, b"from the server")).unwrap();
        let event = server.event(CmEventKind::ESTABLISHED);
        assert_eq!(event.id(), connection.key());
        let served = Side {
            connection,
            cq,
            pd,
            greeting,
        };
        (client.join().unwrap(), served)
    })
}

#[test]
#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]
fn private_data_travels_both_ways_and_bytes_can_be_read() {
    let server = Server::start();
    assert_eq!(server.listener.context().unwrap().name(), device_name());
    let (client, served) = connect(&server, Access::REMOTE_READ);
    assert!(served.greeting.starts_with(b"from the client"));
    assert_eq!(served.greeting.len(), PRIVATE_DATA_CONNECT_MAX);
    assert!(client.greeting.starts_with(b"from the server"));
    assert_eq!(client.greeting.len(), PRIVATE_DATA_ACCEPT_MAX);
    assert!(client.greeting[15..].iter().all(|byte| *byte == 0));
    assert_eq!(client.connection.peer_addr(), Some(server.address));
    assert_eq!(served.connection.peer_addr().unwrap().ip(), device_ip());
    assert_eq!(client.connection.remote().qp_num, served.connection.qp().qp_num());
    assert_eq!(served.connection.remote().qp_num, client.connection.qp().qp_num());

    let source = served
        .pd
        .register(rdma_core_rs::Buffer::new(4096).unwrap(), Access::REMOTE_READ)
        .unwrap();
    source.memory().copy_in(0, &pattern(4096, 9)).unwrap();
    let sink = client
        .pd
        .register(rdma_core_rs::Buffer::new(4096).unwrap(), Access::LOCAL_WRITE)
        .unwrap();
    let mut batch = rdma_core_rs::WorkBatch::with_capacity(1, 1);
    batch.read(
        1,
        remote(&source),
        &[sink.sge(0, 4096).unwrap()],
        rdma_core_rs::SendFlags::SIGNALED,
    );
    // SAFETY: the regions live until the completion below.
    unsafe { client.connection.qp().post_send(&mut batch) }.unwrap();
    assert_eq!(completions(&client.cq, 1)[0].status(), WcStatus::SUCCESS);
    assert_eq!(sink.memory().to_vec(0, 4096).unwrap(), pattern(4096, 9));
    drop(served.cq);
}

#[test]
#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]
fn a_queue_pair_has_the_rights_it_was_attached_with_and_finite_retries() {
    let server = Server::start();
    for access in [Access::REMOTE_READ, Access::REMOTE_WRITE, Access::NONE] {
        let (client, served) = connect(&server, access);
        let attr = served.connection.qp().query().unwrap();
        assert_eq!((attr.state, attr.access), (QpState::RTS, access));
        assert_eq!(
            (attr.timeout, attr.retry_cnt, attr.rnr_retry, attr.min_rnr_timer),
            (14, 6, 6, 12)
        );
        let attr = client.connection.qp().query().unwrap();
        assert_eq!((attr.state, attr.access), (QpState::RTS, Access::NONE));
        assert_eq!(
            (attr.timeout, attr.retry_cnt, attr.rnr_retry, attr.min_rnr_timer),
            (14, 6, 6, 12)
        );
        drop(client);
        assert_eq!(
            server.event(CmEventKind::DISCONNECTED).id(),
            served.connection.key()
        );
    }
}

#[test]
#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]
fn depths_are_the_smaller_of_both_ends() {
    let server = Server::start();
    let mut connector = resolve(server.address, None, deadline()).unwrap();
    let context = connector.context().unwrap();
    let (qp, ..) = make_qp(&context);
    connector.attach(qp, Access::NONE).unwrap();
    let mut asked = param(&context, b"");
    (asked.initiator_depth, asked.responder_resources) = (5, 0);
    std::thread::scope(|scope| {
        let client = scope.spawn(|| connector.connect_blocking(&asked, deadline()).unwrap());
        let request = server.request();
        assert_eq!(
            (
                request.remote().responder_resources,
                request.remote().initiator_depth
            ),
            (5, 0)
        );
        let (qp, ..) = make_qp(&request.context().unwrap());
        let mut offered = param(&context, b"");
        (offered.initiator_depth, offered.responder_resources) = (9, 4);
        let served = request
            .attach(qp, Access::REMOTE_READ)
            .unwrap()
            .accept(&offered)
            .unwrap();
        let (connection, _) = client.join().unwrap();
        assert_eq!((connection.initiator_depth(), served.initiator_depth()), (4, 0));
        assert_eq!(connection.qp().query().unwrap().max_rd_atomic, 4);
        assert_eq!(served.qp().query().unwrap().max_dest_rd_atomic, 4);
    });
}

#[test]
#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]
fn a_rejection_says_why() {
    let server = Server::start();
    let mut connector = resolve(server.address, None, deadline()).unwrap();
    let context = connector.context().unwrap();
    let (qp, ..) = make_qp(&context);
    connector.attach(qp, Access::NONE).unwrap();
    connector.connect(&param(&context, b"let me in")).unwrap();
    let request = server.request();
    assert!(request.private_data().starts_with(b"let me in"));
    request.reject(b"no such dataset").unwrap();
    let error = drive(&mut connector, Progress::Established).unwrap_err();
    let Error::Rejected {
        peer,
        reason,
        private_data,
    } = error
    else {
        panic!("{error}")
    };
    assert_eq!((peer, reason), (server.address, RejectReason::CONSUMER_DEFINED));
    assert!(private_data.starts_with(b"no such dataset"));
    assert_eq!(private_data.len(), PRIVATE_DATA_REJECT_MAX);
}

/// Handles events until `wanted`.
fn drive(connector: &mut Connector, wanted: Progress) -> Result<(), Error> {
    let channel = connector.id().channel().clone();
    loop {
        let event = channel
            .wait_event(deadline())?
            .expect("an event before the deadline");
        if connector.on_event(&event)? == wanted {
            return Ok(());
        }
    }
}

#[test]
#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]
fn a_request_that_is_dropped_is_rejected_too() {
    let server = Server::start();
    let mut connector = resolve(server.address, None, deadline()).unwrap();
    let context = connector.context().unwrap();
    connector.attach(make_qp(&context).0, Access::NONE).unwrap();
    connector.connect(&param(&context, b"")).unwrap();
    drop(server.request());
    let error = drive(&mut connector, Progress::Established).unwrap_err();
    assert!(
        matches!(
            error,
            Error::Rejected {
                reason: RejectReason::CONSUMER_DEFINED,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]
fn nobody_listens() {
    let server = Server::start();
    let address = server.address;
    drop(server);
    let mut connector = resolve(address, None, deadline()).unwrap();
    let context = connector.context().unwrap();
    connector.attach(make_qp(&context).0, Access::NONE).unwrap();
    let error = connector
        .connect_blocking(&param(&context, b""), deadline())
        .unwrap_err();
    assert!(
        matches!(
            error,
            Error::Rejected {
                reason: RejectReason::INVALID_SERVICE_ID,
                ..
            }
        ),
        "{error}"
    );
    assert!(error.to_string().contains("nothing listens"), "{error}");
}

#[test]
#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]
fn a_server_that_does_not_answer_meets_the_deadline() {
    let server = Server::start();
    let mut connector = resolve(server.address, None, deadline()).unwrap();
    let context = connector.context().unwrap();
    connector.attach(make_qp(&context).0, Access::NONE).unwrap();
    let start = Instant::now();
    let until = start + Duration::from_millis(300);
    let error = connector
        .connect_blocking(&param(&context, b""), until)
        .unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
    assert!(start.elapsed() >= Duration::from_millis(300));
    // The request is still taken and answered without harm, though its sender is gone.
    if let Ok(pending) = server.request().attach(make_qp(&context).0, Access::NONE) {
        let _ = pending.accept(&param(&context, b""));
    }
}

#[test]
#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]
fn an_address_without_a_device_is_refused() {
    let error = resolve(
        "192.0.2.1:7471".parse().unwrap(),
        None,
        Instant::now() + Duration::from_secs(5),
    )
    .unwrap_err();
    assert!(
        matches!(
            error,
            Error::Verb { .. } | Error::ConnectFailed { .. } | Error::Timeout { .. }
        ),
        "{error}"
    );
    assert!(error.to_string().contains("192.0.2.1"), "{error}");
    let channel = EventChannel::new().unwrap();
    let error = Listener::bind(&channel, "192.0.2.1:7471".parse().unwrap(), 1).unwrap_err();
    assert!(
        matches!(
            error,
            Error::Verb {
                call: "rdma_bind_addr",
                ..
            }
        ),
        "{error}"
    );
}

#[test]
#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]
fn a_port_is_taken_once() {
    let server = Server::start();
    let channel = EventChannel::new().unwrap();
    let error = Listener::bind(&channel, server.address, 1).unwrap_err();
    assert_eq!(error.errno(), Some(libc::EADDRINUSE), "{error}");
    assert!(error.to_string().contains(&server.address.to_string()), "{error}");
}

#[test]
#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]
fn a_listener_on_all_addresses_learns_the_device_from_the_request() {
    let channel = EventChannel::new().unwrap();
    let listener = Listener::bind(&channel, "0.0.0.0:0".parse().unwrap(), 4).unwrap();
    assert!(matches!(listener.context(), Err(Error::InvalidArgument { .. })));
    let address = SocketAddr::new(device_ip(), listener.local_addr().unwrap().port());
    let server = Server {
        channel,
        listener,
        address,
    };
    let (client, served) = connect(&server, Access::NONE);
    assert_eq!(served.connection.qp().context().name(), device_name());
    assert!(
        served
            .connection
            .qp()
            .context()
            .is_same(client.connection.qp().context())
    );
}

#[test]
#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]
fn disconnecting_flushes_here_and_is_told_there() {
    let server = Server::start();
    let (client, served) = connect(&server, Access::NONE);
    let inbox = client
        .pd
        .register(rdma_core_rs::Buffer::new(64).unwrap(), Access::LOCAL_WRITE)
        .unwrap();
    post_recv(client.connection.qp(), 77, &[inbox.sge(0, 64).unwrap()]);
    client.connection.disconnect().unwrap();
    let completion = completions(&client.cq, 1)[0];
    assert_eq!(
        (completion.wr_id(), completion.status()),
        (77, WcStatus::WR_FLUSH_ERR)
    );
    let event = server.event(CmEventKind::DISCONNECTED);
    assert_eq!(event.id(), served.connection.key());
    assert!(event.kind().ends_connection());
    served.connection.disconnect().unwrap();
    let event = client
        .connection
        .id()
        .channel()
        .wait_event(deadline())
        .unwrap()
        .expect("an event");
    assert_eq!(
        (event.kind(), event.id()),
        (CmEventKind::DISCONNECTED, client.connection.key())
    );
}

#[test]
#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]
fn dropping_a_connection_tells_the_peer() {
    let server = Server::start();
    let (client, served) = connect(&server, Access::NONE);
    drop(client);
    assert_eq!(
        server.event(CmEventKind::DISCONNECTED).id(),
        served.connection.key()
    );
    drop(served);
    drop(server);
}

#[test]
#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]
fn one_thread_carries_many_connections_without_blocking() {
    let channel = EventChannel::new().unwrap();
    let listener = Listener::bind(&channel, any_port(), 64).unwrap();
    let address = listener.local_addr().unwrap();
    let count = 12;
    let timeout = Duration::from_secs(10);
    let mut connectors: Vec<Connector> = (0..count)
        .map(|_| Connector::start(&channel, address, None, timeout).unwrap())
        .collect();
    let (mut served, mut ready, mut established) = (Vec::new(), vec![false; count], 0);
    while !ready.iter().all(|ready| *ready) || established < count {
        assert!(
            wait_readable(channel.as_fd(), deadline()).unwrap(),
            "{} of {count} stand",
            served.len()
        );
        let Some(event) = channel.poll_event().unwrap() else {
            continue;
        };
        if event.kind() == CmEventKind::CONNECT_REQUEST {
            let request = event.into_request().unwrap();
            let number = request.private_data()[0];
            let context = request.context().unwrap();
            let (qp, ..) = make_qp(&context);
            let connection = request
                .attach(qp, Access::REMOTE_READ)
                .unwrap()
                .accept(&param(&context, &[number]))
                .unwrap();
            served.push(connection);
            continue;
        }
        if event.kind() == CmEventKind::ESTABLISHED {
            assert!(served.iter().any(|connection| connection.key() == event.id()));
            established += 1;
            continue;
        }
        for (number, connector) in connectors.iter_mut().enumerate() {
            match connector.on_event(&event).unwrap() {
                Progress::Waiting => {}
                Progress::Resolved => {
                    let context = connector.context().unwrap();
                    connector.attach(make_qp(&context).0, Access::NONE).unwrap();
                    connector.connect(&param(&context, &[number as u8])).unwrap();
                }
                Progress::Established => ready[number] = true,
            }
        }
    }
    for (number, connector) in connectors.into_iter().enumerate() {
        let (connection, reply) = connector.finish().unwrap();
        assert_eq!(reply[0], number as u8);
        assert_eq!(connection.qp().query().unwrap().state, QpState::RTS);
    }
}

#[test]
#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]
fn a_request_can_move_to_another_channel() {
    let server = Server::start();
    let mut connector = resolve(server.address, None, deadline()).unwrap();
    let context = connector.context().unwrap();
    connector.attach(make_qp(&context).0, Access::NONE).unwrap();
    connector.connect(&param(&context, b"")).unwrap();
    let mut request = server.request();
    let worker = EventChannel::new().unwrap();
    request.id_mut().migrate(&worker).unwrap();
    let served = request
        .attach(make_qp(&context).0, Access::NONE)
        .unwrap()
        .accept(&param(&context, b""))
        .unwrap();
    drive(&mut connector, Progress::Established).unwrap();
    let event = worker
        .wait_event(deadline())
        .unwrap()
        .expect("the event comes to the new channel");
    assert_eq!(
        (event.kind(), event.id()),
        (CmEventKind::ESTABLISHED, served.key())
    );
    assert!(server.channel.poll_event().unwrap().is_none());
}

#[test]
#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]
fn what_makes_no_sense_is_refused_before_the_kernel_sees_it() {
    let server = Server::start();
    let mut connector = resolve(server.address, None, deadline()).unwrap();
    let context = connector.context().unwrap();
    assert!(matches!(
        connector.connect(&param(&context, b"")),
        Err(Error::InvalidArgument { .. })
    ));
    assert!(matches!(
        connector.attach(make_qp(&context).0, Access::ON_DEMAND),
        Err(Error::InvalidArgument { .. })
    ));
    connector.attach(make_qp(&context).0, Access::NONE).unwrap();
    assert!(matches!(
        connector.attach(make_qp(&context).0, Access::NONE),
        Err(Error::InvalidArgument { .. })
    ));
    let long = param(&context, &[0; PRIVATE_DATA_CONNECT_MAX + 1]);
    let error = connector.connect(&long).unwrap_err();
    assert!(error.to_string().contains("57 bytes"), "{error}");
    let mut endless = param(&context, b"");
    endless.reliability = Reliability {
        rnr_retry: 7,
        ..Reliability::default()
    };
    assert!(matches!(
        connector.connect(&endless),
        Err(Error::InvalidArgument { .. })
    ));
    connector
        .connect(&param(&context, &[1; PRIVATE_DATA_CONNECT_MAX]))
        .unwrap();
    let request = server.request();
    assert_eq!(request.private_data(), [1; PRIVATE_DATA_CONNECT_MAX]);
    assert!(matches!(connector.finish(), Err(Error::InvalidArgument { .. })));
}
