//! What lists on media have in common: a header that ends with the CRC of all other bytes, and what is listed behind it.

use core::mem::size_of;

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::DecodeError;
use crate::crc::Crc32c;
use crate::layout::MEDIA_FORMAT;

/// How long the CRC is, the last field of each header.
const CRC_LEN: usize = size_of::<u32>();

/// A header whose CRC is zero, and what it lists, with the CRC.
pub(crate) fn seal<H: IntoBytes + Immutable, T: IntoBytes + Immutable>(header: &H, items: &[T]) -> Vec<u8> {
    let mut out = [header.as_bytes(), items.as_bytes()].concat();
    let end = size_of::<H>();
    let crc = crc(&out, end);
    out[end - CRC_LEN..end].copy_from_slice(&crc.to_le_bytes());
    out
}

/// CRC of a list, of all its bytes but those of the CRC, which end its header.
fn crc(list: &[u8], header_len: usize) -> u32 {
    let mut crc = Crc32c::new();
    crc.update(&list[..header_len - CRC_LEN]);
    crc.update(&list[header_len..]);
    crc.finish()
}

/// A list whose CRC agrees: its header, and the bytes behind it.
pub(crate) struct Sealed<'a, H> {
    what: &'static str,
    pub(crate) header: H,
    rest: &'a [u8],
}

impl<'a, H: FromBytes> Sealed<'a, H> {
    /// Of what is called `what` in errors.
    pub(crate) fn open(what: &'static str, bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let end = size_of::<H>();
        let short = || DecodeError::Short {
            what,
            need: end,
            have: bytes.len(),
        };
        let (header, rest) = H::read_from_prefix(bytes).map_err(|_| short())?;
        let (found, _) = u32::read_from_prefix(&bytes[end - CRC_LEN..]).map_err(|_| short())?;
        let computed = crc(bytes, end);
        if found != computed {
            return Err(DecodeError::Checksum {
                what,
                found: u64::from(found),
                computed: u64::from(computed),
            });
        }
        Ok(Self { what, header, rest })
    }

    /// A field that is outside its range.
    pub(crate) fn range(&self, field: &'static str, value: u64) -> DecodeError {
        DecodeError::Range {
            what: self.what,
            field,
            value,
        }
    }

    /// Judges the fields that every header has: `magic` by what it should be.
    pub(crate) fn judge(&self, magic: [u32; 2], format: u16, flags: u16) -> Result<(), DecodeError> {
        if magic[0] != magic[1] {
            return Err(self.range("magic", u64::from(magic[0])));
        }
        if format != MEDIA_FORMAT {
            return Err(self.range("format", u64::from(format)));
        }
        if flags != 0 {
            return Err(self.range("flags", u64::from(flags)));
        }
        Ok(())
    }

    /// What is listed: `count` of them, and nothing else.
    pub(crate) fn items<T: FromBytes>(&self, count: u32) -> Result<Vec<T>, DecodeError> {
        let len = size_of::<T>();
        if self.rest.len() as u64 != u64::from(count) * len as u64 {
            return Err(self.range("count", u64::from(count)));
        }
        let short = |_| DecodeError::Short {
            what: self.what,
            need: len,
            have: self.rest.len(),
        };
        let each = self.rest.chunks_exact(len);
        each.map(|bytes| T::read_from_prefix(bytes).map(|(item, _)| item).map_err(short))
            .collect()
    }
}
