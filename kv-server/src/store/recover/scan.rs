//! Walking the records of a segment, and telling a torn tail from damage.
//!
//! The longest valid prefix counts. What is invalid past it was never answered, unless a later record or the trailer
//! says that it was durable: then it is damage, which is reported and skipped, never cut.

use kv_proto::hash::KeyHash;
use kv_proto::layout::{EXTENT_BYTES, FooterEntry, KEY_MAX_BYTES, RecordHeader, record_kind, units};
use kv_proto::record::{check_prefix, header_prefix_len, judge_value, parse_header};

use super::super::segment::{HEADER_BYTES, widen};
use super::source::Source;
use crate::error::StorageError;

/// A record as it was found.
pub(crate) struct Found<'a> {
    pub(crate) header: RecordHeader,
    pub(crate) offset: u64,
    pub(crate) key: &'a [u8],
    /// Its value; nothing of a damaged one.
    pub(crate) value: &'a [u8],
    /// Whether the value does not have its CRC, though the record was durable.
    pub(crate) damaged: bool,
}

impl Found<'_> {
    /// What FOOTERs and checkpoints list of it.
    pub(crate) fn entry(&self, hash_key: &[u8; 16]) -> FooterEntry {
        let hash = KeyHash::of(hash_key, self.key);
        FooterEntry {
            hash: hash.slot,
            hash_high: hash.high,
            sequence: self.header.sequence,
            offset_units: (self.offset / 64) as u32,
            value_len_bytes: self.header.value_len_bytes,
            part: self.header.part,
            key_len_bytes: self.header.key_len_bytes,
            kind: self.header.kind,
            reserved: 0,
        }
    }
}

/// What is walked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Span {
    /// Identity of the segment.
    pub(crate) identity: u64,
    /// Where the first record is: all before it is known.
    pub(crate) from: u64,
    /// Where it is not sealed no record begins from here on.
    pub(crate) begin_end: u64,
    /// End of the bytes that there are.
    pub(crate) end: u64,
    /// Whether all up to `end` was durable; else that is found out.
    pub(crate) sealed: bool,
}

/// What a scan says of a segment.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Scanned {
    /// End of the records that count.
    pub(crate) end: u64,
    /// Where bytes are damaged: first and end.
    pub(crate) damaged: Vec<(u64, u64)>,
    /// Lowest and highest sequence.
    pub(crate) sequences: Option<(u64, u64)>,
}

/// Why there is no record at a place.
enum Invalid {
    /// Nothing there says how long it would be.
    Header,
    /// Its header is whole and its value is not; it ends there.
    Value { header: RecordHeader, end: u64 },
}

/// A segment's bytes, and the room to judge its records in.
struct Scan<'a, S> {
    source: &'a mut S,
    identity: u64,
    /// No record begins from here on.
    begin_end: u64,
    /// End of the bytes there are.
    end: u64,
    prefix: Vec<u8>,
    value: Vec<u8>,
}

impl<S: Source> Scan<'_, S> {
    /// Whether a record begins at `offset`; its header and end.
    fn header_at(&mut self, offset: u64) -> Result<Option<(RecordHeader, u64)>, StorageError> {
        let mut bytes = [0; size_of::<RecordHeader>()];
        if offset + HEADER_BYTES > self.end {
            return Ok(None);
        }
        self.source.read(offset, &mut bytes)?;
        let Ok(header) = parse_header(&bytes) else {
            return Ok(None);
        };
        let prefix_len = header_prefix_len(&header);
        let end = offset + units(prefix_len + u64::from(header.value_len_bytes)) * 64;
        // FOOTERs are in no image: they may cross extents.
        let crosses =
            header.kind != record_kind::FOOTER && offset % EXTENT_BYTES + (end - offset) > EXTENT_BYTES;
        // A gap that ends anywhere else would hide what lies in it.
        let ends_short = header.kind == record_kind::FILLER && !end.is_multiple_of(EXTENT_BYTES);
        if header.segment_identity != self.identity
            || u64::from(header.durable_units) * 64 > offset
            || crosses
            || ends_short
            || offset + prefix_len > self.end
        {
            return Ok(None);
        }
        self.prefix.resize(prefix_len as usize, 0);
        self.source.read(offset, &mut self.prefix)?;
        Ok(check_prefix(&self.prefix).is_ok().then_some((header, end)))
    }

    /// The record at `offset`, judged whole; `self.prefix` and `self.value` hold it then. A FOOTER is none.
    fn record_at(&mut self, offset: u64) -> Result<Result<(RecordHeader, u64), Invalid>, StorageError> {
        let Some((header, end)) = self.header_at(offset)? else {
            return Ok(Err(Invalid::Header));
        };
        match header.kind {
            record_kind::FILLER => return Ok(Ok((header, end))),
            record_kind::FOOTER => return Ok(Err(Invalid::Header)),
            _ => {}
        }
        let value_at = offset + self.prefix.len() as u64;
        if value_at + u64::from(header.value_len_bytes) > self.end {
            return Ok(Err(Invalid::Value { header, end }));
        }
        self.value.resize(header.value_len_bytes as usize, 0);
        self.source.read(value_at, &mut self.value)?;
        if judge_value(&self.prefix, &header, &self.value).is_err() {
            return Ok(Err(Invalid::Value { header, end }));
        }
        Ok(Ok((header, end)))
    }

    /// Whether the index names what is at `offset`, below the length `known` to be durable: also where its value is damaged.
    fn is_named(&mut self, offset: u64, known: u64) -> Result<bool, StorageError> {
        Ok(match self.record_at(offset)? {
            Ok(_) => true,
            Err(Invalid::Value { end, .. }) => end <= known,
            Err(Invalid::Header) => false,
        })
    }

    /// The highest length that a whole header from `offset` on says was durable.
    fn durable_after(&mut self, offset: u64) -> Result<u64, StorageError> {
        let mut durable = 0;
        let mut at = offset;
        while at < self.begin_end {
            if let Some((header, _)) = self.header_at(at)? {
                durable = durable.max(u64::from(header.durable_units) * 64);
            }
            at += 64;
        }
        Ok(durable)
    }
}

/// Walks the records of a segment and gives each VALUE, PART, HEAD and TOMBSTONE to `visit`, those whose value is
/// damaged too.
///
/// # Errors
/// Why the bytes could not be read.
pub(crate) fn scan(
    source: &mut impl Source,
    span: &Span,
    mut visit: impl FnMut(Found<'_>),
) -> Result<Scanned, StorageError> {
    let mut scan = Scan {
        source,
        identity: span.identity,
        begin_end: match span.sealed {
            true => span.end,
            false => span.begin_end.min(span.end),
        },
        end: span.end,
        prefix: Vec::with_capacity(size_of::<RecordHeader>() + KEY_MAX_BYTES),
        value: Vec::new(),
    };
    let mut found = Scanned::default();
    let mut durable = span.sealed.then_some(span.end);
    let mut at = span.from;
    // End of the last record that counts.
    let mut end = span.from;
    while at < scan.begin_end {
        let invalid = match scan.record_at(at)? {
            Ok((header, next)) => {
                // A gap's bytes may not be there; a segment does not end with one.
                if header.kind != record_kind::FILLER {
                    report(&mut visit, &mut found, &scan, header, at, false);
                    end = next;
                }
                at = next;
                continue;
            }
            Err(invalid) => invalid,
        };
        let known = match durable {
            Some(known) => known,
            None => scan.durable_after(at)?,
        };
        durable = Some(known);
        if at >= known {
            break;
        }
        let from = at;
        if let Invalid::Value { header, end: next } = invalid
            && next <= known
        {
            // Whose value it was is known: named by the index it gives an error, where an older one would be a lie.
            // (The search for what is durable went over the prefix: fetch it again.)
            scan.header_at(at)?;
            report(&mut visit, &mut found, &scan, header, at, true);
            at = next;
            end = next;
        } else {
            at += 64;
            while at < known && !scan.is_named(at, known)? {
                at += 64;
            }
        }
        found.damaged.push((from, at));
    }
    found.end = end.max(durable.unwrap_or(0).min(scan.end));
    Ok(found)
}

fn report<S>(
    visit: &mut impl FnMut(Found<'_>),
    found: &mut Scanned,
    scan: &Scan<'_, S>,
    header: RecordHeader,
    offset: u64,
    damaged: bool,
) {
    widen(&mut found.sequences, header.sequence);
    let key_at = size_of::<RecordHeader>();
    visit(Found {
        header,
        offset,
        key: &scan.prefix[key_at..key_at + usize::from(header.key_len_bytes)],
        value: if damaged { &[] } else { &scan.value },
        damaged,
    });
}
