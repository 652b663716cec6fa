//! The sessions of this process: one for each server and key, whoever connects, so that one lease is renewed, one table
//! of segments kept and one directory read for all of its clients and threads.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use kv_fabric::Fabric;

use crate::clock::Deadline;
use crate::server::SessionInner;
use crate::{ClientError, ClientOptions};

/// What makes a session another one. A child that was forked begins its own.
#[derive(PartialEq, Eq, Hash)]
struct Name {
    process: u32,
    fabric: TypeId,
    address: String,
    key: String,
    secret: Vec<u8>,
    client_id: Option<u64>,
}

/// Held by the one that begins it.
type Place<F> = Mutex<Weak<SessionInner<F>>>;
type Places = Mutex<HashMap<Name, Arc<dyn Any + Send + Sync>>>;

fn place<F: Fabric>(address: &str, options: &ClientOptions) -> Arc<Place<F>> {
    static PLACES: OnceLock<Places> = OnceLock::new();
    let name = Name {
        process: std::process::id(),
        fabric: TypeId::of::<F>(),
        address: address.to_owned(),
        key: options.key.name.clone(),
        secret: options.key.secret().to_vec(),
        client_id: options.client_id,
    };
    let places = PLACES.get_or_init(Places::default);
    let mut places = places.lock().unwrap_or_else(PoisonError::into_inner);
    // Those that nobody connects by and whose session is over.
    places.retain(|other, place| *other == name || Arc::strong_count(place) > 1 || is_live::<F>(place));
    let fresh = || Arc::new(Place::<F>::default()) as Arc<dyn Any + Send + Sync>;
    let place = Arc::clone(places.entry(name).or_insert_with(fresh));
    // The name says of which fabric it is.
    place.downcast().unwrap_or_default()
}

/// Whether a place of fabric `F` has a session; one of another fabric is left alone.
fn is_live<F: Fabric>(place: &Arc<dyn Any + Send + Sync>) -> bool {
    place.downcast_ref::<Place<F>>().is_none_or(|place| {
        let session = place.lock().unwrap_or_else(PoisonError::into_inner);
        session.strong_count() > 0
    })
}

/// The session of this process, begun with `begin` if there is none.
pub(crate) fn shared<F: Fabric>(
    address: &str,
    options: &ClientOptions,
    begin: impl FnOnce() -> Result<SessionInner<F>, ClientError>,
) -> Result<Arc<SessionInner<F>>, ClientError> {
    // Who gives the number of an operation means to be the only one that gives any.
    if options.first_operation.is_some() {
        return begin().map(Arc::new);
    }
    let place = place::<F>(address, options);
    let mut known = place.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(session) = known.upgrade() {
        drop(known);
        // Whoever connects learns whether the server is there.
        session
            .handle
            .shared
            .ensure(Deadline::after(options.connect_timeout), true)?;
        return Ok(session);
    }
    let session = Arc::new(begin()?);
    *known = Arc::downgrade(&session);
    Ok(session)
}
