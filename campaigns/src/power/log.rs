//! The log that the kernel's dm-log-writes keeps: every write to a device, in the order in which the device had it,
//! with flushes and named marks among them.
//!
//! Writes are logged when the next flush after them is done, writes with FUA and marks at once. So whatever stands
//! before a flush is durable when the flush is, and a mark stands behind every flush that its writer knew to be done.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use campaigns::Error;

const MAGIC: u64 = 0x006a_7366_7773_6872;
const VERSION: u64 = 1;
const SUPER_BYTES: usize = 32;
const ENTRY_BYTES: usize = 32;
const FLUSH: u64 = 1;
const FUA: u64 = 2;
const DISCARD: u64 = 4;
const MARK: u64 = 8;
const METADATA: u64 = 16;
/// Entries that are read at most.
const ENTRIES_MAX: u64 = 1 << 20;

/// One entry of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Entry {
    Write {
        /// Where on the recorded device, bytes.
        at: u64,
        /// Where in the log device, bytes.
        data: u64,
        len: u64,
        fua: bool,
    },
    Discard {
        at: u64,
        len: u64,
    },
    Flush,
    Mark(String),
}

/// The entries and the device that holds their data.
pub(crate) struct Log {
    device: File,
    pub(crate) entries: Vec<Entry>,
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let field = bytes.get(at..at + 8).and_then(|field| field.try_into().ok());
    field.map_or(0, u64::from_le_bytes)
}

impl Log {
    /// Reads the log on `device`.
    pub(crate) fn read(device: &Path) -> Result<Self, Error> {
        let file = File::open(device).map_err(|error| format!("open {}: {error}", device.display()))?;
        let mut head = [0; SUPER_BYTES + 4];
        file.read_exact_at(&mut head, 0)?;
        let (magic, version, count) = (u64_at(&head, 0), u64_at(&head, 8), u64_at(&head, 16));
        if magic != MAGIC || version != VERSION {
            let shown = device.display();
            return Err(format!(
                "{shown} holds no log of dm-log-writes: magic {magic:#x}, version {version}"
            )
            .into());
        }
        let sector = u64::from(u32::from_le_bytes([head[24], head[25], head[26], head[27]]));
        if !(512..=65_536).contains(&sector) || count > ENTRIES_MAX {
            return Err(
                format!("a log of {count} entries with sectors of {sector} bytes is not read").into(),
            );
        }
        let mut log = Self {
            device: file,
            entries: Vec::new(),
        };
        let mut at = sector;
        for _ in 0..count {
            at = log.take(at, sector)?;
        }
        Ok(log)
    }

    /// Takes the entry at `at`; where the next one is.
    fn take(&mut self, at: u64, sector: u64) -> Result<u64, Error> {
        let mut bytes = vec![0; sector as usize];
        self.device.read_exact_at(&mut bytes, at)?;
        let (to, sectors) = (u64_at(&bytes, 0) * sector, u64_at(&bytes, 8));
        let (flags, mark_len) = (u64_at(&bytes, 16), u64_at(&bytes, 24));
        if flags & !(FLUSH | FUA | DISCARD | MARK | METADATA) != 0 {
            return Err(format!("the log's entry at byte {at} has unknown flags {flags:#x}").into());
        }
        if flags & MARK != 0 {
            let text = bytes.get(ENTRY_BYTES..ENTRY_BYTES + mark_len as usize);
            let text = text.ok_or("a mark is longer than its sector")?;
            let text = String::from_utf8_lossy(text);
            self.entries
                .push(Entry::Mark(text.trim_end_matches('\0').to_owned()));
            return Ok(at + sector);
        }
        if flags & FLUSH != 0 {
            self.entries.push(Entry::Flush);
        }
        let (data, len) = (at + sector, sectors * sector);
        if flags & DISCARD != 0 {
            self.entries.push(Entry::Discard { at: to, len });
            return Ok(data);
        }
        if len > 0 {
            let fua = flags & FUA != 0;
            self.entries.push(Entry::Write {
                at: to,
                data,
                len,
                fua,
            });
        }
        Ok(data + len)
    }

    /// Bytes of a write.
    pub(crate) fn data(&self, data: u64, len: u64) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len as usize];
        self.device.read_exact_at(&mut bytes, data)?;
        Ok(bytes)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A log as the kernel writes it: (sector, flags, mark, data).
    pub(crate) fn written(entries: &[(u64, u64, &str, &[u8])]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut bytes = Vec::new();
        for field in [MAGIC, VERSION, entries.len() as u64, 512] {
            bytes.extend(field.to_le_bytes());
        }
        bytes.resize(512, 0);
        for (sector, flags, mark, data) in entries {
            let start = bytes.len();
            let sectors = data.len() as u64 / 512;
            for field in [*sector, sectors, *flags, mark.len() as u64] {
                bytes.extend(field.to_le_bytes());
            }
            bytes.extend(mark.bytes());
            bytes.resize(start + 512, 0);
            bytes.extend(*data);
        }
        std::fs::write(file.path(), bytes).unwrap();
        file
    }

    #[test]
    fn a_log_is_read_as_the_kernel_documents_it() {
        let data = [7; 1024];
        let file = written(&[
            (3, 0, "", &data),
            (0, FLUSH, "", &[]),
            (5, FUA | METADATA, "", &data[..512]),
            (0, MARK, "1,2", &[]),
            (9, FLUSH | FUA, "", &data[..512]),
        ]);
        let log = Log::read(file.path()).unwrap();
        let write = |at, data, len, fua| Entry::Write { at, data, len, fua };
        assert_eq!(
            log.entries,
            [
                write(3 * 512, 1024, 1024, false),
                Entry::Flush,
                write(5 * 512, 3072, 512, true),
                Entry::Mark("1,2".to_owned()),
                Entry::Flush,
                write(9 * 512, 4608, 512, true),
            ]
        );
        assert_eq!(log.data(1024, 1024).unwrap(), data);
    }

    #[test]
    fn what_is_no_log_is_refused() {
        for (flags, magic) in [(1 << 7, MAGIC), (0, 1)] {
            let file = written(&[(0, flags, "", &[])]);
            let mut bytes = std::fs::read(file.path()).unwrap();
            bytes[..8].copy_from_slice(&magic.to_le_bytes());
            std::fs::write(file.path(), bytes).unwrap();
            assert!(Log::read(file.path()).is_err());
        }
    }
}
