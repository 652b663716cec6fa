//! What durable PUTs cost beside `fio`, and how many bytes they write beside plain writes of the same records, in one
//! run, alternating.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use kv_client::Server as Session;
use kv_proto::layout::{units, wire_len};
use serde::Serialize;

use crate::Error;
use crate::disk::Disk;
use crate::environment::Environment;
use crate::stage::{Listen, Stage};
use crate::stats::{Interval, interval};

const VALUE_BYTES: usize = 64 << 10;
const KEY_BYTES: usize = 16;
/// Values that a client has under way at a time, and records behind one sync of the plain writer.
const AT_ONCE: usize = 32;
/// PUTs over `fio`, at least.
const RATE_TARGET: f64 = 0.6;
/// Bytes at the device over those of plain writes, at most.
const BYTES_TARGET: f64 = 1.05;

/// Options of `bench put`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Directory on the file system that is measured: fresh ones are made in it.
    #[arg(long)]
    data: PathBuf,
    /// Alternating blocks.
    #[arg(long, default_value_t = 12)]
    blocks: usize,
    /// Values of 64 KiB in one block; fio writes as many bytes.
    #[arg(long, default_value_t = 4096)]
    values: usize,
    /// Writes the figures here, as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// The figures; field names are those of the JSON.
#[derive(Debug, Serialize)]
struct Report {
    environment: Environment,
    blocks: usize,
    values: usize,
    value_bytes: usize,
    at_once: usize,
    /// Values stored and read back right.
    verified: usize,
    /// Durable PUTs, MB of values a second.
    put_mb_s: Interval,
    /// `fio`: sequential writes of 2 MiB, each followed by fdatasync, MB/s.
    fio_mb_s: Interval,
    /// Plain `pwrite` of the same records, an `fdatasync` behind each 32, MB of values a second.
    plain_mb_s: Interval,
    put_over_fio: Interval,
    put_over_plain: Interval,
    /// Bytes at the device for each byte of values.
    put_device_bytes_per_byte: Interval,
    plain_device_bytes_per_byte: Interval,
    device_bytes_over_plain: Interval,
    reached: bool,
}

#[derive(Default)]
struct Blocks {
    put: Vec<f64>,
    fio: Vec<f64>,
    plain: Vec<f64>,
    put_device: Vec<f64>,
    plain_device: Vec<f64>,
    verified: usize,
}

/// Runs the measurement; whether the targets were reached.
pub(crate) fn run(args: &Args) -> Result<bool, Error> {
    let bytes = (args.values * VALUE_BYTES) as u64;
    let mut stage = Stage::new(&args.data, Listen::Local, 3 * bytes + (1 << 30))?;
    // Nothing is dead but what was dropped: nothing is to be compacted while this measures.
    stage.more.extend(["--segment-bytes".into(), "1G".into()]);
    let server = stage.start()?;
    let session = Session::connect(&server.address.parse()?, stage.options()?)?;
    let disk = Disk::of(&args.data)?;
    let mut blocks = Blocks::default();
    for block in 0..args.blocks.max(1) {
        eprintln!("put: block {} of {}", block + 1, args.blocks.max(1));
        blocks.fio.push(fio(stage.data.path(), bytes)?);
        let before = disk.written_bytes()?;
        blocks.plain.push(plain(stage.data.path(), args.values)?);
        let between = disk.written_bytes()?;
        blocks
            .put
            .push(put(&session, block, args.values, &mut blocks.verified)?);
        let after = disk.written_bytes()?;
        blocks.plain_device.push((between - before) as f64 / bytes as f64);
        blocks.put_device.push((after - between) as f64 / bytes as f64);
        session.drop_dataset(&name_of(block))?;
    }
    drop(session);
    server.terminate()?;
    let report = blocks.report(args)?;
    report.print();
    if let Some(path) = &args.json {
        std::fs::write(path, serde_json::to_string_pretty(&report)? + "\n")?;
    }
    Ok(report.reached)
}

fn name_of(block: usize) -> String {
    format!("put-{block}")
}

fn key_of(number: usize) -> [u8; KEY_BYTES] {
    let mut key = *b"value-..........";
    key[8..].copy_from_slice(&(number as u64).to_le_bytes());
    key
}

/// Value `number` of a block; no two are alike.
fn value_of(number: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(number as u64);
    let mut value = vec![0; VALUE_BYTES];
    random.fill(&mut value);
    value
}

/// MB/s of `fio`.
fn fio(directory: &Path, bytes: u64) -> Result<f64, Error> {
    let path = directory.join("fio");
    let output = Command::new("fio")
        .args([
            "--name=floor",
            "--rw=write",
            "--bs=2M",
            "--fdatasync=1",
            "--ioengine=sync",
        ])
        .args([
            format!("--size={bytes}"),
            format!("--filename={}", path.display()),
        ])
        .args(["--output-format=json", "--thread"])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| format!("cannot start fio: {error} (install the package fio)"))?;
    std::fs::remove_file(&path)?;
    if !output.status.success() {
        return Err(format!("fio ended with {}", output.status).into());
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let json = text.find('{').map_or("", |at| &text[at..]);
    let parsed: serde_json::Value = serde_json::from_str(json)?;
    let rate = parsed["jobs"][0]["write"]["bw_bytes"].as_f64();
    Ok(rate.ok_or("fio's report has no bw_bytes")? / 1e6)
}

/// MB/s of plain writes of the same records.
fn plain(directory: &Path, values: usize) -> Result<f64, Error> {
    let path = directory.join("plain");
    let record = vec![7; (units(wire_len(KEY_BYTES as u64, VALUE_BYTES as u64)) * 64) as usize];
    let file: File = OpenOptions::new().write(true).create_new(true).open(&path)?;
    let started = Instant::now();
    for number in 0..values {
        file.write_all_at(&record, (number * record.len()) as u64)?;
        if (number + 1) % AT_ONCE == 0 || number + 1 == values {
            file.sync_data()?;
        }
    }
    let rate = mb_s(values, started);
    drop(file);
    std::fs::remove_file(&path)?;
    Ok(rate)
}

/// MB/s of durable PUTs; every value is read back and compared.
fn put(session: &Session, block: usize, values: usize, verified: &mut usize) -> Result<f64, Error> {
    session.create(&name_of(block))?;
    let client = session.open(&name_of(block))?;
    let items: Vec<_> = (0..values).map(|n| (key_of(n), value_of(n))).collect();
    let started = Instant::now();
    let stored = client.put_many(&items);
    let rate = mb_s(values, started);
    for outcome in stored {
        outcome?;
    }
    let keys: Vec<_> = (0..values).map(key_of).collect();
    for ((_, value), found) in items.iter().zip(client.get_many(&keys)) {
        if *value != found? {
            return Err("a value came back changed".into());
        }
        *verified += 1;
    }
    Ok(rate)
}

fn mb_s(values: usize, started: Instant) -> f64 {
    (values * VALUE_BYTES) as f64 / 1e6 / started.elapsed().as_secs_f64()
}

impl Blocks {
    fn report(self, args: &Args) -> Result<Report, Error> {
        let of = |samples: &[f64]| interval(&mut samples.to_vec()).ok_or("no block was measured");
        let over = |a: &[f64], b: &[f64]| {
            let ratios: Vec<f64> = a.iter().zip(b).map(|(a, b)| a / b).collect();
            of(&ratios)
        };
        let put_over_fio = over(&self.put, &self.fio)?;
        let device_bytes_over_plain = over(&self.put_device, &self.plain_device)?;
        Ok(Report {
            environment: Environment::read(),
            blocks: self.put.len(),
            values: args.values,
            value_bytes: VALUE_BYTES,
            at_once: AT_ONCE,
            verified: self.verified,
            put_mb_s: of(&self.put)?,
            fio_mb_s: of(&self.fio)?,
            plain_mb_s: of(&self.plain)?,
            put_over_fio,
            put_over_plain: over(&self.put, &self.plain)?,
            put_device_bytes_per_byte: of(&self.put_device)?,
            plain_device_bytes_per_byte: of(&self.plain_device)?,
            device_bytes_over_plain,
            reached: put_over_fio.median >= RATE_TARGET && device_bytes_over_plain.median <= BYTES_TARGET,
        })
    }
}

impl Report {
    fn print(&self) {
        let shown = |of: &Interval| format!("{:.3} ({:.3} to {:.3})", of.median, of.low, of.high);
        println!(
            "durable PUTs of 64 KiB, {} at once: {} blocks of {} values, {} read back right",
            self.at_once, self.blocks, self.values, self.verified
        );
        println!("  PUT, MB/s               {}", shown(&self.put_mb_s));
        println!("  fio, 2 MiB a sync       {}", shown(&self.fio_mb_s));
        println!("  plain, 32 records       {}", shown(&self.plain_mb_s));
        println!(
            "  PUT over fio            {}, at least {RATE_TARGET}",
            shown(&self.put_over_fio)
        );
        println!("  PUT over plain          {}", shown(&self.put_over_plain));
        println!(
            "  device bytes over plain {}, at most {BYTES_TARGET} ({:.3} and {:.3} a byte)",
            shown(&self.device_bytes_over_plain),
            self.put_device_bytes_per_byte.median,
            self.plain_device_bytes_per_byte.median
        );
        println!("  {}", if self.reached { "reached" } else { "NOT reached" });
    }
}
