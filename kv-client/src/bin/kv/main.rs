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
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::prelude::*;

use failure::Failure;

fn main() -> ExitCode {
    // The library's warnings are for people too; RUST_LOG asks for more.
    let asked = std::env::var("RUST_LOG").ok();
    let filter = asked.and_then(|text| text.parse::<Targets>().ok());
    let filter = filter.unwrap_or_else(|| Targets::new().with_default(LevelFilter::WARN));
    let log = tracing_subscriber::fmt::layer()
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .without_time();
    tracing_subscriber::registry().with(log).with(filter).init();
    match cli::Cli::parse().run() {
        Ok(code) => code.into(),
        Err(Failure::BrokenPipe) => failure::OK.into(),
        Err(Failure::Message { text, code }) => {
            output::say(format_args!("kv: {text}"));
            code.into()
        }
    }
}
