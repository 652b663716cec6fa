//! Space: what is in use never passes a bound that is far below what was written, and all of it comes back.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kv_client::{Client, Server};
use serde::Serialize;

use super::values::LONGER_BYTES;

/// Memory of images and index for each operation, generously: a record of about 200 bytes, and its share of an index
/// that is half empty.
const OPERATION_BYTES: u64 = 700;
/// Memory of a dataset beyond that: segments and arenas that were just begun.
const DATASET_BYTES: u64 = 8 << 20;
/// Datasets for each place: one written, one dropped that waits for its readers, and one more on a slow machine.
const DATASETS_PER_PLACE: u64 = 3;
/// Memory of a session: staging memory and frames, also while one that was fenced is replaced.
const SESSION_BYTES: u64 = 4 << 20;
/// How long space may take to come back once nobody writes.
const PATIENCE: Duration = Duration::from_secs(60);
/// Files of an empty data directory at most, bytes.
const EMPTY_BYTES: u64 = 1 << 20;

/// The memory that is enough where what is retired comes back: the server has no more.
pub(super) fn budget_bytes(operations: u32, long: bool, places: u64, readers: u64) -> u64 {
    let operation = OPERATION_BYTES + if long { LONGER_BYTES as u64 } else { 0 };
    let datasets = (u64::from(operations) * operation + DATASET_BYTES) * DATASETS_PER_PLACE * places;
    datasets + (places * 4 + readers + 1) * SESSION_BYTES
}

/// What a campaign saw.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Report {
    memory_budget_bytes: u64,
    memory_peak_bytes: u64,
    disk_peak_bytes: u64,
    /// Images and indexes that were retired, all together.
    retired_bytes: u64,
    /// Of datasets that were dropped since: what compaction freed of their files, and the segments it retired.
    compacted_bytes: u64,
    compacted_segments: u64,
    /// Left when all was dropped and every session over or up to date.
    memory_left_bytes: u64,
    disk_left_bytes: u64,
}

impl Report {
    pub(super) fn line(&self) -> String {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        format!(
            "dropped {:.0} MiB of memory and files, compacted {:.0} MiB in {} segments; in use at most {:.0} MiB of memory (budget {:.0}) and {:.0} MiB of \
             files; left {:.2} and {:.2} MiB",
            mib(self.retired_bytes),
            mib(self.compacted_bytes),
            self.compacted_segments,
            mib(self.memory_peak_bytes),
            mib(self.memory_budget_bytes),
            mib(self.disk_peak_bytes),
            mib(self.memory_left_bytes),
            mib(self.disk_left_bytes)
        )
    }
}

/// The space of one server.
pub(super) struct Space {
    data: PathBuf,
    budget_bytes: u64,
    memory_peak_bytes: AtomicU64,
    disk_peak_bytes: AtomicU64,
    retired_bytes: AtomicU64,
    compacted_bytes: AtomicU64,
    compacted_segments: AtomicU64,
    /// In use before there was any dataset.
    memory_idle_bytes: u64,
    memory_now_bytes: AtomicU64,
    disk_now_bytes: AtomicU64,
}

fn figure(figures: &[(String, u64)], name: &str) -> Result<u64, String> {
    let found = figures.iter().find(|(known, _)| known == name);
    found
        .map(|(_, value)| *value)
        .ok_or_else(|| format!("the server's figures have no {name}"))
}

/// Bytes of all files below `folder`; what vanishes while it is looked at does not count.
fn disk_bytes(folder: &Path) -> u64 {
    walkdir::WalkDir::new(folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.metadata().ok())
        .filter(std::fs::Metadata::is_file)
        .map(|metadata| metadata.len())
        .sum()
}

impl Space {
    /// Of a server that has no datasets yet, and no session but this one.
    pub(super) fn new(data: PathBuf, budget_bytes: u64, session: &Server) -> Result<Self, String> {
        let figures = session.stat().map_err(|error| error.to_string())?;
        Ok(Self {
            data,
            compacted_bytes: AtomicU64::new(0),
            compacted_segments: AtomicU64::new(0),
            memory_idle_bytes: figure(&figures, "memory_used_bytes")?,
            budget_bytes,
            memory_peak_bytes: AtomicU64::new(0),
            disk_peak_bytes: AtomicU64::new(0),
            retired_bytes: AtomicU64::new(0),
            memory_now_bytes: AtomicU64::new(0),
            disk_now_bytes: AtomicU64::new(0),
        })
    }

    /// A dataset is about to be dropped: all that it has is retired.
    pub(super) fn retire(&self, dataset: &Client) -> Result<(), String> {
        let figures = dataset.stat().map_err(|error| error.to_string())?;
        let bytes = figure(&figures, "images_bytes")? + figure(&figures, "index_bytes")?;
        self.retired_bytes.fetch_add(bytes, Ordering::SeqCst);
        let compacted = figure(&figures, "compaction_freed_bytes")?;
        self.compacted_bytes.fetch_add(compacted, Ordering::SeqCst);
        let segments = figure(&figures, "compaction_removed_segments_count")?;
        self.compacted_segments.fetch_add(segments, Ordering::SeqCst);
        Ok(())
    }

    /// Looks at what is in use.
    pub(super) fn look(&self, session: &Server) -> Result<(), String> {
        let figures = session.stat().map_err(|error| error.to_string())?;
        let memory = figure(&figures, "memory_used_bytes")?;
        let disk = disk_bytes(&self.data);
        self.memory_now_bytes.store(memory, Ordering::SeqCst);
        self.disk_now_bytes.store(disk, Ordering::SeqCst);
        self.memory_peak_bytes.fetch_max(memory, Ordering::SeqCst);
        self.disk_peak_bytes.fetch_max(disk, Ordering::SeqCst);
        if disk > self.budget_bytes {
            return Err(format!("{disk} bytes of files, more than {}", self.budget_bytes));
        }
        Ok(())
    }

    pub(super) fn report(&self) -> Report {
        let get = |figure: &AtomicU64| figure.load(Ordering::SeqCst);
        Report {
            memory_budget_bytes: self.budget_bytes,
            memory_peak_bytes: get(&self.memory_peak_bytes),
            disk_peak_bytes: get(&self.disk_peak_bytes),
            retired_bytes: get(&self.retired_bytes),
            compacted_bytes: get(&self.compacted_bytes),
            compacted_segments: get(&self.compacted_segments),
            memory_left_bytes: get(&self.memory_now_bytes).saturating_sub(self.memory_idle_bytes),
            disk_left_bytes: get(&self.disk_now_bytes),
        }
    }

    /// Waits until all memory and all files are free: every dataset was dropped, and nobody reads.
    pub(super) fn come_back(&self, session: &Server) -> Result<Report, String> {
        let until = Instant::now() + PATIENCE;
        loop {
            self.look(session)?;
            let report = self.report();
            if report.memory_left_bytes == 0 && report.disk_left_bytes <= EMPTY_BYTES {
                return Ok(report);
            }
            if Instant::now() > until {
                return Err(format!(
                    "{} bytes of memory and {} of files did not come back within {PATIENCE:?}",
                    report.memory_left_bytes, report.disk_left_bytes
                ));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
