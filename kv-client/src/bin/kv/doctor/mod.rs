//! `kv doctor`: says whether this machine can use `rdma://`, and what to do where it cannot.
//!
//! [`system`] and [`probe`] gather facts; [`checks`] judges them, and can be tested on a machine without RDMA.

mod checks;
mod probe;
mod system;

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use crate::failure::{Ended, FAILED, OK};
use crate::output::{print, print_json};
use checks::{Finding, Status};

const AFTER_HELP: &str = "\
Run it on the client and, with --data, on the server, as the user who will run them.

Examples:
  kv doctor
  kv doctor --data /nvme/kv --json";

/// Check whether this machine can use rdma://, with a remedy for each finding
#[derive(Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Arguments {
    /// Data directory of a server: probe what a mapping of a file there may register
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// As one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    rdma_usable: bool,
    findings: Vec<Finding>,
}

pub(crate) fn run(arguments: &Arguments) -> Ended {
    let mut findings = Vec::new();
    let devices = system::devices();
    checks::libraries_and_devices(&devices, &mut findings);
    if let Ok(devices) = &devices {
        checks::each_device(devices, &mut findings);
        checks::permissions(&system::nodes(), &mut findings);
    }
    checks::modules(&system::modules(), devices.is_ok(), &mut findings);
    checks::memory_lock(system::memory_lock_bytes(), system::may_lock_all(), &mut findings);
    checks::huge_pages(system::huge_pages(), &mut findings);
    if let Some(data) = &arguments.data {
        checks::data_directory(&probe::directory(data), &mut findings);
        if let Ok(devices) = &devices {
            for device in devices.iter().filter(|device| device.is_usable()) {
                checks::mappings(&device.name, &probe::mappings(&device.name, data), &mut findings);
            }
        }
    }
    let rdma_usable = checks::usable(&devices, &findings);
    if arguments.json {
        print_json(&Report {
            rdma_usable,
            findings,
        })?;
    } else {
        for finding in &findings {
            print(finding)?;
        }
        print(checks::verdict(&devices, rdma_usable, arguments.data.is_some()))?;
    }
    Ok(if rdma_usable { OK } else { FAILED })
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let status = match self.status {
            Status::Ok => "ok",
            Status::Warn => "warn",
            Status::Fail => "FAIL",
        };
        write!(f, "{status:4}  {}: {}", self.check, self.detail)?;
        match &self.remedy {
            Some(remedy) => write!(f, "\n      remedy: {remedy}"),
            None => Ok(()),
        }
    }
}
