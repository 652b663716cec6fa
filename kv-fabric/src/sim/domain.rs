//! What data connections may READ.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use crate::{FabricError, Memory, Region, RemoteRef};

/// Distance between the addresses of two registrations beyond their lengths.
const ADDRESS_GAP: u64 = 1 << 20;

/// Hands out rkeys and addresses of one network, which are never used again, and numbers reuses of memory.
#[derive(Debug)]
pub(super) struct Names {
    reuses: AtomicU64,
    rkeys: AtomicU64,
    rkey_first: u32,
    addresses: AtomicU64,
}

impl Names {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            reuses: AtomicU64::new(0),
            rkeys: AtomicU64::new(0),
            rkey_first: (seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) as u32,
            // Not 0, so that an offset taken for an address shows.
            addresses: AtomicU64::new(1 << 40),
        }
    }

    /// Reuses so far.
    pub(super) fn reuses(&self) -> u64 {
        self.reuses.load(Ordering::SeqCst)
    }

    /// Number of a reuse that happens now.
    fn reuse(&self) -> u64 {
        self.reuses.fetch_add(1, Ordering::SeqCst) + 1
    }

    pub(super) fn new_ref(&self, len: usize) -> Result<RemoteRef, FabricError> {
        let count = self.rkeys.fetch_add(1, Ordering::Relaxed);
        let count = u32::try_from(count).map_err(|_| FabricError::Unsupported("more than 2^32 rkeys"))?;
        Ok(RemoteRef {
            address: self
                .addresses
                .fetch_add(len as u64 + ADDRESS_GAP, Ordering::Relaxed),
            rkey: self.rkey_first.wrapping_add(count),
        })
    }
}

/// Where `len` bytes at `address` are in memory that begins at `start`; `None` if not inside.
pub(super) fn offset_in(memory: &Memory, start: u64, address: u64, len: usize) -> Option<usize> {
    let offset = usize::try_from(address.checked_sub(start)?).ok()?;
    let end = offset.checked_add(len)?;
    (end <= memory.len()).then_some(offset)
}

/// Bytes that memory is overwritten with when it is given up.
const POISON: [u8; 8] = *b"reclaim!";
/// Registrations that were given up and stay readable, where nothing is fenced.
const GRAVES_MAX: usize = 256;

/// Registered memory.
#[derive(Debug)]
struct Registered {
    start: u64,
    memory: Arc<Memory>,
    /// Pieces that were reused, by offset: length, and number of the latest reuse.
    reused: BTreeMap<usize, (usize, u64)>,
}

impl Registered {
    /// Whether `len` bytes at `offset` are something else than when `reuses` reuses had been counted.
    fn differs(&self, offset: usize, len: usize, reuses: u64) -> bool {
        let end = offset + len;
        let mut before = self.reused.range(..end).rev();
        let reused = before
            .by_ref()
            .take_while(|(at, (len, _))| **at + len > offset)
            .any(|(_, (_, number))| *number > reuses);
        reused || self.is_poison(offset, len)
    }

    fn is_poison(&self, offset: usize, len: usize) -> bool {
        // Pieces that are reused begin and end at multiples of the poison's length.
        let at = offset.next_multiple_of(POISON.len());
        let mut word = [0; POISON.len()];
        if at + word.len() > offset + len {
            return false;
        }
        self.memory.read(at, &mut word);
        word == POISON
    }

    fn poison(&self, offset: usize, len: usize) {
        let page = POISON.repeat(512);
        for at in (offset..offset + len).step_by(page.len()) {
            self.memory.write(at, &page[..page.len().min(offset + len - at)]);
        }
    }
}

#[derive(Debug, Default)]
struct Memories {
    live: HashMap<u32, Registered>,
    /// Given up but still readable, the oldest first.
    graves: VecDeque<u32>,
}

/// What a READ got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Copied {
    /// Bytes of memory that was in use, and the same as when the READ was posted.
    Good,
    /// Bytes of memory that was reused or given up.
    Reused,
    /// Nothing: the domain does not have them.
    Refused,
}

/// A domain, as connections and registrations share it. Copying holds the lock for reading, so a registration that was
/// dropped is read no more.
#[derive(Debug)]
pub(super) struct Shared {
    memories: RwLock<Memories>,
    names: Arc<Names>,
    fences: bool,
}

impl Shared {
    pub(super) fn new(names: Arc<Names>, fences: bool) -> Self {
        Self {
            memories: RwLock::default(),
            names,
            fences,
        }
    }

    pub(super) fn fences(&self) -> bool {
        self.fences
    }

    /// Reuses so far: what a READ that is posted now knows.
    pub(super) fn reuses(&self) -> u64 {
        self.names.reuses()
    }

    /// Copies bytes at `from` to `to`, for a READ that was posted after `reuses` reuses.
    pub(super) fn copy(
        &self,
        from: RemoteRef,
        reuses: u64,
        to: &Region,
        offset: usize,
        len: usize,
    ) -> Copied {
        let memories = self.memories.read().unwrap_or_else(PoisonError::into_inner);
        let Some(registered) = memories.live.get(&from.rkey) else {
            return Copied::Refused;
        };
        let Some(from_offset) = offset_in(&registered.memory, registered.start, from.address, len) else {
            return Copied::Refused;
        };
        to.memory()
            .copy_between(offset, &registered.memory, from_offset, len);
        if registered.differs(from_offset, len, reuses) {
            Copied::Reused
        } else {
            Copied::Good
        }
    }

    /// Whether the domain has these bytes.
    pub(super) fn has(&self, from: RemoteRef, len: usize) -> bool {
        let memories = self.memories.read().unwrap_or_else(PoisonError::into_inner);
        memories.live.get(&from.rkey).is_some_and(|registered| {
            offset_in(&registered.memory, registered.start, from.address, len).is_some()
        })
    }

    fn change(&self, edit: impl FnOnce(&mut Memories)) {
        edit(&mut self.memories.write().unwrap_or_else(PoisonError::into_inner));
    }

    /// Overwrites what is reused.
    fn reuse(&self, rkey: u32, offset: usize, len: usize) {
        self.change(|memories| {
            if let Some(registered) = memories.live.get_mut(&rkey) {
                let number = self.names.reuse();
                registered.reused.insert(offset, (len, number));
                registered.poison(offset, len);
            }
        });
    }

    /// Ends a registration. Where nothing is fenced the memory stays, overwritten, until enough others have gone.
    fn give_up(&self, rkey: u32) {
        self.names.reuse();
        let mut gone = None;
        self.change(|memories| {
            let buried = if self.fences {
                Some(rkey)
            } else {
                if let Some(registered) = memories.live.get(&rkey) {
                    registered.poison(0, registered.memory.len());
                }
                memories.graves.push_back(rkey);
                let full = memories.graves.len() > GRAVES_MAX;
                full.then(|| memories.graves.pop_front()).flatten()
            };
            gone = buried.and_then(|rkey| memories.live.remove(&rkey));
        });
        drop(gone);
    }
}

/// A protection domain. Any memory can be registered with it.
#[derive(Debug)]
pub(super) struct Domain {
    pub(super) shared: Arc<Shared>,
}

impl crate::Domain for Domain {
    fn register(&self, memory: Arc<Memory>) -> Result<Box<dyn crate::Registration>, FabricError> {
        let remote = self.shared.names.new_ref(memory.len())?;
        self.shared.change(|memories| {
            let registered = Registered {
                start: remote.address,
                memory,
                reused: BTreeMap::new(),
            };
            memories.live.insert(remote.rkey, registered);
        });
        Ok(Box::new(Registration {
            shared: Arc::clone(&self.shared),
            remote,
        }))
    }
}

/// Memory that the domain's data connections may READ.
#[derive(Debug)]
struct Registration {
    shared: Arc<Shared>,
    remote: RemoteRef,
}

impl crate::Registration for Registration {
    fn remote(&self) -> RemoteRef {
        self.remote
    }

    fn reused(&self, offset: usize, len: usize) {
        self.shared.reuse(self.remote.rkey, offset, len);
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.shared.give_up(self.remote.rkey);
    }
}
