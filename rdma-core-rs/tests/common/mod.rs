//! What the device tests share: the device under test, two connected queue pairs, and waits that end.
//!
//! A missing device is a failure, never a silent pass.
#![allow(unsafe_code, dead_code, missing_docs, unreachable_pub)]

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdma_core_rs::{
    Access, Buffer, CompletionQueue, Context, GidChoice, InitAttr, MemoryRegion, Mtu, ProtectionDomain,
    QueuePair, RecvBatch, Reliability, RemoteAddr, RtrAttr, RtsAttr, SendFlags, Sge, WcStatus, WorkBatch,
    WorkCompletion,
};

/// Longest wait for anything: a READ to a dead peer takes several seconds of retries under emulation.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub const PORT: u8 = 1;

pub fn deadline() -> Instant {
    Instant::now() + PATIENCE
}

pub fn device_name() -> String {
    std::env::var("VKV_TEST_DEVICE")
        .expect("VKV_TEST_DEVICE names no RDMA device: run inside soft-roce-ci/run")
}

/// The IP address that rdma_cm reaches the device by.
pub fn device_ip() -> IpAddr {
    let text =
        std::env::var("VKV_TEST_ADDR").expect("VKV_TEST_ADDR names no address: run inside soft-roce-ci/run");
    text.parse().expect("VKV_TEST_ADDR is an IP address")
}

/// True for the software device, which names the interface it sits on.
pub fn is_soft_roce() -> bool {
    std::path::Path::new("/sys/class/infiniband")
        .join(device_name())
        .join("parent")
        .exists()
}

pub fn any_port() -> SocketAddr {
    SocketAddr::new(device_ip(), 0)
}

pub fn open() -> Arc<Context> {
    Context::open(&device_name()).expect("the test device opens")
}

/// One end: a domain, a queue and a queue pair on it.
pub struct End {
    pub qp: QueuePair,
    pub cq: Arc<CompletionQueue>,
    pub pd: Arc<ProtectionDomain>,
}

impl End {
    pub fn new(context: &Arc<Context>) -> End {
        let pd = ProtectionDomain::new(context).unwrap();
        let cq = CompletionQueue::new(context, 256, None).unwrap();
        End::with(&pd, &cq)
    }

    pub fn with(pd: &Arc<ProtectionDomain>, cq: &Arc<CompletionQueue>) -> End {
        let qp = QueuePair::builder(pd, cq, cq)
            .max_send_wr(64)
            .max_recv_wr(16)
            .max_send_sge(4)
            .max_recv_sge(2)
            .max_inline_bytes(64)
            .build()
            .unwrap();
        End {
            qp,
            cq: cq.clone(),
            pd: pd.clone(),
        }
    }

    pub fn region(&self, len_bytes: usize, access: Access) -> MemoryRegion<Buffer> {
        self.pd.register(Buffer::new(len_bytes).unwrap(), access).unwrap()
    }

    /// Waits for the next `count` completions.
    pub fn completions(&self, count: usize) -> Vec<WorkCompletion> {
        completions(&self.cq, count)
    }

    /// Waits for one completion and gives its number and status.
    pub fn completion(&self) -> (u64, WcStatus) {
        let completion = self.completions(1)[0];
        (completion.wr_id(), completion.status())
    }
}

pub fn completions(cq: &CompletionQueue, count: usize) -> Vec<WorkCompletion> {
    let until = deadline();
    let mut slots = [WorkCompletion::default(); 16];
    let mut found = Vec::new();
    while found.len() < count {
        let room = slots.len().min(count - found.len());
        found.extend_from_slice(cq.poll(&mut slots[..room]).unwrap());
        assert!(
            Instant::now() < until,
            "only {} of {count} completions came: {found:?}",
            found.len()
        );
    }
    found
}

/// Gives up on a peer after a few seconds (an emulated, busy machine may not answer for a while), and at once where
/// no receive is posted.
pub fn retries() -> Reliability {
    Reliability {
        timeout: 16,
        retry_cnt: 6,
        rnr_retry: 1,
        min_rnr_timer: 1,
    }
}

fn step(
    qp: &QueuePair,
    peer: &QueuePair,
    gid: &GidChoice,
    mtu: Mtu,
    access: Access,
    reliability: Reliability,
) {
    qp.to_init(&InitAttr {
        port_num: PORT,
        pkey_index: 0,
        access,
    })
    .unwrap();
    qp.to_rtr(&RtrAttr {
        path_mtu: mtu,
        dest_qp_num: peer.qp_num(),
        rq_psn: 100,
        dgid: gid.entry.gid,
        sgid_index: gid.entry.index,
        dlid: 0,
        port_num: PORT,
        max_dest_rd_atomic: 16,
        min_rnr_timer: reliability.min_rnr_timer,
    })
    .unwrap();
    qp.to_rts(&RtsAttr {
        sq_psn: 100,
        max_rd_atomic: 16,
        reliability,
    })
    .unwrap();
}

/// Connects two ends of one device by hand; `access` is what the *second* lets the first do.
pub fn join(first: &End, second: &End, access: Access, reliability: Reliability) {
    let context = first.qp.context();
    let gid = context.choose_gid(PORT, None).unwrap();
    let mtu = context.query_port(PORT).unwrap().active_mtu;
    step(&first.qp, &second.qp, &gid, mtu, Access::NONE, reliability);
    step(&second.qp, &first.qp, &gid, mtu, access, reliability);
}

/// Two connected ends; the second lets the first do what `access` says.
pub fn pair(access: Access) -> (End, End) {
    let context = open();
    let (first, second) = (End::new(&context), End::new(&context));
    join(&first, &second, access, retries());
    (first, second)
}

pub fn remote<M>(region: &MemoryRegion<M>) -> RemoteAddr {
    RemoteAddr {
        addr: region.addr(),
        rkey: region.rkey(),
    }
}

/// Posts one READ. The regions of these tests outlive the completion that each test waits for.
pub fn post_read(end: &End, wr_id: u64, from: RemoteAddr, into: &[Sge]) {
    let mut batch = WorkBatch::with_capacity(1, into.len());
    batch.read(wr_id, from, into, SendFlags::SIGNALED);
    // SAFETY: the callers keep their regions until they have the completion, and touch them only by atomics.
    unsafe { end.qp.post_send(&mut batch) }.unwrap();
}

/// Posts one WRITE, as `post_read`.
pub fn post_write(end: &End, wr_id: u64, to: RemoteAddr, from: &[Sge]) {
    let mut batch = WorkBatch::with_capacity(1, from.len());
    batch.write(wr_id, to, from, SendFlags::SIGNALED);
    // SAFETY: as in `post_read`.
    unsafe { end.qp.post_send(&mut batch) }.unwrap();
}

/// Posts one SEND, as `post_read`.
pub fn post_send(end: &End, wr_id: u64, from: &[Sge]) {
    let mut batch = WorkBatch::with_capacity(1, from.len());
    batch.send(wr_id, from, SendFlags::SIGNALED);
    // SAFETY: as in `post_read`.
    unsafe { end.qp.post_send(&mut batch) }.unwrap();
}

/// Posts one receive, as `post_read`.
pub fn post_recv(qp: &QueuePair, wr_id: u64, into: &[Sge]) {
    let mut batch = RecvBatch::with_capacity(1);
    batch.recv(wr_id, into);
    // SAFETY: as in `post_read`.
    unsafe { qp.post_recv(&mut batch) }.unwrap();
}

/// Bytes that differ from place to place.
pub fn pattern(len_bytes: usize, seed: u8) -> Vec<u8> {
    (0..len_bytes)
        .map(|i| {
            (i as u8)
                .wrapping_mul(31)
                .wrapping_add((i >> 8) as u8)
                .wrapping_add(seed)
        })
        .collect()
}
