//! `kv-server check`: what it prints, and its exit status.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use indicatif::{ProgressBar, ProgressStyle};
use kv_server::config;
use kv_server::store::check::{Finding, Summary, Watch, check};
use serde::Serialize;

/// There are findings.
const FOUND: u8 = 1;
/// It could not be checked.
const FAILED: u8 = 2;

/// Prints findings as they come.
struct Printer {
    bar: Option<ProgressBar>,
    /// Kept for `--json` alone.
    findings: Option<Vec<Finding>>,
    failed: Option<std::io::Error>,
}

#[derive(Serialize)]
struct Report<'a> {
    summary: &'a Summary,
    findings: &'a [Finding],
}

impl Watch for Printer {
    fn progress(&mut self, bytes: u64, of: u64) -> bool {
        if let Some(bar) = &self.bar {
            bar.set_length(of.max(bytes));
            bar.set_position(bytes);
        }
        true
    }

    fn found(&mut self, finding: &Finding) {
        let print = || writeln!(std::io::stdout(), "{finding}");
        let printed = match &self.bar {
            Some(bar) => bar.suspend(print),
            None => print(),
        };
        if let Err(error) = printed {
            self.failed.get_or_insert(error);
        }
        if let Some(findings) = &mut self.findings {
            findings.push(finding.clone());
        }
    }
}

fn bar() -> Option<ProgressBar> {
    if !std::io::stderr().is_terminal() {
        return None;
    }
    let template =
        "checking {wide_bar} {decimal_bytes}/{decimal_total_bytes}  {decimal_bytes_per_sec}  {eta} left";
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    Some(ProgressBar::new(0).with_style(style))
}

/// Checks and says so: 0 nothing is damaged, 1 there are findings, 2 it could not be checked.
pub(crate) fn run(arguments: &config::Check) -> ExitCode {
    match checked(arguments) {
        Ok(summary) if summary.damage == 0 && summary.repaired == 0 => ExitCode::SUCCESS,
        Ok(_) => FOUND.into(),
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "kv-server: {error}");
            FAILED.into()
        }
    }
}

fn checked(arguments: &config::Check) -> Result<Summary, String> {
    let mut printer = Printer {
        bar: bar(),
        findings: arguments.json.is_some().then(Vec::new),
        failed: None,
    };
    let checked = check(&arguments.data, arguments.repair, &mut printer);
    if let Some(bar) = &printer.bar {
        bar.finish_and_clear();
    }
    let summary = checked.map_err(|error| error.to_string())?;
    if let Some(path) = &arguments.json {
        let report = Report {
            summary: &summary,
            findings: printer.findings.as_deref().unwrap_or_default(),
        };
        let failed = |error: String| format!("--json {}: {error}", path.display());
        let text = serde_json::to_string_pretty(&report).map_err(|error| failed(error.to_string()))?;
        std::fs::write(path, text + "\n").map_err(|error| failed(error.to_string()))?;
    }
    let printed = writeln!(std::io::stdout(), "{}", line(&summary));
    if let Some(error) = printer.failed.or(printed.err()) {
        return Err(format!("writing to standard output: {error}"));
    }
    Ok(summary)
}

fn line(summary: &Summary) -> String {
    let untold = match summary.untold {
        0 => String::new(),
        untold => format!(" ({untold} of it not told one by one)"),
    };
    format!(
        "{} datasets, {} segments, {} records, {} keys, {} bytes read: {} damage{untold}, {} notes, {} repaired",
        summary.datasets,
        summary.segments,
        summary.records,
        summary.keys,
        summary.bytes,
        summary.damage,
        summary.notes,
        summary.repaired,
    )
}
