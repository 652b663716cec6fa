//! Text for people: sizes, times, tables; and writing that never panics.

use std::fmt::Display;
use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use crate::failure::Failure;

/// Most things of one kind that are named one by one on stderr.
pub(crate) const NAMED_MAX: u64 = 100;
/// Problems that a report holds; all of them are counted.
pub(crate) const PROBLEMS_KEPT_MAX: usize = 1000;

/// Says that so many things of a kind were named.
pub(crate) fn named_above(count: u64) -> String {
    match count > NAMED_MAX {
        true => "the first ones named above".to_owned(),
        false => "named above".to_owned(),
    }
}

/// A line on stderr for each of `things`, but only the first ones of many.
pub(crate) fn say_some<T: Display>(what: &str, things: impl ExactSizeIterator<Item = T>) {
    let more = (things.len() as u64).saturating_sub(NAMED_MAX);
    things
        .take(NAMED_MAX as usize)
        .for_each(|thing| say(format_args!("{what}{thing}")));
    if more > 0 {
        say(format_args!("{what}{more} more"));
    }
}

/// A line on stderr; a closed stderr is nobody's loss.
pub(crate) fn say(text: impl Display) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// A line on stdout.
pub(crate) fn print(text: impl Display) -> Result<(), Failure> {
    writeln!(io::stdout().lock(), "{text}").map_err(|error| Failure::stdout(&error))
}

/// `value` as indented JSON on stdout.
pub(crate) fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    print(json(value)?)
}

/// `value` as indented JSON in the file `path`, which is whole or not there.
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<(), Failure> {
    let text = json(value)? + "\n";
    let failed = |error: io::Error| Failure::new(format!("writing --json {}: {error}", path.display()));
    if path.exists() && !path.is_file() {
        return fs::write(path, text).map_err(failed);
    }
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = Path::new(&name);
    fs::write(temporary, text)
        .and_then(|()| fs::rename(temporary, path))
        .map_err(|error| {
            let _ = fs::remove_file(temporary);
            failed(error)
        })
}

fn json(value: &impl Serialize) -> Result<String, Failure> {
    serde_json::to_string_pretty(value).map_err(|error| Failure::new(format!("writing json: {error}")))
}

/// A length for a person: three digits and a decimal unit.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["kB", "MB", "GB", "TB", "PB", "EB"];
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1000.0;
    let mut unit = 0;
    while value >= 999.95 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// `1 file`, `2 files`.
pub(crate) fn count(number: u64, one: &str) -> String {
    match number {
        1 => format!("1 {one}"),
        _ => format!("{number} {one}s"),
    }
}

/// A time left, for a person.
pub(crate) fn clock(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds} s"),
        (0, minutes, seconds) => format!("{minutes} min {seconds:02} s"),
        (hours, minutes, _) => format!("{hours} h {minutes:02} min"),
    }
}

/// 10^6 bytes a second.
pub(crate) fn mb_s(bytes: u64, took: Duration) -> f64 {
    let seconds = took.as_secs_f64();
    if seconds > 0.0 {
        round(bytes as f64 / 1e6 / seconds, 3)
    } else {
        0.0
    }
}

/// Rounded to so many decimals: JSON that a person can read.
pub(crate) fn round(value: f64, decimals: i32) -> f64 {
    let scale = 10_f64.powi(decimals);
    (value * scale).round() / scale
}

/// Names and values, the values in one column.
pub(crate) fn columns(rows: &[(String, String)]) -> String {
    let width = rows
        .iter()
        .map(|(name, _)| name.chars().count())
        .max()
        .unwrap_or(0);
    rows.iter()
        .map(|(name, value)| format!("{name:width$}  {value}\n"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_read_well() {
        let sizes = [0, 999, 1000, 999_949, 999_950, 1_500_000, u64::MAX].map(size);
        assert_eq!(
            sizes,
            [
                "0 B", "999 B", "1.0 kB", "999.9 kB", "1.0 MB", "1.5 MB", "18.4 EB"
            ]
        );
        let times = [5, 65, 3700].map(|seconds| clock(Duration::from_secs(seconds)));
        assert_eq!(times, ["5 s", "1 min 05 s", "1 h 01 min"]);
        assert_eq!(mb_s(3_000_000, Duration::from_secs(2)), 1.5);
        assert_eq!(mb_s(1, Duration::ZERO), 0.0);
        assert_eq!(
            (count(1, "file"), count(0, "file")),
            ("1 file".into(), "0 files".into())
        );
    }

    #[test]
    fn json_is_replaced_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.json");
        for value in [1, 2] {
            write_json(&path, &value).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), format!("{value}\n"));
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        let error = write_json(&dir.path().join("no/such/dir"), &1)
            .unwrap_err()
            .to_string();
        assert!(error.contains("no/such/dir"), "{error}");
    }
}
