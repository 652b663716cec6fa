//! A server whose disk is slow or fails, over a simulated network.

#[path = "../../tests/server/common/mod.rs"]
mod common;

use std::collections::BTreeSet;
use std::io;
use std::ops::Deref;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use common::{Opened, Raw, Running, Setup, TestFabric, eventually};
use kv_fabric::sim::Sim;
use kv_proto::control::{Bytes, Request, Status};
use kv_proto::crc::crc32c;

use super::changes::CHANGES_MAX;
use super::options::{CONNECTIONS_RESERVED, Options};
use crate::store::{Call, Files, Store};

/// What the disk does with syncs.
#[derive(Default)]
struct Disk {
    /// Those of a path with one of these in it wait.
    held: Mutex<BTreeSet<String>>,
    moved: Condvar,
    /// Syncs that wait.
    waiting: AtomicUsize,
    /// Those of directories fail.
    fails: AtomicBool,
}

impl Disk {
    fn hold(&self, path: &str) {
        self.held.lock().unwrap().insert(path.to_owned());
    }

    fn free(&self, path: &str) {
        self.held.lock().unwrap().remove(path);
        self.moved.notify_all();
    }

    fn sync(&self, call: Call, path: &Path) -> Option<(usize, io::Error)> {
        let path = path.to_string_lossy();
        let is_held = |held: &mut BTreeSet<String>| held.iter().any(|it| path.contains(it.as_str()));
        let mut held = self.held.lock().unwrap();
        if is_held(&mut held) {
            self.waiting.fetch_add(1, Ordering::SeqCst);
            held = self.moved.wait_while(held, is_held).unwrap();
            self.waiting.fetch_sub(1, Ordering::SeqCst);
        }
        drop(held);
        let failed = || (0, io::Error::other("the disk is gone"));
        (call == Call::SyncDirectory && self.fails.load(Ordering::SeqCst)).then(failed)
    }

    /// Waits until a sync does.
    fn until_it_waits(&self) {
        eventually("the sync waits", || {
            (self.waiting.load(Ordering::SeqCst) == 1).then_some(())
        });
    }
}

/// A server on such a disk. The disk goes on when the test ends, however it does: a server waits for its disk.
struct OnDisk {
    server: Running<Sim>,
    disk: Arc<Disk>,
}

impl Deref for OnDisk {
    type Target = Running<Sim>;

    fn deref(&self) -> &Running<Sim> {
        &self.server
    }
}

impl Drop for OnDisk {
    fn drop(&mut self) {
        self.disk.held.lock().unwrap().clear();
        self.disk.moved.notify_all();
    }
}

impl OnDisk {
    fn start(edit: impl FnOnce(&mut Setup)) -> Self {
        Self::start_with(edit, |_, _| ())
    }

    /// `opened` has the store before the server does.
    fn start_with(edit: impl FnOnce(&mut Setup), opened: impl FnOnce(&Store, &Options)) -> Self {
        let mut setup = Setup::new();
        edit(&mut setup);
        let address = Sim::address(setup.folder.path());
        let fabric = Sim::server(&address);
        let disk = Arc::new(Disk::default());
        let mut files = Files::default();
        let syncs = Arc::clone(&disk);
        files.faults = Some(Box::new(move |call: Call, path: &Path| {
            let is_sync = matches!(call, Call::Sync | Call::SyncDirectory);
            is_sync.then(|| syncs.sync(call, path)).flatten()
        }));
        let (store, options) = (setup.store.clone(), setup.options.clone());
        let handle = super::server::start(
            fabric.clone(),
            &address,
            setup.keys(),
            setup.options.clone(),
            move |fabric| {
                let domains = Arc::clone(fabric);
                Store::open_with(store, files, u64::MAX, move || domains.domain())
                    .inspect(|store| opened(store, &options))
            },
        );
        let server = Running {
            fabric,
            address,
            handle: Some(handle.unwrap()),
            setup,
        };
        Self { server, disk }
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
    let server = OnDisk::start(|_| ());
    let disk = &server.disk;
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
        disk.hold("datasets");
        let number = admin.send(&change);
        disk.until_it_waits();
        for raw in [&mut other, &mut admin] {
            raw.renew(0);
            raw.figure([0; 16], "datasets_count");
            raw.ask(&Request::Datasets {
                after: Bytes::default(),
            })
            .unwrap();
        }
        assert_eq!(disk.waiting.load(Ordering::SeqCst), 1, "{change:?}");
        disk.free("datasets");
        admin.answer(number).unwrap().unwrap();
    }
    assert_eq!(other.figure([0; 16], "datasets_count"), 0);
}

#[test]
fn changes_that_wait_for_the_disk_are_bounded() {
    let server = OnDisk::start(|_| ());
    let disk = &server.disk;
    let mut admins: Vec<Raw> = (0..3).map(|_| server.session(&server.setup.admin)).collect();
    disk.hold("datasets");
    let first = admins[0].send(&create("first"));
    disk.until_it_waits();
    let drop = Request::Drop { name: name("none") };
    let asked: Vec<(usize, u64)> = (0..3 * 28)
        .map(|index| (index % 3, admins[index % 3].send(&drop)))
        .collect();
    for admin in &mut admins {
        // Answered after all that came before it was looked at.
        admin.renew(0);
    }
    disk.free("datasets");
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
    let server = OnDisk::start(|_| ());
    let disk = &server.disk;
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

/// Length of a value of four windows, of which the server gathers two.
const LARGE_BYTES: usize = 4 << 20;

/// Where a dataset lies on the disk.
fn place(opened: &Opened) -> String {
    opened.dataset.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Sends windows of a large value until one waits for memory, the first of which so many others may be: its operation,
/// and the number of the APPEND.
fn park(raw: &mut Raw, dataset: [u8; 16], others: u64) -> (u64, u64) {
    let operation = raw.operation();
    let (offset, len_bytes) = raw.alloc(dataset, operation, b"large", LARGE_BYTES).unwrap();
    assert_eq!(len_bytes as usize, LARGE_BYTES / 4);
    for _ in 0..3 {
        raw.write(offset, &vec![7; len_bytes as usize]);
        let number = raw.send(&Request::Append { operation, len_bytes });
        if raw.figure([0; 16], "writes_waiting_count") > others {
            return (operation, number);
        }
        raw.answer(number).unwrap().unwrap();
    }
    panic!("nothing waited");
}

/// The first write that waited for memory held up those of every other session and dataset.
#[test]
fn a_write_that_waits_for_memory_holds_up_no_other() {
    let server = OnDisk::start(|_| ());
    let (mut first, cats) = server.with_dataset("cats");
    let (mut second, dogs) = server.with_dataset("dogs");
    for opened in [&cats, &dogs] {
        server.disk.hold(&place(opened));
    }
    let (_, waits) = park(&mut first, cats.dataset, 0);
    let (operation, goes_on) = park(&mut second, dogs.dataset, 1);
    server.disk.free(&place(&dogs));
    second.answer(goes_on).unwrap().unwrap();
    // What lies in the window is the rest too.
    let commit = Request::Commit {
        operation,
        len_bytes: LARGE_BYTES as u32 / 4,
        value_crc: crc32c(&vec![7; LARGE_BYTES]),
    };
    second.ask(&commit).unwrap();
    assert_eq!(second.figure(dogs.dataset, "keys_count"), 1);
    assert_eq!(second.figure([0; 16], "writes_waiting_count"), 1);
    server.disk.free(&place(&cats));
    first.answer(waits).unwrap().unwrap();
}

/// A write that waited for a disk that stood still was given up as one whose client says nothing.
#[test]
fn a_write_that_waits_for_memory_is_not_silent() {
    let server = OnDisk::start(|setup| setup.options.max_lag_ms = 300);
    let (mut raw, cats) = server.with_dataset("cats");
    server.disk.hold(&place(&cats));
    let (_, waits) = park(&mut raw, cats.dataset, 0);
    // Heard of later than that, and then no more.
    let silent = raw.operation();
    raw.alloc(cats.dataset, silent, b"silent", 1).unwrap();
    let mut retired = cats.retired;
    eventually("who is silent is given up", || {
        retired = raw.renew(retired).0;
        (raw.figure([0; 16], "puts_in_progress_count") < 2).then_some(())
    });
    server.disk.free(&place(&cats));
    raw.answer(waits).unwrap().unwrap();
}

/// Begins and commits small values of `len` bytes, until one waits for memory: the numbers of their COMMITs.
fn park_small(raw: &mut Raw, dataset: [u8; 16], len: usize) -> Vec<u64> {
    let body = vec![7; len];
    let mut asked = Vec::new();
    while raw.figure([0; 16], "writes_waiting_count") == 0 {
        assert!(asked.len() < 24, "none waited");
        let operation = raw.operation();
        let (offset, _) = raw
            .alloc(dataset, operation, &operation.to_le_bytes(), len)
            .unwrap();
        raw.write(offset, &body);
        asked.push(raw.send(&Request::Commit {
            operation,
            len_bytes: len as u32,
            value_crc: crc32c(&body),
        }));
    }
    asked
}

/// Short values that the log has no room for yet wait in the server, none for a client, and none is refused.
#[test]
fn small_values_wait_for_the_log_alone() {
    let server = OnDisk::start(|setup| {
        setup.store.gather_budget_bytes = 4 << 20;
        setup.options.max_lag_ms = 300;
    });
    let (mut raw, cats) = server.with_dataset("cats");
    let mut other = server.session(&server.setup.writer);
    other.open("cats");
    server.disk.hold(&place(&cats));
    let asked = park_small(&mut raw, cats.dataset, 128 << 10);
    // A shorter one that came later stays behind.
    let (offset, _) = other.alloc(cats.dataset, 1, b"short", 1).unwrap();
    other.write(offset, b"x");
    let short = other.send(&Request::Commit {
        operation: 1,
        len_bytes: 1,
        value_crc: crc32c(b"x"),
    });
    assert_eq!(other.figure([0; 16], "writes_waiting_count"), 2);
    // They are not given up as silent, and sessions go on meanwhile.
    let silent = raw.operation();
    raw.alloc(cats.dataset, silent, b"silent", 200_000).unwrap();
    let mut retired = cats.retired;
    eventually("who is silent is given up", || {
        other.renew(retired);
        retired = raw.renew(retired).0;
        (raw.figure([0; 16], "puts_in_progress_count") == 2).then_some(())
    });
    server.disk.free(&place(&cats));
    let count = asked.len() as u64;
    for number in asked {
        raw.answer(number).unwrap().unwrap();
    }
    other.answer(short).unwrap().unwrap();
    assert_eq!(raw.figure(cats.dataset, "keys_count"), count + 1);
    assert_eq!(raw.figure([0; 16], "gather_used_bytes"), 0);
}

/// Nothing is taken out of a window while the request before waits: who sends it anyway has both refused.
#[test]
fn nothing_overtakes_a_write_that_waits_for_memory() {
    let server = OnDisk::start(|_| ());
    let (mut raw, cats) = server.with_dataset("cats");
    server.disk.hold(&place(&cats));
    let (operation, waits) = park(&mut raw, cats.dataset, 0);
    let append = Request::Append {
        operation,
        len_bytes: 1,
    };
    assert_eq!(raw.refused(&append), Status::Order);
    server.disk.free(&place(&cats));
    assert_eq!(raw.answer(waits).unwrap().unwrap_err().status, Status::Stale);
    assert_eq!(raw.figure([0; 16], "puts_in_progress_count"), 0);
}

/// Data may take all memory but what was set aside for those who come.
#[test]
fn a_connection_comes_in_though_memory_is_used_up() {
    let all = |store: &Store, options: &Options| {
        let figure = |name: &str| store.stat().iter().find(|it| it.0 == name).unwrap().1;
        let left = figure("memory_budget_bytes") - figure("memory_used_bytes");
        let kept = CONNECTIONS_RESERVED as u64 * options.connection().memory_bytes();
        // Nobody gives it back.
        std::mem::forget(store.charge(left - kept).unwrap());
    };
    // So little that none of it is kept for compaction.
    let server = OnDisk::start_with(|setup| setup.store.memory_budget_bytes = 12 << 20, all);
    let mut raw = server.session(&server.setup.reader);
    raw.renew(0);
}
