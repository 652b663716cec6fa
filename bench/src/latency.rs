//! What one GET of 4 KiB costs beside one READ of the same wire length by perftest, in one run, alternating.

use std::net::IpAddr;
use std::time::Instant;

use kv_client::Client;
use kv_proto::{crc::crc32c, layout};
use serde::Serialize;

use crate::Error;
use crate::perftest::{Perftest, Test};
use crate::stats::{Interval, interval, median};

const VALUE_BYTES: usize = 4096;
/// With its 32 bytes the wire length is 4192.
const KEY: &[u8; 32] = b"latency/of-one-value-of-four-kib";
/// GETs of one block.
const GETS: usize = 400;
/// Calls timed as one, where a call is too short to time.
const CALLS: usize = 16;

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

/// Measures over `blocks` blocks; `verified` and `unverified` are clients of one empty dataset.
pub(crate) fn measure(
    verified: &Client,
    unverified: &Client,
    floor: Option<&Floor<'_>>,
    blocks: usize,
) -> Result<Latency, Error> {
    let value: Vec<u8> = (0..VALUE_BYTES).map(|n| (n * 7 + n / 251) as u8).collect();
    verified.put(KEY, &value)?;
    let [mut checked, mut unchecked, mut crc, mut wire] = [const { Vec::new() }; 4];
    for block in 0..blocks.max(1) {
        // Half before the floor and half after it, so that a machine that slows down meanwhile slows down both.
        let mut times = [const { Vec::new() }; 2];
        gets(unverified, &value, &mut times[0])?;
        gets(verified, &value, &mut times[1])?;
        if let Some(floor) = floor {
            let perftest = Perftest {
                test: Test::Latency,
                device: floor.device,
                address: floor.address,
                size_bytes: layout::wire_len(KEY.len() as u64, VALUE_BYTES as u64),
                iterations: 1000,
                depth: 1,
                port: 18_700 + (block % 100) as u16,
            };
            wire.push(perftest.run()?);
        }
        crc.push(crc_us(&value));
        gets(verified, &value, &mut times[1])?;
        gets(unverified, &value, &mut times[0])?;
        unchecked.extend(median(&mut times[0]));
        checked.extend(median(&mut times[1]));
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

/// Times of [`GETS`] GETs into registered memory, us; the bytes are compared outside the timed part.
fn gets(client: &Client, value: &[u8], times: &mut Vec<f64>) -> Result<(), Error> {
    let at = client.locate(KEY)?;
    let mut buffer = client.allocate(VALUE_BYTES)?;
    for _ in 0..GETS {
        buffer[..64].fill(0);
        let started = Instant::now();
        let len = client.get_at_into(&at, None, &mut buffer, 0)?;
        times.push(started.elapsed().as_secs_f64() * 1e6);
        if buffer[..len] != *value {
            return Err("a value came back changed".into());
        }
    }
    Ok(())
}

fn crc_us(value: &[u8]) -> f64 {
    let mut times: Vec<f64> = (0..GETS / 4)
        .map(|_| {
            let started = Instant::now();
            for _ in 0..CALLS {
                std::hint::black_box(crc32c(std::hint::black_box(value)));
            }
            started.elapsed().as_secs_f64() * 1e6 / CALLS as f64
        })
        .collect();
    median(&mut times).unwrap_or_default()
}
