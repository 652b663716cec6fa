//! What all threads of a campaign share.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use fastrand::Rng;
use kv_client::Server;
use kv_fabric::stop::{Stop, StopAt, Stops};

use super::fabrics::Ends;
use super::field::Field;
use super::hazards::{Hazard, Required, Seen, hazards};
use super::space::Space;
use super::values::LONG;

/// What a campaign is made of.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan {
    pub(super) reads: u64,
    pub(super) least: u64,
    pub(super) readers: usize,
    pub(super) lease: Duration,
    pub(super) keys: u32,
    pub(super) operations: u32,
    pub(super) long: bool,
    pub(super) memory_bytes: u64,
}

/// What all threads of a campaign share.
pub(super) struct Shared {
    pub(super) plan: Plan,
    pub(super) key_names: Vec<Vec<u8>>,
    pub(super) fields: RwLock<Vec<Arc<Field>>>,
    pub(super) stops: Vec<Stops>,
    pub(super) over: AtomicBool,
    pub(super) trouble: Mutex<Option<String>>,
    pub(super) rng: Mutex<Rng>,
    pub(super) space: Space,
    pub(super) generations: AtomicU64,
    pub(super) checked: AtomicU64,
    pub(super) written: AtomicU64,
    pub(super) deleted: AtomicU64,
    pub(super) stale_locators: AtomicU64,
    pub(super) seen: Vec<Mutex<Seen>>,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    /// The first trouble ends the campaign.
    pub(super) fn fail(&self, why: String) {
        lock(&self.trouble).get_or_insert(why);
        self.over.store(true, Ordering::SeqCst);
    }

    /// The generation of a dataset that is about to be made.
    pub(super) fn next_generation(&self) -> u64 {
        let number = self.generations.fetch_add(1, Ordering::SeqCst) + 1;
        number | if self.plan.long { LONG } else { 0 }
    }

    pub(super) fn key(&self, key: u32) -> &[u8] {
        &self.key_names[key as usize]
    }

    pub(super) fn fields(&self) -> Vec<Arc<Field>> {
        self.fields.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn add_field(&self, field: &Arc<Field>) {
        let mut fields = self.fields.write().unwrap_or_else(PoisonError::into_inner);
        fields.push(Arc::clone(field));
    }

    pub(super) fn remove_field(&self, gone: &Field) {
        let mut fields = self.fields.write().unwrap_or_else(PoisonError::into_inner);
        fields.retain(|field| field.generation != gone.generation);
    }

    /// Has a process stop at a place of chance, for less or more than its lease.
    pub(super) fn stop_one(&self, stops: &Stops, at: StopAt) {
        let mut rng = lock(&self.rng);
        let lease_us = self.plan.lease.as_micros() as u64;
        // Who stops before a post is stopped long enough: its READs are to meet the fence.
        let halves = match at {
            StopAt::Post => 3..9,
            _ if rng.bool() => 1..5,
            _ => 5..16,
        };
        let span = Duration::from_micros(lease_us * rng.u64(halves) / 2);
        let late = if rng.bool() { span } else { Duration::ZERO };
        stops.arm(Stop { at, span, late });
    }

    /// Stops half of the readers while READs of theirs are under way.
    pub(super) fn stop_readers(&self) {
        for stops in &self.stops {
            if lock(&self.rng).bool() {
                self.stop_one(stops, StopAt::Posted);
            }
        }
    }

    /// How often each hazard has happened so far.
    pub(super) fn hazards(&self, ends: &Ends) -> Vec<Hazard> {
        let failed = self.stops.iter().map(|stops| stops.counters().reads_failed).sum();
        let injected = ends.injected();
        let mut all = hazards(
            ends.server.fences(),
            &self.seen(),
            injected.as_ref(),
            failed,
            self.plan.least,
        );
        all.push(Hazard {
            name: "locators of records that compaction had moved",
            count: self.stale_locators.load(Ordering::SeqCst),
            required: Required::AtLeast(self.plan.least),
        });
        all
    }

    pub(super) fn seen(&self) -> Seen {
        let mut sum = Seen::default();
        self.seen.iter().for_each(|seen| sum.merge(&lock(seen)));
        sum
    }

    pub(super) fn note_retired(&self, admin: &Server, field: &Field) -> Result<(), String> {
        let dataset = admin
            .open(&field.name)
            .map_err(|error| format!("opening {}: {error}", field.name))?;
        self.space.retire(&dataset)
    }
}
