//! A client's half: its control thread and one reader. They call the client's own functions in the order in which
//! `control/{serving,thread}.rs` and `read/{lane,short,mod}.rs` do. Any step may be as late as it likes: that is what a
//! client that is stopped, or a thread that is not scheduled, comes to.

use std::sync::Arc;

use kv_proto::control::{Answer, Bytes, Request, decode_answer, encode_answer};
use kv_proto::layout::{DirectoryEntry, Locator, depth_prefix};
use kv_server::control::session::Step;

use super::guard::{Guard, Hazard};
use super::server::{DATASET, SECRET, stranger, world};
use super::state::{Asked, Brought, Control, Fault, Link, PLACE_BYTES, QueuePair, Reader, State, Target};
use super::{LEASE_MS, Model};
use crate::AccessKey;
use crate::control::tenure::Debt;
use crate::session::{Event, Greeting, Session};

/// A record that fits every segment of the model.
fn record(segment: u32) -> Locator {
    Locator {
        segment,
        offset_units: 1,
        value_len_bytes: 8,
        key_len_bytes: 1,
        tag: 0,
    }
}

impl State {
    /// The client's clock. That of the last one may be slow by as much as is allowed.
    pub(super) fn client_ns(&self, model: &Model, client: usize) -> u64 {
        if model.bounds.slow_clock && client + 1 == self.clients.len() {
            self.now * (1000 - super::DRIFT_PER_MILLE)
        } else {
            self.now * 1000
        }
    }

    /// The moment at which a client's clock shows this.
    pub(super) fn at_client_ns(&self, model: &Model, client: usize, ns: u64) -> u64 {
        if model.bounds.slow_clock && client + 1 == self.clients.len() {
            ns.div_ceil(1000 - super::DRIFT_PER_MILLE)
        } else {
            ns.div_ceil(1000)
        }
    }

    fn post_frame(&mut self, link: u8, frame: Vec<u8>) {
        if let Some(link) = self.links.get_mut(&link).filter(|link| link.is_whole()) {
            link.to_server.push_back(frame);
        }
    }

    /// Connects and says HELLO, which is answered at once; AUTH is under way then.
    pub(super) fn client_begins(&mut self, model: &Model, client: usize) {
        let now_ns = self.client_ns(model, client);
        let greeting = Greeting {
            key: AccessKey::new("k", SECRET),
            client_id: client as u64 + 1,
            nonce: [3; 32],
            receives: 16,
        };
        let (mut session, hello) = Session::begin(greeting, now_ns).expect("a greeting");
        let mut peer = stranger();
        let received = peer
            .session
            .receive(&hello, self.now_ms(), &world(self.server.epoch));
        let Step::Answer(answer) = received.step else {
            unreachable!("HELLO is answered");
        };
        let mut frame = Vec::new();
        encode_answer(received.request, &answer, &mut frame).expect("it fits");
        let Ok(Event::Send(auth)) = session.receive(&frame, now_ns) else {
            unreachable!("HELLO's answer is answered");
        };
        let link = self.next_link;
        self.next_link += 1;
        self.server.peers.insert(link, peer);
        self.links.insert(
            link,
            Link {
                client,
                to_server: [auth].into(),
                to_client: Default::default(),
                client_open: true,
                server_open: true,
            },
        );
        self.clients[client].control = Some(Control {
            link,
            session,
            number: 0,
            epoch: 0,
            debt: Debt::default(),
            token: None,
            obeying: None,
            opens: 0,
        });
    }

    /// Whether the control thread can see that its connection is over.
    pub(super) fn client_is_cut_off(&self, client: usize) -> bool {
        let control = self.clients[client].control.as_ref();
        control.is_some_and(|control| match self.links.get(&control.link) {
            Some(link) => !link.is_whole() && link.to_client.is_empty(),
            None => true,
        })
    }

    /// As the end of `Serving::run`.
    pub(super) fn client_loses_session(&mut self, model: &Model, client: usize) {
        let found = &mut self.clients[client];
        let Some(control) = found.control.take() else {
            return;
        };
        if control.number != 0 {
            found.tenure.end();
            if !model.is_off(Guard::TablesOfSession) {
                found.state.close();
            }
            found.last_epoch = control.epoch;
        }
        if let Some(link) = self.links.get_mut(&control.link) {
            link.client_open = false;
        }
        self.tidy();
    }

    /// One frame, as `Serving::handle` and `thread::establish` take it.
    pub(super) fn client_receives(&mut self, model: &Model, client: usize) {
        let now_ns = self.client_ns(model, client);
        let found = &mut self.clients[client];
        let Some(control) = &mut found.control else {
            return;
        };
        let link = control.link;
        let Some(frame) = self
            .links
            .get_mut(&link)
            .and_then(|link| link.to_client.pop_front())
        else {
            return;
        };
        match control.session.receive(&frame, now_ns) {
            Ok(Event::Up(up)) => {
                control.number = up.session;
                control.epoch = up.epoch;
                found.generation += 1;
                let end_ns = control.session.lease_end_ns();
                found
                    .tenure
                    .begin(found.generation, lease_end(model, end_ns, now_ns));
                if found.last_epoch != 0 && found.last_epoch != up.epoch {
                    model.hits.note(Hazard::RestartSeen);
                }
                self.client_asks(model, client, &open());
            }
            Ok(Event::Answer {
                result: Ok(answer), ..
            }) => self.client_is_told(model, client, &answer),
            Ok(Event::Answer { .. }) => {}
            Ok(Event::Renewed { retired, changes }) => {
                if model.is_off(Guard::ForgetBeforeEpoch) {
                    owe(model, control, &found.tenure, retired);
                } else {
                    changes.iter().for_each(|change| found.state.renewed(change));
                }
                control.obeying = Some((retired, frame));
            }
            Ok(Event::Send(_) | Event::Over) | Err(_) => self.client_loses_session(model, client),
        }
    }

    /// The other half of `Serving::renewed`.
    pub(super) fn client_obeys(&mut self, model: &Model, client: usize) {
        let now_ns = self.client_ns(model, client);
        let found = &mut self.clients[client];
        let Some(control) = &mut found.control else {
            return;
        };
        let Some((retired, frame)) = control.obeying.take() else {
            return;
        };
        if model.is_off(Guard::ForgetBeforeEpoch) {
            if let Ok((_, Ok(Answer::Renew { changes, .. }))) = decode_answer(&frame) {
                changes.iter().for_each(|change| found.state.renewed(change));
            }
        } else {
            owe(model, control, &found.tenure, retired);
        }
        let end_ns = control.session.lease_end_ns();
        found.tenure.renewed(lease_end(model, end_ns, now_ns));
    }

    fn client_asks(&mut self, model: &Model, client: usize, request: &Request) {
        let now_ns = self.client_ns(model, client);
        let Some(control) = &mut self.clients[client].control else {
            return;
        };
        let (link, asked) = (control.link, control.session.request(1, request, now_ns));
        if let Ok(frame) = asked {
            self.post_frame(link, frame);
        }
    }

    /// As `Serving::noted`, and what `Core::try_open` and `Lane::connect` ask next.
    fn client_is_told(&mut self, model: &Model, client: usize, answer: &Answer) {
        let found = &mut self.clients[client];
        let Some(control) = &mut found.control else {
            return;
        };
        let first = matches!(answer, Answer::Table { .. }).then_some(0);
        found
            .state
            .answered(found.generation, control.epoch, first, answer);
        match answer {
            Answer::Open { retired, .. } => {
                if model.is_off(Guard::OnlyFirstOpenAcknowledges) {
                    control.session.acknowledge(*retired);
                }
                control.opens += 1;
                let table = Request::Table {
                    dataset: DATASET,
                    first: 0,
                };
                self.client_asks(model, client, &table);
            }
            Answer::Table { .. }
                if found.queue_pair.is_none() || found.footing.generation != found.generation =>
            {
                self.client_wants_token(model, client);
            }
            Answer::Tokens { tokens } => control.token = tokens.first().copied(),
            _ => {}
        }
    }

    pub(super) fn client_wants_token(&mut self, model: &Model, client: usize) {
        let tokens = Request::Tokens {
            dataset: DATASET,
            count: 1,
        };
        self.client_asks(model, client, &tokens);
    }

    pub(super) fn client_opens_again(&mut self, model: &Model, client: usize) {
        self.client_asks(model, client, &open());
    }

    /// A renewal that is due: as the beginning of `Serving::pump`.
    pub(super) fn client_renews(&mut self, model: &Model, client: usize) {
        let now_ns = self.client_ns(model, client);
        let found = &mut self.clients[client];
        let Some(control) = &mut found.control else {
            return;
        };
        control.debt.settle(&mut control.session, &found.tenure);
        let link = control.link;
        if let Ok(frame) = control.session.renew(now_ns) {
            self.post_frame(link, frame);
        }
    }

    /// Asks for a data connection, as `Lane::connect` does once it has a token.
    pub(super) fn client_connects(&mut self, client: usize) {
        let found = &mut self.clients[client];
        let Some(control) = &mut found.control else {
            return;
        };
        let Some(token) = control.token.take() else {
            return;
        };
        found.queue_pair = None;
        found.asking = true;
        self.asked.push(Asked {
            client,
            generation: found.generation,
            session: control.number,
            token,
            outcome: None,
        });
    }

    pub(super) fn client_is_connected(&mut self, index: usize) {
        let asked = self.asked.remove(index);
        let found = &mut self.clients[asked.client];
        found.asking = false;
        if let Some(Some(queue_pair)) = asked.outcome {
            found.queue_pair = Some(queue_pair);
            found.footing.generation = asked.generation;
        }
    }

    pub(super) fn client_crashes(&mut self, model: &Model, client: usize) {
        self.client_loses_session(model, client);
        let found = &mut self.clients[client];
        found.crashed = true;
        found.queue_pair = None;
        found.reader = Reader::Idle;
        found.footing.leave();
        self.asked.retain(|asked| asked.client != client);
    }

    // The reader.

    /// A GET begins: it reads the clock and pins the epoch.
    pub(super) fn reader_enters(&mut self, model: &Model, client: usize) {
        let (at_ns, floor) = (self.client_ns(model, client), self.answered);
        let found = &mut self.clients[client];
        let mut looked = None;
        if model.is_off(Guard::PinBeforeLooking) {
            looked = Some(found.footing.look(&found.tenure, &found.state, at_ns));
        } else {
            found.footing.pin(&found.tenure);
        }
        found.reader = Reader::Entered { at_ns, floor, looked };
    }

    /// What the reader can READ, once it has looked at the tables: a place for each row, or the directory.
    fn targets(&self, model: &Model, client: usize) -> Vec<Target> {
        let view = &self.clients[client].footing.view;
        if !model.bounds.index {
            let rows = (1..self.server.next_thing).filter_map(|id| {
                let (at, _) = view.row_for(&record(id)).ok()?.place(0)?;
                Some(Target::Thing {
                    id,
                    place: (at.address / PLACE_BYTES - 1) as usize,
                })
            });
            return rows.collect();
        }
        match view.directory.entry(0) {
            None => vec![Target::Directory],
            Some(entry) => vec![Target::Thing {
                id: entry.group,
                place: (entry.address / PLACE_BYTES - 1) as usize,
            }],
        }
    }

    /// It looks at the tables and posts a READ: the `choice`th that it can. False where there is no such choice.
    pub(super) fn reader_posts(&mut self, model: &Model, client: usize, choice: usize) -> bool {
        let found = &mut self.clients[client];
        let Reader::Entered { at_ns, floor, looked } = found.reader else {
            return false;
        };
        let mut may = match looked {
            Some(may) => {
                found.footing.pin(&found.tenure);
                may
            }
            None => found.footing.look(&found.tenure, &found.state, at_ns),
        };
        if model.is_off(Guard::CheckBeforePosting) {
            may = found.footing.view.generation == found.footing.generation;
        }
        if model.is_off(Guard::TablesOfSession) {
            may = found.footing.leased(&found.tenure, at_ns);
        }
        let ready = may && found.footing.view.table_next.is_none();
        let (changes, queue_pair) = (found.footing.view.changes, found.queue_pair);
        let target = self.targets(model, client).get(choice).copied();
        let found = &mut self.clients[client];
        match (queue_pair, target) {
            (Some(queue_pair), Some(target)) if ready => {
                found.reader = Reader::Flying {
                    target,
                    queue_pair,
                    floor,
                    changes,
                    brought: None,
                };
                true
            }
            _ => {
                found.footing.leave();
                found.reader = Reader::Idle;
                choice == 0
            }
        }
    }

    /// Whether a READ that is in flight can be carried out now.
    pub(super) fn read_is_possible(&self, model: &Model, queue_pair: QueuePair) -> bool {
        !model.bounds.fences || self.server.queue_pairs.contains_key(&queue_pair.number)
    }

    /// The READ is carried out: by the server's device, or on `local` by the reader itself.
    pub(super) fn read_happens(&mut self, model: &Model, client: usize) {
        let now_ns = self.client_ns(model, client);
        let found = &mut self.clients[client];
        if let Reader::Flying {
            target,
            queue_pair,
            brought,
            ..
        } = &mut found.reader
        {
            *brought = Some(self.server.read(*target, *queue_pair));
            if !found.footing.leased(&found.tenure, now_ns) {
                model.hits.note(Hazard::LateRead);
            }
        }
    }

    /// The READ failed: its queue pair was destroyed.
    pub(super) fn read_fails(&mut self, model: &Model, client: usize) {
        model.hits.note(Hazard::RefusedByFence);
        self.reader_leaves(client, true);
    }

    fn reader_leaves(&mut self, client: usize, disconnect: bool) {
        let found = &mut self.clients[client];
        if disconnect {
            found.queue_pair = None;
        }
        found.footing.leave();
        found.reader = Reader::Idle;
    }

    /// The reader sees the completion, looks at the clock, and judges what came.
    pub(super) fn reader_completes(&mut self, model: &Model, client: usize) {
        let then_ns = self.client_ns(model, client);
        let found = &mut self.clients[client];
        let Reader::Flying {
            queue_pair,
            floor,
            changes,
            brought: Some(brought),
            ..
        } = found.reader
        else {
            return;
        };
        let mut leased = found.footing.leased(&found.tenure, then_ns);
        if model.is_off(Guard::CheckAfterCompletion) {
            leased = true;
        }
        if model.is_off(Guard::LeaseOfSession) {
            leased = found.tenure.leased(found.tenure.generation(), then_ns);
        }
        let over = !model.bounds.fences && queue_pair.epoch != self.server.epoch;
        if !leased || (over && !model.is_off(Guard::LookForEnd)) {
            model.hits.note(Hazard::Discarded);
            if brought == Brought::Freed {
                model.hits.note(Hazard::FreedReadDiscarded);
            }
            return self.reader_leaves(client, true);
        }
        match brought {
            Brought::Freed => self.fault = Some(Fault::ReadFreed),
            Brought::Thing(thing) if thing.moved => model.hits.note(Hazard::Moved),
            Brought::Thing(thing) if model.bounds.index && thing.version < floor => {
                self.fault = Some(Fault::OldValue);
            }
            Brought::Thing(_) => model.hits.note(Hazard::Accepted),
            Brought::Entry(id, place) => self.page_arrives(model, client, changes, id, place),
        }
        self.reader_leaves(client, false);
    }

    /// As the end of `Call::read_directory`.
    fn page_arrives(&mut self, model: &Model, client: usize, changes: u64, id: u32, place: usize) {
        let found = &mut self.clients[client];
        let entry = DirectoryEntry {
            checksum: 0,
            address: PLACE_BYTES * (place as u64 + 1),
            rkey: 1,
            group: id,
            stamp: id,
            depth_prefix: depth_prefix(0, 0),
        };
        let now = found.state.view().1.changes;
        let changes = if model.is_off(Guard::DiscardOldPages) {
            now
        } else {
            changes
        };
        if !found.state.install(changes, vec![(0, Arc::from([entry]))]) {
            model.hits.note(Hazard::OldPages);
        }
    }
}

fn open() -> Request {
    Request::Open {
        name: Bytes::from(b"d".as_slice()),
    }
}

/// When the client takes its lease to end.
fn lease_end(model: &Model, end_ns: u64, now_ns: u64) -> u64 {
    let lease_ns = u64::from(LEASE_MS) * 1_000_000;
    if model.is_off(Guard::LeaseFromFirstSend) {
        now_ns + lease_ns - lease_ns / super::MARGIN
    } else if model.is_off(Guard::DriftMargin) {
        end_ns + lease_ns / super::MARGIN
    } else {
        end_ns
    }
}

/// A number was told: it is to be acknowledged once that is true.
fn owe(model: &Model, control: &mut Control, tenure: &crate::control::tenure::Tenure, retired: u64) {
    if model.is_off(Guard::AcknowledgeWhenQuiet) {
        control.session.acknowledge(retired);
    } else {
        control.debt.told(retired, &control.session, tenure);
    }
}
