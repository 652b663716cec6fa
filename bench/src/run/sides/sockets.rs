//! Redis (or Valkey) and memcached over a Unix socket: all keys of a call in one request.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::{AnyGetter, Slots};
use crate::Error;
use crate::environment::program;
use crate::run::definition::SideName;
use crate::run::pace::Getter;
use crate::run::values::Values;

/// Longest that a daemon may take to listen.
const PATIENCE: Duration = Duration::from_secs(20);
/// Longest silence of a daemon.
const SILENCE: Duration = Duration::from_secs(60);
/// Longest key that memcached takes.
const MEMCACHED_KEY_MAX_BYTES: usize = 250;
/// Longest item that it is told to take, MiB; what an item has besides its value, at most, bytes.
const MEMCACHED_ITEM_MAX_MIB: usize = 64;
const MEMCACHED_ITEM_MORE_BYTES: usize = 1024;

/// Why a side cannot be measured.
pub(crate) fn missing(side: SideName, values: &Values) -> Option<String> {
    let names: &[&str] = match side {
        SideName::Redis => &["valkey-server", "redis-server"],
        _ => &["memcached"],
    };
    if !names.iter().any(|name| program(name).is_some()) {
        return Some(format!("not installed ({})", names.join(" or ")));
    }
    (side == SideName::Memcached)
        .then(|| not_for_memcached(values))
        .flatten()
}

fn not_for_memcached(values: &Values) -> Option<String> {
    let longest = values.longest_bytes();
    if longest + MEMCACHED_ITEM_MORE_BYTES > MEMCACHED_ITEM_MAX_MIB << 20 {
        return Some(format!(
            "it takes values of up to {MEMCACHED_ITEM_MAX_MIB} MiB here, and there is one of {longest} bytes"
        ));
    }
    let refused = |key: &Vec<u8>| {
        key.len() > MEMCACHED_KEY_MAX_BYTES || key.is_empty() || !key.iter().all(u8::is_ascii_graphic)
    };
    let key = (0..values.count()).map(|index| values.key(index)).find(refused)?;
    Some(format!(
        "it takes keys of up to {MEMCACHED_KEY_MAX_BYTES} visible ASCII characters, unlike `{}`",
        key.escape_ascii()
    ))
}

/// A daemon that holds all values; it ends when dropped.
pub(crate) struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        // Both fail where it has ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Daemon {
    /// Starts Redis or memcached on `socket` and stores all values.
    pub(crate) fn start(side: SideName, socket: &Path, values: &Values) -> Result<Self, Error> {
        let path = socket.display().to_string();
        let mib = (values.total_bytes() >> 20) * 2 + 256;
        let mut command = if side == SideName::Redis {
            let found = program("valkey-server").or_else(|| program("redis-server"));
            let mut command =
                Command::new(found.ok_or("neither valkey-server nor redis-server is installed")?);
            command.args([
                "--port",
                "0",
                "--unixsocket",
                &path,
                "--save",
                "",
                "--appendonly",
                "no",
            ]);
            command
        } else {
            let mut command = Command::new(program("memcached").ok_or("memcached is not installed")?);
            command.args([
                "-s",
                &path,
                "-m",
                &mib.to_string(),
                "-I",
                &format!("{MEMCACHED_ITEM_MAX_MIB}m"),
                "-t",
                "1",
                "-u",
                "root",
            ]);
            command
        };
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut daemon = Self(command.spawn()?);
        let deadline = Instant::now() + PATIENCE;
        let mut stream = loop {
            match Stream::open(socket) {
                Ok(stream) => break stream,
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => {}
            }
            if let Some(status) = daemon.0.try_wait()? {
                return Err(format!("`{side}` ended at once with {status}").into());
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        for index in 0..values.count() {
            let (key, value) = (values.key(index), values.bytes(index)?);
            if side == SideName::Redis {
                stream.ask(&resp(&[b"SET", &key, &value]))?;
                stream.line("+OK")?;
            } else {
                let mut request = [b"set ", &key[..], b" 0 0 "].concat();
                request.extend_from_slice(format!("{}\r\n", value.len()).as_bytes());
                request.extend_from_slice(&value);
                request.extend_from_slice(b"\r\n");
                stream.ask(&request)?;
                stream.line("STORED")?;
            }
        }
        Ok(daemon)
    }
}

struct Stream {
    reader: BufReader<UnixStream>,
    writer: UnixStream,
    text: String,
}

impl Stream {
    fn open(socket: &Path) -> Result<Self, Error> {
        let writer = UnixStream::connect(socket)?;
        writer.set_read_timeout(Some(SILENCE))?;
        Ok(Self {
            reader: BufReader::with_capacity(256 << 10, writer.try_clone()?),
            writer,
            text: String::new(),
        })
    }

    fn ask(&mut self, request: &[u8]) -> Result<(), Error> {
        Ok(self.writer.write_all(request)?)
    }

    /// The next line, which begins with `start`; what follows.
    fn line(&mut self, start: &str) -> Result<&str, Error> {
        self.text.clear();
        self.reader.read_line(&mut self.text)?;
        let rest = self.text.trim_end().strip_prefix(start);
        rest.ok_or_else(|| format!("the daemon answered {:?}", self.text.trim_end()).into())
    }

    /// A value, and the line's end behind it.
    fn value(&mut self, to: &mut [u8]) -> Result<(), Error> {
        self.reader.read_exact(to)?;
        let mut end = [0; 2];
        Ok(self.reader.read_exact(&mut end)?)
    }
}

/// A request of Redis: an array of strings.
fn resp(words: &[&[u8]]) -> Vec<u8> {
    let mut request = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        request.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        request.extend_from_slice(word);
        request.extend_from_slice(b"\r\n");
    }
    request
}

struct Redis {
    stream: Stream,
    keys: Vec<Vec<u8>>,
    slots: Slots,
}

/// A connection to Redis or Valkey.
pub(crate) fn redis(socket: &Path, values: &Values, room: usize) -> Result<AnyGetter, Error> {
    Ok(Box::new(Redis {
        stream: Stream::open(socket)?,
        keys: (0..values.count()).map(|index| values.key(index)).collect(),
        slots: Slots::new(room),
    }))
}

impl Getter for Redis {
    fn get(&mut self, batch: &[u32]) -> Result<(), Error> {
        let mut words: Vec<&[u8]> = vec![b"MGET"];
        words.extend(batch.iter().map(|&index| self.keys[index as usize].as_slice()));
        self.stream.ask(&resp(&words))?;
        self.slots.clear();
        self.stream.line("*")?;
        for _ in batch {
            let len: usize = self.stream.line("$")?.parse()?;
            self.stream.value(self.slots.next(len))?;
        }
        Ok(())
    }

    fn look(&self, at: usize, judge: &mut dyn FnMut(&[u8]) -> bool) -> Result<bool, Error> {
        Ok(judge(self.slots.value(at)))
    }
}

struct Memcached {
    stream: Stream,
    keys: Vec<Vec<u8>>,
    slots: Slots,
}

/// A connection to memcached.
pub(crate) fn memcached(socket: &Path, values: &Values, room: usize) -> Result<AnyGetter, Error> {
    Ok(Box::new(Memcached {
        stream: Stream::open(socket)?,
        keys: (0..values.count()).map(|index| values.key(index)).collect(),
        slots: Slots::new(room),
    }))
}

impl Getter for Memcached {
    fn get(&mut self, batch: &[u32]) -> Result<(), Error> {
        let mut request = b"get".to_vec();
        for &index in batch {
            request.push(b' ');
            request.extend_from_slice(&self.keys[index as usize]);
        }
        request.extend_from_slice(b"\r\n");
        self.stream.ask(&request)?;
        self.slots.clear();
        for &index in batch {
            let line = self.stream.line("VALUE ")?;
            // Key, flags, length; answers come in the order of the request, each value that is there once.
            let mut words = line.split(' ');
            if words.next().map(str::as_bytes) != Some(&self.keys[index as usize][..]) {
                return Err("memcached gave another value than the next one".into());
            }
            let len: usize = words.nth(1).ok_or("memcached gave no length")?.parse()?;
            self.stream.value(self.slots.next(len))?;
        }
        self.stream.line("END")?;
        Ok(())
    }

    fn look(&self, at: usize, judge: &mut dyn FnMut(&[u8]) -> bool) -> Result<bool, Error> {
        Ok(judge(self.slots.value(at)))
    }
}
