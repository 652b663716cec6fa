//! `kv rm`: deletes keys.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

use clap::Args;
use kv_client::Client;

use crate::cli::Common;
use crate::failure::{Ended, Failure, OK};
use crate::keys::{from_argument, shown};
use crate::output::{count, print, say};

const AFTER_HELP: &str = "\
Examples:
  kv rm rdma://node7/images train/000017.jpg
  kv rm rdma://node7/images --prefix train/ --yes";

/// Delete keys
#[derive(Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Arguments {
    /// The dataset
    uri: String,
    /// The keys
    #[arg(value_name = "KEY", required_unless_present = "prefix")]
    keys: Vec<OsString>,
    /// KEYs are in hex digits
    #[arg(long)]
    key_hex: bool,
    /// Every key that begins with it
    #[arg(long, value_name = "PREFIX", conflicts_with = "keys")]
    prefix: Option<OsString>,
    /// Delete what --prefix finds; without it they are only counted
    #[arg(long, short)]
    yes: bool,
}

pub(crate) fn run(arguments: Arguments, common: &Common) -> Ended {
    let named: Result<Vec<Vec<u8>>, String> = arguments
        .keys
        .into_iter()
        .map(|argument| from_argument(argument, arguments.key_hex))
        .collect();
    let named = named.map_err(Failure::usage)?;
    let (_server, client) = common.dataset(&arguments.uri)?;
    let keys = match &arguments.prefix {
        None => named,
        Some(prefix) => {
            let found = keys_with(&client, prefix.as_bytes(), &arguments.uri)?;
            if !arguments.yes && !found.is_empty() {
                return Err(Failure::new(format!(
                    "{} of {} begin with {}: nothing was deleted (add --yes to delete them)",
                    count(found.len() as u64, "key"),
                    arguments.uri,
                    shown(prefix.as_bytes())
                )));
            }
            found
        }
    };
    let (mut removed, mut missing) = (0_u64, 0_u64);
    for key in &keys {
        match client.delete(key) {
            Ok(true) => removed += 1,
            Ok(false) => {
                say(format_args!("kv: {}: there is no such key", shown(key)));
                missing += 1;
            }
            Err(error) => {
                return Err(Failure::new(format!(
                    "deleting {} from {}: {error} ({} deleted before)",
                    shown(key),
                    arguments.uri,
                    count(removed, "key")
                )));
            }
        }
    }
    print(format_args!("deleted {}", count(removed, "key")))?;
    if missing > 0 {
        return Err(Failure::new(format!(
            "{} not there (named above)",
            count(missing, "key")
        )));
    }
    Ok(OK)
}

fn keys_with(client: &Client, prefix: &[u8], uri: &str) -> Result<Vec<Vec<u8>>, Failure> {
    let mut found = Vec::new();
    for entry in client.list() {
        let entry = entry.map_err(|error| Failure::new(format!("listing {uri}: {error}")))?;
        if entry.key.starts_with(prefix) {
            found.push(entry.key);
        }
    }
    Ok(found)
}
