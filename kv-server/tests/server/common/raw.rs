//! A client that says what it is told to, frame by frame, also what no client should.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kv_fabric::{
    ControlConnection, ControlEvent, ControlOptions, DataConnection, Fabric, FabricError, Read, ReadStatus,
    RemoteRef, Scatter,
};
use kv_proto::auth::{Role, Side, Transcript};
use kv_proto::control::{
    Answer, Bytes, DatasetChange, DirectoryRef, FRAME_MAX_BYTES, Refused, Request, SegmentRow, Status,
    decode_answer, encode_request,
};
use kv_proto::layout::{
    CONNECT_MAGIC, ConnectRequest, EXTENT_BYTES, Locator, PROTOCOL_VERSION, connect_kind,
};
use kv_server::control::keys::Key;
use zerocopy::IntoBytes;

use super::{PATIENCE, eventually};

/// An open dataset.
#[derive(Debug, Clone)]
pub struct Opened {
    pub dataset: [u8; 16],
    pub retired: u64,
    pub directory: DirectoryRef,
}

/// A client's control connection, frame by frame.
pub struct Raw {
    pub fabric: Arc<dyn Fabric>,
    pub address: String,
    pub control: Box<dyn ControlConnection>,
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

impl Raw {
    pub fn connect(fabric: Arc<dyn Fabric>, address: &str) -> Result<Self, FabricError> {
        Self::connect_with(
            fabric,
            address,
            connect_request(connect_kind::CONTROL, 0, [0; 16]).as_bytes(),
        )
    }

    pub fn connect_with(fabric: Arc<dyn Fabric>, address: &str, private: &[u8]) -> Result<Self, FabricError> {
        let options = ControlOptions {
            receives: 32,
            frame_bytes: FRAME_MAX_BYTES,
        };
        let control = fabric.connect_control(address, private, options, Instant::now() + PATIENCE)?;
        Ok(Self {
            fabric,
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
    pub fn data(&mut self, token: [u8; 16]) -> Result<Box<dyn DataConnection>, FabricError> {
        let request = connect_request(connect_kind::DATA, self.session, token);
        self.fabric
            .connect_data(&self.address, request.as_bytes(), 16, Instant::now() + PATIENCE)
    }

    /// READs `len` bytes from `from`.
    pub fn read(
        &self,
        data: &mut dyn DataConnection,
        from: RemoteRef,
        len: usize,
    ) -> Result<Vec<u8>, ReadStatus> {
        let region = self.fabric.allocate(len).unwrap();
        let read = Read {
            number: 7,
            from,
            to: [Scatter::new(0, 0, len), Scatter::default()],
            signaled: true,
        };
        if data.post(&[read], &[&region]).is_err() {
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
        data: &mut dyn DataConnection,
        dataset: [u8; 16],
        locator: &Locator,
    ) -> Result<Vec<u8>, ReadStatus> {
        let from = self.place(dataset, locator);
        let record = self.read(data, from, locator.wire_len_bytes() as usize)?;
        Ok(record[locator.prefix_len_bytes() as usize..].to_vec())
    }
}
