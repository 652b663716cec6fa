//! What a restart takes with ten million records, beside reading the same FOOTERs and filling a hash map with the same
//! keys: page cache cold for both, alternating.

use std::fs::File;
use std::hint::black_box;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use hashbrown::HashMap;
use kv_client::Client;
use kv_proto::layout::{SegmentTrailer, TRAILER_MAGIC};
use kv_server::store::{Compaction, StoreOptions};
use rustc_hash::FxBuildHasher;
use serde::Serialize;
use zerocopy::FromBytes;

use crate::Error;
use crate::disk::make_cold;
use crate::environment::Environment;
use crate::lookup::{KEY_BYTES, VALUE_BYTES, fill_store, key_of, value_of};
use crate::stage::{Listen, Stage};
use crate::stats::{Interval, interval};

const DATASET: &str = "large";
/// What `cat` reads at a time.
const CHUNK_BYTES: usize = 128 << 10;
/// A restart over its reference, at most.
const TARGET: f64 = 2.0;
/// Memory beside the images: index, connections, what arrives.
const MORE_MEMORY_BYTES: u64 = 2 << 30;

/// Options of `bench restart`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Records of 128 bytes.
    #[arg(long, default_value_t = 10_000_000)]
    records: u64,
    /// Directory on the file system that is measured: a fresh one is made in it.
    #[arg(long)]
    data: PathBuf,
    /// Alternating blocks.
    #[arg(long, default_value_t = 10)]
    blocks: usize,
    /// Writes the figures here, as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// The figures; field names are those of the JSON.
#[derive(Debug, Serialize)]
struct Report {
    environment: Environment,
    records: u64,
    blocks: usize,
    /// Values fetched after a start and compared.
    verified: usize,
    footer_bytes: u64,
    /// From starting the process until it says that it is ready, s.
    ready_s: Interval,
    /// Until a new client has found a key by READs, s.
    found_s: Interval,
    /// Reading the FOOTERs as `cat` does, s.
    cat_s: Interval,
    /// Inserting the keys into a `hashbrown` map that grows, one thread, s.
    map_s: Interval,
    /// The same into one that was made large enough, s.
    map_reserved_s: Interval,
    /// Ready over `cat` and the map that grows, block by block.
    ready_over_both: Interval,
    found_over_both: Interval,
    /// Ready over `cat` and the map that was made large enough.
    ready_over_both_reserved: Interval,
    reached: bool,
}

/// Where the FOOTERs of a segment's file lie: first byte and end.
struct Footers {
    path: PathBuf,
    first: u64,
    end: u64,
}

/// Runs the measurement; whether the target was reached.
pub(crate) fn run(args: &Args) -> Result<bool, Error> {
    let memory_bytes = args.records * 256 + MORE_MEMORY_BYTES;
    let stage = Stage::new(&args.data, Listen::Local, memory_bytes)?;
    let options = StoreOptions {
        data: stage.data.path().to_owned(),
        memory_budget_bytes: memory_bytes,
        segment_bytes: 1 << 30,
        part_bytes: 32 << 20,
        scrub_share: 0.0,
        gather_budget_bytes: 256 << 20,
        compaction: Compaction::default(),
    };
    fill_store(&options, &[(DATASET, args.records)], VALUE_BYTES)?;
    let mut report = Samples::default();
    for block in 0..args.blocks.max(1) {
        eprintln!("restart: block {} of {}", block + 1, args.blocks.max(1));
        let files = segment_files(&options.data)?;
        let footers = footers(&files)?;
        report.footer_bytes = footers.iter().map(|footers| footers.end - footers.first).sum();
        files.iter().try_for_each(|path| make_cold(path))?;
        report.cat.push(cat(&footers)?);
        report.map.push(fill_map(args.records, HashMap::default()));
        let reserved = HashMap::with_capacity_and_hasher(usize::try_from(args.records)?, FxBuildHasher);
        report.map_reserved.push(fill_map(args.records, reserved));
        files.iter().try_for_each(|path| make_cold(path))?;
        let (ready, found) = restart(&stage, block as u64 % args.records)?;
        report.verified += 1;
        report.ready.push(ready);
        report.found.push(found);
    }
    let report = report.finish(args)?;
    report.print();
    if let Some(path) = &args.json {
        std::fs::write(path, serde_json::to_string_pretty(&report)? + "\n")?;
    }
    Ok(report.reached)
}

fn segment_files(data: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut files = Vec::new();
    for entry in walkdir::WalkDir::new(data).sort_by_file_name() {
        let entry = entry?;
        if entry
            .path()
            .extension()
            .is_some_and(|extension| extension == "segment")
        {
            files.push(entry.into_path());
        }
    }
    Ok(files)
}

/// Where the FOOTERs lie: what the trailer of each file says.
fn footers(files: &[PathBuf]) -> Result<Vec<Footers>, Error> {
    files
        .iter()
        .map(|path| {
            let file = File::open(path)?;
            let len = file.metadata()?.len();
            const LEN: usize = size_of::<SegmentTrailer>();
            let mut trailer = [0; LEN];
            file.read_exact_at(&mut trailer, len.saturating_sub(LEN as u64))?;
            let trailer = SegmentTrailer::read_from_bytes(&trailer).map_err(|_| "a trailer has 64 bytes")?;
            if trailer.magic != TRAILER_MAGIC || trailer.footer_count == 0 {
                return Err(format!("{} is not sealed with FOOTERs", path.display()).into());
            }
            Ok(Footers {
                path: path.clone(),
                first: u64::from(trailer.footer_units) * 64,
                end: len,
            })
        })
        .collect()
}

/// Reads the FOOTERs from first to last; s.
fn cat(footers: &[Footers]) -> Result<f64, Error> {
    let mut chunk = vec![0; CHUNK_BYTES];
    let started = Instant::now();
    for footers in footers {
        let file = File::open(&footers.path)?;
        let mut at = footers.first;
        while at < footers.end {
            let some = CHUNK_BYTES.min((footers.end - at) as usize);
            file.read_exact_at(&mut chunk[..some], at)?;
            black_box(&chunk);
            at += some as u64;
        }
    }
    Ok(started.elapsed().as_secs_f64())
}

/// Inserts every key with 16 bytes, the length of a locator; s.
fn fill_map(records: u64, mut map: HashMap<[u8; KEY_BYTES], [u8; 16], FxBuildHasher>) -> f64 {
    let started = Instant::now();
    for number in 0..records {
        map.insert(key_of(number), u128::from(number).to_le_bytes());
    }
    black_box(&map);
    started.elapsed().as_secs_f64()
}

/// Starts the server; when it was ready and when a client had found a key, s. The key's value is compared.
fn restart(stage: &Stage, number: u64) -> Result<(f64, f64), Error> {
    let started = Instant::now();
    let server = stage.start()?;
    let ready = started.elapsed().as_secs_f64();
    let client = Client::connect(&stage.uri(&server.address, Some(DATASET)), stage.options()?)?;
    client.locate(&key_of(number))?;
    let found = started.elapsed().as_secs_f64();
    if client.get(&key_of(number))? != value_of(number) {
        return Err("a value came back changed".into());
    }
    drop(client);
    let ended = server.terminate()?;
    if !ended.success() {
        return Err(format!("kv-server ended with {ended}").into());
    }
    Ok((ready, found))
}

#[derive(Default)]
struct Samples {
    verified: usize,
    footer_bytes: u64,
    ready: Vec<f64>,
    found: Vec<f64>,
    cat: Vec<f64>,
    map: Vec<f64>,
    map_reserved: Vec<f64>,
}

impl Samples {
    fn finish(self, args: &Args) -> Result<Report, Error> {
        let of = |samples: &[f64]| interval(&mut samples.to_vec()).ok_or("no block was measured");
        let over = |a: &[f64], map: &[f64]| {
            let ratios: Vec<f64> = (0..a.len()).map(|n| a[n] / (self.cat[n] + map[n])).collect();
            of(&ratios)
        };
        let ready_over_both = over(&self.ready, &self.map)?;
        Ok(Report {
            environment: Environment::read(),
            records: args.records,
            blocks: self.ready.len(),
            verified: self.verified,
            footer_bytes: self.footer_bytes,
            ready_s: of(&self.ready)?,
            found_s: of(&self.found)?,
            cat_s: of(&self.cat)?,
            map_s: of(&self.map)?,
            map_reserved_s: of(&self.map_reserved)?,
            ready_over_both,
            found_over_both: over(&self.found, &self.map)?,
            ready_over_both_reserved: over(&self.ready, &self.map_reserved)?,
            reached: ready_over_both.median <= TARGET,
        })
    }
}

impl Report {
    fn print(&self) {
        let shown = |of: &Interval| format!("{:.2} ({:.2} to {:.2})", of.median, of.low, of.high);
        println!(
            "restart with {} records: {} blocks, {} MB of FOOTERs, cold page cache",
            self.records,
            self.blocks,
            self.footer_bytes / 1_000_000
        );
        println!("  ready, s                    {}", shown(&self.ready_s));
        println!("  a key found by READs, s     {}", shown(&self.found_s));
        println!("  cat of the FOOTERs, s       {}", shown(&self.cat_s));
        println!("  hashbrown that grows, s     {}", shown(&self.map_s));
        println!("  hashbrown large enough, s   {}", shown(&self.map_reserved_s));
        println!(
            "  ready over cat and map      {}, at most {TARGET}",
            shown(&self.ready_over_both)
        );
        println!("  found over cat and map      {}", shown(&self.found_over_both));
        println!(
            "  ready over cat and the second map {}",
            shown(&self.ready_over_both_reserved)
        );
        println!("  {}", if self.reached { "reached" } else { "NOT reached" });
    }
}
