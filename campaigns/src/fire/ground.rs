//! What a campaign stands on: a server in this process, sessions with it, and processes that can be stopped.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kv_client::{AccessKey, ClientOptions};
use kv_fabric::Fabric;
use kv_fabric::stop::{Stoppable, Stops};
use kv_proto::auth::Role;
use kv_server::control::keys::Key;
use kv_server::control::{Keys, Options, Server};
use kv_server::store::StoreOptions;

use super::fabrics::{self, Ends};
use super::{Args, PLACES, Plan, values, writer};
use campaigns::{Error, interrupt};

const SECRET: [u8; 32] = [7; 32];

/// A server in this process, and where it is.
pub(super) struct Ground {
    // In this order: the server ends before its folder goes.
    pub(super) _server: Server,
    pub(super) ends: Ends,
    pub(super) address: String,
    pub(super) folder: tempfile::TempDir,
}

pub(super) fn ground(args: &Args, plan: &Plan, seed: u64) -> Result<Ground, Error> {
    let memory = PathBuf::from("/dev/shm");
    let folder = interrupt::noted(match &args.data {
        Some(folder) => tempfile::tempdir_in(folder)?,
        None if memory.is_dir() => tempfile::tempdir_in(memory)?,
        None => tempfile::tempdir()?,
    });
    let address = match fabrics::address(args.fabric, folder.path()) {
        Some(address) => address,
        None => {
            let given = args.address.as_deref();
            let host = given.ok_or("--address names no address: run inside soft-roce-ci/run")?;
            if host.contains(':') {
                host.to_owned()
            } else {
                format!("{host}:7990")
            }
        }
    };
    let ends = Ends::new(args.fabric, seed, &address, plan.lease)?;
    let store = StoreOptions {
        data: folder.path().join("data"),
        memory_budget_bytes: plan.memory_bytes,
        segment_bytes: 1 << 20,
        part_bytes: 256 << 10,
        scrub_share: 0.0,
        gather_budget_bytes: 64 << 20,
        // Without rest: what it frees is what the run is for.
        compaction: kv_server::store::Compaction {
            dead_share: 0.3,
            disk_share: 1.0,
            // What is left at the end is to be nothing.
            disk_reserve_bytes: 0,
        },
    };
    let roles = [
        ("reader", Role::Read),
        ("writer", Role::Write),
        ("admin", Role::Admin),
    ];
    let key = |(name, role): (&str, Role)| Key {
        name: name.to_owned(),
        secret: SECRET,
        role,
        datasets: vec!["*".to_owned()],
    };
    let options = Options {
        lease_ms: plan.lease.as_millis() as u32,
        max_lag_ms: plan.lease.as_millis() as u32 * 4,
        staging_bytes: 1 << 20,
        ..Options::default()
    };
    let keys = Keys::new(roles.map(key).to_vec())?;
    let server = Server::start(ends.server.clone(), &address, store, keys, options)?;
    Ok(Ground {
        address: server.address().to_owned(),
        _server: server,
        ends,
        folder,
    })
}

/// A session, as one of the roles.
pub(super) fn session(
    fabric: Arc<dyn Fabric>,
    address: &str,
    role: &str,
) -> Result<kv_client::Server, Error> {
    let options = ClientOptions {
        deadline: Duration::from_secs(60),
        // A guest beside others takes its time: two seconds were once too few.
        connect_timeout: Duration::from_secs(30),
        read_buffer_bytes: 1 << 20,
        spin: Duration::from_micros(20),
        ..ClientOptions::new(AccessKey::new(role, SECRET))
    };
    Ok(kv_client::Server::connect_over(fabric, address, options)?)
}

/// Readers' processes and writers' sessions, made before anything moves.
pub(super) struct Cast {
    pub(super) readers: Vec<kv_client::Server>,
    pub(super) places: Vec<writer::Place>,
}

pub(super) fn cast(plan: &Plan, ground: &Ground, seed: u64) -> Result<(Cast, Vec<Stops>), Error> {
    let client = || ground.ends.client(&ground.address);
    let mut stops = Vec::new();
    let mut readers = Vec::new();
    for _ in 0..plan.readers {
        let process = Stoppable::new(client()?);
        stops.push(process.stops());
        readers.push(session(Arc::new(process), &ground.address, "reader")?);
    }
    let mut places = Vec::new();
    for place in 0..PLACES {
        let writers: Result<Vec<_>, Error> = (0..writer::WRITERS)
            .map(|_| session(client()?, &ground.address, "writer"))
            .collect();
        places.push(writer::Place {
            admin: session(client()?, &ground.address, "admin")?,
            writers: writers?,
            seed: values::mix(seed ^ place),
            standing: place + 1 == PLACES,
        });
    }
    Ok((Cast { readers, places }, stops))
}
