//! Reports of blocks that were made up.

use super::*;

/// A report of two points that differ by depth; `kv` took these times, in turn, `pread` 5 us.
pub(crate) fn report(latencies: &[f64]) -> Report {
    let kv: Vec<f64> = latencies.iter().copied().cycle().take(12).collect();
    report_of(&kv, &[5.0; 12])
}

/// The same of these blocks of `kv` and of `pread`, us.
pub(crate) fn report_of(kv: &[f64], other: &[f64]) -> Report {
    let blocks = |latencies: &[f64], kv: bool| -> Vec<Block> {
        let block = |us: &f64| Block {
            gets: 100,
            calls: 100,
            bytes_per_get: 4096.0,
            gets_s: Some(1e6 / us),
            wall_gets_s: Some(0.9e6 / us),
            latency_us: Some(*us),
            histogram: vec![((us * 1000.0) as u64, 90), ((us * 2000.0) as u64, 10)],
            kv: kv.then(|| KvCost {
                reads_per_get: 1.0,
                coalesced_per_get: 0.25,
                device_counters: [("rnr".to_owned(), 2), ("sent_pkts".to_owned(), 100)].into(),
                packets_per_get: Some(4.0),
                ..KvCost::default()
            }),
            ..Block::default()
        };
        latencies.iter().map(block).collect()
    };
    let point = |depth: &str| {
        let text = format!(
            "title = \"t\"\nnetwork = \"local\"\n[[case]]\nname = \"a <case>\"\nvalue_bytes = 4096\ndepth = {depth}\n"
        );
        let definition = Definition::parse(&text, "d").unwrap();
        let sides = vec![
            (SideName::Kv, blocks(kv, true)),
            (SideName::Pread, blocks(other, false)),
        ];
        PointReport::new(&Measured::for_test(&definition, sides)).unwrap()
    };
    Report {
        title: "a \"title\"".to_owned(),
        label: "local".to_owned(),
        network: Network::Local,
        blocks: kv.len(),
        environment: Environment::read(),
        points: vec![point("1"), point("8")],
        targets: Vec::new(),
        definition: "its & text".to_owned(),
    }
}

#[test]
fn ratios_are_block_by_block_and_wide_ones_are_doubted() {
    let report = report(&[10.0]);
    let ratio = &report.points[0].ratios[0];
    assert_eq!(
        (ratio.over, ratio.metric, ratio.ratio.median),
        (SideName::Pread, Metric::Latency, 2.0)
    );
    assert!(ratio.inconclusive.is_empty());
    assert!(doubt(&ratio.ratio, 9).contains("fewer"));
    let wide = Interval {
        median: 1.0,
        low: 0.94,
        high: 1.01,
    };
    assert!(doubt(&wide, 12).contains("wider"));
    assert!(!report.points[0].sides.iter().any(|side| side.wrong > 0) && report.is_good());
}

#[test]
fn a_page_needs_nothing_else_and_has_a_plot_with_every_side() {
    let folder = tempfile::tempdir().unwrap();
    report(&[10.0]).write(folder.path(), "r").unwrap();
    let page = std::fs::read_to_string(folder.path().join("r.html")).unwrap();
    for reaching_out in ["src=", "href=", "@import", "url("] {
        assert!(!page.contains(reaching_out), "{reaching_out}");
    }
    // Nothing but the name of SVG itself looks like an address.
    assert_eq!(
        page.matches("http").count(),
        page.matches("http://www.w3.org/2000/svg").count()
    );
    // Ratios, the curve, and the distribution at each of two points.
    assert_eq!(page.matches("<svg").count(), 1 + 1 + 2);
    assert!(page.contains("a &lt;case&gt;: kv over each side") && page.contains("its &amp; text"));
    let curve = &page[page
        .find("a &lt;case&gt;: GETs/s against READs outstanding")
        .unwrap()..];
    let svg = &curve[curve.find("<svg").unwrap()..curve.find("</svg>").unwrap()];
    assert!(
        svg.contains("kv") && svg.contains("pread") && svg.matches("<polyline").count() >= 2,
        "{svg}"
    );
    for text in [
        "0.250 GETs joined",
        "counters that moved: rnr 24",
        "load not sustained",
    ] {
        assert_eq!(page.contains(text), text != "load not sustained", "{text}");
    }
}

/// A report of one point without a curve once had no plot at all.
#[test]
fn a_report_of_a_single_point_has_plots() {
    let mut single = report(&[10.0]);
    single.points.truncate(1);
    let page = html::page(&single).unwrap();
    assert_eq!(page.matches("<svg").count(), 2);
}

#[test]
fn a_load_that_is_not_got_is_marked() {
    let mut report = report(&[10.0]);
    // 100,000 GETs/s were got.
    for (point, rate) in report.points.iter_mut().zip([105_000.0, 120_000.0]) {
        point.point.rate = Some(rate);
    }
    let sustained = |at: usize| report.points[at].sides[0].sustains(&report.points[at].point);
    assert!(sustained(0) && !sustained(1));
    assert_eq!(
        html::page(&report)
            .unwrap()
            .matches("<br>load not sustained")
            .count(),
        1
    );
}

#[test]
fn the_distribution_is_kept() {
    let report = report(&[10.0]);
    let distribution = &report.points[0].sides[0].distribution_us;
    assert!(
        distribution
            .iter()
            .all(|[quantile, us]| (*us < 10.1) == (*quantile <= 0.9)),
        "{distribution:?}"
    );
    assert_eq!(distribution.last().unwrap()[0], 1.0);
}

#[test]
fn a_table_has_a_row_for_each_side_and_reads_back() {
    let folder = tempfile::tempdir().unwrap();
    let written = report(&[10.0]);
    written.write(folder.path(), "r").unwrap();
    let table = std::fs::read_to_string(folder.path().join("r.csv")).unwrap();
    let rows: Vec<&str> = table.lines().collect();
    assert_eq!(rows.len(), 1 + 4);
    // Commas inside quotes are none between columns.
    let columns = |row: &str| {
        row.split('"')
            .step_by(2)
            .map(|part| part.matches(',').count())
            .sum::<usize>()
    };
    assert!(rows.iter().all(|row| columns(row) == columns(rows[0])), "{table}");
    let read = Report::read(&folder.path().join("r.json")).unwrap();
    assert_eq!(
        serde_json::to_string(&read).unwrap(),
        serde_json::to_string(&written).unwrap()
    );
    std::fs::write(folder.path().join("r.json"), "{}").unwrap();
    let error = Report::read(&folder.path().join("r.json"))
        .unwrap_err()
        .to_string();
    assert!(error.contains("no report of bench run"), "{error}");
}

/// What is recorded is of the definitions as they are now, and `bench compare` can read it.
#[test]
fn recorded_results_are_read() {
    let own = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut read = 0;
    for entry in std::fs::read_dir(own.join("results")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let report = Report::read(&path).unwrap();
        let definition = own
            .join("defs")
            .join(path.with_extension("toml").file_name().unwrap());
        assert_eq!(
            report.definition,
            std::fs::read_to_string(definition).unwrap(),
            "{}",
            path.display()
        );
        read += 1;
    }
    assert!(read > 0);
}
