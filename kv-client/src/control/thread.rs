//! The control thread: establishes the session, serves it, and begins again when it is lost and wanted.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use kv_fabric::{ControlConnection, ControlEvent, ControlOptions, FabricError};
use kv_proto::control::{FRAME_MAX_BYTES, RECEIVES_DEFAULT, Refused, Status};
use kv_proto::layout::{CONNECT_MAGIC, ConnectRequest, PROTOCOL_VERSION, connect_kind};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use zerocopy::IntoBytes;

use super::serving::Serving;
use super::{Failure, Shared, Up, lock, random, reply_lost};
use crate::ClientError;
use crate::backoff::Backoff;
use crate::clock::{Deadline, boot_ns};
use crate::session::{Event, Greeting, Session, SessionError};

/// First and longest wait between attempts at a session.
const ATTEMPT_WAITS: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(500));

/// The first attempt ends at `first`, for somebody waits for it; where it fails, the thread ends.
pub(super) fn spawn(shared: Arc<Shared>, first: Deadline) -> Result<JoinHandle<()>, ClientError> {
    std::thread::Builder::new()
        .name("kv-session".to_owned())
        .spawn(move || run(&shared, first))
        .map_err(|source| ClientError::System {
            call: "spawn the control thread",
            source: Arc::new(source),
        })
}

fn run(shared: &Shared, first: Deadline) {
    let (mut generation, mut first) = (0, Some(first));
    let mut backoff = Backoff::new(ATTEMPT_WAITS.0, ATTEMPT_WAITS.1);
    while wanted(shared) {
        let begins = first.take();
        let deadline = begins.unwrap_or_else(|| Deadline::after(shared.options.connect_timeout));
        match establish(shared, deadline) {
            Ok((connection, session, info)) => {
                backoff = Backoff::new(ATTEMPT_WAITS.0, ATTEMPT_WAITS.1);
                generation += 1;
                let up = Arc::new(Up { generation, info });
                Serving::new(shared, connection, session, up).run();
            }
            Err(failure) => {
                tracing::debug!(address = shared.address, failure = %failure.error, "no session");
                let mut state = lock(&shared.state);
                state.failures += 1;
                state.failure = Some(failure);
                shared.changed.notify_all();
                drop(state);
                if begins.is_some() {
                    break;
                }
                pause(shared, backoff.next());
            }
        }
    }
    fail_inbox(shared);
}

/// Sleeps until a session is wanted; false once the session is to close.
fn wanted(shared: &Shared) -> bool {
    loop {
        {
            let state = lock(&shared.state);
            if state.closing {
                return false;
            }
            if state.waiters > 0 {
                return true;
            }
        }
        fail_inbox(shared);
        sleep(shared, None, u64::MAX);
    }
}

fn pause(shared: &Shared, span: Duration) {
    let until = Deadline::after(span);
    while !until.is_over() && !lock(&shared.state).closing {
        sleep(
            shared,
            None,
            u64::try_from(until.left().as_nanos()).unwrap_or(u64::MAX),
        );
        fail_inbox(shared);
    }
}

fn fail_inbox(shared: &Shared) {
    let commands = std::mem::take(&mut *lock(&shared.inbox));
    commands.into_iter().for_each(reply_lost);
}

/// Sleeps until the bell rings, `fd` is readable, or `left_ns` have passed.
pub(super) fn sleep(shared: &Shared, fd: Option<rustix::fd::BorrowedFd<'_>>, left_ns: u64) {
    let wake = PollFd::new(&shared.wake, PollFlags::IN);
    let timeout = (left_ns != u64::MAX).then_some(Timespec {
        tv_sec: (left_ns / 1_000_000_000) as i64,
        tv_nsec: (left_ns % 1_000_000_000) as _,
    });
    // An error (EINTR) is as good as waking: the caller looks and sleeps again.
    let _ = match fd {
        Some(fd) => poll(
            &mut [wake, PollFd::from_borrowed_fd(fd, PollFlags::IN)],
            timeout.as_ref(),
        ),
        None => poll(&mut [wake], timeout.as_ref()),
    };
    let mut count = [0; 8];
    let _ = rustix::io::read(&shared.wake, &mut count);
}

fn failure(error: ClientError) -> Failure {
    use Status::{AuthFailed, BadFrame, Forbidden, Version};
    let definite = match &error {
        ClientError::Refused { status, .. } => {
            matches!(status, AuthFailed | Forbidden | Version | BadFrame)
        }
        ClientError::Fabric(error) => matches!(
            **error,
            FabricError::Unavailable { .. } | FabricError::Unsupported(_)
        ),
        ClientError::Protocol { .. } => true,
        _ => false,
    };
    Failure { error, definite }
}

fn session_error(shared: &Shared, error: SessionError) -> ClientError {
    match error {
        SessionError::Refused(Refused { status, text }) => ClientError::Refused {
            what: format!("session with {} as `{}`", shared.address, shared.options.key.name),
            text,
            status,
        },
        other => ClientError::Protocol {
            peer: shared.address.clone(),
            why: other.to_string(),
        },
    }
}

type Begun = (Box<dyn ControlConnection>, Session, crate::session::Established);

fn establish(shared: &Shared, deadline: Deadline) -> Result<Begun, Failure> {
    let request = ConnectRequest {
        magic: CONNECT_MAGIC,
        version: PROTOCOL_VERSION,
        kind: connect_kind::CONTROL,
        reserved: 0,
        session: 0,
        token: [0; 16],
    };
    let options = ControlOptions {
        receives: RECEIVES_DEFAULT,
        frame_bytes: FRAME_MAX_BYTES,
    };
    let fabric = |error: FabricError| failure(error.into());
    let mut connection = shared
        .fabric
        .connect_control(&shared.address, request.as_bytes(), options, deadline.instant())
        .map_err(fabric)?;
    let mut nonce = [0; 32];
    random(&mut nonce).map_err(failure)?;
    let greeting = Greeting {
        key: shared.options.key.clone(),
        client_id: shared.client_id,
        nonce,
        receives: RECEIVES_DEFAULT,
    };
    let broken = |error| failure(session_error(shared, error));
    let (mut session, hello) = Session::begin(greeting, boot_ns()).map_err(broken)?;
    connection.send(&hello).map_err(fabric)?;
    let mut events = Vec::new();
    loop {
        connection.poll(&mut events).map_err(fabric)?;
        let nothing = events.is_empty();
        for event in events.drain(..) {
            let ControlEvent::Frame(frame) = event else {
                continue;
            };
            match session.receive(&frame, boot_ns()).map_err(broken)? {
                Event::Send(frame) => connection.send(&frame).map_err(fabric)?,
                Event::Up(info) => return Ok((connection, session, info)),
                _ => return Err(broken(SessionError::Protocol("an answer out of order"))),
            }
        }
        if deadline.is_over() || lock(&shared.state).closing {
            return Err(failure(ClientError::Timeout {
                what: format!("session with {}", shared.address),
                after: shared.options.connect_timeout,
                last: "the server accepted the connection but did not answer".to_owned(),
            }));
        }
        if nothing {
            let left = u64::try_from(deadline.left().as_nanos()).unwrap_or(u64::MAX);
            sleep(shared, Some(connection.fd()), left);
        }
    }
}
