//! What a check says, finding by finding.

use std::fmt;
use std::path::PathBuf;

use serde::{Serialize, Serializer};

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Bytes are not what was written, or say what cannot be.
    Damage,
    /// What an interrupted server leaves, and the next start clears away: no damage.
    Note,
    /// What `--repair` did.
    Repaired,
}

/// One thing that was found, and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How much it matters.
    pub level: Level,
    /// Name of the dataset; its id where its description cannot be read.
    pub dataset: Option<String>,
    /// Number of the segment.
    pub segment: Option<u32>,
    /// Where in the file the record, or what else it is of, begins, bytes.
    pub offset: Option<u64>,
    /// Key of the record, where it is known.
    #[serde(serialize_with = "key_as_text")]
    pub key: Option<Vec<u8>>,
    /// The file or directory.
    pub path: PathBuf,
    /// What is wrong.
    pub what: String,
    /// What follows from it, and what to do.
    pub remedy: String,
}

/// A key for people: quoted text, or bytes with escapes.
pub(crate) fn key_text(key: &[u8]) -> String {
    match std::str::from_utf8(key) {
        Ok(text) => format!("{text:?}"),
        Err(_) => format!("b\"{}\"", key.escape_ascii()),
    }
}

fn key_as_text<S: Serializer>(key: &Option<Vec<u8>>, to: S) -> Result<S::Ok, S::Error> {
    key.as_deref().map(key_text).serialize(to)
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.level {
            Level::Damage => "damage: ",
            Level::Note => "note: ",
            Level::Repaired => "repaired: ",
        })?;
        if let Some(dataset) = &self.dataset {
            write!(f, "dataset {dataset}, ")?;
        }
        match self.segment {
            Some(segment) => write!(f, "segment {segment}")?,
            None => write!(f, "{}", self.path.display())?,
        }
        if let Some(offset) = self.offset {
            write!(f, ", offset {offset}")?;
        }
        if let Some(key) = &self.key {
            write!(f, ", key {}", key_text(key))?;
        }
        write!(f, ": {}", self.what)?;
        if !self.remedy.is_empty() {
            write!(f, " ({})", self.remedy)?;
        }
        Ok(())
    }
}

/// What was looked at, and how much was found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Datasets.
    pub datasets: u64,
    /// Segment files.
    pub segments: u64,
    /// VALUEs, PARTs, HEADs and TOMBSTONEs.
    pub records: u64,
    /// Keys that have a value.
    pub keys: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Findings that are damage.
    pub damage: u64,
    /// Those of it that were not told one by one: there were too many.
    pub untold: u64,
    /// Findings that are none.
    pub notes: u64,
    /// What was repaired.
    pub repaired: u64,
}

/// Who is told while a check runs.
pub trait Watch {
    /// So many bytes were read, of so many; whether to go on.
    fn progress(&mut self, bytes: u64, of: u64) -> bool;
    /// Something was found.
    fn found(&mut self, finding: &Finding);
}

/// Counts findings and passes them on.
pub(crate) struct Reporter<'a> {
    watch: &'a mut dyn Watch,
    pub(super) summary: Summary,
    pub(super) total_bytes: u64,
    /// Whether what is found is not passed on: it was before.
    pub(super) silent: bool,
}

impl<'a> Reporter<'a> {
    pub(crate) fn new(watch: &'a mut dyn Watch) -> Self {
        Self {
            watch,
            summary: Summary::default(),
            total_bytes: 0,
            silent: false,
        }
    }

    pub(super) fn progress(&mut self, bytes: u64) -> bool {
        self.summary.bytes = bytes;
        // More than there are where some are read again.
        self.watch.progress(bytes, self.total_bytes.max(bytes))
    }

    pub(super) fn found(&mut self, finding: &Finding) {
        if self.silent {
            return;
        }
        match finding.level {
            Level::Damage => self.summary.damage += 1,
            Level::Note => self.summary.notes += 1,
            Level::Repaired => self.summary.repaired += 1,
        }
        self.watch.found(finding);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_one_line_that_names_all_it_knows() {
        let finding = Finding {
            level: Level::Damage,
            dataset: Some("images".to_owned()),
            segment: Some(7),
            offset: Some(4160),
            key: Some(b"a\nb".to_vec()),
            path: "d/00000007.segment".into(),
            what: "its value does not have its CRC".to_owned(),
            remedy: "store it again".to_owned(),
        };
        assert_eq!(
            finding.to_string(),
            "damage: dataset images, segment 7, offset 4160, key \"a\\nb\": its value does not have its CRC (store it again)"
        );
        assert_eq!(key_text(b"\xffa"), "b\"\\xffa\"");
    }
}
