//! Parts of a large value: where each lies, how long it is, and judging one that was read.
//!
//! A part is a record of its own under its head's key. It names itself by (client id, operation, number), and a head
//! names each of its parts by place, so a part of another attempt, of another value or of another number shows.

use crate::layout::{HeadValue, Locator, PartRef, RecordHeader, record_kind};
use crate::record::{Expected, Refusal, judge_record};

/// Length of part `index`, bytes: that of every part but the last, or what is left for that. `None` past the end.
#[must_use]
pub fn part_len_bytes(head: &HeadValue, index: u32) -> Option<u32> {
    let start = u64::from(index).checked_mul(u64::from(head.part_len_bytes))?;
    if index >= head.part_count {
        return None;
    }
    let left = head.total_len_bytes.checked_sub(start)?;
    u32::try_from(left.min(u64::from(head.part_len_bytes))).ok()
}

/// Locator of part `index` of the large value whose HEAD record `head_locator` names. `None` past the end.
#[must_use]
pub fn part_locator(
    head_locator: &Locator,
    head: &HeadValue,
    parts: &[PartRef],
    index: u32,
) -> Option<Locator> {
    let part = parts.get(usize::try_from(index).ok()?)?;
    Some(Locator {
        segment: part.segment,
        offset_units: part.offset_units,
        value_len_bytes: part_len_bytes(head, index)?,
        key_len_bytes: head_locator.key_len_bytes,
        tag: head_locator.tag,
    })
}

/// Judges the prefix of part `index` of the large value whose HEAD has the accepted header `head`.
///
/// `expected` holds the part's own locator ([`part_locator`]) and the identity of its own segment.
///
/// # Errors
/// [`Refusal`], as [`crate::record::judge_prefix`]; [`Refusal::Stale`] also for a record that is not this part.
pub fn judge_part(
    prefix: &[u8],
    expected: &Expected<'_>,
    head: &RecordHeader,
    index: u32,
) -> Result<RecordHeader, Refusal> {
    let header = judge_record(prefix, expected)?;
    let same_operation = header.client_id == head.client_id && header.operation == head.operation;
    if header.kind != record_kind::PART
        || header.part != index
        || !same_operation
        || header.sequence > head.sequence
    {
        return Err(Refusal::Stale);
    }
    Ok(header)
}
