//! The files that a demo stores and compares with: keys are relative paths, as bytes.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::Error;

/// One file.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    /// Its key.
    pub(crate) key: Vec<u8>,
    /// Where it lies.
    pub(crate) path: PathBuf,
    /// Its length, bytes.
    pub(crate) len_bytes: u64,
}

/// Every regular file of `input` (a directory, or one file), by key. What is no regular file is left out, as `kv ingest`
/// leaves it out.
pub(crate) fn samples(input: &Path) -> Result<Vec<Sample>, Error> {
    let single = input.is_file();
    let mut samples = Vec::new();
    for entry in walkdir::WalkDir::new(input).follow_root_links(true) {
        let entry = entry?;
        let regular = if single { true } else { entry.file_type().is_file() };
        if !regular {
            continue;
        }
        let relative = if single {
            entry.path().file_name().map(Path::new)
        } else {
            entry.path().strip_prefix(input).ok()
        };
        let key =
            relative.ok_or_else(|| format!("{} is not below {}", entry.path().display(), input.display()))?;
        samples.push(Sample {
            key: key.as_os_str().as_bytes().to_vec(),
            path: entry.path().to_path_buf(),
            len_bytes: entry.metadata()?.len(),
        });
    }
    samples.sort_by(|a, b| a.key.cmp(&b.key));
    Ok(samples)
}
