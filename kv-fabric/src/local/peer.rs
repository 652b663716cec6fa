//! Who is at the other end of a socket.
//!
//! # Safety
//! One `getsockopt` into a value on the stack, whose length the kernel is told.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd};

/// The peer's process and user, for people, and its user. The process is 0 where it is in a name space that this one cannot
/// see; who has no user has an empty one.
pub(super) fn describe(socket: BorrowedFd<'_>) -> (String, String) {
    let mut credentials = libc::ucred {
        pid: 0,
        uid: 0,
        gid: 0,
    };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: `credentials` has `len` writable bytes, any of which make a valid `ucred`, and outlives the call.
    let failed = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut credentials).cast(),
            &raw mut len,
        )
    };
    if failed == 0 {
        let user = format!("user {}", credentials.uid);
        (format!("process {} of {user}", credentials.pid), user)
    } else {
        (
            "a process that the kernel does not name".to_owned(),
            String::new(),
        )
    }
}
