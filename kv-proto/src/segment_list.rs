//! The list of a dataset's segments: what there should be.

use crate::DecodeError;
use crate::layout::{MEDIA_FORMAT, SEGMENT_LIST_MAGIC, SegmentListHeader};
use crate::sealed_list::{Sealed, seal};

/// The list of `segments`, which are not 0 and grow, of a dataset.
#[must_use]
pub fn encode_segments(dataset: [u8; 16], segments: &[u32]) -> Vec<u8> {
    let header = SegmentListHeader {
        magic: SEGMENT_LIST_MAGIC,
        format: MEDIA_FORMAT,
        flags: 0,
        dataset,
        count: segments.len() as u32,
        crc: 0,
    };
    seal(&header, segments)
}

/// The segments that a list of `dataset` names, growing.
///
/// # Errors
/// [`DecodeError`] if the length is not that of the count, the CRC does not agree, or a field is outside its range.
pub fn parse_segments(bytes: &[u8], dataset: [u8; 16]) -> Result<Vec<u32>, DecodeError> {
    let list = Sealed::<SegmentListHeader>::open("list of segments", bytes)?;
    let header = &list.header;
    list.judge([header.magic, SEGMENT_LIST_MAGIC], header.format, header.flags)?;
    if header.dataset != dataset {
        return Err(list.range("dataset", 0));
    }
    let segments: Vec<u32> = list.items(header.count)?;
    let mut last = 0;
    for &segment in &segments {
        if segment <= last {
            return Err(list.range("segment", u64::from(segment)));
        }
        last = segment;
    }
    Ok(segments)
}
