//! What programs call: a session and its datasets, over whichever fabric the target names.

use std::io::Read;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use crate::{
    ClientError, ClientOptions, Counters, DatasetId, DatasetInfo, Entry, GlobalLocator, PutOutcome,
    ReadError, Target,
};

fn soon<T>() -> Result<T, ClientError> {
    Err(ClientError::Closed)
}

/// A session with a server. Clones share it.
#[derive(Clone)]
pub struct Server {}

impl Server {
    /// Begins a session.
    ///
    /// # Errors
    /// [`ClientError`]: what failed, and what to do.
    pub fn connect(_target: &Target, _options: ClientOptions) -> Result<Self, ClientError> {
        soon()
    }
    /// Creates a dataset.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn create(&self, _name: &str) -> Result<DatasetId, ClientError> {
        soon()
    }
    /// Drops a dataset and all in it.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn drop_dataset(&self, _name: &str) -> Result<(), ClientError> {
        soon()
    }
    /// Renames a dataset.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn rename(&self, _from: &str, _to: &str) -> Result<(), ClientError> {
        soon()
    }
    /// The datasets that the key may open, by name.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn datasets(&self) -> Result<Vec<DatasetInfo>, ClientError> {
        soon()
    }
    /// Figures of the server.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn stat(&self) -> Result<Vec<(String, u64)>, ClientError> {
        soon()
    }
    /// Opens a dataset.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn open(&self, _dataset: &str) -> Result<Client, ClientError> {
        soon()
    }
    /// Ends the session.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn close(self) -> Result<(), ClientError> {
        soon()
    }
    /// The fabric and what it chose, for people.
    pub fn describe(&self) -> String {
        String::new()
    }
}

/// Memory that values may be read into.
pub trait Destination {}

/// One dataset of a session.
#[derive(Clone)]
pub struct Client {}

/// Memory of the library that values are read into without a copy.
pub struct RegisteredBuffer {}

impl Destination for RegisteredBuffer {}

impl Deref for RegisteredBuffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &[]
    }
}
impl DerefMut for RegisteredBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut []
    }
}

/// Memory of the caller that values are read into without a copy.
pub struct RegisteredMemory {}
impl Destination for RegisteredMemory {}

#[allow(missing_docs)]
impl Client {
    pub fn connect(_uri: &str, _options: ClientOptions) -> Result<Self, ClientError> {
        soon()
    }
    pub fn get(&self, _key: &[u8]) -> Result<Vec<u8>, ReadError> {
        Err(ReadError::Closed)
    }
    pub fn get_range(&self, _key: &[u8], _offset: u64, _len: u64) -> Result<Vec<u8>, ReadError> {
        Err(ReadError::Closed)
    }
    pub fn get_many<K: AsRef<[u8]>>(&self, keys: &[K]) -> Vec<Result<Vec<u8>, ReadError>> {
        vec![Err(ReadError::Closed); keys.len()]
    }
    pub fn locate(&self, _key: &[u8]) -> Result<GlobalLocator, ReadError> {
        Err(ReadError::Closed)
    }
    pub fn locate_many<K: AsRef<[u8]>>(&self, keys: &[K]) -> Vec<Result<GlobalLocator, ReadError>> {
        vec![Err(ReadError::Closed); keys.len()]
    }
    pub fn get_at(&self, _at: &GlobalLocator, _key: Option<&[u8]>) -> Result<Vec<u8>, ReadError> {
        Err(ReadError::Closed)
    }
    pub fn get_many_at<K: AsRef<[u8]>>(
        &self,
        at: &[GlobalLocator],
        _keys: Option<&[K]>,
    ) -> Vec<Result<Vec<u8>, ReadError>> {
        vec![Err(ReadError::Closed); at.len()]
    }
    pub fn allocate(&self, _len: usize) -> Result<RegisteredBuffer, ClientError> {
        soon()
    }
    /// # Safety
    /// - `ptr..ptr + len` stays mapped and unaccessed by others while the value lives.
    #[allow(unsafe_code)]
    pub unsafe fn register(&self, _ptr: NonNull<u8>, _len: usize) -> Result<RegisteredMemory, ClientError> {
        soon()
    }
    pub fn get_into(
        &self,
        _key: &[u8],
        _buffer: &mut impl Destination,
        _offset: usize,
    ) -> Result<usize, ReadError> {
        Err(ReadError::Closed)
    }
    pub fn get_at_into(
        &self,
        _at: &GlobalLocator,
        _key: Option<&[u8]>,
        _buffer: &mut impl Destination,
        _offset: usize,
    ) -> Result<usize, ReadError> {
        Err(ReadError::Closed)
    }
    pub fn put(&self, _key: &[u8], _value: &[u8]) -> Result<PutOutcome, ClientError> {
        soon()
    }
    pub fn put_from(
        &self,
        _key: &[u8],
        _len: u64,
        _source: &mut dyn Read,
    ) -> Result<PutOutcome, ClientError> {
        soon()
    }
    pub fn put_many<K: AsRef<[u8]>, V: AsRef<[u8]>>(
        &self,
        items: &[(K, V)],
    ) -> Vec<Result<PutOutcome, ClientError>> {
        items.iter().map(|_| soon()).collect()
    }
    pub fn delete(&self, _key: &[u8]) -> Result<bool, ClientError> {
        soon()
    }
    pub fn list(&self) -> impl Iterator<Item = Result<Entry, ClientError>> + use<> {
        std::iter::empty()
    }
    pub fn stat(&self) -> Result<Vec<(String, u64)>, ClientError> {
        soon()
    }
    pub fn counters(&self) -> Counters {
        Counters::default()
    }
    pub fn dataset_id(&self) -> DatasetId {
        [0; 16]
    }
    pub fn server(&self) -> Server {
        Server {}
    }
    pub fn describe(&self) -> String {
        String::new()
    }
}
