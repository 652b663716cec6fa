//! Datasets whose directory somebody removed are missed; those that were dropped, or not made yet, are not.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::check::{checked, contents, flip};
use super::support::{Rig, copy_directory, faulty, figure_in, options, scratch};
use crate::store::catalogue;
use crate::store::check::Level;
use crate::store::description::directory_name;
use crate::store::files::{Call, Files};

const ENOSPC: i32 = 28;

/// Two datasets, and where the second one lies.
fn two(root: &Path) -> PathBuf {
    let rig = Rig::open(root);
    let mut last = [0; 16];
    for name in ["one", "two"] {
        last = rig.store.create(name).unwrap();
        rig.put(name, b"key", name.as_bytes()).unwrap();
    }
    drop(rig);
    root.join("datasets").join(directory_name(&last))
}

fn lost(rig: &Rig) -> u64 {
    figure_in(&rig.store.stat(), "lost_datasets_count")
}

fn listed(root: &Path) -> Vec<String> {
    let listed = catalogue::read(&Files::default(), root).unwrap().unwrap();
    let mut names: Vec<_> = listed.into_values().map(|it| it.name).collect();
    names.sort();
    names
}

#[test]
fn a_dataset_that_is_gone_is_missed_until_the_loss_is_accepted() {
    let root = scratch();
    let directory = two(root.path());
    let aside = scratch();
    std::fs::rename(&directory, aside.path().join("two")).unwrap();
    let before = contents(root.path());
    let (summary, findings) = checked(root.path(), false);
    assert_eq!((summary.damage, summary.notes), (1, 0), "{findings:#?}");
    assert_eq!(findings[0].dataset.as_deref(), Some("two"));
    assert!(
        findings[0].what.contains(directory.to_str().unwrap()),
        "{findings:#?}"
    );
    assert!(contents(root.path()) == before, "a check changes nothing");
    for start in 0..3 {
        let rig = Rig::open(root.path());
        assert_eq!(lost(&rig), 1);
        assert_eq!(rig.get("one", b"key"), Some(b"one".to_vec()));
        // What is changed meanwhile forgets nothing.
        rig.store.create(&format!("more{start}")).unwrap();
        rig.store
            .rename(&format!("more{start}"), &format!("renamed{start}"))
            .unwrap();
    }
    // It is back: so is what was in it.
    std::fs::rename(aside.path().join("two"), &directory).unwrap();
    let rig = Rig::open(root.path());
    assert_eq!((lost(&rig), rig.get("two", b"key")), (0, Some(b"two".to_vec())));
    drop(rig);
    assert_eq!(checked(root.path(), false).1, []);
    std::fs::remove_dir_all(&directory).unwrap();
    let (summary, findings) = checked(root.path(), true);
    assert_eq!((summary.damage, summary.repaired), (1, 1), "{findings:#?}");
    assert_eq!(checked(root.path(), false).1, []);
    assert_eq!(lost(&Rig::open(root.path())), 0);
}

#[test]
fn all_datasets_that_are_gone_at_once_are_missed() {
    let root = scratch();
    two(root.path());
    std::fs::remove_dir_all(root.path().join("datasets")).unwrap();
    let (summary, findings) = checked(root.path(), false);
    assert_eq!(summary.damage, 2, "{findings:#?}");
    for _ in 0..2 {
        assert_eq!(lost(&Rig::open(root.path())), 2);
    }
}

/// What lies on the disk at every call of a drop, a create and a rename: nothing is missed of that.
#[test]
fn a_crash_at_any_call_that_changes_the_datasets_misses_none() {
    let root = scratch();
    let snapshots = scratch();
    let taken = Arc::new(std::sync::Mutex::new(0));
    two(root.path());
    let armed = Arc::new(AtomicBool::new(false));
    let faults = {
        let (from, to) = (root.path().to_owned(), snapshots.path().to_owned());
        let (taken, armed) = (Arc::clone(&taken), Arc::clone(&armed));
        move |call: Call, _: &Path| {
            let thread = std::thread::current();
            let own = !matches!(thread.name(), Some("kv-log" | "kv-compact" | "kv-load"));
            if armed.load(Ordering::Acquire) && own && !matches!(call, Call::Read | Call::Space) {
                let mut taken = taken.lock().unwrap();
                copy_directory(&from, &to.join(taken.to_string()));
                *taken += 1;
            }
            None
        }
    };
    let rig = Rig::with(options(root.path()), faulty(Box::new(faults))).unwrap();
    armed.store(true, Ordering::Release);
    rig.store.create("three").unwrap();
    rig.store.rename("three", "four").unwrap();
    rig.store.drop_dataset("two").unwrap().synced.unwrap();
    rig.store.drop_dataset("four").unwrap().synced.unwrap();
    drop(rig);
    let taken = *taken.lock().unwrap();
    assert!(taken > 20, "{taken}");
    for snapshot in 0..taken {
        let at = snapshots.path().join(snapshot.to_string());
        assert_eq!(checked(&at, false).0.damage, 0, "{snapshot}");
        for _ in 0..2 {
            let rig = Rig::open(&at);
            assert_eq!(lost(&rig), 0, "{snapshot}");
            assert_eq!(rig.get("one", b"key"), Some(b"one".to_vec()));
            let mut names: Vec<_> = rig.store.list().iter().map(|it| it.name()).collect();
            names.sort();
            assert_eq!(listed(&at), names, "{snapshot}");
        }
    }
    assert_eq!(listed(root.path()), ["one"]);
}

/// A full disk changes datasets all the same; what is not listed then is listed later.
#[test]
fn a_list_that_cannot_be_written_keeps_nothing_from_being_done() {
    let root = scratch();
    two(root.path());
    let full = Arc::new(AtomicBool::new(true));
    let faults = {
        let full = Arc::clone(&full);
        move |call: Call, path: &Path| {
            let hit = full.load(Ordering::Acquire) && call == Call::Write && path.ends_with("catalogue.new");
            hit.then(|| (10, io::Error::from_raw_os_error(ENOSPC)))
        }
    };
    let rig = Rig::with(options(root.path()), faulty(Box::new(faults))).unwrap();
    rig.store.create("three").unwrap();
    rig.store.drop_dataset("two").unwrap().synced.unwrap();
    let crashed = scratch();
    copy_directory(root.path(), crashed.path());
    drop(rig);
    for root in [root.path(), crashed.path()] {
        assert_eq!(listed(root), ["one", "two"]);
        assert_eq!(checked(root, false).0.damage, 0);
        assert_eq!(lost(&Rig::open(root)), 0);
        assert_eq!(listed(root), ["one", "three"]);
        assert_eq!(std::fs::read_dir(root.join("datasets")).unwrap().count(), 2);
    }
}

/// A list that is gone, of an older day or damaged is made anew of what is there, and what was damaged is kept.
#[test]
fn a_catalogue_that_cannot_be_believed_is_made_anew() {
    type Harm<'a> = &'a dyn Fn(&Path);
    let cases: [(&str, bool, Harm<'_>); 4] = [
        ("gone", false, &|path| std::fs::remove_file(path).unwrap()),
        ("flipped", true, &|path| flip(path, 70, 0)),
        ("emptied", true, &|path| std::fs::write(path, []).unwrap()),
        ("of another format", true, &|path| flip(path, 4, 1)),
    ];
    for (what, damaged, harm) in cases {
        for repaired in [false, true] {
            let root = scratch();
            two(root.path());
            harm(&root.path().join("catalogue"));
            let (summary, findings) = checked(root.path(), false);
            let expected = if damaged { (1, 0) } else { (0, 1) };
            assert_eq!((summary.damage, summary.notes), expected, "{what}: {findings:#?}");
            if repaired {
                assert_eq!(checked(root.path(), true).0.repaired, 1, "{what}");
                assert_eq!(checked(root.path(), false).1, [], "{what}");
            }
            let rig = Rig::open(root.path());
            let figure = figure_in(&rig.store.stat(), "damaged_catalogues_count");
            assert_eq!(figure, u64::from(damaged && !repaired), "{what}");
            drop(rig);
            assert_eq!(listed(root.path()), ["one", "two"], "{what}");
            assert_eq!(root.path().join("catalogue.damaged").exists(), damaged, "{what}");
            assert!(
                checked(root.path(), false)
                    .1
                    .iter()
                    .all(|it| it.level != Level::Damage)
            );
        }
    }
}

/// The name in the list is that which the dataset had last.
#[test]
fn a_dataset_is_missed_by_its_newest_name() {
    let root = scratch();
    let directory = two(root.path());
    let rig = Rig::open(root.path());
    rig.store.rename("two", "newer").unwrap();
    drop(rig);
    std::fs::remove_dir_all(directory).unwrap();
    let (_, findings) = checked(root.path(), false);
    assert_eq!(findings[0].dataset.as_deref(), Some("newer"));
}

/// A CREATE that failed may leave an empty directory, and the next one of its name makes another: the one that is listed
/// may be the one that goes.
#[test]
fn an_empty_twin_that_goes_is_not_missed() {
    let roots = [scratch(), scratch()];
    let names = roots.each_ref().map(|root| {
        let id = Rig::open(root.path()).store.create("set").unwrap();
        directory_name(&id)
    });
    for (from, to) in [(0, 1), (1, 0)] {
        let [from_path, to_path] = [from, to].map(|at| roots[at].path().join("datasets").join(&names[from]));
        copy_directory(&from_path, &to_path);
    }
    for root in &roots {
        for _ in 0..2 {
            assert_eq!(lost(&Rig::open(root.path())), 0);
        }
        assert_eq!(
            std::fs::read_dir(root.path().join("datasets")).unwrap().count(),
            1
        );
        assert_eq!(checked(root.path(), false).1, []);
    }
}
