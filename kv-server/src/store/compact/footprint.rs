//! What a value takes in segments: its record and, where it is large, its parts.

use std::sync::Arc;

use kv_proto::layout::{HeadValue, Locator, PartRef, record_kind, units};
use kv_proto::parts::part_locator;
use kv_proto::record::parse_head;

use super::super::segment::Segment;

/// Where a value lies, in whole units.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Footprint {
    /// Length of the whole value.
    pub(crate) value_len_bytes: u64,
    /// Segment and bytes of its VALUE or HEAD.
    record: (u32, u64),
    /// Segment and bytes of each part.
    parts: Vec<(u32, u64)>,
}

impl Footprint {
    /// Of the value whose VALUE or HEAD `locator` names; `segment` finds segments.
    ///
    /// A head that cannot be read counts alone: its parts stay counted as live, and are found dead only when
    /// their segments are looked through.
    pub(crate) fn of(locator: &Locator, segment: impl Fn(u32) -> Option<Arc<Segment>>) -> Self {
        let head = segment(locator.segment).and_then(|segment| head_at(&segment, locator));
        match head {
            Some((head, parts)) => Self::of_head(locator, &head, &parts),
            None => Self {
                value_len_bytes: u64::from(locator.value_len_bytes),
                record: record_bytes(locator),
                parts: Vec::new(),
            },
        }
    }

    fn of_head(locator: &Locator, head: &HeadValue, parts: &[PartRef]) -> Self {
        Self {
            value_len_bytes: head.total_len_bytes,
            record: record_bytes(locator),
            parts: (0..head.part_count)
                .filter_map(|index| part_locator(locator, head, parts, index))
                .map(|part| record_bytes(&part))
                .collect(),
        }
    }

    /// Segment and bytes of everything.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = (u32, u64)> {
        std::iter::once(self.record).chain(self.parts.iter().copied())
    }
}

/// The value of the HEAD that `locator` names; `None` for what is no HEAD, or cannot be read.
pub(crate) fn head_at(segment: &Segment, locator: &Locator) -> Option<(HeadValue, Vec<PartRef>)> {
    let header = segment.record_header(locator.offset_bytes())?;
    if header.kind != record_kind::HEAD {
        return None;
    }
    let mut value = vec![0; locator.value_len_bytes as usize];
    let at = locator.offset_bytes() + locator.prefix_len_bytes();
    let whole = segment.read(at, &mut value);
    whole.then(|| parse_head(&value).ok()).flatten()
}

/// Segment and length of the record that `locator` names.
fn record_bytes(locator: &Locator) -> (u32, u64) {
    (locator.segment, units(locator.wire_len_bytes()) * 64)
}
