//! Devices, and what they say of themselves and of their ports.
//!
//! # Safety
//! Walks the list that `ibv_get_device_list` returns, which is valid until [`DeviceList`] frees it.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char};
use std::fmt;
use std::io;
use std::ptr::NonNull;

use rdma_sys as sys;

use crate::error::{Error, Result};
use crate::library::{Library, require};

/// What identifies a device before it is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Name, as in `/sys/class/infiniband`.
    pub name: String,
    /// Its verbs character device, as in `/dev/infiniband`.
    pub uverbs_name: String,
    /// Globally unique id, in host order; zero where the device has none.
    pub guid: u64,
}

/// Names every device of this machine.
///
/// # Errors
/// [`Error::LibraryMissing`] without libibverbs, [`Error::NoDevice`] if the kernel offers none,
/// [`Error::Verb`] if the list cannot be had.
pub fn devices() -> Result<Vec<DeviceInfo>> {
    let list = DeviceList::new()?;
    let found: Vec<DeviceInfo> = list.iter().map(info).collect();
    if found.is_empty() {
        return Err(no_device());
    }
    Ok(found)
}

fn no_device() -> Error {
    Error::NoDevice {
        detail: "the kernel offers none: load the device's driver and ib_uverbs, or make a software device \
                 (modprobe rdma_rxe; rdma link add rxe0 type rxe netdev eth0)"
            .into(),
    }
}

/// The library's list, freed on drop; devices taken from it stay valid while a context opened from them does.
pub(crate) struct DeviceList {
    first: NonNull<*mut sys::ibv_device>,
    count: usize,
}

impl DeviceList {
    pub(crate) fn new() -> Result<DeviceList> {
        require(Library::Verbs)?;
        let mut count = 0;
        // SAFETY: `count` is a live integer that the call writes.
        let list = unsafe { sys::ibv_get_device_list(&mut count) };
        match NonNull::new(list) {
            Some(first) => Ok(DeviceList {
                first,
                count: usize::try_from(count).unwrap_or(0),
            }),
            None => {
                let source = io::Error::last_os_error();
                if source.raw_os_error() == Some(libc::ENOSYS) {
                    return Err(no_device());
                }
                Err(Error::verb("ibv_get_device_list", "this machine", source))
            }
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = NonNull<sys::ibv_device>> + '_ {
        (0..self.count).filter_map(|index| {
            // SAFETY: `index < count`, and the list has `count` entries followed by a null.
            let entry = unsafe { self.first.add(index) };
            // SAFETY: `entry` lies in the list, which lives as long as `self`.
            NonNull::new(unsafe { entry.read() })
        })
    }

    /// The device of this name.
    pub(crate) fn find(&self, name: &str) -> Result<NonNull<sys::ibv_device>> {
        if self.count == 0 {
            return Err(no_device());
        }
        self.iter()
            .find(|device| info(*device).name == name)
            .ok_or_else(|| Error::DeviceNotFound {
                name: name.into(),
                present: self
                    .iter()
                    .map(|device| info(device).name)
                    .collect::<Vec<_>>()
                    .join(", "),
            })
    }
}

impl Drop for DeviceList {
    fn drop(&mut self) {
        // SAFETY: the list came from `ibv_get_device_list` and is freed once, here.
        unsafe { sys::ibv_free_device_list(self.first.as_ptr()) };
    }
}

/// Reads what the library has noted about a device that is in a live list or belongs to a live context.
pub(crate) fn info(device: NonNull<sys::ibv_device>) -> DeviceInfo {
    // SAFETY: the caller's list or context keeps the device's memory alive; the library does not change these fields.
    let raw = unsafe { device.as_ref() };
    // SAFETY: `device` is live, see above; the call only reads it.
    let guid = unsafe { sys::ibv_get_device_guid(device.as_ptr()) };
    DeviceInfo {
        name: fixed_string(&raw.name),
        uverbs_name: fixed_string(&raw.dev_name),
        guid: u64::from_be(guid),
    }
}

/// A string in a fixed array, up to its first null; other encodings than UTF-8 are replaced, not trusted.
fn fixed_string(raw: &[c_char]) -> String {
    let bytes: Vec<u8> = raw.iter().map(|&c| c as u8).take_while(|&b| b != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// What a device can do (`ibv_query_device_ex(3)`).
#[derive(Clone, Debug)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the names are those of struct ibv_device_attr")]
pub struct DeviceAttr {
    pub fw_ver: String,
    pub vendor_id: u32,
    pub vendor_part_id: u32,
    pub max_mr_size: u64,
    pub page_size_cap: u64,
    pub max_qp: u32,
    pub max_qp_wr: u32,
    pub max_sge: u32,
    pub max_sge_rd: u32,
    pub max_cq: u32,
    pub max_cqe: u32,
    pub max_mr: u32,
    pub max_pd: u32,
    /// READs that one queue pair answers at a time; what `responder_resources` may be at most.
    pub max_qp_rd_atom: u32,
    /// READs that one queue pair asks at a time; what `initiator_depth` may be at most.
    pub max_qp_init_rd_atom: u32,
    pub max_res_rd_atom: u32,
    pub phys_port_cnt: u8,
    /// What on-demand paging it has.
    pub odp: OdpCaps,
}

impl DeviceAttr {
    /// `max_qp_rd_atom`, in the eight bits that a connection request carries.
    pub fn responder_resources_max(&self) -> u8 {
        clamp_depth(self.max_qp_rd_atom)
    }

    /// `max_qp_init_rd_atom`, in the eight bits that a connection request carries.
    pub fn initiator_depth_max(&self) -> u8 {
        clamp_depth(self.max_qp_init_rd_atom)
    }
}

/// 255 means "the maximum" to librdmacm, so a number that is meant stops below it.
fn clamp_depth(limit: u32) -> u8 {
    limit.min(254) as u8
}

/// On-demand paging, as far as reliable connections use it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OdpCaps {
    /// The device can register without pinning.
    pub supported: bool,
    /// It can register the whole address space at once.
    pub implicit: bool,
    /// A peer's READ may fault.
    pub rc_read: bool,
    /// A peer's WRITE may fault.
    pub rc_write: bool,
    /// A receive may fault.
    pub rc_recv: bool,
    /// A send may fault.
    pub rc_send: bool,
}

impl OdpCaps {
    fn from_raw(general: u64, rc: u32) -> OdpCaps {
        OdpCaps {
            supported: general & 1 != 0,
            implicit: general & 2 != 0,
            rc_send: rc & 1 != 0,
            rc_recv: rc & 2 != 0,
            rc_write: rc & 4 != 0,
            rc_read: rc & 8 != 0,
        }
    }
}

/// A device's answer is never negative; one that is counts as none.
fn count(value: i32) -> u32 {
    u32::try_from(value).unwrap_or(0)
}

impl DeviceAttr {
    pub(crate) fn from_raw(raw: &sys::ibv_device_attr_ex) -> DeviceAttr {
        let attr = &raw.orig_attr;
        DeviceAttr {
            fw_ver: fixed_string(&attr.fw_ver),
            vendor_id: attr.vendor_id,
            vendor_part_id: attr.vendor_part_id,
            max_mr_size: attr.max_mr_size,
            page_size_cap: attr.page_size_cap,
            max_qp: count(attr.max_qp),
            max_qp_wr: count(attr.max_qp_wr),
            max_sge: count(attr.max_sge),
            max_sge_rd: count(attr.max_sge_rd),
            max_cq: count(attr.max_cq),
            max_cqe: count(attr.max_cqe),
            max_mr: count(attr.max_mr),
            max_pd: count(attr.max_pd),
            max_qp_rd_atom: count(attr.max_qp_rd_atom),
            max_qp_init_rd_atom: count(attr.max_qp_init_rd_atom),
            max_res_rd_atom: count(attr.max_res_rd_atom),
            phys_port_cnt: attr.phys_port_cnt,
            odp: OdpCaps::from_raw(
                raw.odp_caps.general_caps,
                raw.odp_caps.per_transport_caps.rc_odp_caps,
            ),
        }
    }
}

/// State of a port; [`PortState::ACTIVE`] is the one that carries packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortState(pub u32);

impl PortState {
    /// No link.
    pub const DOWN: PortState = PortState(sys::ibv_port_state::IBV_PORT_DOWN);
    /// The link works.
    pub const ACTIVE: PortState = PortState(sys::ibv_port_state::IBV_PORT_ACTIVE);
}

impl fmt::Display for PortState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.0 {
            0 => "no change",
            1 => "down",
            2 => "init",
            3 => "armed",
            4 => "active",
            5 => "active (deferred)",
            other => return write!(f, "state {other}"),
        };
        f.write_str(name)
    }
}

/// A path MTU, as the code that verbs uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mtu(pub u32);

impl Mtu {
    /// Payload bytes of one packet; `None` for a code this crate does not know.
    pub fn bytes(self) -> Option<u32> {
        (1..=5).contains(&self.0).then(|| 128 << self.0)
    }
}

impl fmt::Display for Mtu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.bytes() {
            Some(bytes) => write!(f, "{bytes}"),
            None => write!(f, "mtu code {}", self.0),
        }
    }
}

/// What a port's packets travel on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkLayer(pub u8);

impl LinkLayer {
    /// InfiniBand.
    pub const INFINIBAND: LinkLayer = LinkLayer(sys::IBV_LINK_LAYER_INFINIBAND);
    /// Ethernet, that is RoCE.
    pub const ETHERNET: LinkLayer = LinkLayer(sys::IBV_LINK_LAYER_ETHERNET);
}

impl fmt::Display for LinkLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            LinkLayer::INFINIBAND => f.write_str("InfiniBand"),
            LinkLayer::ETHERNET => f.write_str("Ethernet"),
            LinkLayer(0) => f.write_str("unspecified"),
            LinkLayer(other) => write!(f, "link layer {other}"),
        }
    }
}

/// What a port is now (`ibv_query_port(3)`).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PortAttr {
    /// Logical state.
    pub state: PortState,
    /// Largest MTU the port can have.
    pub max_mtu: Mtu,
    /// The MTU it has.
    pub active_mtu: Mtu,
    /// Entries of its GID table, used or not.
    pub gid_tbl_len: u32,
    /// Longest message.
    pub max_msg_sz_bytes: u32,
    /// Local id; zero on Ethernet.
    pub lid: u16,
    /// InfiniBand or Ethernet.
    pub link_layer: LinkLayer,
    /// Physical state as the device numbers it (5 is link up).
    pub phys_state: u8,
    /// Lanes, as the device codes them.
    pub active_width: u8,
    /// Speed of a lane, as the device codes it.
    pub active_speed: u8,
}

impl PortAttr {
    pub(crate) fn from_raw(raw: &sys::ibv_port_attr) -> PortAttr {
        PortAttr {
            state: PortState(raw.state),
            max_mtu: Mtu(raw.max_mtu),
            active_mtu: Mtu(raw.active_mtu),
            gid_tbl_len: count(raw.gid_tbl_len),
            max_msg_sz_bytes: raw.max_msg_sz,
            lid: raw.lid,
            link_layer: LinkLayer(raw.link_layer),
            phys_state: raw.phys_state,
            active_width: raw.active_width,
            active_speed: raw.active_speed,
        }
    }
}

/// Name of a network interface, if there is one of this index.
pub(crate) fn interface_name(index: u32) -> Option<String> {
    let mut name = [0 as c_char; libc::IF_NAMESIZE];
    // SAFETY: `name` has the IF_NAMESIZE bytes that the call may write.
    let answer = unsafe { libc::if_indextoname(index, name.as_mut_ptr()) };
    if answer.is_null() {
        return None;
    }
    // SAFETY: on success the call left a null-terminated name in `name`, which is alive.
    let text = unsafe { CStr::from_ptr(name.as_ptr()) };
    Some(text.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_without_a_name_print_as_numbers() {
        assert_eq!(Mtu(5).bytes(), Some(4096));
        assert_eq!(Mtu(3).to_string(), "1024");
        assert_eq!(Mtu(9).to_string(), "mtu code 9");
        assert_eq!(PortState(4).to_string(), "active");
        assert_eq!(PortState(77).to_string(), "state 77");
        assert_eq!(LinkLayer(9).to_string(), "link layer 9");
    }

    #[test]
    fn depths_never_reach_the_wildcard() {
        assert_eq!(clamp_depth(16), 16);
        assert_eq!(clamp_depth(255), 254);
        assert_eq!(clamp_depth(100_000), 254);
    }

    #[test]
    fn odp_bits_are_told_apart() {
        let caps = OdpCaps::from_raw(1, 8);
        assert!(caps.supported && caps.rc_read && !caps.implicit && !caps.rc_write);
    }

    #[test]
    fn the_loopback_interface_has_a_name() {
        assert!(interface_name(1).is_some());
        assert!(interface_name(u32::MAX).is_none());
    }
}
