//! The programs that are tested.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

pub(crate) const BENCH: &str = env!("CARGO_BIN_EXE_bench");

/// The server program: named by `VKV_KV_SERVER`, else built beside `bench`.
pub(crate) fn server() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        if let Some(named) = std::env::var_os("VKV_KV_SERVER") {
            return named.into();
        }
        let cargo = std::env::var_os("CARGO").expect("it runs under cargo, or VKV_KV_SERVER names a server");
        let mut build = Command::new(cargo);
        build.args(["build", "-q", "-p", "kv-server", "--bin", "kv-server"]);
        if Path::new(BENCH)
            .parent()
            .is_some_and(|folder| folder.ends_with("release"))
        {
            build.arg("--release");
        }
        assert!(build.status().unwrap().success(), "kv-server does not build");
        Path::new(BENCH).with_file_name("kv-server")
    })
}
