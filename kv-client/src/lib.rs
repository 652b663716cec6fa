//! Reads samples of a verbs-kv server with one-sided RDMA READs that never wake the server's CPU, and stores them.
//!
//! ```no_run
//! use kv_client::{AccessKey, Client, ClientOptions, ReadError};
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let key = AccessKey::load("/etc/verbs-kv/keys.toml".as_ref(), None)?;
//!     let client = Client::connect("rdma://storage1:7471/images", ClientOptions::new(key))?;
//!     println!("{}", client.describe());
//!
//!     // Durable and visible when `put` returns.
//!     client.put(b"cat/0001.png", &std::fs::read("cat.png")?)?;
//!
//!     // Many values at once: buckets and records of all keys fly together.
//!     let keys = ["cat/0001.png", "cat/0002.png"];
//!     for (key, value) in keys.iter().zip(client.get_many(&keys)) {
//!         match value {
//!             Ok(value) => println!("{key}: {} bytes", value.len()),
//!             Err(ReadError::NotFound) => println!("{key}: not there"),
//!             Err(error) => return Err(error.into()),
//!         }
//!     }
//!
//!     // Asked for now, taken as they are done; the bytes stay where the device put them until they are dropped.
//!     let mut reader = client.reader()?;
//!     for key in &keys {
//!         reader.submit(key.as_bytes())?;
//!     }
//!     while let Some(done) = reader.wait() {
//!         println!("{:?}: {:?}, {} bytes", done.ticket, done.result, done.value.len());
//!     }
//!
//!     // A known place costs one READ, straight into registered memory, without a copy.
//!     let at = client.locate(b"cat/0001.png")?;
//!     let mut buffer = client.allocate(1 << 20)?;
//!     let len = client.get_at_into(&at, Some(b"cat/0001.png"), &mut buffer, 0)?;
//!     println!("first bytes: {:?}", &buffer[..len.min(8)]);
//!     Ok(())
//! }
//! ```
//!
//! # What is promised
//! - A value is returned only if its record says that it is the one asked for, and its checksums agree; a torn, moved or
//!   reused piece of memory is noticed and read again.
//! - A call returns when it is done, or when it has not got on for [`ClientOptions::deadline`]. Lost connections,
//!   restarts of the server and ended leases are dealt with in between.
//! - Memory that a call borrows is not written after the call returned: where a device refuses to end a connection that writes
//!   there, the call waits until it does, past its deadline too.
//!
//! # Threads
//! A process has one session with each server and key, whoever connects (by [`Server::connect_over`] a further one, over a
//! fabric of the caller's choice); it has one background thread, which renews its
//! lease and sleeps otherwise. All else happens in the thread that calls, or in the one that drives an [`AsyncReader`]. A
//! [`Client`] can be shared, but its calls take turns; a clone, and a [`Reader`], has data connections of its own, so threads
//! do not wait for each other.

mod backoff;
mod buffers;
mod client;
mod clock;
mod control;
mod error;
mod future;
mod key;
#[cfg(test)]
mod lease_model;
mod list;
mod mailbox;
mod memory;
mod opening;
mod options;
mod put;
mod read;
mod reader;
mod server;
mod session;
mod sessions;
mod tables;
mod target;
mod types;

pub use buffers::{Destination, Moved, RegisteredBuffer, RegisteredMemory};
pub use client::Client;
pub use error::{ClientError, ConnectionLimit, ReadError};
pub use future::{AsyncReader, Get};
pub use key::AccessKey;
pub use kv_fabric::ReadStatus;
pub use list::List;
pub use options::ClientOptions;
pub use read::slots::Value;
pub use reader::{Completion, Reader, Ticket};
pub use server::Server;
pub use target::{PORT_DEFAULT, Target};
pub use types::{Counters, DatasetId, DatasetInfo, Entry, GlobalLocator, Locator, PutOutcome};

/// Pieces by themselves, for benches: nothing is promised of them.
#[doc(hidden)]
pub mod pieces {
    pub use crate::read::locators::Locators;
}

/// The README's example, so that it compiles.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
