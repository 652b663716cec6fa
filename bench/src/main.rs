//! The harness: what a READ costs on the wire, and what verbs-kv makes of it, measured in one run.
//!
//! - `bench run`: what a DEF.toml says, beside floors and peers; `bench compare` tells two such runs apart.
//! - `bench instructions`: how many of them the client spends on a GET.
//! - `bench floor`: raw READs over `rdma-core-rs` beside perftest, alternating.
//! - `bench lookup`: lookups in a table of ten million keys, in one of ten thousand, and random loads.
//! - `bench put`: durable PUTs beside fio.
//! - `bench restart`: a start with ten million records beside `cat` and a hash map.
//! - `bench demo`: real files into a dataset and back, every byte compared; the main job.
mod demo;
mod disk;
mod echo;
mod environment;
mod fetch;
mod floor;
mod instructions;
mod latency;
mod lookup;
mod perftest;
mod process_clock;
mod processes;
mod put;
mod raw;
mod restart;
mod run;
mod source;
mod stage;
mod stats;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

pub(crate) use campaigns::{Error, interrupt};

/// Measures verbs-kv beside the floor that the wire sets, in one run, with checked data.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// What a DEF.toml says (see --example), beside floors and peers, in alternating blocks, with checked values.
    Run(run::Args),
    /// What two reports of `run` say differently, beyond noise.
    Compare(run::compare::Args),
    /// Instructions that the client spends on a GET, counted by callgrind over the simulated network.
    Instructions(instructions::Args),
    /// Raw READs beside perftest (ib_read_lat, ib_read_bw), alternating, on the RDMA device of this machine.
    Floor(floor::Args),
    /// Ingests real files, kills the server, fetches every file back by READs and compares every byte.
    Demo(demo::Args),
    /// Lookups in a large and in a small table, beside dependent random loads; one process, no device.
    Lookup(lookup::Args),
    /// Durable PUTs of 64 KiB beside fio, and the bytes they write beside plain writes, alternating.
    Put(put::Args),
    /// A restart with ten million records beside `cat` of its FOOTERs and a hash map of its keys, alternating.
    Restart(restart::Args),
    /// One block of `demo`'s latency, in a process of its own.
    #[command(hide = true)]
    Block(latency::BlockArgs),
    /// One block of one side of `run`, in a process of its own.
    #[command(hide = true)]
    Side,
}

fn main() -> ExitCode {
    let command = Cli::parse().command;
    // One block of something ends with the process that it is of.
    let is_block = matches!(command, Command::Side | Command::Block(_));
    if !is_block && let Err(error) = interrupt::listen() {
        eprintln!("bench: no signals can be listened to: {error}");
        return ExitCode::FAILURE;
    }
    let outcome = match command {
        Command::Run(args) => run::run(&args),
        Command::Compare(args) => run::compare::run(&args),
        Command::Side => run::run_side(),
        Command::Instructions(args) => instructions::run(&args),
        Command::Floor(args) => floor::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Lookup(args) => lookup::run(&args),
        Command::Put(args) => put::run(&args),
        Command::Restart(args) => restart::run(&args),
        Command::Block(args) => latency::run_block(&args),
    };
    interrupt::or_end();
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}
