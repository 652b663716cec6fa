//! Which values the paths of a command line stand for.

use std::collections::HashMap;
use std::fs::{self, File, FileType};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use walkdir::WalkDir;

use super::{Input, InputKind, Item, Problem, Sources, Stamp, tar_index};
use crate::keys::{self, shown, shown_path};

/// Keys that two inputs give, at most this many named one by one.
const DUPLICATES_NAMED_MAX: usize = 10;

/// Which `.tar` files are shards, stored member by member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Tars {
    /// Those named on the command line; in directories a tar is a file like any other
    Named,
    /// Those in directories too
    All,
    /// None: a tar is stored as one value
    None,
}

/// Scans `paths` in order. What cannot be read is noted in the answer and does not stop the scan.
pub(crate) fn scan(paths: &[PathBuf], prefix: &[u8], tars: Tars) -> Sources {
    let mut scan = Scan {
        found: Sources {
            prefix_len_bytes: prefix.len(),
            ..Sources::default()
        },
        prefix,
        tars,
    };
    for path in paths {
        scan.path(path);
    }
    scan.found
}

struct Scan<'a> {
    found: Sources,
    prefix: &'a [u8],
    tars: Tars,
}

impl Scan<'_> {
    /// A path that was named: followed if it is a symbolic link, for who names it means what it points to.
    fn path(&mut self, path: &Path) {
        let metadata = match fs::metadata(path) {
            Ok(metadata) => metadata,
            Err(error) => return self.fail(shown_path(path), error.to_string()),
        };
        if metadata.is_dir() {
            return self.tree(path);
        }
        if !metadata.is_file() {
            return self.skip(shown_path(path), special(metadata.file_type()));
        }
        if self.tars != Tars::None && is_tar(path) {
            return self.shard(path);
        }
        let Some(name) = path.file_name() else {
            return self.fail(shown_path(path), "it has no file name".into());
        };
        self.note_compressed(path);
        let input = self.input(path, InputKind::File);
        self.item(name.as_bytes(), input, 0, metadata.len());
    }

    fn tree(&mut self, root: &Path) {
        let input = self.input(root, InputKind::Tree);
        for entry in WalkDir::new(root).min_depth(1).sort_by_file_name() {
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) => {
                    let path = error.path().unwrap_or(root).to_owned();
                    let why = error
                        .io_error()
                        .map_or_else(|| error.to_string(), ToString::to_string);
                    self.fail(shown_path(&path), why);
                    continue;
                }
            };
            let (path, kind) = (entry.path(), entry.file_type());
            if kind.is_dir() {
                continue;
            }
            if !kind.is_file() {
                self.skip(shown_path(path), special(kind));
                continue;
            }
            self.note_compressed(path);
            if is_tar(path) {
                match self.tars {
                    Tars::All => {
                        self.shard(path);
                        continue;
                    }
                    Tars::Named => self.found.nested_tars += 1,
                    Tars::None => {}
                }
            }
            match (entry.metadata(), path.strip_prefix(root)) {
                (Ok(metadata), Ok(relative)) => {
                    self.item(relative.as_os_str().as_bytes(), input, 0, metadata.len());
                }
                (Err(error), _) => {
                    let why = error
                        .io_error()
                        .map_or_else(|| error.to_string(), ToString::to_string);
                    self.fail(shown_path(path), why);
                }
                (_, Err(error)) => self.fail(shown_path(path), error.to_string()),
            }
        }
    }

    fn note_compressed(&mut self, path: &Path) {
        self.found.compressed_tars += u64::from(self.tars != Tars::None && is_compressed_tar(path));
    }

    fn shard(&mut self, path: &Path) {
        let opened = File::open(path).and_then(|file| Ok((Stamp::of(&file.metadata()?), file)));
        let (stamp, file) = match opened {
            Ok(opened) => opened,
            Err(error) => return self.fail(shown_path(path), error.to_string()),
        };
        let index = match tar_index::index(&file) {
            Ok(index) => index,
            Err(tar_index::Malformed { offset, why }) => {
                let why = format!("malformed tar at offset {offset}, nothing of it is stored: {why}");
                return self.fail(shown_path(path), why);
            }
        };
        let origin = |name: &[u8]| format!("{}, member {}", shown_path(path), shown(name));
        for (name, what) in index.skipped {
            self.skip(origin(&name), what);
        }
        for (name, why) in index.failed {
            self.fail(origin(&name), why);
        }
        let input = self.input(path, InputKind::Shard(stamp));
        for member in index.members {
            self.item(&member.name, input, member.offset, member.len_bytes);
        }
    }

    fn input(&mut self, path: &Path, kind: InputKind) -> u32 {
        self.found.inputs.push(Input {
            path: path.to_owned(),
            kind,
        });
        (self.found.inputs.len() - 1) as u32
    }

    fn item(&mut self, name: &[u8], input: u32, offset: u64, len_bytes: u64) {
        let key = [self.prefix, name].concat();
        let item = Item {
            key,
            input,
            offset,
            len_bytes,
        };
        match keys::judge(&item.key) {
            Ok(()) => self.found.items.push(item),
            Err(why) => {
                let origin = self.found.origin(&item);
                self.fail(origin, why);
            }
        }
    }

    fn skip(&mut self, origin: impl Into<String>, what: &str) {
        self.found.skipped.push(Problem {
            origin: origin.into(),
            why: what.into(),
        });
    }

    fn fail(&mut self, origin: impl Into<String>, why: String) {
        self.found.failed.push(Problem {
            origin: origin.into(),
            why,
        });
    }
}

fn is_tar(path: &Path) -> bool {
    path.extension()
        .is_some_and(|extension| extension.eq_ignore_ascii_case("tar"))
}

fn is_compressed_tar(path: &Path) -> bool {
    const SHORT: [&str; 6] = ["tgz", "tbz", "tbz2", "txz", "tzst", "tlz4"];
    const LONG: [&str; 6] = ["gz", "bz2", "xz", "zst", "lz4", "z"];
    let extension = path.extension().unwrap_or_default();
    let is = |other: &&str| extension.eq_ignore_ascii_case(other);
    SHORT.iter().any(&is) || LONG.iter().any(is) && is_tar(&path.with_extension(""))
}

fn special(kind: FileType) -> &'static str {
    if kind.is_symlink() {
        "symbolic link"
    } else if kind.is_fifo() {
        "fifo"
    } else if kind.is_socket() {
        "socket"
    } else if kind.is_block_device() || kind.is_char_device() {
        "device"
    } else {
        "special file"
    }
}

/// Checks that no two items have the same key; else names the inputs that give it.
pub(crate) fn check_distinct(sources: &Sources) -> Result<(), String> {
    let mut first: HashMap<&[u8], &Item> = HashMap::with_capacity(sources.items.len());
    let mut named = Vec::new();
    let mut count = 0_u64;
    for item in &sources.items {
        let Some(other) = first.insert(&item.key, item) else {
            continue;
        };
        count += 1;
        if named.len() < DUPLICATES_NAMED_MAX {
            let (one, two) = (sources.origin(other), sources.origin(item));
            named.push(format!("key {}: from {one} and from {two}", shown(&item.key)));
        }
    }
    if count == 0 {
        return Ok(());
    }
    let more = match count - named.len() as u64 {
        0 => String::new(),
        more => format!("; and {more} more"),
    };
    Err(format!(
        "two inputs give one key: {}{more} (nothing was stored; ingest them apart with different --prefix)",
        named.join("; ")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::tar_index::tests::tar_of;
    use std::ffi::OsStr;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    fn write(root: &Path, name: &[u8], bytes: &[u8]) {
        let path = root.join(OsStr::from_bytes(name));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    fn keys_of(sources: &Sources) -> Vec<Vec<u8>> {
        sources.items.iter().map(|item| item.key.clone()).collect()
    }

    #[test]
    fn keys_are_relative_paths_as_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let names: [&[u8]; 5] = [b" space", b"a/b/c/d.txt", b"empty", b"n\new", b"\xff\xfe"];
        for name in names {
            write(dir.path(), name, name);
        }
        write(dir.path(), b"empty", b"");
        let found = scan(&[dir.path().into()], b"p/", Tars::Named);
        let want: Vec<Vec<u8>> = names.iter().map(|name| [b"p/", *name].concat()).collect();
        assert_eq!(keys_of(&found), want);
        assert_eq!(
            found.path(&found.items[4]),
            dir.path().join(OsStr::from_bytes(b"\xff\xfe"))
        );
        assert_eq!(
            found.bytes(),
            names.iter().map(|name| name.len() as u64).sum::<u64>() - 5
        );
    }

    #[test]
    fn links_and_special_files_are_named_and_skipped_but_a_named_link_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), b"tree/real", b"x");
        symlink("real", dir.path().join("tree/link")).unwrap();
        symlink("..", dir.path().join("tree/loop")).unwrap();
        let _socket = UnixListener::bind(dir.path().join("tree/sock\net")).unwrap();
        symlink("tree", dir.path().join("named")).unwrap();
        let found = scan(&[dir.path().join("named"), "/dev/null".into()], b"", Tars::Named);
        assert_eq!(keys_of(&found), [b"real"]);
        let skipped: Vec<&str> = found.skipped.iter().map(|problem| &problem.why[..]).collect();
        assert_eq!(skipped, ["symbolic link", "symbolic link", "socket", "device"]);
        assert!(
            found.skipped[2].origin.contains("sock\\net"),
            "{:?}",
            found.skipped[2]
        );
        assert!(found.failed.is_empty());
    }

    #[test]
    fn what_is_missing_or_cannot_be_named_fails_alone() {
        let dir = tempfile::tempdir().unwrap();
        let deep = [
            "d".repeat(250),
            "e".repeat(250),
            "f".repeat(250),
            "g".repeat(250),
            "h".repeat(30),
        ]
        .join("/");
        write(dir.path(), deep.as_bytes(), b"");
        write(dir.path(), b"good", b"");
        let found = scan(&[dir.path().join("missing"), dir.path().into()], b"", Tars::Named);
        assert_eq!(keys_of(&found), [b"good"]);
        let whys: Vec<&str> = found.failed.iter().map(|problem| &problem.why[..]).collect();
        assert!(
            whys[0].contains("No such file") && whys[1].contains("1034 bytes"),
            "{whys:?}"
        );
    }

    #[test]
    fn tars_are_shards_where_they_are_named_or_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        write(
            dir.path(),
            b"t/s.tar",
            &tar_of(&[(b"0.jpg", b"jpg"), (b"0.cls", b"7")]),
        );
        let shard = dir.path().join("t/s.tar");
        let keys = |path: &Path, tars| keys_of(&scan(&[path.into()], b"", tars));
        assert_eq!(keys(&shard, Tars::Named), [b"0.jpg", b"0.cls"]);
        assert_eq!(keys(&shard, Tars::None), [b"s.tar"]);
        assert_eq!(keys(&dir.path().join("t"), Tars::Named), [b"s.tar"]);
        assert_eq!(keys(&dir.path().join("t"), Tars::All), [b"0.jpg", b"0.cls"]);
        assert_eq!(scan(&[dir.path().into()], b"", Tars::Named).nested_tars, 1);
        let upper = dir.path().join("S.TAR");
        fs::copy(&shard, &upper).unwrap();
        assert_eq!(keys(&upper, Tars::Named), [b"0.jpg", b"0.cls"]);
        for name in ["t/a.tar.gz", "t/b.tgz", "t/c.TAR.ZST", "t/d.gz", "t/tar", "t/tgz"] {
            write(dir.path(), name.as_bytes(), b"");
        }
        let compressed = |path: &Path, tars| scan(&[path.into()], b"", tars).compressed_tars;
        assert_eq!(compressed(&dir.path().join("t"), Tars::Named), 3);
        assert_eq!(compressed(&dir.path().join("t/b.tgz"), Tars::All), 1);
        assert_eq!(compressed(&dir.path().join("t"), Tars::None), 0);
    }

    #[test]
    fn a_malformed_tar_gives_no_member_and_the_rest_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let bytes = tar_of(&[(b"a", &[1; 600]), (b"b", b"2")]);
        write(dir.path(), b"bad.tar", &bytes[..1600]);
        write(dir.path(), b"good.tar", &bytes);
        let found = scan(
            &[dir.path().join("bad.tar"), dir.path().join("good.tar")],
            b"",
            Tars::Named,
        );
        assert_eq!(keys_of(&found), [b"a", b"b"]);
        let [problem] = &found.failed[..] else {
            panic!("{:?}", found.failed)
        };
        assert!(
            problem.origin.ends_with("bad.tar") && problem.why.contains("offset 1536"),
            "{problem:?}"
        );
    }

    #[test]
    fn two_inputs_of_one_key_are_both_named() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), b"one/same", b"1");
        write(dir.path(), b"two/same", b"2");
        write(
            dir.path(),
            b"s.tar",
            &tar_of(&[(b"same", b"3"), (b"other", b"4")]),
        );
        let paths = ["one", "two", "s.tar"].map(|name| dir.path().join(name));
        let error = check_distinct(&scan(&paths, b"", Tars::Named)).unwrap_err();
        for part in ["key same", "one/same", "two/same", "s.tar, member same"] {
            assert!(error.contains(part), "{part}: {error}");
        }
        assert!(!error.contains("other"));
        assert!(check_distinct(&scan(&paths[..1], b"", Tars::Named)).is_ok());
    }

    #[test]
    fn many_duplicates_do_not_fill_the_screen() {
        let dir = tempfile::tempdir().unwrap();
        for number in 0..30 {
            write(dir.path(), format!("{number}").as_bytes(), b"");
        }
        let twice = [dir.path().to_owned(), dir.path().to_owned()];
        let error = check_distinct(&scan(&twice, b"", Tars::Named)).unwrap_err();
        assert!(error.contains("and 20 more"), "{error}");
    }
}
