//! What data connections may map: the registrations of a domain.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};

use rustix::fs::{Mode, OFlags, SealFlags};

use crate::bell::Bell;
use crate::{FabricError, Memory, RemoteRef};

/// Seals without which a process that was handed memory to read could write, shrink or grow it.
const SEALS: SealFlags = SealFlags::FUTURE_WRITE
    .union(SealFlags::SHRINK)
    .union(SealFlags::GROW)
    .union(SealFlags::SEAL);

/// Numbers handed out so far, and where they begin: anywhere, so that those of one process mean nothing in the next.
static RKEYS: LazyLock<(AtomicU64, u32)> =
    LazyLock::new(|| (AtomicU64::new(0), RandomState::new().hash_one(0) as u32));

/// An rkey that this process never used before.
pub(super) fn new_rkey() -> io::Result<u32> {
    let (used, first) = &*RKEYS;
    let count = used.fetch_add(1, Ordering::Relaxed);
    u32::try_from(count)
        .map(|count| first.wrapping_add(count))
        .map_err(|_| io::Error::other("this process has used all 2^32 rkeys: restart it"))
}

/// Tells an endpoint what is gone.
#[derive(Debug)]
pub(super) struct Watcher {
    pub(super) bell: Bell,
    gone: Mutex<Vec<(u64, u32)>>,
}

impl Watcher {
    pub(super) fn new() -> Result<Self, FabricError> {
        Ok(Self {
            bell: Bell::new()?,
            gone: Mutex::default(),
        })
    }

    /// Domain and rkey of what has gone since the last call.
    pub(super) fn take(&self) -> Vec<(u64, u32)> {
        std::mem::take(&mut self.gone.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[derive(Debug, Default)]
struct State {
    registered: HashMap<u32, Arc<Memory>>,
    watchers: Vec<Weak<Watcher>>,
}

/// A domain, as endpoints and registrations share it.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) id: u64,
    state: Mutex<State>,
}

impl Shared {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has `watcher` told of every registration that ends.
    pub(super) fn watch(&self, watcher: &Arc<Watcher>) {
        let watchers = &mut self.state().watchers;
        watchers.retain(|known| known.strong_count() > 0);
        if !watchers
            .iter()
            .any(|known| std::ptr::eq(known.as_ptr(), Arc::as_ptr(watcher)))
        {
            watchers.push(Arc::downgrade(watcher));
        }
    }

    /// A descriptor of registered memory for reading only, and its length. `None` if there is no such registration.
    pub(super) fn share(&self, rkey: u32) -> io::Result<Option<(OwnedFd, u64)>> {
        let memory = self.state().registered.get(&rkey).cloned();
        memory
            .map(|memory| Ok((reopen(&memory)?, memory.len() as u64)))
            .transpose()
    }
}

/// Opens a memfd anew: a descriptor carries the rights it was opened with, and the first has all.
fn reopen(memory: &Memory) -> io::Result<OwnedFd> {
    let fd = memory.fd().ok_or(io::ErrorKind::InvalidInput)?;
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    Ok(rustix::fs::open(
        path,
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}

/// A protection domain.
#[derive(Debug)]
pub(super) struct Domain(pub(super) Arc<Shared>);

impl Domain {
    pub(super) fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(Arc::new(Shared {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            state: Mutex::default(),
        }))
    }
}

impl crate::Domain for Domain {
    fn register(&self, memory: Arc<Memory>) -> Result<Box<dyn crate::Registration>, FabricError> {
        let fail = |source: io::Error, remedy: &str| FabricError::Memory {
            action: "share",
            len_bytes: memory.len(),
            source,
            remedy: remedy.to_owned(),
        };
        let sealed = memory
            .fd()
            .and_then(|fd| rustix::fs::fcntl_get_seals(fd).ok())
            .is_some_and(|seals| seals.contains(SEALS));
        if !sealed {
            return Err(fail(
                io::ErrorKind::InvalidInput.into(),
                "make it as MemoryKind::SharedReadOnly: other memory cannot be handed out for reading only",
            ));
        }
        reopen(&memory).map_err(|error| fail(error, "mount /proc and raise the limit of open files"))?;
        let rkey = new_rkey().map_err(|error| fail(error, "restart this process"))?;
        self.0.state().registered.insert(rkey, memory);
        Ok(Box::new(Registration {
            domain: Arc::clone(&self.0),
            rkey,
        }))
    }
}

/// Memory that the domain's data connections may read.
struct Registration {
    domain: Arc<Shared>,
    rkey: u32,
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Registration(rkey {:#x})", self.rkey)
    }
}

impl crate::Registration for Registration {
    fn remote(&self) -> RemoteRef {
        RemoteRef {
            address: 0,
            rkey: self.rkey,
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut state = self.domain.state();
        let memory = state.registered.remove(&self.rkey);
        let watchers: Vec<_> = state.watchers.iter().filter_map(Weak::upgrade).collect();
        drop(state);
        for watcher in watchers {
            let gone = (self.domain.id, self.rkey);
            watcher
                .gone
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(gone);
            watcher.bell.ring();
        }
        drop(memory);
    }
}
