//! What one GET of 4 KiB costs beside one READ of the same wire length by perftest, in one run, alternating.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use kv_client::{AccessKey, Client, ClientOptions, GlobalLocator, RegisteredBuffer};
use kv_proto::{crc::crc32c, layout};
use serde::Serialize;

use crate::Error;
use crate::perftest::{Perftest, Test};
use crate::stats::{Interval, interval, median};

const VALUE_BYTES: usize = 4096;
/// With its 32 bytes the wire length is 4192.
const KEY: &[u8; 32] = b"latency/of-one-value-of-four-kib";
/// GETs of one block, of each kind.
const GETS: usize = 400;
/// GETs of one kind before it is the other's turn.
const TURN: usize = 50;
/// Calls timed as one, where a call is too short to time.
const CALLS: usize = 16;
/// Copies of the value whose CRC is timed.
const COPIES: usize = 25;

/// Medians over blocks, us; the floor is `None` where there is no device.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Latency {
    /// A known locator to checked value.
    pub(crate) get_4k_us: Interval,
    /// The same without the value's CRC.
    pub(crate) get_4k_unverified_us: Interval,
    /// That CRC alone.
    pub(crate) crc_4k_us: Interval,
    /// `ib_read_lat` at the length that the GET puts on the wire.
    pub(crate) ib_read_lat_wire_us: Option<Interval>,
    /// The same over the floor, block by block.
    pub(crate) unverified_over_floor: Option<Interval>,
    /// The first over the floor and the CRC, block by block.
    pub(crate) verified_over_floor_and_crc: Option<Interval>,
}

/// Where perftest runs.
pub(crate) struct Floor<'a> {
    /// Device.
    pub(crate) device: &'a str,
    /// Its address.
    pub(crate) address: IpAddr,
}

/// The dataset that is measured, for processes of their own.
pub(crate) struct Target<'a> {
    /// Its URI.
    pub(crate) uri: &'a str,
    /// Key file.
    pub(crate) key: &'a Path,
}

/// Measures over `blocks` blocks; the dataset of `target` and `client` is empty.
///
/// Each block is a process of its own on both sides: under emulation where its memory lies makes a READ cost more in one
/// process in ten or so, perftest's too, and a process that lives long would be lucky or unlucky for good. On a shared
/// machine the processor itself has two speeds for seconds or minutes at a time (the CRC, mere arithmetic, shows it);
/// neighbours in time meet the same one.
pub(crate) fn measure(
    client: &Client,
    target: &Target<'_>,
    floor: Option<&Floor<'_>>,
    blocks: usize,
) -> Result<Latency, Error> {
    client.put(KEY, &value())?;
    let [mut checked, mut unchecked, mut crc, mut wire] = [const { Vec::new() }; 4];
    for block in 0..blocks.max(1) {
        if let Some(floor) = floor {
            let perftest = Perftest {
                test: Test::Latency,
                device: floor.device,
                address: floor.address,
                size_bytes: layout::wire_len(KEY.len() as u64, VALUE_BYTES as u64),
                iterations: 1000,
                depth: 1,
                chain: 1,
                signal: 1,
                port: 18_700 + (block % 100) as u16,
            };
            wire.push(perftest.run()?);
        }
        let [without, with, crc_alone] = gets_of_a_process(target)?;
        unchecked.push(without);
        checked.push(with);
        crc.push(crc_alone);
    }
    let ratio = |over: &dyn Fn(usize) -> f64| {
        let mut ratios: Vec<f64> = (0..wire.len()).map(over).collect();
        interval(&mut ratios)
    };
    let unverified_over_floor = ratio(&|n| unchecked[n] / wire[n]);
    let verified_over_floor_and_crc = ratio(&|n| checked[n] / (wire[n] + crc[n]));
    let none = "no block was measured";
    Ok(Latency {
        get_4k_us: interval(&mut checked).ok_or(none)?,
        get_4k_unverified_us: interval(&mut unchecked).ok_or(none)?,
        crc_4k_us: interval(&mut crc).ok_or(none)?,
        ib_read_lat_wire_us: interval(&mut wire),
        unverified_over_floor,
        verified_over_floor_and_crc,
    })
}

/// One of the two clients that are timed.
struct Side<'a> {
    client: &'a Client,
    at: GlobalLocator,
    buffer: RegisteredBuffer,
    times: Vec<f64>,
}

impl<'a> Side<'a> {
    fn new(client: &'a Client) -> Result<Self, Error> {
        Ok(Self {
            client,
            at: client.locate(KEY)?,
            buffer: client.allocate(VALUE_BYTES)?,
            times: Vec::with_capacity(GETS),
        })
    }

    /// Times [`TURN`] GETs into registered memory, us; the bytes are compared outside the timed part.
    fn turn(&mut self, value: &[u8]) -> Result<(), Error> {
        for _ in 0..TURN {
            self.buffer[..64].fill(0);
            let started = Instant::now();
            let len = self.client.get_at_into(&self.at, None, &mut self.buffer, 0)?;
            self.times.push(started.elapsed().as_secs_f64() * 1e6);
            if self.buffer[..len] != *value {
                return Err("a value came back changed".into());
            }
        }
        Ok(())
    }
}

fn take_turns(sides: &mut [Side<'_>], value: &[u8]) -> Result<(), Error> {
    for _ in 0..GETS / TURN {
        for side in sides.iter_mut() {
            side.turn(value)?;
        }
    }
    Ok(())
}

fn value() -> Vec<u8> {
    (0..VALUE_BYTES).map(|n| (n * 7 + n / 251) as u8).collect()
}

/// Starts `bench block` and takes its three figures.
fn gets_of_a_process(target: &Target<'_>) -> Result<[f64; 3], Error> {
    let output = Command::new(std::env::current_exe()?)
        .args(["block", "--uri", target.uri, "--key"])
        .arg(target.key)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let figures: Vec<f64> = text
        .split_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect();
    match <[f64; 3]>::try_from(figures) {
        Ok(figures) if output.status.success() => Ok(figures),
        _ => Err(format!("the process that measures GETs ended with {}", output.status).into()),
    }
}

/// Options of `bench block`.
#[derive(Debug, clap::Args)]
pub(crate) struct BlockArgs {
    /// The dataset.
    #[arg(long)]
    uri: String,
    /// Key file.
    #[arg(long)]
    key: PathBuf,
}

/// One block: prints the medians of GETs without and with the value's CRC, and of that CRC alone, us.
pub(crate) fn run_block(args: &BlockArgs) -> Result<bool, Error> {
    let mut options = ClientOptions::new(AccessKey::load(&args.key, None)?);
    let verified = Client::connect(&args.uri, options.clone())?;
    options.verify = false;
    let unverified = Client::connect(&args.uri, options)?;
    let value = value();
    let mut both = [Side::new(&unverified)?, Side::new(&verified)?];
    take_turns(&mut both, &value)?;
    let [without, with] = both.map(|mut side| median(&mut side.times).unwrap_or(f64::NAN));
    println!("{without} {with} {}", crc_us(&value));
    Ok(true)
}

/// Time of the CRC of a value, us. Of many copies, at other places: over the same one an emulated processor took 8 us in most builds of
/// this program and 35 in one, each time.
fn crc_us(value: &[u8]) -> f64 {
    let copies = value.repeat(COPIES);
    let mut times: Vec<f64> = copies
        .chunks_exact(value.len())
        .cycle()
        .take(GETS / 4)
        .map(|copy| {
            let started = Instant::now();
            for _ in 0..CALLS {
                std::hint::black_box(crc32c(std::hint::black_box(copy)));
            }
            started.elapsed().as_secs_f64() * 1e6 / CALLS as f64
        })
        .collect();
    median(&mut times).unwrap_or_default()
}
