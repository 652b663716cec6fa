//! Every struct that a reader fetches by RDMA or that lies on a medium, and every limit: declared here and nowhere else.
//!
//! All integers are little-endian. `IntoBytes` refuses padding at compile time; the asserts below each struct fix
//! size and the offsets that other languages rely on. Reserved fields are written as zero and refused otherwise.

use core::mem::{offset_of, size_of};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Version of the control protocol that this crate speaks.
pub const PROTOCOL_VERSION: u16 = 1;
/// Version of the on-media format that this crate writes.
pub const MEDIA_FORMAT: u16 = 1;

/// Longest key, bytes. The shortest is 1.
pub const KEY_MAX_BYTES: usize = 1024;
/// Longest dataset name, bytes; the alphabet is `a-z 0-9 . _ -`.
pub const DATASET_NAME_MAX_BYTES: usize = 64;
/// Longest name of an access key, bytes.
pub const KEY_NAME_MAX_BYTES: usize = 64;
/// Length of the blocks of a value that carry a CRC32C each, bytes.
pub const BLOCK_BYTES: usize = 64 * 1024;
/// Records start at multiples of this, bytes; offsets in locators count in this unit.
pub const RECORD_ALIGN_BYTES: u64 = 64;
/// Length of one extent of a segment's image, bytes. A record that fits an extent never crosses one.
pub const EXTENT_BYTES: u64 = 64 << 20;
/// Length of a segment file unless told otherwise, bytes.
pub const SEGMENT_DEFAULT_BYTES: u64 = 1 << 30;
/// Longest segment, bytes: its row of the segment table must fit one control frame.
pub const SEGMENT_MAX_BYTES: u64 = 8 << 30;
/// Shortest segment, bytes.
pub const SEGMENT_MIN_BYTES: u64 = 1 << 20;
/// Most parts that a large value is split into.
pub const PARTS_MAX: u32 = 65_536;
/// Longest part of a large value, bytes: a value longer than the server's part length is stored in parts.
pub const PART_MAX_BYTES: u64 = 32 << 20;
/// Datasets that one session may have open: what RENEW says of each must fit one frame.
pub const DATASETS_PER_SESSION_MAX: usize = 64;
/// Operations of one client in one dataset that a server remembers, those with the highest numbers.
pub const OPERATIONS_REMEMBERED: usize = 1024;

/// Buckets of one group; a power of two.
pub const GROUP_BUCKETS: u32 = 64;
/// Slots of one bucket.
pub const BUCKET_SLOTS: usize = 10;
/// Length of one group's block, bytes.
pub const GROUP_BYTES: usize = GROUP_BUCKETS as usize * size_of::<Bucket>();
/// Greatest depth of the directory: it has `1 << depth` entries.
pub const DIRECTORY_DEPTH_MAX: u8 = 24;
/// Set in the stamp of every bucket of a group that was replaced: its keys are elsewhere.
pub const STAMP_MOVED: u32 = 1 << 31;

/// `magic` of a record: "VKR1" in memory order.
pub const RECORD_MAGIC: u32 = 0x3152_4b56;
/// `magic` of a segment header: "VKS1" in memory order.
pub const SEGMENT_MAGIC: u32 = 0x3153_4b56;
/// `magic` of a segment trailer: "VKT1" in memory order.
pub const TRAILER_MAGIC: u32 = 0x3154_4b56;
/// `magic` of a superblock: "VKD1" in memory order.
pub const SUPERBLOCK_MAGIC: u32 = 0x3144_4b56;
/// `magic` of the list of datasets: "VKA1" in memory order.
pub const CATALOGUE_MAGIC: u32 = 0x3141_4b56;
/// `magic` of a dataset's description: "VKN1" in memory order.
pub const DATASET_MAGIC: u32 = 0x314e_4b56;
/// `magic` of a checkpoint: "VKC1" in memory order.
pub const CHECKPOINT_MAGIC: u32 = 0x3143_4b56;
/// `magic` of a list of segments: "VKL1" in memory order.
pub const SEGMENT_LIST_MAGIC: u32 = 0x314c_4b56;
/// `magic` of a snapshot: "VKP1" in memory order.
pub const SNAPSHOT_MAGIC: u32 = 0x3150_4b56;
/// `magic` of the private data of a connection request: "VKH1" in memory order.
pub const CONNECT_MAGIC: u32 = 0x3148_4b56;

/// What a record is: the values of [`RecordHeader::kind`].
pub mod record_kind {
    /// A value under its key.
    pub const VALUE: u8 = 1;
    /// One part of a large value, hidden from lists.
    pub const PART: u8 = 2;
    /// Head of a large value: its parts, total length and CRC.
    pub const HEAD: u8 = 3;
    /// A key that was deleted.
    pub const TOMBSTONE: u8 = 4;
    /// Covers a gap; no key. `value_len_bytes` is the gap less the header.
    pub const FILLER: u8 = 5;
    /// Entries of a sealed segment, written once at its end.
    pub const FOOTER: u8 = 6;
}

/// What a segment is to a reader: the values of a segment row's `state`.
pub mod segment_state {
    /// Records are still appended; the image grows.
    pub const ACTIVE: u8 = 1;
    /// Never changes again; the image is whole.
    pub const SEALED: u8 = 2;
    /// The image is not there yet: ask for it with LOAD.
    pub const LOADING: u8 = 3;
    /// No image is kept: read it with STAGE.
    pub const STAGED: u8 = 4;
    /// The file is lost or cut short: what lies in it cannot be served.
    pub const LOST: u8 = 5;
    /// Retired: drop every locator into it.
    pub const RETIRED: u8 = 6;
}

/// Header of one record; the key, the block CRCs and the value follow it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RecordHeader {
    /// [`RECORD_MAGIC`].
    pub magic: u32,
    /// [`MEDIA_FORMAT`].
    pub format: u16,
    /// One of [`record_kind`].
    pub kind: u8,
    /// Zero in this format (bit 0 is kept for values sealed by the client).
    pub flags: u8,
    /// Length of the key, bytes; 0 for FILLER and FOOTER.
    pub key_len_bytes: u16,
    /// Zero.
    pub reserved: u16,
    /// Length of the value, bytes.
    pub value_len_bytes: u32,
    /// Sequence number of the operation in its dataset, given at COMMIT; a copy keeps it. A part's is its head's or lower.
    pub sequence: u64,
    /// Identity of the segment that the record was written to.
    pub segment_identity: u64,
    /// Client that wrote it, as [`crate::auth::bound_client_id`] gives it; 0 where the server wrote on its own account.
    pub client_id: u64,
    /// That client's number for the operation; 0 where the server wrote on its own account.
    pub operation: u64,
    /// Length of the segment that was durable when this was written, in units of 64 bytes.
    pub durable_units: u32,
    /// CRC32C of the value. For FILLER 0: the gap's bytes are not read.
    pub value_crc: u32,
    /// Number of the part, from 0, for PART; of the footer record, from 0, for FOOTER; for TOMBSTONE 1 if the key was
    /// there and 0 if not; else 0.
    pub part: u32,
    /// CRC32C of the header up to here, the key and the block CRCs.
    pub header_crc: u32,
}
const _: () = {
    assert!(size_of::<RecordHeader>() == 64);
    assert!(offset_of!(RecordHeader, sequence) == 16);
    assert!(offset_of!(RecordHeader, value_crc) == 52);
    assert!(offset_of!(RecordHeader, header_crc) == 60);
};

/// Flags of a [`SegmentHeader`].
pub mod segment_flag {
    /// The file has `limit_bytes` at least until a trailer ends it: a shorter one was cut.
    pub const FULL_LENGTH: u16 = 1;
}

/// Flags of a [`SegmentTrailer`].
pub mod trailer_flag {
    /// The file was found cut short, and nobody accepted that yet: what lay behind `sealed_units` is not known.
    pub const CUT: u16 = 1;
}

impl RecordHeader {
    /// The fields before the sequence, as two words.
    #[inline]
    #[must_use]
    pub(crate) const fn start(&self) -> [u64; 2] {
        [
            self.magic as u64
                | (self.format as u64) << 32
                | (self.kind as u64) << 48
                | (self.flags as u64) << 56,
            self.key_len_bytes as u64 | (self.reserved as u64) << 16 | (self.value_len_bytes as u64) << 32,
        ]
    }

    /// What [`Self::start`] is of the record of this kind that `locator` names.
    #[inline]
    #[must_use]
    pub(crate) const fn start_of(kind: u8, locator: &Locator) -> [u64; 2] {
        [
            RECORD_MAGIC as u64 | (MEDIA_FORMAT as u64) << 32 | (kind as u64) << 48,
            locator.key_len_bytes as u64 | (locator.value_len_bytes as u64) << 32,
        ]
    }
}

/// First 64 bytes of a segment file and of its image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SegmentHeader {
    /// [`SEGMENT_MAGIC`].
    pub magic: u32,
    /// [`MEDIA_FORMAT`].
    pub format: u16,
    /// Of [`segment_flag`]; a segment of an older day has none.
    pub flags: u16,
    /// Number of the segment: from the server's durable counter, never used again.
    pub segment: u32,
    /// Zero.
    pub reserved: u32,
    /// Random identity of the segment, never 0.
    pub identity: u64,
    /// Dataset that it belongs to.
    pub dataset: [u8; 16],
    /// Epoch of the server that created it.
    pub epoch: u64,
    /// Length that records may fill, bytes.
    pub limit_bytes: u64,
    /// Zero.
    pub reserved2: u32,
    /// CRC32C of the 60 bytes before.
    pub crc: u32,
}
const _: () = assert!(size_of::<SegmentHeader>() == 64);

/// Written once after the last record when a segment is sealed, at a multiple of 64 bytes; ends the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SegmentTrailer {
    /// [`TRAILER_MAGIC`].
    pub magic: u32,
    /// [`MEDIA_FORMAT`].
    pub format: u16,
    /// Of [`trailer_flag`].
    pub flags: u16,
    /// Number of the segment.
    pub segment: u32,
    /// Length of the valid records, header of the segment included, in units of 64 bytes.
    pub sealed_units: u32,
    /// Identity of the segment.
    pub identity: u64,
    /// First FOOTER record, in units of 64 bytes; 0 where the segment has none and is scanned.
    pub footer_units: u32,
    /// FOOTER records from there; 0 where the segment has none.
    pub footer_count: u32,
    /// Lowest sequence of its records; 0 where there are none.
    pub sequence_min: u64,
    /// Highest sequence of its records; 0 where there are none.
    pub sequence_max: u64,
    /// Zero.
    pub reserved: [u8; 12],
    /// CRC32C of the 60 bytes before.
    pub crc: u32,
}
const _: () = assert!(size_of::<SegmentTrailer>() == 64);

/// Start of the value of a FOOTER record and of a checkpoint's body: what follows and how many.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FooterHeader {
    /// [`FooterEntry`]s that follow.
    pub entries: u32,
    /// [`OperationEntry`]s that follow those.
    pub operations: u32,
    /// Zero.
    pub reserved: u64,
}
const _: () = assert!(size_of::<FooterHeader>() == 16);

/// One record of a sealed segment, as its footer and a checkpoint name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FooterEntry {
    /// Slot hash of the key ([`crate::hash::KeyHash::slot`]).
    pub hash: u64,
    /// The other half of the key's hash.
    pub hash_high: u64,
    /// Sequence of the record.
    pub sequence: u64,
    /// Where it lies, in units of 64 bytes.
    pub offset_units: u32,
    /// Length of its value, bytes.
    pub value_len_bytes: u32,
    /// Number of the part, for PART.
    pub part: u32,
    /// Length of its key, bytes.
    pub key_len_bytes: u16,
    /// One of [`record_kind`].
    pub kind: u8,
    /// Zero.
    pub reserved: u8,
}
const _: () = assert!(size_of::<FooterEntry>() == 40);

/// One operation of a client that the server remembers; or, with sequence 0 and no locator, the highest number of a
/// client that it has forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct OperationEntry {
    /// The client, as [`RecordHeader::client_id`] has it.
    pub client_id: u64,
    /// Its number for the operation.
    pub operation: u64,
    /// Sequence that the operation got; 0 where this and the lower numbers that are not listed were forgotten.
    pub sequence: u64,
    /// Where the VALUE or HEAD lies that a put wrote. Of a delete all zero, but `offset_units` 1 if the key was there.
    pub locator: Locator,
}
const _: () = assert!(size_of::<OperationEntry>() == 40);

/// First 64 bytes of each chunk of an active segment's checkpoint; a [`FooterHeader`] and its entries follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CheckpointHeader {
    /// [`CHECKPOINT_MAGIC`].
    pub magic: u32,
    /// [`MEDIA_FORMAT`].
    pub format: u16,
    /// Zero.
    pub flags: u16,
    /// Segment that it describes.
    pub segment: u32,
    /// The records before this are described, in units of 64 bytes.
    pub covered_units: u32,
    /// Identity of the segment.
    pub identity: u64,
    /// Length of what follows, bytes.
    pub body_len_bytes: u64,
    /// Highest sequence that the dataset had given.
    pub sequence_max: u64,
    /// The records before this are described by earlier chunks, in units of 64 bytes.
    pub from_units: u32,
    /// Zero.
    pub reserved: [u8; 12],
    /// CRC32C of what follows.
    pub body_crc: u32,
    /// CRC32C of the 60 bytes before.
    pub crc: u32,
}
const _: () = assert!(size_of::<CheckpointHeader>() == 64);

/// First 128 bytes of a snapshot; `count` [`SnapshotEntry`]s follow, then one CRC32C per 64 KiB of those.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SnapshotHeader {
    /// [`SNAPSHOT_MAGIC`].
    pub magic: u32,
    /// [`MEDIA_FORMAT`].
    pub format: u16,
    /// Length of the name, bytes.
    pub name_len_bytes: u16,
    /// Generation of the table: compaction may write a new one.
    pub generation: u64,
    /// Dataset that it is of.
    pub dataset: [u8; 16],
    /// Sequence number that it shows.
    pub sequence: u64,
    /// Entries that follow.
    pub count: u64,
    /// Name; zero after its length.
    pub name: [u8; 64],
    /// Zero.
    pub reserved: [u8; 8],
    /// Zero.
    pub reserved2: u32,
    /// CRC32C of the 124 bytes before.
    pub crc: u32,
}
const _: () = assert!(size_of::<SnapshotHeader>() == 128);

/// One value of a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SnapshotEntry {
    /// Where the record lies.
    pub locator: Locator,
}

/// Where a record lies, within its dataset: no address and no rkey, so it outlives restarts and evictions.
///
/// All zero (segment 0) names nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Locator {
    /// Segment; never 0 in a locator that names a record.
    pub segment: u32,
    /// Offset in the segment, in units of 64 bytes.
    pub offset_units: u32,
    /// Length of the record's value, bytes; of the head's own value where the value is large.
    pub value_len_bytes: u32,
    /// Length of the key, bytes.
    pub key_len_bytes: u16,
    /// [`crate::hash::KeyHash::tag`] of the key.
    pub tag: u16,
}
const _: () = assert!(size_of::<Locator>() == 16);

/// A locator with its dataset: what leaves the library.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct GlobalLocator {
    /// Random id of the dataset.
    pub dataset: [u8; 16],
    /// Where in it.
    pub locator: Locator,
}
const _: () = assert!(size_of::<GlobalLocator>() == 32);

/// Start of the value of a HEAD record; `part_count` [`PartRef`]s follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct HeadValue {
    /// Length of the whole value, bytes.
    pub total_len_bytes: u64,
    /// Length of every part but the last, bytes.
    pub part_len_bytes: u32,
    /// Parts.
    pub part_count: u32,
    /// CRC32C of the whole value.
    pub total_crc: u32,
    /// Zero.
    pub reserved: u32,
}
const _: () = assert!(size_of::<HeadValue>() == 24);

/// Where one part of a large value lies. Its key is the head's; its length follows from its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PartRef {
    /// Segment.
    pub segment: u32,
    /// Offset, in units of 64 bytes.
    pub offset_units: u32,
}
const _: () = assert!(size_of::<PartRef>() == 8);

/// One key of a bucket. Empty where `locator.segment` is 0; an empty slot is all zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Slot {
    /// Slot hash of the key ([`crate::hash::KeyHash::slot`]).
    pub hash: u64,
    /// Where its record lies.
    pub locator: Locator,
}
const _: () = assert!(size_of::<Slot>() == 24);

/// The unit of lookup: 256 bytes, read by clients, written by one writer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Bucket {
    /// [`crate::bucket::IndexScope::bucket_checksum`].
    pub checksum: u64,
    /// The group's stamp; [`STAMP_MOVED`] is set once it was replaced.
    pub stamp: u32,
    /// Depth in the top 8 bits, prefix (the first `depth` bits of [`crate::hash::position`]) in the others.
    pub depth_prefix: u32,
    /// Its keys, in no order.
    pub slots: [Slot; BUCKET_SLOTS],
}
const _: () = assert!(size_of::<Bucket>() == 256);

/// One entry of the directory: where the group of one hash prefix lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DirectoryEntry {
    /// [`crate::bucket::IndexScope::directory_checksum`].
    pub checksum: u64,
    /// Address of the group's block.
    pub address: u64,
    /// Rkey for it.
    pub rkey: u32,
    /// Number of the group, never used again in this epoch.
    pub group: u32,
    /// Stamp that its buckets carry.
    pub stamp: u32,
    /// Depth in the top 8 bits, prefix in the others, as in its buckets.
    pub depth_prefix: u32,
}
const _: () = assert!(size_of::<DirectoryEntry>() == 32);

/// The file `superblock` of a data directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Superblock {
    /// [`SUPERBLOCK_MAGIC`].
    pub magic: u32,
    /// [`MEDIA_FORMAT`].
    pub format: u16,
    /// Zero.
    pub flags: u16,
    /// Random id of the server's data.
    pub server: [u8; 16],
    /// Epoch: one more at every start.
    pub epoch: u64,
    /// Every segment number below this may have been used.
    pub segment_next: u32,
    /// Zero.
    pub reserved: [u8; 24],
    /// CRC32C of the 60 bytes before.
    pub crc: u32,
}
const _: () = assert!(size_of::<Superblock>() == 64);

/// The file `dataset` in a dataset's directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DatasetDescription {
    /// [`DATASET_MAGIC`].
    pub magic: u32,
    /// [`MEDIA_FORMAT`].
    pub format: u16,
    /// Length of the name, bytes.
    pub name_len_bytes: u16,
    /// Random id.
    pub dataset: [u8; 16],
    /// Key of its key hash.
    pub hash_key: [u8; 16],
    /// Name; zero after its length.
    pub name: [u8; 64],
    /// Limit of its segments, bytes.
    pub segment_bytes: u64,
    /// Longest part of a large value, bytes.
    pub part_bytes: u64,
    /// Zero.
    pub reserved: u32,
    /// CRC32C of the 124 bytes before.
    pub crc: u32,
}
const _: () = assert!(size_of::<DatasetDescription>() == 128);

/// Start of the file `catalogue`; `count` times a [`DatasetDescription`] follow, ordered by their ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CatalogueHeader {
    /// [`CATALOGUE_MAGIC`].
    pub magic: u32,
    /// [`MEDIA_FORMAT`].
    pub format: u16,
    /// Zero.
    pub flags: u16,
    /// Descriptions that follow.
    pub count: u32,
    /// CRC32C of the 12 bytes before and of the descriptions.
    pub crc: u32,
}
const _: () = assert!(size_of::<CatalogueHeader>() == 16 && offset_of!(CatalogueHeader, crc) == 12);

/// Start of the file `segments` in a dataset's directory; `count` numbers of 4 bytes follow, growing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SegmentListHeader {
    /// [`SEGMENT_LIST_MAGIC`].
    pub magic: u32,
    /// [`MEDIA_FORMAT`].
    pub format: u16,
    /// Zero.
    pub flags: u16,
    /// Dataset that it is of.
    pub dataset: [u8; 16],
    /// Numbers that follow.
    pub count: u32,
    /// CRC32C of the 28 bytes before and of the numbers.
    pub crc: u32,
}
const _: () = assert!(size_of::<SegmentListHeader>() == 32 && offset_of!(SegmentListHeader, crc) == 28);

/// Private data of a connection request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ConnectRequest {
    /// [`CONNECT_MAGIC`].
    pub magic: u32,
    /// [`PROTOCOL_VERSION`] or older.
    pub version: u16,
    /// [`connect_kind`].
    pub kind: u8,
    /// Zero.
    pub reserved: u8,
    /// The session, for a data connection; else 0.
    pub session: u64,
    /// One-time token, for a data connection; else zero.
    pub token: [u8; 16],
}
const _: () = assert!(size_of::<ConnectRequest>() == 32);

/// Values of [`ConnectRequest::kind`].
pub mod connect_kind {
    /// The control connection that begins a session.
    pub const CONTROL: u8 = 1;
    /// A data connection of a session.
    pub const DATA: u8 = 2;
}

/// Rounds `len_bytes` up to a whole number of 64-byte units, counted in units.
#[must_use]
pub const fn units(len_bytes: u64) -> u64 {
    len_bytes.div_ceil(RECORD_ALIGN_BYTES)
}

/// Blocks of a value that carry a CRC of their own: none up to [`BLOCK_BYTES`].
#[inline]
#[must_use]
pub const fn block_count(value_len_bytes: u64) -> u64 {
    /// Apart, so that the others do not pay for it.
    #[cold]
    const fn blocks(value_len_bytes: u64) -> u64 {
        value_len_bytes.div_ceil(BLOCK_BYTES as u64)
    }
    if value_len_bytes <= BLOCK_BYTES as u64 {
        0
    } else {
        blocks(value_len_bytes)
    }
}

/// Bytes of a record before its value: header, key and block CRCs.
#[inline]
#[must_use]
pub const fn prefix_len(key_len_bytes: u64, value_len_bytes: u64) -> u64 {
    size_of::<RecordHeader>() as u64 + key_len_bytes + 4 * block_count(value_len_bytes)
}

/// Bytes of a record on the wire: all of it, without what pads it to its alignment.
#[inline]
#[must_use]
pub const fn wire_len(key_len_bytes: u64, value_len_bytes: u64) -> u64 {
    prefix_len(key_len_bytes, value_len_bytes) + value_len_bytes
}

impl Locator {
    /// Bytes of the record before its value.
    #[inline]
    #[must_use]
    pub const fn prefix_len_bytes(&self) -> u64 {
        prefix_len(self.key_len_bytes as u64, self.value_len_bytes as u64)
    }

    /// Bytes of the whole record on the wire.
    #[inline]
    #[must_use]
    pub const fn wire_len_bytes(&self) -> u64 {
        wire_len(self.key_len_bytes as u64, self.value_len_bytes as u64)
    }

    /// Offset of the record in its segment, bytes.
    #[inline]
    #[must_use]
    pub const fn offset_bytes(&self) -> u64 {
        self.offset_units as u64 * RECORD_ALIGN_BYTES
    }
}

/// Packs depth and prefix as buckets and directory entries carry them.
#[must_use]
pub const fn depth_prefix(depth: u8, prefix: u32) -> u32 {
    (depth as u32) << 24 | (prefix & 0x00ff_ffff)
}

/// Whether `name` may name a dataset: `[a-z0-9._-]{1,64}`.
#[must_use]
pub fn dataset_name_is_valid(name: &[u8]) -> bool {
    (1..=DATASET_NAME_MAX_BYTES).contains(&name.len())
        && name
            .iter()
            .all(|c| matches!(c, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-'))
}
