//! The only file of `bench run` that calls the client: a session, filling a dataset, and GETs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kv_client::{
    AccessKey, Client, ClientOptions, Counters, GlobalLocator, ReadError, Reader, RegisteredBuffer,
    Server as Session, Ticket, Value,
};
use rustc_hash::FxHashMap;

use super::definition::{Locators, SideName};
use super::job::{Job, Point};
use super::pace::Getter;
use super::values::Values;
use crate::Error;

/// Bytes, and values, that are stored with one call.
const FILL_BYTES: u64 = 32 << 20;
const FILL_VALUES: usize = 4096;
/// Longest that the server may take to fill its images.
const LOAD_PATIENCE: Duration = Duration::from_secs(240);

/// A session and the dataset of a case.
pub(crate) struct Connection {
    session: Session,
    client: Client,
}

impl Connection {
    /// Connects to `server` as the point of `job` says.
    pub(crate) fn new(job: &Job, server: &str) -> Result<Self, Error> {
        let mut options = ClientOptions::new(AccessKey::load(&job.key, None)?);
        options.deadline = Duration::from_secs(120);
        options.verify = job.point.verify;
        options.depth = job.point.depth as u32;
        options.data_connections = job.point.queue_pairs as u16;
        let session = Session::connect(&server.parse()?, options)?;
        let client = session.open(&job.dataset)?;
        Ok(Self { session, client })
    }

    /// What it and all its getters have done.
    pub(crate) fn counters(&self) -> Counters {
        self.client.counters()
    }

    /// Frames that the server has been sent. Asking is one of them.
    pub(crate) fn server_frames(&self) -> Result<u64, Error> {
        figure(&self.session, "server_frames_count")
    }

    /// A getter for each thread of `point`, with tickets where `side` is that.
    pub(crate) fn getters(
        &self,
        side: SideName,
        point: &Point,
        values: &Values,
    ) -> Result<Vec<KvGetter>, Error> {
        let keys: Arc<Vec<Vec<u8>>> = Arc::new((0..values.count()).map(|index| values.key(index)).collect());
        let locators = match point.locators {
            Locators::Live => None,
            Locators::Known => {
                let all: Result<Vec<_>, ReadError> = self.client.locate_many(&keys).into_iter().collect();
                Some(Arc::new(all?))
            }
        };
        let getter = |_| {
            Ok(KvGetter {
                reader: self.client.reader()?,
                keys: Arc::clone(&keys),
                locators: locators.clone(),
                most: (side == SideName::KvTickets).then_some(point.depth.max(point.batch)),
                tickets: FxHashMap::default(),
                buffer: if point.batch == 1 {
                    Some(self.client.allocate(values.longest_bytes())?)
                } else {
                    None
                },
                len: 0,
                at: Vec::with_capacity(point.batch),
                asked: Vec::with_capacity(point.batch),
                got: Vec::new(),
            })
        };
        (0..point.threads).map(getter).collect()
    }
}

fn figure(session: &Session, name: &str) -> Result<u64, Error> {
    let figures = session.stat()?;
    let found = figures.iter().find(|(found, _)| found == name);
    Ok(found.ok_or_else(|| format!("the server has no figure {name}"))?.1)
}

/// Makes a dataset of all values and waits until it is loaded.
pub(crate) fn fill(session: &Session, dataset: &str, values: &Values) -> Result<(), Error> {
    session.create(dataset)?;
    let client = session.open(dataset)?;
    let mut next = 0;
    while next < values.count() {
        let (mut items, mut bytes) = (Vec::new(), 0);
        while next < values.count() && items.len() < FILL_VALUES && bytes < FILL_BYTES {
            items.push((values.key(next), values.bytes(next)?));
            bytes += values.len_bytes(next);
            next += 1;
        }
        for outcome in client.put_many(&items) {
            outcome?;
        }
    }
    wait_until_loaded(session)
}

/// Waits until every image is filled: what is loaded takes disk and processor from what is measured.
pub(crate) fn wait_until_loaded(session: &Session) -> Result<(), Error> {
    let deadline = Instant::now() + LOAD_PATIENCE;
    while figure(session, "segments_loading_count")? > 0 {
        if Instant::now() > deadline {
            return Err(format!("the server had not filled its images within {LOAD_PATIENCE:?}").into());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// GETs of one thread: into registered memory one by one, into memory of its own several at once.
pub(crate) struct KvGetter {
    reader: Reader,
    keys: Arc<Vec<Vec<u8>>>,
    locators: Option<Arc<Vec<GlobalLocator>>>,
    /// GETs under way by tickets, at most; none where calls are made.
    most: Option<usize>,
    /// Numbers of those under way.
    tickets: FxHashMap<Ticket, usize>,
    buffer: Option<RegisteredBuffer>,
    len: usize,
    at: Vec<GlobalLocator>,
    asked: Vec<u32>,
    got: Vec<Result<Value, ReadError>>,
}

impl Getter for KvGetter {
    fn prepare(&mut self, batch: &[u32]) {
        self.asked.clear();
        self.asked.extend_from_slice(batch);
        if let Some(locators) = &self.locators {
            self.at.clear();
            self.at
                .extend(batch.iter().map(|&index| locators[index as usize]));
        }
    }

    fn get(&mut self, batch: &[u32]) -> Result<(), Error> {
        if let (Some(buffer), &[index]) = (&mut self.buffer, batch) {
            let key = &self.keys[index as usize];
            self.len = match &self.locators {
                Some(locators) => self
                    .reader
                    .get_at_into(&locators[index as usize], Some(key), buffer, 0)?,
                None => self.reader.get_into(key, buffer, 0)?,
            };
            return Ok(());
        }
        let keys: Vec<&[u8]> = batch
            .iter()
            .map(|&index| self.keys[index as usize].as_slice())
            .collect();
        // Their memory goes back to the reader, which uses it again.
        self.got.clear();
        self.got = match &self.locators {
            Some(_) => self.reader.get_many_at(&self.at, Some(&keys)),
            None => self.reader.get_many(&keys),
        };
        Ok(())
    }

    fn look(&self, at: usize, judge: &mut dyn FnMut(&[u8]) -> bool) -> Result<bool, Error> {
        if let Some(buffer) = &self.buffer {
            return Ok(judge(&buffer[..self.len]));
        }
        match &self.got[at] {
            Ok(value) => Ok(judge(value)),
            Err(error) => {
                let key = self.keys[self.asked[at] as usize].escape_ascii().to_string();
                Err(format!("GET of {key}: {error}").into())
            }
        }
    }

    fn tickets(&self) -> Option<usize> {
        self.most
    }

    fn begin(&mut self, index: u32, number: usize) -> Result<(), Error> {
        let key = &self.keys[index as usize];
        let ticket = match &self.locators {
            Some(locators) => self.reader.submit_at(&locators[index as usize], Some(key))?,
            None => self.reader.submit(key)?,
        };
        self.tickets.insert(ticket, number);
        Ok(())
    }

    fn go_on(&mut self, take: &mut dyn FnMut(usize, &[u8])) -> Result<(), Error> {
        // One, so that what has become due meanwhile is begun before the next is looked at.
        if let Some(done) = self.reader.poll() {
            let number = self.tickets.remove(&done.ticket);
            let number = number.ok_or("the reader gave a ticket that nobody has")?;
            done.result.map_err(|error| format!("GET by ticket: {error}"))?;
            take(number, &done.value);
        }
        Ok(())
    }
}
