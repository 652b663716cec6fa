//! The power cuts that a log can tell of, and what the device holds after one.
//!
//! At a flush everything before it is durable. A write with FUA is durable when it is done. Of all other writes since
//! the last flush the device may have kept any, or any 4 KiB of any: it reorders and forgets as it likes.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;

use fastrand::Rng;

use super::log::{Entry, Log};
use campaigns::Error;

/// What a device writes wholly or not at all.
const UNIT_BYTES: u64 = 4096;

/// How much of what was not flushed is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kept {
    /// Nothing.
    Nothing,
    /// The first so many writes.
    First(usize),
    /// Each 4 KiB with a chance of so many in 256, by this seed.
    Some { chance: u8, seed: u64 },
}

/// A power cut: before the entry `at`, in the window of writes that the flush before it begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cut {
    pub(crate) at: usize,
    pub(crate) kept: Kept,
}

impl Cut {
    /// Ids of all changes that were marked before the cut.
    pub(crate) fn marked(&self, log: &Log) -> BTreeSet<u64> {
        let marks = log.entries[..self.at].iter().filter_map(|entry| match entry {
            Entry::Mark(text) => Some(text),
            _ => None,
        });
        marks.filter_map(|id| id.parse().ok()).collect()
    }

    /// Fills `image`, which is empty and as long as the device, with what the device holds.
    pub(crate) fn write(&self, log: &Log, image: &File) -> Result<(), Error> {
        let entries = &log.entries[..self.at];
        let flushed = entries
            .iter()
            .rposition(|entry| *entry == Entry::Flush)
            .map_or(0, |flush| flush + 1);
        for entry in &entries[..flushed] {
            apply(log, image, entry)?;
        }
        let mut keep = Keep::new(self.kept);
        for entry in &entries[flushed..] {
            match entry {
                Entry::Write { fua: true, .. } => apply(log, image, entry)?,
                Entry::Write { at, data, len, .. } => {
                    for (from, to) in keep.of(*len) {
                        image.write_all_at(&log.data(data + from, to - from)?, at + from)?;
                    }
                }
                Entry::Discard { .. } if keep.whole() => apply(log, image, entry)?,
                _ => {}
            }
        }
        Ok(())
    }
}

fn apply(log: &Log, image: &File, entry: &Entry) -> Result<(), Error> {
    match entry {
        Entry::Write { at, data, len, .. } => image.write_all_at(&log.data(*data, *len)?, *at)?,
        Entry::Discard { at, len } => {
            for from in (0..*len).step_by(UNIT_BYTES as usize) {
                let some = UNIT_BYTES.min(len - from) as usize;
                image.write_all_at(&[0; UNIT_BYTES as usize][..some], at + from)?;
            }
        }
        Entry::Flush | Entry::Mark(_) => {}
    }
    Ok(())
}

/// Chooses what is kept of each write that was not flushed.
enum Keep {
    First(usize),
    Some(u8, Rng),
}

impl Keep {
    fn new(kept: Kept) -> Self {
        match kept {
            Kept::Nothing => Self::First(0),
            Kept::First(count) => Self::First(count),
            Kept::Some { chance, seed } => Self::Some(chance, Rng::with_seed(seed)),
        }
    }

    fn whole(&mut self) -> bool {
        match self {
            Self::First(left) => {
                let keeps = *left > 0;
                *left -= usize::from(keeps);
                keeps
            }
            Self::Some(chance, rng) => rng.u8(..) < *chance,
        }
    }

    /// Ranges of a write of `len` bytes that are kept.
    fn of(&mut self, len: u64) -> Vec<(u64, u64)> {
        if let Self::First(_) = self {
            return if self.whole() { vec![(0, len)] } else { Vec::new() };
        }
        (0..len)
            .step_by(UNIT_BYTES as usize)
            .filter(|_| self.whole())
            .map(|from| (from, (from + UNIT_BYTES).min(len)))
            .collect()
    }
}

/// Chooses `count` cuts after the mark `begin`: a half right behind a mark, with nothing kept that was not flushed, the
/// others at flushes: right behind one, and right before one with the first few or some of its writes kept.
pub(crate) fn choose(log: &Log, begin: &str, count: usize, rng: &mut Rng) -> Result<Vec<Cut>, Error> {
    let begun = log
        .entries
        .iter()
        .position(|entry| *entry == Entry::Mark(begin.to_owned()))
        .ok_or("the log has no mark of its beginning")?;
    let here = |wanted: fn(&Entry) -> bool| -> Vec<usize> {
        let all = log.entries.iter().enumerate().skip(begun + 1);
        all.filter(|(_, entry)| wanted(entry)).map(|(at, _)| at).collect()
    };
    let marks = here(|entry| matches!(entry, Entry::Mark(_)));
    let flushes = here(|entry| *entry == Entry::Flush);
    if marks.is_empty() || flushes.is_empty() {
        return Err("the log has no answered operation or no flush".into());
    }
    let mut cuts = Vec::new();
    for (at, picked) in [(&marks, count.div_ceil(2)), (&flushes, count / 2)] {
        let marks = std::ptr::eq(at, &marks);
        for (turn, at) in spread(at, picked, rng).into_iter().enumerate() {
            let window = log.entries[..at]
                .iter()
                .rev()
                .take_while(|entry| **entry != Entry::Flush)
                .filter(|entry| matches!(entry, Entry::Write { fua: false, .. }))
                .count();
            cuts.push(if marks {
                // The mark is the last thing before the cut.
                Cut {
                    at: at + 1,
                    kept: Kept::Nothing,
                }
            } else {
                match turn % 4 {
                    0 => Cut {
                        at: at + 1,
                        kept: Kept::Nothing,
                    },
                    1 => Cut {
                        at,
                        kept: Kept::First(rng.usize(..=window)),
                    },
                    _ => {
                        let chance = *rng.choice(&[25, 128, 230]).unwrap_or(&128);
                        let seed = rng.u64(..);
                        Cut {
                            at,
                            kept: Kept::Some { chance, seed },
                        }
                    }
                }
            });
        }
    }
    rng.shuffle(&mut cuts);
    Ok(cuts)
}

/// `count` of `all`, one at random from each of as many runs of the same length; all where there are fewer.
fn spread(all: &[usize], count: usize, rng: &mut Rng) -> Vec<usize> {
    let count = count.min(all.len());
    (0..count)
        .map(|run| {
            let (from, to) = (run * all.len() / count, (run + 1) * all.len() / count);
            all[rng.usize(from..to)]
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::power::log::tests::written;

    const BLOCK: usize = UNIT_BYTES as usize;

    /// Blocks 0 to 3 are written in turn: 0 and a flush, 1, 2 with FUA, a mark, 3, a flush, a mark.
    fn log() -> (tempfile::NamedTempFile, Log) {
        let block = |n: u8| vec![n; BLOCK];
        let blocks = [block(1), block(2), block(3), block(4)];
        let at = |n: u64| n * UNIT_BYTES / 512;
        let file = written(&[
            (0, 8, "begin", &[]),
            (at(0), 0, "", &blocks[0]),
            (0, 1, "", &[]),
            (at(2), 2, "", &blocks[2]),
            (0, 8, "5", &[]),
            (at(1), 0, "", &blocks[1]),
            (at(3), 0, "", &blocks[3]),
            (0, 1, "", &[]),
            (0, 8, "7", &[]),
        ]);
        let log = Log::read(file.path()).unwrap();
        (file, log)
    }

    fn held(cut: Cut) -> Vec<u8> {
        let (_file, log) = log();
        let image = tempfile::tempfile().unwrap();
        image.set_len(4 * UNIT_BYTES).unwrap();
        cut.write(&log, &image).unwrap();
        let mut bytes = vec![0; 4 * BLOCK];
        image.read_exact_at(&mut bytes, 0).unwrap();
        assert!(
            bytes
                .chunks(BLOCK)
                .all(|block| block.iter().all(|byte| *byte == block[0]))
        );
        bytes.chunks(BLOCK).map(|block| block[0]).collect()
    }

    #[test]
    fn a_cut_keeps_what_was_flushed_and_what_had_fua() {
        let cut = |at, kept| held(Cut { at, kept });
        assert_eq!(cut(1, Kept::Nothing), [0; 4]);
        assert_eq!(cut(2, Kept::Nothing), [0; 4]);
        assert_eq!(cut(3, Kept::Nothing), [1, 0, 0, 0]);
        assert_eq!(cut(4, Kept::Nothing), [1, 0, 3, 0]);
        assert_eq!(cut(7, Kept::Nothing), [1, 0, 3, 0]);
        assert_eq!(cut(7, Kept::First(1)), [1, 2, 3, 0]);
        assert_eq!(cut(8, Kept::Nothing), [1, 2, 3, 4]);
    }

    #[test]
    fn of_what_was_not_flushed_any_may_be_kept() {
        let seen: BTreeSet<Vec<u8>> = (0..64)
            .map(|seed| {
                let kept = Kept::Some { chance: 128, seed };
                held(Cut { at: 7, kept })
            })
            .collect();
        let all = [[1, 0, 3, 0], [1, 2, 3, 0], [1, 0, 3, 4], [1, 2, 3, 4]];
        assert_eq!(seen, all.map(Vec::from).into());
    }

    #[test]
    fn marks_before_a_cut_are_owed() {
        let (_file, log) = log();
        let marked = |at| {
            let kept = Kept::Nothing;
            Cut { at, kept }.marked(&log)
        };
        assert_eq!(marked(4), [].into());
        assert_eq!(marked(5), [5].into());
        assert_eq!(marked(9), [5, 7].into());
    }

    #[test]
    fn cuts_are_at_marks_and_flushes_after_the_beginning() {
        let (_file, log) = log();
        let cuts = choose(&log, "begin", 8, &mut Rng::with_seed(1)).unwrap();
        assert_eq!(cuts.len(), 4);
        let marks: BTreeSet<usize> = [5, 9].into();
        let at: BTreeSet<usize> = cuts.iter().map(|cut| cut.at).collect();
        assert!(at.is_superset(&marks), "{cuts:?}");
        assert_eq!(choose(&log, "begin", 8, &mut Rng::with_seed(1)).unwrap(), cuts);
        assert!(choose(&log, "none", 8, &mut Rng::with_seed(1)).is_err());
    }
}
