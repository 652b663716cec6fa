//! A device refuses to destroy the connection of a session that was fenced. The queue pair was leaked with a line in the
//! log, its peer could read on, and the memory was freed and reused all the same.

use std::time::{Duration, Instant};

use crate::common::{Setup, eventually};
use kv_fabric::sim::{Sim, SimFaults};
use kv_proto::control::{Bytes, Request};

fn refuse(sim: &Sim, probability: f64) {
    sim.set_faults(SimFaults {
        refused_destroy: probability,
        ..SimFaults::default()
    });
}

#[test]
fn what_a_connection_that_is_not_destroyed_could_read_stays_held() {
    let mut setup = Setup::new();
    // Long enough for what is made durable before it ends, on a busy disk too.
    setup.options.lease_ms = 1000;
    let server = setup.start::<Sim>();
    let (mut silent, opened) = server.with_dataset("cats");
    let (_, locator) = silent.put(opened.dataset, b"k", &[7; 200_000]).unwrap();
    let token = silent.tokens(opened.dataset, 1)[0];
    let mut data = silent.data(token).unwrap();
    let from = silent.place(opened.dataset, &locator);
    let len = locator.wire_len_bytes() as usize;
    let before = silent.read(&mut *data, from, len).unwrap();

    refuse(&server.fabric, 1.0);
    let mut admin = server.session(&server.setup.admin);
    let mut retired = 0;
    // Renews, so that only the other session is fenced.
    let mut figure = |name: &str| {
        retired = admin.renew(retired).0;
        admin.figure([0; 16], name)
    };
    eventually("the silent session is fenced", || {
        (figure("fenced_count") == 1).then_some(())
    });
    // Its data connection and its control connection.
    assert_eq!(figure("connections_undestroyed_count"), 2);
    let used = figure("memory_used_bytes");
    server
        .session(&server.setup.admin)
        .ask(&Request::Drop {
            name: Bytes::from(&b"cats"[..]),
        })
        .unwrap();
    let refused = server.fabric.injected().refused_destroys;
    let until = Instant::now() + Duration::from_secs(20);
    while server.fabric.injected().refused_destroys < refused + 4 {
        assert!(Instant::now() < until, "destruction is not tried again");
        assert!(figure("memory_used_bytes") >= used, "freed under a reader");
        assert_eq!(silent.read(&mut *data, from, len).unwrap(), before);
    }

    refuse(&server.fabric, 0.0);
    eventually("the connections are destroyed", || {
        (figure("connections_undestroyed_count") == 0).then_some(())
    });
    eventually("the memory is freed", || {
        (figure("memory_used_bytes") < used).then_some(())
    });
    assert!(silent.read(&mut *data, from, len).is_err());
}
