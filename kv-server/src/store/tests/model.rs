//! The store against a map, with restarts, crashes and a disk that fills up now and then.
//!
//! `VKV_SEED=<seed>` repeats the steps of a run that failed; how compaction interleaves with them is up to the machine.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::test_runner::{Config, RngSeed, TestRunner};

use super::support::{Rig, bytes, copy_directory, faulty, options, scratch, seed};
use crate::store::files::{Call, Files};

#[derive(Debug, Clone)]
enum Step {
    Put(u8, u32),
    Delete(u8),
    Restart,
    Crash,
    FullDisk(u8, u32),
    Rename,
}

fn steps() -> impl proptest::strategy::Strategy<Value = Vec<Step>> {
    use proptest::prelude::*;
    let len = prop_oneof![
        6 => 0_u32..300,
        3 => 300_u32..20_000,
        2 => 20_000_u32..200_000,
        1 => 200_000_u32..900_000
    ];
    let step = prop_oneof![
        20 => (any::<u8>(), len.clone()).prop_map(|(key, len)| Step::Put(key % 40, len)),
        6 => any::<u8>().prop_map(|key| Step::Delete(key % 40)),
        1 => Just(Step::Restart),
        1 => Just(Step::Crash),
        2 => (any::<u8>(), len).prop_map(|(key, len)| Step::FullDisk(key % 40, len)),
        1 => Just(Step::Rename),
    ];
    proptest::collection::vec(step, 1..60)
}

fn open(root: &Path, full: &Arc<AtomicBool>) -> Rig {
    let full = Arc::clone(full);
    let faults = move |call: Call, path: &Path| {
        (call == Call::Write && full.load(Ordering::Relaxed) && path.to_string_lossy().contains(".segment"))
            .then(|| (777, io::Error::from_raw_os_error(28)))
    };
    Rig::with(options(root), faulty(Box::new(faults))).unwrap()
}

fn check(rig: &Rig, name: &str, model: &HashMap<u8, Vec<u8>>) {
    for key in 0..40_u8 {
        assert_eq!(rig.get(name, &[key]).as_ref(), model.get(&key), "key {key}");
    }
    assert_eq!(rig.figure(name, "keys_count"), model.len() as u64);
    let value_bytes: usize = model.values().map(Vec::len).sum();
    assert_eq!(rig.figure(name, "value_bytes"), value_bytes as u64);
}

fn run(steps: &[Step]) {
    let mut directory = scratch();
    let full = Arc::new(AtomicBool::new(false));
    let mut rig = open(directory.path(), &full);
    let mut name = "set".to_owned();
    rig.store.create(&name).unwrap();
    let mut model = HashMap::new();
    for (number, step) in (0_u64..).zip(steps) {
        match step {
            Step::Put(key, len) => {
                let value = bytes(number, *len as usize);
                let put = rig.put(&name, &[*key], &value).unwrap();
                assert_eq!(put.existed, model.insert(*key, value).is_some());
            }
            Step::Delete(key) => {
                let deleted = rig.delete(&name, &[*key]).unwrap();
                assert_eq!(deleted.existed, model.remove(key).is_some());
            }
            Step::FullDisk(key, len) => {
                full.store(true, Ordering::Relaxed);
                let put = rig.put(&name, &[*key], &bytes(number, *len as usize));
                assert!(put.is_err(), "{put:?}");
                full.store(false, Ordering::Relaxed);
            }
            Step::Restart => {
                drop(rig);
                rig = open(directory.path(), &full);
                check(&rig, &name, &model);
            }
            Step::Crash => {
                let copy = scratch();
                copy_directory(directory.path(), copy.path());
                drop(rig);
                directory = copy;
                rig = open(directory.path(), &full);
                check(&rig, &name, &model);
            }
            Step::Rename => {
                let to = format!("set{number}");
                rig.store.rename(&name, &to).unwrap();
                name = to;
            }
        }
    }
    check(&rig, &name, &model);
    drop(rig);
    check(
        &Rig::with(options(directory.path()), Files::default()).unwrap(),
        &name,
        &model,
    );
}

#[test]
fn the_store_is_a_map() {
    let seed = seed();
    let mut runner = TestRunner::new(Config {
        cases: 60,
        rng_seed: RngSeed::Fixed(seed),
        failure_persistence: None,
        max_shrink_iters: 200,
        ..Config::default()
    });
    let ran = runner.run(&steps(), |steps| {
        run(&steps);
        Ok(())
    });
    if let Err(failure) = ran {
        panic!("VKV_SEED={seed}: {failure}");
    }
}
