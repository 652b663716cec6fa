//! The file `dataset`: who a dataset is.

use std::path::{Path, PathBuf};

use kv_proto::DecodeError;
use kv_proto::crc::crc32c;
use kv_proto::layout::{
    DATASET_MAGIC, DATASET_NAME_MAX_BYTES, DatasetDescription, KEY_MAX_BYTES, MEDIA_FORMAT, PART_MAX_BYTES,
    SEGMENT_MAX_BYTES, SEGMENT_MIN_BYTES, dataset_name_is_valid, units, wire_len,
};
use zerocopy::{FromZeros, IntoBytes};

use super::files::Files;
use super::home::check_crc;
use super::segment::HEADER_BYTES;
use crate::error::StorageError;

/// What does not change in a dataset, and its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Description {
    pub(crate) id: [u8; 16],
    pub(crate) hash_key: [u8; 16],
    pub(crate) name: String,
    pub(crate) segment_bytes: u64,
    pub(crate) part_bytes: u64,
}

/// Name of a dataset's directory.
pub(crate) fn directory_name(id: &[u8; 16]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The id that a directory's name says.
pub(crate) fn parse_directory_name(name: &str) -> Option<[u8; 16]> {
    let digits = name.as_bytes();
    if digits.len() != 32 || !digits.iter().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f')) {
        return None;
    }
    let mut id = [0_u8; 16];
    for (byte, pair) in id.iter_mut().zip(digits.chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(id)
}

/// Its name in the directory of its dataset.
pub(crate) const NAME: &str = "dataset";

fn path_in(directory: &Path) -> PathBuf {
    directory.join(NAME)
}

impl Description {
    pub(crate) fn encode(&self) -> DatasetDescription {
        let mut name = [0; DATASET_NAME_MAX_BYTES];
        name[..self.name.len()].copy_from_slice(self.name.as_bytes());
        let mut description = DatasetDescription {
            magic: DATASET_MAGIC,
            format: MEDIA_FORMAT,
            name_len_bytes: self.name.len() as u16,
            dataset: self.id,
            hash_key: self.hash_key,
            name,
            segment_bytes: self.segment_bytes,
            part_bytes: self.part_bytes,
            reserved: 0,
            crc: 0,
        };
        description.crc = crc32c(&description.as_bytes()[..size_of::<DatasetDescription>() - 4]);
        description
    }

    /// Makes it durable in `directory`.
    pub(crate) fn write(&self, files: &Files, directory: &Path) -> Result<(), StorageError> {
        files.replace(&path_in(directory), self.encode().as_bytes())?;
        Ok(())
    }

    /// Reads that of the dataset `id` in `directory`.
    pub(crate) fn read(files: &Files, directory: &Path, id: [u8; 16]) -> Result<Self, StorageError> {
        let path = path_in(directory);
        let file = files.open(&path)?;
        let have = files.len(&file)?;
        let mut description = DatasetDescription::new_zeroed();
        let there = have.min(size_of::<DatasetDescription>() as u64) as usize;
        files.read_at(&file, &mut description.as_mut_bytes()[..there], 0)?;
        // Before anything else of it is believed: another format may have another length and another CRC.
        if description.magic == DATASET_MAGIC && description.format != MEDIA_FORMAT {
            return Err(StorageError::FormatVersion {
                path,
                found: description.format,
            });
        }
        if have != size_of::<DatasetDescription>() as u64 {
            return Err(StorageError::Damaged {
                path,
                source: DecodeError::Short {
                    what: "dataset description",
                    need: size_of::<DatasetDescription>(),
                    have: have as usize,
                },
            });
        }
        Self::decode(&description, id).map_err(|source| StorageError::Damaged { path, source })
    }

    pub(crate) fn decode(description: &DatasetDescription, id: [u8; 16]) -> Result<Self, DecodeError> {
        const WHAT: &str = "dataset description";
        check_crc(WHAT, description.as_bytes(), description.crc)?;
        let range = |field, value| {
            Err(DecodeError::Range {
                what: WHAT,
                field,
                value,
            })
        };
        if description.magic != DATASET_MAGIC {
            return range("magic", u64::from(description.magic));
        }
        let name_len = usize::from(description.name_len_bytes);
        let name = description.name.get(..name_len).unwrap_or_default();
        if !dataset_name_is_valid(name) || description.name[name_len..].iter().any(|byte| *byte != 0) {
            return range("name", name_len as u64);
        }
        if description.dataset != id {
            return range("dataset", 0);
        }
        if !(SEGMENT_MIN_BYTES..=SEGMENT_MAX_BYTES).contains(&description.segment_bytes) {
            return range("segment_bytes", description.segment_bytes);
        }
        let part_record = wire_len(KEY_MAX_BYTES as u64, description.part_bytes.min(PART_MAX_BYTES));
        if !(1..=PART_MAX_BYTES).contains(&description.part_bytes)
            || HEADER_BYTES + units(part_record) * 64 > description.segment_bytes
        {
            return range("part_bytes", description.part_bytes);
        }
        if description.reserved != 0 {
            return range("reserved", u64::from(description.reserved));
        }
        Ok(Self {
            id,
            hash_key: description.hash_key,
            name: String::from_utf8_lossy(name).into_owned(),
            segment_bytes: description.segment_bytes,
            part_bytes: description.part_bytes,
        })
    }
}
