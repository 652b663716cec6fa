//! Socket addresses to and from what C wants.
//!
//! # Safety
//! [`SockAddr`] is a `sockaddr_storage`, which has room and alignment for every address family; it is viewed as the type
//! that its family says.
#![allow(unsafe_code)]

use std::mem::zeroed;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

/// An address in C's form.
pub(crate) struct SockAddr(libc::sockaddr_storage);

impl SockAddr {
    pub(crate) fn new(address: &SocketAddr) -> SockAddr {
        // SAFETY: `sockaddr_storage` is integers and padding; all zero is a value.
        let mut storage: libc::sockaddr_storage = unsafe { zeroed() };
        let place: *mut libc::sockaddr_storage = &mut storage;
        match address {
            SocketAddr::V4(v4) => {
                let raw = libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: v4.port().to_be(),
                    sin_addr: libc::in_addr {
                        s_addr: u32::from(*v4.ip()).to_be(),
                    },
                    sin_zero: [0; 8],
                };
                // SAFETY: `place` has room and alignment for every kind of address.
                unsafe { place.cast::<libc::sockaddr_in>().write(raw) };
            }
            SocketAddr::V6(v6) => {
                let raw = libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as libc::sa_family_t,
                    sin6_port: v6.port().to_be(),
                    sin6_flowinfo: v6.flowinfo(),
                    sin6_addr: libc::in6_addr {
                        s6_addr: v6.ip().octets(),
                    },
                    sin6_scope_id: v6.scope_id(),
                };
                // SAFETY: `place` has room and alignment for every kind of address.
                unsafe { place.cast::<libc::sockaddr_in6>().write(raw) };
            }
        }
        SockAddr(storage)
    }

    pub(crate) fn as_mut_ptr(&mut self) -> *mut libc::sockaddr {
        (&raw mut self.0).cast()
    }
}

/// Reads an address; `None` for a family that is neither IPv4 nor IPv6 (also: not set yet).
pub(crate) fn from_storage(storage: &libc::sockaddr_storage) -> Option<SocketAddr> {
    let place: *const libc::sockaddr_storage = storage;
    match i32::from(storage.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says that it is an IPv4 address, and the storage has its size and alignment.
            let raw = unsafe { place.cast::<libc::sockaddr_in>().read() };
            let ip = Ipv4Addr::from(u32::from_be(raw.sin_addr.s_addr));
            Some(SocketAddr::V4(SocketAddrV4::new(ip, u16::from_be(raw.sin_port))))
        }
        libc::AF_INET6 => {
            // SAFETY: the family says that it is an IPv6 address, and the storage has its size and alignment.
            let raw = unsafe { place.cast::<libc::sockaddr_in6>().read() };
            let ip = Ipv6Addr::from(raw.sin6_addr.s6_addr);
            let port = u16::from_be(raw.sin6_port);
            Some(SocketAddr::V6(SocketAddrV6::new(
                ip,
                port,
                raw.sin6_flowinfo,
                raw.sin6_scope_id,
            )))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_the_round_trip() {
        for text in [
            "10.0.2.15:7471",
            "[fe80::1]:1",
            "[::ffff:1.2.3.4]:65535",
            "0.0.0.0:0",
        ] {
            let address: SocketAddr = text.parse().unwrap();
            assert_eq!(from_storage(&SockAddr::new(&address).0), Some(address));
        }
    }

    #[test]
    fn an_unset_address_is_none() {
        let address = SockAddr::new(&"10.0.0.1:1".parse().unwrap());
        let mut storage = address.0;
        storage.ss_family = 0;
        assert_eq!(from_storage(&storage), None);
    }
}
