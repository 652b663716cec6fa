//! A server in this process, and sessions with it over any fabric.

use std::sync::Arc;
use std::time::Duration;

use kv_client::{AccessKey, Client, ClientOptions};
use kv_fabric::Fabric;
use kv_proto::auth::Role;
use kv_server::control::keys::Key;
use kv_server::control::{Keys, Options, Server};
use kv_server::store::StoreOptions;

#[path = "../../../kv-server/tests/server/common/fabrics.rs"]
mod fabrics;

pub(crate) use fabrics::TestFabric;

pub(crate) const SECRET: [u8; 32] = [7; 32];

pub(crate) struct World<F: Fabric> {
    pub(crate) fabric: Arc<F>,
    pub(crate) client: Arc<F>,
    pub(crate) address: String,
    pub(crate) store: StoreOptions,
    pub(crate) options: Options,
    pub(crate) server: Option<Server>,
    /// Removed after the server has gone.
    _folder: tempfile::TempDir,
}

pub(crate) fn key(name: &str, role: Role) -> Key {
    Key {
        name: name.to_owned(),
        secret: SECRET,
        role,
        datasets: vec!["*".to_owned()],
    }
}

pub(crate) fn options(key: &str) -> ClientOptions {
    ClientOptions {
        deadline: Duration::from_secs(20),
        ..ClientOptions::new(AccessKey::new(key, SECRET))
    }
}

impl<F: TestFabric> World<F> {
    pub(crate) fn new() -> Self {
        Self::with(|_, _| {})
    }

    pub(crate) fn with(edit: impl FnOnce(&mut StoreOptions, &mut Options)) -> Self {
        Self::over(F::server, edit)
    }

    pub(crate) fn over(
        fabric: impl FnOnce(&str) -> Arc<F>,
        edit: impl FnOnce(&mut StoreOptions, &mut Options),
    ) -> Self {
        // Where the guest has its NVMe device, the data goes there.
        let folder = match std::env::var_os("VKV_NVME") {
            Some(nvme) => tempfile::tempdir_in(nvme).unwrap(),
            None => tempfile::tempdir().unwrap(),
        };
        let mut store = StoreOptions {
            scrub_share: 0.0,
            data: folder.path().join("data"),
            memory_budget_bytes: 512 << 20,
            segment_bytes: 8 << 20,
            part_bytes: 2 << 20,
            gather_budget_bytes: 64 << 20,
            compaction: kv_server::store::Compaction::default(),
        };
        let mut options = Options::default();
        edit(&mut store, &mut options);
        let address = F::address(folder.path());
        let fabric = fabric(&address);
        let mut world = Self {
            client: F::client(&fabric, &address),
            address,
            _folder: folder,
            fabric,
            store,
            options,
            server: None,
        };
        world.start();
        world
    }

    pub(crate) fn start(&mut self) {
        self.start_loading(u64::MAX);
    }

    /// Starts a server that loads no image until it is told to.
    pub(crate) fn start_unloaded(&mut self) {
        self.start_loading(0);
    }

    fn start_loading(&mut self, images: u64) {
        let roles = [
            ("reader", Role::Read),
            ("writer", Role::Write),
            ("admin", Role::Admin),
        ];
        let keys = Keys::new(roles.map(|(name, role)| key(name, role)).to_vec()).unwrap();
        let server = Server::start_loading(
            images,
            self.fabric.clone(),
            &self.address,
            self.store.clone(),
            keys,
            self.options.clone(),
        );
        self.server = Some(server.unwrap());
    }

    pub(crate) fn stop(&mut self) {
        if let Some(server) = self.server.take() {
            server.stop();
            server.join().unwrap();
        }
    }

    pub(crate) fn session(&self, options: ClientOptions) -> kv_client::Server {
        kv_client::Server::connect_over(self.client.clone(), &self.address, options).unwrap()
    }

    /// A dataset that was just created, opened by an admin.
    pub(crate) fn dataset(&self, name: &str) -> Client {
        let session = self.session(options("admin"));
        session.create(name).unwrap();
        session.open(name).unwrap()
    }
}

/// Bytes that differ for every seed and have no period.
pub(crate) fn value(seed: u64, len: usize) -> Vec<u8> {
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
pub(crate) fn told(seed: u64, len: usize) -> Vec<u8> {
    let mut out = seed.to_le_bytes().to_vec();
    out.extend_from_slice(&value(seed, len));
    out
}

/// The seed of a value that [`told`] made; panics if a byte of it is wrong.
pub(crate) fn tell(bytes: &[u8]) -> u64 {
    let (seed, rest) = bytes.split_first_chunk().expect("a value of 8 bytes or more");
    let seed = u64::from_le_bytes(*seed);
    assert!(rest == value(seed, rest.len()), "wrong bytes in value {seed:#x}");
    seed
}
