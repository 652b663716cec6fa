//! The floor of memory: a copy of the value, and its CRC.

use std::sync::Arc;

use kv_proto::crc::crc32c;

use super::{AnyGetter, Slots};
use crate::Error;
use crate::run::pace::Getter;
use crate::run::values::Values;

/// All values in memory, each at a page of its own, as a file has them.
struct Image {
    bytes: Vec<u8>,
    places: Vec<(usize, usize)>,
}

impl Image {
    fn new(values: &Values) -> Result<Self, Error> {
        let (offsets, len) = values.places();
        let mut bytes = vec![0; len as usize];
        let mut places = Vec::with_capacity(values.count());
        for (index, offset) in offsets.into_iter().enumerate() {
            let value = values.bytes(index)?;
            bytes[offset as usize..][..value.len()].copy_from_slice(&value);
            places.push((offset as usize, value.len()));
        }
        Ok(Self { bytes, places })
    }

    fn value(&self, index: u32) -> &[u8] {
        let (offset, len) = self.places[index as usize];
        &self.bytes[offset..offset + len]
    }
}

/// Copies.
struct Copying {
    image: Arc<Image>,
    slots: Slots,
}

/// Threads that copy out of one image, each with room for a call.
pub(crate) fn copying(values: &Values, room: usize, threads: usize) -> Result<Vec<AnyGetter>, Error> {
    let image = Arc::new(Image::new(values)?);
    let one = |_| -> AnyGetter {
        Box::new(Copying {
            image: Arc::clone(&image),
            slots: Slots::new(room),
        })
    };
    Ok((0..threads).map(one).collect())
}

impl Getter for Copying {
    fn get(&mut self, batch: &[u32]) -> Result<(), Error> {
        self.slots.clear();
        for &index in batch {
            let value = self.image.value(index);
            self.slots.next(value.len()).copy_from_slice(value);
        }
        Ok(())
    }

    fn look(&self, at: usize, judge: &mut dyn FnMut(&[u8]) -> bool) -> Result<bool, Error> {
        Ok(judge(self.slots.value(at)))
    }
}

/// Takes CRCs.
struct Summing {
    image: Arc<Image>,
    last: Vec<u32>,
}

/// Threads that sum over one image.
pub(crate) fn summing(values: &Values, batch: usize, threads: usize) -> Result<Vec<AnyGetter>, Error> {
    let image = Arc::new(Image::new(values)?);
    let one = |_| -> AnyGetter {
        Box::new(Summing {
            image: Arc::clone(&image),
            last: Vec::with_capacity(batch),
        })
    };
    Ok((0..threads).map(one).collect())
}

impl Getter for Summing {
    fn get(&mut self, batch: &[u32]) -> Result<(), Error> {
        self.last.clear();
        for &index in batch {
            std::hint::black_box(crc32c(self.image.value(index)));
            self.last.push(index);
        }
        Ok(())
    }

    fn look(&self, at: usize, judge: &mut dyn FnMut(&[u8]) -> bool) -> Result<bool, Error> {
        Ok(judge(self.image.value(self.last[at])))
    }
}
