//! Waiting for a descriptor, with a deadline.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

/// Longest single sleep; a later deadline is reached in several.
const SLEEP_MAX: Duration = Duration::from_secs(3600);

/// True once `fd` is readable, false if `deadline` passed first.
///
/// # Errors
/// What `poll` says; an interruption by a signal is not an error.
pub fn wait_readable(fd: BorrowedFd<'_>, deadline: Instant) -> io::Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now()).min(SLEEP_MAX);
        let timeout = Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        let mut fds = [PollFd::new(&fd, PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(0) if Instant::now() >= deadline => return Ok(false),
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Ok(_) => return Ok(true),
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Makes reads of `fd` return at once.
pub(crate) fn set_nonblocking(fd: impl AsFd) -> io::Result<()> {
    let flags = fcntl_getfl(&fd)?;
    fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_that_passed_is_not_readable() {
        let (reader, _writer) = io::pipe().unwrap();
        assert!(!wait_readable(reader.as_fd(), Instant::now()).unwrap());
        let soon = Instant::now() + Duration::from_millis(20);
        assert!(!wait_readable(reader.as_fd(), soon).unwrap());
        assert!(Instant::now() >= soon);
    }
}
