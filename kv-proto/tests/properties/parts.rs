//! Heads and parts of large values.

use kv_proto::layout::*;
use kv_proto::parts::{judge_part, part_len_bytes, part_locator};
use kv_proto::record::{Expected, Refusal, check_prefix, encode_head, parse_head};
use proptest::prelude::*;

use crate::check;
use crate::common::*;

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
