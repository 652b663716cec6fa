//! What cannot be done is refused in one clear line.

use std::time::{Duration, Instant};

use crate::harness::{TestFabric, World, options, value};
use kv_client::{
    AccessKey, Client, ClientError, ClientOptions, GlobalLocator, Locator, ReadError, Server, Target,
};
use kv_fabric::local::Local;
use kv_proto::control::Status;

fn status(error: &ClientError) -> Option<Status> {
    match error {
        ClientError::Refused { status, .. } => Some(*status),
        _ => None,
    }
}

#[test]
fn a_wrong_secret_an_unknown_key_and_a_weak_role_are_refused() {
    let world = World::<Local>::new();
    let connect = |options| Server::connect_over(Local::server(""), &world.address, options);
    for key in [
        AccessKey::new("reader", [8; 32]),
        AccessKey::new("nobody", crate::harness::SECRET),
    ] {
        let name = key.name.clone();
        let error = connect(ClientOptions::new(key)).err().expect("refused");
        assert_eq!(status(&error), Some(Status::AuthFailed), "{error}");
        assert!(error.to_string().contains(&name), "{error}");
    }
    let reader = connect(options("reader")).unwrap();
    assert_eq!(status(&reader.create("d").unwrap_err()), Some(Status::Forbidden));
    world.dataset("d");
    let dataset = reader.open("d").unwrap();
    let error = dataset.put(b"k", b"v").unwrap_err();
    assert_eq!(status(&error), Some(Status::Forbidden), "{error}");
    assert!(error.to_string().contains("put `k`"), "{error}");
    assert_eq!(
        status(&dataset.delete(b"k").unwrap_err()),
        Some(Status::Forbidden)
    );
}

#[test]
fn datasets_that_are_not_there_or_cannot_be_are_named() {
    let world = World::<Local>::new();
    let session = world.session(options("admin"));
    let error = session.open("images").err().expect("refused");
    assert_eq!(status(&error), Some(Status::NoDataset));
    assert!(error.to_string().contains("`images`"), "{error}");
    assert_eq!(
        status(&session.create("UPPER").unwrap_err()),
        Some(Status::BadName)
    );
    session.create("images").unwrap();
    assert_eq!(
        status(&session.create("images").unwrap_err()),
        Some(Status::Exists)
    );
    session.rename("images", "stamps").unwrap();
    session.create("zebra").unwrap();
    let names: Vec<_> = session
        .datasets()
        .unwrap()
        .into_iter()
        .map(|info| info.name)
        .collect();
    assert_eq!(names, ["stamps", "zebra"]);
    session.drop_dataset("zebra").unwrap();
    assert_eq!(
        status(&session.drop_dataset("zebra").unwrap_err()),
        Some(Status::NoDataset)
    );
    assert!(
        session
            .stat()
            .unwrap()
            .iter()
            .any(|(name, _)| name.ends_with("_bytes"))
    );
}

#[test]
fn a_dropped_dataset_is_closed_for_its_readers() {
    let world = World::<Local>::with(|_, options| options.lease_ms = 300);
    let dataset = world.dataset("d");
    dataset.put(b"k", b"v").unwrap();
    assert_eq!(dataset.get(b"k").unwrap(), b"v");
    dataset.server().drop_dataset("d").unwrap();
    let until = Instant::now() + Duration::from_secs(10);
    // Reading goes on until the client is told, which takes a renewal at most.
    while dataset.get(b"k").is_ok() {
        assert!(Instant::now() < until);
    }
    assert_eq!(dataset.get(b"k"), Err(ReadError::Closed));
    for error in [
        dataset.put(b"k", b"w").unwrap_err(),
        dataset.delete(b"k").unwrap_err(),
    ] {
        assert!(error.to_string().contains("dataset `d`"), "{error}");
    }
    // One of the same name is another dataset: a client of the old one does not slip into it.
    dataset.server().create("d").unwrap();
    assert!(dataset.get(b"k").is_err());
}

#[test]
fn keys_that_cannot_be_are_refused_before_they_are_sent() {
    let world = World::<Local>::new();
    let dataset = world.dataset("d");
    let long = vec![b'k'; 1025];
    for key in [&b""[..], &long] {
        let len_bytes = key.len();
        assert_eq!(dataset.get(key), Err(ReadError::BadKey { len_bytes }));
        assert_eq!(dataset.locate(key), Err(ReadError::BadKey { len_bytes }));
        let shown = if key.is_empty() { "``" } else { "`kkkk" };
        for error in [
            dataset.put(key, b"v").unwrap_err(),
            dataset.delete(key).unwrap_err(),
        ] {
            assert!(
                matches!(error, ClientError::BadKey { len_bytes: len, .. } if len == len_bytes),
                "{error}"
            );
            assert!(error.to_string().contains(shown), "{error}");
        }
    }
    let key = vec![0xff; 1024];
    dataset.put(&key, b"v").unwrap();
    assert_eq!(dataset.get(&key).unwrap(), b"v");
    let mixed: Vec<&[u8]> = vec![b"", &key, &long];
    let got = dataset.get_many(&mixed);
    assert_eq!(got[1].as_deref(), Ok(&b"v"[..]));
    assert!(got[0].is_err() && got[2].is_err());
}

#[test]
fn locators_that_name_nothing_are_stale_at_once() {
    let world = World::<Local>::new();
    let dataset = world.dataset("d");
    let at = dataset.put(b"key", &value(1, 500)).unwrap().locator;
    let started = Instant::now();
    let moved = |edit: fn(&mut Locator)| {
        let mut other = at;
        edit(&mut other.locator);
        other
    };
    let wrong = [
        GlobalLocator {
            dataset: [1; 16],
            ..at
        },
        moved(|locator| locator.segment = 0),
        moved(|locator| locator.segment += 1000),
        moved(|locator| locator.offset_units = u32::MAX),
        moved(|locator| locator.tag ^= 1),
        moved(|locator| locator.value_len_bytes = u32::MAX),
    ];
    for other in wrong {
        assert_eq!(dataset.get_at(&other, None), Err(ReadError::Stale), "{other:?}");
    }
    // What lies there is no such record: its checksums never agree.
    for other in [
        moved(|locator| locator.value_len_bytes += 1),
        moved(|locator| locator.offset_units += 1),
    ] {
        let error = dataset.get_at(&other, None).unwrap_err();
        assert!(
            matches!(error, ReadError::Torn { .. } | ReadError::Stale),
            "{error}"
        );
    }
    assert_eq!(dataset.get_at(&at, Some(b"kez")), Err(ReadError::Stale));
    assert_eq!(dataset.get_at(&at, Some(b"longer key")), Err(ReadError::Stale));
    assert_eq!(dataset.get_at(&at, Some(b"key")).unwrap(), value(1, 500));
    assert!(started.elapsed() < Duration::from_secs(60));
}

#[test]
fn a_server_that_is_not_there_is_said_so_within_the_time_given() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    let started = Instant::now();
    let target = Target::Local {
        socket: socket.clone(),
        dataset: None,
    };
    let error = Server::connect(&target, options("reader"))
        .err()
        .expect("refused");
    assert!(error.to_string().contains(socket.to_str().unwrap()), "{error}");
    assert!(started.elapsed() < Duration::from_secs(60));
    let error = Client::connect(&target.to_string(), options("reader"))
        .err()
        .expect("refused");
    assert!(error.to_string().contains("no dataset"), "{error}");
}

#[test]
fn the_api_of_programs_does_the_same() {
    let world = World::<Local>::new();
    world.dataset("d").put(b"k", b"value").unwrap();
    let uri = format!("local:{}?dataset=d", world.address);
    let client = Client::connect(&uri, options("writer")).unwrap();
    assert_eq!(client.get(b"k").unwrap(), b"value");
    let mut buffer = client.allocate(16).unwrap();
    assert_eq!(client.get_into(b"k", &mut buffer, 2), Ok(5));
    assert_eq!(&buffer[..8], b"\0\0value\0");
    buffer[0] = 1;
    let at = client.put(b"other", b"1").unwrap().locator;
    assert_eq!(client.get_at(&at, None).unwrap(), b"1");
    let keys: Vec<_> = client.list().map(|entry| entry.unwrap().key).collect();
    assert_eq!(keys.len(), 2);
    assert!(client.delete(b"other").unwrap());
    assert!(!client.delete(b"other").unwrap());
    assert_eq!(client.get(b"other"), Err(ReadError::NotFound));
    assert!(!client.stat().unwrap().is_empty());
    assert!(client.describe().contains("local") || !client.describe().is_empty());
    assert_eq!(client.dataset_id(), at.dataset);
}
