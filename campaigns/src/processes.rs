//! A `kv-server`, and others, as processes that are started, waited for and ended.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::Error;

/// Longest that a server may take to be ready: it may have much to load.
const READY_PATIENCE: Duration = Duration::from_secs(240);
/// Between two looks whether it is.
const READY_LOOK: Duration = Duration::from_millis(10);

/// A `kv-server` that was started and has not said that it is ready; killed when dropped.
pub struct Starting {
    server: Server,
    ready_file: PathBuf,
    log: PathBuf,
}

impl Starting {
    /// Starts `program serve` with `args`, which tells by way of `ready_file` when it is ready; what it says goes to `log`.
    ///
    /// # Errors
    /// The program cannot be started, or the log not opened.
    pub fn spawn(
        program: &Path,
        args: &[&std::ffi::OsStr],
        ready_file: &Path,
        log: &Path,
    ) -> Result<Self, Error> {
        let _ = fs::remove_file(ready_file);
        let log_file = fs::OpenOptions::new().create(true).append(true).open(log)?;
        let child = Command::new(program)
            .arg("serve")
            .args(args)
            .arg("--ready-file")
            .arg(ready_file)
            .stdin(Stdio::null())
            .stdout(log_file.try_clone()?)
            .stderr(log_file)
            .spawn()
            .map_err(|error| format!("cannot start {}: {error}", program.display()))?;
        Ok(Self {
            server: Server {
                child,
                address: String::new(),
            },
            ready_file: ready_file.to_owned(),
            log: log.to_owned(),
        })
    }

    /// Waits until it says that it is ready.
    ///
    /// # Errors
    /// It ended instead, with its last line, or took minutes.
    pub fn ready(mut self) -> Result<Server, Error> {
        let deadline = Instant::now() + READY_PATIENCE;
        loop {
            if let Ok(text) = fs::read_to_string(&self.ready_file)
                && text.ends_with('\n')
            {
                text.trim().clone_into(&mut self.server.address);
                return Ok(self.server);
            }
            if let Some(status) = self.server.child.try_wait()? {
                let log = fs::read_to_string(&self.log).unwrap_or_default();
                return Err(format!(
                    "kv-server ended with {status}: {}",
                    log.lines().last().unwrap_or_default()
                )
                .into());
            }
            if Instant::now() > deadline {
                return Err(format!("kv-server was not ready within {READY_PATIENCE:?}").into());
            }
            std::thread::sleep(READY_LOOK);
        }
    }

    /// Sends SIGKILL and reaps it.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn kill(self) -> Result<ExitStatus, Error> {
        self.server.kill()
    }
}

/// A running `kv-server`, killed when dropped.
pub struct Server {
    child: Child,
    /// Address that it said it listens on.
    pub address: String,
}

impl Server {
    /// [`Starting::spawn`] and [`Starting::ready`].
    ///
    /// # Errors
    /// Those of both.
    pub fn start(
        program: &Path,
        args: &[&std::ffi::OsStr],
        ready_file: &Path,
        log: &Path,
    ) -> Result<Self, Error> {
        Starting::spawn(program, args, ready_file, log)?.ready()
    }

    /// Sends SIGKILL and reaps it.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn kill(mut self) -> Result<ExitStatus, Error> {
        self.child.kill()?;
        Ok(self.child.wait()?)
    }

    /// Sends SIGTERM and waits for its end.
    ///
    /// # Errors
    /// It did not end within minutes, and was killed.
    pub fn terminate(mut self) -> Result<ExitStatus, Error> {
        if let Some(pid) = rustix::process::Pid::from_raw(self.child.id() as i32) {
            rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        }
        end_of(&mut self.child, READY_PATIENCE)
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail where it has been reaped, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits for a child's end, so long at most.
///
/// # Errors
/// It did not end, and was killed.
pub fn end_of(child: &mut Child, patience: Duration) -> Result<ExitStatus, Error> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            return Err(format!("a child did not end within {patience:?} and was killed").into());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Runs a program to its end, its output shown.
///
/// # Errors
/// Anything but success, with the program and its arguments.
pub fn run(program: &Path, args: &[&std::ffi::OsStr]) -> Result<(), Error> {
    let status = Command::new(program).args(args).stdin(Stdio::null()).status();
    let status = status.map_err(|error| format!("cannot start {}: {error}", program.display()))?;
    if status.success() {
        return Ok(());
    }
    let words: Vec<_> = args.iter().map(|arg| arg.to_string_lossy()).collect();
    Err(format!("{} {} ended with {status}", program.display(), words.join(" ")).into())
}
