//! The server's half: what its control thread does with a frame, with time, with a session that ends. It calls the
//! server's own functions in the order in which `kv-server/src/control/{run,connections,requests}.rs` do.

use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;

use kv_proto::auth::Role;
use kv_proto::control::{
    Answer, DatasetChange, DirectoryRef, RemoteAddress, Request, SegmentRow, encode_answer, encode_refusal,
};
use kv_proto::layout::segment_state;
use kv_server::control::clock::BootMs;
use kv_server::control::keys::Key;
use kv_server::control::leases::{Fence, Holds};
use kv_server::control::session::{Decoy, Step, World};
use kv_server::control::telling::told;
use kv_server::control::{Keys, Options};
use kv_server::store::changes::collect;
use kv_server::store::journal::{Change, Journal};

use super::guard::{Guard, Hazard};
use super::state::{Brought, PLACE_BYTES, Peer, QueuePair, Renewing, Server, State, Status, Target, Thing};
use super::{LAG_MS, LEASE_MS, Model};

/// The only dataset.
pub(super) const DATASET: [u8; 16] = [7; 16];
/// Where its directory lies.
const DIRECTORY: u64 = 1 << 40;
/// A number that nothing is ever retired at.
const FAR: u64 = 1 << 32;
/// Of the only key.
pub(super) const SECRET: [u8; 32] = [5; 32];

struct Fixed {
    keys: Keys,
    decoy: Decoy,
    options: Options,
}

fn fixed() -> &'static Fixed {
    static FIXED: OnceLock<Fixed> = OnceLock::new();
    FIXED.get_or_init(|| Fixed {
        keys: Keys::new(vec![Key {
            name: "k".to_owned(),
            secret: SECRET,
            role: Role::Read,
            datasets: vec!["*".to_owned()],
        }])
        .expect("one key"),
        decoy: Decoy::new(),
        options: Options {
            lease_ms: LEASE_MS,
            max_lag_ms: LAG_MS,
            ..Options::default()
        },
    })
}

pub(super) fn options() -> &'static Options {
    &fixed().options
}

pub(super) fn world(epoch: u64) -> World<'static> {
    let Fixed { keys, decoy, options } = fixed();
    World {
        keys,
        decoy,
        options,
        epoch,
        nonce: [9; 32],
    }
}

fn address(place: usize) -> RemoteAddress {
    // The same after a restart: addresses and rkeys may repeat.
    RemoteAddress {
        address: PLACE_BYTES * (place as u64 + 1),
        rkey: 1,
    }
}

fn directory() -> DirectoryRef {
    DirectoryRef {
        at: RemoteAddress {
            address: DIRECTORY,
            rkey: 1,
        },
        version: 1,
        depth: 0,
    }
}

impl Server {
    /// Place and thing that is live.
    pub(super) fn live(&self) -> (usize, Thing) {
        self.memory
            .iter()
            .enumerate()
            .find_map(|(at, place)| (place.status == Status::Live).then_some((at, place.thing?)))
            .expect("something is live")
    }

    pub(super) fn free_place(&self) -> Option<usize> {
        self.memory.iter().position(|place| place.status == Status::Free)
    }

    fn row(&self, id: u32) -> SegmentRow {
        let (place, live) = self.live();
        let is_live = live.id == id;
        SegmentRow {
            segment: id,
            identity: u64::from(id),
            generation: 1,
            state: if is_live {
                segment_state::SEALED
            } else {
                segment_state::RETIRED
            },
            length_units: 64,
            extents: if is_live { vec![address(place)] } else { Vec::new() },
        }
    }

    /// When a session is to be fenced, and why.
    fn fence_at(&self, model: &Model, holds: &Holds) -> (BootMs, Fence) {
        let lag_ms = u64::from(LAG_MS);
        if model.is_off(Guard::FenceLagging) {
            return (holds.lease_ends(), Fence::LeaseEnded);
        }
        let (at, why) = holds.fence_at(&self.retirements, lag_ms);
        if model.is_off(Guard::FenceEndedLease) && why == Fence::LeaseEnded {
            return (BootMs(u64::MAX), why);
        }
        (at, why)
    }

    /// As the loop's `next_deadline`.
    pub(super) fn next_deadline(&self, model: &Model) -> Option<BootMs> {
        let up = self.peers.values().filter(|peer| peer.number != 0);
        let peers = up.map(|peer| self.fence_at(model, &peer.session.holds).0);
        peers.chain(self.ghosts.iter().map(Holds::lease_ends)).min()
    }

    /// What a READ of `target` over `queue_pair` finds.
    pub(super) fn read(&self, target: Target, queue_pair: QueuePair) -> Brought {
        let memory = match &self.before {
            Some(before) if queue_pair.epoch != self.epoch => before,
            _ => &self.memory,
        };
        match target {
            Target::Directory => {
                let live = memory
                    .iter()
                    .enumerate()
                    .find(|(_, place)| place.status == Status::Live);
                let (at, id) = live.map_or((0, 0), |(at, place)| {
                    (at, place.thing.map_or(0, |thing| thing.id))
                });
                Brought::Entry(id, at)
            }
            Target::Thing { id, place } => match memory[place] {
                place if place.status == Status::Free => Brought::Freed,
                place => match place.thing {
                    Some(thing) if thing.id == id => Brought::Thing(thing),
                    _ => Brought::Freed,
                },
            },
        }
    }
}

impl State {
    pub(super) fn now_ms(&self) -> BootMs {
        BootMs(self.now / 1000)
    }

    fn answer(&mut self, link: u8, request: u64, answer: &Answer) {
        let mut frame = Vec::new();
        encode_answer(request, answer, &mut frame).expect("it fits");
        self.send(link, frame);
    }

    fn send(&mut self, link: u8, frame: Vec<u8>) {
        if let Some(link) = self.links.get_mut(&link).filter(|link| link.is_whole()) {
            link.to_client.push_back(frame);
        }
    }

    /// One frame, as `Control::frame` takes it.
    pub(super) fn server_receives(&mut self, model: &Model, link: u8) {
        let Some(frame) = self
            .links
            .get_mut(&link)
            .and_then(|link| link.to_server.pop_front())
        else {
            return;
        };
        let mut now = self.now_ms();
        if model.is_off(Guard::OneMoreMs) {
            now = BootMs(now.0 - 1);
        }
        let server = &mut self.server;
        let Some(peer) = server.peers.get_mut(&link) else {
            return;
        };
        let received = peer.session.receive(&frame, now, &world(server.epoch));
        let request = received.request;
        match received.step {
            Step::Answer(answer) => self.answer(link, request, &answer),
            Step::Refuse(refusal) => {
                let mut frame = Vec::new();
                encode_refusal(request, received.kind, refusal.status, &refusal.text, &mut frame);
                self.send(link, frame);
            }
            Step::End(_) => self.server_ends(model, link, false),
            Step::Ready { proof } => {
                peer.session.ready(now, 0, options());
                peer.number = server.next_session;
                server.next_session += 1;
                let answer = Answer::Auth {
                    proof,
                    session: peer.number,
                    lease_ms: LEASE_MS,
                    max_lag_ms: LAG_MS,
                    data_connections: 4,
                    staging: RemoteAddress { address: 0, rkey: 0 },
                    staging_len_bytes: 0,
                };
                self.answer(link, request, &answer);
            }
            Step::Do(asked) => self.server_does(model, link, request, &asked, now),
        }
        self.server_looks(model);
    }

    fn server_does(&mut self, model: &Model, link: u8, request: u64, asked: &Request, now: BootMs) {
        let server = &mut self.server;
        let Some(peer) = server.peers.get_mut(&link) else {
            return;
        };
        let holds = &mut peer.session.holds;
        match asked {
            Request::Open { .. } => {
                let retired = server.retired;
                if model.is_off(Guard::ReopenKeepsHold) {
                    holds.closed(&DATASET);
                    server.releases.touch();
                }
                let number = if model.is_off(Guard::OpenNumber) {
                    FAR
                } else {
                    retired
                };
                holds.opened(DATASET, number);
                let answer = Answer::Open {
                    dataset: DATASET,
                    hash_key: [0; 16],
                    retired,
                    directory: directory(),
                    part_bytes: 1 << 20,
                };
                self.answer(link, request, &answer);
            }
            Request::Table { .. } => {
                let rows = if model.bounds.index {
                    Vec::new()
                } else {
                    vec![server.row(server.live().1.id)]
                };
                self.answer(link, request, &Answer::Table { rows, next: 0 });
            }
            Request::Tokens { .. } => {
                self.tokens += 1;
                let token = [self.tokens; 16];
                peer.session.tokens.add(token, DATASET, now + u64::from(LAG_MS));
                self.answer(link, request, &Answer::Tokens { tokens: vec![token] });
            }
            Request::Renew { retired } => {
                let behind = server.retired > *retired;
                if holds.take_moved() && !model.is_off(Guard::AcknowledgingTouches) {
                    server.releases.touch();
                }
                if behind {
                    model.hits.note(Hazard::RenewedWithoutAcknowledging);
                }
                server.renewing = Some(Renewing {
                    link,
                    request,
                    retired: server.retired,
                    early: None,
                });
                if model.is_off(Guard::NumberBeforeChanges) {
                    let early = self.changes(link, request, 0);
                    if let Some(renewing) = &mut self.server.renewing {
                        renewing.early = early;
                    }
                }
            }
            _ => {}
        }
    }

    /// RENEW's answer, with `retired` as the number that was read.
    fn changes(&mut self, link: u8, request: u64, retired: u64) -> Option<Vec<u8>> {
        let server = &mut self.server;
        let mut peer = server.peers.remove(&link)?;
        let answer = told(&mut peer.session.holds, retired, LEASE_MS, |hold, room_bytes| {
            let change = collect(server.journal.since(hold.acked), room_bytes, |id| {
                Some(server.row(id))
            })?;
            Some(DatasetChange {
                dataset: DATASET,
                flags: change.flags,
                directory: directory(),
                ranges: change.ranges,
                rows: change.rows,
            })
        });
        server.peers.insert(link, peer);
        let mut frame = Vec::new();
        encode_answer(request, &answer, &mut frame).expect("it fits");
        Some(frame)
    }

    /// Collects the changes since what was acknowledged, after the number was read, and answers.
    pub(super) fn server_answers_renew(&mut self, model: &Model) {
        let Some(renewing) = self.server.renewing.take() else {
            return;
        };
        let Renewing {
            link,
            request,
            retired,
            early,
        } = renewing;
        let frame = match early {
            // The changes are old, the number is new.
            Some(frame) => {
                let retired = self.server.retired;
                let (_, answer) = kv_proto::control::decode_answer(&frame).expect("it was encoded");
                if let (
                    Some(peer),
                    Ok(Answer::Renew {
                        changes, lease_ms, ..
                    }),
                ) = (self.server.peers.get_mut(&link), answer)
                {
                    peer.session.holds.told(retired);
                    let mut frame = Vec::new();
                    let answer = Answer::Renew {
                        retired,
                        lease_ms,
                        changes,
                    };
                    encode_answer(request, &answer, &mut frame).expect("it fits");
                    Some(frame)
                } else {
                    None
                }
            }
            None => self.changes(link, request, retired),
        };
        if let Some(frame) = frame {
            self.send(link, frame);
        }
        self.server_looks(model);
    }

    /// The end of each turn of the loop: `Control::expire`, then `Control::release`.
    pub(super) fn server_looks(&mut self, model: &Model) {
        // A RENEW is one piece of work of the control thread.
        if self.server.renewing.is_some() {
            return;
        }
        let now = self.now_ms();
        let server = &mut self.server;
        server.woken = false;
        let noted = server.retirements.latest();
        if server.retirements.note(server.retired, now, u64::from(LAG_MS)) {
            server.releases.touch();
        }
        for place in &mut server.memory {
            // Patience counts from when the control thread heard of it.
            if let Status::Retired(number, at_ms) = &mut place.status
                && *number > noted
            {
                *at_ms = now.0;
            }
        }
        let due: Vec<(u8, Fence)> = server
            .peers
            .iter()
            .filter(|(_, peer)| peer.number != 0)
            .map(|(link, peer)| (*link, server.fence_at(model, &peer.session.holds)))
            .filter(|(_, (at, _))| *at <= now)
            .map(|(link, (_, why))| (link, why))
            .collect();
        for (link, why) in due {
            model.hits.note(match why {
                Fence::LeaseEnded => Hazard::FencedForLease,
                Fence::Lagging => Hazard::FencedForLag,
            });
            self.server_ends(model, link, false);
        }
        let server = &mut self.server;
        if server.ghosts.expire(now) && !model.is_off(Guard::GhostsEndingTouches) {
            server.releases.touch();
        }
        if !server.releases.take_touched() {
            return;
        }
        let waits = !model.is_off(Guard::WaitForAcknowledgement);
        let peers = server.peers.values().map(|peer| &peer.session.holds);
        let holds = peers.chain(server.ghosts.iter()).filter(|_| waits);
        let due = server
            .releases
            .due(std::iter::once(DATASET), holds, server.retirements.latest());
        for (_, number) in due {
            for place in server.journal.release(number) {
                server.memory[place].status = Status::Free;
            }
        }
    }

    /// As `Control::end`.
    pub(super) fn server_ends(&mut self, model: &Model, link: u8, leave: bool) {
        let server = &mut self.server;
        let Some(mut peer) = server.peers.remove(&link) else {
            return;
        };
        if model.is_off(Guard::EndedSessionsAdmitNobody) {
            server.ended.insert(link, peer.clone());
        }
        peer.session.end();
        let own = server.queue_pairs.iter().filter(|(_, of)| **of == link);
        let own: Vec<u8> = own.map(|(number, _)| *number).collect();
        if model.is_off(Guard::DestroyBeforeFreeing) {
            server.doomed.extend(own);
        } else if !model.is_off(Guard::DestroyQueuePairs) {
            server.queue_pairs.retain(|number, _| !own.contains(number));
        }
        let fences = model.bounds.fences || model.is_off(Guard::GhostsHold);
        let ghosts = server.ghosts.len();
        server.ghosts.ended(&peer.session.holds, fences, leave);
        if server.ghosts.len() > ghosts {
            model.hits.note(Hazard::Ghost);
        }
        if !model.is_off(Guard::EndingTouches) {
            server.releases.touch();
        }
        if let Some(link) = self.links.get_mut(&link) {
            link.server_open = false;
        }
        self.tidy();
    }

    /// A connection request, as `Control::connect_data` answers it.
    pub(super) fn server_admits(&mut self, model: &Model, index: usize) {
        let now = self.now_ms();
        let asked = self.asked[index].clone();
        let server = &mut self.server;
        let gone = &mut server.ended;
        let peers = server.peers.iter_mut().chain(gone.iter_mut());
        let found = peers
            .filter(|(_, peer)| peer.number == asked.session)
            .find_map(|(link, peer)| peer.session.tokens.redeem(&asked.token, now).map(|_| *link));
        let due = |link: &u8| {
            let peer = server.peers.get(link);
            peer.is_some_and(|peer| server.fence_at(model, &peer.session.holds).0 <= now)
        };
        let outcome = found.filter(|link| !due(link)).map(|link| {
            let number = self.next_queue_pair;
            self.next_queue_pair += 1;
            self.server.queue_pairs.insert(number, link);
            QueuePair {
                number,
                epoch: self.server.epoch,
            }
        });
        if outcome.is_none() {
            model.hits.note(Hazard::RequestRefused);
        }
        self.asked[index].outcome = Some(outcome);
        self.server_looks(model);
    }

    /// The log thread moves what is live and retires where it was.
    pub(super) fn server_retires(&mut self, model: &Model) {
        let server = &mut self.server;
        let (Some(free), (old, live)) = (server.free_place(), server.live()) else {
            return;
        };
        let thing = Thing {
            id: server.next_thing,
            ..live
        };
        server.next_thing += 1;
        if server.memory[free].thing.is_some() {
            model.hits.note(Hazard::Reused);
        }
        server.memory[free].thing = Some(thing);
        server.memory[free].status = Status::Live;
        let counter = AtomicU64::new(server.retired);
        let number = if model.bounds.index {
            if let Some(thing) = &mut server.memory[old].thing {
                thing.moved = !model.is_off(Guard::StampMoved);
            }
            server.journal.push(&counter, Change::Range(0, 1), vec![old])
        } else {
            server.journal.push(&counter, Change::Row(thing.id), Vec::new());
            server.journal.push(&counter, Change::Row(live.id), vec![old])
        };
        server.memory[old].status = Status::Retired(number, self.now / 1000);
        server.retired = number;
        server.woken |= !model.is_off(Guard::RetiringWakes);
    }

    /// An overwrite in place, and its answer.
    pub(super) fn server_overwrites(&mut self) {
        let (place, _) = self.server.live();
        if let Some(thing) = &mut self.server.memory[place].thing {
            thing.version += 1;
            self.answered = thing.version;
        }
    }

    /// The server is killed and started again: what was live is loaded at another place.
    pub(super) fn server_restarts(&mut self) {
        let server = &mut self.server;
        let (place, live) = server.live();
        let mut memory = server.memory;
        memory.iter_mut().for_each(|place| *place = super::EMPTY);
        memory[(place + 1) % memory.len()] = super::state::Place {
            status: Status::Live,
            thing: Some(live),
        };
        *server = Server {
            epoch: server.epoch + 1,
            memory,
            before: Some(server.memory),
            next_thing: server.next_thing,
            retired: 0,
            journal: Journal::new(),
            retirements: Default::default(),
            releases: Default::default(),
            ghosts: Default::default(),
            peers: Default::default(),
            ended: Default::default(),
            next_session: 1,
            queue_pairs: Default::default(),
            doomed: Vec::new(),
            renewing: None,
            woken: false,
        };
        for link in self.links.values_mut() {
            link.server_open = false;
            link.to_server.clear();
        }
        self.tidy();
    }

    /// Whether space is held that nobody may still read, with nothing to come that would free it.
    pub(super) fn held_for_ever(&self, model: &Model) -> bool {
        let (server, now) = (&self.server, self.now_ms());
        if server.renewing.is_some() || server.woken {
            return false;
        }
        if server.next_deadline(model).is_some_and(|at| at <= now) {
            return false;
        }
        // Marks of retirements may lie later than those by this.
        let patience_ms = u64::from(LAG_MS + LAG_MS / 64 + 1);
        server.memory.iter().any(|place| {
            let Status::Retired(number, at_ms) = place.status else {
                return false;
            };
            let holds = |holds: &Holds| holds.get(&DATASET).is_some_and(|hold| hold.acked < number);
            let outlived = now.0 > at_ms + patience_ms;
            let alive = server
                .peers
                .values()
                .any(|peer| holds(&peer.session.holds) && !outlived);
            let ghost = server
                .ghosts
                .iter()
                .any(|ghost| holds(ghost) && now < ghost.lease_ends());
            !alive && !ghost
        })
    }

    /// Forgets links that both ends are done with.
    pub(super) fn tidy(&mut self) {
        self.links.retain(|_, link| link.client_open || link.server_open);
    }
}

/// A session's half at the server, not known to anyone yet.
pub(super) fn stranger() -> Peer {
    Peer {
        number: 0,
        session: kv_server::control::session::Session::new(),
    }
}
