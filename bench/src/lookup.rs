//! What a lookup by READs costs in a large table and in a small one, beside dependent random loads over memory of the
//! large one's size: one process, the `local` network, alternating.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kv_client::{AccessKey, Client, ClientOptions};
use kv_fabric::local::Local;
use kv_fabric::{Fabric, Memory, MemoryKind};
use kv_proto::auth::Role;
use kv_proto::crc::crc32c;
use kv_server::control::keys::Key;
use kv_server::control::{Keys, Options, Server};
use kv_server::error::StorageError;
use kv_server::store::{BeginPut, Compaction, Completion, Dataset, Store, StoreOptions};
use serde::Serialize;

use crate::Error;
use crate::environment::Environment;
use crate::interrupt;
use crate::stats::{Interval, interval};

/// Keys and values of this length make records of 128 bytes.
pub(crate) const KEY_BYTES: usize = 16;
pub(crate) const VALUE_BYTES: usize = 48;
/// Operations in flight while a table is filled.
const FILL_AHEAD: u64 = 4096;
/// Lookups of one call, where many are asked for at once.
const BATCH: usize = 256;
/// Values of each table that are fetched and compared.
const VERIFIED: usize = 1000;
/// Bytes between the loads of a chain.
const LINE_BYTES: usize = 64;
/// Bytes of a bucket.
const BUCKET_BYTES: usize = 256;
/// A lookup may take so many times the dependent loads.
const TARGET: f64 = 1.5;
const SECRET: [u8; 32] = [7; 32];

/// Options of `bench lookup`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Keys of the large table.
    #[arg(long, default_value_t = 10_000_000)]
    keys: u64,
    /// Keys of the small table.
    #[arg(long, default_value_t = 10_000)]
    small: u64,
    /// Where the server keeps its data: a fresh directory is made in it.
    #[arg(long)]
    data: PathBuf,
    /// Alternating blocks.
    #[arg(long, default_value_t = 20)]
    blocks: usize,
    /// Lookups of one kind in one block, and loads.
    #[arg(long, default_value_t = 50_000)]
    lookups: usize,
    /// Seed of the order in which keys are looked up.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Writes the figures here, as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// What lookups in one table cost.
#[derive(Debug, Serialize)]
struct Table {
    keys: u64,
    /// Memory of its index for each key, bytes, when it had been filled.
    index_per_key_bytes: f64,
    /// READs of a lookup, one by one.
    reads_per_lookup: f64,
    /// Doorbells, which are round trips, of a lookup, one by one.
    round_trips_per_lookup: f64,
    /// Lookups that did not get on at once, of all.
    retries: u64,
    /// One by one, ns.
    one_ns: Interval,
    /// Many at once, ns each.
    many_ns: Interval,
}

/// The figures; field names are those of the JSON.
#[derive(Debug, Serialize)]
struct Report {
    environment: Environment,
    blocks: usize,
    lookups: usize,
    /// Values fetched and compared, of both tables.
    verified: usize,
    large: Table,
    small: Table,
    /// Memory that the loads go over: as much as the large index.
    memory_bytes: u64,
    /// One load of 8 bytes whose address the last one gave, ns.
    load_ns: Interval,
    /// The same of a whole bucket of 256 bytes, ns.
    load_bucket_ns: Interval,
    /// A lookup of the large table over as many loads as it has READs, block by block.
    one_over_loads: Interval,
    many_over_loads: Interval,
    /// The same over loads of whole buckets.
    one_over_bucket_loads: Interval,
    many_over_bucket_loads: Interval,
    /// A lookup of the large table over one of the small table.
    one_over_small: Interval,
    many_over_small: Interval,
    /// As many READs and round trips, and within the target.
    reached: bool,
}

pub(crate) fn key_of(number: u64) -> [u8; KEY_BYTES] {
    let mut key = *b"key-    ........";
    key[8..].copy_from_slice(&number.to_le_bytes());
    key
}

pub(crate) fn value_of(number: u64) -> [u8; VALUE_BYTES] {
    [number as u8; VALUE_BYTES]
}

/// Runs the measurement; whether the target was reached.
pub(crate) fn run(args: &Args) -> Result<bool, Error> {
    let folder = interrupt::noted(tempfile::tempdir_in(&args.data)?);
    let options = StoreOptions {
        scrub_share: 0.0,
        data: folder.path().join("data"),
        // Twice the records, and what an index may have.
        memory_budget_bytes: (args.keys + args.small) * 320 + (1 << 30),
        segment_bytes: 256 << 20,
        part_bytes: 16 << 20,
        gather_budget_bytes: 256 << 20,
        compaction: Compaction::default(),
    };
    let sizes = [("large", args.keys), ("small", args.small)];
    let index_bytes = fill_store(&options, &sizes, VALUE_BYTES)?;
    let served = Served::start(options, folder.path())?;
    let report = measure(args, &served, &index_bytes)?;
    served.stop()?;
    print_table(&report);
    if let Some(path) = &args.json {
        std::fs::write(path, serde_json::to_string_pretty(&report)? + "\n")?;
    }
    Ok(report.reached)
}

/// Fills a store in this process, a dataset for each size; what their indexes take, bytes. A value has the low byte of its
/// number in all of its bytes.
pub(crate) fn fill_store(
    options: &StoreOptions,
    sizes: &[(&'static str, u64)],
    value_bytes: usize,
) -> Result<BTreeMap<&'static str, u64>, Error> {
    let fabric = Local::new()?;
    let store = Store::open(options.clone(), move || fabric.domain())?;
    let mut taken = BTreeMap::new();
    for (name, count) in sizes {
        let started = Instant::now();
        store.create(name)?;
        let dataset = store.by_name(name).ok_or("the dataset is there")?;
        fill(&store, &dataset, *count, value_bytes)?;
        let stat = dataset.stat();
        let bytes = stat
            .iter()
            .find(|(figure, _)| figure == "index_bytes")
            .map_or(0, |(_, bytes)| *bytes);
        taken.insert(*name, bytes);
        eprintln!("{name}: {count} keys in {:.1} s", started.elapsed().as_secs_f64());
    }
    store.shutdown();
    Ok(taken)
}

fn fill(store: &Store, dataset: &Dataset, count: u64, value_bytes: usize) -> Result<(), Error> {
    let mut done: Vec<Completion> = Vec::new();
    let (mut begun, mut finished) = (0, 0);
    while finished < count {
        while begun < count && begun - finished < FILL_AHEAD {
            let value = vec![begun as u8; value_bytes];
            let put = dataset.begin_put(1, begun + 1, &key_of(begun), value_bytes as u64);
            let mut put = match put {
                Ok(BeginPut::New(put)) => put,
                Err(StorageError::Busy(_)) => break,
                Ok(other) => return Err(format!("{other:?} of a new operation").into()),
                Err(error) => return Err(error.into()),
            };
            put.append(value_bytes, |out| out.copy_from_slice(&value))?;
            dataset.commit(put, crc32c(&value), begun);
            begun += 1;
        }
        store.completions().drain(&mut done);
        if done.is_empty() {
            std::thread::sleep(Duration::from_micros(100));
        }
        for completion in done.drain(..) {
            completion.result?;
            finished += 1;
        }
        // No session reads what the index outgrew.
        store.release(&dataset.id(), store.retired());
    }
    Ok(())
}

/// A server in this process, and a session with it.
struct Served {
    server: Server,
    session: kv_client::Server,
}

impl Served {
    fn start(options: StoreOptions, folder: &Path) -> Result<Self, Error> {
        let key = Key {
            name: "bench".to_owned(),
            secret: SECRET,
            role: Role::Read,
            datasets: vec!["*".to_owned()],
        };
        let socket = folder.join("socket").to_string_lossy().into_owned();
        let started = Instant::now();
        let server = Server::start(
            Arc::new(Local::new()?),
            &socket,
            options,
            Keys::new(vec![key])?,
            Options::default(),
        )?;
        eprintln!("server: ready in {:.1} s", started.elapsed().as_secs_f64());
        let options = ClientOptions::new(AccessKey::new("bench", SECRET));
        let session = kv_client::Server::connect_over(Arc::new(Local::new()?), &socket, options)?;
        Ok(Self { server, session })
    }

    fn stop(self) -> Result<(), Error> {
        drop(self.session);
        self.server.stop();
        Ok(self.server.join()?)
    }
}

/// One table as it is measured.
struct Side {
    dataset: Client,
    keys: u64,
    index_bytes: u64,
    random: fastrand::Rng,
    one: Vec<f64>,
    many: Vec<f64>,
    reads: u64,
    doorbells: u64,
    retries: u64,
    lookups: u64,
    verified: usize,
}

impl Side {
    fn new(
        served: &Served,
        name: &'static str,
        keys: u64,
        seed: u64,
        index_bytes: &BTreeMap<&'static str, u64>,
    ) -> Result<Self, Error> {
        let mut side = Self {
            dataset: served.session.open(name)?,
            keys,
            index_bytes: index_bytes[name],
            random: fastrand::Rng::with_seed(seed),
            one: Vec::new(),
            many: Vec::new(),
            reads: 0,
            doorbells: 0,
            retries: 0,
            lookups: 0,
            verified: 0,
        };
        // Every page of the directory is there before anything is timed.
        let mut random = fastrand::Rng::with_seed(!seed);
        let keys: Vec<_> = (0..100_000).map(|_| key_of(random.u64(..side.keys))).collect();
        for found in side.dataset.locate_many(&keys) {
            found?;
        }
        let numbers: Vec<_> = (0..VERIFIED).map(|_| random.u64(..side.keys)).collect();
        let keys: Vec<_> = numbers.iter().copied().map(key_of).collect();
        for (number, found) in numbers.into_iter().zip(side.dataset.get_many(&keys)) {
            if found? != value_of(number) {
                return Err("a value came back changed".into());
            }
            side.verified += 1;
        }
        Ok(side)
    }

    fn chosen(&mut self, count: usize) -> Vec<[u8; KEY_BYTES]> {
        (0..count).map(|_| key_of(self.random.u64(..self.keys))).collect()
    }

    /// Looks `count` keys up one by one, and as many in batches.
    fn block(&mut self, count: usize) -> Result<(), Error> {
        let keys = self.chosen(count);
        let before = self.dataset.counters();
        let started = Instant::now();
        for key in &keys {
            self.dataset.locate(key)?;
        }
        self.one.push(ns_each(started, count));
        let after = self.dataset.counters();
        self.reads += after.reads_posted - before.reads_posted;
        self.doorbells += after.doorbells - before.doorbells;
        self.lookups += count as u64;
        let keys = self.chosen(count);
        let started = Instant::now();
        for batch in keys.chunks(BATCH) {
            for found in self.dataset.locate_many(batch) {
                found?;
            }
        }
        self.many.push(ns_each(started, count));
        self.retries += self.dataset.counters().retries - before.retries;
        Ok(())
    }

    fn reads_per_lookup(&self) -> f64 {
        self.reads as f64 / self.lookups as f64
    }

    fn round_trips_per_lookup(&self) -> f64 {
        self.doorbells as f64 / self.lookups as f64
    }

    fn table(&self) -> Result<Table, Error> {
        Ok(Table {
            keys: self.keys,
            index_per_key_bytes: self.index_bytes as f64 / self.keys as f64,
            reads_per_lookup: self.reads_per_lookup(),
            round_trips_per_lookup: self.round_trips_per_lookup(),
            retries: self.retries,
            one_ns: median_of(self.one.clone())?,
            many_ns: median_of(self.many.clone())?,
        })
    }
}

fn ns_each(started: Instant, count: usize) -> f64 {
    started.elapsed().as_nanos() as f64 / count as f64
}

fn median_of(mut samples: Vec<f64>) -> Result<Interval, Error> {
    interval(&mut samples).ok_or_else(|| "no block was measured".into())
}

/// One cycle through memory, in an order that no prefetcher knows: where it goes next lies where it is.
struct Chain {
    memory: Memory,
    at: u64,
}

impl Chain {
    /// A cycle over `bytes` of memory of the kind that an index has.
    fn new(bytes: u64, seed: u64) -> Result<Self, Error> {
        let lines = (bytes as usize / BUCKET_BYTES).max(2) * (BUCKET_BYTES / LINE_BYTES);
        let memory = Memory::new(lines * LINE_BYTES, MemoryKind::SharedReadOnly)?;
        // Sattolo's shuffle: one cycle that has every line.
        let mut next: Vec<u32> = (0..u32::try_from(lines)?).collect();
        let mut random = fastrand::Rng::with_seed(seed);
        for line in (1..lines).rev() {
            next.swap(line, random.usize(..line));
        }
        for (line, next) in next.into_iter().enumerate() {
            memory.write(line * LINE_BYTES, &u64::from(next).to_le_bytes());
        }
        Ok(Self { memory, at: 0 })
    }

    /// Loads 8 bytes `count` times, each where the last says; ns each.
    fn loads(&mut self, count: usize) -> f64 {
        let started = Instant::now();
        for _ in 0..count {
            let mut next = [0; 8];
            self.memory.read(self.at as usize * LINE_BYTES, &mut next);
            self.at = u64::from_le_bytes(next);
        }
        ns_each(started, count)
    }

    /// The same, but the whole bucket that the line lies in is copied.
    fn bucket_loads(&mut self, count: usize) -> f64 {
        const LINES: u64 = (BUCKET_BYTES / LINE_BYTES) as u64;
        let started = Instant::now();
        for _ in 0..count {
            let mut bucket = [0; BUCKET_BYTES];
            let first = self.at / LINES;
            self.memory.read(first as usize * BUCKET_BYTES, &mut bucket);
            let within = (self.at % LINES) as usize * LINE_BYTES;
            let next = bucket.iter().skip(within).take(8);
            // Every line counts, so that none is left out.
            let rest = bucket
                .iter()
                .step_by(LINE_BYTES)
                .fold(0_u64, |sum, byte| sum ^ u64::from(*byte));
            std::hint::black_box(rest);
            self.at = next.rev().fold(0, |at, byte| at << 8 | u64::from(*byte));
        }
        ns_each(started, count)
    }
}

fn measure(args: &Args, served: &Served, index_bytes: &BTreeMap<&'static str, u64>) -> Result<Report, Error> {
    let mut large = Side::new(served, "large", args.keys, args.seed, index_bytes)?;
    let mut small = Side::new(served, "small", args.small, args.seed, index_bytes)?;
    let mut chain = Chain::new(large.index_bytes, args.seed)?;
    let (mut loads, mut bucket_loads) = (Vec::new(), Vec::new());
    for _ in 0..args.blocks.max(1) {
        large.block(args.lookups)?;
        loads.push(chain.loads(args.lookups));
        small.block(args.lookups)?;
        bucket_loads.push(chain.bucket_loads(args.lookups));
    }
    let reads = large.reads_per_lookup();
    let ratio = |of: &[f64], over: &[f64], times: f64| {
        let pairs = of.iter().zip(over);
        median_of(pairs.map(|(of, over)| of / (over * times)).collect())
    };
    // One lookup in 64 has both candidates in one bucket, by chance not the same number of them in both tables.
    let alike = (reads - small.reads_per_lookup()).abs() < 0.01
        && large.round_trips_per_lookup() == small.round_trips_per_lookup();
    let one_over_loads = ratio(&large.one, &loads, reads)?;
    let many_over_loads = ratio(&large.many, &loads, reads)?;
    Ok(Report {
        environment: Environment::read(),
        blocks: args.blocks,
        lookups: args.lookups,
        verified: large.verified + small.verified,
        memory_bytes: large.index_bytes,
        one_over_bucket_loads: ratio(&large.one, &bucket_loads, reads)?,
        many_over_bucket_loads: ratio(&large.many, &bucket_loads, reads)?,
        one_over_small: ratio(&large.one, &small.one, 1.0)?,
        many_over_small: ratio(&large.many, &small.many, 1.0)?,
        reached: alike && many_over_loads.median <= TARGET && one_over_loads.median <= TARGET,
        one_over_loads,
        many_over_loads,
        load_ns: median_of(loads)?,
        load_bucket_ns: median_of(bucket_loads)?,
        large: large.table()?,
        small: small.table()?,
    })
}

fn print_table(report: &Report) {
    println!("table        keys  bytes/key  READs  round trips  one by one ns  {BATCH} at once ns");
    for table in [&report.large, &report.small] {
        println!(
            "{:>16}  {:>9.1}  {:>5.3}  {:>11.3}  {:>13.0}  {:>15.0}",
            table.keys,
            table.index_per_key_bytes,
            table.reads_per_lookup,
            table.round_trips_per_lookup,
            table.one_ns.median,
            table.many_ns.median,
        );
    }
    let mib = report.memory_bytes >> 20;
    println!(
        "dependent random loads over {mib} MiB: {:.0} ns, of whole buckets {:.0} ns",
        report.load_ns.median, report.load_bucket_ns.median
    );
    let line = |what: &str, one: &Interval, many: &Interval| {
        println!(
            "{what}: {:.2} ({:.2} to {:.2}) one by one, {:.2} ({:.2} to {:.2}) {BATCH} at once",
            one.median, one.low, one.high, many.median, many.low, many.high
        );
    };
    line(
        "over as many loads",
        &report.one_over_loads,
        &report.many_over_loads,
    );
    line(
        "over as many loads of buckets",
        &report.one_over_bucket_loads,
        &report.many_over_bucket_loads,
    );
    line(
        "over the small table",
        &report.one_over_small,
        &report.many_over_small,
    );
    println!(
        "as many READs and round trips, and both within {TARGET} times the loads: {}",
        if report.reached { "yes" } else { "no" }
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_comes_back_to_its_start_after_all_lines() {
        let mut chain = Chain::new(1 << 16, 5).unwrap();
        let lines = (1 << 16) / LINE_BYTES;
        let mut seen = vec![false; lines];
        for step in 0..lines {
            assert!(!std::mem::replace(&mut seen[chain.at as usize], true));
            if step % 2 == 0 {
                chain.loads(1);
            } else {
                chain.bucket_loads(1);
            }
        }
        assert_eq!(chain.at, 0);
    }
}
