//! A report as text for people.

use std::collections::BTreeMap;

use super::{KvReport, PointReport, Ratio, Report, SideReport};
use crate::run::job::Point;
use crate::stats::Interval;

/// Counters of packets, which are told by the GET.
const PACKETS: [&str; 2] = ["sent_pkts", "rcvd_pkts"];

/// A length for people.
pub(super) fn bytes(len: u64) -> String {
    match len {
        len if len >= 1 << 20 && len % (1 << 20) == 0 => format!("{} MiB", len >> 20),
        len if len >= 1 << 10 && len % (1 << 10) == 0 => format!("{} KiB", len >> 10),
        len => format!("{len} B"),
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

/// Counters of a device that moved, but for packets; that none did is said too.
fn moved(counters: &BTreeMap<String, u64>) -> String {
    let other = counters
        .iter()
        .filter(|(name, _)| !PACKETS.contains(&name.as_str()));
    let all: Vec<String> = other.map(|(name, by)| format!("{name} {by}")).collect();
    if all.is_empty() {
        "no other counter moved".to_owned()
    } else {
        format!("counters that moved: {}", all.join(", "))
    }
}

impl Report {
    /// Prints tables.
    pub(crate) fn print(&self) {
        println!("{}: {} blocks on {}", self.title, self.blocks, self.label);
        for point in &self.points {
            point.print();
        }
        if !self.targets.is_empty() {
            println!();
        }
        for verdict in &self.targets {
            println!("target {verdict}");
        }
    }
}

impl PointReport {
    fn print(&self) {
        println!("\n{}: {}", self.point.case, self.point.describe());
        for side in &self.sides {
            side.print(&self.point);
        }
        for ratio in self.ratios.iter().filter(|ratio| ratio.metric == self.metric()) {
            let Ratio { over, metric, .. } = ratio;
            let doubt = match ratio.inconclusive.as_str() {
                "" => String::new(),
                why => format!(" inconclusive: {why}"),
            };
            println!("  kv over {over}, {metric}: {}{doubt}", shown(&ratio.ratio));
        }
        for (side, why) in &self.left_out {
            println!("  {side} was not measured: {why}");
        }
    }
}

impl SideReport {
    fn print(&self, point: &Point) {
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
        if let (true, Some(wall)) = (point.threads > 1, &self.wall_gets_s) {
            print!(", {} GETs/s by the clock", shown(wall));
        }
        if let Some(cpu) = &self.client_cpu_us_per_get {
            print!("; {:.2} us of CPU a GET", cpu.median);
        }
        if !self.sustains(point) {
            print!("; THE LOAD IS NOT SUSTAINED");
        }
        println!();
        if let Some(kv) = &self.kv {
            kv.print();
        }
        if self.wrong > 0 {
            let all = self.checked + self.compared;
            println!("             {} WRONG VALUES of {all}", self.wrong);
        }
    }
}

impl KvReport {
    /// What it says in a sentence or two.
    pub(crate) fn sentences(&self) -> String {
        let mut all = format!(
            "{:.3} READs a GET ({:.3} of them splits), {:.3} GETs joined to the READ before, {:.3} round trips, {} retries; \
             server: {:.3} s of CPU and {:.1} frames a million GETs, {:.0} MB",
            self.reads_per_get.median,
            self.split_reads_per_get.median,
            self.coalesced_per_get.median,
            self.round_trips_per_get.median,
            self.retries,
            self.server_cpu_s_per_million.median,
            self.server_frames_per_million.median,
            self.server_memory_bytes as f64 / 1e6,
        );
        if let Some(packets) = &self.packets_per_get {
            all += &format!(
                "; device: {:.2} packets a GET, {}",
                packets.median,
                moved(&self.device_counters)
            );
        }
        all
    }

    fn print(&self) {
        println!("             {}", self.sentences());
    }
}
