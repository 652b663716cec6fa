//! `kv ingest`: stores files, directories and the members of tars.

mod engine;
mod plan;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use kv_client::{Client, ClientError, Server};
use kv_proto::control::Status;
use serde::Serialize;

use crate::cli::{Common, InputArguments, dataset_of, target};
use crate::failure::{Ended, FAILED, Failure, OK};
use crate::output::{count, mb_s, named_above, print, round, say, size, write_json};
use crate::progress::Progress;
use crate::source::{Problem, Sources};
use crate::stop::Stop;
use engine::Tally;
use plan::Rules;

const AFTER_HELP: &str = "\
Keys are paths relative to the PATH given, as bytes; of a file, its name; of a tar's members,
their paths in the tar without a leading `./`. Symbolic links and special files are named and
skipped (a PATH that is itself a link is followed).

A value that is answered is durable. After an interruption run the same command again: keys that
are there with a value of the same length are fetched and compared, and nothing is stored twice.
Values that differ are replaced.

Examples:
  kv ingest rdma://node7/images train/
  kv ingest rdma://node7/images shard-000000.tar shard-000001.tar
  kv ingest 'local:/run/kv.sock?dataset=images' val/ --prefix val/ --create
  kv ingest rdma://node7/images train/ --skip-existing    trust lengths, compare nothing";

/// Store files, directories and tars (WebDataset shards)
#[derive(Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Arguments {
    /// The dataset
    uri: String,
    #[command(flatten)]
    input: InputArguments,
    /// Create the dataset if there is none of this name (needs an `admin` key)
    #[arg(long)]
    create: bool,
    /// Take a value of the same length to be the same, without fetching it
    #[arg(long)]
    skip_existing: bool,
    /// Replace nothing: a key with another value is an error
    #[arg(long)]
    no_overwrite: bool,
    /// Threads that read files and store them
    #[arg(long, value_name = "N", default_value = "4", value_parser = clap::value_parser!(u16).range(1..=64))]
    jobs: u16,
    /// Write the figures of the summary there, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// No progress, and do not name what is skipped
    #[arg(long, short)]
    quiet: bool,
}

/// The summary, as JSON.
#[derive(Serialize)]
struct Report {
    uri: String,
    /// Files and members, those that cannot be stored included.
    found: u64,
    stored: u64,
    stored_bytes: u64,
    replaced: u64,
    unchanged: u64,
    unchanged_bytes: u64,
    skipped: u64,
    failed: u64,
    /// Not looked at, because the run stopped early.
    remaining: u64,
    seconds: f64,
    mb_s: f64,
    stopped: Option<String>,
    problems: Vec<Failed>,
}

#[derive(Serialize)]
struct Failed {
    origin: String,
    why: String,
}

pub(crate) fn run(arguments: Arguments, common: &Common) -> Ended {
    let target = target(&arguments.uri)?;
    let name = dataset_of(&target, &arguments.uri)?;
    common.check()?;
    let sources = arguments.input.scan(arguments.quiet)?;
    let server = common.server(&target)?;
    // Until here nothing is in flight, and a signal ends the process as usual.
    let stop =
        Stop::on_signals().map_err(|error| Failure::new(format!("installing signal handlers: {error}")))?;
    let started = Instant::now();
    let tally = {
        let client = open(&server, name, arguments.create).map_err(|error| {
            Failure::new(format!("opening {target}: {error}{}", remedy(&error, &arguments)))
        })?;
        store(&client, &sources, &arguments, &stop)?
    };
    let took = started.elapsed();
    let report = report(&arguments, &sources, tally, took, &stop);
    conclude(&arguments, report, &stop)
}

fn store(client: &Client, sources: &Sources, arguments: &Arguments, stop: &Stop) -> Result<Tally, Failure> {
    let rules = Rules {
        trust_length: arguments.skip_existing,
        overwrite: !arguments.no_overwrite,
    };
    let steps = plan::plan(client, sources, rules, stop)
        .map_err(|error| Failure::new(format!("listing {}: {}", arguments.uri, error.text())))?;
    let items = sources.items.len() as u64;
    let progress = Progress::new("storing", items, sources.bytes(), arguments.quiet);
    let jobs = usize::from(arguments.jobs);
    Ok(engine::carry_out(
        client,
        sources,
        &steps,
        rules.overwrite,
        jobs,
        &progress,
        stop,
    ))
}

fn open(server: &Server, name: &str, create: bool) -> Result<Client, ClientError> {
    match server.open(name) {
        Err(ClientError::Refused {
            status: Status::NoDataset,
            ..
        }) if create => match server.create(name) {
            // Somebody else was faster.
            Ok(_)
            | Err(ClientError::Refused {
                status: Status::Exists,
                ..
            }) => server.open(name),
            Err(error) => Err(error),
        },
        opened => opened,
    }
}

fn remedy(error: &ClientError, arguments: &Arguments) -> &'static str {
    match error {
        ClientError::Refused {
            status: Status::NoDataset,
            ..
        } if !arguments.create => " (or give --create)",
        _ => "",
    }
}

fn report(arguments: &Arguments, sources: &Sources, tally: Tally, took: Duration, stop: &Stop) -> Report {
    let remaining = (sources.items.len() as u64).saturating_sub(tally.done());
    let stopped = stop
        .failure()
        .or_else(|| stop.signal().map(|signal| format!("signal {signal}")));
    let problems = sources.failed.iter().cloned().chain(tally.problems);
    Report {
        uri: arguments.uri.clone(),
        found: (sources.items.len() + sources.failed.len()) as u64,
        stored: tally.stored,
        stored_bytes: tally.stored_bytes,
        replaced: tally.replaced,
        unchanged: tally.unchanged,
        unchanged_bytes: tally.unchanged_bytes,
        skipped: sources.skipped.len() as u64,
        failed: sources.failed.len() as u64 + tally.failed,
        remaining,
        seconds: round(took.as_secs_f64(), 6),
        mb_s: mb_s(tally.stored_bytes, took),
        stopped: stopped.filter(|_| remaining > 0),
        problems: problems
            .map(|Problem { origin, why }| Failed { origin, why })
            .collect(),
    }
}

fn conclude(arguments: &Arguments, report: Report, stop: &Stop) -> Ended {
    if let Some(path) = &arguments.json {
        write_json(path, &report)?;
    }
    print(summary(&report))?;
    let left = count(report.remaining, "value");
    let resume = "run the same command again to go on: what is stored is not stored twice";
    if let Some(why) = stop.failure() {
        // Not at once: who was refused would be refused again.
        return Err(Failure::new(format!(
            "stopped: {why}: {left} not stored (when that is remedied, {resume})"
        )));
    }
    if let Some(signal) = stop.signal()
        && report.remaining > 0
    {
        say(format_args!(
            "kv: interrupted by signal {signal}: {left} not stored ({resume})"
        ));
        return Ok(128 + signal);
    }
    if report.failed > 0 {
        return Err(Failure::new(format!(
            "{} of {} failed ({})",
            report.failed,
            report.found,
            named_above(report.failed)
        )));
    }
    Ok(if report.remaining == 0 { OK } else { FAILED })
}

fn summary(report: &Report) -> String {
    let replaced = match report.replaced {
        0 => String::new(),
        replaced => format!(", {replaced} of them in place of another value"),
    };
    let remaining = match report.remaining {
        0 => String::new(),
        remaining => format!(", remaining {remaining}"),
    };
    format!(
        "stored {} ({}{replaced}), unchanged {} ({}), skipped {}, failed {}{remaining}; {:.1} s, {:.1} MB/s",
        report.stored,
        size(report.stored_bytes),
        report.unchanged,
        size(report.unchanged_bytes),
        report.skipped,
        report.failed,
        report.seconds,
        report.mb_s,
    )
}
