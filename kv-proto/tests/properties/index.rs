//! Buckets and directory entries.

use kv_proto::bucket::{IndexRefusal, IndexScope, judge_bucket, judge_directory_entry};
use kv_proto::hash::{KeyHash, candidate_buckets, directory_index, first_hash, position};
use kv_proto::layout::*;
use proptest::prelude::*;
use zerocopy::{FromBytes, IntoBytes};

use crate::check;
use crate::common::*;

fn written_index(key: &[u8]) -> (KeyHash, u32, DirectoryEntry, u32, Bucket) {
    let hash = KeyHash::of(&hash_key(), key);
    let mut bucket = bucket(hash);
    let mut entry = directory_entry(&bucket);
    let at = directory_index(hash.slot, 4);
    entry.checksum = scope().directory_checksum(9, at, &entry);
    let [index, _] = candidate_buckets(hash.slot);
    bucket.checksum = scope().bucket_checksum(entry.group, index, &bucket);
    (hash, at, entry, index, bucket)
}

#[test]
fn every_single_bit_of_a_bucket_and_an_entry_counts() {
    let (hash, at, entry, index, bucket) = written_index(b"key");
    assert_eq!(judge_directory_entry(&scope(), 9, 4, at, &entry), Ok(()));
    assert_eq!(judge_bucket(&scope(), &entry, index, &bucket, hash), Ok(()));
    for bit in 0..size_of::<Bucket>() * 8 {
        let mut bytes = bucket.as_bytes().to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let bad = Bucket::read_from_bytes(&bytes).expect("the length is right");
        let judged = judge_bucket(&scope(), &entry, index, &bad, hash);
        assert_eq!(judged, Err(IndexRefusal::Torn), "bit {bit}");
    }
    for bit in 0..size_of::<DirectoryEntry>() * 8 {
        let mut bytes = entry.as_bytes().to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let bad = DirectoryEntry::read_from_bytes(&bytes).expect("the length is right");
        let judged = judge_directory_entry(&scope(), 9, 4, at, &bad);
        assert_eq!(judged, Err(IndexRefusal::Torn), "bit {bit}");
    }
}

#[test]
fn a_bucket_or_an_entry_of_elsewhere_is_refused() {
    let strategy = (
        prop::collection::vec(any::<u8>(), 1..40),
        1..=u64::MAX,
        any::<u8>(),
    );
    check(strategy, |(key, step, byte)| {
        let (hash, at, entry, index, bucket) = written_index(&key);
        prop_assert_eq!(judge_bucket(&scope(), &entry, index, &bucket, hash), Ok(()));
        let mut dataset = dataset();
        dataset[usize::from(byte) % 16] ^= (step as u8).max(1);
        let epoch = scope().epoch.wrapping_add(step);
        let elsewhere = [IndexScope { dataset, ..scope() }, IndexScope { epoch, ..scope() }];
        for scope in elsewhere {
            prop_assert_eq!(
                judge_bucket(&scope, &entry, index, &bucket, hash),
                Err(IndexRefusal::Torn)
            );
            prop_assert_eq!(
                judge_directory_entry(&scope, 9, 4, at, &entry),
                Err(IndexRefusal::Torn)
            );
        }
        let step = (step as u32).max(1);
        let group = DirectoryEntry {
            group: entry.group.wrapping_add(step),
            ..entry
        };
        prop_assert_eq!(
            judge_bucket(&scope(), &group, index, &bucket, hash),
            Err(IndexRefusal::Torn)
        );
        let other = (index + 1 + step % 63) % 64;
        prop_assert_ne!(other, index);
        prop_assert_eq!(
            judge_bucket(&scope(), &entry, other, &bucket, hash),
            Err(IndexRefusal::Torn)
        );
        let version = 9 + u64::from(step);
        prop_assert_eq!(
            judge_directory_entry(&scope(), version, 4, at, &entry),
            Err(IndexRefusal::Torn)
        );
        let other = (at + 1 + step % 15) % 16;
        prop_assert_eq!(
            judge_directory_entry(&scope(), 9, 4, other, &entry),
            Err(IndexRefusal::Torn)
        );
        Ok(())
    });
}

#[test]
fn a_bucket_that_was_split_or_covers_another_prefix_is_stale() {
    let (hash, _, entry, index, written) = written_index(b"key");
    let judge = |entry: &DirectoryEntry, change: &dyn Fn(&mut Bucket)| {
        let mut bucket = written;
        change(&mut bucket);
        bucket.checksum = scope().bucket_checksum(entry.group, index, &bucket);
        judge_bucket(&scope(), entry, index, &bucket, hash)
    };
    assert_eq!(judge(&entry, &|_| {}), Ok(()));
    assert_eq!(
        judge(&entry, &|b| b.stamp |= STAMP_MOVED),
        Err(IndexRefusal::Stale)
    );
    assert_eq!(judge(&entry, &|b| b.stamp += 1), Err(IndexRefusal::Stale));
    assert_eq!(judge(&entry, &|b| b.depth_prefix ^= 1), Err(IndexRefusal::Stale));
    assert_eq!(
        judge(&entry, &|b| b.depth_prefix = 25 << 24),
        Err(IndexRefusal::Stale)
    );
    assert_eq!(
        judge(&entry, &|b| b.depth_prefix = 0),
        Ok(()),
        "depth 0 covers all"
    );
    let moved = DirectoryEntry {
        stamp: entry.stamp | STAMP_MOVED,
        ..entry
    };
    assert_eq!(
        judge(&moved, &|b| b.stamp |= STAMP_MOVED),
        Err(IndexRefusal::Stale)
    );
    for (depth, index) in [(2, 0), (4, 15), (25, 0), (255, u32::MAX)] {
        let mut foreign = entry;
        foreign.depth_prefix = depth_prefix(3, 1);
        foreign.checksum = scope().directory_checksum(9, index, &foreign);
        let judged = judge_directory_entry(&scope(), 9, depth, index, &foreign);
        assert_eq!(judged, Err(IndexRefusal::Stale), "depth {depth}, index {index}");
    }
}

/// What lists rely on: in the order of slot hashes one group follows the other, and where one begins is known.
#[test]
fn positions_never_fall_and_each_has_a_first_hash() {
    let strategy = (any::<u64>(), any::<u64>(), any::<u32>(), any::<u64>());
    check(strategy, |(hash, other, at, low)| {
        let (less, more) = (hash.min(other), hash.max(other));
        prop_assert!(position(less) <= position(more));
        prop_assert!(position(hash) <= position(hash.saturating_add(low >> 30)));
        prop_assert_eq!(
            position(hash),
            position(hash ^ (low & 0x1fff_ffff)),
            "low bits do not count"
        );
        let first = first_hash(at);
        prop_assert!(position(first) >= at);
        prop_assert!(first == 0 || position(first - 1) < at);
        let index = at >> 8;
        prop_assert_eq!(
            directory_index(first_hash(index << 8), 24),
            index,
            "no entry is empty"
        );
        Ok(())
    });
}
