//! `kv stat`: figures of a dataset or of a server.

use clap::Args;
use serde_json::{Map, Value};

use crate::cli::{Common, target};
use crate::failure::{Ended, Failure, OK};
use crate::output::{columns, print, print_json, size};

const AFTER_HELP: &str = "\
Examples:
  kv stat rdma://node7/images          of the dataset
  kv stat rdma://node7                 of the server
  kv stat local:/run/kv.sock --json";

/// Show figures of a dataset, or of the server where the URI names none
#[derive(Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Arguments {
    /// The dataset or server
    uri: String,
    /// As one JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &Arguments, common: &Common) -> Ended {
    let target = target(&arguments.uri)?;
    let server = common.server(&target)?;
    let figures = match target.dataset() {
        Some(name) => server.open(name).and_then(|client| client.stat()),
        None => server.stat(),
    };
    let figures = figures.map_err(|error| Failure::new(format!("asking {target}: {error}")))?;
    if arguments.json {
        let object: Map<String, Value> = figures
            .into_iter()
            .map(|(name, value)| (name, value.into()))
            .collect();
        print_json(&object)?;
    } else {
        print(columns(&rows(&figures)).trim_end())?;
    }
    Ok(OK)
}

fn rows(figures: &[(String, u64)]) -> Vec<(String, String)> {
    let shown = |name: &str, value: u64| match name.ends_with("_bytes") && value >= 1000 {
        true => format!("{value} ({})", size(value)),
        false => value.to_string(),
    };
    figures
        .iter()
        .map(|(name, value)| (name.clone(), shown(name, *value)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_shown_for_people_too() {
        let figures = [("keys".to_owned(), 12_345), ("value_bytes".to_owned(), 12_345)];
        assert_eq!(
            columns(&rows(&figures)),
            "keys         12345\nvalue_bytes  12345 (12.3 kB)\n"
        );
    }
}
