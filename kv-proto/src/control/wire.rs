//! Types of fields: how each is written into a payload and taken out of one.

use zerocopy::{FromBytes, IntoBytes};

use crate::DecodeError;
use crate::layout::Locator;

/// Writes fields of a payload.
pub(super) trait Wire: Sized {
    fn put(&self, out: &mut Vec<u8>);
    fn take(reader: &mut Reader<'_>) -> Result<Self, DecodeError>;
}

pub(super) struct Reader<'a> {
    pub(super) what: &'static str,
    pub(super) bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    fn slice(&mut self, need: usize) -> Result<&'a [u8], DecodeError> {
        let short = DecodeError::Short {
            what: self.what,
            need,
            have: self.bytes.len(),
        };
        let (head, rest) = self.bytes.split_at_checked(need).ok_or(short)?;
        self.bytes = rest;
        Ok(head)
    }
}

macro_rules! wire_int {
    ($($int:ty),*) => {$(
        impl Wire for $int {
            fn put(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }
            fn take(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
                let mut bytes = [0; size_of::<Self>()];
                bytes.copy_from_slice(reader.slice(size_of::<Self>())?);
                Ok(Self::from_le_bytes(bytes))
            }
        }
    )*};
}
wire_int!(u8, u16, u32, u64);

impl<const N: usize> Wire for [u8; N] {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self);
    }
    fn take(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(reader.slice(N)?);
        Ok(bytes)
    }
}

/// A byte string with a `u16` length before it on the wire.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Bytes(pub Vec<u8>);

impl From<&[u8]> for Bytes {
    fn from(bytes: &[u8]) -> Self {
        Self(bytes.to_vec())
    }
}

impl Wire for Bytes {
    fn put(&self, out: &mut Vec<u8>) {
        (self.0.len() as u16).put(out);
        out.extend_from_slice(&self.0);
    }
    fn take(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let len = usize::from(u16::take(reader)?);
        Ok(Self(reader.slice(len)?.to_vec()))
    }
}

impl<T: Wire> Wire for Vec<T> {
    fn put(&self, out: &mut Vec<u8>) {
        (self.len() as u16).put(out);
        self.iter().for_each(|item| item.put(out));
    }
    fn take(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let count = usize::from(u16::take(reader)?);
        // Each item takes at least one byte, so what is left bounds the allocation.
        let mut items = Self::with_capacity(count.min(reader.bytes.len()));
        for _ in 0..count {
            items.push(T::take(reader)?);
        }
        Ok(items)
    }
}

impl Wire for Locator {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.as_bytes());
    }
    fn take(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let bytes = reader.slice(size_of::<Self>())?;
        Self::read_from_bytes(bytes).map_err(|_| DecodeError::Short {
            what: reader.what,
            need: size_of::<Self>(),
            have: bytes.len(),
        })
    }
}

macro_rules! wire_struct {
    ($($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident : $ty:ty),* $(,)? })*) => {
        /// Structs inside payloads: name and fields with their types, in order, as [`super::Request::SCHEMA`] has frames.
        pub const WIRE_STRUCTS: &[(&str, &[(&str, &str)])] =
            &[$((stringify!($name), &[$((stringify!($field), stringify!($ty))),*])),*];
        $(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct $name { $($(#[$field_doc])* pub $field: $ty),* }
        impl Wire for $name {
            fn put(&self, out: &mut Vec<u8>) {
                let _ = &out;
                $(self.$field.put(out);)*
            }
            fn take(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
                let _ = &reader;
                Ok(Self { $($field: <$ty as Wire>::take(reader)?),* })
            }
        }
        )*
    };
}

wire_struct! {
    /// An address in the server's registered memory and the rkey for it.
    RemoteAddress {
        /// Address, or offset on fabrics that have no addresses.
        address: u64,
        /// Rkey.
        rkey: u32,
    }
    /// Where the directory of an index lies: `1 << depth` entries from `at`.
    DirectoryRef {
        /// First entry.
        at: RemoteAddress,
        /// Version: a new one is another block.
        version: u64,
        /// Depth.
        depth: u8,
    }
    /// One row of the segment table.
    SegmentRow {
        /// Number of the segment.
        segment: u32,
        /// Its identity.
        identity: u64,
        /// Generation of its image: another one lies elsewhere.
        generation: u32,
        /// One of `segment_state`.
        state: u8,
        /// Length that may be read, in units of 64 bytes; for an ACTIVE one, the length when the row was made.
        length_units: u32,
        /// Extents of the image, in order.
        extents: Vec<RemoteAddress>,
    }
    /// Entries of a directory that changed in place.
    DirectoryRange {
        /// First entry.
        first: u32,
        /// How many.
        count: u32,
    }
    /// What changed in one dataset since the number that RENEW acknowledged.
    DatasetChange {
        /// The dataset.
        dataset: [u8; 16],
        /// [`change_flag`]s.
        flags: u8,
        /// Its directory now.
        directory: DirectoryRef,
        /// Entries to read again.
        ranges: Vec<DirectoryRange>,
        /// Rows that changed; RETIRED ones are to be dropped.
        rows: Vec<SegmentRow>,
    }
    /// One key of a list.
    ListEntry {
        /// The key.
        key: Bytes,
        /// Length of the whole value, bytes.
        value_len_bytes: u64,
        /// Where its record lies.
        locator: Locator,
    }
    /// One figure of STAT.
    StatItem {
        /// What it is; `unit` is its name's last word.
        name: Bytes,
        /// Its value.
        value: u64,
    }
    /// One dataset of a list.
    DatasetItem {
        /// Its name.
        name: Bytes,
        /// Its id.
        dataset: [u8; 16],
        /// Keys in it.
        keys: u64,
        /// Bytes of all values in it.
        value_bytes: u64,
    }
    /// One snapshot of a list.
    SnapshotItem {
        /// Its name.
        name: Bytes,
        /// Its generation.
        generation: u64,
        /// Sequence that it shows.
        sequence: u64,
        /// Values in it.
        count: u64,
    }
}

/// Flags of [`DatasetChange::flags`].
pub mod change_flag {
    /// Drop the whole segment table and ask for it again.
    pub const TABLE: u8 = 1;
    /// Read the whole directory again.
    pub const DIRECTORY: u8 = 2;
    /// The dataset was dropped.
    pub const DROPPED: u8 = 4;
    /// A snapshot has a new table generation: list them again, and open again those that are in use.
    pub const SNAPSHOTS: u8 = 8;
}
