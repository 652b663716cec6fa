//! One segment: its file as a check judges it, then its image.

use std::path::PathBuf;
use std::sync::Arc;

use kv_fabric::Domain;

use super::super::Dataset;
use super::super::check::{Checking, Finding, Level, Reporter, Watch};
use super::super::recover::scan::{Span, scan};
use super::super::recover::source::Source;
use super::super::segment::{HEADER_BYTES, Segment};
use super::{Pace, tell};
use crate::error::StorageError;

/// A segment that is gone over.
pub(super) struct Scrub<'a, D: Domain> {
    dataset: &'a Dataset<D>,
    segment: &'a Arc<Segment<D>>,
    path: PathBuf,
}

/// What a check tells, kept until the image was looked at too.
struct Kept<'a> {
    pace: &'a mut dyn Pace,
    findings: Vec<Finding>,
}

impl Watch for Kept<'_> {
    fn progress(&mut self, _bytes: u64, _of: u64) -> bool {
        self.pace.go_on()
    }

    fn found(&mut self, finding: &Finding) {
        self.findings.push(finding.clone());
    }
}

/// The image of a segment, which may be retired and freed while it is walked.
struct Image<'a, D: Domain>(&'a Segment<D>);

impl<D: Domain> Source for Image<'_, D> {
    fn read(&mut self, offset: u64, out: &mut [u8]) -> Result<(), StorageError> {
        if self.0.read(offset, out) {
            return Ok(());
        }
        Err(StorageError::Busy("the image is gone"))
    }
}

impl<'a, D: Domain> Scrub<'a, D> {
    pub(super) fn new(dataset: &'a Dataset<D>, segment: &'a Arc<Segment<D>>) -> Self {
        Self {
            dataset,
            segment,
            path: dataset.segment_path(segment.number),
        }
    }

    /// Whether it was not compacted away.
    fn is_there(&self) -> bool {
        let now = self.dataset.segment(self.segment.number);
        now.is_some_and(|now| Arc::ptr_eq(&now, self.segment)) && !self.dataset.is_dropped()
    }

    /// Goes over file and image; bytes that were read.
    pub(super) fn run(&self, pace: &mut dyn Pace) -> Result<u64, StorageError> {
        let files = &self.dataset.shared.files;
        let before = files.read_bytes();
        let mut kept = Kept {
            pace,
            findings: Vec::new(),
        };
        let mut reporter = Reporter::new(&mut kept);
        let mut checking = Checking::new(files, &mut reporter, self.dataset.id, None);
        checking.name = self.dataset.name();
        checking.hash_key = Some(self.dataset.hash_key);
        let checked = checking.segment(self.segment.number, &self.path, false);
        checking.tell_lost(None, |hash| self.dataset.read_index().find(hash, |_| true));
        let bytes = files.read_bytes() - before;
        let Kept { pace, findings } = kept;
        checked?;
        let in_memory = if self.segment.extent_count() > 0 {
            self.image(pace)?
        } else {
            Vec::new()
        };
        if !self.is_there() {
            return Ok(bytes);
        }
        for finding in &findings {
            let offset = finding.offset.unwrap_or_default();
            let rotten = in_memory.iter().any(|run| run.contains(&offset));
            let sound = offset < self.segment.length_bytes() && self.segment.extent_count() > 0 && !rotten;
            let also = if sound {
                "; its image in memory is sound and is served until the server stops"
            } else {
                ""
            };
            tell(self.dataset, finding, false, also);
        }
        for run in &in_memory {
            self.tell_image(run);
        }
        Ok(bytes)
    }

    /// Runs of bytes of the image that are damaged.
    fn image(&self, pace: &mut dyn Pace) -> Result<Vec<std::ops::Range<u64>>, StorageError> {
        let mut go_on = true;
        let scanned = scan(
            &mut Image(self.segment),
            &self.span(HEADER_BYTES, self.segment.length_bytes()),
            |_| {
                go_on = go_on && pace.go_on();
            },
        );
        match scanned {
            _ if !go_on => Err(StorageError::ShuttingDown),
            Ok(scanned) => Ok(scanned.damaged.iter().map(|(from, end)| *from..*end).collect()),
            Err(StorageError::Busy(_)) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    fn span(&self, from: u64, end: u64) -> Span {
        Span {
            identity: self.segment.identity,
            from,
            end,
            sealed: true,
        }
    }

    /// Names what is damaged in memory, by what the file has there.
    fn tell_image(&self, run: &std::ops::Range<u64>) {
        let files = &self.dataset.shared.files;
        let mut keys = Vec::new();
        if let Ok(file) = files.open(&self.path) {
            let mut source = super::super::recover::source::FileSource::new(files, &file, run.end);
            // Where the file is damaged too, that is told of.
            let _ = scan(&mut source, &self.span(run.start, run.end), |found| {
                keys.push((found.offset, found.key.to_vec()));
            });
        }
        let mut finding = Finding {
            level: Level::Damage,
            dataset: Some(self.dataset.name()),
            segment: Some(self.segment.number),
            offset: Some(run.start),
            key: None,
            path: self.path.clone(),
            what: "its image in memory is damaged".to_owned(),
            remedy: "clients refuse it; restart the server, and test this machine's memory".to_owned(),
        };
        if keys.is_empty() {
            tell(self.dataset, &finding, true, "");
        }
        for (offset, key) in keys {
            (finding.offset, finding.key) = (Some(offset), Some(key));
            tell(self.dataset, &finding, true, "");
        }
    }
}
