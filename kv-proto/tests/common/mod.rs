//! One sample of every struct, frame and proof, with fields that can be told apart in a hex dump.
#![allow(dead_code, reason = "each test program uses a part of it")]

use kv_proto::auth::{Role, Transcript};
use kv_proto::bucket::IndexScope;
use kv_proto::control::*;
use kv_proto::layout::*;
use kv_proto::record::{RecordMeta, encode_prefix};
use kv_proto::{crc, hash::KeyHash};

/// `N` bytes that count up from `first`.
pub(crate) fn counting<const N: usize>(first: u8) -> [u8; N] {
    std::array::from_fn(|index| first.wrapping_add(index as u8))
}

pub(crate) fn dataset() -> [u8; 16] {
    counting(0xd0)
}

pub(crate) fn hash_key() -> [u8; 16] {
    counting(0)
}

pub(crate) fn scope() -> IndexScope {
    IndexScope {
        dataset: dataset(),
        epoch: 7,
    }
}

pub(crate) const IDENTITY: u64 = 0x1d1d_1d1d_0000_0003;

pub(crate) fn meta(kind: u8, part: u32) -> RecordMeta {
    RecordMeta {
        kind,
        part,
        sequence: 0x0102_0304_0506_0708,
        segment_identity: IDENTITY,
        client_id: 0xc11e_c11e_c11e_c11e,
        operation: 42,
        durable_units: 0x00d0_0d00,
    }
}

/// Bytes of a value of this length that no block repeats.
pub(crate) fn value(len: usize) -> Vec<u8> {
    (0..len)
        .map(|index| (index ^ index >> 8 ^ index >> 16) as u8)
        .collect()
}

/// Prefix of a record with this key and value.
pub(crate) fn prefix(meta: &RecordMeta, key: &[u8], value: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let blocks = crc::block_crcs(value);
    encode_prefix(
        meta,
        key,
        value.len() as u32,
        crc::crc32c(value),
        &blocks,
        &mut out,
    );
    out
}

pub(crate) fn locator_of(key: &[u8], value: &[u8]) -> Locator {
    Locator {
        segment: 3,
        offset_units: 1,
        value_len_bytes: value.len() as u32,
        key_len_bytes: key.len() as u16,
        tag: KeyHash::of(&hash_key(), key).tag(),
    }
}

pub(crate) fn locator() -> Locator {
    Locator {
        segment: 0x0a0b_0c0d,
        offset_units: 0x1a1b_1c1d,
        value_len_bytes: 0x2a2b_2c2d,
        key_len_bytes: 0x3a3b,
        tag: 0x4a4b,
    }
}

/// A bucket with two keys, without its checksum.
pub(crate) fn bucket(hash: KeyHash) -> Bucket {
    let mut slots = [Slot::default(); BUCKET_SLOTS];
    slots[2] = Slot {
        hash: hash.slot,
        locator: Locator {
            tag: hash.tag(),
            ..locator()
        },
    };
    slots[9] = Slot {
        hash: !hash.slot,
        locator: locator(),
    };
    Bucket {
        checksum: 0,
        stamp: 0x0057_a390,
        depth_prefix: depth_prefix(3, kv_proto::hash::directory_index(hash.slot, 3)),
        slots,
    }
}

/// Entry `index` of a directory of depth 4 whose group is `bucket`'s, without its checksum.
pub(crate) fn directory_entry(bucket: &Bucket) -> DirectoryEntry {
    DirectoryEntry {
        checksum: 0,
        address: 0x7f00_1234_5678_9a00,
        rkey: 0x0042_4344,
        group: 0x0060_6162,
        stamp: bucket.stamp,
        depth_prefix: bucket.depth_prefix,
    }
}

pub(crate) fn remote(first: u8) -> RemoteAddress {
    RemoteAddress {
        address: u64::from_le_bytes(counting(first)),
        rkey: u32::from_le_bytes(counting(first.wrapping_add(8))),
    }
}

pub(crate) fn directory() -> DirectoryRef {
    DirectoryRef {
        at: remote(0x10),
        version: 9,
        depth: 24,
    }
}

pub(crate) fn row() -> SegmentRow {
    SegmentRow {
        segment: 3,
        identity: IDENTITY,
        generation: 2,
        state: segment_state::SEALED,
        length_units: 0x00e0_0000,
        extents: vec![remote(0x30), remote(0x50)],
    }
}

pub(crate) fn bytes(text: &str) -> Bytes {
    Bytes::from(text.as_bytes())
}

/// One request of each kind.
pub(crate) fn requests() -> Vec<Request> {
    let dataset = dataset();
    let name = bytes("photos.v1");
    let key = bytes("a/b c\n\u{fc}");
    vec![
        Request::Hello {
            version_min: 1,
            version_max: 3,
            receives: 32,
            client_id: 0xc11e,
            nonce: counting(0x20),
            key_name: bytes("trainer"),
        },
        Request::Auth {
            proof: counting(0x40),
        },
        Request::Open { name: name.clone() },
        Request::Close { dataset },
        Request::Table { dataset, first: 17 },
        Request::Tokens { dataset, count: 4 },
        Request::Lookup {
            dataset,
            key: key.clone(),
        },
        Request::Alloc {
            dataset,
            operation: 42,
            value_len_bytes: 0x1_0000_0001,
            key: key.clone(),
        },
        Request::Append {
            operation: 42,
            len_bytes: 0x0010_0000,
        },
        Request::Commit {
            operation: 42,
            len_bytes: 1,
            value_crc: 0xe306_9283,
        },
        Request::Abort { operation: 42 },
        Request::Delete {
            dataset,
            operation: 43,
            key,
        },
        Request::List {
            dataset,
            cursor: 0xf0f1_f2f3_f4f5_f6f7,
            limit: 100,
        },
        Request::Stat { dataset: [0; 16] },
        Request::Renew { retired: 77 },
        Request::Load { dataset, segment: 3 },
        Request::Stage {
            dataset,
            locator: locator(),
            first_block: 5,
            block_count: 6,
        },
        Request::Release { grant: 8 },
        Request::Create { name: name.clone() },
        Request::Drop { name: name.clone() },
        Request::Rename {
            from: name.clone(),
            to: bytes("photos.v2"),
        },
        Request::Datasets { after: bytes("") },
        Request::SnapshotCreate {
            dataset,
            name: name.clone(),
        },
        Request::SnapshotDrop {
            dataset,
            name: name.clone(),
        },
        Request::Snapshots {
            dataset,
            after: name.clone(),
        },
        Request::SnapshotOpen { dataset, name },
        Request::Bye {},
    ]
}

/// One answer of each kind.
pub(crate) fn answers() -> Vec<Answer> {
    let dataset = dataset();
    let locator = locator();
    let name = bytes("photos.v1");
    vec![
        Answer::Hello {
            version: 1,
            receives: 32,
            role: Role::Write as u8,
            epoch: 7,
            nonce: counting(0x60),
        },
        Answer::Auth {
            proof: counting(0x80),
            session: 0x5e55,
            lease_ms: 10_000,
            max_lag_ms: 60_000,
            data_connections: 8,
            staging: remote(0x70),
            staging_len_bytes: 0x0040_0000,
        },
        Answer::Open {
            dataset,
            hash_key: hash_key(),
            retired: 77,
            directory: directory(),
            part_bytes: PART_MAX_BYTES,
        },
        Answer::Close {},
        Answer::Table {
            rows: vec![
                row(),
                SegmentRow {
                    state: segment_state::ACTIVE,
                    extents: vec![],
                    ..row()
                },
            ],
            next: 5,
        },
        Answer::Tokens {
            tokens: vec![counting(0x90), counting(0xa0)],
        },
        Answer::Lookup { locator },
        Answer::Alloc {
            done: 0,
            window_offset: 0x0020_0000,
            window_len_bytes: 0x0010_0000,
            sequence: 0,
            locator: Locator::default(),
        },
        Answer::Append {},
        Answer::Commit {
            sequence: 1001,
            locator,
        },
        Answer::Abort {},
        Answer::Delete {
            existed: 1,
            sequence: 1002,
        },
        Answer::List {
            entries: vec![ListEntry {
                key: bytes("a"),
                value_len_bytes: 300_000_000,
                locator,
            }],
            cursor: 0xf0f1,
            done: 0,
        },
        Answer::Stat {
            items: vec![StatItem {
                name: bytes("keys_count"),
                value: 9,
            }],
        },
        Answer::Renew {
            retired: 78,
            lease_ms: 10_000,
            changes: vec![DatasetChange {
                dataset,
                flags: change_flag::TABLE | change_flag::SNAPSHOTS,
                directory: directory(),
                ranges: vec![DirectoryRange { first: 6, count: 2 }],
                rows: vec![row()],
            }],
        },
        Answer::Load { row: row() },
        Answer::Stage {
            grant: 8,
            at: remote(0xb0),
            prefix_len_bytes: 80,
            first_block: 5,
            block_count: 6,
        },
        Answer::Release {},
        Answer::Create { dataset },
        Answer::Drop {},
        Answer::Rename {},
        Answer::Datasets {
            items: vec![DatasetItem {
                name: name.clone(),
                dataset,
                keys: 9,
                value_bytes: 10,
            }],
            done: 1,
        },
        Answer::SnapshotCreate {
            generation: 1,
            sequence: 1003,
        },
        Answer::SnapshotDrop {},
        Answer::Snapshots {
            items: vec![SnapshotItem {
                name,
                generation: 1,
                sequence: 1003,
                count: 9,
            }],
            done: 1,
        },
        Answer::SnapshotOpen {
            at: remote(0xc0),
            len_bytes: 1 << 33,
            generation: 1,
        },
        Answer::Bye {},
    ]
}

pub(crate) fn transcript() -> Transcript {
    Transcript {
        version: 1,
        role: Role::Write,
        client_id: 0xc11e,
        epoch: 7,
        client_nonce: counting(0x20),
        server_nonce: counting(0x60),
    }
}
