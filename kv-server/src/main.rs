//! The `kv-server` binary.

use std::fs::{OpenOptions, Permissions};
use std::io::{IsTerminal, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use kv_fabric::Fabric;
use kv_fabric::local::Local;
use kv_fabric::verbs::Verbs;
use kv_server::config::{Action, Address, Command, Keygen, Serve};
use kv_server::control::{Keys, Options, Remote, Server, keys};
use kv_server::store::sync_kind;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::prelude::*;

mod checking;

/// Exit status of a server that a second signal ended.
const EXIT_AT_ONCE: i32 = 130;
/// A signal that comes again so soon is the same one: who ends a process and its group, as `timeout` does, sends it twice.
const REPEATED_WITHIN: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let command = Command::parse();
    let result = match command.action {
        Action::Serve(serve) => serve_on_fabric(&serve),
        Action::Keygen(keygen) => make_key(&keygen),
        Action::Check(check) => return checking::run(&check),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // A closed or full stderr is nobody's loss.
            let _ = writeln!(std::io::stderr(), "kv-server: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Every extent of an image and every local peer takes a descriptor: as many as this process may have.
fn raise_descriptor_limit() {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(error) = rustix::process::setrlimit(rustix::process::Resource::Nofile, raised) {
        tracing::warn!(%error, soft_limit = ?limit.current, "the limit of open files cannot be raised");
    }
}

fn serve_on_fabric(arguments: &Serve) -> Result<(), String> {
    log_to_stderr();
    raise_descriptor_limit();
    if let Some(kind) = arguments.test_leave_out_sync {
        sync_kind::leave_out(kind);
    }
    // What was given is looked at before the machine is.
    let options = arguments.options()?;
    let keys = Keys::load(&arguments.keys).map_err(|error| error.to_string())?;
    match &arguments.listen {
        Address::Rdma(address) => {
            let fabric = Verbs::for_listener(address).map_err(|error| error.to_string())?;
            serve(arguments, options, keys, Arc::new(fabric), address)
        }
        Address::Local(path) => {
            let fabric = Local::new().map_err(|error| error.to_string())?;
            serve(arguments, options, keys, Arc::new(fabric), path)
        }
    }
}

fn log_to_stderr() {
    let asked = std::env::var("RUST_LOG").ok();
    let mut filter = asked
        .and_then(|text| text.parse::<Targets>().ok())
        .unwrap_or_default();
    if filter.default_level().is_none() {
        filter = filter.with_default(LevelFilter::INFO);
    }
    let log = tracing_subscriber::fmt::layer()
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    tracing_subscriber::registry().with(log).with(filter).init();
}

fn serve(
    arguments: &Serve,
    options: Options,
    keys: Keys,
    fabric: Arc<dyn Fabric>,
    address: &str,
) -> Result<(), String> {
    // Signals that come during a long start are kept, and obeyed when it is done.
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).map_err(|error| format!("signals: {error}"))?;
    let (name, device) = (fabric.name(), fabric.describe());
    let server = Server::start(fabric, address, arguments.store(), keys, options)
        .map_err(|error| error.to_string())?;
    let address = match &arguments.listen {
        Address::Rdma(_) => Address::Rdma(server.address().to_owned()),
        Address::Local(_) => Address::Local(server.address().to_owned()),
    };
    tracing::info!(%address, fabric = name, device, data = %arguments.data.display(), "ready");
    if let Some(path) = &arguments.ready_file {
        write_ready(path, &address).map_err(|error| format!("--ready-file {}: {error}", path.display()))?;
    }
    let handle = signals.handle();
    let remote = server.remote();
    let key_file = arguments.keys.clone();
    let obeying = std::thread::spawn(move || obey(&mut signals, &remote, &key_file));
    let result = server.join().map_err(|error| error.to_string());
    handle.close();
    // The thread only obeys signals; that it panicked changes nothing any more.
    let _ = obeying.join();
    if let Some(path) = &arguments.ready_file {
        // It says that a server is ready, and none is any more; that somebody removed it before is no error.
        let _ = std::fs::remove_file(path);
    }
    result
}

/// Whole or not there: the name appears when the line is in it.
fn write_ready(path: &Path, address: &Address) -> std::io::Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    std::fs::write(&new, format!("{address}\n"))?;
    std::fs::rename(&new, path)
}

fn obey(signals: &mut Signals, remote: &Remote, key_file: &Path) {
    let mut first = None;
    for signal in signals.forever() {
        match signal {
            SIGHUP => match Keys::load(key_file) {
                Ok(keys) => remote.set_keys(keys),
                Err(error) => tracing::error!(%error, "the keys stay as they were"),
            },
            _ => match asked(&mut first, Instant::now()) {
                Asked::First => remote.stop(),
                Asked::Repeated => {}
                Asked::Again => {
                    tracing::warn!("second signal: ending at once");
                    std::process::exit(EXIT_AT_ONCE);
                }
            },
        }
    }
}

/// Which of the signals that ask to end it is meant by one that comes.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    First,
    Repeated,
    Again,
}

/// Judges a signal that comes at `now`; `first` is when the first one came.
fn asked(first: &mut Option<Instant>, now: Instant) -> Asked {
    match *first {
        None => {
            *first = Some(now);
            Asked::First
        }
        Some(first) if now.duration_since(first) < REPEATED_WITHIN => Asked::Repeated,
        Some(_) => Asked::Again,
    }
}

fn make_key(arguments: &Keygen) -> Result<(), String> {
    let mut datasets = arguments.datasets.clone();
    if datasets.is_empty() {
        datasets.push("*".to_owned());
    }
    let key = keys::generate(&arguments.name, arguments.role, datasets)?;
    let entry = keys::entry_text(&key);
    let Some(path) = &arguments.out else {
        let mut stdout = std::io::stdout();
        let written = stdout.write_all(entry.as_bytes()).and_then(|()| stdout.flush());
        return written.map_err(|error| format!("writing the key to stdout: {error} (give --out FILE)"));
    };
    let failed = |error: String| format!("key file {}: {error}", path.display());
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(failed(error.to_string())),
    };
    let addition = if text.is_empty() {
        entry
    } else {
        format!("\n{entry}")
    };
    // What would not be read back is not written: a name that is there, or a file that is broken already.
    Keys::parse(&format!("{text}{addition}")).map_err(failed)?;
    append_secret(path, &addition).map_err(|error| failed(error.to_string()))
}

/// Appends to a file that nobody but its owner may read, from before the secret is in it.
fn append_secret(path: &Path, text: &str) -> std::io::Result<()> {
    let mut file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)?;
    let metadata = file.metadata()?;
    if metadata.is_file() && metadata.permissions().mode() & 0o077 != 0 {
        file.set_permissions(Permissions::from_mode(0o600))?;
    }
    file.write_all(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_that_comes_twice_at_once_is_one_and_a_later_one_is_another() {
        let (mut first, start) = (None, Instant::now());
        let mut after = |ms| asked(&mut first, start + Duration::from_millis(ms));
        assert_eq!(
            [after(0), after(0), after(999), after(1000)],
            [Asked::First, Asked::Repeated, Asked::Repeated, Asked::Again]
        );
    }
}
