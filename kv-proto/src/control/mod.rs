//! Control frames: what a session says that is not a READ.
//!
//! A frame is a [`FrameHeader`] and its payload, at most [`FRAME_MAX_BYTES`] in one SEND. Each request gets one
//! answer with its number; nothing else is ever sent, so a side never has more frames to receive than it has
//! requests (or receives) outstanding. Integers are little-endian; byte strings carry a `u16` length, lists a `u16`
//! count. Every decoder takes any bytes without panicking and refuses what is left over.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::DecodeError;
use crate::layout::DIRECTORY_DEPTH_MAX;

mod frames;
mod status;
mod wire;

pub use frames::{Answer, Request};
pub use status::Status;
pub use wire::{
    Bytes, DatasetChange, DatasetItem, DirectoryRange, DirectoryRef, ListEntry, RemoteAddress, SegmentRow,
    SnapshotItem, StatItem, WIRE_STRUCTS, change_flag,
};
use wire::{Reader, Wire};

/// Longest frame, header included, bytes.
pub const FRAME_MAX_BYTES: usize = 4096;
/// Length of a frame's header, bytes.
pub const FRAME_HEADER_BYTES: usize = 16;
/// Set in the kind of an answer.
pub const ANSWER: u8 = 0x80;
/// Kind of HELLO: the one frame whose layout never changes, whatever the version.
pub const HELLO_KIND: u8 = 1;
/// Receives that a side posts for frames, and so requests that may be outstanding, unless HELLO says fewer.
pub const RECEIVES_DEFAULT: u16 = 32;

/// First 16 bytes of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FrameHeader {
    /// What it asks; with [`ANSWER`] set, what it answers.
    pub kind: u8,
    /// Protocol version agreed in HELLO; in HELLO itself not looked at, since its layout never changes.
    pub version: u8,
    /// [`Status`] of an answer; 0 in a request.
    pub status: u16,
    /// Length of the payload, bytes.
    pub payload_len_bytes: u32,
    /// Number of the request, chosen by the client; its answer repeats it.
    pub request: u64,
}
const _: () = assert!(size_of::<FrameHeader>() == FRAME_HEADER_BYTES);

/// Appends a request frame to `out`, which is cleared first.
///
/// # Errors
/// [`DecodeError::Range`] if the frame would be longer than [`FRAME_MAX_BYTES`]; `out` is empty then.
pub fn encode_request(request: u64, payload: &Request, out: &mut Vec<u8>) -> Result<(), DecodeError> {
    encode(payload.kind(), 0, request, out, |out| payload.put_payload(out))
}

/// Appends an answer frame to `out`, which is cleared first.
///
/// # Errors
/// As [`encode_request`].
pub fn encode_answer(request: u64, payload: &Answer, out: &mut Vec<u8>) -> Result<(), DecodeError> {
    encode(payload.kind() | ANSWER, Status::Ok as u16, request, out, |out| {
        payload.put_payload(out)
    })
}

/// Appends an answer that says why a request of `kind` was refused to `out`, which is cleared first.
///
/// `text` is cut to what a frame holds.
pub fn encode_refusal(request: u64, kind: u8, status: Status, text: &str, out: &mut Vec<u8>) {
    let cut = &text.as_bytes()[..text.len().min(REFUSAL_TEXT_MAX_BYTES)];
    let fits = encode(kind | ANSWER, status as u16, request, out, |out| {
        Bytes::from(cut).put(out)
    });
    debug_assert!(fits.is_ok());
}

/// Longest text of a refusal, bytes.
pub const REFUSAL_TEXT_MAX_BYTES: usize = 512;

fn encode(
    kind: u8,
    status: u16,
    request: u64,
    out: &mut Vec<u8>,
    payload: impl FnOnce(&mut Vec<u8>),
) -> Result<(), DecodeError> {
    out.clear();
    out.resize(FRAME_HEADER_BYTES, 0);
    payload(out);
    if out.len() > FRAME_MAX_BYTES {
        let value = out.len() as u64;
        out.clear();
        return Err(DecodeError::Range {
            what: "frame",
            field: "payload_len_bytes",
            value,
        });
    }
    let header = FrameHeader {
        kind,
        version: crate::layout::PROTOCOL_VERSION as u8,
        status,
        payload_len_bytes: (out.len() - FRAME_HEADER_BYTES) as u32,
        request,
    };
    out[..FRAME_HEADER_BYTES].copy_from_slice(header.as_bytes());
    Ok(())
}

/// Header and payload bytes of a frame whose length is as its header says.
///
/// # Errors
/// [`DecodeError`] if it is short, long, or longer than [`FRAME_MAX_BYTES`].
pub fn split_frame(frame: &[u8]) -> Result<(FrameHeader, &[u8]), DecodeError> {
    const WHAT: &str = "frame";
    if frame.len() > FRAME_MAX_BYTES {
        return Err(DecodeError::Range {
            what: WHAT,
            field: "payload_len_bytes",
            value: frame.len() as u64,
        });
    }
    let (header, payload) = FrameHeader::read_from_prefix(frame).map_err(|_| DecodeError::Short {
        what: WHAT,
        need: FRAME_HEADER_BYTES,
        have: frame.len(),
    })?;
    let need = header.payload_len_bytes as usize;
    if payload.len() < need {
        return Err(DecodeError::Short {
            what: WHAT,
            need,
            have: payload.len(),
        });
    }
    if payload.len() > need {
        return Err(DecodeError::Trailing {
            what: WHAT,
            extra: payload.len() - need,
        });
    }
    Ok((header, payload))
}

/// Refuses a frame of another version; HELLO passes, for it is what agrees on one.
fn check_version(header: &FrameHeader, what: &'static str) -> Result<(), DecodeError> {
    if header.kind & !ANSWER == HELLO_KIND || u16::from(header.version) == crate::layout::PROTOCOL_VERSION {
        return Ok(());
    }
    Err(DecodeError::Range {
        what,
        field: "version",
        value: u64::from(header.version),
    })
}

/// The request in a frame that a client sent.
///
/// # Errors
/// [`DecodeError`] if it is no request.
pub fn decode_request(frame: &[u8]) -> Result<(FrameHeader, Request), DecodeError> {
    let (header, payload) = split_frame(frame)?;
    check_version(&header, "request")?;
    if header.status != 0 {
        return Err(DecodeError::Range {
            what: "request",
            field: "status",
            value: u64::from(header.status),
        });
    }
    Ok((header, Request::take_payload(header.kind, payload)?))
}

/// Refuses a directory deeper than there are: who takes the answer sizes memory and shifts by the depth.
fn check_directories(answer: &Answer) -> Result<(), DecodeError> {
    let check = |directory: &DirectoryRef| {
        if directory.depth <= DIRECTORY_DEPTH_MAX {
            return Ok(());
        }
        Err(DecodeError::Range {
            what: answer.name(),
            field: "depth",
            value: u64::from(directory.depth),
        })
    };
    match answer {
        Answer::Open { directory, .. } => check(directory),
        Answer::Renew { changes, .. } => changes.iter().try_for_each(|change| check(&change.directory)),
        _ => Ok(()),
    }
}

/// A request refused by the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Why.
    pub status: Status,
    /// Why, in the server's words.
    pub text: String,
}

/// The answer in a frame that a server sent.
///
/// # Errors
/// [`DecodeError`] if it is no answer.
pub fn decode_answer(frame: &[u8]) -> Result<(FrameHeader, Result<Answer, Refused>), DecodeError> {
    let (header, payload) = split_frame(frame)?;
    if header.kind & ANSWER == 0 {
        return Err(DecodeError::Range {
            what: "answer",
            field: "kind",
            value: u64::from(header.kind),
        });
    }
    check_version(&header, "answer")?;
    let status = Status::from_wire(header.status).ok_or(DecodeError::Range {
        what: "answer",
        field: "status",
        value: u64::from(header.status),
    })?;
    if status == Status::Ok {
        let answer = Answer::take_payload(header.kind & !ANSWER, payload)?;
        check_directories(&answer)?;
        return Ok((header, Ok(answer)));
    }
    let mut reader = Reader {
        what: "refusal",
        bytes: payload,
    };
    let text = Bytes::take(&mut reader)?;
    if !reader.bytes.is_empty() {
        return Err(DecodeError::Trailing {
            what: "refusal",
            extra: reader.bytes.len(),
        });
    }
    let text = String::from_utf8_lossy(&text.0)
        .chars()
        .filter(|c| !c.is_control())
        .collect();
    Ok((header, Err(Refused { status, text })))
}
