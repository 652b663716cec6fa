//! Reading: lookups and values, batched, judged, and begun again while that can help.

pub(crate) mod arrive;
pub(crate) mod counters;
pub(crate) mod fast;
pub(crate) mod item;
pub(crate) mod lane;
mod pass;
mod plan;
mod ring;

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::time::Duration;

use kv_fabric::{Fabric, ReadStatus};
use kv_proto::control::Request;
use kv_proto::hash::{KeyHash, directory_index};
use kv_proto::layout::KEY_MAX_BYTES;

use crate::backoff::Backoff;
use crate::clock::{Deadline, boot_ns};
use crate::memory::BufferOn;
use crate::opening::Core;
use crate::tables::{PAGE_ENTRIES, View};
use crate::{ClientError, ReadError};
use counters::add;
use item::Item;
use lane::{Held, Lane, NotReady, Trouble};
use pass::Pass;

/// How often checksums of one value may disagree before it counts as damaged.
const TORN_MAX: u32 = 24;
/// Torn buckets are read again so often before the directory is suspected.
const TORN_BEFORE_STALE: u32 = 3;
/// How often a looked-up value may turn out to have moved.
const STALE_MAX: u32 = 64;
/// How often a locator that the caller holds may lead nowhere: once more after a renewal.
const STALE_LOCATOR_MAX: u32 = 2;
/// How often the network may fail a call that does not get on.
const FAILED_MAX: u32 = 64;
/// First and longest wait between passes that did not get on.
const PASS_WAITS: (Duration, Duration) = (Duration::from_micros(50), Duration::from_millis(100));

/// A key, if it can be one.
pub(crate) fn check_key(key: &[u8]) -> Result<(), ReadError> {
    if (1..=KEY_MAX_BYTES).contains(&key.len()) {
        Ok(())
    } else {
        Err(ReadError::BadKey { len_bytes: key.len() })
    }
}

/// One call: all its passes.
pub(crate) struct Call<'c, F: Fabric> {
    core: &'c Core<F>,
    lane: Held<'c, F>,
    deadline: Deadline,
    budget: Duration,
    backoff: Backoff,
    /// How often the network failed while the directory was read.
    failed: u32,
    /// What went wrong last.
    last: ReadError,
}

impl<'c, F: Fabric> Call<'c, F> {
    pub(crate) fn new(core: &'c Core<F>, lanes: &'c [Mutex<Lane<F>>]) -> Result<Self, ReadError> {
        let budget = core.shared().options.deadline;
        let deadline = Deadline::after(budget);
        Ok(Self {
            core,
            lane: Held::any(lanes, deadline)?,
            deadline,
            budget,
            backoff: Backoff::new(PASS_WAITS.0, PASS_WAITS.1),
            failed: 0,
            last: ReadError::Timeout,
        })
    }

    /// Reads every item: each has a result afterwards.
    pub(crate) fn read(&mut self, items: &mut [Item<'_>], place: Option<&BufferOn<F>>) {
        for item in items.iter_mut() {
            if let Some(Err(error)) = item.key.map(check_key) {
                item.result = Some(Err(error));
            }
        }
        let verify = self.core.shared().options.verify;
        while items.iter().any(|item| item.result.is_none()) {
            match self.ready(items) {
                Ok(()) => {}
                Err(NotReady::Never(error)) => return finish(items, error),
                Err(NotReady::Again) => {
                    if !self.wait() {
                        return finish(items, self.last);
                    }
                    continue;
                }
            }
            let mut pass = Pass::new(&mut self.lane, items, place, verify);
            pass.want_items();
            let ended = pass.run(self.budget, &mut self.deadline);
            let got_on = pass.got_on;
            self.lane.leave();
            if ended == Err(Trouble::Deadline) {
                return finish(items, ReadError::Timeout);
            }
            if items.iter().any(|item| item.result.is_none()) && !self.recover(items, got_on) {
                return finish(items, self.last);
            }
        }
    }

    /// Waits a little before the next pass; whether there is time for one.
    fn wait(&mut self) -> bool {
        self.lane.leave();
        self.backoff.sleep(self.deadline)
    }

    /// Makes session, dataset, connection and the pages of the directory that `items` need ready, and enters.
    fn ready(&mut self, items: &mut [Item<'_>]) -> Result<(), NotReady> {
        if self.lane.enter(boot_ns())
            && !self.lane.footing.view.dropped
            && self.lane.footing.view.table_next.is_none()
            && missing_pages(&self.lane.footing.view, items).is_empty()
        {
            return Ok(());
        }
        self.lane.leave();
        let up = self.core.shared().ensure(self.deadline, false).map_err(never)?;
        let view = self.core.open(&up, self.deadline)?;
        if view.dropped {
            return Err(NotReady::Never(ReadError::Closed));
        }
        self.lane.connect(&up, view.dataset, self.deadline)?;
        if !self.lane.enter(boot_ns()) {
            return Err(NotReady::Again);
        }
        let missing = missing_pages(&self.lane.footing.view, items);
        if missing.is_empty() {
            return Ok(());
        }
        self.read_directory(missing)
    }

    /// Reads pages of the directory.
    fn read_directory(&mut self, missing: Vec<u32>) -> Result<(), NotReady> {
        let changes = self.lane.footing.view.changes;
        let mut pass = Pass::new(&mut self.lane, &mut [], None, true);
        pass.want_pages(missing.into_iter());
        let ended = pass.run(self.budget, &mut self.deadline);
        let (pages, torn) = (std::mem::take(&mut pass.pages_read), pass.pages_torn);
        // A view that changed while the pages flew is a change that they may not have.
        let installed = self.core.state().install(changes, pages);
        if let Err(Trouble::Fabric(status)) = ended {
            self.last = ReadError::Fabric(status);
            self.failed += 1;
            if self.failed >= FAILED_MAX {
                return Err(NotReady::Never(self.last));
            }
            if status == ReadStatus::RemoteAccess {
                self.renew();
                self.core.state().refresh();
            }
        }
        if torn && ended.is_ok() {
            self.last = ReadError::Stale;
            self.renew();
        }
        if ended.is_err() || torn || !installed || !self.lane.enter(boot_ns()) {
            return Err(NotReady::Again);
        }
        Ok(())
    }

    fn renew(&mut self) {
        self.lane.leave();
        let generation = self.lane.footing.view.generation;
        self.core.shared().renew_now(generation, self.deadline);
    }

    /// Sees to what kept items from being read in a pass that `got_on` or not; whether there is time for another.
    fn recover(&mut self, items: &mut [Item<'_>], got_on: bool) -> bool {
        let mut suspects = BTreeSet::new();
        let mut loading = BTreeSet::new();
        let (mut renew, mut refresh, mut unhurried) = (false, false, false);
        for item in items.iter_mut().filter(|item| item.result.is_none()) {
            add(&self.lane.counters.retries, 1);
            let Some(trouble) = item.trouble else { continue };
            match trouble {
                Trouble::TornRecord | Trouble::TornBucket(_) => {
                    add(&self.lane.counters.torn, 1);
                    item.torn += 1;
                    self.last = ReadError::Torn { attempts: item.torn };
                    unhurried = true;
                    let bucket = matches!(trouble, Trouble::TornBucket(_));
                    add(&self.lane.counters.torn_buckets, u64::from(bucket));
                    if item.torn >= TORN_MAX {
                        item.result = Some(Err(self.last));
                    } else if item.torn >= TORN_BEFORE_STALE {
                        renew = true;
                        if let Trouble::TornBucket(entry) = trouble {
                            suspects.insert(entry);
                        }
                    }
                }
                Trouble::StaleRecord | Trouble::NoPlace | Trouble::StaleBucket(_) => {
                    add(&self.lane.counters.stale, 1);
                    item.stale += 1;
                    self.last = ReadError::Stale;
                    renew = true;
                    unhurried |= item.stale > 1;
                    if let Trouble::StaleBucket(entry) = trouble {
                        add(&self.lane.counters.stale_directory, 1);
                        suspects.insert(entry);
                    }
                    let most = if item.at.is_some() {
                        STALE_LOCATOR_MAX
                    } else {
                        STALE_MAX
                    };
                    if item.stale >= most {
                        item.result = Some(Err(ReadError::Stale));
                    }
                }
                Trouble::Loading(segment) => {
                    loading.insert(segment);
                    unhurried = true;
                }
                Trouble::NoImage => item.result = Some(Err(ReadError::NoImage)),
                Trouble::NoRoom => item.result = Some(Err(ReadError::NoResources)),
                Trouble::Fabric(status) => {
                    item.failed += u32::from(!got_on);
                    self.last = ReadError::Fabric(status);
                    if item.failed >= FAILED_MAX {
                        item.result = Some(Err(self.last));
                    }
                    refresh |= status == ReadStatus::RemoteAccess;
                    unhurried = true;
                }
                Trouble::NoConnection => unhurried = true,
                Trouble::NoDirectory | Trouble::Lease | Trouble::Deadline => {}
            }
        }
        if renew || refresh {
            self.renew();
        }
        if refresh {
            self.core.state().refresh();
        }
        let changes = self.core.state().view().1.changes;
        for entry in suspects {
            self.core.state().forget_entry(changes, entry);
        }
        for segment in loading {
            self.load(segment);
        }
        if unhurried {
            self.wait()
        } else {
            !self.deadline.is_over()
        }
    }

    /// Asks the server for a segment's image.
    fn load(&mut self, segment: u32) {
        let view = self.core.state().view().1;
        let request = Request::Load {
            dataset: view.dataset,
            segment,
        };
        let state = Some(self.core.state_shared());
        let shared = self.core.shared();
        // Whatever comes of it, the next pass looks at the row.
        let _ = shared.ask(view.generation, request, state, self.deadline);
    }
}

/// Hashes the keys that are to be looked up; pages of the directory that they need and that are not there.
fn missing_pages(view: &View, items: &mut [Item<'_>]) -> Vec<u32> {
    let mut missing = Vec::new();
    for item in items.iter_mut().filter(|item| item.result.is_none()) {
        let (Some(key), None) = (item.key, item.at) else {
            continue;
        };
        item.hash = KeyHash::of(&view.hash_key, key);
        let index = directory_index(item.hash.slot, view.directory.depth);
        if view.directory.entry(index).is_none() {
            missing.push(index / PAGE_ENTRIES);
        }
    }
    missing.sort_unstable();
    missing.dedup();
    missing
}

/// Gives every item without a result this one.
fn finish(items: &mut [Item<'_>], error: ReadError) {
    for item in items.iter_mut().filter(|item| item.result.is_none()) {
        item.result = Some(Err(error));
    }
}

/// What a session that cannot be had means for a read.
pub(crate) fn never(error: ClientError) -> NotReady {
    tracing::debug!(%error, "no session");
    NotReady::Never(match error {
        ClientError::Refused { status, .. } => ReadError::Refused(status),
        ClientError::Timeout { .. } => ReadError::Timeout,
        ClientError::Closed => ReadError::Closed,
        _ => ReadError::NoResources,
    })
}
