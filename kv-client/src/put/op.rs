//! One value on its way.

use std::time::Duration;

use super::source::Source;
use crate::client::{bad_key, shown};
use crate::read::check_key;
use crate::{ClientError, PutOutcome};

/// How often one value may be begun again, waits for a busy server not counted.
const RESTARTS_MAX: u32 = 256;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// To be begun, or begun again.
    Waiting,
    Allocating,
    Appending,
    Committing,
    Done,
}

/// One value on its way.
pub(super) struct Op<'v> {
    pub(super) key: &'v [u8],
    pub(super) source: Source<'v>,
    /// Its number, taken at the first ALLOC: the server remembers only so many of the highest.
    pub(super) operation: Option<u64>,
    /// It took another number, for the server knew the first no more, and did not wait since. Where the new one is too low as
    /// well, the clock that they are counted from went back.
    pub(super) renumbered: bool,
    pub(super) stage: Stage,
    pub(super) window: (u64, usize),
    /// Bytes taken from the source, the window under way included.
    pub(super) sent: u64,
    /// The most that `sent` ever was.
    sent_most: u64,
    /// COMMIT was sent, and nothing said since that it was not done.
    pub(super) committed: bool,
    pub(super) failures: u32,
    /// The server said last that it is busy.
    pub(super) busy: bool,
    restarts: u32,
    pub(super) last: String,
    pub(super) result: Option<Result<PutOutcome, ClientError>>,
}

impl<'v> Op<'v> {
    pub(super) fn new(key: &'v [u8], source: Source<'v>) -> Self {
        let bad = check_key(key).is_err();
        Self {
            key,
            source,
            operation: None,
            renumbered: false,
            stage: if bad { Stage::Done } else { Stage::Waiting },
            window: (0, 0),
            sent: 0,
            sent_most: 0,
            committed: false,
            failures: 0,
            busy: false,
            restarts: 0,
            last: "no answer".to_owned(),
            result: bad.then(|| Err(bad_key(key))),
        }
    }

    pub(super) fn what(&self) -> String {
        format!("put {}", shown(self.key))
    }

    /// Whether the server was busy when it was last asked to begin it; it may be being asked again now.
    pub(super) fn is_refused_as_busy(&self) -> bool {
        self.busy && matches!(self.stage, Stage::Waiting | Stage::Allocating)
    }

    pub(super) fn finish(&mut self, result: Result<PutOutcome, ClientError>) {
        self.stage = Stage::Done;
        self.result = Some(result);
    }

    /// Ends with `error`, or as unknown where the server may have stored the value.
    pub(super) fn fail(&mut self, error: ClientError) {
        let error = if self.committed {
            ClientError::Unknown { what: self.what() }
        } else {
            error
        };
        self.finish(Err(error));
    }

    /// Notes that `len` more bytes were taken; whether it got farther than ever.
    pub(super) fn advance(&mut self, len: u64) -> bool {
        self.sent += len;
        let farther = self.sent > self.sent_most;
        self.sent_most = self.sent_most.max(self.sent);
        farther
    }

    /// Begins again after trouble, so often and no oftener.
    pub(super) fn restart(&mut self, why: String, after: Duration) {
        self.restarts += 1;
        if self.restarts > RESTARTS_MAX {
            return self.fail(ClientError::Timeout {
                what: self.what(),
                after,
                last: format!("begun {RESTARTS_MAX} times, and then {why}"),
            });
        }
        self.begin_again(why);
    }

    /// Begins again from ALLOC, if the bytes can be had again, or if the server may have them: its memory of the
    /// operation tells.
    pub(super) fn begin_again(&mut self, why: String) {
        self.busy = false;
        if self.source.rewind() {
            self.sent = 0;
        } else if self.sent > 0 && !self.committed {
            return self.finish(Err(ClientError::StreamLost));
        }
        self.stage = Stage::Waiting;
        self.last = why;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent<'v>(source: Source<'v>, stage: Stage, committed: bool) -> Op<'v> {
        let mut op = Op::new(b"k", source);
        (op.stage, op.sent, op.committed) = (stage, 5, committed);
        op
    }

    #[test]
    fn a_stream_whose_commit_was_sent_is_asked_for_however_often_it_begins_again() {
        let mut bytes = &b"value"[..];
        let mut op = sent(Source::stream(5, &mut bytes), Stage::Committing, true);
        for _ in 0..3 {
            op.begin_again("the session ended".to_owned());
            assert_eq!((op.stage, op.sent), (Stage::Waiting, 5));
            // ALLOC is refused, the operation being committed, or lost.
            op.stage = Stage::Allocating;
        }
        op.committed = false;
        op.begin_again("dropped".to_owned());
        assert!(matches!(op.result, Some(Err(ClientError::StreamLost))));
    }

    #[test]
    fn bytes_begin_again_from_the_first() {
        for committed in [false, true] {
            let mut op = sent(Source::bytes(b"value"), Stage::Appending, committed);
            op.begin_again("the session ended".to_owned());
            assert_eq!((op.stage, op.sent, op.committed), (Stage::Waiting, 0, committed));
        }
    }

    #[test]
    fn the_end_of_what_may_be_stored_is_unknown_whatever_ended_it() {
        for committed in [false, true] {
            let mut op = sent(Source::bytes(b"value"), Stage::Waiting, committed);
            op.fail(ClientError::Closed);
            let unknown = matches!(op.result, Some(Err(ClientError::Unknown { .. })));
            assert_eq!(unknown, committed);
        }
    }

    #[test]
    fn only_what_gets_farther_than_before_counts_and_restarts_have_an_end() {
        let mut op = Op::new(b"k", Source::bytes(b"value"));
        assert!(op.advance(2) && op.advance(2));
        for restart in 0..RESTARTS_MAX {
            op.restart("the session ended".to_owned(), Duration::ZERO);
            assert_eq!(op.stage, Stage::Waiting, "restart {restart}");
            assert!(!op.advance(2) && !op.advance(2));
        }
        assert!(op.advance(1));
        op.restart("the session ended".to_owned(), Duration::ZERO);
        let Some(Err(error @ ClientError::Timeout { .. })) = op.result else {
            panic!("begun for ever");
        };
        assert!(error.to_string().contains("the session ended"), "{error}");
    }
}
