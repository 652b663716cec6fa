//! A listening socket at a path: made, shared with nobody, removed.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode};
use rustix::io::Errno;
use rustix::net::SocketAddrUnix;

use super::socket;
use crate::{FabricError, Stage};

/// Connections that the kernel keeps until the endpoint takes them.
const BACKLOG: i32 = 128;
/// Rights of the socket's file. Who may write it may connect; who reads what is a matter of keys, not of files.
const SOCKET_MODE: Mode = Mode::from_bits_retain(0o660);
/// Longest path, bytes: `sun_path` less its end.
const PATH_MAX_BYTES: usize = 107;
/// How long another server may hold the folder's lock.
const LOCK_WAIT_MAX: Duration = Duration::from_secs(2);
/// Between two looks at a lock or a full backlog.
const RETRY_AFTER: Duration = Duration::from_millis(5);

/// A listening socket. Dropping it removes its file.
#[derive(Debug)]
pub(super) struct Listener {
    socket: OwnedFd,
    path: PathBuf,
    /// Device and inode of the socket's file, so that a later one of another server is left alone.
    file: (u64, u64),
}

fn failed(stage: Stage, address: &str, source: impl Into<io::Error>) -> FabricError {
    FabricError::Connect {
        stage,
        address: address.to_owned(),
        source: source.into(),
    }
}

/// The socket address of a path.
fn parse(stage: Stage, address: &str) -> Result<SocketAddrUnix, FabricError> {
    let invalid = |why: String| failed(stage, address, io::Error::new(io::ErrorKind::InvalidInput, why));
    if address.is_empty() || address.contains('\0') {
        return Err(invalid("a path has at least one byte and no NUL".to_owned()));
    }
    if address.len() > PATH_MAX_BYTES {
        return Err(invalid(format!(
            "a socket's path has at most {PATH_MAX_BYTES} bytes and this one has {}: choose a shorter one",
            address.len()
        )));
    }
    SocketAddrUnix::new(address).map_err(|error| failed(stage, address, error))
}

impl Listener {
    pub(super) fn new(address: &str) -> Result<Self, FabricError> {
        let at = parse(Stage::Listen, address)?;
        let path = Path::new(address);
        let fail = |source: io::Error| failed(Stage::Listen, address, source);
        let folder = match path.parent() {
            Some(folder) if folder != Path::new("") => folder,
            _ => Path::new("."),
        };
        // Held until the socket listens: two servers that start at once would each take the other's for a dead one's.
        let _lock = lock(folder, LOCK_WAIT_MAX).map_err(fail)?;
        let socket = socket::new().map_err(fail)?;
        match rustix::net::bind(&socket, &at) {
            Err(Errno::ADDRINUSE) => {
                remove_stale(path, &at).map_err(fail)?;
                rustix::net::bind(&socket, &at).map_err(|error| fail(error.into()))?;
            }
            other => other.map_err(|error| fail(error.into()))?,
        }
        let metadata = std::fs::symlink_metadata(path).map_err(fail)?;
        let listener = Self {
            socket,
            path: path.to_owned(),
            file: (metadata.dev(), metadata.ino()),
        };
        // Nobody can connect before it listens, so nobody does under other rights.
        rustix::fs::chmod(path, SOCKET_MODE).map_err(|error| fail(error.into()))?;
        rustix::net::listen(&listener.socket, BACKLOG).map_err(|error| fail(error.into()))?;
        Ok(listener)
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let ours = std::fs::symlink_metadata(&self.path)
            .is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == self.file);
        if ours && let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(%error, path = %self.path.display(), "cannot remove the socket's file");
        }
    }
}

/// Takes the folder's lock, waiting at most `patience` for who has it.
fn lock(folder: &Path, patience: Duration) -> io::Result<File> {
    let shown = folder.display();
    let file = File::open(folder).map_err(|error| {
        let why = format!("its folder {shown}: {error} (make the folder, or choose another path)");
        io::Error::new(error.kind(), why)
    })?;
    let deadline = Instant::now() + patience;
    loop {
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) if Instant::now() < deadline => std::thread::sleep(RETRY_AFTER),
            // Whoever may read the folder can take its lock.
            Err(Errno::WOULDBLOCK) => {
                let why = format!(
                    "another process holds the lock of its folder {shown} (`fuser -v {shown}` names it; stop it, or choose a \
                     path in a folder of your own)"
                );
                return Err(io::Error::new(io::ErrorKind::WouldBlock, why));
            }
            result => {
                result?;
                return Ok(file);
            }
        }
    }
}

/// Removes a socket's file that nobody listens at.
fn remove_stale(path: &Path, at: &SocketAddrUnix) -> io::Result<()> {
    if !std::fs::symlink_metadata(path)?.file_type().is_socket() {
        return Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            "there is a file that is no socket: choose another path",
        ));
    }
    match rustix::net::connect(socket::new()?, at) {
        Err(Errno::CONNREFUSED) => {
            tracing::info!(path = %path.display(), "replacing the socket that a dead server left");
            std::fs::remove_file(path)
        }
        _ => Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            "address in use: another server listens there; stop it or choose another path",
        )),
    }
}

/// Connects a socket, waiting for room in the listener's backlog until `deadline`.
pub(super) fn connect(address: &str, deadline: Instant) -> Result<OwnedFd, FabricError> {
    let at = parse(Stage::Connect, address)?;
    let socket = socket::new().map_err(|error| failed(Stage::Connect, address, error))?;
    loop {
        match rustix::net::connect(&socket, &at) {
            Ok(()) => return Ok(socket),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) if Instant::now() >= deadline => {
                return Err(FabricError::Timeout {
                    stage: Stage::Connect,
                    address: address.to_owned(),
                });
            }
            Err(Errno::AGAIN) => std::thread::sleep(RETRY_AFTER),
            Err(error @ (Errno::NOENT | Errno::CONNREFUSED)) => {
                let why = format!("{}: is the server running?", io::Error::from(error));
                let kind = io::Error::from(error).kind();
                return Err(failed(Stage::Connect, address, io::Error::new(kind, why)));
            }
            Err(error) => return Err(failed(Stage::Connect, address, error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_somebody_has_locked_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let said = |folder: &Path| lock(folder, Duration::ZERO).unwrap_err().to_string();
        let name = folder.path().display().to_string();
        let held = lock(folder.path(), Duration::ZERO).unwrap();
        let why = said(folder.path());
        assert!(why.contains(&name) && why.contains("fuser -v"), "{why}");
        drop(held);
        lock(folder.path(), Duration::ZERO).unwrap();
        let why = said(&folder.path().join("none"));
        assert!(why.contains(&name) && why.contains("make the folder"), "{why}");
    }
}
