//! READs that are about to be posted as one chain, as plain data: planning borrows nothing.

use kv_fabric::{Fabric, Read, RemoteRef, Scatter};

/// READs of one chain at most: as many as a batch usually has, so that it is one doorbell for each connection whose queue
/// (`ClientOptions::depth`) holds them.
pub(crate) const CHAIN_MAX: usize = 256;
/// READs of one piece at most. The queue of each connection holds as many.
pub(crate) const PIECE_READS_MAX: usize = 32;
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
    /// The memory of slots.
    Slots,
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
    #[inline]
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
        self.pieces[0].len + self.pieces[1].len
    }
}

/// READs in the order in which they are posted.
#[derive(Debug)]
pub(crate) struct Chain {
    reads: Box<[Planned]>,
    len: usize,
    /// Of all READs, and of those since the last that gives a completion.
    bytes: usize,
    quiet_bytes: usize,
    quiet: usize,
}

impl Chain {
    pub(crate) fn new() -> Self {
        Self {
            reads: vec![Planned::default(); CHAIN_MAX].into(),
            len: 0,
            bytes: 0,
            quiet_bytes: 0,
            quiet: 0,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn room(&self) -> usize {
        CHAIN_MAX - self.len
    }

    pub(crate) fn clear(&mut self) {
        (self.len, self.bytes) = (0, 0);
        (self.quiet, self.quiet_bytes) = (0, 0);
    }

    /// Bytes that its READs ask for.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds a READ, and chooses whether it gives a completion; the last one does. Only while there is room.
    #[inline]
    pub(crate) fn push(&mut self, read: Planned) {
        let len = read.len();
        self.bytes += len;
        self.quiet_bytes += len;
        self.quiet += 1;
        let signaled = self.quiet_bytes >= SIGNAL_BYTES || self.quiet >= SIGNAL_READS;
        if signaled {
            (self.quiet, self.quiet_bytes) = (0, 0);
        }
        self.reads[self.len] = Planned { signaled, ..read };
        self.len += 1;
    }

    /// Hands the READs over as the fabric takes them, numbered from `first_number` on; `memory` tells where a piece goes.
    #[inline]
    pub(crate) fn post<'r, F: Fabric, T>(
        &mut self,
        first_number: u64,
        memory: impl Fn(Dest) -> &'r F::Region,
        post: impl FnOnce(&[Read<'_, F::Region>]) -> T,
    ) -> T {
        if let Some(last) = self.reads[..self.len].last_mut() {
            last.signaled = true;
        }
        // The lists are built on the stack: one READ is not to pay for many.
        match self.len {
            0 | 1 => self.post_up_to::<F, T, 1>(first_number, memory, post),
            2 => self.post_up_to::<F, T, 2>(first_number, memory, post),
            3..=8 => self.post_up_to::<F, T, 8>(first_number, memory, post),
            9..=32 => self.post_up_to::<F, T, 32>(first_number, memory, post),
            33..=96 => self.post_up_to::<F, T, 96>(first_number, memory, post),
            _ => self.post_up_to::<F, T, CHAIN_MAX>(first_number, memory, post),
        }
    }

    fn post_up_to<'r, F: Fabric, T, const MAX: usize>(
        &self,
        first_number: u64,
        memory: impl Fn(Dest) -> &'r F::Region,
        post: impl FnOnce(&[Read<'_, F::Region>]) -> T,
    ) -> T {
        let nothing = Scatter {
            region: memory(Dest::Ring),
            offset: 0,
            len: 0,
        };
        let mut scatters = [[nothing; 2]; MAX];
        for (planned, pieces) in self.reads[..self.len].iter().zip(&mut scatters) {
            for (piece, scatter) in planned.pieces[..planned.count].iter().zip(pieces) {
                *scatter = Scatter {
                    region: memory(piece.dest),
                    offset: piece.offset,
                    len: piece.len,
                };
            }
        }
        let mut reads = [Read {
            number: 0,
            from: RemoteRef::default(),
            to: &[],
            signaled: false,
        }; MAX];
        let planned = self.reads[..self.len].iter().zip(first_number..);
        for (((planned, number), pieces), read) in planned.zip(&scatters).zip(&mut reads) {
            *read = Read {
                number,
                from: planned.from,
                to: &pieces[..planned.count],
                signaled: planned.signaled,
            };
        }
        post(&reads[..self.len])
    }
}
