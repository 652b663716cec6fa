//! One block of one side, in a process of its own: where a process's memory lies makes it lucky or unlucky for as long
//! as it lives, so each block draws anew.
//!
//! The process is told what is measured, makes ready what needs no server, says so, and is told where the server is. What
//! is cold is timed from before the server was started, or from before the side opened its file.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use super::definition::{Lengths, Locators, Order, SideName, Start};
use super::kv::Connection;
use super::order::order;
use super::pace::{Getter, Run, Tally};
use super::sides;
use super::values::Values;
use crate::perftest::Reaped;
use crate::{Error, environment, processes};

/// What the server may still do after its last answer, before its time is read.
const SETTLE: Duration = Duration::from_millis(50);

/// One point of a case: a choice of everything.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Point {
    /// The case.
    pub(crate) case: String,
    /// How long values are.
    pub(crate) lengths: Lengths,
    /// How many there are; nothing where they are files.
    pub(crate) values: usize,
    /// Order in which they are asked for.
    pub(crate) order: Order,
    /// What is known of them.
    pub(crate) locators: Locators,
    /// Whether the client checks CRCs.
    pub(crate) verify: bool,
    /// Whether values are compared in the timed pass.
    pub(crate) check: bool,
    /// What happened before.
    pub(crate) start: Start,
    /// GETs of a call.
    pub(crate) batch: usize,
    /// READs that a queue pair holds.
    pub(crate) depth: usize,
    /// Threads.
    pub(crate) threads: usize,
    /// Data connections of each.
    pub(crate) queue_pairs: usize,
    /// GETs a second of an open loop.
    pub(crate) rate: Option<f64>,
    /// GETs of a block.
    pub(crate) gets: usize,
}

/// Files that sides read values from.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Files {
    /// Hashes of all values.
    pub(crate) hashes: PathBuf,
    /// All values, each at a page of its own.
    pub(crate) values: PathBuf,
    /// An LMDB environment of them.
    pub(crate) lmdb: PathBuf,
    /// Socket of a Redis or Valkey that has them.
    pub(crate) redis: PathBuf,
    /// Socket of a memcached that has them.
    pub(crate) memcached: PathBuf,
}

/// What the process is told.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Job {
    /// What is measured.
    pub(crate) point: Point,
    /// On which side.
    pub(crate) side: SideName,
    /// What contents are drawn from.
    pub(crate) seed: u64,
    /// What this block's order is drawn from: the same for all sides.
    pub(crate) block_seed: u64,
    /// The dataset.
    pub(crate) dataset: String,
    /// Key file.
    pub(crate) key: PathBuf,
    /// RDMA device; empty without one.
    pub(crate) device: String,
    /// Files of the values.
    pub(crate) files: Files,
    /// Whether every value is first compared byte by byte, in a pass of its own.
    pub(crate) compare: bool,
}

/// What the process is told once it is ready.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Go {
    /// URI of the server; empty where the side does without.
    pub(crate) server: String,
    /// Its process.
    pub(crate) server_pid: u32,
    /// When it began to be started, or when nothing but a file was waited for: ns of the monotonic clock.
    pub(crate) began_ns: u64,
}

impl Go {
    /// For a side that needs no server, now.
    pub(crate) fn now() -> Self {
        Self {
            server: String::new(),
            server_pid: 0,
            began_ns: monotonic_ns(),
        }
    }
}

/// A moment that processes of this machine share.
pub(crate) fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// What a block gave; what does not apply is `None`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Block {
    /// GETs.
    pub(crate) gets: u64,
    /// Bytes of values for each of them.
    pub(crate) bytes_per_get: f64,
    /// Calls; nothing where a program does not say.
    pub(crate) calls: u64,
    /// GETs a second: inside calls where the loop is closed, altogether where it is open or the start cold.
    pub(crate) gets_s: Option<f64>,
    /// GETs a second of all threads by the clock.
    pub(crate) wall_gets_s: Option<f64>,
    /// Median latency, us.
    pub(crate) latency_us: Option<f64>,
    /// All latencies: ns, and how many.
    pub(crate) histogram: Vec<(u64, u64)>,
    /// Values compared in the timed pass.
    pub(crate) checked: u64,
    /// Values compared byte by byte.
    pub(crate) compared: u64,
    /// Values that were not right.
    pub(crate) wrong: u64,
    /// Time of the asking threads on a processor, us for each GET.
    pub(crate) client_cpu_us_per_get: Option<f64>,
    /// Most memory that the asking process had.
    pub(crate) client_memory_bytes: Option<u64>,
    /// What `kv` did.
    pub(crate) kv: Option<KvCost>,
}

/// What GETs of `kv` made client, device and server do.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct KvCost {
    /// READs for each GET.
    pub(crate) reads_per_get: f64,
    /// Of those, what only splits long values.
    pub(crate) split_reads_per_get: f64,
    /// Records for each GET that came by the READ of the one before them.
    pub(crate) coalesced_per_get: f64,
    /// Doorbells for each GET; with one GET a call these are its round trips.
    pub(crate) round_trips_per_get: f64,
    /// Lookups and reads that were begun again.
    pub(crate) retries: u64,
    /// Packets of the device for each GET.
    pub(crate) packets_per_get: Option<f64>,
    /// Time of the server on a processor, seconds for a million GETs.
    pub(crate) server_cpu_s_per_million: f64,
    /// Frames that the server was sent, for a million GETs.
    pub(crate) server_frames_per_million: f64,
    /// Memory that the server has.
    pub(crate) server_memory_bytes: u64,
    /// By how much each counter of the device moved.
    pub(crate) device_counters: BTreeMap<String, u64>,
}

impl Job {
    /// Runs it in a process of its own; `go` is called when that is ready.
    pub(crate) fn spawn(&self, go: impl FnOnce() -> Result<Go, Error>) -> Result<Block, Error> {
        let mut child = Reaped(
            Command::new(super::program()?)
                .arg("side")
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::inherit())
                .spawn()?,
        );
        let (stdin, stdout) = (child.0.stdin.take(), child.0.stdout.take());
        let (mut stdin, stdout) = stdin.zip(stdout).ok_or("the process has no pipes")?;
        let mut lines = BufReader::new(stdout).lines();
        let mut next = || -> Result<Said, Error> {
            let line = lines.next().ok_or("it ended without a word")??;
            Ok(serde_json::from_str(&line)?)
        };
        let named = |error: Error| format!("the process that measures `{}`: {error}", self.side);
        writeln!(stdin, "{}", serde_json::to_string(self)?)?;
        let mut said = next().map_err(named)?;
        if matches!(said, Said::Ready) {
            writeln!(stdin, "{}", serde_json::to_string(&go()?)?)?;
            said = next().map_err(named)?;
        }
        child.0.wait()?;
        match said {
            Said::Done(block) => Ok(*block),
            Said::Failed(why) => Err(why.into()),
            Said::Ready => Err(named("it was ready twice".into()).into()),
        }
    }

    fn run(&self, go: impl FnOnce() -> Result<Go, Error>) -> Result<Block, Error> {
        let ready = Ready::new(self)?;
        let go = go()?;
        let mut block = if matches!(self.side, SideName::Kv | SideName::KvTickets) {
            let connection = Connection::new(self, &go.server)?;
            let mut getters = connection.getters(self.side, &self.point, &ready.values)?;
            let state = || self.state(&connection, go.server_pid);
            let (mut block, before, asked) = self.measure(&mut getters, &ready, &go, state)?;
            std::thread::sleep(SETTLE);
            // Asking for the frames is a frame, which this state's own has not counted yet.
            let after = self.state(&connection, go.server_pid)?;
            block.kv = Some(after.since(&before, asked as f64)?);
            block
        } else {
            let mut getters = sides::getters(self, &ready.values)?;
            self.measure(&mut getters, &ready, &go, || Ok(()))?.0
        };
        block.client_memory_bytes = processes::memory_bytes(None, "VmHWM");
        Ok(block)
    }

    /// Compares, warms up, calls `begin`, and measures; what `begin` said and how many GETs came after it.
    fn measure<G: Getter + Send, T>(
        &self,
        getters: &mut [G],
        ready: &Ready,
        go: &Go,
        begin: impl FnOnce() -> Result<T, Error>,
    ) -> Result<(Block, T, u64), Error> {
        let Ready { values, hashes, list } = ready;
        let point = &self.point;
        let cold = point.start == Start::Cold;
        let mut run = Run {
            batch: point.batch,
            rate: None,
            seed: self.block_seed,
            hashes: Some(hashes),
        };
        let all: Vec<u32> = (0..values.count() as u32).collect();
        let compared = |getters: &mut [G]| {
            if self.compare {
                compare_all(getters, values, &all, point.batch)
            } else {
                Ok((0, 0))
            }
        };
        let (mut wrong, mut by_bytes) = (0, (0, 0));
        if !cold {
            wrong += run.run(getters, &all)?.wrong;
            by_bytes = compared(getters)?;
            std::thread::sleep(SETTLE);
        }
        run.rate = point.rate;
        run.hashes = run.hashes.filter(|_| point.check);
        let begun = begin()?;
        let tally = run.run(getters, list)?;
        let mut block = Block::from(&tally);
        if cold {
            // All of it: who has images to load answers while it loads them.
            let since_end = tally.span.1.elapsed().as_nanos() as u64;
            let took_ns = monotonic_ns() - since_end - go.began_ns;
            block.gets_s = Some(tally.gets as f64 * 1e9 / took_ns as f64);
            block.wall_gets_s = block.gets_s;
            block.latency_us = None;
            by_bytes = compared(getters)?;
        }
        let asked = tally.gets + tally.repeated;
        let bytes: u64 = list.iter().map(|&index| values.len_bytes(index as usize)).sum();
        block.bytes_per_get = bytes as f64 / list.len() as f64;
        block.compared = by_bytes.0;
        block.wrong += wrong + by_bytes.1;
        Ok((block, begun, asked))
    }

    fn state(&self, connection: &Connection, server_pid: u32) -> Result<State, Error> {
        let counters = connection.counters();
        Ok(State {
            reads: counters.reads_posted,
            split: counters.split_reads,
            coalesced: counters.coalesced,
            doorbells: counters.doorbells,
            retries: counters.retries,
            packets: environment::packets(&self.device),
            device: environment::device_counters(&self.device),
            server_cpu_us: processes::cpu_us(server_pid)?,
            server_memory_bytes: processes::memory_bytes(Some(server_pid), "VmRSS").unwrap_or(0),
            server_frames: connection.server_frames()?,
        })
    }
}

/// What a process makes ready before it is told where the server is.
struct Ready {
    values: Values,
    hashes: Vec<u64>,
    list: Vec<u32>,
}

impl Ready {
    fn new(job: &Job) -> Result<Self, Error> {
        let point = &job.point;
        let values = Values::new(&point.lengths, point.values, job.seed)?;
        let gets = match point.start {
            Start::Warm => point.gets,
            Start::Cold => point.gets.min(values.count()),
        };
        Ok(Self {
            hashes: values.read_hashes(&job.files.hashes)?,
            list: order(point.order, values.count(), gets, job.block_seed),
            values,
        })
    }
}

/// A line that the process says.
#[derive(Debug, Serialize, Deserialize)]
enum Said {
    Ready,
    Done(Box<Block>),
    Failed(String),
}

/// Compares all values byte by byte, each getter its share; how many, and how many are wrong.
fn compare_all<G: Getter>(
    getters: &mut [G],
    values: &Values,
    all: &[u32],
    batch: usize,
) -> Result<(u64, u64), Error> {
    let share = all.len().div_ceil(getters.len().max(1)).max(1);
    let mut wrong = 0;
    for (getter, part) in getters.iter_mut().zip(all.chunks(share)) {
        wrong += match getter.tickets() {
            Some(most) => compare_by_tickets(getter, values, part, most)?,
            None => compare(getter, values, part, batch)?,
        };
    }
    Ok((all.len() as u64, wrong))
}

fn compare<G: Getter>(getter: &mut G, values: &Values, part: &[u32], batch: usize) -> Result<u64, Error> {
    let mut wrong = 0;
    for batch in part.chunks(batch) {
        getter.prepare(batch);
        getter.get(batch)?;
        for (at, &index) in batch.iter().enumerate() {
            let expected = values.bytes(index as usize)?;
            wrong += u64::from(!getter.look(at, &mut |bytes| *bytes == *expected)?);
        }
    }
    Ok(wrong)
}

fn compare_by_tickets<G: Getter>(
    getter: &mut G,
    values: &Values,
    part: &[u32],
    most: usize,
) -> Result<u64, Error> {
    let (mut begun, mut done, mut wrong) = (0, 0, 0);
    let mut unknown = None;
    while done < part.len() {
        while begun < part.len() && begun - done < most {
            getter.begin(part[begun], begun)?;
            begun += 1;
        }
        getter.go_on(&mut |number, bytes| {
            done += 1;
            match values.bytes(part[number] as usize) {
                Ok(expected) => wrong += u64::from(*bytes != *expected),
                Err(error) => unknown = Some(error),
            }
        })?;
        if let Some(error) = unknown.take() {
            return Err(error);
        }
    }
    Ok(wrong)
}

/// Counters at one moment.
struct State {
    reads: u64,
    split: u64,
    coalesced: u64,
    doorbells: u64,
    retries: u64,
    packets: Option<u64>,
    device: BTreeMap<String, u64>,
    server_cpu_us: f64,
    server_memory_bytes: u64,
    server_frames: u64,
}

impl State {
    fn since(&self, before: &Self, gets: f64) -> Result<KvCost, Error> {
        let each = |after: u64, before: u64| (after - before) as f64 / gets;
        let server_cpu_us = self.server_cpu_us - before.server_cpu_us;
        if server_cpu_us < 0.0 {
            return Err(format!(
                "the server's time on a processor went back by {} us",
                -server_cpu_us
            )
            .into());
        }
        let moved = |(name, after): (&String, &u64)| {
            let by = after.saturating_sub(before.device.get(name).copied().unwrap_or(0));
            (by > 0).then(|| (name.clone(), by))
        };
        Ok(KvCost {
            reads_per_get: each(self.reads, before.reads),
            split_reads_per_get: each(self.split, before.split),
            coalesced_per_get: each(self.coalesced, before.coalesced),
            round_trips_per_get: each(self.doorbells, before.doorbells),
            retries: self.retries - before.retries,
            packets_per_get: self
                .packets
                .zip(before.packets)
                .map(|(after, before)| each(after, before)),
            device_counters: self.device.iter().filter_map(moved).collect(),
            server_cpu_s_per_million: server_cpu_us / gets,
            // The second asking is a frame itself.
            server_frames_per_million: each((self.server_frames - before.server_frames).saturating_sub(1), 0)
                * 1e6,
            server_memory_bytes: self.server_memory_bytes,
        })
    }
}

impl From<&Tally> for Block {
    fn from(tally: &Tally) -> Self {
        let recorded = |value: hdrhistogram::iterators::IterationValue<u64>| {
            (value.value_iterated_to(), value.count_at_value())
        };
        Self {
            gets: tally.gets,
            calls: tally.calls,
            gets_s: Some(tally.gets_s),
            wall_gets_s: Some(tally.wall_gets_s()),
            latency_us: Some(tally.latency.value_at_quantile(0.5) as f64 / 1000.0),
            histogram: tally.latency.iter_recorded().map(recorded).collect(),
            checked: tally.checked,
            wrong: tally.wrong,
            client_cpu_us_per_get: Some(tally.cpu_us_per_get),
            ..Self::default()
        }
    }
}

/// `bench side`: a job and where the server is from standard input, what became of it to standard output.
pub(crate) fn run_side() -> Result<bool, Error> {
    let mut lines = std::io::stdin().lines();
    let mut next = || -> Result<String, Error> { Ok(lines.next().ok_or("nothing was asked for")??) };
    let job: Job = serde_json::from_str(&next()?)?;
    let outcome = job.run(|| {
        say(&Said::Ready)?;
        Ok(serde_json::from_str(&next()?)?)
    });
    match outcome {
        Ok(block) => say(&Said::Done(Box::new(block)))?,
        Err(error) => say(&Said::Failed(error.to_string()))?,
    }
    Ok(true)
}

fn say(what: &Said) -> Result<(), Error> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", serde_json::to_string(what)?)?;
    Ok(out.flush()?)
}
