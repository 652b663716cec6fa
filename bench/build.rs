//! Tells the program which commit it was built from, where there is a git repository: reports carry it.

use std::path::Path;
use std::process::Command;

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let commit = git(&["rev-parse", "--short", "HEAD"]).unwrap_or_default();
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
