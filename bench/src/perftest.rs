//! The floor that others measure: perftest's `ib_read_lat` and `ib_read_bw`, as a pair of processes on one device.

use std::fs;
use std::io::Read;
use std::net::IpAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::Error;
use campaigns::processes::end_of;

/// Longest that one side may take to start or to finish.
const PATIENCE: Duration = Duration::from_secs(120);

/// Runs that may give no figure, one after the other.
const TRIES_MAX: usize = 5;

/// What perftest measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Test {
    /// `ib_read_lat`: its `t_typical`, us.
    Latency,
    /// `ib_read_bw`: its average, MiB/s.
    Bandwidth,
}

/// One run of perftest.
#[derive(Debug, Clone)]
pub(crate) struct Perftest<'a> {
    /// What.
    pub(crate) test: Test,
    /// Device of both sides.
    pub(crate) device: &'a str,
    /// Its address.
    pub(crate) address: IpAddr,
    /// Length of one READ, bytes.
    pub(crate) size_bytes: u64,
    /// READs.
    pub(crate) iterations: u32,
    /// READs outstanding, for bandwidth: a multiple of `chain`.
    pub(crate) depth: usize,
    /// READs behind one doorbell, for bandwidth: a multiple of `signal`.
    pub(crate) chain: usize,
    /// READs from one completion to the next, for bandwidth.
    pub(crate) signal: usize,
    /// TCP port of the two sides' own channel.
    pub(crate) port: u16,
}

/// A child that is killed and reaped when dropped.
pub(crate) struct Reaped(pub(crate) Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        // Both fail once the child has ended, which is what is wanted.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Perftest<'_> {
    fn program(&self) -> &'static str {
        match self.test {
            Test::Latency => "ib_read_lat",
            Test::Bandwidth => "ib_read_bw",
        }
    }

    fn command(&self) -> Command {
        let mut command = Command::new(self.program());
        command.args(["-d", self.device, "-F", "-s", &self.size_bytes.to_string()]);
        command.args(["-n", &self.iterations.to_string(), "-p", &self.port.to_string()]);
        // A generous timeout: the emulated device has long tails.
        command.args(["-u", "16"]);
        if self.test == Test::Bandwidth {
            let numbers = [self.depth, self.chain, self.signal].map(|number| number.to_string());
            command.args(["-t", &numbers[0], "-l", &numbers[1], "-Q", &numbers[2]]);
        }
        command.stdin(Stdio::null()).stderr(Stdio::null());
        command
    }

    /// Runs it and gives its figure. A figure of zero or infinity is no measurement (perftest calibrates its clock by
    /// itself, which fails at times on a busy emulated processor): it is measured again, and said.
    pub(crate) fn run(&self) -> Result<f64, Error> {
        for _ in 0..TRIES_MAX {
            let figure = self.run_once()?;
            if figure.is_finite() && figure > 0.0 {
                return Ok(figure);
            }
            eprintln!("bench: {} gave {figure}: measuring again", self.program());
        }
        Err(format!("{} gave no figure in {TRIES_MAX} runs", self.program()).into())
    }

    fn run_once(&self) -> Result<f64, Error> {
        let program = self.program();
        let missing = |error| format!("cannot start {program}: {error} (install the package perftest)");
        let mut server = Reaped(self.command().stdout(Stdio::null()).spawn().map_err(missing)?);
        wait_until_listening(self.port, &mut server.0)?;
        let client = self
            .command()
            .arg(self.address.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(missing)?;
        let mut client = Reaped(client);
        let status = end_of(&mut client.0, PATIENCE)?;
        // Its table fits the pipe, so nothing was lost by waiting for its end first.
        let mut text = String::new();
        if let Some(stdout) = client.0.stdout.as_mut() {
            stdout.read_to_string(&mut text)?;
        }
        if !status.success() {
            return Err(format!("{program} ended with {status}: {}", text.trim()).into());
        }
        figure(self.test, self.size_bytes, &text)
            .ok_or_else(|| format!("no figure in the output of {program}: {text}").into())
    }
}

/// The figure in perftest's table: the row whose first number is the size.
fn figure(test: Test, size_bytes: u64, text: &str) -> Option<f64> {
    text.lines().find_map(|line| {
        let mut columns = line.split_whitespace();
        if columns.next()?.parse::<u64>().ok()? != size_bytes {
            return None;
        }
        let column = match test {
            Test::Latency => columns.nth(3)?,   // iterations, t_min, t_max, t_typical
            Test::Bandwidth => columns.nth(2)?, // iterations, peak, average
        };
        column.parse().ok()
    })
}

/// Waits until some socket of this machine listens on `port`, without connecting to it: perftest takes one peer.
pub(crate) fn wait_until_listening(port: u16, server: &mut Child) -> Result<(), Error> {
    let needle = format!(":{port:04X}");
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
            let listening = fs::read_to_string(table).unwrap_or_default().lines().any(|line| {
                let mut columns = line.split_whitespace().skip(1);
                // Local address, remote address, state; 0A is LISTEN.
                columns.next().is_some_and(|local| local.ends_with(&needle)) && columns.nth(1) == Some("0A")
            });
            if listening {
                return Ok(());
            }
        }
        if let Some(status) = server.try_wait()? {
            return Err(format!("perftest's server ended at once with {status}").into());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Err(format!("perftest's server did not listen on port {port} within {PATIENCE:?}").into())
}

#[cfg(test)]
mod tests {
    use super::{Test, figure};

    #[test]
    fn reads_the_tables() {
        let latency = " #bytes #iterations    t_min[usec]    t_max[usec]  t_typical[usec]    t_avg[usec]    t_stdev[usec]   99% percentile[usec]   99.9% percentile[usec]\n 4192    1000          61.10          9000.54      66.02     \t       70.10        \t12.32   \t\t208.55  \t\t429.84\n";
        assert_eq!(figure(Test::Latency, 4192, latency), Some(66.02));
        assert_eq!(figure(Test::Latency, 4096, latency), None);
        let bandwidth = " #bytes     #iterations    BW peak[MB/sec]    BW average[MB/sec]   MsgRate[Mpps]\n 65536      1000             90.10              81.91  \t\t   0.001311\n";
        assert_eq!(figure(Test::Bandwidth, 65536, bandwidth), Some(81.91));
    }
}
