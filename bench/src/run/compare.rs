//! `bench compare`: what two runs of a definition say differently, beyond what blocks of one run differ by.
//!
//! Two medians differ where their 95 % intervals do not meet; of fewer than ten blocks nothing is said to have changed, for
//! neighbours in time resemble each other more than runs do. Ratios and counts are the same on a machine that is faster or
//! slower today; times are not, so they are counted apart.

use std::path::PathBuf;

use super::report::{PointReport, Report, SideReport, shown, too_few};
use crate::Error;
use crate::stats::Interval;

/// Counts that differ by less are the same: they hang on where records happen to lie.
const COUNT_MIN: f64 = 0.005;

/// Options of `bench compare`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The earlier report, as `bench run` wrote it.
    before: PathBuf,
    /// The later one.
    after: PathBuf,
}

/// Prints what changed.
pub(crate) fn run(args: &Args) -> Result<bool, Error> {
    let (before, after) = (Report::read(&args.before)?, Report::read(&args.after)?);
    for line in compare(&before, &after) {
        println!("{line}");
    }
    Ok(true)
}

/// What two reports say of one figure.
struct Difference {
    line: String,
    kind: Kind,
    differs: bool,
}

/// What a figure is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A ratio or a count.
    Own,
    /// A time, or so many a second: that of the machine as well.
    Time,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Own => "ratios and counts",
            Self::Time => "times and rates, which are the machine's too,",
        }
    }
}

/// All differences, each a line; the last lines count them.
pub(crate) fn compare(before: &Report, after: &Report) -> Vec<String> {
    let mut lines = machines(before, after);
    let mut all = Vec::new();
    for later in &after.points {
        let place = format!("{} [{}]", later.point.case, later.point.describe());
        let Some(earlier) = before.points.iter().find(|earlier| earlier.point == later.point) else {
            lines.push(format!("{place}: only in the later report"));
            continue;
        };
        for mut one in differences(earlier, later) {
            one.line = format!("{place}: {}", one.line);
            all.push(one);
        }
    }
    for earlier in &before.points {
        if !after.points.iter().any(|later| later.point == earlier.point) {
            let (case, point) = (&earlier.point.case, earlier.point.describe());
            lines.push(format!("{case} [{point}]: only in the earlier report"));
        }
    }
    let doubt = too_few(before.blocks.min(after.blocks));
    for kind in [Kind::Own, Kind::Time] {
        let of_kind = || all.iter().filter(|one| one.kind == kind);
        let differing = of_kind().filter(|one| one.differs).map(|one| match &doubt {
            None => one.line.clone(),
            Some(why) => format!("in doubt ({why}): {}", one.line),
        });
        let before = lines.len();
        lines.extend(differing);
        let (found, count) = (lines.len() - before, of_kind().count());
        lines.push(match &doubt {
            None => format!("{found} of {count} {} changed beyond noise", kind.name()),
            Some(why) => format!(
                "0 of {count} {} changed beyond noise: {why}, so of {found} that differ none can be told from it",
                kind.name()
            ),
        });
    }
    lines
}

fn machines(before: &Report, after: &Report) -> Vec<String> {
    let (one, other) = (&before.environment, &after.environment);
    let named = [
        ("place", &before.label, &after.label),
        ("kernel", &one.kernel, &other.kernel),
        ("processor", &one.cpu, &other.cpu),
        ("device", &one.device, &other.device),
        ("rdma-core", &one.rdma_core, &other.rdma_core),
        ("commit", &one.commit, &other.commit),
    ];
    let mut lines: Vec<String> = named
        .iter()
        .filter(|(_, one, other)| one != other)
        .map(|(what, one, other)| format!("{what}: `{one}`, later `{other}`"))
        .collect();
    if before.network != after.network {
        lines.push(format!(
            "network: {:?}, later {:?}",
            before.network, after.network
        ));
    }
    for (what, one, other) in [
        ("processors", one.cpus as u64, other.cpus as u64),
        ("MTU", u64::from(one.mtu_bytes), u64::from(other.mtu_bytes)),
        ("blocks", before.blocks as u64, after.blocks as u64),
    ] {
        if one != other {
            lines.push(format!("{what}: {one}, later {other}"));
        }
    }
    lines
}

/// Every figure that both have.
fn differences(before: &PointReport, after: &PointReport) -> Vec<Difference> {
    let mut all = Vec::new();
    for later in &after.ratios {
        let same =
            |earlier: &&super::report::Ratio| earlier.over == later.over && earlier.metric == later.metric;
        if let Some(earlier) = before.ratios.iter().find(same) {
            let what = format!("kv over {}, {}", later.over, later.metric);
            all.push(intervals(&what, Kind::Own, &earlier.ratio, &later.ratio));
        }
    }
    for later in &after.sides {
        if let Some(earlier) = before.sides.iter().find(|earlier| earlier.side == later.side) {
            side(earlier, later, &mut all);
        }
    }
    all
}

fn side(before: &SideReport, after: &SideReport, all: &mut Vec<Difference>) {
    let name = after.side;
    for (what, earlier, later) in [
        ("latency, us", before.latency_us, after.latency_us),
        ("GETs/s", before.gets_s, after.gets_s),
        ("GETs/s by the clock", before.wall_gets_s, after.wall_gets_s),
        (
            "client CPU a GET, us",
            before.client_cpu_us_per_get,
            after.client_cpu_us_per_get,
        ),
    ] {
        if let (Some(earlier), Some(later)) = (earlier, later) {
            all.push(intervals(
                &format!("{name}, {what}"),
                Kind::Time,
                &earlier,
                &later,
            ));
        }
    }
    if let (Some(earlier), Some(later)) = (&before.kv, &after.kv) {
        for (what, earlier, later) in [
            ("READs a GET", earlier.reads_per_get, later.reads_per_get),
            (
                "splits a GET",
                earlier.split_reads_per_get,
                later.split_reads_per_get,
            ),
            (
                "joined READs a GET",
                earlier.coalesced_per_get,
                later.coalesced_per_get,
            ),
            (
                "round trips a GET",
                earlier.round_trips_per_get,
                later.round_trips_per_get,
            ),
            (
                "frames a million GETs",
                earlier.server_frames_per_million,
                later.server_frames_per_million,
            ),
        ] {
            all.push(count(&format!("{name}, {what}"), &earlier, &later));
        }
        if let (Some(earlier), Some(later)) = (earlier.packets_per_get, later.packets_per_get) {
            all.push(count(&format!("{name}, packets a GET"), &earlier, &later));
        }
        let what = format!("{name}, server CPU s a million GETs");
        let (earlier, later) = (earlier.server_cpu_s_per_million, later.server_cpu_s_per_million);
        all.push(intervals(&what, Kind::Time, &earlier, &later));
    }
}

/// As [`intervals`], of a count.
fn count(what: &str, before: &Interval, after: &Interval) -> Difference {
    let mut one = intervals(what, Kind::Own, before, after);
    let (median, other) = (before.median, after.median);
    one.differs &= (other - median).abs() > COUNT_MIN * median.abs().max(other.abs());
    one
}

/// Two medians differ where their 95 % intervals do not meet.
fn intervals(what: &str, kind: Kind, before: &Interval, after: &Interval) -> Difference {
    let change = if before.median == 0.0 {
        String::new()
    } else {
        format!(": {:+.1} %", (after.median / before.median - 1.0) * 100.0)
    };
    Difference {
        line: format!("{what}: {}, later {}{change}", shown(before), shown(after)),
        kind,
        differs: after.low > before.high || after.high < before.low,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::report::tests::{report, report_of};

    /// Latencies of 24 blocks of one run over Soft-RoCE, us: of `kv`, and of the bare loop beside it.
    const KV_US: [f64; 24] = [
        85.44, 86.21, 85.25, 94.97, 84.73, 84.86, 84.29, 86.4, 85.25, 84.09, 87.23, 85.31, 86.72, 86.14,
        83.52, 84.03, 85.38, 84.16, 85.12, 84.99, 85.76, 84.35, 83.52, 84.29,
    ];
    const OTHER_US: [f64; 24] = [
        77.5, 79.42, 77.76, 78.85, 78.46, 78.27, 78.14, 77.63, 77.57, 79.87, 78.02, 77.95, 78.85, 77.69,
        79.94, 77.69, 77.25, 77.76, 78.14, 78.21, 78.08, 78.21, 77.69, 80.06,
    ];

    /// Blocks of that run, `kv` so many times as slow.
    fn recorded(blocks: impl Iterator<Item = usize> + Clone, times: f64) -> Report {
        let kv: Vec<f64> = blocks.clone().map(|at| KV_US[at] * times).collect();
        let other: Vec<f64> = blocks.map(|at| OTHER_US[at]).collect();
        report_of(&kv, &other)
    }

    fn changed(before: &Report, after: &Report) -> (String, Vec<String>) {
        let lines = compare(before, after);
        let own = lines
            .iter()
            .position(|line| line.contains(Kind::Own.name()))
            .unwrap();
        (lines[own].clone(), lines[..own].to_vec())
    }

    #[test]
    fn halves_of_one_run_say_the_same_and_five_percent_are_seen() {
        let odd = recorded((0..24).filter(|at| at % 2 == 1), 1.0);
        let (last, lines) = changed(&recorded((0..24).step_by(2), 1.0), &odd);
        assert!(last.starts_with("0 of ") && lines.is_empty(), "{lines:?} {last}");
        let (last, lines) = changed(&recorded((0..24).step_by(2), 1.05), &odd);
        assert!(
            !last.starts_with("0 of ") && lines[0].contains("kv over pread, latency"),
            "{lines:?} {last}"
        );
    }

    /// The first three blocks of that run and three of the next ones do not overlap: nothing had changed in between.
    #[test]
    fn three_blocks_against_three_are_in_doubt() {
        let (early, late) = (recorded(0..3, 1.0), recorded(4..7, 1.0));
        let (last, lines) = changed(&early, &late);
        let whole = compare(&early, &late).join("\n");
        assert!(whole.contains("in doubt (3 blocks, fewer than 10)"), "{whole}");
        assert!(last.starts_with("0 of "), "{lines:?} {last}");
    }

    #[test]
    fn only_what_changed_beyond_noise_is_named() {
        let before = report(&[10.0, 10.1, 9.9]);
        let same = compare(&before, &report(&[10.05, 9.95, 10.1]));
        assert_eq!(same.len(), 2, "{same:?}");
        assert!(same.iter().all(|line| line.starts_with("0 of ")), "{same:?}");
        let slower = compare(&before, &report(&[12.0, 12.1, 11.9]));
        assert!(
            slower
                .iter()
                .any(|line| line.contains("kv, latency, us") && line.contains("+20.0 %")),
            "{slower:?}"
        );
        assert!(
            slower.iter().any(|line| line.contains("kv over pread")),
            "{slower:?}"
        );
        assert!(
            !slower.iter().any(|line| line.contains(": pread, latency")),
            "{slower:?}"
        );
    }

    #[test]
    fn counts_machines_and_points_are_compared_too() {
        let before = report(&[10.0]);
        let mut after = before.clone();
        after.environment.kernel = "other".to_owned();
        after.network = crate::demo::Network::Verbs;
        let reads = &mut after.points[0].sides[0].kv.as_mut().unwrap().reads_per_get;
        // A count has an interval over blocks too: within it nothing changed.
        (reads.median, reads.low) = (1.1, 1.0);
        let lines = compare(&before, &after).join("\n");
        assert!(
            lines.contains("later `other`")
                && lines.contains("later Verbs")
                && !lines.contains("READs a GET: "),
            "{lines}"
        );
        let reads = &mut after.points[0].sides[0].kv.as_mut().unwrap().reads_per_get;
        (reads.low, reads.high) = (1.1, 1.1);
        let lines = compare(&before, &after).join("\n");
        assert!(
            lines.contains("READs a GET: 1.000 (1.000 to 1.000), later 1.100"),
            "{lines}"
        );
        after.points[0].point.batch = 7;
        let lines = compare(&before, &after).join("\n");
        assert!(
            lines.contains("only in the later") && lines.contains("only in the earlier"),
            "{lines}"
        );
    }
}
