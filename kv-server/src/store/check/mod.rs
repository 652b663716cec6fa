//! Looking at a data directory that no server has: every byte that counts, without changing one.
//!
//! What a start would believe is what is judged: `recover` reads FOOTERs, checkpoints and tails; a check reads the
//! records too and holds the one to the other.

use std::collections::BTreeSet;
use std::mem::offset_of;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use kv_proto::crc::crc32c;
use kv_proto::layout::{DatasetDescription, MEDIA_FORMAT, Superblock};

use super::description::{Description, parse_directory_name};
use super::files::Files;
use super::home::{read_superblock, take_lock_quietly};
use super::recover::says_lost;
use super::{checkpoint, is_own_file, parse_segment_name, segment_path};
use crate::error::StorageError;

mod catalogue;
mod dataset;
mod listed;
mod repair;
mod report;
mod segment;
mod source;
mod tail;

pub(crate) use dataset::Checking;
pub(crate) use report::Reporter;
pub(crate) use report::key_text;
pub use report::{Finding, Level, Summary, Watch};

/// Where the format stands in both.
const FORMAT_AT: usize = offset_of!(Superblock, format);
const _: () = assert!(offset_of!(DatasetDescription, format) == FORMAT_AT);

/// A data directory that is checked.
struct Directory<'a> {
    files: &'a Files,
    repair: bool,
    numbers: Option<(u32, u64)>,
    /// Names of datasets that hold segments.
    names: Vec<(String, PathBuf)>,
}

/// Checks the data directory `data`, which no server may have; `repair` does what loses nothing, and accepts that segment
/// files are gone.
///
/// # Errors
/// - [`StorageError::InUse`] while a server has it.
/// - [`StorageError::NotADataDirectory`], [`StorageError::FormatVersion`]: there is nothing that can be checked.
/// - [`StorageError::Io`] where a file or directory cannot be opened or, with `repair`, written.
pub fn check(data: &Path, repair: bool, watch: &mut dyn Watch) -> Result<Summary, StorageError> {
    check_with(&Files::default(), data, repair, watch)
}

/// [`check`] with chosen files.
pub(crate) fn check_with(
    files: &Files,
    data: &Path,
    repair: bool,
    watch: &mut dyn Watch,
) -> Result<Summary, StorageError> {
    let names = files.names(data)?;
    let has = |wanted: &str| names.iter().any(|name| name == wanted);
    if !has("superblock") && !has("datasets") {
        let found = names.first().cloned().unwrap_or_else(|| "nothing".to_owned());
        return Err(StorageError::NotADataDirectory {
            path: data.to_owned(),
            found,
        });
    }
    let held = take_lock_quietly(data)?;
    let mut reporter = Reporter::new(watch);
    let root = data.join("datasets");
    if has("datasets") {
        reporter.total_bytes = total_bytes(files, &root)?;
    }
    let mut directory = Directory {
        files,
        repair,
        numbers: None,
        names: Vec::new(),
    };
    directory.superblock(&mut reporter, &data.join("superblock"))?;
    directory.catalogue(&mut reporter, data)?;
    for name in names.iter().filter(|name| name.ends_with(".new")) {
        directory.leftover(&mut reporter, &data.join(name), None)?;
    }
    if has("datasets") {
        directory.datasets(&mut reporter, &root)?;
    }
    // Where nobody ever had it there was nothing to hold: somebody may have come.
    if held.is_empty() && !take_lock_quietly(data)?.is_empty() {
        let path = data.to_owned();
        return Err(StorageError::InUse { path, pid: None });
    }
    reporter.progress(files.read_bytes());
    Ok(reporter.summary)
}

/// Bytes of all files.
fn total_bytes(files: &Files, directory: &Path) -> Result<u64, StorageError> {
    let mut total = 0;
    for name in files.names(directory)? {
        let path = directory.join(name);
        let Ok(meta) = std::fs::symlink_metadata(&path) else {
            continue;
        };
        total += match meta.is_dir() {
            true => total_bytes(files, &path)?,
            // Not the hole at the end of a segment that is not sealed.
            false => meta.len().min(meta.blocks() * 512),
        };
    }
    Ok(total)
}

/// A finding of the directory itself.
fn of_directory(level: Level, path: &Path, what: String, remedy: &str) -> Finding {
    Finding {
        level,
        dataset: None,
        segment: None,
        offset: None,
        key: None,
        path: path.to_owned(),
        what,
        remedy: remedy.to_owned(),
    }
}

impl Directory<'_> {
    fn superblock(&mut self, reporter: &mut Reporter<'_>, path: &Path) -> Result<(), StorageError> {
        let what = match read_superblock(self.files, path) {
            Ok(superblock) => {
                self.numbers = Some((superblock.segment_next, superblock.epoch));
                return Ok(());
            }
            Err(error) if self.format_is_damaged(&error)? => "its format is damaged".to_owned(),
            Err(error) if says_lost(&error) => error.to_string(),
            Err(error) => return Err(error),
        };
        let remedy = "no server starts with it; restore this file of 64 bytes from a copy of this directory";
        reporter.found(&of_directory(Level::Damage, path, what, remedy));
        Ok(())
    }

    /// Whether an error is of a file whose format alone is damaged.
    fn format_is_damaged(&self, error: &StorageError) -> Result<bool, StorageError> {
        match error {
            StorageError::FormatVersion { path, .. } => self.only_the_format_is_wrong(path),
            _ => Ok(false),
        }
    }

    /// Whether a file of one struct has the CRC that it would have in the format that is known.
    fn only_the_format_is_wrong(&self, path: &Path) -> Result<bool, StorageError> {
        let file = self.files.open(path)?;
        let len = self.files.len(&file)? as usize;
        if ![size_of::<Superblock>(), size_of::<DatasetDescription>()].contains(&len) {
            return Ok(false);
        }
        let mut bytes = vec![0; len];
        self.files.read_at(&file, &mut bytes, 0)?;
        bytes[FORMAT_AT..FORMAT_AT + 2].copy_from_slice(&MEDIA_FORMAT.to_le_bytes());
        let (covered, crc) = bytes.split_at(len - 4);
        Ok(crc32c(covered).to_le_bytes() == crc)
    }

    /// What an interrupted change leaves.
    fn leftover(
        &self,
        reporter: &mut Reporter<'_>,
        path: &Path,
        dataset: Option<&str>,
    ) -> Result<(), StorageError> {
        let (level, remedy) = if self.repair {
            match path.is_dir() {
                true => self.files.remove_directory(path)?,
                false => self.files.remove(path)?,
            }
            (Level::Repaired, "removed")
        } else {
            (
                Level::Note,
                "the next start of the server, or --repair, removes it",
            )
        };
        let what = "left behind by a change that was interrupted".to_owned();
        reporter.found(&Finding {
            dataset: dataset.map(str::to_owned),
            ..of_directory(level, path, what, remedy)
        });
        Ok(())
    }

    fn datasets(&mut self, reporter: &mut Reporter<'_>, root: &Path) -> Result<(), StorageError> {
        for name in self.files.names(root)? {
            let path = root.join(&name);
            if name.ends_with(".new") || name.ends_with(".dropped") {
                self.leftover(reporter, &path, None)?;
                continue;
            }
            let Some(id) = parse_directory_name(&name) else {
                let what = "is no dataset".to_owned();
                reporter.found(&of_directory(Level::Note, &path, what, "it is left alone"));
                continue;
            };
            reporter.summary.datasets += 1;
            let mut checking = Checking::new(self.files, reporter, id, self.numbers);
            self.dataset(&mut checking, &path)?;
        }
        let names = std::mem::take(&mut self.names);
        for (name, path) in &names {
            let twin = names.iter().find(|(other, at)| other == name && at < path);
            if let Some((_, twin)) = twin {
                let what = format!("this and {} are both the dataset {name:?}", twin.display());
                let remedy = "no server starts with both; move one of them elsewhere";
                reporter.found(&of_directory(Level::Damage, path, what, remedy));
            }
        }
        Ok(())
    }

    fn dataset(&mut self, checking: &mut Checking<'_, '_>, path: &Path) -> Result<(), StorageError> {
        match Description::read(self.files, path, checking.id) {
            Ok(description) => {
                checking.name = description.name;
                checking.hash_key = Some(description.hash_key);
                checking.segment_bytes = Some(description.segment_bytes);
            }
            Err(error) if says_lost(&error) || self.format_is_damaged(&error)? => {
                let remedy = "the dataset cannot be served; restore this file of 128 bytes from a copy of this directory";
                let at = path.join("dataset");
                checking.damage(None, &at, None, None, error.to_string(), remedy);
            }
            Err(error) => return Err(error),
        }
        let (mut segments, mut checkpoints) = (BTreeSet::new(), Vec::new());
        for name in self.files.names(path)? {
            let at = path.join(&name);
            if name.ends_with(".new") {
                let dataset = checking.name.clone();
                self.leftover(checking.reporter, &at, Some(&dataset))?;
            } else if let Some(number) = parse_segment_name(&name) {
                segments.insert(number);
            } else if let Some(number) = checkpoint::parse_name(&name) {
                checkpoints.push((number, at));
            } else if !is_own_file(&name) {
                let what = "is no file of a dataset".to_owned();
                checking.tell(Level::Note, None, &at, None, None, what, "it is left alone");
            }
        }
        let list_is_whole = checking.segment_list(path, &segments)?;
        // Those that are gone count, as at a start.
        let has_segments = !segments.is_empty() || !checking.lost_segments.is_empty();
        if has_segments && checking.hash_key.is_some() {
            self.names.push((checking.name.clone(), path.to_owned()));
        }
        checking.begin();
        let last = segments.last();
        for number in &segments {
            checking.segment(*number, &segment_path(path, *number), Some(number) == last)?;
        }
        for (number, at) in checkpoints {
            if !checking.wants_checkpoint(number) {
                let dataset = checking.name.clone();
                self.leftover(checking.reporter, &at, Some(&dataset))?;
            }
        }
        checking.resolve()?;
        if self.repair {
            checking.repair()?;
            if !list_is_whole {
                checking.repair_segment_list(path, &segments)?;
            }
        }
        Ok(())
    }
}
