//! Carries a plan out with several threads.
//!
//! Each thread takes the next run of items, reads their sources, compares those that the dataset may hold already, and
//! stores the rest with one call. An item that failed does not stop the others; a dataset that failed stops everything
//! after the operations in flight, and what was answered stays. A value whose outcome is unknown is looked for and never
//! sent anew: the first may still be stored, and a second would take the place of what somebody else wrote meanwhile.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use kv_proto::layout::PART_MAX_BYTES;

use super::plan::Step;
use crate::keys::shown;
use crate::output::PROBLEMS_KEPT_MAX;
use crate::progress::{Counted, Progress};
use crate::source::read::Opener;
use crate::source::{Item, Problem, Sources};
use crate::stop::Stop;
use crate::store::{Store, StoreError};

/// Most items that one call stores.
const BATCH_ITEMS_MAX: usize = 64;
/// Most bytes that one call stores; an item of more than this goes alone, as a stream.
pub(crate) const BATCH_BYTES_MAX: u64 = 4 << 20;
/// Most values under way that a server stores in parts: it sets memory aside for each, and two are what one session is
/// given by default.
const LARGE_UNDER_WAY_MAX: usize = 2;
/// How often an item is tried when the way to the server breaks under it.
const ATTEMPTS_MAX: u32 = 3;
/// How often it is tried, each time for the whole deadline, where the server is busy and nothing else gets on either.
const BUSY_ATTEMPTS_MAX: u32 = 20;

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
    queue: Mutex<Queue>,
    /// Most values of more than [`PART_MAX_BYTES`] under way.
    large_max: usize,
    tally: Mutex<Tally>,
    progress: &'a Progress,
    stop: &'a Stop,
}

/// What is to be done.
#[derive(Default)]
struct Queue {
    /// The first item that nobody has looked at.
    next: usize,
    /// Large items before it that are left for later.
    large: VecDeque<usize>,
    /// Large items that are being stored.
    large_under_way: usize,
}

/// How often an item, or a batch, was tried.
#[derive(Default)]
struct Tries {
    broken: u32,
    busy: u32,
    reached: (u64, u64),
}

impl Tries {
    /// Whether it is tried again that the way to the server broke.
    fn again(&mut self) -> bool {
        self.broken += 1;
        self.broken < ATTEMPTS_MAX
    }

    /// Whether it is tried again that the server was busy: as long as the run gets on elsewhere, and some times more.
    fn busy(&mut self, progress: &Progress) -> bool {
        let reached = progress.reached();
        if reached != self.reached {
            (self.busy, self.reached) = (0, reached);
        }
        self.busy += 1;
        self.busy < BUSY_ATTEMPTS_MAX
    }
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
        queue: Mutex::default(),
        // One thread is left for what is short.
        large_max: jobs.saturating_sub(1).clamp(1, LARGE_UNDER_WAY_MAX),
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
            let len_bytes = self.sources.items[range.start].len_bytes;
            if range.len() == 1 && len_bytes > BATCH_BYTES_MAX {
                self.stream(store, &mut opener, range.start);
            } else {
                self.batch(store, &mut opener, range);
            }
            if len_bytes > PART_MAX_BYTES {
                self.queue().large_under_way -= 1;
            }
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next items that one call may take together. Where there are none, those that are left are large: who is at
    /// one now comes back for them.
    fn take(&self) -> Option<Range<usize>> {
        let items = &self.sources.items;
        let queue = &mut *self.queue();
        while items
            .get(queue.next)
            .is_some_and(|item| item.len_bytes > PART_MAX_BYTES)
        {
            queue.large.push_back(queue.next);
            queue.next += 1;
        }
        if queue.large_under_way < self.large_max
            && let Some(index) = queue.large.pop_front()
        {
            queue.large_under_way += 1;
            return Some(index..index + 1);
        }
        let start = queue.next;
        let mut bytes = items.get(start)?.len_bytes;
        let mut end = start + 1;
        while end < items.len() && end - start < BATCH_ITEMS_MAX {
            bytes = bytes.saturating_add(items[end].len_bytes);
            if bytes > BATCH_BYTES_MAX {
                break;
            }
            end += 1;
        }
        queue.next = end;
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
        let mut tries = Tries::default();
        while !values.is_empty() && self.put_batch(store, &mut values, &mut tries) {}
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

    /// Stores `values` and leaves in it those that may be tried again; whether there is more to try.
    fn put_batch(&self, store: &impl Store, values: &mut Vec<(usize, Vec<u8>)>, tries: &mut Tries) -> bool {
        if self.stop.failure().is_some() {
            return false;
        }
        let pairs: Vec<(&[u8], &[u8])> = values
            .iter()
            .map(|(index, bytes)| (&self.sources.items[*index].key[..], &bytes[..]))
            .collect();
        let answers = store.put_many(&pairs);
        let is =
            |kind: fn(&StoreError) -> bool| answers.iter().any(|answer| answer.as_ref().is_err_and(kind));
        let broken = is(|error| matches!(error, StoreError::Again(_)));
        let busy = is(|error| matches!(error, StoreError::Busy(_)));
        let (again, again_busy) = (broken && tries.again(), busy && tries.busy(self.progress));
        let mut answers = answers.into_iter();
        let mut unknown = Vec::new();
        values.retain_mut(|(index, bytes)| match answers.next() {
            Some(Err(StoreError::Again(_))) if again => true,
            Some(Err(StoreError::Busy(_))) if again_busy => true,
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
        !self.stop.asked()
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

    fn stream(&self, store: &impl Store, opener: &mut Opener<'_>, index: usize) {
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
        let mut tries = Tries::default();
        loop {
            let mut source = match opener.open(item) {
                Ok(reader) => Counted::new(reader, self.progress),
                Err(error) => return self.failed(item, &error.to_string()),
            };
            let answer = store.put_from(&item.key, item.len_bytes, &mut source);
            if answer.is_err() {
                self.progress.take_back(source.reported());
            }
            // Of one whose last bytes were never asked for nothing was committed.
            let broken = match &answer {
                Err(StoreError::Again(_)) => true,
                Err(StoreError::Unknown(_)) => source.reported() < item.len_bytes,
                _ => false,
            };
            let busy = matches!(answer, Err(StoreError::Busy(_)));
            match answer {
                Err(_) if broken && !self.stop.asked() && tries.again() => {}
                Err(_) if busy && self.stop.asked() => return,
                Err(_) if busy && tries.busy(self.progress) => {}
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
            // Others would find it as busy.
            Err(StoreError::Fatal(why) | StoreError::Busy(why)) => self.stop.fail(&why),
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
            .problem(&format!("kv: {}: {}", problem.origin, problem.why));
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

    fn tally(&self) -> MutexGuard<'_, Tally> {
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
