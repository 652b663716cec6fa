//! Values of every size come back byte for byte, over shared memory and over the simulated network.

use crate::harness::{TestFabric, World, value};
use kv_client::{Client, ReadError};
use kv_fabric::local::Local;
use kv_fabric::sim::Sim;
use kv_fabric::verbs::Verbs;

const SIZES: [usize; 10] = [
    0,
    1,
    63,
    64,
    4096,
    65_536,
    65_537,
    1 << 20,
    (1 << 20) + 1,
    40 << 20,
];

/// Longer ones are checked in fewer ways: unoptimised checksums take seconds.
const LARGE: usize = 4 << 20;

fn check_large(dataset: &Client, key: &[u8], bytes: &[u8]) {
    let len = bytes.len();
    let mut buffer = dataset.allocate(len).unwrap();
    assert_eq!(dataset.get_into(key, &mut buffer, 0), Ok(len));
    assert!(*buffer == *bytes);
    let needed = ReadError::TooLarge {
        needed_bytes: len as u64,
    };
    assert_eq!(dataset.get_into(key, &mut buffer, 1), Err(needed));
    // Across the end of a part, and within one block.
    for (offset, count) in [((3 << 20) - 100_000, 200_000), (len - 5, 50)] {
        let range = dataset.get_range(key, offset as u64, count as u64).unwrap();
        assert!(range == bytes[offset..len.min(offset + count)]);
    }
}

fn every_size<F: TestFabric>() {
    let world = World::<F>::new();
    let dataset = world.dataset("d");
    for (seed, len) in SIZES.into_iter().enumerate() {
        let key = format!("key of {len}");
        let bytes = value(seed as u64, len);
        let put = dataset.put(key.as_bytes(), &bytes).unwrap();
        assert!(dataset.get(key.as_bytes()).unwrap() == bytes, "{len}");
        if len > LARGE {
            check_large(&dataset, key.as_bytes(), &bytes);
            continue;
        }
        let at = dataset.locate(key.as_bytes()).unwrap();
        assert_eq!(at, put.locator);
        assert!(
            dataset.get_at(&at, Some(key.as_bytes())).unwrap() == bytes,
            "{len}"
        );
        assert!(dataset.get_at(&at, None).unwrap() == bytes, "{len}");
        let mut buffer = dataset.allocate(len + 10).unwrap();
        buffer.fill(0xee);
        assert_eq!(dataset.get_at_into(&at, None, &mut buffer, 7), Ok(len));
        assert!(buffer[7..7 + len] == bytes[..], "{len}");
        assert_eq!(buffer[..7], [0xee; 7]);
        assert_eq!(buffer[7 + len..], [0xee; 3]);
        buffer.fill(0xee);
        assert_eq!(dataset.get_into(key.as_bytes(), &mut buffer, 10), Ok(len));
        assert!(buffer[10..] == bytes[..], "{len}");
        if len > 0 {
            let short = dataset.get_at_into(&at, None, &mut buffer, 11);
            assert_eq!(
                short,
                Err(ReadError::TooLarge {
                    needed_bytes: len as u64
                }),
                "{len}"
            );
        }
        for (offset, count) in [
            (0, 1),
            (0, len),
            (len / 2, 70_000),
            (len, 5),
            (len + 1, 5),
            (3, usize::MAX),
        ] {
            let range = dataset
                .get_range(key.as_bytes(), offset as u64, count as u64)
                .unwrap();
            let start = offset.min(len);
            let end = offset.saturating_add(count).min(len).max(start);
            assert!(range == bytes[start..end], "{offset}..+{count} of {len}");
        }
    }
    assert_eq!(dataset.get(b"nobody"), Err(ReadError::NotFound));
    assert_eq!(dataset.locate(b"nobody"), Err(ReadError::NotFound));
}

#[test]
fn every_size_over_local() {
    every_size::<Local>();
}

#[test]
fn every_size_over_sim() {
    every_size::<Sim>();
}

#[test]
#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]
fn every_size_over_verbs() {
    every_size::<Verbs>();
}
