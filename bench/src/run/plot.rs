//! Plots of a report, as SVG: latency against offered load, throughput against depth, batch, threads and size. Every
//! side that was measured is a line, so the floor is in each.

use plotters::prelude::*;

use super::definition::Lengths;
use super::job::Point;
use super::report::{PointReport, Report, SideReport};
use crate::Error;

const SIZE: (u32, u32) = (760, 400);
/// Lines have these colours, in turn: those of Okabe and Ito, which most eyes can tell apart.
const COLOURS: [RGBColor; 8] = [
    RGBColor(0, 0, 0),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(0, 158, 115),
    RGBColor(213, 94, 0),
    RGBColor(0, 114, 178),
    RGBColor(204, 121, 167),
    RGBColor(120, 120, 120),
];

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
                ("median latency, us", |side| side.percentiles_us.map(|all| all[0])),
                ("99 % latency, us", |side| side.percentiles_us.map(|all| all[2])),
            ],
            Self::Size => &[("MB/s", |side| side.mb_s.map(|rate| rate.median))],
            _ => &[("GETs/s", |side| side.gets_s.map(|rate| rate.median))],
        }
    }
}

/// All plots: title and SVG.
pub(crate) fn all(report: &Report) -> Result<Vec<(String, String)>, Error> {
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
        for (rest, points) in groups.into_iter().filter(|(_, points)| points.len() > 1) {
            for (label, figure) in axis.figures() {
                let lines = lines(axis, &points, *figure);
                if !lines.is_empty() {
                    let title = format!("{}: {label} against {}", rest.case, axis.label());
                    let svg = draw(axis, label, &lines).map_err(|error| format!("{title}: {error}"))?;
                    plots.push((title, svg));
                }
            }
        }
    }
    Ok(plots)
}

/// What is drawn of a side.
type Figure = fn(&SideReport) -> Option<f64>;

type Line = (String, Vec<(f64, f64)>);

fn lines(axis: Axis, points: &[&PointReport], figure: Figure) -> Vec<Line> {
    let mut lines: Vec<Line> = Vec::new();
    for point in points {
        for side in &point.sides {
            let (Some(x), Some(y)) = (axis.of(&point.point), figure(side)) else {
                continue;
            };
            let name = side.side.to_string();
            match lines.iter_mut().find(|(known, _)| *known == name) {
                Some((_, line)) => line.push((x, y)),
                None => lines.push((name, vec![(x, y)])),
            }
        }
    }
    for (_, line) in &mut lines {
        line.sort_by(|a, b| a.0.total_cmp(&b.0));
    }
    lines
}

fn draw(axis: Axis, label: &str, lines: &[Line]) -> Result<String, Box<dyn std::error::Error>> {
    let all = || lines.iter().flat_map(|(_, line)| line);
    let bounds = |of: fn(&(f64, f64)) -> f64| {
        let least = all().map(of).fold(f64::INFINITY, f64::min);
        let most = all().map(of).fold(0.0, f64::max);
        // Room on both sides; a logarithm has no zero.
        (least.max(1e-3) / 1.2)..(most.max(1e-3) * 1.2)
    };
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&root)
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(80)
            .build_cartesian_2d(bounds(|at| at.0).log_scale(), bounds(|at| at.1).log_scale())?;
        chart
            .configure_mesh()
            .x_desc(axis.label())
            .y_desc(label)
            .light_line_style(WHITE)
            .draw()?;
        for (number, (name, line)) in lines.iter().enumerate() {
            let colour = COLOURS[number % COLOURS.len()];
            let style = ShapeStyle::from(colour).stroke_width(if number == 0 { 3 } else { 1 });
            chart
                .draw_series(LineSeries::new(line.iter().copied(), style).point_size(3))?
                .label(name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
        }
        chart
            .configure_series_labels()
            .background_style(WHITE.mix(0.8))
            .position(SeriesLabelPosition::UpperLeft)
            .draw()?;
        root.present()?;
    }
    Ok(svg)
}
