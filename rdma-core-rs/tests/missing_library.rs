//! A machine without libibverbs and librdmacm: an error that says what to install, and no crash.
//!
//! The test starts itself again inside a directory that holds only this program and the libraries that it is linked
//! with, as its root; neither RDMA library is there.
#![allow(missing_docs)]

use std::path::{Path, PathBuf};
use std::process::Command;

use rdma_core_rs::cm::{EventChannel, resolve};
use rdma_core_rs::{Context, Error, Library, devices, require};

const CHILD: &str = "VKV_TEST_MISSING_LIBRARY_CHILD";

fn assert_missing<T>(answer: Result<T, Error>, library: &str) {
    let Err(error) = answer else {
        panic!("{library} was not missed")
    };
    assert!(matches!(error, Error::LibraryMissing { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains(library) && text.contains("install"), "{text}");
}

fn child() {
    assert_missing(require(Library::Verbs), "libibverbs.so.1");
    assert_missing(require(Library::RdmaCm), "librdmacm.so.1");
    assert_missing(devices(), "libibverbs.so.1");
    assert_missing(Context::open("rxe0"), "libibverbs.so.1");
    assert_missing(Context::shared("rxe0"), "libibverbs.so.1");
    assert_missing(EventChannel::new(), "libibverbs.so.1");
    let deadline = std::time::Instant::now();
    assert_missing(
        resolve("10.0.0.1:7471".parse().unwrap(), None, deadline),
        "libibverbs.so.1",
    );
}

/// The libraries that this program is linked with, as `ldd` names them.
fn linked(program: &Path) -> Vec<PathBuf> {
    let output = Command::new("ldd").arg(program).output().unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        !text.contains("ibverbs") && !text.contains("rdmacm"),
        "linked, not opened at run time: {text}"
    );
    text.split_whitespace()
        .filter(|word| word.starts_with('/'))
        .map(PathBuf::from)
        .collect()
}

#[test]
#[ignore = "needs root: chroot"]
fn without_the_libraries_every_way_in_says_what_to_install() {
    if std::env::var_os(CHILD).is_some() {
        child();
        return;
    }
    let program = std::env::current_exe().unwrap();
    let root = tempfile::tempdir().unwrap();
    std::fs::copy(&program, root.path().join("program")).unwrap();
    for library in linked(&program) {
        let place = root.path().join(library.strip_prefix("/").unwrap());
        std::fs::create_dir_all(place.parent().unwrap()).unwrap();
        std::fs::copy(&library, place).unwrap();
    }
    let output = Command::new("chroot")
        .arg(root.path())
        .args([
            "/program",
            "--ignored",
            "--exact",
            "without_the_libraries_every_way_in_says_what_to_install",
        ])
        .env(CHILD, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{}: {text}\n{errors}",
        output.status
    );
}
