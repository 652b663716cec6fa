//! A bare loop over verbs that replays the READs of the same GETs: no key, no judgement, nothing but posting and
//! polling.

use kv_proto::layout::{prefix_len, units, wire_len};

use crate::Error;
use crate::raw::{Bare, Replay};
use crate::run::definition::Locators;
use crate::run::job::Job;
use crate::run::pace::Getter;
use crate::run::values::Values;

/// Bytes of a bucket, and of the unit that records are aligned to.
const BUCKET_BYTES: usize = 256;
const UNIT_BYTES: u64 = 64;

/// One thread's link and the place of each record.
pub(crate) struct ReplayGetter {
    replay: Replay,
    /// Offset in the source, length of what is before the value, length of the value.
    records: Vec<(usize, usize, usize)>,
    live: bool,
    /// Where buckets begin in the source, and how many there are.
    buckets: (usize, usize),
    reads: Vec<Bare>,
    /// Where each value of the last call lies.
    values: Vec<(usize, usize)>,
}

impl ReplayGetter {
    /// Lays all records out one behind the other, as a segment has them.
    pub(crate) fn new(job: &Job, values: &Values) -> Result<Self, Error> {
        let mut end = 0;
        let mut records = Vec::with_capacity(values.count());
        for index in 0..values.count() {
            let (key, len) = (values.key(index).len() as u64, values.len_bytes(index));
            records.push((end, prefix_len(key, len) as usize, len as usize));
            end += (units(wire_len(key, len)) * UNIT_BYTES) as usize;
        }
        let live = job.point.locators == Locators::Live;
        // As many buckets as an index of so many keys has.
        let buckets = (end, (values.count() / 5).max(2));
        let source = end + if live { buckets.1 * BUCKET_BYTES } else { 0 };
        let batch = job.point.batch;
        let before = records
            .iter()
            .map(|(_, prefix, _)| prefix + BUCKET_BYTES)
            .max()
            .unwrap_or(0);
        let room = values.room_bytes(job.point.order, batch) + batch * before;
        let depth = job.point.depth;
        let replay = Replay::new(&job.device, source, room, depth, |memory| {
            for (index, (offset, prefix, _)) in records.iter().enumerate() {
                memory.copy_in(offset + prefix, &values.bytes(index)?)?;
            }
            Ok(())
        })?;
        Ok(Self {
            replay,
            records,
            live,
            buckets,
            reads: Vec::new(),
            values: Vec::new(),
        })
    }
}

impl Getter for ReplayGetter {
    fn prepare(&mut self, batch: &[u32]) {
        self.reads.clear();
        self.values.clear();
        let mut at = 0;
        for &index in batch {
            let (from, prefix, len) = self.records[index as usize];
            if self.live {
                let bucket = self.buckets.0 + index as usize % self.buckets.1 * BUCKET_BYTES;
                self.reads.push(Bare {
                    from: bucket,
                    to: [(at, BUCKET_BYTES), (0, 0)],
                });
                at += BUCKET_BYTES;
            }
            self.reads.push(Bare {
                from,
                to: [(at, prefix), (at + prefix, len)],
            });
            self.values.push((at + prefix, len));
            at += prefix + len;
        }
    }

    fn get(&mut self, _batch: &[u32]) -> Result<(), Error> {
        self.replay.run(&self.reads)
    }

    fn look(&self, at: usize, judge: &mut dyn FnMut(&[u8]) -> bool) -> Result<bool, Error> {
        let (offset, len) = self.values[at];
        Ok(judge(&self.replay.bytes(offset, len)?))
    }
}
