//! HELLO and AUTH: what a client claims, and how it proves it.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::Arc;

use kv_proto::auth::{Role, Side, Transcript, bound_client_id};
use kv_proto::control::{Answer, Request, Status};
use kv_proto::layout::{KEY_NAME_MAX_BYTES, PROTOCOL_VERSION};

use super::Refusal;
use crate::control::keys::{Key, Keys};
use crate::control::options::Options;

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

    pub(super) fn key(&self, name: &[u8]) -> Key {
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
pub(super) struct Claim {
    transcript: Transcript,
    key_name: Vec<u8>,
    key: Arc<Key>,
    known: bool,
    /// Requests that it may have outstanding once it has proven the key.
    pub(super) credits: u16,
}

/// Who a session speaks for.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The key that was proven.
    pub key: Arc<Key>,
    /// Id of the client, bound to the key.
    pub client: u64,
}

impl Claim {
    /// Judges HELLO: what is claimed, and the challenge that answers it.
    pub(super) fn new(hello: Request, world: &World<'_>) -> Result<(Self, Answer), Refusal> {
        let Request::Hello {
            version_min,
            version_max,
            receives,
            client_id,
            nonce,
            key_name,
        } = hello
        else {
            return Err(Status::Order.into());
        };
        let key_name = key_name.0;
        let name_fits = (1..=KEY_NAME_MAX_BYTES).contains(&key_name.len());
        if receives == 0 || client_id == 0 || version_min > version_max || !name_fits {
            let text =
                "hello needs a receive, a client id, a range of versions and a key name of 1 to 64 bytes";
            return Err(Refusal::new(Status::BadFrame, text));
        }
        if !(version_min..=version_max).contains(&PROTOCOL_VERSION) {
            let text =
                format!("the server speaks version {PROTOCOL_VERSION}, not {version_min} to {version_max}");
            return Err(Refusal::new(Status::Version, text));
        }
        // The decoy is made in either case, so that both take the same time.
        let decoy = world.decoy.key(&key_name);
        let (key, known) = match world.keys.get(&key_name) {
            Some(key) => (Arc::clone(key), true),
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
        let claim = Self {
            transcript,
            key_name,
            key,
            known,
            credits: receives.min(world.options.receives),
        };
        Ok((claim, answer))
    }

    /// The key that is claimed, where there is one.
    pub(super) fn key(&self) -> Option<&Arc<Key>> {
        self.known.then_some(&self.key)
    }

    /// Judges AUTH: who it is, and the server's own proof.
    pub(super) fn prove(&self, proof: &[u8; 32]) -> Result<(Identity, [u8; 32]), Refusal> {
        let proven = self.transcript.verify(Side::Client, &self.key.secret, proof);
        if !(proven & self.known) {
            return Err(Status::AuthFailed.into());
        }
        let identity = Identity {
            client: bound_client_id(&self.key_name, self.transcript.client_id),
            key: Arc::clone(&self.key),
        };
        Ok((identity, self.transcript.proof(Side::Server, &self.key.secret)))
    }
}
