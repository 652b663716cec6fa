//! How often each thing really happened that reclamation must survive.

use kv_client::Counters;
use kv_fabric::sim::SimInjected;
use serde::Serialize;

/// What the clients of readers have met.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(super) struct Seen {
    pub(super) reads_posted: u64,
    pub(super) retries: u64,
    pub(super) torn: u64,
    pub(super) torn_buckets: u64,
    pub(super) stale_directory: u64,
    pub(super) other_keys: u64,
    pub(super) expired: u64,
    pub(super) expired_reused: u64,
    pub(super) reconnects: u64,
}

impl Seen {
    /// Adds what one client counted.
    pub(super) fn add(&mut self, counters: &Counters) {
        self.reads_posted += counters.reads_posted;
        self.retries += counters.retries;
        self.torn += counters.torn;
        self.torn_buckets += counters.torn_buckets;
        self.stale_directory += counters.stale_directory;
        self.other_keys += counters.other_keys;
        self.expired += counters.expired;
        self.expired_reused += counters.expired_reused;
        self.reconnects += counters.reconnects;
    }

    pub(super) fn merge(&mut self, other: &Self) {
        self.reads_posted += other.reads_posted;
        self.retries += other.retries;
        self.torn += other.torn;
        self.torn_buckets += other.torn_buckets;
        self.stale_directory += other.stale_directory;
        self.other_keys += other.other_keys;
        self.expired += other.expired;
        self.expired_reused += other.expired_reused;
        self.reconnects += other.reconnects;
    }
}

/// What one thing is required to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Required {
    /// At least so often.
    AtLeast(u64),
    /// Never.
    Never,
    /// It happens too seldom to wait for, and why.
    Seldom(&'static str),
}

/// One thing that happened, or must not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Hazard {
    pub(super) name: &'static str,
    pub(super) count: u64,
    pub(super) required: Required,
}

impl Hazard {
    pub(super) fn holds(&self) -> bool {
        match self.required {
            Required::AtLeast(least) => self.count >= least,
            Required::Never => self.count == 0,
            Required::Seldom(_) => true,
        }
    }

    /// Whether it happened and must not: nothing that comes after makes that good.
    pub(super) fn is_forbidden(&self) -> bool {
        self.required == Required::Never && self.count > 0
    }

    pub(super) fn line(&self) -> String {
        let verdict = match self.required {
            Required::AtLeast(least) if self.holds() => format!("at least {least} are wanted"),
            Required::AtLeast(least) => format!("TOO FEW: at least {least} are wanted"),
            Required::Never if self.holds() => "none may be".to_owned(),
            Required::Never => "NONE MAY BE".to_owned(),
            Required::Seldom(why) => format!("not waited for: {why}"),
        };
        format!("{:>12}  {} ({verdict})", self.count, self.name)
    }
}

/// All hazards of a run whose clients met `seen`; `injected` is what a simulated network did, `failed` the READs that
/// failed readers, `least` how often each must have happened.
pub(super) fn hazards(
    fences: bool,
    seen: &Seen,
    injected: Option<&SimInjected>,
    failed: u64,
    least: u64,
) -> Vec<Hazard> {
    let at_least = Required::AtLeast(least);
    let torn = match injected {
        Some(_) => at_least,
        None => Required::Seldom("a processor copies a bucket in nanoseconds"),
    };
    let mut all = vec![
        hazard("torn buckets", seen.torn_buckets, torn),
        hazard("stale directory entries", seen.stale_directory, at_least),
        hazard(
            "READs that finished after expiry, discarded",
            seen.expired,
            at_least,
        ),
        hazard(
            "tag collisions: records of another key",
            seen.other_keys,
            at_least,
        ),
    ];
    match (fences, injected) {
        (true, Some(injected)) => all.extend([
            hazard("pieces of memory reused or given up", injected.reuses, at_least),
            hazard("READs refused by the fence", injected.reads_fenced, at_least),
            hazard(
                "READs that reached reused memory",
                injected.reads_of_reused,
                Required::Never,
            ),
            hazard(
                "READs refused because their memory was gone",
                injected.reads_refused,
                Required::Never,
            ),
        ]),
        (true, None) => all.extend([
            hazard("READs refused by the fence", failed, at_least),
            hazard(
                "arrived READs of reused memory",
                seen.expired_reused,
                Required::Never,
            ),
        ]),
        (false, Some(injected)) => all.extend([
            hazard("pieces of memory reused or given up", injected.reuses, at_least),
            hazard(
                "READs carried out after the session's end",
                injected.reads_unfenced,
                at_least,
            ),
            hazard(
                "READs that reached reused memory, all discarded",
                injected.reads_of_reused,
                at_least,
            ),
        ]),
        (false, None) => {
            let name = "READs that reached reused memory, all discarded";
            // Simulated without a fence it is required.
            let seldom = Required::Seldom("the connection is seen to be over first, and the READ fails");
            all.push(hazard(name, seen.expired_reused, seldom));
        }
    }
    all
}

const fn hazard(name: &'static str, count: u64, required: Required) -> Hazard {
    Hazard {
        name,
        count,
        required,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_few_hazards_and_any_forbidden_one_fail() {
        let seen = Seen {
            torn_buckets: 5,
            stale_directory: 5,
            expired: 5,
            other_keys: 5,
            ..Seen::default()
        };
        let holds = |injected: &SimInjected, least| {
            let all = hazards(true, &seen, Some(injected), 0, least);
            all.iter().all(Hazard::holds)
        };
        let fenced = SimInjected {
            reads_fenced: 5,
            reuses: 5,
            ..SimInjected::default()
        };
        assert!(holds(&fenced, 5));
        assert!(!holds(&fenced, 6));
        assert!(!holds(&SimInjected::default(), 1), "none was fenced");
        let reached = SimInjected {
            reads_of_reused: 1,
            ..fenced
        };
        assert!(!holds(&reached, 1));
    }
}
