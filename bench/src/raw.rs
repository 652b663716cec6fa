//! Bare READs and frames over `rdma-core-rs`: no key, no seam, nothing between the loop and the queue pair.
//!
//! # Safety
//! The regions of a [`Pair`], of a [`Replay`] and of an [`End`] are declared behind their queue pairs and so outlive them; a
//! destination is looked at only after the last READ to it has completed.
#![allow(unsafe_code)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use rdma_core_rs as rdma;
use rdma_core_rs::Registrable;

use crate::Error;
use crate::stats::median;

/// Longest wait for a completion.
const PATIENCE: Duration = Duration::from_secs(60);
const PORT: u8 = 1;
/// Most places that one READ goes to.
const PIECES: u32 = 2;
/// READs behind one doorbell at most, and from one completion to the next, as the client has them (which has more
/// completions where values are long).
pub(crate) const CHAIN_MAX: usize = 256;
pub(crate) const SIGNAL_READS: usize = 8;
/// One part of the queue in so many is free before more is posted, as in the client.
const FREE_SHARE: usize = 4;
/// Frames of one end that are under way each way at most, as many as a session's.
pub(crate) const FRAMES: u32 = 16;
/// Bytes of a frame: those of a RENEW with its header.
const FRAME_BYTES: usize = 64;
/// Length of a huge page: shorter memory has none.
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Two connected queue pairs of one process.
struct Link {
    reader: rdma::QueuePair,
    _server: rdma::QueuePair,
    cq: Arc<rdma::CompletionQueue>,
    batch: rdma::WorkBatch,
}

impl Link {
    /// On the device of `pd`, for up to `depth` READs at a time.
    fn new(
        pd: &Arc<rdma::ProtectionDomain>,
        context: &Arc<rdma::Context>,
        depth: usize,
    ) -> Result<Self, Error> {
        let cq = rdma::CompletionQueue::new(context, depth as u32 + 1, None)?;
        let qp = || {
            rdma::QueuePair::builder(pd, &cq, &cq)
                .max_send_wr(depth as u32)
                .max_send_sge(PIECES)
                .max_recv_wr(1)
                .build()
        };
        let (reader, server) = (qp()?, qp()?);
        connect(&reader, &server, rdma::Access::NONE)?;
        connect(&server, &reader, rdma::Access::REMOTE_READ)?;
        Ok(Self {
            reader,
            _server: server,
            cq,
            batch: rdma::WorkBatch::with_capacity(depth, depth * PIECES as usize),
        })
    }

    /// Spins for one completion, as perftest does; its number.
    fn wait(&self) -> Result<u64, Error> {
        let deadline = Instant::now() + PATIENCE;
        let mut completions = [rdma::WorkCompletion::default(); 1];
        loop {
            if let [completion] = self.cq.poll(&mut completions)? {
                if completion.status().is_success() {
                    return Ok(completion.wr_id());
                }
                return Err(format!("a READ ended with {}", completion.status()).into());
            }
            if Instant::now() > deadline {
                return Err(format!("no completion within {PATIENCE:?}").into());
            }
        }
    }
}

/// A link, and the memory between its ends.
pub(crate) struct Pair {
    // Dropped in this order: queue pairs before the memory that they reach.
    link: Link,
    source: rdma::MemoryRegion<rdma::Buffer>,
    destination: rdma::MemoryRegion<rdma::Buffer>,
    expected: Vec<u8>,
}

impl Pair {
    /// Connects two queue pairs on `device` for READs of `size_bytes`, up to `depth` at a time.
    pub(crate) fn new(device: &str, size_bytes: usize, depth: usize) -> Result<Self, Error> {
        let context = rdma::Context::open(device)?;
        let pd = rdma::ProtectionDomain::new(&context)?;
        let link = Link::new(&pd, &context, depth)?;
        let expected: Vec<u8> = (0..size_bytes).map(|n| (n * 31 + n / 256) as u8).collect();
        let memory = rdma::Buffer::new(size_bytes)?;
        memory.copy_in(0, &expected)?;
        let source = pd.register(memory, rdma::Access::REMOTE_READ)?;
        let destination = pd.register(rdma::Buffer::new(size_bytes)?, rdma::Access::LOCAL_WRITE)?;
        Ok(Self {
            link,
            source,
            destination,
            expected,
        })
    }

    /// Median time from posting one READ to its completion, us.
    pub(crate) fn latency_us(&mut self, iterations: usize) -> Result<f64, Error> {
        let mut times = Vec::with_capacity(iterations);
        for _ in 0..iterations {
            let started = Instant::now();
            self.post(1)?;
            self.link.wait()?;
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
            self.link.wait()?;
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
        let batch = &mut self.link.batch;
        for number in 0..count {
            batch.read(number as u64, from, &to, rdma::SendFlags::NONE);
        }
        batch.signal_last();
        // SAFETY: the destination outlives the queue pair and is not looked at before `wait` saw the last completion.
        unsafe { self.link.reader.post_send(&mut self.link.batch) }?;
        Ok(())
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

/// One READ of a list that is replayed: a run of the source to one or two places of the destination.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bare {
    /// Where it begins in the source.
    pub(crate) from: usize,
    /// Offset and length of each place, bytes; a length of 0 is none.
    pub(crate) to: [(usize, usize); PIECES as usize],
}

/// A link that replays lists of READs.
pub(crate) struct Replay {
    // In this order: see `Pair`.
    link: Link,
    source: rdma::MemoryRegion<rdma::Buffer>,
    destination: rdma::MemoryRegion<rdma::Buffer>,
    depth: usize,
    posted: u64,
    completed: u64,
}

impl Replay {
    /// A source of `source` bytes that `fill` fills, a destination of `destination` bytes, up to `depth` READs at a time.
    pub(crate) fn new(
        device: &str,
        source: usize,
        destination: usize,
        depth: usize,
        fill: impl FnOnce(&rdma::Buffer) -> Result<(), Error>,
    ) -> Result<Self, Error> {
        let context = rdma::Context::open(device)?;
        let pd = rdma::ProtectionDomain::new(&context)?;
        let memory = in_huge_pages(source)?;
        fill(&memory)?;
        Ok(Self {
            link: Link::new(&pd, &context, depth)?,
            source: pd.register(memory, rdma::Access::REMOTE_READ)?,
            destination: pd.register(in_huge_pages(destination)?, rdma::Access::LOCAL_WRITE)?,
            depth,
            posted: 0,
            completed: 0,
        })
    }

    /// Carries out all `reads`; as many as `depth` are outstanding.
    pub(crate) fn run(&mut self, reads: &[Bare]) -> Result<(), Error> {
        let mut rest = reads;
        while !rest.is_empty() {
            let least = rest.len().min(CHAIN_MAX).min(self.depth.div_ceil(FREE_SHARE));
            while self.room() < least {
                self.completed = self.link.wait()?;
            }
            let (chain, behind) = rest.split_at(rest.len().min(CHAIN_MAX).min(self.room()));
            self.post(chain)?;
            rest = behind;
        }
        while self.completed < self.posted {
            self.completed = self.link.wait()?;
        }
        Ok(())
    }

    /// READs that can be posted now.
    fn room(&self) -> usize {
        self.depth - (self.posted - self.completed) as usize
    }

    fn post(&mut self, chain: &[Bare]) -> Result<(), Error> {
        for (index, read) in chain.iter().enumerate() {
            self.posted += 1;
            let from = rdma::RemoteAddr {
                addr: self.source.addr() + read.from as u64,
                rkey: self.source.rkey(),
            };
            let flags = if (index + 1) % SIGNAL_READS == 0 {
                rdma::SendFlags::SIGNALED
            } else {
                rdma::SendFlags::NONE
            };
            let [first, second] = read.to;
            let sge = |(offset, len)| self.destination.sge(offset, len);
            if second.1 == 0 {
                self.link.batch.read(self.posted, from, &[sge(first)?], flags);
            } else {
                let both = [sge(first)?, sge(second)?];
                self.link.batch.read(self.posted, from, &both, flags);
            }
        }
        self.link.batch.signal_last();
        // SAFETY: the destination outlives the queue pair; `bytes` is called when `run` has seen the last completion.
        unsafe { self.link.reader.post_send(&mut self.link.batch) }?;
        Ok(())
    }

    /// Bytes that arrived. After an error of `run` nothing may be asked for.
    pub(crate) fn bytes(&self, offset: usize, len: usize) -> Result<Vec<u8>, Error> {
        if self.completed < self.posted {
            return Err("READs are in flight".into());
        }
        Ok(self.destination.memory().to_vec(offset, len)?)
    }
}

/// A buffer in huge pages where the kernel has them, as the client's arena is: a device translates fewer pages.
fn in_huge_pages(len_bytes: usize) -> Result<rdma::Buffer, Error> {
    let buffer = rdma::Buffer::new(len_bytes)?;
    if len_bytes >= HUGE_PAGE_BYTES {
        // SAFETY: the advice changes nothing that the mapping holds, and all of it is this buffer's own.
        let advised =
            unsafe { rustix::mm::madvise(buffer.ptr().cast(), len_bytes, rustix::mm::Advice::LinuxHugepage) };
        // A kernel without them serves as well.
        let _ = advised;
    }
    Ok(buffer)
}

/// One end of a connection for frames, with a queue for those that arrive, which wakes its thread.
pub(crate) struct End {
    // Dropped in this order: the queue pair before the memory that it reaches.
    pub(crate) qp: rdma::QueuePair,
    /// A half for each direction: the device alone writes to the first, and nobody ever writes to the second.
    memory: rdma::MemoryRegion<rdma::Buffer>,
    pub(crate) sent: Arc<rdma::CompletionQueue>,
    pub(crate) arrived: Arc<rdma::CompletionQueue>,
    pub(crate) wakes: Arc<rdma::CompletionChannel>,
}

impl End {
    /// Not connected yet; for [`FRAMES`] frames at a time each way.
    pub(crate) fn new(pd: &Arc<rdma::ProtectionDomain>, context: &Arc<rdma::Context>) -> Result<Self, Error> {
        let wakes = rdma::CompletionChannel::new(context)?;
        let arrived = rdma::CompletionQueue::new(context, FRAMES, Some(&wakes))?;
        let sent = rdma::CompletionQueue::new(context, FRAMES, None)?;
        let qp = rdma::QueuePair::builder(pd, &sent, &arrived)
            .max_send_wr(FRAMES)
            .max_recv_wr(FRAMES)
            .build()?;
        Ok(Self {
            qp,
            memory: pd.register(rdma::Buffer::new(2 * FRAME_BYTES)?, rdma::Access::LOCAL_WRITE)?,
            sent,
            arrived,
            wakes,
        })
    }

    /// Posts a receive.
    pub(crate) fn receive(&self) -> Result<(), Error> {
        let mut batch = rdma::RecvBatch::with_capacity(1);
        batch.recv(0, &[self.memory.sge(0, FRAME_BYTES)?]);
        // SAFETY: the region outlives the queue pair, and this half of it is the device's alone.
        Ok(unsafe { self.qp.post_recv(&mut batch) }?)
    }

    /// Sends a frame of zeroes.
    pub(crate) fn send(&self) -> Result<(), Error> {
        let mut batch = rdma::WorkBatch::with_capacity(1, 1);
        let from = self.memory.sge(FRAME_BYTES, FRAME_BYTES)?;
        batch.send(0, &[from], rdma::SendFlags::SIGNALED);
        // SAFETY: the region outlives the queue pair, and nobody writes this half of it.
        Ok(unsafe { self.qp.post_send(&mut batch) }?)
    }
}

/// Connects one end to `peer`, which may do what `access` says.
pub(crate) fn connect(
    qp: &rdma::QueuePair,
    peer: &rdma::QueuePair,
    access: rdma::Access,
) -> Result<(), Error> {
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

#[cfg(test)]
mod tests {
    use super::{CHAIN_MAX, SIGNAL_READS};

    #[test]
    fn chains_are_those_of_the_client() {
        let client = include_str!("../../kv-client/src/read/plan.rs");
        for own in [
            format!("const CHAIN_MAX: usize = {CHAIN_MAX};"),
            format!("const SIGNAL_READS: usize = {SIGNAL_READS};"),
        ] {
            assert!(client.contains(&own), "the client has no `{own}`");
        }
    }
}
