//! An end by a signal: what this program started ends with it, and the folders go that it made, which hold gigabytes.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::{fs, io, process, thread};

use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tempfile::TempDir;

/// Longest wait for processes that were asked to end.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks at them.
const STEP: Duration = Duration::from_millis(20);

static FOLDERS: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());
static ENDING: AtomicBool = AtomicBool::new(false);

/// Has a folder removed at an end by a signal too.
#[must_use]
pub fn noted(folder: TempDir) -> TempDir {
    let path = folder.path().to_owned();
    FOLDERS.lock().unwrap_or_else(PoisonError::into_inner).push(path);
    folder
}

/// Ends this process at the first SIGHUP, SIGINT or SIGTERM from now on, but for those that whoever started it has it ignore,
/// as `nohup` does.
///
/// # Errors
/// If no handler or thread can be had.
pub fn listen() -> io::Result<()> {
    let ignored = ignored();
    let signals = [SIGHUP, SIGINT, SIGTERM].into_iter();
    let mut signals = Signals::new(signals.filter(|signal| ignored >> (signal - 1) & 1 == 0))?;
    let listen = move || {
        let Some(signal) = signals.forever().next() else {
            return;
        };
        ENDING.store(true, Ordering::SeqCst);
        end_descendants();
        for folder in FOLDERS.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            // One that is not there any more was removed before.
            let _ = fs::remove_dir_all(folder);
        }
        process::exit(128 + signal);
    };
    thread::Builder::new().name("signals".into()).spawn(listen)?;
    Ok(())
}

/// The signals that this process ignores, a bit for each.
fn ignored() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or_default()
}

/// Waits for an end that has begun: what the caller would say, such as that its server is gone, comes of that.
pub fn or_end() {
    while ENDING.load(Ordering::SeqCst) {
        thread::park();
    }
}

/// Asks all that descend from this process to end, and ends what does not.
fn end_descendants() {
    let deadline = Instant::now() + PATIENCE;
    let mut asked = HashSet::new();
    loop {
        let left = descendants();
        let late = Instant::now() >= deadline;
        for &pid in &left {
            if late {
                let _ = kill_process(pid, Signal::KILL);
            } else if asked.insert(pid) {
                let _ = kill_process(pid, Signal::TERM);
            }
        }
        if late || left.is_empty() {
            return;
        }
        thread::sleep(STEP);
    }
}

/// Those that run.
fn descendants() -> Vec<Pid> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let parents: Vec<(i32, i32)> = entries
        .filter_map(|entry| {
            let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
            // proc(5): number, name in parentheses, state, number of the parent.
            let (number, rest) = stat.split_once(" (")?;
            let mut fields = rest.rsplit_once(") ")?.1.split(' ');
            let ended = matches!(fields.next()?, "Z" | "X");
            (!ended).then_some(())?;
            Some((number.parse().ok()?, fields.next()?.parse().ok()?))
        })
        .collect();
    let mut found = vec![process::id() as i32];
    let mut at = 0;
    while at < found.len() {
        let parent = found[at];
        let children = parents.iter().filter(|(_, of)| *of == parent);
        found.extend(children.map(|(number, _)| number));
        at += 1;
    }
    found[1..].iter().filter_map(|&pid| Pid::from_raw(pid)).collect()
}
