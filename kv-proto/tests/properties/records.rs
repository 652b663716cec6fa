//! Records.

use kv_proto::hash::KeyHash;
use kv_proto::layout::*;
use kv_proto::record::{Expected, Refusal, check_prefix, judge_block, judge_prefix, judge_value};
use proptest::prelude::*;

use crate::common::*;
use crate::{Filler, check};

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
