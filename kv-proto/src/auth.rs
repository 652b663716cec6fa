//! The proofs of the challenge and response: HMAC-SHA256 (RFC 2104) over what both sides said.

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

/// Who may do what; the wire value of a role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Role {
    /// Get, list, stat.
    Read = 1,
    /// And put, delete.
    Write = 2,
    /// And create, drop, rename datasets.
    Admin = 3,
}

impl Role {
    /// The role with this wire value.
    #[must_use]
    pub const fn from_wire(value: u8) -> Option<Self> {
        match value {
            1 => Some(Self::Read),
            2 => Some(Self::Write),
            3 => Some(Self::Admin),
            _ => None,
        }
    }
}

/// Which end a proof speaks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Side {
    /// The client's proof, in AUTH.
    Client = 1,
    /// The server's proof, in the answer to AUTH.
    Server = 2,
}

/// What both ends said before the proof; the proof covers all of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transcript {
    /// Protocol version chosen.
    pub version: u16,
    /// Role of the key.
    pub role: Role,
    /// The client's id.
    pub client_id: u64,
    /// Epoch of the server.
    pub epoch: u64,
    /// Nonce of the client.
    pub client_nonce: [u8; 32],
    /// Nonce of the server.
    pub server_nonce: [u8; 32],
}

impl Transcript {
    fn mac(&self, side: Side, secret: &[u8]) -> Hmac<Sha256> {
        let mut mac =
            <Hmac<Sha256> as KeyInit>::new_from_slice(secret).expect("hmac takes a key of any length");
        mac.update(b"verbs-kv session proof");
        mac.update(&[side as u8, self.role as u8]);
        mac.update(&self.version.to_le_bytes());
        mac.update(&self.client_id.to_le_bytes());
        mac.update(&self.epoch.to_le_bytes());
        mac.update(&self.client_nonce);
        mac.update(&self.server_nonce);
        mac
    }

    /// The proof of one side, who knows `secret`.
    #[must_use]
    pub fn proof(&self, side: Side, secret: &[u8]) -> [u8; 32] {
        self.mac(side, secret).finalize().into_bytes().into()
    }

    /// Whether `proof` is that side's; takes the same time whatever it holds.
    #[must_use]
    pub fn verify(&self, side: Side, secret: &[u8], proof: &[u8; 32]) -> bool {
        self.mac(side, secret).verify_slice(proof).is_ok()
    }
}

/// The client id that records and remembered operations carry: that of HELLO, bound to the name of the key that was
/// proven, so that who holds another key can neither learn nor forestall this client's operations, after a restart
/// included. It is never 0, which stands for the server itself.
#[must_use]
pub fn bound_client_id(key_name: &[u8], client_id: u64) -> u64 {
    let mut sha = Sha256::new();
    sha.update(b"verbs-kv client id");
    sha.update(client_id.to_le_bytes());
    sha.update(key_name);
    let digest: [u8; 32] = sha.finalize().into();
    let (first, _) = digest.split_at(8);
    first
        .iter()
        .rev()
        .fold(0_u64, |id, byte| id << 8 | u64::from(*byte))
        .max(1)
}
