//! Storing values: ALLOC, WRITE and APPEND window by window, COMMIT; many at once.
//!
//! Each value is an operation with a number of its own. When the session is lost, or the server drops the operation,
//! it begins again under the same number: the server answers what is already done instead of doing it again.

mod op;
pub(crate) mod pool;
mod source;

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use kv_fabric::RemoteRef;
use kv_proto::control::{Answer, Bytes, Refused, Request, Status};

use crate::backoff::Backoff;
use crate::client::Client;
use crate::clock::Deadline;
use crate::control::{Command, Up, Write};
use crate::mailbox::{Mailbox, Reply};
use crate::opening::Core;
use crate::read::arrive::global;
use crate::tables::View;
use crate::{ClientError, PutOutcome};
use op::{Op, Stage};
use pool::SLOT_BYTES;
use source::Source;

/// Waits while the server is busy.
const BUSY_WAITS: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(100));
/// Values up to this length are read before they are sent, so that they can be sent again, bytes.
const BUFFERED_MAX_BYTES: u64 = 1 << 20;
/// How often the server may say that its storage failed, or that bytes did not arrive whole.
const FAILURES_MAX: u32 = 3;

/// Puts of one call, in one session at a time.
struct Putting<'c, 'v> {
    core: &'c Core,
    ops: Vec<Op<'v>>,
    deadline: Deadline,
    /// Times that puts of the session had got on when the deadline was set.
    moves: u64,
    backoff: Backoff,
    mailbox: Arc<Mailbox>,
    active: usize,
    busy: bool,
    up: Option<Arc<Up>>,
}

impl<'c, 'v> Putting<'c, 'v> {
    fn new(core: &'c Core, ops: Vec<Op<'v>>) -> Self {
        Self {
            core,
            ops,
            deadline: Deadline::after(core.budget()),
            moves: core.session().pool().moves(),
            backoff: Backoff::new(BUSY_WAITS.0, BUSY_WAITS.1),
            mailbox: Arc::default(),
            active: 0,
            busy: false,
            up: None,
        }
    }

    fn run(mut self) -> Vec<Result<PutOutcome, ClientError>> {
        while self.ops.iter().any(|op| op.stage != Stage::Done) {
            if self.deadline.is_over() {
                self.give_up();
                break;
            }
            let up = match self.core.shared().ensure(self.deadline, false) {
                Ok(up) => up,
                Err(error) => {
                    self.fail_all(&error);
                    break;
                }
            };
            self.up = Some(Arc::clone(&up));
            match self.core.open(&up, self.deadline) {
                Ok(view) => {
                    self.session(&up, &view);
                }
                Err(why) => {
                    if let Some(error) = self
                        .core
                        .unopened(format!("put into dataset `{}`", self.core.name()), why)
                    {
                        self.fail_all(&error);
                        break;
                    }
                    self.backoff.sleep(self.deadline);
                }
            }
        }
        let closed = || Err(ClientError::Closed);
        self.ops
            .into_iter()
            .map(|op| op.result.unwrap_or_else(closed))
            .collect()
    }

    /// Works in session `up` until everything is done, the session is lost, or the deadline has passed.
    fn session(&mut self, up: &Up, view: &View) {
        self.mailbox = Arc::default();
        self.active = 0;
        let mut waiting: std::collections::VecDeque<usize> = (0..self.ops.len())
            .filter(|&index| self.ops[index].stage == Stage::Waiting)
            .collect();
        loop {
            while self.active < up.info.credits && !self.busy {
                let Some(index) = waiting.pop_front() else { break };
                self.allocate(index, up, view);
            }
            if self.active == 0 {
                if waiting.is_empty() {
                    return;
                }
                // The server is busy with others: wait, and ask again.
                self.busy = false;
                if !self.backoff.sleep(self.deadline) && !self.others_got_on() {
                    return;
                }
                continue;
            }
            let Some((tag, reply)) = self.mailbox.wait(self.deadline) else {
                if self.others_got_on() {
                    continue;
                }
                return;
            };
            self.active -= 1;
            let index = tag as usize;
            match reply {
                Reply::Lost => {
                    self.lose();
                    return;
                }
                Reply::Answer(answer) => {
                    self.busy = false;
                    self.answered(index, answer, up, view);
                }
                Reply::Refused(refusal) => self.refused(index, refusal),
                Reply::Renewed => {}
            }
            match self.ops[index].stage {
                // Before the others: by the time that they are done its number could be forgotten.
                Stage::Waiting if self.ops[index].committed => waiting.push_front(index),
                // After them: what keeps it from being begun may not keep them.
                Stage::Waiting => waiting.push_back(index),
                Stage::Done => {
                    // A put that fails is no sign that the server gets through its work.
                    if self.ops[index].result.as_ref().is_some_and(Result::is_ok) {
                        self.core.session().pool().note_move();
                    }
                    self.got_on();
                }
                _ => {}
            }
        }
    }

    /// Something was achieved that was not before: the deadline counts from now on.
    fn got_on(&mut self) {
        self.backoff = Backoff::new(BUSY_WAITS.0, BUSY_WAITS.1);
        self.set_deadline();
    }

    fn set_deadline(&mut self) {
        self.moves = self.core.session().pool().moves();
        self.deadline = Deadline::after(self.core.budget());
    }

    /// Whether all that is not done waits for a server that is busy, and other puts of the session got on meanwhile: it
    /// may be they that it is busy with. The deadline counts from now on then.
    fn others_got_on(&mut self) -> bool {
        let waits = |op: &Op<'_>| op.stage == Stage::Done || op.is_refused_as_busy();
        let got_on = self.ops.iter().all(waits) && self.core.session().pool().moves() != self.moves;
        if got_on {
            self.set_deadline();
        }
        got_on
    }

    fn submit(&mut self, index: usize, up: &Up, request: Request, write: Option<Write>) {
        self.active += 1;
        self.core.shared().submit(Command::Request {
            generation: up.generation,
            request,
            reply: Some((Arc::clone(&self.mailbox), index as u64)),
            write,
            dataset: None,
        });
    }

    fn allocate(&mut self, index: usize, up: &Up, view: &View) {
        let op = &mut self.ops[index];
        op.stage = Stage::Allocating;
        let shared = self.core.shared();
        let operation = *op.operation.get_or_insert_with(|| shared.next_operation());
        let request = Request::Alloc {
            dataset: view.dataset,
            operation,
            value_len_bytes: op.source.len(),
            key: Bytes::from(op.key),
        };
        self.submit(index, up, request, None);
    }

    fn answered(&mut self, index: usize, answer: Answer, up: &Up, view: &View) {
        let op = &mut self.ops[index];
        let stored = |sequence, locator| {
            Ok(PutOutcome {
                sequence,
                locator: global(view.dataset, locator),
            })
        };
        match (op.stage, answer) {
            (
                Stage::Allocating,
                Answer::Alloc {
                    done: 1,
                    sequence,
                    locator,
                    ..
                },
            ) => op.finish(stored(sequence, locator)),
            (
                Stage::Allocating,
                Answer::Alloc {
                    window_offset,
                    window_len_bytes,
                    ..
                },
            ) => {
                // Whatever was sent under this number before is dropped.
                op.committed = false;
                op.busy = false;
                let end = u64::from(window_offset) + u64::from(window_len_bytes);
                let no_room = window_len_bytes == 0 && op.source.len() > 0;
                if end > u64::from(up.info.staging_len_bytes) || no_room {
                    op.finish(Err(ClientError::Protocol {
                        peer: self.core.shared().address.clone(),
                        why: "it granted a window outside the staging memory".to_owned(),
                    }));
                } else if op.sent > 0 {
                    // A stream whose COMMIT was lost, and that was not stored: its bytes are gone.
                    op.finish(Err(ClientError::StreamLost));
                    self.abort(index, up);
                } else {
                    op.window = (u64::from(window_offset), window_len_bytes as usize);
                    self.send_window(index, up);
                }
            }
            (Stage::Appending, Answer::Append {}) => self.send_window(index, up),
            (Stage::Committing, Answer::Commit { sequence, locator }) => op.finish(stored(sequence, locator)),
            (_, other) => {
                let error = self.core.strange(&other);
                op.finish(error);
            }
        }
    }

    /// Sends the next window, with APPEND, or with COMMIT where it is the last.
    fn send_window(&mut self, index: usize, up: &Up) {
        let op = &mut self.ops[index];
        let left = op.source.len() - op.sent;
        let (window_offset, window_len) = op.window;
        let len = usize::try_from(left)
            .unwrap_or(usize::MAX)
            .min(window_len)
            .min(SLOT_BYTES);
        let write = if len == 0 {
            None
        } else {
            let shared = self.core.shared();
            match self.core.session().pool().take(&*shared.fabric, self.deadline) {
                Ok(Some(mut slot)) => {
                    if let Err(error) = op.source.fill(&mut slot, len) {
                        op.finish(Err(error));
                        return self.abort(index, up);
                    }
                    let to = RemoteRef {
                        address: up.info.staging_address.wrapping_add(window_offset),
                        rkey: up.info.staging_rkey,
                    };
                    Some(Write {
                        source: Arc::new(slot),
                        offset: 0,
                        len,
                        to,
                    })
                }
                Ok(None) => {
                    op.last = "no buffer became free".to_owned();
                    let timeout = self.timeout(index);
                    self.ops[index].finish(Err(timeout));
                    return self.abort(index, up);
                }
                Err(error) => {
                    op.finish(Err(error.into()));
                    return self.abort(index, up);
                }
            }
        };
        let farther = op.advance(len as u64);
        let last = op.sent == op.source.len();
        if last && let Err(error) = op.source.check_end() {
            op.finish(Err(error));
            return self.abort(index, up);
        }
        let (operation, len_bytes) = (op.operation.unwrap_or_default(), len as u32);
        let request = if last {
            op.stage = Stage::Committing;
            op.committed = true;
            let value_crc = op.source.crc();
            Request::Commit {
                operation,
                len_bytes,
                value_crc,
            }
        } else {
            op.stage = Stage::Appending;
            Request::Append { operation, len_bytes }
        };
        if farther {
            self.core.session().pool().note_move();
            self.got_on();
        }
        self.submit(index, up, request, write);
    }

    fn abort(&mut self, index: usize, up: &Up) {
        let Some(operation) = self.ops[index].operation else {
            return;
        };
        self.core.shared().submit(Command::Request {
            generation: up.generation,
            request: Request::Abort { operation },
            reply: None,
            write: None,
            dataset: None,
        });
    }

    fn refused(&mut self, index: usize, refusal: Refused) {
        let after = self.core.budget();
        let op = &mut self.ops[index];
        let what = op.what();
        if op.stage == Stage::Committing && refusal.status != Status::Io {
            // The operation is as if it had never been.
            op.committed = false;
        }
        match refusal.status {
            Status::Busy | Status::ShuttingDown => {
                self.busy = true;
                op.begin_again(refusal.text);
                op.busy = true;
                op.renumbered = false;
            }
            // Dropped meanwhile, or another session's.
            Status::Stale => op.restart(refusal.text, after),
            // While it waited so many later ones were done that the server forgot numbers as low as this one's. Nothing was
            // ever committed under it, unless by a process that had the number before.
            Status::Unknown
                if !op.committed
                    && !op.renumbered
                    && self.core.shared().options.first_operation.is_none() =>
            {
                op.renumbered = true;
                op.operation = None;
                op.restart(refusal.text, after);
            }
            Status::Unknown => op.finish(Err(ClientError::Unknown { what })),
            Status::Io | Status::Crc if op.failures + 1 < FAILURES_MAX => {
                op.failures += 1;
                op.restart(refusal.text, after);
            }
            _ => op.fail(self.core.refused(what, refusal)),
        }
    }

    /// The session is over: everything under way begins again.
    fn lose(&mut self) {
        let after = self.core.budget();
        let begun = |op: &&mut Op<'_>| !matches!(op.stage, Stage::Done | Stage::Waiting);
        for op in self.ops.iter_mut().filter(begun) {
            op.restart("the session ended before the answer".to_owned(), after);
            op.renumbered = false;
        }
    }

    fn timeout(&self, index: usize) -> ClientError {
        let op = &self.ops[index];
        let (what, after, last) = (op.what(), self.core.budget(), op.last.clone());
        if op.is_refused_as_busy() {
            ClientError::Busy { what, after, last }
        } else {
            ClientError::Timeout { what, after, last }
        }
    }

    /// The deadline has passed.
    fn give_up(&mut self) {
        for index in 0..self.ops.len() {
            match self.ops[index].stage {
                Stage::Done => continue,
                Stage::Waiting | Stage::Committing => {}
                Stage::Allocating | Stage::Appending => {
                    if let Some(up) = self.up.clone() {
                        self.abort(index, &up);
                    }
                }
            }
            let timeout = self.timeout(index);
            self.ops[index].fail(timeout);
        }
    }

    fn fail_all(&mut self, error: &ClientError) {
        for op in self.ops.iter_mut().filter(|op| op.stage != Stage::Done) {
            op.fail(error.clone());
        }
    }
}

impl Client {
    fn put_ops(&self, ops: Vec<Op<'_>>) -> Vec<Result<PutOutcome, ClientError>> {
        Putting::new(&self.core, ops).run()
    }

    fn put_one<'v>(&self, key: &'v [u8], source: Source<'v>) -> Result<PutOutcome, ClientError> {
        let mut results = self.put_ops(vec![Op::new(key, source)]);
        results.pop().unwrap_or(Err(ClientError::Closed))
    }

    /// Stores a value; it is durable and visible when this returns.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with why; [`ClientError::Unknown`] if whether it was stored is not known.
    pub fn put(&self, key: &[u8], value: &[u8]) -> Result<PutOutcome, ClientError> {
        self.put_one(key, Source::bytes(value))
    }

    /// Stores many values, several at once; outcomes in their order. Of two with one key either may come last.
    pub fn put_many<K: AsRef<[u8]>, V: AsRef<[u8]>>(
        &self,
        items: &[(K, V)],
    ) -> Vec<Result<PutOutcome, ClientError>> {
        let mut ops = Vec::with_capacity(items.len());
        for (key, value) in items {
            ops.push(Op::new(key.as_ref(), Source::bytes(value.as_ref())));
        }
        self.put_ops(ops)
    }

    /// Stores a value of `len` bytes that `source` gives, without holding all of it.
    ///
    /// # Errors
    /// As [`Client::put`]; [`ClientError::Source`] and [`ClientError::SourceLength`] if the source fails or gives
    /// another number of bytes; [`ClientError::StreamLost`] if the connection was lost and the source, which cannot be
    /// asked twice, had been read. Nothing is stored then.
    pub fn put_from(&self, key: &[u8], len: u64, source: &mut dyn Read) -> Result<PutOutcome, ClientError> {
        if len > BUFFERED_MAX_BYTES {
            return self.put_one(key, Source::stream(len, source));
        }
        let mut value = Vec::new();
        let limit = len + 1;
        source
            .take(limit)
            .read_to_end(&mut value)
            .map_err(|error| ClientError::Source(Arc::new(error)))?;
        if value.len() as u64 != len {
            return Err(ClientError::SourceLength {
                announced_bytes: len,
                given_bytes: value.len() as u64,
                longer: value.len() as u64 > len,
            });
        }
        self.put(key, &value)
    }
}
