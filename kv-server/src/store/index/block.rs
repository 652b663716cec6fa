//! Memory of the index: blocks of one group each, cut from arenas, and directories.

use std::sync::Arc;

use kv_fabric::{Domain, Memory, MemoryKind, Registration, RemoteRef};
use kv_proto::bucket::IndexScope;
use kv_proto::layout::{Bucket, DirectoryEntry, GROUP_BUCKETS, GROUP_BYTES};
use zerocopy::{FromZeros, IntoBytes};

use crate::error::StorageError;
use crate::store::budget::{Budget, Charge};
use crate::store::limits::{
    ARENA_BLOCKS_MAX, ARENA_BLOCKS_MIN, ARENA_FRACTION, BLOCKS_KEPT, FREE_ARENAS_MAX, PAGE_BYTES,
};

const BUCKET_BYTES: usize = size_of::<Bucket>();
const ENTRY_BYTES: usize = size_of::<DirectoryEntry>();

/// Memory that a dataset's clients may READ. The registration goes first when it is dropped, the charge last.
pub(crate) struct Readable {
    registration: Box<dyn Registration>,
    memory: Arc<Memory>,
    charge: Charge,
}

impl Readable {
    pub(crate) fn new(place: &Place<'_>, len: usize) -> Result<Self, StorageError> {
        let charge = place.budget.take((len as u64).next_multiple_of(PAGE_BYTES))?;
        Self::charged(place.domain, charge, len)
    }

    /// Memory for what frees memory: it may take what is kept for that.
    pub(crate) fn reserved(place: &Place<'_>, len: usize) -> Result<Self, StorageError> {
        let bytes = (len as u64).next_multiple_of(PAGE_BYTES);
        let charge = place.budget.take_reserved(bytes)?;
        Self::charged(place.domain, charge, len)
    }

    /// Of memory that was taken from the budget before.
    pub(crate) fn charged(domain: &dyn Domain, charge: Charge, len: usize) -> Result<Self, StorageError> {
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
pub(crate) struct Place<'a> {
    pub(crate) domain: &'a dyn Domain,
    pub(crate) budget: &'a Arc<Budget>,
}

/// One group's block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BlockRef {
    pub(super) arena: u16,
    block: u16,
}

const _: () = assert!(ARENA_BLOCKS_MAX <= 1 << u16::BITS);

/// Memory of some blocks, which is taken and freed at once.
struct Arena {
    readable: Readable,
    /// Those of its blocks that nobody reads.
    free: Vec<u16>,
    /// How many it has.
    blocks: usize,
}

/// All blocks of an index. They are taken from the first arenas, so that the last ones are empty when there are fewer.
pub(crate) struct Blocks {
    /// By number; `None` where one was freed.
    arenas: Vec<Option<Arena>>,
    /// Blocks in all arenas.
    count: usize,
    /// Blocks that nobody reads.
    free: usize,
}

impl Blocks {
    pub(crate) const fn new() -> Self {
        Self {
            arenas: Vec::new(),
            count: 0,
            free: 0,
        }
    }

    /// All memory of the blocks and of these lists, bytes.
    pub(crate) fn bytes(&self) -> u64 {
        let list = self.arenas.capacity() * size_of::<Option<Arena>>();
        let arenas =
            self.arenas.iter().flatten().map(|arena| {
                arena.readable.charged_bytes() + (arena.free.capacity() * size_of::<u16>()) as u64
            });
        arenas.sum::<u64>() + list as u64
    }

    /// Blocks that nobody reads.
    pub(crate) const fn free(&self) -> usize {
        self.free
    }

    /// A block that nobody reads; some are left for [`Blocks::take_kept`]. Where the budget does not allow the next
    /// arena, a smaller one is tried.
    pub(crate) fn take(&mut self, place: &Place<'_>) -> Result<BlockRef, StorageError> {
        if self.free <= BLOCKS_KEPT {
            let mut blocks = self.arena_blocks();
            while let Err(error) = self.add_arena(blocks, place) {
                if blocks == 1 || !matches!(error, StorageError::Memory { .. }) {
                    return Err(error);
                }
                blocks /= 2;
            }
        }
        Ok(self.take_kept().expect("an arena has blocks"))
    }

    /// A block that nobody reads, for what frees others: the last one too, and no more memory.
    pub(crate) fn take_kept(&mut self) -> Option<BlockRef> {
        let (number, arena) = (0_u16..)
            .zip(&mut self.arenas)
            .filter_map(|(number, arena)| Some((number, arena.as_mut()?)))
            .find(|(_, arena)| !arena.free.is_empty())?;
        self.free -= 1;
        let block = arena.free.pop().expect("it has a free one");
        Some(BlockRef { arena: number, block })
    }

    /// Has at least `blocks` to take, and no more than that where there were fewer.
    pub(crate) fn reserve(&mut self, blocks: usize, place: &Place<'_>) -> Result<(), StorageError> {
        let wanted = blocks + BLOCKS_KEPT;
        while self.free < wanted {
            self.add_arena((wanted - self.free).min(ARENA_BLOCKS_MAX), place)?;
        }
        Ok(())
    }

    /// Blocks of the next arena.
    fn arena_blocks(&self) -> usize {
        (self.count / ARENA_FRACTION).clamp(ARENA_BLOCKS_MIN, ARENA_BLOCKS_MAX)
    }

    fn add_arena(&mut self, blocks: usize, place: &Place<'_>) -> Result<(), StorageError> {
        let number = self.arenas.iter().position(Option::is_none);
        let number = number.unwrap_or(self.arenas.len());
        if number > usize::from(u16::MAX) {
            return Err(StorageError::Limit {
                what: "arenas of the index",
                limit: 1 << u16::BITS,
            });
        }
        let arena = Arena {
            readable: Readable::new(place, blocks * GROUP_BYTES)?,
            free: (0..blocks).rev().map(|block| block as u16).collect(),
            blocks,
        };
        if number == self.arenas.len() {
            self.arenas.push(None);
        }
        self.arenas[number] = Some(arena);
        self.count += blocks;
        self.free += blocks;
        Ok(())
    }

    /// The last arena that has blocks in use, where so many are free that all of them can be moved to those before it, and
    /// that it is worth it.
    pub(crate) fn to_be_emptied(&self) -> Option<u16> {
        if self.free <= FREE_ARENAS_MAX * self.arena_blocks() {
            return None;
        }
        let used = |arena: &Arena| arena.blocks - arena.free.len();
        let last = self
            .arenas
            .iter()
            .rposition(|arena| arena.as_ref().is_some_and(|it| used(it) > 0))?;
        let before = self.arenas[..last].iter().flatten();
        let room: usize = before.map(|arena| arena.free.len()).sum();
        let needed = self.arenas[last].as_ref().map_or(0, used);
        (needed <= room).then_some(last as u16)
    }

    /// Takes a block back that no session can read any more.
    pub(crate) fn give_back(&mut self, block: BlockRef) {
        let at = usize::from(block.block) * GROUP_BYTES;
        let arena = self.arenas[usize::from(block.arena)].as_mut();
        let arena = arena.expect("an arena with a used block is there");
        arena.readable.registration.reused(at, GROUP_BYTES);
        arena.free.push(block.block);
        self.free += 1;
        self.free_arenas();
    }

    /// Frees arenas that are not used, but for as many blocks as the next arena has: none is taken again soon.
    fn free_arenas(&mut self) {
        while self.free > self.arena_blocks() {
            let spare = self.free - self.arena_blocks();
            let unused = |arena: &Arena| arena.free.len() == arena.blocks && arena.blocks <= spare;
            // The last, which is needed last.
            let found = self.arenas.iter_mut().rev();
            let mut found = found.filter(|arena| arena.as_ref().is_some_and(unused));
            let Some(arena) = found.next().and_then(Option::take) else {
                return;
            };
            self.count -= arena.blocks;
            self.free -= arena.blocks;
        }
    }

    fn arena(&self, block: BlockRef) -> &Readable {
        let arena = self.arenas[usize::from(block.arena)].as_ref();
        &arena.expect("an arena with a used block is there").readable
    }

    pub(crate) fn remote(&self, block: BlockRef) -> RemoteRef {
        self.arena(block)
            .remote()
            .offset((usize::from(block.block) * GROUP_BYTES) as u64)
    }

    fn bucket_at(&self, block: BlockRef, index: u32) -> (&Memory, usize) {
        debug_assert!(index < GROUP_BUCKETS);
        let at = usize::from(block.block) * GROUP_BYTES + index as usize * BUCKET_BYTES;
        (self.arena(block).memory(), at)
    }

    /// A bucket as it lies there, whatever that is.
    pub(crate) fn read(&self, block: BlockRef, index: u32) -> Bucket {
        let mut bucket = Bucket::new_zeroed();
        let (memory, at) = self.bucket_at(block, index);
        memory.read(at, bucket.as_mut_bytes());
        bucket
    }

    /// Changes a byte as failing memory would.
    #[cfg(test)]
    pub(crate) fn spoil(&self, block: BlockRef, index: u32, byte: usize, mask: u8) {
        let (memory, at) = self.bucket_at(block, index);
        spoil(memory, at + byte, mask);
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
pub(crate) struct Directory {
    readable: Readable,
    pub(crate) depth: u8,
    pub(crate) version: u64,
}

impl Directory {
    pub(crate) fn new(place: &Place<'_>, depth: u8, version: u64) -> Result<Self, StorageError> {
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

    /// The entry with its checksum, as it is to be at `index`.
    pub(crate) fn checked(
        &self,
        scope: &IndexScope,
        index: u32,
        mut entry: DirectoryEntry,
    ) -> DirectoryEntry {
        entry.checksum = scope.directory_checksum(self.version, index, &entry);
        entry
    }

    pub(crate) fn read(&self, index: u32) -> DirectoryEntry {
        let mut entry = DirectoryEntry::new_zeroed();
        let memory = self.readable.memory();
        memory.read(index as usize * ENTRY_BYTES, entry.as_mut_bytes());
        entry
    }

    /// Changes a byte as failing memory would.
    #[cfg(test)]
    pub(crate) fn spoil(&self, index: u32, byte: usize, mask: u8) {
        spoil(self.readable.memory(), index as usize * ENTRY_BYTES + byte, mask);
    }

    /// Writes an entry under its checksum, as [`Blocks::write`] does a bucket.
    pub(crate) fn write(&self, scope: &IndexScope, index: u32, entry: DirectoryEntry) {
        let entry = self.checked(scope, index, entry);
        let at = index as usize * ENTRY_BYTES;
        self.readable.memory().write(at + 8, &entry.as_bytes()[8..]);
        self.readable.memory().store_u64(at, entry.checksum);
    }
}

#[cfg(test)]
fn spoil(memory: &Memory, at: usize, mask: u8) {
    let mut byte = [0];
    memory.read(at, &mut byte);
    memory.write(at, &[byte[0] ^ mask]);
}
