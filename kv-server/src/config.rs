//! The command line of `kv-server`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Parser, Subcommand};
use kv_proto::auth::Role;
use kv_proto::layout::{
    EXTENT_BYTES, PART_MAX_BYTES, SEGMENT_DEFAULT_BYTES, SEGMENT_MAX_BYTES, SEGMENT_MIN_BYTES,
};

use crate::control::{Options, keys};
use crate::error::StorageError;
use crate::store::sync_kind::SyncKind;
use crate::store::{Compaction, PART_MIN_BYTES, SCRUB_SHARE_DEFAULT, StoreOptions};

/// Port that is listened on unless told otherwise.
pub const PORT_DEFAULT: u16 = 7471;
/// Least staging memory of a session that writes, bytes.
const STAGING_MIN_BYTES: u64 = 64 << 10;
/// Least memory beside two extents of images, bytes: what sessions and the index of a small dataset take.
const MEMORY_MIN_BYTES: u64 = 32 << 20;
/// Most staging memory of a session that writes, bytes.
const STAGING_MAX_BYTES: u64 = 1 << 30;
/// Shortest lease, ms: below this, scheduling alone would end sessions.
const LEASE_MIN_MS: i64 = 100;
/// Longest lease, and longest lag, ms.
const LEASE_MAX_MS: i64 = 3_600_000;

/// Serves datasets of training samples that clients read with one-sided RDMA.
#[derive(Debug, Parser)]
#[command(name = "kv-server", version, max_term_width = 100)]
pub struct Command {
    /// What to do.
    #[command(subcommand)]
    pub action: Action,
}

const TRY: &str = "\
For a try on one machine without RDMA:
  kv-server keygen --name me --role admin --out keys.toml
  kv-server serve --data ./data --keys keys.toml --listen local:./verbs-kv.sock";

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Action {
    /// Serve a data directory until SIGTERM or SIGINT.
    ///
    /// SIGTERM or SIGINT ends the server when what is queued has been stored and answered; a second one, a second later,
    /// ends it at once, and loses nothing that was answered. SIGHUP reads the key file again: sessions whose key is gone or
    /// changed end, the others go on.
    ///
    /// Datasets are made with `kv dataset create`, over the network, with a key of role admin. Sizes are bytes, or a
    /// number with K, M, G or T, as 512M. What is logged, to standard error, is chosen with RUST_LOG, as
    /// RUST_LOG=kv_server=debug.
    #[command(after_long_help = TRY)]
    Serve(Box<Serve>),
    /// Make an access key: print its entry of a key file, or append it to one.
    Keygen(Keygen),
    /// Verify every record, FOOTER and checkpoint of a data directory that no server is running on.
    ///
    /// Reads every byte that counts and prints one line for each finding: dataset, segment, offset, key, what is wrong
    /// and what to do. Nothing is changed without --repair.
    ///
    /// Exit status: 0 nothing is damaged; 1 there are findings, repaired ones included; 2 it could not be checked.
    Check(Check),
}

/// Checks a data directory.
#[derive(Debug, Args)]
pub struct Check {
    /// Directory of the datasets; no server may be running on it.
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,

    /// Do what loses nothing: write FOOTERs and trailers anew over records that are whole, remove what an interrupted
    /// change left behind. Damaged records stay where they are. The loss of segments whose files are gone is accepted:
    /// such a file must not be put back after that, or values and keys that were deleted may be back. One that the head
    /// of a large value names is still named at each start, until that key is stored again or deleted.
    #[arg(long)]
    pub repair: bool,

    /// Write findings and summary to this file too, as JSON.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// How to serve a data directory.
#[derive(Debug, Args)]
pub struct Serve {
    /// Directory of the datasets, on the NVMe file system. It is made where it does not exist.
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,

    /// Where to listen: rdma://HOST:PORT or HOST:PORT for RDMA, local:PATH for shared memory on this machine through
    /// a socket at PATH.
    #[arg(long, value_name = "ADDR", default_value_t = Address::Rdma(format!("0.0.0.0:{PORT_DEFAULT}")))]
    pub listen: Address,

    /// File of access keys; `kv-server keygen` makes entries.
    #[arg(long, value_name = "FILE")]
    pub keys: PathBuf,

    /// Most memory for images of segments, for indexes, and for what connections take, as 512M or 2G. [default: half of this machine's or
    /// container's]
    #[arg(long, value_name = "SIZE")]
    pub memory_budget: Option<Size>,

    /// Length of segment files of datasets that are created from now on.
    #[arg(long, value_name = "SIZE", default_value_t = Size(SEGMENT_DEFAULT_BYTES))]
    pub segment_bytes: Size,

    /// Longest part of a large value, in datasets that are created from now on.
    #[arg(long, value_name = "SIZE", default_value_t = Size(PART_MAX_BYTES))]
    pub part_bytes: Size,

    /// Most memory for values that are arriving: half of it for those in several parts, of which each takes two, an
    /// eighth for short ones.
    #[arg(long, value_name = "SIZE", default_value_t = Size(512 << 20))]
    pub gather_budget: Size,

    /// Share of dead bytes from which a segment is compacted: what lives in it is copied, and its file removed.
    #[arg(long, value_name = "SHARE", default_value_t = Compaction::default().dead_share, value_parser = share)]
    pub compaction_dead_share: f64,

    /// Most of the disk's time that compaction takes; where memory or disk are short it takes what it needs.
    #[arg(long, value_name = "SHARE", default_value_t = Compaction::default().disk_share, value_parser = share)]
    pub compaction_share: f64,

    /// Room that is kept on the disk, so that deletes and compaction work when it is full: at most a sixteenth of the
    /// file system, but as much as the copies of one segment may take, up to a quarter of it; 0 for none.
    #[arg(long, value_name = "SIZE", default_value_t = Size(Compaction::default().disk_reserve_bytes))]
    pub disk_reserve: Size,

    /// Most of the disk's time that the scrubber takes, which reads what is sealed again to find what has flipped; 0 for none.
    #[arg(long, value_name = "SHARE", default_value_t = SCRUB_SHARE_DEFAULT, value_parser = share_or_none)]
    pub scrub_share: f64,

    /// Memory that each session with a key that may write is given to write values to.
    #[arg(long, value_name = "SIZE", default_value_t = Size(8 << 20))]
    pub staging_bytes: Size,

    /// Lease of a session: a client that is not heard of for so long is fenced.
    #[arg(long, value_name = "MS", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(LEASE_MIN_MS..=LEASE_MAX_MS))]
    pub lease_ms: u32,

    /// Longest that a client may take to let go of what was retired, however often it renews its lease.
    #[arg(long, value_name = "MS", default_value_t = 30_000, value_parser = clap::value_parser!(u32).range(LEASE_MIN_MS..=LEASE_MAX_MS))]
    pub max_lag_ms: u32,

    /// Most sessions at a time.
    #[arg(long, value_name = "COUNT", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub sessions: u32,

    /// Most data connections of one session: a client past it reads with those that it has.
    #[arg(long, value_name = "COUNT", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub data_connections: u16,

    /// Most data connections of all sessions; each is a queue pair. Clients past it read with those that they have, and one
    /// without any waits until others close some, or its calls' deadlines.
    #[arg(long, value_name = "COUNT", default_value_t = 16_384, value_parser = clap::value_parser!(u32).range(1..=1_048_576))]
    pub all_data_connections: u32,

    /// Write the address to this file, as one line, when the server is ready.
    #[arg(long, value_name = "FILE")]
    pub ready_file: Option<PathBuf>,

    /// For tests of tests: leave one kind of sync out, and lose what was answered at the next power cut.
    #[arg(long, value_name = "KIND", hide = true, value_parser = SyncKind::parse)]
    pub test_leave_out_sync: Option<SyncKind>,
}

/// Makes an access key.
#[derive(Debug, Args)]
pub struct Keygen {
    /// Name of the key, 1 to 64 bytes.
    #[arg(long)]
    pub name: String,

    /// What it may do: read; write (and put, delete); admin (and create, drop, rename datasets).
    #[arg(long, value_parser = keys::parse_role, value_name = "read|write|admin")]
    pub role: Role,

    /// A dataset that it may name; may be given several times. [default: all of them]
    #[arg(long = "dataset", value_name = "NAME")]
    pub datasets: Vec<String>,

    /// Append the entry to this file, which is given mode 0600, instead of printing it.
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// `host:port`, over RDMA.
    Rdma(String),
    /// Path of a socket, for shared memory on this machine.
    Local(String),
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("local:") {
            if path.is_empty() {
                return Err("local: needs the path of a socket, as local:/run/verbs-kv.sock".to_owned());
            }
            return Ok(Self::Local(path.to_owned()));
        }
        let host = text.strip_prefix("rdma://").unwrap_or(text);
        let wrong = |what: &str| Err(format!("{what}; give rdma://HOST:PORT, HOST:PORT or local:PATH"));
        if host.contains('/') {
            return wrong("an address has no path");
        }
        let bracketed_only = host.starts_with('[') && host.ends_with(']');
        match host.rsplit_once(':') {
            Some((name, port)) if !bracketed_only => {
                if name.is_empty() {
                    return wrong("there is no host before the port");
                }
                if port.parse::<u16>().is_err() {
                    return wrong("the port is not a number from 0 to 65535");
                }
                Ok(Self::Rdma(host.to_owned()))
            }
            _ if host.is_empty() => wrong("there is no host"),
            _ => Ok(Self::Rdma(format!("{host}:{PORT_DEFAULT}"))),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rdma(host) => write!(f, "rdma://{host}"),
            Self::Local(path) => write!(f, "local:{path}"),
        }
    }
}

/// A share, above 0 up to 1.
fn share(text: &str) -> Result<f64, String> {
    let wrong = || format!("{text:?} is not a share; give a number above 0, up to 1, as 0.2");
    let share: f64 = text.parse().map_err(|_| wrong())?;
    if share > 0.0 && share <= 1.0 {
        Ok(share)
    } else {
        Err(wrong())
    }
}

/// A share, from 0 up to 1.
fn share_or_none(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(0.0) => Ok(0.0),
        _ => share(text).map_err(|error| error.replace("above 0, up to 1", "from 0 to 1")),
    }
}

/// A number of bytes: `65536`, `64K`, `512M`, `2G`, `1T`, in powers of 1024.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(pub u64);

const UNITS: [(char, u32); 4] = [('K', 10), ('M', 20), ('G', 30), ('T', 40)];

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let upper = text.trim().to_ascii_uppercase();
        let bare = upper.trim_end_matches('B').trim_end_matches('I');
        let unit = UNITS.iter().find(|(letter, _)| bare.ends_with(*letter));
        let (digits, shift) = unit.map_or((bare, 0), |(letter, shift)| {
            (bare.trim_end_matches(*letter), *shift)
        });
        let wrong = || format!("{text:?} is not a size; give bytes, or a number with K, M, G or T, as 512M");
        let count: u64 = digits.parse().map_err(|_| wrong())?;
        let bytes = count.checked_mul(1 << shift).ok_or_else(wrong)?;
        Ok(Self(bytes))
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = UNITS
            .iter()
            .rev()
            .find(|(_, shift)| self.0 != 0 && self.0.is_multiple_of(1 << shift));
        match fits {
            Some((letter, shift)) => write!(f, "{}{letter}", self.0 >> shift),
            None => write!(f, "{}", self.0),
        }
    }
}

impl Serve {
    /// What the store is told.
    #[must_use]
    pub fn store(&self) -> StoreOptions {
        let memory_budget_bytes = self
            .memory_budget
            .map_or_else(|| machine_memory_bytes() / 2, |size| size.0);
        StoreOptions {
            data: self.data.clone(),
            memory_budget_bytes,
            segment_bytes: self.segment_bytes.0,
            part_bytes: self.part_bytes.0,
            gather_budget_bytes: self.gather_budget.0,
            compaction: Compaction {
                dead_share: self.compaction_dead_share,
                disk_share: self.compaction_share,
                disk_reserve_bytes: self.disk_reserve.0,
            },
            scrub_share: self.scrub_share,
        }
    }

    /// What the control side is told.
    ///
    /// # Errors
    /// A text that names the option that cannot be.
    pub fn options(&self) -> Result<Options, String> {
        let memory_min_bytes = MEMORY_MIN_BYTES + 2 * self.segment_bytes.0.min(EXTENT_BYTES);
        let bounds = [
            (
                "--staging-bytes",
                self.staging_bytes,
                STAGING_MIN_BYTES,
                STAGING_MAX_BYTES,
            ),
            (
                "--segment-bytes",
                self.segment_bytes,
                SEGMENT_MIN_BYTES,
                SEGMENT_MAX_BYTES,
            ),
            ("--part-bytes", self.part_bytes, PART_MIN_BYTES, PART_MAX_BYTES),
            (
                "--memory-budget",
                self.memory_budget.unwrap_or(Size(memory_min_bytes)),
                memory_min_bytes,
                machine_memory_bytes(),
            ),
        ];
        for (flag, size, least, most) in bounds {
            if !(least..=most).contains(&size.0) {
                return Err(format!("{flag} {size}: give {} to {}", Size(least), Size(most)));
            }
        }
        let part_bytes = self.part_bytes.0.min(self.segment_bytes.0 / 4);
        if let Err(StorageError::Option { remedy, .. }) = self.store().check_gather(part_bytes) {
            return Err(format!("--gather-budget {}: {remedy}", self.gather_budget));
        }
        if self.max_lag_ms < self.lease_ms {
            return Err(format!(
                "--max-lag-ms {}: give at least the lease, {}: clients acknowledge when they renew",
                self.max_lag_ms, self.lease_ms
            ));
        }
        Ok(Options {
            lease_ms: self.lease_ms,
            max_lag_ms: self.max_lag_ms,
            sessions_max: self.sessions as usize,
            data_connections_per_session_max: self.data_connections,
            data_connections_max: self.all_data_connections as usize,
            staging_bytes: self.staging_bytes.0 as u32,
            ..Options::default()
        })
    }
}

/// Memory of this machine, or of the control group that this process is alone with, where that is less.
fn machine_memory_bytes() -> u64 {
    let info = rustix::system::sysinfo();
    let machine = info.totalram as u64 * u64::from(info.mem_unit);
    // "max", another hierarchy or no control groups at all: the machine's counts.
    let group = std::fs::read_to_string("/sys/fs/cgroup/memory.max")
        .ok()
        .and_then(|text| text.trim().parse().ok());
    machine.min(group.unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Command::command().debug_assert();
    }

    #[test]
    fn addresses() {
        let rdma = |text: &str| Ok(Address::Rdma(text.to_owned()));
        assert_eq!("rdma://0.0.0.0:7471".parse(), rdma("0.0.0.0:7471"));
        assert_eq!("ibhost:1".parse(), rdma("ibhost:1"));
        assert_eq!("ibhost".parse(), rdma("ibhost:7471"));
        assert_eq!("[fe80::1]:9".parse(), rdma("[fe80::1]:9"));
        assert_eq!("[fe80::1]".parse(), rdma("[fe80::1]:7471"));
        assert_eq!("local:/a b".parse(), Ok(Address::Local("/a b".to_owned())));
        for wrong in [
            "",
            "local:",
            "rdma://",
            ":7",
            "h:x",
            "h:65536",
            "rdma://h:1/dataset",
        ] {
            assert!(wrong.parse::<Address>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0", 0),
            ("64K", 65_536),
            ("512M", 512 << 20),
            ("2g", 2 << 30),
            ("1GiB", 1 << 30),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
        for wrong in ["", "M", "-1", "1.5G", "12X", "99999999T", "5KM"] {
            assert!(wrong.parse::<Size>().is_err(), "{wrong:?}");
        }
        for (bytes, text) in [(0, "0"), (1000, "1000"), (65_536, "64K"), (3 << 30, "3G")] {
            assert_eq!(Size(bytes).to_string(), text);
            assert_eq!(text.parse(), Ok(Size(bytes)));
        }
    }

    fn options(more: [&str; 2]) -> Result<Options, String> {
        let line = [
            "kv-server",
            "serve",
            "--data",
            "d",
            "--keys",
            "k",
            more[0],
            more[1],
        ];
        match Command::parse_from(line).action {
            Action::Serve(serve) => serve.options(),
            _ => Err("not serve".to_owned()),
        }
    }

    #[test]
    fn options_have_bounds() {
        let staging = |size| options(["--staging-bytes", size]);
        assert_eq!(staging("64K").unwrap().staging_bytes, 65_536);
        assert!(staging("63K").unwrap_err().contains("--staging-bytes 63K"));
        assert!(staging("2G").is_err());
        for [flag, size] in [
            ["--segment-bytes", "1000"],
            ["--segment-bytes", "1T"],
            ["--part-bytes", "0"],
            ["--part-bytes", "16383"],
            ["--part-bytes", "33M"],
            ["--gather-budget", "127M"],
            ["--memory-budget", "1K"],
            ["--memory-budget", "100T"],
        ] {
            let text = options([flag, size]).unwrap_err();
            assert!(text.starts_with(&format!("{flag} {size}: give ")), "{text}");
        }
        options(["--gather-budget", "128M"]).unwrap();
        let few = options(["--all-data-connections", "3"]).unwrap();
        assert_eq!(few.data_connections_max, 3);
        options(["--memory-budget", "160M"]).unwrap();
        assert_eq!(options(["--max-lag-ms", "10000"]).unwrap().max_lag_ms, 10_000);
        assert!(
            options(["--max-lag-ms", "9999"])
                .unwrap_err()
                .contains("--max-lag-ms 9999")
        );
    }
}
