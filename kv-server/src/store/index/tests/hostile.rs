//! Keys that somebody chose.

use super::*;
use crate::store::limits::{DIRECTORY_DEPTH_MIN, GROUP_KEYS_MAX};
use kv_proto::hash::{directory_index, first_hash};

fn roomy() -> (TestDomain, Arc<Budget>) {
    (Network::default().domain(), Budget::new(256 * MIB))
}

/// Depth, groups and bytes of an index of these keys.
fn shape(keys: impl Iterator<Item = Vec<u8>>) -> (u8, usize, u64) {
    let (domain, budget) = roomy();
    let place = Place {
        domain: &domain,
        budget: &budget,
    };
    let mut index = Index::build(SCOPE, &[], &place).unwrap();
    for (number, key) in (1..).zip(keys) {
        let hash = KeyHash::of(&[9; 16], &key);
        let locator = Locator {
            segment: 1,
            offset_units: number,
            value_len_bytes: 0,
            key_len_bytes: key.len() as u16,
            tag: hash.tag(),
        };
        let replaced = add(&mut index, (hash, locator), &place).unwrap();
        give_back(&mut index, replaced);
    }
    (index.directory().depth, index.groups.len(), index.bytes())
}

/// Who does not know the dataset's hash key can choose keys that collide without it, or that differ in few bits: they
/// lie in the index as any others do.
#[test]
fn keys_that_collide_under_an_unkeyed_hash_change_nothing() {
    const KEYS: usize = 120_000;
    let number = |key: u64| key.to_le_bytes().to_vec();
    let ordinary = shape((0..KEYS as u64).map(|key| number(key.wrapping_mul(0x9e37_79b9_7f4a_7c15))));
    // The first five bits, both candidate buckets' first, and so the same sixteenth of one group's buckets.
    let colliding = (0_u64..)
        .filter(|key| {
            let unkeyed = KeyHash::of(&[0; 16], &key.to_le_bytes()).slot;
            unkeyed >> 59 == 0 && unkeyed & 1 == 0 && unkeyed >> 6 & 1 == 0
        })
        .map(number);
    let chosen = [
        ("unkeyed", shape(colliding.take(KEYS))),
        ("counted", shape((0..KEYS as u64).map(number))),
        ("high bits", shape((0..KEYS as u64).map(|key| number(key << 44)))),
        (
            "long",
            shape((0..KEYS).map(|key| format!("{}{key}", "x".repeat(200)).into_bytes())),
        ),
    ];
    println!("ordinary: {ordinary:?}");
    for (what, shape) in chosen {
        println!("{what}: {shape:?}");
        assert!(shape.0.abs_diff(ordinary.0) <= 1, "{what}: depth {}", shape.0);
        let more = shape.2 as f64 / ordinary.2 as f64;
        assert!((0.95..1.05).contains(&more), "{what}: {more} times the bytes");
    }
}

/// Hash `low` of those whose position begins with the same 24 bits.
fn crowded(low: u64) -> (KeyHash, Locator) {
    let spread = low.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 36;
    let hash = KeyHash {
        slot: first_hash(0x4567_8900) + spread,
        high: low,
    };
    let locator = Locator {
        segment: 1,
        offset_units: low as u32 + 1,
        ..Locator::default()
    };
    (hash, locator)
}

/// Who knows the hash key and writes may choose keys of one group: the put is refused before the directory, which all
/// clients fetch, is out of proportion.
#[test]
fn keys_of_one_group_are_refused_before_the_directory_grows_for_them() {
    let (domain, budget) = roomy();
    let place = Place {
        domain: &domain,
        budget: &budget,
    };
    let mut index = Index::build(SCOPE, &sorted(0..20_000), &place).unwrap();
    let groups = index.groups.len();
    let mut refused = None;
    for low in 0..2 * GROUP_KEYS_MAX as u64 {
        match add(&mut index, crowded(low), &place) {
            Ok(replaced) => give_back(&mut index, replaced),
            Err(error) => {
                refused = Some((low, error));
                break;
            }
        }
    }
    let (low, error) = refused.expect("they have one prefix of 24 bits");
    assert!(matches!(error, StorageError::Limit { .. }), "{error}");
    assert!(low <= GROUP_KEYS_MAX as u64);
    assert!(index.entries.len() <= 64 * groups, "{}", index.entries.len());
    for low in 0..low {
        let (hash, locator) = crowded(low);
        assert_eq!(index.find(hash, |_| true).unwrap(), Some(locator));
    }
    // Others are stored as before, but those of the group that is full.
    let depth = index.directory().depth;
    let full = directory_index(crowded(0).0.slot, depth);
    let mut stored = 0;
    for key in 20_000..22_000 {
        match add(&mut index, entry(key), &place) {
            Ok(replaced) => {
                give_back(&mut index, replaced);
                stored += 1;
            }
            Err(_) => assert_eq!(directory_index(entry(key).0.slot, depth), full),
        }
    }
    assert!(stored > 1980, "{stored}");
}

/// More keys in two buckets than these hold: only more bits of the position help.
#[test]
fn keys_of_the_same_buckets_are_split_until_they_fit() {
    let (domain, budget) = roomy();
    let place = Place {
        domain: &domain,
        budget: &budget,
    };
    let same = |number: u64| {
        let slot = (number << 54) | 0x123;
        let locator = Locator {
            segment: 1,
            offset_units: number as u32 + 1,
            ..Locator::default()
        };
        (KeyHash { slot, high: number }, locator)
    };
    let entries: Vec<_> = (0..160).map(same).collect();
    let built = Index::build(SCOPE, &entries, &place).unwrap();
    let mut grown = Index::build(SCOPE, &[], &place).unwrap();
    for entry in &entries {
        let replaced = add(&mut grown, *entry, &place).unwrap();
        give_back(&mut grown, replaced);
    }
    for index in [built, grown] {
        assert!(index.directory().depth <= DIRECTORY_DEPTH_MIN + 1);
        assert!((8..=64).contains(&index.groups.len()), "{}", index.groups.len());
        for (hash, locator) in &entries {
            assert_eq!(index.find(*hash, |_| true).unwrap(), Some(*locator));
        }
    }
}

/// Keys that come and go leave nothing behind: what was emptied has room for others, and no group is added.
#[test]
fn a_table_that_was_emptied_does_not_grow_again() {
    const MOST: u64 = 150_000;
    let (domain, budget) = roomy();
    let place = Place {
        domain: &domain,
        budget: &budget,
    };
    let mut index = Index::build(SCOPE, &sorted(0..MOST), &place).unwrap();
    for key in 0..MOST {
        let (hash, locator) = entry(key);
        index.remove(hash, |found| *found == locator).unwrap();
    }
    let groups = index.groups.len();
    let mut rewrites = 0;
    // Three quarters of what it held, each key another one soon.
    for key in MOST..10 * MOST {
        let replaced = add(&mut index, entry(key), &place).unwrap();
        rewrites += replaced.len();
        give_back(&mut index, replaced);
        if key >= MOST + MOST * 3 / 4 {
            let (hash, locator) = entry(key - MOST * 3 / 4);
            assert_eq!(
                index.remove(hash, |found| *found == locator).unwrap(),
                Some(locator)
            );
        }
    }
    println!("{rewrites} rewrites");
    assert_eq!(index.groups.len(), groups);
    assert!(rewrites > 0, "buckets did fill");
    assert!(index.bytes() as f64 / (MOST as f64) < 48.0);
}
