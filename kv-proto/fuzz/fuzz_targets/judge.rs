//! Bytes that a READ brought, or that lie on a medium: no judge panics, whatever they are and whatever was expected.
#![no_main]

use kv_proto::bucket::{IndexScope, candidates, judge_bucket, judge_directory_entry};
use kv_proto::crc::crc32c;
use kv_proto::footer::{encode_list, parse_list};
use kv_proto::hash::KeyHash;
use kv_proto::layout::{Bucket, DirectoryEntry, Locator, RecordHeader};
use kv_proto::parts::{judge_part, part_locator};
use kv_proto::record::{
    Expected, check_prefix, header_prefix_len, judge_block, judge_prefix, judge_value, key_in, parse_head,
    parse_header,
};
use kv_proto::segment_list::{encode_segments, parse_segments};
use libfuzzer_sys::fuzz_target;
use zerocopy::{FromBytes, IntoBytes};

const HASH_KEY: [u8; 16] = [7; 16];

fn records(bytes: &[u8]) {
    let Ok((locator, rest)) = Locator::read_from_prefix(bytes) else {
        return;
    };
    let mut prefix = rest.to_vec();
    let Ok(header) = parse_header(&prefix) else {
        return;
    };
    let len = header_prefix_len(&header) as usize;
    prefix.truncate(len);
    if prefix.len() == len && len >= 64 {
        // A sound CRC, so that what lies behind the check is reached.
        let crc = crc32c(&[&prefix[..60], &prefix[64..]].concat());
        prefix[60..64].copy_from_slice(&crc.to_le_bytes());
    }
    let value = rest.get(prefix.len()..).unwrap_or(&[]);
    let own = Locator {
        value_len_bytes: header.value_len_bytes,
        key_len_bytes: header.key_len_bytes,
        ..locator
    };
    for (locator, key) in [(locator, None), (own, None), (own, Some(value))] {
        let expected = Expected {
            segment_identity: header.segment_identity,
            locator,
            hash_key: &HASH_KEY,
            key,
        };
        for header in [
            judge_prefix(&prefix, &expected),
            judge_part(&prefix, &expected, &header, locator.segment),
        ]
        .into_iter()
        .flatten()
        {
            let _ = key_in(&prefix, &header);
            let _ = judge_value(&prefix, &header, value);
            let _ = judge_block(&prefix, &header, locator.segment as usize, value);
        }
    }
    let _ = check_prefix(&prefix);
    if let Ok((head, parts)) = parse_head(value) {
        let _ = part_locator(&locator, &head, &parts, locator.offset_units);
    }
    if let Ok((any, _)) = RecordHeader::read_from_prefix(bytes) {
        let _ = judge_value(bytes, &any, value);
        let _ = judge_block(bytes, &any, any.part as usize, value);
    }
}

fn index(bytes: &[u8]) {
    let Ok((mut bucket, rest)) = Bucket::read_from_prefix(bytes) else {
        return;
    };
    let Ok((mut entry, rest)) = DirectoryEntry::read_from_prefix(rest) else {
        return;
    };
    let [depth, low, high, key @ ..] = rest else {
        return;
    };
    let scope = IndexScope {
        dataset: HASH_KEY,
        epoch: 1,
    };
    let at = u32::from(*low) | u32::from(*high) << 8;
    let hash = KeyHash::of(&HASH_KEY, key);
    for _ in 0..2 {
        let _ = judge_directory_entry(&scope, 1, *depth, at, &entry);
        if judge_bucket(&scope, &entry, at, &bucket, hash).is_ok() {
            assert_eq!(bucket.stamp, entry.stamp);
        }
        let _ = candidates(&bucket, hash, key.len()).count();
        entry.checksum = scope.directory_checksum(1, at, &entry);
        bucket.checksum = scope.bucket_checksum(entry.group, at, &bucket);
    }
}

fn segments(bytes: &[u8]) {
    let mut list = bytes.to_vec();
    if list.len() >= 32 {
        list[8..24].copy_from_slice(&HASH_KEY);
        let crc = crc32c(&[&list[..28], &list[32..]].concat());
        list[28..32].copy_from_slice(&crc.to_le_bytes());
    }
    if let Ok(segments) = parse_segments(&list, HASH_KEY) {
        assert_eq!(encode_segments(HASH_KEY, &segments), list);
    }
}

fn lists(bytes: &[u8]) {
    // They begin at a multiple of 8 in memory.
    let mut words = vec![0_u64; bytes.len().div_ceil(8)];
    words.as_mut_bytes()[..bytes.len()].copy_from_slice(bytes);
    if let Ok((entries, operations)) = parse_list(&words.as_bytes()[..bytes.len()]) {
        let mut again = Vec::new();
        encode_list(entries, operations, &mut again);
        assert_eq!(again, bytes);
    }
}

fuzz_target!(|bytes: &[u8]| {
    lists(bytes);
    records(bytes);
    index(bytes);
    segments(bytes);
    let _ = parse_head(bytes);
});
