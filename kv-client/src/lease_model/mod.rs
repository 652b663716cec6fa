//! A model of leases, retirement and fencing (kv-proto/PROTOCOL.md 5.9), in which every order of events is tried.
//!
//! # What it is
//! One server and one or two clients as a state, and steps from each state to the next; `stateright` visits every state
//! that the steps can lead to. A step does what one thread or device does at once, and it does it by *calling the
//! product*: frames are encoded, sent and decoded; `Session` of both sides, `Holds`, `Retirements`, `Releases`,
//! `Ghosts`, `Tokens`, `told`, `Journal` and `collect` are the server's own, `Tenure`, `Debt`, `Footing` and
//! `DatasetState` the client's. What is the model's own is the order in which those are called (`server`, `client`;
//! each names the function that it follows), the memory and its places, the network, and the time.
//!
//! - `guard`: what can be taken away, and what must have happened in a run. `state`: what is remembered.
//! - `server`, `client`: the two halves. `steps`: what can happen next. `tests`: the runs.
//!
//! # What can happen
//! Any thread can be as late as it likes at any step while time goes on: a client that is stopped, a control thread that
//! is not scheduled and a client that renews and never acknowledges are all orders of the same steps. Frames arrive in
//! order and arbitrarily late, or twice, or are lost with their connection. READs are carried out at any moment until
//! their queue pair is destroyed, and their completions are seen at any moment after. Clients crash, lose sessions and
//! begin others; connection requests come after their session's end; the server is killed and started again with the
//! same addresses; the log thread retires in the middle of a RENEW. Time goes to the next moment at which any time is
//! up, by a grid in between, and where it matters by half a millisecond.
//!
//! Two fabrics: one on which ending a session destroys its queue pairs (`verbs`, `sim`), and one on which memory stays
//! readable to whoever has mapped it, even after its server has gone (`local`).
//!
//! # What must hold
//! - No bytes of freed or reused memory come as far as being judged. Checksums and identities get no credit: whatever
//!   they would catch, the protocol has to have prevented.
//! - No GET returns a value older than one whose overwrite was answered before the GET began.
//! - Whenever every session that could know a thing has acknowledged it, ended, or outlived `max_lag`, the thing is
//!   freed, or something that frees it can happen. (A safety property of each state: `eventually` is unsound where states
//!   form cycles.)
//! - In each run its hazards do happen (`sometimes`): the run prints in how many transitions.
//!
//! # Guards
//! [`Guard`] lists them; with any one taken away a run fails, and the test prints the steps. Two are backed up by others
//! and so are not missed; they are kept because they end a wrong READ sooner:
//! - *The lease is checked before posting*: what is posted too late is discarded by the check after it, or fails on a queue
//!   pair that was destroyed.
//! - *Tables die with their session*: a READ under another session's tables needs a connection, and one of the new session
//!   is made only after its OPEN has replaced them; one of the old session is refused by its lease.
//!
//! Where the fabric fences, nothing depends on a client's clock: the model passes there without the check after the
//! completion, without the margin, and with a lease counted from the answer. Where it cannot fence, a lease decides; it
//! tolerates clocks whose rates differ by one part in [`MARGIN`]. (Both ends of `local` read the same clock.)
//!
//! # What it does not see
//! - Orders within one step: memory orderings of the atomics, torn copies, a READ that takes time. A copy is one moment.
//! - More than two clients, two retirements or three renewals at once; what only a longer history shows.
//! - Staging memory and PUTs, STAGE grants, CLOSE, DROP, several datasets in a session, the number of connections and
//!   credits running out, tables of more than one page, a doubled directory, `local`'s messages, keys.
//! - That the device does destroy a queue pair and that the kernel closes a dead server's sockets in time.
//! - A client that lies: it can only mislead itself, and sees memory of datasets that it may read.
//!
//! `VKV_MODEL_LARGE=1` adds runs with larger bounds, which take minutes.

use std::sync::Arc;

mod client;
mod guard;
mod server;
mod state;
mod steps;
mod tests;

use guard::{Guard, Hazard, Hits};
use state::{Left, Place, Status};

/// Lease of a session, ms.
const LEASE_MS: u32 = 100;
/// Longest lag, ms: shorter than the lease, so that who lags is fenced while its lease runs.
const LAG_MS: u32 = 70;
/// Moments at which something may be done though no time is up: multiples of this, microseconds.
const GRID_US: u64 = 50_000;
/// One part of the lease in so many is the client's margin.
const MARGIN: u64 = crate::session::LEASE_MARGIN;
/// How much slower a client's clock may be than the server's.
const DRIFT_PER_MILLE: u64 = 1000 / MARGIN;

const EMPTY: Place = Place {
    status: Status::Free,
    thing: None,
};

/// How far one run goes.
#[derive(Debug, Clone, Copy, Default)]
struct Bounds {
    name: &'static str,
    /// Whether ending a connection ends its READs: `verbs` and `sim`, or `local`.
    fences: bool,
    /// Whether what is retired are groups of the index, which change, or segments, which do not.
    index: bool,
    /// Whether the clock of the last client is slow.
    slow_clock: bool,
    /// Whether the clients begin without data connections, their TOKENS under way.
    unconnected: bool,
    clients: usize,
    /// Milliseconds.
    horizon_ms: u64,
    left: Left,
    /// What must happen in it.
    hazards: &'static [Hazard],
}

#[derive(Debug, Clone)]
struct Model {
    bounds: Bounds,
    off: Option<Guard>,
    hits: Arc<Hits>,
}

impl Model {
    fn new(bounds: Bounds, off: Option<Guard>) -> Self {
        Self {
            bounds,
            off,
            hits: Arc::default(),
        }
    }

    fn is_off(&self, guard: Guard) -> bool {
        self.off == Some(guard)
    }
}
