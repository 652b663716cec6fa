//! The index alone: built whole, grown, emptied.

use std::sync::Arc;

use kv_proto::bucket::IndexScope;
use kv_proto::hash::KeyHash;
use kv_proto::layout::Locator;

use super::{Index, Place, Replaced, Retired};
use crate::error::StorageError;
use crate::store::budget::Budget;
use crate::store::tests::support::{MIB, Network, TestDomain};

mod hostile;
mod model;
mod weight;

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

/// Stores a key that is not there; what was replaced for it.
fn add(
    index: &mut Index,
    (hash, locator): (KeyHash, Locator),
    place: &Place<'_>,
) -> Result<Vec<Replaced>, StorageError> {
    let mut replaced = Vec::new();
    let reserved = index.reserve(hash, place, &mut replaced);
    reserved.map(|()| {
        assert_eq!(index.put(hash, locator, |_| false).unwrap(), None);
        replaced
    })
}

/// Nobody reads what was replaced.
fn give_back(index: &mut Index, replaced: Vec<Replaced>) {
    let retired = replaced.into_iter().flat_map(|replaced| replaced.retired);
    retired.for_each(|retired| index.give_back(retired));
}

fn sorted(keys: std::ops::Range<u64>) -> Vec<(KeyHash, Locator)> {
    let mut entries: Vec<_> = keys.map(entry).collect();
    entries.sort_unstable_by_key(|(hash, _)| hash.slot);
    entries
}

fn holds(index: &Index, keys: u64) {
    assert_eq!(index.keys(), keys);
    for key in 0..keys {
        let (hash, locator) = entry(key);
        assert_eq!(
            index.find(hash, |found| *found == locator).unwrap(),
            Some(locator),
            "key {key}"
        );
    }
    for key in keys..keys + 1000 {
        assert_eq!(index.find(entry(key).0, |_| true).unwrap(), None, "key {key}");
    }
    let (mut listed, mut from) = (Vec::new(), Some(0));
    while let Some(cursor) = from {
        let (slots, next) = index.slots_from(cursor).unwrap();
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
            let replaced = add(&mut index, entry(key), &place).unwrap();
            give_back(&mut index, replaced);
        }
        holds(&index, more);
        for key in 0..more {
            let (hash, locator) = entry(key);
            assert_eq!(
                index.remove(hash, |found| *found == locator).unwrap(),
                Some(locator)
            );
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
    assert!(matches!(refused.err(), Some(StorageError::Memory { .. })));
    assert_eq!(budget.used_bytes(), 0);
}

#[test]
fn promised_slots_stay_promised_when_groups_are_joined() {
    let domain = Network::default().domain();
    let budget = Budget::new(64 * MIB);
    let place = Place {
        domain: &domain,
        budget: &budget,
    };
    let mut index = Index::build(SCOPE, &sorted(0..8000), &place).unwrap();
    let (groups, mut replaced) = (index.groups.len(), Vec::new());
    let new = 8000..8400;
    for key in new.clone() {
        index.reserve(entry(key).0, &place, &mut replaced).unwrap();
    }
    give_back(&mut index, std::mem::take(&mut replaced));
    for key in 0..8000 {
        let (hash, locator) = entry(key);
        assert_eq!(
            index.remove(hash, |found| *found == locator).unwrap(),
            Some(locator)
        );
        index.join_around(hash, &place, &mut replaced);
        give_back(&mut index, std::mem::take(&mut replaced));
    }
    assert!(
        index.groups.len() < groups / 4,
        "{} of {groups}",
        index.groups.len()
    );
    // Those that are not used are taken back.
    for key in new.clone().step_by(2) {
        let (hash, locator) = entry(key);
        assert_eq!(index.put(hash, locator, |_| false).unwrap(), None);
    }
    index.forget_promises();
    for key in new {
        let (hash, locator) = entry(key);
        assert_eq!(
            index.find(hash, |_| true).unwrap(),
            (key % 2 == 0).then_some(locator)
        );
    }
    let taken: usize = index.groups.iter().map(|group| usize::from(group.taken)).sum();
    assert_eq!(taken as u64, index.keys());
}
