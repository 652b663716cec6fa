//! `kv verify`: fetches values and compares every byte with its source.

mod engine;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;

use crate::cli::{Common, InputArguments, dataset_of, target};
use crate::failure::{Ended, Failure, OK};
use crate::output::{count, mb_s, named_above, print, round, say, size, write_json};
use crate::progress::Progress;
use crate::source::Sources;
use crate::stop::Stop;
use engine::{Found, Mode};

const AFTER_HELP: &str = "\
Give the same PATHs and options as to `kv ingest`. Every value is fetched in batches, in a random
order that the seed fixes, and each byte is compared with its source.

Examples:
  kv verify rdma://node7/images train/
  kv verify rdma://node7/images train/ --exact --json verify.json
  kv verify 'local:/run/kv.sock?dataset=images' shard-000000.tar --known";

/// Fetch values and compare every byte with the files they came from
#[derive(Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Arguments {
    /// The dataset
    uri: String,
    #[command(flatten)]
    input: InputArguments,
    /// Seed of the order
    #[arg(long, value_name = "N", default_value = "1")]
    seed: u64,
    /// Keys of the dataset that no source has are an error too
    #[arg(long)]
    exact: bool,
    /// List the dataset first and fetch by locator: one READ for a value
    #[arg(long)]
    known: bool,
    /// Write the figures there, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// No progress, and do not name what is skipped
    #[arg(long, short)]
    quiet: bool,
}

/// The figures, as JSON.
#[derive(Serialize)]
struct Report {
    uri: String,
    seed: u64,
    samples: u64,
    bytes: u64,
    verified: u64,
    verified_bytes: u64,
    mismatched: u64,
    missing: u64,
    /// Not fetched or not read from their source.
    failed: u64,
    /// Keys that no source has; null unless asked for.
    extra: Option<u64>,
    skipped: u64,
    /// Not looked at, because the run stopped early.
    remaining: u64,
    gets: u64,
    reads_posted: u64,
    split_reads: u64,
    /// Values that came by the READ of a neighbour.
    coalesced: u64,
    directory_reads: u64,
    /// Before large values are split and neighbours coalesced.
    reads_per_get: f64,
    seconds: f64,
    /// Of those, inside calls that fetch.
    fetch_seconds: f64,
    fetch_mb_s: f64,
    fetch_samples_s: f64,
    problems: Vec<String>,
}

pub(crate) fn run(arguments: Arguments, common: &Common) -> Ended {
    dataset_of(&target(&arguments.uri)?, &arguments.uri)?;
    common.check()?;
    let sources = arguments.input.scan(arguments.quiet)?;
    let (_server, client) = common.dataset(&arguments.uri)?;
    // Until here nothing is in flight, and a signal ends the process as usual.
    let stop =
        Stop::on_signals().map_err(|error| Failure::new(format!("installing signal handlers: {error}")))?;
    let started = Instant::now();
    let progress = Progress::new(
        "verifying",
        sources.items.len() as u64,
        sources.bytes(),
        arguments.quiet,
    );
    let mode = Mode {
        seed: arguments.seed,
        known: arguments.known,
        exact: arguments.exact,
    };
    let found = engine::verify(&client, &sources, mode, &progress, &stop);
    drop(progress);
    let report = report(&arguments, &sources, found, started.elapsed());
    conclude(&arguments, &report, &stop)
}

fn report(arguments: &Arguments, sources: &Sources, found: Found, took: Duration) -> Report {
    let samples = sources.items.len() as u64;
    let single_reads = (found.reads_posted + found.coalesced).saturating_sub(found.split_reads);
    let per_second = |number: u64| match found.fetch_time.as_secs_f64() {
        seconds if seconds > 0.0 => round(number as f64 / seconds, 1),
        _ => 0.0,
    };
    let mut problems: Vec<String> = sources
        .failed
        .iter()
        .map(|problem| format!("{}: {}", problem.origin, problem.why))
        .collect();
    problems.extend(found.problems);
    Report {
        uri: arguments.uri.clone(),
        seed: arguments.seed,
        samples,
        bytes: sources.bytes(),
        verified: found.verified,
        verified_bytes: found.verified_bytes,
        mismatched: found.mismatched,
        missing: found.missing,
        failed: found.failed + sources.failed.len() as u64,
        extra: arguments.exact.then_some(found.extra),
        skipped: sources.skipped.len() as u64,
        remaining: samples.saturating_sub(found.verified + found.mismatched + found.missing + found.failed),
        gets: found.gets,
        reads_posted: found.reads_posted,
        split_reads: found.split_reads,
        coalesced: found.coalesced,
        directory_reads: found.directory_reads,
        reads_per_get: if found.gets > 0 {
            round(single_reads as f64 / found.gets as f64, 4)
        } else {
            0.0
        },
        seconds: round(took.as_secs_f64(), 6),
        fetch_seconds: round(found.fetch_time.as_secs_f64(), 6),
        fetch_mb_s: mb_s(found.fetched_bytes, found.fetch_time),
        fetch_samples_s: per_second(found.fetched),
        problems,
    }
}

fn conclude(arguments: &Arguments, report: &Report, stop: &Stop) -> Ended {
    if let Some(path) = &arguments.json {
        write_json(path, report)?;
    }
    let extra = report
        .extra
        .map_or(String::new(), |extra| format!(", extra {extra}"));
    print(format_args!(
        "verified {} of {} ({}), mismatched {}, missing {}, failed {}{extra}, skipped {}; {:.2} reads a get; \
         {:.1} s, fetched at {:.1} MB/s",
        report.verified,
        count(report.samples, "sample"),
        size(report.verified_bytes),
        report.mismatched,
        report.missing,
        report.failed,
        report.skipped,
        report.reads_per_get,
        report.seconds,
        report.fetch_mb_s,
    ))?;
    if let Some(why) = stop.failure() {
        return Err(Failure::new(format!(
            "stopped: {why}: {} not looked at",
            count(report.remaining, "sample")
        )));
    }
    if let Some(signal) = stop.signal()
        && report.remaining > 0
    {
        say(format_args!(
            "kv: interrupted by signal {signal}: {} not looked at",
            count(report.remaining, "sample")
        ));
        return Ok(128 + signal);
    }
    let wrong = report.mismatched + report.missing + report.failed + report.extra.unwrap_or(0);
    if wrong > 0 {
        return Err(Failure::new(format!(
            "{} ({})",
            count(wrong, "difference"),
            named_above(wrong)
        )));
    }
    Ok(OK)
}
