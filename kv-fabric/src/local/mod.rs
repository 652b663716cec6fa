//! The same host, through shared memory passed over a Unix socket.
//!
//! An address is the path of a socket (`SOCK_SEQPACKET`). Its file has mode 0660: who may not write it cannot
//! connect; beyond that nothing is made of who the peer is.
//!
//! Memory that a [`crate::Domain`] registers is a memfd sealed against future writable mappings; a data connection is handed
//! a descriptor opened for reading only when it first READs an rkey, if the rkey is of its own domain, and maps it.
//! A READ is then a copy. When a registration ends, the endpoint tells those that mapped it, at its next poll, and
//! they unmap it, at theirs: then the memory is free. Until then a reader may go on reading it, which is why
//! [`crate::Fabric::fences`] is false here: reuse must wait for leases, and readers check them after the copy.
//!
//! Staging memory is a memfd of its own for each control connection, which only its peer is handed. A WRITE is a copy
//! into it.
//!
//! What the fabric itself says over the sockets is in `message`; neither end trusts the other's messages.

use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Instant;

use crate::{
    ControlConnection, ControlOptions, DataConnection, Fabric, FabricError, Memory, MemoryKind,
    PRIVATE_MAX_BYTES, Region, Stage, bell, check,
};

mod connection;
mod control;
mod data;
mod domain;
mod endpoint;
mod mapping;
mod message;
mod path;
mod peer;
mod socket;

use control::Control;
use data::Data;
use domain::Domain;
use endpoint::Endpoint;
use mapping::Mappings;
use message::Message;
use socket::Arrival;

/// Longest READ, bytes.
const READ_MAX_BYTES: usize = 64 * 1024 * 1024;

/// This host.
#[derive(Debug)]
pub struct Local {
    mappings: Arc<Mappings>,
}

impl Local {
    /// A process's view of this host. Data connections of one value share their mappings.
    ///
    /// # Errors
    /// None today.
    pub fn new() -> Result<Self, FabricError> {
        Ok(Self {
            mappings: Arc::default(),
        })
    }
}

/// What a connection request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Control,
    Data,
}

/// Connects and waits for the server's answer.
fn open(
    address: &str,
    private: &[u8],
    wanted: Wanted,
    deadline: Instant,
) -> Result<std::os::fd::OwnedFd, FabricError> {
    if private.len() > PRIVATE_MAX_BYTES {
        return Err(FabricError::Unsupported("private data of more than 56 bytes"));
    }
    let failed = |reason: String| FabricError::Connect {
        stage: Stage::Connect,
        address: address.to_owned(),
        source: std::io::Error::other(reason),
    };
    let socket = path::connect(address, deadline)?;
    socket::send(&socket, Message::Connect { private }, None)
        .map_err(|error| failed(socket::NotSent::Failed(error).to_string()))?;
    let mut buffer = [0; 256];
    loop {
        match socket::receive(&socket, &mut buffer) {
            Arrival::Message(received) => match (Message::decode(&buffer[..received.len]), wanted) {
                (Some(Message::AcceptControl), Wanted::Control)
                | (Some(Message::AcceptData), Wanted::Data) => return Ok(socket),
                (Some(Message::Reject { reason }), _) => {
                    return Err(FabricError::Rejected {
                        address: address.to_owned(),
                        reason: String::from_utf8_lossy(reason).into_owned(),
                    });
                }
                _ => {
                    return Err(failed(
                        "the server speaks another version or took us for another".to_owned(),
                    ));
                }
            },
            Arrival::Nothing => {
                if !bell::sleep(std::os::fd::AsFd::as_fd(&socket), deadline)? {
                    return Err(FabricError::Timeout {
                        stage: Stage::Connect,
                        address: address.to_owned(),
                    });
                }
            }
            Arrival::End(reason) => return Err(failed(reason)),
        }
    }
}

impl Fabric for Local {
    fn name(&self) -> &'static str {
        "local"
    }

    fn outlives(&self) -> std::time::Duration {
        data::OUTLIVES
    }

    fn fences(&self) -> bool {
        false
    }

    fn describe(&self) -> String {
        "local: shared memory of this host, over Unix sockets".to_owned()
    }

    fn read_max_bytes(&self) -> usize {
        READ_MAX_BYTES
    }

    fn domain(&self) -> Result<Arc<dyn crate::Domain>, FabricError> {
        Ok(Arc::new(Domain::new()))
    }

    fn listen(&self, address: &str) -> Result<Box<dyn crate::Endpoint>, FabricError> {
        Ok(Box::new(Endpoint::new(address)?))
    }

    fn allocate(&self, len: usize) -> Result<Region, FabricError> {
        Ok(Region::unregistered(Memory::new(len, MemoryKind::Private)?))
    }

    #[allow(
        unsafe_code,
        reason = "the caller's obligations are those of `Memory::borrowed`"
    )]
    unsafe fn register(&self, start: NonNull<u8>, len: usize) -> Result<Region, FabricError> {
        check::registered_len(len)?;
        // SAFETY: the memory is mapped as long as the region is used or a READ to it is under way, and nothing else accesses
        // it meanwhile: the caller vouches for both.
        let memory = unsafe { Memory::borrowed(start, len) };
        Ok(Region::unregistered(memory))
    }

    fn connect_control(
        &self,
        address: &str,
        request: &[u8],
        options: ControlOptions,
        deadline: Instant,
    ) -> Result<Box<dyn ControlConnection>, FabricError> {
        let socket = open(address, request, Wanted::Control, deadline)?;
        Ok(Box::new(Control::new(socket, options.frame_bytes)?))
    }

    fn connect_data(
        &self,
        address: &str,
        request: &[u8],
        reads_max: u32,
        deadline: Instant,
    ) -> Result<Box<dyn DataConnection>, FabricError> {
        let socket = open(address, request, Wanted::Data, deadline)?;
        Ok(Box::new(Data::new(socket, Arc::clone(&self.mappings), reads_max)))
    }
}
