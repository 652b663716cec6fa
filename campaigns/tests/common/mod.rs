//! The server that is tested.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The server program: named by `VKV_KV_SERVER`, else built where cargo built this test.
pub(crate) fn server() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        if let Some(named) = std::env::var_os("VKV_KV_SERVER") {
            return named.into();
        }
        let cargo = std::env::var_os("CARGO").expect("it runs under cargo, or VKV_KV_SERVER names a server");
        // In a folder of cargo's beside the programs.
        let test = std::env::current_exe().unwrap();
        let programs = test.ancestors().nth(2).unwrap();
        let mut build = Command::new(cargo);
        build.args(["build", "-q", "-p", "kv-server", "--bin", "kv-server"]);
        if programs.ends_with("release") {
            build.arg("--release");
        }
        assert!(build.status().unwrap().success(), "kv-server does not build");
        programs.join("kv-server")
    })
}
