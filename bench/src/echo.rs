//! What it costs to answer a frame: a bare echo of one SEND over `rdma-core-rs`, by a thread that sleeps in between, beside
//! which a server's answer to a lease renewal stands.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rdma_core_rs as rdma;
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::raw::{End, FRAMES, connect};

/// As often as a client renews a lease of the default length, so that caches are as cold.
const PERIOD: Duration = Duration::from_secs(5);
/// Longest wait for an echo.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the echoing thread was seen to take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Echoed {
    /// Echoes that were counted.
    pub(crate) echoes: u64,
    /// Time on a processor that the echoing thread took for them, us.
    pub(crate) cpu_us: f64,
}

impl Echoed {
    /// Time on a processor of one, us.
    pub(crate) fn each_us(&self) -> f64 {
        self.cpu_us / self.echoes.max(1) as f64
    }
}

/// An echo now and then, until it is ended.
pub(crate) struct Echo {
    stop: Sender<()>,
    asking: JoinHandle<Result<End, String>>,
    answering: JoinHandle<Result<Echoed, String>>,
}

impl Echo {
    /// Begins on the device of this name; the first echo, with which nothing is warm, is not counted.
    pub(crate) fn start(device: &str) -> Result<Self, Error> {
        let context = rdma::Context::open(device)?;
        let pd = rdma::ProtectionDomain::new(&context)?;
        let (asks, answers) = (End::new(&pd, &context)?, End::new(&pd, &context)?);
        connect(&asks.qp, &answers.qp, rdma::Access::NONE)?;
        connect(&answers.qp, &asks.qp, rdma::Access::NONE)?;
        let (stop, stopped) = channel();
        let (over, ended) = channel();
        Ok(Self {
            stop,
            answering: std::thread::spawn(move || answers.answer(&ended).map_err(|error| error.to_string())),
            asking: std::thread::spawn(move || {
                let asked = asks.ask(&stopped);
                // Who answers looks when it is woken once more.
                drop(over);
                let told = asked.and_then(|()| asks.send());
                told.map(|()| asks).map_err(|error| error.to_string())
            }),
        })
    }

    /// Ends it; what was counted.
    pub(crate) fn finish(self) -> Result<Echoed, Error> {
        drop(self.stop);
        let ended = |what| move |_| format!("the thread that {what} panicked");
        // Kept until what it sent last has arrived.
        let _asks = self.asking.join().map_err(ended("asks for echoes"))??;
        Ok(self.answering.join().map_err(ended("echoes"))??)
    }
}

impl End {
    /// Takes what completed on `queue`; how many they were.
    fn take(queue: &rdma::CompletionQueue) -> Result<usize, Error> {
        let mut completions = [rdma::WorkCompletion::default(); FRAMES as usize];
        let taken = queue.poll(&mut completions)?;
        match taken.iter().find(|completion| !completion.status().is_success()) {
            Some(bad) => Err(format!("an echo ended with {}", bad.status()).into()),
            None => Ok(taken.len()),
        }
    }

    /// Sleeps until a frame arrives and takes it.
    fn wait(&self) -> Result<(), Error> {
        let deadline = Instant::now() + PERIOD + PATIENCE;
        self.arrived.arm(false)?;
        while Self::take(&self.arrived)? == 0 {
            if self.wakes.wait_event(deadline)?.is_none() {
                return Err(format!("no echo within {PATIENCE:?}").into());
            }
            self.arrived.arm(false)?;
        }
        Ok(())
    }

    /// Asks for an echo at once, and again each [`PERIOD`] until it is to stop.
    fn ask(&self, stopped: &Receiver<()>) -> Result<(), Error> {
        loop {
            self.receive()?;
            self.send()?;
            self.wait()?;
            Self::take(&self.sent)?;
            match stopped.recv_timeout(PERIOD) {
                Err(RecvTimeoutError::Timeout) => {}
                Ok(()) | Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
        }
    }

    /// Answers each frame with one, as long as there are some.
    fn answer(&self, ended: &Receiver<()>) -> Result<Echoed, Error> {
        for _ in 0..FRAMES - 1 {
            self.receive()?;
        }
        let mut echoed = Echoed::default();
        let mut began_us = None;
        loop {
            self.wait()?;
            if ended.try_recv() == Err(std::sync::mpsc::TryRecvError::Disconnected) {
                return Ok(echoed);
            }
            self.receive()?;
            self.send()?;
            Self::take(&self.sent)?;
            match began_us {
                None => began_us = Some(thread_us()),
                Some(began_us) => {
                    echoed.echoes += 1;
                    echoed.cpu_us = thread_us() - began_us;
                }
            }
        }
    }
}

/// Time on a processor of this thread so far, us.
fn thread_us() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 * 1e6 + time.tv_nsec as f64 / 1e3
}
