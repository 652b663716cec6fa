//! `kv rm`: deletes keys.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use clap::Args;
use kv_client::Client;

use crate::cli::Common;
use crate::failure::{Ended, Failure, OK};
use crate::keys::{from_argument, shown};
use crate::output::{count, print, say};

/// Threads that delete.
const JOBS: usize = 8;

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
    let Deleted {
        deleted,
        missing,
        failure,
    } = delete(&client, &keys);
    for key in &missing {
        say(format_args!("kv: {}: there is no such key", shown(key)));
    }
    if let Some(why) = failure {
        let before = count(deleted, "key");
        return Err(Failure::new(format!(
            "deleting from {}: {why} ({before} deleted before)",
            arguments.uri
        )));
    }
    print(format_args!("deleted {}", count(deleted, "key")))?;
    if !missing.is_empty() {
        return Err(Failure::new(format!(
            "{} not there (named above)",
            count(missing.len() as u64, "key")
        )));
    }
    Ok(OK)
}

#[derive(Default)]
struct Deleted<'a> {
    deleted: u64,
    missing: Vec<&'a [u8]>,
    failure: Option<String>,
}

/// Deletes with several threads, whose deletions the server makes durable together. Stops at the first failure.
fn delete<'a>(client: &Client, keys: &'a [Vec<u8>]) -> Deleted<'a> {
    let next = AtomicUsize::new(0);
    let outcome = Mutex::new(Deleted::default());
    let work = |client: &Client| {
        while let Some(key) = keys.get(next.fetch_add(1, Ordering::Relaxed)) {
            let answer = client.delete(key);
            let mut outcome = outcome.lock().unwrap_or_else(PoisonError::into_inner);
            match answer {
                Ok(true) => outcome.deleted += 1,
                Ok(false) => outcome.missing.push(key),
                Err(error) => {
                    outcome
                        .failure
                        .get_or_insert_with(|| format!("key {}: {error}", shown(key)));
                }
            }
            if outcome.failure.is_some() {
                return;
            }
        }
    };
    thread::scope(|scope| {
        for _ in 1..JOBS.min(keys.len()) {
            let client = client.clone();
            let work = &work;
            scope.spawn(move || work(&client));
        }
        work(client);
    });
    let mut outcome = outcome.into_inner().unwrap_or_else(PoisonError::into_inner);
    outcome.missing.sort_unstable();
    outcome
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
