//! Packets and descriptors over a Unix socket.

use std::collections::VecDeque;
use std::io;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};

use super::message::{BODY_MAX_BYTES, HEAD_MAX_BYTES, Message};

/// Room for the longest message.
pub(super) const BUFFER_BYTES: usize = HEAD_MAX_BYTES + BODY_MAX_BYTES;

pub(super) fn new() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        flags,
        None,
    )?)
}

/// Sends one message, with a descriptor if there is one, without waiting.
pub(super) fn send(
    socket: &OwnedFd,
    message: Message<'_>,
    pass: Option<BorrowedFd<'_>>,
) -> Result<(), Errno> {
    let (head, body) = message.encode();
    send_parts(socket, head.as_bytes(), body, pass)
}

fn send_parts(socket: &OwnedFd, head: &[u8], body: &[u8], pass: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
    let parts = [IoSlice::new(head), IoSlice::new(body)];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let passed = pass.as_slice();
    if !passed.is_empty() && !control.push(SendAncillaryMessage::ScmRights(passed)) {
        return Err(Errno::NOBUFS);
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    loop {
        match rustix::net::sendmsg(socket, &parts, &mut control, flags) {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
}

/// One message that arrived.
pub(super) struct Received {
    /// Its bytes in the buffer.
    pub(super) len: usize,
    /// The descriptor that came with it.
    pub(super) passed: Option<OwnedFd>,
}

/// What a socket had.
pub(super) enum Arrival {
    Message(Received),
    Nothing,
    /// The peer is gone, for this reason.
    End(String),
}

/// Receives one message without waiting. Everything that a peer sent before it left arrives before its end does.
pub(super) fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> Arrival {
    let mut seen_end = false;
    loop {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(buffer)];
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        match rustix::net::recvmsg(socket, &mut parts, &mut control, flags) {
            // An empty packet reads as an end; no message is empty. The kernel looks for a message first and for the
            // peer's end after, not as one: what was sent in between is found by a second look (`unix_dgram_recvmsg`).
            Ok(message) if message.bytes == 0 && seen_end => {
                return Arrival::End("the peer left".to_owned());
            }
            Ok(message) if message.bytes == 0 => seen_end = true,
            Ok(message) if message.flags.contains(ReturnFlags::TRUNC) => {
                return Arrival::End("the peer sent more than a message may have".to_owned());
            }
            Ok(message) => {
                let passed = control.drain().find_map(|control| match control {
                    RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
                    _ => None,
                });
                return Arrival::Message(Received {
                    len: message.bytes,
                    passed,
                });
            }
            Err(Errno::AGAIN) => return Arrival::Nothing,
            // The peer left without reading all of ours. Told once, before what it had sent, which still comes.
            Err(Errno::INTR | Errno::CONNRESET) => {}
            Err(error) => return Arrival::End(format!("recvmsg: {}", io::Error::from(error))),
        }
    }
}

/// Why a message was not queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NotSent {
    /// The peer reads too slowly: the queue is full.
    Full,
    /// The socket said no.
    Failed(Errno),
}

impl std::fmt::Display for NotSent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Full => f.write_str("the peer does not take what is sent to it"),
            Self::Failed(Errno::PIPE | Errno::CONNRESET) => f.write_str("the peer left"),
            Self::Failed(error) => write!(f, "sendmsg: {}", io::Error::from(*error)),
        }
    }
}

struct Waiting {
    bytes: Vec<u8>,
    pass: Option<OwnedFd>,
}

/// Messages that a full socket did not take yet.
#[derive(Default)]
pub(super) struct Outbox {
    waiting: VecDeque<Waiting>,
}

impl Outbox {
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Sends a message now, or keeps it if the socket is full and fewer than `limit` wait.
    pub(super) fn send(
        &mut self,
        socket: &OwnedFd,
        message: Message<'_>,
        pass: Option<OwnedFd>,
        limit: usize,
    ) -> Result<(), NotSent> {
        if self.waiting.is_empty() {
            match send(socket, message, pass.as_ref().map(AsFd::as_fd)) {
                Err(Errno::AGAIN) => {}
                result => return result.map_err(NotSent::Failed),
            }
        }
        if self.waiting.len() >= limit {
            return Err(NotSent::Full);
        }
        let (head, body) = message.encode();
        let bytes = [head.as_bytes(), body].concat();
        self.waiting.push_back(Waiting { bytes, pass });
        Ok(())
    }

    /// Sends what the socket takes now.
    pub(super) fn flush(&mut self, socket: &OwnedFd) -> Result<(), NotSent> {
        while let Some(next) = self.waiting.front() {
            match send_parts(socket, &next.bytes, &[], next.pass.as_ref().map(AsFd::as_fd)) {
                Ok(()) => drop(self.waiting.pop_front()),
                Err(Errno::AGAIN) => return Ok(()),
                Err(error) => return Err(NotSent::Failed(error)),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Servers that refuse a connection say why and close: about one in some thousands of clients that looked just then
    /// saw the end alone.
    #[test]
    fn what_was_sent_before_an_end_is_received_before_it() {
        const ROUNDS: usize = 100_000;
        let pair = || {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap()
        };
        let (give, take) = std::sync::mpsc::sync_channel::<OwnedFd>(0);
        let sender = std::thread::spawn(move || {
            for socket in take {
                send(&socket, Message::Reject { reason: b"full" }, None).unwrap();
            }
        });
        let mut buffer = [0; 64];
        for round in 0..ROUNDS {
            let (socket, peer) = pair();
            give.send(peer).unwrap();
            let arrival = loop {
                match receive(&socket, &mut buffer) {
                    Arrival::Nothing => {}
                    arrival => break arrival,
                }
            };
            assert!(matches!(arrival, Arrival::Message(_)), "round {round}");
            assert!(matches!(
                loop {
                    match receive(&socket, &mut buffer) {
                        Arrival::Nothing => {}
                        arrival => break arrival,
                    }
                },
                Arrival::End(_)
            ));
        }
        drop(give);
        sender.join().unwrap();
    }
}
