//! What each key may hold: the changes that were asked for, in order, and which of them are certain.
//!
//! A name has one change under way at a time. A change that was answered is certain; one that was not may have been
//! done wholly or not at all, until somebody looks.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A key of a dataset. Datasets are told apart by the change that created them; [`MAIN`] is always there.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Name {
    pub(crate) dataset: u64,
    pub(crate) key: Vec<u8>,
}

/// The dataset that every life has.
pub(crate) const MAIN: u64 = 0;

/// A value that a key holds: that of the change `id`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Value {
    pub(crate) id: u64,
    pub(crate) len: usize,
}

impl Value {
    /// Its bytes, which follow from the seed.
    pub(crate) fn bytes(self, seed: u64) -> Vec<u8> {
        let mut bytes = vec![0; self.len];
        fastrand::Rng::with_seed(seed ^ self.id.wrapping_mul(0x9e37_79b9_7f4a_7c15)).fill(&mut bytes);
        bytes
    }
}

/// A dataset under a name: `None` where there is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Churned {
    pub(crate) name: String,
    /// The change that created it.
    pub(crate) dataset: u64,
}

/// A change and what is there after it.
#[derive(Debug, Clone)]
pub(crate) struct Step<T> {
    pub(crate) id: u64,
    pub(crate) held: Option<T>,
}

/// The changes of one thing, in order.
#[derive(Debug, Clone)]
pub(crate) struct History<T> {
    /// The first stands for "nothing was ever asked for".
    steps: Vec<Step<T>>,
    /// The last step that is certain.
    floor: usize,
}

impl<T: Clone + PartialEq> History<T> {
    fn new() -> Self {
        Self {
            steps: vec![Step { id: 0, held: None }],
            floor: 0,
        }
    }

    fn ask(&mut self, id: u64, held: Option<T>) {
        self.steps.push(Step { id, held });
    }

    fn answered(&mut self, id: u64) {
        if let Some(at) = self.steps.iter().rposition(|step| step.id == id) {
            self.floor = self.floor.max(at);
        }
    }

    /// All changes, those that were found not to have been done left out.
    pub(crate) fn steps(&self) -> &[Step<T>] {
        &self.steps
    }

    fn certain(&self) -> &Option<T> {
        &self.steps[self.floor].held
    }

    /// Settles what is there: the first state that it may be in and that `is` recognizes. What came after it was not
    /// done. The change that is certain by that, if it was not before.
    fn settle(&mut self, is: impl Fn(&Option<T>) -> bool) -> Option<Option<u64>> {
        let found = self.steps[self.floor..].iter().position(|step| is(&step.held))?;
        self.floor += found;
        self.steps.truncate(self.floor + 1);
        Some((found > 0).then(|| self.steps[self.floor].id))
    }
}

/// Why something that was read is wrong, for people.
pub(crate) type Wrong = String;

struct Inner {
    keys: BTreeMap<Name, History<Value>>,
    churned: History<Churned>,
}

/// All changes of a life.
pub(crate) struct Model {
    seed: u64,
    next: AtomicU64,
    inner: Mutex<Inner>,
}

impl Model {
    pub(crate) fn new(seed: u64) -> Self {
        let inner = Inner {
            keys: BTreeMap::new(),
            churned: History::new(),
        };
        Self {
            seed,
            next: AtomicU64::new(1),
            inner: Mutex::new(inner),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn seed(&self) -> u64 {
        self.seed
    }

    /// An id for a change.
    pub(crate) fn next_id(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn ask(&self, name: &Name, id: u64, held: Option<Value>) {
        let mut inner = self.lock();
        let history = inner.keys.entry(name.clone()).or_insert_with(History::new);
        history.ask(id, held);
    }

    pub(crate) fn answered(&self, name: &Name, id: u64) {
        if let Some(history) = self.lock().keys.get_mut(name) {
            history.answered(id);
        }
    }

    pub(crate) fn ask_churned(&self, id: u64, held: Option<Churned>) {
        self.lock().churned.ask(id, held);
    }

    pub(crate) fn answered_churned(&self, id: u64) {
        self.lock().churned.answered(id);
    }

    /// What the churned dataset certainly is.
    pub(crate) fn churned(&self) -> Option<Churned> {
        self.lock().churned.certain().clone()
    }

    /// What the key certainly holds.
    pub(crate) fn certain(&self, name: &Name) -> Option<Value> {
        *self.lock().keys.get(name)?.certain()
    }

    /// Names of a dataset that anything was ever asked for.
    pub(crate) fn names(&self, dataset: u64) -> Vec<Name> {
        let inner = self.lock();
        inner
            .keys
            .keys()
            .filter(|name| name.dataset == dataset)
            .cloned()
            .collect()
    }

    /// All changes of every key, and those of the churned dataset.
    pub(crate) fn histories(&self) -> (BTreeMap<Name, History<Value>>, History<Churned>) {
        let inner = self.lock();
        (inner.keys.clone(), inner.churned.clone())
    }

    /// Takes what a key was found to hold, nobody changing it: the change that is certain by that, if it was not
    /// before, or why that can be none of its states.
    pub(crate) fn settle(&self, name: &Name, found: Option<&[u8]>) -> Result<Option<u64>, Wrong> {
        let mut inner = self.lock();
        let Some(history) = inner.keys.get_mut(name) else {
            return Err(format!("{} is there, and was never stored", shown(name)));
        };
        let may: Vec<Option<Value>> = history.steps[history.floor..]
            .iter()
            .map(|step| step.held)
            .collect();
        history
            .settle(|held| holds(*held, found, self.seed))
            .ok_or_else(|| wrong(name, &may, found, history, self.seed))
    }

    /// Takes which churned datasets were found, as [`Model::settle`].
    pub(crate) fn settle_churned(&self, found: &[String]) -> Result<Option<u64>, Wrong> {
        let mut inner = self.lock();
        let history = &mut inner.churned;
        let may: Vec<Option<Churned>> = history.steps[history.floor..]
            .iter()
            .map(|step| step.held.clone())
            .collect();
        history
            .settle(|held| churned_is(held.as_ref(), found))
            .ok_or_else(|| format!("the datasets {found:?} are there, and may be one of {may:?}"))
    }

    /// The step that is certain now: what is read from now on is not older.
    pub(crate) fn begin_read(&self, name: &Name) -> usize {
        self.lock().keys.get(name).map_or(0, |history| history.floor)
    }

    /// Judges what a read gave that was begun at `floor`, while others change the key.
    pub(crate) fn judge_read(&self, name: &Name, floor: usize, found: Option<&[u8]>) -> Result<(), Wrong> {
        let inner = self.lock();
        let Some(history) = inner.keys.get(name) else {
            let there = found.map(|_| format!("{} is there, and was never stored", shown(name)));
            return there.map_or(Ok(()), Err);
        };
        let may: Vec<Option<Value>> = history.steps[floor..].iter().map(|step| step.held).collect();
        if may.iter().any(|held| holds(*held, found, self.seed)) {
            return Ok(());
        }
        Err(wrong(name, &may, found, history, self.seed))
    }
}

/// Whether what was found is that value, or that nothing.
pub(crate) fn holds(held: Option<Value>, found: Option<&[u8]>, seed: u64) -> bool {
    match (held, found) {
        (None, None) => true,
        (Some(value), Some(found)) => value.len == found.len() && value.bytes(seed) == found,
        _ => false,
    }
}

/// Whether the datasets found are that one, or none.
pub(crate) fn churned_is(held: Option<&Churned>, found: &[String]) -> bool {
    match (held, found) {
        (None, []) => true,
        (Some(held), [name]) => held.name == *name,
        _ => false,
    }
}

pub(crate) fn shown(name: &Name) -> String {
    format!("`{}` of dataset {}", name.key.escape_ascii(), name.dataset)
}

fn of(held: &Option<Value>) -> String {
    held.map_or("nothing".to_owned(), |value| {
        format!("change {} ({} bytes)", value.id, value.len)
    })
}

/// What is wrong with what was found, naming the change that it is of, where it is of any.
fn wrong(
    name: &Name,
    may: &[Option<Value>],
    found: Option<&[u8]>,
    history: &History<Value>,
    seed: u64,
) -> Wrong {
    let may: Vec<String> = may.iter().map(of).collect();
    let other = history
        .steps
        .iter()
        .rev()
        .find(|step| holds(step.held, found, seed));
    let found = match (found, other) {
        (_, Some(step)) => format!("{}, which is over", of(&step.held)),
        (None, None) => "nothing".to_owned(),
        (Some(found), None) => format!("{} bytes that nobody stored under it", found.len()),
    };
    format!(
        "{} holds {found}; it may hold: {}",
        shown(name),
        may.join(", or ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name() -> Name {
        Name {
            dataset: MAIN,
            key: b"k".to_vec(),
        }
    }

    fn value(id: u64, len: usize) -> Option<Value> {
        Some(Value { id, len })
    }

    /// Change 1 was answered, change 2 was not.
    fn halfway() -> Model {
        let model = Model::new(7);
        model.ask(&name(), 1, value(1, 100));
        model.answered(&name(), 1);
        model.ask(&name(), 2, value(2, 100));
        model
    }

    fn bytes(id: u64) -> Vec<u8> {
        Value { id, len: 100 }.bytes(7)
    }

    #[test]
    fn what_was_not_answered_is_there_wholly_or_not_at_all() {
        for id in [1, 2] {
            let model = halfway();
            let certain = (id == 2).then_some(2);
            assert_eq!(model.settle(&name(), Some(&bytes(id))), Ok(certain));
            assert_eq!(model.certain(&name()), value(id, 100));
            // It stays what it was found to be.
            let other = bytes(3 - id);
            assert!(model.settle(&name(), Some(&other)).is_err());
        }
        let mut torn = bytes(2);
        torn[60..].copy_from_slice(&bytes(1)[60..]);
        for found in [None, Some(&torn[..]), Some(&bytes(2)[..99]), Some(&[][..])] {
            assert!(halfway().settle(&name(), found).is_err());
        }
    }

    #[test]
    fn what_was_deleted_does_not_come_back() {
        let model = halfway();
        model.answered(&name(), 2);
        model.ask(&name(), 3, None);
        model.answered(&name(), 3);
        let wrong = model.settle(&name(), Some(&bytes(2))).unwrap_err();
        assert!(
            wrong.contains("change 2 (100 bytes), which is over; it may hold: nothing"),
            "{wrong}"
        );
        assert_eq!(model.settle(&name(), None), Ok(None));
    }

    #[test]
    fn a_read_is_not_older_than_what_was_answered_before_it() {
        let model = halfway();
        let early = model.begin_read(&name());
        model.answered(&name(), 2);
        let late = model.begin_read(&name());
        assert_eq!(model.judge_read(&name(), early, Some(&bytes(1))), Ok(()));
        assert!(model.judge_read(&name(), late, Some(&bytes(1))).is_err());
        assert!(model.judge_read(&name(), early, None).is_err());
    }

    #[test]
    fn one_dataset_has_one_name() {
        let model = Model::new(7);
        let named = |name: &str| {
            Some(Churned {
                name: name.to_owned(),
                dataset: 1,
            })
        };
        model.ask_churned(1, named("a"));
        model.answered_churned(1);
        model.ask_churned(2, named("b"));
        assert!(model.settle_churned(&[]).is_err());
        assert!(model.settle_churned(&["a".to_owned(), "b".to_owned()]).is_err());
        assert_eq!(model.settle_churned(&["b".to_owned()]), Ok(Some(2)));
        assert_eq!(model.churned(), named("b"));
        assert!(model.settle_churned(&["a".to_owned()]).is_err());
    }
}
