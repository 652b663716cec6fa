//! Who connects, and how a session ends.

use std::collections::BTreeMap;
use std::sync::Arc;

use kv_fabric::{ConnectionId, FabricError, RequestId, Staging};
use kv_proto::auth::Role;
use kv_proto::control::{Answer, RemoteAddress, Status};
use kv_proto::layout::{CONNECT_MAGIC, ConnectRequest, PROTOCOL_VERSION, connect_kind};
use zerocopy::FromBytes;

use super::clock::BootMs;
use super::leases::DatasetId;
use super::run::Control;
use super::session::{Refusal, Session};
use super::undestroyed::Kept;
use super::writes::OpenPut;
use crate::store::{Charge, Dataset};

/// What is refused to whoever shows a token that is not good, whatever is wrong with it.
const TOKEN_REFUSED: &str = "the token is not good (any more): ask for another";

/// One control connection and its session.
pub(super) struct Peer {
    pub(super) session: Session,
    /// Number of the session, once the key was proven.
    pub(super) number: u64,
    /// Who, for people.
    pub(super) name: String,
    /// Where it comes from, where that is known.
    origin: String,
    /// What its frames take of the memory budget.
    memory: Charge,
    /// When it must have authenticated.
    handshake_ends: BootMs,
    /// Staging memory, and what it takes of the memory budget.
    pub(super) staging: Option<(Arc<dyn Staging>, Charge)>,
    /// What it has open.
    pub(super) open: BTreeMap<DatasetId, Arc<Dataset>>,
    /// Values that are arriving, by operation.
    pub(super) puts: BTreeMap<u64, OpenPut>,
    /// Its data connections.
    pub(super) data_count: usize,
}

impl Peer {
    /// When it is to be ended unless it says something.
    pub(super) fn deadline(&self, control: &Control) -> BootMs {
        if self.session.identity().is_none() {
            return self.handshake_ends;
        }
        let max_lag_ms = u64::from(control.options.max_lag_ms);
        self.session.holds.fence_at(&control.retirements, max_lag_ms).0
    }

    /// Gives one PUT up.
    pub(super) fn end_put(&mut self, operation: u64) {
        self.session.puts.end(operation);
        self.puts.remove(&operation);
    }
}

/// One data connection.
pub(super) struct DataConnection {
    /// Control connection of its session.
    control: ConnectionId,
    /// Keeps the domain until the connection was destroyed.
    dataset: Arc<Dataset>,
}

/// Why a session is over.
#[derive(Debug, Clone, Copy)]
pub(super) enum Ended {
    /// It took leave: what it held it holds no more.
    Bye,
    /// Its connection is over, or takes no frames.
    Closed(&'static str),
    /// It was told why, or is not to be told: its last frame may still be under way.
    Refused,
    /// It was fenced.
    Fenced(&'static str),
}

impl Control {
    /// Answers a connection request.
    pub(super) fn connect(&mut self, request: RequestId, private: &[u8], peer: String, origin: String) {
        let result = match parse_connect(private) {
            Ok(connect) if connect.kind == connect_kind::CONTROL => {
                self.connect_control(request, peer, origin)
            }
            Ok(connect) => self.connect_data(request, &connect),
            Err(reason) => Err(reason),
        };
        if let Err(reason) = result {
            self.counters.connections_refused += 1;
            self.endpoint.reject(request, reason);
        }
    }

    fn connect_control(
        &mut self,
        request: RequestId,
        name: String,
        origin: String,
    ) -> Result<(), &'static str> {
        let strangers = self.peers.len() - self.sessions.len();
        if strangers >= self.options.unauthenticated_max {
            return Err("too many connections wait for their keys to be proven: try again");
        }
        let its_own = |peer: &&Peer| peer.number == 0 && peer.origin == origin;
        if !origin.is_empty()
            && self.peers.values().filter(its_own).count() >= self.options.unauthenticated_per_origin_max
        {
            return Err("too many connections from there wait for their keys to be proven: try again");
        }
        if self.sessions_kept() >= self.options.sessions_max {
            return Err("the server has as many sessions as it takes");
        }
        let memory = self.connection_memory().map_err(
            |_| "the server's memory budget is reached: try again, or raise --memory-budget there",
        )?;
        match self.endpoint.accept_control(request, self.options.connection()) {
            Ok(id) => {
                let peer = Peer {
                    session: Session::new(),
                    number: 0,
                    name,
                    origin,
                    memory,
                    handshake_ends: BootMs::now() + self.options.handshake_timeout_ms,
                    staging: None,
                    open: BTreeMap::new(),
                    puts: BTreeMap::new(),
                    data_count: 0,
                };
                self.peers.insert(id, peer);
            }
            Err(error) => {
                // Where the request was still there to be refused, its peer was told why.
                self.counters.connections_refused += 1;
                self.not_accepted(&name, &error);
            }
        }
        Ok(())
    }

    fn connect_data(&mut self, request: RequestId, connect: &ConnectRequest) -> Result<(), &'static str> {
        let now = BootMs::now();
        let control = *self.sessions.get(&connect.session).ok_or(TOKEN_REFUSED)?;
        let peer = self.peers.get_mut(&control).ok_or(TOKEN_REFUSED)?;
        let dataset = peer
            .session
            .tokens
            .redeem(&connect.token, now)
            .ok_or(TOKEN_REFUSED)?;
        let dataset = Arc::clone(peer.open.get(&dataset).ok_or(TOKEN_REFUSED)?);
        // Tokens are refused before that, but for those that others were given meanwhile.
        if self.data_connections_kept() >= self.options.data_connections_max {
            return Err("the server has as many data connections as it takes (--all-data-connections)");
        }
        if self.due(control, now) {
            return Err(TOKEN_REFUSED);
        }
        let id = match self.endpoint.accept_data(request, dataset.domain()) {
            Ok(id) => id,
            Err(error) => {
                self.counters.connections_refused += 1;
                let name = self.peers.get(&control).map_or("", |peer| peer.name.as_str());
                tracing::warn!(peer = name, %error, "cannot accept a data connection");
                return Ok(());
            }
        };
        self.data.insert(id, DataConnection { control, dataset });
        if let Some(peer) = self.peers.get_mut(&control) {
            peer.data_count += 1;
        }
        // Accepting takes time: the session may meanwhile be due to be fenced.
        if self.due(control, BootMs::now()) {
            self.end_data(id);
        }
        Ok(())
    }

    fn not_accepted(&self, peer: &str, error: &FabricError) {
        tracing::warn!(peer, %error, "cannot accept a connection");
    }

    /// Whether the session of a control connection is over or to be fenced.
    fn due(&self, control: ConnectionId, now: BootMs) -> bool {
        self.peers
            .get(&control)
            .is_none_or(|peer| peer.deadline(self) <= now)
    }

    /// A connection stands; the session of a data connection may have ended meanwhile.
    pub(super) fn established(&mut self, id: ConnectionId) {
        if let Some(data) = self.data.get(&id)
            && self.due(data.control, BootMs::now())
        {
            self.end_data(id);
        }
    }

    /// A connection is over.
    pub(super) fn closed(&mut self, id: ConnectionId, why: &str) {
        tracing::debug!(connection = id.0, why, "closed");
        if self.peers.contains_key(&id) {
            self.end(id, Ended::Closed("its connection is over"));
        } else if self.data.contains_key(&id) {
            self.end_data(id);
        } else {
            self.end_lingering(id);
        }
    }

    /// The last frame of a control connection had its time.
    pub(super) fn end_lingering(&mut self, id: ConnectionId) {
        if let Some((_, memory)) = self.lingering.remove(&id) {
            self.destroy(id, Kept::Control(memory));
        }
    }

    fn end_data(&mut self, id: ConnectionId) {
        let Some(data) = self.data.remove(&id) else {
            return;
        };
        let mut acked = 0;
        if let Some(peer) = self.peers.get_mut(&data.control) {
            peer.data_count -= 1;
            let hold = peer.session.holds.get(&data.dataset.id());
            acked = hold.map_or(0, |hold| hold.acked);
        }
        self.destroy(id, Kept::Data(data.dataset, acked));
    }

    /// Data connections, and what the device did not destroy.
    pub(super) fn data_connections_kept(&self) -> usize {
        self.data.len() + self.undestroyed.len()
    }

    /// Sessions, and what is left of those that ended.
    fn sessions_kept(&self) -> usize {
        self.sessions.len() + self.ghosts.len() + self.undestroyed.len()
    }

    /// The key was proven: grants the lease and staging memory, and answers AUTH.
    pub(super) fn ready(&mut self, id: ConnectionId, number: u64, proof: [u8; 32], now: BootMs) {
        let full = self.sessions_kept() >= self.options.sessions_max;
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        let mut staging = RemoteAddress { address: 0, rkey: 0 };
        let mut staging_len_bytes = 0;
        let writes = peer
            .session
            .identity()
            .is_some_and(|identity| identity.key.role >= Role::Write);
        if full {
            let refusal = Refusal::new(Status::Limit, "the server has as many sessions as it takes");
            self.refuse(id, number, AUTH_KIND, &refusal);
            return self.end(id, Ended::Refused);
        }
        let len_bytes = self.options.staging_bytes;
        if writes && let Ok(charge) = self.store.charge(len_bytes.into()) {
            match self.endpoint.grant_staging(id, len_bytes as usize) {
                Ok((remote, memory)) => {
                    (staging.address, staging.rkey) = (remote.address, remote.rkey);
                    staging_len_bytes = len_bytes;
                    peer.staging = Some((memory, charge));
                }
                Err(error) => {
                    tracing::warn!(peer = peer.name, %error, "no staging memory for a session");
                    let refusal = Refusal::new(Status::NoMemory, error.to_string());
                    self.refuse(id, number, AUTH_KIND, &refusal);
                    return self.end(id, Ended::Refused);
                }
            }
        }
        peer.number = self.next_session;
        self.next_session += 1;
        self.sessions.insert(peer.number, id);
        self.counters.authenticated += 1;
        peer.session.ready(now, staging_len_bytes, &self.options);
        if let Some(identity) = peer.session.identity() {
            tracing::debug!(
                peer = peer.name,
                session = peer.number,
                key = identity.key.name,
                "ready"
            );
        }
        let answer = Answer::Auth {
            proof,
            session: peer.number,
            lease_ms: self.options.lease_ms,
            max_lag_ms: self.options.max_lag_ms,
            data_connections: self.options.data_connections_per_session_max,
            staging,
            staging_len_bytes,
        };
        self.answer(id, number, &answer);
    }

    /// A frame broke a rule: the session is over.
    pub(super) fn violated(&mut self, id: ConnectionId, number: u64, kind: u8, refusal: Option<&Refusal>) {
        let why = refusal.map_or("a frame before its time", |refusal| refusal.text.as_ref());
        if let Some(peer) = self.peers.get(&id) {
            // Strangers do not fill the log.
            if peer.number == 0 {
                tracing::debug!(peer = peer.name, why, "connection refused");
            } else {
                tracing::info!(peer = peer.name, session = peer.number, why, "session ended");
            }
        }
        match refusal {
            Some(refusal) => {
                if refusal.status == Status::AuthFailed {
                    self.counters.auth_failed += 1;
                } else {
                    self.counters.violations += 1;
                }
                self.refuse(id, number, kind, refusal);
                self.end(id, Ended::Refused);
            }
            None => {
                self.counters.violations += 1;
                self.end(id, Ended::Closed("a frame before its time"));
            }
        }
    }

    /// Ends a session. Its tokens are void, its data connections destroyed; only then may what it held be released.
    pub(super) fn end(&mut self, id: ConnectionId, why: Ended) {
        if !self.peers.contains_key(&id) {
            return;
        }
        let data: Vec<ConnectionId> = self
            .data
            .iter()
            .filter(|(_, data)| data.control == id)
            .map(|(id, _)| *id)
            .collect();
        for connection in data {
            self.end_data(connection);
        }
        let Some(mut peer) = self.peers.remove(&id) else {
            return;
        };
        peer.session.end();
        self.sessions.remove(&peer.number);
        self.store.forget_loads(id.0);
        let linger = match why {
            Ended::Bye | Ended::Refused => self.lingering.len() < self.options.lingering_max,
            Ended::Closed(why) => {
                tracing::debug!(peer = peer.name, session = peer.number, why, "session over");
                false
            }
            Ended::Fenced(why) => {
                self.counters.fenced += 1;
                tracing::info!(peer = peer.name, session = peer.number, why, "session fenced");
                false
            }
        };
        if linger {
            let until = BootMs::now() + self.options.linger_ms;
            self.lingering.insert(id, (until, peer.memory));
        } else {
            self.destroy(id, Kept::Control(peer.memory));
        }
        let leave = matches!(why, Ended::Bye);
        self.ghosts.ended(&peer.session.holds, self.fences, leave);
        self.releases.touch();
    }

    /// Closes a dataset for a session: nothing of it can be read by it any more.
    pub(super) fn close_dataset(&mut self, id: ConnectionId, dataset: &DatasetId) {
        let data: Vec<ConnectionId> = self
            .data
            .iter()
            .filter(|(_, data)| data.control == id && data.dataset.id() == *dataset)
            .map(|(id, _)| *id)
            .collect();
        for connection in data {
            self.end_data(connection);
        }
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.session.tokens.void(dataset);
            for operation in peer.session.puts.end_dataset(dataset) {
                peer.puts.remove(&operation);
            }
            peer.session.holds.closed(dataset);
            peer.open.remove(dataset);
        }
        self.releases.touch();
    }

    /// Ends sessions whose time is over.
    pub(super) fn fence_due(&mut self, now: BootMs) {
        let max_lag_ms = u64::from(self.options.max_lag_ms);
        let due: Vec<(ConnectionId, Ended)> = self
            .peers
            .iter()
            .filter(|(_, peer)| peer.deadline(self) <= now)
            .map(|(id, peer)| {
                let why = if peer.session.identity().is_some() {
                    let (_, fence) = peer.session.holds.fence_at(&self.retirements, max_lag_ms);
                    Ended::Fenced(fence.text())
                } else {
                    Ended::Closed("it did not prove a key in time")
                };
                (*id, why)
            })
            .collect();
        for (id, why) in due {
            self.end(id, why);
        }
    }
}

const AUTH_KIND: u8 = 2;

/// What a connection request says.
fn parse_connect(private: &[u8]) -> Result<ConnectRequest, &'static str> {
    let (connect, _) = ConnectRequest::read_from_prefix(private)
        .map_err(|_| "this is a verbs-kv server: the request is short")?;
    if connect.magic != CONNECT_MAGIC || connect.reserved != 0 {
        return Err("this is a verbs-kv server: the request is not of its protocol");
    }
    if connect.version == 0 {
        return Err("there is no protocol version 0");
    }
    match connect.kind {
        connect_kind::CONTROL if connect.session == 0 && connect.token == [0; 16] => Ok(connect),
        connect_kind::DATA if connect.version == PROTOCOL_VERSION => Ok(connect),
        connect_kind::DATA => Err("the protocol version is not that of the session"),
        _ => Err("this is a verbs-kv server: the request is of no kind that it knows"),
    }
}
