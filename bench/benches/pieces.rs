//! The pieces of a GET by themselves: judging a bucket, remembered locators, CRCs, posting a chain, frames.
//!
//! `cargo bench -p bench` measures; `cargo test` runs each once.

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use kv_client::pieces::Locators;
use kv_fabric::sim::{Sim, SimOptions};
use kv_fabric::{
    DataConnection, Endpoint, EndpointEvent, Fabric, Memory, MemoryKind, Read, ReadCompletion, Region,
    Registration, RemoteRef, Scatter,
};
use kv_proto::bucket::{IndexScope, candidates, judge_bucket};
use kv_proto::control::{
    Answer, Bytes, Request, decode_answer, decode_request, encode_answer, encode_request,
};
use kv_proto::crc::{block_crcs, combine, crc32c};
use kv_proto::hash::{KeyHash, directory_index};
use kv_proto::layout::{Bucket, DirectoryEntry, Locator, Slot, depth_prefix};
use twox_hash::XxHash3_64;
use zerocopy::FromZeros;

const KEY: &[u8; 16] = b"key-0123456789ab";
const DEPTH: u8 = 4;

/// A full bucket that has the key, the entry that leads to it, and where it belongs.
fn bucket() -> (IndexScope, DirectoryEntry, Bucket, KeyHash) {
    let scope = IndexScope {
        dataset: [3; 16],
        epoch: 7,
    };
    let hash = KeyHash::of(&[9; 16], KEY);
    let place = depth_prefix(DEPTH, directory_index(hash.slot, DEPTH));
    let mut entry = DirectoryEntry::new_zeroed();
    (entry.group, entry.stamp, entry.depth_prefix) = (5, 11, place);
    let mut bucket = Bucket::new_zeroed();
    (bucket.stamp, bucket.depth_prefix) = (11, place);
    for (number, slot) in bucket.slots.iter_mut().enumerate() {
        let own = number == 6;
        let locator = Locator {
            segment: 1,
            offset_units: 64 * number as u32,
            value_len_bytes: 4096,
            key_len_bytes: KEY.len() as u16,
            tag: if own { hash.tag() } else { 1 },
        };
        *slot = Slot {
            hash: if own { hash.slot } else { number as u64 },
            locator,
        };
    }
    bucket.checksum = scope.bucket_checksum(5, 2, &bucket);
    (scope, entry, bucket, hash)
}

fn buckets(bench: &mut Criterion) {
    let (scope, entry, bucket, hash) = bucket();
    assert_eq!(candidates(&bucket, hash, KEY.len()).count(), 1);
    bench.bench_function("bucket/judge and find", |bench| {
        bench.iter(|| {
            let bucket = black_box(&bucket);
            judge_bucket(&scope, &entry, 2, bucket, hash).expect("a good bucket");
            candidates(bucket, hash, KEY.len())
                .next()
                .expect("the key is there")
        });
    });
    bench.bench_function("bucket/hash the key", |bench| {
        bench.iter(|| KeyHash::of(&[9; 16], black_box(KEY)));
    });
}

/// Twice as many as there is room for, so that one of two is not found.
fn locators(bench: &mut Criterion) {
    const LEN_BYTES: usize = 4 << 20;
    let hash = |number: u64| KeyHash::of(&[9; 16], &number.to_le_bytes());
    let hashes: Vec<_> = (0..LEN_BYTES as u64 / 24).map(hash).collect();
    let locator = Locator {
        segment: 1,
        offset_units: 64,
        value_len_bytes: 4096,
        key_len_bytes: 8,
        tag: 1,
    };
    let mut known = Locators::new(LEN_BYTES);
    hashes.iter().for_each(|&hash| known.remember(hash, locator, 1));
    let found = hashes.iter().filter(|hash| known.find(**hash).is_some()).count();
    assert!((1..hashes.len()).contains(&found), "{found}");
    let mut next = hashes.iter().cycle();
    bench.bench_function("locators/find", |bench| {
        bench.iter(|| known.find(*next.next().expect("it is endless")));
    });
    let mut next = hashes.iter().cycle();
    bench.bench_function("locators/remember", |bench| {
        bench.iter(|| known.remember(*next.next().expect("it is endless"), black_box(locator), 1));
    });
}

fn checksums(bench: &mut Criterion) {
    let mut group = bench.benchmark_group("checksum");
    // Two of them where one way of taking a CRC gives way to another.
    for len in [64_usize, 384, 512, 4 << 10, 64 << 10, 1 << 20] {
        let value: Vec<u8> = (0..len).map(|n| (n * 7 + n / 251) as u8).collect();
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_with_input(BenchmarkId::new("CRC32C", len), &value, |bench, value| {
            bench.iter(|| crc32c(black_box(value)));
        });
        // What a value is compared by in `bench run`.
        group.bench_with_input(BenchmarkId::new("XXH3-64", len), &value, |bench, value| {
            bench.iter(|| XxHash3_64::oneshot(black_box(value)));
        });
    }
    let value = vec![7; 1 << 20];
    group.bench_function("CRC32C of blocks, combined", |bench| {
        bench.iter(|| {
            let crcs = block_crcs(black_box(&value));
            let (blocks, _) = crcs.as_chunks();
            blocks
                .iter()
                .fold(0, |sum, crc| combine(sum, u32::from_le_bytes(*crc), 64 << 10))
        });
    });
    group.finish();
}

/// A data connection over `sim`, and what it may READ.
struct Connected {
    fabric: Sim,
    data: Box<dyn DataConnection>,
    registration: Box<dyn Registration>,
    _endpoint: Box<dyn Endpoint>,
}

fn connect() -> Connected {
    let fabric = Sim::new(SimOptions::default());
    let mut endpoint = fabric.listen("server:7471").expect("listen");
    let domain = fabric.domain().expect("domain");
    let memory = Memory::new(CHAIN * LEN, MemoryKind::SharedReadOnly).expect("memory");
    let registration = domain.register(memory.into()).expect("register");
    let deadline = Instant::now() + Duration::from_secs(20);
    let data = std::thread::scope(|scope| {
        let client = scope.spawn(|| fabric.connect_data("server:7471", b"", CHAIN as u32, deadline));
        let mut events = Vec::new();
        let request = loop {
            assert!(Instant::now() < deadline, "no request comes");
            endpoint.poll(&mut events).expect("poll");
            if let Some(EndpointEvent::Request { request, .. }) = events.pop() {
                break request;
            }
        };
        endpoint.accept_data(request, &*domain).expect("accept");
        client.join().expect("no panic").expect("connect")
    });
    Connected {
        fabric,
        data,
        registration,
        _endpoint: endpoint,
    }
}

/// READs of a chain, and the length of each.
const CHAIN: usize = 32;
const LEN: usize = 128;

fn post(data: &mut dyn DataConnection, from: RemoteRef, region: &Region, ended: &mut Vec<ReadCompletion>) {
    let reads: [Read; CHAIN] = std::array::from_fn(|index| Read {
        number: index as u64,
        from: from.offset((index * LEN) as u64),
        to: [Scatter::new(0, index * LEN, LEN), Scatter::default()],
        signaled: index + 1 == CHAIN,
    });
    data.post(&reads, &[region]).expect("post");
    ended.clear();
    while ended.is_empty() {
        data.poll(ended).expect("poll");
    }
}

fn chains(bench: &mut Criterion) {
    let mut connected = connect();
    let region = connected.fabric.allocate(CHAIN * LEN).expect("allocate");
    let mut ended = Vec::with_capacity(CHAIN);
    let from = connected.registration.remote();
    bench.bench_function("chain/32 READs over sim", |bench| {
        bench.iter(|| post(&mut *connected.data, from, &region, &mut ended));
    });
}

fn frames(bench: &mut Criterion) {
    let request = Request::Delete {
        dataset: [3; 16],
        operation: 77,
        key: Bytes::from(&KEY[..]),
    };
    let answer = Answer::Create { dataset: [3; 16] };
    let mut frame = Vec::new();
    bench.bench_function("frame/request there and back", |bench| {
        bench.iter(|| {
            frame.clear();
            encode_request(5, black_box(&request), &mut frame).expect("it can be told");
            decode_request(black_box(&frame)).expect("it was told")
        });
    });
    bench.bench_function("frame/answer there and back", |bench| {
        bench.iter(|| {
            frame.clear();
            encode_answer(5, black_box(&answer), &mut frame).expect("it can be told");
            decode_answer(black_box(&frame)).expect("it was told")
        });
    });
}

criterion_group!(pieces, buckets, locators, checksums, chains, frames);
criterion_main!(pieces);
