//! What goes wrong with a server, on the way to it, or with the one who asks: one clear line, and nothing lost.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use crate::support::{Said, Server, bytes, run, signal, wait_until, write};

/// Many small files, so that an ingest takes its time.
fn many(server: &Server, count: u64) -> PathBuf {
    let tree = server.path("tree");
    for number in 0..count {
        write(
            &tree,
            format!("{}/{number}", number % 100).as_bytes(),
            &bytes(number, 100),
        );
    }
    tree
}

fn begin_ingest(server: &Server, tree: &Path, more: &[&str]) -> Child {
    let mut command = server.kv();
    command
        .args(["ingest", &server.uri("d"), "--jobs", "1", "--json"])
        .arg(server.path("first.json"))
        .arg(tree);
    command
        .args(more)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("kv starts")
}

/// An ingest of so many files that was stopped by SIGSTOP when it had stored some of them and less than half: what comes
/// next finds it under way, however fast the machine is.
fn stopped_midway(more: &[&str]) -> (Server, PathBuf, u64, Child) {
    for count in [6000, 24_000, 96_000] {
        let server = Server::with_dataset("d", &["--segment-bytes", "64M"]);
        let tree = many(&server, count);
        let mut child = begin_ingest(&server, &tree, more);
        wait_until("stored 300 keys", || server.stat("d", "keys_count") >= 300);
        signal(child.id(), "STOP");
        if is_stopped(&mut child) && server.stat("d", "keys_count") < count / 2 {
            return (server, tree, count, child);
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
    panic!("the ingest was always too fast");
}

/// Waits until the signal has stopped it; false if it ended before.
fn is_stopped(child: &mut Child) -> bool {
    let mut ended = false;
    wait_until("stopped", || {
        ended = child.try_wait().unwrap().is_some();
        let stat = fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap_or_default();
        ended || stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" T"))
    });
    !ended
}

fn end(child: Child) -> Said {
    child.wait_with_output().expect("kv ends").into()
}

fn first_stored(server: &Server) -> u64 {
    let text = fs::read(server.path("first.json")).expect("figures were written");
    serde_json::from_slice::<serde_json::Value>(&text).unwrap()["stored"]
        .as_u64()
        .unwrap()
}

/// Ingests again and checks that what was stored is not stored a second time.
fn resume(server: &Server, tree: &Path, count: u64, stored: u64) {
    let puts = server.stat("d", "puts_count");
    let (said, figures) = server.ingest("d", &[tree.as_os_str()]);
    said.expect(0, &[]);
    assert_eq!(figures["unchanged"], stored, "{figures}");
    assert_eq!(figures["stored"], count - stored, "{figures}");
    assert_eq!(figures["replaced"], 0, "{figures}");
    assert_eq!(server.stat("d", "puts_count"), puts + count - stored);
    let (said, figures) = server.verify("d", &[tree.as_os_str(), "--exact".as_ref()]);
    said.expect(0, &[]);
    assert_eq!(figures["verified"], count);
}

#[test]
fn an_interrupted_ingest_says_how_to_go_on_and_stores_nothing_twice() {
    for name in ["INT", "TERM"] {
        let (server, tree, count, child) = stopped_midway(&[]);
        signal(child.id(), name);
        signal(child.id(), "CONT");
        let code = if name == "INT" { 130 } else { 143 };
        end(child).expect(code, &["interrupted by signal", "run the same command again"]);
        let stored = first_stored(&server);
        assert!((300..count).contains(&stored), "{stored}");
        assert_eq!(server.stat("d", "keys_count"), stored);
        resume(&server, &tree, count, stored);
    }
}

#[test]
fn an_ingest_that_was_killed_is_resumed() {
    let (mut server, tree, count, mut child) = stopped_midway(&[]);
    child.kill().unwrap();
    child.wait().unwrap();
    // What the client had sent may still be stored after its end, but not after the server's.
    server.restart(&[]);
    let stored = server.stat("d", "keys_count");
    assert!(stored < count);
    resume(&server, &tree, count, stored);
}

#[test]
fn a_server_killed_during_an_ingest_that_comes_back_is_waited_for() {
    let (mut server, tree, count, child) = stopped_midway(&[]);
    server.restart(&[]);
    signal(child.id(), "CONT");
    end(child).expect(0, &[]);
    assert_eq!(server.stat("d", "keys_count"), count);
    server
        .verify("d", &[tree.as_os_str(), "--exact".as_ref()])
        .0
        .expect(0, &[]);
}

#[test]
fn a_server_killed_for_good_ends_the_ingest_with_one_line_and_the_rest_follows_later() {
    let (mut server, tree, count, child) = stopped_midway(&["--timeout", "2"]);
    server.kill();
    signal(child.id(), "CONT");
    let said = end(child);
    said.expect(1, &["kv: stopped:", "run the same command again"]);
    server.restart(&[]);
    // What was answered is there; what was not may be.
    let (stored, answered) = (server.stat("d", "keys_count"), first_stored(&server));
    assert!(answered <= stored && stored < count, "{answered} {stored}");
    resume(&server, &tree, count, stored);
}

/// The client is stopped meanwhile, so that the fetch cannot end before the server does.
#[test]
fn a_server_killed_during_a_fetch_is_waited_for_or_said() {
    let mut server = Server::with_dataset("d", &["--segment-bytes", "64M"]);
    let tree = server.path("tree");
    let count = 150_u64;
    for number in 0..count {
        write(&tree, format!("{number}").as_bytes(), &bytes(number, 1 << 20));
    }
    server.ingest("d", &[tree.as_os_str()]).0.expect(0, &[]);
    let timeout = |comes_back| if comes_back { "30" } else { "2" };
    for comes_back in [true, false] {
        let mut verify = server.kv();
        verify.args(["verify", &server.uri("d"), "--timeout", timeout(comes_back)]);
        verify.arg(&tree).stdout(Stdio::piped()).stderr(Stdio::piped());
        // One that ended before it was stopped was too fast, and another is begun.
        let child = (0..20).find_map(|_| {
            let mut child = verify.spawn().unwrap();
            wait_until("connected", || {
                child.try_wait().unwrap().is_some() || server.server_stat("data_connections_count") > 0
            });
            // It is ours until it is waited for, so its number is not another's.
            child
                .try_wait()
                .unwrap()
                .is_none()
                .then(|| signal(child.id(), "STOP"))?;
            is_stopped(&mut child).then_some(child)
        });
        let child = child.expect("every fetch ended before it was stopped");
        if comes_back {
            server.restart(&[]);
        } else {
            server.kill();
        }
        signal(child.id(), "CONT");
        let said = end(child);
        if comes_back {
            let stdout = &said.expect(0, &[]).stdout;
            assert!(stdout.starts_with("verified 150 of 150 samples"), "{said:?}");
        } else {
            said.expect(1, &["kv: stopped:", "not looked at"]);
        }
    }
    run(server
        .kv()
        .args(["verify", &server.uri("d"), "--timeout", "2"])
        .arg(&tree))
    .expect(1, &["kv: connecting to"]);
}

#[test]
fn a_reached_memory_budget_stops_and_what_was_answered_stays() {
    let mut server = Server::with_dataset(
        "d",
        &[
            "--segment-bytes",
            "16M",
            "--memory-budget",
            "64M",
            "--gather-budget",
            "16M",
        ],
    );
    let tree = server.path("tree");
    let count = 120_u64;
    for number in 0..count {
        write(&tree, format!("{number:03}").as_bytes(), &bytes(number, 1 << 20));
    }
    let child = begin_ingest(&server, &tree, &[]);
    end(child).expect(
        1,
        &["kv: stopped:", "memory budget", "run the same command again"],
    );
    let stored = first_stored(&server);
    assert!((1..count).contains(&stored), "{stored}");
    let (said, figures) = server.verify("d", &[tree.as_os_str()]);
    said.expect(1, &["missing"]);
    assert!(figures["verified"].as_u64().unwrap() >= stored, "{figures}");
    assert_eq!(figures["mismatched"], 0);
    server.set_arguments(&["--segment-bytes", "16M", "--memory-budget", "1G"]);
    server.restart(&[]);
    let stored = server.stat("d", "keys_count");
    resume(&server, &tree, count, stored);
}

/// Needs a file system of its own to fill; made in a mount namespace that ends with the server.
#[test]
fn a_full_disk_stops_and_what_was_answered_stays() {
    let mut server = Server::with_dataset("d", &["--segment-bytes", "16M", "--disk-reserve", "1M"]);
    server.kill();
    let tree = server.path("tree");
    let count = 120_u64;
    for number in 0..count {
        write(&tree, format!("{number:03}").as_bytes(), &bytes(number, 1 << 20));
    }
    let (data, kept) = (server.data(), server.path("kept"));
    fs::rename(&data, &kept).unwrap();
    fs::create_dir(&data).unwrap();
    let small = server.path("small");
    fs::write(
        &small,
        "#!/bin/bash\nset -e\nmount -t tmpfs -o size=64m none \"$1\"\ncp -a \"$2/.\" \"$1/\"\nshift 2\nexec \"$@\"\n",
    )
    .unwrap();
    let is_root = fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0);
    let flags = if is_root { "-m" } else { "-Urm" };
    let prefix: Vec<OsString> = ["unshare", flags, "bash"]
        .into_iter()
        .map(Into::into)
        .chain([small.into(), data.into(), kept.into()])
        .collect();
    server.restart(&prefix);
    let child = begin_ingest(&server, &tree, &[]);
    end(child).expect(1, &["kv: stopped:", "disk is full", "run the same command again"]);
    let stored = first_stored(&server);
    assert!((1..count).contains(&stored), "{stored}");
    let (_, figures) = server.verify("d", &[tree.as_os_str()]);
    assert!(figures["verified"].as_u64().unwrap() >= stored, "{figures}");
    assert_eq!(
        (&figures["mismatched"], &figures["failed"]),
        (&0.into(), &0.into())
    );
}

#[test]
fn who_may_not_is_told_so() {
    let server = Server::with_dataset("d", &["--segment-bytes", "64M"]);
    let tree = server.path("tree");
    write(&tree, b"f", b"1");
    let as_reader = |arguments: &[&OsStr]| {
        run(server
            .kv()
            .args(arguments)
            .arg("--key")
            .arg(server.path("reader.toml")))
    };
    let uri: OsString = server.uri("d").into();
    as_reader(&["ls".as_ref(), &uri]).expect(0, &[]);
    let said = as_reader(&["ingest".as_ref(), &uri, tree.as_ref()]);
    said.expect(1, &["the key may not do this"]);
    as_reader(&["dataset".as_ref(), "create".as_ref(), server.uri("new").as_ref()]).expect(1, &["may not"]);
    as_reader(&["dataset".as_ref(), "drop".as_ref(), &uri, "--yes".as_ref()]).expect(1, &["may not"]);
    assert_eq!(server.stat("d", "keys_count"), 0);

    server.keygen("stranger", "admin", &server.path("stranger.toml"));
    let said = run(server
        .kv()
        .args(["ls", &server.uri("d"), "--key"])
        .arg(server.path("stranger.toml")));
    said.expect(1, &["key is unknown or its proof is wrong"]);
    run(server.kv().args(["ls", &server.uri("d"), "--key-name", "nobody"]))
        .expect(1, &["admin.toml", "nobody"]);
    run(server.kv().args(["ls", &server.uri("none")])).expect(1, &["no such dataset"]);
}

#[test]
fn inputs_that_cannot_be_stored_are_named_and_the_others_go_on() {
    let server = Server::with_dataset("d", &["--segment-bytes", "64M"]);
    let tree = server.path("tree");
    let long = [
        vec![b'd'; 250],
        vec![b'e'; 250],
        vec![b'f'; 250],
        vec![b'g'; 250],
        vec![b'h'; 30],
    ]
    .join(&b'/');
    write(&tree, &long, b"long");
    write(&tree, b"good", b"good");
    std::os::unix::fs::symlink("nowhere", server.path("dangling")).unwrap();
    let dangling = server.path("dangling");
    let (said, figures) = server.ingest(
        "d",
        &[tree.as_os_str(), dangling.as_os_str(), "/no/such".as_ref()],
    );
    said.expect(
        1,
        &[
            "/no/such: No such file",
            "dangling: No such file",
            "1034 bytes, more than 1024",
            "3 of 4 failed",
        ],
    );
    assert_eq!((&figures["stored"], &figures["failed"]), (&1.into(), &3.into()));
    assert_eq!(server.get("d", b"good"), b"good");
    // Of a tree without anything else wrong, only the summary is said.
    let (said, _) = server.ingest("d", &[tree.join("good").as_os_str()]);
    assert!(
        said.expect(0, &[])
            .stdout
            .starts_with("stored 0 (0 B), unchanged 1 (4 B), skipped 0, failed 0;"),
        "{said:?}"
    );
    assert!(said.stderr.is_empty(), "{said:?}");

    let twice = [tree.join("good"), server.path("two/good")];
    write(&server.path("two"), b"good", b"other");
    let (said, _) = server.ingest("d", &[twice[0].as_os_str(), twice[1].as_os_str()]);
    said.expect(
        1,
        &[
            "two inputs give one key: key good",
            "tree/good",
            "two/good",
            "nothing was stored",
        ],
    );
    assert_eq!(server.get("d", b"good"), b"good");
}
