//! How many instructions the client spends on a GET: counted by callgrind over `sim`, so that a machine whose clock says
//! nothing shows a regression. What the network itself does is taken out; the value's CRC is in.

mod profile;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use kv_client::on::{ReaderOn, SessionOn};
use kv_client::{AccessKey, ClientOptions, GlobalLocator};
use kv_fabric::sim::{Sim, SimOptions};
use kv_proto::auth::Role;
use kv_server::control::keys::Key;
use kv_server::control::{Keys, Options, Server};
use kv_server::store::{Compaction, StoreOptions};
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::environment::{self, Environment};
use crate::lookup::{fill_store, key_of};

/// Length of a value, bytes.
const VALUE_BYTES: usize = 64;
/// Calls before those that are counted.
const WARM_UP: usize = 20;
/// Functions that are named.
const NAMED: usize = 12;
const DATASET: &str = "table";
const SECRET: [u8; 32] = [7; 32];
/// Where instructions are counted: `counted` and what it calls. No other function may begin like this.
const COUNTED: &str = "bench::instructions::counted*";
/// What is the network's.
const NETWORK: &str = "kv_fabric::sim";

/// Options of `bench instructions`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Values in the table.
    #[arg(long, default_value_t = 1_000_000)]
    keys: u64,
    /// GETs of one call.
    #[arg(long, default_value_t = 64)]
    batch: usize,
    /// Calls that are counted.
    #[arg(long, default_value_t = 200)]
    calls: usize,
    /// A file with the most instructions that a GET may take; more is a failure.
    #[arg(long)]
    limit: Option<PathBuf>,
    /// Where the table lies: a fresh directory is made in it.
    #[arg(long, default_value = "/var/tmp")]
    data: PathBuf,
    /// Writes the figures here, as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// The counted process itself: the folder of its table.
    #[arg(long, hide = true)]
    inside: Option<PathBuf>,
}

/// The file that `--limit` names.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Limit {
    /// Most instructions of a GET.
    instructions_per_get: f64,
    /// What is wanted later.
    target: f64,
}

/// The figures; field names are those of the JSON.
#[derive(Debug, Serialize)]
struct Report {
    environment: Environment,
    keys: u64,
    value_bytes: usize,
    batch: usize,
    gets: u64,
    /// Client side, CRC included.
    instructions_per_get: f64,
    /// Of the simulated network, which are not in that.
    network_instructions_per_get: f64,
    /// Instructions a GET of the functions that take most, by themselves, whoever called them: the network too.
    functions: Vec<(String, f64)>,
}

/// Counts; whether it is within the limit.
pub(crate) fn run(args: &Args) -> Result<bool, Error> {
    if let Some(folder) = &args.inside {
        return inside(args, folder);
    }
    let limit = args.limit.as_deref().map(limit_of).transpose()?;
    if environment::program("valgrind").is_none() {
        return Err(
            "valgrind is not installed: it counts the instructions (install the package valgrind)".into(),
        );
    }
    let folder = tempfile::tempdir_in(&args.data)?;
    fill_store(
        &options(args, folder.path()),
        &[(DATASET, args.keys)],
        VALUE_BYTES,
    )?;
    let profile = profile::read(&count(args, folder.path())?, NETWORK)?;
    let gets = (args.calls * args.batch) as u64;
    let each = |count: u64| count as f64 / gets as f64;
    let name = |(name, count): &(String, u64)| (name.clone(), each(*count));
    let report = Report {
        environment: Environment::read(),
        keys: args.keys,
        value_bytes: VALUE_BYTES,
        batch: args.batch,
        gets,
        instructions_per_get: each(profile.total.saturating_sub(profile.network)),
        network_instructions_per_get: each(profile.network),
        functions: profile.functions.iter().take(NAMED).map(name).collect(),
    };
    if profile.total == 0 {
        return Err("nothing was counted: callgrind did not find the function".into());
    }
    print(&report, limit.as_ref());
    if let Some(path) = &args.json {
        std::fs::write(path, serde_json::to_string_pretty(&report)? + "\n")?;
    }
    Ok(limit.is_none_or(|limit| report.instructions_per_get <= limit.instructions_per_get))
}

fn limit_of(path: &Path) -> Result<Limit, Error> {
    let shown = path.display();
    let text = std::fs::read_to_string(path).map_err(|error| format!("cannot read {shown}: {error}"))?;
    Ok(toml::from_str(&text).map_err(|error| format!("{shown}: {error}"))?)
}

fn print(report: &Report, limit: Option<&Limit>) {
    println!(
        "{:.0} instructions a GET of {} bytes, client side, CRC included ({} GETs in calls of {}, a table of {}); \
         {:.0} of the simulated network are not in it",
        report.instructions_per_get,
        report.value_bytes,
        report.gets,
        report.batch,
        report.keys,
        report.network_instructions_per_get
    );
    println!("functions by themselves, whoever called them, the network too:");
    for (name, count) in &report.functions {
        println!("{count:>9.1}  {name}");
    }
    if let Some(limit) = limit {
        let over = report.instructions_per_get > limit.instructions_per_get;
        println!(
            "limit {:.0}: {}; target {:.0}: {}",
            limit.instructions_per_get,
            if over { "EXCEEDED" } else { "kept" },
            limit.target,
            if report.instructions_per_get <= limit.target {
                "met"
            } else {
                "not met yet"
            }
        );
    }
}

fn options(args: &Args, folder: &Path) -> StoreOptions {
    StoreOptions {
        scrub_share: 0.0,
        data: folder.join("data"),
        // Twice the records, and what an index may have.
        memory_budget_bytes: args.keys * 384 + (1 << 30),
        segment_bytes: 256 << 20,
        part_bytes: 16 << 20,
        gather_budget_bytes: 256 << 20,
        compaction: Compaction::default(),
    }
}

/// Runs this program under callgrind; what that wrote.
fn count(args: &Args, folder: &Path) -> Result<String, Error> {
    let profile = folder.join("callgrind");
    let mut child = Command::new("valgrind");
    child.args(["--tool=callgrind", "--collect-atstart=no", "--quiet"]);
    child.arg(format!("--toggle-collect={COUNTED}"));
    child.arg(format!("--callgrind-out-file={}", profile.display()));
    child
        .arg(std::env::current_exe()?)
        .args(["instructions", "--inside"])
        .arg(folder);
    child.args([
        "--keys".to_owned(),
        args.keys.to_string(),
        "--batch".to_owned(),
        args.batch.to_string(),
    ]);
    child.args(["--calls".to_owned(), args.calls.to_string()]);
    let output = child.stdin(Stdio::null()).output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("valgrind ended with {}: {}", output.status, said.trim()).into());
    }
    std::fs::read_to_string(&profile).map_err(|error| format!("callgrind wrote nothing: {error}").into())
}

/// What is counted: a server and a client in this process.
fn inside(args: &Args, folder: &Path) -> Result<bool, Error> {
    let fabric = Arc::new(Sim::new(SimOptions::default()));
    let key = Key {
        name: "bench".to_owned(),
        secret: SECRET,
        role: Role::Read,
        datasets: vec!["*".to_owned()],
    };
    let server = Server::<Sim>::start(
        Arc::clone(&fabric),
        "server:7471",
        options(args, folder),
        Keys::new(vec![key])?,
        Options::default(),
    )?;
    let mut client = ClientOptions::new(AccessKey::new("bench", SECRET));
    // Emulated instruction by instruction, everything takes its time.
    client.deadline = std::time::Duration::from_secs(300);
    client.connect_timeout = client.deadline;
    let session = SessionOn::connect(fabric, "server:7471", client)?;
    let dataset = session.open(DATASET)?;
    let mut random = fastrand::Rng::with_seed(1);
    let keys: Vec<_> = (0..args.batch * (args.calls + WARM_UP))
        .map(|_| key_of(random.u64(..args.keys)))
        .collect();
    let located: Result<Vec<GlobalLocator>, _> = dataset.locate_many(&keys).into_iter().collect();
    let calls: Vec<Call<'_>> = located?
        .chunks(args.batch)
        .zip(keys.chunks(args.batch))
        .map(|(at, keys)| (at.to_vec(), keys.iter().map(<[u8; 16]>::as_slice).collect()))
        .collect();
    let (warm_up, rest) = calls.split_at(WARM_UP);
    let mut reader = dataset.reader()?;
    warm_up_by(&mut reader, warm_up)?;
    counted(&mut reader, rest)?;
    drop((reader, dataset, session));
    server.stop();
    server.join()?;
    Ok(true)
}

/// Locators and keys of one call.
type Call<'k> = (Vec<GlobalLocator>, Vec<&'k [u8]>);

/// What callgrind looks for: nothing else may be in it.
#[inline(never)]
fn counted(reader: &mut ReaderOn<Sim>, calls: &[Call<'_>]) -> Result<(), Error> {
    for (at, keys) in calls {
        for value in reader.get_many_at(at, Some(keys)) {
            std::hint::black_box(value?);
        }
    }
    Ok(())
}

/// Calls that warm up.
fn warm_up_by(reader: &mut ReaderOn<Sim>, calls: &[Call<'_>]) -> Result<(), Error> {
    for (at, keys) in calls {
        for value in reader.get_many_at(at, Some(keys)) {
            if value?.len() != VALUE_BYTES {
                return Err("a value has another length".into());
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_runs_and_is_right() {
        let folder = tempfile::tempdir().unwrap();
        let args = Args {
            keys: 3000,
            batch: 8,
            calls: 5,
            limit: None,
            data: folder.path().to_owned(),
            json: None,
            inside: Some(folder.path().to_owned()),
        };
        fill_store(
            &options(&args, folder.path()),
            &[(DATASET, args.keys)],
            VALUE_BYTES,
        )
        .unwrap();
        assert!(run(&args).unwrap());
    }

    #[test]
    fn the_recorded_limit_is_read_and_not_below_the_target() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("instructions.toml");
        let limit = limit_of(&path).unwrap();
        assert!(limit.instructions_per_get >= limit.target);
        assert!(limit_of(Path::new("/none")).is_err());
    }
}
