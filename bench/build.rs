//! Tells the program which commit it was built from, where there is a git repository, and whether the tree was changed:
//! reports carry it.

use std::path::Path;
use std::process::Command;

/// What the program is built from, of this repository.
const SOURCES: [&str; 10] = [
    "build.rs",
    "src",
    "../campaigns/src",
    "../kv-client/src",
    "../kv-fabric/src",
    "../kv-proto/src",
    "../kv-server/src",
    "../rdma-core-rs/src",
    "../Cargo.toml",
    "../Cargo.lock",
];

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}

fn main() {
    // What changes these has the program built anyway; what else is changed after that, `-dirty` does not tell.
    for source in SOURCES {
        println!("cargo:rerun-if-changed={source}");
    }
    let describe = [
        "--no-optional-locks",
        "describe",
        "--always",
        "--dirty",
        "--exclude=*",
    ];
    let commit = git(&describe).unwrap_or_default();
    println!("cargo:rustc-env=VKV_BENCH_COMMIT={commit}");
    // What changes with a commit: the name of a branch, and what the branch is. A file that is missing would have it run
    // at each build.
    let branch = git(&["symbolic-ref", "-q", "HEAD"]);
    let named = [
        Some("HEAD"),
        branch.as_deref(),
        Some("packed-refs"),
        Some("logs/HEAD"),
    ];
    for name in named.into_iter().flatten() {
        if let Some(path) = git(&["rev-parse", "--git-path", name])
            && Path::new(&path).exists()
        {
            println!("cargo:rerun-if-changed={path}");
        }
    }
}
