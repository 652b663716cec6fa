//! Floors and peers: what a case is measured beside, each with the same values in the same order.

mod lmdb;
mod memory;
mod pread;
mod programs;
mod replay;
mod sockets;

pub(crate) use programs::External;
pub(crate) use sockets::Daemon;

use super::definition::{Lengths, Locators, SideName, Start};
use super::job::{Files, Job, Point};
use super::pace::Getter;
use super::values::Values;
use crate::Error;
use crate::demo::Network;

/// A getter on any side, for one thread.
pub(crate) type AnyGetter = Box<dyn Getter + Send>;

/// All that a case that names none is measured beside.
const ALL: [SideName; 12] = [
    SideName::KvTickets,
    SideName::Perftest,
    SideName::Replay,
    SideName::Ucx,
    SideName::Memcpy,
    SideName::Crc,
    SideName::Pread,
    SideName::Lmdb,
    SideName::LmdbCrc,
    SideName::Redis,
    SideName::Memcached,
    SideName::Fio,
];

/// What every case over a network is measured beside, whatever it names.
fn floors(network: Network) -> &'static [SideName] {
    match network {
        Network::Verbs => &[SideName::Perftest, SideName::Replay],
        Network::Local => &[SideName::Memcpy],
    }
}

/// Whether a run goes on without `side` where it cannot be set up or fails: a peer, none of this project's own.
pub(crate) fn is_peer(side: SideName) -> bool {
    use SideName::{Crc, Kv, KvTickets, Memcpy, Perftest, Replay};
    !matches!(side, Kv | KvTickets | Perftest | Replay | Memcpy | Crc)
}

/// Sides of `point`, and those that cannot be measured with the reason.
pub(crate) fn of(
    point: &Point,
    wanted: Option<&[SideName]>,
    network: Network,
    values: &Values,
) -> (Vec<SideName>, Vec<(SideName, String)>) {
    let mut all: Vec<SideName> = floors(network).to_vec();
    let named = wanted.unwrap_or(&ALL);
    all.extend(named.iter().filter(|side| !floors(network).contains(side)));
    let (mut sides, mut left_out) = (vec![SideName::Kv], Vec::new());
    for side in all {
        match missing(side, point, network, values) {
            None => sides.push(side),
            Some(why) => left_out.push((side, why)),
        }
    }
    (sides, left_out)
}

/// Why `side` cannot be measured at `point`.
fn missing(side: SideName, point: &Point, network: Network, values: &Values) -> Option<String> {
    let fixed = matches!(point.lengths, Lengths::Fixed(_));
    let warm = point.start == Start::Warm;
    let over_verbs = matches!(side, SideName::Perftest | SideName::Replay | SideName::Ucx);
    let why = match side {
        _ if over_verbs && network == Network::Local => "it needs an RDMA device: network = \"verbs\"",
        SideName::Kv => return None,
        SideName::KvTickets if point.rate.is_none() => "calls do without tickets: it needs loop = \"open\"",
        SideName::Perftest | SideName::Ucx | SideName::Fio if !fixed => "it knows one length only",
        SideName::Perftest | SideName::Ucx if point.rate.is_some() => "it has no open loop with moments",
        SideName::Fio if point.rate.is_some() => "it is measured in a closed loop only",
        SideName::Perftest | SideName::Ucx if point.threads > 1 => "it runs one thread here",
        _ if !warm && !matches!(side, SideName::Fio | SideName::Pread) => "only a disk is cold",
        SideName::Lmdb | SideName::LmdbCrc => return lmdb::missing(values),
        SideName::Perftest | SideName::Ucx | SideName::Fio => return programs::missing(side, point),
        SideName::Redis | SideName::Memcached => return sockets::missing(side, values),
        _ => return None,
    };
    Some(why.to_owned())
}

/// Getters of a side that runs in this process, one for each thread.
pub(crate) fn getters(job: &Job, values: &Values) -> Result<Vec<AnyGetter>, Error> {
    let Point { batch, threads, .. } = job.point;
    let room = values.room_bytes(job.point.order, batch);
    let files = &job.files;
    let each = |one: &dyn Fn() -> Result<AnyGetter, Error>| (0..threads).map(|_| one()).collect();
    match job.side {
        SideName::Memcpy => memory::copying(values, room, threads),
        SideName::Crc => memory::summing(values, batch, threads),
        SideName::Pread => each(&|| Ok(Box::new(pread::Pread::new(&files.values, values, room)?))),
        SideName::Lmdb => lmdb::getters(&files.lmdb, values, room, threads, false),
        SideName::LmdbCrc => lmdb::getters(&files.lmdb, values, room, threads, true),
        SideName::Replay => each(&|| Ok(Box::new(replay::ReplayGetter::new(job, values)?))),
        SideName::Redis => each(&|| sockets::redis(&files.redis, values, room)),
        SideName::Memcached => each(&|| sockets::memcached(&files.memcached, values, room)),
        SideName::Kv | SideName::KvTickets | SideName::Perftest | SideName::Ucx | SideName::Fio => {
            Err(format!("`{}` is not measured in this process", job.side).into())
        }
    }
}

/// Makes what `side` reads, once for all points of a dataset: a file, or a daemon that holds all values.
pub(crate) fn prepare(side: SideName, values: &Values, files: &Files) -> Result<Option<Daemon>, Error> {
    match side {
        SideName::Pread | SideName::Fio if !files.values.exists() => pread::write(&files.values, values)?,
        SideName::Lmdb | SideName::LmdbCrc if !files.lmdb.exists() => lmdb::write(&files.lmdb, values)?,
        SideName::Redis => return Daemon::start(side, &files.redis, values).map(Some),
        SideName::Memcached => return Daemon::start(side, &files.memcached, values).map(Some),
        _ => {}
    }
    Ok(None)
}

/// What `side` does with a call of `point`, for the report.
pub(crate) fn settings(side: SideName, point: &Point) -> String {
    let Point { batch, depth, .. } = point;
    let outstanding = depth.min(batch);
    let chain = match point.locators {
        Locators::Known => "one READ a GET: prefix and value to two places",
        Locators::Live => "two READs a GET, one behind the other: 256 bytes and the record",
    };
    // Who has locators does not look up; these look up their key in each GET.
    let lookup = match point.locators {
        Locators::Known => "looks up each key, where kv is given locators",
        Locators::Live => "looks up each key, as kv does",
    };
    match side {
        SideName::Kv | SideName::KvTickets => kv_settings(side, point),
        SideName::Replay => format!(
            "bare loop over verbs, {chain} (what the client splits, or joins as neighbours, is one READ a GET here), \
             up to {depth} READs outstanding in the client's chains, one queue pair, memory in huge pages where there are any"
        ),
        SideName::Perftest if *batch == 1 => {
            "ib_read_lat at the wire length, one READ at a time, values not checked".to_owned()
        }
        SideName::Perftest => {
            let (chain, signal) = programs::chains(*outstanding);
            format!(
                "ib_read_bw at the wire length, {outstanding} READs outstanding in chains of {chain}, a completion for \
                 every {signal}, values not checked"
            )
        }
        SideName::Ucx if *batch == 1 => {
            "ucx_perftest ucp_get at the wire length, one at a time, values not checked".to_owned()
        }
        SideName::Ucx => {
            format!("ucx_perftest ucp_get at the wire length, {outstanding} outstanding, values not checked")
        }
        SideName::Memcpy => "copies out of memory of its own into memory that is used again".to_owned(),
        SideName::Crc => "CRC32C of the value where it lies, no copy".to_owned(),
        SideName::Pread => format!(
            "one pread a GET from a file with each value at a page of its own, whose place it knows{}",
            if point.start == Start::Cold {
                "; the clock starts before the file is opened, nothing of it in the page cache"
            } else {
                ""
            }
        ),
        SideName::Lmdb => format!("{lookup}; one read transaction a call, get and memcpy"),
        SideName::LmdbCrc => {
            format!("{lookup}; one read transaction a call, get, memcpy and CRC32C of the copy")
        }
        SideName::Redis => format!(
            "{lookup}; MGET of all keys of a call over a Unix socket, copied into memory that is used again"
        ),
        SideName::Memcached => format!(
            "{lookup}; get of all keys of a call over a Unix socket, copied into memory that is used again"
        ),
        SideName::Fio => format!(
            "fio randread, uniform, of a file with each value at a page of its own, psync, {}, values not checked",
            if point.start == Start::Cold {
                "direct, its own start not counted"
            } else {
                "page cache"
            }
        ),
    }
}

fn kv_settings(side: SideName, point: &Point) -> String {
    let Point { batch, depth, .. } = point;
    let how = match side {
        SideName::KvTickets => format!("submit and poll, {} GETs outstanding at most", depth.max(batch)),
        _ if *batch == 1 => "into registered memory".to_owned(),
        _ => "as values in memory of the reader".to_owned(),
    };
    let mut all = format!(
        "verbs-kv: {how}, locators {}, CRC {}, {} data connection(s) of {depth} READs a thread",
        match point.locators {
            Locators::Known => "known",
            Locators::Live => "looked up or cached",
        },
        if point.verify { "checked" } else { "not checked" },
        point.queue_pairs
    );
    if point.start == Start::Cold {
        all += "; the clock starts with the server's process, nothing of its data in the page cache: its start, the \
                session and locating are in the GETs/s";
    }
    all
}

/// Memory that the values of one call are copied to, used again by the next.
pub(crate) struct Slots {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Slots {
    /// Room for the values of one call: [`Values::room_bytes`].
    pub(crate) fn new(room_bytes: usize) -> Self {
        Self {
            bytes: vec![0; room_bytes],
            ends: Vec::new(),
        }
    }

    /// Begins a call.
    pub(crate) fn clear(&mut self) {
        self.ends.clear();
    }

    /// Room for the next value.
    pub(crate) fn next(&mut self, len: usize) -> &mut [u8] {
        let start = self.ends.last().copied().unwrap_or(0);
        self.ends.push(start + len);
        &mut self.bytes[start..start + len]
    }

    /// The `at`-th value of the call.
    pub(crate) fn value(&self, at: usize) -> &[u8] {
        let start = at.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.bytes[start..self.ends[at]]
    }
}
