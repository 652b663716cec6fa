//! `kv-server check`: its exit status, what it prints, and that it keeps away from a directory that is served.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::common::{Raw, Setup, TestFabric, as_other_user};
use kv_fabric::local::Local;
use kv_server::control::{Keys, Options, Server};

pub(crate) fn check(data: &Path, more: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kv-server"))
        .args(["check", "--data", data.to_str().unwrap()])
        .args(more)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn text(output: &Output) -> (Option<i32>, String, String) {
    let out = String::from_utf8(output.stdout.clone()).unwrap();
    let error = String::from_utf8(output.stderr.clone()).unwrap();
    (output.status.code(), out, error)
}

pub(crate) fn segment(data: &Path) -> std::path::PathBuf {
    let dataset = std::fs::read_dir(data.join("datasets")).unwrap().next().unwrap();
    let mut files = std::fs::read_dir(dataset.unwrap().path())
        .unwrap()
        .map(|it| it.unwrap().path());
    files
        .find(|path| path.extension().is_some_and(|it| it == "segment"))
        .unwrap()
}

#[test]
fn its_exit_status_says_what_it_found() {
    let setup = Setup::new();
    let data = setup.store.data.clone();
    let (status, out, error) = text(&check(&data, &[]));
    assert_eq!((status, out.as_str()), (Some(2), ""), "{error}");
    assert!(error.contains(data.to_str().unwrap()), "{error}");
    std::fs::create_dir_all(&data).unwrap();
    let (status, _, error) = text(&check(&data, &[]));
    assert_eq!(status, Some(2));
    assert!(error.contains("is not a data directory"), "{error}");

    let address = Local::address(setup.folder.path());
    let fabric = Local::server(&address);
    let keys = Keys::load(&setup.key_file()).unwrap();
    let server = Server::start(fabric, &address, setup.store.clone(), keys, Options::default()).unwrap();
    let mut raw = Raw::connect(Local::server(&address), &address).unwrap();
    raw.begin(&setup.admin, 1).unwrap();
    raw.create("cats");
    let dataset = raw.open("cats").dataset;
    raw.put(dataset, b"tom", &[7; 1000]).unwrap();
    // While it is served it is left alone.
    let (status, out, error) = text(&check(&data, &["--repair"]));
    assert_eq!((status, out.as_str()), (Some(2), ""), "{error}");
    assert!(error.contains("in use by another server (process"), "{error}");
    server.stop();
    server.join().unwrap();

    let (status, out, error) = text(&check(&data, &[]));
    assert_eq!((status, error.as_str()), (Some(0), ""), "{out}");
    assert!(
        out.starts_with("1 datasets, 1 segments, 1 records, 1 keys, "),
        "{out}"
    );
    let path = segment(&data);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[64 + 64 + 3 + 500] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let json = setup.folder.path().join("report.json");
    let (status, out, error) = text(&check(&data, &["--json", json.to_str().unwrap()]));
    assert_eq!((status, error.as_str()), (Some(1), ""), "{out}");
    let line = "damage: dataset cats, segment 1, offset 64, key \"tom\": its value does not have its CRC (";
    assert!(out.starts_with(line), "{out}");
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
    assert_eq!(report["summary"]["damage"], 1);
    assert_eq!(report["findings"][0]["key"], "\"tom\"");
    // It does not go away, and nothing else is done.
    assert_eq!(check(&data, &["--repair"]).status.code(), Some(1));
    assert_eq!(check(&data, &[]).status.code(), Some(1));
    bytes[64 + 64 + 3 + 500] ^= 1;
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let (status, out, _) = text(&check(&data, &["--repair"]));
    assert_eq!(status, Some(1));
    assert!(out.contains("repaired: dataset cats, segment 1, "), "{out}");
    assert_eq!(check(&data, &[]).status.code(), Some(0));
    std::fs::remove_file(&path).unwrap();
    let gone = format!(
        "damage: dataset cats, segment 1: segment lost: its file {} is",
        path.display()
    );
    for (arguments, repaired) in [(&[][..], false), (&["--repair"], true)] {
        let (status, out, _) = text(&check(&data, arguments));
        assert_eq!(
            (status, out.contains("repaired: dataset cats, ")),
            (Some(1), repaired)
        );
        assert!(out.starts_with(&gone), "{out}");
    }
    assert_eq!(check(&data, &[]).status.code(), Some(0));
}

/// A segment that could not be opened for want of rights was called lost, and its keys to be restored.
#[test]
fn what_the_user_may_not_read_is_said_and_is_no_damage() {
    let mut server = Setup::new().start::<Local>();
    let (mut raw, opened) = server.with_dataset("cats");
    raw.put(opened.dataset, b"tom", &[7; 1000]).unwrap();
    let handle = server.handle.take().unwrap();
    handle.stop();
    handle.join().unwrap();
    let data = &server.setup.store.data;
    let set = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    let segment = segment(data);
    let dataset = segment.parent().unwrap();
    let datasets = data.join("datasets");
    let (superblock, catalogue, description, list, lock) = (
        data.join("superblock"),
        data.join("catalogue"),
        dataset.join("dataset"),
        dataset.join("segments"),
        data.join("lock"),
    );
    let open_to_all = [
        (data.as_path(), 0o755),
        (&datasets, 0o755),
        (dataset, 0o755),
        (&lock, 0o644),
        (&superblock, 0o644),
        (&catalogue, 0o644),
        (&description, 0o644),
        (&list, 0o644),
        (&segment, 0o644),
    ];
    for (path, mode) in open_to_all {
        set(path, mode);
    }
    let check = || {
        let mut command = as_other_user(env!("CARGO_BIN_EXE_kv-server"), server.setup.folder.path());
        command.args(["check", "--data", data.to_str().unwrap()]);
        text(&command.stdin(Stdio::null()).output().unwrap())
    };
    let (status, out, error) = check();
    assert_eq!((status, error.as_str()), (Some(0), ""), "{out}");
    for (path, mode) in open_to_all {
        set(path, 0o000);
        let (status, out, error) = check();
        set(path, mode);
        assert_eq!((status, out.as_str()), (Some(2), ""), "{path:?}: {error}");
        for word in [path.to_str().unwrap(), "ermission denied", "let the user"] {
            assert!(error.contains(word), "{word:?} is not in {error}");
        }
    }
}
