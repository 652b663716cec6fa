//! A report as a table: a row for each side at each point.

use super::definition::Metric;
use super::report::{KvReport, Report, SideReport};
use crate::stats::Interval;

const HEAD: &str = "case,point,side,latency_us,latency_low_us,latency_high_us,p50_us,p90_us,p99_us,p999_us,max_us,\
gets_s,gets_low_s,gets_high_s,wall_gets_s,sustained,mb_s,client_cpu_us_per_get,client_memory_bytes,reads_per_get,\
split_reads_per_get,coalesced_per_get,round_trips_per_get,\
packets_per_get,server_cpu_s_per_million,server_frames_per_million,server_memory_bytes,checked,compared,wrong,\
kv_over_it_latency,kv_over_it_latency_low,kv_over_it_latency_high,kv_over_it_gets_s,kv_over_it_gets_low_s,\
kv_over_it_gets_high_s,settings";

/// The whole table.
pub(crate) fn table(report: &Report) -> String {
    let mut out = format!("{HEAD}\n");
    for point in &report.points {
        for side in &point.sides {
            let mut row = vec![
                quoted(&point.point.case),
                quoted(&point.point.describe()),
                side.side.to_string(),
            ];
            figures(side, side.sustains(&point.point), &mut row);
            for metric in [Metric::Latency, Metric::Throughput] {
                let mut ratios = point.ratios.iter();
                let ratio = ratios.find(|ratio| ratio.over == side.side && ratio.metric == metric);
                row.extend(three(ratio.map(|ratio| &ratio.ratio)));
            }
            row.push(quoted(&side.settings));
            out += &row.join(",");
            out.push('\n');
        }
    }
    out
}

fn figures(side: &SideReport, sustained: bool, row: &mut Vec<String>) {
    row.extend(three(side.latency_us.as_ref()));
    match side.percentiles_us {
        Some(all) => row.extend(all.map(|us| us.to_string())),
        None => row.extend([const { String::new() }; 5]),
    }
    row.extend(three(side.gets_s.as_ref()));
    row.push(optional(side.wall_gets_s.map(|gets| gets.median)));
    row.push(sustained.to_string());
    row.push(optional(side.mb_s.map(|mb| mb.median)));
    row.push(optional(side.client_cpu_us_per_get.map(|cpu| cpu.median)));
    row.push(optional(side.client_memory_bytes));
    let kv = side.kv.as_ref();
    let counts: [fn(&KvReport) -> Option<Interval>; 7] = [
        |kv| Some(kv.reads_per_get),
        |kv| Some(kv.split_reads_per_get),
        |kv| Some(kv.coalesced_per_get),
        |kv| Some(kv.round_trips_per_get),
        |kv| kv.packets_per_get,
        |kv| Some(kv.server_cpu_s_per_million),
        |kv| Some(kv.server_frames_per_million),
    ];
    for count in counts {
        row.push(optional(kv.and_then(count).map(|count| count.median)));
    }
    row.push(optional(kv.map(|kv| kv.server_memory_bytes)));
    row.extend([side.checked, side.compared, side.wrong].map(|count| count.to_string()));
}

fn optional<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(String::new, |value| value.to_string())
}

fn three(interval: Option<&Interval>) -> [String; 3] {
    [
        optional(interval.map(|interval| interval.median)),
        optional(interval.map(|interval| interval.low)),
        optional(interval.map(|interval| interval.high)),
    ]
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('"', "\"\""))
}
