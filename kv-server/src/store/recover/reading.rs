//! Reading what the segments of a dataset say, several at a time: which records there are, where they end, and which
//! operations they tell of.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use kv_proto::layout::{FooterEntry, Locator, OperationEntry, SegmentTrailer, record_kind};

use super::super::checkpoint;
use super::super::dataset::Figures;
use super::super::footer;
use super::super::operations::{self, Operations};
use super::super::segment::{HEADER_BYTES, widen};
use super::super::{Committed, Shared, lock};
use super::gather::Gather;
use super::load::SegmentFile;
use super::says_lost;
use super::scan::{Found, Scanned};
use crate::error::StorageError;

/// What is known of a segment that is there.
pub(super) struct Known {
    pub(super) unseen_end: u64,
    /// Lowest and highest sequence.
    pub(super) sequences: Option<(u64, u64)>,
    /// Whether its FOOTERs tell of operations.
    pub(super) listed: bool,
    pub(super) unsealed: Option<Unsealed>,
}

/// A segment that was not sealed, walked, with what its FOOTERs are to list.
pub(super) struct Unsealed {
    /// All before this was known to be durable.
    pub(super) from: u64,
    pub(super) scanned: Scanned,
    pub(super) entries: Vec<FooterEntry>,
    /// Whether it was sealed, and its trailer is damaged.
    pub(super) lost_its_trailer: bool,
}

/// Reads segments, several at a time.
pub(super) struct Reading<'a> {
    pub(super) shared: &'a Shared,
    pub(super) hash_key: &'a [u8; 16],
    pub(super) operations: Operations,
    /// Whether all FOOTERs that there are could be read.
    pub(super) all_read: AtomicBool,
    /// Operations that the FOOTERs of the newest segment list which has some.
    pub(super) listed: Mutex<Option<(u32, Vec<OperationEntry>)>>,
    pub(super) figures: Figures,
    pub(super) sequence_max: AtomicU64,
}

/// Takes records of a segment.
type Taking<'a> = dyn Fn(u32, &[FooterEntry]) + 'a;

/// A segment that was read.
pub(super) struct Judged {
    pub(super) segment: u32,
    /// None where it could not even be opened.
    pub(super) file: Option<SegmentFile>,
    pub(super) known: Result<Known, StorageError>,
}

/// Does `job` for each of `jobs` on some threads, which have numbers.
fn on_threads<J: Send, T: Send>(
    threads: usize,
    jobs: impl Iterator<Item = J>,
    job: impl Fn(usize, J) -> T + Sync,
) -> Vec<T> {
    let jobs: Vec<_> = jobs.map(|job| Mutex::new(Some(job))).collect();
    let next = AtomicUsize::new(0);
    let work = |thread| {
        let mut done = Vec::new();
        while let Some(taken) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            done.extend(lock(taken).take().map(|taken| job(thread, taken)));
        }
        done
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads.clamp(1, jobs.len().max(1)))
            .map(|thread| scope.spawn(move || work(thread)))
            .collect();
        let mut done = Vec::new();
        for worker in workers {
            match worker.join() {
                Ok(some) => done.extend(some),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        done
    })
}

impl Reading<'_> {
    /// Reads what all files say.
    pub(super) fn all(&self, files: Vec<SegmentFile>, gather: &Gather) -> Vec<Judged> {
        on_threads(gather.threads(), files.into_iter(), |thread, file| Judged {
            segment: file.header.segment,
            known: self.segment(&file, &|number, entries| gather.take(thread, number, entries)),
            file: Some(file),
        })
    }

    /// Reads again which records there are, for another pass. Of those that are `lost` as much counts as can be read.
    pub(super) fn again<'f>(
        &self,
        files: impl Iterator<Item = &'f SegmentFile>,
        lost: &'f [SegmentFile],
        gather: &Gather,
    ) -> Result<(), StorageError> {
        let files = files.map(|file| (file, false));
        let lost = lost.iter().map(|file| (file, true));
        let read = on_threads(gather.threads(), files.chain(lost), |thread, (file, lost)| {
            let spread = |number, entries: &[FooterEntry]| gather.take(thread, number, entries);
            match self.entries(file, &spread) {
                Err(error) if !lost || !says_lost(&error) => Err(error),
                _ => Ok(()),
            }
        });
        read.into_iter().collect()
    }

    /// Gives the records of a sealed segment to `spread`, as [`Reading::segment`] does.
    fn entries(&self, file: &SegmentFile, spread: &Taking<'_>) -> Result<(), StorageError> {
        let files = &self.shared.files;
        let number = file.header.segment;
        let opened = files.open(&file.path)?;
        if let Some(trailer) = file.trailer.as_ref().filter(|trailer| trailer.footer_count > 0) {
            match footer::read(files, &opened, trailer, |entries, _| spread(number, entries)) {
                Err(error) if says_lost(&error) => {}
                read => return read,
            }
        }
        let walked = file.walk(files, &opened, HEADER_BYTES, |found| {
            spread(number, &[found.entry(self.hash_key)]);
        });
        walked.map(drop)
    }

    /// Reads what one segment says.
    fn segment(&self, file: &SegmentFile, spread: &Taking<'_>) -> Result<Known, StorageError> {
        if let Some(error) = &file.header_damage {
            let number = file.header.segment;
            tracing::error!(%error, segment = number, "its header is damaged; its trailer says the same");
            self.figures.damaged_records.fetch_add(1, Ordering::Relaxed);
        }
        if let Some(trailer) = &file.trailer {
            self.met(trailer.sequence_max);
            if self.footers(file, spread)? {
                return Ok(Known {
                    unseen_end: file.len,
                    sequences: sequences(trailer),
                    listed: true,
                    unsealed: None,
                });
            }
        }
        let unsealed = self.walk(file, spread)?;
        Ok(Known {
            unseen_end: unsealed.from.min(file.len),
            sequences: unsealed.scanned.sequences,
            listed: file.trailer.is_none(),
            unsealed: file.trailer.is_none().then_some(unsealed),
        })
    }

    /// Reads the FOOTERs of a sealed segment; whether it has some and all validate.
    fn footers(&self, file: &SegmentFile, spread: &Taking<'_>) -> Result<bool, StorageError> {
        let Some(trailer) = file.trailer.as_ref().filter(|trailer| trailer.footer_count > 0) else {
            // What it would have said of floors is not known.
            self.all_read.fetch_and(file.trailer.is_none(), Ordering::Relaxed);
            return Ok(false);
        };
        let number = file.header.segment;
        let opened = self.shared.files.open(&file.path)?;
        let mut operations = Vec::new();
        let read = footer::read(&self.shared.files, &opened, trailer, |entries, listed| {
            spread(number, entries);
            operations.extend_from_slice(listed);
        });
        match read {
            Ok(()) => {
                let mut listed = lock(&self.listed);
                if listed.as_ref().is_none_or(|(newest, _)| *newest < number) {
                    *listed = Some((number, operations));
                }
                Ok(true)
            }
            Err(error) if says_lost(&error) => {
                tracing::error!(%error, segment = number, "its FOOTERs cannot be read; its records are");
                self.all_read.store(false, Ordering::Relaxed);
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Walks the records of a segment that no checkpoint covers.
    fn walk(&self, file: &SegmentFile, spread: &Taking<'_>) -> Result<Unsealed, StorageError> {
        let files = &self.shared.files;
        let (number, identity) = (file.header.segment, file.header.identity);
        let mut entries: Vec<FooterEntry> = Vec::new();
        let mut from = HEADER_BYTES;
        let is_sealed = file.trailer.is_some();
        if !is_sealed {
            let path = checkpoint::path_of(&file.path);
            let known = checkpoint::read(files, &path, number, identity, |records, operations| {
                entries.extend_from_slice(records);
                self.take_listed(operations);
            })?;
            self.met(known.sequence_max);
            from = known.covered;
        }
        spread(number, &entries);
        let opened = files.open(&file.path)?;
        let mut scanned = file.walk(files, &opened, from, |found| {
            if found.damaged {
                tracing::error!(
                    segment = number,
                    offset = found.offset,
                    "a record's value is damaged"
                );
            }
            let entry = found.entry(self.hash_key);
            self.take_found(number, &found, &entry);
            spread(number, std::slice::from_ref(&entry));
            if !is_sealed {
                entries.push(entry);
            }
        })?;
        if from > file.len {
            // Its file was cut short below what was durable.
            scanned.damaged.push((file.len, from));
        }
        report_damage(&self.figures, number, &scanned.damaged);
        for entry in &entries {
            widen(&mut scanned.sequences, entry.sequence);
        }
        let lost_its_trailer = !is_sealed && file.lost_its_trailer(files, &opened, scanned.end)?;
        Ok(Unsealed {
            from,
            scanned,
            entries,
            lost_its_trailer,
        })
    }

    /// Takes a record that was walked over, and the operation that it tells of.
    fn take_found(&self, segment: u32, found: &Found<'_>, entry: &FooterEntry) {
        self.met(found.header.sequence);
        take_operation(&self.operations, segment, found, entry);
    }

    pub(super) fn take_listed(&self, entries: &[OperationEntry]) {
        for entry in entries {
            self.met(entry.sequence);
            self.operations.take_entry(entry);
        }
    }

    fn met(&self, sequence: u64) {
        self.sequence_max.fetch_max(sequence, Ordering::Relaxed);
    }
}

/// Takes the operation that a record tells of.
pub(crate) fn take_operation(operations: &Operations, segment: u32, found: &Found<'_>, entry: &FooterEntry) {
    let header = &found.header;
    if header.client_id == 0 || header.kind == record_kind::PART {
        return;
    }
    let deleted = header.kind == record_kind::TOMBSTONE;
    let outcome = Committed {
        sequence: header.sequence,
        locator: if deleted {
            Locator::default()
        } else {
            operations::locator(segment, entry)
        },
        existed: header.part != 0,
    };
    operations.recovered(header.client_id, header.operation, outcome);
}

/// Lowest and highest sequence that a trailer tells of.
fn sequences(trailer: &SegmentTrailer) -> Option<(u64, u64)> {
    (trailer.sequence_max != 0).then_some((trailer.sequence_min, trailer.sequence_max))
}

/// Counts and names runs of bytes that are damaged.
pub(crate) fn report_damage(figures: &Figures, segment: u32, damaged: &[(u64, u64)]) {
    for (first, end) in damaged {
        tracing::error!(
            segment,
            first,
            end,
            "durable bytes are damaged; they are kept and skipped"
        );
        figures.damaged_records.fetch_add(1, Ordering::Relaxed);
    }
}
