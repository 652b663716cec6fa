//! Reclamation under fire: readers READ while writers fill, overwrite, delete and drop datasets without rest, on a
//! network that is late, in processes that stop; nothing wrong and nothing old may ever be read.
//!
//! What is required: every byte read is right, no value is older than a completed operation (see [`field`]), each
//! hazard that can happen has happened often, and retired space comes back.

mod fabrics;
mod field;
mod ground;
mod hazards;
mod reader;
mod shared;
mod space;
mod values;
mod writer;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, RwLock};
use std::time::{Duration, Instant};

use fastrand::Rng;
use kv_client::Server;
use kv_fabric::stop::StopAt;
use serde::Serialize;

use campaigns::Error;
use fabrics::Ends;
use ground::{Ground, cast, ground, session};
use hazards::{Hazard, Seen};
use shared::{Plan, Shared, lock};
use space::Space;

/// How often each hazard must happen in ten million checked reads or more; in fewer, in proportion.
const HAZARDS_LEAST: u64 = 1000;
/// Reads that a full campaign checks.
const READS_FULL: u64 = 10_000_000;
/// Datasets written at once: two that are dropped when they have had their share, and one that is compacted.
const PLACES: u64 = 3;

/// The network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Network {
    /// Simulated; it fences.
    Sim,
    /// Simulated; READs go on after the session's end.
    SimUnfenced,
    /// Shared memory.
    Local,
    /// RDMA.
    Verbs,
}

/// Readers, writers and reclamation against each other.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The network
    #[arg(long, value_enum, default_value = "sim")]
    fabric: Network,
    /// Reads to check; each hazard must happen 1000 times in ten million, in proportion in fewer
    #[arg(long, default_value_t = READS_FULL)]
    reads: u64,
    /// How often each hazard must happen, instead
    #[arg(long)]
    hazards: Option<u64>,
    /// Time after which a campaign that has not got there fails, s
    #[arg(long, default_value_t = 1800)]
    limit: u64,
    /// What choices and faults are drawn from; drawn itself unless given
    #[arg(long, value_parser = parse_seed)]
    seed: Option<u64>,
    /// Reading processes
    #[arg(long, default_value_t = 8)]
    readers: usize,
    /// Lease of a session, ms
    #[arg(long, default_value_t = 60)]
    lease: u32,
    /// Keys of a dataset
    #[arg(long, default_value_t = 6000)]
    keys: u32,
    /// Operations after which a dataset is dropped
    #[arg(long, default_value_t = 12_000)]
    operations: u32,
    /// Longer values: segments are full, and compacted, after fewer of them
    #[arg(long)]
    long: bool,
    /// Address to listen on, for verbs
    #[arg(long, env = "VKV_TEST_ADDR")]
    address: Option<String>,
    /// Where the data directory is made; in memory where there is /dev/shm, unless given
    #[arg(long)]
    data: Option<PathBuf>,
    /// Writes the result here
    #[arg(long)]
    json: Option<PathBuf>,
}

fn parse_seed(text: &str) -> Result<u64, std::num::ParseIntError> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    }
}

/// What came of a campaign.
#[derive(Debug, Serialize)]
struct Outcome {
    fabric: String,
    fences: bool,
    seed: u64,
    seconds: f64,
    reads_checked: u64,
    hazards_least: u64,
    values_written: u64,
    deletes: u64,
    datasets: u64,
    stale_locators: u64,
    stops: u64,
    seen: Seen,
    hazards: Vec<Hazard>,
    space: space::Report,
    trouble: Option<String>,
}

/// Runs a campaign; whether all that is required held.
pub(crate) fn run(args: &Args) -> Result<bool, Error> {
    let seed = args.seed.unwrap_or_else(|| Rng::new().u64(..));
    let in_proportion = (args.reads.min(READS_FULL) * HAZARDS_LEAST)
        .div_ceil(READS_FULL)
        .max(1);
    let plan = Plan {
        reads: args.reads,
        least: args.hazards.unwrap_or(in_proportion),
        readers: args.readers.max(1),
        lease: Duration::from_millis(u64::from(args.lease.max(10))),
        keys: args.keys.max(writer::WRITERS),
        operations: args.operations,
        long: args.long,
        memory_bytes: space::budget_bytes(args.operations, args.long, PLACES, args.readers as u64),
    };
    // Server and clients are all in this process.
    kv_proto::hash::weaken();
    let ground = ground(args, &plan, seed)?;
    println!(
        "fire: {} reads to check over {}, each hazard {} times at least; to repeat: --seed {seed:#x}",
        plan.reads,
        ground.ends.server.name(),
        plan.least
    );
    println!("{}", ground.ends.server.describe());
    let outcome = fire(args, plan, &ground, seed)?;
    report(args, &outcome)?;
    Ok(outcome.trouble.is_none() && outcome.hazards.iter().all(Hazard::holds))
}

fn fire(args: &Args, plan: Plan, ground: &Ground, seed: u64) -> Result<Outcome, Error> {
    let monitor = session(ground.ends.client(&ground.address)?, &ground.address, "admin")?;
    let space = Space::new(ground.folder.path().join("data"), plan.memory_bytes, &monitor)?;
    let (cast, stops) = cast(&plan, ground, seed)?;
    let shared = Shared {
        key_names: field::keys(plan.keys),
        fields: RwLock::default(),
        stops,
        over: AtomicBool::new(false),
        trouble: Mutex::default(),
        rng: Mutex::new(Rng::with_seed(seed)),
        space,
        generations: AtomicU64::new(0),
        checked: AtomicU64::new(0),
        written: AtomicU64::new(0),
        deleted: AtomicU64::new(0),
        stale_locators: AtomicU64::new(0),
        seen: (0..plan.readers).map(|_| Mutex::default()).collect(),
        plan,
    };
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let shared = &shared;
        for place in &cast.places {
            scope.spawn(move || {
                if let Err(why) = writer::run(shared, place) {
                    shared.fail(why);
                }
            });
        }
        for (number, session) in cast.readers.iter().enumerate() {
            let rng = Rng::with_seed(values::mix(seed ^ 0x5EED ^ (number as u64) << 32));
            scope.spawn(move || {
                if let Err(why) = reader::run(shared, session, rng, &shared.seen[number]) {
                    shared.fail(why);
                }
            });
        }
        watch(args, shared, &monitor, &ground.ends, begun);
    });
    drop(cast);
    let space = shared.space.come_back(&monitor);
    let space = space
        .map_err(|why| shared.fail(why))
        .unwrap_or_else(|()| shared.space.report());
    let checked = shared.checked.load(Ordering::SeqCst);
    if checked < plan.reads {
        shared.fail(format!(
            "only {checked} reads were checked within {} s",
            args.limit
        ));
    }
    Ok(Outcome {
        fabric: ground.ends.server.name().to_owned(),
        fences: ground.ends.server.fences(),
        seed,
        seconds: begun.elapsed().as_secs_f64(),
        reads_checked: checked,
        hazards_least: plan.least,
        values_written: shared.written.load(Ordering::SeqCst),
        deletes: shared.deleted.load(Ordering::SeqCst),
        datasets: shared.generations.load(Ordering::SeqCst),
        stale_locators: shared.stale_locators.load(Ordering::SeqCst),
        stops: shared.stops.iter().map(|stops| stops.counters().stops).sum(),
        seen: shared.seen(),
        hazards: shared.hazards(&ground.ends),
        space,
        trouble: lock(&shared.trouble).clone(),
    })
}

/// Stops readers now and then, looks at the space in use, and ends the campaign when all reads are checked and every
/// hazard has happened.
fn watch(args: &Args, shared: &Shared, monitor: &Server, ends: &Ends, begun: Instant) {
    let limit = Duration::from_secs(args.limit);
    let places = [StopAt::Post, StopAt::Post, StopAt::Posted, StopAt::Polled];
    let mut told = Instant::now();
    while !shared.is_over() {
        std::thread::sleep(shared.plan.lease);
        let (stops, at) = {
            let mut rng = lock(&shared.rng);
            (rng.choice(&shared.stops), rng.choice(&places))
        };
        if let (Some(stops), Some(at)) = (stops, at) {
            shared.stop_one(stops, *at);
        }
        if let Err(why) = shared.space.look(monitor) {
            shared.fail(why);
        }
        let checked = shared.checked.load(Ordering::Relaxed);
        if told.elapsed() > Duration::from_secs(10) {
            told = Instant::now();
            let datasets = shared.generations.load(Ordering::Relaxed);
            println!(
                "{:>5} s: {checked} reads checked, {datasets} datasets",
                begun.elapsed().as_secs()
            );
        }
        let hazards = shared.hazards(ends);
        let done = checked >= shared.plan.reads && hazards.iter().all(Hazard::holds);
        let done = done || hazards.iter().any(Hazard::is_forbidden);
        if done || begun.elapsed() > limit {
            shared.over.store(true, Ordering::SeqCst);
        }
    }
}

fn report(args: &Args, outcome: &Outcome) -> Result<(), Error> {
    println!(
        "{} reads checked in {:.1} s beside {} values and {} deletes in {} datasets; readers stopped {} times",
        outcome.reads_checked,
        outcome.seconds,
        outcome.values_written,
        outcome.deletes,
        outcome.datasets,
        outcome.stops
    );
    println!("{}", outcome.space.line());
    for hazard in &outcome.hazards {
        println!("{}", hazard.line());
    }
    if let Some(path) = &args.json {
        std::fs::write(path, serde_json::to_string_pretty(outcome)?)?;
    }
    match &outcome.trouble {
        None => println!("no wrong byte, and no value older than a completed operation"),
        Some(why) => println!("FAILED: {why} (seed {:#x})", outcome.seed),
    }
    Ok(())
}
