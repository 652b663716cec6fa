//! The sessions of this process: one for each server and key, whoever connects, so that one lease is renewed, one table
//! of segments kept and one directory read for all of its clients and threads.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use crate::clock::Deadline;
use crate::server::SessionInner;
use crate::{ClientError, ClientOptions};

/// What makes a session another one. A child that was forked begins its own.
#[derive(PartialEq, Eq, Hash)]
struct Name {
    process: u32,
    scheme: &'static str,
    address: String,
    key: String,
    secret: Vec<u8>,
    client_id: Option<u64>,
}

/// Where a session is, or is being begun.
struct Place {
    known: Mutex<Known>,
    changed: Condvar,
}

struct Known {
    session: Weak<SessionInner>,
    /// Whether somebody is beginning it: the others wait for that, and share what comes of it.
    beginning: bool,
    /// Attempts that failed, and why the last one did.
    failures: u64,
    failure: Option<ClientError>,
}

type Places = Mutex<HashMap<Name, Arc<Place>>>;

impl Default for Place {
    fn default() -> Self {
        Self {
            known: Mutex::new(Known {
                session: Weak::new(),
                beginning: false,
                failures: 0,
                failure: None,
            }),
            changed: Condvar::new(),
        }
    }
}

impl Place {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An attempt; if it unwinds, the next one may begin.
struct Attempt<'p>(&'p Place);

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        self.0.known().beginning = false;
        self.0.changed.notify_all();
    }
}

fn place(scheme: &'static str, address: &str, options: &ClientOptions) -> Arc<Place> {
    static PLACES: OnceLock<Places> = OnceLock::new();
    let name = Name {
        process: std::process::id(),
        scheme,
        address: address.to_owned(),
        key: options.key.name.clone(),
        secret: options.key.secret().to_vec(),
        client_id: options.client_id,
    };
    let places = PLACES.get_or_init(Places::default);
    let mut places = places.lock().unwrap_or_else(PoisonError::into_inner);
    // Those that nobody connects by and whose session is over.
    places.retain(|other, place| {
        *other == name || Arc::strong_count(place) > 1 || place.known().session.strong_count() > 0
    });
    Arc::clone(places.entry(name).or_default())
}

/// The session of this process, begun with `begin` if there is none; that takes no longer than until the deadline that it is
/// given. Who comes while another begins it waits for that, no longer than `connect_timeout`, and fails with it.
pub(crate) fn shared(
    scheme: &'static str,
    address: &str,
    options: &ClientOptions,
    begin: impl FnOnce(Deadline) -> Result<SessionInner, ClientError>,
) -> Result<Arc<SessionInner>, ClientError> {
    let deadline = Deadline::after(options.connect_timeout);
    // Who gives the number of an operation means to be the only one that gives any.
    if options.first_operation.is_some() {
        return begin(deadline).map(Arc::new);
    }
    let place = place(scheme, address, options);
    let mut known = place.known();
    let failures = known.failures;
    loop {
        if let Some(session) = known.session.upgrade() {
            drop(known);
            // Whoever connects learns whether the server is there.
            session.handle.shared.ensure(deadline, true)?;
            return Ok(session);
        }
        let left = deadline.left();
        if known.failures > failures || (known.beginning && left.is_zero()) {
            let nobody_is_done = || ClientError::Timeout {
                what: format!("session with {address}"),
                after: options.connect_timeout,
                last: "no answer".to_owned(),
            };
            return Err(known.failure.clone().unwrap_or_else(nobody_is_done));
        }
        if !known.beginning {
            break;
        }
        let woken = place.changed.wait_timeout(known, left);
        known = woken.unwrap_or_else(PoisonError::into_inner).0;
    }
    known.beginning = true;
    drop(known);
    let attempt = Attempt(&place);
    let begun = begin(deadline);
    let mut known = place.known();
    let begun = match begun {
        Ok(session) => {
            let session = Arc::new(session);
            known.session = Arc::downgrade(&session);
            Ok(session)
        }
        Err(error) => {
            known.failures += 1;
            known.failure = Some(error.clone());
            Err(error)
        }
    };
    drop(known);
    drop(attempt);
    begun
}
