//! `pread` of a file that has all values, each at a page of its own.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::Slots;
use crate::Error;
use crate::run::pace::Getter;
use crate::run::values::Values;

/// Writes the file.
pub(crate) fn write(path: &Path, values: &Values) -> Result<(), Error> {
    let (offsets, len) = values.places();
    let file = File::create(path)?;
    file.set_len(len)?;
    for (index, offset) in offsets.into_iter().enumerate() {
        file.write_all_at(&values.bytes(index)?, offset)?;
    }
    Ok(file.sync_all()?)
}

/// Reads of it.
pub(crate) struct Pread {
    file: File,
    places: Vec<(u64, usize)>,
    slots: Slots,
}

impl Pread {
    /// Opens the file.
    pub(crate) fn new(path: &Path, values: &Values, room: usize) -> Result<Self, Error> {
        let (offsets, _) = values.places();
        let place = |(index, offset)| (offset, values.len_bytes(index) as usize);
        Ok(Self {
            file: File::open(path)?,
            places: offsets.into_iter().enumerate().map(place).collect(),
            slots: Slots::new(room),
        })
    }
}

impl Getter for Pread {
    fn get(&mut self, batch: &[u32]) -> Result<(), Error> {
        self.slots.clear();
        for &index in batch {
            let (offset, len) = self.places[index as usize];
            self.file.read_exact_at(self.slots.next(len), offset)?;
        }
        Ok(())
    }

    fn look(&self, at: usize, judge: &mut dyn FnMut(&[u8]) -> bool) -> Result<bool, Error> {
        Ok(judge(self.slots.value(at)))
    }
}
