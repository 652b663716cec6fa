//! The command line: what all subcommands share.

use std::cell::OnceCell;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use kv_client::{AccessKey, Client, ClientOptions, Server, Target};

use crate::failure::{Ended, Failure};
use crate::{dataset, doctor, get, ingest, ls, rm, stat, verify};

const AFTER_HELP: &str = "\
A URI names a server and a dataset of it:
  rdma://host[:7471]/dataset           over RDMA
  local:/path/to/socket?dataset=name   on this machine, through shared memory

Start here:
  kv doctor                                      can this machine use rdma:// ?
  kv dataset create rdma://node7/images --key admin.toml
  kv ingest rdma://node7/images train/ --key admin.toml
  kv verify rdma://node7/images train/ --key admin.toml
  export VKV_KEY_FILE=admin.toml                 instead of --key every time

Exit codes: 0 done; 1 failed, wholly or in part; 2 wrong command line; 130 and 143 interrupted by
SIGINT and SIGTERM.";

/// Stores training samples on a verbs-kv server and reads them back by one-sided RDMA READs.
#[derive(Parser)]
#[command(name = "kv", version, after_help = AFTER_HELP, max_term_width = 110)]
pub(crate) struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Ingest(ingest::Arguments),
    Verify(verify::Arguments),
    Get(get::Arguments),
    Ls(ls::Arguments),
    Stat(stat::Arguments),
    Rm(rm::Arguments),
    Dataset(dataset::Arguments),
    Doctor(doctor::Arguments),
}

impl Cli {
    /// Does what the command line says.
    pub(crate) fn run(self) -> Ended {
        let common = &self.common;
        match self.command {
            Command::Ingest(arguments) => ingest::run(arguments, common),
            Command::Verify(arguments) => verify::run(arguments, common),
            Command::Get(arguments) => get::run(arguments, common),
            Command::Ls(arguments) => ls::run(&arguments, common),
            Command::Stat(arguments) => stat::run(&arguments, common),
            Command::Rm(arguments) => rm::run(&arguments, common),
            Command::Dataset(arguments) => dataset::run(arguments, common),
            Command::Doctor(arguments) => doctor::run(&arguments),
        }
    }
}

/// Options of every subcommand that talks to a server.
#[derive(Args)]
#[command(next_help_heading = "Connection")]
pub(crate) struct Common {
    /// Key file (TOML, made by `kv-server keygen`)
    #[arg(
        long,
        alias = "keys",
        value_name = "FILE",
        env = "VKV_KEY_FILE",
        global = true,
        hide_env_values = true
    )]
    key: Option<PathBuf>,
    /// Which key of the file [default: its first]
    #[arg(long, value_name = "NAME", env = "VKV_KEY_NAME", global = true)]
    key_name: Option<String>,
    /// Longest time that connecting, and each call after that, may take; retries included
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = seconds, global = true)]
    timeout: Duration,
    /// Id of this client, for retries across processes [default: random]
    #[arg(long, value_name = "NUMBER", value_parser = client_id, global = true)]
    client_id: Option<u64>,
    /// The key, once it was read: a pipe is read once, and a warning said once.
    #[arg(skip)]
    loaded: OnceCell<AccessKey>,
}

fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(value) if value > 0.0 && value <= 86_400.0 => Ok(Duration::from_secs_f64(value)),
        _ => Err("give a number of seconds above 0 and up to 86400".into()),
    }
}

fn client_id(text: &str) -> Result<u64, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed
        .ok()
        .filter(|id| *id != 0)
        .ok_or_else(|| "give a number from 1 to 2^64-1, 0x for hexadecimal".into())
}

/// Parses a URI; an error is a wrong command line.
pub(crate) fn target(uri: &str) -> Result<Target, Failure> {
    uri.parse()
        .map_err(|error: kv_client::ClientError| Failure::usage(error.to_string()))
}

/// The dataset that the URI must name.
pub(crate) fn dataset_of<'a>(target: &'a Target, uri: &str) -> Result<&'a str, Failure> {
    target.dataset().ok_or_else(|| {
        Failure::usage(format!(
            "{uri} names no dataset (rdma://host/NAME or local:/path/to/socket?dataset=NAME; `kv dataset ls` lists them)"
        ))
    })
}

impl Common {
    fn load(&self) -> Result<AccessKey, Failure> {
        let path = self.key.as_deref().ok_or_else(|| {
            Failure::usage("no key file (give --key FILE or set VKV_KEY_FILE; `kv-server keygen` makes one)")
        })?;
        AccessKey::load(path, self.key_name.as_deref()).map_err(|error| {
            Failure::new(format!(
                "{error} (give --key FILE or set VKV_KEY_FILE; --key-name NAME chooses a key of it)"
            ))
        })
    }

    fn options(&self) -> Result<ClientOptions, Failure> {
        let key = match self.loaded.get() {
            Some(key) => key.clone(),
            None => {
                let key = self.load()?;
                self.loaded.get_or_init(|| key).clone()
            }
        };
        let mut options = ClientOptions::new(key);
        options.client_id = self.client_id;
        options.connect_timeout = self.timeout;
        options.deadline = self.timeout;
        Ok(options)
    }

    /// Fails now where connecting would fail for want of a key: before a long scan of inputs.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        self.options().map(drop)
    }

    /// A session with the server of `target`.
    pub(crate) fn server(&self, target: &Target) -> Result<Server, Failure> {
        let options = self.options()?;
        Server::connect(target, options)
            .map_err(|error| Failure::new(format!("connecting to {target}: {error}")))
    }

    /// The dataset that `uri` names, and its session.
    pub(crate) fn dataset(&self, uri: &str) -> Result<(Server, Client), Failure> {
        let target = target(uri)?;
        let name = dataset_of(&target, uri)?;
        let server = self.server(&target)?;
        let client = server
            .open(name)
            .map_err(|error| Failure::new(format!("opening {target}: {error}")))?;
        Ok((server, client))
    }
}

/// Which paths, under which keys: shared by ingest and verify.
#[derive(Args)]
pub(crate) struct InputArguments {
    /// Directories, files, and tars (WebDataset shards)
    #[arg(required = true, value_name = "PATH")]
    pub(crate) paths: Vec<PathBuf>,
    /// Put in front of every key, as it is (end it with a slash to make a folder)
    #[arg(long, value_name = "PREFIX", default_value = "", hide_default_value = true)]
    pub(crate) prefix: std::ffi::OsString,
    /// Which `.tar` files stand for their members
    #[arg(long, value_enum, default_value = "named", value_name = "WHICH")]
    pub(crate) tars: crate::source::scan::Tars,
    /// The same as --tars none: each tar is one value
    #[arg(long, alias = "no-tar", conflicts_with = "tars")]
    pub(crate) as_files: bool,
}

impl InputArguments {
    /// Scans the paths and says what is left out; two inputs of one key are a failure.
    pub(crate) fn scan(&self, quiet: bool) -> Result<crate::source::Sources, Failure> {
        use crate::output::{count, say, say_some};
        use crate::source::scan::{Tars, check_distinct, scan};
        use std::os::unix::ffi::OsStrExt;
        let tars = if self.as_files { Tars::None } else { self.tars };
        let sources = scan(&self.paths, self.prefix.as_bytes(), tars);
        check_distinct(&sources).map_err(Failure::new)?;
        if !quiet {
            say_some("kv: skipped ", sources.skipped.iter());
            if sources.nested_tars > 0 {
                let tars = count(sources.nested_tars, "tar");
                say(format_args!(
                    "kv: {tars} inside directories: each is one value (--tars all stores the members)"
                ));
            }
            if sources.compressed_tars > 0 {
                let tars = count(sources.compressed_tars, "compressed tar");
                say(format_args!(
                    "kv: {tars}: each is one value (unpack them to .tar to store the members)"
                ));
            }
        }
        say_some("kv: ", sources.failed.iter());
        Ok(sources)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn numbers_are_judged() {
        assert_eq!(seconds("0.5").unwrap(), Duration::from_millis(500));
        assert!(
            ["0", "-1", "nan", "inf", "x", "86401"]
                .iter()
                .all(|text| seconds(text).is_err())
        );
        assert_eq!(client_id("0xff").unwrap(), 255);
        assert!(["0", "-1", "0x", "g"].iter().all(|text| client_id(text).is_err()));
    }

    #[test]
    fn every_subcommand_has_an_example() {
        fn check(command: &mut clap::Command, path: &str) {
            let path = format!("{path} {}", command.get_name());
            let subcommands: Vec<_> = command
                .get_subcommands()
                .map(|sub| sub.get_name().to_owned())
                .collect();
            if subcommands.is_empty() {
                let help = command.render_long_help().to_string();
                assert!(help.contains("Example"), "{path} has no example");
            }
            for name in subcommands.iter().filter(|name| *name != "help") {
                check(command.find_subcommand_mut(name).unwrap(), &path);
            }
        }
        check(&mut Cli::command(), "");
    }
}
