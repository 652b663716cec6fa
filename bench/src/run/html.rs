//! A report as one page that needs nothing else: tables, and plots in place.

use std::fmt::Write;

use super::plot;
use super::report::{PointReport, Report, shown};
use crate::Error;

const STYLE: &str = "body{font:15px/1.4 sans-serif;margin:2em auto;max-width:70em;padding:0 1em;color:#222}\
table{border-collapse:collapse;margin:.5em 0}td,th{border:1px solid #ccc;padding:.2em .6em;text-align:right}\
td:first-child,th:first-child,td.text{text-align:left}th{background:#f2f2f2}.bad{color:#b00;font-weight:bold}\
.doubt{color:#777}pre{background:#f6f6f6;padding:1em;overflow:auto}svg{max-width:100%;height:auto}";

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
    for (title, svg) in plot::all(report)? {
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
        "<h2>{}: {}</h2>\n<table><tr><th>side</th><th>latency, us</th><th>99 %, us</th><th>GETs/s</th><th>MB/s</th>\
         <th>client CPU a GET, us</th><th>client memory, MB</th><th>kv over it</th><th>checked</th><th>wrong</th></tr>\n",
        escaped(&point.point.case),
        escaped(&point.point.describe())
    )?;
    for side in &point.sides {
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
        let optional = |interval: Option<&crate::stats::Interval>| interval.map_or_else(String::new, shown);
        writeln!(
            out,
            "<tr><td title=\"{}\">{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{ratio}</td>\
             <td>{}</td><td{}>{}</td></tr>",
            escaped(&side.settings),
            side.side,
            optional(side.latency_us.as_ref()),
            side.percentiles_us
                .map_or_else(String::new, |all| format!("{:.1}", all[2])),
            optional(side.gets_s.as_ref()),
            side.mb_s
                .map_or_else(String::new, |rate| format!("{:.1}", rate.median)),
            side.client_cpu_us_per_get
                .map_or_else(String::new, |cpu| format!("{:.2}", cpu.median)),
            side.client_memory_bytes
                .map_or_else(String::new, |bytes| format!("{:.0}", bytes as f64 / 1e6)),
            side.checked + side.compared,
            if side.wrong > 0 { " class=\"bad\"" } else { "" },
            side.wrong,
        )?;
    }
    out.push_str("</table>\n");
    if let Some(kv) = &point.sides[0].kv {
        writeln!(
            out,
            "<p>kv: {:.3} READs and {:.3} round trips a GET, {} retries; server: {:.3} s of CPU and {:.1} frames a \
             million GETs, {:.0} MB.{}</p>",
            kv.reads_per_get,
            kv.round_trips_per_get,
            kv.retries,
            kv.server_cpu_s_per_million,
            kv.server_frames_per_million,
            kv.server_memory_bytes as f64 / 1e6,
            kv.packets_per_get.map_or_else(String::new, |packets| format!(
                " Device: {packets:.2} packets a GET."
            ))
        )?;
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

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}
