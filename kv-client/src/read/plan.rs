//! READs that are about to be posted as one chain, as plain data: planning borrows nothing.

use kv_fabric::{Read, RemoteRef, Scatter};

/// READs of one chain at most: as many as a batch usually has, so that it is one doorbell for each connection whose queue
/// (`ClientOptions::depth`) holds them.
pub(crate) const CHAIN_MAX: usize = 256;
/// READs of one piece at most. The queue of each connection holds as many.
pub(crate) const PIECE_READS_MAX: usize = 32;
/// A completion at least every so many bytes, so that what arrived is checked while the rest flies.
const SIGNAL_BYTES: usize = 128 << 10;
/// A completion at least every so many READs.
const SIGNAL_READS: usize = 8;

/// Regions of a chain: the lane's ring, the memory that values go to, and from there on the memory of items.
pub(crate) const RING: u32 = 0;
pub(crate) const VALUES: u32 = 1;
const ITEMS: u32 = 2;

/// A piece of a READ that goes to the ring.
#[inline]
pub(crate) fn to_ring(offset: usize, len: usize) -> Scatter {
    Scatter::new(RING, offset, len)
}

/// READs in the order in which they are posted.
#[derive(Debug)]
pub(crate) struct Chain {
    reads: Box<[Read; CHAIN_MAX]>,
    len: usize,
    /// Number of the first.
    first: u64,
    /// Of all READs.
    bytes: usize,
    /// The next READ gives a completion with which the chain has so many READs, or so many bytes.
    signal_len: usize,
    signal_bytes: usize,
    /// Items that have memory of their own, in the order of its numbers.
    items: Vec<u32>,
}

impl Chain {
    pub(crate) fn new() -> Self {
        Self {
            reads: Box::new([Read::default(); CHAIN_MAX]),
            len: 0,
            first: 0,
            bytes: 0,
            signal_len: 0,
            signal_bytes: 0,
            items: Vec::with_capacity(CHAIN_MAX),
        }
    }

    /// Empties it; what comes is numbered from `first` on.
    pub(crate) fn begin(&mut self, first: u64) {
        (self.len, self.bytes, self.first) = (0, 0, first);
        (self.signal_len, self.signal_bytes) = (SIGNAL_READS, SIGNAL_BYTES);
        self.items.clear();
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn room(&self) -> usize {
        CHAIN_MAX - self.len
    }

    /// Bytes that its READs ask for.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Number of the region that is an item's own memory.
    pub(crate) fn region_of(&mut self, item: u32) -> u32 {
        if self.items.last() != Some(&item) {
            self.items.push(item);
        }
        ITEMS + self.items.len() as u32 - 1
    }

    /// Items that have a region of their own, from number [`ITEMS`] on.
    pub(super) fn items(&self) -> &[u32] {
        &self.items
    }

    /// Adds a READ to one or two places, of which the second may be empty, and chooses whether it gives a completion; the last
    /// one does. Only while there is room.
    #[inline]
    pub(crate) fn push(&mut self, from: RemoteRef, to: [Scatter; 2]) {
        self.bytes += to[0].len as usize + to[1].len as usize;
        let (len, bytes) = (self.len + 1, self.bytes);
        let signaled = len >= self.signal_len || bytes >= self.signal_bytes;
        if signaled {
            (self.signal_len, self.signal_bytes) = (len + SIGNAL_READS, bytes + SIGNAL_BYTES);
        }
        self.reads[self.len] = Read {
            number: self.first + self.len as u64,
            from,
            to,
            signaled,
        };
        self.len = len;
    }

    /// Its READs, as they are to be posted.
    pub(super) fn reads(&mut self) -> &[Read] {
        let reads = &mut self.reads[..self.len];
        if let Some(last) = reads.last_mut() {
            last.signaled = true;
        }
        reads
    }
}
