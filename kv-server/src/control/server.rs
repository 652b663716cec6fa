//! Starting and stopping a server.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use kv_fabric::{Fabric, FabricError};
use rustix::event::EventfdFlags;

use super::keys::Keys;
use super::options::Options;
use super::run::Control;
use crate::error::StorageError;
use crate::store::{LoadGate, Store, StoreOptions};

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The fabric refused: no device, address taken, no permission.
    #[error(transparent)]
    Fabric(#[from] FabricError),
    /// The data directory cannot be served.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// A call failed.
    #[error("{call}: {source}")]
    Call {
        /// The call.
        call: &'static str,
        /// Why.
        source: std::io::Error,
    },
}

/// What other threads tell the control thread.
pub(super) struct Shared {
    wake: OwnedFd,
    stop: AtomicBool,
    keys: Mutex<Option<Keys>>,
}

impl Shared {
    fn new() -> Result<Self, StartError> {
        let flags = EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC;
        let wake = rustix::event::eventfd(0, flags).map_err(|source| StartError::Call {
            call: "eventfd",
            source: source.into(),
        })?;
        Ok(Self {
            wake,
            stop: AtomicBool::new(false),
            keys: Mutex::new(None),
        })
    }

    fn ring(&self) {
        // Fails only where the counter is full, and then it is readable already.
        let _ = rustix::io::write(&self.wake, &1_u64.to_le_bytes());
    }

    /// Readable when there is something to take.
    pub(super) fn fd(&self) -> &OwnedFd {
        &self.wake
    }

    /// Makes the descriptor quiet again.
    pub(super) fn quiet(&self) {
        let mut count = [0; 8];
        // An empty counter is no error: somebody else rang, or nobody did.
        let _ = rustix::io::read(&self.wake, &mut count);
    }

    /// Whether the server is to stop.
    pub(super) fn stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// Keys that replace the present ones.
    pub(super) fn take_keys(&self) -> Option<Keys> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// [`Server::start`] with a store of the caller's: tests have calls on files fail or wait.
pub(super) fn start(
    fabric: Arc<dyn Fabric>,
    address: &str,
    keys: Keys,
    options: Options,
    open: impl FnOnce(&Arc<dyn Fabric>) -> Result<Store, StorageError>,
) -> Result<Server, StartError> {
    let shared = Arc::new(Shared::new()?);
    // Listening comes first: a taken port is told at once, before a large directory is loaded.
    let endpoint = fabric.listen(address)?;
    let address = endpoint.address();
    let store = open(&fabric)?;
    let gate = store.load_gate();
    // The directory's lock is ours, so the server before us has gone; what it told may still be read for a moment.
    std::thread::sleep(fabric.outlives());
    let fences = fabric.fences();
    let mut control = Control::new(store, endpoint, fences, keys, options, Arc::clone(&shared))?;
    let thread = std::thread::Builder::new()
        .name("kv-control".to_owned())
        .spawn(move || {
            // Held so that the device outlives everything made of it.
            let _fabric = fabric;
            control.run()
        })
        .map_err(|source| StartError::Call {
            call: "starting the control thread",
            source,
        })?;
    Ok(Server {
        address,
        shared,
        gate,
        thread: Some(thread),
    })
}

/// A running server. Dropping it stops it.
pub struct Server {
    address: String,
    shared: Arc<Shared>,
    gate: LoadGate,
    thread: Option<JoinHandle<Result<(), FabricError>>>,
}

/// Stops a server or changes its keys, from any thread.
#[derive(Clone)]
pub struct Remote(Arc<Shared>);

impl Remote {
    /// Asks the server to stop: new requests are refused, queued writes finished and answered.
    pub fn stop(&self) {
        self.0.stop.store(true, Ordering::Release);
        self.0.ring();
    }

    /// Replaces the keys. Sessions whose key is gone or changed are fenced.
    pub fn set_keys(&self, keys: Keys) {
        *self.0.keys.lock().unwrap_or_else(PoisonError::into_inner) = Some(keys);
        self.0.ring();
    }
}

impl Server {
    /// Listens on `address`, opens the data directory, and serves it on a thread of its own.
    ///
    /// # Errors
    /// [`StartError`], one line that says what, value and remedy.
    pub fn start(
        fabric: Arc<dyn Fabric>,
        address: &str,
        store: StoreOptions,
        keys: Keys,
        options: Options,
    ) -> Result<Self, StartError> {
        Self::start_loading(u64::MAX, fabric, address, store, keys, options)
    }

    /// [`Server::start`] that may load so many images before [`Server::allow_loads`]: for tests of what is served until then.
    ///
    /// # Errors
    /// As [`Server::start`].
    #[doc(hidden)]
    pub fn start_loading(
        images: u64,
        fabric: Arc<dyn Fabric>,
        address: &str,
        store: StoreOptions,
        keys: Keys,
        options: Options,
    ) -> Result<Self, StartError> {
        start(fabric, address, keys, options, |fabric| {
            let domains = Arc::clone(fabric);
            Store::open_loading(store, images, move || domains.domain())
        })
    }

    /// Address that it listens on.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Control over it that can be given to other threads.
    #[must_use]
    pub fn remote(&self) -> Remote {
        Remote(Arc::clone(&self.shared))
    }

    /// Lets so many more images be loaded, in a server that was started with them held back.
    #[doc(hidden)]
    pub fn allow_loads(&self, images: u64) {
        self.gate.allow(images);
    }

    /// Asks it to stop: see [`Remote::stop`].
    pub fn stop(&self) {
        self.remote().stop();
    }

    /// Waits until it has stopped.
    ///
    /// # Errors
    /// [`FabricError`] if it stopped because its endpoint failed.
    pub fn join(mut self) -> Result<(), FabricError> {
        self.wait()
    }

    fn wait(&mut self) -> Result<(), FabricError> {
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(result)) => result,
            Some(Err(_)) => Err(FabricError::Closed("the control thread panicked".to_owned())),
            None => Ok(()),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
        if let Err(error) = self.wait() {
            tracing::error!(%error, "the server failed");
        }
    }
}
