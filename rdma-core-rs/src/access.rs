//! The rights of a memory region or of a queue pair.

use std::fmt;
use std::ops::BitOr;

use rdma_sys as sys;

use crate::error::{Error, Result};

/// A set of rights. There is no default: every registration spells what it grants.
///
/// The same set is used for a region ([`ProtectionDomain::register`](crate::ProtectionDomain::register)) and for what a
/// queue pair lets its peer do ([`QueuePair::set_access`](crate::QueuePair::set_access)); a remote operation needs both.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Access(u32);

impl Access {
    /// Nothing beyond local reading: the device may fetch what it sends.
    pub const NONE: Access = Access(0);
    /// The device may write here on this machine's own behalf: receives, and the destination of READs.
    pub const LOCAL_WRITE: Access = Access(sys::ibv_access_flags::IBV_ACCESS_LOCAL_WRITE.0);
    /// A peer may write. Verbs asks that `LOCAL_WRITE` comes with it.
    pub const REMOTE_WRITE: Access = Access(sys::ibv_access_flags::IBV_ACCESS_REMOTE_WRITE.0);
    /// A peer may read.
    pub const REMOTE_READ: Access = Access(sys::ibv_access_flags::IBV_ACCESS_REMOTE_READ.0);
    /// Pages are not pinned; the device faults them in. Regions only, where the device can.
    pub const ON_DEMAND: Access = Access(sys::ibv_access_flags::IBV_ACCESS_ON_DEMAND.0);
    /// Writes of one message may become visible in any order. Ignored where the device or kernel lacks it.
    pub const RELAXED_ORDERING: Access = Access(sys::ibv_access_flags::IBV_ACCESS_RELAXED_ORDERING.0);

    const NAMES: [(Access, &'static str); 5] = [
        (Access::LOCAL_WRITE, "LOCAL_WRITE"),
        (Access::REMOTE_WRITE, "REMOTE_WRITE"),
        (Access::REMOTE_READ, "REMOTE_READ"),
        (Access::ON_DEMAND, "ON_DEMAND"),
        (Access::RELAXED_ORDERING, "RELAXED_ORDERING"),
    ];

    /// True if every right of `other` is in this set.
    pub const fn contains(self, other: Access) -> bool {
        self.0 & other.0 == other.0
    }

    /// The bits as `enum ibv_access_flags` has them.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// A set from the device's own bits; those without a name here are kept and printed as a number.
    pub const fn from_bits(bits: u32) -> Access {
        Access(bits)
    }

    /// Refuses combinations that verbs defines as wrong, so that the caller reads a reason and not EINVAL.
    pub(crate) fn check_for_region(self) -> Result<()> {
        if self.contains(Access::REMOTE_WRITE) && !self.contains(Access::LOCAL_WRITE) {
            return Err(Error::invalid(format!(
                "access {self}: REMOTE_WRITE needs LOCAL_WRITE beside it"
            )));
        }
        Ok(())
    }

    /// A queue pair has only rights for its peer (LOCAL_WRITE is allowed and means nothing).
    pub(crate) fn check_for_qp(self) -> Result<()> {
        let allowed = Access::REMOTE_READ | Access::REMOTE_WRITE | Access::LOCAL_WRITE;
        if allowed.contains(self) {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "access {self}: a queue pair takes REMOTE_READ and REMOTE_WRITE only"
        )))
    }
}

impl BitOr for Access {
    type Output = Access;
    fn bitor(self, other: Access) -> Access {
        Access(self.0 | other.0)
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 {
            return f.write_str("NONE");
        }
        let mut rest = self.0;
        let mut separator = "";
        for (flag, name) in Access::NAMES {
            if self.contains(flag) {
                write!(f, "{separator}{name}")?;
                separator = "|";
                rest &= !flag.0;
            }
        }
        if rest != 0 {
            write!(f, "{separator}{rest:#x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Access({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_print_their_names() {
        assert_eq!(Access::NONE.to_string(), "NONE");
        assert_eq!(
            (Access::REMOTE_READ | Access::LOCAL_WRITE).to_string(),
            "LOCAL_WRITE|REMOTE_READ"
        );
        assert_eq!(Access::from_bits(0x80 | 4).to_string(), "REMOTE_READ|0x80");
    }

    #[test]
    fn wrong_sets_are_refused_with_a_reason() {
        assert!(
            Access::REMOTE_WRITE
                .check_for_region()
                .unwrap_err()
                .to_string()
                .contains("LOCAL_WRITE")
        );
        assert!(
            (Access::REMOTE_WRITE | Access::LOCAL_WRITE)
                .check_for_region()
                .is_ok()
        );
        assert!(Access::ON_DEMAND.check_for_qp().is_err());
        assert!(Access::REMOTE_READ.check_for_qp().is_ok());
    }
}
