//! What posted READs write to, held until they are done (**I5**).

use std::collections::VecDeque;

use crate::Region;

/// The regions of the batches that are under way, the oldest first.
#[derive(Debug, Default)]
pub(crate) struct HeldRegions {
    /// Each with the number of READs that were posted up to its batch's last.
    regions: VecDeque<(u64, Region)>,
    /// How many were let go.
    gone: u64,
}

impl HeldRegions {
    /// Holds what a batch goes to until `posted` READs are done, it included. Where its first region is found.
    #[inline]
    pub(crate) fn hold(&mut self, regions: &[&Region], posted: u64) -> u64 {
        let first = self.gone + self.regions.len() as u64;
        for &region in regions {
            self.regions.push_back((posted, region.clone()));
        }
        first
    }

    /// Region number `index` of the batch whose first is at `first`.
    ///
    /// # Panics
    /// If it was let go, or never held.
    #[inline]
    pub(crate) fn get(&self, first: u64, index: u32) -> &Region {
        &self.regions[(first - self.gone) as usize + index as usize].1
    }

    /// Lets go of what batches hold that are among the first `done` READs.
    #[inline]
    pub(crate) fn release(&mut self, done: u64) {
        while self.regions.front().is_some_and(|&(posted, _)| posted <= done) {
            self.regions.pop_front();
            self.gone += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Memory, MemoryKind};

    #[test]
    fn a_batch_holds_its_regions_until_its_last_read_is_done() {
        let region = |len| Region::unregistered(Memory::new(len, MemoryKind::Private).expect("memory"));
        let [ring, values, other] = [4096, 8192, 12288].map(region);
        let mut held = HeldRegions::default();
        let first = held.hold(&[&ring, &values], 3);
        let second = held.hold(&[&ring, &values, &other], 5);
        let len = |held: &HeldRegions, batch, index| held.get(batch, index).memory().len();
        held.release(2);
        assert_eq!((len(&held, first, 1), len(&held, second, 2)), (8192, 12288));
        held.release(3);
        assert_eq!(
            (held.regions.len(), len(&held, second, 0), len(&held, second, 2)),
            (3, 4096, 12288)
        );
        let third = held.hold(&[&other], 6);
        held.release(5);
        assert_eq!((held.regions.len(), len(&held, third, 0)), (1, 12288));
        held.release(6);
        assert!(held.regions.is_empty());
    }
}
