//! The `kv` command, with a server of its own process.

mod device_removed;
mod round_trip;
mod support;
mod trouble;
mod usage;
