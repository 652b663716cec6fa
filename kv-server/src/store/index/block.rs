//! Memory of the index: blocks of one group each, cut from arenas, and directories.

use std::sync::Arc;

use kv_fabric::{Domain, Memory, MemoryKind, Registration, RemoteRef};
use kv_proto::bucket::IndexScope;
use kv_proto::layout::{Bucket, DirectoryEntry, GROUP_BUCKETS, GROUP_BYTES};
use zerocopy::{FromZeros, IntoBytes};

use crate::error::StorageError;
use crate::store::budget::{Budget, Charge};
use crate::store::limits::{ARENA_BLOCKS_MAX, ARENA_BLOCKS_MIN, PAGE_BYTES};

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
        let memory = Arc::new(Memory::new(len, MemoryKind::SharedReadOnly)?);
        let registration = place.domain.register(Arc::clone(&memory))?;
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
    arena: usize,
    block: usize,
}

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

    pub(crate) fn charged_bytes(&self) -> u64 {
        self.arenas.iter().map(Readable::charged_bytes).sum()
    }

    /// A block that nobody reads. Where the budget does not allow the next arena, a smaller one is tried.
    pub(crate) fn take(&mut self, place: &Place<'_, D>) -> Result<BlockRef, StorageError> {
        if let Some(block) = self.free.pop() {
            return Ok(block);
        }
        let mut blocks = (self.count / 2).clamp(ARENA_BLOCKS_MIN, ARENA_BLOCKS_MAX);
        let arena = loop {
            match Readable::new(place, blocks * GROUP_BYTES) {
                Err(StorageError::Memory { .. }) if blocks > 1 => blocks /= 2,
                made => break made?,
            }
        };
        self.count += blocks;
        let arena_index = self.arenas.len();
        self.arenas.push(arena);
        self.free.extend((1..blocks).rev().map(|block| BlockRef {
            arena: arena_index,
            block,
        }));
        Ok(BlockRef {
            arena: arena_index,
            block: 0,
        })
    }

    /// Takes a block back that no session can read any more.
    pub(crate) fn give_back(&mut self, block: BlockRef) {
        let at = block.block * GROUP_BYTES;
        self.arenas[block.arena].registration.reused(at, GROUP_BYTES);
        self.free.push(block);
    }

    pub(crate) fn remote(&self, block: BlockRef) -> RemoteRef {
        self.arenas[block.arena]
            .remote()
            .offset((block.block * GROUP_BYTES) as u64)
    }

    pub(crate) fn read(&self, block: BlockRef, index: u32) -> Bucket {
        debug_assert!(index < GROUP_BUCKETS);
        let mut bucket = Bucket::new_zeroed();
        let at = block.block * GROUP_BYTES + index as usize * BUCKET_BYTES;
        self.arenas[block.arena].memory().read(at, bucket.as_mut_bytes());
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
        let at = block.block * GROUP_BYTES + index as usize * BUCKET_BYTES;
        let memory = self.arenas[block.arena].memory();
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

    pub(crate) fn charged_bytes(&self) -> u64 {
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
