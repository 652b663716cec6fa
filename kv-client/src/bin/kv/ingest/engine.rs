//! Carries a plan out with several threads.
//!
//! Each thread takes the next run of items, reads their sources, compares those that the dataset may hold already, and
//! stores the rest with one call. An item that failed does not stop the others; a dataset that failed stops everything
//! after the operations in flight, and what was answered stays. A value whose outcome is unknown is looked for and never
//! sent anew: the first may still be stored, and a second would take the place of what somebody else wrote meanwhile.

use std::io::{self, Read};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};
use std::thread;

use super::plan::Step;
use crate::keys::shown;
use crate::progress::{Counted, Progress};
use crate::source::read::Opener;
use crate::source::{Item, Problem, Sources};
use crate::stop::Stop;
use crate::store::{Store, StoreError};

/// Most items that one call stores.
const BATCH_ITEMS_MAX: usize = 64;
/// Most bytes that one call stores; an item of more than this goes alone, as a stream.
pub(crate) const BATCH_BYTES_MAX: u64 = 4 << 20;
/// How often an item is tried when the way to the server breaks under it.
const ATTEMPTS_MAX: u32 = 3;
/// Problems kept for the report; all are counted, and all are said when they happen.
const PROBLEMS_KEPT_MAX: usize = 1000;

/// What was done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) stored: u64,
    pub(crate) stored_bytes: u64,
    /// Of those stored, the ones that took another value's place.
    pub(crate) replaced: u64,
    pub(crate) unchanged: u64,
    pub(crate) unchanged_bytes: u64,
    pub(crate) failed: u64,
    pub(crate) problems: Vec<Problem>,
}

impl Tally {
    /// Items that are dealt with.
    pub(crate) fn done(&self) -> u64 {
        self.stored + self.unchanged + self.failed
    }
}

/// What all threads share.
struct Work<'a> {
    sources: &'a Sources,
    steps: &'a [Step],
    overwrite: bool,
    next: Mutex<usize>,
    tally: Mutex<Tally>,
    progress: &'a Progress,
    stop: &'a Stop,
}

/// Does what `steps` say of the items of `sources`, with `jobs` threads, until done or stopped.
pub(crate) fn carry_out<S: Store>(
    store: &S,
    sources: &Sources,
    steps: &[Step],
    overwrite: bool,
    jobs: usize,
    progress: &Progress,
    stop: &Stop,
) -> Tally {
    let tally = Mutex::new(Tally::default());
    let work = Work {
        sources,
        steps,
        overwrite,
        next: Mutex::new(0),
        tally,
        progress,
        stop,
    };
    thread::scope(|scope| {
        for _ in 0..jobs {
            let (store, work) = (store.clone(), &work);
            scope.spawn(move || work.run(&store));
        }
    });
    work.tally.into_inner().unwrap_or_else(PoisonError::into_inner)
}

impl Work<'_> {
    fn run(&self, store: &impl Store) {
        let mut opener = Opener::new(self.sources);
        while !self.stop.asked() {
            let Some(range) = self.take() else { return };
            if range.len() == 1 && self.sources.items[range.start].len_bytes > BATCH_BYTES_MAX {
                self.large(store, &mut opener, range.start);
            } else {
                self.batch(store, &mut opener, range);
            }
        }
    }

    /// The next items that one call may take together.
    fn take(&self) -> Option<Range<usize>> {
        let items = &self.sources.items;
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let start = *next;
        let mut bytes = items.get(start)?.len_bytes;
        let mut end = start + 1;
        while end < items.len() && end - start < BATCH_ITEMS_MAX {
            bytes = bytes.saturating_add(items[end].len_bytes);
            if bytes > BATCH_BYTES_MAX {
                break;
            }
            end += 1;
        }
        *next = end;
        Some(start..end)
    }

    fn batch(&self, store: &impl Store, opener: &mut Opener<'_>, range: Range<usize>) {
        let mut values = Vec::with_capacity(range.len());
        for index in range {
            let item = &self.sources.items[index];
            match self.steps[index] {
                Step::Keep => self.unchanged(item),
                Step::Refuse => self.refused(item),
                Step::Store | Step::Compare | Step::Replace => match opener.read(item) {
                    Ok(bytes) => values.push((index, bytes)),
                    Err(error) => self.failed(item, &error.to_string()),
                },
            }
        }
        self.drop_equal(store, &mut values);
        for attempt in 1..=ATTEMPTS_MAX {
            if values.is_empty() || self.stop.asked() && attempt > 1 {
                return;
            }
            self.put_batch(store, &mut values, attempt == ATTEMPTS_MAX);
        }
    }

    /// Takes out of `values` what the dataset holds already.
    fn drop_equal(&self, store: &impl Store, values: &mut Vec<(usize, Vec<u8>)>) {
        let compared = |index: usize| self.steps[index] == Step::Compare;
        let keys: Vec<&[u8]> = values
            .iter()
            .filter(|(index, _)| compared(*index))
            .map(|(index, _)| &self.sources.items[*index].key[..])
            .collect();
        if keys.is_empty() {
            return;
        }
        let mut fetched = store.get_many(&keys).into_iter();
        values.retain(|(index, bytes)| {
            if !compared(*index) {
                return true;
            }
            let item = &self.sources.items[*index];
            match fetched.next() {
                Some(Ok(value)) if value == *bytes => self.unchanged(item),
                Some(Ok(_)) if !self.overwrite => self.refused(item),
                Some(Ok(_) | Err(StoreError::NotFound)) => return true,
                Some(Err(StoreError::Fatal(why))) => self.stop.fail(&why),
                Some(Err(error)) => {
                    self.failed(item, &format!("comparing with what is stored: {}", error.text()))
                }
                None => self.failed(item, "comparing with what is stored: no answer"),
            }
            false
        });
    }

    /// Stores `values` and leaves in it those that may be tried again.
    fn put_batch(&self, store: &impl Store, values: &mut Vec<(usize, Vec<u8>)>, last: bool) {
        if self.stop.failure().is_some() {
            return;
        }
        let pairs: Vec<(&[u8], &[u8])> = values
            .iter()
            .map(|(index, bytes)| (&self.sources.items[*index].key[..], &bytes[..]))
            .collect();
        let mut answers = store.put_many(&pairs).into_iter();
        let mut unknown = Vec::new();
        values.retain_mut(|(index, bytes)| match answers.next() {
            Some(Err(StoreError::Again(_))) if !last => true,
            Some(Err(StoreError::Unknown(why))) => {
                unknown.push((*index, std::mem::take(bytes), why));
                false
            }
            answer => {
                self.answered(
                    *index,
                    answer.unwrap_or(Err(StoreError::Item("no answer".into()))),
                    true,
                );
                false
            }
        });
        self.settle(store, &unknown);
    }

    /// Looks whether values whose outcome is unknown (with why) are there.
    fn settle(&self, store: &impl Store, unknown: &[(usize, Vec<u8>, String)]) {
        if unknown.is_empty() {
            return;
        }
        let key = |index: usize| &self.sources.items[index].key[..];
        let keys: Vec<&[u8]> = unknown.iter().map(|(index, ..)| key(*index)).collect();
        for ((index, bytes, why), got) in unknown.iter().zip(store.get_many(&keys)) {
            let equal = got.map(|value| value == *bytes);
            self.answered(*index, outcome_of(equal, why), true);
        }
    }

    fn large(&self, store: &impl Store, opener: &mut Opener<'_>, index: usize) {
        let item = &self.sources.items[index];
        match self.steps[index] {
            Step::Keep => return self.unchanged(item),
            Step::Refuse => return self.refused(item),
            Step::Store | Step::Replace => {}
            Step::Compare => match self.equals_stored(store, opener, item) {
                Ok(Some(true)) => return self.unchanged(item),
                Ok(Some(false)) if !self.overwrite => return self.refused(item),
                Ok(Some(false)) => {}
                // Stopped in between; nothing is known of it.
                Ok(None) => return,
                Err(StoreError::NotFound) => {}
                Err(StoreError::Fatal(why)) => return self.stop.fail(&why),
                Err(error) => return self.failed(item, error.text()),
            },
        }
        for attempt in 1..=ATTEMPTS_MAX {
            let mut source = match opener.open(item) {
                Ok(reader) => Counted::new(reader, self.progress),
                Err(error) => return self.failed(item, &error.to_string()),
            };
            let answer = store.put_from(&item.key, item.len_bytes, &mut source);
            if answer.is_err() {
                self.progress.take_back(source.reported());
            }
            let again = attempt < ATTEMPTS_MAX && !self.stop.asked();
            match answer {
                Err(StoreError::Again(_)) if again => {}
                // Its last bytes were never asked for, so nothing of it was committed.
                Err(StoreError::Unknown(_)) if again && source.reported() < item.len_bytes => {}
                Err(StoreError::Unknown(why)) => {
                    let equal = match self.equals_stored(store, opener, item) {
                        Ok(Some(equal)) => Ok(equal),
                        // Stopped in between; nothing is known of it.
                        Ok(None) => return,
                        Err(error) => Err(error),
                    };
                    return self.answered(index, outcome_of(equal, &why), true);
                }
                answer => return self.answered(index, answer, false),
            }
        }
    }

    /// Whether the dataset's value is the item's, piece by piece; `None` if asked to stop meanwhile.
    fn equals_stored(
        &self,
        store: &impl Store,
        opener: &mut Opener<'_>,
        item: &Item,
    ) -> Result<Option<bool>, StoreError> {
        let unreadable = |error: io::Error| StoreError::Item(error.to_string());
        let mut source = opener.open(item).map_err(unreadable)?;
        let mut piece = vec![0; BATCH_BYTES_MAX as usize];
        let mut at = 0;
        while at < item.len_bytes {
            if self.stop.asked() {
                return Ok(None);
            }
            let len = BATCH_BYTES_MAX.min(item.len_bytes - at);
            let want = &mut piece[..len as usize];
            source.read_exact(want).map_err(unreadable)?;
            if store.get_range(&item.key, at, len)? != *want {
                return Ok(Some(false));
            }
            at += len;
        }
        // The dataset's may have more.
        Ok(Some(store.get_range(&item.key, at, 1)?.is_empty()))
    }

    /// `count_bytes` unless the bytes were counted while they were sent.
    fn answered(&self, index: usize, answer: Result<(), StoreError>, count_bytes: bool) {
        let item = &self.sources.items[index];
        match answer {
            Ok(()) => {
                let mut tally = self.tally();
                tally.stored += 1;
                tally.stored_bytes += item.len_bytes;
                tally.replaced += u64::from(matches!(self.steps[index], Step::Replace | Step::Compare));
                drop(tally);
                self.progressed(item, count_bytes);
            }
            Err(StoreError::Fatal(why)) => self.stop.fail(&why),
            Err(error) => self.failed(item, error.text()),
        }
    }

    fn unchanged(&self, item: &Item) {
        let mut tally = self.tally();
        tally.unchanged += 1;
        tally.unchanged_bytes += item.len_bytes;
        drop(tally);
        self.progressed(item, true);
    }

    fn refused(&self, item: &Item) {
        let why = format!(
            "key {} has another value (leave out --no-overwrite to replace it)",
            shown(&item.key)
        );
        self.failed(item, &why);
    }

    fn failed(&self, item: &Item, why: &str) {
        let problem = Problem {
            origin: self.sources.origin(item),
            why: why.to_owned(),
        };
        self.progress
            .say(&format!("kv: {}: {}", problem.origin, problem.why));
        let mut tally = self.tally();
        tally.failed += 1;
        if tally.problems.len() < PROBLEMS_KEPT_MAX {
            tally.problems.push(problem);
        }
        drop(tally);
        self.progressed(item, true);
    }

    fn progressed(&self, item: &Item, count_bytes: bool) {
        if count_bytes {
            self.progress.bytes(item.len_bytes);
        }
        self.progress.item();
    }

    fn tally(&self) -> std::sync::MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The outcome of a put that was unknown for `why`, once looked at: whether the item's bytes are there now.
fn outcome_of(equal: Result<bool, StoreError>, why: &str) -> Result<(), StoreError> {
    let found = match equal {
        Ok(true) => return Ok(()),
        Ok(false) => "the key has another value now",
        Err(StoreError::NotFound) => "the key has no value now",
        Err(StoreError::Fatal(error)) => return Err(StoreError::Fatal(error)),
        Err(ref error) => error.text(),
    };
    Err(StoreError::Item(format!(
        "outcome unknown: {why}: {found} (run the same command again)"
    )))
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;
