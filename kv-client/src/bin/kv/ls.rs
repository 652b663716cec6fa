//! `kv ls`: the keys of a dataset.

use std::ffi::OsString;
use std::io::{self, BufWriter, Write};
use std::os::unix::ffi::OsStrExt;

use clap::Args;
use serde::Serialize;

use crate::cli::Common;
use crate::failure::{Ended, Failure, OK};
use crate::keys::{shown, to_hex};

const AFTER_HELP: &str = "\
Keys that do not print are shown in the form $'a\\nb', which a shell turns back into their bytes;
-0 writes them as they are. --json writes one object a line: key (null if no UTF-8), key_hex,
bytes.

Examples:
  kv ls rdma://node7/images --prefix train/ -l
  kv ls rdma://node7/images -0 | grep -z '^tmp' | kv rm rdma://node7/images -0
  kv ls rdma://node7/images --json --unsorted | jq -s 'map(.bytes) | add'";

/// List keys
#[derive(Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Arguments {
    /// The dataset
    uri: String,
    /// Only keys that begin with it
    #[arg(long, value_name = "PREFIX", default_value = "", hide_default_value = true)]
    prefix: OsString,
    /// Lengths too
    #[arg(long, short)]
    long: bool,
    /// Write each key as it is, with a zero byte after it
    #[arg(short = '0', long = "null", conflicts_with = "json")]
    null: bool,
    /// One JSON object a line
    #[arg(long, conflicts_with = "long")]
    json: bool,
    /// Write keys as they come, in no order and holding none back
    #[arg(long)]
    unsorted: bool,
}

#[derive(Serialize)]
struct Line<'a> {
    key: Option<&'a str>,
    key_hex: String,
    bytes: u64,
}

pub(crate) fn run(arguments: &Arguments, common: &Common) -> Ended {
    let (_server, client) = common.dataset(&arguments.uri)?;
    let mut out = BufWriter::new(io::stdout().lock());
    let mut held = Vec::new();
    for entry in client.list() {
        let entry = entry.map_err(|error| Failure::new(format!("listing {}: {error}", arguments.uri)))?;
        if !entry.key.starts_with(arguments.prefix.as_bytes()) {
            continue;
        }
        if arguments.unsorted {
            write_line(&mut out, arguments, &entry.key, entry.value_len_bytes)
                .map_err(|error| Failure::stdout(&error))?;
        } else {
            held.push((entry.key, entry.value_len_bytes));
        }
    }
    held.sort_unstable();
    let written = held
        .iter()
        .try_for_each(|(key, len_bytes)| write_line(&mut out, arguments, key, *len_bytes));
    written
        .and_then(|()| out.flush())
        .map_err(|error| Failure::stdout(&error))?;
    Ok(OK)
}

fn write_line(out: &mut impl Write, arguments: &Arguments, key: &[u8], len_bytes: u64) -> io::Result<()> {
    if arguments.json {
        let line = Line {
            key: std::str::from_utf8(key).ok(),
            key_hex: to_hex(key),
            bytes: len_bytes,
        };
        serde_json::to_writer(&mut *out, &line)?;
        return out.write_all(b"\n");
    }
    if arguments.long {
        write!(out, "{len_bytes:>12}  ")?;
    }
    if arguments.null {
        out.write_all(key)?;
        return out.write_all(b"\0");
    }
    writeln!(out, "{}", shown(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(long: bool, null: bool, json: bool, key: &[u8]) -> Vec<u8> {
        let arguments = Arguments {
            uri: String::new(),
            prefix: "".into(),
            long,
            null,
            json,
            unsorted: false,
        };
        let mut out = Vec::new();
        write_line(&mut out, &arguments, key, 7).unwrap();
        out
    }

    #[test]
    fn lines_are_what_was_asked_for() {
        assert_eq!(line(false, false, false, b"a b"), b"a b\n");
        assert_eq!(line(false, false, false, b"a\nb"), b"$'a\\nb'\n");
        assert_eq!(line(true, false, false, b"a"), b"           7  a\n");
        assert_eq!(line(false, true, false, b"a\n\xff"), b"a\n\xff\0");
        assert_eq!(
            line(false, false, true, b"a"),
            b"{\"key\":\"a\",\"key_hex\":\"61\",\"bytes\":7}\n"
        );
        assert_eq!(
            line(false, false, true, b"\xff"),
            b"{\"key\":null,\"key_hex\":\"ff\",\"bytes\":7}\n"
        );
    }
}
