//! The networks that a campaign runs over.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kv_fabric::local::Local;
use kv_fabric::sim::{Sim, SimFaults, SimInjected, SimOptions};
use kv_fabric::verbs::Verbs;
use kv_fabric::{Fabric, FabricError};

use super::Network;

/// A network under fire: the server's end, and how its clients get theirs.
pub(super) struct Ends {
    network: Network,
    pub(super) server: Arc<dyn Fabric>,
    /// The simulated network, where it is one.
    sim: Option<Arc<Sim>>,
}

/// What goes wrong on a simulated network with leases of this length. Most READs go well, so that there are many.
fn faults(lease: Duration) -> SimFaults {
    SimFaults {
        read_delay: 0.00002,
        read_delay_max: lease * 5,
        torn_read: 0.003,
        torn_pause_max: Duration::from_micros(400),
        reorder: 0.05,
        read_error: 0.000_001,
        disconnect: 0.000_01,
        frame_delay: 0.0002,
        frame_delay_max: lease * 2,
        late_completion: 0.00002,
        late_completion_max: lease * 3,
        ..SimFaults::default()
    }
}

impl Ends {
    pub(super) fn new(
        network: Network,
        seed: u64,
        address: &str,
        lease: Duration,
    ) -> Result<Self, FabricError> {
        let sim = || {
            let faults = faults(lease);
            Arc::new(match network {
                Network::SimUnfenced => Sim::unfenced(SimOptions { seed, faults }),
                _ => Sim::new(SimOptions { seed, faults }),
            })
        };
        let (server, sim): (Arc<dyn Fabric>, _) = match network {
            Network::Sim | Network::SimUnfenced => {
                let sim = sim();
                (sim.clone(), Some(sim))
            }
            Network::Local => (Arc::new(Local::new()?), None),
            Network::Verbs => (Arc::new(Verbs::for_listener(address)?), None),
        };
        Ok(Self { network, server, sim })
    }

    /// A client's end, of the server at `address`.
    pub(super) fn client(&self, address: &str) -> Result<Arc<dyn Fabric>, FabricError> {
        Ok(match self.network {
            Network::Sim | Network::SimUnfenced => self.server.clone(),
            // Mappings are a process's own.
            Network::Local => Arc::new(Local::new()?),
            Network::Verbs => Arc::new(Verbs::for_peer(address)?),
        })
    }

    /// What a simulated network did.
    pub(super) fn injected(&self) -> Option<SimInjected> {
        self.sim.as_ref().map(|sim| sim.injected())
    }
}

/// Where a server listens unless told otherwise.
pub(super) fn address(network: Network, folder: &Path) -> Option<String> {
    match network {
        Network::Sim | Network::SimUnfenced => Some("server:7471".to_owned()),
        Network::Local => folder.join("socket").to_str().map(str::to_owned),
        Network::Verbs => None,
    }
}
