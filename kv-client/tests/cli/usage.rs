//! What `kv` says where no server is needed: wrong command lines, key files, inputs.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::{kv, run, write};

/// A key file of mode 0600; no server has the key.
fn key_file(dir: &Path) -> PathBuf {
    let path = dir.join("key.toml");
    let text = format!("[[key]]\nname = \"a\"\nsecret = \"{}\"\n", "ab".repeat(32));
    fs::write(&path, text).unwrap();
    set_mode(&path, 0o600);
    path
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn wrong_command_lines_end_with_2_and_say_what_is_wrong() {
    run(kv().args(["ls", "local:/nowhere?dataset=d"]))
        .expect(2, &["kv: no key file (give --key FILE or set VKV_KEY_FILE; *"]);
    run(kv().args(["ls", "http://x"])).expect(
        2,
        &["kv: `http://x`: it begins with neither rdma:// nor local: (*"],
    );
    run(kv().args(["ls", "local:/nowhere"])).expect(
        2,
        &["kv: local:/nowhere names no dataset (*`kv dataset ls` lists them)"],
    );
    run(kv().args(["ls", "rdma://h/UPPER"])).expect(
        2,
        &["kv: `rdma://h/UPPER`: a dataset's name is 1 to 64 of a-z 0-9 . _ - (*"],
    );
    run(kv().args(["rm", "local:/s?dataset=d"])).refused_by_clap(&["KEY"]);
    run(kv().args(["get", "local:/s?dataset=d", "k", "--range", "5"])).refused_by_clap(&["4096:100"]);
    run(kv().args(["get", "local:/s?dataset=d", "xyz", "--key-hex"])).expect(
        2,
        &["kv: 3 hex digits are not a whole number of bytes (give two for each)"],
    );
    run(kv().args(["get", "local:/s?dataset=d", &"k".repeat(1025)]))
        .expect(2, &["kv: a key of 1025 bytes (a key has 1 to 1024 bytes)"]);
    run(kv().args(["dataset", "rename", "local:/s?dataset=d", "No Name"])).expect(
        2,
        &["kv: *No Name* is no name for a dataset (1 to 64 of a-z 0-9 . _ -)"],
    );
    run(&mut kv()).refused_by_clap(&["Usage"]);
}

#[test]
fn a_wrong_key_file_is_named_before_anything_is_done() {
    let dir = tempfile::tempdir().unwrap();
    let (missing, wrong) = (dir.path().join("missing.toml"), dir.path().join("wrong.toml"));
    fs::write(&wrong, "not a key file").unwrap();
    set_mode(&wrong, 0o600);
    for file in [missing, wrong] {
        let name = file.to_str().unwrap();
        let line = format!("kv: key file {name}: * (give --key FILE *");
        run(kv().args(["ls", "local:/nowhere?dataset=d", "--key", name])).expect(1, &[&line]);
        // The path does not exist either, but the key comes first.
        let said = run(kv().args([
            "ingest",
            "local:/nowhere?dataset=d",
            "/no/such/path",
            "--key",
            name,
        ]));
        said.expect(1, &[&line]);
    }
}

/// It is read once: a warning is said once, and `--key <(command)` is a pipe.
#[test]
fn a_key_file_may_be_a_pipe_and_a_warning_comes_once() {
    let dir = tempfile::tempdir().unwrap();
    let key = key_file(dir.path());
    set_mode(&key, 0o644);
    let uri = format!("local:{}?dataset=d", dir.path().join("socket").display());
    let warning = " WARN *the key file can be read by other users: chmod 600 it*";
    let unconnected = format!("kv: connecting to {uri}: *");
    let arguments = ["ingest", &uri, "Cargo.toml", "--timeout", "1", "--key"];
    run(kv().args(arguments).arg(&key)).expect(1, &[warning, &unconnected]);
    let script = format!("'{}' \"$@\" <(cat '{}')", env!("CARGO_BIN_EXE_kv"), key.display());
    run(Command::new("bash").args(["-c", &script, "bash"]).args(arguments)).expect(1, &[&unconnected]);
}

/// The one line of a machine without a device. Where there is one, another line says that nobody answers.
#[test]
fn a_machine_without_a_device_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let key = key_file(dir.path());
    let said = run(kv()
        .args(["ls", "rdma://127.0.0.1:1/d", "--timeout", "1", "--key"])
        .arg(&key));
    let has_device = fs::read_dir("/sys/class/infiniband").is_ok_and(|mut devices| devices.next().is_some());
    let line = match has_device {
        false => {
            "kv: connecting to rdma://127.0.0.1:1/d: this machine has no RDMA device (use local: between processes of this \
             machine, load Soft-RoCE (soft-roce-ci/run), or see kv doctor)"
        }
        true => "kv: connecting to rdma://127.0.0.1:1/d: *",
    };
    said.expect(1, &[line]);
}

#[test]
fn two_inputs_of_one_key_are_named_without_asking_a_server() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), b"one/same\nname", b"1");
    write(dir.path(), b"two/same\nname", b"2");
    key_file(dir.path());
    let mut command = kv();
    command.current_dir(dir.path()).args([
        "ingest",
        "local:/nowhere?dataset=d",
        "one",
        "two",
        "--key",
        "key.toml",
    ]);
    run(&mut command).expect(1, &["kv: two inputs give one key: key $'same\\nname': from $'one/same\\nname' and from $'two/same\\nname' (*"]);
}

#[test]
fn a_server_that_is_not_there_is_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let key = key_file(dir.path());
    let uri = format!("local:{}?dataset=d", dir.path().join("socket").display());
    let said = run(kv().args(["ls", &uri, "--timeout", "2", "--key"]).arg(&key));
    said.expect(1, &[&format!("kv: connecting to {uri}: *")]);
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
