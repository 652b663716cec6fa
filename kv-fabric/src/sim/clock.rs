//! One thread that does what is due.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

type Action = Box<dyn FnOnce() + Send>;

struct Due {
    at: Instant,
    /// Keeps what is due at one moment in the order planned.
    order: u64,
    action: Action,
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}
impl Eq for Due {}
impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

#[derive(Default)]
struct Plan {
    heap: BinaryHeap<Reverse<Due>>,
    planned: u64,
    stopped: bool,
}

#[derive(Default)]
struct Shared {
    plan: Mutex<Plan>,
    changed: Condvar,
}

impl Shared {
    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let mut plan = self.plan();
        while !plan.stopped {
            let now = Instant::now();
            plan = match plan.heap.peek() {
                None => self.changed.wait(plan).unwrap_or_else(PoisonError::into_inner),
                Some(Reverse(next)) if next.at > now => {
                    let wait = next.at - now;
                    let woken = self.changed.wait_timeout(plan, wait);
                    woken.unwrap_or_else(PoisonError::into_inner).0
                }
                Some(_) => {
                    let due = plan.heap.pop();
                    drop(plan);
                    if let Some(Reverse(due)) = due {
                        (due.action)();
                    }
                    self.plan()
                }
            };
        }
    }
}

/// A handle on the thread's plan.
#[derive(Clone)]
pub(super) struct Clock(Arc<Shared>);

impl Clock {
    /// Does `action` at `at`, on the clock's thread; never, if the clock has stopped.
    pub(super) fn plan(&self, at: Instant, action: impl FnOnce() + Send + 'static) {
        let mut plan = self.0.plan();
        if plan.stopped {
            return;
        }
        let order = plan.planned;
        plan.planned += 1;
        let action = Box::new(action);
        plan.heap.push(Reverse(Due { at, order, action }));
        self.0.changed.notify_one();
    }
}

impl std::fmt::Debug for Clock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Clock({} planned)", self.0.plan().heap.len())
    }
}

/// Stops the thread when dropped. What is planned then is never done.
#[derive(Debug)]
pub(super) struct RunningClock(pub(super) Clock);

impl RunningClock {
    pub(super) fn start() -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let clock = Clock(Arc::clone(&shared));
        std::thread::Builder::new()
            .name("sim-clock".to_owned())
            .spawn(move || shared.run())?;
        Ok(Self(clock))
    }
}

impl Drop for RunningClock {
    fn drop(&mut self) {
        // Not joined: the last owner may be an action on that very thread.
        let mut plan = self.0.0.plan();
        plan.stopped = true;
        let left = std::mem::take(&mut plan.heap);
        drop(plan);
        self.0.0.changed.notify_one();
        drop(left);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[test]
    fn actions_are_done_in_the_order_of_their_times() {
        let clock = RunningClock::start().expect("a thread");
        let (sender, receiver) = mpsc::channel();
        let now = Instant::now();
        for (number, after_ms) in [(0, 30), (1, 10), (2, 10), (3, 20)] {
            let sender = sender.clone();
            clock.0.plan(now + Duration::from_millis(after_ms), move || {
                sender.send(number).expect("the test listens");
            });
        }
        let order: Vec<i32> = receiver.iter().take(4).collect();
        assert_eq!(order, [1, 2, 3, 0]);
        assert!(now.elapsed() >= Duration::from_millis(30));
    }
}
