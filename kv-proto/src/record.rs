//! Building a record, and judging one that was read.
//!
//! A record is header, key, block CRCs, value, and zeroes up to a multiple of 64 bytes. A reader fetches all but the
//! zeroes, in one READ, with header, key and block CRCs (the *prefix*) going to its scratch and the value to its place.
//! The judging here is **I4**: nothing of a record is used before [`judge_prefix`], and nothing of its value before
//! [`judge_value`] or [`judge_block`].

use core::mem::size_of;

use zerocopy::{FromBytes, IntoBytes};

use crate::DecodeError;
use crate::crc::{Crc32c, crc32c, crc32c_of_both};
use crate::hash::KeyHash;
use crate::layout::{
    BLOCK_BYTES, HeadValue, KEY_MAX_BYTES, Locator, MEDIA_FORMAT, PART_MAX_BYTES, PARTS_MAX, PartRef,
    RECORD_MAGIC, RecordHeader, block_count, prefix_len, record_kind,
};

const HEADER_BYTES: usize = size_of::<RecordHeader>();

/// What the writer of a record decides; lengths and CRCs follow from key and value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordMeta {
    /// One of [`record_kind`].
    pub kind: u8,
    /// Number of the part, or of the footer record.
    pub part: u32,
    /// Sequence of the operation.
    pub sequence: u64,
    /// Identity of the segment written to.
    pub segment_identity: u64,
    /// Client that wrote it.
    pub client_id: u64,
    /// Its number for the operation.
    pub operation: u64,
    /// Length of the segment made durable by the sync before, in units of 64 bytes.
    pub durable_units: u32,
}

/// Appends header, key and block CRCs of a record to `out`; the value goes right behind.
///
/// `value_crc` is the CRC32C of the value and `block_crcs` what [`crate::crc::block_crcs`] gives for it.
pub fn encode_prefix(
    meta: &RecordMeta,
    key: &[u8],
    value_len_bytes: u32,
    value_crc: u32,
    block_crcs: &[u8],
    out: &mut Vec<u8>,
) {
    debug_assert_eq!(
        block_crcs.len() as u64,
        4 * block_count(u64::from(value_len_bytes))
    );
    let mut header = RecordHeader {
        magic: RECORD_MAGIC,
        format: MEDIA_FORMAT,
        kind: meta.kind,
        flags: 0,
        key_len_bytes: key.len() as u16,
        reserved: 0,
        value_len_bytes,
        sequence: meta.sequence,
        segment_identity: meta.segment_identity,
        client_id: meta.client_id,
        operation: meta.operation,
        durable_units: meta.durable_units,
        value_crc,
        part: meta.part,
        header_crc: 0,
    };
    header.header_crc = header_crc(&header, key, block_crcs);
    out.extend_from_slice(header.as_bytes());
    out.extend_from_slice(key);
    out.extend_from_slice(block_crcs);
}

fn header_crc(header: &RecordHeader, key: &[u8], block_crcs: &[u8]) -> u32 {
    let mut crc = Crc32c::new();
    crc.update(&header.as_bytes()[..HEADER_BYTES - 4]);
    crc.update(key);
    crc.update(block_crcs);
    crc.finish()
}

/// Header of a record whose every field is in range; its CRC is not checked yet.
///
/// # Errors
/// [`DecodeError`] if `bytes` are fewer than 64 or a field is outside its range.
pub fn parse_header(bytes: &[u8]) -> Result<RecordHeader, DecodeError> {
    const WHAT: &str = "record header";
    let (header, _) = RecordHeader::read_from_prefix(bytes).map_err(|_| DecodeError::Short {
        what: WHAT,
        need: HEADER_BYTES,
        have: bytes.len(),
    })?;
    let range = |field, value| {
        Err(DecodeError::Range {
            what: WHAT,
            field,
            value,
        })
    };
    if header.magic != RECORD_MAGIC {
        return range("magic", u64::from(header.magic));
    }
    if header.format != MEDIA_FORMAT {
        return range("format", u64::from(header.format));
    }
    let keyless = match header.kind {
        record_kind::VALUE | record_kind::PART | record_kind::HEAD | record_kind::TOMBSTONE => false,
        record_kind::FILLER | record_kind::FOOTER => true,
        kind => return range("kind", u64::from(kind)),
    };
    let key_len = usize::from(header.key_len_bytes);
    if keyless != (key_len == 0) || key_len > KEY_MAX_BYTES {
        return range("key_len_bytes", key_len as u64);
    }
    if header.kind == record_kind::TOMBSTONE && header.value_len_bytes != 0 {
        return range("value_len_bytes", u64::from(header.value_len_bytes));
    }
    let part_end = match header.kind {
        record_kind::PART => PARTS_MAX,
        record_kind::TOMBSTONE => 2,
        record_kind::FOOTER => u32::MAX,
        _ => 1,
    };
    if header.part >= part_end {
        return range("part", u64::from(header.part));
    }
    if header.flags != 0 {
        return range("flags", u64::from(header.flags));
    }
    if header.reserved != 0 {
        return range("reserved", u64::from(header.reserved));
    }
    Ok(header)
}

/// Bytes before the value of the record with this header; for FILLER the header alone.
#[inline]
#[must_use]
pub fn header_prefix_len(header: &RecordHeader) -> u64 {
    if header.kind == record_kind::FILLER {
        HEADER_BYTES as u64
    } else {
        prefix_len(u64::from(header.key_len_bytes), u64::from(header.value_len_bytes))
    }
}

/// Header of the record whose prefix is `prefix`, its CRC checked.
///
/// # Errors
/// [`DecodeError`] if a field is outside its range, `prefix` is not exactly as long as the header says, or the CRC
/// does not agree.
pub fn check_prefix(prefix: &[u8]) -> Result<RecordHeader, DecodeError> {
    let header = parse_header(prefix)?;
    check_crc(prefix, &header)?;
    Ok(header)
}

/// Whether `prefix` is as long as its header says, and has its CRC.
fn check_crc(prefix: &[u8], header: &RecordHeader) -> Result<(), DecodeError> {
    const WHAT: &str = "record prefix";
    let need = header_prefix_len(header) as usize;
    let Some((bytes, rest)) = prefix.split_first_chunk().filter(|_| prefix.len() >= need) else {
        return Err(DecodeError::Short {
            what: WHAT,
            need,
            have: prefix.len(),
        });
    };
    if prefix.len() > need {
        return Err(DecodeError::Trailing {
            what: WHAT,
            extra: prefix.len() - need,
        });
    }
    let computed = prefix_crc(bytes, rest);
    if computed != header.header_crc {
        return Err(DecodeError::Checksum {
            what: WHAT,
            found: u64::from(header.header_crc),
            computed: u64::from(computed),
        });
    }
    Ok(())
}

/// CRC of a header but for its last field, and of what comes behind it.
#[inline]
fn prefix_crc(header: &[u8; HEADER_BYTES], rest: &[u8]) -> u32 {
    let (counted, _) = header.as_chunks::<{ HEADER_BYTES - 4 }>();
    crc32c_of_both(&counted[0], rest)
}

/// First and last half of what is 16 to 32 bytes long, as most keys are; they overlap.
#[inline]
fn halves(bytes: &[u8]) -> Option<[&[u8; 16]; 2]> {
    (bytes.len() <= 32).then_some([bytes.first_chunk()?, bytes.last_chunk()?])
}

/// Whether two keys are the same; of the lengths that keys have most often without a call.
#[inline]
fn is_same(one: &[u8], other: &[u8]) -> bool {
    if one.len() != other.len() {
        return false;
    }
    match (halves(one), halves(&other[..one.len()])) {
        (Some(first), Some(second)) => first == second,
        _ => one == other,
    }
}

/// Why bytes that were read are not the record that was wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The bytes are no whole record: overwritten while they were read, or not written yet. Read again.
    #[error("bytes are torn: a checksum does not agree")]
    Torn,
    /// A whole record, of another segment or of another place: the locator or the segment table is stale. Refresh.
    #[error("record of another segment or place: the locator is stale")]
    Stale,
    /// The record that the locator names, of a key with the same hash. Look on.
    #[error("record of another key with the same hash")]
    OtherKey,
}

/// What a reader knows of the record that it wants.
#[derive(Debug, Clone, Copy)]
pub struct Expected<'a> {
    /// Identity that the segment table gives for the locator's segment.
    pub segment_identity: u64,
    /// The locator that was followed.
    pub locator: Locator,
    /// Hash key of the dataset.
    pub hash_key: &'a [u8; 16],
    /// The caller's key, where it gave one.
    pub key: Option<&'a [u8]>,
}

/// Judges the prefix of a VALUE or HEAD that was read (**I4** up to the value). A PART is refused here: its own
/// judge, [`crate::parts::judge_part`], also holds it to its head.
///
/// # Errors
/// [`Refusal`]: which of the remedies applies.
#[inline]
pub fn judge_prefix(prefix: &[u8], expected: &Expected<'_>) -> Result<RecordHeader, Refusal> {
    match wanted(prefix, expected) {
        Some(header) => Ok(*header),
        None => judge_other(prefix, expected),
    }
}

/// Judges a VALUE or HEAD that was read at once (**I4**): as [`judge_prefix`], and for a VALUE as [`judge_value`], unless
/// the caller wants its value unchecked and gives none. Tells which of the two kinds it is.
///
/// # Errors
/// As theirs.
#[inline(always)]
pub fn judge_whole(prefix: &[u8], value: Option<&[u8]>, expected: &Expected<'_>) -> Result<u8, Refusal> {
    match wanted(prefix, expected) {
        Some(header) => {
            if let Some(value) = value {
                judge_value(prefix, header, value)?;
            }
            Ok(record_kind::VALUE)
        }
        // A copy of its own, so that the other one need not lie in memory.
        None => judge_other_whole(prefix, value, &{ *expected }),
    }
}

#[cold]
fn judge_other_whole(prefix: &[u8], value: Option<&[u8]>, expected: &Expected<'_>) -> Result<u8, Refusal> {
    let header = judge_other(prefix, expected)?;
    if header.kind == record_kind::VALUE
        && let Some(value) = value
    {
        judge_value(prefix, &header, value)?;
    }
    Ok(header.kind)
}

/// The header, if `prefix` is that of a VALUE which is wanted in every respect: what nearly always comes, judged in few
/// steps. What it takes [`judge_other`] takes too, which alone says what is wrong with the rest.
#[inline(always)]
fn wanted<'p>(prefix: &'p [u8], expected: &Expected<'_>) -> Option<&'p RecordHeader> {
    let locator = &expected.locator;
    let (bytes, rest) = prefix.split_first_chunk::<HEADER_BYTES>()?;
    let header = RecordHeader::ref_from_bytes(bytes).ok()?;
    let key_len = usize::from(locator.key_len_bytes);
    let is_wanted = header.start() == RecordHeader::start_of(record_kind::VALUE, locator)
        && header.part == 0
        && header.segment_identity == expected.segment_identity
        && (1..=KEY_MAX_BYTES).contains(&key_len)
        && prefix.len() as u64 == locator.prefix_len_bytes();
    let key = rest.get(..key_len).filter(|_| is_wanted)?;
    let is_key = match expected.key {
        // Equal keys have equal tags: hashing again is for those who come with a locator alone.
        Some(wanted) => is_same(key, wanted),
        None => KeyHash::of(expected.hash_key, key).tag() == locator.tag,
    };
    // The last of all: until then little is kept in registers, and the call clears those.
    (is_key && prefix_crc(bytes, rest) == header.header_crc).then_some(header)
}

/// As [`judge_prefix`], step by step.
#[cold]
fn judge_other(prefix: &[u8], expected: &Expected<'_>) -> Result<RecordHeader, Refusal> {
    let header = judge_record(prefix, expected)?;
    match header.kind {
        record_kind::VALUE | record_kind::HEAD => Ok(header),
        _ => Err(Refusal::Stale),
    }
}

/// Judges the prefix of a record of any kind.
pub(crate) fn judge_record(prefix: &[u8], expected: &Expected<'_>) -> Result<RecordHeader, Refusal> {
    let locator = &expected.locator;
    if prefix.len() as u64 != locator.prefix_len_bytes() {
        return Err(Refusal::Torn);
    }
    let header = match parse_header(prefix) {
        // Lengths that differ from the locator's make the CRC's extent unknown: tell torn from foreign by identity.
        Ok(header)
            if header.key_len_bytes != locator.key_len_bytes
                || header.value_len_bytes != locator.value_len_bytes =>
        {
            return Err(if header.segment_identity == expected.segment_identity {
                Refusal::Torn
            } else {
                Refusal::Stale
            });
        }
        Ok(header) => check_crc(prefix, &header)
            .map(|()| header)
            .map_err(|_| Refusal::Torn)?,
        Err(_) => return Err(Refusal::Torn),
    };
    if header.segment_identity != expected.segment_identity {
        return Err(Refusal::Stale);
    }
    let key = &prefix[HEADER_BYTES..HEADER_BYTES + usize::from(header.key_len_bytes)];
    match expected.key {
        Some(wanted) if key == wanted => {}
        Some(_) => return Err(Refusal::OtherKey),
        None if KeyHash::of(expected.hash_key, key).tag() != locator.tag => return Err(Refusal::Stale),
        None => {}
    }
    Ok(header)
}

/// The key inside a prefix that [`judge_prefix`] or [`check_prefix`] accepted.
///
/// # Panics
/// If `prefix` is shorter than `header` says.
#[must_use]
pub fn key_in<'a>(prefix: &'a [u8], header: &RecordHeader) -> &'a [u8] {
    &prefix[HEADER_BYTES..HEADER_BYTES + usize::from(header.key_len_bytes)]
}

/// Judges a whole value against its accepted prefix: by the header's CRC, or block by block where there are blocks.
///
/// # Errors
/// [`Refusal::Torn`] if a CRC or the length does not agree.
#[inline(always)]
pub fn judge_value(prefix: &[u8], header: &RecordHeader, value: &[u8]) -> Result<(), Refusal> {
    if value.len() as u64 != u64::from(header.value_len_bytes) {
        return Err(Refusal::Torn);
    }
    if value.len() <= BLOCK_BYTES {
        return if crc32c(value) == header.value_crc {
            Ok(())
        } else {
            Err(Refusal::Torn)
        };
    }
    judge_blocks(prefix, header, value)
}

fn judge_blocks(prefix: &[u8], header: &RecordHeader, value: &[u8]) -> Result<(), Refusal> {
    let mut blocks = value.chunks(BLOCK_BYTES).enumerate();
    blocks.try_for_each(|(index, block)| judge_block(prefix, header, index, block))
}

/// Judges block `index` of a value against its accepted prefix; the value has more than one block.
///
/// # Errors
/// [`Refusal::Torn`] if there is no such block, its length is not the block's, or its CRC does not agree.
pub fn judge_block(prefix: &[u8], header: &RecordHeader, index: usize, block: &[u8]) -> Result<(), Refusal> {
    let value_len = header.value_len_bytes as usize;
    let start = index.checked_mul(BLOCK_BYTES).ok_or(Refusal::Torn)?;
    let expected_len = value_len.saturating_sub(start).min(BLOCK_BYTES);
    let at = HEADER_BYTES + usize::from(header.key_len_bytes) + 4 * index;
    let crc = prefix.get(at..at + 4).ok_or(Refusal::Torn)?;
    if expected_len == 0 || block.len() != expected_len || crc32c(block).to_le_bytes() != crc {
        return Err(Refusal::Torn);
    }
    Ok(())
}

/// The value of a HEAD record: its fields and its parts.
///
/// # Errors
/// [`DecodeError`] if it is short, has bytes left over, or its numbers do not agree with each other.
pub fn parse_head(value: &[u8]) -> Result<(HeadValue, Vec<PartRef>), DecodeError> {
    const WHAT: &str = "head value";
    let short = |need| DecodeError::Short {
        what: WHAT,
        need,
        have: value.len(),
    };
    let (head, rest) = HeadValue::read_from_prefix(value).map_err(|_| short(size_of::<HeadValue>()))?;
    let range = |field, value| {
        Err(DecodeError::Range {
            what: WHAT,
            field,
            value,
        })
    };
    if head.part_count == 0 || head.part_count > PARTS_MAX {
        return range("part_count", u64::from(head.part_count));
    }
    if head.part_len_bytes == 0 || u64::from(head.part_len_bytes) > PART_MAX_BYTES {
        return range("part_len_bytes", u64::from(head.part_len_bytes));
    }
    if head.total_len_bytes.div_ceil(u64::from(head.part_len_bytes)) != u64::from(head.part_count) {
        return range("total_len_bytes", head.total_len_bytes);
    }
    if head.reserved != 0 {
        return range("reserved", u64::from(head.reserved));
    }
    let need = head.part_count as usize * size_of::<PartRef>();
    if rest.len() > need {
        return Err(DecodeError::Trailing {
            what: WHAT,
            extra: rest.len() - need,
        });
    }
    if rest.len() < need {
        return Err(short(size_of::<HeadValue>() + need));
    }
    let parts = rest
        .chunks_exact(size_of::<PartRef>())
        .filter_map(|part| PartRef::read_from_bytes(part).ok())
        .collect();
    Ok((head, parts))
}

/// Appends the value of a HEAD record to `out`.
pub fn encode_head(head: &HeadValue, parts: &[PartRef], out: &mut Vec<u8>) {
    debug_assert_eq!(head.part_count as usize, parts.len());
    out.extend_from_slice(head.as_bytes());
    out.extend_from_slice(parts.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::wire_len;

    #[test]
    fn keys_of_all_lengths_are_compared() {
        let key: Vec<u8> = (1..=100).collect();
        for len in 0..=key.len() {
            let mut copied = key[..len].to_vec();
            assert!(is_same(&copied, &key[..len]), "{len}");
            for at in 0..len {
                copied[at] ^= 1;
                assert!(!is_same(&copied, &key[..len]), "{len} {at}");
                copied[at] ^= 1;
            }
            assert!(len == 0 || !is_same(&copied, &key[..len - 1]), "{len}");
        }
    }

    #[test]
    fn a_prefix_has_one_crc_however_it_is_taken() {
        let bytes: Vec<u8> = (0..=255).cycle().take(600).collect();
        let (header, rest) = bytes.split_first_chunk().unwrap();
        for len in 0..=rest.len() {
            let apart = [&bytes[..HEADER_BYTES - 4], &rest[..len]].concat();
            assert_eq!(prefix_crc(header, &rest[..len]), crc32c(&apart), "{len}");
        }
    }

    /// Headers with any one bit, or any two, turned over and the CRC made right again: the short judgement takes what the
    /// long one takes, and nothing else.
    #[test]
    fn both_judgements_take_the_same() {
        let (key, value, hash_key) = (b"a key", [7_u8; 300], [3; 16]);
        let meta = RecordMeta {
            kind: record_kind::VALUE,
            part: 0,
            sequence: 9,
            segment_identity: 77,
            client_id: 5,
            operation: 6,
            durable_units: 4,
        };
        let mut right = Vec::new();
        encode_prefix(&meta, key, 300, crc32c(&value), &[], &mut right);
        let locator = Locator {
            segment: 1,
            offset_units: 0,
            value_len_bytes: 300,
            key_len_bytes: 5,
            tag: KeyHash::of(&hash_key, key).tag(),
        };
        assert_eq!(right.len() as u64, wire_len(5, 300) - 300);
        let (mut taken, mut refused) = (0, 0);
        let bits = 8 * right.len();
        for first in 0..bits {
            for second in (first..bits).step_by(7) {
                for (wanted_key, tag) in [(Some(&key[..]), locator.tag), (None, locator.tag), (None, 1)] {
                    let mut bytes = right.clone();
                    bytes[first / 8] ^= 1 << (first % 8);
                    // The same bit twice: nothing is changed.
                    bytes[second / 8] ^= 1 << (second % 8);
                    if (HEADER_BYTES - 4..HEADER_BYTES).contains(&(first / 8)) {
                        continue;
                    }
                    let (header, rest) = bytes.split_first_chunk().unwrap();
                    let crc = prefix_crc(header, rest);
                    bytes[HEADER_BYTES - 4..HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
                    let expected = Expected {
                        segment_identity: 77,
                        locator: Locator { tag, ..locator },
                        hash_key: &hash_key,
                        key: wanted_key,
                    };
                    let long = judge_other(&bytes, &expected);
                    let short = long.ok().filter(|header| header.kind == record_kind::VALUE);
                    assert_eq!(
                        wanted(&bytes, &expected).copied(),
                        short,
                        "bits {first} and {second}"
                    );
                    assert_eq!(judge_prefix(&bytes, &expected), long);
                    let kind = long.map(|header| header.kind);
                    assert_eq!(judge_whole(&bytes, None, &expected), kind);
                    let whole = judge_whole(&bytes, Some(&value), &expected);
                    let value_crc = long.map_or(0, |header| header.value_crc);
                    let torn = kind == Ok(record_kind::VALUE) && value_crc != crc32c(&value);
                    assert_eq!(whole, if torn { Err(Refusal::Torn) } else { kind });
                    *(if long.is_ok() { &mut taken } else { &mut refused }) += 1;
                }
            }
        }
        assert!(taken > 1000 && refused > 1000, "{taken} {refused}");
        let mut bytes = right.clone();
        bytes[HEADER_BYTES - 1] ^= 1;
        let expected = Expected {
            segment_identity: 77,
            locator,
            hash_key: &hash_key,
            key: None,
        };
        assert!(wanted(&right, &expected).is_some() && wanted(&bytes, &expected).is_none());
        assert!(wanted(&right[..HEADER_BYTES + 4], &expected).is_none());
    }
}
