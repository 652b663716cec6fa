//! Floors and peers: what a case is measured beside, each with the same values in the same order.

mod lmdb;
mod memory;
mod pread;
mod programs;
mod replay;
mod sockets;

pub(crate) use programs::External;
pub(crate) use sockets::Daemon;

use super::definition::{Lengths, SideName, Start};
use super::job::{Files, Job, Point};
use super::pace::Getter;
use super::values::Values;
use crate::Error;
use crate::demo::Network;

/// A getter on any side, for one thread.
pub(crate) type AnyGetter = Box<dyn Getter + Send>;

/// All that a case that names none is measured beside.
const ALL: [SideName; 11] = [
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

/// Sides of `point`, and those that cannot be measured with the reason.
pub(crate) fn of(
    point: &Point,
    wanted: Option<&[SideName]>,
    network: Network,
) -> (Vec<SideName>, Vec<(SideName, String)>) {
    let (mut sides, mut left_out) = (vec![SideName::Kv], Vec::new());
    for &side in wanted.unwrap_or(&ALL) {
        match missing(side, point, network) {
            None => sides.push(side),
            Some(why) => left_out.push((side, why)),
        }
    }
    (sides, left_out)
}

/// Why `side` cannot be measured at `point`.
fn missing(side: SideName, point: &Point, network: Network) -> Option<String> {
    let fixed = matches!(point.lengths, Lengths::Fixed(_));
    let warm = point.start == Start::Warm;
    let over_verbs = matches!(side, SideName::Perftest | SideName::Replay | SideName::Ucx);
    let why = match side {
        _ if over_verbs && network == Network::Local => "it needs an RDMA device: network = \"verbs\"",
        SideName::Kv => return None,
        SideName::Perftest | SideName::Ucx | SideName::Fio if !fixed => "it knows one length only",
        SideName::Perftest | SideName::Ucx if point.rate.is_some() => "it has no open loop with moments",
        SideName::Fio if point.rate.is_some() => "it is measured in a closed loop only",
        SideName::Perftest | SideName::Ucx if point.threads > 1 => "it runs one thread here",
        _ if !warm && !matches!(side, SideName::Fio | SideName::Pread) => "only a disk is cold",
        SideName::Lmdb | SideName::LmdbCrc => return lmdb::missing(),
        SideName::Perftest | SideName::Ucx | SideName::Fio => return programs::missing(side),
        SideName::Redis | SideName::Memcached => return sockets::missing(side),
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
        SideName::Kv | SideName::Perftest | SideName::Ucx | SideName::Fio => {
            Err(format!("`{}` is not measured in this process", job.side).into())
        }
    }
}

/// Writes what the sides of a dataset read.
pub(crate) fn prepare(sides: &[SideName], values: &Values, files: &Files) -> Result<(), Error> {
    if sides
        .iter()
        .any(|side| matches!(side, SideName::Pread | SideName::Fio))
    {
        pread::write(&files.values, values)?;
    }
    if sides
        .iter()
        .any(|side| matches!(side, SideName::Lmdb | SideName::LmdbCrc))
    {
        lmdb::write(&files.lmdb, values)?;
    }
    Ok(())
}

/// What `side` does with a call of `point`, for the report.
pub(crate) fn settings(side: SideName, point: &Point) -> String {
    let Point { batch, depth, .. } = point;
    let chain = match point.locators {
        super::definition::Locators::Known => "one READ a GET: prefix and value to two places",
        super::definition::Locators::Live => {
            "two READs a GET, one behind the other: 256 bytes and the record"
        }
    };
    match side {
        SideName::Kv => format!(
            "verbs-kv: {}, CRC {}, {} data connection(s) of {depth} READs a thread",
            if batch == &1 {
                "into registered memory"
            } else {
                "as values in memory of the reader"
            },
            if point.verify { "checked" } else { "not checked" },
            point.queue_pairs
        ),
        SideName::Replay => {
            format!("bare loop over verbs, {chain}, {depth} READs outstanding, one queue pair")
        }
        SideName::Perftest if *batch == 1 => "ib_read_lat at the wire length, one READ at a time".to_owned(),
        SideName::Perftest => format!("ib_read_bw at the wire length, depth {}", depth.min(batch)),
        SideName::Ucx if *batch == 1 => "ucx_perftest ucp_get at the wire length, one at a time".to_owned(),
        SideName::Ucx => format!(
            "ucx_perftest ucp_get at the wire length, {} outstanding",
            depth.min(batch)
        ),
        SideName::Memcpy => "copies out of memory of its own into memory that is used again".to_owned(),
        SideName::Crc => "CRC32C of the value where it lies, no copy".to_owned(),
        SideName::Pread => "one pread a GET from a file with each value at a page of its own".to_owned(),
        SideName::Lmdb => "one read transaction a call; get and memcpy".to_owned(),
        SideName::LmdbCrc => "one read transaction a call; get, memcpy and CRC32C of the copy".to_owned(),
        SideName::Redis => {
            "MGET of all keys of a call over a Unix socket, copied into memory that is used again".to_owned()
        }
        SideName::Memcached => {
            "get of all keys of a call over a Unix socket, copied into memory that is used again".to_owned()
        }
        SideName::Fio => format!(
            "fio randread of a file with each value at a page of its own, psync, {}",
            if point.start == Start::Cold {
                "direct"
            } else {
                "page cache"
            }
        ),
    }
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
