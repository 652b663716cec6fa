//! `bench lookup`, `bench put`, `bench restart` and `bench floor` over little data: that they run, check what they read, and report all
//! that they promise. What they measure here says nothing.

#[path = "../../campaigns/tests/common/mod.rs"]
mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::server;
use serde_json::Value;

/// A directory on a block device: in the one that `VKV_BENCH_DATA` names, else where cargo keeps what tests write.
fn scratch() -> tempfile::TempDir {
    let named = std::env::var_os("VKV_BENCH_DATA").map(PathBuf::from);
    tempfile::tempdir_in(named.unwrap_or_else(|| env!("CARGO_TARGET_TMPDIR").into())).unwrap()
}

/// Runs a measurement with its data in `folder`; the report, whose verdict is that of the program.
fn measured(folder: &Path, what: &str, args: &[&str]) -> Value {
    let json = folder.join("report.json");
    let data = folder.join("data");
    fs::create_dir(&data).unwrap();
    let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap());
    let output = Command::new(env!("CARGO_BIN_EXE_bench"))
        .args([what, "--data"])
        .arg(&data)
        .arg("--json")
        .arg(&json)
        .args(args)
        .env("PATH", path)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let report =
        fs::read(&json).unwrap_or_else(|_| panic!("bench {what} ended with {}: {said}", output.status));
    let report: Value = serde_json::from_slice(&report).unwrap();
    assert_eq!(
        report["reached"].as_bool(),
        Some(output.status.success()),
        "{said}"
    );
    assert!(report["environment"]["cpus"].as_u64() > Some(0));
    assert_eq!(
        fs::read_dir(&data).unwrap().count(),
        0,
        "it leaves something behind"
    );
    report
}

/// Each of these is a median within its interval.
fn intervals(report: &Value, names: &[&str]) {
    for name in names {
        let [low, median, high] = ["low", "median", "high"].map(|end| report[name][end].as_f64());
        assert!(
            low > Some(0.0) && low <= median && median <= high,
            "{name}: {}",
            report[name]
        );
    }
}

#[test]
fn lookups_are_measured() {
    // Of a socket's path not much may be long.
    let folder = tempfile::tempdir().unwrap();
    let args = [
        "--keys",
        "20000",
        "--small",
        "1000",
        "--blocks",
        "2",
        "--lookups",
        "500",
        "--seed",
        "3",
    ];
    let report = measured(folder.path(), "lookup", &args);
    assert_eq!(report["verified"], 2000);
    for (name, keys) in [("large", 20_000), ("small", 1000)] {
        let table = &report[name];
        assert_eq!(table["keys"], keys);
        let reads = table["reads_per_lookup"].as_f64().unwrap();
        assert!((1.9..=2.0).contains(&reads), "{name}: {reads}");
        assert_eq!(table["round_trips_per_lookup"], 1.0);
        assert_eq!(table["retries"], 0);
        assert!(table["index_per_key_bytes"].as_f64() > Some(0.0));
        intervals(table, &["one_ns", "many_ns"]);
    }
    let figures = [
        "load_ns",
        "load_bucket_ns",
        "one_over_loads",
        "many_over_loads",
        "one_over_bucket_loads",
        "many_over_bucket_loads",
        "one_over_small",
        "many_over_small",
    ];
    intervals(&report, &figures);
    assert!(report["memory_bytes"].as_u64() > Some(0));
}

/// With a `fio` that writes nothing and says a number.
#[test]
fn puts_are_measured() {
    server();
    let folder = scratch();
    let fio = folder.path().join("fio");
    let script = "#!/bin/sh\nfor arg; do case $arg in --filename=*) : > \"${arg#--filename=}\";; esac; done\n\
                  echo 'said before: {\"jobs\": [{\"write\": {\"bw_bytes\": 1000000}}]}'\n";
    fs::write(&fio, script).unwrap();
    fs::set_permissions(&fio, fs::Permissions::from_mode(0o755)).unwrap();
    let report = measured(folder.path(), "put", &["--blocks", "2", "--values", "40"]);
    assert_eq!(report["blocks"], 2);
    assert_eq!(report["verified"], 80);
    assert_eq!(report["fio_mb_s"]["median"], 1.0);
    let figures = [
        "put_mb_s",
        "plain_mb_s",
        "put_over_fio",
        "put_over_plain",
        "put_device_bytes_per_byte",
        "plain_device_bytes_per_byte",
        "device_bytes_over_plain",
    ];
    intervals(&report, &figures);
}

#[test]
fn restarts_are_measured() {
    server();
    let folder = scratch();
    let report = measured(folder.path(), "restart", &["--blocks", "2", "--records", "20000"]);
    assert_eq!((&report["blocks"], &report["verified"]), (&2.into(), &2.into()));
    // Each record is listed, in 40 bytes.
    assert!(report["footer_bytes"].as_u64() > Some(20_000 * 40));
    let figures = [
        "ready_s",
        "found_s",
        "cat_s",
        "map_s",
        "map_reserved_s",
        "ready_over_both",
        "found_over_both",
        "ready_over_both_reserved",
    ];
    intervals(&report, &figures);
}

#[test]
#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]
fn the_floor_is_measured_by_two_instruments() {
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("floor.json");
    let output = Command::new(env!("CARGO_BIN_EXE_bench"))
        .args([
            "floor",
            "--sizes",
            "4096,65536",
            "--blocks",
            "2",
            "--reads",
            "64",
            "--json",
        ])
        .arg(&json)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let report: Value = serde_json::from_slice(&fs::read(&json).unwrap()).unwrap();
    let rows = report["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 4, "latency and bandwidth of each length");
    for row in rows {
        intervals(row, &["perftest", "raw", "ratio"]);
    }
}
