//! What must hold for any bytes: decoders and judges never panic, what they accept is what was written, and one wrong
//! bit is one too many.
//!
//! A failure prints its seed; `VKV_SEED=<seed> cargo test -p kv-proto --test properties` replays it.
//! `VKV_CASES` sets the number of cases.

mod common;

use std::hash::{BuildHasher, RandomState};

use common::*;
use kv_proto::bucket::{IndexRefusal, IndexScope, candidates, judge_bucket, judge_directory_entry};
use kv_proto::control::*;
use kv_proto::hash::{KeyHash, candidate_buckets, directory_index};
use kv_proto::layout::*;
use kv_proto::parts::{judge_part, part_len_bytes, part_locator};
use kv_proto::record::{
    Expected, Refusal, check_prefix, encode_head, judge_block, judge_prefix, judge_value, parse_head,
    parse_header,
};
use proptest::prelude::*;
use proptest::test_runner::{RngSeed, TestRunner};
use zerocopy::{FromBytes, IntoBytes};

/// Runs `test` on cases of `strategy`; the seed is printed first, so a failure shows it.
fn check<S: Strategy>(strategy: S, test: impl Fn(S::Value) -> Result<(), TestCaseError>)
where
    S::Value: std::fmt::Debug,
{
    let from_env = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seed = from_env("VKV_SEED").unwrap_or_else(|| RandomState::new().hash_one(0));
    println!("VKV_SEED={seed}");
    let mut runner = TestRunner::new(ProptestConfig {
        rng_seed: RngSeed::Fixed(seed),
        cases: from_env("VKV_CASES").map_or(512, |cases| cases as u32),
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    if let Err(failure) = runner.run(&strategy, test) {
        panic!("VKV_SEED={seed}: {failure}");
    }
}

/// SplitMix64: enough to fill payloads from one number.
struct Filler(u64);

impl Filler {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn raw(&mut self, len: usize, out: &mut Vec<u8>) {
        out.extend((0..len).map(|_| self.next() as u8));
    }

    /// Any bytes that a field of this type may be, by the words of PROTOCOL.md 4.2 alone.
    fn field(&mut self, name: &str, ty: &str, out: &mut Vec<u8>) {
        if name == "depth" {
            return out.push(self.below(u64::from(DIRECTORY_DEPTH_MAX) + 1) as u8);
        }
        let inner = |prefix: &str, end: &str| ty.strip_prefix(prefix).and_then(|rest| rest.strip_suffix(end));
        if let Some(item) = inner("Vec<", ">") {
            let count = self.below(4);
            out.extend_from_slice(&(count as u16).to_le_bytes());
            (0..count).for_each(|_| self.field("", item, out));
        } else if let Some(len) = inner("[u8; ", "]") {
            self.raw(len.parse().expect("a length"), out);
        } else if let Some((_, fields)) = WIRE_STRUCTS.iter().find(|(name, _)| *name == ty) {
            fields.iter().for_each(|(name, ty)| self.field(name, ty, out));
        } else {
            match ty {
                "u8" => self.raw(1, out),
                "u16" => self.raw(2, out),
                "u32" => self.raw(4, out),
                "u64" => self.raw(8, out),
                "Locator" => self.raw(16, out),
                "Bytes" => {
                    let len = self.below(200);
                    out.extend_from_slice(&(len as u16).to_le_bytes());
                    self.raw(len as usize, out);
                }
                other => panic!("the type {other} is not in PROTOCOL.md"),
            }
        }
    }

    fn frame(&mut self, kind: u8, fields: &[(&str, &str)]) -> Vec<u8> {
        let mut payload = Vec::new();
        fields
            .iter()
            .for_each(|(name, ty)| self.field(name, ty, &mut payload));
        let mut frame = vec![kind, PROTOCOL_VERSION as u8, 0, 0];
        frame.extend_from_slice(&(payload.len() as u32).to_le_bytes());
        self.raw(8, &mut frame);
        frame.extend_from_slice(&payload);
        frame
    }
}

/// Decodes `frame` both ways; what decodes must encode to the very same bytes.
fn decode_any(frame: &[u8]) -> Result<bool, TestCaseError> {
    let mut again = Vec::new();
    let mut accepted = false;
    if let Ok((header, request)) = decode_request(frame) {
        encode_request(header.request, &request, &mut again)?;
        again[1] = frame[1];
        prop_assert_eq!(&again, frame);
        accepted = true;
    }
    if let Ok((header, answer)) = decode_answer(frame) {
        prop_assert!(!accepted, "a frame is a request or an answer");
        if let Ok(answer) = answer {
            encode_answer(header.request, &answer, &mut again)?;
            again[1] = frame[1];
            prop_assert_eq!(&again, frame);
        }
        accepted = true;
    }
    Ok(accepted)
}

#[test]
fn every_frame_comes_back_from_its_bytes() {
    check(any::<u64>(), |seed| {
        let mut filler = Filler(seed);
        let sides = [(Request::SCHEMA, 0), (Answer::SCHEMA, ANSWER)];
        for (schema, flag) in sides {
            for (kind, name, fields) in schema {
                let frame = filler.frame(kind | flag, fields);
                prop_assert!(
                    frame.len() <= FRAME_MAX_BYTES,
                    "{} is {} bytes",
                    name,
                    frame.len()
                );
                prop_assert!(decode_any(&frame)?, "{} is refused", name);
                let cut = filler.below(frame.len() as u64) as usize;
                prop_assert!(!decode_any(&frame[..cut])?, "{} cut to {}", name, cut);
                let longer = [&frame[..], &[0]].concat();
                prop_assert!(!decode_any(&longer)?, "{} with a byte behind it", name);
            }
        }
        Ok(())
    });
}

#[test]
fn bytes_that_are_no_frame_never_panic() {
    let mutations = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8);
    check((any::<u64>(), mutations), |(seed, mutations)| {
        let mut filler = Filler(seed);
        let schemas = [(Request::SCHEMA, 0), (Answer::SCHEMA, ANSWER)];
        for (schema, flag) in schemas {
            let (kind, _, fields) = schema[filler.below(schema.len() as u64) as usize];
            let mut frame = filler.frame(kind | flag, fields);
            for (at, byte) in &mutations {
                let at = at.index(frame.len());
                frame[at] = *byte;
                // The length is made right again, so that the payload is reached.
                let len = (frame.len() - FRAME_HEADER_BYTES) as u32;
                frame[4..8].copy_from_slice(&len.to_le_bytes());
                decode_any(&frame)?;
            }
        }
        Ok(())
    });
    check(prop::collection::vec(any::<u8>(), 0..5000), |mut bytes| {
        decode_any(&bytes)?;
        if bytes.len() > FRAME_HEADER_BYTES {
            let len = (bytes.len() - FRAME_HEADER_BYTES) as u32;
            bytes[0] = (bytes[0] % 27 + 1) | (bytes[0] & ANSWER);
            bytes[1] = PROTOCOL_VERSION as u8;
            bytes[2..4].copy_from_slice(&[0, 0]);
            bytes[4..8].copy_from_slice(&len.to_le_bytes());
            decode_any(&bytes)?;
        }
        Ok(())
    });
}

/// A key and a value whose length is of every sort: none, short, one block, many.
fn key_and_value() -> impl Strategy<Value = (Vec<u8>, Vec<u8>)> {
    let key = prop::collection::vec(any::<u8>(), 1..=KEY_MAX_BYTES);
    let len = prop_oneof![
        Just(0),
        1..300_usize,
        Just(BLOCK_BYTES - 1),
        Just(BLOCK_BYTES),
        Just(BLOCK_BYTES + 1),
        Just(3 * BLOCK_BYTES),
    ];
    (key, len, any::<u64>()).prop_map(|(key, len, seed)| {
        let mut value = Vec::with_capacity(len);
        Filler(seed).raw(len, &mut value);
        (key, value)
    })
}

/// The judge's answer for a whole record: prefix, then value.
fn judge(prefix: &[u8], value: &[u8], expected: &Expected<'_>) -> Result<RecordHeader, Refusal> {
    let header = judge_prefix(prefix, expected)?;
    judge_value(prefix, &header, value)?;
    Ok(header)
}

#[test]
fn a_record_is_accepted_as_written_and_refused_with_one_bit_flipped() {
    let key = KeyHash::of(&hash_key(), b"x");
    assert_ne!(key.slot, key.high);
    let flips = prop::collection::vec(any::<prop::sample::Index>(), 24);
    check((key_and_value(), flips), |((key, value), flips)| {
        let locator = locator_of(&key, &value);
        let whole = [prefix(&meta(record_kind::VALUE, 0), &key, &value), value.clone()].concat();
        prop_assert_eq!(whole.len() as u64, locator.wire_len_bytes());
        let at = locator.prefix_len_bytes() as usize;
        for wanted in [Some(key.as_slice()), None] {
            let expected = Expected {
                segment_identity: IDENTITY,
                locator,
                hash_key: &hash_key(),
                key: wanted,
            };
            let header = judge(&whole[..at], &whole[at..], &expected)?;
            prop_assert_eq!(header.value_len_bytes as usize, value.len());
            for flip in &flips {
                let bit = flip.index(whole.len() * 8);
                let mut bad = whole.clone();
                bad[bit / 8] ^= 1 << (bit % 8);
                let judged = judge(&bad[..at], &bad[at..], &expected);
                prop_assert!(judged.is_err(), "bit {} flipped", bit);
            }
        }
        Ok(())
    });
}

#[test]
fn every_single_bit_of_a_small_record_counts() {
    for (key, value) in [(&b"k"[..], &b""[..]), (b"some key", &[7; 100])] {
        let locator = locator_of(key, value);
        let whole = [&prefix(&meta(record_kind::VALUE, 0), key, value)[..], value].concat();
        let at = locator.prefix_len_bytes() as usize;
        let hash_key = hash_key();
        for wanted in [Some(key), None] {
            let expected = Expected {
                segment_identity: IDENTITY,
                locator,
                hash_key: &hash_key,
                key: wanted,
            };
            assert!(judge(&whole[..at], &whole[at..], &expected).is_ok());
            for bit in 0..whole.len() * 8 {
                let mut bad = whole.clone();
                bad[bit / 8] ^= 1 << (bit % 8);
                let judged = judge(&bad[..at], &bad[at..], &expected);
                assert!(judged.is_err(), "bit {bit} flipped: {judged:?}");
            }
        }
    }
}

#[test]
fn a_record_is_refused_as_another_one() {
    check(key_and_value(), |(key, value)| {
        let prefix_bytes = prefix(&meta(record_kind::VALUE, 0), &key, &value);
        let hash_key = hash_key();
        let right = Expected {
            segment_identity: IDENTITY,
            locator: locator_of(&key, &value),
            hash_key: &hash_key,
            key: Some(&key),
        };
        prop_assert!(judge_prefix(&prefix_bytes, &right).is_ok());
        let identity = Expected {
            segment_identity: IDENTITY + 1,
            ..right
        };
        prop_assert_eq!(judge_prefix(&prefix_bytes, &identity), Err(Refusal::Stale));
        let mut other = key.clone();
        other[0] ^= 1;
        let key_differs = Expected {
            key: Some(&other),
            ..right
        };
        prop_assert_eq!(judge_prefix(&prefix_bytes, &key_differs), Err(Refusal::OtherKey));
        let mut tag_differs = Expected { key: None, ..right };
        tag_differs.locator.tag ^= 1;
        prop_assert_eq!(judge_prefix(&prefix_bytes, &tag_differs), Err(Refusal::Stale));
        let mut longer = right;
        longer.locator.value_len_bytes ^= 1;
        prop_assert!(judge_prefix(&prefix_bytes, &longer).is_err());
        let header = check_prefix(&prefix_bytes)?;
        prop_assert_eq!(
            judge_value(&prefix_bytes, &header, &[&value[..], &[0]].concat()),
            Err(Refusal::Torn)
        );
        if let Some((_, shorter)) = value.split_last() {
            prop_assert_eq!(judge_value(&prefix_bytes, &header, shorter), Err(Refusal::Torn));
        }
        Ok(())
    });
}

#[test]
fn only_values_and_heads_are_taken_for_values() {
    for kind in 0..=8 {
        let bytes = prefix(&meta(kind, 0), b"key", b"");
        let expected = Expected {
            segment_identity: IDENTITY,
            locator: locator_of(b"key", b""),
            hash_key: &hash_key(),
            key: Some(b"key"),
        };
        let served = matches!(kind, record_kind::VALUE | record_kind::HEAD);
        assert_eq!(judge_prefix(&bytes, &expected).is_ok(), served, "kind {kind}");
    }
    // A filler has no key; a locator without one must not bring its gap to light.
    let bytes = prefix(&meta(record_kind::FILLER, 0), b"", b"gap");
    let expected = Expected {
        segment_identity: IDENTITY,
        locator: locator_of(b"", b"gap"),
        hash_key: &hash_key(),
        key: None,
    };
    assert_eq!(judge_prefix(&bytes, &expected), Err(Refusal::Stale));
}

#[test]
fn blocks_of_a_value_are_judged_one_by_one() {
    let value = value(3 * BLOCK_BYTES - 5);
    let prefix = prefix(&meta(record_kind::VALUE, 0), b"key", &value);
    let header = check_prefix(&prefix).expect("as written");
    for (index, block) in value.chunks(BLOCK_BYTES).enumerate() {
        assert_eq!(judge_block(&prefix, &header, index, block), Ok(()));
        assert_eq!(
            judge_block(&prefix, &header, index + 1, block),
            Err(Refusal::Torn)
        );
        assert_eq!(
            judge_block(&prefix, &header, index, &block[1..]),
            Err(Refusal::Torn)
        );
    }
    assert_eq!(judge_block(&prefix, &header, 3, &[]), Err(Refusal::Torn));
    assert_eq!(judge_block(&prefix, &header, usize::MAX, &[]), Err(Refusal::Torn));
}

#[test]
fn parts_add_up_and_are_held_to_their_head() {
    let strategy = (1..=PART_MAX_BYTES as u32, 1..=200_u32, any::<u32>());
    check(strategy, |(part_len_bytes_each, part_count, cut)| {
        let cut = cut % part_len_bytes_each;
        let head = HeadValue {
            total_len_bytes: u64::from(part_count) * u64::from(part_len_bytes_each) - u64::from(cut),
            part_len_bytes: part_len_bytes_each,
            part_count,
            total_crc: 1,
            reserved: 0,
        };
        let refs: Vec<PartRef> = (1..=part_count)
            .map(|segment| PartRef {
                segment,
                offset_units: segment * 2,
            })
            .collect();
        let mut bytes = Vec::new();
        encode_head(&head, &refs, &mut bytes);
        let (parsed, parts) = parse_head(&bytes)?;
        prop_assert_eq!((parsed, &parts), (head, &refs));
        let mut sum = 0;
        for index in 0..part_count {
            let locator = part_locator(&locator_of(b"key", &bytes), &head, &parts, index)
                .ok_or_else(|| TestCaseError::fail("a part has no locator"))?;
            prop_assert_eq!(Some(locator.value_len_bytes), part_len_bytes(&head, index));
            prop_assert_eq!(locator.segment, index + 1);
            sum += u64::from(locator.value_len_bytes);
        }
        prop_assert_eq!(sum, head.total_len_bytes);
        prop_assert_eq!(part_len_bytes(&head, part_count), None);
        prop_assert!(parse_head(&bytes[..bytes.len() - 1]).is_err());
        prop_assert!(parse_head(&[&bytes[..], &[0]].concat()).is_err());
        Ok(())
    });
}

#[test]
fn heads_whose_numbers_disagree_are_refused() {
    let head = HeadValue {
        total_len_bytes: 9,
        part_len_bytes: 5,
        part_count: 2,
        total_crc: 0,
        reserved: 0,
    };
    let parse = |head: HeadValue| {
        let mut bytes = Vec::new();
        let parts = vec![
            PartRef {
                segment: 1,
                offset_units: 1
            };
            head.part_count as usize
        ];
        encode_head(&head, &parts, &mut bytes);
        parse_head(&bytes).is_ok()
    };
    assert!(parse(head));
    assert!(!parse(HeadValue { reserved: 1, ..head }));
    assert!(!parse(HeadValue {
        part_len_bytes: 0,
        ..head
    }));
    assert!(!parse(HeadValue {
        part_count: 0,
        total_len_bytes: 0,
        ..head
    }));
    assert!(
        !parse(HeadValue {
            total_len_bytes: 11,
            ..head
        }),
        "a third part is missing"
    );
    assert!(
        !parse(HeadValue {
            total_len_bytes: 5,
            ..head
        }),
        "the second part is empty"
    );
    let longest = PART_MAX_BYTES as u32;
    let long = |part_len_bytes| HeadValue {
        part_len_bytes,
        part_count: 1,
        ..head
    };
    assert!(parse(long(longest)));
    assert!(!parse(long(longest + 1)), "longer than any record may be");
    let many = |part_count: u32| HeadValue {
        part_count,
        total_len_bytes: 5 * u64::from(part_count),
        ..head
    };
    assert!(parse(many(PARTS_MAX)));
    assert!(!parse(many(PARTS_MAX + 1)));
}

#[test]
fn a_part_of_another_number_attempt_or_kind_is_refused() {
    let head = check_prefix(&prefix(&meta(record_kind::HEAD, 0), b"key", b"head")).expect("as written");
    let hash_key = hash_key();
    let expected = Expected {
        segment_identity: IDENTITY,
        locator: locator_of(b"key", b"part"),
        hash_key: &hash_key,
        key: Some(b"key"),
    };
    let part = meta(record_kind::PART, 6);
    let judge = |meta, head: &RecordHeader| judge_part(&prefix(&meta, b"key", b"part"), &expected, head, 6);
    assert!(judge(part, &head).is_ok());
    let mut older = part;
    older.sequence -= 1;
    assert!(judge(older, &head).is_ok(), "written before its head");
    let mut bad = [part; 5];
    bad[0].kind = record_kind::VALUE;
    bad[0].part = 0;
    bad[1].part = 7;
    bad[2].client_id += 1;
    bad[3].operation += 1;
    bad[4].sequence += 1;
    for meta in bad {
        assert_eq!(judge(meta, &head), Err(Refusal::Stale), "{meta:?}");
    }
}

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
