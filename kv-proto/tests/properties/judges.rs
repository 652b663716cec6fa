//! Judges of anything that a READ can bring.

use kv_proto::bucket::{candidates, judge_bucket, judge_directory_entry};
use kv_proto::hash::{KeyHash, directory_index};
use kv_proto::layout::*;
use kv_proto::parts::{judge_part, part_len_bytes, part_locator};
use kv_proto::record::{
    Expected, check_prefix, judge_block, judge_prefix, judge_value, parse_head, parse_header,
};
use proptest::prelude::*;
use zerocopy::FromBytes;

use crate::check;
use crate::common::*;

/// Bytes that begin like something real now and then, so that they get past the first check.
fn almost_anything() -> impl Strategy<Value = Vec<u8>> {
    (prop::collection::vec(any::<u8>(), 0..600), any::<u8>()).prop_map(|(mut bytes, style)| {
        let real = prefix(&meta(style % 8, u32::from(style) % 3), b"key", b"");
        let take = real.len().min(bytes.len());
        if style & 0x80 != 0 {
            bytes[..take].copy_from_slice(&real[..take]);
        } else if style & 0x40 != 0 && take >= 24 {
            bytes[..8].copy_from_slice(&real[..8]);
            bytes[10..12].copy_from_slice(&[0, 0]);
        }
        bytes
    })
}

#[test]
fn judges_never_panic() {
    let raw = prop::collection::vec(any::<u8>(), 16 + 256 + 32);
    check(
        (almost_anything(), raw, any::<u32>(), any::<u8>()),
        |(bytes, raw, number, depth)| {
            // Structs of plain integers read from any bytes of their length.
            let (Ok(locator), Ok(bucket), Ok(entry)) = (
                Locator::read_from_bytes(&raw[..16]),
                Bucket::read_from_bytes(&raw[16..272]),
                DirectoryEntry::read_from_bytes(&raw[272..]),
            ) else {
                return Err(TestCaseError::fail("the lengths are right"));
            };
            let hash = KeyHash::of(&hash_key(), &bytes);
            let _ = parse_header(&bytes);
            let checked = check_prefix(&bytes);
            for locator in [locator, locator_of(b"key", b"")] {
                for key in [None, Some(&bytes[..])] {
                    let expected = Expected {
                        segment_identity: IDENTITY,
                        locator,
                        hash_key: &hash_key(),
                        key,
                    };
                    let _ = judge_prefix(&bytes, &expected);
                    if let Ok(header) = &checked {
                        let _ = judge_part(&bytes, &expected, header, number);
                    }
                }
            }
            if let Ok(header) = RecordHeader::read_from_prefix(&bytes).map(|(header, _)| header) {
                let _ = judge_value(&bytes, &header, &raw);
                let _ = judge_block(&bytes, &header, number as usize, &raw);
                let _ = judge_block(&bytes, &header, number as usize % 4, &raw);
            }
            if let Ok((head, parts)) = parse_head(&bytes) {
                let _ = part_locator(&locator, &head, &parts, number);
            }
            if let Ok((head, _)) = HeadValue::read_from_prefix(&bytes) {
                let _ = part_len_bytes(&head, number);
            }
            let scope = scope();
            let mut entries = [entry; 2];
            entries[1].checksum = scope.directory_checksum(9, number, &entry);
            for entry in &entries {
                let _ = judge_directory_entry(&scope, 9, depth, number, entry);
            }
            let mut buckets = [bucket; 2];
            buckets[1].checksum = scope.bucket_checksum(entry.group, number, &bucket);
            for bucket in &buckets {
                let _ = judge_bucket(&scope, &entry, number, bucket, hash);
                prop_assert!(candidates(bucket, hash, bytes.len()).count() <= BUCKET_SLOTS);
            }
            prop_assert!(directory_index(hash.slot, depth) < 1 << DIRECTORY_DEPTH_MAX);
            Ok(())
        },
    );
}
