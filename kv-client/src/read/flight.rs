//! Groups of READs in flight, and what they are for.

use kv_proto::layout::{DirectoryEntry, Locator};

use super::ring::Span;

/// What a group of READs is for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Flying {
    /// Candidate buckets of an item.
    Buckets {
        item: u32,
        directory_index: u32,
        entry: DirectoryEntry,
        buckets: [u32; 2],
        count: usize,
    },
    /// The bucket that is to say whether `locator` still is where the item's value lies.
    Guess {
        item: u32,
        directory_index: u32,
        entry: DirectoryEntry,
        bucket: u32,
        locator: Locator,
    },
    /// Bytes `start..end` of a fetch's value, its prefix before them or not.
    Piece {
        fetch: u32,
        with_prefix: bool,
        start: u64,
        end: u64,
    },
    /// A page of the directory, asked for when there had been `changes` changes.
    Page { page: u32, changes: u64 },
}

/// A group of READs in flight.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Flight {
    /// Number of its last READ.
    pub(crate) last: u64,
    /// Where it lands in the ring, and what is given back after it.
    pub(crate) at: usize,
    pub(crate) span: Span,
    pub(crate) flying: Flying,
}

impl Flight {
    /// One whose READs are all planned; [`super::lane::Lane::fly`] numbers it.
    pub(crate) fn new(span: Span, flying: Flying) -> Self {
        Self {
            last: 0,
            at: span.offset,
            span,
            flying,
        }
    }

    /// The same, at another place in the ring.
    pub(crate) fn landing_at(self, at: usize) -> Self {
        Self { at, ..self }
    }
}
