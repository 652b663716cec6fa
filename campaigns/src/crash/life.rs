//! The life of one data directory: rounds of changes, each ended by SIGKILL, a restart and a comparison.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fastrand::Rng;

use super::check::{Check, Tally};
use super::model::{MAIN, Model, Wrong};
use super::place::Place;
use super::work::{DATASET, Load, Mark, Round, Writer, churn, read};
use campaigns::Error;
use campaigns::processes::Server;

/// Longest that answers are waited for before the kill comes anyway.
const ANSWERS_PATIENCE: Duration = Duration::from_secs(30);
/// Longest that a call of a client goes on that lives on across a kill.
const SURVIVOR_DEADLINE: Duration = Duration::from_secs(60);
/// A quiet round has so many times the answers of another: few of them are of drops, whose cuts are what it is for.
const QUIET_TIMES: u64 = 2;
/// Longest from the last answer that counts to the kill, us.
const KILL_DELAY_US: u64 = 4000;
/// Servers that are killed while they start, in a round at most.
const STARTS_KILLED_MAX: u64 = 2;
/// Longest that such a server lives, ms.
const START_LIFE_MS: u64 = 80;
/// Of so many rounds one has clients that live on.
const SURVIVED_ONE_IN: u64 = 4;

/// What happened so far.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Totals {
    pub(crate) rounds: u64,
    /// Rounds that clients lived through.
    pub(crate) survived: u64,
    /// Servers killed while they served, and while they started.
    pub(crate) kills: u64,
    pub(crate) starts_killed: u64,
    pub(crate) answered: u64,
    pub(crate) reads: u64,
    /// Segments that compaction was seen to remove.
    pub(crate) removed: u64,
    pub(crate) tally: Tally,
}

impl Totals {
    /// Adds what another life had.
    pub(crate) fn add(&mut self, more: &Self) {
        self.rounds += more.rounds;
        self.survived += more.survived;
        self.kills += more.kills;
        self.starts_killed += more.starts_killed;
        self.answered += more.answered;
        self.reads += more.reads;
        self.removed += more.removed;

        self.add_tally(more.tally);
    }

    fn add_tally(&mut self, more: Tally) {
        let tally = &mut self.tally;
        tally.keys += more.keys;
        tally.done += more.done;
        tally.undone += more.undone;
        tally.retries += more.retries;
    }
}

/// A data directory, its server and who writes to it.
pub(crate) struct Life<'a> {
    place: &'a Place,
    model: &'a Model,
    load: &'a Load,
    mark: Mark<'a>,
    /// Asked to stop between two rounds and while waiting.
    interrupted: &'a AtomicBool,
    rng: Rng,
    writers: Vec<Writer>,
    server: Option<Server>,
    pub(crate) totals: Totals,
}

impl<'a> Life<'a> {
    /// Starts a server on a fresh data directory and creates the dataset.
    pub(crate) fn begin(
        place: &'a Place,
        model: &'a Model,
        load: &'a Load,
        mark: Mark<'a>,
        interrupted: &'a AtomicBool,
    ) -> Result<Self, Error> {
        let mut rng = Rng::with_seed(model.seed());
        let server = place.start()?;
        place
            .session(place.options(SURVIVOR_DEADLINE, None))?
            .create(DATASET)?;
        mark(MAIN)?;
        Ok(Self {
            place,
            model,
            load,
            mark,
            interrupted,
            writers: (0..load.writers)
                .map(|index| Writer::new(index, &mut rng))
                .collect(),
            rng,
            server: Some(server),
            totals: Totals::default(),
        })
    }

    /// Changes, a kill, a restart, a comparison.
    pub(crate) fn round(&mut self) -> Result<(), Error> {
        let survives = self.rng.u64(..SURVIVED_ONE_IN) == 0;
        let round = Round {
            place: self.place,
            model: self.model,
            load: self.load,
            mark: self.mark,
            survives,
            deadline: if survives {
                SURVIVOR_DEADLINE
            } else {
                self.load.deadline
            },
            killed: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            answered: AtomicU64::new(0),
            reads: AtomicU64::new(0),
            removed: AtomicU64::new(0),
        };
        let quiet = self.load.quiet_first && self.totals.rounds == 0;
        let server = self.server.take().ok_or("no server runs")?;

        let wrong: Mutex<Option<Wrong>> = Mutex::new(None);
        let end = |result: Result<(), Wrong>| {
            if let Err(error) = result {
                round.stopped.store(true, Ordering::SeqCst);
                wrong
                    .lock()
                    .unwrap_or_else(std::sync::PoisonError::into_inner)
                    .get_or_insert(error);
            }
        };
        let (mut churning, mut reading) = (self.rng.fork(), self.rng.fork());
        let conducted = std::thread::scope(|scope| {
            if !quiet {
                for writer in &mut self.writers {
                    scope.spawn(|| end(writer.write(&round)));
                }
                scope.spawn(|| end(read(&round, &mut reading)));
            }
            scope.spawn(|| end(churn(&round, &mut churning)));

            let conductor = Conductor {
                round: &round,
                quiet,
                interrupted: self.interrupted,
            };
            let conducted = conductor.conduct(server, &mut self.rng, &mut self.totals);
            round.stopped.store(true, Ordering::SeqCst);
            conducted
        });
        if let Some(wrong) = wrong
            .into_inner()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
        {
            return Err(wrong.into());
        }
        let server = match conducted? {
            Some(server) => server,
            None => self.place.start()?,
        };
        self.totals.answered += round.answered.into_inner();
        self.totals.reads += round.reads.into_inner();
        self.totals.removed += round.removed.into_inner();

        self.totals.rounds += 1;
        self.totals.survived += u64::from(survives);
        let check = Check {
            place: self.place,
            model: self.model,
            mark: self.mark,
        };
        let tally = check.all(&mut self.writers, &mut self.rng)?;
        self.totals.add_tally(tally);
        self.server = Some(server);
        Ok(())
    }

    /// Ends the server as an operator does, and looks for panics in its log.
    pub(crate) fn finish(&mut self) -> Result<(), Error> {
        if let Some(server) = self.server.take() {
            let status = server.terminate()?;
            if !status.success() {
                return Err(format!("kv-server ended with {status} after SIGTERM").into());
            }
        }
        no_panic(self.place)
    }
}

/// Complains of a panic in the server's log.
pub(crate) fn no_panic(place: &Place) -> Result<(), Error> {
    let log = std::fs::read(place.log())?;
    let log = String::from_utf8_lossy(&log);
    match log.lines().find(|line| line.contains("panicked at")) {
        Some(line) => Err(format!("the server's log says: {line}").into()),
        None => Ok(()),
    }
}

/// Decides when the server dies.
struct Conductor<'a> {
    round: &'a Round<'a>,
    quiet: bool,
    interrupted: &'a AtomicBool,
}

impl Conductor<'_> {
    fn conduct(&self, server: Server, rng: &mut Rng, totals: &mut Totals) -> Result<Option<Server>, Error> {
        let round = self.round;
        let times = if self.quiet { QUIET_TIMES } else { 1 };
        let first = times * rng.u64(round.load.answers_max / 2..=round.load.answers_max);

        self.await_answers(first);
        std::thread::sleep(Duration::from_micros(rng.u64(..KILL_DELAY_US)));
        round.killed.store(true, Ordering::SeqCst);
        killed(server.kill()?)?;
        totals.kills += 1;
        for _ in 0..rng.u64(..=STARTS_KILLED_MAX) {
            let starting = round.place.spawn()?;
            std::thread::sleep(Duration::from_millis(rng.u64(..START_LIFE_MS)));
            killed(starting.kill()?)?;
            totals.starts_killed += 1;
        }
        if !round.survives {
            return Ok(None);
        }
        let server = round.place.start()?;
        self.await_answers(first + rng.u64(..=round.load.answers_max));
        Ok(Some(server))
    }

    fn await_answers(&self, count: u64) {
        let round = self.round;
        let deadline = Instant::now() + ANSWERS_PATIENCE;
        while round.answered.load(Ordering::SeqCst) < count
            && Instant::now() < deadline
            && !round.stopped.load(Ordering::SeqCst)
            && !self.interrupted.load(Ordering::SeqCst)
        {
            std::thread::sleep(Duration::from_micros(200));
        }
    }
}

/// A server ends by SIGKILL, not by itself before.
fn killed(status: ExitStatus) -> Result<(), Error> {
    if status.signal() == Some(rustix::process::Signal::KILL.as_raw()) {
        return Ok(());
    }
    Err(format!("kv-server ended by itself, with {status}, before it was killed").into())
}
