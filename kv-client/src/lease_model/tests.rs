//! The model is checked with all its guards, and without each of them.

use std::sync::Arc;
use std::time::Instant;

use stateright::{Checker, HasDiscoveries, Model as _};

use super::guard::Hazard::{self, *};
use super::state::Left;
use super::{Bounds, Guard, Model};

/// Unique states at most that a run without a guard may see before it fails: a bound, not a measure.
const SEARCH_MAX: usize = 2_000_000;

const FREED: &str = "no bytes of freed or reused memory are judged";
const OLD: &str = "no value older than a completed overwrite";
const HELD: &str = "what nobody holds is freed";

const LEFT: Left = Left {
    retires: 1,
    overwrites: 0,
    gets: [1, 0],
    renews: [1, 0],
    sessions: [0, 0],
    reopens: 0,
    restarts: 0,
    cuts: 0,
    crashes: 0,
    twice: 0,
    halves: 0,
};

const fn bounds(name: &'static str, fences: bool, horizon_ms: u64, left: Left) -> Bounds {
    Bounds {
        name,
        fences,
        index: false,
        slow_clock: false,
        unconnected: false,
        clients: 1,
        horizon_ms,
        left,
        hazards: &[Accepted],
    }
}

/// Leases end, sessions lag and are fenced, READs come late.
const FENCED: Bounds = Bounds {
    hazards: &[
        LateRead,
        Discarded,
        RefusedByFence,
        FencedForLease,
        FencedForLag,
        Accepted,
    ],
    ..bounds("fenced", true, 200, LEFT)
};

const UNFENCED: Bounds = Bounds {
    hazards: &[
        LateRead,
        FreedReadDiscarded,
        FencedForLease,
        FencedForLag,
        Ghost,
        Accepted,
    ],
    ..bounds("unfenced", false, 200, LEFT)
};

/// The client's clock is as slow as it may be, and the server's is read between two milliseconds.
const SLOW: Bounds = Bounds {
    slow_clock: true,
    hazards: &[LateRead, FreedReadDiscarded, FencedForLease, Ghost, Accepted],
    ..bounds("unfenced, a slow clock", false, 120, Left { halves: 1, ..LEFT })
};

/// Enough renewals to acknowledge something, and to use it again.
const LEARN: Bounds = Bounds {
    hazards: &[RenewedWithoutAcknowledging, Reused, Accepted],
    ..bounds(
        "fenced, three renewals",
        true,
        50,
        Left {
            renews: [3, 0],
            retires: 2,
            gets: [2, 0],
            ..LEFT
        },
    )
};

/// Two clients, of which one is slow to acknowledge.
const TWO: Bounds = Bounds {
    clients: 2,
    hazards: &[RenewedWithoutAcknowledging, Accepted],
    ..bounds(
        "fenced, two clients",
        true,
        0,
        Left {
            renews: [2, 2],
            gets: [1, 0],
            ..LEFT
        },
    )
};

/// Groups of the index, and overwrites.
const INDEX: Bounds = Bounds {
    index: true,
    hazards: &[Moved, OldPages, Accepted],
    ..bounds(
        "fenced, index",
        true,
        0,
        Left {
            renews: [2, 0],
            overwrites: 1,
            gets: [3, 0],
            ..LEFT
        },
    )
};

/// The dataset is opened a second time while it is open.
const REOPEN: Bounds = bounds("fenced, opened twice", true, 50, Left { reopens: 1, ..LEFT });

/// A second session after the first.
const AGAIN: Bounds = Bounds {
    hazards: &[LateRead, FreedReadDiscarded, Ghost, Accepted],
    ..bounds(
        "unfenced, two sessions",
        false,
        150,
        Left {
            renews: [0, 0],
            sessions: [1, 0],
            ..LEFT
        },
    )
};

/// A connection request that comes after the session's end.
const ADMIT: Bounds = Bounds {
    unconnected: true,
    hazards: &[RequestRefused, FencedForLag, Accepted],
    ..bounds("fenced, connects late", true, 120, LEFT)
};

const RESTART: Bounds = Bounds {
    hazards: &[RestartSeen, RefusedByFence, Accepted],
    ..bounds(
        "fenced, restart",
        true,
        50,
        Left {
            sessions: [1, 0],
            restarts: 1,
            ..LEFT
        },
    )
};

/// Memory that outlives its server, and a server that goes on without it.
const RESTART_INDEX: Bounds = Bounds {
    index: true,
    hazards: &[RestartSeen, LateRead, Accepted],
    ..bounds(
        "unfenced, restart, index",
        false,
        50,
        Left {
            renews: [0, 0],
            overwrites: 1,
            sessions: [1, 0],
            restarts: 1,
            gets: [2, 0],
            ..LEFT
        },
    )
};

/// A connection is cut with frames under way; a frame comes twice.
const CUT: Bounds = Bounds {
    hazards: &[FramesLost, RefusedByFence, Accepted],
    ..bounds(
        "fenced, cut",
        true,
        50,
        Left {
            sessions: [1, 0],
            cuts: 1,
            ..LEFT
        },
    )
};

const TWICE: Bounds = Bounds {
    hazards: &[Twice, RefusedByFence, Accepted],
    ..bounds(
        "fenced, a frame twice",
        true,
        50,
        Left {
            renews: [2, 0],
            twice: 1,
            ..LEFT
        },
    )
};

const CRASH: Bounds = Bounds {
    hazards: &[FencedForLease, Ghost, Accepted],
    ..bounds(
        "unfenced, crash",
        false,
        150,
        Left {
            renews: [0, 0],
            crashes: 1,
            ..LEFT
        },
    )
};

const ALL: [Bounds; 13] = [
    FENCED,
    UNFENCED,
    SLOW,
    LEARN,
    TWO,
    INDEX,
    REOPEN,
    AGAIN,
    ADMIT,
    RESTART,
    RESTART_INDEX,
    CUT,
    TWICE,
];

/// Runs that take minutes, and gigabytes.
fn large() -> Vec<Bounds> {
    let renews = |bounds: Bounds| Bounds {
        left: Left {
            renews: [2, 0],
            ..bounds.left
        },
        ..bounds
    };
    vec![
        Bounds {
            name: "large: fenced",
            ..renews(FENCED)
        },
        Bounds {
            name: "large: unfenced",
            ..renews(UNFENCED)
        },
        Bounds {
            name: "large: a slow clock",
            ..renews(SLOW)
        },
        Bounds {
            name: "large: index over time",
            horizon_ms: 80,
            ..INDEX
        },
        Bounds {
            name: "large: index, unfenced",
            fences: false,
            horizon_ms: 80,
            ..INDEX
        },
        Bounds {
            name: "large: two clients",
            horizon_ms: 50,
            ..TWO
        },
        Bounds {
            name: "large: two clients, unfenced, over time",
            fences: false,
            horizon_ms: 110,
            left: Left {
                renews: [1, 1],
                ..TWO.left
            },
            hazards: &[Ghost, FencedForLease, Accepted],
            ..TWO
        },
        Bounds {
            name: "large: restart",
            fences: false,
            horizon_ms: 150,
            left: Left {
                renews: [0, 0],
                ..RESTART.left
            },
            hazards: &[RestartSeen, FreedReadDiscarded, Accepted],
            ..RESTART
        },
        Bounds {
            name: "large: cut and reopened",
            left: Left {
                reopens: 1,
                ..CUT.left
            },
            ..CUT
        },
        Bounds {
            name: "large: connects late, unfenced",
            fences: false,
            hazards: &[RequestRefused, Ghost, Accepted],
            ..ADMIT
        },
    ]
}

struct Outcome {
    states: usize,
    whole: bool,
    /// Properties that do not hold, each with the steps that lead there.
    broken: Vec<(&'static str, Vec<String>)>,
    /// Hazards that were to happen and did not.
    missing: Vec<Hazard>,
}

fn run(bounds: Bounds, off: Option<Guard>) -> Outcome {
    let model = Model::new(bounds, off);
    let hits = Arc::clone(&model.hits);
    let begun = Instant::now();
    let builder = model
        .checker()
        .threads(2)
        .finish_when(HasDiscoveries::AnyFailures);
    // Every hazard has a `sometimes` of its name; what must always hold has words.
    macro_rules! outcome {
        ($checker:expr) => {{
            let checker = $checker.join();
            let found = checker.discoveries();
            let happened = |hazard: &Hazard| found.contains_key(format!("{hazard:?}").as_str());
            let missing = bounds.hazards.iter().copied().filter(|hazard| !happened(hazard));
            Outcome {
                states: checker.unique_state_count(),
                whole: checker.is_done(),
                missing: missing.filter(|_| off.is_none()).collect(),
                broken: found
                    .into_iter()
                    .filter(|(property, _)| [FREED, OLD, HELD].contains(property))
                    .map(|(property, path)| {
                        let steps = path.into_actions();
                        (property, steps.iter().map(|step| format!("{step:?}")).collect())
                    })
                    .collect(),
            }
        }};
    }
    // Breadth first where a short counterexample is wanted, depth first where memory is.
    let outcome = match off {
        Some(_) => outcome!(builder.target_state_count(SEARCH_MAX).spawn_bfs()),
        None => outcome!(builder.spawn_dfs()),
    };
    let seconds = begun.elapsed().as_secs_f64();
    match off {
        Some(guard) => println!(
            "without {guard:?} ({}): {} states, {seconds:.1} s",
            bounds.name, outcome.states
        ),
        None => {
            let counts = bounds
                .hazards
                .iter()
                .map(|hazard| format!("{hazard:?} {}", hits.get(*hazard)));
            let counts: Vec<_> = counts.collect();
            println!(
                "{}: {} states, {seconds:.1} s: {}",
                bounds.name,
                outcome.states,
                counts.join(", ")
            );
        }
    }
    for (property, steps) in &outcome.broken {
        println!("    fails: {property}: {}", steps.join(", "));
    }
    outcome
}

#[track_caller]
fn holds(bounds: Bounds, off: Option<Guard>) {
    let outcome = run(bounds, off);
    assert!(outcome.broken.is_empty(), "{}: {:?}", bounds.name, outcome.broken);
    assert!(outcome.whole, "{}: not all states were seen", bounds.name);
    assert!(
        outcome.missing.is_empty(),
        "{}: never happened: {:?}",
        bounds.name,
        outcome.missing
    );
}

/// Where the model fails without a guard, and what fails then. `None`: nothing does, see the module's documentation.
fn fails_without(guard: Guard) -> Option<(Bounds, &'static str)> {
    use Guard::*;
    Some(match guard {
        CheckAfterCompletion | LeaseFromFirstSend | GhostsHold => (UNFENCED, FREED),
        DriftMargin | OneMoreMs => (SLOW, FREED),
        AcknowledgeWhenQuiet | ForgetBeforeEpoch | PinBeforeLooking | NumberBeforeChanges => (LEARN, FREED),
        WaitForAcknowledgement => (TWO, FREED),
        OnlyFirstOpenAcknowledges | ReopenKeepsHold => (REOPEN, FREED),
        DiscardOldPages => (INDEX, FREED),
        StampMoved => (INDEX, OLD),
        LeaseOfSession => (AGAIN, FREED),
        LookForEnd => (RESTART_INDEX, OLD),
        OpenNumber | DestroyQueuePairs | DestroyBeforeFreeing => (FENCED, FREED),
        EndedSessionsAdmitNobody => (ADMIT, FREED),
        FenceEndedLease | FenceLagging | RetiringWakes | EndingTouches => (FENCED, HELD),
        AcknowledgingTouches => (LEARN, HELD),
        GhostsEndingTouches => (UNFENCED, HELD),
        CheckBeforePosting | TablesOfSession => return None,
    })
}

#[test]
fn with_all_guards_nothing_fails() {
    let mut all = ALL.to_vec();
    all.push(CRASH);
    if std::env::var_os("VKV_MODEL_LARGE").is_some() {
        all.extend(large());
    }
    all.into_iter().for_each(|bounds| holds(bounds, None));
}

#[test]
fn without_any_one_guard_it_fails() {
    for guard in Guard::ALL {
        let Some((bounds, property)) = fails_without(guard) else {
            continue;
        };
        let outcome = run(bounds, Some(guard));
        let broken: Vec<_> = outcome.broken.iter().map(|(property, _)| *property).collect();
        assert_eq!(broken, [property], "without {guard:?}");
    }
}

/// Guards that others stand in for: kept, since each ends a wrong READ sooner.
#[test]
fn two_guards_have_others_behind_them() {
    for guard in Guard::ALL
        .into_iter()
        .filter(|guard| fails_without(*guard).is_none())
    {
        for bounds in ALL.into_iter().chain([CRASH]) {
            holds(bounds, Some(guard));
        }
    }
}

/// Where queue pairs can be destroyed, nothing hangs on a client's clock: it may be as wrong as it likes.
#[test]
fn fencing_needs_no_clock_of_the_client() {
    let slow = Bounds { fences: true, ..SLOW };
    for guard in [
        Guard::CheckAfterCompletion,
        Guard::LeaseFromFirstSend,
        Guard::DriftMargin,
        Guard::OneMoreMs,
        Guard::LeaseOfSession,
    ] {
        holds(slow, Some(guard));
        holds(
            Bounds {
                fences: true,
                ..AGAIN
            },
            Some(guard),
        );
    }
}
