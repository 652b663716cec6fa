//! Whether libibverbs and librdmacm are on this machine.
//!
//! The bindings open both libraries when the program starts and keep null pointers where that failed; every object of
//! this crate is made behind [`require`], so a machine without them gets an error that says what to install.
//!
//! # Safety
//! Calls the dynamic loader with constant, null-terminated names and never closes what it opened.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::sync::OnceLock;

use crate::error::{Error, Result};

/// One of the two libraries this crate stands on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Library {
    /// `libibverbs.so.1`: devices, memory, queue pairs.
    Verbs,
    /// `librdmacm.so.1`: connections by address.
    RdmaCm,
}

impl Library {
    fn file_name(self) -> &'static CStr {
        match self {
            Library::Verbs => c"libibverbs.so.1",
            Library::RdmaCm => c"librdmacm.so.1",
        }
    }

    fn display_name(self) -> &'static str {
        match self {
            Library::Verbs => "libibverbs.so.1",
            Library::RdmaCm => "librdmacm.so.1",
        }
    }

    fn package(self) -> &'static str {
        match self {
            Library::Verbs => "libibverbs1 ibverbs-providers",
            Library::RdmaCm => "librdmacm1",
        }
    }
}

/// Succeeds where `library` is loaded into this process.
///
/// # Errors
/// [`Error::LibraryMissing`], with the loader's own words, where it is not. The answer is found once.
pub fn require(library: Library) -> Result<()> {
    static VERBS: OnceLock<std::result::Result<(), String>> = OnceLock::new();
    static RDMA_CM: OnceLock<std::result::Result<(), String>> = OnceLock::new();
    let found = match library {
        Library::Verbs => VERBS.get_or_init(|| probe(library.file_name())),
        Library::RdmaCm => RDMA_CM.get_or_init(|| probe(library.file_name())),
    };
    found.clone().map_err(|reason| Error::LibraryMissing {
        library: library.display_name(),
        package: library.package(),
        reason,
    })
}

/// Says whether the bindings' own start-up loaded this library, and why not.
fn probe(name: &CStr) -> std::result::Result<(), String> {
    // SAFETY: `name` is null-terminated. RTLD_NOLOAD only looks at what the bindings have already loaded.
    let loaded = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_LAZY | libc::RTLD_NOLOAD) };
    if !loaded.is_null() {
        return Ok(());
    }
    // SAFETY: `name` is null-terminated. Loading it has no effect on anything already resolved.
    let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_LAZY | libc::RTLD_LOCAL) };
    if !handle.is_null() {
        return Err("it appeared after this program started: start the program again".into());
    }
    // SAFETY: takes no argument; the string it returns is this thread's until its next loader call.
    let message = unsafe { libc::dlerror() };
    if message.is_null() {
        return Err("the loader gave no reason".into());
    }
    // SAFETY: a non-null answer of dlerror is a null-terminated string, valid until this thread's next loader call.
    let message = unsafe { CStr::from_ptr(message) };
    Err(message.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absent_library_is_a_reason_not_a_crash() {
        let reason = probe(c"libno-such-thing.so.1").unwrap_err();
        assert!(reason.contains("libno-such-thing.so.1"), "{reason}");
    }

    #[test]
    fn a_library_that_the_bindings_did_not_load_is_not_trusted() {
        // On every glibc system, and nothing here loads it: calling through the bindings' null pointers must not follow.
        let reason = probe(c"libanl.so.1").unwrap_err();
        assert!(reason.contains("start the program again"), "{reason}");
    }
}
