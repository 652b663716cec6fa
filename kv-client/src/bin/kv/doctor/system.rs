//! What the machine says of itself: devices, device nodes, modules, limits.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::path::Path;

use rdma_core_rs::{Context, PortState};
use rustix::process::{Resource, getrlimit};

/// One device, or why it cannot be used.
#[derive(Clone, Debug)]
pub(crate) struct DeviceFacts {
    pub(crate) name: String,
    /// What opening it gave.
    pub(crate) opened: Result<Opened, String>,
}

impl DeviceFacts {
    /// Whether it opens and one of its ports carries packets with a GID.
    pub(crate) fn is_usable(&self) -> bool {
        self.opened
            .as_ref()
            .is_ok_and(|opened| opened.ports.iter().any(PortFacts::is_usable))
    }
}

/// What an open device says.
#[derive(Clone, Debug)]
pub(crate) struct Opened {
    pub(crate) firmware: String,
    pub(crate) max_qp_rd_atom: u32,
    pub(crate) on_demand: bool,
    pub(crate) on_demand_read: bool,
    pub(crate) ports: Vec<PortFacts>,
}

/// One port.
#[derive(Clone, Debug)]
pub(crate) struct PortFacts {
    pub(crate) number: u8,
    pub(crate) active: bool,
    pub(crate) state: String,
    pub(crate) link_layer: String,
    /// Payload bytes of a packet: what it has and what it could have; 0 where the code is unknown.
    pub(crate) active_mtu_bytes: u32,
    pub(crate) max_mtu_bytes: u32,
    /// The GID that would be used and why, or why there is none.
    pub(crate) gid: Result<String, String>,
    /// Network interface behind that GID.
    pub(crate) netdev: Option<String>,
    pub(crate) netdev_mtu_bytes: Option<u32>,
}

impl PortFacts {
    pub(crate) fn is_usable(&self) -> bool {
        self.active && self.gid.is_ok()
    }
}

/// Every device; the error says why there is none.
pub(crate) fn devices() -> Result<Vec<DeviceFacts>, String> {
    rdma_core_rs::require(rdma_core_rs::Library::RdmaCm).map_err(|error| error.to_string())?;
    let found = rdma_core_rs::devices().map_err(|error| error.to_string())?;
    Ok(found
        .into_iter()
        .map(|info| DeviceFacts {
            opened: open(&info.name),
            name: info.name,
        })
        .collect())
}

fn open(name: &str) -> Result<Opened, String> {
    let context = Context::open(name).map_err(|error| error.to_string())?;
    let attr = context.query_device().map_err(|error| error.to_string())?;
    let ports = (1..=attr.phys_port_cnt)
        .map(|number| port(&context, number))
        .collect::<Result<_, String>>()?;
    Ok(Opened {
        firmware: attr.fw_ver.clone(),
        max_qp_rd_atom: attr.max_qp_rd_atom,
        on_demand: attr.odp.supported,
        on_demand_read: attr.odp.rc_read,
        ports,
    })
}

fn port(context: &Context, number: u8) -> Result<PortFacts, String> {
    let attr = context.query_port(number).map_err(|error| error.to_string())?;
    let choice = context.choose_gid(number, None);
    let netdev = choice
        .as_ref()
        .ok()
        .and_then(|choice| choice.entry.netdev.clone());
    let netdev_mtu_bytes = netdev.as_ref().and_then(|netdev| {
        fs::read_to_string(Path::new("/sys/class/net").join(netdev).join("mtu"))
            .ok()?
            .trim()
            .parse()
            .ok()
    });
    Ok(PortFacts {
        number,
        active: attr.state == PortState::ACTIVE,
        state: attr.state.to_string(),
        link_layer: attr.link_layer.to_string(),
        active_mtu_bytes: attr.active_mtu.bytes().unwrap_or(0),
        max_mtu_bytes: attr.max_mtu.bytes().unwrap_or(0),
        gid: choice
            .map(|choice| choice.to_string())
            .map_err(|error| error.to_string()),
        netdev,
        netdev_mtu_bytes,
    })
}

/// A device node and what opening it for reading and writing gave.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) path: String,
    pub(crate) opened: Result<(), String>,
}

/// The nodes of `/dev/infiniband` that a program opens.
pub(crate) fn nodes() -> Vec<Node> {
    let mut names: BTreeSet<String> = BTreeSet::from(["rdma_cm".into()]);
    for entry in fs::read_dir("/dev/infiniband").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("uverbs") {
            names.insert(name);
        }
    }
    let node = |name: String| {
        let path = format!("/dev/infiniband/{name}");
        let opened = OpenOptions::new().read(true).write(true).open(&path);
        Node {
            opened: opened.map(drop).map_err(|error| error.to_string()),
            path,
        }
    };
    names.into_iter().map(node).collect()
}

/// Modules of the kernel that are loaded or built in.
pub(crate) fn modules() -> BTreeSet<String> {
    let loaded = fs::read_to_string("/proc/modules").unwrap_or_default();
    let mut names: BTreeSet<String> = loaded
        .lines()
        .filter_map(|line| line.split(' ').next())
        .map(str::to_owned)
        .collect();
    for entry in fs::read_dir("/sys/module").into_iter().flatten().flatten() {
        names.insert(entry.file_name().to_string_lossy().into_owned());
    }
    names
}

/// The limit of locked memory, bytes; `None` if there is none.
pub(crate) fn memory_lock_bytes() -> Option<u64> {
    getrlimit(Resource::Memlock).current
}

/// Whether this process may lock memory beyond the limit.
pub(crate) fn may_lock_all() -> bool {
    has_ipc_lock(&fs::read_to_string("/proc/self/status").unwrap_or_default())
}

fn has_ipc_lock(status: &str) -> bool {
    const CAP_IPC_LOCK: u32 = 14;
    let digits = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .map(str::trim);
    digits
        .and_then(|digits| u64::from_str_radix(digits, 16).ok())
        .is_some_and(|set| set >> CAP_IPC_LOCK & 1 == 1)
}

/// Huge pages of the default size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct HugePages {
    pub(crate) total: u64,
    pub(crate) free: u64,
    pub(crate) size_kib: u64,
}

/// What `/proc/meminfo` says of huge pages.
pub(crate) fn huge_pages() -> HugePages {
    parse_meminfo(&fs::read_to_string("/proc/meminfo").unwrap_or_default())
}

fn parse_meminfo(text: &str) -> HugePages {
    let value = |name: &str| {
        let line = text
            .lines()
            .find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(':')));
        line.and_then(|line| line.split_whitespace().nth(1))
            .and_then(|value| value.parse().ok())
            .unwrap_or(0)
    };
    HugePages {
        total: value("HugePages_Total"),
        free: value("HugePages_Free"),
        size_kib: value("Hugepagesize"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn huge_pages_are_read_from_meminfo() {
        let text = "MemTotal: 1 kB\nHugePages_Total:      12\nHugePages_Free:        5\nHugepagesize:       2048 kB\n";
        assert_eq!(
            parse_meminfo(text),
            HugePages {
                total: 12,
                free: 5,
                size_kib: 2048
            }
        );
        assert_eq!(parse_meminfo(""), HugePages::default());
    }

    #[test]
    fn the_capability_is_one_bit_of_the_effective_set() {
        assert!(has_ipc_lock("CapPrm:\t0\nCapEff:\t0000000000004000\n"));
        assert!(!has_ipc_lock("CapEff:\t00000000a80425fb\nCapBnd:\t4000\n"));
        assert!(!has_ipc_lock(""));
    }

    #[test]
    fn nodes_and_modules_are_found_on_any_machine() {
        assert!(nodes().iter().any(|node| node.path == "/dev/infiniband/rdma_cm"));
        let _ = (modules(), memory_lock_bytes(), huge_pages());
    }
}
