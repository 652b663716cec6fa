//! Campaigns that try to make the store lose, tear or bring back bytes, and compare all that is left with what was answered.
//!
//! - `campaign fire`: readers against writers and reclamation, on networks that are late, in processes that stop.
//! - `campaign crash`: a server killed at random moments; nothing that was answered is lost.
//! - `campaign power`: the power cut at any point of a recording of the block device; the same.
mod crash;
mod fire;
mod power;

use std::process::ExitCode;

use campaigns::interrupt;
use clap::{Parser, Subcommand};

/// Tries to make verbs-kv lose, tear or bring back bytes, and compares all of them.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Readers against writers and reclamation: no wrong byte, nothing old, and every hazard often enough.
    Fire(fire::Args),
    /// Kills a server at random moments while it is written to, and compares everything after each restart.
    Crash(crash::Args),
    /// Records every block write of a server, cuts the power at many points, and compares what is left.
    Power(power::Args),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Fire(args) => interrupt::listen()
            .map_err(Into::into)
            .and_then(|()| fire::run(&args)),
        Command::Crash(args) => crash::run(&args),
        Command::Power(args) => power::run(&args),
    };
    interrupt::or_end();
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("campaign: {error}");
            ExitCode::FAILURE
        }
    }
}
