//! What a run says: figures of each side at each point, and ratios of neighbours in time.

use std::path::{Path, PathBuf};

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

/// Fewer blocks than this give no ratio that means something.
pub(crate) const BLOCKS_MIN: usize = 10;
/// An interval wider than this, either way, decides nothing.
pub(crate) const WIDTH_MAX: f64 = 0.05;

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
    /// GETs, which are samples, a second.
    pub(crate) gets_s: Option<Interval>,
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
    /// What `kv` did: medians over the blocks.
    pub(crate) kv: Option<KvCost>,
    /// Median latency and GETs a second of each block.
    pub(crate) by_block: Vec<(Option<f64>, Option<f64>)>,
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

/// Why a ratio over so many blocks decides nothing; empty if it does.
pub(crate) fn doubt(ratio: &Interval, blocks: usize) -> String {
    let wide = ratio.high / ratio.median - 1.0 > WIDTH_MAX || 1.0 - ratio.low / ratio.median > WIDTH_MAX;
    if blocks < BLOCKS_MIN {
        format!("{blocks} blocks, fewer than {BLOCKS_MIN}")
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
    }
}

fn over_blocks(blocks: &[Block], of: impl Fn(&Block) -> Option<f64>) -> Option<Interval> {
    let mut all: Vec<f64> = blocks.iter().filter_map(of).collect();
    interval(&mut all)
}

fn percentiles(blocks: &[Block]) -> Result<Option<[f64; 5]>, Error> {
    let mut all = histogram()?;
    for (value, count) in blocks.iter().flat_map(|block| &block.histogram) {
        all.saturating_record_n(*value, *count);
    }
    let at = |quantile| all.value_at_quantile(quantile) as f64 / 1000.0;
    let some = [at(0.5), at(0.9), at(0.99), at(0.999), all.max() as f64 / 1000.0];
    Ok((!all.is_empty()).then_some(some))
}

/// Medians of what `kv` did.
fn cost(blocks: &[Block]) -> Option<KvCost> {
    let median = |of: &dyn Fn(&KvCost) -> f64| {
        over_blocks(blocks, |block| block.kv.as_ref().map(of)).map(|interval| interval.median)
    };
    let packets = over_blocks(blocks, |block| block.kv.as_ref()?.packets_per_get);
    let all = || blocks.iter().filter_map(|block| block.kv.as_ref());
    Some(KvCost {
        reads_per_get: median(&|kv| kv.reads_per_get)?,
        split_reads_per_get: median(&|kv| kv.split_reads_per_get)?,
        round_trips_per_get: median(&|kv| kv.round_trips_per_get)?,
        retries: all().map(|kv| kv.retries).sum(),
        packets_per_get: packets.map(|interval| interval.median),
        server_cpu_s_per_million: median(&|kv| kv.server_cpu_s_per_million)?,
        server_frames_per_million: median(&|kv| kv.server_frames_per_million)?,
        server_memory_bytes: all().map(|kv| kv.server_memory_bytes).max()?,
    })
}

impl SideReport {
    fn new(side: SideName, point: &Point, blocks: &[Block]) -> Result<Self, Error> {
        let sum = |of: fn(&Block) -> u64| blocks.iter().map(of).sum();
        Ok(Self {
            side,
            settings: sides::settings(side, point),
            latency_us: over_blocks(blocks, |block| block.latency_us),
            percentiles_us: percentiles(blocks)?,
            gets_s: over_blocks(blocks, |block| block.gets_s),
            mb_s: over_blocks(blocks, |block| Some(block.gets_s? * block.bytes_per_get / 1e6)),
            checked: sum(|block| block.checked),
            compared: sum(|block| block.compared),
            wrong: sum(|block| block.wrong),
            client_cpu_us_per_get: over_blocks(blocks, |block| block.client_cpu_us_per_get),
            client_memory_bytes: blocks.iter().filter_map(|block| block.client_memory_bytes).max(),
            kv: cost(blocks),
            by_block: blocks
                .iter()
                .map(|block| (block.latency_us, block.gets_s))
                .collect(),
        })
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
            for metric in [Metric::Latency, Metric::Throughput] {
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

    /// The figure that counts at this point: of one GET at a time its latency, else how many there are.
    pub(crate) fn metric(&self) -> Metric {
        if self.point.batch == 1 || self.point.rate.is_some() {
            Metric::Latency
        } else {
            Metric::Throughput
        }
    }
}

/// A length for people.
pub(crate) fn bytes(len: u64) -> String {
    match len {
        len if len >= 1 << 20 && len % (1 << 20) == 0 => format!("{} MiB", len >> 20),
        len if len >= 1 << 10 && len % (1 << 10) == 0 => format!("{} KiB", len >> 10),
        len => format!("{len} B"),
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

/// An interval for people.
pub(crate) fn shown(interval: &Interval) -> String {
    let digits = match interval.median.abs() {
        median if median >= 1000.0 => 0,
        median if median >= 100.0 => 1,
        median if median >= 10.0 => 2,
        _ => 3,
    };
    let Interval { median, low, high } = interval;
    format!("{median:.digits$} ({low:.digits$} to {high:.digits$})")
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

    /// Prints tables.
    pub(crate) fn print(&self) {
        println!("{}: {} blocks on {}", self.title, self.blocks, self.label);
        for point in &self.points {
            println!("\n{}: {}", point.point.case, point.point.describe());
            for side in &point.sides {
                side.print();
            }
            for ratio in point.ratios.iter().filter(|ratio| ratio.metric == point.metric()) {
                let what = match ratio.metric {
                    Metric::Latency => "latency",
                    Metric::Throughput => "GETs/s",
                };
                let doubt = match ratio.inconclusive.as_str() {
                    "" => String::new(),
                    why => format!(" inconclusive: {why}"),
                };
                println!("  kv over {}, {what}: {}{doubt}", ratio.over, shown(&ratio.ratio));
            }
            for (side, why) in &point.left_out {
                println!("  {side} was not measured: {why}");
            }
        }
        if !self.targets.is_empty() {
            println!();
        }
        for verdict in &self.targets {
            println!("target {verdict}");
        }
    }

    /// Writes all forms of it into `folder`.
    pub(crate) fn write(&self, folder: &Path, name: &str) -> Result<(), Error> {
        std::fs::create_dir_all(folder)?;
        let file = |ending: &str, text: String| {
            let path = folder.join(format!("{name}.{ending}"));
            std::fs::write(&path, text).map_err(|error| format!("cannot write {}: {error}", path.display()))
        };
        file("json", serde_json::to_string_pretty(self)? + "\n")?;
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

impl SideReport {
    fn print(&self) {
        print!("  {:<10}", self.side.to_string());
        if let Some(latency) = &self.latency_us {
            print!(" {} us", shown(latency));
        }
        if let Some([_, p90, p99, p999, max]) = self.percentiles_us {
            print!(" p90 {p90:.1} p99 {p99:.1} p99.9 {p999:.1} max {max:.1}");
        }
        if let (Some(gets), Some(mb)) = (&self.gets_s, &self.mb_s) {
            print!("; {} GETs/s, {:.1} MB/s", shown(gets), mb.median);
        }
        if let Some(cpu) = &self.client_cpu_us_per_get {
            print!("; {:.2} us of CPU a GET", cpu.median);
        }
        println!();
        if let Some(kv) = &self.kv {
            println!(
                "             {:.3} READs, {:.3} round trips a GET; server: {:.3} s of CPU and {:.1} frames a million",
                kv.reads_per_get,
                kv.round_trips_per_get,
                kv.server_cpu_s_per_million,
                kv.server_frames_per_million
            );
        }
        if self.wrong > 0 {
            println!(
                "             {} WRONG VALUES of {}",
                self.wrong,
                self.checked + self.compared
            );
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A report of two points that differ by depth; `kv` took these times, in turn, `pread` 5 us.
    pub(crate) fn report(latencies: &[f64]) -> Report {
        let blocks = |of: &dyn Fn(usize) -> f64, kv: bool| -> Vec<Block> {
            let block = |at| Block {
                gets: 100,
                bytes_per_get: 4096.0,
                gets_s: Some(1e6 / of(at)),
                latency_us: Some(of(at)),
                histogram: vec![((of(at) * 1000.0) as u64, 100)],
                kv: kv.then(|| KvCost {
                    reads_per_get: 1.0,
                    ..KvCost::default()
                }),
                ..Block::default()
            };
            (0..12).map(block).collect()
        };
        let point = |depth: &str| {
            let text = format!(
                "title = \"t\"\nnetwork = \"local\"\n[[case]]\nname = \"a <case>\"\nvalue_bytes = 4096\ndepth = {depth}\n"
            );
            let definition = Definition::parse(&text, "d").unwrap();
            let measured = Measured::for_test(
                &definition,
                vec![
                    (SideName::Kv, blocks(&|at| latencies[at % latencies.len()], true)),
                    (SideName::Pread, blocks(&|_| 5.0, false)),
                ],
            );
            PointReport::new(&measured).unwrap()
        };
        Report {
            title: "a \"title\"".to_owned(),
            label: "local".to_owned(),
            network: Network::Local,
            blocks: 12,
            environment: Environment::read(),
            points: vec![point("1"), point("8")],
            targets: Vec::new(),
            definition: "its & text".to_owned(),
        }
    }

    #[test]
    fn ratios_are_block_by_block_and_wide_ones_are_doubted() {
        let report = report(&[10.0]);
        let ratio = &report.points[0].ratios[0];
        assert_eq!(
            (ratio.over, ratio.metric, ratio.ratio.median),
            (SideName::Pread, Metric::Latency, 2.0)
        );
        assert!(ratio.inconclusive.is_empty());
        assert!(doubt(&ratio.ratio, 9).contains("fewer"));
        let wide = Interval {
            median: 1.0,
            low: 0.94,
            high: 1.01,
        };
        assert!(doubt(&wide, 12).contains("wider"));
        assert!(!report.points[0].sides.iter().any(|side| side.wrong > 0) && report.is_good());
    }

    #[test]
    fn a_page_needs_nothing_else_and_has_a_plot_with_every_side() {
        let folder = tempfile::tempdir().unwrap();
        report(&[10.0]).write(folder.path(), "r").unwrap();
        let page = std::fs::read_to_string(folder.path().join("r.html")).unwrap();
        for reaching_out in ["src=", "href=", "@import", "url("] {
            assert!(!page.contains(reaching_out), "{reaching_out}");
        }
        // Nothing but the name of SVG itself looks like an address.
        assert_eq!(
            page.matches("http").count(),
            page.matches("http://www.w3.org/2000/svg").count()
        );
        assert_eq!(page.matches("<svg").count(), 1);
        assert!(
            page.contains("a &lt;case&gt;: GETs/s against READs outstanding")
                && page.contains("its &amp; text")
        );
        let svg = &page[page.find("<svg").unwrap()..page.find("</svg>").unwrap()];
        assert!(
            svg.contains("kv") && svg.contains("pread") && svg.matches("<polyline").count() >= 2,
            "{svg}"
        );
    }

    #[test]
    fn a_table_has_a_row_for_each_side_and_reads_back() {
        let folder = tempfile::tempdir().unwrap();
        let written = report(&[10.0]);
        written.write(folder.path(), "r").unwrap();
        let table = std::fs::read_to_string(folder.path().join("r.csv")).unwrap();
        let rows: Vec<&str> = table.lines().collect();
        assert_eq!(rows.len(), 1 + 4);
        // Commas inside quotes are none between columns.
        let columns = |row: &str| {
            row.split('"')
                .step_by(2)
                .map(|part| part.matches(',').count())
                .sum::<usize>()
        };
        assert!(rows.iter().all(|row| columns(row) == columns(rows[0])), "{table}");
        let read = Report::read(&folder.path().join("r.json")).unwrap();
        assert_eq!(
            serde_json::to_string(&read).unwrap(),
            serde_json::to_string(&written).unwrap()
        );
        std::fs::write(folder.path().join("r.json"), "{}").unwrap();
        let error = Report::read(&folder.path().join("r.json"))
            .unwrap_err()
            .to_string();
        assert!(error.contains("no report of bench run"), "{error}");
    }
}
