//! Tars as programs make them, and as nobody should.

use super::*;
use std::io::Write;
use tar::Builder;

use crate::source::tar_extended::tests::record_of;

/// A tar of regular files.
pub(crate) fn tar_of(members: &[(&[u8], &[u8])]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (name, bytes) in members {
        append(&mut builder, EntryType::Regular, name, bytes);
    }
    builder.into_inner().unwrap()
}

fn append(builder: &mut Builder<Vec<u8>>, kind: EntryType, name: &[u8], bytes: &[u8]) {
    use std::os::unix::ffi::OsStrExt;
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    // Written by hand: the builder's own way drops a leading "./".
    if name.len() <= 100 {
        header.as_old_mut().name[..name.len()].copy_from_slice(name);
        header.set_cksum();
        builder.append(&header, bytes).unwrap();
    } else {
        builder
            .append_data(&mut header, std::ffi::OsStr::from_bytes(name), bytes)
            .unwrap();
    }
}

fn file_of(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

#[test]
fn members_have_their_names_places_and_lengths() {
    let long = [b'x'; 300];
    let bytes = tar_of(&[(b"a b.txt", b"one"), (b"./n\n\xff", b""), (&long, &[7; 1000])]);
    let found = index(&file_of(&bytes)).unwrap();
    let names: Vec<&[u8]> = found.members.iter().map(|member| &member.name[..]).collect();
    assert_eq!(names, [b"a b.txt", &b"n\n\xff"[..], &long]);
    for (member, want) in found.members.iter().zip([&b"one"[..], b"", &[7; 1000]]) {
        let start = member.offset as usize;
        assert_eq!(&bytes[start..start + member.len_bytes as usize], want);
    }
}

#[test]
fn links_directories_and_special_members_are_told_apart() {
    let mut builder = Builder::new(Vec::new());
    append(&mut builder, EntryType::Directory, b"d/", b"");
    append(&mut builder, EntryType::Symlink, b"d/link", b"");
    append(&mut builder, EntryType::Fifo, b"d/fifo", b"");
    append(&mut builder, EntryType::Regular, b"old-style-directory/", b"");
    let found = index(&file_of(&builder.into_inner().unwrap())).unwrap();
    assert!(found.members.is_empty());
    assert_eq!(
        found.skipped,
        [
            (b"d/link".to_vec(), "symbolic link"),
            (b"d/fifo".to_vec(), "fifo")
        ]
    );
}

#[test]
fn a_tar_cut_anywhere_is_malformed_and_says_where() {
    let bytes = tar_of(&[(b"a", &[1; 700]), (b"b", &[2; 700])]);
    // Header, two blocks of a, header, two blocks of b, then the marker.
    for cut in [0, 100, 512, 1000, 1536, 1600, 2048, 3071, 3072] {
        let Malformed { offset, why } = index(&file_of(&bytes[..cut])).unwrap_err();
        assert!(offset <= cut as u64, "cut at {cut}: {offset} {why}");
        assert!(!why.is_empty());
    }
    assert_eq!(index(&file_of(&bytes)).unwrap().members.len(), 2);
    assert_eq!(index(&file_of(&bytes[..1600])).unwrap_err().offset, 1536);
    assert!(
        index(&file_of(&bytes[..3072]))
            .unwrap_err()
            .why
            .contains("end-of-archive")
    );
}

#[test]
fn joined_tars_and_noise_are_malformed() {
    let one = tar_of(&[(b"a", b"1")]);
    let joined = [one.clone(), tar_of(&[(b"b", b"2")])].concat();
    let error = index(&file_of(&joined)).unwrap_err();
    assert_eq!(
        (error.offset, error.why.contains("joined")),
        (one.len() as u64, true)
    );
    let error = index(&file_of(&[0x41; 4096])).unwrap_err();
    assert_eq!(error.offset, 0, "{}", error.why);
    let mut damaged = tar_of(&[(b"a", b"1"), (b"b", b"2")]);
    damaged[1024 + 3] ^= 1;
    assert_eq!(index(&file_of(&damaged)).unwrap_err().offset, 1024);
}

/// As GNU tar writes them, in each of its formats.
#[test]
fn sparse_members_are_refused_with_their_tar() {
    let dir = tempfile::tempdir().unwrap();
    let holes = File::create(dir.path().join("holes")).unwrap();
    holes.write_all_at(b"x", 1 << 20).unwrap();
    std::fs::write(dir.path().join("plain"), b"plain").unwrap();
    let tar = |arguments: &[&str]| {
        let mut tar = std::process::Command::new("tar");
        tar.arg("-C")
            .arg(dir.path())
            .args(arguments)
            .args(["-cf", "-", "plain", "holes"]);
        let made = tar.output().unwrap();
        assert!(made.status.success(), "{made:?}");
        made.stdout
    };
    let formats: [&[&str]; 5] = [
        &["--sparse", "--format=gnu"],
        &["--sparse", "--format=posix"],
        &["--sparse", "--format=posix", "--sparse-version=0.0"],
        &["--sparse", "--format=posix", "--sparse-version=0.1"],
        // A value with an empty line in it, in front of what tells.
        &["--sparse", "--format=posix", "--pax-option=comment:=a\n\nb"],
    ];
    for arguments in formats {
        let bytes = tar(arguments);
        assert!(bytes.len() < 1 << 20, "{arguments:?}: it is not sparse");
        let Malformed { why, .. } = index(&file_of(&bytes)).unwrap_err();
        assert!(
            why.contains("holes is sparse") && why.contains("--sparse"),
            "{arguments:?}: {why}"
        );
    }
    let whole = index(&file_of(&tar(&["--format=posix"]))).unwrap();
    assert_eq!(whole.members.len(), 2);
}

#[test]
fn a_member_that_claims_more_than_there_is_does_not_pass() {
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::Regular);
    header.as_old_mut().name[0] = b'a';
    header.set_size(u64::MAX / 2);
    header.set_cksum();
    let bytes = [header.as_bytes().to_vec(), vec![0; 2048]].concat();
    assert_eq!(index(&file_of(&bytes)).unwrap_err().offset, 0);
}

/// One header of 512 bytes; `edit` changes it before its checksum is made.
fn header_of(kind: u8, name: &[u8], len_bytes: u64, edit: impl FnOnce(&mut Header)) -> Vec<u8> {
    let mut header = Header::new_ustar();
    header.set_entry_type(EntryType::new(kind));
    header.as_old_mut().name[..name.len()].copy_from_slice(name);
    header.set_size(len_bytes);
    edit(&mut header);
    header.set_cksum();
    header.as_bytes().to_vec()
}

/// A header and its bytes, in whole blocks.
fn with_body(kind: u8, name: &[u8], body: &[u8]) -> Vec<u8> {
    let mut bytes = header_of(kind, name, body.len() as u64, |_| {});
    bytes.extend(body);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

/// A tar of these pieces, with its end.
fn joined(pieces: &[Vec<u8>]) -> Vec<u8> {
    [pieces.concat(), vec![0; 1024]].concat()
}

fn names_of(index: &TarIndex) -> Vec<&[u8]> {
    index.members.iter().map(|member| &member.name[..]).collect()
}

/// GNU tar's output for `names` in `dir`.
fn gnu_tar(dir: &std::path::Path, options: &[&str], names: &[&std::ffi::OsStr]) -> Vec<u8> {
    let mut tar = std::process::Command::new("tar");
    tar.arg("-C")
        .arg(dir)
        .args(options)
        .args(["-cf", "-"])
        .args(names);
    let made = tar.output().unwrap();
    assert!(made.status.success(), "{made:?}");
    made.stdout
}

/// The tar crate ends PAX records at newlines, and took the name in the header for that of the member: stored under a
/// wrong key, and verified under it.
#[test]
fn names_with_newlines_come_from_their_pax_records() {
    let dir = tempfile::tempdir().unwrap();
    let name = "a".repeat(120) + "\n1";
    std::fs::write(dir.path().join(&name), b"x").unwrap();
    let bytes = gnu_tar(dir.path(), &["--format=pax"], &[name.as_ref()]);
    assert_eq!(names_of(&index(&file_of(&bytes)).unwrap()), [name.as_bytes()]);

    let path = |value: &[u8]| record_of("path", value);
    for (records, want) in [
        (path(b"n\nl"), &b"n\nl"[..]),
        ([record_of("comment", b"a\n\n"), path(b"x")].concat(), b"x"),
        ([path(b"x"), path(b"y")].concat(), b"y"),
        (path(b"./x"), b"x"),
    ] {
        let pieces = [
            with_body(b'x', b"pax", &records),
            with_body(b'0', b"in the header", b"1"),
        ];
        let found = index(&file_of(&joined(&pieces))).unwrap();
        assert_eq!(names_of(&found), [want], "{}", records.escape_ascii());
    }
}

#[test]
fn what_is_said_of_all_members_yields_to_what_is_said_of_one() {
    let pieces = [
        with_body(b'g', b"global", &record_of("comment", b"c")),
        with_body(
            b'g',
            b"global",
            &[record_of("path", b"g"), record_of("size", b"2")].concat(),
        ),
        with_body(b'x', b"pax", &record_of("path", b"x")),
        with_body(b'0', b"one", b"12"),
        with_body(b'X', b"pax", &record_of("size", b"3")),
        with_body(b'0', b"two", b"123"),
    ];
    let found = index(&file_of(&joined(&pieces))).unwrap();
    assert_eq!(names_of(&found), [b"x", b"g"]);
    let lengths: Vec<u64> = found.members.iter().map(|member| member.len_bytes).collect();
    assert_eq!(lengths, [2, 3]);
}

/// Each of them was taken into memory, all of it.
#[test]
fn an_extended_header_of_gigabytes_is_refused_unread() {
    for kind in [b'L', b'K', b'x', b'g'] {
        let file = file_of(&header_of(kind, b"long", 3 << 30, |_| {}));
        file.set_len(4 << 30).unwrap();
        let Malformed { offset, why } = index(&file).unwrap_err();
        assert_eq!(offset, 0);
        assert!(why.contains("3221225472 bytes: at most 1048576"), "{why}");
    }
    // The longest that is read has a name that nothing can be stored under.
    let long = [with_body(b'L', b"", &[b'n'; 1 << 20]), with_body(b'0', b"", b"")];
    let why = index(&file_of(&joined(&long))).unwrap_err().why;
    assert!(why.contains("a name of 1048576 bytes"), "{why}");
}

#[test]
fn hard_links_are_the_files_that_they_are_names_of() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    std::fs::create_dir(path("d")).unwrap();
    std::fs::write(path("d/1"), b"one").unwrap();
    let long = "d/".to_owned() + &"l".repeat(200);
    std::fs::hard_link(path("d/1"), path(&long)).unwrap();
    std::fs::hard_link(path("d/1"), path("d/z")).unwrap();
    for format in ["--format=gnu", "--format=pax"] {
        // The name that the others are links to is a long one, and a short one.
        for first in ["d/1", &long] {
            let names = [first, "d/1", &long, "d/z"].map(AsRef::as_ref);
            let bytes = gnu_tar(dir.path(), &[format], &names);
            let found = index(&file_of(&bytes)).unwrap();
            assert!(found.failed.is_empty() && found.skipped.is_empty(), "{found:?}");
            let mut names = names_of(&found);
            names.sort_unstable();
            names.dedup();
            assert_eq!(names, [b"d/1", long.as_bytes(), b"d/z"]);
            for member in &found.members {
                let start = member.offset as usize;
                assert_eq!(&bytes[start..start + member.len_bytes as usize], b"one");
            }
        }
    }
}

#[test]
fn a_hard_link_to_what_is_not_there_fails_alone() {
    let link = |name: &[u8], to: &[u8]| {
        header_of(b'1', name, 0, |header| {
            header.as_old_mut().linkname[..to.len()].copy_from_slice(to)
        })
    };
    let pieces = [
        with_body(b'0', b"./file", b"1"),
        with_body(b'2', b"symbolic", b""),
        link(b"one", b"file"),
        link(b"two", b"./one"),
        link(b"to a symbolic link", b"symbolic"),
        link(b"dangling", b"no\nwhere"),
    ];
    let found = index(&file_of(&joined(&pieces))).unwrap();
    assert_eq!(names_of(&found), [&b"file"[..], b"one", b"two"]);
    assert!(
        found
            .members
            .iter()
            .all(|member| member.offset == 512 && member.len_bytes == 1)
    );
    let skipped: Vec<&[u8]> = found.skipped.iter().map(|(name, _)| &name[..]).collect();
    assert_eq!(skipped, [&b"symbolic"[..], b"to a symbolic link"]);
    let [(name, why)] = &found.failed[..] else {
        panic!("{found:?}")
    };
    assert!(
        name == b"dangling" && why.starts_with("hard link to $'no\\nwhere'"),
        "{why}"
    );
}

/// Each kind of malformed tar, with words of our own: the bytes of a file that is none are not for a terminal.
#[test]
fn what_is_no_tar_is_said_in_words_that_a_terminal_shows() {
    let file = || with_body(b'0', b"file", b"1");
    let odd_size = |size: &'static [u8]| {
        header_of(b'0', b"\x1b[2J", 0, |header| {
            header.as_old_mut().size = [b' '; 12];
            header.as_old_mut().size[..size.len()].copy_from_slice(size);
        })
    };
    let too_long = [b"5012 path=".as_slice(), &[b'x'; 5001], b"\n"].concat();
    let cases: [(Vec<u8>, u64, &str); 15] = [
        (b"hello \x1b[2Jworld\n".repeat(100), 0, "checksum"),
        ([file(), vec![0xff; 512]].concat(), 1024, "checksum"),
        ([file(), vec![0xff; 500]].concat(), 1024, "cut short"),
        (joined(&[odd_size(b"zz\x1b")]), 0, "is no number"),
        (joined(&[odd_size(b"")]), 0, "is no number"),
        (
            joined(&[odd_size(&[0x80, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1])]),
            0,
            "is no number",
        ),
        (joined(&[odd_size(&[0xff; 12])]), 0, "is no number"),
        (
            joined(&[file(), with_body(b'5', b"d/", b"x")]),
            1024,
            "has a length",
        ),
        (
            joined(&[file(), with_body(b'1', b"l", b"x")]),
            1024,
            "has a length",
        ),
        (
            joined(&[file(), with_body(b'x', b"", &record_of("path", b"x"))]),
            2048,
            "is missing",
        ),
        (joined(&[file(), with_body(b'x', b"", b"")]), 1536, "is missing"),
        (
            joined(&[with_body(b'x', b"", b"garbage\x1b"), file()]),
            0,
            "its length",
        ),
        (
            joined(&[with_body(b'g', b"", &record_of("size", b"abc")), file()]),
            0,
            "is no number",
        ),
        (
            joined(&[
                with_body(b'L', b"", b"a\0"),
                with_body(b'x', b"", &record_of("path", b"x")),
                file(),
            ]),
            1024,
            "say the same",
        ),
        (
            joined(&[with_body(b'x', b"", &too_long), file()]),
            5632,
            "5001 bytes",
        ),
    ];
    for (bytes, offset, words) in cases {
        let error = index(&file_of(&bytes)).unwrap_err();
        assert!(
            error.why.contains(words) && error.offset == offset,
            "{words}: {error:?}"
        );
        assert!(error.why.chars().all(|char| !char.is_control()), "{error:?}");
    }
    let cut = header_of(b'L', b"long", 1000, |_| {});
    assert!(
        index(&file_of(&cut))
            .unwrap_err()
            .why
            .contains("extended header is cut short")
    );
}
