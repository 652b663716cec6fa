//! Raw READs beside perftest, alternating: what the wire gives, by two instruments that check each other.

use std::net::IpAddr;
use std::path::PathBuf;

use serde::Serialize;

use crate::Error;
use crate::environment::{self, Environment};
use crate::perftest::{Perftest, Test};
use crate::raw::Pair;
use crate::stats::{Interval, interval};

/// READs of one chain, where bandwidth is measured; perftest's own transmit depth is set by it.
const DEPTH: usize = 16;

/// Options of `bench floor`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// RDMA device (default: the first of this machine).
    #[arg(long, env = "VKV_TEST_DEVICE")]
    device: Option<String>,
    /// Address of the device.
    #[arg(long, env = "VKV_TEST_ADDR")]
    address: IpAddr,
    /// Lengths of one READ, bytes.
    #[arg(long, value_delimiter = ',', default_value = "4096,65536,1048576")]
    sizes: Vec<usize>,
    /// Alternating blocks.
    #[arg(long, default_value_t = 10)]
    blocks: usize,
    /// READs of one block at 4 KiB; longer ones get fewer.
    #[arg(long, default_value_t = 1000)]
    reads: usize,
    /// Writes the figures here, as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Row {
    test: &'static str,
    size_bytes: usize,
    perftest: Interval,
    raw: Interval,
    /// Raw over perftest, block by block.
    ratio: Interval,
}

#[derive(Debug, Serialize)]
struct Report {
    environment: Environment,
    blocks: usize,
    rows: Vec<Row>,
}

/// Measures, prints a table, writes the JSON.
pub(crate) fn run(args: &Args) -> Result<bool, Error> {
    let device = args
        .device
        .clone()
        .or_else(|| environment::devices().into_iter().next());
    let device =
        device.ok_or("this machine has no RDMA device (see kv doctor, or run in soft-roce-ci/run)")?;
    let mut rows = Vec::new();
    println!(
        "{:<10} {:>9} {:>12} {:>12} {:>24}",
        "test", "bytes", "perftest", "raw", "raw / perftest (95 %)"
    );
    for &size in &args.sizes {
        for test in [Test::Latency, Test::Bandwidth] {
            let row = measure(args, &device, test, size)?;
            let unit = if test == Test::Latency { "us" } else { "MiB/s" };
            println!(
                "{:<10} {:>9} {:>9.1} {unit:<5} {:>6.1} {unit:<5} {:>8.3} ({:.3} to {:.3})",
                row.test,
                row.size_bytes,
                row.perftest.median,
                row.raw.median,
                row.ratio.median,
                row.ratio.low,
                row.ratio.high
            );
            rows.push(row);
        }
    }
    if let Some(path) = &args.json {
        let report = Report {
            environment: Environment::read(),
            blocks: args.blocks,
            rows,
        };
        std::fs::write(path, serde_json::to_string_pretty(&report)? + "\n")
            .map_err(|error| format!("cannot write {}: {error}", path.display()))?;
    }
    Ok(true)
}

fn measure(args: &Args, device: &str, test: Test, size: usize) -> Result<Row, Error> {
    // Whole chains: perftest refuses others.
    let reads = (args.reads * 4096 / size.max(4096))
        .max(4 * DEPTH)
        .next_multiple_of(DEPTH);
    let mut pair = Pair::new(device, size, DEPTH)?;
    let [mut theirs, mut ours, mut ratios] = [const { Vec::new() }; 3];
    for block in 0..args.blocks.max(1) {
        let perftest = Perftest {
            test,
            device,
            address: args.address,
            size_bytes: size as u64,
            iterations: reads as u32,
            depth: DEPTH,
            // What the raw loop posts: a chain with one completion, then the next.
            chain: DEPTH,
            signal: DEPTH,
            port: 18_500 + (block % 100) as u16,
        };
        let floor = perftest.run()?;
        let raw = match test {
            Test::Latency => pair.latency_us(reads)?,
            Test::Bandwidth => pair.bandwidth_mib_s(reads, DEPTH)?,
        };
        theirs.push(floor);
        ours.push(raw);
        ratios.push(raw / floor);
    }
    let none = "no block was measured";
    Ok(Row {
        test: if test == Test::Latency {
            "latency"
        } else {
            "bandwidth"
        },
        size_bytes: size,
        perftest: interval(&mut theirs).ok_or(none)?,
        raw: interval(&mut ours).ok_or(none)?,
        ratio: interval(&mut ratios).ok_or(none)?,
    })
}
