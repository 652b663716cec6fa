//! The bytes that a verbs-kv server and its clients agree on, and the pure rules that judge them.
//!
//! `PROTOCOL.md` beside this crate is the specification; a test holds its tables to the structs here.
//! Nothing in this crate does I/O, keeps state between calls, or panics on bytes from outside.
//!
//! - [`layout`]: every struct that is read by RDMA or lies on a medium, and every limit.
//! - [`hash`]: the keyed 128-bit key hash and what is taken from it.
//! - [`crc`]: CRC32C of values, blocks and records.
//! - [`record`]: building a record, and judging one that was read (**I4**).
//! - [`parts`]: where the parts of a large value lie, and judging one.
//! - [`footer`]: what FOOTERs and checkpoints list.
//! - [`segment_list`]: which segments a dataset has.
//! - [`bucket`]: checksums of buckets and directory entries, and the lookup rules.
//! - [`control`]: control frames.
//! - [`auth`]: the proofs of the challenge and response.

#[cfg(target_endian = "big")]
compile_error!("verbs-kv lays its structs out in little-endian order and does not run on big-endian targets");

pub mod auth;
pub mod bucket;
pub mod catalogue;
pub mod control;
pub mod crc;
mod error;
pub mod footer;
pub mod hash;
pub mod layout;
pub mod parts;
pub mod record;
mod sealed_list;
pub mod segment_list;

pub use error::DecodeError;
