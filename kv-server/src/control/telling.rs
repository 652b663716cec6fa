//! What RENEW tells a session: what changed in each dataset that it has open, cut to what a frame holds.

use kv_proto::control::{Answer, DatasetChange, SegmentRow};

use super::leases::{Hold, Holds};
use super::requests::PAYLOAD_BYTES;

/// A `DatasetChange` without ranges and rows, on the wire, bytes: id, flags, directory, two counts.
const CHANGE_BYTES: usize = 16 + 1 + (8 + 4) + 8 + 1 + 2 + 2;

/// Length of a row on the wire, bytes.
fn row_bytes(row: &SegmentRow) -> usize {
    4 + 8 + 4 + 1 + 4 + 2 + row.extents.len() * (8 + 4)
}

/// Length of a change on the wire, bytes.
fn change_bytes(change: &DatasetChange) -> usize {
    CHANGE_BYTES + change.ranges.len() * (4 + 4) + change.rows.iter().map(row_bytes).sum::<usize>()
}

/// The answer to RENEW, noted as told: `changes` gives what changed in a dataset since what was acknowledged, within
/// so many bytes. `retired` must have been read before: whatever is retired meanwhile has a higher number.
pub fn told(
    holds: &mut Holds,
    retired: u64,
    lease_ms: u32,
    mut changes: impl FnMut(&Hold, usize) -> Option<DatasetChange>,
) -> Answer {
    let mut room_bytes = PAYLOAD_BYTES - 8 - 4 - 2;
    let mut changed = Vec::new();
    let open = holds.open();
    for (index, hold) in open.iter().enumerate() {
        // Each dataset that follows must at least be able to say that all of it changed.
        let kept = CHANGE_BYTES * (open.len() - index - 1);
        if let Some(change) = changes(hold, room_bytes - kept) {
            room_bytes = room_bytes.saturating_sub(change_bytes(&change));
            changed.push(change);
        }
    }
    holds.told(retired);
    Answer::Renew {
        retired,
        lease_ms,
        changes: changed,
    }
}
