//! Values as futures, for any runtime: a thread of its own drives an engine and wakes whoever waits.
//!
//! A future that is dropped leaves its READs to the engine, whose memory they go to (**I5**); the value is dropped when
//! it comes.

use std::future::Future;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::thread::JoinHandle;

use crate::clock::boot_ns;
use crate::mailbox::Bell;
use crate::opening::Core;
use crate::read::calls::by_place;
use crate::read::engine::{Ask, Engine};
use crate::read::item::{Memory, Want};
use crate::read::slots::Value;
use crate::read::waits::Idle;
use crate::{ClientError, ClientOptions, GlobalLocator, ReadError};

/// Futures of one reader that are not done, at most.
const FUTURES_MAX: usize = 1 << 16;
/// Orders that are kept to be used again, at most.
const SPARE_MAX: usize = 1 << 12;
/// Longest sleep of a driver that has nothing to do, ns: it is woken by what is asked.
const REST_NS: u64 = 3_600_000_000_000;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Everything behind these locks is replaced or pushed whole, so a panic elsewhere leaves it usable.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug)]
enum Promise {
    Waiting(Option<Waker>),
    Kept(Result<Value, ReadError>),
    Taken,
}

/// What is wanted, and what became of it. It is used again once neither its future nor the driver has it.
#[derive(Debug)]
struct Order {
    key: Vec<u8>,
    has_key: bool,
    at: Option<GlobalLocator>,
    promise: Promise,
}

type Shared = Arc<Mutex<Order>>;

#[derive(Default)]
struct Inbox {
    wanted: Vec<Shared>,
    spare: Vec<Shared>,
    closing: bool,
}

/// What the driver and the futures share.
struct Desk {
    inbox: Mutex<Inbox>,
    bell: Arc<Bell>,
    outstanding: AtomicUsize,
}

/// The driver's handle: it ends with the last of them.
struct Driver {
    desk: Arc<Desk>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Driver {
    fn drop(&mut self) {
        lock(&self.desk.inbox).closing = true;
        self.desk.bell.ring();
        let Some(thread) = self.thread.take() else { return };
        // A waker may drop the last handle: then the driver ends by itself.
        if thread.thread().id() != std::thread::current().id() && thread.join().is_err() {
            tracing::error!("the driver of an async reader panicked");
        }
    }
}

/// Reads values as futures, on any runtime or none. Clones share one engine and its thread, which sleeps while nothing
/// is asked for.
///
/// A future costs more than a call or a ticket of a [`crate::Reader`]: its key is copied, threads that ask take turns at one
/// lock with each other and with the driver, which has to be woken where it sleeps, and wakes whoever waits. What it is kept in is
/// used again, so that nothing is allocated for it once as many were outstanding before. Where that counts, give each
/// thread a reader.
#[derive(Clone)]
pub struct AsyncReader(Arc<Driver>);

/// A value to come; see [`AsyncReader::get`].
#[must_use = "the value comes to whoever polls this"]
pub struct Get {
    order: Shared,
    desk: Arc<Desk>,
}

impl std::fmt::Debug for Get {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Get").field(&lock(&self.order).promise).finish()
    }
}

impl AsyncReader {
    pub(crate) fn start(core: Arc<Core>, options: Arc<ClientOptions>) -> Result<Self, ClientError> {
        let engine = Engine::new(core, options)?;
        let desk = Arc::new(Desk {
            inbox: Mutex::default(),
            bell: engine.bell(),
            outstanding: AtomicUsize::new(0),
        });
        let shared = Arc::clone(&desk);
        let thread = std::thread::Builder::new()
            .name("kv-reader".to_owned())
            .spawn(move || drive(engine, &shared))
            .map_err(|source| ClientError::System {
                call: "spawn the thread of an async reader",
                source: Arc::new(source),
            })?;
        let thread = Some(thread);
        Ok(Self(Arc::new(Driver { desk, thread })))
    }

    /// The value of `key`. It is asked for at once, whether the future is polled or not.
    ///
    /// The future gives [`ReadError::NotFound`] if there is none, [`ReadError::Busy`] if too many are outstanding, else
    /// why it could not be read. It never waits for longer than a call would.
    pub fn get(&self, key: &[u8]) -> Get {
        self.want(Some(key), None)
    }

    /// The value at a locator, as [`crate::Client::get_at`]: one READ.
    pub fn get_at(&self, at: &GlobalLocator, key: Option<&[u8]>) -> Get {
        self.want(key, Some(*at))
    }

    fn want(&self, key: Option<&[u8]>, at: Option<GlobalLocator>) -> Get {
        let desk = &self.0.desk;
        let mut inbox = lock(&desk.inbox);
        let order = inbox.spare.pop().unwrap_or_else(|| {
            Arc::new(Mutex::new(Order {
                key: Vec::new(),
                has_key: false,
                at: None,
                promise: Promise::Taken,
            }))
        });
        let refused = if inbox.closing {
            // A bug ended the driver: nobody looks at the inbox.
            Some(ReadError::Closed)
        } else if desk.outstanding.fetch_add(1, Ordering::Relaxed) >= FUTURES_MAX {
            desk.outstanding.fetch_sub(1, Ordering::Relaxed);
            Some(ReadError::Busy)
        } else {
            None
        };
        {
            let mut order = lock(&order);
            order.key.clear();
            order.key.extend_from_slice(key.unwrap_or_default());
            (order.has_key, order.at) = (key.is_some(), at);
            order.promise = match refused {
                Some(error) => Promise::Kept(Err(error)),
                None => Promise::Waiting(None),
            };
        }
        if refused.is_none() {
            inbox.wanted.push(Arc::clone(&order));
        }
        let first = refused.is_none() && inbox.wanted.len() == 1;
        drop(inbox);
        // The driver takes all there is, so only the first need wake it.
        if first {
            desk.bell.ring();
        }
        Get {
            order,
            desk: Arc::clone(desk),
        }
    }
}

impl Drop for Get {
    fn drop(&mut self) {
        // The driver has let go of it, or else it ends with that.
        if let Some(order) = Arc::get_mut(&mut self.order) {
            let order = order.get_mut().unwrap_or_else(PoisonError::into_inner);
            // A value that nobody took gives its memory back.
            order.promise = Promise::Taken;
            let mut inbox = lock(&self.desk.inbox);
            if inbox.spare.len() < SPARE_MAX {
                inbox.spare.push(Arc::clone(&self.order));
            }
        }
    }
}

impl Future for Get {
    type Output = Result<Value, ReadError>;

    /// # Panics
    /// If it is polled again after it was ready.
    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut order = lock(&self.order);
        let promise = &mut order.promise;
        match promise {
            Promise::Waiting(waker) => {
                match waker {
                    Some(waker) => waker.clone_from(context.waker()),
                    none => *none = Some(context.waker().clone()),
                }
                Poll::Pending
            }
            Promise::Kept(_) => match mem::replace(promise, Promise::Taken) {
                Promise::Kept(result) => Poll::Ready(result),
                _ => Poll::Pending,
            },
            Promise::Taken => panic!("a future was polled after it was ready"),
        }
    }
}

fn keep(desk: &Desk, order: Shared, result: Result<Value, ReadError>) {
    desk.outstanding.fetch_sub(1, Ordering::Relaxed);
    let before = mem::replace(&mut lock(&order).promise, Promise::Kept(result));
    // Before the future is woken, so that it finds itself alone with it.
    drop(order);
    if let Promise::Waiting(Some(waker)) = before {
        // A foreign waker that panics must not end the driver, on which other futures wait.
        if catch_unwind(AssertUnwindSafe(|| waker.wake())).is_err() {
            tracing::error!("the waker of a future panicked");
        }
    }
}

/// Promises by the number that the engine knows them by.
#[derive(Default)]
struct Promises {
    slab: Vec<Option<Shared>>,
    free: Vec<usize>,
}

impl Promises {
    fn add(&mut self, promise: Shared) -> u64 {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slab.push(None);
            self.slab.len() - 1
        });
        self.slab[index] = Some(promise);
        index as u64
    }

    fn take(&mut self, user: u64) -> Option<Shared> {
        let promise = self.slab.get_mut(user as usize)?.take();
        self.free.push(user as usize);
        promise
    }
}

/// Ends every promise that is left, however the driver ends.
struct Ending<'d>(&'d Desk, Promises);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        let left = {
            let mut inbox = lock(&self.0.inbox);
            inbox.closing = true;
            mem::take(&mut inbox.wanted)
        };
        let begun = mem::take(&mut self.1.slab);
        for order in begun.into_iter().flatten().chain(left) {
            keep(self.0, order, Err(ReadError::Closed));
        }
    }
}

fn drive(mut engine: Engine, desk: &Desk) {
    let mut ending = Ending(desk, Promises::default());
    let mut wanted = Vec::new();
    let mut idle = Idle::default();
    loop {
        {
            let mut inbox = lock(&desk.inbox);
            if inbox.closing {
                return;
            }
            mem::swap(&mut inbox.wanted, &mut wanted);
        }
        let mut did = !wanted.is_empty();
        let now = boot_ns();
        for order in wanted.drain(..) {
            let user = ending.1.add(Arc::clone(&order));
            submit(&mut engine, &lock(&order), user, now);
        }
        did |= engine.turn();
        while let Some(done) = engine.take_ticket() {
            did = true;
            if let Some(promise) = ending.1.take(done.user) {
                keep(desk, promise, done.result.map(|_| done.value));
            }
        }
        if did {
            idle = Idle::default();
        } else if engine.active() == 0 {
            engine.sleep(boot_ns(), REST_NS);
        } else {
            engine.idle(&mut idle);
        }
    }
}

fn submit(engine: &mut Engine, wanted: &Order, user: u64, now_ns: u64) {
    let key = wanted.has_key.then_some(&*wanted.key);
    let wish = match &wanted.at {
        Some(at) => by_place(engine.dataset_id(), at, key),
        None => Ok((key, None)),
    };
    let (at, refused) = match wish {
        Ok((_, at)) => (at.copied(), None),
        Err(error) => (None, Some(error)),
    };
    let ask = Ask {
        user,
        ticket: true,
        key,
        at,
        want: Want::Slot,
        memory: Memory::None,
        trouble: None,
    };
    engine.submit_or_refuse(ask, refused, now_ns);
}
