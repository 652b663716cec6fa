//! A server of its own for each test; `raw` is the client.
#![allow(
    dead_code,
    unused_imports,
    reason = "each test program uses its own part of this"
)]
#![allow(unreachable_pub, reason = "it is a module of each test program")]

mod fabrics;
mod raw;

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kv_fabric::Fabric;
use kv_proto::auth::Role;
use kv_server::control::keys::{self, Key};
use kv_server::control::{Keys, Options, Server};
use kv_server::store::StoreOptions;

pub use fabrics::TestFabric;
pub use raw::{Opened, Raw, connect_request, hello};

/// Longest that anything may take before a test fails.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A folder, keys and options.
pub struct Setup {
    pub folder: tempfile::TempDir,
    pub reader: Key,
    pub writer: Key,
    pub admin: Key,
    pub options: Options,
    pub store: StoreOptions,
}

impl Setup {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let key = |name: &str, role| keys::generate(name, role, vec!["*".to_owned()]).unwrap();
        let store = StoreOptions {
            scrub_share: 0.0,
            data: folder.path().join("data"),
            memory_budget_bytes: 256 << 20,
            segment_bytes: 4 << 20,
            part_bytes: 1 << 20,
            gather_budget_bytes: 32 << 20,
            compaction: kv_server::store::Compaction::default(),
        };
        Self {
            folder,
            reader: key("reader", Role::Read),
            writer: key("writer", Role::Write),
            admin: key("admin", Role::Admin),
            // Long, so that a test on a slow machine renews only where leases are what it is about.
            options: Options {
                lease_ms: 120_000,
                max_lag_ms: 240_000,
                ..Options::default()
            },
            store,
        }
    }

    pub fn keys(&self) -> Keys {
        Keys::new(vec![self.reader.clone(), self.writer.clone(), self.admin.clone()]).unwrap()
    }

    /// Writes the keys to a file, for the binary.
    pub fn key_file(&self) -> PathBuf {
        let path = self.folder.path().join("keys.toml");
        let text: String = [&self.reader, &self.writer, &self.admin]
            .map(keys::entry_text)
            .concat();
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        path
    }

    pub fn start<F: TestFabric>(self) -> Running<F> {
        let address = F::address(self.folder.path());
        let fabric = F::server(&address);
        let handle = Server::start(
            fabric.clone(),
            &address,
            self.store.clone(),
            self.keys(),
            self.options.clone(),
        )
        .unwrap();
        let address = handle.address().to_owned();
        Running {
            fabric: F::client(&fabric, &address),
            address,
            handle: Some(handle),
            setup: self,
        }
    }
}

/// A running server.
pub struct Running<F: Fabric> {
    pub handle: Option<Server>,
    pub address: String,
    pub fabric: Arc<F>,
    pub setup: Setup,
}

impl<F: TestFabric> Running<F> {
    /// A connection that has said nothing yet.
    pub fn stranger(&self) -> Raw {
        Raw::connect(self.fabric.clone(), &self.address).unwrap()
    }

    /// A session.
    pub fn session(&self, key: &Key) -> Raw {
        let mut raw = self.stranger();
        raw.begin(key, 1).unwrap();
        raw
    }

    /// A session of an admin, with a dataset made and opened.
    pub fn with_dataset(&self, name: &str) -> (Raw, Opened) {
        let mut raw = self.session(&self.setup.admin);
        raw.create(name);
        let opened = raw.open(name);
        (raw, opened)
    }

    /// Figures of the server, asked by a session of its own.
    pub fn figure(&self, name: &str) -> u64 {
        self.session(&self.setup.reader).figure([0; 16], name)
    }
}

/// The user that has nothing.
pub const NOBODY: u32 = 65_534;

/// A command, to be run by somebody who may do no more than anybody; in a folder of the test, which all may then use.
/// Nobody is somebody else where root runs the test; where not, what the user locks itself out of does.
pub fn as_other_user(binary: &str, folder: &Path) -> Command {
    let everybody = std::fs::Permissions::from_mode(0o777);
    std::fs::set_permissions(folder, everybody).unwrap();
    // Where everybody may run it.
    let own = folder.join("kv-server");
    if !own.exists() {
        // By another process: of this one any thread may fork meanwhile, and a file that is open to be written is not run.
        let copied = Command::new("cp").arg(binary).arg(&own).status();
        assert!(copied.unwrap().success());
    }
    let mut command = Command::new(&own);
    if rustix::process::geteuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command
}

/// Waits until `check` gives something.
pub fn eventually<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = check() {
            return found;
        }
        assert!(Instant::now() < deadline, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
