//! The `kv-server` binary: how it starts, refuses to start, idles, and ends.

use std::mem::offset_of;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use crate::common::{NOBODY, Raw, Setup, TestFabric, as_other_user, eventually};
use kv_fabric::local::Local;
use kv_fabric::verbs::Verbs;
use kv_proto::auth::Role;
use kv_proto::control::{Answer, Bytes, Request, Status};
use kv_proto::layout::{DatasetDescription, Superblock};
use kv_server::control::keys::{self, Key};
use rustix::process::{Pid, Signal, kill_process};

/// A process that is killed when the test is over, whatever comes of it.
struct Process<F = Local> {
    child: Child,
    fabric: Arc<F>,
    address: String,
}

fn server(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kv-server"));
    command
        .args(arguments)
        .env_remove("RUST_LOG")
        .stdin(Stdio::null());
    command
}

fn serve(setup: &Setup, listen: &str, extra: &[&str]) -> Command {
    let data = setup.store.data.to_str().unwrap();
    let keys = setup.folder.path().join("keys.toml");
    if !keys.exists() {
        setup.key_file();
    }
    let keys = keys.to_str().unwrap();
    let base = ["serve", "--data", data, "--listen", listen, "--keys", keys];
    let small = ["--memory-budget", "256M", "--segment-bytes", "4M"];
    // Long, so that a test on a slow machine need not renew.
    let long = ["--lease-ms", "120000", "--max-lag-ms", "240000"];
    server(&[&base[..], &small, &long, extra].concat())
}

impl<F: TestFabric> Process<F> {
    fn start(setup: &Setup, extra: &[&str]) -> Self {
        let ready = setup.folder.path().join("ready");
        let _ = std::fs::remove_file(&ready);
        let errors = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(log_path(setup))
            .unwrap();
        let extra = [&["--ready-file", ready.to_str().unwrap()], extra].concat();
        let listen = F::address(setup.folder.path());
        // An address of `local` is a path.
        let scheme = if listen.starts_with('/') {
            "local:"
        } else {
            "rdma://"
        };
        let mut command = serve(setup, &format!("{scheme}{listen}"), &extra);
        let mut child = command.stderr(errors).spawn().unwrap();
        let text = eventually("the server is ready", || {
            assert!(child.try_wait().unwrap().is_none(), "it ended: {}", log(setup));
            std::fs::read_to_string(&ready).ok()
        });
        let address = text.trim_end().strip_prefix(scheme).unwrap().to_owned();
        let fabric = F::server(&address);
        Self {
            child,
            fabric: F::client(&fabric, &address),
            address,
        }
    }

    fn session(&self, key: &Key) -> Raw {
        let mut raw = Raw::connect(self.fabric.clone(), &self.address).unwrap();
        raw.begin(key, 1).unwrap();
        raw
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).unwrap();
    }

    fn end(&mut self) -> ExitStatus {
        eventually("the end of the server", || self.child.try_wait().unwrap())
    }
}

impl<F> Drop for Process<F> {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn log_path(setup: &Setup) -> PathBuf {
    setup.folder.path().join("log")
}

fn log(setup: &Setup) -> String {
    std::fs::read_to_string(log_path(setup)).unwrap_or_default()
}

/// One clear line on standard error, nothing else there, and a status that is not zero.
fn fails(output: &Output) -> String {
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    assert!(!output.status.success(), "{text}");
    let line = text.strip_suffix('\n').unwrap_or_else(|| panic!("{text:?}"));
    assert!(
        line.starts_with("kv-server: ") && !line.contains(|char: char| char.is_control()),
        "{text:?}"
    );
    line.to_owned()
}

fn what_was_answered_survives_sigkill_on<F: TestFabric>() {
    let setup = Setup::new();
    let mut process: Process<F> = Process::start(&setup, &[]);
    let mut raw = process.session(&setup.admin);
    raw.create("cats");
    let dataset = raw.open("cats").dataset;
    let value = |index: usize| vec![index as u8; index * 97 % 5000];
    for index in 0..200 {
        raw.put(dataset, format!("{index}").as_bytes(), &value(index))
            .unwrap();
    }
    assert!(raw.delete(dataset, b"7").unwrap());
    // One more is under way when it dies.
    raw.alloc(dataset, 999, b"half", 100).unwrap();
    let epoch = raw.figure([0; 16], "epoch_number");
    process.signal(Signal::KILL);
    process.end();
    raw.wait_end();

    let process: Process<F> = Process::start(&setup, &[]);
    let mut raw = process.session(&setup.admin);
    assert_eq!(raw.figure([0; 16], "epoch_number"), epoch + 1);
    let again = raw.open("cats").dataset;
    assert_eq!(again, dataset);
    let token = raw.tokens(dataset, 1)[0];
    let mut data = raw.data(token).unwrap();
    for index in 0..200 {
        let key = Bytes(format!("{index}").into_bytes());
        match raw.ask(&Request::Lookup { dataset, key }) {
            Ok(Answer::Lookup { locator }) if index != 7 => {
                assert_eq!(raw.get(&mut *data, dataset, &locator).unwrap(), value(index));
            }
            Err(refused) if index == 7 => assert_eq!(refused.status, Status::NotFound),
            other => panic!("{index}: {other:?}"),
        }
    }
    let half = Request::Lookup {
        dataset,
        key: Bytes::from(&b"half"[..]),
    };
    assert_eq!(raw.refused(&half), Status::NotFound);
    // A retry of what was done before the kill is answered as done.
    let first = Request::Alloc {
        dataset,
        operation: 1,
        value_len_bytes: 0,
        key: Bytes::from(&b"0"[..]),
    };
    assert!(matches!(
        raw.ask(&first),
        Ok(Answer::Alloc {
            done: 1,
            sequence: 1,
            ..
        })
    ));
}

#[test]
fn what_was_answered_survives_sigkill() {
    what_was_answered_survives_sigkill_on::<Local>();
}

#[test]
#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]
fn what_was_answered_survives_sigkill_over_verbs() {
    what_was_answered_survives_sigkill_on::<Verbs>();
}

#[test]
fn sigterm_and_sigint_end_it_cleanly() {
    for signal in [Signal::TERM, Signal::INT] {
        let setup = Setup::new();
        let mut process: Process = Process::start(&setup, &[]);
        let mut raw = process.session(&setup.admin);
        raw.create("cats");
        let dataset = raw.open("cats").dataset;
        // Queued, and answered though the server is told to end.
        let mut numbers = Vec::new();
        for operation in 1..=20 {
            let key = Bytes::from(&b"k"[..]);
            numbers.push(raw.send(&Request::Delete {
                dataset,
                operation,
                key,
            }));
        }
        raw.answer(numbers[0]).unwrap().unwrap();
        process.signal(signal);
        for number in &numbers[1..] {
            match raw.answer(*number) {
                Some(Ok(Answer::Delete { .. })) => {}
                Some(Err(refused)) => assert_eq!(refused.status, Status::ShuttingDown),
                other => panic!("{other:?}"),
            }
        }
        raw.wait_end();
        assert_eq!(process.end().code(), Some(0), "{}", log(&setup));
        assert!(!setup.folder.path().join("ready").exists());
        assert!(!Path::new(&process.address).exists(), "the socket is left behind");
        assert!(Raw::connect(process.fabric.clone(), &process.address).is_err());
    }
}

/// Whoever ends a process and its group, as `timeout` does, sends one signal twice.
#[test]
fn a_signal_that_comes_twice_at_once_is_taken_for_one() {
    let setup = Setup::new();
    let mut process: Process = Process::start(&setup, &[]);
    // A session makes it take leave, which takes time.
    let mut raw = process.session(&setup.reader);
    // Two of one number would be one to a process that is stopped.
    for signal in [Signal::STOP, Signal::INT, Signal::TERM, Signal::CONT] {
        process.signal(signal);
    }
    raw.wait_end();
    assert_eq!(process.end().code(), Some(0), "{}", log(&setup));
}

#[test]
fn keys_are_reloaded_and_a_broken_file_changes_nothing() {
    let setup = Setup::new();
    let process: Process = Process::start(&setup, &[]);
    let path = setup.key_file();
    let mut kept = process.session(&setup.admin);
    let mut revoked = process.session(&setup.reader);
    std::fs::write(&path, "[[key]]\nname = 1\n").unwrap();
    process.signal(Signal::HUP);
    eventually("the broken file is reported", || {
        log(&setup).contains("the keys stay as they were").then_some(())
    });
    assert!(log(&setup).contains("line 2"), "{}", log(&setup));
    process.session(&setup.reader);
    let new = keys::generate("new", Role::Read, vec!["*".to_owned()]).unwrap();
    let text = keys::entry_text(&setup.admin) + &keys::entry_text(&new);
    std::fs::write(&path, text).unwrap();
    process.signal(Signal::HUP);
    eventually("the new key is known", || {
        let mut raw = Raw::connect(process.fabric.clone(), &process.address).unwrap();
        raw.begin(&new, 1).ok()
    });
    revoked.wait_end();
    kept.renew(0);
    let mut raw = Raw::connect(process.fabric.clone(), &process.address).unwrap();
    assert_eq!(
        raw.begin(&setup.reader, 1).unwrap_err().status,
        Status::AuthFailed
    );
    assert!(!log(&setup).contains(&"ab".repeat(32)));
}

#[test]
fn an_address_that_is_taken_is_said() {
    let setup = Setup::new();
    let mut process: Process = Process::start(&setup, &[]);
    let other = setup.folder.path().join("other");
    let listen = format!("local:{}", process.address);
    let keys = setup.key_file();
    let arguments = [
        "serve",
        "--data",
        other.to_str().unwrap(),
        "--listen",
        &listen,
        "--keys",
        keys.to_str().unwrap(),
    ];
    let line = fails(&server(&arguments).output().unwrap());
    assert!(line.contains(&process.address), "{line}");
    // The first one goes on.
    process.session(&setup.reader).renew(0);
    process.signal(Signal::TERM);
    assert!(process.end().success());
}

#[test]
fn a_directory_that_is_in_use_is_said() {
    let setup = Setup::new();
    let process: Process = Process::start(&setup, &[]);
    let listen = format!("local:{}", setup.folder.path().join("second").display());
    let keys = setup.key_file();
    let arguments = [
        "serve",
        "--data",
        setup.store.data.to_str().unwrap(),
        "--listen",
        &listen,
        "--keys",
        keys.to_str().unwrap(),
    ];
    let line = fails(&server(&arguments).output().unwrap());
    let data = setup.store.data.display();
    let pid = process.child.id();
    assert_eq!(
        line,
        format!(
            "kv-server: data directory {data} is in use by another server (process {pid}) (stop it, or give --data another \
             directory)"
        )
    );
    process.session(&setup.reader).renew(0);
}

/// Whoever could read the lock could take it, and kept every server from starting; what they said named a process that
/// was long gone.
#[test]
fn nobody_else_can_take_the_lock_and_who_has_it_can_be_found() {
    use std::os::unix::fs::PermissionsExt;
    let setup = Setup::new();
    let data = &setup.store.data;
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    drop(Process::<Local>::start(&setup, &[]));
    assert_eq!((mode(data), mode(&data.join("lock"))), (0o700, 0o600));
    // One that was made by a server before this one; a directory that is there stays as it is.
    std::fs::set_permissions(data.join("lock"), PermissionsExt::from_mode(0o644)).unwrap();
    std::fs::set_permissions(data, PermissionsExt::from_mode(0o755)).unwrap();
    drop(Process::<Local>::start(&setup, &[]));
    assert_eq!((mode(data), mode(&data.join("lock"))), (0o755, 0o600));

    let lock = std::fs::File::open(data.join("lock")).unwrap();
    lock.lock().unwrap();
    let mut gone = Command::new("true").spawn().unwrap();
    gone.wait().unwrap();
    std::fs::write(data.join("lock"), format!("{}\n", gone.id())).unwrap();
    let line = refused(&setup, |_| {});
    let path = data.join("lock").display().to_string();
    assert!(
        line.contains(&format!("process {}, its last server, which is gone", gone.id())),
        "{line}"
    );
    assert!(line.contains(&format!("`fuser -v {path}` names it")), "{line}");
}

#[test]
fn what_cannot_be_served_is_said_in_one_line() {
    let setup = Setup::new();
    let folder = setup.folder.path();
    let keys = setup.key_file();
    let listen = format!("local:{}", Local::address(folder));
    let run = |data: &Path, listen: &str, keys: &Path, more: &[&str]| {
        let base = [
            "serve",
            "--data",
            data.to_str().unwrap(),
            "--listen",
            listen,
            "--keys",
            keys.to_str().unwrap(),
        ];
        fails(&server(&[&base[..], more].concat()).output().unwrap())
    };
    let data = folder.join("data");
    let line = run(&data, &listen, &folder.join("nokeys"), &[]);
    assert!(line.contains("nokeys") && line.contains("cannot read"), "{line}");
    std::fs::write(
        folder.join("bad"),
        "[[key]]\nname = \"k\"\nsecret = \"12\"\nrole = \"read\"\ndatasets = []\n",
    )
    .unwrap();
    std::fs::set_permissions(
        folder.join("bad"),
        std::os::unix::fs::PermissionsExt::from_mode(0o600),
    )
    .unwrap();
    let line = run(&data, &listen, &folder.join("bad"), &[]);
    assert!(
        line.contains("entry 1") && line.contains("64 hexadecimal"),
        "{line}"
    );
    let line = run(&folder.join("bad"), &listen, &keys, &[]);
    assert!(line.contains("bad"), "{line}");
    let line = run(&data, "rdma://192.0.2.1:7471", &keys, &[]);
    // Where there is a device, it has another address.
    let has_device =
        std::fs::read_dir("/sys/class/infiniband").is_ok_and(|mut devices| devices.next().is_some());
    let no_device = "kv-server: this machine has no RDMA device (use local: between processes of this machine, load Soft-RoCE \
                     (soft-roce-ci/run), or see kv doctor)";
    assert!(
        line == no_device || has_device && line.contains("192.0.2.1:7471"),
        "{line}"
    );
    let line = run(&data, "local:/nonexistent/socket", &keys, &[]);
    for words in [
        "/nonexistent/socket",
        "No such file",
        "make the folder, or choose another path",
    ] {
        assert!(line.contains(words), "{line}");
    }
    std::fs::write(folder.join("file"), "").unwrap();
    let line = run(&folder.join("file"), &listen, &keys, &[]);
    assert!(
        line.contains("file: it is no directory (give --data a directory"),
        "{line}"
    );
    let line = run(&data, &listen, &keys, &["--staging-bytes", "1K"]);
    assert!(line.contains("--staging-bytes 1K"), "{line}");
}

/// Runs a server on the data directory of `setup` that must not start; what it says.
fn refused(setup: &Setup, edit: impl FnOnce(&mut Command)) -> String {
    let listen = format!("local:{}", setup.folder.path().join("never").display());
    let mut command = serve(setup, &listen, &[]);
    edit(&mut command);
    fails(&command.output().unwrap())
}

/// Every error of a start names the file, what is wrong with it, and what to do. (A dataset whose description is damaged
/// is named in the log, and the others are served.)
#[test]
fn a_data_directory_of_another_version_or_damaged_is_said_with_a_remedy() {
    let setup = Setup::new();
    let mut process: Process = Process::start(&setup, &[]);
    process.session(&setup.admin).create("cats");
    process.signal(Signal::TERM);
    process.end();
    let data = &setup.store.data;
    let datasets: Vec<PathBuf> = std::fs::read_dir(data.join("datasets"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    let superblock = (data.join("superblock"), offset_of!(Superblock, format));
    let description = (
        datasets[0].join("dataset"),
        offset_of!(DatasetDescription, format),
    );
    for (path, format_at) in [superblock, description] {
        let whole = std::fs::read(&path).unwrap();
        let said = |bytes: &[u8], words: &[&str]| {
            std::fs::write(&path, bytes).unwrap();
            let line = refused(&setup, |_| {});
            for word in words.iter().chain([&path.to_str().unwrap()]) {
                assert!(line.contains(word), "{word:?} is not in {line}");
            }
        };
        let mut other = whole.clone();
        other[format_at..][..2].copy_from_slice(&7_u16.to_le_bytes());
        said(
            &other,
            &["format version 7", "knows 1", "run the server that wrote it"],
        );
        // Another version may have another length.
        said(&other[..other.len() - 8], &["format version 7"]);
        if path.ends_with("superblock") {
            let mut flipped = whole.clone();
            flipped[format_at + 20] ^= 1;
            said(&flipped, &["is damaged", "checksum", "backup"]);
            said(&whole[..whole.len() - 1], &["is damaged", "backup"]);
        }
        std::fs::write(&path, &whole).unwrap();
    }
    let process: Process = Process::start(&setup, &[]);
    process.session(&setup.admin).open("cats");
}

/// A segment file that somebody deleted is named by each start, the rest is served.
#[test]
fn a_segment_file_that_is_gone_is_named_at_each_start() {
    let setup = Setup::new();
    let mut process: Process = Process::start(&setup, &[]);
    let mut raw = process.session(&setup.admin);
    raw.create("cats");
    let dataset = raw.open("cats").dataset;
    raw.put(dataset, b"tom", &[7; 1000]).unwrap();
    process.signal(Signal::TERM);
    process.end();
    let path = crate::check::segment(&setup.store.data);
    std::fs::remove_file(&path).unwrap();
    for start in 0..2 {
        let before = log(&setup).len();
        let mut process: Process = Process::start(&setup, &[]);
        let said = log(&setup)[before..].to_owned();
        let line = said.lines().find(|line| line.contains("segment lost"));
        let line = line.unwrap_or_else(|| panic!("start {start}: {said}"));
        let back = "deleted keys may be back";
        for word in ["ERROR", "dataset=cats", "segment=1", path.to_str().unwrap(), back] {
            assert!(line.contains(word), "{word:?} is not in {line}");
        }
        let mut raw = process.session(&setup.admin);
        assert_eq!(raw.open("cats").dataset, dataset);
        raw.put_as(dataset, 10 + start, b"tom", &[8; 1000]).unwrap();
        process.signal(Signal::TERM);
        process.end();
    }
}

#[test]
fn a_sealed_segment_that_was_cut_is_named_at_every_start_until_that_is_accepted() {
    let setup = Setup::new();
    for operation in 1..3 {
        let mut process: Process = Process::start(&setup, &[]);
        let mut raw = process.session(&setup.admin);
        if operation == 1 {
            raw.create("cats");
        }
        let dataset = raw.open("cats").dataset;
        raw.put_as(dataset, operation, b"tom", &[7; 1000]).unwrap();
        process.signal(Signal::TERM);
        process.end();
    }
    let path = crate::check::segment(&setup.store.data).with_file_name("00000001.segment");
    let cut = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    cut.set_len(500).unwrap();
    for start in 0..3 {
        let named = start < 2;
        if !named {
            let repaired = crate::check::check(&setup.store.data, &["--repair"]);
            let said = String::from_utf8_lossy(&repaired.stdout);
            assert!(said.contains("that it was cut short is accepted"), "{said}");
        }
        let before = log(&setup).len();
        let mut process: Process = Process::start(&setup, &[]);
        let said = log(&setup)[before..].to_owned();
        let line = said.lines().find(|line| line.contains("was cut short"));
        assert_eq!(line.is_some(), named, "{said}");
        let words = [
            "ERROR",
            "dataset=cats",
            "segment=1",
            path.to_str().unwrap(),
            "end=64",
        ];
        for word in words {
            assert!(line.is_none_or(|line| line.contains(word)), "{word:?}: {said}");
        }
        process.signal(Signal::TERM);
        process.end();
    }
}

#[test]
fn a_data_directory_that_the_user_may_not_use_is_said_with_a_remedy() {
    use std::os::unix::fs::PermissionsExt;
    let setup = Setup::new();
    let folder = setup.folder.path();
    let set = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    let data = &setup.store.data;
    let process: Process = Process::start(&setup, &[]);
    drop(process);
    let root = rustix::process::geteuid().is_root();
    if root {
        std::os::unix::fs::chown(folder.join("keys.toml"), Some(NOBODY), Some(NOBODY)).unwrap();
    }
    let as_other = |command: &mut Command| {
        let mut own = as_other_user(env!("CARGO_BIN_EXE_kv-server"), folder);
        own.args(command.get_args()).stdin(Stdio::null());
        *command = own;
    };
    for (mode, words) in [
        (
            0o000,
            ["ermission denied", "let the user that runs the server read"],
        ),
        (
            if root { 0o755 } else { 0o555 },
            ["cannot write data directory", "may write"],
        ),
        (
            if root { 0o733 } else { 0o333 },
            ["ermission denied", "let the user that runs the server read"],
        ),
    ] {
        set(data, mode);
        let line = refused(&setup, as_other);
        set(data, 0o755);
        for word in words.iter().chain([&data.to_str().unwrap()]) {
            assert!(line.contains(word), "mode {mode:o}: {word:?} is not in {line}");
        }
    }
}

#[test]
fn keygen_makes_entries_that_are_read_back() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.toml");
    let keygen = |arguments: &[&str]| server(&[&["keygen"], arguments].concat()).output().unwrap();
    let printed = keygen(&[
        "--name",
        "a",
        "--role",
        "read",
        "--dataset",
        "x",
        "--dataset",
        "y",
    ]);
    let keys = keys::Keys::parse(&String::from_utf8(printed.stdout).unwrap()).unwrap();
    assert_eq!(keys.get(b"a").unwrap().datasets, ["x", "y"]);
    let out = file.to_str().unwrap();
    for (name, role) in [("a", "admin"), ("b", "write")] {
        let output = keygen(&["--name", name, "--role", role, "--out", out]);
        assert!(output.status.success() && output.stdout.is_empty());
    }
    assert_eq!(
        std::fs::metadata(&file).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let keys = keys::Keys::load(&file).unwrap();
    assert_eq!(keys.get(b"a").unwrap().role, Role::Admin);
    assert_eq!(keys.get(b"b").unwrap().datasets, ["*"]);
    assert_ne!(keys.get(b"a").unwrap().secret, keys.get(b"b").unwrap().secret);
    let line = fails(&keygen(&["--name", "b", "--role", "read", "--out", out]));
    assert!(line.contains("\"b\" is there twice"), "{line}");
    assert!(!keygen(&["--name", "c", "--role", "root"]).status.success());
    assert!(keys::Keys::load(&file).unwrap().get(b"c").is_none());
}

/// A secret that reaches nobody is a failure, and one in a file is for its owner.
#[test]
fn keygen_loses_no_key_and_shows_it_to_nobody() {
    use std::os::unix::fs::PermissionsExt;
    let keygen = ["keygen", "--name", "k", "--role", "read"];
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let line = fails(&server(&keygen).stdout(full).output().unwrap());
    assert!(
        line.contains("No space left") && line.contains("--out FILE"),
        "{line}"
    );
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let line = fails(&server(&keygen).stdout(writer).output().unwrap());
    assert!(line.contains("Broken pipe"), "{line}");

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.toml");
    std::fs::write(&file, "").unwrap();
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o644)).unwrap();
    let out = ["--out", file.to_str().unwrap()];
    assert!(server(&[&keygen[..], &out].concat()).status().unwrap().success());
    assert_eq!(
        std::fs::metadata(&file).unwrap().permissions().mode() & 0o777,
        0o600
    );
    assert!(keys::Keys::load(&file).unwrap().get(b"k").is_some());
}

/// CPU ticks and voluntary switches of all threads of a process: what it used, and how often it woke.
fn used(pid: u32) -> (u64, u64) {
    let mut ticks = 0;
    let mut wakes = 0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let task = task.unwrap().path();
        let stat = std::fs::read_to_string(task.join("stat")).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        ticks += fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        let status = std::fs::read_to_string(task.join("status")).unwrap();
        let line = status
            .lines()
            .find(|line| line.starts_with("voluntary_ctxt_switches"))
            .unwrap();
        wakes += line.split_whitespace().last().unwrap().parse::<u64>().unwrap();
    }
    (ticks, wakes)
}

fn an_idle_server_sleeps_on<F: TestFabric>() {
    let setup = Setup::new();
    let process: Process<F> = Process::start(&setup, &[]);
    let pid = process.child.id();
    let mut raw = process.session(&setup.admin);
    raw.create("cats");
    let dataset = raw.open("cats").dataset;
    raw.put(dataset, b"k", b"value").unwrap();
    let token = raw.tokens(dataset, 1)[0];
    let _data = raw.data(token).unwrap();
    std::thread::sleep(Duration::from_millis(500));
    let before = used(pid);
    std::thread::sleep(Duration::from_secs(2));
    let after = used(pid);
    let (ticks, wakes) = (after.0 - before.0, after.1 - before.1);
    // A tick is 10 ms: below 1 % of one core.
    assert!(ticks <= 1, "{ticks} ticks of CPU in two idle seconds");
    assert!(wakes <= 4, "woke {wakes} times in two idle seconds");
}

#[test]
fn an_idle_server_sleeps() {
    an_idle_server_sleeps_on::<Local>();
}

#[test]
#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]
fn an_idle_server_sleeps_over_verbs() {
    an_idle_server_sleeps_on::<Verbs>();
}
