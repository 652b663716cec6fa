//! What the value of a FOOTER and the body of a checkpoint's chunk list: records and operations.

use core::mem::size_of;

use zerocopy::{FromBytes, IntoBytes};

use crate::DecodeError;
use crate::layout::{
    FooterEntry, FooterHeader, KEY_MAX_BYTES, OperationEntry, RECORD_ALIGN_BYTES, record_kind, units,
    wire_len,
};

const WHAT: &str = "list of records";

/// Appends a [`FooterHeader`] and what it counts to `out`.
pub fn encode_list(entries: &[FooterEntry], operations: &[OperationEntry], out: &mut Vec<u8>) {
    let header = FooterHeader {
        entries: entries.len() as u32,
        operations: operations.len() as u32,
        reserved: 0,
    };
    out.extend_from_slice(header.as_bytes());
    out.extend_from_slice(entries.as_bytes());
    out.extend_from_slice(operations.as_bytes());
}

/// Length of what [`encode_list`] appends, bytes.
#[must_use]
pub const fn list_len(entries: usize, operations: usize) -> usize {
    size_of::<FooterHeader>() + entries * size_of::<FooterEntry>() + operations * size_of::<OperationEntry>()
}

/// The records and operations that `bytes` list; `bytes` begin at a multiple of 8 in memory.
///
/// # Errors
/// [`DecodeError`] if the counts are not the length's, a field is outside its range, entries are not in order, or
/// `bytes` are not aligned.
pub fn parse_list(bytes: &[u8]) -> Result<(&[FooterEntry], &[OperationEntry]), DecodeError> {
    let short = |need| DecodeError::Short {
        what: WHAT,
        need,
        have: bytes.len(),
    };
    let (header, rest) =
        FooterHeader::read_from_prefix(bytes).map_err(|_| short(size_of::<FooterHeader>()))?;
    if header.reserved != 0 {
        return Err(range("reserved", header.reserved));
    }
    let (entries, operations) = (header.entries as usize, header.operations as usize);
    let need = list_len(entries, operations);
    if bytes.len() < need {
        return Err(short(need));
    }
    if bytes.len() > need {
        return Err(DecodeError::Trailing {
            what: WHAT,
            extra: bytes.len() - need,
        });
    }
    let (entries, operations) = rest.split_at(entries * size_of::<FooterEntry>());
    let entries = <[FooterEntry]>::ref_from_bytes(entries).map_err(|_| range("alignment", 0))?;
    let operations = <[OperationEntry]>::ref_from_bytes(operations).map_err(|_| range("alignment", 0))?;
    check_entries(entries)?;
    Ok((entries, operations))
}

fn check_entries(entries: &[FooterEntry]) -> Result<(), DecodeError> {
    let mut end = 1;
    for entry in entries {
        let lens = (u64::from(entry.key_len_bytes), u64::from(entry.value_len_bytes));
        if !(record_kind::VALUE..=record_kind::TOMBSTONE).contains(&entry.kind) {
            return Err(range("kind", u64::from(entry.kind)));
        }
        if lens.0 == 0 || lens.0 > KEY_MAX_BYTES as u64 {
            return Err(range("key_len_bytes", lens.0));
        }
        if u64::from(entry.offset_units) < end {
            return Err(range("offset_units", u64::from(entry.offset_units)));
        }
        if entry.reserved != 0 {
            return Err(range("reserved", u64::from(entry.reserved)));
        }
        end = entry.end_units();
    }
    Ok(())
}

fn range(field: &'static str, value: u64) -> DecodeError {
    DecodeError::Range {
        what: WHAT,
        field,
        value,
    }
}

impl FooterEntry {
    /// End of the record, in units of 64 bytes.
    #[must_use]
    pub const fn end_units(&self) -> u64 {
        self.offset_units as u64 + units(wire_len(self.key_len_bytes as u64, self.value_len_bytes as u64))
    }

    /// Length of the record in its segment, bytes.
    #[must_use]
    pub const fn stored_bytes(&self) -> u64 {
        (self.end_units() - self.offset_units as u64) * RECORD_ALIGN_BYTES
    }
}
