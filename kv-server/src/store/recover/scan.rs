//! Reading the records of a segment back, and telling a torn tail from damage.
//!
//! The longest valid prefix counts. What is invalid past it was never answered, unless a later record or the trailer
//! says that it was durable: then it is damage, which is reported and skipped, never cut.

use kv_fabric::Domain;
use kv_proto::layout::{EXTENT_BYTES, KEY_MAX_BYTES, RecordHeader, record_kind, units};
use kv_proto::record::{check_prefix, header_prefix_len, judge_value, parse_header};

use super::super::segment::{HEADER_BYTES, Segment};

/// A record as it was found.
pub(crate) struct Found<'a> {
    pub(crate) header: RecordHeader,
    pub(crate) offset: u64,
    pub(crate) key: &'a [u8],
    /// Whether the value does not have its CRC, though the record was durable.
    pub(crate) damaged: bool,
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
struct Scan<'a, D: Domain> {
    segment: &'a Segment<D>,
    /// End of the bytes there are.
    end: u64,
    prefix: Vec<u8>,
    value: Vec<u8>,
}

impl<D: Domain> Scan<'_, D> {
    /// Whether a record begins at `offset`; its header and end.
    fn header_at(&mut self, offset: u64) -> Option<(RecordHeader, u64)> {
        let mut bytes = [0; size_of::<RecordHeader>()];
        if offset + HEADER_BYTES > self.end || !self.segment.read(offset, &mut bytes) {
            return None;
        }
        let header = parse_header(&bytes).ok()?;
        let prefix_len = header_prefix_len(&header);
        let end = offset + units(prefix_len + u64::from(header.value_len_bytes)) * 64;
        let crosses = offset % EXTENT_BYTES + (end - offset) > EXTENT_BYTES;
        // A gap that ends anywhere else would hide what lies in it.
        let ends_short = header.kind == record_kind::FILLER && !end.is_multiple_of(EXTENT_BYTES);
        if header.segment_identity != self.segment.identity
            || u64::from(header.durable_units) * 64 > offset
            || crosses
            || ends_short
        {
            return None;
        }
        if offset + prefix_len > self.end {
            return None;
        }
        self.prefix.resize(prefix_len as usize, 0);
        if !self.segment.read(offset, &mut self.prefix) || check_prefix(&self.prefix).is_err() {
            return None;
        }
        Some((header, end))
    }

    /// The record at `offset`, judged whole; `self.prefix` and `self.value` hold it then.
    fn record_at(&mut self, offset: u64) -> Result<(RecordHeader, u64), Invalid> {
        let (header, end) = self.header_at(offset).ok_or(Invalid::Header)?;
        if header.kind == record_kind::FILLER {
            return Ok((header, end));
        }
        let value_at = offset + self.prefix.len() as u64;
        if value_at + u64::from(header.value_len_bytes) > self.end {
            return Err(Invalid::Value { header, end });
        }
        self.value.resize(header.value_len_bytes as usize, 0);
        if !self.segment.read(value_at, &mut self.value)
            || judge_value(&self.prefix, &header, &self.value).is_err()
        {
            return Err(Invalid::Value { header, end });
        }
        Ok((header, end))
    }

    /// The highest length that a whole header from `offset` on says was durable.
    fn durable_after(&mut self, offset: u64) -> u64 {
        let mut durable = 0;
        let mut at = offset;
        while at + HEADER_BYTES <= self.end {
            if let Some((header, _)) = self.header_at(at) {
                durable = durable.max(u64::from(header.durable_units) * 64);
            }
            at += 64;
        }
        durable
    }
}

/// Walks the records of a segment whose bytes up to `len` are in its image, `sealed` up to there if it has a trailer.
pub(crate) fn scan<D: Domain>(
    segment: &Segment<D>,
    len: u64,
    sealed: Option<u64>,
    mut visit: impl FnMut(Found<'_>),
) -> Scanned {
    let mut scan = Scan {
        segment,
        end: sealed.unwrap_or(len).min(len),
        prefix: Vec::with_capacity(size_of::<RecordHeader>() + KEY_MAX_BYTES),
        value: Vec::new(),
    };
    let mut found = Scanned::default();
    let mut durable = sealed;
    let mut at = HEADER_BYTES;
    // End of the last record that counts.
    let mut end = HEADER_BYTES;
    while at < scan.end {
        let invalid = match scan.record_at(at) {
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
        let known = *durable.get_or_insert_with(|| scan.durable_after(at));
        if at >= known {
            break;
        }
        let from = at;
        if let Invalid::Value { header, end: next } = invalid
            && next <= known
            && header.kind != record_kind::FILLER
        {
            // Whose value it was is known: named by the index it gives an error, where an older one would be a lie.
            // (The search for what is durable went over the prefix: fetch it again.)
            let _ = scan.header_at(at);
            report(&mut visit, &mut found, &scan, header, at, true);
            at = next;
            end = next;
        } else {
            at += 64;
            while at < known && scan.record_at(at).is_err() {
                at += 64;
            }
        }
        found.damaged.push((from, at));
    }
    found.end = end.max(durable.unwrap_or(0).min(scan.end));
    found
}

fn report<D: Domain>(
    visit: &mut impl FnMut(Found<'_>),
    found: &mut Scanned,
    scan: &Scan<'_, D>,
    header: RecordHeader,
    offset: u64,
    damaged: bool,
) {
    if header.kind == record_kind::FILLER || header.kind == record_kind::FOOTER {
        return;
    }
    super::super::segment::widen(&mut found.sequences, header.sequence);
    let key_at = size_of::<RecordHeader>();
    visit(Found {
        header,
        offset,
        key: &scan.prefix[key_at..key_at + usize::from(header.key_len_bytes)],
        damaged,
    });
}
