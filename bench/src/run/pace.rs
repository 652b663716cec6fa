//! Asking, and taking the time: one call after the other, or each at its own moment.
//!
//! A closed loop times calls and nothing else: values are compared between them. An open loop has moments at which GETs
//! are to begin, drawn beforehand; the latency of one counts from its moment, whether or not anybody was free to ask
//! then, so a slow call is seen in every GET that it held up (no coordinated omission). What its checks take holds up
//! what is due, as any other work of its thread. A getter with tickets begins what is due while earlier GETs are under
//! way; one without makes a call of what is due.

use std::sync::Barrier;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use rustix::time::{ClockId, clock_gettime};

use super::values::hash;
use crate::Error;

/// Latencies are kept to three digits, up to a minute.
const LATENCY_MAX_NS: u64 = 60_000_000_000;
/// Nearer than this to a moment nobody sleeps.
const SPIN: Duration = Duration::from_micros(200);
/// One part of the GETs of a block in so many is repeated to see what they cost the processor.
const CPU_SHARE: usize = 4;

/// Something that values can be got from. One belongs to one thread.
pub(crate) trait Getter {
    /// Makes ready what a caller would have at hand; not timed in a closed loop.
    fn prepare(&mut self, batch: &[u32]) {
        let _ = batch;
    }

    /// Gets these values; they lie there until the next call.
    fn get(&mut self, batch: &[u32]) -> Result<(), Error>;

    /// Lets `judge` look at the bytes of the `at`-th value of the last call; what it says.
    fn look(&self, at: usize, judge: &mut dyn FnMut(&[u8]) -> bool) -> Result<bool, Error>;

    /// How many GETs may be under way by [`Getter::begin`]; none where there is no such way.
    fn tickets(&self) -> Option<usize> {
        None
    }

    /// Begins a GET, the `number`-th, and waits for nothing.
    fn begin(&mut self, index: u32, number: usize) -> Result<(), Error> {
        let _ = (index, number);
        Err("this side has no tickets".into())
    }

    /// Has what was begun go on; `take` is given the number and the value of a GET that is done.
    fn go_on(&mut self, take: &mut dyn FnMut(usize, &[u8])) -> Result<(), Error> {
        let _ = take;
        Err("this side has no tickets".into())
    }
}

/// What one thread, or all of a block, measured.
pub(crate) struct Tally {
    /// Time of calls, or of GETs from their moments, ns.
    pub(crate) latency: Histogram<u64>,
    /// GETs.
    pub(crate) gets: u64,
    /// GETs a second: inside calls where the loop is closed, altogether where it is open.
    pub(crate) gets_s: f64,
    /// When the first call began and the last had ended.
    pub(crate) span: (Instant, Instant),
    /// Calls.
    pub(crate) calls: u64,
    /// Values compared in the timed pass.
    pub(crate) checked: u64,
    /// Of those, what was not right.
    pub(crate) wrong: u64,
    /// Time on a processor inside calls of an open loop, where it is asked for.
    cpu: Option<Duration>,
    /// Time on a processor of the asking threads, us for each GET; of an open loop without its waits.
    pub(crate) cpu_us_per_get: f64,
    /// GETs that were repeated to see that, in the same loop.
    pub(crate) repeated: u64,
}

impl<G: Getter + ?Sized> Getter for Box<G> {
    fn prepare(&mut self, batch: &[u32]) {
        (**self).prepare(batch);
    }

    fn get(&mut self, batch: &[u32]) -> Result<(), Error> {
        (**self).get(batch)
    }

    fn look(&self, at: usize, judge: &mut dyn FnMut(&[u8]) -> bool) -> Result<bool, Error> {
        (**self).look(at, judge)
    }

    fn tickets(&self) -> Option<usize> {
        (**self).tickets()
    }

    fn begin(&mut self, index: u32, number: usize) -> Result<(), Error> {
        (**self).begin(index, number)
    }

    fn go_on(&mut self, take: &mut dyn FnMut(usize, &[u8])) -> Result<(), Error> {
        (**self).go_on(take)
    }
}

/// How a block is run.
#[derive(Clone, Copy)]
pub(crate) struct Run<'a> {
    /// GETs of one call, at most.
    pub(crate) batch: usize,
    /// GETs a second of all threads; none for a closed loop.
    pub(crate) rate: Option<f64>,
    /// What the moments of an open loop are drawn from.
    pub(crate) seed: u64,
    /// Hash of each value, where they are compared.
    pub(crate) hashes: Option<&'a [u64]>,
}

/// Waits for the other threads when it is dropped, so that none waits for ever for one that failed.
struct Together<'a>(&'a Barrier);

impl Drop for Together<'_> {
    fn drop(&mut self) {
        self.0.wait();
    }
}

/// A histogram of latencies.
pub(crate) fn histogram() -> Result<Histogram<u64>, Error> {
    Ok(Histogram::new_with_bounds(1, LATENCY_MAX_NS, 3)?)
}

impl Run<'_> {
    /// Runs `list` over `getters`, a thread each.
    pub(crate) fn run<G: Getter + Send>(&self, getters: &mut [G], list: &[u32]) -> Result<Tally, Error> {
        let share = list.len().div_ceil(getters.len().max(1)).max(1);
        let together = Barrier::new(getters.len().min(list.len().div_ceil(share)));
        let rate = self.rate.map(|rate| rate / getters.len() as f64);
        let tallies: Vec<Result<Tally, String>> = std::thread::scope(|scope| {
            let mut threads = Vec::new();
            for (number, (getter, part)) in getters.iter_mut().zip(list.chunks(share)).enumerate() {
                let together = &together;
                threads.push(scope.spawn(move || {
                    let outcome = self.thread(getter, part, rate, number as u64, together);
                    outcome.map_err(|error| error.to_string())
                }));
            }
            let join = |thread: std::thread::ScopedJoinHandle<'_, _>| {
                thread
                    .join()
                    .unwrap_or_else(|_| Err("a thread that measures panicked".to_owned()))
            };
            threads.into_iter().map(join).collect()
        });
        let mut sum: Option<Tally> = None;
        for tally in tallies {
            let tally = tally?;
            sum = Some(match sum {
                None => tally,
                Some(sum) => sum.and(tally)?,
            });
        }
        sum.ok_or_else(|| "nothing was asked for".into())
    }

    fn thread<G: Getter>(
        &self,
        getter: &mut G,
        list: &[u32],
        rate: Option<f64>,
        number: u64,
        together: &Barrier,
    ) -> Result<Tally, Error> {
        let mut tally = Tally::new(list)?;
        together.wait();
        {
            // Nobody repeats anything while another is timed.
            let _timed = Together(together);
            let began = Instant::now();
            match rate {
                None => self.closed(getter, list, &mut tally)?,
                Some(rate) => self.open(getter, list, &self.moments(list, rate, number), &mut tally)?,
            }
            tally.span = (began, Instant::now());
        }
        // A repetition without checks tells the time on a processor, whose clock is slow to read.
        let part = &list[..list.len().div_ceil(CPU_SHARE)];
        let again = Run {
            hashes: None,
            ..*self
        };
        let taken = match rate {
            None => again.cpu_of_closed(getter, part)?,
            Some(rate) => {
                let mut scratch = Tally::new(part)?;
                scratch.cpu = Some(Duration::ZERO);
                again.open(getter, part, &self.moments(part, rate, number), &mut scratch)?;
                scratch.cpu.unwrap_or_default()
            }
        };
        tally.cpu_us_per_get = taken.as_secs_f64() * 1e6 / part.len() as f64;
        tally.repeated = part.len() as u64;
        Ok(tally)
    }

    fn moments(&self, list: &[u32], rate: f64, number: u64) -> Vec<Duration> {
        let seed = self.seed ^ (number + 1).wrapping_mul(0x9e37_79b9);
        moments(list.len(), rate, seed)
    }

    fn closed<G: Getter>(&self, getter: &mut G, list: &[u32], tally: &mut Tally) -> Result<(), Error> {
        let mut inside = Duration::ZERO;
        for batch in list.chunks(self.batch) {
            getter.prepare(batch);
            let started = Instant::now();
            getter.get(batch)?;
            let took = started.elapsed();
            inside += took;
            tally.calls += 1;
            tally.latency.saturating_record(took.as_nanos() as u64);
            self.check(getter, batch, tally)?;
        }
        tally.gets_s = list.len() as f64 / inside.as_secs_f64();
        Ok(())
    }

    fn cpu_of_closed<G: Getter>(&self, getter: &mut G, list: &[u32]) -> Result<Duration, Error> {
        let before = thread_cpu();
        for batch in list.chunks(self.batch) {
            getter.prepare(batch);
            getter.get(batch)?;
        }
        Ok(thread_cpu() - before)
    }

    fn open<G: Getter>(
        &self,
        getter: &mut G,
        list: &[u32],
        moments: &[Duration],
        tally: &mut Tally,
    ) -> Result<(), Error> {
        let began = Instant::now();
        match getter.tickets() {
            None => self.open_by_calls(getter, list, moments, tally, began)?,
            Some(most) => self.open_by_tickets(getter, list, moments, tally, began, most)?,
        }
        tally.gets_s = list.len() as f64 / began.elapsed().as_secs_f64();
        Ok(())
    }

    fn open_by_calls<G: Getter>(
        &self,
        getter: &mut G,
        list: &[u32],
        moments: &[Duration],
        tally: &mut Tally,
        began: Instant,
    ) -> Result<(), Error> {
        let mut done = 0;
        while done < list.len() {
            wait_until(began + moments[done]);
            let busy = tally.busy();
            let now = began.elapsed();
            let due = moments[done..]
                .iter()
                .take(self.batch)
                .take_while(|moment| **moment <= now);
            let batch = &list[done..done + due.count().max(1)];
            getter.prepare(batch);
            getter.get(batch)?;
            let ended = began.elapsed();
            tally.idle(busy);
            tally.calls += 1;
            for moment in &moments[done..done + batch.len()] {
                tally.record(ended - *moment);
            }
            self.check(getter, batch, tally)?;
            done += batch.len();
        }
        Ok(())
    }

    /// With up to `most` GETs under way, each begun when it is due.
    fn open_by_tickets<G: Getter>(
        &self,
        getter: &mut G,
        list: &[u32],
        moments: &[Duration],
        tally: &mut Tally,
        began: Instant,
        most: usize,
    ) -> Result<(), Error> {
        let (mut next, mut done) = (0, 0);
        while done < list.len() {
            wait_until(began + moments[next]);
            let busy = tally.busy();
            // Until nothing is under way: only then does the thread wait for a moment.
            loop {
                let now = began.elapsed();
                while next < list.len() && moments[next] <= now && next - done < most {
                    getter.begin(list[next], next)?;
                    next += 1;
                }
                getter.go_on(&mut |number, bytes| {
                    tally.record(began.elapsed() - moments[number]);
                    if let Some(hashes) = self.hashes {
                        tally.checked += 1;
                        tally.wrong += u64::from(hash(bytes) != hashes[list[number] as usize]);
                    }
                    done += 1;
                })?;
                if done == next {
                    break;
                }
            }
            tally.idle(busy);
        }
        tally.calls = list.len() as u64;
        Ok(())
    }

    fn check<G: Getter>(&self, getter: &G, batch: &[u32], tally: &mut Tally) -> Result<(), Error> {
        let Some(hashes) = self.hashes else { return Ok(()) };
        for (at, &index) in batch.iter().enumerate() {
            let right = getter.look(at, &mut |bytes| hash(bytes) == hashes[index as usize])?;
            tally.checked += 1;
            tally.wrong += u64::from(!right);
        }
        Ok(())
    }
}

impl Tally {
    fn new(list: &[u32]) -> Result<Self, Error> {
        let now = Instant::now();
        Ok(Self {
            latency: histogram()?,
            gets: list.len() as u64,
            gets_s: 0.0,
            span: (now, now),
            calls: 0,
            checked: 0,
            wrong: 0,
            cpu: None,
            cpu_us_per_get: 0.0,
            repeated: 0,
        })
    }

    fn record(&mut self, took: Duration) {
        self.latency.saturating_record(took.as_nanos() as u64);
    }

    /// Begins to count time on a processor, where that is wanted.
    fn busy(&self) -> Duration {
        self.cpu.map_or(Duration::ZERO, |_| thread_cpu())
    }

    /// Counts what was taken since [`Tally::busy`].
    fn idle(&mut self, busy: Duration) {
        if let Some(cpu) = &mut self.cpu {
            *cpu += thread_cpu() - busy;
        }
    }

    /// GETs a second from the first call of any thread to the end of the last.
    pub(crate) fn wall_gets_s(&self) -> f64 {
        self.gets as f64 / (self.span.1 - self.span.0).as_secs_f64()
    }

    /// Of two threads that ran beside each other.
    fn and(mut self, other: Self) -> Result<Self, Error> {
        let gets = (self.gets + other.gets) as f64;
        let cpu = self.cpu_us_per_get * self.gets as f64 + other.cpu_us_per_get * other.gets as f64;
        self.latency.add(other.latency)?;
        self.cpu_us_per_get = cpu / gets;
        self.gets += other.gets;
        self.calls += other.calls;
        self.span = (self.span.0.min(other.span.0), self.span.1.max(other.span.1));
        self.repeated += other.repeated;
        self.gets_s += other.gets_s;
        self.checked += other.checked;
        self.wrong += other.wrong;
        Ok(self)
    }
}

/// When each of `count` GETs is to begin, at `rate` a second on average and at random.
fn moments(count: usize, rate: f64, seed: u64) -> Vec<Duration> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut at = 0.0;
    let next = |_| {
        // From 0 to below 1, so the logarithm is that of something above 0.
        at -= (1.0 - random.f64()).ln() / rate;
        Duration::from_secs_f64(at)
    };
    (0..count).map(next).collect()
}

fn wait_until(moment: Instant) {
    loop {
        let left = moment.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        match left.checked_sub(SPIN) {
            Some(sleep) if !sleep.is_zero() => std::thread::sleep(sleep),
            _ => std::hint::spin_loop(),
        }
    }
}

fn thread_cpu() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values are their numbers; `held_up` makes one call slow.
    struct Numbers {
        got: Vec<u32>,
        calls: usize,
        held_up: Option<(usize, Duration)>,
        broken: Option<u32>,
    }

    impl Numbers {
        fn new() -> Self {
            Self {
                got: Vec::new(),
                calls: 0,
                held_up: None,
                broken: None,
            }
        }
    }

    impl Getter for Numbers {
        fn get(&mut self, batch: &[u32]) -> Result<(), Error> {
            if let Some((_, long)) = self.held_up.filter(|(call, _)| *call == self.calls) {
                std::thread::sleep(long);
            }
            self.calls += 1;
            self.got.clear();
            self.got.extend_from_slice(batch);
            Ok(())
        }

        fn look(&self, at: usize, judge: &mut dyn FnMut(&[u8]) -> bool) -> Result<bool, Error> {
            let value = self.got[at] + u32::from(self.broken == Some(self.got[at]));
            Ok(judge(&value.to_le_bytes()))
        }
    }

    fn hashes() -> Vec<u64> {
        (0..1000_u32).map(|index| hash(&index.to_le_bytes())).collect()
    }

    #[test]
    fn every_value_is_got_and_compared_by_some_thread() {
        let hashes = hashes();
        let list: Vec<u32> = (0..1000).collect();
        let run = Run {
            batch: 7,
            rate: None,
            seed: 1,
            hashes: Some(&hashes),
        };
        let mut getters = [Numbers::new(), Numbers::new(), Numbers::new()];
        let tally = run.run(&mut getters, &list).unwrap();
        assert_eq!((tally.gets, tally.checked, tally.wrong), (1000, 1000, 0));
        // 334, 334 and 332 values in calls of 7.
        assert_eq!(tally.latency.len(), 48 + 48 + 48);
        getters[1].broken = Some(400);
        assert_eq!(run.run(&mut getters, &list).unwrap().wrong, 1);
        let unchecked = Run { hashes: None, ..run };
        assert_eq!(unchecked.run(&mut getters, &list).unwrap().checked, 0);
    }

    #[test]
    fn what_a_slow_call_holds_up_counts_from_its_moment() {
        let list: Vec<u32> = (0..1000).collect();
        let mut getters = [Numbers {
            held_up: Some((10, Duration::from_millis(300))),
            ..Numbers::new()
        }];
        let run = Run {
            batch: 4,
            rate: Some(2000.0),
            seed: 1,
            hashes: None,
        };
        let tally = run.run(&mut getters, &list).unwrap();
        assert_eq!(tally.latency.len(), 1000);
        // Some 600 GETs were due while one call took 300 ms; a clock that starts with the call would see 4 slow ones.
        let slow = tally.latency.count_between(20_000_000, u64::MAX);
        assert!(slow > 300, "{slow} GETs waited longer than 20 ms");
    }

    /// GETs that end two rounds after they began.
    struct Slow {
        under_way: std::collections::VecDeque<(usize, u32, u32)>,
        most: usize,
    }

    impl Getter for Slow {
        fn get(&mut self, _: &[u32]) -> Result<(), Error> {
            Err("by tickets alone".into())
        }

        fn look(&self, _: usize, _: &mut dyn FnMut(&[u8]) -> bool) -> Result<bool, Error> {
            Err("by tickets alone".into())
        }

        fn tickets(&self) -> Option<usize> {
            Some(8)
        }

        fn begin(&mut self, index: u32, number: usize) -> Result<(), Error> {
            self.under_way.push_back((number, index, 2));
            self.most = self.most.max(self.under_way.len());
            Ok(())
        }

        fn go_on(&mut self, take: &mut dyn FnMut(usize, &[u8])) -> Result<(), Error> {
            self.under_way.iter_mut().for_each(|(_, _, rounds)| *rounds -= 1);
            while let Some((number, index, 0)) = self.under_way.front().copied() {
                self.under_way.pop_front();
                take(number, &index.to_le_bytes());
            }
            Ok(())
        }
    }

    #[test]
    fn with_tickets_what_is_due_begins_while_others_are_under_way() {
        let (hashes, list) = (hashes(), (0..1000).collect::<Vec<u32>>());
        // All are due at once: as many are under way as may be.
        let run = Run {
            batch: 1,
            rate: Some(1e9),
            seed: 1,
            hashes: Some(&hashes),
        };
        let mut getters = [Slow {
            under_way: std::collections::VecDeque::new(),
            most: 0,
        }];
        let tally = run.run(&mut getters, &list).unwrap();
        assert_eq!(
            (tally.gets, tally.checked, tally.wrong, tally.latency.len()),
            (1000, 1000, 0, 1000)
        );
        assert_eq!((getters[0].most, tally.repeated), (8, 250));
    }

    /// A repetition in a closed loop would say what full calls cost; what ran were calls of what was due.
    #[test]
    fn the_time_on_a_processor_is_of_the_calls_that_an_open_loop_makes() {
        let list: Vec<u32> = (0..80).collect();
        let mut getters = [Numbers::new()];
        let run = Run {
            batch: 20,
            rate: Some(100.0),
            seed: 1,
            hashes: None,
        };
        let tally = run.run(&mut getters, &list).unwrap();
        assert_eq!(tally.repeated, 20);
        // A closed loop makes one call of 20; GETs that are due one after the other in 200 ms are not one call.
        let again = getters[0].calls as u64 - tally.calls;
        assert!(again > 1, "{} calls, {again} repeated", tally.calls);
        // Nor is the wait for their moments counted, of which 200 us each are spun.
        assert!(tally.cpu_us_per_get < 100.0, "{} us", tally.cpu_us_per_get);
    }

    #[test]
    fn threads_that_take_turns_have_the_time_of_the_clock() {
        let list: Vec<u32> = (0..200).collect();
        let slow = || Numbers {
            held_up: Some((0, Duration::from_millis(100))),
            ..Numbers::new()
        };
        let run = Run {
            batch: 1,
            rate: None,
            seed: 1,
            hashes: None,
        };
        let tally = run.run(&mut [slow(), slow()], &list).unwrap();
        assert_eq!((tally.gets, tally.calls), (200, 200));
        // Whatever each had to itself, both were at it for 100 ms at least.
        assert!(tally.wall_gets_s() <= 2000.0 && tally.wall_gets_s() <= tally.gets_s);
    }

    #[test]
    fn a_thread_that_fails_holds_nobody_up() {
        struct Fails(bool);
        impl Getter for Fails {
            fn get(&mut self, _: &[u32]) -> Result<(), Error> {
                if self.0 { Err("broken".into()) } else { Ok(()) }
            }

            fn look(&self, _: usize, _: &mut dyn FnMut(&[u8]) -> bool) -> Result<bool, Error> {
                Ok(true)
            }
        }
        let list: Vec<u32> = (0..20).collect();
        let run = Run {
            batch: 1,
            rate: None,
            seed: 1,
            hashes: None,
        };
        assert!(run.run(&mut [Fails(true), Fails(false)], &list).is_err());
    }

    #[test]
    fn moments_come_at_the_rate() {
        let moments = moments(10_000, 1000.0, 5);
        assert!(moments.is_sorted());
        let last = moments.last().unwrap().as_secs_f64();
        assert!((9.5..10.5).contains(&last), "{last}");
    }
}
