//! `bench run` in smoke form: every definition that is shipped runs, with few values, and every value is right. It shows
//! that the harness works, and measures nothing.

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use common::{BENCH, server};
use serde_json::Value;

fn definitions(start: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("defs");
    let paths = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let named = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().contains(start);
    let found: Vec<PathBuf> = paths.filter(named).collect();
    assert!(!found.is_empty());
    found
}

fn bench(arguments: &[&str], folder: &Path) -> Output {
    // Real files: this package's own.
    let files = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/run");
    Command::new(BENCH)
        .args(arguments)
        .env("VKV_FILES", files)
        .env("TMPDIR", folder)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// Runs a definition in smoke form; its report.
fn smoke(definition: &Path, blocks: &str) -> Value {
    // It lies beside `bench`, where `bench run` looks for it.
    server();
    let folder = tempfile::tempdir().unwrap();
    let data = std::env::var_os("VKV_NVME").map_or_else(|| folder.path().to_owned(), PathBuf::from);
    let (path, data, out) = (
        definition.to_str().unwrap(),
        data.to_str().unwrap(),
        folder.path().join("out"),
    );
    let output = bench(
        &[
            "run",
            path,
            "--smoke",
            "--blocks",
            blocks,
            "--data",
            data,
            "--out",
            out.to_str().unwrap(),
        ],
        folder.path(),
    );
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{path}: {said}");
    let name = definition.file_stem().unwrap().to_str().unwrap();
    for ending in ["csv", "html"] {
        assert!(out.join(format!("{name}.{ending}")).metadata().unwrap().len() > 100);
    }
    serde_json::from_slice(&std::fs::read(out.join(format!("{name}.json"))).unwrap()).unwrap()
}

/// What holds of every smoke run: sides were measured, and their values compared.
fn holds(report: &Value) {
    let points = report["points"].as_array().unwrap();
    assert!(!points.is_empty());
    for point in points {
        let sides = point["sides"].as_array().unwrap();
        assert_eq!(sides[0]["side"], "kv");
        let blocks = report["blocks"].as_u64().unwrap();
        let gets = blocks * point["point"]["gets"].as_u64().unwrap();
        assert!(sides.len() > 1, "nothing beside kv: {}", point["left_out"]);
        for side in sides {
            let name = side["side"].as_str().unwrap();
            assert_eq!(side["wrong"], 0, "{name}");
            assert_eq!(
                side["by_block"].as_array().unwrap().len() as u64,
                blocks,
                "{name}"
            );
            if !["perftest", "ucx", "fio"].contains(&name) {
                assert!(
                    side["checked"].as_u64() >= Some(gets) && side["compared"].as_u64() > Some(0),
                    "{name}"
                );
            }
        }
        assert!(point["ratios"].as_array().unwrap().len() >= sides.len() - 1);
        let reads = sides[0]["kv"]["reads_per_get"].as_f64().unwrap();
        // Neighbours share one; a lookup has two buckets and the record; a checked value of 1 MiB has four pieces.
        assert!((0.1..=4.0).contains(&reads), "{reads}");
    }
    for target in report["targets"].as_array().unwrap() {
        assert_eq!(target["outcome"], "inconclusive", "so few blocks decide nothing");
        assert!(target["ratio"].is_object(), "{target}");
    }
}

#[test]
fn definitions_over_local_run() {
    for definition in definitions("local") {
        holds(&smoke(&definition, "2"));
    }
}

/// The definitions over verbs without a device, and so with all of their cases: other sides stand in for those that need
/// one.
#[test]
fn definitions_over_verbs_run_over_local_too() {
    let folder = tempfile::tempdir().unwrap();
    for definition in definitions("verbs") {
        let text = std::fs::read_to_string(&definition).unwrap();
        let changes = [
            ("\"verbs\"", "\"local\""),
            ("\"perftest\"", "\"pread\""),
            ("\"replay\"", "\"memcpy\""),
        ];
        let text = changes.iter().fold(text, |text, (from, to)| {
            // A case may do without perftest.
            assert!(text.contains(from) || *from == "\"perftest\"");
            text.replace(from, to)
        });
        let path = folder.path().join(definition.file_name().unwrap());
        std::fs::write(&path, text).unwrap();
        holds(&smoke(&path, "1"));
    }
}

/// What takes least of a definition: the first point of its first case, with the targets of that case.
fn least(definition: &Path) -> String {
    let text = std::fs::read_to_string(definition).unwrap();
    let mut table: toml::Table = text.parse().unwrap();
    let cases = table["case"].as_array_mut().unwrap();
    cases.truncate(1);
    let name = cases[0]["name"].clone();
    for (key, value) in cases[0].as_table_mut().unwrap().iter_mut() {
        if let (true, Some(list)) = (key != "beside", value.as_array_mut()) {
            list.truncate(1);
        }
    }
    if let Some(targets) = table.get_mut("target") {
        targets
            .as_array_mut()
            .unwrap()
            .retain(|target| target["case"] == name);
    }
    toml::to_string(&table).unwrap()
}

/// On an emulated processor each process takes a second: one block of one point, with all of its sides.
#[test]
#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]
fn definitions_over_verbs_run() {
    let folder = tempfile::tempdir().unwrap();
    let short = std::env::var_os("VKV_TEST_SHORT").is_some();
    for definition in definitions(if short { "verbs-latency" } else { "verbs" }) {
        let path = folder.path().join(definition.file_name().unwrap());
        std::fs::write(&path, least(&definition)).unwrap();
        let report = smoke(&path, "1");
        holds(&report);
        assert_eq!(report["environment"]["mtu_bytes"].as_u64().unwrap() % 256, 0);
    }
}

#[test]
fn mixed_sizes_real_files_and_a_cold_start_run() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("all.toml");
    let text = r#"
title = "all"
network = "local"
[[case]]
name = "mixed"
value_bytes = { mix = [100, 70000] }
order = "zipf"
batch = 8
threads = 2
queue_pairs = 2
beside = ["memcpy", "crc", "pread", "lmdb"]
[[case]]
name = "files"
value_bytes = { files = "$VKV_FILES" }
locators = "live"
batch = 16
beside = ["lmdb+crc"]
[[case]]
name = "cold"
value_bytes = 5000
start = "cold"
batch = 4
beside = ["pread"]
[[case]]
name = "unchecked"
value_bytes = 64
check = false
loop = "open"
rate = 10000
beside = ["memcpy"]
"#;
    std::fs::write(&path, text).unwrap();
    let mut report = smoke(&path, "2");
    let points = report["points"].as_array_mut().unwrap();
    // Not where on this machine they lie.
    assert_eq!(points[1]["point"]["lengths"]["files"], "run");
    for side in points[3]["sides"].as_array_mut().unwrap() {
        assert_eq!(side["checked"], 0, "it was told not to");
        side["checked"] = 128.into();
    }
    for side in points[2]["sides"].as_array_mut().unwrap() {
        // A value is cold once: 24 of them, in two blocks.
        assert_eq!(side["checked"], 48);
        side["checked"] = 128.into();
    }
    holds(&report);
}

#[test]
fn a_definition_that_cannot_be_is_refused_before_anything_starts() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bad.toml");
    std::fs::write(
        &path,
        "title = \"t\"\nnetwork = \"local\"\n[[case]]\nname = \"c\"\nvalue_bytes = 0\n",
    )
    .unwrap();
    let output = bench(&["run", path.to_str().unwrap()], folder.path());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success());
    assert!(
        said.contains("bad.toml") && said.contains("line 5") && said.contains("give 1 to"),
        "{said}"
    );
}

#[test]
fn the_example_is_a_definition_and_reports_compare() {
    server();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("example.toml");
    let output = bench(&["run", "--example"], folder.path());
    std::fs::write(&path, &output.stdout).unwrap();
    let mut reports = Vec::new();
    for name in ["first", "second"] {
        let out = folder.path().join(name);
        let arguments = [
            "run",
            path.to_str().unwrap(),
            "--smoke",
            "--out",
            out.to_str().unwrap(),
        ];
        let output = bench(&arguments, folder.path());
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        reports.push(out.join("example.json"));
    }
    let output = bench(
        &[
            "compare",
            reports[0].to_str().unwrap(),
            reports[1].to_str().unwrap(),
        ],
        folder.path(),
    );
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("figures changed beyond noise"),
        "{said}"
    );
}
