//! What the kernel says of processes.

use std::fs;

use crate::{Error, process_clock};

/// Time on a processor of all threads of a process so far, us, those that have ended included.
pub(crate) fn cpu_us(pid: u32) -> Result<f64, Error> {
    Ok(process_clock::cpu_ns(pid)? as f64 / 1000.0)
}

/// How often threads of a process went to sleep so far, those that have ended left out.
pub(crate) fn sleeps(pid: u32) -> Result<u64, Error> {
    let mut count = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = fs::read_to_string(task?.path().join("status"))?;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        count += line
            .ok_or("the kernel counts no context switches")?
            .trim()
            .parse::<u64>()?;
    }
    Ok(count)
}

/// Memory of a process, of this one where none is named, bytes: `field` of its status, such as `VmRSS`.
pub(crate) fn memory_bytes(pid: Option<u32>, field: &str) -> Option<u64> {
    let whose = pid.map_or_else(|| "self".to_owned(), |pid| pid.to_string());
    let text = fs::read_to_string(format!("/proc/{whose}/status")).ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}
