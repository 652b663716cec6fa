//! Memory that values are read into.

use std::ops::{Deref, DerefMut};

use crate::memory::Buffer;

mod sealed {
    pub trait Sealed {
        #[doc(hidden)]
        #[allow(private_interfaces, reason = "sealed: nobody else can name or implement it")]
        fn memory(&mut self) -> &mut crate::memory::Buffer;
        #[doc(hidden)]
        #[allow(private_interfaces, reason = "sealed: nobody else can name or implement it")]
        fn into_memory(self) -> crate::memory::Buffer;
    }
}

/// Memory that values can be read into: [`RegisteredBuffer`] and [`RegisteredMemory`].
pub trait Destination: sealed::Sealed {}

/// What was moved into a reader, come back.
#[derive(Debug)]
pub enum Moved {
    /// Memory of the library.
    Buffer(RegisteredBuffer),
    /// Memory of the caller.
    Memory(RegisteredMemory),
}

impl Moved {
    pub(crate) fn of(memory: Buffer) -> Self {
        if memory.is_callers() {
            Self::Memory(RegisteredMemory { memory })
        } else {
            Self::Buffer(RegisteredBuffer { memory })
        }
    }

    /// The buffer, if that is what it is.
    #[must_use]
    pub fn buffer(self) -> Option<RegisteredBuffer> {
        match self {
            Self::Buffer(buffer) => Some(buffer),
            Self::Memory(_) => None,
        }
    }

    /// The caller's memory, if that is what it is.
    #[must_use]
    pub fn memory(self) -> Option<RegisteredMemory> {
        match self {
            Self::Buffer(_) => None,
            Self::Memory(memory) => Some(memory),
        }
    }
}

/// Memory of the library that values are read into without a copy. It belongs to the fabric of the client that
/// allocated it.
pub struct RegisteredBuffer {
    pub(crate) memory: Buffer,
}

/// Memory of the caller that values are read into without a copy: see [`crate::Client::register`].
pub struct RegisteredMemory {
    pub(crate) memory: Buffer,
}

impl RegisteredMemory {
    /// Its length, bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.memory.len()
    }

    /// Whether it has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Cuts it in two at `at`: what lies behind that comes back, `None` if it is not that long. Nothing is registered anew, so
    /// that many values may be read into pieces of one registration at once.
    pub fn split_off(&mut self, at: usize) -> Option<Self> {
        let memory = self.memory.split_off(at)?;
        Some(Self { memory })
    }
}

impl std::fmt::Debug for RegisteredBuffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RegisteredBuffer({} bytes)", self.len())
    }
}

impl std::fmt::Debug for RegisteredMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RegisteredMemory({} bytes)", self.len())
    }
}

macro_rules! destination {
    ($($name:ident),*) => {$(
        #[allow(private_interfaces, reason = "sealed")]
        impl sealed::Sealed for $name {
            fn memory(&mut self) -> &mut Buffer {
                &mut self.memory
            }
            fn into_memory(self) -> Buffer {
                self.memory
            }
        }
        impl Destination for $name {}
    )*};
}
destination!(RegisteredBuffer, RegisteredMemory);

impl Deref for RegisteredBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.memory.bytes()
    }
}

impl DerefMut for RegisteredBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.memory.bytes_mut()
    }
}
