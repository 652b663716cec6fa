//! What holds of all sources: files with unsafe code are those that CONTRIBUTING.md lists, each says what it relies on, and no
//! product calls what is there for campaigns alone.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Every Rust source of the workspace's crates.
fn sources() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let in_root = fs::read_dir(root()).expect("the workspace's folder");
    let mut folders: Vec<PathBuf> = in_root
        .map(|entry| entry.expect("an entry").path())
        .filter(|folder| folder.join("Cargo.toml").exists())
        .collect();
    assert!(folders.len() > 1, "the workspace has crates");
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder of the workspace") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    found
}

#[test]
fn hashes_are_weakened_in_campaigns_alone() {
    let call = concat!("weaken", "(");
    let calls = |path: &PathBuf| fs::read_to_string(path).expect("a source").contains(call);
    let found: BTreeSet<_> = sources().into_iter().filter(calls).collect();
    let named: Vec<_> = found
        .iter()
        .filter_map(|path| path.strip_prefix(root()).ok())
        .collect();
    let expected = ["campaigns/src/fire/mod.rs", "kv-proto/src/hash.rs"].map(Path::new);
    assert_eq!(named, expected);
}

#[test]
fn unsafe_files_are_listed_and_say_why() {
    let opens = concat!("allow(", "unsafe_code");
    let mut opened = BTreeSet::new();
    for path in sources() {
        let text = fs::read_to_string(&path).expect("a source");
        // The formatter may break an attribute over lines.
        let dense: String = text.split_whitespace().collect();
        if !dense.contains(opens) {
            continue;
        }
        let name = path
            .strip_prefix(root())
            .expect("below the root")
            .to_str()
            .expect("a path of text")
            .to_owned();
        let is_test = name.contains("/tests/");
        let whole = text.contains(&format!("#![{opens}"));
        assert!(
            is_test || !whole || text.contains("//! # Safety"),
            "{name} opens unsafe code and has no `//! # Safety`"
        );
        opened.insert(name);
    }
    let contributing = fs::read_to_string(root().join("CONTRIBUTING.md")).expect("CONTRIBUTING.md");
    let list = contributing
        .split("```unsafe-files\n")
        .nth(1)
        .and_then(|rest| rest.split("```").next());
    let listed: BTreeSet<String> = list.expect("the list").lines().map(str::to_owned).collect();
    assert_eq!(
        opened, listed,
        "left: files that open unsafe code; right: the list in CONTRIBUTING.md"
    );
    assert!(opened.len() > 10, "the sources were found");
}
