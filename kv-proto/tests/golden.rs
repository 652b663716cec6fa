//! The encoding does not move: the bytes of every struct, record, checksum, frame and proof are those in `golden.txt`.
//!
//! `VKV_UPDATE_GOLDEN=1 cargo test -p kv-proto --test golden` writes the file anew; a change of it is a change of the
//! protocol or of the media, and needs a new version.

mod common;

use std::fmt::Write as _;
use std::path::Path;

use common::*;
use kv_proto::auth::{Side, bound_client_id};
use kv_proto::bucket::{candidates, judge_bucket, judge_directory_entry};
use kv_proto::catalogue::encode_catalogue;
use kv_proto::control::{
    ANSWER, Answer, Request, Status, decode_answer, decode_request, encode_answer, encode_refusal,
    encode_request,
};
use kv_proto::crc::crc32c;
use kv_proto::hash::{KeyHash, candidate_buckets, directory_index};
use kv_proto::layout::*;
use kv_proto::record::encode_head;
use kv_proto::segment_list::encode_segments;
use zerocopy::IntoBytes;

type Lines = Vec<(String, Vec<u8>)>;

fn media_structs(lines: &mut Lines) {
    let mut push = |name: &str, bytes: &[u8]| lines.push((format!("struct {name}"), bytes.to_vec()));
    let mut name = [0; 64];
    name[..9].copy_from_slice(b"photos.v1");
    let mut segment = SegmentHeader {
        magic: SEGMENT_MAGIC,
        format: MEDIA_FORMAT,
        flags: segment_flag::FULL_LENGTH,
        segment: 3,
        reserved: 0,
        identity: IDENTITY,
        dataset: dataset(),
        epoch: 7,
        limit_bytes: SEGMENT_DEFAULT_BYTES,
        reserved2: 0,
        crc: 0,
    };
    segment.crc = crc32c(&segment.as_bytes()[..60]);
    push("SegmentHeader", segment.as_bytes());
    let mut trailer = SegmentTrailer {
        magic: TRAILER_MAGIC,
        format: MEDIA_FORMAT,
        flags: 0,
        segment: 3,
        sealed_units: 0x0001_0203,
        identity: IDENTITY,
        footer_units: 0x0001_0204,
        footer_count: 2,
        sequence_min: 5,
        sequence_max: 0x0102_0304_0506_0708,
        reserved: [0; 12],
        crc: 0,
    };
    trailer.crc = crc32c(&trailer.as_bytes()[..60]);
    push("SegmentTrailer", trailer.as_bytes());
    trailer.flags = trailer_flag::CUT;
    trailer.crc = crc32c(&trailer.as_bytes()[..60]);
    push("SegmentTrailer of a file that was cut", trailer.as_bytes());
    let footer = FooterHeader {
        entries: 0x0a0b_0c0d,
        operations: 0x1a1b_1c1d,
        reserved: 0,
    };
    push("FooterHeader", footer.as_bytes());
    let entry = FooterEntry {
        hash: 0x0102_0304_0506_0708,
        hash_high: 0x1112_1314_1516_1718,
        sequence: 0x2122_2324_2526_2728,
        offset_units: 0x3132_3334,
        value_len_bytes: 0x4142_4344,
        part: 0x5152_5354,
        key_len_bytes: 0x6162,
        kind: record_kind::PART,
        reserved: 0,
    };
    push("FooterEntry", entry.as_bytes());
    let operation = OperationEntry {
        client_id: 0x0102_0304_0506_0708,
        operation: 0x1112_1314_1516_1718,
        sequence: 0x2122_2324_2526_2728,
        locator: locator(),
    };
    push("OperationEntry", operation.as_bytes());
    let floor = OperationEntry {
        sequence: 0,
        locator: Locator::default(),
        ..operation
    };
    push("OperationEntry of what is forgotten", floor.as_bytes());
    let body = [footer.as_bytes(), entry.as_bytes(), operation.as_bytes()].concat();
    let mut checkpoint = CheckpointHeader {
        magic: CHECKPOINT_MAGIC,
        format: MEDIA_FORMAT,
        flags: 0,
        segment: 3,
        covered_units: 0x0001_0203,
        identity: IDENTITY,
        body_len_bytes: body.len() as u64,
        sequence_max: 0x0102_0304_0506_0708,
        from_units: 0x0001_0102,
        reserved: [0; 12],
        body_crc: crc32c(&body),
        crc: 0,
    };
    checkpoint.crc = crc32c(&checkpoint.as_bytes()[..60]);
    push("CheckpointHeader", checkpoint.as_bytes());
    let mut superblock = Superblock {
        magic: SUPERBLOCK_MAGIC,
        format: MEDIA_FORMAT,
        flags: 0,
        server: counting(0x50),
        epoch: 7,
        segment_next: 0x0a0b_0c0d,
        reserved: [0; 24],
        crc: 0,
    };
    superblock.crc = crc32c(&superblock.as_bytes()[..60]);
    push("Superblock", superblock.as_bytes());
    let mut description = DatasetDescription {
        magic: DATASET_MAGIC,
        format: MEDIA_FORMAT,
        name_len_bytes: 9,
        dataset: dataset(),
        hash_key: hash_key(),
        name,
        segment_bytes: SEGMENT_DEFAULT_BYTES,
        part_bytes: PART_MAX_BYTES,
        reserved: 0,
        crc: 0,
    };
    description.crc = crc32c(&description.as_bytes()[..124]);
    push("DatasetDescription", description.as_bytes());
    push("CatalogueHeader, one dataset", &encode_catalogue(&[description]));
    push(
        "SegmentListHeader, two numbers",
        &encode_segments(dataset(), &[3, 0x0a0b_0c0d]),
    );
    let mut snapshot = SnapshotHeader {
        magic: SNAPSHOT_MAGIC,
        format: MEDIA_FORMAT,
        name_len_bytes: 9,
        generation: 2,
        dataset: dataset(),
        sequence: 1003,
        count: 9,
        name,
        reserved: [0; 8],
        reserved2: 0,
        crc: 0,
    };
    snapshot.crc = crc32c(&snapshot.as_bytes()[..124]);
    push("SnapshotHeader", snapshot.as_bytes());
    push("SnapshotEntry", SnapshotEntry { locator: locator() }.as_bytes());
    push("Locator", locator().as_bytes());
    let global = GlobalLocator {
        dataset: dataset(),
        locator: locator(),
    };
    push("GlobalLocator", global.as_bytes());
    for (name, kind) in [("control", connect_kind::CONTROL), ("data", connect_kind::DATA)] {
        let data = kind == connect_kind::DATA;
        let request = ConnectRequest {
            magic: CONNECT_MAGIC,
            version: PROTOCOL_VERSION,
            kind,
            reserved: 0,
            session: if data { 0x5e55 } else { 0 },
            token: if data { counting(0x90) } else { [0; 16] },
        };
        push(&format!("ConnectRequest {name}"), request.as_bytes());
    }
}

fn records(lines: &mut Lines) {
    let mut push = |name: &str, bytes: Vec<u8>| lines.push((format!("record {name}"), bytes));
    let short = value(100);
    push(
        "value",
        [prefix(&meta(record_kind::VALUE, 0), b"key", &short), short].concat(),
    );
    push("empty value", prefix(&meta(record_kind::VALUE, 0), b"k", b""));
    let long = value(BLOCK_BYTES * 2 + 1);
    push(
        "prefix of 131073 bytes",
        prefix(&meta(record_kind::VALUE, 0), b"key", &long),
    );
    push("tombstone", prefix(&meta(record_kind::TOMBSTONE, 1), b"key", b""));
    push(
        "part",
        [
            prefix(&meta(record_kind::PART, 1), b"key", b"part"),
            b"part".to_vec(),
        ]
        .concat(),
    );
    let head = HeadValue {
        total_len_bytes: 9,
        part_len_bytes: 5,
        part_count: 2,
        total_crc: 0x0a0b_0c0d,
        reserved: 0,
    };
    let parts = [1, 2].map(|segment| PartRef {
        segment,
        offset_units: 0x1000 + segment,
    });
    let mut head_value = Vec::new();
    encode_head(&head, &parts, &mut head_value);
    push(
        "head",
        [
            prefix(&meta(record_kind::HEAD, 0), b"key", &head_value),
            head_value,
        ]
        .concat(),
    );
    let mut filler = RecordHeader {
        magic: RECORD_MAGIC,
        format: MEDIA_FORMAT,
        kind: record_kind::FILLER,
        flags: 0,
        key_len_bytes: 0,
        reserved: 0,
        value_len_bytes: 64 * 9,
        sequence: 0,
        segment_identity: IDENTITY,
        client_id: 0,
        operation: 0,
        durable_units: 0x00d0_0d00,
        value_crc: 0,
        part: 0,
        header_crc: 0,
    };
    filler.header_crc = crc32c(&filler.as_bytes()[..60]);
    push("filler of 640 bytes", filler.as_bytes().to_vec());
}

fn index(lines: &mut Lines) {
    let hash = KeyHash::of(&hash_key(), b"key");
    let mut halves = hash.slot.to_le_bytes().to_vec();
    halves.extend_from_slice(&hash.high.to_le_bytes());
    lines.push(("hash of key, slot then high".into(), halves));
    let [first, second] = candidate_buckets(hash.slot);
    lines.push(("candidate buckets of key".into(), vec![first as u8, second as u8]));
    let mut bucket = bucket(hash);
    let mut entry = directory_entry(&bucket);
    let at = directory_index(hash.slot, 4);
    entry.checksum = scope().directory_checksum(9, at, &entry);
    bucket.checksum = scope().bucket_checksum(entry.group, first, &bucket);
    assert_eq!(judge_directory_entry(&scope(), 9, 4, at, &entry), Ok(()));
    assert_eq!(judge_bucket(&scope(), &entry, first, &bucket, hash), Ok(()));
    let key_len = usize::from(locator().key_len_bytes);
    assert_eq!(candidates(&bucket, hash, key_len).count(), 1);
    lines.push((
        format!("directory entry {at} of version 9"),
        entry.as_bytes().to_vec(),
    ));
    lines.push((format!("bucket {first}"), bucket.as_bytes().to_vec()));
}

fn frames(lines: &mut Lines) {
    let mut out = Vec::new();
    for (number, request) in (1..).zip(requests()) {
        encode_request(number, &request, &mut out).expect("a sample fits a frame");
        lines.push((format!("request {}", request.name()), out.clone()));
    }
    for (number, answer) in (1..).zip(answers()) {
        encode_answer(number, &answer, &mut out).expect("a sample fits a frame");
        lines.push((format!("answer {}", answer.name()), out.clone()));
    }
    encode_refusal(5, 3, Status::NoDataset, "no dataset x", &mut out);
    lines.push(("refusal of Open".into(), out.clone()));
}

fn proofs(lines: &mut Lines) {
    for side in [Side::Client, Side::Server] {
        let proof = transcript().proof(side, b"secret").to_vec();
        lines.push((format!("proof {side:?}"), proof));
    }
    let bound = bound_client_id(b"trainer", 0xc11e).to_le_bytes();
    lines.push(("bound client id".into(), bound.to_vec()));
}

fn golden() -> Lines {
    let mut lines = Vec::new();
    media_structs(&mut lines);
    records(&mut lines);
    index(&mut lines);
    frames(&mut lines);
    proofs(&mut lines);
    lines
}

fn hex(bytes: &[u8]) -> String {
    let mut out = String::new();
    for byte in bytes {
        let _ = write!(out, "{byte:02x}");
    }
    out
}

fn golden_path() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden.txt")
}

#[test]
fn bytes_are_the_golden_ones() {
    let mut text = String::from(
        "# Bytes of the samples in tests/common; see tests/golden.rs. Dataset d0..df in hexadecimal, hash key 00..0f, epoch 7, key \"key\", secret \"secret\"\n# (proofs take any; a key file's has 32 bytes). The second slot of the bucket is there to fill it.\n",
    );
    for (name, bytes) in golden() {
        let _ = writeln!(text, "{name} = {}", hex(&bytes));
    }
    if std::env::var_os("VKV_UPDATE_GOLDEN").is_some() {
        std::fs::write(golden_path(), &text).expect("golden.txt can be written");
        return;
    }
    let pinned = std::fs::read_to_string(golden_path()).expect("tests/golden.txt is there");
    for (line, (ours, theirs)) in text.lines().zip(pinned.lines()).enumerate() {
        assert_eq!(ours, theirs, "line {} of golden.txt", line + 1);
    }
    assert_eq!(text.lines().count(), pinned.lines().count());
}

#[test]
fn there_is_a_sample_of_every_frame() {
    let kinds: Vec<u8> = requests().iter().map(Request::kind).collect();
    let all: Vec<u8> = Request::SCHEMA.iter().map(|(kind, ..)| *kind).collect();
    assert_eq!(kinds, all);
    let kinds: Vec<u8> = answers().iter().map(Answer::kind).collect();
    let all: Vec<u8> = Answer::SCHEMA.iter().map(|(kind, ..)| *kind).collect();
    assert_eq!(kinds, all);
}

#[test]
fn samples_come_back_from_their_bytes() {
    let mut out = Vec::new();
    for request in requests() {
        encode_request(99, &request, &mut out).expect("a sample fits a frame");
        let (header, decoded) = decode_request(&out).expect("it decodes");
        assert_eq!((header.request, header.kind), (99, request.kind()));
        assert_eq!(decoded, request);
        assert!(decode_answer(&out).is_err(), "a request is no answer");
    }
    for answer in answers() {
        encode_answer(99, &answer, &mut out).expect("a sample fits a frame");
        let (header, decoded) = decode_answer(&out).expect("it decodes");
        assert_eq!((header.request, header.kind), (99, answer.kind() | ANSWER));
        assert_eq!(decoded, Ok(answer));
        assert!(decode_request(&out).is_err(), "an answer is no request");
    }
}
