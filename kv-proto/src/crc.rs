//! CRC32C (Castagnoli, RFC 3720 section 12.1) of values, blocks and records.

mod short;

use crate::layout::{BLOCK_BYTES, block_count};
use crc_fast::{CrcAlgorithm, Digest, checksum_combine, crc32_iscsi};

/// CRC32C of `bytes`.
#[inline]
#[must_use]
pub fn crc32c(bytes: &[u8]) -> u32 {
    short::crc32c(&[], bytes).unwrap_or_else(|| crc32_iscsi(bytes))
}

/// CRC32C of `first` and of `second` behind it.
#[inline]
#[must_use]
pub(crate) fn crc32c_of_both<const FIRST: usize>(first: &[u8; FIRST], second: &[u8]) -> u32 {
    /// Apart, so that short ones do not pay for long ones.
    #[inline(never)]
    fn in_steps(first: &[u8], second: &[u8]) -> u32 {
        let mut crc = Crc32c::new();
        crc.update(first);
        crc.update(second);
        crc.finish()
    }
    short::crc32c(first, second).unwrap_or_else(|| in_steps(first, second))
}

/// CRC32C of bytes with the CRC `first` and, behind them, `second_len_bytes` bytes with the CRC `second`.
#[must_use]
pub fn combine(first: u32, second: u32, second_len_bytes: u64) -> u32 {
    let algorithm = CrcAlgorithm::Crc32Iscsi;
    checksum_combine(algorithm, u64::from(first), u64::from(second), second_len_bytes) as u32
}

/// A CRC32C fed piece by piece.
#[derive(Clone)]
pub struct Crc32c(Digest);

impl Crc32c {
    /// Of no bytes yet.
    #[must_use]
    pub fn new() -> Self {
        Self(Digest::new(CrcAlgorithm::Crc32Iscsi))
    }

    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// CRC32C of all bytes so far.
    #[must_use]
    pub fn finish(&self) -> u32 {
        self.0.finalize() as u32
    }
}

impl Default for Crc32c {
    fn default() -> Self {
        Self::new()
    }
}

impl core::fmt::Debug for Crc32c {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Crc32c({:#010x})", self.finish())
    }
}

/// CRCs of the blocks of `value`, little-endian one after the other; empty for a value of one block or less.
#[must_use]
pub fn block_crcs(value: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(4 * block_count(value.len() as u64) as usize);
    if value.len() > BLOCK_BYTES {
        for block in value.chunks(BLOCK_BYTES) {
            out.extend_from_slice(&crc32c(block).to_le_bytes());
        }
    }
    out
}
