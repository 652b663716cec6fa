//! The server of verbs-kv: datasets on NVMe, whose images clients read with one-sided READs.
//!
//! - [`store`]: segments, their images, the index, the log, recovery. Everything that is on a medium or is READ.
//! - [`control`]: one thread that answers frames, accepts connections, and keeps leases.
//! - [`config`]: the command line of the `kv-server` binary.
//! - [`error`]: why the store did not do what was asked.
//!
//! The binary is a thin shell around [`control::Server`], which tests and benchmarks embed:
//!
//! ```no_run
//! use kv_fabric::local::Local;
//! use kv_server::control::{Keys, Options, Server};
//! use kv_server::store::StoreOptions;
//! use std::sync::Arc;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let store = StoreOptions {
//!     data: "/mnt/nvme/data".into(),
//!     memory_budget_bytes: 8 << 30,
//!     segment_bytes: 1 << 30,
//!     part_bytes: 32 << 20,
//!     gather_budget_bytes: 256 << 20,
//!     compaction: kv_server::store::Compaction::default(),
//!     scrub_share: kv_server::store::SCRUB_SHARE_DEFAULT,
//! };
//! let keys = Keys::load("keys.toml".as_ref())?;
//! let server = Server::start(Arc::new(Local::new()?), "/run/verbs-kv.sock", store, keys, Options::default())?;
//! println!("serving at {}", server.address());
//! server.stop();
//! server.join()?;
//! # Ok(())
//! # }
//! ```

pub mod config;
pub mod control;
pub mod error;
pub mod store;

// Unit tests share the harness of the test programs, which name the crate from outside.
#[cfg(test)]
extern crate self as kv_server;
