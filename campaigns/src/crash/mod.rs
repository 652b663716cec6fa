//! `campaign crash`: a real server killed with SIGKILL at random moments, and everything compared after each restart.
//!
//! A campaign is a row of *lives*. Each begins with a fresh data directory and has its own seed, so that a round that
//! fails is found again by running its life alone. The seed chooses every operation and the moment of each kill; what
//! the threads do between two of its choices is the machine's.

pub(crate) mod check;
pub(crate) mod life;
pub(crate) mod model;
pub(crate) mod place;
pub(crate) mod work;

use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use signal_hook::consts::{SIGINT, SIGTERM};

use campaigns::Error;
use life::{Life, Totals};
use model::Model;
use place::Place;
use work::Load;

/// Between two lines of progress where no terminal shows a bar.
const LINE_EVERY: Duration = Duration::from_secs(10);

const LOAD: Load = Load {
    writers: 4,
    keys: 40,
    answers_max: 120,
    value_max: 300 << 10,
    large_max: 1500 << 10,
    deadline: Duration::from_millis(400),
    churn_pause_ms: 40,
    quiet_first: false,
};

/// Long values in long segments, so that the active one gets checkpoints.
const HEAVY: Load = Load {
    keys: 8,
    answers_max: 80,
    value_max: 2 << 20,
    large_max: 6 << 20,
    deadline: Duration::from_millis(800),
    ..LOAD
};
/// Of so many lives, by their seed, one is heavy.
const HEAVY_ONE_IN: u64 = 4;

const ABOUT: &str = "\
Each round: four writers put (0 bytes to 1.5 MiB, the longest in parts), overwrite and delete keys of their own, one at
a time and in batches, another thread creates, renames and drops a dataset, a reader checks what it reads; the server is
killed with SIGKILL after a random number of answers and a random delay, once or twice more while it starts, and started
again. In one round of four the clients live on across that, and each of their calls must end well.

One life of four has long values in long segments instead of small ones in segments of 1 MiB.

Then every key is read, by get and by list, and compared: what was answered is there; what had no answer is there wholly
or not at all; nothing deleted is back; nothing is torn. Operations without answer are sent again under the same client
id and number, and so are some old ones: each is done once, also where another client has changed the key since.

Ends with a line of counts and 0, or says what is wrong, how to run that life again, and where its directory was kept.";

/// Options of `campaign crash`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = ABOUT)]
pub(crate) struct Args {
    /// Rounds: each is one kill, one restart, one comparison, and takes about a second.
    #[arg(long, default_value_t = 300, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    rounds: u64,
    /// Seed of the first life; each further one has the next. [default: one of the clock, which is printed]
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u64>,
    /// Rounds of one data directory, after which a fresh one begins.
    #[arg(long, default_value_t = 25, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    life: u64,
    /// Directory on the file system to be used; a fresh one is made in it. [default: that of temporary files]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// One more argument for `kv-server serve`; may be given several times.
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    server_arg: Vec<OsString>,
}

/// Short leases, so that what is retired is freed soon.
const SERVER_ARGUMENTS: [&str; 10] = [
    "--memory-budget",
    "2G",
    // As much compaction as there can be.
    "--compaction-dead-share",
    "0.2",
    "--compaction-share",
    "1",
    "--lease-ms",
    "2000",
    "--max-lag-ms",
    "4000",
];

/// Runs a campaign; whether nothing was found wrong.
pub(crate) fn run(args: &Args) -> Result<bool, Error> {
    let seed = args.seed.unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.map_or(1, |now| now.as_secs())
    });
    let interrupted = stop_on_signals()?;
    eprintln!("crash: {} rounds, seed {seed}", args.rounds);
    let started = Instant::now();
    let progress = Progress::new(args.rounds);
    let mut totals = Totals::default();
    for life_seed in seed.. {
        let rounds = args.life.min(args.rounds - totals.rounds);
        if rounds == 0 {
            break;
        }
        match live(args, life_seed, rounds, &interrupted, &progress, &mut totals)? {
            Ended::Well => {}
            Ended::Wrong => return Ok(false),
            Ended::Interrupted => {
                let done = totals.rounds;
                return Err(format!("interrupted after {done} rounds, in which nothing was wrong").into());
            }
        }
    }
    progress.bar.finish_and_clear();
    print_totals(&totals, started.elapsed());
    Ok(true)
}

fn print_totals(totals: &Totals, took: Duration) {
    let tally = totals.tally;
    println!(
        "crash: {} rounds, {} with clients that lived on; {} kills while serving, {} while starting",
        totals.rounds, totals.survived, totals.kills, totals.starts_killed
    );
    println!(
        "crash: {} changes answered, all there; {} without answer: {} done wholly, {} not at all; {} sent again, done once",
        totals.answered,
        tally.done + tally.undone,
        tally.done,
        tally.undone,
        tally.retries
    );
    println!(
        "crash: {} reads during changes, {} keys compared, {} segments seen to go; {:.1} s, {:.2} s a round",
        totals.reads,
        tally.keys,
        totals.removed,
        took.as_secs_f64(),
        took.as_secs_f64() / totals.rounds as f64
    );
}

/// A flag that SIGINT and SIGTERM set: what runs then comes to its end and tidies up.
pub(crate) fn stop_on_signals() -> Result<Arc<AtomicBool>, Error> {
    let asked = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&asked))?;
    }
    Ok(asked)
}

enum Ended {
    Well,
    Wrong,
    Interrupted,
}

/// One life: a fresh data directory, which is kept where something is wrong.
fn live(
    args: &Args,
    seed: u64,
    rounds: u64,
    interrupted: &AtomicBool,
    progress: &Progress,
    totals: &mut Totals,
) -> Result<Ended, Error> {
    let mut directory = tempfile::Builder::new();
    let directory = directory.prefix("vkv-crash-");
    let directory = match &args.data {
        Some(data) => directory
            .tempdir_in(data)
            .map_err(|error| format!("cannot make a directory in {}: {error}", data.display()))?,
        None => directory.tempdir()?,
    };
    let mut arguments: Vec<OsString> = SERVER_ARGUMENTS.map(OsString::from).to_vec();
    let heavy = seed % HEAVY_ONE_IN == HEAVY_ONE_IN - 1;
    // Small segments are sealed all the time.
    let lengths = if heavy { ["64M", "1M"] } else { ["1M", "128K"] };
    arguments.extend(["--segment-bytes", lengths[0], "--part-bytes", lengths[1]].map(OsString::from));
    arguments.extend(args.server_arg.iter().cloned());
    let place = Place::new(&directory.path().join("data"), directory.path(), &arguments)?;
    let model = Model::new(seed);
    let mark = |_| Ok(());
    let mut life = Life::begin(
        &place,
        &model,
        if heavy { &HEAVY } else { &LOAD },
        &mark,
        interrupted,
    )?;
    let mut result = Ok(());
    while result.is_ok() && life.totals.rounds < rounds && !interrupted.load(Ordering::SeqCst) {
        result = life.round();
        progress.show(totals, &life.totals);
    }
    let result = result.and_then(|()| life.finish());
    totals.add(&life.totals);
    if interrupted.load(Ordering::SeqCst) {
        // What a signal cut short may look wrong.
        return Ok(Ended::Interrupted);
    }
    let Err(error) = result else {
        return Ok(Ended::Well);
    };
    drop(life);
    progress.bar.finish_and_clear();
    let kept = directory.keep();
    eprintln!(
        "crash: WRONG after {} rounds of the life with seed {seed}: {error}",
        totals.rounds
    );
    eprintln!("crash: its data and log were kept in {}", kept.display());
    let more: Vec<String> = args
        .server_arg
        .iter()
        .map(|arg| format!(" --server-arg={}", arg.display()))
        .collect();
    eprintln!(
        "crash: run it again with: campaign crash --rounds {rounds} --life {rounds} --seed {seed}{}",
        more.concat()
    );
    Ok(Ended::Wrong)
}

/// How far a campaign is: a bar on a terminal, a line now and then elsewhere.
struct Progress {
    bar: ProgressBar,
    line: std::cell::Cell<Instant>,
}

impl Progress {
    fn new(rounds: u64) -> Self {
        let style = ProgressStyle::with_template("{wide_bar} {pos}/{len} rounds  {msg}  {eta} left");
        let bar = match style {
            Ok(style) if std::io::stderr().is_terminal() => ProgressBar::new(rounds).with_style(style),
            _ => ProgressBar::hidden(),
        };
        Self {
            bar,
            line: std::cell::Cell::new(Instant::now()),
        }
    }

    fn show(&self, before: &Totals, life: &Totals) {
        let (rounds, answered) = (before.rounds + life.rounds, before.answered + life.answered);
        self.bar.set_position(rounds);
        self.bar.set_message(format!("{answered} answers"));
        if self.bar.is_hidden() && self.line.get().elapsed() >= LINE_EVERY {
            self.line.set(Instant::now());
            eprintln!("crash: {rounds} rounds, {answered} answers");
        }
    }
}
