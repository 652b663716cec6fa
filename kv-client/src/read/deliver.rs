//! Records: what is wanted of them, judging what arrived of them (**I4**), and delivering it.

use std::ops::Range;

use kv_proto::layout::{BLOCK_BYTES, Locator, RecordHeader, record_kind};
use kv_proto::parts::{judge_part, part_locator};
use kv_proto::record::{Expected, Refusal, judge_block, judge_prefix, judge_value, key_in, parse_head};

use super::Trouble;
use super::engine::{Engine, Turn};
use super::guess::Guess;
use super::item::{Aim, Fetch, Found, Item, Large, To, Want, clamp};
use crate::ReadError;
use crate::memory::landed;

/// Room for prefixes: of keys of up to some hundred bytes and values of up to some MiB.
const PREFIX_ROOM: usize = 512;

impl From<Refusal> for Trouble {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Torn => Self::TornRecord,
            Refusal::Stale => Self::StaleRecord,
            Refusal::OtherKey => Self::OtherKey,
        }
    }
}

impl Engine {
    /// Queues the record that `locator` names. Nothing is in flight to the item's memory.
    pub(super) fn want_record(&mut self, index: u32, locator: Locator) {
        let len = u64::from(locator.value_len_bytes);
        self.drop_slot(index);
        let item = &self.items[index as usize];
        let (take, to, base) = match item.want {
            Want::Locator => (0..0, To::Out, 0),
            Want::Whole => (0..len, To::Out, 0),
            Want::Slot => (0..len, To::Slot, 0),
            Want::Range { offset, len: wanted } => (clamp(offset, wanted, len), To::Out, 0),
            Want::Place { offset, room } if len <= room as u64 => (0..len, To::Place, offset),
            // Its header tells how much is needed.
            Want::Place { .. } => (0..0, To::Out, 0),
        };
        self.push_fetch(Aim {
            item: index,
            part: None,
            locator,
            take,
            to,
            base,
        });
    }

    pub(super) fn push_fetch(&mut self, aim: Aim) {
        let attempt = self.items[aim.item as usize].attempt;
        let index = match self.free_fetches.pop() {
            Some(index) => {
                let fetch = &mut self.fetches[index as usize];
                let mut prefix = std::mem::take(&mut fetch.prefix);
                prefix.clear();
                *fetch = Fetch::new(aim, attempt, prefix);
                index
            }
            None => {
                self.fetches
                    .push(Fetch::new(aim, attempt, Vec::with_capacity(PREFIX_ROOM)));
                // Room for all where they may wait together, as for items.
                let count = self.fetches.len();
                self.free_fetches.reserve(count);
                self.records.reserve(count.saturating_sub(self.records.len()));
                count as u32 - 1
            }
        };
        self.records.push_back(index);
    }

    /// Frees the place of a fetch that is neither queued nor in flight.
    pub(super) fn release_fetch(&mut self, index: u32) {
        let fetch = &mut self.fetches[index as usize];
        if fetch.pieces == 0 && !fetch.queued {
            fetch.over = true;
            fetch.lane = None;
            self.free_fetches.push(index);
        }
    }

    /// Takes a piece of a record; its item.
    pub(super) fn piece_landed(
        &mut self,
        lane: usize,
        index: u32,
        with_prefix: bool,
        piece: Range<u64>,
        at: usize,
    ) -> u32 {
        let fetch = &mut self.fetches[index as usize];
        fetch.pieces -= 1;
        let item = fetch.item;
        let over = fetch.over;
        self.items[item as usize].flying -= 1;
        if !over && !self.items[item as usize].is_settled() {
            // Taken out while it is judged, so that the engine can be changed by what comes of it.
            let none = Fetch::new(Aim::nothing(), 0, Vec::new());
            let mut fetch = std::mem::replace(&mut self.fetches[index as usize], none);
            match self.judge_piece(lane, &mut fetch, with_prefix, piece, at) {
                Ok(true) => {
                    fetch.over = true;
                    self.complete(&fetch);
                }
                Ok(false) => {}
                Err(trouble) => {
                    fetch.over = true;
                    self.refused(item, trouble);
                }
            }
            self.fetches[index as usize] = fetch;
        }
        self.release_fetch(index);
        item
    }

    fn refused(&mut self, index: u32, trouble: Trouble) {
        let item = &mut self.items[index as usize];
        item.trouble = Some(match trouble {
            Trouble::OtherKey if item.at.is_some() => Trouble::StaleRecord,
            // Whether the bucket names it still is not known.
            _ if matches!(item.guess, Guess::Open(_)) => Trouble::WrongGuess,
            Trouble::OtherKey if item.guess == Guess::Right => Trouble::WrongGuess,
            other => other,
        });
        let others = u64::from(item.trouble == Some(Trouble::OtherKey));
        super::counters::add(&self.counters.other_keys, others);
    }

    /// Judges and delivers one piece; whether its record is complete.
    fn judge_piece(
        &mut self,
        lane: usize,
        fetch: &mut Fetch,
        with_prefix: bool,
        piece: Range<u64>,
        at: usize,
    ) -> Result<bool, Trouble> {
        let mut value_at = at;
        if with_prefix {
            let len = fetch.locator.prefix_len_bytes() as usize;
            value_at += len;
            fetch.prefix.resize(len, 0);
            self.lanes[lane].read(at, &mut fetch.prefix);
            fetch.header = Some(self.judge_header(fetch)?);
        }
        // READs of a lane complete in order, so the prefix came before the rest.
        let Some(header) = fetch.header else {
            return Err(Trouble::TornRecord);
        };
        if !piece.is_empty() {
            let len = piece.end - piece.start;
            self.deliver(lane, fetch, &header, piece, value_at)?;
            fetch.accepted += len;
            let item = &mut self.items[fetch.item as usize];
            if item.advance(len) {
                self.advanced = true;
                item.since_ns = self.now_ns;
            }
        }
        Ok(fetch.is_complete())
    }

    fn judge_header(&self, fetch: &Fetch) -> Result<RecordHeader, Trouble> {
        let item = &self.items[fetch.item as usize];
        let expected = Expected {
            segment_identity: fetch.identity,
            locator: fetch.locator,
            hash_key: &self.footing.view.hash_key,
            key: item.key(),
        };
        match (fetch.part, &item.large) {
            (Some(part), Some(large)) => {
                let expected = Expected {
                    key: Some(&large.key),
                    ..expected
                };
                Ok(judge_part(&fetch.prefix, &expected, &large.header, part)?)
            }
            _ => Ok(judge_prefix(&fetch.prefix, &expected)?),
        }
    }

    /// Judges a piece of a value, which begins at `at` of the ring or lies in its place, and copies what is wanted of it
    /// to where it belongs.
    fn deliver(
        &mut self,
        lane: usize,
        fetch: &Fetch,
        header: &RecordHeader,
        piece: Range<u64>,
        at: usize,
    ) -> Result<(), Refusal> {
        // A head is looked into, so it is checked whatever was asked.
        let verify = self.options.verify || header.kind == record_kind::HEAD;
        let mut scratch = std::mem::take(&mut self.scratch);
        let mut result = Ok(());
        let mut start = piece.start;
        while start < piece.end && result.is_ok() {
            let end = piece.end.min(start + BLOCK_BYTES as u64);
            let len = (end - start) as usize;
            let from = at + (start - piece.start) as usize;
            let wanted = fetch.take.start.max(start)..fetch.take.end.min(end);
            let item = &mut self.items[fetch.item as usize];
            result = if fetch.to == To::Place {
                let region = item.memory.region().or(self.slots.region());
                if let (true, Some(region)) = (fetch.in_ring, region) {
                    scratch.resize(len, 0);
                    self.lanes[lane].read(from, &mut scratch);
                    region.memory().write(fetch.base + start as usize, &scratch);
                }
                region.map_or(Err(Refusal::Torn), |region| {
                    if !verify {
                        return Ok(());
                    }
                    // Its READ has completed, and the memory is this request's until it is done.
                    let block = landed(region.memory(), fetch.base + start as usize, len);
                    judge(fetch, header, verify, start, block)
                })
            } else if wanted == (start..end) {
                // Straight to the vector where all of the block is wanted, else through the scratch.
                let out_at = fetch.base + (start - fetch.take.start) as usize;
                let block = room_in(&mut item.out, fetch, out_at, len);
                self.lanes[lane].read(from, block);
                judge(fetch, header, verify, start, block)
            } else {
                scratch.resize(len, 0);
                self.lanes[lane].read(from, &mut scratch);
                let out_at = fetch.base + (wanted.start.saturating_sub(fetch.take.start)) as usize;
                let part = &scratch[(wanted.start - start) as usize..(wanted.end - start) as usize];
                room_in(&mut item.out, fetch, out_at, part.len()).copy_from_slice(part);
                judge(fetch, header, verify, start, &scratch)
            };
            start = end;
        }
        self.scratch = scratch;
        result
    }

    /// All of a record is there.
    fn complete(&mut self, fetch: &Fetch) {
        let Some(header) = fetch.header else { return };
        let index = fetch.item;
        if fetch.part.is_some() {
            return self.part_complete(index);
        }
        let item = &mut self.items[index as usize];
        if item.hashed && item.guess == Guess::None {
            self.locators.remember(item.hash, fetch.locator, item.bucket);
        }
        if item.guess != Guess::Right && header.kind == record_kind::HEAD && item.guess != Guess::None {
            item.trouble = Some(Trouble::WrongGuess);
            return;
        }
        if header.kind == record_kind::HEAD {
            return self.head_complete(fetch, &header);
        }
        let item = &self.items[index as usize];
        let value_len = u64::from(fetch.locator.value_len_bytes);
        let result = match item.want {
            Want::Place { room, .. } if value_len > room as u64 => Err(ReadError::TooLarge {
                needed_bytes: value_len,
            }),
            _ => Ok(Found {
                value_len_bytes: value_len,
                locator: fetch.locator,
            }),
        };
        if let (Guess::Open(_), Ok(found)) = (item.guess, result) {
            // The bucket decides.
            self.items[index as usize].guess = Guess::Open(Some(found));
            return;
        }
        self.settle(index, result);
    }

    fn part_complete(&mut self, index: u32) {
        let Some(large) = self.items[index as usize].large.as_mut() else {
            return;
        };
        large.left -= 1;
        if large.left == 0 {
            let found = Found {
                value_len_bytes: large.head.total_len_bytes,
                locator: large.locator,
            };
            self.settle(index, Ok(found));
        }
    }

    /// The record is the head of a large value: its parts are wanted next.
    fn head_complete(&mut self, fetch: &Fetch, header: &RecordHeader) {
        let index = fetch.item;
        let item = &mut self.items[index as usize];
        let value_len = u64::from(fetch.locator.value_len_bytes);
        if item.want == Want::Locator {
            let found = Found {
                value_len_bytes: value_len,
                locator: fetch.locator,
            };
            return self.settle(index, Ok(found));
        }
        if fetch.take != (0..value_len) {
            // Once more, all of it, to the vector.
            return self.push_fetch(Aim {
                item: index,
                part: None,
                locator: fetch.locator,
                take: 0..value_len,
                to: To::Out,
                base: 0,
            });
        }
        let mut value = std::mem::take(&mut item.out);
        if fetch.to == To::Place
            && let Some(region) = item.memory.region().or(self.slots.region())
        {
            value.resize(value_len as usize, 0);
            region.memory().read(fetch.base, &mut value);
        }
        self.drop_slot(index);
        self.head_known(index, fetch, header, &value);
    }

    /// The head of a large value is there and accepted.
    fn head_known(&mut self, index: u32, fetch: &Fetch, header: &RecordHeader, value: &[u8]) {
        let item = &mut self.items[index as usize];
        let Ok((head, parts)) = parse_head(value) else {
            item.trouble = Some(Trouble::TornRecord);
            return;
        };
        let total = head.total_len_bytes;
        let take = match item.want {
            Want::Range { offset, len } => clamp(offset, len, total),
            Want::Place { room, .. } if total > room as u64 => {
                return self.settle(index, Err(ReadError::TooLarge { needed_bytes: total }));
            }
            _ => 0..total,
        };
        if !reserve(item, &take) {
            return self.settle(index, Err(ReadError::NoResources));
        }
        let part_len = u64::from(head.part_len_bytes);
        let parts_wanted = if take.is_empty() {
            0..0
        } else {
            take.start / part_len..take.end.div_ceil(part_len)
        };
        let locator = fetch.locator;
        item.large = Some(Box::new(Large {
            header: *header,
            head,
            parts,
            key: key_in(&fetch.prefix, header).to_vec(),
            locator,
            next: parts_wanted.start as u32,
            end: parts_wanted.end as u32,
            left: (parts_wanted.end - parts_wanted.start) as u32,
            take,
        }));
        if parts_wanted.is_empty() {
            let found = Found {
                value_len_bytes: total,
                locator,
            };
            self.settle(index, Ok(found));
        } else {
            let attempt = item.attempt;
            self.larges.push_back(Turn { item: index, attempt });
        }
    }

    /// Queues the next part of a large value; whether there was one.
    pub(super) fn plan_part(&mut self, index: u32) -> bool {
        let item = &mut self.items[index as usize];
        let Some(large) = item.large.as_mut().filter(|large| large.next < large.end) else {
            return false;
        };
        let part = large.next;
        large.next += 1;
        let Some(locator) = part_locator(&large.locator, &large.head, &large.parts, part) else {
            item.trouble = Some(Trouble::TornRecord);
            return false;
        };
        let start = u64::from(part) * u64::from(large.head.part_len_bytes);
        let wanted =
            large.take.start.max(start)..large.take.end.min(start + u64::from(locator.value_len_bytes));
        let out_at = (wanted.start - large.take.start) as usize;
        let (to, base) = match item.want {
            Want::Place { offset, .. } => (To::Place, offset + out_at),
            _ => (To::Out, out_at),
        };
        self.push_fetch(Aim {
            item: index,
            part: Some(part),
            locator,
            take: wanted.start - start..wanted.end - start,
            to,
            base,
        });
        true
    }
}

impl Aim {
    /// What no fetch is for.
    fn nothing() -> Self {
        Self {
            item: 0,
            part: None,
            locator: Locator {
                segment: 0,
                offset_units: 0,
                value_len_bytes: 0,
                key_len_bytes: 0,
                tag: 0,
            },
            take: 0..0,
            to: To::Out,
            base: 0,
        }
    }
}

/// Makes room for a large value, without giving up the process if there is none.
fn reserve(item: &mut Item, take: &Range<u64>) -> bool {
    if matches!(item.want, Want::Place { .. }) {
        return true;
    }
    let Ok(len) = usize::try_from(take.end - take.start) else {
        return false;
    };
    item.out = Vec::new();
    if item.out.try_reserve_exact(len).is_err() {
        return false;
    }
    item.out.resize(len, 0);
    true
}

/// `len` bytes at `at` of the vector that `fetch` delivers to, which grows once to all that is taken.
fn room_in<'o>(out: &'o mut Vec<u8>, fetch: &Fetch, at: usize, len: usize) -> &'o mut [u8] {
    if out.len() < at + len {
        let all = fetch.base + (fetch.take.end - fetch.take.start) as usize;
        if out.capacity() == 0 {
            // Zeroed by the kernel where it is long.
            *out = vec![0; all.max(at + len)];
        } else {
            out.resize(all.max(at + len), 0);
        }
    }
    &mut out[at..at + len]
}

/// Judges the block of a value that begins at `start`; a value of one block is judged whole.
fn judge(
    fetch: &Fetch,
    header: &RecordHeader,
    verify: bool,
    start: u64,
    block: &[u8],
) -> Result<(), Refusal> {
    if !verify {
        return Ok(());
    }
    if fetch.locator.value_len_bytes as usize <= BLOCK_BYTES {
        return judge_value(&fetch.prefix, header, block);
    }
    judge_block(&fetch.prefix, header, start as usize / BLOCK_BYTES, block)
}
