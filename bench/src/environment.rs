//! What a result was measured on.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The machine of a run, as far as a result depends on it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Environment {
    /// Kernel release.
    pub(crate) kernel: String,
    /// Processor, as it names itself.
    pub(crate) cpu: String,
    /// Processors online.
    pub(crate) cpus: usize,
    /// RDMA device; empty without one.
    pub(crate) device: String,
    /// Active MTU of its first port, bytes; 0 without a device.
    #[serde(default)]
    pub(crate) mtu_bytes: u32,
    /// Package version of rdma-core; empty where it cannot be told.
    pub(crate) rdma_core: String,
    /// What else ran: processes that wanted a processor over the last minute, on average.
    #[serde(default)]
    pub(crate) load: f64,
    /// Commit of this program; empty where it cannot be told.
    pub(crate) commit: String,
}

fn line_of(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

/// Names of the RDMA devices of this machine, sorted.
pub(crate) fn devices() -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir("/sys/class/infiniband")
        .map(|entries| {
            entries
                .flatten()
                .map(|entry| entry.file_name().to_string_lossy().into_owned())
                .collect()
        })
        .unwrap_or_default();
    names.sort();
    names
}

fn output_of(program: &str, args: &[&str]) -> String {
    let output = std::process::Command::new(program)
        .args(args)
        .stderr(std::process::Stdio::null())
        .output();
    match output {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        _ => String::new(),
    }
}

/// The processor of /proc/cpuinfo; where that has no name, as on aarch64, the numbers that it has instead.
fn processor(cpuinfo: &str) -> String {
    let field = |name: &str| {
        cpuinfo.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            (key.trim() == name).then(|| value.trim())
        })
    };
    if let Some(name) = field("model name") {
        return name.to_owned();
    }
    let mut all = std::env::consts::ARCH.to_owned();
    for name in ["CPU implementer", "CPU part"] {
        if let Some(value) = field(name) {
            all += &format!(", {name} {value}");
        }
    }
    all
}

impl Environment {
    /// Of this machine with its first RDMA device, now.
    pub(crate) fn read() -> Self {
        Self::with_device(&devices().into_iter().next().unwrap_or_default())
    }

    /// Of this machine, now, and of the RDMA device that was used; none where it is empty.
    pub(crate) fn with_device(device: &str) -> Self {
        Self {
            mtu_bytes: mtu_bytes(device).unwrap_or(0),
            kernel: line_of("/proc/sys/kernel/osrelease"),
            cpu: processor(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default()),
            cpus: std::thread::available_parallelism().map_or(0, usize::from),
            device: device.to_owned(),
            load: line_of("/proc/loadavg")
                .split(' ')
                .next()
                .and_then(|load| load.parse().ok())
                .unwrap_or(0.0),
            rdma_core: output_of("dpkg-query", &["-W", "-f", "${Version}", "libibverbs1"]),
            commit: env!("VKV_BENCH_COMMIT").to_owned(),
        }
    }
}

/// Whether `device` is Soft-RoCE: that lies on a network interface, which it names.
pub(crate) fn is_soft_roce(device: &str) -> bool {
    !device.is_empty()
        && Path::new("/sys/class/infiniband")
            .join(device)
            .join("parent")
            .exists()
}

fn mtu_bytes(device: &str) -> Option<u32> {
    let context = rdma_core_rs::Context::open(device).ok()?;
    context.query_port(1).ok()?.active_mtu.bytes()
}

/// Where a program of this name lies, of those that a shell would find.
pub(crate) fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|program| program.is_file())
}

/// The last level of cache, bytes, as the kernel tells it; the largest of all levels.
pub(crate) fn last_level_cache_bytes() -> Option<u64> {
    let entries = fs::read_dir("/sys/devices/system/cpu/cpu0/cache").ok()?;
    let size = |entry: fs::DirEntry| {
        let text = line_of(entry.path().join("size").to_str()?);
        let kib: u64 = text.strip_suffix('K')?.parse().ok()?;
        Some(kib * 1024)
    };
    entries.flatten().filter_map(size).max()
}

/// Every counter that `device` keeps besides the common ones of bytes and packets, added up over its ports: retries, what
/// came out of order, and whatever else its driver counts. Where it keeps none there are none.
pub(crate) fn device_counters(device: &str) -> BTreeMap<String, u64> {
    let mut all = BTreeMap::new();
    if device.is_empty() {
        return all;
    }
    let device = Path::new("/sys/class/infiniband").join(device);
    let ports = fs::read_dir(device.join("ports")).into_iter().flatten().flatten();
    let folders = ports.map(|port| port.path()).chain([device]);
    for folder in folders {
        for counter in fs::read_dir(folder.join("hw_counters"))
            .into_iter()
            .flatten()
            .flatten()
        {
            let value = fs::read_to_string(counter.path()).ok();
            // Not every file there is a counter.
            if let Some(value) = value.and_then(|text| text.trim().parse::<u64>().ok()) {
                let name = counter.file_name().to_string_lossy().into_owned();
                if name != "lifespan" {
                    *all.entry(name).or_insert(0) += value;
                }
            }
        }
    }
    all
}

/// Packets that `device` has sent and received, by its own counters, over all its ports; `None` where it keeps none.
pub(crate) fn packets(device: &str) -> Option<u64> {
    let ports = Path::new("/sys/class/infiniband").join(device).join("ports");
    let mut total = None;
    for port in fs::read_dir(ports).ok()?.flatten() {
        // rxe counts in hw_counters, hardware in counters.
        for (folder, names) in [
            ("hw_counters", ["sent_pkts", "rcvd_pkts"]),
            ("counters", ["port_xmit_packets", "port_rcv_packets"]),
        ] {
            let read = |name: &str| -> Option<u64> {
                fs::read_to_string(port.path().join(folder).join(name))
                    .ok()?
                    .trim()
                    .parse()
                    .ok()
            };
            if let (Some(sent), Some(received)) = (read(names[0]), read(names[1])) {
                *total.get_or_insert(0) += sent + received;
                break;
            }
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use super::processor;

    #[test]
    fn every_processor_has_a_name() {
        let named = "processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\n";
        assert_eq!(processor(named), "Some CPU @ 2 GHz");
        let numbered = "processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd0c\n";
        assert!(processor(numbered).ends_with(", CPU implementer 0x41, CPU part 0xd0c"));
        assert!(!processor("").is_empty());
    }
}
