//! A server in this process, and sessions with it over any fabric.
#![allow(dead_code, reason = "each test program uses its own part of this")]
#![allow(unreachable_pub, reason = "it is a module of each test program")]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kv_client::on::{DatasetOn, SessionOn};
use kv_client::{AccessKey, ClientOptions};
use kv_fabric::Fabric;
use kv_fabric::local::Local;
use kv_fabric::sim::Sim;
use kv_proto::auth::Role;
use kv_server::control::keys::Key;
use kv_server::control::{Handle, Keys, Options, Server};
use kv_server::store::StoreOptions;

pub const SECRET: [u8; 32] = [7; 32];

/// A fabric that tests can make.
pub trait TestFabric: Fabric {
    fn make() -> Arc<Self>;
    fn address(folder: &Path) -> String;
}

impl TestFabric for Local {
    fn make() -> Arc<Self> {
        Arc::new(Self::new().unwrap())
    }

    fn address(folder: &Path) -> String {
        folder.join("socket").to_str().unwrap().to_owned()
    }
}

impl TestFabric for Sim {
    fn make() -> Arc<Self> {
        Arc::new(Self::new(kv_fabric::sim::SimOptions::default()))
    }

    fn address(_folder: &Path) -> String {
        "server:7471".to_owned()
    }
}

pub struct World<F: Fabric> {
    pub folder: tempfile::TempDir,
    pub fabric: Arc<F>,
    pub address: String,
    pub store: StoreOptions,
    pub options: Options,
    pub server: Option<Handle>,
}

pub fn key(name: &str, role: Role) -> Key {
    Key {
        name: name.to_owned(),
        secret: SECRET,
        role,
        datasets: vec!["*".to_owned()],
    }
}

pub fn options(key: &str) -> ClientOptions {
    ClientOptions {
        deadline: Duration::from_secs(20),
        ..ClientOptions::new(AccessKey::new(key, SECRET))
    }
}

impl<F: TestFabric> World<F> {
    pub fn new() -> Self {
        Self::with(F::make(), |_, _| {})
    }

    pub fn with(fabric: Arc<F>, edit: impl FnOnce(&mut StoreOptions, &mut Options)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut store = StoreOptions {
            data: folder.path().join("data"),
            memory_budget_bytes: 512 << 20,
            segment_bytes: 8 << 20,
            part_bytes: 2 << 20,
            gather_budget_bytes: 64 << 20,
        };
        let mut options = Options::default();
        edit(&mut store, &mut options);
        let mut world = Self {
            address: F::address(folder.path()),
            folder,
            fabric,
            store,
            options,
            server: None,
        };
        world.start();
        world
    }

    pub fn start(&mut self) {
        let roles = [
            ("reader", Role::Read),
            ("writer", Role::Write),
            ("admin", Role::Admin),
        ];
        let keys = Keys::new(roles.map(|(name, role)| key(name, role)).to_vec()).unwrap();
        let server = Server::<F>::start(
            Arc::clone(&self.fabric),
            &self.address,
            self.store.clone(),
            keys,
            self.options.clone(),
        );
        self.server = Some(server.unwrap());
    }

    pub fn stop(&mut self) {
        if let Some(server) = self.server.take() {
            server.stop();
            server.join().unwrap();
        }
    }

    pub fn session(&self, options: ClientOptions) -> SessionOn<F> {
        SessionOn::connect(Arc::clone(&self.fabric), &self.address, options).unwrap()
    }

    /// A dataset that was just created, opened by an admin.
    pub fn dataset(&self, name: &str) -> DatasetOn<F> {
        let session = self.session(options("admin"));
        session.create(name).unwrap();
        session.open(name).unwrap()
    }
}

/// Bytes that differ for every seed and have no period.
pub fn value(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(len);
    out
}

/// A value that says which one it is, so that a reader can check it without knowing what was stored last.
pub fn told(seed: u64, len: usize) -> Vec<u8> {
    let mut out = seed.to_le_bytes().to_vec();
    out.extend_from_slice(&value(seed, len));
    out
}

/// The seed of a value that [`told`] made; panics if a byte of it is wrong.
pub fn tell(bytes: &[u8]) -> u64 {
    let (seed, rest) = bytes.split_first_chunk().expect("a value of 8 bytes or more");
    let seed = u64::from_le_bytes(*seed);
    assert!(rest == value(seed, rest.len()), "wrong bytes in value {seed:#x}");
    seed
}
