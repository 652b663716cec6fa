//! A session from HELLO to BYE, over shared memory.

use crate::common::{Raw, Setup, TestFabric, connect_request, eventually, hello};
use kv_fabric::FabricError;
use kv_proto::auth::Role;
use kv_proto::control::{Answer, Bytes, Request, Status, change_flag};
use kv_proto::layout::{Locator, connect_kind};
use kv_server::control::keys;
use zerocopy::IntoBytes;

fn value(len: usize, seed: u8) -> Vec<u8> {
    (0..len)
        .map(|i| (i as u8).wrapping_mul(31) ^ seed ^ (i >> 8) as u8)
        .collect()
}

pub(crate) fn values_are_put_and_read_back_by_read_alone<F: TestFabric>() {
    let server = Setup::new().start::<F>();
    let (mut raw, opened) = server.with_dataset("cats");
    let mut written = Vec::new();
    for (index, len) in [0, 1, 4096, 70_000, 900_000].into_iter().enumerate() {
        let key = format!("key {index}");
        let value = value(len, index as u8);
        let (sequence, locator) = raw.put(opened.dataset, key.as_bytes(), &value).unwrap();
        assert_eq!(sequence, index as u64 + 1);
        written.push((key, value, locator));
    }
    let tokens = raw.tokens(opened.dataset, 2);
    assert_ne!(tokens[0], tokens[1]);
    let mut data = raw.data(tokens[0]).unwrap();
    let frames = raw.figure([0; 16], "server_frames_count");
    for (key, value, locator) in &written {
        assert_eq!(
            raw.get(&mut *data, opened.dataset, locator).unwrap(),
            *value,
            "{key}"
        );
    }
    // Only TABLE was asked, once a value: READs reach no frame counter.
    let after = raw.figure([0; 16], "server_frames_count");
    assert_eq!(after - frames, written.len() as u64 + 1);
    for (key, _, locator) in &written {
        let key = Bytes::from(key.as_bytes());
        let answer = raw
            .ask(&Request::Lookup {
                dataset: opened.dataset,
                key,
            })
            .unwrap();
        assert_eq!(answer, Answer::Lookup { locator: *locator });
    }
}

pub(crate) fn a_value_longer_than_a_window_goes_in_pieces<F: TestFabric>() {
    let mut setup = Setup::new();
    setup.options.window_max_bytes = 64 << 10;
    let server = setup.start::<F>();
    let (mut raw, opened) = server.with_dataset("cats");
    let value = value(300_000, 3);
    let (_, locator) = raw.put(opened.dataset, b"long", &value).unwrap();
    let token = raw.tokens(opened.dataset, 1)[0];
    let mut data = raw.data(token).unwrap();
    assert_eq!(raw.get(&mut *data, opened.dataset, &locator).unwrap(), value);
}

pub(crate) fn lists_lookups_and_deletes_agree<F: TestFabric>() {
    let server = Setup::new().start::<F>();
    let (mut raw, opened) = server.with_dataset("cats");
    let dataset = opened.dataset;
    for index in 0..500 {
        raw.put(dataset, format!("{index:0200}").as_bytes(), b"x")
            .unwrap();
    }
    let mut listed = Vec::new();
    let mut cursor = 0;
    loop {
        match raw
            .ask(&Request::List {
                dataset,
                cursor,
                limit: 100,
            })
            .unwrap()
        {
            Answer::List {
                entries,
                cursor: next,
                done,
            } => {
                assert!(entries.len() <= 100);
                listed.extend(entries.into_iter().map(|entry| entry.key.0));
                cursor = next;
                if done == 1 {
                    break;
                }
            }
            other => panic!("{other:?}"),
        }
    }
    listed.sort();
    listed.dedup();
    assert_eq!(listed.len(), 500);
    assert!(raw.delete(dataset, &listed[0]).unwrap());
    assert!(!raw.delete(dataset, &listed[0]).unwrap());
    let key = Bytes(listed[0].clone());
    assert_eq!(raw.refused(&Request::Lookup { dataset, key }), Status::NotFound);
}

pub(crate) fn an_operation_is_done_once<F: TestFabric>() {
    let server = Setup::new().start::<F>();
    let (mut raw, opened) = server.with_dataset("cats");
    let first = raw.put_as(opened.dataset, 1, b"k", b"one").unwrap();
    let again = Request::Alloc {
        dataset: opened.dataset,
        operation: 1,
        value_len_bytes: 3,
        key: Bytes::from(&b"k"[..]),
    };
    let done = Answer::Alloc {
        done: 1,
        window_offset: 0,
        window_len_bytes: 0,
        sequence: first.0,
        locator: first.1,
    };
    assert_eq!(raw.ask(&again).unwrap(), done);
    // In a session of its own too, under the same key and id; under another key it is another operation.
    let mut other = server.session(&server.setup.admin);
    other.open("cats");
    assert_eq!(other.ask(&again).unwrap(), done);
    let mut writer = server.session(&server.setup.writer);
    writer.open("cats");
    assert!(writer.alloc(opened.dataset, 1, b"k", 3).is_ok());
}

pub(crate) fn an_operation_begun_anew_gives_its_window_back<F: TestFabric>() {
    let mut setup = Setup::new();
    setup.options.staging_bytes = 64 << 10;
    let server = setup.start::<F>();
    let (mut raw, opened) = server.with_dataset("cats");
    for _ in 0..10 {
        raw.alloc(opened.dataset, 1, b"k", 64 << 10).unwrap();
    }
    let busy = raw.alloc(opened.dataset, 2, b"k", 64 << 10).unwrap_err();
    assert_eq!(busy.status, Status::Busy);
    raw.ask(&Request::Abort { operation: 1 }).unwrap();
    raw.alloc(opened.dataset, 2, b"k", 64 << 10).unwrap();
}

pub(crate) fn a_wrong_crc_a_wrong_length_and_an_unknown_operation_store_nothing<F: TestFabric>() {
    let server = Setup::new().start::<F>();
    let (mut raw, opened) = server.with_dataset("cats");
    let dataset = opened.dataset;
    let commit = |operation, len_bytes, value_crc| Request::Commit {
        operation,
        len_bytes,
        value_crc,
    };
    let (offset, _) = raw.alloc(dataset, 1, b"k", 4).unwrap();
    raw.write(offset, b"good");
    assert_eq!(raw.refused(&commit(1, 4, 1)), Status::Crc);
    assert_eq!(raw.refused(&commit(1, 4, 1)), Status::Stale);
    raw.alloc(dataset, 2, b"k", 4).unwrap();
    assert_eq!(raw.refused(&commit(2, 3, 0)), Status::Order);
    raw.alloc(dataset, 3, b"k", 4).unwrap();
    assert_eq!(
        raw.refused(&Request::Append {
            operation: 3,
            len_bytes: 5
        }),
        Status::Order
    );
    assert_eq!(
        raw.refused(&Request::Append {
            operation: 3,
            len_bytes: 1
        }),
        Status::Stale
    );
    let key = Bytes::from(&b"k"[..]);
    assert_eq!(raw.refused(&Request::Lookup { dataset, key }), Status::NotFound);
    assert_eq!(raw.figure([0; 16], "puts_in_progress_count"), 0);
    raw.put_as(dataset, 1, b"k", b"good").unwrap();
}

pub(crate) fn datasets_are_made_listed_renamed_and_dropped<F: TestFabric>() {
    let mut setup = Setup::new();
    setup.reader.datasets = vec!["b".to_owned(), "d".to_owned()];
    let server = setup.start::<F>();
    let mut admin = server.session(&server.setup.admin);
    for name in ["c", "a", "b"] {
        admin.create(name);
    }
    let name = |name: &str| Bytes::from(name.as_bytes());
    assert_eq!(
        admin.refused(&Request::Create { name: name("a") }),
        Status::Exists
    );
    assert_eq!(
        admin.refused(&Request::Drop { name: name("x") }),
        Status::NoDataset
    );
    assert_eq!(
        admin.refused(&Request::Rename {
            from: name("a"),
            to: name("b")
        }),
        Status::Exists
    );
    let names = |raw: &mut Raw, after: &str| match raw.ask(&Request::Datasets { after: name(after) }) {
        Ok(Answer::Datasets { items, done: 1 }) => items
            .into_iter()
            .map(|item| String::from_utf8(item.name.0).unwrap())
            .collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    assert_eq!(names(&mut admin, ""), ["a", "b", "c"]);
    assert_eq!(names(&mut admin, "a"), ["b", "c"]);
    let mut reader = server.session(&server.setup.reader);
    assert_eq!(names(&mut reader, ""), ["b"]);
    // Whether it exists or not, what the key does not list is forbidden.
    for forbidden in ["a", "nothing"] {
        assert_eq!(
            reader.refused(&Request::Open {
                name: name(forbidden)
            }),
            Status::Forbidden
        );
    }
    assert_eq!(
        reader.refused(&Request::Open { name: name("d") }),
        Status::NoDataset
    );
    let b = reader.open("b").dataset;
    admin
        .ask(&Request::Rename {
            from: name("b"),
            to: name("z"),
        })
        .unwrap();
    // Who has it open keeps it.
    assert_eq!(reader.rows(b), []);
    assert_eq!(names(&mut admin, ""), ["a", "c", "z"]);
}

pub(crate) fn many_datasets_are_listed_in_pages<F: TestFabric>() {
    let server = Setup::new().start::<F>();
    let mut admin = server.session(&server.setup.admin);
    let long = "x".repeat(60);
    for index in 0..60 {
        admin.create(&format!("{index:02}-{long}"));
    }
    let (mut after, mut pages, mut seen) = (Bytes::default(), 0, 0);
    loop {
        match admin.ask(&Request::Datasets { after: after.clone() }).unwrap() {
            Answer::Datasets { items, done } => {
                pages += 1;
                seen += items.len();
                if done == 1 {
                    break;
                }
                after = items.last().unwrap().name.clone();
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(seen, 60);
    assert!(pages > 1);
}

pub(crate) fn a_dropped_dataset_is_announced_and_its_memory_freed_when_acknowledged<F: TestFabric>() {
    let server = Setup::new().start::<F>();
    let (mut raw, opened) = server.with_dataset("cats");
    raw.put(opened.dataset, b"k", &value(100_000, 1)).unwrap();
    let (retired, _) = raw.renew(opened.retired);
    let mut admin = server.session(&server.setup.admin);
    let used = raw.figure([0; 16], "memory_used_bytes");
    admin
        .ask(&Request::Drop {
            name: Bytes::from(&b"cats"[..]),
        })
        .unwrap();
    assert_eq!(raw.figure([0; 16], "memory_used_bytes"), used);
    let dataset = opened.dataset;
    assert_eq!(
        raw.refused(&Request::Table { dataset, first: 0 }),
        Status::NoDataset
    );
    let (dropped, changes) = raw.renew(retired);
    assert!(
        changes
            .iter()
            .any(|change| change.dataset == dataset && change.flags & change_flag::DROPPED != 0)
    );
    assert!(dropped > retired);
    assert_eq!(raw.figure([0; 16], "memory_used_bytes"), used);
    raw.renew(dropped);
    eventually("memory of a dropped dataset is freed", || {
        (raw.figure([0; 16], "memory_used_bytes") < used).then_some(())
    });
}

pub(crate) fn limits_of_a_session_are_named<F: TestFabric>() {
    let mut setup = Setup::new();
    setup.options.datasets_per_session_max = 2;
    setup.options.data_connections_per_session_max = 3;
    let server = setup.start::<F>();
    let mut raw = server.session(&server.setup.admin);
    for name in ["a", "b", "c"] {
        raw.create(name);
    }
    let a = raw.open("a").dataset;
    let b = raw.open("b").dataset;
    raw.open("a");
    let c = Request::Open {
        name: Bytes::from(&b"c"[..]),
    };
    assert_eq!(raw.refused(&c), Status::Limit);
    raw.ask(&Request::Close { dataset: b }).unwrap();
    raw.ask(&c).unwrap();
    let tokens = raw.tokens(a, 2);
    assert_eq!(
        raw.refused(&Request::Tokens { dataset: a, count: 2 }),
        Status::Limit
    );
    let _data = raw.data(tokens[0]).unwrap();
    raw.tokens(a, 1);
    assert_eq!(
        raw.refused(&Request::Tokens { dataset: a, count: 1 }),
        Status::Limit
    );
    assert_eq!(raw.figure([0; 16], "data_connections_count"), 1);
}

/// Tokens count for the session that has them; data connections for all.
pub(crate) fn data_connections_of_all_sessions_have_a_limit<F: TestFabric>() {
    let mut setup = Setup::new();
    setup.options.data_connections_max = 2;
    let server = setup.start::<F>();
    let (mut raw, opened) = server.with_dataset("cats");
    let mut other = server.session(&server.setup.reader);
    let dataset = other.open("cats").dataset;
    assert_eq!(dataset, opened.dataset);
    let (mine, its) = (raw.tokens(dataset, 1)[0], other.tokens(dataset, 2));
    let held = (raw.data(mine).unwrap(), other.data(its[0]).unwrap());
    for raw in [&mut raw, &mut other] {
        assert_eq!(raw.refused(&Request::Tokens { dataset, count: 1 }), Status::Busy);
    }
    // Nor is a token of use that was given before.
    match other.data(its[1]).err() {
        Some(FabricError::Rejected { reason, .. }) => {
            assert!(reason.contains("--all-data-connections"), "{reason}")
        }
        end => panic!("{end:?}"),
    }
    drop(held.0);
    eventually("its end is noticed", || {
        (other.figure([0; 16], "data_connections_count") == 1).then_some(())
    });
    let token = raw.tokens(dataset, 1)[0];
    raw.data(token).unwrap();
}

pub(crate) fn reserved_frames_are_unsupported_and_roles_are_kept<F: TestFabric>() {
    let server = Setup::new().start::<F>();
    let (_admin, opened) = server.with_dataset("cats");
    let dataset = opened.dataset;
    let mut reader = server.session(&server.setup.reader);
    assert_eq!(reader.staging_len_bytes, 0);
    assert_eq!(reader.staging.rkey, 0);
    reader.open("cats");
    let stage = Request::Stage {
        dataset,
        locator: Locator::default(),
        first_block: 0,
        block_count: 1,
    };
    assert_eq!(reader.refused(&stage), Status::Unsupported);
    assert_eq!(
        reader.refused(&Request::Release { grant: 1 }),
        Status::Unsupported
    );
    assert_eq!(
        reader.refused(&Request::Snapshots {
            dataset,
            after: Bytes::default()
        }),
        Status::Unsupported
    );
    assert_eq!(
        reader.refused(&Request::Load { dataset, segment: 77 }),
        Status::Stale
    );
    assert_eq!(
        reader.alloc(dataset, 1, b"k", 1).unwrap_err().status,
        Status::Forbidden
    );
    assert_eq!(
        reader.delete(dataset, b"k").unwrap_err().status,
        Status::Forbidden
    );
    let name = Bytes::from(&b"dogs"[..]);
    assert_eq!(reader.refused(&Request::Create { name }), Status::Forbidden);
    let mut writer = server.session(&server.setup.writer);
    assert!(writer.staging_len_bytes > 0);
    let name = Bytes::from(&b"cats"[..]);
    assert_eq!(writer.refused(&Request::Drop { name }), Status::Forbidden);
}

pub(crate) fn bye_frees_the_session<F: TestFabric>() {
    let server = Setup::new().start::<F>();
    let (mut raw, opened) = server.with_dataset("cats");
    let token = raw.tokens(opened.dataset, 1)[0];
    let _data = raw.data(token).unwrap();
    let mut other = server.session(&server.setup.reader);
    assert_eq!(other.figure([0; 16], "sessions_count"), 2);
    assert_eq!(raw.ask(&Request::Bye {}), Ok(Answer::Bye {}));
    assert_eq!(other.figure([0; 16], "sessions_count"), 1);
    assert_eq!(other.figure([0; 16], "data_connections_count"), 0);
    raw.wait_end();
}

pub(crate) fn figures_count_frames_and_renewals<F: TestFabric>() {
    let server = Setup::new().start::<F>();
    let mut raw = server.session(&server.setup.reader);
    let frames = raw.figure([0; 16], "server_frames_count");
    let renewals = raw.figure([0; 16], "server_renewals_count");
    for _ in 0..3 {
        raw.renew(0);
    }
    assert_eq!(raw.figure([0; 16], "server_renewals_count"), renewals + 3);
    // Two more for the figures themselves, asked before and after.
    assert_eq!(raw.figure([0; 16], "server_frames_count"), frames + 3 + 3);
    let (mut admin, opened) = server.with_dataset("cats");
    admin.put(opened.dataset, b"k", b"12345").unwrap();
    assert_eq!(admin.figure(opened.dataset, "keys_count"), 1);
    assert_eq!(admin.figure(opened.dataset, "value_bytes"), 5);
}

pub(crate) fn memory_for_arriving_values_is_waited_for<F: TestFabric>() {
    let mut setup = Setup::new();
    setup.store.gather_budget_bytes = 4 << 20;
    setup.options.staging_bytes = 16 << 20;
    let server = setup.start::<F>();
    let (mut raw, opened) = server.with_dataset("cats");
    // Far more bytes than there is memory for, in parts that leave it as the log takes them, until one had to wait.
    let mut rounds = 0;
    // A network slower than the log never lets one wait.
    let slow = server.fabric.name() == "verbs";
    while rounds < 3 || !slow && raw.figure([0; 16], "writes_waited_count") == 0 {
        assert!(rounds < 16, "nothing ever waited");
        let body = value(5 << 20, rounds as u8);
        let key = format!("{rounds}");
        let operation = raw.operation();
        eventually("a value is stored", || {
            match raw.put_as(opened.dataset, operation, key.as_bytes(), &body) {
                Ok(_) => Some(()),
                Err(refused) => {
                    assert_eq!(refused.status, Status::Busy, "{}", refused.text);
                    None
                }
            }
        });
        rounds += 1;
    }
    assert_eq!(raw.figure(opened.dataset, "keys_count"), rounds);
    assert_eq!(raw.figure([0; 16], "writes_waiting_count"), 0);
}

pub(crate) fn slow_writers_of_large_values_leave_room_for_others<F: TestFabric>() {
    let mut setup = Setup::new();
    setup.store.gather_budget_bytes = 16 << 20;
    setup.options.turn_kept_ms = 600_000;
    let server = setup.start::<F>();
    // Each large value may hold two parts, 2 MiB, as it begins, and none of these goes on.
    let begin = |raw: &mut Raw, dataset, first: u64| -> usize {
        (first..first + 16)
            .take_while(
                |operation| match raw.alloc(dataset, *operation, b"slow", 5 << 20) {
                    Ok(_) => true,
                    Err(refused) => {
                        assert_eq!(refused.status, Status::Busy, "{}", refused.text);
                        false
                    }
                },
            )
            .count()
    };
    let (mut first, opened) = server.with_dataset("cats");
    let dataset = opened.dataset;
    // All that is large holds half of the memory, and one session half of that.
    assert_eq!(begin(&mut first, dataset, 1), 2);
    let mut second = server.session(&server.setup.writer);
    second.open("cats");
    assert_eq!(begin(&mut second, dataset, 1), 2);
    let mut third = server.session(&server.setup.writer);
    third.open("cats");
    assert_eq!(begin(&mut third, dataset, 21), 0);
    // Shorter ones are put meanwhile, by all of them and of any length that is no longer than a part.
    for (raw, operations) in [&mut first, &mut second, &mut third]
        .into_iter()
        .zip([40.., 50.., 60_u64..])
    {
        for (operation, len) in operations.zip([0, 1, 100_000, 200_000, 1 << 20]) {
            let key = format!("{} {len}", raw.session);
            raw.put_as(dataset, operation, key.as_bytes(), &value(len, operation as u8))
                .unwrap();
        }
    }
    // What is given up makes room, for its own session and for others, in the order in which they asked.
    first.ask(&Request::Abort { operation: 1 }).unwrap();
    let refused = first.alloc(dataset, 3, b"slow", 5 << 20).unwrap_err();
    assert_eq!(refused.status, Status::Busy, "{}", refused.text);
    third.alloc(dataset, 21, b"slow", 5 << 20).unwrap();
    second.ask(&Request::Abort { operation: 1 }).unwrap();
    first.alloc(dataset, 3, b"slow", 5 << 20).unwrap();
}

/// Who begins values and does not send them took the memory of everybody's: two sessions were enough.
pub(crate) fn who_begins_values_and_sends_none_takes_nothing_from_others<F: TestFabric>() {
    let mut setup = Setup::new();
    setup.store.gather_budget_bytes = 4 << 20;
    let server = setup.start::<F>();
    let (mut first, opened) = server.with_dataset("cats");
    let dataset = opened.dataset;
    let mut greedy: Vec<Raw> = (0..4).map(|_| server.session(&server.setup.writer)).collect();
    let mut begun = 0;
    for raw in &mut greedy {
        raw.open("cats");
        // All the windows that there are for such, of each kind.
        for len in [128 << 10, 1 << 20, 5 << 20] {
            for _ in 0..40 {
                let operation = raw.operation();
                if raw.alloc(dataset, operation, b"greedy", len).is_err() {
                    break;
                }
                // A byte of each, so that it holds memory, as long as there is some.
                let len_bytes = 1;
                begun += usize::from(raw.ask(&Request::Append { operation, len_bytes }).is_ok());
            }
        }
    }
    assert!(begun >= 13, "{begun}");
    for (operation, len) in (1..).zip([0, 1, 4096, 128 << 10].repeat(8)) {
        let body = value(len, operation as u8);
        first
            .put_as(dataset, operation, &operation.to_le_bytes(), &body)
            .unwrap();
    }
}

/// Pieces of short values took memory that a session's share did not count, and whole ones that were appended and never
/// committed took what is left for those that come with one request.
pub(crate) fn short_values_in_pieces_take_no_more_than_the_share_of_their_session<F: TestFabric>() {
    const LEN: usize = 128 << 10;
    let mut setup = Setup::new();
    // Three eighths for values of one record: twelve such, six of one session.
    setup.store.gather_budget_bytes = 4 << 20;
    setup.options.turn_kept_ms = 0;
    let server = setup.start::<F>();
    let (mut first, opened) = server.with_dataset("cats");
    let dataset = opened.dataset;
    let held = |raw: &mut Raw| raw.figure([0; 16], "gather_used_bytes") as usize;
    for (len_bytes, sessions) in [(1, 1), (LEN as u32, 1), (1, 3), (LEN as u32, 3)] {
        let mut greedy: Vec<Raw> = (0..sessions)
            .map(|_| server.session(&server.setup.writer))
            .collect();
        for (raw, most) in greedy.iter_mut().zip([6, 6, 0]) {
            raw.open("cats");
            let mut taken = Vec::new();
            for _ in 0..10 {
                let operation = raw.operation();
                raw.alloc(dataset, operation, b"greedy", LEN).unwrap();
                match raw.ask(&Request::Append { operation, len_bytes }) {
                    Ok(_) => taken.push(operation),
                    Err(refused) => assert_eq!(refused.status, Status::Busy, "{}", refused.text),
                }
            }
            assert_eq!(taken.len(), most, "{sessions} of {len_bytes}");
        }
        assert_eq!(held(&mut first), LEN * if sessions == 1 { 6 } else { 12 });
        if sessions == 1 {
            let operation = first.operation();
            let body = value(LEN, operation as u8);
            let (offset, _) = first.alloc(dataset, operation, b"pieces", LEN).unwrap();
            first.write(offset, &body);
            // All of it, and an empty COMMIT.
            let len_bytes = LEN as u32;
            first.ask(&Request::Append { operation, len_bytes }).unwrap();
            let value_crc = kv_proto::crc::crc32c(&body);
            first
                .ask(&Request::Commit {
                    operation,
                    len_bytes: 0,
                    value_crc,
                })
                .unwrap();
        }
        let body = value(LEN, sessions as u8);
        for key in 0..8_u64 {
            first.put(dataset, &key.to_le_bytes(), &body).unwrap();
        }
        for raw in &mut greedy {
            raw.ask(&Request::Bye {}).unwrap();
        }
        eventually("what it held is given back", || {
            (held(&mut first) == 0).then_some(())
        });
    }
}

/// A short value that had to come in pieces, the windows being shorter, was begun where there was no memory for it, and
/// given up at its first piece, without a turn.
pub(crate) fn a_short_value_longer_than_its_window_has_its_turn<F: TestFabric>() {
    let mut setup = Setup::new();
    setup.store.gather_budget_bytes = 4 << 20;
    // Half of it for short ones.
    setup.options.staging_bytes = 64 << 10;
    setup.options.turn_kept_ms = 600_000;
    let server = setup.start::<F>();
    let (mut first, opened) = server.with_dataset("cats");
    let dataset = opened.dataset;
    let mut others: Vec<Raw> = (0..3).map(|_| server.session(&server.setup.writer)).collect();
    for raw in &mut others {
        raw.open("cats");
    }
    // All the memory for values of one record.
    others[0].alloc(dataset, 1, b"long", 1 << 20).unwrap();
    others[1].alloc(dataset, 2, b"long", 512 << 10).unwrap();
    let operation = first.operation();
    let refused = first.alloc(dataset, operation, b"short", 100_000).unwrap_err();
    assert_eq!(refused.status, Status::Busy, "{}", refused.text);
    // Shorter ones need none of it.
    first.put(dataset, b"shorter", &value(16 << 10, 1)).unwrap();
    others[1].ask(&Request::Abort { operation: 2 }).unwrap();
    // Room for this alone, and who came before it needs a part.
    let refused = others[2].alloc(dataset, 3, b"long", 512 << 10).unwrap_err();
    assert_eq!(refused.status, Status::Busy, "{}", refused.text);
    let body = value(100_000, 2);
    let (_, locator) = first.put_as(dataset, operation, b"short", &body).unwrap();
    let token = first.tokens(dataset, 1)[0];
    let mut data = first.data(token).unwrap();
    assert_eq!(first.get(&mut *data, dataset, &locator).unwrap(), body);
    eventually("its turn is the next one's", || {
        others[2].alloc(dataset, 3, b"long", 512 << 10).ok()
    });
}

pub(crate) fn requests_that_are_no_connection_requests_are_refused_with_a_text<F: TestFabric>() {
    let server = Setup::new().start::<F>();
    let refused = |private: &[u8]| match Raw::connect_with(server.fabric.clone(), &server.address, private) {
        Err(FabricError::Rejected { reason, .. }) => reason,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("accepted"),
    };
    let good = connect_request(connect_kind::CONTROL, 0, [0; 16]);
    assert!(refused(b"").contains("verbs-kv"));
    assert!(refused(&good.as_bytes()[..6]).contains("verbs-kv"));
    let mut other = good;
    other.magic ^= 1;
    assert!(refused(other.as_bytes()).contains("protocol"));
    let mut kind = good;
    kind.kind = 9;
    assert!(refused(kind.as_bytes()).contains("kind"));
    let mut claims = good;
    claims.session = 1;
    refused(claims.as_bytes());
    let unknown = connect_request(connect_kind::DATA, 1, [9; 16]);
    assert!(refused(unknown.as_bytes()).contains("token"));
    assert!(server.figure("connections_refused_count") >= 6);
    // What the transport pads is not looked at.
    let padded = [good.as_bytes(), &[0; 8]].concat();
    Raw::connect_with(server.fabric.clone(), &server.address, &padded).unwrap();
}

pub(crate) fn a_role_that_is_told_is_the_keys<F: TestFabric>() {
    let mut setup = Setup::new();
    setup.writer = keys::generate("writer", Role::Write, vec![]).unwrap();
    let server = setup.start::<F>();
    let mut raw = server.stranger();
    let answer = raw.ask(&hello("writer", 1, 4, [0; 32])).unwrap();
    assert!(
        matches!(
            answer,
            Answer::Hello {
                role: 2,
                version: 1,
                receives: 32,
                ..
            }
        ),
        "{answer:?}"
    );
}
