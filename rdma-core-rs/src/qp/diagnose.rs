//! Why a queue pair refused a step: the transition, or the attribute bits it lacks or does not take.

use rdma_sys::ibv_qp_attr_mask as mask;

use crate::qp::QpState;

const BIT_NAMES: [(mask, &str); 19] = [
    (mask::IBV_QP_CUR_STATE, "CUR_STATE"),
    (mask::IBV_QP_EN_SQD_ASYNC_NOTIFY, "EN_SQD_ASYNC_NOTIFY"),
    (mask::IBV_QP_ACCESS_FLAGS, "ACCESS_FLAGS"),
    (mask::IBV_QP_PKEY_INDEX, "PKEY_INDEX"),
    (mask::IBV_QP_PORT, "PORT"),
    (mask::IBV_QP_QKEY, "QKEY"),
    (mask::IBV_QP_AV, "AV"),
    (mask::IBV_QP_PATH_MTU, "PATH_MTU"),
    (mask::IBV_QP_TIMEOUT, "TIMEOUT"),
    (mask::IBV_QP_RETRY_CNT, "RETRY_CNT"),
    (mask::IBV_QP_RNR_RETRY, "RNR_RETRY"),
    (mask::IBV_QP_RQ_PSN, "RQ_PSN"),
    (mask::IBV_QP_MAX_QP_RD_ATOMIC, "MAX_QP_RD_ATOMIC"),
    (mask::IBV_QP_ALT_PATH, "ALT_PATH"),
    (mask::IBV_QP_MIN_RNR_TIMER, "MIN_RNR_TIMER"),
    (mask::IBV_QP_SQ_PSN, "SQ_PSN"),
    (mask::IBV_QP_MAX_DEST_RD_ATOMIC, "MAX_DEST_RD_ATOMIC"),
    (mask::IBV_QP_PATH_MIG_STATE, "PATH_MIG_STATE"),
    (mask::IBV_QP_DEST_QPN, "DEST_QPN"),
];

fn bit_names(bits: u32) -> String {
    let names: Vec<&str> = BIT_NAMES
        .iter()
        .filter(|(bit, _)| bits & bit.0 != 0)
        .map(|(_, name)| *name)
        .collect();
    names.join("|")
}

/// Attribute bits that a step must and may carry beside STATE, for reliable connections; `None`: no such step.
fn rules(from: QpState, to: QpState) -> Option<(u32, u32)> {
    let alternate = mask::IBV_QP_ALT_PATH | mask::IBV_QP_PATH_MIG_STATE;
    let init = mask::IBV_QP_PKEY_INDEX | mask::IBV_QP_PORT | mask::IBV_QP_ACCESS_FLAGS;
    let (required, optional) = match (from, to) {
        (_, QpState::RESET | QpState::ERR) => return Some((0, 0)),
        (QpState::RESET, QpState::INIT) => (init, mask(0)),
        (QpState::INIT, QpState::INIT) => (mask(0), init),
        (QpState::INIT, QpState::RTR) => (
            mask::IBV_QP_AV
                | mask::IBV_QP_PATH_MTU
                | mask::IBV_QP_DEST_QPN
                | mask::IBV_QP_RQ_PSN
                | mask::IBV_QP_MAX_DEST_RD_ATOMIC
                | mask::IBV_QP_MIN_RNR_TIMER,
            mask::IBV_QP_ALT_PATH | mask::IBV_QP_ACCESS_FLAGS | mask::IBV_QP_PKEY_INDEX,
        ),
        (QpState::RTR, QpState::RTS) => (
            mask::IBV_QP_TIMEOUT
                | mask::IBV_QP_RETRY_CNT
                | mask::IBV_QP_RNR_RETRY
                | mask::IBV_QP_SQ_PSN
                | mask::IBV_QP_MAX_QP_RD_ATOMIC,
            mask::IBV_QP_CUR_STATE | mask::IBV_QP_ACCESS_FLAGS | mask::IBV_QP_MIN_RNR_TIMER | alternate,
        ),
        (QpState::RTS, QpState::RTS) => (
            mask(0),
            mask::IBV_QP_CUR_STATE | mask::IBV_QP_ACCESS_FLAGS | mask::IBV_QP_MIN_RNR_TIMER | alternate,
        ),
        _ => return None,
    };
    Some((required.0, optional.0))
}

/// Explains a refused change; empty if the bits are right, and so a value must be wrong.
pub(super) fn diagnose(from: QpState, to: QpState, bits: u32) -> String {
    let Some((required, optional)) = rules(from, to) else {
        return format!("; a queue pair cannot go from {from} to {to}");
    };
    let given = bits & !mask::IBV_QP_STATE.0;
    let missing = required & !given;
    let disallowed = given & !(required | optional);
    match (missing, disallowed) {
        (0, 0) => "; a value is not what the device or the port allows (gid index, mtu, depth)".into(),
        (missing, 0) => format!("; missing {}", bit_names(missing)),
        (0, disallowed) => format!("; not allowed here: {}", bit_names(disallowed)),
        (missing, disallowed) => {
            format!(
                "; missing {}, not allowed here: {}",
                bit_names(missing),
                bit_names(disallowed)
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_step_is_explained() {
        let bits = (mask::IBV_QP_STATE | mask::IBV_QP_PORT).0;
        let text = diagnose(QpState::RESET, QpState::INIT, bits);
        assert_eq!(text, "; missing ACCESS_FLAGS|PKEY_INDEX");
        let text = diagnose(QpState::RTS, QpState::RTS, mask::IBV_QP_PORT.0);
        assert_eq!(text, "; not allowed here: PORT");
        assert_eq!(
            diagnose(QpState::RESET, QpState::RTS, 1),
            "; a queue pair cannot go from RESET to RTS"
        );
        assert!(diagnose(QpState::ERR, QpState::RESET, 1).contains("a value"));
    }
}
