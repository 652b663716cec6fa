//! Judges facts: each finding has a status, what was found and, where something can be done, the remedy.

use std::collections::BTreeSet;

use serde::Serialize;

use super::probe::{DirectoryFacts, MappingFacts};
use super::system::{DeviceFacts, HugePages, Node, PortFacts};
use crate::output::size;

/// Below this a client's buffers cannot be registered, bytes.
const MEMLOCK_CLIENT_BYTES: u64 = 32 << 20;
/// Below this a server holds next to nothing, bytes.
const MEMLOCK_SERVER_BYTES: u64 = 4 << 30;
/// An MTU that a 4 KiB value fits, bytes.
const MTU_WANTED_BYTES: u32 = 4096;
/// Ethernet frame that carries a packet of 4096 bytes: payload and RoCE's headers, rounded up.
const NETDEV_MTU_WANTED_BYTES: u32 = 4500;

/// What to do where there is no device.
const WITHOUT_DEVICE: &str = "use local: between processes of this machine; for rdma:// install libibverbs1, librdmacm1 \
                              and ibverbs-providers, and load the device's driver (rdma_rxe makes a device of a network \
                              interface)";

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Status {
    Ok,
    Warn,
    Fail,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    pub(crate) check: String,
    pub(crate) status: Status,
    pub(crate) detail: String,
    pub(crate) remedy: Option<String>,
}

fn ok(check: impl Into<String>, detail: impl Into<String>) -> Finding {
    Finding {
        check: check.into(),
        status: Status::Ok,
        detail: detail.into(),
        remedy: None,
    }
}

fn warn(check: impl Into<String>, detail: impl Into<String>, remedy: impl Into<String>) -> Finding {
    Finding {
        check: check.into(),
        status: Status::Warn,
        detail: detail.into(),
        remedy: Some(remedy.into()),
    }
}

fn fail(check: impl Into<String>, detail: impl Into<String>, remedy: impl Into<String>) -> Finding {
    Finding {
        check: check.into(),
        status: Status::Fail,
        detail: detail.into(),
        remedy: Some(remedy.into()),
    }
}

type Devices = Result<Vec<DeviceFacts>, String>;

/// Whether there is any device.
pub(crate) fn libraries_and_devices(devices: &Devices, findings: &mut Vec<Finding>) {
    findings.push(match devices {
        Ok(devices) => {
            let names: Vec<&str> = devices.iter().map(|device| &device.name[..]).collect();
            ok("devices", names.join(", "))
        }
        Err(why) => fail("devices", why, WITHOUT_DEVICE),
    });
}

/// Each device and each of its ports. One usable port is enough, so a bad one beside it is only a warning.
pub(crate) fn each_device(devices: &[DeviceFacts], findings: &mut Vec<Finding>) {
    let any_usable = devices.iter().any(DeviceFacts::is_usable);
    for device in devices {
        let opened = match &device.opened {
            Ok(opened) => opened,
            Err(why) => {
                let check = format!("device {}", device.name);
                findings.push(bad(
                    any_usable,
                    &check,
                    why,
                    "see the permissions below, or ask who runs this machine",
                ));
                continue;
            }
        };
        let on_demand = match (opened.on_demand, opened.on_demand_read) {
            (true, true) => "on-demand paging for reads",
            (true, false) => "on-demand paging, not for reads",
            (false, _) => "no on-demand paging (images are pinned)",
        };
        findings.push(ok(
            format!("device {}", device.name),
            format!(
                "firmware {:?}, {} reads a queue pair, {on_demand}",
                opened.firmware, opened.max_qp_rd_atom
            ),
        ));
        for port in &opened.ports {
            self::port(&device.name, port, any_usable, findings);
        }
    }
}

fn bad(any_usable: bool, check: &str, detail: &str, remedy: &str) -> Finding {
    if any_usable {
        warn(check, detail, remedy)
    } else {
        fail(check, detail, remedy)
    }
}

fn port(device: &str, port: &PortFacts, any_usable: bool, findings: &mut Vec<Finding>) {
    let check = format!("{device} port {}", port.number);
    if port.active {
        findings.push(ok(&check, format!("{}, {}", port.state, port.link_layer)));
    } else {
        let remedy = match &port.netdev {
            Some(netdev) => format!("bring its interface up: ip link set {netdev} up"),
            None => "connect the cable, or bring its network interface up (ip link set NAME up)".into(),
        };
        findings.push(bad(any_usable, &check, &format!("state {}", port.state), &remedy));
    }
    let check = format!("{device} port {} gid", port.number);
    match &port.gid {
        Ok(gid) => findings.push(ok(check, gid)),
        Err(why) => findings.push(bad(
            any_usable,
            &check,
            why,
            "give its network interface an IPv4 address (ip addr add ADDRESS/PREFIX dev NAME)",
        )),
    }
    mtu(device, port, findings);
}

fn mtu(device: &str, port: &PortFacts, findings: &mut Vec<Finding>) {
    let check = format!("{device} port {} mtu", port.number);
    let (active, most) = (port.active_mtu_bytes, port.max_mtu_bytes);
    let detail = format!("active {active}, possible {most}");
    if active >= most.min(MTU_WANTED_BYTES) {
        return findings.push(ok(check, detail));
    }
    let remedy = match (&port.netdev, port.netdev_mtu_bytes) {
        (Some(netdev), Some(mtu)) => format!(
            "{netdev} has mtu {mtu}: ip link set {netdev} mtu {NETDEV_MTU_WANTED_BYTES} or more, on both ends and the switch"
        ),
        _ => format!(
            "raise the mtu of its network interface to {NETDEV_MTU_WANTED_BYTES} or more, on both ends"
        ),
    };
    findings.push(warn(check, detail, remedy));
}

/// Whether this user may open the device nodes.
pub(crate) fn permissions(nodes: &[Node], findings: &mut Vec<Finding>) {
    for node in nodes {
        findings.push(match &node.opened {
            Ok(()) => ok("permission", format!("{} opens", node.path)),
            Err(why) if why.contains("No such file") => fail(
                "permission",
                format!("{}: {why}", node.path),
                "load its module: modprobe rdma_ucm (in a container: pass /dev/infiniband in)",
            ),
            Err(why) => fail(
                "permission",
                format!("{}: {why}", node.path),
                format!(
                    "let this user open it: udev rule or group `rdma`, or chmod 0666 {}",
                    node.path
                ),
            ),
        });
    }
}

/// Which RDMA modules are there.
pub(crate) fn modules(modules: &BTreeSet<String>, have_devices: bool, findings: &mut Vec<Finding>) {
    const DRIVERS: [&str; 12] = [
        "bnxt_re",
        "cxgb4_ib",
        "efa",
        "erdma",
        "hns_roce_hw_v2",
        "irdma",
        "mana_ib",
        "mlx4_ib",
        "mlx5_ib",
        "qedr",
        "rdma_rxe",
        "siw",
    ];
    let present = |names: &[&str]| -> Vec<String> {
        names
            .iter()
            .filter(|name| modules.contains(**name))
            .map(|name| (*name).to_owned())
            .collect()
    };
    let drivers = present(&DRIVERS);
    let core = present(&["ib_core", "ib_uverbs", "rdma_cm", "rdma_ucm"]);
    let detail = |empty: &str| match (core.is_empty(), drivers.is_empty()) {
        (true, true) => empty.to_owned(),
        _ => format!("{}; drivers: {}", join(&core), join(&drivers)),
    };
    if have_devices {
        findings.push(ok(
            "modules",
            detail("none are listed (built in, or this is a container)"),
        ));
    } else {
        findings.push(warn(
            "modules",
            detail("no RDMA module is loaded"),
            "load the device's driver, ib_uverbs and rdma_ucm; without a device rdma_rxe makes one of a network interface",
        ));
    }
}

fn join(names: &[String]) -> String {
    if names.is_empty() {
        "none".into()
    } else {
        names.join(", ")
    }
}

/// What may be pinned. `exempt` where the process may lock what it likes.
pub(crate) fn memory_lock(limit: Option<u64>, exempt: bool, findings: &mut Vec<Finding>) {
    const REMEDY: &str = "ulimit -l unlimited, `* - memlock unlimited` in /etc/security/limits.conf, or \
                          LimitMEMLOCK=infinity in the systemd unit (docker: --ulimit memlock=-1)";
    let check = "locked memory";
    findings.push(match limit {
        None => ok(check, "unlimited"),
        Some(bytes) if exempt => ok(
            check,
            format!("{}, which does not bind this process (CAP_IPC_LOCK)", size(bytes)),
        ),
        Some(bytes) if bytes < MEMLOCK_CLIENT_BYTES => fail(
            check,
            format!("{}: too little to register a client's buffers", size(bytes)),
            REMEDY,
        ),
        Some(bytes) if bytes < MEMLOCK_SERVER_BYTES => warn(
            check,
            format!(
                "{}: enough for a client, little for a server's images",
                size(bytes)
            ),
            REMEDY,
        ),
        Some(bytes) => ok(check, size(bytes)),
    });
}

/// Whether images can lie in huge pages.
pub(crate) fn huge_pages(pages: HugePages, findings: &mut Vec<Finding>) {
    let bytes = pages.free * pages.size_kib * 1024;
    findings.push(match pages.free {
        0 => warn(
            "huge pages",
            format!("none free of {} reserved: images use normal pages", pages.total),
            "on a server with a hardware device, where they make reads faster: sysctl vm.nr_hugepages=COUNT",
        ),
        free => ok(
            "huge pages",
            format!("{free} free of {} KiB each ({})", pages.size_kib, size(bytes)),
        ),
    });
}

/// Whether a server can keep its data there.
pub(crate) fn data_directory(directory: &DirectoryFacts, findings: &mut Vec<Finding>) {
    let check = format!("data {}", directory.shown);
    if let Err(why) = &directory.writable {
        return findings.push(fail(
            check,
            format!("cannot be written: {why}"),
            "create it, or give it to this user",
        ));
    }
    let detail = format!("{}, {} free", directory.file_system, size(directory.free_bytes));
    findings.push(match &directory.file_system[..] {
        "ext4" | "xfs" | "btrfs" | "zfs" => ok(check, detail),
        "tmpfs" => warn(
            check,
            format!("{detail}: memory, gone after a reboot"),
            "use a directory on NVMe (ext4 or xfs)",
        ),
        _ => warn(
            check,
            format!("{detail}: durability was never tried there"),
            "use a directory on NVMe (ext4 or xfs)",
        ),
    });
}

/// What a mapping of a file may register.
pub(crate) fn mappings(device: &str, facts: &MappingFacts, findings: &mut Vec<Finding>) {
    let forms = [("read-only", &facts.read_only), ("writable", &facts.writable)];
    for (form, outcome) in forms {
        let check = format!("{device}, {form} file mapping");
        findings.push(match outcome {
            Ok(0) => ok(check, "registers, and no page becomes dirty: a sealed segment can be served from its file"),
            Ok(dirty_kib) => warn(
                check,
                format!("registers, but makes {dirty_kib} of 1024 KiB dirty: every registration would rewrite the file"),
                "nothing to do: segments are held in memory instead (Linux 6.12 and later register cleanly)",
            ),
            Err(why) => {
                // What follows a semicolon is advice for who wrote the mapping.
                let why = why.split(';').next().unwrap_or(why);
                warn(
                    check,
                    format!("does not register: {why}"),
                    "nothing to do: segments are held in memory instead (Linux before 6.12 refuses this form)",
                )
            }
        });
    }
}

/// Whether `rdma://` can be used: a usable device, and nothing that failed.
pub(crate) fn usable(devices: &Devices, findings: &[Finding]) -> bool {
    let device = devices
        .as_ref()
        .is_ok_and(|devices| devices.iter().any(DeviceFacts::is_usable));
    device && findings.iter().all(|finding| finding.status != Status::Fail)
}

/// The last line.
pub(crate) fn verdict(devices: &Devices, usable: bool, with_data: bool) -> String {
    match (usable, devices) {
        (true, _) if with_data => "rdma:// can be used here".into(),
        (true, _) => "rdma:// can be used here (on a server, add --data DIR to check that too)".into(),
        (false, Err(_)) => "no RDMA on this machine: use local: (kv-server serve --listen local:/path/to/socket, \
                            then local:/path/to/socket?dataset=name), or soft-roce-ci/run for a guest that has it"
            .into(),
        (false, Ok(_)) => "rdma:// cannot be used here until what is marked FAIL is remedied; local: works meanwhile".into(),
    }
}

#[cfg(test)]
#[path = "checks_tests.rs"]
mod tests;
