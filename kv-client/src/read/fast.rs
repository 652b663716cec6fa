//! The short way for one value whose place is known: one READ, no allocation besides the caller's.
//!
//! Whatever is unusual (no connection, a moved segment, a large value, bytes that are not accepted) is left to the long
//! way, which begins from the start; only a head that was accepted is taken along.

use kv_fabric::Fabric;
use kv_proto::layout::{Locator, record_kind};
use kv_proto::record::{Expected, judge_prefix, judge_value};

use super::Call;
use super::counters::add;
use super::item::HeadRead;
use super::pass::PIECE_BYTES;
use crate::clock::{Deadline, boot_ns};
use crate::memory::BufferOn;

/// Where the short way led.
pub(crate) enum Fast<T> {
    Done(T),
    /// The long way goes on from here.
    LongWay(Option<Box<HeadRead>>),
}

/// What was accepted.
enum Accepted {
    Value,
    Head(Box<HeadRead>),
}

impl<F: Fabric> Call<'_, F> {
    /// Reads a value straight into the caller's memory.
    pub(crate) fn fast_into(
        &mut self,
        at: &Locator,
        key: Option<&[u8]>,
        buffer: &BufferOn<F>,
        offset: usize,
    ) -> Fast<()> {
        let value_len = at.value_len_bytes as usize;
        let end = offset.checked_add(value_len).filter(|&end| end <= buffer.len());
        let Some(end) = end else {
            return Fast::LongWay(None);
        };
        let Some(prefix_len) = self.fetch(at, Some((buffer.region(), offset))) else {
            return Fast::LongWay(None);
        };
        // Nothing is in flight: the one READ has completed.
        let value = &buffer.bytes()[offset..end];
        match self.accept(at, key, prefix_len, value) {
            Some(Accepted::Value) => Fast::Done(()),
            Some(Accepted::Head(head)) => Fast::LongWay(Some(head)),
            None => Fast::LongWay(None),
        }
    }

    /// Reads a value into a vector.
    pub(crate) fn fast_get(&mut self, at: &Locator, key: Option<&[u8]>) -> Fast<Vec<u8>> {
        let Some(prefix_len) = self.fetch(at, None) else {
            return Fast::LongWay(None);
        };
        let mut value = vec![0; at.value_len_bytes as usize];
        self.lane.arena_read(prefix_len, &mut value);
        match self.accept(at, key, prefix_len, &value) {
            Some(Accepted::Value) => Fast::Done(value),
            Some(Accepted::Head(head)) => Fast::LongWay(Some(head)),
            None => Fast::LongWay(None),
        }
    }

    /// Reads the whole record; the length of its prefix.
    #[inline]
    fn fetch(&mut self, at: &Locator, place: Option<(&F::Region, usize)>) -> Option<usize> {
        let lane = &mut *self.lane;
        let now = boot_ns();
        if !lane.enter(now) || lane.footing.view.dropped {
            return None;
        }
        let row = lane.footing.view.row_for(at).ok()?;
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
            ended => {
                add(&lane.counters.expired, u64::from(ended.is_ok()));
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
        value: &[u8],
    ) -> Option<Accepted> {
        let lane = &mut *self.lane;
        let mut prefix = std::mem::take(&mut lane.scratch);
        prefix.resize(prefix_len, 0);
        lane.arena_read(0, &mut prefix);
        let accepted = (|| {
            let expected = Expected {
                segment_identity: lane.footing.view.row(at.segment)?.identity,
                locator: *at,
                hash_key: &lane.footing.view.hash_key,
                key,
            };
            let header = judge_prefix(&prefix, &expected).ok()?;
            // A head is looked into, so it is checked whatever was asked.
            if self.core.shared().options.verify || header.kind == record_kind::HEAD {
                judge_value(&prefix, &header, value).ok()?;
            }
            if header.kind == record_kind::VALUE {
                add(&lane.counters.gets, 1);
                return Some(Accepted::Value);
            }
            Some(Accepted::Head(Box::new(HeadRead {
                header,
                prefix: prefix.clone(),
                value: value.to_vec(),
            })))
        })();
        lane.scratch = prefix;
        accepted
    }
}
