//! `kv`: the command line of verbs-kv. See `kv --help`.

mod cli;
mod dataset;
mod doctor;
mod failure;
mod get;
mod ingest;
mod keys;
mod ls;
mod output;
mod progress;
mod rm;
mod source;
mod stat;
mod stop;
mod store;
mod verify;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;

use failure::Failure;

fn main() -> ExitCode {
    // The library's warnings are for people too; RUST_LOG asks for more.
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "warn".into());
    let colours = std::io::stderr().is_terminal();
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(colours);
    log.with_writer(std::io::stderr).without_time().init();
    match cli::Cli::parse().run() {
        Ok(code) => code.into(),
        Err(Failure::BrokenPipe) => failure::OK.into(),
        Err(Failure::Message { text, code }) => {
            output::say(format_args!("kv: {text}"));
            code.into()
        }
    }
}
