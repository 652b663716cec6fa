//! One session, as a state machine without I/O and without a clock: frames go in with the time, and what is to be
//! done comes out. Its transitions are public so that a checker can call them in every order.
//!
//! - Until AUTH was accepted nothing but HELLO is answered, and nothing of the server's memory is told.
//! - Request numbers grow; requests outstanding never exceed the credits; each has one answer.
//! - What is to be done ([`Step::Do`]) was checked against the key's role and, where it names a dataset, against the
//!   key's list or against what the session has open.

use std::borrow::Cow;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::Arc;

use kv_proto::DecodeError;
use kv_proto::auth::{Role, Side, Transcript, bound_client_id};
use kv_proto::control::{Answer, FrameHeader, HELLO_KIND, Request, Status, decode_request, split_frame};
use kv_proto::layout::{KEY_MAX_BYTES, KEY_NAME_MAX_BYTES, PROTOCOL_VERSION, dataset_name_is_valid};
use zerocopy::FromBytes;

use super::clock::BootMs;
use super::keys::{Key, Keys};
use super::leases::{DatasetId, Holds};
use super::options::Options;
use super::puts::Puts;
use super::tokens::Tokens;

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

/// What stands in for a key that does not exist, so that asking for it tells nothing.
#[derive(Debug)]
pub struct Decoy {
    secrets: RandomState,
}

impl Decoy {
    /// A new one, for the life of a server.
    #[must_use]
    pub fn new() -> Self {
        Self {
            secrets: RandomState::new(),
        }
    }

    fn key(&self, name: &[u8]) -> Key {
        let mut secret = [0; 32];
        for (index, chunk) in secret.chunks_exact_mut(8).enumerate() {
            chunk.copy_from_slice(&self.secrets.hash_one((index, name)).to_le_bytes());
        }
        Key {
            name: String::new(),
            secret,
            role: Role::Read,
            datasets: Vec::new(),
        }
    }
}

impl Default for Decoy {
    fn default() -> Self {
        Self::new()
    }
}

/// What a session sees of its server.
#[derive(Debug)]
pub struct World<'a> {
    /// Access keys.
    pub keys: &'a Keys,
    /// Stands in for keys that do not exist.
    pub decoy: &'a Decoy,
    /// Limits.
    pub options: &'a Options,
    /// Epoch of the server.
    pub epoch: u64,
    /// A random nonce, of this call alone.
    pub nonce: [u8; 32],
}

/// A client that said HELLO.
#[derive(Debug, Clone)]
struct Claim {
    transcript: Transcript,
    key_name: Vec<u8>,
    key: Arc<Key>,
    known: bool,
    credits: u16,
}

/// Who a session speaks for.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The key that was proven.
    pub key: Arc<Key>,
    /// Id of the client, bound to the key.
    pub client: u64,
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
            Phase::Challenged(claim) if claim.known => Some(&claim.key),
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
            (Phase::Challenged(_), Request::Auth { proof }) => self.auth(&proof),
            (Phase::Connected, hello @ Request::Hello { .. }) => self.hello(hello, world),
            _ => Step::End(None),
        }
    }

    fn hello(&mut self, hello: Request, world: &World<'_>) -> Step {
        let Request::Hello {
            version_min,
            version_max,
            receives,
            client_id,
            nonce,
            key_name,
        } = hello
        else {
            return Step::End(None);
        };
        let key_name = key_name.0;
        let name_fits = (1..=KEY_NAME_MAX_BYTES).contains(&key_name.len());
        if receives == 0 || client_id == 0 || version_min > version_max || !name_fits {
            let text =
                "hello needs a receive, a client id, a range of versions and a key name of 1 to 64 bytes";
            return over(Refusal::new(Status::BadFrame, text));
        }
        if !(version_min..=version_max).contains(&PROTOCOL_VERSION) {
            let text =
                format!("the server speaks version {PROTOCOL_VERSION}, not {version_min} to {version_max}");
            return over(Refusal::new(Status::Version, text));
        }
        let known = world.keys.get(&key_name).cloned();
        let decoy = world.decoy.key(&key_name);
        let (key, known) = match known {
            Some(key) => (key, true),
            None => (Arc::new(decoy), false),
        };
        let transcript = Transcript {
            version: PROTOCOL_VERSION,
            role: key.role,
            client_id,
            epoch: world.epoch,
            client_nonce: nonce,
            server_nonce: world.nonce,
        };
        let answer = Answer::Hello {
            version: PROTOCOL_VERSION,
            receives: world.options.receives,
            role: key.role as u8,
            epoch: world.epoch,
            nonce: world.nonce,
        };
        let credits = receives.min(world.options.receives);
        self.phase = Phase::Challenged(Box::new(Claim {
            transcript,
            key_name,
            key,
            known,
            credits,
        }));
        Step::Answer(answer)
    }

    fn auth(&mut self, proof: &[u8; 32]) -> Step {
        let Phase::Challenged(claim) = &self.phase else {
            return Step::End(None);
        };
        let proven = claim.transcript.verify(Side::Client, &claim.key.secret, proof);
        if !(proven & claim.known) {
            return over(Status::AuthFailed);
        }
        let proof = claim.transcript.proof(Side::Server, &claim.key.secret);
        self.credits = claim.credits;
        self.phase = Phase::Ready(Identity {
            client: bound_client_id(&claim.key_name, claim.transcript.client_id),
            key: Arc::clone(&claim.key),
        });
        Step::Ready { proof }
    }

    /// Whether the key and what is open allow a request, and its fields are in range.
    fn judge(&self, identity: &Identity, request: &Request, options: &Options) -> Result<(), Step> {
        let refuse = |status: Status| Err(Step::Refuse(status.into()));
        if identity.key.role < needed(request) {
            return refuse(Status::Forbidden);
        }
        for name in names(request).into_iter().flatten() {
            if !dataset_name_is_valid(name) {
                return refuse(Status::BadName);
            }
            if !identity.key.allows(name) {
                return refuse(Status::Forbidden);
            }
        }
        if let Some(dataset) = dataset(request)
            && self.holds.get(dataset).is_none()
        {
            return refuse(Status::NoDataset);
        }
        match request {
            Request::Lookup { key, .. } | Request::Alloc { key, .. } | Request::Delete { key, .. }
                if !(1..=KEY_MAX_BYTES).contains(&key.0.len()) =>
            {
                refuse(Status::BadKey)
            }
            Request::Alloc { operation: 0, .. } | Request::Delete { operation: 0, .. } => Err(over(
                Refusal::new(Status::BadFrame, "operations are numbered from 1"),
            )),
            Request::List { limit: 0, .. } => {
                Err(over(Refusal::new(Status::BadFrame, "a list of no entries")))
            }
            Request::Alloc { operation, .. } if self.puts.get(*operation).is_err() => {
                self.puts.may_begin(options).map_err(Step::Refuse)
            }
            _ => Ok(()),
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

/// The least role that may ask this.
#[must_use]
pub const fn needed(request: &Request) -> Role {
    match request {
        Request::Create { .. } | Request::Drop { .. } | Request::Rename { .. } => Role::Admin,
        Request::Alloc { .. }
        | Request::Append { .. }
        | Request::Commit { .. }
        | Request::Abort { .. }
        | Request::Delete { .. }
        | Request::SnapshotCreate { .. }
        | Request::SnapshotDrop { .. } => Role::Write,
        _ => Role::Read,
    }
}

/// Names of datasets in a request.
fn names(request: &Request) -> [Option<&[u8]>; 2] {
    match request {
        Request::Open { name } | Request::Create { name } | Request::Drop { name } => [Some(&name.0), None],
        Request::Rename { from, to } => [Some(&from.0), Some(&to.0)],
        _ => [None, None],
    }
}

/// The dataset that must be open for a request.
fn dataset(request: &Request) -> Option<&DatasetId> {
    match request {
        Request::Close { dataset }
        | Request::Table { dataset, .. }
        | Request::Tokens { dataset, .. }
        | Request::Lookup { dataset, .. }
        | Request::Alloc { dataset, .. }
        | Request::Delete { dataset, .. }
        | Request::List { dataset, .. }
        | Request::Load { dataset, .. }
        | Request::Stage { dataset, .. }
        | Request::SnapshotCreate { dataset, .. }
        | Request::SnapshotDrop { dataset, .. }
        | Request::Snapshots { dataset, .. }
        | Request::SnapshotOpen { dataset, .. } => Some(dataset),
        Request::Stat { dataset } if *dataset != [0; 16] => Some(dataset),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
