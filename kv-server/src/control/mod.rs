//! The control side: one thread that answers frames, accepts connections, and keeps leases.
//!
//! Pure, so that each can be tested and checked alone:
//! - [`session`]: what one session may say, and when.
//! - [`leases`]: who may still read what, who is fenced, what is released; [`telling`]: what RENEW says of it.
//! - [`puts`], [`windows`], [`tokens`]: what a session holds besides; `line`: who waits for memory to put values.
//! - [`keys`]: who may do what.
//!
//! With a fabric and a store:
//! - `server`: start and stop.
//! - `run`: the loop; `connections`: who connects and how a session ends; `undestroyed`: where its connections do
//!   not; `requests`, `changes` and `writes`: what is answered.

mod changes;
pub mod clock;
mod connections;
pub mod counters;
pub mod keys;
pub mod leases;
mod line;
pub mod options;
pub mod puts;
mod requests;
mod run;
mod server;
pub mod session;
pub mod telling;
pub mod tokens;
mod undestroyed;
pub mod windows;
mod writes;

pub use keys::{Key, Keys};
pub use options::Options;
pub use server::{Remote, Server, StartError};

#[cfg(test)]
mod tests;
