//! One session for each process, server and key, whoever connects; memory that is registered once.
//!
//! # Safety
//! What is registered outlives its registration, and is looked at only while no call reads into it.
#![allow(unsafe_code)]

use std::ptr::NonNull;
use std::time::{Duration, Instant};

use kv_client::{Client, ClientError, ClientOptions, Server, Target};
use kv_fabric::local::Local;
use kv_fabric::verbs::Verbs;

use crate::harness::{TestFabric, World, options, value};

const PATIENCE: Duration = Duration::from_secs(20);

fn uri(world: &World<Local>) -> String {
    format!("local:{}?dataset=d", world.address)
}

fn figure(figures: &[(String, u64)], name: &str) -> u64 {
    let found = figures.iter().find(|(known, _)| known == name);
    found.expect("the server tells it").1
}

#[test]
fn all_that_connect_share_a_session_and_its_tables() {
    let world = World::<Local>::new();
    let writer = world.dataset("d");
    let items: Vec<_> = (0..200_u64)
        .map(|index| (format!("key {index}"), value(index, 700)))
        .collect();
    assert!(writer.put_many(&items).iter().all(Result::is_ok));
    let watcher = world.session(options("admin"));
    let sessions = || figure(&watcher.stat().unwrap(), "sessions_count");
    let before = sessions();
    let clients: Vec<Client> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4_usize)
            .map(|number| {
                let settings = ClientOptions {
                    verify: number % 2 == 0,
                    ..options("reader")
                };
                let uri = uri(&world);
                scope.spawn(move || Client::connect(&uri, settings).unwrap())
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(sessions(), before + 1);
    let keys: Vec<_> = items.iter().map(|(key, _)| key.as_bytes()).collect();
    for (number, client) in clients.iter().enumerate() {
        for (got, (_, value)) in client.get_many(&keys).into_iter().zip(&items) {
            assert!(got.unwrap() == *value);
        }
        let counters = client.counters();
        // Each counts its own; the directory is read once for all.
        assert_eq!((counters.gets, counters.sessions), (200, 1));
        assert_eq!(counters.directory_reads > 0, number == 0, "{counters:?}");
    }
    // Another key is another session, and so is a client id of its own.
    let admin = Client::connect(&uri(&world), options("admin")).unwrap();
    let own = ClientOptions {
        client_id: Some(77),
        ..options("reader")
    };
    let own = Client::connect(&uri(&world), own).unwrap();
    assert_eq!(sessions(), before + 3);
    assert!(admin.get(keys[0]).is_ok() && own.get(keys[0]).is_ok());
    drop((admin, own));
    // It ends with the last of them.
    let mut clients = clients.into_iter();
    let last = clients.next().unwrap();
    drop(clients);
    assert!(last.get(keys[1]).is_ok());
    drop(last);
    let until = Instant::now() + PATIENCE;
    while sessions() > before {
        assert!(Instant::now() < until, "{} of {before} sessions", sessions());
    }
    let again = Client::connect(&uri(&world), options("reader")).unwrap();
    assert!(again.get(keys[2]).is_ok());
}

/// A dataset that one handle renames or drops is so for all.
#[test]
fn what_one_handle_changes_the_others_know() {
    let world = World::<Local>::new();
    world.dataset("d").put(b"k", b"v").unwrap();
    let target: Target = format!("local:{}", world.address).parse().unwrap();
    let [first, second] = [0, 1].map(|_| Server::connect(&target, options("admin")).unwrap());
    let [one, two] = [&first, &second].map(|server| server.open("d").unwrap());
    first.rename("d", "e").unwrap();
    assert_eq!(second.open("e").unwrap().dataset_id(), one.dataset_id());
    assert!(second.open("d").is_err());
    assert_eq!(two.get(b"k").unwrap(), b"v");
    first.drop_dataset("e").unwrap();
    let until = Instant::now() + PATIENCE;
    while two.get(b"k").is_ok() {
        assert!(Instant::now() < until);
    }
    second.create("e").unwrap();
    let fresh = first.open("e").unwrap();
    assert_ne!(fresh.dataset_id(), one.dataset_id());
    fresh.put(b"k", b"w").unwrap();
    assert_eq!(second.open("e").unwrap().get(b"k").unwrap(), b"w");
}

/// A dataset that was known by the name was handed out though the name is another's by now.
#[test]
fn a_name_that_another_session_gave_away_is_asked_for_again() {
    let world = World::<Local>::new();
    world.dataset("d").put(b"k", b"old").unwrap();
    let target: Target = format!("local:{}", world.address).parse().unwrap();
    let [own, other] = ["reader", "admin"].map(|key| Server::connect(&target, options(key)).unwrap());
    let before = own.open("d").unwrap();
    other.rename("d", "e").unwrap();
    other.create("d").unwrap();
    other.open("d").unwrap().put(b"k", b"new").unwrap();
    let after = own.open("d").unwrap();
    assert_ne!(after.dataset_id(), before.dataset_id());
    assert_eq!(after.get(b"k").unwrap(), b"new");
    assert_eq!(before.get(b"k").unwrap(), b"old");
    assert_eq!(own.open("e").unwrap().dataset_id(), before.dataset_id());
}

/// Memory that lies in what is registered already is not registered again.
fn registered_once<F: TestFabric>() {
    let world = World::<F>::new();
    let dataset = world.dataset("d");
    let bytes = value(1, 9000);
    dataset.put(b"k", &bytes).unwrap();
    let mut pool = vec![0_u8; 1 << 20];
    let start = NonNull::new(pool.as_mut_ptr()).unwrap();
    let at = |offset: usize| NonNull::new(start.as_ptr().wrapping_add(offset)).expect("inside the pool");
    let registrations = || dataset.counters().registrations;
    // SAFETY: `pool` outlives all of these, and is looked at only while no call reads into it.
    let whole = unsafe { dataset.register(start, pool.len()) }.unwrap();
    assert_eq!(registrations(), 1);
    for index in 0..50 {
        let offset = index * 20_000;
        // SAFETY: as above; it lies inside `pool`.
        let mut sample = unsafe { dataset.register(at(offset), 9000 + index) }.unwrap();
        assert_eq!(dataset.get_into(b"k", &mut sample, index), Ok(9000));
        // SAFETY: as above; no call reads into it now.
        let read = unsafe { std::slice::from_raw_parts(at(offset + index).as_ptr(), bytes.len()) };
        assert!(read == bytes);
        assert_eq!(sample.len(), 9000 + index);
    }
    assert_eq!(registrations(), 1);
    // What reaches beyond it is its own.
    let mut other = vec![0_u8; 4096];
    let elsewhere = NonNull::new(other.as_mut_ptr()).unwrap();
    // SAFETY: `other` outlives it.
    drop(unsafe { dataset.register(elsewhere, 4096) }.unwrap());
    assert_eq!(registrations(), 2);
    // SAFETY: as above. It is gone, so it is registered anew: the memory may be another's meanwhile.
    drop(unsafe { dataset.register(elsewhere, 4096) }.unwrap());
    assert_eq!(registrations(), 3);
    // The whole is held for as long as a piece of it is.
    // SAFETY: as above.
    let piece = unsafe { dataset.register(at(64), 64) }.unwrap();
    drop(whole);
    // SAFETY: as above.
    drop(unsafe { dataset.register(at(128), 64) }.unwrap());
    assert_eq!(registrations(), 3);
    drop(piece);
    // SAFETY: as above.
    drop(unsafe { dataset.register(at(128), 64) }.unwrap());
    assert_eq!(registrations(), 4);
}

#[test]
fn memory_is_registered_once_over_local() {
    registered_once::<Local>();
}

#[test]
#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]
fn memory_is_registered_once_over_verbs() {
    registered_once::<Verbs>();
}

/// A server that takes connections and says nothing. Each thread waited for the attempts of those before it, and then for its
/// own.
#[test]
fn threads_that_connect_to_a_dead_server_share_one_attempt() {
    const THREADS: usize = 8;
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("dead");
    let listener = rustix::net::socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
    rustix::net::bind(&listener, &SocketAddrUnix::new(&path).unwrap()).unwrap();
    rustix::net::listen(&listener, 64).unwrap();
    let uri = format!("local:{}?dataset=d", path.display());
    let barrier = std::sync::Barrier::new(THREADS);
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                let settings = ClientOptions {
                    connect_timeout: Duration::from_secs(2),
                    ..options("reader")
                };
                barrier.wait();
                let error = Client::connect(&uri, settings).err().unwrap();
                assert!(
                    matches!(error, ClientError::Timeout { .. } | ClientError::Fabric(_)),
                    "{error}"
                );
            });
        }
    });
    rustix::io::ioctl_fionbio(&listener, true).unwrap();
    let attempts = std::iter::from_fn(|| rustix::net::accept(&listener).ok()).count();
    assert_eq!(attempts, 1);
}

/// Pieces of one registration take values by tickets.
#[test]
fn pieces_of_registered_memory_are_moved_in_and_come_back() {
    let world = World::<Local>::new();
    let writer = world.dataset("d");
    let values: Vec<_> = (0..20).map(|index| value(index, 5000)).collect();
    for (index, value) in values.iter().enumerate() {
        writer.put(format!("key {index}").as_bytes(), value).unwrap();
    }
    let client = Client::connect(&uri(&world), options("reader")).unwrap();
    let mut reader = client.reader().unwrap();
    let mut tensor = vec![0_u8; 20 * 5000];
    let start = NonNull::new(tensor.as_mut_ptr()).unwrap();
    // SAFETY: `tensor` outlives it and its pieces, and is looked at only when they are gone.
    let mut rest = unsafe { client.register(start, tensor.len()) }.unwrap();
    assert!(rest.split_off(tensor.len() + 1).is_none());
    let mut tickets = Vec::new();
    for index in 0..20 {
        let after = rest.split_off(5000).unwrap();
        let piece = std::mem::replace(&mut rest, after);
        assert_eq!(piece.len(), 5000);
        tickets.push(
            reader
                .submit_into(format!("key {index}").as_bytes(), piece, 0)
                .unwrap(),
        );
    }
    assert!(rest.is_empty());
    for _ in 0..20 {
        let done = reader.wait().unwrap();
        assert!(tickets.contains(&done.ticket) && done.result == Ok(5000));
        assert_eq!(done.buffer.unwrap().memory().unwrap().len(), 5000);
    }
    let buffer = client.allocate(5000).unwrap();
    reader.submit_into(b"key 3", buffer, 0).unwrap();
    let buffer = reader.wait().unwrap().buffer.unwrap().buffer().unwrap();
    assert!(buffer[..] == values[3]);
    assert_eq!(client.counters().registrations, 1);
    drop((rest, reader, client));
    assert!(tensor.chunks(5000).eq(values.iter().map(|value| &value[..])));
}
