//! What a run says: figures of each side at each point, and ratios of neighbours in time.

mod json;
mod print;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::definition::{Definition, Lengths, Locators, Metric, SideName, Start};
use super::job::{Block, KvCost, Point};
use super::pace::histogram;
use super::stand::{Measured, Stand};
use super::target::{self, Verdict};
use super::{csv, html, sides};
use crate::Error;
use crate::demo::Network;
use crate::environment::Environment;
use crate::stats::{Interval, interval};
use print::bytes;
pub(crate) use print::shown;

/// Fewer blocks than this give no ratio that means something.
const BLOCKS_MIN: usize = 10;
/// An interval wider than this, either way, decides nothing.
const WIDTH_MAX: f64 = 0.05;
/// A load of which less than this was got is not sustained: what comes at random is so much less at times.
const SUSTAINED_MIN: f64 = 0.9;
/// Quantiles of a distribution from one halving of what is left to the next.
const TICKS: u32 = 5;

/// A whole run; names of fields are those of the JSON.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Report {
    /// What the definition calls it.
    pub(crate) title: String,
    /// Where it ran: device, host-rxe, vm or local.
    pub(crate) label: String,
    /// Network between server and client.
    pub(crate) network: Network,
    /// Alternating blocks.
    pub(crate) blocks: usize,
    /// Machine and program.
    pub(crate) environment: Environment,
    /// What was measured, at each point.
    pub(crate) points: Vec<PointReport>,
    /// What it was held to.
    pub(crate) targets: Vec<Verdict>,
    /// The definition, as it was read.
    pub(crate) definition: String,
}

/// One point on all its sides.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct PointReport {
    /// The point.
    pub(crate) point: Point,
    /// Its sides, `kv` first.
    pub(crate) sides: Vec<SideReport>,
    /// `kv` over each of the others, block by block.
    pub(crate) ratios: Vec<Ratio>,
    /// What was not measured, and why.
    pub(crate) left_out: Vec<(SideName, String)>,
}

/// Figures of one side. Intervals are those of medians over blocks.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct SideReport {
    /// Which.
    pub(crate) side: SideName,
    /// What it does.
    pub(crate) settings: String,
    /// Latency of a call (of a GET from its intended start, in an open loop), us.
    pub(crate) latency_us: Option<Interval>,
    /// Of all blocks together: 50, 90, 99, 99.9 % and the longest, us.
    pub(crate) percentiles_us: Option<[f64; 5]>,
    /// The whole distribution of latency, of all blocks together: quantile, and us up to which it reaches.
    pub(crate) distribution_us: Vec<[f64; 2]>,
    /// Calls of a block, the fewest; nothing where a program does not say.
    pub(crate) calls: u64,
    /// GETs, which are samples, a second: inside calls where the loop is closed, altogether where it is open or the start
    /// cold. Ratios are of these.
    pub(crate) gets_s: Option<Interval>,
    /// GETs a second of all threads by the clock, from the first call to the end of the last, what compares values between
    /// calls included.
    pub(crate) wall_gets_s: Option<Interval>,
    /// Value bytes a second, in millions.
    pub(crate) mb_s: Option<Interval>,
    /// Values compared in timed passes, byte by byte in a pass of their own, and wrong.
    pub(crate) checked: u64,
    /// See `checked`.
    pub(crate) compared: u64,
    /// See `checked`.
    pub(crate) wrong: u64,
    /// Time of the asking threads on a processor.
    pub(crate) client_cpu_us_per_get: Option<Interval>,
    /// Most memory that a measuring process had.
    pub(crate) client_memory_bytes: Option<u64>,
    /// What `kv` did.
    pub(crate) kv: Option<KvReport>,
    /// Median latency and GETs a second of each block.
    pub(crate) by_block: Vec<(Option<f64>, Option<f64>)>,
}

/// What GETs of `kv` made client, device and server do. Intervals are those of medians over blocks.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct KvReport {
    /// READs for each GET.
    pub(crate) reads_per_get: Interval,
    /// Of those, what only splits long values.
    pub(crate) split_reads_per_get: Interval,
    /// Records for each GET that came by the READ of the one before them.
    pub(crate) coalesced_per_get: Interval,
    /// Doorbells for each GET; with one GET a call these are its round trips.
    pub(crate) round_trips_per_get: Interval,
    /// Packets of the device for each GET.
    pub(crate) packets_per_get: Option<Interval>,
    /// Time of the server on a processor, seconds for a million GETs.
    pub(crate) server_cpu_s_per_million: Interval,
    /// Frames that the server was sent, for a million GETs.
    pub(crate) server_frames_per_million: Interval,
    /// Lookups and reads that were begun again, in all blocks.
    pub(crate) retries: u64,
    /// Most memory that the server had.
    pub(crate) server_memory_bytes: u64,
    /// Every counter of the device that moved, and by how much, in all blocks.
    pub(crate) device_counters: BTreeMap<String, u64>,
}

/// `kv` over another side.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Ratio {
    /// The other side.
    pub(crate) over: SideName,
    /// Of what: of latency less is better, of throughput more.
    pub(crate) metric: Metric,
    /// The ratio.
    pub(crate) ratio: Interval,
    /// Why it decides nothing; empty if it does.
    pub(crate) inconclusive: String,
}

/// Why so few blocks decide nothing, if they do not.
pub(crate) fn too_few(blocks: usize) -> Option<String> {
    (blocks < BLOCKS_MIN).then(|| format!("{blocks} blocks, fewer than {BLOCKS_MIN}"))
}

/// Why a ratio over so many blocks decides nothing; empty if it does.
pub(crate) fn doubt(ratio: &Interval, blocks: usize) -> String {
    let wide = ratio.high / ratio.median - 1.0 > WIDTH_MAX || 1.0 - ratio.low / ratio.median > WIDTH_MAX;
    if let Some(why) = too_few(blocks) {
        why
    } else if wide {
        format!("interval wider than {:.0} % either way", WIDTH_MAX * 100.0)
    } else {
        String::new()
    }
}

/// What a block says of `metric`.
pub(crate) fn figure(block: &Block, metric: Metric) -> Option<f64> {
    match metric {
        Metric::Latency => block.latency_us,
        Metric::Throughput => block.gets_s,
        Metric::Wall => block.wall_gets_s,
    }
}

/// The figures of blocks over one another.
pub(crate) fn over_blocks(blocks: &[Block], of: impl Fn(&Block) -> Option<f64>) -> Option<Interval> {
    let mut all: Vec<f64> = blocks.iter().filter_map(of).collect();
    interval(&mut all)
}

fn latencies(blocks: &[Block]) -> Result<Histogram<u64>, Error> {
    let mut all = histogram()?;
    for (value, count) in blocks.iter().flat_map(|block| &block.histogram) {
        all.saturating_record_n(*value, *count);
    }
    Ok(all)
}

fn percentiles(all: &Histogram<u64>) -> Option<[f64; 5]> {
    let at = |quantile| all.value_at_quantile(quantile) as f64 / 1000.0;
    let some = [at(0.5), at(0.9), at(0.99), at(0.999), all.max() as f64 / 1000.0];
    (!all.is_empty()).then_some(some)
}

fn distribution(all: &Histogram<u64>) -> Vec<[f64; 2]> {
    // Of nothing there is a quantile all the same.
    let some = all.iter_quantiles(TICKS).filter(|_| !all.is_empty());
    some.map(|at| [at.quantile_iterated_to(), at.value_iterated_to() as f64 / 1000.0])
        .collect()
}

impl KvReport {
    fn new(blocks: &[Block]) -> Option<Self> {
        let each = |of: fn(&KvCost) -> f64| over_blocks(blocks, |block| block.kv.as_ref().map(of));
        let all = || blocks.iter().filter_map(|block| block.kv.as_ref());
        let mut device_counters = BTreeMap::new();
        for (name, by) in all().flat_map(|kv| &kv.device_counters) {
            *device_counters.entry(name.clone()).or_insert(0) += by;
        }
        Some(Self {
            reads_per_get: each(|kv| kv.reads_per_get)?,
            split_reads_per_get: each(|kv| kv.split_reads_per_get)?,
            coalesced_per_get: each(|kv| kv.coalesced_per_get)?,
            round_trips_per_get: each(|kv| kv.round_trips_per_get)?,
            packets_per_get: over_blocks(blocks, |block| block.kv.as_ref()?.packets_per_get),
            server_cpu_s_per_million: each(|kv| kv.server_cpu_s_per_million)?,
            server_frames_per_million: each(|kv| kv.server_frames_per_million)?,
            retries: all().map(|kv| kv.retries).sum(),
            server_memory_bytes: all().map(|kv| kv.server_memory_bytes).max()?,
            device_counters,
        })
    }
}

impl SideReport {
    fn new(side: SideName, point: &Point, blocks: &[Block]) -> Result<Self, Error> {
        let sum = |of: fn(&Block) -> u64| blocks.iter().map(of).sum();
        let latencies = latencies(blocks)?;
        Ok(Self {
            side,
            settings: sides::settings(side, point),
            latency_us: over_blocks(blocks, |block| block.latency_us),
            percentiles_us: percentiles(&latencies),
            distribution_us: distribution(&latencies),
            calls: blocks.iter().map(|block| block.calls).min().unwrap_or(0),
            gets_s: over_blocks(blocks, |block| block.gets_s),
            wall_gets_s: over_blocks(blocks, |block| block.wall_gets_s),
            mb_s: over_blocks(blocks, |block| Some(block.gets_s? * block.bytes_per_get / 1e6)),
            checked: sum(|block| block.checked),
            compared: sum(|block| block.compared),
            wrong: sum(|block| block.wrong),
            client_cpu_us_per_get: over_blocks(blocks, |block| block.client_cpu_us_per_get),
            client_memory_bytes: blocks.iter().filter_map(|block| block.client_memory_bytes).max(),
            kv: KvReport::new(blocks),
            by_block: blocks
                .iter()
                .map(|block| (block.latency_us, block.gets_s))
                .collect(),
        })
    }
}

/// Whether so many GETs a second are what an open loop of `rate` asked for.
pub(crate) fn sustained(rate: Option<f64>, gets_s: Option<&Interval>) -> bool {
    match (rate, gets_s) {
        (Some(rate), Some(gets)) => gets.median >= SUSTAINED_MIN * rate,
        _ => true,
    }
}

impl SideReport {
    /// Whether it got what an open loop asked of it; a closed one asks for no more than it gets.
    pub(crate) fn sustains(&self, point: &Point) -> bool {
        sustained(point.rate, self.gets_s.as_ref())
    }
}

impl PointReport {
    fn new(measured: &Measured) -> Result<Self, Error> {
        let point = &measured.point;
        let sides: Result<Vec<_>, Error> = measured
            .sides
            .iter()
            .map(|(side, blocks)| SideReport::new(*side, point, blocks))
            .collect();
        let kv = &measured.sides[0].1;
        let mut ratios = Vec::new();
        for (side, blocks) in &measured.sides[1..] {
            for metric in [Metric::Latency, Metric::Throughput, Metric::Wall] {
                let pair = |(kv, other): (&Block, &Block)| Some(figure(kv, metric)? / figure(other, metric)?);
                let mut all: Vec<f64> = kv.iter().zip(blocks).filter_map(pair).collect();
                let count = all.len();
                if let Some(ratio) = interval(&mut all) {
                    ratios.push(Ratio {
                        over: *side,
                        metric,
                        ratio,
                        inconclusive: doubt(&ratio, count),
                    });
                }
            }
        }
        Ok(Self {
            point: point.for_others(),
            sides: sides?,
            ratios,
            left_out: measured.left_out.clone(),
        })
    }

    /// The figure that counts at this point: of one GET at a time its latency, else how many there are. What is cold is
    /// timed as a whole.
    pub(crate) fn metric(&self) -> Metric {
        let one_by_one = self.point.batch == 1 || self.point.rate.is_some();
        if one_by_one && self.point.start == Start::Warm {
            Metric::Latency
        } else {
            Metric::Throughput
        }
    }
}

impl Point {
    /// It as a report has it: of a directory the name alone, since reports are shown to others.
    fn for_others(&self) -> Self {
        let mut point = self.clone();
        if let Lengths::Files(directory) = &mut point.lengths
            && let Some(name) = directory.file_name().map(PathBuf::from)
        {
            *directory = name;
        }
        point
    }

    /// It for people, without its case.
    pub(crate) fn describe(&self) -> String {
        let lengths = match &self.lengths {
            Lengths::Fixed(len) => bytes(*len),
            Lengths::Mix(lens) => {
                let all: Vec<String> = lens.iter().map(|len| bytes(*len)).collect();
                format!("{} mixed", all.join(" and "))
            }
            Lengths::Files(directory) => {
                let name = directory.file_name().unwrap_or(directory.as_os_str());
                format!("files of {}", name.to_string_lossy())
            }
        };
        let locators = match self.locators {
            Locators::Known => "known",
            Locators::Live => "live",
        };
        let mut all = format!(
            "{lengths}, {locators}, batch {}, depth {}",
            self.batch, self.depth
        );
        if self.threads > 1 {
            all += &format!(", {} threads", self.threads);
        }
        if !self.verify {
            all += ", without CRC";
        }
        if self.start == Start::Cold {
            all += ", cold";
        }
        if let Some(rate) = self.rate {
            all += &format!(", {rate} GETs/s");
        }
        all
    }
}

impl Stand<'_> {
    /// What was measured.
    pub(crate) fn report(
        &self,
        definition: &Definition,
        text: &str,
        label: &str,
        environment: Environment,
    ) -> Result<Report, Error> {
        let points: Result<Vec<PointReport>, Error> = self.measured.iter().map(PointReport::new).collect();
        Ok(Report {
            title: definition.title.clone(),
            label: label.to_owned(),
            network: definition.network,
            blocks: self.blocks,
            environment,
            points: points?,
            targets: target::judge(definition, &self.measured),
            definition: text.to_owned(),
        })
    }
}

impl Report {
    /// Whether every value was right and no target was missed.
    pub(crate) fn is_good(&self) -> bool {
        let wrong = self
            .points
            .iter()
            .flat_map(|point| &point.sides)
            .any(|side| side.wrong > 0);
        !wrong && self.targets.iter().all(|verdict| !verdict.is_missed())
    }

    /// Writes all forms of it into `folder`.
    pub(crate) fn write(&self, folder: &Path, name: &str) -> Result<(), Error> {
        std::fs::create_dir_all(folder)?;
        let file = |ending: &str, text: String| {
            let path = folder.join(format!("{name}.{ending}"));
            std::fs::write(&path, text).map_err(|error| format!("cannot write {}: {error}", path.display()))
        };
        file("json", json::text(self)?)?;
        file("csv", csv::table(self))?;
        file("html", html::page(self)?)?;
        Ok(())
    }

    /// What [`Report::write`] wrote as JSON.
    pub(crate) fn read(path: &Path) -> Result<Self, Error> {
        let said = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
        let text = std::fs::read(path).map_err(|error| said(&error))?;
        Ok(serde_json::from_slice(&text)
            .map_err(|error| said(&format!("no report of bench run: {error}")))?)
    }
}

#[cfg(test)]
pub(crate) mod tests;
