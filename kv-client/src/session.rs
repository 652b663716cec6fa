//! A session's side of the control protocol, without I/O: what to send, what an answer means, how long the lease is.
//!
//! - Requests are numbered, and never more of them are outstanding than the server posts receives for. One place is
//!   kept for RENEW, so that a renewal never queues behind anything.
//! - The lease counts from the first send of the request that renewed it, on the clock that the caller reads *before*
//!   it sends, and ends a little early, in case that clock is slow.
//! - RENEW acknowledges what the caller said was dropped ([`Session::acknowledge`]), never more.

use std::collections::HashMap;

use kv_proto::DecodeError;
use kv_proto::auth::{Role, Side, Transcript};
use kv_proto::control::{Answer, Bytes, DatasetChange, Refused, Request, decode_answer, encode_request};
use kv_proto::layout::PROTOCOL_VERSION;

use crate::AccessKey;

/// Longest lease that is believed, ms: bounds the arithmetic.
const LEASE_MAX_MS: u32 = 3_600_000;
/// The client ends its lease earlier than it was granted for by one part in so many: the rates of its clock and the
/// server's may differ by as much.
pub(crate) const LEASE_MARGIN: u64 = 100;
/// Shortest time between renewals, ns.
const RENEW_MIN_NS: u64 = 5_000_000;
/// Requests outstanding at most, whatever the server posts.
pub(crate) const CREDITS_MAX: u16 = 64;

/// What an established session may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Established {
    pub(crate) role: Role,
    pub(crate) epoch: u64,
    pub(crate) session: u64,
    pub(crate) lease_ms: u32,
    pub(crate) max_lag_ms: u32,
    pub(crate) data_connections: u16,
    pub(crate) staging_address: u64,
    pub(crate) staging_rkey: u32,
    pub(crate) staging_len_bytes: u32,
    /// Requests that may be outstanding, RENEW's place not counted.
    pub(crate) credits: usize,
}

/// What a frame of the server meant.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// Send this next.
    Send(Vec<u8>),
    /// The session stands.
    Up(Established),
    /// A request was answered.
    Answer {
        ticket: u64,
        result: Result<Answer, Refused>,
    },
    /// The lease was renewed.
    Renewed {
        retired: u64,
        changes: Vec<DatasetChange>,
    },
    /// The server says that the session is over.
    Over,
}

/// Why a session cannot go on.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SessionError {
    #[error("{0}")]
    Decode(#[from] DecodeError),
    #[error("{0}")]
    Protocol(&'static str),
    #[error("the server does not know the secret of this key")]
    Impostor,
    #[error("{}", .0.text)]
    Refused(Refused),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Greeting,
    Proving,
    Up,
    Over,
}

#[derive(Debug, Clone)]
struct Outstanding {
    kind: u8,
    what: What,
    ticket: u64,
    sent_ns: u64,
}

/// Random and fixed parts of a session's beginning.
#[derive(Clone)]
pub(crate) struct Greeting {
    pub(crate) key: AccessKey,
    pub(crate) client_id: u64,
    pub(crate) nonce: [u8; 32],
    pub(crate) receives: u16,
}

#[derive(Clone)]
pub(crate) struct Session {
    stage: Stage,
    greeting: Greeting,
    transcript: Option<Transcript>,
    credits: usize,
    next_request: u64,
    outstanding: HashMap<u64, Outstanding>,
    lease_ns: u64,
    lease_end_ns: u64,
    max_lag_ns: u64,
    renew_at_ns: u64,
    renewing: bool,
    retired: u64,
    acknowledged: u64,
    datasets_opened: u64,
}

/// What a request is to the session itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    /// HELLO, AUTH, RENEW: its answer is the session's own.
    Own,
    Bye,
    Other,
}

fn what(request: &Request) -> What {
    match request {
        Request::Hello { .. } | Request::Auth { .. } | Request::Renew { .. } => What::Own,
        Request::Bye {} => What::Bye,
        _ => What::Other,
    }
}

impl Session {
    /// A session and the frame that begins it.
    pub(crate) fn begin(greeting: Greeting, now_ns: u64) -> Result<(Self, Vec<u8>), SessionError> {
        let hello = Request::Hello {
            version_min: PROTOCOL_VERSION,
            version_max: PROTOCOL_VERSION,
            receives: greeting.receives,
            client_id: greeting.client_id,
            nonce: greeting.nonce,
            key_name: Bytes::from(greeting.key.name.as_bytes()),
        };
        let mut session = Self {
            stage: Stage::Greeting,
            greeting,
            transcript: None,
            credits: 1,
            next_request: 1,
            outstanding: HashMap::new(),
            lease_ns: 0,
            lease_end_ns: 0,
            max_lag_ns: 0,
            renew_at_ns: u64::MAX,
            renewing: false,
            retired: 0,
            acknowledged: 0,
            datasets_opened: 0,
        };
        let frame = session.frame(&hello, 0, now_ns)?;
        Ok((session, frame))
    }

    fn frame(&mut self, request: &Request, ticket: u64, now_ns: u64) -> Result<Vec<u8>, SessionError> {
        let mut out = Vec::new();
        encode_request(self.next_request, request, &mut out)?;
        let outstanding = Outstanding {
            kind: request.kind(),
            what: what(request),
            ticket,
            sent_ns: now_ns,
        };
        self.outstanding.insert(self.next_request, outstanding);
        self.next_request += 1;
        Ok(out)
    }

    /// Whether a request may be sent now.
    pub(crate) fn has_credit(&self) -> bool {
        let others = self.outstanding.len() - usize::from(self.renewing);
        self.stage == Stage::Up && others < self.credits
    }

    /// The frame of a request; its answer repeats `ticket`. Only while there is credit.
    pub(crate) fn request(
        &mut self,
        ticket: u64,
        request: &Request,
        now_ns: u64,
    ) -> Result<Vec<u8>, SessionError> {
        if !self.has_credit() {
            return Err(SessionError::Protocol("a request was to be sent without credit"));
        }
        self.frame(request, ticket, now_ns)
    }

    /// The last frame of the session.
    pub(crate) fn bye(&mut self, now_ns: u64) -> Option<Vec<u8>> {
        self.has_credit()
            .then(|| self.frame(&Request::Bye {}, 0, now_ns).ok())
            .flatten()
    }

    /// When the lease ends.
    pub(crate) fn lease_end_ns(&self) -> u64 {
        self.lease_end_ns
    }

    pub(crate) fn is_up(&self) -> bool {
        self.stage == Stage::Up
    }

    /// When RENEW is due; `u64::MAX` while one is outstanding.
    pub(crate) fn renew_at_ns(&self) -> u64 {
        if self.renewing { u64::MAX } else { self.renew_at_ns }
    }

    /// Makes RENEW due now.
    pub(crate) fn hurry(&mut self, now_ns: u64) {
        self.renew_at_ns = self.renew_at_ns.min(now_ns);
    }

    /// The frame that renews the lease from `now_ns` on, read before it is sent.
    pub(crate) fn renew(&mut self, now_ns: u64) -> Result<Vec<u8>, SessionError> {
        self.renewing = true;
        let request = Request::Renew {
            retired: self.acknowledged,
        };
        self.frame(&request, 0, now_ns)
    }

    /// Everything retired up to `number` was dropped, and no READ to it is in flight.
    pub(crate) fn acknowledge(&mut self, number: u64) {
        self.acknowledged = self.acknowledged.max(number);
    }

    /// Whether the server retired something that is not acknowledged.
    pub(crate) fn lags(&self) -> bool {
        self.retired > self.acknowledged
    }

    /// Time between two renewals: a third of the lease, or less where retirements must be acknowledged sooner.
    fn renew_every_ns(&self) -> u64 {
        let unhurried = (self.lease_ns / 3).min(self.max_lag_ns / 4);
        let every = if self.lags() { unhurried / 4 } else { unhurried };
        every.max(RENEW_MIN_NS)
    }

    fn take_lease(&mut self, lease_ms: u32, sent_ns: u64) {
        self.lease_ns = u64::from(lease_ms.min(LEASE_MAX_MS)) * 1_000_000;
        let counted_ns = self.lease_ns - self.lease_ns / LEASE_MARGIN;
        self.lease_end_ns = self.lease_end_ns.max(sent_ns.saturating_add(counted_ns));
        self.renew_at_ns = sent_ns.saturating_add(self.renew_every_ns());
    }

    /// Takes a frame of the server.
    pub(crate) fn receive(&mut self, frame: &[u8], now_ns: u64) -> Result<Event, SessionError> {
        let (header, result) = decode_answer(frame)?;
        let Some(asked) = self.outstanding.remove(&header.request) else {
            return Err(SessionError::Protocol("an answer to no request"));
        };
        if header.kind & !kv_proto::control::ANSWER != asked.kind {
            return Err(SessionError::Protocol(
                "an answer of another kind than its request",
            ));
        }
        match asked.what {
            What::Own => {
                let answer = result.map_err(SessionError::Refused)?;
                self.receive_own(answer, &asked, now_ns)
            }
            What::Bye => {
                self.stage = Stage::Over;
                Ok(Event::Over)
            }
            What::Other => {
                self.note_open(&result);
                Ok(Event::Answer {
                    ticket: asked.ticket,
                    result,
                })
            }
        }
    }

    /// The first dataset of a session begins with nothing cached: all that was retired before it does not concern it.
    fn note_open(&mut self, result: &Result<Answer, Refused>) {
        if let Ok(Answer::Open { retired, .. }) = result {
            if self.datasets_opened == 0 {
                self.retired = self.retired.max(*retired);
                self.acknowledge(*retired);
            }
            self.datasets_opened += 1;
        }
    }

    fn receive_own(
        &mut self,
        answer: Answer,
        asked: &Outstanding,
        now_ns: u64,
    ) -> Result<Event, SessionError> {
        match (self.stage, answer) {
            (
                Stage::Greeting,
                Answer::Hello {
                    version,
                    receives,
                    role,
                    epoch,
                    nonce,
                },
            ) => self.prove(version, receives, role, epoch, nonce, now_ns),
            (Stage::Proving, answer @ Answer::Auth { .. }) => self.established(&answer, asked.sent_ns),
            (
                Stage::Up,
                Answer::Renew {
                    retired,
                    lease_ms,
                    changes,
                },
            ) => {
                self.renewing = false;
                self.retired = self.retired.max(retired);
                self.take_lease(lease_ms, asked.sent_ns);
                Ok(Event::Renewed { retired, changes })
            }
            _ => Err(SessionError::Protocol("an answer out of order")),
        }
    }

    fn prove(
        &mut self,
        version: u16,
        receives: u16,
        role: u8,
        epoch: u64,
        server_nonce: [u8; 32],
        now_ns: u64,
    ) -> Result<Event, SessionError> {
        if version != PROTOCOL_VERSION {
            return Err(SessionError::Protocol("a protocol version that was not offered"));
        }
        // Two places: one is RENEW's.
        if receives < 2 {
            return Err(SessionError::Protocol("room for fewer than two requests"));
        }
        let role = Role::from_wire(role).ok_or(SessionError::Protocol("a role that does not exist"))?;
        let transcript = Transcript {
            version,
            role,
            client_id: self.greeting.client_id,
            epoch,
            client_nonce: self.greeting.nonce,
            server_nonce,
        };
        let proof = transcript.proof(Side::Client, self.greeting.key.secret());
        self.transcript = Some(transcript);
        // An answer for each request must find a receive of ours.
        self.credits = usize::from(receives.min(self.greeting.receives).min(CREDITS_MAX)) - 1;
        self.stage = Stage::Proving;
        Ok(Event::Send(self.frame(&Request::Auth { proof }, 0, now_ns)?))
    }

    fn established(&mut self, answer: &Answer, sent_ns: u64) -> Result<Event, SessionError> {
        let (
            Some(transcript),
            Answer::Auth {
                proof,
                session,
                lease_ms,
                max_lag_ms,
                data_connections,
                staging,
                staging_len_bytes,
            },
        ) = (&self.transcript, answer)
        else {
            return Err(SessionError::Protocol("an answer out of order"));
        };
        if !transcript.verify(Side::Server, self.greeting.key.secret(), proof) {
            return Err(SessionError::Impostor);
        }
        let established = Established {
            role: transcript.role,
            epoch: transcript.epoch,
            session: *session,
            lease_ms: *lease_ms,
            max_lag_ms: *max_lag_ms,
            data_connections: *data_connections,
            staging_address: staging.address,
            staging_rkey: staging.rkey,
            staging_len_bytes: *staging_len_bytes,
            credits: self.credits,
        };
        self.max_lag_ns = u64::from((*max_lag_ms).clamp(1, LEASE_MAX_MS)) * 1_000_000;
        self.stage = Stage::Up;
        self.take_lease(*lease_ms, sent_ns);
        Ok(Event::Up(established))
    }
}

#[cfg(test)]
impl Session {
    /// Tells a checker's `hasher` what decides how the session goes on.
    pub(crate) fn digest(&self, hasher: &mut impl std::hash::Hasher) {
        use std::hash::Hash;
        let stage = (self.stage as u8, self.renewing, self.datasets_opened);
        (stage, self.lease_end_ns, self.retired, self.acknowledged).hash(hasher);
        let mut outstanding: Vec<_> = self.outstanding.iter().collect();
        outstanding.sort_by_key(|(request, _)| **request);
        for (request, asked) in outstanding {
            (request, asked.kind, asked.sent_ns).hash(hasher);
        }
    }
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
