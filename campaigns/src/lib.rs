//! Campaigns against a server, run by the program `campaign`, and what starts a server as a process.

pub mod processes;

/// What can go wrong in a run: said in one line.
pub type Error = Box<dyn std::error::Error>;
