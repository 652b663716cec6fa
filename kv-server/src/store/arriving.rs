//! Memory for values that are arriving, divided by how long they are: none waits for those of another kind.

use std::sync::Arc;

use super::budget::{Budget, Charge};
use super::limits::{APPEND_ROOM_MIN_BYTES, SMALL_MAX_BYTES};
use crate::error::StorageError;

/// How a value arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Short, and to come with one request: holds memory from then on, and only until the log has it.
    Small,
    /// Of one record: holds memory for all of itself from its beginning. A short one that comes in pieces is such.
    Medium,
    /// Of several parts: holds memory for two of them from its beginning, for as long as its client takes.
    Large,
}

impl Kind {
    /// All of them; each is at its own number.
    pub const ALL: [Self; 3] = [Self::Small, Self::Medium, Self::Large];

    /// Of a value of this length, in a dataset with such parts.
    #[must_use]
    pub fn of(value_len: u64, part_bytes: u64) -> Self {
        if value_len > part_bytes {
            Self::Large
        } else if value_len > SMALL_MAX_BYTES {
            Self::Medium
        } else {
            Self::Small
        }
    }

    /// Its part of the memory, in eighths.
    const fn eighths(self) -> u64 {
        match self {
            Self::Small => 1,
            Self::Medium => 3,
            Self::Large => 4,
        }
    }
}

/// Memory that a value of this length may hold while it arrives, bytes.
pub(crate) fn gather_bytes(value_len: u64, part_bytes: u64) -> u64 {
    value_len.min(part_bytes + part_bytes.max(APPEND_ROOM_MIN_BYTES))
}

/// The least memory with which a value of every kind can arrive in a dataset with such parts, bytes.
pub(crate) fn least_bytes(part_bytes: u64) -> u64 {
    gather_bytes(u64::MAX, part_bytes) * 8 / Kind::Large.eighths()
}

/// The memory.
#[derive(Debug)]
pub(crate) struct Arriving {
    allowed_bytes: u64,
    budgets: [Arc<Budget>; 3],
}

impl Arriving {
    pub(crate) fn new(allowed_bytes: u64) -> Self {
        Self {
            allowed_bytes,
            budgets: Kind::ALL.map(|kind| Budget::new(allowed_bytes.saturating_mul(kind.eighths()) / 8)),
        }
    }

    fn budget(&self, kind: Kind) -> &Arc<Budget> {
        &self.budgets[kind as usize]
    }

    /// Takes memory for a value.
    ///
    /// # Errors
    /// [`StorageError::Arriving`] if there is not enough.
    pub(crate) fn take(&self, kind: Kind, bytes: u64) -> Result<Charge, StorageError> {
        self.budget(kind).take(bytes).map_err(|_| StorageError::Arriving)
    }

    /// What values of a kind may hold together, bytes.
    pub(crate) fn kind_bytes(&self, kind: Kind) -> u64 {
        self.budget(kind).allowed_bytes()
    }

    /// What of that is free, bytes.
    pub(crate) fn free_bytes(&self, kind: Kind) -> u64 {
        self.budget(kind).free_bytes()
    }

    pub(crate) fn allowed_bytes(&self) -> u64 {
        self.allowed_bytes
    }

    pub(crate) fn used_bytes(&self) -> u64 {
        self.budgets.iter().map(|budget| budget.used_bytes()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv_proto::layout::PART_MAX_BYTES;

    #[test]
    fn the_least_memory_has_room_for_each_kind() {
        for part_bytes in [1, 1000, SMALL_MAX_BYTES + 1, 1 << 20, PART_MAX_BYTES] {
            let arriving = Arriving::new(least_bytes(part_bytes));
            let _large = arriving
                .take(Kind::Large, gather_bytes(u64::MAX, part_bytes))
                .unwrap();
            for len in [1, SMALL_MAX_BYTES, part_bytes] {
                let kind = Kind::of(len, part_bytes);
                if kind != Kind::Large {
                    arriving.take(kind, len).unwrap();
                }
            }
        }
    }

    #[test]
    fn kinds_do_not_share() {
        let arriving = Arriving::new(16 << 20);
        let all = Kind::ALL.map(|kind| arriving.take(kind, arriving.kind_bytes(kind)).unwrap());
        assert_eq!(arriving.used_bytes(), 16 << 20);
        for (kind, charge) in Kind::ALL.into_iter().zip(all) {
            assert!(matches!(arriving.take(kind, 1), Err(StorageError::Arriving)));
            drop(charge);
            arriving.take(kind, 1).unwrap();
        }
        assert_eq!(arriving.used_bytes(), 0);
    }
}
