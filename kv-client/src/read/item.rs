//! One value that is wanted, and the records that are read for it.

use std::ops::Range;

use kv_proto::hash::KeyHash;
use kv_proto::layout::{BLOCK_BYTES, HeadValue, Locator, PartRef, RecordHeader};

use super::lane::Trouble;
use crate::ReadError;

/// What the caller wants of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Want {
    /// Where it lies.
    Locator,
    /// All of it, into a vector.
    Whole,
    /// These bytes of it as far as they are there, into a vector.
    Range { offset: u64, len: u64 },
    /// All of it, into the caller's memory at `offset`, where there are `room` bytes.
    Place { offset: usize, room: usize },
}

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Found {
    /// Length of the whole value, bytes.
    pub(crate) value_len_bytes: u64,
    pub(crate) locator: Locator,
}

/// A large value whose head was read.
#[derive(Debug)]
pub(crate) struct Large {
    pub(crate) header: RecordHeader,
    pub(crate) head: HeadValue,
    pub(crate) parts: Vec<PartRef>,
    pub(crate) key: Vec<u8>,
    pub(crate) locator: Locator,
    /// Part that is planned next, and the last one wanted.
    pub(crate) next: u32,
    pub(crate) end: u32,
    /// Parts that are not complete.
    pub(crate) left: u32,
    /// Bytes of the whole value that are wanted.
    pub(crate) take: Range<u64>,
}

/// The head of a large value, accepted as it was read.
#[derive(Debug)]
pub(crate) struct HeadRead {
    pub(crate) header: RecordHeader,
    pub(crate) prefix: Vec<u8>,
    pub(crate) value: Vec<u8>,
}

/// One value that is wanted.
#[derive(Debug)]
pub(crate) struct Item<'k> {
    pub(crate) key: Option<&'k [u8]>,
    /// The locator that the caller gave.
    pub(crate) at: Option<Locator>,
    pub(crate) want: Want,
    pub(crate) hash: KeyHash,
    /// The head at that locator, where it was read already; good for one beginning.
    pub(crate) head: Option<Box<HeadRead>>,
    /// What the buckets gave, first the one to look at next.
    pub(crate) candidates: Vec<Locator>,
    /// Set when no candidate is left: whether the buckets prove that there is none.
    pub(crate) otherwise: Option<Trouble>,
    pub(crate) large: Option<Box<Large>>,
    pub(crate) out: Vec<u8>,
    /// Counts beginnings; what was posted for an earlier one is ignored.
    pub(crate) attempt: u32,
    /// Bytes that were accepted since it was begun, and the most that ever were.
    delivered: u64,
    delivered_most: u64,
    /// Beginnings that ended in each kind of trouble.
    pub(crate) torn: u32,
    pub(crate) stale: u32,
    pub(crate) failed: u32,
    pub(crate) trouble: Option<Trouble>,
    pub(crate) result: Option<Result<Found, ReadError>>,
}

impl<'k> Item<'k> {
    pub(crate) fn new(key: Option<&'k [u8]>, at: Option<Locator>, want: Want) -> Self {
        Self {
            key,
            at,
            want,
            hash: KeyHash { slot: 0, high: 0 },
            head: None,
            candidates: Vec::new(),
            otherwise: None,
            large: None,
            out: Vec::new(),
            attempt: 0,
            delivered: 0,
            delivered_most: 0,
            torn: 0,
            stale: 0,
            failed: 0,
            trouble: None,
            result: None,
        }
    }

    /// Begins again.
    pub(crate) fn begin(&mut self) {
        self.attempt += 1;
        self.candidates.clear();
        self.otherwise = None;
        self.large = None;
        self.out.clear();
        self.delivered = 0;
        self.trouble = None;
    }

    /// Notes that `len` more bytes were accepted; whether it got farther than in any beginning before.
    pub(crate) fn advance(&mut self, len: u64) -> bool {
        self.delivered += len;
        let farther = self.delivered > self.delivered_most;
        self.delivered_most = self.delivered_most.max(self.delivered);
        farther
    }

    /// Whether nothing more is to be read for it in this pass.
    pub(crate) fn is_settled(&self) -> bool {
        self.result.is_some() || self.trouble.is_some()
    }
}

/// Where the bytes of a record's value go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum To {
    /// The item's vector.
    Out,
    /// The caller's memory.
    Place,
}

/// A record that is being read: a value, a head, or a part.
#[derive(Debug)]
pub(crate) struct Fetch {
    pub(crate) item: usize,
    pub(crate) attempt: u32,
    pub(crate) part: Option<u32>,
    pub(crate) locator: Locator,
    /// Identity of its segment by the view that it is read under.
    pub(crate) identity: u64,
    pub(crate) prefix: Vec<u8>,
    pub(crate) header: Option<RecordHeader>,
    /// Bytes of the value that are delivered.
    pub(crate) take: Range<u64>,
    /// Bytes of the value that are read: `take` grown to whole blocks.
    pub(crate) cover: Range<u64>,
    /// Where `take` begins in the vector or in the caller's memory.
    pub(crate) base: usize,
    pub(crate) to: To,
    /// Next byte of the value to ask for.
    pub(crate) next: u64,
    pub(crate) prefix_asked: bool,
    /// Bytes of `cover` that arrived and were accepted.
    pub(crate) accepted: u64,
    /// Pieces in flight.
    pub(crate) pieces: u32,
}

impl Fetch {
    pub(crate) fn new(
        item: usize,
        attempt: u32,
        locator: Locator,
        take: Range<u64>,
        to: To,
        base: usize,
    ) -> Self {
        Self {
            item,
            attempt,
            part: None,
            locator,
            identity: 0,
            prefix: Vec::new(),
            header: None,
            cover: cover(&take, u64::from(locator.value_len_bytes)),
            next: cover(&take, u64::from(locator.value_len_bytes)).start,
            take,
            base,
            to,
            prefix_asked: false,
            accepted: 0,
            pieces: 0,
        }
    }

    /// Whether all of it was asked for.
    pub(crate) fn is_asked(&self) -> bool {
        self.prefix_asked && self.next >= self.cover.end
    }

    /// Whether all of it arrived and was accepted.
    pub(crate) fn is_complete(&self) -> bool {
        self.header.is_some() && self.accepted == self.cover.end - self.cover.start
    }
}

/// Bytes that must be read so that `take` can be checked: whole blocks, or all of a value that has none.
fn cover(take: &Range<u64>, value_len: u64) -> Range<u64> {
    const BLOCK: u64 = BLOCK_BYTES as u64;
    if take.is_empty() {
        return 0..0;
    }
    if value_len <= BLOCK {
        return 0..value_len;
    }
    let end = take.end.div_ceil(BLOCK) * BLOCK;
    take.start / BLOCK * BLOCK..end.min(value_len)
}

/// `offset..offset + len` of a value, as far as it is there.
pub(crate) fn clamp(offset: u64, len: u64, value_len: u64) -> Range<u64> {
    let start = offset.min(value_len);
    start..offset.saturating_add(len).clamp(start, value_len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_blocks_are_read_and_never_more_than_there_are() {
        assert_eq!(cover(&(0..0), 100), 0..0);
        assert_eq!(cover(&(10..20), 100), 0..100);
        assert_eq!(cover(&(0..65_536), 65_536), 0..65_536);
        assert_eq!(cover(&(0..1), 65_537), 0..65_536);
        assert_eq!(cover(&(65_536..65_537), 65_537), 65_536..65_537);
        assert_eq!(cover(&(65_535..131_073), 300_000), 0..196_608);
        assert_eq!(clamp(5, 10, 8), 5..8);
        assert_eq!(clamp(9, 10, 8), 8..8);
        assert_eq!(clamp(1, u64::MAX, 8), 1..8);
    }

    #[test]
    fn what_was_read_before_does_not_count_again() {
        let mut item = Item::new(Some(b"k"), None, Want::Whole);
        item.begin();
        assert!(item.advance(100) && item.advance(100));
        for _ in 0..3 {
            item.begin();
            assert!(!item.advance(100) && !item.advance(100));
        }
        assert!(item.advance(1));
    }
}
