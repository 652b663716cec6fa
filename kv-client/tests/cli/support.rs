//! A real `kv-server`, over `local:` unless told otherwise, and the `kv` command that talks to it.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use serde_json::Value;

/// Longest wait for a server to be ready, and for anything else that takes no time.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The server program, built from the same tree: named by `VKV_KV_SERVER`, built by cargo where a test runs under it,
/// else beside `kv`.
pub(crate) fn server_program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        if let Some(named) = std::env::var_os("VKV_KV_SERVER") {
            return named.into();
        }
        let kv = Path::new(env!("CARGO_BIN_EXE_kv"));
        if let Some(cargo) = std::env::var_os("CARGO") {
            let mut build = Command::new(cargo);
            build.current_dir(env!("CARGO_MANIFEST_DIR")).args([
                "build",
                "-q",
                "-p",
                "kv-server",
                "--bin",
                "kv-server",
            ]);
            if kv.parent().is_some_and(|folder| folder.ends_with("release")) {
                build.arg("--release");
            }
            assert!(
                build.status().expect("cargo runs").success(),
                "kv-server does not build"
            );
        }
        let program = kv.with_file_name("kv-server");
        assert!(
            program.exists(),
            "{} is missing: cargo build -p kv-server",
            program.display()
        );
        program
    })
}

/// The `kv` command without anything that the environment says.
pub(crate) fn kv() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kv"));
    command
        .env_remove("VKV_KEY_FILE")
        .env_remove("VKV_KEY_NAME")
        .env_remove("RUST_LOG")
        .stdin(Stdio::null());
    command
}

/// What a finished command said.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Said {
    /// Fails unless the exit code is `code` and stderr holds these lines, in any order, and no other; `*` in a line
    /// stands for any text. How far a command is may be said besides, on a slow machine.
    #[track_caller]
    pub(crate) fn expect(&self, code: i32, lines: &[&str]) -> &Self {
        assert_eq!(self.code, Some(code), "{self:?}");
        let is_progress = |line: &&str| line.starts_with("storing ") || line.starts_with("verifying ");
        let mut said: Vec<&str> = self.stderr.lines().filter(|line| !is_progress(line)).collect();
        for line in lines {
            let found = said.iter().position(|said| is_like(said, line));
            said.remove(found.unwrap_or_else(|| panic!("no line is {line:?}: {self:#?}")));
        }
        assert!(said.is_empty(), "nobody expects {said:#?}: {self:#?}");
        self
    }

    /// Fails unless the command line was refused, with every text on stderr: of what is wrong with one, clap says more
    /// than a line.
    #[track_caller]
    pub(crate) fn refused_by_clap(&self, on_stderr: &[&str]) -> &Self {
        assert_eq!(self.code, Some(2), "{self:?}");
        for text in on_stderr {
            assert!(self.stderr.contains(text), "{text:?} is not in {:?}", self.stderr);
        }
        self
    }
}

/// Whether a line is like a pattern, in which `*` stands for any text.
fn is_like(line: &str, pattern: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = line.strip_prefix(parts.next().unwrap_or_default()) else {
        return false;
    };
    let Some(last) = parts.next_back() else {
        return rest.is_empty();
    };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[test]
fn patterns_match_whole_lines() {
    for pattern in ["abc", "a*", "*c", "*", "a*c", "*b*", "abc*"] {
        assert!(is_like("abc", pattern), "{pattern}");
    }
    for pattern in ["ab", "bc", "a*b", "b*", "*d*", "abc*c", ""] {
        assert!(!is_like("abc", pattern), "{pattern}");
    }
}

/// Runs a command to its end.
pub(crate) fn run(command: &mut Command) -> Said {
    command.output().expect("the command runs").into()
}

/// A running server and its directories.
pub(crate) struct Server {
    pub(crate) dir: tempfile::TempDir,
    /// Address of an RDMA device that it listens on; none where that is its socket.
    rdma: Option<String>,
    arguments: Vec<String>,
    child: Option<Child>,
}

impl Server {
    /// Starts one with a fresh data directory.
    pub(crate) fn start(arguments: &[&str]) -> Self {
        Self::start_on(None, arguments)
    }

    /// Starts one that listens on `rdma` (`host:port`), or on a socket.
    pub(crate) fn start_on(rdma: Option<String>, arguments: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let server = Self {
            dir,
            rdma,
            arguments: arguments.iter().map(|text| (*text).to_owned()).collect(),
            child: None,
        };
        for (name, role) in [("admin", "admin"), ("reader", "read")] {
            server.keygen(name, role, &server.path(&format!("{name}.toml")));
        }
        let all =
            ["admin", "reader"].map(|name| fs::read_to_string(server.path(&format!("{name}.toml"))).unwrap());
        fs::write(server.path("keys.toml"), all.concat()).unwrap();
        fs::set_permissions(server.path("keys.toml"), fs::Permissions::from_mode(0o600)).unwrap();
        let mut server = server;
        server.restart(&[]);
        server
    }

    /// Starts one that has the dataset `name`.
    pub(crate) fn with_dataset(name: &str, arguments: &[&str]) -> Self {
        Self::start(arguments).create(name)
    }

    /// The same, with the dataset `name`.
    pub(crate) fn create(self, name: &str) -> Self {
        run(self.kv().args(["dataset", "create", &self.uri(name)])).expect(0, &[]);
        self
    }

    pub(crate) fn keygen(&self, name: &str, role: &str, out: &Path) {
        let made = Command::new(server_program())
            .args(["keygen", "--name", name, "--role", role, "--out"])
            .arg(out)
            .output()
            .expect("kv-server runs");
        assert!(made.status.success(), "{made:?}");
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.path("data")
    }

    /// The server command that runs on this directory.
    pub(crate) fn command(&self) -> Vec<OsString> {
        let mut words: Vec<OsString> = vec![server_program().into(), "serve".into()];
        words.extend(["--data".into(), self.data().into()]);
        words.extend(["--listen".into(), self.server_uri().into()]);
        words.extend(["--keys".into(), self.path("keys.toml").into()]);
        words.extend(["--ready-file".into(), self.path("ready").into()]);
        words.extend(self.arguments.iter().map(Into::into));
        words
    }

    /// Whether it ended by itself, and how.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        let child = self.child.as_mut().expect("the server was started");
        child.try_wait().expect("it is our child")
    }

    /// Kills the server with SIGKILL, if it runs.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("the server is killed");
            child.wait().expect("the server ends");
        }
    }

    /// Starts it again on the same data, with `prefix` in front of its command.
    pub(crate) fn restart(&mut self, prefix: &[OsString]) {
        self.kill();
        let _ = fs::remove_file(self.path("ready"));
        let words: Vec<OsString> = prefix.iter().cloned().chain(self.command()).collect();
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.path("log"))
            .unwrap();
        let child = Command::new(&words[0])
            .args(&words[1..])
            .stderr(log)
            .stdout(Stdio::null())
            .spawn();
        self.child = Some(child.expect("the server starts"));
        let start = Instant::now();
        while !self.path("ready").exists() {
            let ended = self
                .child
                .as_mut()
                .and_then(|child| child.try_wait().expect("it is our child"));
            assert!(ended.is_none(), "the server ended: {}", self.log());
            assert!(
                start.elapsed() < PATIENCE,
                "the server is not ready: {}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Other arguments from the next start on.
    pub(crate) fn set_arguments(&mut self, arguments: &[&str]) {
        self.arguments = arguments.iter().map(|text| (*text).to_owned()).collect();
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    pub(crate) fn uri(&self, dataset: &str) -> String {
        let separator = if self.rdma.is_some() { "/" } else { "?dataset=" };
        format!("{}{separator}{dataset}", self.server_uri())
    }

    pub(crate) fn server_uri(&self) -> String {
        match &self.rdma {
            Some(address) => format!("rdma://{address}"),
            None => format!("local:{}", self.path("socket").display()),
        }
    }

    /// `kv` with the admin's key.
    pub(crate) fn kv(&self) -> Command {
        let mut command = kv();
        command.env("VKV_KEY_FILE", self.path("admin.toml"));
        command
    }

    /// `kv ingest` into `dataset`; its figures besides what it said.
    pub(crate) fn ingest(&self, dataset: &str, arguments: &[&OsStr]) -> (Said, Value) {
        self.with_json("ingest", dataset, arguments)
    }

    /// `kv verify` of `dataset`; its figures besides what it said.
    pub(crate) fn verify(&self, dataset: &str, arguments: &[&OsStr]) -> (Said, Value) {
        self.with_json("verify", dataset, arguments)
    }

    fn with_json(&self, verb: &str, dataset: &str, arguments: &[&OsStr]) -> (Said, Value) {
        let file = self.path("figures.json");
        let _ = fs::remove_file(&file);
        let said = run(self
            .kv()
            .args([verb, &self.uri(dataset), "--json"])
            .arg(&file)
            .args(arguments));
        let figures = fs::read(&file).map_or(Value::Null, |text| {
            serde_json::from_slice(&text).expect("it is JSON")
        });
        (said, figures)
    }

    /// One figure of `kv stat` of a dataset.
    pub(crate) fn stat(&self, dataset: &str, name: &str) -> u64 {
        self.figure(&self.uri(dataset), name)
    }

    /// One figure of `kv stat` of the server.
    pub(crate) fn server_stat(&self, name: &str) -> u64 {
        self.figure(&self.server_uri(), name)
    }

    fn figure(&self, uri: &str, name: &str) -> u64 {
        let said = run(self.kv().args(["stat", uri, "--json"]));
        said.expect(0, &[]);
        let figures: Value = serde_json::from_str(&said.stdout).expect("it is JSON");
        figures[name]
            .as_u64()
            .unwrap_or_else(|| panic!("no {name} in {figures}"))
    }

    /// All keys, by `kv ls -0`.
    pub(crate) fn keys(&self, dataset: &str) -> BTreeSet<Vec<u8>> {
        let output = self
            .kv()
            .args(["ls", "-0", &self.uri(dataset)])
            .output()
            .expect("kv runs");
        assert!(output.status.success(), "{output:?}");
        let mut keys: Vec<Vec<u8>> = output
            .stdout
            .split(|byte| *byte == 0)
            .map(<[u8]>::to_vec)
            .collect();
        assert_eq!(
            keys.pop(),
            Some(Vec::new()),
            "the last key ends with a zero byte too"
        );
        let sorted = keys.is_sorted();
        assert!(sorted, "kv ls sorts");
        keys.into_iter().collect()
    }

    /// The value of a key, by `kv get`.
    pub(crate) fn get(&self, dataset: &str, key: &[u8]) -> Vec<u8> {
        let output = self
            .kv()
            .args(["get", &self.uri(dataset), "--"])
            .arg(OsStr::from_bytes(key))
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        output.stdout
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("--- log of the server\n{}", self.log());
        }
    }
}

/// Bytes that differ from place to place and from seed to seed.
pub(crate) fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(len);
    out
}

/// Writes a file and the folders above it.
pub(crate) fn write(root: &Path, name: &[u8], contents: &[u8]) {
    let path = root.join(OsStr::from_bytes(name));
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, contents).unwrap();
}

/// Relative paths of the regular files below `root`, as bytes.
pub(crate) fn files(root: &Path) -> BTreeSet<Vec<u8>> {
    let mut found = BTreeSet::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            } else if entry.file_type().unwrap().is_file() {
                let relative = entry.path().strip_prefix(root).unwrap().to_owned();
                found.insert(relative.into_os_string().into_vec());
            }
        }
    }
    found
}

/// Sends a signal to a process of this test.
pub(crate) fn signal(pid: u32, name: &str) {
    let sent = Command::new("kill")
        .args([&format!("-{name}"), &pid.to_string()])
        .status()
        .expect("kill runs");
    assert!(sent.success());
}

/// Waits until `done`, and fails after [`PATIENCE`].
#[track_caller]
pub(crate) fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "never {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
