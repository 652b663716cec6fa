//! What can be taken away, and what can be counted.

use std::sync::atomic::{AtomicU64, Ordering};

use stateright::Property;

use super::Model;

/// A guard of the protocol. The model calls what implements it, unless it is the one that is taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Guard {
    // The client's.
    /// The lease is checked before a READ is posted (`Footing::look`).
    CheckBeforePosting,
    /// The lease is checked after a READ completed, before what came is judged (`Footing::leased`).
    CheckAfterCompletion,
    /// The lease counts from the first send of what renewed it (`Session::receive`).
    LeaseFromFirstSend,
    /// The client's lease ends earlier than it was granted for, by the drift of clocks (`Session::receive`).
    DriftMargin,
    /// A number is acknowledged only when no READ of an older epoch is in flight (`Debt::settle`).
    AcknowledgeWhenQuiet,
    /// The tables forget what was retired before the epoch begins (`DatasetState::renewed`, then `Debt::told`).
    ForgetBeforeEpoch,
    /// A reader pins the epoch before it looks at the tables (`Footing::pin`, then `Footing::look`).
    PinBeforeLooking,
    /// Only the first OPEN of a session acknowledges what was retired before it (`Session::receive`).
    OnlyFirstOpenAcknowledges,
    /// Pages of the directory that were READ before a change are not installed (`DatasetState::install`).
    DiscardOldPages,
    /// A lease counts only for what was posted in its own session (`Tenure::leased`).
    LeaseOfSession,
    /// What was known of a dataset dies with the session (`DatasetState::close`, `Footing::look`).
    TablesOfSession,
    /// On a fabric whose memory outlives the server, the end of the connection is looked for after the copy.
    LookForEnd,

    // The server's.
    /// One more millisecond, since its clock is read in whole ones (`Holds::grant`).
    OneMoreMs,
    /// OPEN's number bounds what the session acknowledged (`Holds::opened`).
    OpenNumber,
    /// Opening again what is open acknowledges nothing (`Holds::opened`).
    ReopenKeepsHold,
    /// The number that RENEW tells is read before the changes that it tells (`telling::told`).
    NumberBeforeChanges,
    /// What is retired is kept until every session acknowledged it (`Releases::due`).
    WaitForAcknowledgement,
    /// A session whose lease ended is fenced (`Holds::fence_at`).
    FenceEndedLease,
    /// A session that lags longer than `max_lag` is fenced, however often it renews (`Holds::fence_at`).
    FenceLagging,
    /// Fencing destroys the session's queue pairs.
    DestroyQueuePairs,
    /// It destroys them before what the session held is freed.
    DestroyBeforeFreeing,
    /// The tokens of a session that is over are void, and its connection requests refused.
    EndedSessionsAdmitNobody,
    /// Where nothing can be fenced, what an ended session held waits for the end of its lease (`Ghosts`).
    GhostsHold,
    /// The old group's buckets are stamped before anything is changed in the new one.
    StampMoved,

    // That what may be freed is freed.
    /// Who retires wakes the control thread.
    RetiringWakes,
    /// An acknowledgement has it look what may be released (`Holds::take_moved`).
    AcknowledgingTouches,
    /// The end of a session has it look (`Releases::touch`).
    EndingTouches,
    /// The end of a ghost's lease has it look (`Ghosts::expire`).
    GhostsEndingTouches,
}

impl Guard {
    pub(super) const ALL: [Self; 28] = [
        Self::CheckBeforePosting,
        Self::CheckAfterCompletion,
        Self::LeaseFromFirstSend,
        Self::DriftMargin,
        Self::AcknowledgeWhenQuiet,
        Self::ForgetBeforeEpoch,
        Self::PinBeforeLooking,
        Self::OnlyFirstOpenAcknowledges,
        Self::DiscardOldPages,
        Self::LeaseOfSession,
        Self::TablesOfSession,
        Self::LookForEnd,
        Self::OneMoreMs,
        Self::OpenNumber,
        Self::ReopenKeepsHold,
        Self::NumberBeforeChanges,
        Self::WaitForAcknowledgement,
        Self::FenceEndedLease,
        Self::FenceLagging,
        Self::DestroyQueuePairs,
        Self::DestroyBeforeFreeing,
        Self::EndedSessionsAdmitNobody,
        Self::GhostsHold,
        Self::StampMoved,
        Self::RetiringWakes,
        Self::AcknowledgingTouches,
        Self::EndingTouches,
        Self::GhostsEndingTouches,
    ];
}

// Nobody is left out.
const _: () = assert!(Guard::ALL.len() == Guard::GhostsEndingTouches as usize + 1);

/// Things that must happen somewhere, or the model would show nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub(super) enum Hazard {
    /// A READ was carried out after the lease that it was posted under had ended.
    LateRead,
    /// What a READ brought was discarded, since the lease was over at its completion.
    Discarded,
    /// A READ copied memory that was freed or used again, and what it brought was discarded.
    FreedReadDiscarded,
    /// A READ failed, since its queue pair had been destroyed.
    RefusedByFence,
    /// A session was fenced because its lease ended.
    FencedForLease,
    /// A session was fenced because it lagged.
    FencedForLag,
    /// Somebody renewed without having acknowledged all that it was told of.
    RenewedWithoutAcknowledging,
    /// Memory was freed, and used again.
    Reused,
    /// What an ended session held outlived it.
    Ghost,
    /// A connection request of a session that was over was refused.
    RequestRefused,
    /// A client began a session with a server that had been started again.
    RestartSeen,
    /// A group was found to have moved.
    Moved,
    /// Pages of the directory were too old to be installed.
    OldPages,
    /// A value was accepted.
    Accepted,
    /// A frame came twice.
    Twice,
    /// A connection was cut with frames under way.
    FramesLost,
}

/// How many there are.
const HAZARDS: usize = Hazard::FramesLost as usize + 1;

/// For each hazard, whether it happened.
pub(super) fn happens(hazard: Hazard) -> Property<Model> {
    macro_rules! sometimes {
        ($($name:ident)*) => {
            match hazard {
                $(Hazard::$name => Property::sometimes(stringify!($name), |model: &Model, _| {
                    model.hits.get(Hazard::$name) > 0
                })),*
            }
        };
    }
    sometimes! {
        LateRead Discarded FreedReadDiscarded RefusedByFence FencedForLease FencedForLag
        RenewedWithoutAcknowledging Reused Ghost RequestRefused RestartSeen Moved OldPages Accepted Twice FramesLost
    }
}

/// In how many transitions each hazard happened.
#[derive(Debug, Default)]
pub(super) struct Hits([AtomicU64; HAZARDS]);

impl Hits {
    pub(super) fn note(&self, hazard: Hazard) {
        self.0[hazard as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn get(&self, hazard: Hazard) -> u64 {
        self.0[hazard as usize].load(Ordering::Relaxed)
    }
}
