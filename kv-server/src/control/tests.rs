//! A server whose disk is slow or fails, over a simulated network.

#[path = "../../tests/server/common/mod.rs"]
mod common;

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use common::{Raw, Running, Setup, TestFabric, eventually};
use kv_fabric::Fabric;
use kv_fabric::sim::Sim;
use kv_proto::control::{Bytes, Request, Status};

use super::Server;
use super::changes::CHANGES_MAX;
use crate::store::{Call, Files, Store};

/// What the disk does with a sync of a directory.
#[derive(Default)]
struct Disk {
    held: Mutex<bool>,
    moved: Condvar,
    /// Syncs that wait.
    waiting: AtomicUsize,
    fails: AtomicBool,
}

impl Disk {
    fn hold(&self, held: bool) {
        *self.held.lock().unwrap() = held;
        self.moved.notify_all();
    }

    fn sync(&self) -> Option<(usize, io::Error)> {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let held = self.held.lock().unwrap();
        drop(self.moved.wait_while(held, |held| *held).unwrap());
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        let failed = || (0, io::Error::other("the disk is gone"));
        self.fails.load(Ordering::SeqCst).then(failed)
    }

    fn start(self: &Arc<Self>) -> Running<Sim> {
        let setup = Setup::new();
        let address = Sim::address(setup.folder.path());
        let fabric = Sim::server(&address);
        let disk = Arc::clone(self);
        let mut files = Files::default();
        files.faults = Some(Box::new(move |call: Call, _: &Path| {
            (call == Call::SyncDirectory).then(|| disk.sync()).flatten()
        }));
        let store = setup.store.clone();
        let handle = Server::start_with(
            Arc::clone(&fabric),
            &address,
            setup.keys(),
            setup.options.clone(),
            move |fabric| {
                let domains = Arc::clone(fabric);
                Store::open_with(store, files, u64::MAX, move || domains.domain())
            },
        );
        Running {
            fabric,
            address,
            handle: Some(handle.unwrap()),
            setup,
        }
    }
}

fn name(text: &str) -> Bytes {
    Bytes::from(text.as_bytes())
}

fn create(text: &str) -> Request {
    Request::Create { name: name(text) }
}

/// CREATE, RENAME and DROP synced on the control thread: on a slow disk the lease of every session ran out meanwhile.
#[test]
fn renewals_are_answered_while_a_change_of_datasets_waits_for_the_disk() {
    let disk = Arc::new(Disk::default());
    let server = disk.start();
    let mut admin = server.session(&server.setup.admin);
    let mut other = server.session(&server.setup.reader);
    let changes = [
        create("cats"),
        Request::Rename {
            from: name("cats"),
            to: name("dogs"),
        },
        Request::Drop { name: name("dogs") },
    ];
    for change in changes {
        disk.hold(true);
        let number = admin.send(&change);
        eventually("the sync waits", || {
            (disk.waiting.load(Ordering::SeqCst) == 1).then_some(())
        });
        for raw in [&mut other, &mut admin] {
            raw.renew(0);
            raw.figure([0; 16], "datasets_count");
            raw.ask(&Request::Datasets {
                after: Bytes::default(),
            })
            .unwrap();
        }
        assert_eq!(disk.waiting.load(Ordering::SeqCst), 1, "{change:?}");
        disk.hold(false);
        admin.answer(number).unwrap().unwrap();
    }
    assert_eq!(other.figure([0; 16], "datasets_count"), 0);
}

#[test]
fn changes_that_wait_for_the_disk_are_bounded() {
    let disk = Arc::new(Disk::default());
    let server = disk.start();
    let mut admins: Vec<Raw<Sim>> = (0..3).map(|_| server.session(&server.setup.admin)).collect();
    disk.hold(true);
    let first = admins[0].send(&create("first"));
    eventually("the sync waits", || {
        (disk.waiting.load(Ordering::SeqCst) == 1).then_some(())
    });
    let drop = Request::Drop { name: name("none") };
    let asked: Vec<(usize, u64)> = (0..3 * 28)
        .map(|index| (index % 3, admins[index % 3].send(&drop)))
        .collect();
    for admin in &mut admins {
        // Answered after all that came before it was looked at.
        admin.renew(0);
    }
    disk.hold(false);
    admins[0].answer(first).unwrap().unwrap();
    let mut busy = 0;
    for (index, number) in asked {
        match admins[index].answer(number).unwrap().unwrap_err().status {
            Status::Busy => busy += 1,
            status => assert_eq!(status, Status::NoDataset),
        }
    }
    assert_eq!(busy, 3 * 28 - CHANGES_MAX);
}

/// A DROP whose directory could not be synced was answered as if the dataset were there as before.
#[test]
fn a_drop_that_may_not_last_is_said_to_be_one() {
    let disk = Arc::new(Disk::default());
    let server = disk.start();
    let mut admin = server.session(&server.setup.admin);
    admin.create("cats");
    disk.fails.store(true, Ordering::SeqCst);
    let refused = admin.ask(&Request::Drop { name: name("cats") }).unwrap_err();
    disk.fails.store(false, Ordering::SeqCst);
    assert_eq!(refused.status, Status::Io);
    for told in [
        "\"cats\" is dropped",
        "may be back",
        "dropped again",
        "the disk is gone",
    ] {
        assert!(refused.text.contains(told), "{}", refused.text);
    }
    assert_eq!(admin.figure([0; 16], "datasets_count"), 0);
    admin.create("cats");
}
