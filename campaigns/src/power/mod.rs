//! `campaign power`: power cuts, at points between the flushes of a real recording, and what a server makes of each.
//!
//! A short crash campaign runs on a file system whose every block write is recorded, with a mark for each operation as it
//! is answered. Then the device is made anew as it may be after a power cut at many points of that recording; each time
//! the file system is mounted, a server is started, and everything is compared with what was answered by then.

mod cut;
mod device;
mod log;
mod message;
mod replay;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::crash::life::Life;
use crate::crash::model::Model;
use crate::crash::place::Place;
use crate::crash::stop_on_signals;
use crate::crash::work::Load;
use campaigns::Error;
use cut::Cut;
use device::Recorded;
use log::{Entry, Log};
use replay::{Asked, Bench};

/// Mark at which the recording proper begins: the file system is made and mounted.
const BEGIN: &str = "begin";
/// Cuts that are tried at a time.
const BENCHES: usize = 2;

const LOAD: Load = Load {
    writers: 3,
    keys: 8,
    answers_max: 30,
    value_max: 100 << 10,
    large_max: 600 << 10,
    deadline: Duration::from_millis(2500),
    churn_pause_ms: 0,
    quiet_first: true,
};

/// Small segments, so that the recording sees many of them.
const SERVER_ARGUMENTS: [&str; 14] = [
    "--segment-bytes",
    "1M",
    "--part-bytes",
    "128K",
    "--memory-budget",
    "512M",
    "--compaction-dead-share",
    "0.2",
    "--compaction-share",
    "1",
    "--lease-ms",
    "4000",
    "--max-lag-ms",
    "8000",
];

const ABOUT: &str = "\
Records a short crash campaign (see `campaign crash --help`) on a fresh ext4 on DEVICE, with the kernel's dm-log-writes and
a mark for every answer, and then cuts the power at COUNT points. Half of them lie right behind an answer, where nothing
counts that was not flushed; the others at flushes: right behind one, or right before one with its first writes or any
4 KiB of them kept. After each cut the file system is mounted (ext4 replays its journal), a server started, and every key
compared: what was answered before is there, nothing is there by halves, nothing deleted is back.

With --leave-out KIND the server that is recorded leaves one kind of sync out, and the run succeeds if a cut shows that.
Needs root, dmsetup and the modules dm-log-writes and loop; `soft-roce-ci/power` runs it where those are.";

/// Options of `campaign power`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = ABOUT)]
pub(crate) struct Args {
    /// Block device of at least 1 GiB, all of which is OVERWRITTEN.
    #[arg(long, value_name = "DEVICE")]
    erase: PathBuf,
    /// Points at which the power is cut.
    #[arg(long, default_value_t = 100, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    cuts: u64,
    /// Rounds of the recorded campaign; each ends with a SIGKILL and a restart.
    #[arg(long, default_value_t = 4, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    rounds: u64,
    /// Seed of the campaign and of the cuts. [default: one of the clock, which is printed]
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u64>,
    /// Leave this kind of sync out; `all` tries each kind that nothing on ext4 stands in for.
    #[arg(long, value_name = "KIND")]
    leave_out: Option<String>,
    /// Directory in memory for the images, each of 256 MiB at most.
    #[arg(long, default_value = "/dev/shm", value_name = "DIR")]
    scratch: PathBuf,
    /// One more argument for `kv-server serve`; may be given several times.
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    server_arg: Vec<OsString>,
}

/// Kinds of sync that a cut shows to be missed on ext4 where they alone are left out.
///
/// No cut shows that of the others. A start makes do without what some of them sync. The rest are of names in
/// directories. fsync(2) asks for them: "Calling fsync() does not necessarily ensure that the entry in the directory
/// containing the file has also reached disk." But ext4 has one journal for all files, whose transactions become durable
/// whole and in order, and a sync of a file commits the one that last changed it (`ext4_fsync_journal` in the kernel's
/// `fs/ext4/fsync.c`): with it every name that was made, changed or removed before.
/// - `dataset-directory`: a dataset's new name is durable by the sync of `catalogue.new`, which comes before the answer, and
///   a new segment's by that of `segments.new`, which comes before its first record; names that go, or are of checkpoints, are
///   changed on the disk before what is written after that. What holds these syncs are tests of the store
///   (`creating_renaming_and_dropping_fail_whole` and others), on which no file system has a say.
/// - `datasets-directory` is here: a dataset that is created is durable by `catalogue.new` too, but one that is dropped
///   leaves the catalogue after the answer.
const NEEDED: [&str; 7] = [
    "records",
    "header",
    "superblock",
    "description",
    "segment-list",
    "catalogue",
    "datasets-directory",
];

/// Runs it; whether all cuts were survived, or whether the sync that was left out was missed.
pub(crate) fn run(args: &Args) -> Result<bool, Error> {
    let seed = args.seed.unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.map_or(1, |now| now.as_secs())
    });
    let interrupted = stop_on_signals()?;
    let scratch = tempfile::Builder::new()
        .prefix("vkv-power-")
        .tempdir_in(&args.scratch)?;
    let kinds: Vec<&str> = match args.leave_out.as_deref() {
        None => return campaign(args, None, seed, scratch.path(), &interrupted).map(|wrong| wrong == 0),
        Some("all") => NEEDED.to_vec(),
        Some(kind) => vec![kind],
    };
    let mut unnoticed = Vec::new();
    for kind in kinds {
        eprintln!("power: leaving out the sync of kind {kind}");
        if campaign(args, Some(kind), seed, scratch.path(), &interrupted)? == 0 {
            unnoticed.push(kind);
        }
    }
    if !unnoticed.is_empty() {
        println!("power: left out and NOT NOTICED: {}", unnoticed.join(", "));
    }
    Ok(unnoticed.is_empty())
}

/// Records and cuts; how many cuts were not survived.
fn campaign(
    args: &Args,
    leave_out: Option<&str>,
    seed: u64,
    scratch: &Path,
    interrupted: &AtomicBool,
) -> Result<usize, Error> {
    let started = Instant::now();
    let mut recorded = Recorded::new(&args.erase, &scratch.join("recorded"))?;
    device::mark(BEGIN)?;
    let asked = record(args, leave_out, seed, scratch, interrupted)?;
    let log = Log::read(&recorded.end()?)?;
    let count = |wanted: fn(&Entry) -> bool| log.entries.iter().filter(|entry| wanted(entry)).count();
    eprintln!(
        "power: recorded {} writes, {} flushes, {} marks in {:.1} s (seed {seed})",
        count(|entry| matches!(entry, Entry::Write { .. })),
        count(|entry| *entry == Entry::Flush),
        count(|entry| matches!(entry, Entry::Mark(_))),
        started.elapsed().as_secs_f64()
    );
    let cuts = cut::choose(
        &log,
        BEGIN,
        args.cuts as usize,
        &mut fastrand::Rng::with_seed(seed),
    )?;
    let (wrong, tried) = try_all(args, leave_out, scratch, &log, &cuts, &asked, interrupted)?;
    if interrupted.load(Ordering::SeqCst) {
        return Err("interrupted".into());
    }
    let what = leave_out.map_or(String::new(), |kind| {
        format!(", the sync of kind {kind} left out")
    });
    println!(
        "power: seed {seed}: {tried} cuts{what}, {wrong} lost something; {:.1} s",
        started.elapsed().as_secs_f64()
    );
    Ok(wrong)
}

fn server_arguments(args: &Args) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = SERVER_ARGUMENTS.map(OsString::from).to_vec();
    arguments.extend(args.server_arg.iter().cloned());
    arguments
}

/// Runs the campaign that is recorded; everything that was asked for.
fn record(
    args: &Args,
    leave_out: Option<&str>,
    seed: u64,
    scratch: &Path,
    interrupted: &AtomicBool,
) -> Result<Asked, Error> {
    let mut arguments = server_arguments(args);
    if let Some(kind) = leave_out {
        arguments.extend(["--test-leave-out-sync".into(), kind.into()]);
    }
    let live = scratch.join("live");
    std::fs::create_dir_all(&live)?;
    let place = Place::new(&scratch.join("recorded/data"), &live, &arguments)?;
    let model = Model::new(seed);
    let mark = |id: u64| device::mark(&id.to_string());
    let mut life = Life::begin(&place, &model, &LOAD, &mark, interrupted)?;
    for _ in 0..args.rounds {
        life.round()?;
    }
    life.finish()?;
    let totals = life.totals;
    eprintln!(
        "power: {} rounds, {} answers, {} segments seen to go",
        totals.rounds, totals.answered, totals.removed
    );
    drop(life);
    let (keys, churned) = model.histories();
    Ok(Asked { seed, keys, churned })
}

/// Tries every cut; how many lost something, of how many. With a sync left out one that did is enough.
fn try_all(
    args: &Args,
    leave_out: Option<&str>,
    scratch: &Path,
    log: &Log,
    cuts: &[Cut],
    asked: &Asked,
    interrupted: &AtomicBool,
) -> Result<(usize, usize), Error> {
    let arguments = server_arguments(args);
    let (next, tried) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let wrong = Mutex::new(Vec::new());
    let failed = |wrong: &Mutex<Vec<String>>| {
        let wrong = wrong.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        wrong.len()
    };
    std::thread::scope(|scope| -> Result<(), Error> {
        for bench in 0..BENCHES {
            let bench = Bench::new(&scratch.join(format!("bench-{bench}")), &arguments)?;
            let (next, tried, wrong) = (&next, &tried, &wrong);
            scope.spawn(move || {
                while let Some(cut) = cuts.get(next.fetch_add(1, Ordering::SeqCst)) {
                    if interrupted.load(Ordering::SeqCst) || (leave_out.is_some() && failed(wrong) > 0) {
                        return;
                    }
                    let result = bench.try_cut(log, *cut, asked);
                    let done = tried.fetch_add(1, Ordering::SeqCst) + 1;
                    if let Err(error) = result {
                        eprintln!("power: cut before entry {} ({:?}): {error}", cut.at, cut.kept);
                        let mut wrong = wrong.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                        wrong.push(error);
                    }
                    if done % 25 == 0 {
                        eprintln!("power: {done} of {} cuts", cuts.len());
                    }
                }
            });
        }
        Ok(())
    })?;
    Ok((failed(&wrong), tried.into_inner()))
}
