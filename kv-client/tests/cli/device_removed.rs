//! The device is taken away under a server and its client: both say so, end, and let it go.
//!
//! The kernel's part in it: it tells the connection manager's users (`RDMA_CM_EVENT_DEVICE_REMOVAL`, `rdma_get_cm_event(3)`)
//! and waits until they have let go of what they had there.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::support::{Server, wait_until};
use kv_client::{AccessKey, Client, ClientOptions};

const NETDEV: &str = "vkvremove0";
const DEVICE: &str = "vkvremove";
/// Of the network that is kept for tests of devices (RFC 2544).
const ADDRESS: &str = "198.18.77.1";

fn command(words: &str) -> Command {
    let mut words = words.split(' ');
    let mut command = Command::new(words.next().expect("a program"));
    command.args(words);
    command
}

fn run(words: &str) {
    let status = command(words).status().expect(words);
    assert!(status.success(), "{words}: {status}");
}

/// A Soft-RoCE device of its own, so that its removal disturbs nobody.
struct Device {
    removal: Option<Child>,
}

impl Device {
    fn new() -> Self {
        run(&format!("ip link add {NETDEV} type dummy"));
        let device = Self { removal: None };
        run(&format!("ip address add {ADDRESS}/30 dev {NETDEV}"));
        run(&format!("ip link set {NETDEV} up"));
        run(&format!("rdma link add {DEVICE} type rxe netdev {NETDEV}"));
        device
    }

    /// Begins to take it away; that ends when nobody holds on to it.
    fn remove(&mut self) {
        let removal = command(&format!("rdma link delete {DEVICE}")).spawn();
        self.removal = Some(removal.expect("rdma runs"));
    }

    fn is_removed(&mut self) -> bool {
        let removal = self.removal.as_mut().expect("its removal began");
        removal
            .try_wait()
            .expect("it is our child")
            .is_some_and(|status| status.success())
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if self.removal.is_none() {
            // What fails leaves a device in a guest that ends soon.
            let _ = command(&format!("rdma link delete {DEVICE}")).status();
        }
        // Not waited for: it would wait for who still holds the device.
        let _ = command(&format!("ip link delete {NETDEV}")).spawn();
    }
}

/// Where the client's process finds its server, and its key.
const CHILD: (&str, &str) = ("VKV_DEVICE_REMOVED_URI", "VKV_DEVICE_REMOVED_KEY");

/// The client, in a process of its own: librdmacm holds every device open until the process ends (`rdma_get_devices(3)`).
/// Told so by a line, it reads once more.
fn client(uri: &str, key_file: &Path) {
    let options = ClientOptions {
        deadline: Duration::from_secs(3),
        ..ClientOptions::new(AccessKey::load(key_file, None).unwrap())
    };
    let client = Client::connect(uri, options).unwrap();
    client.put(b"key", b"value").unwrap();
    assert_eq!(client.get(b"key").unwrap(), b"value");
    println!("ready");
    std::io::stdin().read_line(&mut String::new()).unwrap();
    println!("then {:?}", client.get(b"key"));
}

#[test]
#[ignore = "needs root and Soft-RoCE: VKV_TEST_DEVICE=rxe0"]
fn a_device_that_is_removed_ends_the_server_and_fails_the_clients_calls() {
    if let (Ok(uri), Some(key)) = (std::env::var(CHILD.0), std::env::var_os(CHILD.1)) {
        return client(&uri, Path::new(&key));
    }
    let mut device = Device::new();
    let mut server = Server::start_on(Some(format!("{ADDRESS}:7471")), &[]).create("d");
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--include-ignored", "--nocapture", "--exact"])
        .arg("device_removed::a_device_that_is_removed_ends_the_server_and_fails_the_clients_calls")
        .env(CHILD.0, server.uri("d"))
        .env(CHILD.1, server.path("admin.toml"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut says = |what: &str| said.find_map(|line| Some(line.unwrap()).filter(|line| line.contains(what)));
    assert!(says("ready").is_some(), "the client never read");

    device.remove();
    let mut ended = None;
    wait_until("did the server end", || {
        ended = server.ended();
        ended.is_some()
    });
    let log = server.log();
    assert!(!ended.unwrap().success(), "{ended:?}: {log}");
    let line = log.lines().find(|line| line.starts_with("kv-server: "));
    let line = line.unwrap_or_else(|| panic!("no line says why: {log}"));
    assert!(
        line.contains(&format!("device {DEVICE} was removed")) && line.contains("start again"),
        "{line}"
    );
    // There is no other server: the call ends at its deadline, and its process goes.
    child.stdin.take().unwrap().write_all(b"\n").unwrap();
    let then = says("then ").expect("the client's last call ends");
    assert!(then.contains("Err("), "{then}");
    assert!(child.wait().unwrap().success());
    wait_until("was the device let go of", || device.is_removed());
}
