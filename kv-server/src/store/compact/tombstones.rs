//! Which tombstones of a segment are still wanted: those that are the newest record of their key while a segment file
//! holds a value of it.

use std::collections::HashMap;
use std::sync::Arc;

use kv_proto::hash::KeyHash;
use kv_proto::layout::record_kind;

use super::super::Dataset;
use super::super::segment::Segment;
use super::walk::{Found, Walk};
use super::{Ended, OnDisk};
use crate::error::StorageError;

/// A tombstone of which is asked.
#[derive(Debug)]
struct Asked {
    sequence: u64,
    /// Where it lies in its segment, bytes.
    offset: u64,
    /// Bytes that it takes.
    bytes: u64,
    /// A file holds an older value of the key.
    hides: bool,
    /// A file holds a newer record of the key, or this very one in a later segment.
    hidden: bool,
}

/// Tombstones of one segment, by the hashes of their keys: the newest of each.
#[derive(Debug, Default)]
pub(crate) struct Tombstones {
    asked: HashMap<(u64, u64), Asked>,
    /// Bytes of those that a newer one of the same segment hides.
    hidden_bytes: u64,
}

/// Those that are still wanted, and what the others take.
#[derive(Debug, Default)]
pub(crate) struct Judged {
    /// Offsets in the segment, in order.
    pub(crate) wanted: Vec<u64>,
    pub(crate) unwanted_bytes: u64,
}

impl Tombstones {
    pub(crate) fn len(&self) -> usize {
        self.asked.len()
    }

    pub(crate) fn add(&mut self, hash: KeyHash, found: &Found) {
        let asked = Asked {
            sequence: found.header.sequence,
            offset: found.offset(),
            bytes: found.stored_bytes(),
            hides: false,
            hidden: false,
        };
        let bytes = asked.bytes;
        if let Some(old) = self.asked.get_mut(&(hash.slot, hash.high)) {
            // They lie in the order of their sequences, but for copies.
            if old.sequence <= asked.sequence {
                *old = asked;
            }
            self.hidden_bytes += bytes;
        } else {
            self.asked.insert((hash.slot, hash.high), asked);
        }
    }

    /// Looks through every other segment file of the dataset that may hold a value that one of them hides.
    ///
    /// What cannot be read may hold anything: then all of them are wanted. `go_on` is asked after each record that was
    /// looked at.
    ///
    /// # Errors
    /// Why `go_on` ended it.
    pub(crate) fn judge(
        mut self,
        dataset: &Dataset,
        segment: u32,
        go_on: &mut dyn FnMut() -> Result<(), Ended>,
    ) -> Result<Judged, Ended> {
        let newest = self.asked.values().map(|asked| asked.sequence).max().unwrap_or(0);
        let mut later = Vec::new();
        for other in dataset.files_on_disk() {
            match other {
                OnDisk::Unreadable { lowest } => self.all_hide(lowest),
                OnDisk::Readable(other) if other.number == segment => {}
                OnDisk::Readable(other) => match other.sequences() {
                    None => {}
                    Some((lowest, _)) if lowest > newest => later.push(other),
                    Some((lowest, _)) => {
                        if let Err(error) = self.look_through(dataset, segment, other, go_on)? {
                            tracing::warn!(%error, "tombstones are kept for what cannot be read");
                            self.all_hide(lowest);
                        }
                    }
                },
            }
        }
        // Those of later records only tell that a newer one hides the same: asked where it matters.
        for other in later {
            if !self.asked.values().any(|asked| asked.hides && !asked.hidden) {
                break;
            }
            if let Err(error) = self.look_through(dataset, segment, other, go_on)? {
                tracing::warn!(%error, "tombstones are kept that a newer one may hide");
            }
        }
        Ok(self.judged())
    }

    /// Has every tombstone newer than `lowest` count as hiding a value.
    fn all_hide(&mut self, lowest: u64) {
        for asked in self.asked.values_mut().filter(|asked| asked.sequence > lowest) {
            asked.hides = true;
        }
    }

    fn look_through(
        &mut self,
        dataset: &Dataset,
        own: u32,
        other: Arc<Segment>,
        go_on: &mut dyn FnMut() -> Result<(), Ended>,
    ) -> Result<Result<(), StorageError>, Ended> {
        let number = other.number;
        let path = dataset.segment_path(number);
        let mut walk = Walk::new(&dataset.shared.files, other, path);
        loop {
            let found = match walk.next() {
                Ok(Some(found)) => found,
                Ok(None) => return Ok(Ok(())),
                Err(error) => return Ok(Err(error)),
            };
            go_on()?;
            let hash = dataset.hash(found.key());
            let Some(asked) = self.asked.get_mut(&(hash.slot, hash.high)) else {
                continue;
            };
            let header = &found.header;
            match header.kind {
                record_kind::VALUE | record_kind::HEAD if header.sequence < asked.sequence => {
                    asked.hides = true
                }
                record_kind::VALUE | record_kind::HEAD | record_kind::TOMBSTONE => {
                    let newer = header.sequence > asked.sequence;
                    let again = header.sequence == asked.sequence && number > own;
                    asked.hidden |= newer || again;
                }
                _ => {}
            }
        }
    }

    fn judged(self) -> Judged {
        let mut judged = Judged {
            unwanted_bytes: self.hidden_bytes,
            ..Judged::default()
        };
        for asked in self.asked.into_values() {
            if asked.hides && !asked.hidden {
                judged.wanted.push(asked.offset);
            } else {
                judged.unwanted_bytes += asked.bytes;
            }
        }
        judged.wanted.sort_unstable();
        judged
    }
}
