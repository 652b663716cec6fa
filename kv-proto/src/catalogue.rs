//! The list of the datasets of a data directory: what there should be.

use crate::DecodeError;
use crate::layout::{CATALOGUE_MAGIC, CatalogueHeader, DatasetDescription, MEDIA_FORMAT};
use crate::sealed_list::{Sealed, seal};

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
    seal(&header, datasets)
}

/// The descriptions in a list, ordered by the ids of their datasets. What each says is not judged.
///
/// # Errors
/// [`DecodeError`] if the length is not that of the count, the CRC does not agree, or a field is outside its range.
pub fn parse_catalogue(bytes: &[u8]) -> Result<Vec<DatasetDescription>, DecodeError> {
    let list = Sealed::<CatalogueHeader>::open("list of datasets", bytes)?;
    let header = &list.header;
    list.judge([header.magic, CATALOGUE_MAGIC], header.format, header.flags)?;
    let datasets: Vec<DatasetDescription> = list.items(header.count)?;
    if !datasets.is_sorted_by(|a, b| a.dataset < b.dataset) {
        return Err(list.range("dataset", 0));
    }
    Ok(datasets)
}
