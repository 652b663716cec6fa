//! How far a long command is: a bar on a terminal, a line every few seconds elsewhere.

use std::io::{self, IsTerminal, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::output::{NAMED_MAX, PROBLEMS_KEPT_MAX, clock, say, size};

/// Between two lines where stderr is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);
/// Between two looks at the counts for the bar.
const BAR_EVERY: Duration = Duration::from_millis(100);

/// What stands right of the verb on the bar.
const TEMPLATE: &str =
    "{wide_bar} {msg}  {decimal_bytes}/{decimal_total_bytes}  {decimal_bytes_per_sec}  {eta} left";

/// A longer time left than this is a bad guess and is not shown.
const GUESS_MAX_SECONDS: f64 = 100.0 * 3600.0;

#[derive(Debug, Default)]
struct Counts {
    items: AtomicU64,
    bytes: AtomicU64,
    problems: AtomicU64,
}

/// The display of one command's progress; ends when it is dropped.
pub(crate) struct Progress {
    counts: Arc<Counts>,
    bar: Option<ProgressBar>,
    ticker: Option<(Sender<()>, JoinHandle<()>)>,
}

impl Progress {
    /// Shows the progress of `verb` (`storing`) over so many items and bytes, unless `quiet`.
    pub(crate) fn new(verb: &'static str, items: u64, bytes: u64, quiet: bool) -> Self {
        let counts = Arc::new(Counts::default());
        if quiet {
            return Self {
                counts,
                bar: None,
                ticker: None,
            };
        }
        let total = Total {
            verb,
            items,
            bytes,
            started: Instant::now(),
        };
        let bar = io::stderr().is_terminal().then(|| bar(&total));
        let (end, ended) = channel();
        let (shared, drawn) = (counts.clone(), bar.clone());
        let every = if bar.is_some() { BAR_EVERY } else { LINE_EVERY };
        let thread = thread::spawn(move || {
            while let Err(RecvTimeoutError::Timeout) = ended.recv_timeout(every) {
                let (items, bytes) = (
                    shared.items.load(Ordering::Relaxed),
                    shared.bytes.load(Ordering::Relaxed),
                );
                match &drawn {
                    Some(bar) => {
                        bar.set_position(bytes);
                        bar.set_message(format!("{items}/{}", total.items));
                    }
                    None => say(total.line(items, bytes, total.started.elapsed())),
                }
            }
        });
        Self {
            counts,
            bar,
            ticker: Some((end, thread)),
        }
    }

    /// So many more bytes are done.
    pub(crate) fn bytes(&self, bytes: u64) {
        self.counts.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// So many bytes were reported and must be done again.
    pub(crate) fn take_back(&self, bytes: u64) {
        self.counts.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// One more item is done.
    pub(crate) fn item(&self) {
        self.counts.items.fetch_add(1, Ordering::Relaxed);
    }

    /// What was done so far, as a number that changes with it.
    pub(crate) fn reached(&self) -> (u64, u64) {
        let counts = &self.counts;
        (
            counts.items.load(Ordering::Relaxed),
            counts.bytes.load(Ordering::Relaxed),
        )
    }

    /// A line on stderr, above the bar, for something that is wrong; of many only the first ones.
    pub(crate) fn problem(&self, text: &str) {
        let before = self.counts.problems.fetch_add(1, Ordering::Relaxed);
        if before > NAMED_MAX {
            return;
        }
        let more = || {
            format!(
                "kv: more of this kind is counted and not named (--json FILE has the first {PROBLEMS_KEPT_MAX})"
            )
        };
        let text = if before < NAMED_MAX { text } else { &more() };
        match &self.bar {
            Some(bar) => bar.suspend(|| say(text)),
            None => say(text),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some((end, thread)) = self.ticker.take() {
            drop(end);
            let _ = thread.join();
        }
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn bar(total: &Total) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(total.bytes), ProgressDrawTarget::stderr());
    let template = format!("{} {TEMPLATE}", total.verb);
    if let Ok(style) = ProgressStyle::with_template(&template) {
        bar.set_style(style);
    }
    bar
}

struct Total {
    verb: &'static str,
    items: u64,
    bytes: u64,
    started: Instant,
}

impl Total {
    fn line(&self, items: u64, bytes: u64, elapsed: Duration) -> String {
        let rate = bytes as f64 / elapsed.as_secs_f64().max(0.001);
        let left = self.bytes.saturating_sub(bytes) as f64;
        let left = match left / rate {
            seconds if seconds < GUESS_MAX_SECONDS => {
                format!(", {} left", clock(Duration::from_secs_f64(seconds)))
            }
            _ => String::new(),
        };
        format!(
            "{} {items}/{}, {} of {}, {}/s{left}",
            self.verb,
            self.items,
            size(bytes),
            size(self.bytes),
            size(rate as u64)
        )
    }
}

/// Reports what is read through it.
pub(crate) struct Counted<'a, R> {
    source: R,
    progress: &'a Progress,
    reported: u64,
}

impl<'a, R: Read> Counted<'a, R> {
    pub(crate) fn new(source: R, progress: &'a Progress) -> Self {
        Self {
            source,
            progress,
            reported: 0,
        }
    }

    /// Bytes reported so far.
    pub(crate) fn reported(&self) -> u64 {
        self.reported
    }
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.source.read(buffer)?;
        self.progress.bytes(count as u64);
        self.reported += count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_counts_rate_and_time_left() {
        let total = Total {
            verb: "storing",
            items: 10,
            bytes: 4_000_000,
            started: Instant::now(),
        };
        assert_eq!(
            total.line(3, 1_000_000, Duration::from_secs(2)),
            "storing 3/10, 1.0 MB of 4.0 MB, 500.0 kB/s, 6 s left"
        );
        assert_eq!(
            total.line(0, 0, Duration::ZERO),
            "storing 0/10, 0 B of 4.0 MB, 0 B/s"
        );
        // A rate that says nothing of the time left.
        assert_eq!(
            total.line(1, 1, Duration::from_secs(5)),
            "storing 1/10, 1 B of 4.0 MB, 0 B/s"
        );
    }

    #[test]
    fn the_bar_takes_its_template() {
        let total = Total {
            verb: "storing",
            items: 1,
            bytes: 0,
            started: Instant::now(),
        };
        assert!(ProgressStyle::with_template(TEMPLATE).is_ok());
        bar(&total).finish_and_clear();
    }
}
