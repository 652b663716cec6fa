//! A session over a simulated network, asked for what cannot be sent.

use kv_fabric::RemoteRef;
use kv_fabric::sim::{Sim, SimOptions};
use kv_proto::auth::Role;
use kv_server::control::keys::Key;
use kv_server::control::{Keys, Options, Server};
use kv_server::store::StoreOptions;

use super::*;
use crate::clock::Deadline;
use crate::control::Handle;
use crate::put::pool::Pool;
use crate::{AccessKey, ClientOptions};

const PATIENCE: Duration = Duration::from_secs(10);

#[test]
fn only_one_window_may_be_ahead_of_a_renewal_that_is_near() {
    assert_eq!(write_ahead_bytes(1000, 1000), SLOT_BYTES);
    assert_eq!(write_ahead_bytes(2000, 1000), SLOT_BYTES);
    assert_eq!(write_ahead_bytes(0, RENEW_NEAR_NS - 1), SLOT_BYTES);
    assert_eq!(write_ahead_bytes(0, RENEW_NEAR_NS), WRITE_AHEAD_BYTES);
    // One is outstanding.
    assert_eq!(write_ahead_bytes(0, u64::MAX), WRITE_AHEAD_BYTES);
}

#[test]
fn who_asked_with_a_write_that_cannot_be_posted_is_answered_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let fabric = Arc::new(Sim::new(SimOptions::default()));
    let store = StoreOptions {
        data: folder.path().join("data"),
        memory_budget_bytes: 64 << 20,
        segment_bytes: 8 << 20,
        part_bytes: 2 << 20,
        gather_budget_bytes: 16 << 20,
        compaction: kv_server::store::Compaction::default(),
    };
    let key = Key {
        name: "writer".to_owned(),
        secret: [7; 32],
        role: Role::Write,
        datasets: vec!["*".to_owned()],
    };
    let keys = Keys::new(vec![key]).unwrap();
    let address = "server:7471";
    let server = Server::<Sim>::start(Arc::clone(&fabric), address, store, keys, Options::default()).unwrap();
    let options = ClientOptions::new(AccessKey::new("writer", [7; 32]));
    let handle = Handle::start(Arc::clone(&fabric), address.to_owned(), options).unwrap();
    let shared = &handle.shared;
    let deadline = Deadline::after(PATIENCE);
    let up = shared.ensure(deadline, true).unwrap();
    let slot = Arc::new(Pool::<Sim>::new())
        .take(&*fabric, deadline)
        .unwrap()
        .unwrap();
    let mailbox = Arc::new(Mailbox::default());
    shared.submit(Command::Request {
        generation: up.generation,
        request: Request::Append {
            operation: 1,
            len_bytes: 1,
        },
        reply: Some((Arc::clone(&mailbox), 5)),
        write: Some(Write {
            source: Arc::new(slot),
            // Beyond what is registered.
            offset: 1 << 30,
            len: 1,
            to: RemoteRef {
                address: up.info.staging_address,
                rkey: up.info.staging_rkey,
            },
        }),
        dataset: None,
    });
    let reply = mailbox.wait(deadline);
    assert!(matches!(reply, Some((5, Reply::Lost))), "{reply:?}");
    // A session that ended so is begun again.
    assert!(shared.ensure(deadline, false).unwrap().generation > up.generation);
    drop(handle);
    server.stop();
    server.join().unwrap();
}
