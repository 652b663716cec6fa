//! A report as one page that needs nothing else: tables, and plots in place.

use std::fmt::Write;

use super::plot;
use super::report::{PointReport, Report, SideReport, shown};
use crate::Error;
use crate::stats::Interval;

const STYLE: &str = "body{font:15px/1.4 sans-serif;margin:2em auto;max-width:70em;padding:0 1em;color:#222}\
table{border-collapse:collapse;margin:.5em 0}td,th{border:1px solid #ccc;padding:.2em .6em;text-align:right}\
td:first-child,th:first-child,td.text{text-align:left}th{background:#f2f2f2}.bad{color:#b00;font-weight:bold}\
.doubt{color:#777}pre{background:#f6f6f6;padding:1em;overflow:auto}svg{max-width:100%;height:auto}";

const READING: &str = "<p class=\"doubt\">Bars are 95 % intervals of medians over blocks; what is grey decides nothing, for \
its interval is wider than 5 % or its blocks are too few. Ratios are those of neighbours in time, block by block; of GETs/s \
inside calls in a closed loop, not by the clock. Of latency less than 1 is better, of GETs/s more.</p>\n";

/// The page.
pub(crate) fn page(report: &Report) -> Result<String, Error> {
    let mut out = String::new();
    let title = escaped(&report.title);
    write!(
        out,
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title>\
         <style>{STYLE}</style></head><body>\n<h1>{title}</h1>\n"
    )?;
    head(&mut out, report)?;
    targets(&mut out, report)?;
    out.push_str(READING);
    for (title, svg) in plot::ratios(report).into_iter().chain(plot::curves(report)?) {
        write!(out, "<h2>{}</h2>\n{svg}\n", escaped(&title))?;
    }
    for point in &report.points {
        table(&mut out, point)?;
    }
    write!(
        out,
        "<h2>Definition</h2>\n<pre>{}</pre>\n</body></html>\n",
        escaped(&report.definition)
    )?;
    Ok(out)
}

fn head(out: &mut String, report: &Report) -> Result<(), Error> {
    let machine = &report.environment;
    let mtu = match machine.mtu_bytes {
        0 => String::new(),
        mtu => format!("{mtu} bytes"),
    };
    let rows = [
        ("ran on", report.label.clone()),
        ("blocks", report.blocks.to_string()),
        ("kernel", machine.kernel.clone()),
        ("processor", format!("{}, {} online", machine.cpu, machine.cpus)),
        ("load at the end", machine.load.to_string()),
        ("RDMA device", machine.device.clone()),
        ("active MTU", mtu),
        ("rdma-core", machine.rdma_core.clone()),
        ("commit", machine.commit.clone()),
    ];
    out.push_str("<table>");
    for (name, value) in rows {
        let value = if value.is_empty() { "none" } else { &value };
        write!(
            out,
            "<tr><td>{name}</td><td class=\"text\">{}</td></tr>",
            escaped(value)
        )?;
    }
    out.push_str("</table>\n");
    Ok(())
}

fn targets(out: &mut String, report: &Report) -> Result<(), Error> {
    if report.targets.is_empty() {
        return Ok(());
    }
    out.push_str("<h2>Targets</h2>\n<ul>");
    for verdict in &report.targets {
        let class = if verdict.is_missed() { " class=\"bad\"" } else { "" };
        write!(out, "<li{class}>{}</li>", escaped(&verdict.to_string()))?;
    }
    out.push_str("</ul>\n");
    Ok(())
}

fn table(out: &mut String, point: &PointReport) -> Result<(), Error> {
    write!(
        out,
        "<h2>{}: {}</h2>\n<table><tr><th>side</th><th>latency, us</th><th>99 %, us</th><th>GETs/s</th>\
         <th>GETs/s by the clock</th><th>MB/s</th><th>client CPU a GET, us</th><th>client memory, MB</th>\
         <th>calls a block</th><th>kv over it, {}</th><th>checked</th><th>wrong</th></tr>\n",
        escaped(&point.point.case),
        escaped(&point.point.describe()),
        point.metric(),
    )?;
    for side in &point.sides {
        row(out, point, side)?;
    }
    out.push_str("</table>\n");
    for side in &point.sides {
        if let Some(kv) = &side.kv {
            writeln!(out, "<p>{}: {}.</p>", side.side, escaped(&kv.sentences()))?;
        }
    }
    if let Some(svg) = plot::distribution(point)? {
        writeln!(out, "{svg}")?;
    }
    let settings: Vec<String> = point
        .sides
        .iter()
        .map(|side| format!("{}: {}", side.side, side.settings))
        .collect();
    writeln!(out, "<p class=\"doubt\">{}</p>", escaped(&settings.join("; ")))?;
    for (side, why) in &point.left_out {
        writeln!(
            out,
            "<p class=\"doubt\">{side} was not measured: {}</p>",
            escaped(why)
        )?;
    }
    Ok(())
}

fn row(out: &mut String, point: &PointReport, side: &SideReport) -> Result<(), Error> {
    let mut ratios = point.ratios.iter();
    let ratio = ratios.find(|ratio| ratio.over == side.side && ratio.metric == point.metric());
    let ratio = ratio.map_or_else(String::new, |ratio| {
        let doubt = &ratio.inconclusive;
        let doubt = if doubt.is_empty() {
            String::new()
        } else {
            format!("<br>inconclusive: {doubt}")
        };
        format!("{}<span class=\"doubt\">{doubt}</span>", shown(&ratio.ratio))
    });
    let interval = |interval: Option<&Interval>| interval.map_or_else(String::new, shown);
    let sustained = side.sustains(&point.point);
    let number = |digits: usize, of: Option<f64>| of.map_or_else(String::new, |of| format!("{of:.digits$}"));
    let cells = [
        interval(side.latency_us.as_ref()),
        number(1, side.percentiles_us.map(|all| all[2])),
        interval(side.gets_s.as_ref()) + if sustained { "" } else { "<br>load not sustained" },
        interval(side.wall_gets_s.as_ref()),
        number(1, side.mb_s.map(|rate| rate.median)),
        number(2, side.client_cpu_us_per_get.map(|cpu| cpu.median)),
        number(0, side.client_memory_bytes.map(|bytes| bytes as f64 / 1e6)),
        number(0, (side.calls > 0).then_some(side.calls as f64)),
        ratio,
        (side.checked + side.compared).to_string(),
    ];
    write!(
        out,
        "<tr><td title=\"{}\">{}</td>",
        escaped(&side.settings),
        side.side
    )?;
    for cell in cells {
        write!(out, "<td>{cell}</td>")?;
    }
    let class = if side.wrong > 0 { " class=\"bad\"" } else { "" };
    writeln!(out, "<td{class}>{}</td></tr>", side.wrong)?;
    Ok(())
}

/// Text as it may stand in a page.
pub(crate) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}
