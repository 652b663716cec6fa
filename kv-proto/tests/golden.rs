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
use kv_proto::control::{
    ANSWER, Answer, Bytes, FRAME_HEADER_BYTES, FRAME_MAX_BYTES, Request, Status, decode_answer,
    decode_request, encode_answer, encode_refusal, encode_request,
};
use kv_proto::crc::{Crc32c, block_crcs, crc32c};
use kv_proto::hash::{KeyHash, candidate_buckets, directory_index};
use kv_proto::layout::*;
use kv_proto::record::encode_head;
use zerocopy::IntoBytes;

type Lines = Vec<(String, Vec<u8>)>;

fn media_structs(lines: &mut Lines) {
    let mut push = |name: &str, bytes: &[u8]| lines.push((format!("struct {name}"), bytes.to_vec()));
    let mut name = [0; 64];
    name[..9].copy_from_slice(b"photos.v1");
    let mut segment = SegmentHeader {
        magic: SEGMENT_MAGIC,
        format: MEDIA_FORMAT,
        flags: 0,
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
        segment: 0x3132_3334,
        offset_units: 0x4142_4344,
    };
    push("OperationEntry", operation.as_bytes());
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
        reserved: [0; 16],
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
    let mut text = String::from("# Bytes of the samples in tests/common; see tests/golden.rs.\n");
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

#[test]
fn a_refusal_carries_status_and_text() {
    let mut out = Vec::new();
    encode_refusal(5, 3, Status::NoDataset, "no dataset\u{7}x", &mut out);
    let (header, refused) = decode_answer(&out).expect("it decodes");
    assert_eq!((header.kind, header.request), (3 | ANSWER, 5));
    let refused = refused.expect_err("it is a refusal");
    assert_eq!(refused.status, Status::NoDataset);
    assert_eq!(refused.text, "no datasetx", "control characters are left out");
    encode_refusal(5, 3, Status::Io, &"x".repeat(5000), &mut out);
    let (_, refused) = decode_answer(&out).expect("it decodes");
    assert_eq!(refused.expect_err("it is a refusal").text.len(), 512);
}

#[test]
fn frames_that_do_not_belong_are_refused() {
    let mut out = Vec::new();
    encode_request(1, &Request::Bye {}, &mut out).expect("it fits");
    let with = |at: usize, byte: u8| {
        let mut frame = out.clone();
        frame[at] = byte;
        decode_request(&frame).is_err()
    };
    assert!(with(0, 0), "kind 0");
    assert!(with(0, 28), "a kind past the last");
    assert!(with(1, 2), "another version");
    assert!(with(2, 1), "a status in a request");
    assert!(with(4, 1), "a length past the end");
    encode_request(1, &requests()[0], &mut out).expect("it fits");
    out[1] = 200;
    assert!(
        decode_request(&out).is_ok(),
        "hello's version byte is not looked at"
    );
    let long = Request::Open {
        name: Bytes(vec![b'x'; 4096]),
    };
    assert!(encode_request(1, &long, &mut out).is_err());
    assert!(out.is_empty());
    encode_answer(1, &Answer::Bye {}, &mut out).expect("it fits");
    out[1] = 2;
    assert!(decode_answer(&out).is_err(), "another version");
    let deep = Answer::Open {
        dataset: dataset(),
        hash_key: hash_key(),
        retired: 0,
        directory: kv_proto::control::DirectoryRef {
            depth: DIRECTORY_DEPTH_MAX + 1,
            ..directory()
        },
        part_bytes: 1,
    };
    encode_answer(1, &deep, &mut out).expect("it fits");
    assert!(decode_answer(&out).is_err(), "a directory deeper than there are");
}

#[test]
fn a_frame_is_at_most_as_long_as_a_receive() {
    let mut out = Vec::new();
    let fits = FRAME_MAX_BYTES - FRAME_HEADER_BYTES - 2;
    let name = |len| Request::Open {
        name: Bytes(vec![b'x'; len]),
    };
    encode_request(1, &name(fits), &mut out).expect("it fits exactly");
    assert_eq!(out.len(), FRAME_MAX_BYTES);
    assert!(decode_request(&out).is_ok());
    assert!(encode_request(1, &name(fits + 1), &mut Vec::new()).is_err());
    // The same frame, one byte longer in every length that it has.
    out.push(b'x');
    out[4..8].copy_from_slice(&(fits as u32 + 3).to_le_bytes());
    out[16..18].copy_from_slice(&(fits as u16 + 1).to_le_bytes());
    assert!(decode_request(&out).is_err());
}

/// The vectors of SipHash's reference implementation (`vectors_sip128`), inputs 00, 00 01, ... of growing length.
#[test]
fn siphash_agrees_with_its_reference() {
    let vectors: [[u8; 16]; 4] = [
        0xa381_7f04_ba25_a8e6_6df6_7214_c755_0293_u128.to_be_bytes(),
        0xda87_c1d8_6b99_af44_3476_5911_9b22_fc45_u128.to_be_bytes(),
        0x8177_228d_a4a4_5dc7_fca3_8bde_f60a_ffe4_u128.to_be_bytes(),
        0x9c70_b60c_5267_a94e_5f33_b6b0_2985_ed51_u128.to_be_bytes(),
    ];
    for (len, vector) in vectors.iter().enumerate() {
        let input: Vec<u8> = (0..len as u8).collect();
        let hash = KeyHash::of(&counting(0), &input);
        let bytes = [hash.slot.to_le_bytes(), hash.high.to_le_bytes()].concat();
        assert_eq!(bytes, vector, "input of {len} bytes");
    }
    let empty = KeyHash::of(&counting(0), b"");
    assert_eq!(empty.slot, 0xe6a8_25ba_047f_81a3, "as PROTOCOL.md says");
    assert_eq!(empty.high, 0x9302_55c7_1472_f66d, "as PROTOCOL.md says");
    assert_eq!(empty.tag(), 0x9302);
}

#[test]
fn bits_of_the_slot_hash_choose_entry_and_buckets() {
    let slot_hash = 0xf0c5_0000_0000_0000 | 0x2a << 6 | 0x15;
    assert_eq!(candidate_buckets(slot_hash), [0x15, 0x2a]);
    assert_eq!(candidate_buckets(0xfff), [63, 63], "they may be the same");
    assert_eq!(candidate_buckets(!0xfff), [0, 0], "no other bit counts");
    assert_eq!(directory_index(slot_hash, 0), 0);
    assert_eq!(directory_index(slot_hash, 1), 1);
    assert_eq!(directory_index(slot_hash, 16), 0xf0c5);
    assert_eq!(directory_index(slot_hash, 24), 0x00f0_c500);
    assert_eq!(
        directory_index(slot_hash, 255),
        0x00f0_c500,
        "no deeper than there are"
    );
    assert_eq!(depth_prefix(3, 5), 0x0300_0005);
}

/// The vectors of RFC 3720, B.4, and the usual check value.
#[test]
fn crc32c_agrees_with_its_rfc() {
    let up: [u8; 32] = counting(0);
    let mut down = up;
    down.reverse();
    assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
    assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
    assert_eq!(crc32c(&up), 0x46dd_794e);
    assert_eq!(crc32c(&down), 0x113f_db5c);
    assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    assert_eq!(crc32c(b""), 0);
    let mut pieces = Crc32c::new();
    pieces.update(b"1234");
    pieces.update(b"");
    pieces.update(b"56789");
    assert_eq!(pieces.finish(), 0xe306_9283);
}

#[test]
fn blocks_begin_past_the_first_64_kib() {
    assert_eq!(block_crcs(&value(BLOCK_BYTES)), Vec::<u8>::new());
    let long = value(BLOCK_BYTES + 1);
    let crcs = block_crcs(&long);
    assert_eq!(crcs[..4], crc32c(&long[..BLOCK_BYTES]).to_le_bytes());
    assert_eq!(crcs[4..], crc32c(&long[BLOCK_BYTES..]).to_le_bytes());
}

#[test]
fn a_proof_is_of_one_side_one_secret_and_one_transcript() {
    let proof = transcript().proof(Side::Client, b"secret");
    assert!(transcript().verify(Side::Client, b"secret", &proof));
    assert!(!transcript().verify(Side::Server, b"secret", &proof), "reflected");
    assert!(!transcript().verify(Side::Client, b"Secret", &proof));
    let base = transcript();
    let others = [
        kv_proto::auth::Transcript { version: 2, ..base },
        kv_proto::auth::Transcript {
            role: kv_proto::auth::Role::Admin,
            ..base
        },
        kv_proto::auth::Transcript { client_id: 1, ..base },
        kv_proto::auth::Transcript { epoch: 8, ..base },
        kv_proto::auth::Transcript {
            client_nonce: [0; 32],
            ..base
        },
        kv_proto::auth::Transcript {
            server_nonce: [0; 32],
            ..base
        },
    ];
    for other in others {
        assert!(!other.verify(Side::Client, b"secret", &proof), "{other:?}");
    }
    assert_ne!(bound_client_id(b"a", 1), bound_client_id(b"b", 1));
    assert_ne!(bound_client_id(b"a", 1), bound_client_id(b"a", 2));
}
