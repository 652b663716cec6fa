//! What calls take and give back.

pub use kv_proto::layout::{GlobalLocator, Locator};

/// Random id of a dataset.
pub type DatasetId = [u8; 16];

/// One dataset of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatasetInfo {
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: DatasetId,
    /// Keys in it.
    pub keys: u64,
    /// Bytes of all values in it.
    pub value_bytes: u64,
}

/// A value that is stored: durable and visible.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PutOutcome {
    /// Sequence number of the operation in its dataset.
    pub sequence: u64,
    /// Where the value lies.
    pub locator: GlobalLocator,
}

/// One key of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: Vec<u8>,
    /// Length of the whole value, bytes.
    pub value_len_bytes: u64,
    /// Where it lies.
    pub locator: GlobalLocator,
}

/// What a client, its clones included, has done so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Counters {
    /// Values asked for and found.
    pub gets: u64,
    /// READs posted, of every kind.
    pub reads_posted: u64,
    /// Those that are splits or parts beyond the first READ of a value.
    pub split_reads: u64,
    /// Records that came by the READ of the one before them.
    pub coalesced: u64,
    /// Those that fetched buckets.
    pub bucket_reads: u64,
    /// Those that fetched pieces of the directory.
    pub directory_reads: u64,
    /// Doorbells rung.
    pub doorbells: u64,
    /// Lookups and reads that were begun again, for whatever reason.
    pub retries: u64,
    /// Values read where they lay the last time, bucket and record in one round trip.
    pub cached: u64,
    /// Values that were looked up because they no longer lay where they did.
    pub cached_wrong: u64,
    /// READs whose checksums did not agree.
    pub torn: u64,
    /// READs that found something else than was expected there.
    pub stale: u64,
    /// Buckets among the torn: read while they were written, or no longer what the directory says.
    pub torn_buckets: u64,
    /// Buckets among the stale: those of a group that was split since the directory was read.
    pub stale_directory: u64,
    /// Records of another key with the same hash, tag and key length.
    pub other_keys: u64,
    /// Lookups and records that arrived when the lease was over, and were discarded.
    pub expired: u64,
    /// Of those, the ones that the checksums would have refused as well: memory that was reused.
    pub expired_reused: u64,
    /// Data connections made.
    pub connections: u64,
    /// Of those, the ones that had to be made again.
    pub reconnects: u64,
    /// Renewals of the session's lease.
    pub renewals: u64,
    /// Sessions begun, the first included.
    pub sessions: u64,
    /// Registrations of callers' memory in the session.
    pub registrations: u64,
}
