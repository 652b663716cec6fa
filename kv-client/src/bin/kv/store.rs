//! What ingest and verify ask of a dataset: the seam that lets them be tested without a server.

use std::io::Read;
use std::ops::ControlFlow;

use kv_client::{Client, ClientError, Counters, GlobalLocator, ReadError};
use kv_proto::control::Status;

/// Why an operation on a dataset failed, sorted by what the caller does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum StoreError {
    /// The key is not there.
    NotFound,
    /// This value failed; others may do.
    Item(String),
    /// Nothing is known to be stored, and the same may be tried once more at once.
    Again(String),
    /// Nothing was stored: the server was busy with other values for as long as was waited.
    Busy(String),
    /// It may be stored, or still become so: look, and do not send it as a new one.
    Unknown(String),
    /// The dataset, the server or the way to it failed: stop.
    Fatal(String),
}

impl StoreError {
    /// The line for a person.
    pub(crate) fn text(&self) -> &str {
        match self {
            Self::NotFound => "there is no such key",
            Self::Item(text)
            | Self::Again(text)
            | Self::Busy(text)
            | Self::Unknown(text)
            | Self::Fatal(text) => text,
        }
    }
}

impl From<ClientError> for StoreError {
    fn from(error: ClientError) -> Self {
        let text = error.to_string();
        match error {
            ClientError::BadKey { .. } | ClientError::Source(_) | ClientError::SourceLength { .. } => {
                Self::Item(text)
            }
            ClientError::Refused {
                status: Status::TooLarge | Status::BadKey,
                ..
            } => Self::Item(text),
            ClientError::StreamLost | ClientError::Unknown { .. } => Self::Unknown(text),
            ClientError::Refused {
                status: Status::Crc, ..
            } => Self::Again(text),
            ClientError::Busy { .. } => Self::Busy(text),
            ClientError::Read { source, .. } => Self::from(source),
            _ => Self::Fatal(text),
        }
    }
}

impl From<ReadError> for StoreError {
    fn from(error: ReadError) -> Self {
        let text = error.to_string();
        match error {
            ReadError::NotFound => Self::NotFound,
            ReadError::Torn { .. }
            | ReadError::Stale
            | ReadError::TooLarge { .. }
            | ReadError::NoImage
            | ReadError::BadKey { .. } => Self::Item(text),
            _ => Self::Fatal(text),
        }
    }
}

/// One result for each key of a batch.
pub(crate) type Each<T> = Vec<Result<T, StoreError>>;

/// Called with a key, the length of its value and where it lies; says whether to go on.
pub(crate) type Visit<'a, P> = dyn FnMut(&[u8], u64, P) -> ControlFlow<()> + 'a;

/// A dataset. A clone serves another thread.
pub(crate) trait Store: Clone + Send {
    /// Where a value lies.
    type Place: Copy;

    /// Calls `each` for every key, in no order, until that says to stop.
    fn list(&self, each: &mut Visit<'_, Self::Place>) -> Result<(), StoreError>;
    /// Fetches values, in the order of the keys.
    fn get_many(&self, keys: &[&[u8]]) -> Each<Vec<u8>>;
    /// Fetches values whose places are known, in the order of the keys.
    fn get_many_at(&self, places: &[Self::Place], keys: &[&[u8]]) -> Each<Vec<u8>>;
    /// Fetches a part of a value.
    fn get_range(&self, key: &[u8], offset: u64, len_bytes: u64) -> Result<Vec<u8>, StoreError>;
    /// Stores values; each that is answered is durable.
    fn put_many(&self, items: &[(&[u8], &[u8])]) -> Each<()>;
    /// Stores a value that is read while it is sent.
    fn put_from(&self, key: &[u8], len_bytes: u64, source: &mut dyn Read) -> Result<(), StoreError>;
    /// What was done so far, clones included.
    fn counters(&self) -> Counters;
}

impl Store for Client {
    type Place = GlobalLocator;

    fn list(&self, each: &mut Visit<'_, GlobalLocator>) -> Result<(), StoreError> {
        for entry in Client::list(self) {
            let entry = entry?;
            if each(&entry.key, entry.value_len_bytes, entry.locator).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn get_many(&self, keys: &[&[u8]]) -> Each<Vec<u8>> {
        Client::get_many(self, keys)
            .into_iter()
            .map(|got| got.map_err(StoreError::from))
            .collect()
    }

    fn get_many_at(&self, places: &[GlobalLocator], keys: &[&[u8]]) -> Each<Vec<u8>> {
        let got = Client::get_many_at(self, places, Some(keys));
        got.into_iter().map(|got| got.map_err(StoreError::from)).collect()
    }

    fn get_range(&self, key: &[u8], offset: u64, len_bytes: u64) -> Result<Vec<u8>, StoreError> {
        Ok(Client::get_range(self, key, offset, len_bytes)?)
    }

    fn put_many(&self, items: &[(&[u8], &[u8])]) -> Each<()> {
        let stored = Client::put_many(self, items);
        stored
            .into_iter()
            .map(|put| put.map(|_| ()).map_err(StoreError::from))
            .collect()
    }

    fn put_from(&self, key: &[u8], len_bytes: u64, source: &mut dyn Read) -> Result<(), StoreError> {
        Client::put_from(self, key, len_bytes, source)?;
        Ok(())
    }

    fn counters(&self) -> Counters {
        Client::counters(self)
    }
}

#[cfg(test)]
pub(crate) mod fake {
    //! A dataset in memory that counts what is asked of it and fails where a test says so.

    use super::*;
    use std::collections::{BTreeMap, HashMap};
    use std::sync::{Arc, Mutex, MutexGuard};

    #[derive(Default)]
    pub(crate) struct State {
        pub(crate) values: BTreeMap<Vec<u8>, Vec<u8>>,
        /// Puts that were answered, by key.
        pub(crate) puts: HashMap<Vec<u8>, u64>,
        /// Puts that are still taken before the disk is full.
        pub(crate) puts_left: Option<u64>,
        /// The next answers to a put of this key.
        pub(crate) put_errors: HashMap<Vec<u8>, Vec<StoreError>>,
        /// Answers to a get of this key.
        pub(crate) get_errors: HashMap<Vec<u8>, StoreError>,
        /// Keys listed.
        pub(crate) listed: u64,
        /// Values fetched, whole or in part.
        pub(crate) gets: u64,
        /// Those by a known place.
        pub(crate) known_gets: u64,
        /// What a put of this key whose outcome is unknown leaves there.
        pub(crate) left_by_unknown: HashMap<Vec<u8>, Vec<u8>>,
        /// Streams that are open, and the most that ever were.
        pub(crate) streams: (u32, u32),
        /// Puts that must have been answered before a stream ends.
        pub(crate) streams_wait_for: u64,
        /// Streams that are still broken after their first bytes.
        pub(crate) broken_streams: u32,
        /// Called at each get.
        pub(crate) at_get: Option<Box<dyn FnMut() + Send>>,
        /// Called after each answered put.
        pub(crate) after_put: Option<Box<dyn FnMut(u64) + Send>>,
    }

    #[derive(Clone, Default)]
    pub(crate) struct Fake(Arc<Mutex<State>>);

    impl Fake {
        pub(crate) fn of(values: &[(&[u8], &[u8])]) -> Self {
            let fake = Self::default();
            fake.state().values = values
                .iter()
                .map(|(key, value)| (key.to_vec(), value.to_vec()))
                .collect();
            fake
        }

        pub(crate) fn state(&self) -> MutexGuard<'_, State> {
            self.0.lock().unwrap()
        }

        pub(crate) fn value(&self, key: &[u8]) -> Option<Vec<u8>> {
            self.state().values.get(key).cloned()
        }

        pub(crate) fn total_puts(&self) -> u64 {
            self.state().puts.values().sum()
        }

        fn put(&self, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
            let mut state = self.state();
            if let Some(error) = state.put_errors.get_mut(key).and_then(Vec::pop) {
                if matches!(error, StoreError::Unknown(_))
                    && let Some(left) = state.left_by_unknown.remove(key)
                {
                    state.values.insert(key.to_vec(), left);
                }
                return Err(error);
            }
            match &mut state.puts_left {
                Some(0) => return Err(StoreError::Fatal("put: the server's disk is full".into())),
                Some(left) => *left -= 1,
                None => {}
            }
            state.values.insert(key.to_vec(), value.to_vec());
            *state.puts.entry(key.to_vec()).or_default() += 1;
            let count = state.puts.values().sum();
            if let Some(call) = &mut state.after_put {
                call(count);
            }
            Ok(())
        }

        /// Counts a stream as open until it is dropped, and waits for what it is to wait for.
        fn stream(&self) -> Result<Stream, StoreError> {
            let open = Stream(self.clone());
            {
                let streams = &mut self.state().streams;
                streams.0 += 1;
                streams.1 = streams.1.max(streams.0);
            }
            for _ in 0..30_000 {
                if self.total_puts() >= self.state().streams_wait_for {
                    return Ok(open);
                }
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            Err(StoreError::Fatal("nothing else was stored meanwhile".into()))
        }

        fn get(&self, key: &[u8]) -> Result<Vec<u8>, StoreError> {
            let mut state = self.state();
            state.gets += 1;
            if let Some(call) = &mut state.at_get {
                call();
            }
            if let Some(error) = state.get_errors.get(key) {
                return Err(error.clone());
            }
            state.values.get(key).cloned().ok_or(StoreError::NotFound)
        }
    }

    struct Stream(Fake);

    impl Drop for Stream {
        fn drop(&mut self) {
            self.0.state().streams.0 -= 1;
        }
    }

    impl Store for Fake {
        /// Which of the keys, in their order, it was when listed.
        type Place = usize;

        fn list(&self, each: &mut Visit<'_, usize>) -> Result<(), StoreError> {
            let mut state = self.state();
            let entries: Vec<_> = state.values.iter().enumerate().collect();
            let mut listed = 0;
            // Backwards, so that nobody relies on an order.
            for (place, (key, value)) in entries.into_iter().rev() {
                listed += 1;
                if each(key, value.len() as u64, place).is_break() {
                    break;
                }
            }
            state.listed += listed;
            Ok(())
        }

        fn get_many_at(&self, places: &[usize], keys: &[&[u8]]) -> Each<Vec<u8>> {
            self.state().known_gets += places.len() as u64;
            keys.iter().map(|key| self.get(key)).collect()
        }

        fn counters(&self) -> Counters {
            let (mut counters, state) = (Counters::default(), self.state());
            (counters.gets, counters.reads_posted) = (state.gets, 3 * state.gets - 2 * state.known_gets);
            counters
        }

        fn get_many(&self, keys: &[&[u8]]) -> Each<Vec<u8>> {
            keys.iter().map(|key| self.get(key)).collect()
        }

        fn get_range(&self, key: &[u8], offset: u64, len_bytes: u64) -> Result<Vec<u8>, StoreError> {
            let value = self.get(key)?;
            let end = (offset + len_bytes).min(value.len() as u64);
            Ok(value[offset as usize..end as usize].to_vec())
        }

        fn put_many(&self, items: &[(&[u8], &[u8])]) -> Each<()> {
            items.iter().map(|(key, value)| self.put(key, value)).collect()
        }

        fn put_from(&self, key: &[u8], len_bytes: u64, source: &mut dyn Read) -> Result<(), StoreError> {
            let mut value = vec![0; len_bytes as usize];
            let _open = self.stream()?;
            let left = self.state().broken_streams.checked_sub(1);
            if let Some(left) = left {
                self.state().broken_streams = left;
                let _ = source.read(&mut value[..1]);
                return Err(StoreError::Unknown("the connection was lost".into()));
            }
            // In small pieces, as a stream over a network is taken.
            for piece in value.chunks_mut(4096) {
                source
                    .read_exact(piece)
                    .map_err(|error| StoreError::Item(error.to_string()))?;
            }
            self.put(key, &value)
        }
    }
}
