//! Programs that measure by themselves: perftest, ucx_perftest, fio. Each gives one figure a block.

use std::io::Read;
use std::net::IpAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use kv_proto::layout::wire_len;

use crate::Error;
use crate::environment::{is_soft_roce, program};
use crate::perftest::{Perftest, Reaped, Test, wait_until_listening};
use crate::raw::{CHAIN_MAX, SIGNAL_READS};
use crate::run::definition::{Lengths, SideName, Start};
use crate::run::job::{Block, Point};
use crate::run::values::Values;
use campaigns::processes::end_of;

/// READs of a block at least: perftest calibrates itself on them.
const ITERATIONS_MIN: usize = 64;
/// Most of them: its tables are made before it starts.
const ITERATIONS_MAX: usize = 100_000;
/// Longest that fio may read.
const FIO_LIMIT: &str = "--runtime=120";
/// Direct reads are of whole sectors.
const SECTOR_BYTES: u64 = 512;
/// Longest that ucx_perftest may take.
const UCX_PATIENCE: Duration = Duration::from_secs(120);
/// Which GID it uses.
const UCX_GID: &str = "UCX_IB_GID_INDEX";
/// One part of its iterations in so many are its warm-up, which by itself has ten thousand.
const UCX_WARM_SHARE: usize = 10;
/// Ports of the two sides' own channels, one after the other.
const PORTS: (u16, u16) = (18_000, 400);

/// READs of a chain, and from one completion to the next, of a queue of `depth`: at most as many as the client has, but two
/// chains or more under way, for perftest knows no calls and never stops; as far as they divide one another, which it
/// wants.
pub(crate) fn chains(depth: usize) -> (usize, usize) {
    let divisor = |of: usize, most: usize| (1..=most).rev().find(|n| of.is_multiple_of(*n)).unwrap_or(1);
    let chain = divisor(depth, CHAIN_MAX.min(depth / 2));
    (chain, divisor(chain, SIGNAL_READS))
}

/// Why a side cannot be measured.
pub(crate) fn missing(side: SideName, point: &Point) -> Option<String> {
    if let (SideName::Fio, Start::Cold, Lengths::Fixed(len)) = (side, point.start, &point.lengths)
        && !len.is_multiple_of(SECTOR_BYTES)
    {
        return Some(format!(
            "direct reads are of whole sectors of {SECTOR_BYTES} bytes, not of {len} bytes"
        ));
    }
    let name = match side {
        SideName::Perftest => "ib_read_lat",
        SideName::Ucx => "ucx_perftest",
        _ => "fio",
    };
    program(name).is_none().then(|| format!("not installed ({name})"))
}

/// What such a program needs to know.
pub(crate) struct External<'a> {
    /// Device, for those over verbs.
    pub(crate) device: &'a str,
    /// Its address.
    pub(crate) address: Option<IpAddr>,
    /// The file that has all values.
    pub(crate) file: &'a Path,
    /// The values.
    pub(crate) values: &'a Values,
    /// Number of this run, for ports.
    pub(crate) number: usize,
}

impl External<'_> {
    /// Whether `side` is one of these.
    pub(crate) fn is(side: SideName) -> bool {
        matches!(side, SideName::Perftest | SideName::Ucx | SideName::Fio)
    }

    /// One block.
    pub(crate) fn run(&self, side: SideName, point: &Point) -> Result<Block, Error> {
        let Lengths::Fixed(len) = point.lengths else {
            return Err(format!("`{side}` knows one length only").into());
        };
        let block = match side {
            SideName::Perftest => self.perftest(point, len)?,
            SideName::Ucx => self.ucx(point, len)?,
            _ => self.fio(point, len)?,
        };
        Ok(Block {
            bytes_per_get: len as f64,
            ..block
        })
    }

    fn port(&self) -> u16 {
        PORTS.0 + (self.number % usize::from(PORTS.1)) as u16
    }

    fn wire(&self, len: u64) -> u64 {
        wire_len(self.values.key(0).len() as u64, len)
    }

    fn address(&self) -> Result<IpAddr, Error> {
        self.address
            .ok_or_else(|| "verbs need --address, that of the RDMA device".into())
    }

    fn perftest(&self, point: &Point, len: u64) -> Result<Block, Error> {
        let depth = point.depth.min(point.batch);
        let size_bytes = self.wire(len);
        let iterations = point
            .gets
            .clamp(ITERATIONS_MIN, ITERATIONS_MAX)
            .next_multiple_of(depth);
        let test = if point.batch == 1 {
            Test::Latency
        } else {
            Test::Bandwidth
        };
        let (chain, signal) = chains(depth);
        let figure = Perftest {
            test,
            device: self.device,
            address: self.address()?,
            size_bytes,
            iterations: iterations as u32,
            depth,
            chain,
            signal,
            port: self.port(),
        }
        .run()?;
        Ok(match test {
            Test::Latency => latency_of(iterations, figure),
            Test::Bandwidth => rate_of(iterations, figure * (1 << 20) as f64 / size_bytes as f64),
        })
    }

    fn ucx(&self, point: &Point, len: u64) -> Result<Block, Error> {
        let iterations = point.gets.clamp(ITERATIONS_MIN, ITERATIONS_MAX);
        let warm = (iterations / UCX_WARM_SHARE).max(1).to_string();
        let size = self.wire(len).to_string();
        let (port, count) = (self.port().to_string(), iterations.to_string());
        let outstanding = point.depth.min(point.batch).to_string();
        let command = || {
            let mut command = Command::new("ucx_perftest");
            command.args([
                "-t", "ucp_get", "-p", &port, "-n", &count, "-w", &warm, "-s", &size,
            ]);
            if point.batch > 1 {
                command.args(["-O", &outstanding]);
            }
            // Its READs must go over the device, not through shared memory.
            command
                .env("UCX_TLS", "rc")
                .env("UCX_NET_DEVICES", format!("{}:1", self.device));
            // Over Soft-RoCE it does not reach its own device by the GID of an IPv4 address, which it would choose.
            if is_soft_roce(self.device) && std::env::var_os(UCX_GID).is_none() {
                command.env(UCX_GID, "0");
            }
            command.stdin(Stdio::null());
            command
        };
        let mut server = command();
        server.stdout(Stdio::null()).stderr(Stdio::null());
        let mut server = Reaped(server.spawn()?);
        wait_until_listening(self.port(), &mut server.0)?;
        let client = command()
            .arg(self.address()?.to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut client = Reaped(client);
        // Its table, a line a second, and its errors fit the pipes.
        let status = end_of(&mut client.0, UCX_PATIENCE)?;
        let (mut text, mut errors) = (String::new(), String::new());
        if let (Some(stdout), Some(stderr)) = (client.0.stdout.as_mut(), client.0.stderr.as_mut()) {
            stdout.read_to_string(&mut text)?;
            stderr.read_to_string(&mut errors)?;
        }
        if !status.success() {
            let mut lines = errors.lines().chain(text.lines());
            let told = lines.find(|line| line.contains("ERROR") || line.contains("Fatal"));
            return Err(format!(
                "ucx_perftest ended with {status}: {}",
                told.unwrap_or_default().trim()
            )
            .into());
        }
        let (typical_us, messages_s) =
            ucx_figures(&text).ok_or_else(|| format!("no figures in the output of ucx_perftest: {text}"))?;
        Ok(if point.batch == 1 {
            latency_of(iterations, typical_us)
        } else {
            rate_of(iterations, messages_s)
        })
    }

    fn fio(&self, point: &Point, len: u64) -> Result<Block, Error> {
        let cold = point.start == Start::Cold;
        let gets = if cold {
            point.gets.min(self.values.count())
        } else {
            point.gets
        };
        let step = self.values.places().1 / self.values.count() as u64;
        let share = gets.div_ceil(point.threads);
        let mut child = Command::new("fio");
        child.args([
            "--name=floor",
            "--rw=randread",
            "--ioengine=psync",
            "--thread",
            "--output-format=json+",
        ]);
        child.arg(format!("--filename={}", self.file.display()));
        // Whole values, each at a page of its own.
        child.args([
            format!("--bs={len}"),
            format!("--blockalign={step}"),
            format!("--io_size={}", share as u64 * len),
        ]);
        child.args([
            format!("--numjobs={}", point.threads),
            "--group_reporting".to_owned(),
        ]);
        child.args([
            format!("--direct={}", u8::from(cold)),
            format!("--invalidate={}", u8::from(cold)),
        ]);
        child.args(["--norandommap", FIO_LIMIT]);
        let output = child.stdin(Stdio::null()).output()?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            let last = said.trim().lines().last().unwrap_or_default();
            return Err(format!("fio ended with {}: {last}", output.status).into());
        }
        let text = String::from_utf8_lossy(&output.stdout);
        let json = text.find('{').map_or("", |at| &text[at..]);
        let parsed: serde_json::Value = serde_json::from_str(json)?;
        let figures = fio_figures(&parsed["jobs"][0]["read"], point.threads);
        let (rate, histogram) = figures.ok_or("fio's report has no times of reads")?;
        let mut block = rate_of(gets, rate);
        // Of one read: of a call only where a call is one.
        if point.batch == 1 {
            block.latency_us = median_us(&histogram);
            block.histogram = histogram;
        }
        Ok(block)
    }
}

/// Reads a second inside reads, as those of other sides are inside calls, and all times: ns, and how many. fio counts
/// its own reads a second in whole milliseconds.
fn fio_figures(read: &serde_json::Value, threads: usize) -> Option<(f64, Vec<(u64, u64)>)> {
    let mean_ns = read["lat_ns"]["mean"].as_f64().filter(|mean| *mean > 0.0)?;
    let mut histogram = Vec::new();
    for (time, count) in read["clat_ns"]["bins"].as_object()? {
        histogram.push((time.parse().ok()?, count.as_u64()?));
    }
    histogram.sort_unstable();
    (!histogram.is_empty()).then_some((threads as f64 * 1e9 / mean_ns, histogram))
}

fn median_us(histogram: &[(u64, u64)]) -> Option<f64> {
    let total: u64 = histogram.iter().map(|(_, count)| count).sum();
    let mut seen = 0;
    let middle = histogram.iter().find(|(_, count)| {
        seen += count;
        seen * 2 >= total
    });
    middle.map(|(ns, _)| *ns as f64 / 1000.0)
}

fn latency_of(gets: usize, us: f64) -> Block {
    Block {
        gets: gets as u64,
        latency_us: Some(us),
        ..Block::default()
    }
}

fn rate_of(gets: usize, gets_s: f64) -> Block {
    Block {
        gets: gets as u64,
        gets_s: Some(gets_s),
        ..Block::default()
    }
}

/// Typical latency, us, and messages a second, of the last line of ucx_perftest's table: `Final:` or, where it prints
/// that line alone, nothing before the numbers.
fn ucx_figures(text: &str) -> Option<(f64, f64)> {
    // Iterations; typical, average and overall latency; average and overall bandwidth; average and overall rate.
    let columns = |line: &str| -> Option<[f64; 8]> {
        let line = line.trim();
        let words = line.strip_prefix("Final:").unwrap_or(line).split_whitespace();
        let numbers: Result<Vec<f64>, _> = words.map(str::parse).collect();
        numbers.ok()?.try_into().ok()
    };
    let [_, typical_us, .., messages_s] = text.lines().rev().find_map(columns)?;
    Some((typical_us, messages_s))
}

#[cfg(test)]
mod tests {
    use super::{chains, fio_figures, median_us, ucx_figures};

    #[test]
    fn reads_the_table_of_ucx_perftest() {
        // Of ucx-utils 1.13.1, without and with `-f`.
        let text = "\
+--------------+--------------+------------------------------+---------------------+-----------------------+
|              |              |        latency (usec)        |   bandwidth (MB/s)  |  message rate (msg/s) |
+--------------+--------------+----------+---------+---------+----------+----------+-----------+-----------+
|    Stage     | # iterations | 50.0%ile | average | overall |  average |  overall |  average  |  overall  |
+--------------+--------------+----------+---------+---------+----------+----------+-----------+-----------+
[thread 0]               682   1106.071  1553.246  1553.246        2.55       2.55         644         644
Final:                  1000   1105.642  1487.541  1532.352        2.67       2.59         672         653
";
        assert_eq!(ucx_figures(text), Some((1105.642, 653.0)));
        let text = "\
+--------------+--------------+----------+---------+---------+----------+----------+-----------+-----------+
|     Test     | # iterations | 50.0%ile | average | overall |  average |  overall |  average  |  overall  |
+--------------+--------------+----------+---------+---------+----------+----------+-----------+-----------+
                        1000   1077.532  1256.372  1119.648        3.16       3.54         796         893
";
        assert_eq!(ucx_figures(text), Some((1077.532, 893.0)));
        // A run that was cut off has no last line.
        let text = "[thread 0]               682   1106.071  1553.246  1553.246        2.55       2.55         644         644\n";
        assert_eq!(ucx_figures(text), None);
        assert_eq!(ucx_figures("Final: 3 4"), None);
        assert_eq!(ucx_figures(""), None);
    }

    #[test]
    fn reads_of_fio_are_timed_in_ns() {
        // As fio 3.33 writes them: five reads in less than the millisecond that its `runtime` counts in.
        let read = serde_json::json!({
            "iops": 5000.0, "runtime": 1,
            "lat_ns": { "min": 900, "max": 2200, "mean": 1250.0, "N": 5 },
            "clat_ns": { "bins": { "1112": 2, "892": 1, "2192": 1, "1192": 1 } },
        });
        let (rate, histogram) = fio_figures(&read, 2).unwrap();
        assert_eq!(rate, 1_600_000.0);
        assert_eq!(histogram, [(892, 1), (1112, 2), (1192, 1), (2192, 1)]);
        assert_eq!(median_us(&histogram), Some(1.112));
        assert_eq!(fio_figures(&serde_json::json!({ "iops": 5000.0 }), 1), None);
    }

    #[test]
    fn chains_divide_the_depth_and_completions_the_chain() {
        let all = [1, 2, 7, 16, 64, 100, 1024].map(chains);
        assert_eq!(all, [(1, 1), (1, 1), (1, 1), (8, 8), (32, 8), (50, 5), (256, 8)]);
    }
}
