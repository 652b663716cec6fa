//! Bare READs over `rdma-core-rs`: no key, no seam, nothing between the loop and the queue pair.
//!
//! # Safety
//! The two regions of a [`Pair`] are declared behind its queue pairs and so outlive them; the destination is looked at
//! only after the last READ to it has completed.
#![allow(unsafe_code)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use rdma_core_rs as rdma;

use crate::Error;
use crate::stats::median;

/// Longest wait for a completion.
const PATIENCE: Duration = Duration::from_secs(60);
const PORT: u8 = 1;

/// Two connected queue pairs of one process, and the memory between them.
pub(crate) struct Pair {
    // Dropped in this order: queue pairs before the memory that they reach.
    reader: rdma::QueuePair,
    _server: rdma::QueuePair,
    cq: Arc<rdma::CompletionQueue>,
    source: rdma::MemoryRegion<rdma::Buffer>,
    destination: rdma::MemoryRegion<rdma::Buffer>,
    expected: Vec<u8>,
    batch: rdma::WorkBatch,
}

impl Pair {
    /// Connects two queue pairs on `device` for READs of `size_bytes`, up to `depth` at a time.
    pub(crate) fn new(device: &str, size_bytes: usize, depth: usize) -> Result<Self, Error> {
        let context = rdma::Context::open(device)?;
        let pd = rdma::ProtectionDomain::new(&context)?;
        let cq = rdma::CompletionQueue::new(&context, depth as u32 + 1, None)?;
        let qp = || {
            rdma::QueuePair::builder(&pd, &cq, &cq)
                .max_send_wr(depth as u32)
                .max_recv_wr(1)
                .build()
        };
        let (reader, server) = (qp()?, qp()?);
        connect(&reader, &server, rdma::Access::NONE)?;
        connect(&server, &reader, rdma::Access::REMOTE_READ)?;
        let expected: Vec<u8> = (0..size_bytes).map(|n| (n * 31 + n / 256) as u8).collect();
        let memory = rdma::Buffer::new(size_bytes)?;
        memory.copy_in(0, &expected)?;
        let source = pd.register(memory, rdma::Access::REMOTE_READ)?;
        let destination = pd.register(rdma::Buffer::new(size_bytes)?, rdma::Access::LOCAL_WRITE)?;
        let batch = rdma::WorkBatch::with_capacity(depth, depth);
        Ok(Self {
            reader,
            _server: server,
            cq,
            source,
            destination,
            expected,
            batch,
        })
    }

    /// Median time from posting one READ to its completion, us.
    pub(crate) fn latency_us(&mut self, iterations: usize) -> Result<f64, Error> {
        let mut times = Vec::with_capacity(iterations);
        for _ in 0..iterations {
            let started = Instant::now();
            self.post(1)?;
            self.wait()?;
            times.push(started.elapsed().as_secs_f64() * 1e6);
        }
        self.check()?;
        median(&mut times).ok_or_else(|| "no READ was timed".into())
    }

    /// READs behind chains of `depth` with one completion each, MiB/s.
    pub(crate) fn bandwidth_mib_s(&mut self, iterations: usize, depth: usize) -> Result<f64, Error> {
        let chains = iterations.div_ceil(depth).max(1);
        let started = Instant::now();
        for _ in 0..chains {
            self.post(depth)?;
            self.wait()?;
        }
        let bytes = (chains * depth * self.expected.len()) as f64;
        let rate = bytes / (1 << 20) as f64 / started.elapsed().as_secs_f64();
        self.check()?;
        Ok(rate)
    }

    fn post(&mut self, count: usize) -> Result<(), Error> {
        let from = rdma::RemoteAddr {
            addr: self.source.addr(),
            rkey: self.source.rkey(),
        };
        let to = [self.destination.sge(0, self.expected.len())?];
        for number in 0..count {
            self.batch.read(number as u64, from, &to, rdma::SendFlags::NONE);
        }
        self.batch.signal_last();
        // SAFETY: the destination outlives the queue pair and is not looked at before `wait` saw the last completion.
        unsafe { self.reader.post_send(&mut self.batch) }?;
        Ok(())
    }

    /// Spins for one completion, as perftest does.
    fn wait(&self) -> Result<(), Error> {
        let deadline = Instant::now() + PATIENCE;
        let mut completions = [rdma::WorkCompletion::default(); 1];
        loop {
            if let [completion] = self.cq.poll(&mut completions)? {
                if completion.status().is_success() {
                    return Ok(());
                }
                return Err(format!("a READ ended with {}", completion.status()).into());
            }
            if Instant::now() > deadline {
                return Err(format!("no completion within {PATIENCE:?}").into());
            }
        }
    }

    /// Whether the bytes that arrived are the source's; clears them for the next time.
    fn check(&self) -> Result<(), Error> {
        if self.destination.memory().to_vec(0, self.expected.len())? != self.expected {
            return Err("the READs brought other bytes than the source holds".into());
        }
        self.destination.memory().fill(0);
        Ok(())
    }
}

fn connect(qp: &rdma::QueuePair, peer: &rdma::QueuePair, access: rdma::Access) -> Result<(), Error> {
    let context = qp.context();
    let gid = context.choose_gid(PORT, None)?;
    let attr = context.query_device()?;
    let reliability = rdma::Reliability {
        timeout: 16,
        ..rdma::Reliability::default()
    };
    qp.to_init(&rdma::InitAttr {
        port_num: PORT,
        pkey_index: 0,
        access,
    })?;
    qp.to_rtr(&rdma::RtrAttr {
        path_mtu: context.query_port(PORT)?.active_mtu,
        dest_qp_num: peer.qp_num(),
        rq_psn: 1,
        dgid: gid.entry.gid,
        sgid_index: gid.entry.index,
        dlid: 0,
        port_num: PORT,
        max_dest_rd_atomic: attr.responder_resources_max(),
        min_rnr_timer: reliability.min_rnr_timer,
    })?;
    qp.to_rts(&rdma::RtsAttr {
        sq_psn: 1,
        max_rd_atomic: attr.initiator_depth_max(),
        reliability,
    })?;
    Ok(())
}
