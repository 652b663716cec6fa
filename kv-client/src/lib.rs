//! Reads samples of a verbs-kv server by one-sided READs, and stores them.

mod api;
mod backoff;
mod clock;
mod control;
mod dataset;
mod error;
mod key;
mod list;
mod mailbox;
mod memory;
mod options;
mod put;
mod read;
mod session;
mod tables;
mod target;
mod types;

pub use api::{Client, Destination, List, RegisteredBuffer, RegisteredMemory, Server};
pub use error::{ClientError, ReadError};
pub use key::AccessKey;
pub use kv_fabric::ReadStatus;
pub use options::ClientOptions;
pub use target::{PORT_DEFAULT, Target};
pub use types::{Counters, DatasetId, DatasetInfo, Entry, GlobalLocator, Locator, PutOutcome};

/// The same over a fabric of the caller's choice, `kv_fabric::sim` included.
pub mod on {
    pub use crate::dataset::{DatasetOn, SessionOn};
    pub use crate::list::ListOn;
    pub use crate::memory::BufferOn;
}
