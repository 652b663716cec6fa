//! One session, as a state machine without I/O and without a clock: frames go in with the time, and what is to be
//! done comes out. Its transitions are public so that a checker can call them in every order.
//!
//! - Until AUTH was accepted nothing but HELLO is answered, and nothing of the server's memory is told.
//! - Request numbers grow; requests outstanding never exceed the credits; each has one answer.
//! - What is to be done ([`Step::Do`]) was checked against the key's role and, where it names a dataset, against the
//!   key's list or against what the session has open.

use std::borrow::Cow;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use kv_proto::DecodeError;
use kv_proto::control::{Answer, FrameHeader, HELLO_KIND, Request, Status, decode_request, split_frame};
use zerocopy::FromBytes;

use super::clock::BootMs;
use super::keys::Key;
use super::leases::Holds;
use super::options::Options;
use super::puts::Puts;
use super::tokens::Tokens;

mod handshake;
mod rights;

use handshake::Claim;
pub use handshake::{Decoy, Identity, World};
pub use rights::needed;

const AUTH_KIND: u8 = 2;

/// Why a request was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// For programs.
    pub status: Status,
    /// For people.
    pub text: Cow<'static, str>,
}

impl Refusal {
    /// A refusal with a text of its own.
    pub fn new(status: Status, text: impl Into<Cow<'static, str>>) -> Self {
        Self {
            status,
            text: text.into(),
        }
    }
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        Self::new(status, status.text())
    }
}

/// What a frame comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Answer so.
    Answer(Answer),
    /// Refuse; the session goes on.
    Refuse(Refusal),
    /// The session is over; say why first where there is something to say.
    End(Option<Refusal>),
    /// The key was proven: grant staging memory, call [`Session::ready`] and answer AUTH.
    Ready {
        /// The server's proof.
        proof: [u8; 32],
    },
    /// Do this, and answer it.
    Do(Request),
}

/// What one frame comes to, and the request that the answer names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// Number of the request.
    pub request: u64,
    /// Kind of the request.
    pub kind: u8,
    /// What to do.
    pub step: Step,
}

#[derive(Debug, Clone)]
enum Phase {
    /// HELLO is expected.
    Connected,
    /// AUTH is expected.
    Challenged(Box<Claim>),
    /// Anything else is.
    Ready(Identity),
    /// Nothing is: what comes is ignored.
    Ended,
}

/// One session.
#[derive(Debug, Clone)]
pub struct Session {
    phase: Phase,
    last_request: Option<u64>,
    credits: u16,
    outstanding: u16,
    renewed: u64,
    /// What it may still read, and its lease.
    pub holds: Holds,
    /// Its tokens.
    pub tokens: Tokens,
    /// Its PUTs.
    pub puts: Puts,
}

fn over(refusal: impl Into<Refusal>) -> Step {
    Step::End(Some(refusal.into()))
}

impl Session {
    /// A session of a connection that was just accepted.
    #[must_use]
    pub fn new() -> Self {
        Self {
            phase: Phase::Connected,
            last_request: None,
            credits: 1,
            outstanding: 0,
            renewed: 0,
            holds: Holds::new(BootMs(0)),
            tokens: Tokens::default(),
            puts: Puts::new(0),
        }
    }

    /// Who it speaks for, once the key was proven and until the end.
    #[must_use]
    pub fn identity(&self) -> Option<&Identity> {
        match &self.phase {
            Phase::Ready(identity) => Some(identity),
            _ => None,
        }
    }

    /// The key that it claims or has proven.
    #[must_use]
    pub fn key(&self) -> Option<&Arc<Key>> {
        match &self.phase {
            Phase::Ready(identity) => Some(&identity.key),
            Phase::Challenged(claim) => claim.key(),
            _ => None,
        }
    }

    /// Takes one frame.
    pub fn receive(&mut self, frame: &[u8], now: BootMs, world: &World<'_>) -> Received {
        let (header, step) = match decode_request(frame) {
            Ok((header, request)) => {
                let step = self.ordered(&header, request, now, world);
                (header, step)
            }
            Err(error) => {
                let header = header_of(frame);
                (header, self.malformed(&header, frame, error))
            }
        };
        if matches!(step, Step::End(_)) {
            self.end();
        }
        Received {
            request: header.request,
            kind: header.kind,
            step,
        }
    }

    /// Ends it: tokens are void, PUTs forgotten, frames ignored. What it held is left for who releases it.
    pub fn end(&mut self) {
        self.phase = Phase::Ended;
        self.tokens.void_all();
        self.puts = Puts::new(0);
    }

    /// Grants the lease and the staging memory that AUTH's answer tells.
    pub fn ready(&mut self, now: BootMs, staging_bytes: u32, options: &Options) {
        self.holds = Holds::new(now);
        self.holds.grant(now, options.lease_ms);
        self.puts = Puts::new(staging_bytes);
    }

    /// A request will be answered later: it stays outstanding.
    pub fn defer(&mut self) {
        self.outstanding += 1;
    }

    /// A request that was deferred has been answered.
    pub fn answered(&mut self) {
        self.outstanding = self.outstanding.saturating_sub(1);
    }

    /// Tells a checker's `hasher` all that decides how the session goes on, its PUTs and who it speaks for aside.
    pub fn digest(&self, hasher: &mut impl Hasher) {
        let up = matches!(self.phase, Phase::Ready(_));
        (up, self.last_request, self.outstanding, self.renewed).hash(hasher);
        (&self.holds, &self.tokens).hash(hasher);
    }

    /// Requests that wait for their answers.
    #[must_use]
    pub fn outstanding(&self) -> u16 {
        self.outstanding
    }

    /// Whether the peer may be told why it is refused: a stranger is, only of its HELLO and its AUTH.
    fn may_tell(&self, kind: u8) -> bool {
        match self.phase {
            Phase::Connected => kind == HELLO_KIND,
            Phase::Challenged(_) => kind == AUTH_KIND,
            Phase::Ready(_) => true,
            Phase::Ended => false,
        }
    }

    fn malformed(&self, header: &FrameHeader, frame: &[u8], error: DecodeError) -> Step {
        if !self.may_tell(header.kind) {
            return Step::End(None);
        }
        let version = matches!(error, DecodeError::Range { field: "version", .. });
        let status = if version && split_frame(frame).is_ok() {
            Status::Version
        } else {
            Status::BadFrame
        };
        over(Refusal::new(status, error.to_string()))
    }

    fn ordered(&mut self, header: &FrameHeader, request: Request, now: BootMs, world: &World<'_>) -> Step {
        if !self.may_tell(header.kind) {
            return Step::End(None);
        }
        if let Some(last) = self.last_request
            && header.request <= last
        {
            let text = format!("request {} does not come after {last}", header.request);
            return over(Refusal::new(Status::Order, text));
        }
        self.last_request = Some(header.request);
        if self.outstanding >= self.credits {
            let text = format!("more than {} requests are outstanding", self.credits);
            return over(Refusal::new(Status::Order, text));
        }
        match (&self.phase, request) {
            (Phase::Ready(_), Request::Hello { .. } | Request::Auth { .. }) => over(Status::Order),
            (Phase::Ready(identity), request) => match self.judge(identity, &request, world.options) {
                Ok(()) => self.dispatch(request, now, world.options),
                Err(step) => step,
            },
            (Phase::Challenged(claim), Request::Auth { proof }) => match claim.prove(&proof) {
                Ok((identity, proof)) => {
                    self.credits = claim.credits;
                    self.phase = Phase::Ready(identity);
                    Step::Ready { proof }
                }
                Err(refusal) => over(refusal),
            },
            (Phase::Connected, hello @ Request::Hello { .. }) => match Claim::new(hello, world) {
                Ok((claim, answer)) => {
                    self.phase = Phase::Challenged(Box::new(claim));
                    Step::Answer(answer)
                }
                Err(refusal) => over(refusal),
            },
            _ => Step::End(None),
        }
    }

    fn dispatch(&mut self, request: Request, now: BootMs, options: &Options) -> Step {
        match request {
            Request::Stage { .. }
            | Request::Release { .. }
            | Request::SnapshotCreate { .. }
            | Request::SnapshotDrop { .. }
            | Request::Snapshots { .. }
            | Request::SnapshotOpen { .. } => Step::Refuse(Status::Unsupported.into()),
            Request::Renew { retired } => {
                if retired < self.renewed {
                    let text = format!("renew({retired}) after renew({})", self.renewed);
                    return over(Refusal::new(Status::Order, text));
                }
                if let Err(never) = self.holds.renew(retired, now, options.lease_ms) {
                    let text = format!("renew({retired}) where {} was told", never.told);
                    return over(Refusal::new(Status::Order, text));
                }
                self.renewed = retired;
                Step::Do(request)
            }
            other => Step::Do(other),
        }
    }
}

impl Default for Session {
    fn default() -> Self {
        Self::new()
    }
}

/// What can be read of a header that is not to be trusted.
fn header_of(frame: &[u8]) -> FrameHeader {
    FrameHeader::read_from_prefix(frame).map_or(
        FrameHeader {
            kind: 0,
            version: 0,
            status: 0,
            payload_len_bytes: 0,
            request: 0,
        },
        |(header, _)| header,
    )
}

#[cfg(test)]
mod tests;
