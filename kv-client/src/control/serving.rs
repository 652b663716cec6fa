//! A session that stands, served: requests, WRITEs, answers, renewals and acknowledgements, until it ends.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use kv_fabric::{ControlConnection, ControlEvent, FabricError};
use kv_proto::control::{Answer, DatasetChange, Refused, Request, Status};

use super::tenure::Debt;
use super::thread::sleep;
use super::{Command, Shared, Up, Write, lock, reply_lost};
use crate::clock::boot_ns;
use crate::mailbox::{Mailbox, Reply};
use crate::put::pool::SLOT_BYTES;
use crate::session::{Event, Session};
use crate::tables::DatasetState;

/// Bytes of WRITEs outstanding at most: one window, since a RENEW may be hurried at any moment.
const WRITE_AHEAD_BYTES: usize = SLOT_BYTES;
/// Wait before a full queue is tried again.
const BUSY_WAIT_NS: u64 = 1_000_000;
/// Longest wait for the answer to BYE.
const BYE_WAIT: Duration = Duration::from_millis(200);

/// A request whose reply is owed.
struct Owed {
    reply: Option<(Arc<Mailbox>, u64)>,
    dataset: Option<Arc<DatasetState>>,
    opens: bool,
    /// Where the page begins that a TABLE asks for.
    first: Option<u32>,
    /// Held until the WRITE is done with it.
    write: Option<Write>,
    answered: Option<Reply>,
}

/// Why serving ended.
enum End {
    Closed,
    Lost(String),
}

pub(super) struct Serving<'a> {
    shared: &'a Shared,
    connection: Box<dyn ControlConnection>,
    session: Session,
    up: Arc<Up>,
    queue: VecDeque<Command>,
    /// CLOSEs that wait for the answers of OPENs: at most one of each dataset state that there is.
    closes: Vec<Command>,
    owed: HashMap<u64, Owed>,
    next_ticket: u64,
    written_ahead: usize,
    /// Open ones. One dataset may have several states, opened under the names that it had.
    datasets: HashMap<[u8; 16], Vec<Weak<DatasetState>>>,
    /// Waiters for a RENEW that is not sent yet, and for the one outstanding.
    renew_queued: Vec<(Arc<Mailbox>, u64)>,
    renew_sent: Vec<(Arc<Mailbox>, u64)>,
    debt: Debt,
    stalled: bool,
}

impl<'a> Serving<'a> {
    pub(super) fn new(
        shared: &'a Shared,
        connection: Box<dyn ControlConnection>,
        session: Session,
        up: Arc<Up>,
    ) -> Self {
        shared.sessions.fetch_add(1, Ordering::Relaxed);
        shared.tenure.begin(up.generation, session.lease_end_ns());
        let mut state = lock(&shared.state);
        state.up = Some(Arc::clone(&up));
        state.failure = None;
        shared.changed.notify_all();
        drop(state);
        Self {
            shared,
            connection,
            session,
            up,
            queue: VecDeque::new(),
            closes: Vec::new(),
            owed: HashMap::new(),
            next_ticket: 1,
            written_ahead: 0,
            datasets: HashMap::new(),
            renew_queued: Vec::new(),
            renew_sent: Vec::new(),
            debt: Debt::default(),
            stalled: false,
        }
    }

    pub(super) fn run(mut self) {
        let end = self.serve();
        if let End::Lost(why) = &end {
            tracing::debug!(address = self.shared.address, why, "the session is over");
        }
        self.shared.tenure.end();
        lock(&self.shared.state).up = None;
        for dataset in self.datasets.values().flatten().filter_map(Weak::upgrade) {
            dataset.close();
        }
        // The connection goes first: after that nothing reads the sources of WRITEs any more.
        let Self {
            shared,
            connection,
            queue,
            owed,
            renew_queued,
            renew_sent,
            ..
        } = self;
        drop(connection);
        for owed in owed.into_values() {
            let Owed { reply, write, .. } = owed;
            drop(write);
            if let Some((mailbox, tag)) = reply {
                mailbox.deliver(tag, Reply::Lost);
            }
        }
        queue.into_iter().for_each(reply_lost);
        for (mailbox, tag) in renew_queued.into_iter().chain(renew_sent) {
            mailbox.deliver(tag, Reply::Lost);
        }
        shared.changed.notify_all();
    }

    fn serve(&mut self) -> End {
        let mut events = Vec::new();
        loop {
            if boot_ns() >= self.session.lease_end_ns() {
                return End::Lost("the lease is over".to_owned());
            }
            if lock(&self.shared.state).closing {
                self.say_goodbye();
                return End::Closed;
            }
            self.take_commands();
            if let Err(why) = self.pump() {
                return End::Lost(why);
            }
            let polled = self.connection.poll(&mut events);
            let nothing = events.is_empty();
            for event in events.drain(..) {
                if let Err(why) = self.handle(event) {
                    return End::Lost(why);
                }
            }
            if let Err(error) = polled {
                return End::Lost(error.to_string());
            }
            if nothing {
                let now = boot_ns();
                let next = self.session.renew_at_ns().min(self.session.lease_end_ns());
                let busy = if self.stalled {
                    now + BUSY_WAIT_NS
                } else {
                    u64::MAX
                };
                let left = next.min(busy).saturating_sub(now);
                sleep(self.shared, Some(self.connection.fd()), left);
            }
        }
    }

    fn take_commands(&mut self) {
        let commands = std::mem::take(&mut *lock(&self.shared.inbox));
        for command in commands {
            match command {
                Command::Request { generation, .. } if generation != self.up.generation => {
                    reply_lost(command)
                }
                Command::Request { .. } => self.queue.push_back(command),
                Command::Renew { generation, .. } if generation != self.up.generation => reply_lost(command),
                Command::Renew { mailbox, tag, .. } => {
                    self.renew_queued.push((mailbox, tag));
                    self.session.hurry(boot_ns());
                }
            }
        }
    }

    /// Sends what can be sent: a renewal that is due before everything else.
    fn pump(&mut self) -> Result<(), String> {
        self.stalled = false;
        let now = boot_ns();
        if now >= self.session.renew_at_ns() {
            self.shared.quarantine.retry(now);
            self.debt.settle(&mut self.session, &self.shared.tenure);
            let frame = self.session.renew(now).map_err(|error| error.to_string())?;
            self.renew_sent.append(&mut self.renew_queued);
            self.send(&frame)?;
        }
        if !self.is_opening() {
            // They met an OPEN under way, which has been answered: now it is known what is open.
            self.closes
                .drain(..)
                .for_each(|close| self.queue.push_front(close));
        }
        while self.session.has_credit() {
            let Some(Command::Request { write, .. }) = self.queue.front() else {
                break;
            };
            let len = write.as_ref().map_or(0, |write| write.len);
            if self.written_ahead > 0 && len > 0 && self.written_ahead + len > WRITE_AHEAD_BYTES {
                break;
            }
            let Some(command) = self.queue.pop_front() else {
                break;
            };
            if let Some(command) = self.begin(command)? {
                self.queue.push_front(command);
                self.stalled = true;
                break;
            }
        }
        Ok(())
    }

    /// Frames are never more than the credits that both sides have, so a queue that is full drains by itself.
    fn send(&mut self, frame: &[u8]) -> Result<(), String> {
        loop {
            match self.connection.send(frame) {
                Ok(()) => return Ok(()),
                Err(FabricError::Busy(_)) if boot_ns() < self.session.lease_end_ns() => {
                    let mut events = Vec::new();
                    let polled = self.connection.poll(&mut events);
                    for event in events {
                        self.handle(event)?;
                    }
                    polled.map_err(|error| error.to_string())?;
                }
                Err(error) => return Err(error.to_string()),
            }
        }
    }

    /// Begins a request; gives it back if its WRITE must wait.
    fn begin(&mut self, command: Command) -> Result<Option<Command>, String> {
        let Command::Request {
            request,
            reply,
            write,
            dataset,
            generation,
        } = command
        else {
            return Ok(None);
        };
        if let (Request::Close { dataset: id }, Some(state)) = (&request, &dataset) {
            if self.needs_open(id, state) {
                return Ok(None);
            }
            if self.is_opening() {
                // What is being opened may be this one.
                self.closes.push(Command::Request {
                    generation,
                    request,
                    reply,
                    write,
                    dataset,
                });
                return Ok(None);
            }
        }
        let ticket = self.next_ticket;
        if let Some(due) = &write {
            let region = due.source.region();
            let offset = due.source.start() + due.offset;
            match self.connection.write(ticket, region, offset, due.len, due.to) {
                Ok(()) => self.written_ahead += due.len,
                Err(FabricError::Busy(_)) => {
                    return Ok(Some(Command::Request {
                        generation,
                        request,
                        reply,
                        write,
                        dataset,
                    }));
                }
                Err(error) => {
                    // Whoever asked is told when the session has ended.
                    let owed = Owed {
                        reply,
                        dataset,
                        opens: false,
                        first: None,
                        write,
                        answered: None,
                    };
                    self.owed.insert(ticket, owed);
                    return Err(error.to_string());
                }
            }
        }
        self.next_ticket += 1;
        let first = match &request {
            Request::Table { first, .. } => Some(*first),
            _ => None,
        };
        let owed = Owed {
            reply,
            dataset,
            opens: matches!(request, Request::Open { .. }),
            first,
            write,
            answered: None,
        };
        self.owed.insert(ticket, owed);
        match self.session.request(ticket, &request, boot_ns()) {
            Ok(frame) => self.send(&frame)?,
            Err(error) => {
                // A request too long for a frame is refused here as the server would.
                let refused = Refused {
                    status: Status::BadFrame,
                    text: error.to_string(),
                };
                self.answered(ticket, Reply::Refused(refused));
            }
        }
        Ok(None)
    }

    fn handle(&mut self, event: ControlEvent) -> Result<(), String> {
        match event {
            ControlEvent::Written(ticket) => {
                let written = self.owed.get_mut(&ticket).and_then(|owed| owed.write.take());
                self.written_ahead -= written.map_or(0, |write| write.len);
                self.settle(ticket);
                Ok(())
            }
            ControlEvent::Frame(frame) => {
                let event = self.session.receive(&frame, boot_ns());
                match event.map_err(|error| error.to_string())? {
                    Event::Answer { ticket, result } => {
                        let reply = match result {
                            Ok(answer) => self.noted(ticket, answer),
                            Err(refused) => Reply::Refused(refused),
                        };
                        self.answered(ticket, reply);
                        Ok(())
                    }
                    Event::Renewed { retired, changes } => {
                        self.renewed(retired, &changes);
                        Ok(())
                    }
                    Event::Over => Err("the server ended the session".to_owned()),
                    Event::Send(_) | Event::Up(_) => Err("an answer out of order".to_owned()),
                }
            }
        }
    }

    /// Lets the dataset know before the caller does, so that it sees answers in their order.
    fn noted(&mut self, ticket: u64, answer: Answer) -> Reply {
        if let Some(owed) = self.owed.get(&ticket)
            && let Some(dataset) = &owed.dataset
        {
            let (generation, epoch, first) = (self.up.generation, self.up.info.epoch, owed.first);
            dataset.answered(generation, epoch, first, &answer);
            if let Answer::Open { dataset: id, .. } = &answer {
                let states = self.datasets.entry(*id).or_default();
                let opened = Arc::downgrade(dataset);
                states.retain(|state| state.strong_count() > 0 && !state.ptr_eq(&opened));
                // To the server it is one, and what it tells from now on follows on this.
                for state in states.iter().filter_map(Weak::upgrade) {
                    state.answered(generation, epoch, None, &answer);
                }
                states.push(opened);
            }
        }
        Reply::Answer(answer)
    }

    /// Whether the dataset must stay open though `state` is done with it.
    fn needs_open(&mut self, id: &[u8; 16], state: &Arc<DatasetState>) -> bool {
        let own = Arc::downgrade(state);
        let states = self.datasets.entry(*id).or_default();
        states.retain(|state| state.strong_count() > 0 && !state.ptr_eq(&own));
        if states.is_empty() {
            self.datasets.remove(id);
            return false;
        }
        true
    }

    /// Whether an OPEN is under way.
    fn is_opening(&self) -> bool {
        self.owed.values().any(|owed| owed.opens)
    }

    fn answered(&mut self, ticket: u64, reply: Reply) {
        if let Some(owed) = self.owed.get_mut(&ticket) {
            owed.answered = Some(reply);
        }
        self.settle(ticket);
    }

    /// Replies once the answer is there and the WRITE is done with its source.
    fn settle(&mut self, ticket: u64) {
        let ready = |owed: &Owed| owed.answered.is_some() && owed.write.is_none();
        if !self.owed.get(&ticket).is_some_and(ready) {
            return;
        }
        if let Some(Owed {
            reply: Some((mailbox, tag)),
            answered: Some(reply),
            ..
        }) = self.owed.remove(&ticket)
        {
            mailbox.deliver(tag, reply);
        }
    }

    fn renewed(&mut self, retired: u64, changes: &[DatasetChange]) {
        self.shared.renewals.fetch_add(1, Ordering::Relaxed);
        for change in changes {
            let states = self.datasets.get(&change.dataset);
            for state in states.into_iter().flatten().filter_map(Weak::upgrade) {
                state.renewed(change);
            }
        }
        self.debt.told(retired, &self.session, &self.shared.tenure);
        self.shared.tenure.renewed(self.session.lease_end_ns());
        // Who saw that the lease was over waits for a session, and this one goes on. With the lock, so that who looked before
        // the renewal waits by now.
        drop(lock(&self.shared.state));
        self.shared.changed.notify_all();
        for (mailbox, tag) in self.renew_sent.drain(..) {
            mailbox.deliver(tag, Reply::Renewed);
        }
        if !self.renew_queued.is_empty() {
            self.session.hurry(boot_ns());
        }
    }

    fn say_goodbye(&mut self) {
        // Requests handed in before the end (a CLOSE, an ABORT) still go out.
        self.take_commands();
        let _ = self.pump();
        let Some(frame) = self.session.bye(boot_ns()) else {
            return;
        };
        if self.connection.send(&frame).is_err() {
            return;
        }
        let until = Instant::now() + BYE_WAIT;
        let mut events = Vec::new();
        while self.session.is_up() && Instant::now() < until {
            if self.connection.poll(&mut events).is_err() {
                return;
            }
            if events.is_empty() {
                sleep(self.shared, Some(self.connection.fd()), 10_000_000);
            }
            for event in events.drain(..) {
                if let ControlEvent::Frame(frame) = event
                    && self.session.receive(&frame, boot_ns()).is_err()
                {
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
#[path = "serving_tests.rs"]
mod tests;
