//! Control frames: what a session says that is not a READ.
//!
//! A frame is a [`FrameHeader`] and its payload, at most [`FRAME_MAX_BYTES`] in one SEND. Each request gets one
//! answer with its number; nothing else is ever sent, so a side never has more frames to receive than it has
//! requests (or receives) outstanding. Integers are little-endian; byte strings carry a `u16` length, lists a `u16`
//! count. Every decoder takes any bytes without panicking and refuses what is left over.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::DecodeError;
use crate::layout::{DIRECTORY_DEPTH_MAX, Locator};

/// Longest frame, header included, bytes.
pub const FRAME_MAX_BYTES: usize = 4096;
/// Length of a frame's header, bytes.
pub const FRAME_HEADER_BYTES: usize = 16;
/// Set in the kind of an answer.
pub const ANSWER: u8 = 0x80;
/// Kind of HELLO: the one frame whose layout never changes, whatever the version.
pub const HELLO_KIND: u8 = 1;
/// Receives that a side posts for frames, and so requests that may be outstanding, unless HELLO says fewer.
pub const RECEIVES_DEFAULT: u16 = 32;

/// First 16 bytes of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FrameHeader {
    /// What it asks; with [`ANSWER`] set, what it answers.
    pub kind: u8,
    /// Protocol version agreed in HELLO; in HELLO itself not looked at, since its layout never changes.
    pub version: u8,
    /// [`Status`] of an answer; 0 in a request.
    pub status: u16,
    /// Length of the payload, bytes.
    pub payload_len_bytes: u32,
    /// Number of the request, chosen by the client; its answer repeats it.
    pub request: u64,
}
const _: () = assert!(size_of::<FrameHeader>() == FRAME_HEADER_BYTES);

/// Outcome of a request: the `status` of its answer. Numbers are never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u16)]
#[allow(missing_docs, reason = "each is said in PROTOCOL.md's table and by its text")]
pub enum Status {
    Ok = 0,
    BadFrame = 1,
    Version = 2,
    AuthFailed = 3,
    Forbidden = 4,
    NoDataset = 5,
    Exists = 6,
    BadName = 7,
    BadKey = 8,
    TooLarge = 9,
    Busy = 10,
    NoSpace = 11,
    NoMemory = 12,
    Unknown = 13,
    NotFound = 14,
    Io = 15,
    Crc = 16,
    Stale = 17,
    Limit = 18,
    Unsupported = 19,
    ShuttingDown = 20,
    Order = 21,
}

impl Status {
    /// All of them, in order of their numbers.
    pub const ALL: [Self; 22] = [
        Self::Ok,
        Self::BadFrame,
        Self::Version,
        Self::AuthFailed,
        Self::Forbidden,
        Self::NoDataset,
        Self::Exists,
        Self::BadName,
        Self::BadKey,
        Self::TooLarge,
        Self::Busy,
        Self::NoSpace,
        Self::NoMemory,
        Self::Unknown,
        Self::NotFound,
        Self::Io,
        Self::Crc,
        Self::Stale,
        Self::Limit,
        Self::Unsupported,
        Self::ShuttingDown,
        Self::Order,
    ];

    /// The status with this number.
    #[must_use]
    pub fn from_wire(value: u16) -> Option<Self> {
        Self::ALL.get(usize::from(value)).copied()
    }

    /// What it means, in words for a person.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::Ok => "done",
            Self::BadFrame => "the frame is malformed",
            Self::Version => "no protocol version in common",
            Self::AuthFailed => "the key is unknown or its proof is wrong",
            Self::Forbidden => "the key may not do this",
            Self::NoDataset => "there is no such dataset",
            Self::Exists => "a dataset of this name exists",
            Self::BadName => "a dataset's name is 1 to 64 of a-z 0-9 . _ -",
            Self::BadKey => "a key has 1 to 1024 bytes",
            Self::TooLarge => "the value is longer than the server takes",
            Self::Busy => "the server is busy: ask again",
            Self::NoSpace => "the server's disk is full",
            Self::NoMemory => "the server's memory budget is reached",
            Self::Unknown => "the outcome of this operation is not known any more",
            Self::NotFound => "there is no such key",
            Self::Io => "the server's storage failed",
            Self::Crc => "the bytes that arrived do not have the CRC that was announced",
            Self::Stale => "what was named is not there any more",
            Self::Limit => "a limit of the server is reached",
            Self::Unsupported => "the server does not do this",
            Self::ShuttingDown => "the server is shutting down",
            Self::Order => "the frame is out of order",
        }
    }
}

/// Writes fields of a payload.
trait Wire: Sized {
    fn put(&self, out: &mut Vec<u8>);
    fn take(reader: &mut Reader<'_>) -> Result<Self, DecodeError>;
}

struct Reader<'a> {
    what: &'static str,
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    fn slice(&mut self, need: usize) -> Result<&'a [u8], DecodeError> {
        let short = DecodeError::Short {
            what: self.what,
            need,
            have: self.bytes.len(),
        };
        let (head, rest) = self.bytes.split_at_checked(need).ok_or(short)?;
        self.bytes = rest;
        Ok(head)
    }
}

macro_rules! wire_int {
    ($($int:ty),*) => {$(
        impl Wire for $int {
            fn put(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }
            fn take(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
                let mut bytes = [0; size_of::<Self>()];
                bytes.copy_from_slice(reader.slice(size_of::<Self>())?);
                Ok(Self::from_le_bytes(bytes))
            }
        }
    )*};
}
wire_int!(u8, u16, u32, u64);

impl<const N: usize> Wire for [u8; N] {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self);
    }
    fn take(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(reader.slice(N)?);
        Ok(bytes)
    }
}

/// A byte string with a `u16` length before it on the wire.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Bytes(pub Vec<u8>);

impl From<&[u8]> for Bytes {
    fn from(bytes: &[u8]) -> Self {
        Self(bytes.to_vec())
    }
}

impl Wire for Bytes {
    fn put(&self, out: &mut Vec<u8>) {
        (self.0.len() as u16).put(out);
        out.extend_from_slice(&self.0);
    }
    fn take(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let len = usize::from(u16::take(reader)?);
        Ok(Self(reader.slice(len)?.to_vec()))
    }
}

impl<T: Wire> Wire for Vec<T> {
    fn put(&self, out: &mut Vec<u8>) {
        (self.len() as u16).put(out);
        self.iter().for_each(|item| item.put(out));
    }
    fn take(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let count = usize::from(u16::take(reader)?);
        // Each item takes at least one byte, so what is left bounds the allocation.
        let mut items = Self::with_capacity(count.min(reader.bytes.len()));
        for _ in 0..count {
            items.push(T::take(reader)?);
        }
        Ok(items)
    }
}

impl Wire for Locator {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.as_bytes());
    }
    fn take(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let bytes = reader.slice(size_of::<Self>())?;
        Self::read_from_bytes(bytes).map_err(|_| DecodeError::Short {
            what: reader.what,
            need: size_of::<Self>(),
            have: bytes.len(),
        })
    }
}

macro_rules! wire_struct {
    ($($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident : $ty:ty),* $(,)? })*) => {
        /// Structs inside payloads: name and fields with their types, in order, as [`Request::SCHEMA`] has frames.
        pub const WIRE_STRUCTS: &[(&str, &[(&str, &str)])] =
            &[$((stringify!($name), &[$((stringify!($field), stringify!($ty))),*])),*];
        $(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct $name { $($(#[$field_doc])* pub $field: $ty),* }
        impl Wire for $name {
            fn put(&self, out: &mut Vec<u8>) {
                let _ = &out;
                $(self.$field.put(out);)*
            }
            fn take(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
                let _ = &reader;
                Ok(Self { $($field: <$ty as Wire>::take(reader)?),* })
            }
        }
        )*
    };
}

wire_struct! {
    /// An address in the server's registered memory and the rkey for it.
    RemoteAddress {
        /// Address, or offset on fabrics that have no addresses.
        address: u64,
        /// Rkey.
        rkey: u32,
    }
    /// Where the directory of an index lies: `1 << depth` entries from `at`.
    DirectoryRef {
        /// First entry.
        at: RemoteAddress,
        /// Version: a new one is another block.
        version: u64,
        /// Depth.
        depth: u8,
    }
    /// One row of the segment table.
    SegmentRow {
        /// Number of the segment.
        segment: u32,
        /// Its identity.
        identity: u64,
        /// Generation of its image: another one lies elsewhere.
        generation: u32,
        /// One of `segment_state`.
        state: u8,
        /// Length that may be read, in units of 64 bytes; for an ACTIVE one, the length when the row was made.
        length_units: u32,
        /// Extents of the image, in order.
        extents: Vec<RemoteAddress>,
    }
    /// Entries of a directory that changed in place.
    DirectoryRange {
        /// First entry.
        first: u32,
        /// How many.
        count: u32,
    }
    /// What changed in one dataset since the number that RENEW acknowledged.
    DatasetChange {
        /// The dataset.
        dataset: [u8; 16],
        /// [`change_flag`]s.
        flags: u8,
        /// Its directory now.
        directory: DirectoryRef,
        /// Entries to read again.
        ranges: Vec<DirectoryRange>,
        /// Rows that changed; RETIRED ones are to be dropped.
        rows: Vec<SegmentRow>,
    }
    /// One key of a list.
    ListEntry {
        /// The key.
        key: Bytes,
        /// Length of the whole value, bytes.
        value_len_bytes: u64,
        /// Where its record lies.
        locator: Locator,
    }
    /// One figure of STAT.
    StatItem {
        /// What it is; `unit` is its name's last word.
        name: Bytes,
        /// Its value.
        value: u64,
    }
    /// One dataset of a list.
    DatasetItem {
        /// Its name.
        name: Bytes,
        /// Its id.
        dataset: [u8; 16],
        /// Keys in it.
        keys: u64,
        /// Bytes of all values in it.
        value_bytes: u64,
    }
    /// One snapshot of a list.
    SnapshotItem {
        /// Its name.
        name: Bytes,
        /// Its generation.
        generation: u64,
        /// Sequence that it shows.
        sequence: u64,
        /// Values in it.
        count: u64,
    }
}

/// Flags of [`DatasetChange::flags`].
pub mod change_flag {
    /// Drop the whole segment table and ask for it again.
    pub const TABLE: u8 = 1;
    /// Read the whole directory again.
    pub const DIRECTORY: u8 = 2;
    /// The dataset was dropped.
    pub const DROPPED: u8 = 4;
    /// A snapshot has a new table generation: list them again, and open again those that are in use.
    pub const SNAPSHOTS: u8 = 8;
}

macro_rules! frames {
    ($enum:ident, $what:literal; $($(#[$doc:meta])* $name:ident = $kind:literal { $($(#[$field_doc:meta])* $field:ident : $ty:ty),* $(,)? })*) => {
        #[doc = concat!("Payload of ", $what, ".")]
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum $enum {
            $($(#[$doc])* $name { $($(#[$field_doc])* $field: $ty),* }),*
        }

        impl $enum {
            /// Kind, name and fields with their types, in order: what PROTOCOL.md's tables are held to.
            pub const SCHEMA: &'static [(u8, &'static str, &'static [(&'static str, &'static str)])] =
                &[$(($kind, stringify!($name), &[$((stringify!($field), stringify!($ty))),*])),*];

            /// Its kind, without [`ANSWER`].
            #[must_use]
            pub const fn kind(&self) -> u8 {
                match self { $(Self::$name { .. } => $kind),* }
            }

            /// Its name.
            #[must_use]
            pub const fn name(&self) -> &'static str {
                match self { $(Self::$name { .. } => stringify!($name)),* }
            }

            fn put_payload(&self, out: &mut Vec<u8>) {
                match self { $(Self::$name { $($field),* } => { let _ = &out; $($field.put(out);)* }),* }
            }

            fn take_payload(kind: u8, bytes: &[u8]) -> Result<Self, DecodeError> {
                let mut reader = Reader { what: $what, bytes };
                let decoded = match kind {
                    $($kind => { reader.what = stringify!($name); Self::$name { $($field: <$ty as Wire>::take(&mut reader)?),* } })*
                    _ => return Err(DecodeError::Range { what: $what, field: "kind", value: u64::from(kind) }),
                };
                if reader.bytes.is_empty() {
                    Ok(decoded)
                } else {
                    Err(DecodeError::Trailing { what: reader.what, extra: reader.bytes.len() })
                }
            }
        }
    };
}

frames! { Request, "request";
    /// Begins a session.
    Hello = 1 {
        /// Oldest version spoken.
        version_min: u16,
        /// Newest version spoken.
        version_max: u16,
        /// Receives posted: answers that may be under way.
        receives: u16,
        /// Id of the client, random, kept over reconnects.
        client_id: u64,
        /// Random.
        nonce: [u8; 32],
        /// Name of the key that it will prove.
        key_name: Bytes,
    }
    /// Proves the key.
    Auth = 2 { /** Proof of the client. */ proof: [u8; 32] }
    /// Opens a dataset.
    Open = 3 { /** Its name. */ name: Bytes }
    /// Closes a dataset: nothing of it is cached any more.
    Close = 4 { /** The dataset. */ dataset: [u8; 16] }
    /// Asks for rows of the segment table.
    Table = 5 { /** The dataset. */ dataset: [u8; 16], /** First segment wanted. */ first: u32 }
    /// Asks for tokens of data connections.
    Tokens = 6 { /** The dataset. */ dataset: [u8; 16], /** How many. */ count: u16 }
    /// Looks a key up on the server.
    Lookup = 7 { /** The dataset. */ dataset: [u8; 16], /** The key. */ key: Bytes }
    /// Asks for a window to put a value.
    Alloc = 8 {
        /// The dataset.
        dataset: [u8; 16],
        /// The client's number for this operation; a retry repeats it.
        operation: u64,
        /// Length of the whole value, bytes.
        value_len_bytes: u64,
        /// The key.
        key: Bytes,
    }
    /// The window was written from its start: take it, it is written again next.
    Append = 9 { /** The operation. */ operation: u64, /** Bytes written. */ len_bytes: u32 }
    /// The last window was written: store the value.
    Commit = 10 {
        /// The operation.
        operation: u64,
        /// Bytes in the last window.
        len_bytes: u32,
        /// CRC32C of the whole value.
        value_crc: u32,
    }
    /// Gives the window of an operation back.
    Abort = 11 { /** The operation. */ operation: u64 }
    /// Deletes a key.
    Delete = 12 { /** The dataset. */ dataset: [u8; 16], /** The client's number. */ operation: u64, /** The key. */ key: Bytes }
    /// Lists keys in the order of their slot hashes.
    List = 13 {
        /// The dataset.
        dataset: [u8; 16],
        /// Lowest slot hash wanted; 0 to begin.
        cursor: u64,
        /// Most entries wanted.
        limit: u16,
    }
    /// Asks for figures: of a dataset, or of the server where it is all zero.
    Stat = 14 { /** The dataset or zeroes. */ dataset: [u8; 16] }
    /// Renews the lease and acknowledges retirements.
    Renew = 15 { /** Everything retired up to here was dropped and no READ to it is in flight. */ retired: u64 }
    /// Asks for a segment's image.
    Load = 16 { /** The dataset. */ dataset: [u8; 16], /** The segment. */ segment: u32 }
    /// Asks for blocks of a record that has no image.
    Stage = 17 {
        /// The dataset.
        dataset: [u8; 16],
        /// The record.
        locator: Locator,
        /// First block.
        first_block: u32,
        /// Blocks.
        block_count: u32,
    }
    /// Gives staged blocks back.
    Release = 18 { /** The grant. */ grant: u64 }
    /// Creates a dataset.
    Create = 19 { /** Its name. */ name: Bytes }
    /// Drops a dataset and all in it.
    Drop = 20 { /** Its name. */ name: Bytes }
    /// Renames a dataset.
    Rename = 21 { /** From. */ from: Bytes, /** To. */ to: Bytes }
    /// Lists datasets that the key may open, in order of their names.
    Datasets = 22 { /** Names after this one; empty to begin. */ after: Bytes }
    /// Names the present state of a dataset.
    SnapshotCreate = 23 { /** The dataset. */ dataset: [u8; 16], /** Its name. */ name: Bytes }
    /// Forgets a snapshot.
    SnapshotDrop = 24 { /** The dataset. */ dataset: [u8; 16], /** Its name. */ name: Bytes }
    /// Lists snapshots in order of their names.
    Snapshots = 25 { /** The dataset. */ dataset: [u8; 16], /** Names after this one. */ after: Bytes }
    /// Opens a snapshot's table for bulk READs.
    SnapshotOpen = 26 { /** The dataset. */ dataset: [u8; 16], /** Its name. */ name: Bytes }
    /// Ends the session.
    Bye = 27 {}
}

frames! { Answer, "answer";
    /// The server's half of the challenge.
    Hello = 1 {
        /// Version chosen.
        version: u16,
        /// Receives posted: requests that may be outstanding.
        receives: u16,
        /// Role of the key.
        role: u8,
        /// Epoch of the server.
        epoch: u64,
        /// Random.
        nonce: [u8; 32],
    }
    /// The session stands.
    Auth = 2 {
        /// Proof of the server.
        proof: [u8; 32],
        /// Number of the session.
        session: u64,
        /// Lease, from the first send of the request that renewed it, ms.
        lease_ms: u32,
        /// Longest lag of an acknowledgement or hold of a grant, ms.
        max_lag_ms: u32,
        /// Data connections that this session may have.
        data_connections: u16,
        /// Start of the staging memory; rkey 0 for a session that may not write.
        staging: RemoteAddress,
        /// Length of the staging memory, bytes.
        staging_len_bytes: u32,
    }
    /// The dataset is open.
    Open = 3 {
        /// Its id.
        dataset: [u8; 16],
        /// Key of its key hash.
        hash_key: [u8; 16],
        /// Number of the latest retirement.
        retired: u64,
        /// Its directory.
        directory: DirectoryRef,
        /// Longest part of a large value, bytes.
        part_bytes: u64,
    }
    /// Closed.
    Close = 4 {}
    /// Rows of the segment table.
    Table = 5 { /** Rows, by number. */ rows: Vec<SegmentRow>, /** First segment of the next page; 0 at the end. */ next: u32 }
    /// Tokens of data connections.
    Tokens = 6 { /** Each good for one connection. */ tokens: Vec<[u8; 16]> }
    /// The key is there.
    Lookup = 7 { /** Where its record lies. */ locator: Locator }
    /// A window, or the outcome of an operation that was done before.
    Alloc = 8 {
        /// 1 where the operation was done before; then there is no window.
        done: u8,
        /// Offset of the window in the staging memory, bytes.
        window_offset: u32,
        /// Its length, bytes; 0 for an empty value.
        window_len_bytes: u32,
        /// Sequence that the operation got, where done.
        sequence: u64,
        /// Where its record lies, where done.
        locator: Locator,
    }
    /// Taken.
    Append = 9 {}
    /// Durable and visible.
    Commit = 10 { /** Sequence of the operation. */ sequence: u64, /** Where its record lies. */ locator: Locator }
    /// Given back.
    Abort = 11 {}
    /// Durable and visible.
    Delete = 12 { /** 1 if the key was there. */ existed: u8, /** Sequence of the operation. */ sequence: u64 }
    /// Keys.
    List = 13 { /** Keys. */ entries: Vec<ListEntry>, /** Cursor of the next page. */ cursor: u64, /** 1 at the end. */ done: u8 }
    /// Figures.
    Stat = 14 { /** Figures. */ items: Vec<StatItem> }
    /// The lease is renewed.
    Renew = 15 {
        /// Number of the latest retirement.
        retired: u64,
        /// Lease from the first send of the request, ms.
        lease_ms: u32,
        /// What changed.
        changes: Vec<DatasetChange>,
    }
    /// The segment's row as it is now.
    Load = 16 { /** Its row. */ row: SegmentRow }
    /// Blocks that were staged.
    Stage = 17 {
        /// Number of the grant.
        grant: u64,
        /// Header, key and block CRCs, then the blocks.
        at: RemoteAddress,
        /// Length of header, key and block CRCs, bytes.
        prefix_len_bytes: u32,
        /// First block.
        first_block: u32,
        /// Blocks granted: a prefix of those asked for.
        block_count: u32,
    }
    /// Given back.
    Release = 18 {}
    /// Created.
    Create = 19 { /** Its id. */ dataset: [u8; 16] }
    /// Dropped.
    Drop = 20 {}
    /// Renamed.
    Rename = 21 {}
    /// Datasets.
    Datasets = 22 { /** Datasets. */ items: Vec<DatasetItem>, /** 1 at the end. */ done: u8 }
    /// Created.
    SnapshotCreate = 23 { /** Its generation. */ generation: u64, /** Sequence that it shows. */ sequence: u64 }
    /// Dropped.
    SnapshotDrop = 24 {}
    /// Snapshots.
    Snapshots = 25 { /** Snapshots. */ items: Vec<SnapshotItem>, /** 1 at the end. */ done: u8 }
    /// Where the snapshot's table lies.
    SnapshotOpen = 26 {
        /// First byte of its header.
        at: RemoteAddress,
        /// Length of header, entries and CRCs, bytes.
        len_bytes: u64,
        /// Generation of the table.
        generation: u64,
    }
    /// The session is over.
    Bye = 27 {}
}

/// Appends a request frame to `out`, which is cleared first.
///
/// # Errors
/// [`DecodeError::Range`] if the frame would be longer than [`FRAME_MAX_BYTES`]; `out` is empty then.
pub fn encode_request(request: u64, payload: &Request, out: &mut Vec<u8>) -> Result<(), DecodeError> {
    encode(payload.kind(), 0, request, out, |out| payload.put_payload(out))
}

/// Appends an answer frame to `out`, which is cleared first.
///
/// # Errors
/// As [`encode_request`].
pub fn encode_answer(request: u64, payload: &Answer, out: &mut Vec<u8>) -> Result<(), DecodeError> {
    encode(payload.kind() | ANSWER, Status::Ok as u16, request, out, |out| {
        payload.put_payload(out)
    })
}

/// Appends an answer that says why a request of `kind` was refused to `out`, which is cleared first.
///
/// `text` is cut to what a frame holds.
pub fn encode_refusal(request: u64, kind: u8, status: Status, text: &str, out: &mut Vec<u8>) {
    let cut = &text.as_bytes()[..text.len().min(REFUSAL_TEXT_MAX_BYTES)];
    let fits = encode(kind | ANSWER, status as u16, request, out, |out| {
        Bytes::from(cut).put(out)
    });
    debug_assert!(fits.is_ok());
}

/// Longest text of a refusal, bytes.
pub const REFUSAL_TEXT_MAX_BYTES: usize = 512;

fn encode(
    kind: u8,
    status: u16,
    request: u64,
    out: &mut Vec<u8>,
    payload: impl FnOnce(&mut Vec<u8>),
) -> Result<(), DecodeError> {
    out.clear();
    out.resize(FRAME_HEADER_BYTES, 0);
    payload(out);
    if out.len() > FRAME_MAX_BYTES {
        let value = out.len() as u64;
        out.clear();
        return Err(DecodeError::Range {
            what: "frame",
            field: "payload_len_bytes",
            value,
        });
    }
    let header = FrameHeader {
        kind,
        version: crate::layout::PROTOCOL_VERSION as u8,
        status,
        payload_len_bytes: (out.len() - FRAME_HEADER_BYTES) as u32,
        request,
    };
    out[..FRAME_HEADER_BYTES].copy_from_slice(header.as_bytes());
    Ok(())
}

/// Header and payload bytes of a frame whose length is as its header says.
///
/// # Errors
/// [`DecodeError`] if it is short, long, or longer than [`FRAME_MAX_BYTES`].
pub fn split_frame(frame: &[u8]) -> Result<(FrameHeader, &[u8]), DecodeError> {
    const WHAT: &str = "frame";
    if frame.len() > FRAME_MAX_BYTES {
        return Err(DecodeError::Range {
            what: WHAT,
            field: "payload_len_bytes",
            value: frame.len() as u64,
        });
    }
    let (header, payload) = FrameHeader::read_from_prefix(frame).map_err(|_| DecodeError::Short {
        what: WHAT,
        need: FRAME_HEADER_BYTES,
        have: frame.len(),
    })?;
    let need = header.payload_len_bytes as usize;
    if payload.len() < need {
        return Err(DecodeError::Short {
            what: WHAT,
            need,
            have: payload.len(),
        });
    }
    if payload.len() > need {
        return Err(DecodeError::Trailing {
            what: WHAT,
            extra: payload.len() - need,
        });
    }
    Ok((header, payload))
}

/// Refuses a frame of another version; HELLO passes, for it is what agrees on one.
fn check_version(header: &FrameHeader, what: &'static str) -> Result<(), DecodeError> {
    if header.kind & !ANSWER == HELLO_KIND || u16::from(header.version) == crate::layout::PROTOCOL_VERSION {
        return Ok(());
    }
    Err(DecodeError::Range {
        what,
        field: "version",
        value: u64::from(header.version),
    })
}

/// The request in a frame that a client sent.
///
/// # Errors
/// [`DecodeError`] if it is no request.
pub fn decode_request(frame: &[u8]) -> Result<(FrameHeader, Request), DecodeError> {
    let (header, payload) = split_frame(frame)?;
    check_version(&header, "request")?;
    if header.status != 0 {
        return Err(DecodeError::Range {
            what: "request",
            field: "status",
            value: u64::from(header.status),
        });
    }
    Ok((header, Request::take_payload(header.kind, payload)?))
}

/// Refuses a directory deeper than there are: who takes the answer sizes memory and shifts by the depth.
fn check_directories(answer: &Answer) -> Result<(), DecodeError> {
    let check = |directory: &DirectoryRef| {
        if directory.depth <= DIRECTORY_DEPTH_MAX {
            return Ok(());
        }
        Err(DecodeError::Range {
            what: answer.name(),
            field: "depth",
            value: u64::from(directory.depth),
        })
    };
    match answer {
        Answer::Open { directory, .. } => check(directory),
        Answer::Renew { changes, .. } => changes.iter().try_for_each(|change| check(&change.directory)),
        _ => Ok(()),
    }
}

/// A request refused by the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Why.
    pub status: Status,
    /// Why, in the server's words.
    pub text: String,
}

/// The answer in a frame that a server sent.
///
/// # Errors
/// [`DecodeError`] if it is no answer.
pub fn decode_answer(frame: &[u8]) -> Result<(FrameHeader, Result<Answer, Refused>), DecodeError> {
    let (header, payload) = split_frame(frame)?;
    if header.kind & ANSWER == 0 {
        return Err(DecodeError::Range {
            what: "answer",
            field: "kind",
            value: u64::from(header.kind),
        });
    }
    check_version(&header, "answer")?;
    let status = Status::from_wire(header.status).ok_or(DecodeError::Range {
        what: "answer",
        field: "status",
        value: u64::from(header.status),
    })?;
    if status == Status::Ok {
        let answer = Answer::take_payload(header.kind & !ANSWER, payload)?;
        check_directories(&answer)?;
        return Ok((header, Ok(answer)));
    }
    let mut reader = Reader {
        what: "refusal",
        bytes: payload,
    };
    let text = Bytes::take(&mut reader)?;
    if !reader.bytes.is_empty() {
        return Err(DecodeError::Trailing {
            what: "refusal",
            extra: reader.bytes.len(),
        });
    }
    let text = String::from_utf8_lossy(&text.0)
        .chars()
        .filter(|c| !c.is_control())
        .collect();
    Ok((header, Err(Refused { status, text })))
}
