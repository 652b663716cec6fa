//! Why the store did not do what was asked, said so that a person can act on it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kv_fabric::FabricError;
use kv_proto::DecodeError;
use kv_proto::control::Status;

/// What went wrong in the store. Clones share their source: one failed sync fails many operations.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum StorageError {
    /// A call on a file failed.
    #[error("{call} {}: {source}", path.display())]
    Io {
        /// The call.
        call: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: Arc<io::Error>,
    },
    /// The user that runs the server may not do that.
    #[error("{call} {}: {source} (let the user that runs the server read and write it, or run the server as who made it)", path.display())]
    Forbidden {
        /// The call.
        call: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: Arc<io::Error>,
    },
    /// The file system is full.
    #[error("{call} {}: {source} (free space on this file system; what was answered before is kept)", path.display())]
    NoSpace {
        /// The call.
        call: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: Arc<io::Error>,
    },
    /// The data directory cannot be written.
    #[error("cannot write data directory {}: {source} (give --data a directory that this user may write)", path.display())]
    Unwritable {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: Arc<io::Error>,
    },
    /// Another server has the data directory.
    #[error("data directory {} is in use {} (stop it, or give --data another directory)", path.display(), by(path, *pid))]
    InUse {
        /// The directory.
        path: PathBuf,
        /// The other server's process, where it is known.
        pid: Option<u32>,
    },
    /// The directory holds something else.
    #[error("{} is not a data directory: it has no superblock and holds {found:?} (give --data an empty directory)", path.display())]
    NotADataDirectory {
        /// The directory.
        path: PathBuf,
        /// A file in it.
        found: String,
    },
    /// The directory is of a format that this server does not know.
    #[error("{} is of format version {found}; this server knows {} (run the server that wrote it)", path.display(), kv_proto::layout::MEDIA_FORMAT)]
    FormatVersion {
        /// The file that says so.
        path: PathBuf,
        /// The version.
        found: u16,
    },
    /// A file does not hold what it should.
    #[error("{} is damaged: {source} (put it back from a backup, and look at the disk)", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong in it.
        source: DecodeError,
    },
    /// The memory budget does not allow it.
    #[error(
        "memory budget reached: {needed_bytes} bytes more are needed and {used_bytes} of {allowed_bytes} are in use (raise --memory-budget)"
    )]
    Memory {
        /// Bytes asked for.
        needed_bytes: u64,
        /// Bytes in use.
        used_bytes: u64,
        /// The budget.
        allowed_bytes: u64,
    },
    /// Memory could not be mapped or registered.
    #[error("{0}")]
    Fabric(Arc<FabricError>),
    /// A limit of work in hand is reached: ask again.
    #[error("busy: {0}")]
    Busy(&'static str),
    /// The memory for arriving values is in use by those whose clients are sending them: begin again.
    #[error("busy: the memory for arriving values is in use (--gather-budget)")]
    Arriving,
    /// Memory or disk are used up, and dead space is being freed: begin again.
    #[error("busy: dead space is being freed")]
    Freeing,
    /// Memory of the index changed though nobody wrote there, and what it said is put together anew: ask again.
    #[error("busy: a part of the index is filled anew from the records")]
    Mending,
    /// There is no such dataset, or it was dropped.
    #[error("there is no dataset {0:?}")]
    NoDataset(String),
    /// It was dropped while it was open.
    #[error("the dataset was dropped")]
    Dropped,
    /// A dataset of this name exists.
    #[error("a dataset {0:?} exists")]
    Exists(String),
    /// A name that may not name a dataset.
    #[error("{0:?} may not name a dataset: 1 to 64 of a-z 0-9 . _ -")]
    BadName(String),
    /// A key of a length that keys do not have.
    #[error(
        "a key of {len_bytes} bytes: keys have 1 to {}",
        kv_proto::layout::KEY_MAX_BYTES
    )]
    BadKey {
        /// Its length.
        len_bytes: usize,
    },
    /// A value longer than can be stored.
    #[error("a value of {len_bytes} bytes is longer than the {max_bytes} that this dataset takes")]
    TooLarge {
        /// Its length.
        len_bytes: u64,
        /// The longest.
        max_bytes: u64,
    },
    /// The bytes that arrived are not those that were announced.
    #[error("the bytes that arrived have CRC32C {computed:#010x}, not {announced:#010x} as announced")]
    Crc {
        /// As announced.
        announced: u32,
        /// Of what arrived.
        computed: u32,
    },
    /// More or fewer bytes than announced.
    #[error("{got_bytes} bytes came of a value of {announced_bytes}")]
    Length {
        /// As announced.
        announced_bytes: u64,
        /// What came.
        got_bytes: u64,
    },
    /// The operation was begun anew since.
    #[error("the operation was begun anew by another request")]
    Superseded,
    /// A named limit was met.
    #[error("{what}: the limit is {limit}")]
    Limit {
        /// Of what.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// An option that cannot be.
    #[error("{option} {value}: {remedy}")]
    Option {
        /// The option.
        option: &'static str,
        /// Its value.
        value: u64,
        /// What to do.
        remedy: String,
    },
    /// The server is shutting down.
    #[error("the server is shutting down")]
    ShuttingDown,
}

/// Who has a data directory; its lock holds the number of the server that last took it, and others can have it open.
fn by(path: &Path, pid: Option<u32>) -> String {
    match pid {
        None => "by another server".to_owned(),
        Some(pid) if Path::new(&format!("/proc/{pid}")).exists() => {
            format!("by another server (process {pid})")
        }
        Some(pid) => {
            let lock = path.join("lock");
            format!(
                "by a process that is not process {pid}, its last server, which is gone; `fuser -v {}` names it",
                lock.display()
            )
        }
    }
}

impl StorageError {
    /// A call on `path` that failed; a full file system and a lack of rights are told apart.
    pub fn io(call: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        let source = Arc::new(source);
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace { call, path, source },
            io::ErrorKind::PermissionDenied => Self::Forbidden { call, path, source },
            _ => Self::Io { call, path, source },
        }
    }

    /// The same where it is not known what of the write stays: never a full file system, which means that nothing did.
    pub(crate) fn into_unknown(self) -> Self {
        match self {
            Self::NoSpace { call, path, source } => Self::Io { call, path, source },
            error => error,
        }
    }

    /// Whether a call failed because there is no such file.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }

    /// Whether a call failed because the file system is full, a sync included.
    pub(crate) fn is_full(&self) -> bool {
        use io::ErrorKind::{QuotaExceeded, StorageFull};
        match self {
            Self::NoSpace { .. } => true,
            Self::Io { source, .. } => matches!(source.kind(), StorageFull | QuotaExceeded),
            _ => false,
        }
    }

    /// What a client is told: where things lie on the server is not for it.
    #[must_use]
    pub fn for_client(&self) -> String {
        match self {
            Self::Io { call, source, .. } | Self::Forbidden { call, source, .. } => {
                format!("the server's storage failed: {call}: {source} (its log names the file)")
            }
            Self::NoSpace { .. } => {
                "the server's disk is full (free space on its file system; what was answered \
                                     before is kept)"
                    .to_owned()
            }
            Self::Unwritable { .. }
            | Self::InUse { .. }
            | Self::NotADataDirectory { .. }
            | Self::FormatVersion { .. }
            | Self::Damaged { .. } => "the server's storage failed (its log says why)".to_owned(),
            other => other.to_string(),
        }
    }

    /// The status that a client is answered.
    #[must_use]
    pub const fn status(&self) -> Status {
        match self {
            Self::Io { .. }
            | Self::Forbidden { .. }
            | Self::Unwritable { .. }
            | Self::InUse { .. }
            | Self::NotADataDirectory { .. }
            | Self::FormatVersion { .. }
            | Self::Damaged { .. }
            | Self::Option { .. } => Status::Io,
            Self::NoSpace { .. } => Status::NoSpace,
            Self::Memory { .. } | Self::Fabric(_) => Status::NoMemory,
            Self::Busy(_) | Self::Arriving | Self::Freeing | Self::Mending => Status::Busy,
            Self::NoDataset(_) | Self::Dropped => Status::NoDataset,
            Self::Exists(_) => Status::Exists,
            Self::BadName(_) => Status::BadName,
            Self::BadKey { .. } => Status::BadKey,
            Self::TooLarge { .. } => Status::TooLarge,
            Self::Crc { .. } => Status::Crc,
            Self::Length { .. } => Status::Order,
            Self::Superseded => Status::Stale,
            Self::Limit { .. } => Status::Limit,
            Self::ShuttingDown => Status::ShuttingDown,
        }
    }
}

impl From<FabricError> for StorageError {
    fn from(error: FabricError) -> Self {
        Self::Fabric(Arc::new(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_client_is_told_where_things_lie() {
        let path = || PathBuf::from("/nvme/data");
        let source = || Arc::new(io::Error::from(io::ErrorKind::Other));
        let call = "write to";
        let errors = [
            StorageError::io(call, &path(), io::Error::from(io::ErrorKind::Other)),
            StorageError::io(call, &path(), io::Error::from(io::ErrorKind::PermissionDenied)),
            StorageError::io(call, &path(), io::Error::from(io::ErrorKind::StorageFull)),
            StorageError::Unwritable {
                path: path(),
                source: source(),
            },
            StorageError::InUse {
                path: path(),
                pid: None,
            },
            StorageError::NotADataDirectory {
                path: path(),
                found: "x".to_owned(),
            },
            StorageError::FormatVersion {
                path: path(),
                found: 7,
            },
            StorageError::Damaged {
                path: path(),
                source: DecodeError::Trailing { what: "x", extra: 1 },
            },
        ];
        for error in errors {
            assert!(error.to_string().contains("/nvme/data"), "{error}");
            let told = error.for_client();
            assert!(
                told.starts_with("the server's ") && !told.contains("/nvme"),
                "{told}"
            );
        }
    }
}
