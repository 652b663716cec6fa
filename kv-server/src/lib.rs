//! The server of verbs-kv: datasets on NVMe, whose images clients read with one-sided READs.
//!
//! - [`control`]: the endpoint's thread; sessions, leases, keys, and everything that is asked in frames.
//! - [`config`]: the command line of the `kv-server` binary.

pub mod config;
pub mod control;
pub mod error;
pub mod store;
