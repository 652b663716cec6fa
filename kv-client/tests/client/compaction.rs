//! A server that has little room and is written to for long: clients are neither refused nor misled.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::harness::{TestFabric, World, options, tell, told, value};
use kv_client::ClientError;
use kv_fabric::local::Local;
use kv_fabric::sim::Sim;
use kv_fabric::verbs::Verbs;
use kv_server::store::{Compaction, StoreOptions};

const MIB: u64 = 1 << 20;
const KEYS: u64 = 24;
const PATIENCE: Duration = Duration::from_secs(60);

fn key(index: u64) -> Vec<u8> {
    format!("kept {index}").into_bytes()
}

fn small(store: &mut StoreOptions) {
    store.segment_bytes = MIB;
    store.part_bytes = 128 << 10;
    store.compaction = Compaction {
        dead_share: 0.5,
        disk_share: 0.5,
        ..Compaction::default()
    };
}

/// Overwrites many times what the memory holds, while a reader holds what it reads and checks every byte.
fn overwrites_in_little_memory<F: TestFabric>(rounds: u64) {
    let world = World::<F>::with(|store, options| {
        small(store);
        // Beside the images of values it holds the staging memory of two sessions.
        store.memory_budget_bytes = 12 * MIB + 2 * u64::from(options.staging_bytes);
        options.lease_ms = 1500;
        options.max_lag_ms = 4000;
    });
    let writer = world.dataset("d");
    let len = |index: u64| if index == 0 { 400_000 } else { 60_000 };
    for index in 0..KEYS {
        writer.put(&key(index), &told(index, len(index))).unwrap();
    }
    let (answered, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let session = world.session(options("reader"));
    let reader = session.open("d").unwrap();
    std::thread::scope(|scope| {
        let (answered, stop) = (&answered, &stop);
        let reading = scope.spawn(move || {
            let (mut index, mut reads) = (0, 0_u64);
            while !stop.load(Ordering::SeqCst) {
                index = (index + 1) % KEYS;
                let oldest = answered.load(Ordering::SeqCst);
                let round = tell(&reader.get(&key(index)).unwrap()) / KEYS;
                assert!(round >= oldest, "{round} after {oldest}");
                reads += 1;
            }
            reads
        });
        for round in 1..=rounds {
            let items: Vec<_> = (0..KEYS)
                .map(|index| (key(index), told(round * KEYS + index, len(index))))
                .collect();
            for outcome in writer.put_many(&items) {
                outcome.unwrap();
            }
            answered.store(round, Ordering::SeqCst);
        }
        stop.store(true, Ordering::SeqCst);
        assert!(reading.join().unwrap() > rounds);
    });
    let mut listed: Vec<_> = writer.list().map(|entry| entry.unwrap().key).collect();
    listed.sort();
    listed.dedup();
    assert_eq!(listed.len() as u64, KEYS);
}

#[test]
fn a_small_dataset_is_overwritten_for_long_in_little_memory_over_local() {
    overwrites_in_little_memory::<Local>(60);
}

#[test]
fn a_small_dataset_is_overwritten_for_long_in_little_memory_over_sim() {
    overwrites_in_little_memory::<Sim>(30);
}

#[test]
#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]
fn a_small_dataset_is_overwritten_for_long_in_little_memory_over_verbs() {
    overwrites_in_little_memory::<Verbs>(15);
}

/// A file system of its own; taking it down is left to the end of the guest where that fails.
struct Disk(PathBuf);

impl Disk {
    fn mount(at: &Path, bytes: u64) -> Self {
        std::fs::create_dir_all(at).unwrap();
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "none"])
            .arg(at)
            .status();
        assert!(
            mount.is_ok_and(|status| status.success()),
            "cannot mount a tmpfs: run it as root"
        );
        Self(at.to_owned())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

/// On a disk that is really full: values are refused, keys are deleted, space comes back, values are stored again.
#[test]
#[ignore = "needs an RDMA device's guest: mounts a file system, as root"]
fn a_full_disk_refuses_values_until_some_were_deleted() {
    let folder = tempfile::tempdir().unwrap();
    let disk = Disk::mount(&folder.path().join("disk"), 24 * MIB);
    let mut world = World::<Local>::with(|store, options| {
        small(store);
        store.data = disk.0.join("data");
        options.lease_ms = 1500;
    });
    let writer = world.dataset("d");
    let mut stored = 0_u64;
    let refused = loop {
        match writer.put(&stored.to_le_bytes(), &value(stored, 50_000)) {
            Ok(_) => stored += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, ClientError::Refused { .. }), "{refused}");
    assert!(refused.to_string().contains("space"), "{refused}");
    assert!(stored > 300, "{stored} of about 24 MiB");
    let check = |writer: &kv_client::Client, from: u64| {
        for key in from..stored {
            assert_eq!(
                *writer.get(&key.to_le_bytes()).unwrap(),
                *value(key, 50_000),
                "{key}"
            );
        }
    };
    check(&writer, 0);
    let gone = stored / 2;
    for key in 0..gone {
        assert!(writer.delete(&key.to_le_bytes()).unwrap());
    }
    let deadline = Instant::now() + PATIENCE;
    while let Err(error) = writer.put(b"more", b"value") {
        assert!(Instant::now() < deadline, "{error}");
        std::thread::sleep(Duration::from_millis(10));
    }
    check(&writer, gone);
    drop(writer);
    // It starts again, full as it is.
    world.stop();
    world.start();
    let session = world.session(options("admin"));
    check(&session.open("d").unwrap(), gone);
    world.stop();
    drop((world, disk));
}
