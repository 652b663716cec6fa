//! What `kv` says where no server is needed: wrong command lines, key files, inputs.

use std::fs;
use std::process::Stdio;

use crate::support::{kv, run, write};

#[test]
fn wrong_command_lines_end_with_2_and_say_what_is_wrong() {
    run(kv().args(["ls", "local:/nowhere?dataset=d"]))
        .expect(2, &["no key file", "--key FILE", "VKV_KEY_FILE"]);
    run(kv().args(["ls", "http://x"])).expect(2, &["http://x", "rdma://"]);
    run(kv().args(["ls", "local:/nowhere"])).expect(2, &["names no dataset", "kv dataset ls"]);
    run(kv().args(["ls", "rdma://h/UPPER"])).expect(2, &["UPPER"]);
    run(kv().args(["rm", "local:/s?dataset=d"])).expect(2, &["KEY"]);
    run(kv().args(["get", "local:/s?dataset=d", "k", "--range", "5"])).expect(2, &["4096:100"]);
    run(kv().args(["get", "local:/s?dataset=d", "xyz", "--key-hex"])).expect(2, &["kv: ", "hex"]);
    run(kv().args(["get", "local:/s?dataset=d", &"k".repeat(1025)])).expect(2, &["1025 bytes"]);
    run(kv().args(["dataset", "rename", "local:/s?dataset=d", "No Name"])).expect(2, &["No Name", "1 to 64"]);
    run(&mut kv()).expect(2, &["Usage"]);
}

#[test]
fn a_wrong_key_file_is_named_before_anything_is_done() {
    let dir = tempfile::tempdir().unwrap();
    let (missing, wrong) = (dir.path().join("missing.toml"), dir.path().join("wrong.toml"));
    fs::write(&wrong, "not a key file").unwrap();
    for file in [missing, wrong] {
        let name = file.to_str().unwrap();
        run(kv().args(["ls", "local:/nowhere?dataset=d", "--key", name])).expect(1, &[name]);
        // The path does not exist either, but the key comes first.
        let said = run(kv().args([
            "ingest",
            "local:/nowhere?dataset=d",
            "/no/such/path",
            "--key",
            name,
        ]));
        assert!(
            !said.expect(1, &[name]).stderr.contains("/no/such/path"),
            "{said:?}"
        );
    }
}

#[test]
fn two_inputs_of_one_key_are_named_without_asking_a_server() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), b"one/same\nname", b"1");
    write(dir.path(), b"two/same\nname", b"2");
    let secret = "ab".repeat(32);
    let text =
        format!("[[key]]\nname = \"a\"\nsecret = \"{secret}\"\nrole = \"admin\"\ndatasets = [\"*\"]\n");
    fs::write(dir.path().join("key.toml"), text).unwrap();
    let mut command = kv();
    command.current_dir(dir.path()).args([
        "ingest",
        "local:/nowhere?dataset=d",
        "one",
        "two",
        "--key",
        "key.toml",
    ]);
    run(&mut command).expect(
        1,
        &[
            "two inputs give one key",
            "$'one/same\\nname'",
            "$'two/same\\nname'",
        ],
    );
}

#[test]
fn a_server_that_is_not_there_is_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let secret = "ab".repeat(32);
    let key = dir.path().join("key.toml");
    let text =
        format!("[[key]]\nname = \"a\"\nsecret = \"{secret}\"\nrole = \"admin\"\ndatasets = [\"*\"]\n");
    fs::write(&key, text).unwrap();
    let uri = format!("local:{}?dataset=d", dir.path().join("socket").display());
    let said = run(kv().args(["ls", &uri, "--timeout", "2", "--key"]).arg(&key));
    said.expect(1, &["kv: connecting to", &uri]);
    assert_eq!(
        said.stderr.lines().filter(|line| line.starts_with("kv:")).count(),
        1,
        "{said:?}"
    );
}

#[test]
fn doctor_ends_as_its_report_says() {
    let dir = tempfile::tempdir().unwrap();
    let said = run(kv().args(["doctor", "--json", "--data"]).arg(dir.path()));
    let report: serde_json::Value = serde_json::from_str(&said.stdout).unwrap();
    let usable = report["rdma_usable"].as_bool().unwrap();
    assert_eq!(said.code, Some(i32::from(!usable)), "{said:?}");
    let findings = report["findings"].as_array().unwrap();
    let checks: Vec<&str> = findings
        .iter()
        .map(|finding| finding["check"].as_str().unwrap())
        .collect();
    for check in ["devices", "modules", "locked memory", "huge pages"] {
        assert!(checks.contains(&check), "{check} is not in {checks:?}");
    }
    assert!(
        checks.iter().any(|check| check.starts_with("data ")),
        "{checks:?}"
    );
    let said = run(kv().arg("doctor"));
    assert_eq!(said.code, Some(i32::from(!usable)));
    assert!(usable || said.stdout.contains("local:"), "{said:?}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn help_has_examples_and_a_reader_that_leaves_is_no_error() {
    let said = run(kv().args(["ingest", "--help"]));
    assert!(said.expect(0, &[]).stdout.contains("Examples:"));
    let mut child = kv()
        .args(["ingest", "--help"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.stderr.is_empty(), "{output:?}");
}
