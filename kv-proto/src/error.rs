//! Why bytes from outside were refused.

/// Bytes that are not what they claim to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// Fewer bytes than the thing needs.
    #[error("{what}: {have} bytes where {need} are needed")]
    Short {
        /// The thing being decoded.
        what: &'static str,
        /// Bytes needed.
        need: usize,
        /// Bytes there.
        have: usize,
    },
    /// Bytes left over after the last field.
    #[error("{what}: {extra} bytes after the last field")]
    Trailing {
        /// The thing being decoded.
        what: &'static str,
        /// Bytes left over.
        extra: usize,
    },
    /// A field outside its range.
    #[error("{what}: field {field} holds {value:#x}, which is outside its range")]
    Range {
        /// The thing being decoded.
        what: &'static str,
        /// The field.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// A checksum that does not agree with the bytes it covers.
    #[error("{what}: checksum {found:#x} where the bytes give {computed:#x}")]
    Checksum {
        /// The thing being decoded.
        what: &'static str,
        /// Checksum found.
        found: u64,
        /// Checksum of the bytes.
        computed: u64,
    },
}
