//! Listing the keys of a dataset, page by page.

use kv_proto::control::{Bytes, ListEntry};
use kv_proto::layout::Locator;

use super::super::limits::LIST_GROUPS_MAX;
use super::Dataset;
use crate::error::StorageError;

impl Dataset {
    /// Keys from slot hash `cursor` on, in the order of their slot hashes: at most `limit`, within `room_bytes` of a
    /// frame; the cursor of the next page, and whether this was the last. A page may be empty with more to come.
    ///
    /// A key whose record does not tell it any more is left out. All keys of one slot hash come in one page. Where those of the first do not fit: nothing, the
    /// same cursor, and not the last.
    ///
    /// # Errors
    /// [`StorageError::Mending`] where the index cannot tell at the moment.
    pub fn list(
        &self,
        cursor: u64,
        limit: usize,
        room_bytes: usize,
    ) -> Result<(Vec<ListEntry>, u64, bool), StorageError> {
        let mut entries: Vec<(u64, ListEntry)> = Vec::new();
        let mut room = room_bytes;
        let mut from = cursor;
        for _ in 0..LIST_GROUPS_MAX {
            // Held while its slots are looked at: what they name is in the table as long as they name it.
            let index = self.read_index();
            let (slots, next) = match index.slots_from(from) {
                Ok(slots) => slots,
                Err(error) => {
                    drop(index);
                    self.ask_to_mend();
                    return Err(error);
                }
            };
            for slot in slots {
                let Some(segment) = self.segment(slot.locator.segment) else {
                    continue;
                };
                let Some(key) = segment.key_at(&slot.locator) else {
                    continue;
                };
                let hash = self.hash(&key);
                if (hash.slot, hash.tag()) != (slot.hash, slot.locator.tag) {
                    // What is there is of no key, or of another: whoever acted on it would reach the wrong one.
                    tracing::error!(
                        dataset = %self.name(),
                        segment = slot.locator.segment,
                        offset = slot.locator.offset_bytes(),
                        "a key is left out of a list: its record is damaged and does not tell it any more"
                    );
                    continue;
                }
                let need = 2 + key.len() + 8 + size_of::<Locator>();
                if entries.len() == limit || need > room {
                    return Ok(cut_page(entries, slot.hash));
                }
                room -= need;
                let entry = ListEntry {
                    key: Bytes(key),
                    value_len_bytes: self.value_len(&slot.locator),
                    locator: slot.locator,
                };
                entries.push((slot.hash, entry));
            }
            match next {
                Some(next) => from = next,
                None => return Ok((entries.into_iter().map(|(_, entry)| entry).collect(), 0, true)),
            }
        }
        Ok((entries.into_iter().map(|(_, entry)| entry).collect(), from, false))
    }
}

/// A page that ends before the keys of slot hash `hash`.
fn cut_page(mut entries: Vec<(u64, ListEntry)>, hash: u64) -> (Vec<ListEntry>, u64, bool) {
    entries.retain(|(at, _)| *at < hash);
    (entries.into_iter().map(|(_, entry)| entry).collect(), hash, false)
}
