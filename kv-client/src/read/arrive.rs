//! Judging what arrived (**I4**) and delivering it.

use std::sync::Arc;

use kv_fabric::{Fabric, Region};
use kv_proto::bucket::{IndexRefusal, candidates, judge_bucket, judge_directory_entry};
use kv_proto::layout::{BLOCK_BYTES, Bucket, DirectoryEntry, Locator, RecordHeader, record_kind};
use kv_proto::parts::{judge_part, part_locator};
use kv_proto::record::{Expected, Refusal, judge_block, judge_prefix, judge_value, key_in, parse_head};
use zerocopy::FromBytes;

use super::counters::add;
use super::item::{Fetch, Found, HeadRead, Item, Large, To, Want, clamp};
use super::lane::Trouble;
use super::pass::{BUCKET_BYTES, ENTRY_BYTES, Flying, Pass};
use crate::ReadError;
use crate::tables::PAGE_ENTRIES;

/// Why a record is not what was wanted.
enum Refused {
    Trouble(Trouble),
    OtherKey,
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Torn => Self::Trouble(Trouble::TornRecord),
            Refusal::Stale => Self::Trouble(Trouble::StaleRecord),
            Refusal::OtherKey => Self::OtherKey,
        }
    }
}

impl<F: Fabric> Pass<'_, '_, F> {
    /// Takes what a group of READs brought to `at` of the arena.
    pub(super) fn landed(&mut self, flying: Flying, at: usize) {
        match flying {
            Flying::Page(page) => self.page_landed(page, at),
            Flying::Buckets {
                item,
                attempt,
                directory_index,
                entry,
                buckets,
                count,
            } => {
                if self.items[item].attempt == attempt && !self.items[item].is_settled() {
                    self.buckets_landed(item, directory_index, &entry, &buckets[..count], at);
                }
            }
            Flying::Piece {
                fetch,
                with_prefix,
                start,
                end,
            } => self.piece_landed(fetch, with_prefix, start, end, at),
        }
    }

    /// Counts what a group of READs brought to `at` when the lease was over: it is discarded, whatever it is.
    pub(super) fn expired(&self, flying: Flying, at: usize) {
        add(&self.lane.counters.expired, 1);
        let reused = match flying {
            Flying::Buckets {
                entry,
                buckets,
                count,
                ..
            } => buckets[..count].iter().enumerate().any(|(place, &index)| {
                let mut bytes = [0; BUCKET_BYTES];
                self.lane.arena_read(at + place * BUCKET_BYTES, &mut bytes);
                let scope = &self.lane.footing.view.scope;
                Bucket::read_from_bytes(&bytes)
                    .is_ok_and(|bucket| scope.bucket_checksum(entry.group, index, &bucket) != bucket.checksum)
            }),
            Flying::Piece { fetch, .. } => self.fetches[fetch].as_ref().is_some_and(|fetch| {
                let mut prefix = vec![0; fetch.locator.prefix_len_bytes() as usize];
                self.lane.arena_read(at, &mut prefix);
                fetch.header.is_none() && kv_proto::record::check_prefix(&prefix).is_err()
            }),
            Flying::Page(_) => false,
        };
        add(&self.lane.counters.expired_reused, u64::from(reused));
    }

    fn page_landed(&mut self, page: u32, at: usize) {
        let view = Arc::clone(&self.lane.footing.view);
        let directory = &view.directory;
        let first = page * PAGE_ENTRIES;
        let count = directory.entries().saturating_sub(first).min(PAGE_ENTRIES);
        let mut entries = Vec::with_capacity(count as usize);
        for index in 0..count {
            let mut bytes = [0; ENTRY_BYTES];
            self.lane
                .arena_read(at + index as usize * ENTRY_BYTES, &mut bytes);
            let Ok(entry) = DirectoryEntry::read_from_bytes(&bytes) else {
                return;
            };
            let (version, depth) = (directory.version, directory.depth);
            if judge_directory_entry(&view.scope, version, depth, first + index, &entry).is_err() {
                self.pages_torn = true;
                add(&self.lane.counters.torn, 1);
                return;
            }
            entries.push(entry);
        }
        self.advanced = true;
        self.pages_read.push((page, entries.into()));
    }

    fn buckets_landed(
        &mut self,
        index: usize,
        directory_index: u32,
        entry: &DirectoryEntry,
        buckets: &[u32],
        at: usize,
    ) {
        let item = &mut self.items[index];
        let key_len = item.key.map_or(0, <[u8]>::len);
        for (place, &bucket_index) in buckets.iter().enumerate() {
            let mut bytes = [0; BUCKET_BYTES];
            self.lane.arena_read(at + place * BUCKET_BYTES, &mut bytes);
            let Ok(bucket) = Bucket::read_from_bytes(&bytes) else {
                return;
            };
            match judge_bucket(
                &self.lane.footing.view.scope,
                entry,
                bucket_index,
                &bucket,
                item.hash,
            ) {
                Ok(()) => item.candidates.extend(candidates(&bucket, item.hash, key_len)),
                Err(IndexRefusal::Torn) => item.otherwise = Some(Trouble::TornBucket(directory_index)),
                // Stale says more than torn: reading again cannot help.
                Err(IndexRefusal::Stale) => item.otherwise = Some(Trouble::StaleBucket(directory_index)),
            }
        }
        self.next_candidate(index);
    }

    /// Goes on with the next record that can be the key's; without any the buckets decide.
    fn next_candidate(&mut self, index: usize) {
        let item = &mut self.items[index];
        if item.candidates.is_empty() {
            match item.otherwise {
                Some(trouble) => item.trouble = Some(trouble),
                None => self.settle(index, Err(ReadError::NotFound)),
            }
            return;
        }
        let locator = item.candidates.remove(0);
        let alone = item.candidates.is_empty() && item.otherwise.is_none();
        if item.want == Want::Locator && alone {
            let found = Found {
                value_len_bytes: u64::from(locator.value_len_bytes),
                locator,
            };
            self.settle(index, Ok(found));
        } else {
            self.want_record(index, locator);
        }
    }

    fn settle(&mut self, index: usize, result: Result<Found, ReadError>) {
        self.advanced = true;
        let value = result.is_ok() && self.items[index].want != Want::Locator;
        add(&self.lane.counters.gets, u64::from(value));
        self.items[index].result = Some(result);
    }

    fn piece_landed(&mut self, index: usize, with_prefix: bool, start: u64, end: u64, at: usize) {
        // Taken out while it is judged, so that the pass can be changed by what comes of it.
        let Some(mut fetch) = self.fetches[index].take() else {
            return;
        };
        fetch.pieces -= 1;
        if !self.is_live(&fetch) {
            if fetch.pieces > 0 {
                self.fetches[index] = Some(fetch);
            } else {
                self.drop_fetch(index);
            }
            return;
        }
        let item = fetch.item;
        match self.judge_piece(&mut fetch, with_prefix, start, end, at) {
            Ok(true) => {
                self.drop_fetch(index);
                self.complete(fetch);
            }
            Ok(false) => self.fetches[index] = Some(fetch),
            Err(refused) => {
                self.drop_fetch(index);
                match refused {
                    Refused::OtherKey if self.items[item].at.is_none() => {
                        add(&self.lane.counters.other_keys, 1);
                        self.next_candidate(item);
                    }
                    Refused::OtherKey => self.items[item].trouble = Some(Trouble::StaleRecord),
                    Refused::Trouble(trouble) => self.items[item].trouble = Some(trouble),
                }
            }
        }
    }

    /// Judges and delivers one piece; whether its record is complete.
    fn judge_piece(
        &mut self,
        fetch: &mut Fetch,
        with_prefix: bool,
        start: u64,
        end: u64,
        at: usize,
    ) -> Result<bool, Refused> {
        let mut value_at = at;
        if with_prefix {
            let len = fetch.locator.prefix_len_bytes() as usize;
            value_at += len;
            fetch.prefix.resize(len, 0);
            self.lane.arena_read(at, &mut fetch.prefix);
            fetch.header = Some(self.judge_header(fetch)?);
        }
        // READs complete in order, so the prefix came before the rest.
        let Some(header) = fetch.header else {
            return Err(Refused::Trouble(Trouble::TornRecord));
        };
        if end > start {
            self.deliver(fetch, &header, start, end, value_at)?;
            fetch.accepted += end - start;
            self.advanced |= self.items[fetch.item].advance(end - start);
        }
        Ok(fetch.is_complete())
    }

    fn judge_header(&self, fetch: &Fetch) -> Result<RecordHeader, Refused> {
        let item = &self.items[fetch.item];
        let expected = Expected {
            segment_identity: fetch.identity,
            locator: fetch.locator,
            hash_key: &self.lane.footing.view.hash_key,
            key: item.key,
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

    /// Judges bytes `start..end` of a value, which begin at `at` of the arena or lie in their place, and copies what
    /// is wanted of them to where it belongs.
    fn deliver(
        &mut self,
        fetch: &Fetch,
        header: &RecordHeader,
        start: u64,
        end: u64,
        at: usize,
    ) -> Result<(), Refused> {
        // A head is looked into, so it is checked whatever was asked.
        let verify = self.verify || header.kind == record_kind::HEAD;
        let mut scratch = std::mem::take(&mut self.lane.scratch);
        let mut result = Ok(());
        let mut block_start = start;
        while block_start < end && result.is_ok() {
            let block_end = end.min(block_start + BLOCK_BYTES as u64);
            let len = (block_end - block_start) as usize;
            let wanted = fetch.take.start.max(block_start)..fetch.take.end.min(block_end);
            // Straight to the vector where all of the block is wanted, else through the scratch.
            let straight = fetch.to == To::Out && wanted == (block_start..block_end);
            if straight {
                let out_at = fetch.base + (block_start - fetch.take.start) as usize;
                let block = room_in(&mut self.items[fetch.item].out, fetch, out_at, len);
                self.lane.arena_read(at + (block_start - start) as usize, block);
                result = judge(fetch, header, verify, block_start, block);
            } else if fetch.to == To::Place {
                if verify && let Some(place) = self.place {
                    scratch.resize(len, 0);
                    let memory = place.region().memory();
                    memory.read(fetch.base + block_start as usize, &mut scratch);
                    result = judge(fetch, header, verify, block_start, &scratch);
                }
            } else {
                scratch.resize(len, 0);
                self.lane
                    .arena_read(at + (block_start - start) as usize, &mut scratch);
                result = judge(fetch, header, verify, block_start, &scratch);
                let out_at = fetch.base + (wanted.start.saturating_sub(fetch.take.start)) as usize;
                let part =
                    &scratch[(wanted.start - block_start) as usize..(wanted.end - block_start) as usize];
                room_in(&mut self.items[fetch.item].out, fetch, out_at, part.len()).copy_from_slice(part);
            }
            block_start = block_end;
        }
        self.lane.scratch = scratch;
        Ok(result?)
    }

    /// All of a record is there.
    fn complete(&mut self, fetch: Fetch) {
        let Some(header) = fetch.header else { return };
        let index = fetch.item;
        if fetch.part.is_some() {
            self.part_complete(index);
        } else if header.kind == record_kind::HEAD {
            self.head_complete(&fetch, &header);
        } else {
            let item = &self.items[index];
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
            self.settle(index, result);
        }
    }

    fn part_complete(&mut self, index: usize) {
        let Some(large) = self.items[index].large.as_mut() else {
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
        let item = &mut self.items[index];
        let value_len = u64::from(fetch.locator.value_len_bytes);
        if item.want == Want::Locator {
            let found = Found {
                value_len_bytes: value_len,
                locator: fetch.locator,
            };
            return self.settle(index, Ok(found));
        }
        if fetch.take != (0..value_len) {
            return self.want_whole_record(index, fetch.locator);
        }
        let mut value = std::mem::take(&mut item.out);
        if fetch.to == To::Place
            && let Some(place) = self.place
        {
            value.resize(value_len as usize, 0);
            place.region().memory().read(fetch.base, &mut value);
        }
        let head = HeadRead {
            header: *header,
            prefix: fetch.prefix.clone(),
            value,
        };
        self.head_known(index, fetch.locator, &head);
    }

    /// The head of a large value is there and accepted.
    pub(super) fn head_known(&mut self, index: usize, locator: Locator, read: &HeadRead) {
        let item = &mut self.items[index];
        let Ok((head, parts)) = parse_head(&read.value) else {
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
        item.large = Some(Box::new(Large {
            header: read.header,
            head,
            parts,
            key: key_in(&read.prefix, &read.header).to_vec(),
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
            self.larges.push_back(index);
        }
    }

    /// Queues the next part of a large value.
    pub(super) fn next_part(&mut self, index: usize) {
        let item = &mut self.items[index];
        let attempt = item.attempt;
        let settled = item.is_settled();
        let Some(large) = item
            .large
            .as_mut()
            .filter(|large| !settled && large.next < large.end)
        else {
            self.larges.pop_front();
            return;
        };
        let part = large.next;
        large.next += 1;
        let Some(locator) = part_locator(&large.locator, &large.head, &large.parts, part) else {
            item.trouble = Some(Trouble::TornRecord);
            return;
        };
        let start = u64::from(part) * u64::from(large.head.part_len_bytes);
        let wanted =
            large.take.start.max(start)..large.take.end.min(start + u64::from(locator.value_len_bytes));
        let out_at = (wanted.start - large.take.start) as usize;
        let (to, base) = match item.want {
            Want::Place { offset, .. } => (To::Place, offset + out_at),
            _ => (To::Out, out_at),
        };
        let take = wanted.start - start..wanted.end - start;
        let fetch = Fetch {
            part: Some(part),
            ..Fetch::new(index, attempt, locator, take, to, base)
        };
        self.push_fetch(fetch);
    }
}

/// Makes room for a large value, without giving up the process if there is none.
fn reserve(item: &mut Item<'_>, take: &std::ops::Range<u64>) -> bool {
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

/// The locator with its dataset.
pub(crate) fn global(dataset: [u8; 16], locator: Locator) -> crate::GlobalLocator {
    crate::GlobalLocator { dataset, locator }
}
