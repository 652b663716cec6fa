//! Memory of the index: blocks of one group each, cut from arenas, and directories.

use std::sync::Arc;

use kv_fabric::{Domain, Memory, MemoryKind, Registration, RemoteRef};
use kv_proto::bucket::IndexScope;
use kv_proto::layout::{Bucket, DirectoryEntry, GROUP_BUCKETS, GROUP_BYTES};
use zerocopy::{FromZeros, IntoBytes};

use crate::error::StorageError;
use crate::store::budget::{Budget, Charge};
use crate::store::limits::{ARENA_BLOCKS_MAX, ARENA_BLOCKS_MIN, ARENA_FRACTION, PAGE_BYTES};

const BUCKET_BYTES: usize = size_of::<Bucket>();
const ENTRY_BYTES: usize = size_of::<DirectoryEntry>();

/// Memory that a dataset's clients may READ. The registration goes first when it is dropped, the charge last.
pub(crate) struct Readable<D: Domain> {
    registration: D::Registration,
    memory: Arc<Memory>,
    charge: Charge,
}

impl<D: Domain> Readable<D> {
    pub(crate) fn new(place: &Place<'_, D>, len: usize) -> Result<Self, StorageError> {
        let charge = place.budget.take((len as u64).next_multiple_of(PAGE_BYTES))?;
        Self::charged(place.domain, charge, len)
    }

    /// Memory for what frees memory: it may take what is kept for that.
    pub(crate) fn reserved(place: &Place<'_, D>, len: usize) -> Result<Self, StorageError> {
        let bytes = (len as u64).next_multiple_of(PAGE_BYTES);
        let charge = place.budget.take_reserved(bytes)?;
        Self::charged(place.domain, charge, len)
    }

    /// Of memory that was taken from the budget before.
    pub(crate) fn charged(domain: &D, charge: Charge, len: usize) -> Result<Self, StorageError> {
        let memory = Arc::new(Memory::new(len, MemoryKind::SharedReadOnly)?);
        let registration = domain.register(Arc::clone(&memory))?;
        Ok(Self {
            registration,
            memory,
            charge,
        })
    }

    pub(crate) fn memory(&self) -> &Memory {
        &self.memory
    }

    pub(crate) fn remote(&self) -> RemoteRef {
        self.registration.remote()
    }

    pub(crate) fn charged_bytes(&self) -> u64 {
        self.charge.bytes()
    }
}

/// Where memory comes from.
pub(crate) struct Place<'a, D: Domain> {
    pub(crate) domain: &'a D,
    pub(crate) budget: &'a Arc<Budget>,
}

/// One group's block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BlockRef {
    arena: u16,
    block: u16,
}

const _: () = assert!(ARENA_BLOCKS_MAX <= 1 << u16::BITS);

/// All blocks of an index.
pub(crate) struct Blocks<D: Domain> {
    arenas: Vec<Readable<D>>,
    free: Vec<BlockRef>,
    /// Blocks in all arenas.
    count: usize,
}

impl<D: Domain> Blocks<D> {
    pub(crate) const fn new() -> Self {
        Self {
            arenas: Vec::new(),
            free: Vec::new(),
            count: 0,
        }
    }

    /// All memory of the blocks and of these lists, bytes.
    pub(crate) fn bytes(&self) -> u64 {
        let lists =
            self.arenas.capacity() * size_of::<Readable<D>>() + self.free.capacity() * size_of::<BlockRef>();
        self.arenas.iter().map(Readable::charged_bytes).sum::<u64>() + lists as u64
    }

    /// A block that nobody reads. Where the budget does not allow the next arena, a smaller one is tried.
    pub(crate) fn take(&mut self, place: &Place<'_, D>) -> Result<BlockRef, StorageError> {
        if self.free.is_empty() {
            let mut blocks = (self.count / ARENA_FRACTION).clamp(ARENA_BLOCKS_MIN, ARENA_BLOCKS_MAX);
            while let Err(error) = self.add_arena(blocks, place) {
                if blocks == 1 || !matches!(error, StorageError::Memory { .. }) {
                    return Err(error);
                }
                blocks /= 2;
            }
        }
        Ok(self.free.pop().expect("an arena has blocks"))
    }

    /// Has at least `blocks` free, and no more than before where there were fewer.
    pub(crate) fn reserve(&mut self, blocks: usize, place: &Place<'_, D>) -> Result<(), StorageError> {
        while self.free.len() < blocks {
            self.add_arena((blocks - self.free.len()).min(ARENA_BLOCKS_MAX), place)?;
        }
        Ok(())
    }

    fn add_arena(&mut self, blocks: usize, place: &Place<'_, D>) -> Result<(), StorageError> {
        let arena = u16::try_from(self.arenas.len()).map_err(|_| StorageError::Limit {
            what: "arenas of the index",
            limit: 1 << u16::BITS,
        })?;
        self.arenas.push(Readable::new(place, blocks * GROUP_BYTES)?);
        self.count += blocks;
        let new = (0..blocks).rev().map(|block| BlockRef {
            arena,
            block: block as u16,
        });
        self.free.extend(new);
        Ok(())
    }

    /// Takes a block back that no session can read any more.
    pub(crate) fn give_back(&mut self, block: BlockRef) {
        let at = usize::from(block.block) * GROUP_BYTES;
        self.arenas[usize::from(block.arena)]
            .registration
            .reused(at, GROUP_BYTES);
        self.free.push(block);
    }

    pub(crate) fn remote(&self, block: BlockRef) -> RemoteRef {
        self.arenas[usize::from(block.arena)]
            .remote()
            .offset((usize::from(block.block) * GROUP_BYTES) as u64)
    }

    fn bucket_at(&self, block: BlockRef, index: u32) -> (&Memory, usize) {
        debug_assert!(index < GROUP_BUCKETS);
        let at = usize::from(block.block) * GROUP_BYTES + index as usize * BUCKET_BYTES;
        (self.arenas[usize::from(block.arena)].memory(), at)
    }

    pub(crate) fn read(&self, block: BlockRef, index: u32) -> Bucket {
        let mut bucket = Bucket::new_zeroed();
        let (memory, at) = self.bucket_at(block, index);
        memory.read(at, bucket.as_mut_bytes());
        bucket
    }

    /// Writes a bucket under its checksum: what it says first, the checksum last. A reader who sees some of both sees
    /// a checksum that does not agree.
    pub(crate) fn write(
        &self,
        scope: &IndexScope,
        block: BlockRef,
        group: u32,
        index: u32,
        bucket: &mut Bucket,
    ) {
        bucket.checksum = scope.bucket_checksum(group, index, bucket);
        let (memory, at) = self.bucket_at(block, index);
        memory.write(at + 8, &bucket.as_bytes()[8..]);
        memory.store_u64(at, bucket.checksum);
    }
}

/// A directory as clients READ it.
pub(crate) struct Directory<D: Domain> {
    readable: Readable<D>,
    pub(crate) depth: u8,
    pub(crate) version: u64,
}

impl<D: Domain> Directory<D> {
    pub(crate) fn new(place: &Place<'_, D>, depth: u8, version: u64) -> Result<Self, StorageError> {
        Ok(Self {
            readable: Readable::new(place, ENTRY_BYTES << depth)?,
            depth,
            version,
        })
    }

    pub(crate) fn remote(&self) -> RemoteRef {
        self.readable.remote()
    }

    /// Its memory, bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.readable.charged_bytes()
    }

    /// Writes an entry under its checksum, as [`Blocks::write`] does a bucket.
    pub(crate) fn write(&self, scope: &IndexScope, index: u32, mut entry: DirectoryEntry) {
        entry.checksum = scope.directory_checksum(self.version, index, &entry);
        let at = index as usize * ENTRY_BYTES;
        self.readable.memory().write(at + 8, &entry.as_bytes()[8..]);
        self.readable.memory().store_u64(at, entry.checksum);
    }
}
