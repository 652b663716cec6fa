//! Files go in by `kv ingest` and come back byte for byte, whatever they are called and however often.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::{Server, bytes, files, run, write};

/// Parts of 8 MiB, so that a value of 10 MB is a large one.
const SMALL_PARTS: [&str; 4] = ["--segment-bytes", "64M", "--part-bytes", "8M"];

/// What is said of what [`hostile`] makes and nobody can store.
const SKIPPED: [&str; 4] = [
    "kv: skipped */a link: symbolic link",
    "kv: skipped */deep/dangling: symbolic link",
    "kv: skipped */a pipe: fifo",
    "kv: skipped */a socket: socket",
];

/// Room for one large value of a session, and for two of all: they are under way for long, and others come meanwhile.
const NARROW: [&str; 6] = [
    "--segment-bytes",
    "64M",
    "--part-bytes",
    "1M",
    "--gather-budget",
    "4M",
];

/// Files with the names and lengths that trip programs up; links and special files among them.
fn hostile(root: &Path, many: u64, large_bytes: usize) -> UnixListener {
    write(root, b"empty", b"");
    write(root, b" a name with spaces ", b"spaces");
    write(root, b"a\nnewline", b"newline");
    write(root, b"\xff\xfe no UTF-8", b"bytes");
    write(root, b"-0", b"looks like an option");
    write(root, b"$'quoted'", b"quoted");
    write(
        root,
        [&b"deep/".repeat(100)[..], b"file"].concat().as_slice(),
        b"deep",
    );
    write(root, "gr\u{fc}n/\u{202e}gnp".as_bytes(), b"direction mark");
    write(root, &b"k".repeat(255), b"a long name");
    for number in 0..many {
        write(
            root,
            format!("many/{}/{number}.txt", number % 50).as_bytes(),
            &bytes(number, (number % 700) as usize),
        );
    }
    for (length, name) in [
        (65_535, "b-1"),
        (65_536, "b"),
        (65_537, "b+1"),
        (1 << 20, "1M"),
        (large_bytes, "large"),
    ] {
        write(root, name.as_bytes(), &bytes(length as u64, length));
    }
    std::os::unix::fs::symlink("empty", root.join("a link")).unwrap();
    std::os::unix::fs::symlink("nowhere", root.join("deep/dangling")).unwrap();
    assert!(
        Command::new("mkfifo")
            .arg(root.join("a pipe"))
            .status()
            .unwrap()
            .success()
    );
    UnixListener::bind(root.join("a socket")).unwrap()
}

/// Of the names that trip programs up, one in `step` is fetched by itself, in a process of its own; of all, the bytes are
/// compared thrice.
fn round_trip(mut server: Server, many: u64, large_bytes: usize, step: usize) {
    let tree = server.path("tree");
    let _socket = hostile(&tree, many, large_bytes);
    let names = files(&tree);
    let count = names.len() as u64;

    let (said, figures) = server.ingest("images", &[tree.as_os_str()]);
    said.expect(0, &SKIPPED);
    assert_eq!(
        (&figures["stored"], &figures["skipped"], &figures["failed"]),
        (&count.into(), &4.into(), &0.into())
    );
    assert_eq!(server.keys("images"), names);
    assert_eq!(server.stat("images", "keys_count"), count);

    let (said, figures) = server.verify("images", &[tree.as_os_str(), "--exact".as_ref()]);
    said.expect(0, &SKIPPED);
    assert_eq!(
        (&figures["verified"], &figures["samples"]),
        (&count.into(), &count.into())
    );
    // Two buckets and the record; the directory is read once for all.
    let figure = |name: &str| figures[name].as_u64().unwrap();
    let reads = figure("reads_posted") - figure("split_reads") - figure("directory_reads");
    assert!(
        figure("gets") == count && reads <= 3 * count && figure("directory_reads") <= 2,
        "{figures}"
    );
    let (said, figures) = server.verify("images", &[tree.as_os_str(), "--known".as_ref(), "-q".as_ref()]);
    said.expect(0, &[]);
    assert_eq!(figures["reads_per_get"], 1.0, "{figures}");

    let tricky = names.iter().filter(|name| !name.starts_with(b"many/"));
    for name in tricky.step_by(step) {
        assert_eq!(
            server.get("images", name),
            fs::read(tree.join(OsStr::from_bytes(name))).unwrap(),
            "{name:?}"
        );
    }

    // Everything that was answered survives the server.
    server.restart(&[]);
    let (said, figures) = server.verify(
        "images",
        &[tree.as_os_str(), "--exact".as_ref(), "--seed=9".as_ref()],
    );
    said.expect(0, &SKIPPED);
    assert_eq!(figures["verified"], count);

    // And nothing is stored again.
    let puts = server.stat("images", "puts_count");
    let (said, figures) = server.ingest("images", &[tree.as_os_str()]);
    said.expect(0, &SKIPPED);
    assert_eq!(
        (&figures["stored"], &figures["unchanged"]),
        (&0.into(), &count.into())
    );
    assert_eq!(server.stat("images", "puts_count"), puts);
}

#[test]
fn hostile_names_and_lengths_come_back_as_they_were() {
    let server = Server::with_dataset("images", &SMALL_PARTS);
    round_trip(server, 3000, 20_000_000, 1);
}

#[test]
#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]
fn hostile_names_and_lengths_come_back_as_they_were_over_verbs() {
    let host = std::env::var("VKV_TEST_ADDR");
    let host = host.expect("VKV_TEST_ADDR names no address: run inside soft-roce-ci/run");
    let server = Server::start_on(Some(format!("{host}:7481")), &SMALL_PARTS).create("images");
    round_trip(server, 60, 10_000_000, 4);
}

/// Two files of 110 MB once kept each shorter one from being stored until they were, and where that took longer than a
/// call's deadline the ingest was over.
fn large_among_short(server: &Server, large_bytes: usize, timeout: &str) {
    let tree = server.path("tree");
    let _socket = hostile(&tree, 300, large_bytes);
    for number in 0..3_u64 {
        let name = format!("between\n{number} large\u{fffd}");
        write(
            &tree,
            name.as_bytes(),
            &bytes(number, large_bytes + number as usize),
        );
    }
    let count = files(&tree).len() as u64;
    let (said, figures) = server.ingest("images", &[tree.as_os_str(), timeout.as_ref()]);
    said.expect(0, &SKIPPED);
    assert_eq!(figures["stored"], count, "{figures}");
    let (said, figures) = server.verify("images", &[tree.as_os_str(), "--exact".as_ref()]);
    said.expect(0, &SKIPPED);
    assert_eq!(figures["verified"], count, "{figures}");
}

#[test]
fn large_files_leave_room_for_short_ones() {
    large_among_short(
        &Server::with_dataset("images", &NARROW),
        40_000_000,
        "--timeout=30",
    );
}

/// Each large value takes three seconds over the emulated device, and the last waits for three others.
#[test]
#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]
fn large_files_leave_room_for_short_ones_over_verbs() {
    let host = std::env::var("VKV_TEST_ADDR").expect("VKV_TEST_ADDR names the device's address");
    let server = Server::start_on(Some(format!("{host}:7482")), &NARROW).create("images");
    large_among_short(&server, 20_000_000, "--timeout=5");
}

#[test]
fn a_value_of_300_mb_comes_back_as_it_was() {
    round_trip(Server::with_dataset("images", &[]), 10, 300_000_000, 1);
}

#[test]
fn shards_are_stored_by_member_and_a_malformed_one_not_at_all() {
    let server = Server::with_dataset("shards", &["--segment-bytes", "64M"]);
    let tree = server.path("tree");
    let names: [&[u8]; 6] = [
        b"000000.jpg",
        b"000000.cls",
        b"dir/000001.jpg",
        b"new\nline",
        b"\xff",
        &[b"long/".repeat(40), b"x".to_vec()].concat(),
    ];
    for (name, number) in names.iter().zip(0..) {
        write(&tree, name, &bytes(number, 1000 * number as usize));
    }
    for format in ["gnu", "pax", "ustar"] {
        let shard = server.path(&format!("{format}.tar"));
        let mut tar = Command::new("tar");
        tar.arg("-C")
            .arg(&tree)
            .arg(format!("--format={format}"))
            .arg("-cf")
            .arg(&shard);
        // ustar has no room for the long name; "." gives every member a leading "./".
        if format == "ustar" {
            tar.args(["--exclude=long", "."]);
        } else {
            tar.arg(".");
        }
        assert!(tar.status().unwrap().success());
        let prefix = format!("--prefix={format}/");
        let (said, _) = server.ingest("shards", &[shard.as_os_str(), prefix.as_ref()]);
        said.expect(0, &[]);
        let (said, figures) = server.verify("shards", &[shard.as_os_str(), prefix.as_ref()]);
        said.expect(0, &[]);
        assert_eq!(figures["verified"], if format == "ustar" { 5 } else { 6 });
        assert_eq!(
            server.get("shards", &[format.as_bytes(), b"/new\nline"].concat()),
            bytes(3, 3000)
        );
    }
    let whole = fs::read(server.path("pax.tar")).unwrap();
    let (bad, good) = (server.path("bad.tar"), server.path("good"));
    fs::write(&bad, &whole[..whole.len() - 12_288]).unwrap();
    write(&good, b"file", b"good");
    let (said, figures) = server.ingest(
        "shards",
        &[bad.as_os_str(), good.as_os_str(), "--prefix=bad/".as_ref()],
    );
    said.expect(
        1,
        &[
            "kv: */bad.tar: malformed tar at offset *, nothing of it is stored: *",
            "kv: 1 of 2 failed (named above)",
        ],
    );
    assert_eq!((&figures["stored"], &figures["failed"]), (&1.into(), &1.into()));
    let of_bad: Vec<_> = server
        .keys("shards")
        .into_iter()
        .filter(|key| key.starts_with(b"bad/"))
        .collect();
    assert_eq!(of_bad, [b"bad/file"]);
    // Nothing of what is no tar reaches the terminal.
    let noise = server.path("noise.tar");
    fs::write(&noise, b"hello \x1b[2Jworld\n".repeat(100)).unwrap();
    let (said, _) = server.ingest("shards", &[noise.as_os_str()]);
    said.expect(
        1,
        &[
            "kv: */noise.tar: malformed tar at offset 0, nothing of it is stored: no header of a member: its checksum does \
             not agree",
            "kv: 1 of 1 failed (named above)",
        ],
    );
    // As a file it may be what it is.
    let (said, _) = server.ingest("shards", &[bad.as_os_str(), "--as-files".as_ref()]);
    said.expect(0, &[]);
    assert_eq!(server.get("shards", b"bad.tar"), fs::read(&bad).unwrap());
}

#[test]
fn values_that_changed_are_replaced_and_only_those() {
    let server = Server::with_dataset("d", &["--segment-bytes", "64M"]);
    let tree = server.path("tree");
    for name in [&b"same"[..], b"length", b"bytes"] {
        write(&tree, name, b"12345");
    }
    server.ingest("d", &[tree.as_os_str()]).0.expect(0, &[]);
    write(&tree, b"length", b"123456");
    write(&tree, b"bytes", b"12346");
    let (said, figures) = server.verify("d", &[tree.as_os_str()]);
    said.expect(
        1,
        &[
            "kv: key bytes (from */bytes): differs from its source at byte 4",
            "kv: key length (from */length): 5 bytes are stored, its source has 6",
            "kv: 2 differences (named above)",
        ],
    );
    assert_eq!(
        (&figures["verified"], &figures["mismatched"]),
        (&1.into(), &2.into())
    );
    let (said, _) = server.ingest("d", &[tree.as_os_str(), "--no-overwrite".as_ref()]);
    said.expect(
        1,
        &[
            "kv: */bytes: key bytes has another value (leave out --no-overwrite to replace it)",
            "kv: */length: key length has another value (leave out *",
            "kv: 2 of 3 failed (named above)",
        ],
    );
    assert_eq!(server.get("d", b"length"), b"12345");
    let (said, figures) = server.ingest("d", &[tree.as_os_str(), "--skip-existing".as_ref()]);
    said.expect(0, &[]);
    assert_eq!(
        (&figures["stored"], &figures["unchanged"]),
        (&1.into(), &2.into())
    );
    assert_eq!(server.get("d", b"bytes"), b"12345");
    let (said, figures) = server.ingest("d", &[tree.as_os_str()]);
    said.expect(0, &[]);
    assert_eq!(
        (&figures["replaced"], &figures["unchanged"]),
        (&1.into(), &2.into())
    );
    server
        .verify("d", &[tree.as_os_str(), "--exact".as_ref()])
        .0
        .expect(0, &[]);

    fs::remove_file(tree.join("same")).unwrap();
    write(&tree, b"other", b"x");
    let (said, figures) = server.verify("d", &[tree.as_os_str(), "--exact".as_ref()]);
    said.expect(
        1,
        &[
            "kv: key same: 5 bytes that no source has",
            "kv: key other (from */other): missing",
            "kv: 2 differences (named above)",
        ],
    );
    assert_eq!((&figures["missing"], &figures["extra"]), (&1.into(), &1.into()));
}

#[test]
fn keys_are_listed_fetched_and_deleted() {
    let server = Server::with_dataset("d", &["--segment-bytes", "64M"]);
    let tree = server.path("tree");
    for name in [&b"a/1"[..], b"a/2", b"b\n", b"c\xff"] {
        write(&tree, name, &bytes(1, 200_000));
    }
    server.ingest("d", &[tree.as_os_str()]).0.expect(0, &[]);
    let uri = server.uri("d");
    let listed = run(server.kv().args(["ls", &uri]));
    assert_eq!(listed.expect(0, &[]).stdout, "a/1\na/2\n$'b\\n'\n$'c\\377'\n");
    let listed = run(server.kv().args(["ls", &uri, "-l", "--prefix", "a/"]));
    assert_eq!(
        listed.expect(0, &[]).stdout,
        "      200000  a/1\n      200000  a/2\n"
    );
    let listed = run(server.kv().args(["ls", &uri, "--json", "--unsorted"]));
    assert_eq!(listed.expect(0, &[]).stdout.lines().count(), 4);
    assert!(
        listed
            .stdout
            .contains("{\"key\":null,\"key_hex\":\"63ff\",\"bytes\":200000}"),
        "{listed:?}"
    );

    // What ls prints, a shell gives back.
    let shell = format!(
        "{} get '{uri}' $'c\\377' --range 65530:20",
        env!("CARGO_BIN_EXE_kv")
    );
    let got = server
        .kv()
        .get_envs()
        .fold(Command::new("bash"), |mut bash, (name, value)| {
            if let Some(value) = value {
                bash.env(name, value);
            }
            bash
        })
        .args(["-c", &shell])
        .output()
        .unwrap();
    assert_eq!(got.stdout, bytes(1, 200_000)[65_530..65_550], "{got:?}");
    let file = server.path("out");
    run(server
        .kv()
        .args(["get", &uri, "--key-hex", "620a", "-o"])
        .arg(&file))
    .expect(0, &[]);
    assert_eq!(fs::read(&file).unwrap(), bytes(1, 200_000));
    run(server.kv().args(["get", &uri, "none"])).expect(
        1,
        &["kv: getting none from local:*: there is no such key (`kv ls` lists the keys)"],
    );

    run(server.kv().args(["rm", &uri, "a/1", "none"])).expect(
        1,
        &[
            "kv: none: there is no such key",
            "kv: 1 key not there (named above)",
        ],
    );
    run(server.kv().args(["rm", &uri, "--prefix", "a/"])).expect(
        1,
        &["kv: local:* holds 1 key beginning with a/: nothing was deleted (add --yes to delete them)"],
    );
    let removed = run(server.kv().args(["rm", &uri, "--prefix", "a/", "--yes"]));
    assert_eq!(removed.expect(0, &[]).stdout, "deleted 1 key\n");
    run(server.kv().args(["rm", &uri, "--key-hex", "63FF"])).expect(0, &[]);
    assert_eq!(server.keys("d").into_iter().collect::<Vec<_>>(), [b"b\n"]);
    run(server.kv().args(["get", &uri, "a/2"])).expect(
        1,
        &["kv: getting a/2 from local:*: there is no such key (`kv ls` lists the keys)"],
    );

    for number in 0..300 {
        write(&tree, format!("many/{number}").as_bytes(), b"x");
    }
    server.ingest("d", &[tree.as_os_str()]).0.expect(0, &[]);
    run(server.kv().args(["rm", &uri, "--prefix", "", "--yes"])).expect(
        2,
        &["kv: --prefix is empty: every key begins with it (--all deletes every key)"],
    );
    run(server.kv().args(["rm", &uri, "--all"])).expect(
        1,
        &["kv: local:* holds 304 keys: nothing was deleted (add --yes to delete them)"],
    );
    let removed = run(server.kv().args(["rm", &uri, "--all", "--yes"]));
    assert_eq!(removed.expect(0, &[]).stdout, "deleted 304 keys\n");
    assert!(server.keys("d").is_empty());
}

/// Given to `xargs kv rm`, as the help advised, these deleted every key.
#[test]
fn keys_that_look_like_options_are_only_keys() {
    let server = Server::with_dataset("d", &["--segment-bytes", "64M"]);
    let tree = server.path("tree");
    for name in [&b"--prefix="[..], b"-y", b"--all", b"n\nl", b"kept"] {
        write(&tree, name, b"1");
    }
    server.ingest("d", &[tree.as_os_str()]).0.expect(0, &[]);
    let script = format!(
        "kv=(timeout 60 '{}'); \"${{kv[@]}}\" ls '{uri}' -0 | grep -zv kept | \"${{kv[@]}}\" rm '{uri}' -0",
        env!("CARGO_BIN_EXE_kv"),
        uri = server.uri("d")
    );
    let removed = run(Command::new("bash")
        .args(["-c", &script])
        .env("VKV_KEY_FILE", server.path("admin.toml")));
    assert_eq!(removed.expect(0, &[]).stdout, "deleted 4 keys\n");
    assert_eq!(server.keys("d").into_iter().collect::<Vec<_>>(), [b"kept"]);
}

#[test]
fn a_reader_that_leaves_early_is_no_error() {
    let server = Server::with_dataset("d", &["--segment-bytes", "64M"]);
    let tree = server.path("tree");
    let long = "x".repeat(200);
    for number in 0..2000 {
        write(&tree, format!("{long}{number}").as_bytes(), b"");
    }
    server.ingest("d", &[tree.as_os_str()]).0.expect(0, &[]);
    let mut child = server
        .kv()
        .args(["ls", &server.uri("d")])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::with_capacity(1, child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert!(line.starts_with(&long));
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!((child.wait().unwrap().code(), &said[..]), (Some(0), ""));
}

#[test]
fn datasets_are_created_renamed_and_dropped() {
    let server = Server::start(&["--segment-bytes", "64M"]);
    let (one, two) = (server.uri("one"), server.uri("two"));
    let dataset = |arguments: &[&str]| run(server.kv().arg("dataset").args(arguments));
    dataset(&["create", &one]).expect(0, &[]);
    dataset(&["create", &one]).expect(1, &["kv: creating local:*: *a dataset *one* exists*"]);
    dataset(&["create", &one, "--if-missing"]).expect(0, &[]);
    let tree = server.path("tree");
    write(&tree, b"f", b"123");
    let (said, _) = server.ingest("two", &[tree.as_os_str()]);
    said.expect(
        1,
        &["kv: opening local:*: * `two`: there is no such dataset (`kv dataset ls` lists *) (or give --create)"],
    );
    server
        .ingest("two", &[tree.as_os_str(), "--create".as_ref()])
        .0
        .expect(0, &[]);
    let listed = dataset(&["ls", &server.server_uri()]);
    let lines: Vec<String> = listed
        .stdout
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    assert_eq!(lines, ["one 0 keys 0 B", "two 1 key 3 B"], "{listed:?}");
    dataset(&["rename", &two, "one"]).expect(1, &["kv: renaming local:* to one: * exists*"]);
    dataset(&["rename", &two, "three"]).expect(0, &[]);
    assert_eq!(server.get("three", b"f"), b"123");
    run(server.kv().args(["ls", &two])).expect(
        1,
        &["kv: opening local:*: * `two`: there is no such dataset (`kv dataset ls` lists *"],
    );
    dataset(&["drop", &server.uri("three")]).expect(
        1,
        &["kv: three holds 1 key, 3 B: not dropped (add --yes to drop it for good)"],
    );
    dataset(&["drop", &server.uri("three"), "--yes"]).expect(0, &[]);
    dataset(&["drop", &server.uri("three"), "--yes"])
        .expect(1, &["kv: dropping local:*: *there is no * dataset*"]);
    let stat = run(server.kv().args(["stat", &server.server_uri()]));
    assert!(stat.expect(0, &[]).stdout.contains("memory"), "{stat:?}");
}
