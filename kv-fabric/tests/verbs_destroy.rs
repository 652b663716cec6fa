//! A device that refuses to destroy a connection: the endpoint says so, keeps it, and destroys it later.
//!
//! # Safety
//! Descriptors through which the device is given orders are replaced for a while by one that takes none, and put back;
//! nothing of them is mapped anew meanwhile.
#![allow(unsafe_code)]

#[path = "conformance/rig.rs"]
#[allow(dead_code, reason = "this program uses its own part of it")]
mod rig;

use std::fs::File;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use kv_fabric::verbs::Verbs;
use kv_fabric::{FabricError, ReadStatus};
use rig::{Rig, bytes_of, completions, piece, post_one, read_one, register, served};

/// While it lives no device of this process takes orders.
struct Refusing(Vec<(ManuallyDrop<OwnedFd>, OwnedFd)>);

impl Refusing {
    fn begin() -> Self {
        let nowhere = File::open("/dev/null").expect("/dev/null");
        let entries = std::fs::read_dir("/proc/self/fd").expect("descriptors of this process");
        // All of them before any is replaced: what is kept takes numbers that come free meanwhile.
        let taking_orders: Vec<RawFd> = entries
            .filter_map(|entry| {
                let path = entry.expect("an entry").path();
                let target = std::fs::read_link(&path).ok()?;
                let orders = target.to_str()?.starts_with("/dev/infiniband/uverbs");
                orders.then(|| path.file_name()?.to_str()?.parse().ok())?
            })
            .collect();
        let swapped = taking_orders
            .into_iter()
            .map(|number| {
                // SAFETY: open, and never closed by this handle: it is not dropped.
                let mut fd = ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(number) });
                let kept = rustix::io::dup(fd.as_fd()).expect("dup");
                rustix::io::dup2(&nowhere, &mut fd).expect("dup2");
                (fd, kept)
            })
            .collect();
        Self(swapped)
    }
}

impl Drop for Refusing {
    fn drop(&mut self) {
        for (fd, kept) in &mut self.0 {
            rustix::io::dup2(&*kept, fd).expect("dup2");
        }
    }
}

#[test]
#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]
fn a_refused_destruction_is_told_and_repeated() {
    let host =
        std::env::var("VKV_TEST_ADDR").expect("VKV_TEST_ADDR names no address: run inside soft-roce-ci/run");
    let address = format!("{host}:17499");
    let rig = Rig {
        server: Arc::new(Verbs::for_listener(&address).expect("a device")),
        client: Arc::new(Verbs::for_peer(&address).expect("a device")),
        address,
        _keep: Box::new(()),
    };
    let mut host = rig.host();
    let domain = rig.domain();
    let memory = served(3, 4096);
    let (_registration, remote) = register(&domain, &memory);
    let (mut data, data_id) = rig.data(&mut host, &domain, 4);
    let (_control, control_id) = rig.control(&mut host);
    let region = rig.region(4096);
    let to = piece(0, 4096);
    assert_eq!(
        read_one(&mut host, &mut data, remote, to, &region),
        ReadStatus::Success
    );

    let refusing = Refusing::begin();
    assert!(!refusing.0.is_empty(), "no descriptor takes orders for a device");
    for id in [data_id, control_id, data_id] {
        let error = host
            .endpoint
            .destroy(id)
            .expect_err("the device takes no orders")
            .to_string();
        assert!(
            error.contains("destroy a connection") && error.contains("ibv_destroy_qp"),
            "{error}"
        );
    }
    drop(refusing);
    for id in [data_id, control_id, data_id] {
        host.endpoint.destroy(id).expect("the device takes orders again");
    }
    memory.write(0, &[0xEE; 4096]);
    region.memory().write(0, &[0xAA; 4096]);
    match post_one(&mut data, 1, remote, to, &region) {
        Ok(()) => {
            let status = completions(&mut host, &mut data, 1)[0].status;
            assert!(
                matches!(status, ReadStatus::PeerGone | ReadStatus::Flushed),
                "{status:?}"
            );
        }
        Err(FabricError::Closed(_)) => {}
        Err(error) => panic!("{error}"),
    }
    assert_eq!(bytes_of(&region, 0, 4096), [0xAA; 4096], "no byte came");
}

#[test]
#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]
fn a_client_is_told_of_a_refused_destruction_and_repeats_it() {
    let host =
        std::env::var("VKV_TEST_ADDR").expect("VKV_TEST_ADDR names no address: run inside soft-roce-ci/run");
    let address = format!("{host}:17498");
    let rig = Rig {
        server: Arc::new(Verbs::for_listener(&address).expect("a device")),
        client: Arc::new(Verbs::for_peer(&address).expect("a device")),
        address,
        _keep: Box::new(()),
    };
    let mut host = rig.host();
    let domain = rig.domain();
    let memory = served(3, 4096);
    let (_registration, remote) = register(&domain, &memory);
    let (mut data, _) = rig.data(&mut host, &domain, 4);
    let region = rig.region(4096);
    let to = piece(0, 4096);
    assert_eq!(
        read_one(&mut host, &mut data, remote, to, &region),
        ReadStatus::Success
    );

    let refusing = Refusing::begin();
    for _ in 0..2 {
        let refused = data.destroy().expect_err("the device takes no orders");
        let text = refused.to_string();
        assert!(
            text.contains("destroy a data connection") && text.contains("ibv_destroy_qp"),
            "{text}"
        );
        data = refused.live;
    }
    drop(refusing);
    data.destroy().expect("the device takes orders again");
}
