//! Time on a processor of a process, as the kernel's scheduler counts it.
//!
//! # Safety
//! Both calls write one value of a known type to a place on this stack frame, and nothing else.
#![allow(unsafe_code)]

use std::io;

/// Time on a processor of all threads of process `pid` so far, ns: what `/proc/PID/task/*/schedstat` adds up to, and what
/// threads that have ended took besides, so that it never goes back.
pub(crate) fn cpu_ns(pid: u32) -> io::Result<u64> {
    let mut clock = 0;
    // SAFETY: `clock` lives until the call returns, and is all that it writes.
    let error = unsafe { libc::clock_getcpuclockid(pid as libc::pid_t, &raw mut clock) };
    if error != 0 {
        return Err(io::Error::from_raw_os_error(error));
    }
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` lives until the call returns, and is all that it writes.
    if unsafe { libc::clock_gettime(clock, &raw mut time) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use rustix::time::{ClockId, clock_gettime};

    use super::cpu_ns;

    fn thread_ns() -> u64 {
        let now = clock_gettime(ClockId::ThreadCPUTime);
        now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
    }

    /// A server's threads for connections come and go: what an ended one took was once taken away from the server's time,
    /// which became negative.
    #[test]
    fn what_a_thread_took_stays_when_it_has_ended() {
        let before = cpu_ns(std::process::id()).unwrap();
        let busy = || {
            while thread_ns() < 20_000_000 {
                std::hint::spin_loop();
            }
            thread_ns()
        };
        let taken = std::thread::spawn(busy).join().unwrap();
        let after = cpu_ns(std::process::id()).unwrap();
        assert!(
            after - before >= taken,
            "{before} ns, then {after}, of which a thread took {taken}"
        );
    }

    #[test]
    fn another_process_has_a_clock_and_an_ended_one_has_none() {
        let mut child = Command::new("sleep")
            .arg("60")
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        assert!(cpu_ns(child.id()).unwrap() > 0);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(cpu_ns(child.id()).is_err());
    }
}
