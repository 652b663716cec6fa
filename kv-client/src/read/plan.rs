//! READs that are about to be posted as one chain, as plain data: planning borrows nothing.

use kv_fabric::{Read, Region, RemoteRef, Scatter};

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
    /// The second may be empty.
    pieces: [Piece; 2],
    signaled: bool,
}

impl Planned {
    /// A READ to one or two places; empty ones are left out.
    #[inline]
    pub(crate) fn new(from: RemoteRef, pieces: [Piece; 2]) -> Self {
        let [first, second] = pieces;
        let pieces = if first.len == 0 { [second, first] } else { pieces };
        Self {
            from,
            pieces,
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
    /// Of all READs.
    bytes: usize,
    /// The next READ gives a completion with which the chain has so many READs, or so many bytes.
    signal_len: usize,
    signal_bytes: usize,
}

impl Chain {
    pub(crate) fn new() -> Self {
        Self {
            reads: vec![Planned::default(); CHAIN_MAX].into(),
            len: 0,
            bytes: 0,
            signal_len: SIGNAL_READS,
            signal_bytes: SIGNAL_BYTES,
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
        (self.signal_len, self.signal_bytes) = (SIGNAL_READS, SIGNAL_BYTES);
    }

    /// Bytes that its READs ask for.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds a READ, and chooses whether it gives a completion; the last one does. Only while there is room.
    #[inline]
    pub(crate) fn push(&mut self, read: Planned) {
        self.bytes += read.len();
        let (len, bytes) = (self.len + 1, self.bytes);
        let signaled = len >= self.signal_len || bytes >= self.signal_bytes;
        if signaled {
            (self.signal_len, self.signal_bytes) = (len + SIGNAL_READS, bytes + SIGNAL_BYTES);
        }
        self.reads[self.len] = Planned { signaled, ..read };
        self.len = len;
    }

    /// Hands the READs over as the fabric takes them, numbered from `first_number` on; `memory` tells where a piece goes.
    #[inline]
    pub(crate) fn post<'r, T>(
        &mut self,
        first_number: u64,
        memory: impl Fn(Dest) -> &'r Region,
        post: impl FnOnce(&[Read<'_>]) -> T,
    ) -> T {
        if let Some(last) = self.reads[..self.len].last_mut() {
            last.signaled = true;
        }
        // The lists are built on the stack: one READ is not to pay for many.
        match self.len {
            0 | 1 => self.post_up_to::<T, 1>(first_number, memory, post),
            2 => self.post_up_to::<T, 2>(first_number, memory, post),
            3..=8 => self.post_up_to::<T, 8>(first_number, memory, post),
            9..=16 => self.post_up_to::<T, 16>(first_number, memory, post),
            17..=32 => self.post_up_to::<T, 32>(first_number, memory, post),
            33..=64 => self.post_up_to::<T, 64>(first_number, memory, post),
            65..=96 => self.post_up_to::<T, 96>(first_number, memory, post),
            _ => self.post_up_to::<T, CHAIN_MAX>(first_number, memory, post),
        }
    }

    fn post_up_to<'r, T, const MAX: usize>(
        &self,
        first_number: u64,
        memory: impl Fn(Dest) -> &'r Region,
        post: impl FnOnce(&[Read<'_>]) -> T,
    ) -> T {
        let planned = &self.reads[..self.len];
        let scatter = |piece: &Piece| Scatter {
            region: memory(piece.dest),
            offset: piece.offset,
            len: piece.len,
        };
        let mut scatters = [[scatter(&Piece::default()); 2]; MAX];
        for (read, pieces) in planned.iter().zip(&mut scatters) {
            *pieces = [scatter(&read.pieces[0]), scatter(&read.pieces[1])];
        }
        let mut reads = [Read {
            number: 0,
            from: RemoteRef::default(),
            to: &[],
            signaled: false,
        }; MAX];
        let numbered = planned.iter().zip(first_number..);
        for (((planned, number), pieces), read) in numbered.zip(&scatters).zip(&mut reads) {
            *read = Read {
                number,
                from: planned.from,
                to: &pieces[..1 + usize::from(pieces[1].len > 0)],
                signaled: planned.signaled,
            };
        }
        post(&reads[..self.len])
    }
}
