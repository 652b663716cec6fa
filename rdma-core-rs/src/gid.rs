//! GIDs: the addresses of a port, and which of them to use.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use crate::error::{Error, Result};

/// A 128-bit port address; on RoCE v2 it is an IP address.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Gid(pub [u8; 16]);

impl Gid {
    /// The IP address it stands for: IPv4 if it is mapped, else IPv6.
    pub fn ip(self) -> IpAddr {
        let v6 = Ipv6Addr::from(self.0);
        v6.to_ipv4_mapped().map_or(IpAddr::V6(v6), IpAddr::V4)
    }

    /// True for `::ffff:a.b.c.d`.
    pub fn is_ipv4_mapped(self) -> bool {
        matches!(self.ip(), IpAddr::V4(_))
    }

    fn is_zero(self) -> bool {
        self.0 == [0; 16]
    }
}

impl fmt::Display for Gid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ipv6Addr::from(self.0).fmt(f)
    }
}

impl fmt::Debug for Gid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gid({self})")
    }
}

/// What packets sent from a GID look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GidType(pub u32);

impl GidType {
    /// InfiniBand.
    pub const IB: GidType = GidType(0);
    /// RoCE v1: its own ethertype, one broadcast domain.
    pub const ROCE_V1: GidType = GidType(1);
    /// RoCE v2: UDP, routable.
    pub const ROCE_V2: GidType = GidType(2);
}

impl fmt::Display for GidType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            GidType::IB => f.write_str("IB"),
            GidType::ROCE_V1 => f.write_str("RoCE v1"),
            GidType::ROCE_V2 => f.write_str("RoCE v2"),
            GidType(other) => write!(f, "gid type {other}"),
        }
    }
}

/// One used line of a device's GID table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GidEntry {
    /// The address.
    pub gid: Gid,
    /// Its index within the port, which is what a queue pair is given.
    pub index: u8,
    /// The port it belongs to.
    pub port_num: u8,
    /// What packets from it look like.
    pub kind: GidType,
    /// The network interface behind it, if there is one.
    pub netdev: Option<String>,
}

impl fmt::Display for GidEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "gid {} of port {}: {} ({}",
            self.index, self.port_num, self.gid, self.kind
        )?;
        if let Some(netdev) = &self.netdev {
            write!(f, ", {netdev}")?;
        }
        f.write_str(")")
    }
}

/// Why a GID was preferred, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum GidReason {
    /// It is the address the caller named, on RoCE v2 or InfiniBand.
    Asked,
    /// RoCE v2 with an IPv4 address: routable, and the one that peers agree on.
    RoceV2Ipv4,
    /// RoCE v2 with a global IPv6 address.
    RoceV2Ipv6,
    /// RoCE v2 with a link-local address: works within one network only.
    RoceV2LinkLocal,
    /// The port is InfiniBand.
    Infiniband,
    /// RoCE v1: works within one network only, and not everywhere.
    RoceV1,
}

impl fmt::Display for GidReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            GidReason::Asked => "it is the address asked for",
            GidReason::RoceV2Ipv4 => "RoCE v2 with an IPv4 address comes first",
            GidReason::RoceV2Ipv6 => "no RoCE v2 IPv4 address, so a RoCE v2 IPv6 one",
            GidReason::RoceV2LinkLocal => "only link-local RoCE v2 addresses here",
            GidReason::Infiniband => "an InfiniBand port",
            GidReason::RoceV1 => "no RoCE v2 address at all, so RoCE v1",
        })
    }
}

/// The GID to use, and why; prints as one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GidChoice {
    /// The line chosen.
    pub entry: GidEntry,
    /// Why it was.
    pub reason: GidReason,
    /// How many lines of the port were looked at.
    pub considered_count: usize,
}

impl fmt::Display for GidChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}, chosen of {}: {}",
            self.entry, self.considered_count, self.reason
        )
    }
}

/// Picks the GID of `port_num` to use: the one of `address` if it is named, else the best by [`GidReason`].
///
/// Among equals the lowest index wins, so that both ends of a test and every restart choose alike.
///
/// # Errors
/// [`Error::NoGid`] if the port has none, or none of that address; the message lists what it has.
pub fn select_gid(table: &[GidEntry], port_num: u8, address: Option<IpAddr>) -> Result<GidChoice> {
    let of_port: Vec<&GidEntry> = table
        .iter()
        .filter(|entry| entry.port_num == port_num && !entry.gid.is_zero())
        .collect();
    let best = of_port
        .iter()
        .filter_map(|entry| rank(entry, address).map(|reason| (reason, entry.index, *entry)))
        .min_by_key(|(reason, index, _)| (*reason, *index));
    match best {
        Some((reason, _, entry)) => Ok(GidChoice {
            entry: entry.clone(),
            reason,
            considered_count: of_port.len(),
        }),
        None => Err(Error::NoGid {
            port_num,
            detail: no_gid_detail(&of_port, address),
        }),
    }
}

fn no_gid_detail(of_port: &[&GidEntry], address: Option<IpAddr>) -> String {
    let wanted = address.map_or(String::new(), |address| {
        format!("none has the address {address}; ")
    });
    if of_port.is_empty() {
        return format!("{wanted}its table is empty: give its network interface an address and bring it up");
    }
    let lines: Vec<String> = of_port.iter().map(|entry| entry.to_string()).collect();
    format!("{wanted}it has {}", lines.join("; "))
}

fn rank(entry: &GidEntry, address: Option<IpAddr>) -> Option<GidReason> {
    if let Some(address) = address {
        let usable = entry.kind != GidType::ROCE_V1 && entry.gid.ip() == address;
        return usable.then_some(GidReason::Asked);
    }
    match entry.kind {
        GidType::ROCE_V2 if entry.gid.is_ipv4_mapped() => Some(GidReason::RoceV2Ipv4),
        GidType::ROCE_V2 if Ipv6Addr::from(entry.gid.0).is_unicast_link_local() => {
            Some(GidReason::RoceV2LinkLocal)
        }
        GidType::ROCE_V2 => Some(GidReason::RoceV2Ipv6),
        GidType::IB => Some(GidReason::Infiniband),
        GidType::ROCE_V1 => Some(GidReason::RoceV1),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(index: u8, kind: GidType, address: &str) -> GidEntry {
        let gid = match address.parse().unwrap() {
            IpAddr::V4(v4) => Gid(v4.to_ipv6_mapped().octets()),
            IpAddr::V6(v6) => Gid(v6.octets()),
        };
        GidEntry {
            gid,
            index,
            port_num: 1,
            kind,
            netdev: Some("eth0".into()),
        }
    }

    fn table() -> Vec<GidEntry> {
        vec![
            entry(0, GidType::ROCE_V1, "fe80::1"),
            entry(1, GidType::ROCE_V2, "fe80::1"),
            entry(2, GidType::ROCE_V1, "10.0.2.15"),
            entry(3, GidType::ROCE_V2, "10.0.2.15"),
            entry(4, GidType::ROCE_V2, "10.0.3.15"),
        ]
    }

    #[test]
    fn roce_v2_ipv4_comes_first_and_says_why() {
        let choice = select_gid(&table(), 1, None).unwrap();
        assert_eq!((choice.entry.index, choice.reason), (3, GidReason::RoceV2Ipv4));
        let line = choice.to_string();
        assert!(
            line.contains("::ffff:10.0.2.15") && line.contains("RoCE v2, eth0") && line.contains("of 5"),
            "{line}"
        );
    }

    #[test]
    fn without_ipv4_the_next_best_is_taken() {
        let mut rest = table();
        rest.truncate(2);
        assert_eq!(
            select_gid(&rest, 1, None).unwrap().reason,
            GidReason::RoceV2LinkLocal
        );
        rest.truncate(1);
        assert_eq!(select_gid(&rest, 1, None).unwrap().reason, GidReason::RoceV1);
    }

    #[test]
    fn a_named_address_is_the_one_or_nothing() {
        let choice = select_gid(&table(), 1, Some("10.0.3.15".parse().unwrap())).unwrap();
        assert_eq!((choice.entry.index, choice.reason), (4, GidReason::Asked));
        let error = select_gid(&table(), 1, Some("10.9.9.9".parse().unwrap()))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("10.9.9.9") && error.contains("::ffff:10.0.2.15"),
            "{error}"
        );
    }

    #[test]
    fn an_empty_port_names_the_remedy() {
        let error = select_gid(&table(), 2, None).unwrap_err().to_string();
        assert!(
            error.contains("port 2") && error.contains("bring it up"),
            "{error}"
        );
    }
}
