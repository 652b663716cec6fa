//! Reading: an engine that keeps READs in flight for many values at once.
//!
//! - [`engine`]: what is wanted, what is in flight, what is done; the loop around it. One thread owns an engine.
//! - [`calls`]: calls that wait, over the same engine; [`placed`]: those that fill a batch.
//! - [`ready`]: session, dataset and connections, made when something is to be posted and they are not there.
//! - [`fill`]: plans READs and posts them in chains, [`plan`] and [`lane`] below it; [`runs`] of neighbours by one READ.
//! - [`landing`]: slots for what is planned. [`time`]: deadlines.
//! - [`arrive`], [`deliver`]: judging what arrived (**I4**).
//! - [`guess`]: the one round trip of a value whose place is remembered ([`locators`]).
//! - [`short`]: the short way of calls whose values lie where that is known, and of lookups.
//! - [`condemned`]: ending connections; those that the device does not destroy are in [`quarantine`].
//! - [`recover`]: what keeps one value from being read, seen to while others are read on.

pub(crate) mod arrive;
pub(crate) mod calls;
mod condemned;
pub(crate) mod counters;
mod deliver;
pub(crate) mod engine;
mod fill;
mod flight;
mod guess;
pub(crate) mod item;
mod landing;
mod lane;
pub(crate) mod locators;
pub(crate) mod placed;
mod plan;
pub(crate) mod quarantine;
mod ready;
mod recover;
mod ring;
mod runs;
mod short;
pub(crate) mod slots;
mod time;
pub(crate) mod waits;

use std::time::Duration;

use kv_fabric::ReadStatus;
use kv_proto::layout::KEY_MAX_BYTES;

use crate::{ClientError, ReadError};

/// How often checksums of one value may disagree before it counts as damaged.
const TORN_MAX: u32 = 24;
/// Torn buckets are read again so often before the directory is suspected.
const TORN_BEFORE_STALE: u32 = 3;
/// How often a looked-up value may turn out to have moved.
const STALE_MAX: u32 = 64;
/// How often a locator that the caller holds may lead nowhere: once more after a renewal.
const STALE_LOCATOR_MAX: u32 = 2;
/// How often the network may fail a value on connections that bring nothing.
const FAILED_MAX: u32 = 64;
/// First and longest wait between beginnings that did not get on.
const PASS_WAITS: (Duration, Duration) = (Duration::from_micros(50), Duration::from_millis(100));
/// Longest piece of a value that is asked for at once, bytes.
const PIECE_BYTES: u64 = 1 << 20;
/// The same where values are checked: what has arrived is, while the rest flies.
const CHECKED_PIECE_BYTES: u64 = 256 << 10;

/// A key, if it can be one.
#[inline]
pub(crate) fn check_key(key: &[u8]) -> Result<(), ReadError> {
    if (1..=KEY_MAX_BYTES).contains(&key.len()) {
        Ok(())
    } else {
        Err(ReadError::BadKey { len_bytes: key.len() })
    }
}

/// What kept a value from being read this time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// Checksums of a record do not agree.
    TornRecord,
    /// Something else than the record that was wanted lies there.
    StaleRecord,
    /// Checksums of a bucket do not agree; the directory entry that led to it.
    TornBucket(u32),
    /// A bucket is not the one that the directory entry means.
    StaleBucket(u32),
    /// A piece of the directory is not what the view says.
    TornDirectory,
    /// The segment table does not have the place.
    NoPlace,
    /// The segment's image is not loaded.
    Loading(u32),
    /// No image is kept.
    NoImage,
    /// The record is another key's: the next candidate is looked at.
    OtherKey,
    /// The bucket names another place than the one that was remembered.
    WrongGuess,
    /// A READ failed.
    Fabric(ReadStatus),
    /// The connection was destroyed for something else's sake, or the lease ended.
    Lost,
    /// What is wanted does not fit what the connection or the ring holds.
    NoRoom,
}

/// Why nothing can be posted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotReady {
    /// It may be possible the next time.
    Again,
    /// It may be possible the next time; what to tell where there is no time left for that.
    Later(ReadError),
    /// It will not be.
    Never(ReadError),
}

/// What a session that cannot be had means for a read.
pub(crate) fn never(error: ClientError) -> NotReady {
    tracing::debug!(%error, "no session");
    NotReady::Never(match error {
        ClientError::Refused { status, .. } => ReadError::Refused(status),
        ClientError::Timeout { .. } => ReadError::Timeout,
        ClientError::Closed => ReadError::Closed,
        _ => ReadError::NoResources,
    })
}
