//! A server with its key, its data in a fresh directory, and what reaches it.

use std::ffi::{OsStr, OsString};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kv_client::{AccessKey, ClientOptions};

use crate::{Error, interrupt};
use campaigns::processes::{self, Server};

/// Where a server listens.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Listen {
    /// On a socket in a directory of its own.
    Local,
    /// On this address and port of an RDMA device.
    Rdma(IpAddr, u16),
}

/// What stays while servers come and go; directories are removed when it is dropped.
pub(crate) struct Stage {
    programs: PathBuf,
    scratch: tempfile::TempDir,
    /// Data directory of the server.
    pub(crate) data: tempfile::TempDir,
    /// Key file.
    pub(crate) keys: PathBuf,
    /// Where the server listens, as its option has it.
    pub(crate) listen: String,
    memory_budget: u64,
    /// More options of `kv-server serve`.
    pub(crate) more: Vec<OsString>,
}

impl Stage {
    /// Makes a key and a fresh data directory in `data`, for a server with so much memory.
    pub(crate) fn new(data: &Path, at: Listen, memory_budget: u64) -> Result<Self, Error> {
        let programs = std::env::current_exe()?
            .parent()
            .ok_or("this program lies in no directory")?
            .to_path_buf();
        let scratch = interrupt::noted(tempfile::tempdir()?);
        let keys = scratch.path().join("keys.toml");
        let data = tempfile::tempdir_in(data)
            .map_err(|error| format!("cannot make a directory in {}: {error}", data.display()))?;
        let data = interrupt::noted(data);
        let listen = match at {
            Listen::Local => format!("local:{}", scratch.path().join("socket").display()),
            Listen::Rdma(address, port) => format!("rdma://{address}:{port}"),
        };
        let keygen: [&OsStr; 6] = ["keygen", "--name", "bench", "--role", "admin", "--out"].map(OsStr::new);
        processes::run(
            &programs.join("kv-server"),
            &[&keygen[..], &[keys.as_os_str()]].concat(),
        )?;
        Ok(Self {
            programs,
            scratch,
            data,
            keys,
            listen,
            memory_budget,
            more: Vec::new(),
        })
    }

    /// Starts the server and waits until it is ready.
    pub(crate) fn start(&self) -> Result<Server, Error> {
        let budget = self.memory_budget.to_string();
        let args: [&OsStr; 8] = [
            "--data".as_ref(),
            self.data.path().as_ref(),
            "--listen".as_ref(),
            self.listen.as_ref(),
            "--keys".as_ref(),
            self.keys.as_ref(),
            "--memory-budget".as_ref(),
            budget.as_ref(),
        ];
        let more: Vec<&OsStr> = self.more.iter().map(OsString::as_os_str).collect();
        let scratch = self.scratch.path();
        Server::start(
            &self.programs.join("kv-server"),
            &[&args[..], &more].concat(),
            &scratch.join("ready"),
            &scratch.join("kv-server.log"),
        )
    }

    /// A file that is removed with the stage.
    pub(crate) fn scratch(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// Runs the `kv` command with the key.
    pub(crate) fn kv(&self, args: &[&OsStr]) -> Result<(), Error> {
        let key = ["--key".as_ref(), self.keys.as_os_str()];
        processes::run(&self.programs.join("kv"), &[args, &key].concat())
    }

    /// URI of the server, or of a dataset of it.
    pub(crate) fn uri(&self, address: &str, dataset: Option<&str>) -> String {
        let separator = if address.starts_with("local:") {
            "?dataset="
        } else {
            "/"
        };
        dataset.map_or_else(
            || address.to_owned(),
            |dataset| format!("{address}{separator}{dataset}"),
        )
    }

    /// Options of a patient client.
    pub(crate) fn options(&self) -> Result<ClientOptions, Error> {
        let mut options = ClientOptions::new(AccessKey::load(&self.keys, None)?);
        options.deadline = Duration::from_secs(120);
        Ok(options)
    }
}
