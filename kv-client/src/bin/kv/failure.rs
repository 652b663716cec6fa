//! How a subcommand ends when it does not succeed: one line that says what, which value, and the remedy.

use std::fmt::{self, Display};
use std::io;

/// Exit code of a command that did what it was asked.
pub(crate) const OK: u8 = 0;
/// Exit code of a command that failed, wholly or in part.
pub(crate) const FAILED: u8 = 1;
/// Exit code of a wrong command line (clap uses the same).
pub(crate) const USAGE: u8 = 2;

/// What a subcommand returns: its exit code, or why it stopped.
pub(crate) type Ended = Result<u8, Failure>;

/// Why a command stopped.
#[derive(Debug)]
pub(crate) enum Failure {
    /// One line for stderr, and the exit code.
    Message {
        /// What, value, remedy.
        text: String,
        /// Exit code.
        code: u8,
    },
    /// The reader of stdout went away: nothing is wrong and nothing is said.
    BrokenPipe,
}

impl Failure {
    /// A failure of the work itself.
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self::Message {
            text: text.into(),
            code: FAILED,
        }
    }

    /// A command line that clap could not judge.
    pub(crate) fn usage(text: impl Into<String>) -> Self {
        Self::Message {
            text: text.into(),
            code: USAGE,
        }
    }

    /// Writing to stdout failed.
    pub(crate) fn stdout(error: &io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::BrokenPipe;
        }
        Self::new(format!("writing to stdout: {error}"))
    }
}

impl Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Message { text, .. } => f.write_str(text),
            Self::BrokenPipe => f.write_str("the reader of stdout went away"),
        }
    }
}
