//! The list of the datasets of a data directory: what there should be.

use core::mem::{offset_of, size_of};

use zerocopy::{FromBytes, IntoBytes};

use crate::DecodeError;
use crate::crc::Crc32c;
use crate::layout::{CATALOGUE_MAGIC, CatalogueHeader, DatasetDescription, MEDIA_FORMAT};

const WHAT: &str = "list of datasets";
const HEADER_LEN: usize = size_of::<CatalogueHeader>();
/// The CRC ends the header.
const CRC_AT: usize = offset_of!(CatalogueHeader, crc);
const _: () = assert!(CRC_AT + size_of::<u32>() == HEADER_LEN);

/// The list of `datasets`, which are ordered by their ids.
#[must_use]
pub fn encode_catalogue(datasets: &[DatasetDescription]) -> Vec<u8> {
    let header = CatalogueHeader {
        magic: CATALOGUE_MAGIC,
        format: MEDIA_FORMAT,
        flags: 0,
        count: datasets.len() as u32,
        crc: 0,
    };
    let mut out = [header.as_bytes(), datasets.as_bytes()].concat();
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

/// The descriptions in a list, ordered by the ids of their datasets. What each says is not judged.
///
/// # Errors
/// [`DecodeError`] if the length is not that of the count, the CRC does not agree, or a field is outside its range.
pub fn parse_catalogue(bytes: &[u8]) -> Result<Vec<DatasetDescription>, DecodeError> {
    let have = bytes.len();
    let short = |need| DecodeError::Short {
        what: WHAT,
        need,
        have,
    };
    let (header, rest) = CatalogueHeader::read_from_prefix(bytes).map_err(|_| short(HEADER_LEN))?;
    let computed = crc(bytes);
    if header.crc != computed {
        return Err(DecodeError::Checksum {
            what: WHAT,
            found: u64::from(header.crc),
            computed: u64::from(computed),
        });
    }
    let range = |field, value| DecodeError::Range {
        what: WHAT,
        field,
        value,
    };
    if header.magic != CATALOGUE_MAGIC {
        return Err(range("magic", u64::from(header.magic)));
    }
    if header.format != MEDIA_FORMAT {
        return Err(range("format", u64::from(header.format)));
    }
    if header.flags != 0 {
        return Err(range("flags", u64::from(header.flags)));
    }
    let need = u64::from(header.count) * size_of::<DatasetDescription>() as u64;
    if rest.len() as u64 != need {
        return Err(range("count", u64::from(header.count)));
    }
    let each = rest.chunks_exact(size_of::<DatasetDescription>());
    let datasets: Vec<DatasetDescription> = each
        .map(|bytes| DatasetDescription::read_from_bytes(bytes).map_err(|_| short(HEADER_LEN)))
        .collect::<Result<_, _>>()?;
    if !datasets.is_sorted_by(|a, b| a.dataset < b.dataset) {
        return Err(range("dataset", 0));
    }
    Ok(datasets)
}
