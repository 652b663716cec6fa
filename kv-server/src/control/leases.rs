//! Leases, acknowledgements, and what may be released because of them. No I/O and no clock: time is passed in.
//!
//! A thing retired at `n` may be released when every session that has its dataset open acknowledged at least `n`, or
//! is over: by its own word, or fenced (**I2**). Where a fabric cannot fence, a session's holds outlive it until its
//! lease ends. `kv-client/src/lease_model` tries these rules in every order.

use std::collections::{BTreeMap, VecDeque};

use super::clock::BootMs;

/// Id of a dataset.
pub type DatasetId = [u8; 16];

/// Moments of retirements that are remembered: [`MARKS_PER_LAG`] of them cover `max_lag`.
pub const MARKS_MAX: usize = 2 * MARKS_PER_LAG as usize;
/// Retirements closer together than `max_lag` over this count as one moment, the last.
pub const MARKS_PER_LAG: u64 = 64;

/// When things were retired, so that who lags can be told from who is merely behind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Retirements {
    /// Number and moment: everything up to the number was retired by then. Both rise.
    marks: VecDeque<(u64, BootMs)>,
    latest: u64,
}

impl Retirements {
    /// Nothing was retired after `latest` yet.
    #[must_use]
    pub fn new(latest: u64) -> Self {
        Self {
            marks: VecDeque::new(),
            latest,
        }
    }

    /// Number of the latest retirement that was noted.
    #[must_use]
    pub fn latest(&self) -> u64 {
        self.latest
    }

    /// Notes that everything up to `latest` is retired now; whether that is news.
    pub fn note(&mut self, latest: u64, now: BootMs, max_lag_ms: u64) -> bool {
        if latest <= self.latest {
            return false;
        }
        self.latest = latest;
        match self.marks.back_mut() {
            // The mark's moment lies ahead of the first retirement that it stands for: nobody is fenced early.
            Some((number, moment)) if now <= *moment => *number = latest,
            _ => self.marks.push_back((latest, now + max_lag_ms / MARKS_PER_LAG)),
        }
        if self.marks.len() > MARKS_MAX {
            // Older than twice `max_lag`: who has not acknowledged it was fenced.
            self.marks.pop_front();
        }
        true
    }

    /// When the first thing after `acked` was retired, at the latest.
    #[must_use]
    pub fn behind_since(&self, acked: u64) -> Option<BootMs> {
        let first = self.marks.partition_point(|(number, _)| *number <= acked);
        self.marks.get(first).map(|(_, moment)| *moment)
    }
}

/// One dataset that a session has open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Hold {
    /// The dataset.
    pub dataset: DatasetId,
    /// Everything retired up to here is used no more.
    pub acked: u64,
}

/// Why a session is fenced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fence {
    /// Its lease ended.
    LeaseEnded,
    /// It did not acknowledge a retirement within `max_lag`.
    Lagging,
}

impl Fence {
    /// For people.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::LeaseEnded => "its lease ended",
            Self::Lagging => "it did not acknowledge a retirement within max_lag",
        }
    }
}

/// An acknowledgement of what was never told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NeverTold {
    /// Greatest number that was told.
    pub told: u64,
}

/// What one session may still read, and until when unless it renews.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Holds {
    open: Vec<Hold>,
    told: u64,
    lease_ends: BootMs,
    moved: bool,
}

impl Holds {
    /// Nothing, with a lease that ends then.
    #[must_use]
    pub fn new(lease_ends: BootMs) -> Self {
        Self {
            open: Vec::new(),
            told: 0,
            lease_ends,
            moved: false,
        }
    }

    /// When the lease ends.
    #[must_use]
    pub fn lease_ends(&self) -> BootMs {
        self.lease_ends
    }

    /// Datasets that are open.
    #[must_use]
    pub fn open(&self) -> &[Hold] {
        &self.open
    }

    /// What is held of a dataset.
    #[must_use]
    pub fn get(&self, dataset: &DatasetId) -> Option<&Hold> {
        self.open.iter().find(|hold| hold.dataset == *dataset)
    }

    /// A dataset was opened and the session told that `retired` is the latest retirement. One that was open already
    /// keeps what it acknowledged: the peer may still hold what it read before.
    pub fn opened(&mut self, dataset: DatasetId, retired: u64) {
        self.told = self.told.max(retired);
        if self.get(&dataset).is_none() {
            self.open.push(Hold {
                dataset,
                acked: retired,
            });
        }
    }

    /// The session said that it holds nothing of the dataset any more.
    pub fn closed(&mut self, dataset: &DatasetId) {
        self.open.retain(|hold| hold.dataset != *dataset);
    }

    /// The session was told that `retired` is the latest retirement.
    pub fn told(&mut self, retired: u64) {
        self.told = self.told.max(retired);
    }

    /// Renews the lease from `now` and acknowledges everything retired up to `retired`.
    ///
    /// # Errors
    /// [`NeverTold`] if the session cannot know of so many; nothing changed.
    pub fn renew(&mut self, retired: u64, now: BootMs, lease_ms: u32) -> Result<(), NeverTold> {
        if retired > self.told {
            return Err(NeverTold { told: self.told });
        }
        for hold in &mut self.open {
            self.moved |= hold.acked < retired;
            hold.acked = hold.acked.max(retired);
        }
        self.grant(now, lease_ms);
        Ok(())
    }

    /// Whether something was acknowledged since this was last asked, so that something may be released.
    pub fn take_moved(&mut self) -> bool {
        std::mem::take(&mut self.moved)
    }

    /// Grants the lease from `now`. The clock is read in whole milliseconds, so one is added: a client that counts
    /// more finely, from before it sent, still ends first.
    pub fn grant(&mut self, now: BootMs, lease_ms: u32) {
        self.lease_ends = self.lease_ends.max(now + u64::from(lease_ms) + 1);
    }

    /// When the session is to be fenced unless it says something, and why then.
    #[must_use]
    pub fn fence_at(&self, retirements: &Retirements, max_lag_ms: u64) -> (BootMs, Fence) {
        let lag = self
            .open
            .iter()
            .map(|hold| hold.acked)
            .min()
            .and_then(|acked| retirements.behind_since(acked))
            .map(|since| since + max_lag_ms);
        match lag {
            Some(at) if at < self.lease_ends => (at, Fence::Lagging),
            _ => (self.lease_ends, Fence::LeaseEnded),
        }
    }
}

/// What sessions that are over still hold, until their leases end: on a fabric that cannot fence.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Ghosts(Vec<Holds>);

impl Ghosts {
    /// How many sessions.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What each holds.
    pub fn iter(&self) -> std::slice::Iter<'_, Holds> {
        self.0.iter()
    }

    /// A session is over that held this, on a fabric that `fences` or not. Who took `leave` holds nothing any more.
    pub fn ended(&mut self, holds: &Holds, fences: bool, leave: bool) {
        if !fences && !leave && !holds.open().is_empty() {
            self.0.push(holds.clone());
        }
    }

    /// Forgets those whose lease is over at `now`; whether there were any.
    pub fn expire(&mut self, now: BootMs) -> bool {
        let before = self.0.len();
        self.0.retain(|holds| now < holds.lease_ends());
        before != self.0.len()
    }
}

/// What was released already, for each dataset that may have something to release.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Releases {
    released: BTreeMap<DatasetId, u64>,
    touched: bool,
}

impl Releases {
    /// A retirement, an acknowledgement or the end of a session: something may be released that could not before.
    pub fn touch(&mut self) {
        self.touched = true;
    }

    /// Whether something may be released that could not before, since this was last asked.
    pub fn take_touched(&mut self) -> bool {
        std::mem::take(&mut self.touched)
    }

    /// What can be released now and was not before: dataset and number. `datasets` are all that exist or are being
    /// dropped, `holds` those of every session that is not over, `retired` the latest retirement.
    pub fn due<'a>(
        &mut self,
        datasets: impl Iterator<Item = DatasetId>,
        holds: impl Iterator<Item = &'a Holds>,
        retired: u64,
    ) -> Vec<(DatasetId, u64)> {
        let mut bounds: BTreeMap<DatasetId, u64> = datasets.map(|id| (id, retired)).collect();
        for hold in holds.flat_map(Holds::open) {
            if let Some(bound) = bounds.get_mut(&hold.dataset) {
                *bound = (*bound).min(hold.acked);
            }
        }
        let due = bounds
            .iter()
            .filter(|(id, bound)| self.released.get(*id).is_none_or(|before| before < *bound))
            .map(|(id, bound)| (*id, *bound))
            .collect();
        self.released = bounds;
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: DatasetId = [1; 16];
    const B: DatasetId = [2; 16];
    const LAG: u64 = 30_000;

    fn holds(lease_ends: u64, open: &[(DatasetId, u64)]) -> Holds {
        let mut holds = Holds::new(BootMs(lease_ends));
        for (dataset, retired) in open {
            holds.opened(*dataset, *retired);
        }
        holds
    }

    #[test]
    fn a_lease_lasts_from_its_last_renewal() {
        let none = Retirements::new(0);
        let mut session = holds(10_000, &[(A, 0)]);
        assert_eq!(session.fence_at(&none, LAG), (BootMs(10_000), Fence::LeaseEnded));
        session.renew(0, BootMs(9_999), 10_000).unwrap();
        assert_eq!(session.fence_at(&none, LAG), (BootMs(20_000), Fence::LeaseEnded));
    }

    #[test]
    fn who_renews_but_never_acknowledges_is_fenced() {
        let mut retirements = Retirements::new(4);
        let mut session = holds(10_000, &[(A, 4)]);
        assert!(retirements.note(5, BootMs(1_000), LAG));
        assert!(!retirements.note(5, BootMs(2_000), LAG));
        session.told(5);
        for now in (0..100_000).step_by(5_000) {
            session.renew(4, BootMs(now), 10_000).unwrap();
        }
        let (at, why) = session.fence_at(&retirements, LAG);
        assert_eq!(why, Fence::Lagging);
        assert!(at >= BootMs(1_000 + LAG) && at <= BootMs(1_000 + LAG + LAG / MARKS_PER_LAG));
        session.renew(5, BootMs(100_000), 10_000).unwrap();
        assert_eq!(session.fence_at(&retirements, LAG).1, Fence::LeaseEnded);
    }

    #[test]
    fn a_stream_of_retirements_neither_grows_the_list_nor_hides_who_lags() {
        let mut retirements = Retirements::new(0);
        let mut now = BootMs(0);
        for number in 1..=200_000 {
            now = BootMs(number);
            retirements.note(number, now, LAG);
        }
        assert!(retirements.marks.len() <= MARKS_MAX);
        let lagging = holds(1_000_000, &[(A, 0)]);
        assert!(lagging.fence_at(&retirements, LAG).0 < now);
        let current = holds(1_000_000, &[(A, 199_990)]);
        assert!(current.fence_at(&retirements, LAG).0 > now + (LAG - 100));
    }

    #[test]
    fn what_was_never_told_cannot_be_acknowledged() {
        let mut session = holds(10_000, &[(A, 7)]);
        assert_eq!(session.renew(8, BootMs(0), 10_000), Err(NeverTold { told: 7 }));
        session.told(8);
        assert_eq!(session.renew(8, BootMs(0), 10_000), Ok(()));
        assert_eq!(session.get(&A).unwrap().acked, 8);
        assert!(session.take_moved() && !session.take_moved());
        session.renew(8, BootMs(0), 10_000).unwrap();
        assert!(!session.take_moved());
    }

    #[test]
    fn opening_again_acknowledges_nothing() {
        let mut session = holds(10_000, &[(A, 7)]);
        session.opened(A, 9);
        assert_eq!(session.open(), [Hold { dataset: A, acked: 7 }]);
    }

    #[test]
    fn the_slowest_session_bounds_what_is_released() {
        let mut releases = Releases::default();
        let mut slow = holds(0, &[(A, 3)]);
        let fast = holds(0, &[(A, 5), (B, 5)]);
        let both = || [A, B].into_iter();
        assert_eq!(
            releases.due(both(), [&slow, &fast].into_iter(), 6),
            [(A, 3), (B, 5)]
        );
        assert_eq!(releases.due(both(), [&slow, &fast].into_iter(), 6), []);
        slow.told(6);
        slow.renew(4, BootMs(0), 1).unwrap();
        assert_eq!(releases.due(both(), [&slow, &fast].into_iter(), 6), [(A, 4)]);
        assert_eq!(releases.due(both(), [&fast].into_iter(), 6), [(A, 5)]);
        assert_eq!(releases.due(both(), std::iter::empty(), 6), [(A, 6), (B, 6)]);
    }
}
