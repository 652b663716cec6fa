//! Many values into one piece of the caller's memory, each to a place of its own: the batch of a tensor by one call.

use super::calls::{WINDOW, place_in};
use super::engine::{Ask, Engine};
use super::item::{Memory, Want};
use crate::ReadError;
use crate::clock::boot_ns;
use crate::memory::Buffer;

/// Where the values of a call go: each from its own offset up to the next one's, so that none can overlap.
#[derive(Clone, Copy)]
pub(crate) struct Places<'o> {
    offsets: &'o [usize],
    /// First byte in the region, and how many there are.
    base: usize,
    len: usize,
}

impl<'o> Places<'o> {
    /// Places for `count` values in `buffer`.
    pub(crate) fn new(buffer: &Buffer, count: usize, offsets: &'o [usize]) -> Result<Self, ReadError> {
        let Want::Place {
            offset: base,
            room: len,
        } = place_in(buffer, 0)
        else {
            return Err(ReadError::BadPlaces);
        };
        let fit = offsets.last().is_none_or(|last| *last <= len);
        if offsets.len() == count && offsets.is_sorted() && fit {
            Ok(Self { offsets, base, len })
        } else {
            Err(ReadError::BadPlaces)
        }
    }

    fn of(&self, index: usize) -> Want {
        let start = self.offsets[index];
        let end = self.offsets.get(index + 1).copied().unwrap_or(self.len);
        Want::Place {
            offset: self.base + start,
            room: end - start,
        }
    }
}

impl Engine {
    /// Whether READs of this engine can go into `buffer`.
    pub(crate) fn takes(&self, buffer: &Buffer) -> bool {
        buffer.is_of(&self.core.shared().fabric)
    }

    /// Reads the values of `range` of the keys into the caller's memory; their lengths go to `lens`, one for each of the
    /// range. Nothing is in flight there any more when it returns.
    pub(crate) fn read_placed<K: AsRef<[u8]>>(
        &mut self,
        keys: &[K],
        buffer: &mut Buffer,
        places: Places<'_>,
        range: std::ops::Range<usize>,
        lens: &mut [Result<usize, ReadError>],
    ) {
        if !self.takes(buffer) {
            return lens.fill(Err(ReadError::OtherSession));
        }
        let region = buffer.region();
        self.using(|engine| {
            let (mut asked, mut under_way) = (range.clone(), 0);
            loop {
                let now = boot_ns();
                while under_way < WINDOW
                    && let Some(index) = asked.next()
                {
                    let ask = Ask {
                        user: index as u64,
                        ticket: false,
                        key: Some(keys[index].as_ref()),
                        at: None,
                        want: places.of(index),
                        memory: Memory::Borrowed(region.clone()),
                        trouble: None,
                    };
                    engine.submit(ask, now);
                    under_way += 1;
                }
                if under_way == 0 {
                    break;
                }
                engine.run();
                while let Some(done) = engine.take_done() {
                    under_way -= 1;
                    lens[done.user as usize - range.start] =
                        done.result.map(|found| found.value_len_bytes as usize);
                }
            }
        });
    }
}
