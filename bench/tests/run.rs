//! `bench run` in smoke form: every definition that is shipped runs, with few values, and every value is right. It shows
//! that the harness works, and measures nothing.

#[path = "../../campaigns/tests/common/mod.rs"]
mod common;

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::server;
use rustix::process::{Pid, Signal, kill_process};
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

fn bench(arguments: &[&str], folder: &Path, variables: &[(&str, &str)]) -> Output {
    // Real files: this package's own.
    let files = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/run");
    Command::new(env!("CARGO_BIN_EXE_bench"))
        .args(arguments)
        .env("VKV_FILES", files)
        .env("TMPDIR", folder)
        .envs(variables.iter().copied())
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// Runs a definition in smoke form; its report.
fn smoke(definition: &Path, blocks: &str) -> Value {
    smoke_with(definition, blocks, &[])
}

/// The same, with variables of its environment.
fn smoke_with(definition: &Path, blocks: &str, variables: &[(&str, &str)]) -> Value {
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
        variables,
    );
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{path}: {said}");
    let name = definition.file_stem().unwrap().to_str().unwrap();
    for ending in ["csv", "html"] {
        assert!(out.join(format!("{name}.{ending}")).metadata().unwrap().len() > 100);
    }
    serde_json::from_slice(&std::fs::read(out.join(format!("{name}.json"))).unwrap()).unwrap()
}

/// Sides that measure by themselves, and check no values.
const BY_THEMSELVES: [&str; 3] = ["perftest", "ucx", "fio"];

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// A median within its interval.
fn interval(value: &Value) -> f64 {
    let [low, median, high] = ["low", "median", "high"].map(|end| number(&value[end]));
    assert!(low <= median && median <= high, "{value}");
    median
}

/// What holds of every smoke run: sides were measured, and their values compared.
fn holds(report: &Value) {
    let points = report["points"].as_array().unwrap();
    assert!(!points.is_empty());
    let verbs = report["network"] == "verbs";
    environment_holds(&report["environment"], verbs);
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
            if !BY_THEMSELVES.contains(&name) {
                // While they are timed, unless the definition tells otherwise; and always in the pass of their own.
                let while_timed = if point["point"]["check"] == true { gets } else { 0 };
                assert!(side["checked"].as_u64() >= Some(while_timed), "{name}");
                assert!(side["compared"].as_u64() > Some(0), "{name}");
                side_holds(side, point["point"]["start"] == "cold");
            }
            if name.starts_with("kv") {
                kv_holds(&side["kv"], verbs);
            }
        }
        assert!(point["ratios"].as_array().unwrap().len() >= sides.len() - 1);
    }
    for target in report["targets"].as_array().unwrap() {
        assert_eq!(target["outcome"], "inconclusive", "so few blocks decide nothing");
        assert!(target["ratio"].is_object(), "{target}");
    }
}

fn environment_holds(environment: &Value, verbs: bool) {
    for text in ["kernel", "cpu"] {
        assert_ne!(environment[text], "", "{text}");
    }
    assert!(environment["cpus"].as_u64() > Some(0));
    let commit = environment["commit"].as_str().unwrap();
    let git = Command::new("git")
        .args(["-C", env!("CARGO_MANIFEST_DIR"), "rev-parse", "HEAD"])
        .output();
    if git.is_ok_and(|output| output.status.success()) {
        let hash = commit.strip_suffix("-dirty").unwrap_or(commit);
        assert!(
            hash.len() >= 7 && hash.chars().all(|char| char.is_ascii_hexdigit()),
            "{commit:?}"
        );
    }
    let mtu = environment["mtu_bytes"].as_u64().unwrap();
    if verbs {
        assert_ne!(environment["device"], "");
        assert!((256..=4096).contains(&mtu) && mtu.is_power_of_two(), "{mtu}");
    } else {
        assert_eq!((&environment["device"], mtu), (&"".into(), 0), "none was used");
    }
}

/// Latencies, rates, time on a processor and memory.
fn side_holds(side: &Value, cold: bool) {
    let percentiles: Vec<f64> = side["percentiles_us"]
        .as_array()
        .unwrap()
        .iter()
        .map(number)
        .collect();
    assert!(
        percentiles.len() == 5 && percentiles[0] > 0.0 && percentiles.is_sorted(),
        "{percentiles:?}"
    );
    let distribution: Vec<(f64, f64)> = side["distribution_us"]
        .as_array()
        .unwrap()
        .iter()
        .map(|at| (number(&at[0]), number(&at[1])))
        .collect();
    assert!(
        distribution.len() > 3 && distribution.is_sorted(),
        "{distribution:?}"
    );
    assert_eq!(distribution.last().unwrap().0, 1.0);
    assert_eq!(side["latency_us"].is_object(), !cold);
    assert!(interval(&side["gets_s"]) > 0.0 && interval(&side["wall_gets_s"]) > 0.0);
    assert!(interval(&side["client_cpu_us_per_get"]) > 0.0);
    assert!(side["client_memory_bytes"].as_u64() > Some(1 << 20));
    assert!(side["calls"].as_u64() > Some(0));
}

/// What GETs cost: each count is there, and none is below zero.
fn kv_holds(kv: &Value, verbs: bool) {
    let reads = interval(&kv["reads_per_get"]);
    // Neighbours share one; a lookup has two buckets and the record; a checked value of 1 MiB has four pieces.
    assert!((0.1..=4.0).contains(&reads), "{reads}");
    // Each GET has a READ of its own, or came by that of the one before it.
    assert!(
        reads - interval(&kv["split_reads_per_get"]) + interval(&kv["coalesced_per_get"]) > 0.99,
        "{kv}"
    );
    assert!(interval(&kv["round_trips_per_get"]) > 0.0);
    for name in ["server_cpu_s_per_million", "server_frames_per_million"] {
        interval(&kv[name]);
        assert!(number(&kv[name]["low"]) >= 0.0, "{name}: {}", kv[name]);
    }
    assert!(kv["server_memory_bytes"].as_u64() > Some(1 << 20));
    let counters = kv["device_counters"].as_object().unwrap();
    if verbs {
        assert!(
            interval(&kv["packets_per_get"]) >= 1.0 && !counters.is_empty(),
            "{kv}"
        );
    } else {
        assert!(kv["packets_per_get"].is_null() && counters.is_empty(), "{kv}");
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
            // What is beside a case may be all that there is.
            assert!(text.contains(from) || *from != "\"verbs\"");
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
    for definition in definitions("verbs") {
        let path = folder.path().join(definition.file_name().unwrap());
        std::fs::write(&path, least(&definition)).unwrap();
        holds(&smoke(&path, "1"));
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
beside = ["memcpy", "kv+tickets"]
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
        assert!(
            side["latency_us"].is_null() && side["gets_s"].is_object(),
            "it is timed as a whole"
        );
        side["checked"] = 128.into();
    }
    holds(&report);
}

/// Whether a shell would find one of these.
fn installed(names: &[&str]) -> bool {
    let path = std::env::var_os("PATH").unwrap();
    let has = |name: &&str| std::env::split_paths(&path).any(|folder| folder.join(name).is_file());
    names.iter().any(has)
}

#[test]
fn peers_run_where_they_are_installed_and_else_the_report_says_that_they_are_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("peers.toml");
    let text = r#"
title = "peers"
network = "local"
[[case]]
name = "one by one"
value_bytes = 4096
beside = ["redis", "memcached", "fio"]
[[case]]
name = "several"
value_bytes = { mix = [100, 70000] }
locators = "live"
batch = 8
beside = ["redis", "memcached"]
"#;
    std::fs::write(&path, text).unwrap();
    let report = smoke(&path, "2");
    holds(&report);
    for (name, programs, points) in [
        ("redis", &["valkey-server", "redis-server"][..], 2),
        ("memcached", &["memcached"], 2),
        ("fio", &["fio"], 1),
    ] {
        for point in &report["points"].as_array().unwrap()[..points] {
            let measured = point["sides"]
                .as_array()
                .unwrap()
                .iter()
                .any(|side| side["side"] == name);
            let left_out = point["left_out"].as_array().unwrap();
            let said = left_out
                .iter()
                .any(|out| out[0] == name && out[1].as_str().unwrap().contains("not installed"));
            let there = installed(programs);
            if !there {
                eprintln!("{name} is not installed: its side was not tried");
            }
            assert_eq!((measured, said), (there, !there), "{name}: {left_out:?}");
        }
    }
    let fio = report["points"][0]["sides"]
        .as_array()
        .unwrap()
        .iter()
        .find(|side| side["side"] == "fio");
    assert!(fio.is_none_or(|fio| interval(&fio["latency_us"]) > 0.0 && interval(&fio["gets_s"]) > 0.0));
}

/// One peer that could not do what a point asks once ended the whole run.
#[test]
fn a_peer_that_cannot_is_left_out_with_its_reason() {
    let folder = tempfile::tempdir().unwrap();
    let files = folder.path().join("files");
    std::fs::create_dir(&files).unwrap();
    std::fs::write(files.join("a name with blanks"), b"one").unwrap();
    std::fs::write(files.join("x".repeat(200)), b"two").unwrap();
    let deep = files
        .join("y".repeat(250))
        .join("y".repeat(250))
        .join("y".repeat(20));
    std::fs::create_dir_all(deep.parent().unwrap()).unwrap();
    std::fs::write(deep, b"three").unwrap();
    let path = folder.path().join("cannot.toml");
    let text = format!(
        r#"
title = "cannot"
network = "local"
[[case]]
name = "files"
value_bytes = {{ files = "{}" }}
beside = ["lmdb", "lmdb+crc", "memcached"]
[[case]]
name = "sectors"
value_bytes = 5000
start = "cold"
beside = ["fio", "pread"]
"#,
        files.display()
    );
    std::fs::write(&path, text).unwrap();
    let mut report = smoke(&path, "1");
    let said = |report: &Value, point: usize, name: &str| -> String {
        let all = report["points"][point]["left_out"].as_array().unwrap();
        let found = all
            .iter()
            .find(|out| out[0] == name)
            .unwrap_or_else(|| panic!("{name} was measured"));
        found[1].as_str().unwrap().to_owned()
    };
    for name in ["lmdb", "lmdb+crc"] {
        assert!(said(&report, 0, name).contains("keys of up to 511 bytes"));
    }
    let memcached = said(&report, 0, "memcached");
    assert!(
        memcached.contains("not installed") || memcached.contains("250 visible"),
        "{memcached}"
    );
    assert!(said(&report, 1, "fio").contains("whole sectors"));
    for side in report["points"][1]["sides"].as_array_mut().unwrap() {
        // A value is cold once.
        assert_eq!(side["checked"], 24);
        side["checked"] = 64.into();
    }
    holds(&report);
}

/// A daemon that is there and does not work: the others are measured all the same.
#[test]
fn a_peer_that_fails_is_left_out_with_what_it_said() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let programs = folder.path().join("bin");
    std::fs::create_dir(&programs).unwrap();
    for (name, script) in [
        ("valkey-server", "#!/bin/sh\nexit 3\n"),
        ("fio", "#!/bin/sh\necho broken >&2\nexit 4\n"),
    ] {
        let program = programs.join(name);
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let path = folder.path().join("fails.toml");
    let text = "title = \"t\"\nnetwork = \"local\"\n[[case]]\nname = \"c\"\nvalue_bytes = 4096\n\
                beside = [\"redis\", \"fio\", \"pread\"]\n";
    std::fs::write(&path, text).unwrap();
    let search = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
    let report = smoke_with(&path, "2", &[("PATH", &search)]);
    holds(&report);
    let left_out = report["points"][0]["left_out"].to_string();
    assert!(
        left_out.contains("could not be set up") && left_out.contains("exit status: 3"),
        "{left_out}"
    );
    assert!(
        left_out.contains("block 1: fio ended with exit status: 4: broken"),
        "{left_out}"
    );
    let sides: Vec<&str> = report["points"][0]["sides"]
        .as_array()
        .unwrap()
        .iter()
        .map(|side| side["side"].as_str().unwrap())
        .collect();
    assert_eq!(sides, ["kv", "memcpy", "pread"]);
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
    let output = bench(&["run", path.to_str().unwrap()], folder.path(), &[]);
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
    let output = bench(&["run", "--example"], folder.path(), &[]);
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
        let output = bench(&arguments, folder.path(), &[]);
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
        &[],
    );
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success()
            && said.contains("ratios and counts changed beyond noise: 2 blocks, fewer than 10"),
        "{said}"
    );
}

/// Processes with this folder in their command line.
fn processes_of(folder: &Path) -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").unwrap();
    let mut found = Vec::new();
    for entry in entries.map(Result::unwrap) {
        let number = entry.file_name().to_str().and_then(|name| name.parse().ok());
        if let (Some(number), Ok(line)) = (number, std::fs::read(entry.path().join("cmdline")))
            && line
                .windows(folder.as_os_str().len())
                .any(|part| part == folder.as_os_str().as_bytes())
        {
            found.push(number);
        }
    }
    found
}

/// The server of a run that was ended went on, and its data stayed.
#[test]
fn a_run_that_is_ended_by_a_signal_leaves_nothing_behind() {
    server();
    let folder = tempfile::tempdir().unwrap();
    let [data, temporary, out] = ["data", "temporary", "out"].map(|name| folder.path().join(name));
    std::fs::create_dir(&data).unwrap();
    std::fs::create_dir(&temporary).unwrap();
    let definition = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/run/example.toml");
    let mut run = Command::new(env!("CARGO_BIN_EXE_bench"))
        .args([
            "run".as_ref(),
            definition.as_os_str(),
            "--data".as_ref(),
            data.as_os_str(),
        ])
        .args(["--out".as_ref(), out.as_os_str()])
        .env("TMPDIR", &temporary)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    while processes_of(&data).len() < 2 {
        assert!(
            run.try_wait().unwrap().is_none(),
            "it ended before it had a server"
        );
        assert!(begun.elapsed() < Duration::from_secs(60), "it has no server");
        std::thread::sleep(Duration::from_millis(10));
    }
    kill_process(Pid::from_child(&run), Signal::TERM).unwrap();
    assert_eq!(run.wait().unwrap().code(), Some(143));
    assert_eq!(processes_of(folder.path()), [0_u32; 0]);
    for left in [data, temporary] {
        assert_eq!(std::fs::read_dir(&left).unwrap().count(), 0, "{}", left.display());
    }
}
