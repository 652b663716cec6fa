//! `kv get`: one value, or a part of it, to stdout or a file.

use std::ffi::OsString;
use std::fs;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use kv_client::ReadError;

use crate::cli::Common;
use crate::failure::{Ended, Failure, OK};
use crate::keys::{from_argument, shown, shown_path};

const AFTER_HELP: &str = "\
A key is the bytes of the argument; for odd ones use the shell's $'...' (as `kv ls` prints them)
or --key-hex.

Examples:
  kv get rdma://node7/images train/000017.jpg -o 000017.jpg
  kv get rdma://node7/images labels.csv | head
  kv get rdma://node7/images $'odd\\nname'
  kv get rdma://node7/images movie.bin --range 1048576:4096 | xxd";

/// Fetch a value
#[derive(Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Arguments {
    /// The dataset
    uri: String,
    /// The key
    #[arg(value_name = "KEY")]
    key_argument: OsString,
    /// KEY is in hex digits
    #[arg(long)]
    key_hex: bool,
    /// Write to FILE, which is whole or not touched [default: stdout]
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Only LEN bytes from OFFSET on; what lies past the value's end is left out
    #[arg(long, value_name = "OFFSET:LEN", value_parser = range)]
    range: Option<(u64, u64)>,
    /// Write to a terminal what is no text
    #[arg(long, short)]
    force: bool,
}

fn range(text: &str) -> Result<(u64, u64), String> {
    let parsed = text
        .split_once(':')
        .and_then(|(offset, len)| Some((offset.parse().ok()?, len.parse().ok()?)));
    parsed.ok_or_else(|| "give two numbers, as in 4096:100".into())
}

pub(crate) fn run(arguments: Arguments, common: &Common) -> Ended {
    let key = from_argument(arguments.key_argument, arguments.key_hex).map_err(Failure::usage)?;
    let (_server, client) = common.dataset(&arguments.uri)?;
    let got = match arguments.range {
        Some((offset, len)) => client.get_range(&key, offset, len),
        None => client.get(&key),
    };
    let value = got.map_err(|error| {
        let remedy = match &error {
            ReadError::NotFound => " (`kv ls` lists the keys)",
            _ => "",
        };
        Failure::new(format!(
            "getting {} from {}: {error}{remedy}",
            shown(&key),
            arguments.uri
        ))
    })?;
    match &arguments.output {
        Some(path) => write_file(path, &value)
            .map_err(|error| Failure::new(format!("writing {}: {error}", shown_path(path))))?,
        None => {
            let mut stdout = io::stdout().lock();
            if !arguments.force && stdout.is_terminal() && !is_text(&value) {
                return Err(Failure::new(format!(
                    "the value of {} is {} bytes and no text: not written to a terminal (-o FILE, a pipe, or --force)",
                    shown(&key),
                    value.len()
                )));
            }
            stdout
                .write_all(&value)
                .and_then(|()| stdout.flush())
                .map_err(|error| Failure::stdout(&error))?;
        }
    }
    Ok(OK)
}

/// Whether a terminal shows it as text: UTF-8 without control characters but line ends and tabs.
fn is_text(value: &[u8]) -> bool {
    std::str::from_utf8(value).is_ok_and(|text| {
        text.chars()
            .all(|char| !char.is_control() || "\n\r\t".contains(char))
    })
}

/// Puts `value` in the place of `path` at once; a device or fifo is written to as it is.
fn write_file(path: &Path, value: &[u8]) -> io::Result<()> {
    if fs::metadata(path).is_ok_and(|metadata| !metadata.is_file()) {
        return fs::write(path, value);
    }
    // Through a link to the file that it means, so that the link stays.
    let place = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let mut name = place.clone().into_os_string();
    name.push(format!(".{}.tmp", std::process::id()));
    let written = fs::write(&name, value).and_then(|()| fs::rename(&name, &place));
    if written.is_err() {
        let _ = fs::remove_file(&name);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_two_numbers() {
        assert_eq!(range("5:10").unwrap(), (5, 10));
        assert!(
            ["5", "5:", ":5", "-1:5", "a:b", "1:2:3"]
                .iter()
                .all(|text| range(text).is_err())
        );
    }

    #[test]
    fn text_is_told_from_the_rest() {
        assert!(is_text("gr\u{fc}n\r\n\tx".as_bytes()) && is_text(b""));
        assert!(!is_text(b"\xff") && !is_text(b"a\0b") && !is_text(b"\x1b[2J"));
    }

    #[test]
    fn files_are_replaced_whole_and_links_stay() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("f"), dir.path().join("l"));
        fs::write(&file, "old").unwrap();
        std::os::unix::fs::symlink("f", &link).unwrap();
        write_file(&link, b"new").unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"new");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        write_file(Path::new("/dev/null"), b"x").unwrap();
        assert!(write_file(&dir.path().join("no/dir"), b"x").is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}
