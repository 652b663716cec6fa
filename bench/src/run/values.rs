//! The values of a case: keys, lengths and contents, the same in every process that is told the same.

use std::path::{Path, PathBuf};

use twox_hash::XxHash3_64;

use super::definition::{Lengths, Order};
use crate::Error;
use crate::source;

/// Where files of values are aligned to, bytes: a page.
pub(crate) const ALIGN_BYTES: u64 = 4096;

/// All values of a case.
pub(crate) struct Values {
    seed: u64,
    lens: Vec<u64>,
    /// Key and path of each, where they are files.
    files: Vec<(Vec<u8>, PathBuf)>,
}

impl Values {
    /// `count` values; of files as many as there are.
    pub(crate) fn new(lengths: &Lengths, count: usize, seed: u64) -> Result<Self, Error> {
        let (lens, files) = match lengths {
            Lengths::Fixed(len) => (vec![*len; count], Vec::new()),
            Lengths::Mix(lens) => (lens.iter().copied().cycle().take(count).collect(), Vec::new()),
            Lengths::Files(directory) => {
                let mut samples = source::samples(directory)?;
                // An empty file has no bytes to be compared, and no place in a floor.
                samples.retain(|sample| sample.len_bytes > 0);
                let lens = samples.iter().map(|sample| sample.len_bytes).collect();
                (
                    lens,
                    samples
                        .into_iter()
                        .map(|sample| (sample.key, sample.path))
                        .collect(),
                )
            }
        };
        if lens.is_empty() {
            return Err("there is no value to measure (a directory without files?)".into());
        }
        Ok(Self { seed, lens, files })
    }

    /// How many.
    pub(crate) fn count(&self) -> usize {
        self.lens.len()
    }

    /// Length of one, bytes.
    pub(crate) fn len_bytes(&self, index: usize) -> u64 {
        self.lens[index]
    }

    /// Of all, bytes.
    pub(crate) fn total_bytes(&self) -> u64 {
        self.lens.iter().sum()
    }

    /// The longest, bytes.
    pub(crate) fn longest_bytes(&self) -> usize {
        self.lens.iter().copied().max().unwrap_or(0) as usize
    }

    /// Memory that the values of any call of `batch` GETs fit in, bytes.
    pub(crate) fn room_bytes(&self, order: Order, batch: usize) -> usize {
        let most = batch * self.longest_bytes();
        if order != Order::Epoch {
            return most;
        }
        let mut lens = self.lens.clone();
        lens.sort_unstable_by(|a, b| b.cmp(a));
        // A value is there once an epoch, and a call lies in two epochs at most, unless it is longer than one.
        let epochs = 2 + batch / lens.len();
        let longest: u64 = lens.iter().take(batch).sum();
        most.min(longest as usize * epochs)
    }

    /// Its key.
    pub(crate) fn key(&self, index: usize) -> Vec<u8> {
        match self.files.get(index) {
            Some((key, _)) => key.clone(),
            None => format!("value-{index:010}").into_bytes(),
        }
    }

    /// Its bytes.
    pub(crate) fn bytes(&self, index: usize) -> Result<Vec<u8>, Error> {
        if let Some((_, path)) = self.files.get(index) {
            let bytes = std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
            if bytes.len() as u64 != self.lens[index] {
                return Err(format!("{} changed while it was measured", path.display()).into());
            }
            return Ok(bytes);
        }
        let mut bytes = vec![0; self.lens[index] as usize];
        // Half the golden ratio apart, so that neighbours have nothing in common.
        let mixed = self.seed ^ (index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        fastrand::Rng::with_seed(mixed).fill(&mut bytes);
        Ok(bytes)
    }

    /// Offset of each in a file that has them all, each at a multiple of [`ALIGN_BYTES`], and the length of that.
    pub(crate) fn places(&self) -> (Vec<u64>, u64) {
        let mut end = 0;
        let place = |len: &u64| {
            let at = end;
            end += len.next_multiple_of(ALIGN_BYTES);
            at
        };
        (self.lens.iter().map(place).collect(), end)
    }

    /// Hashes of all, in a file that processes share.
    pub(crate) fn write_hashes(&self, path: &Path) -> Result<(), Error> {
        let mut all = Vec::with_capacity(8 * self.count());
        for index in 0..self.count() {
            all.extend_from_slice(&hash(&self.bytes(index)?).to_le_bytes());
        }
        Ok(std::fs::write(path, all)?)
    }

    /// What [`Values::write_hashes`] wrote.
    pub(crate) fn read_hashes(&self, path: &Path) -> Result<Vec<u64>, Error> {
        let all = std::fs::read(path)?;
        let hashes: Vec<u64> = all
            .as_chunks()
            .0
            .iter()
            .map(|one| u64::from_le_bytes(*one))
            .collect();
        if hashes.len() != self.count() {
            return Err("the hashes are those of other values".into());
        }
        Ok(hashes)
    }
}

/// What a value is compared by in a timed pass: another function than any checksum of a record.
pub(crate) fn hash(bytes: &[u8]) -> u64 {
    XxHash3_64::oneshot(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_the_same_everywhere_and_all_different() {
        let values = || Values::new(&Lengths::Mix(vec![100, 5000]), 7, 3).unwrap();
        let (first, second) = (values(), values());
        assert_eq!(first.count(), 7);
        let mut seen = std::collections::BTreeSet::new();
        for index in 0..7 {
            let bytes = first.bytes(index).unwrap();
            assert_eq!(bytes.len() as u64, [100, 5000][index % 2]);
            assert_eq!(bytes, second.bytes(index).unwrap());
            assert!(seen.insert(hash(&bytes)) && seen.insert(hash(&first.key(index))));
        }
        let other = Values::new(&Lengths::Mix(vec![100, 5000]), 7, 4).unwrap();
        assert_ne!(first.bytes(0).unwrap(), other.bytes(0).unwrap());
        assert_eq!(first.room_bytes(Order::Uniform, 4), 4 * 5000);
        // Of two long ones each may be there twice, at the seam of two epochs.
        let few = Values::new(&Lengths::Mix(vec![100, 5000]), 4, 3).unwrap();
        assert_eq!(few.room_bytes(Order::Epoch, 3), 3 * 5000);
        let one_long = Values::new(&Lengths::Mix(vec![100, 100, 100, 5000]), 4, 3).unwrap();
        assert_eq!(one_long.room_bytes(Order::Epoch, 3), 2 * 5200);
        let (places, len) = first.places();
        assert_eq!(
            (places[..3].to_vec(), len),
            (vec![0, 4096, 12288], 4 * 4096 + 3 * 8192)
        );
    }

    #[test]
    fn files_are_values_under_their_paths() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("b")).unwrap();
        std::fs::write(folder.path().join("b/one"), b"one").unwrap();
        std::fs::write(folder.path().join("two"), b"second").unwrap();
        std::fs::write(folder.path().join("empty"), b"").unwrap();
        let values = Values::new(&Lengths::Files(folder.path().into()), 0, 1).unwrap();
        assert_eq!(
            (values.count(), values.total_bytes(), values.longest_bytes()),
            (2, 9, 6)
        );
        assert_eq!(
            (values.key(0), values.bytes(0).unwrap()),
            (b"b/one".to_vec(), b"one".to_vec())
        );
        let hashes = folder.path().join("two.hashes");
        values.write_hashes(&hashes).unwrap();
        assert_eq!(
            values.read_hashes(&hashes).unwrap(),
            [hash(b"one"), hash(b"second")]
        );
        std::fs::write(folder.path().join("two"), b"longer than it was").unwrap();
        assert!(values.bytes(1).is_err());
    }
}
