//! Planning: what is wanted becomes READs, posted in chains.
//!
//! Records come before lookups, so that lookups of later items fly beside values of earlier ones.

use kv_fabric::{Fabric, Region, RemoteRef, Scatter};
use kv_proto::hash::{KeyHash, candidate_buckets, directory_index};
use kv_proto::layout::{BLOCK_BYTES, Bucket, DirectoryEntry};

use super::counters::add;
use super::engine::Engine;
use super::flight::{Flight, Flying};
use super::lane::{Lane, ring_bytes};
use super::plan::{Chain, PIECE_READS_MAX, VALUES, to_ring};
use super::{CHECKED_PIECE_BYTES, PIECE_BYTES, Trouble};
use crate::ClientOptions;
use crate::clock::boot_ns;
use crate::tables::{NoPlace, PAGE_ENTRIES, Row};

pub(super) const BUCKET_BYTES: usize = size_of::<Bucket>();
pub(super) const ENTRY_BYTES: usize = size_of::<DirectoryEntry>();

/// READs shorter than this are short: few of them do not keep a connection busy.
const SHORT_BYTES: usize = 64 << 10;

/// Longest piece of a value that is asked for at once: it must fit one chain and a quarter of the ring.
pub(super) fn piece_bytes(fabric: &dyn Fabric, options: &ClientOptions) -> u64 {
    let whole_blocks = |len: usize| (len / BLOCK_BYTES * BLOCK_BYTES).max(BLOCK_BYTES) as u64;
    let quarter = whole_blocks(ring_bytes(options) / 4);
    let longest = whole_blocks(fabric.read_max_bytes().saturating_mul(PIECE_READS_MAX / 2));
    let most = if options.verify {
        CHECKED_PIECE_BYTES
    } else {
        PIECE_BYTES
    };
    most.min(quarter).min(longest)
}

/// What came of planning one thing.
pub(super) enum Step {
    Planned,
    /// It waits for room on this lane.
    Full,
    /// There is nothing to plan.
    Nothing,
}

impl Engine {
    pub(super) fn has_work(&self) -> bool {
        !(self.records.is_empty()
            && self.lookups.is_empty()
            && self.larges.is_empty()
            && self.pages.is_empty())
    }

    /// Posts what is wanted as far as there is room; whether anything was done.
    pub(super) fn fill(&mut self, now_ns: Option<u64>) -> bool {
        if self.entered && self.footing.is_behind(&self.core.shared().tenure, &self.state) {
            // What flies under the old view must land before more is posted, or the session's retirements would wait
            // for as long as there is work.
            if self.flying > 0 {
                return false;
            }
            self.leave();
        }
        let now = now_ns.unwrap_or_else(boot_ns);
        if !self.entered && !self.enter(now) {
            if !self.ready(now) {
                return false;
            }
        } else if !self.footing.leased(&self.core.shared().tenure, now) {
            self.lose_lease();
            return true;
        }
        let mut did = false;
        let mut full = 0_u32;
        while let Some(lane) = self.pick(full) {
            let planned = self.plan_chain(lane);
            if self.chain.len() == 0 {
                full |= 1 << lane;
                if !planned {
                    break;
                }
                continue;
            }
            did = true;
            self.post(lane, None);
            if !planned {
                break;
            }
        }
        if self.has_work() && self.wants_lane() {
            self.add_lane();
        }
        // What was posted and failed at once has given back since what it held: then there may be room.
        if !did && self.flying == 0 && full > 0 && self.lanes.iter().all(|lane| lane.outstanding() == 0) {
            did |= self.refuse_what_never_fits();
        }
        did
    }

    /// The connected lane with the fewest READs in flight, of those that are not full: a quarter of the queue is free, or each
    /// READ that completes would cost a doorbell of its own.
    pub(super) fn pick(&self, full: u32) -> Option<usize> {
        let has_room = |lane: &Lane| {
            let room = lane.room() as u64;
            room > 0 && 3 * room >= lane.outstanding()
        };
        let usable = |lane: &usize| full & 1 << lane == 0 && has_room(&self.lanes[*lane]);
        let lanes = (0..self.lanes.len()).filter(usable);
        lanes.min_by_key(|&lane| self.lanes[lane].outstanding())
    }

    /// Posts the chain; `borrowed` is the caller's memory, where values go there and it is not an item's.
    pub(super) fn post(&mut self, lane: usize, borrowed: Option<&Region>) {
        add(&self.counters.reads_posted, self.chain.len() as u64);
        add(&self.counters.doorbells, 1);
        self.short_reads = self.chain.bytes() < self.chain.len() * SHORT_BYTES;
        let values = borrowed.or(self.slots.region());
        let items = &self.items;
        let of_item = |item: u32| items[item as usize].memory.region();
        let posted = self.lanes[lane].post(&mut self.chain, values, of_item);
        if let Err(status) = posted {
            self.failed(lane, status);
        }
    }

    /// With nothing in flight, nothing can make room.
    fn refuse_what_never_fits(&mut self) -> bool {
        let Some(&fetch) = self.records.front() else {
            return false;
        };
        let item = self.fetches[fetch as usize].item;
        self.items[item as usize].trouble.get_or_insert(Trouble::NoRoom);
        self.after(item);
        true
    }

    /// Plans one chain for `lane`; whether there may be more to plan.
    fn plan_chain(&mut self, lane: usize) -> bool {
        self.chain.begin(self.lanes[lane].next_number());
        // Fetches that go by another lane are passed over, each once.
        let mut passes = self.records.len();
        while self.chain.len() < self.chain_max && self.lanes[lane].room() > self.chain.len() {
            let step = if let Some(&page) = self.pages.front() {
                self.plan_page(lane, page)
            } else if let Some(&fetch) = self.records.front() {
                if !self.is_wanted(fetch) {
                    self.drop_queued(fetch);
                    continue;
                }
                let by = self.fetches[fetch as usize].lane;
                if by.is_none_or(|by| by as usize == lane) {
                    let run = self.plan_run(lane);
                    run.unwrap_or_else(|| self.plan_record(lane, fetch))
                } else if passes > 0 {
                    passes -= 1;
                    self.records.rotate_left(1);
                    continue;
                } else {
                    Step::Full
                }
            } else if !self.larges.is_empty() {
                self.next_part()
            } else if let Some(&turn) = self.lookups.front() {
                let live = self.at_turn(turn).is_some_and(|item| !item.is_settled());
                let step = if live {
                    self.plan_lookup(lane, turn.item)
                } else {
                    Step::Planned
                };
                if matches!(step, Step::Planned) {
                    self.lookups.pop_front();
                    self.after(turn.item);
                }
                step
            } else {
                Step::Nothing
            };
            match step {
                Step::Planned => {}
                Step::Full => return true,
                Step::Nothing => return false,
            }
        }
        self.has_work()
    }

    /// READs that the chain can still take.
    pub(super) fn chain_room(&self, lane: usize) -> usize {
        self.chain.room().min(self.lanes[lane].room() - self.chain.len())
    }

    pub(super) fn fly(&mut self, lane: usize, flight: Flight) {
        self.flying += 1;
        self.lanes[lane].fly(self.chain.len(), flight);
    }

    fn plan_page(&mut self, lane: usize, page: u32) -> Step {
        let directory = &self.footing.view.directory;
        let first = page.saturating_mul(PAGE_ENTRIES);
        let count = directory.entries().saturating_sub(first).min(PAGE_ENTRIES);
        let len = count as usize * ENTRY_BYTES;
        let from = directory.at.offset(u64::from(first) * ENTRY_BYTES as u64);
        if len == 0 {
            self.pages.pop_front();
            self.page_came(page);
            return Step::Planned;
        }
        let Some(span) = self.lanes[lane].ring.take(len) else {
            return Step::Full;
        };
        self.chain
            .push(from, [to_ring(span.offset, len), Scatter::default()]);
        add(&self.counters.directory_reads, 1);
        let changes = self.footing.view.changes;
        self.fly(lane, Flight::new(span, Flying::Page { page, changes }));
        self.pages.pop_front();
        Step::Planned
    }

    fn plan_lookup(&mut self, lane: usize, index: u32) -> Step {
        let view = &self.footing.view;
        let item = &mut self.items[index as usize];
        if !item.hashed {
            item.hash = KeyHash::of(&view.hash_key, &item.key);
            item.hashed = true;
        }
        let slot = item.hash.slot;
        let directory_index = directory_index(slot, view.directory.depth);
        let Some(&entry) = view.directory.entry(directory_index) else {
            self.wait_for_page(index, directory_index / PAGE_ENTRIES);
            return Step::Planned;
        };
        if let Some(step) = self.plan_guess(lane, index, directory_index, &entry) {
            return step;
        }
        let buckets = candidate_buckets(slot);
        let count = if buckets[0] == buckets[1] { 1 } else { 2 };
        if self.chain_room(lane) < count {
            return Step::Full;
        }
        let Some(span) = self.lanes[lane].ring.take(count * BUCKET_BYTES) else {
            return Step::Full;
        };
        let group = RemoteRef {
            address: entry.address,
            rkey: entry.rkey,
        };
        for (at, &bucket) in buckets[..count].iter().enumerate() {
            let from = group.offset(u64::from(bucket) * BUCKET_BYTES as u64);
            let to = to_ring(span.offset + at * BUCKET_BYTES, BUCKET_BYTES);
            self.chain.push(from, [to, Scatter::default()]);
        }
        add(&self.counters.bucket_reads, count as u64);
        let flying = Flying::Buckets {
            item: index,
            directory_index,
            entry,
            buckets,
            count,
        };
        self.takes_off(index);
        self.fly(lane, Flight::new(span, flying));
        Step::Planned
    }

    /// Plans the next piece of a record.
    pub(super) fn plan_record(&mut self, lane: usize, index: u32) -> Step {
        let fetch = &self.fetches[index as usize];
        let item = fetch.item;
        let locator = fetch.locator;
        let record = locator.offset_bytes();
        // Looked up again below: holding it, or all of the view, costs more.
        let follow = match self.footing.view.row_for(&locator) {
            Ok(row) => row.place(record).map_or(0, |(_, follow)| follow),
            Err(why) => {
                let trouble = match why {
                    NoPlace::Unknown => Trouble::NoPlace,
                    NoPlace::Loading => Trouble::Loading(locator.segment),
                    NoPlace::None => Trouble::NoImage,
                };
                return self.refuse_record(index, trouble);
            }
        };
        let prefix_len = fetch.locator.prefix_len_bytes();
        let (start, end) = (fetch.next, fetch.cover.end.min(fetch.next + self.piece_bytes));
        let with_prefix = !fetch.prefix_asked;
        let part = fetch.part;
        let head_len = if with_prefix { prefix_len as usize } else { 0 };
        let value_len = (end - start) as usize;
        let first_of_item = with_prefix && part.is_none();
        let read_max = self.shared().fabric.read_max_bytes();
        let len = head_len + value_len;
        let reads_max = if with_prefix && start == 0 && len as u64 <= follow.min(read_max as u64) {
            1
        } else {
            // Each cut at the end of an extent or at the longest READ costs one more.
            len / read_max + 4
        };
        if self.chain_room(lane) < reads_max.min(PIECE_READS_MAX) {
            return Step::Full;
        }
        if !self.find_slot(index) {
            return Step::Full;
        }
        let Some(row) = self.footing.view.row(locator.segment) else {
            return Step::Nothing;
        };
        let identity = row.identity;
        let fetch = &self.fetches[index as usize];
        let (to_place, base) = (!fetch.in_ring, fetch.base);
        let landing = if to_place { head_len } else { head_len + value_len };
        let Some(span) = self.lanes[lane].ring.take(landing.max(1)) else {
            return Step::Full;
        };
        let value_at = if to_place {
            let region = match self.items[item as usize].memory.region() {
                Some(_) => self.chain.region_of(item),
                None => VALUES,
            };
            Scatter::new(region, base + start as usize, value_len)
        } else {
            to_ring(span.offset + head_len, value_len)
        };
        let head_at = to_ring(span.offset, head_len);
        let before = self.chain.len();
        let chain = &mut self.chain;
        let mut read = Reading { row, read_max, chain };
        let planned = if with_prefix && start == 0 {
            read.plan(record, [head_at, value_at])
        } else {
            let apart = read.plan(record, [head_at, Scatter::default()]);
            apart.and_then(|()| read.plan(record + prefix_len + start, [value_at, Scatter::default()]))
        };
        let reads = (self.chain.len() - before) as u64;
        if planned.is_none() {
            // The row was found to have the place, so this is not seen. What is in the chain flies all the same.
            self.items[item as usize].trouble = Some(Trouble::NoPlace);
        }
        add(
            &self.counters.split_reads,
            reads.saturating_sub(u64::from(first_of_item)),
        );
        let fetch = &mut self.fetches[index as usize];
        fetch.identity = identity;
        fetch.lane = Some(lane as u32);
        fetch.prefix_asked = true;
        fetch.next = end;
        fetch.pieces += 1;
        let is_asked = fetch.is_asked();
        self.takes_off(item);
        if is_asked {
            self.drop_queued(index);
        }
        let flying = Flying::Piece {
            fetch: index,
            with_prefix,
            start,
            end,
        };
        self.fly(lane, Flight::new(span, flying));
        Step::Planned
    }

    /// Whether there is more of the record to ask for.
    pub(super) fn is_wanted(&self, index: u32) -> bool {
        let fetch = &self.fetches[index as usize];
        let item = &self.items[fetch.item as usize];
        item.attempt == fetch.attempt && !item.is_settled() && !fetch.over && !fetch.is_asked()
    }

    /// A record cannot be read where the view says that it lies.
    fn refuse_record(&mut self, index: u32, trouble: Trouble) -> Step {
        let item = self.fetches[index as usize].item;
        self.items[item as usize].trouble = Some(trouble);
        self.drop_queued(index);
        self.after(item);
        Step::Planned
    }

    /// Forgets what is queued for nobody.
    pub(super) fn forget_queues(&mut self) {
        while let Some(&fetch) = self.records.front() {
            self.drop_queued(fetch);
        }
        self.pages.clear();
        self.waits.pages.clear();
        self.larges.clear();
        self.lookups.clear();
    }

    /// The front fetch leaves the queue.
    pub(super) fn drop_queued(&mut self, index: u32) {
        self.records.pop_front();
        self.fetches[index as usize].queued = false;
        self.release_fetch(index);
    }

    /// Queues a part of the large value that is next.
    fn next_part(&mut self) -> Step {
        let Some(&turn) = self.larges.front() else {
            return Step::Nothing;
        };
        let live = self.at_turn(turn).is_some_and(|item| !item.is_settled());
        if !live || !self.plan_part(turn.item) {
            self.larges.pop_front();
            self.after(turn.item);
        }
        Step::Planned
    }
}

/// Cuts what is contiguous in a segment into READs.
struct Reading<'r> {
    row: &'r Row,
    read_max: usize,
    chain: &'r mut Chain,
}

impl Reading<'_> {
    /// READs from `at` on into `pieces`, one after the other; `None` if a place is not there or the chain is full.
    fn plan(&mut self, mut at: u64, mut pieces: [Scatter; 2]) -> Option<()> {
        loop {
            let left = pieces[0].len as usize + pieces[1].len as usize;
            if left == 0 {
                return Some(());
            }
            let (from, follow) = self.row.place(at)?;
            let len = left
                .min(self.read_max)
                .min(usize::try_from(follow).unwrap_or(usize::MAX));
            // No longer than `left`, which is two of these.
            let first = pieces[0].len.min(u32::try_from(len).unwrap_or(u32::MAX));
            let second = (len - first as usize) as u32;
            let mut now = pieces;
            (now[0].len, now[1].len) = (first, second);
            if self.chain.room() == 0 {
                return None;
            }
            let to = if first == 0 { [now[1], now[0]] } else { now };
            self.chain.push(from, to);
            for (piece, taken) in pieces.iter_mut().zip(now) {
                piece.offset += taken.len as usize;
                piece.len -= taken.len;
            }
            at += len as u64;
        }
    }
}
