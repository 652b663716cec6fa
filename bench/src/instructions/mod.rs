//! How many instructions the client spends on a GET, many at once, one by one, or by a key whose place it remembers:
//! counted by callgrind over `sim`, so that a machine whose clock says nothing shows a regression. What the network itself
//! does is taken out; the value's CRC is in.

mod profile;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use kv_client::{AccessKey, ClientOptions, GlobalLocator, Reader};
use kv_fabric::sim::{Sim, SimOptions};
use kv_proto::auth::Role;
use kv_server::control::keys::Key;
use kv_server::control::{Keys, Options, Server};
use kv_server::store::{Compaction, StoreOptions};
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::environment::{self, Environment};
use crate::interrupt;
use crate::lookup::{fill_store, key_of};

/// Length of a value, bytes.
const VALUE_BYTES: usize = 64;
/// Calls before those that are counted.
const WARM_UP: usize = 20;
/// Functions that are named.
const NAMED: usize = 12;
const DATASET: &str = "table";
const SECRET: [u8; 32] = [7; 32];
/// Where instructions are counted: functions that begin like this, and what they call.
const COUNTED: &str = "bench::instructions::counted_*";
/// What is the network's.
const NETWORK: &str = "kv_fabric::sim";

/// Options of `bench instructions`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Values in the table.
    #[arg(long, default_value_t = 1_000_000)]
    keys: u64,
    /// GETs of one call, where there are many.
    #[arg(long, default_value_t = 64)]
    batch: usize,
    /// Calls that are counted, of each kind.
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
    /// What it counts.
    #[arg(long, hide = true, value_enum, default_value_t = Kind::Batched)]
    kind: Kind,
}

/// The GETs that are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Kind {
    /// Many in a call, by locators and keys.
    Batched,
    /// One in a call, by locator and key.
    Single,
    /// One in a call, by a key whose place is remembered.
    Live,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Batched, Self::Single, Self::Live];

    const fn name(self) -> &'static str {
        match self {
            Self::Batched => "batched",
            Self::Single => "single",
            Self::Live => "live",
        }
    }

    fn batch(self, args: &Args) -> usize {
        if self == Self::Batched { args.batch } else { 1 }
    }
}

/// The file that `--limit` names: most instructions of a GET of each kind.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Limit {
    batched: f64,
    single: f64,
    live: f64,
    /// What is wanted of one of many.
    target: f64,
}

impl Limit {
    fn of(&self, kind: Kind) -> f64 {
        match kind {
            Kind::Batched => self.batched,
            Kind::Single => self.single,
            Kind::Live => self.live,
        }
    }
}

/// The figures; field names are those of the JSON.
#[derive(Debug, Serialize)]
struct Report {
    environment: Environment,
    keys: u64,
    value_bytes: usize,
    counts: Vec<Count>,
}

/// The figures of one kind.
#[derive(Debug, Serialize)]
struct Count {
    kind: &'static str,
    batch: usize,
    gets: u64,
    /// Client side, CRC included.
    instructions_per_get: f64,
    /// Of the simulated network, which are not in that.
    network_instructions_per_get: f64,
    /// Instructions a GET of the functions that take most, by themselves, whoever called them: the network too.
    functions: Vec<(String, f64)>,
}

/// Counts; whether all of it is within the limits.
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
    let folder = interrupt::noted(tempfile::tempdir_in(&args.data)?);
    fill_store(
        &options(args, folder.path()),
        &[(DATASET, args.keys)],
        VALUE_BYTES,
    )?;
    let mut report = Report {
        environment: Environment::read(),
        keys: args.keys,
        value_bytes: VALUE_BYTES,
        counts: Vec::new(),
    };
    let mut within = true;
    for kind in Kind::ALL {
        let count = figures(args, folder.path(), kind)?;
        print(&report, &count);
        if let Some(limit) = &limit {
            within &= print_limit(&count, kind, limit);
        }
        report.counts.push(count);
    }
    if let Some(path) = &args.json {
        std::fs::write(path, serde_json::to_string_pretty(&report)? + "\n")?;
    }
    Ok(within)
}

fn figures(args: &Args, folder: &Path, kind: Kind) -> Result<Count, Error> {
    let profile = profile::read(&count(args, folder, kind)?, NETWORK)?;
    if profile.total == 0 {
        return Err("nothing was counted: callgrind did not find the function".into());
    }
    let batch = kind.batch(args);
    let gets = (args.calls * batch) as u64;
    let each = |count: u64| count as f64 / gets as f64;
    let name = |(name, count): &(String, u64)| (name.clone(), each(*count));
    Ok(Count {
        kind: kind.name(),
        batch,
        gets,
        instructions_per_get: each(profile.total.saturating_sub(profile.network)),
        network_instructions_per_get: each(profile.network),
        functions: profile.functions.iter().take(NAMED).map(name).collect(),
    })
}

fn limit_of(path: &Path) -> Result<Limit, Error> {
    let shown = path.display();
    let text = std::fs::read_to_string(path).map_err(|error| format!("cannot read {shown}: {error}"))?;
    Ok(toml::from_str(&text).map_err(|error| format!("{shown}: {error}"))?)
}

fn print(report: &Report, count: &Count) {
    println!(
        "{}: {:.0} instructions a GET of {} bytes, client side, CRC included ({} GETs in calls of {}, a table of {}); \
         {:.0} of the simulated network are not in it",
        count.kind,
        count.instructions_per_get,
        report.value_bytes,
        count.gets,
        count.batch,
        report.keys,
        count.network_instructions_per_get
    );
    println!("functions by themselves, whoever called them, the network too:");
    for (name, instructions) in &count.functions {
        println!("{instructions:>9.1}  {name}");
    }
}

/// Says how a kind stands to its limit; whether it keeps it.
fn print_limit(count: &Count, kind: Kind, limit: &Limit) -> bool {
    let most = limit.of(kind);
    let kept = count.instructions_per_get <= most;
    println!("limit {most:.0}: {}", if kept { "kept" } else { "EXCEEDED" });
    if kind == Kind::Batched {
        let met = count.instructions_per_get <= limit.target;
        let met = if met { "met" } else { "not met yet" };
        println!("target {:.0}: {met}", limit.target);
    }
    kept
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
fn count(args: &Args, folder: &Path, kind: Kind) -> Result<String, Error> {
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
    child.args(["--kind", kind.name()]);
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
    let server = Server::start(
        fabric.clone(),
        "server:7471",
        options(args, folder),
        Keys::new(vec![key])?,
        Options::default(),
    )?;
    let mut client = ClientOptions::new(AccessKey::new("bench", SECRET));
    // Emulated instruction by instruction, everything takes its time.
    client.deadline = std::time::Duration::from_secs(300);
    client.connect_timeout = client.deadline;
    let session = kv_client::Server::connect_over(fabric, "server:7471", client)?;
    let dataset = session.open(DATASET)?;
    let batch = args.kind.batch(args);
    let mut random = fastrand::Rng::with_seed(1);
    let keys: Vec<_> = (0..batch * (args.calls + WARM_UP))
        .map(|_| key_of(random.u64(..args.keys)))
        .collect();
    let located: Result<Vec<GlobalLocator>, _> = dataset.locate_many(&keys).into_iter().collect();
    let calls: Vec<Call<'_>> = located?
        .chunks(batch)
        .zip(keys.chunks(batch))
        .map(|(at, keys)| (at.to_vec(), keys.iter().map(<[u8; 16]>::as_slice).collect()))
        .collect();
    let (warm_up, rest) = calls.split_at(WARM_UP);
    let mut reader = dataset.reader()?;
    warm_up_by(&mut reader, warm_up)?;
    match args.kind {
        Kind::Batched => counted_batched(&mut reader, rest)?,
        Kind::Single => counted_single(&mut reader, rest)?,
        Kind::Live => {
            // They are remembered from then on.
            warm_up_live(&mut reader, rest)?;
            counted_live(&mut reader, rest)?;
        }
    }
    drop((reader, dataset, session));
    server.stop();
    server.join()?;
    Ok(true)
}

/// Locators and keys of one call.
type Call<'k> = (Vec<GlobalLocator>, Vec<&'k [u8]>);

/// What callgrind looks for: nothing else may be in it.
#[inline(never)]
fn counted_batched(reader: &mut Reader, calls: &[Call<'_>]) -> Result<(), Error> {
    for (at, keys) in calls {
        for value in reader.get_many_at(at, Some(keys)) {
            std::hint::black_box(value?);
        }
    }
    Ok(())
}

/// As [`counted_batched`].
#[inline(never)]
fn counted_single(reader: &mut Reader, calls: &[Call<'_>]) -> Result<(), Error> {
    for (at, keys) in calls {
        for (at, key) in at.iter().zip(keys) {
            std::hint::black_box(reader.get_at(at, Some(key))?);
        }
    }
    Ok(())
}

/// As [`counted_batched`].
#[inline(never)]
fn counted_live(reader: &mut Reader, calls: &[Call<'_>]) -> Result<(), Error> {
    for key in calls.iter().flat_map(|(_, keys)| keys) {
        std::hint::black_box(reader.get(key)?);
    }
    Ok(())
}

/// Reads by keys alone.
fn warm_up_live(reader: &mut Reader, calls: &[Call<'_>]) -> Result<(), Error> {
    for key in calls.iter().flat_map(|(_, keys)| keys) {
        if reader.get(key)?.len() != VALUE_BYTES {
            return Err("a value has another length".into());
        }
    }
    Ok(())
}

/// Calls that warm up.
fn warm_up_by(reader: &mut Reader, calls: &[Call<'_>]) -> Result<(), Error> {
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
        let args = |kind| Args {
            keys: 3000,
            batch: 8,
            calls: 5,
            limit: None,
            data: folder.path().to_owned(),
            json: None,
            inside: Some(folder.path().to_owned()),
            kind,
        };
        let options = options(&args(Kind::Batched), folder.path());
        fill_store(&options, &[(DATASET, 3000)], VALUE_BYTES).unwrap();
        for kind in Kind::ALL {
            assert!(run(&args(kind)).unwrap());
        }
    }

    #[test]
    fn the_recorded_limit_is_read_and_not_below_the_target() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("instructions.toml");
        let limit = limit_of(&path).unwrap();
        assert!(Kind::ALL.iter().all(|kind| limit.of(*kind) >= limit.target));
        assert!(limit_of(Path::new("/none")).is_err());
    }
}
