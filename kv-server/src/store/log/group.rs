//! Records that become durable together.

use std::collections::BTreeSet;
use std::sync::Arc;

use kv_proto::hash::KeyHash;
use kv_proto::layout::{FooterEntry, Locator, OperationEntry, record_kind};
use kv_proto::record::{RecordMeta, encode_prefix, parse_head};

use super::super::operations;
use super::super::put::PutState;
use super::super::segment::Pin;
use super::super::{Committed, Dataset};
use super::Op;
use super::active::Active;
use super::copy::Landing;

/// What a record says, less what its place says.
#[derive(Debug)]
pub(crate) struct Record {
    /// That of the record of which this is a copy; none where it is the next.
    pub(crate) sequence: Option<u64>,
    pub(crate) kind: u8,
    pub(crate) part: u32,
    pub(crate) client: u64,
    pub(crate) operation: u64,
    pub(crate) key: Vec<u8>,
    pub(crate) hash: KeyHash,
    pub(crate) value: Vec<u8>,
    pub(crate) value_crc: u32,
}

impl Record {
    /// Header, key and block CRCs of the record in this segment.
    pub(crate) fn encode_prefix(&self, active: &Active, sequence: u64, block_crcs: &[u8]) -> Vec<u8> {
        let meta = RecordMeta {
            kind: self.kind,
            part: self.part,
            sequence,
            segment_identity: active.segment.identity,
            client_id: self.client,
            operation: self.operation,
            durable_units: (active.durable / 64) as u32,
        };
        let mut prefix = Vec::with_capacity(64 + self.key.len() + block_crcs.len());
        encode_prefix(
            &meta,
            &self.key,
            self.value.len() as u32,
            self.value_crc,
            block_crcs,
            &mut prefix,
        );
        prefix
    }
}

/// What happens once a record is durable.
pub(crate) enum Then {
    /// Nothing: it covers a gap.
    Filler,
    /// Its memory is free for further parts.
    Part(Arc<PutState>),
    /// The index names it.
    Put {
        token: u64,
        /// Of its parts, until the index names them.
        pins: Vec<Pin>,
    },
    /// The index names it instead of its source.
    Copy(Landing),
    /// The index forgets the key.
    Delete { token: u64, existed: bool },
}

/// A record with its place.
pub(crate) struct Entry {
    pub(crate) offset: u64,
    pub(crate) prefix: Vec<u8>,
    pub(crate) record: Record,
    pub(crate) committed: Committed,
    pub(crate) then: Then,
}

impl Entry {
    /// What FOOTERs and checkpoints list of it; nothing of a FILLER.
    pub(crate) fn listed(&self) -> Option<FooterEntry> {
        let record = &self.record;
        (record.kind != record_kind::FILLER).then_some(FooterEntry {
            hash: record.hash.slot,
            hash_high: record.hash.high,
            sequence: self.committed.sequence,
            offset_units: (self.offset / 64) as u32,
            value_len_bytes: record.value.len() as u32,
            part: record.part,
            key_len_bytes: record.key.len() as u16,
            kind: record.kind,
            reserved: 0,
        })
    }

    /// The operation that it tells of, if it tells of one.
    pub(crate) fn operation(&self) -> Option<OperationEntry> {
        let record = &self.record;
        if record.client == 0 || record.kind == record_kind::PART {
            return None;
        }
        let outcome = match record.kind {
            record_kind::TOMBSTONE => Committed {
                locator: Locator::default(),
                existed: record.part != 0,
                ..self.committed
            },
            _ => self.committed,
        };
        Some(operations::entry(record.client, record.operation, &outcome))
    }

    /// Bytes that are written, without padding.
    pub(crate) fn len(&self) -> u64 {
        (self.prefix.len() + self.record.value.len()) as u64
    }
}

/// Records that become durable with one sync.
#[derive(Default)]
pub(crate) struct Group {
    pub(crate) entries: Vec<Entry>,
    bytes: u64,
}

impl Group {
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Keeps the other segments from being compacted that hold parts of its large values.
    pub(crate) fn pin_parts(&self, dataset: &Dataset) -> Vec<Pin> {
        let mut named = BTreeSet::new();
        for entry in &self.entries {
            if entry.record.kind == record_kind::HEAD
                && let Ok((_, parts)) = parse_head(&entry.record.value)
            {
                let own = entry.committed.locator.segment;
                let others = parts.iter().map(|part| part.segment);
                named.extend(others.filter(|segment| *segment != own));
            }
        }
        let segments = named.into_iter().filter_map(|number| dataset.segment(number));
        segments.map(|segment| segment.pin()).collect()
    }

    /// Lowest sequence of its records: copies keep that of their source.
    pub(crate) fn lowest_sequence(&self) -> Option<u64> {
        let records = self
            .entries
            .iter()
            .filter(|entry| !matches!(entry.then, Then::Filler));
        records.map(|entry| entry.committed.sequence).min()
    }

    pub(crate) fn has_deletes(&self) -> bool {
        self.entries
            .iter()
            .any(|entry| matches!(entry.then, Then::Delete { .. }))
    }

    /// Its deletes as they were asked for, and the rest.
    pub(crate) fn split_deletes(self) -> (Vec<Op>, Self) {
        let mut deletes = Vec::new();
        let mut rest = Self::default();
        for entry in self.entries {
            match entry.then {
                Then::Delete { token, .. } => deletes.push(Op::Delete {
                    client: entry.record.client,
                    operation: entry.record.operation,
                    key: entry.record.key,
                    token,
                }),
                _ => rest.push(entry),
            }
        }
        (deletes, rest)
    }

    pub(crate) fn push(&mut self, entry: Entry) {
        self.bytes += entry.len();
        self.entries.push(entry);
    }

    /// Covers the gap from the tail to `offset`.
    pub(crate) fn push_filler(&mut self, active: &Active, offset: u64) {
        let gap = offset - active.tail;
        let record = Record {
            sequence: None,
            kind: record_kind::FILLER,
            part: 0,
            client: 0,
            operation: 0,
            key: Vec::new(),
            hash: KeyHash { slot: 0, high: 0 },
            value: Vec::new(),
            value_crc: 0,
        };
        let meta = RecordMeta {
            kind: record_kind::FILLER,
            part: 0,
            sequence: 0,
            segment_identity: active.segment.identity,
            client_id: 0,
            operation: 0,
            durable_units: (active.durable / 64) as u32,
        };
        let mut prefix = Vec::with_capacity(64);
        encode_filler(&meta, gap, &mut prefix);
        self.push(Entry {
            offset: active.tail,
            prefix,
            record,
            committed: Committed::default(),
            then: Then::Filler,
        });
    }
}

/// Header of a FILLER over `gap` bytes: it has no block CRCs, however long the gap is.
fn encode_filler(meta: &RecordMeta, gap: u64, out: &mut Vec<u8>) {
    use kv_proto::crc::crc32c;
    use kv_proto::layout::RecordHeader;
    use zerocopy::{FromBytes, IntoBytes};

    encode_prefix(meta, &[], 0, 0, &[], out);
    let Ok(mut header) = RecordHeader::read_from_bytes(out) else {
        return;
    };
    header.value_len_bytes = (gap - size_of::<RecordHeader>() as u64) as u32;
    header.header_crc = crc32c(&header.as_bytes()[..size_of::<RecordHeader>() - 4]);
    out.clear();
    out.extend_from_slice(header.as_bytes());
}
