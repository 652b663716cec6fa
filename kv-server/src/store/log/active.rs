//! The segment that is written: opened at the first record, closed when it is full or failed.

use std::io::IoSlice;
use std::sync::Arc;

use kv_proto::layout::{EXTENT_BYTES, SegmentHeader, segment_state};
use zerocopy::IntoBytes;

use super::super::checkpoint::Checkpoint;
use super::super::files::{Files, OpenFile};
use super::super::footer::Ending;
use super::super::journal::Change;
use super::super::limits::FOOTER_ENTRIES_MAX;
use super::super::owed::Owed;
use super::super::segment::{self, HEADER_BYTES, Segment};
use super::super::segment_path;
use super::super::sync_kind::SyncKind;

use super::Log;
use super::group::Group;
use crate::error::StorageError;

const ZEROES: [u8; 64] = [0; 64];
/// Compaction makes haste where there is memory for fewer extents than these.
const EXTENTS_AHEAD: u64 = 2;

/// The segment that is written.
pub(crate) struct Active {
    pub(crate) segment: Arc<Segment>,
    file: OpenFile,
    limit: u64,
    /// End of what was placed.
    pub(crate) tail: u64,
    /// End of what is durable and published.
    pub(crate) durable: u64,
    /// Lowest and highest sequence placed.
    pub(crate) sequences: Option<(u64, u64)>,
    /// What lists its records.
    pub(crate) checkpoint: Checkpoint,
}

/// A group that could not be made durable.
pub(crate) struct Failed {
    pub(crate) error: StorageError,
    /// Whether the segment must take no more writes.
    pub(crate) closed: bool,
}

impl Active {
    /// Where a record of `len` bytes goes: at the tail, or at the next extent where it would cross into that. `None`
    /// where it would pass the segment's limit.
    pub(crate) fn fit(&self, len: u64) -> Option<u64> {
        let inside = self.tail % EXTENT_BYTES;
        let offset = if len <= EXTENT_BYTES && inside + len > EXTENT_BYTES {
            self.tail - inside + EXTENT_BYTES
        } else {
            self.tail
        };
        (offset + len <= self.limit).then_some(offset)
    }

    /// Whether it holds no record, durable or placed.
    pub(crate) fn is_empty(&self) -> bool {
        self.tail == HEADER_BYTES
    }

    /// Length of the extent that the next record past the last one's end may need, bytes.
    pub(crate) fn next_extent_bytes(&self) -> u64 {
        let end = self.segment.extent_count() * EXTENT_BYTES;
        if end < self.limit {
            (self.limit - end).min(EXTENT_BYTES)
        } else {
            self.limit.min(EXTENT_BYTES)
        }
    }

    /// Whether three quarters of the last extent are written.
    pub(crate) fn wants_spare(&self) -> bool {
        let start = (self.segment.extent_count() - 1) * EXTENT_BYTES;
        let len = (self.limit - start).min(EXTENT_BYTES);
        self.tail >= start + len / 4 * 3
    }

    /// Writes a group, syncs once, and copies it into the image.
    pub(crate) fn make_durable(&mut self, files: &Files, group: &Group) -> Result<(), Failed> {
        let start = self.durable;
        if let Err(error) = self.write(files, group) {
            // Room comes back; anything else may mean that the device does not keep what it takes.
            let closed = !matches!(error, StorageError::NoSpace { .. }) || self.cut(files, start).is_err();
            let error = if closed { error.into_unknown() } else { error };
            return Err(self.failed(group, error, closed));
        }
        if let Err(error) = files.sync(&self.file, SyncKind::Records) {
            return Err(self.failed(group, error, true));
        }
        for entry in &group.entries {
            self.segment.write(entry.offset, &entry.prefix);
            self.segment
                .write(entry.offset + entry.prefix.len() as u64, &entry.record.value);
        }
        self.durable = self.tail;
        self.segment.set_sequences(self.sequences);
        let records = group
            .entries
            .iter()
            .filter_map(|entry| Some((entry.listed()?, entry.operation())));
        self.checkpoint.take(records, self.durable);
        self.segment.publish(segment_state::ACTIVE, self.durable);
        Ok(())
    }

    /// Takes a group back that was not made durable. Where the segment is `closed` its records may be in the file: the
    /// next start believes them, and until then something has to keep hiding what they say.
    fn failed(&mut self, group: &Group, error: StorageError, closed: bool) -> Failed {
        self.tail = self.durable;
        self.sequences = self.segment.sequences();
        if closed && let Some(lowest) = group.lowest_sequence() {
            self.segment.set_unpublished(lowest);
        }
        Failed { error, closed }
    }

    /// Takes out what a failed group left behind: found at a restart it would count as written.
    fn cut(&self, files: &Files, end: u64) -> Result<(), StorageError> {
        files.punch(&self.file, end)?;
        files.sync(&self.file, SyncKind::Records)
    }

    /// Writes the group's records, each run of neighbours with as few calls as there can be.
    fn write(&self, files: &Files, group: &Group) -> Result<(), StorageError> {
        let mut slices: Vec<IoSlice<'_>> = Vec::new();
        let (mut start, mut end) = (self.durable, self.durable);
        for entry in &group.entries {
            if entry.offset != end {
                files.write_at(&self.file, &mut slices, start)?;
                slices.clear();
                start = entry.offset;
            }
            slices.push(IoSlice::new(&entry.prefix));
            if !entry.record.value.is_empty() {
                slices.push(IoSlice::new(&entry.record.value));
            }
            let padding = entry.len().next_multiple_of(64) - entry.len();
            if padding > 0 {
                slices.push(IoSlice::new(&ZEROES[..padding as usize]));
            }
            end = entry.offset + entry.len() + padding;
        }
        files.write_at(&self.file, &mut slices, start)
    }
}

impl Log {
    /// Makes the next segment: memory first, then its file with its header, durable under its name, then its place in the
    /// list.
    pub(super) fn open_segment(&mut self) -> Result<(), StorageError> {
        let dataset = Arc::clone(&self.dataset);
        dataset.pay_trailers()?;
        let shared = &dataset.shared;
        let limit = dataset.segment_bytes;
        let extent = self.take_extent(limit.min(EXTENT_BYTES))?;
        let (header, file) = match self.make_listed_file(limit) {
            Ok(made) => made,
            Err(error) => {
                self.spare.keep(limit.min(EXTENT_BYTES), extent);
                return Err(error);
            }
        };
        let (number, identity) = (header.segment, header.identity);
        let segment = Arc::new(Segment::new(number, identity, segment_state::ACTIVE));
        segment.push_extent(extent);
        segment.write(0, header.as_bytes());
        segment.publish(segment_state::ACTIVE, HEADER_BYTES);
        dataset
            .segments
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .insert(number, Arc::clone(&segment));
        dataset.note(Change::Row(number));
        tracing::debug!(dataset = %dataset.name(), segment = number, epoch = shared.home.epoch(), "segment opened");
        let checkpoint = Checkpoint::new(number, identity, file.path());
        self.active = Some(Active {
            segment,
            file,
            limit,
            tail: HEADER_BYTES,
            durable: HEADER_BYTES,
            sequences: None,
            checkpoint,
        });
        Ok(())
    }

    /// The file of the next segment, which is listed. One that could not be listed may be: it is taken the next time.
    fn make_listed_file(&mut self, limit: u64) -> Result<(SegmentHeader, OpenFile), StorageError> {
        let made = match self.unlisted.take() {
            Some(made) => made,
            None => self.make_file(limit)?,
        };
        let dataset = &self.dataset;
        if let Err(error) = dataset.list.add(&dataset.shared.files, made.0.segment) {
            self.unlisted = Some(made);
            return Err(error);
        }
        Ok(made)
    }

    fn make_file(&mut self, limit: u64) -> Result<(SegmentHeader, OpenFile), StorageError> {
        let dataset = &self.dataset;
        let shared = &dataset.shared;
        let number = match self.number_kept {
            Some(number) => number,
            None => shared.home.segment_number(&shared.files)?,
        };
        // Until the file stands under its name nothing of it was used.
        self.number_kept = Some(number);
        let identity = loop {
            let identity = u64::from_le_bytes(super::super::random()?);
            if identity != 0 {
                break identity;
            }
        };
        let header = segment::header(number, identity, dataset.id, shared.home.epoch(), limit);
        let path = segment_path(&dataset.directory, number);
        // Of its whole length, as a hole: so a file that somebody cut can be told from one that was not written further.
        let made = shared.files.replace_sparse(&path, header.as_bytes(), limit);
        let file = made.inspect_err(|_| {
            // Whether the name stands is not known after a failed sync of the directory: it is not used again.
            if path.exists() {
                self.number_kept = None;
                let _ = shared.files.remove(&path);
            }
        })?;
        self.number_kept = None;
        Ok((header, file))
    }

    /// Has memory for the next extent of the active segment.
    pub(super) fn add_extent(&mut self) -> Result<(), StorageError> {
        let Some(active) = &self.active else {
            return Ok(());
        };
        let segment = Arc::clone(&active.segment);
        let len = active.next_extent_bytes();
        segment.push_extent(self.take_extent(len)?);
        self.dataset.note(Change::Row(segment.number));
        Ok(())
    }

    /// Ends the active segment with FOOTERs and trailer. Where the disk is full it is given the trailer as soon as one
    /// fits; where anything else fails the next start does it.
    pub(super) fn seal(&mut self) {
        if let Some(active) = &mut self.active {
            let files = &self.dataset.shared.files;
            let ending = Ending {
                files,
                file: &active.file,
                number: active.segment.number,
                identity: active.segment.identity,
                cut: false,
                whole_len: active.limit,
                end: active.durable,
                sequences: active.sequences,
                footer_entries: FOOTER_ENTRIES_MAX,
            };
            let checkpoint = &mut active.checkpoint;
            let operations = self.dataset.operations.entries();
            // What is not sealed keeps those before it from being freed.
            let sealed = ending.seal(
                |footers| checkpoint.list(files, |entries| footers.push(entries)),
                &operations,
                || self.dataset.give_reserve_up(),
            );
            match sealed {
                Ok(trailer) => {
                    if trailer.footer_count > 0 {
                        active.segment.standing.set_tells_operations();
                    }
                    checkpoint.remove(files);
                }
                Err(error) => {
                    tracing::warn!(%error, segment = active.segment.number, "the segment could not be sealed; it is closed without");
                    let _ = ending.clear();
                    if error.is_full() {
                        self.dataset.owe_trailer(Owed {
                            path: active.file.path().to_owned(),
                            number: active.segment.number,
                            identity: active.segment.identity,
                            cut: false,
                            end: active.durable,
                            sequences: active.sequences,
                        });
                    }
                }
            }
        }
        self.close_active();
    }

    /// Takes a checkpoint where it is time to: what was answered does not wait for it.
    pub(super) fn checkpoint(&mut self) {
        let operations = &self.dataset.operations;
        if let Some(active) = &mut self.active {
            active.checkpoint.advance(&self.dataset.shared, |listed| {
                operations.retain_remembered(listed)
            });
        }
    }

    /// Waits until the checkpoint covers what is durable, before the tail behind it grows too long. Where it cannot be
    /// written the segment ends: its FOOTERs are in another file.
    pub(super) fn catch_up(&mut self) {
        self.flush();
        let operations = &self.dataset.operations;
        let caught_up = self.active.as_mut().is_none_or(|active| {
            active.checkpoint.catch_up(&self.dataset.shared, |listed| {
                operations.retain_remembered(listed)
            })
        });
        if !caught_up {
            self.seal();
        }
    }

    /// Has the active segment take no more writes, at what is durable of it.
    pub(super) fn close_active(&mut self) {
        if let Some(active) = self.active.take() {
            active.segment.publish(segment_state::SEALED, active.durable);
            self.dataset.note(Change::Row(active.segment.number));
            self.dataset.shared.compaction.poke();
        }
    }

    /// Has memory for the next extent made ready in good time.
    pub(super) fn prepare_spare(&mut self) {
        if let Some(active) = self.active.as_ref().filter(|active| active.wants_spare()) {
            let len = active.next_extent_bytes();
            self.spare.prepare(&self.dataset, len);
        }
    }

    fn take_extent(&mut self, len: u64) -> Result<super::super::index::Readable, StorageError> {
        let extent = self.spare.take(&self.dataset, len, self.urgent)?;
        let shared = &self.dataset.shared;
        if shared.budget.open_bytes() < EXTENTS_AHEAD * len {
            shared.compaction.press();
        }
        Ok(extent)
    }
}
