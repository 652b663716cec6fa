//! One segment: its file as a check judges it, then its image.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use kv_proto::layout::segment_state;

use super::super::Dataset;
use super::super::check::{Checking, Finding, Level, Reporter, Watch};
use super::super::recover::says_lost;
use super::super::recover::scan::{Span, scan};
use super::super::recover::source::{FileSource, Source};
use super::super::segment::{HEADER_BYTES, Segment};
use super::{Pace, tell};
use crate::error::StorageError;

/// A segment that is gone over.
pub(super) struct Scrub<'a> {
    dataset: &'a Dataset,
    segment: &'a Arc<Segment>,
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
struct Image<'a>(&'a Segment);

impl Source for Image<'_> {
    fn read(&mut self, offset: u64, out: &mut [u8]) -> Result<(), StorageError> {
        if self.0.read(offset, out) {
            return Ok(());
        }
        Err(StorageError::Busy("the image is gone"))
    }
}

/// A source in which nothing can be read.
struct Nothing;

impl Source for Nothing {
    fn read(&mut self, _: u64, _: &mut [u8]) -> Result<(), StorageError> {
        Err(StorageError::Busy("there is no other copy"))
    }
}

/// A source that is read no faster than its pace allows.
struct Paced<'a, S> {
    source: &'a mut S,
    pace: &'a mut dyn Pace,
    go_on: bool,
}

impl<S: Source> Source for Paced<'_, S> {
    fn read(&mut self, offset: u64, out: &mut [u8]) -> Result<(), StorageError> {
        self.go_on = self.go_on && self.pace.go_on();
        if !self.go_on {
            return Err(StorageError::ShuttingDown);
        }
        self.source.read(offset, out)
    }
}

impl<'a> Scrub<'a> {
    pub(super) fn new(dataset: &'a Dataset, segment: &'a Arc<Segment>) -> Self {
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
        let findings = match self.segment.state() {
            segment_state::ACTIVE => self.written(pace)?,
            _ => self.sealed(pace)?,
        };
        let bytes = files.read_bytes() - before;
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

    /// What a check finds in the file of a sealed segment.
    fn sealed(&self, pace: &mut dyn Pace) -> Result<Vec<Finding>, StorageError> {
        let files = &self.dataset.shared.files;
        let mut kept = Kept {
            pace,
            findings: Vec::new(),
        };
        let mut reporter = Reporter::new(&mut kept);
        let mut checking = Checking::new(files, &mut reporter, self.dataset.id, None);
        checking.name = self.dataset.name();
        checking.hash_key = Some(self.dataset.hash_key);
        let checked = checking.segment(self.segment.number, &self.path, false);
        // Where the index cannot tell, it is being put right, and what follows is said the more gravely.
        checking.tell_lost(None, |hash| self.dataset.find(hash, |_| true).ok().flatten());
        checked?;
        Ok(kept.findings)
    }

    /// What is damaged in the file of the segment that is written, as far as it is durable.
    fn written(&self, pace: &mut dyn Pace) -> Result<Vec<Finding>, StorageError> {
        let runs = match self.written_runs(pace) {
            Err(error) if says_lost(&error) => {
                let what = format!("cannot be read: {error}");
                let remedy = "the device loses data: copy what can be read to another";
                return Ok(self.findings(&(0..0), &mut Nothing, &what, remedy));
            }
            runs => runs?,
        };
        let what = "its record in the file is damaged";
        let found = runs
            .iter()
            .flat_map(|run| self.findings(run, &mut Image(self.segment), what, STORE_AGAIN));
        Ok(found.collect())
    }

    fn written_runs(&self, pace: &mut dyn Pace) -> Result<Vec<Range<u64>>, StorageError> {
        let files = &self.dataset.shared.files;
        let end = self.segment.length_bytes();
        let file = files.open(&self.path)?;
        // The device is to be asked, not the page cache.
        files.forget(&file);
        let runs = self.runs(&mut FileSource::new(files, &file, end), end, pace);
        files.forget(&file);
        runs
    }

    /// Runs of bytes of the image that are damaged.
    fn image(&self, pace: &mut dyn Pace) -> Result<Vec<Range<u64>>, StorageError> {
        let end = self.segment.length_bytes();
        match self.runs(&mut Image(self.segment), end, pace) {
            Err(StorageError::Busy(_)) => Ok(Vec::new()),
            runs => runs,
        }
    }

    /// Runs of bytes below `end` that are damaged, where all of it was durable.
    fn runs(
        &self,
        source: &mut impl Source,
        end: u64,
        pace: &mut dyn Pace,
    ) -> Result<Vec<Range<u64>>, StorageError> {
        let mut paced = Paced {
            source,
            pace,
            go_on: true,
        };
        let scanned = scan(&mut paced, &self.span(HEADER_BYTES, end), |_| {});
        if !paced.go_on {
            return Err(StorageError::ShuttingDown);
        }
        Ok(scanned?.damaged.iter().map(|(from, end)| *from..*end).collect())
    }

    fn span(&self, from: u64, end: u64) -> Span {
        Span {
            identity: self.segment.identity,
            from,
            begin_end: end,
            end,
            sealed: true,
        }
    }

    /// Names what is damaged in memory, by what the file has there.
    fn tell_image(&self, run: &Range<u64>) {
        let files = &self.dataset.shared.files;
        let what = "its image in memory is damaged";
        let remedy = "clients refuse it; restart the server, and test this machine's memory";
        let found = match files.open(&self.path) {
            Ok(file) => self.findings(run, &mut FileSource::new(files, &file, run.end), what, remedy),
            Err(_) => self.findings(run, &mut Nothing, what, remedy),
        };
        for finding in &found {
            tell(self.dataset, finding, true, "");
        }
    }

    /// What is said of a run that is damaged: of each record that `other` has there whole, or of all of it.
    fn findings(&self, run: &Range<u64>, other: &mut impl Source, what: &str, remedy: &str) -> Vec<Finding> {
        let of = |offset, key| Finding {
            level: Level::Damage,
            dataset: Some(self.dataset.name()),
            segment: Some(self.segment.number),
            offset: Some(offset),
            key,
            path: self.path.clone(),
            what: what.to_owned(),
            remedy: remedy.to_owned(),
        };
        let mut found = Vec::new();
        // Where that is damaged too, that is told of.
        let _ = scan(other, &self.span(run.start, run.end), |record| {
            found.push(of(record.offset, Some(record.key.to_vec())));
        });
        if found.is_empty() {
            found.push(of(run.start, None));
        }
        found
    }
}

const STORE_AGAIN: &str = "store it again from its source before the server stops; the device changes bytes";
