//! The short way for one value whose place is known: one READ, no allocation besides the caller's.
//!
//! Whatever is unusual (no connection, a moved segment, a large value, bytes that are not accepted) is left to the long
//! way, which begins from the start.

use kv_fabric::Fabric;
use kv_proto::layout::{Locator, record_kind};
use kv_proto::record::{Expected, judge_prefix, judge_value};

use super::Call;
use super::counters::add;
use super::pass::PIECE_BYTES;
use crate::clock::{Deadline, boot_ns};
use crate::memory::BufferOn;

impl<F: Fabric> Call<'_, F> {
    /// Reads a value straight into the caller's memory; `None` where the long way is to be taken.
    pub(crate) fn fast_into(
        &mut self,
        at: &Locator,
        key: Option<&[u8]>,
        buffer: &BufferOn<F>,
        offset: usize,
    ) -> Option<()> {
        let value_len = at.value_len_bytes as usize;
        if offset.checked_add(value_len)? > buffer.len() {
            return None;
        }
        let prefix_len = self.fetch(at, Some((buffer.region(), offset)))?;
        // Nothing is in flight: the one READ has completed.
        let value = &buffer.bytes()[offset..offset + value_len];
        self.accept(at, key, prefix_len, Some(value))
    }

    /// Reads a value into a vector; `None` where the long way is to be taken.
    pub(crate) fn fast_get(&mut self, at: &Locator, key: Option<&[u8]>) -> Option<Vec<u8>> {
        let prefix_len = self.fetch(at, None)?;
        let mut value = vec![0; at.value_len_bytes as usize];
        self.lane.arena_read(prefix_len, &mut value);
        self.accept(at, key, prefix_len, Some(&value))?;
        Some(value)
    }

    /// Reads the whole record; the length of its prefix.
    #[inline]
    fn fetch(&mut self, at: &Locator, place: Option<(&F::Region, usize)>) -> Option<usize> {
        let lane = &mut *self.lane;
        let now = boot_ns();
        if !lane.enter(now) || lane.view.dropped {
            return None;
        }
        let row = lane.view.row_for(at).ok()?;
        let (from, follow) = row.place(at.offset_bytes())?;
        let wire_len = at.wire_len_bytes();
        let longest = PIECE_BYTES.min(lane.read_max_bytes() as u64).min(follow);
        if wire_len > longest.min(lane.arena_bytes() as u64) {
            return None;
        }
        let prefix_len = at.prefix_len_bytes() as usize;
        let value_len = at.value_len_bytes as usize;
        let posted = lane.post_one(from, prefix_len, value_len, place, now);
        let arrived = posted.and_then(|()| lane.progress(Deadline::at(now, self.budget)));
        match arrived {
            Ok(then) if lane.leased(then) => Some(prefix_len),
            _ => {
                lane.disconnect();
                None
            }
        }
    }

    /// Judges what arrived (**I4**).
    #[inline]
    fn accept(
        &mut self,
        at: &Locator,
        key: Option<&[u8]>,
        prefix_len: usize,
        value: Option<&[u8]>,
    ) -> Option<()> {
        let lane = &mut *self.lane;
        let mut prefix = std::mem::take(&mut lane.scratch);
        prefix.resize(prefix_len, 0);
        lane.arena_read(0, &mut prefix);
        let accepted = (|| {
            let expected = Expected {
                segment_identity: lane.view.row(at.segment)?.identity,
                locator: *at,
                hash_key: &lane.view.hash_key,
                key,
            };
            let header = judge_prefix(&prefix, &expected).ok()?;
            if header.kind != record_kind::VALUE {
                return None;
            }
            match value {
                Some(value) if self.core.shared().options.verify => judge_value(&prefix, &header, value).ok(),
                _ => Some(()),
            }
        })();
        lane.scratch = prefix;
        add(&lane.counters.gets, u64::from(accepted.is_some()));
        accepted
    }
}
