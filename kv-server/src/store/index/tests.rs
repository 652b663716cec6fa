//! The index alone: built whole, grown, emptied.

use std::sync::Arc;

use kv_proto::bucket::IndexScope;
use kv_proto::hash::KeyHash;
use kv_proto::layout::Locator;

use super::{Index, Place};
use crate::store::budget::Budget;
use crate::store::tests::support::{MIB, Network, TestDomain};

const SCOPE: IndexScope = IndexScope {
    dataset: [5; 16],
    epoch: 3,
};

/// Key number `key`: its hash, and a locator that says which it is.
fn entry(key: u64) -> (KeyHash, Locator) {
    let hash = KeyHash::of(&[9; 16], &key.to_le_bytes());
    let locator = Locator {
        segment: 1,
        offset_units: key as u32 + 1,
        value_len_bytes: 0,
        key_len_bytes: 8,
        tag: hash.tag(),
    };
    (hash, locator)
}

fn sorted(keys: std::ops::Range<u64>) -> Vec<(KeyHash, Locator)> {
    let mut entries: Vec<_> = keys.map(entry).collect();
    entries.sort_unstable_by_key(|(hash, _)| hash.slot);
    entries
}

fn holds(index: &Index<TestDomain>, keys: u64) {
    assert_eq!(index.keys(), keys);
    for key in 0..keys {
        let (hash, locator) = entry(key);
        assert_eq!(
            index.find(hash, |found| *found == locator),
            Some(locator),
            "key {key}"
        );
    }
    for key in keys..keys + 1000 {
        assert_eq!(index.find(entry(key).0, |_| true), None, "key {key}");
    }
    let (mut listed, mut from) = (Vec::new(), Some(0));
    while let Some(cursor) = from {
        let (slots, next) = index.slots_from(cursor);
        listed.extend(slots.into_iter().map(|slot| slot.hash));
        from = next;
    }
    let all: Vec<u64> = sorted(0..keys).iter().map(|(hash, _)| hash.slot).collect();
    assert_eq!(listed, all);
}

#[test]
fn an_index_built_whole_is_as_one_that_grew() {
    let domain = Network::default().domain();
    let budget = Budget::new(64 * MIB);
    let place = Place {
        domain: &domain,
        budget: &budget,
    };
    for keys in [0, 1, 640, 641, 5000, 100_000] {
        let mut index = Index::build(SCOPE, &sorted(0..keys), &place).unwrap();
        holds(&index, keys);
        let more = keys + keys / 2 + 500;
        for key in keys..more {
            let (hash, locator) = entry(key);
            let mut replaced = Vec::new();
            index.reserve(hash, &place, &mut replaced).unwrap();
            assert_eq!(index.put(hash, locator, |_| false), None);
            replaced
                .into_iter()
                .flat_map(|replaced| replaced.retired)
                .for_each(|retired| index.give_back(retired));
        }
        holds(&index, more);
        for key in 0..more {
            let (hash, locator) = entry(key);
            assert_eq!(index.remove(hash, |found| *found == locator), Some(locator));
        }
        holds(&index, 0);
    }
    assert_eq!(budget.used_bytes(), 0, "all of it is given back");
}

#[test]
fn an_index_for_which_there_is_no_memory_is_not_built() {
    let domain = Network::default().domain();
    let budget = Budget::new(MIB);
    let place = Place {
        domain: &domain,
        budget: &Arc::clone(&budget),
    };
    let refused = Index::build(SCOPE, &sorted(0..60_000), &place);
    assert!(matches!(
        refused.err(),
        Some(crate::error::StorageError::Memory { .. })
    ));
    assert_eq!(budget.used_bytes(), 0);
}

/// Most memory of an index for each key, past so many.
const BYTES_PER_KEY_MAX: f64 = 48.0;
const KEYS_MIN: u64 = 100_000;

/// The least and the most of a figure, and where they were.
struct Extremes {
    least: (f64, u64),
    most: (f64, u64),
}

impl Extremes {
    fn new() -> Self {
        Self {
            least: (f64::MAX, 0),
            most: (0.0, 0),
        }
    }

    fn add(&mut self, bytes: u64, keys: u64) {
        let per_key = bytes as f64 / keys as f64;
        if per_key < self.least.0 {
            self.least = (per_key, keys);
        }
        if per_key > self.most.0 {
            self.most = (per_key, keys);
        }
    }

    fn check(&self, what: &str) {
        println!(
            "{what}: {:.1} bytes a key at {} keys to {:.1} at {}",
            self.least.0, self.least.1, self.most.0, self.most.1
        );
        assert!(self.most.0 <= BYTES_PER_KEY_MAX, "{what}: {:?}", self.most);
    }
}

/// Adds keys one by one up to `keys_max`; every session acknowledges once in a growth of 2 %.
fn grow_and_weigh(keys_max: u64) {
    let domain = Network::default().domain();
    let budget = Budget::new(u64::MAX);
    let place = Place {
        domain: &domain,
        budget: &budget,
    };
    let mut index = Index::build(SCOPE, &[], &place).unwrap();
    let (mut before, mut after) = (Extremes::new(), Extremes::new());
    let (mut replaced, mut next) = (Vec::new(), 1000);
    let (mut splits, mut rewrites) = (0_u64, 0_u64);
    for key in 0..keys_max {
        let (hash, locator) = entry(key);
        let groups = index.groups.len();
        index.reserve(hash, &place, &mut replaced).unwrap();
        index.put(hash, locator, |_| false);
        splits += (index.groups.len() - groups) as u64;
        if key + 1 == next {
            let directories: u64 = replaced
                .iter()
                .flat_map(|replaced: &super::Replaced<_>| &replaced.retired)
                .map(|retired| match retired {
                    super::Retired::Block(_) => 0,
                    super::Retired::Directory(directory) => directory.bytes(),
                })
                .sum();
            assert!(
                index.bytes() + directories >= budget.used_bytes(),
                "all that is charged counts"
            );
            let counts = next >= KEYS_MIN;
            if counts {
                before.add(index.bytes() + directories, next);
            }
            rewrites += replaced.len() as u64;
            let retired = replaced.drain(..).flat_map(|replaced| replaced.retired);
            retired.for_each(|retired| index.give_back(retired));
            if counts {
                after.add(index.bytes(), next);
            }
            next += next / 50;
        }
    }
    rewrites -= splits;
    println!(
        "{} groups, {splits} splits, {rewrites} rewrites",
        index.groups.len()
    );
    before.check("grown, with what was retired");
    after.check("grown");
}

#[test]
fn a_key_costs_little_at_every_size_of_a_table_that_grows() {
    grow_and_weigh(3_000_000);
}

#[test]
#[ignore = "takes about a minute and 2 GiB: run with --ignored"]
fn a_key_costs_little_at_every_size_up_to_twelve_million() {
    grow_and_weigh(12_000_000);
}

#[test]
fn a_key_costs_little_at_every_size_of_a_table_that_was_built() {
    let domain = Network::default().domain();
    let budget = Budget::new(u64::MAX);
    let place = Place {
        domain: &domain,
        budget: &budget,
    };
    let all = sorted(0..2_000_000);
    let (mut built, mut keys) = (Extremes::new(), KEYS_MIN);
    while keys <= all.len() as u64 {
        // Those of the first keys, which are in the order of their hashes too.
        let first = |(_, locator): &&(KeyHash, Locator)| u64::from(locator.offset_units) <= keys;
        let entries: Vec<_> = all.iter().filter(first).copied().collect();
        let index = Index::build(SCOPE, &entries, &place).unwrap();
        assert!(index.bytes() >= budget.used_bytes());
        built.add(index.bytes(), keys);
        keys += keys / 50;
    }
    built.check("built");
}
