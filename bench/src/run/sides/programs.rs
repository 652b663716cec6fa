//! Programs that measure by themselves: perftest, ucx_perftest, fio. Each gives one figure a block.

use std::net::IpAddr;
use std::path::Path;
use std::process::{Command, Stdio};

use kv_proto::layout::wire_len;

use crate::Error;
use crate::environment::program;
use crate::perftest::{Perftest, Reaped, Test, wait_until_listening};
use crate::run::definition::{Lengths, SideName, Start};
use crate::run::job::{Block, Point};
use crate::run::values::Values;

/// READs of a block at least: perftest calibrates itself on them.
const ITERATIONS_MIN: usize = 64;
/// Most of them: its tables are made before it starts.
const ITERATIONS_MAX: usize = 100_000;
/// Longest that fio may read.
const FIO_LIMIT: &str = "--runtime=120";
/// Ports of the two sides' own channels, one after the other.
const PORTS: (u16, u16) = (18_000, 400);

/// Why a side cannot be measured.
pub(crate) fn missing(side: SideName) -> Option<String> {
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
        let figure = Perftest {
            test,
            device: self.device,
            address: self.address()?,
            size_bytes,
            iterations: iterations as u32,
            depth,
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
        let size = self.wire(len).to_string();
        let (port, count) = (self.port().to_string(), iterations.to_string());
        let outstanding = point.depth.min(point.batch).to_string();
        let command = || {
            let mut command = Command::new("ucx_perftest");
            command.args(["-t", "ucp_get", "-p", &port, "-n", &count, "-s", &size, "-f"]);
            if point.batch > 1 {
                command.args(["-O", &outstanding]);
            }
            // Its READs must go over the device, not through shared memory.
            command
                .env("UCX_TLS", "rc")
                .env("UCX_NET_DEVICES", format!("{}:1", self.device));
            command.stdin(Stdio::null()).stderr(Stdio::null());
            command
        };
        let mut server = Reaped(command().stdout(Stdio::null()).spawn()?);
        wait_until_listening(self.port(), &mut server.0)?;
        let output = command().arg(self.address()?.to_string()).output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            return Err(format!("ucx_perftest ended with {}: {}", output.status, text.trim()).into());
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
            "--output-format=json",
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
        let output = child.stdin(Stdio::null()).stderr(Stdio::inherit()).output()?;
        if !output.status.success() {
            return Err(format!("fio ended with {}", output.status).into());
        }
        let text = String::from_utf8_lossy(&output.stdout);
        let json = text.find('{').map_or("", |at| &text[at..]);
        let parsed: serde_json::Value = serde_json::from_str(json)?;
        let read = &parsed["jobs"][0]["read"];
        let rate = read["iops"].as_f64().ok_or("fio's report has no iops")?;
        let median = read["clat_ns"]["percentile"]["50.000000"].as_f64();
        let mut block = rate_of(gets, rate);
        // Of one read: of a call only where a call is one.
        block.latency_us = median.filter(|_| point.batch == 1).map(|ns| ns / 1000.0);
        Ok(block)
    }
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

/// Typical latency, us, and messages a second, of the last line of ucx_perftest's table.
fn ucx_figures(text: &str) -> Option<(f64, f64)> {
    let line = text
        .lines()
        .rev()
        .find_map(|line| line.trim().strip_prefix("Final:"))?;
    // Iterations; typical, average and overall latency; average and overall bandwidth; average and overall rate.
    let columns: Vec<f64> = line
        .split_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect();
    Some((*columns.get(1)?, *columns.last()?)).filter(|_| columns.len() == 8)
}

#[cfg(test)]
mod tests {
    use super::ucx_figures;

    #[test]
    fn reads_the_table_of_ucx_perftest() {
        let text = "+--------------+\n[thread 0]   1000   50.1 60.0 60.0 65.0 65.0 16000 16000\n\
                    Final:             10000     61.210    64.115    64.115       61.94      61.94       15597       15597\n";
        assert_eq!(ucx_figures(text), Some((61.21, 15597.0)));
        assert_eq!(ucx_figures("Final: 3 4"), None);
        assert_eq!(ucx_figures(""), None);
    }
}
