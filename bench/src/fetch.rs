//! Fetching every sample of a dataset in a seeded random order, each byte compared with its source file.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::time::{Duration, Instant};

use kv_client::{Client, Counters, GlobalLocator};

use crate::Error;
use crate::source::Sample;

/// Samples asked for at once.
const BATCH_SAMPLES: usize = 256;
/// Bytes asked for at once, unless one sample alone is longer.
const BATCH_BYTES: u64 = 64 << 20;
/// Bytes of a source file that are compared at once.
const PIECE_BYTES: usize = 1 << 20;
/// Mismatches that are named.
const NAMED_MAX: usize = 20;

/// Most bytes of source files that are held in memory.
const HELD_BYTES_MAX: u64 = 1 << 30;

/// The files that values are compared with: read before a pass, so that it has the machine for itself, or during it where
/// they are too many.
pub(crate) struct Sources<'a> {
    samples: &'a [Sample],
    held: Vec<Option<Vec<u8>>>,
}

impl<'a> Sources<'a> {
    /// Reads what is to be held; what cannot be read is told when it is compared with.
    pub(crate) fn new(samples: &'a [Sample]) -> Self {
        let bytes: u64 = samples.iter().map(|sample| sample.len_bytes).sum();
        let held = match bytes <= HELD_BYTES_MAX {
            true => samples
                .iter()
                .map(|sample| std::fs::read(&sample.path).ok())
                .collect(),
            false => Vec::new(),
        };
        Self { samples, held }
    }

    /// What differs between `value` and a sample's file, in words; `None` if nothing does.
    fn compare(&self, index: usize, value: &[u8], piece: &mut [u8]) -> Result<Option<String>, Error> {
        match self.held.get(index) {
            Some(Some(bytes)) => compare(&mut &bytes[..], value, piece),
            _ => compare(&mut File::open(&self.samples[index].path)?, value, piece),
        }
    }
}

/// What one pass over all samples gave.
#[derive(Debug, Default)]
pub(crate) struct Pass {
    /// Samples asked for.
    pub(crate) gets: u64,
    /// Samples of which not every byte is its source's.
    pub(crate) mismatched: BTreeSet<usize>,
    /// Bytes that were right.
    pub(crate) bytes: u64,
    /// Time inside the client.
    pub(crate) fetching: Duration,
    /// READs posted.
    pub(crate) reads: u64,
    /// Of those, the ones that only split a large value.
    pub(crate) split_reads: u64,
    /// Samples that came by the READ of a neighbour.
    pub(crate) coalesced: u64,
}

impl Pass {
    /// READs for each GET, before large values are split and neighbours coalesced.
    pub(crate) fn reads_per_get(&self) -> f64 {
        (self.reads - self.split_reads + self.coalesced) as f64 / self.gets.max(1) as f64
    }
}

/// Fetches all samples in the order of `seed`: by key with nothing cached, or by `locators` (one a sample).
pub(crate) fn pass(
    client: &Client,
    sources: &Sources<'_>,
    locators: Option<&[GlobalLocator]>,
    seed: u64,
) -> Result<Pass, Error> {
    let samples = sources.samples;
    let mut order: Vec<usize> = (0..samples.len()).collect();
    fastrand::Rng::with_seed(seed).shuffle(&mut order);
    let before = client.counters();
    let mut pass = Pass::default();
    // One for all files: to zero it anew for each takes an emulated processor longer than the file does.
    let mut piece = vec![0; PIECE_BYTES];
    for batch in batches(samples, &order) {
        let keys: Vec<&[u8]> = batch.iter().map(|&index| samples[index].key.as_slice()).collect();
        let started = Instant::now();
        let values = match locators {
            None => client.get_many(&keys),
            Some(locators) => {
                let at: Vec<GlobalLocator> = batch.iter().map(|&index| locators[index]).collect();
                client.get_many_at(&at, Some(&keys))
            }
        };
        pass.fetching += started.elapsed();
        pass.gets += batch.len() as u64;
        for (&index, value) in batch.iter().zip(values) {
            let sample = &samples[index];
            let trouble = match value {
                // One that changes while it is compared is named, and the others go on.
                Ok(value) => sources
                    .compare(index, &value, &mut piece)
                    .unwrap_or_else(|error| Some(format!("its source cannot be read: {error}"))),
                Err(error) => Some(error.to_string()),
            };
            match trouble {
                None => pass.bytes += sample.len_bytes,
                Some(trouble) => {
                    pass.mismatched.insert(index);
                    if pass.mismatched.len() <= NAMED_MAX {
                        eprintln!("mismatch: {}: {trouble}", sample.path.display());
                    }
                }
            }
        }
    }
    add_reads(&mut pass, &before, &client.counters());
    Ok(pass)
}

fn add_reads(pass: &mut Pass, before: &Counters, after: &Counters) {
    pass.reads = after.reads_posted - before.reads_posted;
    pass.split_reads = after.split_reads - before.split_reads;
    pass.coalesced = after.coalesced - before.coalesced;
}

/// Runs of `order` that are asked for at once.
fn batches<'a>(samples: &'a [Sample], order: &'a [usize]) -> impl Iterator<Item = &'a [usize]> {
    let mut rest = order;
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let take = rest
            .iter()
            .take(BATCH_SAMPLES)
            .take_while(|&&index| {
                let fits = bytes == 0 || bytes + samples[index].len_bytes <= BATCH_BYTES;
                bytes += samples[index].len_bytes;
                fits
            })
            .count();
        let (batch, tail) = rest.split_at(take);
        rest = tail;
        (!batch.is_empty()).then_some(batch)
    })
}

/// What differs between `value` and a file, in words; `None` if nothing does. The file is read by way of `piece`.
fn compare(file: &mut dyn Read, value: &[u8], piece: &mut [u8]) -> Result<Option<String>, Error> {
    let mut at = 0;
    loop {
        let n = file.read(piece)?;
        if n == 0 {
            let same = at == value.len();
            return Ok((!same).then(|| format!("{} bytes came back, the file has {at}", value.len())));
        }
        let got = value
            .get(at..at + n)
            .unwrap_or(value.get(at..).unwrap_or_default());
        if got != &piece[..n] {
            let same = got.iter().zip(&piece[..n]).take_while(|(a, b)| a == b).count();
            return Ok(Some(format!("differs from byte {}", at + same)));
        }
        at += n;
    }
}

#[cfg(test)]
mod tests {
    use super::{Sources, batches};
    use crate::source::Sample;

    fn sample(len_bytes: u64) -> Sample {
        Sample {
            key: vec![1],
            path: "none".into(),
            len_bytes,
        }
    }

    #[test]
    fn batches_hold_all_samples_once() {
        let samples: Vec<Sample> = (0..1000)
            .map(|n| sample(if n % 100 == 7 { 300 << 20 } else { n }))
            .collect();
        let order: Vec<usize> = (0..samples.len()).rev().collect();
        let all: Vec<usize> = batches(&samples, &order).flat_map(<[usize]>::to_vec).collect();
        assert_eq!(all, order);
    }

    #[test]
    fn a_difference_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, b"the bytes").unwrap();
        let samples = [Sample {
            key: vec![1],
            path,
            len_bytes: 9,
        }];
        let held = Sources::new(&samples);
        assert_eq!(held.held, [Some(b"the bytes".to_vec())]);
        let read = Sources {
            samples: &samples,
            held: Vec::new(),
        };
        for sources in [&held, &read] {
            let compare = |value: &[u8]| sources.compare(0, value, &mut [0; 4]).unwrap();
            assert_eq!(compare(b"the bytes"), None);
            assert!(compare(b"the bytez").unwrap().contains("byte 8"));
            assert!(compare(b"the").is_some());
            assert!(compare(b"the bytes and more").is_some());
        }
        std::fs::remove_file(&samples[0].path).unwrap();
        for sources in [&Sources::new(&samples), &read] {
            assert!(sources.compare(0, b"the bytes", &mut [0; 4]).is_err());
        }
    }
}
