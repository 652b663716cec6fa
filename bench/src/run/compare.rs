//! `bench compare`: what two runs of a definition say differently, beyond what blocks of one run differ by.

use std::path::PathBuf;

use super::definition::Metric;
use super::report::{PointReport, Report, SideReport, shown};
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

/// All differences, each a line; the last line counts them.
pub(crate) fn compare(before: &Report, after: &Report) -> Vec<String> {
    let mut lines = machines(before, after);
    let (mut compared, mut changed) = (0, 0);
    for later in &after.points {
        let place = format!("{} [{}]", later.point.case, later.point.describe());
        let Some(earlier) = before.points.iter().find(|earlier| earlier.point == later.point) else {
            lines.push(format!("{place}: only in the later report"));
            continue;
        };
        let mut found = differences(earlier, later);
        compared += found.len();
        found.retain(|(_, differs)| *differs);
        changed += found.len();
        lines.extend(found.into_iter().map(|(line, _)| format!("{place}: {line}")));
    }
    for earlier in &before.points {
        if !after.points.iter().any(|later| later.point == earlier.point) {
            let (case, point) = (&earlier.point.case, earlier.point.describe());
            lines.push(format!("{case} [{point}]: only in the earlier report"));
        }
    }
    lines.push(format!("{changed} of {compared} figures changed beyond noise"));
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

/// Every figure that both have, and whether it differs.
fn differences(before: &PointReport, after: &PointReport) -> Vec<(String, bool)> {
    let mut all = Vec::new();
    for later in &after.ratios {
        let same =
            |earlier: &&super::report::Ratio| earlier.over == later.over && earlier.metric == later.metric;
        if let Some(earlier) = before.ratios.iter().find(same) {
            let what = match later.metric {
                Metric::Latency => "latency",
                Metric::Throughput => "GETs/s",
            };
            all.push(intervals(
                &format!("kv over {}, {what}", later.over),
                &earlier.ratio,
                &later.ratio,
            ));
        }
    }
    for later in &after.sides {
        if let Some(earlier) = before.sides.iter().find(|earlier| earlier.side == later.side) {
            side(earlier, later, &mut all);
        }
    }
    all
}

fn side(before: &SideReport, after: &SideReport, all: &mut Vec<(String, bool)>) {
    let name = after.side;
    for (what, earlier, later) in [
        ("latency, us", before.latency_us, after.latency_us),
        ("GETs/s", before.gets_s, after.gets_s),
        (
            "client CPU a GET, us",
            before.client_cpu_us_per_get,
            after.client_cpu_us_per_get,
        ),
    ] {
        if let (Some(earlier), Some(later)) = (earlier, later) {
            all.push(intervals(&format!("{name}, {what}"), &earlier, &later));
        }
    }
    if let (Some(earlier), Some(later)) = (&before.kv, &after.kv) {
        for (what, earlier, later) in [
            ("READs a GET", earlier.reads_per_get, later.reads_per_get),
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
            let differs = (later - earlier).abs() > COUNT_MIN * earlier.abs().max(later.abs());
            all.push((format!("{name}, {what}: {earlier:.3}, later {later:.3}"), differs));
        }
    }
}

/// Two medians differ where their 95 % intervals do not meet.
fn intervals(what: &str, before: &Interval, after: &Interval) -> (String, bool) {
    let differs = after.low > before.high || after.high < before.low;
    let change = (after.median / before.median - 1.0) * 100.0;
    let line = format!(
        "{what}: {}, later {}: {change:+.1} %",
        shown(before),
        shown(after)
    );
    (line, differs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::report::tests::report;

    #[test]
    fn only_what_changed_beyond_noise_is_named() {
        let before = report(&[10.0, 10.1, 9.9]);
        let same = compare(&before, &report(&[10.05, 9.95, 10.1]));
        assert_eq!(same.len(), 1, "{same:?}");
        assert!(same[0].starts_with("0 of "), "{same:?}");
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
        after.points[0].sides[0].kv.as_mut().unwrap().reads_per_get += 0.1;
        let lines = compare(&before, &after).join("\n");
        assert!(
            lines.contains("later `other`") && lines.contains("READs a GET: 1.000, later 1.100"),
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
