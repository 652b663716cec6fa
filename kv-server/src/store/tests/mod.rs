//! The store as its control thread and a raw reader see it. None of these needs a device; what they cannot see is the
//! device's own order of reads.

mod basic;
mod catalogue;
mod changes;
mod check;
mod check_kinds;
mod check_passes;
mod checkpoints;
pub(crate) mod compacting;
mod compaction;
mod compaction_faults;
mod compaction_races;
mod crash;
mod cut;
mod datasets;
mod extents;
mod failed_groups;
mod faults;
mod flips;
mod footers;
mod full_disk;
mod index;
mod model;
mod operations;
mod order;
mod parts;
mod reader;
mod recovery;
mod restart;
mod scrub;
mod scrub_active;
mod segment_list;
mod shortage;
pub(crate) mod support;
mod tally;
