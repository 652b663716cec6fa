//! `kv dataset`: creates, drops, renames and lists datasets.

use clap::{Args, Subcommand};
use kv_client::{ClientError, DatasetInfo};
use kv_proto::control::Status;
use serde::Serialize;

use crate::cli::{Common, dataset_of, target};
use crate::failure::{Ended, Failure, OK};
use crate::keys::to_hex;
use crate::output::{count, print, print_json, size};

/// Create, drop, rename and list datasets
#[derive(Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Create an empty dataset (needs an `admin` key)
    #[command(after_help = "Example:\n  kv dataset create rdma://node7/images")]
    Create {
        /// Server and name; a name is 1 to 64 of a-z 0-9 . _ -
        uri: String,
        /// A dataset of this name is not an error
        #[arg(long)]
        if_missing: bool,
    },
    /// Drop a dataset and every value in it (needs an `admin` key)
    #[command(after_help = "Example:\n  kv dataset drop rdma://node7/images --yes")]
    Drop {
        /// The dataset
        uri: String,
        /// Drop it; without it only say what would be dropped
        #[arg(long, short)]
        yes: bool,
    },
    /// List the datasets that the key may open
    #[command(
        after_help = "Examples:\n  kv dataset ls rdma://node7\n  kv dataset ls local:/run/kv.sock --json"
    )]
    Ls {
        /// The server
        uri: String,
        /// As one JSON array
        #[arg(long)]
        json: bool,
    },
    /// Rename a dataset (needs an `admin` key)
    #[command(after_help = "Example:\n  kv dataset rename rdma://node7/images images-2026")]
    Rename {
        /// The dataset
        uri: String,
        /// Its new name
        name: String,
    },
}

#[derive(Serialize)]
struct Line<'a> {
    name: &'a str,
    id: String,
    keys: u64,
    value_bytes: u64,
}

pub(crate) fn run(arguments: Arguments, common: &Common) -> Ended {
    match arguments.command {
        Command::Create { uri, if_missing } => create(&uri, if_missing, common),
        Command::Drop { uri, yes } => remove(&uri, yes, common),
        Command::Ls { uri, json } => list(&uri, json, common),
        Command::Rename { uri, name } => rename(&uri, &name, common),
    }
}

fn create(uri: &str, if_missing: bool, common: &Common) -> Ended {
    let target = target(uri)?;
    let name = dataset_of(&target, uri)?;
    match common.server(&target)?.create(name) {
        Ok(id) => print(format_args!("created {name} ({})", to_hex(&id)))?,
        Err(ClientError::Refused {
            status: Status::Exists,
            ..
        }) if if_missing => {
            print(format_args!("{name} is there already"))?;
        }
        Err(error) => return Err(Failure::new(format!("creating {target}: {error}"))),
    }
    Ok(OK)
}

fn remove(uri: &str, yes: bool, common: &Common) -> Ended {
    let target = target(uri)?;
    let name = dataset_of(&target, uri)?;
    let server = common.server(&target)?;
    if !yes {
        let datasets = server
            .datasets()
            .map_err(|error| Failure::new(format!("listing {target}: {error}")))?;
        return Err(Failure::new(
            match datasets.iter().find(|dataset| dataset.name == name) {
                Some(DatasetInfo {
                    keys, value_bytes, ..
                }) => format!(
                    "{name} holds {}, {}: not dropped (add --yes to drop it for good)",
                    count(*keys, "key"),
                    size(*value_bytes)
                ),
                None => format!("dropping {target}: there is no such dataset"),
            },
        ));
    }
    server
        .drop_dataset(name)
        .map_err(|error| Failure::new(format!("dropping {target}: {error}")))?;
    print(format_args!("dropped {name}"))?;
    Ok(OK)
}

fn list(uri: &str, json: bool, common: &Common) -> Ended {
    let target = target(uri)?;
    let mut datasets = common
        .server(&target)?
        .datasets()
        .map_err(|error| Failure::new(format!("listing {target}: {error}")))?;
    datasets.sort_by(|one, two| one.name.cmp(&two.name));
    if json {
        let lines: Vec<Line<'_>> = datasets
            .iter()
            .map(
                |DatasetInfo {
                     name,
                     id,
                     keys,
                     value_bytes,
                 }| Line {
                    name,
                    id: to_hex(id),
                    keys: *keys,
                    value_bytes: *value_bytes,
                },
            )
            .collect();
        print_json(&lines)?;
        return Ok(OK);
    }
    let width = datasets
        .iter()
        .map(|dataset| dataset.name.len())
        .max()
        .unwrap_or(0);
    for DatasetInfo {
        name,
        keys,
        value_bytes,
        ..
    } in &datasets
    {
        print(format_args!(
            "{name:width$}  {:>14}  {:>10}",
            count(*keys, "key"),
            size(*value_bytes)
        ))?;
    }
    Ok(OK)
}

fn rename(uri: &str, new: &str, common: &Common) -> Ended {
    let target = target(uri)?;
    let name = dataset_of(&target, uri)?;
    if !kv_proto::layout::dataset_name_is_valid(new.as_bytes()) {
        return Err(Failure::usage(format!(
            "{new:?} is no name for a dataset (1 to 64 of a-z 0-9 . _ -)"
        )));
    }
    let server = common.server(&target)?;
    server
        .rename(name, new)
        .map_err(|error| Failure::new(format!("renaming {target} to {new}: {error}")))?;
    print(format_args!("renamed {name} to {new}"))?;
    Ok(OK)
}
