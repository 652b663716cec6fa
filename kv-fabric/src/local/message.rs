//! What the two ends of a socket say to each other.
//!
//! One message a packet: a byte for its type, fields in little-endian, and what is left over as its body. A
//! descriptor travels with [`Message::Staging`] and [`Message::Mapped`] and with no other.

/// First byte of [`Message::Connect`]; changes when the messages do.
pub(super) const VERSION: u8 = 1;
/// Longest body of a message (a frame), bytes. The kernel's default socket buffer takes several.
pub(super) const BODY_MAX_BYTES: usize = 64 * 1024;
/// Longest head of a message, bytes.
pub(super) const HEAD_MAX_BYTES: usize = 16;
/// Most rkeys in one [`Message::Unmap`].
pub(super) const UNMAP_MAX: usize = 256;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Message<'a> {
    /// Client: I want to connect; my private data.
    Connect { private: &'a [u8] },
    /// Server: you are a control connection.
    AcceptControl,
    /// Server: you are a data connection.
    AcceptData,
    /// Server: no, for this reason.
    Reject { reason: &'a [u8] },
    /// Either: a frame of a control connection.
    Frame(&'a [u8]),
    /// Server: your staging memory.
    Staging { rkey: u32, len: u64 },
    /// Client: give me the memory with this rkey, to read.
    Map { rkey: u32 },
    /// Server: here it is.
    Mapped { rkey: u32, len: u64 },
    /// Server: your domain has no such memory.
    Unknown { rkey: u32 },
    /// Server: these rkeys, four bytes each, are gone.
    Unmap { rkeys: &'a [u8] },
}

/// The part of a message before its body.
#[derive(Debug, Clone, Copy)]
pub(super) struct Head {
    bytes: [u8; HEAD_MAX_BYTES],
    len: usize,
}

impl Head {
    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    fn put(mut self, field: &[u8]) -> Self {
        self.bytes[self.len..self.len + field.len()].copy_from_slice(field);
        self.len += field.len();
        self
    }
}

impl<'a> Message<'a> {
    pub(super) fn encode(self) -> (Head, &'a [u8]) {
        let head = |kind: u8| Head {
            bytes: [kind; HEAD_MAX_BYTES],
            len: 1,
        };
        match self {
            Self::Connect { private } => (head(1).put(&[VERSION]), private),
            Self::AcceptControl => (head(2), &[]),
            Self::AcceptData => (head(3), &[]),
            Self::Reject { reason } => (head(4), reason),
            Self::Frame(frame) => (head(5), frame),
            Self::Staging { rkey, len } => (memory(head(6), rkey, len), &[]),
            Self::Map { rkey } => (head(7).put(&rkey.to_le_bytes()), &[]),
            Self::Mapped { rkey, len } => (memory(head(8), rkey, len), &[]),
            Self::Unknown { rkey } => (head(9).put(&rkey.to_le_bytes()), &[]),
            Self::Unmap { rkeys } => (head(10), rkeys),
        }
    }

    /// The message in these bytes; `None` if there is none.
    pub(super) fn decode(bytes: &'a [u8]) -> Option<Self> {
        let (&kind, rest) = bytes.split_first()?;
        Some(match (kind, rest) {
            (1, [VERSION, private @ ..]) => Self::Connect { private },
            (2, []) => Self::AcceptControl,
            (3, []) => Self::AcceptData,
            (4, reason) => Self::Reject { reason },
            (5, frame) => Self::Frame(frame),
            (6, fields) => {
                let (rkey, len) = take_memory(fields)?;
                Self::Staging { rkey, len }
            }
            (7, fields) => Self::Map {
                rkey: u32::from_le_bytes(fields.try_into().ok()?),
            },
            (8, fields) => {
                let (rkey, len) = take_memory(fields)?;
                Self::Mapped { rkey, len }
            }
            (9, fields) => Self::Unknown {
                rkey: u32::from_le_bytes(fields.try_into().ok()?),
            },
            (10, rkeys) if rkeys.len() % 4 == 0 => Self::Unmap { rkeys },
            _ => return None,
        })
    }
}

/// The rkeys of [`Message::Unmap`].
pub(super) fn rkeys(bytes: &[u8]) -> impl Iterator<Item = u32> {
    bytes
        .as_chunks::<4>()
        .0
        .iter()
        .map(|&rkey| u32::from_le_bytes(rkey))
}

fn memory(head: Head, rkey: u32, len: u64) -> Head {
    head.put(&rkey.to_le_bytes()).put(&len.to_le_bytes())
}

fn take_memory(fields: &[u8]) -> Option<(u32, u64)> {
    let (rkey, len) = fields.split_first_chunk::<4>()?;
    Some((
        u32::from_le_bytes(*rkey),
        u64::from_le_bytes(len.try_into().ok()?),
    ))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes(message: Message<'_>) -> Vec<u8> {
        let (head, body) = message.encode();
        [head.as_bytes(), body].concat()
    }

    #[test]
    fn every_message_comes_back() {
        for message in [
            Message::Connect { private: b"token" },
            Message::AcceptControl,
            Message::AcceptData,
            Message::Reject { reason: b"no" },
            Message::Frame(b""),
            Message::Frame(b"frame"),
            Message::Staging {
                rkey: 7,
                len: 1 << 40,
            },
            Message::Map { rkey: u32::MAX },
            Message::Mapped { rkey: 8, len: 4096 },
            Message::Unknown { rkey: 9 },
            Message::Unmap {
                rkeys: &[1, 0, 0, 0, 2, 0, 0, 0],
            },
        ] {
            assert_eq!(Message::decode(&bytes(message)), Some(message));
        }
        assert_eq!(rkeys(&[1, 0, 0, 0, 2, 0, 0, 0]).collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn another_version_and_odd_lengths_are_refused() {
        assert_eq!(Message::decode(&[1, VERSION + 1, 0]), None);
        assert_eq!(Message::decode(&[2, 0]), None);
        assert_eq!(Message::decode(&[8, 1, 2, 3]), None);
        assert_eq!(Message::decode(&[10, 1, 2, 3]), None);
        assert_eq!(Message::decode(&[]), None);
    }

    proptest! {
        #[test]
        fn any_bytes_decode_to_nothing_or_to_what_encodes_to_them(raw in prop::collection::vec(any::<u8>(), 0..40)) {
            if let Some(message) = Message::decode(&raw) {
                prop_assert_eq!(bytes(message), raw);
            }
        }
    }
}
