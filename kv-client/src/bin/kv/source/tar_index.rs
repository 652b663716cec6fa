//! The members of a tar: names, places and lengths, from its headers alone.
//!
//! A tar is judged whole before anything of it is stored: a header that does not check, a member that runs past the end,
//! a missing end-of-archive marker or bytes after it make all of it malformed. So does a sparse member, whose bytes do
//! not lie in the archive as they are.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

use tar::{Archive, EntryType, Header};

use crate::keys::shown;

/// Length of a tar's blocks, bytes.
const BLOCK_BYTES: u64 = 512;
/// How the keywords begin that only sparse members have in their PAX records.
const PAX_SPARSE: &[u8] = b"GNU.sparse.";

/// One regular file of a tar.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Member {
    /// Its path, as the header has it, without a leading `./`.
    pub(crate) name: Vec<u8>,
    /// Where its bytes start.
    pub(crate) offset: u64,
    /// How many they are.
    pub(crate) len_bytes: u64,
}

/// What the headers of a tar said.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct TarIndex {
    pub(crate) members: Vec<Member>,
    /// Links and special files: name and what it is.
    pub(crate) skipped: Vec<(Vec<u8>, &'static str)>,
}

/// Why a tar cannot be used, and where in it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Malformed {
    pub(crate) offset: u64,
    pub(crate) why: String,
}

/// Reads every header of `file`.
pub(crate) fn index(file: &File) -> Result<TarIndex, Malformed> {
    let file_len_bytes = match file.metadata() {
        Ok(metadata) => metadata.len(),
        Err(error) => {
            return Err(Malformed {
                offset: 0,
                why: error.to_string(),
            });
        }
    };
    let mut found = TarIndex::default();
    let mut start = file;
    start.rewind().map_err(|error| malformed(0, &error))?;
    let mut archive = Archive::new(file);
    // Where the next header, or the marker that ends the archive, must be.
    let mut next = 0;
    let entries = archive
        .entries_with_seek()
        .map_err(|error| malformed(next, &error))?;
    for entry in entries {
        let entry = entry.map_err(|error| malformed(next, &error))?;
        let offset = entry.raw_file_position();
        let name = strip_dot(&entry.path_bytes()).to_vec();
        let sparse = entry.header().entry_type() == EntryType::GNUSparse
            || has_sparse_records(file, next, entry.raw_header_position())
                .map_err(|error| malformed(next, &error))?;
        if sparse {
            let why = format!(
                "member {} is sparse and cannot be read in place (make the tar without --sparse, or unpack it and \
                 ingest the folder)",
                shown(&name)
            );
            return Err(Malformed { offset: next, why });
        }
        let end = offset
            .checked_add(entry.size())
            .filter(|end| *end <= file_len_bytes);
        let Some(end) = end else {
            let why = format!(
                "a member of {} bytes starts at {offset}, but the file ends at {file_len_bytes} (cut short?)",
                entry.size()
            );
            return Err(Malformed { offset: next, why });
        };
        sort_in(
            &mut found,
            entry.header().entry_type(),
            Member {
                name,
                offset,
                len_bytes: entry.size(),
            },
        );
        next = end.next_multiple_of(BLOCK_BYTES);
    }
    check_end(file, next, file_len_bytes)?;
    Ok(found)
}

fn malformed(offset: u64, error: &io::Error) -> Malformed {
    Malformed {
        offset,
        why: error.to_string(),
    }
}

/// Whether an extended header between `start` and the member's own header at `end` makes it a sparse one. Read here and
/// not by the library, which ends the records at an empty line, though a value may hold one.
fn has_sparse_records(file: &File, start: u64, end: u64) -> io::Result<bool> {
    let mut at = start;
    while at < end {
        let mut header = Header::new_old();
        file.read_exact_at(header.as_mut_bytes(), at)?;
        let body = at + BLOCK_BYTES;
        let len_bytes = header.entry_size()?;
        // The library has read all of it, so it is no longer than the file.
        if header.entry_type() == EntryType::XHeader {
            let mut records = vec![0; usize::try_from(len_bytes.min(end - at)).unwrap_or(0)];
            file.read_exact_at(&mut records, body)?;
            if names_sparse(&records) {
                return Ok(true);
            }
        }
        at = body
            .saturating_add(len_bytes)
            .checked_next_multiple_of(BLOCK_BYTES)
            .unwrap_or(end);
    }
    Ok(false)
}

/// Whether one of `records`, each "LENGTH KEYWORD=VALUE" and a newline, has a keyword of sparse members.
fn names_sparse(mut records: &[u8]) -> bool {
    while let Some(space) = records.iter().position(|byte| *byte == b' ') {
        let len = str::from_utf8(&records[..space])
            .ok()
            .and_then(|digits| digits.parse().ok());
        let Some(record) = len.and_then(|len: usize| records.get(space + 1..len)) else {
            return false;
        };
        if record.starts_with(PAX_SPARSE) {
            return true;
        }
        records = &records[space + 1 + record.len()..];
    }
    false
}

/// `tar -C dir .` writes `./a` for what everybody calls `a`.
fn strip_dot(mut name: &[u8]) -> &[u8] {
    while let Some(rest) = name.strip_prefix(b"./") {
        name = rest;
    }
    name
}

fn sort_in(found: &mut TarIndex, kind: EntryType, member: Member) {
    match kind {
        // Before POSIX a directory was a regular file whose name ends in a slash.
        EntryType::Regular | EntryType::Continuous
            if member.name.ends_with(b"/") && member.len_bytes == 0 => {}
        EntryType::Regular | EntryType::Continuous => found.members.push(member),
        EntryType::Directory | EntryType::XGlobalHeader => {}
        EntryType::Symlink => found.skipped.push((member.name, "symbolic link")),
        EntryType::Link => found.skipped.push((member.name, "hard link to another member")),
        EntryType::Char | EntryType::Block => found.skipped.push((member.name, "device")),
        EntryType::Fifo => found.skipped.push((member.name, "fifo")),
        _ => found.skipped.push((member.name, "special member")),
    }
}

/// An archive ends with zero blocks and nothing else; without them it may have been cut between two members.
fn check_end(mut file: &File, end: u64, file_len_bytes: u64) -> Result<(), Malformed> {
    if end >= file_len_bytes {
        let why = "no end-of-archive marker: it may have been cut short (if it is whole, add one: truncate -s +1024)";
        return Err(Malformed {
            offset: file_len_bytes,
            why: why.into(),
        });
    }
    file.seek(SeekFrom::Start(end))
        .map_err(|error| malformed(end, &error))?;
    let (mut at, mut buffer) = (end, [0; 8192]);
    loop {
        let count = match file.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(malformed(at, &error)),
        };
        if let Some(index) = buffer[..count].iter().position(|byte| *byte != 0) {
            let why = "bytes after the end-of-archive marker (joined tars? give each as its own file)".into();
            return Err(Malformed {
                offset: at + index as u64,
                why,
            });
        }
        at += count as u64;
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::io::Write;
    use tar::Builder;

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
    fn only_the_keywords_of_records_tell_a_sparse_member() {
        for (records, sparse) in [
            (&b"22 GNU.sparse.major=1\n"[..], true),
            (b"9 path=x\n22 GNU.sparse.major=1\n", true),
            (b"13 path=x\n\ny\n22 GNU.sparse.major=1\n", true),
            (b"31 path=\n22 GNU.sparse.major=1\n", false),
            (b"0 x 22 GNU.sparse.major=1\n", false),
            (b"99999999999999999999 GNU.sparse.major=1\n", false),
            (b"", false),
        ] {
            assert_eq!(names_sparse(records), sparse, "{}", records.escape_ascii());
        }
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
}
