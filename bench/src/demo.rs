//! The main job: real files into a dataset, the server killed and started again, every file fetched and compared.

use std::ffi::OsStr;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use campaigns::processes::Server;
use clap::ValueEnum;
use kv_client::{ReadError, Server as Session};
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::echo::{Echo, Echoed};
use crate::environment::{self, Environment};
use crate::fetch::{self, Pass, Sources};
use crate::latency::{self, Floor, Latency};
use crate::processes::{cpu_us, sleeps};
use crate::source::{self, Sample};
use crate::stage::{Listen, Stage};

const DATASET: &str = "demo";
const LATENCY_DATASET: &str = "demo-latency";
/// How long the idle server is watched.
const IDLE: Duration = Duration::from_secs(3);

/// Longest that the server may take to fill its images.
const LOAD_PATIENCE: Duration = Duration::from_secs(240);
/// What the server may still do after its last answer, before its time is read.
const SETTLE: Duration = Duration::from_millis(100);

/// Which network the demo uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Network {
    /// RDMA verbs.
    Verbs,
    /// Shared memory between two processes.
    Local,
}

/// Options of `bench demo`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Directory (or file) whose files are stored and compared.
    #[arg(long)]
    input: PathBuf,
    /// Network between server and client.
    #[arg(long, value_enum, default_value = "local")]
    network: Network,
    /// Where the server keeps its data: a directory on the file system to be used; a fresh one is made in it.
    #[arg(long)]
    data: PathBuf,
    /// Address that the server listens on and perftest uses, for verbs.
    #[arg(long, env = "VKV_TEST_ADDR")]
    address: Option<IpAddr>,
    /// RDMA device, for its packet counters and perftest.
    #[arg(long, env = "VKV_TEST_DEVICE")]
    device: Option<String>,
    /// What the report calls the place where this runs: device, host-rxe, vm or local.
    #[arg(long, env = "VKV_FABRIC_KIND", default_value = "local")]
    label: String,
    /// Port that the server listens on, for verbs.
    #[arg(long, default_value_t = 7471)]
    port: u16,
    /// Seed of the order in which samples are fetched.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Alternating blocks of the latency measurement.
    #[arg(long, default_value_t = 12)]
    blocks: usize,
    /// Writes the figures here, as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// The figures; field names are those of the JSON.
#[derive(Debug, Serialize)]
struct Report {
    fabric: String,
    network: &'static str,
    device: String,
    described: String,
    kernel: String,
    /// Files that are stored.
    samples: u64,
    bytes: u64,
    /// Files that could not be stored.
    failed: u64,
    /// Links and special files.
    skipped: u64,
    verified: u64,
    mismatched: u64,
    seed: u64,
    gets: u64,
    reads_posted: u64,
    /// Of those, the ones that only split large values.
    split_reads: u64,
    /// Samples that came by the READ of a neighbour.
    coalesced: u64,
    /// Before splitting and coalescing, as the next.
    reads_per_get_known: f64,
    /// With no locator cached, each key once. The directory, which a session READs once, is counted in the next.
    reads_per_get_cold: f64,
    directory_reads: u64,
    rdma_packets: Option<u64>,
    server_frames_during_fetch: u64,
    server_renewals_during_fetch: u64,
    /// How often a thread of the server was woken.
    server_wakes_during_fetch: u64,
    server_cpu_us_during_fetch: f64,
    /// A bare echo of one SEND beside the fetch, as often as a renewal: the floor of what a renewal costs. `None` where
    /// there is no device.
    echo_during_fetch: Option<Echoed>,
    server_idle_cpu_us_per_s: f64,
    ingest_mb_s: f64,
    fetch_mb_s: f64,
    fetch_samples_s: f64,
    restart_s: f64,
    get_4k_us: f64,
    get_4k_unverified_us: f64,
    crc_4k_us: f64,
    ib_read_lat_wire_us: Option<f64>,
    latency: Latency,
    environment: Environment,
}

/// Runs the demo; whether every sample came back right.
pub(crate) fn run(args: &Args) -> Result<bool, Error> {
    let samples = source::samples(&args.input)?;
    let bytes: u64 = samples.iter().map(|sample| sample.len_bytes).sum();
    if samples.is_empty() {
        return Err(format!("{} holds no regular file", args.input.display()).into());
    }
    let stage = stage(args, bytes, samples.len() as u64)?;
    let mut server = stage.start()?;
    let uri = stage.uri(&server.address, Some(DATASET));
    eprintln!("demo: storing {} files, {} MB", samples.len(), bytes / 1_000_000);
    stage.kv(&["dataset", "create", &uri].map(OsStr::new))?;
    let started = Instant::now();
    let ingested = ingest(&stage, &uri, &args.input)?;
    let ingest = started.elapsed();
    eprintln!("demo: killing the server and starting it again");
    server.kill()?;
    let started = Instant::now();
    server = stage.start()?;
    let restart = started.elapsed();
    let uri = stage.uri(&server.address, Some(DATASET));
    let mut report = fetch_all(args, &stage, &server, &uri, samples, ingested.failed)?;
    report.failed = ingested.failed;
    report.skipped = ingested.skipped;
    report.ingest_mb_s = bytes as f64 / 1e6 / ingest.as_secs_f64();
    report.restart_s = restart.as_secs_f64();
    let ended = server.terminate()?;
    if !ended.success() {
        return Err(format!("kv-server ended with {ended} after SIGTERM").into());
    }
    print_table(&report);
    if let Some(path) = &args.json {
        fs::write(path, serde_json::to_string_pretty(&report)? + "\n")
            .map_err(|error| format!("cannot write {}: {error}", path.display()))?;
    }
    Ok(report.mismatched == 0 && report.verified == report.samples && report.failed == 0)
}

/// What the ingest says of itself.
#[derive(Debug, Deserialize)]
struct Ingested {
    failed: u64,
    skipped: u64,
    remaining: u64,
}

/// Stores the files. Those that cannot be stored are named by the command, and the others go on.
fn ingest(stage: &Stage, uri: &str, input: &Path) -> Result<Ingested, Error> {
    let figures = stage.scratch("ingest.json");
    // A tar is one value here, as every other file.
    let ended = stage.kv(&[
        "ingest".as_ref(),
        "--as-files".as_ref(),
        "--json".as_ref(),
        figures.as_ref(),
        uri.as_ref(),
        input.as_os_str(),
    ]);
    let ingested = fs::read(&figures).ok();
    match ingested.and_then(|text| serde_json::from_slice::<Ingested>(&text).ok()) {
        Some(ingested) if ended.is_ok() || ingested.failed > 0 && ingested.remaining == 0 => Ok(ingested),
        _ => Err(ended.err().unwrap_or_else(|| "kv ingest wrote no figures".into())),
    }
}

fn stage(args: &Args, bytes: u64, samples: u64) -> Result<Stage, Error> {
    let at = match (args.network, args.address) {
        (Network::Local, _) => Listen::Local,
        (Network::Verbs, Some(address)) => Listen::Rdma(address, args.port),
        (Network::Verbs, None) => return Err("verbs need --address, that of the RDMA device".into()),
    };
    // Records are padded to 64 bytes and carry header and key; the index and whole extents come on top.
    let memory_budget = bytes + bytes / 8 + samples * 2048 + (1 << 30);
    Stage::new(&args.data, at, memory_budget)
}

/// What the server has been sent, by one STAT: a frame that its own answer counts.
struct Frames {
    frames: u64,
    renewals: u64,
}

impl Frames {
    fn of(session: &Session) -> Result<Self, Error> {
        let figures = session.stat()?;
        let figure = |name: &str| {
            let found = figures.iter().find(|(found, _)| found == name);
            found
                .map(|(_, value)| *value)
                .ok_or_else(|| format!("the server has no figure {name}"))
        };
        Ok(Self {
            frames: figure("server_frames_count")?,
            renewals: figure("server_renewals_count")?,
        })
    }
}

/// Waits until the server has filled all images: that is the work of its start, not of the fetch.
fn wait_until_loaded(session: &Session) -> Result<(), Error> {
    let deadline = Instant::now() + LOAD_PATIENCE;
    while Instant::now() < deadline {
        let figures = session.stat()?;
        let loading = figures.iter().find(|(name, _)| name == "segments_loading_count");
        if loading
            .ok_or("the server has no figure segments_loading_count")?
            .1
            == 0
        {
            return Ok(());
        }
        std::thread::sleep(SETTLE);
    }
    Err(format!("the server had not filled its images within {LOAD_PATIENCE:?}").into())
}

fn fetch_all(
    args: &Args,
    stage: &Stage,
    server: &Server,
    uri: &str,
    samples: Vec<Sample>,
    not_stored: u64,
) -> Result<Report, Error> {
    let session = Session::connect(&uri.parse()?, stage.options()?)?;
    let client = session.open(DATASET)?;
    // Locators first, and one sample, so that every connection stands before anything is counted. That sample comes by its
    // locator: of what comes by its key the place is remembered.
    let keys: Vec<&[u8]> = samples.iter().map(|sample| sample.key.as_slice()).collect();
    let located = client.locate_many(&keys);
    let is_there =
        |found: &Result<_, ReadError>| !matches!(found, Err(ReadError::NotFound | ReadError::BadKey { .. }));
    // Those that could not be stored are counted already; any more were lost.
    let missing = located.iter().filter(|found| !is_there(found)).count() as u64;
    if missing > not_stored {
        let lost = samples.iter().zip(&located).find(|(_, found)| !is_there(found));
        let name = lost.map(|(sample, _)| String::from_utf8_lossy(&sample.key).into_owned());
        return Err(format!(
            "{missing} files are not there after the restart, {not_stored} of them were never stored: the first is {}",
            name.unwrap_or_default()
        )
        .into());
    }
    let (samples, locators): (Vec<Sample>, Vec<_>) = samples
        .into_iter()
        .zip(located)
        .filter(|(_, found)| is_there(found))
        .unzip();
    let locators = locators.into_iter().collect::<Result<Vec<_>, _>>()?;
    if samples.is_empty() {
        return Err("no file could be stored".into());
    }
    let samples = &samples[..];
    let sources = Sources::new(samples);
    fetch::pass(
        &client,
        &Sources::new(&samples[..1]),
        Some(&locators[..1]),
        args.seed,
    )?;
    wait_until_loaded(&session)?;
    let device = args.device.clone().unwrap_or_default();
    let packets = environment::packets(&device);
    let echo = match args.network {
        Network::Verbs => Some(Echo::start(&device)?),
        Network::Local => None,
    };
    let before = Frames::of(&session)?;
    std::thread::sleep(SETTLE);
    let cpu = cpu_us(server.pid())?;
    let wakes = sleeps(server.pid())?;

    eprintln!("demo: fetching every file by its key, with no locator cached");
    let cold = fetch::pass(&client, &sources, None, args.seed)?;
    eprintln!("demo: fetching every file by its locator");
    let known = fetch::pass(&client, &sources, Some(&locators), args.seed + 1)?;

    let wakes = sleeps(server.pid())?.saturating_sub(wakes);
    let cpu = cpu_us(server.pid())? - cpu;
    let echo = echo.map(Echo::finish).transpose()?;
    let packets = environment::packets(&device)
        .zip(packets)
        .map(|(after, before)| after - before);
    let after = Frames::of(&session)?;
    let directory_reads = client.counters().directory_reads;
    let idle = cpu_us(server.pid())?;
    std::thread::sleep(IDLE);
    let idle = (cpu_us(server.pid())? - idle) / IDLE.as_secs_f64();

    eprintln!("demo: measuring one GET of 4 KiB beside the floor");
    let latency = measure_latency(args, stage, &session)?;
    let described = session.describe();
    Ok(report(args, samples, &cold, &known, latency, |report| {
        report.described = described;
        report.rdma_packets = packets;
        // The STAT that asked the second time is a frame itself.
        report.server_frames_during_fetch = after.frames - before.frames - 1;
        report.server_renewals_during_fetch = after.renewals - before.renewals;
        report.directory_reads = directory_reads;
        report.server_wakes_during_fetch = wakes;
        report.server_cpu_us_during_fetch = cpu;
        report.echo_during_fetch = echo;
        report.server_idle_cpu_us_per_s = idle;
    }))
}

fn measure_latency(args: &Args, stage: &Stage, session: &Session) -> Result<Latency, Error> {
    session.create(LATENCY_DATASET)?;
    let client = session.open(LATENCY_DATASET)?;
    let uri = stage.uri(&stage.listen, Some(LATENCY_DATASET));
    let target = latency::Target {
        uri: &uri,
        key: &stage.keys,
    };
    let floor = match (args.network, &args.device, args.address) {
        (Network::Verbs, Some(device), Some(address)) => Some(Floor { device, address }),
        (Network::Verbs, ..) => return Err("verbs need --device and --address for the floor".into()),
        (Network::Local, ..) => None,
    };
    latency::measure(&client, &target, floor.as_ref(), args.blocks)
}

fn report(
    args: &Args,
    samples: &[Sample],
    cold: &Pass,
    known: &Pass,
    latency: Latency,
    fill: impl FnOnce(&mut Report),
) -> Report {
    let environment = Environment::with_device(args.device.as_deref().unwrap_or_default());
    let seconds = cold.fetching.as_secs_f64() + known.fetching.as_secs_f64();
    // A sample is verified if both passes gave it right.
    let mismatched = cold.mismatched.union(&known.mismatched).count() as u64;
    let mut report = Report {
        fabric: args.label.clone(),
        network: match args.network {
            Network::Verbs => "verbs",
            Network::Local => "local",
        },
        device: args.device.clone().unwrap_or_default(),
        described: String::new(),
        kernel: environment.kernel.clone(),
        samples: samples.len() as u64,
        bytes: samples.iter().map(|sample| sample.len_bytes).sum(),
        failed: 0,
        skipped: 0,
        verified: samples.len() as u64 - mismatched,
        mismatched,
        seed: args.seed,
        gets: cold.gets + known.gets,
        reads_posted: cold.reads + known.reads,
        split_reads: cold.split_reads + known.split_reads,
        coalesced: cold.coalesced + known.coalesced,
        reads_per_get_known: known.reads_per_get(),
        reads_per_get_cold: cold.reads_per_get(),
        directory_reads: 0,
        rdma_packets: None,
        server_frames_during_fetch: 0,
        server_renewals_during_fetch: 0,
        server_wakes_during_fetch: 0,
        server_cpu_us_during_fetch: 0.0,
        echo_during_fetch: None,
        server_idle_cpu_us_per_s: 0.0,
        ingest_mb_s: 0.0,
        fetch_mb_s: (cold.bytes + known.bytes) as f64 / 1e6 / seconds,
        fetch_samples_s: (cold.gets + known.gets) as f64 / seconds,
        restart_s: 0.0,
        get_4k_us: latency.get_4k_us.median,
        get_4k_unverified_us: latency.get_4k_unverified_us.median,
        crc_4k_us: latency.crc_4k_us.median,
        ib_read_lat_wire_us: latency.ib_read_lat_wire_us.map(|interval| interval.median),
        latency,
        environment,
    };
    fill(&mut report);
    report
}

fn print_table(report: &Report) {
    let rows = [
        (
            "where",
            format!("{} on {} ({})", report.network, report.fabric, report.described),
        ),
        ("kernel", report.kernel.clone()),
        (
            "samples",
            format!(
                "{} files, {:.1} MB{}",
                report.samples,
                report.bytes as f64 / 1e6,
                match report.failed {
                    0 => String::new(),
                    failed => format!("; {failed} could not be stored (named above)"),
                }
            ),
        ),
        (
            "verified",
            format!(
                "{} right, {} wrong (two passes, seed {})",
                report.verified, report.mismatched, report.seed
            ),
        ),
        ("stored", format!("{:.1} MB/s, durable", report.ingest_mb_s)),
        (
            "fetched",
            format!(
                "{:.1} MB/s, {:.0} samples/s",
                report.fetch_mb_s, report.fetch_samples_s
            ),
        ),
        (
            "READs per GET",
            format!(
                "{:.3} by locator, {:.3} by key with no locator cached (and {} of the directory, once a session); {} more \
                 split large values, {} fewer fetched neighbours together",
                report.reads_per_get_known,
                report.reads_per_get_cold,
                report.directory_reads,
                report.split_reads,
                report.coalesced
            ),
        ),
        (
            "RDMA packets",
            report
                .rdma_packets
                .map_or_else(|| "none: no device".to_owned(), |count| count.to_string()),
        ),
        (
            "server meanwhile",
            format!(
                "{} frames ({} of them lease renewals), woken {} times, {:.0} us of CPU{}; idle {:.2} % of a core",
                report.server_frames_during_fetch,
                report.server_renewals_during_fetch,
                report.server_wakes_during_fetch,
                report.server_cpu_us_during_fetch,
                match report.echo_during_fetch {
                    Some(echo) if echo.echoes > 0 => format!(
                        " (each renewal {:.0} us; a bare echo beside it {:.0} us)",
                        report.server_cpu_us_during_fetch / report.server_renewals_during_fetch.max(1) as f64,
                        echo.each_us()
                    ),
                    _ => String::new(),
                },
                report.server_idle_cpu_us_per_s / 1e4
            ),
        ),
        (
            "one GET of 4 KiB",
            format!(
                "{:.1} us, {:.1} us without the value's CRC ({:.1} us)",
                report.get_4k_us, report.get_4k_unverified_us, report.crc_4k_us
            ),
        ),
        (
            "the wire's floor",
            match (report.ib_read_lat_wire_us, report.latency.unverified_over_floor) {
                (Some(wire), Some(ratio)) => format!(
                    "{wire:.1} us for ib_read_lat; GET without CRC takes {:.2} of it ({:.2} to {:.2} over the blocks)",
                    ratio.median, ratio.low, ratio.high
                ),
                _ => "none: no device".to_owned(),
            },
        ),
    ];
    println!();
    for (name, value) in rows {
        println!("  {name:<18} {value}");
    }
}
