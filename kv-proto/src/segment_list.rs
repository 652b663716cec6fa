//! The list of a dataset's segments: what there should be.

use core::mem::{offset_of, size_of};

use zerocopy::{FromBytes, IntoBytes};

use crate::DecodeError;
use crate::crc::Crc32c;
use crate::layout::{MEDIA_FORMAT, SEGMENT_LIST_MAGIC, SegmentListHeader};

const WHAT: &str = "list of segments";
const HEADER_LEN: usize = size_of::<SegmentListHeader>();
/// The CRC ends the header.
const CRC_AT: usize = offset_of!(SegmentListHeader, crc);
const _: () = assert!(CRC_AT + size_of::<u32>() == HEADER_LEN);

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
    let mut out = [header.as_bytes(), segments.as_bytes()].concat();
    let crc = crc(&out);
    out[CRC_AT..HEADER_LEN].copy_from_slice(&crc.to_le_bytes());
    out
}

/// CRC of a list, of all its bytes but those of the CRC.
fn crc(list: &[u8]) -> u32 {
    let mut crc = Crc32c::new();
    crc.update(&list[..CRC_AT]);
    crc.update(&list[HEADER_LEN..]);
    crc.finish()
}

/// The segments that a list of `dataset` names, growing.
///
/// # Errors
/// [`DecodeError`] if the length is not that of the count, the CRC does not agree, or a field is outside its range.
pub fn parse_segments(bytes: &[u8], dataset: [u8; 16]) -> Result<Vec<u32>, DecodeError> {
    let have = bytes.len();
    let short = |need| DecodeError::Short {
        what: WHAT,
        need,
        have,
    };
    let (header, numbers) = SegmentListHeader::read_from_prefix(bytes).map_err(|_| short(HEADER_LEN))?;
    let computed = crc(bytes);
    if header.crc != computed {
        return Err(DecodeError::Checksum {
            what: WHAT,
            found: u64::from(header.crc),
            computed: u64::from(computed),
        });
    }
    let range = |field, value| {
        Err(DecodeError::Range {
            what: WHAT,
            field,
            value,
        })
    };
    if header.magic != SEGMENT_LIST_MAGIC {
        return range("magic", u64::from(header.magic));
    }
    if header.format != MEDIA_FORMAT {
        return range("format", u64::from(header.format));
    }
    if header.flags != 0 {
        return range("flags", u64::from(header.flags));
    }
    if header.dataset != dataset {
        return range("dataset", 0);
    }
    let need = u64::from(header.count) * size_of::<u32>() as u64;
    if numbers.len() as u64 != need {
        return range("count", u64::from(header.count));
    }
    let mut segments = Vec::with_capacity(numbers.len() / size_of::<u32>());
    let mut last = 0;
    for number in numbers.chunks_exact(size_of::<u32>()) {
        let number = u32::from_le_bytes([number[0], number[1], number[2], number[3]]);
        if number <= last {
            return range("segment", u64::from(number));
        }
        last = number;
        segments.push(number);
    }
    Ok(segments)
}
