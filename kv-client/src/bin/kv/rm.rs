//! `kv rm`: deletes keys.

use std::ffi::OsString;
use std::io::{self, BufRead, Read};
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use clap::Args;
use kv_client::Client;
use kv_proto::layout::KEY_MAX_BYTES;

use crate::cli::Common;
use crate::failure::{Ended, Failure, OK};
use crate::keys::{from_argument, judge_named, shown};
use crate::output::{count, named_above, print, say_some};

/// Threads that delete.
const JOBS: usize = 8;
/// Keys taken from stdin at most: all are held in memory before the first is deleted.
const STDIN_KEYS_MAX: usize = 10_000_000;

const AFTER_HELP: &str = "\
A key that begins with a dash comes after a `--`. Keys that a program gives come by -0, where
nothing is taken for an option.

Examples:
  kv rm rdma://node7/images train/000017.jpg
  kv rm rdma://node7/images -- -0
  kv rm rdma://node7/images --prefix train/ --yes
  kv ls rdma://node7/images -0 | grep -z '^tmp' | kv rm rdma://node7/images -0";

/// Delete keys
#[derive(Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Arguments {
    /// The dataset
    uri: String,
    /// The keys
    #[arg(value_name = "KEY", required_unless_present_any = ["null", "prefix", "all"])]
    keys: Vec<OsString>,
    /// KEYs are in hex digits
    #[arg(long)]
    key_hex: bool,
    /// Read keys from stdin, as they are, each with a zero byte after it (as `kv ls -0` writes them)
    #[arg(short = '0', long = "null", conflicts_with_all = ["keys", "key_hex"])]
    null: bool,
    /// Every key that begins with it
    #[arg(long, value_name = "PREFIX", conflicts_with_all = ["keys", "key_hex", "null"])]
    prefix: Option<OsString>,
    /// Every key of the dataset
    #[arg(long, conflicts_with_all = ["keys", "key_hex", "null", "prefix"])]
    all: bool,
    /// Delete what --prefix or --all find; without it they are only counted
    #[arg(long, short)]
    yes: bool,
}

impl Arguments {
    /// The prefix whose keys are meant, if it is not keys that are named.
    fn prefix(&self) -> Result<Option<&[u8]>, Failure> {
        match &self.prefix {
            // A variable that is not set, in a script.
            Some(prefix) if prefix.is_empty() => {
                let why = "--prefix is empty: every key begins with it (--all deletes every key)";
                Err(Failure::usage(why))
            }
            Some(prefix) => Ok(Some(prefix.as_bytes())),
            None => Ok(self.all.then_some(b"")),
        }
    }

    /// The keys that are named.
    fn named(&self, stdin: impl Read) -> Result<Vec<Vec<u8>>, Failure> {
        if self.null {
            return keys_from(stdin);
        }
        let keys = self.keys.iter().cloned();
        let named = keys.map(|argument| from_argument(argument, self.key_hex));
        named.collect::<Result<_, _>>().map_err(Failure::usage)
    }
}

/// Keys with a zero byte after each. A last one without it may have been cut, and then it is another key's.
fn keys_from(input: impl Read) -> Result<Vec<Vec<u8>>, Failure> {
    let mut input = io::BufReader::new(input);
    let mut keys = Vec::new();
    loop {
        // No more of it than shows that it is too long.
        let mut key = Vec::new();
        input
            .by_ref()
            .take(KEY_MAX_BYTES as u64 + 1)
            .read_until(0, &mut key)
            .map_err(|error| Failure::new(format!("reading keys from stdin: {error}")))?;
        let refused = |why: &str| Failure::new(format!("from stdin: {why}: nothing was deleted"));
        match key.pop() {
            None => return Ok(keys),
            Some(0) => {}
            Some(_) if key.len() < KEY_MAX_BYTES => {
                let why = "the last key has no zero byte after it (write keys as `kv ls -0` does)";
                return Err(refused(why));
            }
            Some(_) => return Err(refused("a key of more than 1024 bytes")),
        }
        judge_named(&key).map_err(|why| refused(&why))?;
        if keys.len() == STDIN_KEYS_MAX {
            let why = format!("more than {STDIN_KEYS_MAX} keys (delete in parts, or by --prefix)");
            return Err(refused(&why));
        }
        keys.push(key);
    }
}

pub(crate) fn run(arguments: &Arguments, common: &Common) -> Ended {
    let prefix = arguments.prefix()?;
    let named = match prefix {
        None => arguments.named(io::stdin())?,
        Some(_) => Vec::new(),
    };
    let (_server, client) = common.dataset(&arguments.uri)?;
    let keys = match prefix {
        None => named,
        Some(prefix) => {
            let found = keys_with(&client, prefix, &arguments.uri)?;
            if !arguments.yes && !found.is_empty() {
                let begin = match prefix {
                    b"" => String::new(),
                    _ => format!(" beginning with {}", shown(prefix)),
                };
                return Err(Failure::new(format!(
                    "{} holds {}{begin}: nothing was deleted (add --yes to delete them)",
                    arguments.uri,
                    count(found.len() as u64, "key"),
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
    let lines = missing
        .iter()
        .map(|key| format!("{}: there is no such key", shown(key)));
    say_some("kv: ", lines);
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
            "{} not there ({})",
            count(missing.len() as u64, "key"),
            named_above(missing.len() as u64)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_from_stdin_are_whole_or_none_are() {
        let keys = |bytes: &[u8]| keys_from(bytes).map_err(|failure| failure.to_string());
        assert_eq!(keys(b"a\n\0--prefix=\0").unwrap(), [&b"a\n"[..], b"--prefix="]);
        assert!(keys(b"").unwrap().is_empty());
        assert!(keys(b"a\0b").unwrap_err().contains("no zero byte"));
        assert!(keys(b"a\0\0").unwrap_err().contains("empty key"));
        assert!(keys(b"\0").unwrap_err().contains("empty key"));
        assert_eq!(keys(&[[b'k'; 1024].as_slice(), b"\0"].concat()).unwrap().len(), 1);
        let long = [b"a\0".as_slice(), &[b'k'; 1025], b"\0"].concat();
        assert!(keys(&long).unwrap_err().contains("more than 1024 bytes"));
        // Bytes without end do not fill the memory.
        assert!(keys_from(io::repeat(b'k')).is_err());
    }
}
