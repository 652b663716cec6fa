//! What RENEW says of a dataset: what changed, cut to what a frame holds.

use std::collections::BTreeSet;

use kv_proto::control::{DirectoryRange, SegmentRow, change_flag};

use super::journal::{Change, Since};
use super::segment::{ROW_BYTES, ROW_EXTENT_BYTES};

/// Bytes of a change without rows and ranges: id, flags, directory, two counts.
const CHANGE_BYTES: usize = 16 + 1 + (8 + 4 + 8 + 1) + 2 + 2;
const RANGE_BYTES: usize = 8;

/// Flags, ranges and rows of an answer.
#[derive(Debug)]
pub struct Collected {
    /// Change flags.
    pub flags: u8,
    /// Directory entries to read again.
    pub ranges: Vec<DirectoryRange>,
    /// Rows that changed.
    pub rows: Vec<SegmentRow>,
}

/// Sums changes up. What does not fit `room_bytes` becomes the flag that has the client ask for all of it.
pub fn collect(
    since: Since,
    room_bytes: usize,
    row: impl Fn(u32) -> Option<SegmentRow>,
) -> Option<Collected> {
    let changes = match since {
        Since::Nothing => return None,
        Since::Everything => {
            return Some(Collected {
                flags: change_flag::TABLE | change_flag::DIRECTORY,
                ranges: Vec::new(),
                rows: Vec::new(),
            });
        }
        Since::Changes(changes) => changes,
    };
    let mut flags = 0;
    let mut segments = BTreeSet::new();
    let mut touched = BTreeSet::new();
    for change in changes {
        match change {
            Change::Row(segment) => {
                segments.insert(segment);
            }
            Change::Range(first, count) => {
                touched.insert((first, count));
            }
            Change::Directory => flags |= change_flag::DIRECTORY,
            Change::Dropped => flags |= change_flag::DROPPED,
        }
    }
    let mut room = room_bytes.saturating_sub(CHANGE_BYTES);
    let mut rows: Vec<SegmentRow> = segments.into_iter().filter_map(row).collect();
    let rows_bytes: usize = rows
        .iter()
        .map(|row| ROW_BYTES + ROW_EXTENT_BYTES * row.extents.len())
        .sum();
    if rows_bytes > room {
        flags |= change_flag::TABLE;
        rows.clear();
    } else {
        room -= rows_bytes;
    }
    let mut ranges = if flags & change_flag::DIRECTORY != 0 {
        Vec::new()
    } else {
        merge(touched)
    };
    if ranges.len() * RANGE_BYTES > room {
        flags |= change_flag::DIRECTORY;
        ranges.clear();
    }
    Some(Collected { flags, ranges, rows })
}

/// Joins ranges that overlap or touch.
fn merge(touched: BTreeSet<(u32, u32)>) -> Vec<DirectoryRange> {
    let mut ranges: Vec<DirectoryRange> = Vec::new();
    for (first, count) in touched {
        match ranges.last_mut() {
            Some(last) if first <= last.first + last.count => {
                last.count = last.count.max(first + count - last.first);
            }
            _ => ranges.push(DirectoryRange { first, count }),
        }
    }
    ranges
}
