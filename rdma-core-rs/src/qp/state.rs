//! States of a queue pair and the steps between them.
//!
//! # Safety
//! Passes `ibv_modify_qp` a live queue pair and a structure on the stack.
#![allow(unsafe_code)]

use std::fmt;
use std::io;
use std::mem::zeroed;

use rdma_sys as sys;
use sys::ibv_qp_attr_mask as mask;

use crate::access::Access;
use crate::device::Mtu;
use crate::error::{Error, Result, os_result};
use crate::gid::Gid;
use crate::qp::QueuePair;
use crate::qp::diagnose::diagnose;

/// State of a queue pair (`enum ibv_qp_state`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct QpState(pub u32);

#[allow(missing_docs, reason = "the names are those of enum ibv_qp_state")]
impl QpState {
    pub const RESET: QpState = QpState(0);
    pub const INIT: QpState = QpState(1);
    pub const RTR: QpState = QpState(2);
    pub const RTS: QpState = QpState(3);
    pub const SQD: QpState = QpState(4);
    pub const SQE: QpState = QpState(5);
    pub const ERR: QpState = QpState(6);
    /// Not known.
    pub const UNKNOWN: QpState = QpState(7);
}

impl fmt::Display for QpState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match ["RESET", "INIT", "RTR", "RTS", "SQD", "SQE", "ERR", "UNKNOWN"].get(self.0 as usize) {
            Some(name) => f.write_str(name),
            None => write!(f, "state {}", self.0),
        }
    }
}

/// How hard a connection tries before it gives up. Every number is finite: nothing here retries for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reliability {
    /// Time before an unanswered packet is sent again, as 4.096 us * 2^n; 14 (67 ms) to 31.
    pub timeout: u8,
    /// How often it is sent again; at most 6 (7 means for ever to Soft-RoCE, though not to the specification).
    pub retry_cnt: u8,
    /// How often a message is sent again to a peer that has no receive posted; at most 6 (7 means for ever).
    pub rnr_retry: u8,
    /// How long this side asks its peer to wait when it has no receive posted, in the device's code; 12 is 0.64 ms.
    pub min_rnr_timer: u8,
}

impl Reliability {
    /// Shortest timeout: below it a busy peer is taken for a dead one.
    pub const TIMEOUT_MIN: u8 = 14;
    /// Most retries that still end, for every device.
    pub const RETRY_MAX: u8 = 6;

    /// Refuses what would never end or end too soon.
    pub(crate) fn check(&self) -> Result<()> {
        let timeouts = Self::TIMEOUT_MIN..=31;
        if !timeouts.contains(&self.timeout) {
            return Err(Error::invalid(format!(
                "timeout {}: 14 to 31 are allowed",
                self.timeout
            )));
        }
        for (name, count) in [("retry_cnt", self.retry_cnt), ("rnr_retry", self.rnr_retry)] {
            if count > Self::RETRY_MAX {
                return Err(Error::invalid(format!(
                    "{name} {count}: 0 to 6 are allowed, 7 may never end"
                )));
            }
        }
        if self.min_rnr_timer > 31 {
            return Err(Error::invalid(format!(
                "min_rnr_timer {}: 0 to 31 are allowed",
                self.min_rnr_timer
            )));
        }
        Ok(())
    }
}

impl Default for Reliability {
    /// 67 ms, 6 times again; 6 retries of 0.64 ms where no receive is posted.
    fn default() -> Reliability {
        Reliability {
            timeout: Self::TIMEOUT_MIN,
            retry_cnt: Self::RETRY_MAX,
            rnr_retry: Self::RETRY_MAX,
            min_rnr_timer: 12,
        }
    }
}

/// What RESET to INIT needs.
#[derive(Clone, Copy, Debug)]
pub struct InitAttr {
    /// Port to use, from 1.
    pub port_num: u8,
    /// Partition key; 0 on RoCE.
    pub pkey_index: u16,
    /// What the peer may do.
    pub access: Access,
}

/// What INIT to RTR (ready to receive) needs.
#[derive(Clone, Copy, Debug)]
pub struct RtrAttr {
    /// Payload of a packet; at most the port's active MTU.
    pub path_mtu: Mtu,
    /// The peer's queue pair.
    pub dest_qp_num: u32,
    /// First packet number of the peer.
    pub rq_psn: u32,
    /// The peer's address.
    pub dgid: Gid,
    /// Index of this side's own address.
    pub sgid_index: u8,
    /// The peer's local id; 0 on Ethernet.
    pub dlid: u16,
    /// Port to use, from 1.
    pub port_num: u8,
    /// READs answered at a time.
    pub max_dest_rd_atomic: u8,
    /// See [`Reliability::min_rnr_timer`].
    pub min_rnr_timer: u8,
}

/// What RTR to RTS (ready to send) needs.
#[derive(Clone, Copy, Debug)]
pub struct RtsAttr {
    /// First packet number of this side.
    pub sq_psn: u32,
    /// READs asked at a time.
    pub max_rd_atomic: u8,
    /// Retries.
    pub reliability: Reliability,
}

/// Hops that packets may take; RoCE v2 is routed.
const HOP_LIMIT: u8 = 64;

/// A zeroed attribute structure.
pub(crate) fn empty_attr() -> sys::ibv_qp_attr {
    // SAFETY: `ibv_qp_attr` is integers and a union of them; all zero is a value.
    unsafe { zeroed() }
}

impl QueuePair {
    /// RESET to INIT: receives may be posted from here on.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for rights that a queue pair cannot give, [`Error::ModifyQp`] if refused.
    pub fn to_init(&self, init: &InitAttr) -> Result<()> {
        init.access.check_for_qp()?;
        let mut attr = empty_attr();
        attr.qp_state = QpState::INIT.0;
        attr.port_num = init.port_num;
        attr.pkey_index = init.pkey_index;
        attr.qp_access_flags = init.access.bits();
        let bits =
            mask::IBV_QP_STATE | mask::IBV_QP_PORT | mask::IBV_QP_PKEY_INDEX | mask::IBV_QP_ACCESS_FLAGS;
        self.modify(&mut attr, bits.0)
    }

    /// INIT to RTR: the peer's messages are taken from here on.
    ///
    /// # Errors
    /// [`Error::ModifyQp`] if refused.
    pub fn to_rtr(&self, rtr: &RtrAttr) -> Result<()> {
        let mut attr = empty_attr();
        attr.qp_state = QpState::RTR.0;
        attr.path_mtu = rtr.path_mtu.0;
        attr.dest_qp_num = rtr.dest_qp_num;
        attr.rq_psn = rtr.rq_psn;
        attr.max_dest_rd_atomic = rtr.max_dest_rd_atomic;
        attr.min_rnr_timer = rtr.min_rnr_timer;
        attr.ah_attr.grh.dgid.raw = rtr.dgid.0;
        attr.ah_attr.grh.sgid_index = rtr.sgid_index;
        attr.ah_attr.grh.hop_limit = HOP_LIMIT;
        attr.ah_attr.is_global = 1;
        attr.ah_attr.dlid = rtr.dlid;
        attr.ah_attr.port_num = rtr.port_num;
        let bits = mask::IBV_QP_STATE
            | mask::IBV_QP_AV
            | mask::IBV_QP_PATH_MTU
            | mask::IBV_QP_DEST_QPN
            | mask::IBV_QP_RQ_PSN
            | mask::IBV_QP_MAX_DEST_RD_ATOMIC
            | mask::IBV_QP_MIN_RNR_TIMER;
        self.modify(&mut attr, bits.0)
    }

    /// RTR to RTS: work may be posted from here on.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for retries that are not allowed, [`Error::ModifyQp`] if refused.
    pub fn to_rts(&self, rts: &RtsAttr) -> Result<()> {
        rts.reliability.check()?;
        let mut attr = empty_attr();
        attr.qp_state = QpState::RTS.0;
        attr.sq_psn = rts.sq_psn;
        attr.max_rd_atomic = rts.max_rd_atomic;
        attr.timeout = rts.reliability.timeout;
        attr.retry_cnt = rts.reliability.retry_cnt;
        attr.rnr_retry = rts.reliability.rnr_retry;
        let bits = mask::IBV_QP_STATE
            | mask::IBV_QP_SQ_PSN
            | mask::IBV_QP_MAX_QP_RD_ATOMIC
            | mask::IBV_QP_TIMEOUT
            | mask::IBV_QP_RETRY_CNT
            | mask::IBV_QP_RNR_RETRY;
        self.modify(&mut attr, bits.0)
    }

    /// Any state to ERR: what is outstanding completes as `WR_FLUSH_ERR`, and nothing more is taken from the peer.
    ///
    /// # Errors
    /// [`Error::ModifyQp`] if refused.
    pub fn to_error(&self) -> Result<()> {
        let mut attr = empty_attr();
        attr.qp_state = QpState::ERR.0;
        self.modify(&mut attr, mask::IBV_QP_STATE.0)
    }

    /// Changes what the peer may do, in a state that allows it (INIT, RTS).
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for rights that a queue pair cannot give, [`Error::ModifyQp`] if refused.
    pub fn set_access(&self, access: Access) -> Result<()> {
        access.check_for_qp()?;
        let mut attr = empty_attr();
        attr.qp_access_flags = access.bits();
        self.modify(&mut attr, mask::IBV_QP_ACCESS_FLAGS.0)
    }

    pub(crate) fn modify(&self, attr: &mut sys::ibv_qp_attr, bits: u32) -> Result<()> {
        // SAFETY: the queue pair is live; `attr` is a live structure whose fields named in `bits` are set.
        let rc = unsafe { sys::ibv_modify_qp(self.as_ptr(), attr, bits as i32) };
        os_result(rc).map_err(|source| self.refused(attr, bits, source))
    }

    /// Finds out what was wrong with a refused change: the transition, or bits that it lacks or does not allow.
    fn refused(&self, attr: &sys::ibv_qp_attr, bits: u32, source: io::Error) -> Error {
        let from = self.query().map_or(QpState::UNKNOWN, |attr| attr.state);
        let to = if bits & mask::IBV_QP_STATE.0 == 0 {
            from
        } else {
            QpState(attr.qp_state)
        };
        let diagnosis = match source.raw_os_error() {
            Some(libc::EINVAL) => diagnose(from, to, bits),
            Some(libc::ETIMEDOUT) => "; the peer's address did not resolve: is it reachable?".into(),
            _ => String::new(),
        };
        Error::ModifyQp {
            qp_num: self.qp_num(),
            from,
            to,
            diagnosis,
            source,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_end() {
        assert!(Reliability::default().check().is_ok());
        assert!(
            Reliability {
                rnr_retry: 7,
                ..Default::default()
            }
            .check()
            .is_err()
        );
        assert!(
            Reliability {
                timeout: 13,
                ..Default::default()
            }
            .check()
            .is_err()
        );
        assert!(
            Reliability {
                timeout: 0,
                ..Default::default()
            }
            .check()
            .is_err()
        );
        assert!(
            Reliability {
                retry_cnt: 7,
                ..Default::default()
            }
            .check()
            .is_err()
        );
        assert!(
            Reliability {
                min_rnr_timer: 32,
                ..Default::default()
            }
            .check()
            .is_err()
        );
    }
}
