//! The bytes of an item, exactly as many as were scanned, or an error that says what changed.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::Arc;

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::{InputKind, Item, Sources, Stamp};

/// Opens items of one scan; keeps the last shard open, for its members come one after the other.
pub(crate) struct Opener<'a> {
    sources: &'a Sources,
    shard: Option<(u32, Arc<File>)>,
}

impl<'a> Opener<'a> {
    pub(crate) fn new(sources: &'a Sources) -> Self {
        Self { sources, shard: None }
    }

    /// A reader of the item's bytes.
    pub(crate) fn open(&mut self, item: &Item) -> io::Result<ItemReader> {
        let (file, stamp) = match self.sources.input(item).kind {
            InputKind::Shard(stamp) => (self.shard(item)?, stamp),
            InputKind::Tree => self.file(item, OFlags::NOFOLLOW)?,
            InputKind::File => self.file(item, OFlags::empty())?,
        };
        let reader = ItemReader {
            file,
            stamp,
            at: item.offset,
            left: item.len_bytes,
        };
        reader.check_unchanged()?;
        Ok(reader)
    }

    /// All bytes of the item at once.
    pub(crate) fn read(&mut self, item: &Item) -> io::Result<Vec<u8>> {
        let mut reader = self.open(item)?;
        let len = usize::try_from(item.len_bytes).map_err(|_| changed("it is longer than memory can be"))?;
        let mut bytes = vec![0; len];
        reader.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn shard(&mut self, item: &Item) -> io::Result<Arc<File>> {
        if let Some((input, file)) = &self.shard
            && *input == item.input
        {
            return Ok(file.clone());
        }
        let file = Arc::new(File::open(self.sources.path(item))?);
        self.shard = Some((item.input, file.clone()));
        Ok(file)
    }

    fn file(&self, item: &Item, extra: OFlags) -> io::Result<(Arc<File>, Stamp)> {
        // Without NONBLOCK a fifo that took the file's place since the scan would be waited for.
        let flags = (OFlags::NONBLOCK | extra).bits() as i32;
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(flags)
            .open(self.sources.path(item))
            .map_err(|error| match Errno::from_io_error(&error) {
                Some(Errno::LOOP) if extra.contains(OFlags::NOFOLLOW) => changed("it is a symbolic link now"),
                _ => error,
            })?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(changed("it is no regular file any more"));
        }
        let stamp = Stamp::of(&metadata);
        if stamp.len_bytes != item.len_bytes {
            return Err(length_changed(item.len_bytes, stamp.len_bytes));
        }
        Ok((Arc::new(file), stamp))
    }
}

/// Reads one item; the read that gives its last byte fails if the file changed since it was opened.
#[derive(Debug)]
pub(crate) struct ItemReader {
    file: Arc<File>,
    stamp: Stamp,
    at: u64,
    left: u64,
}

impl ItemReader {
    fn check_unchanged(&self) -> io::Result<()> {
        let now = Stamp::of(&self.file.metadata()?);
        if now.len_bytes != self.stamp.len_bytes {
            return Err(length_changed(self.stamp.len_bytes, now.len_bytes));
        }
        if now.mtime != self.stamp.mtime {
            return Err(changed(
                "it was written to while it was read (run again when it is complete)",
            ));
        }
        Ok(())
    }
}

impl Read for ItemReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if want == 0 {
            return Ok(0);
        }
        let count = self.file.read_at(&mut buffer[..want], self.at)?;
        if count == 0 {
            self.check_unchanged()?;
            return Err(changed("it ended early"));
        }
        self.at += count as u64;
        self.left -= count as u64;
        if self.left == 0 {
            self.check_unchanged()?;
        }
        Ok(count)
    }
}

fn changed(why: &str) -> io::Error {
    io::Error::other(why)
}

fn length_changed(was: u64, now: u64) -> io::Error {
    changed(&format!(
        "its length changed from {was} to {now} bytes while it was read (run again when it is complete)"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::scan::{Tars, scan};
    use crate::source::tar_index::tests::tar_of;
    use std::fs;
    use std::path::Path;

    fn one(dir: &Path, bytes: &[u8]) -> Sources {
        fs::write(dir.join("f"), bytes).unwrap();
        scan(&[dir.into()], b"", Tars::Named)
    }

    #[test]
    fn bytes_come_whole() {
        let dir = tempfile::tempdir().unwrap();
        let sources = one(dir.path(), &[5; 100_000]);
        assert_eq!(
            Opener::new(&sources).read(&sources.items[0]).unwrap(),
            [5; 100_000]
        );
    }

    #[test]
    fn members_of_shards_come_whole() {
        let dir = tempfile::tempdir().unwrap();
        let paths = ["a.tar", "b.tar"].map(|name| dir.path().join(name));
        fs::write(
            &paths[0],
            tar_of(&[(b"1", b"one"), (b"2", b""), (b"3", &[3; 2000])]),
        )
        .unwrap();
        fs::write(&paths[1], tar_of(&[(b"4", b"four")])).unwrap();
        let sources = scan(&paths, b"", Tars::Named);
        let mut opener = Opener::new(&sources);
        let values: Vec<Vec<u8>> = sources
            .items
            .iter()
            .map(|item| opener.read(item).unwrap())
            .collect();
        assert_eq!(values, [b"one".to_vec(), vec![], vec![3; 2000], b"four".to_vec()]);
    }

    #[test]
    fn a_file_that_grew_shrank_or_went_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let sources = one(dir.path(), b"12345");
        let read = || {
            Opener::new(&sources)
                .read(&sources.items[0])
                .unwrap_err()
                .to_string()
        };
        fs::write(dir.path().join("f"), b"123456").unwrap();
        assert!(read().contains("from 5 to 6"), "{}", read());
        fs::write(dir.path().join("f"), b"1234").unwrap();
        assert!(read().contains("from 5 to 4"), "{}", read());
        fs::remove_file(dir.path().join("f")).unwrap();
        assert!(read().contains("No such file"), "{}", read());
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("f")).unwrap();
        assert_eq!(read(), "it is a symbolic link now");
    }

    #[test]
    fn a_change_between_two_reads_shows_before_the_last_byte() {
        for (change, want) in [
            (&b"12345678"[..], "from 10 to 8"),
            (b"1234567890abc", "from 10 to 13"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let sources = one(dir.path(), b"0123456789");
            let mut reader = Opener::new(&sources).open(&sources.items[0]).unwrap();
            reader.read_exact(&mut [0; 5]).unwrap();
            fs::write(dir.path().join("f"), change).unwrap();
            let error = reader.read_to_end(&mut Vec::new()).unwrap_err().to_string();
            assert!(error.contains(want), "{error}");
        }
    }

    #[test]
    fn a_rewrite_of_the_same_length_shows() {
        let dir = tempfile::tempdir().unwrap();
        let sources = one(dir.path(), b"0123456789");
        let mut reader = Opener::new(&sources).open(&sources.items[0]).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(20));
        fs::write(dir.path().join("f"), b"abcdefghij").unwrap();
        let error = reader.read_to_end(&mut Vec::new()).unwrap_err().to_string();
        assert!(error.contains("written to"), "{error}");
    }

    #[test]
    fn a_shard_that_changed_since_the_scan_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.tar");
        fs::write(&path, tar_of(&[(b"1", b"one")])).unwrap();
        let sources = scan(std::slice::from_ref(&path), b"", Tars::Named);
        fs::write(&path, tar_of(&[(b"1", b"one"), (b"2", b"two")])).unwrap();
        assert!(Opener::new(&sources).read(&sources.items[0]).is_err());
    }
}
