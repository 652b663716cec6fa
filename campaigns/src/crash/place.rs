//! Where a campaign happens: a data directory, a server on it that is killed and started again, sessions with it.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::time::Duration;

use kv_client::{AccessKey, ClientError, ClientOptions, Server as Session, Target};

use campaigns::Error;
use campaigns::processes::{self, Server, Starting};

/// Longest wait for a connection to a server that said that it is ready.
const CONNECT_PATIENCE: Duration = Duration::from_secs(20);

/// A data directory and how a server is started on it.
pub(crate) struct Place {
    program: PathBuf,
    arguments: Vec<OsString>,
    target: Target,
    key: AccessKey,
    ready: PathBuf,
    log: PathBuf,
}

impl Place {
    /// A place whose server keeps its data in `data`; socket, key and log lie in `scratch`.
    pub(crate) fn new(data: &Path, scratch: &Path, more: &[OsString]) -> Result<Self, Error> {
        let program = program()?;
        let keys = scratch.join("keys.toml");
        if !keys.exists() {
            let keygen = ["keygen", "--name", "campaign", "--role", "admin", "--out"].map(OsStr::new);
            processes::run(&program, &[&keygen[..], &[keys.as_os_str()]].concat())?;
        }
        let listen = format!("local:{}", scratch.join("socket").display());
        let mut arguments: Vec<OsString> = vec!["--data".into(), data.into(), "--listen".into()];
        arguments.extend([OsString::from(&listen), "--keys".into(), keys.clone().into()]);
        arguments.extend(more.iter().cloned());
        Ok(Self {
            program,
            arguments,
            target: listen.parse()?,
            key: AccessKey::load(&keys, None)?,
            ready: scratch.join("ready"),
            log: scratch.join("kv-server.log"),
        })
    }

    /// Starts a server and does not wait for it.
    pub(crate) fn spawn(&self) -> Result<Starting, Error> {
        let arguments: Vec<&OsStr> = self.arguments.iter().map(OsString::as_os_str).collect();
        Starting::spawn(&self.program, &arguments, &self.ready, &self.log)
    }

    /// Starts a server and waits until it is ready.
    pub(crate) fn start(&self) -> Result<Server, Error> {
        self.spawn()?.ready()
    }

    /// What sessions are given: `client` and the number of its first operation where they are pinned.
    pub(crate) fn options(&self, deadline: Duration, client: Option<(u64, u64)>) -> ClientOptions {
        let mut options = ClientOptions::new(self.key.clone());
        options.connect_timeout = CONNECT_PATIENCE;
        options.deadline = deadline;
        options.client_id = client.map(|(id, _)| id);
        options.first_operation = client.map(|(_, operation)| operation);
        options
    }

    /// Begins a session.
    pub(crate) fn session(&self, options: ClientOptions) -> Result<Session, ClientError> {
        Session::connect(&self.target, options)
    }

    /// The server's log.
    pub(crate) fn log(&self) -> &Path {
        &self.log
    }
}

/// The server program: named by `VKV_KV_SERVER`, else beside this one.
fn program() -> Result<PathBuf, Error> {
    if let Some(named) = std::env::var_os("VKV_KV_SERVER") {
        return Ok(named.into());
    }
    let beside = std::env::current_exe()?.with_file_name("kv-server");
    if !beside.exists() {
        let shown = beside.display();
        return Err(format!("{shown} is not there: build kv-server, or name it in VKV_KV_SERVER").into());
    }
    Ok(beside)
}
