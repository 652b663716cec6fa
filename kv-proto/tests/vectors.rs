//! Published vectors of hash and CRC, and frames and proofs at the edge of what is accepted.

mod common;

use common::*;
use kv_proto::auth::{Side, bound_client_id};
use kv_proto::control::{
    ANSWER, Answer, Bytes, FRAME_HEADER_BYTES, FRAME_MAX_BYTES, Request, Status, decode_answer,
    decode_request, encode_answer, encode_refusal, encode_request,
};
use kv_proto::crc::{Crc32c, block_crcs, crc32c};
use kv_proto::hash::{KeyHash, candidate_buckets, directory_index, first_hash, position};
use kv_proto::layout::*;

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
    assert_eq!(position(slot_hash), 0xf4a7_bb40);
    assert_eq!(directory_index(slot_hash, 0), 0);
    assert_eq!(directory_index(slot_hash, 1), 1);
    assert_eq!(directory_index(slot_hash, 16), 0xf4a7);
    assert_eq!(directory_index(slot_hash, 24), 0x00f4_a7bb);
    assert_eq!(
        directory_index(slot_hash, 255),
        0x00f4_a7bb,
        "no deeper than there are"
    );
    assert_eq!(depth_prefix(3, 5), 0x0300_0005);
}

#[test]
fn positions_are_close_to_the_logarithm() {
    for step in 0..1_u64 << 16 {
        let slot_hash = step << 48;
        let exact = (1.0 + step as f64 / f64::from(1 << 16)).log2();
        let off = f64::from(position(slot_hash)) / f64::from(u32::MAX) - exact;
        assert!(off.abs() < 0.003, "{slot_hash:x}: off by {off}");
    }
    assert_eq!((position(0), position(u64::MAX)), (0, u32::MAX));
    assert_eq!(first_hash(0), 0);
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
