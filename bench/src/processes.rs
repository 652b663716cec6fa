//! The processes that a demo starts, and what the kernel says of them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::{Error, process_clock};

/// Longest that a server may take to be ready: it may have much to load.
const READY_PATIENCE: Duration = Duration::from_secs(240);
/// Between two looks whether it is.
const READY_LOOK: Duration = Duration::from_millis(10);

/// A `kv-server` that was started and has not said that it is ready; killed when dropped.
pub(crate) struct Starting {
    server: Server,
    ready_file: PathBuf,
    log: PathBuf,
}

impl Starting {
    /// Starts `program serve` with `args`, which tells by way of `ready_file` when it is ready.
    pub(crate) fn spawn(
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
    pub(crate) fn ready(mut self) -> Result<Server, Error> {
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
    pub(crate) fn kill(self) -> Result<ExitStatus, Error> {
        self.server.kill()
    }
}

/// A running `kv-server`, killed when dropped.
pub(crate) struct Server {
    child: Child,
    /// Address that it said it listens on.
    pub(crate) address: String,
}

impl Server {
    /// [`Starting::spawn`] and [`Starting::ready`].
    pub(crate) fn start(
        program: &Path,
        args: &[&std::ffi::OsStr],
        ready_file: &Path,
        log: &Path,
    ) -> Result<Self, Error> {
        Starting::spawn(program, args, ready_file, log)?.ready()
    }

    /// Sends SIGKILL and reaps it.
    pub(crate) fn kill(mut self) -> Result<ExitStatus, Error> {
        self.child.kill()?;
        Ok(self.child.wait()?)
    }

    /// Sends SIGTERM and waits for its end.
    pub(crate) fn terminate(mut self) -> Result<ExitStatus, Error> {
        if let Some(pid) = rustix::process::Pid::from_raw(self.child.id() as i32) {
            rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        }
        end_of(&mut self.child, READY_PATIENCE)
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Time on a processor of all its threads so far, us.
    pub(crate) fn cpu_us(&self) -> Result<f64, Error> {
        cpu_us(self.pid())
    }
}

/// Time on a processor of all threads of a process so far, us, those that have ended included.
pub(crate) fn cpu_us(pid: u32) -> Result<f64, Error> {
    Ok(process_clock::cpu_ns(pid)? as f64 / 1000.0)
}

/// How often threads of a process went to sleep so far, those that have ended left out.
pub(crate) fn sleeps(pid: u32) -> Result<u64, Error> {
    let mut count = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = fs::read_to_string(task?.path().join("status"))?;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        count += line
            .ok_or("the kernel counts no context switches")?
            .trim()
            .parse::<u64>()?;
    }
    Ok(count)
}

/// Memory of a process, of this one where none is named, bytes: `field` of its status, such as `VmRSS`.
pub(crate) fn memory_bytes(pid: Option<u32>, field: &str) -> Option<u64> {
    let whose = pid.map_or_else(|| "self".to_owned(), |pid| pid.to_string());
    let text = fs::read_to_string(format!("/proc/{whose}/status")).ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail where it has been reaped, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits for a child's end, so long at most.
pub(crate) fn end_of(child: &mut Child, patience: Duration) -> Result<ExitStatus, Error> {
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

/// Runs a program to its end, its output shown; anything but success is an error that names it.
pub(crate) fn run(program: &Path, args: &[&std::ffi::OsStr]) -> Result<(), Error> {
    let status = Command::new(program).args(args).stdin(Stdio::null()).status();
    let status = status.map_err(|error| format!("cannot start {}: {error}", program.display()))?;
    if status.success() {
        return Ok(());
    }
    let words: Vec<_> = args.iter().map(|arg| arg.to_string_lossy()).collect();
    Err(format!("{} {} ended with {status}", program.display(), words.join(" ")).into())
}
