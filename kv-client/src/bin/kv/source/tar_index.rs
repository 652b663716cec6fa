//! The members of a tar: names, places and lengths, from its headers alone.
//!
//! A tar is judged whole before anything of it is stored: a header that does not check, a member that runs past the end,
//! a missing end-of-archive marker or bytes after it make all of it malformed. So does a sparse member, whose bytes do
//! not lie in the archive as they are.
//!
//! The fields of a header are the tar crate's work. Going from header to header is not: its `Archive` takes extended
//! headers into memory however long they are, ends PAX records at newlines, which a value may hold, and lets pass what
//! is none; and its errors hold bytes of the file, which are not for a terminal.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

use tar::{EntryType, Header};

use super::tar_extended::Extended;
use crate::keys::shown;

/// Length of a tar's blocks, bytes.
const BLOCK_BYTES: u64 = 512;
/// Longest extended header that is read, bytes. It says the name of one member and little else.
const EXTENDED_MAX_BYTES: u64 = 1 << 20;
/// Longest name, bytes: that of Linux's paths.
const NAME_MAX_BYTES: usize = 4096;

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
    /// Regular files, and hard links to them after them all.
    pub(crate) members: Vec<Member>,
    /// Symbolic links and special files: name and what it is.
    pub(crate) skipped: Vec<(Vec<u8>, &'static str)>,
    /// Hard links whose file is not in the tar: name and why it cannot be stored.
    pub(crate) failed: Vec<(Vec<u8>, String)>,
}

/// Why a tar cannot be used, and where in it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Malformed {
    pub(crate) offset: u64,
    pub(crate) why: String,
}

/// Reads every header of `file`.
pub(crate) fn index(file: &File) -> Result<TarIndex, Malformed> {
    let metadata = file.metadata().map_err(|error| failed(0, &error))?;
    let mut walk = Walk {
        file,
        file_len_bytes: metadata.len(),
        next: 0,
        global: Extended::default(),
        found: TarIndex::default(),
        links: Vec::new(),
    };
    while walk.member()? {}
    let end = walk.next;
    let found = walk.resolved();
    check_end(file, end, metadata.len())?;
    Ok(found)
}

/// Reading the tar failed.
fn failed(offset: u64, error: &io::Error) -> Malformed {
    malformed(offset, error.to_string())
}

fn malformed(offset: u64, why: impl Into<String>) -> Malformed {
    let why = why.into();
    Malformed { offset, why }
}

/// The way from header to header.
struct Walk<'a> {
    file: &'a File,
    file_len_bytes: u64,
    /// Where the next header, or the marker that ends the archive, must be.
    next: u64,
    /// What holds for all members that follow.
    global: Extended,
    found: TarIndex,
    /// Hard links: name and the name that they link to.
    links: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Walk<'_> {
    /// Takes one member and the extended headers in front of it; false where the archive ends.
    fn member(&mut self) -> Result<bool, Malformed> {
        let mut extended: Option<Extended> = None;
        loop {
            let at = self.next;
            let Some(header) = self.header()? else {
                if extended.is_none() {
                    return Ok(false);
                }
                return Err(malformed(
                    at,
                    "the member that an extended header is about is missing",
                ));
            };
            let in_header =
                length(&header).ok_or_else(|| malformed(at, "the length of a member is no number"))?;
            let kind = header.entry_type().as_byte();
            let said = match kind {
                b'L' => Extended::of_long_name(&self.extended(at, in_header)?),
                b'K' => Extended::of_long_link(&self.extended(at, in_header)?),
                // Solaris writes X for x.
                b'x' | b'X' | b'g' => Extended::of_records(&self.extended(at, in_header)?),
                _ => {
                    let extended = extended.unwrap_or_default().over(self.global.clone());
                    let len_bytes = extended.size.unwrap_or(in_header);
                    self.skip(at, len_bytes)?;
                    self.take(&header, extended, at, len_bytes)?;
                    return Ok(true);
                }
            };
            let said = said.map_err(|why| malformed(at, why))?;
            if kind == b'g' {
                self.global = said.over(std::mem::take(&mut self.global));
            } else {
                let both = extended.take().unwrap_or_default().and(said);
                extended = Some(both.map_err(|why| malformed(at, why))?);
            }
            self.skip(at, in_header)?;
        }
    }

    /// The next header, unless the archive ends there.
    fn header(&self) -> Result<Option<Header>, Malformed> {
        let at = self.next;
        if at >= self.file_len_bytes {
            return Ok(None);
        }
        let mut header = Header::new_old();
        if self.file_len_bytes - at < BLOCK_BYTES {
            return Err(malformed(at, "a header is cut short"));
        }
        self.file
            .read_exact_at(header.as_mut_bytes(), at)
            .map_err(|error| failed(at, &error))?;
        if header.as_bytes().iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let mut checked = header.clone();
        checked.set_cksum();
        // Compared as numbers: writers end the field in several ways.
        match (header.cksum(), checked.cksum()) {
            (Ok(found), Ok(computed)) if found == computed => Ok(Some(header)),
            _ => Err(malformed(
                at,
                "no header of a member: its checksum does not agree",
            )),
        }
    }

    /// The bytes of the extended header at `at`.
    fn extended(&self, at: u64, len_bytes: u64) -> Result<Vec<u8>, Malformed> {
        let body = at + BLOCK_BYTES;
        if len_bytes > EXTENDED_MAX_BYTES {
            let why =
                format!("an extended header of {len_bytes} bytes: at most {EXTENDED_MAX_BYTES} are read");
            return Err(malformed(at, why));
        }
        if len_bytes > self.file_len_bytes.saturating_sub(body) {
            return Err(malformed(at, "an extended header is cut short"));
        }
        let mut bytes = vec![0; len_bytes as usize];
        self.file
            .read_exact_at(&mut bytes, body)
            .map_err(|error| failed(at, &error))?;
        Ok(bytes)
    }

    /// Goes on behind the `len_bytes` of the member whose header is at `at`.
    fn skip(&mut self, at: u64, len_bytes: u64) -> Result<(), Malformed> {
        let body = at + BLOCK_BYTES;
        let end = body
            .checked_add(len_bytes)
            .filter(|end| *end <= self.file_len_bytes);
        let end = end.ok_or_else(|| {
            let file_len_bytes = self.file_len_bytes;
            malformed(
                at,
                format!("a member of {len_bytes} bytes starts at {body}, but the file ends at {file_len_bytes} (cut short?)"),
            )
        })?;
        self.next = end.next_multiple_of(BLOCK_BYTES);
        Ok(())
    }

    /// Sorts a member in by its kind.
    fn take(
        &mut self,
        header: &Header,
        extended: Extended,
        at: u64,
        len_bytes: u64,
    ) -> Result<(), Malformed> {
        let name = extended.name.unwrap_or_else(|| header.path_bytes().into_owned());
        let name = strip_dot(&name).to_vec();
        if name.len() > NAME_MAX_BYTES {
            let why = format!(
                "a name of {} bytes: at most {NAME_MAX_BYTES} are taken",
                name.len()
            );
            return Err(malformed(at, why));
        }
        let kind = header.entry_type();
        if kind == EntryType::GNUSparse || extended.is_sparse {
            let why = format!(
                "member {} is sparse and cannot be read in place (make the tar without --sparse, or unpack it and \
                 ingest the folder)",
                shown(&name)
            );
            return Err(malformed(at, why));
        }
        use EntryType::{Block, Char, Continuous, Directory, Fifo, Link, Regular, Symlink};
        if matches!(kind, Link | Symlink | Char | Block | Directory | Fifo) && len_bytes > 0 {
            // Some programs have as many bytes follow, some have none: members would be lost between them.
            let why = format!("a link, directory or special file has a length of {len_bytes} bytes");
            return Err(malformed(at, why));
        }
        let found = &mut self.found;
        match kind {
            // Before POSIX a directory was a regular file whose name ends in a slash.
            Regular | Continuous if name.ends_with(b"/") && len_bytes == 0 => {}
            Regular | Continuous => found.members.push(Member {
                name,
                offset: at + BLOCK_BYTES,
                len_bytes,
            }),
            Directory => {}
            Link => {
                let in_header = || header.link_name_bytes().map(Into::into);
                let link = extended.link.or_else(in_header);
                self.links
                    .push((name, strip_dot(&link.unwrap_or_default()).to_vec()));
            }
            Symlink => found.skipped.push((name, "symbolic link")),
            Char | Block => found.skipped.push((name, "device")),
            Fifo => found.skipped.push((name, "fifo")),
            _ => found.skipped.push((name, "special member")),
        }
        Ok(())
    }

    /// What was found, hard links as the members that they are names of.
    fn resolved(self) -> TarIndex {
        let (mut found, links) = (self.found, self.links);
        if links.is_empty() {
            return found;
        }
        let mut places: HashMap<Vec<u8>, Option<(u64, u64)>> = HashMap::new();
        let files = found.members.iter();
        places.extend(files.map(|file| (file.name.clone(), Some((file.offset, file.len_bytes)))));
        for (name, _) in &found.skipped {
            places.entry(name.clone()).or_insert(None);
        }
        for (name, link) in links {
            let place = places.get(&link).copied();
            match place {
                Some(Some((offset, len_bytes))) => found.members.push(Member {
                    name: name.clone(),
                    offset,
                    len_bytes,
                }),
                Some(None) => found.skipped.push((name.clone(), "hard link to what is skipped")),
                None => {
                    let why = format!(
                        "hard link to {}, which the tar does not hold (make it with both names)",
                        shown(&link)
                    );
                    found.failed.push((name.clone(), why));
                }
            }
            // A link may be to one before it.
            if let Some(place) = place {
                places.insert(name, place);
            }
        }
        found
    }
}

/// The length that a header says. The crate takes a number of 12 bytes for its last eight.
fn length(header: &Header) -> Option<u64> {
    let field = &header.as_old().size;
    let is_binary = field[0] & 0x80 != 0;
    if is_binary && field[..4] != [0x80, 0, 0, 0] {
        return None;
    }
    header.entry_size().ok()
}

/// `tar -C dir .` writes `./a` for what everybody calls `a`.
fn strip_dot(mut name: &[u8]) -> &[u8] {
    while let Some(rest) = name.strip_prefix(b"./") {
        name = rest;
    }
    name
}

/// An archive ends with zero blocks and nothing else; without them it may have been cut between two members.
fn check_end(mut file: &File, end: u64, file_len_bytes: u64) -> Result<(), Malformed> {
    if end >= file_len_bytes {
        let why = "no end-of-archive marker: it may have been cut short (if it is whole, add one: truncate -s +1024)";
        return Err(malformed(file_len_bytes, why));
    }
    file.seek(SeekFrom::Start(end))
        .map_err(|error| failed(end, &error))?;
    let (mut at, mut buffer) = (end, [0; 8192]);
    loop {
        let count = match file.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(failed(at, &error)),
        };
        if let Some(index) = buffer[..count].iter().position(|byte| *byte != 0) {
            let why = "bytes after the end-of-archive marker (joined tars? give each as its own file)";
            return Err(malformed(at + index as u64, why));
        }
        at += count as u64;
    }
}

#[cfg(test)]
#[path = "tar_index_tests.rs"]
pub(crate) mod tests;
