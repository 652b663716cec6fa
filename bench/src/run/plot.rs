//! Plots of a report, as SVG. Of every report: ratios with their intervals, and the distribution of latency at each point;
//! of one with curves: latency against offered load, throughput against depth, batch, threads and size. Every side that was
//! measured is a line, so the floor is in each.

mod chart;
mod ratios;

use super::definition::Lengths;
use super::job::Point;
use super::report::{PointReport, Report, SideReport};
use crate::Error;
use crate::stats::Interval;
use chart::{Chart, Dot, Line, Scale};
pub(crate) use ratios::ratios;

/// What points of one plot differ by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Axis {
    Load,
    Depth,
    Batch,
    Threads,
    Size,
}

impl Axis {
    const ALL: [Self; 5] = [Self::Load, Self::Depth, Self::Batch, Self::Threads, Self::Size];

    fn of(self, point: &Point) -> Option<f64> {
        match self {
            Self::Load => point.rate,
            Self::Depth => Some(point.depth as f64),
            Self::Batch => Some(point.batch as f64),
            Self::Threads => Some(point.threads as f64),
            Self::Size => match point.lengths {
                Lengths::Fixed(len) => Some(len as f64),
                _ => None,
            },
        }
    }

    /// What is left of a point when it is taken away.
    fn rest(self, point: &Point) -> Point {
        let mut rest = point.clone();
        match self {
            Self::Load => rest.rate = None,
            Self::Depth => rest.depth = 0,
            Self::Batch => rest.batch = 0,
            Self::Threads => rest.threads = 0,
            // Lists that differ by length may have as many values as fill the same memory.
            Self::Size => (rest.lengths, rest.values) = (Lengths::Fixed(0), 0),
        }
        rest
    }

    fn label(self) -> &'static str {
        match self {
            Self::Load => "offered load, GETs/s",
            Self::Depth => "READs outstanding",
            Self::Batch => "GETs of a call",
            Self::Threads => "threads",
            Self::Size => "length of a value, bytes",
        }
    }

    /// What is drawn against it, and what that is called.
    fn figures(self) -> &'static [(&'static str, Figure)] {
        match self {
            Self::Load => &[
                ("median latency, us", |side| side.latency_us),
                ("99 % latency, us", |side| alone(side.percentiles_us?[2])),
                ("GETs/s", |side| side.gets_s),
            ],
            Self::Size => &[("MB/s", |side| side.mb_s), ("GETs/s", |side| side.gets_s)],
            _ => &[("GETs/s", |side| side.gets_s)],
        }
    }
}

/// A figure without an interval.
fn alone(median: f64) -> Option<Interval> {
    Some(Interval {
        median,
        low: median,
        high: median,
    })
}

/// All curves: title and SVG.
pub(crate) fn curves(report: &Report) -> Result<Vec<(String, String)>, Error> {
    let mut plots = Vec::new();
    for axis in Axis::ALL {
        let mut groups: Vec<(Point, Vec<&PointReport>)> = Vec::new();
        for point in &report.points {
            if axis.of(&point.point).is_none() {
                continue;
            }
            let rest = axis.rest(&point.point);
            match groups.iter_mut().find(|(known, _)| *known == rest) {
                Some((_, points)) => points.push(point),
                None => groups.push((rest, vec![point])),
            }
        }
        // What is the same for all of them is no axis.
        let differ = |points: &[&PointReport]| {
            let first = points.first().and_then(|point| axis.of(&point.point));
            points.iter().any(|point| axis.of(&point.point) != first)
        };
        for (rest, points) in groups.into_iter().filter(|(_, points)| differ(points)) {
            for (label, figure) in axis.figures() {
                let chart = Chart {
                    x: axis.label(),
                    y: label,
                    scale: Scale::Numbers,
                    lines: lines(axis, &points, *figure),
                };
                let title = format!("{}: {label} against {}", rest.case, axis.label());
                plots.extend(chart.draw()?.map(|svg| (title, svg)));
            }
        }
    }
    Ok(plots)
}

/// The distribution of latency of all sides at a point, if any side has one.
pub(crate) fn distribution(point: &PointReport) -> Result<Option<String>, Error> {
    let line = |side: &SideReport| Line {
        side: side.side,
        dots: side
            .distribution_us
            .iter()
            // The last one has nothing beyond it, and so no place where each step is a tenth of what is left.
            .filter(|[quantile, _]| *quantile < 1.0)
            .filter_map(|[quantile, us]| {
                Some(Dot {
                    x: 1.0 / (1.0 - quantile),
                    y: alone(*us)?,
                    sustained: side.sustains(&point.point),
                })
            })
            .collect(),
    };
    Chart {
        x: "of all calls (of GETs, in an open loop)",
        y: "latency up to, us",
        scale: Scale::Quantiles,
        lines: point.sides.iter().map(line).collect(),
    }
    .draw()
}

/// What is drawn of a side.
type Figure = fn(&SideReport) -> Option<Interval>;

fn lines(axis: Axis, points: &[&PointReport], figure: Figure) -> Vec<Line> {
    let mut lines: Vec<Line> = Vec::new();
    for point in points {
        for side in &point.sides {
            let (Some(x), Some(y)) = (axis.of(&point.point), figure(side)) else {
                continue;
            };
            let dot = Dot {
                x,
                y,
                sustained: side.sustains(&point.point),
            };
            match lines.iter_mut().find(|line| line.side == side.side) {
                Some(line) => line.dots.push(dot),
                None => lines.push(Line {
                    side: side.side,
                    dots: vec![dot],
                }),
            }
        }
    }
    for line in &mut lines {
        line.dots.sort_by(|a, b| a.x.total_cmp(&b.x));
    }
    lines
}
