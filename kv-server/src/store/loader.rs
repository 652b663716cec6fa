//! Filling images from files after a start, one segment at a time, while sessions are served. A segment that a client
//! asked for comes next.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use super::dataset::Dataset;
use super::journal::Change;
use super::limits::{LOAD_ATTEMPTS_MAX, LOAD_PAUSE_MS};
use super::recover::{SegmentFile, ToLoad, report_damage, says_lost};
use super::segment::Segment;
use super::{Shared, lock};
use crate::error::StorageError;

/// A dataset's segment.
type Name = ([u8; 16], u32);

/// Most segments that one session has asked for and that are not loaded; more come when those that nobody asked for do.
const ASKED_MAX: usize = 256;

struct State {
    /// Asked for by sessions, which take turns: what one asks for, first come first and each once.
    urgent: VecDeque<(u64, VecDeque<Name>)>,
    /// Segments whose images are not there yet.
    waiting: usize,
    /// Segments that clients asked for so far, those that came in the meantime included.
    asked: u64,
    /// Images that may be loaded still; a test holds them back.
    allowed: u64,
    stop: bool,
}

/// What the loader is asked for.
pub(crate) struct Loads {
    state: Mutex<State>,
    changed: Condvar,
}

impl Loads {
    /// `allowed` images are loaded before [`Loads::allow`] is called.
    pub(crate) fn new(allowed: u64) -> Self {
        Self {
            state: Mutex::new(State {
                urgent: VecDeque::new(),
                waiting: 0,
                asked: 0,
                allowed,
                stop: false,
            }),
            changed: Condvar::new(),
        }
    }

    /// Has the image of a segment that is waiting loaded when it is the turn of the session that asks.
    pub(crate) fn ask(&self, session: u64, dataset: [u8; 16], segment: u32) {
        let state = &mut *lock(&self.state);
        let at = state.urgent.iter().position(|(asks, _)| *asks == session);
        let at = at.unwrap_or_else(|| {
            state.urgent.push_back((session, VecDeque::new()));
            state.urgent.len() - 1
        });
        let names = &mut state.urgent[at].1;
        let name = (dataset, segment);
        if names.len() < ASKED_MAX && !names.contains(&name) {
            names.push_back(name);
            state.asked += 1;
        }
    }

    /// A session is over: nobody waits for what it asked for.
    pub(crate) fn forget(&self, session: u64) {
        lock(&self.state).urgent.retain(|(asks, _)| *asks != session);
    }

    pub(crate) fn asked(&self) -> u64 {
        lock(&self.state).asked
    }

    /// Lets so many more images be loaded.
    pub(crate) fn allow(&self, images: u64) {
        let mut state = lock(&self.state);
        state.allowed = state.allowed.saturating_add(images);
        drop(state);
        self.changed.notify_all();
    }

    pub(crate) fn waiting(&self) -> usize {
        lock(&self.state).waiting
    }

    /// Ends the loader, at the next extent.
    pub(crate) fn stop(&self) {
        lock(&self.state).stop = true;
        self.changed.notify_all();
    }

    fn is_stopped(&self) -> bool {
        lock(&self.state).stop
    }

    /// Takes what comes next out of `images`, when it may be loaded.
    fn next(&self, images: &mut VecDeque<Load>) -> Option<Load> {
        let mut state = lock(&self.state);
        while state.allowed == 0 && !state.stop {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.stop {
            return None;
        }
        let mut first = None;
        while first.is_none()
            && let Some((session, mut names)) = state.urgent.pop_front()
        {
            while first.is_none()
                && let Some(name) = names.pop_front()
            {
                first = images.iter().position(|image| image.name() == name);
            }
            if !names.is_empty() {
                state.urgent.push_back((session, names));
            }
        }
        let next = images.remove(first.unwrap_or(0));
        if next.is_some() {
            state.allowed = state.allowed.saturating_sub(1);
        }
        next
    }

    /// Waits a while, unless it is to end.
    fn pause(&self) {
        let state = lock(&self.state);
        if !state.stop {
            let pause = Duration::from_millis(LOAD_PAUSE_MS);
            drop(self.changed.wait_timeout(state, pause));
        }
    }

    fn done(&self) {
        lock(&self.state).waiting -= 1;
    }
}

/// An image that waits to be loaded.
pub(crate) struct Load {
    dataset: Weak<Dataset>,
    dataset_id: [u8; 16],
    file: SegmentFile,
    segment: Arc<Segment>,
    unseen_end: u64,
    attempts: u32,
}

impl Load {
    pub(crate) fn new(dataset: &Arc<Dataset>, image: ToLoad) -> Self {
        Self {
            dataset: Arc::downgrade(dataset),
            dataset_id: dataset.id,
            file: image.file,
            segment: image.segment,
            unseen_end: image.unseen_end,
            attempts: 0,
        }
    }

    fn name(&self) -> Name {
        (self.dataset_id, self.segment.number)
    }

    /// Loads the image; whether it is to be tried again.
    fn run(&mut self, shared: &Shared) -> bool {
        let Some(dataset) = self.dataset.upgrade().filter(|dataset| !dataset.is_dropped()) else {
            return false;
        };
        let number = self.segment.number;
        let error = match self.load(shared, &dataset) {
            Ok(()) => return false,
            Err(error) => error,
        };
        let is_this = |now: Arc<Segment>| Arc::ptr_eq(&now, &self.segment);
        if !dataset.segment(number).is_some_and(is_this) {
            // Compacted away in between, and its file with it.
            return false;
        }
        self.attempts += 1;
        if !says_lost(&error) && self.attempts < LOAD_ATTEMPTS_MAX {
            tracing::warn!(%error, segment = number, "an image could not be loaded; it is tried again");
            return true;
        }
        tracing::error!(%error, dataset = %dataset.name(), segment = number, "segment lost: what lies in it cannot be served");
        self.segment.lose();
        dataset.note_lost(number);
        false
    }

    fn load(&self, shared: &Shared, dataset: &Dataset) -> Result<(), StorageError> {
        let Some(charges) = self.segment.take_charges(&shared.budget, self.file.len)? else {
            return Ok(());
        };
        let stop = || shared.loads.is_stopped() || dataset.is_dropped();
        let Some(image) = self.file.load(&shared.files, dataset.domain(), charges, stop)? else {
            return Ok(());
        };
        let damaged = self.file.verify(&image, self.unseen_end)?;
        report_damage(&dataset.figures, self.segment.number, &damaged);
        if self.segment.install(image) {
            dataset.note(Change::Row(self.segment.number));
        }
        Ok(())
    }
}

/// Starts the loader of a server.
pub(crate) fn start(shared: &Arc<Shared>, images: Vec<Load>) -> Result<Option<JoinHandle<()>>, StorageError> {
    if images.is_empty() {
        return Ok(None);
    }
    lock(&shared.loads.state).waiting = images.len();
    let shared = Arc::clone(shared);
    let home = shared.home.datasets();
    let thread = std::thread::Builder::new()
        .name("kv-load".to_owned())
        .spawn(move || run(&shared, images.into()))
        .map_err(|error| StorageError::io("spawn a loader for", &home, error))?;
    Ok(Some(thread))
}

fn run(shared: &Shared, mut images: VecDeque<Load>) {
    let loads = &shared.loads;
    while !images.is_empty() {
        let Some(mut image) = loads.next(&mut images) else {
            return;
        };
        if image.run(shared) {
            images.push_back(image);
            loads.allow(1);
            loads.pause();
        } else {
            loads.done();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where nothing can be loaded for long, they came and went without end.
    #[test]
    fn what_a_session_asked_for_goes_with_it() {
        let loads = Loads::new(0);
        loads.ask(0, [1; 16], 1);
        for session in 1..1000 {
            loads.ask(session, [1; 16], 1);
            loads.forget(session);
        }
        let state = lock(&loads.state);
        let asking: Vec<u64> = state.urgent.iter().map(|(session, _)| *session).collect();
        assert_eq!(asking, [0]);
    }
}
