//! Lists of records and operations: what FOOTERs and checkpoints hold.

use kv_proto::footer::{encode_list, parse_list};
use kv_proto::layout::{FooterEntry, FooterHeader, OperationEntry};
use proptest::prelude::*;
use zerocopy::{FromBytes, IntoBytes};

use crate::check;

/// Bytes that begin at a multiple of 8 in memory, as they must.
struct Aligned(Vec<u64>, usize);

impl Aligned {
    fn of(bytes: &[u8]) -> Self {
        let mut words = vec![0_u64; bytes.len().div_ceil(8)];
        words.as_mut_bytes()[..bytes.len()].copy_from_slice(bytes);
        Self(words, bytes.len())
    }

    fn bytes(&self) -> &[u8] {
        &self.0.as_bytes()[..self.1]
    }
}

/// Records one behind the other, and operations of any bytes.
fn lists() -> impl Strategy<Value = (Vec<FooterEntry>, Vec<OperationEntry>)> {
    let record = (
        any::<[u8; size_of::<FooterEntry>()]>(),
        1..=1024_u16,
        0..70_000_u32,
        0..5_u32,
        0..4_u8,
    );
    let operation = any::<[u8; size_of::<OperationEntry>()]>();
    let records = prop::collection::vec(record, 0..12);
    (records, prop::collection::vec(operation, 0..12)).prop_map(|(records, operations)| {
        let mut end = 1;
        let entries = records
            .into_iter()
            .map(|(bytes, key_len_bytes, value_len_bytes, gap, kind)| {
                let entry = FooterEntry {
                    offset_units: end + gap,
                    value_len_bytes,
                    key_len_bytes,
                    kind: 1 + kind % 3,
                    reserved: 0,
                    ..FooterEntry::read_from_bytes(&bytes).unwrap()
                };
                end = entry.end_units() as u32;
                entry
            });
        let operations = operations
            .iter()
            .map(|bytes| OperationEntry::read_from_bytes(bytes).unwrap());
        (entries.collect(), operations.collect())
    })
}

#[test]
fn a_list_is_what_was_listed_and_nothing_may_be_missing_or_more() {
    check((lists(), any::<u32>()), |((entries, operations), at)| {
        let mut list = Vec::new();
        encode_list(&entries, &operations, &mut list);
        let whole = Aligned::of(&list);
        let (found, of) = parse_list(whole.bytes())?;
        prop_assert_eq!(found.as_bytes(), entries.as_bytes());
        prop_assert_eq!(of.as_bytes(), operations.as_bytes());
        let cut = Aligned::of(&list[..at as usize % list.len()]);
        prop_assert!(parse_list(cut.bytes()).is_err());
        let longer = Aligned::of(&[&list[..], &[0; 8]].concat());
        prop_assert!(parse_list(longer.bytes()).is_err());
        Ok(())
    });
}

#[test]
fn what_is_read_of_any_bytes_is_what_they_say() {
    let bytes = prop::collection::vec(any::<u8>(), 0..600);
    check(
        (bytes, lists(), any::<u16>(), 0..8_u32, 0..8_u32),
        |(mut bytes, lists, at, records, operations)| {
            let _ = parse_list(Aligned::of(&bytes).bytes());
            // Bytes of a list in front, more or fewer of them, and counts that the length may agree with: each check is reached.
            let mut list = Vec::new();
            encode_list(&lists.0, &lists.1, &mut list);
            let kept = usize::from(at) % (list.len() + 1);
            bytes.splice(..kept.min(bytes.len()), list[..kept].iter().copied());
            let header = FooterHeader {
                entries: records,
                operations,
                reserved: 0,
            };
            let counted = [header.as_bytes(), &bytes].concat();
            let need = kv_proto::footer::list_len(records as usize, operations as usize);
            for bytes in [&bytes[..], &counted, &counted[..need.min(counted.len())]] {
                let bytes = Aligned::of(bytes);
                if let Ok((entries, operations)) = parse_list(bytes.bytes()) {
                    let mut again = Vec::new();
                    encode_list(entries, operations, &mut again);
                    prop_assert_eq!(again, bytes.bytes());
                }
            }
            Ok(())
        },
    );
}
