//! One pass over a batch: plans READs, posts them in chains, and takes what arrives until nothing is in flight.
//!
//! Buckets, records and parts of all items are in flight at once, records first, so that lookups of later items fly
//! beside values of earlier ones. An item that meets trouble is left for the next pass; trouble with the connection
//! ends the pass.

use std::collections::VecDeque;

use kv_fabric::{Fabric, RemoteRef};
use kv_proto::hash::{candidate_buckets, directory_index};
use kv_proto::layout::{BLOCK_BYTES, Bucket, DirectoryEntry, Locator};

use super::counters::add;
use super::item::{Fetch, Item, To, Want, clamp};
use super::lane::{Lane, Trouble};
use super::plan::{CHAIN_MAX, Chain, Piece, Planned};
use super::ring::{Ring, Span};
use crate::clock::{Deadline, boot_ns};
use crate::memory::BufferOn;
use crate::tables::{NoPlace, PAGE_ENTRIES};

/// Longest piece of a value that is asked for at once, bytes.
pub(crate) const PIECE_BYTES: u64 = 1 << 20;
pub(super) const BUCKET_BYTES: usize = size_of::<Bucket>();
pub(super) const ENTRY_BYTES: usize = size_of::<DirectoryEntry>();

/// What a group of READs is for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Flying {
    Buckets {
        item: usize,
        attempt: u32,
        directory_index: u32,
        entry: DirectoryEntry,
        buckets: [u32; 2],
        count: usize,
    },
    Piece {
        fetch: usize,
        with_prefix: bool,
        start: u64,
        end: u64,
    },
    Page(u32),
}

struct Flight {
    /// Number of its last READ.
    last: u64,
    span: Span,
    flying: Flying,
}

/// What a pass works on.
pub(crate) struct Pass<'p, 'k, F: Fabric> {
    pub(super) lane: &'p mut Lane<F>,
    pub(super) items: &'p mut [Item<'k>],
    pub(super) place: Option<&'p BufferOn<F>>,
    pub(super) verify: bool,
    pub(super) fetches: Vec<Option<Fetch>>,
    free: Vec<usize>,
    pub(super) records: VecDeque<usize>,
    lookups: VecDeque<usize>,
    /// Items with parts to plan.
    pub(super) larges: VecDeque<usize>,
    pages: VecDeque<u32>,
    pub(super) pages_read: Vec<(u32, std::sync::Arc<[DirectoryEntry]>)>,
    pub(super) pages_torn: bool,
    flights: VecDeque<Flight>,
    ring: Ring,
    piece_bytes: u64,
    /// Set by whatever counts as getting on.
    pub(super) advanced: bool,
    /// Whether the pass got on at all.
    pub(super) got_on: bool,
}

enum Step {
    Planned,
    /// Plan it again when something has arrived.
    Wait,
}

impl<'p, 'k, F: Fabric> Pass<'p, 'k, F> {
    pub(crate) fn new(
        lane: &'p mut Lane<F>,
        items: &'p mut [Item<'k>],
        place: Option<&'p BufferOn<F>>,
        verify: bool,
    ) -> Self {
        let arena = lane.arena_bytes();
        let quarter = (arena / 4 / BLOCK_BYTES * BLOCK_BYTES).max(BLOCK_BYTES) as u64;
        // A piece must fit one chain.
        let chain = lane.read_max_bytes().saturating_mul(CHAIN_MAX / 2);
        let longest = (chain / BLOCK_BYTES * BLOCK_BYTES).max(BLOCK_BYTES) as u64;
        Self {
            lane,
            items,
            place,
            verify,
            fetches: Vec::new(),
            free: Vec::new(),
            records: VecDeque::new(),
            lookups: VecDeque::new(),
            larges: VecDeque::new(),
            pages: VecDeque::new(),
            pages_read: Vec::new(),
            pages_torn: false,
            flights: VecDeque::new(),
            ring: Ring::new(arena),
            piece_bytes: PIECE_BYTES.min(quarter).min(longest),
            advanced: false,
            got_on: false,
        }
    }

    /// Reads pages of the directory.
    pub(crate) fn want_pages(&mut self, pages: impl Iterator<Item = u32>) {
        self.pages.extend(pages);
    }

    /// Begins every item that has no result.
    pub(crate) fn want_items(&mut self) {
        for index in 0..self.items.len() {
            let item = &mut self.items[index];
            if item.result.is_some() {
                continue;
            }
            item.begin();
            let head = item.head.take();
            match item.at {
                Some(at) => match head {
                    Some(head) => self.head_known(index, at, &head),
                    None => self.want_record(index, at),
                },
                None => self.lookups.push_back(index),
            }
        }
    }

    /// Queues the record that `locator` names for item `index`.
    pub(super) fn want_record(&mut self, index: usize, locator: Locator) {
        let item = &mut self.items[index];
        let len = u64::from(locator.value_len_bytes);
        let (take, to, base) = match item.want {
            Want::Locator => (0..0, To::Out, 0),
            Want::Whole => (0..len, To::Out, 0),
            Want::Range { offset, len: wanted } => (clamp(offset, wanted, len), To::Out, 0),
            Want::Place { offset, room } if len <= room as u64 => (0..len, To::Place, offset),
            // Its header tells how much is needed.
            Want::Place { .. } => (0..0, To::Out, 0),
        };
        let fetch = Fetch::new(index, item.attempt, locator, take, to, base);
        self.push_fetch(fetch);
    }

    /// Queues a whole record, into the item's vector: the head of a large value.
    pub(super) fn want_whole_record(&mut self, index: usize, locator: Locator) {
        let take = 0..u64::from(locator.value_len_bytes);
        let fetch = Fetch::new(index, self.items[index].attempt, locator, take, To::Out, 0);
        self.push_fetch(fetch);
    }

    pub(super) fn push_fetch(&mut self, fetch: Fetch) {
        let index = self.free.pop().unwrap_or_else(|| {
            self.fetches.push(None);
            self.fetches.len() - 1
        });
        self.fetches[index] = Some(fetch);
        self.records.push_back(index);
    }

    pub(super) fn drop_fetch(&mut self, index: usize) {
        self.fetches[index] = None;
        self.free.push(index);
    }

    /// Works until nothing is left to do. `budget` is the longest time without getting on.
    pub(crate) fn run(
        &mut self,
        budget: std::time::Duration,
        deadline: &mut Deadline,
    ) -> Result<(), Trouble> {
        let result = self.run_inner(budget, deadline);
        if let Err(trouble) = result {
            self.lane.disconnect();
            for item in self.items.iter_mut().filter(|item| !item.is_settled()) {
                item.trouble = Some(trouble);
            }
        }
        result
    }

    fn run_inner(&mut self, budget: std::time::Duration, deadline: &mut Deadline) -> Result<(), Trouble> {
        let mut now = boot_ns();
        loop {
            if self.lane.is_behind() && self.flights.is_empty() && !self.lane.enter(now) {
                return Err(Trouble::Lease);
            }
            // Under a new view nothing more is posted before what flies under the old one has landed.
            let posted = !self.lane.is_behind() && self.fill(now)?;
            if self.flights.is_empty() {
                if posted || self.has_work() {
                    continue;
                }
                return Ok(());
            }
            now = self.lane.progress(*deadline)?;
            if !self.lane.leased(now) {
                for flight in self
                    .flights
                    .iter()
                    .filter(|flight| flight.last <= self.lane.completed)
                {
                    self.expired(flight.flying, flight.span.offset);
                }
                return Err(Trouble::Lease);
            }
            while let Some(flight) = self.flights.front() {
                if flight.last > self.lane.completed {
                    break;
                }
                let Some(flight) = self.flights.pop_front() else {
                    break;
                };
                self.landed(flight.flying, flight.span.offset);
                self.ring.give_back(flight.span);
            }
            if std::mem::take(&mut self.advanced) {
                self.got_on = true;
                *deadline = Deadline::at(now, budget);
            }
        }
    }

    /// Whether what was read for `fetch` still matters.
    pub(super) fn is_live(&self, fetch: &Fetch) -> bool {
        let item = &self.items[fetch.item];
        !item.is_settled() && item.attempt == fetch.attempt
    }

    fn has_work(&self) -> bool {
        !(self.records.is_empty()
            && self.lookups.is_empty()
            && self.larges.is_empty()
            && self.pages.is_empty())
    }

    /// Posts one chain of what is wanted; whether there was anything that could be.
    fn fill(&mut self, now_ns: u64) -> Result<bool, Trouble> {
        let mut chain = Chain::new();
        let mut waits = false;
        while chain.room() > 0 && self.lane.room() > chain.len() {
            let step = if let Some(&page) = self.pages.front() {
                self.plan_page(page, &mut chain)
            } else if let Some(&fetch) = self.records.front() {
                self.plan_record(fetch, &mut chain)?
            } else if let Some(&item) = self.larges.front() {
                self.next_part(item);
                Step::Planned
            } else if let Some(&item) = self.lookups.front() {
                self.plan_lookup(item, &mut chain)
            } else {
                break;
            };
            if matches!(step, Step::Wait) {
                waits = true;
                break;
            }
        }
        if chain.len() == 0 {
            // With nothing in flight, nothing can make room: what is wanted does not fit at all.
            if self.flights.is_empty() && (waits || self.lane.room() == 0) && self.has_work() {
                return Err(Trouble::NoRoom);
            }
            return Ok(false);
        }
        let place = self.place.map(BufferOn::region);
        self.lane.post(&mut chain, place, now_ns)?;
        Ok(true)
    }

    fn fly(&mut self, chain: &Chain, span: Span, flying: Flying) {
        let last = self.lane.next_number() + chain.len() as u64 - 1;
        self.flights.push_back(Flight { last, span, flying });
    }

    fn plan_page(&mut self, page: u32, chain: &mut Chain) -> Step {
        let directory = &self.lane.footing.view.directory;
        let first = page * PAGE_ENTRIES;
        let count = directory.entries().saturating_sub(first).min(PAGE_ENTRIES);
        let len = count as usize * ENTRY_BYTES;
        let from = directory.at.offset(u64::from(first) * ENTRY_BYTES as u64);
        if len == 0 {
            self.pages.pop_front();
            return Step::Planned;
        }
        let Some(span) = self.ring.take(len) else {
            return Step::Wait;
        };
        chain.push(Planned::new(from, [arena(span.offset, len), Piece::default()]));
        add(&self.lane.counters.directory_reads, 1);
        self.fly(chain, span, Flying::Page(page));
        self.pages.pop_front();
        Step::Planned
    }

    fn plan_lookup(&mut self, index: usize, chain: &mut Chain) -> Step {
        let item = &mut self.items[index];
        let directory = &self.lane.footing.view.directory;
        let directory_index = directory_index(item.hash.slot, directory.depth);
        let Some(&entry) = directory.entry(directory_index) else {
            item.trouble = Some(Trouble::NoDirectory);
            self.lookups.pop_front();
            return Step::Planned;
        };
        let buckets = candidate_buckets(item.hash.slot);
        let count = if buckets[0] == buckets[1] { 1 } else { 2 };
        if chain.room().min(self.lane.room() - chain.len()) < count {
            return Step::Wait;
        }
        let Some(span) = self.ring.take(count * BUCKET_BYTES) else {
            return Step::Wait;
        };
        let group = RemoteRef {
            address: entry.address,
            rkey: entry.rkey,
        };
        for (at, &bucket) in buckets[..count].iter().enumerate() {
            let from = group.offset(u64::from(bucket) * BUCKET_BYTES as u64);
            let to = arena(span.offset + at * BUCKET_BYTES, BUCKET_BYTES);
            chain.push(Planned::new(from, [to, Piece::default()]));
        }
        add(&self.lane.counters.bucket_reads, count as u64);
        let flying = Flying::Buckets {
            item: index,
            attempt: item.attempt,
            directory_index,
            entry,
            buckets,
            count,
        };
        self.fly(chain, span, flying);
        self.lookups.pop_front();
        Step::Planned
    }

    /// Plans the next piece of a record.
    fn plan_record(&mut self, index: usize, chain: &mut Chain) -> Result<Step, Trouble> {
        let live = self.fetches[index]
            .as_ref()
            .filter(|fetch| self.is_live(fetch) && !fetch.is_asked());
        if live.is_none() {
            self.records.pop_front();
            return Ok(Step::Planned);
        }
        let Some(fetch) = self.fetches[index].as_mut() else {
            return Ok(Step::Planned);
        };
        let item = &mut self.items[fetch.item];
        let view = std::sync::Arc::clone(&self.lane.footing.view);
        let row = match view.row_for(&fetch.locator) {
            Ok(row) => row,
            Err(why) => {
                item.trouble = Some(match why {
                    NoPlace::Unknown => Trouble::NoPlace,
                    NoPlace::Loading => Trouble::Loading(fetch.locator.segment),
                    NoPlace::None => Trouble::NoImage,
                });
                return Ok(Step::Planned);
            }
        };
        fetch.identity = row.identity;
        let record = fetch.locator.offset_bytes();
        let prefix_len = fetch.locator.prefix_len_bytes();
        let start = fetch.next;
        let end = fetch.cover.end.min(start + self.piece_bytes);
        let with_prefix = !fetch.prefix_asked;
        let head_len = if with_prefix { prefix_len as usize } else { 0 };
        let value_len = (end - start) as usize;
        let to_place = fetch.to == To::Place;
        // Each cut at the end of an extent or at the longest READ costs one more.
        let reads_max = (head_len + value_len) / self.lane.read_max_bytes() + 4;
        if chain.room().min(self.lane.room() - chain.len()) < reads_max.min(CHAIN_MAX) {
            return Ok(Step::Wait);
        }
        let landing = if to_place { head_len } else { head_len + value_len };
        let Some(span) = self.ring.take(landing.max(1)) else {
            return Ok(Step::Wait);
        };
        let value_at = Piece {
            to_place,
            offset: if to_place {
                fetch.base + start as usize
            } else {
                span.offset + head_len
            },
            len: value_len,
        };
        let head_at = arena(span.offset, head_len);
        let before = chain.len();
        let mut read = Reading {
            row,
            read_max: self.lane.read_max_bytes(),
            chain,
        };
        let planned = if with_prefix && start == 0 {
            read.plan(record, [head_at, value_at])
        } else {
            let apart = read.plan(record, [head_at, Piece::default()]);
            apart.and_then(|()| read.plan(record + prefix_len + start, [value_at, Piece::default()]))
        };
        if planned.is_none() {
            return Err(Trouble::NoPlace);
        }
        let reads = (chain.len() - before) as u64;
        let beyond_first = with_prefix && fetch.part.is_none();
        add(
            &self.lane.counters.split_reads,
            reads.saturating_sub(u64::from(beyond_first)),
        );
        fetch.prefix_asked = true;
        fetch.next = end;
        fetch.pieces += 1;
        if fetch.is_asked() {
            self.records.pop_front();
        }
        let flying = Flying::Piece {
            fetch: index,
            with_prefix,
            start,
            end,
        };
        self.fly(chain, span, flying);
        Ok(Step::Planned)
    }
}

fn arena(offset: usize, len: usize) -> Piece {
    Piece {
        to_place: false,
        offset,
        len,
    }
}

/// Cuts what is contiguous in a segment into READs.
struct Reading<'r> {
    row: &'r crate::tables::Row,
    read_max: usize,
    chain: &'r mut Chain,
}

impl Reading<'_> {
    /// READs from `at` on into `pieces`, one after the other; `None` if a place is not there or the chain is full.
    fn plan(&mut self, mut at: u64, mut pieces: [Piece; 2]) -> Option<()> {
        loop {
            let left = pieces[0].len + pieces[1].len;
            if left == 0 {
                return Some(());
            }
            let (from, follow) = self.row.place(at)?;
            let len = left
                .min(self.read_max)
                .min(usize::try_from(follow).unwrap_or(usize::MAX));
            let first = pieces[0].len.min(len);
            let now = [
                Piece {
                    len: first,
                    ..pieces[0]
                },
                Piece {
                    len: len - first,
                    ..pieces[1]
                },
            ];
            if self.chain.room() == 0 {
                return None;
            }
            self.chain.push(Planned::new(from, now));
            for (piece, taken) in pieces.iter_mut().zip(now) {
                piece.offset += taken.len;
                piece.len -= taken.len;
            }
            at += len as u64;
        }
    }
}
