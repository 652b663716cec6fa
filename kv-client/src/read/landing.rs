//! Where values land that are to lie in slots: one is given when its READ is planned.

use super::engine::Engine;
use super::item::To;
use super::slots::Slot;

impl Engine {
    /// Gives a record that is about to be planned its slot, or room on the heap where none is free; `false` if it had better
    /// wait for one. Slots come free as values are taken and dropped: with as many under way as there were slots for, it waits
    /// until half of these were taken; if there is none even then, whoever takes them keeps them.
    pub(super) fn find_slot(&mut self, index: u32) -> bool {
        let fetch = &mut self.fetches[index as usize];
        if fetch.to != To::Slot {
            return true;
        }
        let len = fetch.locator.value_len_bytes as usize;
        match self.slots.take(&*self.core.shared().fabric, len) {
            Ok(Some(slot)) => {
                (fetch.to, fetch.base) = (To::Place, slot.offset());
                self.items[fetch.item as usize].slot = Some(slot);
                self.slots_out += 1;
                self.slots_low = None;
                return true;
            }
            Ok(None) if (1..=self.slots.longest()).contains(&len) => {
                let low = *self.slots_low.get_or_insert(self.slots_out / 2);
                if self.flying > 0 && self.slots_out > low {
                    return false;
                }
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, "no memory for values: they go to the heap"),
        }
        (fetch.to, fetch.in_ring) = (To::Out, true);
        true
    }

    /// Takes an item's slot away.
    pub(super) fn drop_slot(&mut self, index: u32) -> Option<Slot> {
        let slot = self.items[index as usize].slot.take();
        self.slots_out -= usize::from(slot.is_some());
        slot
    }
}
