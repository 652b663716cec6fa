//! Completions.
//!
//! # Safety
//! [`WorkCompletion`] is `struct ibv_wc` under another name, so the device's answers are polled straight into the caller's
//! array; every field takes any bit pattern.
#![allow(unsafe_code)]

use std::fmt;
use std::mem::zeroed;

use rdma_sys as sys;

/// How a work request ended (`enum ibv_wc_status`). A status added later prints as a number.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct WcStatus(pub u32);

#[allow(missing_docs, reason = "the names are those of enum ibv_wc_status")]
impl WcStatus {
    pub const SUCCESS: WcStatus = WcStatus(0);
    pub const LOC_LEN_ERR: WcStatus = WcStatus(1);
    pub const LOC_QP_OP_ERR: WcStatus = WcStatus(2);
    pub const LOC_EEC_OP_ERR: WcStatus = WcStatus(3);
    pub const LOC_PROT_ERR: WcStatus = WcStatus(4);
    pub const WR_FLUSH_ERR: WcStatus = WcStatus(5);
    pub const MW_BIND_ERR: WcStatus = WcStatus(6);
    pub const BAD_RESP_ERR: WcStatus = WcStatus(7);
    pub const LOC_ACCESS_ERR: WcStatus = WcStatus(8);
    pub const REM_INV_REQ_ERR: WcStatus = WcStatus(9);
    pub const REM_ACCESS_ERR: WcStatus = WcStatus(10);
    pub const REM_OP_ERR: WcStatus = WcStatus(11);
    pub const RETRY_EXC_ERR: WcStatus = WcStatus(12);
    pub const RNR_RETRY_EXC_ERR: WcStatus = WcStatus(13);
    pub const LOC_RDD_VIOL_ERR: WcStatus = WcStatus(14);
    pub const REM_INV_RD_REQ_ERR: WcStatus = WcStatus(15);
    pub const REM_ABORT_ERR: WcStatus = WcStatus(16);
    pub const INV_EECN_ERR: WcStatus = WcStatus(17);
    pub const INV_EEC_STATE_ERR: WcStatus = WcStatus(18);
    pub const FATAL_ERR: WcStatus = WcStatus(19);
    pub const RESP_TIMEOUT_ERR: WcStatus = WcStatus(20);
    pub const GENERAL_ERR: WcStatus = WcStatus(21);

    /// True for [`WcStatus::SUCCESS`].
    pub const fn is_success(self) -> bool {
        self.0 == 0
    }
}

const STATUS_NAMES: [&str; 22] = [
    "SUCCESS",
    "LOC_LEN_ERR",
    "LOC_QP_OP_ERR",
    "LOC_EEC_OP_ERR",
    "LOC_PROT_ERR",
    "WR_FLUSH_ERR",
    "MW_BIND_ERR",
    "BAD_RESP_ERR",
    "LOC_ACCESS_ERR",
    "REM_INV_REQ_ERR",
    "REM_ACCESS_ERR",
    "REM_OP_ERR",
    "RETRY_EXC_ERR",
    "RNR_RETRY_EXC_ERR",
    "LOC_RDD_VIOL_ERR",
    "REM_INV_RD_REQ_ERR",
    "REM_ABORT_ERR",
    "INV_EECN_ERR",
    "INV_EEC_STATE_ERR",
    "FATAL_ERR",
    "RESP_TIMEOUT_ERR",
    "GENERAL_ERR",
];

impl fmt::Display for WcStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match STATUS_NAMES.get(self.0 as usize) {
            Some(name) => f.write_str(name),
            None => write!(f, "status {}", self.0),
        }
    }
}

impl fmt::Debug for WcStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What a completed work request was (`enum ibv_wc_opcode`); only meaningful on success.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WcOpcode(pub u32);

#[allow(missing_docs, reason = "the names are those of enum ibv_wc_opcode")]
impl WcOpcode {
    pub const SEND: WcOpcode = WcOpcode(0);
    pub const RDMA_WRITE: WcOpcode = WcOpcode(1);
    pub const RDMA_READ: WcOpcode = WcOpcode(2);
    pub const RECV: WcOpcode = WcOpcode(128);
    pub const RECV_RDMA_WITH_IMM: WcOpcode = WcOpcode(129);
}

/// One completion (`struct ibv_wc`).
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct WorkCompletion(sys::ibv_wc);

/// `IBV_WC_WITH_IMM`.
const WITH_IMM: u32 = 1 << 1;

impl WorkCompletion {
    /// The number the work request was posted with.
    pub fn wr_id(&self) -> u64 {
        self.0.wr_id
    }

    /// How it ended.
    pub fn status(&self) -> WcStatus {
        WcStatus(self.0.status)
    }

    /// What it was; undefined by verbs unless the status is success.
    pub fn opcode(&self) -> WcOpcode {
        WcOpcode(self.0.opcode)
    }

    /// Bytes that arrived; undefined by verbs unless it is a successful receive or READ.
    pub fn byte_len(&self) -> u32 {
        self.0.byte_len
    }

    /// The queue pair it was posted on.
    pub fn qp_num(&self) -> u32 {
        self.0.qp_num
    }

    /// The device's own error number.
    pub fn vendor_err(&self) -> u32 {
        self.0.vendor_err
    }

    /// The 32 bits that came with it, if any did.
    pub fn imm(&self) -> Option<u32> {
        if self.0.wc_flags & WITH_IMM == 0 {
            return None;
        }
        // SAFETY: both members of the union are 32-bit integers, valid for any contents.
        Some(u32::from_be(unsafe {
            self.0.imm_data_invalidated_rkey_union.imm_data
        }))
    }
}

impl Default for WorkCompletion {
    /// An empty slot for [`CompletionQueue::poll`](crate::CompletionQueue::poll) to fill.
    fn default() -> WorkCompletion {
        // SAFETY: `ibv_wc` is integers only; all zero is a value.
        WorkCompletion(unsafe { zeroed() })
    }
}

impl fmt::Debug for WorkCompletion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkCompletion")
            .field("wr_id", &self.wr_id())
            .field("status", &self.status())
            .field("opcode", &self.opcode())
            .field("byte_len", &self.byte_len())
            .field("qp_num", &self.qp_num())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_values_print_and_never_panic() {
        assert_eq!(WcStatus::REM_ACCESS_ERR.to_string(), "REM_ACCESS_ERR");
        assert_eq!(WcStatus(4711).to_string(), "status 4711");
        assert_eq!(WcStatus::GENERAL_ERR.to_string(), "GENERAL_ERR");
        assert!(WcStatus::SUCCESS.is_success() && !WcStatus(1).is_success());
    }

    #[test]
    fn immediate_data_is_there_only_if_flagged() {
        let mut completion = WorkCompletion::default();
        completion.0.imm_data_invalidated_rkey_union.imm_data = 7u32.to_be();
        assert_eq!(completion.imm(), None);
        completion.0.wc_flags = WITH_IMM;
        assert_eq!(completion.imm(), Some(7));
    }
}
