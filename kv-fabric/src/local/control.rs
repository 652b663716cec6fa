//! A client's control connection.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::Shutdown;

use super::mapping::{Access, Mapping};
use super::message::{BODY_MAX_BYTES, Message};
use super::socket::{Arrival, BUFFER_BYTES, NotSent, Received, receive, send};
use crate::bell::Bell;
use crate::{ControlEvent, FabricError, Region, RemoteRef};

/// Messages taken in one poll.
const TURN_MAX: usize = 256;
/// WRITEs whose ends were not polled.
const WRITES_MAX: usize = 1024;

/// A client's control connection over `local`.
///
/// A WRITE is done when it is queued; its end is told at the next poll. The socket's buffer is the queue of frames.
#[derive(Debug)]
pub(super) struct Control {
    /// Both of the descriptors below, as one.
    epoll: OwnedFd,
    socket: OwnedFd,
    bell: Bell,
    frame_bytes: usize,
    staging: Option<(u32, Mapping)>,
    written: VecDeque<u64>,
    over: Option<String>,
    buffer: Vec<u8>,
}

impl Control {
    pub(super) fn new(socket: OwnedFd, frame_bytes: usize) -> Result<Self, FabricError> {
        let call = |error| FabricError::call("epoll", error);
        let bell = Bell::new()?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(call)?;
        for fd in [socket.as_fd(), bell.as_fd()] {
            epoll::add(&epoll, fd, EventData::new_u64(0), EventFlags::IN).map_err(call)?;
        }
        Ok(Self {
            epoll,
            socket,
            bell,
            frame_bytes,
            staging: None,
            written: VecDeque::new(),
            over: None,
            buffer: vec![0; BUFFER_BYTES],
        })
    }

    fn check_open(&self) -> Result<(), FabricError> {
        match &self.over {
            None => Ok(()),
            Some(reason) => Err(FabricError::Closed(reason.clone())),
        }
    }

    /// Ends the connection; the descriptor stays readable from now on.
    fn fail(&mut self, reason: String) {
        let _ = rustix::net::shutdown(&self.socket, Shutdown::Both);
        self.over.get_or_insert(reason);
    }

    fn take(&mut self, received: Received, events: &mut Vec<ControlEvent>) -> Result<(), String> {
        match (Message::decode(&self.buffer[..received.len]), received.passed) {
            (Some(Message::Frame(frame)), None) if frame.len() <= self.frame_bytes => {
                events.push(ControlEvent::Frame(frame.to_vec()));
                Ok(())
            }
            (Some(Message::Frame(frame)), None) => Err(format!(
                "a frame of {} bytes where {} may come",
                frame.len(),
                self.frame_bytes
            )),
            (Some(Message::Staging { rkey, len }), Some(fd)) if self.staging.is_none() => {
                let mapping = Mapping::new(&fd, len, Access::Write)
                    .map_err(|error| format!("staging memory cannot be mapped: {error}"))?;
                self.staging = Some((rkey, mapping));
                Ok(())
            }
            _ => Err("the server sent what this connection does not take".to_owned()),
        }
    }
}

impl crate::ControlConnection for Control {
    fn fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    fn send(&mut self, frame: &[u8]) -> Result<(), FabricError> {
        self.check_open()?;
        if frame.len() > BODY_MAX_BYTES {
            return Err(FabricError::Unsupported("a frame of more than 64 KiB"));
        }
        match send(&self.socket, Message::Frame(frame), None) {
            Ok(()) => Ok(()),
            Err(Errno::AGAIN) => Err(FabricError::Busy("the server takes no frames now")),
            // What it sent before it left can still be polled.
            Err(error) => Err(FabricError::Closed(NotSent::Failed(error).to_string())),
        }
    }

    fn write(
        &mut self,
        number: u64,
        source: &Region,
        offset: usize,
        len: usize,
        to: RemoteRef,
    ) -> Result<(), FabricError> {
        self.check_open()?;
        if offset
            .checked_add(len)
            .is_none_or(|end| end > source.memory().len())
        {
            return Err(FabricError::Post {
                posted: 0,
                source: io::Error::new(io::ErrorKind::InvalidInput, "the source is not inside its region"),
            });
        }
        if self.written.len() >= WRITES_MAX {
            return Err(FabricError::Busy("WRITEs not polled"));
        }
        match &self.staging {
            Some((rkey, mapping)) if *rkey == to.rkey && mapping.contains(to.address, len) => {
                mapping.copy_from(to.address, source.memory(), offset, len);
                self.written.push_back(number);
            }
            _ => self.fail("a WRITE outside the staging memory of this connection".to_owned()),
        }
        self.bell.ring();
        Ok(())
    }

    fn poll(&mut self, events: &mut Vec<ControlEvent>) -> Result<(), FabricError> {
        self.bell.clear();
        let before = events.len();
        events.extend(self.written.drain(..).map(ControlEvent::Written));
        for _ in 0..TURN_MAX {
            if self.over.is_some() {
                break;
            }
            match receive(&self.socket, &mut self.buffer) {
                Arrival::Message(received) => {
                    if let Err(reason) = self.take(received, events) {
                        self.fail(reason);
                    }
                }
                Arrival::Nothing => break,
                Arrival::End(reason) => self.fail(reason),
            }
        }
        if events.len() > before {
            return Ok(());
        }
        self.check_open()
    }
}
