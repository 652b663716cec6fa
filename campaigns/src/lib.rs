//! Campaigns against a server, run by the program `campaign`; what starts a server as a process, and ends what was begun.

pub mod interrupt;
pub mod processes;

/// What can go wrong in a run: said in one line.
pub type Error = Box<dyn std::error::Error>;
