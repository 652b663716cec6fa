//! One block of one side, in a process of its own: where a process's memory lies makes it lucky or unlucky for as long
//! as it lives, so each block draws anew.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::definition::{Lengths, Locators, Order, SideName, Start};
use super::kv::Connection;
use super::order::order;
use super::pace::{Getter, Run, Tally};
use super::sides;
use super::values::Values;
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
    /// URI of the server.
    pub(crate) server: String,
    /// Its process.
    pub(crate) server_pid: u32,
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

/// What a block gave; what does not apply is `None`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Block {
    /// GETs.
    pub(crate) gets: u64,
    /// Bytes of values for each of them.
    pub(crate) bytes_per_get: f64,
    /// GETs a second.
    pub(crate) gets_s: Option<f64>,
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
}

impl Job {
    /// Runs it in a process of its own.
    pub(crate) fn spawn(&self) -> Result<Block, Error> {
        let mut child = Command::new(super::program()?)
            .arg("side")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(&serde_json::to_vec(self)?)?;
        }
        let output = child.wait_with_output()?;
        if !output.status.success() {
            return Err(format!(
                "the process that measures `{}` ended with {}",
                self.side, output.status
            )
            .into());
        }
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    fn run(&self) -> Result<Block, Error> {
        let values = Values::new(&self.point.lengths, self.point.values, self.seed)?;
        if self.side != SideName::Kv {
            let mut getters = sides::getters(self, &values)?;
            let (mut block, ..) = self.measure(&mut getters, &values, || Ok(()))?;
            block.client_memory_bytes = processes::memory_bytes(None, "VmHWM");
            return Ok(block);
        }
        let connection = Connection::new(self)?;
        let mut getters = connection.getters(&self.point, &values)?;
        let (mut block, before, asked) = self.measure(&mut getters, &values, || self.state(&connection))?;
        std::thread::sleep(SETTLE);
        // Asking for the frames is a frame, which this state's own has not counted yet.
        let after = self.state(&connection)?;
        block.kv = Some(after.since(&before, asked as f64));
        block.client_memory_bytes = processes::memory_bytes(None, "VmHWM");
        Ok(block)
    }

    /// Compares, warms up, calls `begin`, and measures; what `begin` said and how many GETs came after it.
    fn measure<G: Getter + Send, T>(
        &self,
        getters: &mut [G],
        values: &Values,
        begin: impl FnOnce() -> Result<T, Error>,
    ) -> Result<(Block, T, u64), Error> {
        let point = &self.point;
        let hashes = values.read_hashes(&self.files.hashes)?;
        let mut run = Run {
            batch: point.batch,
            rate: None,
            seed: self.block_seed,
            hashes: Some(&hashes),
        };
        let mut compared = 0;
        let all: Vec<u32> = (0..values.count() as u32).collect();
        let mut wrong = 0;
        if point.start == Start::Warm {
            wrong += run.run(getters, &all)?.wrong;
            if let (true, Some(getter)) = (self.compare, getters.first_mut()) {
                wrong += compare(getter, values, &all, point.batch)?;
                compared = values.count() as u64;
            }
        }
        let gets = match point.start {
            Start::Warm => point.gets,
            Start::Cold => point.gets.min(values.count()),
        };
        let list = order(point.order, values.count(), gets, self.block_seed);
        run.rate = point.rate;
        if !point.check {
            run.hashes = None;
        }
        std::thread::sleep(SETTLE);
        let begun = begin()?;
        let tally = run.run(getters, &list)?;
        if point.start == Start::Cold
            && self.compare
            && let Some(getter) = getters.first_mut()
        {
            wrong += compare(getter, values, &all, point.batch)?;
            compared = values.count() as u64;
        }
        let asked = tally.gets + tally.repeated;
        let mut block = Block::from(&tally);
        let bytes: u64 = list.iter().map(|&index| values.len_bytes(index as usize)).sum();
        block.bytes_per_get = bytes as f64 / list.len() as f64;
        block.wrong += wrong;
        block.compared = compared;
        Ok((block, begun, asked))
    }

    fn state(&self, connection: &Connection) -> Result<State, Error> {
        let counters = connection.counters();
        Ok(State {
            reads: counters.reads_posted,
            split: counters.split_reads,
            doorbells: counters.doorbells,
            retries: counters.retries,
            packets: environment::packets(&self.device),
            server_cpu_us: processes::cpu_us(self.server_pid)?,
            server_memory_bytes: processes::memory_bytes(Some(self.server_pid), "VmRSS").unwrap_or(0),
            server_frames: connection.server_frames()?,
        })
    }
}

/// Compares all values byte by byte; how many are wrong.
fn compare<G: Getter>(getter: &mut G, values: &Values, all: &[u32], batch: usize) -> Result<u64, Error> {
    let mut wrong = 0;
    for batch in all.chunks(batch) {
        getter.prepare(batch);
        getter.get(batch)?;
        for (at, &index) in batch.iter().enumerate() {
            let expected = values.bytes(index as usize)?;
            wrong += u64::from(!getter.look(at, &mut |bytes| *bytes == *expected)?);
        }
    }
    Ok(wrong)
}

/// Counters at one moment.
struct State {
    reads: u64,
    split: u64,
    doorbells: u64,
    retries: u64,
    packets: Option<u64>,
    server_cpu_us: f64,
    server_memory_bytes: u64,
    server_frames: u64,
}

impl State {
    fn since(&self, before: &Self, gets: f64) -> KvCost {
        let each = |after: u64, before: u64| (after - before) as f64 / gets;
        KvCost {
            reads_per_get: each(self.reads, before.reads),
            split_reads_per_get: each(self.split, before.split),
            round_trips_per_get: each(self.doorbells, before.doorbells),
            retries: self.retries - before.retries,
            packets_per_get: self
                .packets
                .zip(before.packets)
                .map(|(after, before)| each(after, before)),
            server_cpu_s_per_million: (self.server_cpu_us - before.server_cpu_us) / gets,
            // The second asking is a frame itself.
            server_frames_per_million: each((self.server_frames - before.server_frames).saturating_sub(1), 0)
                * 1e6,
            server_memory_bytes: self.server_memory_bytes,
        }
    }
}

impl From<&Tally> for Block {
    fn from(tally: &Tally) -> Self {
        let recorded = |value: hdrhistogram::iterators::IterationValue<u64>| {
            (value.value_iterated_to(), value.count_at_value())
        };
        Self {
            gets: tally.gets,
            gets_s: Some(tally.gets_s),
            latency_us: Some(tally.latency.value_at_quantile(0.5) as f64 / 1000.0),
            histogram: tally.latency.iter_recorded().map(recorded).collect(),
            checked: tally.checked,
            wrong: tally.wrong,
            client_cpu_us_per_get: Some(tally.cpu_us_per_get),
            ..Self::default()
        }
    }
}

/// `bench side`: a job from standard input, its block to standard output.
pub(crate) fn run_side() -> Result<bool, Error> {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text)?;
    let job: Job = serde_json::from_str(&text)?;
    println!("{}", serde_json::to_string(&job.run()?)?);
    Ok(true)
}
