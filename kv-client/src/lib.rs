//! Reads samples of a verbs-kv server by one-sided READs, and stores them.

mod api;
mod error;
mod key;
mod options;
mod target;
mod types;

pub use api::{Client, Destination, RegisteredBuffer, RegisteredMemory, Server};
pub use error::{ClientError, ReadError};
pub use key::AccessKey;
pub use kv_fabric::ReadStatus;
pub use options::ClientOptions;
pub use target::{PORT_DEFAULT, Target};
pub use types::{Counters, DatasetId, DatasetInfo, Entry, GlobalLocator, Locator, PutOutcome};
