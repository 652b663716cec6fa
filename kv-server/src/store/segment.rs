//! A segment's image: what clients READ, and what this process reads back.
//!
//! Bytes below the published length never change. The log thread alone writes past it.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use kv_proto::control::{RemoteAddress, SegmentRow};
use kv_proto::layout::{
    EXTENT_BYTES, Locator, MEDIA_FORMAT, RecordHeader, SEGMENT_MAGIC, SegmentHeader, SegmentTrailer,
    TRAILER_MAGIC, segment_flag, segment_state, trailer_flag,
};
use kv_proto::record::{check_prefix, parse_header};
use kv_proto::{DecodeError, crc::crc32c};
use zerocopy::IntoBytes;

use super::budget::{Budget, Charge};
use super::compact::Standing;
use super::home::check_crc;
use super::index::Readable;
use super::limits::PAGE_BYTES;
use super::{Shared, lock};
use crate::error::StorageError;

/// Generation of a segment's first image; one that is loaded is another.
const IMAGE_GENERATION: u32 = 1;
/// Bytes of a row on the wire without its extents, and of one extent.
pub(crate) const ROW_BYTES: usize = 4 + 8 + 4 + 1 + 4 + 2;
pub(crate) const ROW_EXTENT_BYTES: usize = 12;
/// Length of header and of trailer.
pub(crate) const HEADER_BYTES: u64 = size_of::<SegmentHeader>() as u64;

/// Bytes of a segment by what they are good for, in whole units of 64. What is in neither is dead.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    live_bytes: AtomicU64,
    tombstone_bytes: AtomicU64,
}

impl Tally {
    /// Records that the index names, by their slots or by their heads.
    pub(crate) fn live_bytes(&self) -> u64 {
        self.live_bytes.load(Ordering::Acquire)
    }

    pub(crate) fn add_live(&self, bytes: u64) {
        self.live_bytes.fetch_add(bytes, Ordering::AcqRel);
    }

    /// Takes back what [`Tally::add_live`] added, as far as it did: the parts of a large value whose HEAD could not be
    /// read at the start were never counted.
    pub(crate) fn bury(&self, bytes: u64) {
        let less = |live: u64| Some(live.saturating_sub(bytes));
        // It always says how much less.
        let _ = self
            .live_bytes
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, less);
    }

    /// Tombstones: whether one is still wanted shows only when its segment is compacted.
    pub(crate) fn tombstone_bytes(&self) -> u64 {
        self.tombstone_bytes.load(Ordering::Acquire)
    }

    /// Counts tombstones as dead that were found not to be wanted.
    pub(crate) fn bury_tombstones(&self, bytes: u64) {
        let all = self.tombstone_bytes.load(Ordering::Acquire);
        self.tombstone_bytes.fetch_sub(bytes.min(all), Ordering::AcqRel);
    }

    pub(crate) fn add_tombstone(&self, bytes: u64) {
        self.tombstone_bytes.fetch_add(bytes, Ordering::AcqRel);
    }
}

/// Keeps a segment from being compacted while it is held.
#[derive(Debug, Clone)]
pub(crate) struct Pin(#[expect(dead_code, reason = "it is counted")] Arc<()>);

/// A segment as readers know it.
pub(crate) struct Segment {
    pub(crate) number: u32,
    pub(crate) identity: u64,
    state: AtomicU8,
    length_units: AtomicU32,
    /// What of it is counted, by whoever changes the index.
    pub(crate) tally: Tally,
    /// What compaction knows of it.
    pub(crate) standing: Standing,
    sequences: Mutex<Option<(u64, u64)>>,
    /// Lowest sequence of what its file may hold behind what is published; [`u64::MAX`] where that is nothing.
    unpublished: AtomicU64,
    /// Of segments with parts that such records name.
    holds: Mutex<Vec<Pin>>,
    pins: Arc<()>,
    generation: AtomicU32,
    extents: RwLock<Vec<Arc<Readable>>>,
    /// What stands for the image while there is none.
    unloaded: Mutex<Option<Unloaded>>,
}

/// A segment's file, and the memory that its image will take.
struct Unloaded {
    shared: Arc<Shared>,
    path: PathBuf,
    charges: Vec<Charge>,
}

impl Segment {
    pub(crate) fn new(number: u32, identity: u64, state: u8) -> Self {
        Self {
            number,
            identity,
            state: AtomicU8::new(state),
            length_units: AtomicU32::new(0),
            tally: Tally::default(),
            standing: Standing::default(),
            sequences: Mutex::default(),
            unpublished: AtomicU64::new(u64::MAX),
            holds: Mutex::default(),
            pins: Arc::default(),
            generation: AtomicU32::new(IMAGE_GENERATION),
            extents: RwLock::default(),
            unloaded: Mutex::default(),
        }
    }

    /// A segment whose image is not there yet: until [`Segment::install`] it is read from the file at `path`. Its
    /// memory is taken from the budget now, one charge for each extent.
    pub(crate) fn unloaded(
        (number, identity): (u32, u64),
        length_bytes: u64,
        shared: &Arc<Shared>,
        path: PathBuf,
    ) -> Result<Self, StorageError> {
        let segment = Self::new(number, identity, segment_state::LOADING);
        let unloaded = Unloaded {
            shared: Arc::clone(shared),
            path,
            charges: charges(&shared.budget, length_bytes)?,
        };
        *lock(&segment.unloaded) = Some(unloaded);
        segment.publish(segment_state::LOADING, length_bytes);
        Ok(segment)
    }

    /// Memory for the image of `image_bytes`, charged when the segment was found, or anew after an attempt that
    /// failed; nothing where it is not wanted any more.
    pub(crate) fn take_charges(
        &self,
        budget: &Arc<Budget>,
        image_bytes: u64,
    ) -> Result<Option<Vec<Charge>>, StorageError> {
        let mut unloaded = lock(&self.unloaded);
        let Some(unloaded) = unloaded.as_mut() else {
            return Ok(None);
        };
        if unloaded.charges.is_empty() {
            unloaded.charges = charges(budget, image_bytes)?;
        }
        Ok(Some(std::mem::take(&mut unloaded.charges)))
    }

    /// Has the whole image, which readers may READ from now on; whether it was wanted still.
    pub(crate) fn install(&self, image: Vec<Arc<Readable>>) -> bool {
        let mut unloaded = lock(&self.unloaded);
        if unloaded.is_none() {
            return false;
        }
        *self.extents.write().unwrap_or_else(PoisonError::into_inner) = image;
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.state.store(segment_state::SEALED, Ordering::Release);
        *unloaded = None;
        true
    }

    /// Gives up an image that cannot be loaded: what lies in the segment cannot be served.
    pub(crate) fn lose(&self) {
        let mut unloaded = lock(&self.unloaded);
        if unloaded.take().is_some() {
            self.state.store(segment_state::LOST, Ordering::Release);
        }
    }

    fn extents(&self) -> Vec<Arc<Readable>> {
        self.extents
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn extent(&self, offset: u64) -> Option<Arc<Readable>> {
        let index = usize::try_from(offset / EXTENT_BYTES).ok()?;
        let extents = self.extents.read().unwrap_or_else(PoisonError::into_inner);
        extents.get(index).cloned()
    }

    pub(crate) fn push_extent(&self, extent: Readable) {
        let mut extents = self.extents.write().unwrap_or_else(PoisonError::into_inner);
        extents.push(Arc::new(extent));
    }

    pub(crate) fn extent_count(&self) -> u64 {
        self.extents.read().unwrap_or_else(PoisonError::into_inner).len() as u64
    }

    /// Length of the image's memory, bytes.
    pub(crate) fn charged_bytes(&self) -> u64 {
        let image: u64 = self.extents().iter().map(|extent| extent.charged_bytes()).sum();
        let unloaded = lock(&self.unloaded);
        let to_come = unloaded.iter().flat_map(|unloaded| &unloaded.charges);
        image + to_come.map(Charge::bytes).sum::<u64>()
    }

    /// Gives the image's memory up: nobody reads it any more.
    pub(crate) fn free(&self) {
        let mut unloaded = lock(&self.unloaded);
        unloaded.take();
        self.extents
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
    }

    pub(crate) fn publish(&self, state: u8, length_bytes: u64) {
        self.length_units
            .store((length_bytes / 64) as u32, Ordering::Release);
        self.state.store(state, Ordering::Release);
    }

    /// End of what is published, bytes.
    pub(crate) fn length_bytes(&self) -> u64 {
        u64::from(self.length_units.load(Ordering::Acquire)) * 64
    }

    /// Lowest and highest sequence of its records.
    pub(crate) fn sequences(&self) -> Option<(u64, u64)> {
        *lock(&self.sequences)
    }

    pub(crate) fn set_sequences(&self, sequences: Option<(u64, u64)>) {
        *lock(&self.sequences) = sequences;
    }

    /// Lowest sequence of records that its file may hold behind what is published: a group that failed left them. The
    /// next start believes what it finds there.
    pub(crate) fn unpublished(&self) -> Option<u64> {
        let lowest = self.unpublished.load(Ordering::Acquire);
        (lowest != u64::MAX).then_some(lowest)
    }

    pub(crate) fn set_unpublished(&self, lowest: u64) {
        self.unpublished.fetch_min(lowest, Ordering::AcqRel);
    }

    /// Keeps segments from being compacted for as long as its own file is there.
    pub(crate) fn hold(&self, pins: Vec<Pin>) {
        lock(&self.holds).extend(pins);
    }

    pub(crate) fn take_holds(&self) -> Vec<Pin> {
        std::mem::take(&mut lock(&self.holds))
    }

    /// Lowest sequence of all that its file may hold.
    pub(crate) fn lowest_on_disk(&self) -> u64 {
        let published = self.sequences().map(|(lowest, _)| lowest);
        let lowest = published.into_iter().chain(self.unpublished()).min();
        lowest.unwrap_or(0)
    }

    /// Keeps it from being compacted: it holds parts of a value that no head names yet.
    pub(crate) fn pin(&self) -> Pin {
        Pin(Arc::clone(&self.pins))
    }

    pub(crate) fn is_pinned(&self) -> bool {
        Arc::strong_count(&self.pins) > 1
    }

    /// Bytes of records that nobody wants any more.
    pub(crate) fn dead_bytes(&self) -> u64 {
        let wanted = self.tally.live_bytes() + self.tally.tombstone_bytes() + HEADER_BYTES;
        self.length_bytes().saturating_sub(wanted)
    }

    /// Share of its records' bytes that is dead; 1 where it has none.
    pub(crate) fn dead_share(&self) -> f64 {
        match self.record_bytes() {
            0 => 1.0,
            bytes => self.dead_bytes() as f64 / bytes as f64,
        }
    }

    pub(crate) fn state(&self) -> u8 {
        self.state.load(Ordering::Acquire)
    }

    /// Whether `offset` and all up to `end` have memory.
    pub(crate) fn covers(&self, end: u64) -> bool {
        end == 0 || self.extent(end - 1).is_some()
    }

    /// Copies into the image; extents may be crossed.
    pub(crate) fn write(&self, mut offset: u64, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let inside = (offset % EXTENT_BYTES) as usize;
            let some = bytes.len().min(EXTENT_BYTES as usize - inside);
            let extent = self.extent(offset).expect("the log has memory before it writes");
            extent.memory().write(inside, &bytes[..some]);
            bytes = &bytes[some..];
            offset += some as u64;
        }
    }

    /// Copies out of the image, or of the file while there is none; whether all of it is there.
    pub(crate) fn read(&self, offset: u64, out: &mut [u8]) -> bool {
        {
            let extents = self.extents.read().unwrap_or_else(PoisonError::into_inner);
            if !extents.is_empty() {
                return read_extents(&extents, offset, out);
            }
        }
        let (shared, path) = match lock(&self.unloaded).as_ref() {
            Some(unloaded) => (Arc::clone(&unloaded.shared), unloaded.path.clone()),
            None => {
                // It may have been loaded in between.
                let extents = self.extents.read().unwrap_or_else(PoisonError::into_inner);
                return read_extents(&extents, offset, out);
            }
        };
        if offset + out.len() as u64 > self.length_bytes() {
            return false;
        }
        let files = &shared.files;
        let read = files
            .open(&path)
            .and_then(|file| files.read_at(&file, out, offset));
        read.inspect_err(|error| tracing::warn!(%error, segment = self.number, "a record cannot be read"))
            .is_ok()
    }

    pub(crate) fn row(&self) -> SegmentRow {
        let state = self.state();
        SegmentRow {
            segment: self.number,
            identity: self.identity,
            generation: self.generation.load(Ordering::Acquire),
            state,
            length_units: self.length_units.load(Ordering::Acquire),
            extents: self
                .extents()
                .iter()
                .map(|extent| {
                    let remote = extent.remote();
                    RemoteAddress {
                        address: remote.address,
                        rkey: remote.rkey,
                    }
                })
                .collect(),
        }
    }

    /// Header of the record at `offset`.
    pub(crate) fn record_header(&self, offset: u64) -> Option<RecordHeader> {
        let mut bytes = [0; size_of::<RecordHeader>()];
        if !self.read(offset, &mut bytes) {
            return None;
        }
        parse_header(&bytes).ok()
    }

    /// Whether the record that `locator` names is of `key`, which has its hash. One that is damaged is taken for it:
    /// another key of the same hash is far less likely, and what replaces the key replaces the damage then.
    pub(crate) fn key_is(&self, locator: &Locator, key: &[u8]) -> bool {
        self.key_at(locator)
            .is_none_or(|found| found == key || !self.prefix_is_valid(locator))
    }

    fn prefix_is_valid(&self, locator: &Locator) -> bool {
        let mut prefix = vec![0; locator.prefix_len_bytes() as usize];
        self.read(locator.offset_bytes(), &mut prefix) && check_prefix(&prefix).is_ok()
    }

    /// Key of the record that `locator` names.
    pub(crate) fn key_at(&self, locator: &Locator) -> Option<Vec<u8>> {
        let mut key = vec![0; usize::from(locator.key_len_bytes)];
        self.read(
            locator.offset_bytes() + size_of::<RecordHeader>() as u64,
            &mut key,
        )
        .then_some(key)
    }
}

/// Lengths of the extents of an image of so many bytes.
pub(crate) fn extent_lens(image_bytes: u64) -> impl Iterator<Item = u64> {
    (0..image_bytes.div_ceil(EXTENT_BYTES))
        .map(move |index| (image_bytes - index * EXTENT_BYTES).min(EXTENT_BYTES))
}

fn charges(budget: &Arc<Budget>, image_bytes: u64) -> Result<Vec<Charge>, StorageError> {
    extent_lens(image_bytes)
        .map(|len| budget.take(len.next_multiple_of(PAGE_BYTES)))
        .collect()
}

/// Copies out of an image; whether all of it is there.
pub(crate) fn read_extents(extents: &[Arc<Readable>], mut offset: u64, mut out: &mut [u8]) -> bool {
    while !out.is_empty() {
        let inside = (offset % EXTENT_BYTES) as usize;
        let some = out.len().min(EXTENT_BYTES as usize - inside);
        let index = (offset / EXTENT_BYTES) as usize;
        let Some(extent) = extents
            .get(index)
            .filter(|extent| inside + some <= extent.memory().len())
        else {
            return false;
        };
        let (now, rest) = out.split_at_mut(some);
        extent.memory().read(inside, now);
        out = rest;
        offset += some as u64;
    }
    true
}

/// Header of a new segment.
pub(crate) fn header(
    number: u32,
    identity: u64,
    dataset: [u8; 16],
    epoch: u64,
    limit_bytes: u64,
) -> SegmentHeader {
    let mut header = SegmentHeader {
        magic: SEGMENT_MAGIC,
        format: MEDIA_FORMAT,
        flags: segment_flag::FULL_LENGTH,
        segment: number,
        reserved: 0,
        identity,
        dataset,
        epoch,
        limit_bytes,
        reserved2: 0,
        crc: 0,
    };
    header.crc = crc32c(&header.as_bytes()[..60]);
    header
}

/// Whether `header` is that of segment `number` of `dataset`.
pub(crate) fn check_header(
    header: &SegmentHeader,
    number: u32,
    dataset: [u8; 16],
) -> Result<(), DecodeError> {
    const WHAT: &str = "segment header";
    let range = |field, value| {
        Err(DecodeError::Range {
            what: WHAT,
            field,
            value,
        })
    };
    check_crc(WHAT, header.as_bytes(), header.crc)?;
    if header.magic != SEGMENT_MAGIC {
        return range("magic", u64::from(header.magic));
    }
    if header.format != MEDIA_FORMAT {
        return range("format", u64::from(header.format));
    }
    if header.segment != number || number == 0 {
        return range("segment", u64::from(header.segment));
    }
    if header.dataset != dataset {
        return range("dataset", 0);
    }
    if header.identity == 0 {
        return range("identity", 0);
    }
    if !(kv_proto::layout::SEGMENT_MIN_BYTES..=kv_proto::layout::SEGMENT_MAX_BYTES)
        .contains(&header.limit_bytes)
    {
        return range("limit_bytes", header.limit_bytes);
    }
    if header.flags & !segment_flag::FULL_LENGTH != 0 || header.reserved != 0 || header.reserved2 != 0 {
        return range("reserved", 1);
    }
    Ok(())
}

/// Trailer of a segment that ends at `end`, where so many FOOTERs begin, with flags of [`trailer_flag`].
pub(crate) fn trailer(
    (number, identity): (u32, u64),
    end: u64,
    footers: u32,
    sequences: Option<(u64, u64)>,
    flags: u16,
) -> SegmentTrailer {
    let (sequence_min, sequence_max) = sequences.unwrap_or_default();
    let sealed_units = (end / 64) as u32;
    let mut trailer = SegmentTrailer {
        magic: TRAILER_MAGIC,
        format: MEDIA_FORMAT,
        flags,
        segment: number,
        sealed_units,
        identity,
        footer_units: if footers == 0 { 0 } else { sealed_units },
        footer_count: footers,
        sequence_min,
        sequence_max,
        reserved: [0; 12],
        crc: 0,
    };
    seal_trailer(&mut trailer);
    trailer
}

/// Gives a trailer its CRC.
pub(crate) fn seal_trailer(trailer: &mut SegmentTrailer) {
    trailer.crc = crc32c(&trailer.as_bytes()[..60]);
}

/// Whether `trailer` seals the segment with this header in a file of `file_len` bytes.
pub(crate) fn trailer_is_valid(trailer: &SegmentTrailer, header: &SegmentHeader, file_len: u64) -> bool {
    let sealed = u64::from(trailer.sealed_units) * 64;
    let footers_begin = if trailer.footer_count == 0 {
        0
    } else {
        trailer.sealed_units
    };
    check_crc("segment trailer", trailer.as_bytes(), trailer.crc).is_ok()
        && trailer.magic == TRAILER_MAGIC
        && trailer.format == MEDIA_FORMAT
        && trailer.flags & !trailer_flag::CUT == 0
        && trailer.segment == header.segment
        && trailer.identity == header.identity
        && trailer.footer_units == footers_begin
        && sealed >= HEADER_BYTES
        && sealed <= header.limit_bytes
        && sealed + HEADER_BYTES <= file_len
        && file_len.is_multiple_of(64)
}

/// The sequences seen so far, lowest and highest.
pub(crate) fn widen(sequences: &mut Option<(u64, u64)>, sequence: u64) {
    let (low, high) = sequences.unwrap_or((sequence, sequence));
    *sequences = Some((low.min(sequence), high.max(sequence)));
}
