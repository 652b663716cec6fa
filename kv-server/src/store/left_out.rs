//! A kind of sync that this process leaves out, so that a campaign of power cuts can show that it would notice.
//!
//! Set once, by a hidden option of the command that says so loudly; nothing is left out otherwise.

use std::path::Path;
use std::sync::OnceLock;

use super::{description, parse_segment_name};

/// What is not made durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeftOut {
    /// Records, trailers and what else is written to a segment under its name.
    Records,
    /// The header of a new segment, before it gets its name.
    Header,
    /// The superblock, before it gets its name.
    Superblock,
    /// The description of a dataset, before it gets its name.
    Description,
    /// Names in the directory of a dataset.
    DatasetDirectory,
    /// Names of datasets.
    DatasetsDirectory,
    /// Names in the data directory.
    RootDirectory,
}

impl LeftOut {
    /// Every kind, with its name.
    pub const ALL: [(&'static str, Self); 7] = [
        ("records", Self::Records),
        ("header", Self::Header),
        ("superblock", Self::Superblock),
        ("description", Self::Description),
        ("dataset-directory", Self::DatasetDirectory),
        ("datasets-directory", Self::DatasetsDirectory),
        ("root-directory", Self::RootDirectory),
    ];

    /// The kind of this name.
    ///
    /// # Errors
    /// A text with all names.
    pub fn parse(text: &str) -> Result<Self, String> {
        let found = Self::ALL.iter().find(|(name, _)| *name == text);
        found.map(|(_, kind)| *kind).ok_or_else(|| {
            let names = Self::ALL.map(|(name, _)| name);
            format!("give one of {}", names.join(", "))
        })
    }

    fn of_file(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_str()?;
        match name.strip_suffix(".new") {
            Some("superblock") => Some(Self::Superblock),
            Some("dataset") => Some(Self::Description),
            Some(name) => parse_segment_name(name).map(|_| Self::Header),
            None => parse_segment_name(name).map(|_| Self::Records),
        }
    }

    fn of_directory(path: &Path) -> Self {
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        let id = name.strip_suffix(".new").unwrap_or(name);
        if description::parse_directory_name(id).is_some() {
            Self::DatasetDirectory
        } else if name == "datasets" {
            Self::DatasetsDirectory
        } else {
            Self::RootDirectory
        }
    }
}

static LEFT_OUT: OnceLock<LeftOut> = OnceLock::new();

/// Leaves a kind of sync out from now on: what is answered may be lost by a power cut. For tests of such tests.
pub fn leave_out(kind: LeftOut) {
    tracing::warn!(
        ?kind,
        "SYNCS ARE LEFT OUT, for a test: a power cut loses what was answered"
    );
    let _ = LEFT_OUT.set(kind);
}

pub(super) fn file(path: &Path) -> bool {
    let left_out = LEFT_OUT.get();
    left_out.is_some() && left_out.copied() == LeftOut::of_file(path)
}

pub(super) fn directory(path: &Path) -> bool {
    LEFT_OUT.get() == Some(&LeftOut::of_directory(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_by_name() {
        let id = "0123456789abcdef0123456789abcdef";
        let segment = super::super::segment_path(Path::new(id), 7);
        let mut header = segment.clone().into_os_string();
        header.push(".new");
        let file = |path: &Path| LeftOut::of_file(path);
        assert_eq!(file(&segment), Some(LeftOut::Records));
        assert_eq!(file(Path::new(&header)), Some(LeftOut::Header));
        assert_eq!(file(Path::new("d/superblock.new")), Some(LeftOut::Superblock));
        assert_eq!(
            file(&Path::new(id).join("dataset.new")),
            Some(LeftOut::Description)
        );
        assert_eq!(file(Path::new("d/lock")), None);
        assert_eq!(LeftOut::of_directory(Path::new(id)), LeftOut::DatasetDirectory);
        assert_eq!(
            LeftOut::of_directory(Path::new("d/datasets")),
            LeftOut::DatasetsDirectory
        );
        assert_eq!(LeftOut::of_directory(Path::new("d")), LeftOut::RootDirectory);
        assert!(
            LeftOut::ALL
                .iter()
                .all(|(name, kind)| LeftOut::parse(name) == Ok(*kind))
        );
        assert!(LeftOut::parse("all").is_err());
        // Nothing is left out unless somebody asks.
        assert!(!super::file(&segment) && !directory(Path::new("d")));
    }
}
