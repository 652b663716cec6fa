//! Where the bytes of a value come from.

use std::io::{ErrorKind, Read};
use std::sync::Arc;

use kv_proto::crc::Crc32c;

use super::pool::Slot;
use crate::ClientError;

/// Bytes moved from a stream at once.
const CHUNK_BYTES: usize = 64 << 10;

enum From<'v> {
    Bytes(&'v [u8]),
    Stream(&'v mut dyn Read),
}

/// The bytes of one value, taken in order, and their CRC so far.
pub(super) struct Source<'v> {
    from: From<'v>,
    len: u64,
    taken: u64,
    crc: Crc32c,
}

impl<'v> Source<'v> {
    pub(super) fn bytes(value: &'v [u8]) -> Self {
        Self {
            from: From::Bytes(value),
            len: value.len() as u64,
            taken: 0,
            crc: Crc32c::new(),
        }
    }

    pub(super) fn stream(len: u64, source: &'v mut dyn Read) -> Self {
        Self {
            from: From::Stream(source),
            len,
            taken: 0,
            crc: Crc32c::new(),
        }
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// CRC32C of what was taken.
    pub(super) fn crc(&self) -> u32 {
        self.crc.finish()
    }

    /// Goes back to the first byte, if it can.
    pub(super) fn rewind(&mut self) -> bool {
        if matches!(self.from, From::Stream(_)) {
            return false;
        }
        self.taken = 0;
        self.crc = Crc32c::new();
        true
    }

    /// Fills the slot with the next `len` bytes.
    pub(super) fn fill(&mut self, slot: &mut Slot, len: usize) -> Result<(), ClientError> {
        let announced_bytes = self.len;
        let short = |given_bytes| ClientError::SourceLength {
            announced_bytes,
            given_bytes,
            longer: false,
        };
        match &mut self.from {
            From::Bytes(value) => {
                let start = self.taken as usize;
                let Some(next) = value.get(start..start + len) else {
                    return Err(short(value.len() as u64));
                };
                self.crc.update(next);
                slot.fill(0, next);
            }
            From::Stream(source) => {
                let mut chunk = vec![0; CHUNK_BYTES.min(len)];
                let mut done = 0;
                while done < len {
                    let want = chunk.len().min(len - done);
                    let got = match source.read(&mut chunk[..want]) {
                        Ok(0) => return Err(short(self.taken + done as u64)),
                        Ok(got) => got,
                        Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                        Err(error) => return Err(ClientError::Source(Arc::new(error))),
                    };
                    self.crc.update(&chunk[..got]);
                    slot.fill(done, &chunk[..got]);
                    done += got;
                }
            }
        }
        self.taken += len as u64;
        Ok(())
    }

    /// All was taken: checks that a stream has nothing more.
    pub(super) fn check_end(&mut self) -> Result<(), ClientError> {
        let From::Stream(source) = &mut self.from else {
            return Ok(());
        };
        let mut byte = [0];
        loop {
            match source.read(&mut byte) {
                Ok(0) => return Ok(()),
                Ok(_) => {
                    return Err(ClientError::SourceLength {
                        announced_bytes: self.len,
                        given_bytes: self.len + 1,
                        longer: true,
                    });
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(ClientError::Source(Arc::new(error))),
            }
        }
    }
}
