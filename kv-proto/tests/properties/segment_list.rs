//! Lists of segments.

use std::collections::BTreeSet;

use kv_proto::crc::crc32c;
use kv_proto::segment_list::{encode_segments, parse_segments};
use proptest::prelude::*;

use crate::check;
use crate::common::*;

fn segments() -> impl Strategy<Value = Vec<u32>> {
    prop::collection::btree_set(1..=u32::MAX, 0..40).prop_map(|set: BTreeSet<u32>| set.into_iter().collect())
}

/// Gives a list, whatever it holds, the CRC that it should have.
fn with_its_crc(list: &mut [u8]) {
    if list.len() >= 32 {
        let crc = crc32c(&[&list[..28], &list[32..]].concat());
        list[28..32].copy_from_slice(&crc.to_le_bytes());
    }
}

#[test]
fn a_list_is_what_was_listed_and_no_bit_of_it_may_flip() {
    check((segments(), any::<u32>()), |(segments, at)| {
        let list = encode_segments(dataset(), &segments);
        prop_assert_eq!(parse_segments(&list, dataset())?, segments);
        prop_assert!(parse_segments(&list, counting(3)).is_err(), "of another dataset");
        let mut flipped = list.clone();
        let bit = at as usize % (8 * list.len());
        flipped[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(parse_segments(&flipped, dataset()).is_err());
        prop_assert!(parse_segments(&list[..bit / 8], dataset()).is_err());
        let longer = [&list[..], &[0]].concat();
        prop_assert!(parse_segments(&longer, dataset()).is_err());
        Ok(())
    });
}

#[test]
fn what_is_read_of_any_bytes_is_what_they_say() {
    let bytes = prop::collection::vec(any::<u8>(), 0..120);
    check((bytes, segments(), any::<u16>()), |(mut bytes, segments, at)| {
        // Bytes of a list in front, more or fewer of them, so that each check is reached.
        let list = encode_segments(dataset(), &segments);
        let kept = usize::from(at) % (list.len() + 1);
        let _ = parse_segments(&bytes, dataset());
        bytes.splice(..kept.min(bytes.len()), list[..kept].iter().copied());
        with_its_crc(&mut bytes);
        if let Ok(read) = parse_segments(&bytes, dataset()) {
            prop_assert_eq!(encode_segments(dataset(), &read), bytes);
        }
        Ok(())
    });
}

/// Fields outside their ranges, each in a list whose CRC agrees.
#[test]
fn a_list_that_says_what_cannot_be_is_refused() {
    for at in 0..28 {
        let mut list = encode_segments(dataset(), &[3, 9]);
        list[at] ^= 0x20;
        with_its_crc(&mut list);
        assert!(parse_segments(&list, dataset()).is_err(), "byte {at}");
    }
    for numbers in [&[0_u32, 3][..], &[9, 3], &[3, 3]] {
        let list = encode_segments(dataset(), numbers);
        assert!(parse_segments(&list, dataset()).is_err(), "{numbers:?}");
    }
}
