//! One value that is wanted, and the records that are read for it. Both live in slabs and are used again: what they
//! hold keeps its room.

use std::ops::Range;

use kv_fabric::Region;
use kv_proto::hash::KeyHash;
use kv_proto::layout::{BLOCK_BYTES, HeadValue, Locator, PartRef, RecordHeader};

use super::guess::Guess;
use super::slots::Slot;
use super::{PASS_WAITS, Trouble};
use crate::ReadError;
use crate::backoff::Backoff;
use crate::memory::Buffer;

/// Room for keys that an item begins with; longer ones make it grow once.
const KEY_ROOM: usize = 128;

/// What the caller wants of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Want {
    /// Where it lies.
    Locator,
    /// All of it, into a vector.
    Whole,
    /// All of it, into a slot of the reader where one is free, else into a vector.
    Slot,
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

/// Where an item is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Nobody's.
    Free,
    /// In a queue or in flight.
    Active,
    /// Begun again when something that was asked for, or a moment, has come.
    Waiting,
    /// Its result waits to be taken.
    Done,
}

/// The caller's memory that a value goes to.
pub(crate) enum Memory {
    None,
    /// Borrowed by the call that waits.
    Borrowed(Region),
    /// Moved in until the result is taken.
    Owned(Buffer),
}

impl Memory {
    pub(crate) fn region(&self) -> Option<&Region> {
        match self {
            Self::None => None,
            Self::Borrowed(region) => Some(region),
            Self::Owned(buffer) => Some(buffer.region()),
        }
    }
}

/// One value that is wanted.
pub(crate) struct Item {
    pub(crate) state: State,
    /// Counts beginnings, and users of the place in the slab: what was begun for an earlier one is ignored.
    pub(crate) attempt: u32,
    /// What the caller knows it by.
    pub(crate) user: u64,
    /// Whether its result is polled for, not waited for by a call.
    pub(crate) ticket: bool,
    pub(crate) key: Vec<u8>,
    pub(crate) has_key: bool,
    /// The locator that the caller gave.
    pub(crate) at: Option<Locator>,
    pub(crate) want: Want,
    pub(crate) memory: Memory,
    pub(crate) slot: Option<Slot>,
    pub(crate) hash: KeyHash,
    pub(crate) hashed: bool,
    /// What the buckets gave, and which of them; the last is the one to look at next.
    pub(crate) candidates: Vec<(Locator, u32)>,
    /// The bucket that named what is read now.
    pub(crate) bucket: u32,
    pub(crate) guess: Guess,
    /// What is remembered was wrong: the key is looked up.
    pub(crate) no_guess: bool,
    /// Set when no candidate is left: whether the buckets prove that there is none.
    pub(crate) otherwise: Option<Trouble>,
    pub(crate) large: Option<Box<Large>>,
    pub(crate) out: Vec<u8>,
    /// Groups of READs in flight for it: its memory is not given back, and it is not begun again, before they landed.
    pub(crate) flying: u32,
    /// Whether anything ever was.
    pub(crate) flown: bool,
    /// When it was asked for, or got on last.
    pub(crate) since_ns: u64,
    /// Bytes that were accepted since it was begun, and the most that ever were.
    delivered: u64,
    delivered_most: u64,
    /// Beginnings that ended in each kind of trouble.
    pub(crate) torn: u32,
    pub(crate) stale: u32,
    pub(crate) failed: u32,
    pub(crate) backoff: Backoff,
    pub(crate) trouble: Option<Trouble>,
    /// What went wrong last: the result if time runs out after it.
    pub(crate) last: ReadError,
    pub(crate) result: Option<Result<Found, ReadError>>,
}

impl Item {
    pub(crate) fn new() -> Self {
        Self {
            state: State::Free,
            attempt: 0,
            user: 0,
            ticket: false,
            key: Vec::with_capacity(KEY_ROOM),
            has_key: false,
            at: None,
            want: Want::Locator,
            memory: Memory::None,
            slot: None,
            hash: KeyHash { slot: 0, high: 0 },
            hashed: false,
            candidates: Vec::new(),
            bucket: 0,
            guess: Guess::None,
            no_guess: false,
            otherwise: None,
            large: None,
            out: Vec::new(),
            flying: 0,
            flown: false,
            since_ns: 0,
            delivered: 0,
            delivered_most: 0,
            torn: 0,
            stale: 0,
            failed: 0,
            backoff: Backoff::new(PASS_WAITS.0, PASS_WAITS.1),
            trouble: None,
            last: ReadError::Timeout,
            result: None,
        }
    }

    /// Makes it anew for another value.
    pub(crate) fn reset(&mut self, now_ns: u64) {
        self.state = State::Active;
        self.attempt = self.attempt.wrapping_add(1);
        self.memory = Memory::None;
        self.slot = None;
        self.hashed = false;
        self.no_guess = false;
        self.flown = false;
        self.large = None;
        self.since_ns = now_ns;
        self.delivered_most = 0;
        (self.torn, self.stale, self.failed) = (0, 0, 0);
        self.backoff = Backoff::new(PASS_WAITS.0, PASS_WAITS.1);
        self.last = ReadError::Timeout;
        self.result = None;
    }

    /// Begins again.
    pub(crate) fn begin(&mut self) {
        self.state = State::Active;
        self.attempt = self.attempt.wrapping_add(1);
        self.candidates.clear();
        self.guess = Guess::None;
        self.otherwise = None;
        self.large = None;
        self.out.clear();
        self.delivered = 0;
        self.trouble = None;
    }

    pub(crate) fn key(&self) -> Option<&[u8]> {
        self.has_key.then_some(&self.key)
    }

    /// Notes that `len` more bytes were accepted; whether it got farther than in any beginning before.
    pub(crate) fn advance(&mut self, len: u64) -> bool {
        self.delivered += len;
        let farther = self.delivered > self.delivered_most;
        self.delivered_most = self.delivered_most.max(self.delivered);
        farther
    }

    /// Whether nothing more is to be read for it in this beginning.
    pub(crate) fn is_settled(&self) -> bool {
        self.result.is_some() || self.trouble.is_some() || self.state != State::Active
    }
}

/// Where the bytes of a record's value go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum To {
    /// The item's vector.
    Out,
    /// The caller's memory, or the item's slot.
    Place,
    /// A slot that the item is given when the record is planned.
    Slot,
}

/// A record that is being read: a value, a head, or a part.
#[derive(Debug)]
pub(crate) struct Fetch {
    pub(crate) item: u32,
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
    /// The lane that all its pieces go by: READs of one lane complete in order.
    pub(crate) lane: Option<u32>,
    /// Whether its value arrives in the ring, wherever it belongs.
    pub(crate) in_ring: bool,
    /// Next byte of the value to ask for.
    pub(crate) next: u64,
    pub(crate) prefix_asked: bool,
    /// Bytes of `cover` that arrived and were accepted.
    pub(crate) accepted: u64,
    /// Pieces in flight.
    pub(crate) pieces: u32,
    /// Whether it is in the queue.
    pub(crate) queued: bool,
    /// Complete or refused: nothing of it matters any more.
    pub(crate) over: bool,
}

/// What a record is read for.
#[derive(Debug, Clone)]
pub(crate) struct Aim {
    pub(crate) item: u32,
    pub(crate) part: Option<u32>,
    pub(crate) locator: Locator,
    pub(crate) take: Range<u64>,
    pub(crate) to: To,
    pub(crate) base: usize,
}

impl Fetch {
    pub(crate) fn new(aim: Aim, attempt: u32, prefix: Vec<u8>) -> Self {
        let cover = cover(&aim.take, u64::from(aim.locator.value_len_bytes));
        Self {
            item: aim.item,
            attempt,
            part: aim.part,
            locator: aim.locator,
            identity: 0,
            prefix,
            header: None,
            next: cover.start,
            cover,
            take: aim.take,
            base: aim.base,
            to: aim.to,
            lane: None,
            in_ring: aim.to == To::Out,
            prefix_asked: false,
            accepted: 0,
            pieces: 0,
            queued: true,
            over: false,
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
        let mut item = Item::new();
        item.reset(0);
        item.begin();
        assert!(item.advance(100) && item.advance(100));
        for _ in 0..3 {
            item.begin();
            assert!(!item.advance(100) && !item.advance(100));
        }
        assert!(item.advance(1));
    }
}
