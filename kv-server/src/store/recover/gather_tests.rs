//! What several passes give together is what one gives. The seed is printed; `VKV_SEED=<seed>` replays it.

use kv_proto::layout::record_kind;

use super::super::rebuild::{Newest, resolve};
use super::*;
use crate::store::tests::support::seed;

const THREADS: usize = 3;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }
}

/// Records of `keys` keys in many segments: values, heads with their parts, tombstones, and copies of all of them.
fn segments(random: &mut Random, keys: u64, records: u64) -> Vec<Vec<FooterEntry>> {
    const KINDS: [u8; 8] = [
        record_kind::VALUE,
        record_kind::VALUE,
        record_kind::VALUE,
        record_kind::VALUE,
        record_kind::HEAD,
        record_kind::PART,
        record_kind::TOMBSTONE,
        record_kind::TOMBSTONE,
    ];
    let pool: Vec<_> = (0..keys).map(|_| (random.next(), random.next())).collect();
    let mut segments: Vec<Vec<FooterEntry>> = vec![Vec::new(); 50];
    for sequence in 1..=records {
        let (hash, hash_high) = pool[(random.next() % keys) as usize];
        let kind = KINDS[(random.next() % 8) as usize];
        for _ in 0..1 + random.next() % 4 / 3 {
            let segment = (random.next() % 50) as usize;
            let entry = FooterEntry {
                hash,
                hash_high,
                sequence,
                offset_units: 1 + segments[segment].len() as u32,
                value_len_bytes: random.next() as u32 % 1000,
                part: 0,
                key_len_bytes: 1 + (hash % 100) as u16,
                kind,
                reserved: 0,
            };
            segments[segment].push(entry);
        }
    }
    segments
}

fn in_one(segments: &[Vec<FooterEntry>]) -> Newest {
    let mut spread = Spread::new();
    for (number, entries) in (1..).zip(segments) {
        for entry in entries {
            spread.push(number, entry);
        }
    }
    sorted(resolve(vec![spread], 1))
}

fn sorted(mut newest: Newest) -> Newest {
    assert!(newest.live.is_sorted_by_key(|(hash, _)| hash.slot));
    newest
        .heads
        .sort_unstable_by_key(|it| (it.segment, it.offset_units));
    newest
        .tombstones
        .sort_unstable_by_key(|it| (it.segment, it.offset_units));
    newest
}

/// Passes over all segments; what they give together, how many there were, and the most records held.
fn in_passes(segments: &[Vec<FooterEntry>], max: usize) -> (Newest, usize, usize) {
    let (mut all, mut passes, mut most) = (Newest::default(), 0, 0);
    let mut first = Some(0);
    while let Some(from) = first {
        passes += 1;
        let gather = Gather::new(from, max, THREADS);
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let gather = &gather;
                scope.spawn(move || {
                    for (number, entries) in (1..).zip(segments).skip(thread).step_by(THREADS) {
                        gather.take(thread, number, entries);
                    }
                });
            }
        });
        let (spreads, next, held) = gather.finish();
        let there: usize = spreads.iter().map(Spread::len).sum();
        assert!(
            there <= held && held <= max,
            "{there} there, {held} held at most, of {max}"
        );
        most = most.max(held);
        all.append(resolve(spreads, THREADS));
        first = next;
    }
    (sorted(all), passes, most)
}

#[test]
fn many_passes_give_what_one_gives() {
    let segments = segments(&mut Random(seed()), 6000, 20_000);
    let expected = in_one(&segments);
    assert!(!expected.live.is_empty() && !expected.heads.is_empty() && !expected.tombstones.is_empty());
    for (max, passes_least) in [(64, 100), (1000, 6), (5000, 2), (1 << 20, 1)] {
        let (newest, passes, most) = in_passes(&segments, max);
        println!("at most {max}: {passes} passes, {most} held");
        assert!(newest == expected, "at most {max}");
        assert!(passes >= passes_least, "{passes} passes at most {max}");
        assert_eq!(passes == 1, max == 1 << 20);
    }
}

#[test]
fn records_of_a_few_keys_take_one_pass_however_many_there_are() {
    let segments = segments(&mut Random(7), 8, 50_000);
    let (newest, passes, most) = in_passes(&segments, 128);
    assert!(newest == in_one(&segments));
    assert_eq!(passes, 1);
    assert!(most <= 128);
}
