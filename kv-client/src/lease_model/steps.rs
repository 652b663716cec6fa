//! What can happen next, and what comes of it.

use std::collections::BTreeMap;

use kv_server::control::leases::Retirements;
use kv_server::store::journal::Journal;
use stateright::Property;

use super::guard::{Hazard, happens};
use super::state::{Client, Fault, Left, Place, Reader, Server, State, Status, Thing};
use super::{EMPTY, GRID_US, Model};
use crate::control::tenure::{Footing, Tenure};
use crate::tables::DatasetState;

/// One step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Time goes on: to the next moment at which a time is up, or the next of the grid.
    TimePasses,
    HalfAMillisecondPasses,
    // The server.
    ServerReceives(u8),
    ServerAnswersRenew,
    ServerWakes,
    ServerSeesEnd(u8),
    ServerAdmits(usize),
    ServerDestroysLate,
    Retires,
    Overwrites,
    Restarts,
    // The network.
    IsCut(u8),
    ComesTwice(u8),
    ReadHappens(usize),
    // A client.
    Begins(usize),
    Receives(usize),
    Obeys(usize),
    Renews(usize),
    OpensAgain(usize),
    LosesSession(usize),
    WantsToken(usize),
    Connects(usize),
    IsConnected(usize),
    Crashes(usize),
    Enters(usize),
    Posts(usize, usize),
    Completes(usize),
    Fails(usize),
}

fn client(tenure: Tenure) -> Client {
    let state = DatasetState::new();
    Client {
        crashed: false,
        generation: 0,
        footing: Footing::new(&tenure, &state),
        tenure,
        state,
        control: None,
        queue_pair: None,
        asking: false,
        reader: Reader::Idle,
        last_epoch: 0,
    }
}

fn server() -> Server {
    let mut memory = [EMPTY; super::state::PLACES];
    memory[0] = Place {
        status: Status::Live,
        thing: Some(Thing {
            id: 1,
            version: 0,
            moved: false,
        }),
    };
    Server {
        epoch: 1,
        memory,
        before: None,
        next_thing: 2,
        retired: 0,
        journal: Journal::new(),
        retirements: Retirements::new(0),
        releases: Default::default(),
        ghosts: Default::default(),
        peers: BTreeMap::new(),
        ended: BTreeMap::new(),
        next_session: 1,
        queue_pairs: BTreeMap::new(),
        doomed: Vec::new(),
        renewing: None,
        woken: false,
    }
}

impl Model {
    /// Every client has a session, the dataset open, and a data connection.
    fn begun(&self) -> State {
        let mut state = State {
            // Not 0: with a guard gone, the server's clock is one millisecond behind.
            now: 1000 * 1000,
            server: server(),
            clients: (0..self.bounds.clients).map(|_| client(Tenure::new())).collect(),
            links: BTreeMap::new(),
            next_link: 0,
            next_queue_pair: 0,
            tokens: 0,
            asked: Vec::new(),
            answered: 0,
            left: Left::default(),
            fault: None,
        };
        for at in 0..self.bounds.clients {
            state.client_begins(self, at);
            let link = state.next_link - 1;
            for _ in ["AUTH", "OPEN", "TABLE"] {
                state.server_receives(self, link);
                state.client_receives(self, at);
            }
            if self.bounds.unconnected {
                // TOKENS is under way.
                continue;
            }
            state.server_receives(self, link);
            state.client_receives(self, at);
            state.client_connects(at);
            state.server_admits(self, 0);
            state.client_is_connected(0);
            assert!(state.clients[at].queue_pair.is_some());
        }
        state.left = self.bounds.left;
        state
    }

    /// When time goes on to, if the run goes so far.
    fn next_moment(&self, state: &State) -> Option<u64> {
        let mut next = (state.now / GRID_US + 1) * GRID_US;
        let mut at = |moment: u64| {
            if moment > state.now {
                next = next.min(moment);
            }
        };
        let server = &state.server;
        let peers = server.peers.values().filter(|peer| peer.number != 0);
        for peer in peers {
            let lag_ms = u64::from(super::LAG_MS);
            at(peer.session.holds.fence_at(&server.retirements, lag_ms).0.0 * 1000);
            at(peer.session.holds.lease_ends().0 * 1000);
        }
        server
            .ghosts
            .iter()
            .for_each(|ghost| at(ghost.lease_ends().0 * 1000));
        for (index, client) in state.clients.iter().enumerate() {
            if let Some(control) = &client.control {
                at(state.at_client_ns(self, index, control.session.lease_end_ns()));
            }
        }
        (next <= 1000 * (1000 + self.bounds.horizon_ms)).then_some(next)
    }

    fn server_steps(&self, state: &State, steps: &mut Vec<Step>) {
        let (server, left) = (&state.server, &state.left);
        if left.retires > 0 && server.free_place().is_some() {
            steps.push(Step::Retires);
        }
        if left.overwrites > 0 {
            steps.push(Step::Overwrites);
        }
        if left.restarts > 0 {
            steps.push(Step::Restarts);
        }
        if !server.doomed.is_empty() {
            steps.push(Step::ServerDestroysLate);
        }
        if server.renewing.is_some() {
            return steps.push(Step::ServerAnswersRenew);
        }
        if server.woken || server.next_deadline(self).is_some_and(|at| at <= state.now_ms()) {
            steps.push(Step::ServerWakes);
        }
        for (number, link) in &state.links {
            if link.server_open && !link.to_server.is_empty() {
                steps.push(Step::ServerReceives(*number));
                if left.twice > 0 {
                    steps.push(Step::ComesTwice(*number));
                }
            }
            if link.server_open && !link.client_open {
                steps.push(Step::ServerSeesEnd(*number));
            }
            if left.cuts > 0 && link.server_open && link.client_open {
                steps.push(Step::IsCut(*number));
            }
        }
        for (index, asked) in state.asked.iter().enumerate() {
            steps.push(match asked.outcome {
                None => Step::ServerAdmits(index),
                Some(_) => Step::IsConnected(index),
            });
        }
    }

    fn control_steps(&self, state: &State, at: usize, steps: &mut Vec<Step>) {
        let (client, left) = (&state.clients[at], &state.left);
        let Some(control) = &client.control else {
            if left.sessions[at] > 0 {
                steps.push(Step::Begins(at));
            }
            return;
        };
        if control.obeying.is_some() {
            return steps.push(Step::Obeys(at));
        }
        let up = control.number != 0;
        let lapsed = up && state.client_ns(self, at) >= control.session.lease_end_ns();
        if lapsed || state.client_is_cut_off(at) {
            steps.push(Step::LosesSession(at));
        }
        let link = state.links.get(&control.link);
        if link.is_some_and(|link| !link.to_client.is_empty()) {
            steps.push(Step::Receives(at));
        }
        if !up || control.opens == 0 {
            return;
        }
        if left.renews[at] > 0 && control.session.renew_at_ns() != u64::MAX {
            steps.push(Step::Renews(at));
        }
        if left.reopens > 0 {
            steps.push(Step::OpensAgain(at));
        }
        let connected = client.queue_pair.is_some() && client.footing.generation == client.generation;
        if control.token.is_some() && client.reader == Reader::Idle {
            steps.push(Step::Connects(at));
        }
        let asked = link.is_some_and(|link| !link.to_server.is_empty() || !link.to_client.is_empty());
        if !connected && !client.asking && control.token.is_none() && !asked && left.gets[at] > 0 {
            steps.push(Step::WantsToken(at));
        }
    }

    fn reader_steps(&self, state: &State, at: usize, steps: &mut Vec<Step>) {
        match state.clients[at].reader {
            Reader::Idle => {
                if state.left.gets[at] > 0 && state.clients[at].queue_pair.is_some() {
                    steps.push(Step::Enters(at));
                }
            }
            Reader::Entered { .. } => steps.extend((0..2).map(|choice| Step::Posts(at, choice))),
            Reader::Flying { brought: Some(_), .. } => steps.push(Step::Completes(at)),
            Reader::Flying { queue_pair, .. } => steps.push(if state.read_is_possible(self, queue_pair) {
                Step::ReadHappens(at)
            } else {
                Step::Fails(at)
            }),
        }
    }

    /// Does one step; false where it comes to nothing.
    fn take(&self, state: &mut State, step: Step) -> bool {
        match step {
            Step::TimePasses => match self.next_moment(state) {
                Some(next) => state.now = next,
                None => return false,
            },
            Step::HalfAMillisecondPasses => {
                state.left.halves -= 1;
                state.now += 500;
            }
            Step::ServerReceives(link) => state.server_receives(self, link),
            Step::ServerAnswersRenew => state.server_answers_renew(self),
            Step::ServerWakes => state.server_looks(self),
            Step::ServerSeesEnd(link) => {
                state.server_ends(self, link, false);
                state.server_looks(self);
            }
            Step::ServerAdmits(index) => state.server_admits(self, index),
            Step::ServerDestroysLate => {
                for number in std::mem::take(&mut state.server.doomed) {
                    state.server.queue_pairs.remove(&number);
                }
            }
            Step::Retires => {
                state.left.retires -= 1;
                state.server_retires(self);
            }
            Step::Overwrites => {
                state.left.overwrites -= 1;
                state.server_overwrites();
            }
            Step::Restarts => {
                state.left.restarts -= 1;
                state.server_restarts();
            }
            Step::IsCut(link) => {
                state.left.cuts -= 1;
                if let Some(link) = state.links.get_mut(&link) {
                    if !link.to_server.is_empty() || !link.to_client.is_empty() {
                        self.hits.note(Hazard::FramesLost);
                    }
                    link.to_server.clear();
                    link.to_client.clear();
                    // The client sees it first or the server does: both ends are broken, neither was closed.
                    link.client_open = false;
                }
            }
            Step::ComesTwice(link) => {
                state.left.twice -= 1;
                self.hits.note(Hazard::Twice);
                if let Some(frame) = state.links[&link].to_server.front().cloned()
                    && let Some(link) = state.links.get_mut(&link)
                {
                    link.to_server.push_front(frame);
                }
            }
            Step::ReadHappens(at) => state.read_happens(self, at),
            Step::Begins(at) => {
                state.left.sessions[at] -= 1;
                state.client_begins(self, at);
            }
            Step::Receives(at) => state.client_receives(self, at),
            Step::Obeys(at) => state.client_obeys(self, at),
            Step::Renews(at) => {
                state.left.renews[at] -= 1;
                state.client_renews(self, at);
            }
            Step::OpensAgain(at) => {
                state.left.reopens -= 1;
                state.client_opens_again(self, at);
            }
            Step::LosesSession(at) => state.client_loses_session(self, at),
            Step::WantsToken(at) => state.client_wants_token(self, at),
            Step::Connects(at) => state.client_connects(at),
            Step::IsConnected(index) => state.client_is_connected(index),
            Step::Crashes(at) => {
                state.left.crashes -= 1;
                state.client_crashes(self, at);
            }
            Step::Enters(at) => {
                state.left.gets[at] -= 1;
                state.reader_enters(self, at);
            }
            Step::Posts(at, choice) => return state.reader_posts(self, at, choice),
            Step::Completes(at) => state.reader_completes(self, at),
            Step::Fails(at) => state.read_fails(self, at),
        }
        true
    }
}

impl stateright::Model for Model {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        vec![self.begun()]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        // A fault ends it.
        if state.fault.is_some() {
            return;
        }
        steps.push(Step::TimePasses);
        if state.left.halves > 0 {
            steps.push(Step::HalfAMillisecondPasses);
        }
        self.server_steps(state, steps);
        for at in 0..state.clients.len() {
            if state.clients[at].crashed {
                continue;
            }
            self.control_steps(state, at, steps);
            self.reader_steps(state, at, steps);
            if state.left.crashes > 0 {
                steps.push(Step::Crashes(at));
            }
        }
    }

    fn next_state(&self, state: &State, step: Step) -> Option<State> {
        let mut next = state.clone();
        if !self.take(&mut next, step) {
            return None;
        }
        if next.fault.is_none() && next.held_for_ever(self) {
            next.fault = Some(Fault::HeldForEver);
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::always(
                "no bytes of freed or reused memory are judged",
                |_, state: &State| state.fault != Some(Fault::ReadFreed),
            ),
            Property::always("no value older than a completed overwrite", |_, state: &State| {
                state.fault != Some(Fault::OldValue)
            }),
            Property::always("what nobody holds is freed", |_, state: &State| {
                state.fault != Some(Fault::HeldForEver)
            }),
        ];
        // A model without a guard only has to fail.
        if self.off.is_none() {
            properties.extend(self.bounds.hazards.iter().copied().map(happens));
        }
        properties
    }
}
