//! The fabrics that tests run over, the server's and the client's.
#![allow(unreachable_pub, reason = "it is a module of each test program")]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use kv_fabric::Fabric;
use kv_fabric::local::Local;
use kv_fabric::sim::{Sim, SimOptions};
use kv_fabric::verbs::Verbs;

/// A fabric that tests can make.
pub trait TestFabric: Fabric + Sized {
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
        let host = std::env::var("VKV_TEST_ADDR")
            .expect("VKV_TEST_ADDR names no address: run inside soft-roce-ci/run");
        format!("{host}:{}", PORT.fetch_add(1, Ordering::Relaxed))
    }

    fn server(address: &str) -> Arc<Self> {
        Arc::new(Self::for_listener(address).unwrap())
    }

    fn client(_server: &Arc<Self>, address: &str) -> Arc<Self> {
        Arc::new(Self::for_peer(address).unwrap())
    }
}
