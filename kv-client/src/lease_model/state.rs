//! What the model remembers: a server, its clients, what is on the wires between them, and the time.

use std::collections::{BTreeMap, VecDeque};
use std::hash::{Hash, Hasher};

use kv_server::control::leases::{Ghosts, Releases, Retirements};
use kv_server::control::session::Session as ServerSession;
use kv_server::store::journal::Journal;

use crate::control::tenure::{Debt, Footing, Tenure};
use crate::session::Session as ClientSession;
use crate::tables::{DatasetState, View};

/// Places for things: one more than are in use, so that each retirement reuses what the one before it freed.
pub(super) const PLACES: usize = 2;
/// Bytes between two places.
pub(super) const PLACE_BYTES: u64 = 1 << 20;

/// A segment, or a group of the index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Thing {
    /// Its number, never given twice.
    pub(super) id: u32,
    /// How often its value was overwritten.
    pub(super) version: u32,
    /// Whether it says that it moved.
    pub(super) moved: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Status {
    Free,
    Live,
    /// With this number, at this moment.
    Retired(u64, u64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Place {
    pub(super) status: Status,
    /// What lies there, or lay there last.
    pub(super) thing: Option<Thing>,
}

pub(super) type Memory = [Place; PLACES];

/// A data connection, as its client knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct QueuePair {
    pub(super) number: u8,
    /// Epoch of the server that accepted it.
    pub(super) epoch: u64,
}

/// A control connection. Frames arrive in order, as late as they like.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Link {
    pub(super) client: usize,
    pub(super) to_server: VecDeque<Vec<u8>>,
    pub(super) to_client: VecDeque<Vec<u8>>,
    pub(super) client_open: bool,
    pub(super) server_open: bool,
}

impl Link {
    /// Whether a frame that is sent now can arrive.
    pub(super) fn is_whole(&self) -> bool {
        self.client_open && self.server_open
    }
}

/// A request for a data connection, under way.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Asked {
    pub(super) client: usize,
    pub(super) generation: u64,
    pub(super) session: u64,
    pub(super) token: [u8; 16],
    pub(super) outcome: Option<Option<QueuePair>>,
}

#[derive(Clone)]
pub(super) struct Peer {
    pub(super) number: u64,
    pub(super) session: ServerSession,
}

/// A RENEW that is being answered.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Renewing {
    pub(super) link: u8,
    pub(super) request: u64,
    /// The number that was read.
    pub(super) retired: u64,
    /// The answer, where the changes were collected before the number is read: with that guard gone.
    pub(super) early: Option<Vec<u8>>,
}

#[derive(Clone)]
pub(super) struct Server {
    pub(super) epoch: u64,
    pub(super) memory: Memory,
    /// Memory of the server before, which mappings may outlive.
    pub(super) before: Option<Memory>,
    pub(super) next_thing: u32,
    pub(super) retired: u64,
    pub(super) journal: Journal<usize>,
    pub(super) retirements: Retirements,
    pub(super) releases: Releases,
    pub(super) ghosts: Ghosts,
    /// By link.
    pub(super) peers: BTreeMap<u8, Peer>,
    /// Sessions that are over and that still admit, with that guard gone.
    pub(super) ended: BTreeMap<u8, Peer>,
    pub(super) next_session: u64,
    /// Queue pairs, and the link of the session of each.
    pub(super) queue_pairs: BTreeMap<u8, u8>,
    /// Those that are destroyed too late, with that guard gone.
    pub(super) doomed: Vec<u8>,
    pub(super) renewing: Option<Renewing>,
    /// Whether something has woken the control thread.
    pub(super) woken: bool,
}

/// What a READ is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Target {
    Directory,
    Thing { id: u32, place: usize },
}

/// What a READ brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Brought {
    /// Bytes of memory that was freed, or is something else's now.
    Freed,
    Thing(Thing),
    /// The group that the directory names, and its place.
    Entry(u32, usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Reader {
    Idle,
    /// A GET has begun, at this reading of the clock.
    Entered {
        at_ns: u64,
        floor: u32,
        looked: Option<bool>,
    },
    /// A READ is in flight.
    Flying {
        target: Target,
        queue_pair: QueuePair,
        /// The value that was the latest one answered when the GET began.
        floor: u32,
        /// Changes of the view when it was posted.
        changes: u64,
        brought: Option<Brought>,
    },
}

/// What the control thread of a client has of a session.
#[derive(Clone)]
pub(super) struct Control {
    pub(super) link: u8,
    pub(super) session: ClientSession,
    pub(super) number: u64,
    pub(super) epoch: u64,
    pub(super) debt: Debt,
    pub(super) token: Option<[u8; 16]>,
    /// Half of a RENEW's answer was obeyed: the number, and the frame.
    pub(super) obeying: Option<(u64, Vec<u8>)>,
    pub(super) opens: u8,
}

pub(super) struct Client {
    pub(super) crashed: bool,
    pub(super) generation: u64,
    pub(super) tenure: Tenure,
    pub(super) state: DatasetState,
    pub(super) footing: Footing,
    pub(super) control: Option<Control>,
    pub(super) queue_pair: Option<QueuePair>,
    pub(super) asking: bool,
    pub(super) reader: Reader,
    /// Epoch of the server of the session before.
    pub(super) last_epoch: u64,
}

impl Clone for Client {
    fn clone(&self) -> Self {
        let tenure = self.tenure.fork();
        Self {
            crashed: self.crashed,
            generation: self.generation,
            footing: self.footing.fork(&tenure),
            tenure,
            state: self.state.clone(),
            control: self.control.clone(),
            queue_pair: self.queue_pair,
            asking: self.asking,
            reader: self.reader,
            last_epoch: self.last_epoch,
        }
    }
}

/// How often things may still happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(super) struct Left {
    /// Times that something is retired.
    pub(super) retires: u8,
    pub(super) overwrites: u8,
    /// GETs, of each client.
    pub(super) gets: [u8; 2],
    pub(super) renews: [u8; 2],
    /// Sessions that each client may begin.
    pub(super) sessions: [u8; 2],
    pub(super) reopens: u8,
    pub(super) restarts: u8,
    pub(super) cuts: u8,
    pub(super) crashes: u8,
    pub(super) twice: u8,
    /// Steps of half a millisecond.
    pub(super) halves: u8,
}

/// A property that does not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Fault {
    /// Bytes of freed or reused memory came as far as being judged.
    ReadFreed,
    /// A GET returned a value older than one that was answered before it began.
    OldValue,
    /// What nobody holds is not freed, and nothing will free it.
    HeldForEver,
}

#[derive(Clone)]
pub(super) struct State {
    /// Microseconds.
    pub(super) now: u64,
    pub(super) server: Server,
    pub(super) clients: Vec<Client>,
    pub(super) links: BTreeMap<u8, Link>,
    pub(super) next_link: u8,
    pub(super) next_queue_pair: u8,
    pub(super) tokens: u8,
    pub(super) asked: Vec<Asked>,
    /// Version of the latest overwrite that was answered.
    pub(super) answered: u32,
    pub(super) left: Left,
    pub(super) fault: Option<Fault>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "at {} us, {:?}", self.now, self.fault)
    }
}

impl Hash for Server {
    /// The journal follows from the numbers: each retirement notes the same changes.
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        (
            self.epoch,
            &self.memory,
            &self.before,
            self.next_thing,
            self.retired,
        )
            .hash(hasher);
        (&self.retirements, &self.releases, &self.ghosts).hash(hasher);
        for peers in [&self.peers, &self.ended] {
            peers.len().hash(hasher);
            for (link, peer) in peers {
                (link, peer.number).hash(hasher);
                peer.session.digest(hasher);
            }
        }
        (self.next_session, &self.queue_pairs, &self.doomed).hash(hasher);
        (&self.renewing, self.woken).hash(hasher);
    }
}

/// What of a view decides what is read.
fn hash_view(view: &View, things: u32, hasher: &mut impl Hasher) {
    (view.generation, view.table_next, view.scope.epoch).hash(hasher);
    for id in 1..things {
        view.row(id).and_then(|row| row.place(0)).hash(hasher);
    }
    view.directory
        .entry(0)
        .map(|entry| (entry.group, entry.address))
        .hash(hasher);
}

impl Client {
    fn digest(&self, things: u32, hasher: &mut impl Hasher) {
        (
            self.crashed,
            self.generation,
            self.queue_pair,
            self.asking,
            self.last_epoch,
        )
            .hash(hasher);
        self.tenure.digest(hasher);
        self.footing.digest(&self.tenure, &self.state, hasher);
        let (_, view) = self.state.view();
        hash_view(&view, things, hasher);
        hash_view(&self.footing.view, things, hasher);
        match self.reader {
            Reader::Flying {
                target,
                queue_pair,
                floor,
                changes,
                brought,
            } => {
                (1, target, queue_pair, floor, brought, changes == view.changes).hash(hasher);
            }
            ref other => (0, other).hash(hasher),
        }
        if let Some(control) = &self.control {
            control.session.digest(hasher);
            control.debt.digest(&self.tenure, hasher);
            (
                control.link,
                control.number,
                control.epoch,
                control.token,
                control.opens,
            )
                .hash(hasher);
            control.obeying.hash(hasher);
        }
    }
}

impl Hash for State {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        (self.now, self.answered, self.left, self.fault).hash(hasher);
        self.server.hash(hasher);
        for client in &self.clients {
            client.digest(self.server.next_thing, hasher);
        }
        (
            &self.links,
            self.next_link,
            self.next_queue_pair,
            self.tokens,
            &self.asked,
        )
            .hash(hasher);
    }
}

impl PartialEq for State {
    /// States that no step can tell apart.
    fn eq(&self, other: &Self) -> bool {
        let digest = |state: &Self| {
            let mut hasher = std::hash::DefaultHasher::new();
            state.hash(&mut hasher);
            hasher.finish()
        };
        digest(self) == digest(other)
    }
}
