//! PROTOCOL.md says what the code does: every struct's offsets and widths, every frame's fields, every number.
//!
//! The tables are parsed, not searched, and both directions are compared: a field, frame or constant that only one of
//! the two has fails. Rust structs are destructured without `..`, so a new field without a check does not compile.

use std::collections::BTreeMap;
use std::mem::{offset_of, size_of};

use kv_proto::control::{self, Answer, FrameHeader, Request, Status, WIRE_STRUCTS, change_flag};
use kv_proto::layout::{self, *};

const DOC: &str = include_str!("../PROTOCOL.md");

/// A table: what its nearest heading says, its column names, its rows.
struct Table {
    heading: String,
    columns: Vec<String>,
    rows: Vec<Vec<String>>,
}

fn cells(line: &str) -> Vec<String> {
    let line = line.replace("\\|", "\u{1}");
    let inner = line.trim().trim_start_matches('|').trim_end_matches('|');
    inner
        .split('|')
        .map(|cell| cell.replace('\u{1}', "|").trim().trim_matches('`').to_owned())
        .collect()
}

fn tables() -> Vec<Table> {
    let mut tables: Vec<Table> = Vec::new();
    let mut heading = String::new();
    let mut inside = false;
    let mut fenced = false;
    for line in DOC.lines() {
        fenced ^= line.starts_with("```");
        if fenced || !line.starts_with('|') {
            inside = false;
            if !fenced && line.starts_with('#') {
                heading = line.trim_start_matches('#').trim().to_owned();
            }
            continue;
        }
        if !inside {
            inside = true;
            let columns = cells(line);
            tables.push(Table {
                heading: heading.clone(),
                columns,
                rows: Vec::new(),
            });
        } else if !line.starts_with("| ---") {
            let table = tables.last_mut().expect("a table is open");
            let row = cells(line);
            assert_eq!(row.len(), table.columns.len(), "cells of the row: {line}");
            table.rows.push(row);
        }
    }
    assert!(!fenced, "a code fence is not closed");
    tables
}

/// First two cells of each row of the one table with this first column, under any heading.
fn pairs(first_two: [&str; 2]) -> Vec<(String, String)> {
    let found: Vec<Table> = tables()
        .into_iter()
        .filter(|table| table.columns.len() >= 2 && table.columns[..2] == first_two)
        .collect();
    assert_eq!(found.len(), 1, "tables with columns {first_two:?}");
    found[0]
        .rows
        .iter()
        .map(|row| (row[0].clone(), row[1].clone()))
        .collect()
}

fn number(text: &str) -> u64 {
    match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    }
    .unwrap_or_else(|_| panic!("not a number: {text}"))
}

struct Struct {
    name: &'static str,
    size: usize,
    /// Offset, width, name.
    fields: Vec<(usize, usize, &'static str)>,
}

macro_rules! structs {
    ($($name:ident { $($field:ident),* $(,)? })*) => {
        vec![$({
            fn width<T, F>(_: fn(&T) -> &F) -> usize { size_of::<F>() }
            // No `..`: a field that is not named here does not compile.
            let _exhaustive = |value: &$name| { let $name { $($field: _),* } = value; };
            Struct {
                name: stringify!($name),
                size: size_of::<$name>(),
                fields: vec![$((
                    offset_of!($name, $field),
                    width(|value: &$name| &value.$field),
                    stringify!($field),
                )),*],
            }
        }),*]
    };
}

fn structs() -> Vec<Struct> {
    structs! {
        RecordHeader { magic, format, kind, flags, key_len_bytes, reserved, value_len_bytes, sequence, segment_identity,
            client_id, operation, durable_units, value_crc, part, header_crc }
        SegmentHeader { magic, format, flags, segment, reserved, identity, dataset, epoch, limit_bytes, reserved2, crc }
        SegmentTrailer { magic, format, flags, segment, sealed_units, identity, footer_units, footer_count,
            sequence_min, sequence_max, reserved, crc }
        FooterHeader { entries, operations, reserved }
        FooterEntry { hash, hash_high, sequence, offset_units, value_len_bytes, part, key_len_bytes, kind, reserved }
        OperationEntry { client_id, operation, sequence, locator }
        CheckpointHeader { magic, format, flags, segment, covered_units, identity, body_len_bytes, sequence_max,
            from_units, reserved, body_crc, crc }
        Locator { segment, offset_units, value_len_bytes, key_len_bytes, tag }
        GlobalLocator { dataset, locator }
        HeadValue { total_len_bytes, part_len_bytes, part_count, total_crc, reserved }
        PartRef { segment, offset_units }
        Slot { hash, locator }
        Bucket { checksum, stamp, depth_prefix, slots }
        DirectoryEntry { checksum, address, rkey, group, stamp, depth_prefix }
        Superblock { magic, format, flags, server, epoch, segment_next, reserved, crc }
        DatasetDescription { magic, format, name_len_bytes, dataset, hash_key, name, segment_bytes, part_bytes,
            reserved, crc }
        CatalogueHeader { magic, format, flags, count, crc }
        SegmentListHeader { magic, format, flags, dataset, count, crc }
        SnapshotHeader { magic, format, name_len_bytes, generation, dataset, sequence, count, name, reserved,
            reserved2, crc }
        SnapshotEntry { locator }
        ConnectRequest { magic, version, kind, reserved, session, token }
        FrameHeader { kind, version, status, payload_len_bytes, request }
    }
}

#[test]
fn struct_tables_are_the_structs() {
    let mut documented: BTreeMap<String, Table> = tables()
        .into_iter()
        .filter(|table| table.columns[0] == "Offset")
        .map(|table| (table.heading.clone(), table))
        .collect();
    for item in structs() {
        let heading = format!("`{}` ({} bytes)", item.name, item.size);
        let table = documented
            .remove(&heading)
            .unwrap_or_else(|| panic!("no table under the heading {heading}"));
        assert_eq!(
            table.columns,
            ["Offset", "Width", "Field", "Unit", "Written by", "Valid"]
        );
        let in_doc: Vec<(usize, usize, &str)> = table
            .rows
            .iter()
            .map(|row| {
                (
                    number(&row[0]) as usize,
                    number(&row[1]) as usize,
                    row[2].as_str(),
                )
            })
            .collect();
        assert_eq!(in_doc, item.fields, "{}", item.name);
        let mut end = 0;
        for (offset, width, field) in &item.fields {
            assert_eq!(*offset, end, "{}.{field} leaves a gap", item.name);
            end += width;
        }
        assert_eq!(end, item.size, "{}", item.name);
    }
    assert!(
        documented.is_empty(),
        "tables of no struct: {:?}",
        documented.keys()
    );
}

#[test]
fn every_struct_of_the_layout_is_checked() {
    let source = include_str!("../src/layout.rs");
    let declared: Vec<&str> = source
        .lines()
        .filter_map(|line| line.strip_prefix("pub struct "))
        .map(|rest| rest.trim_end_matches(" {"))
        .collect();
    let checked: Vec<&str> = structs().iter().map(|item| item.name).collect();
    for name in &declared {
        assert!(checked.contains(name), "{name} is not checked");
    }
    assert_eq!(
        declared.len() + 1,
        checked.len(),
        "FrameHeader is the one from elsewhere"
    );
}

type Fields = Vec<(String, String)>;

fn fields_of(table: &Table) -> Fields {
    table
        .rows
        .iter()
        .map(|row| (row[0].clone(), row[1].clone()))
        .collect()
}

type Schema = [(u8, &'static str, &'static [(&'static str, &'static str)])];

fn frames_match(schema: &Schema, first_column: &str) {
    let mut documented: BTreeMap<String, Fields> = tables()
        .iter()
        .filter(|table| table.columns[0] == first_column)
        .map(|table| (table.heading.clone(), fields_of(table)))
        .collect();
    for (kind, name, fields) in schema {
        let heading = format!("`{name}` = {kind}");
        let in_doc = documented
            .remove(&heading)
            .unwrap_or_else(|| panic!("no `{first_column}` table under the heading {heading}"));
        let in_code: Fields = fields
            .iter()
            .map(|(field, ty)| ((*field).to_owned(), (*ty).to_owned()))
            .collect();
        assert_eq!(in_doc, in_code, "{name}, {first_column}");
    }
    assert!(
        documented.is_empty(),
        "tables of no frame: {:?}",
        documented.keys()
    );
}

#[test]
fn frame_tables_are_the_frames() {
    frames_match(Request::SCHEMA, "Request field");
    frames_match(Answer::SCHEMA, "Answer field");
}

#[test]
fn payload_struct_tables_are_the_structs() {
    let mut documented: BTreeMap<String, Fields> = tables()
        .iter()
        .filter(|table| table.columns[0] == "Field")
        .map(|table| (table.heading.clone(), fields_of(table)))
        .collect();
    for (name, fields) in WIRE_STRUCTS {
        let heading = format!("`{name}` (payload)");
        let in_doc = documented
            .remove(&heading)
            .unwrap_or_else(|| panic!("no table under the heading {heading}"));
        let in_code: Fields = fields
            .iter()
            .map(|(field, ty)| ((*field).to_owned(), (*ty).to_owned()))
            .collect();
        assert_eq!(in_doc, in_code, "{name}");
    }
    assert!(
        documented.is_empty(),
        "tables of no struct: {:?}",
        documented.keys()
    );
}

fn assert_numbers(columns: [&str; 2], in_code: &[(u64, String)]) {
    let in_doc: Vec<(u64, String)> = pairs(columns)
        .into_iter()
        .map(|(value, name)| (number(&value), name))
        .collect();
    assert_eq!(in_doc, in_code, "{columns:?}");
}

macro_rules! named {
    ($module:ident: $($name:ident),*) => { [$((u64::from($module::$name), stringify!($name).to_owned())),*] };
}

#[test]
fn status_kind_state_and_flag_numbers_are_the_codes() {
    let statuses: Vec<(u64, String)> = Status::ALL
        .iter()
        .map(|status| (*status as u64, format!("{status:?}")))
        .collect();
    assert_numbers(["Number", "Status"], &statuses);
    let kinds = named!(record_kind: VALUE, PART, HEAD, TOMBSTONE, FILLER, FOOTER);
    assert_numbers(["Number", "Kind"], &kinds);
    let states = named!(segment_state: ACTIVE, SEALED, LOADING, STAGED, LOST, RETIRED);
    assert_numbers(["Number", "State"], &states);
    let flags = named!(change_flag: TABLE, DIRECTORY, DROPPED, SNAPSHOTS);
    assert_numbers(["Bit", "Flag"], &flags);
    let segment_flags = named!(segment_flag: FULL_LENGTH);
    assert_numbers(["Bit", "Segment flag"], &segment_flags);
    let trailer_flags = named!(trailer_flag: CUT);
    assert_numbers(["Bit", "Trailer flag"], &trailer_flags);
    let connect = format!(
        "{} `CONTROL`, {} `DATA`",
        connect_kind::CONTROL,
        connect_kind::DATA
    );
    assert!(DOC.contains(&connect), "{connect}");
    for (index, status) in Status::ALL.iter().enumerate() {
        assert_eq!(Status::from_wire(index as u16), Some(*status));
    }
    assert_eq!(Status::from_wire(Status::ALL.len() as u16), None);
}

macro_rules! constants {
    ($($module:ident::$name:ident),* $(,)?) => {
        BTreeMap::from([$((stringify!($name).to_owned(), $module::$name as u64)),*])
    };
}

fn constants() -> BTreeMap<String, u64> {
    constants! {
        layout::PROTOCOL_VERSION, layout::MEDIA_FORMAT, layout::KEY_MAX_BYTES, layout::DATASET_NAME_MAX_BYTES,
        layout::KEY_NAME_MAX_BYTES, layout::BLOCK_BYTES, layout::RECORD_ALIGN_BYTES, layout::EXTENT_BYTES,
        layout::SEGMENT_DEFAULT_BYTES, layout::SEGMENT_MAX_BYTES, layout::SEGMENT_MIN_BYTES, layout::PARTS_MAX,
        layout::PART_MAX_BYTES, layout::DATASETS_PER_SESSION_MAX, layout::OPERATIONS_REMEMBERED,
        layout::GROUP_BUCKETS, layout::BUCKET_SLOTS, layout::GROUP_BYTES, layout::DIRECTORY_DEPTH_MAX,
        layout::STAMP_MOVED, layout::RECORD_MAGIC, layout::SEGMENT_MAGIC, layout::TRAILER_MAGIC,
        layout::CATALOGUE_MAGIC,
        layout::SUPERBLOCK_MAGIC, layout::DATASET_MAGIC, layout::CHECKPOINT_MAGIC,
        layout::SEGMENT_LIST_MAGIC, layout::SNAPSHOT_MAGIC, layout::CONNECT_MAGIC, control::FRAME_MAX_BYTES, control::FRAME_HEADER_BYTES, control::ANSWER,
        control::HELLO_KIND, control::RECEIVES_DEFAULT, control::REFUSAL_TEXT_MAX_BYTES,
    }
}

#[test]
fn the_limits_table_is_the_constants() {
    let in_doc: BTreeMap<String, u64> = pairs(["Constant", "Value"])
        .into_iter()
        .map(|(name, value)| (name, number(&value)))
        .collect();
    assert_eq!(in_doc, constants());
}

#[test]
fn the_positions_table_is_the_function() {
    let rows = pairs(["Hash", "Position"]);
    assert_eq!(rows.len(), 8);
    for (step, (hash, position)) in (0_u64..).zip(rows) {
        assert_eq!(number(&hash), step << 61);
        assert_eq!(number(&position), u64::from(kv_proto::hash::position(step << 61)));
    }
}

#[test]
fn every_public_number_is_in_the_limits_table() {
    let known = constants();
    for source in [
        include_str!("../src/layout.rs"),
        include_str!("../src/control/mod.rs"),
        include_str!("../src/control/frames.rs"),
        include_str!("../src/control/status.rs"),
        include_str!("../src/control/wire.rs"),
        include_str!("../src/hash.rs"),
        include_str!("../src/footer.rs"),
        include_str!("../src/record.rs"),
        include_str!("../src/parts.rs"),
        include_str!("../src/bucket.rs"),
        include_str!("../src/crc.rs"),
        include_str!("../src/auth.rs"),
    ] {
        for line in source.lines() {
            // Constants inside modules (kinds, states, flags) are indented and have tables of their own.
            let Some(rest) = line.strip_prefix("pub const ") else {
                continue;
            };
            let Some((name, ty)) = rest.split_once(": ") else {
                continue;
            };
            if name.starts_with("fn ") || ty.starts_with('&') {
                continue;
            }
            assert!(known.contains_key(name), "{name} is not in the limits table");
        }
    }
}

#[test]
fn the_functions_that_the_rules_name_exist() {
    let sources = [
        include_str!("../src/auth.rs"),
        include_str!("../src/bucket.rs"),
        include_str!("../src/crc.rs"),
        include_str!("../src/footer.rs"),
        include_str!("../src/hash.rs"),
        include_str!("../src/layout.rs"),
        include_str!("../src/parts.rs"),
        include_str!("../src/record.rs"),
    ]
    .concat();
    let mut named = 0;
    for quoted in DOC.split('`').skip(1).step_by(2) {
        let Some((_, item)) = quoted.rsplit_once("::") else {
            continue;
        };
        let item = item.split('(').next().unwrap_or(item);
        let exists = [
            format!("pub fn {item}("),
            format!("pub const fn {item}("),
            format!("pub struct {item} "),
        ]
        .iter()
        .any(|declaration| sources.contains(declaration));
        assert!(exists, "`{quoted}` is not in this crate");
        named += 1;
    }
    assert!(named >= 20, "only {named} functions are named");
}

#[test]
fn ascii_only() {
    let line = DOC.lines().find(|line| !line.is_ascii());
    assert_eq!(line, None);
}
