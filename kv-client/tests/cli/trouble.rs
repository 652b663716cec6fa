//! What goes wrong with a server, on the way to it, or with the one who asks: one clear line, and nothing lost.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

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

/// Such a command, stopped while it fetches. One that ended before was too fast, and another is begun.
fn stopped_fetch(server: &Server, verify: &mut Command) -> Child {
    let child = (0..20).find_map(|_| {
        let mut child = verify.spawn().unwrap();
        wait_until("connected", || {
            child.try_wait().unwrap().is_some() || server.server_stat("data_connections_count") > 0
        });
        // It is ours until it is waited for, so its number is not another's.
        let runs = child.try_wait().unwrap().is_none();
        runs.then(|| signal(child.id(), "STOP"))?;
        is_stopped(&mut child).then_some(child)
    });
    child.expect("every fetch ended before it was stopped")
}

fn end(child: Child) -> Said {
    child.wait_with_output().expect("kv ends").into()
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
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
        end(child).expect(
            code,
            &["kv: interrupted by signal *: * values not stored (run the same command again *"],
        );
        let stored = first_stored(&server);
        assert!((300..count).contains(&stored), "{stored}");
        assert_eq!(server.stat("d", "keys_count"), stored);
        resume(&server, &tree, count, stored);
    }
}

/// Whoever ends a process and its group, as `timeout` does, sends one signal twice.
#[test]
fn a_signal_that_comes_twice_at_once_is_taken_for_one() {
    let (server, tree, count, child) = stopped_midway(&[]);
    // Two of one number would be one to a process that is stopped.
    for name in ["INT", "TERM", "CONT"] {
        signal(child.id(), name);
    }
    // Threads may take them in either order.
    let said = end(child);
    let code = if said.code == Some(143) { 143 } else { 130 };
    said.expect(
        code,
        &["kv: interrupted by signal *: * values not stored (run the same command again *"],
    );
    resume(&server, &tree, count, first_stored(&server));
}

#[test]
fn a_dataset_that_is_dropped_during_an_ingest_is_said() {
    let (server, _, _, child) = stopped_midway(&[]);
    run(server.kv().args(["dataset", "drop", &server.uri("d"), "--yes"])).expect(0, &[]);
    signal(child.id(), "CONT");
    end(child).expect(
        1,
        &["kv: stopped: put `*` in dataset `d`: *dataset* (`kv dataset ls` lists *: * values not stored (when that is remedied, *"],
    );
}

/// Its lease runs out meanwhile, and the server fences its session.
#[test]
fn a_fetch_that_is_stopped_past_its_lease_begins_anew() {
    let leases = [
        "--segment-bytes",
        "64M",
        "--lease-ms",
        "300",
        "--max-lag-ms",
        "600",
    ];
    let server = Server::with_dataset("d", &leases);
    let tree = server.path("tree");
    for number in 0..150 {
        write(&tree, format!("{number}").as_bytes(), &bytes(number, 1 << 20));
    }
    server.ingest("d", &[tree.as_os_str()]).0.expect(0, &[]);
    let mut verify = server.kv();
    verify.args(["verify", &server.uri("d")]).arg(&tree);
    verify.stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = stopped_fetch(&server, &mut verify);
    let fenced = server.server_stat("fenced_count");
    wait_until("fenced", || server.server_stat("fenced_count") > fenced);
    signal(child.id(), "CONT");
    let said = end(child);
    let stdout = &said.expect(0, &[]).stdout;
    assert!(stdout.starts_with("verified 150 of 150 samples"), "{said:?}");
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
    said.expect(
        1,
        &["kv: stopped: *: * values not stored (when that is remedied, run the same command again *"],
    );
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
        let child = stopped_fetch(&server, &mut verify);
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
            said.expect(1, &["kv: stopped: *: * not looked at"]);
        }
    }
    run(server
        .kv()
        .args(["verify", &server.uri("d"), "--timeout", "2"])
        .arg(&tree))
    .expect(1, &["kv: connecting to local:*: *"]);
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
    end(child).expect(1, &["kv: stopped: *memory budget*: * values not stored (when that is remedied, run the same command again *"]);
    let stored = first_stored(&server);
    assert!((1..count).contains(&stored), "{stored}");
    let (said, figures) = server.verify("d", &[tree.as_os_str()]);
    assert_eq!(said.code, Some(1), "{said:?}");
    let missing = format!("kv: {} differences (named above)", figures["missing"]);
    let mut lines: Vec<&str> = said.stderr.lines().collect();
    assert_eq!(lines.pop(), Some(&missing[..]), "{said:?}");
    assert!(
        lines
            .iter()
            .all(|line| line.ends_with(": missing") || line.starts_with("verifying ")),
        "{said:?}"
    );
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
    let flags = if is_root() { "-m" } else { "-Urm" };
    let prefix: Vec<OsString> = ["unshare", flags, "bash"]
        .into_iter()
        .map(Into::into)
        .chain([small.into(), data.into(), kept.into()])
        .collect();
    server.restart(&prefix);
    let child = begin_ingest(&server, &tree, &[]);
    end(child).expect(1, &["kv: stopped: *the server's disk is full (free space *: * values not stored (when that is remedied, run the same command again *"]);
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
    said.expect(
        1,
        &["kv: stopped: *the key may not do this (use a key *: 1 value not stored (*"],
    );
    as_reader(&["dataset".as_ref(), "create".as_ref(), server.uri("new").as_ref()]).expect(
        1,
        &["kv: creating local:*: *the key may not do this (use a key *"],
    );
    as_reader(&["dataset".as_ref(), "drop".as_ref(), &uri, "--yes".as_ref()]).expect(
        1,
        &["kv: dropping local:*: *the key may not do this (use a key *"],
    );
    assert_eq!(server.stat("d", "keys_count"), 0);

    server.keygen("stranger", "admin", &server.path("stranger.toml"));
    let said = run(server
        .kv()
        .args(["ls", &server.uri("d"), "--key"])
        .arg(server.path("stranger.toml")));
    said.expect(1, &["kv: connecting to local:*: *key is unknown or its proof is wrong (give the key file of this server*"]);
    run(server.kv().args(["ls", &server.uri("d"), "--key-name", "nobody"])).expect(
        1,
        &["kv: key file */admin.toml: it has no key named `nobody` (*--key-name NAME *"],
    );
    run(server.kv().args(["ls", &server.uri("none")])).expect(
        1,
        &["kv: opening local:*: * `none`: there is no such dataset (`kv dataset ls` lists *"],
    );
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
            "kv: /no/such: No such file or directory (os error 2)",
            "kv: */dangling: No such file or directory (os error 2)",
            "kv: */h*: its key would have 1034 bytes, more than 1024 (shorten its path)",
            "kv: 3 of 4 failed (named above)",
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
        &["kv: two inputs give one key: key good: from */tree/good and from */two/good (nothing was stored*"],
    );
    assert_eq!(server.get("d", b"good"), b"good");
}

/// Of many things that are wrong, those that come first are named.
#[test]
fn many_differences_do_not_fill_the_screen() {
    let server = Server::with_dataset("d", &["--segment-bytes", "64M"]);
    let tree = many(&server, 150);
    std::os::unix::fs::symlink("none", tree.join("link")).unwrap();
    for quiet in [&[][..], &["-q".as_ref()]] {
        let (said, figures) = server.verify("d", &[&[tree.as_os_str()], quiet].concat());
        assert_eq!(
            (said.code, &figures["missing"]),
            (Some(1), &150.into()),
            "{said:?}"
        );
        let missing = said
            .stderr
            .lines()
            .filter(|line| line.ends_with(": missing"))
            .count();
        assert_eq!(missing, 100, "{said:?}");
        let skipped = usize::from(quiet.is_empty());
        assert_eq!(said.stderr.lines().count(), 100 + skipped + 2, "{said:?}");
        assert!(
            said.stderr
                .ends_with("kv: 150 differences (the first ones named above)\n"),
            "{said:?}"
        );
        assert_eq!(figures["problems"].as_array().unwrap().len(), 150);
    }
}

/// Root may read everything, unless it goes without that right.
#[test]
fn a_source_that_may_not_be_read_is_named_and_the_others_go_on() {
    let server = Server::with_dataset("d", &["--segment-bytes", "64M"]);
    let tree = server.path("tree");
    for name in [&b"secret"[..], b"closed/file", b"good"] {
        write(&tree, name, b"1");
    }
    let forbid =
        |name: &str, mode| fs::set_permissions(tree.join(name), fs::Permissions::from_mode(mode)).unwrap();
    forbid("secret", 0o000);
    forbid("closed", 0o000);
    let words = |mut command: Command| {
        command.args(["ingest", &server.uri("d")]).arg(&tree);
        let mut bound = Command::new("setpriv");
        bound.args(["--bounding-set", "-dac_override,-dac_read_search", "--"]);
        bound.arg(command.get_program()).args(command.get_args());
        bound.env("VKV_KEY_FILE", server.path("admin.toml"));
        if is_root() { bound } else { command }
    };
    let said = run(&mut words(server.kv()));
    forbid("closed", 0o700);
    said.expect(
        1,
        &[
            "kv: */tree/closed: Permission denied (os error 13)",
            "kv: */tree/secret: Permission denied (os error 13)",
            "kv: 2 of 3 failed (named above)",
        ],
    );
    assert_eq!(server.keys("d").into_iter().collect::<Vec<_>>(), [b"good"]);
    forbid("secret", 0o600);
}
