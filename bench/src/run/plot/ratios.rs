//! Ratios with their intervals, a row each, beside one another: which are above one, which below, and how sure that is.

use std::fmt::Write;

use crate::run::definition::Bound;
use crate::run::html::escaped;
use crate::run::report::{Report, shown};
use crate::stats::Interval;

const ROW: f64 = 20.0;
const TOP: f64 = 8.0;
const BOTTOM: f64 = 26.0;
const WIDTH: f64 = 1000.0;
/// From here to there ratios are drawn; their names stand before, their numbers behind.
const PLOT: (f64, f64) = (400.0, 800.0);
/// What a number at the axis takes.
const MARK_WIDTH: f64 = 30.0;
/// Names longer than this are cut.
const NAME_MAX: usize = 62;
/// Where the axis may have a number.
const MARKS: [f64; 15] = [
    0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 0.8, 1.0, 1.25, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0,
];

/// One row.
struct Row {
    name: String,
    ratio: Interval,
    /// Whether it decides something.
    clear: bool,
    limit: Option<f64>,
}

/// Plots of the targets and of each case: title and SVG.
pub(crate) fn ratios(report: &Report) -> Vec<(String, String)> {
    let targets = report.targets.iter().filter_map(|verdict| {
        let (Bound::AtMost(limit) | Bound::AtLeast(limit)) = verdict.bound;
        Some(Row {
            name: format!("{} [{}]", verdict.name, verdict.point),
            ratio: verdict.ratio?,
            clear: verdict.why.is_empty(),
            limit: Some(limit),
        })
    });
    let mut groups: Vec<(String, Vec<Row>)> =
        vec![("targets (their limits are red)".to_owned(), targets.collect())];
    for point in &report.points {
        let title = format!("{}: kv over each side", point.point.case);
        if groups.last().is_none_or(|(last, _)| *last != title) {
            groups.push((title, Vec::new()));
        }
        let counting = point.ratios.iter().filter(|ratio| ratio.metric == point.metric());
        let rows = counting.map(|ratio| Row {
            name: format!("{}, {}: {}", ratio.over, ratio.metric, point.point.describe()),
            ratio: ratio.ratio,
            clear: ratio.inconclusive.is_empty(),
            limit: None,
        });
        if let Some((_, known)) = groups.last_mut() {
            known.extend(rows);
        }
    }
    groups.retain(|(_, rows)| !rows.is_empty());
    groups
        .into_iter()
        .map(|(title, rows)| (title, draw(&rows)))
        .collect()
}

fn draw(rows: &[Row]) -> String {
    let ends = rows
        .iter()
        .flat_map(|row| [row.ratio.low, row.ratio.high, row.limit.unwrap_or(1.0)]);
    // One is in each, and room beside it.
    let (low, high) = ends.fold((0.9, 1.1), |(low, high): (f64, f64), end| {
        (low.min(end), high.max(end))
    });
    let (low, high) = ((low / 1.05).max(1e-3).ln(), (high * 1.05).max(1e-3).ln());
    let x = |ratio: f64| PLOT.0 + (ratio.max(1e-3).ln() - low) / (high - low) * (PLOT.1 - PLOT.0);
    let bottom = TOP + ROW * rows.len() as f64;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\"><rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#fff\"/>",
        height = bottom + BOTTOM
    );
    let mut line = |from: (f64, f64), to: (f64, f64), look: &str| {
        // Writing to a string does not fail.
        let _ = write!(
            out,
            "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" {look}/>",
            from.0, from.1, to.0, to.1
        );
    };
    let marks = || MARKS.iter().filter(|mark| (low..=high).contains(&mark.ln()));
    for mark in marks() {
        let look = if *mark == 1.0 {
            "stroke=\"#000\""
        } else {
            "stroke=\"#ddd\""
        };
        line((x(*mark), TOP), (x(*mark), bottom), look);
    }
    let middle = |number: usize| TOP + ROW * (number as f64 + 0.5);
    for (number, row) in rows.iter().enumerate() {
        let (y, colour) = (middle(number), colour(row));
        line(
            (x(row.ratio.low), y),
            (x(row.ratio.high), y),
            &format!("stroke=\"{colour}\" stroke-width=\"3\""),
        );
        if let Some(limit) = row.limit {
            line(
                (x(limit), y - ROW / 2.0),
                (x(limit), y + ROW / 2.0),
                "stroke=\"#c00\" stroke-width=\"2\"",
            );
        }
    }
    // One has its number, and what stands so near that theirs would run into it has none.
    let free = |mark: &&f64| **mark == 1.0 || (x(**mark) - x(1.0)).abs() > MARK_WIDTH;
    for mark in marks().filter(free) {
        text(
            &mut out,
            (x(*mark), bottom + 16.0),
            "middle",
            "#222",
            &mark.to_string(),
        );
    }
    for (number, row) in rows.iter().enumerate() {
        let (y, colour) = (middle(number), colour(row));
        let _ = write!(
            out,
            "<circle cx=\"{:.1}\" cy=\"{y:.1}\" r=\"4\" fill=\"{colour}\"/>",
            x(row.ratio.median)
        );
        let name: String = row.name.chars().take(NAME_MAX).collect();
        text(&mut out, (PLOT.0 - 10.0, y + 4.0), "end", "#222", &name);
        text(
            &mut out,
            (PLOT.1 + 10.0, y + 4.0),
            "start",
            colour,
            &shown(&row.ratio),
        );
    }
    out + "</svg>"
}

fn colour(row: &Row) -> &'static str {
    if row.clear { "#000" } else { "#999" }
}

fn text(out: &mut String, at: (f64, f64), anchor: &str, colour: &str, what: &str) {
    let _ = write!(
        out,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\" fill=\"{colour}\">{}</text>",
        at.0,
        at.1,
        escaped(what)
    );
}
