//! Every kind of byte of a data directory, flipped bit by bit: found, named, and never served.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use kv_proto::layout::{
    CatalogueHeader, CheckpointHeader, DatasetDescription, RecordHeader, SegmentHeader, SegmentListHeader,
    SegmentTrailer, Superblock, prefix_len, record_kind,
};

use super::support::{MIB, Miss, Rig, bytes, copy_directory, options, scratch, segment_files_in};
use crate::store::check::{Finding, Level, Summary, Watch, check};
use crate::store::files::Files;
use crate::store::recover::SegmentFile;
use crate::store::{StoreOptions, checkpoint, footer, parse_segment_name};

type Values = BTreeMap<(String, Vec<u8>), Option<Vec<u8>>>;

#[derive(Default)]
pub(super) struct Seen(pub(super) Vec<Finding>, bool);

impl Watch for Seen {
    fn progress(&mut self, bytes: u64, of: u64) -> bool {
        // Heads of files are read once more to find where the records are; a repair reads what it lists anew twice.
        let times = if self.1 { 4 } else { 2 };
        assert!(bytes <= of * times + 4096, "{bytes} of {of}");
        true
    }

    fn found(&mut self, finding: &Finding) {
        self.0.push(finding.clone());
    }
}

pub(super) fn checked(root: &Path, repair: bool) -> (Summary, Vec<Finding>) {
    let mut seen = Seen(Vec::new(), repair);
    let summary = check(root, repair, &mut seen).unwrap();
    let count = |level| seen.0.iter().filter(|it| it.level == level).count() as u64;
    assert_eq!(summary.damage, count(Level::Damage));
    assert_eq!(summary.notes, count(Level::Note));
    assert_eq!(summary.repaired, count(Level::Repaired));
    (summary, seen.0)
}

/// Every file with its bytes.
pub(super) fn contents(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(root).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(contents(&path));
        } else {
            found.insert(path.clone(), std::fs::read(&path).unwrap());
        }
    }
    found
}

pub(super) fn with_blocks(root: &Path) -> StoreOptions {
    StoreOptions {
        part_bytes: 200 << 10,
        // Nothing moves: the places are those that were written.
        compaction: crate::store::Compaction {
            dead_share: 1.0,
            disk_share: 1.0,
            ..options(root).compaction
        },
        ..options(root)
    }
}

fn open(root: &Path) -> Rig {
    Rig::with(with_blocks(root), Files::default()).unwrap()
}

/// Two datasets of some segments each: values, values of several blocks, large values in parts, overwritten and
/// deleted keys.
fn fill(root: &Path, rounds: u64) -> Values {
    let mut values = Values::new();
    for round in 0..rounds {
        let rig = open(root);
        for name in ["alpha", "beta"] {
            if round == 0 {
                rig.store.create(name).unwrap();
            }
            let seed = round * 100 + name.len() as u64;
            let mut put = |key: String, len: usize| {
                let value = bytes(seed + key.len() as u64 * 7, len);
                rig.put(name, key.as_bytes(), &value).unwrap();
                values.insert((name.to_owned(), key.into_bytes()), Some(value));
            };
            for key in 0..12_usize {
                put(format!("each {key}"), key * 37);
                put(format!("of round {round}: {key}"), 200 + key);
            }
            put("blocks".to_owned(), 150_000);
            put("large".to_owned(), 450_000);
            for key in ["each 3", "each 7"] {
                rig.delete(name, key.as_bytes()).unwrap();
                values.insert((name.to_owned(), key.as_bytes().to_vec()), None);
            }
        }
        if round + 1 == rounds {
            // What an unsealed segment is, as a crash leaves it.
            copy_directory(root, &root.with_extension("crashed"));
        }
    }
    values
}

/// Bytes of a file that mean one thing.
#[derive(Debug, Clone)]
struct Region {
    what: String,
    path: PathBuf,
    dataset: Option<String>,
    segment: Option<u32>,
    from: u64,
    end: u64,
    /// First byte of the record or struct that they are of.
    of: u64,
    key: Option<Vec<u8>>,
    counts: Counts,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Counts {
    Always,
    /// It pads: nobody is served it.
    ForNothing,
    /// Behind the last record, where a crash may tear anything.
    UnlessTorn,
}

struct Regions {
    all: Vec<Region>,
    path: PathBuf,
    dataset: Option<String>,
    segment: Option<u32>,
}

impl Regions {
    fn add(&mut self, what: &str, (from, end): (u64, u64), of: u64, key: Option<&[u8]>, counts: Counts) {
        if from < end {
            self.all.push(Region {
                what: what.to_owned(),
                path: self.path.clone(),
                dataset: self.dataset.clone(),
                segment: self.segment,
                from,
                end,
                of,
                key: key.map(<[u8]>::to_vec),
                counts,
            });
        }
    }

    /// Every field of a struct, by the offsets of those behind it.
    fn fields(&mut self, what: &str, at: u64, ends: &[u64], key: Option<&[u8]>, counts: Counts) {
        let mut from = 0;
        for end in ends {
            let name = format!("{what} bytes {from} to {end}");
            self.add(&name, (at + from, at + end), at, key, counts);
            from = *end;
        }
    }
}

const RECORD_ENDS: [u64; 15] = [4, 6, 7, 8, 10, 12, 16, 24, 32, 40, 48, 52, 56, 60, 64];
const SEGMENT_ENDS: [u64; 10] = [4, 6, 8, 12, 16, 24, 40, 48, 56, 64];
const TRAILER_ENDS: [u64; 11] = [4, 6, 8, 12, 16, 24, 28, 32, 40, 48, 64];
const CHECKPOINT_ENDS: [u64; 12] = [4, 6, 8, 12, 16, 24, 32, 40, 44, 56, 60, 64];
const SUPERBLOCK_ENDS: [u64; 7] = [4, 6, 8, 24, 32, 36, 64];
const DESCRIPTION_ENDS: [u64; 9] = [4, 6, 8, 24, 40, 104, 112, 120, 128];
const CATALOGUE_ENDS: [u64; 5] = [4, 6, 8, 12, 16];
const SEGMENT_LIST_ENDS: [u64; 6] = [4, 6, 8, 24, 28, 32];

const _: () = assert!(
    size_of::<RecordHeader>() == 64
        && size_of::<SegmentHeader>() == 64
        && size_of::<SegmentTrailer>() == 64
        && size_of::<CheckpointHeader>() == 64
        && size_of::<Superblock>() == 64
        && size_of::<DatasetDescription>() == 128
        && size_of::<CatalogueHeader>() == 16
        && size_of::<SegmentListHeader>() == 32
);

fn regions(root: &Path) -> Vec<Region> {
    let mut regions = Regions {
        all: Vec::new(),
        path: root.join("superblock"),
        dataset: None,
        segment: None,
    };
    regions.fields("superblock", 0, &SUPERBLOCK_ENDS, None, Counts::Always);
    regions.path = root.join("catalogue");
    regions.fields("list of datasets", 0, &CATALOGUE_ENDS, None, Counts::Always);
    let list_len = std::fs::metadata(&regions.path).unwrap().len();
    regions.add("listed datasets", (16, list_len), 0, None, Counts::Always);
    for entry in std::fs::read_dir(root.join("datasets")).unwrap() {
        let directory = entry.unwrap().path();
        let description = std::fs::read(directory.join("dataset")).unwrap();
        let name = std::str::from_utf8(&description[40..44])
            .unwrap()
            .trim_end_matches('\0');
        let name = if name == "alph" { "alpha" } else { name };
        // Its name is not to be believed where the description is damaged.
        regions.dataset = None;
        regions.segment = None;
        regions.path = directory.join("dataset");
        regions.fields("description", 0, &DESCRIPTION_ENDS, None, Counts::Always);
        regions.dataset = Some(name.to_owned());
        regions.path = directory.join("segments");
        regions.fields("list of segments", 0, &SEGMENT_LIST_ENDS, None, Counts::Always);
        let list_len = std::fs::metadata(&regions.path).unwrap().len();
        regions.add("numbers of segments", (32, list_len), 0, None, Counts::Always);
        for path in segment_files_in(&directory) {
            segment_regions(&mut regions, &path, description[8..24].try_into().unwrap());
        }
    }
    regions.all
}

fn segment_regions(regions: &mut Regions, path: &Path, dataset: [u8; 16]) {
    let files = Files::default();
    let number = parse_segment_name(path.file_name().unwrap().to_str().unwrap()).unwrap();
    let file = SegmentFile::open(&files, path, number, dataset).unwrap();
    let opened = files.open(path).unwrap();
    let len = files.len(&opened).unwrap();
    regions.path = path.to_owned();
    regions.segment = Some(number);
    regions.fields("segment header", 0, &SEGMENT_ENDS, None, Counts::Always);
    let mut end = 64;
    let mut records = Vec::new();
    let scanned = file
        .walk(&files, &opened, 64, |found| {
            records.push((found.header, found.offset, found.key.to_vec()))
        })
        .unwrap();
    // Behind what the last header says was durable nothing tells a torn record from a damaged one.
    let durable = records
        .iter()
        .map(|(header, ..)| u64::from(header.durable_units) * 64)
        .max();
    let known = if file.trailer.is_some() {
        scanned.end
    } else {
        durable.unwrap_or(64)
    };
    let listed = match file.trailer {
        Some(_) => scanned.end,
        None => {
            let checkpoint = checkpoint::path_of(path);
            let read = checkpoint::read(&files, &checkpoint, number, file.header.identity, |_, _| ());
            read.unwrap().covered
        }
    };
    for (header, at, key) in records {
        if at > end {
            regions.add("gap", (end + 64, at), end, None, Counts::ForNothing);
            regions.fields("filler", end, &RECORD_ENDS, None, Counts::Always);
        }
        let counts = if at < known {
            Counts::Always
        } else {
            Counts::UnlessTorn
        };
        let kind = match header.kind {
            record_kind::VALUE => "value",
            record_kind::PART => "part",
            record_kind::HEAD => "head",
            _ => "tombstone",
        };
        let key = Some(&key[..]);
        let prefix = prefix_len(u64::from(header.key_len_bytes), u64::from(header.value_len_bytes));
        let key_end = at + 64 + u64::from(header.key_len_bytes);
        let value_end = at + prefix + u64::from(header.value_len_bytes);
        end = value_end.next_multiple_of(64);
        // What nothing lists is named by its own prefix alone.
        let key_of_prefix = key.filter(|_| at < listed);
        regions.fields(
            &format!("header of a {kind}"),
            at,
            &RECORD_ENDS,
            key_of_prefix,
            counts,
        );
        regions.add(&format!("key of a {kind}"), (at + 64, key_end), at, None, counts);
        regions.add(
            &format!("block CRCs of a {kind}"),
            (key_end, at + prefix),
            at,
            key_of_prefix,
            counts,
        );
        regions.add(
            &format!("value of a {kind}"),
            (at + prefix, value_end),
            at,
            key,
            counts,
        );
        regions.add(
            &format!("padding of a {kind}"),
            (value_end, end),
            at,
            key,
            Counts::ForNothing,
        );
    }
    if let Some(trailer) = &file.trailer {
        let mut at = scanned.end;
        footer::read(&files, &opened, trailer, |entries, operations| {
            let list = at + 64 + 16;
            let operations_at = list + 40 * entries.len() as u64;
            let value_end = operations_at + 40 * operations.len() as u64;
            regions.fields("header of a FOOTER", at, &RECORD_ENDS, None, Counts::Always);
            regions.add("counts of a FOOTER", (at + 64, list), at, None, Counts::Always);
            regions.add(
                "entries of a FOOTER",
                (list, operations_at),
                at,
                None,
                Counts::Always,
            );
            regions.add(
                "operations of a FOOTER",
                (operations_at, value_end),
                at,
                None,
                Counts::Always,
            );
            let next = value_end.next_multiple_of(64);
            regions.add(
                "padding of a FOOTER",
                (value_end, next),
                at,
                None,
                Counts::ForNothing,
            );
            at = next;
        })
        .unwrap();
        regions.fields("trailer", len - 64, &TRAILER_ENDS, None, Counts::Always);
    }
    let checkpoint = path.with_extension("checkpoint");
    if let Ok(bytes) = std::fs::read(&checkpoint) {
        regions.path = checkpoint;
        let mut at = 0;
        while at < bytes.len() as u64 {
            let header = &bytes[at as usize..];
            let body = u64::from_le_bytes(header[24..32].try_into().unwrap());
            let end = at + 64 + body;
            regions.fields(
                "chunk of a checkpoint",
                at,
                &CHECKPOINT_ENDS,
                None,
                Counts::UnlessTorn,
            );
            regions.add("body of a checkpoint", (at + 64, end), at, None, Counts::Always);
            let next = end.next_multiple_of(64);
            regions.add(
                "padding of a checkpoint",
                (end, next),
                at,
                None,
                Counts::ForNothing,
            );
            at = next;
        }
    }
}

/// Flips a bit of a file; again flips it back.
pub(super) fn flip(path: &Path, at: u64, bit: u8) {
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1 << bit], at).unwrap();
}

/// Whether a finding says where the flipped byte is.
fn names(finding: &Finding, region: &Region, at: u64) -> bool {
    let offset = finding.offset.unwrap_or(0);
    finding.path == region.path
        && finding.segment == region.segment
        && (region.dataset.is_none() || finding.dataset == region.dataset)
        // A trailer that does not validate is told where it begins; a record or a chunk too.
        && (region.of..=at).contains(&offset)
        && (region.key.is_none() || finding.key == region.key)
}

/// Flips seeded bits of every region and has each found and named; how many of each kind.
fn flip_everywhere(root: &Path, seed: u64, of_each: u64) -> BTreeMap<String, u64> {
    let mut kinds = BTreeMap::new();
    for (number, region) in (0_u64..).zip(regions(root)) {
        for turn in 0..of_each {
            let drawn = bytes(seed ^ (number << 8) ^ turn, 9);
            let place = u64::from_le_bytes(drawn[..8].try_into().unwrap());
            let (at, bit) = (region.from + place % (region.end - region.from), drawn[8] % 8);
            flip(&region.path, at, bit);
            let (summary, findings) = checked(root, false);
            let damage = findings.iter().filter(|it| it.level == Level::Damage);
            let told = match region.counts {
                Counts::UnlessTorn => summary.damage + summary.notes > 1,
                _ => damage.clone().any(|it| names(it, &region, at)),
            };
            let other = damage
                .clone()
                // What a whole value lacks is told of its head, which may lie elsewhere.
                .find(|it| {
                    it.path != region.path && region.segment.is_some() && !it.what.starts_with("part ")
                });
            assert!(
                told && other.is_none(),
                "seed {seed}, bit {bit} of byte {at} in {region:?}: {findings:#?}"
            );
            flip(&region.path, at, bit);
            *kinds.entry(region.what.clone()).or_default() += 1;
        }
    }
    kinds
}

#[test]
fn every_bit_that_flips_in_a_sealed_directory_is_found_and_named() {
    let directory = scratch();
    let root = directory.path().join("data");
    fill(&root, 2);
    let before = contents(&root);
    let (summary, findings) = checked(&root, false);
    assert_eq!(findings, []);
    assert_eq!((summary.datasets, summary.segments), (2, 4));
    assert_eq!(summary.keys, 2 * (10 + 24 + 2));
    let kinds = flip_everywhere(&root, 1, 1);
    for kind in [
        "value of a head",
        "block CRCs of a value",
        "padding of a FOOTER",
        "key of a tombstone",
    ] {
        assert!(kinds.contains_key(kind), "{kind}: {kinds:?}");
    }
    assert!(contents(&root) == before, "a check changes nothing");
}

#[test]
fn every_bit_that_flips_in_what_a_crash_left_is_found() {
    let directory = scratch();
    let root = directory.path().join("data");
    fill(&root, 2);
    let crashed = root.with_extension("crashed");
    let (summary, findings) = checked(&crashed, false);
    // The newest segment of each dataset was not sealed.
    assert_eq!((summary.damage, summary.notes), (0, 2), "{findings:#?}");
    let kinds = flip_everywhere(&crashed, 2, 1);
    assert!(kinds.contains_key("body of a checkpoint"), "{kinds:?}");
}

/// A gap before an extent, and the FILLER that covers it.
#[test]
fn a_bit_that_flips_in_or_under_a_filler_is_found() {
    let directory = scratch();
    let root = directory.path().join("data");
    let wide = StoreOptions {
        memory_budget_bytes: 512 * MIB,
        segment_bytes: 150 * MIB,
        part_bytes: 32 * MIB,
        gather_budget_bytes: 128 * MIB,
        ..options(&root)
    };
    let rig = Rig::with(wide, Files::default()).unwrap();
    rig.store.create("set").unwrap();
    for key in 0..4_u8 {
        rig.put("set", &[key], &vec![key; 22 << 20]).unwrap();
    }
    drop(rig);
    let all = regions(&root);
    let (_, findings) = checked(&root, false);
    assert_eq!(findings, []);
    let fillers: Vec<_> = all
        .into_iter()
        .filter(|it| it.what.starts_with("filler") || it.what == "gap")
        .collect();
    assert_eq!(fillers.len(), RECORD_ENDS.len() + 1);
    // All fields take long.
    for region in [&fillers[0], &fillers[1], &fillers[14]] {
        flip(&region.path, region.from, 3);
        let (summary, findings) = checked(&root, false);
        assert!(
            findings.iter().any(|it| names(it, region, region.from)),
            "{region:?}: {findings:#?}"
        );
        assert_eq!(summary.damage, 1, "{findings:#?}");
        flip(&region.path, region.from, 3);
    }
}

/// What a server serves of a directory: how many keys get an error, and whether it says that there is damage.
fn served(root: &Path, values: &Values, what: &Region) -> (usize, bool) {
    let opened = Rig::with(with_blocks(root), Files::default());
    let Ok(rig) = opened else {
        let error = opened.err();
        // A format that is not known ends the start, of whichever of the two it is.
        let whole = what.what.starts_with("superblock") || what.what == "description bytes 4 to 6";
        assert!(whole, "{what:?}: {error:?}");
        return (values.len(), true);
    };
    let mut errors = 0;
    for ((name, key), value) in values {
        if rig.store.by_name(name).is_none() {
            assert!(what.what.starts_with("description"), "{what:?}");
            errors += 1;
            continue;
        }
        match rig.reader(name).lookup(key) {
            Ok((_, found)) => assert!(Some(&found) == value.as_ref(), "{what:?}: key {key:?}"),
            Err(Miss::NotFound) => assert_eq!(*value, None, "{what:?}: key {key:?}"),
            Err(Miss::Torn | Miss::Stale) => errors += 1,
        }
    }
    let said =
        |name: &str| rig.store.by_name(name).is_none() || rig.figure(name, "damaged_records_count") > 0;
    let said = said("alpha") || said("beta");
    (errors, said)
}

/// One bit of each kind, in an old segment and in the newest: a client gets the right value or an error, never another.
#[test]
fn a_bit_that_flipped_is_never_served() {
    let directory = scratch();
    let root = directory.path().join("data");
    let values = fill(&root, 2);
    let mut first: BTreeMap<(String, Option<u32>), Region> = BTreeMap::new();
    for region in regions(&root) {
        first
            .entry((region.what.clone(), region.segment))
            .or_insert(region);
    }
    for (number, region) in (0_u64..).zip(first.values()) {
        let copy = scratch();
        let copied = copy.path().join("data");
        copy_directory(&root, &copied);
        let drawn = u64::from(bytes(number, 1)[0]);
        let at = region.from + drawn % (region.end - region.from);
        flip(&copied.join(region.path.strip_prefix(&root).unwrap()), at, 4);
        let (errors, said) = served(&copied, &values, region);
        let of_a_record = region.key.is_some() || region.what.starts_with("key");
        match region.counts {
            Counts::Always if of_a_record => {
                assert!(said, "{region:?}");
                assert!(errors <= 1, "{errors} keys for {region:?}");
            }
            Counts::Always => assert!(
                region.segment.is_none() || errors == 0,
                "{errors} keys for {region:?}"
            ),
            _ => assert_eq!(errors, 0, "{region:?}"),
        }
    }
}

/// FOOTERs, a trailer and a header that are damaged over whole records are written anew, leftovers go, and all that was
/// there is.
#[test]
fn a_repair_writes_lists_anew_and_loses_nothing() {
    let directory = scratch();
    let root = directory.path().join("data");
    let values = fill(&root, 2);
    let all = regions(&root);
    let in_a_list = |region: &&Region| {
        [
            "entries of a FOOTER",
            "operations of a FOOTER",
            "header of a FOOTER",
            "trailer",
            "segment header",
        ]
        .iter()
        .any(|kind| region.what.starts_with(kind))
    };
    let mut kinds = 0;
    for region in all.iter().filter(in_a_list) {
        let copy = scratch();
        let copied = copy.path().join("data");
        copy_directory(&root, &copied);
        let path = copied.join(region.path.strip_prefix(&root).unwrap());
        flip(&path, region.from, 0);
        let stale = path.with_extension("checkpoint");
        std::fs::write(&stale, b"stale").unwrap();
        std::fs::write(copied.join("superblock.new"), b"new").unwrap();
        let (summary, findings) = checked(&copied, true);
        assert!(
            summary.damage > 0 && summary.repaired >= 2,
            "{region:?}: {findings:#?}"
        );
        assert!(!copied.join("superblock.new").exists());
        let (summary, findings) = checked(&copied, false);
        assert_eq!(
            (summary.damage, summary.notes),
            (0, 0),
            "{region:?}: {findings:#?}"
        );
        assert_eq!(served(&copied, &values, region), (0, false), "{region:?}");
        kinds += 1;
    }
    assert!(kinds > 4 * 30, "{kinds}");
}

/// Damaged records stay as they are: nothing is written over them, and no list is made that leaves them out.
#[test]
fn a_repair_leaves_damaged_records_alone() {
    let directory = scratch();
    let root = directory.path().join("data");
    fill(&root, 1);
    let region = regions(&root)
        .into_iter()
        .find(|it| it.what == "value of a value")
        .unwrap();
    flip(&region.path, region.from, 1);
    let trailer = std::fs::metadata(&region.path).unwrap().len() - 70;
    flip(&region.path, trailer, 1);
    let before = contents(&root);
    let (summary, findings) = checked(&root, true);
    assert_eq!(summary.repaired, 0, "{findings:#?}");
    assert_eq!(summary.damage, 2, "{findings:#?}");
    assert!(
        findings
            .iter()
            .any(|it| it.key == region.key && it.remedy.contains("store it again"))
    );
    assert!(contents(&root) == before);
}

/// A part, a head and a key that are gone or damaged are told by the value that they are of.
#[test]
fn large_values_are_held_to_their_parts() {
    let directory = scratch();
    let root = directory.path().join("data");
    fill(&root, 3);
    // The segment with parts of the newest value is gone as a whole.
    let beta = regions(&root)
        .into_iter()
        .rfind(|it| it.what == "value of a part")
        .unwrap();
    let number = beta.segment.unwrap();
    let others = regions(&root)
        .into_iter()
        .filter(|it| it.segment == Some(number) && it.what == "value of a head");
    assert_eq!(others.count(), 1, "head and parts lie in one segment");
    let (before, _) = checked(&root, false);
    std::fs::remove_file(&beta.path).unwrap();
    let (after, findings) = checked(&root, true);
    // The older value is back, whole: nothing more can be told than that the file is gone.
    let gone: Vec<_> = findings.iter().filter(|it| it.level == Level::Damage).collect();
    assert_eq!((before.keys - after.keys, gone.len()), (12, 1), "{findings:#?}");
    assert_eq!((gone[0].segment, &gone[0].path), (Some(number), &beta.path));
    let part = regions(&root)
        .into_iter()
        .rfind(|it| it.what == "value of a part")
        .unwrap();
    flip(&part.path, part.from, 0);
    let (_, findings) = checked(&root, false);
    assert_eq!(findings.len(), 1, "{findings:#?}");
    assert_eq!(findings[0].key.as_deref(), Some(&b"large"[..]));
    assert!(findings[0].remedy.contains("store it again"), "{findings:#?}");
}

/// A page that the device cannot read is named, and what lies beside it is judged.
#[test]
fn a_page_that_cannot_be_read_is_named() {
    use crate::store::files::Call;
    use std::sync::atomic::{AtomicU64, Ordering};
    let directory = scratch();
    let root = directory.path().join("data");
    fill(&root, 1);
    let mut named = 0;
    for first in 0..24_u64 {
        let reads = AtomicU64::new(0);
        let faults = move |call: Call, path: &Path| {
            // A piece, and the page that is read where that failed.
            let failing = call == Call::Read
                && path.extension().is_some_and(|it| it == "segment")
                && (first..first + 2).contains(&reads.fetch_add(1, Ordering::Relaxed));
            failing.then(|| (0, std::io::Error::from_raw_os_error(5)))
        };
        let files = super::support::faulty(Box::new(faults));
        let mut seen = Seen::default();
        match crate::store::check::check_with(&files, &root, false, &mut seen) {
            Ok(summary) => assert!(summary.damage > 0, "read {first}"),
            Err(error) => assert!(crate::store::recover::says_lost(&error), "read {first}: {error}"),
        }
        let unreadable = |it: &&Finding| it.what.starts_with("cannot be read") && it.offset == Some(0);
        if seen.0.iter().any(|it| unreadable(&it)) {
            named += 1;
            let lost: Vec<_> = seen.0.iter().filter(|it| it.key.is_some()).collect();
            // The first record's header and key lie there; all others are whole.
            assert!(lost.len() <= 12, "{:#?}", seen.0);
        }
    }
    assert!(named > 0);
}
