//! Records that lie one behind the other, fetched by one READ.
//!
//! It pays for short ones: a READ more costs more than copying a few KiB. They land in the ring and are copied to where
//! they belong.

use kv_fabric::Scatter;
use kv_proto::layout::{KEY_MAX_BYTES, Locator, wire_len};

use super::counters::add;
use super::engine::Engine;
use super::fill::Step;
use super::flight::{Flight, Flying};
use super::item::Fetch;
use super::plan::to_ring;

/// Longest value that is fetched with a neighbour, bytes.
const VALUE_MAX_BYTES: u64 = 4096;
/// Most records of one READ, and most bytes.
const RUN_RECORDS: usize = 16;
const RUN_BYTES: u64 = 32 << 10;
/// Records begin at multiples of this.
const ALIGN: u64 = 64;
/// No record that is fetched with a neighbour is longer, in those units.
const SHORT_UNITS: u32 = (wire_len(KEY_MAX_BYTES as u64, VALUE_MAX_BYTES).div_ceil(ALIGN)) as u32;

/// Whether a record can be fetched with a neighbour: short, all of it wanted, nothing asked for yet.
fn is_short(fetch: &Fetch) -> bool {
    let len = u64::from(fetch.locator.value_len_bytes);
    len <= VALUE_MAX_BYTES
        && fetch.cover == (0..len)
        && !fetch.prefix_asked
        && fetch.part.is_none()
        && fetch.lane.is_none()
}

/// Whether the second lies right behind the first, and one READ for both pays.
#[inline]
pub(super) fn follows(first: &Locator, second: &Locator) -> bool {
    let is_short = |locator: &Locator| u64::from(locator.value_len_bytes) <= VALUE_MAX_BYTES;
    // In this order most are told apart by a comparison or two.
    first.segment == second.segment
        && second.offset_units.wrapping_sub(first.offset_units) <= SHORT_UNITS
        && is_short(first)
        && is_short(second)
        && second.offset_bytes() == (first.offset_bytes() + first.wire_len_bytes()).next_multiple_of(ALIGN)
}

impl Engine {
    /// Records at the front of the queue that lie one behind the other.
    fn run_at_front(&self) -> usize {
        let view = &self.footing.view;
        let mut run = (0, 0);
        let mut first = None;
        for &index in self.records.iter().take(RUN_RECORDS) {
            let fetch = &self.fetches[index as usize];
            if !self.is_wanted(index) || !is_short(fetch) {
                break;
            }
            let at = fetch.locator.offset_bytes();
            let (segment, start) = *first.get_or_insert((fetch.locator.segment, at));
            let follows = run.1 == 0 || at == (start + run.1).next_multiple_of(ALIGN);
            let Some(len) = at
                .checked_sub(start)
                .map(|skipped| skipped + fetch.locator.wire_len_bytes())
            else {
                break;
            };
            let Ok(row) = view.row_for(&fetch.locator) else {
                break;
            };
            let in_one_place = row.place(start).is_some_and(|(_, follow)| len <= follow);
            if segment != fetch.locator.segment || !follows || len > RUN_BYTES || !in_one_place {
                break;
            }
            run = (run.0 + 1, len);
        }
        run.0
    }

    /// Plans records that lie one behind the other as one READ; `None` if there are no two.
    pub(super) fn plan_run(&mut self, lane: usize) -> Option<Step> {
        let [first, second] = [self.records.front(), self.records.get(1)];
        let (&first, _) = (first?, second?);
        if !is_short(&self.fetches[first as usize]) {
            return None;
        }
        let locator = self.fetches[first as usize].locator;
        let start = locator.offset_bytes();
        let (mut records, mut len) = (0, 0);
        for place in 0..self.run_at_front() {
            let Some(&fetch) = self.records.get(place) else {
                break;
            };
            if !self.find_slot(fetch) {
                break;
            }
            let locator = &self.fetches[fetch as usize].locator;
            (records, len) = (
                place + 1,
                locator.offset_bytes() + locator.wire_len_bytes() - start,
            );
        }
        let row = self.footing.view.row(locator.segment).filter(|_| records > 1)?;
        let (identity, (from, _)) = (row.identity, row.place(start)?);
        if len > self.shared().fabric.read_max_bytes() as u64 || self.chain_room(lane) == 0 {
            return None;
        }
        let Some(span) = self.lanes[lane].ring.take(len as usize) else {
            return Some(Step::Full);
        };
        let to = to_ring(span.offset, len as usize);
        self.chain.push(from, [to, Scatter::default()]);
        add(&self.counters.coalesced, records as u64 - 1);
        for left in (0..records).rev() {
            let Some(&index) = self.records.front() else { break };
            let fetch = &mut self.fetches[index as usize];
            let at = span.offset + (fetch.locator.offset_bytes() - start) as usize;
            fetch.identity = identity;
            fetch.lane = Some(lane as u32);
            fetch.prefix_asked = true;
            fetch.next = fetch.cover.end;
            fetch.in_ring = true;
            fetch.pieces += 1;
            let flying = Flying::Piece {
                fetch: index,
                with_prefix: true,
                start: 0,
                end: fetch.cover.end,
            };
            let item = fetch.item;
            self.takes_off(item);
            self.drop_queued(index);
            // The last one gives the span back.
            self.fly(
                lane,
                Flight::new(if left == 0 { span } else { span.none() }, flying).landing_at(at),
            );
        }
        Some(Step::Planned)
    }
}
