//! READs that are about to be posted as one chain, as plain data: planning borrows nothing.

use kv_fabric::{Fabric, Read, RemoteRef, Scatter};

/// READs of one chain at most.
pub(crate) const CHAIN_MAX: usize = 32;
/// A completion at least every so many bytes, so that what arrived is checked while the rest flies.
const SIGNAL_BYTES: usize = 128 << 10;
/// A completion at least every so many READs.
const SIGNAL_READS: usize = 8;

/// The memory that a piece of a READ goes to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Dest {
    /// The lane's ring.
    #[default]
    Ring,
    /// The memory or the slot of this item.
    Item(u32),
}

/// Where one piece of a READ goes.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Piece {
    pub(crate) dest: Dest,
    pub(crate) offset: usize,
    pub(crate) len: usize,
}

impl Piece {
    pub(crate) fn ring(offset: usize, len: usize) -> Self {
        let dest = Dest::Ring;
        Self { dest, offset, len }
    }
}

/// One READ.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Planned {
    from: RemoteRef,
    pieces: [Piece; 2],
    count: usize,
    signaled: bool,
}

impl Planned {
    /// A READ to one or two places; empty ones are left out.
    pub(crate) fn new(from: RemoteRef, pieces: [Piece; 2]) -> Self {
        let [first, second] = pieces;
        let (pieces, count) = match (first.len, second.len) {
            (0, _) => ([second, first], 1),
            (_, 0) => (pieces, 1),
            _ => (pieces, 2),
        };
        Self {
            from,
            pieces,
            count,
            signaled: true,
        }
    }

    fn len(&self) -> usize {
        self.pieces.iter().map(|piece| piece.len).sum()
    }
}

/// READs in the order in which they are posted.
#[derive(Debug)]
pub(crate) struct Chain {
    reads: [Planned; CHAIN_MAX],
    len: usize,
}

impl Chain {
    pub(crate) fn new() -> Self {
        Self {
            reads: [Planned::default(); CHAIN_MAX],
            len: 0,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn room(&self) -> usize {
        CHAIN_MAX - self.len
    }

    pub(crate) fn clear(&mut self) {
        self.len = 0;
    }

    /// Bytes that its READs ask for.
    pub(crate) fn bytes(&self) -> usize {
        self.reads[..self.len].iter().map(Planned::len).sum()
    }

    /// Adds a READ. Only while there is room.
    pub(crate) fn push(&mut self, read: Planned) {
        self.reads[self.len] = read;
        self.len += 1;
    }

    /// Chooses which READs give a completion.
    fn signal(&mut self) {
        let (mut bytes, mut quiet) = (0, 0);
        let last = self.len.saturating_sub(1);
        for (index, read) in self.reads[..self.len].iter_mut().enumerate() {
            bytes += read.len();
            quiet += 1;
            read.signaled = index == last || bytes >= SIGNAL_BYTES || quiet >= SIGNAL_READS;
            if read.signaled {
                (bytes, quiet) = (0, 0);
            }
        }
    }

    /// Hands the READs over as the fabric takes them, numbered from `first_number` on; `memory` tells where a piece goes.
    pub(crate) fn post<'r, F: Fabric, T>(
        &mut self,
        first_number: u64,
        memory: impl Fn(Dest) -> &'r F::Region,
        post: impl FnOnce(&[Read<'_, F::Region>]) -> T,
    ) -> T {
        self.signal();
        // The lists are built on the stack: one READ is not to pay for thirty-two.
        match self.len {
            0 | 1 => self.post_up_to::<F, T, 1>(first_number, memory, post),
            2..=8 => self.post_up_to::<F, T, 8>(first_number, memory, post),
            _ => self.post_up_to::<F, T, CHAIN_MAX>(first_number, memory, post),
        }
    }

    fn post_up_to<'r, F: Fabric, T, const MAX: usize>(
        &self,
        first_number: u64,
        memory: impl Fn(Dest) -> &'r F::Region,
        post: impl FnOnce(&[Read<'_, F::Region>]) -> T,
    ) -> T {
        let ring = memory(Dest::Ring);
        let scatters: [[Scatter<'_, F::Region>; 2]; MAX] = std::array::from_fn(|index| {
            self.reads[index].pieces.map(|piece| Scatter {
                region: if index < self.len {
                    memory(piece.dest)
                } else {
                    ring
                },
                offset: piece.offset,
                len: piece.len,
            })
        });
        let reads: [Read<'_, F::Region>; MAX] = std::array::from_fn(|index| Read {
            number: first_number + index as u64,
            from: self.reads[index].from,
            to: &scatters[index][..self.reads[index].count],
            signaled: self.reads[index].signaled,
        });
        post(&reads[..self.len])
    }
}
