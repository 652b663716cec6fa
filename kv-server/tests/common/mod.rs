//! A server of its own for each test, and a client that says what it is told to, also what no client should.
#![allow(dead_code, reason = "each test program uses its own part of this")]
#![allow(unreachable_pub, reason = "it is a module of each test program")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use kv_fabric::local::Local;
use kv_fabric::sim::{Sim, SimOptions};
use kv_fabric::verbs::Verbs;
use kv_fabric::{
    ControlConnection, ControlEvent, ControlOptions, DataConnection, Fabric, FabricError, Read, ReadStatus,
    Region, RemoteRef, Scatter,
};
use kv_proto::auth::{Role, Side, Transcript};
use kv_proto::control::{
    Answer, Bytes, DatasetChange, DirectoryRef, FRAME_MAX_BYTES, Refused, Request, SegmentRow, Status,
    decode_answer, encode_request,
};
use kv_proto::layout::{
    CONNECT_MAGIC, ConnectRequest, EXTENT_BYTES, Locator, PROTOCOL_VERSION, connect_kind,
};
use kv_server::control::keys::{self, Key};
use kv_server::control::{Handle, Keys, Options, Server};
use kv_server::store::StoreOptions;
use zerocopy::IntoBytes;

/// Longest that anything may take before a test fails.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A fabric that tests can make.
pub trait TestFabric: Fabric {
    /// By how much everything takes longer than over shared memory, leases included.
    const SLOWER: u64 = 1;
    /// An address to listen on, alone.
    fn address(folder: &Path) -> String;
    /// The server's end.
    fn server(address: &str) -> Arc<Self>;
    /// The client's end.
    fn client(server: &Arc<Self>, address: &str) -> Arc<Self>;
}

impl TestFabric for Local {
    fn address(folder: &Path) -> String {
        folder.join("socket").to_str().unwrap().to_owned()
    }

    fn server(_address: &str) -> Arc<Self> {
        Arc::new(Self::new().unwrap())
    }

    fn client(_server: &Arc<Self>, address: &str) -> Arc<Self> {
        Self::server(address)
    }
}

impl TestFabric for Sim {
    fn address(_folder: &Path) -> String {
        "server:7471".to_owned()
    }

    fn server(_address: &str) -> Arc<Self> {
        // No faults: what is asked here is what the server does, not what a network does to it.
        Arc::new(Self::new(SimOptions::default()))
    }

    fn client(server: &Arc<Self>, _address: &str) -> Arc<Self> {
        Arc::clone(server)
    }
}

impl TestFabric for Verbs {
    const SLOWER: u64 = 6;

    fn address(_folder: &Path) -> String {
        static PORT: AtomicU16 = AtomicU16::new(7600);
        let host =
            std::env::var("VKV_TEST_ADDR").expect("VKV_TEST_ADDR: the address of the device to test on");
        format!("{host}:{}", PORT.fetch_add(1, Ordering::Relaxed))
    }

    fn server(address: &str) -> Arc<Self> {
        Arc::new(Self::for_listener(address).unwrap())
    }

    fn client(_server: &Arc<Self>, address: &str) -> Arc<Self> {
        Arc::new(Self::for_peer(address).unwrap())
    }
}

/// A folder, keys and options.
pub struct Setup {
    pub folder: tempfile::TempDir,
    pub reader: Key,
    pub writer: Key,
    pub admin: Key,
    pub options: Options,
    pub store: StoreOptions,
}

impl Setup {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let key = |name: &str, role| keys::generate(name, role, vec!["*".to_owned()]).unwrap();
        let store = StoreOptions {
            data: folder.path().join("data"),
            memory_budget_bytes: 256 << 20,
            segment_bytes: 4 << 20,
            part_bytes: 1 << 20,
            gather_budget_bytes: 32 << 20,
        };
        Self {
            folder,
            reader: key("reader", Role::Read),
            writer: key("writer", Role::Write),
            admin: key("admin", Role::Admin),
            // Long, so that a test on a slow machine renews only where leases are what it is about.
            options: Options {
                lease_ms: 120_000,
                max_lag_ms: 240_000,
                ..Options::default()
            },
            store,
        }
    }

    pub fn keys(&self) -> Keys {
        Keys::new(vec![self.reader.clone(), self.writer.clone(), self.admin.clone()]).unwrap()
    }

    /// Writes the keys to a file, for the binary.
    pub fn key_file(&self) -> PathBuf {
        let path = self.folder.path().join("keys.toml");
        let text: String = [&self.reader, &self.writer, &self.admin]
            .map(keys::entry_text)
            .concat();
        std::fs::write(&path, text).unwrap();
        path
    }

    pub fn start<F: TestFabric>(self) -> Running<F> {
        let address = F::address(self.folder.path());
        let fabric = F::server(&address);
        let handle = Server::<F>::start(
            Arc::clone(&fabric),
            &address,
            self.store.clone(),
            self.keys(),
            self.options.clone(),
        )
        .unwrap();
        let address = handle.address().to_owned();
        Running {
            fabric: F::client(&fabric, &address),
            address,
            handle: Some(handle),
            setup: self,
        }
    }
}

/// A running server.
pub struct Running<F: Fabric> {
    pub handle: Option<Handle>,
    pub address: String,
    pub fabric: Arc<F>,
    pub setup: Setup,
}

impl<F: TestFabric> Running<F> {
    /// A connection that has said nothing yet.
    pub fn stranger(&self) -> Raw<F> {
        Raw::connect(&self.fabric, &self.address).unwrap()
    }

    /// A session.
    pub fn session(&self, key: &Key) -> Raw<F> {
        let mut raw = self.stranger();
        raw.begin(key, 1).unwrap();
        raw
    }

    /// A session of an admin, with a dataset made and opened.
    pub fn with_dataset(&self, name: &str) -> (Raw<F>, Opened) {
        let mut raw = self.session(&self.setup.admin);
        raw.create(name);
        let opened = raw.open(name);
        (raw, opened)
    }

    /// Figures of the server, asked by a session of its own.
    pub fn figure(&self, name: &str) -> u64 {
        self.session(&self.setup.reader).figure([0; 16], name)
    }
}

/// An open dataset.
#[derive(Debug, Clone)]
pub struct Opened {
    pub dataset: [u8; 16],
    pub retired: u64,
    pub directory: DirectoryRef,
}

/// A client's control connection, frame by frame.
pub struct Raw<F: Fabric> {
    pub fabric: Arc<F>,
    pub address: String,
    pub control: F::Control,
    /// Number of the next request.
    pub next: u64,
    pub session: u64,
    pub staging: RemoteRef,
    pub staging_len_bytes: u32,
    pub operation: u64,
    arrived: Vec<Vec<u8>>,
    written: Vec<u64>,
    over: bool,
}

pub fn connect_request(kind: u8, session: u64, token: [u8; 16]) -> ConnectRequest {
    ConnectRequest {
        magic: CONNECT_MAGIC,
        version: PROTOCOL_VERSION,
        kind,
        reserved: 0,
        session,
        token,
    }
}

pub fn hello(key_name: &str, client_id: u64, receives: u16, nonce: [u8; 32]) -> Request {
    Request::Hello {
        version_min: 1,
        version_max: 1,
        receives,
        client_id,
        nonce,
        key_name: Bytes::from(key_name.as_bytes()),
    }
}

/// Waits until `check` gives something.
pub fn eventually<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = check() {
            return found;
        }
        assert!(Instant::now() < deadline, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

impl<F: Fabric> Raw<F> {
    pub fn connect(fabric: &Arc<F>, address: &str) -> Result<Self, FabricError> {
        Self::connect_with(
            fabric,
            address,
            connect_request(connect_kind::CONTROL, 0, [0; 16]).as_bytes(),
        )
    }

    pub fn connect_with(fabric: &Arc<F>, address: &str, private: &[u8]) -> Result<Self, FabricError> {
        let options = ControlOptions {
            receives: 32,
            frame_bytes: FRAME_MAX_BYTES,
        };
        let control = fabric.connect_control(address, private, options, Instant::now() + PATIENCE)?;
        Ok(Self {
            fabric: Arc::clone(fabric),
            address: address.to_owned(),
            control,
            next: 1,
            session: 0,
            staging: RemoteRef::default(),
            staging_len_bytes: 0,
            operation: 1,
            arrived: Vec::new(),
            written: Vec::new(),
            over: false,
        })
    }

    /// Takes what came.
    pub fn pump(&mut self) {
        let mut events = Vec::new();
        while !self.over {
            match self.control.poll(&mut events) {
                Ok(()) if events.is_empty() => return,
                Ok(()) => {}
                Err(FabricError::Closed(_)) => self.over = true,
                Err(error) => panic!("{error}"),
            }
            for event in events.drain(..) {
                match event {
                    ControlEvent::Frame(frame) => self.arrived.push(frame),
                    ControlEvent::Written(number) => self.written.push(number),
                }
            }
        }
    }

    /// Sends bytes as they are. That the connection is over, or full, is found out by who waits for an answer.
    pub fn send_raw(&mut self, frame: &[u8]) {
        match self.control.send(frame) {
            Ok(()) | Err(FabricError::Closed(_) | FabricError::Busy(_)) => {}
            Err(error) => panic!("{error}"),
        }
    }

    /// Sends a request and returns its number.
    pub fn send(&mut self, request: &Request) -> u64 {
        let number = self.next;
        self.next += 1;
        let mut frame = Vec::new();
        encode_request(number, request, &mut frame).unwrap();
        self.send_raw(&frame);
        number
    }

    /// Waits for the answer to a request; `None` if the connection ended instead.
    pub fn answer(&mut self, number: u64) -> Option<Result<Answer, Refused>> {
        eventually("an answer, or the end of the connection", || {
            self.pump();
            let found = self
                .arrived
                .iter()
                .position(|frame| decode_answer(frame).unwrap().0.request == number);
            match found {
                Some(index) => {
                    let frame = self.arrived.remove(index);
                    Some(Some(decode_answer(&frame).unwrap().1))
                }
                None => self.over.then_some(None),
            }
        })
    }

    pub fn ask(&mut self, request: &Request) -> Result<Answer, Refused> {
        let number = self.send(request);
        self.answer(number)
            .expect("the connection ended without an answer")
    }

    /// The status that a request is refused with.
    pub fn refused(&mut self, request: &Request) -> Status {
        match self.ask(request) {
            Err(refused) => refused.status,
            Ok(answer) => panic!("{request:?} was answered {answer:?}"),
        }
    }

    /// Waits until the server ended the connection.
    pub fn wait_end(&mut self) {
        eventually("the end of the connection", || {
            self.pump();
            self.over.then_some(())
        });
    }

    pub fn is_over(&mut self) -> bool {
        self.pump();
        self.over
    }

    /// Whether nothing but the end came after the server was told something wrong.
    pub fn nothing_arrived(&mut self) -> bool {
        self.pump();
        self.arrived.is_empty()
    }

    /// HELLO and AUTH.
    pub fn begin(&mut self, key: &Key, client_id: u64) -> Result<(), Refused> {
        let nonce = [5; 32];
        let answer = self.ask(&hello(&key.name, client_id, 32, nonce))?;
        let Answer::Hello {
            version,
            role,
            epoch,
            nonce: server_nonce,
            ..
        } = answer
        else {
            panic!("{answer:?}");
        };
        let transcript = Transcript {
            version,
            role: Role::from_wire(role).unwrap(),
            client_id,
            epoch,
            client_nonce: nonce,
            server_nonce,
        };
        let proof = transcript.proof(Side::Client, &key.secret);
        let answer = self.ask(&Request::Auth { proof })?;
        let Answer::Auth {
            proof,
            session,
            staging,
            staging_len_bytes,
            ..
        } = answer
        else {
            panic!("{answer:?}");
        };
        assert!(
            transcript.verify(Side::Server, &key.secret, &proof),
            "the server proved the key"
        );
        self.session = session;
        self.staging = RemoteRef {
            address: staging.address,
            rkey: staging.rkey,
        };
        self.staging_len_bytes = staging_len_bytes;
        Ok(())
    }

    pub fn create(&mut self, name: &str) -> [u8; 16] {
        let name = Bytes::from(name.as_bytes());
        match self.ask(&Request::Create { name }) {
            Ok(Answer::Create { dataset }) => dataset,
            other => panic!("{other:?}"),
        }
    }

    pub fn open(&mut self, name: &str) -> Opened {
        let name = Bytes::from(name.as_bytes());
        match self.ask(&Request::Open { name }) {
            Ok(Answer::Open {
                dataset,
                retired,
                directory,
                ..
            }) => Opened {
                dataset,
                retired,
                directory,
            },
            other => panic!("{other:?}"),
        }
    }

    pub fn tokens(&mut self, dataset: [u8; 16], count: u16) -> Vec<[u8; 16]> {
        match self.ask(&Request::Tokens { dataset, count }) {
            Ok(Answer::Tokens { tokens }) => tokens,
            other => panic!("{other:?}"),
        }
    }

    pub fn renew(&mut self, retired: u64) -> (u64, Vec<DatasetChange>) {
        match self.ask(&Request::Renew { retired }) {
            Ok(Answer::Renew { retired, changes, .. }) => (retired, changes),
            other => panic!("{other:?}"),
        }
    }

    pub fn rows(&mut self, dataset: [u8; 16]) -> Vec<SegmentRow> {
        let mut all = Vec::new();
        let mut first = 0;
        loop {
            match self.ask(&Request::Table { dataset, first }) {
                Ok(Answer::Table { rows, next }) => {
                    all.extend(rows);
                    if next == 0 {
                        return all;
                    }
                    first = next;
                }
                other => panic!("{other:?}"),
            }
        }
    }

    pub fn figure(&mut self, dataset: [u8; 16], name: &str) -> u64 {
        match self.ask(&Request::Stat { dataset }) {
            Ok(Answer::Stat { items }) => {
                let found = items.iter().find(|item| item.name.0 == name.as_bytes());
                found
                    .unwrap_or_else(|| panic!("{name} is not in {items:?}"))
                    .value
            }
            other => panic!("{other:?}"),
        }
    }

    /// The next operation number.
    pub fn operation(&mut self) -> u64 {
        let operation = self.operation;
        self.operation += 1;
        operation
    }

    /// ALLOC: offset and length of the window.
    pub fn alloc(
        &mut self,
        dataset: [u8; 16],
        operation: u64,
        key: &[u8],
        len: usize,
    ) -> Result<(u32, u32), Refused> {
        let request = Request::Alloc {
            dataset,
            operation,
            value_len_bytes: len as u64,
            key: Bytes::from(key),
        };
        match self.ask(&request)? {
            Answer::Alloc {
                done: 0,
                window_offset,
                window_len_bytes,
                ..
            } => Ok((window_offset, window_len_bytes)),
            other => panic!("{other:?}"),
        }
    }

    /// WRITEs bytes to staging memory and waits until they are there.
    pub fn write(&mut self, offset: u32, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let region = self.fabric.allocate(bytes.len()).unwrap();
        region.memory().write(0, bytes);
        let number = self.next;
        self.next += 1;
        let to = self.staging.offset(u64::from(offset));
        self.control.write(number, &region, 0, bytes.len(), to).unwrap();
        eventually("the end of a WRITE", || {
            self.pump();
            assert!(!self.over, "the connection ended before the WRITE");
            self.written.contains(&number).then_some(())
        });
    }

    /// Puts a value, window by window.
    pub fn put(&mut self, dataset: [u8; 16], key: &[u8], value: &[u8]) -> Result<(u64, Locator), Refused> {
        let operation = self.operation();
        self.put_as(dataset, operation, key, value)
    }

    pub fn put_as(
        &mut self,
        dataset: [u8; 16],
        operation: u64,
        key: &[u8],
        value: &[u8],
    ) -> Result<(u64, Locator), Refused> {
        let (offset, window) = self.alloc(dataset, operation, key, value.len())?;
        let mut rest = value;
        while rest.len() > window as usize {
            let (now, later) = rest.split_at(window as usize);
            self.write(offset, now);
            self.ask(&Request::Append {
                operation,
                len_bytes: window,
            })?;
            rest = later;
        }
        self.write(offset, rest);
        let commit = Request::Commit {
            operation,
            len_bytes: rest.len() as u32,
            value_crc: kv_proto::crc::crc32c(value),
        };
        match self.ask(&commit)? {
            Answer::Commit { sequence, locator } => Ok((sequence, locator)),
            other => panic!("{other:?}"),
        }
    }

    pub fn delete(&mut self, dataset: [u8; 16], key: &[u8]) -> Result<bool, Refused> {
        let operation = self.operation();
        let key = Bytes::from(key);
        match self.ask(&Request::Delete {
            dataset,
            operation,
            key,
        })? {
            Answer::Delete { existed, .. } => Ok(existed == 1),
            other => panic!("{other:?}"),
        }
    }

    /// A data connection, by token.
    pub fn data(&mut self, token: [u8; 16]) -> Result<F::Data, FabricError> {
        let request = connect_request(connect_kind::DATA, self.session, token);
        self.fabric
            .connect_data(&self.address, request.as_bytes(), 16, Instant::now() + PATIENCE)
    }

    /// READs `len` bytes from `from`.
    pub fn read(&self, data: &mut F::Data, from: RemoteRef, len: usize) -> Result<Vec<u8>, ReadStatus> {
        let region = self.fabric.allocate(len).unwrap();
        let to = [Scatter {
            region: &region,
            offset: 0,
            len,
        }];
        let read = Read {
            number: 7,
            from,
            to: &to,
            signaled: true,
        };
        if data.post(&[read]).is_err() {
            return Err(ReadStatus::Flushed);
        }
        let mut completions = Vec::new();
        eventually("the end of a READ", || {
            // Waiting is what notices that the connection is over.
            data.wait(Instant::now() + Duration::from_millis(20)).unwrap();
            data.poll(&mut completions).unwrap();
            (!completions.is_empty()).then_some(())
        });
        match completions[0].status {
            ReadStatus::Success => {
                let mut bytes = vec![0; len];
                region.memory().read(0, &mut bytes);
                Ok(bytes)
            }
            status => Err(status),
        }
    }

    /// Where a record lies, by the table as it is now.
    pub fn place(&mut self, dataset: [u8; 16], locator: &Locator) -> RemoteRef {
        let rows = self.rows(dataset);
        let row = rows.iter().find(|row| row.segment == locator.segment).unwrap();
        let extent = &row.extents[(locator.offset_bytes() / EXTENT_BYTES) as usize];
        let from = RemoteRef {
            address: extent.address,
            rkey: extent.rkey,
        };
        from.offset(locator.offset_bytes() % EXTENT_BYTES)
    }

    /// READs the value of a locator.
    pub fn get(
        &mut self,
        data: &mut F::Data,
        dataset: [u8; 16],
        locator: &Locator,
    ) -> Result<Vec<u8>, ReadStatus> {
        let from = self.place(dataset, locator);
        let record = self.read(data, from, locator.wire_len_bytes() as usize)?;
        Ok(record[locator.prefix_len_bytes() as usize..].to_vec())
    }
}
