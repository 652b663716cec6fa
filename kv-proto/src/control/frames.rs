//! Every frame: its kind, and its fields in the order in which they are on the wire.

use super::wire::{
    Bytes, DatasetChange, DatasetItem, DirectoryRef, ListEntry, Reader, RemoteAddress, SegmentRow,
    SnapshotItem, StatItem, Wire,
};
use crate::DecodeError;
use crate::layout::Locator;

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

            /// Its kind, without [`super::ANSWER`].
            #[must_use]
            pub const fn kind(&self) -> u8 {
                match self { $(Self::$name { .. } => $kind),* }
            }

            /// Its name.
            #[must_use]
            pub const fn name(&self) -> &'static str {
                match self { $(Self::$name { .. } => stringify!($name)),* }
            }

            pub(super) fn put_payload(&self, out: &mut Vec<u8>) {
                match self { $(Self::$name { $($field),* } => { let _ = &out; $($field.put(out);)* }),* }
            }

            pub(super) fn take_payload(kind: u8, bytes: &[u8]) -> Result<Self, DecodeError> {
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
