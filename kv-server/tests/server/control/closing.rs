//! CLOSE: what a session had of a dataset is gone, and holds nothing up.

use crate::common::{Setup, TestFabric, eventually};
use kv_fabric::{FabricError, ReadStatus, RemoteRef};
use kv_proto::control::{Bytes, Request, Status};

pub(crate) fn a_dataset_that_is_closed_ends_its_connections<F: TestFabric>() {
    let server = Setup::new().start::<F>();
    let (mut raw, opened) = server.with_dataset("cats");
    let dataset = opened.dataset;
    let (_, locator) = raw.put(dataset, b"k", b"value").unwrap();
    let tokens = raw.tokens(dataset, 2);
    let mut data = raw.data(tokens[0]).unwrap();
    assert_eq!(raw.get(&mut *data, dataset, &locator).unwrap(), b"value");
    raw.ask(&Request::Close { dataset }).unwrap();
    assert_eq!(
        raw.refused(&Request::Table { dataset, first: 0 }),
        Status::NoDataset
    );
    assert!(matches!(raw.data(tokens[1]), Err(FabricError::Rejected { .. })));
    assert_eq!(raw.figure([0; 16], "data_connections_count"), 0);
    let ended = eventually("the connection's end is noticed", || {
        raw.read(
            &mut *data,
            RemoteRef {
                address: 0,
                rkey: 1 << 30,
            },
            1,
        )
        .err()
    });
    assert_ne!(ended, ReadStatus::Success);
}

pub(crate) fn tokens_and_values_of_a_closed_dataset_are_void<F: TestFabric>() {
    let server = Setup::new().start::<F>();
    let (mut raw, opened) = server.with_dataset("cats");
    let dataset = opened.dataset;
    let operation = raw.operation();
    raw.alloc(dataset, operation, b"k", 100).unwrap();
    let token = raw.tokens(dataset, 1)[0];
    raw.ask(&Request::Close { dataset }).unwrap();
    assert_eq!(raw.figure([0; 16], "puts_in_progress_count"), 0);
    // Opened anew, by the same session: nothing of before is good again.
    assert_eq!(raw.open("cats").dataset, dataset);
    assert!(matches!(raw.data(token), Err(FabricError::Rejected { .. })));
    let append = Request::Append {
        operation,
        len_bytes: 1,
    };
    assert_eq!(raw.refused(&append), Status::Stale);
    raw.put(dataset, b"k", b"value").unwrap();
}

pub(crate) fn what_is_retired_does_not_wait_for_who_closed_the_dataset<F: TestFabric>() {
    let server = Setup::new().start::<F>();
    let (mut raw, opened) = server.with_dataset("cats");
    raw.put(opened.dataset, b"k", &[7; 100_000]).unwrap();
    raw.ask(&Request::Close {
        dataset: opened.dataset,
    })
    .unwrap();
    let mut admin = server.session(&server.setup.admin);
    let used = admin.figure([0; 16], "memory_used_bytes");
    let name = Bytes::from(&b"cats"[..]);
    admin.ask(&Request::Drop { name }).unwrap();
    // It acknowledged nothing.
    eventually("memory of a dropped dataset is freed", || {
        (admin.figure([0; 16], "memory_used_bytes") < used).then_some(())
    });
}
