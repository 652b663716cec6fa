//! A value that is arriving.

use crate::error::StorageError;

/// A value that is arriving.
pub struct Put {}

impl Put {
    /// Bytes still to come.
    pub fn remaining(&self) -> u64 {
        todo!()
    }

    /// Most bytes that one [`Put::append`] may take: give windows no longer than this.
    pub fn append_max(&self) -> usize {
        todo!()
    }

    /// Takes bytes.
    ///
    /// # Errors
    /// [`StorageError`].
    pub fn append(&mut self, _len: usize, _fill: impl FnOnce(&mut [u8])) -> Result<(), StorageError> {
        todo!()
    }
}
