//! `campaign crash`: that a short campaign finds nothing wrong, that one on a server that loses bytes does, and that it
//! leaves nothing behind when it is interrupted.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::server;
use rustix::process::{Pid, Signal, kill_process};

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(60);

fn crash(data: &Path, program: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_campaign"));
    command.arg("crash").arg("--data").arg(data).args(arguments);
    command
        .env("VKV_KV_SERVER", program)
        .env_remove("RUST_LOG")
        .stdin(Stdio::null());
    command
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn nothing_that_was_answered_is_lost_to_sigkill() {
    let data = tempfile::tempdir().unwrap();
    let output = crash(data.path(), server(), &["--rounds", "12", "--life", "6"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("crash: 12 rounds"), "{said}");
    assert_eq!(fs::read_dir(data.path()).unwrap().count(), 0);
}

#[test]
fn a_server_that_loses_the_end_of_its_log_is_found_out() {
    let data = tempfile::tempdir().unwrap();
    // Before each start the last segment of each dataset loses its last bytes.
    let loses = data.path().join("loses");
    let script = format!(
        "#!/bin/sh\nfor dataset in \"$3\"/datasets/*/; do\n  \
         last=$(ls \"$dataset\"*.segment 2>/dev/null | tail -n 1)\n  \
         [ -z \"$last\" ] || truncate -s '<65536' \"$last\"\ndone\nexec '{}' \"$@\"\n",
        server().display()
    );
    fs::write(&loses, script).unwrap();
    fs::set_permissions(&loses, fs::Permissions::from_mode(0o755)).unwrap();
    let kept = data.path().join("kept");
    fs::create_dir(&kept).unwrap();
    let output = crash(&kept, &loses, &["--rounds", "6", "--seed", "3"])
        .output()
        .unwrap();
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("crash: WRONG after "), "{said}");
    assert!(
        said.contains("campaign crash --rounds 6 --life 6 --seed 3"),
        "{said}"
    );
    let kept = fs::read_dir(&kept).unwrap().next().unwrap().unwrap();
    assert!(kept.path().join("data/superblock").exists());
}

#[test]
fn sigint_leaves_nothing_behind() {
    let data = tempfile::tempdir().unwrap();
    let mut campaign = crash(data.path(), server(), &["--rounds", "100000"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + PATIENCE;
    while processes_of(data.path()).len() < 2 {
        assert!(Instant::now() < deadline, "no server was started");
        std::thread::sleep(Duration::from_millis(10));
    }
    kill_process(Pid::from_child(&campaign), Signal::INT).unwrap();
    while campaign.try_wait().unwrap().is_none() {
        assert!(Instant::now() < deadline, "it goes on after SIGINT");
        std::thread::sleep(Duration::from_millis(10));
    }
    let output = campaign.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("interrupted after "),
        "{}",
        stderr(&output)
    );
    assert_eq!(processes_of(data.path()), Vec::<String>::new());
    assert_eq!(fs::read_dir(data.path()).unwrap().count(), 0);
}

/// Command lines that name `path`.
fn processes_of(path: &Path) -> Vec<String> {
    let name = path.to_str().unwrap();
    fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| fs::read(entry.ok()?.path().join("cmdline")).ok())
        .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
        .filter(|line| line.contains(name))
        .collect()
}
