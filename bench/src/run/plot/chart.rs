//! One plot with lines: both axes logarithmic, a legend beside it, intervals as bars, a cross where a load was not sustained.

use plotters::coord::Shift;
use plotters::prelude::*;

use crate::Error;
use crate::run::definition::SideName;
use crate::stats::Interval;

const SIZE: (u32, u32) = (860, 400);
/// Of that, what the legend has.
const LEGEND: u32 = 150;
const LEGEND_STEP: i32 = 20;
const LEGEND_SAMPLE: i32 = 34;
/// Numbers at the horizontal axis, about: more would run into one another.
const LABELS: usize = 6;
/// More dots of a line than this are too many to see each.
const DOTS_MAX: usize = 20;

/// Colours of Okabe and Ito, which most eyes can tell apart.
const BLACK: RGBColor = RGBColor(0, 0, 0);
const ORANGE: RGBColor = RGBColor(230, 159, 0);
const SKY: RGBColor = RGBColor(86, 180, 233);
const GREEN: RGBColor = RGBColor(0, 158, 115);
const BLUE: RGBColor = RGBColor(0, 114, 178);
const VERMILLION: RGBColor = RGBColor(213, 94, 0);
const PURPLE: RGBColor = RGBColor(204, 121, 167);
const GREY: RGBColor = RGBColor(120, 120, 120);

/// A plot.
pub(super) struct Chart {
    pub(super) x: &'static str,
    pub(super) y: &'static str,
    pub(super) scale: Scale,
    pub(super) lines: Vec<Line>,
}

/// What the numbers of the horizontal axis are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scale {
    /// Themselves.
    Numbers,
    /// One over what is left above a quantile.
    Quantiles,
}

/// A side.
pub(super) struct Line {
    pub(super) side: SideName,
    pub(super) dots: Vec<Dot>,
}

/// A figure.
pub(super) struct Dot {
    pub(super) x: f64,
    pub(super) y: Interval,
    pub(super) sustained: bool,
}

/// How a side is drawn: the same in every plot, and no two alike.
pub(super) fn style(side: SideName) -> (ShapeStyle, bool) {
    let (colour, width, dashed) = match side {
        SideName::Kv => (BLACK, 3, false),
        SideName::KvTickets => (BLACK, 3, true),
        SideName::Perftest => (VERMILLION, 2, false),
        SideName::Replay => (BLUE, 2, false),
        SideName::Ucx => (VERMILLION, 2, true),
        SideName::Memcpy => (GREEN, 2, false),
        SideName::Crc => (GREEN, 2, true),
        SideName::Pread => (SKY, 2, false),
        SideName::Fio => (SKY, 2, true),
        SideName::Lmdb => (ORANGE, 2, false),
        SideName::LmdbCrc => (ORANGE, 2, true),
        SideName::Redis => (PURPLE, 2, false),
        SideName::Memcached => (GREY, 2, true),
    };
    (ShapeStyle::from(colour).stroke_width(width), dashed)
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Outcome = Result<(), Box<dyn std::error::Error>>;

impl Chart {
    /// It as SVG; none where there is nothing to draw.
    pub(super) fn draw(mut self) -> Result<Option<String>, Error> {
        self.lines.retain(|line| !line.dots.is_empty());
        if self.lines.is_empty() {
            return Ok(None);
        }
        let mut svg = String::new();
        {
            let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
            root.fill(&WHITE)?;
            let (plot, legend) = root.split_horizontally(SIZE.0 - LEGEND);
            self.plot(&plot)?;
            self.legend(&legend)?;
            root.present()?;
        }
        Ok(Some(svg))
    }

    fn bounds(&self, of: impl Fn(&Dot) -> [f64; 2]) -> std::ops::Range<f64> {
        let all = || self.lines.iter().flat_map(|line| &line.dots).flat_map(&of);
        let (least, most) = (all().fold(f64::INFINITY, f64::min), all().fold(0.0, f64::max));
        // Room on both sides; a logarithm has no zero.
        (least.max(1e-3) / 1.2)..(most.max(1e-3) * 1.2)
    }

    fn plot(&self, area: &Area<'_>) -> Outcome {
        let mut chart = ChartBuilder::on(area)
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(80)
            .build_cartesian_2d(
                self.bounds(|dot| [dot.x, dot.x]).log_scale(),
                self.bounds(|dot| [dot.y.low, dot.y.high]).log_scale(),
            )?;
        let scale = self.scale;
        chart
            .configure_mesh()
            .x_desc(self.x)
            .y_desc(self.y)
            .x_labels(LABELS)
            .x_label_formatter(&|x| label(scale, *x))
            .y_label_formatter(&|y| label(Scale::Numbers, *y))
            .light_line_style(WHITE)
            .draw()?;
        for line in &self.lines {
            let (style, dashed) = style(line.side);
            let middle = line.dots.iter().map(|dot| (dot.x, dot.y.median));
            if dashed {
                chart.draw_series(DashedLineSeries::new(middle, 7, 4, style))?;
            } else {
                chart.draw_series(LineSeries::new(middle, style))?;
            }
            let thin = style.stroke_width(1);
            let wide = line.dots.iter().filter(|dot| dot.y.low < dot.y.high);
            chart.draw_series(
                wide.map(|dot| PathElement::new([(dot.x, dot.y.low), (dot.x, dot.y.high)], thin)),
            )?;
            if line.dots.len() <= DOTS_MAX {
                let good = line.dots.iter().filter(|dot| dot.sustained);
                chart.draw_series(good.map(|dot| Circle::new((dot.x, dot.y.median), 3, style.filled())))?;
                let not = line.dots.iter().filter(|dot| !dot.sustained);
                let cross = style.stroke_width(2);
                chart.draw_series(not.map(|dot| Cross::new((dot.x, dot.y.median), 6, cross)))?;
            }
        }
        Ok(())
    }

    fn legend(&self, area: &Area<'_>) -> Outcome {
        let font = ("sans-serif", 13).into_font();
        let mut y = LEGEND_STEP;
        for line in &self.lines {
            let (style, dashed) = style(line.side);
            let ends = [(4, y), (4 + LEGEND_SAMPLE, y)];
            if dashed {
                let half = LEGEND_SAMPLE / 2;
                area.draw(&PathElement::new([ends[0], (half - 2, y)], style))?;
                area.draw(&PathElement::new([(half + 6, y), ends[1]], style))?;
            } else {
                area.draw(&PathElement::new(ends, style))?;
            }
            let all = line.dots.iter().all(|dot| dot.sustained);
            let name = format!("{}{}", line.side, if all { "" } else { " (x)" });
            area.draw(&Text::new(name, (LEGEND_SAMPLE + 10, y - 6), font.clone()))?;
            y += LEGEND_STEP;
        }
        let not = self
            .lines
            .iter()
            .flat_map(|line| &line.dots)
            .any(|dot| !dot.sustained);
        if not {
            area.draw(&Text::new("x: load not sustained", (4, y), font))?;
        }
        Ok(())
    }
}

/// A number at an axis.
fn label(scale: Scale, value: f64) -> String {
    match scale {
        // 1, 10 and 100 are 0, 90 and 99 %.
        Scale::Quantiles => {
            let percent = 100.0 * (1.0 - 1.0 / value);
            let digits = (value.log10().round() as usize).saturating_sub(2);
            format!("{percent:.digits$} %")
        }
        Scale::Numbers if value >= 1e6 => format!("{}M", value / 1e6),
        Scale::Numbers if value >= 1e3 => format!("{}k", value / 1e3),
        Scale::Numbers => format!("{}", (value * 1e3).round() / 1e3),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_sides_look_alike() {
        use SideName::{
            Crc, Fio, Kv, KvTickets, Lmdb, LmdbCrc, Memcached, Memcpy, Perftest, Pread, Redis, Replay, Ucx,
        };
        let all = [
            Kv, KvTickets, Perftest, Replay, Ucx, Memcpy, Crc, Pread, Lmdb, LmdbCrc, Redis, Memcached, Fio,
        ];
        let looks: std::collections::BTreeSet<String> =
            all.iter().map(|side| format!("{:?}", style(*side))).collect();
        assert_eq!(looks.len(), all.len());
    }

    #[test]
    fn axes_have_labels_that_are_read() {
        assert_eq!(
            [1.0, 10.0, 100.0, 1000.0].map(|x| label(Scale::Quantiles, x)),
            ["0 %", "90 %", "99 %", "99.9 %"]
        );
        assert_eq!(
            [0.2, 50.0, 20_000.0, 3e6].map(|x| label(Scale::Numbers, x)),
            ["0.2", "50", "20k", "3M"]
        );
    }

    #[test]
    fn the_legend_stands_beside_the_plot_and_what_is_not_sustained_is_crossed() {
        let dot = |x: f64, sustained| Dot {
            x,
            y: Interval {
                median: 10.0 * x,
                low: 9.0 * x,
                high: 12.0 * x,
            },
            sustained,
        };
        let chart = |sustained| Chart {
            x: "load",
            y: "us",
            scale: Scale::Numbers,
            lines: vec![Line {
                side: SideName::KvTickets,
                dots: vec![dot(1.0, true), dot(2.0, sustained)],
            }],
        };
        let (good, bad) = (
            chart(true).draw().unwrap().unwrap(),
            chart(false).draw().unwrap().unwrap(),
        );
        assert!(!good.contains("not sustained") && bad.contains("not sustained"));
        assert_eq!(
            (good.matches("<circle").count(), bad.matches("<circle").count()),
            (2, 1)
        );
        let name = good.find("kv+tickets").unwrap();
        let text = &good[good[..name].rfind("<text").unwrap()..name];
        let x: u32 = text
            .split("x=\"")
            .nth(1)
            .unwrap()
            .split('"')
            .next()
            .unwrap()
            .parse()
            .unwrap();
        assert!(x >= SIZE.0 - LEGEND, "{text}");
        let none = Chart {
            lines: Vec::new(),
            ..chart(true)
        };
        assert!(none.draw().unwrap().is_none());
    }
}
