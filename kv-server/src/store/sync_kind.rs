//! The kinds of sync that the store makes, and the one that this process leaves out, so that a campaign of power cuts
//! can show that it is missed.
//!
//! It is set once, by a hidden option of the command that says so loudly; nothing is left out otherwise.

use std::path::Path;
use std::sync::OnceLock;

use super::{catalogue, description, parse_segment_name, segment_list};

/// What a sync makes durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyncKind {
    /// A group of records.
    Records,
    /// FOOTERs, before the trailer that says that they are there.
    Footers,
    /// The trailer of a sealed segment.
    Trailer,
    /// What a start found in a segment that was not sealed.
    Recovered,
    /// A checkpoint of the active segment.
    Checkpoint,
    /// The room that is kept on the disk.
    Reserve,
    /// The header of a new segment, before it gets its name.
    Header,
    /// The superblock, before it gets its name.
    Superblock,
    /// The description of a dataset, before it gets its name.
    Description,
    /// The list of a dataset's segments, before it gets its name.
    SegmentList,
    /// The list of all datasets, before it gets its name.
    Catalogue,
    /// Names in the directory of a dataset.
    DatasetDirectory,
    /// Names of datasets.
    DatasetsDirectory,
    /// Names in the data directory.
    RootDirectory,
}

impl SyncKind {
    /// Every kind, with its name.
    pub const ALL: [(&'static str, Self); 14] = [
        ("records", Self::Records),
        ("footers", Self::Footers),
        ("trailer", Self::Trailer),
        ("recovered", Self::Recovered),
        ("checkpoint", Self::Checkpoint),
        ("reserve", Self::Reserve),
        ("header", Self::Header),
        ("superblock", Self::Superblock),
        ("description", Self::Description),
        ("segment-list", Self::SegmentList),
        ("catalogue", Self::Catalogue),
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

    /// That of a file which is made whole and gets the name `path` then.
    pub(super) fn of_whole(path: &Path) -> Self {
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        if parse_segment_name(name).is_some() {
            Self::Header
        } else if name == description::NAME {
            Self::Description
        } else if name == segment_list::NAME {
            Self::SegmentList
        } else if name == catalogue::NAME {
            Self::Catalogue
        } else {
            Self::Superblock
        }
    }

    /// That of the names in a directory.
    pub(super) fn of_directory(path: &Path) -> Self {
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

    pub(super) fn is_left_out(self) -> bool {
        LEFT_OUT.get() == Some(&self)
    }
}

static LEFT_OUT: OnceLock<SyncKind> = OnceLock::new();

/// Leaves a kind of sync out from now on: what is answered may be lost by a power cut. For tests of such tests.
pub fn leave_out(kind: SyncKind) {
    tracing::warn!(
        ?kind,
        "SYNCS ARE LEFT OUT, for a test: a power cut loses what was answered"
    );
    let _ = LEFT_OUT.set(kind);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_by_name() {
        let id = "0123456789abcdef0123456789abcdef";
        let segment = super::super::segment_path(Path::new(id), 7);
        assert_eq!(SyncKind::of_whole(&segment), SyncKind::Header);
        assert_eq!(
            SyncKind::of_whole(&Path::new(id).join("dataset")),
            SyncKind::Description
        );
        assert_eq!(
            SyncKind::of_whole(&Path::new(id).join("segments")),
            SyncKind::SegmentList
        );
        assert_eq!(SyncKind::of_whole(Path::new("d/catalogue")), SyncKind::Catalogue);
        assert_eq!(
            SyncKind::of_whole(Path::new("d/superblock")),
            SyncKind::Superblock
        );
        assert_eq!(SyncKind::of_directory(Path::new(id)), SyncKind::DatasetDirectory);
        assert_eq!(
            SyncKind::of_directory(Path::new("d/datasets")),
            SyncKind::DatasetsDirectory
        );
        assert_eq!(SyncKind::of_directory(Path::new("d")), SyncKind::RootDirectory);
        assert!(SyncKind::parse("all").is_err());
        for (name, kind) in SyncKind::ALL {
            assert_eq!(SyncKind::parse(name), Ok(kind));
            // Nothing is left out unless somebody asks.
            assert!(!kind.is_left_out());
        }
    }
}
