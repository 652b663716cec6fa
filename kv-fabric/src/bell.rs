//! An event that a thread can sleep on as a file descriptor.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use crate::FabricError;

/// Readable from [`Bell::ring`] until [`Bell::clear`].
#[derive(Debug)]
pub(crate) struct Bell(OwnedFd);

impl Bell {
    pub(crate) fn new() -> Result<Self, FabricError> {
        rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map(Self)
            .map_err(|error| FabricError::call("eventfd", error))
    }

    /// A full counter (2^64 - 2 rings not cleared) is readable as well, so the result does not matter.
    pub(crate) fn ring(&self) {
        let _ = rustix::io::write(&self.0, &1_u64.to_le_bytes());
    }

    /// Clear it before looking at what it announces, never after.
    pub(crate) fn clear(&self) {
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Sleeps until `fd` is readable (or over) or `deadline` has passed; whether it is readable.
pub(crate) fn sleep(fd: BorrowedFd<'_>, deadline: Instant) -> Result<bool, FabricError> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        // A timeout beyond what the kernel takes becomes one that it takes; the loop asks again.
        let timeout = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX).min(SLEEP_MAX_S),
            tv_nsec: left.subsec_nanos().into(),
        };
        let mut fds = [PollFd::new(&fd, PollFlags::IN)];
        match rustix::event::poll(&mut fds, Some(&timeout)) {
            Ok(0) if Instant::now() >= deadline => return Ok(false),
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) => return Ok(true),
            Err(error) => return Err(FabricError::call("poll", error)),
        }
    }
}

/// Longest single sleep, seconds.
const SLEEP_MAX_S: i64 = 3600;
