//! Messages to mapped devices, as `dmsetup message` sends them, without a program that must start first: what is told of an
//! answer is told before the server has done much else.
//!
//! # Safety
//! The kernel reads and writes no more of what it is given than the length that stands in its header, which is that of the
//! whole buffer.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use zerocopy::{Immutable, IntoBytes};

/// Where the kernel's device mapper is asked.
const CONTROL: &str = "/dev/mapper/control";
/// Version of that interface; the kernel has it or a later one that takes this too.
const VERSION: [u32; 3] = [4, 0, 0];
/// `DM_TARGET_MSG` of `linux/dm-ioctl.h`: `_IOWR(0xfd, 14, struct dm_ioctl)`.
const TARGET_MESSAGE: u64 = 3 << 30 | (size_of::<Header>() as u64) << 16 | 0xfd << 8 | 14;
const NAME_BYTES: usize = 128;

/// `struct dm_ioctl` of `linux/dm-ioctl.h`, and the sector of `struct dm_target_msg`, which follows it.
#[repr(C)]
#[derive(IntoBytes, Immutable)]
struct Header {
    version: [u32; 3],
    /// Length of all that is given, bytes.
    data_bytes: u32,
    /// Where `struct dm_target_msg` begins.
    data_at: u32,
    target_count: u32,
    open_count: u32,
    flags: u32,
    event: u32,
    padding: u32,
    device: u64,
    name: [u8; NAME_BYTES],
    uuid: [u8; 129],
    data: [u8; 7],
}

const _: () = {
    assert!(size_of::<Header>() == 312);
    assert!(std::mem::offset_of!(Header, name) == 48);
};

/// Header, sector 0 and text: what the kernel is given.
fn encode(device: &str, text: &str) -> io::Result<Vec<u8>> {
    let mut name = [0; NAME_BYTES];
    // The last byte ends the name, as one ends the text.
    let field = name[..NAME_BYTES - 1].get_mut(..device.len());
    field
        .filter(|_| !text.contains('\0'))
        .ok_or(io::ErrorKind::InvalidInput)?
        .copy_from_slice(device.as_bytes());
    let sector = 0_u64;
    let whole = size_of::<Header>() + size_of_val(&sector) + text.len() + 1;
    let header = Header {
        version: VERSION,
        data_bytes: u32::try_from(whole).map_err(io::Error::other)?,
        data_at: size_of::<Header>() as u32,
        target_count: 0,
        open_count: 0,
        flags: 0,
        event: 0,
        padding: 0,
        device: 0,
        name,
        uuid: [0; 129],
        data: [0; 7],
    };
    Ok([header.as_bytes(), sector.as_bytes(), text.as_bytes(), &[0]].concat())
}

/// Sends `text` to the target of the mapped device `device`, and returns when that has taken it.
pub(crate) fn send(device: &str, text: &str) -> io::Result<()> {
    let mut bytes = encode(device, text)?;
    let control = File::options().read(true).write(true).open(CONTROL)?;
    // SAFETY: `bytes` lives until the call returns, and is as long as its header says.
    let result = unsafe { libc::ioctl(control.as_raw_fd(), TARGET_MESSAGE, bytes.as_mut_ptr()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_what_the_kernel_documents() {
        let bytes = encode("some-device", "mark 7").unwrap();
        assert_eq!(TARGET_MESSAGE, 0xc138_fd0e);
        assert_eq!(bytes.len(), 312 + 8 + 7);
        assert_eq!(
            bytes[12..20],
            [(312 + 8 + 7_u32), 312].map(u32::to_ne_bytes).concat()
        );
        assert_eq!(bytes[48..60], *b"some-device\0");
        assert_eq!(bytes[312..320], [0; 8]);
        assert_eq!(bytes[320..], *b"mark 7\0");
        assert!(encode(&"x".repeat(127), "mark").is_ok());
        assert!(encode(&"x".repeat(128), "mark").is_err());
        assert!(encode("x", "mark\0").is_err());
    }
}
