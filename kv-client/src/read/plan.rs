//! READs that are about to be posted as one chain, as plain data: planning borrows nothing.

use kv_fabric::{Fabric, Read, RemoteRef, Scatter};

/// READs of one chain at most.
pub(crate) const CHAIN_MAX: usize = 32;
/// A completion at least every so many bytes, so that what arrived is checked while the rest flies.
const SIGNAL_BYTES: usize = 128 << 10;
/// A completion at least every so many READs.
const SIGNAL_READS: usize = 8;

/// Where one piece of a READ goes.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Piece {
    /// To the caller's memory instead of the lane's arena.
    pub(crate) to_place: bool,
    pub(crate) offset: usize,
    pub(crate) len: usize,
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

    /// Adds a READ. Only while there is room.
    pub(crate) fn push(&mut self, read: Planned) {
        self.reads[self.len] = read;
        self.len += 1;
    }

    /// Chooses which READs give a completion, and hands them over as the fabric takes them.
    pub(crate) fn post<F: Fabric, T>(
        &mut self,
        first_number: u64,
        arena: &F::Region,
        place: Option<&F::Region>,
        post: impl FnOnce(&[Read<'_, F::Region>]) -> T,
    ) -> T {
        let (mut bytes, mut quiet) = (0, 0);
        let last = self.len - 1;
        for (index, read) in self.reads[..self.len].iter_mut().enumerate() {
            bytes += read.len();
            quiet += 1;
            read.signaled = index == last || bytes >= SIGNAL_BYTES || quiet >= SIGNAL_READS;
            if read.signaled {
                (bytes, quiet) = (0, 0);
            }
        }
        let region = |piece: &Piece| match place {
            Some(place) if piece.to_place => place,
            _ => arena,
        };
        let scatters: [[Scatter<'_, F::Region>; 2]; CHAIN_MAX] = std::array::from_fn(|index| {
            self.reads[index].pieces.each_ref().map(|piece| Scatter {
                region: region(piece),
                offset: piece.offset,
                len: piece.len,
            })
        });
        let reads: [Read<'_, F::Region>; CHAIN_MAX] = std::array::from_fn(|index| Read {
            number: first_number + index as u64,
            from: self.reads[index].from,
            to: &scatters[index][..self.reads[index].count],
            signaled: self.reads[index].signaled,
        });
        post(&reads[..self.len])
    }
}
