//! A session over a simulated network, asked for what cannot be sent.

use kv_fabric::RemoteRef;
use kv_fabric::sim::{Sim, SimOptions};
use kv_proto::auth::Role;
use kv_proto::control::Bytes;
use kv_server::control::keys::Key;
use kv_server::control::{Keys, Options, Server};
use kv_server::store::StoreOptions;

use super::*;
use crate::clock::Deadline;
use crate::control::Handle;
use crate::put::pool::Pool;
use crate::{AccessKey, ClientOptions};

const PATIENCE: Duration = Duration::from_secs(10);

/// A session of an admin. Fields are dropped from the top: the session before its server.
struct World {
    handle: Handle,
    _server: kv_server::control::Server,
    fabric: Arc<Sim>,
    _folder: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let fabric = Arc::new(Sim::new(SimOptions::default()));
        let store = StoreOptions {
            data: folder.path().join("data"),
            memory_budget_bytes: 64 << 20,
            segment_bytes: 8 << 20,
            part_bytes: 2 << 20,
            scrub_share: 0.0,
            gather_budget_bytes: 16 << 20,
            compaction: kv_server::store::Compaction::default(),
        };
        let key = Key {
            name: "admin".to_owned(),
            secret: [7; 32],
            role: Role::Admin,
            datasets: vec!["*".to_owned()],
        };
        let keys = Keys::new(vec![key]).unwrap();
        let address = "server:7471";
        let limits = Options::default();
        let server = Server::start(fabric.clone(), address, store, keys, limits).unwrap();
        let options = ClientOptions::new(AccessKey::new("admin", [7; 32]));
        let deadline = crate::clock::Deadline::after(options.connect_timeout);
        let handle = Handle::start(fabric.clone(), address.to_owned(), options, deadline).unwrap();
        Self {
            handle,
            _server: server,
            fabric,
            _folder: folder,
        }
    }

    fn ask(&self, request: Request, dataset: Option<&Arc<DatasetState>>) -> Result<Answer, Status> {
        let shared = &self.handle.shared;
        let deadline = Deadline::after(PATIENCE);
        let up = shared.ensure(deadline, true).unwrap();
        match shared.ask(up.generation, request, dataset.cloned(), deadline) {
            Some(Reply::Answer(answer)) => Ok(answer),
            Some(Reply::Refused(refused)) => Err(refused.status),
            other => panic!("{other:?}"),
        }
    }

    fn open(&self, name: &str) -> (Arc<DatasetState>, [u8; 16]) {
        let state = Arc::new(DatasetState::new());
        match self.ask(open(name), Some(&state)) {
            Ok(Answer::Open { dataset, .. }) => (state, dataset),
            other => panic!("{other:?}"),
        }
    }
}

fn open(name: &str) -> Request {
    Request::Open {
        name: Bytes::from(name.as_bytes()),
    }
}

/// A CLOSE that met an OPEN under way was left out, and its dataset stayed open, held against every retirement, until
/// the session's end.
#[test]
fn a_close_that_meets_an_open_under_way_closes_unless_that_opened_the_same() {
    for (opened, expected) in [("other", Some(Status::NoDataset)), ("cats", None)] {
        let world = World::new();
        for name in ["cats", "other"] {
            let name = Bytes::from(name.as_bytes());
            world.ask(Request::Create { name }, None).unwrap();
        }
        let (state, dataset) = world.open("cats");
        let shared = &world.handle.shared;
        let generation = shared.ensure(Deadline::after(PATIENCE), true).unwrap().generation;
        let mailbox = Arc::new(Mailbox::default());
        let command = |request, state, reply| Command::Request {
            generation,
            request,
            reply,
            write: None,
            dataset: Some(state),
        };
        let opening = Arc::new(DatasetState::new());
        let reply = Some((Arc::clone(&mailbox), 1));
        // Together, so that the OPEN is not answered before the CLOSE is looked at.
        lock(&shared.inbox).extend([
            command(open(opened), Arc::clone(&opening), reply),
            command(Request::Close { dataset }, state, None),
        ]);
        shared.ring();
        let reply = mailbox.wait(Deadline::after(PATIENCE));
        assert!(matches!(reply, Some((1, Reply::Answer(_)))), "{reply:?}");
        let table = world.ask(Request::Table { dataset, first: 0 }, None);
        assert_eq!(table.err(), expected, "after an OPEN of {opened}");
    }
}

#[test]
fn who_asked_with_a_write_that_cannot_be_posted_is_answered_at_once() {
    let world = World::new();
    let (fabric, shared) = (&world.fabric, &world.handle.shared);
    let deadline = Deadline::after(PATIENCE);
    let up = shared.ensure(deadline, true).unwrap();
    let slot = Arc::new(Pool::new()).take(&**fabric, deadline).unwrap().unwrap();
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
}

/// A lease that is renewed at its very end was seen to be over by a call just before: it waited for another session until
/// its deadline, for that one never ended.
#[test]
fn who_waits_for_a_session_gets_on_when_the_lease_is_renewed() {
    let world = World::new();
    let shared = &world.handle.shared;
    let up = shared.ensure(Deadline::after(PATIENCE), true).unwrap();
    shared.tenure.renewed(0);
    let (told, ensured) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| {
            told.send(
                shared
                    .ensure(Deadline::after(10 * PATIENCE), false)
                    .map(|up| up.generation),
            )
        });
        // Should it have been renewed by itself meanwhile, nobody waits.
        while lock(&shared.state).waiters == 0 && !waits.is_finished() {
            std::thread::yield_now();
        }
        let mailbox = Arc::new(Mailbox::default());
        shared.submit(Command::Renew {
            generation: up.generation,
            mailbox: Arc::clone(&mailbox),
            tag: 1,
        });
        let reply = mailbox.wait(Deadline::after(PATIENCE));
        assert!(matches!(reply, Some((1, Reply::Renewed))), "{reply:?}");
        let ensured = ensured.recv_timeout(PATIENCE);
        // Whoever waits still, where this fails, is to end.
        shared.changed.notify_all();
        assert_eq!(ensured.unwrap().unwrap(), up.generation);
    });
}
