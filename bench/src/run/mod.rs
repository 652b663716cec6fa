//! `bench run`: what a DEF.toml says, beside floors and peers, in alternating blocks, with checked values.
//!
//! Each block of each side is a process of its own ([`job`]). In block after block every point of every case is measured
//! on every side, so neighbours in time meet the machine in the same state; ratios are taken block by block, and their
//! median is told with its 95 % interval.

pub(crate) mod compare;
mod csv;
mod definition;
mod given;
mod html;
mod job;
mod kv;
mod order;
mod pace;
mod plot;
mod report;
mod sides;
mod stand;
mod target;
mod values;

use std::net::IpAddr;
use std::path::PathBuf;

use crate::Error;
use crate::environment::{self, Environment};
use definition::Definition;
use stand::Stand;

pub(crate) use job::run_side;

const EXAMPLE: &str = include_str!("example.toml");
/// What `--smoke` leaves of a case.
const SMOKE: Cut = Cut {
    blocks: 2,
    values: 24,
    gets: 64,
    batch: 16,
};

/// Options of `bench run`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What to measure: see --example.
    #[arg(required_unless_present = "example")]
    definition: Option<PathBuf>,
    /// Prints a definition with comments.
    #[arg(long)]
    example: bool,
    /// Where server and peers keep their data: a fresh directory is made in it.
    #[arg(long, default_value = "/var/tmp")]
    data: PathBuf,
    /// Address that the server listens on and perftest uses, for verbs.
    #[arg(long, env = "VKV_TEST_ADDR")]
    address: Option<IpAddr>,
    /// RDMA device (default: the first of this machine).
    #[arg(long, env = "VKV_TEST_DEVICE")]
    device: Option<String>,
    /// What the report calls the place where this runs: device, host-rxe, vm or local.
    #[arg(long, env = "VKV_FABRIC_KIND", default_value = "local")]
    label: String,
    /// Port that the server listens on, for verbs.
    #[arg(long, default_value_t = 7473)]
    port: u16,
    /// Blocks, whatever the definition says.
    #[arg(long)]
    blocks: Option<usize>,
    /// Few values and GETs: shows that everything runs, and measures nothing.
    #[arg(long)]
    smoke: bool,
    /// Writes NAME.json, NAME.csv and NAME.html into this directory, NAME being the definition's.
    #[arg(long)]
    out: Option<PathBuf>,
}

/// How much of a definition is run.
#[derive(Debug, Clone, Copy)]
struct Cut {
    blocks: usize,
    values: usize,
    gets: usize,
    batch: usize,
}

/// This program, for blocks in processes of their own.
fn program() -> Result<PathBuf, Error> {
    // A test of the program runs it as a library: then it is named.
    match std::env::var_os("VKV_BENCH") {
        Some(named) => Ok(named.into()),
        None => Ok(std::env::current_exe()?),
    }
}

/// Runs a definition; whether every value was right and no target was missed.
pub(crate) fn run(args: &Args) -> Result<bool, Error> {
    if args.example {
        print!("{EXAMPLE}");
        return Ok(true);
    }
    let path = args
        .definition
        .as_ref()
        .ok_or("name a definition (see bench run --example)")?;
    let shown = path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|error| format!("cannot read {shown}: {error}"))?;
    let definition = Definition::parse(&text, &shown)?;
    let mut cut = args.smoke.then_some(SMOKE);
    if let Some(blocks) = args.blocks {
        cut.get_or_insert(Cut {
            blocks,
            values: usize::MAX,
            gets: usize::MAX,
            batch: usize::MAX,
        })
        .blocks = blocks;
    }
    let device = args
        .device
        .clone()
        .or_else(|| environment::devices().into_iter().next());
    let mut stand = Stand::new(args, &definition, cut, device.unwrap_or_default())?;
    stand.measure()?;
    let environment = Environment::with_device(stand.device());
    let report = stand.report(&definition, &text, &args.label, environment)?;
    report.print();
    if let Some(folder) = &args.out {
        let name = path.file_stem().unwrap_or_default();
        report.write(folder, &name.to_string_lossy())?;
    }
    Ok(report.is_good())
}
