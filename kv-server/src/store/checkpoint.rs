//! Checkpoints of the active segment: chunks that list its records, appended to a file beside it, so that a start
//! walks no more than [`TAIL_BYTES_MAX`] of records, and no more entries than those are held in memory.

use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use kv_proto::DecodeError;
use kv_proto::crc::crc32c;
use kv_proto::footer::{encode_list, parse_list};
use kv_proto::layout::{
    CHECKPOINT_MAGIC, CheckpointHeader, FooterEntry, MEDIA_FORMAT, OperationEntry, units,
};
use zerocopy::{FromZeros, IntoBytes};

use super::Shared;
use super::files::{Files, OpenFile};
use super::home::check_crc;
use super::limits::{CHECKPOINT_EVERY_BYTES, TAIL_BYTES_MAX};
use super::recover::says_lost;
use super::segment::HEADER_BYTES;
use super::sync_kind::SyncKind;
use crate::error::StorageError;

const WHAT: &str = "checkpoint";
const HEADER_LEN: usize = size_of::<CheckpointHeader>();

/// File of a segment's checkpoint.
pub(crate) fn path_of(segment: &Path) -> PathBuf {
    segment.with_extension("checkpoint")
}

/// The number that a checkpoint's file name says.
pub(crate) fn parse_name(name: &str) -> Option<u32> {
    let stem = name.strip_suffix(".checkpoint")?;
    super::parse_segment_name(&format!("{stem}.segment"))
}

/// What is appended at once.
#[derive(Default)]
struct Chunk {
    from: u64,
    covered: u64,
    sequence_max: u64,
    entries: Vec<FooterEntry>,
    operations: Vec<OperationEntry>,
}

/// What a thread made of a chunk; the chunk is back where it could not be appended.
struct Appended {
    file: Option<OpenFile>,
    at: u64,
    failed: Option<(StorageError, Chunk)>,
}

/// The checkpoint of a segment that is written.
pub(crate) struct Checkpoint {
    number: u32,
    identity: u64,
    path: PathBuf,
    file: Option<OpenFile>,
    /// Where the next chunk goes.
    at: u64,
    /// All below is listed durably.
    covered: u64,
    /// Length of the segment at which the next chunk is begun.
    due: u64,
    writing: Option<JoinHandle<Appended>>,
    /// What is durable in the segment and in no chunk yet.
    open: Chunk,
}

impl Checkpoint {
    /// Of a new segment; there is no file until the first chunk.
    pub(crate) fn new(number: u32, identity: u64, segment: &Path) -> Self {
        Self {
            number,
            identity,
            path: path_of(segment),
            file: None,
            at: 0,
            covered: HEADER_BYTES,
            due: CHECKPOINT_EVERY_BYTES,
            writing: None,
            open: Chunk {
                from: HEADER_BYTES,
                covered: HEADER_BYTES,
                ..Chunk::default()
            },
        }
    }

    /// Takes records that are durable now, up to `durable`.
    pub(crate) fn take(
        &mut self,
        records: impl Iterator<Item = (FooterEntry, Option<OperationEntry>)>,
        durable: u64,
    ) {
        for (entry, operation) in records {
            self.open.sequence_max = self.open.sequence_max.max(entry.sequence);
            self.open.entries.push(entry);
            self.open.operations.extend(operation);
        }
        self.open.covered = durable;
    }

    /// Whether records from `tail` to `end` may follow before another chunk is durable.
    pub(crate) fn allows(&self, tail: u64, end: u64) -> bool {
        end - self.covered <= TAIL_BYTES_MAX || self.covered == tail
    }

    /// Begins another chunk where enough has come since the last; a thread of its own appends it. `remembered` drops
    /// the operations that need not be listed.
    pub(crate) fn advance(
        &mut self,
        shared: &Arc<Shared>,
        remembered: impl FnOnce(&mut Vec<OperationEntry>),
    ) {
        if self.writing.as_ref().is_some_and(JoinHandle::is_finished) {
            self.settle();
        }
        if self.writing.is_none() && self.open.covered >= self.due {
            self.begin(shared, remembered);
        }
    }

    /// Has all that is durable listed durably; whether it is.
    pub(crate) fn catch_up(
        &mut self,
        shared: &Arc<Shared>,
        remembered: impl FnOnce(&mut Vec<OperationEntry>),
    ) -> bool {
        self.settle();
        if self.covered < self.open.covered {
            self.begin(shared, remembered);
            self.settle();
        }
        self.covered == self.open.covered
    }

    fn begin(&mut self, shared: &Arc<Shared>, remembered: impl FnOnce(&mut Vec<OperationEntry>)) {
        let end = self.open.covered;
        // Where this one fails the next is not tried before.
        self.due = end + CHECKPOINT_EVERY_BYTES;
        let next = Chunk {
            from: end,
            covered: end,
            ..Chunk::default()
        };
        let mut chunk = std::mem::replace(&mut self.open, next);
        remembered(&mut chunk.operations);
        let work = Work {
            shared: Arc::clone(shared),
            path: self.path.clone(),
            number: self.number,
            identity: self.identity,
        };
        let (file, at) = (self.file.take(), self.at);
        // Held by both, so that it is not lost where there is no thread.
        let held = Arc::new(std::sync::Mutex::new(Some((file, chunk))));
        let theirs = Arc::clone(&held);
        let thread = std::thread::Builder::new()
            .name("kv-checkpoint".to_owned())
            .spawn(move || {
                let (file, chunk) = super::lock(&theirs).take().unwrap_or_default();
                work.append(file, at, chunk)
            });
        match thread {
            Ok(thread) => self.writing = Some(thread),
            Err(error) => {
                tracing::warn!(%error, "no thread to write a checkpoint");
                let (file, chunk) = super::lock(&held).take().unwrap_or_default();
                self.file = file;
                self.put_back(chunk);
            }
        }
    }

    /// Waits for the chunk that is being appended.
    fn settle(&mut self) {
        let Some(thread) = self.writing.take() else {
            return;
        };
        let Ok(appended) = thread.join() else {
            // Its entries are gone: nothing is listed past what is covered, and the segment is not sealed.
            tracing::error!(
                segment = self.number,
                "the thread that wrote a checkpoint had panicked"
            );
            return;
        };
        self.file = appended.file;
        self.at = appended.at;
        match appended.failed {
            None => self.covered = self.open.from,
            Some((error, chunk)) => {
                tracing::warn!(%error, segment = self.number, "a checkpoint could not be written; its records are kept in memory");
                self.put_back(chunk);
            }
        }
    }

    fn put_back(&mut self, mut chunk: Chunk) {
        let next = std::mem::take(&mut self.open);
        chunk.entries.extend(next.entries);
        chunk.operations.extend(next.operations);
        chunk.covered = next.covered;
        chunk.sequence_max = chunk.sequence_max.max(next.sequence_max);
        self.open = chunk;
    }

    /// Gives every record of the segment to `sink`, in order: those of the chunks are read back.
    pub(crate) fn list(
        &mut self,
        files: &Files,
        mut sink: impl FnMut(&[FooterEntry]) -> Result<(), StorageError>,
    ) -> Result<(), StorageError> {
        self.settle();
        let mut given = Ok(());
        let mut covered = HEADER_BYTES;
        if self.covered > HEADER_BYTES {
            let read = read(files, &self.path, self.number, self.identity, |entries, _| {
                if given.is_ok() {
                    given = sink(entries);
                }
            })?;
            covered = read.covered;
        }
        given?;
        if covered != self.open.from {
            let source = DecodeError::Range {
                what: WHAT,
                field: "covered_units",
                value: covered / 64,
            };
            return Err(StorageError::Damaged {
                path: self.path.clone(),
                source,
            });
        }
        sink(&self.open.entries)
    }

    /// Removes its file: the segment is sealed. What stays is removed at the next start.
    pub(crate) fn remove(&mut self, files: &Files) {
        self.settle();
        if self.file.take().is_some()
            && let Err(error) = files.remove(&self.path)
        {
            tracing::warn!(%error, "the checkpoint of a sealed segment stays until the next start");
        }
    }
}

impl Drop for Checkpoint {
    fn drop(&mut self) {
        self.settle();
    }
}

/// Where a chunk goes.
struct Work {
    shared: Arc<Shared>,
    path: PathBuf,
    number: u32,
    identity: u64,
}

impl Work {
    fn append(&self, mut file: Option<OpenFile>, at: u64, chunk: Chunk) -> Appended {
        let mut bytes = Vec::new();
        let appended = self.write(&mut file, at, &chunk, &mut bytes);
        let failed = appended.err().map(|error| (error, chunk));
        let at = if failed.is_none() {
            at + bytes.len() as u64
        } else {
            at
        };
        Appended { file, at, failed }
    }

    fn write(
        &self,
        file: &mut Option<OpenFile>,
        at: u64,
        chunk: &Chunk,
        bytes: &mut Vec<u8>,
    ) -> Result<(), StorageError> {
        let files = &self.shared.files;
        encode(self.number, self.identity, chunk, bytes);
        let made = match file {
            Some(_) => None,
            None => Some(files.create(&self.path)?),
        };
        let Some(to) = made.as_ref().or(file.as_ref()) else {
            return Ok(());
        };
        files.write_at(to, &mut [IoSlice::new(bytes)], at)?;
        files.sync(to, SyncKind::Checkpoint)?;
        if made.is_some() {
            // Until its name is durable too there is no chunk, and the next attempt makes the file anew.
            if let Some(directory) = self.path.parent() {
                files.sync_directory(directory)?;
            }
            *file = made;
        }
        Ok(())
    }
}

fn encode(number: u32, identity: u64, chunk: &Chunk, out: &mut Vec<u8>) {
    out.resize(HEADER_LEN, 0);
    encode_list(&chunk.entries, &chunk.operations, out);
    let mut header = CheckpointHeader {
        magic: CHECKPOINT_MAGIC,
        format: MEDIA_FORMAT,
        flags: 0,
        segment: number,
        covered_units: (chunk.covered / 64) as u32,
        identity,
        body_len_bytes: (out.len() - HEADER_LEN) as u64,
        sequence_max: chunk.sequence_max,
        from_units: (chunk.from / 64) as u32,
        reserved: [0; 12],
        body_crc: crc32c(&out[HEADER_LEN..]),
        crc: 0,
    };
    header.crc = crc32c(&header.as_bytes()[..HEADER_LEN - 4]);
    out[..HEADER_LEN].copy_from_slice(header.as_bytes());
    out.resize(units(out.len() as u64) as usize * 64, 0);
}

/// What the valid chunks of a checkpoint say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Covered {
    /// All records below are listed, bytes.
    pub(crate) covered: u64,
    pub(crate) sequence_max: u64,
}

/// Gives what the valid chunks of a segment's checkpoint list to `sink`, chunk by chunk. A file that is not there has
/// none, and what cannot be read of one is as what does not validate.
///
/// # Errors
/// [`StorageError::Io`] that may be over at the next start.
pub(crate) fn read(
    files: &Files,
    path: &Path,
    number: u32,
    identity: u64,
    mut sink: impl FnMut(&[FooterEntry], &[OperationEntry]),
) -> Result<Covered, StorageError> {
    let mut known = Covered {
        covered: HEADER_BYTES,
        sequence_max: 0,
    };
    let read = read_chunks(files, path, number, identity, &mut known, &mut sink);
    match read {
        Err(error) if !says_lost(&error) => Err(error),
        _ => Ok(known),
    }
}

fn read_chunks(
    files: &Files,
    path: &Path,
    number: u32,
    identity: u64,
    known: &mut Covered,
    sink: &mut impl FnMut(&[FooterEntry], &[OperationEntry]),
) -> Result<(), StorageError> {
    let file = files.open(path)?;
    let len = files.len(&file)?;
    // Of `u64`, for what it holds is to be aligned.
    let mut body: Vec<u64> = Vec::new();
    let mut at = 0;
    while at + (HEADER_LEN as u64) <= len {
        let mut header = CheckpointHeader::new_zeroed();
        files.read_at(&file, header.as_mut_bytes(), at)?;
        let body_len = header.body_len_bytes;
        let room = len - at - HEADER_LEN as u64;
        if check_crc(WHAT, header.as_bytes(), header.crc).is_err()
            || header.magic != CHECKPOINT_MAGIC
            || header.format != MEDIA_FORMAT
            || header.segment != number
            || header.identity != identity
            || u64::from(header.from_units) * 64 != known.covered
            || header.covered_units <= header.from_units
            || body_len > room
        {
            return Ok(());
        }
        body.resize((body_len as usize).div_ceil(size_of::<u64>()), 0);
        let bytes = &mut body.as_mut_bytes()[..body_len as usize];
        files.read_at(&file, bytes, at + HEADER_LEN as u64)?;
        if crc32c(bytes) != header.body_crc {
            return Ok(());
        }
        let Ok((entries, operations)) = parse_list(bytes) else {
            return Ok(());
        };
        let (first, last) = (entries.first(), entries.last());
        if first.is_some_and(|first| first.offset_units < header.from_units)
            || last.is_some_and(|last| last.end_units() > u64::from(header.covered_units))
        {
            return Ok(());
        }
        sink(entries, operations);
        known.covered = u64::from(header.covered_units) * 64;
        known.sequence_max = known.sequence_max.max(header.sequence_max);
        at += units(HEADER_LEN as u64 + body_len) * 64;
    }
    Ok(())
}
