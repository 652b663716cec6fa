//! A fabric whose client process stops at a chosen place: what SIGSTOP, a debugger or a hypervisor does to one, for
//! tests and campaigns. READs that are posted go on meanwhile, as a network card's do.
//!
//! While a process is stopped every thread of it waits at its next call into the fabric.

use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::{
    ControlConnection, ControlEvent, ControlOptions, DataConnection, DataCounters, Domain, Endpoint, Fabric,
    FabricError, NotDestroyed, Read, ReadCompletion, ReadStatus, Region, RemoteRef,
};

/// Longest wait for READs that were posted after a stop to end.
const ENDS_WAIT: Duration = Duration::from_secs(10);

/// Where a process stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopAt {
    /// When it is about to post READs, after it has looked at its lease; and once more behind the post until they have
    /// ended, so that it is known how.
    Post,
    /// When it has posted READs, before it polls.
    Posted,
    /// When it has polled completions, before it looks at them.
    Polled,
}

/// A stop to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stop {
    /// Where, the next time that a thread comes there.
    pub at: StopAt,
    /// For how long.
    pub span: Duration,
    /// With [`StopAt::Posted`]: how late the READs just posted are carried out at most, where the fabric can do that.
    pub late: Duration,
}

/// What stops came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StopCounters {
    /// Stops so far.
    pub stops: u64,
    /// READs that could not be posted, or ended otherwise than with success.
    pub reads_failed: u64,
}

#[derive(Debug, Default)]
struct Plan {
    armed: Option<Stop>,
    until: Option<Instant>,
}

#[derive(Debug, Default)]
struct Gate {
    /// Whether `plan` is worth a look: so that the usual case costs one load.
    busy: AtomicBool,
    plan: Mutex<Plan>,
    changed: Condvar,
    stops: AtomicU64,
    reads_failed: AtomicU64,
    /// Whether the next poll of a data connection is to fail.
    breaks: AtomicBool,
}

impl Gate {
    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits while the process is stopped.
    fn pass(&self) {
        if !self.busy.load(Ordering::SeqCst) {
            return;
        }
        let mut plan = self.plan();
        while let Some(until) = plan.until {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                plan.until = None;
                self.changed.notify_all();
                break;
            }
            plan = self
                .changed
                .wait_timeout(plan, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        self.busy.store(plan.armed.is_some(), Ordering::SeqCst);
    }

    /// Stops the process if it is to stop here; whether it did.
    fn stop_at(&self, at: StopAt) -> bool {
        if !self.busy.load(Ordering::SeqCst) {
            return false;
        }
        let mut plan = self.plan();
        let stop = plan.armed.take_if(|stop| stop.at == at);
        if let Some(stop) = stop {
            plan.until = Some(Instant::now() + stop.span);
            self.stops.fetch_add(1, Ordering::Relaxed);
        }
        drop(plan);
        self.pass();
        stop.is_some()
    }

    /// How late the READs that are about to be posted are to be.
    fn late(&self) -> Option<Duration> {
        if !self.busy.load(Ordering::SeqCst) {
            return None;
        }
        let armed = self.plan().armed;
        armed
            .filter(|stop| stop.at == StopAt::Posted && !stop.late.is_zero())
            .map(|stop| stop.late)
    }

    fn failed(&self, reads: usize) {
        self.reads_failed.fetch_add(reads as u64, Ordering::Relaxed);
    }
}

/// Stops one process.
#[derive(Debug, Clone, Default)]
pub struct Stops(Arc<Gate>);

impl Stops {
    /// Has the process stop; a stop that has not begun yet is replaced.
    pub fn arm(&self, stop: Stop) {
        self.0.plan().armed = Some(stop);
        self.0.busy.store(true, Ordering::SeqCst);
    }

    /// Has the next poll of a data connection fail, whatever is in flight there: the process takes the connection for
    /// broken.
    pub fn break_next(&self) {
        self.0.breaks.store(true, Ordering::SeqCst);
    }

    /// What stops came to so far.
    #[must_use]
    pub fn counters(&self) -> StopCounters {
        StopCounters {
            stops: self.0.stops.load(Ordering::Relaxed),
            reads_failed: self.0.reads_failed.load(Ordering::Relaxed),
        }
    }
}

/// A fabric as a process that can be stopped sees it.
pub struct Stoppable {
    inner: Arc<dyn Fabric>,
    stops: Stops,
}

impl Stoppable {
    /// A process of its own on `inner`.
    pub fn new(inner: Arc<dyn Fabric>) -> Self {
        Self {
            inner,
            stops: Stops::default(),
        }
    }

    /// Stops this process.
    #[must_use]
    pub fn stops(&self) -> Stops {
        self.stops.clone()
    }
}

impl Fabric for Stoppable {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn outlives(&self) -> Duration {
        self.inner.outlives()
    }

    fn fences(&self) -> bool {
        self.inner.fences()
    }

    fn describe(&self) -> String {
        format!("{}, in a process that is stopped at times", self.inner.describe())
    }

    fn read_max_bytes(&self) -> usize {
        self.inner.read_max_bytes()
    }

    fn reads_at_once(&self) -> usize {
        self.inner.reads_at_once()
    }

    fn domain(&self) -> Result<Arc<dyn Domain>, FabricError> {
        self.inner.domain()
    }

    fn listen(&self, address: &str) -> Result<Box<dyn Endpoint>, FabricError> {
        self.inner.listen(address)
    }

    fn allocate(&self, len: usize) -> Result<Region, FabricError> {
        self.inner.allocate(len)
    }

    #[allow(
        unsafe_code,
        reason = "the caller's obligations are those of the fabric inside"
    )]
    unsafe fn register(&self, start: NonNull<u8>, len: usize) -> Result<Region, FabricError> {
        // SAFETY: the caller vouches for what the fabric inside asks, which is the same.
        unsafe { self.inner.register(start, len) }
    }

    fn connect_control(
        &self,
        address: &str,
        request: &[u8],
        options: ControlOptions,
        deadline: Instant,
    ) -> Result<Box<dyn ControlConnection>, FabricError> {
        self.stops.0.pass();
        let inner = self.inner.connect_control(address, request, options, deadline)?;
        Ok(Box::new(StoppableControl {
            inner,
            stops: self.stops.clone(),
        }))
    }

    fn connect_data(
        &self,
        address: &str,
        request: &[u8],
        reads_max: u32,
        deadline: Instant,
    ) -> Result<Box<dyn DataConnection>, FabricError> {
        self.stops.0.pass();
        let inner = self.inner.connect_data(address, request, reads_max, deadline)?;
        Ok(Box::new(StoppableData {
            inner,
            stops: self.stops.clone(),
            ended: Vec::new(),
        }))
    }
}

/// A control connection of a process that can be stopped.
struct StoppableControl {
    inner: Box<dyn ControlConnection>,
    stops: Stops,
}

impl ControlConnection for StoppableControl {
    fn fd(&self) -> BorrowedFd<'_> {
        self.inner.fd()
    }

    fn send(&mut self, frame: &[u8]) -> Result<(), FabricError> {
        self.stops.0.pass();
        self.inner.send(frame)
    }

    fn write(
        &mut self,
        number: u64,
        source: &Region,
        offset: usize,
        len: usize,
        to: RemoteRef,
    ) -> Result<(), FabricError> {
        self.stops.0.pass();
        self.inner.write(number, source, offset, len, to)
    }

    fn poll(&mut self, events: &mut Vec<ControlEvent>) -> Result<(), FabricError> {
        self.stops.0.pass();
        self.inner.poll(events)
    }
}

/// A data connection of a process that can be stopped.
struct StoppableData {
    inner: Box<dyn DataConnection>,
    stops: Stops,
    /// Polled while the process was stopped.
    ended: Vec<ReadCompletion>,
}

impl StoppableData {
    /// Waits until the READ `last` has ended, or all of a batch of `count` have failed.
    fn await_ends(&mut self, last: u64, count: usize) -> Result<(), FabricError> {
        let deadline = Instant::now() + ENDS_WAIT;
        let failed = |ended: &[ReadCompletion]| {
            ended
                .iter()
                .filter(|end| end.status != ReadStatus::Success)
                .count()
        };
        while self.inner.wait(deadline)? {
            self.inner.poll(&mut self.ended)?;
            if failed(&self.ended) >= count || self.ended.iter().any(|end| end.number == last) {
                break;
            }
        }
        Ok(())
    }
}

impl DataConnection for StoppableData {
    fn room(&self) -> usize {
        self.inner.room()
    }

    fn reads_at_once(&self) -> usize {
        self.inner.reads_at_once()
    }

    fn post(&mut self, reads: &[Read], regions: &[&Region]) -> Result<(), FabricError> {
        let gate = &self.stops.0;
        gate.pass();
        let stopped = gate.stop_at(StopAt::Post);
        if let Some(late) = gate.late() {
            self.inner.delay_next(late);
        }
        let posted = self.inner.post(reads, regions);
        match &posted {
            Ok(()) => {}
            Err(FabricError::Post { posted, .. }) => gate.failed(reads.len() - (*posted).min(reads.len())),
            Err(_) => gate.failed(reads.len()),
        }
        if let (true, Ok(()), Some(last)) = (stopped, &posted, reads.last()) {
            self.await_ends(last.number, reads.len())?;
        }
        self.stops.0.stop_at(StopAt::Posted);
        posted
    }

    fn poll(&mut self, completions: &mut Vec<ReadCompletion>) -> Result<(), FabricError> {
        let gate = &self.stops.0;
        gate.pass();
        if gate.breaks.swap(false, Ordering::SeqCst) {
            return Err(FabricError::Closed("it is to break here".to_owned()));
        }
        let before = completions.len();
        completions.append(&mut self.ended);
        let polled = self.inner.poll(completions);
        let new = completions.get(before..).unwrap_or_default();
        let failed = new.iter().filter(|end| end.status != ReadStatus::Success).count();
        gate.failed(failed);
        if !new.is_empty() {
            gate.stop_at(StopAt::Polled);
        }
        polled
    }

    fn arm(&mut self) -> Result<bool, FabricError> {
        self.stops.0.pass();
        Ok(!self.ended.is_empty() || self.inner.arm()?)
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.inner.fd()
    }

    fn counters(&self) -> DataCounters {
        self.inner.counters()
    }

    fn delay_next(&mut self, longest: Duration) {
        self.inner.delay_next(longest);
    }

    fn destroy(mut self: Box<Self>) -> Result<(), NotDestroyed> {
        match self.inner.destroy() {
            Ok(()) => Ok(()),
            Err(NotDestroyed { live, error }) => {
                self.inner = live;
                Err(NotDestroyed { live: self, error })
            }
        }
    }
}
