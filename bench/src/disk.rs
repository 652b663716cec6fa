//! The block device below a directory, and the page cache above its files.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, fadvise};

use crate::Error;

/// Bytes that the kernel counts as one sector, whatever the device's are.
const SECTOR_BYTES: u64 = 512;
/// Which column of `/sys/dev/block/*/stat` counts sectors written (Documentation/block/stat.rst).
const SECTORS_WRITTEN: usize = 6;

/// The block device that a directory lies on.
pub(crate) struct Disk {
    stat: PathBuf,
    directory: PathBuf,
}

impl Disk {
    /// That of `directory`.
    pub(crate) fn of(directory: &Path) -> Result<Self, Error> {
        let device = fs::metadata(directory)?.dev();
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        let stat = PathBuf::from(format!("/sys/dev/block/{major}:{minor}/stat"));
        if !stat.exists() {
            return Err(format!(
                "{} lies on no block device ({major}:{minor}): give a directory of a file system on one",
                directory.display()
            )
            .into());
        }
        Ok(Self {
            stat,
            directory: directory.to_owned(),
        })
    }

    /// Bytes written to it so far, by anybody; what is still cached is written first.
    pub(crate) fn written_bytes(&self) -> Result<u64, Error> {
        rustix::fs::syncfs(fs::File::open(&self.directory)?)?;
        let text = fs::read_to_string(&self.stat)?;
        let sectors = text.split_whitespace().nth(SECTORS_WRITTEN);
        let sectors: u64 = sectors.ok_or("the device keeps no statistics")?.parse()?;
        Ok(sectors * SECTOR_BYTES)
    }
}

/// Has the page cache forget a file, whose bytes are on the device.
pub(crate) fn make_cold(path: &Path) -> Result<(), Error> {
    let file = fs::File::open(path)?;
    file.sync_all()?;
    fadvise(&file, 0, None, Advice::DontNeed)?;
    Ok(())
}
