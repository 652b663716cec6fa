//! The networks that a campaign runs over.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kv_fabric::FabricError;
use kv_fabric::local::Local;
use kv_fabric::sim::{Sim, SimFaults, SimInjected, SimOptions};
use kv_fabric::verbs::Verbs;
use kv_server::control::Served;

use super::Network;

/// A network under fire.
pub(super) trait FireFabric: Served {
    /// The server's end.
    fn server(network: Network, seed: u64, address: &str, lease: Duration) -> Result<Arc<Self>, FabricError>;

    /// A client's end.
    fn client(server: &Arc<Self>, address: &str) -> Result<Arc<Self>, FabricError>;

    /// Where to listen unless told otherwise.
    fn address(folder: &Path) -> Option<String>;

    /// Has the next READs of a connection be late.
    fn delay_next(_data: &mut Self::Data, _longest: Duration) {}

    /// What a simulated network did.
    fn injected(&self) -> Option<SimInjected> {
        None
    }
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

impl FireFabric for Sim {
    fn server(
        network: Network,
        seed: u64,
        _address: &str,
        lease: Duration,
    ) -> Result<Arc<Self>, FabricError> {
        let faults = faults(lease);
        let options = SimOptions { seed, faults };
        let unfenced = network == Network::SimUnfenced;
        Ok(Arc::new(if unfenced {
            Self::unfenced(options)
        } else {
            Self::new(options)
        }))
    }

    fn client(server: &Arc<Self>, _address: &str) -> Result<Arc<Self>, FabricError> {
        Ok(Arc::clone(server))
    }

    fn address(_folder: &Path) -> Option<String> {
        Some("server:7471".to_owned())
    }

    fn delay_next(data: &mut Self::Data, longest: Duration) {
        data.delay_next(longest);
    }

    fn injected(&self) -> Option<SimInjected> {
        Some(Self::injected(self))
    }
}

impl FireFabric for Local {
    fn server(
        _network: Network,
        _seed: u64,
        _address: &str,
        _lease: Duration,
    ) -> Result<Arc<Self>, FabricError> {
        Ok(Arc::new(Self::new()?))
    }

    fn client(_server: &Arc<Self>, _address: &str) -> Result<Arc<Self>, FabricError> {
        // Mappings are a process's own.
        Ok(Arc::new(Self::new()?))
    }

    fn address(folder: &Path) -> Option<String> {
        folder.join("socket").to_str().map(str::to_owned)
    }
}

impl FireFabric for Verbs {
    fn server(
        _network: Network,
        _seed: u64,
        address: &str,
        _lease: Duration,
    ) -> Result<Arc<Self>, FabricError> {
        Ok(Arc::new(Self::for_listener(address)?))
    }

    fn client(_server: &Arc<Self>, address: &str) -> Result<Arc<Self>, FabricError> {
        Ok(Arc::new(Self::for_peer(address)?))
    }

    fn address(_folder: &Path) -> Option<String> {
        None
    }
}
